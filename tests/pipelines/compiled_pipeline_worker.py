"""Run by test_together.py with compilation on: prints, as JSON, what happened to compiled denoisers under reuse."""

import json
from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers import DiffusionPipeline
from tiny import make, run

import lemica
from lemica.masks import step_mask
from lemica.reuse.identity import target_of

STEPS = 4
BUDGETS = (2, 3)


class Graphs:
    """A compiler that leaves the graphs as they are, and counts them and their runs."""

    def __init__(self):
        self.made = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list) -> Callable:
        self.made += 1

        def run_graph(*args):
            self.runs += 1
            return graph.forward(*args)

        return run_graph


def compile_module(pipe: DiffusionPipeline, **options) -> None:
    pipe.transformer.compile(**options)


def compile_blocks(pipe: DiffusionPipeline, **options) -> None:
    pipe.transformer.compile_repeated_blocks(**options)


def wrap(pipe: DiffusionPipeline, **options) -> None:
    pipe.transformer = torch.compile(pipe.transformer, **options)


WAYS = {"module": compile_module, "blocks": compile_blocks, "wrapped": wrap}


class Case:
    """A pipeline, compiled in one way."""

    def __init__(self, compile_it: Callable, expected: dict[int, torch.Tensor]):
        torch._dynamo.reset()
        self.tiny, self.graphs, self.expected = make("flux"), Graphs(), expected
        self.compile_it = lambda: compile_it(self.tiny.pipe, backend=self.graphs, fullgraph=True)
        # A reused step must run no graph, and a computed one must not run without.
        self.seen = {"graphs": [], "largest_difference": 0.0, "wrong_steps": 0, "refusal": None}

    def before(self) -> dict:
        self.compile_it()
        self._run(STEPS)
        return self._turned_on_and_off()

    def after(self) -> dict:
        lemica.enable(self.tiny.pipe, budget=BUDGETS[1])
        self.compile_it()
        try:
            self._run(BUDGETS[1])
        except RuntimeError as refusal:
            self.seen["refusal"] = str(refusal)
            lemica.enable(self.tiny.pipe, budget=BUDGETS[1])
            self._run(BUDGETS[1])
        return self._turned_on_and_off()

    def _turned_on_and_off(self) -> dict:
        for time in range(10):
            budget = BUDGETS[time % 2]
            lemica.enable(self.tiny.pipe, budget=budget)
            self._run(budget)
            lemica.disable(self.tiny.pipe)
            self._run(STEPS)
        self.seen["is_the_same_model"] = target_of(self.tiny.pipe) == target_of(make("flux").pipe)
        return self.seen

    def _run(self, budget: int) -> None:
        runs = [self.graphs.runs]

        def note(_pipe, _step, _time, tensors):
            runs.append(self.graphs.runs)
            return tensors

        difference = (run(self.tiny, STEPS, callback_on_step_end=note) - self.expected[budget]).abs().max().item()
        self.seen["largest_difference"] = max(difference, self.seen["largest_difference"])
        self.seen["graphs"].append(self.graphs.made)
        computed = step_mask(budget, STEPS)
        self.seen["wrong_steps"] += sum(
            (after > before) != c for (before, after), c in zip(pairwise(runs), computed, strict=True)
        )


def eager(budget: int) -> torch.Tensor:
    tiny = make("flux")
    lemica.enable(tiny.pipe, budget=budget)
    return run(tiny, STEPS)


def main() -> None:
    torch.set_num_threads(1)
    expected = {budget: eager(budget) for budget in (*BUDGETS, STEPS)}
    seen = {
        name: {"before": Case(compile_it, expected).before(), "after": Case(compile_it, expected).after()}
        for name, compile_it in WAYS.items()
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
