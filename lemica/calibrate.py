"""Measure a model's error graph: what each stretch of reused steps costs in quality.

Runs the kit's own pipeline, so it runs in the folder of a HunyuanVideo-1.5 tree in which the kit is installed
(scripts/install.sh), with the folder of the kit on PYTHONPATH. Every prompt with every seed is one sample; errors are
averaged over samples. The model is named by the same options as in generate.py.

A sample is generated once without any cache, and then replayed with one stretch of steps reused at a time. Fast edges
(default) replay a stretch to its end only and scale the error there by how much errors at that step matter for the
result, which takes at most 5 full runs a sample. Exact edges replay every stretch to the result, as LeMiCa (arXiv
2511.00090) defines them: 145 full runs a sample at 50 steps and gaps to 8. The cost is printed before anything runs.

Finished samples are kept beside the output, in GRAPH.json.partial: after an interruption, the same command goes on
from there. Under torchrun every rank holds the whole model and works alone on its own samples, or on a part of one
where there are more ranks than samples left. The residuals of a run wait in CPU memory: with 50 steps and CFG 42 GiB a
rank at 720p, 19 GiB at 480p.
"""

import argparse
import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lemica.checkpoints import Checkpoints, Unit, units_of_rank
from lemica.edges import EXACT, FAST, Work, sample_graph, work_for
from lemica.graph import merge_graphs, write_graph
from lemica.masks import FORECASTS, REUSED, ReuseRule

EXAMPLES = """\
examples:
  cd HunyuanVideo-1.5; export PYTHONPATH=/path/to/kit
  python -m lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --seeds 0 1 \\
      --output graph.json
  python -m lemica calibrate --model_path ./ckpts --resolution 480p --prompts prompts.txt --image_path first.png \\
      --num_inference_steps 30 --output i2v_30.json
  torchrun --nproc_per_node=4 -m lemica calibrate --model_path ./ckpts --resolution 720p --prompts prompts.txt \\
      --edges exact --output exact.json
"""

GIB = 1024**3

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
# Our own options that decide the numbers, beside prompts and images.
_SETTINGS = ("seeds", "num_inference_steps", "max_gap", "edges", "reuse", "forecast")
# These do not change what is measured.
_MEMORY_OPTIONS = {
    "offloading": ("BOOL", "keep models on the CPU while they are not used (default: true)"),
    "group_offloading": ("BOOL", "stream the transformer block by block (default: below 60 GB)"),
    "overlap_group_offloading": ("BOOL", "overlap streaming with computing (default: true)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    group.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="text file with one prompt a line")
    group.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="random seeds (default: 0)")
    group.add_argument(
        "--image_path", nargs="+", metavar="FILE", help="first frame, for image-to-video: one, or one for each prompt"
    )
    group.add_argument(
        "--num_inference_steps", type=int, default=50, metavar="N", help="denoising steps, at least 3 (default: 50)"
    )
    group.add_argument(
        "--max_gap", type=int, default=8, metavar="D", help="longest gap to measure, 2 to N - 1 (default: 8, or N - 1)"
    )
    group.add_argument("--edges", choices=[FAST, EXACT], default=FAST, help="how edges are measured (default: fast)")
    group.add_argument(
        "--reuse", choices=REUSED, default=ReuseRule.reuse, help="what reused steps reuse (default: residual)"
    )
    group.add_argument(
        "--forecast",
        choices=FORECASTS,
        default=ReuseRule.forecast,
        metavar="NAME",
        help=f"how it is carried to them: {', '.join(FORECASTS)} (default: hold)",
    )
    group.add_argument("--output", type=Path, required=True, metavar="GRAPH", help="graph file to write")
    _add_passed_on(parser.add_argument_group("model and video, as in generate.py"), _MODEL_OPTIONS)
    _add_passed_on(parser.add_argument_group("memory, as in generate.py"), _MEMORY_OPTIONS)


def _add_passed_on(group, options: dict[str, tuple[str, str]]) -> None:
    for name, (placeholder, text) in options.items():
        standing_alone = {"nargs": "?", "const": "true"} if placeholder == "BOOL" else {}
        required = name in ("model_path", "resolution")
        group.add_argument(f"--{name}", required=required, metavar=placeholder, help=text, **standing_alone)


def run(args: argparse.Namespace) -> None:
    """Calibrate on this rank; rank 0 writes the graph once all are done. Raises ValueError for a bad argument."""
    _check(args)
    args.max_gap = min(args.max_gap, args.num_inference_steps - 1)
    prompts, images = _prompts(args.prompts), args.image_path or [None]
    generate = _generate_module()
    options = _options_of_generate(generate, args, prompts, images)
    requests = _requests(args, options, prompts, images)
    work = work_for(args.edges, args.num_inference_steps, args.max_gap)

    with _ranks_together() as (rank, world_size):
        checkpoints = Checkpoints(args.output, _settings(args, options, prompts, images))
        units = [unit for unit in units_of_rank(len(requests), world_size, rank) if not checkpoints.has(unit)]
    if rank == 0:
        print(cost(args.edges, work, args.num_inference_steps, len(requests), world_size))
        print(
            f"unfinished work is kept in {checkpoints.folder}: after an interruption the same command goes on from it"
        )
    if units:
        pipe = _load_pipeline(generate, options)
        _measure(pipe, requests, work, units, args.max_gap, checkpoints, show_progress=rank == 0)
    if rank == 0:
        _write_graph(args, checkpoints, len(requests), generate.model_name(options))


def cost(mode: str, work: Work, num_steps: int, num_samples: int, world_size: int = 1) -> str:
    """What a calibration costs, in a sentence."""
    sample = work.forwards(num_steps)
    total, busiest = sample * num_samples, max(rank_forwards(work, num_steps, num_samples, world_size))
    text = f"{mode} edges: {sample} forwards a sample ({sample / num_steps:.1f} full runs)"
    text += f", {total} for {num_samples} samples" if num_samples > 1 else ""
    return text + (f", at most {busiest} on one of {world_size} ranks" if world_size > 1 else "")


def rank_forwards(work: Work, num_steps: int, num_samples: int, world_size: int) -> list[int]:
    """Forwards of every rank; ranks that share a sample make its trajectory each."""
    return [
        sum(work.part(unit.part, unit.parts).forwards(num_steps) for unit in units_of_rank(num_samples, world_size, r))
        for r in range(world_size)
    ]


def _check(args: argparse.Namespace) -> None:
    if args.num_inference_steps < 3:
        raise ValueError(f"--num_inference_steps must be at least 3, got {args.num_inference_steps}")
    if len(set(args.seeds)) < len(args.seeds) or not all(0 <= seed < 2**63 for seed in args.seeds):
        raise ValueError(f"--seeds must be different whole numbers from 0 on, got {' '.join(map(str, args.seeds))}")
    if args.max_gap < 2:
        raise ValueError(f"--max_gap must be at least 2, got {args.max_gap}")
    if args.output.exists():
        raise ValueError(f"--output {args.output} is there already: give another name, or delete it first")
    ReuseRule(args.reuse, args.forecast)


def _prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} is not UTF-8 text: give a text file with one prompt a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {path} is empty: write one prompt a line")
    return prompts


def _generate_module() -> ModuleType:
    """generate.py of the tree that this runs in: it knows how to check model options and how to load a model."""
    try:
        import generate
    except ImportError as error:
        kit = Path(__file__).resolve().parents[1]
        raise ValueError(
            f"calibrate needs a HunyuanVideo-1.5 tree with the kit installed ({error}): type {kit}/scripts/install.sh "
            f"TREE && cd TREE && PYTHONPATH={kit} python -m lemica calibrate ..."
        ) from error
    return generate


def _options_of_generate(
    generate: ModuleType, args: argparse.Namespace, prompts: list[str], images: list[str | None]
) -> argparse.Namespace:
    """The options passed on, as generate.py parses and checks them."""
    if len(images) not in (1, len(prompts)):
        raise ValueError(f"--image_path has {len(images)} files for {len(prompts)} prompts: give one, or one for each")
    parser = generate.build_parser()
    parser.prog = "python -m lemica calibrate"
    given = {name: getattr(args, name) for name in (*_MODEL_OPTIONS, *_MEMORY_OPTIONS)}
    typed = [f"--{name}={value}" for name, value in given.items() if value is not None]
    options = parser.parse_args([*typed, f"--prompt={prompts[0]}", "--sr=false"])
    for options.image_path in images:
        generate.check_files(options)
    for check in (generate.check_request, generate.check_model, generate.check_speed):
        check(options)
    return options


def _requests(
    args: argparse.Namespace, options: argparse.Namespace, prompts: list[str], images: list[str | None]
) -> list[dict[str, Any]]:
    """Keyword arguments of ``replay.prepare``, one dict a sample: all seeds of the first prompt, then of the second."""
    common = dict(
        num_steps=args.num_inference_steps,
        flow_shift=options.flow_shift,
        aspect_ratio=options.aspect_ratio,
        video_length=options.video_length,
        negative_prompt=options.negative_prompt,
        reuse=args.reuse,
        forecast=args.forecast,
    )
    pictures = images * len(prompts) if len(images) == 1 else images
    shown = zip(prompts, pictures, strict=True)
    return [
        dict(prompt=prompt, image_path=image, seed=seed, **common)
        for (prompt, image), seed in itertools.product(shown, args.seeds)
    ]


def _settings(
    args: argparse.Namespace, options: argparse.Namespace, prompts: list[str], images: list[str | None]
) -> dict[str, Any]:
    """Every argument that decides the numbers, by name; files count by what is in them."""
    return {
        "prompts": f"FILE with SHA-256 {_digest(chr(10).join(prompts).encode())}",
        "image_path": [f"FILE with SHA-256 {_digest(Path(image).read_bytes())}" for image in images if image] or None,
        **{name: getattr(args, name) for name in _SETTINGS},
        **{name: getattr(options, name) for name in _MODEL_OPTIONS},
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def _ranks_together() -> Iterator[tuple[int, int]]:
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


def _load_pipeline(generate: ModuleType, options: argparse.Namespace):
    pipe = generate.load_pipeline(options, generate.initialize_infer_state(options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _measure(
    pipe,
    requests: list[dict[str, Any]],
    work: Work,
    units: list[Unit],
    max_gap: int,
    checkpoints: Checkpoints,
    show_progress: bool,
) -> None:
    from tqdm import tqdm

    from lemica import replay

    num_steps = requests[0]["num_steps"]
    shares = [work.part(unit.part, unit.parts) for unit in units]
    total = sum(share.forwards(num_steps) for share in shares)
    with tqdm(total=total, unit="forward", disable=not show_progress) as progress:
        for unit, share in zip(units, shares, strict=True):
            inputs = replay.prepare(pipe, **requests[unit.sample])
            size = num_steps * replay.recorded_bytes(pipe, inputs) / GIB
            progress.set_description(f"sample {unit.sample + 1} of {len(requests)}, {size:.2g} GiB kept")
            checkpoints.save(unit, replay.measure(pipe, inputs, share, max_gap, progress.update))


def _write_graph(args: argparse.Namespace, checkpoints: Checkpoints, num_samples: int, model: str) -> None:
    """Wait until every rank is done, average the samples in their order, and leave nothing but the graph."""
    missing = sum(checkpoints.errors(sample) is None for sample in range(num_samples))
    if missing:
        print(f"waiting for the other ranks: {missing} of {num_samples} samples are not done")
    settings = dict(
        model=model,
        num_steps=args.num_inference_steps,
        max_gap=args.max_gap,
        reuse=args.reuse,
        forecast=args.forecast,
    )
    graphs = []
    for sample in range(num_samples):
        while (errors := checkpoints.errors(sample)) is None:
            time.sleep(1)
        graphs.append(sample_graph(errors, args.edges, **settings))
    write_graph(merge_graphs(graphs), args.output)
    checkpoints.remove()
    print(f"{args.output}: {num_samples} samples of {model}; next: python -m lemica plan {args.output} --budget 20")
