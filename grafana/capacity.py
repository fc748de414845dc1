"""The scaling guidelines: their numbers as thresholds, and in words what to do."""

from __future__ import annotations

from typing import Any

from grafana.model import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    YELLOW,
    bands,
    dashboard,
    gauge,
    note,
    nothing,
    quantiles,
    series,
    stat,
    steps,
    words,
)
from grafana.overview import FINISHED, READY, time_to_drain

SHRINK_BELOW, SCALE_OUT_ABOVE = 0.5, 0.8
TASKS_BUSY_ABOVE = 0.9
EXHAUSTION_ABOVE = 0.05
GOAL = 0.65
"""The utilization of the pool that is aimed at: the middle between shrinking and scaling out."""

TASKS_GOAL = 0.75

DRAIN_SECONDS = 600

# The windows are those of the alerts, so that a panel and its alert say the same.
UTILIZATION = (
    "sum by (job) (rate(@thread_pool_busy_seconds_total[5m]))"
    " / sum by (job) (rate(@thread_pool_capacity_seconds_total[5m]))"
)
SATURATED = "avg by (job) (rate(@thread_pool_saturated_seconds_total[10m]))"
TASKS_BUSY = "avg by (job) (rate(@worker_tasks_saturated_seconds_total[10m]))"
EXHAUSTION = (
    "sum by (job) (rate(@thread_pool_exhaustion_total[5m]))"
    " / (sum by (job) (rate(@thread_pool_submissions_total[5m])) > 0)"
)
ENOUGH_SUBMISSIONS = "sum by (job) (increase(@thread_pool_submissions_total[5m])) >= 20"
NOTHING_SUBMITTED = "sum by (job) (rate(@thread_pool_submissions_total[5m])) * 0"

PEAK_UTILIZATION = f"max_over_time(({UTILIZATION})[1h:15s])"
PEAK_THREADS = "max_over_time((sum by (job) (rate(@thread_pool_busy_seconds_total[5m])))[1h:15s])"
PEAK_TASKS = "max_over_time((sum by (job) (rate(@worker_task_busy_seconds_total[5m])))[1h:15s])"
INSTANCES = "count by (job) (@worker_tasks)"

KEEP, SHRINK, ADD_TASKS, SCALE_OUT = range(4)
# The first that holds wins: `or` adds only jobs that have no answer yet.
NEXT_STEP = f"""
    ({UTILIZATION} > {SCALE_OUT_ABOVE}) * 0 + {SCALE_OUT}
    or (({EXHAUSTION} > {EXHAUSTION_ABOVE}) and on (job) {ENOUGH_SUBMISSIONS}) * 0 + {SCALE_OUT}
    or ({TASKS_BUSY} > {TASKS_BUSY_ABOVE}) * 0 + {ADD_TASKS}
    or (({PEAK_UTILIZATION} < {SHRINK_BELOW}) and on (job) avg by (job) (@thread_pool_size) > 1) * 0 + {SHRINK}
    or {INSTANCES} * 0 + {KEEP}
"""

ARRIVING = f"clamp_min({FINISHED} + deriv(({READY})[15m:15s]), 0)"
TO_DRAIN = f"ceil(({ARRIVING} + {READY} / {DRAIN_SECONDS}) / ({FINISHED} > 0) * count(@worker_tasks))"

GUIDELINES = """
| What is measured | Limit | What to do |
|---|---|---|
| **Utilization of the thread pool**, over 5 min | below **50 %** | give each worker fewer threads |
| | above **80 %** | scale out: add worker instances |
| **All worker tasks busy**, over 10 min | above **90 %** | add worker tasks; with the pool above 80 %: scale out |
| **Exhaustion**: no free thread in 100 ms, over 5 min | above **5 %** | scale out; look for slow processors first |

Prefer more instances to more threads in one: a process has one interpreter lock and one fate. The pool's share counts
for sync processors, the tasks' share for async ones.
"""


def build() -> dict[str, Any]:
    """The dashboard."""
    return dashboard(
        "queue-system-capacity",
        "Capacity and scaling",
        "Whether to shrink the pool, add worker tasks or scale out, and to how many.",
        [
            ("What to do", [*_advice(), _guidelines()]),
            ("The guidelines as numbers", _gauges()),
            ("Recommended", _recommended()),
            ("Threads", _threads()),
            ("Worker tasks and load", _tasks()),
        ],
    )


def _advice() -> list[dict[str, Any]]:
    wide = (6, 5)
    return [
        stat(
            "Next step",
            "The one thing to do now: scaling out comes before adding tasks, that before shrinking. The pool is only "
            "called too large when its utilization has stayed below 50 % for the last hour.",
            "ThreadPoolScaleOut",
            "none",
            [(NEXT_STEP, "{{job}}")],
            mappings=words(
                (KEEP, "Nothing: it fits", GREEN),
                (SHRINK, "Shrink the pool", BLUE),
                (ADD_TASKS, "Add worker tasks", ORANGE),
                (SCALE_OUT, "Scale out", RED),
            ),
            background=True,
            size=wide,
        ),
        stat(
            "Thread pool",
            "What the pool's utilization of the last 5 minutes means: below 50 % there are more threads than needed, "
            "above 80 % more instances are needed.",
            "ThreadPoolUnderutilized",
            "none",
            [(UTILIZATION, "{{job}}")],
            mappings=bands(
                (SHRINK_BELOW, SCALE_OUT_ABOVE, "Right size", GREEN),
                (None, SHRINK_BELOW, "Below 50 %: shrink the pool", BLUE),
                (SCALE_OUT_ABOVE, None, "Above 80 %: scale out", RED),
            ),
            size=wide,
        ),
        stat(
            "Worker tasks",
            "Whether async operations wait for a worker task: all busy for more than 90 % of the last 10 minutes.",
            "AddWorkerTasks",
            "none",
            [(TASKS_BUSY, "{{job}}")],
            mappings=bands(
                (None, TASKS_BUSY_ABOVE, "Enough tasks", GREEN),
                (TASKS_BUSY_ABOVE, None, "Above 90 %: add worker tasks", ORANGE),
            ),
            size=wide,
        ),
        stat(
            "Exhaustion",
            "Whether sync operations find a thread: more than 5 % of the last 5 minutes' did not within 100 ms.",
            "ThreadPoolExhaustion",
            "none",
            [(f"{EXHAUSTION} or {NOTHING_SUBMITTED}", "{{job}}")],
            mappings=bands(
                (None, EXHAUSTION_ABOVE, "Threads are found", GREEN),
                (EXHAUSTION_ABOVE, None, "Above 5 %: scale out", RED),
            ),
            size=wide,
        ),
    ]


def _guidelines() -> dict[str, Any]:
    return note(
        "The guidelines",
        "What the limits are and what to do beyond them.",
        "ThreadPoolScaleOut",
        GUIDELINES.strip(),
        size=(24, 9),
    )


def _gauges() -> list[dict[str, Any]]:
    return [
        gauge(
            "Utilization now",
            "Busy thread-seconds of those there are, over 5 minutes. Aim between 50 and 80 %.",
            "ThreadPoolScaleOut",
            "percentunit",
            [(UTILIZATION, "{{job}}")],
            steps(BLUE, (SHRINK_BELOW, GREEN), (SCALE_OUT_ABOVE, RED)),
        ),
        gauge(
            "All tasks busy now",
            "Share of the last 10 minutes in which every worker task held an operation, averaged over instances.",
            "AddWorkerTasks",
            "percentunit",
            [(TASKS_BUSY, "{{job}}")],
            steps(GREEN, (TASKS_BUSY_ABOVE, ORANGE)),
        ),
        gauge(
            "Exhaustion now",
            "Sync operations that found no free thread within 100 ms, of all handed to the pool in 5 minutes. The dial "
            "ends at 20 %.",
            "ThreadPoolExhaustion",
            "percentunit",
            [(f"{EXHAUSTION} or {NOTHING_SUBMITTED}", "{{job}}")],
            steps(GREEN, (EXHAUSTION_ABOVE, RED)),
            top=0.2,
        ),
        gauge(
            "All threads busy now",
            "Share of the last 10 minutes in which every thread was busy. Long jobs can fill the pool for long without "
            "one exhaustion, since a worker whose pool is full claims no more.",
            "ThreadPoolSaturated",
            "percentunit",
            [(SATURATED, "{{job}}")],
            steps(GREEN, (0.5, RED)),
        ),
    ]


def _recommended() -> list[dict[str, Any]]:
    third = (5, 5)
    aim = "so that the busiest 5 minutes of the last hour would use 65 % (the middle of 50 and 80 %)"
    return [
        stat(
            "Threads of an instance",
            f"Threads that each instance should have, with as many instances as now, {aim}. To grow, prefer instances.",
            "ThreadPoolUnderutilized",
            "short",
            [
                ("avg by (job) (@thread_pool_size)", "{{job}} now"),
                (f"clamp_min(ceil({PEAK_THREADS} / {GOAL} / {INSTANCES}), 1)", "{{job}} recommended"),
            ],
            decimals=0,
            size=third,
        ),
        stat(
            "Instances for the threads",
            f"Instances (replicas) that the sync work needs, with as many threads each as now, {aim}.",
            "ThreadPoolScaleOut",
            "short",
            [
                (INSTANCES, "{{job}} now"),
                (
                    f"clamp_min(ceil({PEAK_THREADS} / {GOAL} / avg by (job) (@thread_pool_size)), 1)",
                    "{{job}} recommended",
                ),
            ],
            decimals=0,
            size=third,
        ),
        stat(
            "Worker tasks of an instance",
            "Worker tasks that each instance should have for the busiest 5 minutes of the last hour to use 75 %.",
            "AddWorkerTasks",
            "short",
            [
                ("avg by (job) (@worker_tasks)", "{{job}} now"),
                (f"clamp_min(ceil({PEAK_TASKS} / {TASKS_GOAL} / {INSTANCES}), 1)", "{{job}} recommended"),
            ],
            decimals=0,
            size=third,
        ),
        time_to_drain("Time to drain the backlog", (4, 5)),
        stat(
            "Instances to drain in 10 min",
            "Instances (replicas) that would take in what arrives and work off what is ready within 10 minutes, each "
            "as fast as those of now.",
            "QueueTooOld",
            "short",
            [(TO_DRAIN, "")],
            mappings=nothing("nothing is worked off"),
            decimals=0,
            size=third,
        ),
    ]


def _threads() -> list[dict[str, Any]]:
    return [
        series(
            "Utilization",
            "Busy thread-seconds of those there are, integrated, so that long jobs show while they run. Below 50 %: "
            "consider fewer threads. Above 80 %: consider more instances.",
            "ThreadPoolScaleOut",
            "percentunit",
            [
                (
                    (
                        "sum by (job, instance) (rate(@thread_pool_busy_seconds_total[$__rate_interval])) "
                        "/ sum by (job, instance) (rate(@thread_pool_capacity_seconds_total[$__rate_interval]))"
                    ),
                    "{{instance}}",
                ),
                ("avg by (job) (@thread_pool_utilization_ratio)", "{{job}}, as the workers report it"),
            ],
            limits=[(SHRINK_BELOW, BLUE), (SCALE_OUT_ABOVE, RED)],
            top=1,
        ),
        series(
            "Exhaustion rate",
            "Exhaustions of all sync operations handed to the pool. Above 5 % for 5 minutes, with at least 20 "
            "operations, the alert fires.",
            "ThreadPoolExhaustion",
            "percentunit",
            [
                (
                    (
                        "sum by (job) (rate(@thread_pool_exhaustion_total[$__rate_interval])) "
                        "/ (sum by (job) (rate(@thread_pool_submissions_total[$__rate_interval])) > 0)"
                    ),
                    "{{job}}",
                )
            ],
            limits=[(EXHAUSTION_ABOVE, RED)],
        ),
        series(
            "Threads in use",
            "Threads there are, those that are busy, operations that wait for one, and those busy beyond their "
            "limit (they cannot be stopped, and count as busy).",
            "AbandonedThreads",
            "short",
            [
                ("sum(@thread_pool_size)", "size"),
                ("sum(@thread_pool_active)", "busy"),
                ("sum(@thread_pool_waiting)", "waiting for a thread"),
                ("sum(@thread_pool_abandoned)", "beyond their limit"),
                ("sum(@worker_tasks_abandoned)", "tasks that do not heed their cancellation"),
            ],
            colours={
                "size": GREY,
                "busy": GREEN,
                "waiting for a thread": YELLOW,
                "beyond their limit": RED,
                "tasks that do not heed their cancellation": RED,
            },
        ),
        series(
            "Wait for a thread",
            "Time from the hand-over to the pool to the start in a thread. Beyond 100 ms it is an exhaustion.",
            "ThreadPoolExhaustion",
            "s",
            quantiles("thread_pool_wait_seconds"),
            exemplars=True,
            limits=[(0.1, RED)],
        ),
    ]


def _tasks() -> list[dict[str, Any]]:
    return [
        series(
            "All worker tasks busy",
            "Share of the time in which every worker task of an instance held an operation. Above 90 %: more tasks.",
            "AddWorkerTasks",
            "percentunit",
            [
                (
                    "avg by (job, instance) (rate(@worker_tasks_saturated_seconds_total[$__rate_interval]))",
                    "{{instance}}",
                )
            ],
            limits=[(TASKS_BUSY_ABOVE, ORANGE)],
            top=1,
        ),
        series(
            "Worker tasks in use",
            "Worker tasks there should be, those that are alive, and how many are busy: now, and on average.",
            "WorkerTasksMissing",
            "short",
            [
                ("sum(@worker_tasks)", "configured"),
                ("sum(@worker_tasks_alive)", "alive"),
                ("sum(@worker_tasks_busy)", "busy"),
                ("sum(rate(@worker_task_busy_seconds_total[$__rate_interval]))", "busy on average"),
            ],
            colours={"configured": GREY, "alive": GREEN},
        ),
        series(
            "Submissions to the pool",
            "Sync operations handed to the pool per second, by instance, and exhaustions.",
            "ThreadPoolSaturated",
            "ops",
            [
                ("sum by (instance) (rate(@thread_pool_submissions_total[$__rate_interval]))", "{{instance}}"),
                ("sum(rate(@thread_pool_exhaustion_total[$__rate_interval]))", "exhausted"),
            ],
            colours={"exhausted": RED},
        ),
        series(
            "Backlog",
            "Operations that are due and wait for a worker, by queue.",
            "QueueStalled",
            "short",
            [('sum by (queue) (max by (queue, priority) (@queue_depth{state="ready"}))', "{{queue}}")],
            stack=True,
        ),
    ]
