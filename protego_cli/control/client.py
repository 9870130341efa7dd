"""The operator's side of the control channel: one question, one answer."""

from __future__ import annotations

from typing import Final

import trio

from protego_cli.config.model import Cluster, Node
from protego_cli.control.frames import GMN_LIMIT
from protego_cli.control.messages import AnyReply, AnyRequest, Failed, Request
from protego_cli.control.pki import OPERATOR, Identity, client_context
from protego_cli.control.rpc import Link, connect
from protego_cli.control.tls import TlsStream
from protego_cli.errors import Exit, ProtegoError, Unreachable

CONNECT_TIMEOUT: Final = 3.0
ANSWER_TIMEOUT: Final = 120.0  # a migration may have to wait for a peer's retransmissions


async def ask(cluster: Cluster, request: Request, *, timeout: float = ANSWER_TIMEOUT) -> AnyReply:
    """Ask the GMN with the operator's certificate; of several, the first that answers.

    Raises what the GMN's refusal means (NotFound, Refused, ...), Unreachable when none answers, and
    EnvironmentFault for unusable certificates.
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
        return await _exchange(stream, gmn, expected, request, timeout)
    raise Unreachable(
        f"no control node answers ({'; '.join(reasons) or 'the cluster file names none'}); "
        "is the GMN running? `protego up --role gmn` starts it"
    )


async def _exchange(
    stream: TlsStream, gmn: Node, expected: Identity, request: Request, timeout: float
) -> AnyReply:
    outcome: AnyReply | ProtegoError
    async with trio.open_nursery() as nursery:
        link = Link(stream, expected, _refuse, nursery, limit=GMN_LIMIT, silence=timeout)
        nursery.start_soon(link.run)
        try:
            outcome = await link.call(request, timeout)
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
