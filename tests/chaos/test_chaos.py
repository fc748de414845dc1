"""Every scenario of the fault suite, in its short size; those that mostly wait three at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from chaos.lab import MissingError
from chaos.scenario import Scale, all_scenarios
from support import missing

AT_ONCE = 3


def groups():
    """Each scenario by itself, but for those that leave the processor to others."""
    waiting = iter([each for each in all_scenarios().values() if each.waits])
    yield from ((each,) for each in all_scenarios().values() if not each.waits)
    while group := tuple(islice(waiting, AT_ONCE)):
        yield group


def run(scenario, plan):
    try:
        return scenario.run(plan)
    except MissingError as error:
        return error


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scenarios", list(groups()), ids=lambda group: "-".join(each.name for each in group))
def test_the_promises_are_kept(scenarios):
    plans = [each.plan(Scale.short()) for each in scenarios]
    with ThreadPoolExecutor(len(scenarios)) as pool:
        reports = list(pool.map(run, scenarios, plans))
    absent = [str(each) for each in reports if isinstance(each, MissingError)]
    assert [report for report in reports if not isinstance(report, MissingError) and report.problems] == []
    if absent:
        missing(" and ".join(absent))
    for scenario, plan, report in zip(scenarios, plans, reports, strict=True):
        assert report.lost == 0 or scenario.may_lose
        assert plan.operations >= report.operations > 0.9 * plan.operations


def test_no_scenario_is_left_out():
    assert sorted(each.name for group in groups() for each in group) == sorted(all_scenarios())
