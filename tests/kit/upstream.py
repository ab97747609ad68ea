"""Upstream's own pipeline, unmodified, on the components of one of ours."""

import importlib
import sys
import types
from unittest.mock import patch

import numpy as np
import torch
from conftest import UPSTREAM
from PIL import Image

PACKAGE = "upstream_pipelines"


def _transforms() -> types.ModuleType:
    """The five torchvision transforms that upstream's file uses: torchvision has no CPU build to install."""

    class Compose:
        def __init__(self, steps):
            self.steps = steps

        def __call__(self, value):
            for step in self.steps:
                value = step(value)
            return value

    def resize(size, interpolation):
        return lambda image: image.resize((size[1], size[0]), interpolation)

    def center_crop(size):
        def crop(image):
            left, top = (round((have - want) / 2) for have, want in zip(image.size, reversed(size), strict=True))
            return image.crop((left, top, left + size[1], top + size[0]))

        return crop

    def to_tensor():
        return lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)

    def normalize(mean, std):
        return lambda tensor: tensor.sub(torch.tensor(mean).view(-1, 1, 1)).div(torch.tensor(std).view(-1, 1, 1))

    module = types.ModuleType("torchvision.transforms")
    module.Compose, module.Resize, module.CenterCrop = Compose, resize, center_crop
    module.ToTensor, module.Normalize = to_tensor, normalize
    module.InterpolationMode = types.SimpleNamespace(LANCZOS=Image.LANCZOS)
    return module


def load_upstream(name: str) -> types.ModuleType:
    """A module of upstream's `hyvideo.pipelines`, as released, beside the installed kit's."""
    package = sys.modules.setdefault(PACKAGE, types.ModuleType(PACKAGE))
    package.__path__ = [str(UPSTREAM / "pipelines")]
    torchvision = types.ModuleType("torchvision")
    torchvision.transforms = _transforms()
    # Only while upstream's file is imported: other libraries must not believe that torchvision is there.
    with patch.dict(sys.modules, {"torchvision": torchvision, "torchvision.transforms": torchvision.transforms}):
        module = importlib.import_module(f"{PACKAGE}.{name}")
    return module


def _components(pipe, **extra):
    names = ("vae", "text_encoder", "transformer", "scheduler", "byt5_model", "byt5_tokenizer", "prompt_format")
    settings = ("flow_shift", "guidance_scale", "num_inference_steps", "vision_num_semantic_tokens")
    components = {name: getattr(pipe, name) for name in (*names, "vision_encoder")}
    components |= {name: getattr(pipe.config, name) for name in (*settings, "vision_states_dim")}
    return components | {"execution_device": "cpu"} | extra


def _on_cpu(twin, pipe):
    twin.target_dtype = twin.vae_dtype = torch.float32
    twin.autocast_enabled = twin.vae_autocast_enabled = False
    twin.target_size_config = pipe.target_size_config
    twin.set_progress_bar_config(disable=True)
    return twin


def upstream_twin(pipe):
    """Upstream's pipeline on the very components of `pipe`, told to run on a CPU in float32."""
    twin = load_upstream("hunyuan_video_pipeline").HunyuanVideo_1_5_Pipeline(**_components(pipe))
    if hasattr(pipe, "sr_pipeline"):
        sr = pipe.sr_pipeline
        upstream_class = load_upstream("hunyuan_video_sr_pipeline").HunyuanVideo_1_5_SR_Pipeline
        extra = dict(upsampler=sr.upsampler, base_resolution=sr.config.base_resolution)
        twin.sr_pipeline = _on_cpu(upstream_class(**_components(sr, **extra)), sr)
    return _on_cpu(twin, pipe)
