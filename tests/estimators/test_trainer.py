"""The trainer's options: optimisers, schedules, early stopping, averages, going on, callbacks."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.utils.fixes import parse_version

from ntkrobust_sk import (
    AWP,
    CNN,
    MART,
    MLP,
    PGD,
    TRADES,
    AdversarialKernelTrainer,
    AutoAttack,
    Cosine,
    Crop,
    Flip,
    MultiStep,
    TrainingDivergedError,
    load,
    load_digits_images,
)
from ntkrobust_sk.estimators import callbacks
from ntkrobust_sk.training import augmentations, schedules

X, Y = load_iris(return_X_y=True)
X = ((X - X.min(0)) / np.ptp(X, 0)).astype(np.float32)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
NETWORK = MLP(widths=(6,), activation="tanh")
ATTACK = PGD(0.05, n_steps=2)
COMMON = {"attack": ATTACK, "max_epochs": 3, "batch_size": 32, "random_state": 0}


def made(**options):
    return AdversarialKernelTrainer(NETWORK, **COMMON | options)


def weights(trainer):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(trainer.model_.variables.params)])


# Optimisers and schedules


@pytest.mark.parametrize(
    "named, of_optax",
    [
        ({"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.5}, optax.sgd(0.1, momentum=0.5)),
        (
            {"learning_rate": 0.1, "weight_decay": 0.01},
            optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9)),
        ),
        ({"optimizer": "adam", "learning_rate": 0.01}, optax.adam(0.01)),
        ({"optimizer": "adamw", "weight_decay": 0.1}, optax.adamw(1e-3, weight_decay=0.1)),
        (
            {"learning_rate": 0.1, "learning_rate_schedule": "cosine"},
            optax.sgd(optax.cosine_decay_schedule(0.1, 15), momentum=0.9),
        ),
        (
            {"learning_rate": 0.1, "learning_rate_schedule": MultiStep((0.4,), 0.5)},
            optax.sgd(optax.piecewise_constant_schedule(0.1, {6: 0.5}), momentum=0.9),
        ),
        (
            {"learning_rate_schedule": optax.linear_schedule(0.1, 0.0, 20)},
            optax.sgd(optax.linear_schedule(0.1, 0.0, 20), momentum=0.9),
        ),
    ],
)
def test_named_optimisers_and_schedules_are_those_of_optax(named, of_optax):
    """One update for each batch, so that optax counts what we count."""
    found = [weights(made(clean_step=False, **options).fit(X, Y)) for options in (named, {"optimizer": of_optax})]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_other_rates_compile_nothing():
    traced = []

    class Counting(MLP):
        def apply(self, params, state, x, *, train=False):
            traced.append(train)
            return super().apply(params, state, x, train=train)

    options = {"max_epochs": 2, "attack": None, "optimizer": "adam"}
    network = Counting(3, widths=(4,))
    for i, schedule in enumerate(["cosine", Cosine(0.5), "piecewise", lambda step: 1 / (step + 3)]):
        rate = None if callable(schedule) and not isinstance(schedule, Cosine) else 0.01 * (i + 1)
        trainer = AdversarialKernelTrainer(network, **COMMON | options, learning_rate=rate)
        trainer.set_params(learning_rate_schedule=schedule, weight_decay=0.1 * i).fit(X, Y)
        first = first if i else sum(traced)  # noqa: F821
    assert sum(traced) == first > 0


@pytest.mark.parametrize("name", ["cosine", "piecewise"])
def test_schedules_over_training_are_right_at_their_corners(name):
    rates = [schedules.rates_of(schedules.SCHEDULES[name], 2.0, 8)(step) for step in range(8)]
    expected = {"cosine": 1 + np.cos(np.pi * np.arange(8) / 8), "piecewise": [2] * 4 + [0.2] * 2 + [0.02] * 2}
    np.testing.assert_allclose(rates, expected[name], rtol=1e-12)
    assert Cosine(0.1, warmup=0.5)(np.array([0, 0.25, 0.5, 1])).round(6).tolist() == [0, 0.5, 1, 0.1]


# Augmentation


def test_flips_and_crops_are_moved_images():
    x = jnp.arange(1.0, 4 * 5 * 5 * 2 + 1).reshape(4, 5, 5, 2)
    flipped = Flip()(jax.random.key(1), x)
    kinds = [int((f == i).all()) - int((f == i[:, ::-1]).all()) for f, i in zip(flipped, x, strict=True)]
    assert set(kinds) == {1, -1}
    for cut, image in zip(Crop(1, fill=-1.0)(jax.random.key(0), x), x, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=-1)
        places = [(a, b) for a in range(3) for b in range(3) if (padded[a : a + 5, b : b + 5] == cut).all()]
        assert len(places) == 1
    assert (Crop(0)(jax.random.key(0), x) == x).all()


def test_augmentation_is_part_of_training_seeded_and_new_for_each_batch():
    images, labels = load_digits_images()
    images, labels = images[:100], labels[:100]
    network = CNN(widths=(2,), strides=(2,))

    def fitted(augmentation, seed=0):
        options = {"augmentation": augmentation, "max_epochs": 1, "batch_size": 50, "random_state": seed}
        return weights(AdversarialKernelTrainer(network, **options).fit(images, labels))

    plain, first, again = fitted(None), fitted((Flip(), Crop(1))), fitted([Flip(), Crop(1)])
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(plain, first, atol=1e-6)
    keys = [augmentations.augmented((Flip(),), jax.random.key(i), jnp.asarray(images)) for i in range(2)]
    assert not (keys[0] == keys[1]).all()


# Early stopping


def test_early_stopping_keeps_the_epoch_that_was_best_under_attack():
    """A learning rate that ends training in ruin: the epoch before it is kept."""
    rates = {"learning_rate_schedule": lambda step: 0.3 if step < 4 * 10 else 30.0}
    options = {"max_epochs": 6, "batch_size": 12, "validation_fraction": 0.2} | rates
    stopped = made(early_stopping=True, **options).fit(X, NAMES)
    scores = stopped.validation_scores_
    assert len(scores) == stopped.n_iter_ == 6 and stopped.best_validation_score_ == max(scores)
    assert stopped.best_iter_ == 1 + int(np.argmax(scores)) <= 4
    last = made(**options).fit(X, NAMES)
    assert stopped.robust_score(X, NAMES) > last.robust_score(X, NAMES) + 0.1
    shorter = made(early_stopping=True, n_iter_no_change=1, **options).fit(X, NAMES)
    assert shorter.n_iter_ < 6 and shorter.validation_scores_ == scores[: shorter.n_iter_]
    assert not hasattr(stopped.set_params(early_stopping=False).fit(X, NAMES), "validation_scores_")


def test_examples_that_are_held_out_are_not_trained_on_and_share_the_classes():
    seen = []

    class Noting:
        def __call__(self, model, x, y, *, key):
            seen.append(np.asarray(x))
            return x

    force = pytest.MonkeyPatch()
    force.setattr("ntkrobust_sk.execution.loops.prefers_compiled_loop", lambda *_, **__: False)
    rows = (X + np.linspace(0, 1e-2, len(X), dtype=np.float32)[:, None]).clip(0, 2)
    trainer = made(attack=Noting(), validation_attack=PGD(0.0, n_steps=1, bounds=None), early_stopping=True)
    trainer.set_params(max_epochs=1, validation_fraction=0.4, batch_size=10).fit(rows, Y)
    force.undo()
    trained_on = np.unique(np.concatenate(seen), axis=0)
    assert len(trained_on) == 90
    counts = np.bincount(Y[[int(np.abs(rows - x).sum(1).argmin()) for x in trained_on]])
    assert counts.tolist() == [30, 30, 30]


# Averages


def test_the_average_of_weights_is_the_model_and_training_is_not_changed():
    plain, averaged = made().fit(X, Y), made(ema_decay=0.9).fit(X, Y)
    assert plain.loss_curve_ == averaged.loss_curve_
    assert not np.allclose(weights(plain), weights(averaged), atol=1e-4)
    late = made(ema_decay=0.0).fit(X, Y)
    np.testing.assert_allclose(weights(plain), weights(late), rtol=1e-5, atol=1e-7)


# Going on


def test_partial_fits_are_a_fit_epoch_by_epoch():
    whole = made(loss=TRADES(), optimizer="adam", ema_decay=0.5).fit(X, NAMES)
    parts = made(loss=TRADES(), optimizer="adam", ema_decay=0.5)
    for _ in range(3):
        parts.partial_fit(X, NAMES, classes=np.unique(NAMES))
    np.testing.assert_array_equal(weights(whole), weights(parts))
    assert parts.n_iter_ == 3 and parts.loss_curve_ == whole.loss_curve_
    before = parts.score(X, NAMES)
    copy = pickle.loads(pickle.dumps(parts))
    assert copy.score(X, NAMES) == before
    copy.partial_fit(X[:20], NAMES[:20])  # of one class alone
    assert copy.n_iter_ == 4 and copy.classes_.tolist() == whole.classes_.tolist()


def test_a_warm_start_goes_on_from_the_weights_of_the_fit_before():
    trainer = made(warm_start=True).fit(X, Y)
    first, score = weights(trainer), trainer.loss_curve_[-1]
    trainer.fit(X, Y)
    again = AdversarialKernelTrainer(trainer.model_, **COMMON)
    by_hand = made().fit(X, Y)
    np.testing.assert_array_equal(first, weights(by_hand))
    np.testing.assert_array_equal(
        weights(trainer), weights(AdversarialKernelTrainer(by_hand.model_, **COMMON).fit(X, Y))
    )
    assert trainer.loss_curve_[-1] < score and again is not trainer
    with pytest.raises(ValueError, match="warm_start=True goes on with a network of classes_"):
        trainer.fit(X[:100], Y[:100])
    assert trainer.predict(X[:2]).shape == (2,)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": MART(3.0), "weight_perturbation": AWP(0.01), "learning_rate_schedule": MultiStep((0.5,))},
        {"early_stopping": True, "ema_decay": 0.5, "optimizer": "adamw", "learning_rate_schedule": Cosine()},
    ],
)
def test_options_are_saved_cloned_and_loaded_without_pickle(options, tmp_path):
    trainer = made(**options).fit(X, NAMES)
    trainer.save(tmp_path / "t.ntk")
    again = load(tmp_path / "t.ntk")
    assert again.get_params() == trainer.get_params() and clone(again).get_params() == trainer.get_params()
    np.testing.assert_array_equal(weights(again), weights(trainer))
    again.set_params(early_stopping=False, learning_rate_schedule="constant").partial_fit(X, NAMES)


def test_augmentations_are_saved_too(tmp_path):
    images, labels = load_digits_images()
    options = {"augmentation": (Flip(), Crop(1)), "max_epochs": 1, "random_state": 0}
    trainer = AdversarialKernelTrainer("mlp", **options).fit(images[:60], labels[:60])
    trainer.save(tmp_path / "t.ntk")
    assert load(tmp_path / "t.ntk").augmentation == (Flip(), Crop(1))


# Callbacks

HAS_CALLBACKS = pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"), reason="callbacks came with scikit-learn 1.9"
)


@HAS_CALLBACKS
def test_callbacks_of_scikit_learn_see_every_epoch(capfd):
    from sklearn.callback import ProgressBar, ScoringMonitor

    monitor = ScoringMonitor(scoring="accuracy")
    trainer = made(ema_decay=0.5).set_callbacks(monitor, ProgressBar()).fit(X, NAMES)
    log = monitor.get_logs().data_as_pandas
    epochs = log[log["task_name"] == "epoch"]["accuracy"].tolist()
    expected = [made(ema_decay=0.5, max_epochs=n).fit(X, NAMES).score(X, NAMES) for n in (1, 2, 3)]
    assert epochs == expected and "100%" in capfd.readouterr().out
    assert not hasattr(trainer, "_callback_fit_ctx")
    with pytest.raises(TypeError, match="FitCallback"):
        made().set_callbacks("bar")


@HAS_CALLBACKS
def test_a_callback_may_stop_training():
    class Stop:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            return context.task_name == "epoch" and fitted_estimator.score(X, Y) > 0

    stopped, short = made().set_callbacks(Stop()).fit(X, Y), made(max_epochs=1).fit(X, Y)
    assert stopped.n_iter_ == 1
    np.testing.assert_array_equal(weights(stopped), weights(short))


def test_without_callbacks_of_scikit_learn_the_error_says_what_to_do(monkeypatch):
    import builtins
    import importlib

    real = builtins.__import__

    def without(name, *args, **options):
        if name == "sklearn.callback":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    try:
        old = importlib.reload(callbacks)
        with pytest.raises(ImportError, match=r"callbacks need scikit-learn 1\.9"):
            old.CallbackSupportMixin().set_callbacks(object())
        assert old.EpochCallbacks(object(), 1, X, Y).end(dict) is False
    finally:
        monkeypatch.undo()
        importlib.reload(callbacks)


# Refused

LINEAR = optax.linear_schedule(0.1, 0.0, 10)


def in_numpy(model, x, y, *, key):
    return x + np.sign(np.asarray(x))


REFUSED = [
    ({"optimizer": "adma"}, "unknown optimizer 'adma'; known are 'sgd', 'adam', 'adamw'"),
    ({"optimizer": 3}, "optimizer must be"),
    ({"optimizer": optax.sgd}, "optimizer must be"),
    ({"optimizer": LINEAR}, "which may be a schedule"),
    ({"optimizer": "adam", "momentum": 0.9}, "momentum=0.9 was given with optimizer='adam'"),
    ({"optimizer": optax.sgd(0.1), "momentum": 0.9}, "momentum=0.9 was given together with an optimiser of optax"),
    ({"optimizer": optax.sgd(0.1), "learning_rate": 0.1}, "learning_rate=0.1 was given together"),
    ({"optimizer": optax.sgd(0.1), "weight_decay": 0.1}, "weight_decay=0.1 was given together"),
    ({"optimizer": optax.sgd(0.1), "learning_rate_schedule": "cosine"}, "learning_rate_schedule.* together"),
    ({"learning_rate_schedule": optax.sgd(0.1)}, "learning_rate_schedule must be a schedule"),
    ({"learning_rate_schedule": "linear"}, "unknown learning_rate_schedule 'linear'"),
    ({"learning_rate_schedule": Cosine}, "learning_rate_schedule must be an instance"),
    ({"learning_rate_schedule": LINEAR, "learning_rate": 0.1}, "leave one of them out"),
    ({"learning_rate_schedule": lambda step: 0.0}, "rate 0 at each of 15 batches"),
    ({"learning_rate_schedule": lambda step: -1.0}, "finite rates >= 0"),
    ({"learning_rate_schedule": lambda step: np.nan}, "finite rates >= 0"),
    ({"learning_rate_schedule": lambda step: [1, 2]}, "one number for each batch"),
    ({"learning_rate_schedule": lambda step: step.x}, "learning_rate_schedule must give a rate .* fails at 0"),
    ({"ema_decay": 1.0}, r"ema_decay must be a finite number >= 0 and < 1"),
    ({"ema_decay": -0.1}, "ema_decay"),
    ({"ema_decay": "yes"}, "ema_decay"),
    ({"loss": "mart"}, "loss must be"),
    ({"loss": TRADES(), "attack": None}, "needs an attack"),
    ({"loss": TRADES(), "attack": PGD(0.1, random_start=False)}, "starts at random"),
    ({"augmentation": Flip()}, "needs images"),
    ({"augmentation": "flip"}, "augmentation must be callable"),
    ({"augmentation": lambda x: x}, "augmentation must be callable"),
    ({"augmentation": lambda key, x: x[:1]}, "augmentation must return batches"),
    ({"augmentation": [Flip]}, "augmentation must be an instance"),
    (
        {"early_stopping": True, "validation_fraction": 0.001},
        "=0.001 of 150 examples holds out 0",
    ),
    ({"early_stopping": True, "validation_fraction": 0.999}, "each of 3 classes needs an example on both sides"),
    ({"early_stopping": True, "validation_fraction": 1.0}, "validation_fraction"),
    ({"early_stopping": True, "validation_attack": "pgd"}, "validation_attack"),
    ({"weight_decay": -1.0}, "weight_decay"),
    ({"n_iter_no_change": 0}, "n_iter_no_change"),
    ({"validation_attack": PGD(0.1, bounds=None)}, "validation_attack=PGD.* has no say"),
    ({"attack": AutoAttack(0.1, bounds=None)}, r"^attack=AutoAttack.* cannot train.*PGD, FGSM and APGD train"),
    ({"attack": in_numpy}, r"the attack .*in_numpy.* cannot train.*jax\.numpy"),
    ({"augmentation": lambda key, x: x * jnp.nan}, "augmentation must return finite numbers"),
    ({"augmentation": (lambda key, x: x, lambda key, x: x / 0)}, "augmentation must return finite numbers"),
    ({"augmentation": lambda key, x: np.asarray(x)}, "augmentation must be a pure function of JAX"),
    ({"augmentation": lambda key, x: x if x.sum() > 0 else -x}, "augmentation must be a pure function of JAX"),
    ({"class_weight": {77: 2.0}}, r"class_weight names 77, which is not among the labels of y, \[0, 1, 2\]"),
]


@pytest.mark.parametrize("options, said", REFUSED)
def test_options_that_do_not_go_together_or_are_none_are_refused(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        made(**options).fit(X, Y)


def test_a_class_with_one_example_cannot_be_on_both_sides():
    with pytest.raises(ValueError, match="the rarest has 1"):
        made(early_stopping=True).fit(X[:101], Y[:101])


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Cosine(final=2), "final"),
        (lambda: Cosine(warmup=1), "warmup"),
        (lambda: MultiStep((0.5, 0.5)), "at must rise"),
        (lambda: MultiStep((0.0,)), "each of at"),
        (lambda: MultiStep(0.5), "at must be a tuple"),
        (lambda: MultiStep(factor=0), "factor"),
        (lambda: Crop(-1), "padding"),
        (lambda: Crop(1, fill=np.nan), "fill"),
    ],
)
def test_schedules_and_augmentations_check_their_fields(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "options, arguments, said",
    [
        ({}, {}, "needs classes at its first call"),
        ({}, {"classes": [0, 1]}, "labels that are not among classes"),
        ({}, {"classes": [0]}, "at least 2 labels"),
        ({"early_stopping": True}, {"classes": [0, 1, 2]}, "cannot take early_stopping=True"),
        ({"class_weight": "balanced"}, {"classes": [0, 1, 2]}, "cannot take class_weight"),
        (
            {"learning_rate_schedule": "cosine"},
            {"classes": [0, 1, 2]},
            "cannot take learning_rate_schedule=",
        ),
    ],
)
def test_a_partial_fit_says_what_it_cannot_do(options, arguments, said):
    with pytest.raises(ValueError, match=said):
        made(**options).partial_fit(X, Y, **arguments)


def test_a_partial_fit_refuses_new_classes_and_other_optimisers_later():
    trainer = made().partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="labels that are not among classes"):
        trainer.partial_fit(X, Y + 1)
    with pytest.raises(ValueError, match="classes must stay those of the first call"):
        trainer.partial_fit(X, Y, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="optimizer must be the one"):
        trainer.set_params(optimizer="adam").partial_fit(X, Y)


def test_divergence_keeps_the_last_finite_model_with_all_options():
    trainer = made(learning_rate=1e38, loss=TRADES(), ema_decay=0.5, weight_perturbation=AWP())
    with pytest.raises(TrainingDivergedError):
        trainer.fit(X, Y)
    assert np.isfinite(weights(trainer)).all()


def test_fields_of_losses_and_schedules_are_parameters_of_a_search():
    from sklearn.model_selection import GridSearchCV

    trainer = made(loss=TRADES(), weight_perturbation=AWP(), learning_rate_schedule="piecewise", max_epochs=1)
    grid = {
        "loss__beta": [1.0, 3.0],
        "weight_perturbation__gamma": [0.01],
        "learning_rate_schedule__factor": [0.5],
    }
    search = GridSearchCV(trainer, grid, cv=2, error_score="raise").fit(X, Y)
    best = search.best_estimator_
    assert best.loss in (TRADES(1.0), TRADES(3.0)) and best.weight_perturbation == AWP(0.01)
    assert best.learning_rate_schedule == MultiStep(factor=0.5)
    with pytest.raises(ValueError, match="loss"):
        made().set_params(loss__beta=3.0)


@pytest.mark.parametrize("padding", [8, 100])
def test_a_crop_that_could_leave_nothing_of_an_image_is_refused(padding):
    images = np.random.default_rng(0).random((12, 8, 12, 1), "float32")
    with pytest.raises(ValueError, match=rf"Crop\(padding={padding}.* padding must be below 8"):
        made(augmentation=Crop(padding)).fit(images, np.arange(12) % 3)
    made(augmentation=Crop(7), max_epochs=1).fit(images, np.arange(12) % 3)


def test_an_error_inside_of_an_augmentation_names_it():
    def broken(key, batch):
        raise KeyError("tint")

    with pytest.raises(KeyError, match="tint") as caught:
        made(augmentation=broken).fit(X, Y)
    assert any("augmentation=<function" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    "change", [{"network": MLP(widths=(5,))}, {"dynamics": "linearized"}, {"precision": "bf16"}], ids=str
)
def test_a_warm_start_never_passes_over_another_network(change):
    trainer = made(warm_start=True, max_epochs=1).fit(X, Y)
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"goes on with the network of the fit before, MLP\(.* now ask for"):
        trainer.set_params(**change).fit(X, Y)
    np.testing.assert_array_equal(weights(trainer), before)


def test_a_warm_start_of_other_classes_shows_plain_values():
    trainer = made(warm_start=True, max_epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match=r"classes_=\[0, 1, 2\], but this fit has \[0, 1\];"):
        trainer.fit(X[:100], Y[:100])


def test_class_weights_are_those_of_all_classes_also_where_a_part_lacks_some():
    trainer = made(class_weight={2: 3.0}).partial_fit(X[:100], Y[:100], classes=[0, 1, 2])
    np.testing.assert_array_equal(
        weights(trainer), weights(made().partial_fit(X[:100], Y[:100], classes=[0, 1, 2]))
    )
