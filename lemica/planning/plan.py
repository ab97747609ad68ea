"""Planning step masks: the best steps for a budget in an error graph, with the weights of the reused ones."""

from collections.abc import Iterable

from lemica.forecasts import DEFAULT_FORECAST, PLANNING_HISTORY, forecast_named, interpolation
from lemica.masks import Mask, StepMask, corrected, mask_of
from lemica.planning.graph import ErrorGraph
from lemica.planning.paths import minimax_paths, minimum_sum_paths
from lemica.planning.routes import forecast_routes

OBJECTIVES = {"minimax": minimax_paths, "sum": minimum_sum_paths}


def plan(
    graph: ErrorGraph,
    budget: int,
    forecast: str = DEFAULT_FORECAST,
    history: int | None = None,
    objective: str = "minimax",
    made_by: str = "lemica.plan",
    correct: bool = True,
) -> Mask:
    """The best mask for a budget.

    Args:
        graph: the errors of the model and sampler that the mask is for.
        budget: number of computed steps.
        forecast: the rule for reused steps, "hold", "damped", "taylor-step" or "fitted".
        history: how many computed steps the fitted forecast reads; by default three near the newest one and two further
            away, planned as if all read two.
        objective: "minimax" makes the worst stretch as harmless as possible, "sum" makes the sum of costs smallest.
        made_by: how the mask is made, for people.
        correct: whether computed steps pay back what forecasts have missed (``lemica.masks.corrected``), where the
            graph's sampler is Euler's. Held velocities stay as they are. The steps are the same with and without.

    Raises ValueError for a budget that has no path, and for a graph that the forecast cannot be planned on.

    Example:
        >>> from lemica.masks import Target
        >>> edges = [(0, 2, 0.3), (0, 3, 0.7), (1, 3, 0.1), (1, 4, 0.4), (2, 4, 0.2)]
        >>> graph = ErrorGraph.from_edges(target=Target("demo"), num_steps=5, max_gap=3, edges=edges)
        >>> plan(graph, budget=3, forecast="hold").computed_steps
        (0, 2, 4)
    """
    return plan_many(graph, [budget], forecast, history, objective, made_by, correct)[budget]


def plan_many(
    graph: ErrorGraph,
    budgets: Iterable[int] | None = None,
    forecast: str = DEFAULT_FORECAST,
    history: int | None = None,
    objective: str = "minimax",
    made_by: str = "lemica.plan",
    correct: bool = True,
) -> dict[int, Mask]:
    """The best mask for each of several budgets, of all feasible ones by default, for the price of the largest.

    Arguments and errors as in ``plan``.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r:.60} is not known: choose one of {', '.join(OBJECTIVES)}")
    routes = forecast_routes(graph, forecast_named(forecast, graph.moments, history or PLANNING_HISTORY))
    return {
        budget: with_forecast(mask_of(path, graph.num_steps), graph, forecast, history, made_by, correct)
        for budget, path in OBJECTIVES[objective](routes, budgets).items()
    }


def with_forecast(
    steps: StepMask,
    graph: ErrorGraph,
    forecast: str = DEFAULT_FORECAST,
    history: int | None = None,
    made_by: str = "lemica.with_forecast",
    correct: bool = True,
) -> Mask:
    """A mask of given steps that keeps velocities, with a forecast's weights.

    Args:
        steps: one boolean per step, as from ``balanced_mask``, ``uniform_mask`` or ``step_mask``.
        graph: the graph of the model and sampler that the mask is for.
        forecast, history, made_by, correct: as in ``plan``.

    Raises ValueError for steps of another number than the graph's, weights that are too large for a mask, and a graph
    that the forecast's weights cannot be taken from.

    Example:
        >>> from lemica.masks import Target, uniform_mask
        >>> edges = [(0, 2, 0.3), (0, 3, 0.7), (1, 3, 0.1), (1, 4, 0.4), (2, 4, 0.2)]
        >>> graph = ErrorGraph.from_edges(target=Target("demo"), num_steps=5, max_gap=3, edges=edges)
        >>> with_forecast(uniform_mask(3, 5), graph, "hold").weights
        ((), (1.0,), (), (1.0,), ())
    """
    if len(steps) != graph.num_steps:
        raise ValueError(f"the mask is for {len(steps)} steps, the graph for {graph.num_steps}: take one of as many")
    rows = forecast_named(forecast, graph.moments, history).rows(steps)
    if correct and graph.is_euler and forecast != "hold":
        rows = corrected(rows, steps, graph.target.sigmas, interpolation(graph.moments))
    origin = f"{made_by}; graph by {graph.made_by}" if graph.made_by else made_by
    return Mask(steps, kept="velocity", weights=rows, rule=forecast, made_by=origin, target=graph.target)
