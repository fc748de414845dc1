"""Broken versions of the scripts: each says what a change by mistake could look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from queue_system.broker.scripts import Script, load_scripts, make_script

COMMON: Final = "common"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A script (or what is common to all) with texts exchanged."""

    name: str
    script: str
    edits: tuple[tuple[str, str], ...]

    def scripts(self) -> dict[str, Script]:
        """All scripts, with this one (or each that has this, when the common part is edited) broken."""
        scripts = load_scripts()
        broken = {
            name: make_script(name, self._edit(script.source))
            for name, script in scripts.items()
            if self.script == name or (self.script == COMMON and self.edits[0][0] in script.source)
        }
        if not broken:
            raise LookupError(f"{self.name}: no script has {self.edits[0][0]!r}")
        return scripts | broken

    def _edit(self, source: str) -> str:
        for old, new in self.edits:
            if source.count(old) != 1:  # no AssertionError: that would pass for a killed mutant
                raise LookupError(f"{self.name}: {old!r} is {source.count(old)} times in {self.script}.lua")
            source = source.replace(old, new)
        return source


def _mutant(name: str, script: str, *texts: str) -> Mutant:
    """The texts are old, new, old, new, ..."""
    return Mutant(name, script, tuple(zip(texts[::2], texts[1::2], strict=True)))


QUEUE_OF_ANY: Final = "(redis.call('HGET', op_key(prefix, id), 'q') or '')"
"""In place of the check: whatever operation has this id."""

MUTANTS: Final = (
    # The token
    _mutant("any token holds", COMMON, "h[1] == 'leased' and h[2] == token", "h[1] == 'leased'"),
    _mutant("a token holds for ever", COMMON, "h[1] == 'leased' and h[2] == token", "h[2] == token"),
    _mutant("a token is given twice", COMMON, "return redis.pcall('INCR', prefix .. 'token')", "return 1"),
    _mutant("complete does not check", "complete", "holds(prefix, id, ARGV[i + 1])", QUEUE_OF_ANY),
    _mutant("retry does not check", "retry", "holds(prefix, id, ARGV[3])", QUEUE_OF_ANY),
    _mutant("fail does not check", "fail", "holds(prefix, id, ARGV[3])", QUEUE_OF_ANY),
    _mutant("release does not check", "release", "holds(prefix, id, ARGV[3])", QUEUE_OF_ANY),
    _mutant("renew does not check", "renew", "holds(ARGV[1], ARGV[i], ARGV[i + 1]) and ", ""),
    _mutant("quarantine keeps the old token", "reap", "'tk', token, 'dc', deliveries)", "'dc', deliveries)"),
    # The lease
    _mutant("claim takes no lease", "claim", "if #leases > 0 then redis.call('ZADD', KEYS[1], unpack(leases)) end", ""),
    _mutant("complete keeps the lease", "complete", "redis.call('ZREM', KEYS[1], unpack(plain))", ""),
    _mutant("complete keeps the lease of what it keeps", "complete", "redis.call('ZREM', KEYS[1], id)", ""),
    _mutant("complete keeps the operation", "complete", "redis.call('DEL', unpack(plain_keys))", ""),
    _mutant("retry keeps the lease", "retry", "redis.call('ZREM', KEYS[1], id)", ""),
    _mutant("fail keeps the lease", "fail", "redis.call('ZREM', KEYS[1], id)", ""),
    _mutant("release keeps the lease", "release", "redis.call('ZREM', KEYS[1], id)", ""),
    _mutant("reap keeps the lease", "reap", "  redis.call('ZREM', KEYS[1], id)\n", ""),
    _mutant("renew prolongs nothing", "renew", "redis.pcall('ZADD', KEYS[1], expiry, id)", "0"),
    # What is claimed
    _mutant("claim leases whatever id", "claim", "if not h[2] then", "if false then",
            "if not states[h[1]] then", "if false then", "if h[1] ~= 'ready' then", "if false then"),
    _mutant("claim does not check the state", "claim", "if h[1] ~= 'ready' then", "if false then"),
    _mutant("claim takes the last queue first", "claim", "y < x or", "y > x or"),
    _mutant("claim takes the last of only queues first", "claim", "return x[2] < y[2] or", "return x[2] > y[2] or"),
    _mutant("claim serves one queue again and again", "claim", "if emptied or not alone then", "if emptied then"),
    _mutant("claim leaves what it has emptied in the index", "claim", "if emptied or not alone then",
            "if not emptied and not alone then"),
    _mutant("claim takes what is left for empty", "claim", "emptied = emptied or redis.call('EXISTS', list) == 0",
            "emptied = true"),
    _mutant("claim does not see that it took the last", "claim",
            "emptied = emptied or redis.call('EXISTS', list) == 0", ""),
    _mutant("claim looks for nothing that is not in the index", "claim",
            "and slots.a + slots.s > 0 and find_unlisted()", "and false"),
    _mutant("what becomes ready is not in the index", COMMON,
            "if length == 1 then list_ready(prefix, queue, kind, us or now_us()) end", ""),
    _mutant("what comes alone is not in the index", "enqueue_one", "if put == 1 then", "if false then"),
    _mutant("what comes alone is on the other side of the index", "enqueue_one",
            "redis.pcall('ZADD', kind == 's' and prefix .. 'ready:sync' or prefix .. 'ready',",
            "redis.pcall('ZADD', prefix .. 'ready',"),
    _mutant("what comes alone has another priority", "enqueue_one", "first == 'h' and 0 or first == 'n'",
            "first == 'n'"),
    _mutant("what is purged stays in the index", "purge", "if redis.call('EXISTS', KEYS[1]) == 0 then",
            "if false then"),
    _mutant("all queues have one priority", COMMON, "(first == 'h' and 0 or first == 'n' and 2e15 or 4e15)", "2e15"),
    _mutant("claim takes one too many", "claim", "local room = slots[kind]", "local room = 1 + slots[kind]"),
    _mutant("claim counts no delivery", "claim", "(h[4] or 0) + 1", "(h[4] or 0)"),
    _mutant("a suspect is taken with others", "claim", "or #operations > 0 then", "then"),
    _mutant("a suspect is taken by whom it must not", "claim", "if ARGV[7] ~= '1' or", "if"),
    _mutant("a suspect is taken like others", "claim", "if h[10] and not is_alone(h[10])", "if false"),
    _mutant("others are taken with a suspect", "claim",
            "if room <= 0 or suspects ~= 0 or refusal then", "if room <= 0 or refusal then",
            "local taken = suspects == 0 and not refusal and lease(id, j, queue)",
            "local taken = not refusal and lease(id, j, queue)"),
    _mutant("what a suspect stops is lost", "claim", "          put_back(list, ids, i)\n", ""),
    _mutant("what a suspect stops is turned round", "claim", "for k = #ids, i, -1 do", "for k = i, #ids do"),
    _mutant("promote leaves the state", "claim", "    redis.call('HSET', key, 'st', 'ready')\n", ""),
    _mutant("promote leaves it delayed", "claim", "    redis.call('ZREM', KEYS[2], id)\n", ""),
    _mutant("by hand is not accepted", "claim", "count(prefix, 'enqueued', 1)", ""),
    # What is sent again
    _mutant("a request is carried out twice", COMMON, "if not ahead or ahead < 0 then", "if true then"),
    _mutant("any answer is taken for its own", COMMON, "if not ahead or ahead < 0 then", "if not ahead then",
            "if ahead > 0 then return redis.error_reply", "if false then return redis.error_reply"),
    _mutant("no answer is kept", COMMON, "redis.pcall('SET', lane,", "redis.pcall('SET', lane .. number,"),
    _mutant("an answer is kept for ever", COMMON, ", 'PX', ttl, 'GET')", ", 'GET')"),
    _mutant("a late request takes the answer of the last", COMMON, "if not refused then redis.call('SET', lane",
            "if not refused and ahead == 0 then redis.call('SET', lane"),
    _mutant("a repeated request takes its own answer", COMMON, "if not refused then redis.call('SET', lane",
            "if not refused and ahead > 0 then redis.call('SET', lane"),
    _mutant("the answer of all is that of the first", "enqueue", "table.concat(reply, ' ')",
            "string.rep(reply[1] .. ' ', #reply)"),
    _mutant("a request comes in after it was given up", COMMON, "if not ahead or ahead < 0 then", "if ahead ~= 0 then"),
    # What comes in
    _mutant("enqueue takes an id twice", "enqueue", "redis.call('EXISTS', keys[j]) == 1", "false"),
    _mutant("what comes alone wakes nobody", "enqueue_one",
            "redis.pcall('ZADD', kind == 's' and prefix .. 'wake:sync' or prefix .. 'wake', 0, '0')", ""),
    _mutant("what comes alone wakes one that has no thread", "enqueue_one",
            "kind == 's' and prefix .. 'wake:sync' or prefix .. 'wake'", "prefix .. 'wake'"),
    _mutant("what comes alone is not counted", "enqueue_one", "redis.pcall('HINCRBY', KEYS[3], 'enqueued', 1)", "0"),
    _mutant("enqueue takes an id twice in one request", "enqueue", "if taken[id] then", "if false then"),
    _mutant("enqueue takes a key twice in one request", "enqueue", "holders[digest] or redis", "redis"),
    _mutant("a dedup key never expires", "enqueue", ", 'PX', ARGV[i + 1] + ARGV[i + 3])", ")"),
    _mutant("enqueue wakes nobody", "enqueue", "if new > 0 then wake(prefix, kind) end", ""),
    _mutant("a callback is not counted", COMMON, "  count(prefix, 'callbacks_enqueued', 1)\n", ""),
    # What ends
    _mutant("done is kept for ever", "complete", "redis.call('PEXPIRE', key, keep)", ""),
    _mutant("a failure is kept for ever", "fail", "redis.call('PEXPIRE', key, kept)", ""),
    _mutant("a failure keeps its dedup key", "fail", "release_dedup(prefix, id, redis.call('HGET', key, 'dk'))", ""),
    _mutant("another's dedup key is released", COMMON, " and holder_id(entry) == id then", " then"),
    _mutant("a failed attempt is not counted", "retry", "add(key, 'at', 1)", ""),
    _mutant("sent again counts as stale", "complete", "if again ~= '1' then", "if true then"),
    # What comes back
    _mutant("reap does not check the state", "reap", "elseif h[1] == 'leased' then", "else"),
    _mutant("reap counts no crash", "reap", "(tonumber(h[6]) or 0) + 1", "(tonumber(h[6]) or 0)"),
    _mutant("nobody is quarantined", "reap", "elseif crashes > max_crashes then", "elseif false then"),
    _mutant("reap puts to the tail", "reap", "redis.pcall('LPUSH', prefix .. h[2], id)",
            "redis.pcall('RPUSH', prefix .. h[2], id)"),
    _mutant("an outage gives no grace", "reap", "if now - last > outage or grace > now + lease then", "if false then"),
    _mutant("release puts to the tail", "release", "redis.call('LPUSH'", "redis.call('RPUSH'"),
    _mutant("a requeued failure expires", "requeue_failure", "redis.call('PERSIST', key)\n", ""),
    _mutant("requeue does not check", "requeue_failure", "if h[1] ~= ARGV[3] or not is_queue(h[2])",
            "if not is_queue(h[2])"),
    # What is purged
    _mutant("purge is not counted", "purge", "count(ARGV[1], 'discarded', discarded.o)\n", ""),
    _mutant("purge takes other queues too", "purge_delayed", " and h[4] == ARGV[2]", ""),
    _mutant("what is dropped is not checked", COMMON, "  if h[1] == state then\n", "  if true then\n"),
    # What is counted by queue
    _mutant("what is to come is not counted", "enqueue",
            "if #scheduled > 0 then depth(prefix, 'd', queue, #scheduled / 2) end", ""),
    _mutant("a claim is not counted", "claim", "  depth(prefix, 'l', queue, leased)\n", ""),
    _mutant("a promotion is not counted", "claim", "      depth(prefix, 'd', queue, -1)\n", ""),
    _mutant("an end is not counted", "complete", "depth(prefix, 'l', queue, -n)", ""),
    _mutant("a retry is not counted", "retry", "depth(prefix, 'd', queue, 1)\n", ""),
    _mutant("a failure is not counted", "fail", "depth(prefix, 'f', queue, 1)", ""),
    _mutant("a purge of delayed is not counted", "purge_delayed",
            "depth(ARGV[1], 'd', ARGV[2], -(discarded.o + discarded.c))\n", ""),
)  # fmt: skip
