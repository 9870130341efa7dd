"""Where the run is shown: live with rich on a terminal, as plain lines elsewhere.

With `--json` stdout belongs to the receipt alone, so everything else goes to stderr.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio
from rich.console import Console, RenderableType
from rich.live import Live

from protego_cli.lab.view import Scene, picture

_FRAME = 0.2  # seconds: five pictures a second


class Show:
    """The scene, and the console it is shown on."""

    def __init__(self, scene: Scene, *, json: bool, headless: bool) -> None:
        self.scene = scene
        self.console = Console(stderr=json, highlight=False)
        self.live = self.console.is_terminal and not headless
        self._began = trio.current_time()
        self._live: Live | None = None

    def say(self, event: str) -> None:
        """Tell an event, with the seconds since the command began."""
        at = trio.current_time() - self._began
        self.scene.events.append((at, event))
        if self._live is None:
            self.console.print(f"{at:6.2f} s  {event}", markup=False, soft_wrap=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While inside, the picture is live, where there is a terminal for it."""
        if not self.live:
            yield
            return
        with Live(self._picture(), console=self.console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    async def frames(self) -> None:
        """Redraw until cancelled."""
        while self._live is not None:
            self._live.update(self._picture(), refresh=True)
            await trio.sleep(_FRAME)

    def _picture(self) -> RenderableType:
        return picture(self.scene, self.console.height)
