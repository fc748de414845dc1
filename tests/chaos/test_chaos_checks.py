"""The checks of the fault suite can fail: each is shown what it is there to find."""

from __future__ import annotations

import json

import pytest
import redis
import typer
from typer.testing import CliRunner

import chaos.__main__ as program
from chaos.lab import Lab, MissingError, check_conservation
from chaos.ledger import Ledger, Writer
from chaos.report import Report
from chaos.scenario import Plan, Scale, Scenario, Sizes, all_scenarios, scenario


@pytest.fixture(scope="module")
def finished():
    """A lab in which three operations have been done, as they should be."""
    with Lab() as lab:
        lab.enqueue(3)
        lab.start_workers(1)
        lab.wait_settled(20)
        lab.stop_workers()
        yield lab


@pytest.fixture
def lab(finished):
    """The same, and what a test does to it is undone."""
    client = redis.Redis(port=finished.server.port)
    copies = [(key, max(client.pttl(key), 0), client.dump(key)) for key in client.scan_iter()]
    lines = finished.ledger.path.read_bytes()
    yield finished
    client.flushdb()  # the lab's own server
    for key, expiry, value in copies:
        client.restore(key, expiry, value)
    client.close()
    finished.ledger.path.write_bytes(lines)


def check(lab, **options):
    return check_conservation(lab.redis, lab.keys, Ledger(lab.ledger.path), lab.accepted, **options)


def test_a_good_end_has_no_problems(lab):
    result = check(lab)
    assert (result.accepted, result.done, result.failed, result.extra_runs) == (3, 3, 0, 0)
    assert (result.lost, result.crashed, result.problems) == ((), (), ())


def test_an_operation_that_is_gone_is_lost(lab):
    gone = lab.accepted[1]
    lab.redis.delete(lab.keys.operation(gone))
    result = check(lab)
    assert result.lost == (gone,)
    assert result.problems == (f"1 lost: {gone}",)
    assert check(lab, kept=False).lost == ()  # where Redis forgets what is done, the ledger is enough


def test_what_is_gone_and_never_ended_is_lost_in_any_case(lab):
    lab.redis.delete(lab.keys.operation(lab.accepted[1]))
    lines = [line for line in lab.ledger.path.read_text().splitlines() if not is_end(line, lab.accepted[1])]
    lab.ledger.path.write_text("\n".join(lines) + "\n")
    assert check(lab, kept=False).lost == (lab.accepted[1],)


def test_done_without_a_run_is_a_problem(lab):
    lines = [line for line in lab.ledger.path.read_text().splitlines() if not is_end(line, lab.accepted[0])]
    lab.ledger.path.write_text("\n".join(lines) + "\n")
    assert "no run came to its end" in check(lab).problems[0]


def test_done_as_well_as_failed_is_a_problem(lab):
    lab.redis.zadd(lab.keys.failures, {lab.accepted[0]: 1})
    assert check(lab).problems == (f"1 done as well as among the failures: {lab.accepted[0]}",)


def test_failed_must_be_among_the_failures(lab):
    lab.redis.hset(lab.keys.operation(lab.accepted[0]), "st", "failed")
    result = check(lab)
    assert result.failed == 1
    assert result.problems == (f"1 failed, but not among the failures: {lab.accepted[0]}",)


def test_extra_runs_are_counted_from_the_ledger(lab):
    writer = Writer(lab.ledger.path)
    writer.end(lab.accepted[0], writer.start(lab.accepted[0]))
    writer.close()
    assert check(lab).extra_runs == 1


def test_what_is_left_over_is_a_problem(lab):
    client, keys = lab.redis, lab.keys
    client.zadd(keys.leases, {"ghost": 1})
    client.rpush(keys.ready("work", "normal"), "ghost")
    client.hset(keys.depths, "l:normal:work", 1)
    client.set(f"{keys.prefix}stray", 1)
    client.set(f"{keys.prefix}expires", 1, ex=100)
    text = " | ".join(check(lab).problems)
    assert f"1 left in {keys.leases}" in text
    assert "1 left in the queue normal:work" in text
    assert "depths that are not zero" in text
    assert f"1 orphan keys: {keys.prefix}stray" in text
    assert "expires" not in text


def is_end(line, operation_id):
    return line.split(" ")[2:4] == ["end", operation_id]


def test_a_ledger_tells_what_was_in_flight(tmp_path):
    path = tmp_path / "ledger"
    path.write_text(
        "1.0 7 start a 1 x\n2.0 7 end a 1 x\n2.5 7 start b 2\n3.0 8 start b 1\n4.0 8 end b 1\n5.0 9 applied b done\n4."
    )
    ledger = Ledger(path)
    assert ledger.done() == {"a", "b"}
    assert ledger.extra_runs() == {"b": 1}
    assert (ledger.in_flight_of(7), ledger.in_flight_of(8)) == ({"b"}, set())
    assert (ledger.in_flight_at(1.5), ledger.in_flight_at(2.2)) == ({"a"}, set())
    assert ledger.in_flight_at(2.2, margin=0.5) == {"a"}
    assert ledger.applied() == {"done": 1}
    with path.open("a") as file:
        file.write("5 7 start c 3\n")  # the rest of a line that was half written
    assert ledger.lines()[-1].operation_id == "c"


def make(name, run):
    return Scenario(name, f"fault {name}", Sizes(1, 2, 3), run)


GOOD = make("good", lambda plan: plan.report(lost=0, extra_runs=1, recovery=0.5, details={"kills": 3}))
BAD = make("bad", lambda plan: plan.report(lost=2, extra_runs=0, problems=("2 lost: a, b",)))


def broken(plan):
    raise RuntimeError("no redis-server")


@pytest.mark.parametrize(
    ("chosen", "code", "text"),
    [
        ((GOOD,), 0, "kills 3"),
        ((GOOD, BAD), 1, "BROKEN 2 lost: a, b"),
        ((make("worse", broken), GOOD), 1, "RuntimeError: no redis-server"),
    ],
)
def test_the_exit_code_says_whether_a_promise_was_broken(monkeypatch, chosen, code, text):
    monkeypatch.setattr(program, "all_scenarios", lambda: {each.name: each for each in chosen})
    app = typer.Typer()
    app.command()(program.main)
    result = CliRunner().invoke(app, [], env={"COLUMNS": "200", "CHAOS_SECONDS": "60"})
    assert result.exit_code == code
    assert text in result.output
    shown = CliRunner().invoke(app, ["--json"], env={"CHAOS_SECONDS": "60"})
    reports = json.loads(shown.stdout)
    assert {name: report["passed"] for name, report in reports.items()} == {each.name: each is GOOD for each in chosen}


@pytest.mark.parametrize(("in_ci", "code", "text"), [("", 0, "missing a compiler"), ("true", 1, "CI must have it")])
def test_what_is_missing_is_a_failure_in_ci_only(monkeypatch, in_ci, code, text):
    def absent(plan):
        raise MissingError("a compiler")

    monkeypatch.setattr(program, "all_scenarios", lambda: {"absent": make("absent", absent)})
    app = typer.Typer()
    app.command()(program.main)
    result = CliRunner().invoke(app, [], env={"COLUMNS": "200", "CHAOS_SECONDS": "60", "CI": in_ci})
    assert result.exit_code == code
    assert text in result.output


def test_an_unknown_scenario_and_a_bad_time_are_told(monkeypatch):
    app = typer.Typer()
    app.command()(program.main)
    assert CliRunner().invoke(app, ["no-such"]).exit_code == 2
    for bad in ("soon", "-1", "nan", "inf"):
        assert CliRunner().invoke(app, ["worker_kill"], env={"CHAOS_SECONDS": bad}).exit_code == 2


def test_scales():
    sizes = {"short": 1, "default": 10, "long": 35}
    assert Scale.lasting(61).pick(short=4.2, default=10.0, long=10.0) == 4.2
    assert program.chosen_scale({}) == Scale.lasting(300)
    assert program.chosen_scale({"CHAOS_SECONDS": "60"}).is_short
    assert Scale.short().pick(**sizes) == 1
    assert [Scale.lasting(seconds).pick(**sizes) for seconds in (61, 150, 300, 600, 6000)] == [
        pytest.approx(61 / 30),
        5,
        10,
        20,
        35,
    ]


def test_every_scenario_has_three_sizes_and_a_name_of_its_own():
    scenarios = all_scenarios()
    assert all(0 < each.sizes.short <= each.sizes.default <= each.sizes.long for each in scenarios.values())
    with pytest.raises(ValueError, match="two scenarios"):
        scenario("worker_kill", "the same name", operations=(1, 1, 1))(lambda plan: None)


def test_a_report_has_passed_without_problems_only():
    plan = Plan("fault", 5, Scale.short())
    assert plan.report(lost=0, extra_runs=0) == Report("fault", 5, 0, 0)
    assert plan.report(lost=0, extra_runs=0).passed
    assert not plan.report(lost=0, extra_runs=0, problems=("broken",)).passed
