"""Writing files so that a reader sees the old file or the new one, never half of one, and nothing finished is lost."""

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lemica.errors import NotMoved

# Bytes in a file's name, where the disk does not say.
_NAME_MAX = 255
_SECONDS_FOR_OTHERS = 5


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to, and move it there in the end.

    The temporary file is there already, empty, so that no two writers share one; its name has the suffix of `path`. If
    the block raises, `path` stays as it was and nothing is left behind: a block that writes shall also check what it
    wrote. A link is followed. What is no regular file, a device or a pipe, gets the content written into it.

    Args:
        path: the file to write; its folder is made if it is missing.

    Raises NotMoved, with the name of the finished file, where it cannot be moved to `path`.

    Example:
        >>> with replacing("new/graph.txt") as temporary:
        ...     temporary.write_text("a graph")
        7
        >>> os.listdir("new")
        ['graph.txt']
    """
    way = _through if _is_special(path) else _beside
    with way(Path(path)) as temporary:
        yield temporary


def write_text(path: str | os.PathLike, text: str, check: Callable[[Path], None] = lambda written: None) -> None:
    """Write `text` to `path` in UTF-8, in one move.

    Args:
        path: the file to write.
        text: its content; what UTF-8 cannot hold is written as an escape.
        check: is given the written file before it takes its name, and raises if the file is not as it should be.

    Example:
        >>> write_text("new/mask.json", "{}")
        >>> Path("new/mask.json").read_text()
        '{}'
    """
    content = text.encode("utf-8", "backslashreplace")
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        if temporary.read_bytes() != content:
            raise OSError(errno.EIO, "it does not read back as it was written", os.fspath(path))
        check(temporary)


def try_name(path: str | os.PathLike) -> None:
    """Find out whether a file can be written at `path`, before hours are spent on it; leaves everything as it is.

    Its folder is made if it is missing. Raises OSError, naming the file, where folder or name are refused.

        >>> try_name("new/graph.json")
        >>> os.path.exists("new/graph.json")
        False
    """
    if _is_special(path):
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(target.parent), suppress(FileExistsError):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        target.unlink()
        return
    # It is there: opened as for writing, because a folder that takes new names may still hold a file that stays.
    os.close(os.open(target, os.O_WRONLY))
    _remove(_new_file(target))


def _is_special(path: str | os.PathLike) -> bool:
    """Whether there is something at `path` that a file must not replace; raises for a folder."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    return not stat.S_ISREG(found.st_mode) or _standard_stream(found) is not None


def _standard_stream(found: os.stat_result) -> int | None:
    """The descriptor of standard output or error, if this is what it goes to: /dev/stdout may be a regular file."""
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):
            if os.path.samestat(found, os.fstat(stream.fileno())):
                return stream.fileno()
    return None


@contextmanager
def _through(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, f"content{path.suffix}")
        temporary.touch()
        with _naming(path, temporary):
            yield temporary
            stream = _standard_stream(os.stat(path))
            with temporary.open("rb") as content, open(path if stream is None else os.dup(stream), "wb") as into:
                shutil.copyfileobj(content, into)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _new_file(target)
    try:
        with _naming(target, temporary):
            yield temporary
            _to_disk(temporary, target)
        _move(temporary, target)
    except NotMoved:
        raise
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def _naming(target: Path, temporary: Path) -> Iterator[None]:
    """Errors of the temporary file, such as a full disk, name the file that was asked for."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, os.fspath(temporary)):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(target)) from error


def _new_file(target: Path) -> Path:
    """An empty file of a name that nobody has, beside `target`; short, because a long name may be as long as can be."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) < 30 else ""
    room = _longest_name(target.parent) - len(os.fsencode(suffix)) - len("kept-.01234567.tmp")
    stem = os.fsencode(target.stem)[: max(0, room)].decode(sys.getfilesystemencoding(), "ignore")
    while True:
        path = target.with_name(f".{stem}.{secrets.token_hex(4)}.tmp{suffix}")
        with suppress(FileExistsError):
            # Not by tempfile, whose files only their owner may read.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return path


def _longest_name(folder: Path) -> int:
    with suppress(OSError, ValueError):
        return os.pathconf(folder, "PC_NAME_MAX")
    return _NAME_MAX


def _to_disk(temporary: Path, target: Path) -> None:
    """Wait until the disk has it: some disks say only now that they are full. It gets the old file's permissions."""
    with suppress(OSError):
        shutil.copymode(target, temporary)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some kinds of disk know no fsync.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _move(temporary: Path, target: Path) -> None:
    try:
        with _alone_in(target.parent):
            os.replace(temporary, target)
    except OSError as error:
        if not temporary.is_file():
            raise
        kept = _visible(temporary, target)
        raise NotMoved(
            f"{target} cannot be written ({error.strerror or error}): the finished file is {kept}"
        ) from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep others from giving names in a folder: a name that is only tried must not take away a file that came to it.

    Where the system or the disk has no locks, or somebody else holds this one for long, it goes on without.
    """
    with ExitStack() as held:
        with suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            until = time.monotonic() + _SECONDS_FOR_OTHERS
            while time.monotonic() < until:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.01)
        yield


def _visible(temporary: Path, target: Path) -> Path:
    """A finished file that cannot have its name gets one that a listing shows, if it can have that."""
    kept = target.with_name(f"kept-{temporary.name[1:]}")
    try:
        os.rename(temporary, kept)
    except OSError:
        return temporary
    return kept


def _remove(temporary: Path) -> None:
    with suppress(OSError):
        temporary.unlink()
