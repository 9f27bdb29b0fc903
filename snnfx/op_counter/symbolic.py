"""Counts as expressions in time steps T, batch N, and one rate for each spike tensor.

Loops over time are unrolled in a record, so sizes are numbers there. Counts are polynomials of
them: an operator counts products of its sizes, and how often it runs is linear in T (the gradient
of a step that was sliced out of a sequence fills a whole sequence, hence T squared). So the step is
recorded at a few small sizes, the polynomial through them is computed in rational numbers, and it
is held against records at further sizes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import sympy

from snnfx.errors import CaptureError, OptionError
from snnfx.op_counter.rates import GivenRates, Rates, rate_symbol
from snnfx.op_counter.spikes import Count
from snnfx.op_counter.tracker import GLOBAL

if TYPE_CHECKING:
    from snnfx.op_counter.report import CountReport, Stage

DEGREES = (1, 2)
"""Of the polynomials that are tried, in each size."""

SMALLEST = 2
"""Of the sizes that are recorded: dimensions of size 1 are treated otherwise by many operators."""

Sizes = tuple[int, ...]
Polynomial = dict[sympy.Expr, Fraction]
"""The factors of products of symbols."""

Key = tuple[tuple[str, ...], Any, Any, str]
"""The path, stage, operator and quantity of what is counted."""


@dataclass(frozen=True)
class Resizing:
    """How a step is counted again at other sizes.

    Attributes:
        sizes: those it was counted at, by the symbol's name, ``"T"`` or ``"N"``.
        count: counts at the given sizes, with symbols for rates.
    """

    sizes: Mapping[str, int]
    count: Callable[[Mapping[str, int]], CountReport]


@dataclass(frozen=True)
class SymbolicCounts:
    """Counts of a step as exact expressions.

    Attributes:
        sizes: the symbols of sizes, by name.
        rates: the symbols of rates, by the name of the module that fires.
        entries: polynomials by path, stage, operator and quantity.
    """

    sizes: Mapping[str, sympy.Symbol]
    rates: Mapping[str, sympy.Symbol]
    entries: Mapping[Key, Polynomial]

    def expression(
        self, quantity: str, stage: Stage | None = None, scope: str = GLOBAL
    ) -> sympy.Expr:
        """The sum of a quantity; arguments as those of `CountReport.total`."""
        total: defaultdict[sympy.Expr, Fraction] = defaultdict(Fraction)
        for (path, of_stage, _, of_quantity), polynomial in self.entries.items():
            is_inside = scope == GLOBAL or scope in path
            if of_quantity == quantity and stage in (None, of_stage) and is_inside:
                for term, factor in polynomial.items():
                    total[term] += factor
        return sympy.Add(*(_rational(factor) * term for term, factor in total.items()))

    @cached_property
    def expressions(self) -> dict[str, sympy.Expr]:
        """The totals of all quantities."""
        quantities = dict.fromkeys(quantity for *_, quantity in self.entries)
        return {quantity: self.expression(quantity) for quantity in quantities}

    @cached_property
    def free_symbols(self) -> frozenset[sympy.Symbol]:
        """What the totals depend on."""
        found = [e.free_symbols for e in self.expressions.values()]
        return frozenset(s for symbols in found for s in symbols if isinstance(s, sympy.Symbol))

    @cached_property
    def scopes(self) -> tuple[str, ...]:
        """The names of the modules in which something is counted."""
        return (GLOBAL, *dict.fromkeys(name for path, *_ in self.entries for name in path))

    def evaluate(
        self,
        *,
        rates: Rates = None,
        stage: Stage | None = None,
        scope: str = GLOBAL,
        **sizes: int,
    ) -> dict[str, Count]:
        """The quantities at given sizes and rates: ints or fractions; what is not given stays.

        Args:
            rates: a number for all, or a mapping from names to numbers.
            stage: of one half of the step; None for both.
            scope: the name of a module.
            sizes: ``T=...``, ``N=...``.

        Raises:
            OptionError: a size is no symbol or not positive, or a rate is none.
        """
        values: dict[sympy.Symbol, Any] = {
            self._size(name, value): sympy.Integer(value) for name, value in sizes.items()
        }
        given = GivenRates.of(rates)
        given.check(self.rates)
        for name, symbol in self.rates.items():
            rate = given(name)
            values[symbol] = _rational(rate) if isinstance(rate, Fraction) else rate
        return {
            quantity: _number(self.expression(quantity, stage, scope).xreplace(values))
            for quantity in self.expressions
        }

    def _size(self, name: str, value: int) -> sympy.Symbol:
        if name not in self.sizes or value < 1:
            raise OptionError(
                f"{name}={value!r} cannot be evaluated; the sizes that these counts depend on are "
                f"{', '.join(self.sizes) or 'none'}, positive integers: name more of them with "
                "time_dim and batch_dim of count()"
            )
        return self.sizes[name]


def symbolic_counts(report: CountReport) -> SymbolicCounts:
    """The expressions of a report; see `SymbolicCounts`.

    Raises:
        OptionError: the report does not come from `snnfx.op_counter.count` in this process.
        CaptureError: the model does not run at other sizes, or no polynomial of low degree fits.
    """
    resizing = report.resizing
    if resizing is None:
        raise OptionError(
            "this report cannot be counted at other sizes: symbolic() is for reports that "
            "snnfx.op_counter.count() made in this process"
        )
    samples = _Samples(resizing)
    names = tuple(resizing.sizes)
    given = tuple(resizing.sizes.values())
    symbols = {name: sympy.Symbol(name, integer=True, positive=True) for name in names}
    for degree in DEGREES if names else (0,):
        entries = _fitted(samples, tuple(symbols.values()), degree)
        held_out = [given, tuple(SMALLEST + degree + 2 + i for i in range(len(names)))]
        if all(_agrees(entries, symbols, samples.at(sizes), sizes) for sizes in held_out):
            rates = {name: rate_symbol(name) for name in samples.rate_names()}
            return SymbolicCounts(symbols, rates, entries)
    raise CaptureError(
        f"the counts are no polynomials of degree {DEGREES[-1]} in {', '.join(names)}: the model "
        "runs other operators at other sizes, so it has no one expression. Count it at each size, "
        "or leave time_dim or batch_dim out"
    )


class _Samples:
    """Counts at several sizes, each counted once."""

    def __init__(self, resizing: Resizing) -> None:
        self._resizing = resizing
        self._known: dict[Sizes, dict[Key, Polynomial]] = {}
        self._names: dict[str, None] = {}

    def at(self, sizes: Sizes) -> dict[Key, Polynomial]:
        if sizes not in self._known:
            report = self._resizing.count(dict(zip(self._resizing.sizes, sizes, strict=True)))
            self._names.update(dict.fromkeys(s.name for s in report.spike_tensors))
            self._known[sizes] = {
                (entry.path, entry.stage, entry.operator, quantity): _terms(value)
                for entry in report.operators
                for quantity, value in entry.counts.items()
            }
        return self._known[sizes]

    def rate_names(self) -> Iterable[str]:
        return self._names


def _terms(value: Count) -> Polynomial:
    """A count as a polynomial of rates."""
    if isinstance(value, (int, Fraction)):
        return {sympy.S.One: Fraction(value)}
    terms: Polynomial = {}
    for term in sympy.Add.make_args(sympy.expand(value)):
        factor, symbols = _split(term)
        terms[symbols] = terms.get(symbols, Fraction(0)) + factor
    return terms


def _fitted(
    samples: _Samples, symbols: Sequence[sympy.Symbol], degree: int
) -> dict[Key, Polynomial]:
    """The polynomials of a degree in each size through counts at the smallest sizes."""
    points = range(SMALLEST, SMALLEST + degree + 1)
    basis = _basis(points)
    entries: defaultdict[Key, defaultdict[sympy.Expr, Fraction]] = defaultdict(
        lambda: defaultdict(Fraction)
    )
    for place in product(range(len(points)), repeat=len(symbols)):
        powers = [
            (
                prod(
                    (basis[i][e] for i, e in zip(place, exponents, strict=True)), start=Fraction(1)
                ),
                sympy.Mul(*(s**e for s, e in zip(symbols, exponents, strict=True))),
            )
            for exponents in product(range(degree + 1), repeat=len(symbols))
        ]
        for key, polynomial in samples.at(tuple(points[i] for i in place)).items():
            for term, factor in polynomial.items():
                for weight, power in powers:
                    if weight and factor:
                        entries[key][_times(power, term)] += weight * factor
    return {
        key: {term: factor for term, factor in polynomial.items() if factor}
        for key, polynomial in entries.items()
    }


def _times(power: sympy.Expr, term: sympy.Expr) -> sympy.Expr:
    return power if term is sympy.S.One else power * term


def _basis(points: Sequence[int]) -> list[list[Fraction]]:
    """The coefficients, from the constant on, of Lagrange's polynomials: 1 at one point, else 0."""
    found: list[list[Fraction]] = []
    for point in points:
        coefficients = [Fraction(1)]
        for other in points:
            if other != point:
                shifted = [Fraction(0), *coefficients]
                kept = [-other * c for c in coefficients] + [Fraction(0)]
                coefficients = [
                    (a + b) / (point - other) for a, b in zip(shifted, kept, strict=True)
                ]
        found.append(coefficients)
    return found


def _agrees(
    entries: Mapping[Key, Polynomial],
    symbols: Mapping[str, sympy.Symbol],
    counted: Mapping[Key, Polynomial],
    sizes: Sizes,
) -> bool:
    """Whether polynomials give what was counted at some sizes."""
    values = {s: sympy.Integer(size) for s, size in zip(symbols.values(), sizes, strict=True)}
    for key in {*entries, *counted}:
        at_sizes: defaultdict[sympy.Expr, Fraction] = defaultdict(Fraction)
        for term, factor in entries.get(key, {}).items():
            number, rates = _split(term.xreplace(values))
            at_sizes[rates] += factor * number
        for term, factor in counted.get(key, {}).items():
            at_sizes[term] -= factor
        if any(at_sizes.values()):
            return False
    return True


def _split(term: Any) -> tuple[Fraction, sympy.Expr]:
    """The rational factor of a product, and the rest of it."""
    factor, rest = term.as_coeff_Mul()
    return Fraction(factor.p, factor.q), rest


def _rational(value: Fraction) -> Any:
    return sympy.Rational(value.numerator, value.denominator)


def _number(value: Any) -> Count:
    """A number of sympy as one of Python; expressions as they are."""
    if isinstance(value, sympy.Integer):
        return int(value)
    return Fraction(value.p, value.q) if isinstance(value, sympy.Rational) else value
