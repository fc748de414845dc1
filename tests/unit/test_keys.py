import hashlib

import pytest

from queue_system.errors import ConfigurationError
from queue_system.keys import PRIORITIES, Keys, check_priority, check_queue_name, dedup_digest


def test_every_key_has_its_documented_name():
    keys = Keys()
    assert keys.ready("mail", "high") == "queue:high:mail"
    assert keys.operation("42") == "queue:op:42"
    assert keys.dedup("k") == f"queue:dedup:{hashlib.sha256(b'k').hexdigest()}"
    assert {name: getattr(keys, name) for name in Keys.__slots__} == {
        "prefix": "queue:",
        "operation_prefix": "queue:op:",
        "dedup_prefix": "queue:dedup:",
        "heartbeat_prefix": "queue:worker:",
        "sent_prefix": "queue:sent:",
        "leases": "queue:leases",
        "delayed": "queue:delayed",
        "depths": "queue:depths",
        "failures": "queue:failures",
        "system_errors": "queue:system_errors",
        "registry": "queue:registry",
        "registry_version": "queue:registry:version",
        "sizes": "queue:sizes",
        "ready_index": "queue:ready",
        "ready_index_sync": "queue:ready:sync",
        "metrics": "queue:metrics",
        "workers": "queue:workers",
        "wake": "queue:wake",
        "wake_sync": "queue:wake:sync",
        "ring_prefix": "queue:ring:",
        "reaper": "queue:reaper",
        "guard": "queue:none",
    }


def test_all_keys_share_the_hash_tag_of_the_prefix():
    keys = Keys("{shop}:")
    names = [getattr(keys, name) for name in Keys.__slots__]
    for key in (*names, keys.ready("mail", "low"), keys.operation("1"), keys.dedup("1")):
        assert key.startswith("{shop}:")


@pytest.mark.parametrize("prefix", ["queue:", "{q}:", "a:b:"])
@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_ready_key_can_be_taken_apart(prefix, priority):
    keys = Keys(prefix)
    assert keys.split_ready(keys.ready("a.b-c_1", priority)) == ("a.b-c_1", priority)


def test_priorities_are_in_the_order_of_dispatch():
    assert PRIORITIES == ("high", "normal", "low")


@pytest.mark.parametrize("prefix", ["", " ", "a b", "q\n", "ü:", "q" * 65, None, b"queue:", 5])
def test_a_bad_prefix_is_refused(prefix):
    with pytest.raises(ConfigurationError, match="queue_prefix"):
        Keys(prefix)


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 64])
def test_good_queue_names(name):
    assert check_queue_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a:b", "a/b", "é", "a\n", "{a}", "*", None, 7, b"a"])
def test_bad_queue_names(name):
    with pytest.raises(ConfigurationError, match=r"bad queue name .* use 1 to 64 characters"):
        check_queue_name(name)


@pytest.mark.parametrize("priority", ["", "HIGH", "urgent", None, 1, ["high"]])
def test_unknown_priorities(priority):
    with pytest.raises(ConfigurationError, match="use one of high, normal, low"):
        check_priority(priority)


def test_a_deduplication_key_may_be_any_text():
    digests = {dedup_digest(key) for key in ("a", "a ", "\x00", "é", "\ud800", "x" * 100_000)}
    assert len(digests) == 6
    assert all(len(digest) == 64 for digest in digests)
