"""Runs as generate.py leaves them in a folder, and what each costs and gives against the uncached one."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from lemica.metrics import Means, Metric, files_to_measure, is_lossless, load_lpips, means_of, measure, shape

COLUMNS = ("run", "budget", "computed", "DiT s", "speed-up", "PSNR", "worst", "SSIM", "LPIPS", "mask", "reuse")
NO_CACHE = "no cache"
PLAYABLE = {".mp4": "video/mp4", ".webm": "video/webm"}
CONFIG_SUFFIX = "_config.json"


@dataclass(frozen=True)
class Request:
    """What was asked for; runs are comparable only if they agree in it. `image` is None for text-to-video."""

    prompt: str
    seed: int
    model: str
    image: str | None


@dataclass(frozen=True)
class Run:
    """One video: NAME.mp4 and what NAME_config.json tells of its making; times in seconds.

    `computed_steps` is None for caches other than lemica, which do not report theirs. `rule` says how reused steps are
    made up, None where none is. `speedup` is the reference's DiT seconds over this run's, `quality` None for the
    reference itself.
    """

    name: str
    video: Path
    request: Request
    num_steps: int
    computed_steps: tuple[int, ...] | None
    origin: str
    rule: str | None
    step_seconds: tuple[float, ...]
    dit_seconds: float
    total_seconds: float
    speedup: float = math.nan
    quality: Means | None = None

    @property
    def computed(self) -> int | None:
        return None if self.computed_steps is None else len(self.computed_steps)

    @property
    def is_complete(self) -> bool:
        return self.computed == self.num_steps

    @property
    def budget(self) -> int | None:
        return None if self.origin == NO_CACHE else self.computed

    def cells(self) -> tuple[str, ...]:
        """The run as a line of a table with COLUMNS; what it has not is "-"."""
        computed = "-" if self.computed is None else f"{self.computed} of {self.num_steps}"
        times = computed, f"{self.dit_seconds:.2f}", f"{self.speedup:.2f}"
        return self.name, str(self.budget or "-"), *times, *_quality_cells(self.quality), self.origin, self.rule or "-"


def _quality_cells(quality: Means | None) -> tuple[str, str, str, str]:
    if quality is None:
        return ("-",) * 4
    lpips = "-" if quality.lpips is None else f"{quality.lpips:.4f}"
    return f"{quality.psnr:.2f}", f"{quality.worst_psnr:.2f}", f"{quality.ssim:.4f}", lpips


@dataclass(frozen=True)
class Section:
    """The runs of one request, the reference first, then by falling number of computed steps; sizes in pixels."""

    request: Request
    frames: int
    height: int
    width: int
    lossless: bool
    runs: tuple[Run, ...]

    @property
    def reference(self) -> Run:
        return self.runs[0]


def summarise(run_dir: Path) -> list[Section]:
    """Read and measure the runs in a folder, or in its subfolders with one request each.

    Raises ValueError, in one line, if there are no runs, no uncached one among them, or if they do not belong together.
    """
    lpips = load_lpips()
    return [_section(folder, lpips) for folder in _folders_of_runs(run_dir)]


def _folders_of_runs(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a folder: give the folder that generate.py wrote videos to")
    subfolders = sorted(path for path in run_dir.iterdir() if path.is_dir())
    folders = [run_dir] if _configs(run_dir) else [folder for folder in subfolders if _configs(folder)]
    if not folders:
        raise ValueError(f"{run_dir} holds no runs: no NAME.mp4 with NAME{CONFIG_SUFFIX}, as generate.py writes them")
    return folders


def _configs(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{CONFIG_SUFFIX}"))


def _section(folder: Path, lpips: Metric | None) -> Section:
    runs = [read_run(path) for path in _configs(folder)]
    reference = _reference(runs, folder)
    others = sorted((run for run in runs if run is not reference), key=lambda run: (-(run.computed or 0), run.name))
    for run in others:
        _refuse_other_request(run, reference)
    source, *videos = files_to_measure([reference.video, *(run.video for run in others)])
    measured = [
        replace(run, speedup=reference.dit_seconds / run.dit_seconds, quality=means_of(measure(source, video, lpips)))
        for run, video in zip(others, videos, strict=True)
    ]
    lossless = all(map(is_lossless, [source, *videos]))
    return Section(reference.request, *shape(source), lossless, (replace(reference, speedup=1.0), *measured))


def read_run(config_path: Path) -> Run:
    """Read one run; raises ValueError if its config or its video is not as generate.py leaves them."""
    try:
        config = json.loads(config_path.read_bytes())
        name = config_path.name.removesuffix(CONFIG_SUFFIX)
        video = config_path.with_name(name + Path(config["output_path"]).suffix)
        run = _run(video, config, config["arguments"], config["report"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{config_path} is not a config with a run report, as this kit's generate.py writes"
        ) from error
    if video.suffix.lower() not in PLAYABLE:
        raise ValueError(f"{video}: browsers do not play {video.suffix}, generate with --output_path NAME.mp4")
    if not video.is_file():
        raise ValueError(f"{config_path.name} has no video beside it: there is no {video}")
    if len(run.step_seconds) != run.num_steps:
        raise ValueError(f"{config_path} has {len(run.step_seconds)} step times for {run.num_steps} steps")
    return run


def _run(video: Path, config: dict, arguments: dict, report: dict) -> Run:
    other_cache = arguments["cache_type"] if arguments["enable_cache"] and arguments["cache_type"] != "lemica" else None
    return Run(
        name=video.stem,
        video=video,
        request=Request(
            arguments["prompt"], arguments["seed"], config["transformer_version"], arguments.get("image_path")
        ),
        num_steps=int(report["num_steps"]),
        computed_steps=None if other_cache else tuple(map(int, report["computed_steps"])),
        origin=other_cache or report["mask_origin"],
        rule=_rule(report),
        step_seconds=tuple(map(float, report["step_seconds"])),
        dit_seconds=float(report["dit_seconds"]),
        total_seconds=float(report["total_seconds"]),
    )


def _rule(report: dict) -> str | None:
    """Names as a rule prints them; reports of runs that reuse nothing have none."""
    return f"{report['reuse']} + {report['forecast']}" if report.get("reuse") else None


def _reference(runs: list[Run], folder: Path) -> Run:
    """The run with all steps computed; of several the one with most, so that fewer steps can be compared as well."""
    complete = [run for run in runs if run.is_complete]
    if not complete:
        raise ValueError(f"{folder} has no reference: generate the same prompt and seed without --enable_cache")
    return max(complete, key=lambda run: (run.num_steps, run.origin == NO_CACHE))


def _refuse_other_request(run: Run, reference: Run) -> None:
    for field, value in vars(run.request).items():
        expected = getattr(reference.request, field)
        if value != expected:
            raise ValueError(
                f"{run.video} has {field} {value!r}, but {reference.video.name} {expected!r}: "
                "put the runs of every prompt and seed into a folder of its own"
            )
