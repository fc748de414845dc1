"""What is kept about an attempt that ended badly: enough to understand it without the worker's logs."""

from __future__ import annotations

import sys
import traceback
from types import FrameType
from typing import Final

import msgspec

from queue_system.outcome import ErrorInfo

MAX_MESSAGE: Final = 1000
MAX_TRACEBACK: Final = 8000
MAX_FRAMES: Final = 50  # of each exception of a chain, the innermost ones
_MAX_AWAITS: Final = 1000  # one within the other


class ProcessorRaisedError(RuntimeError):
    """A processor or callback raised what is no `Exception`: `error`, a ``SystemExit`` for example.

    Raised in its stead where that would end a task or the event loop. What is kept and told is the error itself.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the processor raised {_name(error)}")
        self.error = error


def describe_error(error: BaseException) -> ErrorInfo:
    """Class, message and traceback of an error, cut to 1,000 and 8,000 characters. Raises nothing, whatever it is."""
    raised = error.error if isinstance(error, ProcessorRaisedError) else error
    return ErrorInfo(_name(raised), _message(raised), _traceback(raised))


def describe_refusal(error: BaseException) -> ErrorInfo:
    """Class and message of the error for which a body was refused; cheap, for there may be thousands of them.

    Where in the worker that was says nothing, and a traceback takes longer than all the rest of a refusal.
    """
    return ErrorInfo(_name(error), _message(error))


def stack_of(ident: int) -> str:
    """Where the thread of that ident is now: files, lines and functions, no values; the innermost frames, at the end.

    Empty when there is no such thread. At most 8,000 characters.
    """
    frame = sys._current_frames().get(ident)  # noqa: SLF001  there is no other way to another thread's stack
    return "" if frame is None else _innermost(_clean("".join(traceback.format_stack(frame, limit=MAX_FRAMES))))


def stack_of_call(call: object) -> str:
    """Where a coroutine waits now, as in `stack_of`; empty for what is no coroutine, or has ended. Raises nothing: the
    call is what a processor returned, and may answer anything when it is asked for its frame.
    """  # noqa: D205
    try:
        return _innermost(_clean("".join(traceback.format_list(_frames_of_call(call)[-MAX_FRAMES:]))))
    except BaseException as broken:  # noqa: BLE001  without it, the attempt must still be decided
        return f"<no stack: {_name(broken)}>"


def _frames_of_call(call: object) -> list[traceback.FrameSummary]:
    lines: list[traceback.FrameSummary] = []
    for _ in range(_MAX_AWAITS):
        frame = getattr(call, "cr_frame", None) or getattr(call, "gi_frame", None) or getattr(call, "ag_frame", None)
        if not isinstance(frame, FrameType):
            break
        lines.append(traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        call = getattr(call, "cr_await", None) or getattr(call, "gi_yieldfrom", None) or getattr(call, "ag_await", None)
    return lines


def attempt_record(
    *, attempt: int, worker: str, started: float, ended: float, reason: str, error: ErrorInfo, headers: dict[str, str]
) -> bytes:
    """One line of an operation's history: JSON. Times in seconds, clock of Redis."""
    record = {
        "attempt": attempt,
        "worker": worker,
        "started": round(started, 3),
        "ended": round(ended, 3),
        "reason": reason,
        "error_type": error.type,
        "error": _cut(error.message, 200),
    }
    if headers:
        record["trace"] = headers.get("traceparent", "")
    return msgspec.json.encode(record)


def _name(error: BaseException) -> str:
    try:
        return _cut(str(type(error).__name__), MAX_MESSAGE)
    except BaseException:  # noqa: BLE001  its metaclass may have made it anything
        return "<no name>"


def _message(error: BaseException) -> str:
    try:
        return _cut(str(error), MAX_MESSAGE)
    except BaseException as broken:  # noqa: BLE001  a broken __str__ must not turn a failure into a loss
        return f"<no message: __str__ raised {_name(broken)}>"


def _traceback(error: BaseException) -> str:
    try:
        text = _clean("".join(traceback.format_exception(error, limit=-MAX_FRAMES)))
    except BaseException as broken:  # noqa: BLE001  as above
        return f"<no traceback: {_name(broken)}>"
    return _innermost(text)


def _innermost(text: str) -> str:
    """The end of a traceback: it says the most."""
    return text if len(text) <= MAX_TRACEBACK else f"...\n{text[-MAX_TRACEBACK:]}"


def _cut(text: str, limit: int) -> str:
    clean = _clean(text)
    return clean if len(clean) <= limit else f"{clean[:limit]}..."


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # lone surrogates have no JSON form
