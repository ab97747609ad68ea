"""Kill, starve and crowd the commands that write files; count what is then lost, half or wrongly called saved.

    python -m demo.faults [--runs 100] [--seed 0]

Takes some ten minutes on two cores and writes assets/measurements/faults.json; what is found is told on standard error.
generate.py and lemica are started as forks of this process, which has imported all that they need: starting Python with
torch takes longer than they work. scripts/install.sh is started as a user does.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo import fault_scenes as scenes
from demo.fault_scenes import REPOSITORY, Scene, ended, log_of, looks

RESULT = REPOSITORY / "assets" / "measurements" / "faults.json"
FAULTS = ("lost", "half", "wrongly saved")
COLUMNS = ("runs", "cut short", "left over", *FAULTS)
PAGE, CROWD = 4096, 8
# Imported before the first fork; lemica imports these when it needs them.
NEEDED = (
    *("imageio.v2", "skimage.metrics", "jinja2", "tqdm", "hyvideo.pipelines.hunyuan_video_pipeline", "generate"),
    *("lemica.cli.main", "lemica.report.page", "lemica.calibration.calibrate", "lemica.calibration.replays"),
)


def sizes_in(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


class Campaign:
    """What was done and found: a row of COLUMNS for every way to disturb a scene. Works in `folder`."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.random, self.rows, self._places = folder, random.Random(seed), {}, 0

    def place(self, scene: Scene) -> Path:
        """A new folder as the scene begins with."""
        self._places += 1
        return Path(shutil.copytree(scene.start, self.folder / f"{self._places}", symlinks=True))

    def kill(self, scene: Scene, runs: int) -> None:
        """Kill runs, two at a time, half of them in the last fifth of their time, where files are written.

        Then the same command is given again, which must bring all to its end, and the one that undoes it.
        """
        begin = time.monotonic()
        for process in [scene.begin(run, self.place(scene)) for run in range(2)]:
            ended(process)
        whole = time.monotonic() - begin
        for first in range(0, runs, 2):
            pair = [(run, self.place(scene)) for run in range(first, min(first + 2, runs))]
            fractions = [self.random.uniform(0.8 * (run % 4 < 2), 1) for run, _ in pair]
            begin = time.monotonic()
            processes = [scene.begin(*each) for each in pair]
            for fraction, process in sorted(zip(fractions, processes, strict=True)):
                time.sleep(max(0, begin + fraction * whole - time.monotonic()))
                os.kill(process, signal.SIGKILL)
            for (run, place), process in zip(pair, processes, strict=True):
                status = ended(process)
                # What a run takes changes with what else the machine does: a tenth is to end before it is killed.
                whole *= 0.95 if status == 0 else 1.005
                self._note(f"killed: {scene.name}", scene, [(run, status)], place)
            self._again(scene, pair)

    def _again(self, scene: Scene, pair: list[tuple[int, Path]]) -> None:
        """Give the command again where it has not done its work, and then the one that undoes it."""
        row = self.rows[f"killed: {scene.name}"]
        unfinished = [(run, place) for run, place in pair if looks(place) != scene.goal(run)]
        for (run, place), process in [(each, scene.begin(*each)) for each in unfinished]:
            if (status := ended(process)) != 0:
                self._found(row, scene, "lost", f"given again: exit status {status}", run, place)
            for kind, what in scene.judge(run, place, status):
                self._found(row, scene, kind, f"given again: {what}", run, place)
        for run, place in pair:
            if scene.back and (ended(scene.begin(run, place, scene.back)) or looks(place) != scene.before):
                self._found(row, scene, "lost", "not as before", run, place)
            shutil.rmtree(place, ignore_errors=True)

    def starve(self, scene: Scene, sizes: int = 10) -> None:
        """Give it a disk with too little room for what it writes: none, a tenth, and so on."""
        for tenth in range(sizes):
            with self._small_disk(scene, tenth / sizes) as (place, limit):
                status = ended(scene.begin(tenth, place, limit=limit))
                self._note(f"full disk: {scene.name}", scene, [(tenth, status)], place)

    @contextmanager
    def _small_disk(self, scene: Scene, share: float) -> Iterator[tuple[Path, int | None]]:
        """A folder with room for this share of the goal: on a disk in memory, or else by a limit on files' sizes."""
        held, wanted = (sizes_in(each) for each in (scene.start, scene.goals[0]))
        pages = [sum(-(-size // PAGE) for size in sizes) for sizes in (held, wanted)]
        place = self.place(scene)
        if os.geteuid():
            yield place, int(share * max(wanted))
            return
        room = PAGE * max(1, pages[0] + int(share * pages[1]))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", place], check=True)
        try:
            shutil.copytree(scene.start, place, symlinks=True, dirs_exist_ok=True)
            yield place, None
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)

    def crowd(self, scene: Scene, rounds: int) -> None:
        """Start 8 in one folder at once; one of them at least shall come to its end."""
        for _ in range(rounds):
            place = self.place(scene)
            processes = [scene.begin(run, place) for run in range(CROWD)]
            statuses = list(enumerate(map(ended, processes)))
            row = self._note(f"8 at once: {scene.name}", scene, statuses, place)
            if all(status for _, status in statuses):
                self._found(row, scene, "lost", f"all failed: {statuses}", 0, place)

    def _note(self, name: str, scene: Scene, statuses: list[tuple[int, int]], place: Path) -> Counter:
        row = self.rows.setdefault(name, Counter(dict.fromkeys(COLUMNS, 0)))
        for run, status in statuses:
            row.update({"runs": 1, "cut short": int(status != 0)})
            for kind, what in scene.judge(run, place, status):
                self._found(row, scene, kind, what, run, place)
        row["left over"] += any(scenes.LEFTOVER.search(str(path.relative_to(place))) for path in place.rglob("*"))
        return row

    def _found(self, row: Counter, scene: Scene, kind: str, what: str, run: int, place: Path) -> None:
        row[kind] += 1
        print(f"{scene.name}: {kind}: {what} (see {log_of(run, place)})", file=sys.stderr)


@contextmanager
def ready_to_fork() -> Iterator[None]:
    """All that the commands need is imported, on one thread, and attention is PyTorch's fused kernel."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    for name in NEEDED:
        importlib.import_module(name)
    from demo.attention import fused_attention

    importlib.import_module("torch").set_num_threads(1)
    with fused_attention():
        yield


def run_all(folder: Path, runs: int, seed: int) -> dict[str, Counter]:
    """The whole campaign; its rows."""
    named, unnamed = scenes.generate_scenes(folder)
    calibrate, plan, installs = scenes.calibrate_scene(folder), scenes.plan_scene(folder), scenes.install_scenes(folder)
    report = scenes.report_scene(folder, calibrate.goals[0] / "graph.json")
    campaign = Campaign(folder, seed)
    for scene in (named, calibrate, *installs, report):
        campaign.kill(scene, runs)
    for scene in (named, plan, report):
        campaign.starve(scene)
    for scene, rounds in ((named, 3), (unnamed, 1), (calibrate, 3), (plan, 10), *((each, 10) for each in installs)):
        campaign.crowd(scene, rounds)
    return campaign.rows


def as_text(result: dict) -> str:
    """JSON with a line for every row."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in result["rows"].items())
    head = "".join(f' "{name}": {value},\n' for name, value in result.items() if name != "rows")
    return f'{{\n{head} "rows": {{\n{rows}\n }}\n}}\n'


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exit status 1 if a fault is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="runs to kill of every command (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args(arguments)
    begin, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="faults_")).resolve()
    with ready_to_fork():
        rows = run_all(folder, args.runs, args.seed)
    found = any(row[kind] for row in rows.values() for kind in FAULTS)
    result = {"seed": args.seed, "minutes": round((time.monotonic() - begin) / 60, 1), "rows": rows}
    RESULT.write_text(as_text(result))
    # What was found can be looked at.
    if not found:
        shutil.rmtree(folder)
    sys.exit(int(found))


if __name__ == "__main__":
    main()
