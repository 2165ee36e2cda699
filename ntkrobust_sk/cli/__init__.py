"""The command ``ntkrobust``."""

from .attack import attack_examples, load_estimator, make_attack, read_examples, write_examples
from .command import main, process

__all__ = [
    "attack_examples",
    "load_estimator",
    "main",
    "make_attack",
    "process",
    "read_examples",
    "write_examples",
]
