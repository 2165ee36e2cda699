"""The report of a run, opened in a real browser: whole, silent, and alive."""

import csv
import html
import importlib
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkrobust_sk import (
    MLP,
    PGD,
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
from ntkrobust_sk._drawing import COLORS
from ntkrobust_sk.datasets.splits import load_splits
from ntkrobust_sk.evolution.claims import check_claims
from ntkrobust_sk.evolution.results import AccuracyRow
from ntkrobust_sk.evolution.run_directory import RunDirectory
from ntkrobust_sk.reports.evidence import LEARNED, learning_of, stated_claims
from ntkrobust_sk.reports.page_drawing import INK
from ntkrobust_sk.reports.page_tables import accuracies_table, csv_url

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
KINDS = ("robust", "robust with restarts", "clean")
LAST_MODEL = "adversarial kernel, epoch 2: centered, adversarial"
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
  noted.width = document.documentElement.scrollWidth;
  const boxes = element => element.getBoundingClientRect();
  noted.outside = [...document.querySelectorAll("main *, nav *")]
    .filter(element => !element.closest("svg") && boxes(element).width && boxes(element).right > innerWidth + 1)
    .map(element => element.outerHTML.slice(0, 80));
  const numbers = [...document.querySelectorAll("td.number")];
  noted.numbers = numbers.filter(cell => boxes(cell).right > innerWidth).length;
  noted.background = getComputedStyle(document.body).backgroundColor;
  const tip = document.getElementById("tip");
  const said = () => tip.hidden ? null : tip.textContent;
  const read = (plot, x, y) => {
    const around = boxes(plot.querySelector("svg"));
    const at = {clientX: around.left + x * around.width, clientY: around.top + y * around.height};
    plot.dispatchEvent(new PointerEvent("pointermove", at));
    return said();
  };
  noted.read = [...document.querySelectorAll("[data-hover]")].map(plot => {
    const {box: [left, top, width, height]} = JSON.parse(plot.dataset.hover);
    const places = [[.01, .01], [.99, .99]].map(([x, y]) => read(plot, left + x * width, top + y * height));
    return [plot.getAttribute("aria-label"), ...places];
  });
  const spectrum = document.getElementById("spectrum").parentElement;
  const press = key => { spectrum.dispatchEvent(new KeyboardEvent("keydown", {key})); return said(); };
  noted.pressed = ["ArrowRight", "ArrowRight", "ArrowLeft", "Escape"].map(press);
  noted.reachable = [...document.querySelectorAll(".plot")].every(plot => plot.tabIndex === 0);
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(noted);
  parent.document.body.append(out);
});
</script>"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return EXPERIMENT.run(tmp_path_factory.mktemp("report") / "run", progress=False)


@pytest.fixture(scope="module")
def page(result):
    return write_report(result).read_text(encoding="utf-8")


def opened(page, folder, *flags, width=1200):
    """What the browser notes of a page; a frame of its own, since no headless window is as narrow as a phone."""
    file = folder / "probed.html"
    probed = page.replace("<meta", WATCH + "<meta", 1).replace("</body>", PROBE + "</body>")
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(probed)}"></iframe>'
    file.write_text(f"<body>{frame}</body>", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *flags]
    command += ["--disable-background-networking", "--virtual-time-budget=5000", "--window-size=1400,1000"]
    done = subprocess.run(
        [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_it_opens_without_errors_or_fetches_and_fits_the_screen(page, tmp_path, width):
    noted = opened(page, tmp_path, width=width)
    assert noted["errors"] == noted["fetched"] == []
    assert noted["broken"] == noted["unnamed"] == noted["unlabelled"] == 0
    assert noted["width"] <= width and noted["outside"] == [] and noted["numbers"] == 0


@pytest.mark.slow
@needs_browser
def test_figures_are_read_by_pointer_and_by_keys(page, result, tmp_path):
    noted = opened(page, tmp_path)
    ending = ": arrow keys read its values"
    read = {label.split(", ", 1)[1].removesuffix(ending): said for label, *said in noted["read"]}
    assert len(read) == len(noted["read"]) >= 15 and all(all(said) for said in read.values())
    last = [result.at(0, regime, 2.0)["robust"] for regime in EXPERIMENT.regimes]
    words = "\n".join(f"{regime} {value:.3g}" for regime, value in zip(EXPERIMENT.regimes, last, strict=True))
    assert read["Robust accuracy"][1] == f"epoch 2\n{words}"
    (transfer,) = result.of_kind("transfer", seed=0)
    found = transfer["matrix"][-1][-1]
    assert read["Transfer"][1] == f"made on {LAST_MODEL}\nanswered by {LAST_MODEL}\n{found:.3g}"
    first, second, again, closed = noted["pressed"]
    assert first == again and first.startswith("eigenvalue 1\nbenign 0.") and second.startswith("eigenvalue 2\n")
    assert closed is None and noted["reachable"]


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


def csv_of(url):
    """The rows of a table in a data URL."""
    head, _, data = url.partition(",")
    assert head == "data:text/csv;charset=utf-8"
    return list(csv.reader(io.StringIO(unquote(data))))


def downloads(page):
    """The files that a page offers, by name."""
    return {name: csv_of(url) for name, url in re.findall(r'download="([\w-]+)\.csv" href="([^"]+)"', page)}


def cells_of(page, table):
    """The texts of a table's body."""
    body = re.search(rf'<table[^>]* id="table-{table}">.*?<tbody[^>]*>(.*?)</tbody>', page, re.DOTALL)[1]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def test_a_download_of_a_table_has_the_numbers_of_the_table(page, result):
    found = downloads(page)
    assert set(found) == {"claims", "accuracies", "settings", "states", "transfer", "eigenfeatures"}
    head, *rows = found["accuracies"]
    # of one seed: no deviations
    assert head[4:] == [f"{k}{part}" for k in KINDS for part in ("", " standard deviation")]
    assert cells_of(page, "accuracies") == [
        [*row[:3], *(f"{float(value):.3f}" if value else "" for value in row[4::2])] for row in rows
    ]
    shown = cells_of(page, "settings")
    assert [row[0] for row in shown] == [row[0] for row in found["settings"][1:]] and len(shown) >= 10
    for (_, *cells), (_, *values) in zip(shown, found["settings"][1:], strict=True):
        for cell, value in zip(cells, values, strict=True):
            assert cell == value or float(cell.replace(",", "")) == pytest.approx(float(value), rel=1e-3)
    claims = [[claim.number, claim.text, claim.verdict, claim.measured] for claim in check_claims(result)]
    assert [[row[0], row[1], row[3], row[4]] for row in found["claims"][1:]] == claims


def test_the_data_behind_figures_are_downloads_too(page, result):
    found = downloads(page)
    head, *rows = found["states"]
    assert len(rows) == len(result.of_kind("checkpoint"))
    for row in rows:
        state = dict(zip(head, row, strict=True))
        record = result.of_kind("checkpoint", seed=0, regime=state["regime"], epoch=float(state["epoch"]))[0]
        for name in ("robust", "clean", "clean_effective_rank", "specialization"):
            assert float(state[name]) == record[name]
    (transfer,) = result.of_kind("transfer")
    assert [float(row[-1]) for row in found["transfer"][1:]] == np.ravel(transfer["matrix"]).tolist()
    features = result.of_kind("features")
    assert [float(row[-1]) for row in found["eigenfeatures"][1:]] == [v for r in features for v in r["robustness"]]


def test_a_table_over_seeds_has_means_and_deviations_in_columns_of_their_own():
    row = AccuracyRow("a kernel", "centered", "benign", [0.5, 0.7], [0.1, 0.2], [])
    table = accuracies_table(SimpleNamespace(accuracies=lambda: [row]))
    assert table.rows == [["a kernel", "centered", "benign", "0.150 ± 0.071", "", "0.600 ± 0.141"]]
    numbers = csv_of(table.href)[1]
    assert numbers[:4] == ["a kernel", "centered", "benign", "2"] and numbers[6:8] == ["", ""]
    np.testing.assert_allclose(
        [float(n) for n in numbers[4:6] + numbers[8:]], [0.15, 0.0707, 0.6, 0.1414], atol=1e-4
    )


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", 'a,"b"\n<c>'])
def test_no_text_of_a_download_is_a_formula_or_breaks_its_table(text):
    rows = csv_of(csv_url(["a", "b"], [[text, -1.5]]))
    assert rows == [["a", "b"], [text if text[0] == "a" else f"'{text}", "-1.5"]]


def with_accuracy(result, clean):
    """A run whose networks have another clean accuracy."""
    records = [
        record | {"clean": clean} if record["kind"] == "checkpoint" else record for record in result.results
    ]
    return replace(result, results=records)


@pytest.mark.slow
def test_there_are_no_verdicts_just_where_the_benign_network_has_learned_too_little(result, tmp_path):
    threshold = 0.1 + LEARNED * 0.9  # ten classes
    for clean, enough in ((threshold + 0.01, True), (threshold - 0.01, False)):
        page = write_report(with_accuracy(result, clean), tmp_path / "page.html").read_text(encoding="utf-8")
        assert ('id="too-low"' in page) == ("No verdict" in page) == (not enough)
        assert bool(re.findall('class="claim (?:holds|fails)"', page)) == enough
        assert ('class="claim doubted"' in page) == (not enough)
        if not enough:
            assert f"last epoch is {clean:.3f}; verdicts count from {threshold:.3f}" in page
            assert "By these numbers it " in page
    assert {row[2] for row in downloads(page)["claims"][1:]} == {"no verdict", "not tested"}


@pytest.mark.parametrize(("clean", "enough"), [(0.55, True), (0.5499, False), (float("nan"), False), (0.0, False)])
def test_accuracy_is_enough_from_half_way_between_guessing_and_always_right(result, clean, enough):
    learning = learning_of(with_accuracy(result, clean))
    assert learning.is_enough == enough and learning.threshold == pytest.approx(0.55)
    claims = stated_claims(with_accuracy(result, clean), learning)
    assert all(one.verdict in ("no verdict", "not tested") for one in claims) == (not enough)


@pytest.mark.slow
def test_a_report_names_a_network_and_an_attack_of_one_s_own(tmp_path):
    own = {"network": MLP(widths=(16,)), "attack": PGD(0.5, n_steps=3, norm="l2"), "regimes": ("benign",)}
    experiment = replace(EXPERIMENT, **own, epsilon=None, norm=None, epochs=1, stage2=(), stage2_from=())
    page = write_report(experiment.run(tmp_path / "run", progress=False)).read_text(encoding="utf-8")
    assert "<title>Kernel evolution: digits, MLP</title>" in page and "Attacks: L2, epsilon 0.5;" in page
    assert html.escape("MLP(n_outputs=None, widths=(16,)") in page
    settings = {name: ours for name, _, ours in cells_of(page, "settings")}
    assert [settings[name] for name in ("norm", "attack in training", "its steps")] == ["l2", "PGD", "3"]


@pytest.mark.slow
def test_names_in_a_report_cannot_be_code(result, tmp_path, monkeypatch):
    hostile = "</script><script>alert('x')</script>\"'><img src=x onerror=alert(1)>"
    folder = SimpleNamespace(settings={"data": hostile, hostile: [hostile]})
    monkeypatch.setattr("ntkrobust_sk.reports.run_report.RunDirectory", lambda path: folder)
    named = replace(result, experiment=replace(result.experiment, data=hostile))
    page = write_report(named, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "alert(" in page and "<script>alert" not in page and "<img src=x" not in page
    assert page.count("<script") == 2 and html.escape(hostile, quote=False)[:30] in page
    assert ["data", "CIFAR-10, CIFAR-100", hostile] in downloads(page)["settings"]


def test_figures_take_the_colour_of_the_text_around_them(page):
    assert INK not in page and page.count("currentColor") > 50
    # and those of the regimes are the page's, which are others in the dark
    assert "var(--adversarial)" in page and COLORS["adversarial"] not in page.split("</style>", 1)[1]


def test_it_holds_every_claim_with_a_verdict_and_every_accuracy(page, result):
    claims = re.findall(r'<article class="claim (?:holds|fails|untested|doubted)" id="claim-(\w+)">', page)
    assert claims == [claim.number for claim in check_claims(result)] and len(claims) == 10
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
        assert all(f">{cell}</td>" in page for cell in row.split(" | ")[:3])


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
    assert page.count('class="claim untested"') >= 5 and 'id="kernel-benign"' in page


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
    assert "1 epoch on 60 examples" in page and "on 30 test examples" in page and "Kernels of 30 " in page
