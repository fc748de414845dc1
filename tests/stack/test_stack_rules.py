"""Prometheus' rules and Alertmanager's configuration, held by their own programs; and tests of the tests.

Every condition of every alert is taken away in turn, every number moved by a fifth, every `for` dropped or doubled:
each time that alert's own tests must fail.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from support import missing
from telemetry.catalogue import CATALOGUE, PREFIX, REDIS

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "prometheus"
RUNBOOK_PAGE = ROOT / "docs" / "runbook.md"
RUNBOOK = "https://example.org/queue-system/docs/runbook.md#"
DASHBOARDS = "http://127.0.0.1:3000/d/queue-system-"
AT_ONCE = 3  # mutants that are tested at the same time

ALERTS = [
    "AbandonedThreads",
    "AddWorkerTasks",
    "CircuitOpen",
    "FailureQueueGrowing",
    "HeartbeatStale",
    "QueueStalled",
    "QueueTooOld",
    "QueueingSLOBurn",
    "Reclaimed",
    "RedisErrors",
    "RetriesIncreasing",
    "TelemetryDropped",
    "ThreadPoolExhaustion",
    "ThreadPoolSaturated",
    "ThreadPoolScaleOut",
    "ThreadPoolUnderutilized",
    "UnaccountedOperations",
    "WorkerTaskFailures",
    "WorkerTasksMissing",
    "WorkersAbsent",
]


def rules(name: str) -> list[dict[str, Any]]:
    document = yaml.safe_load((PROMETHEUS / "rules" / name).read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


RECORDINGS = {rule["record"]: rule for rule in rules("recording.yml")}
ALERT_RULES = rules("alerts.yml")


def tool(name: str) -> str:
    if not shutil.which(name):
        missing(name)
    return name


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def cases_of(alert: str) -> list[Path]:
    return sorted((*PROMETHEUS.glob(f"tests/{alert}.yml"), *PROMETHEUS.glob(f"tests/{alert}.*.yml")))


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "rules", "rules/recording.yml", "rules/alerts.yml"),
        ("promtool", "check", "config", "prometheus.yml"),
        ("amtool", "check-config", "alertmanager/alertmanager.yml"),
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_their_own_programs_accept_the_files(command):
    tool(command[0])
    done = run(*(str(PROMETHEUS / word) if word.endswith(".yml") else word for word in command))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout


def test_the_tests_of_the_rules_pass():
    done = run(tool("promtool"), "test", "rules", *(str(path) for path in sorted(PROMETHEUS.glob("tests/*.yml"))))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SUCCESS") == len(list(PROMETHEUS.glob("tests/*.yml")))


def test_the_alerts_are_those_of_the_design_and_each_has_tests():
    assert sorted({rule["alert"] for rule in ALERT_RULES}) == sorted(ALERTS)
    assert {alert for alert in ALERTS if not cases_of(alert)} == set()


@pytest.mark.parametrize("rule", ALERT_RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_to_do_and_where_to_look(rule):
    notes = rule["annotations"]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["labels"]["service"] == "queue_system"
    assert notes["summary"]
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == RUNBOOK + rule["alert"].lower()
    assert re.match(
        re.escape(DASHBOARDS) + r"(overview|capacity|detail|dependencies)\?var-job=", notes["dashboard_url"]
    )


def test_the_runbook_has_a_section_for_each_alert_and_no_other():
    sections = re.split(r"^## ", RUNBOOK_PAGE.read_text(), flags=re.MULTILINE)[1:]
    named = {section.partition("\n")[0]: section for section in sections}
    assert sorted(set(named) & set(ALERTS)) == sorted(ALERTS)
    for alert in ALERTS:
        for part in ("**Means.**", "**Look.**", "**Do.**", "**Over**"):
            assert part in named[alert], f"{alert} has no {part}"


def queries_of_the_runbook() -> list[str]:
    blocks = re.findall(r"^```promql\n(.*?)^```", RUNBOOK_PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_rules_and_runbook_use_no_metric_that_is_not_exported():
    known = {metric.full_name for metric in CATALOGUE.values()}
    known |= {
        f"{m.full_name}_{end}" for m in CATALOGUE.values() if m.kind == "histogram" for end in ("bucket", "count")
    }
    expressions = [rule["expr"] for rule in (*RECORDINGS.values(), *ALERT_RULES)]
    for expression in (*expressions, *queries_of_the_runbook()):
        text = re.sub(r'"[^"]*"', "", expression)
        assert set(re.findall(r"\w+:\w+:\w+", text)) <= RECORDINGS.keys(), expression
        assert set(re.findall(rf"(?<![\w:]){PREFIX}\w+", text)) <= known, expression


def test_the_queries_of_the_runbook_parse(tmp_path):
    queries = queries_of_the_runbook()
    assert len(queries) > len(ALERTS)
    group = {"name": "runbook", "rules": [{"record": f"query{n}", "expr": query} for n, query in enumerate(queries)]}
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [group]}))
    done = run(tool("promtool"), "check", "rules", str(tmp_path / "queries.yml"))
    assert done.returncode == 0, done.stderr


def test_what_every_replica_reads_from_redis_is_never_summed_over_replicas():
    shared = rf"(?<![\w:]){PREFIX}(?:{'|'.join(metric.name for metric in REDIS)})\b"
    for rule in (*RECORDINGS.values(), *ALERT_RULES):
        once = re.findall(rf"max by \([\w, ]+\) \((?:abs\()?{shared}", rule["expr"])
        assert len(once) == len(re.findall(shared, rule["expr"])), rule["expr"]


class Mutant(NamedTuple):
    alert: str
    change: str
    rule: dict[str, Any]


# A number of its own: not part of a name, a duration, a string, or what counts labels.
NUMBER = r"(?<![\w.:\"])\d+(?:\.\d+)?(?![\w.:\"])"
CLAUSE = re.compile(r"\s*(and|or|unless)\b")


def changed_expressions(expression: str) -> Iterator[tuple[str, str]]:
    lines = expression.splitlines()
    for index, line in enumerate(lines):
        if CLAUSE.match(line):
            yield f"without: {line.strip()}", "\n".join(lines[:index] + lines[index + 1 :])
    for found in re.finditer(rf"\s(==|!=|[<>]=?) {NUMBER}(?! \*)", expression):
        yield f"without: {found.group().strip()}", expression[: found.start()] + expression[found.end() :]
    for found in re.finditer(NUMBER, re.sub(r'"[^"]*"', lambda text: '"' * len(text.group()), expression)):
        number = float(found.group())
        for other in {number * 0.8, number * (2 if number == 1 else 1.2)} - {0}:  # 1 is a count, and so is 2
            yield f"{found.group()} -> {other:g}", f"{expression[: found.start()]}{other:g}{expression[found.end() :]}"


def mutants() -> Iterator[Mutant]:
    for rule in ALERT_RULES:
        name = rule["alert"]
        for change, expression in changed_expressions(rule["expr"]):
            yield Mutant(name, change, rule | {"expr": expression})
        if "for" in rule:
            number, unit = re.fullmatch(r"(\d+)([mh])", rule["for"]).groups()
            yield Mutant(name, "without for", {key: value for key, value in rule.items() if key != "for"})
            yield Mutant(name, "for doubled", rule | {"for": f"{2 * int(number)}{unit}"})


def write_rules(directory: Path, mutant: Mutant) -> list[str]:
    """The rule with the change, the recordings that it needs, and its tests: the addresses of those."""
    names = needed_recordings(mutant.rule["expr"])
    needed = [rule for name, rule in RECORDINGS.items() if name in names]
    (directory / "rules").mkdir(parents=True)
    (directory / "tests").mkdir()
    for name, content in (("recording", needed), ("alerts", [mutant.rule])):
        group = "queue_system.depth" if name == "recording" else "queue_system.pool"  # evaluated in this order
        document = {"groups": [{"name": group, "interval": "30s", "rules": content}] if content else []}
        (directory / "rules" / f"{name}.yml").write_text(yaml.safe_dump(document))
    burn = mutant.rule["labels"].get("burn")
    cases = [path for path in cases_of(mutant.alert) if burn is None or path.stem.endswith(burn)]
    return [str(shutil.copy(path, directory / "tests")) for path in cases]


def needed_recordings(expression: str) -> set[str]:
    waiting, found = [expression], set()
    while waiting:
        for name in re.findall(r"\w+:\w+:\w+", waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(RECORDINGS[name]["expr"])
    return found


async def survivors(directory: Path, changes: Sequence[Mutant]) -> list[str]:
    """The changes that no test of their alert notices."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def survives(number: int, mutant: Mutant) -> str | None:
        files = write_rules(directory / str(number), mutant)
        async with limit:
            process = await asyncio.create_subprocess_exec(
                "promtool", "test", "rules", *files, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            output = (await process.communicate())[0].decode()
        assert "exp:" in output or process.returncode == 0, f"{mutant}: {output}"  # failed, but not by an expectation
        return None if process.returncode else f"{mutant.alert}: {mutant.change}"

    found = await asyncio.gather(*(survives(number, mutant) for number, mutant in enumerate(changes)))
    return [one for one in found if one]


async def test_no_condition_of_an_alert_can_be_removed_or_moved_without_a_test_failing(tmp_path):
    tool("promtool")
    changes = list(mutants())
    assert len(changes) > 100
    assert await survivors(tmp_path, changes) == []


async def test_the_rules_as_they_are_pass_where_mutants_are_tested(tmp_path):
    tool("promtool")
    unchanged = [Mutant(rule["alert"], "none", rule) for rule in ALERT_RULES]
    assert len(await survivors(tmp_path, unchanged)) == len(unchanged)
