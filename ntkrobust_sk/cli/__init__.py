"""The command ``ntkrobust``."""

from .attack import attack_examples as attack_examples
from .attack import load_estimator as load_estimator
from .attack import make_attack as make_attack
from .attack import read_examples as read_examples
from .attack import write_examples as write_examples
from .command import main as main
from .command import process as process
