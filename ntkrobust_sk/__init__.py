"""Empirical neural tangent kernels, adversarial training and attacks on kernel machines.

Each public name is imported when it is first used; ``__init__.pyi`` lists where it lives. With the environment
variable ``EAGER_IMPORT`` set to any value, all of them are imported at once.
"""

import lazy_loader

__version__ = "0.1.0.dev0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
