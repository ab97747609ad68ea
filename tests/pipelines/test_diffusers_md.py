"""docs/diffusers.md: its calls fit the library, and its loop runs as printed."""

import ast
import inspect
import re

import torch
from conftest import REPOSITORY

import lemica
from lemica.released import released_models

TEXT = (REPOSITORY / "docs" / "diffusers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_every_call_of_the_library_has_arguments_that_it_takes():
    calls = [node for block in BLOCKS for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).startswith("lemica.")]
    assert len(ours) > 8
    for call in ours:
        function = getattr(lemica, ast.unparse(call.func).removeprefix("lemica."))
        inspect.signature(function).bind(*call.args, **{keyword.arg: None for keyword in call.keywords})


def test_the_loop_of_ones_own_runs_as_printed():
    class Scheduler:
        def set_timesteps(self, steps):
            self.timesteps = torch.linspace(1000, 0, steps + 1)[:-1]

        def step(self, output, timestep, sample):
            return (sample - output / 30,)

    class Model(torch.nn.Module):
        runs = 0

        def forward(self, latents, timestep):
            self.runs += 1
            return latents * 0.5

    (loop,) = (block for block in BLOCKS if "reusing" in block)
    names = {"model": Model(), "scheduler": Scheduler(), "latents": torch.ones(4)}
    exec(loop, names)
    assert names["model"].runs == 10
    assert 0 < names["latents"][0] < 1


def test_the_authors_masks_that_it_lists_are_theirs():
    listed = re.findall(r", (\d+): ([\d, ]+) \|", TEXT) + re.findall(r"\| (\d+): ([\d, ]+) \|", TEXT)
    masks = {(str(model.num_steps), ", ".join(map(str, model.masks))) for model in released_models().values()}
    assert set(listed) == masks
