"""jetgraph: residual networks as exact sums of explicit path terms plus an explicit remainder.

    model ──trace──▶ ResidualGraph ──expand──▶ Expansion ──select──▶ paths ──compile──▶ nn.Module
                                                  └──path_graph──▶ networkx DAG ──▶ GraphML, JSON, DOT, …

The mathematics is that of "Jet Expansions of Residual Computation" (arXiv 2410.06024).
"""

import lazy_loader

# torch and sympy take seconds to import, which nobody should wait for before they are used. The names are in the stub.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
