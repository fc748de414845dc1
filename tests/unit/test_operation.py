import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import json
import pathlib
import uuid

import msgspec
import pytest
from fakes import item
from hypothesis import given
from hypothesis import strategies as st

from queue_system.errors import DecodeError, EntityTooLargeError, InvalidOperationError, SerializationError
from queue_system.operation import (
    Envelope,
    NewerSchemaError,
    decode_operation,
    encode_entity,
    encode_operation,
    encode_result,
    nesting_exceeds,
)


def raw(**fields) -> bytes:
    return json.dumps(item(**fields)).encode()


def nested(levels: int, leaf: object = 1) -> dict:
    for _ in range(levels):
        leaf = {"a": leaf}
    return leaf


class Model:
    """What a pydantic model has."""

    def __init__(self, dump: object):
        self.dump = dump

    def model_dump(self, mode):
        assert mode == "json"
        if isinstance(self.dump, Exception):
            raise self.dump
        return self.dump


class Unprintable:
    def __repr__(self):
        raise OSError("broken")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_what_json_can_hold_comes_back_as_it_was(entity):
    envelope = {name: value for name, value in item().items() if name != "entity"}
    decoded = decode_operation(encode_operation(envelope, encode_entity(entity), max_bytes=10**6))
    assert decoded == {**envelope, "entity": entity}


@given(st.dictionaries(st.text(), JSON), st.permutations(list(item())), st.text(), st.text())
def test_an_envelope_writes_what_the_encoder_writes_of_the_whole(entity, order, operation_id, text):
    operation = {name: item(kind=text)[name] for name in (*order, "kind")}
    envelope = Envelope({**operation, "headers": {text: "\x00\x01"}})
    del operation["entity"]  # which is written last
    whole = {**operation, "operation_id": operation_id, "headers": {text: "\x00\x01"}, "entity": entity}
    assert envelope.encode(operation_id, encode_entity(entity), 10**6) == msgspec.json.encode(whole)


def test_an_envelope_serves_many():
    envelope = Envelope(item())
    bodies = [envelope.encode(f"id-{n}", b'{"n":%d}' % n) for n in range(3)]
    assert [decode_operation(body) for body in bodies] == [
        item(operation_id=f"id-{n}", entity={"n": n}) for n in range(3)
    ]


def test_every_field_of_the_wire_format_survives():
    fields = {
        "kind": "callback",
        "retry_config": {"max_attempts": 2},
        "timeout": 2.5,
        "on_success": ("done", "app"),
        "on_failure": ("failed", None),
        "headers": {"traceparent": "00-1-2-01"},
    }
    assert decode_operation(raw(**fields)) == item(**fields)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05Z"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.10"), "1.10"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (b"\x00\xff", "AP8="),
        ({1: "one"}, {"1": "one"}),
        (2**70, 2**70),
        (Model({"x": 1}), {"x": 1}),
    ],
)
def test_values_come_back_in_their_nearest_json_form(value, form):
    envelope = {name: value for name, value in item().items() if name != "entity"}
    body = encode_operation(envelope, encode_entity({"v": value}))
    assert decode_operation(body)["entity"] == {"v": form}


@dataclasses.dataclass
class Point:
    x: float


@pytest.mark.parametrize(
    ("entity", "path", "told"),
    [
        ({"a": object()}, "entity['a']", "type object has no JSON form: convert it, or pass custom_serializer"),
        ({"items": [1, {"x": object()}]}, "entity['items'][1]['x']", "object"),
        ({"a": 1, "b": (0, lambda: 1)}, "entity['b'][1]", "function"),
        ({"a": {(1, 2): 3}}, "entity['a']", r"its key \(1, 2\) is not a string"),
        ({None: 1}, "entity", "its key None is not a string"),
        ({"a": {True: 1}}, "entity['a']", "its key True"),
        ({"a": "\ud800"}, "entity['a']", "surrogates not allowed"),
        ({"a": float("nan")}, "entity['a']", "is nan, which JSON cannot hold"),
        ({"a": [1.0, float("-inf")]}, "entity['a'][1]", "is -inf"),
        ({"a": Point(float("inf"))}, "entity['a']['x']", "is inf"),
        ({"a": Model(KeyError("k"))}, "entity['a']", "'k'"),
    ],
)
def test_what_cannot_be_serialised_is_told_with_its_place(entity, path, told):
    with pytest.raises(SerializationError, match=told) as caught:
        encode_entity(entity)
    assert caught.value.path == path
    assert path in str(caught.value)


def test_a_null_is_no_mistake():
    assert encode_entity({"a": None, "b": "null", "c": [None]}) == b'{"a":null,"b":"null","c":[null]}'


def test_a_custom_serializer_gives_the_form():
    assert encode_entity({"z": 1j}, lambda z: [z.real, z.imag]) == b'{"z":[0.0,1.0]}'


def _raise(_):
    raise LookupError("no form")


@pytest.mark.parametrize("serializer", [lambda _: float("nan"), lambda _: object(), lambda value: value, _raise])
def test_a_custom_serializer_cannot_smuggle_anything_in(serializer):
    with pytest.raises(InvalidOperationError):
        encode_entity({"z": 1j}, serializer)


@pytest.mark.parametrize("entity", [None, [], "text", 5, b"{}", {1}, object()])
def test_only_a_dict_is_an_entity(entity):
    with pytest.raises(InvalidOperationError, match="wrap it"):
        encode_entity(entity)


def test_sorted_keys_give_equal_bytes_for_equal_content():
    one = {"b": [{"y": 1, "x": {2: 0, 1: 0}}], "a": {"s", "t", "u"}}
    other = {"a": {"u", "t", "s"}, "b": [{"x": {1: 0, 2: 0}, "y": 1}]}
    assert encode_entity(one, sort_keys=True) == encode_entity(other, sort_keys=True)
    assert encode_entity({"a": [1, 2]}, sort_keys=True) != encode_entity({"a": [2, 1]}, sort_keys=True)


@pytest.mark.parametrize(("levels", "fits"), [(99, True), (100, True), (101, False), (3000, False), (10**5, False)])
def test_nesting_has_a_limit(levels, fits):
    if fits:
        assert encode_entity(nested(levels))
        return
    with pytest.raises(EntityTooLargeError, match="nested"):
        encode_entity(nested(levels, None))


def test_an_entity_in_a_circle_is_refused():
    entity = {}
    entity["self"] = [entity]
    with pytest.raises(EntityTooLargeError, match="contains itself"):
        encode_entity(entity)


def test_deep_and_wrong_is_still_one_clear_error():
    with pytest.raises(InvalidOperationError):
        encode_entity(nested(700, object()))


def test_size_has_a_limit_to_the_byte():
    envelope = {name: value for name, value in item().items() if name != "entity"}
    size = len(encode_operation(envelope, b'{"n":1}'))
    assert len(encode_operation(envelope, b'{"n":1}', max_bytes=size)) == size
    with pytest.raises(EntityTooLargeError, match=r"enqueue a reference .* or raise the limit"):
        encode_operation(envelope, b'{"n":1}', max_bytes=size - 1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'{"v":1}',
        b'{"v":1,"entity":{}}',
        b"\xff\xfe",
        raw()[:-1],
        raw() + b"}",
        raw(entity=[]),
        raw(entity=None),
        raw(operation_id=5),
        raw(headers={"a": 1}),
        raw(timeout="soon"),
        raw(on_success=["a"]),
        raw(v="1"),
        raw().replace(b'"mail"', b'"\xff"'),
        raw().replace(b'"mail"', b'"\\ud800"'),
        raw().replace(b'{"n": 1}', b'{"n": 1e999}'),
        raw().replace(b'{"n": 1}', b'{"n": NaN}'),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        raw().replace(b'{"n": 1}', json.dumps(nested(200)).encode()),
        b" " * (256 * 1024 + 1),
    ],
)
def test_what_is_no_operation_is_a_decode_error_that_keeps_the_bytes(body):
    with pytest.raises(DecodeError) as caught:
        decode_operation(body)
    assert not isinstance(caught.value, NewerSchemaError)
    assert caught.value.raw is body


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(body):
    with contextlib.suppress(DecodeError):
        assert decode_operation(body)


@pytest.mark.parametrize("body", [raw(v=2), b'{"v":2,"of":"another shape"}', raw(v=99, entity=[])])
def test_a_newer_schema_is_told_apart(body):
    with pytest.raises(NewerSchemaError):
        decode_operation(body)


def test_unknown_fields_of_the_same_version_are_ignored():
    assert decode_operation(raw(extra=1)) == item()


def test_limits_of_decoding_are_the_callers():
    with pytest.raises(DecodeError, match="more than the limit"):
        decode_operation(raw(), max_bytes=10)
    with pytest.raises(DecodeError, match="nested deeper"):
        decode_operation(raw(), max_depth=1)
    assert decode_operation(raw(), max_depth=2)


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("1", 0),
        ("[]", 1),
        ('[{"a": [1]}]', 3),
        ("[[], [], []]", 2),
        (r'["[[[["]', 1),
        (r'["\"[[[[", "\\"]', 1),
        ('{"{[": "]}"}', 1),
        ('["' + "[" * 1000 + '"]', 1),
    ],
)
def test_nesting_counts_brackets_outside_of_strings(text, depth):
    assert not nesting_exceeds(text.encode(), depth)
    assert depth == 0 or nesting_exceeds(text.encode(), depth - 1)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ({"a": [1, None]}, {"a": [1, None]}),
        (None, None),
        (float("inf"), None),
        ({1, 2}, [1, 2]),
        ({1: "a", "2": "b"}, {"1": "a", "2": "b"}),
        (1j, {"__unserializable__": "builtins.complex"}),
        ({"a": [1j]}, {"a": [{"__unserializable__": "builtins.complex"}]}),
        (Unprintable(), {"__unserializable__": "test_operation.Unprintable"}),
        (Model(KeyError()), {"__unserializable__": "test_operation.Model"}),
        ({"p": pathlib.PurePosixPath("/a")}, {"p": "/a"}),
        (Model({"x": 1}), {"x": 1}),
    ],
)
def test_a_value_of_a_result_without_a_json_form_is_named(value, form):
    assert json.loads(encode_result(value)) == form


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        ("\ud800", "builtins.str", "UnicodeEncodeError: "),
        (nested(10**5), "builtins.dict", "RecursionError"),
        ({True: 1}, "builtins.dict", "TypeError: it has a key without a JSON form"),
        ({None: 1}, "builtins.dict", "TypeError: it has a key without a JSON form"),
        ([{(1, 2): 1}], "builtins.list", "TypeError: it has a key without a JSON form"),
        ({1j: 1}, "builtins.dict", "TypeError: it has a key without a JSON form"),
        ({1: "a", "1": "b"}, "builtins.dict", "result: its keys 1 and '1' are the same in JSON, and one would be lost"),
        ([{"a": {1.5: "a", "1.5": "b"}}], "builtins.list", "result[0]['a']: its keys 1.5 and '1.5' are the same"),
        (Model({1: "a", "1": "b"}), "test_operation.Model", "result: its keys 1 and '1' are the same"),
    ],
)
def test_no_result_fails_an_operation_that_has_succeeded(value, kind, reason):
    marker = json.loads(encode_result(value))
    assert marker.pop("reason").startswith(reason)
    assert marker == {"__unserializable__": kind}


class Hostile(BaseException):
    def __str__(self):
        raise SystemExit


def test_whatever_a_conversion_raises_is_a_marker(monkeypatch):
    class Exits:
        def model_dump(self, mode):
            raise SystemExit(3)

    class Breaks(type):
        @property
        def __module__(cls):
            raise Hostile

    class Broken(metaclass=Breaks):
        pass

    assert json.loads(encode_result([Exits()]))[0]["__unserializable__"].endswith(".Exits")
    assert json.loads(encode_result([Broken()]))["reason"] == "Hostile"


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Box:
    content: object


class Record(msgspec.Struct):
    content: object


TWINS = {1: "a", "1": "b"}


@pytest.mark.parametrize(
    ("entity", "path", "keys"),
    [
        (TWINS, "entity", "1 and '1'"),
        ({"1": "b", 1: "a"}, "entity", "'1' and 1"),
        ({1.0: 1, "1.0": 2}, "entity", "1.0 and '1.0'"),
        ({Colour.RED: 1, "red": 2}, "entity", "<Colour.RED: 'red'> and 'red'"),
        ({uuid.UUID(int=7): 1, str(uuid.UUID(int=7)): 2}, "entity", f"{uuid.UUID(int=7)!r} and"),
        ({"a": [0, {"b": TWINS}]}, "entity['a'][1]['b']", "1 and '1'"),
        ({"a": (TWINS,)}, "entity['a'][0]", "1 and '1'"),
        ({"a": Box(TWINS)}, "entity['a'].content", "1 and '1'"),
        ({"a": Record([TWINS])}, "entity['a'].content[0]", "1 and '1'"),
        ({"a": Model({"b": TWINS})}, "entity['a']['b']", "1 and '1'"),
    ],
)
@pytest.mark.parametrize("sort_keys", [False, True])
def test_keys_that_are_one_in_json_are_refused(entity, path, keys, sort_keys):
    with pytest.raises(SerializationError) as caught:
        encode_entity(entity, sort_keys=sort_keys)
    assert caught.value.path == path
    assert f"{path} cannot be serialised: its keys {keys}" in str(caught.value)
    assert str(caught.value).endswith("are the same in JSON, and one would be lost: use texts as keys")


def test_what_a_serializer_returns_is_looked_at_too():
    with pytest.raises(SerializationError, match="its keys 1 and '1' are the same") as caught:
        encode_entity({"a": 1j}, lambda value: TWINS)
    assert caught.value.path == "entity['a']"
    with pytest.raises(SerializationError):
        encode_entity(TWINS, repr)
    assert json.loads(encode_entity({(1, 2): {"a": 1}}, repr)) == {"(1, 2)": {"a": 1}}
    with pytest.raises(SerializationError, match="are the same in JSON"):
        encode_entity({(1, 2): 1, "(1, 2)": 2}, repr)


def test_keys_that_cannot_be_looked_through_are_refused():
    answers = iter([{1: 2}, {1: 2}])
    with pytest.raises(SerializationError, match="has keys that are no texts, and cannot be looked through"):
        encode_entity({"a": 1j}, lambda _: next(answers))


@pytest.mark.parametrize("key", [True, None, (1, 2)])
def test_keys_without_a_json_form_are_refused(key):
    with pytest.raises(SerializationError, match="is not a string"):
        encode_entity({"a": [{key: 1, str(key): 2}]})


@pytest.mark.parametrize(
    "entity",
    [
        {},
        {1: "a"},
        {1: "a", "2": "b", "text": "{"},
        {"a": {1: "a", 2.5: "b", "text": [1, "{", None, {3: 4}]}},
        {"a": Box({1: 2}), "b": Model({"c": {1: 2}}), "d": {1, 2}, "when": [dt.date(2020, 1, 1)]},
    ],
)
def test_keys_that_are_no_texts_are_fine_when_none_is_lost(entity):
    assert isinstance(json.loads(encode_entity(entity)), dict)
