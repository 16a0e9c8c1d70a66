"""Work directories as they are read: what belongs together, what is damaged, what can be wrong."""

import json
import re

import pytest

from ancra_jax.errors import UsageError
from ancra_jax.results.load import load_evaluation, load_runs
from ancra_jax.results.names import APGD, attack_order, display_name
from ancra_jax.results.rows import rows_of, seeds_rows
from tests.support.fake_runs import EXAMPLES, PAPER, make_run, write_diagnosis, write_result


def rows_in(*workdirs):
    return rows_of(load_runs(list(workdirs)))


def test_names_of_attacks():
    names = ["natural", "pgd40", "pgd100_with_p", "cw3", "fgsm_with_p", "autoattack", "square"]
    names += ["autoattack_plus", "adaptive", "pgdx", "cw20_released"]
    shown = ["Nat", "PGD-40", "PGD-100 (heads)", "C&W-3", "FGSM (heads)", "AA", "square"]
    shown += ["AA-plus", "Adaptive", "pgdx", "C&W-20 (released)"]
    assert [display_name(name) for name in names] == shown
    order = ["natural", "pgd20", "pgd100", "autoattack", "square", "pgd20_with_p", "adaptive"]
    assert sorted(reversed(order), key=attack_order) == order


QUICK = " --suite=quick --num_examples=10"


@pytest.mark.parametrize(
    ("attack", "num_examples", "flags"),
    [
        ("autoattack", 10, [" --num_examples=10"]),
        ("autoattack", 5, [QUICK, " --suite=autoattack --num_examples=5"]),
        (
            "autoattack_plus",
            5,
            [QUICK, " --suite=autoattack --autoattack_version=plus --num_examples=5"],
        ),
        ("adaptive", 5, [QUICK, " --suite=adaptive --num_examples=5"]),
        ("apgd_t", 10, [" --suite=worst_case --num_examples=10"]),
    ],
)
def test_the_commands_of_an_evaluation(tmp_path, attack, num_examples, flags):
    workdir = make_run(tmp_path / "run", PAPER)
    settings = {"norm": "linf", "epsilon": 0.1}
    settings |= {"attacks_to_run": [APGD[attack]]} if attack in APGD else {}
    write_result(workdir, attack, PAPER["fgsm"][:num_examples], settings=settings)
    (row,) = rows_in(workdir)
    command = f"ancra evaluate --workdir={workdir}"
    assert list(row.evaluate) == [f"{command}{one} --seed=7" for one in flags]


def test_the_command_of_adaptive_attacks_has_their_budget_and_sources(tmp_path):
    make_run(tmp_path / "run", {})
    sources = [{"name": "plain", "method": "trades", "step": 9}]
    settings = {"norm": "linf", "epsilon": 0.1, "budget": "quick", "transfer_from": sources}
    write_result(tmp_path / "run", "adaptive", PAPER["fgsm"], "last_ema", settings=settings)
    (row,) = rows_in(str(tmp_path / "run"))
    flags = "--checkpoint=last --weights=ema --suite=adaptive --adaptive_budget=quick"
    assert row.evaluate[0].endswith(f"{flags} --transfer_from=plain --num_examples=10 --seed=7")


def test_one_command_computes_all_that_a_suite_has(tmp_path):
    """Run one after another, commands must not leave results that the next one is refused for."""
    workdir = make_run(tmp_path / "run", PAPER)
    write_result(workdir, "apgd_ce", PAPER["fgsm"], settings={"attacks_to_run": ["apgd-ce"]})
    write_result(workdir, "adaptive", PAPER["fgsm"], settings={"budget": "quick"})
    command = f"ancra evaluate --workdir={workdir}"
    (row,) = rows_in(workdir)
    flags = "--suite=worst_case --adaptive_budget=quick --num_examples=10 --seed=7"
    assert row.evaluate == (f"{command} {flags}",)

    write_result(workdir, "adaptive", PAPER["fgsm"][:5], settings={"budget": "quick"})
    (row,) = rows_in(workdir)
    assert [one.removeprefix(f"{command} --suite=") for one in row.evaluate] == [
        "quick --num_examples=10 --seed=7",
        "apgd --num_examples=10 --seed=7",
        "adaptive --adaptive_budget=quick --num_examples=5 --seed=7",
    ]


def test_labels_tell_runs_apart(tmp_path):
    workdirs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", seed=1),
        make_run(tmp_path / "c", method="pgd_at", seed=2),
        make_run(tmp_path / "d", method__beta=3.0, seed=3),
        make_run(tmp_path / "e", method="pgd_at", data__name="cifar10"),
    ]
    labels = ["trades, beta=6.0", "trades, beta=6.0", "pgd_at on digits", "trades, beta=3.0"]
    assert [run.label for run in load_runs(workdirs)] == [*labels, "pgd_at on cifar10"]


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
    assert set(evaluation.records) == set(PAPER) and evaluation.diagnosis is None
    assert [one.split()[0] for one in evaluation.notes] == ["PGD-100", "C&W-40", "the"]
    assert "step 10" in evaluation.notes[1] and "--suite=diagnostics" in evaluation.notes[2]


RESULT = "evaluation/best/fgsm"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b'{"nam": 1}', "cannot be read: config.nam"),
        ("config.json", None, "holds no run"),
        ("metrics.jsonl", b"\xff\xfe", "metrics.jsonl"),
        ("metrics.jsonl", b"{\n{\n{\n", "metrics.jsonl"),
        ("metrics.jsonl", b"[1]\n", "metrics.jsonl"),
        ("metrics.jsonl", b'{"kind": "train"}', "metrics.jsonl"),
        ("metrics.jsonl", b'{"kind": "x", "step": 1, "epoch": 1, "a": null}\n', "metrics.jsonl"),
        (f"{RESULT}.json", b"{", "fgsm.json"),
        (f"{RESULT}.json", {"accuracy": "high"}, "fgsm.json: accuracy='high'"),
        (f"{RESULT}.json", {"attack": "cw40"}, "fgsm.json: holds the attack 'cw40'"),
        (f"{RESULT}.json", {"checkpoint": "last"}, "fgsm.json: is of the checkpoint 'last'"),
        (f"{RESULT}.json", {"num_examples": 11}, "fgsm.json: num_examples is 11"),
        (f"{RESULT}.json", {"accuracy": 0.9}, "fgsm.json: accuracy is 90"),
        (f"{RESULT}.json", {"schema": 99}, "schema 99"),
        (f"{RESULT}.npz", b"PK\3\4", "fgsm.npz"),
        (f"{RESULT}.npz", b"", "fgsm.npz"),
        (f"{RESULT}.npz", None, "fgsm.npz"),
        ("evaluation/best/diagnostics.json", {"rows": [{"name": "x"}]}, "diagnostics.json"),
        ("evaluation/best/diagnostics.json", {"epsilon_curve": {}}, "diagnostics.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, damage, message):
    workdir = make_run(tmp_path / "run")
    write_diagnosis(workdir)
    path = tmp_path / "run" / file
    if damage is None:
        path.unlink()
    elif isinstance(damage, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    else:
        path.write_bytes(damage)
    with pytest.raises(UsageError, match=re.escape(message)):
        load_runs([workdir])


def test_a_killed_run_may_leave_its_last_line_unfinished(tmp_path):
    workdir = make_run(tmp_path / "run")
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    assert len(load_runs([workdir])[0].curves) == 4


def test_what_a_user_can_get_wrong(tmp_path):
    workdir = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match="--workdirs=nowhere"):
        load_runs([workdir, "nowhere"])
    with pytest.raises(UsageError, match=rf"--workdirs.*{workdir}.*twice"):
        load_runs([workdir, f"{workdir}/"])
    empty = make_run(tmp_path / "empty", {}, curves=False)
    with pytest.raises(UsageError, match=rf"--workdirs.*{empty}"):
        load_runs([empty])
