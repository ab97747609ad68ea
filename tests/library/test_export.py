"""lemica export: what it prints for each engine is valid, says the mask, and says what the engine cannot carry."""

import doctest
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import lemica
from lemica import export
from lemica.cli.main import main
from lemica.export import EXPORTS, run_lengths
from lemica.masks import Mask, Target, hold, mask_of, step_mask, write_mask

ON_CACHE_DIT = ("cache-dit", "xdit", "sglang")
SIGMAS = tuple(1 - step / 9 for step in range(10))
STEPS = mask_of((0, 1, 2, 4, 8), 9)
HELD = Mask(STEPS, "velocity", weights=hold(STEPS))
DAMPED = Mask(STEPS, "velocity", rule="damped").with_weights(SIGMAS)
MASKS = {
    "held": HELD,
    "damped": DAMPED,
    "damped, no weights yet": Mask(STEPS, "velocity", rule="damped"),
    "one reused step": Mask(mask_of((0, 2), 3)),
    "all computed": Mask(step_mask(9, 9)),
    "one step": Mask((True,)),
    "most steps": Mask(step_mask(100, 1000), target=Target("a model")),
}


def text_for(engine: str, mask: Mask, file: str = "mask.json") -> str:
    return EXPORTS[engine](mask, file)


def comments(text: str) -> str:
    """All comments in one line."""
    return " ".join(" ".join(line.lstrip("#") for line in text.splitlines() if line.startswith("#")).split())


def code(text: str) -> list[str]:
    """The lines that are no comments and name no file."""
    return [line for line in text.splitlines() if not line.startswith(("#", "lemica.enable"))]


def shell(script: str, *arguments: str) -> str:
    """What a script of bash prints."""
    return subprocess.run(
        ["bash", "-euc", script, "bash", *arguments], capture_output=True, text=True, check=True
    ).stdout


def steps_of(computed: list[int], reused: list[int]) -> tuple[bool, ...]:
    """The steps whose run lengths these are."""
    lengths = [length for pair in zip(computed, [*reused, 0], strict=False) for length in pair]
    return tuple(index % 2 == 0 for index, length in enumerate(lengths) for _ in range(length))


@pytest.fixture
def cache_dit(monkeypatch):
    """A cache-dit that notes what it is called with."""
    calls = []
    fake = SimpleNamespace(DBCacheConfig=dict, enable_cache=lambda pipe, **settings: calls.append((pipe, settings)))
    monkeypatch.setitem(sys.modules, "cache_dit", fake)
    return calls


@pytest.fixture(params=MASKS.values(), ids=MASKS)
def mask(request) -> Mask:
    return request.param


def test_examples_in_docstrings_run():
    failed, attempted = doctest.testmod(export, extraglobs={"Mask": Mask, "mask_of": mask_of})
    assert (failed, attempted > 2) == (0, True)


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [
        ((True,), ([1], [])),
        ((True, True, True), ([3], [])),
        ((True, False, True), ([1, 1], [1])),
        (STEPS, ([3, 1, 1], [1, 3])),
    ],
)
def test_run_lengths_are_those_of_the_steps(steps, lengths):
    assert run_lengths(steps) == lengths


# What each engine reads


def test_cache_dit_is_enabled_on_the_pipeline_with_the_steps_of_the_mask(mask, cache_dit):
    exec(compile(text_for("cache-dit", mask), "printed", "exec"), {"pipe": "the pipeline"})
    ((pipe, settings),) = cache_dit
    config = settings["cache_config"]
    assert (pipe, [*settings]) == ("the pipeline", ["cache_config"])
    assert config["steps_computation_mask"] == [*map(int, mask.steps)]
    assert config["num_inference_steps"] == mask.num_steps
    assert (config["steps_computation_policy"], config["Fn_compute_blocks"]) == ("static", 1)
    assert config["enable_separate_cfg"] is None


def test_xdit_gets_the_steps_of_the_mask_and_the_options_of_its_script(mask):
    arguments = ("--model", "a model", "--prompt", "it's")
    printed = shell('xdit() { printf "%s\\0" "$@"; }\n' + text_for("xdit", mask), *arguments)
    names = ["--num_inference_steps", "--cache_method", "--cache_config"]
    *options, end = printed.split("\0")
    assert (options[:6:2], tuple(options[6:]), end) == (names, arguments, "")
    assert (options[1], options[3]) == (str(mask.num_steps), "dbcache")
    config = json.loads(options[5])
    assert config["steps_computation_mask"] == [*map(int, mask.steps)]
    assert (config["steps_computation_policy"], config["enable_taylorseer"]) == ("static", False)


def test_sglang_gets_run_lengths_that_make_the_steps_of_the_mask(mask):
    printed = shell(text_for("sglang", mask) + "\nenv")
    variables = dict(line.partition("=")[::2] for line in printed.splitlines() if line.startswith("SGLANG_CACHE_DIT_"))
    bins = [variables[f"SGLANG_CACHE_DIT_SCM_{kind}_BINS"] for kind in ("COMPUTE", "CACHE")]
    assert steps_of(*([*map(int, each.split(","))] for each in bins)) == mask.steps
    assert [variables[f"SGLANG_CACHE_DIT_{name}"] for name in ("ENABLED", "SCM_POLICY")] == ["true", "static"]


def test_one_request_to_sglang_says_what_the_variables_say(mask):
    lines = text_for("sglang", mask).splitlines()
    request = json.loads(lines[-1].removeprefix("# "))
    params = request["cache_dit_params"]
    assert (request["num_inference_steps"], request["enable_cache_dit"]) == (mask.num_steps, True)
    assert steps_of(params["scm_compute_bins"], params["scm_cache_bins"]) == mask.steps
    for kind in ("compute", "cache"):
        bins = ",".join(map(str, params[f"scm_{kind}_bins"]))
        assert f"export SGLANG_CACHE_DIT_SCM_{kind.upper()}_BINS={bins}" in lines


@pytest.mark.parametrize("file", ["mask20.json", 'a mask\'s "file".json', "é {x}\\n.json", "two\nlines.json"])
def test_a_pipeline_of_diffusers_is_enabled_with_the_file(monkeypatch, file):
    enabled, calls = [], []
    monkeypatch.setattr(lemica, "enable", lambda *arguments: enabled.append(arguments), raising=False)

    def pipe(*_, **settings):
        calls.append(settings)

    exec(compile(text_for("diffusers", HELD, file), "printed", "exec"), {"pipe": pipe})
    assert (enabled, calls) == ([(pipe, file)], [{"num_inference_steps": 9}])


# What is said


@pytest.mark.parametrize("engine", EXPORTS)
def test_the_file_the_budget_and_the_model_are_named_and_the_number_of_steps_is_said_to_matter(engine):
    mask = Mask(STEPS, target=Target("480p_t2v"))
    said = comments(text_for(engine, mask, "mask5.json"))
    assert said.startswith("mask5.json for ") and "5 of 9 steps are computed, made for 480p_t2v." in said
    assert any(
        f"Only for {what}" in said for what in ("9 steps", "runs of 9 steps", 'requests with "num_inference_steps": 9')
    )


@pytest.mark.parametrize("engine", ON_CACHE_DIT)
@pytest.mark.parametrize("name", ["damped", "damped, no weights yet"])
def test_weights_are_said_to_be_lost(engine, name):
    assert "weights (rule damped) are lost" in comments(text_for(engine, MASKS[name]))


@pytest.mark.parametrize("engine", ON_CACHE_DIT)
@pytest.mark.parametrize("mask", [HELD, Mask(STEPS)], ids=["weights of 1", "hold"])
def test_nothing_is_said_of_weights_where_the_newest_tensor_is_held(engine, mask):
    assert "weights" not in comments(text_for(engine, mask))


@pytest.mark.parametrize("engine", ON_CACHE_DIT)
@pytest.mark.parametrize(
    ("kept", "words"),
    [("velocity", "of velocities, what the transformer returns"), ("residual", "of residuals of all blocks")],
)
def test_the_block_that_always_runs_and_what_is_reused_are_said(engine, kept, words):
    said = comments(text_for(engine, Mask(STEPS, kept)))
    assert "The first block, of every list of blocks, runs on reused steps too." in said
    assert words in said


@pytest.mark.parametrize("engine", ON_CACHE_DIT)
def test_nothing_is_lost_where_every_step_is_computed(engine):
    said = comments(text_for(engine, MASKS["all computed"]))
    assert "Every step is computed: nothing is reused." in said
    assert "lost" not in said and "first block" not in said


def test_this_library_is_said_to_be_what_obeys_the_mask_in_diffusers():
    said = comments(text_for("diffusers", DAMPED))
    assert "diffusers has no cache that takes a mask" in said and "residual" not in said
    assert "on a pipeline what the transformer returns is reused" in comments(text_for("diffusers", Mask(STEPS)))


@pytest.mark.parametrize("engine", EXPORTS)
def test_names_cannot_leave_their_comments(engine):
    mask = Mask(STEPS, "velocity", DAMPED.weights, rule="a\nb", target=Target("two\r\nlines\x85of\u2028text"))
    assert code(text_for(engine, mask, "a\nb.json")) == code(text_for(engine, DAMPED, "a b.json"))


@pytest.mark.parametrize("engine", EXPORTS)
def test_only_json_makes_long_lines(engine):
    text = text_for(engine, MASKS["most steps"], "a long name " * 20 + ".json")
    assert all(
        len(line) <= 120 for line in text.splitlines() if not any(data in line for data in ("{", "BINS", ".enable("))
    )


# The command


@pytest.mark.parametrize("engine", EXPORTS)
def test_the_command_prints_what_the_engine_reads(tmp_path, monkeypatch, capsys, engine):
    monkeypatch.chdir(tmp_path)
    write_mask(DAMPED, "mask.json")
    main(["export", "mask.json", "--to", engine])
    assert capsys.readouterr() == (text_for(engine, DAMPED), "")


def test_wrong_arguments_are_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_mask(HELD, "mask.json")
    (tmp_path / "text.json").write_text("no mask")
    for arguments, words in {
        ("mask.json", "--to", "vllm"): ("vllm", *EXPORTS),
        ("mask.json",): ("--to",),
        ("none.json", "--to", "xdit"): ("none.json", "No such file or directory"),
        ("text.json", "--to", "xdit"): ("text.json", "is not JSON"),
    }.items():
        with pytest.raises(SystemExit) as end:
            main(["export", *arguments])
        printed = capsys.readouterr()
        assert (end.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
        assert printed.err.startswith("lemica export: error: ") and all(word in printed.err for word in words)
