"""The page of a report in a browser: what a reader can see, reach and read, wide and narrow."""

import functools
import os
import pathlib
import shutil

import pytest

from ancra_jax.report.write import run
from tests.support import ROOT
from tests.support import fake_runs as fake

CHECKS = (pathlib.Path(__file__).parent / "page_checks.js").read_text()
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (360, 768, 1400)


@pytest.fixture(scope="module")
def browser():
    """A headless browser; the variable ANCRA_CHROMIUM says where it is."""
    found = os.environ.get("ANCRA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed, and ANCRA_CHROMIUM names none")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One with everything, one not attacked through its mask, one unfinished, one not evaluated."""
    directory = tmp_path_factory.mktemp("runs")
    full = fake.make_run(directory / "full", epochs=2)
    fake.write_adaptive(full, fake.PGD)
    fake.write_diagnosis(full)
    fake.write_examples(full, "fgsm", [4, 8], [0])
    fake.write_examples(full, "pgd40", [5, 6, 7], [1])
    fake.write_examples(full, "adaptive", [], [2])
    heads = {"pgd40_with_p": fake.FGSM, "pgd40": (1,) * fake.EXAMPLES}
    masked = fake.make_run(directory / "masked", fake.PAPER | heads, method="trades_ra", epochs=2)
    unfinished = fake.make_run(directory / "unfinished", {}, method="natural", epochs=9)
    bare = fake.make_run(directory / "bare", {}, curves=False, method="pgd_at")
    return [full, masked, unfinished, bare]


@pytest.fixture(scope="module")
def show(browser, runs, tmp_path_factory):
    """Opens the report on directories, and returns it with what its console said."""

    @functools.cache
    def opened(*directories):
        out = tmp_path_factory.mktemp("out")
        run(directories, out)
        page, said = browser.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url[:80]))
        page.goto((out / "report.html").as_uri())
        return page, said

    return opened


ALL = ["results", "missing", "ladder", "gallery", "classes", "confusion", "epsilon", "landscape"]
ALL += ["training", "diagnostics", "notes", "settings"]


def check(page, said, sections):
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate(CHECKS)
            assert found.pop("texts") > 100
            assert found == {
                "faint": [], "overflow": 0, "cut": [], "repeated": [], "dangling": [],
                "sections": sections,
            }, (width, scheme)  # fmt: skip
    assert not [one for one in said if not one.startswith(("file:", "data:"))]


def test_every_section_is_there_and_can_be_read(show, runs):
    check(*show(*runs), ALL)


def test_published_rows(show, tmp_path):
    (tmp_path / "rows").mkdir()
    for seed in range(3):
        (path,) = (ROOT / "results/rows").glob(f"cifar10-trades_ancra-*-seed{seed}-best.json")
        shutil.copy(path, tmp_path / "rows")
    page, said = show(str(tmp_path))
    check(page, said, ["results", "ladder", "notes", "settings"])
    assert page.locator("#results .card").count() == 1  # of the three seeds
    assert page.locator("#ladder figure").count() == 3


def test_headlines_and_what_is_missing(show, runs):
    page, _ = show(*runs)
    numbers = page.locator("#results .card").all_inner_texts()
    assert "40.0" in numbers[0] and "40.0" not in numbers[1] and len(numbers) == 4
    assert page.locator("#results .card.bound").count() == 1
    text = page.locator("#missing").inner_text()
    for directory in runs[1:]:
        assert directory in text
    assert text.count("ancra evaluate") == 3  # for two of 10 examples, for those of all, for images
    broken = page.locator("#gallery figure.broken")
    assert broken.count() == 5 and page.locator("#gallery figure.withstood").count() == 3
    assert "<i>dog</i>" in page.locator("#gallery").inner_text()
    assert all(
        page.evaluate("[...document.images].map(one => one.complete && one.naturalWidth === 8)")
    )


def test_tables_are_sorted_by_keyboard_and_colours_switched(show, runs):
    page, _ = show(*runs)
    head = page.locator("#classes th button", has_text="Robust").first
    head.focus()
    column = page.locator("#classes table").first.locator("tbody td:nth-child(4)")
    for order, reverse in (("descending", True), ("ascending", False)):
        page.keyboard.press("Enter")
        shown = [float(one) for one in column.all_inner_texts()]
        assert shown == sorted(shown, reverse=reverse) and len(set(shown)) > 1
        assert page.locator("#classes th[aria-sort]").get_attribute("aria-sort") == order
    page.emulate_media(color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator("#theme").click()
    assert page.evaluate(colour) != light
    page.locator("#theme").click()
    assert page.evaluate(colour) == light


def test_ten_runs_take_less_than_five_megabytes(tmp_path):
    workdirs = []
    for seed in range(2):
        workdir = fake.make_run(tmp_path / f"run{seed}", seed=seed)
        fake.write_adaptive(workdir, fake.PGD)
        fake.write_diagnosis(workdir)
        fake.write_examples(workdir, "fgsm", [4, 8, 7], [0, 1, 2], size=32)
        fake.write_examples(workdir, "pgd40", [5, 6, 7], size=32)
        fake.write_examples(workdir, "adaptive", [0, 1, 3], size=32)
        workdirs.append(workdir)
    run(workdirs, tmp_path / "out")
    assert (tmp_path / "out/report.html").stat().st_size < len(workdirs) / 10 * 5e6
