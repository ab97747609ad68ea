"""A diffusers pipeline by its path, and its calls, as the command line names them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lemica.calibration.samples import Sample
from lemica.errors import Refused, in_words

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def load_pipeline(path_or_id: str, dtype: str = "bf16", offloading: bool = True) -> Any:
    """A pipeline on this rank's GPU, or on the CPU where there is none.

    Args:
        path_or_id: a folder that ``save_pretrained`` wrote, or a Hub repository owner/name.
        dtype: "bf16" or "fp32", of all its models.
        offloading: keep models on the CPU while they are not used.

    Raises Refused where it cannot be loaded.
    """
    import torch

    try:
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as error:
        raise Refused(f"--pipeline needs {error.name}: pip install diffusers transformers") from error
    try:
        pipe = DiffusionPipeline.from_pretrained(path_or_id, torch_dtype=getattr(torch, DTYPES[dtype]))
    except (OSError, ValueError) as error:
        raise Refused(f"--pipeline {path_or_id} cannot be loaded: {in_words(error)}") from error
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return _on_gpu(pipe, offloading)
    return pipe


def _on_gpu(pipe: Any, offloading: bool) -> Any:
    import torch

    if not offloading:
        return pipe.to("cuda")
    # By number: diffusers does not ask which GPU is this rank's.
    pipe.enable_model_cpu_offload(gpu_id=torch.cuda.current_device())
    return pipe


def read_call(path: Path | None) -> dict[str, Any]:
    """The keyword arguments that all calls share, from a JSON file; none without one.

    Raises Refused for a file that is not a JSON object, and for what the command line has options for.
    """
    if path is None:
        return {}
    try:
        call = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"--call {path}: {error.strerror}") from error
    except ValueError as error:
        raise Refused(f"--call {path} is not JSON ({in_words(error)})") from error
    if not isinstance(call, dict):
        raise Refused(f'--call {path} is no JSON object: write one like {{"height": 480, "guidance_scale": 5.0}}')
    for name, option in {"prompt": "--prompts", "image": "--image_path", "generator": "--seeds"}.items():
        if name in call:
            raise Refused(f"--call {path} has {name}: leave it out, and give {option}")
    if "num_inference_steps" in call:
        raise Refused(f"--call {path} has num_inference_steps: leave it out, and give --num_inference_steps")
    return call


def calls_of(samples: Sequence[Sample], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The keyword arguments of each sample's call, and its ``seed``, as ``lemica.calibrate`` takes them."""
    return [{**settings, "prompt": sample.prompt, "seed": sample.seed, **_image_of(sample)} for sample in samples]


def _image_of(sample: Sample) -> dict[str, Any]:
    if sample.image_path is None:
        return {}
    from diffusers.utils import load_image

    return {"image": load_image(sample.image_path)}
