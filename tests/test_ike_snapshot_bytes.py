"""Bytes that are no state of an IKE_SA raise a StateError and nothing else; no secret shows."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.errors import StateError
from protego_cli.ike import snapshot
from protego_cli.ike.exchanges.delete import WithdrawState
from tests.support.ike_pairs import connected
from tests.support.ike_restarts import fresh
from tests.support.ike_scenes import EXCHANGES, SCENES, changed, crossing, parsed, rekeying, states
from tests.support.ike_strategies import mutations


def test_no_secret_shows() -> None:
    _, gateway, _ = rekeying()
    (data,) = states(gateway)
    state = parsed(data)
    assert state.keys is not None
    shown = repr(state) + repr(state.current) + repr(state.children) + str(state)
    for secret in (state.keys.d, state.keys.ei, state.children[0].sa.key_in, state.current.request.share[1]):  # type: ignore[union-attr]  # a rekey
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


VALID = [state for scene in (*SCENES.values(), *EXCHANGES.values(), crossing) for state in states(scene()[1])]


@given(st.sampled_from(VALID).flatmap(mutations))
def test_mutated_bytes_raise_one_error_or_work(data: bytes) -> None:
    engine = fresh()
    try:
        engine.restore([data], 1000.0)
    except StateError:
        return
    engine.handle_timer(1e9)
    for _, state in engine.changes():
        if state is not None:
            fresh(3).restore([state], 1000.0)


@given(st.sampled_from(VALID), st.data())
def test_truncated_bytes_raise_the_error(data: bytes, draw: st.DataObject) -> None:
    with pytest.raises(StateError):
        fresh().restore([data[: draw.draw(st.integers(0, len(data) - 1))]], 1000.0)


@given(st.binary(max_size=200))
def test_any_bytes_raise_the_error(data: bytes) -> None:
    for prefix in (b"", bytes((snapshot.VERSION,))):
        with pytest.raises(StateError):
            fresh().restore([prefix + data], 1000.0)


@pytest.mark.parametrize("spi", [-1, 0, 255, 1 << 32])
def test_spis_that_cannot_be_are_refused(spi: int) -> None:
    network, gateway, _ = connected()
    (state,) = states(gateway)
    child = parsed(state).children[0]
    for field in ("spi_in", "spi_out"):
        wrong = msgspec.structs.replace(child, sa=dataclasses.replace(child.sa, **{field: spi}))
        with pytest.raises(StateError, match="an SPI that cannot be"):
            fresh().restore([changed(state, children=(wrong,))], network.now)
    if not 0 < spi < 1 << 32:
        with pytest.raises(StateError, match="does not parse"):
            fresh().restore([changed(state, queue=(WithdrawState(spi),))], network.now)


def test_a_state_twice_is_refused() -> None:
    network, gateway, _ = connected()
    (state,) = states(gateway)
    for twin in (
        state,
        changed(state, spi_r=b"12345678"),  # the handle
        changed(state, spi_r=b"12345678", handle=77, request_key=None),  # the CHILD_SA
        changed(state, spi_r=b"12345678", handle=77, children=()),  # the request
    ):
        with pytest.raises(StateError, match="what another one names"):
            fresh().restore([state, twin], network.now)


def test_restore_comes_first() -> None:
    network, gateway, _ = connected()
    with pytest.raises(RuntimeError):
        gateway.engine.restore([], network.now)
