"""Write a page with the videos of all budgets side by side, playing in step, and what each costs and gives.

RUN_DIR holds videos of one prompt and seed as generate.py leaves them (NAME.mp4, NAME_config.json), or subfolders that
do. The run with all steps computed is the reference. Quality is measured as by compare, on NAME_lossless.mkv where
every video has one (generate.py --save_lossless true).

The page is one file that needs no network and no server. The same numbers are printed as a table.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lemica.files import write_text
from lemica.metrics import means_over
from lemica.runs import COLUMNS, Run, Section, summarise

__all__ = ["Run", "Section", "add_arguments", "run", "summarise", "table"]

EXAMPLES = """\
examples:
  python -m lemica report outputs -o report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder with the runs, or with folders of runs")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="page (default: RUN_DIR/report.html)")


def run(args: argparse.Namespace) -> None:
    """Print the table and write the page; raises ValueError for a folder without comparable runs."""
    sections = summarise(args.run_dir)
    means = mean_runs(sections)
    output = args.output or args.run_dir / "report.html"
    print(*table(sections, means), sep="\n")
    write_text(output, _page(sections, means))
    print(f"\n{output} ({output.stat().st_size / 1e6:.1f} MB): open it in a browser")


def _page(sections: Sequence[Section], means: Sequence[Run]) -> str:
    try:
        from lemica.page import render
    except ImportError as error:
        raise ValueError(f"the page needs jinja2 ({error}): pip install jinja2") from error
    return render(sections, means)


def mean_runs(sections: Sequence[Section]) -> list[Run]:
    """The mean over sections of every cached run that all of them have, alike in all but the times; for one, none."""
    if len(sections) < 2:
        return []
    alike = [{_kind_of(run): run for run in section.runs[1:]} for section in sections]
    shared = [key for key in alike[0] if all(key in runs for runs in alike)]
    return [_mean_run([runs[key] for runs in alike]) for key in shared]


def _kind_of(run: Run) -> tuple:
    return run.name, run.computed, run.num_steps, run.origin, run.rule


def _mean_run(runs: Sequence[Run]) -> Run:
    """Seconds and quality are means; the speed-up is that of all runs together."""
    seconds = sum(run.dit_seconds for run in runs)
    return replace(
        runs[0],
        dit_seconds=seconds / len(runs),
        total_seconds=sum(run.total_seconds for run in runs) / len(runs),
        speedup=sum(run.speedup * run.dit_seconds for run in runs) / seconds,
        quality=means_over([run.quality for run in runs]),
    )


def table(sections: Sequence[Section], means: Sequence[Run]) -> list[str]:
    """All runs as lines of text, a block a section, and a block of means."""
    blocks = [(_title(section), section.runs) for section in sections]
    if means:
        blocks.append((f"mean over {len(sections)} prompts", means))
    rows = [COLUMNS, *(run.cells() for _, runs in blocks for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [line for title, runs in blocks for line in ("", title, *_lines(runs, widths))]


def _lines(runs: Sequence[Run], widths: Sequence[int]) -> list[str]:
    """Names, origins and rules to the left, numbers to the right."""
    sides = "<" + ">" * (len(COLUMNS) - 3) + "<<"
    lines = []
    for row in (COLUMNS, *(run.cells() for run in runs)):
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return lines


def _title(section: Section) -> str:
    request = section.request
    source = "lossless copies" if section.lossless else "compressed videos"
    return (
        f"{request.prompt} (seed {request.seed}), {request.model}, {section.frames} frames of {section.width} x "
        f"{section.height}, quality of {source}"
    )
