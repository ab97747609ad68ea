#!/usr/bin/env python3
"""Put the kit's three files into a HunyuanVideo-1.5 tree, and take them out again.

    install.py TARGET [--force]               install, finish an interrupted install, or replace an older kit
    install.py TARGET --uninstall [--force]   put the tree back byte for byte (exit status 0 if nothing is installed)

A file is replaced if it is a known version of upstream's (upstream_files.json) or what git's HEAD holds; --force
replaces any other, too. The originals are copied to TARGET/.lemica_backup first. Renaming that folder into place is
the moment from which the kit counts as installed, renaming it away the moment from which it does not. In between every
file is replaced in one step. So a run killed anywhere is finished by the next install, or undone by the next uninstall.

A file that is a symbolic link is replaced by a plain file. What the link points to is never written, and --uninstall
brings the link back. Exit status: 0 done, 1 the system failed (disk full, no permission), 2 refused.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

# Nothing in this file is newer syntax than Python 3.6 reads, or older ones would not come as far as this line.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write("install.sh: Python 3.10 or newer is needed: set PYTHON to one, for example PYTHON=python3.11\n")
    sys.exit(2)

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).resolve().with_name("upstream_files.json")
STATE = "hyvideo/commons/infer_state.py"
PIPELINE = "hyvideo/pipelines/hunyuan_video_pipeline.py"
GENERATE = "generate.py"  # the only one that a tree may lack: hyvideo's PyPI package has none
KIT = {"infer_state.py": STATE, "hunyuan_video_pipeline.py": PIPELINE, "generate.py": GENERATE}
COMMONS = "hyvideo/commons/__init__.py"
LANDMARKS = (
    COMMONS,
    "hyvideo/commons/parallel_states.py",
    "hyvideo/models/transformers/hunyuanvideo_1_5_transformer.py",
    "hyvideo/pipelines/hunyuan_video_sr_pipeline.py",
)
AUTHORS = (b"cache_lemica_step", b"from angelslim.compressor.diffusion import")  # both: the authors' released pipeline
BACKUP = ".lemica_backup"
STAGING = ".lemica_backup.tmp"


class Refused(Exception):
    """The request cannot be met; the message says why and what to type."""


# What is in the tree


def fingerprint(path: Path) -> str | None:
    """Return the file's sha256, "link:..." for a symbolic link, None if there is nothing."""
    if path.is_symlink():
        return f"link:{os.readlink(path)}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def texts_of(target: Path) -> dict[str, bytes]:
    """Read the files to be replaced, less a Windows checkout's line ends, which do not make another version."""
    found = [dest for dest in KIT.values() if (target / dest).is_file()]
    return {dest: (target / dest).read_bytes().replace(b"\r\n", b"\n") for dest in found}


def check_no_kit(target: Path, texts: dict[str, bytes]) -> None:
    """Refuse a tree that holds a kit, the authors' or this one, where no backup says what was there before."""
    generate = texts.get(GENERATE, b"")
    if all(mark in texts[PIPELINE] for mark in AUTHORS) or (b"lemica" in generate and b"--lora_path" not in generate):
        kit = "the authors' released LeMiCa kit"
    elif b"lemica" in b"".join(texts.values()).lower():
        kit = f"this kit, but no {BACKUP} with the originals (git clean -x takes it away)"
    else:
        return
    raise Refused(
        f"{target} holds {kit}: git -C {shlex.quote(str(target))} checkout -- {' '.join(texts)} puts upstream's files "
        "back (or take them from a fresh download); install with --force takes what is there for upstream's"
    )


def git_objection(target: Path, dest: str) -> str:
    """Say why git does not vouch for the file at dest; empty if it is what HEAD holds."""
    hashes = []
    for command in (["rev-parse", "--verify", f"HEAD:./{dest}"], ["hash-object", "--", dest]):
        try:
            done = subprocess.run(["git", "-C", str(target), *command], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "git is not installed"
        if done.returncode:  # git's own words, with its remedy if the clone is another user's
            return f"git says: {' '.join(done.stderr.split())}"
        hashes.append(done.stdout)
    return "" if hashes[0] == hashes[1] else "edits not committed to git"


def check_starts(target: Path, versions: dict[str, dict]) -> None:
    """Refuse a tree from before the first one that the kit starts in."""
    old = [dest for dest in versions if not versions[dest]["runs"]]
    if old or b"is_angelslim_available" not in (target / COMMONS).read_bytes():
        raise Refused(
            f"{target} is too old ({', '.join(old) or COMMONS}): the kit cannot start there, --force or not, without "
            f"is_angelslim_available in hyvideo.commons; type git -C {shlex.quote(str(target))} pull, or download a "
            "commit from 358c2c0 (2025-11-27) on"
        )


def check_replaceable(target: Path, texts: dict[str, bytes], known: dict[str, dict]) -> None:
    """Refuse files that are neither upstream's nor what git holds, so that nobody's work is replaced unasked."""
    check_no_kit(target, texts)
    doubts = {dest: git_objection(target, dest) for dest in texts if dest not in known}
    if any(doubts.values()):
        named = "; ".join(f"{dest} ({why})" for dest, why in doubts.items() if why)
        raise Refused(f"no known version of upstream's: {named}; --force replaces them and keeps a backup")


def check_tree(target: Path) -> None:
    if not target.is_dir():
        raise Refused(f"no folder {target}: type ./scripts/install.sh PATH_TO_HunyuanVideo-1.5")
    replaced = [] if (target / BACKUP).exists() else [STATE, PIPELINE]
    missing = [name for name in (*LANDMARKS, *replaced) if not (target / name).is_file()]
    if missing:
        raise Refused(f"{target} is no HunyuanVideo-1.5 tree (no {missing[0]}): give the folder that holds hyvideo/")
    for dest in KIT.values():
        if not (target / dest).parent.resolve().is_relative_to(target):
            raise Refused(f"{dest} leads out of {target} through a link: give the folder it really is in")
    links = [name for name in (BACKUP, STAGING) if (target / name).is_symlink()]
    if links:
        raise Refused(f"{target / links[0]} is a link: remove it, or put the folder itself there")


# Writing


def temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.lemica_tmp")  # a fixed name, so that the next run finds and removes it


def clean(target: Path) -> None:
    """Remove what a killed run left behind; nothing here is needed to finish or undo it."""
    for path in (target / BACKUP / "manifest.json", *(target / dest for dest in KIT.values())):
        temporary(path).unlink(missing_ok=True)
    staging = target / STAGING
    if staging.exists():
        for name in (".gitignore", "manifest.json", temporary(Path("manifest.json")), *KIT):
            (staging / name).unlink(missing_ok=True)
        staging.rmdir()  # fails if a user has put something there


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def copy(source: Path, path: Path, mode: int | None = None) -> None:
    """Copy a file, or a symbolic link as a link."""
    shutil.copy2(source, path, follow_symlinks=False)
    if not source.is_symlink():
        path.chmod(stat.S_IMODE(source.stat().st_mode) if mode is None else mode)
        sync(path)


def put(source: Path, path: Path, mode: int | None) -> None:
    """Make path what source is, a file or a link, in one step."""
    copy(source, temporary(path), mode)
    os.replace(temporary(path), path)
    sync(path.parent)


def verify(folder: Path, expected: dict[str, str | None]) -> None:
    for name, value in expected.items():
        if fingerprint(folder / name) != value:
            raise OSError(f"{folder / name} did not arrive as it was written")


# The backup: what the files were before, and the hashes of the kit's own, {dest: before, mode, installed}


def load_backup(target: Path) -> dict[str, dict] | None:
    """Return what the backup's manifest says, None where no kit is installed; every copy is verified."""
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
        if files[dest]["before"]:
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


def keep_edited(target: Path, files: dict[str, dict], wanted: dict[str, str], force: bool) -> None:
    """Refuse to replace what is neither the kit's nor the backup's; when forced, put a copy of it aside."""
    ours = {dest: {None, wanted.get(dest), entry["before"], *entry["installed"]} for dest, entry in files.items()}
    edited = [dest for dest in files if fingerprint(target / dest) not in ours[dest]]
    if edited and not force:
        raise Refused(
            f"edited since the kit was installed: {', '.join(edited)}; --force replaces them and keeps yours as "
            f"NAME.edited (if upstream itself was updated: delete {target / BACKUP}, then install anew)"
        )
    for path in [target / dest for dest in edited]:
        aside = path.with_name(f"{path.name}.edited")
        if fingerprint(aside) not in (None, fingerprint(path)):
            raise Refused(f"{aside} is there already: move it away, then run this again")
        copy(path, aside)


# The two requests


def install(target: Path, kit: Path, force: bool = False) -> str:
    """Copy the kit's files into target; return what to tell the user."""
    absent = [name for name in KIT if not (kit / name).is_file()]
    if absent:
        raise Refused(f"the kit in {kit} is incomplete (no {absent[0]}): fetch it again")
    sources = {dest: (kit / name).resolve() for name, dest in KIT.items()}
    wanted = {dest: fingerprint(source) for dest, source in sources.items()}
    files, texts, table = load_backup(target), texts_of(target), json.loads(TABLE.read_text(encoding="utf-8"))
    hashes = {dest: hashlib.sha256(text).hexdigest() for dest, text in texts.items()}
    known = {dest: table[dest][value] for dest, value in hashes.items() if value in table[dest]}
    check_starts(target, known)
    if files is None:
        if not force:
            check_replaceable(target, texts, known)
        files = make_backup(target, wanted)
    else:
        keep_edited(target, files, wanted, force)
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
        check_no_kit(target, texts_of(target))
        return f"not installed in {target} (it has no {BACKUP}): nothing changed"
    keep_edited(target, files, {}, force)
    for dest, entry in files.items():
        if entry["before"]:
            put(target / BACKUP / Path(dest).name, target / dest, entry["mode"])
        else:  # there was none: this one is the kit's by its hash, or lies aside
            (target / dest).unlink(missing_ok=True)
            sync((target / dest).parent)
    verify(target, {dest: entry["before"] for dest, entry in files.items()})
    os.rename(target / BACKUP, target / STAGING)
    sync(target)
    clean(target)
    return f"uninstalled from {target}: the tree is as it was"


def run(target: Path, kit: Path, undo: bool, force: bool) -> str:
    check_tree(target)
    path = target / COMMONS  # never replaced, so it can carry the lock, which the system frees when this process ends
    with path.open("rb+" if os.access(path, os.W_OK) else "rb") as file:  # NFS locks only what is open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another install.sh works on {target}: run this again when it has ended") from None
        clean(target)
        return uninstall(target, force) if undo else install(target, kit, force)


def main(argv: list[str] | None = None, kit: Path = REPOSITORY) -> int:
    parser = argparse.ArgumentParser(
        prog="install.sh", description="Put the kit into a HunyuanVideo-1.5 tree.", allow_abbrev=False
    )
    parser.add_argument("target", type=Path, metavar="TARGET", help="the folder that holds hyvideo/")
    parser.add_argument("--force", action="store_true", help="replace files that are edited or of an unknown version")
    parser.add_argument("--uninstall", action="store_true", help="put the tree back as it was")
    args = parser.parse_args(argv)
    try:
        print(run(args.target.resolve(), kit, args.uninstall, args.force))
    except Refused as error:
        print(f"install.sh: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"install.sh: {error}; mend that and run this again, or --uninstall", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
