"""The measurements on the demo model: what is compared, on which pairs, and how the table comes out of the numbers."""

import json
import math

import numpy as np
import pytest
from conftest import REPOSITORY
from demo.data import is_held_out, prompt_of, spec_of
from hyvideo.commons.infer_state import step_mask
from demo.quality import Pair, budget_table, main, quality, read_methods, rows_of

from lemica.masks import Mask, static_mask, uniform_mask, write_mask

MEASUREMENTS = REPOSITORY / "assets" / "measurements"


def methods_of(folder, *entries):
    path = folder / "methods.json"
    path.write_text(json.dumps(entries))
    return read_methods(path)


def test_every_kind_of_method_has_its_steps(tmp_path):
    write_mask(Mask("m", 6, (0, 2, 5), "test", "output", "hold"), tmp_path / "mask3.json")
    released, uniform, static, planned, fewer = methods_of(
        tmp_path,
        {"name": "released", "steps": 50, "budgets": [20]},
        {"name": "uniform", "steps": 50, "budgets": [20], "uniform": True},
        {"name": "static", "steps": 50, "static": True},
        {"name": "planned", "steps": 6, "budgets": [3], "mask": "mask{budget}.json"},
        {"name": "fewer", "steps": 6, "budgets": [3], "sampler": True},
    )
    assert released.mask == step_mask(20, 50)
    assert uniform.mask == uniform_mask(20, 50)
    assert static.mask == static_mask(50)
    assert planned.mask == (True, False, True, False, False, True)
    assert planned.rule.reuse == "output"
    assert fewer.sampler and sum(fewer.mask) == 3


def test_a_methods_own_rule_goes_before_the_masks(tmp_path):
    write_mask(Mask("m", 6, (0, 2, 5), "test"), tmp_path / "mask.json")
    (method,) = methods_of(tmp_path, {"name": "planned", "steps": 6, "mask": "mask.json", "reuse": "output"})
    assert method.key == "6 steps, B = 3, planned, output + hold"


def test_methods_that_cannot_be_told_apart_are_refused(tmp_path):
    entry = {"name": "released", "steps": 50, "budgets": [20, 20]}
    with pytest.raises(ValueError, match="two methods are called"):
        methods_of(tmp_path, entry)


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
    assert all(math.isnan(row.gain) for row in rows_of(results, against=None))


def test_budgets_become_columns():
    ways = {"50 steps, B = 10, uniform, residual + hold": 30.0, "50 steps, B = 25, uniform, residual + hold": 40.0}
    results = {"a": {key: {"psnr": psnr, "ssim": 0.9} for key, psnr in ways.items()}}
    header, _, line, _ = budget_table(list(rows_of(results, None)))
    assert header == "| 50 steps, PSNR in dB | B = 25 | B = 10 |"
    assert line == "| uniform, residual + hold | 40.0 (worst 40.0) | 30.0 (worst 30.0) |"


def test_quality_of_equal_videos_is_perfect():
    video = np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)
    assert quality(video, video) == {"psnr": math.inf, "ssim": 1.0}
    assert quality(video, np.clip(video + 0.1, 0, 1))["psnr"] < 25


def test_pairs_are_held_out_and_image_to_video_starts_from_the_drawn_video(load_pipeline):
    assert all(is_held_out(prompt_of(spec_of(index, held_out=True))) for index in range(32))
    pair = Pair(load_pipeline("480p_i2v"), 1)
    assert pair.image.size == (80, 48)


def test_a_run_measures_and_goes_on_and_the_table_shows_it(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("measure_quality.FRAMES", 5)
    methods = tmp_path / "methods.json"
    first = {"name": "all computed", "steps": 4, "budgets": [4]}
    second = {"name": "frozen", "steps": 4, "budgets": [3], "reuse": "output"}
    third = {"name": "fewer", "steps": 4, "budgets": [3], "sampler": True}
    output = tmp_path / "pairs.json"
    command = ["run", str(methods), "--checkpoint", str(checkpoint), "--pairs", "0:1", "--output", str(output)]
    methods.write_text(json.dumps([first, second]))
    main(command)
    before = json.loads(output.read_text())
    assert before["480p_t2v 0"]["4 steps, B = 4, all computed, residual + hold"] == {"psnr": math.inf, "ssim": 1.0}
    methods.write_text(json.dumps([first, second, third]))
    main(command)
    after = json.loads(output.read_text())["480p_t2v 0"]
    assert {key: after[key] for key in before["480p_t2v 0"]} == before["480p_t2v 0"]
    capsys.readouterr()
    main(["table", str(output), "--against", "fewer"])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5
    assert "| 4 steps, B = 3, fewer | 1 |" in table[-1]


@pytest.mark.parametrize("name", ["t2v_methods.json", "t2v_planner_methods.json"])
def test_the_published_lists_of_methods_can_be_read(name):
    methods = read_methods(MEASUREMENTS / name)
    assert {sum(method.mask) for method in methods if method.num_steps == 50} >= {25, 20, 15, 10}
