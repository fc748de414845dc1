"""Producers without Redis."""

import functools

import pytest
from fakes import Producer


@pytest.fixture(params=["sync", "async"])
def make(request):
    """Makes a producer with the given options of `QueueConfig`; each test runs with both managers."""
    return functools.partial(Producer, request.param)


@pytest.fixture
def producer(make):
    return make()
