"""The command `lemica`: its parser, and how it ends.

The docstring of a command's module is its manual: the first line goes into the list of commands, all of it above its
options.
"""

import argparse
import os
import sys
from typing import NoReturn

from lemica.cli import calibrate, compare, plan, report, show
from lemica.errors import Refused

COMMANDS = {"calibrate": calibrate, "plan": plan, "show": show, "compare": compare, "report": report}

DESCRIPTION = """\
Make and judge step masks: which denoising steps run the transformer blocks, and what the other steps reuse (LeMiCa,
arXiv 2511.00090).

calibrate measures a model's error graph, plan finds the best mask for a budget in it, show prints both. A mask belongs
to a model, a number of steps and a sampler: calibrate with those that you generate with. compare measures what caching
cost a video, report makes a page on which the videos of all budgets play in step.
"""
EXAMPLES = """\
examples:
  lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --output graph.json
  lemica plan graph.json --budget 20 -o mask.json
  lemica show mask.json --graph graph.json --plot graph.png
  python generate.py --model_path ./ckpts --resolution 480p --prompt "..." \\
      --enable_cache true --cache_type lemica --lemica_mask mask.json

The manual of a command: lemica COMMAND --help
Exit status: 0 done, 2 refused, with one line on standard error that says what to type.
"""


class RefusingParser(argparse.ArgumentParser):
    """Refuses in one line with exit status 2; under torchrun only rank 0 speaks."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {line}\n" if os.environ.get("RANK", "0") == "0" else None)


def build_parser() -> RefusingParser:
    """The parser with all commands; what it parses has `run` and `refuse` of the command that was given."""
    manual = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = RefusingParser(prog="lemica", description=DESCRIPTION, epilog=EXAMPLES, **manual)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = module.__doc__.partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__, epilog=module.EXAMPLES, **manual)
        module.add_arguments(command)
        command.set_defaults(run=module.run, refuse=command.error)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run one command. What is wrong with its arguments or files ends the program with exit status 2.

    Args:
        arguments: the command line without the program's name; None reads sys.argv.

    Example:
        >>> main(["plan", "graph.json", "--budget", "20", "-o", "mask.json"])  # doctest: +SKIP
    """
    args = build_parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        # Strips are not ASCII: a locale that knows no more must not end a command that has done its work.
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left, as head does. Without this Python would complain when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        file = error.filename2 or error.filename  # A file that cannot be moved is named by where it should go.
        args.refuse(f"{file}: {error.strerror}" if file else str(error))
    except (Refused, ValueError) as error:
        args.refuse(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
