"""Evaluate masks on a model: what they cost in quality, and what time they save.

The model is that of any diffusers pipeline (--pipeline), whose calls a JSON file describes (--call). Every prompt with
every seed is one sample. Each is made without a cache, with every mask, with every budget (the authors' mask for the
model, or one derived from theirs), with --fewer_steps by sampling with as few steps as each mask computes, and once
more without a cache from noise that is moved by 1e-5 of itself: the noise floor, below which no error of a cache can be
seen. A first run of two computed steps looks whether all masks fit; then it is printed how many runs there will be.

PSNR and SSIM are those of the pictures or frames as they leave the decoder, against the uncached ones: the mean over
samples, and of PSNR the worst sample. What a mask gains over sampling with as few steps is the mean of the differences
on each sample, with its standard error. Seconds are of the whole call, texts and decoding included.

The folder gets table.md, evaluate.json and, as soon as they are there, the numbers of each sample and method, no
pictures. After an interruption the same command goes on; masks and budgets may be added, other samples or settings need
another folder.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lemica.calibration.hunyuan import add_switch
from lemica.calibration.samples import add_sample_arguments
from lemica.errors import Refused, refusing
from lemica.files import try_name
from lemica.streams import require_stdout, say

EXAMPLES = """\
examples:
  lemica evaluate --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers --call settings.json --prompts prompts.txt \\
      --masks b25.json b15.json --budgets 25 15 --fewer_steps --output evaluation
                                        # settings.json: {"height": 480, "width": 832, "guidance_scale": 5.0}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    add_sample_arguments(group)
    group.add_argument("--num_inference_steps", type=int, default=50, metavar="N", help="denoising steps (default: 50)")
    group.add_argument("--masks", type=Path, nargs="+", default=[], metavar="MASK", help="mask files")
    group.add_argument("--budgets", type=int, nargs="+", default=[], metavar="B", help="numbers of computed steps")
    group.add_argument("--fewer_steps", action="store_true", help="also sample with as few steps as each mask computes")
    group.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of the numbers")
    pipeline = parser.add_argument_group("any diffusers pipeline")
    pipeline.add_argument(
        "--pipeline", required=True, metavar="PATH_OR_ID", help="its folder, or a Hub repository owner/name"
    )
    pipeline.add_argument("--call", type=Path, metavar="FILE", help="JSON object: keyword arguments of every call")
    pipeline.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"], help="of its models (default: bf16)")
    add_switch(pipeline, "--offloading", "keep models on the CPU while they are not used (default: true)", True)


def run(args: argparse.Namespace) -> None:
    """Evaluate and print the table; raises Refused before weights load for what can be seen to be wrong by then."""
    from lemica.calibration.loading import calls_of, load_pipeline, read_call
    from lemica.calibration.samples import read_samples
    from lemica.quality.evaluate import evaluate, wanted_methods

    require_stdout()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise Refused("lemica evaluate is one process: type it without torchrun")
    if args.num_inference_steps < 2:
        raise Refused(f"--num_inference_steps must be at least 2, got {args.num_inference_steps}")
    if not (args.masks or args.budgets):
        raise Refused("there is nothing to evaluate: give --masks or --budgets")
    masks = _by_name(args.masks)
    wanted_methods(masks, args.budgets)
    calls = calls_of(read_samples(args), read_call(args.call))
    with refusing(OSError):
        try_name(args.output / "table.md")
    pipe = load_pipeline(args.pipeline, args.dtype, args.offloading)
    steps = args.num_inference_steps
    evaluation = evaluate(pipe, calls, masks, args.budgets, steps, args.fewer_steps, args.output)
    say(str(evaluation), f"{args.output}: table.md, evaluate.json")


def _by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Mask files by their names, by their whole paths where two have one name."""
    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): path for path in paths}
