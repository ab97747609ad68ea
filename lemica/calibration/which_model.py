"""Which model a command works on: HunyuanVideo-1.5 with the kit, or that of any diffusers pipeline."""

import argparse
from collections.abc import Collection
from pathlib import Path

from lemica.calibration.hunyuan import add_model_arguments, add_switch
from lemica.errors import Refused

# What goes with --pipeline in every command that takes one.
_OF_ANY_PIPELINE = (
    *("prompts", "seeds", "image_path", "num_inference_steps", "output", "run", "parser"),
    *("pipeline", "call", "dtype", "offloading"),
)


def add_which_model(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that name the model and the video, and say where weights are kept.

    Returns the group "weights", for a command's own.
    """
    pipeline = parser.add_argument_group("any diffusers pipeline")
    pipeline.add_argument("--pipeline", metavar="PATH_OR_ID", help="its folder, or a Hub repository owner/name")
    pipeline.add_argument("--call", type=Path, metavar="FILE", help="JSON object: keyword arguments of every call")
    weights = parser.add_argument_group("weights")
    weights.add_argument(
        "--dtype",
        default="bf16",
        choices=["bf16", "fp32"],
        help="of the kit's transformer on a GPU, or the pipeline",
    )
    add_switch(weights, "--offloading", "keep models on the CPU while they are not used (default: true)", True)
    add_model_arguments(parser)
    return weights


def check_which_model(args: argparse.Namespace, own: Collection[str]) -> None:
    """Raises Refused where no model is named, or options of both kinds of models are given.

    Args:
        args: the options of a command.
        own: the names of the command's own options, which go with both.
    """
    if args.video_length < 1:
        raise Refused(f"--video_length must be at least 1, got {args.video_length}")
    if args.pipeline is None:
        if args.model_path is None or args.resolution is None:
            raise Refused("give --model_path and --resolution for HunyuanVideo-1.5, or --pipeline for any other model")
        if args.call is not None:
            raise Refused("--call goes with --pipeline: leave it out")
        return
    for name, value in vars(args).items():
        if name not in (*_OF_ANY_PIPELINE, *own) and value != args.parser.get_default(name):
            raise Refused(f"--{name} is of HunyuanVideo-1.5 with the kit: leave it out with --pipeline")
