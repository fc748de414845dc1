"""The pure parts of `benchmarks.features` and `benchmarks.profile`: differences, grouping, tables, arguments."""

from __future__ import annotations

import asyncio.events
import io
import math
import pathlib
import threading
from typing import Any

import pytest
import redis.asyncio.client
from rich.console import Console

from benchmarks import features, profile
from benchmarks.features import DEFAULT, FEATURES, MEASUREMENT
from benchmarks.profile import PARTS, REST, WAITING, Burden, Measured
from benchmarks.recorder import Entry, Function, Recording, read, recorded
from benchmarks.results import Results

ROOT = profile.ROOT
# What no worker runs: every other module of the packages must have a part.
NOT_OF_THE_WORKER = {
    "audit", "audit_rules", "cli", "demo", "embedded", "enqueueing", "explain", "failures", "garbage", "manager",
    "request", "settings", "template", "testing",
}  # fmt: skip

ATTEMPTS = str(ROOT / "queue_system/runtime/attempts.py")
FAMILIES = str(ROOT / "telemetry/families.py")
CLOCK: Function = (profile.IN_C, 0, "<built-in method time.monotonic>")
POLL: Function = (profile.IN_C, 0, "<method 'poll' of 'select.epoll' objects>")


def functions_of(path: pathlib.Path) -> list[Function]:
    return [(str(path), line, name) for line, name in profile._qualified(str(path)).items()]


def sources() -> list[pathlib.Path]:
    return [path for package in ("queue_system", "telemetry") for path in sorted((ROOT / package).rglob("*.py"))]


def line_of(file: str, qualified: str) -> int:
    return next(line for line, name in profile._qualified(file).items() if name == qualified)


def cells(line: str) -> int:
    return line.replace("\\|", "").count("|")


def tables_of(text: str) -> list[list[str]]:
    return [part.splitlines() for part in text.strip().split("\n\n") if part.startswith("|")]


def is_well_formed(table: list[str]) -> bool:
    heads, rule, *rows = table
    return set(rule) == {"|", "-"} and bool(rows) and all(cells(line) == cells(heads) for line in (rule, *rows))


# Where the time goes


def test_every_function_that_a_worker_runs_has_a_part() -> None:
    of_the_worker = [
        path for path in sources()
        if path.relative_to(ROOT).parts[1].removesuffix(".py") not in NOT_OF_THE_WORKER
    ]  # fmt: skip
    functions = [function for path in of_the_worker for function in functions_of(path)]
    assert len(functions) > 400
    assert profile.unmapped(functions) == []


def test_a_function_without_a_part_is_told() -> None:
    new = [(str(ROOT / "queue_system/runtime/newcomer.py"), 1, "run"), (str(ROOT / "telemetry/newcomer.py"), 1, "run")]
    assert profile.unmapped([*new, CLOCK]) == ["queue_system.runtime.newcomer:run", "telemetry.newcomer:run"]


def test_no_pattern_is_of_something_that_is_gone() -> None:
    names = {profile.name_of(function) for path in sources() for function in functions_of(path)}
    names |= {f"{profile._module(str(path))}:" for path in sources()}
    ours = [pattern for patterns in PARTS.values() for pattern in patterns if pattern.startswith(profile.OURS)]
    assert ours
    assert [pattern for pattern in ours if not any(profile._fits(pattern, name) for name in names)] == []


def test_no_pattern_is_of_two_parts() -> None:
    patterns = [pattern for patterns in PARTS.values() for pattern in patterns]
    assert len(set(patterns)) == len(patterns)


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("Attempts.open", "attempt account"),
        ("Attempts.finish", "outcome and outbox"),  # the function's own pattern counts more than its module's
        ("Within.__enter__", "attempt account"),
    ],
)
def test_the_longest_pattern_counts(function: str, part: str) -> None:
    assert profile.part_of((ATTEMPTS, line_of(ATTEMPTS, function), function.rpartition(".")[2])) == part


def test_a_pattern_does_not_fit_a_longer_name() -> None:
    assert profile._fits("telemetry.otlp", "telemetry.otlp:encode")
    assert not profile._fits("telemetry.otlp", "telemetry.otlp_http:export")
    assert profile._fits("a:B.c", "a:B.c.<locals>")
    assert not profile._fits("a:B.c", "a:B.cd")


def test_libraries_and_c_have_the_names_that_patterns_have() -> None:
    assert profile.part_of((redis.asyncio.client.__file__, 1, "execute")) == "redis client and socket"
    assert profile.part_of((asyncio.events.__file__, 1, "_run")) == "asyncio"
    assert profile.part_of((profile.IN_C, 0, "<method 'send' of '_socket.socket' objects>")) == (
        "redis client and socket"
    )
    assert profile.part_of(POLL) == WAITING
    assert profile.part_of(CLOCK) is None


def test_what_has_no_part_belongs_to_its_callers() -> None:
    opening = (ATTEMPTS, line_of(ATTEMPTS, "Attempts.open"), "open")
    adding = (FAMILIES, line_of(FAMILIES, "Histogram.add"), "add")
    helper, nobody = ("/elsewhere/helper.py", 1, "helper"), ("/elsewhere/nobody.py", 1, "nobody")
    entries = {
        CLOCK: Entry(4, 4.0, {opening: (1, 1.0), helper: (3, 3.0)}),
        helper: Entry(1, 1.0, {adding: (1, 1.0), helper: (1, 0.5)}),  # it calls itself, too
        nobody: Entry(1, 1.0, {}),
    }
    assert profile.parts_of(CLOCK, entries) == {"attempt account": 0.25, "metrics": 0.75}
    assert profile.parts_of(nobody, entries) == {REST: 1.0}


def test_what_the_profiler_adds_is_taken_off_function_and_caller() -> None:
    caller, callee = ("a.py", 1, "caller"), ("a.py", 5, "callee")
    entries = {caller: Entry(1, 10.0, {}), callee: Entry(3, 2.0, {caller: (3, 2.0)})}
    assert profile.corrected(entries, Burden(own=0.5, caller=1.0)) == {caller: 6.5, callee: 0.5}
    assert profile.corrected(entries, Burden(own=2.0, caller=1.0))[callee] == 0.0  # never less than nothing


def test_the_burden_of_the_profiler_is_measured() -> None:
    each = profile.burden(calls=2_000, tries=2)
    assert 0.0 < each.own < 0.001
    assert 0.0 <= each.caller < 0.001


@pytest.fixture
def measured() -> Measured:
    adding = (FAMILIES, line_of(FAMILIES, "Histogram.add"), "add")
    finishing = (ATTEMPTS, line_of(ATTEMPTS, "Attempts.finish"), "finish")
    entries = {
        adding: Entry(200, 0.3, {finishing: (200, 0.3)}),
        finishing: Entry(100, 0.1, {}),
        POLL: Entry(10, 60.0, {finishing: (0, 0.0)}),
    }
    threads = {"queue-system-pool": 100 * 10e-6, "queue-system-leases": 0.0}
    return Measured(Recording(entries, threads), 100, worker_us=50.0, machine="a machine")


def test_rows_are_shares_of_what_a_worker_takes_without_the_profiler(measured: Measured) -> None:
    made = profile.report(measured, "a command", 1)
    assert [row.part for row in made.rows] == ["metrics", "outcome and outbox", "thread queue-system-pool"]
    assert math.isclose(sum(row.us for row in made.rows), 50.0)  # the loop's 40, the thread's 10, nothing of the wait
    assert made.rows[0].us == pytest.approx(30.0, rel=0.05)
    assert [row.calls for row in made.rows] == [2.0, 1.0, None]
    assert [(name, part) for name, part, _ in made.functions] == [("telemetry.families:Histogram.add", "metrics")]


def test_the_profile_as_markdown_and_on_a_terminal(measured: Measured) -> None:
    made = profile.report(measured, "a command", 2)
    tables = tables_of(profile.markdown(made))
    assert len(tables) == 2
    assert all(is_well_formed(table) for table in tables)
    assert tables[0][-1].startswith("| in all | 100.0 % | 50.0 |")
    assert len(tables_of(profile.markdown(profile.report(measured, "a command", 0)))) == 1
    out = io.StringIO()
    profile.show(made, Console(file=out, width=120))
    assert "outcome and outbox" in out.getvalue()


def test_arguments_of_the_profile() -> None:
    options = profile.parse(["--sync", "--spans", "--operations", "50", "--markdown", "x.md"])
    assert (options.sync, options.spans, options.operations, options.markdown) == (True, True, 50, "x.md")
    assert profile.parse([]).operations == profile.OPERATIONS == 20_000


def test_a_recording_has_functions_and_the_cpu_of_other_threads(tmp_path: pathlib.Path) -> None:
    path, ended = str(tmp_path / "profile"), threading.Event()
    busy = threading.Thread(target=lambda: (sum(range(2_000_000)), computed.set(), ended.wait(20.0)), name="pool-3")
    computed = threading.Event()
    with recorded(path):
        busy.start()
        assert computed.wait(20.0)
        functions_of(ROOT / "utils.py")
    ended.set()
    busy.join()
    recording = read(path)
    names = {profile.name_of(function) for function in recording.entries}
    assert f"{__name__.rpartition('.')[2]}:functions_of" in {name.replace("tests.unit.", "") for name in names}
    assert recording.threads["pool"] > 0.001


# What each feature costs


def figures_of(**worker_us: float) -> dict[str, dict[str, float]]:
    return {
        name: {"worker_us": us, "redis_us": 20.0, "client_us": 100.0, "client_redis_us": 50.0, "per_second": 1.0}
        for name, us in worker_us.items()
    }


def results_of(*rounds: dict[str, dict[str, float]]) -> Results:
    results = Results(machine="a machine", command="a command")
    for figures in rounds:
        for name, one in features.compared(figures).items():
            results.add(MEASUREMENT, name, one)
    return results


def row_of(results: Results, name: str) -> list[str]:
    return next(row for row in features.rows(results, short=True) if row[0] == name)


def test_differences_are_to_the_default_row_of_the_same_round() -> None:
    results = results_of(
        figures_of(metrics=40.0, off=30.0), figures_of(metrics=80.0, off=71.0), figures_of(metrics=60.0, off=52.0)
    )
    assert row_of(results, "off")[1:5] == ["52.0", "-9.0", "20.0", "+0.0"]  # medians of each, not of the medians
    assert row_of(results, "metrics")[1:5] == ["60.0", "", "20.0", ""]


def test_without_a_default_row_there_are_no_differences() -> None:
    assert features.compared(figures_of(off=30.0)) == figures_of(off=30.0)


def test_features_as_markdown_and_on_a_terminal() -> None:
    results = results_of(figures_of(**{feature.name: 40.0 for feature in FEATURES if feature.name != "sync"}))
    results.fail(MEASUREMENT, "sync", "the worker ended: a | b")
    (table,) = tables_of(features.markdown(results))
    assert is_well_formed(table)
    assert len(table) == 2 + len(FEATURES)
    assert "a \\| b" in table[-1]
    out = io.StringIO()
    features.show(results, Console(file=out, width=120))
    assert "done_ttl" in out.getvalue()


def test_each_feature_has_a_name_of_its_own() -> None:
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)
    assert all(feature.system.ours for feature in FEATURES)


def test_features_are_chosen_by_name_and_the_default_is_always_there() -> None:
    assert features.chosen(None) == list(FEATURES)
    assert features.chosen(["sync"]) == [DEFAULT, next(one for one in FEATURES if one.name == "sync")]


def test_arguments_of_the_features(capsys: pytest.CaptureFixture[str]) -> None:
    options: Any = features.parse(["--only", "spans, sync", "--rounds", "2", "--json", "x.json", "--markdown", "x.md"])
    assert (options.only, options.rounds, options.json, options.markdown) == (["spans", "sync"], 2, "x.json", "x.md")
    assert not options.quick
    with pytest.raises(SystemExit):
        features.parse(["--only", "spams"])
    assert "unknown: spams; known are off, metrics" in capsys.readouterr().err
