"""The report on fake work directories: its numbers, what it says of them, and what it refuses."""

import base64
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy.stats import binomtest

from ancra_jax.errors import UsageError
from ancra_jax.report import figures as report_figures
from ancra_jax.report.write import main, report
from ancra_jax.results.names import attack_order, display_name
from ancra_jax.results.statistics import wilson_interval
from ancra_jax.run.files import write_arrays
from tests.support.fake_runs import EXAMPLES, FGSM, NATURAL, PAPER, PGD, make_run, write_result


@pytest.fixture
def figures():
    """Asked for by the tests that look at figures."""


@pytest.fixture(autouse=True)
def without_figures(request, monkeypatch):
    """Drawing takes most of a report's time."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(report_figures, "draw", lambda runs, rows: {})


def numbers(output):
    return json.loads((output / "report.json").read_text())


def cells(text, title):
    """The rows of the table under a title, by header."""
    section = text.split(f"## {title}")[1].split("\n- ")[0].split("##")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def test_the_table(tmp_path):
    text = report([make_run(tmp_path / "run")], str(tmp_path / "out"))
    (row,) = cells(text, "Without p")
    low, high = binomtest(4, 10).proportion_ci(method="wilson")
    assert row == {
        "Model": "trades",
        "Seed": "0",
        "Checkpoint": "best",
        "Worst case [95 %]": f"**40.00** [{100 * low:.2f}, {100 * high:.2f}]",
        "Nat": "90.00",
        "PGD-40": "50.00",
        "FGSM": "70.00",
        "Mean": "60.00",
    }
    assert list(row)[3:] == ["Worst case [95 %]", "Nat", "PGD-40", "FGSM", "Mean"]
    assert "digits, 10 examples, epsilon linf 0.1" in text
    assert "worst case over PGD-40, FGSM" in text
    assert "No row was evaluated with AutoAttack" in text
    assert "With p" not in text and "†" not in text
    assert text in (tmp_path / "out/report.md").read_text()


def test_the_json_holds_the_numbers(tmp_path):
    workdir = make_run(tmp_path / "run")
    report([workdir], str(tmp_path / "out"))
    (row,) = numbers(tmp_path / "out")["rows"]
    assert row["accuracy"] == {"natural": 0.9, "pgd40": 0.5, "fgsm": 0.7}
    assert row["worst_case"]["num_correct"] == 4
    assert row["worst_case"]["attacks"] == ["pgd40", "fgsm"]
    assert row["step"] == 20 and row["seed"] == 0 and row["provenance"]["seed"] == ["7"]
    assert row["evaluate"] == [
        f"python -m ancra_jax.evaluate --workdir={workdir} --num_examples=10 --seed=7"
    ]


def test_attacks_with_p_get_their_own_table_and_count_in_the_worst_case(tmp_path):
    with_p = (0, 1, 1, 1, 1, 1, 0, 0, 0, 0)
    results = PAPER | {"pgd40_with_p": with_p, "fgsm_with_p": FGSM}
    workdirs = [
        make_run(tmp_path / "ra", results, method="trades_ra"),
        make_run(tmp_path / "plain"),
    ]
    text = report(workdirs, str(tmp_path / "out"))
    first, second = cells(text, "Without p")
    (row,) = cells(text, "With p")
    assert first["Model"] == row["Model"] == "trades_ra" and second["Model"] == "trades"
    assert first["Worst case [95 %]"].startswith("**30.00**")  # of all attacks, in both tables
    assert row["Worst case [95 %]"] == first["Worst case [95 %]"]
    assert (first["Mean"], row["Mean"]) == ("60.00", "60.00")
    assert (row["PGD-40"], row["FGSM"]) == ("50.00", "70.00")
    assert "trades_ra (seed 0, best checkpoint): worst case over PGD-40, FGSM, PGD-40 (p)" in text
    assert "trades (seed 0, best checkpoint): worst case over PGD-40, FGSM." in text


def test_autoattack_counts_in_both_tables(tmp_path):
    path = tmp_path / "run"
    make_run(path, PAPER | {"cw40": PGD, "pgd40_with_p": FGSM}, method="trades_ra")
    write_result(path, "autoattack", (1,) * 2 + (0,) * 8, warnings=["a gradient is zero"])
    text = report([str(path)], str(tmp_path / "out"))
    (row,) = cells(text, "Without p")
    assert list(row)[4:] == ["Nat", "PGD-40", "FGSM", "C&W-40", "AA", "Mean"]
    assert row["AA"] == "20.00" and row["Worst case [95 %]"].startswith("**20.00**")
    assert row["Mean"] == "47.50"  # of 50, 70, 50, 20
    (row,) = cells(text, "With p")
    assert list(row)[4:] == ["Nat", "PGD-40", "AA", "Mean"]
    assert (row["PGD-40"], row["AA"], row["Mean"]) == ("70.00", "20.00", "45.00")
    assert "No row was evaluated with AutoAttack" not in text
    assert "AA: a gradient is zero" in text


def test_attacks_of_other_suites_become_columns_and_count_in_the_worst_case(tmp_path):
    others = {"branch_forced": (1,) * 3 + (0,) * 7, "autoattack_plus": PGD}
    text = report([make_run(tmp_path / "run", PAPER | others)], str(tmp_path / "out"))
    (row,) = cells(text, "Without p")
    assert list(row)[4:] == ["Nat", "PGD-40", "FGSM", "AA-plus", "branch_forced", "Mean"]
    assert row["Worst case [95 %]"].startswith("**30.00**")
    assert row["Mean"] == "56.67"  # of PGD, FGSM and AutoAttack


@pytest.mark.parametrize(
    ("attack", "num_examples", "flags"),
    [
        ("autoattack", 10, []),
        ("autoattack", 5, [" --suite=autoattack --num_examples=5 --seed=7"]),
        (
            "autoattack_plus",
            10,
            [" --suite=autoattack --autoattack_version=plus --num_examples=10 --seed=7"],
        ),
    ],
)
def test_the_commands_of_an_evaluation(tmp_path, attack, num_examples, flags):
    workdir = make_run(tmp_path / "run", PAPER | {attack: PGD[:num_examples]})
    report([workdir], str(tmp_path / "out"))
    command = f"python -m ancra_jax.evaluate --workdir={workdir}"
    assert numbers(tmp_path / "out")["rows"][0]["evaluate"] == [
        f"{command} --num_examples=10 --seed=7",
        *(command + more for more in flags),
    ]


def test_the_command_of_adaptive_attacks_has_their_budget_and_sources(tmp_path):
    make_run(tmp_path / "run")
    sources = [{"name": "plain", "method": "trades", "step": 9}]
    settings = {"norm": "linf", "epsilon": 0.1, "budget": "quick", "transfer_from": sources}
    write_result(tmp_path / "run", "adaptive", FGSM, settings=settings)
    report([str(tmp_path / "run")], str(tmp_path / "out"))
    command = numbers(tmp_path / "out")["rows"][0]["evaluate"][-1]
    flags = "--adaptive_budget=quick --transfer_from=plain --num_examples=10 --seed=7"
    assert command.endswith(f"run --suite=adaptive {flags}")


def test_an_attack_above_the_natural_accuracy_is_marked(tmp_path):
    text = report(
        [make_run(tmp_path / "run", PAPER | {"fgsm": (1,) * EXAMPLES})], str(tmp_path / "out")
    )
    (row,) = cells(text, "Without p")
    assert row["FGSM"] == "100.00†" and row["Mean"] == "75.00†"
    assert row["PGD-40"] == "50.00" and row["Nat"] == "90.00"
    assert re.search(r"- † trades .*fgsm leaves 100.00%, more than the natural accuracy 90", text)
    assert list(numbers(tmp_path / "out")["rows"][0]["fooled_attacks"]) == ["fgsm"]


def test_best_and_last_are_rows_of_their_own(tmp_path, figures):
    path = tmp_path / "run"
    make_run(path)
    for attack in PAPER:
        write_result(path, attack, PGD, "last", step=30)
    text = report([str(path)], str(tmp_path / "out"))
    assert [row["Checkpoint"] for row in cells(text, "Without p")] == ["best", "last"]
    assert {figure.name for figure in (tmp_path / "out").glob("*.png")} == {
        "curves.png",
        "ladder_run_best.png",
        "ladder_run_last.png",
    }


def test_several_seeds_are_averaged(tmp_path):
    workdirs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", PAPER | {"pgd40": NATURAL}, seed=1),
        make_run(tmp_path / "c", method="pgd_at", seed=2),  # another method
        make_run(tmp_path / "d", method__beta=3.0, seed=3),  # another setting of the method
    ]
    text = report(workdirs, str(tmp_path / "out"))
    rows = cells(text, "Without p")
    assert len(rows) == 5
    assert [row["Model"] for row in rows[:4]] == [
        "trades, beta=6.0",
        "trades, beta=6.0",
        "pgd_at",
        "trades, beta=3.0",
    ]
    assert rows[4]["Model"] == "trades, beta=6.0" and rows[4]["Seed"] == "2 seeds"
    std = 100 * np.std([0.5, 0.9], ddof=1)
    assert rows[4]["PGD-40"] == f"70.00 ± {std:.2f}"
    std = 100 * np.std([0.4, 0.7], ddof=1)
    assert rows[4]["Worst case [95 %]"] == f"**55.00 ± {std:.2f}**"
    (seeds,) = numbers(tmp_path / "out")["seeds"]
    assert seeds["seeds"] == [0, 1] and seeds["accuracy"]["natural"] == {"mean": 0.9, "std": 0.0}


@pytest.mark.parametrize(
    ("config", "results", "column"),
    [
        ({}, {name: correct[:8] for name, correct in PAPER.items()}, "Examples"),
        ({"evaluation__epsilon": 8 / 255}, PAPER, "Epsilon"),
        ({"data__name": "cifar10"}, PAPER, "Data"),
    ],
)
def test_unlike_rows_are_not_mixed_silently(tmp_path, config, results, column):
    workdirs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", {}, seed=1, **config)]
    epsilon = config.get("evaluation__epsilon", 0.1)
    for attack, correct in results.items():
        settings = {"norm": "linf", "epsilon": epsilon}
        data = config.get("data__name", "digits")
        write_result(tmp_path / "b", attack, correct, settings=settings, data=data)
    text = report(workdirs, str(tmp_path / "out"))
    rows = cells(text, "Without p")
    assert rows[0][column] != rows[1][column]
    assert "not of one evaluation" in text
    assert len(rows) == 2 and not numbers(tmp_path / "out")["seeds"]


def test_attacks_on_fewer_examples_meet_on_the_first(tmp_path):
    path = tmp_path / "run"
    make_run(path)
    # All right: on these four the natural accuracy is 100 % as well, so nothing is fooled.
    write_result(path, "autoattack", (1, 1, 1, 1))
    text = report([str(path)], str(tmp_path / "out"))
    (row,) = cells(text, "Without p")
    assert row["AA"] == "100.00"
    assert numbers(tmp_path / "out")["rows"][0]["worst_case"]["num_examples"] == 4
    assert "AA 4); the worst case and the ladder are of the first 4" in text
    (ladder,) = cells(text, "From the claim to the worst case")
    assert ladder["Examples"] == "4" and ladder["Worst case [95 %]"].startswith("**100.00**")
    assert {ladder[name] for name in ("Nat", "FGSM", "PGD", "AutoAttack")} == {"100.00"}


def test_no_rung_is_below_the_worst_case(tmp_path):
    """The last six examples, which not all attacks saw, would put FGSM far below the rest."""
    path = tmp_path / "run"
    make_run(path, {"natural": NATURAL, "fgsm": (1,) * 4 + (0,) * 6, "pgd40": PGD})
    write_result(path, "autoattack", (1, 1, 1, 0, 0))
    write_result(path, "adaptive", (1, 1, 0, 1))
    text = report([str(path)], str(tmp_path / "out"))
    (row,) = cells(text, "From the claim to the worst case")
    expected = {"Nat": 100.0, "FGSM": 100.0, "PGD": 100.0, "AutoAttack": 75.0, "Adaptive": 75.0}
    assert {name: float(row[name]) for name in expected} == expected
    assert row["Worst case [95 %]"].startswith("**50.00**") and row["Examples"] == "4"
    assert "the first examples of the test split, as many as all attacks" in text
    (content,) = numbers(tmp_path / "out")["rows"]
    assert min(content["common_accuracy"].values()) >= content["worst_case"]["accuracy"]
    assert content["accuracy"]["fgsm"] == 0.4  # of all ten, in the tables of single attacks
    assert cells(text, "Without p")[0]["FGSM"] == "40.00"


def test_results_of_another_step_are_left_out(tmp_path):
    path = tmp_path / "run"
    make_run(path)
    write_result(path, "cw40", (0,) * EXAMPLES, step=10)
    text = report([str(path)], str(tmp_path / "out"))
    (row,) = cells(text, "Without p")
    assert "C&W-40" not in row and row["Worst case [95 %]"].startswith("**40.00**")
    assert "C&W-40 is of another checkpoint, epsilon or data set (step 10) and left out" in text


def test_without_an_evaluation_there_are_dashes_and_the_command(tmp_path, figures):
    workdirs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", {}, seed=1)]
    text = report(workdirs, str(tmp_path / "out"))
    row = cells(text, "Without p")[1]
    assert "Examples" not in row
    assert {row[name] for name in ("Worst case [95 %]", "Nat", "PGD-40", "Mean")} == {"—"}
    assert f"not evaluated yet. Run `python -m ancra_jax.evaluate --workdir={workdirs[1]}`" in text


@pytest.mark.parametrize("missing", ["natural", "attacks"])
def test_there_is_no_worst_case_without_the_natural_images_or_an_attack(tmp_path, missing):
    results = {"fgsm": FGSM} if missing == "natural" else {"natural": NATURAL}
    text = report([make_run(tmp_path / "run", results)], str(tmp_path / "out"))
    assert cells(text, "Without p")[0]["Worst case [95 %]"] == "—"
    assert "no worst case without" in text


def test_selection_on_the_test_split_is_said(tmp_path):
    text = report([make_run(tmp_path / "run", data__selection_split="test")], str(tmp_path / "out"))
    assert "chosen on the test split" in text


def test_the_page_is_self_contained(tmp_path, figures):
    workdir = make_run(tmp_path / "<run>&co", PAPER | {"fgsm": (1,) * EXAMPLES})
    report([workdir], str(tmp_path / "out"))
    page = (tmp_path / "out/report.html").read_text()
    images = re.findall(r'src="([^"]+)"', page)
    assert len(images) == 2
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert "href=" not in page and "<script" not in page
    decoded = Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2])))
    assert decoded.size == Image.open(tmp_path / "out/curves.png").size
    assert "<strong>50.00</strong>" in page and "100.00†" in page
    assert "&lt;run&gt;&amp;co" in page and "<run>" not in page
    for what in ("step of the checkpoint", "device", "commit", "versions", "--num_examples=10"):
        assert what in page


def test_figures_of_namesakes_do_not_replace_each_other(tmp_path, figures):
    workdirs = [make_run(tmp_path / "a/run"), make_run(tmp_path / "b/run", seed=1)]
    report(workdirs, str(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("ladder_*.png"))) == 2


def test_report_files_are_replaced_and_others_kept(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("old")
    (out / "notes.txt").write_text("mine")
    report([make_run(tmp_path / "run")], str(out))
    assert "# Robustness report" in (out / "report.md").read_text()
    assert (out / "notes.txt").read_text() == "mine"
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(("correct", "examples"), [(0, 7), (7, 7), (1, 3), (5012, 10000)])
def test_wilson_interval(correct, examples):
    reference = binomtest(correct, examples).proportion_ci(method="wilson")
    np.testing.assert_allclose(
        wilson_interval(correct, examples), tuple(reference), rtol=1e-9, atol=1e-12
    )


def test_names_of_attacks():
    names = ["natural", "pgd40", "pgd100_with_p", "cw3", "fgsm_with_p", "autoattack", "square"]
    shown = ["Nat", "PGD-40", "PGD-100 (p)", "C&W-3", "FGSM (p)", "AA", "square"]
    assert [display_name(name) for name in names] == shown
    order = sorted(
        ["pgd100", "square", "pgd20_with_p", "autoattack", "pgd20", "natural"],
        key=lambda name: attack_order(name, ("Nat", "PGD", "AA")),
    )
    assert order == ["natural", "pgd20", "pgd100", "autoattack", "square", "pgd20_with_p"]


def damage_npz(path):
    file = path / "evaluation/best/fgsm.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = b""
    file.write_bytes(data)


def edit_json(path, **changes):
    file = path / "evaluation/best/fgsm.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").write_text("{"), "config.json"),
        (lambda path: (path / "config.json").write_text('{"nam": 1}'), "config.json: config.nam"),
        (lambda path: (path / "config.json").unlink(), "holds no run"),
        (lambda path: (path / "metrics.jsonl").write_bytes(b"\xff\xfe"), "metrics.jsonl"),
        (lambda path: (path / "metrics.jsonl").write_text("{\n{\n{\n"), "metrics.jsonl"),
        (lambda path: (path / "metrics.jsonl").write_text("[1]\n"), "metrics.jsonl"),
        (lambda path: (path / "metrics.jsonl").write_text('{"kind": "train"}'), "metrics.jsonl"),
        (lambda path: (path / "evaluation/best/fgsm.json").write_text("{"), "fgsm.json"),
        (lambda path: edit_json(path, accuracy="high"), "fgsm.json: accuracy='high'"),
        (lambda path: edit_json(path, attack="cw40"), "fgsm.json: holds the attack 'cw40'"),
        (lambda path: edit_json(path, num_examples=11), "fgsm.json says 11 examples"),
        (lambda path: edit_json(path, accuracy=0.9), "not of one evaluation"),
        (lambda path: edit_json(path, schema=99), "schema 99"),
        (damage_npz, "fgsm.npz: is damaged"),
        (lambda path: (path / "evaluation/best/fgsm.npz").write_bytes(b""), "fgsm.npz: is damaged"),
        (lambda path: (path / "evaluation/best/fgsm.npz").unlink(), "fgsm.npz: is missing"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    workdir = make_run(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UsageError, match=re.escape(message)):
        report([workdir], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_killed_run_may_leave_its_last_line_unfinished(tmp_path):
    workdir = make_run(tmp_path / "run")
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    report([workdir], str(tmp_path / "out"))


def test_what_a_user_can_get_wrong(tmp_path):
    workdir = make_run(tmp_path / "run")
    out = str(tmp_path / "out")
    with pytest.raises(UsageError, match="no directory 'nowhere'"):
        report([workdir, "nowhere"], out)
    with pytest.raises(UsageError, match="is there twice"):
        report([workdir, f"{workdir}/"], out)
    with pytest.raises(UsageError, match="must name directories"):
        report([workdir, ""], out)
    with pytest.raises(UsageError, match="neither training metrics nor an evaluation"):
        report([make_run(tmp_path / "empty", {}, curves=False)], out)
    with pytest.raises(UsageError, match="cannot be written"):
        report([workdir], f"{workdir}/config.json")


def test_the_command(tmp_path):
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    completed = subprocess.run(
        [sys.executable, "-m", "ancra_jax.report", f"--workdirs={run}", f"--output={out}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith("Accuracy in %")
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("workdirs", "output", "message"),
    [([], "out", "--workdirs is missing"), (["run"], None, "--output is missing")],
)
def test_flags_that_are_missing(workdirs, output, message):
    values = flags.FlagValues()
    flags.DEFINE_list("workdirs", workdirs, "", flag_values=values)
    flags.DEFINE_string("output", output, "", flag_values=values)
    values.mark_as_parsed()
    with pytest.raises(UsageError, match=message):
        main(values)


def diagnosis(workdir, verdict="masked", **overrides):
    """Writes what ``evaluate --suite=diagnostics`` would."""
    check = {"name": "one step beats many", "threshold": 0.002, "severity": "masked"}
    fired = check | {"value": 0.25, "fired": True, "meaning": "a single step breaks more"}
    not_run = check | {"name": "adaptive attack beats AutoAttack", "value": None, "fired": None}
    write_result(workdir, "diagnostics", NATURAL)
    directory = workdir / "evaluation" / "best"
    record = json.loads((directory / "diagnostics.json").read_text())
    del record["accuracy"], record["num_correct"]
    record |= {
        "verdict": verdict,
        "rows": [fired, not_run | {"meaning": "quote the adaptive worst case"}],
        "epsilon_curve": {
            "attack": "APGD",
            "epsilons": [0.0, 8 / 255, 0.5, 1.0],
            "accuracy": [0.9, 0.5, 0.6, 0.0],
        },
    } | overrides
    (directory / "diagnostics.json").write_text(json.dumps(record))
    offsets = np.linspace(-0.2, 0.2, 5, dtype=np.float32)
    losses = np.random.default_rng(0).random((2, 5, 5), np.float32)
    write_arrays(
        directory / "diagnostics.npz", {"landscape_offsets": offsets, "landscape_losses": losses}
    )


ADAPTIVE = (1,) * 2 + (0,) * 8
ATTACKS = [
    {"name": "a1-gate2", "attacked": 9, "broken": 6, "accuracy_after": 0.3, "own_accuracy": None},
    {"name": "a2-yk", "attacked": 3, "broken": 0, "accuracy_after": 0.3, "own_accuracy": 0.4},
    {"name": "a6-square", "attacked": 3, "broken": 1, "accuracy_after": 0.2, "own_accuracy": 0.7},
]


GATE = {
    "final_is_last_mask": 0.9, "masks_agree": 1.0, "masks_agree_adversarial": None,
    "last_mask_changes": 0.875, "gradient_cosine": -0.25,
    "depth": 3.0,  # a defence of one's own has numbers of its own
}  # fmt: skip


@pytest.fixture
def hidden_gradient(tmp_path):
    """A network with reverse attention whose claim is far from its worst case."""
    above = (1,) * 10
    others = {"autoattack": FGSM, "fgsm_with_p": FGSM, "pgd40_with_p": PGD}
    workdir = tmp_path / "ra"
    make_run(workdir, PAPER | others | {"pgd40": above}, method="trades_ra")
    return workdir


def test_the_ladder_goes_from_the_claim_to_the_worst_case(tmp_path, hidden_gradient):
    write_result(hidden_gradient, "adaptive", ADAPTIVE, attacks=ATTACKS, gate=GATE)
    diagnosis(hidden_gradient)
    text = report([str(hidden_gradient)], str(tmp_path / "out"))
    (row,) = cells(text, "From the claim to the worst case")
    assert row.pop("Worst case [95 %]").startswith("**20.00**")
    assert row == {
        "Model": "trades_ra",
        "Seed": "0",
        "Checkpoint": "best",
        "Nat": "90.00",
        "FGSM": "70.00",
        "PGD": "100.00",
        "AutoAttack": "70.00",
        "With p": "40.00",  # what neither of the two attacks breaks
        "Adaptive": "20.00",
        "Diagnosis": "masked",
    }
    assert text.index("From the claim") < text.index("Without p")
    assert "upper bound" not in text and "not diagnosed" not in text
    attacks = cells(text, "Adaptive attacks that broke examples")
    assert [(one["Attack"], one["Broke"], one["Tried on"]) for one in attacks] == [
        ("a1-gate2", "6", "9"),
        ("a6-square", "1", "3"),
    ]
    assert attacks[1]["By it alone"] == "70.00"
    (gate,) = cells(text, "What hides the gradient")
    assert list(gate.values())[:3] == ["trades_ra", "0", "best"]
    assert list(gate.items())[3:] == [
        ("argmax f = c_2", "90.00"), ("c_1 = c_2", "100.00"), ("c_2 flipped *", "87.50"),
        ("Cosine", "-0.25"), ("depth", "3.00"),
    ]  # fmt: skip
    assert "c_2 flipped: of how many broken examples the last mask" in text
    (checks,) = cells(text, "Diagnostics")
    assert checks["Verdict"] == "**masked**"
    assert checks["Checks that fired"] == "one step beats many (0.25, allowed 0.002)"
    assert checks["Not run"] == "adaptive attack beats AutoAttack"
    assert "- Diagnostics, one step beats many: a single step breaks more." in text
    for title in ("Without p", "With p: the attacker"):  # the adaptive attacks are in both
        assert cells(text, title)[0]["Adaptive"] == "20.00"
    content = numbers(tmp_path / "out")["rows"][0]
    assert content["rungs"]["With p"] == 0.4
    assert content["diagnosis"]["verdict"] == "masked"
    assert any(command.endswith("--suite=adaptive --num_examples=10 --seed=7")
               for command in content["evaluate"])  # fmt: skip


def test_without_the_adaptive_attacks_reverse_attention_has_an_upper_bound(
    tmp_path, hidden_gradient
):
    plain = make_run(tmp_path / "plain")
    text = report([plain, str(hidden_gradient)], str(tmp_path / "out"))
    command = f"python -m ancra_jax.evaluate --workdir={hidden_gradient} --suite=adaptive"
    assert f"attack made for that was run. Run `{command}`." in text
    assert text.count("upper bound") == 1
    command = f"python -m ancra_jax.evaluate --workdir={plain} --suite=diagnostics"
    assert f"not diagnosed. Run `{command}`" in text
    rows = cells(text, "From the claim to the worst case")
    assert [row["Diagnosis"] for row in rows] == ["—", "—"]
    assert rows[0]["With p"] == "—"


def test_seeds_have_a_ladder_with_their_spread(tmp_path):
    one = make_run(tmp_path / "one", PAPER | {"adaptive": ADAPTIVE})
    two = make_run(tmp_path / "two", PAPER | {"adaptive": (1,) * 4 + (0,) * 6}, seed=1)
    text = report([one, two], str(tmp_path / "out"))
    last = cells(text, "From the claim to the worst case")[-1]
    assert last["Seed"] == "2 seeds"
    assert last["Adaptive"] == f"30.00 ± {100 * np.std([0.2, 0.4], ddof=1):.2f}"


def test_a_diagnosis_of_another_step_is_left_out(tmp_path, hidden_gradient):
    diagnosis(hidden_gradient, step=10)
    text = report([str(hidden_gradient)], str(tmp_path / "out"))
    assert "the diagnosis is of another checkpoint or data set and left out" in text
    assert cells(text, "From the claim to the worst case")[0]["Diagnosis"] == "—"


def test_a_diagnosis_alone_has_its_verdict(tmp_path):
    make_run(tmp_path / "run", {})
    diagnosis(tmp_path / "run", verdict="trustworthy")
    text = report([str(tmp_path / "run")], str(tmp_path / "out"))
    (row,) = cells(text, "From the claim to the worst case")
    assert (row["Diagnosis"], row["Worst case [95 %]"]) == ("trustworthy", "—")
    assert "trustworthy as far as 10 examples tell; what concerns less than 39.4% of them" in text
    assert "not evaluated yet" in text


def test_a_damaged_diagnosis_is_named(tmp_path, hidden_gradient):
    diagnosis(hidden_gradient, rows=[{"name": "incomplete"}])
    with pytest.raises(UsageError, match=r"diagnostics\.json: is not what the diagnostics write"):
        report([str(hidden_gradient)], str(tmp_path / "out"))


def test_figures_of_the_diagnostics(tmp_path, hidden_gradient, figures):
    diagnosis(hidden_gradient)
    report([str(hidden_gradient)], str(tmp_path / "out"))
    for name in ("epsilon.png", "landscape_ra_best.png", "ladder_ra_best.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 300
            assert np.asarray(image.convert("L")).std() > 5
