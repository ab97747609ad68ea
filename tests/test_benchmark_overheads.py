"""What the kit spares a run, counted beside upstream; and that a reused step keeps the host waiting for nothing."""

import pytest
from benchmark_overheads import MODELS, compare, print_table
from demo_attention import fused_attention
from test_against_upstream import REQUEST, request_for


@pytest.mark.parametrize(
    ("version", "prompt", "spared"),
    [
        ("480p_t2v", 'a star with "hi" on it', {"VAE", "vision encoder"}),
        ("480p_t2v", "a star", {"VAE", "vision encoder", "glyph encoder"}),
        ("480p_i2v", "a star", {"glyph encoder"}),
    ],
)
def test_counts_beside_upstream(load_pipeline, reference_image, capsys, version, prompt, spared):
    request = request_for(version, reference_image) | {"prompt": prompt}
    with fused_attention():
        figures = compare(load_pipeline(version), request, budget=2, repeats=1)
    upstream, kit, cached = figures.values()
    moves = {name: (upstream[f"moves of the {name}"], kit[f"moves of the {name}"]) for name in MODELS.values()}
    assert {name for name, (theirs, ours) in moves.items() if ours == theirs - 2} == spared
    assert all(ours in (theirs, theirs - 2) for theirs, ours in moves.values())

    steps = REQUEST["num_inference_steps"]
    assert (cached["block forwards"], cached["text path runs"]) == (kit["block forwards"] * 2 // steps, 2)
    # The sampler looks up its first timestep once, in two reads; all others are the computed steps' own.
    lookup = 2
    assert upstream["host reads in the loop"] == kit["host reads in the loop"]
    assert cached["host reads in the loop"] - lookup == (kit["host reads in the loop"] - lookup) * 2 // steps

    print_table(version, figures)
    assert f"| moves in all | {upstream['moves in all']} | {kit['moves in all']} |" in capsys.readouterr().out
