"""Estimators of behaviour directions at one residual point: a file a kind, all of them by name in `registry`."""
