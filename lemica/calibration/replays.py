"""One recorded run and its replays with a stretch of steps reused: what calibration asks of a pipeline.

The uncached run is recorded once: what the denoiser returned at every step, by slot, and the latents. A replay is a run
of the same pipeline in which the record is played up to step i, the outputs of step i are held until step j, and from
there on the denoiser is computed, unless the replay ends there. The scheduler makes every step of it: whatever sampler
it is, the error of a stretch is the one that this sampler makes of it. Outputs are small: 0.7 GB for the 50 steps of
HunyuanVideo-1.5 at 720p in bfloat16, and as much for the latents in float32.

Every edge knows nothing of the path that leads to it: all steps before it are computed.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from lemica.calibration.edges import Errors, Work
from lemica.errors import Refused
from lemica.planning.graph import Edge
from lemica.reuse.hook import Call, Interceptor, Run, intercepted
from lemica.reuse.sampler import is_euler, noise_levels


@dataclass(frozen=True)
class Sampling:
    """A pipeline that is ready to denoise one sample, as often as it is asked to, always from the same noise.

    Args:
        start: goes from noise to clean latents, by way of the denoisers and the scheduler.
        denoisers: the modules that are called at every step.
        scheduler: the object whose ``step`` ends a step, or the original of its copies.
        timesteps_are_set: whether `start` does without ``set_timesteps``, which was called before.
    """

    start: Callable[[], Any]
    denoisers: Sequence[torch.nn.Module]
    scheduler: Any
    timesteps_are_set: bool = False

    def obeying(self, interceptor: Interceptor) -> None:
        """Run once under `interceptor`."""
        ends_early = suppress(RunEnds)
        inside = intercepted(self.denoisers, self.scheduler, interceptor, self.timesteps_are_set)
        with torch.no_grad(), ends_early, inside:
            self.start()


class RunEnds(Exception):
    """Raised through the pipeline where an interceptor has seen enough."""


class Record(Interceptor):
    """Of an uncached run of N steps, in CPU memory: N + 1 latents, and the denoiser's outputs by step and slot."""

    def __init__(self, on_forward: Callable[[], None]):
        self.on_forward, self.latents = on_forward, []

    def begin_run(self, run: Run, scheduler: Any) -> None:
        self.num_steps, self.sigmas, self.is_euler = run.num_steps, noise_levels(scheduler), is_euler(scheduler)
        self.outputs: list[list[Any]] = []
        self.kinds: list[list[Hashable]] = []
        self.latents: list[torch.Tensor] = []

    def call(self, call: Call) -> Any:
        output = call.compute()
        if call.slot == 0:
            self.outputs.append([])
            self.kinds.append([])
            self.on_forward()
        # A copy, because a pipeline may write into what its denoiser returned.
        self.outputs[-1].append(tree_map_only(torch.Tensor, lambda tensor: tensor.to("cpu", copy=True), output))
        self.kinds[-1].append(call.kind)
        self.device = next(leaf.device for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
        return output

    def end_step(self, run: Run, before: torch.Tensor | None, after: torch.Tensor) -> None:
        if run.first:
            raise Refused(
                f"this call begins at step {run.first} of {run.num_steps}: calibrate with one that begins with noise, "
                "such as strength=1.0"
            )
        if not self.latents:
            self.latents.append(before.to("cpu", copy=True))
        self.latents.append(after.to("cpu", copy=True))
        if run.step + 1 == run.num_steps:
            # What follows, decoding, is not measured.
            raise RunEnds

    def output(self, step: int, call: Call) -> Any:
        """What the denoiser returned at `step` to such a call, on its device; None where there was no such call."""
        if call.slot >= len(self.outputs[step]) or call.kind != self.kinds[step][call.slot]:
            return None
        output = self.outputs[step][call.slot]
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(self.device, copy=True), output)

    def error(self, latents: torch.Tensor, step: int) -> float:
        """Mean absolute difference from the latents before `step`, summed in float64."""
        return (latents.double() - self.latents[step].to(latents.device).double()).abs().mean().item()

    def products(self) -> list[list[float]]:
        """mean(y_s y_t) of the outputs y of all pairs of steps, over elements and slots: N x N, in float64."""
        total = torch.zeros(len(self.outputs), len(self.outputs), dtype=torch.float64)
        count = 0
        for slot in range(min(map(len, self.outputs))):
            rows = [_flat(outputs[slot]) for outputs in self.outputs]
            # Guidance that stops early leaves a smaller batch, the guided part first.
            common = torch.stack([row[: min(map(len, rows))] for row in rows])
            count += common.shape[1]
            # In slices: all of it in float64 would take four times the memory of the record.
            for part in common.split(1 << 16, dim=1):
                total += part.double() @ part.double().T
        return ((total + total.T) / 2 / count).tolist()


def _flat(output: Any) -> torch.Tensor:
    """All floating point numbers of an output in one row."""
    tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
    return torch.cat([tensor.flatten() for tensor in tensors])


class Replay(Interceptor):
    """The recorded run once more, with the steps between i and j reused.

    Args:
        end: the step before which the replay ends; N to go to the result.

    `errors` holds, for every edge i -> k that the replay has passed, the mean |x_k' - x_k| just before step k.
    """

    def __init__(self, record: Record, i: int, j: int, end: int, on_forward: Callable[[], None]):
        self.record, self.i, self.j, self.end, self.on_forward = record, i, j, end, on_forward
        self.errors: dict[int, float] = {}

    def call(self, call: Call) -> Any:
        played = self.record.output(min(call.step, self.i), call) if call.step < self.j else None
        if played is not None:
            return played
        if call.slot == 0:
            self.on_forward()
        return call.compute()

    def end_step(self, run: Run, before: torch.Tensor | None, after: torch.Tensor) -> None:
        following = run.step + 1
        if following == self.i + 1:
            self._refuse_other_latents(after, following)
        if following > self.i + 1 and (following <= self.j or following == self.end):
            self.errors[following] = self.record.error(after, following)
        if following == self.end:
            raise RunEnds

    def _refuse_other_latents(self, latents: torch.Tensor, step: int) -> None:
        """All before was played from the record: other latents would be taken for errors of reuse."""
        size = self.record.latents[step].double().abs().mean().item()
        if self.record.error(latents, step) > 1e-3 * size:
            raise Refused(
                "two calls with one seed differ: the sampler draws noise of its own, or the pipeline keeps something "
                "from call to call; calibrate with a sampler that draws from the generator it is given"
            )


class Trajectory:
    """One uncached run of N steps, and its replays with the steps of one edge reused.

    Args:
        sampling: the sample.
        on_forward: called after every step that computes the denoiser.
    """

    def __init__(self, sampling: Sampling, on_forward: Callable[[], None] = lambda: None):
        self.sampling, self.on_forward = sampling, on_forward
        self.record = Record(on_forward)
        sampling.obeying(self.record)
        made, wanted = len(self.record.latents) - 1, getattr(self.record, "num_steps", None)
        if made != wanted:
            raise Refused(
                f"the pipeline made {max(made, 0)} of the scheduler's {wanted} steps: it cannot be calibrated"
            )

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

    def _replay(self, i: int, j: int, end: int) -> dict[int, float]:
        replay = Replay(self.record, i, j, end, self.on_forward)
        self.sampling.obeying(replay)
        return replay.errors


def measure(sampling: Sampling, work: Work, max_gap: int, on_forward: Callable[[], None] = lambda: None) -> Errors:
    """Record one sample and run the replays of `work`."""
    trajectory = Trajectory(sampling, on_forward)
    local = [edge for i in work.starts for edge in trajectory.local_errors(i, max_gap)]
    final = [(i, j, trajectory.final_error(i, j)) for i, j in work.edges]
    record = trajectory.record
    return Errors(local, final, list(record.sigmas), record.products(), record.is_euler)
