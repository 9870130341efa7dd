"""Runs a role under trio: signals, the frozen heap, and secrets that must be readable before it starts."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Final

import trio

from protego_cli.config.checks import check_secrets
from protego_cli.config.model import Cluster, Node
from protego_cli.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from protego_cli.control.pools.joining import Token
    from protego_cli.plugins.manager import Plugins

logger = logging.getLogger(__name__)

YOUNG: Final = 20_000  # objects of a GMN before a collection: most of them go without one

RunRole = Callable[..., Awaitable[None]]
"""roles.*.run(cluster, node, plugins, *, task_status): started with what a SIGHUP asks for, if anything."""


def serve(cluster: Cluster, node: Node, plugins: Plugins, *, lifeline: bool = False) -> None:
    """Run the node until a signal, or until stdin closes with `lifeline`. Raises what stops it before."""
    if node.role == "gmn" and (problems := list(check_secrets(cluster))):
        raise EnvironmentFault("\n".join(map(str, problems)))
    run: RunRole = import_module(f"protego_cli.roles.{node.role}").run
    trio.run(run_until_told, run, cluster, node, plugins, lifeline)


def join_cluster(cluster: Cluster, node: Node, token: Token) -> None:
    """Get this node its certificate, before it is anybody. Raises UsageError, Refused or EnvironmentFault."""
    from protego_cli.control.pools.joining import join

    if token.node != node.name:
        raise UsageError(f"the join token is for {token.node}, not for {node.name}")
    trio.run(join, cluster, token)
    logger.info("joined node=%s", node.name)


def serve_instances(
    cluster: Cluster, group: str | None, count: int | None, arguments: list[str], *, lifeline: bool
) -> None:
    """Run this machine's GPNs until a signal, or until stdin closes with `lifeline`."""
    from protego_cli.roles.instances import here, supervise

    instances = here(cluster, group, count)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(_heed_signals, nursery.cancel_scope, _nothing_to_reload)
            if lifeline:
                nursery.start_soon(_cancel_on_eof, nursery.cancel_scope)
            nursery.start_soon(supervise, instances, arguments)

    trio.run(run)


async def run_until_told(
    run: RunRole, cluster: Cluster, node: Node, plugins: Plugins, lifeline: bool
) -> None:
    """The role's nursery, and what cancels it."""
    async with trio.open_nursery() as nursery:
        hangups, hung_up = trio.open_memory_channel[None](1)

        def hang_up() -> None:
            with contextlib.suppress(trio.WouldBlock):  # one waits already
                hangups.send_nowait(None)

        if node.role in ("gin", "gen", "gpn"):
            from protego_cli.net.heap import keep_heap

            keep_heap()
        await nursery.start(_heed_signals, nursery.cancel_scope, hang_up)
        if lifeline:
            nursery.start_soon(_cancel_on_eof, nursery.cancel_scope)
        reload: Callable[[], None] | None = await nursery.start(run, cluster, node, plugins)
        nursery.start_soon(_reload_when, hung_up, reload or _nothing_to_reload)
        logger.info("started node=%s address=%s", node.name, node.address)
        gc.collect()
        gc.freeze()  # what exists now lives on: keep later collections from walking it
        if node.role == "gmn":
            gc.set_threshold(YOUNG)


async def _heed_signals(
    scope: trio.CancelScope,
    hang_up: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """SIGHUP asks for a reload; the others end it."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                hang_up()
                continue
            logger.info("stopping signal=%s", signal.Signals(number).name)
            scope.cancel()
            return  # a second signal then ends the process at once


async def _reload_when(hung_up: trio.MemoryReceiveChannel[None], reload: Callable[[], None]) -> None:
    async for _ in hung_up:
        reload()


def _nothing_to_reload() -> None:
    """A data node reads its own address and ports when it starts; all else comes from the GMN."""
    logger.info("nothing to reload reason=%s", "what changes comes from the GMN")


async def _cancel_on_eof(scope: trio.CancelScope) -> None:
    """Whoever started this process holds the other end of its stdin, and is gone when it closes."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        while await stdin.receive_some():
            pass
    logger.info("stopping reason=%s", "stdin closed")
    scope.cancel()
