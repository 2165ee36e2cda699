"""The one dialect of argument errors: what each check takes, and what it says of everything else."""

import datetime
import decimal
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from ntkrobust_sk import PGD
from ntkrobust_sk._validation import (
    array,
    check_choice,
    check_lengths,
    check_path,
    checked_seed,
    flag,
    function,
    integer,
    number,
    positive_tuple,
)

STRANGERS = [
    None,
    "x",
    b"x",
    1j,
    10**5000,
    float("nan"),
    float("inf"),
    [],
    {},
    (),
    {1},
    object(),
    lambda x: x,
    int,
    np,
    np.ndarray,
    np.array([1, 2]),
    np.array(None),
    np.array("a"),
    np.array(1j),
    decimal.Decimal("nan"),
    datetime.date(2020, 1, 1),
    FrozenEstimator(LogisticRegression()),
    scipy.sparse.eye(2),
    jax.random.key(0),
    ...,
]


@pytest.mark.parametrize("stranger", STRANGERS + [True, np.True_], ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_refused_by_name(stranger):
    for check in (number, integer):
        with pytest.raises(ValueError, match=r"step must be .*, got "):
            check("step", stranger)
    if not isinstance(stranger, tuple | list):
        with pytest.raises(ValueError, match=r"step must be .*, got "):
            positive_tuple("step", [stranger])
    if stranger is not None:
        with pytest.raises(ValueError, match="step must be None, an integer from 0"):
            checked_seed("step", stranger)


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda value: type(value).__name__)
def test_what_is_no_array_choice_path_or_flag_is_refused_by_name(stranger):
    if not isinstance(stranger, list | tuple) and np.shape(stranger) != (2,):
        with pytest.raises((TypeError, ValueError), match="X must be"):
            array("X", stranger)
    with pytest.raises(ValueError, match=r"unknown kind .*; known are 'a'"):
        check_choice("kind", stranger, ("a",))
    with pytest.raises(ValueError, match="centered must be True or False, got"):
        flag("centered", stranger)
    if not isinstance(stranger, str):
        with pytest.raises(TypeError, match="file must be a path"):
            check_path("file", stranger)


@pytest.mark.parametrize("value", [3, np.int8(3), np.array(3), jnp.int32(3), fractions.Fraction(3)])
def test_numbers_of_python_numpy_and_jax_are_taken(value):
    assert number("step", value) == 3.0
    if not isinstance(value, fractions.Fraction):
        assert integer("step", value) == 3
    assert number("step", jnp.bfloat16(0.5)) == 0.5


def test_counts_are_those_that_compiled_loops_can_hold():
    assert integer("n", 2**31 - 1) == 2**31 - 1
    for value in (2**31, 10**400):
        with pytest.raises(ValueError, match="n must be a positive integer, at most 2147483647, got"):
            integer("n", value)
        with pytest.raises(ValueError, match="n must be positive, at most"):
            positive_tuple("n", (value,))


@pytest.mark.parametrize("values", ["12", b"12", {1: 2}, {1}, 5, None, np, np.array(3)])
def test_what_is_no_sequence_of_integers_is_refused(values):
    with pytest.raises(ValueError, match="widths must be a sequence of positive integers"):
        positive_tuple("widths", values)
    assert positive_tuple("widths", iter([1, 2])) == (1, 2)


def test_a_function_is_asked_for_its_arguments_before_it_is_called():
    def attack(model, x, y, *, key):
        return x

    assert function("attack", attack, "attack(model, x, y, key=key)", 3, "key") is attack
    assert function("attack", PGD(0.1), "attack(model, x, y, key=key)", 3, "key") == PGD(0.1)
    for wrong in (lambda model, x, y: x, lambda model, x, *, key: x, lambda model, x, y, z, *, key: x):
        with pytest.raises(TypeError, match=r"attack must be callable as attack\(.*\), but .* takes \("):
            function("attack", wrong, "attack(model, x, y, key=key)", 3, "key")
    with pytest.raises(TypeError, match=r"attack must be callable as .*, got 5"):
        function("attack", 5, "attack(model, x, y, key=key)", 3, "key")
    with pytest.raises(TypeError, match=r"write PGD\(...\), not PGD"):
        function("attack", PGD, "attack(model, x, y, key=key)", 3, "key")


def test_arrays_come_in_this_machines_order_and_finite_where_asked():
    big = np.arange(3, dtype=">f8")
    assert array("X", big).dtype.isnative and (array("X", big) == big).all()
    assert array("X", pd.DataFrame({"a": [1.0]})).shape == (1, 1)
    assert array("X", jnp.ones(2, jnp.bfloat16)).dtype.name == "bfloat16"
    with pytest.raises(ValueError, match=r"X must be finite, but .* has NaN or infinity"):
        array("X", [1.0, np.nan], finite=True)
    with pytest.raises(TypeError, match=r"got a masked array; write X.filled\(value\)"):
        array("X", np.ma.array([1.0]))


def test_lengths_are_compared_by_name():
    assert check_lengths(X=np.zeros((3, 2)), y=[0, 1, 1]) == 3
    for rows in ([0, 1], []):
        with pytest.raises(ValueError, match="X and y must have the same, positive number of rows, got"):
            check_lengths(X=np.zeros((len(rows) and 3, 2)), y=rows)
