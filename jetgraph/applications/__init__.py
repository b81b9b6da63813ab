"""What people come for: lenses, n-grams, model diffs and interventions, written on the engine's public names only."""

import lazy_loader

# The names are in the stub.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
