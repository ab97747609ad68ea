"""The table of README: what `lemica evaluate` finds on the demo model, one video at a time, as on any model.

    python -m demo.evaluation t2v_50_bf16 evaluation       # a name of demo/calibrations.py; a folder, to go on from

Held-out prompts with two seeds each. Masks are planned on the calibration of that name. What it finds is put into
assets/measurements/evaluation_NAME.json, as demo/results.py reads it.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from demo.arithmetic import arithmetic
from demo.attention import fused_attention
from demo.calibrations import ASSETS, CALIBRATIONS, CHECKPOINT, FRAMES, calibration, sample_files
from demo.data import spec_of
from demo.results import Results, write_results
from lemica.cli.main import main as lemica
from lemica.masks import write_mask
from lemica.planning.plan import plan

# Of the first eighteen held-out ones, 13 and 15 say what others say.
PROMPTS = (*range(13), 14, 16, 17)
SEEDS = (0, 1)
BUDGETS = {50: (25, 20, 15, 10, 8, 6), 30: (15, 10, 6)}
FORECASTS = ("hold", "fitted")
# Those whose graphs have the gaps of all budgets.
NAMES = [name for name, made in CALIBRATIONS.items() if made.max_gap == 12]


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
        "--seeds": SEEDS,
        "--masks": list(planned(name, budgets, folder)),
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


def planned(name: str, budgets: Sequence[int], folder: Path) -> Iterator[Path]:
    """Write a mask file FORECAST_BUDGET.json for each forecast and budget; gives their paths."""
    for forecast in FORECASTS:
        for budget in budgets:
            path = folder / f"{forecast}_{budget}.json"
            write_mask(plan(calibration(name), budget, forecast), path)
            yield path


def results_of(document: dict, task: str, num_steps: int, budgets: Sequence[int]) -> Results:
    """The same by the names that demo/methods.json has for these methods."""
    rows = {row["method"]: row["samples"] for row in document["rows"]}
    results: Results = {}
    for place, request in enumerate(document["requests"]):
        pair = results.setdefault(f"480p_{task}, {request['prompt']}, seed {request['seed']}", {})
        for budget in budgets:
            for method, row in methods_at(budget).items():
                figures = rows[row][place]
                pair[f"{num_steps} steps, B = {budget}, {method}"] = {each: figures[each] for each in ("psnr", "ssim")}
    return results


def methods_at(budget: int) -> dict[str, str]:
    """The rows of `lemica evaluate` at a budget, by the names of methods."""
    return {
        "noise floor": "noise floor",
        "fewer steps": f"fewer steps ({budget})",
        "released, residual + hold": f"budget {budget}",
        "balanced, velocity + damped": f"budget {budget}, balanced",
        **{f"minimax, velocity + {forecast}": f"{forecast}_{budget}" for forecast in FORECASTS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    made = CALIBRATIONS[options.name]
    budgets = BUDGETS[made.num_steps]
    found = evaluate(options.name, options.folder, budgets)
    results = results_of(found, made.task, made.num_steps, budgets)
    write_results(results, ASSETS / "measurements" / f"evaluation_{options.name}.json")


if __name__ == "__main__":
    main()
