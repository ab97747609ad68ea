"""Files are whole or not there, nothing finished is lost, and what is no regular file is written into."""

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from calibrated import calibrated_graph
from fake_runs import moving_disc, write_lossless

from lemica import files
from lemica.cli.main import main
from lemica.errors import NotMoved
from lemica.files import replacing, try_name, write_text
from lemica.masks import Mask, read_mask, write_mask
from lemica.planning.graph import read_graph, write_graph
from lemica.streams import Unfailing

REPOSITORY = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")


@pytest.fixture
def graph(tmp_path) -> Path:
    path = tmp_path / "graph.json"
    write_graph(calibrated_graph(), path)
    return path


def lemica(*arguments, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lemica", *map(str, arguments)]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | settings
    return subprocess.run(command, cwd=REPOSITORY, **settings)


def plan(graph: Path, output: Path, **settings) -> subprocess.CompletedProcess:
    return lemica("plan", graph, "--budget", 5, "-o", output, **settings)


# Names


def test_writers_of_one_name_never_share_a_temporary_file(tmp_path):
    path = tmp_path / "graph.json"
    with replacing(path) as first, replacing(path) as second:
        assert first != second and first.exists() and second.exists()
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["graph.json"]


def test_many_writers_at_once_leave_one_of_their_files(tmp_path):
    path = tmp_path / "graph.json"
    texts = [str(number) * 100_000 for number in range(8)]
    writers = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["graph.json"]


@pytest.mark.parametrize("name", ["g" * 250 + ".json", "ä" * 125 + ".json", "." + "s" * 254, "g" * 255])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path, name):
    write_text(tmp_path / name, "whole")
    assert (tmp_path / name).read_text() == "whole"
    assert os.listdir(tmp_path) == [name]


def test_a_name_that_is_too_long_is_refused_before_anything_is_written(tmp_path, graph, capsys):
    with pytest.raises(SystemExit):
        main(["plan", str(graph), "--budget", "5", "-o", str(tmp_path / ("g" * 256))])
    assert "File name too long" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["graph.json"]


def test_a_new_file_can_be_read_by_whom_the_umask_lets_and_an_old_one_by_whom_it_could(tmp_path):
    write_text(tmp_path / "new", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "plain").chmod(0o600)
    write_text(tmp_path / "plain", "secret")
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o600


def test_a_name_is_tried_without_a_trace(tmp_path):
    (tmp_path / "there").write_text("precious")
    for name in ("there", "new", "folder/new"):
        try_name(tmp_path / name)
    assert (tmp_path / "there").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["folder", "there"] and os.listdir(tmp_path / "folder") == []
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        try_name(tmp_path / "there" / "new")
    with pytest.raises(IsADirectoryError):
        try_name(tmp_path / "folder")


# Whole or not there


def test_what_a_writer_refuses_leaves_the_old_file(tmp_path):
    path = tmp_path / "mask.json"
    write_text(path, "old")

    def refuse(written):
        assert written.read_text() == "new"
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        write_text(path, "new", refuse)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["mask.json"]


def test_a_full_disk_leaves_the_old_file_and_is_named_after_the_file_that_was_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "mask.json"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_text(path, "new")
    assert error.value.filename == str(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["mask.json"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_full_at_any_size_leaves_the_old_mask(tmp_path, graph):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("cannot mount a disk here")
    try:
        assert plan(graph, disk / "mask.json").returncode == 0
        before = (disk / "mask.json").read_bytes()
        (disk / "fill").write_bytes(b"x" * 60_000)
        refused = plan(graph, disk / "mask.json")
        assert refused.returncode == 2
        assert refused.stderr == f"lemica plan: error: {disk}/mask.json: No space left on device\n"
        assert (disk / "mask.json").read_bytes() == before
        assert sorted(os.listdir(disk)) == ["fill", "mask.json"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_mask_is_written_with_its_weights_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="call its with_weights"):
        write_mask(Mask((True, False, True)), tmp_path / "mask.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_that_does_not_open_leaves_the_old_one(tmp_path, graph, monkeypatch, capsys, suffix):
    figure = pytest.importorskip("matplotlib.figure")
    picture = tmp_path / f"graph{suffix}"
    show = ["show", str(graph), "--plot", str(picture)]
    main(show)
    before, save = picture.read_bytes(), figure.Figure.savefig

    def save_half(self, path, **settings):
        save(self, path, **settings)
        os.truncate(path, os.path.getsize(path) // 2)

    monkeypatch.setattr(figure.Figure, "savefig", save_half)
    with pytest.raises(SystemExit) as end:
        main(show)
    assert end.value.code == 2
    assert f"{picture}: the picture cannot be read back" in capsys.readouterr().err
    assert picture.read_bytes() == before and sorted(os.listdir(tmp_path)) == sorted(["graph.json", picture.name])


def test_a_mask_never_takes_the_place_of_the_graph_that_it_is_planned_on(tmp_path, graph, capsys):
    before = graph.read_bytes()
    (tmp_path / "link.json").symlink_to(graph)
    for output in (graph, tmp_path / "link.json"):
        with pytest.raises(SystemExit) as end:
            main(["plan", str(graph), "--budget", "5", "-o", str(output)])
        assert end.value.code == 2
        assert f"-o {output} is the graph that is read: give another name" in capsys.readouterr().err
    assert graph.read_bytes() == before


def test_processes_that_write_one_mask_at_once_leave_a_whole_one(tmp_path, graph):
    output = tmp_path / "masks" / "mask.json"
    command = [sys.executable, "-m", "lemica", "plan", graph, "-o", output, "--forecast", "hold", "--budget"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": REPOSITORY}
    writers = [subprocess.Popen([*map(str, command), str(budget)], **quiet) for budget in range(3, 9)]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 6
    assert [writer.returncode for writer in writers] == [0] * 6
    assert read_mask(output).budget in range(3, 9)
    assert os.listdir(output.parent) == ["mask.json"]


# Finished, but it cannot have its name


@pytest.fixture
def immovable(monkeypatch):
    """Nothing can take the name mask.json, as if it were a mount point."""
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == "mask.json":
            raise OSError(16, "Device or resource busy", os.fspath(source), None, os.fspath(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)


def test_a_finished_file_that_cannot_take_its_name_is_kept_and_named(tmp_path, graph, immovable, capsys):
    output = tmp_path / "masks" / "mask.json"
    with pytest.raises(SystemExit) as end:
        main(["plan", str(graph), "--budget", "5", "-o", str(output)])
    assert end.value.code == 1
    line = capsys.readouterr().err
    begin = f"lemica plan: error: {output} cannot be written (Device or resource busy): the finished file is "
    assert line.startswith(begin) and line.count("\n") == 1
    kept = Path(line.removeprefix(begin).strip())
    assert kept.parent == output.parent and not kept.name.startswith(".")
    assert read_mask(kept).budget == 5
    assert os.listdir(output.parent) == [kept.name]


def test_a_finished_file_is_kept_even_where_no_other_name_is_allowed(tmp_path, immovable, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "rename", refuse)
    with pytest.raises(NotMoved) as kept:
        write_text(tmp_path / "mask.json", "whole")
    assert Path(str(kept.value).rpartition(" ")[2]).read_text() == "whole"


# What is no regular file


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path, graph):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    main(["plan", str(graph), "--budget", "5", "-o", str(pipe)])
    reader.join()
    (tmp_path / "mask.json").write_text(received[0])
    assert read_mask(tmp_path / "mask.json").budget == 5
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["graph.json", "mask.json", "pipe.json"]


@pytest.mark.skipif(not FULL.exists() or os.geteuid() != 0, reason="makes a device")
def test_a_device_stays_a_device(tmp_path, graph):
    device = tmp_path / "null.json"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("cannot make a device here")
    main(["plan", str(graph), "--budget", "5", "-o", str(device)])
    assert stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.skipif(not FULL.exists(), reason="has no /dev/full")
def test_a_device_that_takes_nothing_is_named(graph, capsys):
    with pytest.raises(SystemExit) as end:
        main(["plan", str(graph), "--budget", "5", "-o", str(FULL)])
    assert end.value.code == 2
    assert capsys.readouterr().err == "lemica plan: error: /dev/full: No space left on device\n"


@pytest.mark.parametrize("to_file", [True, False], ids=["a file", "a pipe"])
def test_standard_output_can_be_named(tmp_path, graph, to_file):
    with open(tmp_path / "out", "w") as file:
        done = plan(graph, Path("/dev/stdout"), stdout=file if to_file else subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "out").read_text() if to_file else done.stdout
    assert text.startswith('{\n  "format": "lemica-mask/2"') and text.endswith("■\n")


@pytest.mark.parametrize("target", ["there.json", "new.json"])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, target):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "there.json").write_text("old")
    link = tmp_path / "graph.json"
    link.symlink_to(Path("data", target))
    write_graph(calibrated_graph(), link)
    assert link.is_symlink() and not (tmp_path / "data" / target).is_symlink()
    assert read_graph(tmp_path / "data" / target).num_steps == calibrated_graph().num_steps
    assert os.listdir(tmp_path / "data") in (["there.json"], ["new.json", "there.json"], ["there.json", "new.json"])


def test_a_link_to_itself_is_refused(tmp_path, graph, capsys):
    link = tmp_path / "mask.json"
    link.symlink_to(link)
    with pytest.raises(SystemExit) as end:
        main(["plan", str(graph), "--budget", "5", "-o", str(link)])
    assert end.value.code == 2 and "symbolic links" in capsys.readouterr().err


# Standard output


@pytest.mark.skipif(not FULL.exists(), reason="has no /dev/full")
def test_a_full_standard_error_ends_no_comparison(tmp_path):
    video = write_lossless(tmp_path / "disc.mkv", moving_disc(frames=2))
    with FULL.open("w") as full:
        done = lemica("compare", video, video, "--json", stderr=full)
        refused = lemica("compare", video, "nowhere.mkv", stderr=full)
    assert done.returncode == 0 and json.loads(done.stdout)["videos"][0]["equal_frames"] == 2
    assert refused.returncode == 2
    assert lemica("compare", video, video, preexec_fn=closed(2)).returncode == 0


@pytest.mark.skipif(not FULL.exists(), reason="has no /dev/full")
def test_a_progress_bar_that_cannot_be_shown_ends_no_work(monkeypatch):
    from tqdm import tqdm

    done = []
    with suppress(OSError), FULL.open("w") as full, monkeypatch.context() as context:
        for stream in (full, None):
            context.setattr(sys, "stderr", stream)
            done.append(sum(tqdm(range(9), file=Unfailing(), mininterval=0)))
    assert done == [36, 36]


@pytest.mark.skipif(not FULL.exists(), reason="has no /dev/full")
def test_a_full_standard_output_costs_no_mask_and_is_told(tmp_path, graph):
    with FULL.open("w") as full:
        done = plan(graph, tmp_path / "mask.json", stdout=full)
    assert read_mask(tmp_path / "mask.json").budget == 5
    assert done.returncode == 1
    assert done.stderr.startswith("lemica plan: error: standard output: ") and done.stderr.count("\n") == 1


def closed(*descriptors: int):
    return lambda: [os.close(descriptor) for descriptor in descriptors]


@pytest.mark.parametrize("descriptors", [(1,), (2,), (0, 1, 2)])
def test_closed_standard_streams_cost_no_mask(tmp_path, graph, descriptors):
    done = plan(graph, tmp_path / "mask.json", preexec_fn=closed(*descriptors))
    assert done.returncode == 0
    assert read_mask(tmp_path / "mask.json").budget == 5


@pytest.mark.parametrize("command", [("show",), ("plan", "--budget=5")])
def test_a_result_that_would_go_to_a_closed_standard_output_is_refused(graph, command):
    done = lemica(*command, graph, preexec_fn=closed(1))
    assert done.returncode == 2
    assert "standard output is closed" in done.stderr


def test_a_name_that_the_locale_cannot_show_costs_no_mask(tmp_path, graph):
    output = tmp_path / os.fsdecode(b"m\xc3\xa4sk\xff.json")
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = plan(graph, output, env=environment, text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert read_mask(output).budget == 5


def test_a_name_that_is_tried_never_takes_away_a_file_that_came_to_it(tmp_path, monkeypatch):
    """It is made and removed while nobody else gives names in the folder; so are files moved."""
    path, is_held = tmp_path / "graph.json", []

    def noting(act):
        return lambda *names: is_held.append(others_must_wait(tmp_path)) or act(*names)

    monkeypatch.setattr(Path, "unlink", noting(Path.unlink))
    try_name(path)
    monkeypatch.setattr(os, "replace", noting(os.replace))
    write_text(path, "a graph")
    assert is_held == [True, True]
    assert not others_must_wait(tmp_path)


def others_must_wait(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
