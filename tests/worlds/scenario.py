"""What happens in the world of a seed, and what must hold of it.

1. Every tunnel comes up, from its peer's side or ours.
2. For some seconds packets go both ways at random times, while things happen at random times and cross. In a
   calm world these are migrations, drains, rekeys by either side of CHILD_SA and IKE_SA, reloads, and deaths
   of the GMN at any point: not one packet may be lost. In a rough one GPNs restart, GINs and GENs lose their
   links or restart, peers close and dial anew, and the Internet loses, doubles, delays and replays: every
   lost packet has a counter.
3. All is calm again. Within bounded time both sides agree on one IKE_SA and its CHILD_SA, and packets pass.
4. Nothing is left: no record, SPI, parking place or task beyond what the tunnels need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest import mock

import trio
from msgspec import structs
from trio._core import _run
from trio.testing import MockClock

from protego_cli.control.state import crash
from protego_cli.counters import Counters
from protego_cli.errors import ProtegoError
from tests.support.gmn_reload import reload
from tests.support.stores import KilledSqlite
from tests.worlds.ends import Site
from tests.worlds.judge import Broken
from tests.worlds.net import Weather
from tests.worlds.realm import Realm, realm, tenant

SECONDS = 4.0  # of step 2
TRAINS, TRAIN, SPACING = 1, 6, 0.005  # each way in each tenant, about when something happens
KEEN = 0.4  # how often a change of a node is met by packets
SINGLE = 4  # and these at any time
SOON = 240.0  # by when all must work again: a peer that hears nothing gives up sooner
TENANTS = 2
PASSED_ON = {  # drops of what is no packet of a tenant, or comes again
    name for name in Counters() if "_drop_" not in name or name.startswith(("ike_", "gmn_"))
}


class Run:
    def __init__(self, world: Realm, source: Random, calm: bool) -> None:
        self.w = world
        self.random = source
        self.calm = calm
        self.busy = 0  # acts under way
        self.file = world.file
        self.told: list[str] = []
        self.auto = world.cluster.tenants[0].tunnels[0].start == "auto"
        self._dying = False
        self._reloaded = False

    # ---- what happens in any world

    def sealing(self) -> str:
        """A tunnel."""
        return self.random.choice(list(self.w.sad.tunnels))

    def site(self) -> Site:
        return self.random.choice(self.w.sites)

    async def migrate(self) -> None:
        tunnel = self.sealing()
        gpn = self.random.choice(("gpn-1", "gpn-2", "gpn-3"))
        self.w.life_task(self.w.migrations.migrate, tunnel, gpn)

    async def drain(self) -> None:
        gpn = self.random.choice(("gpn-1", "gpn-2", "gpn-3"))
        with suppress(ProtegoError):
            self.w.gpns.drains.drain(gpn)
        await trio.sleep(self.random.uniform(0.05, 2))
        await self.living()
        self.w.gpns.drains.undrain(gpn)

    async def rekey(self) -> None:
        tunnel = self.w.sad.tunnels[self.sealing()]
        if tunnel.sealing is not None:
            self.w.life_task(self.w.migrations.rekey, tunnel)

    async def rekey_ike(self) -> None:
        tunnel = self.w.sad.tunnels[self.sealing()]
        for ike in list(tunnel.ikes)[-1:]:
            self.w.life_task(self.w.driver.rekey_ike, ike)

    async def their_rekey(self) -> None:
        site = self.site()
        if site.opens:
            site.rekey()

    async def their_rekey_ike(self) -> None:
        site = self.site()
        for ike in list(site.ikes)[-1:]:
            site.engine.rekey_ike(ike, trio.current_time())
            site.work()

    async def cross(self) -> None:
        """Both sides rekey at nearly one instant."""
        await self.migrate()
        await trio.sleep(self.random.uniform(0, 0.06))
        await self.their_rekey()

    async def reload(self) -> None:
        """Another tenant comes, or goes again."""
        more = structs.replace(self.file, tenants=(*self.file.tenants, tenant(TENANTS + 3)))
        self.w.file = self.file if self.w.file != self.file else more
        self._reloaded = True  # or refused, while another reload is under way
        self.w.life_task(reload, self.w)

    async def die(self) -> None:
        """The GMN ends: now, or at one of the next crash points. Then it comes back."""
        if self._dying:
            return
        self._dying = True
        left = self.random.randint(0, 12)

        def hook(name: str) -> None:
            nonlocal left
            left -= 1
            if left < 0 and self.w.socket.alive:
                self.told.append(f"{trio.current_time():.4f} died at {name}")
                crash.hook = None
                self.w.kill_gmn()

        if left:
            crash.hook = hook
            with trio.move_on_after(1.0):
                await self.w.gmn_ended()
            crash.hook = None
        if self.w.socket.alive:
            self.w.kill_gmn()
        await trio.sleep(self.random.uniform(0, 1.5))
        await self.w.gmn_returns(keeper=self.auto)
        self._dying = False

    # ---- what happens in rough ones only

    async def gpn_restart(self) -> None:
        await self._restart(self.random.choice(("gpn-1", "gpn-2", "gpn-3")))

    async def edge_restart(self) -> None:
        await self._restart(self.random.choice(("gin-1", "gin-2", "gen-1", "gen-2")))

    async def _restart(self, name: str) -> None:
        await self.living()
        nodes = self.w.nodes
        if not nodes.all[name].synced:
            return
        await nodes.stop(name)
        await trio.sleep(self.random.choice((0.0, self.random.uniform(0, 2))))
        await self.living()
        if not nodes.all[name].linked:
            await nodes.start(name)

    async def cut(self) -> None:
        """A node's link breaks, and is there again; it forwards meanwhile."""
        await self.living()
        name = self.random.choice(list(self.w.nodes.all))
        if not self.w.nodes.all[name].synced:
            return
        self.w.nodes.cut(name)
        await self.w.nodes.observer.node_down(name)
        await trio.sleep(self.random.uniform(0, 2))
        await self.living()
        if not self.w.nodes.all[name].linked and self.w.nodes.all[name].runs:
            await self.w.nodes.start(name, restarted=False)

    async def redial(self) -> None:
        site = self.site()
        if self.random.random() < 0.5:
            site.close()
            await trio.sleep(self.random.uniform(0, 0.5))
        for _ in range(self.random.choice((1, 1, 2, 3))):
            site.dial()
            await trio.sleep(self.random.uniform(0, 0.05))

    async def vtep_turns(self) -> None:
        self.random.choice(list(self.w.vteps.values())).turn()

    async def living(self) -> None:
        """Until there is a GMN."""
        while self._dying or not self.w.socket.alive:  # noqa: ASYNC110
            await trio.sleep(0.05)

    # ---- the course of it

    async def act(self, at: float, what: Callable[[], Awaitable[None]]) -> None:
        await trio.sleep_until(at)
        if what != self.die:
            await self.living()
        self.told.append(f"{trio.current_time():.4f} {what.__name__}")
        await what()
        self.busy -= 1

    async def send(self, times: list[tuple[float, Callable[[], None]]]) -> None:
        for at, say in sorted(times, key=lambda each: each[0]):
            await trio.sleep_until(at)
            say()

    def meet(self, entry: tuple[object, ...]) -> None:
        """Something changed at a node, or a peer closes an SA: packets are under way just then."""
        if entry[0] in ("put", "drop", "barrier", "peer deletes") and self.random.random() < KEEN:
            out = self.random.choice(list(self.w.vteps.values()))
            for end in (out, out, self.site()):
                self.w.tasks.start_soon(self.later, self.random.uniform(0, 0.01), end.send)

    async def later(self, seconds: float, say: Callable[[], None]) -> None:
        await trio.sleep(seconds)
        say()

    async def course(self) -> None:
        now = trio.current_time()
        acts = [self.migrate, self.migrate, self.drain, self.rekey, self.rekey_ike, self.their_rekey]
        acts += [self.their_rekey_ike, self.cross, self.reload, self.die]
        if not self.calm:
            acts += [self.gpn_restart, self.gpn_restart, self.edge_restart]
            acts += [self.cut, self.redial, self.vtep_turns]
        self.busy = self.random.randint(3, 7)
        when = [self.random.uniform(0, SECONDS * 0.8) for _ in range(self.busy)]
        if self.random.random() < 0.5:  # nearly all at once
            when = [when[0] + self.random.uniform(0, 0.05) for _ in when]
        for at in when:
            self.w.tasks.start_soon(self.act, now + at, self.random.choice(acts))
        times: list[tuple[float, Callable[[], None]]] = []
        for end in (*self.w.sites, *self.w.vteps.values()):
            for _ in range(TRAINS):
                at = self.random.choice(when) + self.random.uniform(0, 0.08)
                times += [(now + at + i * SPACING, end.send) for i in range(TRAIN)]
            times += [(now + self.random.uniform(0, SECONDS), end.send) for _ in range(SINGLE)]
        self.w.nodes.tap = self.meet
        await self.send(times)
        await self.w.until(lambda: not self.busy, 60.0)
        await self.living()
        self.w.nodes.tap = lambda entry: None
        await trio.sleep(0.5)  # for what is still under way

    async def recover(self) -> None:
        """All is calm; both sides come to agree."""
        w = self.w
        w.net.weather = Weather()
        if self._reloaded:
            await w.until(lambda: all(node.synced for node in w.nodes.all.values()), 30.0)
            w.file = self.file
            await reload(w)
        if not self.calm:
            w.tasks.start_soon(self._dial)
        try:
            await w.until(self.w.agreed, SOON)
        except trio.TooSlowError:
            raise Broken(f"no agreement: {self.state()}") from None

    async def _dial(self) -> None:
        """A peer without IKE_SA tries again, as its operator would have it do."""
        while True:
            for site in self.w.sites:
                if not site.ikes and not site.waits:
                    site.dial()
            await trio.sleep(5.0)

    def state(self) -> str:
        w = self.w
        tunnels = {
            tunnel.id: ([repr(sa) for sa in tunnel.sas.values()], len(tunnel.ikes), tunnel.settled)
            for tunnel in w.sad.tunnels.values()
        }
        sites = {site.address: (len(site.opens), len(site.ikes), site.waits) for site in w.sites}
        nodes = {node.name: node.synced for node in w.nodes.all.values()}
        return f"tunnels {tunnels}\nsites {sites}\nnodes {nodes}\nasked {w.sad.asked}"

    # ---- the judgement

    def losses(self) -> None:
        """Of what was sent in step 2; all of it has had its time."""
        missing = self.w.judge.missing()
        counters = self.w.nodes.counted()
        for site in self.w.sites:
            counters.update(site.tunnel.counters.nonzero())
        drops = Counter({name: n for name, n in counters.items() if name not in PASSED_ON})
        if self.calm and missing:
            raise Broken(
                f"lost in a calm world: {missing}; counted {dict(drops)}, lost outside {self.w.net.lost}"
            )
        known = drops.total() + self.w.net.lost
        if len(missing) > known:
            raise Broken(
                f"{len(missing)} packets lost, of which counters tell {known}: {missing}, {dict(drops)}"
            )

    async def works(self) -> None:
        """Packets pass both ways, all of them."""
        before = len(self.w.judge.sent)
        for end in (*self.w.sites, *self.w.vteps.values()):
            for _ in range(2):
                end.send()
        await trio.sleep(0.3)
        lost = [key for key in self.w.judge.missing() if key[1] >= before]
        if lost:
            raise Broken(f"all is calm, but these are lost: {lost}; {dict(self.w.nodes.counted())}")

    def tidy(self, tasks: Counter[str]) -> None:
        w = self.w
        w.check_clean()
        for tunnel in w.sad.tunnels.values():
            site = w.peers[tunnel.config.peer or ""]
            (theirs,), placed = site.opens.values(), tunnel.sealing
            assert placed is not None
            if (theirs.spi_out, theirs.spi_in) != (placed.child.spi_in, placed.child.spi_out):
                raise Broken(f"{tunnel.id}: two CHILD_SAs")
        held = {placed.spi for _, placed in w.sad.all()}
        if w.spis._held != held:
            raise Broken(f"SPIs leak: {w.spis._held ^ held}")
        for name, process in w.nodes.processes.items():
            node = w.cluster.node(name)
            assert node is not None
            given = {record.key for record in w.nodes.given(node)}
            if (have := set(process.holding.records)) != given | set(w.nodes.all[name].desired):
                raise Broken(f"{name} holds {have}")
            if name.startswith("gpn"):
                here = {use.spi_in for use in process.plane.report().usage or ()}
                if here != {spi for kind, spi in have if kind == "sa"}:
                    raise Broken(f"{name} has the SAs {here}")
        if (now := self.tasks()) - tasks:
            raise Broken(f"tasks are left: {now - tasks}")

    def tasks(self) -> Counter[str]:
        """What the GMN is at."""
        return Counter(task.name for task in self.w._life.child_tasks)


async def live(seed: int, directory: Path, told: list[str]) -> None:
    source = Random(seed)
    calm = source.random() < 0.6
    store = KilledSqlite(directory) if source.random() < 0.05 else None
    by = source.choice(("peer", "gateway"))
    async with realm(seed, TENANTS, "wait" if by == "peer" else "auto", store) as w:
        w.watching = calm
        run = Run(w, source, calm)
        run.told = told
        told.append("calm" if calm else "rough")
        for site in w.sites:
            site.lazy, site.abrupt = source.random() < 0.5, source.random() < 0.5
        await w.up(by=by)
        await run.recover()
        tasks = run.tasks()
        if not calm:
            w.net.weather = Weather(*(source.choice((0.0, 0.05)) for _ in range(4)))
        await run.course()
        await run.recover()
        run.losses()
        await run.works()
        await trio.sleep(w.cluster.ike.linger + 1)
        w.watching = False
        run.tidy(tasks)
        counts = f"{len(w.judge.sent)} sent, {len(w.judge.delivered)} delivered"
        told.append(f"{trio.current_time():.4f} {counts}, {w.net.digest:08x}")


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Trio runs tasks that are ready at one time in an order that the seed decides."""
    before = _run._r.getstate()
    with mock.patch.object(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        _run._r.seed(seed)
        try:
            yield
        finally:
            _run._r.setstate(before)


def play(seed: int) -> list[str]:
    """One seed; what happened. Raises what is wrong in an ExceptionGroup, with notes of the course."""
    told: list[str] = []
    with TemporaryDirectory() as directory, repeatable(seed):
        try:
            trio.run(live, seed, Path(directory), told, clock=MockClock(autojump_threshold=0))
        except BaseException as error:
            error.add_note(f"seed {seed}:\n  " + "\n  ".join(told))
            error.add_note(f"again: python -m tests.worlds {seed}")
            raise
        finally:
            crash.hook = None
    return told
