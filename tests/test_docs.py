"""README and docs: commands that run as printed, tables that are those of the result files, names that exist."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TREE, UPSTREAM, clean_environment

from docs.tables import with_tables
from lemica.cli.main import build_parser
from lemica.report.runs import summarise

READMES = [REPOSITORY / name for name in ("README.md", "README_CN.md")]
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def bash_blocks(path: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", text_of(path), re.DOTALL)


def commands_in(path: Path) -> list[list[str]]:
    """Every command as a list of words, comments and continued lines undone."""
    lines = "\n".join(bash_blocks(path)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(script: str, folder: Path) -> str:
    """What a script of bash prints, with the commands of the tests' environment; it must succeed."""
    environment = clean_environment() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fresh_tree(folder: Path) -> Path:
    """Upstream's package as a HunyuanVideo-1.5 tree, without the kit."""
    shutil.copytree(UPSTREAM, folder / "hyvideo", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_a_readme_is_short(path):
    assert len(text_of(path).splitlines()) <= 150


def test_both_languages_have_the_same_commands_and_figures():
    english, chinese = map(text_of, READMES)
    numbers = [
        re.findall(r"\d+(?:\.\d+)?x?", "".join(line for line in text.splitlines() if line.startswith("|")))
        for text in (english, chinese)
    ]
    commands = [[words for words in commands_in(path)] for path in READMES]
    assert commands[0] == commands[1]
    assert numbers[0] == numbers[1]
    assert len(re.findall("^#", english, re.MULTILINE)) == len(re.findall("^#", chinese, re.MULTILINE))


@pytest.mark.parametrize("path", [*READMES, *DOCS], ids=lambda path: path.name)
def test_tables_of_measurements_are_those_of_the_result_files(path):
    assert with_tables(text_of(path)) == text_of(path)


@pytest.mark.parametrize("path", [*READMES, *DOCS], ids=lambda path: path.name)
def test_every_file_that_is_named_exists(path):
    text = text_of(path)
    named = set(re.findall(r"\]\(([\w./-]+?)(?:#[\w-]*)?\)", text))
    assert [name for name in sorted(named) if not (path.parent / name).exists()] == []
    # The commands of what was dropped are those of an earlier commit.
    today = re.sub(r"^## What was tried and dropped.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"\b(?:scripts|tests|demo|benchmarks|docs|assets|lemica)/[\w./-]+\.\w+", today))
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_the_way_of_masks_md_runs_as_printed(tmp_path):
    tree = fresh_tree(tmp_path / "tree")
    script = "\n".join(bash_blocks(REPOSITORY / "docs" / "masks.md"))
    script = re.sub(r"^export KIT=.*$", f'export KIT="{REPOSITORY}" TREE="{tree}"', script, flags=re.MULTILINE)
    # The tests' environment has it already.
    printed = run(re.sub(r'^pip install "\$KIT\[all\]"$', "", script, flags=re.MULTILINE), tmp_path)
    files = ["mask10.json", "mask7.json", "graph.png", "report.html", "runs/b10_lossless.mkv"]
    assert [name for name in files if not (tree / name).exists()] == []
    assert "compression costs these files quality too" not in printed
    quality = {row[0]: float(row[1]) for row in map(str.split, printed.splitlines()) if row[:1] and "runs/b" in row[0]}
    assert min(quality.values()) > 35


def test_install_and_uninstall_run_as_printed_in_the_readme(tmp_path):
    tree = fresh_tree(tmp_path / "HunyuanVideo-1.5")
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    installs = [words for words in commands_in(READMES[0]) if words[0].endswith("install.sh")]
    assert len(installs) == 2
    for words in installs:
        run(shlex.join([word.replace("/path/to/HunyuanVideo-1.5", str(tree)) for word in words]), REPOSITORY)
        assert (tree / "generate.py").exists() == ("--uninstall" not in words)
    assert {path: path.read_bytes() for path in tree.rglob("*.py")} == before


@pytest.mark.parametrize("path", [READMES[0], *DOCS], ids=lambda path: path.name)
def test_every_command_is_one_that_its_parser_takes(path, monkeypatch):
    sys.path.insert(0, str(TREE))
    import generate

    parsers = {"lemica": build_parser(), "generate.py": generate.build_parser()}
    monkeypatch.setattr(argparse.ArgumentParser, "error", lambda _, message: pytest.fail(message))
    for words in commands_in(path):
        for name, parser in parsers.items():
            if name in words[:3] and "$@" not in words:
                parser.parse_args(words[words.index(name) + 1 :])


def test_every_flag_in_the_tables_of_flags_exists():
    sys.path.insert(0, str(TREE))
    import generate

    options = set(generate.build_parser()._option_string_actions) | {"--force", "--uninstall", "--all"}
    commands = build_parser()._subparsers._group_actions[0].choices.values()
    options |= {option for command in commands for option in command._option_string_actions}
    for path in (*READMES, *DOCS):
        flags = set(re.findall(r"`(--\w+)", text_of(path)))
        assert flags - options == set(), path.name


@pytest.mark.slow
def test_the_demo_runs_as_printed(tmp_path):
    environment = f'DEMO_DIR="{tmp_path}/demo"'
    printed = run(f"{environment} ./scripts/demo.sh", REPOSITORY)
    assert (tmp_path / "demo" / "report.html").exists()
    (section,) = summarise(tmp_path / "demo" / "runs")
    assert [run.budget for run in section.runs] == [50, 25, 20, 15, 10]
    assert all(run.name in printed and run.speedup <= 50 / run.budget for run in section.runs)
