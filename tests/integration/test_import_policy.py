"""A name in Redis is untrusted input: what is not the application's own is refused before anything is imported."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from scaffold import PROGRAMS, ROOT, Notes, given_up, jobs, program, redis_of

from queue_system import QueueConfig, QueueManager
from support import running, until, until_metrics


def put_by_hand(config: QueueConfig, operation_id: str, body: bytes, queue: str = "normal:evil") -> None:
    """What a hostile producer with access to Redis would do: no call of this package takes part."""
    redis, keys = redis_of(config), config.keys
    redis.hset(keys.registry, queue, "m")
    redis.incr(keys.registry_version)
    redis.hset(keys.operation(operation_id), mapping={"st": "ready", "q": queue, "b": body})
    redis.rpush(f"{config.queue_prefix}{queue}", operation_id)
    redis.zadd(keys.wake, {"0": 0})


def body_naming(name: str, module: str | None, operation_id: str, **more: Any) -> bytes:
    operation = {
        "v": 1,
        "operation_id": operation_id,
        "processor": name,
        "processor_module": module,
        "queue": "evil",
        "priority": "normal",
        "entity": {"id": operation_id},
    }
    return json.dumps(operation | more).encode()


HOSTILE = {
    "os-system": ("system", "os"),
    "posix-system": ("system", "posix"),
    "subprocess-run": ("run", "subprocess"),
    "subprocess-popen": ("Popen", "subprocess"),
    "builtins-eval": ("eval", "builtins"),
    "not-loaded-library": ("open", "wave"),
    "prints-when-imported": ("s", "this"),
    "re-exported-in-a-loaded-module": ("system", "allowed_tasks"),
    "re-exported-under-another-name": ("launch", "allowed_tasks"),
    "re-exported-in-a-module-not-loaded": ("system", "reexporting"),
    "through-a-module-attribute": ("note.__globals__", "allowed_tasks"),
    "method": ("Tool.use", "allowed_tasks"),
    "class": ("Tool", "allowed_tasks"),
    "private": ("_private", "allowed_tasks"),
    "dunder": ("__import__", "builtins"),
    "installed-package": ("from_url", "redis"),
    "this-package": ("load_scripts", "queue_system.broker.scripts"),
    "relative": ("system", "..os"),
    "path": ("system", "../../os"),
    "main-program": ("audit", "__main__"),
}


@pytest.mark.parametrize("importable_modules", [None, ["allowed_tasks", "reexporting"]], ids=["default", "list"])
async def test_hostile_names_are_refused_kept_with_their_bytes_and_nothing_is_imported(
    config, redis_url, prefix, tmp_path, importable_modules
):
    notes = Notes(tmp_path / "notes")
    settings = {"redis_url": redis_url, "prefix": prefix, "importable_modules": importable_modules}
    env = {jobs.RECORD_VARIABLE: str(notes.path), "PYTHONPATH": str(ROOT)}
    queue = QueueManager(config)
    with program(PROGRAMS / "audited_worker.py", json.dumps(settings), cwd=tmp_path, env=env) as worker:
        await worker.says("ready")
        # One of the application's own modules is imported by its name, as promised ...
        queue.enqueue({"id": "own"}, "allowed_tasks:work")
        await until_metrics(config, processed=1)
        assert [note.words for note in notes.all("worked")] == [("own",)]
        assert [note.words for note in notes.all("imported")] == [("allowed_tasks",)]
        # ... and a refused operation, too, goes its way once, so that all that the worker itself needs is loaded.
        put_by_hand(config, "warm-up", body_naming("system", "nt", "warm-up"))
        await until_metrics(config, system_errors=1)
        queue.enqueue({}, "start_watching")
        await until_metrics(config, processed=2)

        bodies = {}
        for operation_id, (name, module) in HOSTILE.items():
            bodies[operation_id] = body_naming(name, module, operation_id)
            put_by_hand(config, operation_id, bodies[operation_id])
        for reference in ("os:system", "subprocess:run", "os.system"):
            result = queue.enqueue({"command": "true"}, reference)
            assert result["status"] == "queued"  # a producer need not have the function; the worker refuses it
            bodies[result["operation_id"]] = redis_of(config).hget(config.keys.operation(result["operation_id"]), "b")
        metrics = await until_metrics(config, system_errors=1 + len(bodies))
        queue.enqueue({}, "say_hello")  # the queue moves on
        await until(lambda: notes.count("hello") == 1)

    kept = {entry.operation_id: entry for entry in given_up(config, system_errors=True)}
    assert kept.keys() == bodies.keys() | {"warm-up"}
    for operation_id, raw in bodies.items():
        assert kept[operation_id].raw == raw
        assert kept[operation_id].error_type == "ImportRefusedError"
        assert kept[operation_id].error_message.startswith("refused to import ")
    assert notes.all("audit") == []
    assert [note.words for note in notes.all("imported")] == [("allowed_tasks",)]
    assert {note.what for note in notes.all()} == {"imported", "worked", "hello"}
    assert (metrics["processed"], metrics["failed"], metrics["retried"]) == (2, 0, 0)


async def test_the_audit_of_that_test_sees_an_import(config, redis_url, prefix, tmp_path):
    """The same worker, and a module that it may import: the notes are not empty then."""
    notes = Notes(tmp_path / "notes")
    settings = {"redis_url": redis_url, "prefix": prefix, "importable_modules": None}
    env = {jobs.RECORD_VARIABLE: str(notes.path), "PYTHONPATH": str(ROOT)}
    with program(PROGRAMS / "audited_worker.py", json.dumps(settings), cwd=tmp_path, env=env) as worker:
        await worker.says("ready")
        queue = QueueManager(config)
        queue.enqueue({}, "start_watching")
        await until_metrics(config, processed=1)
        queue.enqueue({"id": "own"}, "allowed_tasks:work")
        await until_metrics(config, processed=2)
    assert any(note.words == ("exec", f"'{PROGRAMS / 'allowed_tasks.py'}'") for note in notes.all("audit"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe not utf-8",
        b"{not json",
        b"[1, 2, 3]",
        b'{"v": 1}',
        b'{"v": "one", "operation_id": 7}',
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'"' + b"x" * 600_000 + b'"',
        body_naming("work", "tests", "poison", entity=[1, 2]),
        body_naming("work", "tests", "poison", retry_config={"max_attempts": -3}),
        body_naming("work", "tests", "poison", timeout="soon"),
    ],
    ids=["empty", "not-utf-8", "not-json", "a-list", "no-operation", "wrong-types", "deep", "large", "entity-a-list",
         "bad-retry", "bad-timeout"],
)  # fmt: skip
async def test_what_cannot_be_understood_is_kept_with_its_bytes_and_the_queue_moves_on(config, body):
    async def work(entity):
        return None

    config.registry.register(work, name="work", module="tests")
    queue = QueueManager(config)
    put_by_hand(config, "poison", body)
    async with running(config):
        await until_metrics(config, system_errors=1)
        queue.enqueue({}, work)
        await until_metrics(config, processed=1)
    (entry,) = given_up(config, system_errors=True)
    assert (entry.operation_id, entry.raw) == ("poison", body)
    assert queue.get_queue_status()[config.keys.system_errors] == 1


async def test_a_registered_function_needs_no_import(config):
    """Registered first, then the policy: an empty list turns importing off, not what is registered."""
    done: list[dict] = []

    async def work(entity):
        done.append(entity)

    config.registry.register(work, name="work", module="nowhere")
    put_by_hand(config, "by-hand", body_naming("work", "nowhere", "by-hand"))
    async with running(config):
        await until_metrics(config, processed=1)
    assert done[0]["id"] == "by-hand"
    assert config.get_metrics()["enqueued"] == 1  # accepted when it was claimed, so that the counts stay whole


async def test_an_empty_list_turns_importing_off(make_config):
    config = make_config(importable_modules=[])
    put_by_hand(config, "own", body_naming("run_async", "jobs", "own"))
    async with running(config):
        await until_metrics(config, system_errors=1)
    (entry,) = given_up(config, system_errors=True)
    assert "importing by name is off" in entry.error_message


async def test_a_hostile_callback_is_refused_and_its_parent_stays_processed(config):
    async def work(entity):
        return os.getpid()

    config.registry.register(work, name="work", module="tests")
    queue = QueueManager(config)
    queue.enqueue({}, work, on_success="os:system")
    async with running(config):
        metrics = await until_metrics(config, processed=1, system_errors=1)
    assert (metrics["failed"], metrics["callbacks_enqueued"]) == (0, 1)
    (entry,) = given_up(config, system_errors=True)
    assert (entry.kind, entry.processor, entry.error_type) == ("callback", "os:system", "ImportRefusedError")
