#!/usr/bin/env python3
"""Put the kit's three files into a HunyuanVideo-1.5 tree, and take them out again.

    install.py TARGET [--force]               install, finish an interrupted install, or replace an older kit
    install.py TARGET --uninstall [--force]   put the tree back byte for byte (exit status 0 if nothing is installed)

The originals are copied to TARGET/.lemica_backup first. Renaming that folder into place is the moment from which the
kit counts as installed, renaming it away the moment from which it does not; in between every file is replaced in one
step. So a run killed anywhere is finished by the next install, or undone by the next uninstall.

A file that is a symbolic link is replaced by a plain file; what the link points to is never written, and --uninstall
brings the link back. Exit status: 0 done, 1 the system failed (disk full, no permission), 2 refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import sys
from pathlib import Path

from upstream_versions import KNOWN, objection, sha256

KIT = {
    "infer_state.py": "hyvideo/commons/infer_state.py",
    "hunyuan_video_pipeline.py": "hyvideo/pipelines/hunyuan_video_pipeline.py",
    "generate.py": "generate.py",
}
OPTIONAL = "generate.py"  # hyvideo's PyPI package has none
LANDMARKS = (
    "hyvideo/commons/__init__.py",
    "hyvideo/commons/parallel_states.py",
    "hyvideo/models/transformers/hunyuanvideo_1_5_transformer.py",
    "hyvideo/pipelines/hunyuan_video_sr_pipeline.py",
)
BACKUP = ".lemica_backup"
STAGING = ".lemica_backup.tmp"


class Refused(Exception):
    """The request cannot be met; the message says why and what to type."""


def check_known(target: Path, kit: Path) -> None:
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    found = {dest: objection(target, dest, known[dest], kit / name) for name, dest in KIT.items()}
    if any(found.values()):
        lines = "".join(f"\n  {dest}: {why}" for dest, why in found.items() if why)
        raise Refused(f"{target} holds files of no known upstream version; --force replaces them all the same:{lines}")


def fingerprint(path: Path) -> str | None:
    """Return the file's sha256, "link:..." for a symbolic link, None if there is nothing."""
    if path.is_symlink():
        return f"link:{os.readlink(path)}"
    return sha256(path.read_bytes()) if path.exists() else None


def temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.lemica_tmp")  # a fixed name, so that the next run finds and removes it


def clean(target: Path) -> None:
    """Remove what a killed run left behind; nothing here is needed to finish or undo it."""
    for path in (target / BACKUP / "manifest.json", *(target / dest for dest in KIT.values())):
        temporary(path).unlink(missing_ok=True)
    if (target / STAGING).exists():
        shutil.rmtree(target / STAGING)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def copy(source: Path, path: Path, mode: int | None = None) -> None:
    """Copy a file, or a symbolic link as a link; what is missing is not copied."""
    if os.path.lexists(source):
        shutil.copy2(source, path, follow_symlinks=False)
        if not source.is_symlink():
            path.chmod(stat.S_IMODE(source.stat().st_mode) if mode is None else mode)
            sync(path)


def put(source: Path, path: Path, mode: int | None) -> None:
    """Make path what source is, in one step: a file, a link or nothing."""
    copy(source, temporary(path), mode)
    if os.path.lexists(source):
        os.replace(temporary(path), path)
    else:
        path.unlink(missing_ok=True)
    sync(path.parent)


def verify(target: Path, expected: dict[str, str | None]) -> None:
    for dest, value in expected.items():
        if fingerprint(target / dest) != value:
            raise OSError(f"{dest} did not arrive as it was written")


def load_backup(target: Path) -> dict[str, dict] | None:
    """Return {dest: before, mode, installed} of an installed kit, None where none is; every copy is verified."""
    folder = target / BACKUP
    if not folder.exists():
        return None
    try:
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        if files.keys() != set(KIT.values()):  # also keeps a made-up manifest from leading out of the tree
            raise ValueError
        verify(folder, {Path(dest).name: entry["before"] for dest, entry in files.items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise Refused(f"{folder} is damaged: put upstream's files back by hand, delete it, run this again") from None
    return files


def write_manifest(folder: Path, files: dict[str, dict]) -> None:
    path = folder / "manifest.json"
    temporary(path).write_text(json.dumps({"format": "lemica-backup/1", "files": files}, indent=1) + "\n")
    sync(temporary(path))
    os.replace(temporary(path), path)
    sync(folder)


def make_backup(target: Path, wanted: dict[str, str]) -> dict[str, dict]:
    staging, files = target / STAGING, {}
    staging.mkdir()
    (staging / ".gitignore").write_text("*\n")  # or `git clean` and `git stash -u` would take the backup away
    for dest in KIT.values():
        path = target / dest
        plain = path.exists() and not path.is_symlink()
        mode = stat.S_IMODE(path.stat().st_mode) if plain else None
        files[dest] = {"before": fingerprint(path), "mode": mode, "installed": [wanted[dest]]}
        copy(path, staging / path.name)
    write_manifest(staging, files)
    verify(staging, {Path(dest).name: entry["before"] for dest, entry in files.items()})
    os.rename(staging, target / BACKUP)
    sync(target)
    return files


def remember(target: Path, files: dict[str, dict], wanted: dict[str, str]) -> None:
    """Note the hashes of a newer kit; the older ones stay, for an update killed midway leaves files of both."""
    new = [dest for dest in wanted if wanted[dest] not in files[dest]["installed"]]
    for dest in new:
        files[dest]["installed"].append(wanted[dest])
    if new:
        write_manifest(target / BACKUP, files)


def check_unedited(target: Path, files: dict[str, dict], wanted: dict[str, str]) -> None:
    ours = {dest: {None, wanted.get(dest), entry["before"], *entry["installed"]} for dest, entry in files.items()}
    if edited := [dest for dest in files if fingerprint(target / dest) not in ours[dest]]:
        raise Refused(
            f"edited since the kit was installed: {', '.join(edited)}; keep a copy, then --force overwrites "
            f"(if upstream itself was updated: delete {target / BACKUP}, then install anew)"
        )


def install(target: Path, kit: Path, force: bool = False) -> str:
    """Copy the kit's files into target; return what to tell the user."""
    if missing := [name for name in KIT if not (kit / name).is_file()]:
        raise Refused(f"the kit in {kit} is incomplete (no {missing[0]}): fetch it again")
    sources = {dest: (kit / name).resolve() for name, dest in KIT.items()}
    wanted = {dest: fingerprint(source) for dest, source in sources.items()}
    files = load_backup(target)
    if files is None:
        if not force:
            check_known(target, kit)
        files = make_backup(target, wanted)
    elif not force:
        check_unedited(target, files, wanted)
    remember(target, files, wanted)
    changed = [dest for dest in wanted if fingerprint(target / dest) != wanted[dest]]
    for dest in changed:
        put(sources[dest], target / dest, files[dest]["mode"])
    verify(target, wanted)
    if not changed:
        return f"already installed in {target}: nothing changed"
    return f"installed {', '.join(changed)} in {target}; the originals are in {BACKUP}, --uninstall puts them back"


def uninstall(target: Path, force: bool = False) -> str:
    """Put target back as it was before the first install; return what to tell the user."""
    files = load_backup(target)
    if files is None:
        return f"not installed in {target} (it has no {BACKUP}): nothing changed"
    if not force:
        check_unedited(target, files, {})
    for dest, entry in files.items():
        put(target / BACKUP / Path(dest).name, target / dest, entry["mode"])
    verify(target, {dest: entry["before"] for dest, entry in files.items()})
    os.rename(target / BACKUP, target / STAGING)
    sync(target)
    clean(target)
    return f"uninstalled from {target}: the tree is as it was"


def check_tree(target: Path) -> None:
    if not target.is_dir():
        raise Refused(f"no folder {target}: type ./scripts/install.sh PATH_TO_HunyuanVideo-1.5")
    replaced = [] if (target / BACKUP).exists() else [dest for dest in KIT.values() if dest != OPTIONAL]
    if missing := [name for name in (*LANDMARKS, *replaced) if not (target / name).is_file()]:
        raise Refused(f"{target} is no HunyuanVideo-1.5 tree (no {missing[0]}): give the folder that holds hyvideo/")
    for dest in KIT.values():
        if not (target / dest).parent.resolve().is_relative_to(target):
            raise Refused(f"{dest} leads out of {target} through a link: give the folder it really is in")
    if links := [name for name in (BACKUP, STAGING) if (target / name).is_symlink()]:
        raise Refused(f"{target / links[0]} is a link: remove it, or put the folder itself there")


def run(args: argparse.Namespace) -> str:
    target = args.target.resolve()
    check_tree(target)
    clean(target)
    return uninstall(target, args.force) if args.uninstall else install(target, args.kit, args.force)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="install.sh", description="Put the kit into a HunyuanVideo-1.5 tree.", allow_abbrev=False
    )
    parser.add_argument("target", type=Path, metavar="TARGET", help="the folder that holds hyvideo/")
    parser.add_argument("--force", action="store_true", help="replace files that are edited or of an unknown version")
    parser.add_argument("--uninstall", action="store_true", help="put the tree back as it was")
    parser.add_argument("--kit", type=Path, default=KNOWN.parents[1], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    try:
        print(run(args))
    except Refused as error:
        print(f"install.sh: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"install.sh: {error}; mend that and run this again, or --uninstall", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
