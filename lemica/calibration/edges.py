"""Which replays measure the edges of one sample, what they cost, and how their errors become edges. No torch.

exact edges  every edge is replayed to the end: it costs the error of the result, as LeMiCa (arXiv 2511.00090) defines
fast edges   every edge is replayed to its end only, which computes no step: it costs the error there, the local error,
             times the gain, by which an error at step j grows or shrinks until the result. The gain is measured at a
             few late steps and interpolated in the logarithm; before them it is that of the first
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from lemica.masks import Target
from lemica.moments import Moments
from lemica.planning.graph import Edge, ErrorGraph, edge_pairs

EXACT, FAST = "exact", "fast"
# The gain changes little, and replays from early steps are dear. In bfloat16 they mislead, too: what rounding grows to
# over many steps is taken for a gain. So a few replays of long gaps, whose errors are large, in the last two fifths.
GAIN_REPLAYS = 4
GAIN_GAP = 8
FIRST_GAIN = 0.6


@dataclass(frozen=True)
class Work:
    """Replays of one sample: of `starts` all edges to where they end, of `edges` (i, j) each to the result."""

    starts: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]

    def part(self, index: int, count: int) -> "Work":
        """The share of part `index` of `count`, of about equal cost: the replays are sorted by it."""
        return Work(self.starts[index::count], self.edges[index::count])

    def forwards(self, num_steps: int) -> int:
        """Forwards through the blocks: the trajectory, and for every edge the steps from its end on."""
        return num_steps + sum(num_steps - end for _, end in self.edges)


@dataclass
class Errors:
    """What the replays of one sample gave.

    Mean absolute errors of latents by edge (i, j): local, just before step j, and final, of the result. And the noise
    levels and products of the uncached run's velocities, as in ``Moments``, and whether the sampler is Euler's.
    """

    local: list[Edge]
    final: list[Edge]
    sigmas: list[float]
    products: list[list[float]]
    is_euler: bool


def work_for(mode: str, num_steps: int, max_gap: int) -> Work:
    """All replays of one sample, those with the most forwards first."""
    if mode == EXACT:
        return Work((), tuple(sorted(edge_pairs(num_steps, max_gap), key=lambda edge: edge[1])))
    return Work(tuple(range(num_steps - 2)), tuple(gain_edges(num_steps, max_gap)))


def gain_edges(num_steps: int, max_gap: int) -> list[tuple[int, int]]:
    """The edges (i, j) at whose ends j the gain is measured: evenly spread over the last two fifths of the steps."""
    ends = np.linspace(FIRST_GAIN * (num_steps - 1), num_steps - 1, GAIN_REPLAYS).round().astype(int)
    return [(end - min(GAIN_GAP, max_gap, end), end) for end in np.unique(np.maximum(ends, 2)).tolist()]


def sample_graph(errors: Errors, mode: str, target: Target, max_gap: int) -> ErrorGraph:
    """The error graph of one sample."""
    return ErrorGraph.from_edges(
        target=target,
        num_steps=len(errors.products),
        max_gap=max_gap,
        edges=errors.final if mode == EXACT else fast_edges(errors),
        moments=Moments(errors.sigmas, errors.products),
        is_euler=errors.is_euler,
    )


def fast_edges(errors: Errors) -> list[Edge]:
    """Local errors times gains; a gain that cannot be measured, because nothing changed, counts for nothing."""
    gain = _interpolated_gain(errors)
    return [(i, j, error * gain(j)) for i, j, error in errors.local]


def _interpolated_gain(errors: Errors):
    local = {(i, j): error for i, j, error in errors.local}
    measured = sorted((j, final / local[i, j]) for i, j, final in errors.final if final > 0 and local[i, j] > 0)
    if not measured:
        return lambda _: 1.0
    ends, gains = zip(*measured, strict=True)
    return lambda j: math.exp(np.interp(j, ends, np.log(gains)))


def joined(parts: Iterable[Errors]) -> Errors:
    """The errors of a sample whose work was done in parts; each part has run the whole uncached run."""
    parts = list(parts)
    local, final = ([edge for part in parts for edge in getattr(part, name)] for name in ("local", "final"))
    return replace(parts[0], local=local, final=final)
