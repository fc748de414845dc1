import asyncio
import contextvars
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from queue_system.errors import ThreadPoolExhaustedError
from queue_system.events import OperationInfo, current_operation
from queue_system.runtime import account as account_module
from queue_system.runtime import pool as pool_module
from queue_system.runtime.incident import ProcessorRaisedError
from queue_system.runtime.pool import ROOM_FACTOR, ThreadPool
from support import until

FOREVER = 60.0  # seconds: no test takes so long


class Gate:
    """A job that waits until it is let go, and counts who came in."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self._open = threading.Event()

    def job(self, name: str = ""):
        def run():
            self.entered.append(name)
            assert self._open.wait(FOREVER)
            return name

        return run

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def make_pool():
    made = []

    def make(size, **options):
        made.append(ThreadPool(size, **{"wait_limit": FOREVER, "patience": FOREVER, **options}))
        return made[-1]

    yield make
    for pool in made:
        pool.shutdown()


@pytest.fixture
def clock(monkeypatch):
    """The pool's clock, moved by hand. The event loop keeps its own."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    for module in (pool_module, account_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


async def test_a_job_runs_in_a_thread_of_the_pool(make_pool):
    pool = make_pool(2, name="mine")
    name, daemon = await pool.submit(lambda: (threading.current_thread().name, threading.current_thread().daemon))
    assert name.startswith("mine-")
    assert daemon  # a job that never ends must not keep the process from ending


async def test_many_jobs_give_their_own_results(make_pool):
    pool = make_pool(3)
    assert await asyncio.gather(*(pool.submit(lambda n=n: n * n) for n in range(200))) == [n * n for n in range(200)]
    assert pool.stats().submissions == 200
    assert (pool.stats().active, pool.stats().waiting, pool.stats().exhaustions) == (0, 0, 0)


async def test_no_more_run_at_once_than_there_are_threads(make_pool, gate):
    pool = make_pool(2)
    futures = [pool.submit(gate.job(str(n))) for n in range(5)]
    await until(lambda: pool.stats().active == 2)
    assert (pool.stats().waiting, pool.waiting, pool.stats().size) == (3, 3, 2)
    assert len(gate.entered) == 2
    gate.open()
    assert await asyncio.gather(*futures) == ["0", "1", "2", "3", "4"]
    assert gate.entered[2:] == ["2", "3", "4"]  # in the order of submission
    assert (pool.stats().active, pool.waiting) == (0, 0)


async def test_threads_are_started_when_they_are_needed_and_used_again(make_pool, gate):
    pool = make_pool(10)
    for _ in range(5):
        await pool.submit(int)
    assert len(pool._threads) == 1
    futures = [pool.submit(gate.job()) for _ in range(3)]
    assert len(pool._threads) == 3
    gate.open()
    await asyncio.gather(*futures)


async def test_context_variables_are_copied(make_pool):
    variable = contextvars.ContextVar("variable", default="unset")
    pool = make_pool(1)
    variable.set("of the caller")

    def job():
        seen = variable.get()
        variable.set("of the job")
        return seen

    assert await pool.submit(job) == "of the caller"
    assert await pool.submit(job) == "of the caller"
    assert variable.get() == "of the caller"


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("mine"), asyncio.QueueEmpty()])
async def test_an_exception_is_the_futures(make_pool, error):
    def job():
        raise error

    with pytest.raises(type(error)) as caught:
        await make_pool(1).submit(job)
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(7), asyncio.CancelledError(), GeneratorExit()]
)
async def test_what_would_end_the_loop_or_the_thread_is_wrapped(make_pool, error):
    def job():
        raise error

    pool = make_pool(1)
    with pytest.raises(RuntimeError, match=f"the processor raised {type(error).__name__}") as caught:
        await pool.submit(job)
    assert caught.value.error is caught.value.__cause__ is error
    assert await pool.submit(lambda: "alive") == "alive"
    assert len(pool._threads) == 1


class Unprintable(BaseException):
    def __str__(self):
        raise SystemExit(7)

    __repr__ = __str__


async def test_an_error_that_cannot_be_printed_takes_no_others_result_with_it(make_pool):
    def job():
        raise Unprintable

    pool = make_pool(2)
    with pytest.raises(ProcessorRaisedError) as caught:
        await pool.submit(job)
    assert type(caught.value.error) is Unprintable
    assert await asyncio.gather(*(pool.submit(lambda: "alive") for _ in range(5))) == ["alive"] * 5


async def test_no_new_thread_is_no_loss_as_long_as_there_is_one(make_pool, gate, monkeypatch):
    pool = make_pool(2)
    first = pool.submit(gate.job("first"))

    def refuses(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        second = pool.submit(gate.job("second"))
        with pytest.raises(ThreadPoolExhaustedError, match="no thread could be started: can't start new thread"):
            make_pool(1).submit(gate.job("never"))
    gate.open()
    assert await asyncio.gather(first, second) == ["first", "second"]
    assert gate.entered == ["first", "second"]
    assert pool.limit == 8
    assert len(pool._threads) == 1
    assert await pool.submit(lambda: "a thread is tried for again") == "a thread is tried for again"


async def test_a_job_for_which_no_thread_could_be_started_leaves_nothing_behind(make_pool, monkeypatch):
    pool = make_pool(1)

    def refuses(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        with pytest.raises(ThreadPoolExhaustedError):
            pool.submit(lambda: "never")
    assert (pool.waiting, pool.stats().exhaustions, pool._in_pool) == (0, 1, 0)
    assert await pool.submit(lambda: "now") == "now"


async def test_a_job_without_a_thread_in_time_is_exhausted_and_never_called(make_pool, gate):
    pool = make_pool(1, wait_limit=0.02)
    first = pool.submit(gate.job("first"))
    second = pool.submit(gate.job("second"))
    with pytest.raises(ThreadPoolExhaustedError, match=r"no free thread of 1 within 0\.\d+ s"):
        await second
    assert (pool.stats().exhaustions, pool.waiting) == (1, 0)
    gate.open()
    assert await first == "first"
    assert await pool.submit(lambda: "next") == "next"
    assert gate.entered == ["first"]
    assert pool.stats().exhaustions == 1


async def test_a_thread_that_becomes_free_in_time_takes_the_job(make_pool, gate):
    pool = make_pool(1, wait_limit=FOREVER)
    futures = [pool.submit(gate.job(name)) for name in ("first", "second")]
    gate.open()
    assert await asyncio.gather(*futures) == ["first", "second"]


async def test_a_job_that_got_its_thread_may_take_its_time(make_pool, gate, clock):
    pool, first = make_pool(1, wait_limit=10), Gate()
    pool.submit(first.job())
    second = pool.submit(gate.job("second"))
    first.open()
    await until(lambda: gate.entered)
    clock.now += 11
    pool._check_limits()
    assert not second.done()
    assert pool.stats().exhaustions == 0


async def test_each_job_has_a_limit_of_its_own(make_pool, gate, clock):
    pool = make_pool(1, wait_limit=10)
    pool.submit(gate.job())
    early = pool.submit(gate.job("early"))
    clock.now += 6
    late = pool.submit(gate.job("late"))
    clock.now += 5
    pool._check_limits()
    assert isinstance(early.exception(), ThreadPoolExhaustedError)
    assert not late.done()
    clock.now += 5
    pool._check_limits()
    assert isinstance(late.exception(), ThreadPoolExhaustedError)


async def test_after_an_exhaustion_the_room_is_closed_for_a_moment(make_pool, gate, monkeypatch):
    monkeypatch.setattr(pool_module, "ROOM_CLOSED_FOR", 0.05)
    opened = asyncio.Event()
    pool = make_pool(2, wait_limit=0.01, on_capacity=opened.set)
    assert pool.limit == 2 * (1 + ROOM_FACTOR)
    futures = [pool.submit(gate.job()) for _ in range(3)]
    with pytest.raises(ThreadPoolExhaustedError):
        await futures[2]
    assert pool.limit == 2
    async with asyncio.timeout(20):
        await opened.wait()  # told, so that more is claimed
    assert pool.limit == 2 * (1 + ROOM_FACTOR)


async def test_a_patient_job_waits_as_long_as_others_end(make_pool, gate, clock):
    pool = make_pool(1, wait_limit=0.01, patience=30)
    pool.submit(gate.job())
    patient = pool.submit(lambda: "at last", patient=True)
    for _ in range(5):
        clock.now += 29
        pool._last_end = clock.now  # another job has ended
        pool._check_limits()
    assert not patient.done()
    gate.open()
    assert await patient == "at last"
    assert pool.stats().exhaustions == 0


async def test_a_patient_job_is_exhausted_when_nothing_ends_any_more(make_pool, gate, clock):
    pool = make_pool(1, patience=30)
    pool.submit(gate.job())
    clock.now += 20
    patient = pool.submit(gate.job("patient"), patient=True)
    clock.now += 29
    pool._check_limits()
    assert not patient.done()
    clock.now += 2
    pool._check_limits()
    assert isinstance(patient.exception(), ThreadPoolExhaustedError)
    gate.open()
    await pool.submit(int)
    assert gate.entered == [""]


async def test_the_end_of_a_job_renews_patience(make_pool, clock):
    pool = make_pool(1)
    clock.now += 77
    await pool.submit(int)
    assert pool._last_end == clock.now


async def test_a_cancelled_job_that_waits_is_not_run(make_pool, gate):
    pool = make_pool(1)
    first, second, third = (pool.submit(gate.job(name)) for name in ("first", "second", "third"))
    second.cancel()
    gate.open()
    assert await asyncio.gather(first, third) == ["first", "third"]
    assert gate.entered == ["first", "third"]
    assert pool.waiting == 0


async def test_the_result_of_a_cancelled_job_is_dropped(make_pool, gate):
    pool = make_pool(1)
    future = pool.submit(gate.job())
    await until(lambda: gate.entered)
    future.cancel()
    gate.open()
    await pool.submit(int)
    assert future.cancelled()


async def test_an_exhausted_job_may_be_cancelled_already(make_pool, gate, clock):
    pool = make_pool(1, wait_limit=10)
    pool.submit(gate.job())
    waiting = pool.submit(gate.job())
    waiting.cancel()
    clock.now += 11
    pool._check_limits()
    assert waiting.cancelled()
    assert pool.waiting == 0


async def test_busy_time_is_integrated(make_pool, gate, clock):
    pool = make_pool(2)
    clock.now += 4  # idle
    first = pool.submit(gate.job())
    await until(lambda: pool.stats().active == 1)
    clock.now += 10  # one of two threads
    second = pool.submit(gate.job())
    third = pool.submit(gate.job())  # waits, and keeps no thread busy
    await until(lambda: pool.stats().active == 2)
    clock.now += 100  # both
    stats = pool.stats()
    assert (stats.busy_seconds, stats.capacity_seconds, stats.saturated_seconds) == (210.0, 228.0, 100.0)
    assert stats.longest_running == 110.0
    gate.open()
    await asyncio.gather(first, second, third)
    clock.now += 1000
    stats = pool.stats()
    assert (stats.busy_seconds, stats.saturated_seconds, stats.longest_running) == (210.0, 100.0, 0.0)
    assert stats.capacity_seconds == 2 * 1114


async def test_a_job_beyond_its_limit_counts_as_abandoned_until_it_ends(make_pool, gate, clock):
    pool = make_pool(2, abandon_after=600)
    future = pool.submit(gate.job())
    await until(lambda: pool.stats().active == 1)
    clock.now += 600
    assert pool.stats().abandoned == 0
    clock.now += 1
    assert (pool.stats().abandoned, pool.stats().active) == (1, 1)
    gate.open()
    await future
    assert (pool.stats().abandoned, pool.stats().active) == (0, 0)


async def test_capacity_is_told_when_jobs_end(make_pool, gate):
    told = []
    pool = make_pool(1, on_capacity=lambda: told.append(pool.waiting))
    futures = [pool.submit(gate.job()) for _ in range(3)]
    assert told == []
    gate.open()
    await asyncio.gather(*futures)
    await until(lambda: told and told[-1] == 0)


def stand_still_until(condition) -> None:
    """Wait, and let the event loop wait, too."""
    deadline = time.monotonic() + FOREVER
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def test_half_of_what_the_pool_holds_is_handed_over_at_a_time(make_pool):
    told = []
    pool = make_pool(1, on_capacity=lambda: told.append(sum(future.done() for future in futures)))
    futures = [pool.submit(lambda: None) for _ in range(4)]
    stand_still_until(lambda: len(pool._done) == 4)
    await asyncio.gather(*futures)
    assert told[:2] == [2, 4]


async def test_shutdown_ends_idle_threads_now_and_busy_ones_after_their_job(make_pool, gate):
    pool = make_pool(2)
    futures = [pool.submit(gate.job(name)) for name in ("a", "b")]
    await until(lambda: pool.stats().active == 2)
    pool.shutdown()
    assert all(thread.is_alive() for thread in pool._threads)
    gate.open()
    assert await asyncio.gather(*futures) == ["a", "b"]
    await until(lambda: not any(thread.is_alive() for thread in pool._threads))


async def test_after_shutdown_no_limit_is_checked_any_more(make_pool, gate):
    pool = make_pool(1, wait_limit=0.01)
    pool.submit(gate.job())
    waiting = pool.submit(gate.job())
    pool.shutdown()
    assert pool._timer is None
    waiting.cancel()


def test_a_job_that_outlives_its_event_loop_ends_quietly(gate):
    """Whatever its thread raises would fail this test: pytest is told so."""
    pool = ThreadPool(1)

    async def main():
        pool.submit(gate.job())
        await until(lambda: gate.entered)

    asyncio.run(main())
    pool.shutdown()
    gate.open()
    (thread,) = pool._threads
    thread.join(FOREVER)
    assert not thread.is_alive()


async def test_an_idle_thread_keeps_no_entity_alive(make_pool):
    class Entity:
        pass

    pool, entity = make_pool(1), Entity()
    gone = weakref.ref(entity)
    await pool.submit(lambda entity=entity: None)
    del entity
    await until(lambda: gc.collect() >= 0 and gone() is None)


async def test_stats_can_be_asked_from_any_thread(make_pool, gate):
    pool = make_pool(1)
    pool.submit(gate.job())
    await until(lambda: pool.stats().active == 1)
    began = time.monotonic()
    stats = await asyncio.to_thread(pool.stats)
    assert stats.active == 1
    assert 0 <= stats.longest_running <= time.monotonic() - began + FOREVER


async def test_an_abandoned_thread_is_reported_once_with_its_operation_and_its_stack(make_pool, gate, clock):
    operation = OperationInfo("op-1", "mail", "high", "send", "operation", is_async=False, attempt=2, headers={})
    pool = make_pool(2, abandon_after=600, name="mine")
    token = current_operation.set(operation)
    future = pool.submit(gate.job("hangs"))
    current_operation.reset(token)
    await until(lambda: gate.entered)
    clock.now += 600
    assert pool.report_abandoned() == []
    clock.now += 5
    (told,) = pool.report_abandoned()
    assert (told.operation, told.thread, told.seconds) == (operation, "mine-0", 605.0)
    assert "in run\n" in told.stack  # the job
    assert "waiter.acquire(" in told.stack.splitlines()[-1]  # where it stands
    clock.now += 1000
    assert pool.report_abandoned() == []
    gate.open()
    await future


async def test_the_next_job_of_a_thread_is_reported_anew(make_pool, clock):
    pool = make_pool(1, abandon_after=10)
    for name in ("first", "second"):
        gate = Gate()
        future = pool.submit(gate.job(name))
        await until(lambda gate=gate: gate.entered)
        clock.now += 11
        assert [told.operation for told in pool.report_abandoned()] == [None]
        gate.open()
        await future
    assert pool.report_abandoned() == []


async def test_a_job_may_say_how_long_it_takes(make_pool, gate, clock):
    pool = make_pool(1, abandon_after=10)
    said = threading.Event()

    def long():
        pool.expect(100)
        said.set()
        gate.job()()

    future = pool.submit(long)
    await until(said.is_set)
    clock.now += 99
    assert (pool.stats().abandoned, pool.report_abandoned()) == (0, [])
    clock.now += 2
    assert (pool.stats().abandoned, len(pool.report_abandoned())) == (1, 1)
    gate.open()
    await future


async def test_the_room_is_closed_while_every_thread_has_one_job_for_longer_than_patience(make_pool, clock):
    pool, gates = make_pool(2, patience=30), (Gate(), Gate())
    clock.now += 1000  # idle for long: that alone means nothing
    futures = [pool.submit(gates[0].job())]
    await until(lambda: pool.stats().active == 1)
    clock.now += 31
    assert pool.limit == 2 * (1 + ROOM_FACTOR)  # a thread is free
    futures.append(pool.submit(gates[1].job()))
    await until(lambda: pool.stats().active == 2)
    assert pool.limit == 2 * (1 + ROOM_FACTOR)  # the second has just begun
    clock.now += 31
    assert pool.limit == 2
    gates[0].open()
    await futures[0]
    assert pool.limit == 2 * (1 + ROOM_FACTOR)
    gates[1].open()
    await futures[1]
