"""The structure, read off the imports: every room uses only rooms below it, and the kit nothing of the library."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

# From the ground up. A room may import what stands before it, and itself.
ROOMS = [
    "lemica.errors",
    "lemica.versions",
    "lemica.files",
    "lemica.streams",
    "lemica.masks",
    "lemica.released",
    "lemica.moments",
    "lemica.forecasts",
    "lemica.export",
    "lemica.planning",
    "lemica.reuse",
    "lemica.calibration",
    "lemica.quality",
    "lemica.report",
    "lemica.cli",
    "demo",
    "benchmarks",
    "docs",
]
KIT = ["infer_state.py", "hunyuan_video_pipeline.py", "generate.py"]
OURS = {"lemica", "demo", "benchmarks", "docs", "tests", "scripts", "generate", "infer_state", "conftest"}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.partition(".")[0] in OURS}


def room_of(module: str) -> str | None:
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), None)


FILES = {
    path: ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for top in ("lemica", "demo", "benchmarks", "docs")
    for path in sorted((REPOSITORY / top).rglob("*.py"))
    # The package's face shows what the rooms have.
    if path != REPOSITORY / "lemica" / "__init__.py" and path != REPOSITORY / "lemica" / "__main__.py"
}


@pytest.mark.parametrize("path", FILES, ids=FILES.values())
def test_a_room_uses_only_what_is_below_it(path):
    own = ROOMS.index(room_of(FILES[path]))
    for name in imports_of(path):
        room = room_of(name)
        # What stands above the library may run the kit's own program.
        program = name.startswith("generate") and own >= ROOMS.index("demo")
        assert room or program or name in ("lemica", "demo", "benchmarks"), f"{FILES[path]} imports {name}"
        assert room is None or ROOMS.index(room) <= own, f"{FILES[path]} imports {name}"


@pytest.mark.parametrize("name", KIT)
def test_the_kit_uses_nothing_of_the_rest(name):
    assert imports_of(REPOSITORY / name) == set()


def test_commands_never_import_each_other():
    folder = REPOSITORY / "lemica" / "cli"
    commands = {f"lemica.cli.{path.stem}" for path in folder.glob("*.py")} - {"lemica.cli.main", "lemica.cli.__init__"}
    for path in folder.glob("*.py"):
        if path.stem != "main":
            assert not imports_of(path) & commands


def test_scripts_import_no_tests():
    assert not any("conftest" in imports_of(path) for path in (REPOSITORY / "scripts").glob("*.py"))
