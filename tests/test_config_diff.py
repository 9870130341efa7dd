"""The difference of two cluster files: what is in it, how it lands, and that nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.config import diff as module
from protego_cli.config.diff import Change, FieldChange, diff, leaving
from protego_cli.config.load import load
from protego_cli.config.model import (
    Cluster,
    ElasticConfig,
    IkeSettings,
    Node,
    PskAuth,
    TenantConfig,
    TunnelConfig,
    VtepConfig,
    VxlanAttach,
)
from tests.support.clusters import VALID, changed, write_cluster

HQ = "tunnel acme/hq changed"
CASES: list[tuple[str, str, list[str]]] = [
    # settings
    ('name = "demo"', 'name = "other"', ["setting cluster.name changed restart gmn-1"]),
    (
        'vips = ["203.0.113.10", ',
        'vips = ["203.0.113.10", "203.0.113.12", ',
        ["setting cluster.vips changed now gin-1"],
    ),
    (', "203.0.113.11"]', "]", ["setting cluster.vips changed now"]),
    (
        "[nodes.gmn-1]",
        'pki = "certs"\n[nodes.gmn-1]',
        ["setting cluster.pki changed restart gmn-1 gin-1 gen-1 gpn-1 gpn-2"],
    ),
    ("[nodes.gmn-1]", 'store = "etcd"\n[nodes.gmn-1]', ["setting cluster.store changed restart gmn-1"]),
    (
        "[nodes.gmn-1]",
        'state_key = "key"\n[nodes.gmn-1]',
        ["setting cluster.state_key changed restart gmn-1"],
    ),
    ("[nodes.gmn-1]", 'state = "db"\n[nodes.gmn-1]', ["setting cluster.state changed restart gmn-1"]),
    (
        "[nodes.gmn-1]",
        'ingress = "nft"\n[nodes.gmn-1]',
        ["setting cluster.ingress changed restart gin-1 gen-1"],
    ),
    ("[nodes.gmn-1]", 'packing = "tight"\n[nodes.gmn-1]', ["setting cluster.packing changed now"]),
    ("[tenants.acme]", "[ike]\nliveness = 5\n[tenants.acme]", ["setting ike.liveness changed now"]),
    (
        "[tenants.acme]",
        '[plugins]\npaths = ["own.py"]\n[tenants.acme]',
        ["setting plugins.paths changed restart gmn-1 gin-1 gen-1 gpn-1 gpn-2"],
    ),
    # nodes
    (
        "[tenants.acme]",
        '[nodes.gpn-3]\nrole = "gpn"\naddress = "10.10.0.13"\n[tenants.acme]',
        ["node gpn-3 added now"],
    ),
    ('[nodes.gpn-2]\nrole = "gpn"\naddress = "10.10.0.12"\n', "", ["node gpn-2 removed now"]),
    ('"10.10.0.12"', '"10.10.0.13"', ["node gpn-2 changed restart gpn-2"]),
    ('"10.10.0.12"', '"10.10.0.12"\ncapacity = 0.5', ["node gpn-2 changed now"]),
    ('"10.10.0.12"', '"10.10.0.12"\nports.vxlan = 4790', ["node gpn-2 changed restart gpn-2"]),
    (
        'address = "10.10.0.1"',
        'address = "10.10.0.4"',
        ["node gmn-1 changed restart gmn-1 gin-1 gen-1 gpn-1 gpn-2"],
    ),
    (
        "nodes.gmn-1",
        "nodes.gmn-2",
        [
            "node gmn-2 added restart gmn-2 gin-1 gen-1 gpn-1 gpn-2",
            "node gmn-1 removed restart gmn-2 gin-1 gen-1 gpn-1 gpn-2",
        ],
    ),
    # tenants
    ("[tenants.acme.attach]", 'gateway = ["10.1.0.1"]\n[tenants.acme.attach]', ["tenant acme changed now"]),
    ("02:50:00:00:10:01", "02:50:00:00:10:07", ["tenant acme changed now"]),
    ('"10.20.0.5"', '"10.20.0.9"', ["tenant acme changed now"]),
    (
        "vni = 1001",
        "vni = 1009",
        ["tenant acme changed now", f"{HQ} reconnect", "tunnel acme/branch changed reconnect"],
    ),
    (VALID[VALID.index("[tenants.blue]") :], "", ["tenant blue removed now"]),
    (
        VALID[VALID.index("[tenants.acme]") : VALID.index("[tenants.blue]")],
        "",
        ["tenant acme removed now", "tunnel acme/hq removed now", "tunnel acme/branch removed now"],
    ),
    # tunnels
    ('peer = "198.51.100.7"', 'peer = "198.51.100.8"', [f"{HQ} reconnect"]),
    ('local_id = "203.0.113.10"', 'local_id = "gw.example"', [f"{HQ} reconnect"]),
    ('remote_id = "198.51.100.7"', 'remote_id = "hq.example"', [f"{HQ} reconnect"]),
    ("secrets/acme-hq.psk", "secrets/acme-branch.psk", [f"{HQ} now"]),
    ('remote_ts = ["10.2.0.0/24"]', 'remote_ts = ["10.2.0.0/24", "10.4.0.0/24"]', [f"{HQ} rekey"]),
    ('remote_ts = ["10.2.0.0/24"]', 'remote_ts = ["10.2.0.0/23"]', [f"{HQ} rekey"]),
    ('remote_ts = ["10.2.0.0/24"]', 'remote_ts = ["10.2.0.0/25"]', [f"{HQ} reconnect"]),
    ('remote_ts = ["10.2.0.0/24"]', 'remote_ts = ["10.2.0.0/25", "10.2.0.128/25"]', [f"{HQ} rekey"]),
    ('local_ts = ["10.1.0.0/24"]', 'local_ts = ["10.1.0.0/25"]', [f"{HQ} reconnect"]),
    ("[tenants.acme.tunnels.branch]", 'start = "auto"\n[tenants.acme.tunnels.branch]', [f"{HQ} now"]),
    (
        "[tenants.acme.tunnels.branch]",
        'vip = "203.0.113.11"\n[tenants.acme.tunnels.branch]',
        [f"{HQ} reconnect"],
    ),
    (
        "[tenants.acme.tunnels.branch]",
        'ike = ["aes128gcm16-prfsha256-ecp256"]\n[tenants.acme.tunnels.branch]',
        [f"{HQ} rekey"],
    ),
    (
        "[tenants.acme.tunnels.branch]",
        'esp = ["aes128gcm16"]\n[tenants.acme.tunnels.branch]',
        [f"{HQ} rekey"],
    ),
    (
        "[tenants.acme.tunnels.branch]",
        'esp = ["aes128gcm16"]\nstart = "auto"\n[tenants.acme.tunnels.branch]',
        [f"{HQ} rekey"],
    ),
    ("tunnels.branch]", "tunnels.shop]", ["tunnel acme/shop added now", "tunnel acme/branch removed now"]),
]


def text(change: Change) -> str:
    return " ".join([change.what, change.name, change.kind, change.lands, *change.restart])


@pytest.mark.parametrize(("old", "new", "expected"), CASES)
def test_how_a_change_lands(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    before = load(write_cluster(tmp_path))
    after = load(write_cluster(tmp_path, changed((old, new))))
    changes = diff(before, after)
    assert [text(change) for change in changes] == expected
    assert all(change.note.endswith(".") for change in changes)
    back = diff(after, before)
    assert [(c.what, c.name) for c in back if c.kind == "changed"] == [
        (c.what, c.name) for c in changes if c.kind == "changed"
    ]


def test_values_are_shown_and_secrets_are_not(tmp_path: Path) -> None:
    before = load(write_cluster(tmp_path))
    after = load(
        write_cluster(
            tmp_path,
            changed(
                ('peer = "any"', 'peer = "198.51.100.9"'),
                ('"10.10.0.12"', '"10.10.0.12"\nports.vxlan = 4790'),
            ),
        )
    )
    node, tunnel = diff(before, after, secrets=["acme/branch"])
    assert node.fields == (FieldChange("ports.vxlan", "4789", "4790"),)
    assert tunnel.fields == (
        FieldChange("peer", "any", "198.51.100.9"),
        FieldChange("pre-shared key", "(not shown)", "(another one)"),
    )


def test_another_secret_alone_is_a_change(tmp_path: Path) -> None:
    cluster = load(write_cluster(tmp_path))
    (change,) = diff(cluster, cluster, secrets=["acme/hq"])
    assert text(change) == f"{HQ} reconnect"
    assert leaving([change]) == ["acme/hq"]


def test_every_field_has_its_landing() -> None:
    """A new field of the cluster file needs a line in one of the tables of config/diff.py."""
    assert set(module.TUNNEL) == set(TunnelConfig.__struct_fields__) - {"name", "tenant"}
    assert set(module.NODE) == set(Node.__struct_fields__) - {"name"}
    assert set(module.TENANT) == set(TenantConfig.__struct_fields__) - {"name", "tunnels"}
    keys = {field.encode_name for field in msgspec.structs.fields(Cluster)}
    settings = keys - {"file", "nodes", "tenants", "ike", "plugins", "pools", "elastic"}
    assert set(module.SETTINGS) == (
        {f"cluster.{name}" for name in settings}
        | {f"ike.{name}" for name in IkeSettings.__struct_fields__}
        | {f"elastic.{name}" for name in ElasticConfig.__struct_fields__}
        | {"plugins.paths"}
    )


# ---- any two clusters

PREFIXES = ["10.1.0.0/24", "10.1.0.0/25", "10.1.0.128/25", "10.2.0.0/16", "2001:db8::/64"]
prefixes = st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=3, unique=True).map(tuple)


def names(of: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(of), unique=True)


@st.composite
def tenants(draw: st.DrawFn, name: str) -> TenantConfig:
    def tunnel(own: str) -> TunnelConfig:
        return TunnelConfig(
            name=own,
            tenant=name,
            peer=draw(st.sampled_from([None, "198.51.100.7", "198.51.100.8"])),
            local_id="gw",
            remote_id=draw(st.sampled_from(["a", "b"])),
            auth=PskAuth(Path(draw(st.sampled_from(["/one", "/two"])))),
            local_ts=draw(prefixes),
            remote_ts=draw(prefixes),
            esp=draw(st.sampled_from([("aes256gcm16",), ("aes128gcm16",)])),
            start=draw(st.sampled_from(["wait", "auto"])),
            vip="203.0.113.10",
        )

    vtep = VtepConfig("10.1.0.0/24", draw(st.sampled_from(["10.20.0.5", "10.20.0.6"])), bytes(6))
    return TenantConfig(
        name=name,
        vni=draw(st.integers(1, 3)),
        gateway_mac=bytes(6),
        attach=VxlanAttach((vtep,)),
        tunnels=tuple(tunnel(own) for own in draw(names("xyz"))),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    nodes = [Node("gmn-1", "gmn", draw(st.sampled_from(["10.0.0.1", "10.0.0.2"])))]
    nodes += [
        Node(name, name[:3], draw(st.sampled_from(["10.0.1.1", "10.0.1.2"])))  # type: ignore[arg-type]
        for name in draw(names(["gin-1", "gen-1", "gpn-1", "gpn-2"]))
    ]
    return Cluster(
        name="demo",
        file=Path("/cluster.toml"),
        vips=("203.0.113.10",),
        pki=Path("/pki"),
        state=Path("/state"),
        nodes=tuple(nodes),
        tenants=tuple(draw(tenants(name)) for name in draw(names("ab"))),
        packing=draw(st.sampled_from(["spread", "tight"])),
        ike=IkeSettings(liveness=draw(st.sampled_from([1.0, 2.0]))),
    )


@given(clusters())
def test_a_file_does_not_differ_from_itself(cluster: Cluster) -> None:
    assert diff(cluster, cluster) == ()
    assert diff(cluster, msgspec.structs.replace(cluster)) == ()


@given(clusters(), clusters())
def test_what_differs_is_listed_once_and_nothing_else(old: Cluster, new: Cluster) -> None:
    changes = diff(old, new)
    found = {(change.what, change.name): change for change in changes}
    assert len(found) == len(changes)

    def expect(what: str, was: dict[str, Any], now: dict[str, Any]) -> None:
        for name in was | now:
            change = found.pop((what, name), None)
            if was.get(name) == now.get(name):
                assert change is None, name
            else:
                assert change is not None, name
                kind = "added" if name not in was else "removed" if name not in now else "changed"
                assert change.kind == kind
                assert bool(change.fields) == (kind == "changed")

    expect("node", {n.name: n for n in old.nodes}, {n.name: n for n in new.nodes})
    bare = [
        {t.name: msgspec.structs.replace(t, tunnels=()) for t in cluster.tenants} for cluster in (old, new)
    ]
    expect("tenant", *bare)
    tunnels = [
        {tunnel.id: (tenant.vni, tunnel) for tenant in cluster.tenants for tunnel in tenant.tunnels}
        for cluster in (old, new)
    ]
    expect("tunnel", *tunnels)
    assert {name for what, name in found if what == "setting"} == {
        name
        for name, differs in (
            ("cluster.packing", old.packing != new.packing),
            ("ike.liveness", old.ike != new.ike),
        )
        if differs
    }
    assert all(what == "setting" for what, _ in found)
