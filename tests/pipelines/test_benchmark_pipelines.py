"""benchmarks/pipelines.py: its ratios, its counts, and all of it once in its smallest setting."""

import json
import logging
import sys

import pytest

from benchmarks import pipelines
from benchmarks.pipelines import CACHE_DIT, HOLD, NOT_ENABLED, OUTPUTS, SMALLEST, Step, in_turn, measure, step_rows
from docs.tables import with_tables


@pytest.fixture(scope="module")
def result() -> dict:
    """All figures in the smallest setting, which takes seconds."""
    pytest.importorskip("cache_dit", reason="the engine is not installed: pip install cache-dit==1.5.3")
    return measure(SMALLEST)


def test_ratios_are_those_of_one_repeat_however_the_machine_drifts():
    repeats = [
        {
            NOT_ENABLED: {"full": Step(1000 * slow, 2000 * slow)},
            HOLD: {"full": Step(1000 * slow, 2000 * slow), "reused": Step(slow, 10 * slow)},
            CACHE_DIT: {"full": Step(1000 * slow, 2000 * slow), "reused": Step(100 * slow, 200 * slow)},
        }
        for slow in (1, 3, 2, 5, 4)
    ]
    rows = step_rows(repeats)
    assert rows[NOT_ENABLED] == {"full_calls": 3000, "full_whole": 6000}
    assert rows[HOLD]["reused_calls"] == 3 and rows[HOLD]["reused_whole"] == 30
    assert (rows[HOLD]["calls_of_full"], rows[HOLD]["whole_of_full"]) == (1 / 1000, 10 / 2000)
    assert (rows[HOLD]["calls_of_cache_dit"], rows[HOLD]["whole_of_cache_dit"]) == (1 / 100, 10 / 200)
    assert rows[CACHE_DIT]["calls_of_cache_dit"] == 1


def test_ways_take_turns_there_and_back_after_one_that_warms_up():
    turns = []
    results = list(in_turn(2, {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}))
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert [list(each) for each in results] == [["a", "b"], ["a", "b"]]


def test_a_reused_step_is_less_than_cache_dits_cached_one(result):
    for model in result["steps"].values():
        for way, row in model["ways"].items():
            assert row["full_calls"] <= row["full_whole"]
            if way.startswith(HOLD):
                assert 0 < row["reused_calls"] < row["full_calls"] and row["calls_of_cache_dit"] < 0.5


def test_what_is_kept_is_what_the_shapes_say_and_no_more_is_alive(result):
    assert result["memory"].keys() == OUTPUTS.keys()
    for row in result["memory"].values():
        first = row["kept"]["1"]["bytes"]
        for count, kept in row["kept"].items():
            assert kept["bytes"] == kept["counted"] == kept["alive"] == int(count) * first
            assert kept["reused_step"] > 0


def test_the_hook_adds_less_to_every_step_than_a_tenth_of_a_short_one(result):
    for row in result["overhead"].values():
        assert row["calls"] == 2
        assert row["call"] > 0 and 0 < row["share"] < 0.1


def test_enabling_and_disabling_take_less_than_a_tenth_of_a_second(result):
    assert len(result["enabling"]) == 4
    for row in result["enabling"].values():
        assert all(0 < row[part] < 0.1 for part in ("first", "mask", "budget", "disable"))


def test_the_file_says_what_it_was_made_by_and_becomes_the_tables(result, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipelines, "measure", lambda _: result)
    monkeypatch.setattr(logging, "disable", lambda _: None)
    monkeypatch.setattr(sys, "argv", [pipelines.__file__, "--output", str(tmp_path / "pipelines.json")])
    pipelines.main()
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "pipelines.json").read_text())
    assert written["commit"] and written["machine"] and written["threads"] == 1
    assert written["packages"].keys() == {"torch", "diffusers", "transformers", "cache-dit"}
    monkeypatch.setattr("docs.tables.MEASUREMENTS", tmp_path)
    for name in pipelines.TABLES:
        header, line, *rows = with_tables(f"<!-- table: {name} -->\n<!-- end -->").splitlines()[1:-1]
        assert len(rows) >= 2 and {header.count("|"), line.count("|")} == {row.count("|") for row in rows}
        assert "\n".join((header, line, *rows)) in printed
