"""What is published: its files, what is refused, and that the pages follow from the files."""

import copy
import functools
import json
import operator
import shlex
import shutil

import numpy as np
import pytest

from ancra_jax import config as config_lib
from ancra_jax import train
from ancra_jax.errors import UsageError
from ancra_jax.paper.claims import CLAIMS
from ancra_jax.results.load import load_runs, method_settings
from ancra_jax.results.rows import rows_of
from ancra_jax.run import automatic
from tests.support import ROOT
from tests.support.fake_runs import NATURAL, PAPER, make_run, table_under, write_result
from tests.support.processes import run_command
from tools.publish import __main__ as command
from tools.publish import pages
from tools.publish.__main__ import publish
from tools.publish.record import read_all, validate


class Site:
    """A results directory and a README to publish in."""

    def __init__(self, path):
        self.results, self.readme = path / "results", path / "README.md"
        self.readme.write_text("above\n<!-- results -->\nold\n<!-- /results -->\nbelow\n")

    def publish(self, *runs):
        publish(runs, str(self.results), str(self.readme))

    def rows(self):
        return read_all(self.results / "rows")

    def record(self):
        (row,) = self.rows().values()
        return row.record

    def page(self):
        return (self.results / "README.md").read_text()


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_a_row_holds_what_made_it(tmp_path, site):
    run = make_run(tmp_path / "run", data__data_dir="/private/data", seed=3)
    site.publish(run)
    record = site.record()
    assert record["method"] == "trades" and record["seed"] == 3 and record["step"] == 20
    assert record["setting"] == "width 4, 160 images, 2 epochs: not the paper's setting"
    assert record["evaluation"]["device"] == ["1 x cpu"]
    natural = record["attacks"]["natural"]
    assert (natural["num_correct"], natural["accuracy"], natural["correct"]) == (9, 0.9, "ff80")
    assert record["worst_case"]["num_correct"] == 4
    assert "private" not in json.dumps(record) and str(tmp_path) not in json.dumps(record)
    (published,) = site.rows().values()  # the row is computed again, as from the work directory
    command = "ancra evaluate --workdir=runs/trades-3 --suite=quick --num_examples=10 --seed=7"
    assert published.row.evaluate == (command,)
    (row,) = rows_of(load_runs([run]))
    assert (published.row.accuracy, published.row.worst_case) == (row.accuracy, row.worst_case)
    assert published.row.comparable[2:] == row.comparable[2:] and published.row.step == row.step


def test_the_commands_of_rows_train_their_configurations(tmp_path, site, monkeypatch):
    results = PAPER | {"adaptive": NATURAL}
    settings = {"seed": 2, "optimizer__milestones": (1, 2)}
    site.publish(make_run(tmp_path / "run", results, method="trades_ancra", **settings))
    trained = []
    monkeypatch.setattr(train.loop, "train", lambda config, *_: trained.append(config))
    for row in (*site.rows().values(), *read_all(ROOT / "results/rows").values()):
        line = row.record["train"].replace("data_dir=DATA", f"data_dir={tmp_path}")
        command, _, flags = line.partition(" --")
        assert command in ("ancra train", "python -m ancra_jax.train")  # older rows have the latter
        assert not run_command(train, *shlex.split(f"--{flags}")).status
        config = config_lib.from_mapping(row.record["config"])
        # Which heads choose the best checkpoint is settled when a run begins.
        begun = automatic.choose(trained[-1], None, recorded=config)
        assert method_settings(begun) == method_settings(config)
        assert trained[-1].seed == config.seed


def test_a_row_is_not_overwritten_silently(tmp_path, site):
    run = make_run(tmp_path / "run")
    site.publish(run)
    # As written by a version that rounded differently: the same again is no harm.
    interval = [bound + 1e-16 for bound in site.record()["worst_case"]["interval"]]
    before = change(site.record(), "worst_case.interval", interval)
    (name,) = site.rows()
    (site.results / "rows" / name).write_text(json.dumps(before))
    site.publish(run)
    assert site.record() == before
    write_result(run, "cw40", (0,) * 10)
    with pytest.raises(UsageError, match=r"attacks.*--replace"):
        site.publish(run)
    assert site.record() == before
    flags = [f"--{name}={path}" for name, path in vars(site).items()]
    finished = run_command(command, f"--workdirs={run}", "--replace", *flags)
    assert f"{site.results}: 1 " in finished.output, finished.error
    assert site.record()["worst_case"]["num_correct"] == 0


def change(record, path, value):
    record = copy.deepcopy(record)
    *groups, last = path.split(".")
    inner = functools.reduce(operator.getitem, groups, record)
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "schema 2"),
        ("seed", "0", "seed='0'.*int"),
        ("seed", 1, "method or seed"),
        ("data", None, "json.data: .*missing"),
        ("extra", 1, "json.extra: "),
        ("config.epochs", 3, "seed0-best.json"),
        ("config.epochs", "3", "config.epochs='3'"),
        ("attacks.natural", None, "natural"),
        ("attacks.fgsm.num_correct", 8, "fgsm: .*num_correct=8"),
        ("attacks.fgsm.accuracy", 0.8, "fgsm: accuracy is 80.*70"),
        ("attacks.fgsm.num_examples", 17, "num_examples is 17.*16"),
        ("attacks.fgsm.correct", "f700ff", "fgsm: .*num_examples=10"),
        ("attacks.fgsm.correct", "xx", "fgsm: correct"),
        ("attacks.fgsm.warnings", None, "fgsm.warnings: .*missing"),
        ("worst_case.num_correct", 5, "worst_case"),
        ("epsilon", 0.2, "epsilon is 0.2"),
        ("norm", "l2", "norm is 'l2'"),
        ("attacks.fgsm.settings.epsilon", 0.01, "fgsm: settings"),
        ("attacks.pgd40.settings.norm", "l2", "pgd40: settings"),
        ("data", "CIFAR-10", "data is 'CIFAR-10'"),
        ("network", "resnet18", "network is 'resnet18'"),
        ("setting", "", "setting is ''"),
        ("overrides", {"epochs": 120}, "overrides is|setting is"),
        ("step", 0, "step is 0"),
        ("step", 19, "step is 19"),
        ("step", 30, "step is 30"),
        ("data_fingerprint", "none", "data_fingerprint is 'none'"),
        ("worst_case.interval", [0.3, 0.4], "worst_case"),
    ],
)
def test_a_record_that_does_not_follow_is_refused(tmp_path, site, path, value, message):
    site.publish(make_run(tmp_path / "run"))
    (name,) = site.rows()
    with pytest.raises(UsageError, match=message):
        validate(change(site.record(), path, value), name)


def test_rows_of_the_same_data_share_their_fingerprint(tmp_path, site):
    site.publish(make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1))
    name, one = next(iter(site.rows().items()))
    other = change(one.record, "data_fingerprint", "f" * 16)
    (site.results / "rows" / name).write_text(json.dumps(other))
    with pytest.raises(UsageError, match="data_fingerprint is"):
        site.publish()


@pytest.mark.parametrize("results", [{}, {"natural": NATURAL}])
def test_what_was_not_evaluated_is_not_published(tmp_path, site, results):
    run = make_run(tmp_path / "run", results)
    with pytest.raises(UsageError, match=rf"--workdirs: {run} .*worst case"):
        site.publish(run)
    assert not site.rows()


def test_a_readme_without_the_section_is_refused(tmp_path, site):
    site.readme.write_text("nothing")
    with pytest.raises(UsageError, match=r"--readme=.*<!-- results -->"):
        site.publish(make_run(tmp_path / "run"))
    assert not site.rows()


def test_the_quickstart_block_and_its_picture(tmp_path, site):
    block = "<!-- quickstart -->\nold\n<!-- /quickstart -->\n"
    site.readme.write_text(site.readme.read_text() + block)
    for method in ("natural", "trades", "trades_ancra"):
        run = make_run(tmp_path / "runs" / method, method=method)
    arguments = ([], str(site.results), str(site.readme))
    with pytest.raises(UsageError, match=r"trades_ancra has no worst case"):
        publish(*arguments, quickstart=str(tmp_path / "runs"))
    write_result(run, "adaptive", (1,) * 2 + (0,) * 8)
    publish(*arguments, quickstart=str(tmp_path / "runs"))
    text = site.readme.read_text()
    table = table_under(text, "<!-- quickstart -->")
    assert [row["Worst case"][:5] for row in table] == ["40.00", "40.00", "20.00"]
    (tmp_path / "docs/images/quickstart.png").stat()
    assert "(docs/images/quickstart.png)\n<!-- /quickstart -->" in text


def seeds_of(tmp_path, **methods):
    """Fake runs: the worst case of each method's seeds, as the number of correct examples."""
    workdirs = []
    for method, seeds in methods.items():
        for seed, count in enumerate(seeds):
            correct = np.arange(100) < count
            pgd = correct | (np.arange(100) >= 90)
            results = {"natural": np.ones(100, bool), "pgd40": pgd, "autoattack": correct}
            if method != "trades_anc":
                results["adaptive"] = correct
            path = tmp_path / f"{method}-{seed}"
            workdirs.append(make_run(path, results, method=method, seed=seed))
    return workdirs


def test_the_pages_say_what_the_numbers_say(tmp_path, site, monkeypatch):
    claims = {
        ("digits", method): one for (data, method), one in CLAIMS.items() if data == "cifar10"
    }
    monkeypatch.setattr(pages, "CLAIMS", claims)  # the paper has none of the digits
    methods = {"trades": [40, 41, 42], "trades_ra": [39, 42, 42], "trades_anc": [60, 62, 61]}
    site.publish(*seeds_of(tmp_path, **methods, trades_ancra=[15, 14, 16]))
    readme, page = site.readme.read_text(), site.page()
    setting = "**Width 4, 160 images, 2 epochs: not the paper's setting.** digits, tiny, width 4"
    assert readme.startswith(f"above\n<!-- results -->\n{setting}, epsilon linf 0.1")
    assert readme.endswith("<!-- /results -->\nbelow\n") and "old" not in readme
    trades = table_under(readme, "<!-- results -->")[0]
    assert (trades["Method"], trades["Seeds"]) == ("TRADES", "0-2")
    assert trades["Worst case"] == "41.00 ± 1.00" and page.count(setting) == 1
    for what, title, verdict in (
        ("ANC", "TRADES-ANC − TRADES", "it helps**, +20.00 ["),
        ("RA", "TRADES-RA − TRADES", "no difference is shown**, +0.00 ["),
        ("ANCRA", "TRADES-ANCRA − TRADES", "it harms**, -26.00 ["),
    ):
        assert f"**{what}** ({title}, 3 seeds), worst case: **{verdict}" in page
    assert "Less accuracy: PGD-40 (-26.00), AA (-26.00)." in page and "it harms" in readme
    rows = table_under(page, "### Does it help")
    assert not any(row["Difference"].startswith("PGD-AT-ANCRA") for row in rows)  # was not run
    by_name = {(row["Difference"], row["Attack"]): row for row in rows}
    for difference, attack, claim, found, verdict in (
        ("TRADES-ANCRA − TRADES", "PGD-40", "+34.56", "-26.00", "is contradicted"),
        ("TRADES-ANCRA − TRADES", "AA", "+14.26", "-26.00", "is contradicted"),
        ("TRADES-RA − TRADES", "AA", "+15.58", "+0.00", "is not shown"),
        ("TRADES-ANC − TRADES", "AA", "+3.07", "+20.00", "stands"),
        ("TRADES-ANCRA − TRADES", "worst case", "—", "-26.00", "—"),
        ("TRADES-ANCRA", "PGD-40 − Nat", "+1.26", "-75.00", "is contradicted"),
    ):
        row = by_name[difference, attack]
        assert row["Here"].startswith(f"{found} [")
        assert (row["The paper"], row["The paper's claim"]) == (claim, verdict)


def test_what_the_adaptive_attacks_broke_is_said_and_unfinished_ones_are_refused(tmp_path, site):
    run = make_run(tmp_path / "run", method="trades_ra")
    attacks = [{"name": "branch", "broken": 3}, {"name": "soft", "broken": 0}]
    correct = (1,) + (0,) * 9
    write_result(run, "adaptive", correct, attacks=attacks, complete=False)
    with pytest.raises(UsageError, match=rf"adaptive of {run} "):
        site.publish(run)
    write_result(run, "adaptive", correct, attacks=attacks, complete=True)
    site.publish(run)
    record = site.record()
    assert record["adaptive"] == attacks[:1] and record["worst_case"]["num_correct"] == 1
    (row,) = table_under(site.page(), "### Adaptive attacks and diagnostics")
    assert row["Method"] == "TRADES-RA" and row["Adaptive attacks: examples broken"] == "branch 3"


def test_a_search_in_less_than_the_highest_precision_stays_one(tmp_path, site):
    run = make_run(tmp_path / "run")
    write_result(run, "autoattack", (1,) + (0,) * 9, search_precision="high", denied=2)
    site.publish(run)
    (published,) = site.rows().values()
    record = published.row.evaluation.records["autoattack"]
    assert (record["search_precision"], record["denied"]) == ("high", 2)
    assert any("--search_precision=high" in command for command in published.row.evaluate)
    assert "search_precision" not in site.record()["attacks"]["fgsm"]


def test_adaptive_attacks_are_compared_only_where_there_is_a_defence(tmp_path, site):
    runs = seeds_of(tmp_path, trades=[40], trades_ra=[45], trades_ancra=[47])
    for run, left, defences in zip(runs, (60, 20, 30), ([], ["gate"], ["gate"]), strict=True):
        settings = {"norm": "linf", "epsilon": 0.1, "defences": defences}
        correct = np.arange(100) < left
        write_result(run, "adaptive", correct, settings=settings, attacks=[], complete=True)
    site.publish(*runs)
    page = site.page()
    every = {row.pop("Attack"): list(row.values()) for row in table_under(page, "### Every attack")}
    assert every["Adaptive"] == ["—", "20.00", "30.00"]
    # Between the two with reverse attention, not against a plain network.
    rows = [row for row in table_under(page, "### Does it") if row["Attack"] == "Adaptive"]
    assert [row["Difference"] for row in rows] == ["TRADES-ANCRA − TRADES-RA"]
    assert rows[0]["Here"].startswith("+10.00 [")


def test_rows_of_other_settings_are_not_put_together(tmp_path, site):
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", seed=1, epochs=3),
        make_run(tmp_path / "c", seed=2, method__beta=3.0),
        make_run(tmp_path / "d", {name: 100 * one for name, one in PAPER.items()}, seed=4),
    ]
    site.publish(*runs)
    page = site.page()
    assert page.count("## Setting") == 3
    assert "TRADES, beta=3.0" in page and "2 seeds" not in page
    assert "checkpoint, 10 test examples." in page and "1,000 test examples." in page
    readme = site.readme.read_text()  # shows the largest of each data set
    assert readme.count(" test examples.") == 1 and "1,000 test examples." in readme


def test_every_variant_of_a_method_is_compared_with_both_controls(tmp_path, site):
    correct = {"trades": 50, "trades_shallow": 55, "trades_margin": 40, "trades_ancra": 30}
    runs = seeds_of(tmp_path, **{method: [count] * 3 for method, count in correct.items()})
    results = {"natural": np.ones(100, bool), "autoattack": np.arange(100) < 60}
    for seed in range(3):
        path, weight = tmp_path / f"light-{seed}", {"margin_alignment__weight": 0.3}
        runs.append(make_run(path, results, method="trades_margin", seed=seed, **weight))
    site.publish(*runs)
    page = site.page()
    assert "**TRADES-MARGIN** (TRADES-MARGIN, weight=0.3 − TRADES, 3 seeds)" in page
    worst = {
        row["Difference"]: row["Here"].strip("*")
        for row in table_under(page, "### Does it help")
        if row["Attack"] == "worst case"
    }
    for title, less in (
        ("TRADES-MARGIN, weight=0.3 − TRADES", "+10.00"),
        ("TRADES-MARGIN, weight=0.3 − TRADES-SHALLOW", "+5.00"),
        ("TRADES-MARGIN, weight=1.0 − TRADES", "-10.00"),
        ("TRADES-SHALLOW − TRADES", "+5.00"),
        ("TRADES-ANCRA − TRADES", "-20.00"),
    ):
        assert worst[title].startswith(f"{less} [")


def test_the_pages_of_this_repository_follow_from_its_results(site):
    shutil.copytree(ROOT / "results/rows", site.results / "rows")
    shutil.copy(ROOT / "README.md", site.readme)
    site.publish()
    assert site.readme.read_text() == (ROOT / "README.md").read_text(), "python -m tools.publish"
    assert site.page() == (ROOT / "results/README.md").read_text()
