"""Synthetic traces: what each parameter does, and that a seed says everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protego_cli.cli.trace import PRESETS as OFFERED
from protego_cli.errors import UsageError
from protego_cli.sim.generator import PRESETS, RANGES, Recipe, generate

STILL = Recipe(diurnal=0.0, sigma=0.0, bursts=0.0)


def test_a_seed_says_everything() -> None:
    first, again, other = (generate(Recipe(), seed).demand for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()


def test_the_command_line_offers_the_presets_that_there_are() -> None:
    assert set(OFFERED) == set(PRESETS)


@settings(deadline=None, max_examples=30)
@given(
    st.builds(
        Recipe,
        tunnels=st.integers(1, 30),
        duration=st.floats(60, 7200),
        step=st.sampled_from([10.0, 60.0]),
        mean=st.floats(0, 1e4),
        line=st.floats(0, 2000),
        tail=st.floats(0.1, 10),
        largest=st.floats(1, 100),
        diurnal=st.floats(0, 1),
        spread=st.floats(0, 24),
        sigma=st.floats(0, 5),
        phi=st.floats(0, 0.9999),
        bursts=st.floats(0, 1440),
        length=st.floats(0, 100),
        height=st.floats(0, 1000),
    )
)
def test_any_recipe_makes_a_trace(recipe: Recipe) -> None:
    trace = generate(recipe, 1)
    assert trace.demand.shape == (recipe.steps, recipe.tunnels)
    assert trace.step == recipe.step
    assert ((trace.demand >= 0) & (trace.demand <= recipe.line + 0.001)).all()


def test_means_are_heavy_tailed_and_average_what_they_should() -> None:
    means = generate(replace(STILL, line=1e6, tunnels=2000, duration=60.0), 1).demand[0]
    assert means.mean() == pytest.approx(90, rel=1e-3)
    assert means.max() <= 8 * 90 * 1.01
    assert np.median(means) < 60
    light = generate(replace(STILL, line=1e6, tunnels=2000, duration=60.0, tail=20.0), 1).demand[0]
    assert np.median(light) == pytest.approx(90, rel=0.05)


def test_days_have_their_peak_and_their_valley() -> None:
    total = generate(replace(STILL, line=1e6, diurnal=0.5, spread=0.0, peak=14.0), 1).demand.sum(axis=1)
    assert total.argmax() == pytest.approx(14 * 60, abs=2)
    assert total.argmin() == pytest.approx(2 * 60, abs=2)
    assert total.max() / total.min() == pytest.approx(3, rel=0.01)
    apart = generate(replace(STILL, line=1e6, diurnal=0.5, spread=6.0), 1).demand.sum(axis=1)
    assert apart.max() / apart.min() < 2


@pytest.mark.parametrize("step", [60.0, 10.0])
def test_noise_has_its_deviation_and_its_correlation(step: float) -> None:
    recipe = replace(STILL, line=1e6, sigma=0.3, phi=0.8, step=step, tail=1e2, duration=6 * 3600.0)
    demand = generate(recipe, 1).demand
    noise = np.log(demand / demand.mean(axis=0))
    noise -= noise.mean(axis=0)
    minute = round(60 / step)
    assert noise.std() == pytest.approx(0.3, rel=0.05)
    assert (noise[minute:] * noise[:-minute]).mean() / noise.var() == pytest.approx(0.8, abs=0.03)
    assert demand.mean() == pytest.approx(90, rel=0.02)


def test_bursts_come_as_often_and_last_as_long_as_they_should() -> None:
    recipe = replace(STILL, line=1e6, bursts=4.0, length=5.0, height=2.0)
    demand = generate(recipe, 1).demand
    calm = generate(replace(recipe, bursts=0.0), 1).demand
    above = demand / calm - 1
    begins = ((above[1:] > 0.01) & (above[:-1] <= 0.01)).sum()
    assert begins / 170 == pytest.approx(4, rel=0.1)
    assert (above > 0.01).sum() / begins == pytest.approx(5, rel=0.1)
    assert above.mean() == pytest.approx(4 * 5 / 1440 * 2, rel=0.15)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_what_makes_no_sense_is_named(name: str) -> None:
    low, high = RANGES[name]
    for value in (low - 1, high * 2 + 1):
        with pytest.raises(UsageError, match=f"^{name}: expected a number from"):
            generate(replace(Recipe(), **{name: value}), 1)  # type: ignore[arg-type]


def test_a_trace_is_no_larger_than_memory() -> None:
    with pytest.raises(UsageError, match="1,440 steps of 1,000,000 tunnels are more than 50,000,000 values"):
        generate(replace(Recipe(), tunnels=1_000_000), 1)
