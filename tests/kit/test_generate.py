"""generate.py: what it refuses, what it writes, and that a run through the command line does what the pipeline does."""

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import imageio
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, UPSTREAM, clean_environment
from hyvideo.commons.infer_state import step_mask

import generate
from lemica.masks import Mask, Target, write_mask

TINY_RUN = ["--sr", "false", "--video_length", "5", "--num_inference_steps", "4", "--aspect_ratio", "1:1"]
LEMICA = ["--enable_cache", "true", "--cache_type", "lemica"]


@pytest.fixture
def command(checkpoint, tmp_path):
    """The arguments of a short run; later ones override earlier ones."""

    def build(*more: str) -> list[str]:
        base = ["--prompt", "a star", "--resolution", "480p", "--model_path", str(checkpoint)]
        return [*base, *TINY_RUN, "--output_path", str(tmp_path / "video.mp4"), *more]

    return build


def run(tree, arguments, *python_code):
    program = [sys.executable, *(python_code or ("generate.py",)), *arguments]
    return subprocess.run(program, cwd=tree, env=clean_environment(), capture_output=True, text=True)


def refusal(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        generate.parse_arguments(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("value", ["0", "1", "-3", "abc", "25.5", ""])
def test_budgets_that_are_no_budgets_are_refused(command, capsys, value):
    assert "from 2 to the number of steps" in refusal(command(*LEMICA, "--lemica_step", value), capsys)


def test_the_budget_may_come_from_the_environment(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LEMICA_STEP", "3")
    args, state = generate.parse_arguments(command(*LEMICA))
    assert (args.lemica_step, state.lemica_step) == (3, 3)
    monkeypatch.setenv("LEMICA_STEP", "")
    assert "the default budget 25 is above the 4 steps" in refusal(command(*LEMICA), capsys)
    monkeypatch.setenv("LEMICA_STEP", "many")
    line = refusal(command(*LEMICA), capsys)
    assert "environment variable LEMICA_STEP" in line
    assert "'many'" in line
    mask = {"format": "lemica-mask/1", "num_steps": 4, "computed_steps": [0, 3]}
    (tmp_path / "mask.json").write_text(json.dumps(mask))
    assert generate.parse_arguments(command(*LEMICA, "--lemica_mask", str(tmp_path / "mask.json")))[0].lemica_mask


@pytest.mark.parametrize(
    ("num_steps", "hint", "remedy"),
    [
        ("4", "the default budget 25 is above the 4 steps: type --lemica_step B", ["--lemica_step", "2"]),
        ("1", "one step leaves nothing to reuse: leave out --enable_cache true", ["--enable_cache", "false"]),
    ],
)
def test_a_default_that_does_not_fit_is_refused_with_a_remedy_that_works(command, capsys, num_steps, hint, remedy):
    few = command(*LEMICA, "--num_inference_steps", num_steps)
    assert hint in refusal(few, capsys)
    generate.parse_arguments([*few, *remedy])


def test_a_budget_above_the_step_count_is_refused(command, capsys):
    assert "number of steps, 4; got 5" in refusal(command(*LEMICA, "--lemica_step", "5"), capsys)
    fifty = command(*LEMICA, "--lemica_step", "51")
    del fifty[fifty.index("--num_inference_steps") : fifty.index("--num_inference_steps") + 2]
    assert "number of steps, 50; got 51" in refusal(fifty, capsys)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "No such file"),
        ("not json", "not JSON"),
        ([0, 1, 2], "end with 3"),
        ([1, 2, 3], "begin with 0"),
        ([0, 1, 2, 3, 4], "rise"),
        ("[]", "format"),
    ],
)
def test_bad_mask_files_are_refused(command, capsys, tmp_path, content, fault):
    path = tmp_path / "mask.json"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.write_text(json.dumps({"format": "lemica-mask/1", "num_steps": 4, "computed_steps": content}))
    assert fault in refusal(command(*LEMICA, "--lemica_mask", str(path)), capsys)


def mask_file(tmp_path, **content) -> str:
    """A mask file of version 2 for a run of 4 steps."""
    mask = {
        "format": "lemica-mask/2",
        "num_steps": 4,
        "computed_steps": [0, 2, 3],
        "kept": "velocity",
        "rule": "fitted",
    }
    (tmp_path / "mask.json").write_text(json.dumps(mask | {"weights": [[], [1], [], []]} | content))
    return str(tmp_path / "mask.json")


def test_a_mask_brings_what_is_kept_and_the_weights(command, tmp_path):
    _, state = generate.parse_arguments(
        command(*LEMICA, "--lemica_mask", mask_file(tmp_path, weights=[[], [0.5], [], []]))
    )
    mask = state.lemica_mask
    assert (mask.steps, mask.kept, mask.rule) == ((True, False, True, True), "velocity", "fitted")
    assert mask.weights == ((), (0.5,), (), ())


@pytest.mark.parametrize(("flag", "value"), [("--lemica_reuse", "velocity"), ("--lemica_forecast", "hold")])
def test_a_rule_beside_a_mask_is_refused(command, capsys, tmp_path, flag, value):
    line = refusal(command(*LEMICA, "--lemica_mask", mask_file(tmp_path), flag, value), capsys)
    assert f"the mask says what is reused and how: leave out {flag}" in line


def test_without_a_mask_kept_tensor_and_rule_can_be_chosen(command):
    more = ["--lemica_step", "3", "--lemica_reuse", "velocity", "--lemica_forecast", "damped"]
    _, state = generate.parse_arguments(command(*LEMICA, *more))
    assert (state.lemica_reuse, state.lemica_forecast) == ("velocity", "damped")
    _, state = generate.parse_arguments(command(*LEMICA, "--lemica_step", "3"))
    assert (state.lemica_spacing, state.lemica_reuse, state.lemica_forecast) == ("released", None, None)
    _, state = generate.parse_arguments(command(*LEMICA, "--lemica_step", "3", "--lemica_spacing", "balanced"))
    assert state.lemica_spacing == "balanced"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model": "720p_t2v"}, "model 720p_t2v, this run has 480p_t2v"),
        ({"config": "0123456789abcdef"}, "transformer/config.json of digest 0123456789abcdef, this run has"),
        ({"dtype": "bfloat16"}, "dtype bfloat16, this run has float32"),
        ({"sigmas": [1, 0.9, 0.8, 0.5, 0]}, "other noise levels: this run has another flow shift"),
    ],
)
def test_a_mask_of_another_run_is_refused_unless_forced(command, capsys, tmp_path, changes, fault):
    run = dataclasses.asdict(generate.run_target(generate.parse_arguments(command())[0]))
    flags = [*LEMICA, "--lemica_mask", mask_file(tmp_path, target=run | changes)]
    line = refusal(command(*flags), capsys)
    assert f"the mask belongs to {fault}" in line
    assert "--force_mask true" in line
    assert generate.parse_arguments(command(*flags, "--force_mask", "true"))[1].force_mask
    assert generate.parse_arguments(command(*LEMICA, "--lemica_mask", mask_file(tmp_path, target=run)))


@pytest.mark.parametrize(
    "changes",
    [["--flow_shift", "3"], ["--flow_shift", "1"], ["--num_inference_steps", "50"], ["--cfg_distilled", "true"]],
)
def test_the_run_that_the_arguments_describe_is_the_one_that_the_pipeline_makes(command, load_pipeline, changes):
    args, _ = generate.parse_arguments(command(*changes))
    described, pipe = generate.run_target(args), load_pipeline(generate.version_of(args))
    shift = pipe.config.flow_shift if args.flow_shift is None else args.flow_shift
    scheduler = pipe._create_scheduler(shift)
    scheduler.set_timesteps(args.num_inference_steps)
    made = pipe.target(scheduler)
    assert (described.model, described.config, described.dtype) == (made.model, made.config, made.dtype)
    assert described.sigmas == pytest.approx(made.sigmas, abs=1e-6)
    assert described.config is not None
    assert described.difference(made) is None


def test_the_default_number_of_steps_and_shift_are_those_of_the_pipeline(command, load_pipeline):
    arguments = command()
    del arguments[arguments.index("--num_inference_steps") : arguments.index("--num_inference_steps") + 2]
    described = generate.run_target(generate.parse_arguments(arguments)[0])
    pipe = load_pipeline("480p_t2v")
    scheduler = pipe._create_scheduler(pipe.config.flow_shift)
    scheduler.set_timesteps(pipe.config.num_inference_steps)
    assert described.sigmas == pytest.approx(pipe.target(scheduler).sigmas, abs=1e-6)


def test_a_checkpoint_and_a_lora_adapter_make_another_model(command, tmp_path):
    args, _ = generate.parse_arguments(command())
    args.checkpoint_path, args.lora_path = str(tmp_path / "step_100"), str(tmp_path / "anime/")
    assert generate.run_target(args).model == "480p_t2v + step_100 + anime"


def test_on_a_gpu_masks_are_for_bfloat16(command, monkeypatch):
    args, _ = generate.parse_arguments(command())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert generate.run_target(args).dtype == "bfloat16"


@pytest.mark.parametrize(("flag", "value"), [("reuse", "output"), ("forecast", "taylor-step")])
def test_unknown_rules_are_refused(command, capsys, flag, value):
    assert "choose from" in refusal(command(*LEMICA, f"--lemica_{flag}", value), capsys)


def test_a_mask_for_another_step_count_is_refused(command, capsys, tmp_path):
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"format": "lemica-mask/1", "num_steps": 9, "computed_steps": [0, 8]}))
    line = refusal(command(*LEMICA, "--lemica_mask", str(path)), capsys)
    assert "9 steps but the sampler runs 4: pass --num_inference_steps 9" in line


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--cache_type", "foo"], "one of lemica, deepcache, teacache, taylorcache"),
        (["--enable_cache", "maybe"], "expected true or false"),
        (["--image_path", "missing.png"], "does not exist"),
        (["--image_path", __file__], "cannot be read: cannot identify image file"),
        (["--resolution", "720p", "--aspect_ratio", "16x9"], "16:9"),
        (["--aspect_ratio", "0:9"], "16:9"),
        (["--model_path", "missing"], "not a folder"),
        (["--model_path", "./missing/ckpts"], "not a folder"),
        (["--resolution", "720p"], "missing: transformer/720p_t2v/config.json"),
        (["--sr", "true"], "transformer/720p_sr_distilled"),
        (["--sparse_attn", "true", "--use_sageattn", "true"], "exclude each other"),
        (["--enable_step_distill", "true"], "no model 480p_t2v_step_distilled"),
        (["--group_offloading", "true", "--offloading", "false"], "needs --offloading true"),
        (["--num_inference_steps", "0"], "at least 1"),
        (["--num_inference_steps", "many"], "invalid int value"),
        (["--video_length", "-5"], "at least 1"),
        (["--output_path", "video.txt"], ".mp4"),
        (["--output_path", __file__ + "/video.mp4"], "cannot be written"),
        (["--lora_path", "missing"], "--lora_path missing does not exist"),
        (["--checkpoint_path", "missing"], "--checkpoint_path missing does not exist"),
        (["--use_fp8_gemm", "true"], "pip install sgl-kernel"),
        (["--sage_blocks_range", "a-b"], "like 0-5,9"),
        (["--seed", str(2**70)], "64 bits"),
        (["--aspect_ratio", "1:" + "9" * 400], "16:9"),
        (["--cache_step_interval", "0"], "at least 1"),
        (["--prompt", "\udcff"], "UTF-8"),
        (["--output_path", "n" * 250 + ".mp4"], "File name too long"),
        (["--enable_step_distill", "true", *LEMICA], "does not go with --enable_step_distill"),
        (["--force", "true"], "unrecognized arguments"),
        (["--sa", "true"], "unrecognized arguments: --sa"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(command, capsys, arguments, fault):
    assert fault in refusal(command(*arguments), capsys)


@pytest.mark.parametrize("flag", ["--lora_path", "--checkpoint_path"])
def test_folders_without_weights_are_refused(command, capsys, tmp_path, flag):
    assert "holds no" in refusal(command(flag, str(tmp_path)), capsys)


def test_a_truncated_image_is_refused(command, capsys, reference_image, tmp_path):
    whole = tmp_path / "image.png"
    reference_image.save(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "cannot be read: image file is truncated" in refusal(command("--image_path", str(whole)), capsys)


@pytest.mark.parametrize("nothing", ["", "none", " None "])
def test_no_image_means_text_to_video(command, nothing):
    assert generate.task_of(generate.parse_arguments(command("--image_path", nothing))[0]) == "t2v"


def test_rewriting_asks_for_the_package_that_it_needs(command, capsys, monkeypatch):
    found = generate.importlib.util.find_spec
    monkeypatch.setattr(generate.importlib.util, "find_spec", lambda name: None if name == "openai" else found(name))
    assert "pip install openai" in refusal(command("--rewrite"), capsys)


def test_a_rank_count_that_does_not_divide_the_heads_is_refused(command, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "3 ranks cannot share the model's 4 heads: pass --nproc_per_node of 1, 2, 4" in refusal(command(), capsys)


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [generate.SECONDS_FOR_FIRST_RANK])])
def test_every_rank_says_what_it_refuses_the_first_of_a_node_at_once(command, capsys, monkeypatch, rank, waits):
    waited = []
    monkeypatch.setattr(generate.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as stop:
        generate.parse_arguments(command("--aspect_ratio", "16x9"))
    assert (stop.value.code, waited) == (2, waits)
    assert "--aspect_ratio must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("short", "value", "name"),
    [
        ("--video_len", "5", "video_length"),
        ("--save_pre", "true", "save_pre_sr_video"),
        ("--enable_cach", "no", "enable_cache"),
    ],
)
def test_upstreams_flags_can_be_abbreviated_where_only_one_begins_so(command, short, value, name):
    whole = vars(generate.parse_arguments(command(f"--{name}", value))[0])
    assert vars(generate.parse_arguments(command(short, value))[0]) == whole
    assert vars(generate.parse_arguments(command(f"{short}={value}"))[0]) == whole


def test_upstreams_cache_types_ask_for_angelslim_and_say_why_it_does_not_import(command, capsys, monkeypatch):
    flags = ["--enable_cache", "true", "--cache_type", "teacache"]
    monkeypatch.setitem(sys.modules, "angelslim.compressor.diffusion", None)
    line = refusal(command(*flags), capsys)
    assert "pip install angelslim" in line
    assert "import of angelslim.compressor.diffusion halted" in line


@pytest.mark.parametrize("flag", [("--lemica_step", "3"), ("--lemica_reuse", "velocity")])
def test_lemicas_flags_are_refused_with_another_cache(command, capsys, flag):
    line = refusal(command("--enable_cache", "true", *flag), capsys)
    assert f"{flag[0]} needs --cache_type lemica, got deepcache" in line


def test_an_incomplete_checkpoint_is_refused_naming_what_is_missing(command, capsys, checkpoint, tmp_path):
    partial = tmp_path / "partial"
    shutil.copytree(checkpoint, partial)
    shutil.rmtree(partial / "vision_encoder")
    next((partial / "transformer" / "480p_t2v").glob("*.safetensors")).unlink()
    (partial / "text_encoder" / "llm" / "tokenizer.json").unlink()
    (partial / "text_encoder" / "byt5-small" / "config.json").unlink()
    index = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (partial / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    line = refusal(command("--model_path", str(partial)), capsys)
    assert "text_encoder/llm/tokenizer.json" in line
    assert "text_encoder/byt5-small/config.json" in line
    assert "vae/model-00002-of-00002.safetensors" in line
    assert "vae/diffusion" not in line
    assert "transformer/480p_t2v/*.safetensors" in line
    assert "vision_encoder/siglip/image_encoder/config.json" in line


def test_an_output_folder_that_takes_no_files_is_refused(command, capsys):
    assert "/proc" in refusal(command("--output_path", "/proc/video.mp4"), capsys)


def test_a_refusal_ends_the_program_with_status_2_and_touches_nothing(tree, command, tmp_path):
    (tmp_path / "video.mp4").write_text("precious")
    result = run(tree, command(*LEMICA, "--lemica_step", "0"))
    assert result.returncode == 2
    assert result.stderr.startswith("generate.py: error: argument --lemica_step: ")
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "video.mp4").read_text() == "precious"


def test_upstreams_flags_keep_their_defaults(command):
    args, _ = generate.parse_arguments(["--prompt", "p", *command()[2:6], "--sr", "false"])
    defaults = dict(
        negative_prompt="", aspect_ratio="16:9", num_inference_steps=None, video_length=121, save_pre_sr_video=False,
        rewrite=False, cfg_distilled=False, enable_step_distill=False, sparse_attn=False, offloading=True,
        group_offloading=None, overlap_group_offloading=True, dtype="bf16", seed=123, image_path=None,
        use_sageattn=False, sage_blocks_range="0-53", enable_torch_compile=False, enable_cache=False,
        cache_type="deepcache", no_cache_block_id="53", cache_start_step=11, cache_end_step=45, total_steps=50,
        cache_step_interval=4, save_generation_config=True, checkpoint_path=None, lora_path=None, use_fp8_gemm=False,
        quant_type="fp8-per-token-sgl", include_patterns="double_blocks", lemica_step=None, lemica_mask=None,
    )  # fmt: skip
    assert {name: value for name, value in vars(args).items() if name in defaults} == defaults
    assert generate.build_parser().get_default("sr") is True


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_cached_run_writes_video_and_report(tree, command, tmp_path, reference_image, task):
    reference_image.save(tmp_path / "image.png")
    image = ["--image_path", str(tmp_path / "image.png") if task == "i2v" else "None"]
    result = run(tree, command(*LEMICA, "--lemica_step", "3", "--lemica_forecast", "damped", *image))
    assert result.returncode == 0, result.stderr
    frames = np.stack(imageio.mimread(tmp_path / "video.mp4"))
    assert frames.shape[0] == 5
    assert frames.std() > 1

    config = json.loads((tmp_path / "video_config.json").read_text())
    assert (config["task"], config["transformer_version"]) == (task, f"480p_{task}")
    assert config["arguments"]["lemica_step"] == 3
    report = config["report"]
    assert report["computed_steps"] == [step for step, runs in enumerate(step_mask(3, 4)) if runs]
    assert (report["mask_origin"], report["num_steps"], len(report["step_seconds"])) == ("derived", 4, 4)
    assert (report["reuse"], report["forecast"]) == ("residual", "damped")
    assert report["dit_seconds"] == pytest.approx(sum(report["step_seconds"]))
    assert report["reused_seconds"] == pytest.approx(report["dit_seconds"] - report["computed_seconds"])
    assert report["total_seconds"] == pytest.approx(sum(report["stage_seconds"].values()))
    assert (report["seed"], report["prompt"]) == (123, "a star")
    stages = {
        "model loading",
        "settings",
        "text encoding",
        "image encoding",
        "denoising",
        "VAE decoding",
        "file writing",
    }
    assert set(report["stage_seconds"]) == stages
    assert "3 of 4 steps computed (derived)" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["image.png", "video.mp4", "video_config.json"]


def test_a_mask_file_drives_the_run(tree, command, tmp_path):
    path = mask_file(tmp_path, computed_steps=[0, 3], weights=[[], [1], [1], []])
    result = run(tree, command(*LEMICA, "--lemica_mask", path, "--lemica_step", "4"))
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "video_config.json").read_text())["report"]
    assert (report["computed_steps"], report["mask_origin"]) == ([0, 3], "planned")
    assert (report["reuse"], report["forecast"]) == ("velocity", "fitted")


def loaded_pipe(command, *more):
    args, state = generate.parse_arguments(command(*more))
    pipe = generate.load_pipeline(args, state)
    assert pipe.model_name == generate.run_target(args).model
    return pipe


def test_a_distributed_checkpoint_replaces_the_transformers_weights(command, tmp_path):
    from torch.distributed import checkpoint as dcp

    pipe = loaded_pipe(command)
    changed = {name: weight + 1 for name, weight in pipe.transformer.state_dict().items()}
    dcp.save({"model": changed}, checkpoint_id=tmp_path / "trained", no_dist=True)
    loaded = loaded_pipe(command, "--checkpoint_path", str(tmp_path / "trained")).transformer.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in changed.items())


def test_a_lora_adapter_changes_the_blocks(command, tmp_path):
    from peft import LoraConfig

    pipe = loaded_pipe(command)
    pipe.transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["img_attn_q"]))
    pipe.transformer.save_lora_adapter(str(tmp_path / "lora"))
    loaded = loaded_pipe(command, "--lora_path", str(tmp_path / "lora")).transformer
    saved = {name: weight for name, weight in pipe.transformer.named_parameters() if "lora" in name}
    assert len(saved) == 2 * len(loaded.double_blocks)
    parameters = dict(loaded.named_parameters())
    assert all(torch.equal(parameters[name], weight) for name, weight in saved.items())


def test_a_wrong_argument_is_answered_before_the_models_libraries_load(tree, command):
    code = "import sys; sys.modules['diffusers'] = sys.modules['transformers'] = None; import generate; generate.main()"
    result = run(tree, command("--aspect_ratio", "16x9"), "-c", code)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("wrong", "hint", "remedy"),
    [
        (["--lemica_mask", "of 9 steps"], "pass --num_inference_steps 9", ["--num_inference_steps", "9"]),
        (["--lemica_mask", "of bfloat16"], "type --force_mask true", ["--force_mask", "true"]),
        (["--cache_type", "deepcache", "--lemica_step", "3"], "needs --cache_type lemica", ["--cache_type", "lemica"]),
        (["--lemica_step", "9"], "from 2 to the number of steps, 4", ["--lemica_step", "4"]),
        (["--sparse_attn", "true", "--use_sageattn", "true"], "set one of them to false", ["--sparse_attn", "false"]),
        (["--enable_step_distill", "true"], "does not go with", ["--enable_step_distill", "false"]),
        (["--offloading", "false", "--group_offloading", "true"], "needs", ["--group_offloading", "false"]),
    ],
)
def test_what_a_refusal_says_to_type_is_taken(command, capsys, tmp_path, wrong, hint, remedy):
    masks = {
        "of 9 steps": Mask((True, *(False,) * 7, True)).with_weights(generate.noise_levels(9, 5)),
        "of bfloat16": Mask((True, False, False, True), weights=((), (1,), (1,), ()), target=Target(dtype="bfloat16")),
    }
    for name, mask in masks.items():
        write_mask(mask, tmp_path / f"{name}.json")
    words = [str(tmp_path / f"{word}.json") if word in masks else word for word in wrong]
    refused = command(*LEMICA, "--lemica_step", "3", *words)
    assert hint in refusal(refused, capsys)
    generate.parse_arguments([*refused, *remedy])


def test_every_option_that_a_message_names_exists():
    options = set(generate.build_parser()._option_string_actions) | {"--nproc_per_node", "--force"}
    for name in ("generate.py", "infer_state.py", "hunyuan_video_pipeline.py"):
        nodes = ast.walk(ast.parse((REPOSITORY / name).read_text(encoding="utf-8")))
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert {option for text in texts for option in re.findall(r"(?<![\w-])--[a-z]\w*", text)} <= options


def test_without_the_kit_in_hyvideo_the_program_says_so_in_one_line(tmp_path):
    shutil.copy(REPOSITORY / "generate.py", tmp_path)
    environment = clean_environment() | {"PYTHONPATH": str(UPSTREAM.parent)}
    program = [sys.executable, "generate.py", "--help"]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is upstream's: type scripts/install.sh TREE, then run generate.py in TREE" in done.stderr
    assert done.stderr.count("\n") == 1
