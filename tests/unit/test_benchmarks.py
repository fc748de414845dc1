"""The pure parts of the benchmarks: counting, medians, goals, the picture. What they measure is not tested here."""

from __future__ import annotations

import io
import json
import pathlib
import re
import sys
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks.driver import Load
from benchmarks.goals import Goal, check_goals
from benchmarks.markdown import markdown
from benchmarks.measurements import ALL, percentile
from benchmarks.peers import common
from benchmarks.picture import OURS, Panel, panels, svg
from benchmarks.results import Results, medians
from benchmarks.systems import PEERS, System, python_of
from benchmarks.tables import show, show_goals

SVG = "{http://www.w3.org/2000/svg}"


def results_with(**measurements: dict[str, dict[str, float]]) -> Results:
    results = Results(machine="a machine", command="a command")
    for name, systems in measurements.items():
        for system, figures in systems.items():
            results.add(name, system, figures)
    results.limits.append({"redis-py round trip": 10_000.0, "redis-py pipelined": 100_000.0, "bare loop 100": 50_000.0})
    return results


@pytest.fixture
def results() -> Results:
    return results_with(
        enqueue={"ours": {"per_second": 8_000.0}, "huey": {"per_second": 9_000.0}},
        beside={"ours": {"per_second": 8_000.0, "round_trips_per_second": 10_000.0, "percent": 80.0}},
        bulk={"ours": {"per_second": 50_000.0, "redis_us": 6.0}, "rq": {"per_second": 9_500.0}},
        drain_100={
            "ours": {"per_second": 20_000.0, "worker_us": 50.0, "redis_us": 15.0, "round_trips": 0.01},
            "ours+spans": {"per_second": 6_000.0},
            "huey": {"per_second": 4_000.0, "worker_us": 250.0},
        },
        drain_sync={"ours": {"per_second": 15_000.0}, "dramatiq": {"per_second": 5_000.0}},
        recovery={"ours": {"seconds": 11.0, "missing": 0.0}},
        latency={"ours": {"p50_ms": 0.8, "p99_ms": 1.5}, "taskiq": {"p50_ms": 1.0, "p99_ms": 1.0}},
    )


def goals_of(results: Results) -> dict[str, Goal]:
    return {goal.text: goal for goal in check_goals(results)}


@pytest.fixture
def counted_in(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(common, "DIRECTORY", tmp_path)
    monkeypatch.setattr(common, "_flags", None)
    monkeypatch.setattr(common, "_stamps", None)
    return tmp_path


def test_jobs_are_counted_from_outside(counted_in: pathlib.Path) -> None:
    tally = common.Tally(counted_in)
    assert tally.count() == 0
    for _ in range(3):
        common.noop(common.PAYLOAD)
    assert (tally.count(), tally.workers) == (3, 1)
    common.noop(common.PAYLOAD)
    assert tally.count() == 4


def test_numbered_jobs_count_once(counted_in: pathlib.Path) -> None:
    tally = common.Tally(counted_in)
    assert tally.stamped(10) == 0
    for number in (0, 3, 3, 12):
        common.stamp({"n": number})
    assert tally.stamped(10) == 2


def test_payloads_are_the_same_for_all_but_for_a_number() -> None:
    assert common.payloads("noop", 5, 2) == [common.PAYLOAD] * 2
    assert common.payloads("stamp", 5, 2) == [{**common.PAYLOAD, "n": 5}, {**common.PAYLOAD, "n": 6}]
    assert list(common.endless("noop", 3)) == [common.PAYLOAD] * 3


def test_load_is_a_difference_without_our_own_looks() -> None:
    spent = Load({"lpush": 12, "info": 2, "get": 1}, 20, 1.5).since(Load({"lpush": 2, "info": 1, "get": 1}, 5, 1.0))
    assert (spent.commands, spent.reads, spent.cpu, spent.calls) == ({"lpush": 10, "info": 1}, 15, 0.5, 10)


def test_median_of_each_figure_that_a_round_has() -> None:
    assert medians([{"a": 1.0, "b": 5.0}, {"a": 9.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}
    assert percentile(list(range(101)), 99) == 99


def test_peers_are_those_that_are_not_ours(results: Results) -> None:
    assert results.peers("drain_100") == {"huey": 4_000.0}
    assert results.figure("drain_100", "nobody") is None


def test_goals_are_ratios_to_the_best_peer_of_any_kind(results: Results) -> None:
    goal = goals_of(results)["no-ops, concurrency 100, by the fastest peer's"]
    assert (goal.figure, goal.held, goal.against) == (4.0, False, "dramatiq")  # its sync figure beats huey's


def test_goals_against_limits_and_ceilings(results: Results) -> None:
    goals = goals_of(results)
    assert goals["enqueue, of redis-py's round trips beside it"].held is True
    assert goals["enqueue in bulk, of redis-py pipelined"].figure == 50.0
    assert goals["CPU of Redis, enqueue to completion"].figure == 21.0
    assert goals["idle latency p50, by the best peer's"].held is True
    assert goals["idle latency p99, by the best peer's"].figure == 1.5


def test_what_was_not_measured_is_neither_held_nor_missed(results: Results) -> None:
    assert goals_of(results)["10 ms async at 100, of 10,000/s"].held is None


def test_missing_operations_are_no_recovery(results: Results) -> None:
    text = "kill -9, default settings: all done"
    assert goals_of(results)[text].held is True
    results.rounds["recovery"]["ours"] = [{"seconds": 11.0, "missing": 1.0}]
    assert goals_of(results)[text].held is False


def test_results_are_read_as_they_were_written(results: Results, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "results.json")
    results.fail("bulk", "huey", "it hung")
    results.save(path, check_goals(results))
    assert Results.load(path) == results
    assert json.loads(pathlib.Path(path).read_text())["medians"]["bulk"]["rq"]["per_second"] == 9_500.0


def test_tables_show_figures_errors_and_absence(results: Results) -> None:
    results.fail("drain_100", "celery", "no job ran")
    results.absent["arq"] = "no such version"
    out = io.StringIO()
    console = Console(file=out, width=160)
    show(results, console)
    show_goals(check_goals(results), console)
    assert all(text in out.getvalue() for text in ("20,000", "no job ran", "no such version", ">= 5 x", "4.00 x"))


def test_markdown_has_the_same_figures(results: Results) -> None:
    results.systems = {name: {"versions": {"redis": "8"}, "settings": {"noop": "a|b"}} for name in ("huey", "ours")}
    text = markdown(results, check_goals(results))
    lines = text.splitlines()
    assert lines.index("| **ours** | 8,000 | 50,000 | 20,000 | 15,000 | 0.80 | 1.50 | 50 | 15 | 0.01 |  |  |") < (
        lines.index("| huey | 9,000 |  | 4,000 |  |  |  | 250 |  |  |  |  |")
    )
    assert "| **ours** | default | all done | 11.0 |" in lines
    assert "a\\|b" in text


def test_a_busy_machine_is_told(results: Results) -> None:
    assert not results.disturbed
    results.busy = 5.0
    assert "load average 5.0" in markdown(results, [])


def test_bars_are_in_the_order_of_merit() -> None:
    more = Panel("", {"a": 1.0, OURS: 4.0, "b": 2.0})
    less = Panel("", {"a": 1.0, OURS: 4.0, "b": 2.0}, less_is_better=True)
    assert (more.order, more.times) == ([OURS, "b", "a"], 2.0)
    assert (less.order, less.times) == (["a", "b", OURS], 0.25)


def test_an_outlier_does_not_press_the_other_bars_flat() -> None:
    assert Panel("", {OURS: 1.0, "a": 2.0, "b": 500.0}, less_is_better=True).full == 8.0
    assert Panel("", {OURS: 1.0, "a": 2.0}, less_is_better=True).full == 2.0


def test_a_bar_and_a_limit_never_leave_their_panel() -> None:
    assert Panel("", {OURS: 60.0, "a": 2.0}, limit=50.0).full == 60.0
    assert Panel("", {OURS: 10.0, "a": 2.0}, limit=50.0).full == 50.0


def test_the_picture_has_text_as_text_and_one_strong_colour(results: Results) -> None:
    drawn = panels(results)
    root = ET.fromstring(svg(drawn, 'a <machine> & "more"'))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"huey", "20,000", "5.0x", 'a <machine> & "more"'} <= set(texts)
    bars = [bar.get("class") for bar in root.iter(f"{SVG}rect") if "bar" in (bar.get("class") or "")]
    assert bars.count("bar us") == len(drawn)
    assert "prefers-color-scheme:dark" in "".join(root.itertext())


def test_bars_are_as_long_as_their_figures() -> None:
    root = ET.fromstring(svg([Panel("", {OURS: 100.0, "a": 25.0})], ""))
    ours, other = (float(bar.get("width", 0)) for bar in root.iter(f"{SVG}rect") if "bar" in (bar.get("class") or ""))
    assert other == pytest.approx(ours / 4, abs=0.1)


def test_systems_and_measurements_are_chosen_by_name() -> None:
    assert [system.name for system in command.chosen_systems(["huey", "ours"], variants=False)] == ["ours", "huey"]
    plain = command.chosen_systems(None, variants=False)
    assert [system.name for system in plain if system.ours] == ["ours"]
    assert len(command.chosen_systems(None, variants=True)) > len(plain)

    everything = command.chosen_measurements(None, quick=False)
    quick = command.chosen_measurements(None, quick=True)
    assert {one.name for one in everything} - {one.name for one in quick} == {"scale_1", "scale_2", "scale_4"}
    assert [one.name for one in command.chosen_measurements(["scale_2"], quick=True)] == ["scale_2"]


def test_an_unknown_name_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(["--only", "ours,hueyy"])
    assert "unknown: hueyy; known are ours" in capsys.readouterr().err
    assert command.parse(["--measure", "bulk, limits"]).measure == ["bulk", "limits"]


def test_each_measurement_has_a_name_of_its_own() -> None:
    names = [measurement.name for measurement in ALL]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("system", PEERS, ids=lambda system: system.name)
def test_each_peer_is_pinned_and_has_an_adapter(system: System) -> None:
    assert all(re.match(r"[\w.-]+==[\d.]+(;|$)", requirement) for requirement in system.requirements)
    assert (pathlib.Path(common.__file__).parent / f"{system.adapter}.py").exists()


def test_ours_runs_where_the_benchmark_does() -> None:
    assert python_of(System("ours", "ours")) == sys.executable
