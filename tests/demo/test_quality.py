"""The measurements on the demo model: what is compared, on which pairs, and how the tables come out of the numbers."""

import math

import numpy as np
import pytest
import torch
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

from demo.arithmetic import arithmetic
from demo.calibrations import CHECKPOINT
from demo.data import is_held_out, prompt_of, spec_of
from demo.methods import Method
from demo.pairs import Batch, Pair, batches
from demo.quality import measure, quality
from demo.results import budget_table, gain_table, read_results, rows_of, write_results
from lemica.masks import Mask, step_mask


def test_a_methods_key_tells_steps_budget_name_and_rule():
    steps = step_mask(20, 50)
    assert Method("minimax", Mask(steps, "velocity")).key == "50 steps, B = 20, minimax, velocity + hold"
    assert Method("fewer", Mask(steps), sampler=True).key == "50 steps, B = 20, fewer"


def test_rows_hold_mean_worst_standard_error_and_paired_difference():
    x, y = "50 steps, B = 20, fewer steps", "50 steps, B = 20, uniform, residual + hold"
    results = {
        "a": {x: {"psnr": 30.0, "ssim": 0.9}, y: {"psnr": 29.0, "ssim": 0.8}},
        "b": {x: {"psnr": 34.0, "ssim": 0.7}, y: {"psnr": 31.0, "ssim": 0.6}},
        "c": {y: {"psnr": 99.0, "ssim": 0.1}},
    }
    fewer, uniform = rows_of(results, against="fewer steps")
    assert (fewer.psnr, fewer.error, fewer.worst) == (32.0, pytest.approx(2.0), 30.0)
    assert (fewer.gain, fewer.gain_error) == (0.0, 0.0)
    assert uniform.psnr == 53.0
    # Differences are of pairs: the one that only one of the two has run counts for none.
    assert uniform.gain == -2.0
    assert uniform.gain_error == pytest.approx(1.0)
    assert all(math.isnan(row.gain) for row in rows_of(results))


def test_results_are_read_as_they_were_written(tmp_path):
    results = {"a": {"x": {"psnr": 30.25, "ssim": 0.5}}, "b": {"x": {"psnr": math.inf, "ssim": 1.0}}}
    results["b"]["y"] = {"psnr": 20.0, "ssim": 0.25}
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results


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
    assert all(np.abs(mine - its).max() < 1e-3 for mine, its in zip(together, alone, strict=True))
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_a_study_measures_every_method_on_every_pair(load_pipeline, monkeypatch):
    monkeypatch.setattr("demo.pairs.FRAMES", 5)
    steps = (True, True, False, True)
    methods = [
        Method("all", Mask((True,) * 4)),
        Method("held", Mask(steps)),
        Method("fewer", Mask(steps), sampler=True),
    ]
    with torch.no_grad():
        found = measure(load_pipeline("480p_t2v"), [1, 0], methods)
    assert list(found) == [1, 0]
    for rows in found.values():
        computed, held, fewer = rows.values()
        assert computed == {"psnr": math.inf, "ssim": 1.0}
        assert math.isfinite(held["psnr"]) and math.isfinite(fewer["psnr"])


def test_the_arithmetic_of_a_gpu_runs_on_a_cpu():
    with arithmetic("bf16"):
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(CHECKPOINT), "480p_t2v")
    assert (pipe.target_dtype, pipe.autocast_enabled, pipe.vae_dtype) == (torch.bfloat16, True, torch.float32)
    assert not HunyuanVideo_1_5_Pipeline.create_pipeline(str(CHECKPOINT), "480p_t2v").autocast_enabled
