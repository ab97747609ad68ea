"""Measure a model's error graph: what each stretch of reused steps costs in quality.

Runs in the folder of a HunyuanVideo-1.5 tree in which the kit is installed (scripts/install.sh), on its pipeline. Every
prompt with every seed is one sample; errors are averaged over samples. The model is named as in generate.py.

A sample is generated once without any cache, and then replayed with one stretch of steps reused at a time. Fast edges
(default) replay a stretch to its end only and scale the error there by how much errors at that step matter for the
result, which takes at most 5 full runs per sample. Exact edges replay every stretch to the result, as LeMiCa (arXiv
2511.00090) defines them: 145 full runs per sample at 50 steps and gaps to 8. The cost is printed before anything runs.

Finished samples are kept beside the output, in the folder GRAPH.json.partial: after an interruption, the same command
goes on from there; a folder that is left over may be deleted. One calibration works on an output at a time, and all
ranks and nodes must see that folder. Under torchrun every rank holds the whole model and works alone on its own
samples, or on a part of one where there are more ranks than samples left. The velocities and latents of a run wait in
CPU memory: with 50 steps and CFG 1.5 GB per rank at 720p.
"""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lemica.calibration.hunyuan import MEMORY_OPTIONS, add_model_arguments
from lemica.calibration.samples import add_sample_arguments
from lemica.errors import Refused, refusing
from lemica.files import try_name
from lemica.streams import say, tell

if TYPE_CHECKING:
    from lemica.calibration.calibrate import Workload
    from lemica.calibration.checkpoints import Checkpoints
    from lemica.calibration.locks import Crew

EXAMPLES = """\
examples:
  cd HunyuanVideo-1.5
  lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --seeds 0 1 --output graph.json
  lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --image_path first.png \\
      --num_inference_steps 30 --output i2v_30.json
  torchrun --nproc_per_node=4 -m lemica calibrate --model_path ./ckpts --resolution 720p --prompts prompts.txt \\
      --edges exact --output exact.json
"""

# Where the samples are, and what does not change the numbers.
_NO_SETTINGS = ("prompts", "image_path", "output", "run", "parser", *MEMORY_OPTIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    add_sample_arguments(group)
    group.add_argument(
        "--num_inference_steps", type=int, default=50, metavar="N", help="denoising steps, at least 3 (default: 50)"
    )
    group.add_argument(
        "--max_gap", type=int, default=8, metavar="D", help="longest gap to measure, 2 to N - 1 (default: 8, or N - 1)"
    )
    group.add_argument(
        "--edges", choices=["fast", "exact"], default="fast", help="how they are measured (default: fast)"
    )
    group.add_argument("--output", type=Path, required=True, metavar="GRAPH", help="graph file to write")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Calibrate on this rank; rank 0 writes the graph once all are done."""
    from lemica.calibration.calibrate import Workload, measure_units
    from lemica.calibration.checkpoints import Checkpoints, folder_for, units_of_rank
    from lemica.calibration.edges import work_for
    from lemica.calibration.hunyuan import HunyuanVideo, ranks_together
    from lemica.calibration.locks import Crew
    from lemica.calibration.samples import read_samples, samples_digest

    _check(args)
    num_steps, max_gap = args.num_inference_steps, min(args.max_gap, args.num_inference_steps - 1)
    samples = read_samples(args)
    plan = Workload(samples, work_for(args.edges, num_steps, max_gap), args.edges, num_steps, max_gap)
    model = HunyuanVideo(args, num_steps, with_image=samples[0].image_path is not None)
    settings = {name: value for name, value in vars(args).items() if name not in _NO_SETTINGS}
    settings |= {"max_gap": max_gap, "prompts": f"(and images) of digest {samples_digest(samples)}"}

    with ExitStack() as at_work:
        with ranks_together() as (rank, world_size, exchange):
            crew = Crew(folder_for(args.output), rank, world_size)
            at_work.enter_context(crew.at_work(exchange))
            # Again, because the one that was at work until now may have written it.
            _refuse_output(args.output)
            with refusing(OSError):
                checkpoints = Checkpoints(args.output, settings)
            units = [unit for unit in units_of_rank(len(samples), world_size, rank) if not checkpoints.has(unit)]
        if rank == 0:
            # By one rank, and after the others have looked: for a moment there is a file of that name.
            with refusing(OSError):
                try_name(args.output)
            kept = f"unfinished work is kept in {checkpoints.folder}: after an interruption the same command goes on"
            tell(plan.cost(world_size), kept)
        if units:
            measure_units(plan, model, units, checkpoints, show_progress=rank == 0)
        if rank == 0:
            _write_graph(plan, checkpoints, crew, args.output)


def _write_graph(plan: "Workload", checkpoints: "Checkpoints", crew: "Crew", output: Path) -> None:
    from lemica.calibration.calibrate import averaged, next_command
    from lemica.planning.graph import write_graph

    graph = averaged(plan, checkpoints, crew)
    kept = f"; all samples are kept in {checkpoints.folder}: type the same command again once that is mended"
    _refuse_output(output, kept)
    with refusing(OSError, hint=kept):
        write_graph(graph, output)
    checkpoints.remove()
    say(f"{output}: {len(plan.samples)} samples; next: {next_command(graph, output)}")


def _check(args: argparse.Namespace) -> None:
    if args.num_inference_steps < 3:
        raise Refused(f"--num_inference_steps must be at least 3, got {args.num_inference_steps}")
    if args.max_gap < 2:
        raise Refused(f"--max_gap must be at least 2, got {args.max_gap}")
    _refuse_output(args.output)
    if args.video_length < 1:
        raise Refused(f"--video_length must be at least 1, got {args.video_length}")


def _refuse_output(output: Path, hint: str = "") -> None:
    if os.path.exists(output) and not os.path.isfile(output):
        raise Refused(f"--output {output} is no file: name a file, beside which unfinished work can be kept")
    if os.path.exists(output):
        raise Refused(f"--output {output} is there already: give another name, or delete it first{hint}")
