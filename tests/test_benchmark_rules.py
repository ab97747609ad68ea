"""The benchmark of reuse rules: one real repeat on the tiny preset, with the released kit's cache and without."""

import json
import sys

import benchmark_rules
import pytest


@pytest.fixture
def measured(monkeypatch, tmp_path):
    def run():
        output = tmp_path / "rules.json"
        arguments = ["benchmark_rules.py", "tiny", "--repeats", "1", "--output", str(output)]
        monkeypatch.setattr(sys, "argv", arguments)
        benchmark_rules.main()
        return json.loads(output.read_text())

    return run


def test_every_rule_is_timed_with_as_much_kept_as_it_may_keep(measured, capsys):
    result = measured()
    rows = {row["rule"]: row for row in result["rows"]}
    assert len(rows) == 10
    for rule, tensors in (("residual + hold", 1), ("residual + damped-sigma", 2), ("output + quadratic-sigma", 3)):
        assert rows[rule]["tensors"] == tensors
        assert rows[rule]["held_bytes"] == tensors * result["residual_bytes"]
    # Latent channels over width, in the tiny model too.
    assert rows["velocity + hold"]["held_bytes"] == result["residual_bytes"] * 32 / 64
    assert all(row["reused_step"] > 0 and row["of_released"] > 0 for row in rows.values())
    assert "| released kit |" in capsys.readouterr().out


def test_rules_are_timed_alone_where_the_released_kits_cache_does_not_fit(measured, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_rules, "attempt", lambda _: None)
    result = measured()
    assert result["released"] is None
    assert all(row["reused_step"] > 0 and row["of_released"] is None for row in result["rows"])
    assert "| released kit |" not in capsys.readouterr().out
