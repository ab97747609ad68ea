"""Train the demo model's transformer: upstream's class at a small width, on latents of the procedural videos.

    python -m demo.train_model OUTPUT --vae VAE --steps 2600

OUTPUT becomes a whole checkpoint in upstream's layout, with one set of weights for text- and image-to-video;
`training.json` beside it holds the losses, the time, the machine and the command. `state.pt` lets the same command go
on after an interruption.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from hyvideo.models.autoencoders.hunyuanvideo_15_vae import AutoencoderKLConv3D
from hyvideo.models.transformers.hunyuanvideo_1_5_transformer import HunyuanVideo_1_5_DiffusionTransformer
from hyvideo.optim import muon
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline, initialize_sequence_parallel
from torch import Tensor

from demo.attention import fused_attention
from demo.data import Spec, prompt_of, render, spec_of
from demo.tiny_checkpoint import TinyConfig, transformer_config, write_frozen_parts
from demo.training import Average, cosine_rate, machine, save_state

FRAMES = 9
# (height, width) of the videos, and how many of every six are so.
SHAPES = (((64, 64), 4), ((48, 80), 1), ((80, 48), 1))
T2V, I2V = "480p_t2v", "480p_i2v"
EMPTY_PROMPT = ""
ENCODED_AT_ONCE = 4


@dataclass(frozen=True)
class Training:
    """What a training run depends on."""

    steps: int = 2_600
    batch: int = 16
    rate: float = 1.2e-2
    seed: int = 0
    videos: int = 6_000
    # Share of batches with a given first frame, and of prompts that are dropped for classifier-free guidance.
    image_share: float = 0.25
    dropped_prompts: float = 0.1
    # Noise levels are drawn as the sampler spaces its steps, with this shift.
    shift: float = 3.0
    average: float = 0.998
    hidden: int = 128
    blocks: int = 8


def demo_config(training: Training, vae_scaling: float) -> TinyConfig:
    """Sizes of the demo model, in the terms of the checkpoint writer."""
    return TinyConfig(
        hidden=training.hidden,
        heads=training.hidden // 32,
        blocks=training.blocks,
        mlp_ratio=4.0,
        glyph=False,
        prompt_tokens=32,
        vae_channels=(16, 32, 64, 64),
        vae_scaling=vae_scaling,
        ideal_resolution="64p",
    )


# ---- data


@dataclass(frozen=True)
class Videos:
    """Encoded videos of one shape: latents (N, 32, T, H, W) and vision states (N, tokens, width), both float16."""

    specs: list[Spec]
    latents: Tensor
    vision: Tensor


@torch.no_grad()
def encode_videos(pipe: HunyuanVideo_1_5_Pipeline, specs: Sequence[Spec], size: tuple[int, int]) -> Videos:
    """Latents and vision states as the pipeline makes them of a reference image, for whole videos."""
    latents, vision = [], []
    for start in range(0, len(specs), ENCODED_AT_ONCE):
        video = render(specs[start : start + ENCODED_AT_ONCE], size, FRAMES)
        latents.append(pipe.vae.encode(video).latent_dist.mode() * pipe.vae.config.scaling_factor)
        first = ((video[:, :, 0] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        vision.append(pipe.vision_encoder.encode_images(first).last_hidden_state)
    return Videos(list(specs), torch.cat(latents).half(), torch.cat(vision).half())


def training_videos(pipe: HunyuanVideo_1_5_Pipeline, training: Training) -> list[Videos]:
    """The training set, by shape."""
    shares = sum(share for _, share in SHAPES)
    first, sets = training.seed * 1_000_003, []
    for size, share in SHAPES:
        count = training.videos * share // shares
        sets.append(encode_videos(pipe, [spec_of(first + i) for i in range(count)], size))
        first += count
    return sets


@torch.no_grad()
def encode_prompts(pipe: HunyuanVideo_1_5_Pipeline, prompts: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Text states (tokens, width) and mask (tokens,) of each prompt."""
    encoded = {}
    for prompt in prompts:
        states, _, mask, _ = pipe.encode_prompt(
            prompt, "cpu", 1, False, text_encoder=pipe.text_encoder, data_type="video"
        )
        encoded[prompt] = states[0], mask[0]
    return encoded


# ---- one step


def shifted(uniform: Tensor, shift: float) -> Tensor:
    """sigma = shift u / (1 + (shift - 1) u) of uniform u in (0, 1), as upstream's scheduler spaces its steps."""
    return shift * uniform / (1 + (shift - 1) * uniform)


@dataclass
class Batch:
    """What the transformer is called with, and the velocity that it shall return."""

    arguments: dict
    velocity: Tensor
    sigma: Tensor


def draw_batch(step: int, training: Training, sets: Sequence[Videos], texts: dict) -> Batch:
    """Everything of one step, from its number and the seed alone."""
    rng = np.random.default_rng([training.seed, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    videos = sets[rng.choice(len(sets), p=[share / sum(s for _, s in SHAPES) for _, share in SHAPES])]
    chosen = rng.integers(len(videos.specs), size=training.batch)
    clean = videos.latents[chosen].float()
    noise = torch.randn(clean.shape, generator=generator)
    # Stratified: every batch sees the whole range.
    uniform = (torch.arange(training.batch) + torch.rand(training.batch, generator=generator)) / training.batch
    sigma = shifted(uniform, training.shift)
    mix = sigma[:, None, None, None, None]

    from_image = rng.random() < training.image_share
    condition = torch.zeros(len(clean), clean.shape[1] + 1, *clean.shape[2:])
    if from_image:
        condition[:, :-1, :1] = clean[:, :, :1]
        condition[:, -1, :1] = 1
    prompts = [prompt_of(videos.specs[i]) for i in chosen]
    prompts = [EMPTY_PROMPT if rng.random() < training.dropped_prompts else prompt for prompt in prompts]
    states, masks = (torch.stack(part) for part in zip(*(texts[prompt] for prompt in prompts), strict=True))
    used = int(masks.sum(1).max())
    return Batch(
        arguments=dict(
            hidden_states=torch.cat([(1 - mix) * clean + mix * noise, condition], dim=1),
            timestep=sigma * 1000,
            text_states=states[:, :used],
            text_states_2=None,
            encoder_attention_mask=masks[:, :used],
            # Without an image upstream masks the vision tokens out: leaving them out is the same.
            vision_states=videos.vision[chosen].float() if from_image else None,
            mask_type="i2v" if from_image else "t2v",
            extra_kwargs={},
        ),
        velocity=noise - clean,
        sigma=sigma,
    )


def velocity_loss(model: HunyuanVideo_1_5_DiffusionTransformer, batch: Batch) -> Tensor:
    """Flow matching (arXiv 2210.02747): mean squared error of the velocity on x = (1 - sigma) clean + sigma noise."""
    return (model(**batch.arguments)[0] - batch.velocity).square().mean()


# ---- training


@contextmanager
def float32_muon() -> Iterator[None]:
    """Inside, upstream's Muon works in float32: without bfloat16 units bfloat16 is emulated, 20 times slower."""
    upstreams = muon.zeropower_via_newtonschulz5
    muon.zeropower_via_newtonschulz5 = lambda gradient, steps=5: upstreams(gradient.float(), steps)
    try:
        yield
    finally:
        muon.zeropower_via_newtonschulz5 = upstreams


class TransformerRun:
    """One training run: model, optimiser, average, log, and the file that lets it go on."""

    def __init__(self, output: Path, training: Training, config: dict):
        torch.manual_seed(training.seed)
        self.output, self.training, self.config = output, training, config
        self.model = HunyuanVideo_1_5_DiffusionTransformer(**config).train()
        self.average = Average(self.model, training.average)
        self.optimiser = muon.get_muon_optimizer(self.model, lr=training.rate, weight_decay=0.01)
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        if self._state.exists():
            self._load()

    @property
    def _state(self) -> Path:
        return self.output / "state.pt"

    def save(self) -> None:
        state = dict(model=self.model.state_dict(), average=self.average.values, optimiser=self.optimiser.state_dict())
        save_state(state | dict(step=self.step, seconds=self.seconds, log=self.log), self._state)

    def _load(self) -> None:
        state = torch.load(self._state, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.values = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def advance(self, batch: Batch) -> float:
        """One optimiser step; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = cosine_rate(self.step, self.training.steps, self.training.rate)
        self.optimiser.zero_grad(set_to_none=True)
        loss = velocity_loss(self.model, batch)
        loss.backward()
        self.optimiser.step()
        self.average.update(self.model, self.step)
        self.step += 1
        return loss.item()

    def averaged(self) -> HunyuanVideo_1_5_DiffusionTransformer:
        """A copy of the model that holds the averaged weights."""
        model = HunyuanVideo_1_5_DiffusionTransformer(**self.config).eval().requires_grad_(False)
        model.load_state_dict(self.average.values, strict=False)
        return model


def train(run: TransformerRun, sets: Sequence[Videos], texts: dict, every: int = 100) -> None:
    """Train to the end; logs the mean loss and writes the checkpoint `every` so many steps."""
    losses: list[float] = []
    with fused_attention(), float32_muon():
        while run.step < run.training.steps:
            begin = time.perf_counter()
            losses.append(run.advance(draw_batch(run.step, run.training, sets, texts)))
            run.seconds += time.perf_counter() - begin
            if run.step % every == 0 or run.step == run.training.steps:
                line = {"step": run.step, "seconds": round(run.seconds), "loss": round(sum(losses) / len(losses), 5)}
                run.log.append(line)
                print(json.dumps(line), flush=True)
                losses.clear()
                run.save()
                write_transformers(run.averaged(), run.output)


# ---- checkpoint


def write_transformers(model: HunyuanVideo_1_5_DiffusionTransformer, output: Path) -> None:
    """`transformer/480p_t2v` with the weights in float16, `transformer/480p_i2v` with a link to them."""
    folder = output / "transformer"
    model.half().save_pretrained(folder / T2V)
    weights = "diffusion_pytorch_model.safetensors"
    config = json.loads((folder / T2V / "config.json").read_text())
    (folder / I2V).mkdir(exist_ok=True)
    (folder / I2V / "config.json").write_text(json.dumps(config | {"ideal_task": "i2v"}, indent=2) + "\n")
    link = folder / I2V / weights
    link.unlink(missing_ok=True)
    os.symlink(f"../{T2V}/{weights}", link)


def prepare_output(output: Path, vae: Path, training: Training) -> dict:
    """Everything but trained weights; returns the transformer's config."""
    loaded = AutoencoderKLConv3D.from_pretrained(vae, torch_dtype=torch.float16)
    config = demo_config(training, loaded.config.scaling_factor)
    write_frozen_parts(output, config, training.seed)
    loaded.save_pretrained(output / "vae")
    kwargs = transformer_config(T2V, config)
    if not (output / "transformer").exists():
        write_transformers(HunyuanVideo_1_5_DiffusionTransformer(**kwargs), output)
    return kwargs


def every_prompt(sets: Sequence[Videos]) -> Iterator[str]:
    """All prompts of the training set, and the empty one."""
    yield EMPTY_PROMPT
    for videos in sets:
        yield from (prompt_of(spec) for spec in videos.specs)


def write_log(run: TransformerRun, vae: Path) -> None:
    """`training.json`: how the model came about."""
    flags = " ".join(
        f"--{name} {getattr(run.training, name)}" for name in ("steps", "seed", "videos", "hidden", "blocks")
    )
    record = {
        "command": f"python -m demo.train_model OUTPUT --vae {vae.name} {flags}",
        "machine": machine(),
        "training": asdict(run.training),
        "seconds": round(run.seconds),
        "log": run.log,
    }
    (run.output / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    default = Training()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained autoencoder")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--videos", type=int, default=default.videos, help="size of the training set")
    parser.add_argument("--hidden", type=int, default=default.hidden, help="width, a multiple of 32")
    parser.add_argument("--blocks", type=int, default=default.blocks)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training."""
    options = parse_arguments(arguments)
    chosen = {name: value for name, value in vars(options).items() if name not in ("output", "vae")}
    training = Training(**chosen)
    initialize_sequence_parallel()
    config = prepare_output(options.output, options.vae, training)
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(options.output), T2V)
    begin = time.perf_counter()
    sets = training_videos(pipe, training)
    texts = encode_prompts(pipe, sorted(set(every_prompt(sets))))
    print(f"{training.videos} videos, {len(texts)} prompts: {time.perf_counter() - begin:.0f} s", flush=True)
    run = TransformerRun(options.output, training, config)
    train(run, sets, texts)
    write_log(run, options.vae)


if __name__ == "__main__":
    main()
