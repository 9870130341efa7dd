"""The cluster file: what is read, and that every fault is found, named by its key, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from protego_cli.config.load import Known, find, load, load_plugins_section
from protego_cli.config.model import IkeSettings, Lifetimes, Ports, VtepConfig
from protego_cli.errors import ConfigError, Exit, UsageError
from tests.support.clusters import VALID, changed, problems, write_cluster


def test_a_valid_file_is_read(tmp_path: Path) -> None:
    cluster = load(write_cluster(tmp_path), secrets=True)
    assert cluster.name == "demo"
    assert cluster.file == tmp_path / "cluster.toml"
    assert cluster.vips == ("203.0.113.10", "203.0.113.11")
    assert (cluster.pki, cluster.state) == (tmp_path / "pki", tmp_path / "state")
    assert (cluster.ingress, cluster.packing, cluster.ike) == ("mux", "spread", IkeSettings())
    assert (cluster.store, cluster.master_key) == ("sqlite", cluster.pki / "state.key")
    assert [(node.name, node.role) for node in cluster.nodes] == [
        ("gmn-1", "gmn"), ("gin-1", "gin"), ("gen-1", "gen"), ("gpn-1", "gpn"), ("gpn-2", "gpn"),
    ]  # fmt: skip
    assert cluster.nodes[0].ports == Ports()
    hq, branch = cluster.tunnels()
    assert (hq.id, hq.peer, hq.start, hq.vip) == ("acme/hq", "198.51.100.7", "wait", "203.0.113.10")
    assert hq.auth.file == tmp_path / "secrets/acme-hq.psk"
    assert hq.ike == ("aes256gcm16-prfsha256-x25519",)
    assert hq.esp == ("aes256gcm16-x25519", "aes256gcm16")
    assert branch.peer is None
    assert cluster.tenants[1].vteps[1] == VtepConfig(
        "2001:db8:1::/64", "10.20.0.6", bytes.fromhex("020000000006"), 4790
    )


def test_optional_values_are_read(tmp_path: Path) -> None:
    text = changed(
        ('name = "demo"', 'name = "demo"\npki = "/etc/pki"\ningress = "nft"\npacking = "dense"'),
        ('address = "10.10.0.11"', 'address = "10.10.0.11"\nports = { vxlan = 4790, fabric = 4601 }'),
        (
            'peer = "198.51.100.7"',
            'peer = "198.51.100.7"\nstart = "auto"\nvip = "203.0.113.11"\nike = ["a-b-c"]',
        ),
    )
    text = text.replace("vni = 1002", 'vni = 1002\ngateway = ["10.1.0.1", "2001:DB8:1::1"]')
    text += "\n[ike]\nliveness = 5\nretransmit_tries = 3\n"
    text += '\n[plugins]\npaths = ["plugins/mine.py", "/opt/theirs"]\n'
    cluster = load(write_cluster(tmp_path, text))
    assert (cluster.pki, cluster.ingress, cluster.packing) == (Path("/etc/pki"), "nft", "dense")
    assert cluster.nodes[3].ports == Ports(vxlan=4790, fabric=4601)
    hq = cluster.tunnels()[0]
    assert (hq.start, hq.vip, hq.ike) == ("auto", "203.0.113.11", ("a-b-c",))
    assert [tenant.gateway for tenant in cluster.tenants] == [(), ("10.1.0.1", "2001:db8:1::1")]
    assert cluster.ike == IkeSettings(liveness=5, retransmit_tries=3)
    assert cluster.plugins.paths == (tmp_path / "plugins/mine.py", Path("/opt/theirs"))
    assert load_plugins_section(cluster.file) == cluster.plugins


HQ = "tenants.acme.tunnels.hq"
BRANCH = "tenants.acme.tunnels.branch"
AUTH = 'auth = { kind = "psk", file = "secrets/acme-hq.psk" }\n'
BLUE_TUNNEL = """
[tenants.blue.tunnels.hq]
peer = "198.51.100.8"
local_id = "203.0.113.10"
remote_id = "198.51.100.8"
auth = { kind = "psk", file = "secrets/acme-hq.psk" }
local_ts = ["2001:db8:1::/64"]
remote_ts = ["10.2.0.0/24"]
"""


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        # values by themselves
        ('name = "demo"', 'name = "Demo!"', "cluster.name", "expected a name"),
        ('name = "demo"', "name = 7", "cluster.name", "got 7"),
        ('name = "demo"', f'name = "{"a" * 64}"', "cluster.name", "1 to 63 characters"),
        ('name = "demo"\n', "", "cluster.name", "is missing"),
        ("[cluster]", "[kluster]", "cluster", "is missing"),
        ("[cluster]", "[kluster]", "kluster", 'did you mean "cluster"?'),
        ('vips = ["203.0.113.10", "203.0.113.11"]', "vips = []", "cluster.vips", "got an empty list"),
        ('vips = ["203.0.113.10", "203.0.113.11"]', 'vip = ["203.0.113.10"]', "cluster.vip", 'mean "vips"?'),
        ('"203.0.113.11"', '"203.0.113.300"', "cluster.vips[1]", "expected an IPv4 address"),
        ('"203.0.113.11"', '"203.0.113.10"', "cluster.vips[1]", "listed twice"),
        ('name = "demo"', 'name = "demo"\npki = 3', "cluster.pki", "expected a path"),
        ("[nodes.gpn-2]", "[nodes.GPN_2]", "nodes.GPN_2", "expected a name"),
        ("[nodes.gpn-2]", '[nodes."gpn 2"]', 'nodes."gpn 2"', "expected a name"),
        ("[nodes.gpn-2]", "[nodes.operator]", "nodes.operator", "another name"),
        ('role = "gen"', 'role = "gem"', "nodes.gen-1.role", '"gmn", "gin", "gen", "gpn", got "gem"'),
        ('address = "10.10.0.3"', 'address = "224.0.0.1"', "nodes.gen-1.address", "address of one machine"),
        ('address = "10.10.0.3"', 'address = "0.0.0.0"', "nodes.gen-1.address", "address of one machine"),
        ('address = "10.10.0.3"', 'address = "fd00::3"', "nodes.gen-1.address", "expected an IPv4 address"),
        ('address = "10.10.0.3"', 'adress = "10.10.0.3"', "nodes.gen-1.adress", 'did you mean "address"?'),
        (
            'address = "10.10.0.3"',
            'address = "10.10.0.3"\nports = { esp = 0 }',
            "nodes.gen-1.ports.esp",
            "expected a whole number from 1 to 65535, got 0",
        ),
        ("vni = 1001", "vni = 0", "tenants.acme.vni", "from 1 to 16777215, got 0"),
        ("vni = 1001", "vni = 16777216", "tenants.acme.vni", "got 16777216"),
        ("vni = 1001", "vni = true", "tenants.acme.vni", "got true"),
        ('"02:50:00:00:10:01"', '"03:50:00:00:10:01"', "tenants.acme.gateway_mac", "multicast"),
        ('"02:50:00:00:10:01"', '"00:00:00:00:00:00"', "tenants.acme.gateway_mac", "all zeros"),
        ('"02:50:00:00:10:01"', '"02-50-00-00-10-01"', "tenants.acme.gateway_mac", "expected a MAC address"),
        ("vni = 1001", 'vni = 1001\ngateway = ["10.1.0"]', "tenants.acme.gateway[0]", "expected an address"),
        ("vni = 1001", 'vni = 1001\ngateway = ["ff02::1"]', "tenants.acme.gateway[0]", "of one machine"),
        ("vni = 1001", "vni = 1001\ngateway = []", "tenants.acme.gateway", "got an empty list"),
        ('kind = "vxlan"', 'kind = "tap"', "tenants.acme.attach.kind", 'expected "vxlan", "tun", got "tap"'),
        (
            'prefix = "10.1.0.0/24"',
            'prefix = "10.1.0.5/24"',
            "tenants.acme.attach.vteps[0].prefix",
            'did you mean "10.1.0.0/24"?',
        ),
        ('prefix = "10.1.0.0/24"', 'prefix = "10.1.0.0"', "tenants.acme.attach.vteps[0].prefix", "such as"),
        ('peer = "198.51.100.7"', 'peer = "hq.example"', f"{HQ}.peer", 'or "any"'),
        ('peer = "198.51.100.7"\n', "", f"{HQ}.peer", "is missing"),
        ('remote_id = "198.51.100.7"', 'remote_id = " "', f"{HQ}.remote_id", "printable text"),
        ('kind = "psk"', 'kind = "pubkey"', f"{HQ}.auth.kind", 'expected "psk", got "pubkey"'),
        (AUTH, "", f"{HQ}.auth", "is missing"),
        (AUTH, "auth = 1\n", f"{HQ}.auth", "a table, got 1"),
        ('remote_ts = ["10.2.0.0/24"]', 'remote_ts = "10.2.0.0/24"', f"{HQ}.remote_ts", "expected a list"),
        ('remote_ts = ["10.2.0.0/24"]', 'remote_ts = ["10.2.0.1/24"]', f"{HQ}.remote_ts[0]", "10.2.0.0/24"),
        ('peer = "198.51.100.7"', 'peer = "198.51.100.7"\nstart = "now"', f"{HQ}.start", '"wait", "auto"'),
        ('peer = "198.51.100.7"', 'peer = "198.51.100.7"\nike = []', f"{HQ}.ike", "got an empty list"),
        ('peer = "198.51.100.7"', 'peer = "198.51.100.7"\nvip = "1.2.3.4"', f"{HQ}.vip", "of cluster.vips"),
        ("[tenants.blue]", "[ike]\nliveness = 0\n[tenants.blue]", "ike.liveness", "from 1 to 86400, got 0"),
        ("[tenants.blue]", "[ike]\nlifetime = 1\n[tenants.blue]", "ike.lifetime", "is not a known key"),
        ("[tenants.blue]", "[plugins]\npaths = [1]\n[tenants.blue]", "plugins.paths[0]", "expected a path"),
        # values against one another
        ('role = "gmn"', 'role = "gpn"', "nodes", 'expected one node with role = "gmn"'),
        ('role = "gen"', 'role = "gmn"', "nodes.gen-1.role", "gmn-1 is one already"),
        ('"10.10.0.3"', '"203.0.113.10"', "nodes.gen-1.address", "one of cluster.vips"),
        ('"10.10.0.12"', '"10.10.0.11"', "nodes.gpn-2.ports.esp", "udp/4500 is taken by gpn-1 (esp)"),
        ('"10.10.0.12"', '"10.10.0.3"', "nodes.gpn-2.ports.vxlan", "udp/4789 is taken by gen-1 (vxlan)"),
        (
            'address = "10.10.0.12"',
            'address = "10.10.0.12"\nports = { natt = 4600 }',
            "nodes.gpn-2.ports.natt",
            "expected 4500, the natt of gin-1, got 4600",
        ),
        (
            'address = "10.10.0.12"',
            'address = "10.10.0.12"\nports = { esp = 4600 }',
            "nodes.gpn-2.ports.esp",
            "expected 4500, the natt of gin-1, got 4600",
        ),
        ("vni = 1002", "vni = 1001", "tenants.blue.vni", "VNI of tenant acme already"),
        ('"10.20.0.5"', '"10.10.0.3"', "tenants.acme.attach.vteps[0].address", "is the node gen-1"),
        ('"2001:db8:1::/64"', '"10.1.0.0/24"', "tenants.blue.attach.vteps[1].prefix", "listed twice"),
        (
            "vni = 1001",
            'vni = 1001\ngateway = ["10.1.0.1", "10.1.0.1"]',
            "tenants.acme.gateway[1]",
            "10.1.0.1 is listed twice",
        ),
        (
            "vni = 1001",
            'vni = 1001\ngateway = ["10.2.0.1"]',
            "tenants.acme.gateway[0]",
            "in 10.2.0.0/24, which is behind the peer of tunnel acme/hq",
        ),
        ('local_ts = ["10.1.0.0/24"]', 'local_ts = ["10.9.0.0/24"]', f"{HQ}.local_ts[0]", "not inside"),
        ('local_ts = ["10.1.0.0/24"]', 'local_ts = ["10.1.0.0/16"]', f"{HQ}.local_ts[0]", "not inside"),
        ('"10.3.0.0/24"', '"10.2.0.128/25"', f"{BRANCH}.remote_ts[0]", "10.2.0.0/24 of tunnel acme/hq"),
        ('"10.2.0.0/24"', '"10.2.0.0/24", "10.0.0.0/8"', f"{HQ}.remote_ts[1]", "overlaps 10.2.0.0/24"),
        ('"10.2.0.0/24"', ",".join(f'"10.7.{n}.0/24"' for n in range(65)), f"{HQ}.remote_ts", "at most 64"),
        ('"10.2.0.0/24"', '"2001:db8:2::/64"', f"{HQ}.remote_ts", "local_ts (IPv4), got IPv6"),
        ('"branch.example"', '"198.51.100.7"', f"{BRANCH}.remote_id", 'acme/hq expects "198.51.100.7"'),
        ('peer = "198.51.100.7"', 'peer = "203.0.113.11"', f"{HQ}.peer", "our own side"),
        ('peer = "any"', 'peer = "any"\nstart = "auto"', f"{BRANCH}.start", 'expected "wait"'),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_its_key(tmp_path: Path, old: str, new: str, key: str, message: str) -> None:
    found = problems(tmp_path, changed((old, new)))
    assert key in found, found
    assert message in found[key]


def test_one_fault_is_one_problem(tmp_path: Path) -> None:
    """A value that is wrong by itself causes no second complaint from the checks that compare."""
    for old, new in (
        ('"203.0.113.11"', '"nonsense"'),
        ('"10.10.0.3"', '"nonsense"'),
        ('role = "gmn"', 'role = "boss"'),
        ('prefix = "10.1.0.0/24"', 'prefix = "nonsense"'),
        ('remote_id = "198.51.100.7"', "remote_id = 7"),
        ('peer = "198.51.100.7"', 'peer = "nonsense"'),
        ('local_ts = ["10.1.0.0/24"]', "local_ts = 1"),
        ("vni = 1001", "vni = 0"),
        ('kind = "vxlan"', 'kind = "tap"'),
    ):
        assert len(problems(tmp_path, changed((old, new)))) == 1


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        changed(
            ("vni = 1001", "vni = -1"), ('role = "gen"', 'rol = "gen"'), ('"10.2.0.0/24"', '"10.3.0.0/16"')
        ),
    )
    assert set(found) == {
        "tenants.acme.vni",
        "nodes.gen-1.role",
        "nodes.gen-1.rol",
        f"{BRANCH}.remote_ts[0]",
    }


def test_tenants_may_overlap_one_another(tmp_path: Path) -> None:
    text = VALID + BLUE_TUNNEL.replace("2001:db8:1::/64", "10.1.0.0/24")
    assert len(load(write_cluster(tmp_path, text)).tunnels()) == 3


def test_families_must_match(tmp_path: Path) -> None:
    assert set(problems(tmp_path, VALID + BLUE_TUNNEL)) == {"tenants.blue.tunnels.hq.remote_ts"}


def test_a_local_prefix_may_span_vteps(tmp_path: Path) -> None:
    two = ", ".join(
        f'{{ prefix = "{prefix}", address = "10.20.0.5", mac = "02:00:00:00:00:05" }}'
        for prefix in ("10.1.0.0/25", "10.1.0.128/25")
    )
    one = '{ prefix = "10.1.0.0/24", address = "10.20.0.5", mac = "02:00:00:00:00:05" }'
    load(write_cluster(tmp_path, changed((one, two))))


def test_plugins_judge_what_they_provide(tmp_path: Path) -> None:
    def wrong(text: str, kind: Literal["ike", "esp"]) -> str | None:
        return f"no {kind} algorithm" if text == "rot13" else None

    file = write_cluster(tmp_path, changed(('peer = "any"', 'peer = "any"\nesp = ["aes256gcm16", "rot13"]')))
    load(file)
    with pytest.raises(ConfigError) as caught:
        load(file, Known(check_proposal=wrong, ingress=["nft", "ebpf"], packing=["spread"]))
    assert [str(problem) for problem in caught.value.problems] == [f"{BRANCH}.esp[1]: no esp algorithm"]


def test_backends_are_checked_where_the_file_names_them(tmp_path: Path) -> None:
    file = write_cluster(tmp_path, changed(('name = "demo"', 'name = "demo"\ningress = "nft"')))
    load(file, Known(ingress=["mux", "nft"]))
    with pytest.raises(ConfigError, match='a steering backend: "mux", got "nft"'):
        load(file, Known(ingress=["mux"]))


def test_a_gin_may_have_a_backend_of_its_own(tmp_path: Path) -> None:
    text = changed(('address = "10.10.0.2"', 'address = "10.10.0.2"\ningress = "nft"'))
    file = write_cluster(tmp_path, text)
    cluster = load(file, Known(ingress=["mux", "nft"]))
    assert [(node.name, node.ingress) for node in cluster.nodes if node.ingress] == [("gin-1", "nft")]
    with pytest.raises(ConfigError, match=r'nodes\.gin-1\.ingress: .*a steering backend: "mux", got "nft"'):
        load(file, Known(ingress=["mux"]))
    text = changed(('address = "10.10.0.11"', 'address = "10.10.0.11"\ningress = "mux"'))
    with pytest.raises(ConfigError, match=r"nodes\.gpn-1\.ingress: is not a known key"):
        load(write_cluster(tmp_path, text))


def test_what_some_editors_write(tmp_path: Path) -> None:
    """A byte order mark, and CR LF at the ends of lines."""
    file = write_cluster(tmp_path)
    plain = load(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load(file) == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[cluster\nname = 1", "line 1"),
        (b"[cluster]\nname = what", "line 2, column 8"),
        (b"[cluster]\nname = ", "line 2, column 8"),
        (b"\xff\xfe", "not UTF-8 text at byte 0"),
    ],
)
def test_what_is_not_toml_is_told_where(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "cluster.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(file)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        load(tmp_path / "none.toml")
    assert caught.value.exit_code is Exit.USAGE


def test_secrets_are_checked_together_with_the_rest(tmp_path: Path) -> None:
    file = write_cluster(tmp_path, changed(("vni = 1001", "vni = 0")))
    (tmp_path / "secrets/acme-hq.psk").chmod(0o644)
    (tmp_path / "secrets/acme-branch.psk").unlink()
    with pytest.raises(ConfigError) as caught:
        load(file, secrets=True)
    found = {problem.key: problem.message for problem in caught.value.problems}
    assert set(found) == {"tenants.acme.vni", f"{HQ}.auth.file", f"{BRANCH}.auth.file"}
    assert "chmod 600" in found[f"{HQ}.auth.file"]
    assert "psk generate" in found[f"{BRANCH}.auth.file"]


def test_a_node_without_the_secrets_can_load(tmp_path: Path) -> None:
    assert load(write_cluster(tmp_path, secrets=False)).name == "demo"


def test_find_prefers_the_option_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("protego_cli.config.load.PLACES", (Path("cluster.toml"),))
    monkeypatch.delenv("PROTEGO_CLUSTER", raising=False)
    with pytest.raises(UsageError, match="-c"):
        find()
    (tmp_path / "cluster.toml").touch()
    assert find() == Path("cluster.toml")
    monkeypatch.setenv("PROTEGO_CLUSTER", "/else/where.toml")
    assert find() == Path("/else/where.toml")
    assert find(Path("given.toml")) == Path("given.toml")


def test_the_example_is_valid(tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / "config" / "cluster.toml"
    file = write_cluster(tmp_path, example.read_text())
    cluster = load(file, secrets=True)
    assert [node.role for node in cluster.nodes] == ["gmn", "gin", "gen", "gpn", "gpn"]
    assert cluster.ike == IkeSettings(), "the example calls these values the defaults"


def test_a_tunnels_path_has_an_mtu_and_what_is_cut_is_chosen(tmp_path: Path) -> None:
    peer = 'peer = "198.51.100.7"'
    tunnel = load(write_cluster(tmp_path)).tunnels()[0]
    assert (tunnel.mtu, tunnel.fragment, tunnel.mss) == (1500, "inner", None)
    file = write_cluster(tmp_path, changed((peer, f'{peer}\nmtu = 1492\nfragment = "outer"\nmss = 1300')))
    tunnel = load(file).tunnels()[0]
    assert (tunnel.mtu, tunnel.fragment, tunnel.mss) == (1492, "outer", 1300)
    file = write_cluster(tmp_path, changed((peer, f'{peer}\nmtu = 575\nfragment = "both"\nmss = 215')))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert "mtu: expected a whole number from 576 to 9000, got 575" in str(caught.value)
    assert 'fragment: expected "inner", "outer", got "both"' in str(caught.value)
    assert 'mss: expected "auto" or a whole number from 216 to 8960, got 215' in str(caught.value)


def test_how_packets_return_to_peers_is_chosen(tmp_path: Path) -> None:
    name = 'name = "demo"'
    assert load(write_cluster(tmp_path)).returns == "direct"
    assert load(write_cluster(tmp_path, changed((name, f'{name}\nreturn = "gin"')))).returns == "gin"
    with pytest.raises(ConfigError, match=r'cluster\.return: expected "direct", "gin", got "gen"'):
        load(write_cluster(tmp_path, changed((name, f'{name}\nreturn = "gen"'))))


def test_a_replay_window_is_a_power_of_two(tmp_path: Path) -> None:
    assert load(write_cluster(tmp_path)).tunnels()[0].window == 1024
    peer = 'peer = "198.51.100.7"'
    for size in (32, 16384):
        file = write_cluster(tmp_path, changed((peer, f"{peer}\nwindow = {size}")))
        assert load(file).tunnels()[0].window == size
    for wrong in ("0", "31", "100", "32768", "true", '"64"', "-64"):
        file = write_cluster(tmp_path, changed((peer, f"{peer}\nwindow = {wrong}")))
        with pytest.raises(ConfigError, match=r"window.*expected a power of two from 32 to 16384"):
            load(file)


def test_a_dscp_is_copied_cleared_or_a_number(tmp_path: Path) -> None:
    assert load(write_cluster(tmp_path)).tunnels()[0].dscp == "copy"
    peer = 'peer = "198.51.100.7"'
    for spelled, value in (('"copy"', "copy"), ('"clear"', "clear"), ("0", 0), ("46", 46), ("63", 63)):
        file = write_cluster(tmp_path, changed((peer, f"{peer}\ndscp = {spelled}")))
        assert load(file).tunnels()[0].dscp == value
    for wrong in ("64", "-1", "true", "46.0", '"46"', '"ef"', "[]"):
        file = write_cluster(tmp_path, changed((peer, f"{peer}\ndscp = {wrong}")))
        with pytest.raises(
            ConfigError, match=r'dscp.*expected "copy", "clear" or a whole number from 0 to 63'
        ):
            load(file)


def test_encapsulation_is_that_of_the_cluster_where_a_tunnel_says_nothing(tmp_path: Path) -> None:
    peer, cluster = 'peer = "198.51.100.7"', 'name = "demo"'
    assert load(write_cluster(tmp_path)).tunnels()[0].encapsulation == "force"
    assert not load(write_cluster(tmp_path)).wants_raw_esp
    own = changed((peer, f'{peer}\nencapsulation = "auto"'))
    assert load(write_cluster(tmp_path, own)).tunnels()[0].encapsulation == "auto"
    everywhere = changed((cluster, f'{cluster}\nencapsulation = "auto"'))
    assert load(write_cluster(tmp_path, everywhere)).wants_raw_esp
    but = changed((cluster, f'{cluster}\nencapsulation = "auto"'), (peer, f'{peer}\nencapsulation = "force"'))
    assert load(write_cluster(tmp_path, but)).tunnels()[0].encapsulation == "force"
    for wrong in ('"no"', "true", "1"):
        with pytest.raises(ConfigError, match=r'hq.encapsulation: expected "auto", "force", got'):
            load(write_cluster(tmp_path, changed((peer, f"{peer}\nencapsulation = {wrong}"))))


def test_lifetimes_are_those_of_ike_where_a_tunnel_says_nothing(tmp_path: Path) -> None:
    assert load(write_cluster(tmp_path)).tunnels()[0].lifetimes == Lifetimes(14400, 3600, 0, 0, 0.1)
    text = changed(
        ('peer = "198.51.100.7"', 'peer = "198.51.100.7"\nlifetimes = { child = "30m", packets = 1000 }')
    )
    text += '\n[ike]\nike_lifetime = "1d"\nchild_lifetime = 5400\nchild_bytes = 7\njitter = 0\n'
    cluster = load(write_cluster(tmp_path, text))
    assert cluster.ike.lifetimes == Lifetimes(86400, 5400, 7, 0, 0)
    hq, branch = cluster.tunnels()
    assert hq.lifetimes == Lifetimes(86400, 1800, 7, 1000, 0)
    assert branch.lifetimes == cluster.ike.lifetimes


@pytest.mark.parametrize(
    ("spelled", "seconds"),
    [("90", 90), ("90.5", 90.5), ('"90s"', 90), ('"1.5m"', 90), ('"2h"', 7200), ('"1d"', 86400)],
)
def test_durations(tmp_path: Path, spelled: str, seconds: float) -> None:
    assert (
        load(write_cluster(tmp_path, f"{VALID}\n[ike]\nike_lifetime = {spelled}\n")).ike.ike_lifetime
        == seconds
    )


@pytest.mark.parametrize(
    "spelled", ["9", '"9s"', '"31d"', '"1w"', '"h"', '"1 h"', '"-1h"', "true", "inf", "nan"]
)
def test_what_is_no_duration(tmp_path: Path, spelled: str) -> None:
    found = problems(tmp_path, f"{VALID}\n[ike]\nchild_lifetime = {spelled}\n")
    assert list(found) == ["ike.child_lifetime"]
    assert 'such as 90, "90s", "15m", "1h" or "1d", from 10 to 2592000 seconds' in found["ike.child_lifetime"]


def test_a_gpn_has_a_capacity_and_other_nodes_have_none(tmp_path: Path) -> None:
    gpn = 'address = "10.10.0.12"\n'
    cluster = load(write_cluster(tmp_path, changed((gpn, f"{gpn}capacity = 0.5\n"))))
    assert [node.capacity for node in cluster.nodes_of("gpn")] == [1.0, 0.5]
    for key, wrong in ((gpn, "capacity = 0\n"), ('address = "10.10.0.3"\n', "capacity = 1\n")):
        with pytest.raises(ConfigError, match="capacity"):
            load(write_cluster(tmp_path, changed((key, key + wrong))))


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "1" * 10_000, "a = 1e\n", "[a\n"])
def test_what_is_no_toml_is_a_problem_of_the_file(tmp_path: Path, text: str) -> None:
    """Not the end of who reads it, which may be a GMN that is told to reload."""
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(write_cluster(tmp_path, text))
