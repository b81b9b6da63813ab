"""A model as a functional graph of ATen operators: `trace` in the normal form that all later stages read."""
