"""The stages of a run: each reads what the run folder holds, calls a plain function, and writes."""
