"""HTML pages that need no network: one a file, all in the frame of `frame.py`."""
