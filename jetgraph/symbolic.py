"""Sympy's view of an expansion: counts as a generating function, terms as formulas."""

from jetgraph.algebra.formulas import formula, generating_function, identity, latex, x, y

__all__ = ["formula", "generating_function", "identity", "latex", "x", "y"]
