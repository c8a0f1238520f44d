"""Runs against runs: which belong together, which are pairs, what differs between them, and the verdict. No files."""
