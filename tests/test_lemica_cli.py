"""python -m lemica: masks and their files, plan, show, refusals, no torch, and a planned mask in generate.py."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import REPOSITORY, TREE, clean_environment

import infer_state
from lemica import masks
from lemica.__main__ import COMMANDS, build_parser, main
from lemica.graph import ErrorGraph, edge_pairs, write_graph
from lemica.masks import Mask, read_mask, static_mask, strip, uniform_mask, write_mask
from lemica.path import lexicographic_minimax_path, minimum_sum_path

N, D = 12, 4


def graph_with(weight, **settings) -> ErrorGraph:
    settings = {"model": "480p_t2v", "num_steps": N, "max_gap": D} | settings
    edges = [(i, j, weight(i, j)) for i, j in edge_pairs(settings["num_steps"], settings["max_gap"])]
    return ErrorGraph.from_edges(edges=edges, **settings)


def early_is_dear(i: int, j: int) -> float:
    return (j - i - 1.0) * (N - i) ** 2


@pytest.fixture
def graph(tmp_path) -> Path:
    path = tmp_path / "graph.json"
    write_graph(graph_with(early_is_dear, samples=3), path)
    return path


def refused(capsys, *arguments) -> str:
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err
    assert line.startswith("python -m lemica") and line.endswith("\n") and line.count("\n") == 1
    return line


# Masks


def test_a_mask_is_read_as_it_was_written(tmp_path):
    mask = Mask("480p_t2v + fine.lora", 6, (0, 2, 5), 'planned, "minimax" over g.json', "velocity", "linear-sigma")
    write_mask(mask, tmp_path / "new" / "mask.json")
    assert read_mask(tmp_path / "new" / "mask.json") == mask
    assert mask.steps == (True, False, True, False, False, True)
    assert mask.budget == 3
    assert os.listdir(tmp_path / "new") == ["mask.json"]


def test_the_mask_file_is_the_documented_format_and_generation_reads_it(tmp_path):
    write_mask(Mask("m", 4, (0, 1, 3), "by hand"), tmp_path / "mask.json")
    assert json.loads((tmp_path / "mask.json").read_text()) == {
        "format": "lemica-mask/1",
        "model": "m",
        "num_steps": 4,
        "budget": 3,
        "computed_steps": [0, 1, 3],
        "origin": "by hand",
        "reuse": "residual",
        "forecast": "hold",
    }
    assert infer_state.read_mask(str(tmp_path / "mask.json")).steps == (True, True, False, True)


def test_reading_refuses_what_generation_refuses(tmp_path):
    path = tmp_path / "mask.json"
    path.write_text('{"format": "lemica-mask/1", "num_steps": 4, "computed_steps": [0, 1]}')
    with pytest.raises(ValueError) as here:
        read_mask(path)
    with pytest.raises(ValueError) as there:
        infer_state.read_mask(str(path))
    assert str(here.value) == str(there.value)
    assert "must begin with 0 and end with 3" in str(here.value)


def test_the_reader_is_found_beside_lemica_and_in_a_tree(tmp_path, monkeypatch):
    for folder in (REPOSITORY, TREE):
        monkeypatch.setattr(masks, "__file__", str(folder / "lemica" / "masks.py"))
        assert masks._load_infer_state().MASK_FORMAT == "lemica-mask/1"
    monkeypatch.setattr(masks, "__file__", str(tmp_path / "lemica" / "masks.py"))
    with pytest.raises(ImportError, match="has no infer_state"):
        masks._load_infer_state()


@pytest.mark.parametrize(
    ("budget", "steps", "expected"),
    [(2, 5, "■···■"), (3, 5, "■·■·■"), (5, 5, "■■■■■"), (4, 6, "■·■■·■"), (3, 6, "■··■·■")],
)
def test_uniform_masks(budget, steps, expected):
    assert strip(uniform_mask(budget, steps)) == expected


def test_uniform_masks_have_their_budget_and_even_gaps():
    for steps in range(2, 60):
        for budget in range(2, steps + 1):
            computed = masks.computed_steps(uniform_mask(budget, steps))
            gaps = {j - i for i, j in pairwise(computed)}
            assert len(computed) == budget and computed[0] == 0 and computed[-1] == steps - 1
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("budget", "steps"), [(1, 5), (6, 5), (0, 1)])
def test_uniform_masks_refuse_what_has_no_mask(budget, steps):
    with pytest.raises(ValueError, match=f"no uniform mask of budget {budget} for {steps} steps; choose 2 to {steps}"):
        uniform_mask(budget, steps)


def test_the_static_mask_is_upstreams_rule_and_computes_the_last_step():
    upstream = {*range(11), *range(11, 45, 4), *range(45, 50)}
    assert set(masks.computed_steps(static_mask(50))) == upstream
    assert masks.computed_steps(static_mask(20)) == (*range(12), 15, 19)
    assert strip(static_mask(9, start=2, end=7, interval=3)) == "■■■··■·■■"
    assert strip(static_mask(6, start=1, end=9, interval=2)) == "■■·■·■"
    assert strip(static_mask(7, start=1, end=9, interval=2)) == "■■·■·■■"


# plan


@pytest.mark.parametrize(("objective", "solve"), [("minimax", lexicographic_minimax_path), ("sum", minimum_sum_path)])
def test_plan_writes_the_optimal_path(graph, tmp_path, capsys, objective, solve):
    main(["plan", str(graph), "--budget", "6", "--objective", objective, "-o", str(tmp_path / "mask.json")])
    mask = read_mask(tmp_path / "mask.json")
    assert list(mask.computed_steps) == solve(graph_with(early_is_dear), 6)
    assert (mask.model, mask.num_steps, mask.origin) == ("480p_t2v", N, f"planned, {objective} over graph.json")
    assert strip(mask.steps) in capsys.readouterr().out


def test_the_objectives_differ_here(graph, capsys):
    main(["plan", str(graph), "--budget", "6"])
    minimax = capsys.readouterr().out
    main(["plan", str(graph), "--budget", "6", "--objective", "sum"])
    assert minimax.splitlines()[-1] != capsys.readouterr().out.splitlines()[-1]


def test_plan_writes_several_budgets(graph, tmp_path, capsys):
    main(["plan", str(graph), "--budget", "6", "5", "8", "-o", str(tmp_path / "b{budget}.json")])
    assert [read_mask(tmp_path / f"b{budget}.json").budget for budget in (5, 6, 8)] == [5, 6, 8]
    heads = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "steps" in line]
    assert heads == [str(tmp_path / f"b{budget}.json") for budget in (6, 5, 8)]


def test_plan_averages_several_graphs_by_their_samples(graph, tmp_path):
    def late_is_dear(i: int, j: int) -> float:
        return (j - i - 1.0) * (1 + i) ** 2.5

    write_graph(graph_with(late_is_dear), tmp_path / "other.json")
    main(["plan", str(graph), str(tmp_path / "other.json"), "--budget", "6", "-o", str(tmp_path / "mask.json")])
    mean = graph_with(lambda i, j: (3 * early_is_dear(i, j) + late_is_dear(i, j)) / 4)
    alone = [lexicographic_minimax_path(graph_with(weight), 6) for weight in (early_is_dear, late_is_dear)]
    best = lexicographic_minimax_path(mean, 6)
    assert best not in alone
    assert read_mask(tmp_path / "mask.json").computed_steps == tuple(best)


def test_plan_without_a_name_only_prints(graph, tmp_path, capsys):
    main(["plan", str(graph), "--budget", "5"])
    head, weights, steps = capsys.readouterr().out.splitlines()
    assert head == "budget 5: 480p_t2v, 5 of 12 steps, residual + hold, planned, minimax over graph.json"
    path = lexicographic_minimax_path(graph_with(early_is_dear), 5)
    costs = {(i, j): early_is_dear(i, j) for i, j in pairwise(path)}
    worst = max(costs, key=costs.get)
    assert weights == f"worst edge {worst[0]} -> {worst[1]} {costs[worst]:.4g}, total {sum(costs.values()):.4g}"
    assert len(steps) == N and steps.count("■") == 5
    assert os.listdir(tmp_path) == ["graph.json"]


def test_a_reader_that_closes_the_pipe_costs_no_mask(graph, tmp_path):
    command = [
        sys.executable,
        "-m",
        "lemica",
        "plan",
        str(graph),
        "--budget",
        "5",
        "6",
        "-o",
        str(tmp_path / "b{budget}.json"),
    ]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, cwd=REPOSITORY, check=True)
    assert done.stderr == b""
    assert sorted(os.listdir(tmp_path)) == ["b5.json", "b6.json", "graph.json"]


# show


def test_show_prints_masks_and_graphs(graph, tmp_path, capsys):
    write_mask(Mask("480p_t2v", N, (0, 1, 4, 8, 11), "by hand"), tmp_path / "mask.json")
    main(["show", str(tmp_path / "mask.json"), str(graph)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("mask.json: 480p_t2v, 5 of 12 steps, residual + hold, by hand")
    assert lines[1] == "■■··■···■··■"
    assert lines[2].endswith("graph.json: 480p_t2v, 12 steps, 3 samples, residual + hold, budgets 4 to 12")
    errors = [early_is_dear(i, i + 3) for i in range(N - 3)]
    assert lines[5].split() == [
        "3",
        "9",
        f"{min(errors):.4g}",
        f"{errors[4]:.4g}",
        f"{max(errors):.4g}",
        "0",
        "->",
        "3",
    ]
    assert len(lines) == 4 + D - 1


def test_show_weighs_masks_by_a_graph(graph, tmp_path, capsys):
    write_mask(Mask("480p_t2v", N, (0, 1, 4, 8, 11), "by hand"), tmp_path / "mask.json")
    write_mask(Mask("480p_t2v", N, (0, 1, 9, 11), "by hand"), tmp_path / "long.json")
    main(["show", str(tmp_path / "mask.json"), str(tmp_path / "long.json"), "--graph", str(graph)])
    lines = capsys.readouterr().out.splitlines()
    costs = [early_is_dear(1, 4), early_is_dear(4, 8), early_is_dear(8, 11)]
    assert max(costs) == costs[0]
    assert lines[1] == f"worst edge 1 -> 4 {costs[0]:.4g}, total {sum(costs):.4g}"
    assert lines[4] == "not weighed: edge 1 -> 9 is longer than the graph's gaps, which go to 4"
    write_mask(Mask("480p_t2v", N, (0, 1, 4, 8, 11), "by hand", "velocity"), tmp_path / "mask.json")
    main(["show", str(tmp_path / "mask.json"), "--graph", str(graph)])
    assert capsys.readouterr().out.splitlines()[1] == f"{lines[1]} by a graph of 480p_t2v, residual + hold"


def test_show_draws_the_graph_with_paths_on_it(graph, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    write_mask(Mask("480p_t2v", N, (0, 1, 4, 8, 11), "by hand"), tmp_path / "mask.json")
    main(["show", str(graph), "--plot", str(tmp_path / "plain.png")])
    main(["show", str(tmp_path / "mask.json"), "--graph", str(graph), "--plot", str(tmp_path / "path.png")])
    plain, path = imread(tmp_path / "plain.png"), imread(tmp_path / "path.png")
    assert min(plain.shape[:2]) > 300
    assert plain.shape == path.shape
    assert (plain != path).any()


def test_a_path_is_drawn_from_start_step_to_gap():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from lemica.plot import draw_path

    axes = Figure().add_subplot()
    draw_path(axes, "mask", Mask("480p_t2v", N, (0, 1, 4, 8, 11), "by hand"), graph_with(early_is_dear))
    assert axes.lines[0].get_xydata().tolist() == [[0, 1], [1, 3], [4, 4], [8, 3]]


def test_a_graph_without_errors_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    write_graph(graph_with(lambda i, j: 0.0), tmp_path / "zero.json")
    main(["show", str(tmp_path / "zero.json"), "--plot", str(tmp_path / "zero.png")])
    assert (tmp_path / "zero.png").stat().st_size > 0


# Refusals and help


def test_refusals_are_one_line_that_says_what_to_type(graph, tmp_path, capsys):
    (tmp_path / "no.json").write_text("{")
    write_graph(graph_with(early_is_dear, num_steps=9), tmp_path / "nine.json")
    write_mask(Mask("480p_t2v", N, (0, 1, 4, 8, 11), "by hand"), tmp_path / "mask.json")
    mask, nine, no = tmp_path / "mask.json", tmp_path / "nine.json", tmp_path / "no.json"
    assert "choose a budget from 4 to 12" in refused(capsys, "plan", graph, "--budget", "3")
    assert "-o m.json would be written 2 times: put {budget} into it" in refused(
        capsys, "plan", graph, "--budget", "5", "6", "-o", "m.json"
    )
    assert "write the graph again with python -m lemica calibrate" in refused(capsys, "plan", mask, "--budget", "5")
    assert "merge only graphs of one num_steps" in refused(capsys, "plan", graph, nine, "--budget", "5")
    assert "nowhere.json: No such file or directory" in refused(capsys, "plan", "nowhere.json", "--budget", "5")
    assert "the following arguments are required: --budget" in refused(capsys, "plan", graph)
    assert "is not JSON: write one with python -m lemica plan" in refused(capsys, "show", no)
    assert "give a graph of 12 steps" in refused(capsys, "show", mask, "--graph", nine)
    assert "got 0: say which with --graph GRAPH" in refused(capsys, "show", mask, "--plot", tmp_path / "p.png")
    assert "is no picture: name a file that ends in .png" in refused(capsys, "show", graph, "--plot", tmp_path)
    assert "-o is empty: name a file" in refused(capsys, "plan", graph, "--budget", "5", "-o", "")
    assert "invalid choice: 'compute'" in refused(capsys, "compute")
    assert not (tmp_path / "m.json").exists()


def test_only_rank_0_speaks(graph, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        main(["plan", str(graph), "--budget", "1"])
    assert end.value.code == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [None, *(module.__name__.rpartition(".")[2] for module in COMMANDS)])
def test_help_explains_every_option_and_shows_examples(command, capsys):
    parser = build_parser()
    if command:
        parser = parser._subparsers._group_actions[0].choices[command]
    assert all(action.help for action in parser._actions if action.option_strings or action.nargs == "+")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text and "python -m lemica" in text
    assert max(map(len, text.splitlines())) <= 120


# In processes of their own

BLOCKING = "import sys; sys.modules.update(dict.fromkeys(['torch', 'hyvideo', 'diffusers', 'matplotlib', 'tqdm'])); "


def test_plan_and_show_need_numpy_alone(graph, tmp_path):
    line = BLOCKING + "from lemica.__main__ import main; main(sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"}

    def lemica(*arguments):
        return subprocess.run(
            [sys.executable, "-c", line, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            encoding="utf-8",
        )

    planned = lemica("plan", graph, "--budget", "6", "-o", "mask.json")
    assert (planned.returncode, planned.stderr) == (0, "")
    shown = lemica("show", "mask.json", "--graph", graph)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert planned.stdout.splitlines()[1:] == shown.stdout.splitlines()[1:]
    drawn = lemica("show", graph, "--plot", "graph.png")
    assert drawn.returncode == 2
    assert "pip install matplotlib" in drawn.stderr
    calibrated = lemica(
        *("calibrate", "--model_path", tmp_path, "--resolution", "480p", "--prompts", graph, "--output", "new.json")
    )
    assert calibrated.returncode == 2
    assert "scripts/install.sh TREE && cd TREE && PYTHONPATH=" in calibrated.stderr
    assert calibrated.stderr.count("\n") == 1


def test_a_planned_mask_goes_straight_into_generation(checkpoint, tmp_path):
    write_graph(graph_with(lambda i, j: float(j - i + i), num_steps=5, max_gap=3), tmp_path / "graph.json")
    main(["plan", str(tmp_path / "graph.json"), "--budget", "3", "-o", str(tmp_path / "mask.json")])
    planned = read_mask(tmp_path / "mask.json")
    result = subprocess.run(
        [
            *(
                sys.executable,
                "generate.py",
                "--model_path",
                checkpoint,
                "--resolution",
                "480p",
                "--prompt",
                "a circle",
            ),
            *("--video_length", "1", "--aspect_ratio", "1:1", "--num_inference_steps", "5", "--sr", "false"),
            *("--enable_cache", "true", "--cache_type", "lemica", "--lemica_mask", tmp_path / "mask.json"),
            *("--output_path", tmp_path / "video.mp4"),
        ],
        cwd=TREE,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "video_config.json").read_text())["report"]
    assert report["computed_steps"] == list(planned.computed_steps)
    assert (report["num_steps"], report["mask_origin"]) == (5, "planned")
