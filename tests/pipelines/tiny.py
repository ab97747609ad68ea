"""Tiny random pipelines of diffusers' real classes, which run on a CPU in a fraction of a second.

A variant is one pipeline with one sampler and one kind of guidance. Prompt embeddings are given directly, so there is
no text encoder; latents are returned undecoded, so there is a VAE only where the pipeline cannot do without.

    @pytest.mark.parametrize("name", pipelines_here())
    def test_it_runs(name):
        tiny = make(name)
        latents = run(tiny, steps=6)
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image


@dataclass
class TinyPipeline:
    """A pipeline and how it is called: `pipe(**call, num_inference_steps=N, generator=...)` returns latents.

    `blocks` holds one transformer block per denoiser (or the middle of a UNet), which runs once per denoiser call.
    """

    pipe: diffusers.DiffusionPipeline
    call: dict[str, Any]
    blocks: list[torch.nn.Module]


class Variant(NamedTuple):
    """How a variant is made, and the first diffusers release that has its classes."""

    factory: Callable[[], TinyPipeline]
    since: str = "0.35.0"


def make(name: str) -> TinyPipeline:
    """A fresh pipeline of a variant: always the same weights, nothing shared with another one.

    Where the installed diffusers lacks it, the test that asks is skipped.
    """
    if not is_here(name):
        pytest.skip(lacking(name))
    return VARIANTS[name].factory()


def run(tiny: TinyPipeline, steps: int = 6, seed: int = 0, **changes) -> torch.Tensor:
    """The final latents of one call; `changes` replace keyword arguments of the call."""
    arguments = {**tiny.call, **changes}
    generator = torch.Generator().manual_seed(seed)
    return tiny.pipe(num_inference_steps=steps, generator=generator, return_dict=False, **arguments)[0]


def pipelines_here(*names: str) -> list:
    """Parameters for pytest: these variants, or all; those that the installed diffusers lacks are skipped."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(not is_here(name), reason=lacking(name)))
        for name in names or VARIANTS
    ]


def is_here(name: str) -> bool:
    return Version(diffusers.__version__) >= Version(VARIANTS[name].since)


def lacking(name: str) -> str:
    return f"{name} needs diffusers {VARIANTS[name].since}, here is {diffusers.__version__}"


# What the factories share.

TEXT = 16  # Numbers per prompt token.
TOKENS = 8  # Tokens per prompt.
ROPE = (4, 6, 6)  # Numbers of a head of 16 that turn with time, height and width.


def weights(model: Callable[..., torch.nn.Module], seed: int = 0, **config) -> torch.nn.Module:
    """A model of random weights, float32, ready for inference; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = model(**config).eval().requires_grad_(False)
        # Some classes begin their training with layers of zeros, behind which nothing would be seen.
        for values in made.parameters():
            if values.ndim > 1 and not values.any():
                values.normal_(std=0.2)
        return made


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompts() -> dict[str, torch.Tensor]:
    """The embeddings of a prompt and of a negative one."""
    return {
        "prompt_embeds": noise(1, TOKENS, TEXT, seed=1),
        "negative_prompt_embeds": noise(1, TOKENS, TEXT, seed=2),
    }


def picture(height: int, width: int, seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def assembled(
    name: str, call: dict[str, Any], block: Callable[[torch.nn.Module], torch.nn.Module], **parts: Any
) -> TinyPipeline:
    """The pipeline of that name; constructor arguments that are not given are None where they have no default."""
    pipeline = getattr(diffusers, name)
    required = [it.name for it in signature(pipeline).parameters.values() if it.default is it.empty]
    pipe = pipeline(**{**dict.fromkeys(required), **parts})
    pipe.set_progress_bar_config(disable=True)
    denoisers = [getattr(pipe, part, None) for part in ("transformer", "transformer_2", "unet")]
    return TinyPipeline(pipe, {"output_type": "latent", **call}, [block(it) for it in denoisers if it is not None])


def flow_euler(**config):
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def flow_heun():
    return diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)


def flow_unipc():
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def kl_vae(name: str, **config) -> torch.nn.Module:
    """An autoencoder of diffusers' usual shape: four latent channels, one layer per level."""
    return weights(getattr(diffusers, name), latent_channels=4, layers_per_block=1, norm_num_groups=4, **config)


# One factory per pipeline; arguments make its variants.


def wan_transformer(seed: int = 0, in_channels: int = 4, image_dim: int | None = None) -> torch.nn.Module:
    return weights(
        diffusers.WanTransformer3DModel,
        seed=seed,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        image_dim=image_dim,
        added_kv_proj_dim=image_dim and 32,
        rope_max_seq_len=32,
    )


def wan_call(**more) -> dict[str, Any]:
    return {"height": 32, "width": 48, "num_frames": 5, "guidance_scale": 5.0, **prompts(), **more}


def wan(scheduler: Callable) -> TinyPipeline:
    """Guidance is two calls per step, the conditional one first. Heun takes N steps in 2N - 1 scheduler calls."""
    return assembled(
        "WanPipeline", wan_call(), lambda it: it.blocks[0], transformer=wan_transformer(), scheduler=scheduler()
    )


def wan_two_experts() -> TinyPipeline:
    """Wan 2.2: the second transformer takes over when the noise falls below 0.875, here after two steps of six."""
    return assembled(
        "WanPipeline",
        wan_call(guidance_scale_2=3.0),
        lambda it: it.blocks[0],
        transformer=wan_transformer(),
        transformer_2=wan_transformer(seed=1),
        boundary_ratio=0.875,
        scheduler=flow_unipc(),
    )


def wan_image_to_video() -> TinyPipeline:
    """Wan 2.1: the picture goes through the VAE into the latents, and through an image encoder into the blocks."""
    vae = weights(
        diffusers.AutoencoderKLWan,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    encoder = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return assembled(
        "WanImageToVideoPipeline",
        wan_call(image=picture(32, 48)),
        lambda it: it.blocks[0],
        vae=vae,
        image_encoder=weights(transformers.CLIPVisionModel, config=encoder),
        image_processor=transformers.CLIPImageProcessor(**sizes),
        # Noise, the picture's latents, and a mask of four frames that says where they hold.
        transformer=wan_transformer(in_channels=12, image_dim=16),
        scheduler=flow_unipc(),
    )


def qwen_image() -> TinyPipeline:
    transformer = weights(
        diffusers.QwenImageTransformer2DModel,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=ROPE,
    )
    masks = dict.fromkeys(
        ("prompt_embeds_mask", "negative_prompt_embeds_mask"), torch.ones(1, TOKENS, dtype=torch.long)
    )
    return assembled(
        "QwenImagePipeline",
        {"height": 64, "width": 96, "true_cfg_scale": 4.0, **prompts(), **masks},
        lambda it: it.transformer_blocks[0],
        transformer=transformer,
        scheduler=flow_euler(use_dynamic_shifting=True),
    )


def z_image(cfg_truncation: float) -> TinyPipeline:
    """Lists go in and come out, guidance is one batch; it ends when the time 1 - sigma exceeds cfg_truncation."""
    transformer = weights(
        diffusers.ZImageTransformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT,
        axes_dims=list(ROPE),
        axes_lens=[64, 16, 16],
    )
    lists = {name: list(embeddings) for name, embeddings in prompts().items()}
    return assembled(
        "ZImagePipeline",
        {"height": 64, "width": 96, "guidance_scale": 4.0, "cfg_truncation": cfg_truncation, **lists},
        lambda it: it.layers[0],
        transformer=transformer,
        scheduler=flow_euler(shift=3.0),
    )


def flux2_transformer(guidance_embeds: bool) -> torch.nn.Module:
    return weights(
        diffusers.Flux2Transformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def flux2() -> TinyPipeline:
    """The guidance scale is an input of the transformer: one call per step."""
    return assembled(
        "Flux2Pipeline",
        {"height": 64, "width": 96, "guidance_scale": 4.0, "prompt_embeds": prompts()["prompt_embeds"]},
        lambda it: it.transformer_blocks[0],
        transformer=flux2_transformer(guidance_embeds=True),
        scheduler=flow_euler(use_dynamic_shifting=True),
    )


def flux2_klein() -> TinyPipeline:
    """Two calls per step. Its latents are normalised by the VAE's statistics even when they are not decoded."""
    levels = {"block_out_channels": (8, 8)}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return assembled(
        "Flux2KleinPipeline",
        {"height": 16, "width": 24, "guidance_scale": 4.0, **prompts()},
        lambda it: it.transformer_blocks[0],
        vae=kl_vae("AutoencoderKLFlux2", sample_size=16, **levels, **blocks),
        transformer=flux2_transformer(guidance_embeds=False),
        scheduler=flow_euler(use_dynamic_shifting=True),
    )


def flux_transformer(in_channels: int) -> torch.nn.Module:
    return weights(
        diffusers.FluxTransformer2DModel,
        in_channels=in_channels,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=True,
        axes_dims_rope=ROPE,
    )


def flux_call(**more) -> dict[str, Any]:
    embeddings = {"prompt_embeds": prompts()["prompt_embeds"], "pooled_prompt_embeds": noise(1, TEXT, seed=4)}
    return {"height": 64, "width": 96, "guidance_scale": 3.5, **embeddings, **more}


def flux(**guidance) -> TinyPipeline:
    return assembled(
        "FluxPipeline",
        flux_call(**guidance),
        lambda it: it.transformer_blocks[0],
        transformer=flux_transformer(in_channels=16),
        scheduler=flow_euler(use_dynamic_shifting=True),
    )


def flux_true_cfg() -> TinyPipeline:
    negative = {"negative_prompt_embeds": prompts()["negative_prompt_embeds"]}
    return flux(true_cfg_scale=2.0, negative_pooled_prompt_embeds=noise(1, TEXT, seed=5), **negative)


def flux_image_to_image() -> TinyPipeline:
    """Begins at step 2 of 6, the scheduler's begin_index; the picture is given as its 16 latent channels."""
    return assembled(
        "FluxImg2ImgPipeline",
        flux_call(image=noise(1, 16, 8, 12, seed=6), strength=0.6),
        lambda it: it.transformer_blocks[0],
        transformer=flux_transformer(in_channels=64),
        scheduler=flow_euler(use_dynamic_shifting=True),
    )


def cogvideox_parts(scheduler: str) -> dict[str, Any]:
    """CogVideoX 1.5: rotary embeddings and two latent frames per token."""
    transformer = weights(
        diffusers.CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=TEXT,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=5,
        patch_size_t=2,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
        patch_bias=False,
    )
    config = {
        "prediction_type": "v_prediction",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    return {"transformer": transformer, "scheduler": getattr(diffusers, scheduler)(**config)}


def cogvideox(scheduler: str) -> TinyPipeline:
    """Guidance is one batch. The DPM scheduler's step takes more arguments and draws noise."""
    return assembled(
        "CogVideoXPipeline",
        {"height": 32, "width": 48, "num_frames": 5, "guidance_scale": 6.0, "max_sequence_length": TOKENS, **prompts()},
        lambda it: it.transformer_blocks[0],
        **cogvideox_parts(scheduler),
    )


def cogvideox_video_to_video() -> TinyPipeline:
    """Begins at step 3 of 6 by cutting the timesteps: the scheduler has no begin_index."""
    video = [picture(32, 48, seed=frame) for frame in range(5)]
    settings = {"height": 32, "width": 48, "guidance_scale": 6.0, "max_sequence_length": TOKENS, "strength": 0.6}
    return assembled(
        "CogVideoXVideoToVideoPipeline",
        {"video": video, **settings, **prompts()},
        lambda it: it.transformer_blocks[0],
        vae=kl_vae("AutoencoderKLCogVideoX", block_out_channels=(8, 8, 8, 8)),
        **cogvideox_parts("CogVideoXDDIMScheduler"),
    )


def latte() -> TinyPipeline:
    """The transformer returns twice the latent channels: the pipeline leaves the learned variance out."""
    transformer = weights(
        diffusers.LatteTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        attention_bias=True,
        sample_size=4,
        patch_size=2,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=TEXT,
        video_length=2,
    )
    sizes = {"height": 32, "width": 32, "video_length": 2}
    return assembled(
        "LattePipeline",
        {**sizes, "guidance_scale": 7.5, "negative_prompt": None, **prompts()},
        lambda it: it.transformer_blocks[0],
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )


def hunyuan_parts(task_type: str, guider: str, config: dict[str, Any]) -> dict[str, Any]:
    transformer = weights(
        diffusers.HunyuanVideo15Transformer3DModel,
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT,
        text_embed_2_dim=TEXT,
        image_embed_dim=16,
        rope_axes_dim=ROPE,
        target_size=32,
        task_type=task_type,
    )
    # The pipeline's constructor asks the VAE for its latent channels.
    vae = weights(
        diffusers.AutoencoderKLHunyuanVideo15,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "guider": getattr(diffusers, guider)(**config),
        "scheduler": flow_euler(shift=7.0),
    }


def hunyuan_prompts() -> dict[str, torch.Tensor]:
    """Embeddings of two text encoders, of which the last two tokens are padding."""
    mask = torch.ones(1, TOKENS)
    mask[:, -2:] = 0
    return {
        **prompts(),
        "prompt_embeds_2": noise(1, TOKENS, TEXT, seed=7),
        "negative_prompt_embeds_2": noise(1, TOKENS, TEXT, seed=8),
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds_mask": mask,
        "prompt_embeds_mask_2": mask,
        "negative_prompt_embeds_mask_2": mask,
    }


def hunyuan_video15(guider: str = "ClassifierFreeGuidance", **config) -> TinyPipeline:
    """Guidance is the guider's: with the usual one two calls per step, the conditional one first."""
    tiny = assembled(
        "HunyuanVideo15Pipeline",
        {"height": 32, "width": 48, "num_frames": 5, **hunyuan_prompts()},
        lambda it: it.transformer_blocks[0],
        **hunyuan_parts("t2v", guider, {"guidance_scale": 6.0, **config}),
    )
    # The image tokens that text-to-video masks out: 729 would be most of the run.
    tiny.pipe.vision_num_semantic_tokens = 4
    return tiny


def hunyuan_video15_interval() -> TinyPipeline:
    """Guidance on the first half of the steps only: then one call per step."""
    return hunyuan_video15(stop=0.5)


def hunyuan_video15_skip_layer() -> TinyPipeline:
    """A third call, without the last block's feed-forward, on the steps between 0.2 N and 0.7 N: here steps 2 and 3."""
    # The whole block cannot be skipped: diffusers has not registered this model's block class.
    layer = diffusers.LayerSkipConfig([1], fqn="transformer_blocks", skip_attention=False, skip_ff=True)
    interval = {"skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.7}
    return hunyuan_video15("SkipLayerGuidance", skip_layer_config=layer, **interval)


def hunyuan_video15_image_to_video() -> TinyPipeline:
    encoder = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return assembled(
        "HunyuanVideo15ImageToVideoPipeline",
        {"image": picture(32, 32), "num_frames": 5, **hunyuan_prompts()},
        lambda it: it.transformer_blocks[0],
        image_encoder=weights(transformers.SiglipVisionModel, config=encoder),
        feature_extractor=transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
        **hunyuan_parts("i2v", "ClassifierFreeGuidance", {"guidance_scale": 6.0}),
    )


def ltx() -> TinyPipeline:
    """Guidance is one batch, the negative half first."""
    transformer = weights(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=TEXT,
    )
    masks = dict.fromkeys(("prompt_attention_mask", "negative_prompt_attention_mask"), torch.ones(1, TOKENS))
    return assembled(
        "LTXPipeline",
        {"height": 64, "width": 96, "num_frames": 9, "guidance_scale": 3.0, **prompts(), **masks},
        lambda it: it.transformer_blocks[0],
        transformer=transformer,
        scheduler=flow_euler(use_dynamic_shifting=True),
    )


def ernie_image() -> TinyPipeline:
    """Guidance is one batch, the negative half first; prompts are lists of embeddings of any length."""
    transformer = weights(
        diffusers.ErnieImageTransformer2DModel,
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=8,
        out_channels=8,
        text_in_dim=TEXT,
        rope_axes_dim=ROPE,
    )
    lists = {name: list(embeddings) for name, embeddings in prompts().items()}
    return assembled(
        "ErnieImagePipeline",
        {"height": 64, "width": 96, "guidance_scale": 4.0, **lists},
        lambda it: it.layers[0],
        transformer=transformer,
        scheduler=flow_euler(shift=3.0),
    )


def stable_diffusion(scheduler: str, **config) -> TinyPipeline:
    """A UNet that predicts noise; guidance is one batch."""
    unet = weights(
        diffusers.UNet2DConditionModel,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
    )
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return assembled(
        "StableDiffusionPipeline",
        {"height": 64, "width": 64, "guidance_scale": 7.5, **prompts()},
        lambda it: it.mid_block,
        unet=unet,
        scheduler=getattr(diffusers, scheduler)(**betas, **config),
        requires_safety_checker=False,
    )


VARIANTS = {
    "wan_unipc": Variant(lambda: wan(flow_unipc)),
    "wan_euler": Variant(lambda: wan(lambda: flow_euler(shift=3.0))),
    "wan_heun": Variant(lambda: wan(flow_heun)),
    "wan_two_experts": Variant(wan_two_experts),
    "wan_image_to_video": Variant(wan_image_to_video),
    "qwen_image": Variant(qwen_image),
    "z_image": Variant(lambda: z_image(cfg_truncation=1.0), since="0.36.0"),
    "z_image_truncated": Variant(lambda: z_image(cfg_truncation=0.3), since="0.36.0"),
    "flux2": Variant(flux2, since="0.36.0"),
    "flux2_klein": Variant(flux2_klein, since="0.37.0"),
    "flux": Variant(flux),
    "flux_true_cfg": Variant(flux_true_cfg),
    "flux_image_to_image": Variant(flux_image_to_image),
    "cogvideox_ddim": Variant(lambda: cogvideox("CogVideoXDDIMScheduler")),
    "cogvideox_dpm": Variant(lambda: cogvideox("CogVideoXDPMScheduler")),
    "cogvideox_video_to_video": Variant(cogvideox_video_to_video),
    "latte": Variant(latte),
    "hunyuan_video15": Variant(hunyuan_video15, since="0.36.0"),
    "hunyuan_video15_interval": Variant(hunyuan_video15_interval, since="0.36.0"),
    "hunyuan_video15_skip_layer": Variant(hunyuan_video15_skip_layer, since="0.36.0"),
    "hunyuan_video15_image_to_video": Variant(hunyuan_video15_image_to_video, since="0.36.0"),
    "ltx": Variant(ltx),
    "ernie_image": Variant(ernie_image, since="0.38.0"),
    "unet_ddim": Variant(lambda: stable_diffusion("DDIMScheduler", clip_sample=False)),
    "unet_dpm_solver": Variant(lambda: stable_diffusion("DPMSolverMultistepScheduler")),
}
