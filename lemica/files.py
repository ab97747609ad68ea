"""Writing files so that a reader sees the old file or the new one, never half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to, and move it there in the end.

    The temporary name has the suffix of `path`. If the block raises, `path` stays as it was and nothing is left behind.

    Args:
        path: the file to write; its folder is made if it is missing.

    Example:
        >>> with replacing("new/graph.txt") as temporary:
        ...     temporary.write_text("a graph")
        7
        >>> os.listdir("new")
        ['graph.txt']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` in UTF-8, in one move.

    Example:
        >>> write_text("new/mask.json", "{}")
        >>> Path("new/mask.json").read_text()
        '{}'
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
