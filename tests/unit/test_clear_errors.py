"""What a caller is told: in the words of the interface that was called, with what to do."""

import asyncio

import pytest

from queue_system import (
    AsyncQueueManager,
    BrokerUnavailableError,
    ConfigurationError,
    QueueConfig,
    QueueManager,
    processor,
)
from queue_system.registry import Registry
from queue_system.settings import Settings


def größe(entity):  # noqa: PLC2401  Python allows it
    """A function whose name is no queue name."""


def a_function_with_a_name_of_more_than_sixty_four_characters_that_says_all(entity):
    """Another one."""


@pytest.fixture
def config():
    return QueueConfig(telemetry=None, registry=Registry())


@pytest.mark.parametrize("function", [größe, a_function_with_a_name_of_more_than_sixty_four_characters_that_says_all])
def test_a_name_that_is_no_queue_name_asks_for_one(config, function):
    with pytest.raises(ConfigurationError, match=r"cannot be the name of its queue: give queue_name=") as caught:
        QueueManager(config).enqueue({}, function)
    assert function.__name__ in str(caught.value)


def test_a_bad_queue_name_that_was_given_is_told_as_such(config):
    with pytest.raises(ConfigurationError, match=r"^bad queue name 'größe': use 1 to 64 characters"):
        QueueManager(config).enqueue({}, größe, queue_name="größe")


@pytest.mark.parametrize("entities", [[{}], []], ids=["one", "none"])
@pytest.mark.parametrize("manager", [QueueManager, AsyncQueueManager])
def test_an_unknown_argument_of_a_batch_is_told_in_its_words(config, manager, entities):
    with pytest.raises(TypeError, match=r"^enqueue_batch\(\) got an unexpected keyword argument 'prioritty'$"):
        asyncio.run(manager(config).enqueue_batch(entities, "tests:work", prioritty="high"))


@pytest.mark.parametrize("manager", [QueueManager, AsyncQueueManager])
def test_an_unknown_argument_of_enqueue_too(config, manager):
    with pytest.raises(TypeError, match=r"enqueue\(\) got an unexpected keyword argument 'prioritty'$") as caught:
        asyncio.run(manager(config).enqueue({}, "tests:work", prioritty="high"))
    assert "._" not in str(caught.value)


def test_an_unknown_argument_of_the_decorator_is_told_where_it_is_used():
    with pytest.raises(TypeError, match=r"^processor\(\) got an unexpected keyword argument 'queu'$"):
        processor(queu="mail")
    for known in ("name", "module", "queue", "priority", "timeout", "retry_config", "on_success", "on_failure"):
        assert callable(processor(**{known: None}))


@pytest.mark.parametrize("scheme", ["valkey", "valkeys"])
def test_urls_of_valkey_are_taken_from_the_environment_and_from_flags(monkeypatch, scheme):
    url = f"{scheme}://:secret@h:1/0"
    assert Settings.load(redis_url=url).redis_url == url
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", url)
    config = Settings.load().config(telemetry=None)
    assert repr(config) == f"QueueConfig(redis='{scheme}://***@h:1/0', queue_prefix='queue:')"


@pytest.mark.parametrize("url", ["REDIS://secret@h", "redis://h?passwd=secret", "embedded://u:secret@x"])
def test_a_url_that_is_refused_keeps_its_secrets_in_the_environment(monkeypatch, url):
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", url)
    with pytest.raises(ConfigurationError, match=r"^QUEUE_SYSTEM_REDIS_URL: redis_url ") as caught:
        Settings.load()
    assert "secret" not in str(caught.value)


def test_one_word_before_the_host_is_shown_nowhere(caplog):
    config = QueueConfig(redis_url="redis://secret@127.0.0.1:1/0", connection_timeout=0.2, max_connection_retries=1)
    with pytest.raises(BrokerUnavailableError) as caught:
        QueueManager(config).enqueue({}, "tests:work")
    assert "redis://***@127.0.0.1:1/0" in str(caught.value)
    assert "secret" not in f"{caught.value}{config!r}{vars(config)}{caplog.text}"
