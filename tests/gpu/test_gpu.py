"""What only a GPU can show, at HunyuanVideo-1.5's true geometry with random weights.

    ./scripts/test.sh tests/gpu -n 0

Needs no checkpoint; five minutes on an H200. In one process, so that nothing else runs while steps are timed.
Measurements go to assets/measurements/gpu.json, or where LEMICA_GPU_JSON says; the functions that make them run on a
CPU, too, in tests/demo/test_gpu_measurements.py. The last two tests type commands, on a tiny random checkpoint.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TREE, clean_environment

from benchmarks import steps
from benchmarks.gpu import compiled_graphs, group_offload_copies, noise_floor, step_costs
from benchmarks.models import PRESETS, Preset, benchmark_pipeline, fast_attention, random_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: ./scripts/test.sh tests/gpu -n 0")

KINDS = ("residual + hold", "velocity + hold")
RESULTS = Path(os.environ.get("LEMICA_GPU_JSON", REPOSITORY / "assets" / "measurements" / "gpu.json"))


@pytest.fixture(autouse=True, scope="module")
def attention(exact_numbers):
    """flash-attention where it is installed, else PyTorch's."""
    torch.manual_seed(0)
    with fast_attention() as name:
        yield name


@pytest.fixture(scope="module")
def record(attention):
    """Write what was measured under a name, beside the machine that it was measured on."""
    facts = steps.machine_facts(torch.device("cuda"), torch.bfloat16)
    facts |= dict(attention=attention, command="./scripts/test.sh tests/gpu -n 0")

    def write(name: str, result: dict) -> None:
        steps.record(RESULTS, name, facts | result)

    return write


@pytest.fixture(scope="module")
def real_pipe(attention):
    """The whole transformer, 54 blocks of 2,048 channels; only the inputs differ between 480p and 720p."""
    return benchmark_pipeline(PRESETS["720p"])


def few_tokens(**changes) -> Preset:
    """The true widths, on three latent frames of 480p."""
    return replace(PRESETS["480p"], latents=(3, 30, 53), **changes)


def test_without_a_cache_latents_and_frames_are_upstreams_to_the_bit(load_pipeline):
    sys.path.insert(0, str(REPOSITORY / "tests" / "kit"))
    from upstream import upstream_twin

    request = dict(prompt='a star with "hi" on it', aspect_ratio="16:9", video_length=5, num_inference_steps=4, seed=3)
    request |= dict(enable_sr=False, prompt_rewrite=False)
    pipe = load_pipeline("480p_t2v")
    twin = upstream_twin(pipe)
    # Upstream's own settings on a GPU.
    twin.execution_device = torch.device("cuda")
    twin.target_dtype, twin.vae_dtype = torch.bfloat16, torch.float16
    twin.autocast_enabled = twin.vae_autocast_enabled = True
    for output_type in ("latent", "pt"):
        ours, theirs = (each(**request, output_type=output_type).videos for each in (pipe, twin))
        assert torch.equal(ours, theirs)
        assert ours.std() > 0.01


@pytest.mark.parametrize("size", ["480p", "720p"])
def test_a_reused_step_takes_half_a_percent_at_most_and_keeps_one_tensor(real_pipe, record, size):
    from benchmarks.models import PRESETS

    preset = PRESETS[size]
    inputs = random_inputs(real_pipe, preset)
    costs = {way: step_costs(real_pipe, inputs, way) for way in KINDS}
    residual = preset.residual_bytes(torch.bfloat16)
    record(size, dict(image_tokens=preset.image_tokens, residual_bytes=residual, ways=costs))
    assert costs["residual + hold"]["held"] == residual
    # 32 latent channels beside a width of 2,048.
    assert costs["velocity + hold"]["held"] == residual / 64
    for cost in costs.values():
        assert cost["after"] == 0
        assert cost["reused_step"] < 0.005 * cost["full_step"]
    assert costs["velocity + hold"]["reused_step"] < 0.001 * costs["velocity + hold"]["full_step"]


def test_two_runs_that_differ_by_rounding_end_close_to_each_other(real_pipe, record):

    floor = noise_floor(real_pipe, random_inputs(real_pipe, few_tokens()))
    record("noise floor", dict(noise_difference=1e-5, latents_db=floor))
    assert floor is None or floor > 20


def test_reused_steps_move_no_weights_under_group_offload(record):
    result = group_offload_copies(few_tokens(), "residual + hold")
    record("group offload", result)
    for computed, copied in zip(result["computed"], result["steps"], strict=True):
        if computed:
            # A profiler that lost events fails here: run it again.
            assert copied["HtoD"] >= result["block_bytes"]
        else:
            assert copied["HtoD"] < 2**20


def test_compiled_blocks_are_compiled_once(record, monkeypatch):
    from benchmarks.models import benchmark_pipeline

    # The other tests run without compilation.
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    with torch._dynamo.config.patch(disable=False):
        preset = few_tokens(blocks=4)
        pipe = benchmark_pipeline(preset)
        result = compiled_graphs(pipe, random_inputs(pipe, preset), "residual + hold")
    record("compile", result)
    graphs = result["graphs_after_steps"]
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}
    assert result["difference_db"] is None or result["difference_db"] > 20


def in_a_tree(*words: str | Path) -> None:
    """Type a command of Python's in a tree with the kit in it."""
    subprocess.run([sys.executable, *map(str, words)], cwd=TREE, env=clean_environment(), check=True)


def test_one_loading_gives_the_videos_of_single_commands(checkpoint, tmp_path):
    command = ["generate.py", "--model_path", checkpoint, "--resolution", "480p", "--sr", "false", "--rewrite", "false"]
    command += ["--aspect_ratio", "1:1", "--video_length", 5, "--num_inference_steps", 4, "--offloading", "true"]
    command += ["--enable_cache", "true", "--cache_type", "lemica", "--lemica_step", 2, "--lemica_spacing", "balanced"]
    prompts = ("a star", 'a "sun" on water')
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    in_a_tree(*command, "--prompts", tmp_path / "prompts.txt", "--output_path", tmp_path / "many")
    for number, prompt in enumerate(prompts):
        in_a_tree(*command, "--prompt", prompt, "--output_path", tmp_path / f"{number}.mp4")
        made = tmp_path / "many" / f"{number:04}_seed123.mp4"
        # The same kernels on the same machine: flash-attention's forward, too, gives the same bits twice.
        assert made.read_bytes() == (tmp_path / f"{number}.mp4").read_bytes()


def test_evaluate_measures_the_kit(checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("a star\na sun\n", encoding="utf-8")
    command = ["--model_path", checkpoint, "--resolution", "480p", "--prompts", tmp_path / "prompts.txt"]
    command += ["--aspect_ratio", "1:1", "--video_length", 5, "--num_inference_steps", 6, "--budgets", 3]
    command += ["--spacings", "released", "balanced", "--fewer_steps", "--output", tmp_path / "evaluation"]
    in_a_tree("-m", "lemica", "evaluate", *command)
    document = json.loads((tmp_path / "evaluation" / "evaluate.json").read_text())
    assert document["model"]["dtype"] == "bfloat16"
    rows = {row["method"]: row for row in document["rows"]}
    assert list(rows) == ["no cache", "budget 3", "budget 3, balanced", "fewer steps (3)", "noise floor"]
    assert all(0 < sample["dit_seconds"] < sample["seconds"] for row in rows.values() for sample in row["samples"])
    assert [row["steps"] for row in rows.values()] == [6, 3, 3, 3, 6]
    assert len({row["psnr"] for row in rows.values()}) == len(rows)
    assert min(row["psnr"] for row in document["rows"][1:]) > 10
    assert (tmp_path / "evaluation" / "report.html").exists()
