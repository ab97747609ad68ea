"""A figure belongs to what it says: configs tell whose a video is, and requests are compared by what decided them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from fake_runs import STEPS_OF_BUDGET, moving_disc, write_compressed, write_lossless, write_run

from lemica.cli.main import main
from lemica.errors import Refused
from lemica.quality import metrics
from lemica.quality.compare import compare
from lemica.quality.configs import different
from lemica.report import page as pages
from lemica.report import runs
from lemica.report.runs import summarise


def disc(noise: float = 0.0, frames: int = 2):
    return moving_disc(noise, frames=frames)


def two_runs(folder, **settings):
    """The reference and a cached run, the latter with settings of its own."""
    return write_run(folder, "uncached", disc()), write_run(folder, "b10", disc(0.1), STEPS_OF_BUDGET[10], **settings)


def refusal(call, *arguments) -> str:
    with pytest.raises(Refused) as refused:
        call(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Whose a video is


def test_a_video_of_another_run_than_its_config_is_refused(tmp_path):
    reference, cached = two_runs(tmp_path)
    write_compressed(cached, disc(0.2))
    for line in (refusal(summarise, tmp_path), refusal(compare, reference, [cached])):
        assert f"{cached} is not a file of the run that wrote b10_config.json" in line
    assert compare(reference, [cached], as_given=True)


def test_a_video_of_the_same_size_and_other_content_is_refused(tmp_path):
    _, cached = two_runs(tmp_path)
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    cached.write_bytes(content)
    assert "by size and digest" in refusal(summarise, tmp_path)


def test_a_lossless_copy_of_another_run_is_refused(tmp_path):
    two_runs(tmp_path)
    write_lossless(tmp_path / "b10_lossless.mkv", disc(0.2))
    assert "b10_lossless.mkv is not a file of the run" in refusal(summarise, tmp_path)


def test_a_lossless_copy_that_the_run_did_not_write_is_not_read(tmp_path):
    reference, cached = two_runs(tmp_path, lossless=False)
    write_lossless(tmp_path / "b10_lossless.mkv", disc(0.2))
    assert not summarise(tmp_path)[0].lossless
    assert metrics.files_to_measure([reference, cached]) == [reference, cached]


def test_a_run_may_be_renamed_with_all_its_files(tmp_path):
    reference, _ = two_runs(tmp_path)
    for suffix in (".mp4", "_lossless.mkv", "_config.json"):
        (tmp_path / f"b10{suffix}").rename(tmp_path / f"fast{suffix}")
    assert [run.name for run in summarise(tmp_path)[0].runs] == ["uncached", "fast"]
    assert compare(reference, [tmp_path / "fast.mp4"])[0].cached.name == "fast_lossless.mkv"


def test_configs_of_older_kits_are_read_with_a_note(tmp_path, capsys):
    two_runs(tmp_path, old=True)
    summarise(tmp_path)
    err = capsys.readouterr().err
    assert err.startswith(f"lemica: note: b10_config.json in {tmp_path}: of an older kit") and err.count("\n") == 1


@pytest.mark.parametrize("settings", [{}, {"old": True}])
def test_two_videos_never_share_a_lossless_copy(tmp_path, settings):
    video = write_run(tmp_path, "x", disc(), **settings)
    other = tmp_path / "x.webm"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", video, other], check=True)
    (comparison,) = compare(video, [other])
    assert (comparison.reference, comparison.cached) == (video, other)
    assert comparison.means.psnr < 100


def test_two_videos_with_one_copy_and_nothing_that_says_whose_it_is_are_refused(tmp_path):
    video = write_run(tmp_path, "x", disc())
    (tmp_path / "x_config.json").unlink()
    other = write_compressed(tmp_path / "x.mov", disc(0.1))
    for pair in ((video, other), (video, tmp_path / "x_lossless.mkv")):
        line = refusal(compare, pair[0], [pair[1]])
        assert "have one lossless copy, x_lossless.mkv" in line and "--as_given" in line
        assert compare(pair[0], [pair[1]], as_given=True)[0].means.psnr < 100
    assert compare(video, [video])[0].means.psnr == float("inf")


# What decided the picture


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt", "a red disc moves left, rewritten"),
        ("negative_prompt", "blur"),
        ("seed", 7),
        ("model", "480p_t2v_distilled"),
        ("config", "fedcba9876543210"),
        ("dtype", "float32"),
        ("flow_shift", 7.0),
        ("guidance_scale", 1.0),
        ("image", "f" * 64),
    ],
)
def test_runs_of_different_requests_are_refused_by_key_and_values(tmp_path, key, value):
    reference, cached = two_runs(tmp_path, request={key: value})
    for line in (refusal(summarise, tmp_path), refusal(compare, reference, [cached])):
        assert f"are of different requests, {key} " in line and repr(value)[:20] in line
    assert compare(reference, [cached], as_given=True)


def test_two_drawn_seeds_are_two_requests(tmp_path):
    write_run(tmp_path, "uncached", disc(), seed=-1, request={"seed": 123456})
    write_run(tmp_path, "b10", disc(0.1), STEPS_OF_BUDGET[10], seed=-1, request={"seed": 654321})
    assert "seed 654321 and 123456" in refusal(summarise, tmp_path)


def test_configs_of_older_kits_are_compared_by_what_they_have(tmp_path):
    two_runs(tmp_path, old=True, negative_prompt="blur")
    write_run(tmp_path, "uncached", disc(), old=True)
    assert "negative_prompt 'blur' and ''" in refusal(summarise, tmp_path)
    for name, seed in (("uncached", 5), ("b10", 6)):
        computed = STEPS_OF_BUDGET[10 if name == "b10" else 50]
        write_run(tmp_path, name, disc(), computed, old=True, seed=-1)
        config = tmp_path / f"{name}_config.json"
        content = json.loads(config.read_text())
        content["report"]["seed"] = seed
        config.write_text(json.dumps(content))
    assert "seed 6 and 5" in refusal(summarise, tmp_path)


def test_runs_of_fewer_steps_are_of_the_same_request(tmp_path):
    write_run(tmp_path, "uncached", disc())
    write_run(tmp_path, "quick", disc(0.1), range(25), num_steps=25)
    assert len(summarise(tmp_path)[0].runs) == 2


def test_long_values_are_shown_where_they_differ():
    same = "a red disc moves left over a gradient " * 9
    line = different({"prompt": same + "at dawn"}, {"prompt": same + "at dusk"})
    assert "at dawn" in line and "at dusk" in line and len(line) < 200
    assert different({"prompt": same}, {"prompt": same}) is None


# Stray files


def test_hidden_and_foreign_files_do_not_block_a_folder(tmp_path, capsys):
    two_runs(tmp_path)
    (tmp_path / "._b10_config.json").write_bytes(b"\0\5\26\7")
    (tmp_path / "train_config.json").write_text('{"lr": 0.1}')
    (tmp_path / "list_config.json").write_text("[1, 2]")
    (tmp_path / "cut_config.json").write_text('{"lr": ')
    assert [run.name for run in summarise(tmp_path)[0].runs] == ["uncached", "b10"]
    notes = capsys.readouterr().err.splitlines()
    assert [line.partition(" is left out")[0].rpartition("/")[2] for line in notes] == [
        "cut_config.json",
        "list_config.json",
        "train_config.json",
    ]


def test_a_foreign_file_beside_folders_of_runs_does_not_hide_them(tmp_path):
    two_runs(tmp_path / "a")
    two_runs(tmp_path / ".hidden")
    (tmp_path / "train_config.json").write_text('{"lr": 0.1}')
    assert len(summarise(tmp_path)) == 1


def test_half_a_config_beside_a_video_is_refused(tmp_path):
    two_runs(tmp_path)
    config = tmp_path / "b10_config.json"
    config.write_text(config.read_text()[:100])
    assert "b10_config.json is no config with a run report" in refusal(summarise, tmp_path)


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path):
    reference, cached = two_runs(tmp_path)
    config = tmp_path / "b10_config.json"
    config.write_text(config.read_text(), encoding="utf-8-sig")
    assert len(summarise(tmp_path)[0].runs) == 2
    assert compare(reference, [cached])[0].cached.name == "b10_lossless.mkv"


# Frames


def shifted(source, target, times: str) -> None:
    """The same frames with other time stamps."""
    encode = ("-fps_mode", "passthrough", "-c:v", "ffv1", "-pix_fmt", "bgr0")
    command = ["-v", "error", "-i", source, "-vf", f"setpts='{times}'", *encode, target]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command], check=True)


@pytest.mark.parametrize("times", ["PTS+0.7/24/TB", "N*N/24/24/TB", "if(lt(N,12),N,2*N)/24/TB", "(N+N*mod(N,3))/9/TB"])
def test_frames_are_compared_as_they_are_stored_whatever_their_time_stamps(tmp_path, times):
    frames = np.random.default_rng(0).integers(0, 256, (24, 32, 48, 3), dtype=np.uint8)
    even = write_lossless(tmp_path / "even.mkv", frames)
    uneven = tmp_path / "uneven.mkv"
    shifted(even, uneven, times)
    assert metrics.shape(uneven) == (24, 32, 48)
    assert all(np.array_equal(read * 255, frame) for read, frame in zip(metrics.frames(uneven), frames, strict=True))
    assert metrics.means_of(metrics.measure(even, uneven)).psnr == float("inf")


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lossless(tmp_path / "even.mkv", disc()).rename(tmp_path / "http:even.mkv")
    assert metrics.shape(Path("http:even.mkv"))[0] == 2


@pytest.mark.parametrize(("version", "option"), [("4.4.2-0ubuntu1", "-vsync"), ("7.0.2-static", "-fps_mode")])
def test_every_ffmpeg_is_asked_in_its_own_words(version, option):
    assert metrics._every_frame_once(version)[0] == option


# The page


def test_a_page_holds_its_videos_as_they_are_on_the_disk(tmp_path, monkeypatch, capsys):
    _, cached = two_runs(tmp_path)
    page = tmp_path / "page.html"
    page.write_text("old")
    render = pages.render

    def render_then_change(*arguments):
        html = render(*arguments)
        write_compressed(cached, disc(0.3))
        return html

    monkeypatch.setattr(pages, "render", render_then_change)
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path), "-o", str(page)])
    assert end.value.code == 2
    assert "b10.mp4 was changed while the page was written" in capsys.readouterr().err
    assert page.read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    two_runs(tmp_path)
    monkeypatch.setattr(runs, "measure", pytest.fail)
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path), "-o", str(tmp_path / "b10.mp4" / "page.html")])
    assert end.value.code == 2
    assert "b10.mp4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["b10.mp4", "b10_lossless.mkv", "b10_config.json", "new.webm"])
def test_a_page_never_takes_the_place_of_a_runs_file(tmp_path, capsys, name):
    two_runs(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path), "-o", str(tmp_path / name)])
    assert end.value.code == 2
    assert "would take the place of a run's file: name a file that ends in .html" in capsys.readouterr().err
    assert len(summarise(tmp_path)[0].runs) == 2


def test_a_config_that_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    reference, cached = two_runs(tmp_path)
    read = Path.read_bytes

    def denied(self):
        if self.name == "b10_config.json":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", denied)
    for line in (refusal(summarise, tmp_path), refusal(compare, reference, [cached])):
        assert line == f"{tmp_path / 'b10_config.json'}: Permission denied"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("kilobytes", [4, 40, 400])
def test_a_disk_that_is_full_leaves_the_old_page(tmp_path, kilobytes, capsys):
    two_runs(tmp_path / "runs")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes + 4}k", "tmpfs", disk]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("cannot mount a disk here")
    try:
        (disk / "page.html").write_text("old")
        try:
            main(["report", str(tmp_path / "runs"), "-o", str(disk / "page.html")])
            assert (disk / "page.html").read_text().rstrip().endswith("</html>")
        except SystemExit as end:
            assert end.code == 2
            assert f"{disk}/page.html: No space left on device" in capsys.readouterr().err
            assert (disk / "page.html").read_text() == "old"
        assert os.listdir(disk) == ["page.html"]
    finally:
        subprocess.run(["umount", disk], check=True)
