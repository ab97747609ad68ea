"""A whole pipeline in a folder, as `from_pretrained` takes it: from a text to a picture, tiny and random.

save_whole_pipeline(tmp_path / "pipeline")
pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
picture = pipe("a red circle", num_inference_steps=6, height=32, width=32).images[0]
"""

import json
import string
import tempfile
from pathlib import Path

import diffusers
import transformers
from tiny import TEXT, kl_vae, stable_diffusion, weights

# The beginning and the end of a prompt, as CLIP writes them.
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def save_whole_pipeline(folder: Path) -> None:
    """Write a StableDiffusionPipeline with its tokenizer, text encoder and VAE: always the same weights.

    Its pictures are of 32 x 32 by default, and of any size that 2 divides.
    """
    parts = stable_diffusion("DDIMScheduler", clip_sample=False).pipe
    tokenizer = letters()
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=weights(type(parts.unet), **{**parts.unet.config, "sample_size": 16}),
        scheduler=parts.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)


def letters() -> transformers.CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of letters, each inside a word and at its end."""
    tokens = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), *SPECIAL]
    with tempfile.TemporaryDirectory() as folder:
        numbered = {token: number for number, token in enumerate(tokens)}
        Path(folder, "vocab.json").write_text(json.dumps(numbered), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def text_encoder(tokenizer: transformers.CLIPTokenizer) -> transformers.CLIPTextModel:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
    )
    return weights(transformers.CLIPTextModel, config=config)


def vae() -> diffusers.AutoencoderKL:
    """Two levels: a latent is 2 x 2 pixels."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return kl_vae("AutoencoderKL", sample_size=32, block_out_channels=(8, 8), **blocks)
