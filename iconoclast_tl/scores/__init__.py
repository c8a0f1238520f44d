"""Scores of a behaviour with a gradient: log-odds of the prefixes that open it, logits of first tokens, projections."""
