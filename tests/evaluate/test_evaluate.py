"""Suites on a trained network: their files, what they keep, and that stops change no number."""

import dataclasses
import functools
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.cli.progress import Bar
from ancra_jax.errors import UsageError
from ancra_jax.evaluate import paper as paper_suite
from ancra_jax.evaluate import run, suites
from ancra_jax.ops.files import read_arrays
from ancra_jax.paper import figures
from ancra_jax.results.examples import load_details
from ancra_jax.results.load import load_evaluation, load_runs
from ancra_jax.results.names import STRENGTH_ORDER, attack_order
from ancra_jax.run.trained import load
from ancra_jax.train.loop import train
from tests.support.processes import ends_of, start_several
from tests.support.short_attacks import short_attacks
from tests.support.small_runs import small_config

EPSILON = 0.06  # of the attacks in evaluation: leaves some to each, and breaks some
CONFIG = small_config(
    "trades_ra", epochs=8, selection__every_epochs=4, data__train_examples=800,
    attack__epsilon=0.02, attack__num_steps=1, evaluation__epsilon=EPSILON,
)  # fmt: skip
NAMES = ["natural", "fgsm", "pgd3", "cw3", "fgsm_with_p", "pgd3_with_p", "cw3_with_p"]


def evaluate(*arguments, **options):
    """The results of an evaluation, as their JSON files hold them."""
    return run(*arguments, **options).results


@pytest.fixture(scope="module", autouse=True)
def short():
    """AutoAttack, adaptive attacks and diagnostics with next to no steps."""
    with short_attacks():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A network with reverse attention that has learnt enough to be attacked."""
    path = tmp_path_factory.mktemp("evaluated") / "run"
    train(CONFIG, str(path))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A network without auxiliary heads."""
    path = tmp_path_factory.mktemp("plain") / "plain"
    train(small_config("trades", epochs=1), str(path))
    return path


@pytest.fixture(scope="module")
def adaptive(plain):
    """Evaluates the last checkpoint with the options of the slow suites."""
    options = {"num_examples": 12, "batch_size": 4, "checkpoint": "last"}
    options |= {"adaptive_budget": "quick", "transfer_from": [str(plain)]}
    return functools.partial(evaluate, **options)


@pytest.fixture(scope="module")
def everything(workdir, adaptive):
    """All results of the last checkpoint, by name."""
    return {result["attack"]: result for result in adaptive(str(workdir), suite="all")}


def arrays_of(workdir, name, checkpoint="best"):
    return read_arrays(workdir / f"evaluation/{checkpoint}/{name}.npz")


def test_results_and_their_files_agree(workdir, plain):
    headless = evaluate(str(plain), suite="quick")
    assert [result["attack"] for result in headless] == NAMES[:4]
    results = evaluate(str(workdir), suite="quick")
    assert [result["attack"] for result in results] == NAMES
    for result in results:
        file = json.loads((workdir / f"evaluation/best/{result['attack']}.json").read_text())
        assert file == result
        arrays = arrays_of(workdir, result["attack"])
        assert result["num_examples"] == len(arrays["labels"]) == 40
        correct = arrays["predictions"] == arrays["labels"]
        np.testing.assert_array_equal(arrays["correct"], correct)
        assert (result["accuracy"], result["num_correct"]) == (correct.mean(), correct.sum())
        assert arrays["norms"].max() <= EPSILON + 1e-6
        assert {"jax", "ancra-jax"} <= set(result["versions"])
    assert not np.any(arrays_of(workdir, "natural")["norms"])
    check_examples(workdir, "best")


def check_examples(workdir, checkpoint):
    """What is kept of single examples says the same as the results, and a few of each are kept."""
    evaluation = load_evaluation(str(workdir), checkpoint)
    details = load_details(str(workdir), evaluation)
    assert details.classes == tuple("0123456789") and 2 <= len(details.examples) <= 40
    order = sorted(evaluation.correct, key=lambda name: attack_order(name, STRENGTH_ORDER))
    survived = np.logical_and.reduce(list(evaluation.correct.values()))
    for one in details.examples:
        before = order[: order.index(one.attack)]
        assert all(evaluation.correct[name][one.index] for name in before)
        assert evaluation.correct[one.attack][one.index] != bool(one.broken_by)
        assert bool(one.broken_by) != survived[one.index]
        natural, adversarial = one.logits.argmax(axis=1)
        assert natural == one.label == details.labels[one.index]
        assert (adversarial == one.label) == survived[one.index]
        if one.attack in details.predictions:
            assert details.predictions[one.attack][one.index] == adversarial
        change = one.adversarial - one.natural / np.float32(255)
        assert one.natural.dtype == np.uint8 and one.adversarial.dtype == np.float32
        assert np.abs(change).max() <= EPSILON + 1e-6 and bool(one.broken_by) <= change.any()
    assert {one.broken_by for one in details.examples} > {""}
    return {one.attack for one in details.examples}


def test_attacks_of_the_authors_code_are_results_of_their_own(plain):
    results = [
        {result["attack"]: result["num_correct"] for result in evaluate(str(plain), **options)}
        for options in (
            {"suite": "released"},
            {"suite": "released", "batch_size": 16, "force": True},
        )
    ]
    assert list(results[0]) == ["natural", "fgsm_released", "cw20_released"]
    assert results[0] == results[1]  # the examples of a sum are those of the script, not of a batch


def test_finished_results_are_kept_and_other_settings_refused(workdir, monkeypatch):
    before = evaluate(str(workdir), suite="quick")
    monkeypatch.setattr(paper_suite, "attack", None)  # nothing is computed again
    assert evaluate(str(workdir), suite="quick") == before
    with pytest.raises(UsageError, match=r"num_examples=40.*num_examples=20.*--force"):
        evaluate(str(workdir), suite="quick", num_examples=20)
    monkeypatch.undo()
    results = evaluate(str(workdir), suite="quick", num_examples=20, force=True)
    assert {result["num_examples"] for result in results} == {20}


def test_an_interrupted_evaluation_continues_to_the_same_numbers(workdir, monkeypatch):
    evaluate(str(workdir), suite="quick", force=True)  # one batch of 40
    expected = {name: arrays_of(workdir, name) for name in NAMES}
    kept = {name: arrays_of(workdir, f"{name}.examples") for name in NAMES[1:]}
    calls = []
    original = paper_suite.attack

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(paper_suite, "SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(paper_suite, "attack", interrupted)
    for name in NAMES:
        (workdir / f"evaluation/best/{name}.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(workdir), suite="quick", batch_size=16)
    (partial,) = (workdir / "evaluation/best").glob("*.partial.npz")
    whole = partial.read_bytes()
    partial.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"partial\.npz"):
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
    for name, arrays in kept.items():
        found = arrays_of(workdir, f"{name}.examples")
        np.testing.assert_array_equal(found["indices"], arrays["indices"])
        # Where a gradient is all but 0, its sign is that of a rounding.
        differing = np.abs(found["adversarial"] - arrays["adversarial"]) > 1e-6
        assert differing.mean() < 0.02


def test_what_cannot_be_evaluated_is_refused(workdir, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"--num_examples=41: .* 40"):
        evaluate(str(workdir), suite="quick", num_examples=41)
    useless = {"autoattack_version": "plus", "adaptive_budget": "quick", "max_minutes": 3.0}
    with pytest.raises(UsageError, match=r"^--epsilon=9\.0: .* at most 8,"):
        evaluate(str(workdir), suite="quick", norm="l2", epsilon=9.0, **useless)
    lines = capsys.readouterr().out.splitlines()
    for name, line in zip(useless, lines, strict=True):
        assert line.startswith("warning: --" + name) and line.endswith("--suite=quick")
    shutil.copy(workdir / "config.json", tmp_path)
    with pytest.raises(UsageError, match=r"--workdir=.* best"):
        evaluate(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json"):
        evaluate(str(tmp_path))


def test_distances_of_features_are_kept(workdir, plain):
    (result,) = evaluate(str(workdir), suite="features")
    found = load_evaluation(str(workdir), "best").features
    assert found.record == result
    assert found.measured == ["z", "z_masked"] and len(found.classes) == 10
    assert found.attacks == ["adversarial", "adversarial_heads"]
    pairs = sum(result["counts"]) ** 2 - sum(count**2 for count in result["counts"])
    for feature in found.measured:
        assert found.histogram(feature, "l2", "others")[1].sum() == pairs
        assert found.histogram(feature, "l2", "adversarial_heads")[1].sum() == 40
        for number in (found.mean(feature, "cosine", one) for one in ("others", "adversarial")):
            assert -1 <= number.low <= number.value <= number.high <= 1
    under = result["accuracy_under"]
    assert under["natural"] > under["adversarial_heads"]
    evaluate(str(plain), suite="features", num_examples=20)
    found = load_evaluation(str(plain), "best").features
    assert found.measured == ["z"] and found.attacks == ["adversarial"]


def test_a_final_prediction_follows_the_wrong_mask_that_is_forced(workdir):
    drawn = figures.heads([str(workdir)])
    (model,) = drawn.content["models"]
    first, second, final = model["heads"]
    assert model["num_examples"] == 32  # as in training, without a batch that is not full
    for head in (second, final):
        assert head["follows_on_images"]["value"] > 0.9 and head["follows_on_noise"]["value"] > 0.9
        assert head["natural"]["value"] < first["natural"]["value"]
    assert first["follows_on_images"]["high"] < 0.5  # is computed before any mask
    assert final["negatives_matched"] is None  # TRADES-RA has no negatives


def test_a_list_of_attacks_is_called_by_its_names(plain):
    attack = functools.partial(evaluate, str(plain), num_examples=8, checkpoint="last")
    (result,) = attack(attacks=["apgd-ce", "square"])
    assert result["attack"] == "custom_apgd_ce_square"
    assert list(result["attack_seconds"]) == ["apgd-ce", "square"]
    assert result["settings"]["attacks_to_run"] == ["apgd-ce", "square"]
    with pytest.raises(UsageError, match=r"--attacks: .*'pgd' is none of apgd-ce"):
        attack(attacks=["pgd"])


@pytest.mark.slow
def test_everything_is_evaluated_in_its_order_and_kept(workdir, adaptive, everything):
    assert list(everything) == [*NAMES, "autoattack", "adaptive", "diagnostics", "features"]
    assert {result["step"] for result in everything.values()} == {8 * (800 - 32) // 32}
    assert not list((workdir / "evaluation/last").glob("*.partial.*"))
    # What is finished is not computed again.
    for suite in ("paper", "autoattack", "adaptive", "diagnostics", "features"):
        more = {} if suite == "adaptive" else {"transfer_from": []}
        for result in adaptive(str(workdir), suite=suite, **more):
            assert result == everything[result["attack"]]


@pytest.mark.slow
def test_attacks_in_sequence_say_what_broke_every_example(workdir, everything):
    autoattack, adaptive = everything["autoattack"], everything["adaptive"]
    assert list(autoattack["accuracy_after"]) == ["clean", "apgd-ce", "square"]
    names = [record["name"] for record in adaptive["attacks"]]
    assert {"a1-gate1-cross_entropy", "transfer-plain-ce", "warm-plain"} <= set(names)
    settings = adaptive["settings"]
    (source,) = settings["transfer_from"]  # runs of one name are told apart by their weights
    assert len(source["fingerprint"]) >= 16
    expected = {"name": "plain", "method": "trades", "step": 4}
    assert source == expected | {"fingerprint": source["fingerprint"]}
    assert settings["defences"] == ["reverse_attention"] and adaptive["warnings"] == []
    assert adaptive["complete"] and 0 <= adaptive["gate"]["masks_agree"] <= 1
    natural = arrays_of(workdir, "natural", "last")["correct"]
    for result, used in ((autoattack, ["apgd-ce", "square"]), (adaptive, names)):
        arrays = arrays_of(workdir, result["attack"], "last")
        correct = arrays["correct"]
        assert result["accuracy"] == correct.mean() and not (correct & ~natural).any()
        assert set(arrays["broken_by"][correct]) <= {""}
        assert set(arrays["broken_by"]) <= {"", "clean", *used}
    assert correct.mean() == adaptive["attacks"][-1]["accuracy_after"]
    assert sum(one["broken"] for one in adaptive["attacks"]) == natural.sum() - correct.sum()
    check_examples(workdir, "last")
    for name in ("autoattack", "adaptive"):
        kept, arrays = (
            arrays_of(workdir, f"{name}.examples", "last"),
            arrays_of(workdir, name, "last"),
        )
        np.testing.assert_array_equal(kept["broken_by"], arrays["broken_by"][kept["indices"]])


@pytest.mark.slow
def test_diagnostics_compare_what_is_in_the_store(workdir, everything):
    result = everything["diagnostics"]
    assert result["verdict"] in ("trustworthy", "suspicious", "masked")
    assert set(result["compared_with"]) == {*NAMES, "autoattack", "adaptive"}
    arrays = arrays_of(workdir, "diagnostics", "last")
    assert arrays["landscape_losses"].shape == (4, 3, 3)
    assert arrays["landscape_offsets"].shape == (3,)
    curve = result["epsilon_curve"]
    np.testing.assert_allclose(arrays["curve_correct"].mean(axis=0), curve["accuracy"])
    accuracies = [everything[name]["accuracy"] for name in NAMES]
    assert curve["accuracy"][0] == result["clean_accuracy"] == accuracies[0]
    by_name = {row["name"]: row for row in result["rows"]}
    above = by_name["robust accuracy above clean accuracy"]
    assert above["value"] >= max(accuracies[1:]) - accuracies[0] - 1e-9
    assert by_name["adaptive attack beats AutoAttack"]["fired"] is not None
    evaluation = load_evaluation(str(workdir), "last")  # a report does not take it for an attack
    assert set(evaluation.records) == set(everything) - {"diagnostics", "features"}
    assert evaluation.diagnosis.verdict == result["verdict"] and not evaluation.notes


@pytest.mark.slow
def test_stopped_and_interrupted_a_suite_ends_with_the_same_flags(
    workdir, adaptive, everything, tmp_path, monkeypatch
):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy, ignore=lambda path, _: {"adaptive.json", "adaptive.npz"})
    suite = functools.partial(adaptive, str(copy), suite="adaptive")
    stopped = suite(max_minutes=1e-9)[-1]
    assert not stopped["complete"] and stopped["gate"] is None and stopped["warnings"]
    assert sum(record["attacked"] for record in stopped["attacks"]) == 0
    updates = []

    def interrupt(self, *args, **kwargs):
        updates.append(args)
        if len(updates) == 14:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Bar, "update", interrupt)
        suite()
    (state,) = (copy / "evaluation/last").glob("adaptive.*.state/state.npz")
    saved = state.read_bytes()
    state.write_bytes(saved[:100])
    with pytest.raises(UsageError, match=r"state\.npz"):
        suite()
    state.write_bytes(saved)
    found, whole = suite()[-1], everything["adaptive"]
    assert not list((copy / "evaluation/last").glob("*.state"))
    for name in ("attacks", "accuracy_after", "accuracy", "warnings", "complete"):
        assert found[name] == whole[name], name
    assert found["gate"] == pytest.approx(whole["gate"], rel=1e-4)
    arrays = arrays_of(copy, "adaptive", "last")
    expected = arrays_of(workdir, "adaptive", "last")
    assert 0 < expected["correct"].mean() < 1 and len(set(expected["broken_by"])) > 3
    for name in ("correct", "broken_by", "target", "queries"):
        np.testing.assert_array_equal(arrays[name], expected[name], name)
    np.testing.assert_allclose(arrays["norms"], expected["norms"], atol=1e-6)


@pytest.mark.slow
def test_a_worst_case_includes_apgd_and_the_attacks_on_a_defence_alone(
    workdir, plain, adaptive, everything, tmp_path
):
    apgd = ["apgd_ce", "apgd_t"]
    copy = shutil.copytree(workdir, tmp_path / "run")
    results = adaptive(str(copy), suite="worst_case")
    assert [result["attack"] for result in results] == [*NAMES, *apgd, "adaptive"]
    assert results[-1] == everything["adaptive"]
    for name, attack in zip(apgd, ("apgd-ce", "apgd-t"), strict=True):
        arrays = arrays_of(copy, name, "last")
        assert set(arrays["broken_by"]) <= {"", "clean", attack}
        assert not (arrays["correct"] & ~arrays_of(copy, "natural", "last")["correct"]).any()
    assert results == adaptive(str(copy), suite="worst_case")
    options = {"num_examples": 4, "checkpoint": "last"}
    results = evaluate(str(plain), suite="worst_case", **options)
    assert [result["attack"] for result in results] == [*NAMES[:4], *apgd]
    saved = str(tmp_path / f"{workdir.name}.safetensors")
    load(workdir).save(saved)
    options |= {"transfer_from": [saved], "adaptive_budget": "quick"}
    transfer = evaluate(str(plain), suite="worst_case", **options)[-1]
    name = workdir.name
    attacks = {f"transfer-{name}-ce", f"transfer-{name}-margin", f"warm-{name}", "square-margin"}
    assert {record["name"] for record in transfer["attacks"]} == attacks


@pytest.mark.slow
def test_a_plain_network_declares_no_surrogate(plain):
    options = {"num_examples": 4, "adaptive_budget": "quick", "force": True}
    result = evaluate(str(plain), suite="adaptive", **options)[-1]
    assert [record["name"] for record in result["attacks"]] == ["square-margin"]
    assert "Square" in result["warnings"][0] and result["gate"] is None


def test_what_cannot_be_transferred_from(workdir, tmp_path):
    suite = functools.partial(evaluate, str(workdir), suite="adaptive", num_examples=4)
    with pytest.raises(UsageError, match=r"--transfer_from=nowhere"):
        suite(transfer_from=["nowhere"])
    text = (workdir / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"--transfer_from=.* best"):
        suite(transfer_from=[str(tmp_path)])
    (tmp_path / "config.json").write_text(text.replace('"digits"', '"cifar10"'))
    with pytest.raises(UsageError, match=r"--transfer_from=.*cifar10.*digits"):
        suite(transfer_from=[str(tmp_path)])
    with pytest.raises(UsageError, match=r"--transfer_from=.*cifar10-trades-w8.*32.* must be"):
        suite(transfer_from=["cifar10-trades-w8"])
    with pytest.raises(UsageError, match=rf"--transfer_from={workdir}.* network is called run "):
        suite(transfer_from=[str(workdir), str(workdir)])
    for others in ({"suite": "quick"}, {"attacks": ["apgd-ce"]}):
        with pytest.raises(UsageError, match=rf"--transfer_from={workdir}: .*worst_case"):
            suite(transfer_from=[str(workdir)], **others)


def test_data_that_moved_are_read_there_and_must_be_the_same(workdir, tmp_path):
    places = []

    @data.register("moved")
    def load(options):
        places.append(options.data_dir)
        digits = data.load("digits")
        return dataclasses.replace(
            digits, test=data.Split(digits.test.images, digits.test.labels[::-1])
        )

    with pytest.raises(UsageError, match=r"--data_dir=/elsewhere: digits"):
        evaluate(str(workdir), data_dir="/elsewhere")
    copy = shutil.copytree(workdir, tmp_path / "run")
    text = (workdir / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"digits"', '"moved"'))
    with pytest.raises(UsageError, match=r"--data_dir=/elsewhere: .*fingerprint .*, was"):
        evaluate(str(copy), data_dir="/elsewhere", num_examples=8)
    assert places == ["/elsewhere"]
    (copy / "config.json").write_text(text.replace('"digits"', '"cifar10"'))
    with pytest.raises(UsageError, match=r"^--data_dir=/elsewhere: "):
        evaluate(str(copy), data_dir="/elsewhere")


def test_results_under_another_threat_model_stay_apart(plain, monkeypatch):
    own = evaluate(str(plain), suite="quick", force=True)
    others = {"best_linf_16of255": (16 / 255, "own"), "best_l2_0.3": (0.3, "l2")}
    for name, (epsilon, norm) in others.items():
        result = run(str(plain), suite="quick", epsilon=epsilon, norm=norm)
        (fgsm, pgd) = (one for one in result.results if one["attack"] in ("fgsm", "pgd3"))
        assert fgsm["checkpoint"] == name and fgsm["settings"]["epsilon"] == epsilon
        first = own[2]["settings"]
        scale = epsilon / first["epsilon"]
        assert pgd["settings"]["step_size"] == pytest.approx(first["step_size"] * scale)
        norms = arrays_of(plain, "pgd3", name)["norms"]
        assert 0.25 * epsilon < norms.max() <= epsilon + 1e-6
        assert result.row.epsilon == epsilon
        flags = f"--norm={'linf' if norm == 'own' else norm} --epsilon="
        assert all(flags in command for command in result.row.evaluate)
    (found,) = load_runs([str(plain)])
    assert {*others} < {one.checkpoint for one in found.evaluations}
    monkeypatch.setattr(paper_suite, "attack", None)  # nothing is computed again
    assert evaluate(str(plain), suite="quick", epsilon=own[0]["settings"]["epsilon"]) == own
    with pytest.raises(UsageError, match=r"--norm=l1: needs .*--epsilon"):
        evaluate(str(plain), norm="l1")


def test_a_network_whose_logits_overflow_is_refused(plain, monkeypatch):
    load = suites.load_run

    def huge(*args, **options):
        model = load(*args, **options)
        params = model.variables["params"]
        last = jax.tree.map(lambda one: jax.numpy.full_like(one, 3e38), params["fc"])
        variables = {**model.variables, "params": {**params, "fc": last}}
        return dataclasses.replace(model, variables=variables)

    monkeypatch.setattr(suites, "load_run", huge)
    for suite in ("quick", "apgd"):
        with pytest.raises(UsageError, match=r"NaN or infinite on .* natural images"):
            evaluate(str(plain), suite=suite, force=True, epsilon=0.2)


@pytest.mark.slow
def test_two_processes_evaluate_as_one_bit_for_bit(workdir, tmp_path):
    """One is killed on the way; every example gets the numbers that one process finds."""
    directories = [tmp_path / name for name in ("one", "two")]
    for directory in directories:
        shutil.copytree(workdir, directory, ignore=shutil.ignore_patterns("evaluation"))
    options = ("--adaptive_budget=quick", "--num_examples=13", "--batch_size=8")

    def start(directory, count, *flags):
        flags = (f"--workdir={directory}", *options, *flags)
        outputs = tmp_path / "outputs"
        return start_several(outputs, "evaluate", count, *flags, devices=2 // count)

    assert ends_of(start(directories[0], 1, "--suite=all"))[0] == [0]
    processes = start(directories[1], 2, "--suite=autoattack")
    found = directories[1] / "evaluation/best"
    while not list(found.glob("autoattack.*.state/state.npz")):
        assert processes[0].exitcode is None
        time.sleep(0.01)
    processes[0].kill()
    statuses, lines = ends_of(processes)
    assert statuses == [-signal.SIGKILL, 1] and lines[1].startswith("error: process")
    processes = start(directories[1], 2, "--suite=all", "--profile_steps=2:2")
    assert ends_of(processes)[0] == [0, 0]
    for process in ("process-0", "process-1"):
        assert list((directories[1] / "profile" / process).rglob("*.xplane.pb"))
    assert "natural" in (directories[1] / "logs/process-0.log").read_text()

    names = {file.name for file in (directories[0] / "evaluation/best").iterdir()}
    assert (
        names == {file.name for file in found.iterdir()}
        and {"features.npz", "cw20_released.npz"} < names
    )
    for name in sorted(names):
        one, two = (directory / "evaluation/best" / name for directory in directories)
        if name.endswith(".json"):
            one, two = (json.loads(file.read_text()) for file in (one, two))
            for entry in ("seconds", "created", "commit"):
                one.pop(entry), two.pop(entry)
            assert one == two
        else:
            one, two = read_arrays(one), read_arrays(two)
            assert one.keys() == two.keys()
            for key in one:
                np.testing.assert_array_equal(two[key], one[key], f"{name} {key}")
