"""Scores of a behaviour that have a gradient: log-odds of the ways into it, logits of its first tokens, projections."""
