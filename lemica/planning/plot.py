"""Pictures of error graphs. The only module of the planner that needs matplotlib."""

import errno
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lemica.files import replacing
from lemica.masks import Mask
from lemica.planning.describe import other_target, refuse_other_steps
from lemica.planning.graph import ErrorGraph


def draw_graph(graph: ErrorGraph, masks: Mapping[str, Mask], path: str | os.PathLike) -> None:
    """Draw the graph's errors, start step by gap in logarithmic colours, and every mask's path on it, to a file.

    Args:
        graph: the graph.
        masks: masks by the name for the legend.
        path: the picture; its format follows from the suffix.

    Raises ValueError for a suffix that matplotlib does not know, and for a mask with another number of steps than the
    graph.
    """
    size = max(7.0, 0.16 * graph.num_steps + 3), max(3.5, 0.3 * graph.max_gap + 1.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    label = "mean absolute error of the result, velocity held"
    figure.colorbar(_heat_map(axes, graph), ax=axes, label=label)
    for name, mask in masks.items():
        draw_path(axes, name, mask, graph)
    axes.set(
        xlabel="start step", ylabel="gap", title=f"{graph.target.model or 'unnamed model'}, {graph.num_steps} steps"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    if masks:
        figure.legend(loc="outside lower center", ncols=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(path).suffix[1:].lower())
        _check_that_it_opens(temporary, path)


def suffixes() -> set[str]:
    """Endings of pictures that can be drawn: ".png" and others."""
    return {f".{name}" for name in FigureCanvasBase.get_supported_filetypes()}


def _check_that_it_opens(picture: Path, path: str | os.PathLike) -> None:
    openers = {".svg": ElementTree.parse, ".pdf": _open_pdf, ".png": _open_pixels}
    try:
        openers.get(picture.suffix.lower(), _open_any)(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise OSError(errno.EIO, f"the picture cannot be read back ({error})", os.fspath(path)) from error


def _open_pixels(picture: Path) -> None:
    with Image.open(picture) as image:
        image.load()


def _open_pdf(picture: Path) -> None:
    content = picture.read_bytes()
    if not (content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")):
        raise ValueError("not a whole PDF")


def _open_any(picture: Path) -> None:
    if not picture.stat().st_size:
        raise ValueError("empty")


def _heat_map(axes: Axes, graph: ErrorGraph):
    """Gap 1 stays blank, as does an error of 0: neither has a logarithm."""
    errors = np.ma.masked_invalid(graph.errors[:, 1:].T)
    errors = np.ma.masked_less_equal(errors, 0)
    norm = LogNorm(errors.min(), errors.max()) if errors.count() else None
    edges = np.arange(graph.num_steps + 1) - 0.5, np.arange(graph.max_gap + 1) + 0.5
    return axes.pcolormesh(*edges, errors, norm=norm, cmap="viridis")


def draw_path(axes: Axes, name: str, mask: Mask, graph: ErrorGraph) -> None:
    """A line through one point per edge; raises ValueError for a mask of another number of steps.

    The legend says if the mask is for another model or sampler than the graph.
    """
    refuse_other_steps(name, mask, graph)
    starts, gaps = zip(*((i, j - i) for i, j in pairwise(mask.computed_steps)), strict=True)
    outlined = [withStroke(linewidth=3, foreground="white")]
    label = name + other_target(mask.target, graph.target)
    axes.plot(starts, gaps, marker="o", markersize=3, linewidth=1, label=label, path_effects=outlined)
