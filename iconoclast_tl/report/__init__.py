"""What results look like: `tables` for the terminal, `pages` of HTML, and the parts of results.json."""
