"""Printing that never costs a file: standard output may be closed, full, gone or know ASCII only.

A command writes its files first and prints then, with ``say``. What it prints before, it prints with ``tell``.
"""

import os
import sys
from contextlib import suppress

from lemica.errors import Refused, in_words


class Unprinted(Exception):
    """Standard output did not take what was printed; `reader_left` where it is a pipe that nobody reads any more."""

    def __init__(self, error: OSError):
        super().__init__(f"standard output: {in_words(error)}: the files are written, what was printed is lost")
        self.reader_left = isinstance(error, BrokenPipeError)


def prepare() -> None:
    """Make standard output take any text, and keep files that are opened from becoming standard output by number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    if hasattr(sys.stdout, "reconfigure"):
        # Strips are not ASCII, and neither need names of files be: a locale that knows no more must not end a command.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def require_stdout() -> None:
    """Refuse to work for a result that would be printed to a standard output that is closed."""
    if sys.stdout is None:
        raise Refused("standard output is closed, which is where the result would go: type the command without >&-")


def say(*lines: str) -> None:
    """Print to standard output, after all files are written; raises Unprinted where it does not take them."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        raise Unprinted(error) from error


def tell(*lines: str) -> None:
    """Print to standard output while there is work left, which goes on where it does not take the lines."""
    with suppress(OSError):
        print(*lines, sep="\n", flush=True)


def warn(line: str) -> None:
    """Print to standard error what is good to know; results go to standard output."""
    complain(f"lemica: note: {line}\n")


def complain(text: str) -> None:
    """Write to standard error, which may be closed or full as well."""
    with suppress(OSError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def let_go() -> None:
    """Drop what standard output did not take: Python would try again at its end, and complain."""
    with suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Unfailing:
    """Standard error for progress bars: where it is closed or full they are not seen, and the work goes on."""

    def write(self, text: str) -> None:
        with suppress(OSError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno() if sys.stderr is not None else -1
