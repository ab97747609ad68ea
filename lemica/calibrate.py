"""Measure a model's error graph: what each stretch of reused steps costs in quality.

Runs the kit's own pipeline, so it runs in the folder of a HunyuanVideo-1.5 tree in which the kit is installed
(scripts/install.sh), with the folder of the kit on PYTHONPATH. Every prompt with every seed is one sample; errors are
averaged over samples. The model is named by the same options as in generate.py.

A sample is generated once without any cache, and then replayed with one stretch of steps reused at a time. Fast edges
(default) replay a stretch to its end only and scale the error there by how much errors at that step matter for the
result, which takes at most 5 full runs a sample. Exact edges replay every stretch to the result, as LeMiCa (arXiv
2511.00090) defines them: 145 full runs a sample at 50 steps and gaps to 8. The cost is printed before anything runs.

Finished samples are kept beside the output, in GRAPH.json.partial: after an interruption, the same command goes on
from there. Under torchrun every rank holds the whole model and works alone on its own samples, or on a part of one
where there are more ranks than samples left. The residuals of a run wait in CPU memory: with 50 steps and CFG 42 GiB a
rank at 720p, 19 GiB at 480p.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from lemica.checkpoints import Checkpoints, Unit, units_of_rank
from lemica.edges import EXACT, FAST, Work, sample_graph, work_for
from lemica.graph import merge_graphs, write_graph
from lemica.masks import FORECASTS, REUSED, ReuseRule
from lemica.samples import Samples, add_model_arguments, add_sample_arguments, ranks_together, read_samples

EXAMPLES = """\
examples:
  cd HunyuanVideo-1.5; export PYTHONPATH=/path/to/kit
  python -m lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --seeds 0 1 \\
      --output graph.json
  python -m lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --image_path first.png \\
      --num_inference_steps 30 --output i2v_30.json
  torchrun --nproc_per_node=4 -m lemica calibrate --model_path ./ckpts --resolution 720p --prompts prompts.txt \\
      --edges exact --output exact.json
"""

GIB = 1024**3

# Our own options that decide the numbers, beside the samples.
_SETTINGS = ("num_inference_steps", "max_gap", "edges", "reuse", "forecast")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    add_sample_arguments(group)
    group.add_argument(
        "--num_inference_steps", type=int, default=50, metavar="N", help="denoising steps, at least 3 (default: 50)"
    )
    group.add_argument(
        "--max_gap", type=int, default=8, metavar="D", help="longest gap to measure, 2 to N - 1 (default: 8, or N - 1)"
    )
    group.add_argument("--edges", choices=[FAST, EXACT], default=FAST, help="how edges are measured (default: fast)")
    group.add_argument(
        "--reuse", choices=REUSED, default=ReuseRule.reuse, help="what reused steps reuse (default: residual)"
    )
    group.add_argument(
        "--forecast",
        choices=FORECASTS,
        default=ReuseRule.forecast,
        metavar="NAME",
        help=f"how it is carried to them: {', '.join(FORECASTS)} (default: hold); for fitted forecasts calibrate "
        "--reuse velocity and then plan --forecast fitted",
    )
    group.add_argument("--output", type=Path, required=True, metavar="GRAPH", help="graph file to write")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Calibrate on this rank; rank 0 writes the graph once all are done. Raises ValueError for a bad argument."""
    _check(args)
    args.max_gap = min(args.max_gap, args.num_inference_steps - 1)
    samples = read_samples(args, "calibrate")
    requests = samples.requests(args.num_inference_steps, args.reuse, args.forecast)
    work = work_for(args.edges, args.num_inference_steps, args.max_gap)

    with ranks_together() as (rank, world_size):
        settings = {**samples.settings(), **{name: getattr(args, name) for name in _SETTINGS}}
        checkpoints = Checkpoints(args.output, settings)
        units = [unit for unit in units_of_rank(len(requests), world_size, rank) if not checkpoints.has(unit)]
    if rank == 0:
        print(cost(args.edges, work, args.num_inference_steps, len(requests), world_size))
        print(
            f"unfinished work is kept in {checkpoints.folder}: after an interruption the same command goes on from it"
        )
    if units:
        _measure(samples, requests, work, units, args.max_gap, checkpoints, show_progress=rank == 0)
    if rank == 0:
        _write_graph(args, checkpoints, len(requests), samples.model)


def cost(mode: str, work: Work, num_steps: int, num_samples: int, world_size: int = 1) -> str:
    """What a calibration costs, in a sentence."""
    sample = work.forwards(num_steps)
    total, busiest = sample * num_samples, max(rank_forwards(work, num_steps, num_samples, world_size))
    text = f"{mode} edges: {sample} forwards a sample ({sample / num_steps:.1f} full runs)"
    text += f", {total} for {num_samples} samples" if num_samples > 1 else ""
    return text + (f", at most {busiest} on one of {world_size} ranks" if world_size > 1 else "")


def rank_forwards(work: Work, num_steps: int, num_samples: int, world_size: int) -> list[int]:
    """Forwards of every rank; ranks that share a sample make its trajectory each."""
    return [
        sum(work.part(unit.part, unit.parts).forwards(num_steps) for unit in units_of_rank(num_samples, world_size, r))
        for r in range(world_size)
    ]


def _check(args: argparse.Namespace) -> None:
    if args.num_inference_steps < 3:
        raise ValueError(f"--num_inference_steps must be at least 3, got {args.num_inference_steps}")
    if args.max_gap < 2:
        raise ValueError(f"--max_gap must be at least 2, got {args.max_gap}")
    if args.output.exists():
        raise ValueError(f"--output {args.output} is there already: give another name, or delete it first")
    ReuseRule(args.reuse, args.forecast)


def _measure(
    samples: Samples,
    requests: list[dict[str, Any]],
    work: Work,
    units: list[Unit],
    max_gap: int,
    checkpoints: Checkpoints,
    show_progress: bool,
) -> None:
    from tqdm import tqdm

    from lemica import replay

    pipe = samples.load_pipeline()
    num_steps = requests[0]["num_steps"]
    shares = [work.part(unit.part, unit.parts) for unit in units]
    total = sum(share.forwards(num_steps) for share in shares)
    with tqdm(total=total, unit="forward", disable=not show_progress) as progress:
        for unit, share in zip(units, shares, strict=True):
            inputs = replay.prepare(pipe, **requests[unit.sample])
            size = num_steps * replay.recorded_bytes(pipe, inputs) / GIB
            progress.set_description(f"sample {unit.sample + 1} of {len(requests)}, {size:.2g} GiB kept")
            checkpoints.save(unit, replay.measure(pipe, inputs, share, max_gap, progress.update))


def _write_graph(args: argparse.Namespace, checkpoints: Checkpoints, num_samples: int, model: str) -> None:
    """Wait until every rank is done, average the samples in their order, and leave nothing but the graph."""
    missing = sum(checkpoints.errors(sample) is None for sample in range(num_samples))
    if missing:
        print(f"waiting for the other ranks: {missing} of {num_samples} samples are not done")
    settings = dict(
        model=model,
        num_steps=args.num_inference_steps,
        max_gap=args.max_gap,
        reuse=args.reuse,
        forecast=args.forecast,
    )
    graphs = []
    for sample in range(num_samples):
        while (errors := checkpoints.errors(sample)) is None:
            time.sleep(1)
        graphs.append(sample_graph(errors, args.edges, **settings))
    write_graph(merge_graphs(graphs), args.output)
    checkpoints.remove()
    print(f"{args.output}: {num_samples} samples of {model}; next: python -m lemica plan {args.output} --budget 20")
