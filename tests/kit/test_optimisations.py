"""What loading switches on, and in which order: stand-ins for a GPU and its libraries note that they are called."""

import sys
from types import ModuleType, SimpleNamespace

import hyvideo.pipelines.hunyuan_video_pipeline as kit
import pytest
import torch
from hyvideo.commons.infer_state import InferState
from hyvideo.pipelines.hunyuan_video_pipeline import GIB, HunyuanVideo_1_5_Pipeline

import generate

EVERYTHING = dict(
    use_fp8_gemm=True,
    quant_type="fp8-per-block",
    include_patterns=["double_blocks", "final_layer"],
    enable_torch_compile=True,
    enable_sageattn=True,
    enable_cache=True,
    cache_type="deepcache",
    no_cache_block_id=[3],
)


@pytest.fixture
def calls(monkeypatch):
    """What is called, in order, of angelslim and torch.compile."""
    calls = []

    class Quantizer:
        def __init__(self, **settings):
            self.settings = settings

        def convert_linear(self, transformer):
            calls.append(("fp8", self.settings, transformer))

    class CacheHelper:
        def __init__(self, **settings):
            self.settings = settings

        def enable(self):
            calls.append(("cache", self.settings))

        def disable(self):
            calls.append(("no cache",))

    diffusion = ModuleType("angelslim.compressor.diffusion")
    diffusion.DynamicDiTQuantizer, diffusion.DeepCacheHelper = Quantizer, CacheHelper
    compressor, angelslim = ModuleType("angelslim.compressor"), ModuleType("angelslim")
    angelslim.compressor, compressor.diffusion = compressor, diffusion
    for module in (angelslim, compressor, diffusion):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kit, "is_angelslim_available", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda forward: calls.append(("compile", forward)) or forward)
    return calls


@pytest.fixture
def pipe(checkpoint, calls, monkeypatch):
    """A pipeline whose transformer notes how it is changed."""
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(checkpoint), "480p_t2v")
    net = pipe.transformer
    monkeypatch.setattr(net, "set_attn_mode", lambda mode: calls.append(("attention", mode)))
    monkeypatch.setattr(net, "enable_group_offload", lambda **options: calls.append(("group offload", options)))
    return pipe


def test_each_optimisation_sees_what_those_before_it_have_made(pipe, calls):
    blocks = list(pipe.transformer.double_blocks)
    pipe.apply_infer_optimization(InferState(**EVERYTHING), enable_offloading=True, enable_group_offloading=True)
    assert [call[0] for call in calls] == ["fp8", *["compile"] * len(blocks), "attention", "cache", "group offload"]
    _, settings, converted = calls[0]
    assert converted is pipe.transformer
    assert (settings["quant_type"], settings["include_patterns"]) == ("fp8-per-block", ["double_blocks", "final_layer"])
    assert [call[1].__self__ for call in calls[1:-3]] == blocks
    assert calls[-3] == ("attention", "sageattn")
    assert calls[-2][1]["no_cache_block_id"] == {"double_blocks": [3]}
    options = dict(onload_device=pipe.execution_device, num_blocks_per_group=1, use_stream=True)
    assert calls[-1] == ("group offload", options)
    assert pipe.enable_offloading


def test_without_overlap_blocks_move_by_four_and_without_streams(pipe, calls):
    pipe.apply_infer_optimization(None, True, True, overlap_group_offloading=False)
    options = dict(onload_device=pipe.execution_device, num_blocks_per_group=4, use_stream=False)
    assert calls == [("group offload", options)]


def test_nothing_is_switched_on_that_was_not_asked_for(pipe, calls):
    pipe.apply_infer_optimization()
    pipe.apply_infer_optimization(InferState(enable_cache=True, cache_type="lemica"))
    assert calls == []
    assert not pipe.enable_offloading


def test_the_same_again_changes_nothing(pipe, calls):
    for _ in range(2):
        pipe.apply_infer_optimization(InferState(**EVERYTHING | {"enable_cache": False}), True, True)
    assert [call[0] for call in calls].count("fp8") == 1
    assert [call[0] for call in calls].count("compile") == len(pipe.transformer.double_blocks)
    assert [call[0] for call in calls].count("group offload") == 1


def test_compilation_and_attention_can_be_taken_back(pipe, calls):
    net = pipe.transformer
    before = [block.forward for block in net.double_blocks]
    pipe.apply_infer_optimization(InferState(enable_torch_compile=True, enable_sageattn=True))
    net.attn_mode = "sageattn"
    pipe.apply_infer_optimization()
    assert calls[-1] == ("attention", pipe._own_attn_mode)
    assert [block.forward for block in net.double_blocks] == before
    assert not any("forward" in vars(block) for block in net.double_blocks)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((InferState(use_fp8_gemm=True), False, False), (None, False, False)),
        ((None, True, True), (None, False, False)),
        ((None, True, True), (InferState(enable_torch_compile=True), True, True)),
    ],
)
def test_what_cannot_be_taken_back_is_refused(pipe, first, second):
    pipe.apply_infer_optimization(*first)
    with pytest.raises(ValueError, match=r"already.*: load the pipeline anew"):
        pipe.apply_infer_optimization(*second)


def test_another_state_takes_the_place_of_the_cache_before(pipe, calls):
    pipe.apply_infer_optimization(InferState(enable_cache=True, no_cache_block_id=[3]))
    pipe.apply_infer_optimization()
    assert [call[0] for call in calls] == ["cache", "no cache"]
    assert pipe.cache_helper is None


def test_group_offload_without_offload_is_refused(pipe):
    with pytest.raises(ValueError, match="pass enable_offloading=True"):
        pipe.apply_infer_optimization(None, enable_group_offloading=True)


# Loading


class LoadedPipeline:
    """A stand-in for what ``create_pipeline`` returns: notes what is done to it."""

    def __init__(self, done, name="base"):
        self.done, self.name = done, name

    def change_transformer(self, *paths):
        self.done.append(("weights", self.name, paths))

    def apply_infer_optimization(self, infer_state=None, **offload):
        self.done.append(("optimise", self.name, infer_state, offload))


@pytest.fixture
def machine(monkeypatch):
    """Call as machine(gib) for a machine with a GPU of so much memory, 0 for none.

    Gives what loading does on it: first the arguments of ``create_pipeline``, then what is done to the pipelines.
    """

    def build(gib: int) -> list:
        done = []

        def create_pipeline(*model, **options):
            done.append((model, options))
            pipeline = LoadedPipeline(done)
            pipeline.sr_pipeline = LoadedPipeline(done, "super-resolution")
            return pipeline

        monkeypatch.setattr(torch.cuda, "is_available", lambda: gib > 0)
        monkeypatch.setattr(kit, "get_gpu_memory", lambda: gib * GIB)
        monkeypatch.setattr(HunyuanVideo_1_5_Pipeline, "create_pipeline", create_pipeline)
        return done

    return build


@pytest.mark.parametrize(
    ("gib", "options", "offloading", "by_groups", "homes"),
    [
        (24, {}, True, True, ("cpu", "cpu")),
        (80, {}, True, False, ("cpu", "cpu")),
        (80, {"group_offloading": True}, True, True, ("cpu", "cpu")),
        (24, {"group_offloading": False}, True, False, ("cpu", "cpu")),
        (80, {"offloading": False}, False, False, ("cuda", "cuda")),
        (24, {"offloading": False}, False, False, ("cuda", "cuda")),
        (0, {}, False, False, ("cpu", "cpu")),
    ],
)
def test_loading_offloads_what_the_machine_needs(machine, gib, options, offloading, by_groups, homes):
    done = machine(gib)
    HunyuanVideo_1_5_Pipeline.load("ckpts", "480p_t2v", **options)
    (model, created), _, (*_, offload) = done
    assert model == ("ckpts", "480p_t2v")
    assert (created["device"].type, created["transformer_init_device"].type) == homes
    assert offload == dict(
        enable_offloading=offloading, enable_group_offloading=by_groups, overlap_group_offloading=True
    )


def test_both_models_are_optimised_after_the_weights_and_super_resolution_without_a_cache(machine):
    done, state = machine(24), InferState(**EVERYTHING)
    HunyuanVideo_1_5_Pipeline.load(
        "ckpts",
        "480p_t2v",
        state,
        with_sr=True,
        checkpoint_path="dcp",
        lora_path="lora",
        overlap_group_offloading=False,
    )
    offload = dict(enable_offloading=True, enable_group_offloading=True, overlap_group_offloading=False)
    assert done[0][1]["create_sr_pipeline"] is True
    assert done[1:] == [
        ("weights", "base", ("dcp", "lora")),
        ("optimise", "base", state, offload),
        ("optimise", "super-resolution", InferState(**EVERYTHING | {"enable_cache": False}), offload),
    ]


def arguments(checkpoint, *more):
    base = ["--prompt", "a star", "--resolution", "480p", "--model_path", str(checkpoint), "--sr", "false"]
    return [*base, "--output_path", str(checkpoint.parent / "video.mp4"), *more]


@pytest.mark.parametrize(
    ("gib", "flags", "by_groups"),
    [
        (24, [], True),
        (80, [], False),
        (80, ["--group_offloading", "true"], True),
        (24, ["--group_offloading", "0"], False),
    ],
)
def test_generate_py_streams_the_blocks_where_the_gpu_is_small_or_when_told_to(
    machine, checkpoint, gib, flags, by_groups
):
    done = machine(gib)
    generate.load_pipeline(*generate.parse_arguments(arguments(checkpoint, *flags)))
    assert done[-1][-1]["enable_group_offloading"] is by_groups
    assert done[-1][-1]["enable_offloading"] is True


def test_every_flag_of_generate_py_reaches_the_models(machine, checkpoint, monkeypatch, tmp_path):
    done = machine(80)
    monkeypatch.setattr(generate, "check_files", lambda _: None)
    monkeypatch.setattr(generate, "missing_model_files", lambda *_, **__: [])
    monkeypatch.setattr(generate.importlib.util, "find_spec", lambda _: SimpleNamespace())
    flags = ["--sr", "true", "--dtype", "fp32", "--checkpoint_path", "dcp", "--lora_path", "lora", "--use_fp8_gemm"]
    flags += [
        "--use_sageattn",
        "--enable_torch_compile",
        "--offloading",
        "false",
        "--overlap_group_offloading",
        "false",
    ]
    generate.load_pipeline(*generate.parse_arguments(arguments(checkpoint, *flags)))
    ((folder, version), created), weights, base, super_resolution = done
    assert (folder, version) == (str(checkpoint), "480p_t2v")
    assert (created["create_sr_pipeline"], created["transformer_dtype"]) == (True, torch.float32)
    assert weights[-1] == ("dcp", "lora")
    for _, _, state, offload in (base, super_resolution):
        assert state.use_fp8_gemm and state.enable_sageattn and state.enable_torch_compile
        assert offload == dict.fromkeys(
            ("enable_offloading", "enable_group_offloading", "overlap_group_offloading"), False
        )


# Arithmetic


def test_on_a_gpu_models_are_loaded_and_run_in_upstreams_dtypes(checkpoint, monkeypatch):
    """The GPU is where they would run; they are placed on the CPU, as with offloading."""
    monkeypatch.setattr(kit, "default_device", lambda: torch.device("cuda"))
    pipe = HunyuanVideo_1_5_Pipeline.create_pipeline(str(checkpoint), "480p_t2v", device=torch.device("cpu"))
    assert pipe.execution_device.type == "cuda"
    assert (pipe.target_dtype, pipe.vae_dtype) == (torch.bfloat16, torch.float16)
    assert (pipe.autocast_enabled, pipe.vae_autocast_enabled) == (True, True)
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float16)
    assert {weight.dtype for weight in pipe.text_encoder.parameters()} == {torch.float16}
    assert {weight.dtype for weight in pipe.vision_encoder.parameters()} == {torch.float16}
    scheduler = pipe._create_scheduler(5.0)
    scheduler.set_timesteps(4)
    assert pipe.target(scheduler).dtype == "bfloat16"


def test_on_a_cpu_everything_is_float32(load_pipeline):
    pipe = load_pipeline("480p_t2v")
    assert (pipe.target_dtype, pipe.vae_dtype, pipe.autocast_enabled) == (torch.float32, torch.float32, False)
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(("gib", "tiles"), [(16, (128, 0.25)), (24, (256, 0.125)), (80, (256, 0.125))])
def test_the_vaes_tiles_follow_from_the_gpus_memory_as_in_tencents_main(checkpoint, monkeypatch, gib, tiles):
    monkeypatch.setattr(kit, "get_gpu_memory", lambda: gib * GIB)
    vae = HunyuanVideo_1_5_Pipeline.create_pipeline(str(checkpoint), "480p_t2v").vae
    assert (vae.tile_sample_min_size, vae.tile_overlap_factor) == tiles


def test_keywords_override_the_vaes_tiles(checkpoint):
    tiles = dict(vae_sample_size=64, vae_tile_overlap_factor=0.5)
    vae = HunyuanVideo_1_5_Pipeline.create_pipeline(str(checkpoint), "480p_t2v", **tiles).vae
    assert (vae.tile_sample_min_size, vae.tile_overlap_factor) == (64, 0.5)


class TooLarge(torch.nn.Linear):
    """Half of it fits on the device."""

    def to(self, device):
        if device == "cpu":
            return self
        self.weight.data = self.weight.data.clone()
        raise torch.OutOfMemoryError


def test_a_model_that_does_not_fit_on_the_device_is_left_where_it_was(pipe):
    model = TooLarge(2, 2)
    weight = model.weight.data
    pipe.enable_offloading, pipe.execution_device = True, torch.device("meta")
    with pytest.raises(torch.OutOfMemoryError), pipe.on_device(model):
        pytest.fail("it was not on the device")
    assert model.weight.data_ptr() == weight.data_ptr()
