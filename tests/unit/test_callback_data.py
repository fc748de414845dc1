import json

import pytest
from fakes import item

from queue_system.keys import CALLBACK_QUEUE
from queue_system.operation import UNSERIALIZABLE, decode_operation
from queue_system.outcome import ErrorInfo, Failure, Reject, Requeue, Retry, Success
from queue_system.runtime.callbacks import TOO_LARGE, callback_for

ERR = ErrorInfo("ValueError", "no", "Traceback ...")
CLAIMED = item(attempts=1, on_success=("done", "app"), on_failure=("gave_up", None))
COMMON = {
    "operation_id": "id-1",
    "queue": "mail",
    "priority": "high",
    "processor": "work",
    "entity": {"n": 1},
    "attempts": 2,
}


def callback(outcome, claimed=CLAIMED, *, max_bytes=10_000, max_depth=20, headers=None):
    return callback_for(claimed, outcome, headers or {}, max_bytes=max_bytes, max_depth=max_depth)


def data(outcome, claimed=CLAIMED, **limits) -> dict:
    """What the callback will be called with, decoded as a worker does it."""
    made = callback(outcome, claimed, **limits)
    return decode_operation(made.body, max_bytes=limits.get("max_bytes", 10_000))["entity"]


def test_after_success_it_gets_the_result():
    assert data(Success({"ok": [1]})) == {**COMMON, "result": {"ok": [1]}}


def test_after_failure_it_gets_reason_and_error():
    error = {"type": "ValueError", "message": "no"}
    assert data(Failure("error", ERR, "error")) == {**COMMON, "reason": "error", "error": error}


def test_a_failure_without_an_attempt_counts_none():
    outcome = Failure("total_timeout", ERR, "total_timeout", attempted=False)
    assert data(outcome)["attempts"] == 1


@pytest.mark.parametrize(
    ("outcome", "target"), [(Success(), ("done", "app")), (Failure("error", ERR, "error"), ("gave_up", None))]
)
def test_it_is_an_operation_of_its_own(outcome, target):
    made = callback(outcome, headers={"traceparent": "00-a"})
    assert (made.queue, made.priority) == (CALLBACK_QUEUE, "high")
    operation = decode_operation(made.body)
    assert operation["operation_id"] == made.operation_id != "id-1"
    assert (operation["processor"], operation["processor_module"]) == target
    assert (operation["kind"], operation["queue"], operation["priority"]) == ("callback", CALLBACK_QUEUE, "high")
    assert operation["headers"] == {"traceparent": "00-a"}
    assert callback(outcome).operation_id != made.operation_id


@pytest.mark.parametrize(
    "outcome",
    [Retry(1, "error", ERR), Requeue(), Reject("DecodeError", ERR), Success(), Failure("error", ERR, "error")],
)
def test_none_is_made_that_nobody_asked_for(outcome):
    asked = isinstance(outcome, Success | Failure | Reject)
    assert (callback(outcome) is not None) is asked
    assert callback(outcome, item()) is None


def test_success_and_failure_do_not_take_each_others_callback():
    assert callback(Success(), item(on_failure=("f", None))) is None
    assert callback(Failure("error", ERR, "error"), item(on_success=("s", None))) is None


CIRCLE: dict = {}
CIRCLE["self"] = CIRCLE


class Unprintable:
    def __repr__(self):
        raise OSError


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (1j, {UNSERIALIZABLE: "builtins.complex"}),
        ({"a": {1}}, {"a": [1]}),
        ("\ud800", "builtins.str"),
        (CIRCLE, "builtins.dict"),
        ({1: 1, "1": 2}, "builtins.dict"),
        (Unprintable(), {UNSERIALIZABLE: "test_callback_data.Unprintable"}),
        (float("nan"), None),
    ],
)
def test_any_result_gives_a_callback(result, shown):
    given = data(Success(result))
    assert {**given, "result": None} == {**COMMON, "result": None}
    if isinstance(shown, str):
        assert (given["result"].keys(), given["result"][UNSERIALIZABLE]) == ({UNSERIALIZABLE, "reason"}, shown)
    else:
        assert given["result"] == shown


def test_a_result_that_is_too_large_is_left_out():
    assert data(Success("x" * 10_000)) == {**COMMON, "result": TOO_LARGE}


def test_a_result_that_is_nested_too_deep_is_left_out():
    result = None
    for _ in range(30):
        result = [result]
    assert data(Success(result)) == {**COMMON, "result": TOO_LARGE}


def test_an_entity_that_is_too_large_is_left_out_too():
    big = item(entity={"x": "y" * 10_000}, on_success=("done", None), on_failure=("gave_up", None))
    given = data(Success("result"), big)
    assert (given["entity"], given["result"]) == ({"left_out": TOO_LARGE}, TOO_LARGE)
    given = data(Failure("error", ERR, "error"), big)
    assert (given["entity"], given["error"]["message"]) == ({"left_out": TOO_LARGE}, "no")


def test_an_error_that_is_too_large_loses_its_message_last():
    given = data(Failure("error", ErrorInfo("ValueError", "é" * 1000), "error"), max_bytes=800)
    assert given["error"] == {"type": "ValueError", "message": TOO_LARGE}
    assert given["reason"] == "error"


@pytest.mark.parametrize("outcome", [Success("x"), Failure("error", ERR, "error")])
def test_not_even_an_impossible_limit_keeps_the_outcome_from_being_written(outcome):
    made = callback(outcome, max_bytes=10, max_depth=1)
    assert json.loads(made.body)["entity"]["operation_id"] == "id-1"


@pytest.mark.parametrize("added", [{"object": Unprintable()}, {"circle": CIRCLE}, {"text": "\udcff"}])
def test_what_a_processor_has_put_into_its_entity_does_no_harm(added):
    assert data(Success("fine"), {**CLAIMED, "entity": {"n": 1, **added}})["result"] == "fine"
