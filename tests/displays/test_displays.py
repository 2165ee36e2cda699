"""Displays: what they draw is what was measured, on their own axes or on those given."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    EvolutionDisplay,
    ImageGridDisplay,
    KernelDistanceDisplay,
    RobustnessCurveDisplay,
    SpecializationDisplay,
    SpectrumDisplay,
    TransferDisplay,
    gram,
    kernel_distance,
    kernel_specialization,
)
from ntkrobust_sk.displays.kernels import spectrum

X = np.random.default_rng(0).uniform(size=(12, 4)).astype(np.float32)
Y = np.array(["a", "b", "c"] * 4)


@pytest.fixture(scope="module")
def trainer():
    return AdversarialKernelTrainer(MLP(widths=(3,)), max_epochs=1, random_state=0).fit(X, Y)


def test_kernels_are_drawn_as_matrices_and_as_operators():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(40, 60)) * np.arange(1, 61) ** -1.5 for _ in range(2)]
    matrices = {name: F @ F.T for name, F in zip("ab", features, strict=True)}
    operators = {name: aslinearoperator(K) for name, K in matrices.items()}
    exact, estimated = (KernelDistanceDisplay.from_kernels(kernels) for kernels in (matrices, operators))
    np.testing.assert_allclose(exact.distances[0, 1], kernel_distance(*matrices.values()))
    np.testing.assert_allclose(estimated.distances, exact.distances, atol=0.02)
    whole = SpectrumDisplay.from_kernels(matrices)
    first = SpectrumDisplay.from_kernels({"a": operators["a"], "b": matrices["b"]}, k=5)
    shares = [[line.get_ydata() for line in display.ax_.lines] for display in (whole, first)]
    assert [len(line) for line in shares[1]] == [5, 40]
    np.testing.assert_allclose(shares[1][0], shares[0][0][:5], rtol=0.05)
    np.testing.assert_allclose(shares[1][1], shares[0][1])
    assert whole.eigenvalues["a"].sum() == pytest.approx(np.trace(matrices["a"]))


@pytest.mark.parametrize("made", [KernelDistanceDisplay, SpectrumDisplay])
def test_what_is_no_kernel_is_not_drawn(made):
    for kernels, error in (([np.eye(2)], TypeError), ({"a": np.ones((2, 3))}, ValueError), ({}, TypeError)):
        with pytest.raises(error, match="kernels"):
            made.from_kernels(kernels)
    with pytest.raises(ValueError, match="traces"):
        SpectrumDisplay({"a": [1.0]}, {"a": 0.0})


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def kernel(seed):
    A = np.random.default_rng(seed).normal(size=(6, 3))
    return A @ A.T


def fake_result():
    """Two seeds of two regimes with three states each."""
    epochs = [0.0, 1.0, 2.0]
    numbers = {"benign": 0, "adversarial": 100}

    def kernel_of(seed, regime, epoch, images="clean"):
        return kernel(int(10 * seed + epoch + numbers[regime]))

    return SimpleNamespace(
        path="somewhere",
        experiment=SimpleNamespace(regimes=("benign", "adversarial"), seeds=2),
        epochs=lambda seed, regime: epochs,
        kernel=kernel_of,
        measured=lambda seed, regime: ["robust", "clean_effective_rank", "clean"],
        curve=lambda seed, regime, name: (np.array(epochs), np.array([0.1, 0.2, 0.3]) * (1 + seed)),
        velocity=lambda seed, regime: (np.array([0.5, 1.5]), np.array([1.0, 0.1]) * (1 + seed)),
        distances=lambda states, images: np.array(
            [[kernel_distance(kernel_of(*a), kernel_of(*b)) for b in states] for a in states]
        ),
        at=lambda seed, regime, epoch: {"specialization_matrix": (np.eye(3) + 0.5).tolist()},
        of_kind=lambda kind, seed: (
            [{"matrix": [[0.1, 0.9], [0.8, 0.2]], "names": ["one", "two"]}] if seed == 0 else []
        ),
        images=lambda seed, regime: {"regression": np.full((3, 4, 4, 1), 0.5)},
    )


def test_distances_of_a_run_are_drawn_with_their_regimes_marked():
    display = KernelDistanceDisplay.from_evolution(fake_result())
    drawn = np.asarray(display.ax_.images[0].get_array())
    assert drawn.shape == (6, 6) and drawn[0, 3] == pytest.approx(kernel_distance(kernel(0), kernel(100)))
    assert [tick.get_text().split("\n")[0] for tick in display.ax_.get_xticklabels()] == ["benign", "adversarial"]


@pytest.mark.slow
def test_distances_of_estimators_are_those_of_their_kernels(trainer):
    other = AdversarialKernelTrainer(MLP(widths=(3,)), max_epochs=0, random_state=1).fit(X, Y)
    display = KernelDistanceDisplay.from_estimator({"one": trainer, "other": other}, X)
    expected = kernel_distance(trainer.gram(X), other.gram(X))
    assert display.distances[0, 1] == pytest.approx(expected) and display.distances[0, 0] == 0
    assert f"{expected:.3f}" in [text.get_text() for text in display.ax_.texts]


@pytest.mark.parametrize("name", ["robust", "velocity", "distance_to_start"])
def test_a_curve_is_the_mean_over_seeds_with_the_range_shaded(name):
    display = EvolutionDisplay.from_evolution(fake_result(), name)
    assert [line.get_label() for line in display.ax_.lines] == ["benign", "adversarial"]
    epochs, values = display.curves["benign"]
    np.testing.assert_allclose(display.ax_.lines[0].get_ydata(), values.mean(0))
    np.testing.assert_array_equal(display.ax_.lines[0].get_xdata(), epochs)
    assert len(values) == 2 and len(display.ax_.collections) == 2
    assert display.ax_.get_yscale() == ("log" if name == "velocity" else "linear")


@pytest.mark.slow
def test_spectra_are_eigenvalues_over_their_sum(trainer):
    display = SpectrumDisplay.from_evolution(fake_result())
    assert [line.get_label() for line in display.ax_.lines] == ["initial", "benign", "adversarial"]
    eigenvalues = np.linalg.eigvalsh(kernel(2))[::-1]
    np.testing.assert_allclose(display.ax_.lines[1].get_ydata(), np.maximum(eigenvalues, 0) / eigenvalues.sum())
    own = SpectrumDisplay.from_estimator(trainer, X).eigenvalues["AdversarialKernelTrainer"]
    assert own.sum() == pytest.approx(np.trace(trainer.gram(X)), rel=1e-5)


@pytest.mark.parametrize("dtype, smallest", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_a_spectrum_is_shown_down_to_the_rounding_of_its_precision(dtype, smallest):
    values = np.array([1, 1e-2, 1e-5, 1e-12, 1e-20, 0], dtype)
    low, high = SpectrumDisplay({"one": values}).plot().ax_.get_ylim()
    assert low == pytest.approx(smallest / values.sum() / 1.5, rel=1e-5)
    assert high == pytest.approx(1 / values.sum() * 1.5, rel=1e-5)


def test_the_spectrum_of_a_kernel_keeps_its_precision():
    assert spectrum(kernel(0).astype(np.float32)).dtype == np.float32
    assert spectrum(np.eye(2, dtype=int)).dtype == np.float64


@pytest.mark.slow
def test_a_robustness_curve_is_robust_accuracy_at_each_radius(trainer):
    attack = PGD(0.2, n_steps=2)
    display = RobustnessCurveDisplay.from_estimator({"mine": trainer}, X, Y, attack, epsilons=[0, 0.2])
    expected = [trainer.score(X, Y), trainer.robust_score(X, Y, attack)]
    np.testing.assert_allclose(display.accuracies["mine"], expected)
    assert len(RobustnessCurveDisplay.from_estimator(trainer, X, Y, PGD(0.2, n_steps=1)).epsilons) == 10


@pytest.mark.slow
def test_specialisation_is_that_of_the_class_kernel(trainer):
    display = SpecializationDisplay.from_estimator(trainer, X, Y)
    K = np.asarray(gram("class", trainer.model_, X))
    np.testing.assert_allclose(display.matrix, kernel_specialization(K, np.eye(3)[[0, 1, 2] * 4]), rtol=1e-5)
    low, high = SpecializationDisplay.from_evolution(fake_result(), "benign").ax_.images[0].get_clim()
    assert low + high == pytest.approx(2)


def test_a_transfer_matrix_names_its_models_and_writes_its_numbers():
    display = TransferDisplay.from_evolution(fake_result())
    assert [text.get_text() for text in display.ax_.texts] == ["0.10", "0.90", "0.80", "0.20"]
    with pytest.raises(LookupError, match="no transfer matrix for seed 1"):
        TransferDisplay.from_evolution(fake_result(), seed=1)


def test_images_stand_in_rows_each_in_its_place():
    images = {"one": np.zeros((2, 4, 3, 1)), "two": np.ones((2, 4, 3, 3)) * [0.2, 0.4, 0.6]}
    display = ImageGridDisplay(images, ["left", "right"]).plot()
    canvas = np.asarray(display.ax_.images[0].get_array())
    assert canvas.shape == (9, 7, 4)
    np.testing.assert_allclose(canvas[5:9, 4:7], np.broadcast_to([0.2, 0.4, 0.6, 1], (4, 3, 4)))
    np.testing.assert_allclose(canvas[:4, :3], np.broadcast_to([0, 0, 0, 1.0], (4, 3, 4)))
    assert canvas[4, :, 3].max() == canvas[:, 3, 3].max() == 0
    assert ImageGridDisplay.from_evolution(fake_result()).ax_.get_xticklabels()[2].get_text() == "class 2"


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 7, 14, 25, 60])
def test_numbers_in_a_matrix_fit_into_their_cells_or_are_left_out(n):
    ax = TransferDisplay(np.full((n, n), 0.25), [f"model {i}" for i in range(n)]).plot().ax_
    ax.figure.draw_without_rendering()
    assert len(ax.texts) in (0, n * n) and bool(ax.texts) == (n <= 14)
    (left, _), (right, _) = ax.transData.transform([(0, 0), (1, 0)])
    assert all(text.get_window_extent().width < right - left for text in ax.texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "display",
    [
        KernelDistanceDisplay(np.zeros((2, 2)), ["a", "b"]),
        KernelDistanceDisplay(np.zeros((2, 2)), ["a", "b"], [("one", 1), ("other", 1)]),
        EvolutionDisplay({"a": ([0, 1], [[1, 2]])}, "a"),
        SpectrumDisplay({"a": [2.0, 1.0]}),
        RobustnessCurveDisplay([0, 1], {"a": [1, 0]}),
        SpecializationDisplay(np.eye(2)),
        TransferDisplay(np.eye(2), ["a", "b"]),
        ImageGridDisplay({"a": np.zeros((2, 4, 4, 1))}, ["b", "c"]),
    ],
    ids=lambda display: type(display).__name__,
)
def test_all_type_has_the_size_that_matplotlib_was_told(display):
    with plt.rc_context({"font.size": 17}):
        ax = display.plot().ax_
        ax.figure.draw_without_rendering()
    legend = [] if ax.get_legend() is None else ax.get_legend().get_texts()
    written = [*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts, *legend]
    assert {text.get_fontsize() for text in written if text.get_text()} == {17}


def test_an_axes_that_is_given_is_drawn_into():
    figure, ax = plt.subplots()
    display = EvolutionDisplay.from_evolution(fake_result(), "robust", ax=ax)
    assert display.ax_ is ax and display.figure_ is figure
    assert TransferDisplay([[0.5]], ["one"]).plot().ax_ is not ax


STYLED = [
    (
        EvolutionDisplay({"a": ([0, 1], [[1, 2], [2, 3]])}, "a"),
        {"line_kw": {"linewidth": 7}},
        lambda ax: ax.lines[0],
    ),
    (
        EvolutionDisplay({"a": ([0, 1], [[1, 2], [2, 3]])}, "a"),
        {"fill_between_kw": {"linewidth": 7}},
        lambda ax: ax.collections[0],
    ),
    (SpectrumDisplay({"a": [2.0, 1.0]}), {"line_kw": {"linewidth": 7}}, lambda ax: ax.lines[0]),
    (RobustnessCurveDisplay([0, 1], {"a": [1, 0]}), {"line_kw": {"lw": 7}}, lambda ax: ax.lines[0]),
    (TransferDisplay(np.eye(2), ["a", "b"]), {"im_kw": {"alpha": 0.7}}, lambda ax: ax.images[0]),
    (TransferDisplay(np.eye(2), ["a", "b"]), {"text_kw": {"alpha": 0.7}}, lambda ax: ax.texts[0]),
    (KernelDistanceDisplay(np.zeros((2, 2)), ["a", "b"]), {"im_kw": {"alpha": 0.7}}, lambda ax: ax.images[0]),
    (KernelDistanceDisplay(np.zeros((2, 2)), ["a", "b"]), {"text_kw": {"alpha": 0.7}}, lambda ax: ax.texts[0]),
    (SpecializationDisplay(np.eye(2)), {"im_kw": {"alpha": 0.7}}, lambda ax: ax.images[0]),
    (ImageGridDisplay({"a": np.zeros((2, 4, 4, 1))}), {"im_kw": {"alpha": 0.7}}, lambda ax: ax.images[0]),
]


@pytest.mark.parametrize("display, style, drawn", STYLED)
def test_keywords_of_style_reach_matplotlib(display, style, drawn):
    artist = drawn(display.plot(**style).ax_)
    # under whichever alias they were given
    assert (artist.get_alpha() == 0.7) or np.all(artist.get_linewidth() == 7)
    ((name, _),) = style.items()
    for wrong, message in (
        ({"colr": "red"}, f"{name}: matplotlib's .* has no 'colr'"),
        (5, f"{name} must be a dict"),
    ):
        with pytest.raises(TypeError, match=message):
            display.plot(**{name: wrong})
    with pytest.raises(TypeError, match="aliases"):
        RobustnessCurveDisplay([0, 1], {"a": [1, 0]}).plot(line_kw={"lw": 1, "linewidth": 2})


def test_numbers_of_a_matrix_are_left_out_and_written_as_asked():
    display = TransferDisplay([[0.25]], ["a"])
    assert display.plot(values_format=".0%").ax_.texts[0].get_text() == "25%"
    bare = display.plot(include_values=False, colorbar=False)
    assert not bare.ax_.texts and len(bare.figure_.axes) == 1
    with pytest.raises(ValueError, match="values_format must be a format of numbers"):
        display.plot(values_format="d")


def test_keywords_of_style_are_handed_on_and_refused_before_anything_is_computed(monkeypatch):
    display = EvolutionDisplay.from_evolution(fake_result(), "robust", line_kw={"color": "black"})
    assert {line.get_color() for line in display.ax_.lines} == {"black"}
    assert SpectrumDisplay.from_kernels({"a": np.eye(3)}, line_kw={"lw": 5}).ax_.lines[0].get_linewidth() == 5
    monkeypatch.setattr(
        "ntkrobust_sk.displays.robustness.robust_accuracy", lambda *a, **k: pytest.fail("computed")
    )
    for style in ({"line_kw": {"colr": "red"}}, {"line_kws": {}}, {"im_kw": {}}):
        with pytest.raises(TypeError, match=r"colr|takes the keywords line_kw for plot"):
            RobustnessCurveDisplay.from_estimator(object(), X, Y, PGD(0.1), **style)


def test_an_estimator_that_is_not_fitted_is_refused():
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        SpectrumDisplay.from_estimator(AdversarialKernelTrainer(), X)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: KernelDistanceDisplay([[1, 2]], ["a"]), "distances must be square"),
        (lambda: KernelDistanceDisplay(np.eye(2) * np.nan, ["a", "b"]), "distances must be finite"),
        (lambda: KernelDistanceDisplay(np.eye(2), ["a"]), "labels must be 2 labels"),
        (lambda: KernelDistanceDisplay(np.eye(2), "ab"), "labels must be 2 labels"),
        (lambda: KernelDistanceDisplay(np.eye(2), ["a", "b"], groups=1.5), "groups must be"),
        (lambda: KernelDistanceDisplay(np.eye(2), ["a", "b"], groups=[("a", 3)]), "groups must have sizes"),
        (lambda: KernelDistanceDisplay.from_estimator([1], X), "estimators must be a dict"),
        (lambda: KernelDistanceDisplay.from_estimator({"a": 5}, X), "estimator must be one with a tangent kernel"),
        (lambda: KernelDistanceDisplay.from_evolution(5), "result must be an EvolutionResult, got 5"),
        (lambda: KernelDistanceDisplay.from_evolution(fake_result(), regimes="benign"), "regimes must be"),
        (lambda: KernelDistanceDisplay.from_evolution(fake_result(), regimes=["flap"]), "unknown regime"),
        (lambda: EvolutionDisplay({"a": [1]}, "a"), "must be .epochs"),
        (lambda: EvolutionDisplay({"a": ([1], [[1, 2]])}, "a"), "a value for each"),
        (lambda: EvolutionDisplay(5, "a"), "curves must be a dict"),
        (lambda: EvolutionDisplay({}, "a", log="no"), "log must be True or False"),
        (lambda: SpectrumDisplay({"a": [0.0, 0.0]}), "must have a positive sum"),
        (lambda: SpectrumDisplay([1, 2]), "eigenvalues must be a dict"),
        (lambda: SpectrumDisplay.from_evolution(fake_result(), epoch="last"), "epoch must be"),
        (lambda: RobustnessCurveDisplay([0, 1], {"a": [1]}), "one number for each of 2 epsilons"),
        (lambda: RobustnessCurveDisplay(0.5, {"a": [1]}), "epsilons must be an array"),
        (lambda: RobustnessCurveDisplay.from_estimator(5, X, Y, "pgd"), "an attack is needed"),
        (lambda: SpecializationDisplay(5), "matrix must be an array"),
        (lambda: SpecializationDisplay.from_evolution(fake_result(), 5), "unknown regime"),
        (lambda: TransferDisplay([[1.0]], ["a", "b"]), "names must be 1 labels"),
        (lambda: TransferDisplay([[1.0]], ["a"]).plot(ax="x"), "ax must be a matplotlib Axes"),
        (lambda: ImageGridDisplay({"a": np.ones((2, 4, 4))}), "must be an array with 4 axes"),
        (lambda: ImageGridDisplay({"a": np.ones((2, 4, 4, 2))}), "c = 1 or 3"),
        (
            lambda: ImageGridDisplay({"a": np.ones((2, 4, 4, 1)), "b": np.ones((3, 4, 4, 1))}),
            "as many in each row",
        ),
        (lambda: ImageGridDisplay({}), "images must be a dict"),
        (lambda: ImageGridDisplay.from_evolution(fake_result(), "nothing"), "unknown kind 'nothing'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(draw, message):
    with pytest.raises((TypeError, ValueError), match=message):
        draw()


def test_a_measurement_that_is_none_is_told_with_those_that_there_are():
    with pytest.raises(ValueError, match="unknown name 'nothing'; known are 'velocity', 'distance_to_start'"):
        EvolutionDisplay.from_evolution(fake_result(), "nothing")
