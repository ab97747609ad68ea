"""What NAME_config.json says of the videos beside it: which files are its own, and what decided the picture.

generate.py writes it last, with the size and the digest of every video file of its run under "files", and what really
decided the picture under "request". Configs of older kits have neither.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lemica.errors import Refused, refusing

CONFIG_SUFFIX = "_config.json"
LOSSLESS_SUFFIX = "_lossless.mkv"
# Characters of a long value that a refusal shows.
_SHOWN = 60


@dataclass(frozen=True)
class Config:
    """The content of NAME_config.json, an object with an "output_path"."""

    path: Path
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(CONFIG_SUFFIX)

    @cached_property
    def files(self) -> Mapping[str, Mapping[str, Any]] | None:
        """Size and digest of every video file of the run; None in configs of older kits."""
        files = self.content.get("files")
        return files if isinstance(files, dict) else None

    @cached_property
    def request(self) -> dict[str, Any]:
        """What decided the picture: as the run says, or else its arguments and its report do."""
        request = self.content.get("request")
        if isinstance(request, dict):
            return request
        arguments, report = (_object(self.content.get(name)) for name in ("arguments", "report"))
        return {
            # The report has those that were used: drawn or rewritten, if that was asked for.
            **{name: report.get(name, arguments.get(name)) for name in ("prompt", "seed")},
            "negative_prompt": arguments.get("negative_prompt") or "",
            "image_path": arguments.get("image_path"),
            # As it was typed, which a request's flow shift is not.
            "--flow_shift": arguments.get("flow_shift"),
            "model": self.content.get("transformer_version"),
        }

    def owns(self, video: Path) -> bool:
        """Whether this file is one of the run's, by its digest, or in configs of older kits by its ending."""
        if self.files is None:
            return video.name.endswith(LOSSLESS_SUFFIX) or video.suffix == Path(str(self.content["output_path"])).suffix
        size = video.stat().st_size
        candidates = [entry for entry in self.files.values() if isinstance(entry, dict) and entry.get("size") == size]
        return bool(candidates) and digest(video) in [entry.get("sha256") for entry in candidates]

    def has_lossless(self) -> bool:
        """Whether the run wrote a lossless copy: one that is there otherwise is left over from an earlier run."""
        if self.files is not None:
            return any(name.endswith(LOSSLESS_SUFFIX) for name in self.files)
        return bool(_object(self.content.get("arguments")).get("save_lossless", True))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with refusing(OSError), open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _old(content)


def _old(content) -> str:
    """For Python 3.10."""
    found = hashlib.sha256()
    while block := content.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def read_config(path: Path) -> Config | None:
    """The config in a file; None for JSON of another kind. Raises ValueError for what is not JSON."""
    with refusing(OSError):
        content = path.read_bytes()
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return Config(path, found) if isinstance(found, dict) and isinstance(found.get("output_path"), str) else None


def config_beside(video: Path) -> Config | None:
    """The config of a video or of its lossless copy; None where there is none that says anything."""
    stem = video.name.removesuffix(LOSSLESS_SUFFIX) if video.name.endswith(LOSSLESS_SUFFIX) else video.stem
    path = video.with_name(stem + CONFIG_SUFFIX)
    try:
        return read_config(path) if path.is_file() else None
    except ValueError:
        return None


def refuse_changed(video: Path, config: Config) -> None:
    """Refuse a video file that is not the one whose config this is; configs of older kits cannot tell."""
    if config.files is not None and not config.owns(video):
        raise Refused(
            f"{video} is not a file of the run that wrote {config.path.name}, by size and digest: generate it again, "
            "or take the config away"
        )


def different(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """The first thing in which two requests differ, with both values, of what both know; None if they agree."""
    for key in first:
        if key in second and first[key] != second[key]:
            mine, its = _shown(first[key], second[key])
            return f"{key} {mine} and {its}"
    return None


def _shown(first: Any, second: Any) -> tuple[str, str]:
    """Both values, cut to where they differ if they are long."""
    texts = repr(first), repr(second)
    if max(map(len, texts)) <= _SHOWN:
        return texts
    shared = next((at for at, (mine, its) in enumerate(zip(*texts, strict=False)) if mine != its), min(map(len, texts)))
    start = max(0, shared - 20)
    return tuple(("..." if start else "") + f"{text[start:]:.{_SHOWN}}" for text in texts)
