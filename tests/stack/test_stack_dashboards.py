"""The dashboards: up to date, readable for Grafana's own model, and every query answered by a real Prometheus."""

from __future__ import annotations

import copy
import enum
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
import types
import typing
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana import build, capacity, health, model, overview
from queue_system.embedded import EmbeddedServer
from support import missing
from telemetry.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(build.DIRECTORY.glob("*.json"))
}
ALERTS = ROOT / "prometheus" / "rules" / "alerts.yml"
SUFFIXES = ("", "_bucket", "_sum", "_count")
KNOWN_SERIES = {
    metric.full_name + suffix
    for metric in CATALOGUE.values()
    for suffix in (SUFFIXES[1:] if metric.kind == "histogram" else SUFFIXES[:1])
}
# Grafana's Prometheus plugin reads these of an annotation; the general model does not know them.
PLUGIN_KEYS = {"titleFormat", "textFormat", "tagKeys", "step"}

WITHOUT_DATA: dict[str, str] = {}
"""Panels that rightly show nothing under the load of the test, and why."""


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Without headings."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def every_panel() -> Iterator[tuple[str, dict[str, Any]]]:
    return ((uid, panel) for uid, board in BOARDS.items() for panel in panels(board))


def every_query() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    return ((uid, panel, target) for uid, panel in every_panel() for target in panel.get("targets", ()))


def filled_in(expression: str) -> str:
    """As Grafana would send it, for all of everything, with windows for a Prometheus that has just started."""
    for name, value in {"$__rate_interval": "10s", "$__range": "1m", ":15s]": ":1s]"}.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$(job|queue|processor)\b", ".*", expression)


each_board = pytest.mark.parametrize("uid", BOARDS)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing(name)
    return str(found)


def promtool(command: str, path: Path) -> str:
    """What `promtool check rules` or `promtool test rules` prints, when it is content."""
    arguments = [program("promtool"), command, "rules", path]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- What is committed is what the program writes


def test_the_committed_dashboards_are_up_to_date():
    assert build.stale() == [], "run `make dashboards`"


def test_stale_dashboards_are_told_and_repaired(tmp_path):
    build.write(tmp_path)
    assert build.stale(tmp_path) == []
    first, second, *_ = sorted(tmp_path.iterdir())
    first.write_text(first.read_text().replace("Overview", "overview").replace("percent", "per cent"))
    second.unlink()
    (tmp_path / "left-over.json").write_text("{}")
    assert build.stale(tmp_path) == sorted(["left-over.json", first.name, second.name])
    assert build.write(tmp_path) == sorted(["left-over.json", first.name, second.name])
    assert build.stale(tmp_path) == []


def test_a_metric_that_does_not_exist_cannot_be_named():
    with pytest.raises(KeyError):
        model.expand("rate(@processed_totals[5m])")
    assert model.expand('@queue_depth{state="ready"} / @failures') == (
        'queue_system_queue_depth{job=~"$job", queue=~"$queue", state="ready"} / queue_system_failures{job=~"$job"}'
    )


# --- Grafana's own model


def read_by_grafana(board: dict[str, Any]) -> tuple[Any, Any]:
    """The dashboard in the model of the foundation SDK, and what that writes."""
    try:
        from grafana_foundation_sdk.cog.plugins import register_default_plugins  # noqa: PLC0415  may be missing
        from grafana_foundation_sdk.models.dashboard import Dashboard  # noqa: PLC0415
    except ModuleNotFoundError:
        missing("grafana-foundation-sdk")
    register_default_plugins()
    read = Dashboard.from_json(copy.deepcopy(board))
    return read, written(read)


def written(read: Any) -> Any:
    return json.loads(json.dumps(read, default=lambda one: one.to_json()))


def lost(wanted: Any, kept: Any, at: str = "") -> Iterator[str]:
    """Where `kept` lacks or changes something of `wanted`: what Grafana's model does not know."""
    if isinstance(wanted, dict) and isinstance(kept, dict):
        for key, value in wanted.items():
            if key in kept:
                yield from lost(value, kept[key], f"{at}.{key}")
            elif not (key in PLUGIN_KEYS and at.startswith(".annotations")) and value is not None:
                yield f"{at}.{key}"
    elif isinstance(wanted, list) and isinstance(kept, list) and len(wanted) == len(kept):
        for index, (one, other) in enumerate(zip(wanted, kept, strict=True)):
            yield from lost(one, other, f"{at}[{index}]")
    elif wanted != kept:
        yield at


def mistyped(value: Any, hint: Any, at: str = "") -> Iterator[str]:
    """Where a value is not of the type that Grafana's model gives it."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        problems = [list(mistyped(value, one, at)) for one in typing.get_args(hint)]
        if all(problems):  # of none of the types: tell of the one that fits the furthest down
            yield from max(problems, key=lambda found: len(found[0].partition(": ")[0]))
    elif isinstance(value, dict) and hasattr(hint, "from_json"):  # the SDK leaves some lists of parts unread
        read = hint.from_json(copy.deepcopy(value))
        yield from lost(value, written(read), at)
        yield from mistyped(read, hint, at)
    elif not _of_type(value, hint):
        yield f"{at}: {value!r} is no {hint}"
    else:
        for name, part, inner in _parts(value, hint):
            yield from mistyped(part, inner, at + name)


def _parts(value: Any, hint: Any) -> list[tuple[str, Any, Any]]:
    """What a value is made of: name, value and type of each part."""
    arguments = typing.get_args(hint)
    if isinstance(value, list) and arguments:
        return [(f"[{index}]", one, arguments[0]) for index, one in enumerate(value)]
    if isinstance(value, dict) and arguments:
        return [(f".{key}", one, arguments[1]) for key, one in value.items()]
    if hasattr(value, "to_json"):
        hints = typing.get_type_hints(type(value))
        return [(f".{name}", getattr(value, name), inner) for name, inner in hints.items()]
    return []


def _of_type(value: Any, hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    if kind in {object, Any}:
        return True
    if kind is typing.Literal:
        return value in typing.get_args(hint)
    if kind in {float, int}:
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if issubclass(kind, enum.Enum):
        return value in [one.value for one in kind]
    return isinstance(value, kind)


def model_errors(board: dict[str, Any]) -> list[str]:
    read, kept = read_by_grafana(board)
    return [*lost(board, kept), *mistyped(read, type(read))]


@each_board
def test_grafanas_model_knows_every_part_of_a_dashboard(uid):
    assert model_errors(BOARDS[uid]) == []


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an unknown option": lambda board: panels(board)[0]["options"].update(colourMode="value"),
    "an unknown way to draw": lambda board: _graph(board)["fieldConfig"]["defaults"]["custom"].update(
        drawStyle="lines"
    ),
    "a unit that is a number": lambda board: panels(board)[0]["fieldConfig"]["defaults"].update(unit=3),
    "a place that is words": lambda board: panels(board)[0]["gridPos"].update(w="12"),
    "an unknown query option": lambda board: panels(board)[0]["targets"][0].update(expression="up"),
    "an unknown kind of variable": lambda board: board["templating"]["list"][0].update(type="data"),
    "an unknown part of a link": lambda board: panels(board)[0]["links"][0].update(href="/"),
    "a switch that is a number": lambda board: board.update(editable=0),
}


def _graph(board: dict[str, Any]) -> dict[str, Any]:
    return next(panel for panel in panels(board) if panel["type"] == "timeseries")


@pytest.mark.parametrize("wrong", WRONG)
def test_grafanas_model_refuses(wrong):
    board = copy.deepcopy(BOARDS["queue-system-overview"])
    WRONG[wrong](board)
    assert len(model_errors(board)) == 1


# --- What every dashboard has


def test_the_dashboards_are_four_with_fixed_uids():
    assert {uid: board["uid"] for uid, board in BOARDS.items()} == {
        uid: uid
        for uid in (
            "queue-system-capacity",
            "queue-system-dependencies",
            "queue-system-detail",
            "queue-system-overview",
        )
    }
    assert len({board["title"] for board in BOARDS.values()}) == len(BOARDS)


@each_board
def test_variables(uid):
    variables = {one["name"]: one for one in BOARDS[uid]["templating"]["list"]}
    assert list(variables)[:3] == ["datasource", "job", "queue"]
    assert variables["datasource"]["query"] == "prometheus"
    for one in variables.values():
        if one["type"] == "query":
            assert (one["multi"], one["includeAll"], one["allValue"]) == (True, True, ".*")
            assert set(re.findall(r"queue_system_\w+", one["query"]["query"])) <= KNOWN_SERIES
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(BOARDS[uid])))
    assert used == set(variables)


@each_board
def test_panels_are_told_apart_and_do_not_overlap(uid):
    board = BOARDS[uid]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= model.COLUMNS
        assert place["h"] > 0
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


@each_board
def test_every_panel_has_a_unit_a_description_and_a_runbook_link(uid):
    alerts = {name.lower() for name in alert_rules()}
    units = known_units()
    for panel in panels(BOARDS[uid]):
        field = panel["fieldConfig"]
        named = [one["value"] for each in field["overrides"] for one in each["properties"] if one["id"] == "unit"]
        assert {field["defaults"]["unit"], *named} <= units, panel["title"]
        (link,) = panel["links"]
        base, _, anchor = link["url"].partition("#")
        assert base == model.RUNBOOK
        assert anchor in alerts, (panel["title"], anchor)
        text, _, runbook = panel["description"].partition("\n\n")
        assert len(text) > 10, panel["title"]
        assert text.endswith("."), panel["title"]
        assert link["url"] in runbook


def known_units() -> set[str]:
    try:
        from grafana_foundation_sdk.models import units  # noqa: PLC0415  may be missing
    except ModuleNotFoundError:
        missing("grafana-foundation-sdk")
    return {value for name, value in vars(units).items() if name[0].isupper() and isinstance(value, str)}


def alert_rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_alerts_and_dashboards_point_at_each_other():
    for name, rule in alert_rules().items():
        assert rule["annotations"]["runbook_url"] == model.runbook(name)
        assert re.search(r"/d/([\w-]+)", rule["annotations"]["dashboard_url"])[1] in BOARDS
        assert rule["labels"]["service"] == "queue_system"  # by which the annotations find it


@each_board
def test_alerts_are_annotations(uid):
    (alerts,) = BOARDS[uid]["annotations"]["list"]
    assert alerts["enable"] is True
    assert "ALERTS{" in alerts["expr"]


@each_board
def test_graphs_use_the_rate_interval_and_histograms_show_exemplars(uid):
    for panel in panels(BOARDS[uid]):
        if panel["type"] not in {"timeseries", "heatmap"}:
            continue
        for target in panel["targets"]:
            assert set(re.findall(r"\[([^\]]+)\]", target["expr"])) <= {"$__rate_interval"}, panel["title"]
            if re.search("(process_duration|queue_wait|pool_wait)_seconds_bucket", target["expr"]):
                assert target["exemplar"] is True, panel["title"]


def test_every_metric_is_on_a_dashboard():
    shown = set(re.findall(r"queue_system_\w+", json.dumps([target["expr"] for _, _, target in every_query()])))
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    assert {metric.full_name for metric in CATALOGUE.values()} - families == set()


def test_the_guidelines_table_names_alerts_and_panels_and_tests_that_exist():
    text = (ROOT / "docs" / "guidelines.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) >= 7
    titles = {panel["title"] for _, panel in every_panel()}
    for _, alerts, shown, tests in rows:
        assert set(re.findall("`(\\w+)`", alerts)) <= set(alert_rules())
        assert set(re.findall("\\*([^*]+)\\*", shown)) <= titles, shown
        for path, function in re.findall(r"`([\w/.]+?)(?:::(\w+))?`", tests):
            source = ROOT / path
            assert source.exists(), path
            assert not function or function in source.read_text(encoding="utf-8"), function


# --- Provisioning


def test_provisioning_fits_the_dashboards():
    sources = yaml.safe_load((ROOT / "grafana/provisioning/datasources/queue-system.yml").read_text())["datasources"]
    by_type = {one["type"]: one for one in sources}
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "datasource":
                assert by_type[variable["query"]]["uid"] == variable["current"]["value"]
    (exemplars,) = by_type["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["name"] == "trace_id"
    assert exemplars["datasourceUid"] == by_type["jaeger"]["uid"]
    (provider,) = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/queue-system.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["allowUiUpdates"] is False


# --- What panels say


def said(mappings: list[dict[str, Any]], value: float) -> str:
    """The text for a value, by Grafana's rules: the first mapping that fits."""
    for mapping in mappings:
        options = mapping["options"]
        if mapping["type"] == "value" and f"{value:g}" in options:
            return options[f"{value:g}"]["text"]
        if mapping["type"] == "range":
            low, high = options["from"], options["to"]
            if (low is None or low <= value) and (high is None or value <= high):
                return options["result"]["text"]
    return ""


@pytest.mark.parametrize(
    ("title", "value", "words"),
    [
        ("Thread pool", 0.49, "Below 50 %: shrink the pool"),
        ("Thread pool", 0.5, "Right size"),
        ("Thread pool", 0.8, "Right size"),
        ("Thread pool", 0.81, "Above 80 %: scale out"),
        ("Worker tasks", 0.9, "Enough tasks"),
        ("Worker tasks", 0.91, "Above 90 %: add worker tasks"),
        ("Exhaustion", 0.05, "Threads are found"),
        ("Exhaustion", 0.051, "Above 5 %: scale out"),
        ("Next step", capacity.SCALE_OUT, "Scale out"),
        ("Next step", capacity.ADD_TASKS, "Add worker tasks"),
        ("Next step", capacity.SHRINK, "Shrink the pool"),
        ("Next step", capacity.KEEP, "Nothing: it fits"),
        ("Time to drain the backlog", overview.FOREVER, "never: nothing is worked off"),
    ],
)
def test_the_guidelines_in_words(title, value, words):
    (panel,) = (one for one in panels(BOARDS["queue-system-capacity"]) if one["title"] == title)
    assert said(panel["fieldConfig"]["defaults"]["mappings"], value) == words


@pytest.mark.parametrize(
    ("title", "steps"),
    [
        ("Utilization now", [None, 0.5, 0.8]),
        ("Utilization", [None, 0.5, 0.8]),
        ("All tasks busy now", [None, 0.9]),
        ("All worker tasks busy", [None, 0.9]),
        ("Exhaustion now", [None, 0.05]),
        ("Exhaustion rate", [None, 0.05]),
    ],
)
def test_the_guidelines_as_thresholds(title, steps):
    (panel,) = (one for one in panels(BOARDS["queue-system-capacity"]) if one["title"] == title)
    assert [one["value"] for one in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]] == steps


def worker_series(job: str, *, used: float, tasks: float, exhausted: int, submitted: int, size: int = 4) -> list[Any]:
    """What one worker exposes, once in 15 s, for 100 minutes."""
    per_step: dict[str, float] = {
        "thread_pool_busy_seconds_total": 15 * size * used,
        "thread_pool_capacity_seconds_total": 15 * size,
        "worker_tasks_saturated_seconds_total": 15 * tasks,
        "worker_task_busy_seconds_total": 15 * 4 * tasks,
        "thread_pool_exhaustion_total": exhausted,
        "thread_pool_submissions_total": submitted,
    }
    gauges = {"thread_pool_size": size, "worker_tasks": 4}
    series = {name: f"0+{step:g}x400" for name, step in per_step.items()} | {
        name: f"{value}x400" for name, value in gauges.items()
    }
    return [
        {"series": f'queue_system_{name}{{job="{job}", instance="{job}"}}', "values": values}
        for name, values in series.items()
    ]


def promtool_tests(tmp_path: Path, series: list[Any], expected: dict[str, list[tuple[str, float]]]) -> None:
    """`expected`: for each expression its samples, after 90 minutes."""
    cases = [
        {
            "expr": filled_in(model.expand(expression)).replace(":1s]", ":15s]").replace("[10s]", "[5m]"),
            "eval_time": "90m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
        }
        for expression, samples in expected.items()
    ]
    tests = [{"interval": "15s", "input_series": series, "promql_expr_test": cases}]
    path = tmp_path / "dashboards.test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "15s", "tests": tests}))
    promtool("test", path)


def test_the_next_step_follows_the_guidelines(tmp_path):
    idle: dict[str, Any] = {"tasks": 0.2, "exhausted": 0, "submitted": 100}
    series = [
        *worker_series("full", used=0.81, **idle),
        *worker_series("fits_high", used=0.79, **idle),
        *worker_series("fits_low", used=0.51, **idle),
        *worker_series("large", used=0.49, **idle),
        *worker_series("large_but_one", used=0.49, **idle, size=1),
        *worker_series("tasks", used=0.6, tasks=0.91, exhausted=0, submitted=100),
        *worker_series("tasks_enough", used=0.6, tasks=0.89, exhausted=0, submitted=100),
        *worker_series("tasks_and_full", used=0.81, tasks=0.91, exhausted=0, submitted=100),
        *worker_series("exhausted", used=0.6, tasks=0.2, exhausted=6, submitted=100),
        *worker_series("hardly_exhausted", used=0.6, tasks=0.2, exhausted=5, submitted=101),
        *worker_series("async_only", used=0, tasks=0.91, exhausted=0, submitted=0),
    ]
    answers = {
        "full": capacity.SCALE_OUT,
        "fits_high": capacity.KEEP,
        "fits_low": capacity.KEEP,
        "large": capacity.SHRINK,
        "large_but_one": capacity.KEEP,
        "tasks": capacity.ADD_TASKS,
        "tasks_enough": capacity.KEEP,
        "tasks_and_full": capacity.SCALE_OUT,
        "exhausted": capacity.SCALE_OUT,
        "hardly_exhausted": capacity.KEEP,
        "async_only": capacity.ADD_TASKS,
    }
    wanted = [(f'{{job="{job}"}}', float(answer)) for job, answer in answers.items()]
    promtool_tests(tmp_path, series, {capacity.NEXT_STEP: wanted})


def test_recommended_numbers(tmp_path):
    series = worker_series("shop", used=0.81, tasks=1.0, exhausted=0, submitted=100, size=10)
    board = panels(BOARDS["queue-system-capacity"])
    recommended = {
        title: next(one for one in board if one["title"] == title)["targets"][1]["expr"]
        for title in ("Threads of an instance", "Instances for the threads", "Worker tasks of an instance")
    }
    values = [13.0, 2.0, 6.0]  # 8.1 threads at 65 %; 8.1 / 6.5 instances; 4 tasks at 75 %
    wanted = {expr: [('{job="shop"}', value)] for expr, value in zip(recommended.values(), values, strict=True)}
    promtool_tests(tmp_path, series, wanted)


@pytest.mark.parametrize(
    ("ready", "per_second", "seconds", "instances"),
    [("6000", 10, 600.0, 4.0), ("0", 10, 0.0, 2.0), ("0", 0, 0.0, None), ("6000", 0, overview.FOREVER, None)],
)
def test_time_to_drain_and_instances_for_it(tmp_path, ready, per_second, seconds, instances):
    labels = 'job="shop", queue="mail"'
    series = [
        {"series": f'queue_system_queue_depth{{{labels}, priority="normal", state="ready", instance="{one}"}}'}
        | {"values": f"{ready}x400"}
        for one in (1, 2)
    ]
    series += [
        {"series": f'queue_system_worker_tasks{{job="shop", instance="{one}"}}', "values": "4x400"} for one in (1, 2)
    ]
    for name in ("processed", "failed"):
        counted = f"0+{15 * per_second / 2:g}x400"
        series.append({"series": f'queue_system_{name}_total{{{labels}, processor="a"}}', "values": counted})
    wanted = {
        overview.TIME_TO_DRAIN: [("{}", seconds)],
        capacity.TO_DRAIN: [] if instances is None else [("{}", instances)],
    }
    promtool_tests(tmp_path, series, wanted)


# --- Prometheus


def test_every_expression_parses_and_names_only_known_metrics(tmp_path):
    expressions = [target["expr"] for _, _, target in every_query()]
    expressions += [one["expr"] for board in BOARDS.values() for one in board["annotations"]["list"]]
    for expression in expressions:
        assert not re.search(r"@|\$(?!__rate_interval|__range|job|queue|processor)", expression), expression
        bare = re.sub(r'"[^"]*"', "", expression)
        assert set(re.findall(r"queue_system_\w+", bare)) <= KNOWN_SERIES, expression
        others = set(re.findall(r"([A-Za-z_]\w*)\{", bare)) - KNOWN_SERIES
        assert others <= {"ALERTS", "up"}, expression
    rules = [{"record": f"panel:number_{index}", "expr": filled_in(one)} for index, one in enumerate(expressions)]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(expressions)} rules found" in promtool("check", path)


class Prometheus:
    def __init__(self, directory: Path, target: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._url = f"http://{address}/api/v1"
        firing = {"alert": "ThreadPoolScaleOut", "expr": "queue_system_thread_pool_size > 0"}
        firing["labels"] = {"service": "queue_system"}  # type: ignore[assignment]
        (directory / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "test", "rules": [firing]}]}))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "shop", "static_configs": [{"targets": [target]}]}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = (directory / "log").open("w")
        self._process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stderr=self._log,
            stdout=self._log,
        )

    def get(self, path: str, **parameters: Any) -> Any:
        try:
            with urllib.request.urlopen(
                f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
            ) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def values(self, target: dict[str, Any]) -> list[float]:
        """All numbers that a query of a panel shows."""
        expression, now = filled_in(target["expr"]), time.time()
        if target.get("instant"):
            result = self.get("query", query=expression)["result"]
            found = [one["value"][1] for one in result]
        else:
            result = self.get("query_range", query=expression, start=now - 15, end=now, step=1)["result"]
            found = [value for one in result for _, value in one["values"]]
        return [float(value) for value in found if not math.isnan(float(value))]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


@pytest.fixture(scope="module")
def worker(redis_server: EmbeddedServer) -> Iterator[str]:
    # Each failure is a line of its log, and failures are what it makes.
    command = [sys.executable, Path(__file__).with_name("dashboard_worker.py"), redis_server.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().removeprefix("http://")
    finally:
        process.stdin.close()
        process.wait(20)


@pytest.fixture(scope="module")
def prometheus(worker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), worker)
    try:
        yield running
    finally:
        running.stop()


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """What `condition` returned at last: as soon as it is true, or when the time is over."""
    deadline = time.monotonic() + seconds
    while not (found := _tried(condition)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _tried(condition: Callable[[], Any]) -> Any:
    try:
        return condition()
    except OSError:  # it does not listen yet
        return None


def test_a_real_prometheus_has_data_for_every_query(prometheus):
    pending = {
        f"{uid} / {panel['title']} / {target['refId']}": target
        for uid, panel, target in every_query()
        if panel["title"] not in WITHOUT_DATA
    }

    def answered() -> bool:
        for name in [name for name, target in pending.items() if prometheus.values(target)]:
            del pending[name]
        return not pending

    wait_for(answered, 40)
    assert {name: filled_in(target["expr"]) for name, target in pending.items()} == {}
    without = {panel["title"] for _, panel, target in every_query() if not prometheus.values(target)}
    assert without == set(WITHOUT_DATA)


def test_a_real_prometheus_has_exemplars_with_trace_ids(prometheus):
    def trace_ids() -> set[str]:
        now = time.time()
        found = prometheus.get(
            "query_exemplars", query="queue_system_process_duration_seconds_bucket", start=now - 60, end=now
        )
        return {exemplar["labels"]["trace_id"] for one in found for exemplar in one["exemplars"]}

    assert wait_for(trace_ids, 20)


def test_what_must_read_zero_does_under_load(prometheus):
    done = {"expr": "sum(rate(queue_system_processed_total[5s])) > 0 and sum(rate(queue_system_retried_total[5s])) > 0"}
    assert wait_for(lambda: prometheus.values(done | {"instant": True}), 30)
    for title in ("Conservation", "Unaccounted"):
        ((target,),) = (one["targets"] for one in panels(BOARDS["queue-system-dependencies"]) if one["title"] == title)
        recent = target | {"expr": target["expr"].replace("[2m:", "[5s:")}  # not since before there was any work
        # The first few may be told apart by a scrape alone; a difference that is one does not go away.
        assert wait_for(lambda recent=recent: prometheus.values(recent) == [0.0], 20), (
            title,
            prometheus.values(recent),
        )


def test_conservation_tells_a_difference_that_stays(tmp_path):
    labels = 'job="shop", queue="mail", processor="a"'
    series = {
        f'queue_system_attempts_total{{{labels}, outcome="success"}}': "0+15x60 916+15x300",  # one too many, for ever
        f"queue_system_processed_total{{{labels}}}": "0+15x400",
        f'queue_system_attempts_total{{{labels}, outcome="error"}}': "0+1x400",
        f'queue_system_retried_total{{{labels}, reason="error"}}': "0+1x400",
        f'queue_system_failed_total{{{labels}, reason="error"}}': "0x400",
        f"queue_system_failed_without_attempt_total{{{labels}}}": "0x400",
    }
    told = [{"series": name, "values": values} for name, values in series.items()]
    per_second = 1 + 1 / 15
    promtool_tests(tmp_path, told, {health.WELL: [("{}", 1.0)], health.BADLY: [("{}", 0.0)]})
    promtool_tests(tmp_path, told, {f"round({health.LASTING}, 0.0001)": [("{}", round(1 - 0.05 * per_second, 4))]})
