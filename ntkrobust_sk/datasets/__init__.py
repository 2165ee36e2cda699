"""Images in [0, 1] and their labels; class-balanced subsets; training and test examples by name."""

from .loaders import load_cifar10 as load_cifar10
from .loaders import load_cifar100 as load_cifar100
from .loaders import load_digits_images as load_digits_images
from .loaders import load_fashion_mnist as load_fashion_mnist
from .loaders import load_mnist as load_mnist
from .splits import Splits as Splits
from .splits import class_balanced_indices as class_balanced_indices
from .splits import load_splits as load_splits
