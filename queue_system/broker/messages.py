"""What goes between the queue and its scripts: calls, and what is read out of their replies."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, Self, TypeAlias, TypeVar

import msgspec

from queue_system.broker.lanes import Lane
from queue_system.errors import QueueError

T = TypeVar("T")

Meanwhile: TypeAlias = Callable[[], object]
"""What the caller has to do anyway, and can do while Redis is at work: called before the replies are read, and again if
the call is sent again.
"""


def nothing() -> None:
    """What there is to do meanwhile, mostly."""


MAX_ENQUEUE: Final = 1000  # operations a call: Lua's unpack is safe up to there, and 1,000 take about 15 ms of Redis
MAX_CLAIM: Final = 400
MAX_COMPLETE: Final = 300
MAX_RENEW: Final = 500
PURGE_STEP: Final = 500
REAP_LIMIT: Final = 100
AUDIT_STEP: Final = 250  # ids that one call of an audit looks at: 2 ms of Redis
AUDIT_WINDOW: Final = 5000  # places by which the tail of a list may move while an audit looks at it
SEARCH_LIMIT: Final = 50_000  # ids among which the place of an operation is looked for: 1 ms of Redis, or less

# The kinds of a queue's processors, as the scripts know them.
KIND_ASYNC: Final = "a"
KIND_SYNC: Final = "s"
KIND_MIXED: Final = "m"  # both
KIND_UNKNOWN: Final = "u"  # the producer does not know, and no worker has seen one yet


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One request: a script's name with keys and arguments, or (no keys) a plain command.

    `idempotent`: may be sent again when its reply was lost. A claim must not: its lease expires instead.
    `lane`: what makes an enqueue idempotent.
    `refused`: makes the result out of an error that stands in for the reply; None when that is to be raised.
    """

    name: str
    keys: tuple[str, ...]
    args: Sequence[Any]
    parse: Callable[[Any], T]
    idempotent: bool = True
    plain: bool = False
    lane: Lane | None = None
    refused: Callable[[QueueError], T] | None = None


class Accepted(enum.Enum):
    """What the enqueue script said of one operation."""

    QUEUED = "queued"
    SCHEDULED = "scheduled"
    DUPLICATE_ID = "duplicate_id"
    DUPLICATE_KEY = "duplicate_key"


class Holder(str):
    """The id of the operation that a duplicate has met, and where that one belongs.

    Attributes:
        name: its ``{priority}:{queue}``; empty when that is not known.
        processor: the name of its function; empty when that is not known.
    """

    __slots__ = ("name", "processor")

    name: str
    processor: str

    def __new__(cls, operation_id: str, name: str = "", processor: str = "") -> Self:
        """See the class."""
        holder = super().__new__(cls, operation_id)
        holder.name, holder.processor = name, processor
        return holder


class NewOperation(msgspec.Struct, frozen=True):
    """An encoded operation on its way in. `delay` and `dedup_window` are in seconds."""

    operation_id: str
    body: bytes
    delay: float = 0.0
    deduplication_key: str | None = None
    dedup_window: float = 0.0


class Delivery(msgspec.Struct, gc=False):
    """One claim of one operation: what the worker holds while its lease lasts. Times in seconds, clock of Redis.

    `token` is unique for ever; `deliveries` counts the claims of this operation, this one included.
    """

    operation_id: str
    ready_key: str
    token: int
    deliveries: int
    attempts: int
    crashes: int
    exhaustions: int
    first_attempt_time: float  # when its processor was first called; 0 when it never was
    ready_at: float
    accepted_at: float
    claimed_at: float
    previous_trace: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ReadyQueue:
    """One list of ready operations, and its processors' kind: ``a`` async, ``s`` sync, ``m`` both, ``u`` unknown."""

    queue: str
    priority: str
    kind: str
    key: str


class Claimed(msgspec.Struct, frozen=True):
    """A claim's reply. `next_due` is in seconds from now, None when nothing is delayed.

    `kinds`: those of the queues that the deliveries came from, by the key of their list: ``a`` async, ``s`` sync, ``m``
    both, ``u`` unknown.
    `alone_for`: the only delivery is a suspect, which is to run alone for so many seconds; 0 when it is none.
    `suspect_waits`: there is one at the head of a queue, which was not to be taken.
    """

    now: float
    deliveries: list[Delivery]
    next_due: float | None
    more_async: bool
    more_sync: bool
    kinds: dict[str, str] = msgspec.field(default_factory=dict)
    alone_for: float = 0.0
    suspect_waits: bool = False


@dataclass(frozen=True, slots=True)
class Reaped:
    """A reaping's reply.

    How many went back, whether an outage's grace runs, whom to quarantine, and how many times that were later than can
    be true were put right.
    """

    returned: int
    in_grace: bool
    quarantined: list[Delivery]
    corrected: int = 0


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One entry of the failures or system errors as Redis keeps it."""

    operation_id: str
    queue: str
    state: str
    body: bytes
    attempts: int
    error: bytes
    history: list[bytes]
    failed_at: float


@dataclass(frozen=True, slots=True)
class Status:
    """All counts in one instant. `workers` are (id, threads, share of them busy)."""

    now: float
    queues: dict[str, int]
    delayed: int
    leased: int
    failures: int
    system_errors: int
    metrics: dict[str, str]
    workers: list[tuple[str, int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A live worker at its last heartbeat. `queues` are the only ones that it serves; None for all."""

    worker_id: str
    threads: int
    threads_active: int
    tasks: int
    tasks_busy: int
    queues: frozenset[str] | None
    claims: bool


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where an operation is. Times in seconds, clock of Redis; None where there is none.

    `key_type` is that of its key: ``hash``, ``none``, or what should not be there. `fields` are those of its hash,
    as ``common.lua`` lists them. `position` counts from 0, and is None where it was not found among the first
    `SEARCH_LIMIT` of the `length` ids of its list. `higher` has the queues of higher priority that are not empty:
    (name, kind, length). `worker_seen` is the last heartbeat of the worker of the last claim.
    """

    now: float
    key_type: str
    fields: dict[str, bytes]
    kind: str
    position: int | None
    length: int
    due: float | None
    lease_until: float | None
    worker_seen: float | None
    higher: list[tuple[str, str, int]]
    workers: list[WorkerRow]


@dataclass(frozen=True, slots=True)
class DepthRow:
    """One queue: how many operations are in each state, and since how many seconds the oldest ready one is due."""

    queue: str
    priority: str
    ready: int
    delayed: int
    leased: int
    failed: int
    oldest_age: float


@dataclass(frozen=True, slots=True)
class DepthReply:
    """Depth by queue, and the totals of the same instant."""

    queues: list[DepthRow]
    delayed: int
    leased: int
    failures: int
    system_errors: int
    metrics: dict[str, str]


@dataclass(frozen=True, slots=True)
class AuditCounts:
    """All counts in one instant. `depths` are the counters by queue, ``{letter}:{priority}:{queue}``.

    `left_behind` counts the leases that expired a while ago, and that nobody took back. `index` says by queue what is
    wrong with the index of what is ready.
    """

    now: float
    queues: dict[str, int]
    delayed: int
    leased: int
    failures: int
    system_errors: int
    metrics: dict[str, str]
    depths: dict[str, str]
    token: str
    left_behind: int
    index: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListPage:
    """Ids of one page of a ready list of `length`; `strays` are those that do not belong there: (id, state, queue).

    The state is empty without one, ``-`` when there is no such key, and ``!`` when that is no hash.
    """

    length: int
    ids: list[str]
    strays: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class MembersStep:
    """One step over a sorted set: `strays` are not in its state, `by_queue` counts those that are."""

    cursor: int
    seen: int
    strays: list[str]
    by_queue: dict[str, int]


class OperationFacts(NamedTuple):
    """One operation as it is kept, texts as they are (absent is empty). Times in milliseconds, clock of Redis.

    A tuple, because an audit makes a million of them. `key_type` is ``hash``, ``none`` or ``other``; `ttl` is -1
    without an expiry; the last scores are those in the sorted sets of these names, empty where it is not.
    """

    operation_id: str
    now: int
    latest_token: str
    key_type: str
    state: str
    queue: str
    token: str
    deliveries: str
    attempts: str
    crashes: str
    accepted_at: str
    body_size: int
    ttl: int
    leases: str
    delayed: str
    failures: str
    system_errors: str


class KeyFacts(NamedTuple):
    """A key that is no operation's. `name` is without the prefix; `ttl` in milliseconds, -1 without an expiry.

    `registered`: a known queue has that name. Of a dedup key: the `holder` that it names, and `holder_state` when
    that operation has this dedup key.
    """

    name: str
    key_type: str
    ttl: int
    registered: bool
    holder: str
    holder_state: str


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback to enqueue with its parent's outcome."""

    operation_id: str
    queue: str
    priority: str
    body: bytes


class Completion(msgspec.Struct, frozen=True):
    """One operation that ended well."""

    operation_id: str
    token: int
    kind: str  # "o" or "c"
    callback: Callback | None = None
