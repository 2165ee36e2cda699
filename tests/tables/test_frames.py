"""Pipelines on data frames under attack: what stays as it is, what comes back, by which gradients."""

import warnings
from functools import cache

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import SVC

from ntkrobust_sk import (
    PGD,
    Box,
    EmpiricalNTKClassifier,
    Square,
    certify,
    check_evaluation,
    make_robust_scorer,
    minimal_perturbations,
    perturb,
    robust_accuracy,
    robustness_report,
    transfer_matrix,
)
from ntkrobust_sk.robustness.target import attackable
from ntkrobust_sk.tables.frames import as_table
from ntkrobust_sk.targets.target import enable_x64

pytestmark = pytest.mark.filterwarnings("ignore:attacks leave these columns")
N = 80
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "a": RNG.uniform(size=N),
        "city": RNG.choice(["Rome", "Oslo", "Bern"], N),
        "b": RNG.uniform(size=N).astype(np.float32),
        "kind": RNG.integers(0, 3, N),
        "flag": RNG.random(N) > 0.5,
        "m": np.where(RNG.random(N) < 0.2, np.nan, RNG.uniform(size=N)),
        "day": pd.date_range("2024-01-01", periods=N),
        "text": RNG.choice(["one two", "two three", "three"], N),
    },
    # neither unique nor in order
    index=np.tile(np.arange(N // 2), 2)[::-1],
)
FRAME["size"] = FRAME["city"].astype("category")
Y = np.where(FRAME.a + 0.3 * (FRAME.city == "Rome") + 0.4 * FRAME.b + 0.2 * FRAME.kind > 1, "yes", "no")
NUMBERS = ["a", "b"]
ATTACK = PGD(0.1, 10)


def columns(*encoders):
    first = ("numbers", StandardScaler(), ["b", "a"])
    return ColumnTransformer([first, *((f"e{at}", *e) for at, e in enumerate(encoders))])


FORMS = {
    "one-hot": columns((OneHotEncoder(), ["city", "kind"])),
    "drop": columns((OneHotEncoder(drop="first"), ["city"])),
    "rare": columns((OneHotEncoder(min_frequency=30, handle_unknown="ignore", sparse_output=False), ["city"])),
    "ordinal": columns((OrdinalEncoder(), ["city", "size"])),
    "imputed": columns((make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["m", "b"])),
    "text": columns((CountVectorizer(), "text")),
    "mask": ColumnTransformer([("n", StandardScaler(), np.isin(FRAME.columns, NUMBERS))]),
    "selector": ColumnTransformer(
        [
            ("n", StandardScaler(), make_column_selector("^[ab]$")),
            ("c", OneHotEncoder(), make_column_selector(dtype_include="category")),
        ]
    ),
    "boolean": columns(("passthrough", ["flag", "a"])),
    "weights": ColumnTransformer(
        [("n", StandardScaler(), NUMBERS), ("c", OneHotEncoder(), ["city"])],
        transformer_weights={"n": 3, "c": 0.5},
    ),
    "most frequent": columns((make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["city"])),
}


@cache
def fitted(name):
    return make_pipeline(FORMS[name], LogisticRegression()).fit(FRAME, Y)


def on_columns(last):
    return make_pipeline(columns((OneHotEncoder(), ["city"])), last)


LOGISTIC = on_columns(LogisticRegression())
ENSEMBLES = {
    "voting": VotingClassifier([("a", LOGISTIC), ("b", on_columns(GaussianNB()))], voting="soft", weights=[2, 1]),
    "stacking": StackingClassifier([("a", LOGISTIC), ("b", on_columns(SVC()))], cv=2),
    "calibrated": CalibratedClassifierCV(on_columns(SVC()), cv=2),
    "one against the rest": OneVsRestClassifier(LOGISTIC),
    "after the columns": on_columns(BaggingClassifier(LogisticRegression(), n_estimators=3, random_state=0)),
    "powers": make_pipeline(
        ColumnTransformer(
            [
                ("p", make_pipeline(PowerTransformer(), SplineTransformer(4)), ["a"]),
                ("q", QuantileTransformer(n_quantiles=20), ["b"]),
                ("c", OneHotEncoder(), ["city"]),
            ]
        ),
        QuadraticDiscriminantAnalysis(reg_param=0.2),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENSEMBLES)
def test_estimators_that_ask_others_are_attacked_by_gradients_on_frames(name):
    estimator = clone(ENSEMBLES[name]).fit(FRAME, Y)
    target = attackable(estimator, FRAME, Y)
    assert target.no_gradient_because is None
    assert set(np.array(list(FRAME.columns))[target.free]) >= {"a", "b"}
    assert not target.free[list(FRAME.columns).index("city")]
    moved = target.X + 0.2 * RNG.uniform(-1, 1, target.X.shape) * target.free
    frame = target.in_original_form(moved)
    with enable_x64(True):
        scores = np.asarray(target.model(moved))
    assert (estimator.classes_[scores.argmax(1)] == estimator.predict(frame)).all()
    by_gradients = robust_accuracy(estimator, FRAME, Y, PGD(0.1, 20, bounds=None), random_state=0)
    by_search = robust_accuracy(estimator, FRAME, Y, Square(0.1, 200, bounds=None), random_state=0)
    assert by_gradients <= by_search + 0.02 and by_gradients < estimator.score(FRAME, Y)


@cache
def forest():
    return make_pipeline(FORMS["one-hot"], RandomForestClassifier(5, random_state=0)).fit(FRAME, Y)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_gradients_pass_encoders_and_scores_are_the_pipeline_s_own(name):
    pipeline = fitted(name)
    target = attackable(pipeline, FRAME, Y)
    assert target.no_gradient_because is None
    moved = target.X + 0.2 * RNG.uniform(-1, 1, target.X.shape) * target.free
    with enable_x64(True):
        scores = np.asarray(target.model(moved))
    np.testing.assert_allclose(
        scores[:, 1] - scores[:, 0], pipeline.decision_function(target.in_original_form(moved)), atol=1e-6
    )
    attack = PGD(0.1, 10, bounds=None)
    X_adv = perturb(pipeline, FRAME, Y, attack)
    # the attack's optimum is known: the sign of each weight
    margin = np.where(Y == "yes", 1, -1)
    fallen = margin * (pipeline.decision_function(FRAME) - pipeline.decision_function(X_adv))
    step = FRAME.copy()
    for column in NUMBERS:
        ahead = FRAME.assign(**{column: FRAME[column] + 0.01})
        slope = (pipeline.decision_function(ahead) - pipeline.decision_function(FRAME)).mean()
        step[column] = FRAME[column] - 0.1 * np.sign(slope) * margin
    best = margin * (pipeline.decision_function(FRAME) - pipeline.decision_function(step))
    np.testing.assert_allclose(fallen, best, atol=1e-5)
    assert robust_accuracy(pipeline, FRAME, Y, attack) == pipeline.score(X_adv, Y) == pipeline.score(step, Y)


@pytest.mark.slow
@pytest.mark.parametrize("model", [lambda: fitted("one-hot"), forest], ids=["gradients", "black box"])
def test_what_comes_back_is_the_frame_with_other_numbers(model):
    X_adv = perturb(model(), FRAME, Y, Square(0.1, 30))
    rest = FRAME.columns.difference(NUMBERS)
    pd.testing.assert_frame_equal(X_adv[rest], FRAME[rest])
    assert (X_adv.dtypes == FRAME.dtypes).all() and (X_adv.index == FRAME.index).all()
    change = np.abs(X_adv[NUMBERS].astype(float).to_numpy() - FRAME[NUMBERS].astype(float).to_numpy())
    assert 0.05 < change.max() <= 0.1 + 1e-15
    assert X_adv[NUMBERS].min().min() >= 0 and X_adv[NUMBERS].max().max() <= 1


@pytest.mark.slow
def test_a_black_box_on_a_frame_is_attacked_without_a_warning_of_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "attacks leave")
        score = robust_accuracy(forest(), FRAME, Y, Square(0.1, 30))
    assert score < forest().score(FRAME, Y)


@pytest.mark.slow
def test_the_fixed_columns_are_named_once_with_the_reason():
    with pytest.warns(UserWarning, match=r"as they are: 'city' \(str\), 'kind' \(categories of OneHotEncoder\)"):
        perturb(fitted("one-hot"), FRAME, Y, ATTACK)


@pytest.mark.slow
def test_columns_in_another_order_are_attacked_by_their_names():
    pipeline, turned = fitted("one-hot"), FRAME[FRAME.columns[::-1]]
    X_adv, same = perturb(pipeline, turned, Y, ATTACK), perturb(pipeline, FRAME, Y, ATTACK)
    assert list(X_adv.columns) == list(turned.columns)
    assert pipeline.score(X_adv, Y) == pipeline.score(same, Y)


def test_bounds_and_masks_count_the_columns_of_the_frame():
    pipeline, d = fitted("one-hot"), FRAME.shape[1]
    mask = np.arange(d) == 2
    X_adv = perturb(pipeline, FRAME, Y, PGD(0.1, bounds=Box(np.zeros(d), np.ones(d), mask=mask)))
    assert X_adv["a"].equals(FRAME["a"]) and not X_adv["b"].equals(FRAME["b"])
    with pytest.raises(ValueError, match="mask has 3 numbers"):
        perturb(pipeline, FRAME, Y, PGD(0.1, bounds=Box(mask=[True] * 3)))


OTHER = np.random.default_rng(1)
COUNTS = pd.DataFrame(
    {"a": OTHER.uniform(2.5, 8, N), "n": OTHER.integers(2, 9, N), "k": 254 * OTHER.integers(0, 2, N) + 1}
)
COUNTED = (COUNTS.a + COUNTS.n + COUNTS.k / 32 > 11).astype(int)
COUNTER = LogisticRegression().fit(COUNTS, COUNTED)


@pytest.mark.parametrize(
    "bounds", [None, (0, 300), Box(0, 300), {"a": (0, 300)}], ids=["none", "two", "box", "names"]
)
@pytest.mark.parametrize("dtype", ["int64", "int16", "Int64", "uint64", "polars"])
def test_integers_of_a_frame_stay_integers_whatever_the_bounds_are(bounds, dtype):
    frame = COUNTS.astype({"n": "int64" if dtype == "polars" else dtype, "k": "uint8"})
    frame = pl.from_pandas(frame) if dtype == "polars" else frame
    found = perturb(COUNTER, frame, COUNTED, PGD(2.5, 4, bounds=bounds))
    assert list(found.dtypes) == list(frame.dtypes)
    moves = np.abs(np.stack([np.asarray(found[name], float) - np.asarray(frame[name], float) for name in "ank"]))
    # at 255 and 1 of bytes there is no room outwards
    assert 2 < moves[0].max() <= 2.5 and moves[1].max() == 2 and moves[2].max() <= 2


def test_fractions_are_let_into_integers_where_that_is_said():
    stated = perturb(COUNTER, COUNTS, COUNTED, PGD(0.3, 4, bounds=Box(0, 300, integers=[])))
    cast = perturb(COUNTER, COUNTS.astype(float), COUNTED, PGD(0.3, 4, bounds=(0, 300)))
    pd.testing.assert_frame_equal(stated, cast)
    assert (stated.n % 1 != 0).any() and stated.n.dtype == np.float64
    floats = COUNTS.astype({"n": float})
    stated = perturb(COUNTER, floats, COUNTED, PGD(1.5, 4, bounds=Box(0, 300, integers=["n"])))
    assert (stated.n % 1 == 0).all() and not stated.n.equals(floats.n)


def test_a_radius_too_short_for_integers_is_told_unless_the_box_states_them():
    with pytest.warns(UserWarning, match=r"radius of 0.3 is too short to move: .* 'n', 'k'. To let fractions in"):
        found = perturb(COUNTER, COUNTS, COUNTED, PGD(0.3, 4, bounds=None))
    assert found[["n", "k"]].equals(COUNTS[["n", "k"]]) and not found.a.equals(COUNTS.a)
    of_arrays = LogisticRegression().fit(COUNTS.to_numpy(), COUNTED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perturb(COUNTER, COUNTS, COUNTED, PGD(0.3, 4, bounds=Box(0, 300, integers=["n", "k"])))
        perturb(COUNTER, COUNTS, COUNTED, PGD(0.3, 4, bounds=None), epsilon=np.full(N, 2.0))
        perturb(of_arrays, COUNTS.to_numpy(), COUNTED, PGD(0.3, 4, bounds=None))


@pytest.mark.slow
@pytest.mark.parametrize("model", [lambda: fitted("one-hot"), forest], ids=["gradients", "black box"])
def test_everything_that_takes_an_estimator_takes_a_frame(model):
    model, attack = model(), Square(0.1, 20)
    scorer = make_robust_scorer(attack)
    search = GridSearchCV(model, {}, scoring=scorer, cv=2).fit(FRAME, Y)
    assert 0 < search.best_score_ < 1
    assert cross_validate(model, FRAME, Y, scoring=scorer, cv=2)["test_score"].mean() == search.best_score_
    report = robustness_report(model, FRAME, Y, [0.05, 0.1], attacks=attack)
    assert report.accuracies[0, 1] <= report.accuracies[0, 0] <= report.clean_accuracy
    found = transfer_matrix({"this": model, "linear": fitted("one-hot")}, FRAME, Y, attack)
    assert found.matrix[0, 0] < found.clean[0] and found.attacks == ("Square", "Square")
    assert check_evaluation(model, FRAME, Y, attack, n_queries=20)
    assert (certify(model, FRAME[:2], sigma=0.1, n_samples=50).radii >= 0).all()
    if model is not forest():
        distances = minimal_perturbations(model, FRAME, Y, bounds=None)
        assert np.isfinite(distances).all() and distances.max() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*black box")
def test_polars_frames_are_attacked_as_those_of_pandas_are():
    frame = pl.DataFrame({name: FRAME[name].to_list() for name in ("a", "city", "b", "kind")})
    pipeline = make_pipeline(columns((OneHotEncoder(), ["city", "kind"])), LogisticRegression()).fit(frame, Y)
    X_adv = perturb(pipeline, frame, Y, ATTACK)
    assert isinstance(X_adv, pl.DataFrame) and X_adv.schema == frame.schema
    assert X_adv["city"].equals(frame["city"]) and not X_adv["a"].equals(frame["a"])
    same = make_pipeline(columns((OneHotEncoder(), ["city", "kind"])), LogisticRegression()).fit(FRAME, Y)
    assert robust_accuracy(pipeline, frame, Y, ATTACK) == robust_accuracy(same, FRAME, Y, ATTACK)


@pytest.mark.slow
@pytest.mark.parametrize("frame", [FRAME[NUMBERS], pl.from_pandas(FRAME[NUMBERS])], ids=["pandas", "polars"])
def test_own_estimators_give_frames_back(frame):
    model = EmpiricalNTKClassifier(random_state=0).fit(frame, Y)
    X_adv = perturb(model, frame, Y, PGD(0.1, 2))
    assert type(X_adv) is type(frame) and list(X_adv.columns) == NUMBERS
    assert model.score(X_adv, Y) == pytest.approx(model.robust_score(frame, Y, PGD(0.1, 2)))


def test_a_regressor_on_a_frame_is_attacked_through_its_gradients():
    targets = FRAME.a * 2 + (FRAME.city == "Rome")
    model = make_pipeline(FORMS["one-hot"], Ridge()).fit(FRAME, targets)
    assert robust_accuracy(model, FRAME, targets, ATTACK) < model.score(FRAME, targets) - 0.05


@pytest.mark.slow
def test_an_encoder_in_a_pipeline_on_arrays_holds_its_columns():
    X = FRAME[["a", "b", "kind"]].to_numpy(float)
    encoder = ColumnTransformer([("c", OneHotEncoder(), [2])], remainder="passthrough")
    for last in (LogisticRegression(), RandomForestClassifier(5, random_state=0)):
        model = make_pipeline(encoder, last).fit(X, Y)
        X_adv = perturb(model, X, Y, Square(0.1, 30, bounds=(0, 2)))
        assert (X_adv[:, 2] == X[:, 2]).all() and np.abs(X_adv - X).max() > 0.09


@pytest.mark.slow
def test_columns_of_which_an_estimator_refuses_other_values_stay():
    class Strict(RandomForestClassifier):
        def predict(self, X):
            if (X["kind"] % 1 != 0).any():
                raise ValueError("kinds are whole")
            return super().predict(X)

    frame = FRAME[["a", "kind"]]
    with pytest.warns(UserWarning, match=r"'kind' \(other values are refused: kinds are whole\)"):
        X_adv = perturb(Strict(5, random_state=0).fit(frame, Y), frame, Y, Square(0.1, 20, bounds=(0, 3)))
    assert X_adv["kind"].equals(frame["kind"])


@pytest.mark.parametrize(
    "frame, error, message",
    [
        (pd.concat([FRAME, FRAME[["a"]]], axis=1), ValueError, "several columns named 'a'"),
        (FRAME.drop(columns="a"), ValueError, "columns are missing: {'a'}"),
        (FRAME[:0], ValueError, "minimum of 1"),
        (pl.from_pandas(FRAME[NUMBERS]).lazy(), TypeError, "collect"),
    ],
    ids=["twice", "missing", "empty", "lazy"],
)
def test_frames_that_cannot_be_attacked_are_named(frame, error, message):
    with pytest.raises(error, match=message):
        robust_accuracy(fitted("one-hot"), frame, Y[: len(FRAME[:0])] if message == "minimum of 1" else Y, ATTACK)


@pytest.mark.parametrize("dtype", ["int64", "Int64", "uint8", "float32", "Float64", "Float32"])
def test_a_table_leads_back_to_the_frame_to_the_last_digit(dtype):
    frame = FRAME.assign(n=pd.array(np.arange(N), dtype=dtype))
    table = as_table(frame)
    pd.testing.assert_frame_equal(table.in_original_form(table.coded()), frame)
    rows = np.array([5, 5, 2])
    pd.testing.assert_frame_equal(table.in_original_form(table.coded()[rows], rows), frame.iloc[rows])


@pytest.mark.parametrize("last", [LogisticRegression(), SVC()], ids=["linear", "machine"])
def test_the_guard_of_a_frame_converts_it_once_and_compiles_nothing(last, monkeypatch):
    pipeline = make_pipeline(FORMS["one-hot"], last).fit(FRAME, Y)
    calls, transform = [], ColumnTransformer.transform

    def counted(self, X):
        calls.append(len(X))
        return transform(self, X)

    monkeypatch.setattr(ColumnTransformer, "transform", counted)
    target = attackable(pipeline, FRAME, Y)
    # all rows for what stands in fixed columns, and those that are compared
    assert calls == [N, 64]
    assert type(target.model(target.X)) is np.ndarray


@pytest.mark.parametrize("last", [LogisticRegression(), RandomForestClassifier(3)], ids=["gradients", "black box"])
@pytest.mark.parametrize(
    "given, message",
    [
        (FRAME[NUMBERS].to_numpy(), "only supported for dataframes"),
        (FRAME[NUMBERS].to_numpy().tolist(), "only supported for dataframes"),
        (FRAME[["a"]], "columns are missing: {'b'}"),
        (FRAME[NUMBERS].rename(columns={"a": "q"}), "columns are missing: {'a'}"),
    ],
    ids=["array", "list", "missing", "renamed"],
)
def test_what_scikit_learn_says_of_inputs_is_said_first(last, given, message):
    pipeline = make_pipeline(columns(), last).fit(FRAME[NUMBERS], Y)
    with pytest.raises(ValueError, match=message):
        robust_accuracy(pipeline, given, Y, ATTACK)


@pytest.mark.slow
def test_a_frame_without_a_column_to_change_is_refused_by_own_estimators_too():
    frame = FRAME[NUMBERS].astype(object)
    own = EmpiricalNTKClassifier(random_state=0).fit(FRAME[NUMBERS], Y)
    for takes in (robust_accuracy, perturb, own.robust_score):
        with pytest.raises(ValueError, match=r"no column of X: 'a' \(object\), 'b' \(object\)"):
            takes(*(() if takes == own.robust_score else (own,)), frame, Y, ATTACK)


MISSING = np.where(np.arange(4 * N).reshape(N, 4) % 79 == 5, np.nan, np.random.default_rng(1).uniform(size=(N, 4)))
MISSING[:, [1, 3]] = np.random.default_rng(2).uniform(size=(N, 2))
MODELS_OF_MISSING = {
    "imputed": make_pipeline(SimpleImputer(), LogisticRegression()),
    "boosted": HistGradientBoostingClassifier(max_iter=5),
    "ours": make_pipeline(SimpleImputer(), EmpiricalNTKClassifier(random_state=0)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:there is no differentiable form")
@pytest.mark.parametrize("name", MODELS_OF_MISSING)
@pytest.mark.parametrize("form", [np.asarray, np.ndarray.tolist], ids=["array", "list"])
def test_arrays_with_missing_values_are_attacked_as_their_frames_are(name, form):
    y, frame = MISSING[:, 1] > MISSING[:, 3], pd.DataFrame(MISSING, columns=list("abcd"))
    of_array, of_frame = (clone(MODELS_OF_MISSING[name]).fit(X, y) for X in (MISSING, frame))
    with pytest.warns(UserWarning, match=r"as they are: 0 \(missing values\), 2 \(missing values\)\."):
        X_adv = np.asarray(perturb(of_array, form(MISSING), y, ATTACK))
    np.testing.assert_array_equal(X_adv, perturb(of_frame, frame, y, ATTACK).to_numpy())
    np.testing.assert_array_equal(X_adv[:, [0, 2]], MISSING[:, [0, 2]])
    assert (X_adv[:, [1, 3]] != MISSING[:, [1, 3]]).any()
    assert (
        robust_accuracy(of_array, form(MISSING), y, ATTACK)
        == of_array.score(X_adv, y)
        < of_array.score(MISSING, y)
    )


def test_missing_values_are_refused_where_the_estimator_refuses_them_or_nothing_is_left():
    y, X = MISSING[:, 1] > 0.5, np.nan_to_num(MISSING)
    with pytest.raises(ValueError, match="LogisticRegression does not accept missing values"):
        robust_accuracy(LogisticRegression().fit(X, y), MISSING, y, ATTACK)
    nothing = np.where(np.arange(N)[:, None] == 3, np.nan, MISSING)
    with pytest.raises(
        ValueError, match=r"may change no column .*leave out rows with missing values, or fill them"
    ):
        robust_accuracy(clone(MODELS_OF_MISSING["imputed"]).fit(X, y), nothing, y, ATTACK)
    with pytest.raises(ValueError, match="infinity"):
        robust_accuracy(
            clone(MODELS_OF_MISSING["imputed"]).fit(X, y), np.where(MISSING > 0.9, np.inf, X), y, ATTACK
        )


@pytest.mark.slow
def test_columns_of_one_name_are_refused_by_fit_and_predict():
    frame = pd.DataFrame(np.eye(4), columns=list("aabc"))
    with pytest.raises(ValueError, match="X has several columns named 'a'; give each column a name of its own"):
        EmpiricalNTKClassifier().fit(frame, [0, 1, 0, 1])
    fitted = EmpiricalNTKClassifier(random_state=0).fit(frame.set_axis(list("abcd"), axis=1), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="X has several columns named 'a'"):
        fitted.predict(frame)
