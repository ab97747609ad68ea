"""Calibrate the demo model and plan its masks: all graphs and mask files that the measurements compare.

    python scripts/plan_demo_masks.py calibrate OUTPUT fast_t2v_50     # graphs by name, see GRAPHS
    python scripts/plan_demo_masks.py compare OUTPUT                   # fast against exact edges
    python scripts/plan_demo_masks.py plan OUTPUT                      # all masks

To be started in a HunyuanVideo-1.5 tree with the kit, with the kit on PYTHONPATH. Every graph is what `python -m lemica
calibrate` makes of these arguments; only attention runs in PyTorch's fused kernel, which on a CPU is twice as fast.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo_data import prompt_of, render_one, spec_of

from lemica import __main__ as lemica
from lemica.graph import ErrorGraph, read_graph
from lemica.masks import Mask, computed_steps, step_mask, uniform_mask, write_mask
from lemica.path import lexicographic_minimax_paths
from lemica.plan import fitted

CHECKPOINT = Path(__file__).resolve().parents[1] / "assets" / "demo_checkpoint"
BUDGETS = {50: (25, 20, 15, 10), 30: (15, 10)}
FRAMES = 9


@dataclass(frozen=True)
class Calibration:
    """One graph: which task, steps, edges and rule, on the training prompts of how many specs; a seed each."""

    task: str
    num_steps: int
    edges: str = "fast"
    samples: int = 8
    rule: tuple[str, str] = ("residual", "hold")
    max_gap: int = 8
    aspect_ratio: str = "1:1"


# Rules other than residual + hold that masks are planned for, by the name of their graphs.
RULES = {
    "velocity": ("velocity", "hold"),
    "output": ("output", "hold"),
    "velocity_damped": ("velocity", "damped-sigma"),
    "output_damped": ("output", "damped-sigma"),
    "residual_damped": ("residual", "damped-sigma"),
    "velocity_taylor": ("velocity", "taylor-step"),
}
# Held velocities of videos that are not square, to plan for all formats together.
FORMATS = {"wide": "16:9", "tall": "9:16"}
# Computed steps that fitted forecasts read, the default first.
HISTORIES = (2, 4)
# Fast edges of as many samples as exact ones have, beside those of more that the masks are planned on.
EXACT_SAMPLES = 2


def _graphs(task: str, num_steps: int) -> Iterator[tuple[str, Calibration]]:
    yield "fast", Calibration(task, num_steps)
    yield "same", Calibration(task, num_steps, samples=EXACT_SAMPLES)
    yield "exact", Calibration(task, num_steps, edges="exact", samples=EXACT_SAMPLES)
    yield from ((name, Calibration(task, num_steps, rule=rule)) for name, rule in RULES.items())
    for name, aspect_ratio in FORMATS.items():
        yield name, Calibration(task, num_steps, rule=RULES["velocity"], aspect_ratio=aspect_ratio)


GRAPHS = {
    f"{kind}_{task}_{num_steps}": calibration
    for task in ("t2v", "i2v")
    for num_steps in (50, 30)
    for kind, calibration in _graphs(task, num_steps)
}


def _write_prompts(folder: Path, calibration: Calibration) -> list[str]:
    """Prompts, and first frames for image-to-video, as files; returns the arguments that name them."""
    specs = [spec_of(index) for index in range(calibration.samples)]
    prompts = folder / f"prompts_{calibration.samples}.txt"
    prompts.write_text("".join(f"{prompt_of(spec)}\n" for spec in specs))
    arguments = ["--prompts", str(prompts)]
    if calibration.task == "i2v":
        from PIL import Image

        arguments.append("--image_path")
        for index, spec in enumerate(specs):
            path = folder / f"first_{index}.png"
            first = render_one(spec, (64, 64), FRAMES)[:, 0]
            Image.fromarray(((first + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(path)
            arguments.append(str(path))
    return arguments


def calibrate(output: Path, name: str) -> None:
    """Write `NAME.json`, and the seconds that it took into `NAME.time.json`."""
    import torch
    from demo_attention import fused_attention

    torch.set_num_threads(1)
    calibration = GRAPHS[name]
    output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    request = ["--resolution", "480p", "--aspect_ratio", calibration.aspect_ratio, "--video_length", str(FRAMES)]
    sampler = [
        "--num_inference_steps",
        str(calibration.num_steps),
        "--max_gap",
        str(calibration.max_gap),
        "--seeds",
        "0",
    ]
    files = ["--model_path", str(CHECKPOINT), "--output", str(output / f"{name}.json")]
    files += ["--edges", calibration.edges, "--reuse", calibration.rule[0], "--forecast", calibration.rule[1]]
    with fused_attention():
        lemica.main(["calibrate", *files, *request, *sampler, *_write_prompts(output, calibration)])
    seconds = round(time.perf_counter() - begin, 1)
    (output / f"{name}.time.json").write_text(json.dumps({"seconds": seconds, "samples": calibration.samples}) + "\n")


def compare(output: Path) -> None:
    """Print how well fast edges agree with exact ones."""
    from scipy.stats import pearsonr, spearmanr

    for name in (name for name in GRAPHS if name.startswith("exact")):
        paths = {kind: output / f"{name.replace('exact', kind)}.json" for kind in ("exact", "same", "fast")}
        weights = {kind: [w for *_, w in read_graph(path).edges()] for kind, path in paths.items() if path.exists()}
        for kind in weights.keys() & {"same", "fast"} if "exact" in weights else ():
            rank, linear = (test(weights["exact"], weights[kind])[0] for test in (spearmanr, pearsonr))
            samples = f"{GRAPHS[paths[kind].stem].samples} samples, exact of {EXACT_SAMPLES}"
            print(f"{name}: {len(weights[kind])} edges, fast of {samples}: Spearman {rank:.4f}, Pearson {linear:.4f}")


def plan(output: Path) -> None:
    """Masks of every graph for every budget, by both objectives, and fitted forecasts where velocities were held."""
    for name, calibration in GRAPHS.items():
        graph, sampler = output / f"{name}.json", f"{calibration.task}_{calibration.num_steps}"
        if not graph.exists() or calibration.aspect_ratio != Calibration.aspect_ratio:
            continue
        budgets = BUDGETS[calibration.num_steps]
        _plan([graph], budgets, name)
        if calibration.rule == RULES["velocity"]:
            for history in HISTORIES:
                _plan([graph], budgets, f"fitted{history}_{sampler}", *_fitted(history))
            fit_to_known_masks(read_graph(graph), budgets, output, sampler)
            formats = [graph, *(output / f"{name}_{sampler}.json" for name in FORMATS)]
            if all(path.exists() for path in formats):
                _plan(formats, budgets, f"formats_{sampler}", *_fitted(HISTORIES[0]))


def _fitted(history: int) -> list[str]:
    return ["--forecast", "fitted", "--history", str(history)]


def _plan(graphs: Sequence[Path], budgets: Sequence[int], name: str, *options: str) -> None:
    for objective in ("minimax", "sum"):
        target = graphs[0].with_name(f"{objective}_{name}_b{{budget}}.json")
        budget = ["--budget", *map(str, budgets)]
        lemica.main(["plan", *map(str, graphs), *budget, "--objective", objective, "-o", str(target), *options])


def fit_to_known_masks(graph: ErrorGraph, budgets: Sequence[int], output: Path, name: str) -> None:
    """Fitted weights for the uniform masks, for the kit's own, and for those planned as if velocities were held."""
    held = {budget: tuple(path) for budget, path in lexicographic_minimax_paths(graph, budgets).items()}
    known = {
        "uniform": lambda budget: computed_steps(uniform_mask(budget, graph.num_steps)),
        "released": lambda budget: computed_steps(step_mask(budget, graph.num_steps)),
        "held": held.__getitem__,
    }
    for origin, steps_of in known.items():
        for budget in budgets:
            steps = steps_of(budget)
            mask = Mask(graph.model, graph.num_steps, steps, origin, graph.reuse, graph.forecast)
            write_mask(fitted(mask, graph.moments, HISTORIES[0]), output / f"{origin}_fitted_{name}_b{budget}.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["calibrate", "compare", "plan"])
    parser.add_argument("output", type=Path)
    parser.add_argument("graphs", nargs="*", metavar="GRAPH", help="for calibrate")
    options = parser.parse_args(arguments)
    if options.command == "calibrate":
        if not options.graphs or not set(options.graphs) <= set(GRAPHS):
            parser.error(f"calibrate needs graphs: {', '.join(GRAPHS)}")
        for name in options.graphs:
            calibrate(options.output, name)
    else:
        {"compare": compare, "plan": plan}[options.command](options.output)


if __name__ == "__main__":
    main()
