"""Callbacks as operations of their own: what they carry, and how one is built from its parent's outcome."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import msgspec

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
from queue_system.outcome import Failure, Outcome, Reject, Success
from queue_system.signing import UNSIGNED, Signer

TOO_LARGE: Final = "<left out: larger than the limit of an operation>"


def callback_for(
    item: Operation,
    outcome: Outcome,
    headers: dict[str, str],
    *,
    max_bytes: int,
    max_depth: int,
    signer: Signer = UNSIGNED,
) -> Callback | None:
    """The callback that an outcome asks for, if any, signed by `signer`.

    Its data is ``{"operation_id", "queue", "priority", "processor", "entity", "attempts"}`` with ``"result"`` after a
    success, and ``"reason"`` and ``"error": {"type", "message"}`` after a failure. A value without a JSON form
    is given as ``{"__unserializable__": "module.Type"}``. A result beyond the limits of an operation is left out, with
    a text that says so.
    """
    target = _target(item, outcome)
    if target is None:
        return None
    data: dict[str, Any] = {
        "operation_id": item["operation_id"],
        "queue": item["queue"],
        "priority": item["priority"],
        "processor": item["processor"],
        "entity": msgspec.Raw(encode_result(item["entity"])),  # its processor may have put anything into it
        "attempts": item.get("attempts", 0) + 1,
    }
    if isinstance(outcome, Success):
        data["result"] = msgspec.Raw(encode_result(outcome.result))
    elif isinstance(outcome, Failure | Reject):
        data["attempts"] -= isinstance(outcome, Reject) or not outcome.attempted
        data["reason"] = outcome.reason
        data["error"] = {"type": outcome.error.type, "message": outcome.error.message}
    made = _build(item, target, data, headers, max_bytes, max_depth)
    return replace(made, body=signer.seal(made.operation_id, f"{made.priority}:{made.queue}", made.body))


def _target(item: Operation, outcome: Outcome) -> tuple[str, str | None] | None:
    if isinstance(outcome, Success):
        return item.get("on_success")
    return item.get("on_failure") if isinstance(outcome, Failure | Reject) else None


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
    for less in _less_and_less(data):
        encoded = msgspec.json.encode(less)
        if nesting_exceeds(encoded, max_depth):
            continue
        try:
            body = encode_operation(operation, encoded, max_bytes=max_bytes)
        except EntityTooLargeError:
            continue
        break
    else:  # a limit that not even ids and names keep to: the outcome must be written all the same
        body = encode_operation(operation, encoded, max_bytes=sys.maxsize)
    return Callback(callback_id, CALLBACK_QUEUE, item["priority"], body)


def _less_and_less(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield data
    if "result" in data:
        data = {**data, "result": TOO_LARGE}
        yield data
    data = {**data, "entity": {"left_out": TOO_LARGE}}
    yield data
    if "error" in data:
        yield {**data, "error": {**data["error"], "message": TOO_LARGE}}
