"""Write a tiny HunyuanVideo-1.5 checkpoint with seeded random weights, in upstream's layout.

Everything is made here: no network, no GPU. Upstream's own loaders read the result, so that the pipeline, the caching
and the command line can be run and tested on a laptop. Only upstream's `hyvideo` package has to be importable:

    python -m demo.tiny_checkpoint OUTPUT --versions 480p_t2v 480p_i2v
"""

import argparse
import copy
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hyvideo.commons import PIPELINE_CONFIGS, SR_PIPELINE_CONFIGS
from hyvideo.models.autoencoders.hunyuanvideo_15_vae import AutoencoderKLConv3D
from hyvideo.models.text_encoders import PROMPT_TEMPLATE
from hyvideo.models.text_encoders.byT5 import add_special_token
from hyvideo.models.transformers.hunyuanvideo_1_5_transformer import HunyuanVideo_1_5_DiffusionTransformer
from hyvideo.models.transformers.modules.embed_layers import TimestepEmbedder
from hyvideo.models.transformers.modules.upsample import SRTo720pUpsampler, SRTo1080pUpsampler
from hyvideo.schedulers.scheduling_flow_match_discrete import FlowMatchDiscreteScheduler
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from torch import nn
from transformers import (
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)

from demo.data import prompt_words

LATENT_CHANNELS = 32
# Width of byT5-small, which upstream's mapper and pipeline take for granted.
BYT5_WIDTH = 1472
# The kit takes min(1000, model_max_length) prompt tokens: few, so that text does not dominate a tiny model's cost.
PROMPT_TOKENS = 64
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of a tiny checkpoint. Widths are in channels; `vae_channels` runs from full to the latents' resolution.

    `ideal_resolution` is what the models are said to be made for, and so the size of the videos: the kit knows 64p, 96p
    and 144p beside upstream's; None keeps the version's own. Super-resolution models always keep their own.
    """

    hidden: int = 64
    heads: int = 4
    blocks: int = 4
    mlp_ratio: float = 2.0
    glyph: bool = True
    text_width: int = 64
    text_layers: int = 3
    prompt_tokens: int = PROMPT_TOKENS
    vision_width: int = 32
    vision_image: int = 32
    vision_patch: int = 8
    vae_channels: tuple[int, ...] = (4, 8, 16, 32, 64)
    vae_layers: int = 0
    vae_scaling: float = 1.03682
    ideal_resolution: str | None = None

    def __post_init__(self) -> None:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2 or self.hidden // self.heads < 6:
            raise ValueError(f"hidden {self.hidden} / heads {self.heads} must be an even number of at least 6")


# ---- weights


def _noise_for(name: str, shape: torch.Size, embedding: bool, generator: torch.Generator) -> torch.Tensor:
    """Random float32 values for one parameter, scaled so that activations stay near unit size."""
    noise = torch.randn(shape, generator=generator)
    if embedding:
        return noise
    if name.endswith("gamma") or (name.endswith("weight") and len(shape) == 1):
        return 1.0 + 0.1 * noise
    if len(shape) == 1:
        return 0.05 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Refill every parameter of `module` with seeded noise, in place: upstream starts gates and outputs at zero."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in module.named_parameters():
        parameter.copy_(_noise_for(name, parameter.shape, id(parameter) in embeddings, generator))
    return module.eval().requires_grad_(False)


@torch.no_grad()
def _calm_time(model: nn.Module) -> None:
    """Weaken the fast timestep features, in place.

    A trained model changes little from one step to the next. With random weights on frequencies of up to one radian
    per unit of time (of 1000) every step would look like another model, and caching would have nothing to reuse.
    """
    for embedder in (m for m in model.modules() if isinstance(m, TimestepEmbedder)):
        half = embedder.frequency_embedding_size // 2
        frequency = torch.exp(-math.log(embedder.max_period) * torch.arange(half) / half)
        gain = (0.003 / frequency).clamp(max=1.0)
        embedder.mlp[0].weight.mul_(torch.cat([gain, gain]))


@torch.no_grad()
def _strengthen_blocks(model: HunyuanVideo_1_5_DiffusionTransformer) -> None:
    """Let blocks change the image tokens by about their own size, and let the few text tokens be heard, in place."""
    for block in model.double_blocks:
        for modulation in (block.img_mod, block.txt_mod):
            modulation.linear.weight.mul_(3.0)
        # Attention weight is shared out over thousands of image tokens; larger keys win back a share for the prompt.
        block.txt_attn_k_norm.weight.mul_(3.0)


def generator_for(seed: int, part: str) -> torch.Generator:
    """A CPU generator that depends on the seed and on the part's name only, so that parts do not shift each other."""
    return torch.Generator().manual_seed(seed * 1_000_003 + sum(ord(c) * 31**i for i, c in enumerate(part)) % 2**31)


# ---- text


def _template_texts() -> list[str]:
    """The instruction texts that upstream puts before every prompt."""
    return [turn["content"] for entry in PROMPT_TEMPLATE.values() for turn in entry["template"]]


def _vocabulary(words: Iterable[str]) -> dict[str, int]:
    """Token -> id: special tokens, then whole words, then printable ASCII as first and as following pieces."""
    characters = [chr(c) for c in range(33, 127)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
    pieces = [*special, *sorted(set(words)), *characters, *("##" + c for c in characters)]
    return {token: index for index, token in enumerate(dict.fromkeys(pieces))}


def build_tokenizer(words: Sequence[str] | None = None, max_length: int = PROMPT_TOKENS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template; words that it does not know fall apart into letters.

    Args:
        words: lower-case words that get a token each beside those of upstream's instructions; default: the demo's.
        max_length: `model_max_length`, in tokens.
    """
    splitter = pre_tokenizers.BertPreTokenizer()
    known = list(ROLES) + list(prompt_words() if words is None else words)
    for text in _template_texts():
        known += [piece for piece, _ in splitter.pre_tokenize_str(text.lower())]
    tokenizer = Tokenizer(WordPiece(_vocabulary(known), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=max_length,
        padding_side="right",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_text_encoder(folder: Path, config: TinyConfig, seed: int) -> None:
    """`text_encoder/llm`: a Qwen2 model of `config.text_layers` layers and the word-level tokenizer."""
    tokenizer = build_tokenizer(max_length=config.prompt_tokens)
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=2 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.pad_token_id,
        )
    )
    randomise(model, generator_for(seed, "llm")).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---- glyphs


def _write_glyph_assets(folder: Path) -> tuple[Path, Path]:
    """Colour and font tables of the glyph encoder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    colours, fonts = folder / "color_idx.json", folder / "multilingual_10-lang_idx.json"
    colours.write_text(json.dumps({name: i for i, name in enumerate(("white", "black", "red", "blue"))}))
    fonts.write_text(json.dumps({name: i for i, name in enumerate(("en-Plain", "en-Bold", "cn-Plain"))}))
    return colours, fonts


def write_glyph_encoder(folder: Path, seed: int) -> None:
    """`text_encoder/byt5-small` and `text_encoder/Glyph-SDXL-v2` under `folder`."""
    tokenizer = ByT5Tokenizer()
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=BYT5_WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_decoder_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=True,
            decoder_start_token_id=0,
        )
    )
    randomise(model, generator_for(seed, "byt5"))
    copy.deepcopy(model).half().save_pretrained(folder / "byt5-small")
    tokenizer.save_pretrained(folder / "byt5-small")

    glyph = folder / "Glyph-SDXL-v2"
    colours, fonts = _write_glyph_assets(glyph / "assets")
    encoder = model.get_encoder()
    # The shipped weights hold the rows of the colour and font tokens, so the table must have grown before saving.
    add_special_token(tokenizer, encoder, True, True, str(colours), str(fonts), multilingual=True)
    randomise(encoder, generator_for(seed, "glyph"))
    (glyph / "checkpoints").mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().clone() for name, value in encoder.state_dict().items()}
    torch.save(weights, glyph / "checkpoints" / "byt5_model.pt")


# ---- vision


def write_vision_encoder(folder: Path, config: TinyConfig, seed: int) -> None:
    """`vision_encoder/siglip`: (image / patch)^2 tokens of `config.vision_width` channels."""
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.vision_width,
            intermediate_size=2 * config.vision_width,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=config.vision_image,
            patch_size=config.vision_patch,
        )
    )
    randomise(model, generator_for(seed, "siglip")).half().save_pretrained(folder / "image_encoder")
    size = {"height": config.vision_image, "width": config.vision_image}
    SiglipImageProcessor(size=size, resample=3).save_pretrained(folder / "feature_extractor")


# ---- video autoencoder, scheduler


def build_vae(config: TinyConfig) -> AutoencoderKLConv3D:
    """Upstream's autoencoder, 4x in time and 2x in space per step of width, with freshly initialised weights."""
    return AutoencoderKLConv3D(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=config.vae_channels,
        layers_per_block=config.vae_layers,
        ffactor_spatial=2 ** (len(config.vae_channels) - 1),
        ffactor_temporal=4,
        sample_size=256,
        sample_tsize=64,
        scaling_factor=config.vae_scaling,
    )


def write_vae(folder: Path, config: TinyConfig, seed: int) -> None:
    """`vae`: random weights whose decoded pixels spread over [-1, 1]."""
    vae = randomise(build_vae(config), generator_for(seed, "vae"))
    with torch.no_grad():
        vae.decoder.conv_out.conv.weight.mul_(0.7)
    vae.half().save_pretrained(folder)


def write_scheduler(folder: Path, shift: float) -> None:
    """`scheduler`: upstream's flow-matching Euler scheduler."""
    FlowMatchDiscreteScheduler(shift=shift, reverse=True, solver="euler").save_pretrained(folder)


# ---- transformer


def rope_dims(head_dim: int) -> list[int]:
    """Even rotary widths for (time, height, width) that sum to `head_dim`, near upstream's 16 : 56 : 56."""
    side = max(2, head_dim * 7 // 32 * 2)
    while head_dim - 2 * side < 2:
        side -= 2
    return [head_dim - 2 * side, side, side]


def _task_of(version: str) -> str | None:
    """`ideal_task` of a version name; the super-resolution models take both."""
    return next((part for part in version.split("_") if part in ("t2v", "i2v")), None)


def transformer_config(version: str, config: TinyConfig) -> dict:
    """Constructor keywords of upstream's transformer for one version name, with the released models' switches."""
    super_resolution = version in SR_PIPELINE_CONFIGS
    own_resolution = version.split("_")[0]
    return {
        "patch_size": [1, 1, 1],
        # Latents, image condition and its mask, low-resolution condition and its mask, joined by the SR pipeline.
        "in_channels": 3 * LATENT_CHANNELS + 2 if super_resolution else LATENT_CHANNELS,
        "concat_condition": not super_resolution,
        "out_channels": LATENT_CHANNELS,
        "hidden_size": config.hidden,
        "heads_num": config.heads,
        "mlp_width_ratio": config.mlp_ratio,
        "mm_double_blocks_depth": config.blocks,
        "mm_single_blocks_depth": 0,
        "rope_dim_list": rope_dims(config.hidden // config.heads),
        "guidance_embed": False,
        "use_meanflow": "step_distilled" in version,
        "text_projection": "single_refiner",
        "text_states_dim": config.text_width,
        "text_pool_type": None,
        "attn_mode": "torch",
        "glyph_byT5_v2": config.glyph,
        "vision_projection": "linear",
        "vision_states_dim": config.vision_width,
        "is_reshape_temporal_channels": False,
        # Upstream ties the type embedding to the glyph path.
        "use_cond_type_embedding": config.glyph,
        "ideal_resolution": own_resolution if super_resolution else config.ideal_resolution or own_resolution,
        "ideal_task": _task_of(version),
    }


def write_transformer(folder: Path, version: str, config: TinyConfig, seed: int) -> None:
    """`transformer/<version>`: random weights, every layer alive."""
    model = HunyuanVideo_1_5_DiffusionTransformer(**transformer_config(version, config))
    randomise(model, generator_for(seed, version))
    _calm_time(model)
    _strengthen_blocks(model)
    model.half().save_pretrained(folder)


def write_upsampler(folder: Path, version: str, seed: int) -> None:
    """`upsampler/<SR version>`: latents to latents at the higher resolution, 32 channels in and out."""
    if "720p" in version:
        model: nn.Module = SRTo720pUpsampler(
            LATENT_CHANNELS, LATENT_CHANNELS, hidden_channels=LATENT_CHANNELS, num_blocks=1, global_residual=True
        )
    else:
        model = SRTo1080pUpsampler(LATENT_CHANNELS, LATENT_CHANNELS, block_out_channels=(32, 32), num_res_blocks=1)
    # Upstream loads the upsampler without naming a dtype and feeds it float32.
    randomise(model, generator_for(seed, "upsampler " + version)).save_pretrained(folder)


# ---- layout


def check_versions(versions: Iterable[str]) -> None:
    """Raise ValueError for a version name that upstream does not have."""
    known = [*PIPELINE_CONFIGS, *SR_PIPELINE_CONFIGS]
    for version in versions:
        if version not in known:
            raise ValueError(f"unknown version {version!r}; choose from {', '.join(known)}")


def write_frozen_parts(output: Path, config: TinyConfig, seed: int, shift: float = 5.0) -> None:
    """Everything but transformers and VAE: scheduler, text, glyph and vision encoders."""
    write_scheduler(output / "scheduler", shift)
    write_text_encoder(output / "text_encoder" / "llm", config, seed)
    write_glyph_encoder(output / "text_encoder", seed)
    write_vision_encoder(output / "vision_encoder" / "siglip", config, seed)


def write_checkpoint(
    output: Path,
    versions: Sequence[str] = ("480p_t2v", "480p_i2v"),
    config: TinyConfig | None = None,
    seed: int = 0,
) -> Path:
    """Write a whole checkpoint into the folder `output` and return it.

    Args:
        output: folder, made if missing; files of the same names are replaced.
        versions: names out of upstream's PIPELINE_CONFIGS and SR_PIPELINE_CONFIGS.
        config: sizes; default `TinyConfig()`.
        seed: the same seed gives the same weights, byte for byte.

    Raises:
        ValueError: a version that upstream does not have.
    """
    check_versions(versions)
    config = config or TinyConfig()
    shift = {**PIPELINE_CONFIGS, **SR_PIPELINE_CONFIGS}[versions[0]]["flow_shift"]
    write_frozen_parts(output, config, seed, shift)
    write_vae(output / "vae", config, seed)
    for version in versions:
        write_transformer(output / "transformer" / version, version, config, seed)
        if version in SR_PIPELINE_CONFIGS:
            write_upsampler(output / "upsampler" / version, version, seed)
    return output


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    default = TinyConfig()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder of the checkpoint")
    parser.add_argument("--versions", nargs="+", default=["480p_t2v", "480p_i2v"], help="transformer versions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=default.hidden, help="transformer width")
    parser.add_argument("--heads", type=int, default=default.heads)
    parser.add_argument("--blocks", type=int, default=default.blocks, help="double-stream blocks")
    parser.add_argument("--mlp-ratio", type=float, default=default.mlp_ratio)
    parser.add_argument("--no-glyph", action="store_true", help="transformers without the byT5 path")
    parser.add_argument(
        "--ideal-resolution", choices=["64p", "96p", "144p", "360p", "480p", "720p"], help="size of the videos"
    )
    options = parser.parse_args(arguments)
    try:
        check_versions(options.versions)
        options.config = TinyConfig(
            options.hidden,
            options.heads,
            options.blocks,
            options.mlp_ratio,
            glyph=not options.no_glyph,
            ideal_resolution=options.ideal_resolution,
        )
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the checkpoint that the command line asks for."""
    options = parse_arguments(arguments)
    write_checkpoint(options.output, options.versions, options.config, options.seed)
    size = sum(f.stat().st_size for f in options.output.rglob("*") if f.is_file())
    print(f"{options.output}: {', '.join(options.versions)}; {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
