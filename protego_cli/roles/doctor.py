"""What is set wrong on a machine for the nodes that are to run there: verdicts over `machine.py`.

Each check is a pure function of the cluster file, a node and the machine. It yields what it found good as
well, so that a reader sees what was looked at; only checks that matter for a node's role are made for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from protego_cli.config.model import AUTO, Cluster, Node, Role, TunAttach
from protego_cli.net.tun import ETHERNET_MTU
from protego_cli.roles.machine import MERGING, Machine, listeners

BUFFER: Final = 8 << 20  # bytes of socket buffer that a node asks for
VXLAN_OVERHEAD: Final = 50  # bytes: IPv4, UDP, VXLAN and the inner Ethernet header
_REMOVE: Final = "; remove it and its key"  # what `pki` says of a certificate that is no good
EXPIRY_NOTICE: Final = 30 * 86400.0
UDP_HEADER: Final = 8
STRICT: Final = 1  # rp_filter

State = Literal["ok", "warning", "wrong"]


class Finding(msgspec.Struct, frozen=True):
    """One verdict; `mend` is the command that mends it, where there is one."""

    node: str
    check: str
    state: State
    says: str
    mend: str | None = None


Check = Callable[[Cluster, Node, Machine], Iterator[Finding]]


def examine(cluster: Cluster, nodes: Sequence[Node], machine: Machine) -> list[Finding]:
    """Every check of every node's role."""
    return [
        finding for node in nodes for check in CHECKS[node.role] for finding in check(cluster, node, machine)
    ]


def steers_in_kernel(cluster: Cluster, gins: Iterable[Node]) -> bool:
    return any((gin.ingress or cluster.ingress) in ("nftables", AUTO) for gin in gins)


# ---- every role


def address(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    device = machine.addresses.get(node.address)
    if device is None:
        mend = f"ip address add {node.address}/32 dev lo"
        yield Finding(
            node.name, "address", "wrong", f"{node.address} is not an address of this machine", mend
        )
    else:
        yield Finding(node.name, "address", "ok", f"{node.address} is on {device}")


def files(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    """Certificate, key and, on a GMN, secrets and state; and whether the clock fits the certificate."""
    faults = machine.faults.get(node.name, ())
    leaf = cluster.pki / node.name
    for fault in faults:
        says, _, mend = fault.partition("; run ") if "; run " in fault else fault.partition(": run ")
        mend = mend.strip("`")
        if mend and says.endswith(_REMOVE):  # what is there is never overwritten
            says, mend = says.removesuffix(_REMOVE), f"rm -f {leaf}.pem {leaf}.key; {mend}"
        yield Finding(node.name, "files", "wrong", says, mend or None)
    validity = machine.certificates.get(node.name)
    if validity is None:
        return
    begins, ends = validity
    if machine.now < begins:
        yield Finding(
            node.name, "clock", "wrong",
            f"the certificate is valid from {_day(begins)} on, and the clock says {_day(machine.now)}",
            "timedatectl set-ntp true",
        )  # fmt: skip
    elif machine.now < ends < machine.now + EXPIRY_NOTICE:
        mend = f"rm {leaf}.pem {leaf}.key; protego pki init -c {cluster.file}"
        yield Finding(node.name, "files", "warning", f"the certificate ends at {_day(ends)}", mend)
    elif not faults:
        yield Finding(node.name, "files", "ok", f"the certificate is valid until {_day(ends)}")


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def ports(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    free = True
    for sock in listeners(cluster, [node]):
        holder = machine.holders.get(sock)
        if holder is None or "protego" in holder:  # the node runs already
            continue
        free = False
        where = f"{sock.address} {sock.protocol.upper()} port {sock.port}"
        mend = f"ss -{sock.protocol[0]}lnp 'sport = :{sock.port}'"
        yield Finding(node.name, "ports", "wrong", f"{where} is held by {holder}", mend)
    if free:
        yield Finding(node.name, "ports", "ok", "free, or held by protego")


# ---- those that carry packets


def buffers(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    limits = [int(machine.sysctls.get(f"net.core.{which}", "0")) for which in ("rmem_max", "wmem_max")]
    if "NET_ADMIN" in machine.capabilities or min(limits) >= BUFFER:
        yield Finding(node.name, "buffers", "ok", "sockets may have 8 MiB each way")
    else:
        yield Finding(
            node.name, "buffers", "warning",
            f"without CAP_NET_ADMIN sockets get at most {min(limits):,} bytes; bursts beyond are dropped",
            f"sysctl -w net.core.rmem_max={BUFFER} net.core.wmem_max={BUFFER}",
        )  # fmt: skip


def offload(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    lacking = [name for name, there in (("UDP_GRO", machine.gro), ("UDP_SEGMENT", machine.gso)) if not there]
    if lacking:
        says = (
            f"the kernel lacks {' and '.join(lacking)} (Linux 5.0 has both): packets cost several times more"
        )
        yield Finding(node.name, "offload", "warning", says)
    else:
        yield Finding(node.name, "offload", "ok", "UDP GRO and GSO")


def fabric_mtu(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    """Whether packets of 1500 bytes cross the fabric whole. VXLAN comes on top; ESP is inside already, but
    for the UDP header that a GIN gives ESP without.
    """
    targets = {each.address for each in cluster.nodes_of("gpn")}
    needed = ETHERNET_MTU
    if node.role != "gin":
        needed += VXLAN_OVERHEAD
    elif cluster.wants_raw_esp:
        needed += UDP_HEADER
    if node.role == "gpn":
        targets = {each.address for each in cluster.nodes_of("gen")}
        targets |= {vtep.address for tenant in cluster.tenants for vtep in tenant.vteps}
    known = {target: machine.paths[target] for target in sorted(targets) if target in machine.paths}
    lost = [target for target, way in known.items() if way is None]
    if lost:
        says = f"there is no route to {_some(lost)}: add one, or correct the cluster file"
        yield Finding(node.name, "fabric", "wrong", says)
    small = {target: way for target, way in known.items() if way is not None and way.mtu < needed}
    for device in dict.fromkeys(way.device for way in small.values()):
        behind = {target: way.mtu for target, way in small.items() if way.device == device}
        least = min(behind.values())
        yield Finding(
            node.name, "fabric", "warning",
            f"{device} takes {least} bytes on the way to {_some(list(behind))}: packets beyond "
            f"{least - needed + ETHERNET_MTU} go in fragments, at several times the cost",
            f"ip link set {device} mtu {needed}",
        )  # fmt: skip
    if known and not lost and not small:
        yield Finding(node.name, "fabric", "ok", f"takes {needed} bytes")


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


# ---- GIN and GPN: the VIP


def vips(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    if node.role == "gpn" and cluster.returns == "gin":  # a GIN sends its packets to peers
        return
    for vip in cluster.vips:
        if vip in machine.addresses:
            yield Finding(node.name, "vip", "ok", f"{vip} is on {machine.addresses[vip]}")
        else:
            use = (
                "peers' packets arrive there"
                if node.role == "gin"
                else "its packets to peers bear it as source"
            )
            yield Finding(
                node.name, "vip", "wrong", f"{vip} is not an address of this machine: {use}",
                f"ip address add {vip}/32 dev lo",
            )  # fmt: skip


def arp(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    """A GPN must not draw the VIP's traffic to itself; where a GIN is on the machine too, it may."""
    hidden = [vip for vip in cluster.vips if machine.addresses.get(vip) == "lo"]
    if not hidden or any(gin.address in machine.addresses for gin in cluster.nodes_of("gin")):
        return
    answering = [
        name
        for name, device in machine.devices.items()
        if not device.loopback
        and (machine.sysctl(name, "arp_ignore") < 1 or machine.sysctl(name, "arp_announce") < 2)
    ]
    if answering:
        yield Finding(
            node.name, "arp", "warning",
            f"answers ARP for {_some(hidden)} on {_some(answering)}: on a link with routers or peers it "
            "takes the GINs' packets",
            "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
        )  # fmt: skip
    else:
        yield Finding(node.name, "arp", "ok", "no answers for the VIP")


def reverse_path(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    """What a GIN's kernel passes on has the peer's source, for which the way back is another one."""
    if not steers_in_kernel(cluster, cluster.nodes_of("gin")):
        return
    strict = [
        name
        for name, device in machine.devices.items()
        if not device.loopback and machine.sysctl(name, "rp_filter") == STRICT
    ]
    if strict:
        yield Finding(
            node.name, "rp_filter", "wrong",
            f"is strict on {_some(strict)}: the kernel drops peers' packets that a GIN's kernel passes on",
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        )  # fmt: skip
    else:
        yield Finding(node.name, "rp_filter", "ok", "takes peers' packets from the GINs")


def raw_esp(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    """Whether ESP can do without UDP, where some tunnel is to."""
    if not cluster.wants_raw_esp or (node.role == "gpn" and cluster.returns == "gin"):
        return
    if "NET_RAW" in machine.capabilities:
        yield Finding(node.name, "raw ESP", "ok", "may open raw sockets")
        return
    then = (
        'all tunnels use UDP, as by encapsulation = "force"'
        if node.role == "gin"
        else "ESP without UDP leaves through the GINs"
    )
    yield Finding(
        node.name, "raw ESP", "warning",
        f"without CAP_NET_RAW {then}: give the service the capability (docs/operations.md), or run as root",
        f"systemctl edit protego@{node.name}",
    )  # fmt: skip


# ---- GIN


def low_ports(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    low = int(machine.sysctls.get("net.ipv4.ip_unprivileged_port_start", "1024"))
    lowest = min(port for port in (node.ports.ike, node.ports.natt) if port)
    if lowest >= low or "NET_BIND_SERVICE" in machine.capabilities:
        yield Finding(node.name, "privilege", "ok", f"may bind UDP port {lowest}")
    else:
        yield Finding(
            node.name, "privilege", "wrong",
            f"UDP port {lowest} needs CAP_NET_BIND_SERVICE: run as root, give the service the capability "
            "(docs/operations.md), or",
            f"sysctl -w net.ipv4.ip_unprivileged_port_start={lowest}",
        )  # fmt: skip


def steering(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    name = node.ingress or cluster.ingress
    reason = machine.steering.get("nftables" if name == AUTO else name)
    if reason is None:
        yield Finding(node.name, "steering", "ok", f"{name} can run" + (": nftables" if name == AUTO else ""))
        return
    says, _, rest = reason.partition(": `")
    mend = rest.partition("`")[0] or None
    if name == AUTO:
        yield Finding(node.name, "steering", "warning", f"mux, because {says}", mend)
    else:
        yield Finding(node.name, "steering", "wrong", f"{name} cannot run: {says}", mend)


def merging(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    if not steers_in_kernel(cluster, [node]):
        return
    found = [(name, feature) for name, device in machine.devices.items() for feature in device.merging]
    for name, feature in found:
        yield Finding(
            node.name, "merging", "warning",
            f"{name} merges packets ({feature}); those behind one of another SPI take a detour by a GPN",
            f"ethtool -K {name} {feature} off",
        )  # fmt: skip
    if not found:
        yield Finding(node.name, "merging", "ok", f"no device has {' or '.join(MERGING)}")


def redirects(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    if not steers_in_kernel(cluster, [node]):
        return
    sending = [
        name
        for name, device in machine.devices.items()
        if not device.loopback and machine.sysctl(name, "send_redirects")
    ]
    if sending:
        off = " ".join(f"net.ipv4.conf.{name}.send_redirects=0" for name in ("all", *sending))
        yield Finding(
            node.name, "redirects", "warning",
            f"may tell peers of GPNs' addresses on {_some(sending)}, where both are on one link",
            f"sysctl -w {off}",
        )  # fmt: skip
    else:
        yield Finding(node.name, "redirects", "ok", "none are sent")


def firewall(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    """The kernel's own filter sees what the steering rule passes on as forwarded packets."""
    if not steers_in_kernel(cluster, [node]):
        return
    rule = f"udp dport {node.ports.natt} accept"
    closed = [chain for chain, rules in machine.closed.items() if rule not in rules]
    for chain in closed:
        yield Finding(
            node.name, "firewall", "warning",
            f"the chain {chain} drops what it does not name, perhaps what the kernel steers to the GPNs",
            f"nft insert rule {chain} {rule}",
        )  # fmt: skip
    if not closed:
        yield Finding(node.name, "firewall", "ok", "passes on what the kernel steers")


# ---- GEN


def attachments(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    for tenant in cluster.tenants:
        attach = tenant.attach
        if not isinstance(attach, TunAttach) or attach.node != node.name:
            continue
        needed = ["NET_ADMIN"] + (["SYS_ADMIN"] if attach.netns else [])
        lacking = [f"CAP_{name}" for name in needed if name not in machine.capabilities]
        if machine.tun:
            yield Finding(node.name, "tun", "wrong", f"{attach.device}: {machine.tun}", "modprobe tun")
        elif lacking:
            says = (
                f"{attach.device}: needs {' and '.join(lacking)} (docs/operations.md has the service's lines)"
            )
            yield Finding(node.name, "tun", "wrong", says)
        elif attach.netns and attach.netns not in machine.namespaces:
            says = f"{attach.device}: there is no network namespace {attach.netns}"
            yield Finding(node.name, "tun", "wrong", says, f"ip netns add {attach.netns}")
        else:
            yield Finding(node.name, "tun", "ok", f"{attach.device} can be made")


# ---- GPN


def cores(cluster: Cluster, node: Node, machine: Machine) -> Iterator[Finding]:
    """A GPN is sized by the core that it has for itself."""
    here = [gpn for gpn in cluster.nodes_of("gpn") if gpn.address in machine.addresses]
    wanted = sum(gpn.capacity for gpn in here)
    if wanted > machine.cores:
        says = (
            f"{len(here)} GPNs are to have {wanted:g} cores of {machine.cores}: give them less `capacity`, "
            "or some another machine"
        )
        yield Finding(node.name, "cores", "warning", says)
    else:
        yield Finding(node.name, "cores", "ok", f"{machine.cores}, of which GPNs are to have {wanted:g}")


CHECKS: Final[dict[Role, tuple[Check, ...]]] = {
    "gmn": (address, files, ports),
    "gin": (
        *(address, files, ports, vips, low_ports, raw_esp, steering, firewall, merging, redirects),
        *(buffers, offload, fabric_mtu),
    ),
    "gen": (address, files, ports, attachments, buffers, offload, fabric_mtu),
    "gpn": (address, files, ports, vips, raw_esp, arp, reverse_path, cores, buffers, offload, fabric_mtu),
}
