"""Saving without pickle: estimators, models and predictors in one file, whose loading runs no code from it."""

from .archive import SavedFileError as SavedFileError
from .registry import saved_as as saved_as
from .savable import Savable as Savable
from .savable import load as load
