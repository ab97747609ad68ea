"""Train the demo model's video autoencoder: upstream's class at a small width, on the procedural videos.

    python train_demo_vae.py OUTPUT --steps 8000

OUTPUT gets `vae/` (float16, for the checkpoint), `vae_log.json` (losses, time, machine, command, seed) and
`vae_state.pt`, from which the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_data import Window, render, render_one, spec_of
from hyvideo.models.autoencoders.hunyuanvideo_15_vae import AttnBlock, AutoencoderKLConv3D, ResnetBlock, Upsample
from hyvideo.optim.muon import get_muon_optimizer
from make_tiny_checkpoint import LATENT_CHANNELS, TinyConfig, build_vae
from torch import Tensor, nn

FULL_SIZES = ((192, 192), (144, 256))
FULL_FRAMES = 17
# (videos, frames, pixels a side) of a training batch, taken in turn, of about equal cost. Many small windows teach
# faster than a few large ones; the large ones keep the attention layer honest.
BATCHES = ((16, 5, 32), (8, 1, 96), (8, 5, 48), (4, 9, 48), (16, 1, 64), (2, 9, 64))
# Weight of the KL term (a mean over latents) beside the L1 term (a mean over pixels).
KL_WEIGHT = 3e-4
EDGE_WEIGHT = 0.5


@dataclass(frozen=True)
class VaeTraining:
    """What a training run depends on."""

    steps: int = 8_000
    rate: float = 5e-3
    seed: int = 0
    channels: tuple[int, ...] = (8, 16, 32, 64, 64)
    layers: int = 0


def demo_vae_config(training: VaeTraining, scaling: float = 1.0) -> TinyConfig:
    """Sizes of the demo autoencoder, in the terms of the checkpoint writer."""
    return TinyConfig(vae_channels=training.channels, vae_layers=training.layers, vae_scaling=scaling)


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
    """Whole videos of combinations that training never sees, each (1, 3, 17, H, W), in both frame shapes."""
    return [render([spec_of(i, held_out=True)], FULL_SIZES[i % len(FULL_SIZES)], FULL_FRAMES) for i in range(count)]


# ---- losses


def edge_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean L1 distance of the spatial differences: keeps outlines sharp where L1 alone would blur them."""
    error = output - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over latents of KL(posterior || standard normal), in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def training_loss(vae: AutoencoderKLConv3D, clips: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """All terms of the loss and their weighted sum `loss`, as scalars."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(clips).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator)
        output = vae.decode(mean + (0.5 * logvar).exp() * noise).sample.float()
    pixels, edges = F.l1_loss(output, clips), edge_loss(output, clips)
    kl = kl_divergence(mean, logvar)
    return {"loss": pixels + EDGE_WEIGHT * edges + KL_WEIGHT * kl, "l1": pixels, "edges": edges, "kl": kl}


# ---- evaluation


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of videos in [-1, 1], clamped as the pipeline clamps them."""
    error = (output.clamp(-1, 1) - target).div(2).square().mean()
    return -10 * math.log10(max(error.item(), 1e-12))


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLConv3D, clips: Sequence[Tensor]) -> float:
    """Mean PSNR in dB over videos, decoded from the posterior's mode."""
    with torch.autocast("cpu", torch.bfloat16):
        values = [psnr(vae(clip).sample.float(), clip) for clip in clips]
    return sum(values) / len(values)


@torch.no_grad()
def centre_latents(vae: AutoencoderKLConv3D, clips: Sequence[Tensor]) -> float:
    """Shift the latents' mean to 0 in every channel without changing any video; returns their standard deviation.

    The pipeline scales latents but never shifts an image condition, so the shift has to live in the weights: out of
    the encoder's last bias, into the decoder's first. Replicate padding makes that exact.
    """
    latents = torch.cat([vae.encode(clip).latent_dist.mode().flatten(2) for clip in clips], dim=2)
    mean = latents.mean(dim=(0, 2))
    vae.encoder.conv_out.conv.bias[: len(mean)].sub_(mean)
    first = vae.decoder.conv_in.conv
    repeats = first.out_channels // len(mean)
    first.bias.add_(first.weight.sum(dim=(2, 3, 4)) @ mean + mean.repeat_interleave(repeats))
    return (latents - mean[None, :, None]).std().item()


# ---- training


def _unit_noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in the shape of a convolution's weight under which signals keep their size."""
    return torch.randn(weight.shape, generator=generator) / math.sqrt(weight[0].numel())


def _smooth_upsampling(layer: Upsample, generator: torch.Generator) -> None:
    """Nearly the same filter for all pixels that come out of one: no random checkerboards."""
    weight = layer.conv.conv.weight
    copies = 8 if layer.add_temporal_upsample else 4
    shared = _unit_noise(weight[: len(weight) // copies], generator).repeat(copies, 1, 1, 1, 1)
    weight.copy_(shared + 0.1 * _unit_noise(weight, generator))


def _mean_colour() -> Tensor:
    """Mean (red, green, blue) of the training videos, in [-1, 1]."""
    return torch.stack([render_one(spec_of(i), (48, 48), 1).mean((1, 2, 3)) for i in range(64)]).mean(0)


@torch.no_grad()
def prepare(vae: AutoencoderKLConv3D, seed: int) -> AutoencoderKLConv3D:
    """Reinitialise in place such that what tells one video from another gets through from end to end.

    With the default start it decays along the chain of layers and drowns in the decoder's random checkerboards. The
    first gradients then drive the latents to one huge constant, from which the normalised layers do not come back.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.copy_(_unit_noise(module.weight, generator))
            module.bias.zero_()
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.conv.weight.mul_(0.2)
        elif isinstance(module, AttnBlock):
            module.proj_out.weight.mul_(0.2)
        elif isinstance(module, Upsample):
            _smooth_upsampling(module, generator)
    _steady_output(vae.decoder)
    # Little noise on the latents at first: a log variance of -4.
    moments = vae.encoder.conv_out.conv
    moments.weight[LATENT_CHANNELS:].mul_(0.1)
    moments.bias[LATENT_CHANNELS:].fill_(-4.0)
    return vae


def _steady_output(decoder: nn.Module) -> None:
    """Start from the mean colour, with a quarter of the last channels at a constant.

    The last norm divides every pixel by its length over the channels; a large constant part keeps brightness in it.
    """
    channels = decoder.norm_out.gamma.shape[0]
    constant = slice(channels - channels // 4, channels)
    decoder.up[-2].upsample.conv.conv.bias.view(4, channels)[:, constant] = 4.0
    last = decoder.conv_out.conv
    last.weight.mul_(0.3)
    last.weight[:, constant].mul_(0.1)
    last.bias.copy_(_mean_colour())


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        # A short memory at first: the initial weights are worth nothing.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter.detach(), 1 - decay)


def learning_rate(step: int, training: VaeTraining) -> float:
    """Linear warm-up over 200 steps, then a cosine down to 2 %."""
    progress = min(1.0, step / training.steps)
    return training.rate * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def machine() -> dict[str, str | int]:
    """What the run ran on, for the log."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count() or 1, "threads": torch.get_num_threads(), "torch": torch.__version__}


class Run:
    """One training run: model, optimiser, average, log, and the file that lets it go on."""

    def __init__(self, output: Path, training: VaeTraining) -> None:
        self.output, self.training = output, training
        self.vae = prepare(build_vae(demo_vae_config(training)), training.seed).train()
        self._channels_last()
        self.average = Average(self.vae, decay=0.999)
        self.optimiser = get_muon_optimizer(self.vae, lr=training.rate, weight_decay=0.0, adamw_betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        if (output / "vae_state.pt").exists():
            self.load()

    def _channels_last(self) -> None:
        for module in self.vae.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)

    def save(self) -> None:
        """Write the state beside its final name and move it there, so that a killed run leaves a whole file."""
        self.output.mkdir(parents=True, exist_ok=True)
        state = {
            "vae": self.vae.state_dict(),
            "average": self.average.values,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
        }
        torch.save(state, self.output / "vae_state.tmp")
        os.replace(self.output / "vae_state.tmp", self.output / "vae_state.pt")

    def load(self) -> None:
        state = torch.load(self.output / "vae_state.pt", weights_only=True)
        self.vae.load_state_dict(state["vae"])
        self.average.values = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def advance(self) -> dict[str, float]:
        """One optimiser step; returns the terms of the loss."""
        begin = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.training)
        noise = torch.Generator().manual_seed(self.training.seed * 7_368_787 + self.step)
        terms = training_loss(self.vae, training_clips(self.step, self.training.seed), noise)
        self.optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        for parameter in self.vae.parameters():
            # Upstream's Muon takes a matrix view of every gradient, which the channels-last layout does not have.
            parameter.grad = parameter.grad.contiguous()
        self.optimiser.step()
        self.average.update(self.vae, self.step)
        self.step += 1
        self.seconds += time.perf_counter() - begin
        return {name: term.item() for name, term in terms.items()}

    def averaged(self) -> AutoencoderKLConv3D:
        """A copy of the model that holds the averaged weights."""
        vae = build_vae(demo_vae_config(self.training)).eval().requires_grad_(False)
        vae.load_state_dict(self.average.values)
        return vae

    def note(self, terms: dict[str, float], clips: Sequence[Tensor]) -> None:
        """Add a line to the log and print it."""
        line = {"step": self.step, "seconds": round(self.seconds, 1), **{k: round(v, 5) for k, v in terms.items()}}
        line["psnr"] = round(reconstruction_psnr(self.averaged(), clips), 3)
        self.log.append(line)
        print(json.dumps(line), flush=True)


def train(run: Run, every: int = 500, clips: Sequence[Tensor] | None = None) -> None:
    """Train to the end, noting losses and held-out PSNR and saving the state `every` so many steps."""
    clips = held_out_clips(8) if clips is None else clips
    while run.step < run.training.steps:
        terms = run.advance()
        if run.step % every == 0 or run.step == run.training.steps:
            run.note(terms, clips)
            run.save()


def export(run: Run, videos: int = 32) -> dict[str, float]:
    """Write `vae/` and `vae_log.json`; returns the figures of the float16 weights on held-out videos."""
    vae = run.averaged()
    scale = 1.0 / centre_latents(vae, [clip for i in range(32) for clip in [render([spec_of(i)], FULL_SIZES[i % 2])]])
    vae.register_to_config(scaling_factor=scale)
    vae.half().save_pretrained(run.output / "vae")
    shipped = AutoencoderKLConv3D.from_pretrained(run.output / "vae", torch_dtype=torch.float32)
    weights = run.output / "vae" / "diffusion_pytorch_model.safetensors"
    result = {
        "held_out_psnr": round(reconstruction_psnr(shipped, held_out_clips(videos)), 3),
        "held_out_videos": videos,
        "megabytes": round(weights.stat().st_size / 1e6, 2),
        "scaling_factor": scale,
    }
    training = run.training
    flags = f"--steps {training.steps} --rate {training.rate} --seed {training.seed}"
    record = {
        "command": f"python scripts/train_demo_vae.py OUTPUT {flags}",
        "seed": training.seed,
        "machine": machine(),
        "training": vars(training),
        "seconds": round(run.seconds, 1),
        "result": result,
        "log": run.log,
    }
    (run.output / "vae_log.json").write_text(json.dumps(record, indent=1) + "\n")
    return result


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    default = VaeTraining()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--rate", type=float, default=default.rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--channels", type=int, nargs=5, default=list(default.channels))
    parser.add_argument("--layers", type=int, default=default.layers)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training, then export."""
    options = parse_arguments(arguments)
    training = VaeTraining(
        steps=options.steps,
        rate=options.rate,
        seed=options.seed,
        channels=tuple(options.channels),
        layers=options.layers,
    )
    run = Run(options.output, training)
    train(run)
    print(json.dumps(export(run)))


if __name__ == "__main__":
    main()
