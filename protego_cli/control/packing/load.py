"""How much each tunnel asks of its GPN, from the GPNs' reports. Pure arithmetic; the time comes in.

1. A report brings, for every SA through which something passed, the difference to the report before: packets
   and bytes each way. Each tunnel's rates are averages of these, exponentially weighted over `WINDOW`
   seconds; they decay by themselves, so a report costs what has changed, and an idle tunnel nothing.
2. A cost model makes CPU seconds of them: per packet and per byte, by direction. What a suite costs, the GPN
   has measured when it began to use it; until it has told, `COSTS` are summed over the parts of the name.
3. The model does not know the size of batches, nor what else the process does. So each GPN has a scale, by
   regression of its measured CPU on what the model says of the same reports. Where loads vary enough to tell
   the two apart, what does not grow with them is the process's `own`, no tunnel's; where they don't, the
   scale is the ratio of the two, and what tunnels cost adds up to what was measured. An idle process teaches
   nothing, and the scale stays within `SCALES`.
4. A tunnel's share is its modelled cost times the scale of the GPN where it is: 1.0 is one core. Where the
   GPN's bandwidth is bounded and scarcer than its CPU, it is the tunnel's part of that bandwidth, times the
   GPN's capacity.
5. A GPN that is saturated drops before it counts. Then what a tunnel takes is multiplied by what was offered
   to it, by the counts of GINs and GENs, over what reached its limits: that is what it would take.

`history` keeps each tunnel's share as means over minutes, for policies that forecast.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from protego_cli.control.channel.node_messages import SuiteCost
from protego_cli.control.sas.tunnel import Totals

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats

WINDOW: Final = 10.0  # seconds: what happened so long ago counts 1/e
INTERVAL: Final = 1.0  # seconds that a first report stands for; and nothing decays before the next is due
IDLE: Final = 0.02  # CPU below which a process says nothing about its tunnels
SCALES: Final = (0.25, 64.0)  # packets that come alone cost many times what they cost in batches
PLAUSIBLE: Final = 4.0  # modelled CPU of one report above which its counts are of a time before this GMN's
HISTORY: Final = 60  # minutes
MEMORY: Final = 120.0  # seconds: a point of the regression so old counts 1/e
FEWEST: Final = 20.0  # points
SPREAD: Final = 0.2  # of the mean, that loads must have for the regression to tell anything
FLATTEST: Final = 0.25  # of the ratio of means: a slope below that is noise
SATURATED: Final = 0.9  # CPU of a GPN, of one core, beyond which it may not take all that comes
PRESSED: Final = 5.0  # seconds for which one counts as saturated after it last was
MOST_OFFERED: Final = 8.0  # times what passes that is believed of what is offered
_MINUTE: Final = 60.0
_NOTHING: Final = array("f", bytes(4 * HISTORY))


class Cost(NamedTuple):
    """CPU seconds per packet and per byte."""

    packet: float
    byte: float


class Way(NamedTuple):
    opening: Cost
    sealing: Cost


def _both(packet: float, byte: float) -> Way:
    return Way(Cost(packet, byte), Cost(packet, byte))


# To start with: batches of some ten packets on one current core (docs/benchmarks.md). Of a suite's name,
# parts that are not here cost nothing: groups, and ciphers of plugins, which the scale then makes up for.
BASE: Final = _both(1.5e-6, 0.05e-9)
COSTS: Final = {
    "aes128gcm16": _both(0.2e-6, 0.2e-9),
    "aes192gcm16": _both(0.2e-6, 0.23e-9),
    "aes256gcm16": _both(0.2e-6, 0.26e-9),
    "chacha20poly1305": _both(0.4e-6, 0.6e-9),
    "aes128": Way(Cost(0.2e-6, 0.1e-9), Cost(0.2e-6, 0.6e-9)),
    "aes192": Way(Cost(0.2e-6, 0.12e-9), Cost(0.2e-6, 0.7e-9)),
    "aes256": Way(Cost(0.2e-6, 0.13e-9), Cost(0.2e-6, 0.8e-9)),
    "sha1": _both(0.7e-6, 0.45e-9),
    "sha256": _both(0.7e-6, 0.45e-9),
    "sha384": _both(0.9e-6, 1.6e-9),
    "sha512": _both(0.9e-6, 1.6e-9),
}


NO_WAYS: Final[Mapping[str, Way]] = {}


def _measured_cost(suite: str, measured: Mapping[str, Way]) -> Way:
    """A suite's name may go on, behind what was measured, with its group."""
    cipher, *rest = suite.split("-", 2)
    found = (measured.get(f"{cipher}-{rest[0]}") if rest else None) or measured.get(cipher)
    if found is None:
        return cost_of(suite)
    return Way(
        Cost(BASE.opening.packet + found.opening.packet, BASE.opening.byte + found.opening.byte),
        Cost(BASE.sealing.packet + found.sealing.packet, BASE.sealing.byte + found.sealing.byte),
    )


@lru_cache(maxsize=1024)
def cost_of(suite: str) -> Way:
    """What a suite costs: the sum of what is known of its parts."""
    ways = [BASE, *(COSTS[part] for part in suite.split("-") if part in COSTS)]
    return Way(
        Cost(sum(way.opening.packet for way in ways), sum(way.opening.byte for way in ways)),
        Cost(sum(way.sealing.packet for way in ways), sum(way.sealing.byte for way in ways)),
    )


def modelled(suite: str, passed: Totals, measured: Mapping[str, Way] = NO_WAYS) -> float:
    """CPU seconds for what passed through an SA; `measured`: what suites cost on its GPN."""
    opening, sealing = _measured_cost(suite, measured) if measured else cost_of(suite)
    return (
        passed.packets_in * opening.packet
        + passed.bytes_in * opening.byte
        + passed.packets_out * sealing.packet
        + passed.bytes_out * sealing.byte
    )


class Passed(NamedTuple):
    """What passed through one SA between two reports."""

    tunnel: str
    suite: str
    totals: Totals


class Rates(NamedTuple):
    """Per second, averaged; `in` is from the peer."""

    packets_in: float = 0.0
    bytes_in: float = 0.0
    packets_out: float = 0.0
    bytes_out: float = 0.0


class Average:
    """Some rates, exponentially weighted over `window` seconds, true from the first sample on."""

    __slots__ = ("_at", "_seen", "_since", "_values", "_window")

    def __init__(self, size: int, since: float, window: float = WINDOW) -> None:
        self._window = window
        self._values = [0.0] * size
        self._since = self._at = since
        self._seen = 0.0  # how much of the whole weight the time since the beginning has

    def feed(self, amounts: Sequence[float], interval: float, now: float) -> None:
        """These amounts came in the last `interval` seconds. Several sources add up."""
        kept = math.exp((self._at - now) / self._window)
        gained = -math.expm1(-interval / self._window) / interval
        self._values = [
            value * kept + amount * gained for value, amount in zip(self._values, amounts, strict=True)
        ]
        self._at = now
        self._seen = -math.expm1((self._since - now) / self._window)

    def read(self, now: float) -> list[float]:
        """The rates; where nothing came any more they fade."""
        if self._seen <= 0:
            return [0.0] * len(self._values)
        factor = 1.0 / self._seen
        if (late := now - self._at - 1.5 * INTERVAL) > 0:
            factor *= math.exp(-late / self._window)
        return [value * factor for value in self._values]


def _sane(cost: SuiteCost) -> bool:
    """Whether a processor may have measured this."""
    return all(0.0 <= each < 1.0 for each in msgspec.structs.astuple(cost)[1:])


class Regression:
    """A line through weighted points, of which old ones count less."""

    __slots__ = ("_at", "_w", "_x", "_xx", "_xy", "_y")

    def __init__(self, since: float) -> None:
        self._at = since
        self._w = self._x = self._y = self._xx = self._xy = 0.0

    def feed(self, x: float, y: float, now: float) -> None:
        kept = math.exp((self._at - now) / MEMORY)
        self._at = now
        self._w = self._w * kept + 1.0
        self._x = self._x * kept + x
        self._y = self._y * kept + y
        self._xx = self._xx * kept + x * x
        self._xy = self._xy * kept + x * y

    def slope(self) -> float | None:
        """Of the line, whose intercept is never below zero; None where points are few or close together."""
        if self._w < FEWEST or self._x <= 0.0:
            return None
        x, y = self._x / self._w, self._y / self._w
        spread = self._xx / self._w - x * x
        if spread < (SPREAD * x) ** 2:
            return None
        slope = (self._xy / self._w - x * y) / spread
        return min(max(slope, FLATTEST * y / x), y / x)


class _History:
    """CPU seconds in each of the last `HISTORY` minutes."""

    __slots__ = ("_last", "_spent")

    def __init__(self, now: float) -> None:
        self._spent = array("f", bytes(4 * HISTORY))
        self._last = int(now // _MINUTE)

    def add(self, seconds: float, now: float) -> None:
        self._turn(now)
        self._spent[self._last % HISTORY] += seconds

    def ring(self, now: float) -> array[float]:
        """By the minute, modulo `HISTORY`."""
        self._turn(now)
        return self._spent

    def _turn(self, now: float) -> None:
        this = int(now // _MINUTE)
        for minute in range(max(self._last, this - HISTORY) + 1, this + 1):
            self._spent[minute % HISTORY] = 0.0
        self._last = max(self._last, this)


def _reached(totals: Totals) -> int:
    """Bytes that a GPN has passed, or dropped for a rate limit."""
    return totals.bytes_in + totals.bytes_out + totals.limited_bytes_in + totals.limited_bytes_out


class _Flow:
    """One tunnel: its four rates and its modelled cost."""

    __slots__ = ("average", "history", "pressure")

    def __init__(self, since: float, window: float) -> None:
        self.average = Average(5, since, window)
        self.pressure = Average(2, since, window)  # bytes that reach the GPN's limits, and that are offered
        self.history = _History(since)


class _Process:
    """One GPN: its measured CPU and the modelled cost of the same reports."""

    __slots__ = ("average", "overflow", "pressed", "regression", "reported", "scale", "ways")

    def __init__(self, since: float, window: float) -> None:
        self.average = Average(3, since, window)  # CPU, measured and modelled; bits
        self.reported = since
        self.scale = 1.0
        self.regression = Regression(since)
        self.ways: dict[str, Way] = {}  # what suites cost there
        self.overflow = 0  # packets that its sockets have dropped
        self.pressed = -math.inf  # when it was last saturated


class Loads:
    """The loads of all tunnels and GPNs."""

    def __init__(self) -> None:
        self.window = WINDOW  # of what is first heard of from now on
        self.per_bit: Mapping[str, float] = {}  # by GPN, where bandwidth is bounded: what a bit/s loads it
        self._flows: dict[str, _Flow] = {}
        self._began: float = math.inf  # the minute of the first report
        self._processes: dict[str, _Process] = {}

    def calibrated(self, gpn: str, costs: Iterable[SuiteCost]) -> None:
        """What suites cost on a GPN's machine, as it has measured."""
        process = self._processes.get(gpn)
        if process is None:
            return
        for each in costs:
            if each.suite not in process.ways and _sane(each):
                process.ways[each.suite] = Way(
                    Cost(each.open_packet, each.open_byte), Cost(each.seal_packet, each.seal_byte)
                )

    def report(
        self, gpn: str, cpu: float, passed: Iterable[Passed], now: float, *, overflow: int = 0
    ) -> None:
        """A GPN's report: the CPU seconds per second of its process, what passed since the one before, and
        the packets that its sockets have dropped so far.
        """
        self._began = min(self._began, now // _MINUTE)
        process = self._processes.get(gpn)
        if process is None:
            process = self._processes[gpn] = _Process(now - INTERVAL, self.window)
        interval = max(now - process.reported, 0.05)
        process.reported = now
        if cpu >= SATURATED or overflow > process.overflow:
            process.pressed = now
        process.overflow = overflow
        priced = [(each, modelled(each.suite, each.totals, process.ways)) for each in passed]
        total = sum(cost for _, cost in priced)
        if total > PLAUSIBLE * interval:
            return
        bits = 8.0 * sum(each.totals.bytes_in + each.totals.bytes_out for each, _ in priced)
        process.average.feed((cpu * interval, total, bits), interval, now)
        measured, explained, _ = process.average.read(now)
        if measured >= IDLE and explained > 0:
            if cpu >= IDLE:
                process.regression.feed(total / interval, cpu, now)
            slope = process.regression.slope()
            lowest, highest = SCALES
            process.scale = min(max(measured / explained if slope is None else slope, lowest), highest)
        for each, cost in priced:
            flow = self._flows.get(each.tunnel)
            if flow is None:
                flow = self._flows[each.tunnel] = _Flow(now - interval, self.window)
            flow.average.feed((*each.totals[:4], cost), interval, now)
            flow.pressure.feed((_reached(each.totals), 0.0), interval, now)
            bits = 8.0 * (each.totals.bytes_in + each.totals.bytes_out)
            spent = max(cost * process.scale, bits * self.per_bit.get(gpn, 0.0))
            flow.history.add(spent * self._pressure(flow, gpn, now), now)

    def offer(self, tunnel: str, amount: int, seconds: float, now: float) -> None:
        """So many bytes came for a tunnel to a GIN or GEN in the last seconds."""
        if (flow := self._flows.get(tunnel)) is not None:
            flow.pressure.feed((0.0, amount), seconds, now)

    def _pressure(self, flow: _Flow, gpn: str | None, now: float) -> float:
        """How many times what passes is offered: more than once only where the GPN is saturated."""
        process = self._processes.get(gpn or "")
        if process is None or now > process.pressed + PRESSED:
            return 1.0
        reached, offered = flow.pressure.read(now)
        return min(max(1.0, offered / reached), MOST_OFFERED) if reached > 0 else 1.0

    def rates(self, tunnel: str, now: float) -> Rates:
        flow = self._flows.get(tunnel)
        return Rates(*flow.average.read(now)[:4]) if flow else Rates()

    def share(self, tunnel: str, gpn: str | None, now: float) -> float:
        """What a tunnel takes of this GPN: CPU seconds per second, or bandwidth, in the same measure."""
        flow = self._flows.get(tunnel)
        if flow is None:
            return 0.0
        _, bytes_in, _, bytes_out, cost = flow.average.read(now)
        per_bit = self.per_bit.get(gpn or "", 0.0)
        taken = max(cost * self.scale(gpn), 8.0 * (bytes_in + bytes_out) * per_bit)
        return taken * self._pressure(flow, gpn, now)

    def scale(self, gpn: str | None) -> float:
        process = self._processes.get(gpn or "")
        return process.scale if process else 1.0

    def own(self, gpn: str, now: float) -> float:
        """The measured CPU that no tunnel accounts for."""
        process = self._processes.get(gpn)
        if process is None:
            return 0.0
        measured, explained, _ = process.average.read(now)
        return max(0.0, measured - explained * process.scale)

    def busy(self, gpn: str, now: float) -> float:
        """How busy a GPN is by its own reports, whatever its tunnels are; infinitely where it may drop."""
        process = self._processes.get(gpn)
        if process is None:
            return 0.0
        if now <= process.pressed + PRESSED:
            return math.inf
        measured, _, bits = process.average.read(now)
        return max(measured, bits * self.per_bit.get(gpn, 0.0))

    def history(self, tunnels: Sequence[str], now: float) -> Floats:
        """The tunnels' shares in the whole minutes of the last hour: a row for each minute since the first
        report, oldest first, a column for each tunnel. Nothing passed through one that is not known.
        """
        import numpy as np

        this = int(now // _MINUTE)
        whole = int(max(0, min(this - self._began - 1, HISTORY - 1)))
        rings = (flow.history.ring(now) if (flow := self._flows.get(name)) else _NOTHING for name in tunnels)
        spent = np.frombuffer(b"".join(rings), np.float32).reshape(-1, HISTORY)
        return spent[:, np.arange(this - whole, this) % HISTORY].T.astype(np.float64, order="C") / _MINUTE

    def forget(self, tunnel: str) -> None:
        self._flows.pop(tunnel, None)

    def forget_gpn(self, gpn: str) -> None:
        """Its process is gone; the next one is measured anew."""
        self._processes.pop(gpn, None)
