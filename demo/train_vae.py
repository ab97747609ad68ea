"""Train the demo model's video autoencoder: upstream's class at a small width, on the procedural videos.

    python -m demo.train_vae OUTPUT --steps 1000

The whole starts as a linear codec fitted to videos (demo/vae_start.py); the encoder stays one, so that the latents are
settled from the first step on, and the decoder learns by gradient descent what a linear one cannot do. OUTPUT gets
`vae/` (float16, for the checkpoint), `vae.json` (losses, time, machine, command, seed) and `state.pt`, from which the
same command goes on after an interruption.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hyvideo.models.autoencoders.hunyuanvideo_15_vae import AttnBlock, AutoencoderKLConv3D, ResnetBlock
from torch import Tensor

from demo.data import Window, render, render_one, spec_of
from demo.tiny_checkpoint import TinyConfig, build_vae
from demo.training import Average, cosine_rate, machine, save_state
from demo.vae_start import start_as_linear_codec
from lemica.quality.metrics import psnr

FULL_SIZES = ((64, 64), (48, 80), (80, 48))
FULL_FRAMES = 9
# (videos, frames, pixels a side) of a training batch, taken in turn, of about equal cost.
BATCHES = ((4, 9, 32), (8, 5, 32), (4, 9, 32), (2, 9, 48))
EDGE_WEIGHT = 0.5
WARM_UP = 50
# Layers that the start has fitted are sharp; a rate that is right for the fresh ones would undo them.
FITTED_RATE = 0.1


@dataclass(frozen=True)
class VaeTraining:
    """What a training run depends on; `fitted` is the number of videos that the start is fitted to."""

    steps: int = 1_000
    rate: float = 2e-4
    seed: int = 0
    fitted: int = 384
    channels: tuple[int, ...] = (16, 32, 64, 64)


# ---- data


def training_clips(step: int, seed: int) -> Tensor:
    """The clips of one step, (B, 3, F, side, side) in [-1, 1]: random windows, in space and time, of whole videos."""
    rng = np.random.default_rng([seed, step])
    count, frames, side = BATCHES[step % len(BATCHES)]
    clips = []
    for _ in range(count):
        size = FULL_SIZES[rng.integers(len(FULL_SIZES))]
        room = (FULL_FRAMES - frames, size[0] - side, size[1] - side)
        corner = (int(rng.integers(limit + 1)) for limit in room)
        spec = spec_of(int(rng.integers(2**31)))
        clips.append(render_one(spec, size, FULL_FRAMES, Window(*corner, frames, side, side)))
    return torch.stack(clips)


def held_out_clips(count: int) -> list[Tensor]:
    """Whole videos of combinations that training never sees, each (1, 3, 9, H, W), in all frame shapes."""
    return [render([spec_of(i, held_out=True)], FULL_SIZES[i % len(FULL_SIZES)], FULL_FRAMES) for i in range(count)]


# ---- losses


def edge_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean L1 distance of the spatial differences: keeps outlines sharp where L1 alone would blur them."""
    error = output - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def training_loss(vae: AutoencoderKLConv3D, clips: Tensor, generator: torch.Generator) -> Tensor:
    """L1 distance of pixels and of their spatial differences, decoded from a sample of the latents."""
    with torch.no_grad():
        posterior = vae.encode(clips).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        latents = posterior.mean + posterior.std * noise
    output = vae.decode(latents).sample
    return F.l1_loss(output, clips) + EDGE_WEIGHT * edge_loss(output, clips)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLConv3D, clips: Sequence[Tensor]) -> float:
    """Mean PSNR in dB over videos in [-1, 1], decoded from the posterior's mode and clamped as the pipeline does."""
    values = [psnr(_pixels(clip), _pixels(vae(clip).sample.clamp(-1, 1))) for clip in clips]
    return sum(values) / len(values)


def _pixels(video: Tensor) -> np.ndarray:
    """A video of [-1, 1] in [0, 1]."""
    return video.add(1).div(2).numpy()


# ---- training


def fitted_vae(training: VaeTraining) -> AutoencoderKLConv3D:
    """The linear codec from which training starts, with the scaling that gives latents unit deviation."""
    torch.manual_seed(training.seed)
    vae = build_vae(TinyConfig(vae_channels=training.channels)).eval()
    generator = torch.Generator().manual_seed(training.seed)
    videos = render([spec_of(i) for i in range(training.fitted)], FULL_SIZES[0], FULL_FRAMES)
    start_as_linear_codec(vae, videos, lambda shape: torch.randn(shape, generator=generator))
    with torch.no_grad():
        deviation = vae.encode(videos[:64]).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=1 / deviation)
    return vae


def parameter_groups(decoder: torch.nn.Module, rate: float) -> list[dict]:
    """The fresh layers at the full rate, those that the start has fitted at a tenth."""
    blocks = (module for module in decoder.modules() if isinstance(module, ResnetBlock | AttnBlock))
    fresh = [parameter for block in blocks for parameter in block.parameters()]
    known = {id(parameter) for parameter in fresh}
    fitted = [parameter for parameter in decoder.parameters() if id(parameter) not in known]
    return [{"params": fresh, "peak": rate}, {"params": fitted, "peak": FITTED_RATE * rate}]


class VaeRun:
    """One training run: model, optimiser, average, log, and the file that lets it go on."""

    def __init__(self, output: Path, training: VaeTraining) -> None:
        self.output, self.training = output, training
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        begin = time.perf_counter()
        state = torch.load(self._state, weights_only=True) if self._state.exists() else None
        self.vae = fitted_vae(training) if state is None else build_vae(TinyConfig(vae_channels=training.channels))
        self.vae.encoder.requires_grad_(False)
        self.average = Average(self.vae.decoder, decay=0.995)
        groups = parameter_groups(self.vae.decoder, training.rate)
        self.optimiser = torch.optim.AdamW(groups, lr=training.rate, betas=(0.9, 0.99), weight_decay=0.0)
        if state is None:
            self.seconds = time.perf_counter() - begin
        else:
            self._restore(state)

    @property
    def _state(self) -> Path:
        return self.output / "state.pt"

    def save(self) -> None:
        parts = dict(vae=self.vae.state_dict(), average=self.average.values, optimiser=self.optimiser.state_dict())
        progress = dict(step=self.step, seconds=self.seconds, log=self.log)
        save_state(parts | progress | dict(scaling=self.vae.config.scaling_factor), self._state)

    def _restore(self, state: dict) -> None:
        self.vae.load_state_dict(state["vae"])
        self.vae.register_to_config(scaling_factor=state["scaling"])
        self.average.values = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def advance(self) -> float:
        """One optimiser step; returns the loss."""
        begin = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = cosine_rate(self.step, self.training.steps, group["peak"], WARM_UP)
        noise = torch.Generator().manual_seed(self.training.seed * 7_368_787 + self.step)
        loss = training_loss(self.vae, training_clips(self.step, self.training.seed), noise)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.average.update(self.vae.decoder, self.step)
        self.step += 1
        self.seconds += time.perf_counter() - begin
        return loss.item()

    def averaged(self) -> AutoencoderKLConv3D:
        """A copy of the model with the averaged decoder."""
        vae = build_vae(TinyConfig(vae_channels=self.training.channels)).eval().requires_grad_(False)
        vae.load_state_dict(self.vae.state_dict())
        vae.decoder.load_state_dict(self.average.values)
        vae.register_to_config(scaling_factor=self.vae.config.scaling_factor)
        return vae

    def note(self, losses: Sequence[float], clips: Sequence[Tensor]) -> None:
        """Add a line to the log and print it."""
        line = {"step": self.step, "seconds": round(self.seconds, 1)}
        line |= {"loss": round(sum(losses) / len(losses), 5)} if losses else {}
        line["psnr"] = round(reconstruction_psnr(self.averaged(), clips), 3)
        self.log.append(line)
        print(json.dumps(line), flush=True)


def train(run: VaeRun, every: int = 100, clips: Sequence[Tensor] | None = None) -> None:
    """Train to the end, noting losses and held-out PSNR and saving the state `every` so many steps."""
    clips = held_out_clips(9) if clips is None else clips
    losses: list[float] = []
    if run.step == 0:
        run.note(losses, clips)
    while run.step < run.training.steps:
        losses.append(run.advance())
        if run.step % every == 0 or run.step == run.training.steps:
            run.note(losses, clips)
            run.save()
            losses.clear()


def export(run: VaeRun, videos: int = 33) -> dict[str, float]:
    """Write `vae/` and `vae.json`; returns the figures of the float16 weights on held-out videos."""
    run.averaged().half().save_pretrained(run.output / "vae")
    shipped = AutoencoderKLConv3D.from_pretrained(run.output / "vae", torch_dtype=torch.float32)
    weights = run.output / "vae" / "diffusion_pytorch_model.safetensors"
    result = {
        "held_out_psnr": round(reconstruction_psnr(shipped, held_out_clips(videos)), 3),
        "held_out_videos": videos,
        "megabytes": round(weights.stat().st_size / 1e6, 2),
    }
    training = run.training
    record = {
        "command": f"python -m demo.train_vae OUTPUT --steps {training.steps} --seed {training.seed}",
        "machine": machine(),
        "training": asdict(training),
        "seconds": round(run.seconds, 1),
        "result": result,
        "log": run.log,
    }
    (run.output / "vae.json").write_text(json.dumps(record, indent=1) + "\n")
    return result


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    default = VaeTraining()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--rate", type=float, default=default.rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--fitted", type=int, default=default.fitted, help="videos that the start is fitted to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training, then export."""
    options = parse_arguments(arguments)
    training = VaeTraining(steps=options.steps, rate=options.rate, seed=options.seed, fitted=options.fitted)
    run = VaeRun(options.output, training)
    train(run)
    print(json.dumps(export(run)))


if __name__ == "__main__":
    main()
