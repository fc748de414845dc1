import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_system import ConfigurationError, QueueRetryConfig


def without_jitter(config: QueueRetryConfig) -> list[float]:
    return [
        QueueRetryConfig(config.max_attempts, config.delays, jitter=0.0).get_delay_for_attempt(attempt)
        for attempt in range(1, config.max_attempts)
    ]


@pytest.mark.parametrize(
    ("config", "delays", "attempts", "timeout", "jitter"),
    [
        (QueueRetryConfig(), [1, 2, 4, 8], 5, None, 1.0),
        (QueueRetryConfig(max_attempts=10), [1, 2, 4, 8, 16, 32, 60, 60, 60], 10, None, 1.0),
        (QueueRetryConfig(3, [7.0], 20.0), [7, 7], 3, 20.0, 0.1),
        (QueueRetryConfig.fixed(delay=30, max_attempts=3, timeout=300), [30, 30], 3, 300, 0.1),
        (QueueRetryConfig.fixed(0), [0, 0, 0, 0], 5, None, 0.1),
        (QueueRetryConfig.exponential(), [1, 2, 4, 8], 5, None, 1.0),
        (QueueRetryConfig.exponential(3, 2, 20, 6, 3600), [2, 6, 18, 20, 20], 6, 3600, 1.0),
        (QueueRetryConfig.exponential(base=1, min_delay=4), [4, 4, 4, 4], 5, None, 1.0),
        (QueueRetryConfig.exponential(max_attempts=1), [], 1, None, 1.0),
        (QueueRetryConfig.custom([60, 300, 1800, 7200], timeout=86400), [60, 300, 1800, 7200], 5, 86400, 0.1),
        (QueueRetryConfig.custom([1, 5], max_attempts=5), [1, 5, 5, 5], 5, None, 0.1),
        (QueueRetryConfig.custom([1, 5, 9], max_attempts=2), [1], 2, None, 0.1),
    ],
)
def test_schedules(config, delays, attempts, timeout, jitter):
    assert without_jitter(config) == delays
    assert (config.max_attempts, config.timeout, config.jitter) == (attempts, timeout, jitter)


@given(base=st.floats(1, 10), least=st.floats(0.001, 100), factor=st.floats(1, 100), attempts=st.integers(2, 60))
def test_exponential_delays_grow_by_the_base_up_to_the_cap(base, least, factor, attempts):
    cap = least * factor
    delays = without_jitter(QueueRetryConfig.exponential(base, least, cap, attempts))
    assert delays[0] == least
    for before, after in itertools.pairwise(delays):
        assert after == pytest.approx(min(before * base, cap))


@pytest.mark.parametrize(("attempt", "delay"), [(-1, 1), (0, 1), (1, 1), (2, 5), (3, 9), (4, 9), (10**6, 9)])
def test_the_first_and_the_last_delay_hold_beyond_the_list(attempt, delay):
    assert QueueRetryConfig(3, [1, 5, 9], jitter=0).get_delay_for_attempt(attempt) == delay


@pytest.mark.parametrize(
    ("jitter", "drawn", "delay"), [(1.0, 0.0, 10), (1.0, 0.75, 2.5), (0.1, 0.5, 9.5), (0.0, 0.9, 10)]
)
def test_jitter_takes_a_share_of_the_delay_away(jitter, drawn, delay):
    config = QueueRetryConfig(3, [10.0], jitter=jitter, rng=lambda: drawn)
    assert config.get_delay_for_attempt(1) == pytest.approx(delay)


def test_jitter_is_random_and_never_adds():
    config = QueueRetryConfig.exponential(min_delay=8, max_delay=8)
    drawn = {config.get_delay_for_attempt(1) for _ in range(100)}
    assert len(drawn) > 50
    assert all(0 <= delay <= 8 for delay in drawn)


@pytest.mark.parametrize(
    ("timeout", "now", "exceeded"),
    [(None, 10**9, False), (10, 109.9, False), (10, 110, False), (10, 110.1, True)],
)
def test_the_total_timeout_counts_from_the_first_attempt(timeout, now, exceeded):
    assert QueueRetryConfig(timeout=timeout).would_exceed_timeout(100, now) is exceeded


@pytest.mark.parametrize(
    "config",
    [
        QueueRetryConfig(),
        QueueRetryConfig.fixed(2, 9, 77),
        QueueRetryConfig.custom([1, 2.5]),
        QueueRetryConfig(2, [3], jitter=0.5),
        QueueRetryConfig.exponential(base=1.5, max_attempts=20),
    ],
)
def test_a_configuration_survives_json(config):
    restored = QueueRetryConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert restored == config
    assert hash(restored) == hash(config)
    assert restored.to_dict() == config.to_dict()


def test_the_dictionary_has_what_a_worker_needs_and_may_have_more():
    data = QueueRetryConfig.fixed(3, 2, 9).to_dict()
    assert data == {"max_attempts": 2, "delays": [3.0], "timeout": 9.0, "jitter": 0.1}
    assert QueueRetryConfig.from_dict({**data, "of a newer version": 1}) == QueueRetryConfig.fixed(3, 2, 9)
    assert QueueRetryConfig.from_dict({}) == QueueRetryConfig()


@pytest.mark.parametrize("zero", [0, 0.0])
def test_a_stored_timeout_of_zero_is_one_attempt_and_no_retry(zero):
    data = {"max_attempts": 7, "delays": [3.0], "timeout": zero, "jitter": 0.1}
    assert QueueRetryConfig.from_dict(data) == QueueRetryConfig.fixed(3, 1)


def test_the_dictionary_is_a_copy():
    config = QueueRetryConfig.fixed(3)
    config.to_dict()["delays"].append(5)
    assert config.delays == [3.0]


def test_it_compares_by_what_it_does_and_shows_it():
    assert QueueRetryConfig.fixed(3) != QueueRetryConfig.fixed(4)
    assert QueueRetryConfig.fixed(3) != "fixed"
    assert repr(QueueRetryConfig.fixed(3, 2)) == (
        "QueueRetryConfig(max_attempts=2, delays=[3.0], timeout=None, jitter=0.1)"
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: QueueRetryConfig(max_attempts=0), "max_attempts"),
        (lambda: QueueRetryConfig(max_attempts=1001), "max_attempts must be an integer from 1 to 1,000"),
        (lambda: QueueRetryConfig(max_attempts=True), "max_attempts"),
        (lambda: QueueRetryConfig(max_attempts=2.0), "max_attempts"),
        (lambda: QueueRetryConfig(max_attempts="3"), "max_attempts"),
        (lambda: QueueRetryConfig(delays=[]), "delays"),
        (lambda: QueueRetryConfig(delays="12"), "delays"),
        (lambda: QueueRetryConfig(delays={1: 2}), "delays"),
        (lambda: QueueRetryConfig(delays=[1] * 1001), "delays"),
        (lambda: QueueRetryConfig(delays=[1, -2]), r"delays\[1\]"),
        (lambda: QueueRetryConfig(delays=[None]), r"delays\[0\]"),
        (lambda: QueueRetryConfig(delays=[math.nan]), r"delays\[0\]"),
        (lambda: QueueRetryConfig(delays=[10**400]), r"delays\[0\]"),
        (lambda: QueueRetryConfig(delays=[1e300]), "at most a hundred years"),
        (lambda: QueueRetryConfig(timeout=-1), "timeout"),
        (lambda: QueueRetryConfig(timeout=0), r"timeout must be more than 0 seconds, got 0: .*max_attempts=1"),
        (lambda: QueueRetryConfig(timeout=0.0), "timeout must be more than 0"),
        (lambda: QueueRetryConfig(timeout=False), "timeout must be a finite number"),
        (lambda: QueueRetryConfig(timeout=math.nan), "timeout must be a finite number"),
        (lambda: QueueRetryConfig.fixed(1, timeout=0), "timeout must be more than 0"),
        (lambda: QueueRetryConfig.exponential(timeout=0), "timeout must be more than 0"),
        (lambda: QueueRetryConfig.custom([1], timeout=0), "timeout must be more than 0"),
        (lambda: QueueRetryConfig.from_dict({"timeout": False}), "timeout must be a finite number"),
        (lambda: QueueRetryConfig.from_dict({"timeout": -1}), "timeout"),
        (lambda: QueueRetryConfig(timeout=math.inf), "timeout"),
        (lambda: QueueRetryConfig(timeout="5"), "timeout"),
        (lambda: QueueRetryConfig(jitter=1.1), "jitter must be from 0 to 1"),
        (lambda: QueueRetryConfig(jitter=-0.1), "jitter"),
        (lambda: QueueRetryConfig.fixed(-1), "delay"),
        (lambda: QueueRetryConfig.exponential(base=0.5), "base must be 1 or more"),
        (lambda: QueueRetryConfig.exponential(base=math.nan), "base"),
        (lambda: QueueRetryConfig.exponential(min_delay=5, max_delay=4), "min_delay .* max_delay"),
        (lambda: QueueRetryConfig.exponential(max_attempts=0), "max_attempts"),
        (lambda: QueueRetryConfig.custom([]), "delays"),
        (lambda: QueueRetryConfig.from_dict([]), "a retry configuration is a mapping"),
        (lambda: QueueRetryConfig.from_dict({"delays": 5}), "delays"),
    ],
)
def test_bad_arguments_are_told_by_name(make, told):
    with pytest.raises(ConfigurationError, match=told):
        make()
