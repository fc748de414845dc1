"""Callbacks as operations of their own: what they carry, and how one is built from its parent's outcome."""

from __future__ import annotations

import uuid
from typing import Any, Final

from queue_system.broker.messages import Callback
from queue_system.errors import EntityTooLargeError
from queue_system.keys import CALLBACK_QUEUE
from queue_system.operation import (
    KIND_CALLBACK,
    WIRE_VERSION,
    Operation,
    encode_operation,
    encode_result,
    nesting_exceeds,
)
from queue_system.outcome import Failure, Outcome, Success

TOO_LARGE: Final = "<left out: larger than the limit of an operation>"


def callback_for(
    item: Operation, outcome: Outcome, headers: dict[str, str], *, max_bytes: int, max_depth: int
) -> Callback | None:
    """The callback that an outcome asks for, if any.

    Its data is ``{"operation_id", "queue", "priority", "processor", "entity", "attempts"}`` with ``"result"`` after a
    success, and ``"reason"`` and ``"error": {"type", "message"}`` after a failure. A result without a JSON form is
    given as its ``repr``; one beyond the limits of an operation is left out, with a text that says so.
    """
    data: dict[str, Any] = {
        "operation_id": item["operation_id"],
        "queue": item["queue"],
        "priority": item["priority"],
        "processor": item["processor"],
        "entity": item["entity"],
        "attempts": item.get("attempts", 0) + 1,
    }
    if isinstance(outcome, Success):
        target = item.get("on_success")
        data["result"] = outcome.result
    elif isinstance(outcome, Failure):
        target = item.get("on_failure")
        data["attempts"] -= not outcome.attempted
        data["reason"] = outcome.reason
        data["error"] = {"type": outcome.error.type, "message": outcome.error.message}
    else:
        return None
    if target is None:
        return None
    return _build(item, target, data, headers, max_bytes, max_depth)


def _build(
    item: Operation,
    target: tuple[str, str | None],
    data: dict[str, Any],
    headers: dict[str, str],
    max_bytes: int,
    max_depth: int,
) -> Callback:
    callback_id = uuid.uuid4().hex
    operation = {
        "v": WIRE_VERSION,
        "operation_id": callback_id,
        "kind": KIND_CALLBACK,
        "processor": target[0],
        "processor_module": target[1],
        "queue": CALLBACK_QUEUE,
        "priority": item["priority"],
        "headers": headers,
    }
    for without in ({}, {"result": TOO_LARGE}, {"result": TOO_LARGE, "entity": {"left_out": TOO_LARGE}}):
        encoded = encode_result({**data, **{name: text for name, text in without.items() if name in data}})
        if nesting_exceeds(encoded, max_depth):
            continue
        try:
            body = encode_operation(operation, encoded, max_bytes=max_bytes)
        except EntityTooLargeError:
            continue
        break
    return Callback(callback_id, CALLBACK_QUEUE, item["priority"], body)
