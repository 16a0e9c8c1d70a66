"""One number, wherever it is shown: terminal, JSON, Markdown, HTML and published page."""

import json
import re

import numpy as np
import pytest
from scipy.stats import binomtest

from ancra_jax import report
from ancra_jax.evaluate.result import read_evaluation
from tests.support.fake_runs import make_run, table_under
from tools.publish.__main__ import publish

RNG = np.random.default_rng(3)
NATURAL = tuple(RNG.random(40) < 0.8)
PAPER = {name: tuple(RNG.random(40) < 0.5) for name in ("pgd40", "fgsm", "cw40", "autoattack")}
HEADS = {f"{name}_with_p": tuple(RNG.random(40) < 0.7) for name in ("pgd40", "fgsm", "cw40")}
PLUS, MORE = tuple(RNG.random(30) < 0.6), tuple(RNG.random(40) < 0.4)
WHOLE = {"natural": NATURAL} | PAPER | HEADS
CASES = {
    "whole": WHOLE,
    "without AutoAttack": {name: one for name, one in WHOLE.items() if name != "autoattack"},
    "without C&W": {name: one for name, one in WHOLE.items() if name != "cw40"},
    "two AutoAttacks, of unlike numbers of examples": WHOLE | {"autoattack_plus": PLUS},
    "the other AutoAttack alone": {"natural": NATURAL, "autoattack_plus": PLUS} | HEADS,
    "two PGD": WHOLE | {"pgd100": MORE, "fgsm": MORE[:25]},
}
SHOWN = ("Worst case", "Mean", "Mean (heads)")


def expected(results):
    """The worst case with its interval, and both means, as they should be written."""
    count = min(map(len, results.values()))
    left = int(np.logical_and.reduce([one[:count] for one in results.values()]).sum())
    low, high = binomtest(left, count).proportion_ci(method="wilson")
    texts = [f"{100 * left / count:.2f} [{100 * low:.2f}, {100 * high:.2f}]"]
    for suffix in ("", "_with_p"):
        pgd = "pgd100" if "pgd100" in results and not suffix else "pgd40"
        names = [f"{pgd}{suffix}", f"fgsm{suffix}", f"cw40{suffix}", "autoattack"]
        there = all(name in results for name in names)
        mean = np.mean([np.mean(results[name]) for name in names]) if there else 0
        texts.append(f"{100 * mean:.2f}" if there else None)
    return dict(zip(SHOWN, texts, strict=True))


def in_tables(first, heads):
    """What the two tables of attacks say."""
    assert first["Worst case"] == heads["Worst case"]
    found = (first["Worst case"], first.get("Mean"), heads.get("Mean"))
    return dict(zip(SHOWN, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_every_page_shows_the_same_numbers(case, tmp_path, capsys):
    results = CASES[case] | {"adaptive": NATURAL}  # without it there is no worst case
    run = make_run(tmp_path / "run", results, curves=False, method="trades_ra")
    numbers = expected(results)

    text = report.run([run], str(tmp_path / "out")).text
    titles = ("## Attacks on the final logits", "## Attacks on the auxiliary heads too")
    assert in_tables(*(table_under(text, title)[0] for title in titles)) == numbers

    html = (tmp_path / "out/report.html").read_text()
    tables = []
    for title in titles:
        table = html.split(f"<caption>{title[3:]}</caption>")[1].split("</table>")[0]
        cells = [re.sub("<.*?>", "", one) for one in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", table)]
        tables.append(dict(zip(cells[: len(cells) // 2], cells[len(cells) // 2 :], strict=True)))
    assert in_tables(*tables) == numbers

    (row,) = json.loads((tmp_path / "out/report.json").read_text())["rows"]
    worst = row["worst_case"]
    low, high = (100 * bound for bound in worst["interval"])
    found = [f"{100 * worst['accuracy']:.2f} [{low:.2f}, {high:.2f}]"]
    for scenario in ("without_p", "with_p"):
        mean = row["mean"].get(scenario)
        found.append(None if mean is None else f"{100 * mean:.2f}")
    assert dict(zip(SHOWN, found, strict=True)) == numbers

    capsys.readouterr()
    read_evaluation(run, "best").print()
    printed = capsys.readouterr().out
    lines = re.findall(r"^ (\S.+?)  +(\S.+?) *$", printed, re.MULTILINE)
    assert {name: dict(lines).get(name) for name in SHOWN} == numbers
    assert f"{worst['accuracy']:.2%}" in printed.splitlines()[1]

    (tmp_path / "README.md").write_text("<!-- results -->\n\n<!-- /results -->\n")
    publish([run], str(tmp_path / "results"), str(tmp_path / "README.md"))
    page = (tmp_path / "results/README.md").read_text()
    published = {one["Attack"]: one["TRADES-RA"] for one in table_under(page, "### Every attack")}
    assert {name: published.get(name) for name in SHOWN} == numbers
    (row,) = table_under((tmp_path / "README.md").read_text(), "<!-- results -->")
    assert row["Worst case"] == numbers["Worst case"]
