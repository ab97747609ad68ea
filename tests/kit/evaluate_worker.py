"""Run by torchrun from test_evaluate_kit.py: two ranks evaluate, each samples of its own, and then one sample together.

usage: evaluate_worker.py FOLDER PORT PROMPTS ARGUMENT ...

PROMPTS is the file for the second evaluation. Each rank leaves FOLDER/RANK.json: the prompts of the videos that it
made, apart and together.
"""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch

from demo.attention import fused_attention
from lemica.cli.main import main
from lemica.quality.hunyuan import KitVideos


@contextmanager
def noting():
    """Gives the prompts of the videos that are made inside."""
    make, prompts = KitVideos.make, set()

    def noted(model, sample, method):
        prompts.add(sample.prompt)
        return make(model, sample, method)

    with patch.object(KitVideos, "make", noted):
        yield prompts


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, port, prompts, *arguments = sys.argv[1:]
    # The attention of the other tests, which ranks cannot share.
    with fused_attention(), noting() as apart:
        main([*arguments, "--output", f"{folder}/apart"])
    # Ranks that have parted cannot meet again where torchrun has brought them together: as if it had been run anew.
    os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    with noting() as together:
        main([*arguments, "--prompts", prompts, "--output", f"{folder}/together", "--sp_size", "2"])
    made = {"apart": sorted(apart), "together": sorted(together)}
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(made), encoding="utf-8")
