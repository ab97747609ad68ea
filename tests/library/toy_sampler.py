"""The least that the hook works on: a denoiser, a scheduler, and a loop that calls both."""

import copy
from types import SimpleNamespace

import torch


class Denoiser(torch.nn.Module):
    """Takes an eighth of the latents for the velocity, and counts how often it runs."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, latents, scale=1.0):
        self.runs += 1
        return (latents * scale / 8,)


class Output(SimpleNamespace):
    """As diffusers' outputs: fields by name and by number."""

    def __getitem__(self, _):
        return self.prev_sample


class Scheduler:
    """Steps of size 1; time steps fall to 1."""

    def set_timesteps(self, steps):
        self.timesteps = torch.arange(steps, 0, -1)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        previous = sample - model_output
        return Output(prev_sample=previous) if return_dict else (previous,)


def sample(denoiser, scheduler, steps=3, scales=(2.0,), first=0, **options) -> torch.Tensor:
    """Latents after `steps` steps of a denoiser call per scale; on a copy of the scheduler, as pipelines do."""
    latents, scheduler = torch.ones(2), copy.copy(scheduler)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps[first:]:
        velocity = sum(denoiser(latents, scale=scale)[0] for scale in scales) / len(scales)
        latents = scheduler.step(velocity, t, latents, **options)[0]
    return latents
