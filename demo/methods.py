"""What the measurements compare: a file lists methods, one JSON object each, and each becomes a mask per budget.

    {"name": "minimax", "steps": 50, "budgets": [25, 20], "plan": "t2v_50", "forecast": "fitted", "history": 2}
    {"name": "released", "steps": 50, "budgets": [25, 20]}                             the kit's own masks
    {"name": "released", "steps": 50, "budgets": [25, 20], "kept": "velocity", "forecast": "damped"}
    {"name": "uniform", "steps": 50, "budgets": [25, 20], "mask": "uniform"}           evenly spread steps
    {"name": "uniform", "steps": 50, "budgets": [25, 20], "mask": "uniform", "graph": "t2v_50", "forecast": "fitted"}
    {"name": "fewer steps", "steps": 50, "budgets": [25, 20], "sampler": true}         B steps, all computed, no cache
    {"name": "static", "steps": 50, "mask": "static"}                                  upstream's default steps
    {"name": "deepcache", "steps": 50, "mask": "static", "cache_type": "deepcache"}    one of upstream's caches

"plan" names the calibrations of demo/calibrations.py, several with spaces between, on whose mean a mask is planned when
it is needed; "forecast", "history" and "objective" are those of lemica plan. "graph" names the calibration from which
other masks take their forecast's weights; hold and damped need none.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from demo.calibrations import calibration
from lemica.masks import Mask, StepMask, step_mask, uniform_mask
from lemica.planning.graph import ErrorGraph, merge_graphs
from lemica.planning.plan import plan, with_forecast


@dataclass(frozen=True)
class Method:
    """One way to generate.

    Args:
        name: of the method.
        mask: the computed steps, what is kept and how it is used.
        sampler: whether to sample with as few steps instead, and reuse nothing.
        cache_type: one of upstream's caches, which decides by itself what to reuse.
    """

    name: str
    mask: Mask
    sampler: bool = False
    cache_type: str | None = None

    @property
    def key(self) -> str:
        """The method in words, unique in a list of methods."""
        rule = "" if self.sampler or self.cache_type else f", {self.mask.kept} + {self.mask.rule}"
        return f"{self.mask.num_steps} steps, B = {self.mask.budget}, {self.name}{rule}"


def read_methods(path: Path) -> list[Method]:
    """All methods of a file, a budget each; raises ValueError if two could not be told apart."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    methods = [method_of(entry, budget) for entry in entries for budget in entry.get("budgets", [None])]
    keys = [method.key for method in methods]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{path}: two methods are called {max(keys, key=keys.count)!r}; give them other names")
    return methods


def method_of(entry: dict, budget: int | None) -> Method:
    """A method from its entry in the file, for one of its budgets."""
    mask = _planned(entry, budget) if "plan" in entry else _known(entry, budget)
    return Method(entry["name"], mask, entry.get("sampler", False), entry.get("cache_type"))


def _planned(entry: dict, budget: int) -> Mask:
    graph = graph_of(entry["plan"])
    if graph.num_steps != entry["steps"]:
        raise ValueError(f"{entry['plan']} is of {graph.num_steps} steps, {entry['name']!r} of {entry['steps']}")
    return plan(graph, budget, **{name: entry[name] for name in ("forecast", "history", "objective") if name in entry})


def _known(entry: dict, budget: int | None) -> Mask:
    steps = MASKS[entry.get("mask", "released")](budget, entry["steps"])
    if "graph" in entry:
        return with_forecast(steps, graph_of(entry["graph"]), entry["forecast"])
    return Mask(steps, entry.get("kept", "residual"), rule=entry.get("forecast", "hold"))


def graph_of(names: str) -> ErrorGraph:
    """The mean of the named calibrations."""
    return merge_graphs([calibration(name) for name in names.split()])


def static_mask(num_steps: int, start: int = 11, end: int = 45, interval: int = 4) -> StepMask:
    """Upstream's rule for its own caches, with its defaults: every `interval`-th step from `start` to before `end`.

    All steps before `start` and from `end` on are computed, and the last one, which upstream reuses where `end` lies
    beyond `num_steps`.
    """
    between = set(range(start, end, interval))
    return tuple(not start <= step < end or step in between or step == num_steps - 1 for step in range(num_steps))


# Masks that are not planned, by budget and number of steps.
MASKS = {"released": step_mask, "uniform": uniform_mask, "static": lambda _, num_steps: static_mask(num_steps)}
