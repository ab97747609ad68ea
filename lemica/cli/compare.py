"""Compare cached videos with the uncached one: PSNR, SSIM and, where its weights are installed, LPIPS (AlexNet).

The metrics are computed on RGB frames in [0, 1] and averaged over frames, then over videos; SSIM has an 11 x 11
Gaussian of sigma 1.5. Frames that equal the reference have an infinite PSNR and are left out of its mean; the mean is
"inf" if all frames are equal (null in JSON). Videos must agree in the number and the size of their frames.

Frames are compared as they are stored, the first with the first, whatever their time stamps. Where NAME_config.json
stands beside NAME.mp4, as generate.py writes it, it must be of this very file, and the requests must agree: prompt,
seed, model and all else that decides the picture but the number of steps.

Compressing a video changes it too. If all videos given have a lossless copy NAME_lossless.mkv beside them, as
generate.py --save_lossless true writes it, the copies are compared instead.
"""

import argparse
import json
from pathlib import Path

from lemica.quality.compare import compare, document, table
from lemica.streams import require_stdout, say

EXAMPLES = """\
examples:
  lemica compare uncached.mp4 b25.mp4 b15.mp4
  lemica compare uncached.mp4 b*.mp4 --json > quality.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="the uncached video")
    parser.add_argument("cached", type=Path, nargs="+", metavar="CACHED", help="videos of the same prompt and seed")
    parser.add_argument(
        "--as_given", action="store_true", help="compare these very files: no lossless copies, no look at configs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Print the table or the JSON; raises Refused for files that cannot be read or compared."""
    require_stdout()
    comparisons = compare(args.reference, args.cached, args.as_given)
    say(json.dumps(document(comparisons), indent=2) if args.json else "\n".join(table(comparisons)))
