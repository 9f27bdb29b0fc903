"""Try thousands of random networks: ``python -m tests.fuzz --count 2000 --seed 0``.

Each is trained for two steps as it is and compiled in the eager lowering, and everything that a
user could see of both is compared. Without ``--level`` each is held at all levels at once; with it,
at one level through ``torch.compile(model, backend="snnmem")``. Failures are shrunk and printed as
the program that makes them; the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.fuzz.checking import Outcome, check, check_level
from tests.fuzz.levels import LEVELS
from tests.fuzz.programs import Program, from_seed
from tests.fuzz.shrink import shrink


@dataclass
class Tried:
    """What came of many programs.

    Attributes:
        kinds: how many came out as what; see `checking.Outcome`.
        planned: how many graphs were planned at each level, and how many left as they are.
        refused: why graphs were left as they are.
        warnings: the library's.
        claims: how many claims about values were held.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    claims: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.kinds[outcome.kind] += 1
        self.claims += outcome.tally.grids
        self.warnings.update({_general(text) for text in outcome.warnings})
        self.refused.update({_general(note) for note in outcome.notes})
        for level, plan in (item for plans in outcome.plans for item in plans.items()):
            self.planned[f"level {level} {'planned' if plan.applied else 'left as it is'}"] += 1

    def print(self, seconds: float) -> None:
        """Say it all."""
        print(f"tried {self.kinds.total()} programs in {seconds:.0f} s: {dict(self.kinds)}")
        print(f"claims about values held: {self.claims}")
        for name in ("planned", "refused", "warnings"):
            for text, count in sorted(getattr(self, name).items()):
                print(f"  {name}: {count} x {text}", flush=True)


def _general(text: str) -> str:
    """A message without the names and numbers of its graph."""
    return re.sub(r"[\d,]*\d", "#", re.sub(r"'[^']*'( \([^)]*\))?(, )?", "", text))


def outcome_of(program: Program, main: int, level: int | None) -> Outcome:
    """Hold a program at all levels, or at one."""
    return check(program, main) if level is None else check_level(program, level)


def report_failure(seed: int, program: Program, outcome: Outcome, level: int | None) -> None:
    """Print a failure, and the smallest program like it that can be found."""
    print(f"FAILURE of seed {seed}:", *outcome.reasons[:8], sep="\n  ")
    main = seed % len(LEVELS)
    small = shrink(program, lambda p: outcome_of(p, main, level).kind == "failure")
    print(f"shrunk: {small}", *outcome_of(small, main, level).reasons[:8], sep="\n  ", flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many programs")
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--level", type=int, choices=LEVELS, help="one level; default: all")
    parser.add_argument("--verbose", action="store_true", help="also print what is not compared")
    arguments = parser.parse_args()
    tried, start = Tried(), time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        program = from_seed(seed)
        outcome = outcome_of(program, seed % len(LEVELS), arguments.level)
        tried.add(outcome)
        if outcome.kind == "failure":
            report_failure(seed, program, outcome, arguments.level)
        elif arguments.verbose and outcome.kind != "equal":
            print(f"seed {seed} {outcome.kind}:", *outcome.reasons[:3], sep="\n  ", flush=True)
        if tried.kinds.total() % 50 == 0:
            tried.print(time.monotonic() - start)
    tried.print(time.monotonic() - start)
    return 1 if tried.kinds["failure"] else 0


if __name__ == "__main__":
    sys.exit(main())
