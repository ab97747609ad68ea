"""LeMiCa (arXiv 2511.00090): step masks, planned and measured, and step reuse for any diffusers pipeline.

    >>> import lemica
    >>> lemica.enable(pipe, budget=20)
    >>> image = pipe("a red circle").images[0]
    >>> lemica.disable(pipe)

Importing this package needs numpy only: what needs torch or diffusers is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

from lemica.masks import Mask, read_mask, write_mask
from lemica.planning.graph import ErrorGraph, read_graph, write_graph
from lemica.planning.plan import plan

if TYPE_CHECKING:
    from lemica.calibration.pipelines import calibrate
    from lemica.quality.evaluate import evaluate
    from lemica.reuse.pipelines import disable, enable, summary

__all__ = [
    "ErrorGraph",
    "Mask",
    "calibrate",
    "disable",
    "enable",
    "evaluate",
    "plan",
    "read_graph",
    "read_mask",
    "summary",
    "write_graph",
    "write_mask",
]

_LATER = {
    "calibrate": "lemica.calibration.pipelines",
    "disable": "lemica.reuse.pipelines",
    "enable": "lemica.reuse.pipelines",
    "evaluate": "lemica.quality.evaluate",
    "summary": "lemica.reuse.pipelines",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
