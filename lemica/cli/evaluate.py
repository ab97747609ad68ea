"""Evaluate masks on a model: what they cost in quality, and what time they save.

The model is HunyuanVideo-1.5 with the kit, in the folder of a tree in which it is installed (scripts/install.sh), named
as in generate.py; or that of any diffusers pipeline (--pipeline), whose calls a JSON file describes (--call). Every
prompt with every seed is one sample. Each is made without a cache, with every mask, with every budget (the authors'
mask for the model, one derived from theirs, or balanced steps), with --fewer_steps by sampling with as few steps as
each mask computes, and once more without a cache from noise that is moved by 1e-5 of itself: the noise floor, below
which no error of a cache can be seen. Before it starts it prints how many runs there will be, and after two of them how
many hours are left.

PSNR, SSIM and, where it is installed, LPIPS are those of the pictures or frames as they leave the decoder, against the
uncached ones: the mean over samples, with PSNR its standard error and the worst sample. What a mask gains over sampling
with as few steps is the mean of the differences on each sample, with its standard error. Seconds are of the whole call,
texts and decoding included; DiT seconds are of the denoising loop.

The folder gets table.md, evaluate.json, the videos and report.html, a page on which those of a prompt play side by
side; and, as soon as they are there, the numbers of each sample and method. After an interruption the same command goes
on; masks and budgets may be added, other samples or settings need another folder.

Under torchrun every --sp_size ranks hold the whole model and make samples of their own, one after the other. All ranks
and nodes must see the folder.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lemica.calibration.hunyuan import add_switch
from lemica.calibration.samples import add_sample_arguments
from lemica.calibration.which_model import add_which_model, check_which_model
from lemica.errors import Refused, refusing, require
from lemica.files import try_name, write_text
from lemica.masks import SPACINGS
from lemica.quality.wanted import WANTED_RULES
from lemica.streams import require_stdout, say, warn

if TYPE_CHECKING:
    from lemica.calibration.samples import Sample
    from lemica.quality.evaluate import Order
    from lemica.quality.evaluation import Evaluation, Row
    from lemica.report.grid import Cell

EXAMPLES = """\
examples:
  cd HunyuanVideo-1.5
  lemica evaluate --model_path ./ckpts --resolution 480p --prompts prompts.txt --masks m25.json m15.json \\
      --budgets 25 20 15 10 --spacings released balanced --fewer_steps --output evaluation
  torchrun --nproc_per_node=8 -m lemica evaluate --sp_size 4 --model_path ./ckpts --resolution 720p \\
      --prompts prompts.txt --budgets 25 20 15 10 --output evaluation
  lemica evaluate --pipeline Wan-AI/Wan2.1-T2V-1.3B-Diffusers --call settings.json --prompts prompts.txt \\
      --masks b25.json b15.json --budgets 25 15 --fewer_steps --output evaluation
                                        # settings.json: {"height": 480, "width": 832, "guidance_scale": 5.0}
"""

PAGE = "report.html"
# What is measured.
_WANTED = ("masks", "budgets", "spacings", "rules", "force_mask", "fewer_steps", "save_videos")
# No settings: what is measured, where it goes, and what KitVideos.settings adds itself.
_NO_SETTINGS = (*_WANTED, "prompts", "image_path", "output", "run", "parser", "pipeline", "call", "sp_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    add_sample_arguments(group)
    group.add_argument("--num_inference_steps", type=int, default=50, metavar="N", help="denoising steps (default: 50)")
    group.add_argument("--masks", type=Path, nargs="+", default=[], metavar="MASK", help="mask files")
    group.add_argument("--budgets", type=int, nargs="+", default=[], metavar="B", help="numbers of computed steps")
    group.add_argument(
        "--spacings",
        nargs="+",
        choices=SPACINGS,
        default=["released"],
        help="where a budget's steps lie, a row for each: the authors' (default), or balanced, spread evenly by step "
        "number and noise level",
    )
    group.add_argument(
        "--rules",
        nargs="+",
        choices=WANTED_RULES,
        default=[],
        help="how a budget's kept velocities are carried on, a row for each: hold, the newest as it is; damped, half "
        "way to the line through the last two, corrected; taylor-step, Taylor's series through the last three "
        "(default: as generate.py, residual + hold with released steps, damped with balanced ones)",
    )
    group.add_argument("--fewer_steps", action="store_true", help="also sample with as few steps as each mask computes")
    add_switch(group, "--force_mask", "take masks of another model, sampler or arithmetic (default: false)")
    group.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of numbers and videos")
    text = "keep an mp4 of each sample and method, and the page (default: true with the kit, false with --pipeline)"
    add_switch(group, "--save_videos", text, None)
    weights = add_which_model(parser)
    weights.add_argument(
        "--sp_size", type=int, default=1, metavar="N", help="ranks that make a video together (default: 1)"
    )


def run(args: argparse.Namespace) -> None:
    """Evaluate and print the table; raises Refused before weights load for what can be seen to be wrong by then."""
    from lemica.calibration.samples import read_samples
    from lemica.quality.evaluate import Order
    from lemica.quality.wanted import wanted_methods

    require_stdout()
    _check(args)
    # With the kit or with a pipeline, a default each.
    saves = args.pipeline is None if args.save_videos is None else args.save_videos
    if saves:
        require("jinja2", extra="report", purpose="the page")
    wanted = wanted_methods(_by_name(args.masks), args.budgets, args.spacings, args.rules, args.force_mask)
    samples = read_samples(args)
    if os.environ.get("RANK", "0") == "0":
        with refusing(OSError):
            try_name(args.output / "table.md")
    evaluate = _evaluate_hunyuan if args.pipeline is None else _evaluate_pipeline
    evaluation = evaluate(args, samples, Order(wanted, args.fewer_steps, saves))
    # Of several ranks the first one has it.
    if evaluation is not None:
        files = ["table.md", "evaluate.json"]
        if saves:
            with refusing(OSError):
                write_text(args.output / PAGE, page(evaluation))
            files.append(PAGE)
        elif (args.output / PAGE).exists():
            warn(f"{args.output / PAGE} is of an earlier command, which kept videos: it is not written again")
        say(str(evaluation), f"{args.output}: {', '.join(files)}")


def _evaluate_hunyuan(args: argparse.Namespace, samples: "list[Sample]", order: "Order") -> "Evaluation | None":
    from lemica.quality.evaluate import evaluate_to
    from lemica.quality.hunyuan import KitVideos

    settings = {name: value for name, value in vars(args).items() if name not in _NO_SETTINGS}
    with_image = samples[0].image_path is not None
    model = KitVideos(args, settings, args.num_inference_steps, with_image, args.sp_size)
    return evaluate_to(args.output, model, samples, order)


def _evaluate_pipeline(args: argparse.Namespace, samples: "list[Sample]", order: "Order") -> "Evaluation | None":
    from lemica.calibration.loading import calls_of, load_pipeline, read_call
    from lemica.quality.evaluate import evaluate_to
    from lemica.quality.pipelines import PipelineCalls

    calls = calls_of(samples, read_call(args.call))
    pipe = load_pipeline(args.pipeline, args.dtype, args.offloading)
    return evaluate_to(args.output, PipelineCalls(pipe, args.num_inference_steps), calls, order)


def _check(args: argparse.Namespace) -> None:
    if args.num_inference_steps < 2:
        raise Refused(f"--num_inference_steps must be at least 2, got {args.num_inference_steps}")
    if not (args.masks or args.budgets):
        raise Refused("there is nothing to evaluate: give --masks or --budgets")
    if args.rules and not args.budgets:
        raise Refused("--rules goes with --budgets: masks say themselves how they are carried on")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if args.sp_size < 1 or world_size % args.sp_size:
        raise Refused(f"--sp_size {args.sp_size} must divide the number of ranks, {world_size}: torchrun starts these")
    check_which_model(args, own=_WANTED)
    if args.pipeline is None and args.budgets and max(args.budgets) > args.num_inference_steps:
        raise Refused(f"--budgets {max(args.budgets)} is above the number of steps, {args.num_inference_steps}")


def _by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Mask files by their names, by their whole paths where two have one name."""
    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): path for path in paths}


def page(evaluation: "Evaluation") -> str:
    """The page with the videos of all prompts, as HTML; they stay files beside it."""
    from lemica.report.grid import GridRequest, render_grid

    requests = [
        GridRequest(request.prompt, request.seed, tuple(_cell(row, at, evaluation.rows[0]) for row in evaluation.rows))
        for at, request in enumerate(evaluation.requests)
    ]
    title = f"What masks cost: {evaluation.model.get('model', evaluation.model.get('pipeline'))}"
    return render_grid(title, requests, evaluation.facts, evaluation.table)


def _cell(row: "Row", at: int, uncached: "Row") -> "Cell":
    from lemica.report.grid import Cell

    made = row.samples[at]
    quality = (None, None, None) if row is uncached else (made.psnr, made.ssim, made.lpips)
    return Cell(row.method, quote(made.video), *quality, made.seconds, uncached.samples[at].seconds / made.seconds)
