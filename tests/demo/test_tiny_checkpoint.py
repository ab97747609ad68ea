"""The tiny checkpoint: upstream's own loaders read it, nothing in it is dead, the same seed gives the same bytes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hyvideo.commons import PIPELINE_CONFIGS, SR_PIPELINE_CONFIGS, parallel_states
from hyvideo.models.autoencoders.hunyuanvideo_15_vae import AutoencoderKLConv3D
from hyvideo.models.text_encoders import PROMPT_TEMPLATE, TextEncoder
from hyvideo.models.text_encoders.byT5 import load_glyph_byT5_v2
from hyvideo.models.transformers.hunyuanvideo_1_5_transformer import HunyuanVideo_1_5_DiffusionTransformer
from hyvideo.models.transformers.modules.upsample import SRTo720pUpsampler, SRTo1080pUpsampler
from hyvideo.models.vision_encoder import VisionEncoder
from hyvideo.schedulers.scheduling_flow_match_discrete import FlowMatchDiscreteScheduler

from demo.tiny_checkpoint import TinyConfig, build_tokenizer, main, rope_dims, transformer_config, write_checkpoint

VERSIONS = ("480p_t2v", "480p_i2v_step_distilled", "720p_sr_distilled", "1080p_sr_distilled")
LAYOUT = (
    "scheduler/scheduler_config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/llm/config.json",
    "text_encoder/llm/model.safetensors",
    "text_encoder/llm/tokenizer.json",
    "text_encoder/llm/tokenizer_config.json",
    "text_encoder/byt5-small/config.json",
    "text_encoder/byt5-small/tokenizer_config.json",
    "text_encoder/Glyph-SDXL-v2/assets/color_idx.json",
    "text_encoder/Glyph-SDXL-v2/assets/multilingual_10-lang_idx.json",
    "text_encoder/Glyph-SDXL-v2/checkpoints/byt5_model.pt",
    "vision_encoder/siglip/image_encoder/model.safetensors",
    "vision_encoder/siglip/feature_extractor/preprocessor_config.json",
    *(f"transformer/{version}/config.json" for version in VERSIONS),
    *(f"upsampler/{version}/config.json" for version in VERSIONS if "sr" in version),
)


class CpuParallelDims(parallel_states.ParallelDims):
    """Upstream's process mesh on gloo; upstream asks for CUDA whatever the machine."""

    def build_mesh(self, device_type: str):
        return super().build_mesh("cpu")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), VERSIONS)


@pytest.fixture(scope="session")
def text_encoder(checkpoint: Path) -> TextEncoder:
    return TextEncoder(
        text_encoder_type="llm",
        tokenizer_type="llm",
        text_encoder_path=str(checkpoint / "text_encoder" / "llm"),
        max_length=1000,
        text_encoder_precision="fp32",
        prompt_template=dict(PROMPT_TEMPLATE["li-dit-encode-image-json"]),
        prompt_template_video=dict(PROMPT_TEMPLATE["li-dit-encode-video-json"]),
        hidden_state_skip_layer=2,
        device="cpu",
    )


@pytest.fixture(scope="session")
def glyph(checkpoint: Path) -> dict:
    folder = checkpoint / "text_encoder"
    assets = folder / "Glyph-SDXL-v2" / "assets"
    arguments = {
        "byT5_google_path": str(folder / "byt5-small"),
        "byT5_ckpt_path": str(folder / "Glyph-SDXL-v2" / "checkpoints" / "byt5_model.pt"),
        "multilingual_prompt_format_color_path": str(assets / "color_idx.json"),
        "multilingual_prompt_format_font_path": str(assets / "multilingual_10-lang_idx.json"),
        "byt5_max_length": 256,
    }
    return load_glyph_byT5_v2(arguments, device="cpu")


@pytest.fixture(scope="session")
def vision_encoder(checkpoint: Path) -> VisionEncoder:
    return VisionEncoder("siglip", "fp32", str(checkpoint / "vision_encoder" / "siglip"), device="cpu")


@pytest.fixture(scope="session")
def vae(checkpoint: Path) -> AutoencoderKLConv3D:
    return AutoencoderKLConv3D.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)


@pytest.fixture(scope="session")
def single_process(tmp_path_factory: pytest.TempPathFactory):
    """A process group of one and upstream's parallel state on it, both undone at the end."""
    mine = not torch.distributed.is_initialized()
    if mine:
        store = tmp_path_factory.mktemp("store") / "store"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_states, "__parallel_dims", CpuParallelDims(world_size=1))
        yield
    if mine:
        torch.distributed.destroy_process_group()


def encode(encoder: TextEncoder, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt states (1, 64, width) float32 and mask (1, 64) as the kit's pipeline asks for them."""
    tokens = encoder.text2tokens(prompt, data_type="video", max_length=encoder.tokenizer.model_max_length)
    output = encoder.encode(tokens, data_type="video", device="cpu")
    return output.hidden_state, output.attention_mask


def load_transformer(checkpoint: Path, version: str) -> HunyuanVideo_1_5_DiffusionTransformer:
    folder = checkpoint / "transformer" / version
    return HunyuanVideo_1_5_DiffusionTransformer.from_pretrained(
        folder, low_cpu_mem_usage=True, torch_dtype=torch.float32
    )


class Probe:
    """One transformer and one set of inputs; `run` replaces some of them and returns the velocity (1, 32, 2, 5, 6)."""

    def __init__(self, checkpoint: Path, version: str, encoder: TextEncoder) -> None:
        self.model = load_transformer(checkpoint, version)
        self.encoder = encoder
        generator = torch.Generator().manual_seed(1)
        self.latents = torch.randn(1, 32, 2, 5, 6, generator=generator)
        self.condition = torch.zeros(1, self.model.img_in.proj.in_channels - 32, 2, 5, 6)
        self.vision = torch.zeros(1, 16, 32)
        self.glyph = torch.zeros(1, 256, 1472), torch.zeros(1, 256, dtype=torch.int64)

    @torch.no_grad()
    def run(self, prompt="a red circle moves left", time=800.0, latents=None, condition=None, vision=None, glyph=None):
        states, mask = encode(self.encoder, prompt)
        glyph_states, glyph_mask = self.glyph if glyph is None else glyph
        condition = self.condition if condition is None else condition
        return self.model(
            torch.cat([self.latents if latents is None else latents, condition], dim=1),
            torch.tensor([time]),
            states,
            None,
            mask,
            timestep_r=torch.tensor([time - 20.0]) if self.model.config.use_meanflow else None,
            vision_states=self.vision if vision is None else vision,
            mask_type="t2v" if vision is None else "i2v",
            extra_kwargs={"byt5_text_states": glyph_states, "byt5_text_mask": glyph_mask},
        )[0]


def relative_change(changed: torch.Tensor, base: torch.Tensor) -> float:
    return ((changed - base).std() / base.std()).item()


def dead_parameters(module: torch.nn.Module) -> list[str]:
    """Names of parameters that are not finite or hold one value only."""
    return [n for n, p in module.named_parameters() if not p.isfinite().all() or p.numel() < 2 or p.float().std() == 0]


def digests(root: Path) -> dict[str, str]:
    files = (f for f in sorted(root.rglob("*")) if f.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_layout_is_complete(checkpoint: Path) -> None:
    assert [name for name in LAYOUT if not (checkpoint / name).is_file()] == []


def test_prompt_tokens(text_encoder: TextEncoder) -> None:
    tokenizer = text_encoder.tokenizer
    tokens = text_encoder.text2tokens("A red circle moves left over sand.", data_type="video", max_length=64)
    start = text_encoder.prompt_template_video["crop_start"]
    assert 0 < start < 200 and 0 < text_encoder.prompt_template["crop_start"] < 200
    assert tokens["input_ids"].shape == (1, start + 64)
    kept = tokens["input_ids"][0, start:][tokens["attention_mask"][0, start:].bool()]
    words = "a red circle moves left over sand . <|im_end|> <|im_start|> assistant"
    assert tokenizer.convert_ids_to_tokens(kept) == words.split()


def test_any_prompt_tokenises(text_encoder: TextEncoder) -> None:
    tokenizer = text_encoder.tokenizer
    assert tokenizer.unk_token_id not in tokenizer('Quick? "brown" fox_42 {jumps}~')["input_ids"]
    assert tokenizer("\u96ea")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer.model_max_length == 64
    states, mask = encode(text_encoder, "word " * 500)
    assert states.shape == (1, 64, 64) and mask.sum() == 64 and states.isfinite().all()


def test_tokenizer_takes_other_words() -> None:
    assert build_tokenizer(["zebra"], max_length=10).tokenize("Zebra") == ["zebra"]


def test_empty_prompt_differs(text_encoder: TextEncoder) -> None:
    empty, red = encode(text_encoder, "")[0], encode(text_encoder, "a red circle")[0]
    assert empty.isfinite().all() and relative_change(red, empty) > 0.1


def test_glyph_encoder(glyph: dict) -> None:
    tokens = glyph["byt5_tokenizer"](
        'Text "hello" in <color-1>, <en-font-0>. ', padding="max_length", max_length=256, return_tensors="pt"
    )
    states = glyph["byt5_model"](tokens.input_ids, attention_mask=tokens.attention_mask.float())[0]
    assert states.shape == (1, 256, 1472) and states.isfinite().all()
    assert dead_parameters(glyph["byt5_model"]) == []


def test_vision_encoder(vision_encoder: VisionEncoder) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    states = vision_encoder.encode_images(image).last_hidden_state
    other = vision_encoder.encode_images(255 - image).last_hidden_state
    assert states.shape == (1, 16, 32) and relative_change(other, states) > 0.05
    assert dead_parameters(vision_encoder.model) == []


def test_text_model_is_alive(text_encoder: TextEncoder) -> None:
    assert dead_parameters(text_encoder.model) == []


@torch.no_grad()
def test_vae(vae: AutoencoderKLConv3D) -> None:
    vae.set_tile_sample_min_size(vae.sample_size, vae.tile_overlap_factor)
    latents = torch.randn(1, 32, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    pixels = vae.decode(latents).sample
    assert pixels.shape == (1, 3, 5, 64, 80)
    assert 0.2 < pixels.std() < 1.0
    assert relative_change(vae.decode(latents * 1.1).sample, pixels) > 0.01
    assert vae.encode(pixels).latent_dist.mode().shape == latents.shape
    assert dead_parameters(vae) == []


def test_scheduler(checkpoint: Path) -> None:
    scheduler = FlowMatchDiscreteScheduler.from_pretrained(checkpoint / "scheduler")
    scheduler.set_timesteps(50)
    assert scheduler.config.shift == PIPELINE_CONFIGS[VERSIONS[0]]["flow_shift"]
    assert scheduler.timesteps[0] == 1000.0 and len(scheduler.timesteps) == 50


@torch.no_grad()
@pytest.mark.parametrize("version", [v for v in VERSIONS if v in SR_PIPELINE_CONFIGS])
def test_upsampler(checkpoint: Path, version: str) -> None:
    kind = SRTo720pUpsampler if "720p" in version else SRTo1080pUpsampler
    model = kind.from_pretrained(checkpoint / "upsampler" / version)
    latents = torch.randn(1, 32, 2, 4, 5)
    assert model(latents).shape == latents.shape
    assert dead_parameters(model) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_transformer_listens(
    checkpoint: Path, version: str, text_encoder: TextEncoder, glyph: dict, single_process: None
) -> None:
    probe = Probe(checkpoint, version, text_encoder)
    assert dead_parameters(probe.model) == []
    base = probe.run()
    assert base.shape == (1, 32, 2, 5, 6) and base.isfinite().all() and 0.3 < base.std() < 3.0
    image = torch.randn(probe.condition.shape, generator=torch.Generator().manual_seed(2))
    changes = {
        "prompt": probe.run(prompt="a blue square moves left"),
        "empty prompt": probe.run(prompt=""),
        "time": probe.run(time=600.0),
        "latents": probe.run(latents=probe.latents.flip(3)),
        "image latents": probe.run(condition=image),
        "image tokens": probe.run(vision=torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3))),
        "glyphs": probe.run(glyph=(torch.randn(1, 256, 1472), torch.ones(1, 256, dtype=torch.int64))),
    }
    small = {what: change for what, out in changes.items() if not (change := relative_change(out, base)) > 0.02}
    assert small == {}
    # Close steps must look alike, or caching would have nothing to reuse.
    assert relative_change(probe.run(time=790.0), base) < 0.2


def test_transformer_switches(checkpoint: Path) -> None:
    mean_flow = load_transformer(checkpoint, "480p_i2v_step_distilled").config
    assert mean_flow.use_meanflow and mean_flow.ideal_task == "i2v" and mean_flow.ideal_resolution == "480p"
    assert load_transformer(checkpoint, "480p_t2v").img_in.proj.in_channels == 65
    assert load_transformer(checkpoint, "720p_sr_distilled").img_in.proj.in_channels == 98
    assert load_transformer(checkpoint, "1080p_sr_distilled").config.ideal_task is None


@pytest.mark.parametrize("version", [*PIPELINE_CONFIGS, *SR_PIPELINE_CONFIGS])
def test_every_version_has_a_configuration(version: str) -> None:
    config = transformer_config(version, TinyConfig(hidden=32, heads=2, blocks=1, glyph=False))
    with torch.device("meta"):
        HunyuanVideo_1_5_DiffusionTransformer(**config)


@pytest.mark.parametrize("head_dim", range(6, 130, 2))
def test_rope_dims(head_dim: int) -> None:
    dims = rope_dims(head_dim)
    assert sum(dims) == head_dim and all(d > 0 and d % 2 == 0 for d in dims)


def test_same_seed_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    again = digests(write_checkpoint(tmp_path / "again", VERSIONS))
    assert again == digests(checkpoint)


def test_another_seed_other_weights(tmp_path: Path) -> None:
    small = TinyConfig(hidden=32, heads=2, blocks=1, glyph=False)
    first = digests(write_checkpoint(tmp_path / "a", ["480p_t2v"], small, seed=1))
    second = digests(write_checkpoint(tmp_path / "b", ["480p_t2v"], small, seed=2))
    weights = [name for name in first if name.endswith((".safetensors", ".pt"))]
    assert [name for name in weights if first[name] == second[name]] == []


def test_command_line_refuses(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for arguments in (["--versions", "480p_x2v"], ["--hidden", "30", "--heads", "4"]):
        with pytest.raises(SystemExit) as stop:
            main([str(tmp_path / "out"), *arguments])
        assert stop.value.code == 2
    assert "480p_x2v" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
