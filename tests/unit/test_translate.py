"""What Redis and the network say, as the package's errors. Replies go through the client's own parser first."""

import pytest
import redis.exceptions as rex
from redis._parsers.base import BaseParser

from queue_system.broker.translate import (
    CLIENT_ERRORS,
    LASTING,
    MISPLACED,
    RETRYABLE,
    error_kind,
    is_misplaced,
    translate,
)
from queue_system.errors import BrokerReplyError, BrokerUnavailableError

MISPLACED_REPLIES = (
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "MOVED 9421 127.0.0.1:7002",
    "ASK 9421 127.0.0.1:7002",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN The cluster is down",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", "loading"),
        ("READONLY You can't write against a read only replica.", "readonly"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "oom"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", "misconf"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "masterdown"),
        ("NOREPLICAS Not enough good replicas to write.", "noreplicas"),
        ("CLUSTERDOWN The cluster is down", "clusterdown"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "tryagain"),
        ("MOVED 9421 127.0.0.1:7002", "moved"),
        ("ASK 9421 127.0.0.1:7002", "ask"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "busy"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", "unblocked"),
        ("ERR max number of clients reached", "connection"),
        ("ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed", "oom"),
        ("ERR Error running script (call to f_1): @user_script:9: -READONLY You can't write", "readonly"),
        ("READONLY You can't write against a read only replica. script: 1, on @user_script:1.", "readonly"),
        ("ERR Error running script (call to f_1): @user_script:9: -MASTERDOWN Link with MASTER", "masterdown"),
        ("ERR Error running script (call to f_1): @user_script:9: -UNBLOCKED force unblock", "unblocked"),
        ("ERR Error running script (call to f_1): @user_script:9: -MOVED 9421 127.0.0.1:7002", "moved"),
        ("ERR Error running script (call to f_1): @user_script:9: -ASK 9421 127.0.0.1:7002", "ask"),
        ("ERR Script attempted to execute a command while the cluster is down script: 1", "clusterdown"),
        ("NOAUTH Authentication required.", "auth"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "auth"),
        ("ERR invalid password", "auth"),
    ],
)
def test_a_reply_that_is_worth_waiting_out(reply, kind):
    error = BaseParser.parse_error(reply)
    assert isinstance(error, CLIENT_ERRORS)
    told = translate(error, "redis://here:6379/0")
    assert isinstance(told, BrokerUnavailableError)
    assert told.kind == kind
    assert str(told).startswith("Redis at redis://here:6379/0: ")
    assert str(told).endswith(")")  # what to do


@pytest.mark.parametrize(
    "reply",
    [
        "ERR unknown command 'EVALSHA'",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "CROSSSLOT Keys in request don't hash to the same slot",
        "ERR Error running script (call to f_1): @user_script:3: attempt to index a nil value",
        "ERR the word READONLY somewhere",
        "ERR nothing is down while the weather is good",
    ],
)
def test_a_refusal_that_would_come_again(reply):
    told = translate(BaseParser.parse_error(reply), "here")
    assert isinstance(told, BrokerReplyError)
    assert str(told).startswith("Redis at here refused a command: ")


@pytest.mark.parametrize(
    ("error", "kind", "ambiguous"),
    [
        (rex.ConnectionError("Error 111 connecting to localhost:1. Connection refused."), "connection", False),
        (rex.ConnectionError("Error -2 connecting to nowhere:6379. Name or service not known."), "connection", False),
        (ConnectionRefusedError(111, "Connection refused"), "connection", False),
        (rex.TimeoutError("Timeout connecting to server"), "timeout", False),
        (rex.TimeoutError("Timeout reading from socket"), "timeout", True),
        (TimeoutError("timed out"), "timeout", True),
        (rex.ConnectionError("Connection closed by server."), "connection", True),
        (rex.ConnectionError("Error 104 while writing to socket. Connection reset by peer."), "connection", True),
        (ConnectionResetError(104, "Connection reset by peer"), "connection", True),
        (BrokenPipeError(32, "Broken pipe"), "connection", True),
    ],
)
def test_whether_a_command_may_have_been_carried_out(error, kind, ambiguous):
    told = translate(error, "here")
    assert isinstance(told, BrokerUnavailableError)
    assert (told.kind, told.ambiguous) == (kind, ambiguous)


@pytest.mark.parametrize("code", [*MISPLACED_REPLIES, "OOM command not allowed", "NOREPLICAS Not enough"])
def test_a_refused_command_was_not_carried_out(code):
    told = translate(BaseParser.parse_error(code), "here")
    assert isinstance(told, BrokerUnavailableError)
    assert not told.ambiguous


@pytest.mark.parametrize(
    ("reply", "advice"),
    [
        ("NOAUTH Authentication required.", "give it in redis_url, as redis://:PASSWORD@host"),
        ("NOAUTH HELLO must be called with the client already authenticated", "give it in redis_url"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "check the user name and password"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", "this ACL user lacks a right"),
    ],
)
def test_who_may_not_is_told_what_to_do(reply, advice):
    assert advice in str(translate(BaseParser.parse_error(reply), "here"))


def test_what_is_not_redis_is_told_as_such():
    told = translate(rex.InvalidResponse('Protocol error, got "H" as reply type byte'), "here")
    assert isinstance(told, BrokerUnavailableError)
    assert told.kind == "protocol"
    assert "what answers there is not Redis" in str(told)
    assert {"auth", "protocol"} == LASTING
    assert LASTING.isdisjoint(RETRYABLE)


def test_an_argument_without_a_form_is_no_outage():
    assert error_kind(rex.DataError("Invalid input of type: 'NoneType'")) is None


@pytest.mark.parametrize("reply", MISPLACED_REPLIES)
def test_after_such_a_reply_the_connection_is_of_no_more_use(reply):
    error = BaseParser.parse_error(reply)
    assert is_misplaced([1, error, b"OK"])
    assert error_kind(error) in MISPLACED


def test_after_others_it_is():
    codes = (
        "OOM full",
        "MISCONF no disk",
        "NOREPLICAS few",
        "BUSY a script",
        "ERR no",
        "NOSCRIPT it",
        "CROSSSLOT keys",
    )
    assert not is_misplaced([b"READONLY", *map(BaseParser.parse_error, codes)])
    assert not is_misplaced([])


def test_only_what_passes_soon_is_tried_again():
    assert {"connection", "timeout"} | {error_kind(BaseParser.parse_error(each)) for each in MISPLACED_REPLIES} == (
        RETRYABLE
    )


def test_a_message_is_one_line():
    assert "\n" not in str(translate(ConnectionResetError("first\nsecond"), "here"))


def test_an_error_without_text_is_told_by_its_class():
    assert "ConnectionResetError" in str(translate(ConnectionResetError(), "here"))
