"""Plan step masks: which steps to compute with a given budget.

Finds the best path through an error graph from calibrate, exactly, for one budget or for several. The objective
"minimax" makes the worst stretch of reused steps as harmless as possible, then the second worst, and so on (LeMiCa,
arXiv 2511.00090); "sum" makes the sum of all errors smallest. Needs neither a GPU nor torch.

--forecast says how a reused step is made from the velocities of the computed steps before it, and --history how many
of them the fitted forecast reads. Any forecast is planned from the one graph: a stretch costs what it costs after the
computed steps that really come before it. The weights go into the mask file. Where the sampler is Euler's, every
forecast but hold is corrected: a computed step pays back a share of what the forecasts before it have missed.

The mask goes straight into generate.py --enable_cache true --cache_type lemica --lemica_mask MASK.
"""

import argparse
import os
from pathlib import Path

from lemica.errors import Refused, refusing
from lemica.forecasts import DEFAULT_FORECAST, FORECASTS, MAX_HISTORY, forecast_named
from lemica.masks import write_mask
from lemica.planning.describe import mask_lines
from lemica.planning.graph import merge_graphs, read_graph
from lemica.planning.paths import NoPath
from lemica.planning.plan import OBJECTIVES, plan_many
from lemica.streams import require_stdout, say, warn

EXAMPLES = """\
examples:
  lemica plan graph.json --budget 20 -o mask.json
  lemica plan graph.json --budget 25 20 15 10 -o 'masks/b{budget}.json'
  lemica plan graph.json --budget 20 --objective sum
  lemica plan graph.json --budget 20 --forecast damped -o mask.json
"""

_PLACEHOLDER = "{budget}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graphs", type=Path, nargs="+", metavar="GRAPH", help="graph file; several are averaged")
    parser.add_argument("--budget", type=int, nargs="+", required=True, metavar="B", help="number of computed steps")
    parser.add_argument("--objective", choices=list(OBJECTIVES), default="minimax", help="(default: minimax)")
    parser.add_argument(
        "--forecast",
        choices=FORECASTS,
        default=DEFAULT_FORECAST,
        help=f"how a reused step is made (default: {DEFAULT_FORECAST})",
    )
    parser.add_argument(
        "--history",
        type=int,
        choices=range(2, MAX_HISTORY + 1),
        help="computed steps that the fitted forecast reads (default: three near the newest of them, two further away)",
    )
    parser.add_argument(
        "--no_correction",
        action="store_true",
        help="let computed steps not pay back what forecasts have missed",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="MASK",
        help=f"mask file to write; {_PLACEHOLDER} in it stands for the budget (default: only print the mask)",
    )


def run(args: argparse.Namespace) -> None:
    """Plan, write and print; raises Refused if a graph cannot be read or a budget has no path."""
    _check(args)
    with refusing(OSError, ValueError):
        graphs = [read_graph(path) for path in args.graphs]
    with refusing(ValueError):
        graph = merge_graphs(graphs)
    with refusing(ValueError):
        forecast_named(args.forecast, graph.moments, args.history)
    made_by = f"lemica plan, {args.objective}, {', '.join(path.name for path in args.graphs)}"
    with refusing(NoPath):
        masks = plan_many(
            graph, args.budget, args.forecast, args.history, args.objective, made_by, correct=not args.no_correction
        )
    if graph.is_euler is None and args.forecast != "hold" and not args.no_correction:
        warn("the graph does not tell its sampler: no corrections; write it again with lemica calibrate to have them")
    names = {b: args.output.replace(_PLACEHOLDER, str(b)) if args.output else f"budget {b}" for b in masks}
    _refuse_inputs([*names.values()] if args.output else [], args.graphs)
    if args.output:
        for budget, mask in masks.items():
            with refusing(OSError):
                write_mask(mask, names[budget])
    say(*(line for budget, mask in masks.items() for line in mask_lines(names[budget], mask, graph)))


def _check(args: argparse.Namespace) -> None:
    if args.output and len(set(args.budget)) > 1 and _PLACEHOLDER not in args.output:
        raise Refused(f"-o {args.output} would be written {len(set(args.budget))} times: put {_PLACEHOLDER} into it")
    if args.output == "":
        raise Refused("-o is empty: name a file, or leave -o out to only print the mask")
    if args.output and (os.path.isdir(args.output) or args.output.endswith("/")):
        raise Refused(f"-o {args.output} is a folder: name a file in it")
    if args.history and args.forecast != "fitted":
        raise Refused("--history is for the fitted forecast: leave out --history, or type --forecast fitted")
    if not args.output:
        require_stdout()


def _refuse_inputs(outputs: list[str], graphs: list[Path]) -> None:
    """A graph is hours of work: no mask takes its place."""
    for output in filter(os.path.exists, outputs):
        if any(os.path.samefile(output, graph) for graph in graphs):
            raise Refused(f"-o {output} is the graph that is read: give another name")
