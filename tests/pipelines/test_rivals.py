"""The bench of rivals: its loop is the pipeline's, methods are what their papers say, costs are the blocks that ran."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers.models.transformers.transformer_hunyuan_video15", reason="newer diffusers")

pytest.importorskip("cache_dit", reason="the engine is not installed: pip install cache-dit==1.5.3")

from benchmarks.rivals import cache_dit_caches, diffusers_caches, measure, settings, table, tune
from benchmarks.rivals.bench import BRANCHES, GUIDANCE, Bench
from benchmarks.rivals.methods import METHODS
from benchmarks.rivals.papers import dpcache, l2p, mean_cache, spectrum, teacache
from benchmarks.rivals.papers.forecasting import Forecasting
from benchmarks.rivals.papers.mean_cache import Edge
from benchmarks.rivals.results import NAMES, read_results, still_good, write_results
from benchmarks.rivals.stack import behind
from benchmarks.rivals.trajectories import Trajectory, trajectory
from demo.data import prompt_of, spec_of
from demo.pairs import FIRST_SEED, FRAMES, IMAGE_SIZES

STEPS = 6


@pytest.fixture(scope="module")
def bench():
    return Bench("fp32")


@pytest.fixture(scope="module")
def request_0(bench):
    return bench.request(0)


@pytest.fixture(scope="module")
def uncached(bench, request_0):
    return bench.run(request_0, STEPS)


def test_the_loop_is_that_of_the_pipeline(bench, uncached):
    height, width = IMAGE_SIZES[0]
    bench.pipe.set_progress_bar_config(disable=True)
    latents = bench.pipe(
        prompt_of(spec_of(0, held_out=True)),
        height=height,
        width=width,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(FIRST_SEED),
        output_type="latent",
    ).frames
    assert bench.pipe.guider.guidance_scale == GUIDANCE
    assert torch.allclose(latents, uncached.latents, atol=1e-4)


# Of thresholds that nothing is below, and of masks of computed steps.
NEVER = {
    "FirstBlockCache": lambda bench: diffusers_caches.first_block_cache(bench, -1.0),
    "MagCache": lambda bench: diffusers_caches.mag_cache(bench, [1.0] * STEPS, -1.0),
    "SeaCache": lambda bench: diffusers_caches.sea_cache(bench, 0.0),
    "TaylorSeer": lambda bench: diffusers_caches.taylorseer(bench, cache_interval=1),
    "TeaCache": lambda bench: teacache.teacache(bench, 0.0, num_steps=STEPS),
    "Spectrum": lambda bench: spectrum.spectrum(bench, [True] * STEPS),
    "DPCache": lambda bench: dpcache.dpcache(bench, [True] * STEPS),
    "L2P": lambda bench: l2p.l2p(bench, [True] * STEPS, torch.zeros(STEPS, STEPS)),
    "MeanCache": lambda bench: mean_cache.mean_cache(bench, [Edge(*ends, 1) for ends in pairwise(range(STEPS + 1))]),
    "steps mask": lambda bench: cache_dit_caches.steps_mask(bench, [True] * STEPS),
    "DBCache": lambda bench: cache_dit_caches.dbcache(bench, 0.99, 1, warmup=STEPS, num_steps=STEPS),
}


@pytest.mark.parametrize("name", NEVER)
def test_a_method_that_never_reuses_is_no_cache_to_the_bit_and_leaves_nothing_behind(bench, request_0, uncached, name):
    with NEVER[name](bench):
        run = bench.run(request_0, STEPS)
    assert torch.equal(run.latents, uncached.latents)
    assert run.cost == pytest.approx(1)
    assert torch.equal(bench.run(request_0, STEPS).latents, uncached.latents)


MASK = [True, True, True, False, False, True]
# The first block is 1/54 of a step, as in the real model.
FIRST = 1 / 54
HALF = {
    "SeaCache": (lambda bench: diffusers_caches.sea_cache(bench, 1e9, max_consecutive_cached=0), 2 / 6),
    "MagCache": (lambda bench: diffusers_caches.mag_cache(bench, [1.0] * STEPS, 1.0, 9, 0.2), 1 / 6),
    "TaylorSeer": (
        lambda bench: diffusers_caches.taylorseer(bench, 3, disable_cache_before_step=1, disable_cache_after_step=5),
        3 / 6,
    ),
    "Spectrum": (lambda bench: spectrum.spectrum(bench, MASK), 4 / 6),
    "DPCache": (lambda bench: dpcache.dpcache(bench, MASK), 4 / 6),
    "L2P": (lambda bench: l2p.l2p(bench, MASK, torch.diag(torch.ones(STEPS - 1), -1)), 4 / 6),
    "MeanCache": (lambda bench: mean_cache.mean_cache(bench, [Edge(0, 3, 1), Edge(3, 6, 2)]), 2 / 6),
    "TeaCache": (lambda bench: teacache.teacache(bench, 1e9, num_steps=STEPS), 2 / 6),
    "FirstBlockCache": (lambda bench: diffusers_caches.first_block_cache(bench, 1e9), (1 + 5 * FIRST) / 6),
    "steps mask": (lambda bench: cache_dit_caches.steps_mask(bench, MASK), (4 + 2 * FIRST) / 6),
    "DBCache": (lambda bench: cache_dit_caches.dbcache(bench, 0.99, 1, warmup=2, num_steps=STEPS), (2 + 4 * FIRST) / 6),
}


@pytest.mark.parametrize("name", [name for name in NEVER if name != "MeanCache"])
def test_branches_of_guidance_have_states_of_their_own(bench, request_0, name):
    """What the unconditional branch gives does not depend on the prompt of the other one, given the same latents."""
    method = HALF[name][0]
    other = bench.request(3)
    given = []

    def record(place):
        branches = [bench.velocity(place, branch) for branch in BRANCHES]
        given[-1].append(branches[1])
        # Along one path, whatever the conditional branch says.
        return branches[1]

    for embeddings in (request_0.embeddings, {**request_0.embeddings, BRANCHES[0]: other.embeddings[BRANCHES[0]]}):
        given.append([])
        with method(bench), bench.in_place_of("guided_velocity", record):
            bench.run(replace(request_0, embeddings=embeddings), STEPS)
    assert all(map(torch.equal, *given))


@pytest.mark.parametrize("name", [*HALF])
def test_the_cost_is_the_share_of_blocks_that_ran(bench, request_0, uncached, name):
    method, cost = HALF[name]
    with method(bench):
        run = bench.run(request_0, STEPS)
    assert run.cost == pytest.approx(cost, abs=1e-6)
    assert not torch.equal(run.latents, uncached.latents)
    assert run.latents.isfinite().all()


def test_a_run_of_a_sample_is_recorded_whole(bench):
    run = trajectory(bench, 0, STEPS)
    assert len(run.latents) == STEPS + 1
    for step in range(STEPS):
        velocity = (run.latents[step + 1] - run.latents[step]) / (run.sigmas[step + 1] - run.sigmas[step])
        assert torch.allclose(velocity, run.guided[step], atol=1e-3)
        cond, uncond = (run.velocities[branch][step] for branch in run.velocities)
        assert torch.equal(uncond + GUIDANCE * (cond - uncond), run.guided[step])
    assert all(len(kept) == STEPS for kept in (*run.inputs.values(), *run.outputs.values(), *run.modulated.values()))


def test_mean_cache_carries_velocities_on_by_half_the_change_that_a_window_has_seen():
    sigmas = [1.0, 0.9, 0.75, 0.5, 0.2, 0.0]

    def velocity(sigma: float) -> torch.Tensor:
        return torch.tensor([1 + 6 * sigma])

    latents = [torch.tensor([sigma + 3 * sigma**2]) for sigma in sigmas]
    velocities = [velocity(sigma) for sigma in sigmas[:3]]
    # Of a velocity that is linear in the noise level the average has half its slope.
    found = mean_cache.carried_on(sigmas, latents[:4], velocities, window=3)
    assert found.item() == pytest.approx(velocities[-1].item() + 3 * (0.2 - 0.5), abs=1e-4)
    euler = [*latents[:3], latents[2] + (0.5 - 0.75) * velocities[2]]
    assert mean_cache.carried_on(sigmas, euler, velocities, window=1).item() == pytest.approx(velocities[2].item())


def test_mean_caches_path_has_as_many_steps_as_asked_and_the_least_cost():
    costs = {(start, stop): ((stop - start - 1) * 1.0, 1) for start in range(9) for stop in range(start + 1, 10)}
    edges = mean_cache.plan(costs, 9, 5, gamma=2.0)
    assert [edge.start for edge in edges] == [0, 2, 4, 6, 8]
    assert edges[-1].stop == 9


def test_spectrum_goes_through_a_polynomial_of_its_degree():
    def feature(step: int) -> torch.Tensor:
        time = 2 * step / 50 - 1
        return torch.tensor([[[time**4 - time, 2 * time**3]]])

    predict = spectrum.forecast(50, degree=4, ridge=1e-9, blend=1.0)
    history = [(step, feature(step)) for step in (0, 3, 9, 14, 20, 27)]
    assert torch.allclose(predict(30, history), feature(30), atol=1e-2)
    line = spectrum.forecast(50, degree=4, ridge=1e-9, blend=0.0)(30, history)
    assert torch.allclose(line, feature(27) + 3 / 7 * (feature(27) - feature(20)), atol=1e-5)


def test_spectrums_own_steps_are_those_of_its_authors():
    computed = [step for step, is_computed in enumerate(spectrum.own_steps(3.0, 50)) if is_computed]
    assert computed == [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]


@pytest.mark.parametrize("order", [1, 2])
def test_taylor_forecasts_go_along_a_line(order):
    history = [(step, torch.tensor([1.0 + 2 * step])) for step in (0, 3, 5)]
    assert dpcache.taylor(9, history, order).item() == pytest.approx(19)


def test_dpcaches_plan_begins_with_three_steps_and_avoids_what_is_dear():
    cost = np.full((10, 10, 10), np.inf)
    for i, j, k in np.ndindex(cost.shape):
        if i < j < k <= j + 4:
            # Over step 6 nothing can be forecast.
            cost[i, j, k] = (k - j - 1) + 100 * (j < 6 < k)
    steps = dpcache.plan(cost, 6)
    assert sum(steps) == 6
    assert steps[:3] == [True] * 3
    assert steps[6]
    with pytest.raises(ValueError, match="no path of 3 steps"):
        dpcache.plan(np.full((10, 10, 10), np.inf), 3)
    assert dpcache.plan(cost, 6, ends=True)[-1]


def test_l2ps_weights_forecast_better_than_the_step_before():
    def run() -> Trajectory:
        base, other = torch.randn(2, 64).unbind()
        outputs = [base + math.cos(step / 3) * other for step in range(12)]
        return Trajectory([0.0] * 13, velocities={"pred_cond": outputs, "pred_uncond": outputs})

    torch.manual_seed(0)
    runs = [run() for _ in range(4)]
    steps = [True, True, True, True] + [False] * 8

    def error(weights: torch.Tensor) -> float:
        known = runs[0].velocities["pred_cond"]
        row = weights[5, :5].float()
        return float((torch.tensordot(row, torch.stack(known[:5]), 1) - known[5]).norm())

    held = torch.diag(torch.ones(11), -1)
    assert error(l2p.fit(runs)) < 0.5 * error(held)
    # Four known outputs span all others.
    fitted = l2p.kept_only(runs, steps)
    assert error(fitted) < 0.05 * error(held)
    assert not fitted[5, 4:].any()


def test_teacaches_polynomial_gives_the_change_of_what_the_blocks_add(bench):
    run = trajectory(bench, 0, 12)
    changes, wanted = [], []
    for branch in run.inputs:
        added = [after - before for before, after in zip(run.inputs[branch], run.outputs[branch], strict=True)]
        changes += [teacache.relative_change(new, old) for old, new in pairwise(run.modulated[branch])]
        wanted += [teacache.relative_change(new, old) for old, new in pairwise(added)]
    fitted = np.polyval(teacache.fit([run]), changes)
    assert np.std(fitted - wanted) < np.std(wanted)


def test_steps_that_are_forecast_run_no_block(bench, request_0):
    seen = []

    def forecast(step, history):
        seen.append((step, [known for known, _ in history]))
        return history[-1][1]

    with behind(bench, Forecasting(bench, MASK, forecast)):
        bench.run(request_0, STEPS)
    assert seen == [(3, [0, 1, 2])] * 2 + [(4, [0, 1, 2])] * 2


def test_the_floor_moves_the_noise_by_a_hundred_thousandth(request_0):
    change = measure.moved(request_0).noise - request_0.noise
    assert change.std().item() == pytest.approx(1e-5, rel=0.1)


def test_a_search_finds_a_threshold_near_every_cost():
    costs = []
    tune.search(lambda value: costs.append(1 / (1 + 10 * value)) or costs[-1], 0.01, 1.0)
    near = (min(abs(cost - target) for cost in costs) <= settings.tolerance(target) for target in settings.TARGETS)
    assert all(near)


def test_of_what_was_tried_the_best_near_a_cost_is_taken():
    family = tune.Family("x", "SeaCache", [], default={"threshold": 0.25})
    tried = [({"threshold": 1}, 0.41, 40.0), ({"threshold": 2}, 0.39, 45.0), ({"threshold": 3}, 0.36, 50.0)]
    assert [(each.cost, each.knobs) for each in tune.chosen(family, tried)] == [
        ("0.4", {"threshold": 2}),
        ("default", {"threshold": 0.25}),
    ]


def test_every_family_is_of_a_known_method_and_has_a_name_of_its_own():
    assert {family.method for family in tune.FAMILIES} <= METHODS.keys()
    assert len({family.name for family in tune.FAMILIES}) == len(tune.FAMILIES)


def test_the_settings_are_those_that_tuning_chooses_from_what_was_tried():
    tuner = tune.Tuner.__new__(tune.Tuner)
    tuner.known = json.loads(Path(tune.__file__).with_name("tuning.json").read_text(encoding="utf-8"))
    chosen = [setting for family in tune.FAMILIES for setting in tune.chosen(family, tuner.everything(family))]
    assert chosen == settings.read_settings()


def test_of_a_package_that_is_missing_the_methods_are_named_and_left_out(monkeypatch, capsys):
    both = [settings.Setting(name, name, "0.4", {}) for name in ("DBCache", "SeaCache")]
    monkeypatch.delitem(METHODS, "DBCache")
    monkeypatch.setattr(measure, "cache_dit_missing", ImportError("No module named 'cache_dit'"))
    assert measure.available(both) == both[1:]
    line = "left out, for cache-dit cannot be imported (No module named 'cache_dit'): DBCache\n"
    assert capsys.readouterr().out == line


def test_what_was_measured_is_not_run_again_but_with_other_knobs(bench, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(measure, "figures", lambda *given: runs.append(given[2]) or dict.fromkeys(NAMES, 1.0))
    monkeypatch.setattr(measure, "NUM_STEPS", 2)
    first, second = (settings.Setting("x", "SeaCache", cost, {"threshold": 1.0}) for cost in ("0.5", "0.4"))
    changed = replace(first, knobs={"threshold": 2.0})
    path = tmp_path / "results.json"
    for wanted in ([first], [first, second], [changed, second]):
        measure.measure(bench, wanted, [0], "fp32", path)
    assert runs == [first, second, changed]
    assert list(read_results(path)["0"]) == ["cost 0.5, x", "cost 0.4, x"]
    with pytest.raises(ValueError, match="holds results in fp32, not bf16: give another file"):
        still_good(path, [first], "bf16")


def test_results_and_their_table(tmp_path):
    def rows(psnr: float) -> dict:
        return {
            "cost default, noise floor": {"psnr": 54.0, "ssim": 1.0, "cost": 1.0, "seconds": 4.0},
            "cost 0.4, ours": {"psnr": psnr + 3, "ssim": 0.9, "cost": 0.4, "seconds": 1.6},
            "cost 0.4, theirs": {"psnr": psnr, "ssim": 0.9, "cost": 0.41, "seconds": 2.0},
        }

    wanted = [
        settings.Setting("noise floor", "", "default", {}),
        settings.Setting("ours", "", "0.4", {}),
        settings.Setting("theirs", "", "0.4", {}),
    ]
    write_results({"0": rows(40.0), "1": rows(42.0)}, wanted, "bf16", tmp_path / "results.json")
    found = table.points(read_results(tmp_path / "results.json"), best="ours")
    point = found["theirs"]["0.4"]
    assert (point.psnr, point.worst, point.gain, point.seconds) == (41.0, 40.0, 3.0, 0.5)
    lines = list(table.quality_table(found))
    assert lines[2].startswith("| nothing reused, noise moved by 1e-5: the floor | 54.0")
    assert "| theirs |  | 41.0 ± 1.0 (40.0) at 0.41 |  |  |  |" in lines
