"""Evaluation of pipelines: what is measured, going on after an interruption, refusals, and the command line."""

import gc
import json
import math
import re
import weakref
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from tiny import TEXT, TOKENS, make, noise, picture
from whole import save_whole_pipeline

import lemica
from lemica.calibration.locks import Lock
from lemica.cli.main import main
from lemica.errors import Refused
from lemica.masks import Mask, hold, mask_of, write_mask
from lemica.quality import work
from lemica.quality.costs import Pace, cost
from lemica.quality.metrics import psnr, shape, ssim
from lemica.quality.models import Made, Method
from lemica.quality.noise import moved
from lemica.quality.pipelines import PipelineCalls, frames_of
from lemica.reuse.identity import target_of

STEPS = 8
PROMPTS = ("a red circle", "a blue square")
SAMPLES = [dict(prompt=prompt, guidance_scale=3.0, seed=seed) for seed, prompt in enumerate(PROMPTS)]
STEP_MASK = mask_of((0, 1, 3, 7), STEPS)
MINE = Mask(STEP_MASK, kept="velocity", weights=hold(STEP_MASK), made_by="hand")
ROWS = ["no cache", "mine", "budget 5", "fewer steps (5)", "fewer steps (4)", "noise floor"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    save_whole_pipeline(folder)
    return folder


@pytest.fixture
def pipe(folder):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def evaluate(pipe, samples=SAMPLES, masks=None, budgets=(5,), **options):
    masks = {"mine": MINE} if masks is None else masks
    options = {"num_inference_steps": STEPS, "show_progress": False, **options}
    return lemica.evaluate(pipe, samples, masks, budgets, **options)


def rows_by_name(evaluation):
    return {row.method: row for row in evaluation.rows}


def numbers(evaluation):
    """All but the seconds."""
    return {row.method: [(it.psnr, it.ssim, it.steps, it.fallbacks) for it in row.samples] for row in evaluation.rows}


def frames(pipe, sample, steps=STEPS):
    call = {name: value for name, value in sample.items() if name != "seed"} | {"output_type": "np"}
    generator = torch.Generator().manual_seed(sample["seed"])
    return frames_of(pipe(**call, num_inference_steps=steps, generator=generator))


class Makes:
    """Counts the results that are made; the one of number `fails_at` is interrupted."""

    def __init__(self, monkeypatch, fails_at=None):
        make, self.methods = PipelineCalls.make, []

        def counting(model, sample, method):
            if len(self.methods) == fails_at:
                raise KeyboardInterrupt
            self.methods.append(method.name)
            return make(model, sample, method)

        monkeypatch.setattr(PipelineCalls, "make", counting)


def test_a_row_has_the_quality_of_what_enable_gives_against_the_plain_pipeline(pipe):
    (sample,) = SAMPLES[:1]
    rows = rows_by_name(evaluate(pipe, [sample]))
    uncached, fewer = frames(pipe, sample), frames(pipe, sample, steps=4)
    with lemica.enable(pipe, MINE):
        mine = frames(pipe, sample)
    with lemica.enable(pipe, budget=5):
        budget = frames(pipe, sample)
    for name, made in {"mine": mine, "budget 5": budget, "fewer steps (4)": fewer}.items():
        assert rows[name].psnr == pytest.approx(psnr(uncached[0], made[0]))
        assert rows[name].ssim == pytest.approx(ssim(uncached[0], made[0]))


def test_the_means_of_a_video_are_over_its_frames():
    tiny = make("wan_image_to_video")
    sample = {**tiny.call, "seed": 0}
    rows = rows_by_name(evaluate(tiny.pipe, [sample]))
    uncached = frames(tiny.pipe, sample)
    with lemica.enable(tiny.pipe, MINE):
        made = frames(tiny.pipe, sample)
    assert uncached.shape == (5, 32, 48, 3)
    assert rows["mine"].psnr == pytest.approx(np.mean([psnr(*pair) for pair in zip(uncached, made, strict=True)]))
    assert rows["mine"].psnr + 20 < rows["noise floor"].psnr < math.inf


def test_a_row_has_mean_worst_and_the_gain_over_as_many_steps_without_a_cache(pipe):
    evaluation = evaluate(pipe)
    rows = rows_by_name(evaluation)
    assert list(rows) == ROWS
    assert [row.steps for row in evaluation.rows] == [8, 4, 5, 5, 4, 8]
    mine, fewer = ([sample.psnr for sample in rows[name].samples] for name in ("mine", "fewer steps (4)"))
    gains = np.subtract(mine, fewer)
    row = rows["mine"]
    assert (row.psnr, row.worst_psnr) == pytest.approx((np.mean(mine), min(mine)))
    assert row.psnr_error == pytest.approx(np.std(mine, ddof=1) / math.sqrt(2))
    assert (row.gain, row.gain_error) == pytest.approx((gains.mean(), gains.std(ddof=1) / math.sqrt(2)))
    assert rows["no cache"].psnr == math.inf and rows["fewer steps (4)"].gain is None
    assert row.speedup == pytest.approx(rows["no cache"].seconds / row.seconds)


def test_a_mask_that_computes_every_step_equals_no_cache(pipe):
    every = Mask((True,) * STEPS, kept="velocity", weights=((),) * STEPS)
    evaluation = evaluate(pipe, SAMPLES[:1], {"every": every}, budgets=())
    assert [(row.method, row.psnr) for row in evaluation.rows][:2] == [("no cache", math.inf), ("every", math.inf)]
    assert "| every       |              8 |            equal | 1.0000 |" in str(evaluation)


def test_the_table_says_what_was_measured_and_where_masks_come_from(pipe):
    evaluation = evaluate(pipe)
    text, rows = str(evaluation), rows_by_name(evaluation)
    mine = rows["mine"]
    assert f" {mine.psnr:.2f} ± {mine.psnr_error:.2f} ({mine.worst_psnr:.2f}) |" in text
    # A pipeline does not tell how long its loop takes.
    assert "DiT" not in text and mine.dit_seconds is None
    target = target_of(pipe)
    assert f"2 samples; pipeline StableDiffusionPipeline, DDIMScheduler, config {target.config}" in text
    assert f"diffusers {diffusers.__version__}" in text and "dtype float32, device cpu" in text
    assert "mine: hand\n" in text
    assert "budget 5: derived from the LeMiCa authors' masks for HunyuanVideo-1.5: none are known" in text
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_lpips_is_measured_where_it_is_installed_and_else_said_how_to_get_it(pipe, monkeypatch):
    monkeypatch.setattr(work, "load_lpips", lambda: lambda reference, cached: float(abs(reference - cached).mean()))
    evaluation = evaluate(pipe, SAMPLES[:1])
    (sample,) = rows_by_name(evaluation)["mine"].samples
    assert rows_by_name(evaluation)["mine"].lpips == sample.lpips > 0
    assert f" {sample.lpips:.4f} |" in str(evaluation) and "no LPIPS" not in str(evaluation)
    monkeypatch.setattr(work, "load_lpips", lambda: None)
    without = evaluate(pipe, SAMPLES[:1])
    assert rows_by_name(without)["mine"].lpips is None and "LPIPS |" not in str(without)
    assert "no LPIPS: pip install --no-deps lpips" in str(without)


def test_a_budget_has_a_row_for_every_spacing_and_rule(pipe):
    rules = ("hold", "taylor-step")
    evaluation = evaluate(
        pipe, SAMPLES[:1], {}, fewer_steps=False, spacings=("released", "balanced"), rules=rules, budgets=(5, 4)
    )
    names = [
        f"budget {budget}{spacing}, velocity + {rule}"
        for budget in (5, 4)
        for spacing in ("", ", balanced")
        for rule in rules
    ]
    assert [row.method for row in evaluation.rows] == ["no cache", *names, "noise floor"]
    assert evaluation.rows[1].psnr != evaluation.rows[2].psnr


def test_balanced_steps_are_those_that_enable_gives(pipe):
    rows = rows_by_name(evaluate(pipe, SAMPLES[:1], {}, fewer_steps=False, spacings=("balanced",)))
    with lemica.enable(pipe, budget=5, spacing="balanced"):
        made = frames(pipe, SAMPLES[0])
    assert rows["budget 5, balanced"].psnr == pytest.approx(psnr(frames(pipe, SAMPLES[0])[0], made[0]))


def test_a_rule_that_would_go_too_far_is_left_out_with_a_note(pipe):
    options = {"num_inference_steps": 20, "fewer_steps": False}
    evaluation = evaluate(pipe, SAMPLES[:1], {}, [12, 10], rules=("taylor-step",), **options)
    assert [row.method for row in evaluation.rows] == ["no cache", "budget 12, velocity + taylor-step", "noise floor"]
    told = (
        "budget 10, velocity + taylor-step: left out, for taylor-step would go too far over the long gaps of 10 of 20"
    )
    assert told in str(evaluation)
    with pytest.raises(Refused, match=f"nothing to evaluate; {re.escape(told)} steps: give another of --rules, or"):
        evaluate(pipe, SAMPLES[:1], {}, [10], rules=("taylor-step",), **options)


def test_a_sampler_of_second_order_is_asked_for_as_few_of_its_own_steps(pipe):
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    rows = rows_by_name(evaluate(pipe, SAMPLES[:1], {}, budgets=(7,)))
    assert {name: row.steps for name, row in rows.items()} == {
        "no cache": 15,
        "budget 7": 7,
        "fewer steps (7)": 7,
        "noise floor": 15,
    }


def test_calls_that_are_computed_for_want_of_what_was_kept_are_told(pipe):
    """Pictures of another batch in the middle of the run: guidance that ends early."""

    def end_guidance(pipe, step, _time, tensors):
        pipe._guidance_scale = 0.0 if step == 3 else pipe._guidance_scale
        embeddings = tensors["prompt_embeds"]
        return {"prompt_embeds": embeddings[-1:] if step >= 3 else embeddings}

    sample = {**SAMPLES[0], "callback_on_step_end": end_guidance}
    sample |= {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    evaluation = evaluate(pipe, [sample], fewer_steps=False)
    # Step 4 of 0, 1, 3, 7 has nothing of the smaller batch.
    assert rows_by_name(evaluation)["mine"].steps == 5
    assert "mine: 1 calls computed, for what they needed was not kept" in evaluation.notes


def test_the_pipeline_is_left_as_it_was(pipe):
    parts = (pipe, pipe.scheduler, pipe.unet)
    expected, before = frames(pipe, SAMPLES[0]), [(type(part), set(vars(part))) for part in parts]
    evaluate(pipe, SAMPLES[:1])
    assert [(type(part), set(vars(part))) for part in parts] == before
    assert np.array_equal(frames(pipe, SAMPLES[0]), expected)


# The noise floor.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_noise_floor_moves_the_numbers_by_very_little(dtype):
    latents = noise(1, 4, 8, 8, seed=0).to(dtype)
    changed = moved(latents)
    share = ((changed.float() - latents.float()) / latents.float()).abs()
    assert changed.dtype == dtype and (changed != latents).float().mean() > 0.95
    assert share.max() <= max(1.1e-5, torch.finfo(dtype).eps)


class Plain(diffusers.DiffusionPipeline):
    """A pipeline of one's own, without the methods and arguments that diffusers' have."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, generator, num_inference_steps):
        latents = torch.randn(1, 4, 16, 16, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            output = self.unet(latents, t, encoder_hidden_states=torch.ones(1, TOKENS, TEXT), return_dict=False)[0]
            latents = self.scheduler.step(output, t, latents, return_dict=False)[0]
        return (latents[:, :3].permute(0, 2, 3, 1).sigmoid().numpy(),)


def test_without_prepare_latents_there_is_no_noise_floor_and_a_note(pipe):
    evaluation = evaluate(Plain(pipe.unet, pipe.scheduler), [{"seed": 0}])
    assert [row.method for row in evaluation.rows] == ROWS[:-1]
    assert "no noise floor: the pipeline has no prepare_latents" in str(evaluation)


# Interruptions.


def test_an_interrupted_evaluation_goes_on_where_it_was(pipe, tmp_path, monkeypatch):
    whole = numbers(evaluate(pipe))
    interrupted = Makes(monkeypatch, fails_at=8)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pipe, output=tmp_path)
    assert interrupted.methods == [*ROWS, *ROWS[:2]]
    monkeypatch.undo()
    again = Makes(monkeypatch)
    evaluation = evaluate(pipe, output=tmp_path)
    # What the others are measured against is not kept.
    assert again.methods == [ROWS[0], *ROWS[2:]]
    assert numbers(evaluation) == whole
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == f"{evaluation}\n"


def test_what_is_kept_is_not_made_again_and_masks_may_be_added(pipe, tmp_path, monkeypatch):
    first = evaluate(pipe, SAMPLES[:1], output=tmp_path)
    makes = Makes(monkeypatch)
    assert evaluate(pipe, SAMPLES[:1], output=tmp_path) == first
    assert makes.methods == []
    other = Mask(STEP_MASK, kept="velocity", weights=tuple((0.9,) * len(row) for row in MINE.weights))
    evaluate(pipe, SAMPLES[:1], {"mine": MINE, "other": other}, output=tmp_path)
    assert makes.methods == ["no cache", "other"]
    # A mask of the same name that is another one.
    evaluate(pipe, SAMPLES[:1], {"mine": other}, output=tmp_path)
    assert makes.methods[2:] == ["no cache", "mine"]


def test_a_file_that_the_disk_has_spoilt_is_made_again(pipe, tmp_path, monkeypatch, capsys):
    evaluate(pipe, SAMPLES[:1], output=tmp_path)
    spoilt = next(path for path in (tmp_path / "samples").iterdir() if "noise floor" in path.read_text())
    spoilt.write_text("{", encoding="utf-8")
    makes = Makes(monkeypatch)
    evaluate(pipe, SAMPLES[:1], output=tmp_path)
    assert makes.methods == ["no cache", "noise floor"]
    assert f"{spoilt} cannot be read: that run is made again" in capsys.readouterr().err


def test_results_from_before_videos_and_lpips_are_gone_on_with(pipe, tmp_path, monkeypatch):
    first = evaluate(pipe, SAMPLES[:1], output=tmp_path)
    for path in (tmp_path / "samples").glob("sample*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        old = {name: content[name] for name in ("method", "psnr", "ssim", "seconds", "steps", "fallbacks")}
        path.write_text(json.dumps(old), encoding="utf-8")
    makes = Makes(monkeypatch)
    assert evaluate(pipe, SAMPLES[:1], output=tmp_path) == first
    assert makes.methods == []


# Several ranks: the folder says who makes what.


def test_a_sample_that_another_rank_is_making_is_left_to_it(pipe, tmp_path, monkeypatch):
    lock = Lock(tmp_path / "locks" / "samples" / "0.lock")
    makes = Makes(monkeypatch)
    with pytest.raises(Refused, match="ranks are gone before their work was done, 1 of 2 samples: type the same comm"):
        evaluate(pipe, output=tmp_path)
    assert makes.methods == ROWS
    assert {path.name.partition(".")[0] for path in (tmp_path / "samples").glob("sample*")} == {"sample1"}
    lock.release()
    assert list(rows_by_name(evaluate(pipe, output=tmp_path))) == ROWS
    assert not (tmp_path / "locks").exists()


def test_a_second_evaluation_of_a_folder_is_refused(pipe, tmp_path, monkeypatch):
    lock = Lock(tmp_path / "locks" / "rank0.lock")
    makes = Makes(monkeypatch)
    with pytest.raises(
        Refused, match=r"another lemica evaluate is at work on .* \(process \d+ on .*\): wait for its tab"
    ):
        evaluate(pipe, output=tmp_path)
    lock.release()
    assert makes.methods == []


# Costs.


def test_the_cost_says_who_shares_it():
    whole, half = Method("no cache", 50, 50), Method("mine", 50, 25)
    assert cost([whole, half], [[whole, half], [half], []], groups=4) == (
        "2 runs per sample, as long as 1.5 uncached ones: no cache, mine; 6 for 3 samples, 3 of them done, "
        "shared by 4 groups of ranks"
    )


@pytest.mark.parametrize(
    ("dit_seconds", "line"),
    [
        # Of 21 samples 20 are left: 1500 steps of 2 s, and 40 runs of 20 s for decoding and 30 s for measuring.
        ((100.0, 50.0), "about 42 minutes to go: 2.00 s per computed step, and 50.0 s per run"),
        ((None, None), "about 40 minutes to go: 2.40 s per computed step, and 30.0 s per run"),
    ],
)
def test_after_the_first_result_it_is_said_how_long_the_rest_takes(dit_seconds, line):
    said = []
    pace = Pace([Method("no cache", 50, 50), Method("mine", 50, 25)] * 21, groups=2, say=said.append)
    pace.note(Made(np.zeros(()), 120.0, 50, dit_seconds=dit_seconds[0]), 1.0)
    assert said == []
    pace.note(Made(np.zeros(()), 70.0, 25, dit_seconds=dit_seconds[1]), 30.0)
    pace.note(Made(np.zeros(()), 70.0, 25, dit_seconds=dit_seconds[1]), 30.0)
    assert said == [f"{line} for decoding and measuring"]


def test_no_more_than_two_results_are_in_memory_when_the_next_one_is_made(pipe, monkeypatch):
    made, alive = [], []
    make = PipelineCalls.make

    def counted(model, sample, method):
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        result = make(model, sample, method)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(PipelineCalls, "make", counted)
    evaluate(pipe, SAMPLES[:2], {}, budgets=[6, 4])
    assert len(alive) > 8
    # The uncached one, which the others are measured against, and the one before.
    assert max(alive) == 2


def test_results_of_other_settings_are_not_gone_on_with(pipe, tmp_path):
    evaluate(pipe, SAMPLES[:1], output=tmp_path)
    with pytest.raises(Refused, match=r"holds results of prompts of digest \w+, not of digest \w+: give another fol"):
        evaluate(pipe, SAMPLES[1:], output=tmp_path)
    with pytest.raises(Refused, match="holds results of num_inference_steps 8, not 9: give another folder"):
        evaluate(pipe, SAMPLES[:1], {}, num_inference_steps=9, output=tmp_path)
    pipe.scheduler.register_to_config(beta_end=0.013)
    with pytest.raises(
        Refused, match=r"holds results of scheduler DDIMScheduler \w+, not DDIMScheduler \w+: give another folder"
    ):
        evaluate(pipe, SAMPLES[:1], output=tmp_path)


def test_results_that_do_not_say_what_they_are_of_are_not_gone_on_with(pipe, tmp_path):
    evaluate(pipe, SAMPLES[:1], output=tmp_path)
    (tmp_path / "samples" / "settings.json").write_text("[1", encoding="utf-8")
    with pytest.raises(Refused, match=r"settings.json cannot be read: give another folder"):
        evaluate(pipe, SAMPLES[:1], output=tmp_path)
    (tmp_path / "samples" / "settings.json").unlink()
    with pytest.raises(Refused, match="does not say what its results are of"):
        evaluate(pipe, SAMPLES[:1], output=tmp_path)


# Refusals.


def longer() -> Mask:
    steps = mask_of((0, 1, 11), 12)
    return Mask(steps, kept="velocity", weights=hold(steps))


@pytest.mark.parametrize(
    ("samples", "masks", "budgets", "message"),
    [
        ([], {"mine": MINE}, (), "no samples: give a list"),
        (SAMPLES, {}, (), "nothing to evaluate: give masks or budgets"),
        (SAMPLES, {}, (1,), "a budget is at least 2, the first step and the last; got 1"),
        (SAMPLES, {}, (9,), r"budget must be from 2 to the number of steps, 8; got 9 \(budget 9\)"),
        (SAMPLES, {"long": longer()}, (), r"the mask is for 12 steps and this run has 8: .* \(long\)"),
        (SAMPLES, {"kit": Mask(STEP_MASK, weights=hold(STEP_MASK))}, (), "keeps residuals of HunyuanVideo-1.5's bl"),
        (SAMPLES, {"file": "no_such_mask.json"}, (), "cannot read the mask file no_such_mask.json"),
        (SAMPLES, {"noise floor": MINE}, (), "'noise floor' is the name of another row of the table"),
        (SAMPLES, {"budget 5": MINE}, (5,), "'budget 5' is the name of another row of the table"),
        ([{"generator": 0}], {}, (5,), "a sample has generator: leave it out, and give a seed"),
        ([{"prompt": "a", "timesteps": [9]}], {}, (5,), "a sample has timesteps, with which there are no fewer steps"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_made(
    pipe, monkeypatch, samples, masks, budgets, message
):
    makes = Makes(monkeypatch)
    with pytest.raises(Refused, match=message) as refused:
        evaluate(pipe, samples, masks, budgets)
    assert "\n" not in str(refused.value)
    assert makes.methods == []


def test_an_argument_that_the_call_does_not_take_is_refused(pipe):
    with pytest.raises(Refused, match=r"^the call of Plain takes no 'heigth': leave it out$"):
        evaluate(Plain(pipe.unet, pipe.scheduler), [{"seed": 0, "heigth": 32}])


def test_what_would_not_be_uncached_is_refused(pipe):
    with (
        lemica.enable(pipe, budget=5),
        pytest.raises(Refused, match=r"LeMiCa is enabled on this pipeline: call lemica.disable\(pipe\) first"),
    ):
        evaluate(pipe)
    pipe.unet._cache_config = SimpleNamespace()
    with pytest.raises(Refused, match="one cache at a time"):
        evaluate(pipe)


def test_pictures_that_are_no_numbers_are_refused(pipe):
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(math.nan)
    with pytest.raises(Refused, match="the result of no cache has values that are no numbers"):
        evaluate(pipe)


def test_what_are_no_pictures_is_refused():
    with pytest.raises(Refused, match=r"returns no pictures or videos, which are what is measured, but \(2, 3\)"):
        frames_of((np.zeros((2, 3)),))


@pytest.mark.parametrize(
    ("result", "count"), [([picture(16, 24)], 1), ([[picture(16, 24)] * 3] * 2, 6), (np.ones((2, 3, 16, 24, 3)), 6)]
)
def test_pictures_and_videos_become_frames(result, count):
    made = frames_of((result,))
    assert made.shape == (count, 16, 24, 3) and made.dtype == np.float32
    assert 0.9 < made.max() <= 1


# The command.


@pytest.fixture
def arguments(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "call.json").write_text(json.dumps({"guidance_scale": 3.0}))
    write_mask(MINE, tmp_path / "mine.json")
    options = {"--pipeline": folder, "--call": tmp_path / "call.json", "--prompts": tmp_path / "prompts.txt"}
    options |= {"--dtype": "fp32", "--num_inference_steps": STEPS, "--output": tmp_path / "evaluation"}
    options |= {"--masks": tmp_path / "mine.json", "--budgets": 5}
    return ["evaluate", *(str(word) for option in options.items() for word in option), "--fewer_steps"]


def test_the_command_prints_and_writes_the_table_of_the_function(arguments, pipe, tmp_path, capsys):
    main(arguments)
    printed = capsys.readouterr().out
    assert printed.startswith("6 runs per sample, as long as 4.2 uncached ones: no cache, mine, budget 5, ")
    assert "; 12 for 2 samples\n" in printed
    assert (tmp_path / "evaluation" / "table.md").read_text(encoding="utf-8") in printed
    document = json.loads((tmp_path / "evaluation" / "evaluate.json").read_text(encoding="utf-8"))
    samples = [dict(sample, seed=0) for sample in SAMPLES]
    expected = rows_by_name(evaluate(pipe, samples))
    assert document["format"] == "lemica-evaluation/1"
    assert [row["method"] for row in document["rows"]] == list(expected)
    assert document["rows"][0]["psnr"] is None
    for row in document["rows"][1:]:
        assert row["psnr"] == pytest.approx(expected[row["method"]].psnr)
    main(arguments)
    assert "; 12 for 2 samples, 12 of them done\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--budgets", "1"], "a budget is at least 2"),
        (["--masks", "no.json"], "cannot read the mask file no.json: No such file or directory"),
        (["--num_inference_steps", "1"], "--num_inference_steps must be at least 2, got 1"),
        (["--num_inference_steps", "9"], "the mask is for 8 steps and this run has 9"),
        (["--call", "no.json"], "--call no.json: No such file or directory"),
        (["--pipeline", "no/such/folder"], "--pipeline no/such/folder cannot be loaded: "),
        (["--output", "/dev/null"], "/dev/null/table.md: Not a directory"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_in_one_line(arguments, capsys, changes, message):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *changes])
    # Diffusers shows a bar while it loads.
    (error,) = (line for line in capsys.readouterr().err.split("\n") if line and "Loading" not in line)
    assert ended.value.code == 2
    assert error.startswith("lemica evaluate: error: ") and message in error


def test_videos_and_the_page_are_kept_where_they_are_asked_for(arguments, tmp_path, capsys):
    main([*arguments, "--save_videos"])
    assert "evaluation: table.md, evaluate.json, report.html\n" in capsys.readouterr().out
    document = json.loads((tmp_path / "evaluation" / "evaluate.json").read_text(encoding="utf-8"))
    videos = [tmp_path / "evaluation" / sample["video"] for row in document["rows"] for sample in row["samples"]]
    assert len(set(videos)) == 12 and all(shape(video) == (1, 32, 32) for video in videos)
    assert videos[0].parent.name == "000_a_red_circle_seed0"
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert all(prompt in page for prompt in PROMPTS)
    main(arguments)
    assert "report.html is of an earlier command, which kept videos" in capsys.readouterr().err


def test_options_of_the_kit_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--flow_shift", "3"])
    assert "--flow_shift is of HunyuanVideo-1.5 with the kit: leave it out" in capsys.readouterr().err
