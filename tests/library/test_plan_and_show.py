"""Planning masks, from Python and with lemica plan, and lemica show: files, text, pictures, refusals, no torch."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from calibrated import MAX_GAP, NUM_STEPS, TARGET, calibrated_graph

from lemica.cli.main import main
from lemica.forecasts import FORECASTS, forecast_named, hold
from lemica.masks import Mask, Target, mask_of, read_mask, step_mask, strip, uniform_mask, write_mask
from lemica.planning.graph import ErrorGraph, edge_pairs, merge_graphs, write_graph
from lemica.planning.paths import minimax_paths, minimum_sum_paths
from lemica.planning.plan import plan, plan_many, with_forecast
from lemica.planning.routes import edge_costs, forecast_routes

REPOSITORY = Path(__file__).resolve().parents[2]
N, D = 12, 4


def held_graph(error, num_steps=N, max_gap=D, samples=1) -> ErrorGraph:
    """A graph without moments, on which hold alone can be planned."""
    edges = [(i, j, error(i, j)) for i, j in edge_pairs(num_steps, max_gap)]
    sizes = {"num_steps": num_steps, "max_gap": max_gap, "samples": samples}
    return ErrorGraph.from_edges(target=Target("480p_t2v"), edges=edges, **sizes)


def early_is_dear(i: int, j: int) -> float:
    return (j - i - 1.0) * (N - i) ** 2


def best_held(graph: ErrorGraph, budget: int, solve=minimax_paths) -> tuple[int, ...]:
    return solve(forecast_routes(graph, hold()), [budget])[budget]


def by_hand(*computed: int, num_steps: int = N, **settings) -> Mask:
    settings = {"kept": "velocity", "made_by": "by hand", "target": Target("480p_t2v")} | settings
    return Mask(mask_of(computed, num_steps), **settings).with_weights(TARGET.sigmas)


@pytest.fixture
def graph(tmp_path) -> Path:
    path = tmp_path / "graph.json"
    write_graph(held_graph(early_is_dear, samples=3), path)
    return path


@pytest.fixture
def calibrated(tmp_path) -> Path:
    path = tmp_path / "calibrated.json"
    write_graph(calibrated_graph(), path)
    return path


@pytest.fixture
def lemica(capsys):
    """Run a command and give the lines that it prints."""

    def run(*arguments) -> list[str]:
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def refused(capsys):
    """Run a command that refuses and give its one line."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert end.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("lemica ") and printed.err.endswith("\n") and printed.err.count("\n") == 1
        return printed.err

    return run


# Planning from Python


def test_a_plan_is_fitted_and_counts_on_two_computed_steps_unless_another_forecast_is_asked_for():
    graph = calibrated_graph()
    mask = plan(graph, 5)
    steps = minimax_paths(forecast_routes(graph, forecast_named("fitted", graph.moments, 2)), [5])[5]
    assert mask == with_forecast(mask_of(steps, NUM_STEPS), graph, "fitted", made_by="lemica.plan")
    assert (mask.rule, mask.history, mask.kept) == ("fitted", 3, "velocity")
    assert (mask.origin, mask.target) == ("planned", TARGET)


@pytest.mark.parametrize("name", FORECASTS)
@pytest.mark.parametrize("objective", ["minimax", "sum"])
def test_a_planned_mask_holds_the_weights_of_its_forecast(name, objective):
    graph = calibrated_graph()
    for budget, mask in plan_many(graph, [4, 6], name, history=3, objective=objective).items():
        assert (mask.budget, mask.rule, mask.kept) == (budget, name, "velocity")
        assert mask.weights == forecast_named(name, graph.moments, 3).rows(mask.steps)


def test_several_budgets_are_planned_as_one_is():
    graph = calibrated_graph()
    assert plan_many(graph) == {budget: plan(graph, budget) for budget in range(3, NUM_STEPS + 1)}


def test_known_steps_get_a_forecasts_weights():
    graph = calibrated_graph()
    mask = with_forecast(uniform_mask(4, NUM_STEPS), graph, history=3, made_by="by hand")
    assert mask.steps == uniform_mask(4, NUM_STEPS)
    assert mask.weights == forecast_named("fitted", graph.moments, 3).rows(mask.steps)
    assert (mask.rule, mask.target, mask.made_by) == ("fitted", TARGET, "by hand")
    with pytest.raises(ValueError, match="the mask is for 50 steps, the graph for 9: take one of as many"):
        with_forecast(step_mask(10, 50), graph)


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match="which forecast fitted needs: write the graph again with lemica calibrate"):
        plan(held_graph(early_is_dear), 6)
    with pytest.raises(ValueError, match="objective 'most' is not known: choose one of minimax, sum"):
        plan(calibrated_graph(), 6, objective="most")


# lemica plan


@pytest.mark.parametrize(("objective", "solve"), [("minimax", minimax_paths), ("sum", minimum_sum_paths)])
def test_plan_writes_the_optimal_path(graph, tmp_path, lemica, objective, solve):
    options = ("--budget", 6, "--forecast", "hold", "--objective", objective, "-o", tmp_path / "mask.json")
    lines = lemica("plan", graph, *options)
    mask = read_mask(tmp_path / "mask.json")
    assert mask.computed_steps == best_held(held_graph(early_is_dear), 6, solve)
    assert mask.made_by == f"lemica plan, {objective}, graph.json"
    assert (mask.target, mask.weights) == (Target("480p_t2v"), hold().rows(mask.steps))
    assert lines[-1] == strip(mask.steps)


def test_the_objectives_differ_here(graph, lemica):
    held = ("plan", graph, "--budget", "6", "--forecast", "hold")
    assert lemica(*held)[-1] != lemica(*held, "--objective", "sum")[-1]


def test_plan_corrects_where_the_sampler_is_eulers_and_says_where_it_is_unknown(tmp_path, capsys):
    for is_euler, flags, corrected, told in (
        (True, [], True, ""),
        (True, ["--no_correction"], False, ""),
        (None, [], False, "does not tell its sampler: no corrections"),
        (None, ["--forecast", "hold"], False, ""),
    ):
        write_graph(replace(calibrated_graph(), is_euler=is_euler), tmp_path / "graph.json")
        main(["plan", str(tmp_path / "graph.json"), "--budget", "4", "-o", str(tmp_path / "mask.json"), *flags])
        printed = capsys.readouterr()
        assert bool(read_mask(tmp_path / "mask.json").corrected_steps) is corrected
        assert (", corrected" in printed.out) is corrected
        assert told in printed.err and bool(printed.err) is bool(told)


def test_plan_is_fitted_by_default_and_reads_as_much_history_as_asked_for(calibrated, tmp_path, lemica):
    for options, expected in [
        ((), plan(calibrated_graph(), 5)),
        (("--history", 3), plan(calibrated_graph(), 5, history=3)),
        (("--forecast", "taylor-step"), plan(calibrated_graph(), 5, "taylor-step")),
    ]:
        lemica("plan", calibrated, "--budget", 5, *options, "-o", tmp_path / "mask.json")
        made_by = "lemica plan, minimax, calibrated.json"
        assert read_mask(tmp_path / "mask.json") == replace(expected, made_by=made_by)


def test_plan_writes_several_budgets(calibrated, tmp_path, lemica):
    lines = lemica("plan", calibrated, "--budget", 6, 5, 8, "-o", tmp_path / "b{budget}.json")
    assert [read_mask(tmp_path / f"b{budget}.json").budget for budget in (5, 6, 8)] == [5, 6, 8]
    heads = [line.split(":")[0] for line in lines if "steps" in line]
    assert heads == [str(tmp_path / f"b{budget}.json") for budget in (6, 5, 8)]


def test_plan_averages_several_graphs_by_their_samples(graph, tmp_path, lemica):
    def late_is_dear(i: int, j: int) -> float:
        return (j - i - 1.0) * (1 + i) ** 2.5

    graphs = [held_graph(early_is_dear, samples=3), held_graph(late_is_dear)]
    write_graph(graphs[1], tmp_path / "other.json")
    held = ("--budget", "6", "--forecast", "hold", "-o", tmp_path / "mask.json")
    lemica("plan", graph, tmp_path / "other.json", *held)
    best = best_held(merge_graphs(graphs), 6)
    assert best not in [best_held(each, 6) for each in graphs]
    mask = read_mask(tmp_path / "mask.json")
    assert (mask.computed_steps, mask.made_by) == (best, "lemica plan, minimax, graph.json, other.json")


def test_plan_without_a_name_only_prints(graph, tmp_path, lemica):
    head, costs, steps = lemica("plan", graph, "--budget", "5", "--forecast", "hold")
    assert head == "budget 5: 480p_t2v, 5 of 12 steps, velocity + hold, lemica plan, minimax, graph.json"
    path = best_held(held_graph(early_is_dear), 5)
    errors = {(i, j): early_is_dear(i, j) for i, j in pairwise(path)}
    worst = max(errors, key=errors.get)
    assert costs == f"worst edge {worst[0]} -> {worst[1]} {errors[worst]:.4g}, total {sum(errors.values()):.4g}"
    assert len(steps) == N and steps.count("■") == 5
    assert os.listdir(tmp_path) == ["graph.json"]


def test_a_reader_that_closes_the_pipe_costs_no_mask(calibrated, tmp_path):
    budgets = ("--budget", "5", "6", "-o", tmp_path / "b{budget}.json")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as closed:
        command = [sys.executable, "-m", "lemica", "plan", calibrated, *budgets]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, cwd=REPOSITORY, check=True)
    assert done.stderr == b""
    assert sorted(os.listdir(tmp_path)) == ["b5.json", "b6.json", "calibrated.json"]


# lemica show


def test_show_prints_masks_and_graphs(graph, tmp_path, lemica):
    write_mask(by_hand(0, 1, 4, 8, 11), tmp_path / "mask.json")
    lines = lemica("show", tmp_path / "mask.json", graph)
    assert lines[0].endswith("mask.json: 480p_t2v, 5 of 12 steps, velocity + hold, by hand")
    assert lines[1] == "■■··■···■··■"
    assert lines[2].endswith("graph.json: 480p_t2v, 12 steps, 3 samples, velocity held, budgets 4 to 12")
    errors = [early_is_dear(i, i + 3) for i in range(N - 3)]
    numbers = [f"{value:.4g}" for value in (min(errors), errors[4], max(errors))]
    assert lines[5].split() == ["3", "9", *numbers, "0", "->", "3"]
    assert len(lines) == 4 + D - 1


def test_show_says_what_masks_cost_by_a_graph(graph, tmp_path, lemica):
    write_mask(by_hand(0, 1, 4, 8, 11), tmp_path / "mask.json")
    write_mask(by_hand(0, 1, 9, 11), tmp_path / "long.json")
    lines = lemica("show", tmp_path / "mask.json", tmp_path / "long.json", "--graph", graph)
    errors = [early_is_dear(1, 4), early_is_dear(4, 8), early_is_dear(8, 11)]
    assert max(errors) == errors[0]
    assert lines[1] == f"worst edge 1 -> 4 {errors[0]:.4g}, total {sum(errors):.4g}"
    assert lines[4] == "no cost: edge 1 -> 9 is longer than the graph's gaps, which go to 4"


@pytest.mark.parametrize("name", FORECASTS)
def test_a_masks_cost_is_shown_as_its_plan_reckons_it(calibrated, tmp_path, lemica, name):
    planned = lemica("plan", calibrated, "--budget", 5, "--forecast", name, "-o", tmp_path / "mask.json")
    shown = lemica("show", tmp_path / "mask.json", "--graph", calibrated)
    assert shown == planned
    costs = edge_costs(calibrated_graph(), plan(calibrated_graph(), 5, name))
    assert f" {max(costs):.4g}, total {sum(costs):.4g}" in shown[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "damped"}, ""),
        ({"kept": "residual"}, ", as if the velocity were held"),
        ({"rule": "by hand", "weights": ((), (), (0.5,), (), (0.5,), (0.5,), (), (0.5,), ())}, ", as if the velocity"),
        ({"target": replace(TARGET, model="other", dtype="bfloat16")}, ", by a graph of other model, dtype"),
        ({"target": Target()}, ""),
        ({"target": Target("demo", sigmas=TARGET.sigmas[::-1])}, ", by a graph of other sigmas"),
    ],
)
def test_show_says_where_a_cost_is_not_the_masks_own(calibrated, tmp_path, lemica, settings, said):
    mask = by_hand(0, 1, 3, 6, 8, num_steps=NUM_STEPS, **({"target": TARGET} | settings))
    write_mask(mask, tmp_path / "mask.json")
    line = lemica("show", tmp_path / "mask.json", "--graph", calibrated)[1]
    costs = [calibrated_graph().error(i, j) for i, j in pairwise(mask.computed_steps)]
    if mask.rule == "damped":
        costs = edge_costs(calibrated_graph(), mask)
    total = f"total {sum(costs):.4g}"
    assert line.partition(total)[2].startswith(said) and (said or line.endswith(total))


def test_an_old_mask_and_an_old_graph_are_shown(tmp_path, lemica):
    """Version 1 of both files, as earlier calibrations left them."""
    graph = calibrated_graph()
    triangle = [row[: step + 1] for step, row in enumerate(graph.moments.products.tolist())]
    old = {"format": "lemica-graph/1", "model": "demo", "num_steps": NUM_STEPS, "max_gap": MAX_GAP, "samples": 3}
    old |= {"reuse": "velocity", "forecast": "hold", "edges": graph.edges(), "sigmas": TARGET.sigmas}
    (tmp_path / "graph.json").write_text(json.dumps(old | {"products": triangle}))
    steps = {"num_steps": NUM_STEPS, "computed_steps": [0, 2, 5, 8]}
    rule = {"model": "demo", "origin": "planned", "reuse": "velocity", "forecast": "damped-sigma"}
    (tmp_path / "mask.json").write_text(json.dumps({"format": "lemica-mask/1", **steps, **rule}))
    lines = lemica("show", tmp_path / "mask.json", tmp_path / "graph.json", "--graph", tmp_path / "graph.json")
    costs = edge_costs(graph, with_forecast(mask_of([0, 2, 5, 8], NUM_STEPS), graph, "damped"))
    assert lines[0].endswith("demo, 4 of 9 steps, velocity + damped, planned")
    assert lines[1].endswith(f"total {sum(costs):.4g}")
    assert lines[3].endswith("demo, 9 steps, 3 samples, velocity held, budgets 3 to 9")


# Pictures


def test_show_draws_the_graph_with_paths_on_it(graph, tmp_path, lemica):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    write_mask(by_hand(0, 1, 4, 8, 11), tmp_path / "mask.json")
    lemica("show", graph, "--plot", tmp_path / "plain.png")
    lemica("show", tmp_path / "mask.json", "--graph", graph, "--plot", tmp_path / "path.png")
    plain, path = imread(tmp_path / "plain.png"), imread(tmp_path / "path.png")
    assert min(plain.shape[:2]) > 300
    assert plain.shape == path.shape
    assert (plain != path).any()
    assert sorted(os.listdir(tmp_path)) == ["graph.json", "mask.json", "path.png", "plain.png"]


def test_a_path_is_drawn_from_start_step_to_gap():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from lemica.planning.plot import draw_path

    axes = Figure().add_subplot()
    draw_path(axes, "mask", by_hand(0, 1, 4, 8, 11), held_graph(early_is_dear))
    assert axes.lines[0].get_xydata().tolist() == [[0, 1], [1, 3], [4, 4], [8, 3]]


def test_what_a_mask_is_for_is_checked_wherever_it_meets_a_graph(calibrated, tmp_path, lemica):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from lemica.planning.plot import draw_path

    other = replace(TARGET, model="another", config="fedcba98")
    for name, computed in (("long", (0, 1, 7, 8)), ("short", (0, 1, 4, 8))):
        mask = by_hand(*computed, num_steps=NUM_STEPS, target=other)
        write_mask(mask, tmp_path / f"{name}.json")
        cost = lemica("show", tmp_path / f"{name}.json", "--graph", calibrated)[1]
        assert cost.endswith(", by a graph of other model, config")
        axes = Figure().add_subplot()
        draw_path(axes, name, mask, calibrated_graph())
        assert axes.lines[0].get_label() == f"{name}, by a graph of other model, config"


def test_a_graph_without_errors_can_be_drawn(tmp_path, lemica):
    pytest.importorskip("matplotlib")
    write_graph(held_graph(lambda i, j: 0.0), tmp_path / "zero.json")
    lemica("show", tmp_path / "zero.json", "--plot", tmp_path / "zero.png")
    assert (tmp_path / "zero.png").stat().st_size > 0


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(graph, tmp_path, refused):
    pytest.importorskip("matplotlib")
    (tmp_path / "graph.unknown").write_text("old")
    assert "unknown" in refused("show", graph, "--plot", tmp_path / "graph.unknown")
    assert (tmp_path / "graph.unknown").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["graph.json", "graph.unknown"]


# Refusals


def test_refusals_are_one_line_that_says_what_to_type(graph, calibrated, tmp_path, refused):
    (tmp_path / "no.json").write_text("{")
    write_graph(held_graph(early_is_dear, num_steps=9), tmp_path / "nine.json")
    write_mask(by_hand(0, 1, 4, 8, 11), tmp_path / "mask.json")
    mask, nine, no = tmp_path / "mask.json", tmp_path / "nine.json", tmp_path / "no.json"
    assert "choose a budget from 3 to 9" in refused("plan", calibrated, "--budget", "2")
    several = refused("plan", calibrated, "--budget", "5", "6", "-o", "m.json")
    assert "-o m.json would be written 2 times: put {budget} into it" in several
    assert "this is a mask; give the error graph" in refused("plan", mask, "--budget", "5")
    assert "or plan with --forecast hold" in refused("plan", graph, "--budget", "5")
    history = ("--forecast", "damped", "--history", 3)
    assert "leave out --history, or type --forecast fitted" in refused("plan", calibrated, "--budget", "5", *history)
    assert "merge only graphs of one num_steps" in refused("plan", graph, nine, "--budget", "5")
    (tmp_path / "p.txt").write_text("old")
    assert "is no picture that can be drawn" in refused("show", graph, "--plot", tmp_path / "p.txt")
    assert "cannot read the mask file nowhere.json: No such file" in refused("show", "nowhere.json")
    assert "nowhere.json: No such file" in refused("show", graph, "--graph", "nowhere.json")
    assert "nowhere.json: No such file or directory" in refused("plan", "nowhere.json", "--budget", "5")
    assert "the following arguments are required: --budget" in refused("plan", graph)
    assert "is not JSON: write one with lemica plan" in refused("show", no)
    assert "give a graph of 12 steps" in refused("show", mask, "--graph", nine)
    assert "got 0: say which with --graph GRAPH" in refused("show", mask, "--plot", tmp_path / "p.png")
    assert "is no picture: name a file that ends in .png" in refused("show", graph, "--plot", tmp_path)
    assert "-o is empty: name a file" in refused("plan", graph, "--budget", "5", "-o", "")
    assert "is a folder: name a file in it" in refused("plan", graph, "--budget", "5", "-o", tmp_path)
    assert not (tmp_path / "m.json").exists()


# In a process of its own


def test_plan_and_show_need_numpy_alone(calibrated, tmp_path):
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'hyvideo', 'diffusers', 'matplotlib', 'tqdm'])); "
    program = block + "from lemica.cli.main import main; main(sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"}

    def lemica(*arguments):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")

    planned = lemica("plan", calibrated, "--budget", "5", "-o", "mask.json")
    assert (planned.returncode, planned.stderr) == (0, "")
    shown = lemica("show", "mask.json", "--graph", calibrated)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert planned.stdout == shown.stdout
    drawn = lemica("show", calibrated, "--plot", "graph.png")
    assert drawn.returncode == 2
    assert "--plot needs matplotlib: pip install matplotlib" in drawn.stderr


def test_a_planned_mask_goes_straight_into_generation(checkpoint, tmp_path, tree):
    graph = held_graph(lambda i, j: float(j), num_steps=5, max_gap=3)
    write_graph(graph, tmp_path / "graph.json")
    main(["plan", str(tmp_path / "graph.json"), "--budget", "3", "--forecast", "hold", "-o", str(tmp_path / "m.json")])
    planned = read_mask(tmp_path / "m.json")
    options = {
        **{"model_path": checkpoint, "resolution": "480p", "prompt": "a circle", "video_length": 1},
        **{"aspect_ratio": "1:1", "num_inference_steps": 5, "sr": "false", "enable_cache": "true"},
        **{"cache_type": "lemica", "lemica_mask": tmp_path / "m.json", "output_path": tmp_path / "video.mp4"},
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    upstreams = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in upstreams}
    command = [sys.executable, "generate.py", *arguments]
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "video_config.json").read_text())["report"]
    assert report["computed_steps"] == list(planned.computed_steps)
