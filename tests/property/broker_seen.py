"""What Redis holds, read in one instant, and the invariants that can be seen in it without knowing its history."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from broker_model import LIVE

from queue_system.broker.messages import DepthReply, Status

COUNTED_STATES: Final = ("ready", "delayed", "leased", "failed")
HOUR: Final = 3_600_000  # a failure's hash lives that much longer than its entry, in milliseconds
LONG: Final = 3600.0  # no delay, lease or retention of this length ends by itself while an example runs

# All that Redis holds under one prefix, in one instant. The wake-up markers are taken away, so that the next look
# shows what the next step has set.
SNAPSHOT: Final = """
local prefix = ARGV[1]
local operations, ready, dedup, sent = {}, {}, {}, {}
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
  local name = string.sub(key, #prefix + 1)
  if string.sub(name, 1, 3) == 'op:' then
    local fields = redis.call('HMGET', key, 'st', 'q', 'k', 'dk', 'dc', 'at', 'cr', 'ex', 'b')
    fields[10] = redis.call('PTTL', key)
    operations[string.sub(name, 4)] = fields
  elseif string.sub(name, 1, 6) == 'dedup:' then
    dedup[string.sub(name, 7)] = { redis.call('GET', key), redis.call('PTTL', key) }
  elseif string.sub(name, 1, 5) == 'sent:' then
    sent[#sent + 1] = redis.call('PTTL', key)
  elseif redis.call('TYPE', key).ok == 'list' then
    ready[name] = redis.call('LRANGE', key, 0, -1)
  end
end
local found = { operations = operations, ready = ready, dedup = dedup, sent = sent }
for _, name in ipairs({ 'leases', 'delayed', 'failures', 'system_errors' }) do
  found[name] = redis.call('ZRANGE', prefix .. name, 0, -1, 'WITHSCORES')
end
local time = redis.call('TIME')
found.now = time[1] * 1000 + math.floor(time[2] / 1000)
found.wake = { a = redis.call('DEL', prefix .. 'wake'), s = redis.call('DEL', prefix .. 'wake:sync') }
return cjson.encode(found)
"""


class Seen:
    """A snapshot, with the invariants that it must obey whatever has happened before."""

    def __init__(self, found: dict[str, Any], key_of_digest: Mapping[str, str]) -> None:
        self.now: int = found["now"]
        self.fields: dict[str, tuple[Any, ...]] = {}
        self.expiries: dict[str, int] = {}
        for id_, (state, queue, kind, digest, deliveries, attempts, crashes, exhaustions, body, ttl) in dict(
            found["operations"]
        ).items():
            numbers = (int(value or 0) for value in (deliveries, attempts, crashes, exhaustions))
            self.fields[id_] = (
                state or "",
                queue or "",
                kind or "o",
                key_of_digest[digest or ""],
                *numbers,
                body or "",
            )
            self.expiries[id_] = ttl
        self.ready: dict[str, list[str]] = dict(found["ready"])
        self.leases, self.delayed = _scores(found["leases"]), _scores(found["delayed"])
        self.failures, self.system_errors = _scores(found["failures"]), _scores(found["system_errors"])
        self.dedup = {
            key_of_digest[digest]: holder.partition("\x1f")[0] for digest, (holder, _) in dict(found["dedup"]).items()
        }
        self.dedup_expiries = [ttl for _, ttl in dict(found["dedup"]).values()]
        self.answer_expiries: list[int] = list(found["sent"])
        self.woken = {side for side, was_set in found["wake"].items() if was_set}

    def is_due(self, scores: dict[str, float]) -> dict[str, bool]:
        return {id_: score <= self.now for id_, score in scores.items()}

    def check_containers(self, past_retention: Sequence[str]) -> None:
        places: dict[str, list[str]] = defaultdict(list)
        for queue, ids in self.ready.items():
            for id_ in ids:
                places[id_].append(f"ready {queue}")
        for state, ids in (("leased", self.leases), ("delayed", self.delayed)):
            for id_ in ids:
                places[id_].append(state)
        for state, ids in (("failed", self.failures), ("system_error", self.system_errors)):
            for id_ in ids:
                if id_ not in past_retention or self._state(id_) == state:
                    places[id_].append(state)
        expected = {
            id_: [f"ready {queue}" if state == "ready" else state]
            for id_, (state, queue, *_) in self.fields.items()
            if state != "done"
        }
        same("I2, each operation is where its state says, once:", places, expected)

    def check_expiries(self) -> None:
        for id_, ttl in self.expiries.items():
            if self._state(id_) in LIVE:
                assert ttl == -1, f"I7: {id_} is live and must not expire"
            else:
                assert 0 < ttl <= LONG * 1000 + HOUR, f"I7: {id_} has ended and must expire"
        assert all(0 < ttl <= 2 * LONG * 1000 for ttl in self.dedup_expiries), "I6"
        assert all(0 < ttl <= LONG * 1000 for ttl in self.answer_expiries), "an answer must expire"

    def check_status(self, status: Status) -> None:
        counted = (sum(status.queues.values()), status.delayed, status.leased, status.failures, status.system_errors)
        found = (self.ready_count(), *map(len, (self.delayed, self.leases, self.failures, self.system_errors)))
        equal("I2, the counts of the containers", counted, found)

    def check_depth(self, depth: DepthReply, *, with_failed: bool) -> None:
        """The counts by queue, which are kept beside the containers, say what the containers hold."""
        found = {
            (row.priority, row.queue, state): count
            for row in depth.queues
            for state, count in zip(COUNTED_STATES, (row.ready, row.delayed, row.leased, row.failed), strict=True)
            if count and (with_failed or state != "failed")
        }
        listed = {"ready": self._listed(), "delayed": self.delayed, "leased": self.leases, "failed": self.failures}
        expected = Counter(
            (*self.fields[id_][1].split(":", 1), state)
            for state, ids in listed.items()
            for id_ in ids
            if self._state(id_) == state and (with_failed or state != "failed")
        )
        equal("I2, the counts by queue", found, dict(expected))

    def _listed(self) -> list[str]:
        return [id_ for ids in self.ready.values() for id_ in ids]

    def ready_count(self) -> int:
        return sum(map(len, self.ready.values()))

    def _state(self, id_: str) -> str:
        return str(self.fields[id_][0]) if id_ in self.fields else ""


def _scores(flat: Any) -> dict[str, float]:
    values = list(flat)
    return {id_: float(score) for id_, score in zip(values[::2], values[1::2], strict=True)}


def equal(what: str, seen: object, expected: object) -> None:
    """Equal, or an error that shows both."""
    assert seen == expected, f"{what}: {seen!r}, not {expected!r}"


def same(what: str, seen: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same, or an error that names the differences alone."""
    differences = [
        f"{name}: {seen.get(name)!r}, not {expected.get(name)!r}"
        for name in sorted({*seen, *expected})
        if name not in seen or name not in expected or seen[name] != expected[name]
    ]
    assert not differences, f"{what} {'; '.join(differences)}"
