"""The Gateway Management Node: all IKE, all placement, the desired state of every data node.

    peers ◀─ GIN ◀─ envelopes, UDP address:fabric ─▶ driver ─▶ IKE engine
                                                       │ events
    operators ─▶ fabric, mTLS address:control ◀─▶ tunnels, migrations, recovery ─▶ SAD ─▶ data nodes

It may end at any point, told or not: what it has promised is in the journal, and its next life goes on from
there (`control/procedures/restart.py`). The data nodes forward meanwhile, and the peers notice nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from protego_cli.config.model import Cluster, Node
from protego_cli.config.secrets import read_secret
from protego_cli.control.channel.fabric import Fabric
from protego_cli.control.operating.commands import Commands
from protego_cli.control.operating.events import EventLog
from protego_cli.control.operating.held import Held
from protego_cli.control.operating.reload import Intent, Reloads
from protego_cli.control.operating.status import Operations
from protego_cli.control.packing.placement import Packer
from protego_cli.control.pools.admissions import Admissions
from protego_cli.control.pools.gpn_operations import GpnOperations
from protego_cli.control.pools.provision import Place
from protego_cli.control.pools.roster import Opened, Roster
from protego_cli.control.procedures.ageing import Ageing
from protego_cli.control.procedures.driver import Driver
from protego_cli.control.procedures.keeper import Keeper
from protego_cli.control.procedures.membership import Membership
from protego_cli.control.procedures.migration import Migrations
from protego_cli.control.procedures.recovery import Recovery
from protego_cli.control.procedures.renewal import Renewals
from protego_cli.control.procedures.restart import Restart
from protego_cli.control.procedures.tunnels import Tunnels
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.spis import SpiAllocator
from protego_cli.control.state.epoch import EPOCH, next_epoch
from protego_cli.control.state.journal import ENGINE, Journal
from protego_cli.control.state.store import StateStore
from protego_cli.control.state.vault import open_vault
from protego_cli.counters import Counters
from protego_cli.errors import UsageError
from protego_cli.ike.engine import Engine
from protego_cli.net.udp import UdpSocket
from protego_cli.plugins.manager import Plugins
from protego_cli.roles.clusters import read_cluster
from protego_cli.roles.cpu import CpuMeter
from protego_cli.roles.policies import policy_of

T = TypeVar("T")


async def run(
    cluster: Cluster,
    node: Node,
    plugins: Plugins,
    *,
    task_status: trio.TaskStatus[Callable[[], None]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until cancelled; started with what SIGHUP asks for. Raises EnvironmentFault when a port or a file
    is not to be had.
    """
    intent = intent_of(cluster, plugins)
    with (
        closing(open_vault(cluster, state_store(cluster, plugins))) as vault,
        closing(UdpSocket.bind(node.address, node.ports.fabric)) as socket,
    ):
        stored = dict(vault.load())
        epoch = next_epoch(
            cluster.state,
            int.from_bytes(stored[EPOCH]) if EPOCH in stored else None,
            lambda number: vault.commit([(EPOCH, number.to_bytes(8))]),
        )
        journal = Journal(vault, stored)
        held = Held(journal)
        counters = Counters()
        spis = SpiAllocator(os.urandom, time.time, journal=journal)
        events = EventLog(epoch)
        admissions = Admissions(cluster, journal, events)
        roster = Roster(cluster, journal, admissions, provisioners(cluster, plugins), events)
        fabric = Fabric(
            roster.cluster(), epoch, journal, node=node, admissions=admissions if cluster.pools else None
        )
        now = trio.current_time()
        engine = Engine(
            intent.policies,
            plugins.registry(),
            cluster.ike,
            os.urandom,
            spis.allocate,
            epoch,
            counters,
            raw_esp=fabric.raw_esp,
            wall=time.time() - now,
        )
        engine.restore((state for _, state in journal.found(ENGINE)), now)
        journal.engine = engine
        driver = Driver(
            engine,
            socket,
            cluster.nodes_of("gin"),
            fabric.envelope_key,
            lambda: fabric.connected("gin"),
            counters,
            journal.release,
        )
        async with trio.open_nursery() as services:
            services.start_soon(journal.run)
            sad = Sad(cluster, fabric, intent.packing, spis, services, journal, events)
            tunnels = Tunnels(sad, driver, services)
            recovery = Recovery(sad)
            migrations = Migrations(sad, driver, recovery)
            renewals = Renewals(sad, migrations, services)
            ageing = Ageing(sad, tunnels, renewals, os.urandom, services)
            fabric.observer = Membership(sad, tunnels, recovery, renewals, ageing)
            keeper = Keeper(sad, tunnels, driver, os.urandom)
            commands = Commands(sad, driver, keeper, migrations, held)
            gpns = GpnOperations(
                cluster, epoch, sad, migrations, plugins.packing_policies(), services, roster, admissions
            )
            read = partial(trio.to_thread.run_sync, partial(read_intent, cluster.file, plugins))
            reloads = Reloads(
                intent,
                read,
                engine,
                fabric,
                driver,
                sad,
                keeper,
                renewals,
                commands,
                roster,
                gpns.elastic,
                services,
            )
            operations = Operations(
                node, epoch, sad, migrations, commands, gpns, counters, CpuMeter(), reloads
            )
            fabric.operator_handler = operations.answer
            restart = Restart(
                roster.cluster(),
                journal,
                engine,
                driver,
                sad,
                tunnels,
                migrations,
                keeper,
                renewals,
                services,
            )
            restart.restore()
            await journal.stored()
            services.start_soon(driver.run)
            services.start_soon(ageing.run)
            services.start_soon(gpns.run, fabric)
            await services.start(fabric.serve)
            services.start_soon(keeper.run)
            task_status.started(reloads.hang_up)


def read_intent(file: Path, plugins: Plugins) -> Intent:
    """The cluster file as it is now. Raises ConfigError with every problem of it and of the secrets."""
    return intent_of(read_cluster(file, plugins, secrets=True), plugins)


def intent_of(cluster: Cluster, plugins: Plugins) -> Intent:
    """What the GMN needs of a cluster file. Raises EnvironmentFault without a secret, and UsageError."""
    policies = tuple(policy_of(tunnel, read_secret(tunnel.auth.file)) for tunnel in cluster.tunnels())
    return Intent(cluster, policies, packing_policy(cluster, plugins))


def packing_policy(cluster: Cluster, plugins: Plugins) -> Packer:
    """The policy that the cluster file names. Raises UsageError."""
    return _provided(plugins.packing_policies(), cluster.packing, "packing policy")


def state_store(cluster: Cluster, plugins: Plugins) -> StateStore:
    """The kind of store that the cluster file names. Raises UsageError."""
    return _provided(plugins.state_stores(), cluster.store, "state store")


def _provided(found: Mapping[str, T], name: str, what: str) -> T:
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise UsageError(f"no plugin provides the {what} {name!r}; known: {known}")
    return found[name]


def provisioners(cluster: Cluster, plugins: Plugins) -> dict[str, Opened]:
    """The provisioner of each pool. Raises UsageError, or EnvironmentFault."""
    kinds, opened = plugins.provisioners(), {}
    for pool in cluster.pools:
        if pool.provisioner.kind not in kinds:
            raise UsageError(
                f"no plugin provides the provisioner {pool.provisioner.kind!r} of pool {pool.name}"
            )
        kind, plugin = kinds[pool.provisioner.kind]
        place = Place(
            pool, dict(pool.provisioner.settings), cluster.file, cluster.state / "pools" / pool.name
        )
        opened[pool.name] = Opened(kind, plugin, kind.open(place))
    return opened
