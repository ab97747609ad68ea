"""How long planning may take, with a wide margin: a slip to another order of growth fails, a slow machine does not."""

import time

import numpy as np
import pytest

from lemica.masks import Target
from lemica.moments import Moments
from lemica.planning.graph import ErrorGraph
from lemica.planning.plan import plan_many

# Seconds, some twenty times what one core of 2020 needs.
CASES = [
    # num_steps, max_gap, budgets (None: all), forecast, history, seconds
    (50, 8, None, "hold", 1, 1.0),
    (50, 8, None, "fitted", 2, 2.0),
    (50, 8, None, "fitted", 4, 15.0),
    (1000, 16, [250], "hold", 1, 30.0),
]


def random_graph(num_steps: int, max_gap: int) -> ErrorGraph:
    """Random errors, and the moments of velocities that walk at random."""
    generator = np.random.default_rng(0)
    sigmas = np.linspace(1, 0, num_steps + 1)
    velocities = generator.standard_normal((num_steps, 100)).cumsum(axis=0)
    products = velocities @ velocities.T / 100
    moments = Moments(sigmas, (products + products.T) / 2)
    errors = generator.random((num_steps, max_gap + 1))
    return ErrorGraph(Target("random", sigmas=tuple(sigmas)), num_steps, max_gap, 1, errors, moments)


@pytest.mark.parametrize(("num_steps", "max_gap", "budgets", "forecast", "history", "seconds"), CASES)
def test_planning_is_quick(num_steps, max_gap, budgets, forecast, history, seconds):
    graph = random_graph(num_steps, max_gap)
    start = time.perf_counter()
    masks = plan_many(graph, budgets, forecast, history)
    assert time.perf_counter() - start < seconds
    assert [mask.budget for mask in masks.values()] == list(masks)
