"""The demo checkpoint in diffusers' classes computes what the kit computes: forwards, prompts, whole runs.

The kit runs in a process of its own, on the diffusers and transformers that it is pinned to.
"""

from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch

if not hasattr(diffusers, "HunyuanVideo15Pipeline"):
    pytest.skip(f"diffusers {diffusers.__version__} lacks HunyuanVideo-1.5", allow_module_level=True)

from demo.calibrations import CHECKPOINT, Calibration
from demo.diffusers_model import convert_transformer, convert_vae, demo_pipeline
from demo.framework import graph_differences, graph_in_diffusers, mask_differences, masks_of, run_on_kits_packages

# Pairs of demo.pairs: text-to-video at 64 x 64, image-to-video from a tall picture, whose size has to be found.
RUNS = {"t2v": 0, "i2v": 2}
both_tasks = pytest.mark.parametrize("task", RUNS)


@pytest.fixture(scope="module")
def kit_run(tmp_path_factory):
    """What the kit did for a task, as the worker has noted it, once per task."""

    @cache
    def run(task: str) -> dict:
        output = tmp_path_factory.mktemp("kit") / f"{task}.pt"
        run_on_kits_packages(Path(__file__).with_name("kit_run_worker.py"), task, RUNS[task], output)
        return torch.load(output, weights_only=False)

    return run


@pytest.fixture(scope="module")
def pipeline():
    """The whole pipeline in diffusers for a task, once per task."""

    @cache
    def load(task: str):
        pipe = demo_pipeline(CHECKPOINT, task)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def run_in_diffusers(pipe, kit_run: dict, **options):
    """The same request as the kit's; a seed is the same noise in both."""
    size = {"height": 64, "width": 64} if kit_run["image"] is None else {"image": kit_run["image"]}
    request = dict(prompt=kit_run["prompt"], num_frames=9, generator=torch.Generator().manual_seed(kit_run["seed"]))
    return pipe(**request | size | options).frames


def glyphs(batch_size: int) -> dict[str, torch.Tensor]:
    """The fewest glyph tokens that the pipeline can hand over, none of them valid."""
    tokens, valid = torch.zeros(batch_size, 1, 1472), torch.zeros(batch_size, 1)
    return dict(encoder_hidden_states_2=tokens, encoder_attention_mask_2=valid)


def difference(ours: torch.Tensor, kits: torch.Tensor) -> float:
    assert ours.shape == kits.shape
    return (ours - kits).abs().max().item()


@both_tasks
@torch.no_grad()
def test_transformer_computes_what_upstreams_class_computes(kit_run, pipeline, task):
    run, transformer = kit_run(task), pipeline(task).transformer
    for forward in run["forwards"]:
        (velocity,) = transformer(
            hidden_states=forward["hidden_states"],
            timestep=forward["timestep"],
            encoder_hidden_states=run["text_states"],
            encoder_attention_mask=run["encoder_attention_mask"],
            image_embeds=run["vision_states"],
            return_dict=False,
            **glyphs(2),
        )
        assert forward["velocity"].std() > 0.5
        assert difference(velocity, forward["velocity"]) < 1e-5


@both_tasks
@torch.no_grad()
def test_prompts_are_embedded_as_by_the_kit(kit_run, pipeline, task):
    run = kit_run(task)
    embeds, valid, _, glyphs_valid = pipeline(task).encode_prompt(["", run["prompt"]], batch_size=2)
    assert difference(embeds, run["text_states"]) < 1e-5
    assert torch.equal(valid.bool(), run["encoder_attention_mask"].bool())
    assert not glyphs_valid.any()


@both_tasks
def test_forwards_take_no_more_tokens_than_the_kits(kit_run, pipeline, task):
    run, pipe, taken = kit_run(task), pipeline(task), []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _m, _a, arguments: taken.append(arguments), with_kwargs=True
    )
    run_in_diffusers(pipe, run, output_type="latent", num_inference_steps=1)
    hook.remove()
    for arguments in taken:
        assert arguments["encoder_hidden_states"].shape == run["text_states"][:1].shape
        assert arguments["image_embeds"].shape == run["vision_states"][:1].shape
        # The pipeline cannot do without any glyph token.
        assert arguments["encoder_hidden_states_2"].shape[1] == 1


@both_tasks
def test_whole_run_ends_where_the_kits_ends(kit_run, pipeline, task):
    run, pipe = kit_run(task), pipeline(task)
    latents = run_in_diffusers(pipe, run, output_type="latent")
    assert difference(pipe.scheduler.sigmas, run["sigmas"]) < 1e-6
    # Guidance is two forwards here and one of both in the kit, which rounds otherwise.
    assert difference(latents, run["latents"]) < 1e-4


@both_tasks
def test_calibration_measures_and_plans_what_the_kits_does(kit_run, pipeline, task):
    kits = kit_run(task)["graph"]
    graph = graph_in_diffusers(pipeline(task), Calibration(task, kits.num_steps, samples=1))
    differences = graph_differences(kits, graph)
    assert differences["edges"]["largest"] < 1e-4
    assert differences["products"]["largest"] < 1e-5
    masks = mask_differences(kits, masks_of(kits), masks_of(graph))
    assert masks["compared"] > 20
    assert masks["differing"] == {}
    assert masks["weights"] < 1e-4


@torch.no_grad()
def test_frames_are_decoded_as_by_the_kit(kit_run, pipeline):
    run, vae = kit_run("t2v"), pipeline("t2v").vae
    frames = vae.decode(run["latents"] / vae.config.scaling_factor).sample
    assert difference((frames / 2 + 0.5).clamp(0, 1), run["frames"]) < 1e-4


def test_embeddings_instead_of_a_prompt_give_the_same_video(kit_run, pipeline):
    run, pipe = kit_run("t2v"), pipeline("t2v")
    embeddings = {}
    for sign, text in (("", run["prompt"]), ("negative_", "")):
        names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
        embeddings |= {sign + name: value for name, value in zip(names, pipe.encode_prompt(text), strict=True)}
    short = dict(output_type="latent", num_inference_steps=2)
    assert torch.equal(
        run_in_diffusers(pipe, run, prompt=None, **embeddings, **short), run_in_diffusers(pipe, run, **short)
    )


@pytest.mark.parametrize(("convert", "part"), [(convert_transformer, "transformer/480p_t2v"), (convert_vae, "vae")])
def test_weights_that_do_not_fit_are_refused(convert, part):
    import json

    from safetensors.torch import load_file

    config = json.loads((CHECKPOINT / part / "config.json").read_text())
    weights = load_file(CHECKPOINT / part / "diffusion_pytorch_model.safetensors")
    with pytest.raises(RuntimeError, match="stranger"):
        convert(weights | {"stranger.weight": torch.zeros(1)}, config)
    name = next(iter(weights))
    with pytest.raises(RuntimeError, match="Missing key"):
        convert({other: value for other, value in weights.items() if other != name}, config)
