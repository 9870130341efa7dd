"""Golden packets by scapy (`tests/golden/make.py`): packets in, verdicts, packets out, each with its TOS."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protego_cli.counters import Counters
from protego_cli.esp.gateway import Gateway, Neighbour
from protego_cli.esp.outbox import Send
from protego_cli.esp.pairs import SaEntry
from protego_cli.esp.tenants import Vtep
from protego_cli.wire.selectors import TrafficSelector
from tests.golden.make import FILE, make
from tests.support.esp_world import REGISTRY

GOLDEN: dict[str, Any] = json.loads(FILE.read_text())
SA = GOLDEN["sa"]
GIN = ("10.10.0.2", 4501)
GEN = (SA["gen"], 4789)


def gateway(counters: Counters) -> Gateway:
    made = Gateway(counters, bytes)
    made.put_neighbour("gin-1", Neighbour(GIN[0], None, bytes(32)))
    made.put_neighbour("gen-1", Neighbour(SA["gen"], GEN, bytes(32)))
    vteps = [
        Vtep(prefix, SA["vtep"], 4789, bytes.fromhex(SA["vtep_mac"]))
        for prefix in ("10.1.0.0/16", *SA["local"])
    ]
    made.put_tenant(SA["vni"], bytes.fromhex(SA["gateway_mac"]), vteps)
    made.put_sa(
        SaEntry(
            spi_in=SA["spi_in"],
            spi_out=SA["spi_out"],
            tunnel="acme/hq",
            vni=SA["vni"],
            suite=REGISTRY.esp_suite(SA["suite"], None, esn=False),
            key_in=bytes.fromhex(SA["key_in"]),
            key_out=bytes.fromhex(SA["key_out"]),
            local_ts=tuple(map(TrafficSelector.from_prefix, SA["local"])),
            remote_ts=tuple(map(TrafficSelector.from_prefix, SA["remote"])),
            vip=SA["vip"],
            peer=(SA["peer"], 4500),
            seal_lo=1,
            seal_hi=1 << 30,
        )
    )
    made.put_rule("acme/hq", SA["spi_in"])
    return made


def give(made: Gateway, case: dict[str, Any]) -> list[Send]:
    packet = memoryview(bytes.fromhex(case["in"]))
    if case["port"] == "esp":
        return made.receive_esp(packet, len(packet), GIN, 0.0, case["tos"])
    return made.receive_vxlan(packet, len(packet), GEN, 0.0, case["tos"])


def test_every_packet_gets_its_verdict() -> None:
    """One gateway takes them all, for windows and numbers go on from case to case."""
    counters = Counters()
    made = gateway(counters)
    for case in GOLDEN["cases"]:
        before = dict(counters)
        sends = give(made, case)
        counted = [name for name, count in counters.items() if count != before[name]]
        verdicts = counted + [send.way.counter for send in sends]
        assert verdicts == [case["verdict"]], case["description"]
        assert [bytes(send.data).hex() for send in sends] == [case["out"]][: len(sends)], case["description"]
        for send in sends:
            esp = case["port"] == "vxlan"
            assert send.way.dest == ((SA["peer"], 4500) if esp else (SA["vtep"], 4789))
            assert send.way.tos == case["out_tos"], case["description"]
            assert send.way.source == (SA["vip"] if esp else None)


def test_the_file_is_what_its_maker_writes() -> None:
    assert make() == GOLDEN


@pytest.mark.parametrize("port", ["esp", "vxlan"])
def test_both_verdicts_are_there(port: str) -> None:
    outs = {bool(case["out"]) for case in GOLDEN["cases"] if case["port"] == port}
    assert outs == {True, False}
