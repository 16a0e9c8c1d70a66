"""The files of a report on fake work directories, and what the command refuses."""

import html
import json
import pathlib
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt

from ancra_jax.errors import UsageError
from ancra_jax.report import figures as figures_lib
from ancra_jax.report import write
from ancra_jax.report.write import run
from ancra_jax.results.tables import Column, build
from tests.support import ROOT
from tests.support import fake_runs as fake
from tests.support.processes import run_command


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of a report's time."""
    monkeypatch.setattr(figures_lib, "draw", lambda runs, rows: {})


def test_the_json_holds_the_numbers(tmp_path, no_figures):
    results = fake.PAPER | {"cw40": fake.PGD, "autoattack": fake.PGD, "pgd40_with_p": fake.FGSM}
    workdirs = [fake.make_run(tmp_path / "a", results)]
    workdirs.append(fake.make_run(tmp_path / "b", results | {"pgd40": fake.FGSM}, seed=1))
    for workdir in workdirs:
        fake.write_adaptive(workdir, fake.PGD)
    fake.write_diagnosis(workdirs[0])
    report = run(workdirs, str(tmp_path / "out"))
    assert report.text in (tmp_path / "out/report.md").read_text()
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert content["schema"] == 1
    assert {"command", "version", "created", "rows", "seeds", "notes"} <= set(content)
    first, second = content["rows"]
    assert first["accuracy"]["fgsm"] == 0.7 and first["mean"] == {"without_p": 0.55}
    worst = first["worst_case"]
    assert worst["num_correct"] == 4 and worst["attacks"][:2] == ["pgd40", "fgsm"]
    assert first["step"] == 20 and first["seed"] == 0 and first["provenance"]["seed"] == ["7"]
    assert first["rungs"]["With p"] == 0.7 and first["gate"]["masks_agree"] == 1
    assert [one["name"] for one in first["adaptive"]] == ["a1-gate2", "a2-yk", "a6-square"]
    diagnosis = first["diagnosis"]
    assert diagnosis["verdict"] == "masked" and diagnosis["checks"][0]["value"] == 0.25
    assert "losses" not in diagnosis and second["diagnosis"] is None
    assert not {"config", "evaluation"} & set(first)
    command = f"ancra evaluate --workdir={workdirs[1]} --num_examples=10 --seed=7"
    assert second["evaluate"][0] == command
    (seeds,) = content["seeds"]
    assert seeds["seeds"] == [0, 1] and seeds["accuracy"]["natural"] == {"mean": 0.9, "std": 0.0}
    expected = {"mean": 0.6, "std": np.std([0.5, 0.7], ddof=1)}
    assert seeds["accuracy"]["pgd40"] == pytest.approx(expected) and "rows" not in seeds
    assert set(seeds["worst_case"]) == {"mean", "std"} and seeds["rungs"]["PGD"]["mean"] == 0.6


def test_the_page_is_self_contained(tmp_path):
    """Whatever names say: nothing in them becomes HTML, a link or an image."""
    workdir = fake.make_run(
        tmp_path / "<run>&co",
        fake.PAPER | {"fgsm": (1,) * fake.EXAMPLES},
        name="<script>![x](http://evil/x.png)[y](http://evil)<http://evil>",
    )
    fake.write_examples(workdir, "pgd40", [5, 6], [0])
    run([workdir], str(tmp_path / "out"))
    page = (tmp_path / "out/report.html").read_text()
    images = re.findall(r'src="([^"]+)"', page)
    assert len(images) == 9  # three examples
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]+)"', page))
    assert page.count("<script") == 1 and "<run>" not in page and "<i>dog" not in page
    assert (tmp_path / "out/curves.svg").read_text().strip() in page
    assert "<strong>50.00</strong>" in page and "100.00†</td>" in page
    assert "&lt;run&gt;&amp;co" in page and "&lt;script&gt;" in page
    for what in ("Step", "Device", "1 x cpu", "abc-dirty", "jax 0.10.0", "--num_examples=10"):
        assert what in page
    assert "&#34;train_examples&#34;: 160" in page  # the configuration


def test_few_examples_without_images(tmp_path):
    """The one class of the labels is not the one that the network sees."""
    workdir = fake.make_run(tmp_path / "run", {"natural": (1,), "pgd40": (0,)}, name="a $\\b_$ c")
    run([workdir], str(tmp_path / "out"))
    assert "Adversarial images" in (tmp_path / "out/report.html").read_text()
    fake.write_examples(workdir, "pgd40", [])  # kept, but there are none
    run([workdir], str(tmp_path / "out"))
    assert "Adversarial images" not in (tmp_path / "out/report.html").read_text()


def test_a_run_beside_published_rows_keeps_its_own_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = fake.make_run(pathlib.Path("runs/pgd_at-0"), method="pgd_at")
    pathlib.Path("rows").mkdir()
    (path,) = (ROOT / "results/rows").glob("cifar10-pgd_at-*-seed0-best.json")
    shutil.copy(path, "rows")  # its commands name the same directory
    assert "**Not run**" in run([own, "rows"]).text


def test_figures(tmp_path):
    """Those of namesakes do not replace each other, and none is empty."""
    workdirs = [fake.make_run(tmp_path / "a/run"), fake.make_run(tmp_path / "b/run", seed=1)]
    fake.write_result(workdirs[0], "natural", fake.PGD, "last", step=30)
    fake.write_adaptive(workdirs[0], fake.FGSM)
    fake.write_diagnosis(workdirs[0])
    run(workdirs, str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out/report.json").read_text())["rows"]
    steps = [("best", 20), ("last", 30), ("best", 20)]
    assert [(row["checkpoint"], row["step"]) for row in rows] == steps
    names = [
        "curves",
        "curves_loss",
        "epsilon",
        "ladder_run_best",
        "ladder_run_best_2",
        "ladder_run_last",
    ]
    names += ["landscape_run_best"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.svg")) == names
    for name in names:
        drawn = ElementTree.parse(tmp_path / f"out/{name}.svg").getroot()
        texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert len(texts) > 5 and drawn.get("aria-label")


def test_what_a_user_can_get_wrong(tmp_path, no_figures):
    workdir = fake.make_run(tmp_path / "run")
    with pytest.raises(UsageError, match="--workdirs="):
        run([workdir, ""], str(tmp_path / "out"))
    with pytest.raises(UsageError, match=f"--output={workdir}/config.json"):
        run([workdir], f"{workdir}/config.json")
    assert not (tmp_path / "out").exists()
    fake.write_examples(workdir, "fgsm", [fake.EXAMPLES])
    with pytest.raises(UsageError, match=r"fgsm\.examples\.npz: indices must be 0 to 9: \[10\]"):
        run([workdir], str(tmp_path / "out"))


def test_the_command_replaces_report_files_and_keeps_others(tmp_path, no_figures):
    workdir = fake.make_run(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("old")
    (out / "notes.txt").write_text("mine")
    finished = run_command(write, f"--workdirs={workdir}", f"--output={out}")
    assert not finished.status, finished.error
    assert finished.output.startswith("Accuracy in %") and str(out) in finished.output
    assert (out / "report.html").exists()
    assert (out / "report.md").read_text().startswith("# Robustness report")
    assert (out / "notes.txt").read_text() == "mine" and not list(out.glob(".*"))


def test_flags_that_are_missing():
    for given, missing in (("--workdirs=run", "--output"), ("--output=out", "--workdirs")):
        finished = run_command(write, given)
        assert finished.status == 2 and finished.error.startswith(f"error: {missing}")


STRANGE = ("<b>x</b>", "[a](javascript:x)", "`x`", "**x**", "_x_", "a|b", "&lt;", "~~x~~", "# x")


@pytest.mark.parametrize("words", [*STRANGE, r"a\|b", "![a](http://x.y/z.png)", "x\x1b[31m\ny"])
def test_what_strangers_wrote_is_shown_as_it_is(words):
    table = build("", [Column(words, lambda row: row, "always")], [words])
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(table.markdown())
    shown = html.escape(words.replace("\x1b[31m\n", " "))
    assert page.count(f">{shown}</t") == 2
