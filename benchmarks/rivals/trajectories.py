"""Uncached runs of the calibration samples, with all that the rivals fit or plan on."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.rivals.bench import BRANCHES, Bench, Place
from benchmarks.rivals.stack import behind

SAMPLES = 8


@dataclass(frozen=True)
class Trajectory:
    """An uncached run of N steps.

    Args:
        sigmas: N + 1 noise levels, the last is 0.
        latents: N + 1 of (1, 32, T, H, W).
        guided: N guided velocities of the same shape.
        velocities: N of the same shape, by branch.
        inputs, outputs: N of (1, tokens, width), the image tokens before and after the blocks, by branch.
        modulated: N of (1, tokens, width), what the first block's attention is given, by branch.
    """

    sigmas: list[float]
    latents: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    velocities: dict[str, list[Tensor]] = field(default_factory=lambda: {branch: [] for branch in BRANCHES})
    inputs: dict[str, list[Tensor]] = field(default_factory=lambda: {branch: [] for branch in BRANCHES})
    outputs: dict[str, list[Tensor]] = field(default_factory=lambda: {branch: [] for branch in BRANCHES})
    modulated: dict[str, list[Tensor]] = field(default_factory=lambda: {branch: [] for branch in BRANCHES})


def trajectories(bench: Bench, num_steps: int, samples: int = SAMPLES) -> list[Trajectory]:
    """The runs of so many samples."""
    return [trajectory(bench, index, num_steps) for index in range(samples)]


def trajectory(bench: Bench, sample: int, num_steps: int) -> Trajectory:
    """The run of one sample."""
    bench.scheduler.set_timesteps(sigmas=bench.sigmas(num_steps))
    kept = Trajectory(bench.scheduler.sigmas.tolist())
    velocity, guided_velocity = bench.velocity, bench.guided_velocity

    def keep_blocks(image: Tensor, temb: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        kept.inputs[bench.branch].append(image.float())
        kept.modulated[bench.branch].append(modulated(bench, image, temb).float())
        output = compute()
        kept.outputs[bench.branch].append(output.float())
        return output

    def keep_velocity(place: Place, branch: str) -> Tensor:
        kept.velocities[branch].append(velocity(place, branch))
        return kept.velocities[branch][-1]

    def keep_guided(place: Place) -> Tensor:
        kept.latents.append(place.latents)
        kept.guided.append(guided_velocity(place))
        return kept.guided[-1]

    with (
        behind(bench, keep_blocks),
        bench.in_place_of("velocity", keep_velocity),
        bench.in_place_of("guided_velocity", keep_guided),
    ):
        kept.latents.append(bench.run(bench.sample(sample), num_steps).latents)
    return kept


@torch.no_grad()
def modulated(bench: Bench, image: Tensor, temb: Tensor) -> Tensor:
    """What the first block's attention is given."""
    return bench.blocks[0].norm1(image, emb=temb)[0]
