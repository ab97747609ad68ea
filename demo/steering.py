"""What a demo video shows: shape, colour and motion, read off its pixels without a trained classifier.

    python -m demo.steering CHECKPOINT --videos 64 --output steering.json

generates videos of held-out prompts, combinations that training never saw, and counts how often what was asked for
comes out. The same reading of drawn videos, and of drawn videos that went through the autoencoder, tells how far the
reading itself can be trusted.

Colour: of the eight shape colours the one with the most pixels, where a pixel belongs to the nearest of shape colours
and background colours. Motion: by the way of that colour's centre and the growth of its area from the first to the last
frame. Shape: the drawn silhouette, of all shapes, angles and sizes near the area's, with the largest overlap with the
middle frame's pixels.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from demo.data import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Spec,
    Window,
    prompt_of,
    render,
    shape_cover,
    spec_of,
)
from lemica.files import write_text

SIZE, FRAMES = (64, 64), 9
# A centre that moves by less than this share of the short side stands still; every moving shape moves by at least 0.4.
STILL = 0.15
# Drawn shapes grow or shrink by a factor of about 5 in area.
GROWTH = 2.0
SIZES = (0.8, 0.9, 1.0, 1.1, 1.2)
ANGLES = tuple(math.pi * k / 12 for k in range(-12, 12))


@dataclass(frozen=True)
class Seen:
    """What a video shows, in the words of the prompts."""

    shape: str
    colour: str
    motion: str


def colour_masks(video: Tensor) -> dict[str, Tensor]:
    """Pixels of each shape colour, (F, H, W) bool, of a video (3, F, H, W) in [0, 1]."""
    outline = 0.45
    names, palette = [], []
    for name, rgb in COLOURS.items():
        names += [name]
        palette += [rgb]
    for first, second in BACKGROUNDS.values():
        names += [""] * 3
        palette += [first, second, tuple((a + b) / 2 for a, b in zip(first, second, strict=True))]
    for rgb in COLOURS.values():
        names += [""]
        palette += [tuple(outline * c for c in rgb)]
    distance = (video[None] - torch.tensor(palette)[:, :, None, None, None]).square().sum(1)
    nearest = distance.argmin(0)
    return {name: nearest == index for index, name in enumerate(names) if name}


def _centre(mask: Tensor) -> tuple[float, float]:
    """Mean (x, y) of the pixels of a mask (H, W)."""
    y, x = mask.nonzero(as_tuple=True)
    return (x.float().mean().item(), y.float().mean().item()) if len(x) else (math.nan, math.nan)


def motion_of(masks: Tensor) -> str:
    """Motion of the pixels (F, H, W): to a side, growing, shrinking, or else spinning (which stays in place)."""
    (x0, y0), (x1, y1) = _centre(masks[0]), _centre(masks[-1])
    side = min(masks.shape[1:])
    dx, dy = (x1 - x0) / side, (y1 - y0) / side
    if max(abs(dx), abs(dy)) > STILL:
        horizontal = abs(dx) > abs(dy)
        return f"moves {('left', 'right')[dx > 0]}" if horizontal else f"moves {('up', 'down')[dy > 0]}"
    growth = (masks[-1].sum().item() + 1) / (masks[0].sum().item() + 1)
    if growth > GROWTH:
        return "grows"
    return "shrinks" if growth < 1 / GROWTH else "spins"


@cache
def _silhouettes(shape: str) -> Tensor:
    """A shape of radius 0.25 at every angle, centred, (angles, H, W) bool."""
    spec = Spec(shape, "red", "spins", "sand", 0.25, 0.0, (0.5,) * 8)
    covers = []
    for angle in ANGLES:
        turned = Spec(**{**asdict(spec), "angle": angle, "motion": "still"})
        covers.append(shape_cover(turned, SIZE, 1, Window(0, 0, 0, 1, *SIZE))[0][0] > 0.5)
    return torch.stack(covers)


def _resized(mask: Tensor, centre: tuple[float, float], scale: float) -> Tensor:
    """A mask (H, W) moved to the middle and enlarged by `scale`, (64, 64) bool."""
    ys, xs = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    y = ((ys - (SIZE[0] - 1) / 2) / scale + centre[1]).round().long()
    x = ((xs - (SIZE[1] - 1) / 2) / scale + centre[0]).round().long()
    inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    return inside & mask[y.clamp(0, mask.shape[0] - 1), x.clamp(0, mask.shape[1] - 1)]


def shape_of(mask: Tensor) -> str:
    """The shape whose silhouette overlaps most (intersection over union) with a mask (H, W)."""
    area, centre = mask.sum().item(), _centre(mask)
    if area == 0:
        return "nothing"
    best = {}
    for shape in SHAPES:
        silhouettes = _silhouettes(shape)
        natural = math.sqrt(silhouettes[0].sum().item() / area)
        overlaps = []
        for size in SIZES:
            found = _resized(mask, centre, natural * size)
            common, either = (found & silhouettes).sum((1, 2)), (found | silhouettes).sum((1, 2))
            overlaps.append((common / either).max().item())
        best[shape] = max(overlaps)
    return max(best, key=best.get)


def describe(video: Tensor) -> Seen:
    """What a video (3, F, H, W), float in [0, 1], shows."""
    masks = colour_masks(video)
    colour = max(masks, key=lambda name: masks[name].sum().item())
    chosen = masks[colour]
    return Seen(shape_of(chosen[len(chosen) // 2]), colour, motion_of(chosen))


def rates(specs: Sequence[Spec], seen: Sequence[Seen]) -> dict[str, float]:
    """Shares of videos in which shape, colour, motion, and all three are as asked."""
    pairs = list(zip(specs, seen, strict=True))
    right = {name: [getattr(spec, name) == getattr(what, name) for spec, what in pairs] for name in asdict(seen[0])}
    together = [all(row) for row in zip(*right.values(), strict=True)]
    return {name: sum(rows) / len(rows) for name, rows in (right | {"all": together}).items()}


def generate_videos(checkpoint: Path, specs: Sequence[Spec], first_seed: int) -> list[Tensor]:
    """One video per spec, (3, F, H, W) in [0, 1], with the pipeline's own defaults."""
    from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline, initialize_sequence_parallel

    from demo.attention import fused_attention

    initialize_sequence_parallel()
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(checkpoint), "480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    videos = []
    with fused_attention():
        for index, spec in enumerate(specs):
            request = dict(aspect_ratio="1:1", video_length=FRAMES, prompt_rewrite=False, enable_sr=False)
            videos.append(pipe(prompt_of(spec), seed=first_seed + index, **request).videos[0])
    return videos


def through_autoencoder(checkpoint: Path, videos: Tensor) -> Tensor:
    """Videos (B, 3, F, H, W) in [0, 1], encoded and decoded."""
    from hyvideo.models.autoencoders.hunyuanvideo_15_vae import AutoencoderKLConv3D

    vae = AutoencoderKLConv3D.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        return torch.cat([vae(video[None] * 2 - 1).sample for video in videos]).div(2).add(0.5).clamp(0, 1)


def note(path: Path, name: str, result: dict[str, dict[str, float]], generated: list[dict]) -> None:
    """Put a checkpoint's rates, and what each of its videos shows, into a file, a video per line."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = {"rates": result, "generated": generated}
    texts = []
    for each, reading in known.items():
        rows = ",\n".join(map(json.dumps, reading["generated"]))
        texts.append(f'{json.dumps(each)}: {{"rates": {json.dumps(reading["rates"])}, "generated": [\n{rows}\n]}}')
    write_text(path, "{\n" + ",\n".join(texts) + "\n}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate, read, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--seed", type=int, default=5000, help="seed of the first video")
    parser.add_argument("--output", type=Path, help="JSON file to add the checkpoint's rates and readings to")
    options = parser.parse_args(arguments)
    specs = [spec_of(index, held_out=True) for index in range(options.videos)]
    drawn = render(specs, SIZE, FRAMES).div(2).add(0.5)
    sources = {
        "drawn": list(drawn),
        "autoencoder": list(through_autoencoder(options.checkpoint, drawn)),
        "generated": generate_videos(options.checkpoint, specs, options.seed),
    }
    readings = {name: [describe(video) for video in videos] for name, videos in sources.items()}
    result = {name: rates(specs, seen) for name, seen in readings.items()}
    chance = {"shape": 1 / len(SHAPES), "colour": 1 / len(COLOURS), "motion": 1 / len(MOTIONS)}
    for name, row in (result | {"chance": chance}).items():
        print(f"{name:12s}", "  ".join(f"{key} {value:.0%}" for key, value in row.items()))
    if options.output:
        generated = [
            {"prompt": prompt_of(spec), "seed": options.seed + index, **asdict(seen)}
            for index, (spec, seen) in enumerate(zip(specs, readings["generated"], strict=True))
        ]
        note(options.output, options.checkpoint.name, result, generated)


if __name__ == "__main__":
    main()
