"""Without a tracer provider spans cost nothing, and one that the application sets later is noticed."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from queue_system.events import EnqueueStarted
from queue_system.hooks import NO_CONTEXT
from telemetry import TracingListener, tracing

EVENT = EnqueueStarted("mail", "normal", "send", 1, "id", 0.0)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(tracing, "time", clock)
    return clock


@pytest.fixture
def provider(monkeypatch):
    """What the application has set; none at first."""
    found = [trace.ProxyTracerProvider()]
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: found[-1])
    return found


def test_a_provider_that_is_set_later_is_noticed_within_a_tenth_of_a_second(clock, provider):
    listener = TracingListener()
    assert listener.enqueue_context(EVENT) is NO_CONTEXT
    provider.append(TracerProvider())
    clock.now += 0.05
    assert listener.enqueue_context(EVENT) is NO_CONTEXT
    clock.now += 0.06
    assert listener.enqueue_context(EVENT) is not NO_CONTEXT


def test_a_provider_of_its_own_is_never_looked_for(clock, provider):
    assert TracingListener(TracerProvider()).enqueue_context(EVENT) is not NO_CONTEXT
