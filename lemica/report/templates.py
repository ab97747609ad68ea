"""Pages from their templates. Jinja fills them in, because it escapes prompts and file names."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lemica.report.table import duration

FOLDER = Path(__file__).parent


def fill(name: str, **values: Any) -> str:
    """The page that NAME.html.in is of, with these values and functions; `file` puts a style or a script into it."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["duration"] = duration
    environment.globals |= {"file": _as_it_is, **values}
    return environment.get_template(f"{name}.html.in").render()


def _as_it_is(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))
