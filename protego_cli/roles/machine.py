"""What a machine has and how it is set up, as far as its nodes care: facts for `doctor.py`, read in one go.

Nothing here changes anything. Ports are tried by binding them for a moment, steering by a table that goes
with the process that made it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from protego_cli.config.checks import check_secrets
from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel.pki import client_context, validity
from protego_cli.control.state.vault import unfit
from protego_cli.errors import EnvironmentFault
from protego_cli.net.nft import find
from protego_cli.net.steering import SteeringBackend
from protego_cli.net.tun import CLONE_DEVICE, NAMESPACES
from protego_cli.net.udp import UDP_GRO, UDP_SEGMENT

# linux/capability.h
CAPABILITIES: Final = {10: "NET_BIND_SERVICE", 12: "NET_ADMIN", 13: "NET_RAW", 21: "SYS_ADMIN"}
IP_MTU: Final = 14  # linux/in.h
MERGING: Final = ("rx-udp-gro-forwarding", "rx-gro-list")
"""Device features that make the kernel merge datagrams which no socket has asked to be merged."""

_PER_DEVICE = ("rp_filter", "arp_ignore", "arp_announce", "send_redirects")
_GLOBAL = ("net.core.rmem_max", "net.core.wmem_max", "net.ipv4.ip_unprivileged_port_start")

# linux/ethtool.h, linux/sockios.h, linux/if.h
_SIOCGIFFLAGS, _UP, _LOOPBACK = 0x8913, 1, 8
_SIOCETHTOOL, _GET_STRINGS, _GET_COUNTS, _GET_FEATURES, _FEATURES = 0x8946, 0x1B, 0x37, 0x3A, 4
_NAME_BYTES = 32


class Device(NamedTuple):
    """A network device that is up."""

    loopback: bool
    merging: tuple[str, ...] = ()  # those of MERGING that are on


class Way(NamedTuple):
    """How the kernel gets to an address."""

    mtu: int
    device: str


class Socket(NamedTuple):
    """What a node listens on."""

    protocol: str  # udp, tcp
    address: str
    port: int


@dataclass(frozen=True)
class Machine:
    now: float
    cores: int
    addresses: Mapping[str, str]  # IPv4 address -> device
    devices: Mapping[str, Device]
    capabilities: frozenset[str] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, Way | None] = field(default_factory=dict)  # by address; None where there is none
    steering: Mapping[str, str | None] = field(default_factory=dict)  # backend -> why it cannot run
    closed: Mapping[str, str] = field(default_factory=dict)  # chains that pass on only what their rules name
    gro: bool = True
    gso: bool = True
    tun: str | None = None  # what keeps a TUN device from being made
    namespaces: frozenset[str] = frozenset()
    holders: Mapping[Socket, str] = field(default_factory=dict)  # of ports that are taken: the command
    faults: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # node -> what is wrong with files
    certificates: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # node -> valid from, to

    def sysctl(self, device: str, name: str) -> int:
        """What is in force for a device: the kernel takes the larger of its own and that of `all`."""
        values = (self.sysctls.get(f"net.ipv4.conf.{which}.{name}", "0") for which in ("all", device))
        return max(map(int, values))


def local_nodes(cluster: Cluster, addresses: Iterable[str]) -> list[Node]:
    """The nodes whose address is here."""
    here = frozenset(addresses)
    return [node for node in cluster.nodes if node.address in here]


def addresses() -> dict[str, str]:
    """The machine's IPv4 addresses and their devices. Raises EnvironmentFault."""
    if shutil.which("ip") is None:
        raise EnvironmentFault("`ip` is not installed: `apt install iproute2`")
    return {
        entry["local"]: device["ifname"]
        for device in _ip("-4", "address")
        for entry in device.get("addr_info", ())
        if "local" in entry
    }


def survey(
    cluster: Cluster, nodes: Sequence[Node], backends: Mapping[str, SteeringBackend], here: Mapping[str, str]
) -> Machine:
    """All that the checks of these nodes ask for."""
    roles = {node.role for node in nodes}
    named = {node.ingress or cluster.ingress for node in nodes if node.role == "gin"}
    certificates, faults = _files(cluster, nodes)
    devices = _devices()
    return Machine(
        now=time.time(),
        cores=len(os.sched_getaffinity(0)),
        addresses=here,
        devices=devices,
        capabilities=_capabilities(),
        sysctls=_sysctls(devices),
        paths={address: _way(address) for address in _reached(cluster, roles)},
        steering={
            name: backend.unavailable("gin")
            for name, backend in backends.items()
            if name in named or (name == "nftables" and "auto" in named)
        },
        closed=_closed_chains(),
        gro=_option(UDP_GRO, 1),
        gso=_option(UDP_SEGMENT, 0),
        tun=_tun(),
        namespaces=frozenset(path.name for path in NAMESPACES.glob("*")),
        holders={sock: holder for sock in listeners(cluster, nodes) if (holder := _holder(sock)) is not None},
        faults=faults,
        certificates=certificates,
    )


def listeners(cluster: Cluster, nodes: Iterable[Node]) -> list[Socket]:
    """What these nodes bind."""
    found = []
    for node in nodes:
        found += [Socket(protocol, node.address, port) for _, protocol, port in node.listens()]
        if node.role == "gin":
            ports = [port for port in (node.ports.ike, node.ports.natt) if port]
            found += [Socket("udp", vip, port) for vip in cluster.vips for port in ports]
    return found


def _reached(cluster: Cluster, roles: Iterable[str]) -> set[str]:
    """Where nodes of these roles send to in the fabric."""
    found: set[str] = set()
    for role in roles:
        if role in ("gin", "gen"):
            found |= {node.address for node in cluster.nodes_of("gpn")}
        if role == "gpn":
            found |= {node.address for node in cluster.nodes_of("gen")}
            found |= {vtep.address for tenant in cluster.tenants for vtep in tenant.vteps}
    return found


def _files(
    cluster: Cluster, nodes: Iterable[Node]
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[str, ...]]]:
    """The certificates' times, and what is wrong with files, by node."""
    certificates: dict[str, tuple[float, float]] = {}
    faults: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        wrong = []
        try:
            certificates[node.name] = validity(cluster, node.name)
            client_context(cluster, node.name)
        except EnvironmentFault as fault:
            wrong.append(str(fault))
        if node.role == "gmn":
            wrong += [*map(str, check_secrets(cluster)), *unfit(cluster)]
        faults[node.name] = tuple(wrong)
    return certificates, faults


def _capabilities() -> frozenset[str]:
    text = _read(Path("/proc/self/status"))
    mask = int(text.partition("CapEff:")[2].split()[0], 16)
    return frozenset(name for bit, name in CAPABILITIES.items() if mask >> bit & 1)


def _sysctls(devices: Iterable[str]) -> dict[str, str]:
    found = {name: _read(Path("/proc/sys", *name.split("."))) for name in _GLOBAL}
    for device in ("all", *devices):
        for name in _PER_DEVICE:  # a device's name may hold dots
            found[f"net.ipv4.conf.{device}.{name}"] = _read(Path("/proc/sys/net/ipv4/conf", device, name))
    return {name: value for name, value in found.items() if value}


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _option(option: int, value: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError:
            return False
        return True


def _way(address: str) -> Way | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((address, 9))  # sends nothing
            mtu = sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
        except OSError:
            return None
    routes = _ip("route", "get", address)
    return Way(mtu, routes[0]["dev"]) if routes else None


def _ip(*arguments: str) -> list[dict[str, Any]]:
    """What `ip` lists; nothing where it refuses."""
    command = ["ip", "-json", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, timeout=10)  # noqa: S603 - addresses
    return list(json.loads(done.stdout or b"[]"))


def _closed_chains() -> dict[str, str]:
    """FAMILY TABLE CHAIN of what drops forwarded IPv4 by default, with its rules, as far as one may see."""
    found = {}
    for entry in json.loads(_nft("-j", "list", "chains") or "{}").get("nftables", ()):
        chain = entry.get("chain", {})
        drops = chain.get("hook") == "forward" and chain.get("policy") == "drop"
        if drops and chain["family"] in ("ip", "inet"):
            name = chain["family"], chain["table"], chain["name"]
            found[" ".join(name)] = _nft("list", "chain", *name)
    return found


def _nft(*arguments: str) -> str:
    """What nft lists; nothing where it is missing or refuses."""
    program = find()
    if program is None:
        return ""
    command = [program, *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=10)  # noqa: S603 - names
    return done.stdout


def _tun() -> str | None:
    try:
        os.close(os.open(CLONE_DEVICE, os.O_RDWR))
    except OSError as error:
        return f"{CLONE_DEVICE}: {error.strerror}"
    return None


def _devices() -> dict[str, Device]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return {
            name: Device(bool(flags & _LOOPBACK), _merging(sock, name))
            for _, name in socket.if_nameindex()
            if (flags := _flags(sock, name)) & _UP
        }


def _flags(sock: socket.socket, device: str) -> int:
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH22x", device.encode(), 0))
    except OSError:  # it has gone
        return 0
    return int(struct.unpack_from("=H", answer, 16)[0])


def _merging(sock: socket.socket, device: str) -> tuple[str, ...]:
    """Which of MERGING are on, by the ethtool interface."""

    def ask(request: array.array[int]) -> None:
        address = request.buffer_info()[0]
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sQ16x", device.encode(), address))

    try:
        counts = array.array("B", struct.pack("=IIQI", _GET_COUNTS, 0, 1 << _FEATURES, 0))
        ask(counts)
        (count,) = struct.unpack_from("=I", counts, 16)
        strings = array.array(
            "B", struct.pack("=III", _GET_STRINGS, _FEATURES, count) + bytes(count * _NAME_BYTES)
        )
        ask(strings)
        blocks = -(-count // 32)
        features = array.array("B", struct.pack("=II", _GET_FEATURES, blocks) + bytes(blocks * 16))
        ask(features)
    except OSError:  # a device without
        return ()
    named = strings.tobytes()[12:]
    names = [
        named[at : at + _NAME_BYTES].split(b"\0")[0].decode() for at in range(0, len(named), _NAME_BYTES)
    ]
    active = [struct.unpack_from("=I", features, 8 + block * 16 + 8)[0] for block in range(blocks)]
    return tuple(
        name for index, name in enumerate(names) if name in MERGING and active[index // 32] >> index % 32 & 1
    )


def _holder(wanted: Socket) -> str | None:
    """The command of who holds a port, as far as it can be seen; None when it is free, or not to be tried."""
    kind = socket.SOCK_DGRAM if wanted.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as sock:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((wanted.address, wanted.port))
        except OSError as error:
            return _command(wanted) if error.errno == errno.EADDRINUSE else None
        return None


def _command(held: Socket) -> str:
    """Who has this socket open."""
    places = {
        f"{struct.unpack('=I', socket.inet_aton(address))[0]:08X}:{held.port:04X}"
        for address in (held.address, "0.0.0.0")  # noqa: S104 - looked for, not bound
    }
    rows = (line.split() for line in _read(Path("/proc/net", held.protocol)).splitlines()[1:])
    wanted = {f"socket:[{row[9]}]" for row in rows if row[1] in places}
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # others' processes, and those that have ended
            for descriptor in descriptors.iterdir():
                if str(descriptor.readlink()) in wanted:
                    return _read(descriptors.parent / "cmdline").replace("\0", " ").strip()
    return "a process that cannot be seen"
