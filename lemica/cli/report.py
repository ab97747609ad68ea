"""Write a page with the videos of all budgets side by side, playing in step, and what each costs and gives.

RUN_DIR holds videos of one request as generate.py leaves them (NAME.mp4, NAME_config.json), or subfolders that do: the
configs say what decided the picture, and which files they are of, and what does not fit is refused. The run with all
steps computed is the reference. Quality is measured as by lemica compare, on NAME_lossless.mkv if
every video has one (generate.py --save_lossless true).

Speed-ups are taken by each run's own clock, so that a machine that was busier during one run does not change them:
N c / (B c + R r), with the medians c of its B computed and r of its R reused steps, and N steps in the reference. That
is at most N / B. Other caches do not report their steps: for them it is the DiT seconds of the reference over those of
the run, marked with "~".

The page is one file that needs no network and no server. The same numbers are printed as a table.
"""

import argparse
import os
from pathlib import Path

from lemica.errors import Refused, refusing, require
from lemica.files import try_name, write_text
from lemica.report.runs import PLAYABLE, summarise
from lemica.report.table import mean_runs, table
from lemica.streams import say

EXAMPLES = """\
examples:
  lemica report outputs -o report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder with the runs, or with folders of runs")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="page (default: RUN_DIR/report.html)")


def run(args: argparse.Namespace) -> None:
    """Write the page and print the table; raises Refused for a folder without comparable runs."""
    output = args.output or args.run_dir / "report.html"
    if os.path.isdir(output):
        raise Refused(f"-o {output} is a folder: name a file in it")
    if output.suffix.lower() in (*PLAYABLE, ".mkv", ".json"):
        raise Refused(f"-o {output} would take the place of a run's file: name a file that ends in .html")
    require("jinja2", extra="report", purpose="the page")
    from lemica.report.page import refuse_other_videos, render

    with refusing(OSError):
        try_name(output)
    sections = summarise(args.run_dir)
    means = mean_runs(sections)
    page = render(sections, means)
    with refusing(OSError):
        write_text(output, page, lambda written: refuse_other_videos(written, sections))
    size = len(page.encode("utf-8", "replace")) / 1e6
    say(*table(sections, means), f"\n{output} ({size:.1f} MB): open it in a browser")
