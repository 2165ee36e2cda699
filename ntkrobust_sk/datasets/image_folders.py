"""Folders of images, one subfolder for each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._validation import brief, integer

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
# Modes of PIL with one channel; those of 16 bits have 65,535 for white.
GREY, DEEP = ("1", "L", "LA"), ("I;16", "I;16B", "I;16L", "I;16N")
PARTS = ("train", "test")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images in files as an array (n, h, w, c) of float32 in [0, 1] that is read where it is indexed.

    Attributes
    ----------
    files : array of Path
    size : (h, w)
    is_grey : bool
        One channel, otherwise three.
    """

    files: np.ndarray
    size: tuple[int, int]
    is_grey: bool

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: np.ndarray) -> np.ndarray:
        """Read the images at some positions."""
        images = np.empty((len(at), *self.size, 1 if self.is_grey else 3), np.float32)
        for k, file in enumerate(self.files[at]):
            images[k] = self._read(file)
        return images

    def _read(self, file: Path) -> np.ndarray:
        Image = _pillow().Image
        try:
            with Image.open(file) as image:
                image.load()
                if image.mode in DEEP:
                    # of pictures with several kinds in one folder
                    image = Image.fromarray(np.asarray(image, np.float32) / 257, "F")
                elif self.is_grey:
                    image = image.convert("L")
                if not self.is_grey:
                    image = image.convert("RGB")
                if image.size != self.size[::-1]:
                    image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
                pixels = np.asarray(image, np.float32) / 255
        except MemoryError:  # which says nothing of the file
            raise
        except Exception as error:  # whatever PIL raises of a file that it cannot read
            raise _unreadable(file, error) from error
        return pixels.reshape(*self.size, -1)


def read_folder(folder: Path, image_size: Any = None) -> list[tuple[ImageFiles, np.ndarray]]:
    """Find the images of a folder, and their labels 0..C-1 in the order of their classes' names.

    Parameters
    ----------
    folder : Path
        With a subfolder for each class, or with ``train`` and ``test``, which have these.
    image_size : int or (h, w), default=None
        To which all are resized; None asks for images of one size.

    Returns
    -------
    list of one or two (images, labels)
        The second ones are those of ``test``.

    Raises
    ------
    ValueError
        For a folder without images, a class without any, one class alone, images of several sizes, a file that is
        no image (named), and classes of ``test`` that ``train`` has not.
    ImportError
        Without Pillow.
    """
    size = None if image_size is None else _size(image_size)
    there = [folder / part for part in PARTS if (folder / part).is_dir()]
    if len(there) == 1 and len(_subfolders(folder)) == 1:
        raise ValueError(f"{folder} has {there[0].name} and no {'test' if there[0].name == 'train' else 'train'}")
    found = [_files_by_class(part) for part in (there if len(there) == 2 else [folder])]
    classes = list(found[0])
    if len(classes) < 2:
        raise ValueError(f"{folder} has one class alone, {classes[0]!r}; expected several subfolders")
    if unseen := [name for name in found[-1] if name not in classes]:
        raise ValueError(f"{folder / 'test'} has classes that train has not: {', '.join(unseen[:5])}")
    everything = [file for part in found for files in part.values() for file in files]
    looked_at = {file: _look_at(file) for file in everything}
    size = size or _one_size(looked_at)
    is_grey = all(mode in (*GREY, *DEEP) for _, mode in looked_at.values())
    parts = []
    for part in found:
        files = np.array([file for name in part for file in part[name]], object)
        labels = np.array([classes.index(name) for name in part for _ in part[name]], np.int64)
        parts.append((ImageFiles(files, size, is_grey), labels))
    return parts


def _subfolders(folder) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _files_by_class(folder) -> dict[str, list[Path]]:
    """Return the images of each subfolder, below it at any depth."""
    found = {
        part.name: sorted(f for f in part.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        for part in _subfolders(folder)
    }
    if not any(found.values()):
        raise ValueError(
            f"there are no images in the folder {folder}; expected a subfolder for each class with files such as "
            f"{folder / 'cat' / '1.png'} ({', '.join(SUFFIXES)})"
        )
    if empty := [name for name, files in found.items() if not files]:
        raise ValueError(f"the class {empty[0]!r} of {folder} has no images ({', '.join(SUFFIXES)})")
    return found


def _look_at(file) -> tuple[tuple[int, int], str]:
    """Return size (h, w) and mode of an image, from its beginning alone."""
    Image = _pillow().Image
    try:
        with Image.open(file) as image:
            (width, height), mode = image.size, image.mode
    except Exception as error:  # whatever PIL raises of a file that it cannot read
        raise _unreadable(file, error) from error
    if mode in ("I", "F"):
        raise ValueError(
            f"{file} has pixels of mode {mode!r}, whose range nobody knows; save it with 8 or 16 bits"
        )
    return (height, width), mode


def _one_size(looked_at) -> tuple[int, int]:
    sizes = {size: file for file, (size, _) in looked_at.items()}
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise ValueError(
            f"images must be of one size, but there are {len(sizes)}: {one} is {first[0]}×{first[1]} and {other} "
            f"{second[0]}×{second[1]} (height × width); give image_size=(h, w), to which all are resized"
        )
    return next(iter(sizes))


def _size(image_size) -> tuple[int, int]:
    both = image_size if isinstance(image_size, tuple | list) else (image_size,) * 2
    if len(both) != 2:
        raise ValueError(f"image_size must be an integer or (height, width), got {brief(image_size)}")
    return integer("image_size", both[0]), integer("image_size", both[1])


def _unreadable(file, error) -> ValueError:
    return ValueError(f"{file} cannot be read as an image ({error}); mend it, or take it out of the folder")


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("a folder of images needs Pillow: pip install pillow") from error
    return PIL
