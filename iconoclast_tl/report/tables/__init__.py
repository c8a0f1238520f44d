"""Tables for the terminal: one subject a file."""
