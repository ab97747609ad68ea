"""Set every method's knobs on tuning pairs, in bfloat16, so that it meets each cost: writes settings.json.

    PYTHONPATH=.venv/diffusers python -m benchmarks.rivals.tune

A family lists what is tried. Where a threshold decides, it is searched for each cost and each choice of other knobs. Of
what comes within 0.02 of a cost, 0.01 of the two lowest, the best in mean PSNR is taken. What was tried is kept in
tuning.json, and not run again.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.rivals.bench import REAL_BLOCKS, Bench
from benchmarks.rivals.diffusers_caches import computed_by_taylorseer
from benchmarks.rivals.fitted import NUM_STEPS, Fitted
from benchmarks.rivals.measure import figures
from benchmarks.rivals.methods import FEWER_STEPS, FLOOR, cache_dit_missing
from benchmarks.rivals.papers.plans import NoPlan
from benchmarks.rivals.settings import DEFAULT, TARGETS, Setting, tolerance, write_settings
from lemica.files import write_text

# One of each format.
PAIRS = (100, 101, 102)
BUDGETS = [round(target * NUM_STEPS) for target in TARGETS]
# cache-dit runs the first block on reused steps.
CACHE_DIT_BUDGETS = [round((target - 1 / REAL_BLOCKS) / (1 - 1 / REAL_BLOCKS) * NUM_STEPS) for target in TARGETS]
FIRST_LOOK, REFINEMENTS = 6, 3
Knobs = dict[str, Any]
# Mean cost and mean PSNR of knobs.
Tried = list[tuple[Knobs, float, float]]


def choices(**values: Sequence[Any]) -> list[Knobs]:
    """Every combination."""
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


@dataclass(frozen=True)
class Family:
    """What is tried of a method.

    Args:
        name: in tables.
        method: in METHODS.
        variants: knobs to try, or that go with every threshold.
        threshold: name, lowest and highest value of a knob that is searched for.
        default: the authors' own knobs, for a row of their own; None for none.
    """

    name: str
    method: str
    variants: Sequence[Knobs]
    threshold: tuple[str, float, float] | None = None
    default: Knobs | None = None


def of_taylorseer() -> list[Knobs]:
    """What comes near a cost: how many steps TaylorSeer computes is known beforehand."""
    return [
        dict(cache_interval=interval, max_order=order, disable_cache_before_step=before, disable_cache_after_step=after)
        for interval, before, after in product(range(2, 12), (1, 3), (None, 46, 47, 48, 49))
        if is_near(computed_by_taylorseer(NUM_STEPS, interval, before, after) / NUM_STEPS)
        for order in (1, 2)
    ]


def is_near(cost: float) -> bool:
    """Whether a cost meets one of the targets."""
    return any(abs(cost - target) <= tolerance(target) + 1e-9 for target in TARGETS)


def lemica(forecast: str) -> Family:
    """LeMiCa's plan for a forecast."""
    return Family(f"LeMiCa: planned, {forecast}", "LeMiCa, planned", choices(budget=BUDGETS, forecast=[forecast]))


# Of cache-dit; -1 is no limit.
LONGEST_SKIPS = (-1, 2, 3, 4, 5, 6, 8)
CALIBRATORS = ("none", "taylorseer", "taylorseer 2", "dmd")


def cache_dit_mask(steps: str) -> Family:
    """cache-dit's steps mask with LeMiCa's steps, released or planned."""
    return Family(
        f"cache-dit's steps mask, LeMiCa's {steps} steps",
        "cache-dit's steps mask",
        choices(budget=CACHE_DIT_BUDGETS, steps=[steps], calibrator=CALIBRATORS),
    )


def on_steps(name: str, method: str, steps: str, **knobs: Sequence[Any]) -> Family:
    """A forecast from a paper, on uniform steps or on those that LeMiCa plans for one of its own forecasts."""
    where = f"{steps} steps" if steps == "uniform" else f"LeMiCa's {steps} steps"
    if steps == "planned":
        knobs["plan_for"] = ("fitted", "taylor-step")
    return Family(f"{name}, {where}", method, choices(budget=BUDGETS, steps=[steps], **knobs))


FAMILIES = (
    Family(FLOOR, FLOOR, [{}], default={}),
    Family(FEWER_STEPS, FEWER_STEPS, choices(budget=BUDGETS)),
    *map(lemica, ("fitted", "damped", "taylor-step", "hold")),
    Family("LeMiCa: balanced, damped (no calibration)", "LeMiCa, balanced", choices(budget=BUDGETS)),
    Family("FirstBlockCache", "FirstBlockCache", [{}], ("threshold", 0.01, 1.0), {}),
    Family(
        "MagCache",
        "MagCache",
        [
            *choices(retention_ratio=[0.02], max_skip_steps=[3, 4, 5, 6, 8, 10]),
            dict(retention_ratio=0.2, max_skip_steps=3),
        ],
        ("threshold", 0.003, 1.0),
        {},
    ),
    Family(
        "SeaCache",
        "SeaCache",
        [
            *choices(residual_order=[1], max_consecutive_cached=[2, 3, 4, 6, 8, 10, 0], cache_end_steps=[3]),
            *choices(residual_order=[1], max_consecutive_cached=[2, 0], cache_end_steps=[1]),
            dict(residual_order=0, max_consecutive_cached=0, cache_end_steps=1),
        ],
        ("threshold", 0.05, 2.0),
        {},
    ),
    Family("TaylorSeer", "TaylorSeer", of_taylorseer(), default={}),
    Family(
        "DBCache",
        "DBCache",
        choices(first_blocks=[1], warmup=[2], consecutive=LONGEST_SKIPS),
        ("residual_diff_threshold", 0.01, 0.99),
        dict(first_blocks=1, residual_diff_threshold=0.08, warmup=8),
    ),
    Family(
        "DBCache with TaylorSeer",
        "DBCache",
        choices(first_blocks=[1], warmup=[2], consecutive=LONGEST_SKIPS, calibrator=["taylorseer", "taylorseer 2"]),
        ("residual_diff_threshold", 0.01, 0.99),
        dict(first_blocks=1, residual_diff_threshold=0.08, warmup=8, calibrator="taylorseer"),
    ),
    *map(cache_dit_mask, ("planned", "released")),
    Family(
        "cache-dit's steps mask, its own steps",
        "cache-dit's steps mask, its own",
        choices(policy=["fast", "ultra"], calibrator=CALIBRATORS),
    ),
    Family("TeaCache", "TeaCache", choices(rescaled=[True, False]), ("threshold", 0.02, 2.0), dict(threshold=0.15)),
    *(on_steps("L2P", "L2P", steps, kept_only=[False]) for steps in ("uniform", "planned")),
    *(on_steps("least squares", "L2P", steps, kept_only=[True]) for steps in ("uniform", "planned")),
    *(on_steps("Spectrum", "Spectrum", steps, blend=[0.5, 0.75, 1.0]) for steps in ("uniform", "planned")),
    *(on_steps("a line", "Spectrum", steps, blend=[0.0]) for steps in ("uniform", "planned")),
    Family(
        "Spectrum, its own steps",
        "Spectrum, its own steps",
        choices(alpha=[0.0, 0.07, 0.2, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0], blend=[0.5, 0.75, 1.0]),
        default=dict(alpha=0.75),
    ),
    Family("MeanCache", "MeanCache", choices(budget=BUDGETS, gamma=[1.0, 2.0, 4.0, 5.0])),
    Family("DPCache", "DPCache", choices(budget=BUDGETS, order=[1, 2], ends=[True, False])),
)


class Tuner:
    """Tries knobs on the tuning pairs, and remembers."""

    def __init__(self, bench: Bench, path: Path):
        self.bench, self.fitted, self.path = bench, Fitted(bench), path
        self.requests = [bench.request(pair) for pair in PAIRS]
        self.references = [bench.frames(bench.run(request, NUM_STEPS).latents) for request in self.requests]
        self.known = json.loads(path.read_text()) if path.exists() else {}

    def try_(self, family: Family, knobs: Knobs) -> tuple[float, float] | None:
        """Mean cost and mean PSNR; None where there is no such plan."""
        key = json.dumps([family.method, knobs], sort_keys=True)
        if key not in self.known:
            setting = Setting(family.name, family.method, DEFAULT, knobs)
            try:
                found = [
                    figures(self.bench, self.fitted, setting, request, reference)
                    for request, reference in zip(self.requests, self.references, strict=True)
                ]
            except NoPlan as error:
                print(f"{key}: left out, {error}")
                return None
            self.known[key] = [round(fmean(each[name] for each in found), 5) for name in ("cost", "psnr")]
            lines = (f"{json.dumps(each)}: {json.dumps(found)}" for each, found in self.known.items())
            write_text(self.path, "{\n" + ",\n".join(lines) + "\n}\n")
        cost, psnr = self.known[key]
        return cost, psnr

    def everything(self, family: Family) -> Tried:
        """All that is tried of a family."""
        if family.threshold is None:
            return [(knobs, *found) for knobs in family.variants if (found := self.try_(family, knobs)) is not None]
        name, low, high = family.threshold
        tried: Tried = []
        for knobs in family.variants:

            def at(value: float, knobs: Knobs = knobs) -> float:
                whole = {**knobs, name: value}
                cost, psnr = self.try_(family, whole)
                tried.append((whole, cost, psnr))
                return cost

            search(at, low, high)
        return tried


def search(cost_at: Callable[[float], float], low: float, high: float) -> None:
    """Ask for the costs of thresholds until every target has one near, where costs fall as thresholds grow."""
    ratio = (high / low) ** (1 / (FIRST_LOOK - 1))
    known = {value: cost_at(value) for value in (float(f"{low * ratio**i:.4g}") for i in range(FIRST_LOOK))}
    for target in TARGETS:
        for _ in range(REFINEMENTS):
            if min(abs(cost - target) for cost in known.values()) <= tolerance(target) / 4:
                break
            above = [value for value, cost in known.items() if cost > target]
            below = [value for value, cost in known.items() if cost < target]
            if not above or not below or max(above) >= min(below):
                break
            value = float(f"{math.sqrt(max(above) * min(below)):.4g}")
            if value in known:
                break
            known[value] = cost_at(value)


def chosen(family: Family, tried: Tried) -> Iterator[Setting]:
    """The best setting near each cost, and the default."""
    for target in TARGETS:
        near = [(psnr, knobs) for knobs, cost, psnr in tried if abs(cost - target) <= tolerance(target) + 1e-9]
        if near:
            yield Setting(family.name, family.method, str(target), max(near, key=lambda each: each[0])[1])
    if family.default is not None:
        yield Setting(family.name, family.method, DEFAULT, family.default)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", type=Path, default=Path(__file__).with_name("tuning.json"))
    options = parser.parse_args(arguments)
    if cache_dit_missing is not None:
        parser.error(f"all methods are tuned together, and cache-dit cannot be imported: {cache_dit_missing}")
    torch.set_num_threads(1)
    tuner = Tuner(Bench("bf16"), options.tuning)
    found = [(family, tuner.everything(family)) for family in tqdm(FAMILIES, unit="family")]
    write_settings([setting for family, tried in found for setting in chosen(family, tried)])


if __name__ == "__main__":
    main()
