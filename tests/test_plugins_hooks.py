"""Each hook, implemented by a third party's file, ends where the gateway looks for it.

`tests/test_hookspecs.py` fails when a hook has no test here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from protego_cli.config.model import PoolConfig, ProvisionerConfig
from protego_cli.control.packing.placement import GpnView, PackingView, TunnelView
from protego_cli.control.pools.provision import Place
from protego_cli.counters import Counters
from protego_cli.crypto.proposal import parse_esp
from protego_cli.errors import PluginError
from protego_cli.net.steering import Door
from protego_cli.roles.clusters import provisioner_checker
from tests.support.plugins import load, write

ENCRYPTION = """
from protego_cli.crypto.algorithms import Encryption
from protego_cli.hookspecs import hookimpl
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

def cipher(keyword):
    lengths = {"key_length": 24, "salt_length": 4, "iv_length": 8, "icv_length": 16}
    return Encryption(keyword, 20, key_bits=192, make=AESGCM, **lengths)
"""


def test_crypto_suites_join_the_registry(tmp_path: Path) -> None:
    source = ENCRYPTION + "@hookimpl\ndef protego_crypto_suites():\n    return [cipher('aes192gcm16')]\n"
    registry = load(write(tmp_path / "suites.py", source)).registry()
    proposal = parse_esp("aes192gcm16-x25519", registry)
    assert proposal.encryption is registry.find(1, 20, 192)
    assert "aes256gcm16" in registry.keywords()


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("['aes192gcm16']", "returned an object of type str, which is no algorithm of protego_cli.crypto"),
        ("[type(cipher('x'))]", "returned the class Encryption, which is no algorithm of protego_cli.crypto"),
        ("[cipher('aes192-gcm')]", "has the keyword 'aes192-gcm'; a keyword has only a-z, 0-9 and _"),
        ("[cipher('')]", "has the keyword ''"),
        ("[cipher(192)]", "has the keyword 192"),
        ("None", "must return a sequence, not NoneType"),
        ("'aes192gcm16'", "must return a sequence, not str"),
        ("cipher('aes192gcm16')", "must return a sequence, not Encryption"),
    ],
)
def test_crypto_suites_are_checked(tmp_path: Path, returned: str, says: str) -> None:
    source = ENCRYPTION + f"@hookimpl\ndef protego_crypto_suites():\n    return {returned}\n"
    path = write(tmp_path / "suites.py", source)
    with pytest.raises(PluginError) as refused:
        load(path)
    assert f"plugin 'suites' ({path}): protego_crypto_suites " in str(refused.value)
    assert says in str(refused.value)


POLICY = """
from protego_cli.hookspecs import hookimpl

class Last:
    name = "last"
    def place(self, tunnel, view):
        return view.gpns[-1].name
    def plan(self, view):
        return [(tunnel.id, view.gpns[-1].name) for tunnel in view.tunnels]

@hookimpl
def protego_packing_policies():
    return {returned}
"""


def test_packing_policies_are_found_by_name(tmp_path: Path) -> None:
    """The hook is protego_packing_policies."""
    path = write(tmp_path / "packing.py", POLICY.replace("{returned}", "[Last()]"))
    policies = load(path).packing_policies()
    assert set(policies) == {
        "best-fit",
        "first-fit-decreasing",
        "predictive",
        "protego",
        "spread",
        "sticky",
        "last",
    }
    tunnel = TunnelView("acme/hq", 0.1, "gpn-1")
    view = PackingView(0.0, [GpnView("gpn-1", 1.0, 0.1), GpnView("gpn-2", 1.0, 0.5, tunnels=5)], [tunnel])
    assert policies["last"].plugin == "packing"
    assert policies["last"].place(tunnel, view) == "gpn-2"
    assert policies["last"].plan(view) == (("acme/hq", "gpn-2"),)
    assert policies["spread"].plugin == "protego.packing_policies"
    assert policies["spread"].place(tunnel, view) == "gpn-1"


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("[Last]", "returned the class Last, which is not an instance; call it"),
        ("[object()]", "returned an object of type object, which has no `name`"),
        ("[type('Nameless', (Last,), {'name': ''})()]", "which has no `name`"),
        (
            "[type('Lazy', (), {'name': 'lazy'})()]",
            "returned an object of type Lazy, which lacks place(), plan()",
        ),
        (
            "[type('Broken', (), {'name': property(lambda _: 1 / 0)})()]",
            "ZeroDivisionError: division by zero",
        ),
        ("(1 / 0 for _ in 'x')", "ZeroDivisionError: division by zero"),
    ],
)
def test_packing_policies_are_checked(tmp_path: Path, returned: str, says: str) -> None:
    path = write(tmp_path / "packing.py", POLICY.replace("{returned}", returned))
    with pytest.raises(PluginError) as refused:
        load(path)
    assert f"plugin 'packing' ({path})" in str(refused.value)
    assert "protego_packing_policies" in str(refused.value)
    assert says in str(refused.value)


BACKEND = """
from protego_cli.hookspecs import hookimpl

class Tunnel:
    name = "tunnel"
    def unavailable(self, role):
        return "this machine has no tunnel; dig one"
    def ingress(self, fabric, counters, door):
        return "ingress"
    def egress(self, fabric, counters, own):
        return "egress"

class Half:
    name = "half"
    def unavailable(self, role):
        return None

@hookimpl
def protego_steering_backends():
    return {returned}
"""


def test_steering_backends_are_found_by_name(tmp_path: Path) -> None:
    """The hook is protego_steering_backends."""
    path = write(tmp_path / "steering.py", BACKEND.replace("{returned}", "(Tunnel(),)"))
    backends = load(path).steering_backends()
    assert set(backends) == {"mux", "nftables", "tunnel"}
    assert backends["mux"].unavailable("gin") is None
    assert backends["tunnel"].unavailable("gin") == "this machine has no tunnel; dig one"
    door = Door("demo.gin-1", ("192.0.2.10",), 4500)
    assert backends["tunnel"].ingress(object(), Counters(), door) == "ingress"  # type: ignore[arg-type,comparison-overlap]


def test_no_backend_may_be_called_auto(tmp_path: Path) -> None:
    text = BACKEND.replace("{returned}", "(Tunnel(),)").replace('name = "tunnel"', 'name = "auto"')
    with pytest.raises(PluginError, match='has the name "auto"'):
        load(write(tmp_path / "steering.py", text))


def test_steering_backends_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "steering.py", BACKEND.replace("{returned}", "[Half()]"))
    with pytest.raises(
        PluginError,
        match=r"protego_steering_backends returned an object of type Half, which lacks ingress\(\), egress",
    ):
        load(path)


STORE = """
from protego_cli.hookspecs import hookimpl

class Elsewhere:
    name = "elsewhere"
    def open(self, directory):
        return f"open in {directory}"

class Shut:
    name = "shut"

@hookimpl
def protego_state_stores():
    return {returned}
"""


def test_state_stores_are_found_by_name(tmp_path: Path) -> None:
    """The hook is protego_state_stores."""
    path = write(tmp_path / "stores.py", STORE.replace("{returned}", "[Elsewhere()]"))
    stores = load(path).state_stores()
    assert set(stores) == {"sqlite", "elsewhere"}
    assert stores["elsewhere"].open(tmp_path) == f"open in {tmp_path}"  # type: ignore[comparison-overlap]


def test_state_stores_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "stores.py", STORE.replace("{returned}", "[Shut()]"))
    with pytest.raises(
        PluginError, match=r"protego_state_stores returned an object of type Shut, which lacks open\(\)"
    ):
        load(path)


PROVISIONER = """
from protego_cli.hookspecs import hookimpl

class Cloud:
    name = "cloud"
    ordered = keeps = False
    def check(self, settings):
        return {} if "zone" in settings else {"zone": "is missing: expected one"}
    def open(self, place):
        return f"open for {place.pool.name} in {place.settings['zone']}"

class Half:
    name = "half"
    ordered = keeps = False

class Vague(Cloud):
    ordered = "perhaps"

@hookimpl
def protego_provisioners():
    return {returned}
"""


def test_provisioners_are_found_by_name_and_judge_their_settings(tmp_path: Path) -> None:
    """The hook is protego_provisioners."""
    path = write(tmp_path / "clouds.py", PROVISIONER.replace("{returned}", "[Cloud()]"))
    plugins = load(path)
    kinds = plugins.provisioners()
    assert set(kinds) >= {"local", "command", "static", "cloud"}
    assert kinds["cloud"].plugin == "clouds"
    check = provisioner_checker(plugins)
    assert check("cloud", {}) == {"zone": "is missing: expected one"}
    assert check("cloud", {"zone": "north"}) == {}
    assert check("clowd", {})["kind"].startswith("expected a provisioner: ")
    pool = PoolConfig("spare", "gpn", ("10.0.2.1", "10.0.2.9"), 0, 4, ProvisionerConfig("cloud"))
    place = Place(pool, {"zone": "north"}, tmp_path / "cluster.toml", tmp_path)
    assert kinds["cloud"].kind.open(place) == "open for spare in north"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("returned", "says"),
    [("[Half()]", r"type Half, which lacks check\(\), open\(\)"), ("[Vague()]", "`ordered` and `keeps`")],
)
def test_provisioners_are_checked(tmp_path: Path, returned: str, says: str) -> None:
    path = write(tmp_path / "clouds.py", PROVISIONER.replace("{returned}", returned))
    with pytest.raises(PluginError, match=f"protego_provisioners returned an object of {says}|.*{says}"):
        load(path)
