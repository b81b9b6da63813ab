"""Reports: one page on a model, on prompts, or on two models, that is read from top to bottom."""
