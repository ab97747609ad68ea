"""Calibration on the real pipeline: replays against whole runs, costs against forwards made, ranks, resuming."""

import itertools
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TREE, clean_environment
from hyvideo.commons.infer_state import ReuseRule, initialize_infer_state
from hyvideo.pipelines.hunyuan_video_pipeline import StepCache

from lemica import calibrate, replay, samples
from lemica.__main__ import build_parser
from lemica.__main__ import main as lemica
from lemica.checkpoints import Checkpoints, Unit, units_of_rank
from lemica.edges import EXACT, FAST, Errors, fast_edges, gain_edges, joined, sample_graph, work_for
from lemica.graph import edge_pairs, read_graph

N, D = 8, 4
SAMPLE = dict(prompt="a red circle moves left", seed=3, num_steps=N, aspect_ratio="1:1", video_length=1)


def uncounted() -> None:
    """A stand-in where nobody counts forwards."""


@pytest.fixture
def pipe(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    return pipe


class BlockCounter:
    """Counts how often a transformer's block stack is entered."""

    def __init__(self, pipe):
        self.count = 0
        self._block = pipe.transformer.double_blocks[0]

    def __enter__(self):
        self._hook = self._block.register_forward_pre_hook(self._step)
        return self

    def __exit__(self, *_):
        self._hook.remove()

    def _step(self, *_):
        self.count += 1


@pytest.fixture(scope="module")
def recorded(load_pipeline):
    """(inputs, trajectory) of one sample; recorded once, because replays leave it as it is."""
    pipe = load_pipeline("480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    inputs = replay.prepare(pipe, **SAMPLE)
    return inputs, replay.Trajectory(pipe, inputs, uncounted)


def segment(i: int, j: int) -> tuple[bool, ...]:
    """The mask that reuses the steps between i and j only."""
    return tuple(not i < step < j for step in range(N))


def whole_run(pipe, inputs, mask) -> list[torch.Tensor]:
    """The latents before every step and after the last, of a run from the noise that obeys `mask` all the way."""
    latents = [inputs.noise]
    pipe.denoise(inputs, mask=mask, on_step=lambda _, after: latents.append(after))
    return latents


def mean_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left.double() - right.double()).abs().mean())


def test_the_trajectory_is_the_run_without_cache(pipe, recorded):
    _, trajectory = recorded
    arguments = {("num_inference_steps" if name == "num_steps" else name): value for name, value in SAMPLE.items()}
    result = pipe(**arguments, enable_sr=False, prompt_rewrite=False, output_type="latent").videos
    assert torch.equal(trajectory.latents[-1], result)
    assert len(trajectory.latents) == N + 1
    assert len(trajectory.recorded) == N
    assert len({float(residual.sum()) for residual in trajectory.recorded}) == N


def test_a_sample_with_an_image(load_pipeline, reference_image, tmp_path):
    reference_image.save(tmp_path / "first.png")
    pipe = load_pipeline("480p_i2v")
    sample = SAMPLE | {"num_steps": 3, "image_path": str(tmp_path / "first.png")}
    errors = replay.measure(pipe, replay.prepare(pipe, **sample), work_for(EXACT, 3, 2), 2, uncounted)
    assert [edge[:2] for edge in errors.final] == [(0, 2)]
    assert errors.final[0][2] > 0


def test_products_are_those_of_the_velocities_by_which_the_sampler_goes(pipe, recorded, monkeypatch):
    inputs, trajectory = recorded
    guide, velocities = pipe._guide, []

    def noting(velocity):
        velocities.append(guide(velocity).double().flatten())
        return velocities[-1].float().view(inputs.noise.shape)

    monkeypatch.setattr(pipe, "_guide", noting)
    pipe.denoise(inputs, mask=(True,) * N)
    flat = torch.stack(velocities)
    products = np.array(trajectory.velocity_products())
    assert np.array_equal(products, products.T)
    assert products == pytest.approx((flat @ flat.T / flat.shape[1]).numpy(), rel=1e-4)
    assert trajectory.sigmas[:-1] == pytest.approx((inputs.timesteps / 1000).tolist())
    assert trajectory.sigmas[-1] == 0


@pytest.mark.parametrize(("i", "j"), [(0, 2), (0, 4), (2, 5), (5, 7)])
def test_an_exact_edge_is_the_error_of_the_whole_run_with_that_segment_reused(pipe, recorded, i, j):
    inputs, trajectory = recorded
    latents = whole_run(pipe, inputs, segment(i, j))
    assert torch.equal(latents[i + 1], trajectory.latents[i + 1])
    with BlockCounter(pipe) as blocks:
        error = trajectory.final_error(i, j)
    assert error == mean_difference(latents[-1], trajectory.latents[-1]) > 0
    assert blocks.count == N - j


def test_local_errors_are_those_of_whole_runs_just_before_the_segment_ends(pipe, recorded):
    inputs, trajectory = recorded
    with BlockCounter(pipe) as blocks:
        edges = trajectory.local_errors(1, D)
        tail = trajectory.local_errors(N - 3, D)
    assert blocks.count == 0
    assert [edge[:2] for edge in edges] == [(1, 3), (1, 4), (1, 5)]
    assert [edge[:2] for edge in tail] == [(N - 3, N - 1)]
    for i, j, error in [*edges, *tail]:
        latents = whole_run(pipe, inputs, segment(i, j))
        assert error == mean_difference(latents[j], trajectory.latents[j]) > 0


@pytest.mark.parametrize("stop", [None, 0, 3, N])
def test_denoise_stops_before_the_step_that_is_asked_for(pipe, recorded, stop):
    inputs, trajectory = recorded
    steps = []
    latents = pipe.denoise(inputs, stop=stop, on_step=lambda step, _: steps.append(step))
    last = N if stop is None else stop
    assert steps == list(range(last))
    assert torch.equal(latents, trajectory.latents[last])


def test_a_replay_leaves_nothing_behind(pipe, recorded, monkeypatch):
    _, trajectory = recorded
    caches = []
    monkeypatch.setattr(StepCache, "clear", lambda cache: caches.append(cache) or cache.kept.clear())
    trajectory.local_errors(0, D)
    assert len(caches) == 1
    assert caches[0].kept == []
    assert pipe.enable_offloading is False


@pytest.mark.parametrize("mode", [FAST, EXACT])
def test_cost_is_the_number_of_forwards_that_are_made(pipe, mode):
    steps, gap = 5, 3
    work = work_for(mode, steps, gap)
    inputs = replay.prepare(pipe, **SAMPLE | {"num_steps": steps})
    reported = []
    with BlockCounter(pipe) as blocks:
        errors = replay.measure(pipe, inputs, work, gap, lambda: reported.append(None))
    assert blocks.count == len(reported) == work.forwards(steps)
    graph = sample_graph(errors, mode, model="tiny", num_steps=steps, max_gap=gap)
    assert [(i, j) for i, j, _ in graph.edges()] == list(edge_pairs(steps, gap))
    assert all(weight > 0 for _, _, weight in graph.edges())


@pytest.mark.parametrize(("steps", "gap", "forwards"), [(50, 8, 7259), (3, 2, 1), (8, 4, 46), (8, 7, 56)])
def test_cost_of_exact_edges(steps, gap, forwards):
    assert forwards == sum((steps - g) * (steps - g + 1) // 2 for g in range(2, gap + 1))
    assert work_for(EXACT, steps, gap).forwards(steps) == steps + forwards


@pytest.mark.parametrize("steps", range(3, 201))
def test_fast_edges_cost_at_most_five_full_runs(steps):
    for gap in range(2, min(10, steps - 1) + 1):
        work = work_for(FAST, steps, gap)
        ends = [j for _, j in work.edges]
        assert work.forwards(steps) <= 5 * steps
        assert {*work.edges} <= {*edge_pairs(steps, gap)}
        assert ends[0] == 2 and ends[-1] == steps - 1 and len(set(ends)) == min(8, steps - 2)
        assert {i for i, _ in edge_pairs(steps, gap)} == set(work.starts)


def errors_of(local, final, num_steps: int = 9) -> Errors:
    """Errors of a run whose velocities do not matter."""
    return Errors(local, final, np.linspace(1, 0, num_steps + 1).tolist(), np.eye(num_steps).tolist())


def errors_with_gain(gain, local) -> Errors:
    return errors_of(
        [(i, j, local(i, j)) for i, j in edge_pairs(30, 5)],
        [(i, j, local(i, j) * gain(j)) for i, j in gain_edges(30, 5)],
    )


def test_fast_edges_recover_a_gain_that_is_linear_in_the_logarithm():
    def local(i, j):
        return (j - i) ** 2 / (i + 3)

    for i, j, weight in fast_edges(errors_with_gain(lambda j: 5 * 0.9**j, local)):
        assert weight == pytest.approx(local(i, j) * 5 * 0.9**j)


def test_fast_edges_hold_where_nothing_changes():
    assert {weight for *_, weight in fast_edges(errors_with_gain(lambda j: 2.0, lambda i, j: 0.0))} == {0.0}
    dead_start = errors_with_gain(lambda j: 2.0, lambda i, j: float(j > 9))
    assert {weight for *_, weight in fast_edges(dead_start)} == {0.0, 2.0}


@pytest.mark.parametrize(("samples", "ranks"), itertools.product(range(1, 8), range(1, 10)))
def test_ranks_share_all_the_work_once_and_evenly(samples, ranks):
    shares = [units_of_rank(samples, ranks, rank) for rank in range(ranks)]
    units = [unit for share in shares for unit in share]
    assert {len(share) for share in shares} == {-(-samples // ranks)}
    for sample in range(samples):
        parts = sorted((unit.part, unit.parts) for unit in units if unit.sample == sample)
        assert parts == [(part, len(parts)) for part in range(len(parts))]
    # A sample is split only where its ranks would stand idle otherwise.
    assert sum(unit.parts == 1 for unit in units) >= samples - samples % ranks


@pytest.mark.parametrize("mode", [FAST, EXACT])
def test_parts_of_a_sample_are_of_about_equal_cost_and_join_to_the_whole(mode):
    work = work_for(mode, 50, 8)
    for count in (2, 3, 7):
        parts = [work.part(index, count) for index in range(count)]
        assert sorted(edge for part in parts for edge in part.edges) == sorted(work.edges)
        assert sorted(start for part in parts for start in part.starts) == sorted(work.starts)
        costs = [part.forwards(50) for part in parts]
        assert max(costs) - min(costs) < 50
    errors = errors_of([(i, j, 0.1 * j) for i, j in edge_pairs(9, 3)], [(i, j, 0.3 * j) for i, j in edge_pairs(9, 3)])
    split = [errors_of(errors.local[k::3], errors.final[k::3]) for k in (2, 0, 1)]
    settings = dict(model="m", num_steps=9, max_gap=3)
    assert sample_graph(joined(split), mode, **settings).edges() == sample_graph(errors, mode, **settings).edges()


def test_cost_in_words():
    assert (
        calibrate.cost(EXACT, work_for(EXACT, 50, 8), 50, 1) == "exact edges: 7309 forwards a sample (146.2 full runs)"
    )
    work = work_for(FAST, 50, 8)
    assert work.forwards(50) == 246
    assert calibrate.cost(FAST, work, 50, 3, 2) == (
        "fast edges: 246 forwards a sample (4.9 full runs), 738 for 3 samples, at most 408 on one of 2 ranks"
    )


def test_checkpoints_keep_every_bit_and_know_what_is_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path / "g.json", {"seeds": [0]})
    errors = errors_of([(0, 2, 0.1 + 0.2)], [(0, 2, 1 / 3)])
    assert checkpoints.errors(1) is None
    checkpoints.save(Unit(1, 0, 2), errors)
    assert checkpoints.errors(1) is None
    assert checkpoints.has(Unit(1, 0, 2)) and not checkpoints.has(Unit(1, 1, 2)) and not checkpoints.has(Unit(1))
    checkpoints.save(Unit(1, 1, 2), errors_of([(1, 3, 1e-300)], []))
    again = Checkpoints(tmp_path / "g.json", {"seeds": [0]})
    assert again.errors(1) == errors_of([[0, 2, 0.1 + 0.2], [1, 3, 1e-300]], [[0, 2, 1 / 3]])
    assert again.has(Unit(1)) and again.errors(11) is None
    again.remove()
    assert os.listdir(tmp_path) == []


# The whole command.


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle moves left\n\n  a blue square moves right over sand \n", encoding="utf-8")
    return path


def command(checkpoint: Path, prompts: Path, output: Path, *more: str) -> list[str]:
    return [
        *("calibrate", "--model_path", str(checkpoint), "--resolution", "480p", "--prompts", str(prompts)),
        *("--num_inference_steps", "4", "--max_gap", "3", "--video_length", "1", "--aspect_ratio", "1:1"),
        *("--cfg_distilled", "true"),
        *("--output", str(output), *more),
    ]


@pytest.fixture
def run(checkpoint, prompts, monkeypatch, load_pipeline):
    """Runs the command in this process, on a model that is loaded once, and counts the forwards."""
    pipe = load_pipeline("480p_t2v_distilled")
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(samples.Samples, "load_pipeline", lambda _: pipe)

    def run(output: Path, *more: str) -> int:
        args = build_parser().parse_args(command(checkpoint, prompts, output, *more))
        with BlockCounter(pipe) as blocks:
            args.run(args)
        return blocks.count

    return run


def test_the_graph_is_the_mean_over_prompts_and_seeds(run, tmp_path, load_pipeline):
    assert run(tmp_path / "g.json", "--seeds", "3", "4", "--edges", "exact") == 4 * work_for(EXACT, 4, 3).forwards(4)
    graph = read_graph(tmp_path / "g.json")
    assert (graph.model, graph.num_steps, graph.max_gap, graph.samples) == ("480p_t2v_distilled", 4, 3, 4)
    errors, pipe = [], load_pipeline("480p_t2v_distilled")
    for prompt, seed in itertools.product(["a red circle moves left", "a blue square moves right over sand"], [3, 4]):
        inputs = replay.prepare(pipe, **SAMPLE | {"num_steps": 4, "prompt": prompt, "seed": seed})
        errors.append(replay.Trajectory(pipe, inputs, uncounted).final_error(1, 3))
    assert len(set(errors)) == 4
    assert graph.weight(1, 3) == pytest.approx(np.mean(errors), rel=1e-12)
    assert graph.spread[1, 2] == pytest.approx(np.std(errors), rel=1e-9)
    assert not (tmp_path / "g.json.partial").exists()


def test_edges_are_measured_for_the_rule_that_is_asked_for(run, tmp_path, load_pipeline):
    rule = ("velocity", "linear-sigma")
    run(tmp_path / "g.json", "--seeds", "3", "--edges", "exact", "--reuse", rule[0], "--forecast", rule[1])
    graph = read_graph(tmp_path / "g.json")
    assert (graph.reuse, graph.forecast) == rule
    pipe, errors = load_pipeline("480p_t2v_distilled"), []
    for prompt in ("a red circle moves left", "a blue square moves right over sand"):
        request = SAMPLE | {"num_steps": 4, "prompt": prompt}
        inputs = replay.prepare(pipe, **request, reuse=rule[0], forecast=rule[1])
        whole = pipe.denoise(inputs, mask=(True,) * 4)
        # Steps 0 and 1 are computed, as every edge takes for granted; step 2 continues the line through both.
        errors.append(mean_difference(pipe.denoise(inputs, mask=(True, True, False, True)), whole))
    assert graph.weight(1, 3) == pytest.approx(np.mean(errors), rel=1e-9)


def test_a_calibration_with_velocities_is_planned_for_the_fitted_forecast(run, tmp_path, load_pipeline):
    run(tmp_path / "g.json", "--seeds", "3", "--reuse", "velocity", "--num_inference_steps", "8")
    mask = str(tmp_path / "mask.json")
    lemica(["plan", str(tmp_path / "g.json"), "--budget", "4", "--forecast", "fitted", "-o", mask])
    state = initialize_infer_state(Namespace(enable_cache=True, cache_type="lemica", lemica_mask=mask))
    pipe = load_pipeline("480p_t2v_distilled")
    inputs = replay.prepare(pipe, **SAMPLE | {"num_steps": 8})
    whole = pipe.denoise(inputs, mask=(True,) * 8)
    fitted = pipe.denoise(replace(inputs, rule=state.rule), mask=state.lemica_mask)
    latents, velocities, sigmas = [inputs.noise], [], inputs.scheduler.sigmas
    recorder = replay.Recorder(pipe.transformer, ReuseRule("velocity", "hold"), lambda: None)
    for step, weights in enumerate(state.rule.weights):
        if state.lemica_mask[step]:
            options = dict(start=step, stop=step + 1, latents=latents[-1], cache=recorder)
            latents.append(pipe.denoise(inputs, mask=(True,) * 8, **options))
            velocities.append(recorder.recorded[-1])
            continue
        velocity = sum(w * v for w, v in zip(weights, velocities[-len(weights) :], strict=True))
        latents.append(latents[-1] + (sigmas[step + 1] - sigmas[step]) * velocity)
    assert mean_difference(fitted, latents[-1]) < 1e-5 < mean_difference(fitted, whole)


def test_a_rule_that_keeps_too_much_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="keeps 4 tensors"):
        run(tmp_path / "g.json", "--forecast", "parabola-fit-step")


def test_the_longest_gap_is_clamped_to_the_run(run, tmp_path):
    run(tmp_path / "g.json", "--max_gap", "99", "--num_inference_steps", "3")
    assert read_graph(tmp_path / "g.json").max_gap == 2


class Interrupted(Exception):
    pass


def test_interrupted_and_resumed_gives_the_same_file(run, tmp_path, monkeypatch):
    forwards = run(tmp_path / "whole.json")
    measure, done = replay.measure, []

    def measure_one(*args):
        if done:
            raise Interrupted
        done.append(None)
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(replay, "measure", measure_one)
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed.json")
    assert not (tmp_path / "resumed.json").exists()
    assert run(tmp_path / "resumed.json") == forwards / 2
    assert (tmp_path / "resumed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_gap", "2"], "was begun with --max_gap 3, not --max_gap 2: pass the former .* or another --output"),
        (["--seeds", "0", "1"], "begun with --seeds 0, not --seeds 0 1"),
        (["--flow_shift", "3"], "begun with no --flow_shift, not --flow_shift 3.0"),
        (["--edges", "exact"], "begun with --edges fast, not --edges exact"),
    ],
)
def test_going_on_with_other_arguments_is_refused(run, tmp_path, monkeypatch, more, message):
    def interrupt(*_):
        raise Interrupted

    monkeypatch.setattr(replay, "measure", interrupt)
    with pytest.raises(Interrupted):
        run(tmp_path / "g.json")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "g.json", *more)


def test_going_on_with_other_prompts_is_refused(run, tmp_path, monkeypatch, prompts):
    def interrupt(*_):
        raise Interrupted

    monkeypatch.setattr(replay, "measure", interrupt)
    with pytest.raises(Interrupted):
        run(tmp_path / "g.json")
    prompts.write_text("another prompt", encoding="utf-8")
    with pytest.raises(ValueError, match=r"begun with --prompts FILE with SHA-256 \w+, not --prompts FILE with SHA"):
        run(tmp_path / "g.json")


REFUSALS = [
    (["--num_inference_steps", "2"], "--num_inference_steps must be at least 3, got 2"),
    (["--max_gap", "1"], "--max_gap must be at least 2, got 1"),
    (["--seeds", "3", "3"], "--seeds must be different whole numbers from 0 on, got 3 3"),
    (["--seeds", "-1"], "--seeds must be different whole numbers from 0 on, got -1"),
    (["--aspect_ratio", "wide"], "--aspect_ratio must be two whole numbers"),
    (["--image_path", "nowhere.png"], "--image_path nowhere.png does not exist"),
    (["--image_path", "a", "b", "c"], "--image_path has 3 files for 2 prompts: give one, or one for each"),
    (["--resolution", "720p"], "is incomplete, missing: transformer/720p_t2v"),
    (["--model_path", "nowhere"], "--model_path nowhere is not a folder"),
]


@pytest.mark.parametrize(("more", "message"), REFUSALS)
def test_wrong_arguments_are_refused_before_anything_runs(run, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "g.json", *more)
    assert os.listdir(tmp_path) == ["prompts.txt"]


def test_an_output_that_is_there_is_not_overwritten(run, tmp_path):
    (tmp_path / "g.json").write_text("precious")
    with pytest.raises(ValueError, match="is there already: give another name"):
        run(tmp_path / "g.json")
    assert (tmp_path / "g.json").read_text() == "precious"


def test_two_ranks_give_the_graph_of_one(run, checkpoint, prompts, tmp_path):
    prompts.write_text("one\ntwo\nthree\n", encoding="utf-8")
    run(tmp_path / "one.json")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "lemica"),
            *command(checkpoint, prompts, tmp_path / "two.json"),
        ],
        cwd=TREE,
        env=clean_environment() | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    cost = "fast edges: 7 forwards a sample (1.8 full runs), 21 for 3 samples, at most 13 on one of 2 ranks"
    assert result.stdout.count(cost) == 1
    assert "forward/s" in result.stderr or "s/forward" in result.stderr
