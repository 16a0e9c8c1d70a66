import functools
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.attacks.adaptive.api import BUDGETS
from ancra_jax.attacks.autoattack import driver as autoattack_run
from ancra_jax.attacks.diagnostics import landscape as diagnostics_landscape
from ancra_jax.attacks.diagnostics import measurements
from ancra_jax.attacks.success import judge
from ancra_jax.errors import UsageError
from ancra_jax.evaluate import autoattack as autoattack_suite
from ancra_jax.evaluate import paper as paper_suite
from ancra_jax.evaluate.suites import evaluate
from ancra_jax.evaluate.summary import print_table
from ancra_jax.results.load import load_runs
from ancra_jax.results.statistics import fooled_attacks
from ancra_jax.results.store import ResultStore
from ancra_jax.run.files import read_arrays
from ancra_jax.train.loop import train
from tests.support import ENVIRONMENT
from tests.support.small_runs import small_config

EPSILON = 0.06  # of the attacks in evaluation: leaves some to each, and breaks some


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A network with reverse attention that has learnt enough to be attacked."""
    path = tmp_path_factory.mktemp("evaluated") / "run"
    enough = {"epochs": 8, "selection__every_epochs": 4, "data__train_examples": 800}
    easy = {"attack__epsilon": 0.02, "attack__num_steps": 1}
    config = small_config("trades_ra", **enough, **easy, evaluation__epsilon=EPSILON)
    train(config, str(path))
    return path


NAMES = ["natural", "fgsm", "pgd3", "cw3", "fgsm_with_p", "pgd3_with_p", "cw3_with_p"]


def arrays_of(workdir, name, checkpoint="best"):
    return read_arrays(workdir / f"evaluation/{checkpoint}/{name}.npz")


def test_results_and_their_files_agree(workdir):
    results = evaluate(str(workdir), suite="quick")
    assert [result["attack"] for result in results] == NAMES
    for result in results:
        file = json.loads((workdir / f"evaluation/best/{result['attack']}.json").read_text())
        assert file == result
        arrays = arrays_of(workdir, result["attack"])
        assert result["num_examples"] == len(arrays["labels"]) == 40
        correct = arrays["predictions"] == arrays["labels"]
        np.testing.assert_array_equal(arrays["correct"], correct)
        assert result["accuracy"] == correct.mean()
        assert result["num_correct"] == correct.sum()
        assert arrays["norms"].max() <= EPSILON + 1e-6
        assert {"jax", "ancra-jax"} <= set(result["versions"])
    assert not np.any(arrays_of(workdir, "natural")["norms"])


def test_finished_results_are_kept_and_other_settings_refused(workdir, monkeypatch):
    before = evaluate(str(workdir), suite="quick")

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(paper_suite, "_attack", never)
    assert evaluate(str(workdir), suite="quick") == before
    with pytest.raises(UsageError, match=r"num_examples=40, asked for is num_examples=20: --force"):
        evaluate(str(workdir), suite="quick", num_examples=20)
    monkeypatch.undo()
    assert (
        evaluate(str(workdir), suite="quick", num_examples=20, force=True)[0]["num_examples"] == 20
    )


def test_an_interrupted_evaluation_continues_to_the_same_numbers(workdir, monkeypatch):
    evaluate(str(workdir), suite="quick", force=True)  # one batch of 40
    expected = {name: arrays_of(workdir, name) for name in NAMES}
    calls = []
    original = paper_suite._attack

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(paper_suite, "SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(paper_suite, "_attack", interrupted)
    for name in NAMES:
        (workdir / f"evaluation/best/{name}.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(workdir), suite="quick", batch_size=16)
    (partial,) = (workdir / "evaluation/best").glob("*.partial.npz")
    whole = partial.read_bytes()
    partial.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"partial\.npz: is damaged"):
        evaluate(str(workdir), suite="quick", batch_size=16)
    partial.write_bytes(whole)
    evaluate(str(workdir), suite="quick", batch_size=16)
    # 40 examples are 3 batches of 16; the first attack did its first one only once.
    assert len(calls) == 3 * len(NAMES) + 1
    assert not list((workdir / "evaluation/best").glob("*.partial.npz"))
    for name in NAMES:
        found = arrays_of(workdir, name)
        for key, value in expected[name].items():
            np.testing.assert_allclose(found[key], value, atol=1e-6, err_msg=f"{name} {key}")


def test_the_last_checkpoint_is_evaluated_beside_the_best(workdir):
    result = evaluate(str(workdir), suite="quick", checkpoint="last")[0]
    assert result["step"] == 8 * (800 - 32) // 32 and result["checkpoint"] == "last"
    assert (workdir / "evaluation/last/natural.json").exists()


def test_a_network_without_heads_is_not_attacked_through_them(tmp_path):
    train(small_config("trades", epochs=1), str(tmp_path / "run"))
    assert [r["attack"] for r in evaluate(str(tmp_path / "run"), suite="quick")] == NAMES[:4]


def test_what_cannot_be_evaluated_is_refused(workdir, tmp_path):
    with pytest.raises(UsageError, match=r"--num_examples=41: the test split has 40"):
        evaluate(str(workdir), suite="quick", num_examples=41)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(UsageError, match="has no best checkpoint yet"):
        evaluate(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        evaluate(str(tmp_path))


def test_accuracy_above_the_natural_one_is_called_out():
    (warning,) = fooled_attacks({"natural": 0.8, "fgsm": 0.5, "pgd40": 0.85})
    assert "pgd40 leaves 85.00%, more than the natural accuracy 80.00%" in warning


def test_the_table_shows_the_worst_case_first(workdir, capsys):
    results = evaluate(str(workdir), suite="quick")
    store = ResultStore(workdir, "best")
    print_table(small_config("trades_ra"), results, store)
    printed = capsys.readouterr().out
    survivors = np.logical_and.reduce([arrays_of(workdir, name)["correct"] for name in NAMES])
    assert f"robust accuracy: {survivors.mean():.2%}" in printed
    assert printed.index("robust accuracy") < printed.index("pgd3")


@pytest.mark.slow
def test_autoattack_is_a_column_of_the_paper_suite_and_resumable(workdir, monkeypatch):
    options = {"num_examples": 6, "batch_size": 4, "checkpoint": "last"}
    quick = {"num_steps": 4, "num_queries": 30, "n_target_classes": 2}
    monkeypatch.setattr(
        autoattack_suite, "autoattack", functools.partial(autoattack_suite.autoattack, **quick)
    )
    result = evaluate(str(workdir), suite="paper", force=True, **options)[-1]
    assert result["attack"] == "autoattack"
    arrays = arrays_of(workdir, "autoattack", "last")
    assert result["accuracy"] == arrays["correct"].mean()
    assert list(result["accuracy_after"]) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert set(arrays["broken_by"][arrays["correct"]]) <= {""}
    natural = arrays_of(workdir, "natural", "last")["correct"]
    assert not (arrays["correct"] & ~natural).any()
    assert evaluate(str(workdir), suite="autoattack", **options) == [result]
    assert not list((workdir / "evaluation/last").glob("*.state"))


@pytest.mark.slow
def test_diagnostics_compare_what_is_in_the_store(workdir, monkeypatch, capsys):
    monkeypatch.setattr(measurements, "QUERIES", 10)
    monkeypatch.setattr(diagnostics_landscape, "NOISE_DRAWS", 3)
    monkeypatch.setattr(measurements, "TARGETS", 1)
    monkeypatch.setattr(diagnostics_landscape, "LANDSCAPE_POINTS", 3)
    options = {"num_examples": 20, "checkpoint": "last"}
    evaluate(str(workdir), suite="quick", **options, force=True)
    (result,) = evaluate(str(workdir), suite="diagnostics", **options)
    assert result["verdict"] in ("trustworthy", "suspicious", "masked")
    assert set(NAMES) <= set(result["compared_with"])
    assert not {"white-box", "transfer"} & set(result["compared_with"])
    arrays = arrays_of(workdir, "diagnostics", "last")
    assert arrays["landscape_losses"].shape == (4, 3, 3)
    assert arrays["landscape_offsets"].shape == (3,)
    curve = result["epsilon_curve"]
    assert len(curve["epsilons"]) == len(curve["accuracy"])
    np.testing.assert_allclose(arrays["curve_correct"].mean(axis=0), curve["accuracy"])
    accuracies = [r["accuracy"] for r in evaluate(str(workdir), suite="quick", **options)]
    assert curve["accuracy"][0] == result["clean_accuracy"] == accuracies[0]
    by_name = {row["name"]: row for row in result["rows"]}
    above = by_name["robust accuracy above clean accuracy"]
    assert above["value"] >= max(accuracies[1:]) - accuracies[0] - 1e-9
    assert by_name["adaptive attack beats AutoAttack"]["fired"] is None
    assert not list((workdir / "evaluation/last").glob("*.state"))

    store = ResultStore(workdir, "last")
    print_table(small_config("trades_ra"), [result], store)
    printed = capsys.readouterr().out
    assert f"diagnosis: {result['verdict']}" in printed and "not run" in printed
    assert "made before" not in printed
    print_table(small_config("trades_ra"), [result | {"compared_with": NAMES[:-1]}], store)
    assert f"made before the results of {NAMES[-1]}: --force" in capsys.readouterr().out
    (run,) = load_runs([str(workdir)])  # a report does not take it for an attack
    last = next(one for one in run.evaluations if one.checkpoint == "last")
    assert "diagnostics" not in last.results and "natural" in last.results


TINY = attacks.AdaptiveBudget(
    num_steps=2, num_targets=1, num_restarts=1, num_queries=4, exhaustive=False
)


def shorten(patch):
    """AutoAttack and the adaptive attacks with next to no steps."""
    full = autoattack_suite.autoattack

    def one_attack(*args, version, **options):
        return full(*args, version="custom", attacks_to_run=["apgd-ce"], num_steps=2, **options)

    patch.setattr(autoattack_suite, "autoattack", one_attack)
    patch.setitem(BUDGETS, "quick", TINY)


@pytest.fixture
def tiny_attacks(monkeypatch):
    shorten(monkeypatch)


@pytest.mark.slow
def test_adaptive_attacks_on_a_work_directory(workdir, tmp_path, tiny_attacks, capsys, monkeypatch):
    options = {
        "suite": "adaptive", "num_examples": 8, "checkpoint": "last", "adaptive_budget": "quick",
    }  # fmt: skip
    source = tmp_path / "plain"
    train(small_config("trades", epochs=1), str(source))
    options["transfer_from"] = [str(source)]
    now = [0.0]
    monkeypatch.setattr(autoattack_run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        autoattack_run, "judge", lambda *args: (now.append(now.pop() + 1), judge(*args))[1]
    )
    stopped = evaluate(str(workdir), force=True, max_minutes=2.5 / 60, **options)[-1]
    assert stopped["attack"] == "adaptive" and not stopped["complete"]
    assert "stopped after 2.5 s in a1-gate2-cross_entropy" in stopped["warnings"][-1]
    assert stopped["gate"] is None and len(stopped["attacks"]) == 3
    result = evaluate(str(workdir), **options)[-1]
    assert result["complete"] and result["warnings"] == []
    assert not list((workdir / "evaluation/last").glob("*.state"))
    assert evaluate(str(workdir), **options)[-1] == result  # finished: not computed again

    names = [record["name"] for record in result["attacks"]]
    assert {"a1-gate1-cross_entropy", "transfer-plain-ce", "warm-plain"} <= set(names)
    assert result["settings"]["transfer_from"] == [{"name": "plain", "method": "trades", "step": 4}]
    assert result["settings"]["defences"] == ["reverse_attention"]
    assert 0 <= result["gate"]["masks_agree"] <= 1
    arrays = arrays_of(workdir, "adaptive", "last")
    assert result["accuracy"] == arrays["correct"].mean() == result["attacks"][-1]["accuracy_after"]
    natural = arrays_of(workdir, "natural", "last")["correct"]
    assert not (arrays["correct"] & ~natural).any()
    broken = sum(record["broken"] for record in result["attacks"])
    assert broken == natural.sum() - arrays["correct"].sum()
    assert set(arrays["broken_by"]) <= {"", "clean", *names}

    results = evaluate(str(workdir), **options)
    store = ResultStore(workdir, "last")
    print_table(small_config("trades_ra"), results, store)
    printed = capsys.readouterr().out
    survivors = arrays["correct"] & arrays_of(workdir, "autoattack", "last")["correct"]
    assert f"robust accuracy: {survivors.mean():.2%}" in printed
    assert "that AutoAttack leaves are broken by adaptive attacks" in printed
    assert all(name in printed for name in names)


def killed_command(workdir, killed_at):
    """Runs ``evaluate --suite=adaptive``; killed where it would save its state the n-th time."""
    script = f"""
import os, signal
import pytest, tests.evaluate.test_evaluate as t
from ancra_jax import cli, evaluate
from ancra_jax.attacks.autoattack.state import Store

def save(self, state, saved=[], save=Store.save):
    saved.append(state)
    if len(saved) == {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, state)

Store.save = save
t.shorten(pytest.MonkeyPatch())
cli.run(evaluate.main, evaluate.define_flags)
"""
    flags = [
        f"--workdir={workdir}", "--suite=adaptive", "--adaptive_budget=quick", "--batch_size=4",
        "--num_examples=12", "--checkpoint=last",
    ]  # fmt: skip
    environment = ENVIRONMENT | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", script, *flags], env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_attacks", "quick_compilation")
def test_a_killed_suite_continues_to_the_same_flags(workdir, tmp_path):
    options = {"suite": "adaptive", "adaptive_budget": "quick", "num_examples": 12, "batch_size": 4}
    for name in ("whole", "killed"):
        shutil.copytree(workdir, tmp_path / name, ignore=lambda *_: ["evaluation"])
    whole = evaluate(str(tmp_path / "whole"), checkpoint="last", **options)[-1]
    killed = killed_command(tmp_path / "killed", killed_at=17)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    directory = tmp_path / "killed/evaluation/last"
    assert not (directory / "adaptive.json").exists()
    (state,) = directory.glob("adaptive.*.state/state.npz")
    with np.load(state) as half:
        assert 1 < half["attack"] < len(whole["attacks"]) - 1
    saved = state.read_bytes()
    state.write_bytes(saved[:100])
    with pytest.raises(UsageError, match=r"state\.npz is not a readable state .* delete"):
        evaluate(str(tmp_path / "killed"), checkpoint="last", **options)
    state.write_bytes(saved)
    found = evaluate(str(tmp_path / "killed"), checkpoint="last", **options)[-1]
    assert not list(directory.glob("*.state"))
    for name in ("attacks", "accuracy_after", "accuracy", "warnings", "complete"):
        assert found[name] == whole[name], name
    assert found["gate"] == pytest.approx(whole["gate"], rel=1e-4)
    arrays = arrays_of(tmp_path / "killed", "adaptive", "last")
    expected = arrays_of(tmp_path / "whole", "adaptive", "last")
    assert 0 < expected["correct"].mean() < 1 and len(set(expected["broken_by"])) > 3
    for name in ("correct", "broken_by", "target", "queries"):
        np.testing.assert_array_equal(arrays[name], expected[name], name)
    np.testing.assert_allclose(arrays["norms"], expected["norms"], atol=1e-6)


@pytest.mark.slow
def test_a_plain_network_declares_no_surrogate(tmp_path, tiny_attacks):
    train(small_config("trades", epochs=1), str(tmp_path / "run"))
    options = {"suite": "adaptive", "num_examples": 4, "adaptive_budget": "quick"}
    result = evaluate(str(tmp_path / "run"), **options)[-1]
    assert [record["name"] for record in result["attacks"]] == ["square-margin"]
    assert "declares no surrogate: it was attacked by Square; " in result["warnings"][0]
    assert result["gate"] is None


def test_what_cannot_be_transferred_from(workdir, tmp_path):
    suite = functools.partial(evaluate, str(workdir), suite="adaptive", num_examples=4)
    with pytest.raises(UsageError, match=r"--transfer_from=nowhere: holds no run"):
        suite(transfer_from=["nowhere"])
    values = json.loads((workdir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"--transfer_from=.*: has no best checkpoint yet"):
        suite(transfer_from=[str(tmp_path)])
    values["data"]["name"] = "cifar10"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"--transfer_from=.*: is a run on cifar10, not digits"):
        suite(transfer_from=[str(tmp_path)])
    with pytest.raises(UsageError, match=r"another directory is called run too"):
        suite(transfer_from=[str(workdir), str(workdir)])
