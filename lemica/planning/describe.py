"""Masks and error graphs as text."""

from itertools import pairwise

import numpy as np

from lemica.forecasts import FORECASTS
from lemica.masks import Mask, Target, strip
from lemica.planning.graph import ErrorGraph
from lemica.planning.paths import feasible_budgets
from lemica.planning.routes import edge_costs, held_costs


def mask_lines(name: str, mask: Mask, graph: ErrorGraph | None = None) -> list[str]:
    """A mask as text: what it is, what it costs by `graph` if there is one, and its strip (■ computed, · reused).

    Args:
        name: what to call it, such as its file.
        mask: the mask.
        graph: a graph of as many steps; ValueError if it has another number.
    """
    model = mask.target.model or "any model"
    head = f"{name}: {model}, {mask.budget} of {mask.num_steps} steps, {mask.method}, {mask.made_by or mask.origin}"
    return [head, *([_cost_line(name, mask, graph)] if graph else []), strip(mask.steps)]


def graph_lines(name: str, graph: ErrorGraph) -> list[str]:
    """A graph as text: what it is, and one line per gap."""
    budgets = feasible_budgets(graph.num_steps, graph.max_gap)
    return [
        f"{name}: {graph.target.model or 'unnamed model'}, {graph.num_steps} steps, {graph.samples} samples, "
        f"velocity held, budgets {budgets[0]} to {budgets[-1]}",
        f"{'gap':>5}{'edges':>7}{'least':>11}{'median':>11}{'worst':>11}  worst edge",
        *(_gap_line(graph, gap) for gap in range(2, graph.max_gap + 1)),
    ]


def _gap_line(graph: ErrorGraph, gap: int) -> str:
    errors = graph.errors[: graph.num_steps - gap, gap]
    start = int(errors.argmax())
    numbers = "".join(f"{value:>11.4g}" for value in (errors.min(), np.median(errors), errors.max()))
    return f"{gap:>5}{len(errors):>7}{numbers}  {start} -> {start + gap}"


def refuse_other_steps(name: str, mask: Mask, graph: ErrorGraph) -> None:
    """Raise ValueError for a mask of another number of steps than the graph's."""
    if mask.num_steps != graph.num_steps:
        raise ValueError(
            f"{name} is for {mask.num_steps} steps, the graph for {graph.num_steps}: "
            f"give a graph of {mask.num_steps} steps"
        )


def _cost_line(name: str, mask: Mask, graph: ErrorGraph) -> str:
    refuse_other_steps(name, mask, graph)
    edges = list(pairwise(mask.computed_steps))
    too_long = next((f"{i} -> {j}" for i, j in edges if j - i > graph.max_gap), None)
    if too_long:
        no_cost = f"no cost: edge {too_long} is longer than the graph's gaps, which go to {graph.max_gap}"
        return no_cost + other_target(mask.target, graph.target)
    foreseen = _can_be_foreseen(mask, graph)
    costs = (
        edge_costs(graph, mask.with_weights(graph.target.sigmas, graph.is_euler))
        if foreseen
        else held_costs(graph, mask)
    )
    worst = max(range(len(edges)), key=costs.__getitem__)
    line = f"worst edge {edges[worst][0]} -> {edges[worst][1]} {costs[worst]:.4g}, total {sum(costs):.4g}"
    return line + ("" if foreseen else ", as if the velocity were held") + other_target(mask.target, graph.target)


def _can_be_foreseen(mask: Mask, graph: ErrorGraph) -> bool:
    """Whether the graph knows what a stretch costs with the mask's own rule: held velocities need no moments."""
    sum_to_1 = all(abs(sum(row) - 1) < 1e-6 for row in mask.weights or () if row)
    if mask.kept != "velocity" or mask.rule not in FORECASTS or not sum_to_1:
        return False
    return mask.rule == "hold" or graph.moments is not None


def other_target(mine: Target, graphs: Target) -> str:
    """In what the graph's target is not the mask's, in words; nothing where all that both know agrees."""
    differing = [
        name
        for name in ("model", "config", "sigmas", "dtype")
        if Target(**{name: getattr(mine, name)}).difference(Target(**{name: getattr(graphs, name)}))
    ]
    return f", by a graph of other {', '.join(differing)}" if differing else ""
