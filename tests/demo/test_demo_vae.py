"""The start of the demo's autoencoder as a linear codec, and the training that goes on from there."""

import copy

import pytest
import torch

from demo.data import render, spec_of
from demo.train_vae import VaeRun, VaeTraining, fitted_vae, reconstruction_psnr, train, training_clips

TRAINING = VaeTraining(steps=2, fitted=48)


@pytest.fixture(scope="module")
def vae():
    return fitted_vae(TRAINING)


def videos(count):
    return [render([spec_of(index)], (64, 64), 9) for index in range(count)]


@pytest.mark.slow
def test_the_start_shows_the_videos_that_it_is_fitted_to(vae):
    grey = sum((-10 * torch.log10((clip / 2).square().mean())).item() for clip in videos(6)) / 6
    assert reconstruction_psnr(vae, videos(6)) > grey + 8


@pytest.mark.slow
def test_latents_have_no_mean_and_after_scaling_unit_deviation(vae):
    with torch.no_grad():
        latents = torch.cat([vae.encode(clip).latent_dist.mode() for clip in videos(48)]) * vae.config.scaling_factor
    assert abs(latents.mean()) < 0.1
    assert latents.std() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_the_first_frame_alone_has_the_first_latents_of_the_video(vae):
    clip = videos(1)[0]
    with torch.no_grad():
        whole, first = (vae.encode(part).latent_dist.mode() for part in (clip, clip[:, :, :1]))
    torch.testing.assert_close(whole[:, :, :1], first, rtol=1e-4, atol=1e-4)


def test_clips_of_a_step_depend_on_step_and_seed_alone():
    assert torch.equal(training_clips(3, seed=1), training_clips(3, seed=1))
    assert not torch.equal(training_clips(3, seed=1), training_clips(3, seed=2))
    assert training_clips(0, seed=0).abs().max() <= 1


@pytest.mark.slow
def test_training_resumes_where_it_was_saved_and_leaves_the_encoder_alone(vae, tmp_path, monkeypatch):
    monkeypatch.setattr("demo.train_vae.fitted_vae", lambda _: copy.deepcopy(vae))
    whole = VaeRun(tmp_path / "whole", TRAINING)
    train(whole, every=2, clips=videos(1))
    half = VaeRun(tmp_path / "half", TRAINING)
    half.advance()
    half.save()
    resumed = VaeRun(tmp_path / "half", TRAINING)
    train(resumed, every=2, clips=videos(1))
    assert all(torch.equal(resumed.average.values[name], value) for name, value in whole.average.values.items())
    encoders = (run.vae.encoder.state_dict() for run in (whole, resumed))
    assert all(torch.equal(a, b) for a, b in zip(*(e.values() for e in encoders), strict=True))
