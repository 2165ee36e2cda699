"""The report of a run, opened in a real browser: whole, silent, and alive."""

import html
import importlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkrobust_sk import (
    EvolutionDisplay,
    ImageGridDisplay,
    KernelDistanceDisplay,
    KernelEvolution,
    SpecializationDisplay,
    SpectrumDisplay,
    TransferDisplay,
    load_evolution,
    write_report,
)
from ntkrobust_sk.datasets.splits import load_splits
from ntkrobust_sk.evolution.claims import check_claims
from ntkrobust_sk.evolution.run_directory import RunDirectory
from ntkrobust_sk.reports.run_report import INK

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
EXAMPLES = str(Path(__file__).parents[2] / "examples")
EXPERIMENT = KernelEvolution(
    network="mlp",
    n_train=120,
    n_test=40,
    n_kernel=30,
    epochs=2,
    flip_epoch=1,
    fractions=(0.5,),
    train_steps=1,
    test_steps=2,
    stage2_epochs=1,
    dynamics=("centered",),
    n_features=1,
    batch_size=32,
)
# noted before the page's own script runs
WATCH = """<script>
const noted = {errors: []};
addEventListener("error", event => noted.errors.push(String(event.message)));
addEventListener("securitypolicyviolation", event => noted.errors.push("blocked " + event.blockedURI));
console.error = console.warn = (...words) => noted.errors.push(words.join(" "));
</script>"""
PROBE = """<script>
addEventListener("load", () => {
  const slider = document.getElementById("epoch");
  const image = document.getElementById("kernel-adversarial");
  const state = () => ({
    shown: document.getElementById("epoch-shown").textContent,
    text: slider.getAttribute("aria-valuetext"),
    kernel: image.src,
    alt: image.alt,
    rank: document.getElementById("rank-adversarial").textContent,
    spectrum: document.querySelector("#spectrum polyline:nth-of-type(2)").getAttribute("points"),
  });
  noted.last = state();
  noted.states = [];
  for (let at = 0; at <= Number(slider.max); at++) {
    slider.value = at;
    slider.dispatchEvent(new Event("input"));
    noted.states.push(state());
  }
  const resources = performance.getEntriesByType("resource").map(entry => entry.name);
  noted.fetched = resources.filter(name => !name.startsWith("data:"));
  noted.broken = [...document.images].filter(image => !image.complete || !image.naturalWidth).length;
  noted.unnamed = [...document.querySelectorAll("img:not([alt]), svg[role=img]:not([aria-label])")].length;
  noted.unlabelled = [...document.querySelectorAll("input")].filter(input => !input.labels.length).length;
  noted.overflow = document.documentElement.scrollWidth - innerWidth;
  noted.background = getComputedStyle(document.body).backgroundColor;
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(noted);
  document.body.append(out);
});
</script>"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return EXPERIMENT.run(tmp_path_factory.mktemp("report") / "run", progress=False)


@pytest.fixture(scope="module")
def page(result):
    return write_report(result).read_text(encoding="utf-8")


def opened(page, folder, *flags):
    """What the browser notes of a page."""
    file = folder / "probed.html"
    file.write_text(
        page.replace("<meta", WATCH + "<meta", 1).replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *flags]
    command += ["--disable-background-networking", "--virtual-time-budget=5000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_it_opens_without_errors_or_fetches_and_fits_the_screen(page, tmp_path, width):
    noted = opened(page, tmp_path, f"--window-size={width},900")
    assert noted["errors"] == noted["fetched"] == []
    assert noted["broken"] == noted["unnamed"] == noted["unlabelled"] == 0
    # a phone's headless window is no narrower than 500 pixels; what matters is that nothing sticks out
    assert noted["overflow"] <= 0


@pytest.mark.slow
@needs_browser
def test_the_slider_changes_kernel_spectrum_and_figures(page, result, tmp_path):
    noted = opened(page, tmp_path)
    epochs = result.epochs(0, "adversarial")
    assert [state["shown"] for state in noted["states"]] == [f"epoch {epoch:g}" for epoch in epochs]
    for key in ("kernel", "spectrum", "text", "alt"):
        assert len({state[key] for state in noted["states"]}) == len(epochs), key
    ranks = [result.at(0, "adversarial", epoch)["clean_effective_rank"] for epoch in epochs]
    for state, rank in zip(noted["states"], ranks, strict=True):
        assert state["rank"].startswith(f"effective rank {rank:.1f}")
    assert noted["last"] == noted["states"][-1]


@pytest.mark.slow
@needs_browser
def test_it_is_dark_where_the_reader_s_screen_is(page, tmp_path):
    colors = [opened(page, tmp_path, *flags)["background"] for flags in ((), ("--force-dark-mode",))]
    bright, dark = (np.mean([int(v) for v in re.findall(r"\d+", color)[:3]]) for color in colors)
    assert bright > 200 and dark < 60


@pytest.mark.slow
def test_it_is_one_file_that_names_no_other(page):
    links = re.findall(r"""(?:src|href|action)=["']?([^"'\s>]+)""", page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "default-src 'none'" in page and "@import" not in page


def test_ids_are_unique_and_every_reference_is_there(page):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page))
    assert references and references <= set(ids)


def test_figures_take_the_colour_of_the_text_around_them(page):
    assert INK not in page and page.count("currentColor") > 50


def test_it_holds_every_claim_with_a_verdict_and_every_accuracy(page, result):
    assert len(re.findall(r'<article class="claim (?:holds|fails|untested)">', page)) == 10
    for found in result.of_kind("stage 2"):
        assert f">{found['robust']:.3f}</td>" in page


@pytest.mark.slow
def test_the_same_results_give_the_same_page(page, result, tmp_path):
    again = write_report(load_evolution(result.path), tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_every_claim_has_figures_among_the_examples_and_the_documents_table_is_that_of_the_page(
    result, page, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(EXAMPLES)
    paper_claims, paper_table = map(importlib.import_module, ("paper_claims", "paper_table"))
    monkeypatch.setattr(KernelEvolution, "run", lambda self, out: result)
    monkeypatch.setattr("sys.argv", ["paper_claims.py", "--out", str(tmp_path)])
    paper_claims.main()
    numbers = re.findall(r"^(\w+): ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(numbers) == sorted(claim.number for claim in check_claims(result))
    assert len(list(tmp_path.glob("paper_*.png"))) == len(list(tmp_path.glob("paper_*.json"))) == 7
    rows = re.findall(r"^\| (.*kernel, epoch.*) \|$", paper_table.section(result.path), re.MULTILINE)
    assert len(rows) == len(result.of_kind("stage 2")) + len(result.of_kind("closed form"))
    for row in rows:
        assert all(f"<td>{cell}</td>" in page for cell in row.split(" | ")[:3])


@pytest.mark.parametrize(
    "draw, drawn",
    [
        (lambda run: EvolutionDisplay.from_evolution(run, "robust"), lambda ax: ax.lines[1].get_ydata()),
        (KernelDistanceDisplay.from_evolution, lambda ax: ax.images[0].get_array()),
        (SpectrumDisplay.from_evolution, lambda ax: ax.lines[1].get_ydata()),
        (lambda run: SpecializationDisplay.from_evolution(run, "flip"), lambda ax: ax.images[0].get_array()),
        (TransferDisplay.from_evolution, lambda ax: ax.images[0].get_array()),
        (ImageGridDisplay.from_evolution, lambda ax: ax.images[0].get_array()),
    ],
    ids=["evolution", "distances", "spectra", "specialisation", "transfer", "images"],
)
def test_a_display_takes_the_folder_of_a_run_in_place_of_its_results(result, tmp_path, draw, drawn):
    expected, *found = (np.asarray(drawn(draw(run).ax_)) for run in (result, result.path, str(result.path)))
    for one in found:
        np.testing.assert_array_equal(one, expected)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        draw(tmp_path / "nothing")
    plt.close("all")


@pytest.mark.slow
def test_an_unfinished_run_is_reported_as_far_as_it_came(result, tmp_path):
    shutil.copytree(result.path, tmp_path / "run")
    lines = (tmp_path / "run" / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "results.jsonl").write_bytes(b"".join(lines[:6]))
    page = write_report(load_evolution(tmp_path / "run")).read_text(encoding="utf-8")
    assert page.count("Not tested.") >= 5 and 'id="kernel-benign"' in page


def test_a_run_without_results_is_refused(tmp_path):
    from ntkrobust_sk.datasets.splits import load_splits
    from ntkrobust_sk.evolution.experiment import settings_of

    RunDirectory.open(tmp_path / "run", settings_of(EXPERIMENT, load_splits("digits", n_train=50, n_test=20)))
    with pytest.raises(ValueError, match="holds no results yet"):
        write_report(load_evolution(tmp_path / "run"))


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_shown_as_that_and_the_page_s_data_stay_json(tmp_path):
    splits = load_splits("digits", n_train=60, n_test=30)
    experiment = replace(EXPERIMENT, epochs=1, flip_epoch=1, regimes=("benign",), stage2=(), stage2_from=())
    result = experiment.run(tmp_path / "run", splits=splits, progress=False)
    for record in result.of_kind("checkpoint"):
        record |= {"robust": float("nan"), "clean_effective_rank": float("inf")}
    page = write_report(result, tmp_path / "page.html").read_text()
    data = re.search(r'id="evolution">(.*?)</script>', page, re.DOTALL)[1]
    shown = json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert shown["regimes"][0]["robust"] == [None] * 3 and "not finite" in page
    # what was used, and not what was asked for
    assert "1 epochs on 60 examples" in page and "on 30 test examples" in page and "Kernels of 30 " in page
