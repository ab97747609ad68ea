"""The command lemica: how it refuses, what its manuals hold, what it needs, and how it is installed."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from lemica.cli import main as frame
from lemica.cli.main import COMMANDS, build_parser, main
from lemica.errors import EXTRAS, NotMoved, Refused, RefusedHere, refusing

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "hyvideo", "diffusers", "matplotlib", "skimage", "imageio", "tqdm", "jinja2")


@pytest.fixture
def command(monkeypatch):
    """Call as command(error): runs a command of its own that raises `error`."""

    def call(error: BaseException) -> None:
        def run(args):
            raise error

        module = SimpleNamespace(__doc__="Fail.", EXAMPLES="", add_arguments=lambda parser: None, run=run)
        monkeypatch.setattr(frame, "COMMANDS", {"fail": module})
        main(["fail"])

    return call


def python(*arguments, **settings) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, **settings)


@pytest.mark.parametrize("message", ["the mask is blue: paint it", "the mask is\n  blue: paint it"])
def test_a_refusal_is_one_line_with_exit_status_2(command, capsys, message):
    with pytest.raises(SystemExit) as end:
        command(Refused(message))
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "lemica fail: error: the mask is blue: paint it\n")


def test_a_file_that_is_kept_elsewhere_is_named_with_exit_status_1(command, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        command(NotMoved("g.json cannot be written: the finished file is kept-g.json"))
    assert end.value.code == 1
    line = "lemica fail: error: g.json cannot be written: the finished file is kept-g.json\n"
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "error", [KeyError("steps"), ValueError("steps"), OSError(28, "full", "f"), BrokenPipeError(32)]
)
def test_an_error_of_the_program_keeps_its_traceback(command, error):
    with pytest.raises(type(error)):
        command(error)


def test_only_what_a_wrong_input_causes_is_turned_into_a_refusal():
    line = r"^nowhere: No such file or directory: name another$"
    with pytest.raises(Refused, match=line), refusing(OSError, hint=": name another"):
        os.stat("nowhere")
    with pytest.raises(Refused, match=r"^mask\.json: Is a directory$"), refusing(OSError):
        raise IsADirectoryError(21, "Is a directory", ".mask.1.tmp.json", None, "mask.json")
    with pytest.raises(KeyError), refusing(OSError, ValueError):
        raise KeyError("steps")


def test_an_interrupted_command_ends_as_one(command):
    with pytest.raises(SystemExit) as end:
        command(KeyboardInterrupt())
    assert end.value.code == 130


def test_arguments_that_cannot_be_parsed_are_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(["compute"])
    assert end.value.code == 2
    assert re.fullmatch(r"lemica: error: .*invalid choice: 'compute'.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(("rank", "local_rank", "lines"), [(1, 1, 0), (0, 0, 1), (8, 0, 1), (9, 1, 0)])
def test_one_rank_on_every_node_speaks(capsys, monkeypatch, rank, local_rank, lines):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(SystemExit) as end:
        main(["compare", "nowhere.mp4", "nowhere.mp4"])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == lines


def test_a_rank_says_itself_what_it_alone_refuses(command, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        command(RefusedHere("the disk of this node is full"))
    assert capsys.readouterr().err == "lemica fail: error: the disk of this node is full\n"


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_a_manual_explains_every_option_and_shows_examples(name, capsys):
    parser = build_parser()
    if name:
        parser = parser._subparsers._group_actions[0].choices[name]
    assert all(action.help for action in parser._actions if action.option_strings or action.nargs == "+")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"\n  lemica {name or 'calibrate'} " in text.partition("\nexamples:")[2]
    assert max(map(len, text.splitlines())) <= 120


def test_the_package_and_its_manuals_need_numpy_alone():
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    shown = python("-c", blocked + "import lemica.cli.main as frame; frame.main(['--help'])", cwd=REPOSITORY)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(re.search(rf"\n    {name}\s", shown.stdout) for name in COMMANDS)


def test_no_command_imports_another():
    for name in COMMANDS:
        text = (REPOSITORY / "lemica" / "cli" / f"{name}.py").read_text(encoding="utf-8")
        assert "lemica.cli" not in text


@pytest.mark.parametrize(
    ("arguments", "missing", "line"),
    [
        (
            ["compare", "a.mp4", "a.mp4"],
            "imageio_ffmpeg",
            "comparing videos needs imageio_ffmpeg: pip install scikit-image",
        ),
        (["compare", "a.mp4", "a.mp4"], "tqdm", "comparing videos needs tqdm: pip install scikit-image"),
        (["report", "."], "jinja2", 'the page needs jinja2: pip install jinja2 (the extra "report" of lemica)'),
    ],
)
def test_a_missing_package_is_refused_with_what_to_install(tmp_path, monkeypatch, capsys, arguments, missing, line):
    monkeypatch.chdir(tmp_path)
    Path("a.mp4").touch()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert error.startswith(f"lemica {arguments[0]}: error: {line}") and error.count("\n") == 1


# The package


def test_the_installed_command_is_python_m_lemica():
    installed = subprocess.run([Path(sys.executable).with_name("lemica"), "--help"], capture_output=True, text=True)
    module = python("-m", "lemica", "--help", cwd=REPOSITORY)
    assert installed.returncode == 0 and installed.stdout == module.stdout


def test_refusals_name_the_packages_of_the_extras():
    declared = metadata.requires("lemica")
    for extra, packages in EXTRAS.items():
        named = [re.match(r"[\w-]+", line)[0] for line in declared if line.endswith(f'extra == "{extra}"')]
        assert set(packages.split()) == {*named} - {"lemica"}


def test_a_wheel_holds_the_command_and_its_files(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("lemica", "pyproject.toml", "README.md", "LICENSE"):
        os.symlink(REPOSITORY / name, source / name)
    build = ("wheel", "--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", tmp_path, source)
    built = python("-m", "pip", *build)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("lemica-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entries = next(name for name in names if name.endswith("entry_points.txt"))
        assert "lemica = lemica.cli.main:main" in archive.read(entries).decode()
    assert {name for name in names if not name.endswith(".py") and ".dist-info/" not in name} == {
        "lemica/released_masks.json",
        *(f"lemica/report/{name}.css" for name in ("base", "grid", "report")),
        *(f"lemica/report/{name}.html.in" for name in ("grid", "player", "report")),
        *(f"lemica/report/{name}.js" for name in ("grid", "player", "report")),
    }
    assert {"lemica/masks.py", "lemica/planning/graph.py", "lemica/quality/metrics.py"} <= set(names)
