"""What a message says to type can be typed, and does what the message promises."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from calibrated import calibrated_graph
from fake_runs import moving_disc, write_compressed, write_run

from lemica.calibration.calibrate import next_command
from lemica.cli.main import COMMANDS, build_parser, main
from lemica.errors import EXTRAS
from lemica.masks import Mask, Target, read_mask, step_mask, write_mask
from lemica.planning.graph import ErrorGraph, edge_pairs, write_graph
from lemica.planning.paths import feasible_budgets
from lemica.quality.metrics import HOW_TO_GET_LPIPS

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted((REPOSITORY / "lemica").rglob("*.py"))
# Of python, torchrun and pip (--no-deps), not of ours.
OTHERS = {"--help", "--nproc_per_node", "--no"}


def texts(path: Path) -> list[str]:
    """All strings of a module; the places of f-strings that are filled in later are left out."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def options_of_the_commands() -> set[str]:
    commands = build_parser()._subparsers._group_actions[0].choices.values()
    return {option for command in commands for action in command._actions for option in action.option_strings}


def options_of_the_kit() -> set[str]:
    return set(re.findall(r'"(--\w+)"', (REPOSITORY / "generate.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_option_and_command_that_a_message_names_exists(path):
    found = texts(path)
    named = {option for text in found for option in re.findall(r"(?<![\w-])--[a-z]\w*", text)}
    assert named <= options_of_the_commands() | options_of_the_kit() | OTHERS
    commands = {name for text in found for name in re.findall(r"(?:^|type |with |type it with )lemica ([a-z]+) ", text)}
    assert commands <= {*COMMANDS}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_file_that_a_message_names_exists(path):
    files = {file for text in texts(path) for file in re.findall(r"KIT/([\w/.]+)|\b(generate\.py)", text)}
    assert all((REPOSITORY / (first or second)).is_file() for first, second in files)


@pytest.fixture
def hint(capsys):
    """Run a command that is refused and give its line."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)])
        assert end.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture
def graph(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_graph(calibrated_graph(), "graph.json")
    return Path("graph.json")


def graph_of(num_steps: int, max_gap: int) -> ErrorGraph:
    edges = [(i, j, float(j - i)) for i, j in edge_pairs(num_steps, max_gap)]
    return ErrorGraph.from_edges(target=Target("m"), num_steps=num_steps, max_gap=max_gap, edges=edges)


@pytest.mark.parametrize("num_steps", range(3, 13))
def test_what_a_calibration_says_to_type_next_has_a_budget_that_can_be_planned(tmp_path, monkeypatch, num_steps):
    monkeypatch.chdir(tmp_path)
    for max_gap in range(2, num_steps):
        graph = graph_of(num_steps, max_gap)
        output = Path(f"it's graph {max_gap}.json")
        write_graph(graph, output)
        program, *arguments = shlex.split(next_command(graph, output))
        assert program == "lemica" and int(arguments[-1]) in feasible_budgets(num_steps, max_gap)
        main([*arguments, "--forecast", "hold"])


def test_budgets_that_are_said_to_be_feasible_are(graph, hint):
    line = hint("plan", graph, "--budget", 2)
    for budget in re.search(r"choose a budget from (\d+) to (\d+)", line).groups():
        main(["plan", str(graph), "--budget", budget])


def test_a_graph_without_moments_is_planned_as_is_said(tmp_path, monkeypatch, hint):
    monkeypatch.chdir(tmp_path)
    write_graph(graph_of(9, 4), "graph.json")
    plan = ("plan", "graph.json", "--budget", "4")
    options = re.search(r"plan with (--forecast \w+)", hint(*plan))[1]
    main([*plan, *options.split()])


def test_a_history_is_accepted_as_is_said(graph, hint):
    plan = ("plan", str(graph), "--budget", "5", "--history", "3")
    options = re.search(r"or type (--forecast \w+)$", hint(*plan, "--forecast", "damped"), re.MULTILINE)[1]
    main([*plan, *options.split()])


def test_several_budgets_are_written_as_is_said(graph, hint):
    line = hint("plan", graph, "--budget", 5, 6, "-o", "mask.json")
    main(["plan", str(graph), "--budget", "5", "6", "-o", f"mask{re.search(r'put (.*) into it', line)[1]}.json"])
    assert [read_mask(f"mask{budget}.json").budget for budget in (5, 6)] == [5, 6]


def test_a_plot_is_drawn_as_is_said(graph, hint):
    pytest.importorskip("matplotlib")
    for name in ("graph", "graph.unknown"):
        for suffix in re.findall(r"\.(?:png|svg|pdf)", hint("show", graph, "--plot", name)):
            main(["show", str(graph), "--plot", f"graph{suffix}"])
            assert Path(f"graph{suffix}").is_file()
    write_mask(Mask(step_mask(5, 9), "velocity").with_weights(calibrated_graph().target.sigmas), "mask.json")
    option = re.search(r"say which with (--graph) GRAPH", hint("show", "mask.json", "--plot", "p.png"))[1]
    main(["show", "mask.json", "--plot", "p.png", option, str(graph)])


def test_videos_are_compared_as_given_as_is_said(tmp_path, hint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path()
    write_run(folder, "a", moving_disc(frames=2))
    write_run(folder, "b", moving_disc(0.1, frames=2), request={"seed": 7})
    option = re.search(r"type (--as_given) to compare", hint("compare", "a.mp4", "b.mp4"))[1]
    main(["compare", "a.mp4", "b.mp4", option])
    write_compressed(folder / "b.mp4", moving_disc(0.2, frames=2))
    assert "or take the config away" in hint("compare", "a.mp4", "b.mp4")
    Path("b_config.json").unlink()
    main(["compare", "a.mp4", "b.mp4"])


def test_packages_that_are_said_to_be_missing_have_their_names():
    pip, python = HOW_TO_GET_LPIPS.split(" && ")
    assert shlex.split(pip)[:2] == ["pip", "install"]
    compile(shlex.split(python)[2], "hint", "exec")
    assert all(re.fullmatch(r"[\w -]+", packages) for packages in EXTRAS.values())
