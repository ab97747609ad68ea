"""The demo model's calibrations: what is stored, and how it is made."""

import json

import pytest

from demo import calibrations
from demo.calibrations import CALIBRATIONS, GRAPHS, TIMES, Calibration, calibrate, calibration, note_seconds
from lemica.planning.graph import read_graph


def test_every_stored_graph_is_of_its_calibration():
    assert {path.stem for path in GRAPHS.glob("*.json")} == set(CALIBRATIONS)
    for name, made in CALIBRATIONS.items():
        graph = calibration(name)
        assert (graph.num_steps, graph.max_gap, graph.samples) == (made.num_steps, made.max_gap, made.samples)
        assert graph.target.model == f"480p_{made.task}"
        assert graph.target.dtype == {"fp32": "float32", "bf16": "bfloat16"}[made.dtype]
        assert graph.moments is not None


def test_the_seconds_of_every_calibration_are_noted():
    times = json.loads(TIMES.read_text())
    assert list(times) == list(CALIBRATIONS)
    # Of a calibration that was interrupted the samples after that are timed.
    assert all(1 <= row["samples"] <= CALIBRATIONS[name].samples for name, row in times.items())


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_calibration_writes_the_graph_of_its_samples(checkpoint, tmp_path, monkeypatch, task):
    monkeypatch.setattr(calibrations, "FRAMES", 5)
    assert calibrate(Calibration(task, 3, samples=2), tmp_path / "small.json", checkpoint) > 0
    graph = read_graph(tmp_path / "small.json")
    assert (graph.num_steps, graph.max_gap, graph.samples) == (3, 2, 2)
    assert graph.target.model == f"480p_{task}"


def test_seconds_are_put_beside_those_of_other_calibrations(tmp_path):
    table = tmp_path / "times.json"
    note_seconds("t2v_30", 2.04, table)
    note_seconds("t2v_50", 1, table)
    note_seconds("t2v_30", 3, table)
    assert json.loads(table.read_text()) == {
        "t2v_50": {"samples": 8, "cpu_seconds": 1},
        "t2v_30": {"samples": 8, "cpu_seconds": 3},
    }
