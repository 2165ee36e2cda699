"""Data of one's own: a folder of images by class, and data sets that give one item at a time."""

import builtins
from typing import Any

import jax
import numpy as np
import pytest

from ntkrobust_sk import MLP, KernelEvolution, Model, gram, load_experiment
from ntkrobust_sk.datasets.items import Rows
from ntkrobust_sk.datasets.loaders import load_digits_images
from ntkrobust_sk.datasets.splits import load_splits

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

X, Y = load_digits_images()
PIXELS = (255 * X[..., 0]).astype(np.uint8)


def write(folder, labels=(0, 1, 2), each=6, start=0, size=None):
    """Write digits as images, one subfolder for each class."""
    for label in labels:
        (folder / f"digit {label}").mkdir(parents=True)
        for k in np.flatnonzero(label == Y)[start : start + each]:
            image = Image.fromarray(PIXELS[k])
            (image if size is None else image.resize(size)).save(folder / f"digit {label}" / f"{k}.png")
    return folder


def test_a_folder_by_class_gives_its_images_and_labels_and_keeps_test_examples_apart(tmp_path):
    write(tmp_path / "data")
    splits = load_splits(tmp_path / "data", n_train=12, n_test=6)
    assert splits.X.shape == (12, 8, 8, 1) and splits.X.dtype == np.float32
    assert np.bincount(splits.y).tolist() == [4, 4, 4] and np.bincount(splits.y_test).tolist() == [2, 2, 2]
    known = {(PIXELS[k] / np.float32(255)).tobytes(): Y[k] for k in range(len(Y))}
    both = np.concatenate([splits.X, splits.X_test])[..., 0]
    assert [known[image.tobytes()] for image in both] == [*splits.y, *splits.y_test]
    assert len({image.tobytes() for image in both}) == 18
    again = load_splits(str(tmp_path / "data"), n_train=12, n_test=6)
    assert all((a == b).all() for a, b in zip(splits, again, strict=True))
    other = load_splits(tmp_path / "data", n_train=12, n_test=6, random_state=1)
    assert (splits.X_test != other.X_test).any()


def test_train_and_test_folders_are_kept_apart_and_labelled_alike(tmp_path):
    write(tmp_path / "train", each=4)
    write(tmp_path / "test", labels=(1, 2), each=2, start=4)
    splits = load_splits(tmp_path, n_train=None, n_test=None)
    assert len(splits.X) == 12 and splits.y_test.tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(splits.X_test[0, ..., 0], PIXELS[np.flatnonzero(Y == 1)[4]] / np.float32(255))


def test_colours_have_three_channels_and_other_files_are_left_alone(tmp_path):
    write(tmp_path)
    Image.fromarray(np.dstack([PIXELS[0]] * 3 + [PIXELS[1]])).save(tmp_path / "digit 0" / "alpha.PNG")
    (tmp_path / "digit 0" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    splits = load_splits(tmp_path, n_train=None, n_test=3)
    assert splits.X.shape == (16, 8, 8, 3)


def test_sixteen_bits_are_as_bright_as_eight(tmp_path):
    for label in (0, 1):
        (tmp_path / str(label)).mkdir()
        for k in range(3):
            Image.fromarray(PIXELS[k + 3 * label].astype(np.uint16) * 257).save(tmp_path / str(label) / f"{k}.png")
    splits = load_splits(tmp_path, n_train=None, n_test=2)
    both = np.concatenate([splits.X, splits.X_test])
    np.testing.assert_allclose(np.sort(both.ravel()), np.sort(PIXELS[:6].ravel() / 255), atol=1e-6)


def test_images_are_resized_to_one_size(tmp_path):
    write(tmp_path, labels=(0, 1))
    write(tmp_path, labels=(2,), size=(10, 12))
    with pytest.raises(
        ValueError, match=r"there are 2: .*\.png is 8×8 and .*\.png 12×10 .*give image_size=\(h, w\)"
    ):
        load_splits(tmp_path, n_train=6, n_test=3)
    assert load_splits(tmp_path, n_train=6, n_test=3, image_size=(6, 7)).X.shape == (6, 6, 7, 1)
    assert load_splits(tmp_path, n_train=6, n_test=3, image_size=6).X.shape == (6, 6, 6, 1)


def _empty_class(folder):
    (folder / "none of them").mkdir()


def _broken(folder):
    (folder / "digit 0" / "broken.png").write_bytes(b"no image")


def _torn(folder):
    file = next((folder / "digit 0").glob("*.png"))
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty_class, "the class 'none of them' of .* has no images"),
        (_broken, r"broken\.png cannot be read as an image .*; mend it, or take it out of the folder"),
        (_torn, r"\d+.png cannot be read as an image"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, spoil, message):
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_splits(tmp_path, n_train=15, n_test=3)


def test_folders_that_are_no_data_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"there are no images in the folder .*expected a subfolder for each class"
    ):
        load_splits(tmp_path, n_train=6, n_test=3)
    write(tmp_path / "data" / "nested")
    with pytest.raises(ValueError, match="has one class alone, 'nested'"):
        load_splits(tmp_path / "data", n_train=6, n_test=3)
    write(tmp_path / "parts" / "train")
    with pytest.raises(ValueError, match="has train and no test"):
        load_splits(tmp_path / "parts", n_train=6, n_test=3)
    write(tmp_path / "parts" / "test", labels=(5,))
    with pytest.raises(ValueError, match="has classes that train has not: digit 5"):
        load_splits(tmp_path / "parts", n_train=6, n_test=3)
    wrong: list[Any] = [{"image_size": "6"}, {"image_size": (1, 2, 3)}, {"image_size": 0}]
    for given in wrong:
        with pytest.raises((ValueError, TypeError), match="image_size must be"):
            load_splits(tmp_path / "parts", n_train=6, n_test=3, **given)
    with pytest.raises(ValueError, match="image_size is for folders"):
        load_splits("digits", n_train=20, n_test=20, image_size=6)


def test_without_pillow_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    write(tmp_path)
    imported = builtins.__import__

    def without(name, *args, **given):
        if name.startswith("PIL"):
            raise ImportError("No module named 'PIL'")
        return imported(name, *args, **given)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pillow"):
        load_splits(tmp_path, n_train=6, n_test=3)


@pytest.mark.slow
def test_an_experiment_runs_on_a_folder_and_goes_on_from_elsewhere(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    write(tmp_path / "data", each=10)
    monkeypatch.chdir(tmp_path)
    experiment = KernelEvolution(
        data="data", image_size=[6, 6], network="mlp", n_train=21, n_test=9, n_kernel=9, epochs=0,
        regimes=("benign",), stage2_from=(), n_features=0,
    )  # fmt: skip
    result = experiment.run(tmp_path / "run", progress=False)
    monkeypatch.chdir("/")
    again = load_experiment(tmp_path / "run")
    assert again.image_size == (6, 6) and again.run(tmp_path / "run", progress=False).results == result.results


# Data sets


class Pairs:
    """As PyTorch's: (x, y) by number."""

    def __init__(self, X, y, held=None):
        self.X, self.y, self.read, self.held = X, y, [], held

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        self.read.append(i)
        return self.X[i], self.y[i]


class Dicts(Pairs):
    """As Hugging Face's: pictures and labels in dicts."""

    def __getitem__(self, i):
        return {"image": Image.fromarray(self.X[i]), "label": int(self.y[i])}


def same_splits(one, other):
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def test_a_data_set_gives_the_splits_of_its_arrays(tmp_path):
    n = 120
    np.savez(tmp_path / "same.npz", X=PIXELS[:n, ..., None].astype(np.float32) / np.float32(255), y=Y[:n])
    expected = load_splits(tmp_path / "same.npz", n_train=50, n_test=20)
    for data in (Pairs(PIXELS[:n, ..., None], Y[:n]), Dicts(PIXELS[:n], Y[:n])):
        same_splits(load_splits(data, n_train=50, n_test=20), expected)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = torch.utils.data.TensorDataset(torch.tensor(X[:n]), torch.tensor(Y[:n]))
    assert load_splits(tensors, n_train=50, n_test=20).X.shape == (50, 8, 8, 1)


def test_test_examples_are_taken_as_they_are_and_labelled_alike():
    words = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    splits = load_splits(
        Pairs(X[:100], words[Y[:100]]), n_train=None, n_test=None, test_data=Pairs(X[100:110], words[Y[100:110]])
    )
    np.testing.assert_array_equal(np.unique(words)[splits.y_test], words[Y[100:110]])
    np.testing.assert_array_equal(splits.X_test, X[100:110])


class Other:
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(np.ones(3), 0), (np.ones(4), 1)] * 5, r"item \d of data is of shape \(4,\).*and item 0 of \(3,\)"),
        ([(np.ones(3), 0), (np.ones(3, np.float32), 1)] * 5, r"item \d of data.*expected inputs of one shape"),
        ([(np.ones(3), 0), (np.full(3, np.nan), 1)] * 5, r"item \d of data contains NaN or infinity"),
        ([], "data must hold at least one input"),
        ([np.ones(3)] * 5, r"item 0 of data: items must be \(input, label\) or dicts"),
        ([{"pic": np.ones(3), "label": 0}] * 5, "keys 'pic', 'label'; none of them can be its input"),
        ([{"x": np.ones(3), "X": np.ones(3), "y": 0}] * 5, "2 of them can be its input"),
        ([{"x": np.ones(3)}] * 5, "item 0 of data: an item has keys 'x'; none of them can be its label"),
        ([(np.ones(3), 0.5), (np.ones(3), 1.5)] * 5, "labels of data must be one integer or text each"),
        ([(np.ones(3), [0, 1])] * 5, "labels of data must be one integer or text each"),
    ],
)
def test_items_that_do_not_fit_are_named(items, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load_splits(Other(items), n_train=4, n_test=4)


def test_an_item_that_cannot_be_read_is_named():
    class Torn(Pairs):
        def __getitem__(self, i):
            if i == 7:
                raise RuntimeError("the disk is gone")
            return super().__getitem__(i)

    with pytest.raises(ValueError, match="item 7 of data cannot be read: RuntimeError: the disk is gone"):
        load_splits(Torn(X[:60], Y[:60]), n_train=20, n_test=20)


def test_what_is_for_other_data_is_refused():
    data = Pairs(X[:60], Y[:60])
    wrong: list[Any] = [{"data_dir": "."}, {"image_size": 8}]
    for given in wrong:
        with pytest.raises(ValueError, match="leave them out"):
            load_splits(data, n_train=20, n_test=20, **given)
    with pytest.raises(ValueError, match="test_data is for data sets given in Python"):
        load_splits("digits", n_train=20, n_test=20, test_data=data)
    with pytest.raises(ValueError, match=r"test_data has labels that data has not: \[9\]"):
        load_splits(
            Pairs(X[Y < 9][:90], Y[Y < 9][:90]), n_train=None, n_test=None, test_data=Pairs(X[9:10], Y[9:10])
        )


@pytest.fixture(scope="module")
def model():
    network = MLP(n_outputs=3, widths=(16,))
    return Model(network, network.init(jax.random.key(0), (8, 8, 1)))


@pytest.mark.parametrize("kernel", ["trace", "class"])
@pytest.mark.parametrize("n", [20, 300])
def test_a_gram_matrix_of_a_data_set_has_the_bits_of_that_of_its_array(model, kernel, n):
    K = gram(kernel, model, X[:n], X[:40])
    np.testing.assert_array_equal(gram(kernel, model, Pairs(X[:n], Y[:n]), Pairs(X[:40], Y[:40])), K)
    np.testing.assert_array_equal(gram(kernel, model, Other(list(X[:n]))), gram(kernel, model, X[:n]))
    integers = PIXELS[:n, ..., None]
    np.testing.assert_array_equal(gram(kernel, model, Other(list(integers))), gram(kernel, model, integers))


def test_no_more_than_a_tile_of_a_data_set_is_in_memory(model, monkeypatch):
    sizes, read = [], Rows.__array__
    monkeypatch.setattr(Rows, "__array__", lambda self, *a, **k: sizes.append(len(self)) or read(self, *a, **k))
    gram("trace", model, Other(list(X[:700])))
    assert len(sizes) > 5 and max(sizes) <= 128


def test_a_store_knows_a_data_set_by_its_numbers(model, tmp_path):
    pytest.importorskip("zarr", reason="zarr is not installed")
    K = gram("trace", model, X[:300], store=tmp_path / "K.zarr")
    data = Pairs(X[:320], Y[:320])
    np.testing.assert_array_equal(gram("trace", model, data, store=tmp_path / "K.zarr")[:300, :300], K)
    with pytest.raises(ValueError, match="the first 320 rows hold other numbers"):
        gram("trace", model, Pairs(X[1:400], Y[1:400]), store=tmp_path / "K.zarr")
