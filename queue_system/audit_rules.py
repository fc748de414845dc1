"""What is wrong with one operation or key, from what is kept of it: the invariants as pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from queue_system.broker.messages import AuditCounts, KeyFacts, OperationFacts
from queue_system.keys import is_queue
from queue_system.summary import unaccounted_from

CHECKS: Final = {
    "I1": "accepted = ready + delayed + in flight + done + failed + rejected + discarded",
    "I2": "an operation is in exactly the container that its state names",
    "I3": "fencing tokens are in order",
    "I4": "nothing that is done is, or will be, claimed again",
    "I5": "crashes and deliveries are bounded",
    "I6": "a deduplication key expires, and its holder was not given up",
    "I7": "no live operation expires, and every ended one does",
    "I8": "an operation ends done or failed, and not both",
    "depths": "the counters of depth by queue are those of the containers",
    "index": "the index of the ready queues names those that have something ready, and no others",
    "keys": "every key below the prefix is one of the queue's",
}
"""Each check with what it says: the invariants, and three more."""

STATES: Final = ("ready", "delayed", "leased", "done", "failed", "system_error")
LIVE: Final = frozenset({"ready", "delayed", "leased"})
CONTAINERS: Final = {"leased": "leases", "delayed": "delayed", "failed": "failures", "system_error": "system_errors"}
"""The sorted set of each state that has one; ready operations are in lists, done ones nowhere."""

_GIVEN_UP: Final = frozenset({"failures", "system_errors"})
_COUNTED: Final = {"d": "delayed", "l": "leases", "f": "failures"}
_SLACK_MS: Final = 1000  # between the expiry of a hash and the removal of its entry


class Problem(NamedTuple):
    """A kind of violation: which check it is of, and what to do about it."""

    check: str
    advice: str


_REQUEUE: Final = (
    "`queue-system explain ID` shows what is kept; enqueue it again under a new id if its work is to be done"
)
_HARMLESS: Final = "workers skip or drop such an id when they meet it: find out who writes to these keys by hand"

PROBLEMS: Final[Mapping[str, Problem]] = {
    "unaccounted": Problem(
        "I1",
        "operations were lost or written by hand, or the metrics hash was changed: the problems below may say which",
    ),
    "no_operation": Problem("I2", "find out who writes to these keys by hand; a worker moves it to the system errors"),
    "unknown_state": Problem("I2", "no script takes it from there: was it written by hand, or by a newer version?"),
    "incomplete": Problem("I2", "was it written by hand? A worker moves what has no body to the system errors"),
    "missing": Problem("I2", f"no worker will find it. {_REQUEUE}"),
    "elsewhere": Problem("I2", _HARMLESS),
    "stray": Problem("I2", "its hash was deleted or evicted (maxmemory-policy must be noeviction): its work is lost"),
    "twice": Problem("I2", _HARMLESS),
    "wrong_list": Problem(
        "I2", "it runs with the workers of the other queue: find out who writes to the lists by hand"
    ),
    "no_token": Problem("I3", "no worker can settle it: its lease ends, and another one runs it again"),
    "token_ahead": Problem(
        "I3", "the counter was deleted or restored: set it above the highest token before workers go on"
    ),
    "claimed_after_done": Problem("I4", _HARMLESS),
    "too_many_crashes": Problem("I5", "is --max-crashes that of the workers? Else no worker reaps: is one alive?"),
    "counts": Problem("I5", "was it written by hand? Its attempts and deliveries cannot both be right"),
    "dedup_forever": Problem("I6", "it refuses all operations with this key for ever: delete it, or give it an expiry"),
    "dedup_after_failure": Problem("I6", "it refuses operations with this key until it expires: delete it"),
    "live_expires": Problem("I7", "it will be lost: remove the expiry with PERSIST, and find out who has set it"),
    "ended_forever": Problem("I7", "it is kept for ever: `queue-system failures purge` for a failure, else DEL"),
    "ended_twice": Problem("I8", "it counts as more than one ending: find out who writes to these keys by hand"),
    "depth_total": Problem("depths", "only the metrics by queue are wrong; they right themselves when it is empty"),
    "depth_of_queue": Problem("depths", "only the metrics by queue are wrong; they right themselves when it is empty"),
    "wrong_index": Problem(
        "index",
        "workers put it right within a minute: does one run, and is a worker or producer of an old version about?",
    ),
    "unknown_key": Problem("keys", "whose is it? Another program, or a longer prefix, should not share this one"),
    "wrong_type": Problem("keys", "commands on it fail: move it away with RENAME, and find out who has written it"),
    "forever": Problem("keys", "it should expire: delete it when nothing of that name runs any more"),
    "unregistered": Problem("keys", "no worker looks there: enqueue once to that queue, and workers find it"),
}
"""Every kind of violation, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the invariants are checked with: `max_crashes` of the workers, retention (ms) of what was given up."""

    max_crashes: int
    retention: int


class Fault(NamedTuple):
    """One violation: its kind in `PROBLEMS`, the id or key that it is about, and what was seen."""

    problem: str
    subject: str
    detail: str


# Operations


def faults_of(facts: OperationFacts, limits: Limits) -> Iterator[Fault]:
    """What is wrong with one operation; whether a ready one is in its list is not known here."""
    if facts.key_type == "none":
        yield from _stray(facts, limits)
    elif facts.key_type != "hash":
        yield Fault("no_operation", facts.operation_id, "its key is no hash")
    elif facts.state not in STATES:
        yield Fault("unknown_state", facts.operation_id, f"state {facts.state!r}")
    else:
        yield from _place(facts)
        yield from _expiry(facts)
        yield from _numbers(facts, limits)


def _stray(facts: OperationFacts, limits: Limits) -> Iterator[Fault]:
    """Entries whose hash is gone. Past the retention it goes first, and the entry with the next reaping."""
    for name in CONTAINERS.values():
        score = getattr(facts, name)
        old = name in _GIVEN_UP and score and float(score) <= facts.now - limits.retention + _SLACK_MS
        if score and not old:
            yield Fault("stray", facts.operation_id, f"in {name}, and there is no such operation")


def _place(facts: OperationFacts) -> Iterator[Fault]:
    own, state = CONTAINERS.get(facts.state), facts.state
    if own and not getattr(facts, own):
        yield Fault("missing", facts.operation_id, f"{state}, and not in {own}")
    for name in CONTAINERS.values():
        if name != own and getattr(facts, name):
            yield Fault(_kind_of_double(state, name), facts.operation_id, f"{state}, and in {name}")
    if state in LIVE and not facts.body_size:
        yield Fault("incomplete", facts.operation_id, f"{state}, and has no body")
    # A worker adds the queue to what was written into a list by hand.
    if state in {"delayed", "leased"} and not facts.queue:
        yield Fault("incomplete", facts.operation_id, f"{state}, and has no queue")


def _kind_of_double(state: str, container: str) -> str:
    if container in _GIVEN_UP and state not in LIVE:
        return "ended_twice"
    return "claimed_after_done" if state == "done" else "elsewhere"


def _expiry(facts: OperationFacts) -> Iterator[Fault]:
    live = facts.state in LIVE
    if live and facts.ttl >= 0:
        yield Fault("live_expires", facts.operation_id, f"{facts.state}, and expires in {facts.ttl / 1000:.0f} s")
    elif not live and facts.ttl < 0:
        yield Fault("ended_forever", facts.operation_id, f"{facts.state}, and has no expiry")


def _numbers(facts: OperationFacts, limits: Limits) -> Iterator[Fault]:
    try:
        token, deliveries = int(facts.token or 0), int(facts.deliveries or 0)
        attempts, crashes = int(facts.attempts or 0), int(facts.crashes or 0)
        latest = int(facts.latest_token)
    except ValueError:
        yield Fault("counts", facts.operation_id, "one of its counts is no number")
        return
    if facts.state == "leased" and not token:
        yield Fault("no_token", facts.operation_id, "leased without a token")
    if token > latest:
        yield Fault("token_ahead", facts.operation_id, f"token {token}, and the latest one given is {latest}")
    if crashes > limits.max_crashes + 1:
        yield Fault("too_many_crashes", facts.operation_id, f"{crashes} crashes, and {limits.max_crashes} are allowed")
    if min(deliveries, attempts, crashes) < 0 or deliveries < attempts + crashes:
        # Each delivery ends in an attempt that has ended, or in a crash, or in neither.
        seen = f"{deliveries} deliveries, {attempts} attempts, {crashes} crashes"
        yield Fault("counts", facts.operation_id, seen)


def fault_in_list(operation_id: str, queue: str, state: str, its_queue: str) -> Fault:
    """What is wrong with an id in the ready list of `queue` whose hash says something else."""
    if state == "-":
        return Fault("stray", operation_id, f"in {queue}, and there is no such operation")
    if state == "!":
        return Fault("no_operation", operation_id, f"in {queue}, and its key is no hash")
    if state == "ready":
        return Fault("wrong_list", operation_id, f"in {queue}, and it is of {its_queue}")
    if state not in STATES:
        return Fault("unknown_state", operation_id, f"in {queue}, state {state!r}")
    kind = "claimed_after_done" if state == "done" else "elsewhere"
    return Fault(kind, operation_id, f"{state}, and in {queue}")


# Keys

_FIXED: Final = {
    "leases": "zset",
    "delayed": "zset",
    "failures": "zset",
    "system_errors": "zset",
    "registry": "hash",
    "registry:version": "string",
    "metrics": "hash",
    "depths": "hash",
    "sizes": "hash",
    "workers": "zset",
    "wake": "zset",
    "wake:sync": "zset",
    "ready": "zset",
    "ready:sync": "zset",
    "reaper": "zset",
    "token": "string",
}
FIXED_NAMES: Final = tuple(_FIXED)
"""The keys of which there is one each, without the prefix."""

BROKEN: Final = "broken:"
_DEDUP: Final = re.compile(r"dedup:[0-9a-f]{64}")
_EXPIRING: Final = {"worker:": "hash", "sent:": "string", "ring:": "zset"}


def faults_of_key(facts: KeyFacts) -> Iterator[Fault]:
    """What is wrong with a key that is no operation's."""
    name = facts.name
    expected = _expected_type(name)
    if facts.key_type == "none":
        return
    if name.startswith(BROKEN):  # of any type: that is why it was moved there
        expected = facts.key_type
    if expected is None:
        yield Fault("unknown_key", name, f"a {facts.key_type} that the queue does not know")
    elif facts.key_type != expected:
        yield Fault("wrong_type", name, f"a {facts.key_type}, and not a {expected}")
    elif _DEDUP.fullmatch(name):
        yield from _dedup_faults(facts)
    elif name.startswith((BROKEN, *_EXPIRING)) and facts.ttl < 0:
        yield Fault("forever", name, "it has no expiry")
    elif is_queue(name) and not facts.registered:
        yield Fault("unregistered", name, "a list of a queue that is not in the registry")


def _dedup_faults(facts: KeyFacts) -> Iterator[Fault]:
    if facts.ttl < 0:
        yield Fault("dedup_forever", facts.name, f"of {facts.holder}, and has no expiry")
    if facts.holder_state == "failed":
        yield Fault("dedup_after_failure", facts.name, f"of {facts.holder}, which was given up")


def _expected_type(name: str) -> str | None:
    if is_queue(name):
        return "list"
    if _DEDUP.fullmatch(name):
        return "string"
    kind = next((kind for start, kind in _EXPIRING.items() if name.startswith(start)), None)
    return kind or _FIXED.get(name)


# Sums


def faults_of_counts(counts: AuditCounts) -> Iterator[Fault]:
    """What is wrong with the sums of one instant."""
    left = unaccounted_from(counts.metrics, sum(counts.queues.values()) + counts.delayed + counts.leased)
    if left:
        what = f"{left} of the accepted are nowhere" if left > 0 else f"{-left} more than were accepted"
        yield Fault("unaccounted", "accepted", what)
    lengths = _lengths(counts)
    for letter, name in _COUNTED.items():
        counted = sum(_number(value) for field, value in counts.depths.items() if field.startswith(f"{letter}:"))
        if counted != lengths[name]:
            yield Fault("depth_total", name, f"the counters say {counted}, and there are {lengths[name]}")
    for queue, what in sorted(counts.index.items()):
        yield Fault("wrong_index", queue, what)


def faults_of_depths(counts: AuditCounts, tallies: Mapping[str, Mapping[str, int]]) -> Iterator[Fault]:
    """What is wrong with the counters by queue, held against what was counted container by container, all at rest.

    Not where a container has what does not belong there: that is the problem then.
    """
    lengths = _lengths(counts)
    for letter, name in _COUNTED.items():
        if sum(tallies.get(name, {}).values()) != lengths[name]:
            continue
        counted = {
            field[2:]: _number(value) for field, value in counts.depths.items() if field.startswith(f"{letter}:")
        }
        there = tallies.get(name, {})
        for queue in sorted(counted.keys() | there.keys()):
            if counted.get(queue, 0) != there.get(queue, 0):
                detail = f"{name}: the counter says {counted.get(queue, 0)}, and there are {there.get(queue, 0)}"
                yield Fault("depth_of_queue", f"{name} of {queue}", detail)


def _lengths(counts: AuditCounts) -> dict[str, int]:
    return {"delayed": counts.delayed, "leases": counts.leased, "failures": counts.failures}


def _number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        return 0
