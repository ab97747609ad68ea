"""The benchmarks: their ratios, their counts, and one real repeat on the tiny preset."""

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import counts, steps
from benchmarks.loops import RELEASED, UNCACHED, WAYS, part_of
from benchmarks.memory import PeakMemory
from benchmarks.models import PRESETS, benchmark_pipeline, fast_attention, random_inputs
from benchmarks.steps import Job, Loop, TimedLoop, cut, loop_rows, median_and_error, predicted_rows, step_rows

KIT_WAYS = [way for way in WAYS if way not in (UNCACHED, RELEASED)]


def run(monkeypatch, module, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
    module.main()


# ---- ratios


def test_ratios_are_those_of_one_repeat_however_the_machine_drifts():
    slow = [1, 3, 2, 5, 4]
    short = [{"kit": Loop(1000 * s, s, 0, 0), RELEASED: Loop(1000 * s, 8 * s, 0, 0)} for s in slow]
    kit, released = step_rows(short).values()
    assert kit == {"full_step": 3000, "reused_step": 3, "of_full": 0.001, "of_released": 1 / 8}
    assert released["of_released"] == 1

    whole = [
        {Job(UNCACHED, 50): Loop(0, None, 0, 50_000 * s), Job("kit", 10): Loop(0, 0, 10_000 * s, 10_040 * s)}
        for s in slow
    ]
    uncached, kit = loop_rows(whole)
    assert uncached == {"way": UNCACHED, "budget": 50, "loop": 150_000}
    assert kit["of_ideal"] == kit["computed"] == pytest.approx(10_000 / 10_040)
    assert kit["error"] == pytest.approx(0, abs=1e-12)


def test_the_error_of_the_median_is_that_of_the_mean_a_quarter_larger():
    assert median_and_error([1.0, 2.0, 9.0, 4.0]) == (3.0, pytest.approx(1.2533 * 3.5590 / 2, rel=1e-4))
    assert median_and_error([2.0]) == (2.0, None)


def test_loops_that_would_take_too_long_are_predicted_from_single_steps():
    uncached, kit = predicted_rows(full=10.0, reused=0.1, budgets=[10])
    assert uncached["loop"] == 500
    assert kit["loop"] == pytest.approx(104)
    assert kit["of_ideal"] == kit["computed"] == pytest.approx(100 / 104)


# ---- loops in parts


@pytest.mark.parametrize("budget", [2, 10, 25, 50])
def test_parts_of_a_loop_begin_with_computed_steps_and_compute_about_as_many(budget):
    mask = Job("kit", budget).steps
    parts = cut(mask, 10)
    assert [step for part in parts for step in part] == list(range(50))
    assert all(mask[part.start] for part in parts if part)
    computed = [sum(mask[part.start : part.stop]) for part in parts]
    assert max(computed) - min(computed) <= 1


def test_a_loop_in_parts_is_the_loop(exact_numbers):
    """Its latents, to the bit, and its steps, every one of them once."""
    pipe = benchmark_pipeline(PRESETS["tiny"])
    inputs = random_inputs(pipe, PRESETS["tiny"])
    mask = (True, False, True, True, False, False) + (True,) * 44
    loop = TimedLoop(pipe, inputs, "residual + hold", mask)
    with fast_attention():
        for part in cut(mask, 4):
            loop.run(part)
        assert torch.equal(loop.latents, pipe.denoise(part_of(inputs, "residual + hold", mask)))
    assert len(loop.step_seconds) == 50
    assert loop.seconds >= sum(loop.step_seconds)


# ---- the command


def test_a_repeat_of_the_tiny_preset_counts_what_every_way_keeps(exact_numbers, monkeypatch, tmp_path, capsys):
    output = tmp_path / "steps.json"
    output.write_text('{"cpu": {"kept": true}}')
    run(monkeypatch, steps, "tiny", "--repeats", "1", "--budgets", "10", "--output", str(output))
    results = json.loads(output.read_text())
    assert results["cpu"] == {"kept": True}
    result = results["tiny"]
    residual = result["residual_bytes"]
    held, after, peak = (
        {way: memory[name] / residual for way, memory in result["memory"].items()} for name in ("held", "after", "peak")
    )
    # A velocity has 32 channels, a residual of this model 64.
    assert [held[way] for way in WAYS[:-1]] == [0, 1, 2, 0.5, 1]
    assert held[RELEASED] > 4
    assert [after[way] for way in WAYS[:-1]] == [0] * 5
    assert peak["residual + hold"] - peak[UNCACHED] == 1
    assert peak["velocity + hold"] == peak[UNCACHED] < peak[RELEASED]
    assert all(0 < result["steps"][way]["of_full"] < 1 for way in KIT_WAYS)
    assert [(row["way"], row["budget"]) for row in result["loops"]] == [
        (UNCACHED, 50), ("residual + hold", 10), (RELEASED, 10),
    ]  # fmt: skip
    assert result["command"].startswith("python -m benchmarks.steps tiny --repeats 1")
    printed = capsys.readouterr().out
    assert all(f"| {way} |" in printed for way in WAYS)


def test_a_preset_of_slow_steps_runs_no_loops_and_the_ways_that_were_asked_for(exact_numbers, monkeypatch, capsys):
    monkeypatch.setitem(steps.PRESETS, "tiny", replace(PRESETS["tiny"], whole_loops=False))
    monkeypatch.setattr(steps, "loops_in_turn", lambda *_: pytest.fail("ran"))
    run(monkeypatch, steps, "tiny", "--repeats", "1", "--ways", UNCACHED, "residual + hold")
    printed = capsys.readouterr().out
    assert "| residual + hold | 25 |" in printed
    assert RELEASED not in printed.replace("x released kit's", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--repeats", "0"),
        ("--budgets", "50"),
        ("--ways", UNCACHED),
        ("--output", "nowhere/tiny.json"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(monkeypatch, capsys, arguments):
    monkeypatch.setattr(steps, "measure", lambda *_: pytest.fail("ran"))
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, steps, "tiny", *arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# ---- memory and counts


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


def test_traffic_is_what_operators_read_and_write():
    with counts.Traffic() as traffic:
        a = torch.ones(10, 4)  # writes 160
        b = a.view(40)[:20]
        b + 1  # reads 80, writes 80
        a.add_(a[:, :1])  # reads 160 and 40, writes 160
        torch.empty(1000)
        torch.ops.aten._unsafe_view(b, [4, 5])
    assert traffic.total == 160 + 160 + 360
    assert counts.distinct_bytes(torch.ones(1, 4).expand(100, 4)) == 16


def test_autocast_is_imitated_where_layers_call_it():
    tokens = torch.ones(2, 3, 8, device="meta", dtype=torch.bfloat16)
    with counts.CudaAutocast():
        assert torch.nn.LayerNorm(8, device="meta")(tokens).dtype == torch.float32
        assert torch.nn.Linear(8, 4, device="meta")(tokens.float()).dtype == torch.bfloat16
        assert torch.nn.Conv3d(8, 4, 1, device="meta")(torch.ones(1, 8, 2, 2, 2, device="meta")).dtype == torch.bfloat16
        assert F.silu(tokens).dtype == torch.bfloat16


def test_counted_on_the_meta_device_a_reused_step_costs_a_fraction_and_keeps_one_tensor(monkeypatch, tmp_path, capsys):
    output = tmp_path / "counts.json"
    run(monkeypatch, counts, "tiny", "--output", str(output))
    result = json.loads(output.read_text())["tiny"]
    runs, residual = result["runs"], result["residual_bytes"]
    for way in ("residual + hold", "velocity + hold"):
        assert runs[way]["full"]["operations"] == runs[UNCACHED]["full"]["operations"]
        assert runs[way]["reused"]["operations"] < runs[way]["full"]["operations"] / 50
        assert runs[way]["reused"]["traffic"] < runs[RELEASED]["reused"]["traffic"]
    assert [runs[way]["held"] / residual for way in counts.WAYS[:-1]] == [0, 1, 0.5]
    assert runs[RELEASED]["held"] > 4 * residual
    printed = capsys.readouterr().out
    assert "| velocity + hold | 0.0 |" in printed
    assert f"| {RELEASED} |" in printed
