"""A model through `torch.export`, and the state of the process while it runs."""
