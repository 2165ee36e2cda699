"""Every block of Python on a page of the site runs, and prints what the page says.

The blocks of a page share their names, from top to bottom, as in a notebook. A block of ``text`` right after one
of Python is what that one prints, compared as doctest does: ``...`` stands for anything.
"""

import contextlib
import doctest
import inspect
import io
import re
from itertools import zip_longest
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import ntkrobust_sk
import ntkrobust_sk.testing
from ntkrobust_sk.estimators.shared import SITE

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HOW = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def blocks_of(page: Path) -> list[tuple[str, str, str | None]]:
    """Code of each Python block, where it begins, and what the page says that it prints."""
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    blocks = []
    for block, after in zip_longest(found, found[1:]):
        if block[1] != "python":
            continue
        follows = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
        # as many empty lines before the code as the page has: a traceback names the page's line
        code = "\n" * text[: block.start(2)].count("\n") + block[2]
        blocks.append(
            (code, f"{page.name}:{text[: block.start()].count(chr(10)) + 1}", after[2] if follows else None)
        )
    return blocks


PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.rglob("*.md"))}
WITH_CODE = [name for name, page in PAGES.items() if blocks_of(page)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.sweep if "guide/" in name else ()) for name in WITH_CODE]
)
def test_a_page_runs_as_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for code, where, expected in blocks_of(PAGES[name]):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(PAGES[name]), "exec"), names)
        if expected is not None:
            assert doctest.OutputChecker().check_output(expected, printed.getvalue(), HOW), (
                f"{where} prints\n{printed.getvalue()}\nand the page says\n{expected}"
            )
    plt.close("all")


@pytest.mark.parametrize("name", WITH_CODE)
def test_a_page_runs_again_in_the_same_folder(name):
    """A store that was grown, or that another page has made, would be refused: stores are in new folders."""
    assert not [where for code, where, _ in blocks_of(PAGES[name]) if re.search(r"""store=["']""", code)]


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^   (\w+)$", (DOCS / "api.rst").read_text(encoding="utf-8"), re.MULTILINE)
    public = {name for name in ntkrobust_sk.__all__ if not inspect.ismodule(getattr(ntkrobust_sk, name))}
    checks = {name for name, thing in vars(ntkrobust_sk.testing).items() if inspect.isfunction(thing)}
    assert sorted(listed) == sorted(public | checks | {"AutoAttackReport"})


ESTIMATORS = [name for name in ntkrobust_sk.__all__ if hasattr(getattr(ntkrobust_sk, name), "fit")]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_links_to_its_page(name):
    link = f'href="{SITE}/api/ntkrobust_sk.{name}.html"'
    assert link in getattr(ntkrobust_sk, name)()._repr_html_()


GUIDE = {path.stem: path.read_text(encoding="utf-8") for path in sorted((DOCS / "guide").glob("*.md"))}
ORDER = re.findall(r"^(\w+)$", GUIDE.pop("index").split("{toctree}")[1], re.MULTILINE)
FIGURE = (
    r"\{figure\} /gallery/images/sphx_glr_plot_(\w+)_00\d\.png\n:alt: .+\n:target: \.\./gallery/plot_(\w+)\.html"
)


@pytest.mark.parametrize("name", GUIDE)
def test_a_page_of_the_guide_has_one_figure_of_the_gallery_and_leads_on(name):
    ((drawn, target),) = re.findall(FIGURE, GUIDE[name])
    assert GUIDE[name].count("{figure}") == 1 and drawn == target
    assert (DOCS.parent / "examples" / f"plot_{drawn}.py").exists()
    assert f"{{doc}}`/gallery/plot_{drawn}`" in GUIDE[name] and "{py:" in GUIDE[name]
    following = {**dict(zip(ORDER, ORDER[1:], strict=False)), ORDER[-1]: "extend"}[name]
    assert re.findall(r"^Next: \{doc\}`(?:\.\./)?(\w+)`", GUIDE[name], re.MULTILINE) == [following]


@pytest.mark.slow
def test_what_is_compared_is_what_follows(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n```python\nprint(1)\n```\n```text\n1\n```\n```python\nx = 1\n```\nmore\n```text\n2\n```\n")
    (first, where, printed), (_, _, nothing) = blocks_of(page)
    assert (first, where, printed, nothing) == ("\n\nprint(1)\n", "page.md:2", "1\n", None)
