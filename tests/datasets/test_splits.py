"""Training and test images: sizes, balance and seeds, files of the user's own, and whatever is wrong with them."""

import numpy as np
import pytest

from ntkrobust_sk import load_digits_images
from ntkrobust_sk.datasets import splits
from ntkrobust_sk.datasets.splits import chosen_indices, load_splits, require_enough

N, N_TEST = 12, 6


def arrays(n=N, n_test=None, classes=(0, 1, 2), shape=(2, 3), dtype=np.float32, seed=0):
    """What a file holds: inputs that are all different, and as many of each class as of any other."""
    rng = np.random.default_rng(seed)
    found = {}
    for suffix, size in (("", n), ("_test", n_test)):
        if size is not None:
            found["X" + suffix] = rng.uniform(size=(size, *shape)).astype(dtype)
            found["y" + suffix] = np.resize(np.array(classes), size)
    return found


@pytest.fixture
def file(tmp_path):
    """Writes arrays to a file, and says where."""

    def write(**content):
        path = tmp_path / "own.npz"
        np.savez(path, **content)
        return path

    return write


def rows(X):
    return {row.tobytes() for row in X}


def assert_pairs(X, y, X_all, y_all):
    """Every input has the label that it had."""
    label_of = {row.tobytes(): label for row, label in zip(X_all, y_all, strict=True)}
    assert [label_of[row.tobytes()] for row in X] == y.tolist()


# Digits


@pytest.mark.parametrize("n_train, n_test", [(200, 100), (55, 30), (10, 10)])
def test_digits_come_in_the_sizes_asked_for_and_balanced(n_train, n_test):
    found = load_splits("digits", n_train=n_train, n_test=n_test)
    for X, y, n in ((found.X, found.y, n_train), (found.X_test, found.y_test, n_test)):
        assert X.shape == (n, 8, 8, 1) and X.dtype == np.float32 and X.min() >= 0 and X.max() <= 1
        assert y.shape == (n,) and np.issubdtype(y.dtype, np.integer)
        counts = np.bincount(y, minlength=10)
        assert counts.min() >= n // 10 and counts.max() <= -(-n // 10)


def test_digits_for_training_and_for_scoring_are_others_and_keep_their_labels():
    X_all, y_all = load_digits_images()
    found = load_splits("digits", n_train=300, n_test=200)
    assert len(rows(found.X)) == 300 and not rows(found.X) & rows(found.X_test)
    assert_pairs(found.X, found.y, X_all, y_all)
    assert_pairs(found.X_test, found.y_test, X_all, y_all)


def test_all_digits_that_are_not_scored_can_be_trained_on():
    for n_train in (1397, None):
        found = load_splits("digits", n_train=n_train, n_test=400)
        assert len(found.X) == 1797 - 400 and len(found.X_test) == 400


@pytest.mark.parametrize(
    "n_train, n_test, there", [(5000, 50, "1,747"), (1398, 400, "1,397"), (10**9, 10, "1,787")]
)
def test_more_digits_than_there_are_are_refused_with_how_many_there_are(n_train, n_test, there):
    with pytest.raises(
        ValueError, match=rf"n_train={n_train:,}, but there are {there} training examples of 'digits'"
    ):
        load_splits("digits", n_train=n_train, n_test=n_test)
    found = load_splits("digits", n_train=n_train, n_test=n_test, at_most=True)
    assert f"{len(found.X):,}" == there


def test_all_test_examples_of_data_without_any_of_their_own_are_refused():
    with pytest.raises(ValueError, match="n_test=None is all test examples, but these data have none"):
        load_splits("digits", n_train=None, n_test=None)


WRONG = [
    ({"n_train": "x"}, ValueError, "n_train must be a positive integer, got 'x'"),
    ({"n_train": 0}, ValueError, "n_train must be a positive integer, got 0"),
    ({"n_train": True}, ValueError, "n_train must be a positive integer, got True"),
    ({"n_test": 5.0}, ValueError, "n_test must be a positive integer, got 5.0"),
    ({"n_test": -3}, ValueError, "n_test must be a positive integer, got -3"),
    ({"random_state": "x"}, ValueError, "random_state must be None, an integer"),
    ({"random_state": 2**32}, ValueError, "random_state must be None, an integer"),
    ({"data": 5}, TypeError, "data must be a name, the path"),
    ({"data": None}, TypeError, "data must be a name, the path"),
    ({"data": "~nosuch/x.npz"}, ValueError, "home of a user that does not exist"),
    ({"data": "x" * 300 + ".npz"}, ValueError, "over 255 bytes"),
    ({"data": "mnist", "data_dir": 5}, TypeError, "data_dir must be a path"),
    ({"data": "mnist", "data_dir": "~nosuch/x"}, ValueError, "data_dir=.* home of a user"),
]


@pytest.mark.parametrize("given, kind, message", WRONG)
def test_odd_arguments_are_named(given, kind, message):
    with pytest.raises(kind, match=message):
        load_splits(**{"data": "digits", "n_train": 50, "n_test": 20} | given)


def test_a_test_set_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(ValueError, match="n_test=1,790 leaves too few of the 1,797 examples to train on"):
        load_splits("digits", n_train=100, n_test=1790)


def test_the_same_seed_chooses_the_same_examples_and_another_seed_others():
    first, again, other = (load_splits("digits", n_train=50, n_test=20, random_state=seed) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows(first.X) != rows(other.X) and rows(first.X_test) != rows(other.X_test)


@pytest.mark.parametrize("n_train, n_test", [(9, 100), (100, 9)])
def test_fewer_digits_than_classes_are_refused(n_train, n_test):
    with pytest.raises(ValueError, match="9 examples cannot hold one of each of the 10 classes; ask for more"):
        load_splits("digits", n_train=n_train, n_test=n_test)


# Named data sets


@pytest.fixture
def published(monkeypatch):
    """A small data set under the name of a large one; notes where it was looked for."""
    sets, asked = {"train": arrays(N, seed=1), "test": arrays(N, seed=2)}, []

    def load(data_dir, *, split):
        asked.append((data_dir, split))
        return sets[split]["X"], sets[split]["y"]

    monkeypatch.setitem(splits.LOADERS, "mnist", load)
    return sets, asked


def test_a_named_data_set_keeps_its_own_training_and_test_examples_apart(published):
    sets, asked = published
    found = load_splits("mnist", "folder", n_train=6, n_test=3)
    assert asked == [("folder", "train"), ("folder", "test")]
    assert np.bincount(found.y).tolist() == [2, 2, 2] and np.bincount(found.y_test).tolist() == [1, 1, 1]
    assert_pairs(found.X, found.y, *sets["train"].values())
    assert_pairs(found.X_test, found.y_test, *sets["test"].values())


@pytest.mark.parametrize("given", [{"n_train": 1000, "n_test": 3}, {"n_train": 3, "n_test": 1000}])
def test_more_examples_than_a_named_data_set_has_are_refused(published, given):
    with pytest.raises(ValueError, match=rf"=1,000, but there are {N} (training|test) examples of 'mnist'"):
        load_splits("mnist", **given)
    found = load_splits("mnist", n_train=None, n_test=None)
    assert len(found.X) == N and len(found.X_test) == N


@pytest.mark.parametrize("given", [{"n_train": N + 1, "n_test": 3}, {"n_train": 3, "n_test": N_TEST + 1}])
def test_more_examples_than_a_file_has_are_refused(file, given):
    with pytest.raises(ValueError, match=r"but there are (12 training|6 test) examples of .*own\.npz"):
        load_splits(file(**arrays(n_test=N_TEST)), **given)


def test_fewer_examples_than_a_named_data_set_has_classes_are_refused(published):
    with pytest.raises(ValueError, match="2 examples cannot hold one of each of the 3 classes"):
        load_splits("mnist", n_train=6, n_test=2)


@pytest.mark.parametrize("name", ["MNIST", "imagenet", "own.npy", ""])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"unknown data '{name}'; known are 'digits', 'cifar10', .* \.npz file"):
        load_splits(name, n_train=10, n_test=10)


# Files


@pytest.mark.parametrize("as_given", [str, lambda path: path], ids=["text", "path"])
def test_a_file_with_test_examples_keeps_them_apart_to_the_bit(file, as_given):
    content = arrays(n_test=N_TEST)
    found = load_splits(as_given(file(**content)), n_train=N, n_test=N_TEST)
    for name, value in found._asdict().items():
        np.testing.assert_array_equal(value, content[name])


def test_the_test_examples_of_a_file_without_any_are_taken_out_of_the_others(file):
    content = arrays()
    found = load_splits(file(**content), n_train=N - N_TEST, n_test=N_TEST)
    assert len(found.X) == N - N_TEST and len(found.X_test) == N_TEST
    assert rows(found.X) | rows(found.X_test) == rows(content["X"])
    assert_pairs(found.X, found.y, content["X"], content["y"])
    assert_pairs(found.X_test, found.y_test, content["X"], content["y"])


def test_at_most_as_many_as_asked_for_are_taken_from_a_file_and_balanced(file):
    found = load_splits(file(**arrays(30, n_test=30)), n_train=9, n_test=6)
    assert np.bincount(found.y).tolist() == [3, 3, 3] and np.bincount(found.y_test).tolist() == [2, 2, 2]


def test_the_examples_of_a_file_are_chosen_by_the_seed(file):
    path = file(**arrays(60))
    first, again, other = (load_splits(path, n_train=6, n_test=6, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.X, again.X)
    assert rows(first.X) != rows(other.X) and rows(first.X_test) != rows(other.X_test)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_numbers_become_float32(file, dtype):
    content = arrays(n_test=N_TEST, dtype=dtype)
    found = load_splits(file(**content), n_train=N, n_test=N_TEST)
    assert found.X.dtype == found.X_test.dtype == np.float32
    np.testing.assert_array_equal(found.X, content["X"].astype(np.float32))


@pytest.mark.parametrize(
    "classes", [("cat", "dog", "elk"), (-3, 7, 100), (0.5, 1.5, 2.5)], ids=["text", "gaps", "floating"]
)
def test_labels_of_any_kind_are_numbered_in_their_order(file, classes):
    content = arrays(n_test=N_TEST, classes=classes)
    content["y"], content["y_test"] = content["y"][::-1], content["y_test"][::-1]
    found = load_splits(file(**content), n_train=N, n_test=N_TEST)
    for name in ("y", "y_test"):
        assert getattr(found, name).dtype == np.int64
        assert [classes[label] for label in getattr(found, name)] == content[name].tolist()


def test_test_labels_are_numbered_as_the_training_labels_are_though_some_are_missing(file):
    content = arrays(n_test=N_TEST, classes=("cat", "dog", "elk"))
    content["y_test"] = np.full(N_TEST, "elk")
    assert load_splits(file(**content), n_train=N, n_test=N_TEST).y_test.tolist() == [2] * N_TEST


def test_a_file_of_the_users_own_may_hold_other_names_too(file):
    found = load_splits(file(**arrays(), note=np.array("hello")), n_train=N - N_TEST, n_test=N_TEST)
    assert len(found.X_test) == N_TEST


# What is wrong with files


def test_a_missing_file_is_named_with_what_it_should_hold(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.npz; expected \.npz with X"):
        load_splits(tmp_path / "none.npz", n_train=10, n_test=10)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04torn", b"\x80\x04]\x94."], ids=repr)
def test_what_is_no_npz_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"own\.npz cannot be read as an \.npz file of plain arrays"):
        load_splits(tmp_path / "own.npz", n_train=10, n_test=10)


def test_a_torn_file_is_refused(file):
    path = file(**arrays())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"own\.npz cannot be read"):
        load_splits(path, n_train=10, n_test=10)


def test_pickled_objects_are_not_loaded(file):
    with pytest.raises(ValueError, match=r"cannot be read as an \.npz file of plain arrays"):
        load_splits(file(**arrays() | {"y": np.array([None] * N)}), n_train=10, n_test=10)


@pytest.mark.parametrize(
    "missing, holds",
    [
        (("X", "y", "X_test", "y_test"), "none of the names"),
        (("X", "X_test", "y_test"), "y"),
        (("y", "X_test", "y_test"), "X"),
        (("X", "y"), "X_test, y_test"),
        (("y_test",), "X, y, X_test"),
        (("X_test",), "X, y, y_test"),
    ],
    ids=lambda names: ", ".join(names) if isinstance(names, tuple) else "",
)
def test_a_file_without_all_names_is_refused_with_those_that_it_has(file, missing, holds):
    content = {name: array for name, array in arrays(n_test=N_TEST).items() if name not in missing}
    with pytest.raises(ValueError, match=rf"own\.npz holds {holds}; expected X and y, or .* X_test and y_test"):
        load_splits(file(**content), n_train=N, n_test=N_TEST)


def changed(name, array):
    return lambda content: content | {name: array}


BROKEN = {
    "bytes": (changed("X", np.zeros((N, 3), np.uint8)), "X in .* is of uint8; expected floating numbers"),
    "integers": (changed("X", np.zeros((N, 3), np.int64)), "X in .* is of int64; expected floating numbers"),
    "bytes to score": (changed("X_test", np.zeros((N_TEST, 3), np.uint8)), "X_test in .* is of uint8"),
    "a vector": (changed("X", np.zeros(N, np.float32)), r"X in .* is of shape \(12,\) .* expected \(n, \.\.\.\)"),
    "more labels": (changed("y", np.zeros(N + 1, int)), r"X in .* shape \(12, 2, 3\) and its labels \(13,\)"),
    "one-hot labels": (changed("y", np.zeros((N, 3))), r"X in .* and its labels \(12, 3\)"),
    "fewer labels to score": (changed("y_test", np.zeros(1, int)), r"X_test in .* and its labels \(1,\)"),
    "nothing": (lambda content: arrays(0), r"X in .* is of shape \(0, 2, 3\)"),
    "nothing to score": (lambda content: arrays(n_test=0), r"X_test in .* is of shape \(0, 2, 3\)"),
    "NaN": (changed("X", np.full((N, 3), np.nan)), r"X in .*own\.npz holds NaN, infinity"),
    "infinity": (changed("X_test", np.full((N_TEST, 3), np.inf)), "X_test in .* holds NaN, infinity"),
    "unseen labels": (
        changed("y_test", np.array([0, 1, 2, 9, 7, 9])),
        r"y_test in .* has labels that y has not: \[7, 9\]",
    ),
    "unseen text": (changed("y_test", np.full(N_TEST, "0")), r"y_test in .* has labels that y has not: \['0'\]"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_arrays_that_do_not_fit_are_refused_by_name_and_by_what_is_wrong_with_them(file, kind):
    change, message = BROKEN[kind]
    with pytest.raises(ValueError, match=message):
        load_splits(file(**change(arrays(n_test=N_TEST))), n_train=N, n_test=N_TEST)


@pytest.mark.parametrize("n_train, n_test", [(2, N_TEST), (N, 2)])
def test_fewer_examples_than_the_file_has_classes_are_refused(file, n_train, n_test):
    with pytest.raises(ValueError, match="2 examples cannot hold one of each of the 3 classes"):
        load_splits(file(**arrays(n_test=N_TEST)), n_train=n_train, n_test=n_test)


def test_one_example_of_each_class_is_enough():
    require_enough(np.array([0, 1, 2, 2]), n_train=3, n_test=5)
    with pytest.raises(ValueError, match="2 examples"):
        require_enough(np.array([0, 1, 2, 2]), n_train=3, n_test=2)


@pytest.mark.parametrize(
    ("counts", "left"),
    [((5, 1, 1), [1, 1, 4]), ((5, 1, 1), [1, 1, 3]), ((4, 3, 2), [2, 3, 3]), ((4, 3, 2), [2, 2, 3]),
     ((2, 2, 2), [1, 2, 2]), ((2, 2, 2), [1, 1, 2])],
)  # fmt: skip
def test_all_but_a_few_are_chosen_from_the_largest_classes(counts, left):
    y = np.repeat(np.arange(3), counts)
    chosen = chosen_indices(y, sum(left), 0)
    assert len(set(chosen.tolist())) == len(chosen) and sorted(np.bincount(y[chosen]).tolist()) == left
    np.testing.assert_array_equal(chosen, chosen_indices(y, sum(left), 0))


def test_a_list_of_pairs_or_dicts_is_a_data_set_and_a_tuple_of_arrays_is_told_of_splits():
    pairs = [(np.full((2, 2, 1), i / 30), i % 3) for i in range(30)]
    for items in (pairs, [{"x": x, "y": y} for x, y in pairs]):
        splits = load_splits(items, n_train=12, n_test=6)
        assert splits.X.shape == (12, 2, 2, 1) and splits.X_test.shape == (6, 2, 2, 1)
    for wrong in ((np.ones((4, 2)), [0, 1, 0, 1]), [[1.0, 2.0]], []):
        with pytest.raises(TypeError, match=r"Splits\(X, y, X_test, y_test\)"):
            load_splits(wrong, n_train=2, n_test=2)


def test_what_cannot_hold_a_class_each_is_named_with_the_smallest_number_that_can():
    for name in ("n_train", "n_test"):
        with pytest.raises(ValueError, match=rf"^{name}=5: 5 examples .* 10 at least"):
            load_splits("digits", **{"n_train": 50, "n_test": 50} | {name: 5})
