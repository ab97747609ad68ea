"""The report: what runs cost and give, the table, and the page of one request as text."""

import base64
import doctest
import json
import re

import pytest
from fake_runs import STEPS_OF_BUDGET, moving_disc, write_demo, write_run

from lemica import errors, files
from lemica.cli.main import main
from lemica.errors import Refused
from lemica.quality.metrics import means_of, measure
from lemica.report import beside, grid, groups, page, runs, table, video_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """An uncached run and two cached ones."""
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def section(demo):
    return runs.summarise(demo)[0]


@pytest.fixture(scope="module")
def html(section):
    return page.render(section)


def disc(noise: float = 0.0):
    return moving_disc(noise, frames=2)


def steps_drawn(html: str, picture: str, kind: str) -> list[tuple[int, ...]]:
    """The steps that every mask strip or bar chart shows as computed or as reused."""
    paths = re.findall(rf'<svg class="{picture}".*?<path class="{kind}" d="([^"]*)"', html, re.DOTALL)
    return [tuple(int(step) for step in re.findall(r"M(\d+) ", path)) for path in paths]


def test_runs_are_read_measured_and_ordered(demo, section):
    assert [run.name for run in section.runs] == ["uncached", "b25", "b10"]
    assert (section.frames, section.height, section.width, section.lossless) == (48, 96, 160, True)
    assert section.request.prompt == "a red disc moves left" and section.request.seed == 123
    reference, _, b10 = section.runs
    assert (reference.speedup, reference.quality, reference.budget) == (1, None, 50)
    assert b10.computed_steps == STEPS_OF_BUDGET[10] and b10.budget == 10 and b10.origin == "released"
    assert b10.speedup == pytest.approx(50 / (10 + 40 * 0.002))
    assert b10.quality == means_of(measure(demo / "uncached_lossless.mkv", demo / "b10_lossless.mkv"))


def test_the_reference_is_the_uncached_run_with_most_steps(tmp_path):
    write_run(tmp_path, "deepcache", disc(0.1), enable_cache=True, cache_type="deepcache")
    write_run(tmp_path, "quick", disc(0.2), range(25), num_steps=25)
    write_run(tmp_path, "full", disc())
    (section,) = runs.summarise(tmp_path)
    assert [run.name for run in section.runs] == ["full", "quick", "deepcache"]
    quick, deepcache = section.runs[1:]
    assert (quick.speedup, quick.is_complete) == (2, True)
    assert (deepcache.computed_steps, deepcache.budget) == (None, None)
    assert "not reported by deepcache" in page.render(section)


def test_a_speed_up_is_reckoned_by_the_runs_own_clock(tmp_path):
    write_run(tmp_path, "uncached", disc(), step_seconds=[7.0] * 50)  # The machine was busy.
    hiccup = [1.0] * 9 + [30.0] + [0.25] * 39 + [1.0]
    write_run(tmp_path, "b11", disc(), [*range(10), 49], step_seconds=hiccup)
    (section,) = runs.summarise(tmp_path)
    reference, b11 = section.runs
    assert (reference.speedup, reference.computed_step_seconds, reference.reused_step_seconds) == (1, 7, None)
    assert (b11.computed_step_seconds, b11.reused_step_seconds) == (1, 0.25)
    assert b11.speedup == pytest.approx(50 / (11 + 39 * 0.25))
    assert (reference.dit_seconds, b11.dit_seconds) == (350, sum(hiccup))


@pytest.mark.parametrize("first", [0.001, 1.0, 60.0])
@pytest.mark.parametrize("budget", [10, 25, 50])
def test_no_speed_up_exceeds_steps_over_budget(tmp_path, first, budget):
    write_run(tmp_path, "uncached", disc(), step_seconds=[9.0] * 50)
    computed = STEPS_OF_BUDGET[budget]
    seconds = [first, *(1.0 if step in computed else 1e-6 for step in range(1, 50))]
    write_run(tmp_path, "cached", disc(), computed, step_seconds=seconds)
    (section,) = runs.summarise(tmp_path)
    assert 0.99 * 50 / budget < next(run.speedup for run in section.runs if run.name == "cached") <= 50 / budget


def test_other_caches_are_compared_by_dit_seconds_and_marked(tmp_path):
    write_run(tmp_path, "uncached", disc(), step_seconds=[2.0] * 50)
    write_run(tmp_path, "deepcache", disc(), enable_cache=True, cache_type="deepcache", step_seconds=[0.5] * 50)
    (section,) = runs.summarise(tmp_path)
    _, deepcache = section.runs
    assert (deepcache.speedup, deepcache.computed_step_seconds, deepcache.reused_step_seconds) == (4, None, None)
    assert table.cells(deepcache)[1:6] == ("-", "25.00", "-", "-", "~4.00")
    assert table.table([section])[-1].startswith("~: ")
    html = page.render(section)
    assert "~4.00\xd7 speed-up" in html and "~: the run does not report its steps" in html
    assert page.step_times(deepcache) == ["500 ms per step"]


def test_one_video_without_lossless_copy_makes_all_be_measured_compressed(tmp_path):
    write_run(tmp_path, "uncached", disc())
    write_run(tmp_path, "b10", disc(0.1), STEPS_OF_BUDGET[10], lossless=False)
    (section,) = runs.summarise(tmp_path)
    assert not section.lossless
    assert section.runs[1].quality == means_of(measure(tmp_path / "uncached.mp4", tmp_path / "b10.mp4"))


def test_subfolders_are_sections_and_shared_runs_are_averaged(tmp_path):
    for folder, noise in (("a", 0.1), ("b", 0.2)):
        write_run(tmp_path / folder, "uncached", disc(), prompt=folder)
        write_run(tmp_path / folder, "b10", disc(noise), STEPS_OF_BUDGET[10], prompt=folder)
    write_run(tmp_path / "a", "b25", disc(0.1), STEPS_OF_BUDGET[25], prompt="a")
    sections = runs.summarise(tmp_path)
    assert [section.request.prompt for section in sections] == ["a", "b"]
    (mean,) = table.mean_runs(sections)
    values = [section.runs[-1].quality.psnr for section in sections]
    assert values[0] > values[1] + 3
    assert mean.name == "b10" and mean.quality.psnr == pytest.approx(sum(values) / 2)
    assert mean.speedup == pytest.approx(50 / 10.08)
    assert (mean.computed_step_seconds, mean.reused_step_seconds) == (1, 0.002)
    lines = table.table(sections, [mean])
    assert lines[lines.index("mean over 2 prompts") + 2].split()[0] == "b10"


def empty(folder):
    folder.mkdir()


def without_reference(folder):
    write_run(folder, "b10", disc(), STEPS_OF_BUDGET[10])


def of_two_sizes(folder):
    write_run(folder, "uncached", disc())
    write_run(folder, "b10", disc()[:, :48], STEPS_OF_BUDGET[10], old=True)


def without_video(folder):
    write_run(folder, "uncached", disc()).unlink()


def as_avi(folder):
    video = write_run(folder, "uncached", disc())
    config = folder / "uncached_config.json"
    config.write_text(config.read_text().replace(".mp4", ".avi"))
    video.rename(folder / "uncached.avi")


def without_report(folder):
    write_run(folder, "uncached", disc())
    (folder / "uncached_config.json").write_text(json.dumps({"output_path": "uncached.mp4"}))


def with_too_few_times(folder):
    write_run(folder, "uncached", disc())
    config = folder / "uncached_config.json"
    config.write_text(config.read_text().replace('"num_steps": 50', '"num_steps": 51'))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (empty, "holds no runs"),
        (without_reference, "has no reference: generate"),
        (of_two_sizes, r"2 frames of 160 x 96\) with .*b10_lossless.mkv \(2 frames of 160 x 48\)"),
        (without_video, "no video beside it"),
        (as_avi, r"browsers do not play \.avi"),
        (without_report, "is no config with a run report"),
        (with_too_few_times, "50 step times for 51 steps"),
    ],
)
def test_folders_that_cannot_be_reported_are_refused_in_one_line(tmp_path, write, message):
    folder = tmp_path / "runs"
    write(folder)
    with pytest.raises(Refused, match=message) as refusal:
        runs.summarise(folder)
    assert "\n" not in str(refusal.value)


def test_the_command_prints_the_table_and_writes_the_page(demo, tmp_path, capsys):
    output = tmp_path / "new" / "page.html"
    main(["report", str(demo), "-o", str(output)])
    lines = capsys.readouterr().out.splitlines()
    head, reference = " ".join(lines[2].split()), " ".join(lines[3].split())
    assert head == "run computed DiT s computed step reused step speed-up PSNR worst SSIM LPIPS mask reuse"
    assert reference == "uncached 50 of 50 50.00 1.00 s - 1.00 - - - - no cache -"
    assert " ".join(lines[5].split()).startswith("b10 10 of 50 10.08 1.00 s 2.00 ms 4.96 ")
    assert lines[5].split()[-4:] == ["released", "velocity", "+", "fitted"]
    assert lines[7].startswith("Speed-up: N c / (B c + R r) by the run's own clock")
    assert lines[-1].startswith(f"{output} (")
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "measure", pytest.fail)
    with pytest.raises(SystemExit):
        main(["report", str(demo), "-o", str(tmp_path)])
    assert capsys.readouterr().err == f"lemica report: error: -o {tmp_path} is a folder: name a file in it\n"


def test_the_page_holds_every_run_and_needs_nothing_else(demo, html):
    for name in ("uncached", "b25", "b10"):
        content = base64.b64encode((demo / f"{name}.mp4").read_bytes()).decode()
        assert html.count(f'src="data:video/mp4;base64,{content}"') == 1
        assert f"<h3>{name}</h3>" in html
    for fact in ("a red disc moves left", "480p_t2v", "160 \xd7 96", "4.96\xd7 speed-up"):
        assert fact in html
    assert "10 of 50 steps computed, released mask, velocity + fitted" in html
    assert not re.search(r"https?:|@import|<link [^>]*stylesheet|<script src", html)
    assert "default-src 'none'" in html


def test_prompts_are_escaped(tmp_path):
    write_run(tmp_path, "uncached", disc(), prompt='<script>alert("1 & 2")</script>')
    html = page.render(*runs.summarise(tmp_path))
    assert "<script>alert" not in html and "&lt;script&gt;alert(&#34;1 &amp; 2&#34;)" in html


@pytest.mark.parametrize("picture", ["strip", "bars"])
def test_every_step_is_drawn_as_computed_or_reused(html, picture):
    masks = [STEPS_OF_BUDGET[budget] for budget in (50, 25, 10)]
    assert steps_drawn(html, picture, "computed") == masks
    assert steps_drawn(html, picture, "reused") == [tuple(sorted(set(range(50)) - set(mask))) for mask in masks]


def test_bars_are_as_high_as_steps_are_long(section):
    b10 = section.runs[2]
    heights = {float(height) for height in re.findall(r"v-([\d.]+)", page.step_bars(b10, True, longest=2.0))}
    assert heights == {page.BAR_HEIGHT / 2}
    assert page.step_times(b10) == ["1.00 s computed", "2.00 ms reused"]


def test_plots_place_runs_by_speed_and_quality(section):
    for plot in page.plots(section):
        b25, b10 = sorted(plot.points, key=lambda point: point.x)
        assert (b25.label, b10.label) == ("b25", "b10")
        assert plot.LEFT < b25.x < b10.x < plot.RIGHT and plot.TOP < b25.y < b10.y < plot.BOTTOM
        one, two = (next(tick.at for tick in plot.x_ticks if tick.label == label) for label in "12")
        assert b25.x == pytest.approx(one + (two - one) * (section.runs[1].speedup - 1))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1, 4.96], [1, 2, 3, 4, 5]),
        ([27.95, 39.86], [25, 30, 35, 40]),
        ([0.97, 0.991], [0.97, 0.98, 0.99, 1]),
        ([30], [30, 31, 32]),
        ([1, 1], [1, 1.02, 1.04]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values, ticks):
    assert page.nice_ticks(values) == pytest.approx(ticks)


@pytest.mark.parametrize("module", [video_run, groups, runs, table, page, grid, beside, files, errors])
def test_the_examples_in_the_docstrings_run(demo, tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path if module is files else demo)
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "plot.png"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".png")
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
