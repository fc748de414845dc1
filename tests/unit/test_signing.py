"""Signatures: what fits, what does not, and that a secret is shown nowhere."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import pickle
import struct
import traceback

import pytest
from fakes import Producer, compute, operations_of
from hypothesis import given
from hypothesis import strategies as st

from queue_system import BadSignatureError, ConfigurationError, DecodeError, QueueConfig
from queue_system.failures import decode_body
from queue_system.operation import decode_operation, encode_entity, encode_operation
from queue_system.registry import Registry
from queue_system.settings import Settings
from queue_system.signing import MAX_HEADER, Signer, SigningKey

OLD = "2026-01:" + "o" * 16 + "ld-secret-of-32-characters"
NEW = "2026-07:" + "n" * 16 + "ew-secret-of-32-characters"
SECRETS = ("ld-secret", "ew-secret")
QUEUE = "normal:mail"
BODY = b'{"v":1}'
LIMIT = 1000
ENVELOPE = {"v": 1, "operation_id": "a", "processor": "p", "processor_module": None, "queue": "q", "priority": "low"}


def opened(signer: Signer, raw: bytes, operation_id: str = "a", queue: str = QUEUE) -> bytes:
    return signer.open(operation_id, queue, raw, max_bytes=LIMIT)


def test_the_form_of_a_signed_body_is_that_of_the_documentation():
    sealed = Signer([OLD]).seal("a", QUEUE, BODY)
    mark, key_id, signature, priority, queue, body = sealed.split(b":", 5)
    assert (mark, key_id, priority, queue, body) == (b"hs1", b"2026-01", b"normal", b"mail", BODY)
    assert len(signature) == 43
    # Computed by hand from what the module's text says: a change of the form would cut off what is in Redis.
    parts = (b"queue-system operation 1", b"2026-01", b"queue:", b"a", b"normal:mail")
    signed = b"".join(struct.pack(">Q", len(part)) + part for part in parts) + BODY
    digest = hmac.new(OLD.partition(":")[2].encode(), signed, hashlib.sha256).digest()
    assert signature == base64.urlsafe_b64encode(digest).rstrip(b"=")


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.binary(max_size=200))
def test_what_was_signed_is_opened(operation_id, body):
    signer = Signer([OLD])
    assert opened(signer, signer.seal(operation_id, QUEUE, body), operation_id) == body


@given(st.data())
def test_not_one_bit_of_it_may_change(data):
    signer = Signer([OLD])
    sealed = bytearray(signer.seal("a", QUEUE, BODY))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadSignatureError) as caught:
        opened(signer, bytes(sealed))
    assert caught.value.raw == bytes(sealed)


@pytest.mark.parametrize(
    ("operation_id", "queue", "why"),
    [
        ("b", QUEUE, "does not fit its id, queue and body"),
        ("a", "high:mail", "signed for the queue normal:mail, and found in another"),
        ("a", "normal:mai", "found in another"),
        ("a\udcff", QUEUE, "does not fit"),
    ],
)
def test_it_is_good_for_one_id_and_one_queue(operation_id, queue, why):
    signer = Signer([OLD])
    with pytest.raises(BadSignatureError, match=why):
        opened(signer, signer.seal("a", QUEUE, BODY), operation_id, queue)


def test_the_queue_in_front_cannot_be_exchanged():
    signer = Signer([OLD])
    moved = signer.seal("a", QUEUE, BODY).replace(b"normal:mail", b"high:mail")
    with pytest.raises(BadSignatureError, match="does not fit"):
        opened(signer, moved, queue="high:mail")


def test_parts_cannot_be_shifted_into_each_other():
    signer = Signer([OLD])
    one, other = signer.seal("ab", "low:c", BODY), signer.seal("a", "low:bc", BODY)
    assert one.split(b":")[2] != other.split(b":")[2]
    assert signer.seal("a", "low:c", b"xy").split(b":")[2] != signer.seal("ax", "low:c", b"y").split(b":")[2]


def test_a_queue_that_is_not_known_is_the_one_that_it_was_signed_for():
    signer = Signer([OLD])
    assert opened(signer, signer.seal("a", QUEUE, BODY), queue="") == BODY


def test_another_prefix_is_another_queue_system():
    sealed = Signer([OLD], scope="staging:").seal("a", QUEUE, BODY)
    assert opened(Signer([OLD], scope="staging:"), sealed) == BODY
    with pytest.raises(BadSignatureError):
        opened(Signer([OLD], scope="production:"), sealed)


def test_keys_are_exchanged_in_three_steps_and_each_step_reads_its_neighbours():
    steps = [Signer([OLD]), Signer([OLD, NEW]), Signer([NEW, OLD]), Signer([NEW])]
    for before, after in itertools.pairwise(steps):
        assert opened(after, before.seal("a", QUEUE, BODY)) == BODY
        assert opened(before, after.seal("a", QUEUE, BODY)) == BODY
    assert steps[2].seal("a", QUEUE, BODY).startswith(b"hs1:2026-07:")
    with pytest.raises(BadSignatureError, match=r"the key '2026-01', which is not among 2026-07$"):
        opened(steps[3], steps[0].seal("a", QUEUE, BODY))


def test_a_secret_of_the_same_id_is_another_key():
    sealed = Signer(["2026-01:" + "x" * 40]).seal("a", QUEUE, BODY)
    with pytest.raises(BadSignatureError, match="does not fit"):
        opened(Signer([OLD]), sealed)


@pytest.mark.parametrize("raw", [BODY, b"", b"\xff", b"hs1", b" hs1:"])
def test_without_a_signature_it_is_refused_unless_that_is_allowed(raw):
    with pytest.raises(BadSignatureError, match="has no signature, and one is required"):
        opened(Signer([OLD]), raw)
    assert opened(Signer([OLD], required=False), raw) == raw
    assert opened(Signer(), raw) == raw


@pytest.mark.parametrize(
    "raw", [b"hs1:", b"hs1:2026-01::normal:mail:{}", b"hs1:a b:" + b"x" * 43 + b":normal:mail:{}",
            b"hs1:2026-01:" + b"x" * 43 + b":urgent:mail:{}", b"hs1:2026-01:" + b"x" * 43 + b":low:a\nb:{}"]
)  # fmt: skip
@pytest.mark.parametrize("required", [True, False])
def test_a_malformed_signature_is_refused_even_where_none_is_required(raw, required):
    with pytest.raises(BadSignatureError, match="malformed"):
        opened(Signer([OLD], required=required), raw)


def test_a_wrong_signature_is_refused_even_where_none_is_required():
    sealed = Signer([OLD]).seal("a", QUEUE, BODY)
    with pytest.raises(BadSignatureError):
        opened(Signer([NEW], required=False), sealed)


def test_without_keys_nothing_is_signed_and_what_is_signed_can_be_read():
    signer = Signer()
    assert signer.seal("a", QUEUE, BODY) is BODY
    assert opened(signer, BODY) is BODY
    assert opened(signer, Signer([OLD]).seal("a", QUEUE, BODY)) == BODY


def test_the_size_is_bounded_before_anything_is_computed_and_the_signature_does_not_count():
    signer = Signer([OLD])
    assert opened(signer, signer.seal("a" * 128, "normal:" + "q" * 64, b"x" * LIMIT), "a" * 128, "") == b"x" * LIMIT
    for raw in (b"x" * (LIMIT + MAX_HEADER + 1), signer.seal("a", QUEUE, b"x" * (LIMIT + MAX_HEADER))):
        with pytest.raises(DecodeError, match="more than the limit of 1,000") as caught:
            opened(signer, raw)
        assert not isinstance(caught.value, BadSignatureError)
    longest = Signer(["k" * 16 + ":" + "s" * 32]).seal("a", "normal:" + "q" * 64, b"")
    assert len(longest) <= MAX_HEADER


BAD_KEYS = ["", "no-colon" * 5, ":" + "s" * 40, "id:short-secret", "bad id:" + "s" * 40, "i" * 17 + ":" + "s" * 40,
            "id:" + "s" * 40 + " x", "id:" + "s" * 40 + "\n", "id:ü" + "s" * 40, "id:" + "s" * 40 + ",x"]  # fmt: skip


@pytest.mark.parametrize("key", [*BAD_KEYS, 5, None, b"id:" + b"s" * 40])
def test_a_malformed_key_is_told_without_quoting_it(key):
    with pytest.raises(ConfigurationError, match="a signing key is 'ID:SECRET'") as caught:
        QueueConfig(signing_keys=[OLD, key], telemetry=None)
    assert "ssss" not in str(caught.value)
    assert "short-secret" not in "".join(traceback.format_exception(caught.value)).replace('"id:short-secret"', "")


def test_other_bad_settings_are_told():
    for options, why in (
        ({"signing_keys": OLD}, "must be a list, not str"),
        ({"signing_keys": [OLD, OLD]}, "an id twice among 2026-01, 2026-01"),
        ({"signing_keys": [OLD], "require_signature": "no"}, "require_signature must be True or False"),
    ):
        with pytest.raises(ConfigurationError, match=why) as caught:
            QueueConfig(telemetry=None, **options)
        assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_secret_is_shown_nowhere(monkeypatch):
    key = SigningKey.parse(OLD)
    signer = Signer([key, NEW])
    config = QueueConfig(signing_keys=[key, NEW], telemetry=None, registry=Registry())
    monkeypatch.setenv("QUEUE_SYSTEM_SIGNING_KEYS", f"{NEW},{OLD}")
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", "redis://:ld-secret@h/0")
    settings = Settings.load()
    assert settings.signing_keys == (NEW, OLD)
    assert settings.config(telemetry=None).signer.key_ids == ("2026-07", "2026-01")
    shown = [key, signer, vars(signer), config, vars(config), settings, str(settings)]
    assert not any(secret in repr(each) for each in shown for secret in SECRETS)
    with pytest.raises(TypeError):
        pickle.dumps(signer)


@pytest.mark.parametrize("value", ["id:short-ld-secret", f"{OLD},{OLD}", "ld-secret" * 10])
def test_a_bad_variable_is_told_by_name_and_not_shown(monkeypatch, value):
    monkeypatch.setenv("QUEUE_SYSTEM_SIGNING_KEYS", value)
    with pytest.raises(ConfigurationError, match=r"QUEUE_SYSTEM_SIGNING_KEYS: .*signing_keys") as caught:
        Settings.load()
    assert not any(secret in "".join(traceback.format_exception(caught.value)) for secret in SECRETS)


def test_the_variable_of_the_rollout(monkeypatch):
    monkeypatch.setenv("QUEUE_SYSTEM_SIGNING_KEYS", OLD)
    monkeypatch.setenv("QUEUE_SYSTEM_REQUIRE_SIGNATURE", "false")
    signer = Settings.load().config(telemetry=None).signer
    assert opened(signer, BODY) == BODY
    with pytest.raises(BadSignatureError):
        opened(signer, Signer([NEW]).seal("a", QUEUE, BODY))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_producer_signs_what_it_sends(kind):
    producer = Producer(kind, signing_keys=[OLD])
    producer.enqueue({"n": 1}, compute, queue_name="mail", priority="high")
    (call,) = producer.broker.calls
    ((operation_id, *_, sealed),) = operations_of(call)
    assert sealed.startswith(b"hs1:2026-01:")
    body = producer.config.signer.open(operation_id.decode(), "high:mail", sealed, max_bytes=10_000)
    assert json.loads(body)["entity"] == {"n": 1}


def test_the_limit_of_a_producer_does_not_count_the_signature():
    size = len(encode_operation(ENVELOPE, encode_entity({"n": 1})))
    sealed = Signer([OLD]).seal("a", "low:q", encode_operation(ENVELOPE, b'{"n":1}', max_bytes=size))
    assert decode_operation(Signer([OLD]).open("a", "low:q", sealed, max_bytes=size), max_bytes=size)


def test_what_is_looked_at_is_verified_where_there_are_keys():
    body = encode_operation(ENVELOPE, b'{"n":1}')
    with_key, without = (QueueConfig(telemetry=None, signing_keys=keys) for keys in ([OLD], []))
    sealed = with_key.signer.seal("a", "low:q", body)
    for config in (with_key, without):
        assert decode_body("a", "low:q", sealed, config)["entity"] == {"n": 1}
    assert decode_body("a", "low:q", body, without)["entity"] == {"n": 1}
    assert decode_body("a", "low:q", body, with_key) is None
    assert decode_body("b", "low:q", sealed, with_key) is None
