"""Images in [0, 1] and their labels; class-balanced subsets; training and test examples by name."""

from .loaders import load_cifar10, load_cifar100, load_digits_images, load_fashion_mnist, load_mnist
from .splits import Splits, load_splits
from .subsets import class_balanced_indices

__all__ = [
    "Splits",
    "class_balanced_indices",
    "load_cifar10",
    "load_cifar100",
    "load_digits_images",
    "load_fashion_mnist",
    "load_mnist",
    "load_splits",
]
