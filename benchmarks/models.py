"""What the benchmarks run on: upstream's transformer at several sizes, with random weights and random inputs.

Nothing comes from the network. Every other part of the pipeline is tiny, because the denoising loop needs none.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from hyvideo.commons import is_flash_available
from hyvideo.commons.infer_state import Mask
from hyvideo.models.transformers import hunyuanvideo_1_5_transformer
from hyvideo.models.transformers.hunyuanvideo_1_5_transformer import HunyuanVideo_1_5_DiffusionTransformer
from hyvideo.pipelines.hunyuan_video_pipeline import DenoiseInputs, HunyuanVideo_1_5_Pipeline, default_device

from demo.attention import joint_attention
from demo.tiny_checkpoint import TinyConfig, transformer_config, write_checkpoint

NUM_STEPS = 50
CHANNELS = 32


@dataclass(frozen=True)
class Preset:
    """A transformer and its input.

    Args:
        latents: frames, height and width; every latent position is an image token.
        batch: 2 with classifier-free guidance.
        whole_loops: whether loops of 50 steps are short enough to be run; else they are predicted from single steps.
    """

    blocks: int
    hidden: int
    heads: int
    latents: tuple[int, int, int]
    batch: int
    text_tokens: int = 64
    glyph_tokens: int = 16
    vision_tokens: int = 16
    text_width: int = 64
    vision_width: int = 32
    whole_loops: bool = True

    @property
    def image_tokens(self) -> int:
        frames, height, width = self.latents
        return frames * height * width

    def residual_bytes(self, dtype: torch.dtype) -> int:
        return self.batch * self.image_tokens * self.hidden * dtype.itemsize


# HunyuanVideo-1.5 itself.
REAL = dict(blocks=54, hidden=2048, heads=16, batch=2, text_tokens=1000, glyph_tokens=256, vision_tokens=729)
REAL |= dict(text_width=3584, vision_width=1152, whole_loops=False)
PRESETS = {
    "tiny": Preset(blocks=4, hidden=64, heads=4, latents=(5, 6, 6), batch=2),
    "cpu": Preset(blocks=54, hidden=64, heads=2, latents=(7, 18, 18), batch=1),
    "480p": Preset(latents=(31, 30, 53), **REAL),
    "720p": Preset(latents=(31, 45, 80), **REAL),
}


def benchmark_pipeline(preset: Preset) -> HunyuanVideo_1_5_Pipeline:
    """The kit's pipeline with a transformer of the preset's size: on a GPU in bfloat16, else in float32."""
    device = default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    net = meta_transformer(preset, dtype).to_empty(device=device)
    for parameter in net.parameters():
        # Small enough to stay finite through all blocks.
        parameter.normal_(0, 0.02)
    return pipeline_around(net)


def meta_transformer(preset: Preset, dtype: torch.dtype) -> HunyuanVideo_1_5_DiffusionTransformer:
    """Upstream's transformer at the preset's size on the meta device, where tensors have no numbers."""
    sizes = TinyConfig(
        preset.hidden, preset.heads, preset.blocks, 4.0, text_width=preset.text_width, vision_width=preset.vision_width
    )
    config = transformer_config("480p_t2v", sizes) | {"attn_mode": "flash" if is_flash_available() else "torch"}
    with torch.device("meta"):
        net = HunyuanVideo_1_5_DiffusionTransformer(**config)
    return net.to(dtype).requires_grad_(False).eval()


def pipeline_around(net: HunyuanVideo_1_5_DiffusionTransformer) -> HunyuanVideo_1_5_Pipeline:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), ["480p_t2v"], TinyConfig(blocks=1))
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(folder, "480p_t2v")
    pipe.register_modules(transformer=net)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_inputs(pipe: HunyuanVideo_1_5_Pipeline, preset: Preset) -> DenoiseInputs:
    """Inputs of a loop that computes every step, with random numbers in them; all text tokens are valid."""
    pipe._guidance_scale, pipe._guidance_rescale = (6.0 if preset.batch == 2 else 1.0), 0.0
    device, dtype, batch = pipe.execution_device, pipe.target_dtype, preset.batch
    scheduler = pipe._create_scheduler(9.0)
    scheduler.set_timesteps(NUM_STEPS, device=device)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def valid(tokens: int) -> torch.Tensor:
        return torch.ones(batch, tokens, device=device, dtype=torch.int64)

    glyphs = dict(byt5_text_states=draw(batch, preset.glyph_tokens, 1472), byt5_text_mask=valid(preset.glyph_tokens))
    return DenoiseInputs(
        noise=draw(1, CHANNELS, *preset.latents),
        condition=draw(batch, CHANNELS + 1, *preset.latents).float(),
        timesteps=scheduler.timesteps,
        scheduler=scheduler,
        mask=Mask((True,) * NUM_STEPS, weights=((),) * NUM_STEPS),
        transformer_kwargs=dict(
            **pipe.rotary_tables(preset.latents),
            text_states=draw(batch, preset.text_tokens, preset.text_width),
            text_states_2=None,
            encoder_attention_mask=valid(preset.text_tokens),
            vision_states=draw(batch, preset.vision_tokens, preset.vision_width),
            # Image-to-video: the text-to-video path drops the vision tokens.
            mask_type="i2v",
            guidance=None,
            return_dict=False,
            extra_kwargs=glyphs,
        ),
        step_kwargs={},
    )


@contextmanager
def fast_attention() -> Iterator[str]:
    """Inside, attention goes through a fused kernel, whose name is yielded: flash-attention where upstream finds it.

    Else PyTorch's, without a mask, because all tokens of ``random_inputs`` are valid. Upstream itself would take
    flex_attention then, which on a CPU is uncompiled: every step would take ten times as long.
    """
    if is_flash_available():
        yield "flash-attention"
        return

    def attend(query, key, value, img_q_len, img_kv_len, text_mask=None, **_):
        return joint_attention(query, key, value, img_q_len, img_kv_len)

    with patch.object(hunyuanvideo_1_5_transformer, "parallel_attention", attend):
        yield "PyTorch's scaled_dot_product_attention"
