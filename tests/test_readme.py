"""The READMEs: in step with each other, and naming only files and flags that there are."""

import re

import pytest
from conftest import REPOSITORY
from update_readme import TABLES, with_tables

import generate
from lemica.__main__ import build_parser

ENGLISH, CHINESE = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "README_CN.md"))


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```.*?```", text, re.DOTALL)


def numbers_in_tables(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?x?", "".join(line for line in text.splitlines() if line.startswith("|")))


def test_both_languages_have_the_same_commands_and_figures():
    assert code_blocks(ENGLISH) == code_blocks(CHINESE)
    assert numbers_in_tables(ENGLISH) == numbers_in_tables(CHINESE)
    assert len(re.findall("^#", ENGLISH, re.MULTILINE)) == len(re.findall("^#", CHINESE, re.MULTILINE))


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_tables_of_measurements_are_those_of_the_result_files(text):
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) <= set(TABLES)
    assert with_tables(text) == text


def test_every_flag_exists():
    options = set(generate.build_parser()._option_string_actions)
    commands = build_parser()._subparsers._group_actions[0].choices.values()
    options |= {option for command in commands for option in command._option_string_actions}
    scripts = (path.read_text(encoding="utf-8") for path in (REPOSITORY / "scripts").glob("*.py"))
    options |= {option for script in scripts for option in re.findall(r'"(--\w+)', script)}
    options |= {"--nproc_per_node", "--force", "--uninstall"}
    assert set(re.findall(r"(?<![\w-])--\w+", ENGLISH)) <= options


def test_every_file_named_exists():
    named = re.findall(r"(?:scripts|tests|lemica)/[\w.]+\w", ENGLISH) + re.findall(r"`(\w+\.py)`", ENGLISH)
    assert len(named) > 5
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_every_script_has_its_place_in_the_index():
    scripts = REPOSITORY / "scripts"
    files = {path.name for path in scripts.iterdir() if path.is_file()} - {"README.md"}
    assert set(re.findall(r"`([\w.]+)`", (scripts / "README.md").read_text(encoding="utf-8"))) == files
