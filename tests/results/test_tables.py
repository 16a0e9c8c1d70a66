"""Tables from lists of columns, and what is said beneath them."""

import dataclasses
import io
import shlex

import numpy as np
import pytest
from rich.console import Console

from ancra_jax.evaluate.result import read_evaluation
from ancra_jax.results.load import load_runs
from ancra_jax.results.rows import rows_of, seeds_rows, seeds_text
from ancra_jax.results.statistics import Spread
from ancra_jax.results.tables import (
    Column,
    build,
    caption,
    not_run,
    row_notes,
    tables_of,
)
from ancra_jax.results.tables import columns as columns_lib
from ancra_jax.results.tables.table import MISSING, text
from tests.support import fake_runs as fake

CLAIM = "From the claim to the worst case"
FINAL = "Attacks on the final logits"
HEADS = "Attacks on the auxiliary heads too"


def tables_in(*workdirs):
    """The rows of every table by title, cells by header."""
    rows = rows_of(load_runs([str(workdir) for workdir in workdirs]))
    tables = tables_of(rows, seeds_rows(rows))
    return {table.title: fake.table_under(table.markdown(), "|") for table in tables}


def notes_of(workdir):
    return [list(row_notes(row)) for row in rows_of(load_runs([str(workdir)]))]


def missing(*workdirs):
    """The one note that says what was not run; None if everything was."""
    rows = rows_of(load_runs([str(workdir) for workdir in workdirs]))
    found = list(not_run(rows))
    assert len(found) <= 1
    return found[0] if found else None


def test_columns_are_shown_where_they_have_something_to_say():
    columns = [
        Column("Name", lambda row: row[0], "always", numeric=False),
        Column("Empty", lambda row: MISSING),
        Column("Forced", lambda row: MISSING, "always"),
        Column("Some", lambda row: row[1]),
        Column("Same", lambda row: "x|y", "differing"),
        Column("Other", lambda row: row[0], "differing"),
    ]
    table = build("A title", columns, [("a", "1"), ("b", MISSING)])
    assert table.headers == ["Name", "Forced", "Some", "Other"]
    assert table.rows == [["a", MISSING, "1", "a"], ["b", MISSING, MISSING, "b"]]
    assert table.markdown().splitlines()[1:3] == [
        "| ---- | -----: | ---: | ----: |",
        "| a    |      — |    1 |     a |",
    ]
    assert table.transposed().headers == ["Name", "a", "b"]
    assert table.transposed().rows[1] == ["Some", "1", MISSING]
    console = Console(file=io.StringIO(), width=60)
    console.print(dataclasses.replace(table, rows=[["**a**", "[b]", "c_d", "e"]]).rich())
    printed = console.file.getvalue()
    assert all(text in printed for text in (" a ", "[b]", "c_d", "A title")) and "**" not in printed


def test_fractions_are_written_in_percent():
    values = [None, "", 0.12345, 1.0, 7, "a", Spread(0.5, 0.01)]
    shown = [MISSING, MISSING, "12.35", "100.00", "7", "a", "50.00 ± 1.00"]
    assert [text(value) for value in values] == shown


@pytest.mark.parametrize(
    ("seeds", "shown"),
    [([3], "3"), ([1, 0], "0, 1"), ([0, 2, 1], "0-2"), ([0, 1, 2, 5, 7, 8, 9], "0-2, 5, 7-9")],
)
def test_seeds_in_a_row_are_shown_by_their_ends(seeds, shown):
    assert seeds_text(seeds) == shown


def test_a_new_column_is_one_entry_of_a_list(tmp_path, monkeypatch):
    column = Column("Robust share", lambda row: row.stages["PGD"] / row.stages["Nat"])
    monkeypatch.setattr(columns_lib, "FROM_CLAIM", (*columns_lib.FROM_CLAIM, column))
    assert tables_in(fake.make_run(tmp_path / "run"))[CLAIM][0]["Robust share"] == "55.56"


def test_the_mean_and_autoattack_are_in_both_scenarios(tmp_path):
    heads = {"pgd40_with_p": fake.FGSM, "fgsm_with_p": fake.FGSM, "cw40_with_p": fake.PGD}
    results = fake.PAPER | heads | {"cw40": fake.PGD, "autoattack": (1,) * 2 + (0,) * 8}
    fake.make_run(tmp_path / "ra", results, method="trades_ra")
    tables = tables_in(tmp_path / "ra", fake.make_run(tmp_path / "plain"))
    first, plain = tables[FINAL]
    (second,) = tables[HEADS]
    assert first["Worst case"] == columns_lib.NOT_ATTACKED
    assert (first["Model"], first["Seed"], first["Checkpoint"]) == ("trades_ra", "0", "best")
    assert list(first)[3:] == ["Worst case", "Nat", "PGD-40", "FGSM", "C&W-40", "AA", "Mean"]
    assert list(second) == list(first) and second["Worst case"] == first["Worst case"]
    assert (first["AA"], first["Mean"]) == ("20.00", "47.50")  # of 50, 70, 50, 20
    assert (second["AA"], second["Mean"]) == ("20.00", "52.50")  # of 70, 70, 50, 20
    assert (plain["AA"], plain["Mean"]) == (MISSING, MISSING)


def test_attacks_of_one_s_own_become_columns_and_count_in_the_worst_case(tmp_path):
    others = {"branch_forced": (1,) * 3 + (0,) * 7, "autoattack_plus": fake.PGD}
    others |= {"apgd_t": fake.PGD, "apgd_ce": fake.FGSM}
    tables = tables_in(fake.make_run(tmp_path / "run", fake.PAPER | others))
    names = ["Nat", "PGD-40", "FGSM", "APGD-CE", "APGD-T", "AA-plus", "branch_forced"]
    assert list(tables[FINAL][0])[4:] == names
    (row,) = tables[CLAIM]
    assert list(row)[4:] == ["Nat", "FGSM", "PGD", "APGD-CE", "APGD-T"]
    assert (row["APGD-CE"], row["APGD-T"]) == ("70.00", "50.00")
    assert row["Worst case"].startswith("30.00")


def test_an_attack_above_the_natural_accuracy_is_marked(tmp_path):
    results = fake.PAPER | {"fgsm": (1,) * fake.EXAMPLES, "cw40": fake.PGD, "autoattack": fake.PGD}
    workdir = fake.make_run(tmp_path / "run", results)
    (row,) = tables_in(workdir)[FINAL]
    assert (row["FGSM"], row["Mean"]) == ("100.00†", "62.50†")
    assert row["PGD-40"] == "50.00" and row["Nat"] == "90.00"
    ((note, *_),) = notes_of(workdir)
    assert note.startswith("†") and "fgsm" in note and "100.00%" in note and "90.00%" in note


def test_what_rows_do_not_share_becomes_a_column(tmp_path):
    short = {name: correct[:8] for name, correct in fake.PAPER.items()}
    workdirs = [fake.make_run(tmp_path / "a"), fake.make_run(tmp_path / "b", short, seed=1)]
    rows = tables_in(*workdirs)[FINAL]
    assert [row["Examples"] for row in rows] == ["10", "8"]
    assert "Data" not in rows[0] and "Epsilon" not in rows[0]
    assert caption(rows_of(load_runs(workdirs))).count("examples") == 0
    assert "10 examples" in caption(rows_of(load_runs(workdirs[:1])))


def test_several_seeds_take_the_same_columns(tmp_path):
    other = fake.PAPER | {"pgd40": fake.NATURAL, "adaptive": fake.PGD}
    first = fake.make_run(tmp_path / "a", fake.PAPER | {"adaptive": fake.FGSM})
    tables = tables_in(first, fake.make_run(tmp_path / "b", other, seed=1))
    last = tables[FINAL][-1]
    assert len(tables[FINAL]) == 3 and last["Seed"] == "2 seeds"
    spreads = {"PGD-40": [50, 90], "Adaptive": [70, 50], "Worst case": [40, 40], "Nat": [90, 90]}
    for name, values in spreads.items():
        text = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
        assert last[name] == text
        if name != "PGD-40":
            assert tables[CLAIM][-1][name] == text


@pytest.mark.parametrize(
    "other", [{"budget": "quick"}, {"transfer_from": [{"name": "a-1", "method": "a"}]}]
)
def test_seeds_attacked_in_other_ways_have_no_common_worst_case(tmp_path, other):
    settings = {"norm": "linf", "epsilon": 0.1, "budget": "standard", "transfer_from": []}
    for seed, more in enumerate(({}, other)):
        path = tmp_path / str(seed)
        fake.make_run(path, method="trades_ra", seed=seed)
        fake.write_adaptive(path, fake.PGD, settings=settings | more)
    rows = rows_of(load_runs([str(tmp_path / "0"), str(tmp_path / "1")]))
    assert all(row.worst_case for row in rows) and seeds_rows(rows)[0].worst_case is None
    again = [dataclasses.replace(rows[1], seed=2), rows[1]]
    assert seeds_rows(again)[0].worst_case


def test_no_number_is_below_the_worst_case(tmp_path):
    """The last six examples, which not all attacks saw, would put FGSM far below the rest."""
    path = tmp_path / "run"
    fake.make_run(path, {"natural": fake.NATURAL, "fgsm": (1,) * 4 + (0,) * 6, "pgd40": fake.PGD})
    fake.write_result(path, "autoattack", (1, 1, 1, 0, 0))
    fake.write_result(path, "adaptive", (1, 1, 0, 1))
    (row,) = tables_in(path)[CLAIM]
    expected = {"Nat": 100.0, "FGSM": 100.0, "PGD": 100.0, "AutoAttack": 75.0, "Adaptive": 75.0}
    assert {name: float(row[name]) for name in expected} == expected
    assert row["Worst case"].startswith("50.00")
    assert tables_in(path)[FINAL][0]["FGSM"] == "40.00"  # of all ten, as its file says
    ((note, *_),) = notes_of(path)
    assert "AA 5" in note and "first 4" in note


def test_without_an_evaluation_there_are_dashes_and_the_command(tmp_path):
    fake.make_run(tmp_path / "b", {}, seed=1)
    row = tables_in(fake.make_run(tmp_path / "a"), tmp_path / "b")[FINAL][1]
    assert {row[name] for name in ("Worst case", "Nat", "PGD-40", "FGSM")} == {MISSING}
    note = missing(tmp_path / "b")
    assert f"`ancra evaluate --workdir={tmp_path / 'b'}`" in note


@pytest.fixture
def hidden_gradient(tmp_path):
    """A network with reverse attention whose claim is far from its worst case."""
    others = {"autoattack": fake.FGSM, "fgsm_with_p": fake.FGSM, "pgd40_with_p": fake.PGD}
    fake.make_run(tmp_path / "ra", fake.PAPER | others | {"pgd40": (1,) * 10}, method="trades_ra")
    return tmp_path / "ra"


def test_from_the_claim_to_the_worst_case(hidden_gradient):
    fake.write_adaptive(hidden_gradient, (1,) * 2 + (0,) * 8)
    fake.write_diagnosis(hidden_gradient)
    tables = tables_in(hidden_gradient)
    (row,) = tables[CLAIM]
    assert next(iter(tables)) == CLAIM and row.pop("Worst case").startswith("20.00")
    assert list(row.items())[3:] == [
        ("Nat", "90.00"), ("FGSM", "70.00"), ("PGD", "100.00"), ("AutoAttack", "70.00"),
        ("Auxiliary heads", "40.00"),  # what neither of the two attacks breaks
        ("Adaptive", "20.00"), ("Diagnosis", "masked"),
    ]  # fmt: skip
    attacks = tables["Adaptive attacks that broke examples, in their order"]
    assert [(one["Attack"], one["Tried on"], one["Broke"]) for one in attacks] == [
        ("a1-gate2", "9", "6"), ("a6-square", "3", "1"),
    ]  # fmt: skip
    assert [one["By it alone"] for one in attacks] == [MISSING, "70.00"]
    (masks,) = tables["What hides the gradient"]
    assert list(masks.items())[3:] == [
        ("argmax f = c_2", "90.00"), ("c_1 = c_2", "100.00"), ("c_2 flipped *", "87.50"),
        ("Cosine", "-0.25"), ("depth", "3.00"),
    ]  # fmt: skip
    (checks,) = tables["Diagnostics"]
    assert checks["Verdict"] == "masked" and checks["Not run"] == "adaptive attack beats AutoAttack"
    assert checks["Checks that fired"] == "one step beats many (0.25, allowed 0.002)"
    for title in (FINAL, HEADS):
        assert tables[title][0]["Adaptive"] == "20.00"
    notes = " ".join(notes_of(hidden_gradient)[0])
    assert missing(hidden_gradient) is None and "break 5 of the 7 examples" in notes
    assert "before the results of PGD-40" in notes
    assert "--suite=diagnostics --num_examples=10 --force" in notes


def test_an_upper_bound_is_no_worst_case(tmp_path, hidden_gradient, capsys):
    """Of one network and of several seeds, in tables, on the terminal and as data."""
    results = {name: np.ones(10, bool) for name in ("natural", "pgd40")}
    other = fake.make_run(tmp_path / "b", results, method="trades_ra", seed=1)
    one, two = rows_of(load_runs([str(hidden_gradient), other]))
    assert one.worst_case is None and one.upper_bound.accuracy == 0.4
    (seeds,) = seeds_rows([two, dataclasses.replace(two, seed=2)])
    assert seeds.worst_case is None and seeds.upper_bound == Spread(1.0, 0.0)
    for table in tables_of([one, two], [seeds])[:3]:
        cells = [row[table.headers.index("Worst case")] for row in table.rows]
        assert set(cells) == {columns_lib.NOT_ATTACKED}
    read_evaluation(str(hidden_gradient), "best").print()
    printed = capsys.readouterr().out
    assert columns_lib.NOT_ATTACKED in printed.splitlines()[1] and "robust accuracy:" not in printed
    # Stopped before the first attack through its mask.
    fake.write_adaptive(hidden_gradient, fake.NATURAL, attacks=[], complete=False)
    (row,) = rows_of(load_runs([str(hidden_gradient)]))
    assert row.worst_case is None and row.upper_bound
    fake.write_adaptive(hidden_gradient, (1,) * 2 + (0,) * 8)
    (row,) = rows_of(load_runs([str(hidden_gradient)]))
    assert row.upper_bound is None and row.worst_case.accuracy == 0.2


def test_what_was_not_run_is_said_once_with_one_command(tmp_path, hidden_gradient):
    flags = "--suite=all --num_examples=10"
    flags += " --seed=7"  # by which the results there were computed
    assert f"`ancra evaluate --workdir={hidden_gradient} {flags}`" in missing(hidden_gradient)
    (with_figure,) = not_run(rows_of(load_runs([str(hidden_gradient)])), features=True)
    assert "features" in with_figure and "features" not in missing(hidden_gradient)
    fake.write_diagnosis(hidden_gradient)
    assert " --suite=adaptive --num" in missing(hidden_gradient)
    plain = fake.make_run(tmp_path / "it's plain", data__selection_split="test")
    note = missing(plain, hidden_gradient)
    loop = f"for run in {shlex.join([plain, str(hidden_gradient)])}; do"
    assert f'{loop} ancra evaluate --workdir="$run" {flags}; done' in note
    settings = {"norm": "linf", "epsilon": 0.1, "budget": "quick"}
    fake.write_result(hidden_gradient, "adaptive", fake.PGD, settings=settings)
    note = missing(plain, hidden_gradient)
    assert "--suite=all --adaptive_budget=quick" in note and str(hidden_gradient) not in note
    other = fake.make_run(tmp_path / "other")  # with a budget of its own
    settings = {"norm": "linf", "epsilon": 0.1, "budget": "thorough"}
    fake.write_result(other, "adaptive", fake.PGD, settings=settings)
    note = missing(other, plain, hidden_gradient)
    assert f"--workdir={other} --suite=all --adaptive_budget=thorough --num" in note
    assert "plain' --suite=all --num" in note
    fake.write_result(plain, "autoattack", fake.PGD, warnings=["a gradient is zero"])
    assert "--suite=diagnostics" in missing(plain)
    (notes,) = notes_of(plain)
    assert "AA: a gradient is zero" in notes and any("test split" in one for one in notes)
    assert "ancra evaluate" in missing(fake.make_run(tmp_path / "fgsm", {"fgsm": fake.FGSM}))


def test_a_diagnosis_alone_has_its_verdict(tmp_path):
    fake.make_run(tmp_path / "run", {})
    fake.write_diagnosis(tmp_path / "run", verdict="trustworthy")
    (row,) = tables_in(tmp_path / "run")[CLAIM]
    assert (row["Diagnosis"], row["Worst case"]) == ("trustworthy", MISSING)
    assert any("10 examples" in one and "39.4%" in one for one in notes_of(tmp_path / "run")[0])


def test_the_terminal_shows_what_is_in_the_directory(hidden_gradient, capsys):
    fake.write_adaptive(hidden_gradient, (1,) * 2 + (0,) * 8)
    fake.write_diagnosis(hidden_gradient)
    read_evaluation(str(hidden_gradient), "best").print()
    printed = capsys.readouterr().out
    assert printed.index("20.00%") < printed.index("PGD-40")
    shown = ("AA", "FGSM (heads)", "a2-yk", "argmax f = c_2", "not run", "masked", "step 20")
    assert all(text in printed for text in shown)
