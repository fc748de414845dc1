"""The parts of the demo that need no Redis: what its functions count, what its checks find, what it prints."""

from __future__ import annotations

import ast
import hashlib
import io
import os

import pytest
from rich.console import Console

from queue_system import ConfigurationError
from queue_system.demo import checks, main, report
from queue_system.demo.display import LoopView, WorkView, shown
from queue_system.demo.feed import LANES, Feed, Lane
from queue_system.demo.files import by_priority, find_files
from queue_system.demo.processors import STATEMENTS_AT_A_TIME, measure, parse, unsteady
from queue_system.demo.totals import Ledger, Totals, plain_loop
from queue_system.events import (
    OperationInfo,
    OutcomeApplied,
    WorkerTaskFailed,
)

SOURCE = b"""\
import os

class Outer:
    def method(self):
        async def inner(): ...
        if os:
            try:
                class Deep: ...
            except OSError:
                def handler(): ...
            else:
                def otherwise(): ...
            finally:
                def at_last(): ...

def with_match(x):
    match x:
        case 1:
            def in_case(): ...

not_counted = lambda: None
"""


@pytest.fixture
def write(tmp_path):
    def write(name, content=b""):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    return write


@pytest.fixture
def output():
    return io.StringIO()


@pytest.fixture
def console(output):
    return Console(file=output, width=100, highlight=False)


def entity(file):
    return {"path": str(file)}


def test_measure_counts_bytes_whatever_their_encoding(write):
    content = "caf\xe9 au lait\nsans fin".encode("latin-1")
    assert measure(entity(write("a.py", content))) == {
        "measured": 1,
        "bytes": 21,
        "lines": 2,
        "words": 5,
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_measure_of_an_empty_and_of_an_unreadable_file(write, tmp_path):
    empty = measure(entity(write("empty.py")))
    assert (empty["measured"], empty["lines"], empty["words"]) == (1, 0, 0)
    assert measure(entity(tmp_path / "gone.py")) == {"not_read": 1}
    assert measure(entity(tmp_path)) == {"not_read": 1}


async def test_parse_counts_definitions_at_every_depth(write):
    assert await parse(entity(write("a.py", SOURCE))) == {"parsed": 1, "functions": 7, "classes": 2}


async def test_parse_counts_as_many_as_a_walk_over_every_node():
    with open(ast.__file__, "rb") as file:  # noqa: ASYNC230, PTH123
        nodes = list(ast.walk(ast.parse(file.read())))
    assert await parse({"path": ast.__file__}) == {
        "parsed": 1,
        "functions": sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
    }


@pytest.mark.parametrize(
    "content",
    [b"def broken(:\n", b"# coding: uft-8\n", b"x = '\xe9'\n", b"x = '\0'\n", b"-" * 100_000 + b"1"],
    ids=["syntax", "unknown encoding", "not utf-8", "null byte", "too deep"],
)
async def test_what_cannot_be_parsed_is_counted(write, content):
    assert await parse(entity(write("a.py", content))) == {"not_parsed": 1}


async def test_parse_understands_a_declared_encoding_and_an_empty_file(write, tmp_path):
    declared = write("latin.py", "# coding: latin-1\ndef caf\xe9(): ...\n".encode("latin-1"))
    assert await parse(entity(declared)) == {"parsed": 1, "functions": 1, "classes": 0}
    assert await parse(entity(write("empty.py"))) == {"parsed": 1, "functions": 0, "classes": 0}
    assert await parse(entity(tmp_path / "gone.py")) == {"not_parsed": 1}


async def test_parse_hands_the_event_loop_back_while_it_counts(write):
    file = write("long.py", b"x = 1\n" * (10 * STATEMENTS_AT_A_TIME))
    work = parse(entity(file))
    handed_back = 0
    while True:
        try:
            waited_for = work.send(None)
        except StopIteration:
            break
        handed_back += 1
        if waited_for is not None:  # the read in a thread
            waited_for._asyncio_future_blocking = False
            await waited_for
    assert handed_back >= 10


async def test_unsteady_succeeds_at_the_third_attempt():
    class Context:
        attempt = 1

    for _ in range(2):
        with pytest.raises(ConnectionError):
            await unsteady({"path": "a.py"}, Context)
        Context.attempt += 1
    assert await unsteady({"path": "a.py"}, Context) == {"attempt": 3}


def test_files_are_found_smallest_first_and_installed_or_hidden_ones_are_not(write, tmp_path):
    large, small = write("pkg/sub/large.py", b"#" * 100), write("small.py", b"#")
    for name in ("site-packages/a.py", ".venv/b.py", "node_modules/c.py", "notes.txt", "pkg/d.pyc"):
        write(name)
    found = find_files(tmp_path)
    assert (found.root, found.paths, found.left_out) == (tmp_path, (small, large), 0)
    assert not found.is_standard_library


def test_a_link_to_nowhere_is_for_its_operation_to_find_and_a_pipe_is_no_file(write, tmp_path):
    write("a.py", b"#")
    (tmp_path / "dangling.py").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.py")
    assert [file.name for file in find_files(tmp_path).paths] == ["dangling.py", "a.py"]


def test_names_that_no_json_can_carry_are_left_out_and_counted(write, tmp_path):
    write("a.py")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.py")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = find_files(tmp_path)
    assert ([file.name for file in found.paths], found.left_out) == (["a.py"], 1)


def test_one_file_may_be_named_itself(write):
    file = write("script", b"#")
    assert find_files(file).paths == (file,)


def test_the_default_is_the_standard_library_without_its_tests():
    found = find_files()
    assert found.is_standard_library
    folders = {file.relative_to(found.root).parts[:-1] for file in found.paths}
    assert {(), ("asyncio",), ("json",)} <= folders
    assert not {"site-packages", "test", "tests"} & {part for parts in folders for part in parts}


def test_the_tests_of_a_given_path_are_included(write, tmp_path):
    file = write("tests/test_a.py")
    assert find_files(tmp_path).paths == (file,)


def test_a_missing_or_empty_path_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere' does not exist: give the demo a directory"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="no Python file under"):
        find_files(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 100])
def test_every_file_has_one_priority(count):
    paths = tuple(range(count))
    thirds = by_priority(paths)
    assert list(thirds) == ["high", "normal", "low"]
    assert sum(thirds.values(), ()) == paths
    assert max(map(len, thirds.values())) - min(map(len, thirds.values())) <= 1


def test_totals_do_not_depend_on_the_order():
    results = [{"measured": 1, "lines": 3, "sha256": "a"}, {"measured": 1, "lines": 4, "sha256": "b"}, {"not_read": 1}]
    there, back = Totals(), Totals()
    for result in results:
        there.add(result)
    for result in reversed(results):
        back.add(result)
    assert there.rows() == back.rows()
    assert (there.rows()["lines"], there.rows()["files not readable"]) == (7, 1)


def test_other_content_gives_another_digest():
    one, other = Totals(), Totals()
    one.add({"sha256": "a"})
    other.add({"sha256": "b"})
    assert one.rows()["digest of digests"] != other.rows()["digest of digests"]


async def test_the_plain_loop_counts_every_file_once(write):
    steps = []
    files = [write("a.py", SOURCE), write("broken.py", b"def broken(:\n"), write("empty.py")]
    rows = (await plain_loop(files, lambda: steps.append(1))).rows()
    assert len(steps) == 3
    assert (rows["files measured"], rows["files parsed"], rows["files not parsable"]) == (3, 2, 1)
    assert (rows["lines"], rows["functions"], rows["classes"]) == (len(SOURCE.splitlines()) + 1, 7, 2)


def told(operation_id, processor="measure", attempts=1, **rest):
    return {"operation_id": operation_id, "processor": processor, "attempts": attempts, **(rest or {"result": {}})}


@pytest.fixture
def ledger():
    made = Ledger()
    made.expect([{"operation_id": "1", "processor": "measure"}, {"operation_id": "2", "processor": "endless"}])
    return made


async def finish(ledger):
    await ledger.on_success(told("1", result={"measured": 1, "lines": 2}))
    await ledger.on_failure(told("2", "endless", 2, reason="timeout"))


async def test_news_that_come_twice_count_once(ledger):
    await finish(ledger)
    await finish(ledger)
    assert ledger.heard == 2
    assert ledger.totals().rows()["lines"] == 2
    assert [*checks.lost(ledger), *checks.strays(ledger)] == []


async def test_a_lost_operation_is_named(ledger):
    await ledger.on_success(told("1"))
    assert list(checks.lost(ledger)) == ["endless 2 was enqueued and never heard of again"]


@pytest.mark.parametrize(
    ("succeeded", "failed", "problem"),
    [
        (told("9"), None, "measure 9 ended, but was never enqueued"),
        (None, told("1", reason="error"), "measure 1 ended otherwise than it should: error, attempts=1"),
        (None, told("2", "endless", 1, reason="timeout"), "endless 2 ended otherwise .* timeout, attempts=1"),
        (None, told("2", "endless", 2, reason="error"), "endless 2 ended otherwise .* error, attempts=2"),
        (told("2", "endless", 2), None, "endless 2 ended otherwise .* success, attempts=2"),
        (told("1"), told("1", reason="error"), "measure 1 both succeeded and failed"),
    ],
)
async def test_an_operation_that_ends_otherwise_is_named(ledger, succeeded, failed, problem):
    if succeeded:
        await ledger.on_success(succeeded)
    if failed:
        await ledger.on_failure(failed)
    with pytest.raises(AssertionError, match=problem):
        assert not list(checks.strays(ledger))


def test_a_total_that_differs_is_named():
    assert list(checks.differences({"lines": 5}, {"lines": 5})) == []
    assert list(checks.differences({"lines": 5}, {"lines": 6})) == ["lines: 5 by the queue, 6 by the plain loop"]


STATUS = {
    "demo:failures": 1,
    "total_items": 1,
    "delayed": 0,
    "in_flight": 0,
    "metrics": {"enqueued": 2, "processed": 1, "failed": 1},
}


@pytest.mark.parametrize("name", ["demo:failures", "total_items", "delayed", "in_flight"])
async def test_a_status_that_contradicts_the_callbacks_is_a_problem(ledger, name):
    await finish(ledger)
    assert list(checks.status_mismatches(STATUS, ledger, "demo:failures")) == []
    (problem,) = checks.status_mismatches({**STATUS, name: 7}, ledger, "demo:failures")
    assert f"{name}=7" in problem


@pytest.mark.parametrize("name", ["enqueued", "processed", "failed"])
async def test_metrics_that_contradict_the_callbacks_are_a_problem(ledger, name):
    await finish(ledger)
    status = {**STATUS, "metrics": {**STATUS["metrics"], name: 7}}
    (problem,) = checks.status_mismatches(status, ledger, "demo:failures")
    assert f"{name}=7" in problem


def outcome(result, how="", kind="operation", attempt=1, **rest):
    info = OperationInfo("1", "measure", "high", "measure", kind, is_async=False, attempt=attempt, headers={})
    return OutcomeApplied(info, result, how, **rest)


@pytest.fixture
def feed():
    made = Feed()
    made.expect([{"is_async": False, "priority": "high"}, {"is_async": True, "priority": "low"}])
    return made


def test_the_feed_counts_what_ends_and_not_what_comes_back(feed):
    for event in (
        outcome("retried", "error", error_type="ValueError"),
        outcome("retried", "timeout", attempt=2),
        outcome("requeued"),
        outcome("stale"),
        outcome("processed", "success", kind="callback"),
        outcome("processed", "success"),
    ):
        feed.on_event(event)
    assert dict(feed.done) == {Lane(is_async=False, priority="high"): 1}
    assert "1 of 2 operations" in feed.summary()
    assert "2 retries, 1 timeouts, 0 failures" in feed.summary()


def test_the_feed_tells_the_latest_troubles(feed):
    feed.on_event(outcome("failed", "error", attempt=3, error_type="ValueError"))
    feed.on_event(outcome("retried", "timeout"))
    feed.on_event(WorkerTaskFailed("fetch", "no reason"))
    assert list(feed.latest) == [
        "measure: attempt 3 failed (ValueError), given up",
        "measure: attempt 1 timed out, to be tried again",
        "fetch failed: no reason",
    ]


async def test_lines_where_there_is_no_terminal(feed, console, output):
    async with shown(WorkView(feed), console):
        feed.on_event(outcome("processed"))
    lines = output.getvalue().splitlines()
    assert lines[-1] == "   0 s  sync: high 1/1, normal 0/0, low 0/0; async: high 0/0, normal 0/0, low 0/1"
    assert "\x1b" not in output.getvalue()


async def test_bars_in_a_terminal(feed, output):
    terminal = Console(file=output, width=100, force_terminal=True, _environ={"TERM": "xterm"})
    loop = LoopView(2)
    async with shown(WorkView(feed), terminal):
        feed.on_event(outcome("processed"))
    async with shown(loop, terminal):
        loop.advance()
    text = output.getvalue()
    assert all(str(lane) in text for lane in LANES)
    assert "plain loop" in text
    assert "1 of 2 operations" in text
    assert "━" in text


def test_the_status_is_printed_as_the_dict_that_it_is(console, output):
    metrics = {f"metric_{number}": number for number in range(30)}
    status = {"demo:high:measure": 0, "metrics": metrics, "status_time": 1.5}
    report.print_status(console, status)
    printed = output.getvalue()
    assert ast.literal_eval(printed[printed.index("{") :]) == status
    assert max(map(len, printed.splitlines())) <= 100
    assert not any(line.endswith("':") for line in printed.splitlines())  # a name and its value stay together


def test_a_difference_is_marked_in_the_table(console, output):
    report.print_totals(console, {"lines": 5, "words": 1}, {"lines": 6, "words": 1})
    lines, words = [line for line in output.getvalue().splitlines() if "lines" in line or "words" in line]
    assert lines.split() == ["lines", "5", "6", "DIFFERENT"]
    assert words.split() == ["words", "1", "1", "equal"]


def test_a_reader_that_has_gone_is_told_to_the_caller():
    class Pipe(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    console = main._console()
    console.file = Pipe()
    with pytest.raises(BrokenPipeError):
        console.print("text")
