"""The study of controls and variants: its commands, and its differences against NumPy."""

import json
import pathlib
import shlex

import numpy as np

from ancra_jax import methods
from ancra_jax.config import from_mapping
from ancra_jax.ops.files import append_json_line
from ancra_jax.paper import runs as runs_lib
from ancra_jax.paper.claims import STUDIED
from ancra_jax.paper.command import main, parse
from ancra_jax.paper.runs import runs_of
from ancra_jax.paper.study import write_study
from configs import digits
from tests.support.fake_runs import make_run, table_under, write_adaptive, write_result

NATURAL = [1, 1, 1, 1, 1, 0]
PGD = {  # of two seeds
    "trades": ([1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),
    "trades_shallow": ([1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]),
    "trades_margin": ([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]),
    "trades_soft_ra": ([1, 1, 1, 1, 1, 0],),
}


def test_every_row_is_trained_and_attacked_through_what_hides_its_gradient():
    runs = runs_of(parse(["variants", "--seeds=0,1"]))
    assert [run.row.method for run in runs] == 2 * list(STUDIED)  # pairs are whole early
    assert [run.seed for run in runs] == [0] * len(STUDIED) + [1] * len(STUDIED)
    for run in runs:
        train, evaluate = run.commands
        assert train[3] == f"--config=configs/digits.py:{run.row.method}"
        assert evaluate[-2:] == ("--suite=worst_case", "--adaptive_budget=quick")
        assert callable(methods.create(from_mapping(digits.get_config(run.row.method))).loss)


def test_differences_are_paired_by_seed_and_the_best_control_is_one_of_them(tmp_path):
    options = parse(["variants", "--seeds=0,1", f"--output={tmp_path}", f"--rows={','.join(PGD)}"])
    runs = runs_of(options)
    for run in runs:
        if run.seed < len(PGD[run.row.method]):
            broken = {"pgd40": PGD[run.row.method][run.seed]}
            make_run(
                tmp_path / f"digits/{run.row.method}-seed{run.seed}",
                {"natural": NATURAL} | broken,
                method=run.row.method,
                seed=run.seed,
            )
    masked = tmp_path / "digits/trades_soft_ra-seed0"
    options.report.mkdir()
    started = [run for run in runs if pathlib.Path(run.workdir).exists()]
    page = write_study(started, options)
    # Without the attacks through its masks a network with reverse attention has no worst case.
    assert "TRADES-SOFT-RA" not in page
    write_adaptive(masked, PGD["trades_soft_ra"][0])
    for attack in ("natural", "pgd40"):  # the rows are of the best checkpoints
        write_result(tmp_path / "digits/trades-seed0", attack, [1] * 6, "last")
    page = write_study(started, options)

    rows = {row.pop("Row"): row for row in table_under(page, "Controls and variants")}
    assert rows["TRADES-SOFT-RA"]["Natural"] == "83.33"
    assert rows["TRADES"]["Worst case"] == f"{25:.2f} ± {100 * np.std([1 / 3, 1 / 6], ddof=1):.2f}"
    assert [row["Seeds"] for row in rows.values()] == ["0, 1"] * 3 + ["0"]
    margin = np.mean(PGD["trades_margin"]) - np.mean(PGD["trades"])
    assert rows["TRADES-MARGIN"]["worst case − trades"].startswith(f"{100 * margin:+.2f} [")
    best = np.mean(PGD["trades_margin"]) - np.mean(PGD["trades_shallow"])
    assert rows["TRADES-MARGIN"]["worst case − trades_shallow"].startswith(f"{100 * best:+.2f} [")
    # Of one seed alone, the first, both sides are that seed's.
    assert rows["TRADES-SOFT-RA"]["worst case − trades"].startswith("+50.00 [")
    assert rows["TRADES-SOFT-RA"]["worst case − trades_shallow"].startswith("+0.00 [")
    study = json.loads((options.report / "study.json").read_text())
    assert study["best_control"] == "trades_shallow" and len(study["rows"]) == 4
    (found,) = [row for row in study["rows"] if row["method"] == "trades_margin"]
    difference = found["differences"]["trades_shallow"]["worst case"]
    assert difference["low"] <= difference["mean"] == best <= difference["high"]


def test_runs_whose_attacks_have_not_all_ended_are_left_out(tmp_path, monkeypatch, capsys):
    arguments = ["variants", "--seeds=0,1", f"--output={tmp_path}", "--rows=trades,trades_shallow"]
    options = parse(arguments)
    for run in runs_of(options):
        make_run(pathlib.Path(run.workdir), {"natural": NATURAL}, seed=run.seed)
        write_result(run.workdir, "fgsm", [1, 1, 1, 0, 0, 0])
        broken_off = run.title == "digits/trades_shallow, seed 1"
        for command in run.commands[: len(run.commands) - broken_off]:
            append_json_line(run.record, {"command": shlex.join(command[1:]), "seconds": 1})
    monkeypatch.setattr(runs_lib, "run_all", lambda runs: {})
    monkeypatch.setattr(runs_lib, "call", lambda command: 0)
    options.report.mkdir()
    assert main(arguments) == 0
    page = (options.report / "study.md").read_text()
    rows = {row["Row"]: row["Seeds"] for row in table_under(page, "Controls and variants")}
    assert rows == {"TRADES": "0, 1", "TRADES-SHALLOW": "0"}
    assert "digits/trades_shallow, seed 1" in page and page.strip() in capsys.readouterr().out


def test_coefficients_are_compared_by_the_best_checkpoints_on_the_selection_split(tmp_path):
    rows = "trades,trades_margin*"
    options = parse(["coefficients", "--seeds=0,1", f"--output={tmp_path}", f"--rows={rows}"])
    runs = runs_of(options)
    assert [len(run.commands) for run in runs] == [1] * 10  # nothing is attacked
    robust = {"margin=0.1": (0.5, 0.7), "margin=0.3": (0.6, 0.8)}  # by seed
    for run in runs:
        config = digits.get_config(run.row.method)
        assert callable(methods.create(from_mapping(config)).loss)
        make_run(pathlib.Path(run.workdir), {}, seed=run.seed)
        best = robust.get(run.row.method.partition(",")[2], (0.4, 0.4))[run.seed]
        record = {"step": 15, "epoch": 1.5, "natural_accuracy": 0.9, "robust_accuracy": best}
        append_json_line(
            pathlib.Path(run.workdir) / "metrics.jsonl", {"kind": "selection"} | record
        )
    options.report.mkdir()
    rows = {row.pop("Row"): row for row in table_under(write_study(runs, options), "Coefficients")}
    expected = f"{70:.2f} ± {100 * np.std([0.6, 0.8], ddof=1):.2f}"
    assert rows["trades_margin,margin=0.3"]["Robust"] == expected
    chosen = [name for name, row in rows.items() if row["Best of its method"] == "yes"]
    assert chosen == ["trades", "trades_margin,margin=0.3"]
