"""The runs of many requests as a grid page that stands beside their videos, with relative links to them."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from urllib.parse import quote

from lemica.errors import refusing
from lemica.report.grid import Cell, GridRequest, render_grid
from lemica.report.groups import Group
from lemica.report.runs import Section
from lemica.report.video_run import VideoRun


def render_beside(sections: Sequence[Section], page: Path, table: Sequence[str]) -> str:
    """The grid page as HTML.

    Args:
        sections: what ``measured`` returns.
        page: where it will be written; links lead from there.
        table: all numbers, as lines of text.
    """
    requests = [_request(section, page) for section in sections]
    return render_grid(f"{len(sections)} prompts", requests, facts(sections), "\n".join(table).strip())


def refuse_no_way(groups: Sequence[Group], page: Path) -> None:
    """Refuse a page that cannot refer to these runs by relative links."""
    for run in (run for group in groups for run in group):
        link(run.video, page)


def link(video: Path, page: Path) -> str:
    """The relative URL of a video from a page; raises Refused where no way leads to it, such as from another drive.

    Example:
        >>> link(Path("runs/b25/a cat.mp4"), Path("pages/report.html"))
        '../runs/b25/a%20cat.mp4'
    """
    with refusing(ValueError, hint=f": name a page on the drive of {video}"):
        way = os.path.relpath(video, os.path.dirname(os.path.abspath(page)))
    return quote(os.fsencode(PurePath(way).as_posix()))


def facts(sections: Sequence[Section]) -> list[str]:
    """What the requests have in common, or all that they have, and what the figures are of."""
    found = [
        [section.request.model for section in sections],
        [f"{section.width} \xd7 {section.height}" for section in sections],
        [f"{section.frames} frames" for section in sections],
        [f"{section.reference.num_steps} steps" for section in sections],
        [f"quality of {'lossless copies' if section.lossless else 'compressed videos'}" for section in sections],
    ]
    return [*(" / ".join(dict.fromkeys(values)) for values in found), "time of the denoising steps"]


def _request(section: Section, page: Path) -> GridRequest:
    request = section.request
    return GridRequest(request.prompt, request.seed, tuple(_cell(run, page) for run in section.runs))


def _cell(run: VideoRun, page: Path) -> Cell:
    quality = run.quality
    figures = (None, None, None) if quality is None else (quality.psnr, quality.ssim, quality.lpips)
    return Cell(run.name, link(run.video, page), *figures, run.dit_seconds, run.speedup)
