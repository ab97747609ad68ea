"""The command `lemica`: its parser, and how it ends.

The docstring of a command's module is its manual: the first line goes into the list of commands, all of it above its
options.
"""

import argparse
import os
from typing import NoReturn

from lemica.cli import calibrate, compare, evaluate, export, plan, report, show
from lemica.errors import NotMoved, Refused, RefusedHere
from lemica.streams import Unprinted, complain, let_go, prepare

COMMANDS = {
    "calibrate": calibrate,
    "plan": plan,
    "show": show,
    "export": export,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
}

DESCRIPTION = """\
Make and judge step masks: which denoising steps run the transformer blocks, and what the other steps reuse (LeMiCa,
arXiv 2511.00090).

calibrate measures a model's error graph, plan finds the best mask for a budget in it, show prints both. A mask belongs
to a model, a number of steps and a sampler: calibrate with those that you generate with. export prints what makes
another engine obey a mask. evaluate measures what masks cost and gain on a model, compare what caching
cost a video, and report makes a page on which the videos of all budgets play in step.
"""
EXAMPLES = """\
examples:
  lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --output graph.json
  lemica plan graph.json --budget 20 -o mask.json
  lemica show mask.json --graph graph.json --plot graph.png
  python generate.py --model_path ./ckpts --resolution 480p --prompt "..." \\
      --enable_cache true --cache_type lemica --lemica_mask mask.json

The manual of a command: lemica COMMAND --help
Exit status: 0 done, 2 refused, with one line on standard error that says what to type, 1 done, but a file could not
take its name or a line could not be printed: one line says where the file is.
"""


class RefusingParser(argparse.ArgumentParser):
    """Refuses in one line with exit status 2; under torchrun one rank on every node speaks."""

    def error(self, message: str) -> NoReturn:
        self.end(2, message)

    def end(self, status: int, message: str) -> NoReturn:
        """End the program with a line that all ranks have: one of them on every node says it."""
        if os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0":
            self.end_here(status, message)
        raise SystemExit(status)

    def end_here(self, status: int, message: str) -> NoReturn:
        """End the program with a line of this rank's own."""
        complain(f"{self.prog}: error: {' '.join(message.split())}\n")
        raise SystemExit(status)


def build_parser() -> RefusingParser:
    """The parser with all commands; what it parses has `run` and `parser` of the command that was given."""
    manual = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = RefusingParser(prog="lemica", description=DESCRIPTION, epilog=EXAMPLES, **manual)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = module.__doc__.partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__, epilog=module.EXAMPLES, **manual)
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run one command. What is wrong with its arguments or files ends the program with exit status 2, in one line.

    An error of the program keeps its traceback: commands turn into refusals only what a wrong input causes.

    Args:
        arguments: the command line without the program's name; None reads sys.argv.

    Example:
        >>> main(["plan", "graph.json", "--budget", "20", "-o", "mask.json"])  # doctest: +SKIP
    """
    prepare()
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except RefusedHere as error:
        args.parser.end_here(2, str(error))
    except Refused as error:
        args.parser.end(2, str(error))
    except NotMoved as error:
        args.parser.end_here(1, str(error))
    except Unprinted as error:
        let_go()
        # A reader that has left, as head does, has seen what it wanted.
        if not error.reader_left:
            args.parser.end(1, str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
