"""Procedural videos for the demo model: one coloured shape that moves, grows or turns over a textured background.

A `Spec` holds everything that a video shows; `prompt_of` names the part of it that a prompt should steer, `render`
draws it. The same seed gives the same video at every size and frame rate.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "ring", "cross")
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.78, 0.20),
    "blue": (0.12, 0.28, 0.95),
    "yellow": (0.98, 0.88, 0.12),
    "purple": (0.62, 0.15, 0.85),
    "orange": (1.00, 0.50, 0.05),
    "cyan": (0.10, 0.85, 0.90),
    "white": (0.97, 0.97, 0.97),
}
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "spins")
# Base colour, second colour: muted, so that every shape colour stands out.
BACKGROUNDS = {
    "sand": ((0.66, 0.56, 0.42), (0.52, 0.43, 0.31)),
    "grass": ((0.22, 0.36, 0.16), (0.13, 0.24, 0.10)),
    "water": ((0.16, 0.30, 0.42), (0.08, 0.18, 0.29)),
    "bricks": ((0.47, 0.27, 0.22), (0.28, 0.20, 0.18)),
    "night": ((0.04, 0.05, 0.13), (0.60, 0.60, 0.66)),
}
# What turning cannot be seen on.
ROUND_SHAPES = ("circle", "ring")
# One combination in HELD_OUT_SHARE never occurs in training.
HELD_OUT_SHARE = 10


@dataclass(frozen=True)
class Spec:
    """One video. Lengths are in short sides of the frame, angles in radians; `jitter` holds numbers in [0, 1)."""

    shape: str
    colour: str
    motion: str
    background: str
    radius: float
    angle: float
    jitter: tuple[float, ...]


def prompt_of(spec: Spec) -> str:
    """The sentence that describes a video, e.g. `a red circle moves left over sand`."""
    article = "an" if spec.colour[0] in "aeiou" else "a"
    return f"{article} {spec.colour} {spec.shape} {spec.motion} over {spec.background}"


def prompt_words() -> tuple[str, ...]:
    """Every word that a demo prompt can hold, lower case."""
    words = " ".join(("a", "an", "over", *SHAPES, *COLOURS, *MOTIONS, *BACKGROUNDS)).split()
    return tuple(dict.fromkeys(words))


def is_held_out(prompt: str) -> bool:
    """Whether a combination of shape, colour, motion and background is kept out of training."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0


def _draw_spec(rng: np.random.Generator) -> Spec:
    shape = SHAPES[rng.integers(len(SHAPES))]
    motions = MOTIONS[:-1] if shape in ROUND_SHAPES else MOTIONS
    return Spec(
        shape=shape,
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        motion=motions[rng.integers(len(motions))],
        background=list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))],
        radius=float(rng.uniform(0.27, 0.31)),
        angle=float(rng.uniform(-0.1, 0.1)),
        jitter=tuple(float(v) for v in rng.random(8)),
    )


def spec_of(seed: int, held_out: bool = False) -> Spec:
    """The video of a seed, out of the training combinations or out of the held-out ones."""
    rng = np.random.default_rng([seed, int(held_out)])
    while True:
        spec = _draw_spec(rng)
        if is_held_out(prompt_of(spec)) == held_out:
            return spec


# ---- drawing


@dataclass(frozen=True)
class Window:
    """A part of a clip: first frame, top and left pixel, number of frames, height and width in pixels."""

    frame: int
    top: int
    left: int
    frames: int
    height: int
    width: int


def _grid(size: tuple[int, int], window: Window) -> tuple[Tensor, Tensor]:
    """Pixel centres (y, x) of a window, each (H, W), in short sides from the centre of the whole frame."""
    side = min(size)
    y = (torch.arange(window.height) + window.top + 0.5 - size[0] / 2) / side
    x = (torch.arange(window.width) + window.left + 0.5 - size[1] / 2) / side
    return tuple(torch.meshgrid(y, x, indexing="ij"))


def _polygon(x: Tensor, y: Tensor, corners: int, apothem: float) -> Tensor:
    """Signed distance to a regular polygon of unit scale standing on a side (y points down)."""
    sides = [2 * math.pi * k / corners + math.pi / 2 for k in range(corners)]
    return torch.stack([x * math.cos(a) + y * math.sin(a) for a in sides]).amax(0) - apothem


def _cross(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.maximum(x.abs() - 1.0, y.abs() - 0.36)
    return torch.minimum(wide, torch.maximum(x.abs() - 0.36, y.abs() - 1.0))


_DISTANCE = {
    "circle": lambda x, y: torch.hypot(x, y) - 0.92,
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.82,
    "triangle": lambda x, y: _polygon(x, y, 3, 0.58),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.74).abs() - 0.26,
    "cross": _cross,
}


def _sand(x: Tensor, y: Tensor, j: Sequence[float]) -> Tensor:
    bend = 0.05 * torch.sin(2 * math.pi * (1.3 * x + j[0]))
    return 0.5 + 0.5 * torch.sin(2 * math.pi * (3.0 * (y + bend) + j[1]))


def _grass(x: Tensor, y: Tensor, j: Sequence[float]) -> Tensor:
    lean = 0.04 * torch.sin(2 * math.pi * (1.5 * y + j[0]))
    return 0.5 + 0.5 * torch.sin(2 * math.pi * (4.0 * (x + lean) + j[1]))


def _water(x: Tensor, y: Tensor, j: Sequence[float]) -> Tensor:
    first = torch.sin(2 * math.pi * (1.6 * x + 2.4 * y + j[0]))
    return 0.5 + 0.25 * (first + torch.sin(2 * math.pi * (2.2 * x - 1.4 * y + j[1])))


def _bricks(x: Tensor, y: Tensor, j: Sequence[float]) -> Tensor:
    """1 on the mortar, 0 on the bricks; joints are about 0.03 short sides wide."""
    row = (y + j[0]) / 0.25
    column = (x + j[1]) / 0.50 + 0.5 * (torch.floor(row) % 2)
    to_row = (row - torch.round(row)).abs() * 0.25
    to_column = (column - torch.round(column)).abs() * 0.50
    return ((0.028 - torch.minimum(to_row, to_column)) / 0.014).clamp(0, 1)


def _night(x: Tensor, y: Tensor, j: Sequence[float]) -> Tensor:
    """Soft stars on a slanted lattice, 0 elsewhere."""
    u = (x * 0.94 + y * 0.34) / 0.36 + j[0]
    v = (y * 0.94 - x * 0.34) / 0.36 + j[1]
    du, dv = (u - torch.round(u)) * 0.36, (v - torch.round(v)) * 0.36
    return torch.exp(-(du**2 + dv**2) / (2 * 0.02**2))


_TEXTURE = {"sand": _sand, "grass": _grass, "water": _water, "bricks": _bricks, "night": _night}


def _background(spec: Spec, grid: tuple[Tensor, Tensor]) -> Tensor:
    """Still background (3, H, W) in [0, 1]."""
    y, x = grid
    first, second = (torch.tensor(c)[:, None, None] for c in BACKGROUNDS[spec.background])
    mix = _TEXTURE[spec.background](x, y, spec.jitter)
    light = 1.0 + 0.25 * (spec.jitter[2] - 0.5) + 0.25 * (spec.jitter[3] - 0.5) * x
    return ((first + (second - first) * mix) * light).clamp(0, 1)


def trajectory(spec: Spec, frames: int) -> dict[str, Tensor]:
    """Where the shape is: `x`, `y` (short sides from the centre), `scale`, `angle`, each (frames,) float32."""
    u = torch.linspace(-1.0, 1.0, frames)
    still = torch.zeros(frames)
    off_x, off_y = 0.08 * (spec.jitter[4] - 0.5), 0.08 * (spec.jitter[5] - 0.5)
    reach = 0.20 + 0.04 * spec.jitter[6]
    way = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
    dx, dy = way.get(spec.motion, (0, 0))
    growth = {"grows": 0.4, "shrinks": -0.4}.get(spec.motion, 0.0)
    turn = 1.0 if spec.motion == "spins" else 0.0
    return {
        "x": still + off_x + dx * reach * u,
        "y": still + off_y + dy * reach * u,
        "scale": still + spec.radius * (1.0 + growth * u),
        "angle": still + spec.angle + turn * u,
    }


def shape_cover(spec: Spec, size: tuple[int, int], frames: int, window: Window) -> tuple[Tensor, Tensor]:
    """Anti-aliased cover of the shape, and of its inside without the outline, each (F, H, W) in [0, 1]."""
    y, x = _grid(size, window)
    chosen = slice(window.frame, window.frame + window.frames)
    where = {name: value[chosen, None, None] for name, value in trajectory(spec, frames).items()}
    x, y = x - where["x"], y - where["y"]
    cos, sin = torch.cos(where["angle"]), torch.sin(where["angle"])
    x, y = (x * cos + y * sin) / where["scale"], (y * cos - x * sin) / where["scale"]
    pixels = _DISTANCE[spec.shape](x, y) * where["scale"] * min(size)
    outline = 0.012 * min(size)
    return (0.5 - pixels).clamp(0, 1), (0.5 - outline - pixels).clamp(0, 1)


def render_one(
    spec: Spec, size: tuple[int, int] = (192, 192), frames: int = 17, window: Window | None = None
) -> Tensor:
    """One video, (3, F, H, W) float32 in [-1, 1].

    Args:
        spec: what to draw.
        size: (height, width) of the whole frame in pixels.
        frames: number of frames of the whole clip; the motion always takes all of it.
        window: the part to draw; default: all.
    """
    window = window or Window(0, 0, 0, frames, *size)
    cover, inside = shape_cover(spec, size, frames, window)
    background = _background(spec, _grid(size, window))[:, None]
    colour = torch.tensor(COLOURS[spec.colour])[:, None, None, None]
    ink = colour * (0.45 + 0.55 * inside)
    return (background + (ink - background) * cover) * 2 - 1


def render(specs: Sequence[Spec], size: tuple[int, int] = (192, 192), frames: int = 17) -> Tensor:
    """A batch of whole videos, (B, 3, F, H, W) float32 in [-1, 1]; arguments as for `render_one`."""
    return torch.stack([render_one(spec, size, frames) for spec in specs])


def first_frame(spec: Spec, size: tuple[int, int], frames: int = 17) -> Image.Image:
    """The first frame of a video as a picture, for image-to-video; arguments as for `render_one`."""
    pixels = render_one(spec, size, frames)[:, 0]
    return Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
