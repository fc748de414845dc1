"""While the slot of a prefix is moved from one node of a real cluster to another, no script ends half-way."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from redis.crc import key_slot
from test_contract_half_way import CASES, contents, filled, nothing_is_lost

from chaos.cluster import SLOTS, Cluster, start_nodes
from queue_system.broker.clients import UrlClients
from queue_system.broker.messages import Call
from queue_system.errors import BrokerUnavailableError
from support import missing

__all__ = ["filled"]  # the fixture of what is tried there, too

ZSETS = {"leases", "delayed", "failures", "system_errors", "workers", "reaper", "ready", "ready:sync", "sizes"}
HASHES = {"registry", "metrics", "depths"}


@pytest.fixture(scope="module", params=["redis", "valkey"])
def cluster(request, find_back_end) -> Iterator[Cluster]:
    server = find_back_end(request.param)
    if server is None:
        missing(f"{request.param}-server")
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(Cluster(start_nodes(stack, server)))


@pytest.fixture(scope="module")
def back_end(cluster) -> SimpleNamespace:
    return SimpleNamespace(name="cluster", clients=UrlClients(cluster.servers[0].url))


@pytest.fixture
def prefix() -> str:
    """One whose slot is the first node's."""
    return next(tag + ":" for tag in iter(make_tag, "") if key_slot(tag.encode()) < SLOTS - 2)


def make_tag() -> str:
    return f"{{t{uuid.uuid4().hex[:12]}}}"


def make_all_exist(rig, call: Call) -> None:
    """Each key that a script declares, but the guard: so that none of them gives it away that the slot is moving."""
    for key in set(call.keys) - {rig.keys.guard}:
        name = key.removeprefix(rig.keys.prefix)
        if rig.redis.exists(key):
            continue
        if name in ZSETS:
            rig.redis.zadd(key, {"filler": 9e15})
        elif name in HASHES:
            rig.redis.hset(key, "filler", "0")
        elif name.startswith("sent:"):
            rig.redis.set(key, "")
        elif name.startswith(("wake", "ring:")):
            rig.redis.rpush(key, "1")
        else:
            rig.redis.set(key, "0")


@pytest.mark.parametrize("case", CASES)
def test_a_script_is_refused_before_its_first_write(cluster, filled, case):
    rig, call = filled, CASES[case](filled)
    source, target, _ = cluster.servers
    slot = cluster.slot_of(rig.keys.prefix)
    make_all_exist(rig, call)
    before = contents(rig, but=())
    cluster.open(slot, source, target)
    try:
        assert cluster.move_keys(slot, source, target, prefix=rig.keys.operation_prefix) > 0
        with pytest.raises(BrokerUnavailableError) as refused:
            rig.run(call)
    finally:
        cluster.call_off(slot, source, target)
    assert refused.value.kind in {"ask", "tryagain"}
    assert not refused.value.ambiguous
    assert contents(rig, but=()) == before


@pytest.mark.parametrize("case", CASES)
def test_once_the_slot_is_at_its_new_node_all_is_there(cluster, filled, case):
    """And the old node refuses what is still sent to it."""
    rig, call = filled, CASES[case](filled)
    source, target, _ = cluster.servers
    slot = cluster.slot_of(rig.keys.prefix)
    cluster.open(slot, source, target)
    cluster.move_keys(slot, source, target)
    cluster.give(slot, target)
    try:
        with pytest.raises(BrokerUnavailableError) as refused:
            rig.run(call)
    finally:
        cluster.open(slot, target, source)
        cluster.move_keys(slot, target, source)
        cluster.give(slot, source)
    assert (refused.value.kind, refused.value.ambiguous) == ("moved", False)
    rig.run(call)
    nothing_is_lost(rig)
