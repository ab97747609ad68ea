"""The evaluations that the tables come of: their command runs on the demo model, and its rows are found again."""

import pytest
from conftest import REPOSITORY

from demo.evaluation import BUDGETS, CALIBRATIONS, PROMPTS, SEEDS, evaluate, kinds_of, methods_at, results_of
from demo.results import methods_in, read_results
from docs.tables import EVALUATIONS


def test_every_method_is_found_in_what_lemica_evaluate_writes(tmp_path, monkeypatch):
    monkeypatch.setitem(SEEDS, "bf16", (5,))
    document = evaluate("t2v_30_bf16", tmp_path, budgets=[6], prompts=[0])
    assert document["model"]["dtype"] == "bfloat16"
    (name, pair), *others = results_of(document, "t2v_30_bf16", [6]).items()
    assert not others and name.startswith("480p_t2v, ") and name.endswith(", seed 5")
    psnrs = {row["method"]: row["psnr"] for row in document["rows"]}
    names = [
        "noise floor",
        "fewer steps (6)",
        "budget 6",
        "budget 6, balanced",
        *(f"{kind}_6" for kind in kinds_of("t2v_30_bf16")),
    ]
    assert [row["psnr"] for row in pair.values()] == [psnrs[row] for row in names]


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_published_evaluations_are_whole(name):
    made = CALIBRATIONS[name]
    measured = read_results(REPOSITORY / "assets" / "measurements" / f"evaluation_{name}.json")
    assert len(measured) == len(PROMPTS) * len(SEEDS[made.dtype])
    budgets = BUDGETS[made.num_steps]
    keys = [f"{made.num_steps} steps, B = {b}, {method}" for b in budgets for method in methods_at(name, b)]
    assert methods_in(measured) == keys
    assert all(rows.keys() == set(keys) for rows in measured.values())
