"""What an estimator refuses, named: the column and the row of X, or that the attack has made it so."""

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from real_tables import titanic
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    StandardScaler,
)
from sklearn.svm import SVC

from ntkrobust_sk import PGD, Box, Square, make_robust_scorer, perturb, robust_accuracy, robustness_report

pytestmark = [
    pytest.mark.filterwarnings("ignore:attacks leave these columns"),
    pytest.mark.filterwarnings("ignore:.*no differentiable form"),
    pytest.mark.filterwarnings("ignore:.*refused"),
]
FRAME, SURVIVED = titanic()
FRAME = FRAME.dropna()[:120].astype({"embarked": object})
Y = SURVIVED[FRAME.index].to_numpy()
NUMBERS = ["age", "fare"]
ABOVE = FRAME[NUMBERS] + 1
NOTHING = PGD(9.0, 3, bounds=None)


def pipeline(encoder, last):
    columns = make_column_transformer((StandardScaler(), NUMBERS), (encoder, ["sex", "embarked"]))
    return make_pipeline(columns, last).fit(FRAME, Y)


def in_polars(frame):
    return pl.DataFrame({name: column.tolist() for name, column in frame.items()}, strict=False)


def power(last, X=ABOVE):
    return make_pipeline(PowerTransformer(method="box-cox"), last).fit(X, Y == "died")


@pytest.mark.parametrize("kind", [lambda frame: frame, in_polars], ids=["pandas", "polars"])
@pytest.mark.parametrize("rows", [[7, 9], [*range(120)]], ids=["some", "all"])
@pytest.mark.parametrize(
    "made",
    [
        lambda: pipeline(OneHotEncoder(), LogisticRegression()),
        lambda: pipeline(OrdinalEncoder(), LogisticRegression()),
        lambda: pipeline(OneHotEncoder(), RandomForestClassifier(3)),
        lambda: VotingClassifier([("a", pipeline(OneHotEncoder(), LogisticRegression()))]).fit(FRAME, Y),
    ],
    ids=["one-hot", "ordinal", "black box", "voting"],
)
def test_an_unknown_category_is_named_with_column_row_and_what_is_known(made, rows, kind):
    frame = FRAME.copy()
    frame.iloc[rows, frame.columns.get_loc("embarked")] = "X"
    encoder = "OrdinalEncoder" if "ordinal" in repr(made().get_params()).lower() else "OneHotEncoder"
    message = (
        f"column 'embarked' holds 'X' in row {rows[0]} and {len(rows) - 1} more, which is none of the categories "
        f"that {encoder} knows: 'C', 'S'"
    )
    with pytest.raises(ValueError, match=message):
        robust_accuracy(made(), kind(frame), Y, PGD(1.0, 2, bounds=None))


@pytest.mark.parametrize("kind", [lambda frame: frame, in_polars, lambda frame: frame.to_numpy()])
def test_any_refused_value_of_x_is_named(kind):
    frame = ABOVE.copy()
    frame.iloc[5, 1] = -1.0
    where = "feature 1" if isinstance(kind(frame), np.ndarray) else "column 'fare'"
    with pytest.raises(ValueError, match=rf"{where} holds -1.0 in row 5. It says: The Box-Cox transformation"):
        robust_accuracy(power(LogisticRegression(), kind(ABOVE)), kind(frame), Y == "died", NOTHING)


def test_an_unknown_category_that_the_encoder_ignores_is_attacked():
    frame = FRAME.assign(embarked="X")
    model = pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    assert 0 <= robust_accuracy(model, frame, Y, PGD(1.0, 2, bounds=None)) <= model.score(frame, Y)


def logarithm(last):
    X = FRAME[NUMBERS].to_numpy()
    return make_pipeline(FunctionTransformer(jnp.log1p), last).fit(X, Y == "died"), X


OUT_OF_DOMAIN = {
    "box-cox": lambda: (power(LogisticRegression()), ABOVE),
    "box-cox of arrays": lambda: (power(LogisticRegression(), ABOVE.to_numpy()), ABOVE.to_numpy()),
    "a regressor": lambda: (power(Ridge()), ABOVE),
    "a black box": lambda: (power(RandomForestClassifier(3, random_state=0)), ABOVE),
    "a logarithm": lambda: logarithm(LogisticRegression()),
    "a logarithm before an SVC": lambda: logarithm(SVC()),
    "box-cox before an SVC": lambda: (power(SVC()), ABOVE),
}


@pytest.mark.filterwarnings("ignore:.*NaN|invalid value|.*not finite")
@pytest.mark.parametrize("case", OUT_OF_DOMAIN)
@pytest.mark.parametrize(
    "call",
    [robust_accuracy, perturb, lambda *given: robustness_report(*given[:3], [9.0], bounds=None, attacks=given[3])],
    ids=["robust_accuracy", "perturb", "report"],
)
def test_inputs_that_an_attack_moves_out_of_the_domain_are_said_to_be_its_own(case, call):
    model, X = OUT_OF_DOMAIN[case]()
    if case == "a regressor" and call not in (robust_accuracy, perturb):
        pytest.skip("reports are of classifiers")
    attack = Square(9.0, 30, bounds=None) if case == "a black box" else NOTHING
    with pytest.raises(ValueError) as error:
        call(model, X, Y == "died", attack)
    assert "Pipeline takes X, but refuses what the attack has made of it" in str(error.value)
    assert "bounds=Box.from_data(X)" in str(error.value)
    inside = PGD(9.0, 3, bounds=Box.from_data(X))
    if case != "a black box":
        assert np.isfinite(robust_accuracy(model, X, Y == "died", inside))


def test_a_support_vector_machine_is_not_asked_about_examples_that_it_takes(monkeypatch):
    asked, predict = [], SVC.predict
    monkeypatch.setattr(SVC, "predict", lambda self, X: asked.append(len(X)) or predict(self, X))
    X = ABOVE.to_numpy()
    perturb(make_pipeline(StandardScaler(), SVC()).fit(X, Y == "died"), X, Y == "died", PGD(0.1, 2, bounds=None))
    assert max(asked) < len(X)


def test_a_metric_on_such_inputs_says_so_too():
    scorer = make_robust_scorer(NOTHING, metric="balanced_accuracy")
    with pytest.raises(ValueError, match=r"takes X, but refuses what the attack .* in column '(age|fare)'"):
        scorer(power(LogisticRegression()), ABOVE, Y == "died")
