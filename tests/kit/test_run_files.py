"""The files of a run: whole and checked before they take their names, never lost, never another run's."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from conftest import TREE, clean_environment

import generate
from generate import RunFiles, beside, count_frames, partial_name, say, write_json, write_video

VIDEO = torch.rand(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(*_, **__):
    raise OSError(28, "No space left on device")


def save(path, content=VIDEO) -> RunFiles:
    files = RunFiles(path)
    files.write(path, write_video, content)
    files.move()
    return files


def test_a_lossless_video_keeps_every_pixel(tmp_path):
    write_video(VIDEO, tmp_path / "video.mkv", codec="ffv1", pixelformat="bgr0")
    frames = np.stack(imageio.mimread(tmp_path / "video.mkv"))
    assert np.array_equal(frames, (VIDEO[0] * 255).to(torch.uint8).permute(1, 2, 3, 0).numpy())


@pytest.mark.parametrize("suffix", generate.VIDEO_SUFFIXES)
def test_every_suffix_is_written_with_all_frames(tmp_path, suffix):
    write_video(VIDEO, tmp_path / f"video{suffix}")
    assert count_frames(tmp_path / f"video{suffix}") == 5


def test_a_container_that_cannot_be_written_is_noticed_before_anything_is_generated(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "CODECS", {".webm": {"codec": "libx264"}})
    with pytest.raises(OSError, match=r"no \.webm video can be written") as refusal:
        generate.try_video(tmp_path, ".webm")
    assert "\n" not in str(refusal.value)
    assert names(tmp_path) == []


def test_a_video_that_cannot_be_read_again_is_not_saved(tmp_path, monkeypatch, capsys):
    path = tmp_path / "video.mp4"
    path.write_text("the last good video")
    monkeypatch.setattr(imageio, "mimwrite", lambda path, *_, **__: path.write_bytes(b"half"))
    files = save(path)
    assert not files.all_saved
    assert (names(tmp_path), path.read_text()) == (["video.mp4"], "the last good video")
    assert "Not saved" in capsys.readouterr().err


def test_a_video_with_a_frame_missing_is_not_saved(tmp_path, monkeypatch):
    whole = imageio.mimwrite
    monkeypatch.setattr(imageio, "mimwrite", lambda path, frames, **options: whole(path, frames[1:], **options))
    with pytest.raises(OSError, match="of 5 frames 4 can be read again"):
        write_video(VIDEO, tmp_path / "video.mp4")


def test_a_full_disk_leaves_what_was_there(tmp_path, capsys):
    path = tmp_path / "video.mp4"
    path.write_text("the last good video")
    files = RunFiles(path)
    files.write(path, fail, VIDEO)
    files.write(beside(path, "_config.json"), write_json, {})
    files.move()
    assert not files.all_saved
    assert path.read_text() == "the last good video"
    assert "No space left on device" in capsys.readouterr().err


def test_a_finished_file_that_cannot_be_moved_is_kept_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "replace", fail)
    files = save(tmp_path / "video.mp4")
    (kept,) = tmp_path.iterdir()
    assert not files.all_saved
    assert count_frames(kept) == 5
    assert str(kept) in capsys.readouterr().err


def test_another_runs_file_is_never_replaced(tmp_path, capsys):
    path = tmp_path / "video.mp4"
    config = beside(path, "_config.json")
    first, second = RunFiles(path), RunFiles(path)
    for files, shade in ((first, 0.0), (second, 1.0)):
        files.write(path, write_video, torch.full((3, 5, 32, 48), shade))
        files.write(config, write_json, {"shade": shade})
        files.move()
    assert (first.all_saved, second.all_saved) == (True, False)
    assert imageio.mimread(path)[0].max() < 50
    assert json.loads(config.read_text()) == {"shade": 0.0}
    assert imageio.mimread(next(tmp_path.glob(".partial-*.mp4")))[0].min() > 200
    assert json.loads(next(tmp_path.glob(".partial-*.json")).read_text()) == {"shade": 1.0}
    assert "another run" in capsys.readouterr().err


def test_of_runs_that_end_together_one_looks_after_the_other_has_moved(tmp_path, monkeypatch):
    """What keeps them apart is held while files take names, and let go after that."""
    path, replace, is_free = tmp_path / "video.mp4", os.replace, []
    monkeypatch.setattr(os, "replace", lambda *names: is_free.append(can_lock(tmp_path)) or replace(*names))
    assert save(path).all_saved
    assert is_free == [False]
    assert can_lock(tmp_path)


def test_a_name_is_not_tried_while_another_run_gives_it_to_its_video(tmp_path, monkeypatch):
    """To try a name is to make a file and to remove it: the removed one must not be the other run's."""
    is_free = []
    monkeypatch.setattr(generate, "try_name", lambda _: is_free.append(can_lock(tmp_path)))
    arguments = ["--prompt", "p", "--resolution", "480p", "--model_path", "m"]
    args = generate.build_parser().parse_args([*arguments, "--output_path", str(tmp_path / "video.mp4")])
    generate.check_output(args)
    assert is_free == [False, False]


def can_lock(folder) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_a_folder_that_somebody_else_holds_costs_no_video(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SECONDS_FOR_ANOTHER_RUN", 0.01)
    with generate.alone_in(tmp_path):
        assert save(tmp_path / "video.mp4").all_saved


def test_a_file_that_was_there_before_the_run_is_replaced_and_a_link_is_followed(tmp_path):
    (tmp_path / "real.mp4").write_text("old")
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    args = generate.build_parser().parse_args(
        ["--prompt", "p", "--resolution", "480p", "--model_path", "m", "--output_path", str(tmp_path / "link.mp4")]
    )
    assert save(generate.output_path(args)).all_saved
    assert (tmp_path / "link.mp4").is_symlink()
    assert count_frames(tmp_path / "real.mp4") == 5


def test_an_old_config_never_stands_beside_a_new_video(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    beside(path, "_config.json").write_text("of an earlier run")
    replace = os.replace

    def killed_after_the_first(*arguments):
        replace(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed_after_the_first)
    files = RunFiles(path)
    files.write(path, write_video, VIDEO)
    files.write(beside(path, "_config.json"), write_json, {"of": "this run"})
    with pytest.raises(KeyboardInterrupt):
        files.move()
    assert count_frames(path) == 5
    assert not beside(path, "_config.json").exists()


def test_an_old_lossless_copy_never_stands_beside_a_new_video(tmp_path):
    """Without a config nothing would say that it is of another run."""
    path = tmp_path / "video.mp4"
    for ending in ("_lossless.mkv", "_before_sr.mp4", "_config.json"):
        beside(path, ending).write_text("of an earlier run")
    assert save(path).all_saved
    assert names(tmp_path) == ["video.mp4"]


def test_temporary_names_are_short_and_never_shared(tmp_path):
    path = tmp_path / ("n" * 250 + ".mp4")
    assert len({partial_name(path) for _ in range(100)}) == 100
    assert len(partial_name(path).name) < 50
    assert partial_name(path).suffix == ".mp4"


def test_default_names_differ_and_hold_no_colon_or_space():
    arguments = ["--prompt", "p", "--resolution", "480p", "--model_path", "m"]
    found = {generate.output_path(generate.build_parser().parse_args(arguments)).name for _ in range(20)}
    assert len(found) == 20
    assert not any(character in name for name in found for character in ": ")


class Full(io.TextIOBase):
    def write(self, _):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, Full(), io.TextIOWrapper(io.BytesIO(), encoding="ascii")])
def test_what_cannot_be_printed_costs_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    say("Saved gemäß.mp4")


def test_a_run_killed_while_it_writes_leaves_no_half_video(tmp_path):
    """Killed while the writer runs, which a signal to oneself from within imageio makes certain."""
    path = tmp_path / "video.mp4"
    path.write_text("the last good video")
    code = (
        "import os, signal, sys, imageio.v2, torch, generate, pathlib\n"
        "def write_half_and_die(path, *_, **__):\n"
        "    open(path, 'wb').write(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "imageio.v2.mimwrite = write_half_and_die\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "generate.RunFiles(path).write(path, generate.write_video, torch.zeros(3, 5, 16, 16))\n"
    )
    program = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(program, cwd=TREE, env=clean_environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "the last good video"


def test_the_config_says_which_files_it_is_of(tmp_path):
    files = RunFiles(tmp_path / "video.mp4")
    files.write(files.path, write_video, VIDEO)
    (partial,) = files.whole.values()
    size = partial.stat().st_size
    assert generate.fingerprint(partial)["size"] == size
    written = json.loads(json.dumps({path.name: generate.fingerprint(each) for path, each in files.whole.items()}))
    files.move()
    assert written == {"video.mp4": generate.fingerprint(tmp_path / "video.mp4")}
