"""The lease keeper's own thread, with a broker in place of Redis."""

import threading
import time

import pytest
from fakes import FakeBroker

from queue_system.broker.commands import Commands
from queue_system.broker.messages import MAX_RENEW
from queue_system.errors import BrokerUnavailableError
from queue_system.keys import Keys
from queue_system.runtime.lease import LeaseKeeper
from support import until

LEASE = 0.03  # seconds: a turn each 10 ms


class Redis(FakeBroker):
    """Says which leases are lost; fails while it is down."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.lost: list[bytes] = []
        self.down = False
        self.before_reply = lambda call: None

    def _answer(self, call):
        if self.down:
            raise BrokerUnavailableError("down")
        self.before_reply(call)
        if call.name != "renew":
            return 1000
        return [position for position, raw in enumerate(call.args[2::2], 1) if raw in self.lost]

    def renewed(self) -> list[list[tuple[bytes, int]]]:
        return [list(zip(call.args[2::2], call.args[3::2], strict=True)) for call in self.named("renew")]


@pytest.fixture
def redis():
    return Redis()


@pytest.fixture
def make_keeper(redis):
    made = []

    def make(**options):
        told = {"lost": [], "errors": []}
        keeper = LeaseKeeper(
            lambda: redis,
            Commands(Keys("q:")),
            **{"lease": LEASE, "worker_id": "w", "describe": lambda: {"threads": "4"}} | options,
            on_lost=lambda *lost: told["lost"].append(lost),
            on_error=told["errors"].append,
        )
        made.append(keeper)
        return keeper, told

    yield make
    for keeper in made:
        keeper.stop()


async def turns(redis, count):
    """Wait for so many more turns, each of which ends with a heartbeat."""
    seen = len(redis.named("heartbeat"))
    await until(lambda: len(redis.named("heartbeat")) >= seen + count)


async def test_what_is_held_is_renewed_again_and_again(make_keeper, redis):
    keeper, told = make_keeper()
    keeper.add([("a", 1)])
    keeper.add([("b", 2)])
    keeper.start()
    await until(lambda: len(redis.renewed()) >= 3)
    assert set(map(tuple, redis.renewed())) == {((b"a", 1), (b"b", 2))}
    assert redis.named("renew")[0].args[1] == LEASE * 1000
    assert keeper.held == 2
    assert told == {"lost": [], "errors": []}


async def test_nothing_is_renewed_while_nothing_is_held(make_keeper, redis):
    keeper, _ = make_keeper()
    keeper.start()
    await turns(redis, 3)
    assert redis.renewed() == []


async def test_what_is_settled_is_renewed_no_more(make_keeper, redis):
    keeper, _ = make_keeper()
    keeper.add([("a", 1)])
    keeper.add([("a", 2)])  # the same operation, claimed again
    keeper.remove([("a", 1)])
    keeper.remove([("unknown", 1)])
    keeper.start()
    await until(redis.renewed)
    assert redis.renewed()[0] == [(b"a", 2)]


async def test_a_lost_lease_is_told_with_its_token(make_keeper, redis):
    keeper, told = make_keeper()
    keeper.add([("a", 1)])
    keeper.add([("b", 2)])
    redis.lost = [b"b"]
    keeper.start()
    await until(lambda: told["lost"])
    assert told["lost"][0] == ("b", 2)
    assert ("a", 1) not in told["lost"]


async def test_settled_while_the_renewal_was_on_its_way_is_not_lost(make_keeper, redis):
    keeper, told = make_keeper()
    keeper.add([("a", 1)])
    redis.lost = [b"a"]
    redis.before_reply = lambda call: keeper.remove([("a", 1)])
    keeper.start()
    await turns(redis, 2)
    assert len(redis.renewed()) == 1
    assert told["lost"] == []


async def test_leases_go_in_calls_of_bounded_size(make_keeper, redis):
    keeper, _ = make_keeper()
    for number in range(MAX_RENEW + 1):
        keeper.add([(str(number), number)])
    keeper.start()
    await until(lambda: len(redis.renewed()) >= 2)
    assert [len(part) for part in redis.renewed()[:2]] == [MAX_RENEW, 1]


async def test_a_stalled_event_loop_loses_its_leases_and_gets_them_back_when_it_moves(make_keeper, redis):
    keeper, _ = make_keeper(stall_limit=0.05)
    keeper.add([("a", 1)])
    keeper.start()
    await until(lambda: keeper.stalled_for > 0.05)
    await turns(redis, 2)  # one may have been on its way
    renewed = len(redis.renewed())
    await turns(redis, 3)
    assert len(redis.renewed()) == renewed  # while the heartbeat goes on
    keeper.beat()
    assert keeper.stalled_for < 0.05
    await until(lambda: len(redis.renewed()) > renewed)


async def test_a_failure_is_told_and_tried_again(make_keeper, redis):
    keeper, told = make_keeper()
    keeper.add([("a", 1)])
    redis.down = True
    keeper.start()
    await until(lambda: len(told["errors"]) >= 4)  # two turns: a renewal and a heartbeat each
    assert all(isinstance(error, BrokerUnavailableError) for error in told["errors"])
    assert told["lost"] == []
    redis.down = False
    before = len(redis.renewed())
    await until(lambda: len(redis.renewed()) > before)
    assert keeper.held == 1


async def test_the_heartbeat_has_the_workers_figures(make_keeper, redis):
    keeper, _ = make_keeper(lease=300)
    before = time.time()
    keeper.start()
    await until(lambda: redis.named("heartbeat"))
    assert list(redis.named("heartbeat")[0].args) == ["q:", "w", 900_000, "threads", "4"]
    await until(lambda: keeper.last_contact >= before)


async def test_a_short_lease_still_has_a_heartbeat_that_lasts(make_keeper, redis):
    keeper, _ = make_keeper()
    keeper.start()
    await until(lambda: redis.named("heartbeat"))
    assert redis.named("heartbeat")[0].args[2] == 30_000


async def test_stop_signs_off_and_closes_the_connection(make_keeper, redis):
    keeper, _ = make_keeper(lease=300)  # stop does not wait for the next turn
    keeper.add([("a", 1)])
    keeper.start()
    await until(lambda: redis.named("heartbeat"))
    keeper.stop()
    assert list(redis.calls[-1].args) == ["q:", "w", 0]
    assert redis.calls[-1].name == "heartbeat"
    assert redis.closed
    calls = len(redis.calls)
    keeper.stop()
    assert len(redis.calls) == calls


async def test_stop_ends_the_thread_also_while_redis_is_down(make_keeper, redis):
    keeper, _ = make_keeper(lease=300)
    redis.down = True
    keeper.start()
    keeper.stop()
    assert redis.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "queue-system-leases"]


async def test_start_may_be_repeated(make_keeper, redis):
    keeper, _ = make_keeper()
    keeper.start()
    keeper.start()
    await turns(redis, 1)
    assert len([thread for thread in threading.enumerate() if thread.name == "queue-system-leases"]) == 1


@pytest.mark.parametrize("error", [LookupError("ours"), SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_nothing_ends_the_thread_but_stop(make_keeper, redis, error):
    connects = []

    def describe():
        if len(redis.renewed()) < 3:
            raise error
        return {}

    def connect():
        connects.append(None)
        if len(connects) < 3:
            raise error
        return redis

    keeper, told = make_keeper(describe=describe)
    keeper._connect = connect
    assert not keeper.alive
    keeper.add([("a", 1)])
    keeper.start()
    await until(lambda: redis.named("heartbeat"))
    assert keeper.alive
    assert len(connects) == 3
    assert len(redis.renewed()) >= 3  # they were renewed all the same
    message = str(error)
    assert [str(one) for one in told["errors"]] == [f"{type(error).__name__}: {message}"] * 4
    keeper.stop()
    assert not keeper.alive


async def test_a_failure_that_cannot_be_told_does_not_end_it_either(make_keeper, redis):
    keeper, _ = make_keeper()

    def tell(_):
        raise SystemExit("a listener")

    keeper._on_error = tell
    redis.down = True
    keeper.start()
    await until(lambda: len(redis.calls) >= 3)
    assert keeper.alive


async def test_each_answer_is_a_contact(make_keeper, redis):
    contacts = []
    keeper, told = make_keeper(on_contact=lambda: contacts.append(len(redis.calls)))
    redis.down = True
    keeper.start()
    await until(lambda: told["errors"])
    assert contacts == []
    redis.down = False
    await until(lambda: contacts)


async def test_a_turn_that_does_not_end_is_seen(make_keeper, redis):
    inside, go_on = threading.Event(), threading.Event()

    def hang(_):
        inside.set()
        go_on.wait(20)

    redis.before_reply = hang
    keeper, _ = make_keeper(lease=300)
    assert keeper.turning_for == 0.0
    keeper.start()
    await until(inside.is_set)
    await until(lambda: keeper.turning_for > 0.01)
    go_on.set()
    await until(lambda: keeper.turning_for == 0.0)
