"""Export a step mask: print what makes another engine obey it.

For cache-dit and diffusers the result is Python, for xDiT and SGLang shell. Comments in it say what that engine cannot
carry: the weights of the reused steps, which it lacks or has of its own; what is reused; and the block that it always
runs. Every configuration is for the mask's number of steps only. Needs neither a GPU nor torch nor the engine.
"""

import argparse
from pathlib import Path

from lemica.errors import refusing
from lemica.export import EXPORTS
from lemica.masks import read_mask
from lemica.streams import require_stdout, say

EXAMPLES = """\
examples:
  lemica export mask.json --to cache-dit
  lemica export mask.json --to sglang > mask.sh
  lemica export mask.json --to xdit > run.sh
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mask", type=Path, metavar="MASK", help="mask file")
    parser.add_argument("--to", choices=list(EXPORTS), required=True, help="engine that is to obey the mask")


def run(args: argparse.Namespace) -> None:
    """Print the configuration; raises Refused if the mask cannot be read."""
    require_stdout()
    with refusing(ValueError):
        mask = read_mask(args.mask)
    say(EXPORTS[args.to](mask, str(args.mask)).rstrip("\n"))
