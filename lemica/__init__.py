"""LeMiCa (arXiv 2511.00090): how step masks are made and judged. Importing this package needs numpy only.

>>> import lemica
>>> graph = lemica.read_graph("graph.json")
>>> lemica.write_mask(lemica.plan(graph, budget=20), "mask20.json")
"""

from lemica.masks import Mask, read_mask, write_mask
from lemica.planning.graph import ErrorGraph, read_graph
from lemica.planning.plan import plan

__all__ = ["ErrorGraph", "Mask", "plan", "read_graph", "read_mask", "write_mask"]
