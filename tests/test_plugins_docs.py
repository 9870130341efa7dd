"""The example of docs/plugins.md, taken from the page, loaded both ways and used."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli

from protego_cli.config.load import load_plugins_section
from protego_cli.control.packing.placement import GpnView, PackingView, TunnelView
from protego_cli.counters import Counters
from protego_cli.crypto.proposal import parse_esp, parse_ike
from protego_cli.errors import InvalidSyntax
from protego_cli.net.steering import Door, Gpn
from protego_cli.net.udp import Buffer
from protego_cli.plugins.manager import PluginInfo, Plugins, load_plugins
from tests.support.plugins import install, write

PAGE = (Path(__file__).parents[1] / "docs/plugins.md").read_text(encoding="utf-8")
HOOKS = ("protego_crypto_suites", "protego_packing_policies", "protego_steering_backends")


def block(language: str, holding: str) -> str:
    """The one fenced block of that language that contains the text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = (each for each in blocks if holding in each)
    return str(found)


MODULE = block("python", "@hookimpl")
CLUSTER = block("toml", "[plugins]")
PROPOSALS = tomli.loads(block("toml", "ike = "))
PROJECT = tomli.loads(block("toml", "[project]"))


def by_path(directory: Path, _: pytest.MonkeyPatch) -> tuple[Plugins, str, str]:
    """As the page tells: the file below the cluster file, which names it."""
    module = write(directory / "plugins/acme.py", MODULE)
    cluster = write(directory / "cluster.toml", CLUSTER)
    return load_plugins(load_plugins_section(cluster)), "acme", str(module)


def by_entry_point(directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plugins, str, str]:
    ((name, module),) = PROJECT["project"]["entry-points"]["protego"].items()
    write(directory / f"{module}.py", MODULE)
    install(directory, PROJECT["project"]["name"], PROJECT["project"]["version"], {name: module})
    monkeypatch.syspath_prepend(directory)
    return load_plugins(), name, "entry point of acme-protego"


Way = Callable[[Path, pytest.MonkeyPatch], tuple[Plugins, str, str]]


@pytest.mark.parametrize("way", [by_path, by_entry_point])
def test_the_example_loads_both_ways(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins, name, source = way(tmp_path, monkeypatch)
    assert plugins.listing()[-1] == PluginInfo(name, "1.2", source, HOOKS)
    chosen = tomli.loads(CLUSTER)["cluster"]
    assert chosen["packing"] in plugins.packing_policies()
    assert chosen["ingress"] in plugins.steering_backends()


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    return by_path(tmp_path, monkeypatch)[0]


def test_its_algorithms_stand_in_proposals_and_work(example: Plugins) -> None:
    registry = example.registry()
    (ike,) = (parse_ike(text, registry) for text in PROPOSALS["ike"])
    esp = [parse_esp(text, registry) for text in PROPOSALS["esp"]]
    assert [str(proposal) for proposal in [ike, *esp]] == PROPOSALS["ike"] + PROPOSALS["esp"]

    ours, theirs = (ike.group.generate(random.Random(seed).randbytes) for seed in (1, 2))
    assert len(ours.public) == ike.group.public_length
    assert ours.shared(theirs.public) == theirs.shared(ours.public)
    for hostile in (b"", bytes(56), bytes(55)):
        with pytest.raises(InvalidSyntax):
            ours.shared(hostile)

    cipher = esp[0].encryption
    aead, nonce = cipher.make(bytes(cipher.key_length)), bytes(cipher.salt_length + cipher.iv_length)
    sealed = aead.encrypt(nonce, b"inner packet", b"header")
    assert len(sealed) == len(b"inner packet") + cipher.icv_length
    assert aead.decrypt(nonce, sealed, b"header") == b"inner packet"


def test_its_policy_fills_one_node_before_the_next(example: Plugins) -> None:
    policy = example.packing_policies()["fill"]
    light, full, hot = (
        GpnView("gpn-1", 1.0, 0.1, tunnels=3),
        GpnView("gpn-2", 1.0, 0.4, tunnels=9),
        GpnView("gpn-3", 1.0, 0.9, tunnels=20),
    )
    small, large = TunnelView("acme/hq", 0.05, "gpn-3"), TunnelView("acme/lab", 0.2, "gpn-3")
    assert policy.place(small, PackingView(0.0, [light, full, hot])) == "gpn-2"
    assert policy.place(small, PackingView(0.0, [hot])) == "gpn-3"
    assert policy.place(small, PackingView(0.0, [])) is None
    assert policy.plan(PackingView(0.0, [light, full, hot], [small, large])) == (("acme/lab", "gpn-2"),)
    assert policy.plan(PackingView(0.0, [light, full], [small])) == ()


class Silent:
    """A socket that takes everything."""

    def send(
        self, data: Buffer, size: int, dest: tuple[str, int], *, source: str | None = None, tos: int = 0
    ) -> bool:
        return True


def test_its_backend_leaves_an_audit_trail(example: Plugins, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backend = example.steering_backends()["audited-mux"]
    assert backend.unavailable("gin") is None
    ingress = backend.ingress(Silent(), Counters(), Door("demo.gin-1", ("192.0.2.10",), 4500))
    ingress.put_gpn(Gpn("gpn-1", ("192.0.2.1", 4500), bytes(32)))
    ingress.steer(0xC0FFEE01, "gpn-1", ("198.51.100.7", 4500))
    assert [record.getMessage() for record in caplog.records] == ["steered spi=c0ffee01 node=gpn-1"]
    assert ingress.marks([0xC0FFEE01]) == {0xC0FFEE01: 0}
    backend.egress(Silent(), Counters(), lambda *_: None).put_gpn(
        Gpn("gpn-1", ("192.0.2.1", 4789), bytes(32))
    )
