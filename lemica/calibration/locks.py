"""Who is at work on a calibration: every rank holds a lock, which ends with it, however it ends.

The locks are files in the folder of unfinished work. Rank 0's says whose the folder is; the others' tell rank 0 whether
there is anybody to wait for.
"""

import errno
import fcntl
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lemica.errors import Refused, in_words

# Gives every rank's value to every rank, in their order.
Exchange = Callable[[Any], Sequence[Any]]

_LOCK_FILE = re.compile(r"rank(\d+)\.lock")
_TOKEN_FILE = "token"
# What a disk without locks answers.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class Lock:
    """A lock on a file, held until it is released or its process ends."""

    def __init__(self, path: Path):
        """Take the lock; raises BlockingIOError where another holds it, OSError where the disk has no locks."""
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                # Its last holder removed the folder in between.
                continue
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_still(path):
                    os.ftruncate(self._descriptor, 0)
                    os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return
            except BaseException:
                self.release()
                raise
            # Its last holder removed the file between our opening and our locking it.
            self.release()

    def _is_still(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        os.close(self._descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock on a file now."""
    return _probe(path, fcntl.LOCK_SH | fcntl.LOCK_NB)


def wait_until_free(path: Path) -> None:
    """Wait until nobody holds the lock on a file: its holder has released it or has ended."""
    _probe(path, fcntl.LOCK_SH)


def _probe(path: Path, how: int) -> bool:
    try:
        # For writing, which network disks ask for before they lock.
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Crew:
    """The ranks that are at work on one folder.

    Args:
        folder: where unfinished work is kept.
        rank, world_size: this rank, and how many there are.
    """

    def __init__(self, folder: Path, rank: int, world_size: int):
        self.folder, self.rank, self.world_size = folder, rank, world_size

    @contextmanager
    def at_work(self, exchange: Exchange) -> Iterator[None]:
        """Hold this rank's lock. All ranks call this together; all of them refuse where one has to.

        Raises Refused, on every rank, where another calibration is at work on the folder, where a rank does not see the
        folder that rank 0 sees, and where the disk's locks are not seen by all.
        """
        with self._leaving() as locks:
            token = self._agreed(exchange, lambda: self._own(locks) if self.rank == 0 else None)[0]
            self._agreed(exchange, lambda: self._join(locks, token) if self.rank > 0 else None)
            self._agreed(exchange, lambda: self._check_that_locks_are_seen() if self.rank == 0 else None)
            yield

    @contextmanager
    def _leaving(self) -> Iterator[list[Lock]]:
        """The locks that are to be released in the end; a folder in which nothing was begun goes with them."""
        locks: list[Lock] = []
        try:
            yield locks
        finally:
            if self.rank == 0 and locks:
                self._tidy()
            for lock in locks:
                lock.release()
            if self.rank == 0 and locks:
                # Only now: network disks keep a file in the folder as long as it is open.
                with suppress(OSError):
                    self.folder.rmdir()

    def _tidy(self) -> None:
        with suppress(OSError):
            names = os.listdir(self.folder)
            if all(name == _TOKEN_FILE or _LOCK_FILE.fullmatch(name) for name in names):
                for name in names:
                    (self.folder / name).unlink()

    def wait_for_others(self) -> None:
        """Wait for the ranks that are still at work, and for none that is gone."""
        for rank in range(1, self.world_size):
            wait_until_free(self.lock_file(rank))

    def others_at_work(self) -> list[int]:
        return [rank for rank in range(1, self.world_size) if is_held(self.lock_file(rank))]

    def lock_file(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.lock"

    def _agreed(self, exchange: Exchange, act: Callable[[], Any]) -> list[Any]:
        """What every rank's `act` gave; Refused on all ranks where one was refused, by us or by its disk."""
        try:
            mine = act(), None
        except Refused as error:
            mine = None, str(error)
        except OSError as error:
            mine = None, f"{in_words(error)}: give another --output"
        results = list(exchange(mine))
        refusals = [refusal for _, refusal in results if refusal]
        if refusals:
            others = f" (and {len(refusals) - 1} more ranks)" if len(refusals) > 1 else ""
            raise Refused(refusals[0] + others)
        return [value for value, _ in results]

    def _own(self, locks: list[Lock]) -> str:
        """Rank 0 takes the folder, and leaves a word in it by which the others know it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise Refused(
                f"{self.folder} is in the way, where a folder of unfinished work is to be: move it, or give another "
                "--output"
            ) from error
        self._take(locks)
        for name in sorted(os.listdir(self.folder)):
            if (found := _LOCK_FILE.fullmatch(name)) and int(found[1]) > 0 and is_held(self.folder / name):
                raise Refused(self._taken(self.folder / name))
        token = secrets.token_hex(8)
        (self.folder / _TOKEN_FILE).write_text(token, encoding="ascii")
        return token

    def _join(self, locks: list[Lock], token: str) -> None:
        # Listed before they are read: a network disk looks again at a folder that is listed.
        for folder in (self.folder.parent, self.folder):
            with suppress(OSError):
                os.listdir(folder)
        try:
            found = (self.folder / _TOKEN_FILE).read_text(encoding="ascii")
        except (OSError, ValueError):
            found = None
        if found != token:
            raise Refused(
                f"rank {self.rank} on {socket.gethostname()} does not see what rank 0 wrote to {self.folder}: give an "
                "--output in a folder that all nodes share"
            )
        self._take(locks)

    def _take(self, locks: list[Lock]) -> None:
        path = self.lock_file(self.rank)
        try:
            locks.append(Lock(path))
        except BlockingIOError as error:
            raise Refused(self._taken(path)) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise Refused(
                f"{self.folder} is on a disk without file locks ({error.strerror}): give an --output on another disk"
            ) from error

    def _taken(self, path: Path) -> str:
        holder = path.read_text(encoding="utf-8", errors="replace") or "another process"
        return (
            f"another lemica calibrate is at work on {self.folder} ({holder}): wait for its graph, or give another "
            "--output"
        )

    def _check_that_locks_are_seen(self) -> None:
        unseen = sorted(set(range(1, self.world_size)) - set(self.others_at_work()))
        if unseen:
            raise Refused(
                f"{self.folder} is on a disk where rank 0 does not see the locks of ranks {unseen}: give an --output "
                "on another disk that all nodes share"
            )
