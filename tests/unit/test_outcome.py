import pytest
from fakes import item

from queue_system.outcome import (
    CANCELLED,
    ERROR,
    MAX_UNKNOWN_DELIVERIES,
    POOL_EXHAUSTED,
    TIMEOUT,
    TOTAL_TIMEOUT,
    UNKNOWN_DELAY,
    UNKNOWN_PROCESSOR,
    ErrorInfo,
    Failure,
    Requeue,
    Retry,
    decide,
    decide_unknown,
    total_timeout_exceeded,
)
from queue_system.retry import QueueRetryConfig

ERR = ErrorInfo("ValueError", "no")
SCHEDULE = QueueRetryConfig(3, [10, 20], timeout=100, jitter=0)


@pytest.mark.parametrize("cause", [ERROR, TIMEOUT, CANCELLED])
@pytest.mark.parametrize(
    ("attempts", "outcome"),
    [
        (0, lambda cause: Retry(10, cause, ERR)),
        (1, lambda cause: Retry(20, cause, ERR)),
        (2, lambda cause: Failure(cause, ERR, cause)),
        (9, lambda cause: Failure(cause, ERR, cause)),
    ],
)
def test_retried_by_the_schedule_until_the_last_attempt(cause, attempts, outcome):
    claimed = item(attempts=attempts, first_attempt_time=1000)
    assert decide(claimed, SCHEDULE, cause, ERR, 1001) == outcome(cause)


@pytest.mark.parametrize(("now", "retried"), [(1080, True), (1080.5, False), (1200, False)])
def test_no_retry_starts_beyond_the_total_time(now, retried):
    claimed = item(attempts=1, first_attempt_time=1000)
    outcome = decide(claimed, SCHEDULE, ERROR, ERR, now)
    assert outcome == (Retry(20, ERROR, ERR) if retried else Failure(TOTAL_TIMEOUT, ERR, ERROR))


def test_the_last_attempt_fails_for_its_own_reason_and_not_for_the_time():
    claimed = item(attempts=2, first_attempt_time=0)
    assert decide(claimed, SCHEDULE, ERROR, ERR, 10**6) == Failure(ERROR, ERR, ERROR)


def test_an_operation_that_has_no_history_is_at_its_first_attempt():
    assert decide(item(), SCHEDULE, ERROR, ERR, 10**9) == Retry(10, ERROR, ERR)


def test_a_full_pool_backs_off_exponentially_whatever_the_operations_own_schedule():
    fixed = QueueRetryConfig(100, [0], jitter=0)
    longest = {1: 1, 2: 2, 3: 4, 7: 60, 50: 60}
    for exhaustions, seconds in longest.items():
        claimed = item(attempts=0, exhaustions=exhaustions - 1)
        delays = [decide(claimed, fixed, POOL_EXHAUSTED, ERR, 0).delay for _ in range(200)]
        assert max(delays) <= seconds
        assert max(delays) > 0.8 * seconds  # 200 draws of full jitter


def test_a_full_pool_gives_up_after_the_operations_own_last_attempt():
    assert decide(item(attempts=2), SCHEDULE, POOL_EXHAUSTED, ERR, 0) == Failure(POOL_EXHAUSTED, ERR, POOL_EXHAUSTED)


@pytest.mark.parametrize("delivery", [1, MAX_UNKNOWN_DELIVERIES - 1])
def test_an_unknown_processor_is_put_back_for_another_worker(delivery):
    assert decide_unknown(item(delivery=delivery), ERR) == Requeue(UNKNOWN_DELAY, UNKNOWN_PROCESSOR)


def test_a_processor_that_nobody_knows_is_given_up_without_an_attempt():
    outcome = decide_unknown(item(delivery=MAX_UNKNOWN_DELIVERIES), ERR)
    assert outcome == Failure(UNKNOWN_PROCESSOR, ERR, UNKNOWN_PROCESSOR, attempted=False)


@pytest.mark.parametrize(("now", "exceeded"), [(1100, False), (1100.1, True)])
def test_whether_the_total_time_was_over_before_the_attempt(now, exceeded):
    assert total_timeout_exceeded(item(first_attempt_time=1000), SCHEDULE, now) is exceeded


def test_the_first_attempt_is_never_too_late():
    assert not total_timeout_exceeded(item(), QueueRetryConfig(timeout=0.001), 10**9)


@pytest.mark.parametrize("cause", [POOL_EXHAUSTED, ERROR])
def test_the_total_time_does_not_run_before_the_first_call(cause):
    config = QueueRetryConfig(3, [10], timeout=0.001, jitter=0)
    assert isinstance(decide(item(), config, cause, ERR, 10**9), Retry)
    called = item(first_attempt_time=10**9)
    assert decide(called, config, cause, ERR, 10**9) == Failure(TOTAL_TIMEOUT, ERR, cause)
