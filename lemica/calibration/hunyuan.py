"""HunyuanVideo-1.5 with the kit: which model to calibrate or evaluate, how it is loaded, what denoises one sample.

This runs in the folder of a HunyuanVideo-1.5 tree with the kit in it. hyvideo and torch are imported when they are
needed, so that the options can be listed without them.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lemica.calibration.samples import Sample
from lemica.errors import Refused

if TYPE_CHECKING:
    from lemica.calibration.locks import Exchange
    from lemica.calibration.replays import Sampling
    from lemica.masks import Target

NEEDS_A_TREE = (
    "{command} runs in a HunyuanVideo-1.5 tree with the kit in it ({found}): type KIT/scripts/install.sh TREE && "
    "cd TREE, then lemica {command} again"
)


def boolean(value: str) -> bool:
    """true/1/yes/on and false/0/no/off, in any case."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if value.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, got {value!r}")
    return words[value.lower()]


def aspect_ratio(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,4}:[1-9]\d{0,4}", value):
        raise argparse.ArgumentTypeError(f"expected two whole numbers like 16:9, got {value!r}")
    return value


def positive(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {value!r}")
    return number


def add_switch(group, flag: str, text: str, default: bool | None = False) -> None:
    group.add_argument(flag, type=boolean, nargs="?", const=True, default=default, metavar="BOOL", help=text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name the model and the video, and those that say where its weights are kept."""
    group = parser.add_argument_group("HunyuanVideo-1.5 with the kit: model and video, as in generate.py")
    group.add_argument("--model_path", metavar="FOLDER", help="checkpoint, or a Hub repository owner/name")
    group.add_argument("--resolution", choices=["480p", "720p"], help="of model and video")
    group.add_argument("--flow_shift", type=positive, metavar="X", help="shift of the sampler (default: the model's)")
    group.add_argument("--aspect_ratio", type=aspect_ratio, default="16:9", metavar="W:H", help="(default: 16:9)")
    group.add_argument("--video_length", type=int, default=121, metavar="FRAMES", help="4n + 1 (default: 121)")
    group.add_argument("--negative_prompt", default="", metavar="TEXT", help="what the videos shall not show")
    group.add_argument(
        "--checkpoint_path", metavar="FOLDER", help="distributed checkpoint to load into the transformer"
    )
    group.add_argument("--lora_path", metavar="FOLDER", help="LoRA adapter to load into the transformer")
    add_switch(group, "--cfg_distilled", "the CFG-distilled model (default: false)")
    add_switch(group, "--sparse_attn", "sparse attention, H-series GPUs, implies CFG-distilled (default: false)")
    add_switch(group, "--use_sageattn", "SageAttention (default: false)")
    add_switch(group, "--enable_torch_compile", "compile the transformer blocks (default: false)")
    add_switch(group, "--use_fp8_gemm", "fp8 matrix products (default: false)")
    group.add_argument("--quant_type", default="fp8-per-token-sgl", metavar="TYPE", help="(default: fp8-per-token-sgl)")
    group.add_argument("--include_patterns", default="double_blocks", metavar="NAMES", help="modules in fp8")
    memory = parser.add_argument_group("its memory, as in generate.py")
    add_switch(memory, "--group_offloading", "stream the transformer block by block (default: below 60 GB)", None)
    add_switch(memory, "--overlap_group_offloading", "overlap streaming with computing (default: true)", True)


# Of a checkpoint, beside that of a transformer.
SHARED_CONFIGS = ("vae/config.json", "scheduler/scheduler_config.json", "text_encoder/llm/config.json")
# Options that change where weights are, and nothing that is measured.
MEMORY_OPTIONS = ("offloading", "group_offloading", "overlap_group_offloading")


def import_kit(command: str = "calibrate"):
    """The kit's pipeline module, from the current folder if that is a tree; raises Refused where there is none."""
    if Path("hyvideo").is_dir():
        sys.path.insert(0, os.getcwd())
    try:
        from hyvideo.pipelines import hunyuan_video_pipeline
    except ModuleNotFoundError as error:
        raise Refused(NEEDS_A_TREE.format(command=command, found=error)) from error
    if not hasattr(hunyuan_video_pipeline, "StepCache"):
        raise Refused(NEEDS_A_TREE.format(command=command, found="this one has upstream's pipeline"))
    return hunyuan_video_pipeline


class HunyuanVideo:
    """The model that the options name, loaded when the first sample is prepared.

    Args:
        options: what ``add_model_arguments`` parsed.
        num_steps: denoising steps.
        with_image: whether samples have a first frame, which decides the model.
        command: what needs it, for refusals.

    Raises Refused, before anything is loaded, where there is no kit or no such model.
    """

    def __init__(self, options: argparse.Namespace, num_steps: int, with_image: bool, command: str = "calibrate"):
        self.kit, self.options, self.num_steps = import_kit(command), options, num_steps
        self.version = self.kit.HunyuanVideo_1_5_Pipeline.get_transformer_version(
            options.resolution,
            "i2v" if with_image else "t2v",
            cfg_distilled=options.cfg_distilled,
            sparse_attn=options.sparse_attn,
        )
        self._check()
        self._pipeline = None

    def _check(self) -> None:
        folder = Path(self.options.model_path)
        if folder.is_dir() and not (folder / "transformer" / self.version / "config.json").is_file():
            raise Refused(f"--model_path {folder} has no transformer/{self.version}: choose flags of a model it has")
        missing = [name for name in SHARED_CONFIGS if folder.is_dir() and not (folder / name).is_file()]
        if missing:
            raise Refused(f"--model_path {folder} is incomplete, missing: {', '.join(missing)}: download these, too")
        if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.options.model_path):
            raise Refused(f"--model_path {folder} is not a folder: give the folder of the checkpoint")
        if self.options.group_offloading and not self.options.offloading:
            raise Refused("--group_offloading true needs --offloading true")
        if self.options.group_offloading and self.kit.default_device().type == "cpu":
            raise Refused("--group_offloading true needs a GPU: leave it out on this machine")

    @property
    def pipeline(self):
        if self._pipeline is None:
            from hyvideo.commons.infer_state import initialize_infer_state

            o = self.options
            self._pipeline = self.kit.HunyuanVideo_1_5_Pipeline.load(
                o.model_path,
                self.version,
                initialize_infer_state(o),
                dtype={"bf16": self.kit.torch.bfloat16, "fp32": self.kit.torch.float32}[o.dtype],
                checkpoint_path=o.checkpoint_path,
                lora_path=o.lora_path,
                **{name: getattr(o, name) for name in MEMORY_OPTIONS},
            )
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def prepare(self, sample: Sample) -> "tuple[Sampling, Target]":
        """What denoises one sample, its texts and image encoded, and what it belongs to.

        Raises Refused if the sampler does not take the number of steps that was asked for.
        """
        settings = self.settings_of(sample, self.num_steps)
        if settings.mask.num_steps != self.num_steps:
            raise Refused(f"the sampler takes {settings.mask.num_steps} steps where {self.num_steps} were asked for")
        return prepared_run(self.pipeline, settings), self.pipeline.target(settings.scheduler)

    def settings_of(self, sample: Sample, num_steps: int):
        """The kit's settings of one sample with so many steps; nothing is encoded yet."""
        return self.pipeline.resolve_settings(
            prompt=sample.prompt,
            negative_prompt=self.options.negative_prompt,
            reference_image=sample.image_path,
            aspect_ratio=self.options.aspect_ratio,
            video_length=self.options.video_length,
            prompt_rewrite=False,
            num_inference_steps=num_steps,
            guidance_scale=None,
            embedded_guidance_scale=None,
            flow_shift=self.options.flow_shift,
            seed=sample.seed,
            generator=None,
            options={},
        )

    @property
    def target(self) -> "Target":
        """What a mask must belong to, known before weights load; of a Hub repository without its config."""
        from hyvideo.commons.infer_state import Target, changed_model_name, config_digest

        o, kit, pipeline = self.options, self.kit, self.kit.HunyuanVideo_1_5_Pipeline
        shift = kit.PIPELINE_CONFIGS[self.version]["flow_shift"] if o.flow_shift is None else o.flow_shift
        scheduler = pipeline._create_scheduler(shift)
        scheduler.set_timesteps(self.num_steps)
        return Target(
            model=changed_model_name(self.version, o.checkpoint_path, o.lora_path),
            config=config_digest(os.path.join(o.model_path, "transformer", self.version)),
            sigmas=tuple(scheduler.sigmas.double().tolist()),
            dtype=str(pipeline.dtype_on(kit.default_device())).removeprefix("torch."),
        )

    def on_device(self) -> AbstractContextManager[None]:
        """Keep an offloaded transformer on the device between replays: moving it takes longer than most of them."""
        return self.pipeline.on_device(self.pipeline.transformer)

    @contextmanager
    def ranks_together(self, sp_size: int = 1) -> Iterator[tuple[int, int, "Exchange"]]:
        """This rank, the number of ranks, and how they exchange values; all ranks leave together.

        Where `sp_size` ranks make a video together they stay connected.
        """
        from torch import distributed as dist

        def exchange(value):
            values = [None] * dist.get_world_size()
            dist.all_gather_object(values, value)
            return values

        joined_before = dist.is_initialized()
        self.kit.initialize_sequence_parallel(sp=sp_size)
        yield dist.get_rank(), dist.get_world_size(), exchange
        dist.barrier()
        if sp_size == 1 and not joined_before:
            dist.destroy_process_group()


def prepared_run(pipeline, settings) -> "Sampling":
    """The denoising of one request; encodes text and image."""
    import torch

    from lemica.calibration.replays import Sampling

    with torch.no_grad():
        inputs = pipeline.prepare(settings)
    return Sampling(lambda: pipeline.denoise(inputs), [pipeline.transformer], inputs.scheduler, timesteps_are_set=True)
