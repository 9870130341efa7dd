"""The cluster that `protego local` makes up: addresses, cluster file, keys, and the plan of its endpoints.

1. `claim()` takes a block of 4096 loopback addresses, 127.A.B.0/20, for as long as its socket is open, so
   that several runs on one machine never meet. Linux treats all of 127.0.0.0/8 as local: no root is needed.
2. `plan()` assigns the addresses (pure): nodes in 127.A.B, peers from 127.A.B+1 on, tenants' VTEPs from
   127.A.B+8 on.
3. `write()` puts the cluster file, the PSKs, the PKI and the plan into a directory.

Every node has an address of its own, so every one listens on the standard ports, except UDP 500, which
needs privilege: peers dial 4500 (RFC 7296 2.23). All tenants have the same inner subnets.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import msgspec

from protego_cli.config.load import load
from protego_cli.control.channel import pki
from protego_cli.errors import EnvironmentFault
from protego_cli.lab.plan import Elastic, Plan, Site

MAX_TENANTS = 1500
MAX_GPNS = 100
LOCAL_TS = ("10.1.0.0/24", "fd00:1::/64")
REMOTE_TS = ("10.2.0.0/24", "fd00:2::/64")

_ATTEMPTS = 64
_CLAIM_PORT = 7443


def claim() -> tuple[str, socket.socket]:
    """A free block's first three octets ("127.A.B") and the socket that holds the claim on it."""
    for _ in range(_ATTEMPTS):
        second, third = 1 + secrets.randbelow(254), 16 * secrets.randbelow(16)
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            holder.bind((f"127.{second}.{third + 15}.1", _CLAIM_PORT))
        except OSError:
            holder.close()
            continue
        return f"127.{second}.{third}", holder
    raise EnvironmentFault(
        "no loopback addresses are free: none of 127.0.0.0/8 that was tried can be bound; "
        "`ip -4 route show table local` should list `local 127.0.0.0/8 dev lo`"
    )


def plan(
    directory: Path, block: str, *, tenants: int, gpns: int, pps: int, elastic: Elastic | None = None
) -> Plan:
    """Assign an address to everything."""
    prefix, third = block.rsplit(".", 1)
    nodes = {"gmn-1": f"{block}.2", "gin-1": f"{block}.3", "gen-1": f"{block}.4"}
    nodes |= {f"gpn-{i}": f"{block}.{10 + i}" for i in range(1, gpns + 1)}
    sites = tuple(
        Site(
            tenant=i,
            tunnel=f"t{i}/hq",
            vni=1000 + i,
            peer=f"{prefix}.{int(third) + 1 + i // 256}.{i % 256}",
            vtep=f"{prefix}.{int(third) + 8 + i // 256}.{i % 256}",
            vtep_mac=bytes((2, 0, 0, 0, *i.to_bytes(2))),
            gateway_mac=bytes((2, 0x50, 0, 0, *i.to_bytes(2))),
        )
        for i in range(1, tenants + 1)
    )
    return Plan(str(directory / "cluster.toml"), f"{block}.1", nodes, sites, pps, elastic)


def cluster_toml(plan: Plan) -> str:
    """The cluster file, in the format that every cluster file has."""
    lines = ["[cluster]", 'name = "local"', f'vips = ["{plan.vip}"]', 'pki = "pki"', 'state = "state"']
    if plan.elastic is not None:
        lines += _elastic(plan, plan.elastic)
    for name, address in plan.nodes.items():
        role = name.partition("-")[0]
        if role == "gpn" and plan.elastic is not None:
            continue  # the pool's
        lines += ["", f"[nodes.{name}]", f'role = "{role}"', f'address = "{address}"']
        if role == "gin":
            lines.append("ports = { ike = 0 }")
    for site in plan.sites:
        name, _, tunnel = site.tunnel.partition("/")
        vteps = ", ".join(
            f'{{ prefix = "{prefix}", address = "{site.vtep}", mac = "{site.vtep_mac.hex(":")}" }}'
            for prefix in LOCAL_TS
        )
        lines += [
            "",
            f"[tenants.{name}]",
            f"vni = {site.vni}",
            f'gateway_mac = "{site.gateway_mac.hex(":")}"',
            f'attach = {{ kind = "vxlan", vteps = [{vteps}] }}',
            "",
            f"[tenants.{name}.tunnels.{tunnel}]",
            f'peer = "{site.peer}"',
            f'local_id = "{plan.vip}"',
            f'remote_id = "{site.peer}"',
            f'auth = {{ kind = "psk", file = "{_psk(site)}" }}',
            f"local_ts = {_toml_list(LOCAL_TS)}",
            f"remote_ts = {_toml_list(REMOTE_TS)}",
        ]
    return "\n".join(lines) + "\n"


def _elastic(plan: Plan, elastic: Elastic) -> list[str]:
    """GPNs of a pool, filled to the last bit, at a pace at which a minute of the trace passes in a second."""
    first, last = plan.nodes[plan.gpns[0]], plan.nodes[plan.gpns[-1]]
    return [
        f'packing = "{elastic.packing}"',
        "",
        "[elastic]",
        'mode = "on"',
        f"interval = {elastic.interval:g}",
        "high = 1.0",
        "low = 1.0",
        "hold = 1",
        "moves_per_hour = 3600",
        "window = 1",
        "",
        "[ike]",
        "linger = 1.0",
        "",
        "[pools.gpn]",
        f'addresses = "{first}-{last}"',
        "minimum = 1",
        f"maximum = {len(plan.gpns)}",
        f"bandwidth = {elastic.bandwidth}",
        "launch = 20",
        'provisioner = { kind = "local", lifeline = true, arguments = ["--log-level", "warning"] }',
    ]


def write(plan: Plan) -> Path:
    """Write everything next to the cluster file; returns the path of the plan."""
    file = Path(plan.cluster_file)
    directory = file.parent
    file.write_text(cluster_toml(plan))
    (directory / "secrets").mkdir(mode=0o700)
    for site in plan.sites:
        psk = directory / _psk(site)
        psk.touch(mode=0o600)
        psk.write_text(secrets.token_hex(32) + "\n")
    pki.init(load(file))
    path = directory / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    return path


def _psk(site: Site) -> str:
    return f"secrets/{site.tunnel.replace('/', '-')}.psk"


def _toml_list(items: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"
