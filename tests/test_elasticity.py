"""`python -m benchmarks.elasticity`: it measures, judges and draws; and the preset keeps to its figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import elasticity
from protego_cli.plugins.manager import load_plugins
from protego_cli.sim.engine import Setting
from protego_cli.sim.generator import PRESETS


def test_the_preset_shows_the_figure_of_the_paper() -> None:
    """Of one seed, and so not as close as the mean of ten has to be."""
    found = elasticity.figures(PRESETS["paper"], [0], ["protego"], [Setting(180.0), Setting(3600.0)])
    often, seldom = (elasticity.mean(outcomes) for outcomes in found.values())
    assert (often.saving, seldom.saving) == pytest.approx((0.88, 0.82), abs=0.02)
    assert (often.guarantee, seldom.guarantee) == pytest.approx((0.90, 0.986), abs=0.02)


def test_missed_targets_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(elasticity, "PAPER_SEEDS", range(1))
    monkeypatch.setattr(elasticity, "INTERVALS", (30, 60))
    assert elasticity.main(["paper", "--plot", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "missed: saving at 30 min, %" in told
    assert "guarantee at 60 min" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elasticity-3min.png", "elasticity-60min.png", "elasticity-paper.png",
    ]  # fmt: skip


def test_predictive_meets_its_targets_on_a_trace_that_it_was_not_tuned_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(elasticity, "SEEDS", 1)
    monkeypatch.setattr(elasticity, "OTHERS", {})
    assert elasticity.main(["predictive", "--first", "777"]) == 0
    assert "every target was met" in capsys.readouterr().out


def test_decisions_are_timed() -> None:
    packer = load_plugins().packing_policies()["protego"]
    timed = dict(elasticity.decisions(packer, tunnels=200, gpns=10))
    assert list(timed) == ["plan", "mitigate"]
    assert all(seconds > 0 for seconds in timed.values())
