"""CHILD_SAs: what was agreed, as responder and as initiator, and what becomes of it.

The same terms are settled in IKE_AUTH and in CREATE_CHILD_SA; in IKE_AUTH without a group of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.proposal import EspProposal, parse_esp
from protego_cli.errors import InvalidSyntax, NoProposalChosen, StateError, TsUnacceptable
from protego_cli.ike.events import ChildSa
from protego_cli.ike.keys import child_keys
from protego_cli.ike.message import Payloads
from protego_cli.ike.narrowing import MAX_PREFIXES, covered, describe, narrow, scattered
from protego_cli.ike.negotiation import ESP_SPI_LENGTH, choose, confirm, difference, without_groups
from protego_cli.ike.record import Selectors, Story, bid, few
from protego_cli.wire.payloads import Sa, TsI, TsR
from protego_cli.wire.proposals import Proposal
from protego_cli.wire.selectors import TrafficSelector

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa

MAX_CHILDREN = 16  # per IKE_SA: rekeys of a peer that never deletes end here
_RESERVED_SPIS = 256  # RFC 4303 2.1


@dataclass
class Attempt:
    """The peer's rekey of a CHILD_SA, for the case that ours crosses it (RFC 7296 2.8.1)."""

    child: Child  # the SA it makes
    lowest: bytes  # the lower of its two nonces
    accepted: bool = False
    redundant: int | None = None  # our inbound SPI of the SA that lost against it


@dataclass
class Child:
    """A CHILD_SA in use. `proposal` is the one to ask for again."""

    sa: ChildSa
    proposal: EspProposal
    deleting: bool = False  # we have decided to send DELETE, or have sent it
    doomed: bool = False  # it lost a collision: the peer will delete it
    successor: Child | None = None  # by a rekey of ours
    theirs: Attempt | None = None

    def replaced(self, children: Mapping[int, Child]) -> bool:
        """Whether a rekey of ours made another of these `children` its successor, which stands."""
        successor = self.successor
        return successor is not None and successor.sa.spi_in in children and not successor.deleting

    def taken(self, children: Mapping[int, Child]) -> bool:
        """Whether the peer is rekeying it, or has, and what came of that stands."""
        theirs = self.theirs
        return theirs is not None and (not theirs.accepted or theirs.child.sa.spi_in in children)


class AttemptState(msgspec.Struct, frozen=True, array_like=True):
    """An `Attempt` that was accepted; one that was not is the peer's to repeat after a restart."""

    spi_in: int  # of the SA it made
    lowest: bytes
    redundant: int | None


class ChildState(msgspec.Struct, frozen=True, array_like=True):
    """What is stored of a CHILD_SA. Others are named by inbound SPI; those that have gone have no say."""

    sa: ChildSa
    proposal: str
    deleting: bool
    doomed: bool
    successor: int | None
    theirs: AttemptState | None

    @classmethod
    def of(cls, child: Child, children: Mapping[int, Child]) -> ChildState:
        """`children`: those that stand."""
        successor, theirs = child.successor, child.theirs
        return cls(
            child.sa,
            str(child.proposal),
            child.deleting,
            child.doomed,
            successor.sa.spi_in if successor is not None and successor.sa.spi_in in children else None,
            AttemptState(theirs.child.sa.spi_in, theirs.lowest, theirs.redundant)
            if theirs is not None and theirs.accepted and theirs.child.sa.spi_in in children
            else None,
        )

    def restore(self, registry: Registry) -> Child:
        """Raises ValueError when no plugin provides its suite, StateError for SPIs that cannot be."""
        if not all(_RESERVED_SPIS <= spi < 1 << 32 for spi in (self.sa.spi_in, self.sa.spi_out)):
            raise StateError("the state of a CHILD_SA has an SPI that cannot be")
        return Child(self.sa, parse_esp(self.proposal, registry), self.deleting, self.doomed)

    def link(self, child: Child, children: Mapping[int, Child]) -> None:
        """Let the restored child know the others again."""
        if self.successor is not None:
            child.successor = children.get(self.successor)
        if self.theirs is not None and self.theirs.spi_in in children:
            theirs = self.theirs
            child.theirs = Attempt(children[theirs.spi_in], theirs.lowest, True, theirs.redundant)


@dataclass(frozen=True)
class Terms:
    proposal: EspProposal
    answer: Proposal  # without SPI
    spi_out: int
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]


def terms_for(sa: IkeSa, payloads: Payloads, story: Story, *, in_auth: bool) -> Terms:
    """What we grant a peer that asks. Raises NoProposalChosen and TsUnacceptable, saying what differed."""
    policy, registry = sa.tunnel.policy, sa.context.registry
    offered = payloads.one(Sa).proposals
    ours = without_groups(sa.tunnel.esp) if in_auth else sa.tunnel.esp
    chosen = choose(ours, offered, ESP_SPI_LENGTH, ignore_groups=in_auth)
    story.esp = bid(registry, ours, offered, chosen.suite if chosen else None, ignore_groups=in_auth)
    if chosen is None:
        raise NoProposalChosen(difference(ours, offered, registry, ignore_groups=in_auth))
    theirs, wanted = payloads.one(TsI).selectors, payloads.one(TsR).selectors
    remote_ts, local_ts = narrow(theirs, policy.remote_ts), narrow(wanted, policy.local_ts)
    ours_ts = policy.local_ts, policy.remote_ts
    story.selectors = Selectors(*ours_ts, few(wanted), few(theirs), few(local_ts), few(remote_ts))
    if not local_ts or not remote_ts:
        raise TsUnacceptable(
            f"ours: local {describe(policy.local_ts)}, remote {describe(policy.remote_ts)}; "
            f"theirs: local {describe(wanted)}, remote {describe(theirs)}"
        )
    return Terms(chosen.suite, chosen.answer, _spi(chosen.spi), local_ts, remote_ts)


def terms_answered(
    sa: IkeSa,
    payloads: Payloads,
    story: Story,
    suites: Sequence[EspProposal],
    local_ts: Sequence[TrafficSelector],
    remote_ts: Sequence[TrafficSelector],
    *,
    in_auth: bool,
) -> Terms:
    """What the peer granted of what we asked for. Raises InvalidSyntax when we did not ask for it."""
    answered = payloads.one(Sa).proposals
    chosen = confirm(suites, answered, ESP_SPI_LENGTH, ignore_groups=in_auth)
    story.esp = bid(sa.context.registry, suites, answered, chosen.suite if chosen else None)
    if chosen is None:
        raise InvalidSyntax("the peer chose an ESP proposal that was not offered")
    local, remote = payloads.one(TsI).selectors, payloads.one(TsR).selectors
    theirs = few(local), few(remote)
    story.selectors = Selectors(tuple(local_ts), tuple(remote_ts), *theirs, *theirs)
    if not local or not remote or not covered(local, local_ts) or not covered(remote, remote_ts):
        raise InvalidSyntax(
            f"the peer granted local {describe(local)}, remote {describe(remote)}, beyond "
            f"what was proposed: local {describe(local_ts)}, remote {describe(remote_ts)}"
        )
    if scattered(local) or scattered(remote):
        raise InvalidSyntax(f"the peer granted more than {MAX_PREFIXES} prefixes")
    return Terms(chosen.suite, chosen.answer, _spi(chosen.spi), local, remote)


def make_child(
    sa: IkeSa,
    terms: Terms,
    spi_in: int,
    nonces: tuple[bytes, bytes],
    *,
    initiator: bool,
    shared: bytes = b"",
) -> Child:
    """The CHILD_SA of an exchange with these nonces, which we started if `initiator`."""
    keys = sa.keys
    proposal = terms.proposal
    from_initiator, from_responder = child_keys(sa.suite.prf, keys.d, proposal, nonces, shared)
    inbound, outbound = (from_responder, from_initiator) if initiator else (from_initiator, from_responder)
    child = ChildSa(
        tunnel=sa.name,
        spi_in=spi_in,
        spi_out=terms.spi_out,
        encryption=proposal.encryption.keyword,
        key_in=inbound,
        key_out=outbound,
        local_ts=terms.local_ts,
        remote_ts=terms.remote_ts,
        path=sa.path,
        suite=proposal.spoken,
        integrity=proposal.integrity.keyword if proposal.integrity else None,
        esn=proposal.esn == (True,),
        raw=not sa.encapsulated,
    )
    return Child(child, proposal)


def with_spi(proposal: Proposal, spi: bytes) -> Proposal:
    """A chosen proposal as it goes into our answer."""
    return Proposal(proposal.number, proposal.protocol, spi, proposal.transforms)


def spi_bytes(spi: int) -> bytes:
    return spi.to_bytes(ESP_SPI_LENGTH, "big")


def _spi(data: bytes) -> int:
    spi = int.from_bytes(data, "big")
    if spi < _RESERVED_SPIS:
        raise InvalidSyntax(f"ESP SPI {spi} is reserved")
    return spi
