"""Reads TOML tables with every fault recorded and none raised, so that one pass shows them all.

A getter that meets a fault appends a `Problem` and returns a placeholder of the right type. The result is
discarded when there are problems, so a placeholder never leaves `load.py`; checks over several values skip
the empty ones.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from protego_cli.config import values
from protego_cli.config.model import TenantConfig, TunnelConfig
from protego_cli.config.values import shown
from protego_cli.errors import Problem

T = TypeVar("T")

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def join(parent: str, name: str) -> str:
    """The dotted path of a key, quoted as TOML quotes it."""
    own = name if BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
    return f"{parent}.{own}" if parent else own


def tenant_key(tenant: TenantConfig, rest: str) -> str:
    return f"{join('tenants', tenant.name)}.{rest}"


def tunnel_key(tunnel: TunnelConfig, rest: str) -> str:
    return f"{join(join('tenants', tunnel.tenant) + '.tunnels', tunnel.name)}.{rest}"


class Table:
    """One table of the file: where it is, what it holds, and which of its keys were asked for."""

    def __init__(self, data: dict[str, Any], key: str, problems: list[Problem]) -> None:
        self.key = key
        self._data = data
        self._problems = problems
        self._known: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def at(self, name: str) -> str:
        """The full path of one of this table's keys."""
        return join(self.key, name)

    def problem(self, name: str, message: str) -> None:
        self._problems.append(Problem(self.at(name), message))

    def fault(self, message: str) -> None:
        """A problem with the table itself."""
        self._problems.append(Problem(self.key, message))

    def check_name(self, name: str) -> None:
        """Whether what this table is about may have that name."""
        try:
            values.name(name)
        except ValueError as error:
            self.fault(str(error))

    def check_room(self, name: str, count: int) -> None:
        """Whether nodes that are numbered up to `count` may be named after it."""
        if len(f"{name}-{count}") > values.MAX_NAME:
            self.fault(
                f"expected a name that leaves room for -{count}: at most {values.MAX_NAME} characters in all"
            )

    def need(self, name: str, convert: Callable[[object], T], placeholder: T, *, example: str) -> T:
        """A value that must be there."""
        if name not in self._data:
            self._known.append(name)
            self.problem(name, f"is missing: expected {example}")
            return placeholder
        return self.take(name, convert, placeholder)

    def take(self, name: str, convert: Callable[[object], T], default: T) -> T:
        """A value that may be left out."""
        self._known.append(name)
        if name not in self._data:
            return default
        try:
            return convert(self._data[name])
        except ValueError as error:
            self.problem(name, str(error))
            return default

    def sequence(
        self,
        name: str,
        convert: Callable[[object], T],
        *,
        example: str,
        default: tuple[T, ...] | None = None,
        most: int | None = None,
    ) -> tuple[T, ...]:
        """A list of at least one value, each converted, and at `most` so many; faults name the index."""
        if name not in self._data and default is not None:
            self._known.append(name)
            return default
        converted = []
        for index, value in enumerate(self._list(name, example)):
            try:
                converted.append(convert(value))
            except ValueError as error:
                self.problem_at(name, index, str(error))
        if most is not None and len(converted) > most:
            self.problem(name, f"expected at most {most} of them, got {len(converted)}")
            return ()
        return tuple(converted)

    def problem_at(self, name: str, index: int, message: str) -> None:
        self._problems.append(Problem(f"{self.at(name)}[{index}]", message))

    def tables(self, name: str, *, example: str) -> list[Table]:
        """A list of tables with at least one."""
        found = []
        for index, value in enumerate(self._list(name, example)):
            if isinstance(value, dict):
                found.append(Table(value, f"{self.at(name)}[{index}]", self._problems))
            else:
                self.problem_at(name, index, f"expected a table, got {shown(value)}")
        return found

    def table(self, name: str, *, needed: str = "") -> Table:
        """A table below this one, empty when left out; `needed` says what is expected if it must be there."""
        self._known.append(name)
        value = self._data.get(name, {})
        if name not in self._data and needed:
            self.problem(name, f"is missing: expected {needed}")
        elif not isinstance(value, dict):
            self.problem(name, f"expected a table, got {shown(value)}")
            value = {}
        return Table(value, self.at(name), self._problems)

    def named(self) -> list[tuple[str, Table]]:
        """This table as a collection: every key a name, every value a table."""
        found = []
        for name, value in self._data.items():
            self._known.append(name)
            if isinstance(value, dict):
                found.append((name, Table(value, self.at(name), self._problems)))
            else:
                self.problem(name, f"expected a table, got {shown(value)}")
        return found

    def rest(self, convert: Callable[[object], T]) -> dict[str, T]:
        """The values of all keys that were not asked for."""
        found: dict[str, T] = {}
        for name, value in self._data.items():
            if name in self._known:
                continue
            self._known.append(name)
            try:
                found[name] = convert(value)
            except ValueError as error:
                self.problem(name, str(error))
        return found

    def done(self) -> None:
        """Every key was asked for by now: any other one is unknown."""
        for name in self._data:
            if name in self._known:
                continue
            close = difflib.get_close_matches(name, self._known, n=1, cutoff=0.6)
            hint = f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(sorted(self._known))}"
            self.problem(name, f"is not a known key; {hint}")

    def _list(self, name: str, example: str) -> list[Any]:
        self._known.append(name)
        if name not in self._data:
            self.problem(name, f"is missing: expected {example}")
            return []
        value = self._data[name]
        if not isinstance(value, list) or not value:
            self.problem(name, f"expected {example}, got {'an empty list' if value == [] else shown(value)}")
            return []
        return value
