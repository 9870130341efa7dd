"""A whole small site in namespaces: a strongSwan customer, the gateway's roles, a tenant on a kernel vxlan.

    customer (strongSwan, LAN 10.2.0.1) -- 198.51.100.0/24 -- gateway (VIP, GMN, GIN, GEN, GPNs)
    -- 10.20.0.0/24 -- tenant (kernel vxlan, inner 10.1.0.5)

Every role is a process of `protego up`, with the fabric's addresses on the gateway's loopback.

With an edge, the GIN has a machine of its own between customer and gateway; packets to the customer take the
other way:

    customer -- 192.0.2.0/24 -- edge (VIP, GIN) -- 10.30.0.0/24 -- gateway
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.netns import CommandFailed, Namespace, namespaces, receive_buffers, stop, veth, wait_until
from tests.support.strongswan import StrongSwan, strongswan

VIP = "203.0.113.10"
PEER = "198.51.100.7"
PSK = "a-pre-shared-key-of-good-length"
TENANT_INNER, CUSTOMER_INNER = "10.1.0.5", "10.2.0.1"
TENANT_INNER6, CUSTOMER_INNER6 = "fd00:1::5", "fd00:2::1"
GATEWAY_INNER, GATEWAY_INNER6 = "10.1.0.1", "fd00:1::1"
GATEWAY_MAC, VTEP_MAC = "02:50:00:00:10:01", "02:00:00:00:00:05"
LAN = Path(__file__).with_name("lan.py")
ADDRESSES = {"gmn-1": "10.10.0.1", "gin-1": "10.10.0.2", "gen-1": "10.10.0.3"}

CLUSTER = """\
[cluster]
name = "site"
vips = ["{vip}"]
pki = "pki"
state = "state"
{settings}

{nodes}
[tenants.acme]
vni = 1001
gateway_mac = "{gateway_mac}"
{attach}

[tenants.acme.tunnels.hq]
peer = "{peer}"
local_id = "{vip}"
remote_id = "{peer}"
auth = {{ kind = "psk", file = "secrets/acme-hq.psk" }}
local_ts = ["10.1.0.0/24", "fd00:1::/64"]
remote_ts = ["10.2.0.0/24", "fd00:2::/64"]
ike = ["aes256gcm16-prfsha256-x25519"]
esp = ["aes256gcm16-x25519", "aes256gcm16"]
start = "{start}"
"""

VXLAN = f"""\
gateway = ["{GATEWAY_INNER}", "{GATEWAY_INNER6}"]
attach = {{ kind = "vxlan", vteps = [
  {{ prefix = "10.1.0.0/24", address = "10.20.0.5", mac = "{VTEP_MAC}" }},
  {{ prefix = "fd00:1::/64", address = "10.20.0.5", mac = "{VTEP_MAC}" }},
] }}"""

TUN = """\
[tenants.acme.attach]
kind = "tun"
device = "acme0"
netns = "{netns}"
address = ["{inner}/24", "{inner6}/64"]
"""

SWANCTL = """\
connections {{
  gateway {{
    version = 2
    local_addrs = {peer}
    remote_addrs = {vip}
    encap = {encap}
    proposals = {ike}
    local {{
      auth = psk
      id = {peer}
    }}
    remote {{
      auth = psk
      id = {vip}
    }}
    children {{
      lan {{
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp}
      }}
    }}
  }}
}}
secrets {{
  ike-1 {{
    secret = "{psk}"
  }}
}}
"""


def swanctl_conf(**changes: str) -> str:
    """The customer's side of the tunnel; keyword arguments replace single values."""
    values = {
        "peer": PEER,
        "vip": VIP,
        "psk": PSK,
        "encap": "yes",
        "ike": "aes256gcm16-prfsha256-x25519",
        "esp": "aes256gcm16-x25519,aes256gcm16",
        "local_ts": "10.2.0.0/24,fd00:2::/64",
        "remote_ts": "10.1.0.0/24,fd00:1::/64",
    }
    return SWANCTL.format(**values | changes)


class LanProgram:
    """One run of lan.py in a namespace."""

    def __init__(self, space: Namespace, *arguments: str) -> None:
        command = space.command(sys.executable, str(LAN), *arguments)
        self.process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read()  # ready

    def _read(self) -> dict[str, Any]:
        if self.process.stdout is None:
            raise AssertionError("no output")
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"{self.process.args!r} ended with {self.process.wait()}")
        return dict(json.loads(line))

    def finish(self) -> dict[str, Any]:
        """Close its input and return its result."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        return self.result()

    def result(self) -> dict[str, Any]:
        """The result of a program that ends by itself."""
        try:
            return self._read()
        finally:
            self.close()

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        stop(self.process)


@dataclass
class Site:
    directory: Path
    customer: Namespace
    gateway: Namespace
    tenant: Namespace
    swan: StrongSwan
    gpns: tuple[str, ...]
    edge: Namespace | None = None
    roles: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def cluster(self) -> Path:
        return self.directory / "cluster.toml"

    def log(self, node: str) -> str:
        return (self.directory / f"{node}.log").read_text()

    def start(self, node: str, *, without: str = "", **environment: str) -> None:
        """Start one role as a process of its own, as an operator would; perhaps `without` a capability."""
        machine = self.edge if self.edge and node == "gin-1" else self.gateway
        variables = [f"{name}={value}" for name, value in environment.items()]
        less = ("setpriv", f"--bounding-set=-{without}") if without else ()
        self.roles[node] = machine.popen(
            *(*less, "env", *variables, sys.executable, "-m", "protego_cli"),
            *("up", "--name", node, "-c", str(self.cluster)),
            log=self.directory / f"{node}.log",
        )

    def kill(self, node: str) -> None:
        process = self.roles.pop(node)
        process.kill()
        process.wait()

    def protego(self, *arguments: str, timeout: float = 30, check: bool = True) -> str:
        return self.gateway.run(
            sys.executable,
            "-m",
            "protego_cli",
            *arguments,
            "-c",
            str(self.cluster),
            timeout=timeout,
            check=check,
        )

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.protego("status", "--json")))

    def tunnel(self) -> dict[str, Any]:
        return dict(self.status()["tunnels"][0])

    def counters(self, node: str) -> dict[str, int]:
        """As the node has last reported them."""
        return dict(next(each["counters"] for each in self.status()["nodes"] if each["name"] == node))

    def nodes_up(self) -> bool:
        try:
            nodes = self.status()["nodes"]
        except CommandFailed:  # the GMN is not listening yet
            return False
        return all(node["state"] == "up" for node in nodes)

    def wait_tunnel(self, state: str = "up", timeout: float = 20) -> None:
        wait_until(lambda: self.tunnel()["state"] == state, f"tunnel {state}", timeout, every=0.2)

    def migrate(self, to: str) -> dict[str, Any]:
        return dict(json.loads(self.protego("migrate", "acme/hq", "--to", to, "--json")))

    def ping(self, timeout: float = 10) -> None:
        """One packet through the tunnel and back."""
        reflector = LanProgram(self.tenant, "reflect", TENANT_INNER, "7001")
        pump = LanProgram(self.customer, "pump", CUSTOMER_INNER, TENANT_INNER, "7001", "50", "8")
        try:
            wait_until(lambda: self.tunnel()["packets_out"] > 0, "packets back", timeout)
        finally:
            result = pump.finish()
            reflector.finish()
        if not result["received"]:
            raise AssertionError(f"nothing came back: {result}")

    def outside_drops(self) -> dict[str, int]:
        """What the kernel dropped outside of Protego's own processes."""
        return {
            "customer sockets": self.customer.udp_drops(),
            "customer raw sockets": self.customer.raw_drops(),
            "customer devices": self.customer.device_drops(),
            "tenant sockets": self.tenant.udp_drops(),
            "tenant devices": self.tenant.device_drops(),
            "gateway devices": self.gateway.device_drops(),
            "edge devices": self.edge.device_drops() if self.edge else 0,
        }


@contextmanager
def site(
    directory: Path,
    *,
    gpns: int = 2,
    start: str = "wait",
    tun: bool = False,
    edge: str | None = None,
    settings: str = "",
    newer: bool = False,
) -> Iterator[Site]:
    """Everything up except the tunnel; what runs in it is ended and removed on exit.

    With `tun`, the gateway and the tenant are one machine: no VXLAN, but a device that the GEN makes. `edge`
    is the steering backend of a GIN on a machine of its own. `settings` are lines of [cluster]. The customer
    has a `newer` strongSwan.
    """
    names = tuple(f"gpn-{index}" for index in range(1, gpns + 1))
    addresses = ADDRESSES | {name: f"10.10.0.{10 + index}" for index, name in enumerate(names, 1)}
    with ExitStack() as stack:
        customer, gateway, tenant = stack.enter_context(namespaces("cust", "gw", "ten"))
        stack.enter_context(receive_buffers(8 << 20))
        veth(customer, "wan", f"{PEER}/24", gateway, "wan", "198.51.100.1/24")
        for name, address in {"vip": VIP, **addresses}.items():
            if not (edge and name == "gin-1"):
                gateway.ip("addr", "add", f"{address}/32", "dev", "lo")
        customer.ip("addr", "add", f"{CUSTOMER_INNER}/24", "dev", "lo")
        customer.ip("addr", "add", f"{CUSTOMER_INNER6}/64", "dev", "lo", "nodad")
        machine = None
        if edge:
            (machine,) = stack.enter_context(namespaces("edge"))
            _edge(machine, customer, gateway)
        else:
            customer.ip("route", "add", f"{VIP}/32", "via", "198.51.100.1")
        if not tun:
            veth(tenant, "lan", "10.20.0.5/24", gateway, "lan", "10.20.0.1/24")
            tenant.ip("route", "add", "10.10.0.0/24", "via", "10.20.0.1")
            _tenant_vxlan(tenant)
        swan = stack.enter_context(strongswan(customer, directory / "charon", newer=newer))
        made = Site(directory, customer, gateway, tenant, swan, names, machine)
        attach = TUN.format(netns=tenant.name, inner=TENANT_INNER, inner6=TENANT_INNER6) if tun else VXLAN
        _write_cluster(made, addresses, start, attach, f'ingress = "{edge or "mux"}"\n{settings}')
        made.protego("pki", "init")
        stack.callback(_stop_roles, made)
        for node in addresses:
            made.start(node)
        wait_until(made.nodes_up, "every node up", every=0.2)
        yield made


def _tenant_vxlan(tenant: Namespace) -> None:
    """The tenant's VTEP: a kernel vxlan device that floods to the GEN and asks it for the gateway's MAC."""
    tenant.ip(
        "link", "add", "vx0", "address", VTEP_MAC, "mtu", "1400", "type", "vxlan", "id", "1001",
        "local", "10.20.0.5", "remote", ADDRESSES["gen-1"], "dstport", "4789", "nolearning",
    )  # fmt: skip
    tenant.ip("addr", "add", f"{TENANT_INNER}/24", "dev", "vx0")
    tenant.ip("addr", "add", f"{TENANT_INNER6}/64", "dev", "vx0", "nodad")
    tenant.ip("link", "set", "vx0", "txqueuelen", "10000", "up")
    tenant.ip("route", "add", "10.2.0.0/24", "via", GATEWAY_INNER)
    tenant.ip("route", "add", "fd00:2::/64", "via", GATEWAY_INNER6)


def _edge(machine: Namespace, customer: Namespace, gateway: Namespace) -> None:
    """The GIN's machine, and the routes through it."""
    veth(customer, "in", "192.0.2.7/24", machine, "out", "192.0.2.1/24")
    veth(machine, "fab", "10.30.0.1/24", gateway, "fab", "10.30.0.2/24")
    for address in (VIP, ADDRESSES["gin-1"]):
        machine.ip("addr", "add", f"{address}/32", "dev", "lo")
    machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    machine.ip("route", "add", f"{PEER}/32", "via", "192.0.2.7")
    machine.ip("route", "add", "10.10.0.0/24", "via", "10.30.0.2")
    gateway.ip("route", "add", f"{ADDRESSES['gin-1']}/32", "via", "10.30.0.1")
    customer.ip("route", "add", f"{VIP}/32", "via", "192.0.2.1", "src", PEER)
    for space in (
        customer,
        gateway,
    ):  # packets come in on one way and go out on the other
        space.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=2")


def _write_cluster(made: Site, addresses: dict[str, str], start: str, attach: str, settings: str) -> None:
    nodes = "".join(
        f'[nodes.{name}]\nrole = "{name.split("-")[0]}"\naddress = "{address}"\n\n'
        for name, address in addresses.items()
    )
    made.cluster.write_text(
        CLUSTER.format(
            vip=VIP,
            peer=PEER,
            nodes=nodes,
            gateway_mac=GATEWAY_MAC,
            start=start,
            attach=attach,
            settings=settings,
        )
    )
    secret = made.directory / "secrets" / "acme-hq.psk"
    secret.parent.mkdir()
    secret.touch(mode=0o600)
    secret.write_text(PSK)


def _stop_roles(made: Site) -> None:
    for process in made.roles.values():
        stop(process)
