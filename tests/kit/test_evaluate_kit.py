"""Evaluation of HunyuanVideo-1.5 with the kit: against the pipeline itself, resuming, ranks, refusals, the page."""

import io
import json
import math
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import REPOSITORY, TREE, clean_environment
from hyvideo.commons.infer_state import InferState, resolve_mask

from demo.attention import fused_attention
from lemica.calibration.hunyuan import HunyuanVideo
from lemica.calibration.samples import Sample
from lemica.cli.main import build_parser, main
from lemica.masks import Mask, Target, hold, mask_of, write_mask
from lemica.quality.hunyuan import KitVideos
from lemica.quality.metrics import psnr, shape, ssim
from lemica.quality.wanted import Budget, wanted_methods

N = 5
PROMPTS = ("a red circle moves left", "a blue square moves right over sand")
STEPS = mask_of((0, 2, 4), N)
ROWS = ["no cache", "mine", "budget 3", "budget 3, balanced", "fewer steps (3)", "noise floor"]
WORKER = Path(__file__).with_name("evaluate_worker.py")


@pytest.fixture(scope="module")
def options(checkpoint, tmp_path_factory) -> list[str]:
    """The command but for its output: a mask of one's own, a budget with both spacings, fewer steps."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    write_mask(Mask(STEPS, "velocity", hold(STEPS)), folder / "mine.json")
    words = {"--model_path": checkpoint, "--prompts": folder / "prompts.txt", "--masks": folder / "mine.json"}
    words |= {"--resolution": "480p", "--aspect_ratio": "1:1", "--video_length": 1, "--num_inference_steps": N}
    words |= {"--budgets": 3, "--spacings": "released"}
    return ["evaluate", *(str(word) for pair in words.items() for word in pair), "balanced", "--fewer_steps"]


@pytest.fixture
def command(options, tmp_path) -> list[str]:
    return [*options, "--output", str(tmp_path / "evaluation")]


@pytest.fixture(scope="module")
def pipe(load_pipeline):
    """The model that the command loads, loaded already."""
    pipe = load_pipeline("480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch, fused_attention():
        patch.setattr(HunyuanVideo, "pipeline", pipe)
        yield pipe


@pytest.fixture
def unloadable(monkeypatch):
    monkeypatch.setattr(HunyuanVideo, "pipeline", property(lambda _: pytest.fail("the model was loaded")))


@contextmanager
def counting(fails_at=None):
    """Gives the methods of the videos that are made, and the samples that are encoded; video `fails_at` is not made."""
    make, prepare, made, encoded = KitVideos.make, KitVideos._prepare, [], []

    def counted_make(model, sample, method):
        if len(made) == fails_at:
            raise KeyboardInterrupt
        made.append(method.name)
        return make(model, sample, method)

    def counted_prepare(model, sample):
        encoded.append(sample.prompt)
        return prepare(model, sample)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KitVideos, "make", counted_make)
        patch.setattr(KitVideos, "_prepare", counted_prepare)
        yield made, encoded


@dataclass(frozen=True)
class Evaluated:
    """A whole evaluation that was interrupted once: its folder, and what was made before that and after."""

    folder: Path
    before: list[str]
    after: list[str]
    encoded: list[str]
    printed: str


@pytest.fixture(scope="module")
def evaluated(options, pipe, tmp_path_factory) -> Evaluated:
    folder = tmp_path_factory.mktemp("evaluated")
    # The first run is the one that warms up.
    with counting(fails_at=len(ROWS) + 3) as (before, _), pytest.raises(SystemExit):
        main([*options, "--output", str(folder)])
    with counting() as (after, encoded), redirect_stdout(io.StringIO()) as printed:
        main([*options, "--output", str(folder)])
    return Evaluated(folder, before, after, encoded, printed.getvalue())


def document(folder: Path) -> dict:
    return json.loads((folder / "evaluate.json").read_text(encoding="utf-8"))


def numbers(folder: Path) -> dict:
    """All but the seconds, by row."""
    names = ("psnr", "ssim", "steps")
    rows = document(folder)["rows"]
    return {row["method"]: [[sample[name] for name in names] for sample in row["samples"]] for row in rows}


def frames(pipe, prompt: str, steps: int = N, **lemica) -> np.ndarray:
    """What the pipeline itself gives."""
    pipe.infer_state = InferState(enable_cache=bool(lemica), cache_type="lemica", **lemica)
    try:
        request = dict(aspect_ratio="1:1", video_length=1, enable_sr=False, prompt_rewrite=False, negative_prompt="")
        video = pipe(prompt=prompt, num_inference_steps=steps, seed=0, **request).videos
    finally:
        pipe.infer_state = InferState()
    return video[0].permute(1, 2, 3, 0).numpy()


def test_rows_are_those_of_the_pipeline_itself(evaluated, pipe):
    found = numbers(evaluated.folder)
    assert list(found) == ROWS
    # The second sample: what it is measured against was made twice.
    prompt, mine = PROMPTS[1], Mask(STEPS, "velocity", hold(STEPS))
    uncached = frames(pipe, prompt)
    made = {
        "mine": frames(pipe, prompt, lemica_mask=mine),
        "budget 3": frames(pipe, prompt, lemica_step=3),
        "budget 3, balanced": frames(pipe, prompt, lemica_step=3, lemica_spacing="balanced"),
        "fewer steps (3)": frames(pipe, prompt, steps=3),
    }
    for name, video in made.items():
        assert found[name][1][:2] == pytest.approx([psnr(uncached[0], video[0]), ssim(uncached[0], video[0])])
    assert found["mine"][1][0] + 20 < found["noise floor"][1][0] < math.inf
    assert [found[name][0][2] for name in ROWS] == [N, 3, 3, 3, 3, N]


def test_an_interrupted_evaluation_makes_only_what_is_missing(evaluated):
    assert evaluated.before == ["two steps", *ROWS, *ROWS[:2]]
    assert evaluated.after == ["two steps", ROWS[0], *ROWS[2:]]
    assert "; 12 for 2 samples, 8 of them done\n" in evaluated.printed


def test_a_sample_is_encoded_once_for_all_its_methods(evaluated):
    # And once to warm up.
    assert evaluated.encoded == [PROMPTS[1]] * 2


def test_seconds_are_of_the_loop_and_of_the_whole_run(evaluated):
    rows = document(evaluated.folder)["rows"]
    for row in rows:
        assert all(0 < sample["dit_seconds"] < sample["seconds"] for sample in row["samples"])
        assert row["dit_speedup"] == pytest.approx(rows[0]["dit_seconds"] / row["dit_seconds"])
        assert row["speedup"] == pytest.approx(rows[0]["seconds"] / row["seconds"])
    assert "| DiT seconds | DiT speed-up | seconds | speed-up |" in evaluated.printed


def test_the_videos_and_the_page_are_there(evaluated):
    folder = evaluated.folder
    assert f"{folder}: table.md, evaluate.json, report.html" in evaluated.printed
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = document(folder)
    assert [request["prompt"] for request in found["requests"]] == list(PROMPTS)
    for row in found["rows"]:
        for sample, prompt in zip(row["samples"], PROMPTS, strict=True):
            assert (folder / sample["video"]).is_file()
            assert prompt.replace(" ", "_") in sample["video"]
            assert sample["video"] in unquote(page) and prompt in page
    assert shape(folder / found["rows"][0]["samples"][0]["video"]) == (1, 128, 128)
    assert {path.name for path in folder.iterdir()} == {"table.md", "evaluate.json", "report.html", "samples", "videos"}


def test_a_finished_evaluation_loads_nothing(command, evaluated, unloadable, tmp_path):
    shutil.copytree(evaluated.folder / "samples", tmp_path / "evaluation" / "samples")
    main([*command, "--save_videos", "false"])
    assert document(tmp_path / "evaluation")["rows"] == document(evaluated.folder)["rows"]
    assert not (tmp_path / "evaluation" / "report.html").exists()


def test_a_video_that_is_gone_is_made_again(command, evaluated, pipe, tmp_path):
    shutil.copytree(evaluated.folder, tmp_path / "evaluation")
    (video,) = (tmp_path / "evaluation" / "videos").glob("000*/budget_3_balanced*.mp4")
    video.unlink()
    with counting() as (made, _):
        main(command)
    assert made == ["two steps", "no cache", "budget 3, balanced"]
    assert video.is_file() and numbers(tmp_path / "evaluation") == numbers(evaluated.folder)


def test_other_settings_need_another_folder(options, evaluated, unloadable, capsys):
    line = refusal(capsys, [*options, "--output", str(evaluated.folder), "--flow_shift", "3"])
    assert "holds results of flow_shift None, not 3.0: give another folder, or delete it" in line


# Masks.


def test_what_a_mask_must_belong_to_is_known_before_weights_load(command, pipe):
    model = HunyuanVideo(build_parser().parse_args(command), N, with_image=False)
    settings = model.settings_of(Sample(PROMPTS[0], 0), N)
    assert vars(model.target) == vars(pipe.target(settings.scheduler))


@pytest.fixture
def other_mask(tmp_path) -> Path:
    """A mask of another sampler."""
    target = Target(sigmas=tuple(np.linspace(1, 0, N + 1).tolist()))
    write_mask(Mask(STEPS, "velocity", hold(STEPS), target=target), tmp_path / "other.json")
    return tmp_path / "other.json"


def test_a_mask_of_another_sampler_is_refused_before_anything_is_made(command, unloadable, other_mask, capsys):
    line = refusal(capsys, [*command, "--masks", str(other_mask)])
    assert "the mask belongs to other noise levels" in line and "--force_mask true" in line and "(other)" in line


def test_a_forced_mask_is_taken_and_a_note_says_so(command, unloadable, other_mask):
    model = KitVideos(build_parser().parse_args(command), {}, N, with_image=False)
    wanted = wanted_methods({"other": other_mask}, [], force=True)
    model.refuse([], wanted, fewer_steps=False)
    tried = model.try_out(None, wanted)
    assert tried.masks["other"].steps == STEPS
    assert tried.notes[0].startswith("other: belongs to other noise levels")
    assert tried.notes[0].endswith(", used all the same")


@pytest.mark.parametrize("spacing", ["released", "balanced"])
@pytest.mark.parametrize("rule", ["hold", "damped"])
def test_a_rule_gives_the_mask_that_the_kits_flags_give(spacing, rule):
    target = Target(sigmas=tuple((1 - step / 50) for step in range(51)))
    asked = Budget(20, spacing, rule)
    switches = InferState(enable_cache=True, cache_type="lemica", **asked.for_kit)
    made = asked.carried_on(resolve_mask(switches, target), target.sigmas, is_euler=True)
    flags = dict(lemica_step=20, lemica_spacing=spacing, lemica_reuse="velocity", lemica_forecast=rule)
    expected = resolve_mask(InferState(enable_cache=True, cache_type="lemica", **flags), target)
    assert (made.steps, made.kept, made.weights) == (expected.steps, "velocity", expected.weights)


# Ranks.


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def test_two_ranks_give_the_numbers_of_one_apart_and_together(options, evaluated, tmp_path):
    (tmp_path / "first.txt").write_text(PROMPTS[0], encoding="utf-8")
    at = options.index("--masks")
    short = [word for word in (*options[:at], *options[at + 2 :]) if word not in ("--fewer_steps", "balanced")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, WORKER, tmp_path, str(free_port()), tmp_path / "first.txt", *short],
        cwd=TREE,
        env=clean_environment() | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert sorted(rank["apart"] for rank in made) == sorted([prompt] for prompt in PROMPTS)
    assert [rank["together"] for rank in made] == [[PROMPTS[0]]] * 2
    one, apart, together = map(numbers, (evaluated.folder, tmp_path / "apart", tmp_path / "together"))
    assert list(apart) == list(together) == ["no cache", "budget 3", "noise floor"]
    assert apart == {name: one[name] for name in apart}
    # Upstream's attention, which two ranks can share, rounds otherwise.
    assert together["budget 3"][0] == pytest.approx(one["budget 3"][0], abs=1e-2)
    # One rank speaks.
    assert done.stdout.count("6 for 2 samples, shared by 2 groups of ranks") == 1
    assert done.stdout.count(f"{tmp_path / 'apart'}: table.md, evaluate.json, report.html") == 1
    for name, count in {"apart": 6, "together": 3}.items():
        assert len(list((tmp_path / name / "videos").rglob("*.mp4"))) == count
        assert not (tmp_path / name / "locks").exists()


# Refusals.


def refusal(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lemica evaluate: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budgets", "6"], "--budgets 6 is above the number of steps, 5"),
        (["--num_inference_steps", "7"], "the mask is for 5 steps but the sampler runs 7"),
        (["--rules", "fitted"], "argument --rules: invalid choice: 'fitted'"),
        (["--spacings", "even"], "argument --spacings: invalid choice: 'even'"),
        (["--sp_size", "2"], "--sp_size 2 must divide the number of ranks, 1"),
        (["--sp_size", "0"], "--sp_size 0 must divide the number of ranks, 1"),
        (["--video_length", "0"], "--video_length must be at least 1, got 0"),
        (["--resolution", "720p"], "has no transformer/720p_t2v: choose flags of a model it has"),
        (["--model_path", "nowhere"], "--model_path nowhere is not a folder"),
        (["--call", "call.json"], "--call goes with --pipeline: leave it out"),
        (["--pipeline", "owner/name"], "is of HunyuanVideo-1.5 with the kit: leave it out with --pipeline"),
        (["--masks", "no.json"], "cannot read the mask file no.json"),
        (["--output", "/dev/null"], "/dev/null/table.md: Not a directory"),
    ],
)
def test_wrong_options_are_refused_in_one_line_before_anything_is_loaded(command, unloadable, capsys, more, message):
    assert message in refusal(capsys, [*command, *more])


def test_rules_without_budgets_are_refused(command, unloadable, capsys):
    at = command.index("--budgets")
    assert "--rules goes with --budgets" in refusal(capsys, [*command[:at], *command[at + 2 :], "--rules", "hold"])


def test_without_a_model_both_ways_to_name_one_are_told(command, unloadable, capsys):
    at = command.index("--model_path")
    assert "give --model_path and --resolution for" in refusal(capsys, [*command[:at], *command[at + 2 :]])


def test_ranks_that_cannot_share_the_models_heads_are_refused(command, unloadable, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    line = refusal(capsys, [*command, "--sp_size", "3"])
    assert "--sp_size 3 ranks cannot share the model's 4 heads: give a number that divides them" in line


def test_outside_of_a_tree_it_is_said_what_to_type(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "hyvideo.pipelines", None)
    assert "cd TREE, then lemica evaluate again" in refusal(capsys, command)
