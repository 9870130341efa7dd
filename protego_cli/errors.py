"""Every exception that Protego raises on purpose, with its exit code and, for IKE, its NOTIFY.

An error's text says what happened, where (file, key, node, tunnel), and what to do about it. It never
carries key material.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """Exit codes of the `protego` command (documented in docs/cli.md)."""

    OK = 0
    FAILED = 1  # tried and failed; for `local`: a packet was lost, misdelivered or corrupted
    USAGE = 2  # wrong arguments or an invalid cluster file
    UNREACHABLE = 3  # no control node answered
    NOT_FOUND = 4  # no such tunnel or node
    ENVIRONMENT = 5  # this machine lacks something: a port, a capability, a file, a permission


INTERRUPTED: Final = 130  # by Ctrl-C, as shells have it: 128 + SIGINT


class ProtegoError(Exception):
    """Base of all errors that are reported to the user as one clear sentence."""

    exit_code: Exit = Exit.FAILED


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in the cluster file: where it is and what was expected there."""

    key: str  # dotted path, e.g. "tenants.acme.tunnels.hq.peer"
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class ConfigError(ProtegoError):
    """The cluster file is not valid; carries every problem found."""

    exit_code = Exit.USAGE

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{path}: {problem}" for problem in self.problems))


class UsageError(ProtegoError):
    """The command line asks for something that makes no sense."""

    exit_code = Exit.USAGE


class Unreachable(ProtegoError):
    """A node did not answer on the control channel."""

    exit_code = Exit.UNREACHABLE


class NotFound(ProtegoError):
    """The named tunnel or node does not exist."""

    exit_code = Exit.NOT_FOUND


class EnvironmentFault(ProtegoError):
    """This machine lacks something Protego needs; the text says what to do."""

    exit_code = Exit.ENVIRONMENT


class PluginError(ProtegoError):
    """A plugin could not be loaded, or two plugins claim one name."""

    exit_code = Exit.USAGE


class Refused(ProtegoError):
    """The other side understood the request and will not do it now (the text says why)."""


class StateError(ProtegoError):
    """Stored bytes that are not a state of this gateway, or one that this process must not take up."""


class Malformed(Exception):
    """Bytes from the network that do not parse. The only exception that leaves the parsers."""


class ProtocolError(Exception):
    """A message that parses but breaks the protocol; `notify` is the RFC 7296 3.10.1 type to answer with."""

    notify: int = 7  # INVALID_SYNTAX

    def __init__(self, detail: str, *, data: bytes = b"", protocol: int = 0, spi: bytes = b"") -> None:
        """`protocol` and `spi`: of the SA that it is about, where the NOTIFY says so (RFC 7296 3.10)."""
        super().__init__(detail)
        self.data = data
        self.protocol = protocol
        self.spi = spi


class InvalidSyntax(ProtocolError):
    notify = 7


class UnsupportedCriticalPayload(ProtocolError):
    notify = 1


class NoProposalChosen(ProtocolError):
    notify = 14


class InvalidKePayload(ProtocolError):
    notify = 17


class AuthenticationFailed(ProtocolError):
    notify = 24


class NoAdditionalSas(ProtocolError):
    notify = 35


class TsUnacceptable(ProtocolError):
    notify = 38


class TemporaryFailure(ProtocolError):
    notify = 43


class ChildSaNotFound(ProtocolError):
    notify = 44
