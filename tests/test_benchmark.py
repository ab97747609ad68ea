"""The benchmark: its ratios, its targets, and one real repeat on the tiny preset."""

import json
import sys
from dataclasses import replace

import benchmark
import pytest
import torch
from benchmark import TimedLoop, cut, jobs_of_repeat, main
from benchmark_figures import UNCACHED, Job, Loop, Memory, figures_of, median_and_error, missed_targets
from benchmark_models import PRESETS, benchmark_pipeline, random_inputs
from demo_attention import fused_attention
from peak_memory import PeakMemory


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
    assert kit["of_ideal_error"] == pytest.approx(0)


def test_the_error_of_the_median_is_that_of_the_mean_a_quarter_larger():
    assert median_and_error([1.0, 2.0, 9.0, 4.0]) == (3.0, pytest.approx(1.2533 * 3.5590 / 2, rel=1e-4))
    assert median_and_error([2.0]) == (2.0, None)


@pytest.mark.parametrize("budget", [2, 10, 25, 50])
def test_parts_of_a_loop_begin_with_computed_steps_and_compute_about_as_many(budget):
    mask = Job("kit", budget).mask
    parts = cut(mask, 10)
    assert [step for part in parts for step in part] == list(range(50))
    assert all(mask[part.start] for part in parts if part)
    computed = [sum(mask[part.start : part.stop]) for part in parts]
    assert max(computed) - min(computed) <= 1


def test_a_loop_in_parts_is_the_loop():
    """Its latents, to the bit, and its steps, every one of them once."""
    pipe = benchmark_pipeline(PRESETS["tiny"])
    inputs = random_inputs(pipe, PRESETS["tiny"])
    mask = (True, False, True, True, False, False) + (True,) * 44
    loop = TimedLoop(pipe, inputs, "kit", mask)
    with fused_attention():
        for part in cut(mask, 4):
            loop.run(part)
        assert torch.equal(loop.latents, pipe.denoise(inputs, mask=mask))
    assert len(loop.step_seconds) == 50
    assert loop.loop_seconds >= sum(loop.step_seconds)


def test_missed_targets_are_named():
    good = Memory(held=100, after=0, peak=1200)

    def missed(kit_reused, memory):
        rows = [{"way": "kit", "budget": 10} | figures_of(Job("kit", 10), [repeat(1, kit_reused)])]
        result = {"rows": rows, "residual_bytes": 100}
        result["memory"] = {"kit": vars(memory), "uncached": vars(Memory(0, 0, 1000))}
        return missed_targets(PRESETS["cpu"], result)

    assert missed(1.0, good) == []
    assert missed(3.0, Memory(150, 4, 1201)) == [
        "B=10: reused step 0.38x the released kit's",
        "B=10: reused step 0.30% of a full step",
        "1.50x the residual held, 4 bytes after",
        "peak 2.01x the residual above that of an uncached run",
    ]
    assert "B=10: loop speed-up 89.3% of N/B" in missed(30.0, good)


def test_the_peak_is_of_what_was_made_inside_and_alive_at_once():
    weight = torch.zeros(1000)
    with PeakMemory() as memory:
        first = weight.view(10, 100) + 1
        part = first[:1]
        del first
        assert memory.alive == memory.peak == 4000
        del part
        torch.zeros(500).add_(weight[:500])
        assert (memory.alive, memory.peak) == (0, 4000)


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
    uncached, kit, released = (result["memory"][way] for way in ("uncached", "kit", "released"))
    assert (uncached["held"], kit["held"], kit["after"]) == (0, result["residual_bytes"], 0)
    assert kit["peak"] - uncached["peak"] == result["residual_bytes"]
    assert released["held"] > 4 * result["residual_bytes"]
    assert released["peak"] > kit["peak"]
    assert "fused kernel" in result["attention"]
    assert "target" in capsys.readouterr().out


def test_loops_that_would_take_too_long_are_predicted_from_single_steps(monkeypatch, tmp_path, capsys):
    few = replace(PRESETS["tiny"], whole_loops=False)
    monkeypatch.setitem(benchmark.PRESETS, "tiny", few)
    output = tmp_path / "few.json"
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "tiny", "--repeats", "1", "--other-seconds", "34", "--output", str(output)]
    )
    main()
    result = json.loads(output.read_text())
    (repeat,) = result["repeats"]
    loops = {(row["way"], row["budget"]): row for row in repeat}
    assert set(loops) == {("uncached", 50)} | {(way, b) for way in ("kit", "released") for b in (25, 20, 15, 10)}
    for (_, budget), row in loops.items():
        assert row["loop"] == pytest.approx(budget * row["full_step"] + (50 - budget) * (row["reused_step"] or 0))
    full = loops["uncached", 50]["full_step"]
    seconds = 34 + 25 * full + 25 * loops["kit", 25]["reused_step"]
    (run,) = (run for run in result["whole_runs"] if (run["way"], run["budget"]) == ("kit", 25))
    assert run["seconds"] == pytest.approx(seconds)
    assert run["speedup"] == pytest.approx((34 + 50 * full) / seconds)
    printed = capsys.readouterr().out
    assert "predicted from single steps" in printed and "whole run  25  kit" in printed


def test_where_the_released_kits_cache_does_not_fit_the_kit_is_measured_alone(monkeypatch, tmp_path, capsys):
    """Too large when memory is counted; in the first repeat; in the second one, by the words of a library."""

    def too_large(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def second_time_too_large(*arguments):
        timed_before.append(arguments[2])
        if arguments[2] == "released" and timed_before.count("released") == 2:
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
        return timed(*arguments)

    def measured():
        output = tmp_path / "alone.json"
        arguments = ["tiny", "--repeats", "3", "--budgets", "10", "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
        main()
        return json.loads(output.read_text())

    monkeypatch.setitem(benchmark.PRESETS, "tiny", replace(PRESETS["tiny"], whole_loops=False))
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "memory_of_released", too_large)
        first = measured()
    timed, timed_before = benchmark.timed, []
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "timed", lambda *a: too_large() if a[2] == "released" else timed(*a))
        later = measured()
    monkeypatch.setattr(benchmark, "timed", second_time_too_large)
    last = measured()
    for result, repeats in ((first, 3), (later, 2), (last, 2)):
        assert [row["way"] for row in result["rows"]] == ["uncached", "kit"]
        assert len(result["repeats"]) == repeats
        assert "released" not in result["memory"]
    assert capsys.readouterr().out.count("does not fit") == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--repeats", "0"),
        ("--budgets", "10", "10"),
        ("--budgets", "50"),
        ("--threads", "0"),
        ("--other-seconds", "nan"),
        ("--output", "nowhere/tiny.json"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "tiny", *arguments])
    monkeypatch.setattr(benchmark, "run", lambda _: pytest.fail("ran"))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_other_errors_are_not_taken_for_short_memory(monkeypatch):
    def broken():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        benchmark.attempt(broken)
