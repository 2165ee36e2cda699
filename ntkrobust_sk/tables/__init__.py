"""Data frames under attack: their columns of numbers as rows, and pipelines on them as functions of these."""

from .frames import Table as Table
from .frames import as_table as as_table
