"""Small pieces of HTML for notebooks. Whatever comes from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

NUMBER = "text-align:right;padding:.2em .7em;font-variant-numeric:tabular-nums"
NAME = "text-align:left;padding:.2em .7em"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """Write a table whose first column names its rows, and paragraphs below it.

    Parameters
    ----------
    caption : str
    head : sequence of str
        The columns' names.
    rows : iterable of sequences of str
    notes : iterable of str

    Examples
    --------
    >>> "<b>" in table("accuracies", ["<b>", "robust"], [["a", "0.5"]])
    False
    """
    lines = [
        f'<table style="border-collapse:collapse"><caption style="text-align:left">{escape(caption)}</caption>',
        f"<thead><tr>{_cells('th', head)}</tr></thead>",
        "<tbody>",
        *(f"<tr>{_cells('td', row)}</tr>" for row in rows),
        "</tbody></table>",
        *(f"<p>{escape(note)}</p>" for note in notes),
    ]
    return "\n".join(lines)


def _cells(tag: str, values: Sequence[str]) -> str:
    """Write the cells of a row; the first one stands at the left and names the row."""
    first, *others = (escape(value) for value in values)
    numbers = "".join(f'<{tag} style="{NUMBER}">{value}</{tag}>' for value in others)
    return f'<th style="{NAME}">{first}</th>{numbers}'
