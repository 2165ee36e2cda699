"""Boxes by the names of a frame's columns, and boxes from data, on real tables."""

import pickle

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest
from real_tables import penguins, titanic
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ntkrobust_sk import (
    PGD,
    Box,
    EmpiricalNTKClassifier,
    as_model,
    minimal_perturbations,
    perturb,
    robust_accuracy,
    robustness_report,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:attacks leave these columns"),
    pytest.mark.filterwarnings("ignore:there is no differentiable form"),
]
NUMBERS = ["age", "sibsp", "parch", "fare"]
FRAME, SURVIVED = titanic()
FRAME, SURVIVED = FRAME[:200], SURVIVED[:200]
FULL = FRAME.dropna()
LABELS = SURVIVED[FULL.index]


def in_polars(frame):
    return pl.DataFrame({name: column.astype(object).tolist() for name, column in frame.items()}, strict=False)


@pytest.fixture(scope="module")
def pipeline():
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
        (OneHotEncoder(handle_unknown="ignore"), ["sex", "embarked", "pclass"]),
    )
    return make_pipeline(columns, LogisticRegression()).fit(FRAME, SURVIVED)


def test_names_and_positions_are_one_box(pipeline):
    d = len(FRAME.columns)
    by_name = Box({"age": 0}, {"age": 80, "fare": 600}, mask=["age", "fare", "sibsp"], integers=["sibsp"])
    low, high, mask = np.full(d, -np.inf), np.full(d, np.inf), np.zeros(d, bool)
    low[2], high[[2, 5]], mask[[2, 3, 5]] = 0, (80, 600), True
    by_position = Box(low, high, mask=mask, integers=[3])
    assert by_name.for_columns(list(FRAME.columns)) == by_position
    found = [perturb(pipeline, FULL, LABELS, PGD(3.0, 5, bounds=box)) for box in (by_name, by_position)]
    pd.testing.assert_frame_equal(*found)
    kept = FULL.columns.difference(["age", "fare", "sibsp"])
    pd.testing.assert_frame_equal(found[0][kept], FULL[kept])
    assert (found[0].dtypes == FULL.dtypes).all() and not found[0]["sibsp"].equals(FULL["sibsp"])
    assert found[0]["age"].min() >= 0 and (found[0]["fare"] - FULL["fare"]).abs().max() <= 3


def test_names_follow_their_columns_into_another_order(pipeline):
    attack = PGD(3.0, 5, bounds=Box({"age": 0}, mask=["age"]))
    turned = FULL[FULL.columns[::-1]]
    pd.testing.assert_frame_equal(
        perturb(pipeline, turned, LABELS, attack)[FULL.columns], perturb(pipeline, FULL, LABELS, attack)
    )


def test_a_dict_of_ranges_is_bounds(pipeline):
    attack = PGD(3.0, 5, bounds={"age": (1, 70)})
    assert attack.bounds == Box({"age": 1}, {"age": 70})
    with pytest.raises(ValueError, match="but X ranges"):
        perturb(pipeline, FULL, LABELS, attack)
    inside = (FULL["age"] >= 1) & (FULL["age"] <= 70)
    found = perturb(pipeline, FULL[inside], LABELS[inside], attack)
    assert found["age"].between(1, 70).all() and (found["fare"] != FULL[inside]["fare"]).any()


@pytest.mark.slow
def test_every_function_that_attacks_a_frame_takes_names(pipeline):
    box = Box(mask=["age", "fare"])
    clean = pipeline.score(FULL, LABELS)
    assert robust_accuracy(pipeline, FULL, LABELS, PGD(20.0, 5, bounds=box)) < clean
    report = robustness_report(pipeline, FULL, LABELS, [20.0], bounds=box, attacks=PGD(20.0, 5))
    assert report.accuracies[0, 0] < clean
    assert np.isfinite(minimal_perturbations(pipeline, FULL, LABELS, bounds=box)).all()
    frame = FULL[["age", "fare"]]
    own = EmpiricalNTKClassifier(random_state=0).fit(frame, LABELS)
    X_adv = own.perturb(frame, LABELS, PGD(5.0, 3, bounds=Box(mask=["age"])))
    assert X_adv["fare"].equals(frame["fare"]) and not X_adv["age"].equals(frame["age"])
    boxes = [Box(mask=["age"]), Box.from_data(in_polars(frame))]
    found = perturb(own, in_polars(frame), LABELS, PGD(5.0, 3, bounds=boxes[0]))
    assert found["fare"].equals(in_polars(frame)["fare"]) and boxes[1].names == {
        "age": "mask",
        "fare": "mask",
    }


UNKNOWN = {
    "low": Box({"agee": 0}),
    "mask": Box(mask=["agee"]),
    "integers": Box(integers=["agee"]),
    "one_hot": Box(one_hot=[["agee", "fare"]]),
    "categories": Box(categories=["agee"]),
}


@pytest.mark.parametrize("use", UNKNOWN)
def test_an_unknown_name_is_told_with_those_that_are_known(pipeline, use):
    with pytest.raises(ValueError) as error:
        perturb(pipeline, FULL, LABELS, PGD(1.0, bounds=UNKNOWN[use]))
    for part in (f"'agee' in {use}", "did you mean 'age'?", "'pclass', 'sex', 'age'"):
        assert part in str(error.value)


OF_TEXT = {"low": Box({"sex": 0}), "integers": Box(integers=["sex"]), "one_hot": Box(one_hot=[["sex", "fare"]])}


@pytest.mark.parametrize("use", OF_TEXT)
def test_text_is_named_where_numbers_are_asked_for(pipeline, use):
    message = rf"names the column 'sex' in {use}, but it holds (str|object), no numbers"
    with pytest.raises(ValueError, match=message):
        perturb(pipeline, FULL, LABELS, PGD(1.0, bounds=OF_TEXT[use]))


def test_names_where_there_are_arrays_are_refused(pipeline):
    X, y = FULL[NUMBERS].to_numpy(float), LABELS
    model = LogisticRegression().fit(X, y)
    attack = PGD(1.0, bounds=Box(mask=["age"]))
    for call in (
        lambda: perturb(model, X, y, attack),
        lambda: attack(as_model(model), X.astype(np.float32), np.zeros(len(X), int), key=jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match=r"names the column 'age' in mask, but .*give positions"):
            call()


def test_a_mask_of_columns_that_cannot_change_is_refused(pipeline):
    with pytest.raises(ValueError, match=r"mask leaves no column that may change: .*'sex' \((str|object)\)"):
        perturb(pipeline, FULL, LABELS, PGD(1.0, bounds=Box(mask=["sex"])))


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: Box({"age": 5}, {"age": 1}), "bounds of the column 'age' must be low <= high"),
        (lambda: Box({"age": 5}, 1), "bounds of the column 'age' must be low <= high"),
        (lambda: Box({"age": "young"}), "low must be a dict from names of columns to numbers"),
        (lambda: Box({"age": 1}, [1, 2]), "high must be a dict from names of columns to numbers"),
        (lambda: Box({2: 1}), "low must be a dict from names"),
        (lambda: PGD(1.0, bounds={"age": 3}), "bounds of the column 'age' must be two numbers"),
        (lambda: PGD(1.0, bounds={}), "a dict from names of columns"),
        (lambda: Box(mask=["age", 3]), "mask must hold a boolean"),
        (lambda: Box(integers=["age", 0.5]), "integers must be positions"),
        (lambda: Box(integers=np.array(1.0)), "integers must be positions"),
        (lambda: Box(integers=["age", "age"]), "one kind of values"),
        (lambda: Box(integers=["sex"], categories=["sex"]), "one kind of values"),
        (lambda: Box(categories={"sex": []}), "categories of 'sex' must be distinct values"),
        (lambda: Box(categories={"sex": ["f", "f"]}), "categories of 'sex' must be distinct values"),
        (lambda: Box(categories="sex"), "categories must be columns"),
        (lambda: Box(categories=["sex"], n_changes=-1), "n_changes"),
    ],
)
def test_boxes_by_name_that_make_no_sense_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_boxes_by_name_are_values():
    box = Box({"age": 0}, mask=["age", "sex"], integers=["age"], categories={"sex": ["male", "female"]})
    assert box == pickle.loads(pickle.dumps(box)) and hash(box) == hash(Box(**vars(box)))


# From data

DATES = FRAME.assign(when=pd.Timestamp("1912-04-15"), old=FRAME["age"] > 40, lost=np.nan)


def test_a_box_from_a_frame_has_its_ranges_and_its_integers():
    box = Box.from_data(FRAME)
    assert dict(box.low) == FRAME[["pclass", *NUMBERS]].min().to_dict()
    assert dict(box.high) == FRAME[["pclass", *NUMBERS]].max().to_dict()
    assert box.mask == ("pclass", *NUMBERS) and box.integers == ("pclass", "sibsp", "parch")
    assert Box.from_data(in_polars(FRAME)) == box
    nullable = FRAME.assign(
        age=pd.array(FRAME["age"].round().astype(object).where(FRAME["age"].notna(), None), "Int64")
    )
    assert "age" in Box.from_data(nullable).integers


def test_an_attack_in_a_box_from_data_gives_a_frame_of_the_same_kind(pipeline):
    box = Box.from_data(FRAME)
    X_adv = perturb(pipeline, FULL, LABELS, PGD(1.5, 5, bounds=box))
    assert (X_adv.dtypes == FULL.dtypes).all() and (X_adv.index == FULL.index).all()
    change = (X_adv[NUMBERS] - FULL[NUMBERS]).abs()
    assert change.to_numpy().max() <= 1.5 and change[["sibsp", "parch"]].to_numpy().max() == 1
    for name in NUMBERS:
        assert X_adv[name].between(FRAME[name].min(), FRAME[name].max()).all()


def test_a_constant_column_does_not_change_and_columns_without_numbers_have_no_range(pipeline):
    constant = FULL.assign(parch=0)
    X_adv = perturb(pipeline, constant, LABELS, PGD(5.0, 5, bounds=Box.from_data(constant)))
    assert (X_adv["parch"] == 0).all() and not X_adv["age"].equals(constant["age"])
    box = Box.from_data(FULL.assign(age=np.nan))
    assert "age" not in box.names and "sex" not in box.names


def test_a_box_from_an_array_is_by_position():
    X = FRAME[NUMBERS].to_numpy(float)
    box = Box.from_data(X, integers=[1, 2])
    assert box.low == tuple(np.nanmin(X, 0)) and box.high == tuple(np.nanmax(X, 0)) and box.integers == (1, 2)
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 3, 2)
    assert Box.from_data(images).integers == tuple(range(12)) and Box.from_data(images).high[0] == 12.0
    assert Box.from_data(np.ones((3, 2))).integers == ()
    X, _ = penguins()
    assert dict(Box.from_data(X).high)["body_mass_g"] == 6300


@pytest.mark.parametrize(
    "X, message",
    [
        (FRAME.assign(fare=np.inf), "column 'fare' of X holds infinite values"),
        (FRAME[["sex", "embarked"]], "no column of numbers"),
        (FRAME[:0], "no column of numbers"),
        (np.zeros((0, 3)), r"rows and features, got shape \(0, 3\)"),
        (np.arange(3), r"got shape \(3,\)"),
        (np.array([[1, np.nan], [2, np.nan]]), "feature 1 of X holds missing values alone"),
        (np.array([[1, np.inf]]), "X holds infinite values"),
    ],
)
def test_data_without_ranges_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        Box.from_data(X)


@pytest.mark.parametrize("frame", [FRAME, in_polars(FRAME)], ids=["pandas", "polars"])
def test_a_box_from_data_may_be_of_categories_alone(pipeline, frame):
    boxes = [
        Box.from_data(frame, mask=[], categories=["embarked"]),
        Box.from_data(frame[["sex", "embarked"]], categories=["embarked"]),
    ]
    full = FULL if frame is FRAME else in_polars(FULL)
    for box in boxes:
        found = perturb(pipeline, full, LABELS, PGD(5.0, 2, bounds=box))
        changed = [n for n in FULL if list(found[n]) != list(full[n])]
        assert box.mask == () and changed == ["embarked"]


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: Box.from_data([[1, 2], [3, 4]], mask=["a"]), "names the column 'a' in mask, but X is an array"),
        (lambda: Box.from_data([[1, 2], [3, 4]], integers=["a"]), "names the column 'a' in integers, but X is"),
        (lambda: Box.from_data([[1, 2], [3, 4]], categories=["a"]), "names the column 'a' in categories"),
        (lambda: Box.from_data([[1, 2], [3, 4]], mask=[True]), "mask has 1 booleans, but X has 2 features"),
        (lambda: Box.from_data([[1, 2], [3, 4]], integers=[2]), "positions below 2, .* got 2"),
        (lambda: Box.from_data(DATES, mask=["when"]), "mask names the column 'when', but it holds datetime64"),
        (
            lambda: Box.from_data(DATES, mask=["age", "sex"]),
            "'sex', but it holds (str|object).*categories=\\['sex'\\]",
        ),
        (lambda: Box.from_data(DATES, mask=["old"]), "mask names the column 'old', but it holds bool"),
        (lambda: Box.from_data(DATES, mask=["lost"]), "'lost', but it holds missing values alone"),
        (lambda: Box.from_data(DATES, integers=["sex"]), "integers names the column 'sex'"),
        (lambda: Box.from_data(DATES, one_hot=[["sex", "age"]]), "one_hot names the column 'sex'"),
        (lambda: Box.from_data(DATES, mask="age"), r"write mask=\['age'\]"),
        (lambda: Box(integers="age"), r"write integers=\['age'\]"),
        (lambda: Box(categories="age"), r"write categories=\['age'\]"),
    ],
)
def test_what_a_box_cannot_be_of_these_data_is_told_at_once(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_what_lies_outside_of_the_bounds_is_named_with_its_column_and_the_ways_out(pipeline):
    box = Box.from_data(FULL[:20])
    outside = FULL[NUMBERS].lt(FULL[:20][NUMBERS].min()) | FULL[NUMBERS].gt(FULL[:20][NUMBERS].max())
    with pytest.raises(ValueError) as error:
        perturb(pipeline, FULL, LABELS, PGD(1.0, bounds=box))
    for part in (
        f"({float(FULL[:20].fare.min())}, {float(FULL[:20].fare.max())}) in column 'fare'",
        f"{outside.any(axis=1).sum()} of {len(FULL)} rows",
        "by Box.from_data, or widen them by name, as in bounds={'fare': (low, high)}",
    ):
        assert part in str(error.value)
    assert "<" not in str(error.value)
    halves = FULL.assign(sibsp=FULL["sibsp"] + 0.5)
    with pytest.raises(ValueError, match="column 'sibsp' is one of the attack's integers, but X holds"):
        perturb(pipeline, halves, LABELS, PGD(1.0, bounds=Box(mask=["sibsp"], integers=["sibsp"])))


def test_integers_that_are_none_in_the_data_are_told():
    with pytest.raises(ValueError, match=r"0 is one of integers, but X holds 0.5"):
        Box.from_data(np.array([[0.5, 1.0]]), integers=[0])
    with pytest.raises(ValueError, match="'fare' is one of integers, but X holds"):
        Box.from_data(FRAME, integers=["fare"])
