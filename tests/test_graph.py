"""The error graph: its file, every refusal, and merging."""

import json
import math
import os

import numpy as np
import pytest

from lemica import graph as graph_module
from lemica.graph import ErrorGraph, edge_pairs, merge_graphs, read_graph, write_graph

N, D = 6, 3
PAIRS = [(0, 2), (0, 3), (1, 3), (1, 4), (2, 4), (2, 5), (3, 5)]


def document(**changes) -> dict:
    content = {
        "format": "lemica-graph/1",
        "model": "demo",
        "num_steps": N,
        "max_gap": D,
        "reuse": "residual",
        "samples": 2,
        "edges": [[i, j, 0.1 * i + j] for i, j in PAIRS],
    }
    return content | changes


def graph_of(weights, *, samples=1, spread=None, **settings) -> ErrorGraph:
    return ErrorGraph.from_edges(
        edges=[(i, j, w) for (i, j), w in zip(PAIRS, weights, strict=True)],
        spread=None if spread is None else [(i, j, s) for (i, j), s in zip(PAIRS, spread, strict=True)],
        samples=samples,
        **({"model": "demo", "num_steps": N, "max_gap": D} | settings),
    )


def saved(tmp_path, content):
    path = tmp_path / "graph.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def listed(table) -> list[float]:
    return [float(table[i, j - i]) for i, j in PAIRS]


def test_edge_pairs_are_those_of_the_format():
    assert list(edge_pairs(N, D)) == PAIRS
    assert list(edge_pairs(2, 1)) == []
    assert len(list(edge_pairs(50, 8))) == sum(50 - gap for gap in range(2, 9))


def test_weight_of_an_edge(tmp_path):
    graph = read_graph(saved(tmp_path, document()))
    assert graph.weight(1, 4) == 0.1 * 1 + 4
    assert graph.weight(4, 5) == 0.0
    assert graph.edges() == [(i, j, 0.1 * i + j) for i, j in PAIRS]
    assert np.isnan(graph.weights[4, 2])


@pytest.mark.parametrize(("i", "j"), [(0, 0), (2, 1), (0, 4), (-1, 1), (4, 6), (5, 6)])
def test_weight_refuses_what_is_no_edge(i, j):
    with pytest.raises(ValueError, match=rf"^no edge {i} -> {j} in this graph; ask for .* j <= 5 and j - i <= 3$"):
        graph_of(range(7)).weight(i, j)


def test_round_trip_keeps_every_bit(tmp_path):
    values = np.random.default_rng(0).random((2, len(PAIRS))) * 10.0 ** np.arange(-150, 55, 30)
    graph = graph_of(values[0], spread=values[1], samples=7, reuse="velocity", forecast="extrapolate")
    path = tmp_path / "new folder" / "graph.json"
    write_graph(graph, path)
    again = read_graph(path)
    for name in ("model", "num_steps", "max_gap", "reuse", "forecast", "samples"):
        assert getattr(again, name) == getattr(graph, name)
    np.testing.assert_array_equal(again.weights, graph.weights)
    np.testing.assert_array_equal(again.spread, graph.spread)
    assert os.listdir(path.parent) == ["graph.json"]


def test_the_file_is_the_documented_format(tmp_path):
    write_graph(graph_of(range(7), samples=3), tmp_path / "graph.json")
    text = (tmp_path / "graph.json").read_text()
    assert json.loads(text) == document(
        samples=3, forecast="hold", edges=[[i, j, float(w)] for w, (i, j) in enumerate(PAIRS)]
    )
    assert "\n[0, 3, 1.0],\n" in text


def test_order_of_edges_unknown_keys_and_missing_options_do_not_matter(tmp_path):
    plain = read_graph(saved(tmp_path, document()))
    assert (plain.forecast, plain.spread) == ("hold", None)
    other = read_graph(saved(tmp_path, document(edges=document()["edges"][::-1], note="by hand")))
    np.testing.assert_array_equal(other.weights, plain.weights)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "graph.json"
    write_graph(graph_of(range(7)), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(graph_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_graph(graph_of([1] * 7), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["graph.json"]


def edges_with(place: int, *edge) -> list:
    edges = document()["edges"]
    edges[place] = list(edge)
    return edges


REFUSALS = {
    "not JSON": ("{", r"not JSON \("),
    "not a graph": ([1, 2], "format is None, want 'lemica-graph/1'"),
    "no format": ({}, "format is None"),
    "a mask": (document(format="lemica-mask/1"), "format is 'lemica-mask/1', want 'lemica-graph/1'"),
    "no samples": ({k: v for k, v in document().items() if k != "samples"}, "key 'samples' is missing"),
    "no model": (document(model=""), "model is ''; give a name"),
    "numbered forecast": (document(forecast=1), "forecast is 1; give a name"),
    "one step": (document(num_steps=1), "num_steps is 1; give a whole number of at least 2"),
    "steps as text": (document(num_steps="6"), "num_steps is '6'; give a whole number"),
    "steps as truth": (document(samples=True), "samples is True; give a whole number"),
    "no samples at all": (document(samples=0), "samples is 0; give a whole number of at least 1"),
    "zero gap": (document(max_gap=0), "max_gap is 0; give a whole number of at least 1"),
    "gap too long": (document(max_gap=6), "max_gap 6 is too long for 6 steps; give 1 to 5"),
    "missing edge": (document(edges=document()["edges"][:-2]), "weight of edge 2 -> 5 is missing"),
    "a million steps": (document(num_steps=10**9, max_gap=10**8), "weight of edge 0 -> 4 is missing"),
    "NaN": (document(edges=edges_with(3, 1, 4, math.nan)), "weight of edge 1 -> 4 is nan, want a finite number >= 0"),
    "infinite": (document(edges=edges_with(3, 1, 4, math.inf)), "weight of edge 1 -> 4 is inf, want a finite"),
    "too large": (document(edges=edges_with(3, 1, 4, 10**400)), "weight of edge 1 -> 4 is inf, want a finite"),
    "negative": (document(edges=edges_with(3, 1, 4, -0.5)), "weight of edge 1 -> 4 is -0.5, want a finite number >= 0"),
    "backwards": (document(edges=edges_with(3, 4, 1, 0.5)), "weight of edge 4 -> 1 is out of range"),
    "before the start": (document(edges=edges_with(3, -1, 2, 0.5)), "weight of edge -1 -> 2 is out of range"),
    "past the end": (document(edges=edges_with(3, 4, 6, 0.5)), "edge 4 -> 6 is out of range, want 0 <= i, j <= 5"),
    "gap of one": (document(edges=edges_with(3, 1, 2, 0.5)), "edge 1 -> 2 is out of range, .* 2 <= j - i <= 3"),
    "past the gap": (document(edges=edges_with(3, 1, 5, 0.5)), "weight of edge 1 -> 5 is out of range"),
    "twice": (document(edges=edges_with(3, 0, 2, 0.5)), "weight of edge 0 -> 2 is given twice"),
    "too short": (document(edges=edges_with(3, 1, 4)), r"edge \[1, 4\] is not of the form \[i, j, weight\]"),
    "step as float": (document(edges=edges_with(3, 1.0, 4, 0.5)), r"edge \[1.0, 4, 0.5\] is not of the form"),
    "weight as text": (document(edges=edges_with(3, 1, 4, "x")), r"edge \[1, 4, 'x'\] is not of the form"),
    "weight as truth": (document(edges=edges_with(3, 1, 4, True)), r"edge \[1, 4, True\] is not of the form"),
    "no list": (document(edges=5), "edge 5 is not of the form"),
    "negative spread": (document(spread=edges_with(3, 1, 4, -1)), "spread of edge 1 -> 4 is -1.0, want a finite"),
    "missing spread": (document(spread=[[0, 2, 1]]), "spread of edge 0 -> 3 is missing"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_reading_refuses_in_one_line_that_names_file_and_fault(tmp_path, name):
    content, message = REFUSALS[name]
    path = saved(tmp_path, content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_graph(path)
    line = str(refusal.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert "; give " in line or line.endswith("; write the graph again with python -m lemica calibrate")


def test_reading_refuses_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "graph.json"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match=r"graph.json: not JSON"):
        read_graph(path)


def test_arrays_are_checked_copied_and_frozen():
    weights = np.ones((N, D + 1))
    graph = ErrorGraph("demo", N, D, "residual", "hold", 1, weights)
    weights[0, 2] = 5
    assert graph.weight(0, 2) == 1
    assert graph.weight(0, 1) == 0
    with pytest.raises(ValueError, match="read-only"):
        graph.weights[0, 2] = 5
    weights[2, 3] = np.nan
    with pytest.raises(ValueError, match="weight of edge 2 -> 5 is nan"):
        ErrorGraph("demo", N, D, "residual", "hold", 1, weights)
    with pytest.raises(ValueError, match=r"weight array has shape \(6, 3\); give \(6, 4\)"):
        ErrorGraph("demo", N, D, "residual", "hold", 1, weights[:, 1:])


def test_merging_samples_gives_their_mean_and_standard_deviation():
    values = np.random.default_rng(1).random((5, len(PAIRS)))
    merged = merge_graphs([graph_of(row) for row in values])
    assert merged.samples == 5
    np.testing.assert_allclose(listed(merged.weights), values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(listed(merged.spread), values.std(axis=0), rtol=1e-13)


def test_merging_merged_graphs_is_merging_all_samples(tmp_path):
    values = np.random.default_rng(2).random((6, len(PAIRS)))
    single = [graph_of(row) for row in values]
    write_graph(merge_graphs(single[:4]), tmp_path / "four.json")
    pooled = merge_graphs([read_graph(tmp_path / "four.json"), merge_graphs(single[4:])])
    assert pooled.samples == 6
    np.testing.assert_allclose(listed(pooled.weights), values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(listed(pooled.spread), values.std(axis=0), rtol=1e-13)


def test_merging_keeps_the_settings_and_one_graph_as_it_is():
    graph = graph_of(range(7), reuse="velocity", forecast="extrapolate")
    merged = merge_graphs([graph])
    assert (merged.model, merged.reuse, merged.forecast) == ("demo", "velocity", "extrapolate")
    np.testing.assert_array_equal(merged.weights, graph.weights)
    assert listed(merged.spread) == [0.0] * 7


def test_merging_does_not_invent_a_spread():
    unknown = graph_of(range(7), samples=3)
    assert merge_graphs([unknown, graph_of(range(7))]).spread is None


@pytest.mark.parametrize(
    ("name", "value", "weights"),
    [
        ("model", "other", 7),
        ("num_steps", 7, None),
        ("max_gap", 2, None),
        ("reuse", "velocity", 7),
        ("forecast", "extrapolate", 7),
    ],
)
def test_merging_refuses_graphs_that_do_not_belong_together(name, value, weights):
    settings = {"model": "demo", "num_steps": N, "max_gap": D} | {name: value}
    edges = [(i, j, 1.0) for i, j in edge_pairs(settings["num_steps"], settings["max_gap"])]
    with pytest.raises(ValueError, match=rf"^cannot merge graphs with {name} .* and {value!r}; merge only") as refusal:
        merge_graphs([graph_of([1] * 7), ErrorGraph.from_edges(edges=edges, **settings)])
    assert "\n" not in str(refusal.value)


def test_merging_refuses_nothing_at_all():
    with pytest.raises(ValueError, match="no graphs to merge; give at least one"):
        merge_graphs([])
