"""Graphs and compiled paths in folders, which are read as data."""
