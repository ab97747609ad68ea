"""The grid page as text: columns, means, escaping, links; and the command that writes it beside its videos."""

import math
import os
import re
import urllib.parse
from pathlib import Path

import pytest
from fake_runs import STEPS_OF_BUDGET, moving_disc, write_run

from lemica.cli.main import main
from lemica.report import beside, runs
from lemica.report.beside import link
from lemica.report.grid import Cell, GridRequest, Mean, mean_of, methods_of, render_grid


def request(prompt: str = "a disc", seed: int = 1, **psnr: float) -> GridRequest:
    """A reference and a cell for every method, all with the speed-up 2."""
    cells = [Cell(name, f"{name}.mp4", value, 0.98765, None, 5.0, 2.0) for name, value in psnr.items()]
    return GridRequest(prompt, seed, (Cell("uncached", "uncached.mp4", None, None, None, 10.0, 1.0), *cells))


def links_in(page: Path) -> list[str]:
    return re.findall(r'<video src="([^"]*)"', page.read_text(encoding="utf-8"))


# The page


def test_columns_are_methods_in_order_of_appearance_with_the_reference_first():
    requests = [request(b25=40), request(b10=30, b25=40)]
    assert methods_of(requests) == ["uncached", "b25", "b10"]
    html = render_grid("2 prompts", requests)
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    assert heads == ["prompt", "uncached", "b25", "b10"]
    assert html.count("<video ") == 5 and html.count("<td>-</td>") == 1
    assert re.findall(r'<option value="(\d+)">(PSNR .*?)</option>', html) == [
        ("2", "PSNR of b25"),
        ("3", "PSNR of b10"),
    ]


def test_means_leave_equal_videos_and_missing_ones_out():
    requests = [request(b25=30), request(b25=math.inf), request(b25=40), request()]
    assert mean_of("b25", requests) == Mean(psnr=35, worst_psnr=30, speedup=2, count=3)
    assert mean_of("uncached", requests) == Mean(psnr=None, worst_psnr=None, speedup=1, count=4)
    assert mean_of("b25", requests[1:2]) == Mean(psnr=math.inf, worst_psnr=math.inf, speedup=2, count=1)


def test_cells_show_figures_and_carry_psnr_for_the_script():
    html = render_grid("1 prompt", [request(b25=31.23456, same=math.inf)])
    assert re.findall(r'data-psnr="(.*?)"', html) == ["31.2346", "Infinity"]
    assert "<dd>31.23</dd>" in html and "<dd>equal</dd>" in html and "<dd>0.9877</dd>" in html
    assert html.count("<dd>2.00\xd7</dd>") == 4 and "<dd>5.00 s</dd>" in html


def test_texts_are_escaped():
    evil = '<script>alert("1 & 2")</script>'
    cell = Cell(evil, 'a"b.mp4', 30.0, None, None, None, None)
    html = render_grid(evil, [GridRequest(evil, 1, (request().cells[0], cell))], [evil], evil)
    assert "<script>alert" not in html and html.count("&lt;script&gt;alert(&#34;1 &amp; 2&#34;)") == 10
    assert 'src="a&#34;b.mp4"' in html


def test_without_a_script_it_is_a_table_of_videos_that_wait_to_be_asked():
    html = render_grid("1 prompt", [request(b25=30)])
    videos = re.findall(r"<video .*?>", html, re.DOTALL)
    assert all(' src="' in video and 'controls preload="none"' in video for video in videos)
    assert 'aria-label="Video b25: a disc, seed 1"' in videos[1]
    for controls in ("filters", "player"):
        assert re.search(rf'<div id="{controls}"[^>]* hidden>', html)


def test_it_may_load_nothing_but_its_videos():
    html = render_grid("1 prompt", [request(b25=30)])
    assert "default-src 'none'; img-src data:; media-src 'self' data: file:; style-src" in html
    assert not re.search(r"https?:|@import|<link [^>]*stylesheet|<script src", html)


# Links


@pytest.mark.parametrize(
    ("video", "page", "expected"),
    [
        ("runs/b25/0.mp4", "runs/report.html", "b25/0.mp4"),
        ("runs/b25/0.mp4", "pages/new/report.html", "../../runs/b25/0.mp4"),
        ("a b/50%?#ä.mp4", "report.html", "a%20b/50%25%3F%23%C3%A4.mp4"),
        ("http:x.mp4", "report.html", "http%3Ax.mp4"),
    ],
)
def test_links_are_relative_and_quoted(video, page, expected):
    assert link(Path(video), Path(page)) == link(Path(video).absolute(), Path(page)) == expected


def test_a_page_from_which_no_way_leads_is_refused_before_anything_is_measured(folders, tmp_path, monkeypatch, capsys):
    def no_way(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(beside.os.path, "relpath", no_way)
    monkeypatch.setattr(runs, "measure", pytest.fail)
    with pytest.raises(SystemExit):
        main(["report", str(folders), "-o", str(tmp_path / "report.html")])
    error = capsys.readouterr().err
    assert "path is on mount 'D:', start on mount 'C:': name a page on the drive of" in error and error.count("\n") == 1


# The command


@pytest.fixture
def folders(tmp_path):
    """A folder for every method, with two requests."""
    folder = tmp_path / "my runs"
    for name, budget, noise in (("uncached", 50, 0), ("b10", 10, 0.1)):
        for number, prompt in enumerate(("a disc", "a <square>")):
            frames = moving_disc(noise, frames=2, height=48, width=80)
            write_run(folder / name, f"{number:04d}", frames, STEPS_OF_BUDGET[budget], lossless=False, prompt=prompt)
    return folder


def test_several_requests_make_a_grid_that_stands_beside_its_videos(folders, capsys):
    main(["report", str(folders)])
    page = folders / "report.html"
    assert links_in(page) == ["uncached/0000.mp4", "b10/0000.mp4", "uncached/0001.mp4", "b10/0001.mp4"]
    assert page.stat().st_size < 50_000
    html = page.read_text(encoding="utf-8")
    for fact in ("<h1>2 prompts</h1>", "80 \xd7 48", "2 frames", "50 steps", "quality of compressed videos"):
        assert fact in html
    lines = capsys.readouterr().out.splitlines()
    assert "mean over 2 prompts" in lines and "mean over 2 prompts" in html
    shows = f"shows the videos in {folders} by relative links: move both together"
    assert lines[-1] == f"{page} ({shows}): open it in a browser"


def test_links_lead_from_any_page_to_the_videos(folders, tmp_path):
    page = tmp_path / "pages" / "new" / "report.html"
    main(["report", str(folders), "-o", str(page)])
    assert links_in(page)[0] == "../../my%20runs/uncached/0000.mp4"
    targets = [os.path.normpath(page.parent / urllib.parse.unquote(way)) for way in links_in(page)]
    assert sorted(map(Path, targets)) == sorted(folders.rglob("*.mp4"))


def test_runs_that_change_while_others_are_measured_are_refused(folders, monkeypatch, capsys):
    config = folders / "b10" / "0001_config.json"
    measure = runs.measure

    def measure_while_it_is_generated_again(*arguments):
        config.write_text(config.read_text().replace('"mask_origin": "released"', '"mask_origin": "derived"'))
        return measure(*arguments)

    monkeypatch.setattr(runs, "measure", measure_while_it_is_generated_again)
    with pytest.raises(SystemExit):
        main(["report", str(folders)])
    assert f"{folders / 'b10' / '0001.mp4'} was changed while it was measured" in capsys.readouterr().err
    assert not (folders / "report.html").exists()
