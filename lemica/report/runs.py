"""Runs as generate.py leaves them in a folder, and what each costs and gives against the uncached one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from lemica.errors import Refused, refusing
from lemica.quality.configs import CONFIG_SUFFIX, LOSSLESS_SUFFIX, Config, different, read_config, refuse_changed
from lemica.quality.metrics import Means, Metric, files_to_measure, is_lossless, load_lpips, means_of, measure, shape
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
        origin: of the mask: "released", "derived", "planned", or "no cache", or the name of another cache.
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


@dataclass(frozen=True)
class Section:
    """The runs of one request: the reference first, then by falling number of computed steps. Sizes are in pixels."""

    request: Request
    frames: int
    height: int
    width: int
    lossless: bool
    runs: tuple[VideoRun, ...]

    @property
    def reference(self) -> VideoRun:
        return self.runs[0]


def summarise(run_dir: Path) -> list[Section]:
    """Read and measure the runs in a folder, or in its subfolders with one request each.

    Args:
        run_dir: the folder that generate.py wrote videos and configs to.

    Raises Refused if there are no runs, no uncached one among them, or if they do not belong together.

    Example:
        >>> (section,) = summarise(Path("."))
        >>> [(run.name, run.budget, f"{run.speedup:.2f}") for run in section.runs]
        [('uncached', 50, '1.00'), ('b25', 25, '2.00'), ('b10', 10, '4.96')]
    """
    lpips = load_lpips()
    return [_section(folder, configs, lpips) for folder, configs in _folders_of_runs(run_dir).items()]


def _folders_of_runs(run_dir: Path) -> dict[Path, list[Config]]:
    """The configs of every folder of runs: of `run_dir`, or else of its subfolders."""
    if not run_dir.is_dir():
        raise Refused(f"{run_dir} is not a folder: give the folder that generate.py wrote videos to")
    with refusing(OSError):
        subfolders = sorted(path for path in run_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    own = _configs(run_dir)
    found = {run_dir: own} if own else {folder: configs for folder in subfolders if (configs := _configs(folder))}
    if not found:
        raise Refused(
            f"{run_dir} holds no runs: give a folder with NAME.mp4 and NAME{CONFIG_SUFFIX}, as generate.py writes them"
        )
    return found


def _configs(folder: Path) -> list[Config]:
    """The configs in a folder, by name. Hidden files are none, such as what other systems leave beside every file."""
    paths = sorted(
        path for path in folder.glob(f"*{CONFIG_SUFFIX}") if path.is_file() and not path.name.startswith(".")
    )
    return [config for path in paths if (config := _own_config(path))]


def _own_config(path: Path) -> Config | None:
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


def _section(folder: Path, configs: list[Config], lpips: Metric | None) -> Section:
    runs = [_run_of(config) for config in configs]
    old = [config.path.name for config in configs if config.files is None]
    if old:
        warn(f"{', '.join(old)} in {folder}: of an older kit, so nothing says that the videos there are of these runs")
    reference = _reference(runs, folder)
    others = sorted((run for run in runs if run is not reference), key=lambda run: (-(run.budget or 0), run.name))
    for run in others:
        _refuse_other_request(run, reference)
    source, *videos = files_to_measure([reference.video, *(run.video for run in others)])
    compared = [
        replace(run, speedup=speedup_of(run, reference), quality=means_of(measure(source, video, lpips)))
        for run, video in zip(others, videos, strict=True)
    ]
    lossless = all(map(is_lossless, [source, *videos]))
    return Section(reference.request, *shape(source), lossless, (replace(reference, speedup=1.0), *compared))


def read_run(config_path: Path) -> VideoRun:
    """Read one run; raises Refused if its config or its video is not as generate.py leaves them.

    Example:
        >>> read_run(Path("b10_config.json")).computed_steps
        (0, 1, 3, 5, 9, 17, 25, 33, 41, 49)
    """
    config = _own_config(config_path)
    if config is None:
        raise Refused(f"{config_path} is no config with a run report: {_GENERATE_AGAIN}")
    return _run_of(config)


def _run_of(config: Config) -> VideoRun:
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


def _reference(runs: list[VideoRun], folder: Path) -> VideoRun:
    """The run with all steps computed; of several the one with most, so that fewer steps can be compared as well."""
    complete = [run for run in runs if run.is_complete]
    if not complete:
        raise Refused(f"{folder} has no reference: generate the same prompt and seed without --enable_cache")
    return max(complete, key=lambda run: (run.num_steps, run.origin == NO_CACHE))


def _refuse_other_request(run: VideoRun, reference: VideoRun) -> None:
    difference = different(run.request.decided, reference.request.decided)
    if difference:
        raise Refused(
            f"{run.video} and {reference.video.name} are of different requests, {difference}: put the runs of every "
            "request into a folder of its own"
        )
