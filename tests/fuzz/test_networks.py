"""Random spiking networks train compiled as they do plainly, at every level."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from tests.backend.harness import ignore_dynamo_warnings
from tests.fuzz.checking import Outcome, check, check_level
from tests.fuzz.levels import LEVELS
from tests.fuzz.programs import Program, from_seed, programs

pytestmark = [*ignore_dynamo_warnings, pytest.mark.filterwarnings("ignore")]

SEEDS, GROUPS = 280, 8
DRAWN = 20


def assert_holds(program: Program, outcome: Outcome) -> None:
    assert outcome.kind != "failure", (*outcome.reasons, program)


@pytest.mark.fuzz
@pytest.mark.parametrize("group", range(GROUPS))
def test_networks_from_seeds_train_as_the_plain_ones_at_every_level(group: int) -> None:
    kinds: Counter[str] = Counter()
    planned = claims = 0
    for seed in range(group, SEEDS, GROUPS):
        program = from_seed(seed, layers=2 if seed % 8 == 0 else 1)
        outcome = check(program, main=seed % len(LEVELS))
        assert_holds(program, outcome)
        kinds[outcome.kind] += 1
        planned += any(plan.applied for plans in outcome.plans for plan in plans.values())
        claims += outcome.tally.packed
    assert kinds["equal"] >= 0.7 * kinds.total(), kinds
    assert planned >= 0.4 * kinds.total()
    assert claims > 100


@pytest.mark.fuzz
@given(programs())
@settings(max_examples=DRAWN, suppress_health_check=list(HealthCheck))
def test_networks_of_hypothesis_train_as_the_plain_ones_at_every_level(program: Program) -> None:
    assert_holds(program, check(program))


@pytest.mark.parametrize("level", LEVELS)
def test_networks_train_as_the_plain_ones_through_the_backend_itself(level: int) -> None:
    for seed in range(500 + level, 515, len(LEVELS)):
        program = from_seed(seed, layers=2)
        assert_holds(program, check_level(program, level))
