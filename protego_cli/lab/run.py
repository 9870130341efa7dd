"""One run of `protego local`, from the first child process to the last count.

Everything here happens inside one nursery; a child that ends by itself, or any fault, cancels it all.
"""

from __future__ import annotations

import math
import signal
from pathlib import Path

import trio

from protego_cli.config.model import Cluster
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.operator_messages import GetStatus, Migrate, Migrated, Status
from protego_cli.errors import ProtegoError, Unreachable
from protego_cli.lab.children import Child, Children
from protego_cli.lab.plan import Plan
from protego_cli.lab.receipt import Move, Receipt, make_receipt
from protego_cli.lab.schedule import Schedule, next_gpn
from protego_cli.lab.show import Show

SETTLE = 2.0  # seconds that a packet may still be on its way after the last was sent
_POLL = 0.05
_LOOK = 0.25  # seconds between looks at the endpoints
_STATUS = 1.0  # seconds between looks at the control node, which hears from the others as often


class Interrupted(ProtegoError):
    """Ctrl-C before there was anything to count."""


class Run:
    """The run's state: who takes part, and what has moved."""

    patience = 20.0  # seconds for the cluster, and for the tunnels, to come up

    def __init__(self, cluster: Cluster, plan: Plan, timetable: Schedule, show: Show) -> None:
        self.cluster = cluster
        self.plan = plan
        self.timetable = timetable
        self.show = show
        self.tunnels = tuple(site.tunnel for site in plan.sites)
        self.moves: list[Move] = []
        self._last_move = -math.inf
        self._stop_early = trio.Event()

    async def go(self, plan_file: Path) -> Receipt:
        """Carry the run out. Raises ProtegoError for what keeps it from being counted."""
        async with trio.open_nursery() as nursery:
            children = Children(nursery, plan_file.parent)
            try:
                nursery.start_soon(self._signals)
                nursery.start_soon(self.show.frames)
                peers, tenants = await self.start(children, plan_file)
                await self.until_nodes_up()
                await self.connect(peers)
                return await self._under_load(peers, tenants)
            finally:
                nursery.cancel_scope.cancel()  # the watchers first: from here on, children may end
                await children.stop()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for _ in received:
                if self._stop_early.is_set() or not self.show.scene.ends:
                    raise Interrupted("interrupted")
                self._stop_early.set()
                self.show.say("interrupted: ending early")

    async def start(self, children: Children, plan_file: Path) -> tuple[Child, Child]:
        """All processes at once: most of a start is the interpreter's own."""
        started: dict[str, Child] = {}

        async def start(name: str, arguments: list[str], answers: bool) -> None:
            started[name] = await children.start(name, arguments, answers=answers)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.start_nodes, children)
            for name in ("lab-peers", "lab-tenants"):
                nursery.start_soon(start, name, [name, str(plan_file)], True)
        self.show.say(f"started {len(self.cluster.nodes)} nodes, the peers and the tenants' endpoints")
        return started["lab-peers"], started["lab-tenants"]

    async def start_nodes(self, children: Children) -> None:
        """The cluster alone."""
        async with trio.open_nursery() as nursery:
            for node in self.cluster.nodes:
                up = [
                    "up",
                    "--role",
                    node.role,
                    "--name",
                    node.name,
                    "-c",
                    str(self.cluster.file),
                    "--lifeline",
                ]
                nursery.start_soon(children.start, node.name, up)

    async def until_nodes_up(self) -> None:
        with trio.move_on_after(self.patience):
            while True:
                status = await self._status()
                if status and len(status.nodes) == len(self.cluster.nodes) and not _down(status):
                    self.show.say("every node is up")
                    return
                await trio.sleep(_POLL)
        status = self.show.scene.status
        missing = ", ".join(_down(status)) if status else "the control node"
        raise ProtegoError(f"not up within {self.patience:.0f} s: {missing}")

    async def connect(self, peers: Child) -> None:
        self.show.scene.phase = "bringing tunnels up"
        with trio.move_on_after(self.patience):
            snapshot = await peers.ask("connect")
            while True:
                self.show.scene.peers = snapshot
                failed = [(n, s.error) for n, s in zip(self.tunnels, snapshot.sites, strict=True) if s.error]
                if failed:
                    raise ProtegoError(f"{failed[0][0]} did not come up: {failed[0][1]}")
                if all(site.up for site in snapshot.sites):
                    status = await self._status()
                    if status and all(tunnel.state == "up" for tunnel in status.tunnels):
                        self.show.say("every tunnel is up")
                        return
                await trio.sleep(_POLL)
                snapshot = await peers.ask("look")
        late = [name for name, site in zip(self.tunnels, snapshot.sites, strict=True) if not site.up]
        raise ProtegoError(
            f"not up within {self.patience:.0f} s: {', '.join(late) or 'the gateway side of the tunnels'}"
        )

    async def _under_load(self, peers: Child, tenants: Child) -> Receipt:
        scene = self.show.scene
        await tenants.ask("start")
        await peers.ask("start")
        began = trio.current_time()
        scene.phase, scene.ends = "under load", self.timetable.ends
        async with trio.open_nursery() as watchers:
            watchers.start_soon(self._watch_counts, peers, tenants, began)
            watchers.start_soon(self._watch_status)
            await self._drive(watchers, tenants, began)
            watchers.cancel_scope.cancel()
        peers_sent, tenants_sent = [
            [site.sent for site in (await end.ask("stop")).sites] for end in (peers, tenants)
        ]
        scene.phase = "waiting for the last packets"
        self.show.say(f"stopped sending; what is missing in {SETTLE:.0f} s is lost")
        await trio.sleep(SETTLE)
        scene.peers = await peers.ask("account", tenants_sent)
        scene.tenants = await tenants.ask("account", peers_sent)
        await self._status()
        return await self._receipt(make_receipt(scene.peers, scene.tenants, self.tunnels, self.moves))

    async def _drive(self, watchers: trio.Nursery, tenants: Child, began: float) -> None:
        """What happens under load, to its end."""
        self.show.say(f"traffic: {self.plan.pps} packets per second, tunnel and direction")
        await self._migrate_all(tenants, began)
        await self._pause_until(began + self.timetable.ends)
        await trio.sleep_until(self._last_move + self.timetable.stay)  # when ended early

    async def _receipt(self, counted: Receipt) -> Receipt:
        """With what else is known of the run."""
        return counted

    async def _migrate_all(self, tenants: Child, began: float) -> None:
        status = await self._status()
        if status is None:
            raise Unreachable("the control node stopped answering")
        at = {tunnel.id: tunnel.gpn for tunnel in status.tunnels}
        for turn in self.timetable.turns:
            await self._pause_until(began + turn.at)
            if self._stop_early.is_set():
                return
            current = at[turn.tunnel]
            if current is None:
                raise ProtegoError(f"{turn.tunnel} has no GPN to migrate from")
            at[turn.tunnel] = await self._migrate(tenants, turn.tunnel, next_gpn(current, self.plan.gpns))

    async def _migrate(self, tenants: Child, tunnel: str, to: str) -> str:
        scene = self.show.scene
        counts = await tenants.ask("look")
        scene.moving = tunnel
        reply = await ask(self.cluster, Migrate(tunnel=tunnel, to=to))
        scene.moving = None
        self._last_move = trio.current_time()
        if not isinstance(reply, Migrated):
            raise ProtegoError(f"migrating {tunnel} to {to}: unexpected answer {type(reply).__name__}")
        before = counts.sites[self.tunnels.index(tunnel)].via
        self.moves.append(Move(tunnel, reply.source, reply.to, reply.total_ms, before))
        scene.done = len(self.moves)
        self.show.say(
            f"{tunnel} moved from {reply.source} to {reply.to} in {reply.total_ms:.1f} ms "
            f"(rekey {reply.rekey_ms:.1f}, distribution {reply.distribute_ms:.1f})"
        )
        return reply.to

    async def _pause_until(self, when: float) -> None:
        """Sleep, unless the run is to end early."""
        with trio.move_on_at(when):
            await self._stop_early.wait()

    async def _watch_counts(self, peers: Child, tenants: Child, began: float) -> None:
        scene = self.show.scene
        while True:
            scene.peers, scene.tenants = await peers.ask("look"), await tenants.ask("look")
            scene.elapsed = trio.current_time() - began
            await trio.sleep(_LOOK)

    async def _watch_status(self) -> None:
        while True:
            await self._status()
            await trio.sleep(_STATUS)

    async def _status(self) -> Status | None:
        """Ask the control node; None while it does not answer."""
        try:
            reply = await ask(self.cluster, GetStatus())
        except Unreachable:
            return None
        if not isinstance(reply, Status):
            return None
        self.show.scene.status = reply
        return reply


def _down(status: Status) -> list[str]:
    return [node.name for node in status.nodes if node.state != "up"]


def drops(status: Status | None) -> list[str]:
    """Where packets were dropped, by the nodes' own counters."""
    return [
        f"{node.name}: {name}={count}"
        for node in (status.nodes if status else ())
        for name, count in node.counters.items()
        if "_drop_" in name and count
    ]
