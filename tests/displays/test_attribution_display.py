"""The display of attributions: the images that it draws, and what it refuses."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from ntkrobust_sk import (
    MLP,
    PGD,
    AttributionDisplay,
    EmpiricalNTKClassifier,
    Model,
    TopContributions,
    load_digits_images,
)

images, y = load_digits_images()
X, LABELS = images[:30], y[:30]
NETWORK = MLP(n_outputs=10, widths=(8,))
ATTACK = PGD(0.3, n_steps=2)
TOP = TopContributions.of_matrix(np.random.default_rng(0).normal(size=(2, 30)), 3)


@pytest.fixture(scope="module")
def machine():
    model = Model(NETWORK, NETWORK.init(jax.random.key(0), (8, 8, 1)))
    return EmpiricalNTKClassifier(model, alpha=0.1).fit(X, LABELS)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(display):
    """Images in the order of drawing, and what is written under them."""
    texts = [text.get_text() for text in display.ax_.texts]
    return [np.asarray(image.get_array()) for image in display.ax_.images], texts


def test_it_draws_the_images_that_are_named_and_writes_their_labels():
    display = AttributionDisplay(images[40:42], X, TOP, ["first", "second"], LABELS).plot()
    found, texts = drawn(display)
    expected = [*images[40:42], *X[TOP.helpful.ravel()], *X[TOP.harmful.ravel()]]
    for image, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(image, other[..., 0])
    assert f"{LABELS[TOP.harmful[1, 0]]}: {TOP.harmful_values[1, 0]:+.2g}" in texts
    assert {"most helpful", "most harmful"} < set(texts)
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["first", "second"]


def test_it_draws_into_the_axes_of_its_caller_without_changing_their_size():
    figure, ax = plt.subplots(figsize=(5, 3))
    assert AttributionDisplay(images[:2], X, TOP).plot(ax).ax_ is ax
    np.testing.assert_allclose(figure.get_size_inches(), (5, 3))


def test_from_estimator_draws_each_image_and_under_attack_what_its_answer_rests_on(machine):
    display = AttributionDisplay.from_estimator(machine, X[:2], LABELS[:2], attack=ATTACK, k=2, labels=LABELS)
    attacked = machine.perturb(X[:2], LABELS[:2], ATTACK)
    inputs = np.stack([X[:2], attacked], axis=1).reshape(4, 8, 8, 1)
    found, _ = drawn(display)
    for image, other in zip(found[:4], inputs, strict=True):
        np.testing.assert_array_equal(image, other[..., 0])
    top = machine.top_attributions(inputs, 2)
    np.testing.assert_array_equal(found[4], X[top.helpful[0, 0], ..., 0])
    said = [label.get_text() for label in display.ax_.get_yticklabels()]
    answers = machine.predict(inputs)
    assert said == [f"{way}: {answer}" for way, answer in zip(["clean", "attacked"] * 2, answers, strict=True)]


def test_rows_are_drawn_as_the_images_that_they_are(machine):
    display = AttributionDisplay.from_estimator(machine, X[:1].reshape(1, 64), k=1)
    np.testing.assert_array_equal(drawn(display)[0][0], X[0, ..., 0])


def test_a_machine_on_rows_is_told_to_name_the_shape_of_its_images():
    rows = X.reshape(30, 64)
    flat = EmpiricalNTKClassifier(NETWORK, random_state=0).fit(rows, LABELS)
    with pytest.raises(ValueError, match=r"inputs have shape \(64,\); .*fit it with input_shape="):
        AttributionDisplay.from_estimator(flat, rows[:2])
    with pytest.raises(NotFittedError):
        AttributionDisplay.from_estimator(EmpiricalNTKClassifier(NETWORK), rows[:2])
    shaped = EmpiricalNTKClassifier(NETWORK, input_shape=(8, 8, 1), random_state=0).fit(rows, LABELS)
    assert len(drawn(AttributionDisplay.from_estimator(shaped, rows[:2], k=1))[0]) == 6


def test_colours_are_drawn():
    colours = np.random.default_rng(0).uniform(size=(3, 4, 5, 3))
    top = TopContributions.of_matrix(np.arange(6.0).reshape(2, 3), 1)
    assert drawn(AttributionDisplay(colours[:2], colours, top).plot())[0][0].shape == (4, 5, 3)


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda m: AttributionDisplay(X[:2, :4], X, TOP), ValueError, "must be of one size"),
        (lambda m: AttributionDisplay(X[0], X, TOP), ValueError, "images must"),
        (lambda m: AttributionDisplay(X[:3], X, TOP), ValueError, "top must be of the 3 images, got that of 2"),
        (lambda m: AttributionDisplay(X[:2], X[:2], TOP), ValueError, "top names training image .* there are 2"),
        (lambda m: AttributionDisplay(X[:2], X, TOP.helpful), TypeError, "top must be TopContributions"),
        (lambda m: AttributionDisplay(X[:2], X, TOP, ["a"]), ValueError, "names must be 2 labels"),
        (lambda m: AttributionDisplay(X[:2], X, TOP, labels=y[:3]), ValueError, "labels must be 30 labels"),
        (lambda m: AttributionDisplay(X[:2], X, TOP).plot(3), TypeError, "ax must be a matplotlib Axes"),
        (lambda m: AttributionDisplay.from_estimator(NETWORK, X), TypeError, "a fitted EmpiricalNTKClassifier"),
        (lambda m: AttributionDisplay.from_estimator(m, X, attack=ATTACK), ValueError, "needs the true labels"),
        (lambda m: AttributionDisplay.from_estimator(m, X, k=31), ValueError, "k must"),
    ],
)
def test_what_does_not_fit_is_said(call, error, said, machine):
    with pytest.raises(error, match=said):
        call(machine)
