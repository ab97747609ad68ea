"""The command line of the planner. A command is a module with EXAMPLES, add_arguments(parser) and run(args).

Its docstring is its manual: the first line goes into the list of commands, all of it above its options.
"""

import argparse
import os
import sys

from lemica import calibrate, compare, plan, report, show

COMMANDS = (calibrate, plan, show, compare, report)

DESCRIPTION = """\
Make and judge step masks for HunyuanVideo-1.5: which denoising steps run the transformer blocks, and which reuse what
the blocks added last time (LeMiCa, arXiv 2511.00090).

calibrate measures a model's error graph, plan finds the best mask for a budget in it, show prints both. A mask belongs
to a model, a number of steps and a sampler: calibrate with those that you generate with. compare measures what caching
cost a video, report makes a page of the videos of all budgets, playing in step.
"""
EXAMPLES = """\
examples:
  python -m lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --output graph.json
  python -m lemica plan graph.json --budget 20 -o mask.json
  python -m lemica show mask.json --graph graph.json --plot graph.png
  python generate.py --model_path ./ckpts --resolution 480p --prompt "..." \\
      --enable_cache true --cache_type lemica --lemica_mask mask.json

The manual of a command: python -m lemica COMMAND --help
Exit status: 0 done, 2 refused, with one line on standard error that says what to type.
"""


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, under torchrun on rank 0 only, with exit status 2."""

    def error(self, message: str):
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {line}\n" if os.environ.get("RANK", "0") == "0" else None)


def build_parser() -> argparse.ArgumentParser:
    manual = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(prog="python -m lemica", description=DESCRIPTION, epilog=EXAMPLES, **manual)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        name, summary = module.__name__.rpartition(".")[2], module.__doc__.partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__, epilog=module.EXAMPLES, **manual)
        module.add_arguments(command)
        command.set_defaults(run=module.run, refuse=command.error)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run one command; what is wrong with its arguments or files ends the program with exit status 2."""
    args = build_parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        # Strips are not ASCII: a locale that knows no more must not end a command that has done its work.
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left, as head does; Python would complain when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        args.refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        args.refuse(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
