"""Time the planner on random error graphs: python -m scripts.benchmark_planner [--case N D B] [--history K].

With a history it plans for fitted forecasts, whose states are tuples of the last K computed steps.
"""

import argparse
import resource
import sys
import time

import numpy as np

from lemica.graph import ErrorGraph
from lemica.moments import Moments
from lemica.path import feasible_budgets, lexicographic_minimax_paths, minimum_sum_paths
from lemica.routes import fitted_routes

SOLVERS = {"minimax": lexicographic_minimax_paths, "sum": minimum_sum_paths}
# N, D, B; budget 0 stands for every feasible one.
DEFAULT_CASES = [(50, 8, 20), (50, 8, 0), (1000, 16, 250), (1000, 16, 0)]


def random_graph(num_steps: int, max_gap: int, distinct: int, seed: int, moments: Moments | None = None) -> ErrorGraph:
    """Weights uniform in [0, 1), or with distinct > 0 drawn from that many values, which forces ties."""
    weights = np.random.default_rng(seed).random((num_steps, max_gap + 1))
    if distinct:
        weights = np.floor(weights * distinct)
    return ErrorGraph("random", num_steps, max_gap, "velocity", "hold", 1, weights, moments=moments)


def random_moments(num_steps: int, seed: int) -> Moments:
    """Of velocities that walk at random."""
    velocities = np.random.default_rng(seed).standard_normal((num_steps, 100)).cumsum(axis=0)
    products = velocities @ velocities.T
    return Moments(np.linspace(1, 0, num_steps + 1), (products + products.T) / 200)


def peak_mib() -> float:
    """Peak resident memory of this process so far, interpreter and numpy included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3, type=int, action="append", metavar=("N", "D", "B"), help="B = 0: every one")
    parser.add_argument("--objective", choices=SOLVERS, default="minimax")
    parser.add_argument("--history", type=int, default=0, metavar="K", help="plan for fitted forecasts (default: not)")
    parser.add_argument("--distinct", type=int, default=0, help="number of distinct weights; 0 draws real numbers")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case; the median is printed")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    print(f"{'N':>6} {'D':>4} {'B':>6} {'seconds':>9} {'peak MiB':>9}")
    for num_steps, max_gap, budget in args.case or DEFAULT_CASES:
        moments = random_moments(num_steps, args.seed) if args.history else None
        graph = random_graph(num_steps, max_gap, args.distinct, args.seed, moments)
        budgets = [budget] if budget else feasible_budgets(graph)
        seconds = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            routes = fitted_routes(graph, args.history) if args.history else None
            SOLVERS[args.objective](graph, budgets, routes)
            seconds.append(time.perf_counter() - start)
        print(
            f"{num_steps:6} {max_gap:4} {budget or 'every':>6} {np.median(seconds):9.4f} {peak_mib():9.0f}", flush=True
        )


if __name__ == "__main__":
    main()
