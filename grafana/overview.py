"""The first page: is work being done, does it end well, how long does it take and wait (rate, errors, duration)."""

from __future__ import annotations

from typing import Any

from grafana.model import (
    FIRING,
    GREEN,
    GREY,
    ORANGE,
    OUTCOME_COLOURS,
    RED,
    YELLOW,
    bands,
    dashboard,
    nothing,
    quantiles,
    series,
    stat,
    steps,
    timeline,
    words,
)

FINISHED = "(sum(rate(@processed_total[$__rate_interval])) + sum(rate(@failed_total[$__rate_interval])))"
READY = 'sum(max by (queue, priority) (@queue_depth{state="ready"}))'
FOREVER = 1e9
TIME_TO_DRAIN = f"clamp_max(({READY} > 0) / ({FINISHED} or vector(0)), {FOREVER:g}) or {READY} * 0"

NOT_DRAINED = bands((FOREVER, None, "never: nothing is worked off", RED))


def time_to_drain(title: str, size: tuple[int, int]) -> dict[str, Any]:
    """How long the backlog would take; on two dashboards."""
    return stat(
        title,
        "How long the operations that are ready would take at the present rate of work, if no more came.",
        "QueueTooOld",
        "s",
        [(TIME_TO_DRAIN, "")],
        thresholds=steps(GREEN, (300, YELLOW), (1800, RED)),
        mappings=NOT_DRAINED,
        size=size,
    )


def build() -> dict[str, Any]:
    """The dashboard."""
    return dashboard(
        "queue-system-overview",
        "Overview",
        "Is work being done, does it end well, how long does it take and wait.",
        [("Now", _now()), ("Work", _work()), ("Waiting", _waiting()), ("Alerts", [_alerts()])],
    )


def _now() -> list[dict[str, Any]]:
    small = (3, 4)
    return [
        stat(
            "Finished",
            "Operations that ended, well or not, per second.",
            "QueueStalled",
            "ops",
            [(FINISHED, "")],
            size=small,
        ),
        stat(
            "Success",
            "Share of the operations that ended well, of those that ended. Retries in between do not count.",
            "FailureQueueGrowing",
            "percentunit",
            [(f"sum(rate(@processed_total[$__rate_interval])) / {FINISHED}", "")],
            thresholds=steps(RED, (0.95, YELLOW), (0.99, GREEN)),
            mappings=nothing("idle"),
            decimals=1,
            size=small,
        ),
        stat(
            "Ready",
            "Operations that are due and wait for a worker.",
            "QueueStalled",
            "short",
            [(READY, "")],
            size=small,
        ),
        stat(
            "Oldest ready",
            "Since when the operation that has waited longest is due.",
            "QueueTooOld",
            "s",
            [("max(@queue_oldest_age_seconds)", "")],
            thresholds=steps(GREEN, (60, YELLOW), (300, RED)),
            size=small,
        ),
        time_to_drain("Time to drain", small),
        stat(
            "Failures kept",
            "Operations that were given up and are kept, to be looked at and tried again.",
            "FailureQueueGrowing",
            "short",
            [("max(@failures)", "")],
            thresholds=steps(GREEN, (1, YELLOW), (100, RED)),
            size=small,
        ),
        stat(
            "Workers",
            "Processes whose worker tasks are alive.",
            "WorkersAbsent",
            "short",
            [("sum(@worker_tasks_alive > bool 0) or vector(0)", "")],
            thresholds=steps(RED, (1, GREEN)),
            mappings=words((0, "none", RED)),
            size=small,
        ),
        stat(
            "Alerts firing",
            "Alerts of this system that fire now; below is since when.",
            "QueueStalled",
            "short",
            [(f"count({FIRING}) or vector(0)", "")],
            thresholds=steps(GREEN, (1, RED)),
            background=True,
            size=small,
        ),
    ]


def _work() -> list[dict[str, Any]]:
    return [
        series(
            "Rates",
            "Operations per second. Enqueued is counted by the process that enqueues: it shows here when that process "
            "is scraped too. Enqueued above finished for long means that the backlog grows.",
            "QueueStalled",
            "ops",
            [
                ("sum(rate(@enqueued_total[$__rate_interval]))", "enqueued"),
                ("sum(rate(@attempts_started_total[$__rate_interval]))", "started"),
                ("sum(rate(@processed_total[$__rate_interval]))", "processed"),
                ("sum(rate(@retried_total[$__rate_interval]))", "retried"),
                ("sum(rate(@failed_total[$__rate_interval]))", "failed"),
            ],
            colours={"processed": GREEN, "retried": ORANGE, "failed": RED},
        ),
        series(
            "Outcomes of attempts",
            "How attempts end, per second. Exhausted found no free thread; abandoned had its lease taken or was given "
            "back by a stop.",
            "RetriesIncreasing",
            "ops",
            [("sum by (outcome) (rate(@attempts_total[$__rate_interval]))", "{{outcome}}")],
            stack=True,
            colours=OUTCOME_COLOURS,
        ),
        series(
            "Duration",
            "Time of an attempt, all outcomes together. A dot is an attempt whose trace was kept: click it for Jaeger.",
            "QueueTooOld",
            "s",
            quantiles("process_duration_seconds"),
            exemplars=True,
        ),
        series(
            "Attempts that ended badly",
            "Share of the attempts that did not succeed, by queue. At 10 % and rising, or above 25 %, the alert fires.",
            "RetriesIncreasing",
            "percentunit",
            [
                (
                    (
                        'sum by (queue) (rate(@attempts_total{outcome!="success"}[$__rate_interval])) '
                        "/ (sum by (queue) (rate(@attempts_total[$__rate_interval])) > 0)"
                    ),
                    "{{queue}}",
                )
            ],
            limits=[(0.1, YELLOW), (0.25, RED)],
            top=1,
        ),
    ]


def _waiting() -> list[dict[str, Any]]:
    return [
        series(
            "Wait",
            "Time from being due to the call of the processor; an intended delay is not waiting. The objective is 99 % "
            "within 30 s. A dot is an attempt whose trace was kept.",
            "QueueingSLOBurn",
            "s",
            quantiles("queue_wait_seconds"),
            exemplars=True,
            limits=[(30, RED)],
        ),
        series(
            "From accepted to ended",
            "Time from being accepted to the end, with all waiting, delays and retries.",
            "QueueingSLOBurn",
            "s",
            quantiles("end_to_end_seconds"),
            exemplars=True,
        ),
        series(
            "Depth",
            "Operations in Redis by state. Failed is what was given up and is kept.",
            "FailureQueueGrowing",
            "short",
            [("sum by (state) (max by (queue, priority, state) (@queue_depth))", "{{state}}")],
            stack=True,
            colours={"failed": RED, "in_flight": GREEN, "delayed": GREY},
        ),
        series(
            "Oldest ready, by queue",
            "Since when the operation that has waited longest is due, by queue. Above 5 minutes the alert fires.",
            "QueueTooOld",
            "s",
            [("max by (queue) (@queue_oldest_age_seconds)", "{{queue}}")],
            limits=[(300, RED)],
        ),
    ]


def _alerts() -> dict[str, Any]:
    return timeline(
        "Alerts over time",
        "When which alert fired. Nothing here is good news.",
        "QueueStalled",
        [(f"max by (alertname) ({FIRING})", "{{alertname}}")],
        words((1, "firing", RED)),
        size=(24, 6),
    )
