"""The `queue-system` command as its users run it: the console script, in processes of its own, on a real Redis."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from queue_system import QueueManager, QueueRetryConfig
from queue_system.cli import app, main
from queue_system.embedded import EmbeddedServer
from queue_system.failures import FailureStore
from support import until, until_metrics

SCRIPT = Path(sys.executable).with_name("queue-system")

TASKS = """
import asyncio
import contextlib
import logging
import threading
import time
from pathlib import Path

from queue_system import processor


def note(line):
    with open("notes", "a") as file:
        file.write(line + "\\n")


@processor
async def until_go(entity, context):
    note(f"started {context.attempt}")
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    note("ended")


@processor
async def for_ever(entity):
    note("started")
    await asyncio.sleep(1000)


@processor
async def block_the_loop(entity):
    note("started")
    while True:
        time.sleep(0.05)


@processor
def block_a_thread(entity):
    note("started")
    threading.Event().wait()


@processor
async def block_a_thread_of_asyncio(entity):
    note("started")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.to_thread(threading.Event().wait)


def by_name(entity):
    logging.getLogger("shop").info("called", extra={"n": entity["n"]})
    note(f"by_name {entity['n']}")
    return {"twice": 2 * entity["n"]}


async def done(data):
    note(f"done {data['result']}")
"""

AT_EXIT = """
import atexit
import threading
from tasks import note

@atexit.register
def flush():
    note("flushing")
    threading.Event().wait({seconds})
    note("flushed")
"""


class Command:
    """A worker of the console script that runs in a directory of its own."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, number: int) -> None:
        self.process = process
        self._out, self._err = directory / f"out{number}", directory / f"err{number}"

    def out(self) -> str:
        return self._out.read_text()

    def err(self) -> str:
        return self._err.read_text()

    async def says(self, text: str) -> None:
        """Wait for a text on stdout or stderr; fail at once when the worker ends without."""
        await until(lambda: text in self.out() + self.err() or self.process.poll() is not None, 30, f"{text!r}")
        assert text in self.out() + self.err(), f"ended with {self.process.returncode}: {self.out()}{self.err()}"

    async def ends(self, timeout: float = 20.0) -> int:
        await until(lambda: self.process.poll() is not None, timeout, "the end of the worker")
        return self.process.returncode

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)


@pytest.fixture(autouse=True)
def environment(redis_url, prefix, tmp_path, monkeypatch) -> None:
    """Commands find the test's Redis and prefix through their variables, and the tasks in their directory."""
    for name in [name for name in os.environ if name.startswith("QUEUE_SYSTEM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", redis_url)
    monkeypatch.setenv("QUEUE_SYSTEM_QUEUE_PREFIX", prefix)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text(TASKS)


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Command]]:
    """Starts commands of the console script; ends those that still run."""
    started: list[Command] = []

    def run(*args: str, **variables: str) -> Command:
        number = len(started)
        with (tmp_path / f"out{number}").open("wb") as out, (tmp_path / f"err{number}").open("wb") as err:
            process = subprocess.Popen(
                [SCRIPT, *args], stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=os.environ | variables
            )
        started.append(Command(process, tmp_path, number))
        return started[-1]

    yield run
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
        command.process.wait(timeout=10)


def script(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the console script to its end."""
    return subprocess.run([SCRIPT, *args], input=stdin, capture_output=True, text=True, timeout=60, check=False)


def go() -> None:
    Path("go").touch()


def notes() -> list[str]:
    path = Path("notes")
    return path.read_text().splitlines() if path.exists() else []


async def noted(*lines: str) -> None:
    await until(lambda: set(lines) <= set(notes()), what=f"notes {lines}")


def printed(capsys) -> Any:
    return json.loads(capsys.readouterr().out)


# enqueue and worker


async def test_operations_enqueued_by_the_command_are_processed_by_the_worker(start, config):
    worker = start("worker", "tasks")
    await worker.says(" ready: ")
    first = script("enqueue", "tasks:by_name", '{"n": 1}', "--priority", "high", "--on-success", "tasks:done", "--json")
    assert (first.returncode, first.stderr) == (0, "")
    result = json.loads(first.stdout)
    assert set(result) == {"operation_id", "status", "queue", "priority", "processor", "is_async"}
    assert (result["status"], result["queue"], result["priority"]) == ("queued", "by_name", "high")
    second = script("enqueue", "tasks.by_name", "-", "--queue", "other", stdin='{"n": 2}')
    assert second.returncode == 0
    assert second.stdout.startswith("queued ")
    assert "by_name in normal:other" in second.stdout
    await noted("by_name 1", "by_name 2", "done {'twice': 2}")
    worker.send()
    assert await worker.ends() == 0
    ready, drained = worker.out().splitlines()
    assert ready.startswith("worker ")
    assert ready.endswith(f" ready: {config.clients.address}, 5 processors")
    assert " drained in " in drained
    assert config.get_metrics()["processed"] == 2


def test_enqueue_hands_its_options_on(config, capsys):
    args = ["enqueue", "nowhere.at_all:run", '{"é": 1}', "--operation-id", "mine", "--dedup-key", "k", "--delay", "90"]
    args += ["--on-success", "tasks:done", "--on-failure", "tasks.lost"]
    assert main([*args, "--timeout", "2.5", "--priority", "low", "--queue", "slow"]) == 0
    assert capsys.readouterr().out == "scheduled mine  run in low:slow, ready in 90 s\n"
    body = json.loads(config._ensure_redis_sync().hget(config.keys.operation("mine"), "b"))
    assert (body["processor_module"], body["processor"]) == ("nowhere.at_all", "run")
    assert (body["timeout"], body["entity"]) == (2.5, {"é": 1})
    assert (body["on_success"], body["on_failure"]) == (["done", "tasks"], ["lost", "tasks"])
    assert main(args) == 0
    assert "operation mine holds this id" in capsys.readouterr().out
    assert main([*args[:3], "--dedup-key", "k", "--json"]) == 0
    result = printed(capsys)
    assert (result["status"], result["reason"], result["duplicate_of"]) == ("duplicate", "deduplication_key", "mine")


def test_what_is_refused_is_1_and_enqueues_nothing(config, capsys):
    assert main(["enqueue", "tasks:by_name", json.dumps({"text": "x" * 300_000})]) == 1
    assert main(["enqueue", "tasks:by_name", "{}", "--operation-id", "a b"]) == 1
    assert capsys.readouterr().err.count("\n") == 2
    assert main(["enqueue", "tasks:by_name", "{}", "--priority", "urgent"]) == 2
    assert main(["enqueue", "tasks:by_name", "{"]) == 2
    assert config.get_metrics()["enqueued"] == 0


def test_stdin_that_is_no_text_is_bad_usage():
    done = subprocess.run([SCRIPT, "enqueue", "a:b", "-"], input=b"\xff", capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


async def test_a_worker_serves_the_queues_that_it_is_told(start, config):
    assert main(["enqueue", "tasks:by_name", '{"n": 1}', "--queue", "a"]) == 0
    assert main(["enqueue", "tasks:by_name", '{"n": 2}', "--queue", "b"]) == 0
    assert main(["enqueue", "tasks:by_name", '{"n": 3}', "--queue", "c"]) == 0
    worker = start("worker", "tasks", "--queue", "a", "--queue", "c")
    await until_metrics(config, processed=2)
    worker.send()
    assert await worker.ends() == 0
    assert sorted(notes()) == ["by_name 1", "by_name 3"]
    assert QueueManager(config).get_queue_status()[config.get_queue_key("b")] == 1


async def test_a_worker_takes_its_settings_from_flags_then_variables(start):
    worker = start(
        "worker", "tasks", "--log-format", "json", QUEUE_SYSTEM_LOG_FORMAT="console", QUEUE_SYSTEM_LOG_LEVEL="info"
    )
    assert main(["enqueue", "tasks:by_name", '{"n": 1}']) == 0
    await noted("by_name 1")
    worker.send()
    assert await worker.ends() == 0
    events = [json.loads(line) for line in worker.err().splitlines()]
    assert {"worker_running", "worker_draining", "worker_stopped"} <= {event["event"] for event in events}
    assert all(event["level"] and event["timestamp"] for event in events)
    assert [event["n"] for event in events if event["logger"] == "shop"] == [1]  # the application's logs, too
    assert not any(name.startswith("_") for event in events for name in event)


async def test_a_worker_does_not_run_what_its_policy_refuses(start, config):
    worker = start("worker", "tasks")
    for target in ("os:system", "subprocess:run", "queue_system.cli:main"):
        assert main(["enqueue", target, "{}"]) == 0
    await until_metrics(config, system_errors=3)
    worker.send()
    assert await worker.ends() == 0


async def test_a_worker_finds_plain_functions_of_its_modules_wherever_they_live(start, config, tmp_path):
    """In a library, say, from which nothing may be imported by name unless it is named."""
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "installed.py").write_text("def run(entity): ...")
    (library / "another.py").write_text("def run(entity): ...")
    worker = start("worker", "installed", PYTHONPATH=str(library))
    assert main(["enqueue", "installed:run", "{}"]) == 0
    assert main(["enqueue", "another:run", "{}"]) == 0
    await until_metrics(config, processed=1, system_errors=1)
    worker.send()
    assert await worker.ends() == 0


async def test_an_application_keeps_its_own_logging(start, tmp_path):
    (tmp_path / "own.py").write_text("import logging\nlogging.basicConfig(format='own: %(message)s', level='INFO')\n")
    worker = start("worker", "own", "--log-format", "json")
    await worker.says("own: worker_running")
    worker.send()
    assert await worker.ends() == 0


async def test_the_garbage_collector_of_a_worker_leaves_out_what_was_there_at_the_start(start, config, tmp_path):
    (tmp_path / "own.py").write_text(
        "import gc\ndef look(entity): open('frozen', 'w').write(str(gc.get_freeze_count()))\n"
    )
    worker = start("worker", "own")
    await worker.says(" ready: ")
    assert main(["enqueue", "own:look", "{}"]) == 0
    await until_metrics(config, processed=1)
    assert int((tmp_path / "frozen").read_text()) > 10_000
    worker.send()
    assert await worker.ends() == 0


# Stopping


async def test_a_signal_that_comes_as_soon_as_the_worker_is_ready_is_heeded(start):
    worker = start("worker", "tasks")
    await worker.says(" ready: ")
    worker.send()
    assert await worker.ends() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_drains_what_runs(start, config, number):
    worker = start("worker", "tasks")
    assert main(["enqueue", "tasks:until_go", "{}"]) == 0
    await noted("started 1")
    worker.send(number)
    await worker.says("worker_draining")
    go()
    assert await worker.ends() == 0
    assert notes() == ["started 1", "ended"]
    assert config.get_metrics()["processed"] == 1


async def test_a_second_worker_takes_over_what_the_first_gave_back(start, config):
    first = start("worker", "tasks", "--grace", "0.1")
    assert main(["enqueue", "tasks:until_go", "{}"]) == 0
    await noted("started 1")
    first.send()
    assert await first.ends() == 0
    assert QueueManager(config).get_queue_status()[config.get_queue_key("until_go")] == 1
    second = start("worker", "tasks", "--lease", "600")
    go()
    await until_metrics(config, processed=1)
    second.send()
    assert await second.ends() == 0
    assert notes() == ["started 1", "started 1", "ended"]  # the first start burned no attempt


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_second_signal_stops_at_once(start, number, code):
    worker = start("worker", "tasks", "--grace", "600")
    assert main(["enqueue", "tasks:for_ever", "{}"]) == 0
    await noted("started")
    worker.send(signal.SIGTERM)
    await worker.says("worker_draining")
    worker.send(number)
    assert await worker.ends(5) == code
    assert "stopped at once" in worker.err()


async def test_a_second_signal_stops_a_worker_whose_event_loop_is_blocked(start):
    worker = start("worker", "tasks")
    assert main(["enqueue", "tasks:block_the_loop", "{}"]) == 0
    await noted("started")

    def ended() -> bool:
        worker.send()
        return worker.process.poll() is not None

    await until(ended, what="the end of the worker")
    assert worker.process.returncode == 143


async def test_atexit_handlers_have_two_seconds_and_more(start, tmp_path):
    (tmp_path / "own.py").write_text(AT_EXIT.format(seconds=2.0))
    worker = start("worker", "own")
    await worker.says(" ready: ")
    worker.send()
    assert await worker.ends(10) == 0
    assert notes() == ["flushing", "flushed"]


@pytest.mark.parametrize("limit", [("--exit-timeout", "1.2"), ("--exit-timeout", "600", "--grace", "0")])
async def test_atexit_handlers_that_never_end_do_not_hold_up_the_end(start, tmp_path, limit):
    """For the exit's own time, and no longer than the grace lasts."""
    (tmp_path / "own.py").write_text(AT_EXIT.format(seconds=None))
    worker = start("worker", "own", *limit)
    await worker.says(" ready: ")
    worker.send()
    assert await worker.ends(10) == 0
    assert notes() == ["flushing"]


@pytest.mark.parametrize("task", ["block_a_thread", "block_a_thread_of_asyncio"])
async def test_a_thread_that_never_returns_does_not_hold_up_the_end(start, config, task):
    worker = start("worker", "tasks", "--grace", "0.1")
    assert main(["enqueue", f"tasks:{task}", "{}"]) == 0
    await noted("started")
    worker.send()
    assert await worker.ends(10) == 0
    assert " drained in " in worker.out()


async def test_a_worker_whose_threads_never_return_ends_with_75_and_says_where_they_stand(start, config):
    worker = start(
        *("worker", "tasks", "--thread-pool-size", "2", "--abandon-after", "0.5", "--grace", "120"),
        *("--log-format", "json"),
    )
    queue = QueueManager(config)
    retry = QueueRetryConfig.fixed(600, max_attempts=2)
    for number in range(2):
        queue.enqueue({"card": "4111"}, "tasks:block_a_thread", operation_id=f"hung-{number}", retry_config=retry)
    assert await worker.ends(60) == 75  # without waiting for the grace of 120
    assert ", too many of its threads never return: restart it" in worker.out()
    logged = [json.loads(line) for line in worker.err().splitlines() if line.startswith("{")]
    abandoned = [line for line in logged if line["event"] == "thread_abandoned"]
    assert {line["operation_id"] for line in abandoned} == {"hung-0", "hung-1"}
    for line in abandoned:
        assert (line["level"], line["processor"]) == ("warning", "block_a_thread")
        assert "in block_a_thread\n" in line["stack"]
        assert "4111" not in line["stack"]
    reasons = {
        line["event"]: line["reason"] for line in logged if line["event"] in {"worker_draining", "worker_stopped"}
    }
    assert reasons == {"worker_draining": "threads_abandoned", "worker_stopped": "threads_abandoned"}
    assert config.get_metrics()["retried"] == 2


async def test_a_worker_ends_with_0_after_its_number_of_operations(start, config):
    queue = QueueManager(config)
    queue.enqueue_batch([{"n": number} for number in range(100)], "tasks:by_name")
    worker = start("worker", "tasks", "--thread-pool-size", "1", "--max-operations", "10")
    assert await worker.ends(20) == 0
    assert ", after its --max-operations" in worker.out()
    done = len(notes())
    assert 10 <= done < 100
    assert len(set(notes())) == done
    status = queue.get_queue_status()
    assert (status["total_items"], status["in_flight"]) == (100 - done, 0)


def test_a_limit_of_memory_that_no_worker_can_keep_is_2():
    done = script("worker", "tasks", "--max-memory", "1MiB")
    assert done.returncode == 2
    assert "max_memory is 1 MiB, but this process takes" in done.stderr
    done = script("worker", "tasks", "--max-memory", "1 elephant")
    assert done.returncode == 2
    assert "--max-memory='1 elephant': not a size such as 512MiB or 2GB" in done.stderr


# Redis away


def test_a_dead_redis_is_69_for_the_worker():
    done = script("worker", "tasks", "--redis-url", "redis://user:secret@127.0.0.1:1/0")
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("queue-system: error: Redis at redis://user:***@127.0.0.1:1/0: ")
    assert done.stderr.count("\n") == 1


async def test_a_worker_waits_for_redis_when_it_is_told(start):
    with EmbeddedServer() as server:
        port = server.port
    worker = start("worker", "tasks", "--wait-for-redis", "60", "--redis-url", f"redis://127.0.0.1:{port}/0")
    with contextlib.suppress(AssertionError):
        await until(lambda: worker.process.poll() is not None, timeout=1.5)
    assert worker.process.poll() is None
    with EmbeddedServer(port=port):
        await worker.says(" ready: ")
        worker.send()
        assert await worker.ends() == 0


async def test_a_worker_that_waits_for_redis_heeds_its_signal(start):
    worker = start("worker", "tasks", "--wait-for-redis", "600", "--redis-url", "redis://127.0.0.1:1/0")
    await worker.says("redis")
    worker.send()
    assert await worker.ends() == 0


def test_a_module_that_is_not_there_is_2():
    done = script("worker", "not_there_at_all")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No module named 'not_there_at_all'" in done.stderr


# status


def test_status_json_is_the_status_of_the_library(config, capsys):
    for priority in ("low", "high"):
        assert main(["enqueue", "tasks:by_name", "{}", "--priority", priority]) == 0
    assert main(["enqueue", "tasks:by_name", "{}", "--delay", "90"]) == 0
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    shown, own = printed(capsys), QueueManager(config).get_queue_status()
    assert shown | {"status_time": 0} == own | {"status_time": 0}
    assert list(shown) == list(own)
    assert shown[config.get_queue_key("by_name", "high")] == shown["delayed"] == 1


def test_status_is_a_table_for_people(capsys):
    assert main(["enqueue", "tasks:by_name", "{}", "--priority", "high"]) == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["queue", "high", "normal", "low"] in rows
    assert ["by_name", "1", "-", "-"] in rows


@pytest.mark.parametrize("args", [["--watch"], ["--watch", "--json"]])
async def test_status_can_be_watched_until_ctrl_c(start, args):
    watch = start("status", *args, PYTHONUNBUFFERED="1")
    await until(lambda: watch.out() or watch.process.poll() is not None)
    if "--json" in args:
        await until(lambda: watch.out().count("\n") >= 2, what="a second document")
        assert all("metrics" in json.loads(line) for line in watch.out().splitlines()[:2])
    else:
        assert "ready 0" in await until(watch.out)
    watch.send(signal.SIGINT)
    assert await watch.ends() == 0
    assert watch.err() == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_left_is_told_by_the_exit_code_alone(unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [SCRIPT, "status", "--json"], stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


# failures


@pytest.fixture
def failed(config) -> list[str]:
    """Ids of three failures, newest first, and of nothing else; written as a worker's script leaves them."""
    redis = config._ensure_redis_sync()
    now = redis.time()[0] * 1000
    ids = [f"failed-{n}" for n in (3, 2, 1)]
    for at, operation_id in enumerate(reversed(ids), 1):
        QueueManager(config).enqueue({"n": at}, "tasks:by_name", operation_id=operation_id, queue_name="given-up")
        error = json.dumps({"reason": "error", "type": "ValueError", "message": f"no {at}", "traceback": "Trace"})
        fields = {"st": "failed", "err": error, "fl": now - 1000 * (10 - at), "at": 5}
        redis.hset(config.keys.operation(operation_id), mapping=fields)
        redis.zadd(config.keys.failures, {operation_id: fields["fl"]})
    redis.delete(config.get_queue_key("given-up"))
    return ids


def test_failures_are_listed_newest_first(failed, capsys):
    assert main(["failures", "list"]) == 0
    head, *rows, foot = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "age", "tries", "queue", "error"]
    assert [row.split()[0] for row in rows] == failed
    assert rows[0].split()[2:] == ["5", "normal:given-up", "ValueError:", "no", "3"]
    assert foot.startswith("3 of 3 failures")
    assert main(["failures", "list", "--limit", "1", "--offset", "1", "--json"]) == 0
    (entry,) = printed(capsys)
    assert (entry["operation_id"], entry["entity"], entry["raw"]) == (failed[1], {"n": 2}, None)


def test_an_empty_list_says_so(capsys):
    assert main(["failures", "list"]) == 0
    assert main(["failures", "list", "--system-errors"]) == 0
    assert capsys.readouterr().out == "no failures\nno system errors\n"
    assert main(["failures", "list", "--json"]) == 0
    assert printed(capsys) == []


def test_a_page_beyond_the_end_is_not_called_empty(failed, capsys):
    assert main(["failures", "list", "--offset", "5"]) == 0
    assert capsys.readouterr().out == "none here: there are 3 failures\n"


def test_a_failure_is_shown(failed, capsys):
    assert main(["failures", "show", failed[0]]) == 0
    out = capsys.readouterr().out
    for part in (failed[0], "tasks:by_name", "normal:given-up", "ValueError: no 3", '"n": 3', "Trace"):
        assert part in out
    assert main(["failures", "show", failed[0], "--json"]) == 0
    assert printed(capsys)["error_message"] == "no 3"


def test_an_unknown_failure_is_1(failed, capsys):
    assert main(["failures", "show", "nobody"]) == 1
    assert main(["failures", "show", failed[0], "--system-errors"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "queue-system: error: no failure has the id 'nobody': look with --system-errors, too",
        f"queue-system: error: no system error has the id '{failed[0]}': look without --system-errors, too",
    ]


def test_failures_are_retried_by_id(failed, capsys, config):
    assert main(["failures", "retry", failed[0], failed[1], failed[0]]) == 0
    assert capsys.readouterr().out == "retried 2 failures\n"
    assert main(["failures", "retry", failed[2], failed[0], "nobody", "--json"]) == 1
    assert printed(capsys) == {"retried": 1, "not_found": [failed[0], "nobody"]}
    assert QueueManager(config).get_queue_status()[config.get_queue_key("given-up")] == 3


def test_all_failures_are_retried(failed, capsys, config):
    assert main(["failures", "retry", "--all", "--limit", "1"]) == 0
    assert main(["failures", "retry", "--all"]) == 0
    assert main(["failures", "retry", "--all", "--json"]) == 0
    assert capsys.readouterr().out.startswith('retried 1 failure\nretried 2 failures\n{\n  "retried": 0')
    assert FailureStore(config).count() == 0


async def test_a_retried_failure_is_processed(failed, start, config):
    worker = start("worker", "tasks")
    assert script("failures", "retry", "--all").stdout == "retried 3 failures\n"
    await until_metrics(config, processed=3, requeued=3)
    worker.send()
    assert await worker.ends() == 0
    assert sorted(notes()) == ["by_name 1", "by_name 2", "by_name 3"]


def test_failures_are_purged_by_id(failed, capsys, config):
    assert main(["failures", "purge", failed[0], "nobody"]) == 1
    out, err = capsys.readouterr()
    assert out == "purged 1 failure\n"
    assert "no failure has the id 'nobody'" in err
    assert FailureStore(config).count() == 2


def test_purging_everything_asks_or_wants_yes(failed, capsys, config, monkeypatch):
    assert script("failures", "purge", "--all", stdin="y\n").returncode == 2
    assert FailureStore(config).count() == 3
    assert main(["failures", "purge", "--all", "--yes", "--json"]) == 0
    assert printed(capsys) == {"purged": 3, "not_found": []}
    assert FailureStore(config).count() == 0


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 3), ("\n", 1, 3)])
def test_purging_everything_heeds_the_answer(failed, config, monkeypatch, answer, code, left):
    monkeypatch.setattr("queue_system.cli.failures.asked_at_a_terminal", lambda: True)
    result = CliRunner().invoke(app, ["failures", "purge", "--all"], input=answer)
    assert result.exit_code == code
    assert "Delete 3 failures for good?" in result.output
    assert FailureStore(config).count() == left


def test_system_errors_are_apart(failed, capsys, config):
    redis = config._ensure_redis_sync()
    redis.hset(config.keys.operation("odd"), mapping={"st": "system_error", "q": "low:x", "b": b"\xff", "fl": 1})
    redis.zadd(config.keys.system_errors, {"odd": 1})
    assert main(["failures", "list", "--system-errors", "--json"]) == 0
    (entry,) = printed(capsys)
    assert (entry["operation_id"], entry["entity"], entry["raw"]) == ("odd", None, "/w==")
    assert main(["failures", "retry", "--all", "--system-errors"]) == 0
    assert main(["failures", "purge", "--all", "--yes", "--system-errors"]) == 0
    assert capsys.readouterr().out == "retried 1 system error\npurged 0 system errors\n"
    assert FailureStore(config).count() == 3
