"""Whether the invariants hold on a live Redis: `audit`. It reads, and changes nothing.

What a look from outside can say. A script sees one instant, and so does each call here: at most 250 ids, with all that
is kept of them. What such a call sees is a violation whatever moves before and after it. Two things are put together
from several calls: that a ready operation is in no list, and that an id is in a list twice. The first is proven by a
walk over all lists between two looks at an operation that was ready all the time; the second by a script that sees
both places at once. Everything that looks wrong is looked at twice more, with a pause before, and told only if it is
still so.

What it cannot say. Invariants about history (a stale token was refused, nothing was claimed after done, every accepted
id has ended) leave traces only while something is kept of the operation. Checked are those traces: tokens above the
counter, a lease without a token, an id that is done and in a container, an id that has ended twice. Of an operation
that is done and forgotten the sums alone tell (I1). An operation that moves all the time may be missed.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from queue_system.audit_rules import (
    BROKEN,
    CHECKS,
    CONTAINERS,
    FIXED_NAMES,
    PROBLEMS,
    Fault,
    Limits,
    fault_in_list,
    faults_of,
    faults_of_counts,
    faults_of_depths,
    faults_of_key,
)
from queue_system.broker.messages import AUDIT_STEP, AuditCounts, KeyFacts, OperationFacts
from queue_system.checks import check_count
from queue_system.config import QueueConfig
from queue_system.keys import is_queue

T = TypeVar("T")

DEFAULT_MAX_CRASHES: Final = 3
PAUSE: Final = 0.2
"""Seconds before each further look at what looks wrong."""

_LOOKS: Final = 2
_MAX_SUSPECTS: Final = 10_000  # of each kind: they are kept in memory, and looked at again
_MORE_PAGES: Final = 20  # that are read of a list, beyond twice its length at the start
_MAX_TWICE: Final = 200  # ids that are looked for in two places, a look: 1 ms of Redis each

Progress = Callable[[str, int, int], None]
"""Is told what is being read (``lists``, ``containers``, ``keys``, ``second look``), how many, of about how many."""


@dataclass(frozen=True, slots=True)
class Example:
    """One violation: the id or key (without the prefix) that it is about, and what was seen."""

    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProblemReport:
    """Violations of one kind.

    Attributes:
        name: of the kind, one of `audit_rules.PROBLEMS`.
        found: how many were seen three times.
        unconfirmed: how many more looked the same and were not looked at again, being too many.
        advice: what to do.
        examples: some of them.
    """

    name: str
    found: int
    unconfirmed: int
    advice: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """One check: `name` and `title` as in `audit_rules.CHECKS`; without problems it holds."""

    name: str
    title: str
    problems: tuple[ProblemReport, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit has found.

    Attributes:
        checks: I1 to I8, ``depths``, ``index`` and ``keys``, in this order.
        operations: how many operations were looked at.
        keys: how many other keys.
        seconds: how long it took.
        notes: what is no violation, but good to know.
        complete: whether everything was looked at: not so when a key of the queue has the wrong type.
    """

    checks: tuple[CheckReport, ...]
    operations: int
    keys: int
    seconds: float
    notes: tuple[str, ...]
    complete: bool = True

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """A form that `json.dumps` takes."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


def audit(
    config: QueueConfig,
    *,
    max_crashes: int = DEFAULT_MAX_CRASHES,
    examples: int = 10,
    on_progress: Progress | None = None,
    pause: float = PAUSE,
) -> AuditReport:
    """Check the invariants on a live Redis, changing nothing; workers and producers may go on.

    It reads every key once: Redis is busy with it for about half of the time, a few milliseconds a call.

    Args:
        config: the queue. Its `backup_ttl` should be that of the workers.
        max_crashes: that of the workers.
        examples: how many violations of each kind are told in full.
        on_progress: see `Progress`.
        pause: seconds before each further look at what looks wrong.

    Raises:
        ConfigurationError: `max_crashes` or `examples` is below 0.
        BrokerUnavailableError: Redis cannot serve now.
        BrokerReplyError: it refuses, for instance a user who may not read.
    """
    limits = Limits(check_count("max_crashes", max_crashes, least=0), round(config.backup_ttl * 1000))
    check_count("examples", examples, least=0)
    auditor = _Auditor(_Reader(config, on_progress or (lambda *_: None)), limits, pause)
    return auditor.report(examples)


@dataclass(slots=True)
class _Suspects:
    """What looks wrong: by kind and subject, at most `_MAX_SUSPECTS` of each kind; beyond that they are counted."""

    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    in_lists: set[str] = field(default_factory=set)
    beyond: Counter[str] = field(default_factory=Counter)
    _kept: Counter[str] = field(default_factory=Counter)

    def add(self, fault: Fault, *, in_lists: bool = False) -> bool:
        """Take one in; false when there are too many. `in_lists`: the lists have to be read to see it again."""
        key = (fault.problem, fault.subject)
        if key not in self.faults:
            if self._kept[fault.problem] >= _MAX_SUSPECTS:
                self.beyond[fault.problem] += 1
                return False
            self._kept[fault.problem] += 1
        self.faults[key] = fault
        if in_lists:
            self.in_lists.add(fault.subject)
        return True

    def add_all(self, faults: Iterable[Fault]) -> None:
        """Take in what can be seen again without the lists."""
        for fault in faults:
            self.add(fault)

    def of(self, *checks: str) -> list[Fault]:
        """Those of the given checks."""
        return [fault for fault in self.faults.values() if PROBLEMS[fault.problem].check in checks]

    def only(self, seen: Iterable[Fault]) -> _Suspects:
        """Those that were seen again."""
        again = {(fault.problem, fault.subject): fault for fault in seen}
        kept = {key: again[key] for key in self.faults if key in again}
        subjects = {subject for _, subject in kept}
        return _Suspects(kept, self.in_lists & subjects, self.beyond)


_OF_OPERATIONS: Final = ("I2", "I3", "I4", "I5", "I7", "I8")
_OF_KEYS: Final = ("I6", "keys")


class _Reader:
    """Reads Redis, call by call."""

    def __init__(self, config: QueueConfig, tell: Progress) -> None:
        self._run, self._calls, self._keys = config.broker.run, config.commands, config.keys
        self.tell = tell
        self.unread: set[str] = set()

    def counts(self) -> AuditCounts:
        return self._run(self._calls.audit_counts())

    def operations(self, ids: Sequence[str]) -> Iterator[OperationFacts]:
        for some in _chunks(ids):
            yield from self._run(self._calls.audit_operations(some))

    def keys(self, names: Sequence[str]) -> Iterator[KeyFacts]:
        for some in _chunks(names):
            yield from self._run(self._calls.audit_keys(some))

    def scan(self, key_type: str | None = None) -> Iterator[list[str]]:
        """Names of keys, without the prefix."""
        cursor = None
        while cursor != 0:
            cursor, keys = self._run(self._calls.scan(cursor or 0, key_type=key_type))
            yield [key[len(self._keys.prefix) :] for key in keys]

    def members(self, state: str) -> Iterator[tuple[int, list[str], dict[str, int]]]:
        """Steps over the sorted set of a state: how many it saw, who is not in that state, how many of each queue."""
        key, cursor = f"{self._keys.prefix}{CONTAINERS[state]}", None
        while cursor != 0:
            step = self._run(self._calls.audit_members(key, state, cursor or 0))
            cursor = step.cursor
            yield step.seen, step.strays, step.by_queue

    def pages(self, name: str) -> Iterator[tuple[int, list[str], list[tuple[str, str, str]]]]:
        """Pages of a ready list from its tail on: place of the first id counted from the tail, ids, strays.

        It ends at the head, or when the tail grows faster than this can read: then the list is one of `unread`.
        """
        number, limit = 0, 1
        while number < limit:
            page = self._run(self._calls.audit_list(name, number))
            if page.ids:
                yield number * AUDIT_STEP + len(page.ids), page.ids, page.strays
            if len(page.ids) < AUDIT_STEP:
                return
            if number == 0:
                limit = 2 * page.length // AUDIT_STEP + _MORE_PAGES
            number += 1
        self.unread.add(name)

    def twice(self, name: str, operation_id: str, places: tuple[int, int]) -> bool:
        return self._run(self._calls.audit_twice(name, operation_id, places))


class _Auditor:
    """One audit: a pass over everything, then further looks at what looks wrong."""

    def __init__(self, reader: _Reader, limits: Limits, pause: float) -> None:
        self._read = reader
        self._limits = limits
        self._pause = pause
        self._suspects = _Suspects()
        self._ready: dict[str, tuple[str, str]] = {}  # ready and in no list: when accepted, and its token
        self._operations = self._other_keys = self._broken = 0

    def report(self, examples: int) -> AuditReport:
        """Do it all."""
        began = time.monotonic()
        unreadable = [fault for fault in self._key_faults(FIXED_NAMES) if fault.problem == "wrong_type"]
        notes = ["not everything was looked at: a key of the queue has the wrong type"] if unreadable else []
        if unreadable:
            self._suspects.add_all(unreadable)
        else:
            counts, at_rest = self._pass_over_everything()
            for _ in range(_LOOKS if self._suspects.faults else 0):
                time.sleep(self._pause)
                self._suspects = self._suspects.only(list(self._look_again()))
            notes += self._notes(counts, at_rest=at_rest)
        return AuditReport(
            checks=tuple(_check_report(name, self._suspects, examples) for name in CHECKS),
            operations=self._operations,
            keys=self._other_keys,
            seconds=round(time.monotonic() - began, 3),
            notes=tuple(notes),
            complete=not unreadable,
        )

    # The first pass

    def _pass_over_everything(self) -> tuple[AuditCounts, bool]:
        """Read everything once; what looks wrong goes to the suspects. Returns the counts, and if nothing has moved."""
        before = self._read.counts()
        self._suspects.add_all(faults_of_counts(before))
        in_lists = self._read_lists(sum(before.queues.values()))
        tallies = self._read_containers(before, self._suspects)
        self._read_keys(in_lists, before)
        after = self._read.counts()
        at_rest = _unmoved(before, after)
        if at_rest:
            self._suspects.add_all(faults_of_depths(before, tallies))
        return after, at_rest

    def _read_lists(self, expected: int) -> set[int]:
        """Read all ready lists. Returns the hashes of their ids: 60 MB for a million, where texts would be twice that.

        Two ids of one hash (one in 10 million audits of a million) hide a missing one.
        """
        seen: set[int] = set()
        for name in self._lists():
            for _, ids, strays in self._read.pages(name):
                for operation_id, state, queue in strays:
                    self._suspects.add(fault_in_list(operation_id, name, state, queue), in_lists=True)
                for operation_id in ids:
                    known = hash(operation_id)
                    if known in seen:
                        self._suspects.add(_twice(operation_id, name), in_lists=True)
                    seen.add(known)
                self._read.tell("lists", len(seen), expected)
        return seen

    def _lists(self) -> list[str]:
        return sorted({name for names in self._read.scan("list") for name in names if is_queue(name)})

    def _read_containers(self, counts: AuditCounts, suspects: _Suspects) -> dict[str, Counter[str]]:
        """Read all sorted sets of ids. Returns how many operations each has of each queue."""
        expected = counts.delayed + counts.leased + counts.failures + counts.system_errors
        tallies: dict[str, Counter[str]] = defaultdict(Counter)
        done = 0
        for state, container in CONTAINERS.items():
            for seen, strays, by_queue in self._read.members(state):
                tallies[container].update(by_queue)
                suspects.add_all(self._operation_faults(strays))
                done += seen
                self._read.tell("containers", done, expected)
        return tallies

    def _read_keys(self, in_lists: set[int], counts: AuditCounts) -> None:
        """Read every key below the prefix."""
        kept = sum(counts.queues.values()) + counts.delayed + counts.leased + counts.failures + counts.system_errors
        for names in self._read.scan():
            ids = [name[3:] for name in names if name.startswith("op:")]
            others = [name for name in names if not name.startswith("op:")]
            for facts in self._read.operations(ids):
                self._take(facts, in_lists)
            self._suspects.add_all(self._key_faults(others))
            self._broken += sum(name.startswith(BROKEN) for name in others)
            self._operations += len(ids)
            self._other_keys += len(others)
            self._read.tell("keys", self._operations, kept)

    def _take(self, facts: OperationFacts, in_lists: set[int]) -> None:
        self._suspects.add_all(faults_of(facts, self._limits))
        in_no_list = facts.state == "ready" and hash(facts.operation_id) not in in_lists
        if in_no_list and self._suspects.add(_in_no_list(facts), in_lists=True):
            self._ready[facts.operation_id] = _life(facts)

    def _notes(self, counts: AuditCounts, *, at_rest: bool) -> Iterator[str]:
        if not at_rest:
            yield "operations moved meanwhile: of the counters of depth only the totals were checked, not each queue"
        if counts.left_behind:
            yield f"{counts.left_behind} leases ended over a minute ago, and no worker takes them back: is one alive?"
        for name in sorted(self._read.unread):
            yield f"{name} grows faster than it could be read: whether all its ready operations are in it is not known"
        if self._broken:
            yield f"{self._broken} keys {BROKEN}* keep what stood at the keys of operations, and was none"

    # Further looks

    def _look_again(self) -> Iterator[Fault]:
        """What is still wrong with the suspects, and more."""
        self._read.tell("second look", 0, 0)
        sightings: dict[str, list[tuple[str, int]]] = defaultdict(list)
        if self._suspects.in_lists:
            yield from self._lists_again(sightings)
            yield from self._still_twice(sightings)
        facts = list(self._read.operations(sorted({fault.subject for fault in self._suspects.of(*_OF_OPERATIONS)})))
        for each in facts:
            yield from faults_of(each, self._limits)
        yield from self._still_in_no_list(facts, sightings)
        yield from self._key_faults(sorted({fault.subject for fault in self._suspects.of(*_OF_KEYS)}))
        yield from self._sums_again()

    def _lists_again(self, sightings: dict[str, list[tuple[str, int]]]) -> Iterator[Fault]:
        """Read all lists again, and note where suspects are seen: list and place, counted from the tail."""
        for name in self._lists():
            for first, ids, strays in self._read.pages(name):
                for i, operation_id in enumerate(ids):
                    if operation_id in self._suspects.in_lists:
                        sightings[operation_id].append((name, first - i))
                for operation_id, state, queue in strays:
                    yield fault_in_list(operation_id, name, state, queue)

    def _still_twice(self, sightings: dict[str, list[tuple[str, int]]]) -> Iterator[Fault]:
        """What is added while a list is read moves the others, which are then seen twice: so a script looks at both."""
        suspected = [fault.subject for fault in self._suspects.faults.values() if fault.problem == "twice"]
        pairs = [(each, pair) for each in suspected if (pair := _in_one_list(sightings.get(each, ())))]
        for operation_id, (name, places) in pairs[:_MAX_TWICE]:
            if self._read.twice(name, operation_id, places):
                yield _twice(operation_id, name)
        self._suspects.beyond["twice"] += len(pairs[_MAX_TWICE:])

    def _still_in_no_list(
        self, facts: Iterable[OperationFacts], sightings: dict[str, list[tuple[str, int]]]
    ) -> Iterator[Fault]:
        """Ready before the lists were read and after, without a claim in between, and not seen in any."""
        before, self._ready = self._ready, {}
        for each in facts:
            life = _life(each)
            still = each.state == "ready" and before.get(each.operation_id) == life
            if still and each.operation_id not in sightings and each.queue not in self._read.unread:
                self._ready[each.operation_id] = life
                yield _in_no_list(each)

    def _sums_again(self) -> Iterator[Fault]:
        if not self._suspects.of("I1", "depths", "index"):
            return
        before = self._read.counts()
        yield from faults_of_counts(before)
        if any(fault.problem == "depth_of_queue" for fault in self._suspects.of("depths")):
            tallies = self._read_containers(before, _Suspects())
            if _unmoved(before, self._read.counts()):
                yield from faults_of_depths(before, tallies)

    # Shared

    def _operation_faults(self, ids: Sequence[str]) -> Iterator[Fault]:
        for facts in self._read.operations(ids):
            yield from faults_of(facts, self._limits)

    def _key_faults(self, names: Sequence[str]) -> Iterator[Fault]:
        for facts in self._read.keys(names):
            yield from faults_of_key(facts)


def _life(facts: OperationFacts) -> tuple[str, str]:
    """What changes when an operation is claimed, or ends and comes again under its id."""
    return facts.accepted_at, facts.token


def _in_no_list(facts: OperationFacts) -> Fault:
    return Fault("missing", facts.operation_id, f"ready, and not in the list of {facts.queue or 'any queue'}")


def _twice(operation_id: str, name: str) -> Fault:
    return Fault("twice", operation_id, f"more than once in {name}")


def _in_one_list(seen: Sequence[tuple[str, int]]) -> tuple[str, tuple[int, int]] | None:
    """The first list in which there are two sightings, and their places."""
    places: dict[str, int] = {}
    for name, place in seen:
        if name in places:
            return name, (places[name], place)
        places[name] = place
    return None


def _unmoved(before: AuditCounts, after: AuditCounts) -> bool:
    """Whether no operation has moved between two looks: every claim takes a token, and all else is counted."""
    return dataclasses.replace(before, now=0.0, left_behind=0) == dataclasses.replace(after, now=0.0, left_behind=0)


def _check_report(name: str, suspects: _Suspects, examples: int) -> CheckReport:
    by_problem: dict[str, list[Fault]] = defaultdict(list)
    for fault in suspects.of(name):
        by_problem[fault.problem].append(fault)
    problems = tuple(
        ProblemReport(
            problem,
            len(by_problem[problem]),
            suspects.beyond[problem],
            PROBLEMS[problem].advice,
            tuple(Example(fault.subject, fault.detail) for fault in by_problem[problem][:examples]),
        )
        for problem in PROBLEMS
        if problem in by_problem
    )
    return CheckReport(name, CHECKS[name], problems)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), AUDIT_STEP):
        yield items[start : start + AUDIT_STEP]
