"""Measure every method at every cost on the same pairs, in one process per arithmetic.

    PYTHONPATH=.venv/diffusers python -m benchmarks.rivals.measure --dtype bf16 --pairs 200:232 --output rivals.json

Pairs from 200 up were looked at by no other measurement. What OUTPUT holds already is not run again, so an interrupted
run goes on. A method whose package is missing is left out, and told.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.rivals.bench import DTYPES, Bench, Request
from benchmarks.rivals.fitted import NUM_STEPS, Fitted
from benchmarks.rivals.methods import FEWER_STEPS, FLOOR, METHODS, cache_dit_missing
from benchmarks.rivals.results import Figures, still_good, write_results
from benchmarks.rivals.settings import SETTINGS, Setting, read_settings
from demo.quality import quality

# How far the noise of the noise floor is moved.
MOVED_BY = 1e-5


def figures(bench: Bench, fitted: Fitted, setting: Setting, request: Request, reference: np.ndarray) -> Figures:
    """What a setting gives on a request, against the frames of the uncached run."""
    num_steps = setting.knobs["budget"] if setting.method == FEWER_STEPS else NUM_STEPS
    given = moved(request) if setting.method == FLOOR else request
    with METHODS[setting.method](bench, fitted, **setting.knobs):
        run = bench.run(given, num_steps)
    return {
        **quality(reference, bench.frames(run.latents)),
        "cost": run.cost * num_steps / NUM_STEPS,
        "seconds": run.seconds,
    }


def moved(request: Request) -> Request:
    """The same request with its noise moved a little: what two equal runs differ by is rounding."""
    noise = torch.randn(request.noise.shape, generator=torch.Generator().manual_seed(0))
    return replace(request, noise=request.noise + MOVED_BY * noise)


def measure(bench: Bench, settings: Sequence[Setting], pairs: Sequence[int], dtype: str, output: Path) -> None:
    """Run what OUTPUT has not, or has with other knobs, and write after each pair.

    What is there of a package that is missing here stays.
    """
    fitted, here = Fitted(bench), available(settings)
    results = still_good(output, settings, dtype)
    for pair in tqdm(pairs, unit="pair"):
        rows = results.setdefault(str(pair), {})
        missing = [setting for setting in here if setting.key not in rows]
        if missing:
            request = bench.request(pair)
            reference = bench.frames(bench.run(request, NUM_STEPS).latents)
            rows |= {setting.key: figures(bench, fitted, setting, request, reference) for setting in missing}
            write_results(results, settings, dtype, output)


def available(settings: Sequence[Setting]) -> list[Setting]:
    """Those whose package is here; the others are named in a line."""
    missing = sorted({setting.name for setting in settings if setting.method not in METHODS})
    if missing:
        print(f"left out, for cache-dit cannot be imported ({cache_dit_missing}): {'; '.join(missing)}")
    return [setting for setting in settings if setting.method in METHODS]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--pairs", default="200:232", metavar="FIRST:LAST", help="(default: 200:232)")
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if not options.settings.exists():
        parser.error(f"{options.settings} is not there: type python -m benchmarks.rivals.tune, which writes it")
    torch.set_num_threads(1)
    pairs = range(*map(int, options.pairs.split(":")))
    settings = read_settings(options.settings)
    try:
        still_good(options.output, settings, options.dtype)
    except ValueError as error:
        parser.error(str(error))
    measure(Bench(options.dtype), settings, pairs, options.dtype, options.output)


if __name__ == "__main__":
    main()
