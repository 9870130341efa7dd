"""Events on the screen, as they come.

1. The first question is for what was asked for; each next one for what is behind its answer, and the GMN
   answers when there is something (long poll), over one connection.
2. When that breaks, the GMN is tried again until it is back. The epoch of its answer tells whether it is the
   same life; whatever has been missed is said on stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import trio
from rich.console import Console
from rich.text import Text

from protego_cli.cli.counting import counted
from protego_cli.cli.logs import printable, quoted
from protego_cli.cli.render import print_json
from protego_cli.cli.times import moment
from protego_cli.config.model import Cluster
from protego_cli.control.channel.client import Ask, converse, expect
from protego_cli.control.channel.operator_messages import Event, Events, GetEvents
from protego_cli.errors import Unreachable

WAIT = 5.0  # seconds that the GMN may let us wait; it holds a place for us as long
FIRST_PAUSE = 0.5  # between attempts to reach it
LAST_PAUSE = 5.0

_STYLES = {"info": "green", "warning": "yellow", "error": "red"}
_KIND = 18  # columns


class Printer:
    """One line for each event: columns for people, JSON for programs."""

    def __init__(self, *, as_json: bool, clock: Callable[[], float] = time.time) -> None:
        self._json = as_json
        self._clock = clock
        self._console = Console(highlight=False)
        self._width = 8  # of the tunnels' column; it only grows

    def show(self, event: Event) -> None:
        if self._json:
            print_json(document(event))
        else:
            self._console.print(self.line(event), soft_wrap=True)

    def line(self, event: Event) -> Text:
        subject = printable(event.tunnel or event.node or "-")
        self._width = max(self._width, len(subject))
        text = Text(moment(event.time, self._clock()), style="dim")
        text.append(f"  {event.kind:<{_KIND}}", style=_STYLES.get(event.severity, ""))
        text.append(f"  {subject:<{self._width}}", style="bold")
        for name, value in event.fields().items():
            if name == "reason":
                text.append(f"  {printable(str(value))}")
            elif value != subject:
                text.append(f"  {name}=", style="dim").append(quoted(value))
        text.rstrip()
        return text

    def note(self, text: str) -> None:
        """Something about the events, that is none."""
        sys.stderr.write(f"protego: {text}\n")


def document(event: Event) -> dict[str, Any]:
    """What `--json` promises (docs/cli.md)."""
    built: dict[str, Any] = msgspec.to_builtins(event)
    built["time"] = datetime.fromtimestamp(event.time).astimezone().isoformat(timespec="milliseconds")
    return built


def show_events(cluster: Cluster, request: GetEvents, printer: Printer) -> None:
    async def talk(ask: Ask) -> Events:
        return await expect(ask, request, Events)

    for event in trio.run(converse, cluster, talk).events:
        printer.show(event)


def follow_events(cluster: Cluster, request: GetEvents, printer: Printer) -> None:
    """Until Ctrl-C, or until nobody reads what is printed."""
    try:
        trio.run(EventFollower(cluster, request, printer).run)
    except* KeyboardInterrupt:  # alone, or in the group of a nursery
        pass
    except* (BrokenPipeError, SystemExit):  # rich makes the one of the other
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is in the buffer cannot be written any more


class EventFollower:
    def __init__(self, cluster: Cluster, request: GetEvents, printer: Printer) -> None:
        self._cluster = cluster
        self._request = request
        self._printer = printer
        self._away = False

    async def run(self) -> None:
        """For ever. Raises Unreachable when nobody answers the first question, and what the GMN refuses."""
        pause = FIRST_PAUSE
        while True:
            try:
                await converse(self._cluster, self._talk)
            except Unreachable as error:
                if not self._request.epoch:
                    raise
                if not self._away:
                    self._printer.note(f"the control node is gone: {error}; waiting for it (Ctrl-C ends)")
                    self._away, pause = True, FIRST_PAUSE
            await trio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)

    async def _talk(self, ask: Ask) -> None:
        while True:
            self._take(await expect(ask, self._request, Events))

    def _take(self, found: Events) -> None:
        known = self._request.epoch
        if known and known != found.epoch:
            self._printer.note("the control node has restarted; what it has told nobody before is lost")
        elif self._away:
            self._printer.note("the control node is back")
        if found.lost and known == found.epoch:
            self._printer.note(
                f"missing here: {counted(found.lost, 'event')}, which came faster than was read"
            )
        self._away = False
        for event in found.events:
            self._printer.show(event)
        self._request = msgspec.structs.replace(
            self._request, epoch=found.epoch, after=found.last, last=None, since=None, wait=WAIT
        )
