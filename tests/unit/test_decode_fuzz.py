"""Whatever stands in Redis, decoding it gives an operation that keeps its types, or a `DecodeError` with the bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.payloads import hostile_operations, kinds
from queue_system.broker.messages import Delivery
from queue_system.errors import DecodeError, ImportRefusedError
from queue_system.events import OperationInfo
from queue_system.hooks import Hooks
from queue_system.imports import ImportPolicy
from queue_system.operation import decode_operation, nesting_exceeds
from queue_system.registry import Registry, Resolver
from queue_system.runtime.attempts import Attempts
from queue_system.runtime.intake import Claim
from queue_system.signing import Signer

LIMIT = 4096
KEY = "k:" + "s" * 40
GOOD = {
    "v": 1, "operation_id": "a", "processor": "work", "processor_module": "app", "queue": "mail", "priority": "low",
    "entity": {"n": 1}, "kind": "operation", "retry_config": {"max_attempts": 3, "delays": [1.0]}, "timeout": 5.0,
    "on_success": ["done", "app"], "on_failure": None, "headers": {"traceparent": "00-a"}, "attempts": 3, "token": 9,
}  # fmt: skip
TYPES: dict[str, Any] = {"operation_id": str, "processor": str, "queue": str, "priority": str, "entity": dict}

NASTY = [
    None, True, 0, -1, 1.5, 10**30, -(10**400),
    1e308, float("nan"), float("inf"), "", "x", "\0", "\n", "\ud800", "a" * 200,
    "os.system", "__import__", [], [[]], ["a"], ["a", "b"], ["a", None], ["a", 1],
    [-1.0], [1e308], {}, {"": ""}, {"a": {}},
    {"a": 1}, {"traceparent": "x\r\n"}, {"max_attempts": 0}, {"max_attempts": 10**30}, {"max_attempts": True},
    {"delays": [-1]}, {"delays": ["x"]}, {"delays": []}, {"timeout": -1}, {"timeout": 1e999}, {"unknown": 1},
]  # fmt: skip
values = st.sampled_from(NASTY) | st.integers() | st.text(max_size=5)
envelopes = st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, values)).map(lambda changes: GOOD | changes)
fewer = st.tuples(envelopes, st.sets(st.sampled_from(sorted(GOOD)), max_size=3)).map(
    lambda pair: {name: value for name, value in pair[0].items() if name not in pair[1]}
)
bodies = fewer.map(lambda fields: json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def understood(raw: bytes, signer: Signer) -> bool:
    """The steps of a worker up to the call of the processor; anything but the errors that it expects comes out."""
    registry = Registry()
    registry.register(print, name="work", module="app")
    attempts = Attempts(
        "w",
        Hooks(),
        None,
        clock=lambda: 2.0,
        max_bytes=LIMIT,
        max_depth=10,
        on_outcome=lambda: None,  # type: ignore[arg-type]
    )
    claim = Claim(Delivery("a", "q:low:mail", 1, 1, 0, 0, 0, 1.0, 1.0, 1.0, 2.0, "", raw), sync=False)
    try:
        item = decode_operation(signer.open("a", "low:mail", raw, max_bytes=LIMIT), max_bytes=LIMIT, max_depth=10)
        Resolver(registry, ImportPolicy([])).resolve(item["processor"], item["processor_module"])
        attempt = attempts.open(item, claim, is_async=True)
    except (DecodeError, ImportRefusedError):
        return False
    assert isinstance(attempt.info, OperationInfo)
    assert all(isinstance(item[name], kind) for name, kind in TYPES.items())
    assert attempt.retry.max_attempts >= 1
    assert all(isinstance(text, str) for pair in item.get("headers", {}).items() for text in pair)
    return True


@settings(max_examples=150, deadline=None)
@given(bodies)
def test_an_envelope_with_any_values(raw):
    understood(raw, Signer())


@settings(max_examples=80, deadline=None)
@given(bodies, st.data())
def test_a_flipped_byte(raw, data):
    at = data.draw(st.integers(0, len(raw) - 1))
    understood(raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :], Signer())


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200) | bodies)
def test_with_a_key_nothing_unsigned_is_understood(raw):
    assert not understood(raw, Signer([KEY]))
    assert not understood(b"hs1:k:" + raw, Signer([KEY]))


def test_what_is_good_is_understood():
    raw = json.dumps(GOOD).encode()
    signer = Signer([KEY])
    assert understood(raw, Signer())
    assert understood(signer.seal("a", "low:mail", raw), signer)
    assert not understood(json.dumps(GOOD | {"retry_config": {"delays": [-1]}}).encode(), Signer())
    assert not understood(json.dumps(GOOD | {"processor_module": "os"}).encode(), Signer())


@pytest.mark.parametrize("seed", range(10))
def test_the_hostile_operations_of_the_fault_suite(seed):
    for each in hostile_operations(3 * kinds(), seed):
        if each.body is not None:
            understood(each.body, Signer())


@settings(max_examples=80, deadline=None)
@given(st.recursive(st.sampled_from([1, "[", '{"', "\\"]), lambda inner: st.lists(inner, max_size=2), max_leaves=5))
def test_the_depth_that_is_counted_is_that_of_the_value(value):
    def depth(one: Any) -> int:
        return 1 + max(map(depth, one), default=0) if isinstance(one, list) else 0

    raw = msgspec.json.encode(value)
    assert not nesting_exceeds(raw, depth(value))
    assert depth(value) == 0 or nesting_exceeds(raw, depth(value) - 1)
