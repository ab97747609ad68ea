"""The tables of docs/quality.md and of README: what `lemica evaluate` finds on the demo model, as on any model.

    python -m demo.evaluation t2v_50_bf16 evaluation       # a name of demo/calibrations.py; a folder, to go on from

Held-out prompts with two seeds each in bfloat16, with one in float32. Masks are planned on the calibration of that
name. What it finds is put into assets/measurements/evaluation_NAME.json, as demo/results.py reads it.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from demo import method_names as names
from demo.arithmetic import arithmetic
from demo.attention import fused_attention
from demo.calibrations import ASSETS, CALIBRATIONS, CHECKPOINT, FRAMES, calibration, sample_files
from demo.data import spec_of
from demo.results import Results, write_results
from lemica.cli.main import main as lemica
from lemica.masks import Mask, step_mask, uniform_mask, write_mask
from lemica.planning.graph import ErrorGraph
from lemica.planning.plan import plan, with_forecast

# Of the first eighteen held-out ones, 13 and 15 say what others say.
PROMPTS = (*range(13), 14, 16, 17)
SEEDS = {"bf16": (0, 1), "fp32": (0,)}
BUDGETS = {50: (25, 20, 15, 10, 8, 6), 30: (15, 10, 6)}
# Those whose graphs have the gaps of all budgets.
NAMES = [name for name, made in CALIBRATIONS.items() if made.max_gap == 12]

# The kinds of mask files: names, what the tables call them, and how they are made.
KINDS: dict[str, tuple[str, Callable[[ErrorGraph, int], Mask]]] = {
    "released_damped": (
        names.AUTHORS_DAMPED,
        lambda graph, budget: with_forecast(step_mask(budget, graph.num_steps), graph, "damped"),
    ),
    "uniform_damped": (
        names.UNIFORM,
        lambda graph, budget: with_forecast(uniform_mask(budget, graph.num_steps), graph, "damped"),
    ),
    "planned_hold": (names.LEMICA, lambda graph, budget: plan(graph, budget, "hold")),
    "planned_damped": (names.DAMPED, lambda graph, budget: plan(graph, budget, "damped")),
    "planned_taylor": (names.TAYLOR, lambda graph, budget: plan(graph, budget, "taylor-step")),
    "planned_plain": (
        names.PLAIN,
        lambda graph, budget: plan(graph, budget, "fitted", correct=False),
    ),
    "planned_fitted": (names.FITTED, lambda graph, budget: plan(graph, budget, "fitted")),
}
# Those that are measured in the widest table alone.
WIDEST = "t2v_50_bf16"
ONLY_THERE = ("released_damped", "uniform_damped", "planned_plain")


def evaluate(name: str, folder: Path, budgets: Sequence[int], prompts: Sequence[int] = PROMPTS) -> dict:
    """The document of `lemica evaluate` on the demo model; `folder` holds the numbers, from which it goes on."""
    made = CALIBRATIONS[name]
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {
        "--model_path": [CHECKPOINT],
        "--resolution": ["480p"],
        "--aspect_ratio": ["1:1"],
        "--video_length": [FRAMES],
        "--num_inference_steps": [made.num_steps],
        **sample_files(folder, made.task, [spec_of(index, held_out=True) for index in prompts]),
        "--seeds": SEEDS[made.dtype],
        "--masks": list(written(name, budgets, folder)),
        "--budgets": budgets,
        "--spacings": ["released", "balanced"],
        "--fewer_steps": [],
        "--save_videos": ["false"],
        "--output": [folder / "evaluation"],
    }
    torch.set_num_threads(1)
    with fused_attention(), arithmetic(made.dtype):
        lemica(["evaluate", *(str(word) for flag, values in arguments.items() for word in (flag, *values))])
    return json.loads((folder / "evaluation" / "evaluate.json").read_text())


def kinds_of(name: str) -> list[str]:
    """The kinds of mask files that an evaluation has."""
    return [kind for kind in KINDS if name == WIDEST or kind not in ONLY_THERE]


def written(name: str, budgets: Sequence[int], folder: Path) -> Iterator[Path]:
    """Write a mask file of each kind and budget; gives their paths."""
    for kind in kinds_of(name):
        _, made = KINDS[kind]
        for budget in budgets:
            path = folder / f"{kind}_{budget}.json"
            write_mask(made(calibration(name), budget), path)
            yield path


def methods_at(name: str, budget: int) -> dict[str, str]:
    """The rows of `lemica evaluate` at a budget, by what the tables call them."""
    return {
        names.FLOOR: "noise floor",
        names.FEWER_STEPS: f"fewer steps ({budget})",
        names.AUTHORS: f"budget {budget}",
        names.BALANCED: f"budget {budget}, balanced",
        **{KINDS[kind][0]: f"{kind}_{budget}" for kind in kinds_of(name)},
    }


def results_of(document: dict, name: str, budgets: Sequence[int]) -> Results:
    """The same by method, as demo/results.py has them."""
    made = CALIBRATIONS[name]
    rows = {row["method"]: row["samples"] for row in document["rows"]}
    results: Results = {}
    for place, request in enumerate(document["requests"]):
        pair = results.setdefault(f"480p_{made.task}, {request['prompt']}, seed {request['seed']}", {})
        for budget in budgets:
            for method, row in methods_at(name, budget).items():
                figures = rows[row][place]
                pair[f"{made.num_steps} steps, B = {budget}, {method}"] = {
                    each: figures[each] for each in ("psnr", "ssim")
                }
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    budgets = BUDGETS[CALIBRATIONS[options.name].num_steps]
    found = results_of(evaluate(options.name, options.folder, budgets), options.name, budgets)
    write_results(found, ASSETS / "measurements" / f"evaluation_{options.name}.json")


if __name__ == "__main__":
    main()
