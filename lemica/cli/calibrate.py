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
from pathlib import Path
from typing import TYPE_CHECKING

from lemica.calibration.hunyuan import MEMORY_OPTIONS, add_model_arguments
from lemica.calibration.samples import add_sample_arguments
from lemica.errors import Refused

if TYPE_CHECKING:
    pass

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
    from lemica.calibration.calibrate import Workload, calibrate_to, refuse_output
    from lemica.calibration.edges import work_for
    from lemica.calibration.hunyuan import HunyuanVideo
    from lemica.calibration.samples import read_samples, samples_digest

    _check(args)
    refuse_output(args.output)
    num_steps, max_gap = args.num_inference_steps, min(args.max_gap, args.num_inference_steps - 1)
    samples = read_samples(args)
    plan = Workload(samples, work_for(args.edges, num_steps, max_gap), args.edges, num_steps, max_gap)
    model = HunyuanVideo(args, num_steps, with_image=samples[0].image_path is not None)
    settings = {name: value for name, value in vars(args).items() if name not in _NO_SETTINGS}
    settings |= {"max_gap": max_gap, "prompts": f"(and images) of digest {samples_digest(samples)}"}
    calibrate_to(args.output, plan, model, settings)


def _check(args: argparse.Namespace) -> None:
    if args.num_inference_steps < 3:
        raise Refused(f"--num_inference_steps must be at least 3, got {args.num_inference_steps}")
    if args.max_gap < 2:
        raise Refused(f"--max_gap must be at least 2, got {args.max_gap}")
    if args.video_length < 1:
        raise Refused(f"--video_length must be at least 1, got {args.video_length}")
