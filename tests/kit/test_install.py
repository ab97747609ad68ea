"""scripts/install.py on trees of stand-ins for upstream's files and the kit's, known by a table of their own."""

import ast
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import UPSTREAM

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SPEC = importlib.util.spec_from_file_location("lemica_install", SCRIPTS / "install.py")
installer = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(installer)

STATE, PIPELINE, GENERATE = installer.KIT.values()
OLD = "x = 'upstream of before the first tree that the kit starts in'\n"
AUTHORS = "from angelslim.compressor.diffusion import X\ncache_lemica_step = 25\n"


@pytest.fixture(autouse=True)
def plain_git_and_quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep git on the tests' own repositories, also in a git hook or under a user's settings; wait for no disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree without generate.py, as hyvideo's PyPI package is."""
    root, table = tmp_path / "HunyuanVideo-1.5", {GENERATE: {}}
    for dest in (*installer.LANDMARKS, STATE, PIPELINE):
        (root / dest).parent.mkdir(parents=True, exist_ok=True)
        (root / dest).write_text(f"# upstream's {dest}\n" * 20)
        digests = [hashlib.sha256(text).hexdigest() for text in ((root / dest).read_bytes(), OLD.encode())]
        table[dest] = {digest: {"runs": runs} for digest, runs in zip(digests, (True, False), strict=True)}
    (root / installer.COMMONS).write_text("def is_angelslim_available(): ...\n")
    (root / PIPELINE).chmod(0o640)
    monkeypatch.setattr(installer, "TABLE", tmp_path / "table.json")
    installer.TABLE.write_text(json.dumps(table))
    return root


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_kit(tmp_path / "kit", "1")


def make_kit(folder: Path, version: str) -> Path:
    folder.mkdir()
    for name in installer.KIT:
        (folder / name).write_text(f"# stand-in for {name}, lemica kit {version}, --lora_path\n" * 50)
    return folder


def run(*args: object, kit: Path = Path("nowhere")) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = installer.main([str(arg) for arg in args], kit)
    return status, out.getvalue(), err.getvalue()


def snapshot(root: Path) -> dict[str, tuple[int, str | bytes | None]]:
    """Return mode and content of everything under root, its folders included."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = None if path.is_dir() else path.read_bytes() if not path.is_symlink() else os.readlink(path)
        found[str(path.relative_to(root))] = stat.S_IMODE(path.lstat().st_mode), content
    return found


def git(tree: Path, *args: str) -> str:
    command = ["git", "-C", tree, "-c", "user.name=test", "-c", "user.email=test@localhost", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def commit(tree: Path) -> None:
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "upstream"]):
        git(tree, *command)


def assert_installed(tree: Path, kit: Path) -> None:
    for name, dest in installer.KIT.items():
        assert (tree / dest).read_bytes() == (kit / name).read_bytes()


def assert_refused(tree: Path, kit: Path, *words: str, request: tuple[str, ...] = ()) -> None:
    before = snapshot(tree)
    status, out, err = run(tree, *request, kit=kit)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words), err
    assert snapshot(tree) == before


def assert_goes_in_and_out(tree: Path, kit: Path, *request: str) -> None:
    before = snapshot(tree)
    status, _, err = run(tree, *request, kit=kit)
    assert (status, err) == (0, "")
    assert_installed(tree, kit)
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before


def test_install_then_uninstall_restores_every_byte_and_mode(tree: Path, kit: Path) -> None:
    assert "--uninstall" in run(tree, kit=kit)[1]
    assert stat.S_IMODE((tree / PIPELINE).stat().st_mode) == 0o640
    assert run(tree, "--uninstall")[0] == 0
    assert_goes_in_and_out(tree, kit)
    assert "nothing changed" in run(tree, "--uninstall")[1]


def test_second_install_touches_nothing(tree: Path, kit: Path) -> None:
    run(tree, kit=kit)
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}, snapshot(tree)
    assert "already installed" in run(tree, kit=kit)[1]
    assert ({path: path.stat().st_mtime_ns for path in tree.rglob("*")}, snapshot(tree)) == before


def test_newer_kit_replaces_the_files_and_keeps_the_first_backup(tree: Path, kit: Path, tmp_path: Path) -> None:
    before, newer = snapshot(tree), make_kit(tmp_path / "newer", "2")
    run(tree, kit=kit)
    assert run(tree, kit=newer)[1].startswith("installed")
    assert_installed(tree, newer)
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before


def test_windows_line_ends_are_known_and_restored(tree: Path, kit: Path) -> None:
    (tree / STATE).write_bytes((tree / STATE).read_bytes().replace(b"\n", b"\r\n"))
    assert_goes_in_and_out(tree, kit)


@pytest.mark.parametrize(("dest", "text"), [(installer.COMMONS, "x = 1\n"), (STATE, OLD), (PIPELINE, OLD)])
def test_a_tree_that_cannot_start_is_refused_even_by_force(tree: Path, kit: Path, dest: str, text: str) -> None:
    (tree / dest).write_text(text)
    commit(tree)
    for request in ((), ("--force",)):
        assert_refused(tree, kit, "too old", dest, f"git -C {tree} pull", "358c2c0", request=request)


def test_unknown_files_are_all_named_and_forced(tree: Path, kit: Path) -> None:
    (tree / STATE).write_text("mine\n")
    (tree / GENERATE).write_text("mine\n")
    assert_refused(tree, kit, STATE, GENERATE, "not a git repository", "--force")
    assert_goes_in_and_out(tree, kit, "--force")


def test_git_vouches_for_what_is_committed(tree: Path, kit: Path) -> None:
    (tree / STATE).write_text("a newer upstream\n")
    (tree / GENERATE).write_text("a newer upstream\n")
    commit(tree)
    assert_goes_in_and_out(tree, kit)
    run(tree, kit=kit)
    assert sorted(git(tree, "status", "--short").split()[1::2]) == sorted(installer.KIT.values())  # not the backup
    run(tree, "--uninstall")
    (tree / STATE).write_text("mine\n")
    assert_refused(tree, kit, f"{STATE} (edits not committed to git)")


def test_a_clone_of_another_user_is_refused_with_gits_remedy(
    tree: Path, kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / STATE).write_text("a newer upstream\n")
    commit(tree)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert_refused(tree, kit, STATE, f"git config --global --add safe.directory {tree}")


def test_the_authors_kit_is_named(tree: Path, kit: Path) -> None:
    before = (tree / PIPELINE).read_text()
    for dest, text in ((PIPELINE, AUTHORS), (GENERATE, "parser.add_argument('--lemica_step')\n")):
        (tree / dest).write_text(text)
        assert_refused(tree, kit, "the authors' released LeMiCa kit", f"checkout -- {STATE} {PIPELINE}", "--force")
        assert_goes_in_and_out(tree, kit, "--force")
        (tree / PIPELINE).write_text(before)


def test_the_kit_without_its_backup_is_named(tree: Path, kit: Path) -> None:
    (tree / GENERATE).write_text("upstream's\n")
    commit(tree)
    original = {dest: (tree / dest).read_bytes() for dest in installer.KIT.values()}
    run(tree, kit=kit)
    git(tree, "clean", "-fdxq")
    assert not (tree / installer.BACKUP).exists()
    for request in ((), ("--uninstall",), ("--uninstall", "--force")):
        assert_refused(tree, kit, "this kit", installer.BACKUP, request=request)
    remedy = run(tree, "--uninstall")[2].split("checkout -- ")[1].split(" puts ")[0].split()
    git(tree, "checkout", "--", *remedy)
    assert {dest: (tree / dest).read_bytes() for dest in installer.KIT.values()} == original


def test_every_file_of_the_kit_has_the_word_that_it_is_known_by() -> None:
    kit = {name: (installer.REPOSITORY / name).read_text(encoding="utf-8") for name in installer.KIT}
    assert all("lemica" in text.lower() for text in kit.values())
    assert "--lora_path" in kit["generate.py"]
    assert "cache_lemica_step" not in kit["hunyuan_video_pipeline.py"]


def test_edits_after_the_install_are_not_thrown_away(tree: Path, kit: Path) -> None:
    before = snapshot(tree)
    run(tree, kit=kit)
    (tree / GENERATE).write_text("mine\n")
    for request in ((), ("--uninstall",)):
        assert_refused(tree, kit, GENERATE, "--force", request=request)
    assert run(tree, "--force", kit=kit)[0] == 0
    assert_installed(tree, kit)
    (tree / GENERATE).write_text("mine, too\n")
    assert_refused(tree, kit, "generate.py.edited", "move it away", request=("--uninstall", "--force"))
    aside = tree / "generate.py.edited"
    assert aside.read_text() == "mine\n"
    aside.unlink()
    assert run(tree, "--uninstall", "--force")[0] == 0
    assert aside.read_text() == "mine, too\n"
    aside.unlink()
    assert snapshot(tree) == before


def test_deleted_and_put_back_files_are_no_edits(tree: Path, kit: Path) -> None:
    before, upstream = snapshot(tree), (tree / PIPELINE).read_bytes()
    run(tree, kit=kit)
    (tree / STATE).unlink()
    (tree / PIPELINE).write_bytes(upstream)
    assert run(tree, kit=kit)[0] == 0
    assert_installed(tree, kit)
    (tree / STATE).unlink()
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before


def test_a_users_file_in_the_backup_is_not_deleted(tree: Path, kit: Path) -> None:
    run(tree, kit=kit)
    (tree / installer.BACKUP / "notes.txt").write_text("mine\n")
    status, _, err = run(tree, "--uninstall")
    assert status == 1 and "not empty" in err
    assert (tree / installer.STAGING / "notes.txt").read_text() == "mine\n"


@pytest.mark.parametrize("damage", ["manifest", "copy", "names"])
def test_damaged_backup_is_refused(tree: Path, kit: Path, damage: str) -> None:
    run(tree, kit=kit)
    manifest = tree / installer.BACKUP / "manifest.json"
    if damage == "copy":
        (tree / installer.BACKUP / "infer_state.py").write_text("")
    else:
        manifest.write_text("{" if damage == "manifest" else manifest.read_text().replace(GENERATE, "../outside.py"))
    for request in ((), ("--uninstall",), ("--uninstall", "--force")):
        assert_refused(tree, kit, "damaged", request=request)


def test_a_linked_file_is_replaced_and_what_it_points_to_is_not_written(tree: Path, kit: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    shutil.move(tree / STATE, outside)
    (tree / STATE).symlink_to(os.path.relpath(outside, (tree / STATE).parent))
    (tree / GENERATE).symlink_to("nowhere.py")
    content = outside.read_bytes()
    assert_goes_in_and_out(tree, kit)
    assert outside.read_bytes() == content


def test_folders_linked_out_of_the_tree_are_refused(tree: Path, kit: Path, tmp_path: Path) -> None:
    (tree / installer.STAGING).symlink_to(tmp_path)
    assert_refused(tree, kit, "is a link")
    shutil.move(tree / "hyvideo/commons", tmp_path / "outside")
    (tree / "hyvideo/commons").symlink_to(tmp_path / "outside")
    before = snapshot(tmp_path / "outside")
    assert_refused(tree, kit, "leads out of")
    assert snapshot(tmp_path / "outside") == before


def test_other_folders_and_incomplete_kits_are_refused(tree: Path, kit: Path, tmp_path: Path) -> None:
    assert_refused(tree / "hyvideo", kit, installer.COMMONS, "the folder that holds hyvideo/")
    assert_refused(tmp_path / "nowhere", kit, "no folder", "./scripts/install.sh")
    (kit / "generate.py").unlink()
    assert_refused(tree, kit, "incomplete", "generate.py")
    (tree / PIPELINE).unlink()
    assert_refused(tree, kit, f"no {PIPELINE}")
    with pytest.raises(SystemExit, match="2"):
        run(tree, "--unistall")


def test_a_full_disk_is_one_line_and_the_next_run_finishes(
    tree: Path, kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        status, _, err = run(tree, kit=kit)
    assert status == 1 and err.count("\n") == 1 and "No space" in err
    assert run(tree, kit=kit)[0] == 0
    assert_installed(tree, kit)


def test_an_old_python_gets_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    ast.parse((SCRIPTS / "install.py").read_text(encoding="utf-8"), feature_version=(3, 7))  # the oldest it can tell
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit) as stop:
        SPEC.loader.exec_module(importlib.util.module_from_spec(SPEC))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "Python 3.10" in err


def test_the_shell_script_puts_the_real_kit_into_the_real_package(tmp_path: Path) -> None:
    for name in (*installer.LANDMARKS, STATE, PIPELINE):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(UPSTREAM.parent / name, tmp_path / "tree" / name)
    before = snapshot(tmp_path / "tree")
    command, environment = [SCRIPTS / "install.sh", "tree"], {**os.environ, "PYTHON": sys.executable}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert_installed(tmp_path / "tree", installer.REPOSITORY)
    subprocess.run([*command, "--uninstall"], cwd=tmp_path, env=environment, check=True)
    assert snapshot(tmp_path / "tree") == before


def test_a_second_installer_is_told_at_once(tree: Path, kit: Path) -> None:
    with (tree / installer.COMMONS).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for request in ((), ("--uninstall",)):
            assert_refused(tree, kit, "another install.sh works on", request=request)
    assert_goes_in_and_out(tree, kit)


def in_child(work, *args: object, **keywords: object) -> int:
    """Fork a process whose exit status is what the work returns, 99 after an error."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work(*args, **keywords)
        finally:
            os._exit(code)  # also after an error: a child that returned would run the rest of the tests
    return pid


def run_together(requests: list[tuple], kit: Path) -> list[int]:
    """Run install.py once per request, each in a process of its own, all let loose at one moment."""
    gate, opener = os.pipe()

    def work(request: tuple) -> int:
        os.close(opener)
        os.read(gate, 1)  # ends when the last writer has closed
        return run(*request, kit=kit)[0]

    pids = [in_child(work, request) for request in requests]
    os.close(opener)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.close(gate)
    return statuses


def test_processes_at_once_lose_nothing(tree: Path, kit: Path) -> None:
    (tree / GENERATE).write_text("mine\n")
    original = snapshot(tree)
    for _ in range(12):
        statuses = run_together([(tree, "--force")] * 4, kit)
        assert 0 in statuses and set(statuses) <= {0, 2}
        assert_installed(tree, kit)
        statuses = run_together([(tree, "--uninstall")] * 4, kit)
        assert 0 in statuses and set(statuses) <= {0, 2}
        assert snapshot(tree) == original
        run_together([(tree, "--force"), (tree, "--uninstall")] * 2, kit)
        assert run(tree, "--uninstall")[0] == 0 and snapshot(tree) == original


CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.chmod", "os.utime"}


def die_before_change(number: int) -> None:
    """Make this process kill itself before its number-th change of the disk, the file it was syncing half written."""
    countdown, sync = itertools.count(number - 1, -1), os.fsync

    def watch(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_CREAT)
        if (writes or event in CHANGES) and next(countdown) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def fsync(fd: int) -> None:
        if next(countdown) == 0:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.truncate(f"/proc/self/fd/{fd}", os.fstat(fd).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(fd)

    os.fsync = fsync
    sys.addaudithook(watch)


def finishes_when_killed_at(number: int, *args: object, kit: Path = Path("nowhere")) -> bool:
    """Run install.py in a child process that dies before its number-th change; say whether it got to its end."""

    def work() -> int:
        die_before_change(number)
        return run(*args, kit=kit)[0]

    status = os.waitpid(in_child(work), 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0


def refill(tree: Path, source: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(source, tree, symlinks=True)


@pytest.mark.parametrize("scenario", ["install", "install over edits", "update", "uninstall"])
def test_killed_at_any_change_both_ways_out_are_open(tree: Path, kit: Path, tmp_path: Path, scenario: str) -> None:
    if scenario == "install over edits":
        (tree / GENERATE).write_text("mine\n")
        (tree / GENERATE).chmod(0o755)
        (tree / STATE).rename(tmp_path / "mine.py")
        (tree / STATE).symlink_to("../../../mine.py")
    original, new = snapshot(tree), make_kit(tmp_path / "new", "2")
    if scenario in ("update", "uninstall"):
        assert run(tree, kit=kit if scenario == "update" else new)[0] == 0
    start, wreck = tmp_path / "start", tmp_path / "wreck"
    refill(start, tree)
    before = snapshot(start)
    install = (tree, "--force") if "over" in scenario else (tree,)
    request = (tree, "--uninstall") if scenario == "uninstall" else install
    assert run(*install, kit=new)[0] == 0
    installed = snapshot(tree)

    for number in itertools.count(1):
        refill(tree, start)
        if finishes_when_killed_at(number, *request, kit=new):
            break
        left = snapshot(tree)
        for dest in installer.KIT.values():  # never a torn file, never a missing one
            assert left.get(dest) in (original.get(dest), installed[dest], before.get(dest))
        refill(wreck, tree)
        assert run(*install, kit=new)[0] == 0 and snapshot(tree) == installed
        assert run(tree, "--uninstall")[0] == 0 and snapshot(tree) == original
        refill(tree, wreck)
        assert run(tree, "--uninstall")[0] == 0 and snapshot(tree) == original
    assert number > 20, "the changes were not seen"


def test_killed_again_while_recovering(tree: Path, kit: Path, tmp_path: Path) -> None:
    original, start = snapshot(tree), tmp_path / "start"
    refill(start, tree)
    for first, second in itertools.product(range(1, 60, 8), range(1, 40, 5)):
        refill(tree, start)
        finishes_when_killed_at(first, tree, kit=kit)
        finishes_when_killed_at(second, tree, "--uninstall")
        assert run(tree, "--uninstall")[0] == 0 and snapshot(tree) == original
