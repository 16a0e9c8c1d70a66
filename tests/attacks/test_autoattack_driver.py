"""Options of AutoAttack's driver that lists of attacks of one's own use."""

import os
import subprocess
import sys
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.attacks.autoattack import driver as autoattack_run
from ancra_jax.attacks.types import AttackResult
from tests.attacks.test_autoattack import examples, mlp_model
from tests.support import ENVIRONMENT

two_squares = partial(
    attacks.autoattack,
    epsilon=0.1,
    version="custom",
    attacks_to_run=["square", attacks.Attack("again", attacks.square, options={"num_queries": 40})],
    num_queries=8,
    progress=None,
)


def test_every_attack_of_an_exhaustive_run_has_its_own_accuracy():
    model = mlp_model()
    images, labels = examples()
    cascade = two_squares(model, images, labels)
    whole = two_squares(model, images, labels, exhaustive=True, batch_size=4)
    alone = two_squares(
        model, images, labels, attacks_to_run=two_squares.keywords["attacks_to_run"][1:]
    )
    np.testing.assert_array_equal(cascade.robust, whole.robust)
    np.testing.assert_array_equal(cascade.broken_by, whole.broken_by)
    np.testing.assert_allclose(cascade.images, whole.images, atol=1e-6)
    square, again = whole.records
    assert square.attacked == again.attacked == 9
    assert again.broken >= square.broken > 0
    assert again.own_accuracy == alone.robust_accuracy == (9 - again.broken) / 11
    assert whole.robust_accuracy <= min(square.own_accuracy, again.own_accuracy)
    first, second = cascade.records
    assert first == square and cascade.accuracies["square"] == first.own_accuracy
    assert second.attacked == 9 - first.broken and second.own_accuracy is None
    assert second.accuracy_after == cascade.robust_accuracy


def test_an_exhaustive_attack_gets_what_others_broke_and_the_next_one_does_not():
    square = partial(attacks.Attack, run=attacks.square, options={"num_queries": 40})
    result = two_squares(
        mlp_model(), *examples(),
        attacks_to_run=[square("first"), square("all", exhaustive=True), square("rest")],
    )  # fmt: skip
    first, everything, rest = result.records
    assert first.attacked == everything.attacked == 9 and first.broken > 0
    assert everything.own_accuracy == (9 - everything.broken) / 11
    assert rest.attacked == round(11 * everything.accuracy_after) and rest.own_accuracy is None


def test_a_targeted_attack_of_an_exhaustive_run_aims_at_what_it_has_not_broken():
    seen = []

    def first_row_only(logits_fn, images, labels, threat_model, *, key, indices, active, targets):
        seen.append(np.asarray(indices)[np.asarray(active)])
        far = jnp.where(indices[:, None, None, None] == 5, wrong[5], images)
        nothing = jnp.zeros(len(images))
        return AttackResult(far, nothing > 0, nothing, nothing.astype(int))

    model = mlp_model()
    images, labels = examples()
    wrong = {5: jnp.asarray(images[np.flatnonzero(labels != labels[5])[-1]])}
    targeted = attacks.Attack("far", first_row_only, targeted=True)
    before = attacks.Attack("near", first_row_only, targeted=True)
    attacks.autoattack(
        model, images, labels, epsilon=1.0, version="custom", attacks_to_run=[before, targeted],
        n_target_classes=2, exhaustive=True, progress=None,
    )  # fmt: skip
    everything = list(range(2, 11))
    remaining = [number for number in everything if number != 5]
    assert [rows.tolist() for rows in seen] == [everything, remaining, everything, remaining]


def test_a_run_stopped_by_time_says_so_and_goes_on(tmp_path, monkeypatch):
    model = mlp_model()
    images, labels = examples()
    evaluate = partial(two_squares, model, images, labels, batch_size=4)
    whole = evaluate()
    now = [0.0]
    monkeypatch.setattr(autoattack_run.time, "monotonic", lambda: now[0])

    def a_second_each(event):
        now[0] += event.attack != "clean"

    stopped = evaluate(state_path=tmp_path, max_seconds=4, progress=a_second_each)
    assert not stopped.complete
    assert "stopped after 4 s in again (attack 2 of 2)" in stopped.warnings[-1]
    assert [record.name for record in stopped.records] == ["square"]
    assert list(stopped.accuracies) == ["clean", "square"]
    assert whole.robust_accuracy <= stopped.robust_accuracy < stopped.clean_accuracy
    at_once = evaluate(max_seconds=0)
    assert at_once.robust_accuracy == at_once.clean_accuracy == whole.clean_accuracy
    resumed = evaluate(state_path=tmp_path, max_seconds=60, progress=a_second_each)
    assert resumed.complete and resumed.warnings == whole.warnings
    assert resumed.records == whole.records
    np.testing.assert_array_equal(resumed.images, whole.images)
    np.testing.assert_array_equal(resumed.queries, whole.queries)


def test_the_remaining_time_is_that_of_the_passes_that_are_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(autoattack_run.time, "monotonic", lambda: now[0])

    def useless(logits_fn, images, labels, threat_model, *, active, targets=None, cost, **_):
        now[0] += cost * float(jnp.sum(active))  # a second for each forward pass
        nothing = jnp.zeros(len(images))
        return AttackResult(images, nothing > 0, nothing, nothing.astype(int))

    chosen = [
        attacks.Attack("cheap", useless, targeted=True, options={"cost": 2}, cost=2),
        attacks.Attack("dear", useless, num_restarts=3, options={"cost": 5}, cost=5),
    ]
    events = []
    images, labels = examples()
    attacks.autoattack(
        mlp_model(), images, labels, epsilon=0.1, version="custom", attacks_to_run=chosen,
        batch_size=4, n_target_classes=2, progress=events.append,
    )  # fmt: skip
    total = 9 * (2 * 2 + 3 * 5)
    for event in events:
        expected = None if event.attack == "clean" else total - event.seconds
        assert event.remaining == pytest.approx(expected)
    assert events[-1].remaining == 0


def test_targets_can_be_ranked_by_another_model():
    def lists_its_targets(logits_fn, images, labels, threat_model, *, targets, active, **_):
        seen.append(np.asarray(targets)[np.asarray(active)])
        nothing = jnp.zeros(len(images))
        return AttackResult(images, nothing > 0, nothing, nothing.astype(int))

    images, labels = examples()
    other = mlp_model(seed=1)
    for rank_by in (None, other):
        seen = []
        attacks.autoattack(
            mlp_model(), images, labels, epsilon=0.1, version="custom", n_target_classes=4,
            attacks_to_run=[attacks.Attack("targets", lists_its_targets, targeted=True)],
            rank_by=rank_by, progress=None,
        )  # fmt: skip
        logits = np.array((rank_by or mlp_model())(jnp.asarray(images)))[2:]
        logits[np.arange(9), labels[2:]] = -np.inf
        np.testing.assert_array_equal(np.stack(seen, 1), np.argsort(-logits, axis=1)[:, :4])


def brightened(logits_fn, images, labels, threat_model, *, active, **_):
    """Breaks every example of ``bright`` below."""
    found = threat_model.project(images + 0.1, images)
    return AttackResult(found, active, jnp.zeros(len(images)), jnp.ones(len(images), int))


def bright(x):
    level = x.mean(axis=(1, 2, 3)) - 0.53
    return jnp.stack([-level, level], axis=1)


def peaks(state_path):
    """Runs in a process of its own: how many times the images an evaluation takes beside them."""

    def memory(kind):
        """Of this program alone: ``getrusage`` begins with what the parent process had."""
        with open("/proc/self/status") as file:
            (line,) = (line for line in file if line.startswith(kind))
        return 1024 * int(line.split()[1])

    def evaluate(number, path=None):
        images = np.random.default_rng(0).random((number, 32, 32, 3), np.float32)
        before = memory("VmRSS")
        result = attacks.autoattack(
            bright, images, np.zeros(number, int), epsilon=0.1, version="custom", state_path=path,
            attacks_to_run=[attacks.Attack("brightened", brightened)], batch_size=64, progress=None,
        )  # fmt: skip
        assert result.clean_accuracy == 1 and result.robust_accuracy == 0
        return (memory("VmHWM") - before) / images.nbytes

    evaluate(64)  # compiles
    print(evaluate(10_000, state_path), evaluate(10_000))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_ten_thousand_images_take_no_more_memory_than_their_results(tmp_path):
    script = (
        f"import tests.attacks.test_autoattack_driver as t; t.peaks({str(tmp_path / 'state')!r})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, check=True, timeout=600,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    on_disk, in_memory = map(float, ran.stdout.split())
    # The results are as large as the images; the process has its largest size of both runs.
    assert 0.9 < on_disk < 1.3 and 0.9 < in_memory < 1.3
