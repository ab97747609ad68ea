"""Masks and their files: written and read, weights and their refusals, spacings, which steps keep a tensor."""

import itertools
import json
import math
import os
from itertools import pairwise

import numpy as np
import pytest
from calibrated import NUM_STEPS, TARGET, calibrated_graph

from lemica.masks import (
    Mask,
    balanced_mask,
    computed_steps,
    damped,
    kept_steps,
    mask_of,
    read_mask,
    strip,
    uniform_mask,
    write_mask,
)
from lemica.planning.graph import read_graph, write_graph
from lemica.planning.plan import with_forecast

STEPS = mask_of([0, 2, 3, 5, 8], NUM_STEPS)


def fitted_mask(path) -> Mask:
    """A mask that has been written to `path`."""
    mask = with_forecast(STEPS, calibrated_graph(), history=4, made_by='by hand, "four"')
    write_mask(mask, path)
    return mask


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_mask_is_read_as_it_was_written(tmp_path):
    mask = fitted_mask(tmp_path / "new" / "mask.json")
    assert read_mask(tmp_path / "new" / "mask.json") == mask
    assert (mask.budget, mask.num_steps, mask.history) == (5, NUM_STEPS, 4)
    assert os.listdir(tmp_path / "new") == ["mask.json"]


def test_the_mask_file_is_the_documented_format(tmp_path):
    write_mask(Mask((True, False, True), "velocity", ((), (1.0,), ()), made_by="by hand"), tmp_path / "mask.json")
    assert json.loads((tmp_path / "mask.json").read_text()) == {
        "format": "lemica-mask/2",
        "num_steps": 3,
        "budget": 2,
        "computed_steps": [0, 2],
        "kept": "velocity",
        "rule": "hold",
        "weights": [[], [1.0], []],
        "made_by": "by hand",
        "target": {"model": None, "config": None, "sigmas": None, "dtype": None},
    }


@pytest.mark.parametrize("weights", [None, [], [[]] * NUM_STEPS, [[]] + [["x"]] * (NUM_STEPS - 1), "none", 3])
def test_a_mask_file_whose_weights_do_not_fit_is_refused(tmp_path, weights):
    fitted_mask(tmp_path / "mask.json")
    with pytest.raises(ValueError, match=r'mask\.json cannot be used: "weights" .* plan it again$'):
        read_mask(changed(tmp_path / "mask.json", weights=weights))


@pytest.mark.parametrize("factor", [9, math.nan, math.inf, 10**400])
def test_weights_that_are_too_large_are_refused(tmp_path, factor):
    mask = fitted_mask(tmp_path / "mask.json")
    weights = [[factor if weight == 1 else weight for weight in row] for row in mask.weights]
    with pytest.raises(ValueError, match=r"mask\.json cannot be used"):
        read_mask(changed(tmp_path / "mask.json", weights=weights))


@pytest.mark.parametrize("old_name", ["hold", "damped-sigma", "fitted"])
def test_a_file_of_version_1_is_read(tmp_path, old_name):
    mask = fitted_mask(tmp_path / "fitted.json")
    old = {"format": "lemica-mask/1", "model": "480p_t2v", "num_steps": NUM_STEPS, "computed_steps": [0, 2, 3, 5, 8]}
    old |= {"origin": "planned", "reuse": "velocity", "forecast": old_name, "weights": mask.weights}
    (tmp_path / "mask.json").write_text(json.dumps(old))
    read = read_mask(tmp_path / "mask.json").with_weights(TARGET.sigmas)
    assert (read.steps, read.kept, read.target.model) == (STEPS, "velocity", "480p_t2v")
    known = Mask(STEPS, "velocity", rule=read.rule if old_name != "fitted" else "hold").with_weights(TARGET.sigmas)
    assert read.weights == (mask.weights if old_name == "fitted" else known.weights)


def test_a_file_of_version_1_whose_forecast_is_gone_is_refused(tmp_path):
    old = {"format": "lemica-mask/1", "num_steps": 3, "computed_steps": [0, 2], "forecast": "quadratic-step"}
    (tmp_path / "mask.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="forecast 'quadratic-step' has no weights in it: plan the mask again"):
        read_mask(tmp_path / "mask.json")


@pytest.mark.parametrize("history", [1, 2, 3])
def test_a_tensor_is_kept_exactly_when_some_reused_step_will_read_it(history):
    for tail in itertools.product([True, False], repeat=6):
        steps = (True, *tail, True)
        seen = [[k for k in range(step) if steps[k]][-history:] for step in range(len(steps))]
        rows = tuple(() if steps[step] else (1 / len(seen[step]),) * len(seen[step]) for step in range(len(steps)))
        read = {k for step in range(len(steps)) if not steps[step] for k in seen[step]}
        assert kept_steps(Mask(steps, weights=rows)) == mask_of(read, len(steps))


@pytest.mark.parametrize(
    ("budget", "steps", "expected"),
    [(2, 5, "■···■"), (3, 5, "■·■·■"), (5, 5, "■■■■■"), (4, 6, "■·■■·■"), (3, 6, "■··■·■")],
)
def test_uniform_masks(budget, steps, expected):
    assert strip(uniform_mask(budget, steps)) == expected


def test_uniform_masks_have_their_budget_and_even_gaps():
    for steps in range(2, 60):
        for budget in range(2, steps + 1):
            computed = computed_steps(uniform_mask(budget, steps))
            gaps = {j - i for i, j in pairwise(computed)}
            assert len(computed) == budget and computed[0] == 0 and computed[-1] == steps - 1
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("budget", "steps"), [(1, 5), (6, 5), (0, 1)])
def test_uniform_masks_refuse_what_has_no_mask(budget, steps):
    with pytest.raises(ValueError, match=f"the budget must be from 2 to the number of steps, {steps}; got {budget}"):
        uniform_mask(budget, steps)


def shifted(shift: float, steps: int) -> list[float]:
    """The N + 1 noise levels of flow matching with a shift."""
    return [shift * left / (1 + (shift - 1) * left) for left in (1 - step / steps for step in range(steps + 1))]


@pytest.mark.parametrize(
    ("budget", "shift", "expected"),
    [(4, 1, "■··■··■··■"), (4, 25, "■···■··■·■"), (9, 25, "■■·■■■■■■■"), (10, 25, "■" * 10)],
)
def test_balanced_masks_are_denser_where_steps_cross_more_noise(budget, shift, expected):
    assert strip(balanced_mask(budget, 10, shifted(shift, 10))) == expected


def test_a_line_that_would_go_too_far_is_not_followed():
    steps = mask_of([0, 1, 4], 5)
    near, far = (damped(steps, [1.0, 1 - first, 0.5, 0.4, 0.1]) for first in (0.1, 0.01))
    assert near[2] == pytest.approx((-2, 3))
    assert far[2:4] == ((0, 1), (0, 1))
    assert Mask(steps, "velocity", far).history == 2


LEVELS = {
    "shifted": shifted(100, 59),
    "equal": [1.0] * 60,
    "up and down": [0.5, 1.0] * 30,
    "rising": [0.1 + level for level in range(60)],
    "from the start again": [*shifted(5, 30), *shifted(5, 28)],
    "not finite": [math.nan] * 30 + [math.inf] * 30,
}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_balanced_masks_have_their_budget_whatever_the_noise_levels(levels):
    for steps in range(2, 60):
        for budget in range(2, steps + 1):
            computed = computed_steps(balanced_mask(budget, steps, levels))
            assert len(computed) == budget and computed[0] == 0 and computed[-1] == steps - 1


@pytest.mark.parametrize("levels", ["equal", "not finite"])
def test_where_noise_levels_tell_nothing_balanced_steps_have_even_gaps(levels):
    for steps in range(2, 60):
        for budget in range(2, steps + 1):
            gaps = {j - i for i, j in pairwise(computed_steps(balanced_mask(budget, steps, LEVELS[levels])))}
            assert max(gaps) - min(gaps) <= 1


def test_rising_noise_levels_count_as_much_as_falling_ones():
    levels = shifted(9, 20)
    assert balanced_mask(7, 20, levels) == balanced_mask(7, 20, [1 - level for level in levels])


def test_of_two_steps_that_are_equally_near_the_earlier_is_computed():
    assert computed_steps(balanced_mask(3, 10, [1.0] * 10)) == (0, 4, 9)


def test_a_single_step_is_computed():
    assert balanced_mask(1, 1, [1.0]) == uniform_mask(1, 1) == (True,)


@pytest.mark.parametrize("shift", [1, 3, 5, 7, 12])
def test_balanced_masks_do_not_depend_on_how_noise_levels_are_rounded(shift):
    for steps in range(2, 60):
        exact, rounded = shifted(shift, steps), np.float32(shifted(shift, steps)).astype(float).tolist()
        for budget in range(2, steps + 1):
            assert balanced_mask(budget, steps, exact) == balanced_mask(budget, steps, rounded)


@pytest.mark.parametrize(("budget", "steps"), [(1, 5), (6, 5), (0, 1)])
def test_balanced_masks_refuse_what_has_no_mask(budget, steps):
    with pytest.raises(ValueError, match=f"the budget must be from 2 to the number of steps, {steps}; got {budget}"):
        balanced_mask(budget, steps, shifted(5, 6))


def test_balanced_masks_need_a_noise_level_per_step():
    with pytest.raises(ValueError, match="5 steps need as many noise levels, got 4"):
        balanced_mask(3, 5, [1.0, 0.8, 0.5, 0.2])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_masks_and_graphs_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    mask, graph = tmp_path / "mask.json", tmp_path / "graph.json"
    write_mask(Mask((True, False, True), "velocity", ((), (1.0,), ()), made_by="by hand"), mask)
    write_graph(calibrated_graph(), graph)
    for path in (mask, graph):
        path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert read_mask(mask).made_by == "by hand"
    assert read_graph(graph).edges() == calibrated_graph().edges()
