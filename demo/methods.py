"""What the measurements compare: a file lists methods, one JSON object each, and each becomes a mask per budget.

    {"name": "fewer steps", "steps": 50, "budgets": [25, 20], "sampler": true}         B steps, all computed, no cache
    {"name": "noise floor", "steps": 50, "budgets": [25, 20], "floor": true}           all computed, the noise moved
    {"name": "released", "steps": 50, "budgets": [25, 20]}                             the kit's own masks
    {"name": "balanced", "steps": 50, "budgets": [25, 20], "mask": "balanced", "kept": "velocity", "forecast": "damped"}
    {"name": "uniform", "steps": 50, "budgets": [25, 20], "mask": "uniform", "forecast": "fitted"}
    {"name": "minimax", "steps": 50, "budgets": [25, 20], "mask": "planned", "forecast": "fitted", "history": 2}

A mask's steps are released, balanced, uniform or planned. The calibration of the measured task, steps and arithmetic
(demo/calibrations.py) gives planned masks, fitted and taylor-step weights, and the noise levels of balanced steps;
it is read when it is needed. "forecast", "history", "objective" and "correct" are those of lemica.planning.plan.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from demo.calibrations import calibration
from lemica.masks import RULES, Mask, balanced_mask, step_mask, uniform_mask
from lemica.planning.plan import plan, with_forecast

# The steps of a mask that is not planned: of a budget, a number of steps, and a calibration for its noise levels.
STEPS_OF = {
    "released": lambda budget, num_steps, _: step_mask(budget, num_steps),
    "uniform": lambda budget, num_steps, _: uniform_mask(budget, num_steps),
    "balanced": lambda budget, num_steps, name: balanced_mask(budget, num_steps, calibration(name).target.sigmas),
}


@dataclass(frozen=True)
class Method:
    """One way to generate.

    Args:
        name: of the method.
        mask: the computed steps, what is kept and how it is used.
        sampler: whether to sample with as few steps instead, and reuse nothing.
        floor: whether to compute every step from noise that is a little moved.
    """

    name: str
    mask: Mask
    sampler: bool = False
    floor: bool = False

    @property
    def key(self) -> str:
        """The method in words, unique in a list of methods."""
        rule = "" if self.sampler or self.floor else f", {self.mask.kept} + {self.mask.rule}"
        return f"{self.mask.num_steps} steps, B = {self.mask.budget}, {self.name}{rule}"


def read_methods(path: Path, task: str, dtype: str) -> list[Method]:
    """All methods of a file, a budget each; raises ValueError if two could not be told apart."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    methods = [method_of(entry, budget, task, dtype) for entry in entries for budget in entry["budgets"]]
    keys = [method.key for method in methods]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{path}: two methods are called {max(keys, key=keys.count)!r}; give them other names")
    return methods


def method_of(entry: dict, budget: int, task: str, dtype: str) -> Method:
    """A method from its entry in the file, for one of its budgets, a task and an arithmetic."""
    name = f"{task}_{entry['steps']}" + ("" if dtype == "fp32" else f"_{dtype}")
    return Method(entry["name"], mask_of(entry, budget, name), entry.get("sampler", False), entry.get("floor", False))


def mask_of(entry: dict, budget: int, name: str) -> Mask:
    """The mask of an entry, with the calibration `name` if it needs one."""
    kind, forecast = entry.get("mask", "released"), entry.get("forecast", "hold")
    options = {option: entry[option] for option in ("history", "objective", "correct") if option in entry}
    if kind == "planned":
        return plan(calibration(name), budget, forecast, **options)
    steps = STEPS_OF[kind](budget, entry["steps"], name)
    if forecast in RULES:
        return Mask(steps, entry.get("kept", "residual"), rule=forecast)
    return with_forecast(steps, calibration(name), forecast, **options)
