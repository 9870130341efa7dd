"""`protego explain`: real negotiations, good and failed, and the line that would mend each.

What it prints is in tests/golden/explain.txt (`tests.support.explanations` writes it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from protego_cli.cli import asking
from protego_cli.cli.app import main
from protego_cli.control.channel.operator_messages import Explain, Explanation, ExplanationRow, Explanations
from protego_cli.control.operating import strangers
from protego_cli.control.operating.explain import explain
from protego_cli.control.operating.strangers import Strangers
from protego_cli.crypto.proposal import parse_ike
from protego_cli.errors import NoProposalChosen, NotFound
from protego_cli.ike import record
from protego_cli.ike.events import Path as IkePath
from protego_cli.ike.negotiation import difference
from protego_cli.ike.record import Failure, unanswered
from protego_cli.wire.proposals import Proposal, Protocol, Transform
from protego_cli.wire.selectors import TrafficSelector
from tests.support.clusters import write_cluster
from tests.support.explanations import (
    AT,
    CASES,
    FILE,
    OTHER,
    asked,
    config_of,
    explained,
    prefixes,
    shown,
)
from tests.support.gmn_world import TUNNEL, world
from tests.support.ike_pairs import GATEWAY, GATEWAY_POLICY, SPI, pair
from tests.support.network import REGISTRY

GOLDEN = dict(
    re.findall(r"^==== (.+)\n((?:(?!==== ).*\n)*)", FILE.read_text(), re.MULTILINE)  # title, text
)


def test_the_golden_file_has_the_cases() -> None:
    assert list(GOLDEN) == list(CASES), "python -m tests.support.explanations"


@pytest.mark.parametrize("case", CASES)
def test_it_prints_what_is_in_the_golden_file(case: str) -> None:
    assert shown(case) == GOLDEN[case].strip(), "if it should: python -m tests.support.explanations"


@pytest.mark.parametrize("case", CASES)
def test_it_shows_no_secret_and_no_control_character(case: str) -> None:
    text = shown(case)
    for psk in (GATEWAY_POLICY.psk, b"another secret altogether"):
        for form in (psk.decode(), psk.hex()):
            assert form not in text
            assert form not in repr(explained(case))
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("the peer asked, with other IKE proposals", "ike"),
        ("the peer asked, and each transform is known but no proposal", "ike"),
        ("the peer asked, with other ESP proposals", "esp"),
        ("the peer asked, with other selectors", "remote_ts"),
        ("the peer asked, by another name", "remote_id"),
        ("the peer asked, by a key id", "remote_id"),
        ("the peer asked for somebody else", "local_id"),
    ],
)
def test_the_line_of_ours_mends_it(case: str, change: str) -> None:
    """Put into the gateway's policy, as the advice says, and the same peer comes up."""
    (line,) = [line for line in explained(case).advice if line.startswith(f"here: {change} = ")]
    value: Any = json.loads(line.partition(" = ")[2].partition("  #")[0])
    if isinstance(value, list):
        value = prefixes(*value) if change.endswith("_ts") else tuple(value)
    faults: dict[str, dict[str, Any]] = {
        "the peer asked, with other IKE proposals": {
            "ike": ("aes128gcm16-prfsha384-x25519", "aes256-sha256-prfsha256-modp2048")
        },
        "the peer asked, and each transform is known but no proposal": {
            "ike": ("aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-ecp256")
        },
        "the peer asked, with other ESP proposals": {"esp": ("aes128gcm16",)},
        "the peer asked, with other selectors": {"local_ts": prefixes("10.77.0.0/24", "10.78.0.0/24")},
        "the peer asked, by another name": {"local_id": "gw.example.org"},
        "the peer asked, by a key id": {"local_id": "@#1b5b324a"},
        "the peer asked for somebody else": {"remote_id": "vpn.example.net"},
    }
    network, gateway, peer = pair(gateway={change: value}, peer=faults[case])
    peer.dial(GATEWAY_POLICY.tunnel, GATEWAY, SPI)
    network.run(lambda: bool(gateway.children and peer.children))
    assert gateway.children
    assert gateway.records[-1].failure is None


def test_of_what_a_peer_sends_a_bounded_part_is_kept() -> None:
    many = tuple(
        f"{cipher}-{prf}-{group}"
        for cipher in ("aes128gcm16", "chacha20poly1305")
        for prf in ("prfsha256", "prfsha384", "prfsha512")
        for group in ("x25519", "ecp256", "ecp384")
    )
    kept = asked(ike=many).ike
    assert kept is not None
    assert kept.theirs is not None
    assert len(kept.theirs) == record.MAX_PROPOSALS
    selectors = asked(local_ts=prefixes(*(f"10.77.{i}.0/24" for i in range(40)))).selectors
    assert selectors is not None
    assert selectors.their_remote is not None
    assert len(selectors.their_remote) == record.MAX_SELECTORS
    claimed = asked(local_id="x" * 5000).identities
    assert claimed is not None
    assert claimed.claimed == "x" * record.MAX_IDENTITY


def test_what_a_peer_wants_beside_what_we_know_is_shown_and_not_advised() -> None:
    """As strongSwan 6 does with ML-KEM (RFC 9370)."""
    ours = [parse_ike(text, REGISTRY) for text in GATEWAY_POLICY.ike]
    theirs = Proposal(1, Protocol.IKE, b"", (*ours[0].transforms, Transform(6, 36)))
    found = record.bid(REGISTRY, ours, [theirs])
    path = IkePath(GATEWAY, 500, OTHER, 500)
    failure = Failure(difference(ours, [theirs], REGISTRY), NoProposalChosen.notify, by_peer=False)
    explanation = explain(unanswered(TUNNEL, path, found, failure), config_of(GATEWAY_POLICY), AT)
    differs = [row for row in explanation.rows if row.result == "differs"]
    assert differs == [ExplanationRow("IKE further transforms", "-", "KE1_ML_KEM_768", "differs")]
    assert explanation.advice == (f"there: proposals = {','.join(GATEWAY_POLICY.ike)}",)


def test_strangers_are_bounded_and_told_once() -> None:
    found = Strangers()
    for i in range(100):
        for _ in range(2):
            path = IkePath("203.0.113.10", 500, f"198.51.100.{i}", 500)
            found.add(float(i), unanswered(None, path, None, Failure("no tunnel", 14, by_peer=False)))
    assert [at for at, _ in found] == [float(i) for i in range(99, 99 - strangers.REMEMBERED, -1)]


# ---- in the control node


async def test_each_sort_of_negotiation_is_remembered(autojump_clock: MockClock) -> None:
    async with world() as w:
        reply = await w.operations.answer(Explain(TUNNEL))
        assert isinstance(reply, Explanations)
        assert reply.found == ()
        await w.up()
        await w.settle()
        await w.migrations.migrate(TUNNEL, "gpn-2")
        policy = next(iter(vars(w.peer.engine)["_context"].policies._by_name.values())).policy
        w.peer.engine.set_policies([replace(policy, ike=("aes128gcm16-prfsha256-x25519",))])
        w.peer.dial()
        await w.until(lambda: len(w.tunnel.negotiations) == 3)
        reply = await w.operations.answer(Explain(TUNNEL))
        assert isinstance(reply, Explanations)
        assert reply.status is not None
        assert reply.status.state == "up"
        told = [(found.exchange, found.initiator, found.ok, found.authentic) for found in reply.found]
        assert told == [
            ("IKE_SA_INIT", "peer", False, False),  # anybody may have sent it: it hides nothing
            ("CREATE_CHILD_SA", "gateway", True, True),
            ("IKE_AUTH", "peer", True, True),
        ]


async def test_a_tunnel_that_is_none(autojump_clock: MockClock) -> None:
    async with world() as w:
        with pytest.raises(NotFound, match="did you mean acme/hq"):
            await w.operations.answer(Explain("acme/hk"))


async def test_a_stranger_is_told_apart(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peers[OTHER] = w.peer
        w.peer.address = OTHER
        w.peer.dial()
        await w.until(lambda: list(w.sad.strangers))
        reply = await w.operations.answer(Explain(None))
        assert isinstance(reply, Explanations)
        (found,) = reply.found
        assert (found.tunnel, found.result) == (None, "no tunnel has a peer at this address")


# ---- the command

ROW = ExplanationRow("ESP cipher", "[red]", "aes128gcm16", "differs")
FOUND = Explanation(
    "acme/hq", 1_750_000_000.0, "IKE_AUTH", "peer", "203.0.113.10:4500", "[2001:db8::7]:4500", False, True,
    False, "it differs", "NO_PROPOSAL_CHOSEN", (ROW,), ('here: esp = ["aes128gcm16"]', "or not"),
)  # fmt: skip


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str, list[object]]]:
    file = write_cluster(tmp_path)

    def call(reply: Explanations, *arguments: str) -> tuple[int, str, str, list[object]]:
        asked: list[object] = []

        async def ask(_: object, request: object) -> Explanations:
            asked.append(request)
            return reply

        monkeypatch.setattr(asking, "ask", ask)
        with pytest.raises(SystemExit) as ended:
            main(["explain", *arguments, "-c", str(file)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err, asked

    return call


def test_the_command_shows_markup_as_it_is(run: Callable[..., tuple[int, str, str, list[object]]]) -> None:
    code, out, _, asked_for = run(Explanations(None, (FOUND,)), "acme/hq")
    assert code == 0
    assert asked_for == [Explain("acme/hq")]
    assert "[2001:db8::7]:4500" in out
    assert "[red]" in out
    assert 'here: esp = ["aes128gcm16"]' in out
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_json(run: Callable[..., tuple[int, str, str, list[object]]]) -> None:
    _, out, _, asked_for = run(Explanations(None, (FOUND,)), "--unknown", "--json")
    assert asked_for == [Explain(None)]
    document = json.loads(out)
    assert list(document) == ["status", "found"]
    assert document["found"][0]["rows"] == [
        {"topic": "ESP cipher", "ours": "[red]", "theirs": "aes128gcm16", "result": "differs"}
    ]


@pytest.mark.parametrize("arguments", [[], ["acme/hq", "--unknown"]])
def test_it_wants_a_tunnel_or_the_unknown(
    run: Callable[..., tuple[int, str, str, list[object]]], arguments: list[str]
) -> None:
    code, _, err, _ = run(Explanations(None, ()), *arguments)
    assert (code, err) == (2, "protego: say which tunnel, or --unknown\n")


def test_nothing_to_explain_says_so(run: Callable[..., tuple[int, str, str, list[object]]]) -> None:
    assert "nobody has dialled" in run(Explanations(None, ()), "--unknown")[1]


def test_the_text_of_a_flood_of_transforms_is_short() -> None:
    """64 proposals of 128 transforms each: what the largest message could hold."""
    many = tuple(
        Proposal(1, 1, b"", tuple(Transform(1, 1000 + 128 * i + j) for j in range(128))) for i in range(64)
    )
    text = difference([parse_ike("aes256gcm16-prfsha256-x25519", REGISTRY)], many, REGISTRY)
    assert "…" in text
    assert len(text) < 20_000


def test_a_selector_that_is_no_prefix_is_short() -> None:
    wide = TrafficSelector(bytes(15) + b"\x01", b"\xff" * 15 + b"\xfe")
    assert str(wide) == "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"
    assert str(TrafficSelector(b"\n\0\0\1", b"\n\0\0\3")) == "10.0.0.1/32, 10.0.0.2/31"
