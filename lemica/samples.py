"""The model and the samples that a command runs: options, checks, requests. A sample is a prompt with a seed.

The model is named by the options of generate.py, which parses and checks them and loads the pipeline.
"""

import argparse
import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# Options that are passed on to generate.py, which checks them: name -> (placeholder, help).
_MODEL_OPTIONS = {
    "model_path": ("FOLDER", "folder of the checkpoint, or a Hub repository owner/name"),
    "resolution": ("480p|720p", "resolution of model and video"),
    "flow_shift": ("X", "shift of the sampler (default: the model's)"),
    "aspect_ratio": ("W:H", "width:height of a text-to-video (default: 16:9)"),
    "video_length": ("FRAMES", "frames, 4n + 1 (default: 121)"),
    "negative_prompt": ("TEXT", "what the videos shall not show (default: nothing)"),
    "cfg_distilled": ("BOOL", "the CFG-distilled model (default: false)"),
    "sparse_attn": ("BOOL", "sparse attention, H-series GPUs, implies CFG-distilled (default: false)"),
    "checkpoint_path": ("FOLDER", "folder of a distributed checkpoint to load into the transformer"),
    "lora_path": ("FOLDER", "folder of a LoRA adapter to load into the transformer"),
    "dtype": ("bf16|fp32", "of the transformer on a GPU (default: bf16)"),
    "use_sageattn": ("BOOL", "SageAttention (default: false)"),
    "sage_blocks_range": ("RANGE", "blocks that use it, like 0-5,9 (default: 0-53)"),
    "enable_torch_compile": ("BOOL", "compile the transformer blocks (default: false)"),
    "use_fp8_gemm": ("BOOL", "fp8 matrix products (default: false)"),
    "quant_type": ("TYPE", "kind of fp8 (default: fp8-per-token-sgl)"),
    "include_patterns": ("NAMES", "modules in fp8 (default: double_blocks)"),
}
# These do not change what is measured.
_MEMORY_OPTIONS = {
    "offloading": ("BOOL", "keep models on the CPU while they are not used (default: true)"),
    "group_offloading": ("BOOL", "stream the transformer block by block (default: below 60 GB)"),
    "overlap_group_offloading": ("BOOL", "overlap streaming with computing (default: true)"),
}


def add_sample_arguments(group) -> None:
    """Options that say which samples: prompts, seeds, first frames."""
    group.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="text file with one prompt a line")
    group.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="random seeds (default: 0)")
    group.add_argument(
        "--image_path", nargs="+", metavar="FILE", help="first frame, for image-to-video: one, or one for each prompt"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name the model and the video, and those that say where its weights are kept."""
    _add_passed_on(parser.add_argument_group("model and video, as in generate.py"), _MODEL_OPTIONS)
    _add_passed_on(parser.add_argument_group("memory, as in generate.py"), _MEMORY_OPTIONS)


def _add_passed_on(group, options: dict[str, tuple[str, str]]) -> None:
    for name, (placeholder, text) in options.items():
        standing_alone = {"nargs": "?", "const": "true"} if placeholder == "BOOL" else {}
        required = name in ("model_path", "resolution")
        group.add_argument(f"--{name}", required=required, metavar=placeholder, help=text, **standing_alone)


@dataclass(frozen=True)
class Samples:
    """All samples of a command: every prompt, with its first frame if there is one, with every seed.

    generate: generate.py of the tree that this runs in; options: the model's, as generate.py parsed and checked them.
    """

    generate: ModuleType
    options: argparse.Namespace
    prompts: list[str]
    images: list[str | None]
    seeds: list[int]

    @property
    def model(self) -> str:
        """The model's name, as graphs and masks carry it."""
        return self.generate.model_name(self.options)

    def requests(self, num_steps: int, reuse: str, forecast: str) -> list[dict[str, Any]]:
        """Keyword arguments of ``replay.prepare``, one dict a sample: all seeds of a prompt, then of the next."""
        common = dict(
            num_steps=num_steps,
            flow_shift=self.options.flow_shift,
            aspect_ratio=self.options.aspect_ratio,
            video_length=self.options.video_length,
            negative_prompt=self.options.negative_prompt,
            reuse=reuse,
            forecast=forecast,
        )
        pictures = self.images * len(self.prompts) if len(self.images) == 1 else self.images
        shown = zip(self.prompts, pictures, strict=True)
        return [
            dict(prompt=prompt, image_path=image, seed=seed, **common)
            for (prompt, image), seed in itertools.product(shown, self.seeds)
        ]

    def settings(self) -> dict[str, Any]:
        """Every argument that decides the samples, by name; files count by what is in them."""
        return {
            "prompts": f"FILE with SHA-256 {_digest(chr(10).join(self.prompts).encode())}",
            "image_path": [f"FILE with SHA-256 {_digest(Path(image).read_bytes())}" for image in self.images if image]
            or None,
            "seeds": self.seeds,
            **{name: getattr(self.options, name) for name in _MODEL_OPTIONS},
        }

    def load_pipeline(self):
        """The pipeline, without a progress bar of its own."""
        pipe = self.generate.load_pipeline(self.options, self.generate.initialize_infer_state(self.options))
        pipe.set_progress_bar_config(disable=True)
        return pipe


def read_samples(args: argparse.Namespace, command: str) -> Samples:
    """Check what the options above say, before any model is loaded; raises ValueError for a bad one."""
    if len(set(args.seeds)) < len(args.seeds) or not all(0 <= seed < 2**63 for seed in args.seeds):
        raise ValueError(f"--seeds must be different whole numbers from 0 on, got {' '.join(map(str, args.seeds))}")
    prompts, images = _prompts(args.prompts), args.image_path or [None]
    generate = _generate_module(command)
    return Samples(
        generate, _options_of_generate(generate, args, prompts, images, command), prompts, images, args.seeds
    )


def _prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} is not UTF-8 text: give a text file with one prompt a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {path} is empty: write one prompt a line")
    return prompts


def _generate_module(command: str) -> ModuleType:
    """generate.py of the tree that this runs in: it knows how to check model options and how to load a model."""
    try:
        import generate
    except ImportError as error:
        kit = Path(__file__).resolve().parents[1]
        raise ValueError(
            f"{command} needs a HunyuanVideo-1.5 tree with the kit installed ({error}): type {kit}/scripts/install.sh "
            f"TREE && cd TREE && PYTHONPATH={kit} python -m lemica {command} ..."
        ) from error
    return generate


def _options_of_generate(
    generate: ModuleType, args: argparse.Namespace, prompts: list[str], images: list[str | None], command: str
) -> argparse.Namespace:
    """The options passed on, as generate.py parses and checks them."""
    if len(images) not in (1, len(prompts)):
        raise ValueError(f"--image_path has {len(images)} files for {len(prompts)} prompts: give one, or one for each")
    parser = generate.build_parser()
    parser.prog = f"python -m lemica {command}"
    given = {name: getattr(args, name) for name in (*_MODEL_OPTIONS, *_MEMORY_OPTIONS)}
    typed = [f"--{name}={value}" for name, value in given.items() if value is not None]
    options = parser.parse_args([*typed, f"--prompt={prompts[0]}", "--sr=false"])
    for options.image_path in images:
        generate.check_files(options)
    for check in (generate.check_request, generate.check_model, generate.check_speed):
        check(options)
    return options


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def ranks_together() -> Iterator[tuple[int, int]]:
    """This rank and the number of ranks; all ranks leave together, and from then on each works alone.

    So all have read what is done before one adds to it, and no collective can time out while one rank waits for another
    that has hours of work left.
    """
    from hyvideo.pipelines.hunyuan_video_pipeline import initialize_sequence_parallel
    from torch import distributed as dist

    joined_before = dist.is_initialized()
    initialize_sequence_parallel(sp=1)
    yield dist.get_rank(), dist.get_world_size()
    dist.barrier()
    if not joined_before:
        dist.destroy_process_group()
