"""Weights that are in files until something computes with them."""
