"""Measure a model's error graph: what each stretch of reused steps costs in quality.

The model is HunyuanVideo-1.5 with the kit, in the folder of a tree in which it is installed (scripts/install.sh), named
as in generate.py; or that of any diffusers pipeline (--pipeline), whose calls a JSON file describes (--call). Every
prompt with every seed is one sample; errors are averaged over samples.

A sample is generated once without any cache, and then replayed with one stretch of steps reused at a time. Fast edges
(default) replay a stretch to its end only and scale the error there by how much errors at that step matter for the
result, which takes about 2 full runs per sample. Exact edges replay every stretch to the result, as LeMiCa (arXiv
2511.00090) defines them: 210 full runs per sample at 50 steps and gaps to 12. The cost is printed before anything runs.

Finished samples are kept beside the output, in the folder GRAPH.json.partial: after an interruption, the same command
goes on from there; a folder that is left over may be deleted. One calibration works on an output at a time, and all
ranks and nodes must see that folder. Under torchrun every rank holds the whole model and works alone on its own
samples, or on a part of one where there are more ranks than samples left. The velocities and latents of a run wait in
CPU memory: with 50 steps and CFG 1.5 GB per rank at 720p.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lemica.calibration.hunyuan import MEMORY_OPTIONS
from lemica.calibration.samples import add_sample_arguments
from lemica.calibration.which_model import add_which_model, check_which_model
from lemica.errors import Refused

if TYPE_CHECKING:
    from lemica.calibration.samples import Sample

EXAMPLES = """\
examples:
  cd HunyuanVideo-1.5
  lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --seeds 0 1 --output graph.json
  lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --image_path first.png \\
      --num_inference_steps 30 --output i2v_30.json
  torchrun --nproc_per_node=4 -m lemica calibrate --model_path ./ckpts --resolution 720p --prompts prompts.txt \\
      --edges exact --output exact.json
  lemica calibrate --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers --call settings.json --prompts prompts.txt \\
      --output wan.json                 # settings.json: {"height": 480, "width": 832, "guidance_scale": 5.0}
"""

# Where the samples are, and what does not change the numbers.
_NO_SETTINGS = ("prompts", "image_path", "output", "run", "parser", "pipeline", "call", *MEMORY_OPTIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    add_sample_arguments(group)
    group.add_argument(
        "--num_inference_steps", type=int, default=50, metavar="N", help="denoising steps, at least 3 (default: 50)"
    )
    group.add_argument(
        "--max_gap",
        type=int,
        default=12,
        metavar="D",
        help="longest gap to measure, 2 to N - 1 (default: 12, or N - 1)",
    )
    group.add_argument(
        "--edges", choices=["fast", "exact"], default="fast", help="how they are measured (default: fast)"
    )
    group.add_argument("--output", type=Path, required=True, metavar="GRAPH", help="graph file to write")
    add_which_model(parser)


def run(args: argparse.Namespace) -> None:
    """Calibrate on this rank; rank 0 writes the graph once all are done."""
    from lemica.calibration.calibrate import refuse_output
    from lemica.calibration.samples import read_samples

    _check(args)
    refuse_output(args.output)
    samples = read_samples(args)
    if args.pipeline is None:
        _calibrate_hunyuan(args, samples)
    else:
        _calibrate_pipeline(args, samples)


def _calibrate_pipeline(args: argparse.Namespace, samples: "list[Sample]") -> None:
    from lemica.calibration.loading import calls_of, load_pipeline, read_call
    from lemica.calibration.pipelines import calibrate

    calls = calls_of(samples, read_call(args.call))
    pipe = load_pipeline(args.pipeline, args.dtype, args.offloading)
    calibrate(pipe, calls, args.num_inference_steps, max_gap=args.max_gap, edges=args.edges, output=args.output)


def _calibrate_hunyuan(args: argparse.Namespace, samples: "list[Sample]") -> None:
    from lemica.calibration.calibrate import Workload, calibrate_to
    from lemica.calibration.edges import work_for
    from lemica.calibration.hunyuan import HunyuanVideo
    from lemica.calibration.samples import samples_digest

    num_steps, max_gap = args.num_inference_steps, min(args.max_gap, args.num_inference_steps - 1)
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
    check_which_model(args, own=("max_gap", "edges"))
