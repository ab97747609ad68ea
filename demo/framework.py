"""The framework is the kit's equal: the demo model in diffusers' pipeline against the kit, in graph, masks and quality.

    PYTHONPATH=.venv/diffusers .venv/bin/python -m demo.framework      # ten minutes a task on one CPU core

diffusers' pipeline with the demo checkpoint is calibrated by lemica.calibrate on the samples of the kit's own graph
(demo/calibrations.py), and masks are planned on both graphs. Videos are made by lemica.enable with the masks of the
one, and by the kit with those of the other. What differs is kept in assets/measurements/framework.json.

The kit works in a process of its own, on the diffusers and transformers that it is pinned to (demo/framework_kit.py).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import lemica
from demo.calibrations import ASSETS, CALIBRATIONS, CHECKPOINT, FRAMES, GRAPHS, IMAGE_SIZE, Calibration
from demo.data import Spec, first_frame, prompt_of, spec_of
from demo.pairs import FIRST_SEED
from demo.quality import quality
from lemica.files import write_text
from lemica.forecasts import FORECASTS
from lemica.masks import Mask, write_mask
from lemica.planning.graph import ErrorGraph, read_graph
from lemica.planning.plan import plan_many
from lemica.planning.routes import edge_costs

REPOSITORY = ASSETS.parent
RESULT = ASSETS / "measurements" / "framework.json"
TASKS = ("t2v", "i2v")
NUM_STEPS = 50
# Every budget is planned; videos are made with these.
SHOWN_BUDGETS = (25, 20, 15, 10)
SHOWN_FORECASTS = ("fitted", "taylor-step", "hold")
# Of demo.pairs every third is of 64 x 64 pixels, in both tasks.
PAIRS = range(0, 24, 3)
UNCACHED = "uncached"

# By name, as in "fitted, B = 20".
Masks = Mapping[str, Mask]
# Frames (F, H, W, 3) in [0, 1] by the name of the mask, and those with every step computed.
Videos = Mapping[str, np.ndarray]


def compare(task: str, graphs: Path = GRAPHS, pairs: Sequence[int] = PAIRS) -> dict[str, Any]:
    """Calibrate, plan and generate in diffusers, and say what differs from the kit.

    Args:
        task: "t2v" or "i2v".
        graphs: folder of the kit's graphs.
        pairs: of demo.pairs, with which videos are made.

    Returns what framework.json holds of a task. Raises RuntimeError where the kit's process fails.

    Example: ``compare("t2v")["masks"]["differing"]``
    """
    from demo.diffusers_model import demo_pipeline

    name = f"{task}_{NUM_STEPS}"
    pipe = demo_pipeline(CHECKPOINT, task)
    pipe.set_progress_bar_config(disable=True)
    kits, ours = read_graph(graphs / f"{name}.json"), graph_in_diffusers(pipe, CALIBRATIONS[name])
    kits_masks, our_masks = masks_of(kits), masks_of(ours)
    return {
        "graph": graph_differences(kits, ours),
        "masks": mask_differences(kits, kits_masks, our_masks),
        "pairs": list(pairs),
        **video_differences(
            videos_of_kit(task, pairs, shown(kits_masks)),
            [videos_in_diffusers(pipe, task, index, shown(our_masks)) for index in tqdm(pairs, unit="pair")],
        ),
    }


def graph_in_diffusers(pipe: Any, wanted: Calibration) -> ErrorGraph:
    """The error graph of diffusers' pipeline on the samples of one of demo.calibrations."""
    calls = [request_for(wanted.task, spec_of(index)) | {"seed": 0} for index in range(wanted.samples)]
    return lemica.calibrate(pipe, calls, wanted.num_steps, max_gap=wanted.max_gap, edges=wanted.edges)


def request_for(task: str, spec: Spec) -> dict[str, Any]:
    """Arguments of diffusers' pipeline for a video of 64 x 64 pixels, but for steps and noise."""
    height, width = IMAGE_SIZE
    size = {"t2v": dict(height=height, width=width), "i2v": dict(image=first_frame(spec, IMAGE_SIZE, FRAMES))}
    return dict(prompt=prompt_of(spec), num_frames=FRAMES, **size[task])


def masks_of(graph: ErrorGraph) -> Masks:
    """The masks of all budgets that have a path, planned with every forecast."""
    return {
        f"{forecast}, B = {budget}": mask
        for forecast in FORECASTS
        for budget, mask in plan_many(graph, forecast=forecast).items()
    }


def shown(masks: Masks) -> Masks:
    """Those with which videos are made."""
    names = (f"{forecast}, B = {budget}" for forecast in SHOWN_FORECASTS for budget in SHOWN_BUDGETS)
    return {name: masks[name] for name in names}


def videos_in_diffusers(pipe: Any, task: str, index: int, masks: Masks) -> Videos:
    """What diffusers' pipeline makes of a pair, without LeMiCa and with every mask."""

    def frames() -> np.ndarray:
        generator = torch.Generator().manual_seed(FIRST_SEED + index)
        request = request_for(task, spec_of(index, held_out=True))
        return pipe(**request, num_inference_steps=NUM_STEPS, generator=generator, output_type="np").frames[0]

    videos = {UNCACHED: frames()}
    for name, mask in masks.items():
        with lemica.enable(pipe, mask):
            videos[name] = frames()
    return videos


def videos_of_kit(task: str, pairs: Sequence[int], masks: Masks) -> list[Videos]:
    """What the kit makes of each pair."""
    with tempfile.TemporaryDirectory() as folder:
        for name, mask in masks.items():
            write_mask(mask, Path(folder, f"{name}.json"))
        run_on_kits_packages("-m", "demo.framework_kit", task, folder, *pairs)
        return [dict(np.load(Path(folder, f"{index}.npz"))) for index in pairs]


def run_on_kits_packages(*arguments: object) -> None:
    """Run Python in a process that has nothing of this one's: neither its newer packages nor its parallel state.

    Raises RuntimeError, with what the process has said, where it fails.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the kit's process failed: {done.stderr[-3000:]}")


def graph_differences(kits: ErrorGraph, ours: ErrorGraph) -> dict[str, dict[str, float]]:
    """How far numbers of the same place are apart: edges and products relatively, noise levels as they are."""
    edges = [np.array([error for *_, error in graph.edges()]) for graph in (kits, ours)]
    products, levels = ([getattr(graph.moments, name) for graph in (kits, ours)] for name in ("products", "sigmas"))
    return {
        "edges": _summary(edges[1] / edges[0] - 1),
        "products": _summary(products[1] / products[0] - 1),
        "noise levels": _summary(levels[1] - levels[0]),
    }


def _summary(differences: np.ndarray) -> dict[str, float]:
    sizes = np.abs(differences)
    return {"largest": _rounded(sizes.max()), "mean": _rounded(sizes.mean())}


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")


def mask_differences(kits: ErrorGraph, kits_masks: Masks, our_masks: Masks) -> dict[str, Any]:
    """How many masks were compared, which have other steps, and how far the weights of all others are apart.

    Where steps differ, the costs of both paths on the kit's graph say how much better the kit's is there: the first
    two, from the largest down, that differ.
    """
    differing = {}
    largest = 0.0
    for name, mask in kits_masks.items():
        other = our_masks[name]
        if mask.steps != other.steps:
            costs = (sorted(edge_costs(kits, each), reverse=True) for each in (mask, other))
            first = next((pair for pair in zip(*costs, strict=True) if pair[0] != pair[1]), None)
            differing[name] = {"kit": mask.computed_steps, "diffusers": other.computed_steps, "costs": first}
        else:
            pairs = zip(chain(*mask.weights), chain(*other.weights), strict=True)
            largest = max([largest, *(abs(left - right) for left, right in pairs)])
    return {"compared": len(kits_masks), "differing": differing, "weights": _rounded(largest)}


def video_differences(kits: Sequence[Videos], ours: Sequence[Videos]) -> dict[str, Any]:
    """PSNR in dB of every pair: of one side's uncached video against the other's, of cached ones against their own."""
    names = [name for name in ours[0] if name != UNCACHED]
    return {
        UNCACHED: [_psnr(kit[UNCACHED], our[UNCACHED]) for kit, our in zip(kits, ours, strict=True)],
        "psnr": {
            name: {
                side: [_psnr(videos[UNCACHED], videos[name]) for videos in each]
                for side, each in (("kit", kits), ("diffusers", ours))
            }
            for name in names
        },
    }


def _psnr(reference: np.ndarray, video: np.ndarray) -> float:
    return round(quality(reference, video)["psnr"], 4)


def note(task: str, found: dict[str, Any], path: Path = RESULT) -> None:
    """Put what was found for a task into the file, beside the other's."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[task] = found
    write_text(path, _json({each: results[each] for each in TASKS if each in results}) + "\n")


def _json(value: Any, levels: int = 3) -> str:
    """JSON with a line per entry of so many levels of objects."""
    if levels == 0 or not hasattr(value, "items") or not value:
        return json.dumps(value)
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_json(each, levels - 1)}" for name, each in value.items()) + "\n}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="only this one")
    parser.add_argument("--graphs", type=Path, default=GRAPHS, metavar="FOLDER", help="the kit's graphs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for task in TASKS if options.task is None else [options.task]:
        note(task, compare(task, options.graphs))


if __name__ == "__main__":
    main()
