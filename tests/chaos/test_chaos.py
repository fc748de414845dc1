"""Every scenario of the fault suite, in its short size; those that mostly wait three at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from chaos.scenario import Scale, all_scenarios

AT_ONCE = 3


def groups():
    """Each scenario by itself, but for those that leave the processor to others."""
    waiting = iter([each for each in all_scenarios().values() if each.waits])
    yield from ((each,) for each in all_scenarios().values() if not each.waits)
    while group := tuple(islice(waiting, AT_ONCE)):
        yield group


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scenarios", list(groups()), ids=lambda group: "-".join(each.name for each in group))
def test_the_promises_are_kept(scenarios):
    plans = [each.plan(Scale.short()) for each in scenarios]
    with ThreadPoolExecutor(len(scenarios)) as pool:
        reports = list(pool.map(lambda scenario, plan: scenario.run(plan), scenarios, plans))
    assert [report for report in reports if report.problems] == []
    for scenario, plan, report in zip(scenarios, plans, reports, strict=True):
        assert report.lost == 0 or scenario.may_lose
        assert report.operations == plan.operations > 0


def test_no_scenario_is_left_out():
    assert sorted(each.name for group in groups() for each in group) == sorted(all_scenarios())
