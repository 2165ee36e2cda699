"""Tables that the scripts of this folder put into documents, between two comments that name the script."""

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def read_part(document: Path, name: str) -> str:
    """Return the text between the comments ``<!-- name -->`` and ``<!-- end of name -->``, or ""."""
    return _split(document, name)[1].strip()


def write_part(document: Path, name: str, text: str) -> None:
    """Replace the text between the comments, or append text and comments."""
    before, _, after = _split(document, name)
    begin, end = _marks(name)
    after = after.lstrip("\n")
    text = f"{before.rstrip()}\n\n{begin}\n{text.strip()}\n{end}\n" + (f"\n{after}" if after else "")
    document.write_text(text, encoding="utf-8")


def table_of_bars(head: str, lines: list[dict]) -> str:
    """Write measured cases as Markdown, each with the bar that it should reach and whether it does."""
    rows = [f"| {head} | bar | measured | | context |", "|---|---|---|---|---|"]
    for line in lines:
        measured = line["measured"] if isinstance(line["measured"], str) else f"{line['measured']:.3g}"
        verdict = "holds" if line["holds"] else "**falls short**"
        rows.append(f"| {line['case']} | {line['bar']} | {measured} | {verdict} | {line['detail']} |")
    return "\n".join(rows)


def _marks(name) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def _split(document, name) -> tuple[str, str, str]:
    begin, end = _marks(name)
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    part, _, after = rest.partition(end)
    return before, part, after
