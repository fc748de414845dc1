"""What is wrong with an operation or key, by what is kept of it."""

import re
from pathlib import Path

import pytest

from queue_system.audit_rules import CHECKS, PROBLEMS, Limits, fault_in_list, faults_of, faults_of_key
from queue_system.broker.messages import KeyFacts, OperationFacts

LIMITS = Limits(max_crashes=3, retention=3_600_000)
NOW = 10_000_000
READY = OperationFacts(
    operation_id="a",
    now=NOW,
    latest_token="9",
    key_type="hash",
    state="ready",
    queue="normal:mail",
    token="",
    deliveries="",
    attempts="",
    crashes="",
    accepted_at="1",
    body_size=3,
    ttl=-1,
    leases="",
    delayed="",
    failures="",
    system_errors="",
)
LEASED = READY._replace(state="leased", token="9", deliveries="1", leases="5")
DONE = LEASED._replace(state="done", leases="", ttl=5)
FAILED = LEASED._replace(state="failed", attempts="1", leases="", failures="5", ttl=5)
GONE = READY._replace(key_type="none", state="")


def found(facts):
    return [fault.problem for fault in faults_of(facts, LIMITS)]


@pytest.mark.parametrize(
    "facts",
    [
        READY,
        READY._replace(queue=""),
        READY._replace(state="delayed", delayed="5"),
        LEASED,
        LEASED._replace(deliveries="5", crashes="4"),
        DONE,
        FAILED,
        FAILED._replace(state="system_error", failures="", system_errors="5"),
        FAILED._replace(body_size=0, queue=""),
        GONE,
        GONE._replace(failures=str(NOW - LIMITS.retention)),
    ],
)
def test_what_is_sound(facts):
    assert found(facts) == []


@pytest.mark.parametrize(
    ("facts", "problems"),
    [
        (READY._replace(delayed="5"), ["elsewhere"]),
        (READY._replace(failures="5"), ["elsewhere"]),
        (FAILED._replace(leases="5"), ["elsewhere"]),
        (LEASED._replace(leases=""), ["missing"]),
        (LEASED._replace(queue=""), ["incomplete"]),
        (LEASED._replace(body_size=0), ["incomplete"]),
        (DONE._replace(leases="5"), ["claimed_after_done"]),
        (DONE._replace(delayed="5"), ["claimed_after_done"]),
        (DONE._replace(failures="5"), ["ended_twice"]),
        (FAILED._replace(system_errors="5"), ["ended_twice"]),
        (DONE._replace(ttl=-1), ["ended_forever"]),
        (READY._replace(ttl=0), ["live_expires"]),
        (READY._replace(state=""), ["unknown_state"]),
        (READY._replace(key_type="other", state=""), ["no_operation"]),
        (LEASED._replace(token=""), ["no_token"]),
        (LEASED._replace(token="10"), ["token_ahead"]),
        (LEASED._replace(deliveries="5", crashes="5"), ["too_many_crashes"]),
        (LEASED._replace(deliveries="1", attempts="1", crashes="1"), ["counts"]),
        (LEASED._replace(attempts="-1"), ["counts"]),
        (LEASED._replace(attempts="x"), ["counts"]),
        (GONE._replace(leases="5", delayed="5"), ["stray", "stray"]),
        (GONE._replace(failures=str(NOW - LIMITS.retention + 2000)), ["stray"]),
        (GONE._replace(delayed=str(NOW - 2 * LIMITS.retention)), ["stray"]),
    ],
)
def test_what_is_wrong(facts, problems):
    assert found(facts) == problems


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ("-", "stray"),
        ("!", "no_operation"),
        ("ready", "wrong_list"),
        ("", "unknown_state"),
        ("done", "claimed_after_done"),
        ("leased", "elsewhere"),
        ("failed", "elsewhere"),
    ],
)
def test_what_does_not_belong_into_a_list(state, problem):
    assert fault_in_list("a", "normal:mail", state, "low:mail").problem == problem


DIGEST = "0" * 64


def key(name, key_type, ttl, *, registered=False, holder_state=""):
    return KeyFacts(name, key_type, ttl, registered, "holder", holder_state)


@pytest.mark.parametrize(
    ("facts", "problems"),
    [
        (key("wake:sync", "zset", -1), []),
        (key("token", "hash", -1), ["wrong_type"]),
        (key("token", "none", -2), []),
        (key("high:mail", "list", -1, registered=True), []),
        (key("high:mail", "list", -1), ["unregistered"]),
        (key("worker:w", "hash", 5), []),
        (key("worker:w", "hash", -1), ["forever"]),
        (key("broken:a", "set", 5), []),
        (key("broken:a", "set", -1), ["forever"]),
        (key("other", "set", 5), ["unknown_key"]),
        (key(f"dedup:{DIGEST}", "string", 5, holder_state="ready"), []),
        (key(f"dedup:{DIGEST}", "string", 5), []),
        (key(f"dedup:{DIGEST}", "string", 5, holder_state="failed"), ["dedup_after_failure"]),
        (key(f"dedup:{DIGEST}", "string", -1, holder_state="ready"), ["dedup_forever"]),
        (key("dedup:x", "string", 5), ["unknown_key"]),
    ],
)
def test_keys(facts, problems):
    assert [fault.problem for fault in faults_of_key(facts)] == problems


def test_each_kind_belongs_to_a_check():
    assert {problem.check for problem in PROBLEMS.values()} == set(CHECKS)


def test_each_kind_is_in_the_documentation_in_order():
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and line.split("|")[2].strip().startswith("`")]
    assert re.findall(r"`(\w+)`", " ".join(row.split("|")[2] for row in rows)) == list(PROBLEMS)
