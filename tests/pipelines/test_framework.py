"""demo/framework.py: what it says differs does, and its stored result says that the framework is the kit's equal."""

import json
from dataclasses import replace

import diffusers
import numpy as np
import pytest

from demo import framework
from demo.calibrations import CALIBRATIONS, CHECKPOINT, Calibration, calibration
from demo.framework import (
    PAIRS,
    RESULT,
    SHOWN_BUDGETS,
    SHOWN_FORECASTS,
    UNCACHED,
    graph_differences,
    mask_differences,
    masks_of,
    note,
    run_on_kits_packages,
    video_differences,
)
from lemica.masks import Mask, Target, hold, mask_of
from lemica.planning.graph import ErrorGraph, edge_pairs, write_graph

has_hunyuan_video = pytest.mark.skipif(
    not hasattr(diffusers, "HunyuanVideo15Pipeline"), reason=f"diffusers {diffusers.__version__} lacks HunyuanVideo-1.5"
)


def with_error(graph: ErrorGraph, i: int, j: int, factor: float) -> ErrorGraph:
    """A graph with another error of one edge."""
    errors = graph.errors.copy()
    errors[i, j - i] *= factor
    return replace(graph, errors=errors)


def held(*computed: int) -> Mask:
    steps = mask_of(computed, 7)
    return Mask(steps, kept="velocity", weights=hold(steps))


def test_differences_of_graphs_are_relative_ones():
    kits = calibration("t2v_50")
    differences = graph_differences(kits, with_error(kits, 3, 7, 1.001))
    count = len(kits.edges())
    assert differences["edges"] == pytest.approx({"largest": 1e-3, "mean": 1e-3 / count}, rel=1e-2)
    assert differences["products"] == differences["noise levels"] == {"largest": 0, "mean": 0}


def test_masks_of_other_steps_are_told_with_what_each_costs_on_the_kits_graph():
    errors = dict.fromkeys(edge_pairs(7, 3), 0.5) | {(1, 3): 4.0, (0, 3): 5.0}
    kits = ErrorGraph.from_edges(
        target=Target("demo"), num_steps=7, max_gap=3, edges=[(i, j, error) for (i, j), error in errors.items()]
    )
    found = mask_differences(
        kits,
        {"one": held(0, 1, 3, 5, 6), "other": held(0, 2, 4, 6)},
        {"one": held(0, 3, 4, 5, 6), "other": held(0, 2, 4, 6)},
    )
    assert found == {
        "compared": 2,
        "differing": {"one": {"kit": (0, 1, 3, 5, 6), "diffusers": (0, 3, 4, 5, 6), "costs": (4.0, 5.0)}},
        "weights": 0,
    }


def test_masks_of_the_same_steps_are_compared_by_their_weights():
    kits = calibration("t2v_50")
    mask = masks_of(kits)["fitted, B = 25"]
    rows = tuple(tuple(weight + 0.25 for weight in row) for row in mask.weights)
    assert mask_differences(kits, {"one": mask}, {"one": replace(mask, weights=rows)})["weights"] == 0.25


def test_every_video_is_compared_with_the_uncached_one_of_its_own_side():
    black = np.zeros((2, 16, 16, 3))
    kits, ours = {UNCACHED: black, "one": black + 0.1}, {UNCACHED: black + 0.001, "one": black + 0.011}
    assert video_differences([kits], [ours]) == {
        UNCACHED: [60.0],
        "psnr": {"one": {"kit": [20.0], "diffusers": [40.0]}},
    }


def test_what_the_kits_process_says_is_told_where_it_fails():
    with pytest.raises(RuntimeError, match="there is no such model"):
        run_on_kits_packages("-c", "raise SystemExit('there is no such model')")


def test_a_task_is_noted_beside_the_other(tmp_path):
    path = tmp_path / "framework.json"
    for task, found in (("i2v", 1), ("t2v", 2), ("i2v", 3)):
        note(task, {"found": found}, path)
    assert json.loads(path.read_text()) == {"t2v": {"found": 2}, "i2v": {"found": 3}}


@pytest.mark.slow
@has_hunyuan_video
def test_a_comparison_calibrates_plans_and_generates_on_both_sides(tmp_path, monkeypatch):
    from demo.diffusers_model import demo_pipeline

    monkeypatch.setattr(framework, "NUM_STEPS", 8)
    monkeypatch.setattr(framework, "SHOWN_BUDGETS", (5,))
    monkeypatch.setattr(framework, "SHOWN_FORECASTS", ("fitted",))
    monkeypatch.setitem(CALIBRATIONS, "t2v_8", Calibration("t2v", 8, samples=1))
    graph = framework.graph_in_diffusers(demo_pipeline(CHECKPOINT, "t2v"), CALIBRATIONS["t2v_8"])
    # In the place of the kit's; tests/pipelines/test_demo_in_diffusers.py compares with that.
    write_graph(graph, tmp_path / "t2v_8.json")
    found = framework.compare("t2v", tmp_path, pairs=[3])
    assert found["graph"]["edges"] == {"largest": 0, "mean": 0}
    assert found["masks"]["differing"] == {}
    assert found["pairs"] == [3]
    assert found[UNCACHED][0] > 80
    ((kits,), (ours,)) = found["psnr"]["fitted, B = 5"].values()
    assert 10 < kits < 60
    assert ours == pytest.approx(kits, abs=0.01)


@pytest.mark.parametrize("task", framework.TASKS)
def test_the_stored_result_is_that_of_equals(task):
    found = json.loads(RESULT.read_text())[task]
    assert found["graph"]["edges"]["largest"] < 1e-3
    assert found["graph"]["products"]["largest"] < 1e-5
    assert found["masks"]["differing"] == {}
    assert found["pairs"] == list(PAIRS)
    assert len(found["psnr"]) == len(SHOWN_BUDGETS) * len(SHOWN_FORECASTS)
    for sides in found["psnr"].values():
        assert sides["diffusers"] == pytest.approx(sides["kit"], abs=0.05)
