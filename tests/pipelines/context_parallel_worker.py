"""Run by torchrun from test_together.py: a denoiser on two ranks, with and without reuse; each rank saves what it saw.

usage: context_parallel_worker.py OUTPUT
"""

import os
import sys
from dataclasses import asdict

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import diffusers
import torch
from diffusers import DiffusionPipeline
from tiny import make, run
from together import applied_and_enabled, counted_blocks, run_noting
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lemica
from lemica.reuse.identity import target_of


def split_context(pipe: DiffusionPipeline) -> None:
    """Each rank has half of the tokens, and half of the heads within attention."""
    pipe.transformer.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=2))


def shard_weights(pipe: DiffusionPipeline) -> None:
    """Each rank has half of the weights, and computes with all: FSDP makes a class of its own of the denoiser's."""
    fully_shard(pipe.transformer, mesh=init_device_mesh("cpu", (2,)))


WAYS = {"context parallel": split_context, "sharded weights": shard_weights}


def seen(name: str, apply, first: bool) -> dict:
    tiny = make(name)
    applied_and_enabled(tiny.pipe, apply, first)
    blocks = counted_blocks(tiny)
    reused, blocks_ran = run_noting(tiny, blocks)
    result = {"reused": reused, "again": run(tiny), "blocks ran": blocks_ran, "model": asdict(target_of(tiny.pipe))}
    lemica.disable(tiny.pipe)
    return result | {"disabled": run(tiny)}


def main(output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # Diffusers asks for an accelerator, and how many there are.
    torch._C._get_accelerator = lambda *_: torch.device("cpu")
    torch.accelerator.device_count = lambda: 1
    ways = {way: apply for way, apply in WAYS.items() if way in available()}
    results = {
        f"{name}, {way}, {'before' if first else 'after'}": seen(name, apply, first)
        for name in ("flux", "wan_unipc")
        for way, apply in ways.items()
        for first in (True, False)
    }
    torch.save(results, f"{output}.{os.environ['RANK']}")
    dist.barrier()
    dist.destroy_process_group()


def available() -> set[str]:
    return {"sharded weights"} | ({"context parallel"} if hasattr(diffusers, "ContextParallelConfig") else set())


if __name__ == "__main__":
    main(*sys.argv[1:])
