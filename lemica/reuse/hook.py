"""The one hook, on any pipeline that has denoisers and a scheduler: it sees every denoiser call and every step's end.

A run is a sequence of steps. ``scheduler.set_timesteps`` begins it; within a step the pipeline calls its denoiser once
or more: call number 0, 1, ... is the call's slot (separate guidance branches have slots of their own, two experts that
take turns share them); ``scheduler.step`` ends the step. What becomes of the calls is an interceptor's choice:

    >>> with intercepted([pipe.transformer], pipe.scheduler, Interceptor()):
    ...     pipe("a red circle moves left")
"""

import functools
import inspect
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from lemica.reuse.calls import WatchedCalls, WatchedNames
from lemica.reuse.watch import owner_of, unwatch, watch

# Arguments in which diffusers' denoisers keep what they need at the next step.
_STATE = ("kv_cache", "kv_caches", "kv_cache_mode")
_TAKEN = (
    "LeMiCa is at work on this denoiser or scheduler already, maybe through another pipeline that has it, too: call "
    "lemica.disable on that pipeline first"
)


@dataclass
class Run:
    """Where one run of a sampler is.

    Args:
        num_steps: steps of the scheduler, N; 2N - 1 for one that calls its denoiser twice per step.
        first: the step that the run began with; known after it, and 0 until then.
        done: steps that are done.
        slot: the number of the next denoiser call within the step.
        leader: the scheduler whose steps count, the first to step: pipelines may step copies besides.
    """

    num_steps: int
    first: int = 0
    done: int = 0
    slot: int = 0
    leader: Any = None

    @property
    def step(self) -> int:
        return self.first + self.done


@dataclass(frozen=True)
class Call:
    """One denoiser call.

    Args:
        step, slot: which; `done` counts the run's steps where `step` counts the scheduler's.
        kind: the name that the pipeline gives the call, and the shapes of all tensors among the arguments: calls of
            other branches, or of a batch that has shrunk, are not alike.
        compute: runs the module and gives its output.
    """

    step: int
    done: int
    slot: int
    kind: Hashable
    compute: Callable[[], Any]


class Interceptor:
    """What becomes of the denoiser calls of a run; this one computes them all."""

    def begin_run(self, run: Run, scheduler: Any) -> None:
        """A run begins: `scheduler` has its time steps."""

    def call(self, call: Call) -> Any:
        """The output of one denoiser call."""
        return call.compute()

    def end_step(self, run: Run, before: torch.Tensor | None, after: torch.Tensor) -> None:
        """The scheduler has made the latents `after` of the latents `before`; `run.step` is still this step."""

    def end_run(self) -> None:
        """The run is over, or given up: nothing of it may stay."""


class Hook:
    """Denoisers and a scheduler under an interceptor.

    Args:
        denoisers: the modules that the pipeline calls at every step; several take turns, as Wan 2.2's experts do.
        scheduler: any object with ``set_timesteps(...)``, ``timesteps`` and ``step(output, timestep, sample)``, whose
            parameters have these names, or the original of copies that the pipeline makes.
        interceptor: what becomes of the calls.
    """

    def __init__(self, denoisers: Sequence[torch.nn.Module], scheduler: Any, interceptor: Interceptor):
        self.denoisers, self.scheduler, self.interceptor = list(denoisers), scheduler, interceptor
        modules = list(dict.fromkeys(self.denoisers))
        self._names = {id(module): WatchedNames(module) for module in modules}
        self._calls = [WatchedCalls(module, partial(self._on_call, self._names[id(module)])) for module in modules]
        self._running = threading.Lock()
        self._thread: int | None = None
        self._run: Run | None = None
        self._last_timestep: Any = None

    def attach(self) -> None:
        """Raises ValueError where one of them is under another hook, and where there is no scheduler."""
        if not hasattr(self.scheduler, "step"):
            raise ValueError(f"there is no scheduler with a step, but {self.scheduler!r:.60}: give one")
        if owner_of(self.scheduler) is not None:
            raise ValueError(_TAKEN)
        self._watch_calls()
        names = {"set_timesteps": self._on_set_timesteps, "step": self._on_step}
        found = {name: watcher for name, watcher in names.items() if hasattr(self.scheduler, name)}
        watch(self.scheduler, found, owner=self)

    def detach(self) -> None:
        """All is as it was before; copies of the scheduler that are still about do what the original does."""
        for watched in (*self._calls, *self._names.values()):
            watched.give_back()
        unwatch(self.scheduler)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, what happens in this thread is a run; outside, nothing is intercepted and nothing of a run is kept.

        Raises RuntimeError where a run is on: two would share what is kept, and the scheduler.
        """
        # Again, because they may have been compiled since.
        self._watch_calls()
        if not self._running.acquire(blocking=False):
            raise RuntimeError(
                "this pipeline is running already, in another thread or around this call: give every thread a pipeline "
                "of its own, or wait until it is done"
            )
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._end()
            self._thread = None
            self._running.release()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within ``running``: inside, nothing is intercepted, as outside of the run."""
        thread, self._thread = self._thread, None
        try:
            yield
        finally:
            self._thread = thread

    def _watch_calls(self) -> None:
        if not all(calls.is_free for calls in self._calls):
            raise ValueError(_TAKEN)
        for watched in (*self._calls, *self._names.values()):
            watched.take_place()

    def begin(self) -> None:
        """Within ``running``: a run whose time steps were set before."""
        self._begin(self.scheduler)

    @property
    def _is_here(self) -> bool:
        # Another pipeline may call the same denoiser in another thread.
        return self._thread == threading.get_ident()

    def _on_set_timesteps(self, set_timesteps: Callable, args: tuple, kwargs: dict) -> Any:
        result = set_timesteps(*args, **kwargs)
        if self._is_here:
            self._begin(_owner(set_timesteps))
        return result

    def _on_call(self, name: WatchedNames, call: Callable, args: tuple, kwargs: dict) -> Any:
        if not self._is_here or self._run is None:
            return call(*args, **kwargs)
        run = self._run
        _refuse_state(kwargs)
        kind = (name.current, *_shapes((args, kwargs)))
        output = self.interceptor.call(Call(run.step, run.done, run.slot, kind, partial(call, *args, **kwargs)))
        run.slot += 1
        return output

    def _on_step(self, step: Callable, args: tuple, kwargs: dict) -> Any:
        result = step(*args, **kwargs)
        run, scheduler = self._run, _owner(step)
        if self._is_here and run is not None and run.leader in (None, scheduler):
            run.leader = scheduler
            named = dict(zip(_parameters(step.func), (*step.args, *args), strict=False)) | kwargs
            self._end_step(run, named, result if isinstance(result, torch.Tensor) else result[0])
        return result

    def _begin(self, scheduler: Any) -> None:
        self._end()
        run = Run(len(scheduler.timesteps))
        self.interceptor.begin_run(run, scheduler)
        self._run = run

    def _end_step(self, run: Run, arguments: dict, after: torch.Tensor) -> None:
        if run.slot == 0:
            raise RuntimeError(
                "the pipeline has made a step without a call of its denoiser that LeMiCa sees: it has another one, or "
                "calls it in a way of its own"
            )
        timestep = arguments.get("timestep")
        # The same object: comparing numbers would wait for the device.
        if isinstance(timestep, torch.Tensor) and timestep is self._last_timestep:
            raise RuntimeError(
                "the pipeline steps its scheduler several times per time step: LeMiCa counts one step each"
            )
        self._last_timestep = timestep
        if run.done == 0:
            run.first = _step_of(run.leader, timestep)
        self.interceptor.end_step(run, arguments.get("sample"), after)
        run.done += 1
        run.slot = 0
        if run.step == run.num_steps:
            self._end()

    def _end(self) -> None:
        if self._run is not None:
            self._run = self._last_timestep = None
            self.interceptor.end_run()


@contextmanager
def intercepted(
    denoisers: Sequence[torch.nn.Module], scheduler: Any, interceptor: Interceptor, timesteps_are_set: bool = False
) -> Iterator[None]:
    """Inside, a run obeys `interceptor`; afterwards denoisers and scheduler are as before.

    Args:
        denoisers, scheduler, interceptor: as in ``Hook``.
        timesteps_are_set: whether the run does without ``set_timesteps``, which was called before.
    """
    hook = Hook(denoisers, scheduler, interceptor)
    hook.attach()
    try:
        with hook.running():
            if timesteps_are_set:
                hook.begin()
            yield
    finally:
        hook.detach()


def _owner(method: partial) -> Any:
    return method.args[0]


@functools.cache
def _parameters(method: Callable) -> tuple[str, ...]:
    """The names of a function's parameters; asked for once, which takes longer than all else here."""
    return tuple(inspect.signature(method).parameters)


def _shapes(arguments: Any) -> Hashable:
    return tuple(leaf.shape for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor))


def _step_of(scheduler: Any, timestep: Any) -> int:
    """The number of the step just done: a pipeline that begins with an image does not begin with step 0."""
    following = getattr(scheduler, "step_index", None)
    if following is not None:
        return following - 1
    if timestep is None:
        return 0
    matches = (torch.as_tensor(scheduler.timesteps) == timestep).nonzero().flatten().tolist()
    return matches[0] if matches else 0


def _refuse_state(kwargs: dict) -> None:
    """Raises ValueError for a call that leaves something in its arguments for the next step, which may not come."""
    if any(kwargs.get(name) is not None for name in _STATE):
        raise ValueError(
            "this pipeline hands keys and values on from step to step, which a reused step would miss: call it with "
            "use_kv_cache=False, or without reference images"
        )
