"""Try thousands of random networks: ``python -m tests.fuzz --count 2000 --seed 0``."""
from __future__ import annotations
import argparse, time, sys
from collections import Counter
from tests.fuzz.checking import check, check_level
from tests.fuzz.programs import from_seed
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", type=int)
    a = parser.parse_args()
    kinds = Counter(); start = time.time(); applied = Counter(); notes = Counter()
    for seed in range(a.seed, a.seed + a.count):
        p = from_seed(seed)
        o = check(p, seed % 5) if a.level is None else check_level(p, a.level)
        kinds[o.kind] += 1
        for d in o.plans:
            for level, plan in d.items(): applied[level, plan.applied] += 1
        for n in set(o.notes): notes[n[:60] + (" ... " if len(n) > 60 else "")] += 1
        if o.kind != "equal":
            print(seed, o.kind, len(o.reasons), *[r[-700:] for r in o.reasons[:3]], sep="\n   ")
            if o.kind in ("failure",): print(p)
            sys.stdout.flush()
    print(kinds, time.time() - start, applied, notes.most_common(5))
main()
