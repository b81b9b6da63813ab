"""Algorithm 1 of the paper at one nonlinear function: chosen centres, their jets, and what is left there."""

from jetgraph.applications.expansions.algorithm import JetExpansion, jet_expand
from jetgraph.applications.expansions.site_orders import SiteOrders, choose_orders

__all__ = ["JetExpansion", "SiteOrders", "choose_orders", "jet_expand"]
