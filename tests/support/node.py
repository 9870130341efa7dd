"""A data node at the level of messages, to test the GMN's side of the control channel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from protego_cli.control.channel.message import Reply
from protego_cli.control.channel.messages import AnyRequest
from protego_cli.control.channel.node_messages import Applied, Hello, Marks, Sync, Update


class Node:
    """It answers as told and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[AnyRequest] = []
        self.answer: Callable[[AnyRequest], Reply | Awaitable[Reply]] = self.apply

    def __call__(self, request: AnyRequest) -> Reply | Awaitable[Reply]:
        self.asked.append(request)
        return self.answer(request)

    @staticmethod
    def apply(request: AnyRequest) -> Reply:
        return Applied(request.revision) if isinstance(request, Sync | Update) else Marks({})

    @staticmethod
    async def never(request: AnyRequest) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    def hold(self) -> trio.Event:
        """Answer nothing until the event is set."""
        gate = trio.Event()

        async def later(request: AnyRequest) -> Reply:
            await gate.wait()
            return self.apply(request)

        self.answer = later
        return gate

    def updates(self) -> list[Update]:
        return [request for request in self.asked if isinstance(request, Update)]

    def syncs(self) -> list[Sync]:
        return [request for request in self.asked if isinstance(request, Sync)]


def hello(boot: str = "one", epoch: int = 0, *, raw_esp: bool = False) -> Hello:
    return Hello(boot, "0", epoch, raw_esp)
