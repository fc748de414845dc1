"""The figures as one picture (SVG): who is faster at what, within five seconds.

Text stays text. The picture has a ground of its own, and follows the reader's light or dark preference.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from benchmarks.results import Results

OURS: Final = "Queue System"
WIDTH: Final = 960
_MARGIN, _GAP, _TOP = 24, 32, 84
_COLUMN: Final = (WIDTH - 2 * _MARGIN - _GAP) // 2
_NAME, _VALUE = 104, 78  # widths of the texts beside a bar
_BAR: Final = _COLUMN - _NAME - _VALUE
_ROW, _HEAD, _FOOT = 19, 44, 30
_CLIP: Final = 8.0  # times ours, where less is better: a longer bar is cut
_STYLE: Final = """
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2328}
.ground{fill:#ffffff;stroke:#d0d7de}.title{font-size:22px;font-weight:700}.sub,.limit,.note{fill:#59636e}
.sub{font-size:13px}.head{font-size:15px;font-weight:600}.name,.value{font-size:12px}
.value{stroke:#ffffff;stroke-width:3px;paint-order:stroke}.limit,.note{font-size:11px}
.us{fill:#0b5cd6;font-weight:700}.bar{fill:#b9c0c8}.bar.us{fill:#0b5cd6}.times{font-size:22px;font-weight:800;fill:#0b5cd6}
.times.behind{fill:#59636e}.line{stroke:#b35900;stroke-width:2;stroke-dasharray:4 3}.limit{fill:#9a4c00}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117;stroke:#30363d}.value{stroke:#0d1117}
.sub,.note,.times.behind{fill:#9198a1}.us,.times{fill:#6cb0ff}.bar{fill:#4b535d}.bar.us{fill:#3d8bfd}
.line{stroke:#e3892b}.limit{fill:#f0a04b}}
"""


@dataclass
class Panel:
    """One measurement: bars, ours among them, and the limit of the machine."""

    title: str
    bars: dict[str, float]
    unit: str = "a second"
    less_is_better: bool = False
    limit: float | None = None
    limit_name: str = ""
    order: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.order = sorted(self.bars, key=lambda name: self.bars[name], reverse=not self.less_is_better)

    @property
    def times(self) -> float | None:
        """How often ours is better than the best of the others; None without others."""
        others = [value for name, value in self.bars.items() if name != OURS]
        if not others or OURS not in self.bars:
            return None
        return min(others) / self.bars[OURS] if self.less_is_better else self.bars[OURS] / max(others)

    @property
    def full(self) -> float:
        """The value of a bar of full width. An outlier does not press the others flat."""
        if self.less_is_better:
            most = max(self.bars.values())
            return min(most, _CLIP * self.bars[OURS]) if OURS in self.bars else most
        return max([*self.bars.values(), self.limit or 0.0])

    @property
    def height(self) -> int:
        return _HEAD + _ROW * len(self.bars) + _FOOT


def draw(results: Results, path: str) -> None:
    """Write the picture."""
    pathlib.Path(path).write_text(svg(panels(results), results.machine))


def panels(results: Results) -> list[Panel]:
    """What is drawn: each measurement that has been made."""

    def of(measurement: str, figure: str = "per_second") -> dict[str, float]:
        ours = results.figure(measurement, "ours", figure)
        peers = results.peers(measurement, figure)
        return {OURS: ours, **peers} if ours is not None else {}

    sync = of("drain_sync")
    made = [
        Panel("No-ops done, async (or the system's best)", of("drain_100"), limit=results.limit("bare loop 100"),
              limit_name="bare loop, no queue"),
        Panel("No-ops done, sync, in threads or processes", sync, limit=results.limit("executor hop"),
              limit_name="one thread hop each"),
        Panel("Enqueued in bulk", of("bulk"), limit=results.limit("redis-py pipelined"),
              limit_name="redis-py pipelined"),
        Panel("Enqueued one at a time", of("enqueue"), limit=results.limit("redis-py round trip"),
              limit_name="redis-py round trip"),
        Panel("10 ms of waiting, 100 async at once", of("work_async"), limit=10_000.0, limit_name="10,000"),
        Panel("10 ms of waiting, 20 threads", of("work_sync"), limit=2_000.0, limit_name="2,000"),
        Panel("Idle worker: enqueue to start, median", of("latency", "p50_ms"), "milliseconds", less_is_better=True),
        Panel("CPU of the worker for each no-op", of("drain_100", "worker_us"), "microseconds", less_is_better=True),
    ]  # fmt: skip
    return [panel for panel in made if panel.bars]


def svg(drawn: Sequence[Panel], machine: str) -> str:
    """Two columns of panels."""
    parts: list[str] = []
    y = _TOP
    for left in range(0, len(drawn), 2):
        row = drawn[left : left + 2]
        for column, panel in enumerate(row):
            parts += _panel(panel, _MARGIN + column * (_COLUMN + _GAP), y)
        y += max(panel.height for panel in row)
    height = y + 20
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t">',
        f'<title id="t">{OURS} and other Python queues on Redis, side by side</title>',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
        _text(_MARGIN, 38, "title", f"{OURS} and other Python queues on Redis"),
        _text(_MARGIN, 60, "sub", "Operations a second, one worker. Large numbers: times the best of the others. "
              "Dashed: what this machine allows without a queue."),
    ]  # fmt: skip
    foot = [_text(_MARGIN, height - 14, "note", machine), "</svg>\n"]
    return "\n".join([*head, *parts, *foot])


def _panel(panel: Panel, x: int, y: int) -> list[str]:
    parts = [_text(x, y + 24, "head", panel.title)]
    if panel.times is not None:
        shown = f"{panel.times:.1f}x" if panel.times < 10 else f"{panel.times:.0f}x"
        kind = "times" if panel.times >= 1 else "times behind"
        parts.append(_text(x + _COLUMN, y + 26, kind, shown, anchor="end"))
    if panel.limit and not panel.less_is_better:
        parts += _limit(panel, x, y)
    for number, name in enumerate(panel.order):
        parts += _bar(panel, name, x, y + _HEAD + number * _ROW)
    if panel.less_is_better:
        note = f"{panel.unit}: shorter is better"
        parts.append(_text(x + _NAME, y + _HEAD + _ROW * len(panel.bars) + 15, "limit", note))
    return parts


def _bar(panel: Panel, name: str, x: int, y: int) -> list[str]:
    value = panel.bars[name]
    cut = value > panel.full
    width = max(2.0, _BAR * min(1.0, value / panel.full))
    us = " us" if name == OURS else ""
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return [
        _text(x + _NAME - 8, y + 12, f"name{us}", name, anchor="end"),
        f'<rect class="bar{us}" x="{x + _NAME}" y="{y + 2}" width="{width:.1f}" height="{_ROW - 5}" rx="2"/>',
        _text(x + _NAME + width + 6, y + 13, f"value{us}", shown + (" (cut)" if cut else "")),
    ]


def _limit(panel: Panel, x: int, y: int) -> list[str]:
    at = x + _NAME + _BAR * min(1.0, (panel.limit or 0.0) / panel.full)
    top, bottom = y + _HEAD - 2, y + _HEAD + _ROW * len(panel.bars) + 2
    label = f"{panel.limit_name}: {panel.limit:,.0f}" if panel.limit_name[0].isalpha() else f"limit {panel.limit_name}"
    return [
        f'<line class="line" x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}"/>',
        _text(at, bottom + 13, "limit", label, anchor="end" if at > x + _NAME + _BAR / 2 else "start"),
    ]


def _text(x: float, y: float, kind: str, text: str, *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
