"""How calls are carried out, on both sides: what is sent again, and what must not be."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest
import redis.exceptions as rex

from queue_system.broker import aio as aio_module
from queue_system.broker.aio import AsyncBroker
from queue_system.broker.commands import Commands
from queue_system.broker.messages import Accepted, NewOperation
from queue_system.broker.resend import is_cluster, is_unknown_command
from queue_system.broker.scripts import load_scripts
from queue_system.broker.sync import SyncBroker
from queue_system.errors import BrokerReplyError, BrokerUnavailableError
from queue_system.keys import Keys

C = Commands(Keys("q:"))
ENQUEUE = C.enqueue("mail", "high", "a", [NewOperation("1", b"{}")])
CONFIRM = C.confirm(1, 0.5)
RELEASE = C.release("1", 1)
CLAIM = C.claim(async_slots=1, sync_slots=1, lease=1, retention=1)
CUT = rex.ConnectionError("Connection closed by server.")
REFUSED = rex.ConnectionError("Error 111 connecting to here. Connection refused.")
NO_SCRIPT = rex.NoScriptError("No matching script")


class Client:
    """Gives one answer after the other; notes what was sent."""

    def __init__(self, answers, *, is_async) -> None:
        self.answers, self.sent, self.is_async = list(answers), [], is_async
        self.round_trips = []
        self.dropped = []
        self.connection_pool = SimpleNamespace(disconnect=self._drop)

    def _drop(self, *, inuse_connections):
        self.dropped.append(inuse_connections)
        return self._maybe_awaitable(None)

    def _maybe_awaitable(self, value):
        async def later():
            return value

        return later() if self.is_async else value

    def execute_command(self, *command):
        self.sent.append(command)
        self.round_trips.append([command[0]])
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return self._maybe_awaitable(answer)

    def pipeline(self, *, transaction):
        assert not transaction
        queued = []

        def execute(*, raise_on_error):
            assert not raise_on_error
            self.round_trips.append([command[0] for command in queued if command[0] != "SCRIPT"])
            if isinstance(self.answers[0], rex.ConnectionError):
                raise self.answers.pop(0)
            loads = [command[0] == "SCRIPT" for command in queued]
            return self._maybe_awaitable([b"sha" if load else self.answers.pop(0) for load in loads])

        return SimpleNamespace(execute_command=lambda *command: queued.append(command), execute=execute)


class Side:
    """A broker of either kind, called in the same way."""

    def __init__(self, kind: str) -> None:
        self.is_async = kind == "async"

    @property
    def producers(self):
        return "run_all" if self.is_async else "run_many"

    def prepare(self, *answers, tries=3):
        self.client = Client(answers, is_async=self.is_async)
        broker = AsyncBroker if self.is_async else SyncBroker
        self.broker = broker(self.client, "here", tries=tries)

    def call(self, method, *args):
        result = getattr(self.broker, method)(*args)
        return asyncio.run(result) if inspect.iscoroutine(result) else result


@pytest.fixture(params=["sync", "async"])
def side(request, monkeypatch):
    async def at_once(_):
        return None

    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("asyncio.sleep", at_once)
    return Side(request.param)


def test_a_script_is_called_by_its_digest(side):
    side.prepare(1)
    assert side.call("run", RELEASE) is True
    (command,) = side.client.sent
    sha = load_scripts()["release"].sha
    keys = ("q:leases", "q:delayed", "q:registry", "q:none")
    assert command == ("EVALSHA", sha, len(keys), *keys, "q:", b"1", 1, "released", 0, 0)


def test_a_server_that_does_not_know_the_script_is_given_it(side):
    side.prepare(NO_SCRIPT, 1, tries=1)
    assert side.call("run", RELEASE) is True
    assert [command[0] for command in side.client.sent] == ["EVALSHA", "EVAL"]
    assert side.client.sent[1][1] == load_scripts()["release"].source
    assert side.client.sent[1][2:] == side.client.sent[0][2:]


def test_a_plain_command_is_sent_as_it_is(side):
    side.prepare(b"3")
    assert side.call("run", C.add_to_metric("m", 1)) == 3.0
    assert side.client.sent == [("HINCRBY", "q:metrics", "m", 1)]


def test_an_idempotent_call_is_sent_again(side):
    side.prepare(CUT, REFUSED, 1)
    assert side.call("run", RELEASE) is True
    assert len(side.client.sent) == 3


def test_but_not_for_ever(side):
    side.prepare(*[CUT] * 9, tries=3)
    with pytest.raises(BrokerUnavailableError, match="Redis at here"):
        side.call("run", RELEASE)
    assert len(side.client.sent) == 3


@pytest.mark.parametrize(
    "call", [CLAIM, C.add_to_metric("m", 1), C.requeue_failure("1")], ids=["claim", "metric", "requeue"]
)
def test_what_would_count_twice_is_never_sent_again(side, call):
    side.prepare(CUT, 1)
    with pytest.raises(BrokerUnavailableError):
        side.call("run", call)
    assert len(side.client.sent) == 1


@pytest.mark.parametrize("error", [rex.OutOfMemoryError("full"), rex.ResponseError("no")])
def test_what_will_be_refused_again_is_not_sent_again(side, error):
    side.prepare(error, 1)
    with pytest.raises((BrokerUnavailableError, BrokerReplyError)):
        side.call("run", RELEASE)
    assert len(side.client.sent) == 1


@pytest.mark.parametrize("error", [rex.ReadOnlyError("replica"), rex.MovedError("1 here:1"), rex.TryAgainError("no")])
def test_another_connection_may_reach_the_right_server(side, error):
    side.prepare(error, 1)
    assert side.call("run", RELEASE) is True
    assert len(side.client.sent) == 2
    assert side.client.dropped == [False]  # those in use are others'


def test_a_refusal_drops_no_connection(side):
    side.prepare(rex.OutOfMemoryError("full"))
    with pytest.raises(BrokerUnavailableError):
        side.call("run", RELEASE)
    assert side.client.dropped == []


def test_what_is_sent_again_is_the_same_request(side):
    side.prepare(CUT, REFUSED, [b"q"])
    assert side.call("run", ENQUEUE) == [(Accepted.QUEUED, "1")]
    assert len(side.client.sent) == 3
    assert len(set(side.client.sent)) == 1


def test_an_error_says_that_an_earlier_try_may_have_been_carried_out(side):
    side.prepare(CUT, REFUSED, REFUSED)
    with pytest.raises(BrokerUnavailableError) as caught:
        side.call("run", ENQUEUE)
    assert caught.value.ambiguous
    side.prepare(REFUSED, REFUSED, REFUSED)
    with pytest.raises(BrokerUnavailableError) as caught:
        side.call("run", ENQUEUE)
    assert not caught.value.ambiguous


def test_many_calls_go_in_one_round_trip(side):
    side.prepare(1, [b"q"])
    replies = side.call("run_many", [RELEASE, ENQUEUE])
    assert replies == [True, [(Accepted.QUEUED, "1")]]
    assert side.client.sent == []


def test_one_of_many_that_does_not_know_its_script_is_sent_again(side):
    side.prepare(1, NO_SCRIPT, [b"q"])
    assert side.call("run_many", [RELEASE, ENQUEUE])[1] == [(Accepted.QUEUED, "1")]
    assert side.client.round_trips == [["EVALSHA", "EVALSHA"], ["EVAL"]]


def test_replicas_are_asked_after_what_they_are_to_have_on_its_connection(side):
    side.prepare([b"q"], 1)
    assert side.call(side.producers, [ENQUEUE, CONFIRM]) == [[(Accepted.QUEUED, "1")], 1]
    side.prepare(NO_SCRIPT, 1, [b"q"], 0)
    assert side.call(side.producers, [ENQUEUE, CONFIRM]) == [[(Accepted.QUEUED, "1")], 0]
    assert side.client.round_trips == [["EVALSHA", "WAIT"], ["EVAL", "WAIT"]]


def test_a_refused_wait_does_not_hide_what_was_accepted(side):
    side.prepare([b"q"], rex.ResponseError("UNBLOCKED force unblock from blocking operation"))
    accepted, why = side.call(side.producers, [ENQUEUE, CONFIRM])
    assert accepted == [(Accepted.QUEUED, "1")]
    assert (type(why), why.kind) == (BrokerUnavailableError, "unblocked")


def test_a_producers_round_trip_is_tried_again_if_all_of_it_may_be(side):
    side.prepare(CUT, [b"q"], [b"i"])
    assert side.call(side.producers, [ENQUEUE, ENQUEUE])[0] == [(Accepted.QUEUED, "1")]
    assert len(side.client.round_trips) == 2
    side.prepare(CUT, 1, [b"q"])
    with pytest.raises(BrokerUnavailableError):
        side.call(side.producers, [C.requeue_failure("1"), ENQUEUE])
    assert len(side.client.round_trips) == 1


def test_a_part_that_was_accepted_makes_an_error_ambiguous(side):
    full = rex.OutOfMemoryError("full")
    side.prepare([b"q"], full)
    with pytest.raises(BrokerUnavailableError) as caught:
        side.call(side.producers, [ENQUEUE, ENQUEUE])
    assert (caught.value.kind, caught.value.ambiguous) == ("oom", True)
    side.prepare(full, full)
    with pytest.raises(BrokerUnavailableError) as caught:
        side.call(side.producers, [ENQUEUE, ENQUEUE])
    assert not caught.value.ambiguous


def test_a_round_trip_that_fails_is_told_as_a_whole(side):
    side.prepare(CUT, tries=1)
    with pytest.raises(BrokerUnavailableError) as caught:
        side.call("run_many", [RELEASE, ENQUEUE])
    assert caught.value.ambiguous


def test_an_error_of_one_of_many_is_raised_for_producers(side):
    side.prepare(rex.ResponseError("no"), [b"q"])
    with pytest.raises(BrokerReplyError):
        side.call(side.producers, [RELEASE, ENQUEUE])


def test_for_the_worker_each_result_of_many_stands_alone():
    side = Side("async")
    side.prepare(rex.OutOfMemoryError("full"), [b"q"])
    first, second = side.call("run_many", [RELEASE, ENQUEUE])
    assert isinstance(first, BrokerUnavailableError)
    assert second == [(Accepted.QUEUED, "1")]
    side.prepare(rex.ResponseError("no"))
    (only,) = side.call("run_many", [RELEASE])
    assert isinstance(only, BrokerReplyError)


WAIT = C.wait(for_async=True, for_sync=True, timeout=2)


async def after(monkeypatch, *answers):
    """What a blocking read and a call behind it come to, and the commands that went in one round trip."""
    trips = []

    class Exchange:
        async def begin(self, commands):
            trips.append([command[0] for command in commands])
            pending = asyncio.get_running_loop().create_future()
            if isinstance(answers[0], rex.ConnectionError):
                pending.set_exception(answers[0])
            else:
                pending.set_result(list(answers))
            return pending

    broker = AsyncBroker(Client([], is_async=True), "here")
    monkeypatch.setattr(aio_module, "DirectExchange", Exchange)
    broker._exchange = Exchange()
    pending = await broker.begin_after(WAIT, RELEASE)
    try:
        return broker.read_after(RELEASE, pending), trips
    except (BrokerUnavailableError, BrokerReplyError) as error:
        return error, trips


@pytest.mark.parametrize("woken", [None, [b"q:wake", b"0", 0]])
async def test_a_call_goes_with_the_blocking_read_that_it_is_to_follow(monkeypatch, woken):
    assert await after(monkeypatch, woken, 1) == ((None, True), [["BZPOPMIN", "EVALSHA"]])


async def test_a_blocking_read_is_not_sent_again_for_want_of_a_script(monkeypatch):
    assert await after(monkeypatch, None, NO_SCRIPT) == ((None, None), [["BZPOPMIN", "EVALSHA"]])


async def test_a_call_counts_whatever_became_of_the_blocking_read(monkeypatch):
    (hindered, result), _ = await after(monkeypatch, rex.ResponseError("WRONGTYPE"), 1)
    assert (type(hindered), result) == (BrokerReplyError, True)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((CUT,), BrokerUnavailableError),
        ((None, rex.ReadOnlyError("replica")), BrokerUnavailableError),
        ((None, rex.ResponseError("no")), BrokerReplyError),
    ],
)
async def test_what_fails_of_the_two_is_told(monkeypatch, answers, error):
    told, trips = await after(monkeypatch, *answers)
    assert (type(told), len(trips)) == (error, 1)


async def test_a_client_of_another_class_is_asked_for_one_after_the_other():
    client = Client([[b"q:wake", b"0", 0], 1], is_async=True)
    broker = AsyncBroker(client, "here")
    pending = await broker.begin_after(WAIT, RELEASE)
    await pending
    assert broker.read_after(RELEASE, pending) == (None, True)
    assert client.round_trips == [["BZPOPMIN"], ["EVALSHA"]]


def each(monkeypatch, calls, *answers, tries=3):
    """What `run_each` gives, and the commands of its round trips."""

    async def at_once(_):
        return None

    monkeypatch.setattr("asyncio.sleep", at_once)
    client = Client(answers, is_async=True)
    broker = AsyncBroker(client, "here", tries=tries)
    return asyncio.run(broker.run_each(calls)), client.round_trips


def test_each_call_has_its_own_result_or_error(monkeypatch):
    results, trips = each(monkeypatch, [ENQUEUE, RELEASE], rex.ResponseError("WRONGTYPE no"), 1)
    assert (type(results[0]), results[1]) == (BrokerReplyError, True)
    assert trips == [["EVALSHA", "EVALSHA"]]


def test_those_that_failed_for_a_reason_that_passes_are_sent_again_and_no_others(monkeypatch):
    results, trips = each(monkeypatch, [ENQUEUE, RELEASE], [b"q"], rex.ReadOnlyError("replica"), CUT, 1)
    assert results == [[(Accepted.QUEUED, "1")], True]
    assert trips == [["EVALSHA", "EVALSHA"], ["EVALSHA"], ["EVALSHA"]]


def test_each_that_still_fails_has_an_error_of_its_own(monkeypatch):
    results, trips = each(monkeypatch, [ENQUEUE, RELEASE], CUT, REFUSED, REFUSED)
    assert [(type(error), error.ambiguous) for error in results] == [(BrokerUnavailableError, True)] * 2
    assert results[0] is not results[1]
    assert len(trips) == 3
    (error, _), _ = each(monkeypatch, [ENQUEUE, RELEASE], REFUSED, tries=1)
    assert not error.ambiguous


def test_replicas_are_asked_again_behind_what_is_sent_again(monkeypatch):
    results, trips = each(monkeypatch, [ENQUEUE, CONFIRM], rex.ReadOnlyError("replica"), b"0", [b"q"], b"1")
    assert results == [[(Accepted.QUEUED, "1")], 1]
    assert trips == [["EVALSHA", "WAIT"]] * 2


def test_what_hindered_replicas_from_confirming_is_a_result(monkeypatch):
    results, _ = each(monkeypatch, [ENQUEUE, CONFIRM], [b"q"], rex.NoPermissionError("wait"))
    assert results[0] == [(Accepted.QUEUED, "1")]
    assert isinstance(results[1], BrokerReplyError)


def test_a_reply_that_cannot_be_read_is_an_error_of_its_own(monkeypatch):
    results, trips = each(monkeypatch, [ENQUEUE, RELEASE], [b"?"], 1)
    assert isinstance(results[0], BrokerReplyError)
    assert results[1] is True
    assert len(trips) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (rex.ResponseError("unknown command 'INFO', with args beginning with: 'server'"), True),
        (rex.ResponseError("ERR unknown command `INFO`"), True),
        (rex.ResponseError("WRONGTYPE"), False),
        (ConnectionError("unknown command"), False),
    ],
)
def test_a_command_that_was_renamed_away_is_known_by_its_error(error, expected):
    assert is_unknown_command(error) is expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"redis_mode": "cluster"}, True),
        ({"redis_mode": "standalone"}, False),
        ({}, False),
        (b"redis_version:7.0\r\nredis_mode:cluster\r\n", True),
        (b"redis_version:7.0\r\nredis_mode:standalone\r\n", False),
    ],
)
def test_the_server_says_whether_it_is_part_of_a_cluster(reply, expected):
    assert is_cluster(reply) is expected
