"""What is disturbed by demo/faults.py: commands, what their folders hold before and after, and how that is judged."""

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "assets" / "demo_checkpoint"
GRAPH = REPOSITORY / "assets" / "calibrations" / "t2v_50.json"
UPSTREAM = Path(sys.prefix) / "upstream" / "hyvideo"
FRAMES, SEEDS = 9, 8
# What is written before its name, and may be left over.
LEFTOVER = re.compile(r"(^|/)\.partial-|\.tmp($|[./])|\.lemica_tmp$|\.partial/")
# Lines that say where a whole file is: generate.py's, and those of lemica, which begin with the file.
PROMISE = re.compile(r"^(Saved |Kept as |)(/[^\n]*?\.(?:mp4|mkv|json|html))(?=[: ]|$)", re.MULTILINE)


@cache
def frames_of(path: Path, digest: str) -> str:
    """The pictures of a video, told by their sums; `digest` is the file's, so that equal files are read once."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-v", "error", "-i", path, "-fps_mode", "passthrough", "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    return " ".join(line.split()[-1] for line in lines) if len(lines) == FRAMES and not done.stderr else "half"


def look(path: Path) -> str | None:
    """What tells a file: a video its pictures, a config its seed if the files beside it are its own, others a sum."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix in (".mp4", ".mkv"):
        return frames_of(path, digest)
    if not path.name.endswith("_config.json"):
        return digest
    try:
        config = json.loads(content)
        files = {name: path.with_name(name).read_bytes() for name in config["files"]}
    except (ValueError, OSError):
        return "half"
    whole = all(hashlib.sha256(files[name]).hexdigest() == told["sha256"] for name, told in config["files"].items())
    return f"seed {config['request']['seed']}" if whole else "of other files"


def looks(folder: Path) -> dict[str, str | None]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {name: look(folder / name) for name in names if not LEFTOVER.search(name)}


@dataclass(frozen=True)
class Scene:
    """A command, what its folder holds before, and what after: with each seed its own, where it takes seeds.

    Args:
        words: the command; {folder} and {seed} stand for those of a run.
        start, goals: folders as they are before and after.
        back: the command that undoes it, if there is one.
    """

    name: str
    words: tuple[str, ...]
    start: Path
    goals: tuple[Path, ...]
    back: tuple[str, ...] = ()

    @cached_property
    def before(self) -> dict[str, str | None]:
        return looks(self.start)

    @cached_property
    def after(self) -> tuple[dict[str, str | None], ...]:
        return tuple(map(looks, self.goals))

    def goal(self, run: int) -> dict[str, str | None]:
        return self.after[run % len(self.goals)]

    def begin(self, run: int, folder: Path, words: Sequence[str] = (), limit: int | None = None) -> int:
        """Start run number `run` in a folder; returns its process. `limit` is of the size of its files."""
        seed = str(run % len(self.goals) + 1)
        words = [word.replace("{folder}", str(folder)).replace("{seed}", seed) for word in words or self.words]
        return os.fork() or _work(words, folder, log_of(run, folder), limit)

    def judge(self, run: int, folder: Path, status: int) -> Iterator[tuple[str, str]]:
        """What is wrong in the folder after a run with this exit status: kinds of COLUMNS, and what it is."""
        goal, videos = self.goal(run), {}
        for name in self.before.keys() | goal.keys():
            found = look(folder / name)
            if found and name.endswith((".mp4", ".mkv")):
                videos[name] = found
            if status == 0 and found != goal.get(name):
                yield "wrongly saved", f"{name}: exit status 0"
            allowed = {self.before.get(name), *(each.get(name) for each in self.after)}
            # They go before their video is replaced.
            if found not in allowed and not (found is None and name.endswith(("_config.json", "_lossless.mkv"))):
                yield "half" if found else "lost", f"{name}: {found}"
        if not any(videos.items() <= state.items() for state in (self.before, *self.after)):
            yield "half", "a video beside another run's lossless copy"
        yield from self.broken_promises(run, folder)

    def broken_promises(self, run: int, folder: Path) -> Iterator[tuple[str, str]]:
        goal = self.goal(run)
        for word, path in PROMISE.findall(printed(run, folder)):
            own = goal.get(Path(path).name) or next(look for name, look in goal.items() if name[-4:] == path[-4:])
            kept_config = word == "Kept as " and path.endswith(".json")
            if not Path(path).is_file() or (look(Path(path)) != own and not kept_config):
                yield "wrongly saved", f"{word}{path}"


class Unnamed(Scene):
    """Runs without --output_path: their files are known by what they print."""

    def judge(self, run: int, folder: Path, status: int) -> Iterator[tuple[str, str]]:
        if status == 0 and printed(run, folder).count("\nSaved ") != len(self.goal(run)):
            yield "wrongly saved", "exit status 0 without all files"
        yield from self.broken_promises(run, folder)


def log_of(run: int, folder: Path) -> Path:
    """What a run prints; not in its folder, which may be full."""
    return folder.with_name(f"{folder.name}_{run}.log")


def printed(run: int, folder: Path) -> str:
    """Nothing, where it was killed before it began."""
    log = log_of(run, folder)
    return log.read_text(errors="replace") if log.exists() else ""


def _work(words: list[str], folder: Path, log: Path, limit: int | None) -> NoReturn:
    """In a child: run the command, and end with its status."""
    status = 70
    try:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), stream)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os.chdir(folder)
        _command(words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _command(words: list[str]) -> None:
    if words[0] not in ("generate.py", "lemica"):
        os.execv(words[0], words)
    if "hyvideo" in sys.modules:
        # Chosen when it is imported, which here all have in common.
        os.environ["MASTER_PORT"] = str(sys.modules["hyvideo"].find_free_port())
    sys.argv = words
    if words[0] == "lemica":
        from lemica.cli.main import main as lemica

        lemica(words[1:])
    else:
        import generate

        generate.main()


def ended(process: int) -> int:
    """Wait for a process; its exit status, below 0 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


REQUEST = (
    *("--resolution", "480p", "--aspect_ratio", "1:1", "--video_length", str(FRAMES), "--num_inference_steps", "4"),
    *("--model_path", str(CHECKPOINT)),
)
GENERATE = (
    *("generate.py", "--prompt", "a red circle shrinks over bricks", "--seed", "{seed}", "--sr", "false"),
    *("--save_lossless", "true", *REQUEST),
)
NAMED = (*GENERATE, "--output_path", "{folder}/v.mp4")


def made(place: Path, words: Sequence[str], start: Path | None = None, runs: Sequence[int] = (0,)) -> Path:
    """A folder in which a command has come to its end undisturbed; begun as `start` is, or empty."""
    place.mkdir()
    if start:
        shutil.copytree(start, place, symlinks=True, dirs_exist_ok=True)
    scene = Scene("", tuple(words), place, (place,) * SEEDS)
    for run in runs:
        if ended(scene.begin(run, place)) != 0:
            raise RuntimeError(printed(run, place))
    return place


def generate_scenes(folder: Path) -> list[Scene]:
    """Under one name, where an earlier run of another seed is, and under the names that generate.py chooses."""
    goals = tuple(made(folder / f"seed{run + 1}", NAMED, runs=[run]) for run in range(SEEDS))
    earlier = made(folder / "earlier", [word.replace("{seed}", "9") for word in NAMED])
    empty = made(folder / "nothing", (), runs=())
    return [Scene("generate.py", NAMED, earlier, goals), Unnamed("generate.py, default names", GENERATE, empty, goals)]


def calibrate_scene(folder: Path) -> Scene:
    """Two seeds of one prompt: that its folder goes on is seen, too."""
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle shrinks over bricks\n")
    words = ("lemica", "calibrate", "--prompts", str(prompts), "--seeds", "0", "1", *REQUEST)
    words += ("--output", "{folder}/graph.json")
    goal = made(folder / "calibrated", words)
    return Scene("lemica calibrate", words, made(folder / "uncalibrated", (), runs=()), (goal,))


def plan_scene(folder: Path) -> Scene:
    """Ten masks, in the place of earlier ones for half of them."""
    budgets = range(8, 18)
    words = ("lemica", "plan", str(GRAPH), "--budget", *map(str, budgets), "-o", "{folder}/b{budget}.json")
    start = made(folder / "unplanned", (), runs=())
    for budget in budgets[::2]:
        (start / f"b{budget}.json").write_text('{"an": "earlier mask"}')
    return Scene("lemica plan", words, start, (made(folder / "planned", words, start),))


def report_scene(folder: Path, graph: Path) -> Scene:
    """An uncached and a cached run, and an earlier page."""
    mask, runs = folder / "mask.json", folder / "runs"
    made(folder / "mask", ("lemica", "plan", str(graph), "--budget", "3", "-o", str(mask)))
    made(runs, (*GENERATE, "--output_path", "{folder}/uncached.mp4"))
    cached = ("--enable_cache", "true", "--cache_type", "lemica", "--lemica_mask", str(mask))
    made(folder / "cached", (*GENERATE, *cached, "--output_path", f"{runs}/b3.mp4"))
    words = ("lemica", "report", str(runs), "-o", "{folder}/page.html")
    start = made(folder / "unreported", (), runs=())
    (start / "page.html").write_text("<p>an earlier page")
    return Scene("lemica report", words, start, (made(folder / "reported", words, start),))


def install_scenes(folder: Path) -> list[Scene]:
    """With a copy of the kit as it is now; upstream's package is the tree."""
    kit = folder / "kit"
    (kit / "scripts").mkdir(parents=True)
    for name in ("install.sh", "install.py", "upstream_files.json"):
        shutil.copy2(REPOSITORY / "scripts" / name, kit / "scripts")
    for name in ("infer_state.py", "hunyuan_video_pipeline.py", "generate.py"):
        shutil.copy2(REPOSITORY / name, kit)
    os.environ["PYTHON"] = sys.executable
    words = (str(kit / "scripts" / "install.sh"), "{folder}")
    tree = made(folder / "tree", (), runs=())
    shutil.copytree(UPSTREAM, tree / "hyvideo", ignore=shutil.ignore_patterns("__pycache__"))
    installed, undo = made(folder / "installed", words, tree), (*words, "--uninstall")
    return [
        Scene("install.sh", words, tree, (installed,), undo),
        Scene("install.sh --uninstall", undo, installed, (tree,), words),
    ]
