"""Quality of a cached video against the uncached one: PSNR, SSIM and, where it is installed, LPIPS.

They are computed as in papers on caching (arXiv 2411.19108, 2511.00090): on RGB frames in [0, 1], each against the
frame of the same index, averaged over frames. A frame that equals its reference has an infinite PSNR. Means of PSNR are
taken over the other frames, so that one equal frame does not make the whole video look perfect. They are infinite only
if all frames are equal.
"""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from lemica.errors import Refused, require
from lemica.quality.configs import LOSSLESS_SUFFIX, config_beside
from lemica.streams import Unfailing

# With its dependencies it would bring another torch.
HOW_TO_GET_LPIPS = (
    "pip install --no-deps lpips && python -c 'import lpips; lpips.LPIPS(net=\"alex\")', beside the torchvision of "
    "your torch"
)

Frame = np.ndarray
Metric = Callable[[Frame, Frame], float]


def psnr(reference: Frame, cached: Frame) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal frames.

    Args:
        reference: the frame without caching, (H, W, 3), float RGB in [0, 1].
        cached: the same frame of the cached video.

    Example:
        >>> round(psnr(np.zeros((16, 16, 3)), np.full((16, 16, 3), 0.1)), 6)
        20.0
    """
    peak_signal_noise_ratio = _require("skimage.metrics").peak_signal_noise_ratio
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(reference, cached, data_range=1))


def ssim(reference: Frame, cached: Frame) -> float:
    """Structural similarity with the 11 x 11 Gaussian of Wang et al. 2004, mean over channels; 1 for equal frames.

    scikit-image cuts the Gaussian at 3.5 sigma, five pixels to each side, and leaves out a border of that width.

    Args:
        reference: the frame without caching, (H, W, 3), float RGB in [0, 1].
        cached: the same frame of the cached video.

    Example:
        >>> frame = np.linspace(0, 1, 16 * 16 * 3).reshape(16, 16, 3)
        >>> ssim(frame, frame)
        1.0
    """
    structural_similarity = _require("skimage.metrics").structural_similarity
    window = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(structural_similarity(reference, cached, data_range=1, channel_axis=-1, **window))


def _require(name: str):
    """Imported only where it is used: planning masks needs none of these packages."""
    return require(name, extra="quality", purpose="comparing videos")


@dataclass(frozen=True)
class Quality:
    """One number per frame.

    Args:
        psnr: in dB, infinite for a frame that equals its reference.
        ssim: at most 1.
        lpips: at least 0; None where it was not measured.
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    lpips: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Means:
    """Means over the frames of a video, or over several videos, and the PSNR of the worst frame."""

    psnr: float
    worst_psnr: float
    ssim: float
    lpips: float | None


def means_of(quality: Quality) -> Means:
    """Means over the frames of a video.

    Example:
        >>> means_of(Quality(psnr=(math.inf, 30.0, 40.0), ssim=(1.0, 0.875, 0.9375)))
        Means(psnr=35.0, worst_psnr=30.0, ssim=0.9375, lpips=None)
    """
    lpips = None if quality.lpips is None else _mean(quality.lpips)
    return Means(_mean_psnr(quality.psnr), min(quality.psnr), _mean(quality.ssim), lpips)


def means_over(videos: Sequence[Means]) -> Means:
    """Means over videos of their means over frames, and the worst frame of all."""
    lpips = [video.lpips for video in videos if video.lpips is not None]
    return Means(
        psnr=_mean_psnr([video.psnr for video in videos]),
        worst_psnr=min(video.worst_psnr for video in videos),
        ssim=_mean([video.ssim for video in videos]),
        lpips=_mean(lpips) if len(lpips) == len(videos) else None,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_psnr(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return _mean(finite) if finite else math.inf


def measure(reference: Path, cached: Path, lpips: Metric | None = None) -> Quality:
    """Compare two video files frame by frame, with one pair of frames in memory at a time.

    Args:
        reference: the video without caching.
        cached: the video of the same prompt and seed with caching.
        lpips: what ``load_lpips`` returns; None leaves LPIPS out.

    Raises Refused if a file is not a video, or if they differ in the number or the size of their frames.

    Example:
        >>> quality = measure(Path("uncached_lossless.mkv"), Path("b25_lossless.mkv"))
        >>> len(quality.psnr), f"{means_of(quality).psnr:.2f} dB"
        (48, '39.86 dB')
    """
    tqdm = _require("tqdm").tqdm
    shapes = shape(reference), shape(cached)
    if shapes[0] != shapes[1]:
        raise Refused(
            f"cannot compare {reference} ({_in_words(shapes[0])}) with {cached} ({_in_words(shapes[1])}): "
            "give videos of one request"
        )
    metrics = [psnr, ssim, lpips] if lpips else [psnr, ssim]
    pairs = zip(frames(reference), frames(cached), strict=True)
    progress = tqdm(pairs, cached.name, shapes[0][0], unit="frame", leave=False, disable=None, file=Unfailing())
    rows = [[metric(*pair) for metric in metrics] for pair in progress]
    return Quality(*zip(*rows, strict=True))


def shape(path: Path) -> tuple[int, int, int]:
    """Frames, height and width of a video file; frames are counted by decoding them."""
    with _open(path) as (size, raw_frames):
        width, height = size
        return sum(1 for _ in raw_frames), height, width


def frames(path: Path) -> Iterator[Frame]:
    """The frames of a video file as they are stored, (H, W, 3), float32 RGB in [0, 1]; whatever their time stamps."""
    with _open(path) as ((width, height), raw_frames):
        for frame in raw_frames:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3).astype(np.float32) / 255


@contextmanager
def _open(path: Path) -> Iterator[tuple[tuple[int, int], Iterator[bytes]]]:
    """Width and height of a video file, and its frames."""
    if not path.is_file():
        raise Refused(f"there is no video {path}")
    ffmpeg = _require("imageio_ffmpeg")
    # The whole path, because ffmpeg takes what stands before a colon for a protocol.
    reader = ffmpeg.read_frames(os.path.abspath(path), output_params=_every_frame_once(ffmpeg.get_ffmpeg_version()))
    with closing(reader):
        try:
            size = next(reader)["size"]
            first = next(reader)
        except (OSError, RuntimeError, ValueError, IndexError, KeyError, StopIteration) as error:
            raise Refused(f"{path} is not a video that can be read: give an .mp4 or .mkv file") from error
        yield size, chain([first], _rest(path, reader))


def _rest(path: Path, reader: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from reader
    except RuntimeError as error:
        raise Refused(f"{path} cannot be read to its end: generate it again") from error


def _every_frame_once(version: str) -> list[str]:
    """Options with which ffmpeg neither doubles nor drops frames to keep a frame rate; -fps_mode came with 5.1."""
    found = re.match(r"n?(\d+)\.", version)
    return ["-vsync", "passthrough"] if found and int(found[1]) < 6 else ["-fps_mode", "passthrough"]


def _in_words(frames_height_width: tuple[int, int, int]) -> str:
    count, height, width = frames_height_width
    return f"{count} frames of {width} x {height}"


def files_to_measure(videos: Sequence[Path]) -> list[Path]:
    """The lossless copies of these videos if all have one, else the videos themselves, never some of each.

    Raises Refused where two videos have one copy: it can be of one of them only.
    """
    copies = [lossless_copy(video) for video in videos]
    if not all(copies):
        return list(videos)
    owners: dict[Path, Path] = {}
    for video, copy in zip(videos, copies, strict=True):
        other = owners.setdefault(copy.resolve(), video)
        if other.resolve() != video.resolve():
            raise Refused(
                f"{other} and {video} have one lossless copy, {copy.name}, which belongs to one of them: give other "
                "names to one of them and its copy, or type lemica compare --as_given to compare the files themselves"
            )
    return copies


def lossless_copy(video: Path) -> Path | None:
    """NAME_lossless.mkv beside NAME.mp4, as ``generate.py --save_lossless true`` writes it, or None.

    A lossless copy is its own copy. Where there is a NAME_config.json, the copy must be of the run that wrote it, as
    must be the video: a copy that is left over from an earlier run of that name does not count.
    """
    if is_lossless(video):
        return video
    copy = video.with_name(video.stem + LOSSLESS_SUFFIX)
    if not copy.is_file():
        return None
    config = config_beside(video)
    if config is None:
        return copy
    return copy if config.has_lossless() and config.owns(video) and config.owns(copy) else None


def is_lossless(video: Path) -> bool:
    """Whether this is a lossless copy, by its name."""
    return video.stem.endswith("_lossless")


def load_lpips() -> Metric | None:
    """LPIPS with AlexNet (Zhang et al. 2018), or None where the package or its weights are not on this machine.

    Nothing is downloaded here: the package itself would fetch AlexNet's weights where they are missing.
    """
    try:
        import lpips
        import torch
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError):  # RuntimeError: torchvision was built for another torch.
        return None
    weights = AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    if not Path(torch.hub.get_dir(), "checkpoints", weights).is_file():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The package calls torchvision by its old names.
        network = lpips.LPIPS(net="alex", verbose=False).eval()

    @torch.inference_mode()
    def distance(reference: Frame, cached: Frame) -> float:
        pair = (torch.from_numpy(frame).permute(2, 0, 1)[None] for frame in (reference, cached))
        return network(*pair, normalize=True).item()

    return distance
