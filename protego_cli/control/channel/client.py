"""The operator's side of the control channel: one question and its answer, or several over one connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import trio

from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel.frames import GMN_LIMIT
from protego_cli.control.channel.message import Failed, Reply, Request
from protego_cli.control.channel.messages import AnyReply, AnyRequest
from protego_cli.control.channel.pki import OPERATOR, Identity, client_context
from protego_cli.control.channel.rpc import Link, connect
from protego_cli.control.channel.tls import TlsStream
from protego_cli.errors import Exit, ProtegoError, Unreachable

CONNECT_TIMEOUT: Final = 3.0
ANSWER_TIMEOUT: Final = 120.0  # a migration may have to wait for a peer's retransmissions

T = TypeVar("T")
R = TypeVar("R", bound=Reply)


class Ask(Protocol):
    """Asks the GMN at the other end."""

    async def __call__(self, request: Request, /) -> AnyReply: ...


async def ask(cluster: Cluster, request: Request, *, timeout: float = ANSWER_TIMEOUT) -> AnyReply:
    """Ask one question; raises as `converse` does."""

    async def talk(ask: Ask) -> AnyReply:
        return await ask(request)

    return await converse(cluster, talk, timeout=timeout)


async def expect(ask: Ask, request: Request, expected: type[R]) -> R:
    """Ask for a reply of this type. Raises ProtegoError when it is of another one, too."""
    reply = await ask(request)
    if not isinstance(reply, expected):
        raise ProtegoError(
            f"the control node answered {type(reply).__name__} to {type(request).__name__}; "
            "it may run another version"
        )
    return reply


async def converse(
    cluster: Cluster, talk: Callable[[Ask], Awaitable[T]], *, timeout: float = ANSWER_TIMEOUT
) -> T:
    """Let `talk` ask the GMN with the operator's certificate; of several GMNs, the first that answers.

    Raises what the GMN's refusal means (NotFound, Refused, ...), Unreachable when none answers or it goes
    away, and EnvironmentFault for unusable certificates. `timeout` is for each answer.
    """
    context = client_context(cluster, OPERATOR)
    gmns = cluster.nodes_of("gmn")
    reasons: list[str] = []
    for gmn in gmns:
        expected = Identity(cluster.name, "gmn", gmn.name)
        try:
            stream = await connect(gmn.address, gmn.ports.control, context, expected, CONNECT_TIMEOUT)
        except Unreachable as error:
            reasons.append(str(error))
            continue
        return await _converse(stream, gmn, expected, talk, timeout)
    raise Unreachable(
        f"no control node answers ({'; '.join(reasons) or 'the cluster file names none'}); "
        "is the GMN running? `protego up --role gmn` starts it"
    )


async def _converse(
    stream: TlsStream, gmn: Node, expected: Identity, talk: Callable[[Ask], Awaitable[T]], timeout: float
) -> T:
    outcome: T | ProtegoError
    async with trio.open_nursery() as nursery:
        link = Link(stream, expected, _refuse, nursery, limit=GMN_LIMIT, silence=timeout)
        nursery.start_soon(link.run)

        async def ask(request: Request) -> AnyReply:
            return await link.call(request, timeout)

        try:
            outcome = await talk(ask)
        except Unreachable as error:
            place = f"{gmn.address}:{gmn.ports.control}"
            outcome = type(error)(f"{error} (at {place}; the GMN's log says why)")
        except ProtegoError as error:
            outcome = error
        link.close("answered")
    if isinstance(outcome, ProtegoError):
        raise outcome
    return outcome


def _refuse(request: AnyRequest) -> Failed:
    return Failed("an operator answers nothing", int(Exit.FAILED))
