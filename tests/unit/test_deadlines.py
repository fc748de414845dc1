"""One timer for the time limits of many attempts."""

import asyncio

import pytest

from queue_system.runtime.deadlines import Deadlines
from support import until


@pytest.fixture
def expired():
    return []


@pytest.fixture
async def deadlines(expired):
    return Deadlines(expired.append)


async def test_each_key_expires_in_the_order_of_its_time(deadlines, expired):
    for key, seconds in (("late", 0.03), ("soon", 0.01), ("middle", 0.02)):
        deadlines.set(key, seconds)
    await until(lambda: len(expired) == 3)
    assert expired == ["soon", "middle", "late"]


async def test_what_is_cleared_does_not_expire(deadlines, expired):
    deadlines.set("cleared", 0.01)
    deadlines.set("kept", 0.02)
    deadlines.clear("cleared")
    deadlines.clear("never set")
    await until(lambda: expired)
    assert expired == ["kept"]


async def test_a_time_that_is_set_anew_counts_from_then(deadlines, expired):
    deadlines.set("key", 0.0)
    deadlines.set("key", 30.0)
    deadlines.set("other", 0.01)
    await until(lambda: expired)
    assert expired == ["other"]


async def test_it_goes_on_after_there_was_nothing_left(deadlines, expired):
    deadlines.set("first", 0.0)
    await until(lambda: expired)
    deadlines.set("second", 0.0)
    await until(lambda: len(expired) == 2)
    assert expired == ["first", "second"]


async def test_one_timer_serves_them_all(deadlines, expired, monkeypatch):
    loop, made = asyncio.get_running_loop(), []
    call_at = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda *args, **options: made.append(args) or call_at(*args, **options))
    for key in range(1000):
        deadlines.set(key, 30.0 + key)
        deadlines.clear(key)
    assert len(made) == 1
    assert expired == []


async def test_a_time_that_cannot_be_enforced_keeps_no_other_from_it():
    expired, told = [], []

    def expire(key):
        if key == "broken":
            raise SystemExit(3)
        expired.append(key)

    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    deadlines = Deadlines(expire)
    for key, seconds in (("broken", 0.0), ("beside", 0.0), ("later", 0.01)):
        deadlines.set(key, seconds)
    await until(lambda: len(expired) == 2)
    assert expired == ["beside", "later"]
    assert [type(error) for error in told] == [SystemExit]


async def test_what_another_expiry_has_cleared_does_not_expire():
    expired = []

    def expire(key):
        expired.append(key)
        deadlines.clear("second")

    deadlines = Deadlines(expire)
    deadlines.set("first", 0.0)
    deadlines.set("second", 0.0)
    deadlines.set("third", 0.01)
    await until(lambda: "third" in expired)
    assert expired == ["first", "third"]
