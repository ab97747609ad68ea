"""What the benchmarks run on: upstream's transformer at several sizes, random weights, random inputs.

Nothing comes from the network. Every other part of the pipeline is tiny, because the denoising loop needs none.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from hyvideo.models.transformers.hunyuanvideo_1_5_transformer import HunyuanVideo_1_5_DiffusionTransformer
from hyvideo.pipelines.hunyuan_video_pipeline import DenoiseInputs, HunyuanVideo_1_5_Pipeline
from make_tiny_checkpoint import TinyConfig, transformer_config, write_checkpoint

NUM_STEPS = 50
BLOCKS = 54


@dataclass(frozen=True)
class Preset:
    """A transformer and its input: latent frames, height and width; text, glyph and vision tokens; CFG batch.

    most_of_full is the target for a reused step, as a share of a full one. Without whole_loops a repeat runs FEW_STEPS.
    """

    blocks: int
    hidden: int
    heads: int
    latents: tuple[int, int, int]
    text_tokens: int
    glyph_tokens: int
    vision_tokens: int
    batch: int
    text_width: int = 64
    vision_width: int = 32
    mlp_ratio: float = 4.0
    most_of_full: float | None = None
    released_once: bool = False
    whole_loops: bool = True

    @property
    def image_tokens(self) -> int:
        frames, height, width = self.latents
        return frames * height * width


PRESETS = {
    "tiny": Preset(4, 64, 4, (5, 6, 6), 64, 16, 16, batch=2),
    "cpu": Preset(BLOCKS, 64, 2, (7, 18, 18), 64, 16, 16, batch=1, most_of_full=0.002, released_once=True),
    "480p": Preset(
        BLOCKS, 2048, 16, (31, 30, 53), 1000, 256, 729, batch=2, text_width=3584, vision_width=1152, whole_loops=False
    ),
    "720p": Preset(
        BLOCKS,
        2048,
        16,
        (31, 45, 80),
        1000,
        256,
        729,
        batch=2,
        text_width=3584,
        vision_width=1152,
        most_of_full=0.001,
        whole_loops=False,
    ),
}


def benchmark_pipeline(preset: Preset) -> HunyuanVideo_1_5_Pipeline:
    """The kit's pipeline with a transformer of the preset's size: on a GPU in bfloat16, else in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return pipeline_around(random_transformer(preset, device, dtype))


def random_transformer(preset: Preset, device: torch.device, dtype: torch.dtype):
    """Upstream's transformer at the preset's size; weights drawn where it runs, small enough to stay finite."""
    net = meta_transformer(preset, device, dtype).to_empty(device=device)
    for parameter in net.parameters():
        parameter.normal_(0, 0.02)
    return net


def meta_transformer(preset: Preset, device: torch.device, dtype: torch.dtype):
    """The same without weights, on the meta device, with the attention that `device` is to run."""
    sizes = TinyConfig(
        preset.hidden, preset.heads, preset.blocks, preset.mlp_ratio, text_width=preset.text_width,
        vision_width=preset.vision_width,
    )  # fmt: skip
    attention = {"attn_mode": "flash"} if device.type == "cuda" else {}
    config = transformer_config("480p_t2v", sizes) | attention
    with torch.device("meta"):
        net = HunyuanVideo_1_5_DiffusionTransformer(**config)
    return net.to(dtype).requires_grad_(False).eval()


def pipeline_around(net) -> HunyuanVideo_1_5_Pipeline:
    """The kit's pipeline with `net` in it; every other part is tiny, because the denoising loop needs none."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), ["480p_t2v"], TinyConfig(blocks=1))
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(folder, "480p_t2v")
    pipe.register_modules(transformer=net)
    pipe.set_progress_bar_config(disable=True)
    pipe._guidance_rescale = 0.0
    return pipe


def random_inputs(pipe: HunyuanVideo_1_5_Pipeline, preset: Preset) -> DenoiseInputs:
    """Inputs of the denoising loop with random numbers in them, text lengths as the preset says."""
    pipe._guidance_scale = 6.0 if preset.batch == 2 else 1.0
    device, dtype, batch = pipe.execution_device, pipe.target_dtype, preset.batch
    scheduler = pipe._create_scheduler(9.0)
    scheduler.set_timesteps(NUM_STEPS, device=device)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def mask(tokens: int) -> torch.Tensor:
        return torch.ones(batch, tokens, device=device, dtype=torch.int64)

    glyph = dict(byt5_text_states=draw(batch, preset.glyph_tokens, 1472), byt5_text_mask=mask(preset.glyph_tokens))
    return DenoiseInputs(
        noise=draw(1, 32, *preset.latents),
        condition=draw(batch, 33, *preset.latents).float(),
        timesteps=scheduler.timesteps,
        scheduler=scheduler,
        mask=(True,) * NUM_STEPS,
        transformer_kwargs=dict(
            **pipe.rotary_tables(preset.latents),
            text_states=draw(batch, preset.text_tokens, preset.text_width),
            text_states_2=None,
            encoder_attention_mask=mask(preset.text_tokens),
            vision_states=draw(batch, preset.vision_tokens, preset.vision_width),
            mask_type="i2v",
            guidance=None,
            return_dict=False,
            extra_kwargs=glyph,
        ),
        step_kwargs={},
    )
