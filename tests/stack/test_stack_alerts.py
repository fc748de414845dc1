"""Alerts end to end: a real worker in trouble, real Prometheus, real Alertmanager, a webhook that is told.

A test cannot wait for minutes, so durations are shortened as text, minutes to seconds and hours to minutes: `for`, the
windows in brackets, `offset`; and the intervals of scraping, evaluating and grouping to one second. Thresholds,
conditions, labels, routes and inhibitions are those of the committed files.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
import yaml

from queue_system import QueueConfig, QueueManager
from queue_system.failures import FailureStore
from support import missing, until

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "prometheus"
WORKER = Path(sys.executable).with_name("queue-system")
HOST = "127.0.0.1"
SECONDS = {"m": "s", "h": "m"}

TASKS = """
import time

from queue_system import QueueRetryConfig, processor


@processor(queue="busy")
def busy(entity):
    time.sleep(0.2)


@processor(queue="broken", retry_config=QueueRetryConfig.fixed(delay=0.1, max_attempts=1))
async def broken(entity):
    raise ValueError("as the test wants it")


@processor(queue="mail")
async def mail(entity):
    return None
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def binary(*names: str) -> str:
    """The first of these programs that is there: Debian and its makers do not name it the same."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing(names[0])
    return str(found)


def get(url: str, **query: str) -> Any:
    address = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    with urllib.request.urlopen(address, timeout=5) as answer:
        return json.loads(answer.read())


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


class Started(NamedTuple):
    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


class Programs:
    """Programs that are ended with the test, whatever happens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, *command: str, cwd: Path | None = None) -> Started:
        log = self.directory / f"{name}.log"
        with log.open("ab") as sink:
            process = subprocess.Popen(
                command, stdout=sink, stderr=sink, cwd=cwd or self.directory, env=os.environ | {"PYTHONUNBUFFERED": "1"}
            )
        self._stack.callback(self._end, process)
        return Started(process, log)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=5)

    async def start_and_wait(self, url: str, name: str, *command: str, cwd: Path | None = None) -> Started:
        started = self.start(name, *command, cwd=cwd)
        await until(lambda: answers(url) or started.process.poll() is not None, 30, name)
        assert started.process.poll() is None, started.said()
        return started


class Webhook:
    """What Alertmanager has told: for each alert its statuses in order, and the last of its notes."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.told.extend(json.loads(body)["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self._server.server_address[1]}/alerts"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def of(self, status: str, **labels: str) -> list[dict[str, Any]]:
        return [one for one in self.told if one["status"] == status and labels.items() <= one["labels"].items()]


def shortened(rules: str) -> str:
    """Minutes to seconds and hours to minutes, wherever a duration stands."""
    rules = re.sub(r"interval: 30s", "interval: 1s", rules)
    return re.sub(r"(\[|for: |offset )(\d+)([mh])\b", lambda found: found[1] + found[2] + SECONDS[found[3]], rules)


def write_prometheus(directory: Path, alertmanager: str, workers: dict[str, str]) -> Path:
    """The committed configuration with shorter times, and with targets of this test (job to address). No rules yet."""
    text = (PROMETHEUS / "prometheus.yml").read_text()
    for name in ("scrape_interval: 15s", "scrape_timeout: 5s", "evaluation_interval: 30s"):
        assert name in text
        text = text.replace(name, re.sub(r"\d+s", "1s", name))
    (directory / "prometheus.yml").write_text(text)
    (directory / "targets").mkdir()
    targets = [{"targets": [address], "labels": {"job": job}} for job, address in workers.items()]
    (directory / "targets" / "workers.yml").write_text(yaml.safe_dump(targets))
    (directory / "targets" / "alertmanagers.yml").write_text(yaml.safe_dump([{"targets": [alertmanager]}]))
    return directory / "prometheus.yml"


def write_rules(directory: Path) -> None:
    (directory / "rules").mkdir()
    for path in (PROMETHEUS / "rules").glob("*.yml"):
        (directory / "rules" / path.name).write_text(shortened(path.read_text()))


def write_alertmanager(directory: Path, webhook: str) -> Path:
    """The committed configuration, telling the webhook of this test, and at once."""
    text = (PROMETHEUS / "alertmanager" / "alertmanager.yml").read_text()
    assert text.count("url: ") == 1
    text = re.sub(r"url: \S+", f"url: {webhook}", text)
    text = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", text)
    (directory / "alertmanager.yml").write_text(text)
    return directory / "alertmanager.yml"


async def start_alertmanager(programs: Programs, config: Path) -> str:
    address = f"{HOST}:{free_port()}"
    await programs.start_and_wait(
        f"http://{address}/-/ready",
        "alertmanager",
        binary("prometheus-alertmanager", "alertmanager"),
        f"--config.file={config}",
        f"--storage.path={programs.directory / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    )
    return address


class Monitored:
    """Two fleets, `shop` and `mail`, of one worker each, with Prometheus, Alertmanager and the webhook."""

    def __init__(self, programs: Programs, webhook: Webhook, config: QueueConfig) -> None:
        self.programs = programs
        self.webhook = webhook
        self.config = config
        self.queue = QueueManager(config)
        self.workers: dict[str, Started] = {}
        self.ports = {"shop": free_port(), "mail": free_port()}
        self.prometheus = f"http://{HOST}:{free_port()}"

    async def start_worker(self, job: str, *options: str) -> None:
        port = str(self.ports[job])
        self.workers[job] = await self.programs.start_and_wait(
            f"http://{HOST}:{port}/readyz",
            job,
            *(str(WORKER), "worker", "alert_tasks", "--metrics-port", port, *options),
            *("--redis-url", self.config.clients.address, "--prefix", self.config.queue_prefix),
        )

    async def start(self) -> None:
        directory = self.programs.directory
        (directory / "alert_tasks.py").write_text(TASKS)
        await self.start_worker("shop", "--queue", "busy", "--queue", "broken", "--thread-pool-size", "2")
        await self.start_worker("mail", "--queue", "mail")
        address = await start_alertmanager(self.programs, write_alertmanager(directory, self.webhook.url))
        workers = {job: f"{HOST}:{port}" for job, port in self.ports.items()}
        prometheus = await self.programs.start_and_wait(
            f"{self.prometheus}/-/ready",
            "prometheus",
            binary("prometheus"),
            f"--config.file={write_prometheus(directory, address, workers)}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={self.prometheus.removeprefix('http://')}",
        )
        # Prometheus may take five seconds to find its targets, as long as a shortened `for`: rules come after that.
        await until(lambda: self.query("count(queue_system_worker_tasks_alive) == 2"), 30, "a scrape of both workers")
        write_rules(directory)
        prometheus.process.send_signal(signal.SIGHUP)

    def query(self, expression: str) -> list[dict[str, Any]]:
        return get(f"{self.prometheus}/api/v1/query", query=expression)["data"]["result"]

    async def told(self, status: str, alert: str, job: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until the webhook has heard it."""
        labels = {"alertname": alert, "job": job}
        try:
            found = await until(lambda: self.webhook.of(status, **labels), timeout, f"{alert} {status}")
        except AssertionError as error:
            state = self.query(f'ALERTS{{alertname="{alert}"}}')
            raise AssertionError(f"{error}; {state}; told: {self.webhook.told}") from None
        return found[-1]

    def was(self, state: str, alert: str, job: str) -> bool:
        """Whether Prometheus has ever had the alert in this state."""
        return bool(self.query(f'last_over_time(ALERTS{{alertname="{alert}",alertstate="{state}",job="{job}"}}[10m])'))


@pytest.fixture
def programs(tmp_path) -> Iterator[Programs]:
    with Programs(tmp_path) as started:
        yield started


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as receiver:
        yield receiver


def check_told(alert: dict[str, Any], monitored: Monitored) -> None:
    """It went through pending, and says what to do, in a section that is there."""
    name, job = alert["labels"]["alertname"], alert["labels"]["job"]
    assert monitored.was("pending", name, job)
    assert monitored.was("firing", name, job)
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert page.endswith("/docs/runbook.md")
    assert anchor in [line[3:].lower() for line in runbook() if line.startswith("## ")]
    assert job in alert["annotations"]["summary"] + alert["annotations"]["dashboard_url"]
    assert "<error" not in json.dumps(alert["annotations"])


def runbook() -> list[str]:
    return (ROOT / "docs" / "runbook.md").read_text().splitlines()


@pytest.mark.timeout(240)
async def test_trouble_is_told_with_its_runbook_and_so_is_its_end(programs, webhook, make_config, redis_url):
    binary("prometheus"), binary("prometheus-alertmanager", "alertmanager")
    monitored = Monitored(programs, webhook, make_config(redis_url=redis_url))
    await monitored.start()
    monitored.queue.enqueue({}, "alert_tasks:broken", queue_name="broken")
    await until(lambda: monitored.query('queue_system_queue_depth{queue="broken",state="failed"} == 1'), 30, "a scrape")
    await until(lambda: monitored.query('job:queue_system_workers:count{job="mail"}'), 30, "a recording")
    assert webhook.told == []

    # The trouble: a pool of two threads for ten times as much, forty operations that fail, a worker that is killed.
    monitored.queue.enqueue_batch([{"n": n} for n in range(4000)], "alert_tasks:busy", queue_name="busy")
    monitored.queue.enqueue_batch([{"n": n} for n in range(40)], "alert_tasks:broken", queue_name="broken")
    monitored.workers["mail"].process.kill()
    monitored.workers["mail"].process.wait(timeout=10)

    absent = await monitored.told("firing", "WorkersAbsent", "mail")
    exhaustion = await monitored.told("firing", "ThreadPoolExhaustion", "shop")
    growing = await monitored.told("firing", "FailureQueueGrowing", "shop")
    assert float(monitored.query("job:queue_system_thread_pool_exhaustion:ratio_rate5m")[0]["value"][1]) > 0.05
    for alert in (absent, exhaustion, growing):
        check_told(alert, monitored)
    assert growing["labels"]["queue"] == "broken"
    assert not webhook.of("resolved", service="queue_system", job="mail")

    # The end of it.
    monitored.queue.purge_queue("busy")
    FailureStore(monitored.config).purge_all()
    await monitored.start_worker("mail", "--queue", "mail")
    for alert, job in (("WorkersAbsent", "mail"), ("ThreadPoolExhaustion", "shop"), ("FailureQueueGrowing", "shop")):
        await monitored.told("resolved", alert, job)
    assert unhealthy_rules(monitored) == []


def unhealthy_rules(monitored: Monitored) -> list[str]:
    groups = get(f"{monitored.prometheus}/api/v1/rules")["data"]["groups"]
    return [
        f"{rule['name']}: {rule['lastError']}" for group in groups for rule in group["rules"] if rule.get("lastError")
    ]


class Seen(NamedTuple):
    """Alerts that Alertmanager holds, with the labels that a test gave them."""

    address: str

    def post(self, *alerts: str) -> None:
        body = [{"labels": self.labels(alert) | {"service": "queue_system"}, "annotations": {}} for alert in alerts]
        request = urllib.request.Request(
            f"http://{self.address}/api/v2/alerts", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=5):
            pass

    @staticmethod
    def labels(alert: str) -> dict[str, str]:
        name, *labels = alert.split()
        given = dict(label.split("=") for label in labels)
        return {"severity": severity_of(name, given.get("burn")), "alertname": name} | given

    def silenced(self) -> dict[str, bool]:
        found = get(f"http://{self.address}/api/v2/alerts")
        return {self._named(one["labels"]): bool(one["status"]["inhibitedBy"]) for one in found}

    @staticmethod
    def _named(labels: dict[str, str]) -> str:
        rest = (f"{key}={labels[key]}" for key in ("job", "instance", "queue", "burn") if key in labels)
        return " ".join((labels["alertname"], *rest))


def severity_of(alert: str, burn: str | None) -> str:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())["groups"]
    labels = [rule["labels"] for group in groups for rule in group["rules"] if rule["alert"] == alert]
    return next(one["severity"] for one in labels if one.get("burn") == burn)


INHIBITED: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    (
        "WorkersAbsent job=a",
        (
            "HeartbeatStale job=a instance=1",
            "QueueStalled job=a queue=q",
            "QueueTooOld job=a queue=q",
            "Reclaimed job=a",
            "ThreadPoolExhaustion job=a",
            "AddWorkerTasks job=a",
            "WorkerTaskFailures job=a",
        ),
        (
            "FailureQueueGrowing job=a queue=q",
            "UnaccountedOperations job=a",
            "QueueStalled job=b queue=q",
            "RedisErrors job=a",
        ),
    ),
    (
        "HeartbeatStale job=a instance=1",
        ("WorkerTasksMissing job=a instance=1", "AbandonedThreads job=a instance=1", "Reclaimed job=a"),
        ("WorkerTasksMissing job=a instance=2", "Reclaimed job=b", "ThreadPoolExhaustion job=a"),
    ),
    (
        "RedisErrors job=a",
        ("CircuitOpen job=a", "HeartbeatStale job=a instance=1", "QueueTooOld job=a queue=q"),
        ("CircuitOpen job=b", "WorkersAbsent job=a", "FailureQueueGrowing job=a queue=q"),
    ),
    ("QueueStalled job=a queue=q", ("QueueTooOld job=a queue=q",), ("QueueTooOld job=a queue=r",)),
    ("ThreadPoolExhaustion job=a", ("ThreadPoolSaturated job=a",), ("ThreadPoolScaleOut job=a",)),
    (
        "QueueingSLOBurn job=a queue=q burn=fast",
        ("QueueingSLOBurn job=a queue=q burn=slow",),
        ("QueueingSLOBurn job=a queue=r burn=slow", "FailureQueueGrowing job=a queue=q"),
    ),
]


async def test_what_follows_from_something_worse_is_silenced_and_nothing_else(tmp_path):
    for number, (cause, symptoms, others) in enumerate(INHIBITED):
        directory = tmp_path / str(number)
        directory.mkdir()
        with Programs(directory) as programs:
            seen = Seen(await start_alertmanager(programs, PROMETHEUS / "alertmanager" / "alertmanager.yml"))
            seen.post(cause, *symptoms, *others)
            expected = dict.fromkeys(symptoms, True) | dict.fromkeys((cause, *others), False)
            await holds(lambda seen=seen, expected=expected: seen.silenced() == expected, seen.silenced)


async def holds(condition: Callable[[], bool], state: Callable[[], Any]) -> None:
    try:
        await until(condition, 5)
    except AssertionError:
        raise AssertionError(f"it is {state()}") from None
