"""One run as generate.py leaves it, NAME.mp4 with NAME_config.json: read, checked, and how fast it was."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from lemica.errors import Refused
from lemica.quality.configs import CONFIG_SUFFIX, LOSSLESS_SUFFIX, Config, read_config, refuse_changed
from lemica.quality.metrics import Means
from lemica.streams import warn

NO_CACHE = "no cache"
_GENERATE_AGAIN = "generate the video again with this kit's generate.py"
PLAYABLE = {".mp4": "video/mp4", ".webm": "video/webm"}


@dataclass(frozen=True)
class Request:
    """What was asked for, as the page shows it. `image` is None for text-to-video.

    `decided` is all that decided the picture: runs can be compared only if they agree in it.
    """

    prompt: str
    seed: int
    model: str
    image: str | None
    decided: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VideoRun:
    """One video NAME.mp4, and what NAME_config.json says of how it was made. Times are in seconds.

    Args:
        computed_steps: None for caches other than lemica, which do not report theirs.
        origin: of the mask: "released", "derived", "balanced", "planned", or "no cache", or the name of another cache.
        rule: what is kept and how reused steps use it; None where no step reuses anything.
        computed_step_seconds: the median over computed steps; None where it is not known which these are.
        reused_step_seconds: the same of reused steps; None too where there are none.
        speedup: against the reference, see ``speedup_of``.
        quality: against the reference; None for the reference itself.
    """

    name: str
    video: Path
    request: Request
    num_steps: int
    computed_steps: tuple[int, ...] | None
    origin: str
    rule: str | None
    step_seconds: tuple[float, ...]
    computed_step_seconds: float | None
    reused_step_seconds: float | None
    dit_seconds: float
    total_seconds: float
    speedup: float = math.nan
    quality: Means | None = None

    @property
    def budget(self) -> int | None:
        """How many steps were computed; None if the run does not say."""
        return None if self.computed_steps is None else len(self.computed_steps)

    @property
    def is_complete(self) -> bool:
        """Whether every step was computed."""
        return self.budget == self.num_steps


def speedup_of(run: VideoRun, reference: VideoRun) -> float:
    """How much faster the denoising steps of `run` are than those of `reference`, by the clock of `run` itself.

    With N steps in the reference, B computed and R reused steps in the run, and the medians c and r of their seconds:

        speed-up = N c / (B c + R r)

    which is N / B at most. The two runs' clocks are not compared, because a machine that is busier during one of them
    would change the ratio. Only a run that does not say which steps it computed is compared by its DiT seconds.
    """
    if run.computed_steps is None:
        return reference.dit_seconds / run.dit_seconds
    reused = run.num_steps - run.budget
    own_seconds = run.budget * run.computed_step_seconds + reused * (run.reused_step_seconds or 0)
    return reference.num_steps * run.computed_step_seconds / own_seconds


def read_run(config_path: Path) -> VideoRun:
    """Read one run; raises Refused if its config or its video is not as generate.py leaves them.

    Example:
        >>> read_run(Path("b10_config.json")).computed_steps
        (0, 1, 3, 5, 9, 17, 25, 33, 41, 49)
    """
    config = own_config(config_path)
    if config is None:
        raise Refused(f"{config_path} is no config with a run report: {_GENERATE_AGAIN}")
    return run_of(config)


def run_of(config: Config) -> VideoRun:
    path = config.path
    video = path.with_name(config.name + Path(config.content["output_path"]).suffix)
    try:
        run = _run(video, config, config.content["arguments"], config.content["report"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is no config with a run report: {_GENERATE_AGAIN}") from error
    if video.suffix.lower() not in PLAYABLE:
        raise Refused(f"{video}: browsers do not play {video.suffix}, generate with --output_path NAME.mp4")
    if not video.is_file():
        raise Refused(f"{path.name} has no video beside it: there is no {video}")
    _refuse_changed_files(video, config)
    if len(run.step_seconds) != run.num_steps:
        raise Refused(
            f"{path} has {len(run.step_seconds)} step times for {run.num_steps} steps: generate the video again"
        )
    return run


def _refuse_changed_files(video: Path, config: Config) -> None:
    """Refuse a video, or a lossless copy, of another run than its config."""
    refuse_changed(video, config)
    copy = video.with_name(config.name + LOSSLESS_SUFFIX)
    if config.files is not None and config.has_lossless() and copy.is_file():
        refuse_changed(copy, config)


def _run(video: Path, config: Config, arguments: dict, report: dict) -> VideoRun:
    other_cache = arguments["cache_type"] if arguments["enable_cache"] and arguments["cache_type"] != "lemica" else None
    computed_steps = None if other_cache else tuple(map(int, report["computed_steps"]))
    step_seconds = tuple(map(float, report["step_seconds"]))
    return VideoRun(
        name=video.stem,
        video=video,
        request=Request(
            *(config.request[name] for name in ("prompt", "seed", "model")),
            image=arguments.get("image_path"),
            decided=config.request,
        ),
        num_steps=int(report["num_steps"]),
        computed_steps=computed_steps,
        origin=other_cache or report["mask_origin"],
        rule=_rule(report),
        step_seconds=step_seconds,
        computed_step_seconds=_median_seconds(step_seconds, computed_steps, computed=True),
        reused_step_seconds=_median_seconds(step_seconds, computed_steps, computed=False),
        dit_seconds=float(report["dit_seconds"]),
        total_seconds=float(report["total_seconds"]),
    )


def _median_seconds(
    step_seconds: tuple[float, ...], computed_steps: tuple[int, ...] | None, computed: bool
) -> float | None:
    if computed_steps is None:
        return None
    seconds = [time for step, time in enumerate(step_seconds) if (step in computed_steps) == computed]
    return median(seconds) if seconds else None


def _rule(report: dict) -> str | None:
    return f"{report['reuse']} + {report['forecast']}" if report.get("reuse") else None


def own_config(path: Path) -> Config | None:
    """A config of generate.py; None, with a note, for a file of that name that something else wrote."""
    try:
        config = read_config(path)
    except ValueError as error:
        name = path.name.removesuffix(CONFIG_SUFFIX)
        if any(path.with_name(name + suffix).exists() for suffix in PLAYABLE):
            raise Refused(f"{path} is no config with a run report: {_GENERATE_AGAIN}") from error
        config = None
    if config is None:
        warn(f"{path} is left out: generate.py did not write it")
    return config
