"""Runs on disk as generate.py leaves them, made without a model: a disc that moves over a gradient."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np

NUM_STEPS = 50
STEPS_OF_BUDGET = {
    50: tuple(range(50)),
    25: (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 19, 21, 24, 28, 33, 39, 45, 48, 49),
    10: (0, 1, 3, 5, 9, 17, 25, 33, 41, 49),
}


def moving_disc(noise: float = 0.0, frames: int = 48, height: int = 96, width: int = 160, seed: int = 0) -> np.ndarray:
    """Frames (F, H, W, 3), uint8: a red disc that crosses a gradient, with noise of this deviation in [0, 1]."""
    y, x = np.mgrid[:height, :width]
    video = np.empty((frames, height, width, 3))
    video[..., 0], video[..., 1], video[..., 2] = 0.2, 0.3 + 0.4 * x / width, 0.4 + 0.4 * y / height
    for index, frame in enumerate(video):
        centre = width * (0.85 - 0.7 * index / frames)
        frame[(x - centre) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2] = 0.85, 0.15, 0.1
    video += noise * np.random.default_rng(seed).normal(size=video.shape)
    return (video.clip(0, 1) * 255).astype(np.uint8)


def write_lossless(path: Path, frames: np.ndarray) -> Path:
    """As ``generate.py --save_lossless true`` writes NAME_lossless.mkv."""
    imageio.mimwrite(path, frames, fps=24, codec="ffv1", pixelformat="bgr0")
    return path


def write_compressed(path: Path, frames: np.ndarray) -> Path:
    """As generate.py writes NAME.mp4."""
    imageio.mimwrite(path, frames, fps=24)
    return path


def write_run(
    folder: Path,
    name: str,
    frames: np.ndarray,
    computed_steps: Sequence[int] = STEPS_OF_BUDGET[50],
    num_steps: int = NUM_STEPS,
    lossless: bool = True,
    step_seconds: Sequence[float] = (),
    request: dict[str, Any] | None = None,
    old: bool = False,
    **arguments: Any,
) -> Path:
    """NAME.mp4, NAME_config.json and, if `lossless`, NAME_lossless.mkv.

    Without `step_seconds` computed steps take 1 s and reused ones 2 ms. `request` changes what decided the picture; a
    config of an `old` kit tells neither that nor which files are the run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    video = write_compressed(folder / f"{name}.mp4", frames)
    if lossless:
        write_lossless(folder / f"{name}_lossless.mkv", frames)
    seconds = [*step_seconds] or [1.0 if step in computed_steps else 0.002 for step in range(num_steps)]
    cached = len(computed_steps) < num_steps
    config = {
        "transformer_version": "480p_t2v",
        "output_path": str(video),
        "arguments": {
            "prompt": "a red disc moves left",
            "seed": 123,
            "image_path": None,
            "save_lossless": lossless,
            "enable_cache": cached,
            "cache_type": "lemica" if cached else "deepcache",
            **arguments,
        },
        "report": {
            "num_steps": num_steps,
            "computed_steps": list(computed_steps),
            "mask_origin": "released" if cached else "no cache",
            "reuse": "velocity" if cached else None,
            "forecast": "fitted" if cached else None,
            "step_seconds": seconds,
            "stage_seconds": {"denoising": sum(seconds), "VAE decoding": 2.0},
            "dit_seconds": sum(seconds),
            "total_seconds": sum(seconds) + 2.0,
        },
    }
    if not old:
        config |= {"request": request_of(frames, **arguments) | (request or {}), "files": files_of(folder, name)}
    (folder / f"{name}_config.json").write_text(json.dumps(config), encoding="utf-8")
    return video


def request_of(frames: np.ndarray, prompt: str = "a red disc moves left", seed: int = 123, **_: Any) -> dict[str, Any]:
    """What decided the picture, as generate.py notes it: with drawn seeds and defaults filled in."""
    return {
        **{"prompt": prompt, "negative_prompt": "", "seed": seed, "model": "480p_t2v", "config": "0123456789abcdef"},
        **{"dtype": "bfloat16", "width": frames.shape[2], "height": frames.shape[1], "frames": len(frames)},
        **{"guidance_scale": 6.0, "embedded_guidance_scale": None, "flow_shift": 5.0, "image": None},
    }


def files_of(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Size and digest of the run's videos, as generate.py notes them."""
    videos = [path for path in (folder / f"{name}.mp4", folder / f"{name}_lossless.mkv") if path.is_file()]
    contents = {path.name: path.read_bytes() for path in videos}
    return {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def write_demo(folder: Path) -> Path:
    """An uncached run and two cached ones, the faster the noisier."""
    write_run(folder, "uncached", moving_disc())
    write_run(folder, "b25", moving_disc(noise=0.01), STEPS_OF_BUDGET[25])
    write_run(folder, "b10", moving_disc(noise=0.04), STEPS_OF_BUDGET[10])
    return folder
