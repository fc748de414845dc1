import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import utils
from queue_system.errors import CircuitOpenError, ConfigurationError
from queue_system.utils import CircuitBreaker, circuit_breaker, retry_with_backoff, try_catch, with_timeout

NO_WAIT = {"base_delay": 0, "max_delay": 0}
SHORT = 0.005
LONG = 60.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Flaky:
    """Raises the given errors in turn, then returns "ok"."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "ok"


def as_kind(kind, func):
    """`func` as a sync or an async function."""
    if kind == "sync":

        def plain(*args, **kwargs):
            return func(*args, **kwargs)

        return plain

    async def awaitable(*args, **kwargs):
        return func(*args, **kwargs)

    return awaitable


async def call(func, *args, **kwargs):
    result = func(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


both_kinds = pytest.mark.parametrize("kind", ["sync", "async"])


# What all four have in common


DECORATORS = [with_timeout, circuit_breaker, retry_with_backoff, try_catch]
every_decorator = pytest.mark.parametrize("decorator", DECORATORS, ids=lambda decorator: decorator.__name__)


def test_the_top_level_module_has_the_same_functions():
    assert [getattr(utils, name) for name in sorted(utils.__all__)] == sorted(DECORATORS, key=lambda d: d.__name__)


@every_decorator
@pytest.mark.parametrize("bare", [True, False])
async def test_keeps_the_signature_of_functions_and_works_on_methods(decorator, bare):
    apply = decorator if bare else decorator()

    class Account:
        def __init__(self):
            self.total = 1

        @apply
        def add(self, amount: int, *, times: int = 1) -> int:
            """Add."""
            return self.total + amount * times

        @apply
        async def add_later(self, amount: int, *, times: int = 1) -> int:
            return self.total + amount * times

        @classmethod
        @apply
        def kind(cls) -> str:
            return cls.__name__

    account = Account()
    assert account.add(2, times=3) == 7
    assert await account.add_later(2, times=3) == 7
    assert Account.kind() == "Account"
    assert str(inspect.signature(account.add)) == "(amount: int, *, times: int = 1) -> int"
    assert Account.add.__name__ == "add"
    assert Account.add.__doc__ == "Add."
    assert inspect.isfunction(Account.add.__wrapped__)
    assert inspect.iscoroutinefunction(Account.add_later)
    assert not inspect.iscoroutinefunction(Account.add)


@every_decorator
async def test_takes_partials_and_callable_objects(decorator):
    class Callee:
        async def __call__(self, value):
            return value

    assert decorator(functools.partial(divmod, 7))(2) == (3, 1)
    assert await decorator(Callee())("value") == "value"


@every_decorator
async def test_stacks_on_itself_and_the_others(decorator):
    for other in DECORATORS:
        assert decorator(other(lambda: "sync"))() == "sync"
        assert await decorator(other(as_kind("async", lambda: "async")))() == "async"


@every_decorator
def test_refuses_what_it_cannot_decorate(decorator):
    def generator():
        yield 1

    async def async_generator():
        yield 1

    for refused in (generator, async_generator, classmethod(len), staticmethod(len), "text"):
        with pytest.raises(ConfigurationError, match=r"decorate"):
            decorator(refused)


@pytest.mark.parametrize(
    "apply",
    [
        lambda: with_timeout(seconds=-1),
        lambda: with_timeout(seconds=0),
        lambda: with_timeout(0),
        lambda: with_timeout(True),  # noqa: FBT003
        lambda: with_timeout(seconds=float("nan")),
        lambda: with_timeout(seconds="5"),
        lambda: circuit_breaker(failure_threshold=0),
        lambda: circuit_breaker(recovery_timeout=-1),
        lambda: circuit_breaker(exceptions=()),
        lambda: circuit_breaker(breaker="redis"),
        lambda: CircuitBreaker("x", failure_threshold=1.5),
        lambda: CircuitBreaker("x", recovery_timeout=0),
        lambda: retry_with_backoff(max_attempts=0),
        lambda: retry_with_backoff(max_attempts=True),
        lambda: retry_with_backoff(base_delay=-0.1),
        lambda: retry_with_backoff(max_delay=-1),
        lambda: retry_with_backoff(base_delay=10),
        lambda: retry_with_backoff(exceptions=(BaseException,)),
        lambda: retry_with_backoff(sleep=asyncio.sleep)(lambda: None),
        lambda: try_catch(exceptions=(asyncio.CancelledError,)),
        lambda: try_catch(exceptions=ValueError("an instance")),
    ],
)
def test_refuses_wrong_arguments_and_says_what_to_do(apply):
    with pytest.raises(ConfigurationError, match=r": (give|lower)|decorate"):
        apply()


# with_timeout


async def test_timeout_cancels_an_async_call():
    cancelled = []

    @with_timeout(seconds=SHORT)
    async def hang():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(TimeoutError, match=r"hang took longer than its limit of 0.005 s"):
        await hang()
    assert cancelled == [True]


def test_timeout_abandons_a_sync_call_which_goes_on():
    let_go, ended = threading.Event(), threading.Event()

    @with_timeout(SHORT)
    def hang():
        let_go.wait(LONG)
        ended.set()

    with pytest.raises(TimeoutError, match=r"hang took longer than its limit of 0.005 s"):
        hang()
    assert not ended.is_set()
    let_go.set()
    assert ended.wait(LONG)


def test_timeout_runs_a_sync_call_in_a_daemon_thread_with_the_callers_context():
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set by the caller")

    @with_timeout
    def look():
        return variable.get(), threading.current_thread().daemon, threading.current_thread().name

    value, daemon, name = look()
    assert (value, daemon) == ("set by the caller", True)
    assert name.endswith("look")


@both_kinds
@pytest.mark.parametrize("error", [TimeoutError("its own"), KeyError("key"), SystemExit(3)])
async def test_timeout_passes_the_functions_own_errors_through(kind, error):
    limited = with_timeout(seconds=LONG)(as_kind(kind, Flaky(error)))
    with pytest.raises(type(error)) as caught:
        await call(limited)
    assert caught.value is error


@both_kinds
async def test_no_timeout_calls_the_function_in_the_callers_thread(kind):
    for unlimited in (with_timeout(None), with_timeout(seconds=None), with_timeout(seconds=lambda: None)):
        assert await call(unlimited(as_kind(kind, threading.get_ident))) == threading.get_ident()


@both_kinds
async def test_timeout_from_the_calls_arguments(kind):
    seen = []

    class Worker:
        limit = LONG

        run = with_timeout(seconds=lambda self, job, budget=None: budget or self.limit)(
            as_kind(kind, lambda self, job, budget=None: seen.append((job, budget)))
        )

    await call(Worker().run, "a", budget=1.0)
    await call(Worker().run, "b")
    with pytest.raises(TimeoutError, match=r"was not called: its limit of -1 s"):
        await call(Worker().run, "c", -1.0)
    assert seen == [("a", 1.0), ("b", None)]


@both_kinds
async def test_timeout_may_be_infinite_when_computed(kind):
    assert await call(with_timeout(seconds=lambda: float("inf"))(as_kind(kind, Flaky()))) == "ok"


async def test_cancellation_from_outside_is_no_timeout():
    started = asyncio.Event()

    @with_timeout(seconds=LONG)
    async def hang():
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# The class CircuitBreaker


def make_breaker(threshold=2, recovery=10.0, **kwargs):
    clock = Clock()
    return CircuitBreaker("redis", threshold, recovery, clock, **kwargs), clock


def opened(**kwargs):
    breaker, clock = make_breaker(**kwargs)
    for _ in range(breaker.failure_threshold):
        breaker.record_failure()
    assert breaker.state == "open"
    return breaker, clock


def refusal(breaker):
    with pytest.raises(CircuitOpenError, match=r"redis") as caught:
        breaker.before_call()
    return caught.value.retry_after


def test_breaker_opens_after_failures_in_a_row_only():
    breaker, _ = make_breaker(threshold=2)
    breaker.record_failure()
    breaker.record_success()
    breaker.record_failure()
    assert breaker.state == "closed"
    assert breaker.before_call() == 0
    breaker.record_failure()
    assert breaker.state == "open"


def test_breaker_says_when_to_try_again_and_lets_one_probe_through():
    breaker, clock = opened()
    assert refusal(breaker) == 10.0
    clock.now += 9.5
    assert refusal(breaker) == 0.5
    clock.now += 0.5
    probe = breaker.before_call()
    assert probe
    assert breaker.state == "half_open"
    assert refusal(breaker) == 1.0  # not the ten seconds that the probe may take at most
    breaker.record_success(probe)
    assert breaker.state == "closed"
    assert breaker.before_call() == 0


def test_a_failed_probe_opens_the_circuit_for_the_whole_time_again():
    breaker, clock = opened()
    clock.now += 10
    breaker.record_failure(breaker.before_call())
    assert breaker.state == "open"
    assert refusal(breaker) == 10.0


def test_results_without_a_probe_number_count_as_the_probes():
    for record, state in (("record_success", "closed"), ("record_failure", "open")):
        breaker, clock = opened()
        clock.now += 10
        breaker.before_call()
        getattr(breaker, record)()
        assert breaker.state == state


def test_results_of_calls_from_before_the_opening_are_ignored():
    breaker, clock = make_breaker()
    early = breaker.before_call()
    for _ in range(2):
        breaker.record_failure(breaker.before_call())
    for report in (breaker.record_success, breaker.record_failure, breaker.release):
        report(early)
        assert breaker.state == "open"
    clock.now += 10
    probe = breaker.before_call()
    for report in (breaker.record_success, breaker.record_failure, breaker.release):
        report(early)
        assert breaker.state == "half_open"
        assert refusal(breaker)
    breaker.record_success(probe)
    assert breaker.state == "closed"


def test_a_released_probe_makes_room_for_another_at_once():
    breaker, clock = opened()
    clock.now += 10
    first = breaker.before_call()
    breaker.release(first)
    second = breaker.before_call()
    breaker.release(first)
    breaker.record_failure(first)
    assert breaker.state == "half_open"
    assert refusal(breaker)
    breaker.record_success(second)
    assert breaker.state == "closed"


def test_a_probe_that_never_reports_is_given_up():
    breaker, clock = opened()
    clock.now += 10
    lost = breaker.before_call()
    clock.now += 10
    probe = breaker.before_call()
    breaker.record_failure(lost)
    assert breaker.state == "half_open"
    breaker.record_success(probe)
    assert breaker.state == "closed"


def test_exactly_one_of_many_threads_probes():
    threads = 16
    breaker, clock = opened()
    clock.now += 10
    together = threading.Barrier(threads)

    def attempt(_):
        together.wait(LONG)
        try:
            return breaker.before_call()
        except CircuitOpenError:
            return None

    with ThreadPoolExecutor(threads) as pool:
        probes = [probe for probe in pool.map(attempt, range(threads)) if probe]
    assert len(probes) == 1


def test_on_change_is_told_each_change_in_order_and_may_look():
    changes = []
    breaker, clock = opened(on_change=lambda *change: changes.append((*change, breaker.state if changes else "")))
    clock.now += 10
    probe = breaker.before_call()
    breaker.release(probe)
    breaker.before_call()
    breaker.record_success()
    breaker.record_success()
    assert changes == [
        ("redis", "closed", "open", ""),
        ("redis", "open", "half_open", "half_open"),
        ("redis", "half_open", "closed", "closed"),
    ]


def test_on_change_cannot_break_the_breaker(caplog):
    breaker, _ = opened(on_change=Flaky(RuntimeError("listener")))
    assert breaker.state == "open"
    assert "callback Flaky failed" in caplog.text


def test_no_lock_while_all_goes_well():
    breaker, _ = make_breaker()
    breaker._lock = None
    assert circuit_breaker(breaker=breaker)(lambda: "ok")() == "ok"


# The decorator circuit_breaker


@both_kinds
async def test_bare_breaker_opens_after_five_failures(kind):
    flaky = Flaky(*[ConnectionError() for _ in range(9)])
    guarded = circuit_breaker(as_kind(kind, flaky))
    for _ in range(5):
        with pytest.raises(ConnectionError):
            await call(guarded)
    with pytest.raises(CircuitOpenError) as caught:
        await call(guarded)
    assert flaky.calls == 5
    assert 29 < caught.value.retry_after <= 30


@both_kinds
async def test_each_function_gets_its_own_breaker(kind):
    decorator = circuit_breaker(failure_threshold=1)
    first = decorator(as_kind(kind, Flaky(ConnectionError())))
    second = decorator(as_kind(kind, Flaky()))
    with pytest.raises(ConnectionError):
        await call(first)
    with pytest.raises(CircuitOpenError):
        await call(first)
    assert await call(second) == "ok"


@both_kinds
async def test_an_exception_that_is_no_failure_counts_as_success(kind):
    breaker, clock = opened()
    flaky = Flaky(KeyError(), ConnectionError(), KeyError(), ConnectionError())
    guarded = circuit_breaker(breaker=breaker, exceptions=ConnectionError)(as_kind(kind, flaky))
    clock.now += 10
    for error in (KeyError, ConnectionError, KeyError, ConnectionError):
        with pytest.raises(error):
            await call(guarded)
    assert breaker.state == "closed"


@both_kinds
async def test_methods_share_the_breaker_of_their_instance(kind):
    class Store:
        def __init__(self):
            self.breaker = CircuitBreaker("store", failure_threshold=1)

        load = circuit_breaker(breaker=lambda self: self.breaker)(as_kind(kind, lambda self: {}[self]))
        save = circuit_breaker(breaker=lambda self: self.breaker)(as_kind(kind, lambda self, value: value))

    broken, sound = Store(), Store()
    with pytest.raises(KeyError):
        await call(broken.load)
    with pytest.raises(CircuitOpenError):
        await call(broken.save, 1)
    assert await call(sound.save, 1) == 1


async def test_one_async_probe_at_a_time_and_cancelling_it_frees_the_place():
    breaker, clock = opened()
    started, answer = asyncio.Event(), asyncio.Event()

    @circuit_breaker(breaker=breaker)
    async def ask():
        started.set()
        await answer.wait()

    clock.now += 10
    probe = asyncio.create_task(ask())
    await started.wait()
    refused = await asyncio.gather(*(ask() for _ in range(5)), return_exceptions=True)
    assert {type(result) for result in refused} == {CircuitOpenError}
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert breaker.state == "half_open"
    answer.set()
    await ask()
    assert breaker.state == "closed"


def test_a_closed_coroutine_frees_the_probe_even_from_another_context():
    breaker, clock = opened()

    @circuit_breaker(breaker=breaker)
    async def ask():
        await asyncio.Future(loop=loop)

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        clock.now += 10
        coroutine = ask()
        contextvars.copy_context().run(coroutine.send, None)
        assert refusal(breaker)
        coroutine.close()
        assert breaker.before_call()


async def test_cancellation_and_interrupts_are_no_failures():
    breaker, _ = make_breaker(threshold=1)
    for kind, error in (("sync", KeyboardInterrupt()), ("async", asyncio.CancelledError())):
        with pytest.raises(type(error)):
            await call(circuit_breaker(breaker=breaker)(as_kind(kind, Flaky(error))))
    assert breaker.state == "closed"


@both_kinds
async def test_a_probe_takes_its_nested_calls_with_it(kind):
    breaker, clock = opened()
    guard = circuit_breaker(breaker=breaker)
    inner = guard(as_kind(kind, Flaky(asyncio.CancelledError(), ConnectionError())))

    @guard
    async def outer():
        with contextlib.suppress(asyncio.CancelledError):
            await call(inner)
        assert refusal_elsewhere(breaker)  # the end of the inner call did not free the outer one's place
        await call(inner)

    clock.now += 10
    with pytest.raises(ConnectionError):
        await outer()
    assert breaker.state == "open"
    clock.now += 10
    assert await call(guard(lambda: call(inner))) == "ok"
    assert breaker.state == "closed"


def refusal_elsewhere(breaker):
    return contextvars.Context().run(refusal, breaker)


# retry_with_backoff


@both_kinds
async def test_retries_until_it_works(kind):
    flaky = Flaky(ConnectionError(), ConnectionError())
    assert await call(retry_with_backoff(**NO_WAIT)(as_kind(kind, flaky))) == "ok"
    assert flaky.calls == 3


@both_kinds
async def test_the_last_error_itself_is_raised(kind):
    errors = [ConnectionError("1"), ConnectionError("2"), ConnectionError("3")]
    with pytest.raises(ConnectionError, match="3") as caught:
        await call(retry_with_backoff(**NO_WAIT)(as_kind(kind, Flaky(*errors))))
    assert caught.value is errors[2]
    assert caught.value.__context__ is None


@both_kinds
async def test_a_single_attempt_does_not_sleep(kind):
    flaky, slept = Flaky(ConnectionError("1"), ConnectionError("2")), []
    with pytest.raises(ConnectionError, match="1"):
        await call(retry_with_backoff(max_attempts=1, sleep=slept.append)(as_kind(kind, flaky)))
    assert (flaky.calls, slept) == (1, [])


@both_kinds
@pytest.mark.parametrize("jitter", [True, False])
async def test_delays_double_up_to_the_limit(kind, jitter):
    slept, told = [], []
    errors = [ConnectionError(str(number)) for number in range(1, 7)]
    retried = retry_with_backoff(
        max_attempts=7,
        base_delay=1,
        max_delay=10,
        jitter=jitter,
        sleep=slept.append,
        on_retry=lambda *details: told.append(details),
    )(as_kind(kind, Flaky(*errors)))
    assert await call(retried) == "ok"
    limits = [1, 2, 4, 8, 10, 10]
    if jitter:
        assert all(0 <= delay <= limit for delay, limit in zip(slept, limits, strict=True))
        assert slept != limits
    else:
        assert slept == limits
    assert told == [(error, number, delay) for number, (error, delay) in enumerate(zip(errors, slept, strict=True), 1)]


async def test_async_sleep_is_awaited():
    slept = []

    async def sleep(delay):
        slept.append(delay)

    retried = retry_with_backoff(sleep=sleep, jitter=False)(as_kind("async", Flaky(ConnectionError())))
    assert await retried() == "ok"
    assert slept == [0.1]


@both_kinds
async def test_only_what_is_worth_it_is_tried_again(kind):
    retry = retry_with_backoff(exceptions=(ConnectionError,), retry_if=lambda error: "soft" in str(error), **NO_WAIT)
    for errors, calls in (
        ([KeyError()], 1),
        ([ConnectionError("hard")], 1),
        ([ConnectionError("soft"), ConnectionError("hard")], 2),
        ([ConnectionError("soft"), KeyError()], 2),
    ):
        flaky = Flaky(*errors)
        with pytest.raises(type(errors[-1])):
            await call(retry(as_kind(kind, flaky)))
        assert flaky.calls == calls


@both_kinds
@pytest.mark.parametrize("first", [[], [ConnectionError()]])
async def test_cancellation_and_interrupts_are_not_retried(kind, first):
    for error in (asyncio.CancelledError(), KeyboardInterrupt()):
        flaky = Flaky(*first, error)
        with pytest.raises(type(error)):
            await call(retry_with_backoff(**NO_WAIT)(as_kind(kind, flaky)))
        assert flaky.calls == len(first) + 1


async def test_cancellation_ends_the_delay():
    sleeping = asyncio.Event()
    flaky = Flaky(ConnectionError())
    retried = retry_with_backoff(base_delay=LONG, max_delay=LONG, on_retry=lambda *_: sleeping.set())(
        as_kind("async", flaky)
    )
    task = asyncio.create_task(retried())
    await sleeping.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert flaky.calls == 1


@both_kinds
@pytest.mark.parametrize(("attempts", "calls"), [(5, 5), (1, 1), (0, 1), (None, 3)])
async def test_attempts_from_the_calls_arguments(kind, attempts, calls):
    flaky = Flaky(*[ConnectionError() for _ in range(9)])

    class Client:
        connect = retry_with_backoff(attempts=lambda self, retry_count=None: retry_count, **NO_WAIT)(
            as_kind(kind, lambda self, retry_count=None: flaky())
        )

    with pytest.raises(ConnectionError):
        await call(Client().connect, retry_count=attempts)
    assert flaky.calls == calls


async def test_concurrent_calls_of_one_function_do_not_mix():
    left = {"a": 1, "b": 4, "c": 2}

    @retry_with_backoff(max_attempts=5, **NO_WAIT)
    async def work(name):
        await asyncio.sleep(0)
        if left[name]:
            left[name] -= 1
            raise ConnectionError(name)
        return name

    assert await asyncio.gather(*map(work, left)) == ["a", "b", "c"]


@both_kinds
async def test_on_retry_cannot_break_the_call(kind, caplog):
    retried = retry_with_backoff(on_retry=lambda: None, **NO_WAIT)(as_kind(kind, Flaky(ConnectionError())))
    assert await call(retried) == "ok"
    assert "callback" in caplog.text


# try_catch


@both_kinds
async def test_logs_the_function_and_the_error_but_no_arguments_and_raises_it(kind, caplog):
    error = ValueError("bad")

    def fail(payload):
        raise error

    with pytest.raises(ValueError, match="bad") as caught:
        await call(try_catch(as_kind(kind, fail)), "secret payload")
    assert caught.value is error
    (record,) = caplog.records
    assert (record.name, record.levelno, record.exc_info[1]) == ("queue_system", logging.ERROR, error)
    assert "as_kind" in record.getMessage()
    assert "ValueError" in record.getMessage()
    assert "secret payload" not in caplog.text


@both_kinds
@pytest.mark.parametrize("default", [None, 0, []])
async def test_returns_the_default(kind, default):
    caught = try_catch(default=default, translate=lambda error: RuntimeError())(as_kind(kind, Flaky(ConnectionError())))
    assert await call(caught) is default
    assert await call(caught) == "ok"


@both_kinds
async def test_translates_the_error(kind):
    error = ConnectionError("low level")
    with pytest.raises(RuntimeError, match="low level") as caught:
        await call(try_catch(translate=lambda e: RuntimeError(str(e)))(as_kind(kind, Flaky(error))))
    assert caught.value.__cause__ is error
    with pytest.raises(ConnectionError, match="low level") as caught:
        await call(try_catch(translate=lambda e: e)(as_kind(kind, Flaky(error))))
    assert caught.value.__cause__ is None


@both_kinds
async def test_catches_only_what_it_shall(kind, caplog):
    for error in (KeyError(), asyncio.CancelledError(), KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(error)):
            await call(try_catch(default=None, exceptions=ConnectionError)(as_kind(kind, Flaky(error))))
    with pytest.raises(asyncio.CancelledError):
        await call(try_catch(default=None)(as_kind(kind, Flaky(asyncio.CancelledError()))))
    assert not caplog.records


@both_kinds
async def test_log_is_a_switch_or_a_predicate(kind, caplog):
    for log, count in ((False, 0), (True, 1), (lambda error: "unexpected" in str(error), 1), (lambda _: False, 0)):
        caplog.clear()
        caught = try_catch(default=None, log=log)(as_kind(kind, Flaky(ConnectionError("unexpected"))))
        assert await call(caught) is None
        assert len(caplog.records) == count


@both_kinds
async def test_logs_to_the_given_logger_and_tells_the_listener(kind, caplog):
    errors, error = [], ConnectionError()
    catch = try_catch(default=None, logger=logging.getLogger("mine"), on_error=errors.append)
    assert await call(catch(as_kind(kind, Flaky(error)))) is None
    assert [record.name for record in caplog.records] == ["mine"]
    assert errors == [error]


@both_kinds
async def test_on_error_cannot_replace_the_error(kind, caplog):
    with pytest.raises(ConnectionError, match="first"):
        await call(try_catch(on_error=Flaky(RuntimeError()), log=False)(as_kind(kind, Flaky(ConnectionError("first")))))
    assert "callback Flaky failed" in caplog.text


def test_the_name_of_a_partial_does_not_show_its_arguments(caplog):
    assert try_catch(default=None)(functools.partial(int, "secret"))() is None
    assert "partial failed: ValueError" in caplog.messages
