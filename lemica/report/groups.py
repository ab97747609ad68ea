"""Which runs belong together: all of a folder and its subfolders, by request, with a name for each.

A folder may hold the runs of one request, or each of its subfolders may; or each subfolder holds many requests, as
generate.py --prompts writes them.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lemica.errors import Refused, refusing, require
from lemica.quality.configs import CONFIG_SUFFIX, Config, different
from lemica.report.video_run import NO_CACHE, VideoRun, own_config, run_of
from lemica.streams import Unfailing, warn

# The runs of one request: the reference first, then by falling number of computed steps.
Group = tuple[VideoRun, ...]


def read_groups(run_dir: Path) -> list[Group]:
    """The runs in a folder and its subfolders, by request, in the order of their names.

    Args:
        run_dir: the folder that generate.py wrote videos and configs to.

    Requests without a reference, or with nothing to compare it with, are left out with a note if there are others.
    Raises Refused if there are no runs, or none that can be compared.

    Example:
        >>> [[run.name for run in group] for group in read_groups(Path("."))]
        [['uncached', 'b25', 'b10']]
    """
    tqdm = require("tqdm", extra="quality", purpose="comparing videos").tqdm
    configs = _configs_of(run_dir)
    progress = tqdm(configs, "reading", unit="run", leave=False, disable=None, file=Unfailing())
    groups = grouped([run_of(config) for config in progress])
    if len(groups) == 1 and _has_reference(groups[0]):
        return named(groups)
    kept = [group for group in groups if _has_reference(group) and len(group) > 1]
    if not kept:
        raise Refused(_why_nothing_is_left(run_dir, groups))
    for group in groups:
        if group not in kept:
            warn(_why_left_out(group))
    return named(kept)


def _configs_of(run_dir: Path) -> list[Config]:
    """The configs of `run_dir`, then those of its subfolders."""
    if not run_dir.is_dir():
        raise Refused(f"{run_dir} is not a folder: give the folder that generate.py wrote videos to")
    with refusing(OSError):
        subfolders = sorted(path for path in run_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [config for folder in (run_dir, *subfolders) for config in _configs_in(folder)]
    if not found:
        raise Refused(
            f"{run_dir} holds no runs: give a folder with NAME.mp4 and NAME{CONFIG_SUFFIX}, as generate.py writes them"
        )
    return found


def _configs_in(folder: Path) -> list[Config]:
    """The configs in a folder, by name. Hidden files are none, such as what other systems leave beside every file."""
    paths = sorted(
        path for path in folder.glob(f"*{CONFIG_SUFFIX}") if path.is_file() and not path.name.startswith(".")
    )
    configs = [config for path in paths if (config := own_config(path))]
    old = [config.path.name for config in configs if config.files is None]
    if old:
        warn(f"{', '.join(old)} in {folder}: of an older kit, so nothing says that the videos there are of these runs")
    return configs


def grouped(runs: Sequence[VideoRun]) -> list[Group]:
    """Runs by what decided their pictures: each belongs to the first reference with which it agrees.

    The reference is the run with all steps computed; of several the one with most, so that fewer steps can be compared
    as well. Groups without one come too.
    """
    groups: list[list[VideoRun]] = []
    for run in sorted(runs, key=_as_reference):
        own = next((group for group in groups if not _difference(run, group[0])), None)
        if own is None:
            groups.append([run])
        else:
            own.append(run)
    place = {run.video: at for at, run in enumerate(runs)}
    return [tuple(group) for group in sorted(groups, key=lambda group: min(place[run.video] for run in group))]


def _as_reference(run: VideoRun) -> tuple:
    """Sorts before others what is the better reference."""
    return not run.is_complete, -run.num_steps, run.origin != NO_CACHE


def _has_reference(group: Group) -> bool:
    return group[0].is_complete


def _difference(run: VideoRun, other: VideoRun) -> str | None:
    return different(run.request.decided, other.request.decided)


def named(groups: Sequence[Group]) -> list[Group]:
    """Groups with a name for every run, by which those after the first are sorted.

    A run is named by its file. Where files of one request have the same name, their folders tell the methods apart, and
    name all runs in them. Where a folder holds many requests and several methods, names that say nothing of the method,
    such as 0000_seed1 and 0001_seed1, are replaced by what was done. Folder and file name what is not clear by then.
    """
    methods = {run.video.parent for group in groups for run in _alike(group, [run.video.stem for run in group])}
    names = [_files_or_folders(group, methods) for group in groups]
    requests_of_name = Counter(name for own in names for name in set(own))
    requests_of_folder = Counter(folder for group in groups for folder in {run.video.parent for run in group})
    for group, own in zip(groups, names, strict=True):
        is_mixed = any(requests_of_folder[run.video.parent] > 1 for run in group)
        if is_mixed and all(requests_of_name[name] == 1 for name in own):
            own[:] = map(_what_was_done, group)
    return [_sorted(_renamed(group, own)) for group, own in zip(groups, names, strict=True)]


def _files_or_folders(group: Group, methods: set[Path]) -> list[str]:
    return [_folder_name(run) if run.video.parent in methods else run.video.stem for run in group]


def _what_was_done(run: VideoRun) -> str:
    if run.budget is None:
        return run.origin
    return f"{run.num_steps} steps" if run.is_complete else f"B = {run.budget}, {run.origin}"


def _renamed(group: Group, names: Sequence[str]) -> Iterator[VideoRun]:
    unclear = _alike(group, names)
    for run, name in zip(group, names, strict=True):
        yield replace(run, name=f"{_folder_name(run)}/{run.video.stem}" if run in unclear else name)


def _alike(group: Group, names: Sequence[str]) -> list[VideoRun]:
    """The runs whose name another one has too."""
    count = Counter(names)
    return [run for run, name in zip(group, names, strict=True) if count[name] > 1]


def _folder_name(run: VideoRun) -> str:
    return os.path.basename(os.path.dirname(os.path.abspath(run.video)))


def _sorted(runs: Iterator[VideoRun]) -> Group:
    first, *others = runs
    return first, *sorted(others, key=lambda run: (-(run.budget or 0), run.name))


def _why_left_out(group: Group) -> str:
    if _has_reference(group):
        return f"{group[0].video} is left out: no other run of its request is there to be compared with it"
    more = f" and {len(group) - 1} more of its request are" if len(group) > 1 else " is"
    return f"{group[0].video}{more} left out: no run of that prompt, seed and settings has all steps computed"


def _why_nothing_is_left(run_dir: Path, groups: Sequence[Group]) -> str:
    references = [group[0] for group in groups if _has_reference(group)]
    runs = [group[0] for group in groups if not _has_reference(group)]
    if not references:
        return f"{run_dir} has no reference: generate the same prompt and seed without --enable_cache"
    if not runs:
        return f"{run_dir} has nothing to compare: generate the same prompts and seeds with --enable_cache true too"
    nearest = min(references, key=lambda reference: _distance(runs[0], reference))
    return (
        f"{runs[0].video} and {nearest.video} are of different requests, {_difference(runs[0], nearest)}: generate "
        "both with the same prompt, seed and settings"
    )


def _distance(run: VideoRun, other: VideoRun) -> tuple[bool, int]:
    """How far two requests are apart: whether they have different prompts, and in how much they differ."""
    first, second = run.request.decided, other.request.decided
    differences = sum(first[key] != second[key] for key in first.keys() & second.keys())
    return run.request.prompt != other.request.prompt, differences
