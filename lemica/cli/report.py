"""Write a page with the videos of all budgets side by side, playing in step, and what each costs and gives.

RUN_DIR and its subfolders hold videos as generate.py leaves them (NAME.mp4, NAME_config.json). The configs say what
decided the picture, and which files they are of. Runs that agree in the first are of one request. Its run with all
steps computed is the reference; a request that has none, or nothing else, is left out, and a line says so. Runs are
named by their files, or by their folders where files of one request have the same name: b25/0000_seed1.mp4 is b25.
Quality is measured as by lemica compare, on NAME_lossless.mkv if every video of the request has one (generate.py
--save_lossless true).

Speed-ups are taken by each run's own clock, so that a machine that was busier during one run does not change them:
N c / (B c + R r), with the medians c of its B computed and r of its R reused steps, and N steps in the reference. That
is at most N / B. Other caches do not report their steps: for them it is the DiT seconds of the reference over those of
the run, marked with "~" in the table.

The page of one request is one file that needs nothing else. Of several it is a grid, a row for every prompt, that can
be filtered and sorted by PSNR. It shows the videos where they are, so it is moved together with them. Neither needs a
network or a server. The same numbers are printed as a table.
"""

import argparse
import os
from pathlib import Path

from lemica.errors import Refused, refusing, require
from lemica.files import try_name, write_text
from lemica.report.groups import read_groups
from lemica.report.runs import measured, refuse_changed_runs
from lemica.report.table import mean_runs, table
from lemica.report.video_run import PLAYABLE
from lemica.streams import say

EXAMPLES = """\
examples:
  lemica report outputs -o report.html
  lemica report runs                    # runs/uncached/0000_seed1.mp4, runs/b25/0000_seed1.mp4, ...
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
    from lemica.report.beside import refuse_no_way, render_beside
    from lemica.report.page import refuse_other_videos, render

    with refusing(OSError):
        try_name(output)
    groups = read_groups(args.run_dir)
    is_grid = len(groups) > 1
    if is_grid:
        refuse_no_way(groups, output)
    sections = measured(groups)
    lines = table(sections, mean_runs(sections))
    if is_grid:
        page, check = render_beside(sections, output, lines), lambda _: refuse_changed_runs(sections)
    else:
        page, check = render(sections[0]), lambda written: refuse_other_videos(written, sections[0])
    with refusing(OSError):
        write_text(output, page, check)
    size = len(page.encode("utf-8", "replace")) / 1e6
    what = f"shows the videos in {args.run_dir} by relative links: move both together" if is_grid else f"{size:.1f} MB"
    say(*lines, f"\n{output} ({what}): open it in a browser")
