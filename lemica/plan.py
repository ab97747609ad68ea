"""Plan step masks: which steps to compute with a given budget.

Finds the best path through an error graph from calibrate, exactly, for one budget or for several. The objective
"minimax" makes the worst stretch of reused steps as harmless as possible, then the second worst, and so on (LeMiCa,
arXiv 2511.00090); "sum" makes the sum of all errors smallest. Needs neither a GPU nor torch.

--forecast fitted plans for a forecast of the velocity by the last computed steps, --history of them, whose weights are
fitted to the calibrated runs and go into the mask file. A stretch then costs what it costs after the computed steps
that really come before it.

The mask goes straight into generate.py --enable_cache true --cache_type lemica --lemica_mask MASK.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from lemica.graph import ErrorGraph, merge_graphs, read_graph
from lemica.masks import FITTED, FITTED_KEEPS, Mask, write_mask
from lemica.moments import Moments
from lemica.path import lexicographic_minimax_paths, minimum_sum_paths
from lemica.routes import fitted_routes, step_routes
from lemica.show import mask_lines

EXAMPLES = """\
examples:
  python -m lemica plan graph.json --budget 20 -o mask.json
  python -m lemica plan graph.json --budget 25 20 15 10 -o 'masks/b{budget}.json'
  python -m lemica plan graph.json --budget 20 --objective sum
  python -m lemica plan velocity.json --budget 20 --forecast fitted -o mask.json
"""

_SOLVERS = {"minimax": lexicographic_minimax_paths, "sum": minimum_sum_paths}
_PLACEHOLDER = "{budget}"
DEFAULT_HISTORY = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graphs", type=Path, nargs="+", metavar="GRAPH", help="graph file; several are averaged")
    parser.add_argument("--budget", type=int, nargs="+", required=True, metavar="B", help="number of computed steps")
    parser.add_argument("--objective", choices=list(_SOLVERS), default="minimax", help="(default: minimax)")
    parser.add_argument(
        "--forecast", choices=[FITTED], help="plan for the fitted forecast (default: for the graph's own rule)"
    )
    parser.add_argument(
        "--history",
        type=int,
        choices=range(2, FITTED_KEEPS + 1),
        help="computed steps that a fitted forecast reads: more are better where gaps are short, 2 where they are long "
        f"(default: {DEFAULT_HISTORY})",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="MASK",
        help=f"mask file to write; {_PLACEHOLDER} in it stands for the budget (default: only print the mask)",
    )


def run(args: argparse.Namespace) -> None:
    """Plan, write and print; raises ValueError if a graph cannot be read or a budget has no path."""
    _check(args)
    graph = merge_graphs([read_graph(path) for path in args.graphs])
    masks = _planned(args, graph)
    names = {b: args.output.replace(_PLACEHOLDER, str(b)) if args.output else f"budget {b}" for b in masks}
    if args.output:
        for budget, mask in masks.items():
            write_mask(mask, names[budget])
    # After the files, so that a reader that closes the pipe costs no mask.
    for budget, mask in masks.items():
        print(*mask_lines(names[budget], mask, graph), sep="\n")


def _check(args: argparse.Namespace) -> None:
    if args.output and len(set(args.budget)) > 1 and _PLACEHOLDER not in args.output:
        raise ValueError(f"-o {args.output} would be written {len(set(args.budget))} times: put {_PLACEHOLDER} into it")
    if args.output == "":
        raise ValueError("-o is empty: name a file, or leave -o out to only print the mask")
    if args.output and (Path(args.output).is_dir() or args.output.endswith("/")):
        raise ValueError(f"-o {args.output} is a folder: name a file in it")
    if args.history and args.forecast != FITTED:
        raise ValueError(f"--history {args.history} is for fitted forecasts: add --forecast {FITTED}")


def _planned(args: argparse.Namespace, graph: ErrorGraph) -> dict[int, Mask]:
    """The mask for each budget."""
    history = args.history or DEFAULT_HISTORY
    is_fitted = args.forecast == FITTED
    origin = f"planned, {args.objective} over {', '.join(path.name for path in args.graphs)}"
    routes = fitted_routes(graph, history) if is_fitted else step_routes(graph)
    masks = {}
    for budget, path in _SOLVERS[args.objective](graph, args.budget, routes).items():
        mask = Mask(graph.model, graph.num_steps, tuple(path), origin, graph.reuse, graph.forecast)
        masks[budget] = fitted(mask, graph.moments, history) if is_fitted else mask
    return masks


def fitted(mask: Mask, moments: Moments, history: int) -> Mask:
    """The same steps with the fitted forecast of the last `history` computed steps, and its weights."""
    weights = moments.reuse_weights(mask.computed_steps, history)
    return replace(mask, reuse="velocity", forecast=FITTED, weights=weights)
