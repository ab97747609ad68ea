"""Show step masks and error graphs: masks as strips (■ computed, · reused), graphs as tables.

With --graph, every mask is weighed: its worst edge and the sum of its edges. With --plot, the graph's errors are drawn
as a heat map (start step by gap) with the masks as paths on it. Needs neither a GPU nor torch.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from lemica.graph import FORMAT as GRAPH_FORMAT
from lemica.graph import ErrorGraph, read_graph
from lemica.masks import FITTED, Mask, read_mask, strip
from lemica.path import feasible_budgets, path_weights
from lemica.routes import fitted_costs

EXAMPLES = """\
examples:
  python -m lemica show masks/*.json --graph graph.json
  python -m lemica show graph.json
  python -m lemica show masks/b20.json --graph graph.json --plot graph.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="mask and graph files")
    parser.add_argument("--graph", type=Path, help="graph file by which the masks are weighed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture to draw, .png, .svg or .pdf")


def run(args: argparse.Namespace) -> None:
    """Print every file, and draw; raises ValueError for a file that is neither mask nor graph, or does not fit."""
    if args.plot and (args.plot.is_dir() or not args.plot.suffix):
        raise ValueError(f"--plot {args.plot} is no picture: name a file that ends in .png, .svg or .pdf")
    shown = {path: read_graph(path) if _is_graph(path) else read_mask(path) for path in args.files}
    masks = {str(path): item for path, item in shown.items() if isinstance(item, Mask)}
    graphs = [item for item in shown.values() if isinstance(item, ErrorGraph)]
    graph = read_graph(args.graph) if args.graph else None
    lines = [
        mask_lines(str(path), item, graph) if isinstance(item, Mask) else graph_lines(str(path), item)
        for path, item in shown.items()
    ]
    if args.plot:
        _draw(_only([graph] if graph else graphs), masks, args.plot)
    print(*(line for block in lines for line in block), sep="\n")


def mask_lines(name: str, mask: Mask, graph: ErrorGraph | None = None) -> list[str]:
    """A mask as text: what it is, what it weighs in `graph`, and its strip."""
    head = f"{name}: {mask.model}, {mask.budget} of {mask.num_steps} steps, {mask.rule}, {mask.origin}"
    return [head, *([_weighed(name, mask, graph)] if graph else []), strip(mask.steps)]


def graph_lines(name: str, graph: ErrorGraph) -> list[str]:
    """A graph as text: what it is, and one line a gap."""
    budgets = feasible_budgets(graph)
    head = [
        f"{name}: {graph.model}, {graph.num_steps} steps, {graph.samples} samples, {graph.reuse} + {graph.forecast}, "
        f"budgets {budgets[0]} to {budgets[-1]}",
        f"{'gap':>5}{'edges':>7}{'least':>11}{'median':>11}{'worst':>11}  worst edge",
    ]
    return head + [_gap_line(graph, gap) for gap in range(2, graph.max_gap + 1)]


def _gap_line(graph: ErrorGraph, gap: int) -> str:
    errors = graph.weights[: graph.num_steps - gap, gap]
    start = int(errors.argmax())
    numbers = "".join(f"{value:>11.4g}" for value in (errors.min(), np.median(errors), errors.max()))
    return f"{gap:>5}{len(errors):>7}{numbers}  {start} -> {start + gap}"


def _weighed(name: str, mask: Mask, graph: ErrorGraph) -> str:
    if mask.num_steps != graph.num_steps:
        raise ValueError(
            f"{name} is for {mask.num_steps} steps, the graph for {graph.num_steps}: "
            f"give a graph of {mask.num_steps} steps"
        )
    edges = list(pairwise(mask.computed_steps))
    too_long = next((f"{i} -> {j}" for i, j in edges if j - i > graph.max_gap), None)
    if too_long:
        return f"not weighed: edge {too_long} is longer than the graph's gaps, which go to {graph.max_gap}"
    try:
        weights = _costs(graph, mask)
    except ValueError as error:
        return f"not weighed: {error}"
    worst = max(range(len(edges)), key=weights.__getitem__)
    foreign = "" if _planned_on_such(graph, mask) else f" by a graph of {_owner(graph)}"
    return f"worst edge {edges[worst][0]} -> {edges[worst][1]} {weights[worst]:.4g}, total {sum(weights):.4g}{foreign}"


def _planned_on_such(graph: ErrorGraph, mask: Mask) -> bool:
    """Whether the graph is of the mask's model and rule; fitted forecasts are planned on held velocities."""
    forecast = "hold" if mask.forecast == FITTED else mask.forecast
    return (graph.model, graph.reuse, graph.forecast) == (mask.model, mask.reuse, forecast)


def _owner(graph: ErrorGraph) -> str:
    return f"{graph.model}, {graph.reuse} + {graph.forecast}"


def _costs(graph: ErrorGraph, mask: Mask) -> list[float]:
    """What the mask's edges cost: as the plan for its forecast reckons, where that is fitted."""
    if mask.forecast == FITTED:
        return fitted_costs(graph, mask.computed_steps, mask.rule.history)
    return path_weights(graph, mask.computed_steps)


def _is_graph(path: Path) -> bool:
    """Whether a file calls itself a graph; whatever else it is, the reader of masks will say what is wrong."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == GRAPH_FORMAT


def _only(graphs: list[ErrorGraph]) -> ErrorGraph:
    if len(graphs) != 1:
        raise ValueError(f"--plot draws one graph, got {len(graphs)}: say which with --graph GRAPH")
    return graphs[0]


def _draw(graph: ErrorGraph, masks: dict[str, Mask], path: Path) -> None:
    try:
        from lemica.plot import draw_graph
    except ImportError as error:
        raise ValueError(f"--plot needs matplotlib ({error}): pip install matplotlib") from error
    draw_graph(graph, masks, path)
