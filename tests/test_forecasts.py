"""Forecasts as weights of the tensors that are kept: exact where they must be, and sums of one everywhere."""

import itertools

import pytest
from hyvideo.commons.infer_state import (
    FITTED,
    FORECASTS,
    InferState,
    ReuseRule,
    initialize_infer_state,
    kept_steps,
    reuse_weights,
)

POSITIONS = [1.0, 0.93, 0.8, 0.61]
SIGMAS = [1.0, 0.95, 0.9, 0.8, 0.7, 0.55, 0.4, 0.2]
FORMULAS = [name for name in FORECASTS if name != FITTED]
MASK = (True, True, False, True, True, False, False, True)


def predicted(name: str, function, positions, target: float, distance: int = 2) -> float:
    weights = FORECASTS[name].at(positions, target, distance)
    return sum(weight * function(position) for weight, position in zip(weights, positions, strict=True))


def line(x):
    return 3 - 2 * x


def parabola(x):
    return 1 + x - 4 * x * x


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_sum_to_one_however_many_tensors_are_kept(name, count):
    if count <= FORECASTS[name].keeps:
        assert sum(FORECASTS[name].at(POSITIONS[:count], 0.3, 3)) == pytest.approx(1)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_single_tensor_is_held(name):
    assert FORECASTS[name].at([0.8], 0.3, 3) == pytest.approx((1,))


def test_hold_takes_the_tensor_as_it_is():
    assert FORECASTS["hold"].at([0.8], 0.1, 7) == (1.0,)


@pytest.mark.parametrize("name", ["linear-sigma", "line-fit-sigma", "quadratic-sigma", "parabola-fit-sigma"])
def test_lines_are_continued_exactly(name):
    kept = POSITIONS[-FORECASTS[name].keeps :]
    assert predicted(name, line, kept, 0.3) == pytest.approx(line(0.3))


@pytest.mark.parametrize("name", ["quadratic-sigma", "parabola-fit-sigma"])
def test_parabolas_are_continued_exactly(name):
    kept = POSITIONS[-FORECASTS[name].keeps :]
    assert predicted(name, parabola, kept, 0.3) == pytest.approx(parabola(0.3))


def test_damping_goes_part_of_the_way_from_the_newest():
    held, whole = parabola(POSITIONS[1]), predicted("linear-sigma", parabola, POSITIONS[:2], 0.3)
    assert predicted("damped-sigma", parabola, POSITIONS[:2], 0.3) == pytest.approx((held + whole) / 2)
    decayed = predicted("decaying-sigma", parabola, POSITIONS[:2], 0.3, distance=3)
    assert decayed == pytest.approx(held + (whole - held) / 4)


def test_hermite_of_first_order_is_the_damped_line():
    assert FORECASTS["hermite1-step"].at([3, 5], 9, 4) == pytest.approx(FORECASTS["damped-step"].at([3, 5], 9, 4))


def test_every_reused_step_has_weights_for_the_last_computed_ones():
    weights = reuse_weights(MASK, SIGMAS, ReuseRule("velocity", "linear-sigma"))
    assert [len(each) for each in weights] == [0, 0, 2, 0, 0, 2, 2, 0]
    assert weights[5] == pytest.approx(FORECASTS["linear-sigma"].at([SIGMAS[3], SIGMAS[4]], SIGMAS[5], 1))
    steps = reuse_weights(MASK, SIGMAS, ReuseRule("velocity", "linear-step"))
    assert steps[6] == pytest.approx(FORECASTS["linear-step"].at([3, 4], 6, 2))


@pytest.mark.parametrize("history", [1, 2, 3])
def test_a_tensor_is_kept_exactly_when_some_reused_step_will_read_it(history):
    for tail in itertools.product([True, False], repeat=7):
        mask = (True, *tail)
        read = set()
        for step, computed in enumerate(mask):
            if not computed:
                read |= set([k for k in range(step) if mask[k]][-history:])
        assert kept_steps(mask, history) == tuple(step in read for step in range(len(mask)))


def test_rules_that_keep_too_much_or_do_not_exist_are_refused_in_one_line():
    for names, fault in [
        (("noise", "hold"), "reuse must be one of residual, output, velocity"),
        (("residual", "guess"), "forecast must be one of hold"),
        (("residual", "parabola-fit-step"), "keeps 4 tensors"),
    ]:
        with pytest.raises(ValueError, match=fault) as refusal:
            ReuseRule(*names)
        assert "\n" not in str(refusal.value)


class Arguments:
    """What argparse would give."""

    def __init__(self, **values):
        vars(self).update(enable_cache=True, cache_type="lemica", **values)


def state_of(tmp_path, mask_rule: dict, **flags) -> InferState:
    path = tmp_path / "mask.json"
    path.write_text(
        '{"format": "lemica-mask/1", "num_steps": 4, "computed_steps": [0, 2, 3]'
        + "".join(f', "{name}": "{value}"' for name, value in mask_rule.items())
        + "}"
    )
    return initialize_infer_state(Arguments(lemica_mask=str(path), **flags))


def test_a_masks_own_rule_is_used_unless_another_is_asked_for(tmp_path):
    planned = {"reuse": "velocity", "forecast": "linear-sigma"}
    assert state_of(tmp_path, planned).rule == ReuseRule("velocity", "linear-sigma")
    assert state_of(tmp_path, {}).rule == ReuseRule()
    with pytest.raises(ValueError, match="type --lemica_reuse velocity --lemica_forecast linear-sigma"):
        state_of(tmp_path, planned, lemica_reuse="residual", lemica_forecast="hold")
    forced = state_of(tmp_path, planned, lemica_reuse="residual", lemica_forecast="hold", force_mask=True)
    assert forced.rule == ReuseRule()
