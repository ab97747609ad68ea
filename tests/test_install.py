"""scripts/install.py on trees made of the real hyvideo package, with small stand-ins for the kit's three files."""

import contextlib
import errno
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import upstream_versions
from conftest import UPSTREAM

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SPEC = importlib.util.spec_from_file_location("lemica_install", SCRIPTS / "install.py")
installer = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(installer)

STATE, PIPELINE, GENERATE = installer.KIT.values()
KNOWN = json.loads(installer.KNOWN.read_text(encoding="utf-8"))
LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="kills a forked child, which needs Linux")


@pytest.fixture(autouse=True)
def plain_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep git on the tests' own repositories, also when the tests run from a git hook or under a user's settings."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "HunyuanVideo-1.5"
    for name in (*installer.LANDMARKS, STATE, PIPELINE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(UPSTREAM.parent / name, root / name)
    (root / PIPELINE).chmod(0o640)
    return root


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_kit(tmp_path / "kit", "1")


def make_kit(folder: Path, version: str) -> Path:
    folder.mkdir()
    for name in installer.KIT:
        (folder / name).write_text(f"# stand-in for {name}, kit {version}\n" * 50)
    return folder


def upstream_generate() -> str:
    """Return a generate.py of our own with the names and flags that upstream's has."""
    names = KNOWN[GENERATE]["interface"]
    functions = [f"def {name}({names[name]}):\n    pass\n" for name in names if name.isidentifier() and name != "main"]
    flags = [f"    parser.add_argument({name!r})" for name in names if name.startswith("--")]
    return "\n".join([*functions, "def main():", *flags, ""])


def run(*args: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = installer.main([str(arg) for arg in args])
    return status, out.getvalue(), err.getvalue()


def snapshot(root: Path) -> dict[str, tuple[int, str | bytes | None]]:
    """Return mode and content of everything under root, its folders included."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = None if path.is_dir() else path.read_bytes() if not path.is_symlink() else os.readlink(path)
        found[str(path.relative_to(root))] = stat.S_IMODE(path.lstat().st_mode), content
    return found


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def commit(tree: Path) -> None:
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "upstream"]):
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", "-C", str(tree), *who, *command], check=True)


def assert_installed(tree: Path, kit: Path) -> None:
    for name, dest in installer.KIT.items():
        assert (tree / dest).read_bytes() == (kit / name).read_bytes()


def assert_refused(tree: Path, kit: Path, *words: str) -> None:
    before = snapshot(tree)
    status, out, err = run(tree, "--kit", kit)
    assert (status, out) == (2, "")
    assert all(word in err for word in words), err
    assert snapshot(tree) == before


def test_fresh_install_then_uninstall_restores_every_byte_and_mode(tree: Path, kit: Path) -> None:
    before = snapshot(tree)
    status, out, err = run(tree, "--kit", kit)
    assert (status, err) == (0, "") and "--uninstall" in out
    assert_installed(tree, kit)
    assert stat.S_IMODE((tree / PIPELINE).stat().st_mode) == 0o640
    files = json.loads((tree / installer.BACKUP / "manifest.json").read_text())["files"]
    assert files[GENERATE]["before"] is None and files[PIPELINE]["mode"] == 0o640
    assert files[STATE]["before"] in KNOWN[STATE]["versions"]
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before


def test_second_install_touches_nothing(tree: Path, kit: Path) -> None:
    run(tree, "--kit", kit)
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}, snapshot(tree)
    status, out, _ = run(tree, "--kit", kit)
    assert status == 0 and "already installed" in out
    assert ({path: path.stat().st_mtime_ns for path in tree.rglob("*")}, snapshot(tree)) == before


def test_newer_kit_replaces_the_files_and_keeps_the_first_backup(tree: Path, kit: Path, tmp_path: Path) -> None:
    before, newer = snapshot(tree), make_kit(tmp_path / "newer", "2")
    run(tree, "--kit", kit)
    status, out, _ = run(tree, "--kit", newer)
    assert status == 0 and out.startswith("installed")
    assert_installed(tree, newer)
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before


def test_uninstall_of_nothing_is_a_success_that_says_so(tree: Path) -> None:
    before = snapshot(tree)
    status, out, _ = run(tree, "--uninstall")
    assert status == 0 and "not installed" in out
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    ("dest", "old", "new", "named"),
    [
        (STATE, "        return []\n", "        return [0]\n", "against 20260412: changed: parse_range;"),
        (STATE, "cache_start_step: int = 11", "cache_start_step: int = 5", "changed: InferState.cache_start_step;"),
        (STATE, "    quant_type:", "    mine: int = 0\n    quant_type:", "added: InferState.mine;"),
        (STATE, "def get_infer_state", "def get_state", "added: get_state; missing: get_infer_state;"),
        (STATE, "from typing", "import os\nfrom typing", "changed: module level;"),
        (STATE, "from typing", "# mine\nfrom typing", "only comments or blank lines"),
        (STATE, "from typing", "from from typing", "not Python source"),
        (PIPELINE, "def get_task_mask(self,", "def get_task_mask(self, x,", "Pipeline.get_task_mask;"),
    ],
)
def test_local_edits_are_refused_by_name_and_forced(
    tree: Path, kit: Path, dest: str, old: str, new: str, named: str
) -> None:
    edit(tree / dest, old, new)
    before = snapshot(tree)
    assert_refused(tree, kit, dest, named, "--force")
    assert run(tree, "--kit", kit, "--force")[0] == 0
    assert_installed(tree, kit)
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before


def test_every_unknown_file_is_listed(tree: Path, kit: Path) -> None:
    edit(tree / STATE, "return []", "return [0]")
    (tree / PIPELINE).write_text("x = 1\n")
    (tree / GENERATE).write_text(upstream_generate().replace("'--seed'", "'--my_seed'"))
    assert_refused(tree, kit, STATE, f"{PIPELINE}: resembles no version", "added: --my_seed; missing: --seed;")


def test_kit_copied_by_hand_is_not_taken_for_upstream(tree: Path, kit: Path) -> None:
    shutil.copyfile(kit / "generate.py", tree / GENERATE)
    assert_refused(tree, kit, "copied by hand")


def test_windows_line_ends_are_known_and_restored(tree: Path, kit: Path) -> None:
    (tree / STATE).write_bytes((tree / STATE).read_bytes().replace(b"\n", b"\r\n"))
    before = snapshot(tree)
    assert run(tree, "--kit", kit)[0] == 0
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before


def test_a_clean_checkout_with_upstreams_interface_is_accepted(tree: Path, kit: Path) -> None:
    (tree / GENERATE).write_text(upstream_generate())
    assert_refused(tree, kit, GENERATE, "no known hash", "not in a git checkout")
    edit(tree / STATE, "from typing", "# another comment\nfrom typing")
    edit(tree / PIPELINE, "def get_latent_size(self, video_length, height, width)", "def get_latent_size(self, height)")
    edit(tree / STATE, "    total_steps: int = 50 # total steps\n", "")
    commit(tree)
    status, _, err = run(tree, "--kit", kit)
    assert status == 0, err
    clean = subprocess.run(["git", "-C", tree, "status", "--short"], capture_output=True, text=True, check=True).stdout
    assert sorted(clean.split()[1::2]) == sorted([STATE, PIPELINE, GENERATE]), "the backup stays out of git's way"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("return []", "return [0]\n", "edits not committed"),
        ("# whether to use cache", "# mine", "edits not committed"),
    ],
)
def test_uncommitted_edits_are_refused(tree: Path, kit: Path, old: str, new: str, named: str) -> None:
    commit(tree)
    edit(tree / STATE, old, new)
    assert_refused(tree, kit, STATE, named)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("def parse_range(value)", "def parse_range(value, mine)", "parse_range"),
        ("    quant_type:", "    mine: int = 0\n    quant_type:", "InferState.mine"),
        ("def parse_range", "def parse", "parse, parse_range"),
    ],
)
def test_committed_edits_of_the_interface_are_refused(tree: Path, kit: Path, old: str, new: str, named: str) -> None:
    edit(tree / STATE, old, new)
    commit(tree)
    assert_refused(tree, kit, f"interface not upstream's in {named}")


def test_edits_after_the_install_are_not_thrown_away(tree: Path, kit: Path) -> None:
    before = snapshot(tree)
    run(tree, "--kit", kit)
    (tree / GENERATE).write_text("mine\n")
    for request in (["--kit", kit], ["--uninstall"]):
        status, _, err = run(tree, *request)
        assert status == 2 and GENERATE in err and STATE not in err and "--force" in err
        assert (tree / GENERATE).read_text() == "mine\n"
    assert run(tree, "--kit", kit, "--force")[0] == 0
    assert_installed(tree, kit)
    (tree / GENERATE).write_text("mine\n")
    assert run(tree, "--uninstall", "--force")[0] == 0
    assert snapshot(tree) == before


def test_deleted_and_put_back_files_are_no_edits(tree: Path, kit: Path) -> None:
    before, upstream = snapshot(tree), (tree / PIPELINE).read_bytes()
    run(tree, "--kit", kit)
    (tree / STATE).unlink()
    (tree / PIPELINE).write_bytes(upstream)
    assert run(tree, "--kit", kit)[0] == 0
    assert_installed(tree, kit)
    (tree / STATE).unlink()
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before


@pytest.mark.parametrize("damage", ["manifest", "copy", "names"])
def test_damaged_backup_is_refused(tree: Path, kit: Path, damage: str) -> None:
    run(tree, "--kit", kit)
    backup = tree / installer.BACKUP
    if damage == "manifest":
        (backup / "manifest.json").write_text("{")
    elif damage == "copy":
        (backup / "infer_state.py").write_text("")
    else:
        edit(backup / "manifest.json", GENERATE, "../outside.py")
    for request in (["--kit", kit], ["--uninstall"], ["--uninstall", "--force"]):
        status, _, err = run(tree, *request)
        assert status == 2 and "damaged" in err
    assert_installed(tree, kit)


def test_a_linked_file_is_replaced_and_what_it_points_to_is_not_written(tree: Path, kit: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    shutil.move(tree / STATE, outside)
    (tree / STATE).symlink_to(os.path.relpath(outside, (tree / STATE).parent))
    before, content = snapshot(tree), outside.read_bytes()
    assert run(tree, "--kit", kit)[0] == 0
    assert not (tree / STATE).is_symlink() and outside.read_bytes() == content
    assert_installed(tree, kit)
    assert run(tree, "--uninstall")[0] == 0
    assert snapshot(tree) == before and outside.read_bytes() == content


def test_folders_linked_out_of_the_tree_are_refused(tree: Path, kit: Path, tmp_path: Path) -> None:
    shutil.move(tree / "hyvideo/commons", tmp_path / "outside")
    (tree / "hyvideo/commons").symlink_to(tmp_path / "outside")
    before = snapshot(tmp_path / "outside")
    assert_refused(tree, kit, "leads out of")
    assert snapshot(tmp_path / "outside") == before


def test_linked_backup_is_refused(tree: Path, kit: Path, tmp_path: Path) -> None:
    (tree / installer.STAGING).symlink_to(tmp_path)
    assert_refused(tree, kit, "is a link")


def test_other_folders_are_refused(tree: Path, kit: Path, tmp_path: Path) -> None:
    assert_refused(tree / "hyvideo", kit, "hyvideo/commons/__init__.py", "the folder that holds hyvideo/")
    assert_refused(tmp_path, kit, "is no HunyuanVideo-1.5 tree")
    assert_refused(tmp_path / "nowhere", kit, "no folder", "./scripts/install.sh")
    (tree / PIPELINE).unlink()
    assert_refused(tree, kit, f"no {PIPELINE}")


def test_incomplete_kit_is_refused(tree: Path, kit: Path) -> None:
    (kit / "generate.py").unlink()
    assert_refused(tree, kit, "incomplete", "generate.py")


@pytest.mark.parametrize("args", [[], ["a", "b"], ["a", "--unistall"]])
def test_wrong_arguments(args: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert stop.value.code == 2


def test_a_full_disk_is_one_line_and_the_next_run_finishes(
    tree: Path, kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        status, _, err = run(tree, "--kit", kit)
    assert status == 1 and err.count("\n") == 1 and "No space" in err
    assert run(tree, "--kit", kit)[0] == 0
    assert_installed(tree, kit)


def test_the_shell_script_runs_from_any_folder(tree: Path, kit: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(SCRIPTS / "install.sh"), tree.name, "--kit", str(kit)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_installed(tree, kit)


def test_known_upstream_holds_the_real_package_and_no_text_of_it(tree: Path) -> None:
    for dest in (STATE, PIPELINE):
        version = KNOWN[dest]["versions"][installer.fingerprint(tree / dest)]
        interface, code = upstream_versions.describe((tree / dest).read_text(encoding="utf-8"))
        assert "20260412" in version["releases"] and version["code"] == code
        assert not upstream_versions.uncovered(interface, KNOWN[dest]["interface"])
    names = [name for facts in KNOWN.values() for item in facts["interface"].items() for name in item]
    hashes = [value for facts in KNOWN.values() for v in facts["versions"].values() for value in v["code"].values()]
    assert all(re.fullmatch(r"(--)?[\w., ]*", name) for name in names)
    assert all(re.fullmatch(r"[0-9a-f]{16}", value) for value in hashes)
    assert sum(name.startswith("--") for name in KNOWN[GENERATE]["interface"]) == 36


CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.chmod", "os.utime"}


def die_before_change(number: int) -> None:
    """Make this process kill itself before its number-th change of the disk, the file it was syncing half written."""
    countdown, sync = itertools.count(number - 1, -1), os.fsync

    def watch(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
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


def finishes_when_killed_at(number: int, *args: object) -> bool:
    """Run install.py in a child process that dies before its number-th change; say whether it got to its end."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            die_before_change(number)
            code = run(*args)[0]
        finally:
            os._exit(code)  # also after an error: a child that returned would run the rest of the tests
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0


def refill(tree: Path, source: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(source, tree, symlinks=True)


@LINUX
@pytest.mark.parametrize("scenario", ["install", "install over file", "install over link", "update", "uninstall"])
def test_killed_at_any_change_both_ways_out_are_open(tree: Path, kit: Path, tmp_path: Path, scenario: str) -> None:
    if scenario == "install over file":
        (tree / GENERATE).write_text("mine\n")
        (tree / GENERATE).chmod(0o755)
    elif scenario == "install over link":
        (tmp_path / "mine.py").write_text("mine\n")
        (tree / GENERATE).symlink_to("../mine.py")
    original, new = snapshot(tree), make_kit(tmp_path / "new", "2")
    if scenario in ("update", "uninstall"):
        assert run(tree, "--kit", kit if scenario == "update" else new)[0] == 0
    start, wreck = tmp_path / "start", tmp_path / "wreck"
    refill(start, tree)
    install = (tree, "--kit", new, "--force") if "over" in scenario else (tree, "--kit", new)
    request = (tree, "--uninstall") if scenario == "uninstall" else install
    assert run(*install)[0] == 0
    installed = snapshot(tree)

    for number in itertools.count(1):
        refill(tree, start)
        if finishes_when_killed_at(number, *request):
            break
        for dest in installer.KIT.values():  # never a torn file, never a missing one
            assert snapshot(tree).get(dest) in (original.get(dest), installed[dest], snapshot(start).get(dest))
        refill(wreck, tree)
        assert run(*install)[0] == 0 and snapshot(tree) == installed
        assert run(tree, "--uninstall")[0] == 0 and snapshot(tree) == original
        refill(tree, wreck)
        assert run(tree, "--uninstall")[0] == 0 and snapshot(tree) == original
    assert number > 20, "the changes were not seen"


@LINUX
def test_killed_again_while_recovering(tree: Path, kit: Path, tmp_path: Path) -> None:
    original, start = snapshot(tree), tmp_path / "start"
    refill(start, tree)
    for first, second in itertools.product(range(1, 60, 4), range(1, 40, 3)):
        refill(tree, start)
        finishes_when_killed_at(first, tree, "--kit", kit)
        finishes_when_killed_at(second, tree, "--uninstall")
        assert run(tree, "--uninstall")[0] == 0 and snapshot(tree) == original
