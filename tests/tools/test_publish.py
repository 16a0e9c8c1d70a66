"""What is published: its files, what is refused, and that the pages follow from the files."""

import copy
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from scipy.stats import binomtest

from ancra_jax import config as config_lib
from ancra_jax.errors import UsageError
from ancra_jax.results.load import method_settings
from tests.support import ROOT
from tests.support.fake_runs import NATURAL, PAPER, PGD, make_run, table_under, write_result
from tools.publish.command import main, pages, publish, read_all
from tools.publish.record import validate


@pytest.fixture
def place(tmp_path):
    """A results directory and a README to publish in."""
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- results -->\nold\n<!-- /results -->\nbelow\n")
    return str(tmp_path / "results"), str(readme)


def the_record(place):
    (row,) = read_all(place[0]).values()
    return row.record


def test_a_row_holds_what_made_it(tmp_path, place):
    run = make_run(tmp_path / "run", data__data_dir="/private/data", seed=3)
    publish([run], *place)
    record = the_record(place)
    assert record["method"] == "trades" and record["seed"] == 3 and record["step"] == 20
    assert record["setting"] == "width 4, 160 images, 2 epochs: not the paper's setting"
    assert record["evaluation"]["device"] == ["1 x cpu"]
    assert record["evaluate"] == [
        "python -m ancra_jax.evaluate --workdir=runs/trades-3 --num_examples=10 --seed=7"
    ]
    natural = record["attacks"]["natural"]
    assert (natural["num_correct"], natural["accuracy"], natural["correct"]) == (9, 0.9, "ff80")
    low, high = binomtest(4, 10).proportion_ci(method="wilson")
    assert record["worst_case"]["num_correct"] == 4
    np.testing.assert_allclose(record["worst_case"]["interval"], [low, high])
    assert "private" not in json.dumps(record) and str(tmp_path) not in json.dumps(record)
    (row,) = read_all(place[0]).values()
    np.testing.assert_array_equal(row.row.evaluation.correct["pgd40"], np.array(PGD, bool))
    assert (row.row.data, row.row.epsilon, row.row.step) == ("digits", 0.1, 20)


def configuration(command, monkeypatch):
    """What a published training command trains, as its method's settings, and its seed."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    arguments = shlex.split(command)
    assert arguments[:3] == ["python", "-m", "ancra_jax.train"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train", *arguments[3:]])  # config_flags look there
    values(["train", *arguments[3:]])
    config = config_lib.from_mapping(values.config)
    return method_settings(config), config.seed


def expected(record):
    config = config_lib.from_mapping(record["config"])
    return method_settings(config), config.seed


def test_the_command_of_a_row_trains_its_configuration(tmp_path, place, monkeypatch):
    run = make_run(tmp_path / "run", method="trades_ancra", seed=2, optimizer__milestones=(1, 2))
    publish([run], *place)
    record = the_record(place)
    assert configuration(record["train"], monkeypatch) == expected(record)


def test_a_row_is_not_overwritten_silently(tmp_path, place):
    run = make_run(tmp_path / "run")
    publish([run], *place)
    before = the_record(place)
    (file,) = pathlib.Path(place[0]).glob("rows/*.json")
    # As written by a version that rounded differently: the same again is no harm.
    other = change(
        before, "worst_case.interval", [x + 1e-16 for x in before["worst_case"]["interval"]]
    )
    file.write_text(json.dumps(other))
    publish([run], *place)
    assert the_record(place) == other
    before = the_record(place)
    write_result(run, "cw40", (0,) * 10)
    with pytest.raises(UsageError, match=r"holds a row with other .*attacks.*--replace"):
        publish([run], *place)
    assert the_record(place) == before
    publish([run], *place, replace=True)
    assert the_record(place)["worst_case"]["num_correct"] == 0


def test_the_command_says_how_many_rows_there_are(tmp_path, place, capsys):
    values = flags.FlagValues()
    flags.DEFINE_list("workdirs", [make_run(tmp_path / "run")], "", flag_values=values)
    flags.DEFINE_string("results", place[0], "", flag_values=values)
    flags.DEFINE_string("readme", place[1], "", flag_values=values)
    flags.DEFINE_bool("replace", False, "", flag_values=values)
    values.mark_as_parsed()
    main(values)
    assert f"{place[0]}: 1 rows; its README.md" in capsys.readouterr().out


def change(record, path, value):
    record = copy.deepcopy(record)
    *groups, last = path.split(".")
    inner = record
    for group in groups:
        inner = inner[group]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "has schema 2"),
        ("seed", "0", "seed='0' must be of type int"),
        ("seed", 1, "method or seed is not that of its config"),
        ("data", None, "differing: \\['data'\\]"),
        ("extra", 1, "differing: \\['extra'\\]"),
        ("config.epochs", 3, "a record of this content is called"),
        ("config.epochs", "3", "config.epochs='3'"),
        ("attacks.natural", None, "attacks has no natural"),
        ("attacks.fgsm.num_correct", 8, "fgsm: 7 of 10 examples are correct"),
        ("attacks.fgsm.accuracy", 0.8, "fgsm: 7 of 10 examples are correct"),
        ("attacks.fgsm.num_examples", 17, "holds 16 bits, num_examples is 17"),
        ("attacks.fgsm.correct", "fb80ff", "holds 24 bits, num_examples is 10"),
        ("attacks.fgsm.correct", "xx", "is not hexadecimal"),
        ("attacks.fgsm.warnings", None, "fgsm: .*differing: \\['warnings'\\]"),
        ("worst_case.num_correct", 5, "worst_case is .* must be"),
        ("worst_case.interval", [0.3, 0.4], "worst_case is .* must be"),
    ],
)
def test_a_record_that_does_not_follow_is_refused(tmp_path, place, path, value, message):
    publish([make_run(tmp_path / "run")], *place)
    ((name, row),) = read_all(place[0]).items()
    with pytest.raises(UsageError, match=message):
        validate(change(row.record, path, value), name)


@pytest.mark.parametrize("results", [{}, {"natural": NATURAL}])
def test_what_was_not_evaluated_is_not_published(tmp_path, place, results):
    run = make_run(tmp_path / "run", results)
    with pytest.raises(UsageError, match=rf"--workdirs: {run} .*worst case"):
        publish([run], *place)
    assert not read_all(place[0])


def test_a_readme_without_the_section_is_refused(tmp_path, place):
    pathlib.Path(place[1]).write_text("nothing")
    with pytest.raises(UsageError, match="has no lines <!-- results -->"):
        publish([make_run(tmp_path / "run")], *place)
    assert not read_all(place[0])


def rows_of(tmp_path, **methods):
    """Fake runs: the worst case of each method's seeds, as the number of correct examples."""
    workdirs = []
    for method, seeds in methods.items():
        for seed, count in enumerate(seeds):
            correct = np.arange(100) < count
            results = {"natural": np.ones(100, bool), "pgd40": correct | (np.arange(100) >= 90)}
            results["autoattack"] = correct
            workdirs.append(
                make_run(tmp_path / f"{method}-{seed}", results, method=method, seed=seed)
            )
    return workdirs


def test_the_pages_say_what_the_numbers_say(tmp_path, place):
    methods = {
        "trades": [40, 41, 42],
        "trades_ra": [39, 42, 42],
        "trades_anc": [60, 62, 61],
        "trades_ancra": [15, 14, 16],
    }
    publish(rows_of(tmp_path, **methods), *place)
    readme = pathlib.Path(place[1]).read_text()
    setting = "**Width 4, 160 images, 2 epochs: not the paper's setting.** digits, tiny, width 4"
    assert readme.startswith(f"above\n<!-- results -->\n{setting}, epsilon linf 0.1")
    assert readme.endswith("<!-- /results -->\nbelow\n") and "old" not in readme
    assert re.search(r"\| TRADES +\| 0, 1, 2 +\| +\*\*41.00 ± 1.00\*\* \|", readme)
    page = (pathlib.Path(place[0]) / "README.md").read_text()
    assert page.count(setting) == 1
    assert "**ANC** (TRADES-ANC − TRADES, 3 seeds), worst case: **it helps**, +20.00 [" in page
    assert "**RA** (TRADES-RA − TRADES, 3 seeds), worst case: **no difference is shown**" in page
    assert "**ANCRA** (TRADES-ANCRA − TRADES, 3 seeds), worst case: **it harms**, -26.00" in page
    assert "Less accuracy: PGD-40 (-26.00), AA (-26.00)." in page
    assert "PGD-AT-ANCRA − PGD-AT" not in page  # was not run
    rows = {
        (row["Difference"], row["Attack"]): row for row in table_under(page, "### Does it help")
    }
    for difference, attack, claim, found, verdict in (
        ("TRADES-ANCRA − TRADES", "PGD-40", "+34.56", "-26.00", "is contradicted"),
        ("TRADES-ANCRA − TRADES", "AA", "+14.26", "-26.00", "is contradicted"),
        ("TRADES-RA − TRADES", "AA", "+15.58", "+0.00", "is not shown"),
        ("TRADES-ANC − TRADES", "AA", "+3.07", "+20.00", "stands"),
        ("TRADES-ANCRA − TRADES", "worst case", "—", "-26.00", "—"),
        ("TRADES-ANCRA", "PGD-40 − Nat", "+1.26", "-75.00", "is contradicted"),
    ):
        row = rows[difference, attack]
        assert row["Here"].startswith(f"{found} [")
        assert (row["The paper"], row["The paper's claim"]) == (claim, verdict)


def test_what_the_adaptive_attacks_broke_is_said_and_unfinished_ones_are_refused(tmp_path, place):
    run = make_run(tmp_path / "run", method="trades_ra")
    attacks = [{"name": "branch", "broken": 3}, {"name": "soft", "broken": 0}]
    correct = (1,) + (0,) * 9
    write_result(run, "adaptive", correct, attacks=attacks, complete=False)
    with pytest.raises(UsageError, match=r"adaptive of .* was stopped before its end"):
        publish([run], *place)
    write_result(run, "adaptive", correct, attacks=attacks, complete=True)
    publish([run], *place)
    record = the_record(place)
    assert record["adaptive"] == attacks[:1] and record["worst_case"]["num_correct"] == 1
    page = (pathlib.Path(place[0]) / "README.md").read_text()
    (row,) = table_under(page, "### Adaptive attacks and diagnostics")
    assert row["Method"] == "TRADES-RA" and row["Adaptive attacks: examples broken"] == "branch 3"


def test_adaptive_attacks_are_compared_only_where_there_is_a_defence(tmp_path, place):
    runs = rows_of(tmp_path, trades=[40], trades_ra=[45], trades_ancra=[47])
    for run, left, defences in zip(runs, (60, 20, 30), ([], ["gate"], ["gate"]), strict=True):
        settings = {"norm": "linf", "epsilon": 0.1, "defences": defences}
        correct = np.arange(100) < left
        write_result(run, "adaptive", correct, settings=settings, attacks=[], complete=True)
    publish(runs, *place)
    page = (pathlib.Path(place[0]) / "README.md").read_text()
    every = {row.pop("Attack"): list(row.values()) for row in table_under(page, "### Every attack")}
    assert every["Adaptive"] == ["—", "20.00", "30.00"]
    # Between the two with reverse attention, not against a plain network.
    rows = [row for row in table_under(page, "### Does it") if row["Attack"] == "Adaptive"]
    assert [row["Difference"] for row in rows] == ["TRADES-ANCRA − TRADES-RA"]
    assert rows[0]["Here"].startswith("+10.00 [")


def test_rows_of_other_settings_are_not_put_together(tmp_path, place):
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", seed=1, epochs=3),
        make_run(tmp_path / "c", seed=2, method__beta=3.0),
        make_run(tmp_path / "d", {name: one[:8] for name, one in PAPER.items()}, seed=4),
    ]
    publish(runs, *place)
    page = (pathlib.Path(place[0]) / "README.md").read_text()
    assert page.count("## Setting") == 3
    assert "TRADES, beta=3.0" in page and "2 seeds" not in page


def test_the_pages_of_this_repository_follow_from_its_results():
    rows = read_all(str(ROOT / "results"))
    page, readme = pages(rows, str(ROOT / "README.md"))
    message = "run python -m tools.publish"
    assert (ROOT / "README.md").read_text() == readme, message
    assert (ROOT / "results/README.md").read_text() == page, message


def test_every_command_of_this_repositorys_results_trains_its_configuration(monkeypatch):
    for row in read_all(str(ROOT / "results")).values():
        assert configuration(row.record["train"], monkeypatch) == expected(row.record)
