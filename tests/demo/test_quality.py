"""The measurements on the demo model: what is compared, on which pairs, and how the tables come out of the numbers."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

from demo.arithmetic import arithmetic
from demo.calibrations import CHECKPOINT, calibration
from demo.data import is_held_out, prompt_of, spec_of
from demo.methods import read_methods
from demo.pairs import Batch, Pair, batches
from demo.quality import main, quality
from demo.results import budget_table, gain_table, merged, methods_in, read_results, rows_of, write_results
from lemica.masks import balanced_mask, step_mask, uniform_mask
from lemica.planning.plan import plan, with_forecast

MEASUREMENTS = REPOSITORY / "assets" / "measurements"


def methods_of(folder, *entries):
    path = folder / "methods.json"
    path.write_text(json.dumps(entries))
    return read_methods(path, "t2v", "fp32")


def test_every_kind_of_method_has_its_steps_and_its_rule(tmp_path):
    released, uniform, balanced, planned, plain, fitted, fewer, floor = methods_of(
        tmp_path,
        {"name": "released", "steps": 50, "budgets": [20]},
        {"name": "uniform", "steps": 50, "budgets": [20], "mask": "uniform", "kept": "velocity", "forecast": "damped"},
        {"name": "balanced", "steps": 50, "budgets": [20], "mask": "balanced"},
        {"name": "minimax", "steps": 50, "budgets": [20], "mask": "planned", "forecast": "fitted", "history": 3},
        {
            "name": "no correction",
            "steps": 50,
            "budgets": [20],
            "mask": "planned",
            "forecast": "fitted",
            "correct": False,
        },
        {"name": "released", "steps": 50, "budgets": [20], "forecast": "fitted"},
        {"name": "fewer", "steps": 6, "budgets": [3], "sampler": True},
        {"name": "floor", "steps": 50, "budgets": [20], "floor": True},
    )
    graph = calibration("t2v_50")
    assert released.mask.steps == step_mask(20, 50)
    assert (released.mask.kept, released.mask.rule) == ("residual", "hold")
    assert uniform.mask.steps == uniform_mask(20, 50)
    assert (uniform.mask.kept, uniform.mask.rule) == ("velocity", "damped")
    assert balanced.mask.steps == balanced_mask(20, 50, graph.target.sigmas)
    assert planned.mask == plan(graph, 20, "fitted", history=3)
    assert plain.mask == plan(graph, 20, correct=False)
    assert fitted.mask.steps == step_mask(20, 50)
    assert fitted.mask.weights == with_forecast(step_mask(20, 50), graph, "fitted").weights
    assert fewer.sampler and fewer.mask.budget == 3
    assert floor.floor and floor.key == "50 steps, B = 20, floor"


def test_in_bfloat16_masks_are_planned_on_graphs_of_that_arithmetic(tmp_path):
    path = tmp_path / "methods.json"
    path.write_text(json.dumps([{"name": "minimax", "steps": 30, "budgets": [20], "mask": "planned"}]))
    (method,) = read_methods(path, "i2v", "bf16")
    assert method.mask == plan(calibration("i2v_30_bf16"), 20, "hold")


def test_a_methods_key_tells_steps_budget_name_and_rule(tmp_path):
    method, fewer = methods_of(
        tmp_path,
        {"name": "minimax", "steps": 50, "budgets": [20], "mask": "planned", "forecast": "hold"},
        {"name": "fewer", "steps": 50, "budgets": [20], "sampler": True},
    )
    assert method.key == "50 steps, B = 20, minimax, velocity + hold"
    assert fewer.key == "50 steps, B = 20, fewer"


def test_methods_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two methods are called"):
        methods_of(tmp_path, {"name": "released", "steps": 50, "budgets": [20, 20]})


def test_rows_hold_mean_worst_standard_error_and_paired_difference():
    x, y = "50 steps, B = 20, fewer steps", "50 steps, B = 20, uniform, residual + hold"
    results = {
        "a": {x: {"psnr": 30.0, "ssim": 0.9}, y: {"psnr": 29.0, "ssim": 0.8}},
        "b": {x: {"psnr": 34.0, "ssim": 0.7}, y: {"psnr": 31.0, "ssim": 0.6}},
        "c": {y: {"psnr": 99.0, "ssim": 0.1}},
    }
    fewer, uniform = rows_of(results, against="fewer steps")
    assert (fewer.pairs, fewer.psnr, fewer.worst, fewer.worst_ssim) == (2, 32.0, 30.0, 0.7)
    assert (fewer.error, fewer.ssim, fewer.ssim_error) == pytest.approx((2.0, 0.8, 0.1))
    assert (fewer.gain, fewer.gain_error) == (0.0, 0.0)
    assert (uniform.pairs, uniform.psnr) == (3, 53.0)
    # Differences are of pairs: the one that only one of the two has run counts for none.
    assert uniform.gain == -2.0
    assert uniform.gain_error == pytest.approx(1.0)
    assert all(math.isnan(row.gain) for row in rows_of(results))


def test_results_are_read_as_they_were_written_and_files_are_joined(tmp_path):
    first = {"a": {"x": {"psnr": 30.25, "ssim": 0.5}}, "b": {"x": {"psnr": math.inf, "ssim": 1.0}}}
    second = {"b": {"y": {"psnr": 20.0, "ssim": 0.25}}, "c": {"x": {"psnr": 1.0, "ssim": 0.125}}}
    for name, results in (("first", first), ("second", second)):
        write_results(results, tmp_path / name)
        assert read_results(tmp_path / name) == results
    both = merged([tmp_path / "first", tmp_path / "second"])
    assert both == {"a": first["a"], "b": first["b"] | second["b"], "c": second["c"]}


def test_budgets_become_columns():
    psnrs = {"B = 10, uniform": (30.0, 32.0), "B = 25, uniform": (40.0, 42.0), "B = 25, floor": (50.0, 54.0)}
    results = {
        name: {f"50 steps, {key}": {"psnr": psnr[place], "ssim": 0.9} for key, psnr in psnrs.items()}
        for place, name in enumerate(("a", "b"))
    }
    rows = list(rows_of(results, "floor"))
    header, _, line, floor, _ = budget_table(rows)
    assert header == "| 50 steps, PSNR in dB | B = 25 | B = 10 |"
    assert line == "| uniform | 41.0 ± 1.0 (40.0) | 31.0 ± 1.0 (30.0) |"
    assert floor == "| floor | 52.0 ± 2.0 (50.0) |  |"
    header, _, line, _ = gain_table([row for row in rows if row.parts[1:] == ("B = 25", "uniform")])
    assert header == "| 50 steps, difference in dB | B = 25 |"
    assert line == "| uniform | -11.0 ± 1.0 |"


def test_quality_of_equal_videos_is_perfect():
    video = np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)
    assert quality(video, video) == {"psnr": math.inf, "ssim": 1.0}
    assert quality(video, np.clip(video + 0.1, 0, 1))["psnr"] < 25


def test_pairs_are_held_out_and_image_to_video_starts_from_the_drawn_video(load_pipeline):
    assert all(is_held_out(prompt_of(spec_of(index, held_out=True))) for index in range(32))
    pair = Pair(load_pipeline("480p_i2v"), 1)
    assert pair.image.size == (80, 48)


def test_pairs_of_one_format_make_batches(load_pipeline):
    made = batches(load_pipeline("480p_t2v"), range(10), 3)
    assert [[pair.index for pair in batch.pairs] for batch in made] == [[0, 3, 6], [9], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize("version", ["480p_t2v", "480p_i2v"])
def test_what_a_pair_gets_does_not_depend_on_the_batch_but_for_rounding(load_pipeline, monkeypatch, version):
    monkeypatch.setattr("demo.pairs.FRAMES", 5)
    pairs = [Pair(load_pipeline(version), index) for index in (1, 4)]
    with torch.no_grad():
        together = Batch(pairs).reference(4)
        alone = [Batch([pair]).reference(4)[0] for pair in pairs]
        moved = Batch(pairs).floor(4)
    assert all(np.abs(mine - its).max() < 1e-3 for mine, its in zip(together, alone, strict=True))
    assert np.abs(together[0] - together[1]).max() > 0.1
    assert all(0 < np.abs(mine - its).max() < 1e-2 for mine, its in zip(together, moved, strict=True))


def test_a_run_measures_and_goes_on_and_the_table_shows_it(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("demo.pairs.FRAMES", 5)
    methods, output = tmp_path / "methods.json", tmp_path / "pairs.json"
    first = {"name": "all computed", "steps": 4, "budgets": [4]}
    second = {"name": "held", "steps": 4, "budgets": [3], "kept": "velocity"}
    third = {"name": "fewer", "steps": 4, "budgets": [3], "sampler": True}
    command = ["run", str(methods), "--checkpoint", str(checkpoint), "--pairs", "0:1", "--output", str(output)]
    methods.write_text(json.dumps([first, second]))
    main(command)
    before = read_results(output)["480p_t2v 0"]
    assert before["4 steps, B = 4, all computed, residual + hold"] == {"psnr": math.inf, "ssim": 1.0}
    assert math.isfinite(before["4 steps, B = 3, held, velocity + hold"]["psnr"])
    methods.write_text(json.dumps([first, second, third]))
    main(command)
    after = read_results(output)["480p_t2v 0"]
    assert {key: after[key] for key in before} == before
    capsys.readouterr()
    main(["table", str(output), "--against", "fewer"])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5
    assert "| 4 steps, B = 3, fewer | 1 |" in table[-1]


@pytest.mark.parametrize(("task", "dtype"), list(product(("t2v", "i2v"), ("bf16", "fp32"))))
def test_the_published_results_are_of_the_methods_in_the_list(task, dtype):
    listed = "methods" if (task, dtype) == ("t2v", "bf16") else "methods_short"
    keys = [method.key for method in read_methods(REPOSITORY / "demo" / f"{listed}.json", task, dtype)]
    measured = read_results(MEASUREMENTS / f"quality_{task}_{dtype}.json")
    assert methods_in(measured) == keys
    assert list(measured) == [f"480p_{task} {pair}" for pair in range(32)]
    assert all(rows.keys() == set(keys) for rows in measured.values())


def test_the_arithmetic_of_a_gpu_runs_on_a_cpu():
    with arithmetic("bf16"):
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(CHECKPOINT), "480p_t2v")
    assert (pipe.target_dtype, pipe.autocast_enabled, pipe.vae_dtype) == (torch.bfloat16, True, torch.float32)
    assert not HunyuanVideo_1_5_Pipeline.create_pipeline(str(CHECKPOINT), "480p_t2v").autocast_enabled
