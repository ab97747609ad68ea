"""The kit's switches: budgets and their names, which mask a run takes, what is refused, the run report's sums."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import pytest
from conftest import REPOSITORY

from infer_state import (
    RULES,
    InferState,
    Mask,
    RunReport,
    Target,
    balanced_mask,
    changed_model_name,
    config_digest,
    get_infer_state,
    initialize_infer_state,
    parse_budget,
    parse_range,
    resolve_mask,
    step_mask,
)

STEPS = (True, False, True, False, False, True)


def run_of(num_steps: int, **target) -> Target:
    """A run of a sampler whose noise levels fall evenly."""
    return Target(sigmas=tuple(1 - step / num_steps for step in range(num_steps + 1)), **target)


def lemica(**fields) -> InferState:
    return InferState(enable_cache=True, cache_type="lemica", **fields)


@pytest.fixture
def mask_file(tmp_path) -> str:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"format": "lemica-mask/1", "num_steps": 6, "computed_steps": [0, 2, 5]}))
    return str(path)


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


@pytest.mark.parametrize(
    ("state", "origin"),
    [
        (None, "no cache"),
        (InferState(cache_type="lemica", lemica_step=3), "no cache"),
        (InferState(enable_cache=True, cache_type="teacache", lemica_step=3), "teacache"),
    ],
)
def test_without_lemica_every_step_is_computed(state, origin):
    mask = resolve_mask(state, run_of(5))
    assert (mask.steps, mask.weights, mask.origin) == ((True,) * 5, ((),) * 5, origin)


def test_the_mask_follows_the_steps_that_really_run(monkeypatch):
    for num_steps, origin in ((50, "released"), (60, "derived")):
        mask = resolve_mask(lemica(lemica_step=25), run_of(num_steps))
        assert (mask.steps, mask.origin) == (step_mask(25, num_steps), origin)
        assert (mask.kept, mask.rule, mask.weights) == ("residual", "hold", RULES["hold"](mask.steps))
    assert resolve_mask(lemica(), run_of(50)).budget == 25
    monkeypatch.setenv("LEMICA_STEP", "ultra")
    assert resolve_mask(lemica(), run_of(50)).budget == 10
    with pytest.raises(ValueError, match="number of steps, 8"):
        resolve_mask(lemica(lemica_step=25), run_of(8))


def test_kept_tensor_and_rule_can_be_chosen_for_a_budget():
    run = run_of(8)
    mask = resolve_mask(lemica(lemica_step=4, lemica_reuse="velocity", lemica_forecast="damped"), run)
    assert mask == Mask(step_mask(4, 8), "velocity", rule="damped", origin="derived").with_weights(run.sigmas, True)


def test_balanced_steps_keep_velocities_and_carry_them_on_unless_told_otherwise():
    run = Target(sigmas=(1.0, 0.99, 0.97, 0.95, 0.92, 0.88, 0.8, 0.6, 0.0))
    balanced = Mask(balanced_mask(4, 8, run.sigmas), "velocity", rule="damped", origin="balanced")
    mask = resolve_mask(lemica(lemica_step=4, lemica_spacing="balanced"), run)
    assert mask == balanced.with_weights(run.sigmas, True)
    assert mask.computed_steps == (0, 3, 5, 7)
    told = lemica(lemica_step=4, lemica_spacing="balanced", lemica_reuse="residual", lemica_forecast="hold")
    assert resolve_mask(told, run) == replace(balanced, kept="residual", rule="hold").with_weights(run.sigmas)
    with pytest.raises(ValueError, match="--lemica_step must be from 2 to the number of steps, 8; got 9"):
        resolve_mask(lemica(lemica_step=9, lemica_spacing="balanced"), run)


def test_a_mask_overrides_the_budget_and_keeps_its_weights():
    own = Mask(STEPS, "velocity", RULES["hold"](STEPS))
    assert resolve_mask(lemica(lemica_step=4, lemica_mask=own), run_of(6)) is own
    by_rule = Mask(STEPS, rule="damped")
    assert resolve_mask(lemica(lemica_mask=by_rule), run_of(6)).weights == RULES["damped"](STEPS, run_of(6).sigmas)
    with pytest.raises(ValueError, match="lemica_spacing must be one of released, balanced; got 'even'"):
        resolve_mask(lemica(lemica_step=4, lemica_spacing="even"), run_of(6))


@pytest.mark.parametrize("force", [False, True])
def test_a_mask_for_another_step_count_is_refused(force):
    with pytest.raises(ValueError, match="6 steps but the sampler runs 50: pass --num_inference_steps 6"):
        resolve_mask(lemica(lemica_mask=Mask(STEPS), force_mask=force), run_of(50))


@pytest.mark.parametrize(
    ("target", "difference"),
    [
        (Target(model="720p_t2v"), "model 720p_t2v, this run has 480p_t2v"),
        (Target(config="another"), "transformer/config.json of digest another, this run has a digest"),
        (Target(dtype="float32"), "dtype float32, this run has bfloat16"),
        (Target(sigmas=(1.0, 0.95, 0.9, 0.8, 0.6, 0.3, 0.0)), "other noise levels: this run has another flow shift"),
    ],
)
def test_a_mask_of_another_model_sampler_or_arithmetic_is_refused_unless_forced(target, difference):
    run, mask = run_of(6, model="480p_t2v", config="a digest", dtype="bfloat16"), Mask(STEPS, target=target)
    with pytest.raises(
        ValueError, match=f"the mask belongs to {difference}.*: plan one .* --force_mask true"
    ) as refusal:
        resolve_mask(lemica(lemica_mask=mask), run)
    assert "\n" not in str(refusal.value)
    assert resolve_mask(lemica(lemica_mask=mask, force_mask=True), run).steps == STEPS
    assert resolve_mask(lemica(lemica_mask=Mask(STEPS, target=run)), run).steps == STEPS


def test_the_state_takes_upstreams_arguments_and_is_remembered(mask_file):
    arguments = Namespace(
        use_sageattn=True,
        sage_blocks_range="0-2",
        no_cache_block_id="53",
        include_patterns="double_blocks, final_layer",
        cache_type="lemica",
        lemica_step="fast",
        lemica_mask=mask_file,
        unknown=1,
    )
    state = initialize_infer_state(arguments)
    assert get_infer_state() is state
    assert (state.enable_sageattn, state.sage_blocks_range, state.no_cache_block_id) == (True, [0, 1, 2], [53])
    assert state.include_patterns == ["double_blocks", "final_layer"]
    assert (state.lemica_step, state.lemica_mask, state.total_steps) == (15, Mask(STEPS), 50)


def test_a_mask_may_be_given_as_it_is():
    mask = Mask(STEPS)
    assert initialize_infer_state(Namespace(lemica_mask=mask)).lemica_mask is mask


@pytest.mark.parametrize(
    ("rule", "flags"),
    [
        ({"lemica_reuse": "velocity"}, "--lemica_reuse"),
        ({"lemica_forecast": "hold"}, "--lemica_forecast"),
        ({"lemica_spacing": "released"}, "--lemica_spacing"),
        ({"lemica_reuse": "velocity", "lemica_forecast": "hold"}, "--lemica_reuse and --lemica_forecast"),
    ],
)
def test_a_rule_beside_a_mask_is_refused(mask_file, rule, flags):
    with pytest.raises(ValueError, match=f"the mask says what is reused and how: leave out {flags}$"):
        initialize_infer_state(Namespace(lemica_mask=mask_file, **rule))


def test_a_model_is_named_by_its_version_and_what_changes_it():
    assert changed_model_name("480p_t2v", None, None) == "480p_t2v"
    assert changed_model_name("480p_t2v", "out/step_100/", "loras/anime") == "480p_t2v + step_100 + anime"


def test_the_digest_of_a_config_follows_its_settings_alone(tmp_path):
    def digest(text: str) -> str | None:
        (tmp_path / "config.json").write_text(text)
        return config_digest(str(tmp_path))

    first = digest('{"hidden_size": 64, "heads_num": 4, "_diffusers_version": "0.35.0"}')
    assert first == digest('{"heads_num": 4, "_diffusers_version": "0.36.0", "hidden_size": 64}')
    assert first != digest('{"hidden_size": 128, "heads_num": 4}')
    assert len(first) == 16 and int(first, 16) >= 0
    assert config_digest(str(tmp_path / "nowhere")) is None


def test_the_report_sums_computed_and_reused_steps():
    report = RunReport(
        1, "p", {}, 3, [0, 2], "planned", "residual", "hold", [1.0, 0.25, 2.0], {"denoising": 4.0, "else": 1.0}
    )
    assert (report.dit_seconds, report.computed_seconds, report.reused_seconds) == (3.25, 3.0, 0.25)
    assert report.total_seconds == 5


def test_the_file_needs_the_standard_library_only():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = sys.modules['lemica'] = None; "
        "import infer_state; print(sum(infer_state.step_mask(25, 50)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "25"
