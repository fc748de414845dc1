import json

import pytest

from queue_system.outcome import ErrorInfo
from queue_system.runtime.incident import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    ProcessorRaisedError,
    attempt_record,
    describe_error,
    describe_refusal,
    stack_of_call,
)


def raised(error: BaseException, *, depth: int = 0) -> BaseException:
    """The error with a traceback: raised by `innermost`, below so many other frames."""

    def innermost():
        raise error

    def descend(levels):
        return innermost() if levels == 0 else other(levels - 1)

    def other(levels):  # two functions in turn: equal frames in a row are summed up
        return innermost() if levels == 0 else descend(levels - 1)

    try:
        descend(depth)
    except BaseException as caught:  # noqa: BLE001  that is what is asked for
        return caught


class Broken(Exception):  # noqa: N818
    def __str__(self):
        raise OSError("no text")


def test_an_error_is_kept_with_its_class_message_and_place():
    info = describe_error(raised(LookupError("no such user")))
    assert (info.type, info.message) == ("LookupError", "no such user")
    assert info.traceback.startswith("Traceback (most recent call last):\n")
    assert info.traceback.endswith("LookupError: no such user\n")
    assert "in innermost" in info.traceback


def test_the_cause_is_kept_too():
    error = RuntimeError("outer")
    error.__cause__ = raised(KeyError("inner"))
    traceback = describe_error(raised(error)).traceback
    assert "KeyError: 'inner'" in traceback
    assert "direct cause" in traceback


@pytest.mark.parametrize("depth", [10, 45, 60, 400])
def test_the_innermost_frame_is_never_cut(depth):
    info = describe_error(raised(ValueError("deep"), depth=depth))
    assert "in innermost" in info.traceback
    assert len(info.traceback) <= MAX_TRACEBACK + 4


def test_long_texts_are_cut_to_their_bounds():
    info = describe_error(raised(ValueError("x" * 100_000)))
    assert info.message == "x" * MAX_MESSAGE + "..."
    assert info.traceback == "...\n" + "x" * (MAX_TRACEBACK - 1) + "\n"


@pytest.mark.parametrize("text", ["\ud800 half", "file \udcff", "\x00"])
def test_every_text_has_a_json_form(text):
    info = describe_error(raised(ValueError(text)))
    for kept in (info.message, info.traceback):
        assert kept.encode()
    assert "half" in info.message or "half" not in text


def test_an_error_whose_text_cannot_be_had_is_still_described():
    info = describe_error(raised(Broken()))
    assert info.type == "Broken"
    assert "__str__ raised OSError" in info.message
    assert info.traceback


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ExceptionGroup("g", [ValueError("a")])])
def test_any_error_can_be_described(error):
    assert describe_error(raised(error)).type == type(error).__name__


def record(**fields) -> dict:
    given = {
        "attempt": 2,
        "worker": "w",
        "started": 100.12345,
        "ended": 101.0,
        "reason": "error",
        "error": ErrorInfo("ValueError", "no", "a traceback that is kept elsewhere"),
        "headers": {},
    }
    return json.loads(attempt_record(**given | fields))


def test_a_record_of_an_attempt():
    assert record() == {
        "attempt": 2,
        "worker": "w",
        "started": 100.123,
        "ended": 101.0,
        "reason": "error",
        "error_type": "ValueError",
        "error": "no",
    }


def test_a_record_has_the_trace_when_there_is_one():
    assert record(headers={"traceparent": "00-a-b-01"})["trace"] == "00-a-b-01"
    assert record(headers={"baggage": "x"})["trace"] == ""


def test_a_record_is_one_short_line():
    line = attempt_record(
        attempt=1, worker="w", started=0, ended=0, reason="r", error=ErrorInfo("E", "a\nb" * 999), headers={}
    )
    assert b"\n" not in line
    assert len(line) < 400


def test_a_refusal_is_described_without_a_traceback():
    """Thousands may come at once, and the frames are always the worker's own."""
    error = raised(ValueError("x" * (MAX_MESSAGE + 1)))
    assert describe_refusal(error) == ErrorInfo("ValueError", "x" * MAX_MESSAGE + "...")
    assert describe_refusal(Broken()).message == "<no message: __str__ raised OSError>"


class Unprintable(Exception):  # noqa: N818
    def __str__(self):
        raise SystemExit(7)

    @property
    def __notes__(self):
        raise KeyboardInterrupt


def test_whatever_an_error_raises_when_it_is_looked_at_it_is_kept():
    info = describe_error(raised(Unprintable()))
    assert (info.type, info.message) == ("Unprintable", "<no message: __str__ raised SystemExit>")
    assert info.traceback == "<no traceback: KeyboardInterrupt>"
    assert describe_refusal(Unprintable()).message == "<no message: __str__ raised SystemExit>"


def test_what_stands_for_an_error_is_kept_as_that_error():
    info = describe_error(ProcessorRaisedError(raised(SystemExit(3))))
    assert (info.type, info.message) == ("SystemExit", "3")
    assert "in innermost" in info.traceback


class _Nameless(type):
    @property
    def __name__(cls):
        raise GeneratorExit


class _NamelessError(Exception, metaclass=_Nameless):
    pass


def test_an_error_whose_class_does_not_tell_its_name_is_still_described():
    error = _NamelessError("why")

    found = describe_error(error)

    assert (found.type, found.message) == ("<no name>", "why")
    assert describe_refusal(error) == ErrorInfo("<no name>", "why")
    assert str(ProcessorRaisedError(error)) == "the processor raised <no name>"


class _AnswersAnything:
    def __getattr__(self, name):
        return 5


class _AnswersNothing:
    @property
    def cr_frame(self):
        raise SystemExit


def test_the_stack_of_what_only_looks_like_a_coroutine_is_empty():
    assert stack_of_call(_AnswersAnything()) == ""


def test_the_stack_of_what_cannot_be_asked_is_told_so():
    assert stack_of_call(_AnswersNothing()) == "<no stack: SystemExit>"
