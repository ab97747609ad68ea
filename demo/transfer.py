"""Do masks carry over to models that they were not planned on? On the demo model's masks, other models and samplers.

    python -m demo.transfer transfer.json --models seed=OTHER narrow=NARROW

Each model is the folder of a checkpoint, as demo/train_model.py writes them: of another seed, of another width. The
demo model itself is taken with other flow shifts. Everything is calibrated and measured in bfloat16, on the first
held-out pairs.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline, initialize_sequence_parallel

from demo.arithmetic import arithmetic
from demo.attention import fused_attention
from demo.calibrations import CHECKPOINT, Calibration, calibrate, calibration
from demo.methods import Method
from demo.quality import measure
from demo.results import Results, write_results
from lemica.masks import Mask, balanced_mask, uniform_mask
from lemica.planning.graph import ErrorGraph, read_graph
from lemica.planning.plan import plan, with_forecast

PAIRS = range(12)
BUDGETS = (25, 15, 10)
SHIFTS = (3.0, 9.0)


@dataclass(frozen=True)
class Setting:
    """A model and a sampler: a checkpoint's folder, and the flow shift if it is not the model's."""

    name: str
    checkpoint: Path = CHECKPOINT
    shift: float | None = None

    def graph(self) -> ErrorGraph:
        """Its own calibration."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "graph.json")
            calibrate(Calibration("t2v", 50, "bf16", shift=self.shift), path, self.checkpoint)
            return read_graph(path)

    def methods(self) -> list[Method]:
        """What is measured, a mask per budget."""
        own, demo = self.graph(), calibration("t2v_50_bf16")
        return [method for budget in BUDGETS for method in methods_of(budget, own, demo)]


def methods_of(budget: int, own: ErrorGraph, demo: ErrorGraph) -> list[Method]:
    """Everything of one budget, from the model's own graph and that of the demo model."""
    uniform, elsewhere = uniform_mask(budget, own.num_steps), plan(demo, budget)
    balanced = balanced_mask(budget, own.num_steps, own.target.sigmas)
    return [
        Method("fewer steps", Mask(uniform), sampler=True),
        Method("uniform, damped", Mask(uniform, "velocity", rule="damped")),
        Method("balanced, damped", Mask(balanced, "velocity", rule="damped")),
        Method("planned on the demo model, damped", Mask(elsewhere.steps, "velocity", rule="damped")),
        Method("planned and fitted on the demo model", elsewhere),
        Method("planned on the demo model, fitted here", with_forecast(elsewhere.steps, own)),
        Method("planned and fitted here", plan(own, budget)),
    ]


def measured(setting: Setting) -> Results:
    """The methods' figures on every pair, by the name of setting and pair."""
    methods = setting.methods()
    with arithmetic("bf16"):
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(setting.checkpoint), "480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    found = measure(pipe, PAIRS, methods, setting.shift)
    return {f"{setting.name} {pair}": rows for pair, rows in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=FOLDER", help="other models")
    options = parser.parse_args(arguments)
    models = [Setting(name, Path(folder)) for name, _, folder in (model.partition("=") for model in options.models)]
    shifts = [Setting(f"shift {shift:g}", shift=shift) for shift in SHIFTS]
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    results: Results = {}
    with fused_attention(), torch.no_grad():
        for setting in [Setting("the demo model"), *shifts, *models]:
            results |= measured(setting)
            write_results(results, options.output)


if __name__ == "__main__":
    main()
