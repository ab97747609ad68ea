"""The hook on denoisers and scheduler: what it sees, what it may change, and that it leaves all as it found it."""

import copy
import inspect
from contextlib import contextmanager, nullcontext

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from toy_sampler import Denoiser, Scheduler, sample

from lemica.reuse.hook import Hook, Interceptor, intercepted


class Watching(Interceptor):
    """Notes what it sees."""

    def __init__(self):
        self.seen = []

    def begin_run(self, run, scheduler):
        self.seen.append(("begins", run.num_steps, len(scheduler.timesteps)))

    def call(self, call):
        output = call.compute()
        self.seen.append((call.step, call.slot, output[0][0].item()))
        return output

    def end_step(self, run, before, after):
        self.seen.append((run.step, "ends", before[0].item(), after[0].item()))

    def end_run(self):
        self.seen.append(("over",))


class Holding(Interceptor):
    """Computes the first step only."""

    def call(self, call):
        if call.step == 0:
            self.output = call.compute()
        return self.output


@pytest.fixture
def parts():
    return Denoiser(), Scheduler()


def hooked(parts, interceptor):
    denoiser, scheduler = parts
    return intercepted([denoiser], scheduler, interceptor)


def test_a_run_that_is_only_watched_is_the_run_itself(parts):
    expected = sample(*parts)
    with hooked(parts, Interceptor()):
        assert torch.equal(sample(*parts), expected)


@pytest.mark.parametrize("options", [{}, {"return_dict": False}], ids=["object", "tuple"])
def test_every_call_and_every_steps_end_is_seen_in_order(parts, options):
    watching = Watching()
    with hooked(parts, watching):
        sample(*parts, steps=2, **options)
    assert watching.seen == [
        ("begins", 2, 2),
        *[(0, 0, 0.25), (0, "ends", 1, 0.75)],
        *[(1, 0, 0.1875), (1, "ends", 0.75, 0.5625)],
        ("over",),
    ]


def test_the_calls_of_a_step_are_numbered(parts):
    watching = Watching()
    with hooked(parts, watching):
        sample(*parts, steps=2, scales=(1.0, 2.0, 3.0))
    calls = [event[:2] for event in watching.seen if event[0] in (0, 1) and event[1] != "ends"]
    assert calls == [(s, slot) for s in (0, 1) for slot in range(3)]


def test_two_denoisers_that_take_turns_share_the_slots(parts):
    other, watching = Denoiser(), Watching()
    with intercepted([parts[0], other], parts[1], watching):
        scheduler = parts[1]
        scheduler.set_timesteps(2)
        for denoiser, t in zip((parts[0], other), scheduler.timesteps, strict=True):
            scheduler.step(denoiser(torch.ones(1))[0], t, torch.ones(1))
    assert [event[:2] for event in watching.seen[1:4:2]] == [(0, 0), (1, 0)]


def test_a_run_that_begins_later_says_with_which_step(parts):
    watching = Watching()
    with hooked(parts, watching):
        sample(*parts, steps=5, first=3)
    assert [event[0] for event in watching.seen if "ends" in event] == [3, 4]
    assert watching.seen[-1] == ("over",)


def test_time_steps_that_were_set_before_are_a_run_too(parts):
    denoiser, scheduler = parts
    scheduler.set_timesteps(1)
    watching = Watching()
    with intercepted([denoiser], scheduler, watching, timesteps_are_set=True):
        scheduler.step(denoiser(torch.ones(1))[0], 1, torch.ones(1))
    assert watching.seen[0] == ("begins", 1, 1) and watching.seen[-1] == ("over",)


def test_steps_of_a_second_copy_of_the_scheduler_do_not_count(parts):
    """Pipelines that make video and sound step two schedulers at once."""
    denoiser, scheduler = parts
    watching = Watching()
    with hooked(parts, watching):
        other = copy.deepcopy(scheduler)
        other.set_timesteps(2)
        scheduler.set_timesteps(2)
        for t in scheduler.timesteps:
            velocity = denoiser(torch.ones(1))[0]
            scheduler.step(velocity, t, torch.ones(1))
            other.step(velocity, t, torch.ones(1))
    assert [event[0] for event in watching.seen if "ends" in event] == [0, 1]


def test_arguments_of_the_samplers_step_are_known_by_name():
    """CogVideoX's DPM sampler has another order."""

    class Turned(Scheduler):
        def step(self, model_output, old, timestep, back, sample, **options):
            return (sample - model_output,)

    denoiser, scheduler, watching = Denoiser(), Turned(), Watching()
    with intercepted([denoiser], scheduler, watching):
        scheduler.set_timesteps(1)
        scheduler.step(denoiser(torch.ones(1))[0], None, 1, None, torch.full((1,), 5.0))
    assert watching.seen[2] == (0, "ends", 5.0, 4.875)


def test_a_call_that_is_not_computed_runs_nothing_of_the_module(parts):
    denoiser, _ = parts
    with hooked(parts, Holding()):
        latents = sample(*parts)
    assert denoiser.runs == 1
    assert torch.equal(latents, torch.full((2,), 0.25))


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_what_other_hooks_do_happens_when_the_call_is_computed_and_only_then(parts, first):
    """As those of group offload, which bring weights to the device; whenever they came."""
    denoiser, scheduler = parts
    happened = []

    class Other(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            happened.append("before")
            return args, kwargs

        def post_forward(self, module, output):
            happened.append("after")
            return output

    def register():
        HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(Other(), "other")

    hook = Hook([denoiser], scheduler, Holding())
    if first:
        register()
    hook.attach()
    if not first:
        register()
    with hook.running():
        sample(denoiser, scheduler)
    hook.detach()
    assert happened == ["before", "after"]
    sample(denoiser, scheduler, steps=1)
    assert happened == ["before", "after"] * 2
    assert list(denoiser._diffusers_hook.hooks) == ["other"]


def test_the_samplers_step_shows_its_own_signature(parts):
    """Pipelines ask it which arguments it takes."""
    _, scheduler = parts
    before = inspect.signature(scheduler.step)
    with hooked(parts, Interceptor()):
        assert inspect.signature(scheduler.step) == before
        assert isinstance(scheduler, Scheduler)
        assert (type(scheduler).__name__, type(scheduler).__module__) == ("Scheduler", Scheduler.__module__)


def state_of(denoiser, scheduler):
    return type(denoiser), type(scheduler), dict(vars(scheduler)), dict(vars(denoiser)) | {"runs": 0}


def test_denoiser_and_scheduler_are_left_as_they_were(parts):
    before = state_of(*parts)
    with hooked(parts, Interceptor()):
        assert state_of(*parts) != before
    assert state_of(*parts) == before
    with hooked(parts, Interceptor()):
        sample(*parts)
    assert state_of(*parts) == before


class Failing(Interceptor):
    """Fails at step 1, in the call or at the step's end."""

    def __init__(self, where):
        self.where, self.is_over = where, False

    def call(self, call):
        return self._fail_in("call", call.step) or call.compute()

    def end_step(self, run, before, after):
        self._fail_in("end_step", run.step)

    def end_run(self):
        self.is_over = True

    def _fail_in(self, where, step):
        if step == 1 and where == self.where:
            raise ZeroDivisionError


@pytest.mark.parametrize("where", ["call", "end_step"])
def test_they_are_left_as_they_were_after_an_error_too(parts, where):
    before, expected, failing = state_of(*parts), sample(*parts), Failing(where)
    with pytest.raises(ZeroDivisionError), hooked(parts, failing):
        sample(*parts)
    assert state_of(*parts) == before
    assert failing.is_over
    assert torch.equal(sample(*parts), expected)


def test_a_copy_of_the_scheduler_that_is_left_over_does_what_the_scheduler_does(parts):
    with hooked(parts, Holding()):
        left_over = copy.deepcopy(parts[1])
    denoiser, _ = parts
    assert torch.equal(sample(denoiser, left_over), sample(*parts))


def test_a_second_hook_on_the_same_denoiser_is_refused_and_changes_nothing(parts):
    other = Scheduler()
    with hooked(parts, Interceptor()):
        with pytest.raises(ValueError, match=r"LeMiCa is at work on this denoiser .* call lemica\.disable"):
            Hook([parts[0]], other, Interceptor()).attach()
        assert vars(other) == {}


def test_a_call_before_the_time_steps_are_set_is_no_part_of_the_run(parts):
    denoiser, scheduler = parts
    watching = Watching()
    with hooked(parts, watching):
        denoiser(torch.ones(1))
        sample(denoiser, scheduler, steps=1)
    assert [event[:2] for event in watching.seen] == [("begins", 1), (0, 0), (0, "ends"), ("over",)]


def test_a_step_without_a_call_that_is_seen_is_told(parts):
    """A pipeline that holds another denoiser would run uncached in silence."""
    other = Denoiser()
    with pytest.raises(RuntimeError, match="a step without a call of its denoiser"), hooked(parts, Interceptor()):
        sample(other, parts[1])


def test_a_denoiser_that_keeps_something_for_the_next_step_is_refused(parts):
    class Keeping(Denoiser):
        def forward(self, latents, scale=1.0, kv_cache=None):
            return super().forward(latents, scale)

    denoiser, scheduler = Keeping(), parts[1]
    with intercepted([denoiser], scheduler, Interceptor()):
        scheduler.set_timesteps(2)
        denoiser(torch.ones(1), kv_cache=None)
        with pytest.raises(ValueError, match="use_kv_cache=False"):
            denoiser(torch.ones(1), kv_cache={})


def test_the_name_that_a_pipeline_gives_a_call_is_part_of_its_kind():
    class Named(Denoiser):
        @contextmanager
        def cache_context(self, name):
            yield

    class Kinds(Interceptor):
        def __init__(self):
            self.seen = []

        def call(self, call):
            self.seen.append(call.kind)
            return call.compute()

    denoiser, scheduler, kinds = Named(), Scheduler(), Kinds()
    before = dict(vars(denoiser))
    with intercepted([denoiser], scheduler, kinds):
        scheduler.set_timesteps(1)
        for name in ("cond", "uncond"):
            with denoiser.cache_context(name):
                denoiser(torch.ones(3))
        denoiser(torch.ones(3))
        assert copy.deepcopy(denoiser).cache_context.__func__ is Named.cache_context
    shape = torch.Size([3])
    assert kinds.seen == [("cond", shape), ("uncond", shape), ("", shape)]
    assert dict(vars(denoiser)) | {"runs": 0} == before


def test_a_scheduler_that_steps_several_times_per_time_step_is_refused(parts):
    denoiser, scheduler = parts
    with hooked(parts, Interceptor()):
        scheduler.set_timesteps(3)
        timestep = scheduler.timesteps[0]
        for view in range(2):
            velocity = denoiser(torch.ones(1))[0]
            with pytest.raises(RuntimeError, match="several times per time step") if view else nullcontext():
                scheduler.step(velocity, timestep, torch.ones(1))


def test_what_is_no_scheduler_is_refused_and_leaves_the_denoiser_free(parts):
    with pytest.raises(ValueError, match="there is no scheduler with a step, but None"):
        Hook([parts[0]], None, Interceptor()).attach()
    with hooked(parts, Interceptor()):
        sample(*parts)
