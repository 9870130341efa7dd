"""What the endpoint processes of a local run must know; `layout.py` makes it up and writes it down."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Site(msgspec.Struct, frozen=True):
    """One tenant with its tunnel: the two endpoints whose traffic is counted."""

    tenant: int  # 1, 2, …: the number in its payloads
    tunnel: str  # "t1/hq"
    vni: int
    peer: str  # address of the on-premises gateway
    vtep: str  # address of the tenant's VTEP
    vtep_mac: bytes
    gateway_mac: bytes


class Replay(msgspec.Struct, frozen=True):
    """What tunnels send, step by step."""

    step: float  # seconds
    rates: tuple[tuple[float, ...], ...]  # bytes per second and direction, of each site in each step

    @property
    def seconds(self) -> float:
        return self.step * len(self.rates)


class Elastic(msgspec.Struct, frozen=True):
    """GPNs that come and go by themselves, and what makes them."""

    packing: str
    interval: float  # seconds between consolidations
    bandwidth: int  # bits per second of a GPN
    replay: Replay


class Plan(msgspec.Struct, frozen=True):
    """What the endpoint processes need beyond the cluster file."""

    cluster_file: str
    vip: str
    nodes: dict[str, str]  # name -> address
    sites: tuple[Site, ...]
    pps: int
    elastic: Elastic | None = None  # then the GPNs are those of a pool

    @property
    def gen(self) -> str:
        return self.nodes["gen-1"]

    @property
    def gpns(self) -> list[str]:
        return [name for name in self.nodes if name.startswith("gpn-")]


def read(path: Path) -> Plan:
    return msgspec.json.decode(path.read_bytes(), type=Plan)
