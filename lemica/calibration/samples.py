"""The samples of a calibration: prompts, seeds, first frames. A sample is a prompt with a seed."""

import argparse
import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

from lemica.errors import Refused, in_words, refusing


@dataclass(frozen=True)
class Sample:
    """One video to calibrate on; `image_path` names its first frame, for image-to-video."""

    prompt: str
    seed: int
    image_path: str | None = None


def add_sample_arguments(group) -> None:
    """Options that say which samples."""
    group.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help="text file, UTF-8, with one prompt per line"
    )
    group.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="random seeds (default: 0)")
    group.add_argument(
        "--image_path",
        nargs="+",
        metavar="FILE",
        help="first frame, for image-to-video: one, or one for each prompt; none: text to video (default)",
    )


def read_samples(args: argparse.Namespace) -> list[Sample]:
    """All seeds of the first prompt, then of the next; raises Refused for files or seeds that are none."""
    if len(set(args.seeds)) < len(args.seeds) or not all(0 <= seed < 2**63 for seed in args.seeds):
        raise Refused(f"--seeds must be different whole numbers from 0 on, got {' '.join(map(str, args.seeds))}")
    prompts, images = _prompts(args.prompts), _images(args.image_path)
    if len(images) not in (1, len(prompts)):
        raise Refused(f"--image_path has {len(images)} files for {len(prompts)} prompts: give one, or one for each")
    shown = zip(prompts, images * len(prompts) if len(images) == 1 else images, strict=True)
    return [Sample(prompt, seed, image) for (prompt, image), seed in itertools.product(shown, args.seeds)]


def _prompts(path: Path) -> list[str]:
    with refusing(OSError):
        content = path.read_bytes()
    try:
        # As bytes first: read as text, a lone carriage return would end a line.
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise Refused(f"--prompts {path} is not UTF-8 text: give a text file with one prompt per line") from error
    # Not splitlines: a prompt may hold a character that Unicode calls a line separator.
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        for character, name in (("\r", "a carriage return without a line feed"), ("\0", "a NUL character")):
            if character in line:
                raise Refused(f"--prompts {path} has {name} in line {number}: end every line with a line feed alone")
    # Files that were put together have byte order marks in them.
    prompts = [prompt for line in lines if (prompt := line.replace("\ufeff", "").strip())]
    if not prompts:
        raise Refused(f"--prompts {path} is empty: write one prompt per line")
    for prompt in prompts:
        if prompt.startswith(('{"', "{'", "[{")):
            raise Refused(
                f"--prompts {path} has JSON objects, {prompt!r:.40}, as generate.py takes them: write one prompt per "
                "line, and give seeds as --seeds"
            )
    return prompts


def _images(paths: list[str] | None) -> list[str | None]:
    if not paths or [path.strip().lower() for path in paths] in ([""], ["none"]):
        return [None]
    from PIL import Image

    for path in paths:
        try:
            with Image.open(path) as image:
                image.convert("RGB")
        except FileNotFoundError as error:
            raise Refused(f"--image_path {path} does not exist") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise Refused(f"--image_path {path} is not an image that can be read ({in_words(error)})") from error
    return list(paths)


def samples_digest(samples: list[Sample]) -> str:
    """What tells these samples from others; pictures count by what is in them."""
    digest = hashlib.sha256()
    for sample in samples:
        picture = hashlib.sha256(Path(sample.image_path).read_bytes()).hexdigest() if sample.image_path else ""
        digest.update(repr((sample.prompt, sample.seed, picture)).encode())
    return digest.hexdigest()[:16]
