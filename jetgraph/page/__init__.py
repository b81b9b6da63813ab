"""A graph as one page for a browser: everything is in the file, nothing is asked of any network."""
