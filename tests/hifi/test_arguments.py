"""hifi.arguments: numbers of any type, checked and made plain."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from hifi.arguments import as_integer, check_count, check_integer, check_number
from hifi.errors import InvalidArgumentError

NO_INTEGERS = (True, np.True_, 1.0, np.float64(1.0), "1", None, [1])
# More than a float holds; named, because their digits make no test id.
HUGE = tuple(pytest.param(kind(10**400), id=f"huge {kind.__name__}") for kind in (int, Fraction))
NO_NUMBERS = (True, np.True_, "0.5", None, [0.5], math.nan, math.inf, -math.inf, np.float32("nan"))


class TestIntegers:
    @pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
    def test_every_integer_type_becomes_an_int(self, value: object):
        for given in (
            as_integer(value),
            check_integer("seed", value, least=0),
            check_count("k", value, most=3, of="heads"),
        ):
            assert given == 3
            assert type(given) is int

    @pytest.mark.parametrize("value", NO_INTEGERS)
    def test_all_else_is_refused(self, value: object):
        assert as_integer(value) is None
        with pytest.raises(InvalidArgumentError, match="an integer of at least 0"):
            check_integer("seed", value, least=0)
        with pytest.raises(InvalidArgumentError, match=r"an integer from 1$"):
            check_count("k", value, most=None, of="heads")

    @pytest.mark.parametrize("value", [-1, 2**63])
    def test_the_range_of_an_integer(self, value: int):
        limit = r"an integer of at least 0 and below 2\*\*63"
        with pytest.raises(InvalidArgumentError, match=f"seed={value} is not allowed: {limit}"):
            check_integer("seed", value, least=0)
        assert check_integer("seed", 2**63 - 1, least=0) == 2**63 - 1

    @pytest.mark.parametrize("value", [0, 13])
    def test_the_range_of_a_count(self, value: int):
        with pytest.raises(InvalidArgumentError, match=f"k={value}.*from 1 to the 12 heads"):
            check_count("k", value, most=12, of="heads")


class TestNumbers:
    @pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
    def test_every_real_type_becomes_a_float(self, value: object):
        number = check_number("xi", value, is_allowed=lambda x: x > 0, limit="above 0")
        assert number == value
        assert type(number) is float

    @pytest.mark.parametrize("value", [*NO_NUMBERS, -1, np.float32(0), *HUGE])
    def test_all_else_is_refused(self, value: object):
        with pytest.raises(InvalidArgumentError, match=r"xi=.* is not allowed: above 0") as caught:
            check_number("xi", value, is_allowed=lambda x: x > 0, limit="above 0")
        assert caught.value.param == "xi"
