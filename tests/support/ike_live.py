"""The IKE engine alone on real UDP sockets in a namespace, to meet a real peer without a gateway."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from protego_cli.config.model import IkeSettings
from protego_cli.ike.events import Path, Policy
from tests.support.netns import CommandFailed, Namespace, inside
from tests.support.network import DEFAULTS, Network, Site

NON_ESP_MARKER = bytes(4)


class LiveSite(Site):
    """A `Site` whose datagrams go through sockets and whose clock is the real one."""

    sockets: dict[int, socket.socket]
    esp: Callable[[bytes, tuple[str, int]], None] | None = None  # takes ESP, and where it came from

    def run(self, until: Callable[[], bool], what: str, timeout: float = 15) -> None:
        """Serve the sockets until the condition holds; AssertionError names what did not happen."""
        end = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for port, sock in self.sockets.items():
                selector.register(sock, selectors.EVENT_READ, port)
            while not until():
                self.flush()
                now = time.monotonic()
                if now > end:
                    raise AssertionError(f"not within {timeout:g} s: {what}; events: {self.events}")
                timer = self.engine.timer()
                wait = min(0.05, max(0.0, timer - now)) if timer is not None else 0.05
                for key, _ in selector.select(wait):
                    self._receive(key.data)
                self.network.now = time.monotonic()
                self.engine.handle_timer(self.now)
                self.settle()
                self.flush()

    def during(self, command: Callable[[], object]) -> str:
        """Serve while a command runs that waits for us; what it said when it failed, or nothing."""
        failures: list[str] = []

        def call() -> None:
            try:
                command()
            except CommandFailed as failure:
                failures.append(str(failure))

        thread = threading.Thread(target=call)
        thread.start()
        self.run(lambda: not thread.is_alive(), "end of the command", timeout=30)
        return "".join(failures)

    def _receive(self, port: int) -> None:
        data, (address, remote_port) = self.sockets[port].recvfrom(65535)
        if port == 4500:
            if data[:4] != NON_ESP_MARKER:
                if self.esp is not None:
                    self.esp(data, (address, remote_port))
                return
            data = data[4:]
        self.network.now = time.monotonic()
        self.engine.receive_datagram(data, Path(self.address, port, address, remote_port), self.now)
        self.settle()

    def flush(self) -> None:
        """Put on the wire what the engine has sent."""
        for path, data in self.network.sent:
            marker = NON_ESP_MARKER if path.local_port == 4500 else b""
            self.sockets[path.local_port].sendto(marker + data, (path.remote, path.remote_port))
        self.network.sent.clear()


@contextmanager
def live_site(
    space: Namespace, address: str, policies: list[Policy], settings: IkeSettings = DEFAULTS
) -> Iterator[LiveSite]:
    """An engine on ports 500 and 4500 of an address of the namespace."""
    with ExitStack() as stack:
        network = Network(int.from_bytes(os.urandom(8), "big"))
        network.now = time.monotonic()
        site = LiveSite(network, address, policies, settings)
        site.sockets = {}
        for port in (500, 4500):
            with inside(space):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((address, port))
            site.sockets[port] = sock
        yield site
