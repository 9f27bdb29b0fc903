"""Counts as text: numbers with a unit prefix, and expressions in rates as far as they are short.

A count is an int, a fraction, or a polynomial with rational coefficients in symbols; see
`snnfx.op_counter.spikes.Count`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fractions import Fraction
from typing import Any

import sympy

from snnfx.op_counter.spikes import Count

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
SHORT = 26
"""Characters of an expression that a table shows as it is."""


def is_number(count: Count) -> bool:
    """Whether a count is known, and not an expression in symbols."""
    return not (isinstance(count, sympy.Basic) and count.free_symbols)


def sum_of(counts: Iterable[Count]) -> Count:
    """The sum; of expressions as fast as sympy can."""
    found = list(counts)
    if any(isinstance(count, sympy.Basic) for count in found):
        return sympy.Add(*(sympy.sympify(count) for count in found))
    return sum(found)


def number_of(count: Count) -> float:
    """A known count as a float, for drawing."""
    return float(count)


def format_count(count: Count, rates: Collection[Any] = (), *, in_bytes: bool = False) -> str:
    """A count in a few characters.

    Args:
        count: what to show.
        rates: the symbols that stand for firing rates, each between 0 and 1.
        in_bytes: with units of bytes instead of prefixes.

    Returns:
        ``"1.23 M"``; a short expression such as ``"1.2 M*r"``; of a longer one in rates alone,
        whose coefficients are not negative, its largest value ``"<= 1.23 M"``; else
        ``"f(T, N, ...)"``.
    """
    units, base = (BYTE_UNITS, 1024) if in_bytes else (PREFIXES, 1000)
    if is_number(count):
        return _scaled(count, units, base)
    polynomial = sympy.Poly(count)
    terms = [
        "*".join([_scaled(c, units, base), *_powers(powers, polynomial.gens)])
        for powers, c in polynomial.terms()
    ]
    text = " + ".join(terms)
    if len(text) <= SHORT:
        return text
    if set(polynomial.gens) <= set(rates) and all(c >= 0 for c in polynomial.coeffs()):
        # Rates are at most 1, and nothing is subtracted: all rates 1 give the largest value.
        return f"<= {_scaled(sum(polynomial.coeffs()), units, base)}"
    names = sorted(str(symbol) for symbol in polynomial.gens)
    return f"f({', '.join(names)})" if len(names) <= 3 else f"f({len(names)} symbols)"


def format_rate(rate: Count | None) -> str:
    """A firing rate in per cent, or as the symbol that it is; nothing where there is none."""
    if rate is None:
        return ""
    return f"{100 * float(rate):.3g}%" if is_number(rate) else str(rate)


def _powers(powers: tuple[int, ...], symbols: Collection[Any]) -> list[str]:
    return [
        str(symbol) if power == 1 else f"{symbol}**{power}"
        for symbol, power in zip(symbols, powers, strict=True)
        if power
    ]


def _scaled(count: Count, units: tuple[str, ...], base: int) -> str:
    """Three digits or more in the largest unit in which the count is at least 1."""
    exact = Fraction(str(count)) if isinstance(count, sympy.Basic) else count
    value, index = exact, 0
    while abs(value) >= base - 0.5 and index + 1 < len(units):
        value, index = value / base, index + 1
    if index == 0 and value == int(value):
        return f"{int(value)} {units[0]}".rstrip()
    return f"{float(value):.{_decimals(float(value))}f} {units[index]}".rstrip()


def _decimals(value: float) -> int:
    return 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
