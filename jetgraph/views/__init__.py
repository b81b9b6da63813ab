"""What people look at: the structure as a tree, path graphs as pictures."""
