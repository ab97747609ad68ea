"""MeanCache (arXiv 2601.19961): velocities are carried on by a cached JVP, the change of the average velocity.

Of the steps so far, z are the latents, v the guided velocities that were used, forecast ones included, and s the noise
levels. At a reused step i, with a window of K steps,

    avg = (z_i - z_{i-K}) / (s_i - s_{i-K}),        J = (avg - v_{i-K}) / (s_i - s_{i-K}),
    v_i = v_{i-1} + (s_{i+1} - s_i) J,

as the authors' program has it; K = 1 holds. How far the average velocity from a computed step to the next is from that
of uncached runs is the cost of such an edge with its K, and the path of B computed steps has the least sum of costs to
the power of gamma. Their planner is not published, and this one is made from the paper; they name gamma 1, 2, 4 and 5.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from benchmarks.rivals.bench import Bench, Place
from benchmarks.rivals.papers.plans import NoPlan
from benchmarks.rivals.trajectories import Trajectory

WINDOWS = (1, 2, 3, 4, 5, 6)
LONGEST_GAP = 12


class Edge(NamedTuple):
    """From one computed step to the next, the end included, with a K."""

    start: int
    stop: int
    window: int


def carried_on(sigmas: Sequence[float], latents: Sequence[Tensor], velocities: Sequence[Tensor], window: int) -> Tensor:
    """The velocity of a reused step: `latents` reach to it, `velocities` to the step before it."""
    step = len(velocities)
    first = max(0, step - window)
    span = sigmas[step] - sigmas[first]
    jvp = ((latents[step] - latents[first]) / span - velocities[first]) / span
    return velocities[-1] + (sigmas[step + 1] - sigmas[step]) * jvp


def edge_costs(runs: Sequence[Trajectory]) -> dict[tuple[int, int], tuple[float, int]]:
    """The least cost of every edge, and its K."""
    num_steps, found = len(runs[0].guided), {}
    for start in range(num_steps):
        for stop in range(start + 1, min(start + LONGEST_GAP, num_steps) + 1):
            windows = WINDOWS if stop > start + 1 else WINDOWS[:1]
            found[start, stop] = min(
                (float(np.mean([_cost(run, Edge(start, stop, window)) for run in runs])), window) for window in windows
            )
    return found


def _cost(run: Trajectory, edge: Edge) -> float:
    """Mean absolute error of the average velocity, if all before the edge was computed."""
    latents, velocities = run.latents[: edge.start + 1], run.guided[: edge.start + 1]
    for step in range(edge.start, edge.stop):
        if step > edge.start:
            velocities = [*velocities, carried_on(run.sigmas, latents, velocities, edge.window)]
        latents = [*latents, latents[-1] + (run.sigmas[step + 1] - run.sigmas[step]) * velocities[-1]]
    error = (latents[-1] - run.latents[edge.stop]).abs().mean()
    return float(error) / abs(run.sigmas[edge.stop] - run.sigmas[edge.start])


def plan(costs: dict[tuple[int, int], tuple[float, int]], num_steps: int, budget: int, gamma: float) -> list[Edge]:
    """The path of so many computed steps, the last of which is the last step; raises NoPlan where there is none."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for _ in range(budget - 1):
        best = {
            stop: min(
                (total + costs[start, stop][0] ** gamma, (*path, stop))
                for start, (total, path) in best.items()
                if (start, stop) in costs
            )
            for stop in range(1, num_steps)
            if any((start, stop) in costs for start in best)
        }
    if num_steps - 1 not in best:
        raise NoPlan(budget)
    path = (*best[num_steps - 1][1], num_steps)
    return [Edge(start, stop, costs[start, stop][1]) for start, stop in pairwise(path)]


class MeanCache:
    """The rule, for one run."""

    def __init__(self, bench: Bench, compute: Callable[[Place], Tensor], edges: Sequence[Edge]):
        self.bench, self.compute = bench, compute
        self.window = {step: edge.window for edge in edges for step in range(edge.start + 1, edge.stop)}
        self.latents: list[Tensor] = []
        self.velocities: list[Tensor] = []

    def __call__(self, place: Place) -> Tensor:
        self.latents.append(place.latents)
        if place.step in self.window:
            sigmas = self.bench.scheduler.sigmas.tolist()
            velocity = carried_on(sigmas, self.latents, self.velocities, self.window[place.step])
        else:
            velocity = self.compute(place)
        self.velocities.append(velocity)
        return velocity


def mean_cache(bench: Bench, edges: Sequence[Edge]) -> AbstractContextManager[None]:
    """Inside, the bench has MeanCache on for one run."""
    return bench.in_place_of("guided_velocity", MeanCache(bench, bench.guided_velocity, edges))
