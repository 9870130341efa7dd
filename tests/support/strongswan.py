"""A real strongSwan in a network namespace: charon with kernel-libipsec, driven over vici by swanctl.

The one that is installed does ESP in UDP alone; `NEWER`, which strongswan6.sh makes, without UDP as well.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.netns import Namespace, run, stop, wait_until

CHARON = "/usr/lib/ipsec/charon"
NEWER = Path(__file__).parents[2] / "build" / "strongswan-6"

PLUGINS = (
    "random nonce aes aesni sha1 sha2 hmac kdf gcm chapoly curve25519 openssl drbg x509 pubkey pem pkcs1 "
    "pkcs8 revocation constraints kernel-libipsec kernel-netlink socket-default vici updown"
)

STRONGSWAN_CONF = """\
charon {{
  load_modular = no
  load = {plugins}
  install_virtual_ip = no
  retransmit_timeout = 1.0
  retransmit_base = 1.4
  plugins {{
    vici {{
      socket = unix://{directory}/vici
    }}
    kernel-libipsec {{
      allow_peer_ts = yes
      raw_esp = {raw_esp}
    }}
  }}
  filelog {{
    log {{
      path = {directory}/charon.log
      default = 1
      ike = 2
      flush_line = yes
    }}
  }}
}}
"""


class StrongSwan:
    """One charon; `load` takes the text of a swanctl.conf."""

    def __init__(self, space: Namespace, directory: Path, pid: int) -> None:
        self.space = space
        self.directory = directory
        self.pid = pid
        self.uri = f"unix://{directory}/vici"

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """No IKE message reaches charon; ESP does."""
        self.space.run("nft", "add table ip deaf")
        try:
            self.space.run("nft", "add chain ip deaf in { type filter hook input priority 0; }")
            self.space.run("nft", "add rule ip deaf in udp sport 4500 @th,64,32 0 drop")  # non-ESP marker
            yield
        finally:
            self.space.run("nft", "delete table ip deaf")

    def configure(self, **settings: float) -> None:
        """Settings of charon itself, for the IKE_SAs that are yet to be."""
        conf = self.directory / "strongswan.conf"
        lines = "".join(f"  {name} = {value}\n" for name, value in settings.items())
        conf.write_text(conf.read_text().replace("charon {\n", "charon {\n" + lines, 1))
        self.swanctl("--reload-settings")

    @property
    def log(self) -> str:
        return (self.directory / "charon.log").read_text()

    def swanctl(self, *arguments: str, timeout: float = 30, check: bool = True) -> str:
        return self.space.run("swanctl", *arguments, "--uri", self.uri, timeout=timeout, check=check)

    def load(self, conf: str) -> None:
        file = self.directory / "swanctl.conf"
        file.write_text(conf)
        self.swanctl("--load-all", "--file", str(file))

    def initiate(self, child: str = "lan") -> str:
        return self.swanctl("--initiate", "--child", child)

    def rekey_child(self, child: str = "lan") -> None:
        self.swanctl("--rekey", "--child", child)

    def rekey_ike(self, ike: str = "gateway") -> None:
        self.swanctl("--rekey", "--ike", ike)

    def terminate(self, ike: str = "gateway") -> None:
        self.swanctl("--terminate", "--ike", ike, check=False)

    def sas(self) -> str:
        return self.swanctl("--list-sas")

    def ike_spis(self) -> list[tuple[str, str]]:
        """SPIs of the initiator and of the responder of every IKE_SA there is, in whatever state."""
        return re.findall(
            r"^\S+: #\d+, \w+, IKEv2, ([0-9a-f]{16})_i\*? ([0-9a-f]{16})_r", self.sas(), re.MULTILINE
        )

    def installed_spis(self) -> list[str]:
        """Inbound SPIs of the CHILD_SAs in use, without those that it keeps for late packets."""
        return re.findall(
            r"^\s+\S+: #\d+, reqid \d+, (?:INSTALLED|REKEYED),[^#]*?^\s+in\s+([0-9a-f]{8})",
            self.sas(),
            re.MULTILINE,
        )

    def at_rest(self) -> bool:
        """Whether no SA is being made, rekeyed or deleted."""
        states = re.findall(r"#\d+, (?:reqid \d+, )?([A-Z]+),", self.sas())
        return set(states) <= {"ESTABLISHED", "INSTALLED", "DELETED"}

    def child_spis(self) -> list[str]:
        """Inbound SPIs of the installed CHILD_SAs, as eight hexadecimal digits."""
        return re.findall(r"^\s+in\s+([0-9a-f]{8})", self.sas(), re.MULTILINE)


@contextmanager
def strongswan(space: Namespace, directory: Path, *, newer: bool = False) -> Iterator[StrongSwan]:
    """Start charon in the namespace with a /run of its own, and stop it at the end. The `newer` one does ESP
    without UDP where there is no NAT.
    """
    directory.mkdir(parents=True, exist_ok=True)
    conf = directory / "strongswan.conf"
    if newer:  # in its own root, where the directory is /place
        seen, raw_esp = Path("/place"), "yes"
        root = shlex.quote(str(NEWER))
        command = (
            f"mount --rbind /dev {root}/dev && mount -t proc p {root}/proc && mount -t tmpfs t {root}/run && "
            f"mount --bind {shlex.quote(str(directory))} {root}/place && exec chroot {root} {CHARON}"
        )
    else:
        seen, raw_esp = directory, "no"
        command = f"mount -t tmpfs t /run && exec {CHARON}"
    conf.write_text(STRONGSWAN_CONF.format(directory=seen, plugins=PLUGINS, raw_esp=raw_esp))
    with (directory / "charon.out").open("w") as out:
        process = subprocess.Popen(
            [
                "env",
                f"STRONGSWAN_CONF={seen}/strongswan.conf",
                *space.command("unshare", "-m", "sh", "-c", command),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        wait_until(
            lambda: (directory / "vici").exists() and "ipsec0" in space.ip("link"),
            f"charon up (see {directory}/charon.log)",
        )
        run("ip", "-n", space.name, "link", "set", "ipsec0", "txqueuelen", "10000")
        yield StrongSwan(space, directory, process.pid)
    finally:
        stop(process)
