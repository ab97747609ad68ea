"""Every pipeline, of diffusers' real classes: what an enabled one computes, and that it is left as it was."""

import diffusers
import pytest
import torch
from tiny import make, pipelines_here, run

import lemica
from lemica.errors import Refused
from lemica.masks import Mask, balanced_mask, hold, mask_of, step_mask
from lemica.reuse.sampler import noise_levels

STEPS = 6
# Samplers that call the denoiser more often than they have steps, and pipelines that begin after their first step.
TWICE = ("wan_heun",)
LATE = {"flux_image_to_image": 2, "cogvideox_video_to_video": 3}


class BlockCalls:
    """How often the counted blocks ran."""

    def __init__(self, blocks):
        self.count = 0
        for block in dict.fromkeys(blocks):
            block.register_forward_hook(self._count)

    def _count(self, *_):
        self.count += 1

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


def scheduler_steps(name: str) -> int:
    return 2 * STEPS - 1 if name in TWICE else STEPS


def held(budget: int, num_steps: int) -> Mask:
    steps = step_mask(budget, num_steps)
    return Mask(steps, kept="velocity", weights=hold(steps))


def all_computed(num_steps: int) -> Mask:
    return held(num_steps, num_steps)


@pytest.fixture(params=pipelines_here())
def name(request) -> str:
    return request.param


@pytest.fixture
def tiny(name):
    return make(name)


def test_all_steps_computed_is_the_pipeline_itself_to_the_bit(name, tiny):
    expected = run(tiny, STEPS)
    lemica.enable(tiny.pipe, all_computed(scheduler_steps(name)))
    assert torch.equal(run(tiny, STEPS), expected)
    assert lemica.summary(tiny.pipe).reused_seconds == ()


def test_the_denoiser_runs_on_the_steps_of_the_mask_and_no_others(name, tiny):
    """Fallbacks besides, where guidance comes late or stops, or a call begins later: they are counted."""
    blocks, num_steps = BlockCalls(tiny.blocks), scheduler_steps(name)
    run(tiny, STEPS)
    all_calls = blocks.taken()
    lemica.enable(tiny.pipe, held(4, num_steps))
    first, second = run(tiny, STEPS), run(tiny, STEPS)
    assert torch.equal(first, second)
    calls = lemica.summary(tiny.pipe)
    computed = blocks.taken() // 2
    done = num_steps - LATE.get(name, 0)
    assert len(calls.computed_seconds) + len(calls.reused_seconds) == done
    if not calls.fallbacks and all_calls % done == 0:
        assert computed == sum(calls.mask.steps[-done:]) * all_calls // done
    assert computed < all_calls


def test_an_error_in_the_middle_leaves_nothing_behind(tiny, name):
    lemica.enable(tiny.pipe, held(4, scheduler_steps(name)))
    expected = run(tiny, STEPS)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        handle = tiny.blocks[0].register_forward_hook(Failing(at=2))
        run(tiny, STEPS)
    handle.remove()
    assert not tiny.pipe._lemica_watchers.owner.reuse._kept
    assert torch.equal(run(tiny, STEPS), expected)


class Failing:
    def __init__(self, at: int):
        self.left = at

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError


def test_disabled_it_is_as_before(tiny, name):
    parts = [tiny.pipe, tiny.pipe.scheduler, *(getattr(tiny.pipe, part, None) for part in ("transformer", "unet"))]
    before = [(type(part), dict(vars(part))) for part in parts if part is not None]
    expected = run(tiny, STEPS)
    lemica.enable(tiny.pipe, held(4, scheduler_steps(name)))
    lemica.disable(tiny.pipe)
    assert [type(part) for part in parts if part is not None] == [kind for kind, _ in before]
    assert all("_lemica_watchers" not in vars(part) for part in parts if part is not None)
    assert torch.equal(run(tiny, STEPS), expected)


def test_it_is_calibrated_planned_and_run(tiny, name):
    call = {key: value for key, value in tiny.call.items()}
    if name in LATE:
        with pytest.raises(Refused, match=f"this call begins at step {LATE[name]} of {STEPS}: calibrate with one"):
            lemica.calibrate(tiny.pipe, [dict(call, seed=0)], STEPS, max_gap=3, show_progress=False)
        return
    graph = lemica.calibrate(tiny.pipe, [dict(call, seed=0)], STEPS, max_gap=3, show_progress=False)
    assert graph.num_steps == scheduler_steps(name)
    assert any(error > 0 for *_, error in graph.edges())
    mask = lemica.plan(graph, budget=(graph.num_steps + 2) // 2)
    lemica.enable(tiny.pipe, mask)
    latents = run(tiny, STEPS)
    assert torch.isfinite(latents).all()
    assert lemica.summary(tiny.pipe).mask == mask


def test_a_slot_that_changes_its_branch_is_computed_and_reported():
    """Skip-layer guidance takes the unconditional branch's place where guidance stops."""
    layer = diffusers.LayerSkipConfig([1], fqn="transformer_blocks", skip_attention=False, skip_ff=True)
    tiny = make("hunyuan_video15_skip_layer")
    tiny.pipe.guider = diffusers.guiders.SkipLayerGuidance(
        guidance_scale=6.0,
        stop=0.5,
        skip_layer_config=layer,
        skip_layer_guidance_start=0.34,
        skip_layer_guidance_stop=1.0,
    )
    steps = mask_of((0, 1, 2, 5), STEPS)
    lemica.enable(tiny.pipe, Mask(steps, kept="velocity", weights=hold(steps)))
    run(tiny, STEPS)
    assert lemica.summary(tiny.pipe).fallbacks == ((3, 1),)


@pytest.mark.parametrize(("name", "corrects"), [("flux", True), ("wan_unipc", False), ("cogvideox_ddim", False)])
def test_balanced_steps_need_no_plan_and_are_corrected_where_the_sampler_is_eulers(name, corrects):
    tiny = make(name)
    with lemica.enable(tiny.pipe, budget=3, spacing="balanced"):
        made = run(tiny, STEPS)
        summary = lemica.summary(tiny.pipe)
    levels = noise_levels(tiny.pipe.scheduler)
    steps = balanced_mask(3, STEPS, levels)
    assert (summary.mask.steps, summary.mask.origin, summary.fallbacks) == (steps, "balanced", ())
    mask = Mask(steps, "velocity", rule="damped").with_weights(levels, corrects)
    assert bool(mask.corrected_steps) is corrects
    with lemica.enable(tiny.pipe, mask):
        assert torch.equal(run(tiny, STEPS), made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give a mask or a budget"),
        ({"mask": 20}, "for a number of steps type budget=20"),
        ({"budget": 1}, "budget must be a whole number of steps, at least 2; got 1"),
        ({"budget": 20.0}, "budget must be a whole number"),
        ({"budget": 4, "model": "GPT"}, "the authors' models are "),
        ({"mask": all_computed(STEPS), "spacing": "balanced"}, "leave out spacing"),
        ({"budget": 4, "spacing": "balanced", "model": "FLUX.2"}, "leave out model"),
        ({"budget": 4, "spacing": "even"}, "spacing must be one of released, balanced; got 'even'"),
    ],
)
def test_what_enable_cannot_take_is_said_in_one_line(arguments, message):
    tiny = make("flux")
    with pytest.raises(ValueError, match=message) as refused:
        lemica.enable(tiny.pipe, **arguments)
    assert "\n" not in str(refused.value)


def test_a_call_that_begins_in_the_middle_reuses_with_a_forecast_too():
    """Three kept outputs are read where they are there; until then the newest is held."""
    tiny = make("flux_image_to_image")
    graph = lemica.calibrate(tiny.pipe, [dict(tiny.call, strength=1.0)], 20, max_gap=6, show_progress=False)
    lemica.enable(tiny.pipe, lemica.plan(graph, budget=8))
    run(tiny, 20)
    told = lemica.summary(tiny.pipe)
    assert len(told.fallbacks) <= 1
    assert len(told.reused_seconds) >= 6
