"""The benchmark: its ratios, its targets, and one real repeat on the tiny preset."""

import json
import sys
from dataclasses import replace

import benchmark
import pytest
from benchmark import PRESETS, UNCACHED, Held, Job, Loop, figures_of, jobs_of_repeat, main, missed_targets


def repeat(slowness: float, kit_reused: float = 1.0) -> dict:
    """Loops of a machine that is `slowness` times slower: full steps take 1000, released reused steps 8."""
    reused = {"kit": kit_reused, "released": 8}
    loops = {UNCACHED: Loop(1000 * slowness, 50_000 * slowness, None, 50_000 * slowness)}
    for job in (Job("kit", 10), Job("released", 10)):
        step = reused[job.way] * slowness
        loops[job] = Loop(1000 * slowness, 10_000 * slowness, step, 10_000 * slowness + 40 * step)
    return loops


def test_ratios_are_those_of_one_repeat_however_the_machine_drifts():
    repeats = [repeat(slowness) for slowness in (1, 3, 2, 5, 4)]
    kit, released = (figures_of(Job(way, 10), repeats) for way in ("kit", "released"))
    assert kit["full_step"] == 3000
    assert kit["of_full"] == pytest.approx(0.001)
    assert kit["of_released"] == pytest.approx(1 / 8)
    assert kit["speedup"] == pytest.approx(50_000 / 10_040)
    assert kit["of_ideal"] == kit["share"] == pytest.approx(10_000 / 10_040)
    assert "of_released" not in released


def test_missed_targets_are_named():
    def missed(kit_reused, held, beside=1.0):
        rows = [{"way": "kit", "budget": 10} | figures_of(Job("kit", 10), [repeat(1, kit_reused)])]
        result = {"rows": rows, "held": {"kit": vars(held)}, "residual_bytes": 100}
        result["beside_reused"] = {"median": beside}
        return missed_targets(PRESETS["cpu"], result)

    assert missed(1.0, Held(100, 0)) == []
    assert missed(3.0, Held(150, 4)) == [
        "B=10: reused step 0.38x the released kit's",
        "B=10: reused step 0.30% of a full step",
        "1.50x the residual held, 4 bytes after",
    ]
    assert any("of N/B" in line for line in missed(30.0, Held(100, 0)))
    assert missed(1.0, Held(100, 0), beside=1.1) == ["B=10: loop speed-up 90.5% of N/B"]


def test_the_released_kit_may_run_at_the_smallest_budget_only():
    assert jobs_of_repeat([25, 10], released_once=True) == [
        UNCACHED, Job("kit", 25), Job("kit", 10), Job("released", 10),
    ]  # fmt: skip
    assert Job("released", 25) in jobs_of_repeat([25, 10], released_once=False)


def test_a_repeat_of_the_tiny_preset(monkeypatch, tmp_path, capsys):
    output = tmp_path / "tiny.json"
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "tiny", "--repeats", "1", "--budgets", "10", "--output", str(output)]
    )
    main()
    result = json.loads(output.read_text())
    assert [row["way"] for row in result["rows"]] == ["uncached", "kit", "released"]
    assert result["held"]["kit"] == {"during": result["residual_bytes"], "after": 0}
    assert result["held"]["released"]["during"] > 4 * result["residual_bytes"]
    assert "fused kernel" in result["attention"]
    assert len(result["beside_reused"]["ratios"]) == 22
    assert "target" in capsys.readouterr().out


def test_loops_that_would_take_too_long_are_predicted_from_single_steps(monkeypatch, tmp_path, capsys):
    few = replace(PRESETS["tiny"], whole_loops=False)
    monkeypatch.setitem(benchmark.PRESETS, "tiny", few)
    output = tmp_path / "few.json"
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "tiny", "--repeats", "1", "--other-seconds", "34", "--output", str(output)]
    )
    main()
    (repeat,) = json.loads(output.read_text())["repeats"]
    loops = {(row["way"], row["budget"]): row for row in repeat}
    assert set(loops) == {("uncached", 50)} | {(way, b) for way in ("kit", "released") for b in (25, 20, 15, 10)}
    for (way, budget), row in loops.items():
        few = loops[("kit", 25) if way == "uncached" else (way, 25)]
        assert way != "uncached" or (row["reused_step"], row["peak_bytes"]) == (None, None)
        assert row["loop"] == pytest.approx(budget * few["full_step"] + (50 - budget) * few["reused_step"])
    printed = capsys.readouterr().out
    assert "predicted from single steps" in printed and "34 s beside denoising" in printed
