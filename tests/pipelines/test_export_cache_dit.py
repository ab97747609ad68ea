"""What lemica export prints for cache-dit, executed: the real cache-dit runs the blocks of real pipelines by it."""

import json
import re
import shlex
from dataclasses import fields

import pytest
import torch
from tiny import TinyPipeline, make, pipelines_here, run

from lemica.export import to_cache_dit, to_sglang, to_xdit
from lemica.masks import Mask, StepMask, mask_of, step_mask

cache_dit = pytest.importorskip("cache_dit", reason="the engine is not installed: pip install cache-dit==1.5.3")

MASK = Mask(mask_of((0, 1, 3, 5), 6))
# Calls of the transformer per step, and blocks that run in each on a reused step. FLUX.2 has two lists of blocks; in
# front of Z-Image's blocks stand two of its refiners, which no cache touches.
KNOWN = {
    "hunyuan_video15": (2, 1),
    "wan_unipc": (2, 1),
    "qwen_image": (2, 1),
    "cogvideox_ddim": (1, 1),
    "ltx": (1, 1),
    "z_image": (1, 3),
    "flux": (1, 1),
    "flux2": (1, 2),
}


class Watched:
    """A tiny pipeline of a class of its own, and how many blocks each call of its transformers ran.

    cache-dit puts its own call on the pipeline's class, which other tests share.
    """

    def __init__(self, name: str, class_name: str = ""):
        self.tiny: TinyPipeline = make(name)
        self.pipe = self.tiny.pipe
        self.pipe.__class__ = type(class_name or type(self.pipe).__name__, (type(self.pipe),), {})
        self.calls: list[int] = []
        for part in ("transformer", "transformer_2"):
            if (transformer := getattr(self.pipe, part, None)) is not None:
                self._watch(transformer)
        self.run()
        self.blocks = self.calls[0]
        assert {*self.calls} == {self.blocks}

    def _watch(self, transformer: torch.nn.Module) -> None:
        transformer.register_forward_pre_hook(lambda *_: self.calls.append(0))
        for blocks in (part for part in transformer.children() if isinstance(part, torch.nn.ModuleList)):
            for block in blocks:
                block.register_forward_pre_hook(self._count)

    def _count(self, *_) -> None:
        self.calls[-1] += 1

    def run(self, **settings) -> torch.Tensor:
        self.calls.clear()
        return run(self.tiny, **settings)

    def computed(self) -> list[bool]:
        """Which calls ran all blocks."""
        return [count == self.blocks for count in self.calls]


@pytest.fixture
def watched():
    """Call as watched(name) for a pipeline that cache-dit lets go in the end."""
    made = []

    def call(*arguments) -> Watched:
        made.append(Watched(*arguments))
        return made[-1]

    yield call
    for each in made:
        cache_dit.disable_cache(each.pipe)


def enable(pipe, mask: Mask, separate_cfg: bool | None = None, by_name: bool = True) -> None:
    """Execute what is printed, as a user may change it: another `separate_cfg`, or the lines for an unknown class."""
    text = to_cache_dit(mask, "mask.json")
    text = text.replace("separate_cfg = None", f"separate_cfg = {separate_cfg}")
    if not by_name:
        text, _, rest = text.partition("cache_dit.enable_cache(pipe, cache_config=config)")
        text += re.sub(r"^# ", "", rest[rest.index("# blocks = ") :], flags=re.MULTILINE)
    exec(compile(text, "printed", "exec"), {"pipe": pipe})


def per_call(steps: StepMask, calls: int) -> list[bool]:
    """One boolean per call of the transformer."""
    return [computed for computed in steps for _ in range(calls)]


@pytest.mark.parametrize("name", pipelines_here(*KNOWN))
def test_all_blocks_run_on_computed_steps_and_the_first_on_reused_steps(watched, name):
    it = watched(name)
    enable(it.pipe, MASK)
    latents = it.run()
    calls, least = KNOWN[name]
    assert it.calls == [it.blocks if computed else least for computed in per_call(MASK.steps, calls)]
    assert torch.equal(it.run(), latents)
    assert it.computed() == per_call(MASK.steps, calls)


@pytest.mark.parametrize(
    ("name", "settings", "separate_cfg", "calls"),
    [("wan_unipc", {"guidance_scale": 1.0}, False, 1), ("flux_true_cfg", {}, True, 2)],
)
def test_guidance_that_is_not_the_usual_one_of_the_class_is_told(watched, name, settings, separate_cfg, calls):
    for told, obeyed in ((None, False), (separate_cfg, True)):
        it = watched(name)
        enable(it.pipe, MASK, told)
        it.run(**settings)
        assert (it.computed() == per_call(MASK.steps, calls)) == obeyed


@pytest.mark.parametrize("name", pipelines_here("hunyuan_video15"))
def test_a_pipeline_that_cache_dit_does_not_know_is_served_by_its_blocks(watched, name):
    it = watched(name, "Unknown")
    with pytest.raises(ValueError, match="not officially supported"):
        enable(it.pipe, MASK)
    enable(it.pipe, MASK, separate_cfg=True, by_name=False)
    for _ in range(2):
        it.run()
        assert it.computed() == per_call(MASK.steps, 2)


@pytest.mark.parametrize("name", pipelines_here("hunyuan_video15", "flux"))
def test_with_every_step_computed_the_result_is_that_without_cache(watched, name):
    it = watched(name)
    latents = it.run()
    enable(it.pipe, Mask(step_mask(6, 6)))
    assert torch.equal(it.run(), latents) and all(it.computed())


@pytest.mark.parametrize("name", pipelines_here("hunyuan_video15"))
def test_a_reused_step_adds_what_the_blocks_after_the_first_added_on_the_last_computed_step(watched, name):
    it = watched(name)
    first, last = it.pipe.transformer.transformer_blocks
    seen = {"first": [], "last": [], "stack": []}
    first.register_forward_hook(lambda *call: seen["first"].append(call[-1][0].clone()))
    last.register_forward_hook(lambda *call: seen["last"].append(call[-1][0].clone()))
    it.pipe.transformer.norm_out.register_forward_pre_hook(lambda *call: seen["stack"].append(call[-1][0].clone()))
    enable(it.pipe, MASK)
    it.run()
    # Calls 2 and 3 are those of step 1, which is computed; 4 and 5 those of step 2, which is reused.
    for conditional in (0, 1):
        added = seen["last"][2 + conditional] - seen["first"][2 + conditional]
        torch.testing.assert_close(seen["stack"][4 + conditional], seen["first"][4 + conditional] + added)


# What the comments warn of


def test_another_number_of_steps_is_neither_refused_nor_obeyed(watched):
    it = watched("wan_unipc")
    enable(it.pipe, MASK)
    it.run(steps=3)
    assert it.computed() == [True, True, True, True, False, False]
    it.run(steps=9)
    assert len(it.calls) == 18 and not all(it.computed()[-2:])


def test_without_the_pipeline_each_run_begins_one_call_later(watched):
    it = watched("flux")
    it.pipe = it.pipe.transformer
    enable(it.pipe, MASK)
    it.run()
    assert it.computed() == [*MASK.steps]
    it.run()
    assert it.computed() == [False, *MASK.steps[:-1]]


def test_two_experts_count_their_steps_each_from_0(watched):
    it = watched("wan_two_experts")
    enable(it.pipe, MASK)
    it.run()
    assert it.computed() == per_call(MASK.steps[:2] + MASK.steps[:4], 2)


# The engines that run on cache-dit


@pytest.mark.parametrize("mask", [MASK, Mask(step_mask(20, 50)), Mask(step_mask(6, 6))], ids=["6", "50", "computed"])
def test_the_run_lengths_for_sglang_are_the_mask_to_cache_dit(mask):
    params = json.loads(to_sglang(mask, "m").splitlines()[-1].removeprefix("# "))["cache_dit_params"]
    bins = [params[name] for name in ("scm_compute_bins", "scm_cache_bins")]
    assert all(bins) and cache_dit.steps_mask(*bins, total_steps=mask.num_steps) == [*map(int, mask.steps)]


def test_the_configuration_for_xdit_is_one_of_cache_dit_but_for_two_names_of_xdits():
    words = shlex.split(to_xdit(MASK, "m"), comments=True)
    config = json.loads(words[words.index("--cache_config") + 1])
    known = {field.name for field in fields(cache_dit.DBCacheConfig)}
    assert {*config} - known == {"scm_policy", "enable_taylorseer"}
