"""The demo checkpoint in diffusers' own classes: the kit's weights in a whole HunyuanVideo15Pipeline.

    from demo.diffusers_model import demo_pipeline
    pipe = demo_pipeline("assets/demo_checkpoint", "t2v")
    video = pipe("a red circle moves left over sand", height=64, width=64, num_frames=9).frames[0]

It takes a prompt or embeddings, and gives frames or, with `output_type="latent"`, latents. A seed of a CPU generator is
the same noise as in the kit, and the video the same to rounding. Needs a diffusers with HunyuanVideo-1.5, newer than
the kit's pin: made with 0.42.1 and transformers 5.24.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from hyvideo.commons import PIPELINE_CONFIGS
from hyvideo.pipelines.hunyuan_video_pipeline import BUCKET_BASE_SIZES
from hyvideo.utils.data_utils import generate_crop_size_list, get_closest_ratio
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2Model,
    SiglipImageProcessor,
    SiglipVisionModel,
    T5EncoderModel,
)

# Sides of the kit's videos are multiples of so many pixels, whatever the autoencoder.
BUCKET_STRIDE = 16

# Parts of weights' names: upstream's, diffusers'. Applied in this order, as some contain others.
Renames = Sequence[tuple[str, str]]
TRANSFORMER_NAMES: Renames = (
    ("img_in.", "x_embedder."),
    ("time_in.mlp.0.", "time_embed.timestep_embedder.linear_1."),
    ("time_in.mlp.2.", "time_embed.timestep_embedder.linear_2."),
    ("vision_in.proj.0.", "image_embedder.norm_in."),
    ("vision_in.proj.1.", "image_embedder.linear_1."),
    ("vision_in.proj.3.", "image_embedder.linear_2."),
    ("vision_in.proj.4.", "image_embedder.norm_out."),
    ("final_layer.adaLN_modulation.1.", "norm_out.linear."),
    ("final_layer.linear.", "proj_out."),
    # The text refiner.
    ("txt_in.input_embedder.", "context_embedder.proj_in."),
    ("txt_in.t_embedder.mlp.0.", "context_embedder.time_text_embed.timestep_embedder.linear_1."),
    ("txt_in.t_embedder.mlp.2.", "context_embedder.time_text_embed.timestep_embedder.linear_2."),
    ("txt_in.c_embedder.", "context_embedder.time_text_embed.text_embedder."),
    ("txt_in.individual_token_refiner.blocks.", "context_embedder.token_refiner.refiner_blocks."),
    (".self_attn_proj.", ".attn.to_out.0."),
    (".mlp.fc1.", ".ff.net.0.proj."),
    (".mlp.fc2.", ".ff.net.2."),
    (".adaLN_modulation.1.", ".norm_out.linear."),
    # The blocks.
    ("double_blocks.", "transformer_blocks."),
    (".img_mod.", ".norm1."),
    (".img_attn_q_norm.", ".attn.norm_q."),
    (".img_attn_k_norm.", ".attn.norm_k."),
    (".img_attn_q.", ".attn.to_q."),
    (".img_attn_k.", ".attn.to_k."),
    (".img_attn_v.", ".attn.to_v."),
    (".img_attn_proj.", ".attn.to_out.0."),
    (".img_mlp.fc1.", ".ff.net.0.proj."),
    (".img_mlp.fc2.", ".ff.net.2."),
    (".txt_mod.", ".norm1_context."),
    (".txt_attn_q_norm.", ".attn.norm_added_q."),
    (".txt_attn_k_norm.", ".attn.norm_added_k."),
    (".txt_attn_q.", ".attn.add_q_proj."),
    (".txt_attn_k.", ".attn.add_k_proj."),
    (".txt_attn_v.", ".attn.add_v_proj."),
    (".txt_attn_proj.", ".attn.to_add_out."),
    (".txt_mlp.fc1.", ".ff_context.net.0.proj."),
    (".txt_mlp.fc2.", ".ff_context.net.2."),
)
VAE_NAMES: Renames = (
    (".mid.attn_1.norm.", ".mid_block.attentions.0.norm."),
    (".mid.attn_1.proj_out.", ".mid_block.attentions.0.proj_out."),
    (".mid.attn_1.", ".mid_block.attentions.0.to_"),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".nin_shortcut.", ".conv_shortcut."),
    ("encoder.down.", "encoder.down_blocks."),
    ("decoder.up.", "decoder.up_blocks."),
    (".block.", ".resnets."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
)
# One matrix of upstream's, three of diffusers'.
JOINED, SEPARATE = ".self_attn_qkv.", (".attn.to_q.", ".attn.to_k.", ".attn.to_v.")
# Modulates the final layer: upstream's rows are shift, scale, and diffusers' scale, shift.
SWAPPED = "norm_out.linear."
# What diffusers' class always has, and the demo model not: glyph path and type embedding. As zeros they add nothing.
ABSENT = ("context_embedder_2.", "cond_type_embed.")


def convert_transformer(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> HunyuanVideo15Transformer3DModel:
    """Upstream's transformer in diffusers' class, float32, ready to run.

    Args:
        weights: of upstream's `HunyuanVideo_1_5_DiffusionTransformer` by its names, in any dtype.
        config: the constructor's keywords, as upstream's config.json holds them. Neither glyph path nor type embedding
            is supported: models with these are on the Hub in diffusers' format.

    Raises RuntimeError if weights are missing, left over or of another shape.

    Example: ``convert_transformer(load_file(folder / "diffusion_pytorch_model.safetensors"), config)``
    """
    model = HunyuanVideo15Transformer3DModel(**_transformer_keywords(config))
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if name.startswith(ABSENT)}
    return _filled(model, zeros | _converted(weights))


def convert_vae(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> AutoencoderKLHunyuanVideo15:
    """Upstream's video autoencoder in diffusers' class, float32; arguments and errors as for `convert_transformer`."""
    same = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block")
    model = AutoencoderKLHunyuanVideo15(
        **{name: config[name] for name in (*same, "scaling_factor")},
        spatial_compression_ratio=config["ffactor_spatial"],
        temporal_compression_ratio=config["ffactor_temporal"],
    )
    return _filled(model, {_renamed(name, VAE_NAMES): value for name, value in weights.items()})


def demo_pipeline(folder: str | Path, task: str = "t2v") -> DiffusionPipeline:
    """diffusers' pipeline with the demo checkpoint's models, its guidance scale and its shift, in float32 on the CPU.

    Args:
        folder: the demo checkpoint, or another in upstream's layout without glyph path and type embedding.
        task: "t2v" gives a `HunyuanVideo15Pipeline`, "i2v" a `HunyuanVideo15ImageToVideoPipeline`.

    Raises KeyError for another task, OSError if the folder lacks a part.

    Example: ``demo_pipeline("assets/demo_checkpoint", "i2v")(image, prompt, num_frames=9).frames[0]``
    """
    folder, settings = Path(folder), PIPELINE_CONFIGS[f"480p_{task}"]
    transformer = convert_transformer(*_read(folder / "transformer" / f"480p_{task}"))
    modules = dict(
        transformer=transformer,
        vae=convert_vae(*_read(folder / "vae")),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=settings["flow_shift"]),
        guider=ClassifierFreeGuidance(guidance_scale=settings["guidance_scale"]),
        **_text_modules(folder / "text_encoder"),
    )
    vision = _vision_modules(folder / "vision_encoder" / "siglip")
    if task == "t2v":
        pipe = HunyuanVideo15Pipeline(**modules)
    else:
        pipe = HunyuanVideo15ImageToVideoPipeline(**modules, **vision)
    return _fitted(pipe, vision["image_encoder"].config)


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and config of a model's folder."""
    return load_file(folder / "diffusion_pytorch_model.safetensors"), json.loads((folder / "config.json").read_text())


def _transformer_keywords(config: Mapping[str, Any]) -> dict[str, Any]:
    depth, side, _ = config["patch_size"]
    return dict(
        # Noisy latents, condition, and the condition's mask.
        in_channels=2 * config["in_channels"] + 1,
        out_channels=config["out_channels"],
        num_attention_heads=config["heads_num"],
        attention_head_dim=config["hidden_size"] // config["heads_num"],
        num_layers=config["mm_double_blocks_depth"],
        mlp_ratio=config["mlp_width_ratio"],
        patch_size=side,
        patch_size_t=depth,
        text_embed_dim=config["text_states_dim"],
        image_embed_dim=config["vision_states_dim"],
        rope_theta=config["rope_theta"],
        rope_axes_dim=tuple(config["rope_dim_list"]),
        target_size=BUCKET_BASE_SIZES[config["ideal_resolution"]],
        task_type=config["ideal_task"],
        use_meanflow=config["use_meanflow"],
    )


def _renamed(name: str, renames: Renames) -> str:
    for old, new in renames:
        name = name.replace(old, new)
    return name


def _converted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's weights by diffusers' names."""
    converted = {}
    for name, value in weights.items():
        new = _renamed(name, TRANSFORMER_NAMES)
        if JOINED in new:
            converted |= {new.replace(JOINED, part): rows for part, rows in zip(SEPARATE, value.chunk(3), strict=True)}
        elif new.startswith(SWAPPED):
            shift, scale = value.chunk(2)
            converted[new] = torch.cat([scale, shift])
        else:
            converted[new] = value
    return converted


def _filled(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> torch.nn.Module:
    model.load_state_dict(weights)
    return model.float().eval().requires_grad_(False)


def _text_modules(folder: Path) -> dict[str, Any]:
    return dict(
        text_encoder=Qwen2Model.from_pretrained(folder / "llm", dtype=torch.float32),
        # By its class: transformers 5 otherwise makes one of Qwen2's of it, which spells every word.
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "llm"),
        text_encoder_2=T5EncoderModel.from_pretrained(folder / "byt5-small", dtype=torch.float32),
        tokenizer_2=ByT5Tokenizer.from_pretrained(folder / "byt5-small"),
    )


def _vision_modules(folder: Path) -> dict[str, Any]:
    return dict(
        image_encoder=SiglipVisionModel.from_pretrained(folder / "image_encoder", dtype=torch.float32),
        feature_extractor=SiglipImageProcessor.from_pretrained(folder / "feature_extractor"),
    )


def _fitted(pipe: DiffusionPipeline, vision: Any) -> DiffusionPipeline:
    """Set what diffusers' pipelines take for granted of the real encoders, in place."""
    pipe.tokenizer_max_length = pipe.tokenizer.model_max_length
    pipe.prompt_template_encode_start_idx = _tokens_before_prompt(pipe)
    # The demo model has no glyph path: as few glyph tokens as the pipeline can do with, and those not valid.
    pipe.tokenizer_2_max_length = 1
    pipe.vision_num_semantic_tokens = (vision.image_size // vision.patch_size) ** 2
    pipe.video_processor.calculate_default_height_width = _size_of_video
    return pipe


def _size_of_video(height: int, width: int, target_size: int) -> tuple[int, int]:
    """The kit's (height, width) for a picture's: the closest in shape, where diffusers takes none more elongated."""
    sizes = generate_crop_size_list(target_size, BUCKET_STRIDE)
    ratios = np.array([round(high / wide, 5) for high, wide in sizes])
    return get_closest_ratio(height, width, ratios, sizes)[0]


def _tokens_before_prompt(pipe: DiffusionPipeline) -> int:
    """Length of the instructions that go before every prompt and are cut off its embeddings, in tokens."""
    instructions = [{"role": "system", "content": pipe.system_message}]
    text = pipe.tokenizer.apply_chat_template(instructions, tokenize=False) + "<|im_start|>user\n"
    return len(pipe.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
