"""Activations: what the residual stream and the writers hold at each prompt's last tokens."""
