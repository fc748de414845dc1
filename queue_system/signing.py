"""Signed bodies: what a worker decodes was written by someone who holds a key, for this id and this queue.

A signed body is ``hs1:{key id}:{signature}:{priority}:{queue}:`` and the JSON of the operation. The signature is
HMAC-SHA256 over the key's id, the prefix of all keys, the operation's id, its queue and the JSON; each but the last is
preceded by its length, so that no two operations give the same bytes to sign. The queue is written in front, and not
only in the JSON, because everything is verified before anything is decoded.
"""

from __future__ import annotations

import hmac
import re
import struct
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from queue_system.errors import BadSignatureError, ConfigurationError, DecodeError

MIN_SECRET: Final = 32
"""Characters of a secret, at least: ``secrets.token_urlsafe(32)`` has 43."""

MAX_HEADER: Final = 256
"""Bytes that a signature puts in front of a body, at most."""

_MARK: Final = b"hs1:"
_HEADER: Final = re.compile(
    rb"hs1:(?P<key>[A-Za-z0-9_-]{1,16}):(?P<signature>[A-Za-z0-9_-]{43}):"
    rb"(?P<queue>(?:high|normal|low):[A-Za-z0-9_.-]{1,64}):"
)
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,16}")
_DOMAIN: Final = b"queue-system operation 1"  # the same secret in use elsewhere gives other signatures
_FORM: Final = (
    "a signing key is 'ID:SECRET': an id of 1 to 16 characters of A-Z, a-z, 0-9, '_' and '-', and a secret of "
    f"{MIN_SECRET} or more printable characters without spaces and commas, e.g. from "
    '`python -c "import secrets; print(secrets.token_urlsafe(32))"`'
)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret and the id under which bodies name it. Its ``repr`` does not show the secret."""

    key_id: str
    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: object) -> Self:
        """The key in ``ID:SECRET``.

        Raises:
            ConfigurationError: it has another form. The text does not quote what was given: it may be the secret.
        """
        if not isinstance(text, str):
            raise ConfigurationError(f"signing_keys has a {type(text).__name__}: {_FORM}")
        key_id, colon, secret = text.partition(":")
        readable = secret.isascii() and secret.isprintable() and not any(each in secret for each in " ,")
        if not colon or not _KEY_ID.fullmatch(key_id) or len(secret) < MIN_SECRET or not readable:
            raise ConfigurationError(f"signing_keys has one that is none: {_FORM}")
        return cls(key_id, secret.encode())


class Signer:
    """Signs bodies with the first key, and verifies them with whichever key they name. Thread-safe.

    Args:
        keys: ``ID:SECRET`` or `SigningKey`. Without any, nothing is signed, and signatures are passed over unverified.
        scope: prefix of all Redis keys: what was signed for one queue system is no good in another.
        required: whether a body without a signature is refused; without keys it never is.

    Raises:
        ConfigurationError: a key is malformed, or two have one id.
    """

    def __init__(self, keys: Sequence[str | SigningKey] = (), *, scope: str = "queue:", required: bool = True) -> None:
        if isinstance(keys, str | bytes | bytearray) or not isinstance(keys, Sequence):
            raise ConfigurationError(f"signing_keys must be a list, not {type(keys).__name__}: {_FORM}")
        if not isinstance(required, bool):
            raise ConfigurationError(f"require_signature must be True or False, not {type(required).__name__}")
        parsed = [key if isinstance(key, SigningKey) else SigningKey.parse(key) for key in keys]
        self.key_ids = tuple(key.key_id for key in parsed)
        if len(set(self.key_ids)) < len(parsed):
            raise ConfigurationError(f"signing_keys has an id twice among {', '.join(self.key_ids)}: give each its own")
        self._required = required and bool(parsed)
        # Keyed once: what is the same for every body is hashed once.
        self._keyed = {
            key.key_id.encode(): hmac.new(key.secret, _framed(_DOMAIN, key.key_id.encode(), scope.encode()), "sha256")
            for key in parsed
        }
        self._first = self.key_ids[0].encode() if parsed else b""

    def __repr__(self) -> str:
        return f"Signer(key_ids={self.key_ids!r}, required={self._required})"

    def seal(self, operation_id: str, queue: str, body: bytes) -> bytes:
        """The body with its signature in front; as it is when there is no key.

        Args:
            operation_id: whose body it is.
            queue: ``{priority}:{queue}``.
            body: an encoded operation.
        """
        if not self._keyed:
            return body
        name = queue.encode()
        return b"%b%b:%b:%b:%b" % (_MARK, self._first, self._sign(self._first, operation_id, name, body), name, body)

    def open(self, operation_id: str, queue: str, raw: bytes, *, max_bytes: int) -> bytes:
        """The encoded operation in a body, once its signature is verified.

        Args:
            operation_id: under which it is in Redis.
            queue: ``{priority}:{queue}`` that it came from; empty when that is not known.
            raw: what is in Redis.
            max_bytes: limit of the encoded operation, without its signature.

        Raises:
            BadSignatureError: it has none, or one of an unknown key, for another id or queue, or over another body.
            DecodeError: it is too large to be looked at.
        """
        if not self._keyed and not raw.startswith(_MARK):
            return raw
        if len(raw) > max_bytes + MAX_HEADER:
            raise DecodeError(f"{len(raw):,} bytes, more than the limit of {max_bytes:,}", raw)
        header = _HEADER.match(raw)
        if header is None:
            return self._without_header(raw)
        body = raw[header.end() :]
        if self._keyed:
            self._verify(header, operation_id, queue, raw, body)
        return body

    def _without_header(self, raw: bytes) -> bytes:
        if self._keyed and raw.startswith(_MARK):
            raise BadSignatureError("its signature is malformed", raw)
        if self._required:
            raise BadSignatureError(
                "it has no signature, and one is required: was it enqueued without signing_keys, or by someone else?",
                raw,
            )
        return raw

    def _verify(self, header: re.Match[bytes], operation_id: str, queue: str, raw: bytes, body: bytes) -> None:
        key_id, name = header["key"], header["queue"]
        if key_id not in self._keyed:
            raise BadSignatureError(
                f"signed with the key {key_id.decode()!r}, which is not among {', '.join(self.key_ids)}", raw
            )
        if not hmac.compare_digest(self._sign(key_id, operation_id, name, body), header["signature"]):
            raise BadSignatureError(
                f"its signature with the key {key_id.decode()!r} does not fit its id, queue and body", raw
            )
        if queue and queue.encode("utf-8", "surrogateescape") != name:
            raise BadSignatureError(f"signed for the queue {name.decode()}, and found in another", raw)

    def _sign(self, key_id: bytes, operation_id: str, queue: bytes, body: bytes) -> bytes:
        keyed = self._keyed[key_id].copy()
        keyed.update(_framed(operation_id.encode("utf-8", "surrogateescape"), queue))
        keyed.update(body)
        return urlsafe_b64encode(keyed.digest())[:-1]  # 32 bytes always end with one '='


def _framed(*parts: bytes) -> bytes:
    """The parts, each preceded by its length as 8 bytes."""
    return b"".join(struct.pack(">Q", len(part)) + part for part in parts)


UNSIGNED: Final = Signer()
"""Signs nothing and verifies nothing."""
