import asyncio
import contextlib

import pytest
from fakes import Recorder

from queue_system.events import (
    AttemptStarted,
    EnqueueStarted,
    LeaseLost,
    OperationInfo,
)
from queue_system.hooks import NO_CONTEXT, NO_HOOKS, HookChain, Hooks

INFO = OperationInfo("id-1", "mail", "high", "work", "operation", is_async=True, attempt=1, headers={})
ATTEMPT = AttemptStarted(INFO, 0.5)
ENQUEUE = EnqueueStarted("mail", "high", "work", 1, "id-1", 0.0)
EVENT = LeaseLost("id-1")

CONTEXTS = pytest.mark.parametrize(("context", "event"), [("attempt_context", ATTEMPT), ("enqueue_context", ENQUEUE)])


class Noting(Hooks):
    """Writes down what it is asked; fails where it is told to."""

    def __init__(self, name, log, *, fails=()):
        self.name, self.log, self.fails = name, log, fails

    def _note(self, what):
        self.log.append(f"{self.name} {what}")
        if what in self.fails:
            raise LookupError(what)

    def on_event(self, event):
        self._note("event")

    def inject(self, headers):
        self._note("inject")
        headers[self.name] = "here"

    def attempt_context(self, event):
        self._note("make")
        return self._surround()

    enqueue_context = attempt_context

    @contextlib.contextmanager
    def _surround(self):
        self._note("enter")
        try:
            yield
        except BaseException as error:
            self._note(f"saw {type(error).__name__}")
            raise
        finally:
            self._note("exit")


def chain_of_three(log, *fails):
    told = []
    chain = HookChain([Noting("a", log), Noting("bad", log, fails=fails), Noting("c", log)], told.append)
    return chain, told


def test_all_are_told_in_turn():
    log = []
    chain, told = chain_of_three(log)
    headers = {}
    chain.on_event(EVENT)
    chain.inject(headers)
    assert log == ["a event", "bad event", "c event", "a inject", "bad inject", "c inject"]
    assert headers == {"a": "here", "bad": "here", "c": "here"}
    assert told == []


@CONTEXTS
def test_contexts_surround_the_work_and_are_left_in_reverse(context, event):
    log = []
    chain, _ = chain_of_three(log)
    with getattr(chain, context)(event):
        log.append("work")
    assert log == [
        *("a make", "bad make", "c make", "a enter", "bad enter", "c enter"),
        "work",
        *("c exit", "bad exit", "a exit"),
    ]


def test_a_failing_listener_does_not_keep_the_others_from_being_told(caplog):
    log = []
    chain, told = chain_of_three(log, "event", "inject")
    headers = {}
    chain.on_event(EVENT)
    chain.inject(headers)
    assert log == ["a event", "bad event", "c event", "a inject", "bad inject", "c inject"]
    assert headers == {"a": "here", "c": "here"}
    assert (chain.failures, told) == (2, ["Noting", "Noting"])
    assert "telemetry_listener_failed: Noting" in caplog.text
    assert "LookupError" in caplog.text


def test_a_listener_that_always_fails_is_counted_each_time_and_logged_less_and_less(caplog):
    chain = HookChain([Noting("bad", [], fails=("event",)), Recorder()])
    for _ in range(100):
        chain.on_event(EVENT)
    assert chain.failures == 100
    assert len(caplog.records) == 3


@CONTEXTS
@pytest.mark.parametrize("where", ["make", "enter", "exit"])
def test_a_failing_context_does_not_keep_the_work_from_being_done(context, event, where):
    log = []
    chain, told = chain_of_three(log, where)
    with getattr(chain, context)(event):
        log.append("work")
    assert "work" in log
    assert [entry for entry in log if not entry.startswith("bad")] == [
        *("a make", "c make", "a enter", "c enter"),
        "work",
        *("c exit", "a exit"),
    ]
    assert (chain.failures, told) == (1, ["Noting"])


@CONTEXTS
@pytest.mark.parametrize("error", [ValueError("mine"), asyncio.CancelledError(), KeyboardInterrupt(), StopIteration(1)])
def test_the_works_error_passes_through_and_everyone_sees_it(context, event, error):
    log = []
    chain, told = chain_of_three(log)
    with pytest.raises((type(error), RuntimeError)) as caught, getattr(chain, context)(event):
        raise error
    assert error in (caught.value, caught.value.__cause__)
    kind = type(error).__name__
    assert log[6:] == [f"{name} {what}" for name in ("c", "bad", "a") for what in (f"saw {kind}", "exit")]
    assert told == []


@CONTEXTS
def test_a_listener_cannot_replace_the_works_error(context, event):
    chain, told = chain_of_three([], "exit")
    with pytest.raises(ValueError, match="mine"), getattr(chain, context)(event):
        raise ValueError("mine")
    assert told == ["Noting"]


@CONTEXTS
def test_a_listener_cannot_swallow_the_works_error(context, event):
    class Swallowing(Hooks):
        def attempt_context(self, event):
            return contextlib.suppress(ValueError)

        enqueue_context = attempt_context

    with pytest.raises(ValueError, match="mine"), getattr(HookChain([Swallowing()]), context)(event):
        raise ValueError("mine")


def test_a_listener_that_raises_the_works_error_again_has_not_failed():
    class PassingOn(Hooks):
        def attempt_context(self, event):
            return self

        def __enter__(self):
            return None

        def __exit__(self, _, error, __):
            raise error

    chain = HookChain([PassingOn()])
    with pytest.raises(ValueError, match="mine"), chain.attempt_context(ATTEMPT):
        raise ValueError("mine")
    assert chain.failures == 0


def test_the_last_resort_may_fail_too():
    def on_failure(_):
        raise OSError

    chain = HookChain([Noting("bad", [], fails=("event",))], on_failure)
    chain.on_event(EVENT)
    assert chain.failures == 1


def test_listeners_without_attempt_contexts_cost_none():
    recorder = Recorder()
    with HookChain([recorder]).attempt_context(ATTEMPT) as context:
        assert context is None
    assert HookChain([recorder]).attempt_context(ATTEMPT) is NO_CONTEXT


def test_no_hooks_do_nothing():
    headers = {}
    NO_HOOKS.on_event(EVENT)
    NO_HOOKS.inject(headers)
    with NO_HOOKS.attempt_context(ATTEMPT), NO_HOOKS.enqueue_context(ENQUEUE):
        pass
    assert headers == {}


def test_the_base_listener_does_nothing():
    headers = {}
    base = Hooks()
    base.on_event(EVENT)
    base.inject(headers)
    with base.attempt_context(ATTEMPT), base.enqueue_context(ENQUEUE):
        pass
    assert headers == {}


def test_events_cannot_be_changed():
    with pytest.raises(AttributeError):
        EVENT.operation_id = "other"
