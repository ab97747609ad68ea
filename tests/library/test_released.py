"""The authors' masks by model: the file, which model a denoiser is, the mask for a budget and what it is said to be."""

import hashlib
import inspect
import json
import subprocess
import sys
from itertools import pairwise

import pytest

from lemica.masks import RELEASED_STEPS, Mask, mask_of, read_mask, step_mask, write_mask
from lemica.released import FILE, mask_for_budget, recognise, released_models

MODELS = released_models()
WAN = "WanTransformer3DModel"
T2V_14B = {"num_layers": 40, "ffn_dim": 13824, "in_channels": 16, "image_dim": None, "pos_embed_seq_len": None}
I2V_14B = {**T2V_14B, "in_channels": 36, "image_dim": 1280}
T2V_1_3B = {**T2V_14B, "num_layers": 30, "ffn_dim": 8960}
# What WanPipeline and WanImageToVideoPipeline have in their configs, of Wan2.1 and of Wan2.2.
ONE_EXPERT, TWO_EXPERTS = {"boundary_ratio": None}, {"boundary_ratio": 0.875}
QWEN = {"num_layers": 60, "in_channels": 64, "zero_cond_t": False, "use_additional_t_cond": False}
FLUX = {"num_layers": 19, "num_single_layers": 38, "in_channels": 64, "guidance_embeds": True}
KLEIN = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32}
HUNYUAN = {"num_layers": 54, "num_attention_heads": 16, "in_channels": 65, "use_meanflow": False}
ERNIE = {"num_layers": 36, "hidden_size": 4096}
Z_IMAGE = {"n_layers": 30, "dim": 3840, "siglip_feat_dim": None}
CACHED = "/home/me/.cache/huggingface/hub/models--{}/snapshots/04cc4abb/transformer"


# The file


def test_the_file_has_every_released_mask_from_the_first_step_to_the_last():
    assert sum(len(model.masks) for model in MODELS.values()) == 39
    for model in MODELS.values():
        for budget, steps in model.masks.items():
            assert (len(steps), steps[0], steps[-1]) == (budget, 0, model.num_steps - 1)
            assert all(before < after for before, after in pairwise(steps))


def test_no_released_mask_has_changed():
    masks = [[name, budget, steps] for name, model in MODELS.items() for budget, steps in model.masks.items()]
    assert hashlib.sha256(json.dumps(masks).encode()).hexdigest()[:16] == "9a4c2bdc4f64fd08"


def test_the_kit_has_the_files_table_of_its_own_model():
    assert MODELS["HunyuanVideo-1.5"].masks == RELEASED_STEPS


def test_every_model_says_where_its_masks_and_its_marks_are_from():
    entries = json.loads(FILE.read_text(encoding="utf-8"))["models"]
    for name, entry in entries.items():
        assert entry["source"] == f"the LeMiCa authors' {name} release, {entry['num_steps']} steps"
        assert entry["recognised_by"]["facts"]


def test_no_name_stands_for_two_models():
    names = [name.lower() for model in MODELS.values() for name in model.names]
    others = {name.lower() for model in MODELS.values() for name in model.others}
    assert len(names) == len(set(names)) and not others & set(names)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_only_a_config_that_no_other_known_model_has_decides(model):
    alike = [other for other in MODELS.values() if (other.denoiser, other.config) == (model.denoiser, model.config)]
    assert model.names or model.config_decides
    assert not (model.config_decides and len(alike) > 1)


# What diffusers has

PIPELINES_KEYS = {"boundary_ratio": "WanPipeline", "is_distilled": "Flux2KleinPipeline"}


def diffusers_class(name: str) -> type:
    found = getattr(pytest.importorskip("diffusers"), name, None)
    return found or pytest.skip(f"this diffusers has no {name}")


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_mark_is_a_value_that_the_denoisers_or_the_pipelines_class_knows(model):
    for key in model.config:
        known = inspect.signature(diffusers_class(PIPELINES_KEYS.get(key, model.denoiser)).__init__).parameters
        # 0.35 is older than some of Qwen-Image's values.
        assert key in known or key in ("zero_cond_t", "use_additional_t_cond")


@pytest.mark.parametrize(
    ("denoiser", "more", "expected"),
    [
        ("HunyuanVideo15Transformer3DModel", {}, "HunyuanVideo-1.5"),
        (WAN, ONE_EXPERT, "Wan2.1-T2V-14B"),
        ("Flux2Transformer2DModel", {}, "FLUX.2"),
        ("QwenImageTransformer2DModel", {"_name_or_path": "Qwen/Qwen-Image"}, "Qwen-Image"),
        ("ZImageTransformer2DModel", {"_name_or_path": "Tongyi-MAI/Z-Image-Turbo"}, "Z-Image-Turbo"),
    ],
)
def test_a_class_with_its_defaults_is_the_model_that_it_was_written_for(denoiser, more, expected):
    parameters = inspect.signature(diffusers_class(denoiser).__init__).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.default is not item.empty}
    assert recognise(denoiser, defaults | more) == expected


# Which model it is


@pytest.mark.parametrize(
    ("denoiser", "config", "expected"),
    [
        ("HunyuanVideo15Transformer3DModel", HUNYUAN | {"task_type": "t2v", "target_size": 960}, "HunyuanVideo-1.5"),
        ("HunyuanVideo15Transformer3DModel", HUNYUAN | {"task_type": "i2v", "target_size": 640}, "HunyuanVideo-1.5"),
        ("HunyuanVideo15Transformer3DModel", HUNYUAN | {"use_meanflow": True}, None),
        ("HunyuanVideo15Transformer3DModel", HUNYUAN | {"num_layers": 2}, None),
        ("HunyuanVideo15Transformer3DModel", {}, None),
        (WAN, T2V_1_3B | ONE_EXPERT, "Wan2.1-T2V-1.3B"),
        (WAN, T2V_1_3B, "Wan2.1-T2V-1.3B"),
        (WAN, T2V_1_3B | {"ffn_dim": 14336, "in_channels": 48}, None),
        (WAN, T2V_14B | ONE_EXPERT, "Wan2.1-T2V-14B"),
        (WAN, T2V_14B | TWO_EXPERTS, None),
        (WAN, T2V_14B, None),
        (WAN, I2V_14B | ONE_EXPERT, "Wan2.1-I2V-14B"),
        (WAN, I2V_14B | TWO_EXPERTS, None),
        (WAN, I2V_14B | ONE_EXPERT | {"image_dim": None}, None),
        (WAN, I2V_14B | ONE_EXPERT | {"pos_embed_seq_len": 514}, None),
        ("Flux2Transformer2DModel", KLEIN | {"num_single_layers": 48, "num_attention_heads": 48}, "FLUX.2"),
        ("Flux2Transformer2DModel", KLEIN | {"is_distilled": False}, "FLUX.2-klein-base-9B"),
        ("Flux2Transformer2DModel", KLEIN | {"is_distilled": True}, None),
        ("Flux2Transformer2DModel", KLEIN, None),
        ("Flux2Transformer2DModel", {"num_layers": 5, "num_single_layers": 20, "is_distilled": False}, None),
        ("CogVideoXTransformer3DModel", {"num_layers": 42}, None),
        ("WanVACETransformer3DModel", T2V_1_3B | {"vace_in_channels": 96}, None),
    ],
)
def test_without_a_known_name_the_config_decides_where_no_other_model_has_the_same(denoiser, config, expected):
    assert recognise(denoiser, config, "/models/mine") == expected


@pytest.mark.parametrize("name", ["", "mine", "./mine/", "C:\\models\\mine"])
@pytest.mark.parametrize(
    ("denoiser", "config"),
    [
        ("QwenImageTransformer2DModel", QWEN),
        ("FluxTransformer2DModel", FLUX),
        ("ErnieImageTransformer2DModel", ERNIE),
        ("ZImageTransformer2DModel", Z_IMAGE),
    ],
)
def test_a_config_that_several_models_have_decides_nothing(denoiser, config, name):
    assert recognise(denoiser, config, name) is None


NAMED = [
    ("QwenImageTransformer2DModel", QWEN, "Qwen/Qwen-Image", "Qwen-Image"),
    ("QwenImageTransformer2DModel", QWEN, "Qwen/Qwen-Image-2512", "Qwen-Image-2512"),
    ("QwenImageTransformer2DModel", QWEN, "Qwen/Qwen-Image-Edit", None),
    ("QwenImageTransformer2DModel", QWEN | {"zero_cond_t": True}, "Qwen/Qwen-Image", None),
    ("FluxTransformer2DModel", FLUX, "black-forest-labs/FLUX.1-dev", "FLUX.1-dev"),
    ("FluxTransformer2DModel", FLUX, "black-forest-labs/FLUX.1-Kontext-dev", None),
    ("FluxTransformer2DModel", FLUX | {"guidance_embeds": False}, "black-forest-labs/FLUX.1-dev", None),
    ("ErnieImageTransformer2DModel", ERNIE, "baidu/ERNIE-Image", "ERNIE-Image"),
    ("ErnieImageTransformer2DModel", ERNIE, "baidu/ERNIE-Image-Turbo", None),
    ("ZImageTransformer2DModel", Z_IMAGE, "Tongyi-MAI/Z-Image-Turbo", "Z-Image-Turbo"),
    ("ZImageTransformer2DModel", Z_IMAGE, "Tongyi-MAI/Z-Image", None),
    (WAN, T2V_14B, "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan2.1-T2V-14B"),
    (WAN, T2V_14B, "Wan-AI/Wan2.2-T2V-A14B-Diffusers", None),
    (WAN, T2V_14B | ONE_EXPERT, "Wan-AI/Wan2.2-T2V-A14B-Diffusers", None),
    (WAN, T2V_1_3B, "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan2.1-T2V-1.3B"),
    (WAN, T2V_1_3B, "FastVideo/FastWan2.1-T2V-1.3B-Diffusers", None),
    (WAN, I2V_14B, "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "Wan2.1-I2V-14B"),
    ("Flux2Transformer2DModel", KLEIN, "black-forest-labs/FLUX.2-klein-base-9B", "FLUX.2-klein-base-9B"),
    ("Flux2Transformer2DModel", KLEIN | {"is_distilled": False}, "black-forest-labs/FLUX.2-klein-9B", None),
]


@pytest.mark.parametrize(("denoiser", "config", "repository", "expected"), NAMED)
def test_a_name_decides_among_the_models_that_class_and_config_allow(denoiser, config, repository, expected):
    folder = repository.rpartition("/")[2]
    for path in (repository, f"/models/{folder.lower()}/transformer", f"D:\\models\\{folder}", f"{folder}/"):
        assert recognise(denoiser, config, path) == expected
        assert recognise(denoiser, config | {"_name_or_path": path}, "mine") == expected
    assert recognise(denoiser, config | {"_name_or_path": CACHED.format(repository.replace("/", "--"))}) == expected


def test_the_denoisers_own_name_goes_before_the_pipelines():
    turbo = Z_IMAGE | {"_name_or_path": "Tongyi-MAI/Z-Image-Turbo"}
    assert recognise("ZImageTransformer2DModel", turbo, "Tongyi-MAI/Z-Image") == "Z-Image-Turbo"
    other = T2V_14B | ONE_EXPERT | {"_name_or_path": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"}
    assert recognise(WAN, other, "Wan-AI/Wan2.1-T2V-14B-Diffusers") is None


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_another_models_denoiser_in_the_models_pipeline_is_not_the_model(model):
    for other in model.others:
        assert recognise(model.denoiser, model.config | {"_name_or_path": f"someone/{other}"}, model.names[0]) is None


def test_the_last_known_folder_of_a_path_counts():
    assert recognise("QwenImageTransformer2DModel", QWEN, "/models/Qwen-Image/Qwen-Image-Edit") is None
    assert recognise("QwenImageTransformer2DModel", QWEN, "/models/Qwen-Image-Edit/Qwen-Image/v2") == "Qwen-Image"


# The mask for a budget


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_released_budget_at_the_released_step_count_is_the_authors_mask(model):
    for budget, steps in model.masks.items():
        mask = mask_for_budget(model.name, budget, model.num_steps)
        assert mask.computed_steps == steps
        assert (mask.kept, mask.rule, mask.origin) == ("velocity", "hold", "released")
        assert mask.made_by == f"the LeMiCa authors' mask for {model.name}"


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("budget", "more_steps"), [(9, 0), (8, 7)])
def test_any_other_budget_or_step_count_is_derived_from_the_models_own_masks(model, budget, more_steps):
    num_steps = model.num_steps + more_steps
    mask = mask_for_budget(model.name, budget, num_steps)
    assert mask.steps == step_mask(budget, num_steps, model.released)
    assert mask.origin == "derived"
    assert mask.made_by == f"derived from the LeMiCa authors' masks for {model.name}"


def test_models_have_masks_of_their_own():
    masks = {name: mask_for_budget(name, 20, 50).steps for name in MODELS}
    assert len(set(masks.values())) > 8


@pytest.mark.parametrize(("budget", "num_steps"), [(20, 50), (12, 30), (2, 2)])
def test_an_unknown_models_mask_is_never_said_to_be_released(budget, num_steps):
    mask = mask_for_budget(None, budget, num_steps)
    assert mask.steps == step_mask(budget, num_steps)
    assert mask.origin == "derived"
    said = "derived from the LeMiCa authors' masks for HunyuanVideo-1.5: none are known for this model"
    assert mask.made_by == said


def test_the_mask_has_its_weights_and_can_be_written(tmp_path):
    mask = mask_for_budget("Z-Image-Turbo", 6, 10)
    assert mask.weights == ((), (), (), (1.0,), (1.0,), (), (1.0,), (1.0,), (), ())
    write_mask(mask, tmp_path / "mask.json")
    read = read_mask(tmp_path / "mask.json")
    assert read == Mask(mask_of((0, 1, 2, 5, 8, 9), 10), "velocity", mask.weights, made_by=mask.made_by)


@pytest.mark.parametrize("model", ["Wan2.1", "", "wan2.1-t2v-14b"])
def test_a_model_that_is_not_known_is_refused_with_those_that_are(model):
    with pytest.raises(ValueError, match=f"no masks for '{model}'; known are HunyuanVideo-1.5, Wan2.1") as refusal:
        mask_for_budget(model, 20, 50)
    assert "\n" not in str(refusal.value)
    assert all(name in str(refusal.value) for name in MODELS)


@pytest.mark.parametrize(("budget", "num_steps"), [(1, 50), (51, 50), (0, 50), (-3, 50), (1, 1), (2, 0)])
def test_a_budget_that_cannot_be_is_refused_in_one_line(budget, num_steps):
    with pytest.raises(ValueError) as refusal:
        mask_for_budget("FLUX.2", budget, num_steps)
    assert str(refusal.value) == f"budget must be from 2 to the number of steps, {num_steps}; got {budget}"


def test_neither_torch_nor_diffusers_is_imported():
    code = "import lemica.released, sys; sys.exit(bool({'torch', 'diffusers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
