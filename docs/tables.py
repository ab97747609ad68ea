"""Write the tables of README and docs: each stands between `<!-- table: NAME -->` and `<!-- end -->`.

    python -m docs.tables

Every table is made of a file in assets/measurements or assets/calibrations.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from scipy.stats import spearmanr

from benchmarks import counts, gpu, many, pipelines, steps
from benchmarks.rivals import table as rivals
from benchmarks.rivals.results import read_results as read_rivals
from demo.calibrations import CALIBRATIONS, GRAPHS, TIMES, calibration
from demo.faults import COLUMNS
from demo.method_names import AUTHORS, BALANCED, FEWER_STEPS, FITTED, FLOOR, LEMICA, PLAIN, UNIFORM
from demo.results import Row, budget_table, gain_table, read_results, rows_of
from demo.transfer_table import transfer_table

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = (REPOSITORY / "README.md", REPOSITORY / "README_CN.md", *sorted((REPOSITORY / "docs").glob("*.md")))
MEASUREMENTS = REPOSITORY / "assets" / "measurements"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What demo/evaluation.py has measured, by name of the calibration.
EVALUATIONS = ("t2v_50_bf16", "t2v_30_bf16", "i2v_50_bf16", "i2v_30_bf16", "t2v_50")
README_METHODS = (FEWER_STEPS, AUTHORS, BALANCED, LEMICA, FITTED)
README_BUDGETS = ("B = 25", "B = 20", "B = 15", "B = 10")
# Paired differences: a method, the one that it is compared with, and what that is called.
COMPARED = (
    (FITTED, FLOOR, "planned, fitted, over the floor"),
    (FITTED, FEWER_STEPS, "the same over fewer steps"),
    (FITTED, LEMICA, "the same over planned, held (LeMiCa)"),
    (FITTED, PLAIN, "what the correction adds"),
    (BALANCED, FEWER_STEPS, "balanced, damped, over fewer steps"),
    (BALANCED, UNIFORM, "the same over uniform steps"),
    (BALANCED, AUTHORS, "the same over the authors' steps, residual held"),
)

# What the calibrated tasks are called, and the arithmetics.
TASK_NAMES = {"t2v": "text to video", "i2v": "image to video"}
DTYPES = ("bf16", "fp32")


def _rows(file: str, against: str | None = None) -> list[Row]:
    """The rows of a result file with paired differences to a method."""
    return list(rows_of(read_results(MEASUREMENTS / f"{file}.json"), against))


def readme() -> Iterator[str]:
    """What caching costs, in a few lines."""
    rows = {row.parts: row for row in _rows(f"evaluation_{EVALUATIONS[0]}")}
    return budget_table([rows["50 steps", budget, method] for method in README_METHODS for budget in README_BUDGETS])


def quality(name: str) -> Iterator[str]:
    """What methods cost in an evaluation."""
    return budget_table(_rows(f"evaluation_{name}"))


def gains(name: str) -> Iterator[str]:
    """How far methods are apart, pair by pair."""
    return gain_table(
        [
            replace(row, key=", ".join((*row.parts[:2], called)))
            for method, rival, called in COMPARED
            for row in _rows(f"evaluation_{name}", rival)
            if row.parts[2] == method
        ]
    )


def samples() -> Iterator[str]:
    """How many samples a calibration takes."""
    return budget_table([replace(row, key=row.key.removesuffix(", velocity + fitted")) for row in _rows("samples")])


def calibration_costs() -> Iterator[str]:
    """What exact and fast edges of the same samples cost, and how well they agree."""
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    yield "| demo model, per sample | forwards | CPU seconds | Spearman with exact edges |"
    yield "|---|---|---|---|"
    for num_steps in (50, 30):
        exact, fast = f"t2v_{num_steps}_exact", f"t2v_{num_steps}_same"
        if not all((GRAPHS / f"{name}.json").exists() for name in (exact, fast)):
            continue
        errors = [[error for *_, error in calibration(name).edges()] for name in (exact, fast)]
        for name, agreement in ((exact, ""), (fast, f"{spearmanr(*errors)[0]:.3f}")):
            made, seconds = CALIBRATIONS[name], times[name]["cpu_seconds"] / times[name]["samples"]
            yield f"| {made.edges}, {num_steps} steps, gaps to 8 | {made.forwards} | {seconds:.0f} | {agreement} |"


def steering() -> Iterator[str]:
    """What comes out of what was asked for, of videos that were drawn, decoded and generated."""
    rates = json.loads((MEASUREMENTS / "steering.json").read_text(encoding="utf-8"))["demo_checkpoint"]["rates"]
    yield "| share of videos | shape | colour | motion | all three |"
    yield "|---|---|---|---|---|"
    for name, row in rates.items():
        yield f"| {name} | {' | '.join(f'{share:.0%}' for share in row.values())} |"


def _named(file: str) -> dict[str, dict]:
    """A benchmark's results by the names of its presets, nothing where it has not been run."""
    path = MEASUREMENTS / file
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def step_costs() -> Iterator[str]:
    """What benchmarks/steps.py measured."""
    for name, result in _named("steps.json").items():
        yield from (f"Preset `{name}`:", "", *steps.step_table(result), "", *steps.loop_table(result), "")


def step_counts() -> Iterator[str]:
    """What benchmarks/counts.py counted."""
    for result in _named("counts.json").values():
        yield from (*counts.table(result), "")


def gpu_steps() -> Iterator[str]:
    """What tests/gpu measured."""
    return gpu.table(_named("gpu.json"))


def faults() -> Iterator[str]:
    """What demo/faults.py did and found."""
    yield f"| | {' | '.join(COLUMNS)} |"
    yield "|---|" + "---|" * len(COLUMNS)
    for name, row in _named("faults.json").get("rows", {}).items():
        yield f"| {name} | {' | '.join(str(row[column]) for column in COLUMNS)} |"


def pipeline_costs(name: str) -> Iterator[str]:
    """A table of what benchmarks/pipelines.py measured, nothing where it has not been run."""
    found = _named("pipelines.json")
    return pipelines.TABLES[name](found) if found else iter(())


RIVALS_BEST = "LeMiCa: planned, fitted"


def _rivals(dtype: str) -> dict[str, dict[str, rivals.Point]]:
    return rivals.points(read_rivals(MEASUREMENTS / f"rivals_{dtype}.json"), RIVALS_BEST)


def rivals_quality(dtype: str) -> Iterator[str]:
    """Every method of benchmarks/rivals at every cost."""
    return rivals.quality_table(_rivals(dtype))


def rivals_gains() -> Iterator[str]:
    """How far ours is above each, pair by pair."""
    return rivals.gain_table(_rivals("bf16"), RIVALS_BEST)


def rivals_times() -> Iterator[str]:
    """Seconds beside the cost, and what is kept."""
    return rivals.time_table(_rivals("bf16"), _named("rivals_memory.json"))


def rivals_defaults() -> Iterator[str]:
    """The authors' own settings."""
    return rivals.default_table(_rivals("bf16"))


def many_prompts() -> Iterator[str]:
    """What benchmarks/many.py measured."""
    return many.table(_named("many.json"))


def transfer() -> Iterator[str]:
    """What demo/transfer.py measured: a table per budget of settings by methods."""
    return transfer_table(read_results(MEASUREMENTS / "transfer.json"))


def framework() -> Iterator[str]:
    """What demo/framework.py found: the demo model in diffusers' pipeline beside the kit."""
    found = _named("framework.json")
    yield f"| kit and diffusers, 50 steps | {' | '.join(TASK_NAMES[task] for task in found)} |"
    yield "|---" * (len(found) + 1) + "|"
    for name, cell in FRAMEWORK_ROWS.items():
        yield f"| {name} | {' | '.join(map(cell, found.values()))} |"


def _apart(found: dict, name: str) -> str:
    """How far numbers of two graphs are apart."""
    return "{largest:.0e} ({mean:.0e})".format(**found["graph"][name])


def _psnrs(found: dict, name: str) -> str:
    """Mean PSNR with a mask, on both sides."""
    return " and ".join(f"{fmean(values):.2f}" for values in found["psnr"][name].values())


def _largest_psnr_difference(found: dict) -> str:
    pairs = (pair for sides in found["psnr"].values() for pair in zip(*sides.values(), strict=True))
    return f"{max(abs(kit - diffusers) for kit, diffusers in pairs):.4f}"


# What is compared of a task's results, and how it is told.
FRAMEWORK_ROWS: dict[str, Callable[[dict], str]] = {
    "edges of the error graphs, largest relative difference (mean)": partial(_apart, name="edges"),
    "products of outputs, largest relative difference (mean)": partial(_apart, name="products"),
    "noise levels, largest difference (mean)": partial(_apart, name="noise levels"),
    "masks of all budgets and forecasts that have the same steps": lambda found: (
        f"{found['masks']['compared'] - len(found['masks']['differing'])} of {found['masks']['compared']}"
    ),
    "their weights, largest difference": lambda found: f"{found['masks']['weights']:.0e}",
    **{
        f"PSNR in dB, fitted, B = {budget}, mean of 8 videos": partial(_psnrs, name=f"fitted, B = {budget}")
        for budget in (25, 20, 15, 10)
    },
    "PSNR in dB of every cached video (three forecasts), largest difference": _largest_psnr_difference,
    "PSNR in dB of the uncached videos of the two, worst": lambda found: f"{min(found['uncached']):.1f}",
}


TABLES: dict[str, Callable[[], Iterable[str]]] = {
    "readme": readme,
    **{f"quality_{name}": partial(quality, name) for name in EVALUATIONS},
    "gains": partial(gains, EVALUATIONS[0]),
    "samples": samples,
    "calibration": calibration_costs,
    "steering": steering,
    "steps": step_costs,
    "counts": step_counts,
    "gpu": gpu_steps,
    "faults": faults,
    "framework": framework,
    **{f"rivals_{dtype}": partial(rivals_quality, dtype) for dtype in DTYPES},
    "rivals_gains": rivals_gains,
    "rivals_times": rivals_times,
    "rivals_defaults": rivals_defaults,
    "many": many_prompts,
    "transfer": transfer,
    **{name: partial(pipeline_costs, name) for name in pipelines.TABLES},
}


def with_tables(text: str) -> str:
    """A document with every table made anew; raises KeyError for a name that is not in TABLES."""
    return BLOCK.sub(lambda block: f"{block[1]}{chr(10).join(TABLES[block[2]]()).rstrip()}\n{block[3]}", text)


def main() -> None:
    """Rewrite all documents."""
    for path in DOCUMENTS:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
