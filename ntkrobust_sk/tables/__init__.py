"""Data frames under attack: their columns of numbers as rows, and pipelines on them as functions of these."""

from .frames import Table, as_table

__all__ = ["Table", "as_table"]
