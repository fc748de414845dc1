"""What is sent to Redis and how its answers are read: without Redis, held against the headers of the scripts."""

import re

import pytest

from queue_system.broker.commands import Commands
from queue_system.broker.messages import (
    AUDIT_STEP,
    AUDIT_WINDOW,
    MAX_CLAIM,
    REAP_LIMIT,
    SEARCH_LIMIT,
    Accepted,
    Callback,
    Completion,
    Delivery,
    NewOperation,
    Status,
)
from queue_system.broker.resend import Resend, worth_retrying
from queue_system.broker.scripts import load_scripts
from queue_system.errors import BrokerReplyError, BrokerUnavailableError, QueueError
from queue_system.keys import Keys, dedup_digest

KEPT = (7, 1024)
C = Commands(Keys("q:"), retention=5.0, max_failures=KEPT[0], max_failure_bytes=KEPT[1])
CALLBACK = Callback("cb-1", "__callbacks__", "high", b"{}")
CALLBACK_ARGS = ["cb-1", "high:__callbacks__", b"{}"]
RETRY = {
    "delay": 1.5,
    "exhausted": True,
    "counters": ["retried", "timeouts"],
    "record": b"{}",
    "again": True,
    "trace": "trace",
}
FAIL = {
    "attempted": True,
    "counters": ["failed"],
    "error": b"e",
    "record": b"r",
    "retention": 60,
    "callback": CALLBACK,
    "again": True,
}


def claim(**options):
    return C.claim(
        **{"async_slots": 2, "sync_slots": 1} | options,
        lease=10,
        retention=60,
        worker="w",
    )


CALLS = {
    "enqueue_one": (
        C.enqueue("mail", "high", "a", [NewOperation("1", b"one")]),
        ["high:mail", "a", 1, 60_000, b"1", b"one", "0 q"],
    ),
    "enqueue": (
        C.enqueue(
            "mail",
            "high",
            "a",
            [NewOperation("1", b"one"), NewOperation("2", b"two", delay=1.5, deduplication_key="k", dedup_window=60)],
        ),
        ["high:mail", "a", 1, 60_000, b"1", 0, "", 0, b"one", b"2", 1500, dedup_digest("k"), 60000, b"two"],
    ),
    "claim": (claim(), [2, 1, 10000, 60000, "w", 0]),
    "claim, bounded": (
        claim(async_slots=10**6, sync_slots=10**6),
        [MAX_CLAIM, MAX_CLAIM, 10000, 60000, "w", 0],
    ),
    "renew": (C.renew([("1", 3), ("2", 4)], 10), [10000, b"1", 3, b"2", 4]),
    "complete": (
        C.complete([Completion("1", 3, "o", CALLBACK), Completion("2", 4, "c")], done_ttl=2, again=True),
        [2000, 1, b"1", 3, "O", *CALLBACK_ARGS, b"2", 4, "c"],
    ),
    "retry": (C.retry("1", 3, **RETRY), [b"1", 3, 1500, 1, "retried,timeouts", b"{}", 1, "trace", 0]),
    "retry, called before": (
        C.retry("1", 3, **RETRY, first_called=1.2345),
        [b"1", 3, 1500, 1, "retried,timeouts", b"{}", 1, "trace", 1234],
    ),
    "fail": (
        C.fail("1", 3, system_error=False, **FAIL),
        [b"1", 3, "failed", 1, "failed", b"e", b"r", 60000, *CALLBACK_ARGS, 1, *KEPT],
    ),
    "fail, system error": (
        C.fail("1", 3, system_error=True, **FAIL | {"attempted": False, "callback": None, "again": False}),
        [b"1", 3, "system_error", 0, "failed", b"e", b"r", 60000, "", "", "", 0, *KEPT],
    ),
    "release": (C.release("1", 3, delay=2.5, reason="why"), [b"1", 3, "why", 2500, 0]),
    "release, called before": (C.release("1", 3, first_called=2.0), [b"1", 3, "released", 0, 2000]),
    "reap": (
        C.reap(max_crashes=3, interval=2, lease=10, retention=60),
        [3, 2000, 10000, 60000, REAP_LIMIT, -1, *KEPT],
    ),
    "requeue_failure": (C.requeue_failure("1"), [b"1", "failed"]),
    "requeue_failure, system error": (C.requeue_failure("1", system_errors=True), [b"1", "system_error"]),
    "purge": (C.purge_ready("mail", "low"), []),
    "purge_delayed": (C.purge_delayed("mail", "low", 17), ["low:mail", 17]),
    "purge_failures": (C.purge_failures(["1", "2"]), [0, b"1", b"2"]),
    "purge_failures, no system error": (C.purge_failures([], system_errors=True), [0]),
    "purge_failures, oldest system error": (C.purge_oldest_failures(system_errors=True), [500]),
    "failures": (C.failures(offset=5, limit=10), [5, 10]),
    "failures, system error": (C.failures(operation_id="1", system_errors=True), [0, 50, b"1"]),
    "status": (C.status(), [30000, 5000]),
    "depth": (C.depth(), []),
    "learn": (C.learn("mail", "high", "s"), ["high:mail", "s"]),
    "audit_counts": (C.audit_counts(), [60000]),
    "audit_list": (C.audit_list("low:mail", 2), ["low:mail", -750, -501]),
    "audit_members": (C.audit_members("q:leases", "leased", 17), ["leased", 17, AUDIT_STEP]),
    "audit_operations": (C.audit_operations(["1", "2"]), [b"1", b"2"]),
    "audit_keys": (C.audit_keys(["wake", "dedup:x"]), [b"wake", b"dedup:x"]),
    "audit_twice": (C.audit_twice("low:mail", "1", (3, 9)), [b"1", 3, 9, AUDIT_WINDOW]),
    "explain": (C.explain("1"), [b"1", 30000, SEARCH_LIMIT]),
    "ring": (C.ring("w"), [5000]),
    "heartbeat": (C.heartbeat("w", expiry=30, fields={"threads": "4"}), ["w", 30000, "threads", "4"]),
}
SCRIPTS = pytest.mark.parametrize(
    ("case", "call", "args"), [(case, *given) for case, given in CALLS.items()], ids=CALLS
)


def header(script: str, section: str) -> list[tuple[int, str]]:
    """The numbered entries of KEYS or ARGV in a script's header, up to those that are not numbered."""
    source = re.sub(r"\n--\s{3,}", "  ", load_scripts()[script].source)
    (line,) = re.findall(rf"^-- {section}  (.*)$", source, re.MULTILINE)
    return [(int(number), text) for number, text in re.findall(r"(\d+) (.*?)(?:  |$)", line.partition("  then ")[0])]


@SCRIPTS
def test_arguments_are_in_the_order_of_the_scripts_header(case, call, args):
    assert call.name == case.partition(",")[0]
    assert list(call.args) == ["q:", *args]
    numbered = len(header(call.name, "ARGV"))
    assert len(call.args) >= numbered - (call.name == "failures")  # whose last one is an alternative


@SCRIPTS
def test_keys_are_in_the_order_of_the_scripts_header(case, call, args):
    lists = {"q:high:b", "q:low:a", "q:low:mail"}
    chosen = ("the ready list", "the producer's lane", "the worker's own marker")  # keys whose name depends on the call
    names = [text for number, text in header(call.name, "KEYS") if not text.startswith(chosen)]
    alternative = 2 if "system error" in case else 0
    expected = [f"q:{name.split(' ')[alternative]}" if " or " in name else f"q:{name}" for name in names]
    assert [key for key in call.keys if key not in lists and not key.startswith(("q:sent:", "q:ring:"))] == expected


def test_the_only_queues_to_take_from_come_last():
    assert list(claim(only=["high:b", "low:a"]).args)[-3:] == [0, "high:b", "low:a"]


def test_the_list_to_purge_is_a_key_of_its_own():
    assert C.purge_ready("mail", "low").keys[0] == "q:low:mail"


def test_every_script_is_called():
    assert {case.partition(",")[0] for case in CALLS} == set(load_scripts())


@SCRIPTS
def test_what_must_not_be_sent_twice(case, call, args):
    only_once = (
        call.name in {"claim", "reap", "requeue_failure"} or case == "purge_failures, oldest system error"
    )  # of any id
    assert call.idempotent is not only_once
    assert not call.plain


@pytest.mark.parametrize("raw", ["plain", "\udcff\udcfe", "ü"])
def test_an_id_of_any_bytes_survives_the_way_there_and_back(raw):
    encoded = raw.encode("utf-8", "surrogateescape")
    call = C.renew([(raw, 1)], 1)
    assert call.args[2] == encoded
    assert call.parse([1]) == [(raw, 1)]
    assert C.failures().parse([encoded, *[b""] * 7])[0].operation_id == raw


@pytest.mark.parametrize(
    ("seconds", "ms"), [(0, 0), (-5, 0), (0.0004, 0), (0.0006, 1), (1.4999, 1500), (3600, 3_600_000)]
)
def test_seconds_become_milliseconds(seconds, ms):
    assert C.release("1", 1, delay=seconds).args[-2] == ms


def test_what_became_of_each_new_operation():
    call = C.enqueue("mail", "high", "a", [NewOperation(str(n), b"") for n in range(4)])
    assert call.parse([b"q", b"s", b"i", b"dother"]) == [
        (Accepted.QUEUED, "0"),
        (Accepted.SCHEDULED, "1"),
        (Accepted.DUPLICATE_ID, "2"),
        (Accepted.DUPLICATE_KEY, "other"),
    ]


@pytest.mark.parametrize("reply", [[b"x"], [b""]])
def test_an_unknown_answer_is_told(reply):
    with pytest.raises(BrokerReplyError, match="does not know"):
        C.enqueue("mail", "high", "a", [NewOperation("1", b"")]).parse(reply)


def test_each_enqueue_is_a_request_of_its_own():
    commands = Commands(Keys("q:"), answer_memory=90)
    first = commands.enqueue("mail", "high", "a", [])
    beside = commands.enqueue("mail", "high", "a", [])
    commands.lanes.give_back(first.lane)
    later = commands.enqueue("mail", "high", "a", [])
    assert [call.args[3:] for call in (first, beside, later)] == [[1, 90_000], [1, 90_000], [2, 90_000]]
    assert first.keys == later.keys != beside.keys
    assert all(key.startswith("q:") for key in (*first.keys, *beside.keys))


def test_an_error_is_ambiguous_when_any_try_was():
    resend = Resend("here")
    assert resend.failed(TimeoutError("reading")).ambiguous
    assert resend.failed(ConnectionRefusedError("Connection refused")).ambiguous
    assert resend.ambiguous


def test_what_waits_for_replicas_says_how_many_and_how_long():
    assert C.confirm(2, 0.5).args == [2, 500]
    assert C.confirm(1, 0.0001).args == [1, 1], "0 would be for ever"
    error = QueueError("no")
    assert C.confirm(1, 1).refused(error) is error


def test_a_sending_that_never_left_is_not_ambiguous():
    resend = Resend("here")
    resend.failed(ConnectionRefusedError("Connection refused"))
    assert not resend.ambiguous


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (BrokerUnavailableError("", kind="connection"), True),
        (BrokerUnavailableError("", kind="timeout"), True),
        (BrokerUnavailableError("", kind="loading"), True),
        (BrokerUnavailableError("", kind="oom"), False),
        (BrokerUnavailableError("", kind="readonly"), True),  # another connection may reach the new primary
        (BrokerUnavailableError("", kind="moved"), True),
        (BrokerUnavailableError("", kind="protocol"), False),
        (BrokerUnavailableError("", kind="auth"), False),
        (BrokerReplyError(""), False),
        (ValueError(), False),
    ],
)
def test_what_is_tried_again(error, worth):
    assert worth_retrying(error) is worth


def delivery(**fields) -> Delivery:
    counts = {"token": 77, "deliveries": 5, "attempts": 1, "crashes": 2, "exhaustions": 3}
    times = {"first_attempt_time": 1.5, "ready_at": 2.5, "accepted_at": 0.5}
    return Delivery(operation_id="id-1", previous_trace="trace", body=b"body", **times, **counts, **fields)


def test_a_claim_with_operations():
    operation = [b"id-1", 2, 77, 5, b"1", b"2", b"3", b"1500", b"2500", b"500", b"trace", b"body"]
    claimed = claim().parse([10_000, 250, 1, 0, [b"high:b", b"s", b"low:a", b"m"], operation, 0])
    assert claimed.deliveries == [delivery(ready_key="q:low:a", claimed_at=10.0)]
    assert (claimed.now, claimed.next_due) == (10.0, 0.25)
    assert (claimed.more_async, claimed.more_sync) == (True, False)
    assert claimed.kinds == {"q:high:b": "s", "q:low:a": "m"}
    assert (claimed.alone_for, claimed.suspect_waits) == (0.0, False)


@pytest.mark.parametrize(("suspect", "alone_for", "waits"), [(-1, 0.0, True), (2_500, 2.5, False)])
def test_a_claim_that_met_a_suspect(suspect, alone_for, waits):
    claimed = claim().parse([10_000, -1, 1, 0, [], [], suspect])
    assert (claimed.alone_for, claimed.suspect_waits) == (alone_for, waits)


def test_a_reaping():
    operation = [b"id-1", 0, 77, 5, 1, 2, 3, 1500, 2500, 500, b"trace", b"body"]
    reaped = C.reap(max_crashes=3, interval=1, lease=1, retention=1).parse([2, 1, operation, 4])
    assert (reaped.returned, reaped.in_grace, reaped.corrected) == (2, True, 4)
    assert reaped.quarantined == [delivery(ready_key="", claimed_at=0.0)]


@pytest.mark.parametrize("metrics", [[b"enqueued", b"3"], {b"enqueued": b"3"}])
def test_a_status(metrics):
    reply = [10_500, [b"high:b", 2, b"low:a", 0], 1, 2, 3, 4, metrics, [b"w", b"20", b"0.25"]]
    assert C.status().parse(reply) == Status(
        10.5, {"high:b": 2, "low:a": 0}, 1, 2, 3, 4, {"enqueued": "3"}, [("w", 20, 0.25)]
    )


def test_failures_as_they_are_kept():
    full = [b"id-1", b"high:b", b"failed", b"\xffbody", b"2", b"{}", b"one\ntwo", b"1500"]
    bare = [b"\xff", b"", b"system_error", b"", b"", b"", b"", b""]
    first, second = C.failures().parse([*full, *bare])
    assert (first.operation_id, first.queue, first.state, first.body) == ("id-1", "high:b", "failed", b"\xffbody")
    assert (first.attempts, first.error, first.history, first.failed_at) == (2, b"{}", [b"one", b"two"], 1.5)
    assert (second.operation_id, second.attempts, second.history, second.failed_at) == ("\udcff", 0, [], 0.0)


@pytest.mark.parametrize(
    ("call", "reply", "value"),
    [
        (C.complete([], done_ttl=0, again=False), [1, 0], [True, False]),
        (C.retry("1", 1, **RETRY), 0, False),
        (C.fail("1", 1, system_error=False, **FAIL), 1, True),
        (C.release("1", 1), 1, True),
        (C.requeue_failure("1"), 0, False),
        (C.purge_ready("a", "low"), b"3", 3),
        (C.purge_delayed("a", "low", 0), [b"17", 2], (17, 2)),
        (C.purge_oldest_failures(), 4, 4),
        (C.heartbeat("w", expiry=1, fields={}), 1500, 1.5),
        (C.add_to_metric("m", 2), b"5", 5.0),
        (C.set_metric("m", "x"), 1, None),
        (C.ring("w"), 1, True),
    ],
)
def test_small_replies(call, reply, value):
    assert call.parse(reply) == value


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (C.add_to_metric("m", 2), ["HINCRBY", "q:metrics", "m", 2]),
        (C.add_to_metric("m", 0.5), ["HINCRBYFLOAT", "q:metrics", "m", 0.5]),
        (C.set_metric("m", "x"), ["HSET", "q:metrics", "m", "x"]),
        (C.scan(7), ["SCAN", 7, "MATCH", "q:*", "COUNT", AUDIT_STEP]),
        (C.scan(0, key_type="list"), ["SCAN", 0, "MATCH", "q:*", "COUNT", AUDIT_STEP, "TYPE", "list"]),
        (C.wait(for_async=True, for_sync=False, timeout=2), ["BZPOPMIN", "q:wake", "2.000"]),
        (C.wait(for_async=False, for_sync=True, timeout=0.25), ["BZPOPMIN", "q:wake:sync", "0.250"]),
        (C.wait(for_async=True, for_sync=True, timeout=-1), ["BZPOPMIN", "q:wake", "q:wake:sync", "0.002"]),
        (C.wait(for_async=True, for_sync=False, timeout=1, worker="w"), ["BZPOPMIN", "q:wake", "q:ring:w", "1.000"]),
    ],
)
def test_plain_commands(call, command):
    assert call.plain
    assert [call.name, *call.args] == command
    assert call.idempotent is (call.name in {"HSET", "SCAN"})


@pytest.mark.parametrize(
    ("reply", "side"),
    [
        (None, None),
        ([b"q:wake", b"0", b"0"], "async"),
        ([b"q:wake:sync", b"0", b"0"], "sync"),
        (["q:wake:sync"], "sync"),
        ([b"q:ring:w", b"0", b"0"], None),
    ],
)
def test_whom_a_marker_was_for(reply, side):
    assert C.wait(for_async=True, for_sync=True, timeout=1, worker="w").parse(reply) == side
