"""Show step masks and error graphs: masks as strips (■ computed, · reused), graphs as tables.

With --graph, every mask has its cost beside it: its worst edge and the sum of its edges. With --plot, the graph's
errors are drawn as a heat map (start step by gap) with the masks as paths on it. Needs neither a GPU nor torch.
"""

import argparse
import json
from pathlib import Path

from lemica.errors import require
from lemica.masks import Mask, read_mask
from lemica.planning.describe import graph_lines, mask_lines
from lemica.planning.graph import FORMAT, OLD_FORMAT, ErrorGraph, read_graph

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
    """Print every file, and draw; raises ValueError for a file that is neither mask nor graph, or does not fit."""
    if args.plot and (args.plot.is_dir() or not args.plot.suffix):
        raise ValueError(f"--plot {args.plot} is no picture: name a file that ends in .png, .svg or .pdf")
    shown = {str(path): read_graph(path) if _is_graph(path) else read_mask(path) for path in args.files}
    masks = {name: item for name, item in shown.items() if isinstance(item, Mask)}
    graphs = {name: item for name, item in shown.items() if isinstance(item, ErrorGraph)}
    graph = read_graph(args.graph) if args.graph else None
    texts = {name: mask_lines(name, mask, graph) for name, mask in masks.items()}
    texts |= {name: graph_lines(name, each) for name, each in graphs.items()}
    if args.plot:
        _draw(_only([graph] if graph else list(graphs.values())), masks, args.plot)
    print(*(line for name in shown for line in texts[name]), sep="\n")


def _is_graph(path: Path) -> bool:
    """Whether a file calls itself a graph; whatever else it is, the reader of masks will say what is wrong."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") in (FORMAT, OLD_FORMAT)


def _only(graphs: list[ErrorGraph]) -> ErrorGraph:
    if len(graphs) != 1:
        raise ValueError(f"--plot draws one graph, got {len(graphs)}: say which with --graph GRAPH")
    return graphs[0]


def _draw(graph: ErrorGraph, masks: dict[str, Mask], path: Path) -> None:
    require("matplotlib", "plot", "--plot")
    from lemica.planning.plot import draw_graph

    draw_graph(graph, masks, path)
