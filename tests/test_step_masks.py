"""Step masks: the released ones to the letter, the properties of the derived ones, mask files and their refusals."""

import json
import math
import subprocess
import sys
from argparse import Namespace
from itertools import pairwise

import pytest
from conftest import REPOSITORY

from infer_state import (
    InferState,
    ReuseRule,
    get_infer_state,
    initialize_infer_state,
    is_released,
    parse_budget,
    parse_range,
    read_mask,
    resolve_mask,
    step_mask,
)

RELEASED = {
    25: "0 1 2 3 4 5 6 7 8 9 10 11 12 13 15 17 19 21 24 28 33 39 45 48 49",
    20: "0 1 2 3 4 5 6 7 8 9 10 11 13 15 18 22 28 36 44 49",
    15: "0 1 2 3 4 5 6 8 10 13 17 25 33 41 49",
    10: "0 1 3 5 9 17 25 33 41 49",
}


def computed(mask) -> list[int]:
    return [step for step, runs in enumerate(mask) if runs]


@pytest.mark.parametrize("budget", RELEASED)
def test_released_masks_to_the_letter(budget):
    assert " ".join(map(str, computed(step_mask(budget, 50)))) == RELEASED[budget]
    assert is_released(budget, 50)
    assert not is_released(budget, 51)
    assert not is_released(budget + 1, 50)


@pytest.mark.parametrize("num_steps", range(1, 101))
def test_derived_masks_have_their_budget_interlace_and_leave_no_long_gap(num_steps):
    previous = None
    for budget in range(min(2, num_steps), num_steps + 1):
        steps = computed(step_mask(budget, num_steps))
        assert len(steps) == budget
        assert (steps[0], steps[-1]) == (0, num_steps - 1)
        if budget > 1:
            longest_share = max(8 / 49, 1 / (budget - 1))
            assert max(b - a for a, b in pairwise(steps)) <= math.ceil(longest_share * (num_steps - 1) - 1e-9)
        if previous is not None:
            assert all(steps[k] <= step <= steps[k + 1] for k, step in enumerate(previous))
        previous = steps
    assert step_mask(num_steps, num_steps) == (True,) * num_steps


@pytest.mark.parametrize(("budget", "num_steps"), [(1, 50), (51, 50), (0, 50), (-3, 50), (9, 8), (0, 0), (-1, -1)])
def test_impossible_budgets_are_refused(budget, num_steps):
    with pytest.raises(ValueError, match=f"from 2 to the number of steps, {num_steps}"):
        step_mask(budget, num_steps)


def test_budgets_have_names():
    assert [parse_budget(name) for name in ("slow", "medium", "fast", "ultra", "7", 12)] == [25, 20, 15, 10, 7, 12]


@pytest.mark.parametrize("value", ["0", "1", "-3", "abc", "25.5", "", " ", "²", "1e1", "9" * 5000])
def test_budgets_that_are_no_budgets_are_refused(value):
    with pytest.raises(ValueError, match="whole number from 2"):
        parse_budget(value)


def test_parse_range_reads_ranges_lists_and_mixtures():
    assert parse_range("0-3") == [0, 1, 2, 3]
    assert parse_range("5, 1,5") == [1, 5]
    assert parse_range("0-2,7,4-5") == [0, 1, 2, 4, 5, 7]
    assert parse_range("") == parse_range(None) == []
    with pytest.raises(ValueError, match="like 0-5,9"):
        parse_range("a-b")


def test_without_lemica_every_step_is_computed():
    every_step = (True,) * 5
    assert resolve_mask(None, 5) == (every_step, "no cache")
    assert resolve_mask(InferState(cache_type="lemica", lemica_step=3), 5) == (every_step, "no cache")
    upstreams = InferState(enable_cache=True, cache_type="teacache", lemica_step=3)
    assert resolve_mask(upstreams, 5) == (every_step, "teacache")


def lemica(**fields) -> InferState:
    return InferState(enable_cache=True, cache_type="lemica", **fields)


def test_mask_follows_the_steps_that_really_run(monkeypatch):
    assert resolve_mask(lemica(lemica_step=25), 50) == (step_mask(25, 50), "released")
    assert resolve_mask(lemica(lemica_step=25), 60) == (step_mask(25, 60), "derived")
    assert sum(resolve_mask(lemica(), 50).steps) == 25
    monkeypatch.setenv("LEMICA_STEP", "ultra")
    assert sum(resolve_mask(lemica(), 50).steps) == 10
    with pytest.raises(ValueError, match="number of steps, 8"):
        resolve_mask(lemica(lemica_step=25), 8)


def write_mask(path, **changes) -> str:
    content = {"format": "lemica-mask/1", "model": "m", "num_steps": 6, "budget": 3, "computed_steps": [0, 2, 5]}
    path.write_text(json.dumps(content | {"origin": "test"} | changes))
    return str(path)


def test_mask_file_overrides_the_budget(tmp_path):
    mask, rule, model = read_mask(write_mask(tmp_path / "mask.json", reuse="residual", forecast="hold"))
    assert (rule, model) == (ReuseRule(), "m")
    assert mask == (True, False, True, False, False, True)
    assert resolve_mask(lemica(lemica_step=4, lemica_mask=mask), 6) == (mask, "planned")
    with pytest.raises(ValueError, match="6 steps but the sampler runs 50: pass --num_inference_steps 6"):
        resolve_mask(lemica(lemica_mask=mask), 50)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": "lemica-mask/9"}, "format"),
        ({"num_steps": "6"}, "num_steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 10**27}, "num_steps"),
        ({"computed_steps": "0 2 5"}, "list of whole numbers"),
        ({"computed_steps": [0, 2.0, 5]}, "list of whole numbers"),
        ({"computed_steps": [0, True, 5]}, "list of whole numbers"),
        ({"computed_steps": [2, 3, 5]}, "begin with 0"),
        ({"computed_steps": [0, 2, 3]}, "end with 5"),
        ({"computed_steps": []}, "begin with 0"),
        ({"computed_steps": [0, 2, 6]}, "rise from 0 to 5"),
        ({"computed_steps": [0, 2, 2, 5]}, "rise from 0 to 5"),
        ({"computed_steps": [0, 5, 2]}, "rise from 0 to 5"),
        ({"budget": 4}, "3 steps are computed"),
        ({"reuse": "noise"}, "reuse must be one of residual, output, velocity"),
        ({"forecast": "guess"}, "forecast must be one of hold"),
    ],
)
def test_broken_mask_files_are_refused_by_name(tmp_path, changes, fault):
    path = write_mask(tmp_path / "mask.json", **changes)
    with pytest.raises(ValueError, match=fault) as refusal:
        read_mask(path)
    assert path in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_and_unreadable_mask_files_are_refused(tmp_path):
    (tmp_path / "text.json").write_text("not json")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name, fault in [
        ("deep.json", "not JSON"),
        ("none.json", "No such file"),
        ("text.json", "not JSON"),
        ("list.json", "format"),
    ]:
        with pytest.raises(ValueError, match=fault):
            read_mask(str(tmp_path / name))


def test_state_takes_upstreams_arguments_and_is_remembered(tmp_path):
    arguments = Namespace(
        use_sageattn=True,
        sage_blocks_range="0-2",
        no_cache_block_id="53",
        include_patterns="double_blocks, final_layer",
        cache_type="lemica",
        lemica_step="fast",
        lemica_mask=write_mask(tmp_path / "mask.json"),
        unknown=1,
    )
    state = initialize_infer_state(arguments)
    assert get_infer_state() is state
    assert (state.enable_sageattn, state.sage_blocks_range, state.no_cache_block_id) == (True, [0, 1, 2], [53])
    assert state.include_patterns == ["double_blocks", "final_layer"]
    assert (state.lemica_step, sum(state.lemica_mask), state.total_steps) == (15, 3, 50)


def test_imports_without_torch():
    code = "import sys; sys.modules['torch'] = None; import infer_state; print(sum(infer_state.step_mask(25, 50)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "25"
