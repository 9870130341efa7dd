"""What an operator asks about the pool of GPNs, and about the jobs that the GMN does for him."""

from __future__ import annotations

import msgspec

from protego_cli.control.channel.message import Amount, Reply, Request


class Drain(Request, frozen=True):
    """Empty a GPN; the answer is the state of the job that does it."""

    node: str


class Undrain(Request, frozen=True):
    """Let a GPN take tunnels again."""

    node: str


class Undrained(Reply, frozen=True):
    node: str
    was_draining: bool


class Rebalance(Request, frozen=True):
    """Apply a packing policy (the cluster file's when left out) to the whole placement."""

    policy: str | None = None
    dry_run: bool = False


class PlannedMove(msgspec.Struct, frozen=True):
    tunnel: str
    source: str
    to: str
    load: float


class Plan(Reply, frozen=True):
    policy: str
    moves: tuple[PlannedMove, ...]
    job: str | None  # that makes them; None for none


class GetJob(Request, frozen=True):
    """How far a job is; answered when that is newer than `revision`, or after `wait` seconds."""

    id: str
    revision: int = -1
    wait: Amount = 0.0


class StopJob(Request, frozen=True):
    """Begin nothing more of a job."""

    id: str


class GetPlan(Request, frozen=True):
    """What the elastic controller would do now."""


class ElasticPlan(Reply, frozen=True):
    """What a consolidation would come to by the present loads."""

    mode: str
    policy: str
    obstacle: str  # why nothing may move now
    moves: tuple[PlannedMove, ...]
    launch: tuple[str, ...]  # GPNs that the moves need
    retire: tuple[str, ...]  # GPNs that would be empty
    waiting: tuple[PlannedMove, ...]  # decided before, until their GPNs are up


class GetPools(Request, frozen=True):
    """The pools and their nodes."""


class PoolNodeStatus(msgspec.Struct, frozen=True):
    name: str
    state: str  # "launching", "up", "leaving", "retiring"
    since: float  # wall time
    connected: bool
    tunnels: int
    load: float  # as in NodeStatus
    note: str  # what is in the way, or what its provisioner says of it


class PoolStatus(msgspec.Struct, frozen=True):
    name: str
    provisioner: str
    minimum: int
    maximum: int
    nodes: tuple[PoolNodeStatus, ...]


class Pools(Reply, frozen=True):
    mode: str  # of [elastic]
    pools: tuple[PoolStatus, ...]


class MakeToken(Request, frozen=True):
    """A token with which a node of a pool joins: that of this name, or the first that has no certificate."""

    pool: str
    node: str | None = None
    valid: Amount = 900.0  # seconds


class JoinToken(Reply, frozen=True):
    node: str
    token: str
    expires: float  # wall time


PoolRequest = Drain | Undrain | Rebalance | GetJob | StopJob | GetPools | GetPlan | MakeToken


class JobFault(msgspec.Struct, frozen=True):
    subject: str
    reason: str


class JobStatus(Reply, frozen=True):
    """Work of the GMN that goes on whether or not anybody watches."""

    id: str
    kind: str  # "drain", "rebalance"
    subject: str
    state: str  # "running", "done", "stopped", "failed"
    total: int
    done: int
    failed: tuple[JobFault, ...]
    note: str  # what it is at, or why it failed
    seconds: float
    revision: int


PoolReply = Undrained | Plan | Pools | ElasticPlan | JoinToken | JobStatus
