"""One calibration at a time works on an output, and rank 0 waits for nobody who is gone."""

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from lemica.calibration import locks
from lemica.calibration.calibrate import Workload, averaged, measure_unit, refuse_output, write_averaged
from lemica.calibration.checkpoints import Checkpoints, Unit, folder_for
from lemica.calibration.edges import FAST, Errors, work_for
from lemica.calibration.locks import Crew, Lock, is_held, wait_until_free
from lemica.calibration.samples import Sample, read_samples
from lemica.errors import NotMoved, Refused, RefusedHere
from lemica.masks import Target
from lemica.planning.graph import edge_pairs, read_graph

N, D = 5, 3
SIGMAS = np.linspace(1, 0, N + 1).tolist()
# Takes the lock that is named, says so, and keeps it until its standard input ends.
HOLDER = "import sys; from lemica.calibration.locks import Lock; from pathlib import Path\n"
HOLDER += "lock = Lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def alone(value):
    """What a single rank exchanges."""
    return [value]


def plan_of(samples: int = 2) -> Workload:
    return Workload([Sample(str(number), 0) for number in range(samples)], work_for(FAST, N, D), FAST, N, D)


def errors(factor: float = 1.0) -> Errors:
    edges = [(i, j, factor * (j - i)) for i, j in edge_pairs(N, D)]
    return Errors(edges, [], SIGMAS, np.eye(N).tolist(), is_euler=True)


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "g.json", {"seeds": [0]})


def finish(checkpoints: Checkpoints, *samples: int) -> None:
    for sample in samples:
        checkpoints.save(Unit(sample), errors(sample + 1), Target("m", sigmas=tuple(SIGMAS)))


@pytest.fixture
def another_process():
    """Call with a lock file: another process holds that lock; gives the process."""
    processes = []

    def hold(path: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, path]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def together(world_size: int, act) -> list[str | None]:
    """Run act(rank, exchange) on threads as ranks; gives every rank's refusal, or None."""
    barrier, values, refusals = threading.Barrier(world_size, timeout=60), [None] * world_size, [None] * world_size

    def work(rank):
        def exchange(value):
            values[rank] = value
            barrier.wait()
            found = list(values)
            barrier.wait()
            return found

        try:
            act(rank, exchange)
        except Refused as error:
            refusals[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return refusals


# Locks


def test_a_lock_is_held_by_one_and_free_once_it_is_released(tmp_path):
    path = tmp_path / "rank0.lock"
    assert not is_held(path)
    lock = Lock(path)
    assert is_held(path)
    with pytest.raises(BlockingIOError):
        Lock(path)
    lock.release()
    assert not is_held(path)
    Lock(path).release()


def test_a_killed_process_holds_no_lock(tmp_path, another_process):
    path = tmp_path / "rank0.lock"
    process = another_process(path)
    assert is_held(path)
    process.kill()
    process.wait()
    assert not is_held(path)


def test_a_lock_on_a_file_that_its_last_holder_removed_is_none(tmp_path, monkeypatch):
    path = tmp_path / "rank0.lock"
    flock, taken = fcntl.flock, []

    def remove_then_lock(descriptor, how):
        if not taken:
            path.unlink()
        taken.append(how)
        flock(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", remove_then_lock)
    lock = Lock(path)
    assert len(taken) == 2 and os.path.samestat(os.fstat(lock._descriptor), path.stat())
    lock.release()


# One owner


def test_a_second_calibration_is_told_at_once_who_is_at_work(tmp_path, another_process):
    folder = tmp_path / "g.json.partial"
    folder.mkdir()
    process = another_process(folder / "rank0.lock")
    with pytest.raises(Refused) as refusal, Crew(folder, 0, 1).at_work(alone):
        pytest.fail("two are at work")
    line = str(refusal.value)
    assert f"another lemica calibrate is at work on {folder} (process {process.pid} on " in line
    assert "wait for its graph, or give another --output" in line


def test_nothing_begins_while_a_rank_of_an_earlier_run_is_at_work(tmp_path, another_process):
    folder = tmp_path / "g.json.partial"
    folder.mkdir()
    another_process(folder / "rank3.lock")
    with pytest.raises(Refused, match="another lemica calibrate is at work"), Crew(folder, 0, 1).at_work(alone):
        pytest.fail("two are at work")
    assert not is_held(folder / "rank0.lock")


def test_after_a_crash_the_same_command_goes_on(tmp_path, another_process):
    folder = tmp_path / "g.json.partial"
    folder.mkdir()
    process = another_process(folder / "rank0.lock")
    process.kill()
    process.wait()
    with Crew(folder, 0, 1).at_work(alone):
        assert is_held(folder / "rank0.lock")
    assert not is_held(folder / "rank0.lock")


def test_a_calibration_in_which_nothing_was_begun_leaves_no_folder(tmp_path):
    folder = tmp_path / "g.json.partial"
    with pytest.raises(Refused, match="by hand"), Crew(folder, 0, 1).at_work(alone):
        raise Refused("by hand")
    assert os.listdir(tmp_path) == []
    checkpoints = Checkpoints(tmp_path / "g.json", {"seeds": [0]})
    with Crew(folder, 0, 1).at_work(alone):
        finish(checkpoints, 0)
    assert checkpoints.measured(0)
    with Crew(folder, 0, 1).at_work(alone):
        checkpoints.remove()
    assert os.listdir(tmp_path) == []


def test_two_names_of_one_output_have_one_folder(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "data" / "g.json")
    assert folder_for(tmp_path / "link.json") == folder_for(tmp_path / "data" / "g.json")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "g.json.partial").touch()
    with pytest.raises(Refused, match="is in the way"), Crew(tmp_path / "g.json.partial", 0, 1).at_work(alone):
        pass


def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.raises(Refused, match="without file locks"), Crew(tmp_path / "g.json.partial", 0, 1).at_work(alone):
        pass


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "g.json.partial"
    opened = os.open

    def denied(path, *how):
        if str(path).endswith("rank0.lock"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how)

    monkeypatch.setattr(locks.os, "open", denied)
    with (
        pytest.raises(Refused, match=r"rank0\.lock: Permission denied: give another"),
        Crew(folder, 0, 1).at_work(alone),
    ):
        pass


# Ranks


def test_ranks_that_share_a_folder_are_at_work_together(tmp_path):
    folder, seen = tmp_path / "g.json.partial", []

    def act(rank, exchange):
        with Crew(folder, rank, 3).at_work(exchange):
            exchange(None)
            seen.append((rank, [is_held(folder / f"rank{other}.lock") for other in range(3)]))
            exchange(None)

    assert together(3, act) == [None] * 3
    assert sorted(seen) == [(rank, [True] * 3) for rank in range(3)]


def test_nodes_that_share_no_disk_are_refused_on_every_rank(tmp_path):
    def act(rank, exchange):
        folder = tmp_path / f"node{rank // 2}" / "g.json.partial"
        with Crew(folder, rank, 4).at_work(exchange):
            pytest.fail("no rank may begin")

    refusals = together(4, act)
    assert len(set(refusals)) == 1
    assert not any(path.name.endswith(".partial") for path in tmp_path.rglob("*"))
    assert re.match(r"rank 2 on .* does not see what rank 0 wrote to .*node1/g.json.partial", refusals[0])
    assert "give an --output in a folder that all nodes share (and 1 more ranks)" in refusals[0]


def test_a_copy_of_the_folder_on_another_disk_is_not_taken_for_it(tmp_path):
    copy = tmp_path / "node1" / "g.json.partial"
    copy.mkdir(parents=True)
    (copy / "token").write_text("of an earlier run")

    def act(rank, exchange):
        with Crew(tmp_path / f"node{rank}" / "g.json.partial", rank, 2).at_work(exchange):
            pytest.fail("no rank may begin")

    assert "does not see" in together(2, act)[0]


def test_a_disk_whose_locks_the_other_nodes_do_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "is_held", lambda _: False)

    def act(rank, exchange):
        with Crew(tmp_path / "g.json.partial", rank, 2).at_work(exchange):
            pytest.fail("no rank may begin")

    refusals = together(2, act)
    assert "does not see the locks of ranks [1]" in refusals[0] and refusals[0] == refusals[1]


# Waiting


def test_a_rank_that_is_gone_is_not_waited_for(checkpoints):
    finish(checkpoints, 0)
    with pytest.raises(Refused) as refusal:
        averaged(plan_of(), checkpoints, Crew(checkpoints.folder, 0, 2))
    line = str(refusal.value)
    assert "ranks are gone before their work was done, 1 of 2 samples" in line and "\n" not in line
    assert f"type the same command again, which goes on from what is kept in {checkpoints.folder}" in line
    assert checkpoints.measured(0)


def test_a_rank_that_is_killed_while_it_is_waited_for_is_gone(checkpoints, another_process):
    finish(checkpoints, 0)
    process = another_process(checkpoints.folder / "rank1.lock")
    waiting = threading.Thread(target=wait_until_free, args=(checkpoints.folder / "rank1.lock",))
    waiting.start()
    process.kill()
    waiting.join()
    with pytest.raises(Refused, match="are gone"):
        averaged(plan_of(), checkpoints, Crew(checkpoints.folder, 0, 2))


def test_a_rank_at_work_is_waited_for(checkpoints, monkeypatch, capsys):
    finish(checkpoints, 0)
    lock = Lock(checkpoints.folder / "rank1.lock")

    def end_of_rank_1(path):
        assert path == checkpoints.folder / "rank1.lock" and is_held(path)
        finish(checkpoints, 1)
        lock.release()

    monkeypatch.setattr(locks, "wait_until_free", end_of_rank_1)
    graph = averaged(plan_of(), checkpoints, Crew(checkpoints.folder, 0, 2))
    assert graph.samples == 2 and graph.error(0, 2) == 3.0
    assert "waiting for the other ranks: 1 of 2 samples are not done" in capsys.readouterr().out


# What is kept


def test_a_leftover_folder_is_said_to_be_one_that_may_be_deleted(tmp_path, checkpoints):
    line = r"was begun with --seeds 0, not --seeds 1: .*; it is a folder, which may be deleted$"
    with pytest.raises(Refused, match=line):
        Checkpoints(tmp_path / "g.json", {"seeds": [1]})


@pytest.mark.parametrize("content", [None, "{"])
def test_samples_without_the_arguments_that_they_were_measured_with_are_not_gone_on_with(
    tmp_path, checkpoints, content
):
    finish(checkpoints, 0)
    arguments = checkpoints.folder / "arguments.json"
    arguments.unlink()
    if content:
        arguments.write_text(content)
    with pytest.raises(Refused, match=r"does not say with which arguments it was begun: it is a folder, which may be"):
        Checkpoints(tmp_path / "g.json", {"seeds": [0]})


def test_what_is_removed_last_are_the_arguments(checkpoints, monkeypatch):
    finish(checkpoints, 0, 1)
    unlink, removed = Path.unlink, []
    monkeypatch.setattr(Path, "unlink", lambda self, **how: (removed.append(self.name), unlink(self, **how)))
    monkeypatch.setattr("lemica.calibration.checkpoints.shutil.rmtree", lambda *_, **__: None)
    checkpoints.remove()
    assert sorted(removed) == ["sample0.part0of1.json", "sample1.part0of1.json"]
    assert os.listdir(checkpoints.folder) == ["arguments.json"]


# What a version wrote that did not ask for the sampler.
OLD_PART = '{"errors": {"local": [], "final": [], "sigmas": [1, 0], "products": [[1]]}, "target": {}}'


@pytest.mark.parametrize("content", ["", '{"errors": ', "[]", '{"errors": {}, "target": {}}', OLD_PART])
def test_a_part_that_the_disk_has_spoilt_is_measured_again(checkpoints, capsys, content):
    finish(checkpoints, 0)
    (checkpoints.folder / "sample0.part0of1.json").write_text(content)
    assert not checkpoints.has(Unit(0)) and checkpoints.measured(0) is None
    assert "that part is measured again" in capsys.readouterr().err


def test_errors_that_are_no_numbers_are_not_kept(checkpoints):
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints.save(Unit(0), errors(float("nan")), Target("m", sigmas=tuple(SIGMAS)))
    assert not checkpoints.has(Unit(0))


def test_a_full_disk_is_told_by_the_rank_that_meets_it(checkpoints, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "g.json.partial/sample0.part0of1.json")

    class Ready:
        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("lemica.calibration.replays.measure", lambda *_: errors())
    monkeypatch.setattr(checkpoints, "save", full)
    model = Namespace(prepare=lambda _: (None, Target()), on_device=Ready)
    with pytest.raises(RefusedHere, match=r"No space left on device: make room there, and type the same command again"):
        measure_unit(plan_of(), model, Unit(0), checkpoints, lambda: None)


def write(checkpoints: Checkpoints, output: Path) -> None:
    write_averaged(plan_of(), checkpoints, Crew(checkpoints.folder, 0, 1), output)


def test_a_graph_that_another_wrote_meanwhile_is_not_overwritten(tmp_path, checkpoints):
    finish(checkpoints, 0, 1)
    (tmp_path / "g.json").write_text("another's")
    with pytest.raises(Refused, match=r"is there already: .* all samples are kept in"):
        write(checkpoints, tmp_path / "g.json")
    assert (tmp_path / "g.json").read_text() == "another's" and checkpoints.measured(1)


def test_a_graph_that_cannot_be_written_leaves_all_samples(tmp_path, checkpoints, monkeypatch):
    finish(checkpoints, 0, 1)
    replace = os.replace

    def refuse(source, target):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(NotMoved) as kept:
        write(checkpoints, tmp_path / "g.json")
    assert read_graph(str(kept.value).rpartition(" is ")[2]).samples == 2
    monkeypatch.setattr(os, "replace", replace)
    write(checkpoints, tmp_path / "g.json")
    assert read_graph(tmp_path / "g.json").samples == 2 and not checkpoints.folder.exists()


@pytest.mark.parametrize("special", ["folder", "pipe"])
def test_an_output_that_is_no_file_is_refused(tmp_path, special):
    path = tmp_path / special
    path.mkdir() if special == "folder" else os.mkfifo(path)
    with pytest.raises(Refused, match="is no file: name a file"):
        refuse_output(path)


# Prompts


def prompts_of(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return [sample.prompt for sample in read_samples(Namespace(prompts=path, seeds=[0], image_path=None))]


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("\ufeffa\nb\n", ["a", "b"]),
        ("a\r\nb\r\n\r\n", ["a", "b"]),
        ("a\u2028still a\nb\x0bstill b\x85\n", ["a\u2028still a", "b\x0bstill b"]),
        ("a\n\ufeffb\n\ufeff\n", ["a", "b"]),
    ],
)
def test_prompts_end_at_line_feeds_alone_and_hold_no_byte_order_marks(tmp_path, content, prompts):
    assert prompts_of(tmp_path / "p.txt", content.encode()) == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\rb\r", "a carriage return without a line feed in line 1"),
        (b"a\nb\rc\n", "a carriage return without a line feed in line 2"),
        (b"a\nb\0c\n", "a NUL character in line 2"),
        (b"\xff\xfea\0\n\0", "is not UTF-8 text"),
    ],
)
def test_files_that_could_be_read_in_two_ways_are_refused(tmp_path, content, message):
    with pytest.raises(Refused, match=message):
        prompts_of(tmp_path / "p.txt", content)


def test_an_image_called_none_is_none_as_in_generate_py(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat")
    assert read_samples(Namespace(prompts=path, seeds=[0], image_path=["none"])) == [Sample("a cat", 0)]


def test_a_prompts_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(Refused, match="nowhere: No such file"):
        read_samples(Namespace(prompts=tmp_path / "nowhere", seeds=[0], image_path=None))


def test_what_is_kept_is_json_without_surprises(checkpoints):
    finish(checkpoints, 0)
    content = json.loads((checkpoints.folder / "sample0.part0of1.json").read_text())
    assert set(content) == {"errors", "target"}
