"""The cluster file, read again while everything runs: tenants, tunnels and nodes come, change and go.

1. Read and judge the whole file and every secret. With a fault in it nothing changes.
2. Compare with what is running (`config.diff`). A change that the running cluster cannot take (`_objection`)
   refuses the reload, and again nothing changes.
3. What leaves or has to be made anew goes first, from every node, acknowledged: before a VNI or a peer
   belongs to somebody else, nothing is left of whom it belonged to. No new SA goes to a GPN that leaves.
4. Then, in one step without an await: policies, settings, nodes, tenants, tunnels.
5. IKE_SAs of what left are closed; tunnels whose terms are new are rekeyed; new ones are dialled. That goes
   on after the answer, and `status` shows it. Where a peer does not accept the new terms the tunnel stays as
   it is, its `error` says so, and the peer is asked again, later and later.

A tunnel that the file says nothing new of is not touched by any of this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import trio

from protego_cli.config.diff import Change, Landed, Outcome, diff, leaving
from protego_cli.config.model import Cluster, IkeSettings
from protego_cli.control.channel.operator_messages import Reloaded
from protego_cli.control.operating.commands import Commands
from protego_cli.control.packing.placement import Packer
from protego_cli.control.pools.elastic import Elastic
from protego_cli.control.pools.roster import Roster
from protego_cli.control.procedures.driver import Driver
from protego_cli.control.procedures.keeper import Keeper
from protego_cli.control.procedures.renewal import Renewals
from protego_cli.control.sas.distribution import DesiredState
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Terms, Tunnel
from protego_cli.errors import ProtegoError, Refused
from protego_cli.ike.events import Policy

CLOSING: Final = 64  # IKE_SAs side by side
TOLD: Final = 100  # changes that have an event of their own; the number of all is in the last one
RENEGOTIATED: Final = ("ike", "esp", "local_ts", "remote_ts", "window")


class Intent(NamedTuple):
    """A cluster file with all that it names: what the GMN means to do."""

    cluster: Cluster
    policies: tuple[Policy, ...]
    packing: Packer


class PolicyEngine(Protocol):
    """The part of `ike.engine.Engine` that a reload concerns."""

    def check_policies(self, policies: Iterable[Policy]) -> None: ...
    def set_policies(self, policies: Iterable[Policy]) -> None: ...
    def set_settings(self, settings: IkeSettings) -> None: ...


class Reloads:
    def __init__(
        self,
        intent: Intent,
        read: Callable[[], Awaitable[Intent]],
        engine: PolicyEngine,
        fabric: DesiredState,
        driver: Driver,
        sad: Sad,
        keeper: Keeper,
        renewals: Renewals,
        commands: Commands,
        roster: Roster,
        elastic: Elastic,
        tasks: trio.Nursery,
    ) -> None:
        """`intent` is what runs; `read` reads the file again, or raises what is wrong with it."""
        self._intent = intent
        self._read = read
        self._engine = engine
        self._fabric = fabric
        self._driver = driver
        self._sad = sad
        self._keeper = keeper
        self._renewals = renewals
        self._commands = commands
        self._roster = roster
        self._elastic = elastic
        self._tasks = tasks
        self._turn = trio.Lock()
        self._hung_up = False  # a SIGHUP waits for its turn
        self._closing = trio.CapacityLimiter(CLOSING)

    def hang_up(self) -> None:
        """SIGHUP: reload, once what is under way is done. What comes of it is told as events."""
        if not self._hung_up:
            self._hung_up = True
            self._tasks.start_soon(self._after_hang_up)

    async def _after_hang_up(self) -> None:
        async with self._turn:
            self._hung_up = False
            await self._reload(dry_run=False)

    async def reload(self, *, dry_run: bool = False) -> Reloaded:
        """Read the file again and do what it says; with `dry_run`, only say what that would be. Raises
        Refused while another reload is under way.
        """
        if self._turn.locked():
            raise Refused("a reload is under way; ask again when it is done")
        async with self._turn:
            return await self._reload(dry_run=dry_run)

    async def _reload(self, *, dry_run: bool) -> Reloaded:
        file = str(self._intent.cluster.file)
        try:
            intent = await self._read()
            self._engine.check_policies(intent.policies)
        except (ProtegoError, ValueError) as error:
            problems = tuple(str(error).splitlines())
            self._refuse(dry_run, problems)
            return Reloaded(file, False, (), problems)
        changes = diff(self._intent.cluster, intent.cluster, self._new_secrets(intent))
        objections = {change: reason for change in changes if (reason := self._objection(change, intent))}
        if objections or dry_run:
            self._refuse(dry_run, [f"{c.what} {c.name}: {why}" for c, why in objections.items()])
            return Reloaded(file, False, tuple(_planned(changes, objections)), ())
        await self._apply(intent, changes)
        return Reloaded(file, True, tuple(self._landed(change) for change in changes), ())

    def _refuse(self, dry_run: bool, reasons: Iterable[str]) -> None:
        for reason in () if dry_run else reasons:
            self._sad.events.emit("reload refused", reason=reason)

    # ---- what differs, and what stands against it

    def _new_secrets(self, intent: Intent) -> set[str]:
        known = {policy.tunnel: policy.psk for policy in self._intent.policies}
        return {
            policy.tunnel for policy in intent.policies if known.get(policy.tunnel, policy.psk) != policy.psk
        }

    def _objection(self, change: Change, intent: Intent) -> str:
        """Why the running cluster cannot take the change; empty when it can."""
        gmns = {node.name for node in intent.cluster.nodes_of("gmn")}
        if change.lands == "restart" and not gmns.isdisjoint(change.restart):
            return "the GMN reads it when it starts: `protego up` it anew with this file"
        if change.what != "node" or change.kind == "added":
            return ""
        name, node = change.name, self._intent.cluster.node(change.name)
        if change.lands == "restart" and name in [n.name for n in self._fabric.nodes() if n.connected]:
            return f"{name} is up: stop it, reload, then start it with this file"
        goes = change.kind == "removed" or any(field.name == "role" for field in change.fields)
        if node is not None and node.role == "gpn" and goes:
            return self._occupied(name)
        return ""

    def _occupied(self, gpn: str) -> str:
        sas = self._sad.on(gpn)
        tunnels = {tunnel.id for tunnel, placed in sas if not placed.retiring}
        tunnels.update(tunnel.id for tunnel in self._sad.tunnels.values() if tunnel.target == gpn)
        if tunnels:
            some = ", ".join(sorted(tunnels)[:3]) + (", …" if len(tunnels) > 3 else "")
            return f"it holds tunnels ({len(tunnels)}: {some}): `protego drain {gpn}` first"
        return "the last SAs that it held still linger: ask again in some seconds" if sas else ""

    # ---- doing it

    async def _apply(self, intent: Intent, changes: Sequence[Change]) -> None:
        cluster, sad = intent.cluster, self._sad
        gone = dict.fromkeys(leaving(changes))
        going = _gpns(self._intent.cluster) - _gpns(cluster)
        sad.seats.draining |= going
        try:
            partings = await self._clear(gone) if gone else {}
            self._roster.reload(cluster)
            self._elastic.reload(cluster)
            self._driver.set_gins(cluster.nodes_of("gin"))
            self._engine.set_settings(cluster.ike)
            self._engine.set_policies(intent.policies)
            sad.reload(cluster, intent.packing)
            self._intent = intent
            for gpn in going:
                sad.seats.loads.forget_gpn(gpn)
        finally:
            sad.seats.draining -= going
        for change in changes[:TOLD]:
            self._tell(change)
        for change in changes:
            tunnel = sad.tunnels.get(change.name) if change.what == "tunnel" else None
            if tunnel is not None:
                self._commands.hold_again(tunnel)
            if tunnel is not None and tunnel.id not in gone:
                self._keeper.tend(tunnel)
                if change.lands == "rekey":
                    self._renewals.renegotiate(tunnel, _terms(change))
        for name, ikes in partings.items():
            self._tasks.start_soon(self._part, ikes, sad.tunnels.get(name))
        await sad.nodes.everywhere()
        sad.events.emit("reloaded", file=str(cluster.file), changes=len(changes))

    async def _clear(self, gone: Iterable[str]) -> dict[str, list[int]]:
        """Take these tunnels from all nodes; returns their IKE_SAs by tunnel. A peer that dials for one of
        them meanwhile is closed at once (`Tunnels.handle`), and so dials again.
        """
        tunnels = self._sad.tunnels
        partings = {name: self._sad.withdraw(tunnels[name]) for name in gone if name in tunnels}
        await self._sad.nodes.everywhere()
        return partings

    async def _part(self, ikes: Sequence[int], successor: Tunnel | None) -> None:
        """Close the IKE_SAs of a tunnel that left; then dial for the one that is there in its place."""
        for ike in ikes:
            async with self._closing:
                await self._driver.close(ike)
        if successor is not None:
            self._keeper.tend(successor)

    def _tell(self, change: Change) -> None:
        self._sad.events.emit(
            "changed by reload",
            tunnel=change.name if change.what == "tunnel" else None,
            node=change.name if change.what == "node" else None,
            what=f"{change.what} {change.name}",
            change=change.kind,
            lands=change.lands,
        )

    def _landed(self, change: Change) -> Landed:
        outcome: Outcome = "done"
        if change.lands == "restart":
            outcome = "at restart"
        elif change.lands == "reconnect" or (
            change.lands == "rekey" and self._sad.tunnels[change.name].outdated
        ):
            outcome = "under way"
        return Landed.of(change, outcome)


def _gpns(cluster: Cluster) -> set[str]:
    return {node.name for node in cluster.nodes_of("gpn")}


def _terms(change: Change) -> set[Terms]:
    return {
        "ike" if field.name == "ike" else "child" for field in change.fields if field.name in RENEGOTIATED
    }


def _planned(changes: Iterable[Change], objections: dict[Change, str]) -> Iterable[Landed]:
    for change in changes:
        reason = objections.get(change, "")
        yield Landed.of(change, "refused" if reason else "planned", reason)
