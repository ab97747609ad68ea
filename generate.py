"""Generate a video with HunyuanVideo-1.5, with or without step caching.

    torchrun --nproc_per_node=4 generate.py --prompt "..." --resolution 720p --model_path ./ckpts \\
        --enable_cache true --cache_type lemica --lemica_step 25

Many videos for one loading: --prompts FILE, with a prompt or a JSON object per line, and --output_path FOLDER. Groups
of --sp_size ranks make them side by side; the same command goes on after an interruption.

Everything that can be wrong in the arguments is refused before any model is loaded, in one line and with exit status 2
(torchrun adds its own lines and makes that 1). Upstream's flags keep their names, defaults and meaning.
"""

import argparse
import dataclasses
import datetime
import gc
import hashlib
import importlib
import importlib.util
import json
import math
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import loguru
import torch
from hyvideo.commons import PIPELINE_CONFIGS, TRANSFORMER_VERSION_TO_SR_VERSION, get_rank, infer_state

if not hasattr(infer_state, "resolve_mask"):
    # hyvideo is another one than that of the tree that the kit was put into.
    sys.exit(f"{infer_state.__file__} is upstream's: type scripts/install.sh TREE, then run generate.py in TREE")

from hyvideo.commons.infer_state import (
    KEPT,
    RULES,
    SPACINGS,
    InferState,
    Target,
    changed_model_name,
    config_digest,
    initialize_infer_state,
    parse_budget,
    resolve_mask,
    transformer_version,
)
from torch import distributed as dist

CACHE_TYPES = ("lemica", "deepcache", "teacache", "taylorcache")
DEFAULT_NUM_STEPS = 50
FRAMES_PER_SECOND = 24
SECONDS_FOR_FIRST_RANK = 5
SECONDS_FOR_ANOTHER_RUN = 5
SECONDS_BETWEEN_LOOKS, LOOKS_TO_A_TURN, LOOKS_OF_QUIET = 1, 60, 3
TIME_TO_ANSWER = datetime.timedelta(minutes=10)
# Of the real model 14 MB each, in CPU memory.
ENCODED_AHEAD = 256
# Where imageio's default, H.264, does not fit the container.
CODECS = {".webm": {"codec": "libvpx-vp9"}}
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif")
# Flags that upstream has not: an abbreviation never stands for one of them.
NEW_FLAGS = (
    "--prompts",
    "--sp_size",
    "--lemica_step",
    "--lemica_mask",
    "--lemica_spacing",
    "--lemica_reuse",
    "--lemica_forecast",
    "--force_mask",
    "--flow_shift",
    "--save_lossless",
)
CACHE_FLAGS = ("lemica_step", "lemica_mask", "lemica_spacing", "lemica_reuse", "lemica_forecast")
# What a line of --prompts may say, all else needs another loading; "name" is that of the video, without suffix.
LINE_FLAGS = (
    "prompt",
    "negative_prompt",
    "image_path",
    "aspect_ratio",
    "video_length",
    "num_inference_steps",
    "flow_shift",
    "seed",
    "enable_cache",
    *CACHE_FLAGS,
    "force_mask",
)
# What says where work is done and kept, and nothing about the video.
OUTWARD_FLAGS = (
    "prompts",
    "output_path",
    "sp_size",
    "model_path",
    "offloading",
    "group_offloading",
    "overlap_group_offloading",
    "save_generation_config",
)
NAME = r"(?!.*(_before_sr|\.mp4)$)[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,99}"
# Of a name in UTF-8: file systems take 255 with what is put around it.
LONGEST_NAME = 200
SHARED_MODEL_FILES = (
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/llm/config.json",
    "text_encoder/llm/tokenizer.json",
    "text_encoder/Glyph-SDXL-v2/assets/color_idx.json",
    "text_encoder/Glyph-SDXL-v2/assets/multilingual_10-lang_idx.json",
    "text_encoder/Glyph-SDXL-v2/checkpoints/byt5_model.pt",
    "vision_encoder/siglip/image_encoder/config.json",
    "vision_encoder/siglip/feature_extractor/preprocessor_config.json",
)


class OneLineParser(argparse.ArgumentParser):
    """Refuses in one line with exit status 2: the first rank of a node at once, another rank if nobody else has."""

    def error(self, message: str):
        line = f"{self.prog}: error: {' '.join(message.split())}\n"
        if int(os.environ.get("LOCAL_RANK", "0")) != 0:
            # torchrun ends all ranks with the first: what all of them refuse is said once.
            time.sleep(SECONDS_FOR_FIRST_RANK)
            line = f"rank {get_rank()}: {line}"
        self.exit(2, line)


def str_to_bool(value: str | bool | None) -> bool:
    """true/1/yes/on and false/0/no/off, in any case; a flag without a value is true."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    word = str(True if value is None else value).strip().lower()
    if word not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, got {value!r}")
    return words[word]


def budget(value: str) -> int:
    """A budget as argparse likes it: its message reaches the user only from an ArgumentTypeError."""
    try:
        return parse_budget(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description="Generate a video with HunyuanVideo-1.5.", allow_abbrev=False)
    add_request_flags(parser.add_argument_group("video"))
    add_model_flags(parser.add_argument_group("model"))
    add_speed_flags(parser.add_argument_group("memory and speed"))
    add_cache_flags(parser.add_argument_group("step caching"))
    return parser


def add_switch(group, flag: str, default: bool | None, text: str) -> None:
    """A flag that takes true or false, or stands alone for true."""
    group.add_argument(flag, type=str_to_bool, nargs="?", const=True, default=default, metavar="BOOL", help=text)


def add_request_flags(group) -> None:
    texts = group.add_mutually_exclusive_group(required=True)
    texts.add_argument("--prompt", help="what the video shows")
    texts.add_argument(
        "--prompts",
        metavar="FILE",
        help='many videos: per line a prompt, or a JSON object like {"prompt": "...", "seed": 7, "name": "cat"}',
    )
    group.add_argument("--negative_prompt", default="", help="what it does not show (default: nothing)")
    group.add_argument("--image_path", help="first frame, for image-to-video; 'none' for text-to-video (default)")
    group.add_argument("--resolution", required=True, choices=["480p", "720p"])
    group.add_argument("--aspect_ratio", default="16:9", help="width:height of a text-to-video (default: 16:9)")
    group.add_argument("--video_length", type=int, default=121, help="frames, 4n + 1 (default: 121)")
    group.add_argument("--num_inference_steps", type=int, help="denoising steps (default: the model's, 50 for most)")
    group.add_argument("--flow_shift", type=float, metavar="X", help="shift of the sampler (default: the model's)")
    group.add_argument("--seed", type=int, default=123, help="random seed (default: 123)")
    group.add_argument(
        "--output_path",
        help="video file (default: ./outputs/output_MODEL_TIME.mp4); of --prompts a folder (./outputs/FILE_MODEL)",
    )
    add_switch(group, "--rewrite", False, "rewrite the prompt through the T2V_/I2V_REWRITE_* services (default: false)")
    add_switch(group, "--sr", True, "super-resolution (default: true)")
    add_switch(group, "--save_pre_sr_video", False, "also save the video before super-resolution (default: false)")
    add_switch(group, "--save_lossless", False, "also save NAME_lossless.mkv, for lemica compare (default: false)")
    add_switch(group, "--save_generation_config", True, "save arguments and run report as JSON (default: true)")


def add_model_flags(group) -> None:
    group.add_argument("--model_path", required=True, help="folder of the checkpoint, or a Hub repository owner/name")
    group.add_argument("--checkpoint_path", help="folder of a distributed checkpoint to load into the transformer")
    group.add_argument("--lora_path", help="folder of a LoRA adapter to load into the transformer")
    group.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"], help="of the transformer on a GPU")
    add_switch(group, "--cfg_distilled", False, "the CFG-distilled model (default: false)")
    add_switch(group, "--enable_step_distill", False, "the step-distilled model (default: false)")
    add_switch(group, "--sparse_attn", False, "sparse attention, H-series GPUs, implies CFG-distilled (default: false)")


def add_speed_flags(group) -> None:
    group.add_argument(
        "--sp_size",
        type=int,
        metavar="N",
        help="ranks that share one video (default: all of them; with --prompts 1, which makes most videos an hour)",
    )
    add_switch(group, "--offloading", True, "keep models on the CPU while they are not used (default: true)")
    add_switch(group, "--group_offloading", None, "stream the transformer block by block (default: below 60 GB)")
    add_switch(group, "--overlap_group_offloading", True, "overlap streaming with computing (default: true)")
    add_switch(group, "--use_sageattn", False, "SageAttention (default: false)")
    group.add_argument("--sage_blocks_range", default="0-53", help="taken, like 0-5,9, but upstream reads it nowhere")
    add_switch(group, "--enable_torch_compile", False, "compile the transformer blocks (default: false)")
    add_switch(group, "--use_fp8_gemm", False, "fp8 matrix products (default: false)")
    group.add_argument("--quant_type", default="fp8-per-token-sgl", help="kind of fp8 (default: fp8-per-token-sgl)")
    group.add_argument("--include_patterns", default="double_blocks", help="modules in fp8 (default: double_blocks)")


def add_cache_flags(group) -> None:
    add_switch(group, "--enable_cache", False, "reuse work between denoising steps (default: false)")
    group.add_argument("--cache_type", default="deepcache", metavar="TYPE", help=f"one of {', '.join(CACHE_TYPES)}")
    group.add_argument(
        "--lemica_step",
        type=budget,
        metavar="B",
        help="lemica: computed steps, a number or slow|medium|fast|ultra = 25|20|15|10 (default: $LEMICA_STEP or 25)",
    )
    group.add_argument("--lemica_mask", metavar="FILE", help="lemica: a step mask from lemica plan, instead of B")
    group.add_argument(
        "--lemica_spacing",
        choices=SPACINGS,
        help="lemica, without a mask: the steps that the authors released, or balanced ones, spread evenly by step "
        "number and noise level (default: released)",
    )
    group.add_argument(
        "--lemica_reuse",
        choices=KEPT,
        help="lemica, without a mask: what is reused (default: residual; velocity with balanced steps)",
    )
    group.add_argument(
        "--lemica_forecast",
        choices=RULES,
        help="lemica, without a mask: how it is carried on (default: hold; damped with balanced steps)",
    )
    add_switch(
        group, "--force_mask", False, "lemica: use a mask of another model, sampler or arithmetic (default: false)"
    )
    group.add_argument("--no_cache_block_id", default="53", help="deepcache: blocks always computed (default: 53)")
    group.add_argument("--cache_start_step", type=int, default=11, help="the other types: first reused step, about")
    group.add_argument("--cache_end_step", type=int, default=45, help="the other types: computed again from here on")
    group.add_argument("--cache_step_interval", type=int, default=4, help="the other types: compute every n-th between")
    group.add_argument("--total_steps", type=int, default=50, help="the other types: number of steps they count on")


@dataclasses.dataclass(frozen=True)
class Request:
    """One video to make: its arguments, its step caching, and the line that asked for it, if that is one of many."""

    args: argparse.Namespace
    state: InferState
    line: str | None = None

    @property
    def path(self) -> Path:
        return output_path(self.args)

    @cached_property
    def digest(self) -> str:
        """What tells it from others, once it is checked."""
        return digest_of(self.args)


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, InferState]:
    """The one video that --prompt asks for; anything wrong ends the program with exit status 2."""
    (request,) = parse_requests(arguments)
    return request.args, request.state


def parse_requests(arguments: list[str] | None = None) -> list[Request]:
    """Parse and check all that is asked for; anything wrong ends the program with exit status 2."""
    parser = build_parser()
    words = [in_full(word, parser) for word in (sys.argv[1:] if arguments is None else arguments)]
    args = parser.parse_args(words)
    try:
        requests = [request_of(args)] if args.prompts is None else requests_of_lines(parser, words, args)
        for check in (check_speed, check_files, check_ranks, check_model):
            check(requests[0].args)
        for request in requests:
            check_line(request)
        if get_rank() == 0:
            check_output(requests[0].args)
    except ValueError as error:
        parser.error(str(error))
    return requests


def request_of(args: argparse.Namespace, line: str | None = None) -> Request:
    """The request of parsed arguments."""
    if args.image_path is not None and args.image_path.strip().lower() in ("", "none"):
        args.image_path = None
    request = Request(args, initialize_infer_state(args), line)
    check_request(args)
    return request


def check_line(request: Request) -> None:
    """What may differ from line to line but for the image, which is read when its turn comes."""
    try:
        check_speed(request.args)
        check_cache(request.args, request.state)
        if request.line is not None:
            is_made(request)
    except ValueError as error:
        raise ValueError(f"{request.line}: {error}" if request.line else str(error)) from error


def requests_of_lines(parser: argparse.ArgumentParser, words: list[str], args: argparse.Namespace) -> list[Request]:
    """The videos of --prompts FILE; each line is as if its flags were typed."""
    if not args.save_generation_config:
        raise ValueError("--prompts needs --save_generation_config true: by it the same command knows what is made")
    path, shared, program = Path(args.prompts), without_flag(words, "--prompts"), parser.prog
    lines = read_lines(path)
    requests: dict[Path, Request] = {}
    for index, (line, content) in enumerate(lines):
        name = str(content.pop("name", "")).strip()
        # Errors of argparse name the line, too.
        parser.prog = f"{program}: {line}"
        own = parser.parse_args([*shared, *(f"--{flag}={_word(value)}" for flag, value in content.items())])
        parser.prog = program
        own.prompts = args.prompts
        if "enable_cache" in content and not own.enable_cache:
            # What the command says of step caching is not for this line.
            vars(own).update({name: None for name in CACHE_FLAGS if name not in content})
        try:
            request = request_of(own, line)
        except ValueError as error:
            raise ValueError(f"{line}: {error}") from error
        if own.seed == -1 and not name:
            raise ValueError(f"{line}: with --seed -1, which draws one, a line needs a name")
        digits = max(4, len(str(len(lines) - 1)))
        folder = args.output_path or f"./outputs/{path.stem}_{version_of(own)}"
        own.output_path = str(Path(folder, f"{name or f'{index:0{digits}}_seed{own.seed}'}.mp4"))
        if (other := requests.setdefault(request.path, request)) is not request:
            raise ValueError(f"{line} and {other.line} have the name {request.path.stem}: give each its own")
    refuse_two_models(list(requests.values()))
    return list(requests.values())


def refuse_two_models(requests: list[Request]) -> None:
    versions = sorted({version_of(request.args) for request in requests})
    if len(versions) > 1:
        raise ValueError(
            f"{requests[0].args.prompts} asks for {' and '.join(versions)}: lines with and without image_path are two "
            "commands"
        )


def without_flag(words: list[str], flag: str) -> list[str]:
    """The words but for a flag and its value, however often it stands there."""
    left, rest = [], iter(words)
    for word in rest:
        if word == flag:
            next(rest)
        elif not word.startswith(f"{flag}="):
            left.append(word)
    return left


def read_lines(path: Path) -> list[tuple[str, dict]]:
    """The lines of a file of prompts that are not empty, by what they are called in messages."""
    try:
        # As bytes first: read as text, a lone carriage return would end a line.
        lines = path.read_bytes().decode().replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if "\r" in line or "\0" in line:
            raise ValueError(
                f"--prompts {path} line {number} has a control character: take it out, and end lines with a line feed"
            )
    # Files that were put together have byte order marks in them.
    lines = [line.replace("\ufeff", "").strip() for line in lines]
    found = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not found:
        raise ValueError(f"--prompts {path} is empty: write a prompt per line")
    return [(f"{path} line {number}", _line(line, f"{path} line {number}")) for number, line in found]


def _line(line: str, place: str) -> dict:
    if not line.startswith(("{", "[{")):
        return {"prompt": line}
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place} is no JSON object ({error}): one stands in one line; write a prompt that begins with a brace as "
            '{"prompt": "..."}'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{place} is no JSON object: write one object per line")
    for name, value in content.items():
        if name not in (*LINE_FLAGS, "name"):
            raise ValueError(f"{place} has {name!r}: a line may have {', '.join(LINE_FLAGS)}, name")
        if value is None or isinstance(value, (list, dict)):
            raise ValueError(f"{place}: {name} must be a text, a number, true or false")
    if not str(content.get("prompt", "")).strip():
        raise ValueError(f"{place} has no prompt")
    if "name" in content and not is_name(content["name"]):
        raise ValueError(
            f"{place}: name {content['name']!r:.60} is no name of a video: use letters and digits, at most 100 and 200 "
            "bytes, without .mp4"
        )
    return content


def is_name(name) -> bool:
    """Whether files can be called so. One that another video's copy from before super-resolution has is none."""
    try:
        size = len(str(name).strip().encode())
    except UnicodeEncodeError:
        return False
    return not isinstance(name, bool) and size <= LONGEST_NAME and bool(re.fullmatch(NAME, str(name).strip()))


def _word(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_full(word: str, parser: argparse.ArgumentParser) -> str:
    """An abbreviated flag in full, where it is the beginning of only one of upstream's own flags."""
    flag, *value = word.split("=", 1)
    known = list(parser._option_string_actions)
    fitting = [name for name in known if name.startswith(flag) and name not in NEW_FLAGS]
    if flag.startswith("--") and len(flag) > 2 and flag not in known and len(fitting) == 1:
        return "=".join([*fitting, *value])
    return word


def task_of(args: argparse.Namespace) -> str:
    return "i2v" if args.image_path else "t2v"


def version_of(args: argparse.Namespace) -> str:
    """The name of the model that the arguments ask for, as its folder under transformer/."""
    return transformer_version(
        args.resolution, task_of(args), args.cfg_distilled, args.enable_step_distill, args.sparse_attn
    )


def run_target(args: argparse.Namespace) -> Target:
    """The model, the sampler and the arithmetic of this run: what a mask must belong to."""
    version = version_of(args)
    defaults = PIPELINE_CONFIGS[version]
    num_steps = args.num_inference_steps or defaults.get("num_inference_steps", DEFAULT_NUM_STEPS)
    shift = args.flow_shift or defaults["flow_shift"]
    return Target(
        model=changed_model_name(version, args.checkpoint_path, args.lora_path),
        config=config_digest(os.path.join(args.model_path, "transformer", version)),
        sigmas=noise_levels(num_steps, shift),
        dtype="bfloat16" if torch.cuda.is_available() else "float32",
    )


def noise_levels(num_steps: int, shift: float) -> tuple[float, ...]:
    """The sampler's N + 1 noise levels: even ones s, moved to shift s / (1 + (shift - 1) s)."""
    even = (1 - step / num_steps for step in range(num_steps + 1))
    return tuple(shift * s / (1 + (shift - 1) * s) for s in even)


def check_request(args: argparse.Namespace) -> None:
    if not re.fullmatch(r"[1-9]\d{0,4}:[1-9]\d{0,4}", args.aspect_ratio):
        raise ValueError(f"--aspect_ratio must be two whole numbers like 16:9, got {args.aspect_ratio!r}")
    for flag in ("num_inference_steps", "video_length", "cache_step_interval"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag} must be at least 1, got {value}")
    if args.flow_shift is not None and not 0 < args.flow_shift < math.inf:
        raise ValueError(f"--flow_shift must be a number above 0, got {args.flow_shift}")
    if not -(2**63) <= args.seed < 2**64:
        raise ValueError(f"--seed must fit into 64 bits, got {args.seed}")
    try:
        (args.prompt + args.negative_prompt).encode()
    except UnicodeEncodeError as error:
        raise ValueError("--prompt and --negative_prompt must be UTF-8 text") from error
    if args.rewrite and importlib.util.find_spec("openai") is None:
        raise ValueError("--rewrite true needs openai: pip install openai")


def ranks_of_a_video(args: argparse.Namespace) -> int:
    """How many ranks share one video: where there is one all of them, and of many each rank makes its own."""
    if args.sp_size is not None:
        return args.sp_size
    return int(os.environ.get("WORLD_SIZE", "1")) if args.prompts is None else 1


def check_ranks(args: argparse.Namespace) -> None:
    world, size = int(os.environ.get("WORLD_SIZE", "1")), ranks_of_a_video(args)
    if size < 1 or world % size:
        raise ValueError(f"--sp_size {size} must divide the number of ranks, {world}: torchrun starts these")
    if args.prompts is None and size != world:
        raise ValueError(f"--sp_size {size} leaves ranks without a video: give {world}, or many videos with --prompts")


def check_files(args: argparse.Namespace) -> None:
    for flag, content in (("checkpoint_path", ".metadata"), ("lora_path", "*.safetensors")):
        path = Path(getattr(args, flag) or os.curdir)
        if not path.exists():
            raise ValueError(f"--{flag} {path} does not exist")
        if getattr(args, flag) and path.is_dir() and not any(path.glob(content)):
            raise ValueError(f"--{flag} {path} holds no {content}")
    if args.image_path and args.prompts is None:
        from hyvideo.pipelines.hunyuan_video_pipeline import as_rgb

        as_rgb(args.image_path)


def check_model(args: argparse.Namespace) -> None:
    version = version_of(args)
    if version not in PIPELINE_CONFIGS:
        raise ValueError(f"there is no model {version}: choose flags that give one of {', '.join(PIPELINE_CONFIGS)}")
    if not os.path.isdir(args.model_path):
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", args.model_path) or os.path.exists(Path(args.model_path).parts[0]):
            raise ValueError(f"--model_path {args.model_path} is not a folder: give the folder of the checkpoint")
        return
    missing = missing_model_files(Path(args.model_path), version, with_sr=args.sr)
    if missing:
        raise ValueError(
            f"--model_path {args.model_path} is incomplete, missing: {', '.join(missing)}; download them, or pass "
            "--model_path tencent/HunyuanVideo-1.5, which fetches the whole repository"
        )
    heads = json.loads((Path(args.model_path) / "transformer" / version / "config.json").read_text())["heads_num"]
    ranks, flag = ranks_of_a_video(args), "--nproc_per_node" if args.sp_size is None else "--sp_size"
    if heads % ranks:
        fitting = ", ".join(str(count) for count in range(1, heads + 1) if heads % count == 0)
        raise ValueError(f"{ranks} ranks cannot share the model's {heads} heads: pass {flag} of {fitting}")


def missing_model_files(folder: Path, version: str, with_sr: bool) -> list[str]:
    """What the checkpoint lacks for this model, as paths relative to it."""
    weighted = [f"transformer/{version}", "vae", "text_encoder/llm", "vision_encoder/siglip/image_encoder"]
    files = [*SHARED_MODEL_FILES, f"transformer/{version}/config.json"]
    if with_sr:
        sr_version = TRANSFORMER_VERSION_TO_SR_VERSION[version]
        weighted += [f"transformer/{sr_version}", f"upsampler/{sr_version}"]
        files += [f"transformer/{sr_version}/config.json", f"upsampler/{sr_version}/config.json"]
    if (folder / "text_encoder/byt5-small").is_dir():
        # Without the folder it comes from the Hub.
        files += ["text_encoder/byt5-small/config.json"]
    missing = [name for name in files if not (folder / name).is_file()]
    return missing + [name for part in weighted for name in _missing_weights(folder, part)]


def _missing_weights(folder: Path, part: str) -> list[str]:
    """Weight files that `part` of the checkpoint lacks: any at all, or shards that its index names."""
    weights = {path.name for pattern in ("*.safetensors", "*.bin") for path in (folder / part).glob(pattern)}
    shards: set[str] = set()
    for index in (folder / part).glob("*.index.json"):
        shards |= set(json.loads(index.read_text())["weight_map"].values())
    return [f"{part}/{name}" for name in sorted(shards - weights or ({"*.safetensors"} if not weights else set()))]


def check_speed(args: argparse.Namespace) -> None:
    if args.cache_type not in CACHE_TYPES:
        raise ValueError(f"--cache_type must be one of {', '.join(CACHE_TYPES)}; got {args.cache_type!r}")
    if args.enable_cache and args.enable_step_distill:
        raise ValueError(
            "--enable_cache true does not go with --enable_step_distill: its few steps leave none to reuse"
        )
    if args.sparse_attn and args.use_sageattn:
        raise ValueError("--sparse_attn and --use_sageattn exclude each other: set one of them to false")
    if args.use_fp8_gemm and "sgl" in args.quant_type and importlib.util.find_spec("sgl_kernel") is None:
        raise ValueError(f"--quant_type {args.quant_type} needs sgl_kernel: pip install sgl-kernel==0.3.18")
    if args.group_offloading and not args.offloading:
        raise ValueError("--group_offloading true needs --offloading true")
    if args.group_offloading and not torch.cuda.is_available():
        raise ValueError("--group_offloading true needs a GPU: leave it out on this machine")


def check_output(args: argparse.Namespace) -> None:
    """Try what the end of the run will do: write such a video, and give a file that name."""
    path = output_path(args)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"--output_path {path} must end with one of {' '.join(VIDEO_SUFFIXES)}")
    parent = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"--output_path {path} is no regular file: give the name of a video file")
    longest = beside(path, f"_before_sr{path.suffix}")
    try:
        with alone_in(parent):
            for name in (path.name, longest.name):
                try_name(parent / name)
        try_video(parent, path.suffix)
    except OSError as error:
        raise ValueError(f"--output_path {path} cannot be written in {parent}: {error.strerror or error}") from error


def try_name(path: Path) -> None:
    """Raise OSError where the file system does not let this name be written."""
    if path.exists():
        os.close(os.open(path, os.O_WRONLY))
        return
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    path.unlink()


def try_video(folder: Path, suffix: str) -> None:
    """Raise OSError where a video with this suffix cannot be written, or not be read again."""
    partial = partial_name(folder / f"video{suffix}")
    try:
        write_video(torch.zeros(3, 5, 64, 64), partial)
    finally:
        partial.unlink(missing_ok=True)


def check_cache(args: argparse.Namespace, state: InferState) -> None:
    if state.uses_lemica:
        run = run_target(args)
        mask = resolve_mask(state, run)
        if difference := mask.target.difference(run):
            rank0_log(f"the mask belongs to {difference}; it is used all the same, as --force_mask says", "WARNING")
        if state.lemica_mask is not None and args.lemica_step not in (None, mask.budget):
            rank0_log(f"the mask computes {mask.budget} steps, --lemica_step {args.lemica_step} or not", "WARNING")
        args.lemica_step = state.lemica_step = mask.budget
    elif state.enable_cache:
        check_other_cache(args)
    elif given := lemica_flags(args):
        raise ValueError(f"{given[0]} does nothing without --enable_cache true --cache_type lemica: add them")


def check_other_cache(args: argparse.Namespace) -> None:
    """For upstream's cache types: nothing of LeMiCa's is asked for, and angelslim, which implements them, imports."""
    if given := lemica_flags(args):
        raise ValueError(f"{given[0]} needs --cache_type lemica, got {args.cache_type}")
    try:
        importlib.import_module("angelslim.compressor.diffusion")
    except Exception as error:
        raise ValueError(
            f"--cache_type {args.cache_type} needs angelslim, which cannot be imported ({error}): "
            "pip install angelslim==0.2.2"
        ) from error


def lemica_flags(args: argparse.Namespace) -> list[str]:
    """LeMiCa's flags among those given."""
    return [f"--{name}" for name in CACHE_FLAGS if getattr(args, name) is not None]


def output_path(args: argparse.Namespace) -> Path:
    """Where the video goes; without --output_path a name made of model, time and chance, the same at every call."""
    if args.output_path is None:
        now, chance = datetime.datetime.now(), secrets.token_hex(3)
        args.output_path = f"./outputs/output_{version_of(args)}_{now:%Y-%m-%d_%H-%M-%S}_{chance}.mp4"
    # A link is followed, not replaced.
    return Path(os.path.realpath(args.output_path))


def beside(path: Path, ending: str) -> Path:
    """The file of the same name with another ending: NAME_config.json beside NAME.mp4."""
    return path.with_name(path.stem + ending)


def rank0_log(message: str, level: str = "INFO") -> None:
    if get_rank() == 0:
        loguru.logger.log(level, message)


def load_pipeline(args: argparse.Namespace, state: InferState):
    from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline

    return HunyuanVideo_1_5_Pipeline.load(
        args.model_path,
        version_of(args),
        state,
        with_sr=args.sr,
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype],
        checkpoint_path=args.checkpoint_path,
        lora_path=args.lora_path,
        offloading=args.offloading,
        group_offloading=args.group_offloading,
        overlap_group_offloading=args.overlap_group_offloading,
    )


def generate_video(args: argparse.Namespace, state: InferState) -> bool:
    """Load, generate, and on rank 0 write the video and what is known about its making; whether all was saved."""
    warn_of_choices(args)
    files, digest = RunFiles(output_path(args)), digest_of(args)
    started = time.perf_counter()
    pipe = load_pipeline(args, state)
    loading_seconds = time.perf_counter() - started
    out = make_video(pipe, args)
    if get_rank() != 0:
        return True
    out.report.stage_seconds["model loading"] = loading_seconds
    save(args, out, files, digest)
    log_report(out.report)
    return files.all_saved


def make_video(pipe, args: argparse.Namespace):
    """What the pipeline makes of a request."""
    return pipe(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        reference_image=args.image_path,
        aspect_ratio=args.aspect_ratio,
        video_length=args.video_length,
        num_inference_steps=args.num_inference_steps,
        flow_shift=args.flow_shift,
        seed=args.seed,
        prompt_rewrite=args.rewrite,
        enable_sr=args.sr,
        return_pre_sr_video=args.save_pre_sr_video,
    )


def save(args: argparse.Namespace, out, files: "RunFiles", digest: str) -> None:
    """Write the videos and the config of a request, whose digest was taken before it was made."""
    started = time.perf_counter()
    write_videos(args, out, files)
    out.report.stage_seconds["file writing"] = time.perf_counter() - started
    if args.save_generation_config:
        files.write(beside(files.path, "_config.json"), write_json, config_of(args, out.report, files, digest))
    files.move()


def generate_many(requests: list[Request]) -> bool:
    """Load once, and make what nobody has made yet; whether all is made that was asked for.

    A request that fails is written down and the rest goes on. Files are written while the next video is made.
    """
    first, group, claims = requests[0], Group(), Claims(requests)
    warn_of_choices(first.args)
    # Ranks of a group may see the folder at different times: what the first one finds is so for all.
    left = group.share([request.path for request in requests if not claims.is_done(request)])
    if left:
        pipe = load_pipeline(first.args, first.state)
        if pipe.enable_offloading and not first.args.rewrite:
            texts = [(each.args.prompt, each.args.negative_prompt) for each in requests if each.path in left]
            try:
                pipe.encode_ahead(texts[:ENCODED_AHEAD])
            except Exception as error:
                # What cannot be encoded fails at its turn.
                say(f"prompts are encoded one by one: {error}", error=True)
        with Writer(claims) as writer:
            is_over = False
            while not is_over:
                request, is_over = group.share(claims.turn() if group.is_first else None)
                if request is not None:
                    make_one(pipe, request, group, claims, writer)
    return claims.tell() if group.is_first else True


def make_one(pipe, request: Request, group: "Group", claims: "Claims", writer: "Writer") -> None:
    """Make a video on all ranks of a group, and on the first one have its files written, or its failure."""
    out = trouble = None
    try:
        pipe.change_infer_state(request.state)
        out = make_video(pipe, request.args)
    except Exception as error:
        # As text: the error itself holds all tensors of the calls that it went through.
        trouble = "".join(traceback.format_exception(error))
        say(f"rank {get_rank()}, {request.path}: {' '.join(str(error).split()) or type(error).__name__}", error=True)
    if trouble:
        release_memory()
    troubles = [each for each in group.gather(trouble) if each]
    if not group.is_first:
        return
    if troubles:
        claims.fail(request, troubles[0])
    else:
        writer.write(request, out)


def release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Group:
    """The ranks that make a video together, and what they tell each other beside the making of it.

    They have a channel of their own for it, so that a rank that fails alone is heard of where others can still hear; if
    they cannot, as they wait in the middle of a step, the channel's time runs out and this rank ends with an error.
    """

    def __init__(self):
        from hyvideo.commons.parallel_states import get_parallel_state

        parallel = get_parallel_state()
        self.is_first, self.channel = parallel.sp_rank == 0, None
        if parallel.sp_enabled:
            self.channel, _ = dist.new_subgroups(parallel.sp, backend="gloo", timeout=TIME_TO_ANSWER)

    def share(self, value):
        """The first rank's value, on all."""
        if self.channel is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=dist.get_global_rank(self.channel, 0), group=self.channel)
        return values[0]

    def gather(self, value) -> list:
        """All ranks' values, on all."""
        if self.channel is None:
            return [value]
        values = [None] * dist.get_world_size(self.channel)
        dist.all_gather_object(values, value, group=self.channel)
        return values


class Writer:
    """Writes the files of one video while the next one is made; of a 720p video that waits there are 1.3 GB."""

    def __init__(self, claims: "Claims"):
        self.claims, self._pool, self._last = claims, ThreadPoolExecutor(max_workers=1), None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True)

    def write(self, request: Request, out) -> None:
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(self.claims.finish, request, out)


class Claims:
    """Who makes which request: whoever holds the lock of its claim, a file, which ends with its holder.

    So groups of ranks need not hear of each other: none waits for a slow one, and of one that died the others take what
    it has left. A group tries a request once; what one has failed to make, others may try. In a claim stands whose
    request it is, so that files of a run that was interrupted are told from those of another one.
    """

    def __init__(self, requests: list[Request]):
        self.requests = requests
        self.made: list[Request] = []
        self._left = {request.path: request for request in requests}
        self._locks: dict[Path, int] = {}
        self._files: dict[Path, RunFiles] = {}

    def is_done(self, request: Request) -> bool:
        """Whether a request is made; one whose name belongs to another is not."""
        try:
            return is_made(request)
        except ValueError:
            return False

    def turn(self) -> tuple[Request | None, bool]:
        """A request to make, and whether there will be no other: those that others are at work on may yet become free.

        While they are, None is given now and then, so that the ranks that wait for an answer are not given up.
        """
        for _ in range(LOOKS_TO_A_TURN):
            request = self.take()
            if request is not None or not self._left:
                return request, request is None
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return None, False

    def take(self) -> Request | None:
        """A request that is not made, and that nobody is at work on; its claim is this group's then."""
        for path, request in list(self._left.items()):
            try:
                if not self._lock(request):
                    continue
                del self._left[path]
                if not is_made(request):
                    # What has its names now is not overwritten if it changes until the end.
                    self._files[path] = RunFiles(path)
                    return request
                self._release(request)
            except (ValueError, OSError) as error:
                self._left.pop(path, None)
                self.fail(request, str(error))
        return None

    def finish(self, request: Request, out) -> None:
        """Write the files of a request that was made, and let others see."""
        try:
            files = self._files.pop(request.path)
            save(request.args, out, files, request.digest)
            log_report(out.report)
            if not files.all_saved:
                raise OSError("not all of its files were saved")
            error_path(request.path).unlink(missing_ok=True)
            self.made.append(request)
            self._release(request)
        except Exception as error:
            self.fail(request, "".join(traceback.format_exception(error)))

    def fail(self, request: Request, trouble: str) -> None:
        """Write down why a request was not made, and let others try."""
        path = error_path(request.path)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(trouble, encoding="utf-8")
        say(f"Not made: {request.path}, see {path}", error=True)
        self._files.pop(request.path, None)
        self._release(request)

    def tell(self) -> bool:
        """Say what this group has done, once all is made or nobody is at work, and return whether all is made.

        torchrun ends all ranks with the first that fails, and another node's some minutes after the first that is done.
        So while something is missing it has to be quiet for some looks: another group may be about to try it.
        """
        quiet = 0
        while quiet < LOOKS_OF_QUIET and not all(map(self.is_done, self.requests)):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            at_work = any(is_locked(claim_path(request.path)) for request in self.requests)
            quiet = 0 if at_work else quiet + 1
        missing = [str(request.path) for request in self.requests if not self.is_done(request)]
        say(
            f"{len(self.requests) - len(missing)} of {len(self.requests)} videos are there, {len(self.made)} made now"
            f"{'; missing: ' if missing else ''}{', '.join(missing)}"
        )
        return not missing

    def _lock(self, request: Request) -> bool:
        """Take the claim of a request, if nobody holds it."""
        path, digest = claim_path(request.path), request.digest
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Its last holder may have removed the file between our opening and our locking it.
            if not try_lock(descriptor) or _identity_of(descriptor) != _identity_of(path):
                return False
            os.ftruncate(descriptor, 0)
            os.write(descriptor, digest.encode())
            self._locks[request.path] = descriptor
            return True
        finally:
            if request.path not in self._locks:
                os.close(descriptor)

    def _release(self, request: Request) -> None:
        descriptor = self._locks.pop(request.path, None)
        if descriptor is None:
            return
        with suppress(OSError):
            # A video without its config is known by its claim.
            if beside(request.path, "_config.json").exists() or not request.path.exists():
                claim_path(request.path).unlink(missing_ok=True)
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock a file, unless somebody else has; raises OSError where the disk has no locks."""
    try:
        import fcntl
    except ImportError:
        # Another system: there is one group of ranks.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        # What cannot be opened nobody can hold.
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _identity_of(file: int | Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        found = os.stat(file)
        return found.st_dev, found.st_ino
    return None


def claim_path(path: Path) -> Path:
    return path.with_name(f".{path.stem}.claim")


def error_path(path: Path) -> Path:
    return beside(path, "_error.txt")


def is_made(request: Request) -> bool:
    """Whether a request's files are there, whole; raises ValueError where its name belongs to another one."""
    path, foreign = request.path, f"{request.path} is there already, of {{}}: give another --output_path or name"
    try:
        content = json.loads(beside(path, "_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.exists() and not _is_claimed_for(request):
            raise ValueError(foreign.format("another run")) from None
        return False
    except NotADirectoryError:
        return False
    except (OSError, ValueError):
        content = {}
    if not isinstance(content, dict) or content.get("request_digest") != request.digest:
        raise ValueError(foreign.format("another request"))
    files = content["files"]
    return all(name in files and _size(path.with_name(name)) == files[name]["size"] for name in names_of(request))


def _is_claimed_for(request: Request) -> bool:
    with suppress(OSError):
        return claim_path(request.path).read_text(encoding="utf-8") == request.digest
    return False


def names_of(request: Request) -> list[str]:
    """The videos that a request asks for."""
    args, path = request.args, request.path
    lossless = [beside(path, "_lossless.mkv").name] if args.save_lossless else []
    before_sr = [beside(path, f"_before_sr{path.suffix}").name] if args.sr and args.save_pre_sr_video else []
    return [path.name, *lossless, *before_sr]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def digest_of(args: argparse.Namespace) -> str:
    """What tells a request from others: its arguments but for where work is done, what its mask and its image hold,
    and the model's files.
    """
    deciding = {name: value for name, value in vars(args).items() if name not in OUTWARD_FLAGS}
    if args.lemica_mask is not None:
        deciding["lemica_mask"] = fingerprint(Path(args.lemica_mask))
    with suppress(OSError, ValueError):
        # One that is missing fails its request, when its turn comes.
        deciding["image_path"] = args.image_path and fingerprint(Path(args.image_path))
    weights = sorted(Path(args.model_path, "transformer", version_of(args)).glob("*"))
    deciding["model"] = [(path.name, path.stat().st_size) for path in weights] or args.model_path
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def warn_of_choices(args: argparse.Namespace) -> None:
    if args.video_length % 4 != 1:
        rank0_log(f"videos have 4n + 1 frames: this one will have {(args.video_length - 1) // 4 * 4 + 1}", "WARNING")
    if args.video_length != 121:
        rank0_log(f"121 frames give the best quality; generating {args.video_length}", "WARNING")
    if not args.rewrite:
        rank0_log("prompt rewriting is off, which may cost quality", "WARNING")


def write_videos(args: argparse.Namespace, out, files: "RunFiles") -> None:
    path = files.path
    video = out.videos if out.sr_videos is None else out.sr_videos
    files.write(path, write_video, video)
    if args.save_lossless:
        files.write(beside(path, "_lossless.mkv"), write_video, video, codec="ffv1", pixelformat="bgr0")
    if out.sr_videos is not None and args.save_pre_sr_video:
        files.write(beside(path, f"_before_sr{path.suffix}"), write_video, out.videos)


class RunFiles:
    """The files of a run: written beside their names, checked there, and moved when all are done.

    A file that is whole is never deleted. Where it cannot get its name, or where another run has put a file of that
    name since this one began, it is kept under another name, and `all_saved` becomes false.
    """

    def __init__(self, path: Path):
        self.path = path
        self.all_saved = True
        # By final name: where a file stands that is written and checked.
        self.whole: dict[Path, Path] = {}
        endings = (path.suffix, "_lossless.mkv", f"_before_sr{path.suffix}", "_config.json")
        with alone_in(path.parent):
            self._at_start = {beside(path, ending): _identity(beside(path, ending)) for ending in endings}

    def write(self, path: Path, write, content, **options) -> None:
        """Have `write(content, partial name, **options)` make the file that shall be called `path`."""
        partial = partial_name(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(content, partial, **options)
            self.whole[path] = partial
        except OSError as error:
            partial.unlink(missing_ok=True)
            self.all_saved = False
            say(f"Not saved: {path} cannot be written ({error.strerror or error})", error=True)

    def move(self) -> None:
        """Give every file its name. What an earlier run put beside its video goes first: it is not of the new one."""
        with alone_in(self.path.parent):
            self._move()

    def _move(self) -> None:
        foreign = [path for path, found in self._at_start.items() if _identity(path) != found]
        companions = self._at_start.keys() - {self.path}
        for path, partial in self.whole.items():
            try:
                if foreign:
                    raise FileExistsError(None, f"another run has written {foreign[0]} meanwhile")
                if path == self.path:
                    for companion in companions:
                        companion.unlink(missing_ok=True)
                os.replace(partial, path)
                say(f"Saved {path}")
            except OSError as error:
                self.all_saved = False
                say(f"Kept as {partial}: it cannot be moved to {path} ({error.strerror or error})", error=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs from giving names in a folder: what this one has seen of it is so until it is done.

    Where the system or the disk has no locks, or somebody else holds this one for long, it goes on without.
    """
    with ExitStack() as held:
        with suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            until = time.monotonic() + SECONDS_FOR_ANOTHER_RUN
            while time.monotonic() < until:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.01)
        yield


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells a file from another one that takes its name; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def partial_name(path: Path) -> Path:
    """A name beside `path`, with its suffix, that no other run has: short, whatever the name."""
    return path.with_name(f".partial-{secrets.token_hex(8)}{path.suffix}")


def write_video(video: torch.Tensor, path: Path, **encoding) -> None:
    """Write a video (3, F, H, W) or (1, 3, F, H, W), float in [0, 1], at 24 frames per second, and read it again.

    `encoding` goes to imageio's ffmpeg writer; without it the file's suffix decides. Raises OSError if what was written
    has not as many frames.
    """
    import imageio.v2 as imageio

    frames = video.squeeze(0) if video.ndim == 5 else video
    frames = (frames * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()
    try:
        imageio.mimwrite(path, frames, fps=FRAMES_PER_SECOND, **(CODECS.get(path.suffix.lower(), {}) | encoding))
        found = count_frames(path)
    except (OSError, RuntimeError, ValueError, IndexError, TypeError) as error:
        # ffmpeg tells its whole configuration before the cause.
        cause = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
        raise OSError(f"no {path.suffix} video can be written: {cause}") from error
    # A GIF holds equal frames once.
    if found != len(frames) and not (path.suffix.lower() == ".gif" and found):
        raise OSError(f"of {len(frames)} frames {found} can be read again")


def count_frames(path: Path) -> int:
    """The frames that can be decoded, as they are stored."""
    import imageio.v2 as imageio

    as_stored = {} if path.suffix.lower() == ".gif" else {"output_params": ["-fps_mode", "passthrough"]}
    with imageio.get_reader(path, **as_stored) as reader:
        return sum(1 for _ in reader.iter_data())


def write_json(content: dict, path: Path) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    if path.read_text(encoding="utf-8") != text:
        raise OSError("what was written cannot be read again")


def say(message: str, error: bool = False) -> None:
    """Print, and go on where nothing can be printed: no file may be lost by it."""
    stream = sys.stderr if error else sys.stdout
    with suppress(OSError, ValueError, AttributeError):
        stream.write(f"{message}\n")
        stream.flush()


def log_report(report) -> None:
    computed, total = len(report.computed_steps), report.num_steps
    rank0_log(
        f"{computed} of {total} steps computed ({report.mask_origin}), DiT {report.dit_seconds:.2f} s: "
        f"computed {report.computed_seconds:.2f} s, reused {report.reused_seconds:.2f} s"
    )
    rank0_log(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report.stage_seconds.items()))


def config_of(args: argparse.Namespace, report, files: RunFiles, digest: str) -> dict:
    """What NAME_config.json says: the arguments, what decided the picture, the run report, and which files it is of."""
    sums = ("dit_seconds", "computed_seconds", "reused_seconds", "total_seconds")
    return {
        "timestamp": datetime.datetime.now().isoformat(),
        "task": task_of(args),
        "transformer_version": version_of(args),
        "output_path": str(files.path),
        "request_digest": digest,
        "arguments": vars(args),
        "request": report.request,
        "report": dataclasses.asdict(report) | {name: getattr(report, name) for name in sums},
        "files": {path.name: fingerprint(partial) for path, partial in files.whole.items()},
    }


def fingerprint(path: Path) -> dict:
    content = path.read_bytes()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def main() -> None:
    requests = parse_requests()
    first = requests[0]
    # Imported only now, so that a wrong argument is answered at once.
    from hyvideo.pipelines.hunyuan_video_pipeline import initialize_sequence_parallel

    initialize_sequence_parallel(ranks_of_a_video(first.args))
    all_saved = generate_video(first.args, first.state) if first.args.prompts is None else generate_many(requests)
    if dist.is_initialized():
        dist.destroy_process_group()
    if not all_saved:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            say("interrupted: what is made is whole; with --prompts the same command goes on", error=True)
        sys.exit(130)
