"""Why a negotiation came to what it did, and the line of ours or theirs that would mend it.

`explain` is a function of the record of the negotiation (`ike.record`) and the tunnel's configuration. Each
row compares one thing: what we want, what the peer wants, what came of it. Lines for the peer are spelled as
in strongSwan's swanctl.conf, and the other makers' words are close to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final

from protego_cli.config.model import TunnelConfig
from protego_cli.control.channel.operator_messages import Explanation, ExplanationRow
from protego_cli.control.sas.tunnel import endpoint
from protego_cli.errors import AuthenticationFailed, NoProposalChosen, TemporaryFailure, TsUnacceptable
from protego_cli.ike.record import FURTHER, Bid, Identities, Negotiation, Offer, Selectors
from protego_cli.wire.notifies import notify_name
from protego_cli.wire.selectors import TrafficSelector

_KINDS: Final = {
    "ENCR": "cipher",
    "INTEG": "integrity",
    "PRF": "PRF",
    "KE": "group",
    "ESN": "extended numbers",
    FURTHER: "further transforms",
}
NOTHING: Final = "-"
UNKNOWN: Final = "?"


def explain(negotiation: Negotiation, config: TunnelConfig | None, at: float) -> Explanation:
    """`config` is the tunnel's, None where the peer's wish is no tunnel's; `at` is wall time."""
    path, failure = negotiation.path, negotiation.failure
    return Explanation(
        tunnel=negotiation.tunnel,
        time=at,
        exchange=negotiation.exchange,
        initiator="gateway" if negotiation.initiator else "peer",
        local=endpoint((path.local, path.local_port)),
        peer=endpoint((path.remote, path.remote_port)),
        nat=negotiation.nat,
        authentic=negotiation.authentic,
        ok=failure is None,
        result="agreed" if failure is None else failure.detail,
        notify=None if failure is None or failure.notify is None else notify_name(failure.notify),
        rows=tuple(_rows(negotiation)),
        advice=tuple(_advice(negotiation, config)),
    )


# ---- the rows


def _rows(negotiation: Negotiation) -> Iterator[ExplanationRow]:
    if negotiation.ike is not None:
        yield from _bid_rows("IKE", negotiation.ike)
    if negotiation.identities is not None:
        yield from _identity_rows(negotiation.identities)
    if negotiation.esp is not None:
        yield from _bid_rows("ESP", negotiation.esp)
    if negotiation.selectors is not None:
        yield from _selector_rows(negotiation.selectors)


def _bid_rows(protocol: str, bid: Bid) -> Iterator[ExplanationRow]:
    kinds = [kind for kind in _KINDS if _of(bid.ours, kind) or _of(bid.theirs or (), kind)]
    clash = False
    for kind in kinds:
        ours, theirs = _of(bid.ours, kind), _of(bid.theirs or (), kind)
        common = [name for name in ours if name in theirs]
        result = " ".join(_of((bid.chosen,), kind)) if bid.chosen else ""
        if bid.chosen is None and bid.theirs is not None:
            optional = not ours and (not theirs or "NONE" in theirs)
            result = "" if common or optional else "differs"
            clash = clash or result == "differs"
        yield ExplanationRow(
            f"{protocol} {_KINDS[kind]}",
            " ".join(ours) or NOTHING,
            UNKNOWN if bid.theirs is None else " ".join(theirs) or NOTHING,
            result,
        )
    if bid.chosen is None and bid.theirs is not None and not clash:
        ours_all, theirs_all = " | ".join(map(_spelled, bid.ours)), " | ".join(map(_spelled, bid.theirs))
        yield ExplanationRow(f"{protocol} proposals", ours_all, theirs_all, "differs")


def _identity_rows(who: Identities) -> Iterator[ExplanationRow]:
    if who.expected is None and who.known:
        theirs = who.claimed or UNKNOWN if who.wanted is None else f"{who.claimed} to {who.wanted}"
        yield ExplanationRow("identities", " | ".join(who.known), theirs, "differs")
    else:
        matches = _same(who.expected, who.claimed) or who.proven is not None
        result = "" if who.claimed is None else "agreed" if matches else "differs"
        yield ExplanationRow("peer's identity", who.expected or NOTHING, who.claimed or UNKNOWN, result)
        if who.wanted is not None:
            result = "agreed" if _same(who.ours, who.wanted) or who.proven is not None else "differs"
            yield ExplanationRow("our identity", who.ours or NOTHING, who.wanted, result)
        else:
            yield ExplanationRow("our identity", who.ours or NOTHING, NOTHING, "")
    if who.proven is not None:
        yield ExplanationRow("pre-shared key", "", "", "agreed" if who.proven else "differs")


def _same(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one.lower() == other.lower()


def _selector_rows(found: Selectors) -> Iterator[ExplanationRow]:
    for side, ours, theirs, agreed in (
        ("local", found.our_local, found.their_local, found.local),
        ("remote", found.our_remote, found.their_remote, found.remote),
    ):
        for mine in ours:
            if theirs is None:
                yield ExplanationRow(f"{side} selector", str(mine), UNKNOWN, "")
                continue
            met = [selector for selector in theirs if mine.intersect(selector)]
            common = [selector for selector in agreed if mine.contains(selector)]
            result = _listed(common) if common else "differs" if not met else ""
            yield ExplanationRow(f"{side} selector", str(mine), _listed(met), result)
        for selector in theirs or ():
            if not any(mine.intersect(selector) for mine in ours):
                yield ExplanationRow(f"{side} selector", NOTHING, str(selector), "differs")


def _listed(selectors: Sequence[TrafficSelector]) -> str:
    return " ".join(map(str, selectors)) or NOTHING


def _of(offers: Sequence[Offer], kind: str) -> list[str]:
    """The names that the offers have for one kind of transform, in order."""
    return list(dict.fromkeys(name for offer in offers for found, name in offer if found == kind))


def _spelled(offer: Offer) -> str:
    return "-".join(dict.fromkeys(name for kind, name in offer if kind in _KINDS and kind != "ESN"))


# ---- the advice


def _advice(negotiation: Negotiation, config: TunnelConfig | None) -> Iterator[str]:
    failure = negotiation.failure
    if failure is None:
        return
    if failure.sent:
        yield from _silence(negotiation, failure.sent)
    elif config is None:
        yield from _stranger(negotiation)
    elif failure.notify == NoProposalChosen.notify and negotiation.esp is None:
        yield from _proposals(negotiation.ike, config, "ike", "proposals", failure.by_peer)
    elif failure.notify == NoProposalChosen.notify:
        yield from _proposals(negotiation.esp, config, "esp", "esp_proposals", failure.by_peer)
    elif failure.notify == TsUnacceptable.notify and negotiation.selectors is not None:
        yield from _selectors(negotiation.selectors, config, failure.by_peer)
    elif failure.notify == AuthenticationFailed.notify and negotiation.identities is not None:
        yield from _proof(negotiation.identities, config, failure.by_peer)
    elif failure.notify == TemporaryFailure.notify and not failure.by_peer:
        yield "here: `protego status` shows whether GPNs are up and have room"
    elif failure.by_peer and failure.notify is not None:
        yield "the peer's log says why it answered so"


def _here(config: TunnelConfig) -> str:
    return f"in [tenants.{config.tenant}.tunnels.{config.name}]"


def _silence(negotiation: Negotiation, sent: int) -> Iterator[str]:
    path = negotiation.path
    way = f"{endpoint((path.local, path.local_port))} to {endpoint((path.remote, path.remote_port))}"
    yield f"{sent} requests from {way} were not answered"
    if negotiation.exchange == "IKE_SA_INIT":
        yield "is the peer running, and `peer` its address? Do firewalls pass UDP 500 and 4500, both ways?"
        yield "a peer may also drop what it has no connection for: its log, or tcpdump there, tells"
    elif path.local_port == path.remote_port == 500:
        yield "IKE_SA_INIT was answered: does something on the way drop larger UDP packets, or fragments?"
    else:
        yield "IKE_SA_INIT was answered: do firewalls pass UDP 4500, both ways?"


def _stranger(negotiation: Negotiation) -> Iterator[str]:
    """The peer's wish is no tunnel's."""
    who = negotiation.identities
    address = negotiation.path.remote
    if who is None:
        yield f'here: peer = "{address}"  # or "any", in the tunnel that it is meant for'
        yield f"there: it dials from {address}: if it should not, a NAT or a route has changed"
    elif who.claimed is not None:
        yield from _identity("remote_id", who.claimed, "in the tunnel that it is meant for")
        if who.wanted is not None:
            yield from _identity("local_id", who.wanted, "likewise")
        yield "there: the ids of `local` and `remote` must be a tunnel's remote_id and local_id"


def _proposals(
    bid: Bid | None, config: TunnelConfig, key: str, their_key: str, by_peer: bool
) -> Iterator[str]:
    ours = config.ike if key == "ike" else config.esp
    if bid is not None and bid.theirs is not None:
        usable = next(filter(None, (_usable(offer, key) for offer in bid.theirs)), None)
        if usable is not None:
            listed = ", ".join(f'"{text}"' for text in (*ours, usable))
            yield f"here: {key} = [{listed}]  # {_here(config)}"
    yield f"there: {their_key} = {','.join(ours)}"
    if by_peer:
        yield f"or compare its {their_key}, which it does not tell: its log shows both"


def _usable(offer: Offer, key: str) -> str | None:
    """A proposal as we would write it, of the first transform of each type that we know by its keyword; None
    where it holds what we cannot do.
    """
    if any(kind == FURTHER for kind, _ in offer):
        return None
    kinds = ("ENCR", "INTEG", "PRF", "KE") if key == "ike" else ("ENCR", "INTEG", "KE")
    words = []
    for kind in kinds:
        names = [name for found, name in offer if found == kind and name != "NONE"]
        known = [name for name in names if name == name.lower() and " " not in name]
        if names and not known:
            return None
        words += known[:1]
    return "-".join(words) or None


def _selectors(found: Selectors, config: TunnelConfig, by_peer: bool) -> Iterator[str]:
    sides = (
        ("local_ts", "remote_ts", config.local_ts, found.their_local, found.local),
        ("remote_ts", "local_ts", config.remote_ts, found.their_remote, found.remote),
    )
    for key, their_key, ours, theirs, agreed in sides:
        if theirs is not None and not agreed:
            prefixes = [prefix for selector in theirs for prefix in selector.prefixes()]
            listed = ", ".join(f'"{prefix}"' for prefix in prefixes)
            yield f"here: {key} = [{listed}]  # {_here(config)}"
            yield f"there: {their_key} = {','.join(ours)}"
        elif theirs is None:
            yield f"there: {their_key} = {','.join(ours)}"
    if by_peer:
        yield "or compare the peer's, which it does not tell: its log shows both"


def _proof(who: Identities, config: TunnelConfig, by_peer: bool) -> Iterator[str]:
    if by_peer:
        yield f"the peer does not accept us as {config.local_id}: an identity or the pre-shared key differs"
        yield f"there: remote {{ id = {config.local_id} }}, local {{ id = {config.remote_id} }}"
        yield from _key(config)
    elif who.proven:  # proven, and refused all the same
        yield f"here: protego tunnel up {config.id}"
    elif who.proven is False:
        yield from _key(config)
    elif not _same(who.expected, who.claimed):
        yield from _identity("remote_id", who.claimed, _here(config))
        yield f"there: local {{ id = {config.remote_id} }}"
    elif who.wanted is not None and not _same(who.ours, who.wanted):
        yield from _identity("local_id", who.wanted, _here(config))
        yield f"there: remote {{ id = {config.local_id} }}"
    else:
        yield f"there: local {{ auth = psk }}  # {config.id} has a pre-shared key"


def _identity(key: str, name: str | None, where: str) -> Iterator[str]:
    """Our line for what the peer sent, if the cluster file can say it: a distinguished name it cannot."""
    if name is not None and not re.match(r"\d+#", name):
        yield f"here: {key} = {json.dumps(name)}  # {where}"


def _key(config: TunnelConfig) -> Iterator[str]:
    yield f"here: {config.auth.file}"
    yield "there: secrets { ike { secret = … } }"
    yield "white space around a key does not count; 0s and 0x begin base64 and hexadecimal at both ends"
    yield "no key is shown or hashed here: in doubt, `protego psk generate FILE`, and the same there"
