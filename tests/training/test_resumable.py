"""Kept states of training: those of plain training to the bit, whatever was stopped, deleted or damaged."""

import warnings
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntkrobust_sk import MLP, PGD, Clean, Model, Variables, train
from ntkrobust_sk.training import resumable as stages
from ntkrobust_sk.training.checkpoints import save_checkpoint
from ntkrobust_sk.training.optimizers import averaging
from ntkrobust_sk.training.resumable import TrainingConfig, checkpointed_states, state_file
from ntkrobust_sk.training.state import averaged

pytest.importorskip("safetensors", reason="safetensors is not installed")

N, N_FEATURES, N_CLASSES, BATCH = 12, 4, 3, 4
# fractional ones too, each at the end of a batch
EPOCHS = [0.0, 1 / 3, 1.0, 2.0]
RATE, MOMENTUM, DECAY = 0.3, 0.5, 0.15
KEY = jax.random.key(1)
NETWORK = MLP(n_outputs=N_CLASSES, widths=(3,), activation="tanh")
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (N_FEATURES,)))
rng = np.random.default_rng(0)
X = rng.uniform(size=(N, N_FEATURES)).astype(np.float32)
Y = np.arange(N) % N_CLASSES

STAGES = {
    "benign": TrainingConfig((Clean(),), RATE, MOMENTUM, BATCH),
    "adversarial": TrainingConfig((Clean(), PGD(0.1, n_steps=1)), RATE, MOMENTUM, BATCH),
    "averaged": TrainingConfig((Clean(),), RATE, MOMENTUM, BATCH, average_decay=DECAY),
}
BENIGN = STAGES["benign"]


def plain(stage, epochs=EPOCHS):
    """The states that plain training yields."""
    start = stage.first_state(MODEL, KEY)
    options = {"optimizer": stage.transformation, "attacks": stage.attacks, "batch_size": stage.batch_size}
    return list(train(start, X, Y, epochs=epochs, **options))


def kept(folder, stage=BENIGN, epochs=EPOCHS, **options):
    return checkpointed_states(folder, stage, stage.first_state(MODEL, KEY), X, Y, epochs, **options)


def quietly(states):
    """All of them, without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return list(states)


def assert_same_bits(found, expected):
    assert len(found) == len(expected) > 0
    for (_, first), second in zip(found, expected, strict=True):
        plain_keys = (replace(state, key=jax.random.key_data(state.key)) for state in (first, second))
        for a, b in zip(*map(jax.tree.leaves, plain_keys), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


@pytest.fixture(scope="module")
def expected():
    return plain(BENIGN)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "seed-0" / "benign"


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("nothing was to be trained")

    monkeypatch.setattr(stages, "train", refuse)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped byte": flip_a_byte,
    "torn": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "empty": lambda file: file.write_bytes(b""),
    "something else": lambda file: save_checkpoint(file, {"x": np.zeros(3, np.float32)}),
}


# What is kept


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_kept_states_are_those_of_plain_training_to_the_bit_as_trained_and_as_read_again(kind, folder):
    stage = STAGES[kind]
    for _ in range(2):
        found = quietly(kept(folder, stage))
        assert [epoch for epoch, _ in found] == EPOCHS
        assert_same_bits(found, plain(stage))


@pytest.mark.slow
def test_each_state_is_on_disk_when_it_is_yielded_in_a_file_with_the_name_of_its_epoch(folder):
    for i, (epoch, _) in enumerate(kept(folder)):
        assert names(folder) == [state_file(folder, e).name for e in EPOCHS[: i + 1]]
        assert float(state_file(folder, epoch).stem) == pytest.approx(epoch, abs=5e-4)


def test_the_names_of_files_sort_as_their_epochs_do():
    epochs = [0.0, 0.125, 0.25, 1.0, 2.5, 9.0, 10.0, 100.0, 1000.0]
    files = [state_file(Path("benign"), epoch).as_posix() for epoch in epochs]
    assert files == sorted(files) and len(set(files)) == len(files)


def test_what_is_on_disk_is_not_trained_again(folder, expected, no_training, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", train)
        list(kept(folder))
    assert_same_bits(quietly(kept(folder)), expected)


def test_the_first_state_trains_with_the_rate_and_momentum_of_its_stage():
    *_, ours = plain(BENIGN, [1.0])
    options = {"key": KEY, "batch_size": BATCH, "epochs": 1}
    *_, theirs = train(MODEL, X, Y, optimizer=optax.sgd(RATE, momentum=MOMENTUM), **options)
    for a, b in zip(*(jax.tree.leaves(s.model.variables.params) for s in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Counting:
    """A linear network whose state counts the batches that it was trained on."""

    def apply(self, params, state, x, *, train=False):
        return x @ params["kernel"], {"batches": state["batches"] + train}


@pytest.mark.parametrize("freeze_state, batches", [(True, 0), (False, 3)], ids=["frozen", "free"])
def test_the_state_of_the_network_moves_unless_it_is_frozen(freeze_state, batches, folder):
    kernel = {"kernel": jnp.ones((N_FEATURES, N_CLASSES))}
    model = Model(Counting(), Variables(kernel, {"batches": jnp.zeros((), jnp.float32)}))
    stage = TrainingConfig((Clean(),), RATE, batch_size=BATCH, freeze_state=freeze_state)
    [(_, state)] = checkpointed_states(folder, stage, stage.first_state(model, KEY), X, Y, [1.0])
    assert state.model.variables.state["batches"] == batches


# Stopped


@pytest.mark.slow
@pytest.mark.parametrize("left", [(), (0,), (0, 1), (0, 1, 2), (2,), (3,), (0, 3), (0, 2)], ids=str)
def test_after_files_were_deleted_the_same_states_come_again_to_the_bit(left, folder, expected):
    list(kept(folder))
    before = {i: state_file(folder, EPOCHS[i]).read_bytes() for i in range(len(EPOCHS))}
    for i in set(before) - set(left):
        state_file(folder, EPOCHS[i]).unlink()
    assert_same_bits(quietly(kept(folder)), expected)
    assert {i: state_file(folder, EPOCHS[i]).read_bytes() for i in before} == before


@pytest.mark.parametrize("keep_all", [True, False], ids=["all kept", "last kept"])
@pytest.mark.parametrize("n_states", [1, 3])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(n_states, keep_all, folder, expected):
    list(islice(kept(folder, keep_all=keep_all), n_states))
    *_, (epoch, state) = quietly(kept(folder, keep_all=keep_all))
    assert epoch == EPOCHS[-1]
    assert_same_bits([(epoch, state)], expected[-1:])


def test_more_epochs_go_on_from_the_last_file(folder, expected):
    list(kept(folder, epochs=EPOCHS[:2]))
    assert_same_bits(quietly(kept(folder)), expected)


# Damaged


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("damaged", [0, 2, 3])
def test_a_damaged_file_is_named_and_trained_again_to_the_same_bits(damaged, kind, folder, expected):
    list(kept(folder))
    file = state_file(folder, EPOCHS[damaged])
    good = file.read_bytes()
    DAMAGES[kind](file)
    with pytest.warns(RuntimeWarning, match=rf"{file.name} .*computed again from the last good one") as caught:
        found = list(kept(folder))
    assert len(caught) == 1
    assert_same_bits(found, expected)
    assert file.read_bytes() == good


def test_two_damaged_files_in_a_row_are_both_named(folder, expected):
    list(kept(folder))
    for epoch in EPOCHS[1:3]:
        flip_a_byte(state_file(folder, epoch))
    with pytest.warns(RuntimeWarning) as caught:
        found = list(kept(folder))
    messages = [str(warning.message) for warning in caught]
    assert all(state_file(folder, epoch).name in text for epoch, text in zip(EPOCHS[1:3], messages, strict=True))
    assert_same_bits(found, expected)


def test_a_file_that_cannot_be_opened_is_no_reason_to_train_again(folder, monkeypatch):
    list(kept(folder))

    def closed(file, like, of):
        raise PermissionError(13, "not allowed", str(file))

    monkeypatch.setattr(stages, "load_checkpoint", closed)
    with pytest.raises(PermissionError, match="not allowed"):
        next(kept(folder))


# The last one alone


def test_where_only_the_last_is_kept_there_is_one_file_at_any_time(folder, expected):
    found = []
    for epoch, state in kept(folder, keep_all=False):
        assert names(folder) == [state_file(folder, epoch).name]
        found.append((epoch, state))
    assert_same_bits(found, expected)


def test_where_only_the_last_is_kept_it_is_gone_on_from_without_training_again(folder, expected, monkeypatch):
    list(islice(kept(folder, keep_all=False), 3))
    starts = []

    def noted(state, *args, **options):
        starts.append(int(state.step))
        return train(state, *args, **options)

    monkeypatch.setattr(stages, "train", noted)
    found = quietly(kept(folder, keep_all=False))
    assert [epoch for epoch, _ in found] == EPOCHS[2:] and starts == [N // BATCH]
    assert_same_bits(found, expected[2:])
    assert names(folder) == [state_file(folder, EPOCHS[-1]).name]


@pytest.mark.parametrize("kind", DAMAGES)
def test_where_only_the_last_is_kept_and_damaged_training_begins_again(kind, folder, expected):
    list(kept(folder, keep_all=False))
    file = state_file(folder, EPOCHS[-1])
    DAMAGES[kind](file)
    with pytest.warns(RuntimeWarning, match=file.name):
        found = list(kept(folder, keep_all=False))
    assert_same_bits(found, expected)
    assert names(folder) == [file.name]


def test_of_two_files_that_a_stop_between_writing_and_deleting_leaves_the_older_goes(folder, expected):
    list(kept(folder, epochs=EPOCHS[:3]))
    state_file(folder, EPOCHS[0]).unlink()
    found = quietly(kept(folder, keep_all=False))
    assert_same_bits(found, expected[2:])
    assert names(folder) == [state_file(folder, EPOCHS[-1]).name]


# Averages

STEPS = [1 / 3, 2 / 3, 1.0]


def params(model):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(model.variables.params)]


@pytest.mark.parametrize("decay", [0.15, 0.99], ids=["limited by the decay", "limited by the count"])
def test_the_average_is_that_of_its_formula_over_the_updates(decay, folder):
    stage = replace(BENIGN, average_decay=decay)
    mean = params(MODEL)
    for t, (_, state) in enumerate(kept(folder, stage, STEPS)):
        d = min(decay, (1 + t) / (10 + t))
        mean = [d * m + (1 - d) * p for m, p in zip(mean, params(state.model), strict=True)]
        for found, by_hand in zip(params(averaged(state)), mean, strict=True):
            np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-7)
        assert state.opt_state.count == t + 1


def test_the_average_counts_one_update_for_each_attack(folder):
    stage = replace(STAGES["averaged"], attacks=(Clean(), Clean()))
    [(_, state)] = kept(folder, stage, [1.0])
    assert state.step == 3 and state.opt_state.count == 6


def test_training_is_not_changed_by_an_average(folder, expected):
    for (_, state), other in zip(kept(folder, STAGES["averaged"]), expected, strict=True):
        for a, b in zip(params(state.model), params(other.model), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_the_averaged_model_is_another_one_and_without_an_average_it_is_the_model_itself(expected):
    assert averaged(expected[-1]) is expected[-1].model
    *_, state = plain(STAGES["averaged"])
    mean = averaged(state)
    assert mean.network == NETWORK and not np.allclose(params(mean)[0], params(state.model)[0])


def test_before_the_first_update_the_average_is_the_model():
    state = STAGES["averaged"].first_state(MODEL, KEY)
    for a, b in zip(params(averaged(state)), params(MODEL), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_average_is_the_same_optimiser_so_that_nothing_is_compiled_twice():
    assert STAGES["averaged"].transformation is replace(STAGES["averaged"], learning_rate=0.1).transformation


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan")])
def test_a_decay_outside_of_zero_to_one_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        averaging(optax.sgd(0.1), decay)
