"""AutoAttack's driver: lists of attacks of one's own, time limits, interruptions, memory."""

import os
import shutil
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ancra_jax import attacks
from tests.attacks.test_autoattack import assert_same, useless
from tests.support import GOLDEN
from tests.support.processes import run_python
from tests.support.small_mlp import examples, mlp_model

SQUARES = ["square", attacks.Attack("again", attacks.square, options={"num_queries": 40})]
custom = partial(attacks.autoattack, epsilon=0.1, version="custom", progress=None)
two_squares = partial(custom, attacks_to_run=SQUARES, num_queries=8)
apgd_only = partial(custom, attacks_to_run=["apgd-ce", "apgd-t"], epsilon=0.03, num_steps=8)


def assert_equal(found, expected, atol=0.0, order=slice(None)):
    assert_same(found, expected, atol, order, ("robust", "broken_by", "target", "queries"))
    assert found.accuracies == expected.accuracies and found.records == expected.records


def test_every_attack_of_an_exhaustive_run_has_its_own_accuracy():
    evaluate = partial(two_squares, mlp_model(), *examples())
    cascade = evaluate()
    whole = evaluate(exhaustive=True, batch_size=4)
    alone = evaluate(attacks_to_run=SQUARES[1:])
    assert_same(cascade, whole, 1e-6)
    square, again = whole.records
    assert square.attacked == again.attacked == 9
    assert again.broken >= square.broken > 0
    assert again.own_accuracy == alone.robust_accuracy == (9 - again.broken) / 11
    by_again = whole.broken_by == "again"  # the same images as without ``square`` before it
    assert by_again.any()
    np.testing.assert_allclose(whole.images[by_again], alone.images[by_again], atol=1e-6)
    assert whole.robust_accuracy <= min(square.own_accuracy, again.own_accuracy)
    first, second = cascade.records
    assert first == square and cascade.accuracies["square"] == first.own_accuracy
    assert second.attacked == 9 - first.broken and second.own_accuracy is None
    assert second.accuracy_after == cascade.robust_accuracy


def test_individual_runs_equal_the_attacks_run_alone(tmp_path):
    images, labels = examples()
    squares = ["square:num_queries=8:num_restarts=2", "square:num_queries=40"]
    log = tmp_path / "logs" / "attacks.txt"
    evaluate = partial(custom, mlp_model(), images, labels)
    found = attacks.individually(
        mlp_model(), images, labels, epsilon=0.1, version="custom", progress=None,
        attacks_to_run=squares, state_path=tmp_path / "state", log_path=log,
    )  # fmt: skip
    assert list(found) == squares
    for name, result in found.items():
        assert_equal(result, evaluate(attacks_to_run=[name]))
        np.testing.assert_array_equal(result.predictions, mlp_model()(result.images).argmax(-1))
        assert np.all((result.predictions == labels) == result.robust)
        assert list(result.seconds) == [name] and result.seconds[name] > 0
        left = f"{result.robust_accuracy:.2%}"
        (line,) = [line for line in log.read_text().splitlines() if f" {name}: " in line]
        assert left in line and f"{result.records[0].broken} of 9" in line
    assert found[squares[0]].queries.max() > 8 + 3  # of both restarts
    assert found[squares[1]].robust_accuracy < 1 - 2 / 11
    assert (
        attacks.worst_case(list(found.values())).robust_accuracy
        <= found[squares[1]].robust_accuracy
    )


def test_square_alone_asks_for_no_gradient():
    images, labels = examples()
    model = mlp_model()

    @jax.custom_jvp
    def black_box(x):
        return model(x)

    @black_box.defjvp
    def refuse(primals, tangents):
        raise NotImplementedError("is no part of this model")

    options = {"attacks_to_run": ["square:num_queries=8"]}
    found = custom(black_box, images, labels, **options)
    assert_equal(found, custom(model, images, labels, **options))


def test_a_targeted_attack_of_an_exhaustive_run_aims_at_what_it_has_not_broken():
    seen = []

    def first_row_only(model, images, labels, threat_model, *, key, indices, active, targets):
        seen.append(np.asarray(indices)[np.asarray(active)])
        far = jnp.where(indices[:, None, None, None] == 5, wrong, images)
        return useless(far)

    images, labels = examples()
    wrong = jnp.asarray(images[np.flatnonzero(labels != labels[5])[-1]])
    chosen = [attacks.Attack(name, first_row_only, targeted=True) for name in ("near", "far")]
    custom(
        mlp_model(), images, labels, epsilon=1.0, attacks_to_run=chosen, n_target_classes=2,
        exhaustive=True,
    )  # fmt: skip
    everything = list(range(2, 11))
    remaining = [number for number in everything if number != 5]
    assert [rows.tolist() for rows in seen] == [everything, remaining, everything, remaining]


def test_targets_can_be_ranked_by_another_model():
    def lists_its_targets(model, images, labels, threat_model, *, targets, active, **_):
        seen.append(np.asarray(targets)[np.asarray(active)])
        return useless(images)

    images, labels = examples()
    for rank_by in (None, mlp_model(seed=1)):
        seen = []
        custom(
            mlp_model(), images, labels, n_target_classes=4, rank_by=rank_by,
            attacks_to_run=[attacks.Attack("targets", lists_its_targets, targeted=True)],
        )  # fmt: skip
        logits = np.array((rank_by or mlp_model())(jnp.asarray(images)))[2:]
        logits[np.arange(9), labels[2:]] = -np.inf
        np.testing.assert_array_equal(np.stack(seen, 1), np.argsort(-logits, axis=1)[:, :4])


@pytest.mark.parametrize(("stop_after", "bucket"), [(1, False), (4, False), (9, False), (9, True)])
def test_an_interrupted_evaluation_continues(tmp_path, monkeypatch, stop_after, bucket):
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    parts = "memory://bucket/parts" if bucket else tmp_path / "parts"
    evaluate = partial(apgd_only, mlp_model(), *examples(), batch_size=4, key=jax.random.key(5))
    batches = []
    whole = evaluate(state_path=tmp_path / "whole", progress=batches.append)

    def stop(progress):
        left.append(progress)
        if len(left) == stop_after:
            raise KeyboardInterrupt

    left = []
    with pytest.raises(KeyboardInterrupt):
        evaluate(state_path=parts, progress=stop)
    done_again = []
    resumed = evaluate(state_path=parts, progress=done_again.append)
    assert_equal(resumed, whole)
    assert_equal(evaluate(), whole)
    for name in () if bucket else ("state.npz", "images.npy"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(done_again) == len(batches) - stop_after
    # A finished evaluation is read, not repeated.
    finished = []
    assert_equal(evaluate(state_path=tmp_path / "whole", progress=finished.append), whole)
    assert finished == []


IMAGES = (np.arange(192) * 37 % 101 / np.float32(101)).astype(np.float32).reshape(6, 4, 4, 2)


def linear(images):
    return images.reshape(len(images), -1)[:, :5] * 3


LEFT = {  # what version 0.1 left in tests/golden/saved_states, interrupted by its progress
    "autoattack": partial(
        attacks.autoattack, version="plus", norm="L2", epsilon=0.1, n_target_classes=2, num_steps=5,
        num_queries=20, key=jax.random.key(3), indices=np.array([4, 9, 2, 7, 5, 0]), batch_size=2,
    ),
    "adaptive": partial(
        attacks.adaptive, epsilon=0.06, transfer_from={"other": linear}, batch_size=2,
        defences=[attacks.Defence("d", [attacks.Surrogate("twin", linear)])],
        budget=attacks.AdaptiveBudget(5, 2, 1, 10, exhaustive=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_version_0_1_left_is_continued(tmp_path, name):
    labels = np.append(linear(IMAGES).argmax(axis=1)[:5], 0)
    evaluate = partial(LEFT[name], linear, IMAGES, labels)
    batches, after = [], []
    whole = evaluate(progress=batches.append)
    shutil.copytree(GOLDEN / "saved_states" / name, tmp_path / name)
    found = evaluate(state_path=tmp_path / name, progress=after.append)
    assert len(batches) - len(after) == {"autoattack": 9, "adaptive": 5}[name]
    assert_equal(found, whole, atol=1e-6)
    assert 0 < found.robust_accuracy < found.clean_accuracy < 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": 0.04}, "settings"),
        ({"key": jax.random.key(1)}, "settings"),
        ({"labels": np.zeros(11, int)}, "labels"),
        ({"model": mlp_model(seed=1)}, "model"),
    ],
)
def test_a_state_of_another_evaluation_is_refused(tmp_path, change, words):
    images, labels = examples()
    arguments = {"model": mlp_model(), "images": images, "labels": labels, "max_seconds": 0}
    apgd_only(**arguments, state_path=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"state_path={tmp_path} .* {words}"):
        apgd_only(**arguments | change, state_path=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damaged", ["state.npz", "images.npy"])
def test_a_damaged_or_unwritable_state_is_refused(tmp_path, damaged):
    evaluate = partial(apgd_only, mlp_model(), *examples(), max_seconds=0, state_path=tmp_path)
    evaluate()
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match=f"state_path={tmp_path}: {damaged}"):
        evaluate()
    with pytest.raises(ValueError, match=f"state_path={tmp_path}/{damaged}/below"):
        evaluate(state_path=tmp_path / damaged / "below")


def test_a_run_stopped_by_time_says_so_and_goes_on(tmp_path, monkeypatch):
    evaluate = partial(two_squares, mlp_model(), *examples(), batch_size=4)
    whole = evaluate()
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def a_second_each(event):
        now[0] += event.attack != "clean"

    stopped = evaluate(state_path=tmp_path, max_seconds=4, progress=a_second_each)
    assert not stopped.complete
    assert "stopped after 4 s in again" in stopped.warnings[-1]
    assert stopped.records == whole.records[:1]
    assert list(stopped.accuracies) == ["clean", "square"]
    assert whole.robust_accuracy <= stopped.robust_accuracy < stopped.clean_accuracy
    at_once = evaluate(max_seconds=0)
    assert at_once.robust_accuracy == at_once.clean_accuracy == whole.clean_accuracy
    # What is left may be done in batches of another size.
    resumed = evaluate(state_path=tmp_path, max_seconds=60, batch_size=3, progress=a_second_each)
    assert resumed.complete and resumed.warnings == whole.warnings
    assert_equal(resumed, whole, atol=1e-6)


def test_the_remaining_time_is_that_of_the_passes_that_are_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(model, images, labels, threat_model, *, active, cost, **_):
        now[0] += cost * float(jnp.sum(active))  # a second for each forward pass
        return useless(images)

    chosen = [
        attacks.Attack("cheap", slow, targeted=True, options={"cost": 2}, cost=2),
        attacks.Attack("dear", slow, num_restarts=3, options={"cost": 5}, cost=5),
    ]
    events = []
    custom(
        mlp_model(), *examples(), attacks_to_run=chosen, batch_size=4, n_target_classes=2,
        progress=events.append,
    )  # fmt: skip
    total = 9 * (2 * 2 + 3 * 5)
    for event in events:
        expected = None if event.attack == "clean" else total - event.seconds
        assert event.remaining == pytest.approx(expected)
    assert events[-1].remaining == 0


def bright(x):
    level = x.mean(axis=(1, 2, 3)) - 0.53
    return jnp.stack([-level, level], axis=1)


def peaks(state_path):
    """Runs in a process of its own: how many times the images an evaluation takes beside them."""

    def memory(kind):
        """Of this program alone: ``getrusage`` begins with what the parent process had."""
        with open("/proc/self/status") as file:
            return 1024 * int(dict(line.split(":") for line in file)[kind].split()[0])

    def evaluate(number, path=None):
        images = np.random.default_rng(0).random((number, 32, 32, 3), np.float32)
        before = memory("VmRSS")
        result = custom(
            bright, images, np.zeros(number, int), state_path=path, batch_size=64,
            attacks_to_run=[attacks.Attack("fgsm", attacks.fgsm)],
        )  # fmt: skip
        assert result.clean_accuracy == 1 and result.robust_accuracy == 0
        return (memory("VmHWM") - before) / images.nbytes

    evaluate(64)  # compiles
    print(evaluate(10_000, state_path), evaluate(10_000))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_ten_thousand_images_take_no_more_memory_than_their_results(tmp_path):
    module = "tests.attacks.test_autoattack_driver"
    printed = run_python(f"import {module} as t; t.peaks({str(tmp_path / 'state')!r})")
    on_disk, in_memory = map(float, printed.split())
    # The results are as large as the images; the process has its largest size of both runs.
    assert 0.9 < on_disk < 1.3 and 0.9 < in_memory < 1.3
