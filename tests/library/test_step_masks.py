"""Masks that need no plan: released and derived ones, two rules, what a mask belongs to, broken files, the kit's copy.

test_masks.py has the masks of plans: their weights, and how they are written.
"""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from conftest import REPOSITORY

from lemica.masks import (
    RELEASED_STEPS,
    RULES,
    Mask,
    ReleasedMasks,
    Target,
    computed_steps,
    is_released,
    mask_of,
    read_mask,
    step_mask,
)
from lemica.released import released_models
from scripts.embed_masks import embedded, shared_part

RELEASED = {
    25: "0 1 2 3 4 5 6 7 8 9 10 11 12 13 15 17 19 21 24 28 33 39 45 48 49",
    20: "0 1 2 3 4 5 6 7 8 9 10 11 13 15 18 22 28 36 44 49",
    15: "0 1 2 3 4 5 6 8 10 13 17 25 33 41 49",
    10: "0 1 3 5 9 17 25 33 41 49",
}
MODELS = {name: model.released for name, model in released_models().items()}
STEPS = mask_of([0, 2, 5], 6)
SIGMAS = (1.0, 0.9, 0.75, 0.6, 0.4, 0.25, 0.0)
TARGET = Target("480p_t2v", "0123456789abcdef", SIGMAS, "bfloat16")


# Steps


@pytest.mark.parametrize("budget", RELEASED)
def test_released_masks_to_the_letter(budget):
    assert " ".join(map(str, computed_steps(step_mask(budget, 50)))) == RELEASED[budget]
    assert is_released(budget, 50)
    assert not is_released(budget, 51)
    assert not is_released(budget + 1, 50)


def test_the_kits_table_is_the_libraries():
    assert MODELS["HunyuanVideo-1.5"] == ReleasedMasks(50, RELEASED_STEPS)
    assert MODELS["HunyuanVideo-1.5"].max_gap == 8


@pytest.mark.parametrize("released", MODELS.values(), ids=MODELS)
def test_every_models_released_masks_to_the_letter(released):
    for budget, steps in released.steps.items():
        assert computed_steps(step_mask(budget, released.num_steps, released)) == steps
        assert is_released(budget, released.num_steps, released)
        assert not is_released(budget, released.num_steps + 1, released)
    assert not is_released(2, released.num_steps, released)


def masks_of_all_budgets(num_steps: int, *released: ReleasedMasks) -> list[tuple[int, ...]]:
    budgets = range(min(2, num_steps), num_steps + 1)
    masks = [computed_steps(step_mask(budget, num_steps, *released)) for budget in budgets]
    assert [len(steps) for steps in masks] == list(budgets)
    assert all((steps[0], steps[-1]) == (0, num_steps - 1) for steps in masks)
    assert masks[-1] == tuple(range(num_steps))
    return masks


def interlace(sparse: tuple[int, ...], dense: tuple[int, ...]) -> bool:
    """No prefix and no suffix of the steps has more computed ones in the mask of the smaller budget."""
    more = len(dense) - len(sparse)
    return all(dense[k] <= step <= dense[k + more] for k, step in enumerate(sparse))


def has_long_gap(steps: tuple[int, ...], longest_share: float) -> bool:
    longest = max(longest_share, 1 / (len(steps) - 1))
    return max(b - a for a, b in pairwise(steps)) > math.ceil(longest * (steps[-1]) - 1e-9)


@pytest.mark.parametrize("num_steps", range(1, 101))
def test_derived_masks_have_their_budget_interlace_and_leave_no_long_gap(num_steps):
    masks = masks_of_all_budgets(num_steps)
    assert all(interlace(sparse, dense) for sparse, dense in pairwise(masks))
    assert not any(has_long_gap(steps, 8 / 49) for steps in masks if len(steps) > 1)


def released_ones_interlace(released: ReleasedMasks) -> bool:
    masks = [steps for _, steps in sorted(released.steps.items())]
    return all(interlace(sparse, dense) for sparse, dense in pairwise(masks))


def test_all_released_masks_interlace_but_those_of_flux_2():
    assert [name for name, released in MODELS.items() if not released_ones_interlace(released)] == ["FLUX.2"]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8, 10, 13, 20, 28, 40, 50, 57])
@pytest.mark.parametrize("released", MODELS.values(), ids=MODELS)
def test_masks_derived_from_any_models_interlace_where_its_own_do_and_leave_no_long_gap(released, num_steps):
    masks = masks_of_all_budgets(num_steps, released)
    longest_share = released.max_gap / (released.num_steps - 1)
    assert not any(has_long_gap(steps, longest_share) for steps in masks if len(steps) > 1)
    if released_ones_interlace(released):
        assert all(interlace(sparse, dense) for sparse, dense in pairwise(masks))


@pytest.mark.parametrize(("budget", "num_steps"), [(1, 50), (51, 50), (0, 50), (-3, 50), (9, 8), (0, 0), (-1, -1)])
def test_impossible_budgets_are_refused(budget, num_steps):
    with pytest.raises(ValueError, match=f"from 2 to the number of steps, {num_steps}"):
        step_mask(budget, num_steps)


# Rules


def test_hold_takes_the_newest_tensor_as_it_is():
    assert RULES["hold"](STEPS, SIGMAS) == ((), (1.0,), (), (1.0,), (1.0,), ())


def test_damped_goes_half_of_the_line_through_the_last_two_kept_tensors_over_the_noise_level():
    rows = RULES["damped"](STEPS, SIGMAS)
    assert [len(row) for row in rows] == [0, 1, 0, 2, 2, 0]
    assert rows[1] == (1.0,)
    for step in (3, 4):
        slope = (SIGMAS[step] - SIGMAS[2]) / (SIGMAS[2] - SIGMAS[0])
        assert rows[step] == pytest.approx((-slope / 2, 1 + slope / 2))


def test_weights_follow_from_the_rule_unless_the_mask_has_its_own():
    mask = Mask(STEPS, rule="damped")
    weighted = mask.with_weights(SIGMAS)
    assert weighted == replace(mask, weights=RULES["damped"](STEPS, SIGMAS))
    assert weighted.with_weights(SIGMAS[::-1]) is weighted


@pytest.mark.parametrize(
    ("mask", "history"),
    [
        (Mask(STEPS), 1),
        (Mask(STEPS, rule="damped"), 2),
        (Mask(STEPS, weights=((), (1,), (), (-4, 4), (1,), ())), 2),
        (Mask((True,) * 3, weights=((),) * 3), 0),
    ],
)
def test_a_mask_knows_how_many_tensors_its_longest_row_reads(mask, history):
    assert mask.history == history


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"steps": ()}, "must compute the first and the last step"),
        ({"steps": (False, True)}, "must compute the first and the last step"),
        ({"steps": (True, False)}, "must compute the first and the last step"),
        ({"kept": "output"}, '"kept" must be one of residual, velocity'),
        ({"rule": "fitted"}, "rule 'fitted' needs weights"),
        ({"weights": ((), (1,), (), (1,), (1,))}, '"weights" must have a row for each of 6 steps, got 5'),
        ({"weights": ((1,), (1,), (), (1,), (1,), ())}, '"weights" of step 0 must have a number for each'),
        ({"weights": ((), (), (), (1,), (1,), ())}, '"weights" of step 1 must have a number for each'),
        ({"weights": ((), (1, 1), (), (1,), (1,), ())}, '"weights" of step 1 must have a number for each'),
        ({"weights": ((), (1,), (), (1,), (1,), (1,))}, '"weights" of step 5 must have a number for each'),
        ({"weights": ((), (1,), (), (1,), (-4, 4.1), ())}, '"weights" of step 4 must be numbers of sum 8 at most'),
        ({"weights": ((), (1,), (), (math.nan,), (1,), ())}, '"weights" of step 3 must be numbers'),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_in_one_line(changes, fault):
    with pytest.raises(ValueError, match=fault) as refusal:
        Mask(**{"steps": STEPS} | changes)
    assert "\n" not in str(refusal.value)


# What a mask belongs to


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({}, None),
        ({"model": "720p_t2v"}, "model 480p_t2v, this run has 720p_t2v"),
        ({"config": "f" * 16}, f"transformer/config.json of digest 0123456789abcdef, this run has {'f' * 16}"),
        ({"dtype": "float32"}, "dtype bfloat16, this run has float32"),
        ({"sigmas": SIGMAS[1:]}, "other noise levels"),
        ({"sigmas": (*SIGMAS[:3], 0.61, *SIGMAS[4:])}, "other noise levels"),
        ({"sigmas": tuple(sigma + 1e-6 for sigma in SIGMAS)}, None),
        (dict.fromkeys(("model", "config", "sigmas", "dtype")), None),
    ],
)
def test_a_target_says_what_another_run_has_that_it_was_not_made_for(changes, difference):
    run = replace(TARGET, **changes)
    found = TARGET.difference(run)
    assert found is None if difference is None else difference in found
    assert (run.difference(TARGET) is None) == (difference is None)
    assert Target().difference(run) is None


# Files


def written(path, version=2, **changes) -> str:
    content = {
        1: {"model": "m", "origin": "test"},
        2: {"kept": "velocity", "rule": "hold", "weights": [[], [1], [], [1], [1], []], "made_by": "test"},
    }[version]
    content |= {"format": f"lemica-mask/{version}", "num_steps": 6, "budget": 3, "computed_steps": [0, 2, 5]} | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "left out"}))
    return str(path)


def test_version_2_brings_what_is_kept_the_weights_and_what_it_belongs_to(tmp_path):
    target = {"model": "m", "config": "c", "sigmas": list(SIGMAS), "dtype": "float32", "later": 1}
    mask = read_mask(written(tmp_path / "mask.json", target=target, later=1))
    rows = RULES["hold"](STEPS)
    assert mask == Mask(STEPS, "velocity", rows, made_by="test", target=Target("m", "c", SIGMAS, "float32"))
    assert mask.origin == "planned"
    assert read_mask(written(tmp_path / "mask.json")).target == Target()


def test_version_1_without_a_rule_means_residual_and_hold(tmp_path):
    mask = read_mask(written(tmp_path / "mask.json", version=1))
    assert mask == Mask(STEPS, "residual", None, "hold", made_by="test", target=Target("m"))


@pytest.mark.parametrize("version", [1, 2])
def test_a_byte_order_mark_is_no_fault(tmp_path, version):
    path = tmp_path / "mask.json"
    written(path, version)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_mask(path).steps == STEPS


NO_LIST_OF_LISTS = '"weights" must be a list with a list of numbers per step'
NO_NUMBER_FOR_EACH = '"weights" of step 1 must have a number for each kept tensor it reads'
FAULTS = [
    ({"format": "lemica-mask/9"}, '"format" is not "lemica-mask/2"'),
    ({"format": ["lemica-mask/2"]}, '"format" is not'),
    ({"num_steps": "6"}, "num_steps"),
    ({"num_steps": True}, "num_steps"),
    ({"num_steps": 0}, "num_steps"),
    ({"num_steps": 10**27}, "num_steps"),
    ({"computed_steps": "0 2 5"}, "list of whole numbers"),
    ({"computed_steps": "left out"}, "list of whole numbers"),
    ({"computed_steps": [0, 2.0, 5]}, "list of whole numbers"),
    ({"computed_steps": [0, True, 5]}, "list of whole numbers"),
    ({"computed_steps": [2, 3, 5]}, "begin with 0"),
    ({"computed_steps": [0, 2, 3]}, "end with 5"),
    ({"computed_steps": []}, "begin with 0"),
    ({"computed_steps": [0, 2, 6]}, "rise from 0 to 5"),
    ({"computed_steps": [0, 2, 2, 5]}, "rise from 0 to 5"),
    ({"computed_steps": [0, 5, 2]}, "rise from 0 to 5"),
    ({"budget": 4}, "3 steps are computed"),
]
FAULTS_OF_VERSION_1 = [
    ({"reuse": "noise"}, "it reuses 'noise', which is not supported any more: plan the mask again"),
    ({"reuse": "output"}, "it reuses 'output', which is not supported any more: plan the mask again"),
    ({"forecast": ["hold"]}, "has no weights in it"),
    ({"forecast": "fitted"}, NO_LIST_OF_LISTS),
]
FAULTS_OF_VERSION_2 = [
    ({"kept": "output"}, '"kept" must be one of residual, velocity'),
    ({"kept": "left out"}, '"kept" must be one of residual, velocity'),
    ({"weights": "left out"}, NO_LIST_OF_LISTS),
    ({"weights": [[], 1, [], [1], [1], []]}, NO_LIST_OF_LISTS),
    ({"weights": [[], [None], [], [1], [1], []]}, NO_LIST_OF_LISTS),
    ({"weights": [[], [1], [], [1], [1]]}, '"weights" must have a row for each of 6 steps, got 5'),
    ({"weights": [[], [1, 1], [], [1], [1], []]}, NO_NUMBER_FOR_EACH),
    ({"weights": [[], [], [], [1], [1], []]}, NO_NUMBER_FOR_EACH),
    ({"weights": [[], [9], [], [1], [1], []]}, '"weights" of step 1 must be numbers of sum 8 at most'),
    ({"weights": [[], [math.nan], [], [1], [1], []]}, '"weights" of step 1 must be numbers'),
    ({"target": 1}, '"target" must hold "model", "config", "sigmas" and "dtype"'),
    ({"target": {"sigmas": 5}}, '"target" must hold'),
    ({"target": {"sigmas": ["x"]}}, '"target" must hold'),
    ({"target": {"sigmas": [10**400]}}, '"target" must hold'),
]
CASES = [(version, *fault) for version in (1, 2) for fault in FAULTS]
CASES += [(1, *fault) for fault in FAULTS_OF_VERSION_1] + [(2, *fault) for fault in FAULTS_OF_VERSION_2]


@pytest.mark.parametrize(("version", "changes", "fault"), CASES)
def test_broken_mask_files_are_refused_by_name_in_one_line(tmp_path, version, changes, fault):
    path = written(tmp_path / "mask.json", version, **changes)
    with pytest.raises(ValueError, match=re.escape(fault)) as refusal:
        read_mask(path)
    assert path in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "No such file"),
        (b"not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", '"format" is not'),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=["missing", "text", "no text", "list", "deep"],
)
def test_missing_and_unreadable_mask_files_are_refused(tmp_path, content, fault):
    if content is not None:
        (tmp_path / "mask.json").write_bytes(content)
    with pytest.raises(ValueError, match=fault) as refusal:
        read_mask(tmp_path / "mask.json")
    assert str(tmp_path / "mask.json") in str(refusal.value)
    assert "\n" not in str(refusal.value)


# The kit's copy


def test_the_kit_has_the_shared_part_word_for_word():
    kit = (REPOSITORY / "infer_state.py").read_text(encoding="utf-8")
    library = (REPOSITORY / "lemica" / "masks.py").read_text(encoding="utf-8")
    assert embedded(kit, library) == kit, "type: python scripts/embed_masks.py"
    assert "def read_mask" in shared_part(kit)
    assert embedded(kit, library.replace("def read_mask", "def read_a_mask")) != kit
