"""One queue or processor: what goes wrong there, what is retried and given up, and its traces."""

from __future__ import annotations

from typing import Any

from grafana.model import (
    OUTCOME_COLOURS,
    RED,
    YELLOW,
    bars,
    dashboard,
    data_source_variable,
    heatmap,
    note,
    quantiles,
    query_variable,
    series,
    table,
    traces_url,
)

TRACES = """
- [Attempts that failed]({failed}), of the service named above
- [All attempts]({all})
- In the table, click a queue for the traces of that queue. On a graph, click a dot for the trace of that attempt.

An operation that was enqueued for now is one trace with its first attempt. A retry has a trace of its own, with a link
to the attempt before it and to the creation. A log line has `trace_id` too.
"""


def build() -> dict[str, Any]:
    """The dashboard."""
    query = 'label_values(queue_system_attempts_started_total{job=~"$job", queue=~"$queue"}, processor)'
    return dashboard(
        "queue-system-detail",
        "Queues and processors",
        "What goes wrong in one queue or processor, what is retried and given up, and its traces.",
        [
            ("By queue and processor", [_table()]),
            ("What goes wrong", _errors()),
            ("Time", _time()),
            ("Put away, and callbacks", _rest()),
            ("Traces", [_traces()]),
        ],
        extra=[
            query_variable("processor", "Processor", "Processors of the chosen queues.", query),
            data_source_variable("traces", "Jaeger", "jaeger"),
            _service(),
        ],
    )


def _service() -> dict[str, Any]:
    return {
        "type": "textbox",
        "name": "service",
        "label": "Service in Jaeger",
        "description": "The worker's OTEL_SERVICE_NAME.",
        "query": "queue-system",
        "current": {"selected": True, "text": "queue-system", "value": "queue-system"},
    }


def _table() -> dict[str, Any]:
    def per_pair(metric: str) -> str:
        return f"sum by (queue, processor) (increase(@{metric}[$__range]))"

    quantile = "histogram_quantile(0.95, sum by (queue, processor, le) (rate(@{}_bucket[$__range])))"
    done = per_pair('attempts_total{outcome="success"}')
    return table(
        "Queues and processors",
        "Sums over the chosen time; a worker that started or ended in it makes them fractional. Click a queue for its "
        "traces.",
        "RetriesIncreasing",
        [
            ("Attempts", "short", per_pair("attempts_total")),
            ("Succeeded", "percentunit", f"{done} / ({per_pair('attempts_total')} > 0)"),
            ("Retried", "short", per_pair("retried_total")),
            ("Failed", "short", per_pair("failed_total")),
            ("Timeouts", "short", per_pair("timeouts_total")),
            ("Duration p95", "s", quantile.format("process_duration_seconds")),
        ],
        labels=("queue", "processor"),
        sort="Failed",
        link=(
            "queue",
            "Traces of this queue in Jaeger",
            traces_url("messaging.destination.name=${__value.raw}"),
        ),
    )


def _errors() -> list[dict[str, Any]]:
    return [
        bars(
            "Top errors",
            "The most frequent errors of the chosen time, by processor and class; of all queues.",
            "FailureQueueGrowing",
            "short",
            [
                (
                    "topk(10, sum by (processor, error_type) (increase(@errors_total[$__range])) > 0)",
                    "{{processor}}: {{error_type}}",
                )
            ],
        ),
        series(
            "Outcomes",
            "How attempts of the chosen processors end, per second.",
            "RetriesIncreasing",
            "ops",
            [("sum by (outcome) (rate(@attempts_total[$__rate_interval]))", "{{outcome}}")],
            stack=True,
            colours=OUTCOME_COLOURS,
        ),
        series(
            "Retries by reason",
            "Attempts that ended badly and are followed by another, per second.",
            "RetriesIncreasing",
            "ops",
            [("sum by (reason) (rate(@retried_total[$__rate_interval]))", "{{reason}}")],
            stack=True,
        ),
        series(
            "Retry ratio",
            "Retries of all attempts, by queue. Above 25 %, or above 10 % and twice what it was, the alert fires.",
            "RetriesIncreasing",
            "percentunit",
            [
                (
                    (
                        "sum by (queue) (rate(@retried_total[$__rate_interval])) "
                        "/ (sum by (queue) (rate(@attempts_total[$__rate_interval])) > 0)"
                    ),
                    "{{queue}}",
                )
            ],
            limits=[(0.1, YELLOW), (0.25, RED)],
            top=1,
        ),
        series(
            "Failures by reason",
            "Operations given up, per second.",
            "FailureQueueGrowing",
            "ops",
            [("sum by (reason) (rate(@failed_total[$__rate_interval]))", "{{reason}}")],
            stack=True,
        ),
        series(
            "Failures kept, by queue",
            "Operations that were given up and are kept. A line that climbs is the guideline's growing failure queue.",
            "FailureQueueGrowing",
            "short",
            [('sum by (queue) (max by (queue, priority) (@queue_depth{state="failed"}))', "{{queue}}")],
            stack=True,
        ),
        series(
            "Timeouts",
            "Time limits that were reached: of one attempt, or of the operation in all.",
            "RetriesIncreasing",
            "ops",
            [("sum by (processor, kind) (rate(@timeouts_total[$__rate_interval]))", "{{processor}}, {{kind}}")],
        ),
        series(
            "Failed without an attempt",
            "Operations given up without being tried again: their time was over, their processor is not known, or "
            "their worker died too often.",
            "FailureQueueGrowing",
            "ops",
            [("sum by (queue) (rate(@failed_without_attempt_total[$__rate_interval]))", "{{queue}}")],
        ),
    ]


def _time() -> list[dict[str, Any]]:
    return [
        series(
            "Duration p95 by processor",
            "Time within which 95 % of the attempts ended. A dot is an attempt whose trace was kept.",
            "QueueTooOld",
            "s",
            [
                (
                    (
                        "histogram_quantile(0.95, "
                        "sum by (le, processor) (rate(@process_duration_seconds_bucket[$__rate_interval])))"
                    ),
                    "{{processor}}",
                )
            ],
            exemplars=True,
        ),
        heatmap(
            "Durations",
            "How attempts spread over durations: two bands are two kinds of work.",
            "QueueTooOld",
            "s",
            "sum by (le) (increase(@process_duration_seconds_bucket[$__rate_interval]))",
        ),
        series(
            "Wait p95 by queue",
            "Time within which 95 % of the operations were begun, from being due.",
            "QueueingSLOBurn",
            "s",
            [
                (
                    "histogram_quantile(0.95, sum by (le, queue) (rate(@queue_wait_seconds_bucket[$__rate_interval])))",
                    "{{queue}}",
                )
            ],
            exemplars=True,
        ),
        series(
            "Started by processor",
            "Calls of a processor per second.",
            "QueueStalled",
            "ops",
            [("sum by (processor) (rate(@attempts_started_total[$__rate_interval]))", "{{processor}}")],
            stack=True,
        ),
        series(
            "Depth by queue and state",
            "Operations in Redis.",
            "QueueStalled",
            "short",
            [("sum by (queue, state) (max by (queue, priority, state) (@queue_depth))", "{{queue}}, {{state}}")],
        ),
        series(
            "Ready by priority",
            "Operations that are due and wait, by priority: high goes before normal, normal before low.",
            "QueueTooOld",
            "short",
            [('sum by (priority) (max by (queue, priority) (@queue_depth{state="ready"}))', "{{priority}}")],
            stack=True,
        ),
    ]


def _rest() -> list[dict[str, Any]]:
    return [
        series(
            "Enqueued by priority",
            "Operations accepted per second, counted by the process that enqueues.",
            "QueueStalled",
            "ops",
            [("sum by (queue, priority) (rate(@enqueued_total[$__rate_interval]))", "{{queue}}, {{priority}}")],
            stack=True,
        ),
        series(
            "Duplicates, rejected and given back",
            "Per second: operations refused as duplicates; not understood or not allowed (they are in the system "
            "errors); given back without burning an attempt, by reason.",
            "QueueStalled",
            "ops",
            [
                ("sum(rate(@deduplicated_total[$__rate_interval]))", "duplicates"),
                ("sum(rate(@rejected_total[$__rate_interval]))", "rejected"),
                ("sum by (reason) (rate(@requeued_total[$__rate_interval]))", "given back: {{reason}}"),
            ],
            colours={"rejected": RED},
        ),
        series(
            "Callbacks",
            "Attempts of callbacks per second by how they ended, and callbacks given up.",
            "FailureQueueGrowing",
            "ops",
            [
                ("sum by (outcome) (rate(@callbacks_total[$__rate_interval]))", "{{outcome}}"),
                ("sum(rate(@callbacks_failed_total[$__rate_interval]))", "given up"),
            ],
            colours=OUTCOME_COLOURS | {"given up": RED},
        ),
        series(
            "Time in callbacks",
            "Time of an attempt of a callback.",
            "QueueTooOld",
            "s",
            quantiles("callback_duration_seconds"),
            exemplars=True,
        ),
    ]


def _traces() -> dict[str, Any]:
    content = TRACES.strip().format(failed=traces_url("error=true"), all=traces_url("messaging.system=queue_system"))
    return note("Traces in Jaeger", "Searches in Jaeger.", "TelemetryDropped", content, size=(24, 6))
