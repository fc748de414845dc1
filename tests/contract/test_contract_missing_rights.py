"""A renewal does not end half-way for want of a right: an ACL that is rolled out half may lack any of its commands."""

from __future__ import annotations

import re

import pytest
from test_contract_half_way import CASES, contents, filled, nothing_is_lost  # noqa: F401  `filled` is a fixture

from queue_system.broker.clients import UrlClients
from queue_system.broker.scripts import load_scripts
from queue_system.broker.sync import SyncBroker
from queue_system.errors import QueueError

COMMANDS = sorted(set(re.findall(r"redis\.p?call\('(\w+)'", load_scripts()["renew"].source)))


@pytest.fixture
def limited(rig, back_end):
    """A broker whose user may do everything, but for what a test takes away; and what takes it away."""
    user = "user-" + rig.keys.prefix.rstrip(":")
    rig.redis.execute_command("ACL", "SETUSER", user, "reset", "on", ">secret", "~*", "&*", "+@all")
    url = back_end.clients.address.replace("://", f"://{user}:secret@")
    broker = SyncBroker(UrlClients(url).sync(timeout=5.0), url)
    yield broker, lambda right: rig.redis.execute_command("ACL", "SETUSER", user, right)
    broker.close()
    rig.redis.execute_command("ACL", "DELUSER", user)


@pytest.mark.on_servers
@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_right_loses_no_lease(filled, limited, command):  # noqa: F811
    rig, (broker, allow), call = filled, limited, CASES["renew"](filled)
    before = contents(rig)
    allow(f"-{command}")
    try:
        lost = broker.run(call)
    except QueueError:
        assert contents(rig) == before
    else:  # it is needed only when memory is full
        assert (command, lost) == ("ZREM", [])
    nothing_is_lost(rig)
    allow(f"+{command}")
    assert broker.run(call) == []
    nothing_is_lost(rig)


@pytest.mark.on_servers
def test_a_renewal_when_memory_is_full(filled):  # noqa: F811
    rig = filled
    rig.redis.config_set("maxmemory", "1")
    try:
        assert rig.run(CASES["renew"](rig)) == []
    finally:
        rig.redis.config_set("maxmemory", "0")
    assert {one for one, _ in rig.redis.zrange(rig.keys.leases, 0, -1, withscores=True)} == {b"held", b"second"}
