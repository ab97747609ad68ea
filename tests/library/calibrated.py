"""A small calibrated graph of velocities that a test can see."""

from functools import cache

import numpy as np

from lemica.masks import Target
from lemica.moments import Moments
from lemica.planning.graph import ErrorGraph, edge_pairs

NUM_STEPS, MAX_GAP = 9, 4
SIGMAS = tuple((np.linspace(1, 0, NUM_STEPS + 1) ** 1.5).tolist())
TARGET = Target("demo", "0123abcd", SIGMAS, "float32")


def velocities(seed: int = 0, count: int = 400) -> np.ndarray:
    """Smooth random trajectories, (N, count)."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.outer(np.arange(NUM_STEPS), rng.uniform(0.1, 1.2, count)) + rng.uniform(0, 6, count))
    return waves + 0.05 * rng.standard_normal((NUM_STEPS, count))


def moments_of(v: np.ndarray, sigmas=SIGMAS) -> Moments:
    products = v @ v.T / v.shape[1]
    return Moments(sigmas, (products + products.T) / 2)


@cache
def calibrated_graph(seed: int = 0) -> ErrorGraph:
    """Random errors that grow with the gap, and the moments of ``velocities``."""
    rng = np.random.default_rng(seed)
    edges = [(i, j, float(rng.uniform(1, 2) * (j - i))) for i, j in edge_pairs(NUM_STEPS, MAX_GAP)]
    sizes = {"num_steps": NUM_STEPS, "max_gap": MAX_GAP, "samples": 3, "is_euler": False}
    return ErrorGraph.from_edges(target=TARGET, edges=edges, moments=moments_of(velocities(seed)), **sizes)
