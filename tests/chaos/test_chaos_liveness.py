"""The checker of liveness can fail: it is shown standstills, and what only looks like one."""

from __future__ import annotations

import json
import threading
import time

import pytest

from chaos.lab import Lab, LabError, until
from chaos.liveness import Judge, Scene, Sign, read_sign

FREE = Sign("w", alive=True, excused=False, slots=(1, 1))
LIMIT = 15.0


def scene(*workers, ready=("a",), claimed="7"):
    return Scene(frozenset(ready), claimed, workers)


def judged(*scenes, step=LIMIT + 1.0):
    """What a judge says that sees these, so many seconds after each other, the first two at once."""
    judge = Judge(LIMIT)
    judge.see(0.0, scenes[0])
    for number, each in enumerate(scenes):
        judge.see(number * step, each)
    return judge.problems


def test_a_worker_that_claims_nothing_and_says_that_it_lives_is_found():
    (problem,) = judged(scene(FREE), scene(FREE))
    assert problem.startswith("work was ready and slots were free, but nothing was claimed for 16.0 s")
    assert problem.endswith("these workers say that they are alive: w")


def test_it_is_found_only_beyond_the_limit():
    assert judged(scene(FREE), scene(FREE), step=LIMIT) == []
    assert judged(scene(FREE), scene(FREE), step=LIMIT + 0.1) != []


def test_one_of_several_is_enough():
    dead = Sign("dead", alive=False, excused=False, slots=(1, 1))
    (problem,) = judged(scene(FREE, dead), scene(dead, FREE))
    assert problem.endswith("alive: w")
    assert judged(scene(dead), scene(dead)) == []


@pytest.mark.parametrize(
    "second",
    [
        scene(FREE, claimed="8"),
        scene(FREE, ready=()),
        scene(),
        scene(Sign("w", alive=False, excused=False, slots=(1, 1))),
        scene(Sign("w", alive=True, excused=True, slots=(1, 1))),
        scene(Sign("w", alive=True, excused=False, slots=(0, 0))),
        scene(Sign("w", alive=True, excused=False, slots=(0, 1))),
        None,
    ],
    ids=["claimed", "nothing ready", "no worker", "says so", "excused", "no slot", "no slot of its kind", "no Redis"],
)
def test_what_is_no_standstill_starts_the_clock_anew(second):
    assert judged(scene(FREE), second, scene(FREE)) == []


@pytest.mark.parametrize(
    ("kind", "slots", "found"),
    [("a", (1, 0), True), ("s", (1, 0), False), ("s", (0, 1), True), ("m", (1, 0), False), ("u", (1, 1), True)],
)
def test_there_must_be_a_slot_of_the_kind(kind, slots, found):
    seen = scene(Sign("w", alive=True, excused=False, slots=slots), ready=(kind,))
    assert bool(judged(seen, seen)) is found


def test_what_a_worker_said_a_while_ago_is_silence(tmp_path):
    path = tmp_path / "health"
    assert read_sign(path, "w") is None
    said = {"alive": True, "excused": False, "slots": [1, 1]}
    path.write_text(json.dumps(said | {"at": time.monotonic()}))
    assert read_sign(path, "w") == FREE
    path.write_text(json.dumps(said | {"at": time.monotonic() - 4.0}))
    assert read_sign(path, "w") is None


class Pretender:
    """Says for a worker that is stopped that all is well."""

    def __init__(self, *, alive: bool) -> None:
        self.alive, self.asked = alive, 0

    def sign(self) -> Sign:
        self.asked += 1
        return Sign("pretender", self.alive, excused=False, slots=(1, 1))


def run_stopped(pretender: Pretender) -> None:
    with Lab(liveness=0.5) as lab:
        worker = lab.worker().wait_ready()
        well = Sign("worker-0", alive=True, excused=False, slots=(5, 80))
        until(lambda: worker.sign() == well, 20, "a worker that says that it is well")
        worker.pause()
        lab.watched[:] = [pretender]
        lab.enqueue(2)  # one is claimed for it behind its blocking read, though it is stopped
        began = pretender.asked
        until(lambda: pretender.asked >= began + 6, 20, "six looks")


def test_a_lab_tells_of_a_standstill():
    with pytest.raises(LabError, match=r"nothing was claimed for .* alive: pretender"):
        run_stopped(Pretender(alive=True))
    assert not [thread for thread in threading.enumerate() if thread.name == "chaos-liveness"]


def test_a_lab_is_content_with_a_worker_that_says_so():
    run_stopped(Pretender(alive=False))


def test_a_checker_that_breaks_down_is_told():
    class Broken:
        def sign(self):
            raise LookupError("no sign")

    lab = Lab()
    lab.watched.append(Broken())
    with pytest.raises(LabError, match="the checker of liveness broke down: LookupError: no sign"), lab:
        until(lambda: not lab._liveness._thread.is_alive(), 20, "its end")
