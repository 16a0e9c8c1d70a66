"""Work directories as they are read: what belongs together, what is damaged, what can be wrong."""

import json
import re

import pytest

from ancra_jax.errors import UsageError
from ancra_jax.results.load import load_evaluation, load_runs
from ancra_jax.results.names import attack_order, display_name
from ancra_jax.results.rows import rows_of, seeds_rows
from tests.support.fake_runs import EXAMPLES, PAPER, make_run, write_diagnosis, write_result


def rows_in(*workdirs):
    return rows_of(load_runs(list(workdirs)))


def test_names_of_attacks():
    names = ["natural", "pgd40", "pgd100_with_p", "cw3", "fgsm_with_p", "autoattack", "square"]
    names += ["autoattack_plus", "adaptive", "pgdx"]
    shown = ["Nat", "PGD-40", "PGD-100 (heads)", "C&W-3", "FGSM (heads)", "AA", "square"]
    shown += ["AA-plus", "Adaptive", "pgdx"]
    assert [display_name(name) for name in names] == shown
    order = ["natural", "pgd20", "pgd100", "autoattack", "square", "pgd20_with_p", "adaptive"]
    assert sorted(reversed(order), key=attack_order) == order


def test_the_order_of_attacks_is_that_of_tables_not_of_files(tmp_path):
    make_run(tmp_path / "run", PAPER | {"autoattack": PAPER["fgsm"], "cw40": PAPER["fgsm"]})
    evaluation = load_evaluation(str(tmp_path / "run"), "best")
    assert list(evaluation.results) == ["natural", "pgd40", "fgsm", "cw40", "autoattack"]


COMMANDS = {
    "autoattack": "",
    "autoattack_plus": " --suite=autoattack --autoattack_version=plus",
    "adaptive": " --suite=adaptive",
}


@pytest.mark.parametrize("attack", COMMANDS)
@pytest.mark.parametrize("num_examples", [10, 5])
def test_the_commands_of_an_evaluation(tmp_path, attack, num_examples):
    workdir = make_run(tmp_path / "run", PAPER | {attack: PAPER["fgsm"][:num_examples]})
    (row,) = rows_in(workdir)
    command = f"python -m ancra_jax.evaluate --workdir={workdir}"
    suite = COMMANDS[attack] or " --suite=autoattack" * (num_examples == 5)
    expected = [f"{command} --num_examples=10 --seed=7"]
    if suite:
        expected.append(f"{command}{suite} --num_examples={num_examples} --seed=7")
    assert list(row.evaluate) == expected


def test_the_command_of_adaptive_attacks_has_their_budget_and_sources(tmp_path):
    make_run(tmp_path / "run", {})
    sources = [{"name": "plain", "method": "trades", "step": 9}]
    settings = {"norm": "linf", "epsilon": 0.1, "budget": "quick", "transfer_from": sources}
    write_result(tmp_path / "run", "adaptive", PAPER["fgsm"], "last_ema", settings=settings)
    (row,) = rows_in(str(tmp_path / "run"))
    flags = "--checkpoint=last --weights=ema --suite=adaptive --adaptive_budget=quick"
    assert row.evaluate[0].endswith(f"{flags} --transfer_from=plain --num_examples=10 --seed=7")


def test_labels_tell_runs_apart(tmp_path):
    workdirs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", seed=1),
        make_run(tmp_path / "c", method="pgd_at", seed=2),
        make_run(tmp_path / "d", method__beta=3.0, seed=3),
        make_run(tmp_path / "e", method="pgd_at", data__name="cifar10"),
    ]
    labels = ["trades, beta=6.0"] * 2 + [
        "pgd_at on digits",
        "trades, beta=3.0",
        "pgd_at on cifar10",
    ]
    assert [run.label for run in load_runs(workdirs)] == labels


def test_only_rows_that_differ_in_the_seed_alone_are_put_together(tmp_path):
    """A row of other examples, epsilon, data or attacks is no seed of the first."""
    short = {name: correct[:8] for name, correct in PAPER.items()}
    first = make_run(tmp_path / "a")
    for number, (results, config) in enumerate(
        [(short, {}), (PAPER, {"evaluation__epsilon": 8 / 255}), (PAPER, {"data__name": "cifar10"})]
    ):
        other = make_run(tmp_path / f"b{number}", {}, seed=1, **config)
        settings = {"norm": "linf", "epsilon": config.get("evaluation__epsilon", 0.1)}
        data = config.get("data__name", "digits")
        for attack, correct in results.items():
            write_result(other, attack, correct, settings=settings, data=data)
        assert seeds_rows(rows_in(first, other)) == []
    more = make_run(tmp_path / "more", PAPER | {"cw40": PAPER["fgsm"]}, seed=1)
    (seeds,) = seeds_rows(rows_in(first, more))
    assert seeds.seeds == (0, 1) and set(seeds.accuracy) == set(PAPER)
    assert seeds.worst_case is None and seeds.mean == {}


def test_results_of_another_state_of_the_run_are_left_out_with_a_note(tmp_path):
    path = tmp_path / "run"
    make_run(path)
    write_result(path, "cw40", (0,) * EXAMPLES, step=10)
    write_result(path, "pgd100", (0,) * EXAMPLES, settings={"norm": "l2", "epsilon": 0.1})
    write_diagnosis(path, data_fingerprint="4567")
    evaluation = load_evaluation(str(path), "best")
    assert set(evaluation.results) == set(PAPER) and evaluation.diagnosis is None
    assert [one.split()[0] for one in evaluation.notes] == ["PGD-100", "C&W-40", "the"]
    assert "step 10" in evaluation.notes[1] and "--suite=diagnostics" in evaluation.notes[2]


def damage_npz(path):
    file = path / "evaluation/best/fgsm.npz"
    file.write_bytes(file.read_bytes()[:100])


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
        (lambda path: edit_json(path, accuracy=0.9), "fgsm.json says 90"),
        (lambda path: edit_json(path, schema=99), "schema 99"),
        (damage_npz, "fgsm.npz"),
        (lambda path: (path / "evaluation/best/fgsm.npz").write_bytes(b""), "fgsm.npz"),
        (lambda path: (path / "evaluation/best/fgsm.npz").unlink(), "fgsm.npz"),
        (lambda path: write_diagnosis(path, rows=[{"name": "incomplete"}]), "diagnostics.json"),
        (lambda path: write_diagnosis(path, epsilon_curve={"epsilons": [0]}), "diagnostics.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    workdir = make_run(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UsageError, match=re.escape(message)):
        load_runs([workdir])


def test_a_killed_run_may_leave_its_last_line_unfinished(tmp_path):
    workdir = make_run(tmp_path / "run")
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    assert len(load_runs([workdir])[0].curves) == 4


def test_what_a_user_can_get_wrong(tmp_path):
    workdir = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match=r"--workdirs.*'nowhere'"):
        load_runs([workdir, "nowhere"])
    with pytest.raises(UsageError, match=rf"--workdirs.*{workdir}/.*twice"):
        load_runs([workdir, f"{workdir}/"])
    empty = make_run(tmp_path / "empty", {}, curves=False)
    with pytest.raises(UsageError, match=rf"--workdirs.*{empty}"):
        load_runs([empty])
