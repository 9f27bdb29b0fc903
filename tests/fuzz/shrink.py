"""Make a failing program small: leave out what the failure does not need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from tests.fuzz.operations import ARGUMENTS
from tests.fuzz.programs import Program

ORDINARY = Program()


def shrink(program: Program, fails: Callable[[Program], bool], tries: int = 200) -> Program:
    """A smaller program that fails too; greedy, each change kept if the failure stays.

    Args:
        program: fails.
        fails: whether another program does.
        tries: how many programs are tried at the most.
    """
    found = True
    while found:
        found = False
        for candidate in _smaller(program):
            if tries == 0:
                return program
            tries -= 1
            if fails(candidate):
                program, found = candidate, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    """Programs that are simpler in one place, the most simple first."""
    steps = program.steps
    half = len(steps) // 2
    if half > 1:
        yield replace(program, steps=steps[half:])
        yield replace(program, steps=steps[:half])
    for index in range(len(steps)):
        yield replace(program, steps=(*steps[:index], *steps[index + 1 :]))
    for field in fields(Program):
        value, ordinary = getattr(program, field.name), getattr(ORDINARY, field.name)
        if field.name not in ("steps", "time") and value != ordinary:
            yield replace(program, **{field.name: ordinary})
    for time in (1, 2, 4):
        if program.time > time:
            yield replace(program, time=time)
    for index, step in enumerate(steps):
        for place, options in enumerate(ARGUMENTS[step.op]):
            if step.args[place] != options[0]:
                args = (*step.args[:place], options[0], *step.args[place + 1 :])
                simpler = replace(step, args=args)
                yield replace(program, steps=(*steps[:index], simpler, *steps[index + 1 :]))
