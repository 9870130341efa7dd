"""The hook that provides steering backends, and the built-in one behind it."""

from __future__ import annotations

from protego_cli.counters import Counters
from protego_cli.net.steering import Egress, Gpn, Ingress, SteeringBackend
from protego_cli.plugins import steering_backends
from tests.support.senders import RecordingSender


def test_the_built_in_plugin_provides_mux() -> None:
    backends = steering_backends.protego_steering_backends()
    assert [backend.name for backend in backends] == ["mux"]


def test_mux_runs_everywhere_and_makes_both_steerings() -> None:
    backend: SteeringBackend = steering_backends.Mux()
    assert backend.unavailable() is None
    ingress: Ingress = backend.ingress(RecordingSender(), Counters())
    egress: Egress = backend.egress(RecordingSender(), Counters(), lambda *_: None)
    assert ingress.marks([1]) == {1: 0}
    egress.drop_route("acme/hq")


def test_a_gpns_key_is_not_shown() -> None:
    assert "secret" not in repr(Gpn("gpn-1", ("10.10.0.21", 4500), b"secret"))
