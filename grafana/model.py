"""The parts of a Grafana dashboard, as plain dictionaries in the form of its dashboard schema, version 41.

Expressions are written with ``@name`` or ``@name{state="ready"}`` for a metric of `telemetry.catalogue`. `expand` puts
in the full name and the matchers of the dashboard's variables that the metric has labels for, so that a panel cannot
name a metric that does not exist, and cannot forget a variable.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from telemetry.catalogue import CATALOGUE

Panel = dict[str, Any]
Expression = tuple[str, str]
"""An expression and its legend."""

SCHEMA_VERSION: Final = 41
COLUMNS: Final = 24
TAG: Final = "queue-system"
RUNBOOK: Final = "https://example.org/queue-system/docs/runbook.md"
"""Where ``docs/runbook.md`` can be read; its anchors are the names of the alerts in lower case. As in the alerts."""

# An alert about something that is absent has no job: the empty value is for that one.
FIRING: Final = 'ALERTS{service="queue_system", alertstate="firing", job=~"$job|"}'
PROMETHEUS: Final = {"type": "prometheus", "uid": "${datasource}"}

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e8e"
OUTCOME_COLOURS: Final = {
    "success": GREEN,
    "error": RED,
    "timeout": ORANGE,
    "cancelled": PURPLE,
    "exhausted": YELLOW,
    "abandoned": GREY,
}

_METRIC: Final = re.compile(r"@([a-z_]+)(?:\{([^}]*)\})?")
_SAMPLE_SUFFIX: Final = re.compile(r"_(bucket|sum|count)$")


def expand(template: str, variables: Iterable[str] = ("job", "queue")) -> str:
    """The expression with full metric names and a matcher for each variable that the metric has a label for.

    Raises:
        KeyError: a metric is not in the catalogue.
    """

    def replace(match: re.Match[str]) -> str:
        name, own = match.groups()
        metric = CATALOGUE.get(name) or CATALOGUE[_SAMPLE_SUFFIX.sub("", name)]
        labels = {"job", *metric.labels}
        matchers = [f'{variable}=~"${variable}"' for variable in variables if variable in labels]
        return f"queue_system_{name}{{{', '.join([*matchers, *([own] if own else [])])}}}"

    return _METRIC.sub(replace, " ".join(template.split()))


def runbook(alert: str) -> str:
    """The address of an alert's section in the runbook."""
    return f"{RUNBOOK}#{alert.lower()}"


def targets(expressions: Sequence[Expression], **options: Any) -> list[dict[str, Any]]:
    """Queries A, B, C ... of a panel."""
    return [
        {
            "refId": chr(ord("A") + index),
            "datasource": PROMETHEUS,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "range": True,
        }
        | options
        for index, (expression, legend) in enumerate(expressions)
    ]


NOW: Final = {"instant": True, "range": False}
"""Options of a query that is about the present, or about the time range as a whole."""


def steps(base: str, *above: tuple[float, str]) -> dict[str, Any]:
    """Thresholds: the base colour, and the colour from each value on."""
    rest = [{"value": value, "color": colour} for value, colour in above]
    return {"mode": "absolute", "steps": [{"value": None, "color": base}, *rest]}


def words(*texts: tuple[float, str, str]) -> list[dict[str, Any]]:
    """Mappings of single values to a text and its colour."""
    options = {
        f"{value:g}": {"text": text, "color": colour, "index": index}
        for index, (value, text, colour) in enumerate(texts)
    }
    return [{"type": "value", "options": options}]


def bands(*ranges: tuple[float | None, float | None, str, str]) -> list[dict[str, Any]]:
    """Mappings of ranges, ends included, to a text and its colour; the first that fits wins."""
    return [
        {
            "type": "range",
            "options": {"from": low, "to": high, "result": {"text": text, "color": colour, "index": index}},
        }
        for index, (low, high, text, colour) in enumerate(ranges)
    ]


def nothing(text: str, colour: str = GREY) -> list[dict[str, Any]]:
    """What a panel says when there is no value, as of a ratio of nothing to nothing."""
    return [
        {"type": "special", "options": {"match": "null+nan", "result": {"text": text, "color": colour, "index": 90}}}
    ]


def panel(
    kind: str, title: str, text: str, alert: str, unit: str, expressions: list[dict[str, Any]], size: tuple[int, int]
) -> Panel:
    """What all panels have. `alert` names the section of the runbook that says what to do."""
    link = runbook(alert)
    return {
        # Made of the title, so that links to a panel survive the panels around it.
        "id": zlib.crc32(title.encode()) % 1_000_000 + 1,
        "type": kind,
        "title": title,
        "description": f"{text}\n\n[Runbook: {alert}]({link})",
        "links": [_link("Runbook", link)],
        "datasource": PROMETHEUS,
        "targets": expressions,
        "fieldConfig": {"defaults": {"unit": unit, "noValue": "no data"}, "overrides": []},
        "options": {},
        "gridPos": {"w": size[0], "h": size[1], "x": 0, "y": 0},
    }


def series(
    title: str,
    text: str,
    alert: str,
    unit: str,
    expressions: Sequence[Expression],
    *,
    stack: bool = False,
    limits: Sequence[tuple[float, str]] = (),
    top: float | None = None,
    bottom: float | None = 0,
    exemplars: bool = False,
    colours: Mapping[str, str] | None = None,
    size: tuple[int, int] = (12, 8),
) -> Panel:
    """A graph over time; `limits` are drawn as lines, `top` and `bottom` are ends of the axis."""
    result = panel("timeseries", title, text, alert, unit, targets(expressions, exemplar=exemplars), size)
    defaults = result["fieldConfig"]["defaults"]
    defaults["custom"] = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1 if stack else 2,
        "fillOpacity": 40 if stack else 5,
        "showPoints": "never",
        "spanNulls": False,
        "axisSoftMin": 0,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
    }
    defaults |= {"color": {"mode": "palette-classic"}, "thresholds": steps("transparent" if limits else GREEN, *limits)}
    for name, value in (("min", bottom), ("max", top)):
        if value is not None:
            defaults[name] = value
    result["fieldConfig"]["overrides"] = [_coloured(name, colour) for name, colour in (colours or {}).items()]
    result["options"] = {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return result


def stat(
    title: str,
    text: str,
    alert: str,
    unit: str,
    expressions: Sequence[Expression],
    *,
    thresholds: dict[str, Any] | None = None,
    mappings: Sequence[dict[str, Any]] = (),
    background: bool = False,
    decimals: int | None = None,
    size: tuple[int, int] = (4, 4),
) -> Panel:
    """The present value in large type, or the words that `mappings` have for it."""
    result = panel("stat", title, text, alert, unit, targets(expressions, **NOW), size)
    defaults = result["fieldConfig"]["defaults"]
    defaults |= {"color": {"mode": "thresholds"}, "thresholds": thresholds or steps(BLUE), "mappings": list(mappings)}
    if decimals is not None:
        defaults["decimals"] = decimals
    result["options"] = {
        "colorMode": "background" if background else "value",
        "graphMode": "none",
        "justifyMode": "center",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": _REDUCE,
    }
    return result


def gauge(
    title: str,
    text: str,
    alert: str,
    unit: str,
    expressions: Sequence[Expression],
    thresholds: dict[str, Any],
    *,
    top: float = 1,
    size: tuple[int, int] = (6, 6),
) -> Panel:
    """A dial from 0 to `top`, whose thresholds are written on it."""
    result = panel("gauge", title, text, alert, unit, targets(expressions, **NOW), size)
    result["fieldConfig"]["defaults"] |= {
        "color": {"mode": "thresholds"},
        "thresholds": thresholds,
        "min": 0,
        "max": top,
        "decimals": 1,
        "mappings": nothing("idle"),
    }
    result["options"] = {
        "showThresholdLabels": True,
        "showThresholdMarkers": True,
        "orientation": "auto",
        "reduceOptions": _REDUCE,
    }
    return result


def bars(
    title: str, text: str, alert: str, unit: str, expressions: Sequence[Expression], *, size: tuple[int, int] = (12, 8)
) -> Panel:
    """A horizontal bar for each series, for the most frequent of something."""
    result = panel("bargauge", title, text, alert, unit, targets(expressions, **NOW), size)
    result["fieldConfig"]["defaults"] |= {
        "color": {"mode": "thresholds"},
        "thresholds": steps(BLUE, (1, RED)),
        "min": 0,
        "decimals": 0,
    }
    result["options"] = {
        "orientation": "horizontal",
        "displayMode": "basic",
        "valueMode": "color",
        "namePlacement": "left",
        "showUnfilled": True,
        "reduceOptions": _REDUCE,
    }
    return result


def timeline(
    title: str,
    text: str,
    alert: str,
    expressions: Sequence[Expression],
    mappings: Sequence[dict[str, Any]],
    *,
    size: tuple[int, int] = (12, 8),
) -> Panel:
    """Coloured stretches of time, one row for each series."""
    result = panel("state-timeline", title, text, alert, "none", targets(expressions), size)
    result["fieldConfig"]["defaults"] |= {
        "color": {"mode": "fixed", "fixedColor": GREY},
        "mappings": list(mappings),
        "custom": {"fillOpacity": 70, "lineWidth": 0},
    }
    result["options"] = {
        "showValue": "auto",
        "rowHeight": 0.8,
        "mergeValues": True,
        "alignValue": "left",
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return result


def heatmap(title: str, text: str, alert: str, unit: str, expression: str, *, size: tuple[int, int] = (12, 8)) -> Panel:
    """How a histogram's buckets fill over time."""
    query = targets([(expression, "{{le}}")], format="heatmap", exemplar=True)
    result = panel("heatmap", title, text, alert, unit, query, size)
    result["options"] = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
        "yAxis": {"unit": unit, "axisPlacement": "left"},
        "rowsFrame": {"layout": "auto"},
        "cellGap": 1,
        "filterValues": {"le": 1e-09},
        "showValue": "never",
        "legend": {"show": True},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": True},
    }
    return result


def table(
    title: str,
    text: str,
    alert: str,
    columns: Sequence[tuple[str, str, str]],
    *,
    labels: Sequence[str],
    sort: str,
    link: tuple[str, str, str] | None = None,
    size: tuple[int, int] = (24, 9),
) -> Panel:
    """A row for each combination of `labels`; a column is (heading, unit, expression), a link (column, title, url)."""
    queries = targets([(expression, "") for _, _, expression in columns], format="table", **NOW)
    result = panel("table", title, text, alert, "short", queries, size)
    # Grafana calls the only query's column "Value", and those of several "Value #A" and so on.
    names = [f"Value #{query['refId']}" for query in queries] if len(queries) > 1 else ["Value"]
    renamed = {name: heading for name, (heading, _, _) in zip(names, columns, strict=True)}
    order = {name: index for index, name in enumerate([*labels, *renamed])}
    organize = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": renamed}
    result["transformations"] = [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    overrides = [_override(heading, "unit", unit) for heading, unit, _ in columns]
    if link:
        overrides.append(_override(link[0], "links", [{"title": link[1], "url": link[2], "targetBlank": True}]))
    result["fieldConfig"]["overrides"] = overrides
    result["fieldConfig"]["defaults"]["noValue"] = "-"
    result["options"] = {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": sort, "desc": True}]}
    return result


def note(title: str, text: str, alert: str, content: str, *, size: tuple[int, int] = (24, 6)) -> Panel:
    """Words."""
    result = panel("text", title, text, alert, "none", [], size)
    del result["datasource"]
    result["options"] = {"mode": "markdown", "content": content}
    return result


def quantiles(histogram: str, by: str = "") -> list[Expression]:
    """The median, the 95th and the 99th percentile of a histogram, over all or for each value of the label `by`."""
    group = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return [
        (f"histogram_quantile({q}, sum by ({group}) (rate(@{histogram}_bucket[$__rate_interval])))", f"{legend}{name}")
        for q, name in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))
    ]


def dashboard(
    uid: str,
    title: str,
    text: str,
    sections: Sequence[tuple[str, Sequence[Panel]]],
    extra: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """A dashboard of sections, each a heading and panels that flow from left to right."""
    variables = [*_variables(), *extra]
    names = [variable["name"] for variable in variables if variable["type"] == "query"]
    panels = _place(sections)
    for one in panels:
        for target in one.get("targets", ()):
            target["expr"] = expand(target["expr"], names)
    return {
        "uid": uid,
        "title": f"Queue System / {title}",
        "description": text,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_between_dashboards(), _link("Runbook", RUNBOOK)],
        "annotations": {"list": [_alerts()]},
        "templating": {"list": variables},
        "panels": panels,
    }


def query_variable(name: str, label: str, text: str, query: str) -> dict[str, Any]:
    """A variable whose values are those of a label; all of them by default."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": text,
        "datasource": PROMETHEUS,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": "All", "value": "$__all"},
    }


def data_source_variable(name: str, label: str, kind: str) -> dict[str, Any]:
    """A variable for a data source of a kind; the provisioned one by default."""
    current = {"selected": True, "text": label, "value": kind}
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "query": kind,
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "current": current,
    }


def traces_url(tags: str) -> str:
    """The address of Explore with a search in Jaeger; variables in `tags` are filled in by Grafana."""
    search = (
        '{"a":{"datasource":"${traces}","queries":[{"refId":"A","datasource":{"type":"jaeger","uid":"${traces}"},'
        f'"queryType":"search","service":"${{service}}","tags":"{tags}","limit":20}}],'
        '"range":{"from":"${__from}","to":"${__to}"}}}'
    )
    encoded = re.sub(r"%24%7B([\w.]+)%7D", r"${\1}", quote(search))  # variables stay as Grafana finds them
    return f"/explore?schemaVersion=1&panes={encoded}"


_REDUCE: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def _variables() -> list[dict[str, Any]]:
    of_job = "Jobs of the scrape configuration. Choose one when several systems share this Prometheus."
    return [
        data_source_variable("datasource", "Prometheus", "prometheus"),
        query_variable("job", "Job", of_job, "label_values(queue_system_build_info, job)"),
        query_variable("queue", "Queue", "Queues.", 'label_values(queue_system_queue_depth{job=~"$job"}, queue)'),
    ]


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": PROMETHEUS,
        "enable": True,
        "hide": False,
        "iconColor": RED,
        "expr": f"max by (alertname, severity, job, queue) ({FIRING})",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}} {{job}} {{queue}}",
        "tagKeys": "severity,job,queue",
        "step": "30s",
    }


def _place(sections: Sequence[tuple[str, Sequence[Panel]]]) -> list[Panel]:
    placed: list[Panel] = []
    y = 0
    for title, panels in sections:
        placed.append(_heading(title, y))
        x, y, height = 0, y + 1, 0
        for one in panels:
            size = one["gridPos"]
            if x + size["w"] > COLUMNS:
                x, y, height = 0, y + height, 0
            placed.append(one | {"gridPos": size | {"x": x, "y": y}})
            x, height = x + size["w"], max(height, size["h"])
        y += height
    return placed


def _heading(title: str, y: int) -> Panel:
    return {
        "id": zlib.crc32(f"row {title}".encode()) % 1_000_000 + 1,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        "panels": [],
    }


def _override(field: str, name: str, value: Any) -> dict[str, Any]:
    return {"matcher": {"id": "byName", "options": field}, "properties": [{"id": name, "value": value}]}


def _coloured(field: str, colour: str) -> dict[str, Any]:
    return _override(field, "color", {"mode": "fixed", "fixedColor": colour})


def _link(title: str, url: str) -> dict[str, Any]:
    return {
        "title": title,
        "type": "link",
        "icon": "doc",
        "tooltip": "",
        "url": url,
        "tags": [],
        "asDropdown": False,
        "targetBlank": True,
        "includeVars": False,
        "keepTime": False,
    }


def _between_dashboards() -> dict[str, Any]:
    return _link("Queue System", "") | {
        "type": "dashboards",
        "icon": "external link",
        "tags": [TAG],
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }
