"""Arguments and results, taken apart and put together again."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfx.errors import ExportError
from snnfx.exporting.structure import check_structure, count_tensors, flatten, unflatten

Pair = namedtuple("Pair", "first second")
TENSOR = torch.ones(2)

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.just(TENSOR)
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.tuples(inner, inner).map(lambda items: Pair(*items)),
    ),
    max_leaves=8,
)


def numbered(value: Any) -> Any:
    """The value with each tensor replaced by its place in order."""
    tensors, structure = flatten(value)
    return unflatten(structure, iter(range(len(tensors))))


@given(values)
def test_a_value_is_the_same_again_and_its_description_survives_json(value: Any) -> None:
    tensors, structure = flatten(value)
    again = check_structure(json.loads(json.dumps(structure)))
    assert again == structure
    assert count_tensors(again) == len(tensors)
    rebuilt = unflatten(again, iter(tensors))
    assert rebuilt == value if not tensors else flatten(rebuilt)[1] == structure
    assert all(a is b for a, b in zip(flatten(rebuilt)[0], tensors, strict=True))


def test_tensors_keep_their_order_in_nested_values() -> None:
    value = {"a": [TENSOR, Pair(TENSOR, 3)], "b": (None, TENSOR)}
    assert numbered(value) == {"a": [0, (1, 3)], "b": (None, 2)}


@pytest.mark.parametrize("value", [object(), {1.5: TENSOR}, {TENSOR}, torch.float32, len])
def test_what_has_no_description_is_refused_with_what_is_allowed(value: Any) -> None:
    with pytest.raises(ExportError, match="tensors, None, bool, int, float and str in tuples"):
        flatten((TENSOR, value))


def test_a_subclass_of_dict_gives_a_plain_dict() -> None:
    assert type(numbered(OrderedDict(a=TENSOR))) is dict


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        ["code", "import os"],
        ["value", [1]],
        ["tensor", 1],
        ["tuple", [["tensor"], "x"]],
        ["dict", [["key"]]],
        ["named", "Pair", ["first"], [["tensor"], ["tensor"]]],
        ["named", "Pair", ["x=__import__('os')"], [["tensor"]]],
        ["named", "a b", ["first"], [["tensor"]]],
    ],
)
def test_a_description_of_another_form_is_refused(data: Any) -> None:
    with pytest.raises(ExportError, match="not a description"):
        check_structure(data)
