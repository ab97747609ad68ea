"""The fitted forecast: weights and errors against plain least squares, plans against brute force, mask files."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hyvideo.commons.infer_state import FITTED, ReuseRule, StepMask, initialize_infer_state, reuse_weights

from lemica import plan
from lemica.__main__ import main as lemica
from lemica.graph import ErrorGraph, edge_pairs, merge_graphs, read_graph, write_graph
from lemica.masks import Mask, read_mask, write_mask
from lemica.moments import RIDGE, Moments
from lemica.path import lexicographic_minimax_paths, minimum_sum_paths
from lemica.routes import fitted_costs, fitted_routes

N, D, KEEPS = 9, 4, 3
SIGMAS = np.linspace(1, 0, N + 1) ** 1.5


def velocities(seed: int = 0, count: int = 400) -> np.ndarray:
    """Smooth random trajectories, (N, count)."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.outer(np.arange(N), rng.uniform(0.1, 1.2, count)) + rng.uniform(0, 6, count))
    return waves + 0.05 * rng.standard_normal((N, count))


def moments_of(v: np.ndarray) -> Moments:
    products = v @ v.T / v.shape[1]
    return Moments(SIGMAS, (products + products.T) / 2)


def graph_with_moments(seed: int = 0) -> ErrorGraph:
    moments, rng = moments_of(velocities(seed)), np.random.default_rng(seed)
    edges = [(i, j, float(rng.uniform(1, 2) * (j - i))) for i, j in edge_pairs(N, D)]
    settings = dict(model="demo", num_steps=N, max_gap=D, reuse="velocity")
    return ErrorGraph.from_edges(edges=edges, moments=moments, **settings)


def path_of(mask: StepMask) -> list[int]:
    return [step for step, computed in enumerate(mask) if computed]


def test_weights_are_those_of_least_squares_with_a_sum_of_one():
    v, path = velocities(), [0, 2, 3, 5, 8]
    weights = moments_of(v).reuse_weights(path, KEEPS)
    assert [len(each) for each in weights] == [0, 1, 0, 0, 3, 0, 3, 3, 0]
    assert weights[1] == (1.0,)
    differences = (v[[2, 3]] - v[5]).T
    ridge = np.sqrt(RIDGE * (differences**2).sum() / 2) * np.eye(2)
    rows, goals = np.vstack([differences, ridge]), np.append(v[7] - v[5], [0, 0])
    older = np.linalg.lstsq(rows, goals, rcond=None)[0]
    assert weights[7] == pytest.approx((*older, 1 - older.sum()))


def test_a_stretch_costs_its_edge_times_what_fitting_saves_on_the_velocities():
    v, graph = velocities(), graph_with_moments()
    routes = fitted_routes(graph, KEEPS)
    weights = graph.moments.reuse_weights([0, 2, 3, 7, 8], KEEPS)
    widths = np.diff(SIGMAS)
    fitted = sum(widths[s] * (np.array(weights[s]) @ v[[0, 2, 3]] - v[s]) for s in (4, 5, 6))
    held = sum(widths[s] * (v[3] - v[s]) for s in (4, 5, 6))
    state = routes.follow[routes.follow[0, 2], 1]
    saved = np.sqrt((fitted**2).mean() / (held**2).mean())
    assert 0 < saved < 1
    assert routes.weights[state, 4] == pytest.approx(graph.weight(3, 7) * saved)
    costs = fitted_costs(graph, [0, 2, 3, 7, 8], KEEPS)
    assert costs == pytest.approx([graph.weight(0, 2), 0, graph.weight(3, 7) * saved, 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keeps", [1, 2, 3])
def test_plans_are_the_best_of_all_paths(seed, keeps):
    graph = graph_with_moments(seed)
    routes = fitted_routes(graph, keeps)

    def costs(path: tuple[int, ...]) -> list[float]:
        state, found = 0, []
        for i, j in itertools.pairwise(path):
            found.append(routes.weights[state, j - i])
            state = routes.follow[state, j - i]
        assert routes.ends[state]
        return found

    for budget in (4, 6, 8):
        paths = [(0, *inner, N - 1) for inner in itertools.combinations(range(1, N - 1), budget - 2)]
        paths = [path for path in paths if all(j - i <= D for i, j in itertools.pairwise(path))]
        worst_first = min(paths, key=lambda path: sorted(costs(path), reverse=True))
        least = min(paths, key=lambda path: sum(costs(path)))
        assert tuple(lexicographic_minimax_paths(graph, [budget], routes)[budget]) == worst_first
        assert tuple(minimum_sum_paths(graph, [budget], routes)[budget]) == least
        assert fitted_costs(graph, least, keeps) == pytest.approx(costs(least))


def test_with_one_kept_velocity_there_is_nothing_to_fit():
    graph = graph_with_moments()
    assert lexicographic_minimax_paths(graph, routes=fitted_routes(graph, 1)) == lexicographic_minimax_paths(graph)


def test_moments_are_read_back_to_the_bit_and_averaged(tmp_path):
    graphs = [graph_with_moments(0), replace(graph_with_moments(1), samples=3)]
    write_graph(graphs[0], tmp_path / "graph.json")
    found = read_graph(tmp_path / "graph.json").moments
    assert np.array_equal(found.products, graphs[0].moments.products)
    assert np.array_equal(found.sigmas, SIGMAS)
    mean = merge_graphs(graphs).moments
    assert mean.products == pytest.approx((graphs[0].moments.products + 3 * graphs[1].moments.products) / 4)


def test_velocities_that_never_change_are_held():
    constant = moments_of(np.ones((N, 5)))
    assert constant.reuse_weights([0, 1, 4, 8], 2)[2:4] == ((0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"products": [[1.0]]},
        {"sigmas": [[1.0] * (N + 1)] * 2},
        {"products": "none"},
        {"sigmas": [1, 0]},
        {"sigmas": ["a"] * (N + 1)},
    ],
)
def test_a_graph_file_with_broken_moments_is_refused(tmp_path, change):
    path = tmp_path / "graph.json"
    write_graph(graph_with_moments(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"graph.json: sigmas and products do not make moments .* lemica calibrate"):
        read_graph(path)


@pytest.mark.parametrize("changes", [{"moments": None}, {"reuse": "residual"}])
def test_a_graph_that_cannot_be_fitted_is_refused_with_what_to_type(changes):
    graph = graph_with_moments()
    settings = {name: getattr(graph, name) for name in ("model", "num_steps", "max_gap", "reuse", "moments")}
    with pytest.raises(ValueError, match="calibrate --reuse velocity"):
        fitted_routes(ErrorGraph.from_edges(edges=graph.edges(), **(settings | changes)), KEEPS)


# ---- mask files


class Arguments:
    """What argparse would give."""

    def __init__(self, **values):
        vars(self).update(enable_cache=True, cache_type="lemica", **values)


def fitted_mask(path) -> Mask:
    graph = graph_with_moments()
    mask = Mask("demo", N, (0, 2, 3, 5, 8), "planned", "velocity", "hold")
    write_mask(plan.fitted(mask, graph.moments, 4), path)
    return read_mask(path)


def test_a_mask_file_brings_its_weights_to_the_run(tmp_path):
    mask = fitted_mask(tmp_path / "mask.json")
    rule = initialize_infer_state(Arguments(lemica_mask=str(tmp_path / "mask.json"))).rule
    assert rule == ReuseRule("velocity", FITTED)
    assert rule.weights == mask.weights == reuse_weights(mask.steps, SIGMAS[:-1].tolist(), rule)
    assert [len(row) for row in rule.weights] == [0, 1, 0, 0, 3, 0, 4, 4, 0]


def test_the_plan_of_a_fitted_forecast_is_shown_with_what_it_costs(tmp_path, capsys):
    write_graph(graph_with_moments(), tmp_path / "graph.json")
    mask = str(tmp_path / "mask.json")
    budget = ["--budget", "5", "--forecast", "fitted", "--history", "3"]
    lemica(["plan", str(tmp_path / "graph.json"), *budget, "-o", mask])
    planned = capsys.readouterr().out.splitlines()[1]
    lemica(["show", mask, "--graph", str(tmp_path / "graph.json")])
    assert capsys.readouterr().out.splitlines()[1] == planned
    costs = fitted_costs(graph_with_moments(), read_mask(mask).computed_steps, 3)
    assert f"{max(costs):.4g}, total {sum(costs):.4g}" in planned
    assert max(map(len, read_mask(mask).weights)) == 3


def test_the_fitted_forecast_needs_a_mask_file_with_weights(tmp_path):
    with pytest.raises(
        ValueError, match="--lemica_mask MASK, written by python -m lemica plan GRAPH --forecast fitted"
    ):
        initialize_infer_state(Arguments(lemica_step=4, lemica_reuse="velocity", lemica_forecast=FITTED))
    plain = tmp_path / "plain.json"
    write_mask(Mask("demo", N, (0, 2, 3, 5, 8), "planned", "velocity", "hold"), plain)
    with pytest.raises(ValueError, match="takes its weights from a mask file"):
        initialize_infer_state(Arguments(lemica_mask=str(plain), lemica_forecast=FITTED, force_mask=True))


def test_a_fitted_mask_for_another_kind_is_refused_with_what_to_leave_out(tmp_path):
    fitted_mask(tmp_path / "mask.json")
    mask = str(tmp_path / "mask.json")
    with pytest.raises(ValueError, match="weights are for the velocity: leave out --lemica_reuse"):
        initialize_infer_state(Arguments(lemica_mask=mask, lemica_reuse="residual", force_mask=True))


def test_a_fitted_mask_is_shown_unweighed_beside_a_graph_that_cannot_weigh_it(tmp_path, capsys):
    fitted_mask(tmp_path / "mask.json")
    write_graph(replace(graph_with_moments(), reuse="residual"), tmp_path / "graph.json")
    lemica(["show", str(tmp_path / "mask.json"), "--graph", str(tmp_path / "graph.json")])
    assert capsys.readouterr().out.splitlines()[1].startswith("not weighed: a fitted forecast is planned on")


@pytest.mark.parametrize("weights", [None, [], [[]] * N, [[]] + [["x"]] * (N - 1), "none", 3])
def test_a_mask_file_whose_weights_do_not_fit_is_refused(tmp_path, weights):
    path = tmp_path / "mask.json"
    fitted_mask(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": weights}))
    with pytest.raises(ValueError, match='"weights" must hold a number for each tensor'):
        read_mask(path)


@pytest.mark.parametrize("factor", [7, 10**400])
def test_weights_that_do_not_sum_to_one_are_refused(tmp_path, factor):
    path = tmp_path / "mask.json"
    document = fitted_mask(path) and json.loads(path.read_text())
    weights = [[factor if weight == 1 else weight for weight in row] for row in document["weights"]]
    path.write_text(json.dumps(document | {"weights": weights}))
    with pytest.raises(ValueError, match=r"mask\.json cannot be used"):
        read_mask(path)
