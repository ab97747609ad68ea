"""One recorded run and its replays with a stretch of steps reused: what calibration asks of a pipeline.

The uncached run is recorded once: what the denoiser returned at every step, and the latents. A replay is a run of the
same pipeline in which the record is played up to step i, the output of step i is held until step j, and from there on
the denoiser is computed, unless the replay ends there. Held outputs are velocities: small, 0.7 GB for the 50 steps of
HunyuanVideo-1.5 at 720p in bfloat16, and as much for the latents in float32.

Every edge knows nothing of the path that leads to it: all steps before it are computed.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from lemica.calibration.edges import Errors, Work
from lemica.planning.graph import Edge
from lemica.reuse.hook import Interceptor, intercepted


@dataclass(frozen=True)
class Run:
    """A pipeline that is ready to denoise one sample, as often as it is asked to.

    Args:
        start: goes from noise to clean latents, by way of `denoiser` and `scheduler`.
        denoiser: the module that is called at every step.
        scheduler: the object whose ``step`` ends a step, or the original of its copies.
        sigmas: the N + 1 noise levels, from 1 to 0.
    """

    start: Callable[[], Any]
    denoiser: torch.nn.Module
    scheduler: Any
    sigmas: tuple[float, ...]

    def obeying(self, interceptor: Interceptor) -> None:
        """Run once under `interceptor`."""
        ends_early = suppress(_ReplayEnds)
        with torch.no_grad(), ends_early, intercepted(self.denoiser, self.scheduler, interceptor):
            self.start()


class _ReplayEnds(Exception):
    """Raised through the pipeline where a replay has seen enough."""


class Record(Interceptor):
    """Of an uncached run of N steps, in CPU memory: N + 1 latents, and the denoiser's outputs by step and slot."""

    def __init__(self, on_forward: Callable[[], None]):
        super().__init__()
        self.on_forward = on_forward
        self.outputs: list[list[Any]] = []
        self.latents: list[torch.Tensor] = []

    def call(self, compute):
        output = compute()
        if self.slot == 0:
            self.outputs.append([])
            self.on_forward()
        # A copy, because a pipeline may write into what its denoiser returned.
        self.outputs[-1].append(tree_map_only(torch.Tensor, lambda tensor: tensor.to("cpu", copy=True), output))
        return output

    def end_step(self, before, after):
        if not self.latents:
            self.device = before.device
            self.latents.append(before.to("cpu", copy=True))
        self.latents.append(after.to("cpu", copy=True))

    def output(self, step: int, slot: int) -> Any:
        """What the denoiser returned, on the device where it did."""
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(self.device, copy=True), self.outputs[step][slot])

    def error(self, latents: torch.Tensor, step: int) -> float:
        """Mean absolute difference from the latents before `step`, summed in float64."""
        return (latents.double() - self.latents[step].to(latents.device).double()).abs().mean().item()


class Replay(Interceptor):
    """The recorded run once more, with the steps between i and j reused.

    Args:
        end: the step before which the replay ends; N to go to the result.

    `errors` holds, for every edge i -> k that the replay has passed, the mean |x_k' - x_k| just before step k.
    """

    def __init__(self, record: Record, i: int, j: int, end: int, on_forward: Callable[[], None]):
        super().__init__()
        self.record, self.i, self.j, self.end, self.on_forward = record, i, j, end, on_forward
        self.errors: dict[int, float] = {}

    def call(self, compute):
        if self.step < self.j:
            return self.record.output(min(self.step, self.i), self.slot)
        if self.slot == 0:
            self.on_forward()
        return compute()

    def end_step(self, before, after):
        following = self.step + 1
        if following > self.i + 1 and (following <= self.j or following == self.end):
            self.errors[following] = self.record.error(after, following)
        if following == self.end:
            raise _ReplayEnds


class Trajectory:
    """One uncached run of N steps, and its replays with the steps of one edge reused.

    Args:
        run: the sample.
        on_forward: called after every step that computes the denoiser.
    """

    def __init__(self, run: Run, on_forward: Callable[[], None] = lambda: None):
        self.run, self.on_forward = run, on_forward
        self.record = Record(on_forward)
        run.obeying(self.record)

    @property
    def num_steps(self) -> int:
        return len(self.record.outputs)

    def local_errors(self, i: int, max_gap: int) -> list[Edge]:
        """(i, j, mean |x_j' - x_j|) of every edge i -> j, where x_j' comes of reusing until j; computes no step."""
        end = min(i + max_gap, self.num_steps - 1)
        errors = self._replay(i, end, end)
        return [(i, j, errors[j]) for j in range(i + 2, end + 1)]

    def final_error(self, i: int, j: int) -> float:
        """mean |x0' - x0| with only the steps between i and j reused: LeMiCa's edge (arXiv 2511.00090); N - j steps."""
        return self._replay(i, j, self.num_steps)[self.num_steps]

    def velocity_products(self) -> list[list[float]]:
        """mean(v_s v_t) of all pairs of steps, of the velocities by which the sampler went: N x N, in float64."""
        widths = torch.tensor([after - before for before, after in pairwise(self.run.sigmas)], dtype=torch.float64)
        latents = torch.stack([tensor.flatten() for tensor in self.record.latents])
        products = torch.zeros(len(widths), len(widths), dtype=torch.float64)
        # In slices: all of it in float64 would take four times the memory of the record.
        for part in latents.split(1 << 16, dim=1):
            velocities = part.double().diff(dim=0) / widths[:, None]
            products += velocities @ velocities.T
        products /= latents.shape[1]
        return ((products + products.T) / 2).tolist()

    def _replay(self, i: int, j: int, end: int) -> dict[int, float]:
        replay = Replay(self.record, i, j, end, self.on_forward)
        self.run.obeying(replay)
        return replay.errors


def measure(run: Run, work: Work, max_gap: int, on_forward: Callable[[], None] = lambda: None) -> Errors:
    """Record one sample and run the replays of `work`."""
    trajectory = Trajectory(run, on_forward)
    local = [edge for i in work.starts for edge in trajectory.local_errors(i, max_gap)]
    final = [(i, j, trajectory.final_error(i, j)) for i, j in work.edges]
    return Errors(local, final, list(run.sigmas), trajectory.velocity_products())
