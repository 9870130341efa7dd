"""What the documents promise is what is there: commands, options, exit codes, links, examples."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest
import typer

from protego_cli.cli.app import EPILOG, app
from protego_cli.config import diff
from protego_cli.config.diff import FieldChange, Landed
from protego_cli.config.load import load
from protego_cli.config.model import ElasticConfig, IkeSettings, Ports, TunAttach
from protego_cli.control.channel.operator_messages import (
    ChildSaDetail,
    Event,
    Explanation,
    ExplanationRow,
    IkeSaDetail,
    NodeStatus,
    Reloaded,
    Status,
    TunnelDetail,
    TunnelStatus,
)
from protego_cli.control.operating.events import KINDS
from protego_cli.counters import TABLE
from protego_cli.errors import Exit
from protego_cli.lab.elastic import ElasticReceipt
from protego_cli.lab.receipt import Receipt
from protego_cli.net.tun import INNER_MTU
from protego_cli.roles.doctor import Finding
from protego_cli.sim.generator import PRESETS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
CLI = (ROOT / "docs/cli.md").read_text()
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
EXAMPLE = (ROOT / "config/cluster.toml").read_text()


def commands() -> dict[str, list[str]]:
    """Every visible command, and the options that it shows."""
    found: dict[str, list[str]] = {}

    def walk(command: object, path: tuple[str, ...]) -> None:
        children = getattr(command, "commands", {})
        for name, child in children.items():
            if not child.hidden:
                walk(child, (*path, name))
        if not children:
            found[" ".join(path)] = [
                max(option.opts, key=len)
                for option in command.params  # type: ignore[attr-defined]  # a click command
                if option.param_type_name == "option" and not option.hidden
            ]

    walk(typer.main.get_command(app), ())
    return found


COMMANDS = commands()


def section(command: str) -> str:
    """The part of docs/cli.md on a command."""
    _, _, rest = CLI.partition(f"### `protego {command}`\n")
    return re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]


def test_the_commands_are_those_that_were_meant() -> None:
    assert set(COMMANDS) == {
        "up", "status", "migrate", "reload", "drain", "undrain", "rebalance", "pool", "plan", "events",
        "local",
        "doctor",
        "simulate", "trace generate", "trace record",
        "tunnel list", "tunnel show", "tunnel up",
        "tunnel down", "tunnel rekey", "explain", "plugins", "config check", "pki init", "pki token",
        "psk generate",
    }  # fmt: skip


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_and_option_is_documented(command: str) -> None:
    text = section(command)
    assert text, f"docs/cli.md has no section `protego {command}`"
    for option in COMMANDS[command]:
        assert (option if option != "--cluster" else "-c FILE") in text


def test_nothing_is_documented_that_is_not_there() -> None:
    assert set(re.findall(r"^### `protego (.+)`$", CLI, re.MULTILINE)) == set(COMMANDS)
    for command, options in COMMANDS.items():
        usage = section(command).split("\n\n")[1]
        assert set(re.findall(r"--[a-z-]+", usage)) <= set(options), command


def test_every_exit_code_is_documented() -> None:
    documented = re.findall(r"^\| (\d) \|", CLI, re.MULTILINE)
    assert [int(code) for code in documented] == [int(code) for code in Exit]
    assert [int(code) for code in re.findall(r"(\d) [a-z]", EPILOG)] == [int(code) for code in Exit]


@pytest.mark.parametrize(
    ("command", "types"),
    [
        ("status", (Status, NodeStatus, TunnelStatus)),
        ("reload", (Reloaded, Landed, FieldChange)),
        ("events", (Event,)),
        ("tunnel show", (TunnelDetail, IkeSaDetail, ChildSaDetail)),
        ("doctor", (Finding,)),
        ("explain", (Explanation, ExplanationRow)),
        ("local", (Receipt, ElasticReceipt)),
    ],
)
def test_the_json_is_documented(command: str, types: tuple[type[msgspec.Struct], ...]) -> None:
    documented = set(re.findall(r'"(\w+)"', section(command)))
    for kind in types:
        assert {field.encode_name for field in msgspec.structs.fields(kind)} <= documented


def test_what_the_presets_of_traces_are_is_documented() -> None:
    rows = re.findall(r"^\| (`--.+) \| (.+) \| (.+) \|$", section("trace generate"), re.MULTILINE)
    documented: dict[str, dict[str, float]] = {"default": {}, "paper": {}}
    for options, default, paper in rows:
        names = re.findall(r"--(\w+)", options)
        for preset, values in (("default", default), ("paper", default if paper == "the same" else paper)):
            seconds = [value.replace("24h", "86400").removesuffix("s") for value in values.split(", ")]
            documented[preset] |= dict(zip(names, map(float, seconds), strict=True))
    assert documented == {name: asdict(recipe) for name, recipe in PRESETS.items()}


def test_every_kind_of_event_is_documented() -> None:
    _, _, text = (ROOT / "docs/operations.md").read_text().partition("## Events\n")
    documented = {}
    for kinds, severities in re.findall(r"^\| (`.+`) \| ([a-z, ]+) \|", text, re.MULTILINE):
        named, listed = re.findall(r"`(.+?)`", kinds), severities.split(", ")
        documented |= dict(zip(named, listed * len(named) if len(listed) == 1 else listed, strict=False))
    assert documented == dict(KINDS)


def test_how_each_value_of_the_file_lands_is_documented() -> None:
    _, _, text = (ROOT / "docs/operations.md").read_text().partition("## Changing a running cluster\n")
    text = text.partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (now|rekey|reconnect|restart) \|", text, re.MULTILINE)
    documented = {(name, lands) for row, lands in rows for name in re.findall(r"`(.+?)`", row)}
    fields = {name: landing.lands for name, (landing, _) in diff.SETTINGS.items()}
    assert {(name[8:], fields[name]) for name in fields if name.startswith("cluster.")} <= documented
    assert {fields[name] for name in fields if name.startswith("ike.")} == {"now"}
    assert {fields[name] for name in fields if name.startswith("plugins.")} == {"restart"}
    assert {fields[name] for name in fields if name.startswith("elastic.")} == {"now"}
    assert {("[ike]", "now"), ("[plugins]", "restart"), ("[elastic]", "now")} <= documented
    assert {(name, landing.lands) for name, landing in diff.POOL.items()} <= documented
    assert {(name, landing.lands) for name, landing in diff.TUNNEL.items() if name != "auth"} <= documented
    assert {("file", "now"), ("vni", "reconnect")} <= documented
    assert {
        (name, landing.lands) for name, landing in diff.NODE.items() if name not in ("group", "pool")
    } <= documented
    assert {(name, landing.lands) for name, landing in diff.TENANT.items() if name != "vni"} <= documented


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_files_and_counters_that_exist(document: Path) -> None:
    text = document.read_text()
    ours = "benchmarks|completions|config|docs|packaging|protego_cli|tests"
    for name in re.findall(rf"`((?:{ours})/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    assert {*re.findall(r"\b(?:gin|gen|gpn|ike)_drop_[a-z_]+\b", text)} <= TABLE.keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_commands_that_exist(document: Path) -> None:
    """In code, after the word protego, there is a command."""
    known = {command.split()[0] for command in COMMANDS}
    for name in re.findall(r"(?:`|^ {4})protego ([a-z][a-z-]*)", document.read_text(), re.MULTILINE):
        assert name in known


def test_the_readme_begins_with_the_two_commands() -> None:
    blocks = re.findall(r"(?:^ {4}.*\n)+", README, re.MULTILINE)
    assert [line.split("#")[0].strip() for line in blocks[0].splitlines()] == ["make local", "make test"]


def test_the_readme_example_uses_the_addresses_of_the_example_file() -> None:
    cluster = load(ROOT / "config/cluster.toml")
    tunnel, tenant = cluster.tunnels()[0], cluster.tenants[0]
    for text in (
        *cluster.vips,
        *(node.address for node in cluster.nodes),
        *(node.name for node in cluster.nodes),
        str(tunnel.peer),
        f"local_ts = {tunnel.remote_ts[0]}",
        f"remote_ts = {tunnel.local_ts[0]}",
        f"proposals = {tunnel.ike[0]}",
        f"esp_proposals = {','.join(tunnel.esp)}",
        f"vxlan id {tenant.vni}",
        tenant.gateway[0],
        tenant.vteps[0].mac.hex(":"),
    ):
        assert text in README, text


def test_the_example_file_and_the_manual_show_a_tun_attachment_that_is_valid(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^    (attach = .*)$", OPERATIONS, re.MULTILINE)
    assert f"#     {shown}\n" in EXAMPLE
    text = re.sub(r"^gateway = .*$", shown, EXAMPLE, count=1, flags=re.MULTILINE)
    file = tmp_path / "cluster.toml"
    file.write_text(
        re.sub(r"^\[tenants\.acme\.attach\]\n.*?\n\]\n", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    attach = load(file).tenants[0].attach
    assert isinstance(attach, TunAttach)
    assert (attach.device, attach.netns, attach.node) == ("acme0", "acme", "gen-1")
    assert f"mtu = {INNER_MTU} " in EXAMPLE


def test_the_example_file_shows_every_default() -> None:
    for name in IkeSettings.__struct_fields__:
        assert re.search(rf"^{name} = ", EXAMPLE, re.MULTILINE), name
    for name in ElasticConfig.__struct_fields__:
        assert re.search(rf"^# {name} = ", EXAMPLE, re.MULTILINE), name
    for name, port in msgspec.structs.asdict(Ports()).items():
        assert re.search(rf"^#     {name} = {port} ", EXAMPLE, re.MULTILINE), name


def test_the_unit_may_write_where_the_manual_puts_the_state() -> None:
    """Whoever follows it to the letter has a GMN that starts."""
    manual = (ROOT / "docs/operations.md").read_text()
    unit = dict(
        line.strip().split("=", 1) for line in manual.split("[Service]")[1].splitlines() if "=" in line
    )
    state = re.search(r'`state = "([^"]+)"` under `\[cluster\]`', manual)
    assert state is not None
    assert unit["ProtectSystem"] == "strict"
    assert state[1].startswith(f"/var/lib/{unit['StateDirectory']}/")
