"""The evaluation that README's table comes of: its command runs on the demo model, and its rows are found again."""

from demo import evaluation
from demo.evaluation import BUDGETS, PROMPTS, SEEDS, evaluate, results_of
from demo.results import methods_in, read_results
from docs.tables import MEASUREMENTS

METHODS = [
    *("noise floor", "fewer steps", "released, residual + hold", "balanced, velocity + damped"),
    *("minimax, velocity + hold", "minimax, velocity + fitted"),
]


def test_every_method_is_found_in_what_lemica_evaluate_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SEEDS", (5,))
    document = evaluate("t2v_30_bf16", tmp_path, budgets=[6], prompts=[0])
    assert document["model"]["dtype"] == "bfloat16"
    (name, pair), *others = results_of(document, "t2v", 30, [6]).items()
    assert not others and name.startswith("480p_t2v, ") and name.endswith(", seed 5")
    assert list(pair) == [f"30 steps, B = 6, {method}" for method in METHODS]
    psnrs = {row["method"]: row["psnr"] for row in document["rows"]}
    names = ["noise floor", "fewer steps (6)", "budget 6", "budget 6, balanced", "hold_6", "fitted_6"]
    assert [row["psnr"] for row in pair.values()] == [psnrs[row] for row in names]


def test_the_published_evaluation_is_whole():
    measured = read_results(MEASUREMENTS / "evaluation_t2v_50_bf16.json")
    assert len(measured) == len(PROMPTS) * len(SEEDS)
    keys = {f"50 steps, B = {budget}, {method}" for budget in BUDGETS[50] for method in METHODS}
    assert set(methods_in(measured)) == keys
    assert all(rows.keys() == keys for rows in measured.values())
