"""Measure what caching costs on the demo model: PSNR and SSIM of cached videos against the uncached one, many pairs.

    python -m demo.quality run demo/methods.json --task t2v --dtype bf16 --pairs 0:32 --output quality_t2v_bf16.json
    python -m demo.quality table assets/measurements/quality_t2v_bf16.json --against "fewer steps"

demo/pairs.py says what a pair is, demo/methods.py what a list of methods holds. --dtype is the arithmetic: bf16 is that
of a GPU, and its masks are planned on graphs that were calibrated in it.

Every run is the pipeline's own denoising loop on the same noise; frames are compared as they leave the decoder, before
any compression. What OUTPUT holds already is not run again, so an interrupted run goes on, and a new method is added.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline, initialize_sequence_parallel
from tqdm import tqdm

from demo.arithmetic import DTYPES, arithmetic
from demo.attention import fused_attention
from demo.calibrations import CHECKPOINT
from demo.methods import Method, read_methods
from demo.pairs import Batch, batches
from demo.results import Results, budget_table, full_table, merged, read_results, rows_of, write_results
from lemica.quality.metrics import Quality, means_of, psnr, ssim

AT_ONCE = 6


def quality(reference: np.ndarray, video: np.ndarray) -> dict[str, float]:
    """PSNR in dB and SSIM, means over frames; a video that equals its reference has an infinite PSNR."""
    pairs = list(zip(reference, video, strict=True))
    means = means_of(Quality(*(tuple(metric(*pair) for pair in pairs) for metric in (psnr, ssim))))
    return {"psnr": means.psnr, "ssim": means.ssim}


def measure(options: argparse.Namespace) -> None:
    """Run every method on every pair, and write after each method of a batch."""
    methods = read_methods(options.methods, options.task, options.dtype)
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    with arithmetic(options.dtype):
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(options.checkpoint), f"480p_{options.task}")
    pipe.set_progress_bar_config(disable=True)
    first, last = map(int, options.pairs.split(":"))
    found = read_results(options.output) if options.output.exists() else {}
    results = {name_of(options.task, index): {} for index in range(first, last)} | found
    with fused_attention(), torch.no_grad(), tqdm(total=(last - first) * len(methods), unit="video") as bar:
        for batch in batches(pipe, range(first, last), AT_ONCE):
            names = [name_of(options.task, pair.index) for pair in batch.pairs]
            for method in methods:
                if any(method.key not in results[name] for name in names):
                    measure_method(method, batch, names, results)
                    write_results(results, options.output)
                bar.update(len(names))
    # In the order of the list, whenever they were measured.
    ordered = [method.key for method in methods]
    write_results(
        {name: {key: rows[key] for key in ordered if key in rows} | rows for name, rows in results.items()},
        options.output,
    )


def name_of(task: str, pair: int) -> str:
    """A pair's name in results."""
    return f"480p_{task} {pair}"


def measure_method(method: Method, batch: Batch, names: Sequence[str], results: Results) -> None:
    """Put what a method costs on the pairs of a batch into `results`."""
    references, videos = batch.reference(method.mask.num_steps), batch.videos(method)
    for name, reference, video in zip(names, references, videos, strict=True):
        results[name][method.key] = quality(reference, video)


def show(options: argparse.Namespace) -> None:
    """Print a Markdown table of all result files together."""
    rows = list(rows_of(merged(options.results), options.against))
    print("\n".join(budget_table(rows) if options.by_budget else full_table(rows)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure methods on pairs")
    run.add_argument("methods", type=Path)
    run.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    run.add_argument("--task", default="t2v", choices=["t2v", "i2v"], help="(default: t2v)")
    run.add_argument("--dtype", default="fp32", choices=list(DTYPES), help="arithmetic of the runs (default: fp32)")
    run.add_argument("--pairs", default="0:32", metavar="FIRST:LAST", help="(default: 0:32)")
    run.add_argument("--output", type=Path, required=True)
    run.set_defaults(run=measure)
    table = commands.add_parser("table", help="print what was measured")
    table.add_argument("results", type=Path, nargs="+")
    table.add_argument("--against", help="method to which paired differences at the same budget are taken")
    table.add_argument("--by-budget", action="store_true", help="a line per method and a column per budget, PSNR only")
    table.set_defaults(run=show)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
