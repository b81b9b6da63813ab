"""Reading and writing, whole or not at all."""
