"""The error graph: its file, every refusal, old files, and merging."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lemica.masks import Target
from lemica.moments import Moments
from lemica.planning.graph import ErrorGraph, edge_pairs, merge_graphs, read_graph, write_graph
from lemica.planning.plan import plan

N, D = 6, 3
PAIRS = [(0, 2), (0, 3), (1, 3), (1, 4), (2, 4), (2, 5), (3, 5)]
SIGMAS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0)
TARGET = Target("demo", "0123abcd", SIGMAS, "float32")


def document(**changes) -> dict:
    content = {
        "format": "lemica-graph/2",
        "target": {"model": "demo", "config": "0123abcd", "sigmas": list(SIGMAS), "dtype": "float32"},
        "num_steps": N,
        "max_gap": D,
        "samples": 2,
        "made_by": "",
        "edges": [[i, j, 0.1 * i + j] for i, j in PAIRS],
    }
    return content | changes


def old_document(**changes) -> dict:
    """As the first version wrote it."""
    content = document(format="lemica-graph/1", model="480p_t2v", reuse="velocity", forecast="hold", **changes)
    del content["target"]
    return {"sigmas": list(SIGMAS), "products": triangle(moments(3).products)} | content


def triangle(products: np.ndarray) -> list[list[float]]:
    return [row[: step + 1] for step, row in enumerate(products.tolist())]


def moments(seed: int) -> Moments:
    velocities = np.random.default_rng(seed).standard_normal((N, 20))
    products = velocities @ velocities.T
    return Moments(SIGMAS, (products + products.T) / 40)


def graph_of(errors, **settings) -> ErrorGraph:
    edges = [(i, j, error) for (i, j), error in zip(PAIRS, errors, strict=True)]
    return ErrorGraph.from_edges(edges=edges, **({"target": TARGET, "num_steps": N, "max_gap": D} | settings))


def saved(tmp_path, content):
    path = tmp_path / "graph.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_edge_pairs_are_those_of_the_format():
    assert list(edge_pairs(N, D)) == PAIRS
    assert list(edge_pairs(2, 1)) == []
    assert len(list(edge_pairs(50, 8))) == sum(50 - gap for gap in range(2, 9))


def test_error_of_an_edge(tmp_path):
    graph = read_graph(saved(tmp_path, document()))
    assert graph.error(1, 4) == 0.1 * 1 + 4
    assert graph.error(4, 5) == 0.0
    assert graph.edges() == [(i, j, 0.1 * i + j) for i, j in PAIRS]
    assert np.isnan(graph.errors[4, 2])


@pytest.mark.parametrize(("i", "j"), [(0, 0), (2, 1), (0, 4), (-1, 1), (4, 6), (5, 6)])
def test_error_refuses_what_is_no_edge(i, j):
    with pytest.raises(ValueError, match=rf"^no edge {i} -> {j} in this graph; ask for .* j <= 5 and j - i <= 3$"):
        graph_of(range(7)).error(i, j)


@pytest.mark.parametrize("target", [TARGET, Target("demo", None, SIGMAS), Target(sigmas=SIGMAS)])
def test_round_trip_keeps_every_bit(tmp_path, target):
    errors = np.random.default_rng(0).random(len(PAIRS)) * 10.0 ** np.arange(-150, 55, 30)
    graph = graph_of(errors, samples=7, target=target, moments=moments(1), is_euler=target.dtype is None)
    path = tmp_path / "new folder" / "graph.json"
    write_graph(graph, path)
    again = read_graph(path)
    for name in ("target", "num_steps", "max_gap", "samples", "is_euler"):
        assert getattr(again, name) == getattr(graph, name)
    np.testing.assert_array_equal(again.errors, graph.errors)
    np.testing.assert_array_equal(again.moments.products, graph.moments.products)
    np.testing.assert_array_equal(again.moments.sigmas, SIGMAS)
    assert os.listdir(path.parent) == ["graph.json"]


def test_the_file_is_the_documented_format(tmp_path):
    edges = [[i, j, float(error)] for error, (i, j) in enumerate(PAIRS)]
    write_graph(graph_of(range(7), samples=3), tmp_path / "graph.json")
    text = (tmp_path / "graph.json").read_text()
    assert json.loads(text) == document(samples=3, edges=edges, sampler=None)
    assert "\n[0, 3, 1.0],\n" in text
    write_graph(graph_of(range(7), samples=3, moments=moments(1)), tmp_path / "graph.json")
    products = triangle(moments(1).products)
    assert json.loads((tmp_path / "graph.json").read_text()) == document(
        samples=3, edges=edges, products=products, sampler=None
    )


def test_order_of_edges_unknown_keys_and_missing_products_do_not_matter(tmp_path):
    plain = read_graph(saved(tmp_path, document()))
    assert plain.moments is None
    other = read_graph(saved(tmp_path, document(edges=document()["edges"][::-1], note="by hand")))
    np.testing.assert_array_equal(other.errors, plain.errors)


def test_an_old_file_of_held_velocities_is_read(tmp_path):
    graph = read_graph(saved(tmp_path, old_document(spread=[[0, 2, 1.0]])))
    assert graph.target == Target("480p_t2v", sigmas=SIGMAS)
    assert (graph.num_steps, graph.max_gap, graph.samples) == (N, D, 2)
    assert graph.edges() == [(i, j, 0.1 * i + j) for i, j in PAIRS]
    np.testing.assert_array_equal(graph.moments.products, moments(3).products)


@pytest.mark.parametrize("spoil", [lambda text: text[:-9], lambda text: text.replace("1.0", "2.0", 1)])
def test_a_graph_that_does_not_read_back_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, spoil):
    path = tmp_path / "graph.json"
    write_graph(graph_of(range(7)), path)
    before = path.read_bytes()
    write = Path.write_bytes
    # A disk that takes other bytes than it is given, and gives back what it was given as long as it is cached.
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: write(self, spoil(content.decode()).encode()))
    with pytest.raises((OSError, ValueError), match=r"read back|not JSON"):
        write_graph(graph_of([1] * 7), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["graph.json"]


def edges_with(place: int, *edge) -> list:
    edges = document()["edges"]
    edges[place] = list(edge)
    return edges


REFUSALS = {
    "not JSON": ("{", r"not JSON \("),
    "not a graph": ([1, 2], "format is None, want 'lemica-graph/2'"),
    "no format": ({}, "format is None"),
    "a mask": (document(format="lemica-mask/1"), "this is a mask; give the error graph that it was planned on"),
    "no samples": ({k: v for k, v in document().items() if k != "samples"}, "key 'samples' is missing"),
    "no target": ({k: v for k, v in document().items() if k != "target"}, "key 'target' is missing"),
    "target of a list": (document(target=[1]), '"target" must hold "model", "config", "sigmas" and "dtype"'),
    "sigmas of a number": (document(target={"sigmas": 5}), '"target" must hold "model", "config", "sigmas"'),
    "huge sigmas": (document(target={"sigmas": [10**400]}), '"target" must hold'),
    "too few sigmas": (document(target={"sigmas": [1, 0]}), "sigmas of the target must be 7 finite numbers"),
    "endless sigmas": (document(target={"sigmas": [math.inf] * 7}), "sigmas of the target must be 7 finite numbers"),
    "old residual": (old_document() | {"reuse": "residual"}, "lemica-graph/1 of 'residual' [+] 'hold' is not read any"),
    "old damped": (old_document() | {"forecast": "damped-sigma"}, "of 'velocity' [+] 'damped-sigma' is not read any"),
    "old sums": ({k: v for k, v in old_document().items() if k != "products"}, "without sigmas and products is not"),
    "old text": (old_document() | {"sigmas": "none"}, '"target" must hold "model", "config", "sigmas" and "dtype"'),
    "few products": (document(products=[[1.0]]), "sigmas and products do not make moments"),
    "products of text": (document(products="none"), "sigmas and products do not make moments"),
    "products of a number": (document(products=5), "sigmas and products do not make moments"),
    "ragged products": (document(products=[[1.0] * 9] * N), "sigmas and products do not make moments"),
    "huge products": (document(products=[[10**400]] * N), "sigmas and products do not make moments"),
    "endless products": (document(products=[[math.nan]] * N), "sigmas and products do not make moments"),
    "products alone": (document(target={}, products=triangle(np.eye(N))), "sigmas and products do not make moments"),
    "one step": (document(num_steps=1), "num_steps is 1; give a whole number of at least 2"),
    "steps as text": (document(num_steps="6"), "num_steps is '6'; give a whole number"),
    "steps as truth": (document(samples=True), "samples is True; give a whole number"),
    "no samples at all": (document(samples=0), "samples is 0; give a whole number of at least 1"),
    "zero gap": (document(max_gap=0), "max_gap is 0; give a whole number of at least 1"),
    "gap too long": (document(max_gap=6), "max_gap 6 is too long for 6 steps; give 1 to 5"),
    "missing edge": (document(edges=document()["edges"][:-2]), "error of edge 2 -> 5 is missing"),
    "a million steps": (document(num_steps=10**9, max_gap=10**8), "error of edge 0 -> 4 is missing"),
    "NaN": (document(edges=edges_with(3, 1, 4, math.nan)), "error of edge 1 -> 4 is nan, want a finite number >= 0"),
    "infinite": (document(edges=edges_with(3, 1, 4, math.inf)), "error of edge 1 -> 4 is inf, want a finite"),
    "too large": (document(edges=edges_with(3, 1, 4, 10**400)), "error of edge 1 -> 4 is inf, want a finite"),
    "negative": (document(edges=edges_with(3, 1, 4, -0.5)), "error of edge 1 -> 4 is -0.5, want a finite number >= 0"),
    "backwards": (document(edges=edges_with(3, 4, 1, 0.5)), "error of edge 4 -> 1 is out of range"),
    "before the start": (document(edges=edges_with(3, -1, 2, 0.5)), "error of edge -1 -> 2 is out of range"),
    "past the end": (document(edges=edges_with(3, 4, 6, 0.5)), "edge 4 -> 6 is out of range, want 0 <= i, j <= 5"),
    "gap of one": (document(edges=edges_with(3, 1, 2, 0.5)), "edge 1 -> 2 is out of range, .* 2 <= j - i <= 3"),
    "past the gap": (document(edges=edges_with(3, 1, 5, 0.5)), "error of edge 1 -> 5 is out of range"),
    "twice": (document(edges=edges_with(3, 0, 2, 0.5)), "error of edge 0 -> 2 is given twice"),
    "too short": (document(edges=edges_with(3, 1, 4)), r"edge \[1, 4\] is not of the form \[i, j, error\]"),
    "step as float": (document(edges=edges_with(3, 1.0, 4, 0.5)), r"edge \[1.0, 4, 0.5\] is not of the form"),
    "error as text": (document(edges=edges_with(3, 1, 4, "x")), r"edge \[1, 4, 'x'\] is not of the form"),
    "error as truth": (document(edges=edges_with(3, 1, 4, True)), r"edge \[1, 4, True\] is not of the form"),
    "no list": (document(edges=5), "edge 5 is not of the form"),
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
    assert "; give " in line or line.endswith("; write the graph again with lemica calibrate")


def test_reading_refuses_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "graph.json"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match=r"graph.json: not JSON"):
        read_graph(path)


def test_arrays_are_checked_copied_and_frozen():
    errors = np.ones((N, D + 1))
    graph = ErrorGraph(TARGET, N, D, 1, errors)
    errors[0, 2] = 5
    assert graph.error(0, 2) == 1
    assert graph.error(0, 1) == 0
    with pytest.raises(ValueError, match="read-only"):
        graph.errors[0, 2] = 5
    errors[2, 3] = np.nan
    with pytest.raises(ValueError, match="error of edge 2 -> 5 is nan"):
        ErrorGraph(TARGET, N, D, 1, errors)
    with pytest.raises(ValueError, match=r"errors have shape \(6, 3\); give \(6, 4\)"):
        ErrorGraph(TARGET, N, D, 1, errors[:, 1:])


@pytest.mark.parametrize("sigmas", [None, (*SIGMAS[:-1], 0.05)])
def test_moments_must_be_of_the_targets_sigmas(sigmas):
    with pytest.raises(ValueError, match="moments have other sigmas than the target"):
        graph_of(range(7), target=Target("demo", sigmas=sigmas), moments=moments(1))


def listed(graph: ErrorGraph) -> list[float]:
    return [error for _, _, error in graph.edges()]


def test_merging_samples_gives_their_mean(tmp_path):
    errors = np.random.default_rng(2).random((6, len(PAIRS)))
    single = [graph_of(row, moments=moments(seed)) for seed, row in enumerate(errors)]
    write_graph(merge_graphs(single[:4]), tmp_path / "four.json")
    merged = merge_graphs([read_graph(tmp_path / "four.json"), merge_graphs(single[4:])])
    assert (merged.samples, merged.target) == (6, TARGET)
    np.testing.assert_allclose(listed(merged), errors.mean(axis=0), rtol=1e-14)
    products = np.mean([moments(seed).products for seed in range(6)], axis=0)
    np.testing.assert_allclose(merged.moments.products, products, rtol=1e-13)


def test_merging_one_graph_leaves_it_as_it_is():
    errors = np.random.default_rng(0).random(len(PAIRS)).tolist()
    merged = merge_graphs([graph_of(errors, samples=3, moments=moments(1))])
    assert (listed(merged), merged.samples) == (errors, 3)
    np.testing.assert_array_equal(merged.moments.products, moments(1).products)


def test_merging_does_not_invent_moments():
    assert merge_graphs([graph_of(range(7), moments=moments(1)), graph_of(range(7))]).moments is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"target": Target("other", "0123abcd", SIGMAS, "float32")}, "model 'demo' and 'other'; merge only"),
        ({"target": Target("demo", None, SIGMAS, "float32")}, "config '0123abcd' and None; merge only"),
        ({"target": Target("demo", "0123abcd", SIGMAS, "bfloat16")}, "dtype 'float32' and 'bfloat16'; merge only"),
        ({"target": Target("demo", "0123abcd", None, "float32")}, "other noise levels; merge only"),
        ({"num_steps": 7, "target": Target("demo")}, "num_steps 6 and 7; merge only"),
        ({"max_gap": 2}, "max_gap 3 and 2; merge only"),
    ],
)
def test_merging_refuses_graphs_that_do_not_belong_together(changes, fault):
    settings = {"target": TARGET, "num_steps": N, "max_gap": D} | changes
    edges = [(i, j, 1.0) for i, j in edge_pairs(settings["num_steps"], settings["max_gap"])]
    with pytest.raises(ValueError, match=f"^cannot merge graphs with {fault}") as refusal:
        merge_graphs([graph_of([1] * 7), ErrorGraph.from_edges(edges=edges, **settings)])
    assert "\n" not in str(refusal.value)


def test_merging_refuses_another_sampler_and_says_what_to_do_about_an_unknown_one():
    with pytest.raises(ValueError, match=r"^cannot merge graphs of other samplers, .*; write the graph again"):
        merge_graphs([graph_of(range(7), is_euler=True), graph_of(range(7))])


@pytest.mark.parametrize(("written", "is_euler"), [("euler", True), ("other", False), (None, None)])
def test_the_sampler_is_read_as_it_was_written_and_may_be_unknown(tmp_path, written, is_euler):
    assert read_graph(saved(tmp_path, document(sampler=written))).is_euler is is_euler
    write_graph(graph_of(range(7), is_euler=is_euler), tmp_path / "graph.json")
    assert json.loads((tmp_path / "graph.json").read_text())["sampler"] == written
    old = document()
    assert "sampler" not in old
    assert read_graph(saved(tmp_path, old)).is_euler is None


def test_merging_refuses_nothing_at_all():
    with pytest.raises(ValueError, match="no graphs to merge; give at least one"):
        merge_graphs([])


def test_what_made_a_graph_is_kept_and_told_by_the_masks_planned_on_it(tmp_path):
    write_graph(replace(graph_of(range(7)), made_by="lemica calibrate, torch 2.13.0"), tmp_path / "graph.json")
    graph = read_graph(tmp_path / "graph.json")
    assert graph.made_by == "lemica calibrate, torch 2.13.0"
    assert plan(graph, 4, "hold").made_by == "lemica.plan; graph by lemica calibrate, torch 2.13.0"
