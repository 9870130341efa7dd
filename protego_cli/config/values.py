"""What one value of the cluster file may be: each function takes a TOML value and returns it converted.

They raise ValueError, whose text says what was expected and what is there; `fields.py` adds the key.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

MAX_NAME = 63
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")  # what every tool takes of what Linux takes
NETNS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
MAX_VNI = 2**24 - 1  # RFC 7348 5
MAX_DSCP = 63  # RFC 2474 3
BROADCAST = ipaddress.IPv4Address("255.255.255.255")
SHOWN = 60  # characters of a wrong value that a message repeats

AnyNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def shown(value: object) -> str:
    """A wrong value as the file spells it, cut to a bounded length."""
    if isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, dict):
        text = "a table"
    elif isinstance(value, list):
        text = "a list"
    else:
        text = str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 255:
        raise ValueError(f"expected printable text of 1 to 255 characters, got {shown(value)}")
    return value


def name(value: object) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(
            f"expected a name of 1 to 63 characters a-z, 0-9 and -, not starting with -, got {shown(value)}"
        )
    return value


def address(value: object) -> str:
    """The address of a machine outside the tunnels, where Protego speaks IPv4; IPv6 is carried inside."""
    try:
        parsed = ipaddress.IPv4Address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f'expected an IPv4 address such as "10.10.0.1", got {shown(value)}') from None
    if parsed.is_multicast or parsed.is_unspecified or parsed == BROADCAST:
        raise ValueError(f"expected the address of one machine, got {shown(value)}")
    return str(parsed)


def address_range(value: object) -> tuple[str, str]:
    """The first and the last of consecutive addresses."""
    first, dash, last = (value if isinstance(value, str) else "").partition("-")
    try:
        ends = address(first.strip()), address(last.strip())
    except ValueError:
        ends = None
    if ends is None or not dash or ipaddress.IPv4Address(ends[0]) > ipaddress.IPv4Address(ends[1]):
        raise ValueError(
            f'expected the first and the last address, such as "10.10.1.1-10.10.1.64", got {shown(value)}'
        )
    return ends


def setting(value: object) -> str | int | float | bool | tuple[str, ...]:
    """What a plugin may be told: a text, a number, yes or no, or a list of texts."""
    match value:
        case str() | int() | float() | bool():
            return value
        case list() if all(isinstance(each, str) for each in value):
            return tuple(value)
    raise ValueError(f"expected a text, a number, true, false or a list of texts, got {shown(value)}")


def peer(value: object) -> str | None:
    """A peer's address, or None for "any"."""
    if value == "any":
        return None
    try:
        return address(value)
    except ValueError as error:
        raise ValueError(f'{error}; or "any" for a peer whose address is not known') from None


def inner_address(value: object) -> str:
    """The address of one machine inside the tunnels, IPv4 or IPv6."""
    try:
        parsed = ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(
            f'expected an address such as "10.1.0.1" or "2001:db8:1::1", got {shown(value)}'
        ) from None
    if parsed.is_multicast or parsed.is_unspecified or parsed.is_loopback or parsed == BROADCAST:
        raise ValueError(f"expected the address of one machine, got {shown(value)}")
    return str(parsed)


def interface(value: object) -> str:
    """An inner address with the length of its network's prefix."""
    spelled = value if isinstance(value, str) else ""
    try:
        parsed = ipaddress.ip_interface(spelled)
        inner_address(str(parsed.ip))
    except ValueError:
        parsed = None
    if parsed is None or "/" not in spelled:
        raise ValueError(
            'expected the address of one machine with its prefix length, such as "10.1.0.1/24", '
            f"got {shown(value)}"
        )
    return str(parsed)


def device(value: object) -> str:
    if not isinstance(value, str) or not DEVICE.fullmatch(value) or value in ("lo", "all", "default"):
        raise ValueError(
            'expected a name for a network device such as "acme0", 1 to 15 letters, digits, "-", "_" or ".", '
            f"got {shown(value)}"
        )
    return value


def netns(value: object) -> str:
    if not isinstance(value, str) or not NETNS.fullmatch(value):
        raise ValueError(f'expected the name of a network namespace such as "acme", got {shown(value)}')
    return value


def prefix(value: object) -> str:
    """A CIDR prefix in its canonical spelling."""
    spelled = value if isinstance(value, str) else ""
    try:
        network: AnyNetwork = ipaddress.ip_network(spelled, strict=False)
    except ValueError:
        raise ValueError(f'expected a prefix such as "10.1.0.0/24", got {shown(value)}') from None
    if "/" not in spelled:
        raise ValueError(
            f'expected a prefix such as "10.1.0.0/24", got {shown(value)}: did you mean "{network}"?'
        )
    if ipaddress.ip_address(spelled.partition("/")[0]) != network.network_address:
        raise ValueError(f'{shown(value)} has bits set outside its prefix: did you mean "{network}"?')
    return str(network)


def mac(value: object) -> bytes:
    """A unicast MAC address."""
    if not isinstance(value, str) or not MAC.fullmatch(value):
        raise ValueError(f'expected a MAC address such as "02:50:00:00:10:01", got {shown(value)}')
    raw = bytes.fromhex(value.replace(":", ""))
    if raw[0] & 1:
        raise ValueError(f"expected the MAC address of one machine, got the multicast address {shown(value)}")
    if not any(raw):
        raise ValueError("expected a MAC address, got all zeros")
    return raw


def mss(value: object) -> int | Literal["auto"]:
    """TCP's maximum segment size: a number, or what fits the path."""
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or not 216 <= value <= 8960:
        raise ValueError(f'expected "auto" or a whole number from 216 to 8960, got {shown(value)}')
    return value


def integer(low: int, high: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}, got {shown(value)}")
        return value

    return convert


def dscp(value: object) -> Literal["copy", "clear"] | int:
    """What sealed packets bear: the inner one's, none, or this."""
    match value:
        case "copy" | "clear":
            return value
        case int() if not isinstance(value, bool) and 0 <= value <= MAX_DSCP:
            return value
    raise ValueError(
        f'expected "copy", "clear" or a whole number from 0 to {MAX_DSCP}, such as 46, got {shown(value)}'
    )


def power_of_two(low: int, high: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not low <= value <= high
            or value & value - 1
        ):
            raise ValueError(f"expected a power of two from {low} to {high}, got {shown(value)}")
        return value

    return convert


def number(low: float, high: float) -> Callable[[object], float]:
    def convert(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}, got {shown(value)}")
        return float(value)

    return convert


def duration(low: int, high: int) -> Callable[[object], float]:
    """Seconds, as a number or as text with a unit: 90, "90s", "15m", "1h", "1d"."""

    def convert(value: object) -> float:
        seconds: float | None = None
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = float(value)
        elif isinstance(value, str) and (match := DURATION.fullmatch(value)):
            seconds = float(match[1]) * UNITS[match[2]]
        if seconds is None or not low <= seconds <= high:
            raise ValueError(
                f'expected a duration such as 90, "90s", "15m", "1h" or "1d", '
                f"from {low} to {high} seconds, got {shown(value)}"
            )
        return seconds

    return convert


def choice(options: Sequence[str], *, what: str = "") -> Callable[[object], str]:
    """One of `options`; `what` says what they are where that is not plain."""

    def convert(value: object) -> str:
        if value not in options:
            listed = ", ".join(f'"{option}"' for option in options)
            raise ValueError(f"expected {what and what + ': '}{listed}, got {shown(value)}")
        return str(value)

    return convert


def path(base: Path) -> Callable[[object], Path]:
    """A path, relative ones being relative to `base`."""

    def convert(value: object) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"expected a path (relative to this file), got {shown(value)}")
        return base / value

    return convert
