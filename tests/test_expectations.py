"""What the page for users of other libraries claims stands in tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "expectations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| (yes|partly|no) \| (.+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("file, test", re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE))
def test_a_test_that_the_page_names_is_there(file, test):
    assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8")


def test_every_row_has_its_proof_or_its_reason():
    assert len(ROWS) >= 40
    for expectation, answer, why in ROWS:
        assert len(why) > 8, f"{expectation}: {answer}"
        if answer == "yes":
            proves = ("tests/", "{doc}", "{py:", "](#")
            assert any(link in why for link in proves), f"{expectation}: no page and no test"
