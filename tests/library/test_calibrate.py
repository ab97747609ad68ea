"""Calibration on the real pipeline: replays against whole runs, costs against forwards made, ranks, resuming."""

import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import hyvideo.pipelines.hunyuan_video_pipeline as kit
import numpy as np
import pytest
import torch
from conftest import TREE, clean_environment
from hyvideo.commons.infer_state import Mask, initialize_infer_state, resolve_mask
from toy_sampler import Denoiser, Scheduler, sample

from demo.attention import fused_attention
from lemica.calibration import replays
from lemica.calibration.calibrate import Workload
from lemica.calibration.checkpoints import Checkpoints, Unit, units_of_rank
from lemica.calibration.edges import EXACT, FAST, Errors, fast_edges, gain_edges, joined, sample_graph, work_for
from lemica.calibration.hunyuan import HunyuanVideo, prepared_run
from lemica.calibration.replays import Sampling, Trajectory, measure
from lemica.calibration.samples import Sample
from lemica.cli.main import build_parser
from lemica.cli.main import main as lemica
from lemica.errors import Refused
from lemica.masks import Target
from lemica.planning.graph import edge_pairs, read_graph
from lemica.reuse.loops import reusing

N, D = 8, 4
PROMPTS = ("a red circle moves left", "a blue square moves right over sand")


@pytest.fixture
def pipe(load_pipeline, fast_attention):
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


def settings_of(pipe, num_steps=N, prompt=PROMPTS[0], seed=3, image=None):
    """One request, resolved; each time with a generator of its own."""
    return pipe.resolve_settings(
        prompt=prompt, negative_prompt="", reference_image=image, aspect_ratio="1:1", video_length=1,
        prompt_rewrite=False, num_inference_steps=num_steps, guidance_scale=None, embedded_guidance_scale=None,
        flow_shift=None, seed=seed, generator=None, options={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def recorded(load_pipeline):
    """(inputs, trajectory) of one sample; recorded once, because replays leave it as it is."""
    pipe = load_pipeline("480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    with fused_attention():
        with torch.no_grad():
            inputs = pipe.prepare(settings_of(pipe))
        return inputs, Trajectory(prepared_run(pipe, settings_of(pipe)))


def stretch(i: int, j: int, num_steps: int = N) -> tuple[bool, ...]:
    """The steps of a mask that reuses those between i and j only."""
    return tuple(not i < step < j for step in range(num_steps))


def whole_run(pipe, inputs, steps) -> list[torch.Tensor]:
    """The latents before every step and after the last, of the pipeline's own run with held velocities."""
    latents, scheduler = [inputs.noise], type(inputs.scheduler)
    original = scheduler.step

    def noting(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        latents.append(result[0])
        return result

    mask = Mask(steps, "velocity").with_weights(inputs.scheduler.sigmas.tolist())
    with patch.object(scheduler, "step", noting):
        pipe.denoise(replace(inputs, mask=mask))
    return latents


def mean_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left.double() - right.double()).abs().mean().item()


def test_the_recorded_run_is_the_run_without_cache_to_the_bit(pipe, recorded):
    inputs, trajectory = recorded
    latents = whole_run(pipe, inputs, (True,) * N)
    assert len(latents) == len(trajectory.record.latents) == N + 1
    assert all(map(torch.equal, latents, trajectory.record.latents))
    assert trajectory.num_steps == N
    assert all(len(slots) == 1 for slots in trajectory.record.outputs)


@pytest.mark.parametrize(("i", "j"), [(0, 2), (0, 4), (2, 5), (5, 7)])
def test_an_exact_edge_is_the_error_of_the_whole_run_with_that_stretch_reused(pipe, recorded, i, j):
    inputs, trajectory = recorded
    latents = whole_run(pipe, inputs, stretch(i, j))
    assert torch.equal(latents[i + 1], trajectory.record.latents[i + 1])
    with BlockCounter(pipe) as blocks:
        error = trajectory.final_error(i, j)
    assert error == mean_difference(latents[-1], trajectory.record.latents[-1]) > 0
    assert blocks.count == N - j


def test_local_errors_are_those_of_whole_runs_just_before_the_stretch_ends(pipe, recorded):
    inputs, trajectory = recorded
    with BlockCounter(pipe) as blocks:
        edges = trajectory.local_errors(1, D)
        tail = trajectory.local_errors(N - 3, D)
    assert blocks.count == 0
    assert [edge[:2] for edge in edges] == [(1, 3), (1, 4), (1, 5)]
    assert [edge[:2] for edge in tail] == [(N - 3, N - 1)]
    for i, j, error in [*edges, *tail]:
        latents = whole_run(pipe, inputs, stretch(i, j))
        assert error == mean_difference(latents[j], trajectory.record.latents[j]) > 0


def test_products_are_those_of_what_the_transformer_returns_of_both_guidance_branches(pipe, recorded, monkeypatch):
    inputs, trajectory = recorded
    guide, velocities = pipe._guide, []

    def noting(velocity):
        velocities.append(velocity.double().flatten())
        return guide(velocity)

    monkeypatch.setitem(vars(pipe), "_guide", noting)
    pipe.denoise(inputs)
    flat = torch.stack(velocities)
    products = np.array(trajectory.record.products())
    assert np.array_equal(products, products.T)
    assert products == pytest.approx((flat @ flat.T / flat.shape[1]).numpy(), rel=1e-9)
    assert trajectory.record.sigmas[:-1] == pytest.approx((inputs.timesteps / 1000).tolist())
    assert trajectory.record.sigmas[-1] == 0


def test_a_sample_with_an_image(load_pipeline, fast_attention, reference_image):
    pipe = load_pipeline("480p_i2v")
    run = prepared_run(pipe, settings_of(pipe, num_steps=3, image=reference_image))
    errors = measure(run, work_for(EXACT, 3, 2), 2)
    assert [edge[:2] for edge in errors.final] == [(0, 2)]
    assert errors.final[0][2] > 0


@pytest.mark.parametrize("fails", [False, True], ids=["whole", "interrupted"])
def test_a_calibrated_pipeline_is_left_as_it_was(pipe, recorded, fails):
    _, trajectory = recorded
    net, scheduler = pipe.transformer, trajectory.sampling.scheduler

    def state():
        return (
            type(scheduler),
            scheduler._step_index,
            type(net),
            dict(vars(net)),
            pipe.enable_offloading,
        )

    def interrupt():
        raise ZeroDivisionError

    before = state()
    if fails:
        with patch.object(trajectory, "on_forward", interrupt), pytest.raises(ZeroDivisionError):
            trajectory.final_error(0, 4)
    else:
        trajectory.final_error(0, 4)
        trajectory.local_errors(0, D)
    assert state() == before


@pytest.mark.parametrize("mode", [FAST, EXACT])
def test_the_cost_is_the_number_of_forwards_that_are_made(pipe, mode):
    steps, gap = 5, 3
    work, reported = work_for(mode, steps, gap), []
    run = prepared_run(pipe, settings_of(pipe, steps))
    with BlockCounter(pipe) as blocks:
        errors = measure(run, work, gap, lambda: reported.append(None))
    assert blocks.count == len(reported) == work.forwards(steps)
    graph = sample_graph(errors, mode, Target(sigmas=tuple(errors.sigmas)), gap)
    assert [(i, j) for i, j, _ in graph.edges()] == list(edge_pairs(steps, gap))
    assert all(error > 0 for _, _, error in graph.edges())


def test_separate_guidance_branches_are_held_each_on_its_own():
    """Two calls per step, with other outputs: a replay plays each back where it was."""
    denoiser, scheduler = Denoiser(), Scheduler()
    reported = []
    sampling = Sampling(lambda: sample(denoiser, scheduler, steps=4, scales=(1.0, 3.0)), [denoiser], scheduler)
    trajectory = Trajectory(sampling, lambda: reported.append(None))
    assert denoiser.runs == 8
    assert len(reported) == 4
    # Every step takes a quarter off; the two steps from 1 on take what step 1 took.
    before = [0.75**step for step in range(5)]
    held = before[1] - 2 * before[1] / 4
    assert trajectory.local_errors(1, 2) == [(1, 3, pytest.approx(before[3] - held))]
    assert trajectory.final_error(1, 3) == pytest.approx((before[3] - held) * 0.75)
    assert (denoiser.runs, len(reported)) == (10, 5)


@pytest.mark.parametrize(("steps", "gap", "forwards"), [(50, 8, 7259), (3, 2, 1), (8, 4, 46), (8, 7, 56)])
def test_cost_of_exact_edges(steps, gap, forwards):
    assert forwards == sum((steps - g) * (steps - g + 1) // 2 for g in range(2, gap + 1))
    assert work_for(EXACT, steps, gap).forwards(steps) == steps + forwards


@pytest.mark.parametrize("steps", range(3, 201))
def test_fast_edges_cost_about_two_full_runs(steps):
    for gap in range(2, min(12, steps - 1) + 1):
        work = work_for(FAST, steps, gap)
        ends = [j for _, j in work.edges]
        assert work.forwards(steps) <= 2 * steps + 2
        assert {*work.edges} <= {*edge_pairs(steps, gap)}
        assert ends[-1] == steps - 1 and len(set(ends)) == len(ends)
        assert ends[0] >= max(2, math.floor(0.59 * (steps - 1)))
        assert {i for i, _ in edge_pairs(steps, gap)} == set(work.starts)


def errors_of(local, final, num_steps: int = 9) -> Errors:
    """Errors of a run whose velocities do not matter."""
    return Errors(local, final, np.linspace(1, 0, num_steps + 1).tolist(), np.eye(num_steps).tolist(), is_euler=True)


def errors_with_gain(gain, local) -> Errors:
    return errors_of(
        [(i, j, local(i, j)) for i, j in edge_pairs(30, 5)],
        [(i, j, local(i, j) * gain(j)) for i, j in gain_edges(30, 5)],
    )


def test_fast_edges_recover_a_gain_that_is_linear_in_the_logarithm_from_where_it_is_measured():
    def local(i, j):
        return (j - i) ** 2 / (i + 3)

    first = gain_edges(30, 5)[0][1]
    for i, j, error in fast_edges(errors_with_gain(lambda j: 5 * 0.9**j, local)):
        assert error == pytest.approx(local(i, j) * 5 * 0.9 ** max(j, first))


def test_fast_edges_hold_where_nothing_changes():
    assert {error for *_, error in fast_edges(errors_with_gain(lambda j: 2.0, lambda i, j: 0.0))} == {0.0}
    dead_start = errors_with_gain(lambda j: 2.0, lambda i, j: float(j > 9))
    assert {error for *_, error in fast_edges(dead_start)} == {0.0, 2.0}


@pytest.mark.parametrize(("samples", "ranks"), itertools.product(range(1, 8), range(1, 10)))
def test_ranks_share_all_the_work_once_and_evenly(samples, ranks):
    shares = [units_of_rank(samples, ranks, rank) for rank in range(ranks)]
    units = [unit for share in shares for unit in share]
    assert {len(share) for share in shares} == {-(-samples // ranks)}
    for number in range(samples):
        parts = sorted((unit.part, unit.parts) for unit in units if unit.sample == number)
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
    target = Target("m", sigmas=tuple(errors.sigmas))
    whole, parts = (sample_graph(found, mode, target, 3) for found in (errors, joined(split)))
    assert parts.edges() == whole.edges()
    assert parts.target == target
    assert np.array_equal(parts.moments.products, np.eye(9))


def test_cost_in_words():
    prompts = [Sample("a", 0), Sample("b", 0), Sample("c", 0)]
    one = Workload(prompts[:1], work_for(EXACT, 50, 8), EXACT, 50, 8)
    assert one.cost() == "exact edges: 7309 forwards per sample (146.2 full runs)"
    three = Workload(prompts, work_for(FAST, 50, 8), FAST, 50, 8)
    assert three.cost(2) == (
        "fast edges: 94 forwards per sample (1.9 full runs), 282 for 3 samples, at most 173 on one of 2 ranks"
    )


def test_checkpoints_keep_every_bit_and_know_what_is_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path / "g.json", {"seeds": [0]})
    target = Target("m", "c", tuple(np.linspace(1, 0, 10).tolist()), "float32")
    assert checkpoints.measured(1) is None
    checkpoints.save(Unit(1, 0, 2), errors_of([(0, 2, 0.1 + 0.2)], [(0, 2, 1 / 3)]), target)
    assert checkpoints.measured(1) is None
    assert checkpoints.has(Unit(1, 0, 2)) and not checkpoints.has(Unit(1, 1, 2)) and not checkpoints.has(Unit(1))
    checkpoints.save(Unit(1, 1, 2), errors_of([(1, 3, 1e-300)], []), target)
    again = Checkpoints(tmp_path / "g.json", {"seeds": [0]})
    assert again.measured(1).errors == errors_of([[0, 2, 0.1 + 0.2], [1, 3, 1e-300]], [[0, 2, 1 / 3]])
    assert again.measured(1).target == target
    assert again.has(Unit(1)) and again.measured(11) is None
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
def run_with_upstreams_attention(checkpoint, prompts, monkeypatch, load_pipeline):
    """Runs the command in this process, on a model that is loaded once, and counts the forwards."""
    pipe = load_pipeline("480p_t2v_distilled")
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(HunyuanVideo, "pipeline", pipe)

    def run(output: Path, *more: str) -> int:
        args = build_parser().parse_args(command(checkpoint, prompts, output, *more))
        with BlockCounter(pipe) as blocks:
            args.run(args)
        return blocks.count

    return run


@pytest.fixture
def run(run_with_upstreams_attention, fast_attention):
    return run_with_upstreams_attention


def test_the_graph_is_the_mean_over_prompts_and_seeds(run, tmp_path, load_pipeline):
    assert run(tmp_path / "g.json", "--seeds", "3", "4", "--edges", "exact") == 4 * work_for(EXACT, 4, 3).forwards(4)
    graph, pipe = read_graph(tmp_path / "g.json"), load_pipeline("480p_t2v_distilled")
    trajectories = [
        Trajectory(prepared_run(pipe, settings_of(pipe, 4, prompt, seed)))
        for prompt, seed in itertools.product(PROMPTS, [3, 4])
    ]
    errors = [trajectory.final_error(1, 3) for trajectory in trajectories]
    assert len(set(errors)) == 4
    assert graph.error(1, 3) == pytest.approx(np.mean(errors), rel=1e-12)
    products = np.mean([trajectory.record.products() for trajectory in trajectories], axis=0)
    assert graph.moments.products == pytest.approx(products, rel=1e-12)
    assert (graph.num_steps, graph.max_gap, graph.samples, graph.is_euler) == (4, 3, 4, True)
    assert graph.target == Target(**vars(pipe.target(settings_of(pipe, 4).scheduler)))
    assert (graph.target.model, graph.target.dtype) == ("480p_t2v_distilled", "float32")
    assert len(graph.target.config) == 16
    assert not (tmp_path / "g.json.partial").exists()


def test_a_calibration_is_planned_and_the_mask_runs_as_planned(run, tmp_path, load_pipeline):
    run(tmp_path / "g.json", "--seeds", "3", "--num_inference_steps", "8")
    path = str(tmp_path / "mask.json")
    lemica(["plan", str(tmp_path / "g.json"), "--budget", "4", "-o", path])
    state = initialize_infer_state(Namespace(enable_cache=True, cache_type="lemica", lemica_mask=path))
    pipe = load_pipeline("480p_t2v_distilled")
    with torch.no_grad():
        inputs = pipe.prepare(settings_of(pipe))
    mask = resolve_mask(state, pipe.target(inputs.scheduler))
    assert (mask.rule, mask.kept, mask.budget) == ("fitted", "velocity", 4)
    assert mask.corrected_steps

    # The library's own reuse, on a run without cache.
    with reusing([pipe.transformer], inputs.scheduler, mask, timesteps_are_set=True):
        expected = pipe.denoise(inputs)
    found, uncached = pipe.denoise(replace(inputs, mask=mask)), pipe.denoise(inputs)
    assert mean_difference(found, expected) < 1e-5 < mean_difference(found, uncached)


def test_the_longest_gap_is_clamped_to_the_run(run, tmp_path):
    run(tmp_path / "g.json", "--max_gap", "99", "--num_inference_steps", "3")
    assert read_graph(tmp_path / "g.json").max_gap == 2


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


def test_interrupted_and_resumed_gives_the_same_file(run, tmp_path, monkeypatch):
    forwards = run(tmp_path / "whole.json")
    done = []

    def measure_one(*args):
        if done:
            raise Interrupted
        done.append(None)
        return measure(*args)

    with monkeypatch.context() as context:
        context.setattr(replays, "measure", measure_one)
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
    monkeypatch.setattr(replays, "measure", interrupt)
    with pytest.raises(Interrupted):
        run(tmp_path / "g.json")
    with pytest.raises(Refused, match=message):
        run(tmp_path / "g.json", *more)


def test_going_on_with_other_prompts_is_refused(run, tmp_path, monkeypatch, prompts):
    monkeypatch.setattr(replays, "measure", interrupt)
    with pytest.raises(Interrupted):
        run(tmp_path / "g.json")
    prompts.write_text("another prompt", encoding="utf-8")
    with pytest.raises(Refused, match=r"with --prompts \(and images\) of digest \w+, not --prompts"):
        run(tmp_path / "g.json")


def test_where_the_weights_are_kept_may_change_when_it_goes_on(run, tmp_path, monkeypatch):
    with monkeypatch.context() as context, pytest.raises(Interrupted):
        context.setattr(replays, "measure", interrupt)
        run(tmp_path / "g.json")
    assert run(tmp_path / "g.json", "--overlap_group_offloading", "false")
    assert read_graph(tmp_path / "g.json").samples == 2


def refusal(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as end:
        lemica(arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lemica calibrate: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_inference_steps", "2"], "--num_inference_steps must be at least 3, got 2"),
        (["--max_gap", "1"], "--max_gap must be at least 2, got 1"),
        (["--video_length", "0"], "--video_length must be at least 1, got 0"),
        (["--seeds", "3", "3"], "--seeds must be different whole numbers from 0 on, got 3 3"),
        (["--seeds", "-1"], "--seeds must be different whole numbers from 0 on, got -1"),
        (["--aspect_ratio", "wide"], "expected two whole numbers like 16:9, got 'wide'"),
        (["--flow_shift", "0"], "expected a number above 0, got '0'"),
        (["--offloading", "maybe"], "expected true or false, got 'maybe'"),
        (["--image_path", "nowhere.png"], "--image_path nowhere.png does not exist"),
        (["--image_path", __file__], "is not an image that can be read"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: No such file"),
        (["--prompts", os.devnull], "is empty: write one prompt per line"),
        (["--resolution", "720p"], "has no transformer/720p_t2v_distilled: choose flags of a model it has"),
        (["--model_path", "nowhere"], "--model_path nowhere is not a folder"),
        (["--group_offloading", "true", "--offloading", "false"], "--group_offloading true needs --offloading true"),
        (["--group_offloading", "true"], "--group_offloading true needs a GPU: leave it out on this machine"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(
    checkpoint, prompts, tmp_path, capsys, monkeypatch, more, message
):
    monkeypatch.setattr(kit.HunyuanVideo_1_5_Pipeline, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert message in refusal(capsys, command(checkpoint, prompts, tmp_path / "g.json", *more))
    assert os.listdir(tmp_path) == ["prompts.txt"]


def test_as_many_images_as_prompts_are_asked_for(checkpoint, prompts, tmp_path, capsys, reference_image):
    reference_image.save(tmp_path / "a.png")
    images = ["--image_path", *[str(tmp_path / "a.png")] * 3]
    line = refusal(capsys, command(checkpoint, prompts, tmp_path / "g.json", *images))
    assert "--image_path has 3 files for 2 prompts: give one, or one for each" in line


def test_prompts_that_are_not_utf_8_are_refused(checkpoint, prompts, tmp_path, capsys):
    prompts.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in refusal(capsys, command(checkpoint, prompts, tmp_path / "g.json"))


def test_json_lines_for_generate_py_are_refused(checkpoint, prompts, tmp_path, capsys):
    prompts.write_text('{cinematic} a red circle\n{"prompt": "a red circle", "seed": 7}\n')
    line = refusal(capsys, command(checkpoint, prompts, tmp_path / "g.json"))
    assert "has JSON objects" in line and "write one prompt per line, and give seeds as --seeds" in line


def test_a_checkpoint_that_is_incomplete_is_refused(checkpoint, prompts, tmp_path, capsys):
    shutil.copytree(checkpoint / "transformer", tmp_path / "half" / "transformer")
    line = refusal(capsys, command(tmp_path / "half", prompts, tmp_path / "g.json"))
    assert "is incomplete, missing: vae/config.json, scheduler/scheduler_config.json, text_encoder/llm/" in line


def test_an_output_that_is_there_is_not_overwritten(checkpoint, prompts, tmp_path, capsys):
    (tmp_path / "g.json").write_text("precious")
    line = refusal(capsys, command(checkpoint, prompts, tmp_path / "g.json"))
    assert "is there already: give another name" in line
    assert (tmp_path / "g.json").read_text() == "precious"


def test_outside_of_a_tree_calibration_is_refused_with_what_to_type(checkpoint, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "hyvideo.pipelines", None)
    line = refusal(capsys, command(checkpoint, prompts, tmp_path / "g.json"))
    assert "calibrate runs in a HunyuanVideo-1.5 tree with the kit in it" in line
    assert "type KIT/scripts/install.sh TREE && cd TREE, then lemica calibrate again" in line


def test_in_a_tree_without_the_kit_it_is_refused_too(checkpoint, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(kit, "StepCache")
    line = refusal(capsys, command(checkpoint, prompts, tmp_path / "g.json"))
    assert "this one has upstream's pipeline" in line


def test_the_options_decide_how_the_model_is_loaded(checkpoint, prompts, tmp_path, monkeypatch):
    loaded = []
    pipeline = Namespace(set_progress_bar_config=lambda **_: None)
    monkeypatch.setattr(
        kit.HunyuanVideo_1_5_Pipeline, "load", lambda *model, **options: loaded.append((model, options)) or pipeline
    )
    more = ["--use_sageattn", "--dtype", "fp32", "--lora_path", "lora", "--checkpoint_path", "dcp", "--offloading", "0"]
    options = build_parser().parse_args(command(checkpoint, prompts, tmp_path / "g.json", *more))
    model = HunyuanVideo(options, 4, with_image=False)
    assert loaded == []
    assert model.pipeline is model.pipeline is pipeline
    (((folder, version, state), options),) = loaded
    assert (folder, version) == (str(checkpoint), "480p_t2v_distilled")
    assert (state.enable_sageattn, state.use_fp8_gemm, state.enable_cache) == (True, False, False)
    assert options == dict(
        dtype=torch.float32, checkpoint_path="dcp", lora_path="lora", offloading=False, group_offloading=None,
        overlap_group_offloading=True,
    )  # fmt: skip


def test_a_second_calibration_of_an_output_is_refused_at_once_and_costs_the_first_nothing(run, tmp_path, monkeypatch):
    refused = []

    def start_another(*args):
        with pytest.raises(Refused, match=r"another lemica calibrate is at work on .*g\.json\.partial") as refusal:
            run(tmp_path / "g.json")
        refused.append(refusal)
        return measure(*args)

    monkeypatch.setattr(replays, "measure", start_another)
    run(tmp_path / "g.json")
    assert len(refused) == 2
    assert read_graph(tmp_path / "g.json").samples == 2
    assert sorted(os.listdir(tmp_path)) == ["g.json", "prompts.txt"]


def test_two_ranks_give_the_graph_of_one(run_with_upstreams_attention, checkpoint, prompts, tmp_path):
    prompts.write_text("one\ntwo\nthree\n", encoding="utf-8")
    run_with_upstreams_attention(tmp_path / "one.json")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "lemica"),
            *command(checkpoint, prompts, tmp_path / "two.json"),
        ],
        cwd=TREE,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    cost = "fast edges: 7 forwards per sample (1.8 full runs), 21 for 3 samples, at most 13 on one of 2 ranks"
    assert result.stdout.count(cost) == 1
    assert re.search(r"forward/s|s/forward", result.stderr)
