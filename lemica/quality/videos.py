"""The videos of an evaluation: OUTPUT/videos/SAMPLE/METHOD.mp4, for people and for the page."""

import re
from pathlib import Path

import numpy as np

from lemica.errors import RefusedHere, in_words, require
from lemica.files import replacing
from lemica.quality.evaluation import Measured, Request
from lemica.quality.kept import GOES_ON
from lemica.quality.metrics import shape
from lemica.quality.models import Method

FRAMES_PER_SECOND = 24
_LONGEST_NAME = 60


class NoVideos:
    """Nothing is saved."""

    def save(self, sample: int, request: Request, method: Method, frames: np.ndarray) -> str | None:
        return None

    def has(self, measured: Measured) -> bool:
        return True


class Videos:
    """One file for each sample and method.

    Args:
        folder: the evaluation's.

    Raises Refused where the packages that write videos are missing.
    """

    def __init__(self, folder: Path):
        require_writer()
        self.folder = folder

    def save(self, sample: int, request: Request, method: Method, frames: np.ndarray) -> str | None:
        """Write what a method made of a sample; gives the file as a path from the evaluation's folder.

        Args:
            sample: its number.
            request: what it shows, for the folder's name.
            method: what made it. The file's name tells it from others of the same name, too.
            frames: (F, H, W, 3), float RGB in [0, 1].

        Raises RefusedHere, saying what to do, where the disk does not take it.
        """
        place = f"{sample:03d}_{safe_name(request.prompt)}_seed{request.seed}"
        path = Path("videos", place, f"{safe_name(method.name)}.{method.digest[:6]}.mp4")
        try:
            write_video(frames, self.folder / path)
        except OSError as error:
            raise RefusedHere(in_words(error) + GOES_ON) from error
        return path.as_posix()

    def has(self, measured: Measured) -> bool:
        """Whether the video of these numbers is there: without it the run is made again."""
        return measured.video is not None and (self.folder / measured.video).is_file()


def safe_name(text: str) -> str:
    """A text as part of a file's name, on any system.

    >>> safe_name("budget 25, balanced"), safe_name("../a: b?")
    ('budget_25_balanced', 'a_b')
    """
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text)[:_LONGEST_NAME].strip("._")


def require_writer() -> None:
    """Raises Refused where the packages that write videos are missing."""
    for name in ("imageio.v2", "imageio_ffmpeg"):
        require(name, extra="quality", purpose="--save_videos")


def write_video(frames: np.ndarray, path: Path) -> None:
    """Write an H.264 mp4 of 24 frames per second beside its name, and move it when it is whole.

    Args:
        frames: (F, H, W, 3), float RGB in [0, 1].
        path: the file.

    Raises OSError where it cannot be written, or where what was written has not as many frames.
    """
    import imageio.v2 as imageio

    with replacing(path) as temporary:
        try:
            with imageio.get_writer(temporary, fps=FRAMES_PER_SECOND) as writer:
                for frame in frames:
                    writer.append_data((frame * 255).clip(0, 255).astype(np.uint8))
        except (RuntimeError, ValueError) as error:
            raise OSError(None, in_words(error)[-200:], str(path)) from error
        if (found := shape(temporary)[0]) != len(frames):
            raise OSError(None, f"of {len(frames)} frames {found} can be read again", str(path))
