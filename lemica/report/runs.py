"""Runs as generate.py leaves them in a folder, and what each costs and gives against the uncached one."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from lemica.errors import Refused
from lemica.quality.metrics import Means, Metric, files_to_measure, is_lossless, load_lpips, means_of, measure, shape

NO_CACHE = "no cache"
PLAYABLE = {".mp4": "video/mp4", ".webm": "video/webm"}
CONFIG_SUFFIX = "_config.json"


@dataclass(frozen=True)
class Request:
    """What was asked for; runs can be compared only if they agree in it. `image` is None for text-to-video."""

    prompt: str
    seed: int
    model: str
    image: str | None


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
    return [_section(folder, lpips) for folder in _folders_of_runs(run_dir)]


def _folders_of_runs(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        raise Refused(f"{run_dir} is not a folder: give the folder that generate.py wrote videos to")
    subfolders = sorted(path for path in run_dir.iterdir() if path.is_dir())
    folders = [run_dir] if _configs(run_dir) else [folder for folder in subfolders if _configs(folder)]
    if not folders:
        raise Refused(
            f"{run_dir} holds no runs: give a folder with NAME.mp4 and NAME{CONFIG_SUFFIX}, as generate.py writes them"
        )
    return folders


def _configs(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{CONFIG_SUFFIX}"))


def _section(folder: Path, lpips: Metric | None) -> Section:
    runs = [read_run(path) for path in _configs(folder)]
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
    try:
        config = json.loads(config_path.read_bytes())
        name = config_path.name.removesuffix(CONFIG_SUFFIX)
        video = config_path.with_name(name + Path(config["output_path"]).suffix)
        run = _run(video, config, config["arguments"], config["report"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{config_path} is no config with a run report: generate the video again with this kit's generate.py"
        ) from error
    if video.suffix.lower() not in PLAYABLE:
        raise Refused(f"{video}: browsers do not play {video.suffix}, generate with --output_path NAME.mp4")
    if not video.is_file():
        raise Refused(f"{config_path.name} has no video beside it: there is no {video}")
    if len(run.step_seconds) != run.num_steps:
        raise Refused(
            f"{config_path} has {len(run.step_seconds)} step times for {run.num_steps} steps: generate the video again"
        )
    return run


def _run(video: Path, config: dict, arguments: dict, report: dict) -> VideoRun:
    other_cache = arguments["cache_type"] if arguments["enable_cache"] and arguments["cache_type"] != "lemica" else None
    computed_steps = None if other_cache else tuple(map(int, report["computed_steps"]))
    step_seconds = tuple(map(float, report["step_seconds"]))
    return VideoRun(
        name=video.stem,
        video=video,
        request=Request(
            arguments["prompt"], arguments["seed"], config["transformer_version"], arguments.get("image_path")
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
    for field, value in vars(run.request).items():
        expected = getattr(reference.request, field)
        if value != expected:
            raise Refused(
                f"{run.video} has {field} {value!r}, but {reference.video.name} {expected!r}: "
                "put the runs of every prompt and seed into a folder of its own"
            )
