"""The property test is worth something only if it finds the mistakes that one could make.

`test_invariants` lets the scripts themselves pass the very run that kills each of these: same steps, same seed.
"""

from __future__ import annotations

import pytest
from broker_machine import SHORT_STEPS, Bench
from mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_is_killed(client, mutant: Mutant):
    scripts = mutant.scripts()
    with pytest.raises(AssertionError):
        Bench(client, scripts).run(SHORT_STEPS, shrink=False)
