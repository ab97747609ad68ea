"""Which runs belong together: by request, wherever they lie; how they are named; what is left out, and told."""

from pathlib import Path

import pytest
from fake_runs import STEPS_OF_BUDGET, moving_disc, write_run

from lemica.errors import Refused
from lemica.report import runs
from lemica.report.groups import grouped, named, read_groups
from lemica.report.video_run import Request, VideoRun


def fake_run(video: str, budget: int = 50, num_steps: int = 50, prompt: str = "a disc", **decided) -> VideoRun:
    """A run that is on no disk."""
    steps = tuple(range(budget))
    request = Request(prompt, 1, "480p_t2v", None, {"prompt": prompt, "seed": 1, **decided})
    origin = "no cache" if budget == num_steps else "released"
    times = {"step_seconds": (1.0,) * num_steps, "computed_step_seconds": 1.0, "reused_step_seconds": 0.1}
    path = Path(video)
    return VideoRun(path.stem, path, request, num_steps, steps, origin, None, **times, dit_seconds=1, total_seconds=2)


def videos(groups) -> list[list[str]]:
    return [[str(run.video) for run in group] for group in groups]


def names(groups) -> list[list[str]]:
    return [[run.name for run in group] for group in groups]


def disc(noise: float = 0.0):
    return moving_disc(noise, frames=2, height=48, width=80)


def write(folder: Path, name: str, budget: int = 50, **settings) -> Path:
    return write_run(folder, name, disc(1 / budget), STEPS_OF_BUDGET[budget], lossless=False, **settings)


# Which runs belong together


def test_runs_are_grouped_by_request_in_their_order_with_the_reference_first():
    many = [fake_run(f"b25/{number}.mp4", 25, prompt=prompt) for number, prompt in enumerate("xy")]
    many += [fake_run(f"uncached/{number}.mp4", prompt=prompt) for number, prompt in enumerate("xy")]
    assert videos(grouped(many)) == [["uncached/0.mp4", "b25/0.mp4"], ["uncached/1.mp4", "b25/1.mp4"]]


def test_the_reference_of_a_request_is_the_uncached_run_with_most_steps():
    many = [fake_run("quick.mp4", 25, num_steps=25), fake_run("b10.mp4", 10), fake_run("full.mp4")]
    assert videos(grouped(many)) == [["full.mp4", "quick.mp4", "b10.mp4"]]


def test_what_decided_the_picture_tells_requests_apart_and_what_one_does_not_know_does_not():
    many = [fake_run("a.mp4", dtype="bfloat16"), fake_run("b.mp4", 25, dtype="float32"), fake_run("c.mp4", 10)]
    assert videos(grouped(many)) == [["a.mp4", "c.mp4"], ["b.mp4"]]


def test_runs_are_read_from_a_folder_and_from_its_subfolders(tmp_path):
    write(tmp_path, "uncached")
    write(tmp_path / "more", "b25", 25)
    write(tmp_path / ".hidden", "b10", 10)
    assert names(read_groups(tmp_path)) == [["uncached", "b25"]]


def test_a_folder_a_method_is_a_section_a_request(tmp_path):
    for folder, budget in (("uncached", 50), ("b25", 25), ("b10", 10)):
        for number, prompt in enumerate(("a disc", "a square")):
            write(tmp_path / folder, f"{number:04d}_seed123", budget, prompt=prompt)
    sections = runs.summarise(tmp_path)
    assert [section.request.prompt for section in sections] == ["a disc", "a square"]
    for section in sections:
        assert [run.name for run in section.runs] == ["uncached", "b25", "b10"]
        assert section.runs[1].quality.psnr > section.runs[2].quality.psnr


# Names


def test_names_are_those_of_files_where_they_tell_runs_apart():
    groups = [[fake_run("a/uncached.mp4"), fake_run("a/b25.mp4", 25)], [fake_run("b/uncached.mp4")]]
    assert names(named(groups)) == [["uncached", "b25"], ["uncached"]]


def test_folders_name_runs_whose_files_are_called_alike_and_all_others_in_these_folders():
    alike = [fake_run("runs/uncached/0.mp4"), fake_run("runs/b25/0.mp4", 25), fake_run("runs/mine.mp4", 10)]
    moved = [fake_run("runs/uncached/1.mp4"), fake_run("runs/b25/2.mp4", 25)]
    assert names(named([alike, moved])) == [["uncached", "b25", "mine"], ["uncached", "b25"]]


def test_files_that_do_not_name_their_method_are_named_by_what_was_done():
    requests = [
        [fake_run(f"all/{at}.mp4", prompt=prompt), fake_run(f"all/{at + 1}.mp4", 25, prompt=prompt)]
        for at, prompt in ((0, "x"), (2, "y"))
    ]
    assert names(named(requests)) == [["50 steps", "B = 25, released"]] * 2
    telling = [[fake_run(f"{at}/{at}_full.mp4"), fake_run(f"{at}/{at}_b25.mp4", 25)] for at in range(2)]
    assert names(named(telling)) == [["0_full", "0_b25"], ["1_full", "1_b25"]]


def test_a_name_is_never_given_twice():
    group = [fake_run("x/0.mp4"), fake_run("x/1.mp4", 10), fake_run("y/0.mp4", 25), fake_run("y/1.mp4", 25)]
    assert names(named([group])) == [["x/0", "y/0", "y/1", "x/1"]]


def test_the_folder_that_is_given_has_a_name_too(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    assert names(named([[fake_run("0.mp4"), fake_run("b25/0.mp4", 25)]])) == [["runs", "b25"]]


# What cannot be compared


def test_what_has_no_reference_or_nothing_else_is_left_out_and_told_in_a_line_each(tmp_path, capsys):
    for name, budget in (("uncached", 50), ("b25", 25)):
        write(tmp_path, name, budget)
    write(tmp_path, "lone", prompt="a square")
    write(tmp_path / "cached", "b25", 25, prompt="a star")
    write(tmp_path / "cached", "b10", 10, prompt="a star")
    assert names(read_groups(tmp_path)) == [["uncached", "b25"]]
    second, first = capsys.readouterr().err.splitlines()
    cached = f"{tmp_path / 'cached' / 'b10.mp4'} and 1 more of its request are left out: no run of that prompt, seed"
    assert first.startswith(f"lemica: note: {cached}") and first.endswith("has all steps computed")
    assert second.startswith(f"lemica: note: {tmp_path / 'lone.mp4'} is left out: no other run")


def test_a_single_reference_is_shown_alone(tmp_path, capsys):
    write(tmp_path, "uncached")
    assert names(read_groups(tmp_path)) == [["uncached"]]
    assert capsys.readouterr().err == ""


def refusal(folder: Path) -> str:
    with pytest.raises(Refused) as refused:
        read_groups(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_references_alone_are_refused(tmp_path):
    for prompt in ("a disc", "a square"):
        write(tmp_path / prompt, "uncached", prompt=prompt)
    assert refusal(tmp_path) == (
        f"{tmp_path} has nothing to compare: generate the same prompts and seeds with --enable_cache true too"
    )


def test_a_refusal_names_the_reference_that_is_nearest_and_in_what_it_differs(tmp_path):
    write(tmp_path / "uncached", "0000", prompt="a square", seed=7)
    reference = write(tmp_path / "uncached", "0001")
    cached = write(tmp_path / "b25", "0001", 25, seed=7)
    assert refusal(tmp_path) == (
        f"{cached} and {reference} are of different requests, seed 7 and 123: generate both with the same prompt, seed "
        "and settings"
    )
