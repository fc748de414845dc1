"""A text, or a dict, is no collection of names, and an empty one holds none."""

from functools import partial

import pytest
from fakes import compute

from queue_system import QueueConfig, QueueError, QueueManager, QueueRetryConfig, QueueWorker
from queue_system.failures import FailureStore
from queue_system.keys import CALLBACK_QUEUE
from queue_system.testing import memory_config, process_all

CONFIG = QueueConfig(telemetry=None)
BATCH = partial(QueueManager(CONFIG).enqueue_batch, processor=compute)


@pytest.mark.parametrize("given", ["mail", b"mail", bytearray(b"mail"), {"mail": 1}, 5], ids=repr)
@pytest.mark.parametrize(
    "use",
    [
        lambda given: QueueWorker(CONFIG, queues=given),
        lambda given: process_all(memory_config(telemetry=None), queues=given),
        lambda given: QueueConfig(telemetry=None, importable_modules=given),
        lambda given: QueueConfig(telemetry=None, signing_keys=given),
        lambda given: QueueRetryConfig(delays=given),
        BATCH,
        lambda given: BATCH([{}] * 4, operation_ids=given),
    ],
    ids=["QueueWorker", "process_all", "importable_modules", "signing_keys", "delays", "entities", "operation_ids"],
)
def test_what_is_no_collection_is_refused(use, given):
    with pytest.raises(QueueError, match=r"list|mapping|sequence|module name"):
        use(given)


@pytest.mark.parametrize("queues", [[], (), set(), iter(())])
def test_no_queue_is_none_but_that_of_callbacks(queues):
    assert QueueWorker(CONFIG, queues=queues)._settings.queues == {CALLBACK_QUEUE}


def test_no_queue_drains_nothing():
    config = memory_config(telemetry=None)
    QueueManager(config).enqueue({}, compute)
    assert process_all(config, queues=[])["processed"] == 0
    assert QueueManager(config).get_queue_status()["total_items"] == 1


def test_no_id_purges_nothing():
    assert FailureStore(CONFIG).purge() == 0  # there is not even a Redis
