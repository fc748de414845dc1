"""Hostile operations: what an attacker who can write to Redis may put there. Made from a seed; without I/O."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

QUEUE: Final = "normal:hostile"
KNOWN: Final = "work"
MODULE: Final = "chaos.processors"
LIMIT: Final = 2 * 256 * 1024
"""What a worker of default settings takes of one operation, in bytes."""

REJECTED: Final = frozenset({"system_error"})
NEVER_RUN: Final = frozenset({"system_error", "failed"})
"""An unknown name in a module that is allowed waits for a newer worker, and then fails."""

HARMLESS: Final = frozenset({"system_error", "failed", "done"})
"""A hash whose numbers or headers are nonsense around a body that is allowed: it may run, too."""

FORBIDDEN: Final[tuple[tuple[Any, Any], ...]] = (
    ("system", "os"), ("system", "posix"), ("run", "subprocess"), ("Popen", "subprocess"), ("eval", "builtins"),
    ("exec", "builtins"), ("__import__", "builtins"), ("loads", "pickle"), ("loads", "marshal"), ("rmtree", "shutil"),
    ("import_module", "importlib"), ("_exit", "os"), ("Lab", "chaos.lab"), ("__globals__", MODULE),
    ("_ledgers", MODULE),
    ("work.__globals__", MODULE), ("asyncio.run", MODULE), ("ledger", "chaos.faults"), ("from_url", "redis"),
    ("system", "..os"), ("system", "../../os"), ("system", "/etc/passwd"), ("main", "__main__"), ("", ""), (".", "."),
    ("w\N{CYRILLIC SMALL LETTER O}rk", MODULE), ("work\0", MODULE), ("work\n", MODULE), ("work ", MODULE),
    ("work", f"{MODULE}\0"), ("work", f"{MODULE}\n"), ("work", "ch\N{CYRILLIC SMALL LETTER A}os.processors"),
    ("n" * 100_000, MODULE), ("work", "m." * 50_000 + "m"), ("work", "antigravity"), ("s", "this"),
    ("\N{FULLWIDTH LATIN SMALL LETTER W}ork", MODULE), ("os.system", None), ("lambda", None), ("${jndi}", "x"),
)  # fmt: skip

_LAST_DELIVERY: Final = {"dc": b"19"}  # so that nobody waits for that newer worker for a minute

_BAD_NUMBERS: Final = (
    b"nan",
    b"-nan",
    b"inf",
    b"-1",
    b"text",
    b"",
    b"1e308",
    b"1.5",
    b"9" * 30,
    b"9" * 5000,
    b"\xff\x00",
    b"0x10",
)


@dataclass(frozen=True, slots=True)
class Hostile:
    """One of them.

    Attributes:
        kind: of which kind it is.
        operation_id: its id, as bytes.
        body: its body; None for none at all.
        fields: of its hash, over those of an operation that is ready.
        ends: states in which it may end. Its body must be untouched in each.
        plain: what stands at its key instead of a hash.
        delayed: put among the delayed ones, and not in a list.
    """

    kind: str
    operation_id: bytes
    body: bytes | None
    fields: dict[str, bytes] = field(default_factory=dict)
    ends: frozenset[str] = REJECTED
    plain: bytes | None = None
    delayed: bool = False


Maker = Callable[[random.Random, bytes], Hostile]
_makers: list[Maker] = []


def hostile_operations(count: int, seed: int = 1) -> Iterator[Hostile]:
    """So many, all kinds in turn."""
    dice = random.Random(seed)
    for number in range(count):
        yield _makers[number % len(_makers)](dice, b"hostile-%d" % number)


def kinds() -> int:
    """How many kinds there are."""
    return len(_makers)


def large(count: int, megabytes: int) -> Iterator[Hostile]:
    """Some that are far beyond every limit."""
    for number in range(count):
        yield Hostile("huge", b"huge-%d" % number, _body(entity={"x": "x" * (megabytes * 1024 * 1024)}))


def _kind(make: Maker) -> Maker:
    _makers.append(make)
    return make


def _body(**fields: Any) -> bytes:
    operation = {"v": 1, "operation_id": "x", "processor": KNOWN, "processor_module": MODULE, "queue": "hostile",
                 "priority": "normal", "entity": {"name": "hostile"}}  # fmt: skip
    return json.dumps(operation | fields).encode()


@_kind
def _noise(dice: random.Random, own: bytes) -> Hostile:
    return Hostile("noise", own, b"\xff" + dice.randbytes(dice.randrange(2000)))


@_kind
def _bad_text(dice: random.Random, own: bytes) -> Hostile:
    body = bytearray(_body())
    body[body.index(b"hostile", 20)] = dice.choice((0xFF, 0xC0, 0xED, 0x80))
    return Hostile("bad utf-8", own, bytes(body))


@_kind
def _cut(dice: random.Random, own: bytes) -> Hostile:
    body = _body()
    return Hostile("cut off", own, body[: dice.randrange(len(body))])


@_kind
def _not_json(dice: random.Random, own: bytes) -> Hostile:
    texts = (
        b"",
        b" ",
        b"\0",
        b"{",
        b"}",
        b"{]",
        b"{'v': 1}",
        b"NaN",
        b"-",
        b"\xef\xbb\xbf{}",
        b"\x80\x04\x95cos\nsystem\n.",
    )
    return Hostile("not json", own, dice.choice(texts))


@_kind
def _not_a_dict(dice: random.Random, own: bytes) -> Hostile:
    return Hostile(
        "not a dict", own, dice.choice((b"[]", b"1", b"null", b'"text"', b"true", b"1e999", b"[[[]]]", b"{}"))
    )


@_kind
def _deep(dice: random.Random, own: bytes) -> Hostile:
    levels, opening, closing = 10_000, *dice.choice(((b'{"a":', b"}"), (b"[", b"]")))
    nested = opening * levels + b"1" + closing * levels
    return Hostile(
        "deep", own, dice.choice((nested, _body().replace(b'{"name": "hostile"}', b'{"a":' + nested + b"}")))
    )


@_kind
def _numbers(dice: random.Random, own: bytes) -> Hostile:
    # Not a larger whole number as the version: that is what a newer producer writes, and waits for a newer worker.
    number = dice.choice((b"1e999", b"-1e999", b"9" * 4000, b"1" + b"0" * 400, b"-0", b"1e-999", b"NaN", b"Infinity"))
    return Hostile("numbers", own, _body(timeout=7).replace(b'"timeout": 7', b'"timeout": ' + number), ends=HARMLESS)


@_kind
def _twice(dice: random.Random, own: bytes) -> Hostile:
    name, module = dice.choice(FORBIDDEN[:10])
    again = json.dumps({"processor": name, "processor_module": module}).encode()[1:]
    return Hostile("keys twice", own, _body()[:-1] + b", " + again)


@_kind
def _missing(dice: random.Random, own: bytes) -> Hostile:
    operation = json.loads(_body())
    del operation[dice.choice(sorted(operation))]
    return Hostile("field missing", own, json.dumps(operation).encode())


@_kind
def _mistyped(dice: random.Random, own: bytes) -> Hostile:
    wrong = dice.choice((7, None, [], {}, 1.5, True, ["a"], {"a": 1}))
    name = dice.choice(("operation_id", "processor", "queue", "priority", "entity", "headers", "kind", "on_success"))
    fits = {"entity": dict, "headers": dict, "on_success": type(None)}.get(name, str)
    wrong = "text" if isinstance(wrong, fits) else wrong
    return Hostile("field mistyped", own, _body(**{name: wrong}))


@_kind
def _forbidden(dice: random.Random, own: bytes) -> Hostile:
    name, module = dice.choice(FORBIDDEN)
    body = _body(processor=name, processor_module=module)
    return Hostile("forbidden", own, body, fields=_LAST_DELIVERY, ends=NEVER_RUN)


@_kind
def _forbidden_callback(dice: random.Random, own: bytes) -> Hostile:
    name, module = dice.choice(FORBIDDEN)
    body = _body(processor=name, processor_module=module, kind="callback")
    return Hostile("forbidden callback", own, body, fields=_LAST_DELIVERY, ends=NEVER_RUN)


@_kind
def _schedule(dice: random.Random, own: bytes) -> Hostile:
    schedule = dice.choice(
        (
            {"max_attempts": -3}, {"max_attempts": 0}, {"max_attempts": 1.5}, {"max_attempts": "x"},
            {"max_attempts": None}, {"delays": [-1]}, {"delays": [1e308]}, {"delays": "x"}, {"delays": [[]]},
            {"timeout": -1}, {"timeout": "x"}, {"timeout": 1e308}, {"type": "eval"}, {"max_attempts": 10**30},
        )
    )  # fmt: skip
    return Hostile("retry schedule", own, _body(retry_config=schedule), ends=HARMLESS)


@_kind
def _oversize(dice: random.Random, own: bytes) -> Hostile:
    if dice.random() > 0.1:
        return Hostile("long name", own, _body(processor="n" * dice.randrange(1000, 50_000)))
    return Hostile("oversize", own, _body(entity={"x": "x" * (LIMIT + dice.randrange(100_000))}))


@_kind
def _headers(dice: random.Random, own: bytes) -> Hostile:
    value = dice.choice(
        ("garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "\r\nX: y", "\x1b[2J", "\0", "x" * 100_000)
    )
    name = dice.choice(("traceparent", "tracestate", "baggage", "", "x\n", "\x1b]0;"))
    return Hostile("headers", own, _body(headers={name: value}), ends=HARMLESS)


@_kind
def _large_header(_: random.Random, own: bytes) -> Hostile:
    if int(own.rpartition(b"-")[2]) % 7:
        return Hostile("headers mistyped", own, _body(headers={"traceparent": 5}))
    return Hostile("large header", own, _body(headers={"traceparent": "x" * 1024 * 1024}))


@_kind
def _field_number(dice: random.Random, own: bytes) -> Hostile:
    names = dice.sample(("at", "cr", "ex", "fa", "rd", "ts", "dc", "al"), dice.randrange(1, 4))
    return Hostile(
        "numbers of the hash", own, _body(), fields={name: dice.choice(_BAD_NUMBERS) for name in names}, ends=HARMLESS
    )


@_kind
def _field_text(dice: random.Random, own: bytes) -> Hostile:
    name = dice.choice(("tp", "hist", "err", "dk", "w", "pb", "k"))
    value = dice.choice((b"\xff\xfe", b"\0", b"\x1b[2J", b"x" * 50_000, b"../../x", b"c", b"*", b"{" * 10_000))
    return Hostile("texts of the hash", own, _body(), fields={name: value}, ends=HARMLESS)


@_kind
def _another_queue(dice: random.Random, own: bytes) -> Hostile:
    name = dice.choice((b"leases", b"failures", b"system_errors", b"metrics", b"op:x", b"wake", b"depths", b"",
                        b"a\nb", b"\xff", b"normal:" + b"q" * 300, b"urgent:x", b"normal:a b", b"\x1b[2J"))  # fmt: skip
    return Hostile("another key as its queue", own, _body(), fields={"q": name}, ends=HARMLESS)


@_kind
def _another_queue_later(dice: random.Random, own: bytes) -> Hostile:
    name = dice.choice((b"leases", b"failures", b"metrics", b"op:x", b"wake", b"reaper", b"a\nb", b"\xff"))
    return Hostile("the same, delayed", own, _body(), fields={"q": name, "st": b"delayed"}, delayed=True)


@_kind
def _another_state(dice: random.Random, own: bytes) -> Hostile:
    state = dice.choice((b"", b"READY", b"\xff", b"x" * 10_000, b"ready\n", b"leased ", b"0"))
    return Hostile("no state", own, _body(), fields={"st": state})


@_kind
def _no_body(_: random.Random, own: bytes) -> Hostile:
    return Hostile("no body", own, None)


@_kind
def _no_hash(dice: random.Random, own: bytes) -> Hostile:
    return Hostile("no hash", own, None, plain=dice.randbytes(50), delayed=dice.random() < 0.5)


@_kind
def _strange_id(dice: random.Random, own: bytes) -> Hostile:
    strange = dice.choice(
        (b"\xff\x00", b"\n", b" ", b"\x1b[2J", b"{x}", b"*", b"../", b"x" * 5000, "\N{SNOWMAN}".encode())
    )
    return Hostile("strange id", own + strange, b"{no json")
