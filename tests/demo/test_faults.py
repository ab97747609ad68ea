"""The fault campaign: it sees every kind of fault, and the quick commands have none."""

import hashlib
import json
import os

import imageio.v2 as imageio
import numpy as np
import pytest

from demo.fault_scenes import FRAMES, Scene, install_scenes, look, plan_scene
from demo.faults import COLUMNS, FAULTS, RESULT, Campaign, as_text

ATOMIC = "printf new > .partial-1; mv .partial-1 file.json"


@pytest.fixture
def campaign(tmp_path):
    (tmp_path / "work").mkdir()
    return Campaign(tmp_path / "work")


def scene(folder, script) -> Scene:
    """A shell script in the place of a command: it is to replace "old" by "new"."""
    for name, content in (("old", "old"), ("new", "new")):
        (folder / name).mkdir()
        (folder / name / "file.json").write_text(content)
    return Scene("script", ("/bin/sh", "-c", script), folder / "old", (folder / "new",))


def faults(campaign) -> dict[str, int]:
    return {kind: sum(row[kind] for row in campaign.rows.values()) for kind in FAULTS}


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("rm file.json; exit 1", "lost"),
        ("printf ne > file.json; exit 1", "half"),
        ("exit 0", "wrongly saved"),
        ('echo "Saved $PWD/file.json"; exit 1', "wrongly saved"),
        ('echo "Saved $PWD/other.json"; exit 1', "wrongly saved"),
        (f"{ATOMIC}; exit 1", None),
        (f"{ATOMIC}; echo Saved $PWD/file.json", None),
    ],
)
def test_every_kind_of_fault_is_seen(campaign, tmp_path, script, kind):
    disturbed = scene(tmp_path, script)
    place = campaign.place(disturbed)
    status = os.waitstatus_to_exitcode(os.waitpid(disturbed.begin(0, place), 0)[1])
    assert {found for found, _ in disturbed.judge(0, place, status)} == ({kind} if kind else set())


def test_a_command_that_can_be_killed_anywhere_has_no_fault(campaign, tmp_path):
    campaign.kill(scene(tmp_path, ATOMIC), 6)
    assert campaign.rows["killed: script"]["runs"] == 6
    assert faults(campaign) == dict.fromkeys(FAULTS, 0)


def test_a_command_that_does_not_come_to_its_end_after_a_crash_is_a_loss(campaign, tmp_path):
    busy = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done"
    campaign.kill(scene(tmp_path, f"mkdir .partial-1 || exit 1; {busy}; {ATOMIC}"), 4)
    assert 0 < campaign.rows["killed: script"]["cut short"] == faults(campaign)["lost"]


def test_half_a_video_is_seen_and_a_config_of_other_videos(tmp_path):
    video, config = tmp_path / "v.mp4", tmp_path / "v_config.json"
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 32, 32, 3), dtype=np.uint8)
    imageio.mimwrite(video, frames, fps=24)
    content = video.read_bytes()
    whole, told = look(video), {"sha256": hashlib.sha256(content).hexdigest()}
    config.write_text(json.dumps({"files": {"v.mp4": told}, "request": {"seed": 3}}))
    assert len(whole.split()) == FRAMES
    assert look(config) == "seed 3"
    video.write_bytes(content[: len(content) // 2])
    assert (look(video), look(config)) == ("half", "of other files")
    imageio.mimwrite(video, frames[1:], fps=24)
    assert look(video) == "half"
    video.unlink()
    assert (look(video), look(config)) == (None, "half")


def test_a_video_beside_another_runs_lossless_copy_is_half(campaign, tmp_path):
    disturbed = scene(tmp_path, "cp ../../new/v.mp4 .; exit 1")
    for folder, shade in (("old", 0), ("new", 255)):
        for name in ("v.mp4", "v_lossless.mkv"):
            imageio.mimwrite(tmp_path / folder / name, np.full((FRAMES, 32, 32, 3), shade, np.uint8), fps=24)
    place = campaign.place(disturbed)
    status = os.waitstatus_to_exitcode(os.waitpid(disturbed.begin(0, place), 0)[1])
    assert [kind for kind, _ in disturbed.judge(0, place, status)] == ["half"]


def test_plan_has_no_fault(campaign, tmp_path, monkeypatch):
    plan = plan_scene(tmp_path)
    campaign.kill(plan, 4)
    # As another user than root: the size of files is limited.
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    campaign.starve(plan, 2)
    campaign.crowd(plan, 1)
    assert campaign.rows["full disk: lemica plan"]["cut short"] > 0
    assert faults(campaign) == dict.fromkeys(FAULTS, 0)


def test_install_has_no_fault(campaign, tmp_path):
    for each in install_scenes(tmp_path):
        campaign.kill(each, 2)
        campaign.crowd(each, 1)
    assert faults(campaign) == dict.fromkeys(FAULTS, 0)


def test_the_stored_campaign_found_nothing():
    stored = json.loads(RESULT.read_text())
    assert as_text(stored) == RESULT.read_text()
    assert all(tuple(row) == COLUMNS and not any(row[kind] for kind in FAULTS) for row in stored["rows"].values())
    assert all(row["cut short"] for name, row in stored["rows"].items() if name.startswith("killed"))
