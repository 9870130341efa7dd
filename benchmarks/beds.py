"""Gateways side by side, each in network namespaces of its own between a peer and a tenant: Protego's
roles as `protego up` starts them, strongSwan with ESP in user space (its plugin kernel-libipsec), and the
least that two Python processes can do (`bare.py`).

    peer -- 198.51.100.0/24 -- gateway (VIP 203.0.113.10) -- 10.20.0.0/24 -- tenant

Behind strongSwan the tenant's host 10.1.0.5 is on the wire, and the kernel forwards between it and the TUN
device of the plugin. Behind Protego the host is behind a VTEP, and its packets go in VXLAN. The sockets of
both ends are this process's. The namespaces, and strongSwan in one, are those of the tests.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.bare import Part
from benchmarks.initiator import Agreed, Initiator
from protego_cli.ike.events import ChildSa, Policy
from protego_cli.ike.events import Path as Way
from protego_cli.net.udp import Address, UdpSocket
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, FRAME_LENGTH, build_frame_header
from tests.support.netns import CommandFailed, Namespace, inside, namespaces, stop, veth, wait_until
from tests.support.strongswan import strongswan

VIP, PEER = "203.0.113.10", "198.51.100.7"
HERE, THERE, PORT = "10.1.0.5", "10.2.0.9", 7  # the tenant's host, the peer's, and both hosts' UDP port
LOCAL, REMOTE = "10.1.0.0/24", "10.2.0.0/24"
VTEP, GEN = "10.20.0.5", "10.10.0.3"
VNI = 1001
GATEWAY_MAC, VTEP_MAC = bytes.fromhex("025000001001"), bytes.fromhex("020000000005")
IKE, ESP = "aes256gcm16-prfsha256-x25519", "aes256gcm16"
PSK = "a-pre-shared-key-of-good-length"
NATT, VXLAN = 4500, 4789
KEY_BYTES, SPI = 36, 0x1000
IP_UDP = 28  # bytes of the headers before a payload
NODES = {"gmn": "10.10.0.1", "gin": "10.10.0.2", "gen": GEN, "gpn": "10.10.0.11"}

CLUSTER = f"""\
[cluster]
name = "bench"
vips = ["{VIP}"]
pki = "pki"
state = "state"
ingress = "{{ingress}}"

{{nodes}}
[tenants.acme]
vni = {VNI}
gateway_mac = "{GATEWAY_MAC.hex(":")}"
attach = {{{{ kind = "vxlan", vteps = [
  {{{{ prefix = "{LOCAL}", address = "{VTEP}", mac = "{VTEP_MAC.hex(":")}" }}}},
] }}}}

[tenants.acme.tunnels.hq]
peer = "{PEER}"
local_id = "{VIP}"
remote_id = "{PEER}"
auth = {{{{ kind = "psk", file = "hq.psk" }}}}
local_ts = ["{LOCAL}"]
remote_ts = ["{REMOTE}"]
ike = ["{IKE}"]
esp = ["{ESP}"]
start = "wait"
"""

SWANCTL = f"""\
connections {{
  peer {{
    version = 2
    local_addrs = {VIP}
    remote_addrs = {PEER}
    encap = yes
    proposals = {IKE}
    local {{
      auth = psk
      id = {VIP}
    }}
    remote {{
      auth = psk
      id = {PEER}
    }}
    children {{
      lan {{
        local_ts = {LOCAL}
        remote_ts = {REMOTE}
        esp_proposals = {ESP}
      }}
    }}
  }}
}}
secrets {{
  ike-1 {{
    secret = "{PSK}"
  }}
}}
"""


class Bed(NamedTuple):
    """A gateway whose tunnel is up, and both its ends."""

    name: str
    processes: dict[str, int]  # process id
    initiator: Initiator | Agreed
    tenant: UdpSocket
    dest: Address  # where the tenant's socket sends to
    header: bytes  # what that puts before an inner packet
    bare: int  # bytes of an inner packet that the kernel adds and takes away
    before: int  # bytes before the inner payload in what it gets

    def wrap(self, inner: bytes) -> bytes:
        """An inner packet as the tenant's socket sends and gets it."""
        return self.header + inner[self.bare :]


@contextmanager
def protego(directory: Path, ingress: str) -> Iterator[Bed]:
    """GMN, GIN, GEN and a GPN, a process each; `ingress` is how the GIN steers."""
    with ExitStack() as stack:
        directory.mkdir()
        peer, gateway, tenant = _spaces(stack, ingress[0])
        gateway.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for address in NODES.values():
            gateway.ip("addr", "add", f"{address}/32", "dev", "lo")
        tenant.ip("route", "add", "10.10.0.0/24", "via", "10.20.0.1")
        file = directory / "cluster.toml"
        nodes = (f'[nodes.{name}]\nrole = "{name}"\naddress = "{NODES[name]}"\n\n' for name in NODES)
        file.write_text(CLUSTER.format(ingress=ingress, nodes="".join(nodes)))
        secret = directory / "hq.psk"
        secret.touch(mode=0o600)
        secret.write_text(PSK)
        command = sys.executable, "-m", "protego_cli"
        gateway.run(*command, "pki", "init", "-c", str(file))
        processes = {}
        for name in NODES:
            up = *command, "up", "--name", name, "-c", str(file)
            process = gateway.popen(*up, log=directory / f"{name}.log")
            stack.callback(stop, process)
            processes[name] = process.pid

        def ready() -> bool:
            try:
                status = json.loads(gateway.run(*command, "status", "--json", "-c", str(file)))
            except CommandFailed:  # the GMN is not listening yet
                return False
            return all(node["state"] == "up" for node in status["nodes"])

        wait_until(ready, "every node up", every=0.2)
        initiator = _initiator(stack, peer)
        vtep = _bind(stack, tenant, VTEP, VXLAN)
        header = build_frame_header(VNI, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
        initiator.dial()
        yield Bed(ingress, processes, initiator, vtep, (GEN, VXLAN), header, 0, FRAME_LENGTH + IP_UDP)


@contextmanager
def libipsec(directory: Path) -> Iterator[Bed]:
    """strongSwan's charon, which does ESP itself."""
    with ExitStack() as stack:
        peer, gateway, tenant = _spaces(stack, "s")
        gateway.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
        tenant.ip("addr", "add", f"{HERE}/32", "dev", "lo")
        tenant.ip("route", "add", REMOTE, "via", "10.20.0.1")
        gateway.ip("addr", "add", "10.1.0.1/32", "dev", "lo")  # the plugin wants one in the tunnel's prefix
        gateway.ip("route", "add", LOCAL, "via", VTEP)
        swan = stack.enter_context(strongswan(gateway, directory))
        swan.load(SWANCTL)
        initiator = _initiator(stack, peer)
        host = _bind(stack, tenant, HERE, PORT)
        initiator.dial()
        yield Bed("libipsec", {"charon": swan.pid}, initiator, host, (THERE, PORT), b"", IP_UDP, 0)


@contextmanager
def bare(directory: Path) -> Iterator[Bed]:
    """Two processes each way that have one SA and look at nothing."""
    with ExitStack() as stack:
        directory.mkdir()
        peer, gateway, tenant = _spaces(stack, "b")
        for address in NODES.values():
            gateway.ip("addr", "add", f"{address}/32", "dev", "lo")
        tenant.ip("route", "add", "10.10.0.0/24", "via", "10.20.0.1")
        gpn, key_in, key_out = NODES["gpn"], os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
        framed = build_frame_header(VNI, VTEP_MAC, GATEWAY_MAC, ETHERTYPE_IPV4)
        parts = {
            "gin": ("forward", Part((VIP, NATT), (gpn, NATT))),
            "gpn, in": ("open", Part((gpn, NATT), (VTEP, VXLAN), key_out, header=framed)),
            "gen": ("forward", Part((GEN, VXLAN), (gpn, VXLAN))),
            "gpn, out": ("seal", Part((gpn, VXLAN), (PEER, NATT), key_in, SPI)),
        }
        processes, logs = {}, []
        for name, (role, part) in parts.items():
            file, log = directory / f"{name}.json", directory / f"{name}.log"
            file.write_bytes(msgspec.json.encode(part))
            process = gateway.popen(sys.executable, "-m", "benchmarks.bare", role, str(file), log=log)
            stack.callback(stop, process)
            processes[name] = process.pid
            logs.append(log)
        wait_until(lambda: all(log.read_text() for log in logs), "every process ready", every=0.05)
        mine, theirs = ((TrafficSelector.from_prefix(prefix),) for prefix in (REMOTE, LOCAL))
        sock = _bind(stack, peer, PEER, NATT)
        way = Way(*sock.address, VIP, NATT)
        child = ChildSa("acme/hq", SPI, SPI, ESP, key_in, key_out, mine, theirs, way, ESP)
        vtep = _bind(stack, tenant, VTEP, VXLAN)
        header = build_frame_header(VNI, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
        before = FRAME_LENGTH + IP_UDP
        agreed = Agreed(sock, (VIP, NATT), child)
        yield Bed("bare", processes, agreed, vtep, (GEN, VXLAN), header, 0, before)


def _spaces(stack: ExitStack, label: str) -> Sequence[Namespace]:
    made = stack.enter_context(namespaces(*(f"{label}{end}" for end in ("peer", "gw", "ten"))))
    peer, gateway, tenant = made
    veth(peer, "wan", f"{PEER}/24", gateway, "wan", "198.51.100.1/24")
    veth(tenant, "lan", f"{VTEP}/24", gateway, "lan", "10.20.0.1/24")
    gateway.ip("addr", "add", f"{VIP}/32", "dev", "lo")
    peer.ip("route", "add", f"{VIP}/32", "via", "198.51.100.1")
    return made


def _initiator(stack: ExitStack, space: Namespace) -> Initiator:
    mine, theirs = (TrafficSelector.from_prefix(prefix) for prefix in (REMOTE, LOCAL))
    policy = Policy("acme/hq", VIP, PEER, VIP, PSK.encode(), (mine,), (theirs,), (IKE,), (ESP,))
    return Initiator(_bind(stack, space, PEER, NATT), (VIP, NATT), policy)


def _bind(stack: ExitStack, space: Namespace, address: str, port: int) -> UdpSocket:
    with inside(space):
        return stack.enter_context(closing(UdpSocket.bind(address, port)))
