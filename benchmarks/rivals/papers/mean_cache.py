"""MeanCache (arXiv 2601.19961): a stretch is crossed with its average velocity, estimated from a cached JVP.

With z the latents, v the guided velocity and r > t > s noise levels, of which r lies K steps before t,

    J = (z_t - z_r - (t - r) v_r) / (t - r)^2,        u(t, s) = v_t + (s - t) J,

and every step from t to s goes along u; with K = 0 it goes along v_t. How far an edge t -> s with a K is from the true
average velocity of uncached runs is its cost, and the path of B computed steps has the least sum of costs to the power
of gamma. The authors' K are 0 to 5 here; they have not published their planner, and name no gamma but 1, 2, 4 and 5.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from benchmarks.rivals.bench import Bench, Place
from benchmarks.rivals.trajectories import Trajectory

SPANS = (0, 1, 2, 3, 4, 5)
LONGEST_GAP = 12


class Edge(NamedTuple):
    """From one computed step to the next, the end included, with a K."""

    start: int
    stop: int
    span: int


def average_velocity(
    sigmas: Sequence[float], latents: Sequence[Tensor], velocities: Sequence[Tensor], edge: Edge
) -> Tensor:
    """u from an edge's start to its end; `latents` and `velocities` reach to its start."""
    newest = velocities[edge.start]
    earlier = edge.start - edge.span
    if edge.span == 0 or earlier < 0:
        return newest
    step = sigmas[edge.start] - sigmas[earlier]
    jvp = (latents[edge.start] - latents[earlier] - step * velocities[earlier]) / step**2
    return newest + (sigmas[edge.stop] - sigmas[edge.start]) * jvp


def edge_costs(runs: Sequence[Trajectory]) -> dict[tuple[int, int], tuple[float, int]]:
    """The least cost of every edge, and its K."""
    num_steps, found = len(runs[0].guided), {}
    for start in range(num_steps):
        for stop in range(start + 1, min(start + LONGEST_GAP, num_steps) + 1):
            spans = SPANS if stop > start + 1 else SPANS[:1]
            found[start, stop] = min(
                (float(np.mean([_cost(run, Edge(start, stop, span)) for run in runs])), span) for span in spans
            )
    return found


def _cost(run: Trajectory, edge: Edge) -> float:
    """Mean absolute distance to the true average velocity; the computed step alone costs nothing."""
    if edge.stop == edge.start + 1:
        return 0.0
    span = run.sigmas[edge.stop] - run.sigmas[edge.start]
    true = (run.latents[edge.stop] - run.latents[edge.start]) / span
    return float((true - average_velocity(run.sigmas, run.latents, run.guided, edge)).abs().mean())


def plan(costs: dict[tuple[int, int], tuple[float, int]], num_steps: int, budget: int, gamma: float) -> list[Edge]:
    """The path of so many computed steps, the last of which is the last step."""
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
    path = (*best[num_steps - 1][1], num_steps)
    return [Edge(start, stop, costs[start, stop][1]) for start, stop in pairwise(path)]


def mean_cache(bench: Bench, edges: Sequence[Edge]) -> AbstractContextManager[None]:
    """Inside, the bench has MeanCache on for one run."""
    compute, by_start = bench.guided_velocity, {edge.start: edge for edge in edges}
    latents: list[Tensor] = []
    velocities: list[Tensor] = []
    going: list[Tensor] = []

    def velocity(place: Place) -> Tensor:
        latents.append(place.latents)
        if place.step in by_start:
            edge = by_start[place.step]
            velocities.append(compute(place))
            going[:] = [average_velocity(bench.scheduler.sigmas.tolist(), latents, velocities, edge)]
            return going[0] if edge.stop > edge.start + 1 else velocities[-1]
        velocities.append(going[0])
        return going[0]

    return bench.in_place_of("guided_velocity", velocity)
