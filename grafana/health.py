"""What the queue stands on: Redis, leases, the workers themselves, and telemetry, with sums that must read 0."""

from __future__ import annotations

from typing import Any

from grafana.model import (
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    dashboard,
    nothing,
    series,
    stat,
    steps,
    table,
    timeline,
    words,
)

ZERO = steps(GREEN, (1, RED))
# Abandoned attempts have no result, and of what is given up some was not tried again: neither is in both sums.
WELL = 'sum(@attempts_total{outcome="success"}) - sum(@processed_total)'
BADLY = (
    'sum(@attempts_total{outcome!~"success|abandoned"})'
    " - (sum(@retried_total) + sum(@failed_total) - sum(@failed_without_attempt_total))"
)
# Counters are read one after the other while work goes on: what 50 ms of work make, or what does not stay, is none.
LASTING = (
    f"min_over_time(clamp_min(abs({WELL}) + abs({BADLY})"
    " - 0.05 * sum(rate(@attempts_total[$__rate_interval])), 0)[2m:15s])"
)
LOST = "sum(increase(@spans_dropped_total[$__range])) / (sum(increase(@spans_ended_total[$__range])) > 0)"
HEARTBEAT = "time() - @worker_heartbeat_timestamp_seconds"
BREAKER = 'max by (breaker) (@circuit_breaker_state{state="open"} * 2 or @circuit_breaker_state{state="half_open"})'
BREAKER_WORDS = words((0, "closed", GREEN), (1, "half open", YELLOW), (2, "open", RED))


def build() -> dict[str, Any]:
    """The dashboard."""
    return dashboard(
        "queue-system-dependencies",
        "Dependencies and telemetry",
        "Redis, the breaker, leases, the workers themselves, lost spans, and the sums that must read 0.",
        [
            ("Now", _now()),
            ("Redis", _redis()),
            ("Workers and leases", _workers()),
            ("Must read 0", _zero()),
            ("Telemetry", _telemetry()),
        ],
    )


def _now() -> list[dict[str, Any]]:
    small = (3, 4)
    return [
        stat(
            "Redis",
            "Whether Redis answered the last scrape of every process.",
            "RedisErrors",
            "none",
            [("min(@collector_up)", "")],
            mappings=[*words((0, "away", RED), (1, "answers", GREEN)), *nothing("no process", RED)],
            background=True,
            size=small,
        ),
        stat(
            "Breaker",
            "The worst state of the circuit breakers before Redis.",
            "CircuitOpen",
            "none",
            [(f"max({BREAKER})", "")],
            mappings=BREAKER_WORDS,
            background=True,
            size=small,
        ),
        stat(
            "Unaccounted",
            "Operations accepted, less those waiting, in flight and ended. Anything but 0 is a defect.",
            "UnaccountedOperations",
            "short",
            [("max(abs(@unaccounted_operations))", "")],
            thresholds=ZERO,
            background=True,
            size=small,
        ),
        stat(
            "Conservation",
            "What attempts and results have differed by for 2 minutes, beyond what 50 ms of work make: a scrape reads "
            "one counter after the other. Anything but 0 is a defect of the counting.",
            "UnaccountedOperations",
            "short",
            [(LASTING, "")],
            thresholds=ZERO,
            decimals=0,
            background=True,
            size=small,
        ),
        stat(
            "Oldest heartbeat",
            "Since when the worker that is most behind has not reached Redis.",
            "HeartbeatStale",
            "s",
            [(f"max({HEARTBEAT})", "")],
            thresholds=steps(GREEN, (30, YELLOW), (60, RED)),
            decimals=0,
            size=small,
        ),
        stat(
            "Spans lost",
            "Share of the spans of the chosen time that never reached the collector.",
            "TelemetryDropped",
            "percentunit",
            [(LOST, "")],
            thresholds=steps(GREEN, (0.001, YELLOW), (0.05, RED)),
            mappings=nothing("no spans"),
            decimals=1,
            size=small,
        ),
        stat(
            "System errors",
            "Entries that were not understood or not allowed and are kept to be looked at.",
            "FailureQueueGrowing",
            "short",
            [("max(@system_errors)", "")],
            thresholds=steps(GREEN, (1, YELLOW)),
            size=small,
        ),
        stat(
            "Scraped",
            "Share of the targets of these jobs that answered Prometheus.",
            "WorkersAbsent",
            "percentunit",
            [('avg(up{job=~"$job"})', "")],
            thresholds=steps(RED, (1, GREEN)),
            decimals=0,
            size=small,
        ),
    ]


def _redis() -> list[dict[str, Any]]:
    return [
        series(
            "Round trips",
            "Time of a call to Redis: claim takes work, settle writes results.",
            "RedisErrors",
            "s",
            [
                (
                    (
                        f"histogram_quantile({q}, "
                        "sum by (le, op) (rate(@redis_command_duration_seconds_bucket[$__rate_interval])))"
                    ),
                    f"{{{{op}}}} {name}",
                )
                for q, name in (("0.5", "p50"), ("0.99", "p99"))
            ],
        ),
        series(
            "Calls",
            "Calls to Redis per second.",
            "RedisErrors",
            "ops",
            [("sum by (op) (rate(@redis_command_duration_seconds_count[$__rate_interval]))", "{{op}}")],
        ),
        series(
            "Errors of Redis",
            "Calls that failed, per second, by kind. Above 0.1 for 5 minutes the alert fires.",
            "RedisErrors",
            "ops",
            [("sum by (op, kind) (rate(@redis_errors_total[$__rate_interval]))", "{{op}}, {{kind}}")],
            limits=[(0.1, RED)],
        ),
        timeline(
            "Circuit breaker",
            "Open: calls to Redis are not even tried, until a trial call succeeds.",
            "CircuitOpen",
            [(BREAKER, "{{breaker}}")],
            BREAKER_WORDS,
        ),
        series(
            "Reading the queue's state",
            "How long Redis took to answer a scrape, by instance.",
            "RedisErrors",
            "s",
            [("max by (instance) (@collector_duration_seconds)", "{{instance}}")],
        ),
        series(
            "Redis answers the scrape",
            "1 while Redis answered, by instance; while it does not, the depths have gaps.",
            "RedisErrors",
            "bool_yes_no",
            [("min by (instance) (@collector_up)", "{{instance}}")],
            top=1,
        ),
    ]


def _workers() -> list[dict[str, Any]]:
    return [
        series(
            "Reclaimed and lost leases",
            "Per second: leases taken back from workers that are gone; times put right after Redis's clock was ahead; "
            "leases of a living worker that others took; outcomes refused for that.",
            "Reclaimed",
            "ops",
            [
                ("sum(rate(@reclaimed_total[$__rate_interval]))", "reclaimed"),
                ("sum(rate(@clock_corrected_total[$__rate_interval]))", "put right"),
                ("sum(rate(@leases_lost_total[$__rate_interval]))", "lost"),
                ("sum(rate(@stale_acks_total[$__rate_interval]))", "outcomes refused"),
            ],
            colours={"lost": ORANGE, "outcomes refused": RED},
        ),
        series(
            "Failures of worker tasks",
            "Loops of the worker that raised and were started again, over the interval, by which.",
            "WorkerTaskFailures",
            "short",
            [("sum by (reason) (increase(@worker_task_failures_total[$__rate_interval]))", "{{reason}}")],
            stack=True,
        ),
        series(
            "Drains",
            "Workers that began to drain, over the interval, by why: told to, threads that never return, or a limit.",
            "AbandonedThreads",
            "short",
            [("sum by (reason) (increase(@worker_drains_total[$__rate_interval]))", "{{reason}}")],
            stack=True,
        ),
        series(
            "Heartbeat",
            "Since when each worker has not reached Redis. Above 60 s the alert fires.",
            "HeartbeatStale",
            "s",
            [(HEARTBEAT, "{{instance}}")],
            limits=[(60, RED)],
        ),
        series(
            "Event loop lag",
            "How late the event loop is: a processor that blocks it (sync work in an async function) shows here.",
            "HeartbeatStale",
            "s",
            [("max by (instance) (@event_loop_lag_seconds)", "{{instance}}")],
        ),
    ]


def _zero() -> list[dict[str, Any]]:
    return [
        series(
            "Conservation over time",
            "Attempts that succeeded less operations processed; the other attempts less what was retried and given up. "
            "Both must read 0; a few that do not add up are a scrape reading one counter after the other under load.",
            "UnaccountedOperations",
            "short",
            [(WELL, "succeeded - processed"), (BADLY, "ended badly - (retried + failed)")],
            bottom=None,
        ),
        series(
            "Unaccounted operations",
            "Operations accepted, less those waiting, in flight and ended: must read 0, always.",
            "UnaccountedOperations",
            "short",
            [("max by (job) (@unaccounted_operations)", "{{job}}")],
            bottom=None,
        ),
    ]


def _telemetry() -> list[dict[str, Any]]:
    return [
        series(
            "Spans",
            "Spans per second: ended, taken by the collector, lost.",
            "TelemetryDropped",
            "ops",
            [
                ("sum(rate(@spans_ended_total[$__rate_interval]))", "ended"),
                ("sum(rate(@spans_exported_total[$__rate_interval]))", "exported"),
                ("sum(rate(@spans_dropped_total[$__rate_interval]))", "lost"),
            ],
            colours={"exported": GREEN, "lost": RED},
        ),
        series(
            "Listeners that raised",
            "Failures of the listeners that feed metrics, spans and logs, over the interval; work is not touched.",
            "TelemetryDropped",
            "short",
            [("sum by (listener) (increase(@telemetry_failures_total[$__rate_interval]))", "{{listener}}")],
        ),
        table(
            "Versions",
            "What runs where.",
            "WorkersAbsent",
            [("Processes", "short", "count by (job, instance, version, python) (@build_info)")],
            labels=("job", "instance", "version", "python"),
            sort="instance",
            size=(24, 6),
        ),
    ]
