"""The rule table, one module per kind of op. Importing this package fills `jetgraph.jets.registry.RULES`."""

from jetgraph.jets.rules import bilinear, composite, constant, elementwise, linear, piecewise

__all__ = ["bilinear", "composite", "constant", "elementwise", "linear", "piecewise"]
