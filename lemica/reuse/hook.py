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
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from lemica.reuse.calls import WatchedCalls
from lemica.reuse.watch import owner_of, unwatch, watch

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
        shapes: of all tensors among the arguments: a batch that shrinks has other shapes.
        compute: runs the module and gives its output.
    """

    step: int
    done: int
    slot: int
    shapes: Hashable
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
        scheduler: any object with ``set_timesteps(...)``, ``timesteps`` and ``step(output, t, latents)``, or the
            original of copies that the pipeline makes.
        interceptor: what becomes of the calls.
    """

    def __init__(self, denoisers: Sequence[torch.nn.Module], scheduler: Any, interceptor: Interceptor):
        self.denoisers, self.scheduler, self.interceptor = list(denoisers), scheduler, interceptor
        self._calls = [WatchedCalls(denoiser, self._on_call) for denoiser in dict.fromkeys(self.denoisers)]
        self._running = threading.Lock()
        self._thread: int | None = None
        self._run: Run | None = None
        self._has_begun = False

    def attach(self) -> None:
        """Raises ValueError where one of them is under another hook."""
        if owner_of(self.scheduler) is not None:
            raise ValueError(_TAKEN)
        self._watch_calls()
        names = {"set_timesteps": self._on_set_timesteps, "step": self._on_step}
        found = {name: watcher for name, watcher in names.items() if hasattr(self.scheduler, name)}
        watch(self.scheduler, found, owner=self)

    def detach(self) -> None:
        """All is as it was before; copies of the scheduler that are still about do what the original does."""
        for calls in self._calls:
            calls.give_back()
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
        self._thread, self._has_begun = threading.get_ident(), False
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
        for calls in self._calls:
            calls.take_place()

    @property
    def _is_here(self) -> bool:
        # Another pipeline may call the same denoiser in another thread.
        return self._thread == threading.get_ident()

    def _on_set_timesteps(self, set_timesteps: Callable, args: tuple, kwargs: dict) -> Any:
        result = set_timesteps(*args, **kwargs)
        if self._is_here:
            self._begin(_owner(set_timesteps))
        return result

    def _on_call(self, call: Callable, args: tuple, kwargs: dict) -> Any:
        if self._is_here and not self._has_begun:
            # The time steps were set before.
            self._begin(self.scheduler)
        if not self._is_here or self._run is None:
            return call(*args, **kwargs)
        run = self._run
        compute = functools.partial(call, *args, **kwargs)
        output = self.interceptor.call(Call(run.step, run.done, run.slot, _shapes((args, kwargs)), compute))
        run.slot += 1
        return output

    def _on_step(self, step: Callable, args: tuple, kwargs: dict) -> Any:
        result = step(*args, **kwargs)
        run, scheduler = self._run, _owner(step)
        if self._is_here and run is not None and run.leader in (None, scheduler):
            run.leader = scheduler
            named = dict(zip(_parameters(step.func), (*step.args, *args), strict=False)) | kwargs
            self._end_step(run, named, result[0])
        return result

    def _begin(self, scheduler: Any) -> None:
        self._end()
        self._has_begun = True
        run = Run(len(scheduler.timesteps))
        self.interceptor.begin_run(run, scheduler)
        self._run = run

    def _end_step(self, run: Run, arguments: dict, after: torch.Tensor) -> None:
        if run.done == 0:
            run.first = _step_of(run.leader, arguments.get("timestep"))
        self.interceptor.end_step(run, arguments.get("sample"), after)
        run.done += 1
        run.slot = 0
        if run.step == run.num_steps:
            self._end()

    def _end(self) -> None:
        if self._run is not None:
            self._run = None
            self.interceptor.end_run()


@contextmanager
def intercepted(denoisers: Sequence[torch.nn.Module], scheduler: Any, interceptor: Interceptor) -> Iterator[None]:
    """Inside, a run obeys `interceptor`; afterwards denoisers and scheduler are as before. Arguments as in ``Hook``."""
    hook = Hook(denoisers, scheduler, interceptor)
    hook.attach()
    try:
        with hook.running():
            yield
    finally:
        hook.detach()


def _owner(method: functools.partial) -> Any:
    return method.args[0]


@functools.cache
def _parameters(method: Callable) -> tuple[str, ...]:
    """The names of a function's parameters; asked for once, which takes longer than all else here."""
    return tuple(inspect.signature(method).parameters)


def _shapes(arguments: Any) -> Hashable:
    return tuple(leaf.shape for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor))


def _step_of(scheduler: Any, timestep: Any) -> int:
    """The number of the step just done: a pipeline that begins with an image does not begin with step 0."""
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return begin
    if timestep is None:
        return 0
    matches = (torch.as_tensor(scheduler.timesteps) == timestep).nonzero().flatten().tolist()
    return matches[0] if matches else 0
