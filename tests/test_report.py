"""The report: which runs belong together, what they cost and give, the table, and the page as text."""

import argparse
import base64
import json
import re

import pytest
from fake_runs import STEPS_OF_BUDGET, moving_disc, write_demo, write_run

from lemica import page, report
from lemica.metrics import means_of, measure


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """An uncached run and two cached ones."""
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def section(demo):
    return report.summarise(demo)[0]


@pytest.fixture(scope="module")
def html(section):
    return page.render([section], [])


def disc(noise: float = 0.0):
    return moving_disc(noise, frames=2)


def run_report(*arguments) -> None:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    report.run(parser.parse_args([str(argument) for argument in arguments]))


def steps_drawn(html: str, picture: str, kind: str) -> list[tuple[int, ...]]:
    """The steps that every mask strip or bar chart shows as computed or as reused."""
    paths = re.findall(rf'<svg class="{picture}".*?<path class="{kind}" d="([^"]*)"', html, re.DOTALL)
    return [tuple(int(step) for step in re.findall(r"M(\d+) ", path)) for path in paths]


def test_runs_are_read_measured_and_ordered(demo, section):
    assert [run.name for run in section.runs] == ["uncached", "b25", "b10"]
    assert (section.frames, section.height, section.width, section.lossless) == (48, 96, 160, True)
    assert section.request.prompt == "a red disc moves left" and section.request.seed == 123
    reference, _, b10 = section.runs
    assert (reference.speedup, reference.quality, reference.budget) == (1, None, None)
    assert b10.computed_steps == STEPS_OF_BUDGET[10] and b10.budget == 10 and b10.origin == "released"
    assert b10.speedup == pytest.approx(50 / (10 + 40 * 0.002))
    assert b10.quality == means_of(measure(demo / "uncached_lossless.mkv", demo / "b10_lossless.mkv"))


def test_the_reference_is_the_uncached_run_with_most_steps(tmp_path):
    write_run(tmp_path, "deepcache", disc(0.1), enable_cache=True, cache_type="deepcache")
    write_run(tmp_path, "quick", disc(0.2), range(25), num_steps=25)
    write_run(tmp_path, "full", disc())
    (section,) = report.summarise(tmp_path)
    assert [run.name for run in section.runs] == ["full", "quick", "deepcache"]
    quick, deepcache = section.runs[1:]
    assert quick.speedup == 2 and quick.cells()[1:3] == ("-", "25 of 25")
    assert deepcache.computed_steps is None and deepcache.cells()[1:3] == ("-", "-")
    assert "not reported by deepcache" in page.render([section], [])


def test_one_video_without_lossless_copy_makes_all_be_measured_compressed(tmp_path):
    write_run(tmp_path, "uncached", disc())
    write_run(tmp_path, "b10", disc(0.1), STEPS_OF_BUDGET[10], lossless=False)
    (section,) = report.summarise(tmp_path)
    assert not section.lossless
    assert section.runs[1].quality == means_of(measure(tmp_path / "uncached.mp4", tmp_path / "b10.mp4"))


def test_subfolders_are_sections_and_shared_runs_are_averaged(tmp_path):
    for folder, noise in (("a", 0.1), ("b", 0.2)):
        write_run(tmp_path / folder, "uncached", disc(), prompt=folder)
        write_run(tmp_path / folder, "b10", disc(noise), STEPS_OF_BUDGET[10], prompt=folder)
    write_run(tmp_path / "a", "b25", disc(0.1), STEPS_OF_BUDGET[25], prompt="a")
    sections = report.summarise(tmp_path)
    assert [section.request.prompt for section in sections] == ["a", "b"]
    (mean,) = report.mean_runs(sections)
    values = [section.runs[-1].quality.psnr for section in sections]
    assert values[0] > values[1] + 3
    assert mean.name == "b10" and mean.quality.psnr == pytest.approx(sum(values) / 2)
    assert mean.speedup == pytest.approx(50 / 10.08)
    assert report.table(sections, [mean])[-1].split()[0] == "b10"


def empty(folder):
    folder.mkdir()


def without_reference(folder):
    write_run(folder, "b10", disc(), STEPS_OF_BUDGET[10])


def of_two_seeds(folder):
    write_run(folder, "uncached", disc())
    write_run(folder, "b10", disc(), STEPS_OF_BUDGET[10], seed=7)


def of_two_sizes(folder):
    write_run(folder, "uncached", disc())
    write_run(folder, "b10", disc()[:, :48], STEPS_OF_BUDGET[10])


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
        (of_two_seeds, r"b10.mp4 has seed 7, but uncached.mp4 123: put"),
        (of_two_sizes, r"2 frames of 160 x 96\) with .*b10_lossless.mkv \(2 frames of 160 x 48\)"),
        (without_video, "no video beside it"),
        (as_avi, r"browsers do not play \.avi"),
        (without_report, "is not a config with a run report"),
        (with_too_few_times, "50 step times for 51 steps"),
    ],
)
def test_folders_that_cannot_be_reported_are_refused_in_one_line(tmp_path, write, message):
    folder = tmp_path / "runs"
    write(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        report.summarise(folder)
    assert "\n" not in str(refusal.value)


def test_the_command_prints_the_table_and_writes_the_page(demo, tmp_path, capsys):
    output = tmp_path / "new" / "page.html"
    run_report(demo, "-o", output)
    lines = capsys.readouterr().out.splitlines()
    head, reference = " ".join(lines[2].split()), " ".join(lines[3].split())
    assert head == "run budget computed DiT s speed-up PSNR worst SSIM LPIPS mask reuse"
    assert reference == "uncached - 50 of 50 50.00 1.00 - - - - no cache -"
    assert lines[5].split()[:7] == ["b10", "10", "10", "of", "50", "10.08", "4.96"]
    assert lines[5].split()[-4:] == ["released", "velocity", "+", "fitted"]
    assert lines[-1].startswith(f"{output} (")
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")


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
    html = page.render(report.summarise(tmp_path), [])
    assert "<script>alert" not in html and "&lt;script&gt;alert(&#34;1 &amp; 2&#34;)" in html


@pytest.mark.parametrize("picture", ["strip", "bars"])
def test_every_step_is_drawn_as_computed_or_reused(html, picture):
    masks = [STEPS_OF_BUDGET[budget] for budget in (50, 25, 10)]
    assert steps_drawn(html, picture, "computed") == masks
    assert steps_drawn(html, picture, "reused") == [tuple(sorted(set(range(50)) - set(mask))) for mask in masks]


def test_bars_are_as_high_as_steps_are_long(section):
    b10 = section.runs[2]
    heights = {float(height) for height in re.findall(r"v-([\d.]+)", page.bars(b10, True, longest=2.0))}
    assert heights == {page.BAR_HEIGHT / 2}
    assert page.typical_seconds(b10, True) == "1.00 s" and page.typical_seconds(b10, False) == "2.00 ms"


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
