"""The experiment with whole paths: its search, and the cached runs that it measures, on the real package."""

from dataclasses import replace

import pytest
import torch
from refine_masks import LEAST_GAIN, Runner, Trial, moved, sweep

from lemica import replay
from lemica.masks import Mask

MODEL = "480p_t2v_distilled"
N = 8


def tried(path, *errors) -> Trial:
    return Trial(path, list(errors), [])


def test_a_sweep_moves_every_inner_step_as_far_as_that_helps():
    goal, paths = (0, 3, 5, 9), []

    def attempt(path, _best=None):
        paths.append(path)
        return tried(path, float(sum(abs(step - wanted) for step, wanted in zip(path, goal, strict=True))))

    assert sweep(attempt((0, 1, 8, 9)), attempt).path == goal
    assert len(set(paths)) == len(paths)


def test_a_gain_as_small_as_luck_and_an_error_that_is_no_number_are_no_gains():
    best = tried((0, 2, 5), 1.0)
    assert sweep(best, lambda path, _: tried(path, 1.0 - LEAST_GAIN / 2)) is best
    assert sweep(best, lambda path, _: tried(path, float("nan"))) is best


def test_a_sure_gain_is_one_of_so_many_standard_errors():
    before, after = tried((0, 2, 5), 1.0, 2.0, 3.0, 4.0), tried((0, 3, 5), 0.5, 1.5, 2.9, 4.0)
    # Gains of 0.5, 0.5, 0.1 and 0: mean 0.275, standard error 0.1315.
    assert after.gain_over(before, 0) == pytest.approx(0.275)
    assert after.gain_over(before, 2) == pytest.approx(0.275 - 2 * 0.131498, abs=1e-5)
    assert sweep(before, lambda *_: after, sure=2.0).path == (0, 3, 5)
    assert sweep(before, lambda *_: after, sure=2.1) is before


def test_steps_do_not_move_onto_others():
    assert moved((0, 1, 4, 5), 1, -1) is None
    assert moved((0, 1, 4, 5), 2, 1) is None
    assert moved((0, 1, 4, 5), 1, 1) == (0, 2, 4, 5)


@pytest.fixture
def pipe(load_pipeline):
    pipe = load_pipeline(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def inputs(pipe):
    shape = dict(num_steps=N, aspect_ratio="1:1", video_length=1)
    return replay.prepare(pipe, prompt="a red circle moves left", seed=3, **shape)


def fitted_mask(*path: int, tilt: float = 0.0) -> Mask:
    """Two kept velocities; with a tilt, other weights from the sixth step on."""
    weights = [() if s in path else (-0.5 - tilt * (s > 4), 1.5 + tilt * (s > 4)) for s in range(N)]
    return Mask(MODEL, N, path, "by hand", "velocity", "fitted", tuple(weights))


def whole_run(pipe, inputs, mask: Mask) -> torch.Tensor:
    return pipe.denoise(replace(inputs, rule=mask.rule), mask=mask.steps)


def test_a_run_like_another_is_the_whole_run_to_the_bit_and_costs_the_rest(pipe, inputs):
    forwards = []
    runner = Runner(pipe, inputs, lambda: forwards.append(None))
    first = runner.run(fitted_mask(0, 1, 2, 4, 7))
    forwards.clear()
    mask = fitted_mask(0, 1, 2, 5, 7)
    run = runner.run(mask, first)
    assert len(forwards) == 2
    assert torch.equal(run.latents[-1], whole_run(pipe, inputs, mask))
    assert len(run.latents) == N + 1
    assert list(run.recorded) == list(mask.computed_steps)
    assert torch.equal(runner.run(mask, run).latents[-1], run.latents[-1])
    assert len(forwards) == 2


def test_masks_that_differ_in_weights_only_share_the_steps_before_them(pipe, inputs):
    runner = Runner(pipe, inputs, lambda: None)
    first, tilted = runner.run(fitted_mask(0, 1, 3, 7)), fitted_mask(0, 1, 3, 7, tilt=0.25)
    run = runner.run(tilted, first)
    assert torch.equal(run.latents[-1], whole_run(pipe, inputs, tilted))
    assert not torch.equal(run.latents[-1], first.latents[-1])
    assert run.latents[5] is first.latents[5] and run.latents[6] is not first.latents[6]


def test_the_error_is_that_of_the_final_latents_in_decibels(pipe, inputs):
    runner = Runner(pipe, inputs, lambda: None)
    run = runner.run(fitted_mask(0, 1, 4, 7))
    uncached = pipe.denoise(inputs, mask=(True,) * N)
    error = (run.latents[-1] - uncached).double().square().mean()
    assert runner.error(run) == pytest.approx(10 * float(error.log10()))
    assert runner.error(runner.run(fitted_mask(*range(N)))) == -float("inf")
