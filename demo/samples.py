"""How many samples a calibration takes: masks planned on one, two, four and eight, on tuning pairs in bfloat16.

    python -m demo.samples assets/measurements/samples.json

The weights are those of the same samples. "the worst of 8" plans on the largest error of each edge instead of the mean:
a guard for the worst video.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hyvideo.pipelines.hunyuan_video_pipeline import HunyuanVideo_1_5_Pipeline, initialize_sequence_parallel

from demo.arithmetic import arithmetic
from demo.attention import fused_attention
from demo.calibrations import CHECKPOINT, Calibration, calibrate
from demo.methods import Method
from demo.quality import measure
from demo.results import write_results
from lemica.planning.graph import ErrorGraph, merge_graphs, read_graph
from lemica.planning.plan import plan

PAIRS = range(100, 112)
BUDGETS = (25, 15, 10)
SAMPLES = 8
# Twice, where there are others.
SETS = {
    "1 sample": [0],
    "another one": [5],
    "2 samples": [0, 1],
    "2 others": [2, 3],
    "4 samples": range(4),
    "4 others": range(4, 8),
    "8 samples": range(8),
}


def single_graphs() -> list[ErrorGraph]:
    """A graph of each sample."""
    graphs = []
    with tempfile.TemporaryDirectory() as folder:
        for sample in range(SAMPLES):
            path = Path(folder, f"{sample}.json")
            calibrate(Calibration("t2v", 50, "bf16", samples=1, first_sample=sample), path)
            graphs.append(read_graph(path))
    return graphs


def worst(graphs: list[ErrorGraph]) -> ErrorGraph:
    """The mean graph with the largest error of each edge."""
    return replace(merge_graphs(graphs), errors=np.max([graph.errors for graph in graphs], axis=0))


def methods() -> list[Method]:
    """A mask per set of samples and budget."""
    single = single_graphs()
    graphs = {name: merge_graphs([single[sample] for sample in chosen]) for name, chosen in SETS.items()}
    graphs["the worst of 8"] = worst(single)
    return [Method(name, plan(graph, budget)) for name, graph in graphs.items() for budget in BUDGETS]


def main(output: Path) -> None:
    """Calibrate, plan and measure."""
    torch.set_num_threads(1)
    initialize_sequence_parallel()
    chosen = methods()
    with arithmetic("bf16"):
        pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(CHECKPOINT), "480p_t2v")
    pipe.set_progress_bar_config(disable=True)
    with fused_attention(), torch.no_grad():
        found = measure(pipe, PAIRS, chosen)
    write_results({f"480p_t2v {pair}": rows for pair, rows in found.items()}, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
