"""generate.py --prompts: one loading for many videos, shared out over groups of ranks, gone on with after a stop."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import TREE, clean_environment

import generate

TINY_RUN = ["--sr", "false", "--video_length", "5", "--num_inference_steps", "4", "--aspect_ratio", "1:1"]
LEMICA = ["--enable_cache", "true", "--cache_type", "lemica", "--lemica_step", "2"]


@pytest.fixture
def prompts(tmp_path):
    """Writes a file of prompts."""

    def write(*lines: str):
        path = tmp_path / "prompts.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def command(checkpoint, tmp_path):
    """The arguments of a command for many videos; later ones override earlier ones."""

    def build(path, *more: str) -> list[str]:
        base = ["--prompts", str(path), "--resolution", "480p", "--model_path", str(checkpoint), *TINY_RUN]
        return [*base, "--output_path", str(tmp_path / "videos"), *more]

    return build


@pytest.fixture
def make(load_pipeline, monkeypatch, capsys):
    """Runs a command in this process; gives whether all was made, and what was printed."""

    def load(args, state):
        pipe = load_pipeline(generate.version_of(args))
        pipe.change_infer_state(state)
        return pipe

    monkeypatch.setattr(generate, "load_pipeline", load)

    def run(arguments) -> tuple[bool, str, str]:
        made = generate.generate_many(generate.parse_requests(arguments))
        return made, *capsys.readouterr()

    return run


def refusal(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        generate.parse_requests(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def videos(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.mp4"))}


def hidden(folder) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_each_line_is_as_if_its_flags_were_typed(command, prompts):
    path = prompts("a star", '{"prompt": "a sun", "seed": 7, "enable_cache": false, "name": "sun"}', "", "  a moon ")
    requests = generate.parse_requests(command(path, *LEMICA, "--seed", "5"))
    assert [request.args.prompt for request in requests] == ["a star", "a sun", "a moon"]
    assert [request.args.seed for request in requests] == [5, 7, 5]
    assert [request.state.uses_lemica for request in requests] == [True, False, True]
    assert [request.path.name for request in requests] == ["0000_seed5.mp4", "sun.mp4", "0002_seed5.mp4"]


def test_without_a_folder_the_name_is_that_of_the_file_of_prompts(command, prompts):
    arguments = command(prompts("a star"))
    del arguments[arguments.index("--output_path") :]
    (request,) = generate.parse_requests(arguments)
    assert request.args.output_path == "outputs/prompts_480p_t2v/0000_seed123.mp4"


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        ([""], "is empty: write a prompt per line"),
        (["a star", "{'prompt': 'a sun'}"], "line 2 is no JSON object"),
        (['{"prompt": "a sun", "resolution": "720p"}'], "line 1 has 'resolution': a line may have prompt, "),
        (['{"seed": 7}'], "line 1 has no prompt"),
        (['{"prompt": "a sun", "seed": null}'], "line 1: seed must be a text, a number, true or false"),
        (["a star", '{"prompt": "a sun", "seed": "seven"}'], "line 2: error: argument --seed: invalid int value"),
        (["a star", '{"prompt": "a sun", "aspect_ratio": "wide"}'], "line 2: --aspect_ratio must be two whole numbers"),
        (['{"prompt": "a sun", "lemica_step": 2}'], "line 1: --lemica_step does nothing without --enable_cache true"),
        (['{"prompt": "a sun", "name": "../sun"}'], "line 1: name '../sun' is no name of a video"),
        (['{"prompt": "a sun", "name": "sun_before_sr"}'], "is no name of a video"),
        ([json.dumps({"prompt": "a sun", "name": "x" * 101})], "is no name of a video"),
        # 90 characters of three bytes each.
        ([json.dumps({"prompt": "a sun", "name": "太" * 90})], "is no name of a video"),
        (['{"prompt": "a sun", "name": "\\ud800"}'], "is no name of a video"),
        (['{"prompt": "a sun", "name": "sun.mp4"}'], "is no name of a video"),
        (['{"prompt": "a sun", "name": false}'], "is no name of a video"),
        (['{"prompt": " "}'], "line 1 has no prompt"),
        (["{cinematic} a sun"], 'write a prompt that begins with a brace as {"prompt": "..."}'),
        ([f'{{"prompt": {"[" * 100_000}'], "line 1 is no JSON object"),
        (["a star", "a\rsun"], "line 2 has a control character"),
        (['[{"prompt": "a sun"}]'], "line 1 is no JSON object: write one object per line"),
        (["a star", '{"prompt": "a sun", "seed": -1}'], "line 2: with --seed -1, which draws one, a line needs a name"),
        (['{"prompt": "a sun", "name": "x"}', '{"prompt": "a star", "name": "x"}'], "line 2 and"),
        (["a star", '{"prompt": "a sun", "image_path": "sun.png"}'], "lines with and without image_path are two"),
    ],
)
def test_a_file_with_a_wrong_line_is_refused_before_anything_is_loaded(command, prompts, capsys, lines, hint):
    assert hint in refusal(command(prompts(*lines)), capsys)


def test_byte_order_marks_are_no_part_of_prompts(command, prompts):
    requests = generate.parse_requests(command(prompts("\ufeffa star", '\ufeff{"prompt": "a sun", "seed": 7}')))
    assert [(request.args.prompt, request.args.seed) for request in requests] == [("a star", 123), ("a sun", 7)]


def test_what_goes_with_one_video_only_is_refused(command, prompts, capsys, tmp_path):
    path = prompts("a star")
    assert "not allowed with argument" in refusal(command(path, "--prompt", "a sun"), capsys)
    assert "by it the same command knows" in refusal(command(path, "--save_generation_config", "false"), capsys)
    assert "cannot be read" in refusal(command(tmp_path / "nothing.txt"), capsys)
    for size in ("2", "0"):
        assert f"--sp_size {size} must divide the number of ranks, 1: torchrun starts these" in refusal(
            command(path, "--sp_size", size), capsys
        )
    (tmp_path / "file").write_text("")
    assert "cannot be written in" in refusal(command(path, "--output_path", str(tmp_path / "file")), capsys)


def test_one_loading_makes_what_single_commands_make_to_the_bit(make, command, prompts, tmp_path, checkpoint):
    sun = {"prompt": 'a "sun"', "seed": 7, "negative_prompt": "rain", "aspect_ratio": "16:9"}
    path = prompts("a star", json.dumps(sun), json.dumps({"prompt": "a comet", "name": "comet", "lemica_step": 3}))
    made, printed, _ = make(command(path, *LEMICA))
    assert made
    assert "3 of 3 videos are there, 3 made now" in printed
    folder = tmp_path / "videos"
    assert list(videos(folder)) == ["0000_seed123.mp4", "0001_seed7.mp4", "comet.mp4"]
    assert hidden(folder) == []
    base = ["--resolution", "480p", "--model_path", str(checkpoint), *TINY_RUN, *LEMICA]
    flags = [f"--{name}={value}" for name, value in sun.items()]
    alone = tmp_path / "alone.mp4"
    assert generate.generate_video(*generate.parse_arguments([*base, *flags, "--output_path", str(alone)]))
    assert alone.read_bytes() == videos(folder)["0001_seed7.mp4"]
    configs = [json.loads((folder / f"{name}_config.json").read_text()) for name in ("0000_seed123", "comet")]
    assert [len(config["report"]["computed_steps"]) for config in configs] == [2, 3]


def test_the_same_command_makes_what_is_missing_and_nothing_else(make, command, prompts, tmp_path):
    arguments, folder = command(prompts("a star", "a sun", "a moon")), tmp_path / "videos"
    make(arguments)
    before, found = {path: path.stat().st_mtime_ns for path in folder.iterdir()}, videos(folder)
    assert "3 of 3 videos are there, 0 made now" in make(arguments)[1]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "0001_seed123.mp4").write_bytes(b"half")
    (folder / "0002_seed123_config.json").unlink()
    (folder / "0002_seed123.mp4").unlink()
    assert "3 of 3 videos are there, 2 made now" in make(arguments)[1]
    assert videos(folder) == found


def test_a_request_that_fails_is_written_down_and_the_rest_goes_on(make, command, prompts, tmp_path, reference_image):
    reference_image.save(tmp_path / "first.png")
    lines = [json.dumps({"prompt": "a star", "image_path": str(tmp_path / name)}) for name in ("no.png", "first.png")]
    arguments, folder = command(prompts(*lines)), tmp_path / "videos"
    made, printed, errors = make(arguments)
    assert not made
    assert list(videos(folder)) == ["0001_seed123.mp4"]
    assert "no.png does not exist" in (folder / "0000_seed123_error.txt").read_text()
    assert "Not made: " in errors
    assert "1 of 2 videos are there, 1 made now; missing: " in printed

    reference_image.save(tmp_path / "no.png")
    assert make(arguments)[0]
    assert list(videos(folder)) == ["0000_seed123.mp4", "0001_seed123.mp4"]
    assert not (folder / "0000_seed123_error.txt").exists()


def test_a_video_that_could_not_be_written_is_not_made(make, command, prompts, tmp_path, monkeypatch):
    arguments, folder = command(prompts("a star", "a sun")), tmp_path / "videos"
    write, calls = generate.write_video, []

    def full_disk(video, path, **encoding):
        # The first is the trial before anything is loaded.
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write(video, path, **encoding)

    monkeypatch.setattr(generate, "write_video", full_disk)
    made, printed, errors = make(arguments)
    assert not made
    assert "1 of 2 videos are there, 1 made now; missing: " in printed
    assert "No space left on device" in errors
    assert "not all of its files were saved" in (folder / "0000_seed123_error.txt").read_text()
    assert list(videos(folder)) == ["0001_seed123.mp4"]
    made, printed, _ = make(arguments)
    assert made
    assert "2 of 2 videos are there, 1 made now" in printed
    assert list(videos(folder)) == ["0000_seed123.mp4", "0001_seed123.mp4"]


def test_what_a_run_left_that_was_killed_while_it_named_its_files_is_made_again(make, command, prompts, tmp_path):
    arguments, folder = command(prompts("a star")), tmp_path / "videos"
    make(arguments)
    whole = videos(folder)
    (request,) = generate.parse_requests(arguments)
    (folder / "0000_seed123_config.json").unlink()
    generate.claim_path(request.path).write_text(request.digest)
    assert "1 of 1 videos are there, 1 made now" in make(arguments)[1]
    assert videos(folder) == whole
    assert hidden(folder) == []


def test_a_claim_that_another_holds_is_left_to_it(command, prompts, tmp_path):
    requests = generate.parse_requests(command(prompts("a star", "a sun")))
    first, second = generate.Claims(requests), generate.Claims(requests)
    assert [first.take(), second.take(), first.take(), second.take()] == [*requests, None, None]
    first.fail(requests[0], "broken")
    # What one has failed to make another may try, each once.
    assert [first.take(), second.take(), second.take()] == [None, requests[0], None]
    assert (tmp_path / "videos" / "0000_seed123_error.txt").read_text() == "broken"
    for request in requests:
        second.fail(request, "broken")
    assert hidden(tmp_path / "videos") == []


def test_what_becomes_free_late_is_taken_up(command, prompts, monkeypatch):
    requests = generate.parse_requests(command(prompts("a star", "a sun")))
    first, second = generate.Claims(requests), generate.Claims(requests)
    assert [first.take(), second.take()] == requests
    looks = []

    def look(_):
        looks.append(1)
        if len(looks) == 3:
            second.fail(requests[1], "broken")

    monkeypatch.setattr(generate.time, "sleep", look)
    assert first.turn() == (requests[1], False)
    assert first.turn() == (None, True)
    # Others are at work for long: it is said now and then that there is nothing yet.
    looks[:] = [0] * 9
    assert second.turn() == (None, False)
    for request in requests:
        first.fail(request, "broken")


def test_a_run_is_no_success_while_a_video_is_missing(command, prompts, capsys, monkeypatch):
    monkeypatch.setattr(generate, "SECONDS_BETWEEN_LOOKS", 0)
    assert not generate.Claims(generate.parse_requests(command(prompts("a star", "a sun")))).tell()
    assert "0 of 2 videos are there, 0 made now; missing: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ftruncate", "write"])
def test_a_claim_that_cannot_be_made_fails_its_request_alone(command, prompts, tmp_path, monkeypatch, name):
    monkeypatch.setattr(generate, "SECONDS_BETWEEN_LOOKS", 0)
    requests = generate.parse_requests(command(prompts("a star", "a sun")))
    right, calls = getattr(os, name), []

    def full(*given):
        calls.append(given)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return right(*given)

    monkeypatch.setattr(generate.os, name, full)
    claims = generate.Claims(requests)
    assert claims.turn() == (requests[1], False)
    assert "No space left" in (tmp_path / "videos" / "0000_seed123_error.txt").read_text()
    claims.fail(requests[1], "broken")
    assert claims.turn() == (None, True)
    # Nothing is locked any more.
    assert not claims.tell()


def test_a_request_is_another_one_with_another_first_frame(command, prompts, tmp_path, reference_image):
    path, image = prompts(json.dumps({"prompt": "a star", "image_path": str(tmp_path / "first.png")})), "first.png"
    digests = set()
    for turned in (reference_image, reference_image.transpose(0)):
        turned.save(tmp_path / image)
        digests.add(generate.parse_requests(command(path))[0].digest)
    assert len(digests) == 2


def test_a_request_is_another_one_with_another_model_or_other_arguments(command, prompts, tmp_path, checkpoint):
    path = prompts("a star")
    digest = generate.parse_requests(command(path))[0].digest
    other = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, other)
    same = generate.parse_requests(command(path, "--model_path", str(other), "--offloading", "false"))[0]
    assert same.digest == digest
    weights = next((other / "transformer" / "480p_t2v").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    assert generate.parse_requests(command(path, "--model_path", str(other)))[0].digest != digest
    assert generate.parse_requests(command(path, "--save_lossless", "true"))[0].digest != digest


def test_a_failure_of_memory_loses_one_request(make, command, prompts, tmp_path, monkeypatch, load_pipeline):
    pipe = load_pipeline("480p_t2v")
    denoise, calls = pipe.denoise, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return denoise(*arguments)

    monkeypatch.setitem(vars(pipe), "denoise", failing)
    assert "2 of 3 videos are there, 2 made now; missing: " in make(command(prompts("a star", "a sun", "a moon")))[1]
    assert list(videos(tmp_path / "videos")) == ["0000_seed123.mp4", "0002_seed123.mp4"]


def test_offloaded_encoders_move_once_for_all_prompts_and_the_videos_are_the_same(
    make, command, prompts, tmp_path, monkeypatch, load_pipeline
):
    path = prompts("a star", 'a "sun"', "a moon")
    make(command(path, *LEMICA))
    pipe = load_pipeline("480p_t2v")
    moves = {"text": 0, "glyphs": 0}
    encoders = {id(pipe.text_encoder): "text", id(pipe.byt5_model): "glyphs"}
    for encoder in (pipe.text_encoder, pipe.byt5_model):

        def to(*arguments, encoder=encoder, move=encoder.to, **options):
            moves[encoders[id(encoder)]] += arguments == (pipe.execution_device,)
            return move(*arguments, **options)

        # In the instance's own namespace, where undoing leaves no bound method: the encoders are the session's.
        monkeypatch.setitem(vars(encoder), "to", to)
    monkeypatch.setattr(generate, "load_pipeline", lambda *_: pipe)
    pipe.apply_infer_optimization(enable_offloading=True)
    make(command(path, *LEMICA, "--output_path", str(tmp_path / "offloaded")))
    assert moves == {"text": 1, "glyphs": 1}
    assert videos(tmp_path / "offloaded") == videos(tmp_path / "videos")


def test_a_name_that_another_request_has_is_not_taken_from_it(command, prompts, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "0000_seed123.mp4").write_text("somebody's")
    assert "is there already, of another run" in refusal(command(prompts("a star")), capsys)
    config = {"request_digest": "other", "files": {}}
    (tmp_path / "videos" / "0000_seed123_config.json").write_text(json.dumps(config))
    assert "is there already, of another request" in refusal(command(prompts("a star")), capsys)


def ranks(arguments, count: int) -> list[subprocess.Popen]:
    """So many ranks, started by hand: torchrun would end all of them with the first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = clean_environment() | {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "generate.py", *arguments],
            cwd=TREE,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


@pytest.mark.slow
def test_two_groups_of_two_ranks_make_what_one_rank_makes_and_what_one_leaves_that_dies_the_other_makes(
    make, command, prompts, tmp_path
):
    path = prompts(*(f"star {number}" for number in range(6)))
    assert make(command(path, *LEMICA, "--output_path", str(tmp_path / "alone")))[0]

    arguments = command(path, *LEMICA, "--sp_size", "2")
    running = ranks(arguments, 4)
    folder = tmp_path / "videos"
    # The second group dies at work, with a request claimed; the store of all ranks is in the first.
    until = time.monotonic() + 120
    while not claimed_by(running[2], folder):
        assert time.monotonic() < until
        time.sleep(0.01)
    for rank in running[2:]:
        rank.send_signal(signal.SIGKILL)
    outputs = [rank.communicate(timeout=120) for rank in running]
    assert [rank.returncode for rank in running[:2]] == [0, 0], outputs[0][1][-2000:]
    found = videos(folder)
    assert len(found) == 6
    assert make(arguments[: arguments.index("--sp_size")])[0]
    assert videos(folder) == videos(tmp_path / "alone")
    assert hidden(folder) == []


def claimed_by(process: subprocess.Popen, folder) -> list[str]:
    """The claims that a process holds open."""
    found = []
    try:
        for link in os.scandir(f"/proc/{process.pid}/fd"):
            target = os.readlink(link.path)
            if target.startswith(str(folder)) and target.endswith(".claim"):
                found.append(target)
    except FileNotFoundError:
        pass
    return found
