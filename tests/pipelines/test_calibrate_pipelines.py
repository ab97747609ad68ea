"""Calibration of pipelines: replays against whole runs, encoding once, resuming, and the command line."""

import json
import subprocess
import sys

import diffusers
import pytest
import torch
from conftest import clean_environment
from tiny import make, run
from whole import save_whole_pipeline

import lemica
from lemica.calibration.pipelines import PipelineModel
from lemica.calibration.replays import Trajectory
from lemica.cli.main import main
from lemica.errors import Refused
from lemica.masks import Mask, hold
from lemica.planning.graph import read_graph, write_graph
from lemica.planning.plan import plan

STEPS = 8
# Samplers of first and second order, of flow and of noise, deterministic and not; one and several calls per step.
SAMPLERS = ["wan_euler", "wan_unipc", "wan_heun", "flux", "cogvideox_ddim", "cogvideox_dpm", "unet_dpm_solver"]


def trajectory_of(tiny) -> Trajectory:
    sampling, _ = PipelineModel(tiny.pipe, STEPS).prepare({**tiny.call, "seed": 0})
    return Trajectory(sampling)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_exact_edge_is_the_error_of_the_call_with_that_stretch_reused(name):
    """Whatever the sampler, also one that draws noise at every step."""
    tiny = make(name)
    expected = run(tiny, STEPS)
    trajectory = trajectory_of(tiny)
    steps = tuple(not 2 < step < 5 for step in range(trajectory.num_steps))
    lemica.enable(tiny.pipe, Mask(steps, kept="velocity", weights=hold(steps)))
    reused = run(tiny, STEPS)
    lemica.disable(tiny.pipe)
    error = trajectory.final_error(2, 5)
    assert error > 0
    # Flux's latents are packed after the loop, of the same numbers.
    assert error == pytest.approx((reused.double() - expected.double()).abs().mean().item(), rel=1e-5)


def test_texts_and_images_are_encoded_once_per_sample(monkeypatch):
    tiny, calls = make("wan_image_to_video"), []
    original = type(tiny.pipe).prepare_latents

    def counting(self, *args, **kwargs):
        calls.append(None)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny.pipe), "prepare_latents", counting)
    trajectory = trajectory_of(tiny)
    trajectory.local_errors(1, 3)
    trajectory.final_error(1, 3)
    assert len(calls) == 1


def test_a_calibrated_pipeline_is_left_as_it_was():
    tiny = make("wan_euler")
    parts = (tiny.pipe, tiny.pipe.scheduler, tiny.pipe.transformer)
    expected = run(tiny, STEPS)
    before = [(type(part), set(vars(part))) for part in parts]
    lemica.calibrate(tiny.pipe, [tiny.call], STEPS, max_gap=3, show_progress=False)
    assert [(type(part), set(vars(part))) for part in parts] == before
    assert torch.equal(run(tiny, STEPS), expected)


def test_the_graph_says_what_it_belongs_to(tmp_path):
    tiny = make("wan_euler")
    graph = lemica.calibrate(tiny.pipe, [tiny.call], STEPS, max_gap=3, output=tmp_path / "g.json", show_progress=False)
    assert (graph.target.model, graph.target.dtype, len(graph.target.config)) == (
        "WanPipeline, FlowMatchEulerDiscreteScheduler",
        "float32",
        16,
    )
    assert graph.target.sigmas == tuple(tiny.pipe.scheduler.sigmas.double().tolist())
    assert "torch 2" in graph.made_by and "diffusers 0." in graph.made_by
    assert read_graph(tmp_path / "g.json").target == graph.target
    assert graph.is_euler
    assert [path.name for path in tmp_path.iterdir()] == ["g.json"]


def test_masks_for_other_samplers_than_eulers_correct_nothing(tmp_path):
    tiny = make("wan_unipc")
    graph = lemica.calibrate(tiny.pipe, [tiny.call], STEPS, max_gap=3, show_progress=False)
    assert not graph.is_euler
    assert plan(graph, 4).corrected_steps == ()


def test_a_planned_mask_is_refused_by_another_model_and_by_other_noise_levels():
    tiny, other = make("wan_euler"), make("flux")
    mask = lemica.plan(lemica.calibrate(tiny.pipe, [tiny.call], STEPS, max_gap=3, show_progress=False), 5)
    with pytest.raises(ValueError, match=r"the mask is for model WanPipeline, .*, this run has FluxPipeline, .*: plan"):
        lemica.enable(other.pipe, mask)
    tiny.pipe.scheduler.set_shift(7.0)
    lemica.enable(tiny.pipe, mask)
    with pytest.raises(ValueError, match="other noise levels"):
        run(tiny, STEPS)
    lemica.enable(tiny.pipe, mask, force=True)
    assert torch.isfinite(run(tiny, STEPS)).all()


def test_an_interrupted_calibration_goes_on_where_it_was(tmp_path, monkeypatch):
    tiny, output = make("wan_euler"), tmp_path / "g.json"
    samples = [dict(tiny.call, seed=seed) for seed in (0, 1)]
    whole = lemica.calibrate(tiny.pipe, samples, STEPS, max_gap=3, show_progress=False)
    prepare, prepared = PipelineModel.prepare, []

    def failing(self, sample):
        prepared.append(sample["seed"])
        if len(prepared) == 3:
            raise KeyboardInterrupt
        return prepare(self, sample)

    monkeypatch.setattr(PipelineModel, "prepare", failing)
    with pytest.raises(KeyboardInterrupt):
        lemica.calibrate(tiny.pipe, samples, STEPS, max_gap=3, output=output, show_progress=False)
    graph = lemica.calibrate(tiny.pipe, samples, STEPS, max_gap=3, output=output, show_progress=False)
    # The first call looks how many steps there are, and so does the second.
    assert prepared == [0, 0, 1, 0, 1]
    assert graph.edges() == whole.edges()
    write_graph(whole, tmp_path / "whole.json")
    assert (tmp_path / "whole.json").read_text() == output.read_text()


def test_what_is_kept_of_other_samples_is_not_gone_on_with(tmp_path, monkeypatch):
    tiny, output = make("wan_euler"), tmp_path / "g.json"
    monkeypatch.setattr("lemica.calibration.calibrate.measure_units", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lemica.calibrate(tiny.pipe, [dict(tiny.call, seed=0)], STEPS, max_gap=3, output=output, show_progress=False)
    (tmp_path / "g.json.partial" / "sample0.part0of1.json").write_text("{}")
    with pytest.raises(Refused, match="was begun with --prompts of digest"):
        lemica.calibrate(tiny.pipe, [dict(tiny.call, seed=1)], STEPS, max_gap=3, output=output, show_progress=False)


@pytest.mark.parametrize(
    ("samples", "steps", "message"),
    [
        ([], STEPS, "no samples: give a list"),
        ({"prompt": "a red circle"}, STEPS, "no samples: give a list"),
        ([{"generator": torch.Generator()}], STEPS, "a sample has a seed, not a generator"),
        ([{"num_inference_steps": 8}], STEPS, "a sample has num_inference_steps: leave it out"),
        ([{"hight": 32}], STEPS, r"unexpected keyword argument 'hight' \(said by WanPipeline's call\)"),
        ([{}], 2, "the scheduler makes 2 steps: calibrate with at least 3"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(samples, steps, message):
    tiny = make("wan_euler")
    with pytest.raises(Refused, match=message):
        calls = samples if isinstance(samples, dict) else [tiny.call | sample for sample in samples]
        lemica.calibrate(tiny.pipe, calls, steps, show_progress=False)


def test_another_cache_is_refused():
    tiny = make("flux")
    tiny.pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(Refused, match="FirstBlockCache is enabled on the FluxTransformer2DModel"):
        lemica.calibrate(tiny.pipe, [tiny.call], STEPS, show_progress=False)


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    save_whole_pipeline(folder)
    return folder


@pytest.fixture
def arguments(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    (tmp_path / "call.json").write_text(json.dumps({"height": 32, "width": 32, "guidance_scale": 3.0}))
    options = {"--pipeline": folder, "--call": tmp_path / "call.json", "--prompts": tmp_path / "prompts.txt"}
    options |= {"--dtype": "fp32", "--num_inference_steps": STEPS, "--max_gap": 3, "--output": tmp_path / "g.json"}
    return ["calibrate", *(str(word) for option in options.items() for word in option)]


def test_the_command_calibrates_plans_and_the_mask_runs(arguments, folder, tmp_path, capsys):
    main(arguments)
    assert capsys.readouterr().out.startswith("fast edges: ")
    main(["plan", str(tmp_path / "g.json"), "--budget", "5", "-o", str(tmp_path / "m.json")])
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    with lemica.enable(pipe, tmp_path / "m.json"):
        pipe("a red circle", num_inference_steps=STEPS, height=32, width=32, output_type="np")
        assert len(lemica.summary(pipe).computed_seconds) == 5
    assert read_graph(tmp_path / "g.json").samples == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--resolution", "480p"], "--resolution is of HunyuanVideo-1.5 with the kit: leave it out with --pipeline"),
        (["--pipeline", "no/such/folder"], "--pipeline no/such/folder cannot be loaded: "),
        (["--call", "no.json"], "--call no.json: No such file or directory"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_in_one_line(arguments, capsys, changes, message):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *changes])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error and error.count("\n") == 1


def test_two_ranks_give_the_graph_of_one(arguments, tmp_path):
    """Three samples on two ranks: one each, and half of the third each."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green star\n")
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ranks = [*launcher, "-m", "lemica", *arguments[:-1], tmp_path / "ranks.json"]
    done = subprocess.run(ranks, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("fast edges: ") == 1
    main(arguments)
    assert (tmp_path / "ranks.json").read_text() == (tmp_path / "g.json").read_text()
