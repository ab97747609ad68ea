"""The demo model: its data, its trainings, and what the shipped checkpoint can do."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY

from demo.attention import fused_attention
from demo.calibrations import CHECKPOINT
from demo.data import is_held_out, prompt_of, render, spec_of
from demo.steering import FRAMES, SIZE, describe, note, rates, through_autoencoder
from demo.train_model import (
    Training,
    TransformerRun,
    draw_batch,
    encode_prompts,
    every_prompt,
    float32_muon,
    training_videos,
    velocity_loss,
)

SPECS = [spec_of(index, held_out=True) for index in range(24)]


@pytest.fixture(scope="module")
def pipe(exact_numbers):
    from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

    loaded = HunyuanVideo_1_5_Pipeline.create_pipeline(str(CHECKPOINT), "480p_t2v")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def drawn(specs):
    return render(specs, SIZE, FRAMES).div(2).add(0.5)


def test_drawn_videos_are_read_as_their_prompts_say():
    assert rates(SPECS, [describe(video) for video in drawn(SPECS)]) == dict(shape=1, colour=1, motion=1, all=1)


def test_training_never_sees_a_held_out_combination():
    assert all(is_held_out(prompt_of(spec)) for spec in SPECS)
    assert not any(is_held_out(prompt_of(spec_of(index))) for index in range(200))


def test_checkpoint_weighs_less_than_25_megabytes():
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if not path.is_symlink()) < 25e6


def test_weights_are_stored_in_half_precision():
    from safetensors import safe_open

    for path in CHECKPOINT.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}, path  # noqa: SIM118


def test_one_set_of_weights_serves_both_tasks():
    folders = [CHECKPOINT / "transformer" / version for version in ("480p_t2v", "480p_i2v")]
    weights, configs = zip(
        *((f / "diffusion_pytorch_model.safetensors", json.loads((f / "config.json").read_text())) for f in folders),
        strict=True,
    )
    assert weights[0].samefile(weights[1])
    assert [config["ideal_task"] for config in configs] == ["t2v", "i2v"]


def test_autoencoder_shows_colour_shape_and_motion():
    specs = SPECS[:12]
    found = rates(specs, [describe(video) for video in through_autoencoder(CHECKPOINT, drawn(specs))])
    assert found["colour"] == found["motion"] == 1
    assert found["shape"] >= 0.75


def test_prompts_steer_the_colour(pipe):
    specs = SPECS[:3]
    request = dict(aspect_ratio="1:1", video_length=FRAMES, prompt_rewrite=False, enable_sr=False)
    with fused_attention():
        videos = [
            pipe(prompt_of(spec), seed=i, num_inference_steps=25, **request).videos[0] for i, spec in enumerate(specs)
        ]
    assert [describe(video).colour for video in videos] == [spec.colour for spec in specs]


def test_fused_attention_equals_upstreams(pipe):
    settings = dict(aspect_ratio="1:1", video_length=5, prompt_rewrite=False, enable_sr=False, output_type="latent")
    request = dict(prompt=prompt_of(SPECS[0]), seed=0, num_inference_steps=2, **settings)
    upstreams = pipe(**request).videos
    with fused_attention():
        fused = pipe(**request).videos
    torch.testing.assert_close(fused, upstreams, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def lesson(pipe):
    training = Training(steps=4, batch=2, videos=8)
    sets = training_videos(pipe, training)
    return training, sets, encode_prompts(pipe, sorted(set(every_prompt(sets))))


def run_steps(run: TransformerRun, count: int, lesson) -> TransformerRun:
    with fused_attention(), float32_muon():
        for _ in range(count):
            run.advance(draw_batch(run.step, *lesson))
    return run


def test_an_interrupted_training_ends_as_an_uninterrupted_one(pipe, lesson, tmp_path):
    config = dict(pipe.transformer.config)
    whole = run_steps(TransformerRun(tmp_path / "whole", lesson[0], config), 4, lesson)
    run_steps(TransformerRun(tmp_path / "halves", lesson[0], config), 2, lesson).save()
    resumed = run_steps(TransformerRun(tmp_path / "halves", lesson[0], config), 2, lesson)
    assert resumed.step == whole.step
    assert all(torch.equal(resumed.average.values[name], value) for name, value in whole.average.values.items())


def test_the_shipped_model_predicts_velocities_better_than_a_fresh_one(pipe, lesson, tmp_path):
    batch = draw_batch(0, replace(lesson[0], batch=8), *lesson[1:])
    fresh = TransformerRun(tmp_path, lesson[0], dict(pipe.transformer.config)).model
    with fused_attention(), torch.no_grad():
        trained, untrained = velocity_loss(pipe.transformer, batch), velocity_loss(fresh, batch)
    assert trained < 0.5 * untrained


@pytest.mark.parametrize(
    ("name", "module"),
    [("training", "train_model"), ("training_again", "train_model"), ("vae", "train_vae")],
)
def test_logs_of_the_trainings_say_how_to_repeat_them(name, module):
    log = json.loads((CHECKPOINT / f"{name}.json").read_text())
    assert log["command"].startswith(f"python -m demo.{module} OUTPUT ")
    assert (REPOSITORY / "demo" / f"{module}.py").is_file()
    assert {"command", "machine", "training", "seconds", "log"} <= log.keys()


def test_readings_of_several_checkpoints_are_kept_side_by_side(tmp_path):
    path = tmp_path / "steering.json"
    first, second = ({"generated": {"all": share}} for share in (0.5, 1.0))
    video = {"prompt": "a red circle grows over sand", "seed": 1, "shape": "circle"}
    note(path, "first", first, [video, video])
    note(path, "second", second, [video])
    assert json.loads(path.read_text()) == {
        "first": {"rates": first, "generated": [video, video]},
        "second": {"rates": second, "generated": [video]},
    }
