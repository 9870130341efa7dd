"""The hook that provides steering backends, and the built-in one behind it."""

from __future__ import annotations

import logging
from typing import Literal

import pytest

from protego_cli.counters import Counters
from protego_cli.errors import EnvironmentFault
from protego_cli.net.steering import Door, Egress, Gpn, Ingress, SteeringBackend, choose
from protego_cli.plugins import steering_backends
from tests.support.senders import RecordingSender

DOOR = Door("demo.gin-1", ("192.0.2.10",), 4500)


def test_the_built_in_plugin_provides_mux_and_nftables() -> None:
    backends = steering_backends.protego_steering_backends()
    assert [backend.name for backend in backends] == ["mux", "nftables"]


def test_mux_runs_everywhere_and_makes_both_steerings() -> None:
    backend: SteeringBackend = steering_backends.Mux()
    assert backend.unavailable("gin") is None
    ingress: Ingress = backend.ingress(RecordingSender(), Counters(), DOOR)
    egress: Egress = backend.egress(RecordingSender(), Counters(), lambda *_: None)
    assert ingress.marks([1]) == {1: 0}
    egress.drop_route("acme/hq")


class Broken(steering_backends.Mux):
    name = "nftables"

    def unavailable(self, role: Literal["gin", "gen"]) -> str | None:
        return "it is broken: mend it" if role == "gin" else None


def test_auto_is_nftables_where_it_can_run_else_mux(caplog: pytest.LogCaptureFixture) -> None:
    mux = steering_backends.Mux()
    caplog.set_level(logging.INFO)
    assert choose({"mux": mux, "nftables": Broken()}, "auto", "gen").name == "nftables"
    assert not caplog.records  # in a GEN that is `mux` by another name
    assert choose({"mux": mux, "nftables": Broken()}, "auto", "gin") is mux
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.endswith("backend=nftables reason=it is broken: mend it")
    with pytest.raises(EnvironmentFault, match="steering backend nftables: it is broken: mend it"):
        choose({"mux": mux, "nftables": Broken()}, "nftables", "gin")


def test_a_gpns_key_is_not_shown() -> None:
    assert "secret" not in repr(Gpn("gpn-1", ("10.10.0.21", 4500), b"secret"))
