"""Show step masks and error graphs: masks as strips (■ computed, · reused), graphs as tables.

With --graph, every mask has its cost beside it: its worst edge and the sum of its edges. With --plot, the graph's
errors are drawn as a heat map (start step by gap) with the masks as paths on it. Needs neither a GPU nor torch.
"""

import argparse
import json
import os
from pathlib import Path

from lemica.errors import Refused, refusing, require
from lemica.masks import Mask, read_mask
from lemica.planning.describe import graph_lines, mask_lines, refuse_other_steps
from lemica.planning.graph import FORMAT, OLD_FORMAT, ErrorGraph, read_graph
from lemica.streams import require_stdout, say

EXAMPLES = """\
examples:
  lemica show masks/*.json --graph graph.json
  lemica show graph.json
  lemica show masks/b20.json --graph graph.json --plot graph.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="mask and graph files")
    parser.add_argument("--graph", type=Path, help="graph file that says what the masks cost")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture to draw, .png, .svg or .pdf")


def run(args: argparse.Namespace) -> None:
    """Print every file, and draw; raises Refused for a file that is neither mask nor graph, or does not fit."""
    if args.plot and (os.path.isdir(args.plot) or not args.plot.suffix):
        raise Refused(f"--plot {args.plot} is no picture: name a file that ends in .png, .svg or .pdf")
    if not args.plot:
        require_stdout()
    shown = {str(path): _read(path) for path in args.files}
    masks = {name: item for name, item in shown.items() if isinstance(item, Mask)}
    graphs = {name: item for name, item in shown.items() if isinstance(item, ErrorGraph)}
    graph = _graph(args.graph) if args.graph else None
    _refuse_other_steps(masks, graph)
    texts = {name: mask_lines(name, mask, graph) for name, mask in masks.items()}
    texts |= {name: graph_lines(name, each) for name, each in graphs.items()}
    if args.plot:
        _draw(_only([graph] if graph else list(graphs.values())), masks, args.plot)
    say(*(line for name in shown for line in texts[name]))


def _read(path: Path) -> Mask | ErrorGraph:
    if _is_graph(path):
        return _graph(path)
    with refusing(ValueError):
        return read_mask(path)


def _graph(path: Path) -> ErrorGraph:
    with refusing(OSError, ValueError):
        return read_graph(path)


def _is_graph(path: Path) -> bool:
    """Whether a file calls itself a graph; whatever else it is, the reader of masks will say what is wrong."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") in (FORMAT, OLD_FORMAT)


def _only(graphs: list[ErrorGraph]) -> ErrorGraph:
    if len(graphs) != 1:
        raise Refused(f"--plot draws one graph, got {len(graphs)}: say which with --graph GRAPH")
    return graphs[0]


def _refuse_other_steps(masks: dict[str, Mask], graph: ErrorGraph | None) -> None:
    for name, mask in masks.items():
        with refusing(ValueError):
            refuse_other_steps(name, mask, graph or mask)


def _draw(graph: ErrorGraph, masks: dict[str, Mask], path: Path) -> None:
    require("matplotlib", "plot", "--plot")
    from lemica.planning.plot import draw_graph, suffixes

    if path.suffix.lower() not in suffixes():
        raise Refused(f"--plot {path} is no picture that can be drawn: name a file that ends in .png, .svg or .pdf")
    _refuse_other_steps(masks, graph)
    with refusing(OSError):
        draw_graph(graph, masks, path)
