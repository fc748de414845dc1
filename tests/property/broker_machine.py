"""Drives the broker's scripts and their model side by side, and holds the one against the other after every step."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final, TypeVar

import hypothesis
import msgspec
import redis
from broker_model import GIVEN_UP, PRIORITIES, Held, Model, New, Operation
from broker_seen import LONG, SNAPSHOT, Seen, equal, same
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from queue_system.broker.commands import Commands
from queue_system.broker.messages import (
    Accepted,
    Call,
    Callback,
    Completion,
    Delivery,
    NewOperation,
    Status,
)
from queue_system.broker.scripts import Script
from queue_system.broker.sync import SyncBroker
from queue_system.errors import BrokerReplyError
from queue_system.keys import CALLBACK_QUEUE, Keys, dedup_digest
from queue_system.summary import unaccounted

T = TypeVar("T")

MAX_CRASHES: Final = 2
IDS: Final = tuple(f"op{number}" for number in range(8))
GHOSTS: Final = ("ghost0", "ghost1")
DEDUP_KEYS: Final = ("", "", "alpha", "beta")
KEY_OF_DIGEST: Final = {"": "", **{dedup_digest(key): key for key in DEDUP_KEYS if key}}
QUEUES: Final = (("high", "a"), ("normal", "a"), ("normal", "s"), ("normal", "m"), ("low", "m"))
EMPTY: Final = 6e15  # where the places of empty queues begin in the index
MAX_REMEMBERED: Final = 40
MAX_DRAIN: Final = 200  # suspects are claimed one by one
STEPS_OF_EXAMPLE: Final = 60
MAX_RUNS: Final = 20
SHORT_STEPS: Final = 4000

PICK: Final = st.integers(0, 255)
PICKS: Final = st.lists(PICK, min_size=1, max_size=3)
WORKER: Final = st.integers(0, 2)
FLAG: Final = st.booleans()
SLOTS: Final = st.integers(0, 4)
GIVEN_UP_STATE: Final = st.sampled_from(sorted(GIVEN_UP))
QUEUE: Final = st.sampled_from(QUEUES)


@dataclasses.dataclass(slots=True)
class Worker:
    """What a worker process remembers."""

    held: list[Held] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """What the examples share: the server, the scripts under test, and a tally of what they have met."""

    client: redis.Redis
    scripts: Mapping[str, Script]
    met: Counter[str] = dataclasses.field(default_factory=Counter)
    numbers: count[int] = dataclasses.field(default_factory=lambda: count(1))

    def run(self, steps: int, *, first_seed: int = 0, shrink: bool = True) -> None:
        """Run examples until so many steps were made; raises what an example has raised."""
        for seed in range(first_seed, first_seed + MAX_RUNS):
            if self.met["steps"] >= steps:
                return
            self._run_examples(math.ceil((steps - self.met["steps"]) / STEPS_OF_EXAMPLE), seed, shrink)
        raise AssertionError(f"only {self.met['steps']} steps of {steps} in {MAX_RUNS} runs")

    def _run_examples(self, number: int, seed: int, shrink: bool) -> None:
        run_state_machine_as_test(
            hypothesis.seed(seed)(lambda: BrokerMachine(self)),
            settings=settings(
                max_examples=number,
                stateful_step_count=STEPS_OF_EXAMPLE,
                phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
                report_multiple_bugs=False,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


class BrokerMachine(RuleBasedStateMachine):
    """Producers, three workers that may die and rise again, a reaper, an operator, and time itself."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.redis, self.met = bench.client, bench.met
        self.keys = Keys(f"p{next(bench.numbers)}:")
        self.commands = Commands(self.keys, answer_memory=LONG)
        self.broker = SyncBroker(bench.client, "test", scripts=dict(bench.scripts))
        self.snapshot = bench.client.register_script(SNAPSHOT)
        self.model = Model(MAX_CRASHES)
        self.workers = [Worker() for _ in range(3)]
        self.zombies: list[Held] = []  # claims that their worker has lost or settled, but not forgotten
        self.sent: list[tuple[Call[list[tuple[Accepted, str]]], list[tuple[str, str]]]] = []
        self.tokens: set[tuple[str, int]] = set()
        self.endings: dict[int, list[str]] = defaultdict(list)
        self.ranks, self.serials = count(1), count(1)
        self.sound = True  # the last step was checked to its end
        self.forgotten = False  # a failure's hash went before its entry: its queue cannot be told any more
        self.met["steps"] -= 1  # the invariants are also checked before the first step

    # -- producers and operators

    @rule(
        queue=QUEUE,
        other_kind=st.sampled_from(("", "", "", "", "", "a", "s", "m")),
        new=st.lists(st.tuples(PICK, st.sampled_from(DEDUP_KEYS), FLAG), min_size=1, max_size=4),
        settled=FLAG,
        lost=FLAG,
    )
    def enqueue(self, queue, other_kind, new, settled, lost):
        wanted = [New(_pick(IDS, pick), self._body(), delayed, key) for pick, key, delayed in new]
        self._enqueue(queue, other_kind or queue[1], wanted, settled=settled)
        if lost:
            self._send_again(self.sent[-1])

    @precondition(lambda self: self.sent)
    @rule(recent=st.integers(0, 9))
    def sent_again(self, recent):
        """Its reply was lost. What it has accepted may have come to any end by now, and changes no more."""
        self._send_again(self.sent[-1 - recent % len(self.sent)])

    @rule(pick=PICK)
    def purge_ready(self, pick):
        name = self._pick_queue(pick, [queue for queue, ids in self.model.ready.items() if ids])
        expected = self.model.purge_ready(name)
        equal("purged", self._ask(self.commands.purge_ready(*_queue_and_priority(name))), expected)

    @rule(pick=PICK)
    def purge_delayed(self, pick):
        name = self._pick_queue(pick, [self.model.operations[id_].queue for id_ in self.model.delayed])
        expected, taken, cursor = self.model.purge_delayed(name), 0, None
        while cursor != 0:
            cursor, more = self._ask(self.commands.purge_delayed(*_queue_and_priority(name), cursor or 0))
            taken += more
        equal("purged", taken, expected)

    @rule(state=GIVEN_UP_STATE, pick=PICK, any_id=st.integers(0, 3))
    def requeue(self, state, pick, any_id):
        operation_id = _pick([*self.model.operations, *IDS] if any_id == 0 else self._given_up(state), pick)
        expected = self.model.requeue(operation_id, state)
        call = self.commands.requeue_failure(operation_id, system_errors=state == "system_error")
        equal("requeued", self._ask(call), expected)
        self.met["requeued"] += expected

    @rule(state=GIVEN_UP_STATE, picks=PICKS, all_of_them=FLAG)
    def purge_failures(self, state, picks, all_of_them):
        choices = [*self._given_up(state), *IDS]
        self._purge_given_up(state, [] if all_of_them else [_pick(choices, pick) for pick in picks])

    # -- workers

    @rule(worker=WORKER, async_slots=SLOTS, sync_slots=SLOTS, left_out=st.integers(0, 511), lost=st.integers(0, 7),
          suspect=FLAG)  # fmt: skip
    def claim(self, worker, async_slots, sync_slots, left_out, lost, suspect):
        only = [name for index, name in enumerate(self.model.registry) if not left_out >> index & 1]
        self._claim(self.workers[worker], only, async_slots, sync_slots, lost=lost == 0, suspect=suspect)

    @rule(worker=WORKER, async_slots=SLOTS, sync_slots=SLOTS)
    def claim_all_queues(self, worker, async_slots, sync_slots):
        self._claim(self.workers[worker], (), async_slots, sync_slots)

    @rule(worker=WORKER, picks=PICKS, callback=FLAG, kept=FLAG, sent_twice=FLAG)
    def complete(self, worker, picks, callback, kept, sent_twice):
        at_work = self._at_work(worker)
        self._complete([_pick(at_work, pick) for pick in picks], callback, kept, sent_twice)

    @rule(worker=WORKER, pick=PICK, delayed=FLAG, exhausted=FLAG, sent_twice=FLAG)
    def retry(self, worker, pick, delayed, exhausted, sent_twice):
        self._retry(_pick(self._at_work(worker), pick), delayed, exhausted, sent_twice)

    @rule(worker=WORKER, pick=PICK, system_error=FLAG, callback=FLAG, sent_twice=FLAG)
    def fail(self, worker, pick, system_error, callback, sent_twice):
        held = self._quarantined(worker) or self._at_work(worker)
        self._fail(_pick(held, pick), system_error, callback, sent_twice)

    @rule(worker=WORKER, pick=PICK, delayed=FLAG)
    def release(self, worker, pick, delayed):
        self._release(_pick(self._at_work(worker), pick), delayed)

    @rule(worker=WORKER, late=PICKS)
    def renew(self, worker, late):
        stale = [_pick(self.zombies, pick) for pick in late if self.zombies]
        self._renew([*self.workers[worker].held, *stale])

    @rule(worker=WORKER, noticed=FLAG)
    def crash(self, worker, noticed):
        """It forgets all that it held. Noticed by another worker at once, or whenever."""
        self._at_work(worker)
        for held in self.workers[worker].held:
            self._remember(held)
            if noticed and self.model.holds(held):
                self._expire(held.id)
        self.workers[worker] = Worker()
        if noticed:
            self._reap(self.workers[worker - 1])

    @precondition(lambda self: self.zombies)
    @rule(pick=PICK, act=st.integers(0, 4), flags=st.tuples(FLAG, FLAG, FLAG))
    def act_late(self, pick, act, flags):
        held = _pick(self.zombies, pick)
        self.met["late but valid" if self.model.holds(held) else "late and stale"] += 1
        acts: list[Callable[[], None]] = [
            lambda: self._complete([held], *flags),
            lambda: self._retry(held, *flags),
            lambda: self._fail(held, *flags),
            lambda: self._release(held, flags[0]),
            lambda: self._renew([held]),
        ]
        acts[2 if held.quarantined else act]()

    # -- time

    @rule(worker=WORKER, picks=PICKS)
    def leases_expire(self, worker, picks):
        self._at_work(worker)
        for pick in picks if self.model.leases else ():
            self._expire(_pick(list(self.model.leases), pick))

    @rule(worker=WORKER, expire=st.lists(PICK, max_size=3))
    def reap(self, worker, expire):
        for pick in expire if self.model.leases else ():
            self._expire(_pick(list(self.model.leases), pick))
        self._reap(self.workers[worker])

    @rule()
    def outage(self):
        self.redis.zadd(self.keys.reaper, {"last": 1})
        self.model.outage = True

    @precondition(lambda self: self.model.grace)
    @rule()
    def grace_ends(self):
        self._end_grace()

    @precondition(lambda self: self.model.delayed)
    @rule(picks=PICKS)
    def delayed_become_due(self, picks):
        for pick in picks:
            self._make_due(_pick(list(self.model.delayed), pick))

    @rule(worker=WORKER, pick=PICK, queue=QUEUE, taken=FLAG, given_up=FLAG)
    def dedup_window_ends(self, worker, pick, queue, taken, given_up):
        """Its holder may still be live when another takes the key, and be given up then."""
        self._at_work(worker)
        if not self.model.dedup:
            return
        key = _pick(list(self.model.dedup), pick)
        holder = self.model.dedup.pop(key)
        self.redis.delete(self.keys.dedup(key))
        if taken:
            self._enqueue(queue, queue[1], [self._fresh(key)])
        for held in self._working(self.workers[worker]):
            if given_up and held.id == holder:
                self._fail(held, system_error=False, callback=False, sent_twice=False)

    @precondition(lambda self: self._in_state("done"))
    @rule(pick=PICK)
    def done_is_forgotten(self, pick):
        operation_id = _pick(self._in_state("done"), pick)
        del self.model.operations[operation_id]
        self.redis.delete(self.keys.operation(operation_id))

    @rule(state=GIVEN_UP_STATE, pick=PICK, queue=QUEUE, reused=FLAG, purged=FLAG)
    def given_up_is_forgotten(self, state, pick, queue, reused, purged):
        """The hash goes at once, its entry stays until a reaping. In between the id may be used anew."""
        operation_id = _pick(self._given_up(state), pick)
        if operation_id in self._in_state(state):
            del self.model.operations[operation_id]
            self.redis.delete(self.keys.operation(operation_id))
        self.model.given_up[state][operation_id] = True
        self.forgotten |= state == "failed"
        self.redis.zadd(self.keys.failures if state == "failed" else self.keys.system_errors, {operation_id: 1})
        if reused:
            self._enqueue(queue, queue[1], [New(operation_id, self._body())])
        if purged:
            self._purge_given_up(state, [])

    @rule()
    def scripts_are_flushed(self):
        self.redis.script_flush()

    # -- foreign hands

    @precondition(lambda self: self.model.registry)
    @rule(worker=WORKER, pick=PICK, queue=PICK, junk=FLAG)
    def stray_id_in_a_queue(self, worker, pick, queue, junk):
        """An id at the head of a queue that is no ready operation must not be leased."""
        others = [id_ for id_ in self.model.operations if not self.model.is_ready_or_due(id_)]
        ghosts = [ghost for ghost in GHOSTS if ghost not in self.model.operations]
        operation_id = _pick([*others, *ghosts] or ["nobody"], pick)
        if junk and operation_id in ghosts:
            self.redis.set(self.keys.operation(operation_id), "no hash")
        name = _pick([*self.model.registry], queue)
        self.redis.lpush(f"{self.keys.prefix}{name}", operation_id)
        self.model.stray(operation_id, name)
        self._claim_at(self.workers[worker], name)
        self.met["stray ids"] += 1

    @precondition(lambda self: self.model.registry and "hand" not in self.model.operations)
    @rule(worker=WORKER, queue=PICK, names_its_queue=FLAG)
    def operation_written_by_hand(self, worker, queue, names_its_queue):
        name, body = _pick(list(self.model.registry), queue), self._body()
        fields = {"st": "ready", "b": body, **({"q": name} if names_its_queue else {})}
        self.redis.hset(self.keys.operation("hand"), mapping=fields)
        self.redis.lpush(f"{self.keys.prefix}{name}", "hand")
        self.model.written_by_hand("hand", name, body)
        self._claim_at(self.workers[worker], name)
        self.met["written by hand"] += 1

    @precondition(lambda self: not (self.model.outage or self.model.grace))
    @rule(worker=WORKER, pick=PICK)
    def stray_lease(self, worker, pick):
        """The lease of an operation that is not leased is dropped, and nothing else."""
        others = [one.id for one in self.model.operations.values() if one.state != "leased"]
        self.redis.zadd(self.keys.leases, {_pick(others or GHOSTS, pick): 1})
        self._reap(self.workers[worker])

    # -- what is checked after every step

    @invariant()
    def everything_holds(self):
        self.sound = False
        self.met["steps"] += 1
        self._check()
        self.sound = True

    def teardown(self):
        try:
            if self.sound:
                self._drain()
        finally:
            if keys := list(self.redis.scan_iter(f"{self.keys.prefix}*", count=1000)):
                self.redis.delete(*keys)
            self.broker.close()

    def _check(self) -> None:
        seen = Seen(msgspec.json.decode(self.snapshot(args=[self.keys.prefix])), KEY_OF_DIGEST)
        status = self._ask(self.commands.status())
        equal("I1, unaccounted", unaccounted(status), 0)
        past_retention = [id_ for entries in self.model.given_up.values() for id_, old in entries.items() if old]
        seen.check_containers(past_retention)
        seen.check_expiries()
        seen.check_status(status)
        equal("the index of what is ready", self._ask(self.commands.audit_counts()).index, {})
        seen.check_depth(self._ask(self.commands.depth()), with_failed=not self.forgotten)
        self._compare(seen, status)

    def _compare(self, seen: Seen, status: Status) -> None:
        model = self.model
        same("operations", seen.fields, {id_: operation.fields() for id_, operation in model.operations.items()})
        same("ready", seen.ready, {queue: ids for queue, ids in model.ready.items() if ids})
        same("delayed", seen.is_due(seen.delayed), {id_: rank is not None for id_, rank in model.delayed.items()})
        same("leases", seen.is_due(seen.leases), {id_: rank is not None for id_, rank in model.leases.items()})
        same("failures", dict.fromkeys(seen.failures), dict.fromkeys(model.given_up["failed"]))
        same("system errors", dict.fromkeys(seen.system_errors), dict.fromkeys(model.given_up["system_error"]))
        same("dedup", seen.dedup, model.dedup)
        same("metrics", {name: int(value) for name, value in status.metrics.items()}, dict(+model.metrics))
        equal("queues", set(status.queues), set(model.registry))
        assert seen.woken >= model.woken, "idle workers must be woken for what has become ready"
        model.woken = set()

    def _drain(self) -> None:
        """I8: whatever state the example has left, everything that was accepted comes to exactly one end."""
        worker = self.workers[0] = Worker()
        for _ in range(MAX_DRAIN):
            if not self.model.has_live():
                break
            self._drain_once(worker)
        assert not self.model.has_live(), "I8: the queue does not drain"
        ends = {life: ends for life, ends in self.endings.items() if len(ends) != 1 or life in self.model.discarded}
        assert not ends, f"I8: ended more than once: {ends}"
        assert self.endings.keys() | self.model.discarded == self.model.accepted, "I8: lost or never accepted"
        metrics = self._ask(self.commands.status()).metrics
        told = Counter(end for ends in self.endings.values() for end in ends)
        counted = {name: sum(int(metrics.get(f"{kind}{name}", 0)) for kind in ("", "callbacks_")) for name in told}
        assert counted == told, "I8: what was answered and what was counted differ"

    def _drain_once(self, worker: Worker) -> None:
        for operation_id in self.model.delayed:
            self._make_due(operation_id)
        for operation_id in self.model.leases:
            self._expire(operation_id)
        self._reap(worker)
        self._end_grace()
        self._check()
        self._claim(worker, (), 100, 100)
        self._check()
        for held in list(worker.held):
            if held.quarantined:
                self._fail(held, system_error=False, callback=False, sent_twice=False)
        if worker.held:
            self._complete(list(worker.held), callback=False, kept=False, sent_twice=False)
        self._check()

    # -- acts

    def _ask(self, call: Call[T]) -> T:
        try:
            return self.broker.run(call)
        except Exception as error:
            raise AssertionError(f"{call.name} must not be refused: {error!r}") from error

    def _enqueue(self, queue: tuple[str, str], kind: str, new: Sequence[New], *, settled: bool = True) -> None:
        priority, name = queue[0], f"q{queue[1]}"
        request = self.commands.enqueue(name, priority, kind, [_new_operation(one) for one in new])
        expected = self.model.enqueue(f"{priority}:{name}", kind, new)
        equal("enqueued", _told(self._ask(request)), expected)
        self.met.update(code for code, _ in expected)
        self.sent.append((request, expected))
        if settled and request.lane is not None:
            self.commands.lanes.give_back(request.lane)

    def _send_again(self, sent: tuple[Call[list[tuple[Accepted, str]]], list[tuple[str, str]]]) -> None:
        request, expected = sent
        lane, number = request.lane, request.args[3]
        if any(one.lane is lane and one.args[3] > number for one, _ in self.sent):
            self.met["sent too late"] += 1
            try:
                replies: object = self.broker.run(request)
            except BrokerReplyError as refused:
                replies = str(refused)
            assert "given up" in str(replies), f"sent too late, and carried out: {replies}"
        else:
            equal("sent again", _told(self._ask(request)), expected)
            self.met["sent again"] += 1

    def _claim(
        self,
        worker: Worker,
        only: Sequence[str],
        async_slots: int,
        sync_slots: int,
        *,
        lost: bool = False,
        suspect: bool = True,
    ) -> None:
        places = self._places()
        names = sorted(only or self.model.registry, key=lambda name: self._turn_of(name, places))
        queues = [(name, self.model.registry[name]) for name in names]
        expected = self.model.claim(queues, {"a": async_slots, "s": sync_slots}, suspect=suspect)
        claimed = self._ask(
            self.commands.claim(
                async_slots=async_slots,
                sync_slots=sync_slots,
                lease=LONG,
                retention=LONG,
                suspect=suspect,
                only=only,
            )
        )
        equal(
            "strict priority, oldest first:",
            [(one.operation_id, one.ready_key) for one in claimed.deliveries],
            [(operation.id, f"{self.keys.prefix}{queue}") for queue, operation in expected],
        )
        taken = [self._take(one, operation) for one, (_, operation) in zip(claimed.deliveries, expected, strict=True)]
        equal("a suspect waits", claimed.suspect_waits, self.model.suspect_waits)
        equal("a suspect was taken", claimed.alone_for > 0, self.model.took_suspect)
        self.met["suspects left"] += claimed.suspect_waits
        self.met["suspects taken"] += claimed.alone_for > 0
        self._check_turns({queue for queue, _ in expected}, {name: places[name] for name in names if name in places})
        left = self.model.left_over(queues)
        equal("more", (claimed.more_async, claimed.more_sync), ("a" in left, "s" in left))
        equal("nothing delayed", claimed.next_due is None, not self.model.delayed)
        kinds = {f"{self.keys.prefix}{queue}": self.model.registry[queue] for queue, _ in expected}
        equal("kinds", claimed.kinds, kinds)
        if lost:
            for held in taken:
                self._remember(held)
            return
        worker.held += taken

    def _places(self) -> dict[str, float]:
        """The index of what is ready, as the scripts keep it."""
        rows: list[tuple[bytes, float]] = [
            row
            for key in (self.keys.ready_index, self.keys.ready_index_sync)
            for row in self.redis.zrange(key, 0, -1, withscores=True)
        ]
        return {name.decode(): place for name, place in rows if place < EMPTY}

    def _turn_of(self, name: str, places: Mapping[str, float]) -> tuple[int, float, str]:
        """By priority; then whose turn it is; last what the claim itself moves to its queue, as that is due."""
        return PRIORITIES.index(name.partition(":")[0]), places.get(name, EMPTY), name

    def _check_turns(self, served: set[str], before: Mapping[str, float]) -> None:
        """Whoever was served and has more goes behind all others of its priority."""
        after = self._places()
        for queue in served & after.keys():
            others = [
                name for name in before.keys() & after.keys() - served if name.split(":")[0] == queue.split(":")[0]
            ]
            assert all(after[name] < after[queue] for name in others), f"{queue} was served, and others wait: {after}"

    def _claim_at(self, worker: Worker, name: str) -> None:
        """Claim the one at the head of this queue."""
        self._claim(worker, [name], 1, 1)

    def _take(self, delivery: Delivery, operation: Operation, *, quarantined: bool = False) -> Held:
        assert (delivery.operation_id, delivery.token) not in self.tokens, "I3: a token is given once"
        assert operation.life not in self.endings, "I4: claimed after its end"
        assert quarantined or delivery.crashes <= MAX_CRASHES, "I5: it has killed enough workers"
        equal(
            f"delivery of {operation.id}",
            (delivery.deliveries, delivery.attempts, delivery.crashes, delivery.exhaustions, delivery.body.decode()),
            (operation.deliveries, operation.attempts, operation.crashes, operation.exhaustions, operation.body),
        )
        self.tokens.add((delivery.operation_id, delivery.token))
        operation.token = delivery.token
        self.met["quarantined" if quarantined else "claimed"] += 1
        return Held(operation.id, delivery.token, operation.life, operation.kind, quarantined)

    def _complete(self, helds: Sequence[Held], callback: bool, kept: bool, sent_twice: bool) -> None:
        callbacks = [self._callback() if callback else None for _ in helds]
        completions = [
            Completion(held.id, held.token, held.kind, _as_message(spawned))
            for held, spawned in zip(helds, callbacks, strict=True)
        ]
        for again in (False, True)[: 1 + sent_twice]:
            expected = [
                self.model.complete(held, kept, spawned, again) for held, spawned in zip(helds, callbacks, strict=True)
            ]
            call = self.commands.complete(completions, done_ttl=LONG if kept else 0, again=again)
            equal("I3, completed", self._ask(call), expected)
            for held, ended in zip(helds, expected, strict=True):
                self._settled(held, ended, "processed")

    def _retry(self, held: Held, delayed: bool, exhausted: bool, sent_twice: bool) -> None:
        counters = [_counter(held, "retried"), *(["thread_pool_exhaustion"] if exhausted else [])]
        for again in (False, True)[: 1 + sent_twice]:
            expected = self.model.retry(held, exhausted, counters, again)
            delay = LONG if delayed else 0
            call = self.commands.retry(
                held.id, held.token, delay=delay, exhausted=exhausted, counters=counters, record=b"{}", again=again
            )
            equal("I3, retried", self._ask(call), expected)
            if expected and not delayed:
                self._is_due_already(held.id)
            self._settled(held, expected)

    def _fail(self, held: Held, system_error: bool, callback: bool, sent_twice: bool) -> None:
        state, attempted = ("system_error", False) if system_error else ("failed", not held.quarantined)
        counters = ["system_errors", "rejected"] if system_error else [_counter(held, "failed")]
        spawned = self._callback() if callback and not system_error else None
        for again in (False, True)[: 1 + sent_twice]:
            expected = self.model.fail(held, state, attempted, counters, spawned, again)
            call = self.commands.fail(
                held.id,
                held.token,
                system_error=system_error,
                attempted=attempted,
                counters=counters,
                error=b"{}",
                record=b"{}",
                retention=LONG,
                callback=_as_message(spawned),
                again=again,
            )
            equal("I3, given up", self._ask(call), expected)
            self._settled(held, expected, "rejected" if system_error else "failed")

    def _release(self, held: Held, delayed: bool) -> None:
        expected = self.model.release(held, delayed)
        call = self.commands.release(held.id, held.token, delay=LONG if delayed else 0)
        equal("I3, released", self._ask(call), expected)
        self._settled(held, expected)

    def _renew(self, helds: Sequence[Held]) -> None:
        expected = self.model.renew(helds)
        lost = self._ask(self.commands.renew([(held.id, held.token) for held in helds], LONG))
        equal("I3, lost", lost, expected)
        for held in helds:
            if not self.model.holds(held):
                self._remember(held)

    def _reap(self, worker: Worker) -> None:
        returned, in_grace, quarantined = self.model.reap()
        call = self.commands.reap(max_crashes=MAX_CRASHES, interval=LONG, lease=LONG, retention=LONG)
        reaped = self._ask(call)
        equal("returned, in grace", (reaped.returned, reaped.in_grace), (returned, in_grace))
        equal("quarantined", [one.operation_id for one in reaped.quarantined], [one.id for one in quarantined])
        worker.held += [
            self._take(one, operation, quarantined=True)
            for one, operation in zip(reaped.quarantined, quarantined, strict=True)
        ]
        self.met["reaped"] += returned
        self.met["in grace"] += in_grace

    def _purge_given_up(self, state: str, ids: Sequence[str]) -> None:
        expected = self.model.purge_given_up(state, ids)
        of_system = state == "system_error"
        oldest = self.commands.purge_oldest_failures(system_errors=of_system)
        call = self.commands.purge_failures(ids, system_errors=of_system) if ids else oldest
        equal("purged", self._ask(call), expected)

    def _end_grace(self) -> None:
        self.redis.zadd(self.keys.reaper, {"grace": 1})
        self.model.grace = False

    def _expire(self, operation_id: str) -> None:
        rank = self.model.leases[operation_id] = next(self.ranks)
        self.redis.zadd(self.keys.leases, {operation_id: rank}, xx=True)

    def _make_due(self, operation_id: str) -> None:
        rank = self.model.delayed[operation_id] = next(self.ranks)
        self.redis.zadd(self.keys.delayed, {operation_id: rank}, xx=True)

    def _is_due_already(self, operation_id: str) -> None:
        """Without a delay it is due at once. It then gets a rank, because milliseconds differ from run to run."""
        due: Any = self.redis.zscore(self.keys.delayed, operation_id)
        seconds, microseconds = self.redis.time()
        assert due <= seconds * 1000 + microseconds // 1000, f"{operation_id} was to be due at once"
        self._make_due(operation_id)

    def _settled(self, held: Held, applied: bool, ending: str = "") -> None:
        self._remember(held)
        self.met[(ending or "put back") if applied else "stale"] += 1
        if applied and ending:
            self.endings[held.life].append(ending)

    def _remember(self, held: Held) -> None:
        """Its worker is through with it, but may come back to it late."""
        for worker in self.workers:
            worker.held = [one for one in worker.held if one != held]
        if held not in self.zombies:
            self.zombies = [*self.zombies, held][-MAX_REMEMBERED:]

    def _callback(self) -> Operation:
        return Operation(self._serial("cb"), 0, "", f"high:{CALLBACK_QUEUE}", self._body(), "c")

    def _serial(self, name: str) -> str:
        return f"{name}{next(self.serials)}"

    def _body(self) -> str:
        return self._serial("body")

    # -- what there is to choose from

    def _at_work(self, worker: int) -> list[Held]:
        """What this worker works on. One that has nothing to do takes what there is; if there is nothing, makes it."""
        own = self.workers[worker]
        if not self._working(own):
            self._claim(own, (), 2, 2)
        if not self._working(own):
            self._enqueue(("normal", "m"), "m", [self._fresh("alpha"), self._fresh(), self._fresh()])
            self._claim_at(own, "normal:qm")
        return self._working(own)

    def _fresh(self, key: str = "") -> New:
        """A new operation that takes a dedup key if that is free."""
        return New(self._serial("new"), self._body(), digest="" if key in self.model.dedup else key)

    def _working(self, worker: Worker) -> list[Held]:
        return [held for held in worker.held if not held.quarantined]

    def _quarantined(self, worker: int) -> list[Held]:
        return [held for held in self.workers[worker].held if held.quarantined]

    def _pick_queue(self, pick: int, likely: Sequence[str]) -> str:
        """One of those that are likely to have something, or any."""
        return _pick([*likely, *self.model.registry] or ["normal:qm"], pick)

    def _given_up(self, state: str) -> list[str]:
        """The ids of what was given up. If there are none, the first worker gives up what it works on."""
        while not self.model.given_up[state]:  # what it works on may be another's by now
            self._fail(self._at_work(0)[0], state == "system_error", callback=False, sent_twice=False)
        return list(self.model.given_up[state])

    def _in_state(self, state: str) -> list[str]:
        return [operation.id for operation in self.model.operations.values() if operation.state == state]


def _pick(choices: Sequence[T], pick: int) -> T:
    return choices[pick % len(choices)]


def _queue_and_priority(name: str) -> tuple[str, str]:
    priority, _, queue = name.partition(":")
    return queue, priority


def _new_operation(new: New) -> NewOperation:
    return NewOperation(new.id, new.body.encode(), LONG if new.delayed else 0.0, new.digest or None, LONG)


def _told(replies: Sequence[tuple[Accepted, str]]) -> list[tuple[str, str]]:
    return [(accepted.value, holder) for accepted, holder in replies]


def _as_message(callback: Operation | None) -> Callback | None:
    return None if callback is None else Callback(callback.id, CALLBACK_QUEUE, "high", callback.body.encode())


def _counter(held: Held, name: str) -> str:
    return f"callbacks_{name}" if held.kind == "c" else name
