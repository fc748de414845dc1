"""The outbox: from outcomes to calls, and from Redis's answers to what is told."""

import json

import pytest
from fakes import Recorder

from queue_system.broker.commands import Commands
from queue_system.broker.messages import MAX_COMPLETE, Callback
from queue_system.errors import BrokerReplyError, BrokerUnavailableError
from queue_system.events import (
    OperationInfo,
    OutcomeApplied,
)
from queue_system.keys import Keys
from queue_system.outcome import (
    CANCELLED,
    CRASHED,
    ERROR,
    POOL_EXHAUSTED,
    TIMEOUT,
    TOTAL_TIMEOUT,
    UNKNOWN_PROCESSOR,
    ErrorInfo,
    Failure,
    Reject,
    Requeue,
    Retry,
    Success,
)
from queue_system.runtime.finish import MAX_TURN, Outbox, Settlement, encode_error

ERR = ErrorInfo("ValueError", "no", "Traceback")
MOST_KEPT = 100_000, 512 * 1024 * 1024
"""Of what was given up: the count and the bytes."""

CALLBACK = Callback("cb", "__callbacks__", "high", b"{}")


def settlement(outcome, name="1", *, kind="operation", **fields) -> Settlement:
    info = OperationInfo(name, "mail", "high", "work", kind, is_async=True, attempt=1, headers={})
    return Settlement((name, 7), outcome, info, **{"age": 1.5} | fields)


class Box:
    """An outbox and what it tells."""

    def __init__(self) -> None:
        self.hooks = Recorder()
        self.settled: list[tuple[str, int]] = []
        self.refused: list[Exception] = []
        self.outbox = Outbox(
            Commands(Keys("q:")),
            self.hooks,
            done_ttl=2,
            retention=60,
            on_settled=self.settled.extend,
            on_refused=self.refused.append,
        )

    def call(self, outcome, **fields):
        """The one call for one outcome."""
        ((call, part),) = self.outbox.calls([settlement(outcome, **fields)])
        assert len(part) == 1
        return call

    def told(self) -> list[tuple]:
        return [(event.result, event.outcome, event.reason) for event in self.hooks.of(OutcomeApplied)]


@pytest.fixture
def box():
    return Box()


def test_successes_of_one_turn_go_in_batches(box):
    batch = [settlement(Success(), str(number)) for number in range(MAX_COMPLETE + 1)]
    calls = box.outbox.calls(batch)
    assert [call.name for call, _ in calls] == ["complete", "complete"]
    assert [len(part) for _, part in calls] == [MAX_COMPLETE, 1]
    assert [one for _, part in calls for one in part] == batch
    assert calls[0][0].args[3:6] == [b"0", 7, "o"]


def test_each_other_outcome_is_a_call_of_its_own(box):
    batch = [
        settlement(outcome) for outcome in (Retry(1, ERROR, ERR), Success(), Failure(ERROR, ERR, ERROR), Requeue())
    ]
    calls = box.outbox.calls(batch)
    assert sorted(call.name for call, _ in calls) == ["complete", "fail", "release", "retry"]
    assert all(len(part) == 1 for _, part in calls)


def test_a_completion_has_its_kind_callback_and_the_time_to_keep_it(box):
    call = box.call(Success("never sent"), callback=CALLBACK)
    assert call.args[1:] == [2000, 0, b"1", 7, "O", "cb", "high:__callbacks__", b"{}"]
    assert box.call(Success(), kind="callback").args[5] == "c"


def test_a_retry_has_its_delay_and_record(box):
    call = box.call(Retry(2.5, ERROR, ERR), record=b"{}")
    assert call.args[1:] == [b"1", 7, 2500, 0, "retried", b"{}", 0, "", 0]


def test_a_failure_has_its_error_retention_and_callback(box):
    call = box.call(Failure(TOTAL_TIMEOUT, ERR, ERROR), record=b"{}", callback=CALLBACK)
    assert call.keys[1] == "q:failures"
    assert call.args[1:5] == [b"1", 7, "failed", 1]
    error = {"reason": "total_timeout", "type": "ValueError", "message": "no", "traceback": "Traceback"}
    assert json.loads(call.args[6]) == error
    assert call.args[7:] == [b"{}", 60000, "cb", "high:__callbacks__", b"{}", 0, *MOST_KEPT]


def test_a_rejection_goes_to_the_system_errors_without_an_attempt(box):
    call = box.call(Reject("DecodeError", ERR))
    assert call.keys[1] == "q:system_errors"
    assert call.args[3:5] == ["system_error", 0]


def test_a_failure_without_an_attempt_adds_none(box):
    assert box.call(Failure(TOTAL_TIMEOUT, ERR, TOTAL_TIMEOUT, attempted=False)).args[4] == 0


@pytest.mark.parametrize("delay", [0.0, 3.0])
def test_what_is_given_back_goes_to_the_head_or_waits(box, delay):
    assert box.call(Requeue(delay, "released")).args[1:] == [b"1", 7, "released", int(1000 * delay), 0]


COUNTED = [
    (Retry(1, ERROR, ERR), "retried"),
    (Retry(1, CANCELLED, ERR), "retried"),
    (Retry(1, TIMEOUT, ERR), "retried,timeouts"),
    (Retry(1, POOL_EXHAUSTED, ERR), "retried,thread_pool_exhaustion"),
    (Failure(ERROR, ERR, ERROR), "failed"),
    (Failure(CRASHED, ERR, CRASHED, attempted=False), "failed"),
    (Failure(UNKNOWN_PROCESSOR, ERR, UNKNOWN_PROCESSOR, attempted=False), "failed"),
    (Failure(TIMEOUT, ERR, TIMEOUT), "failed,timeouts"),
    (Failure(TOTAL_TIMEOUT, ERR, ERROR), "failed,timeouts"),
    (Failure(TOTAL_TIMEOUT, ERR, TIMEOUT), "failed,timeouts"),
    (Failure(POOL_EXHAUSTED, ERR, POOL_EXHAUSTED), "failed,thread_pool_exhaustion"),
    (Failure(TOTAL_TIMEOUT, ERR, POOL_EXHAUSTED), "failed,timeouts,thread_pool_exhaustion"),
    (Reject("DecodeError", ERR), "system_errors,rejected"),
]


@pytest.mark.parametrize(("outcome", "counters"), COUNTED)
def test_what_is_counted(box, outcome, counters):
    assert box.call(outcome).args[5] == counters


@pytest.mark.parametrize(
    ("outcome", "counters"),
    [
        (Retry(1, ERROR, ERR), "callbacks_retried"),
        (Retry(1, TIMEOUT, ERR), "callbacks_retried"),
        (Failure(ERROR, ERR, ERROR), "callbacks_failed"),
        (Failure(TOTAL_TIMEOUT, ERR, TIMEOUT), "callbacks_failed"),
        (Reject("DecodeError", ERR), "system_errors,rejected"),
    ],
)
def test_callbacks_are_counted_apart(box, outcome, counters):
    assert box.call(outcome, kind="callback").args[5] == counters


def test_only_a_retry_for_want_of_a_thread_is_an_exhaustion(box):
    assert box.call(Retry(1, POOL_EXHAUSTED, ERR)).args[4] == 1
    assert box.call(Retry(1, TIMEOUT, ERR)).args[4] == 0


def test_a_turn_takes_a_bounded_number(box):
    for number in range(MAX_TURN + 5):
        box.outbox.put(settlement(Success(), str(number)))
    first = box.outbox.take()
    assert [one.operation_id for one in first] == [str(number) for number in range(MAX_TURN)]
    assert len(box.outbox) == 5
    assert len(box.outbox.take()) == 5
    assert box.outbox.take() == []


@pytest.mark.parametrize("ambiguous", [True, False])
def test_what_is_put_back_goes_first_and_in_its_order(box, ambiguous):
    for name in "abc":
        box.outbox.put(settlement(Success(), name))
    batch = box.outbox.take()
    box.outbox.put(settlement(Success(), "d"))
    box.outbox.put_back(batch, ambiguous=ambiguous)
    taken = box.outbox.take()
    assert [one.operation_id for one in taken] == ["a", "b", "c", "d"]
    assert [one.again for one in taken] == [ambiguous] * 3 + [False]


def test_once_ambiguous_always_ambiguous(box):
    one = settlement(Success())
    box.outbox.put_back([one], ambiguous=True)
    box.outbox.put_back([one], ambiguous=False)
    assert one.again


def test_what_goes_again_says_so_and_is_not_mixed_with_the_rest(box):
    again = {"again": True}
    batch = [settlement(Success(), "new"), settlement(Success(), "old", **again), settlement(Success(), "new too")]
    calls = box.outbox.calls(batch)
    assert [([one.operation_id for one in part], call.args[2]) for call, part in calls] == [
        (["new", "new too"], 0),
        (["old"], 1),
    ]
    assert box.call(Retry(1, ERROR, ERR), **again).args[-3] == 1
    assert box.call(Failure(ERROR, ERR, ERROR), **again).args[-3] == 1


def test_what_was_applied_is_told_and_its_lease_is_over(box):
    part = [settlement(Success(), "a"), settlement(Success(), "b")]
    box.outbox.settle(part, [True, False])
    assert box.settled == [("a", 7), ("b", 7)]
    assert box.told() == [("processed", "success", ""), ("stale", "success", "lease_lost")]
    assert box.hooks.of(OutcomeApplied)[0].operation.operation_id == "a"
    assert box.hooks.of(OutcomeApplied)[0].age == 1.5


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Retry(1, TIMEOUT, ERR), ("retried", "timeout", TIMEOUT)),
        (Retry(1, POOL_EXHAUSTED, ERR), ("retried", "exhausted", POOL_EXHAUSTED)),
        (Failure(TOTAL_TIMEOUT, ERR, ERROR), ("failed", "error", TOTAL_TIMEOUT)),
        (Failure(CRASHED, ERR, CRASHED, attempted=False), ("failed", "", CRASHED)),
        (Reject("DecodeError", ERR), ("rejected", "", "DecodeError")),
        (Requeue(3, "shutdown"), ("requeued", "", "shutdown")),
    ],
)
def test_each_outcome_is_told_with_its_reason(box, outcome, told):
    box.outbox.settle([settlement(outcome)], True)  # noqa: FBT003  a reply
    assert box.told() == [told]
    (event,) = box.hooks.of(OutcomeApplied)
    assert event.error_type == ("" if isinstance(outcome, Requeue) else "ValueError")


@pytest.mark.parametrize(
    ("outcome", "again", "told"),
    [
        (Failure(ERROR, ERR, ERROR), False, ("stale", "error", "lease_lost")),
        (Failure(CRASHED, ERR, CRASHED, attempted=False), False, ("stale", "", "lease_lost")),
        (Retry(1, TIMEOUT, ERR), True, ("stale", "timeout", "sent_again")),
        (Requeue(3, "shutdown"), False, ("stale", "", "released")),
    ],
)
def test_a_stale_outcome_is_told_as_such(box, outcome, again, told):
    box.outbox.settle([settlement(outcome, again=again)], False)  # noqa: FBT003  a reply
    assert box.told() == [told]
    assert box.settled == [("1", 7)]


@pytest.mark.parametrize("ambiguous", [True, False])
def test_what_redis_could_not_do_now_goes_again(box, ambiguous):
    part = [settlement(Success(), "a"), settlement(Success(), "b")]
    box.outbox.settle(part, BrokerUnavailableError("busy", ambiguous=ambiguous))
    assert (box.settled, box.told(), box.refused) == ([], [], [])
    assert [(one.operation_id, one.again) for one in box.outbox.take()] == [("a", ambiguous), ("b", ambiguous)]


def test_what_redis_refuses_is_told_and_not_sent_for_ever(box):
    error = BrokerReplyError("WRONGTYPE")
    box.outbox.settle([settlement(Success(), "a"), settlement(Success(), "b")], error)
    assert box.refused == [error]
    assert box.settled == [("a", 7), ("b", 7)]  # the leases run out, and the operations run again
    assert box.told() == []
    assert len(box.outbox) == 0


def test_an_error_is_kept_as_json():
    assert json.loads(encode_error("error", ERR)) == {
        "reason": "error",
        "type": "ValueError",
        "message": "no",
        "traceback": "Traceback",
    }


def test_an_outcome_that_cannot_be_settled_hinders_no_other():
    box = Box()
    parts = box.outbox.calls([settlement(Success(None), "a"), settlement(Requeue(), "b"), settlement(Requeue(), "c")])

    def tell(event):
        if event.operation.operation_id != "c":
            raise SystemExit(event.operation.operation_id)

    box.hooks.on_event = tell
    with pytest.raises(SystemExit, match=r"^a$"):
        box.outbox.settle_all(parts, [[True], True, True, "the reply of a claim"])
    assert box.settled == [("a", 7), ("b", 7), ("c", 7)]


@pytest.mark.parametrize("outcome", [Retry(1, ERROR, ERR), Requeue()])
def test_when_its_processor_was_first_called_goes_along(box, outcome):
    assert box.call(outcome, first_called=12.5).args[-1] == 12_500
