"""The hook on denoiser and scheduler: what it sees, what it may change, and that it leaves both as it found them."""

import inspect

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from toy_sampler import Denoiser, Scheduler, sample

from lemica.reuse.hook import HOOK_NAME, Interceptor, intercepted


class Watching(Interceptor):
    """Notes what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, compute):
        output = compute()
        self.seen.append((self.step, self.slot, output[0][0].item()))
        return output

    def end_step(self, before, after):
        self.seen.append((self.step, "ends", before[0].item(), after[0].item()))


class Holding(Interceptor):
    """Computes the first step only."""

    def call(self, compute):
        if self.step == 0:
            self.output = compute()
        return self.output


@pytest.fixture
def parts():
    return Denoiser(), Scheduler()


def test_a_run_that_is_only_watched_is_the_run_itself(parts):
    expected = sample(*parts)
    with intercepted(*parts, Interceptor()):
        assert torch.equal(sample(*parts), expected)


@pytest.mark.parametrize("options", [{}, {"return_dict": False}], ids=["object", "tuple"])
def test_every_call_and_every_steps_end_is_seen_in_order(parts, options):
    watching = Watching()
    with intercepted(*parts, watching):
        sample(*parts, steps=2, **options)
    assert watching.seen == [(0, 0, 0.25), (0, "ends", 1, 0.75), (1, 0, 0.1875), (1, "ends", 0.75, 0.5625)]
    assert (watching.step, watching.slot) == (2, 0)


def test_the_calls_of_a_step_are_numbered(parts):
    watching = Watching()
    with intercepted(*parts, watching):
        sample(*parts, steps=2, scales=(1.0, 2.0, 3.0))
    assert [event[:2] for event in watching.seen if event[1] != "ends"] == [
        (s, slot) for s in (0, 1) for slot in range(3)
    ]


def test_a_call_that_is_not_computed_runs_nothing_of_the_module(parts):
    denoiser, scheduler = parts
    with intercepted(denoiser, scheduler, Holding()):
        latents = sample(denoiser, scheduler)
    assert denoiser.runs == 1
    assert torch.equal(latents, torch.full((2,), 0.25))


def test_what_other_hooks_do_happens_when_the_call_is_computed_and_only_then(parts):
    """As those of group offload, which bring weights to the device."""
    denoiser, scheduler = parts
    happened = []

    class Other(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            happened.append("before")
            return args, kwargs

        def post_forward(self, module, output):
            happened.append("after")
            return output

    HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(Other(), "other")
    with intercepted(denoiser, scheduler, Holding()):
        sample(denoiser, scheduler)
    assert happened == ["before", "after"]
    sample(denoiser, scheduler, steps=1)
    assert happened == ["before", "after"] * 2
    assert list(denoiser._diffusers_hook.hooks) == ["other"]


def test_the_samplers_step_shows_its_own_signature(parts):
    """Pipelines ask it which arguments it takes."""
    denoiser, scheduler = parts
    before = inspect.signature(scheduler.step)
    with intercepted(denoiser, scheduler, Interceptor()):
        assert inspect.signature(scheduler.step) == before
        assert isinstance(scheduler, Scheduler)


def state_of(denoiser, scheduler):
    return type(scheduler), dict(vars(scheduler)), dict(vars(denoiser)) | {"runs": 0}, denoiser.forward


def test_denoiser_and_scheduler_are_left_as_they_were(parts):
    before = state_of(*parts)
    with intercepted(*parts, Interceptor()):
        assert state_of(*parts) != before
        assert HOOK_NAME in parts[0]._diffusers_hook.hooks
    assert state_of(*parts) == before
    with intercepted(*parts, Interceptor()):
        sample(*parts)
    assert state_of(*parts) == before


class Failing(Interceptor):
    """Fails at step 1, in the call or at the step's end."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def call(self, compute):
        return self._fail_in("call") or compute()

    def end_step(self, before, after):
        self._fail_in("end_step")

    def _fail_in(self, where):
        if self.step == 1 and where == self.where:
            raise ZeroDivisionError


@pytest.mark.parametrize("where", ["call", "end_step"])
def test_they_are_left_as_they_were_after_an_error_too(parts, where):
    before, expected = state_of(*parts), sample(*parts)
    with pytest.raises(ZeroDivisionError), intercepted(*parts, Failing(where)):
        sample(*parts)
    assert state_of(*parts) == before
    assert torch.equal(sample(*parts), expected)


def test_they_are_left_as_they_were_when_the_denoiser_fails(parts):
    denoiser, scheduler = parts
    before = state_of(*parts)
    with pytest.raises(TypeError), intercepted(denoiser, scheduler, Interceptor()):
        denoiser()
    assert state_of(*parts) == before


def test_a_registry_that_was_there_stays(parts):
    denoiser, scheduler = parts
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    with intercepted(denoiser, scheduler, Interceptor()):
        sample(denoiser, scheduler)
    assert denoiser._diffusers_hook is registry
    assert registry.hooks == {}
