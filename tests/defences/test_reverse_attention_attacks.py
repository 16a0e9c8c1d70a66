"""The attacks on reverse attention: certificate, objectives, and an evaluation made of them."""

import dataclasses
import hashlib
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks, defences
from ancra_jax.attacks.adaptive import BUDGETS, LEVELS, plan
from ancra_jax.attacks.autoattack.ensemble import describe
from ancra_jax.attacks.job import Placement
from ancra_jax.defences import branch_maximum, declared, mask_statistics
from ancra_jax.defences.reverse_attention import LABEL, TARGET, goal
from ancra_jax.errors import UsageError
from tests.attacks.test_autoattack_driver import assert_equal
from tests.support.processes import run_on_devices
from tests.support.reference_weights import random_variables
from tests.support.small_runs import TinyNetwork

SHAPE = (8, 8, 1)
MODULE = TinyNetwork(num_classes=5, width=6, reverse_attention=True)
value_of = jax.jit(lambda objective, images: objective(images))
gradient_of = jax.jit(jax.grad(lambda images, objective: objective(images).sum()))


@jax.jit
def _pooled(variables, images):
    """Mean pooled features of both blocks."""
    _, kept = MODULE.apply(variables, images, mutable=["intermediates"])
    return jnp.stack(kept["intermediates"]["pooled"], axis=-1).mean(0)


def network(seed, change=lambda kernel: kernel):
    """A small random network that uses many masks, variables bound.

    What all images have in common in the pooled features is taken out of the rows, else one class
    would win everywhere.
    """
    variables = random_variables(MODULE, SHAPE, seed)
    layer = variables["params"]["fc"]
    layer["bias"] = jnp.zeros(5)
    images, _ = examples()
    for _ in range(3):
        common, _ = jnp.linalg.qr(_pooled(variables, images))
        kernel = layer["kernel"] / jnp.linalg.norm(layer["kernel"], axis=0)
        layer["kernel"] = 3 * (kernel - common @ (common.T @ kernel))
    layer["kernel"] = change(layer["kernel"])
    return jax.tree_util.Partial(MODULE.apply, variables)


def examples(count=48):
    """Images of various brightness and contrast, and random labels."""
    noise, brightness, contrast, label = jax.random.split(jax.random.key(1), 4)
    images = jax.random.uniform(noise, (count, *SHAPE)) - 0.5
    images *= jax.random.uniform(contrast, (count, 1, 1, 1))
    images += jax.random.uniform(brightness, (count, 1, 1, 1))
    return jnp.clip(images, 0, 1), jax.random.randint(label, (count,), 0, 5)


def half_right(predict, images, labels):
    """These labels, but for every second example the prediction; where it errs; the masks taken."""
    outputs = predict(images)
    predicted = jnp.argmax(outputs.logits, -1)
    labels = jnp.where(jnp.arange(len(labels)) % 2 == 0, predicted, labels)
    return labels, np.asarray(predicted != labels), np.argmax(outputs.aux_logits, -1)


@pytest.mark.parametrize("seed", [1, 3, 5, 6])
def test_branch_maximum_is_positive_exactly_where_the_network_errs(seed):
    predict = network(seed)
    images, labels = examples()
    labels, errs, masks = half_right(predict, images, labels)
    assert len(set(masks.ravel().tolist())) > 2
    assert 0 < errs.mean() < 1
    for ranks in (None, 2, 1):
        certificate = np.asarray(branch_maximum(predict, images, labels, ranks))
        np.testing.assert_array_equal(certificate > 0, errs)
        assert np.abs(certificate).min() > 1e-6  # no sign here is a matter of rounding


def test_the_branch_maximum_where_logits_are_equal():
    """Two classes with one row and one bias tie wherever either of them is the largest."""
    predict = network(1, change=lambda kernel: kernel.at[:, 3].set(kernel[:, 1]))
    images, labels = examples()
    labels, errs, masks = half_right(predict, images, labels)
    certificate = np.asarray(branch_maximum(predict, images, labels))
    tied = np.any(np.isin(masks, (1, 3)), axis=0)
    assert tied.any() and (tied & errs).any() and (tied & ~errs).any()
    np.testing.assert_array_equal(certificate[tied & errs], 0)
    assert (certificate[tied & ~errs] <= 0).all()
    np.testing.assert_array_equal((certificate > 0)[~tied], errs[~tied])

    constant = network(1, change=lambda kernel: 0 * kernel)
    certificate = np.asarray(branch_maximum(constant, images, labels))
    np.testing.assert_array_equal(certificate, 0)  # argmax takes class 0, right or wrong


def forced(predict, images, first, second):
    """Auxiliary and final logits when masks are the given classes' rows."""

    def rule(aux_logits, class_rows, labels, block):
        return class_rows[(first, second)[block]]

    return heads(predict(images, attention=rule))


def heads(outputs):
    return [np.array(z, np.float64) for z in (*outputs.aux_logits, outputs.logits)]


def margin(z, classes):
    """``max_{k != c} z_k - z_c``."""
    own = z[np.arange(len(z)), classes]
    others = np.where(np.arange(z.shape[1]) == classes[:, None], -np.inf, z)
    return others.max(1) - own


@pytest.fixture(scope="module")
def batch():
    predict = network(1)
    images, labels = examples(16)
    targets = (labels + 1 + jnp.arange(16) % 4) % 5
    return predict, images, labels, targets


near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def along(batch, *arguments, **options):
    """The objective of a ``goal`` on the batch."""
    predict, _, labels, targets = batch
    return goal(predict, *arguments, **options)(labels, targets)


def test_branch_objective_is_the_smallest_of_its_three_margins(batch):
    predict, images, labels, targets = batch
    y, k = np.asarray(labels), np.asarray(targets)
    for branch in ((TARGET, TARGET), (LABEL, TARGET), (TARGET, LABEL)):
        i, j = (k if which == TARGET else y for which in branch)
        a_1, a_2, f = forced(predict, images, i, j)
        terms = np.stack([-margin(a_1, i), -margin(a_2, j), margin(f, y)])
        assert len(set(terms.argmin(0).tolist())) > 1
        near(value_of(along(batch, "branch", branch=branch), images), terms.min(0))
        soft = along(batch, "branch", branch=branch, softness=0.5)
        near(value_of(soft, images), -0.5 * np.log(np.exp(-terms / 0.5).sum(0)))


def test_objectives_on_weighted_heads(batch):
    predict, images, labels, targets = batch
    y, k = np.asarray(labels), np.asarray(targets)
    rows = np.arange(len(y))

    def value(*arguments, **options):
        return value_of(along(batch, *arguments, **options), images)

    def cross_entropy(z):
        return np.log(np.exp(z).sum(1)) - z[rows, y]

    a_1, a_2, f = heads(predict(images))
    near(value("targeted_margin", (0, 1, 0)), a_2[rows, k] - a_2[rows, y])
    ranked = np.sort(a_1, axis=1)[:, ::-1]
    scale = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
    near(value("targeted_dlr", (1, 0, 0)), (a_1[rows, k] - a_1[rows, y]) / scale)
    joint = cross_entropy(f) + 2 * (cross_entropy(a_1) + cross_entropy(a_2)) / 2
    near(value("cross_entropy", (1, 1, 1)), joint)
    near(value("margin", (5, 5, 1)), margin(f, y) + 5 * (margin(a_1, y) + margin(a_2, y)))
    b_1, b_2, g = forced(predict, images, k, k)
    fixed = -margin(g, k) - 3 * (margin(b_1, k) + margin(b_2, k))
    near(value("class_margin", (3, 3, 1), branch=(TARGET, TARGET)), fixed)
    # Without masks the network is the plain one.
    plain = predict(images, attention=lambda aux, rows, labels, block: jnp.ones((16, 6)))
    a_2 = np.asarray(plain.aux_logits[1])
    near(value("targeted_margin", (0, 1, 0), off=True), a_2[rows, k] - a_2[rows, y])


def test_straight_through_masks_have_the_hard_value_and_the_soft_gradient(batch):
    predict, images, labels, _ = batch
    ce = partial(along, batch, "cross_entropy")
    hard, through = ce(), ce(gradient=True, temperature=0.3)
    soft = ce(gradient=True, temperature=0.3, hard=False)
    cold = ce(gradient=True, temperature=1e-4, hard=False)
    own = attacks.objectives.cross_entropy(predict, labels)
    expected = value_of(own, images)
    near(value_of(hard, images), expected)
    near(value_of(through, images), expected)
    assert np.abs(value_of(soft, images) - expected).max() > 1e-2
    # As the temperature falls, the softmax becomes the argmax.
    near(value_of(cold, images), expected, rtol=1e-3, atol=1e-4)
    gradient, true_gradient = gradient_of(images, through), gradient_of(images, hard)
    assert np.abs(gradient - true_gradient).max() > 1e-3
    near(true_gradient, gradient_of(images, own), rtol=1e-3)


def test_one_program_serves_all_attacks_along_gradients():
    predict = network(1)
    images, labels = examples(4)
    traces = []

    @jax.jit
    def evaluate(objective, images):
        traces.append(1)
        return objective(images)

    (defence,) = declared(MODULE, predict)
    along_gradients = [attack for attack in defence.attacks if attack.search == "apgd"]
    assert len(along_gradients) > 20
    for attack in along_gradients:
        for targets in (None, (labels + 1) % 5):
            evaluate(attack.objective(labels, targets), images)
    assert len(traces) == 1


def test_what_the_network_declares():
    """Names, order and passes are in the saved states of version 0.1."""
    predict = network(1)
    (defence,) = declared(MODULE, predict)
    groups = dict.fromkeys(attack.group for attack in defence.attacks)
    assert list(groups) == ["A1", "A2", "A3", "A4", "A5", "A6", "A7"]
    digests = ["cbc714739ffa3804", "f8999ebeacbd5d8e", "b0d92279a2a1d59e"]
    for number, (budget, digest) in enumerate(zip(BUDGETS.values(), digests, strict=True), 1):
        listed = map(describe, plan(predict, 5, [defence], {}, budget, LEVELS[:number]))
        assert hashlib.sha256("\n".join(listed).encode()).hexdigest().startswith(digest)
    images, _ = examples(4)
    near(defence.rank_by(images), predict(images).aux_logits[1])


def test_defences_are_registered_by_name():
    predict, plain = network(1), TinyNetwork(num_classes=5, width=6)
    assert declared(plain, predict) == []
    with pytest.raises(UsageError, match="'reverse_attention'"):
        defences.register("reverse_attention")
    found = attacks.Defence("mine", [])
    defences.register("mine")(lambda network, predict: found if network is plain else None)
    assert declared(plain, predict) == [found] and "mine" in defences.names()


def test_mask_statistics(batch):
    images, labels = map(np.asarray, batch[1:3])
    predict = network(6)
    adversarial = images[::-1]
    broken = np.arange(16) % 3 == 0
    placement = Placement.over(jax.devices()[:1], 5, 16)
    found = mask_statistics(predict, images, adversarial, labels, broken, placement)

    def classes(x):
        return np.argmax(heads(predict(jnp.asarray(x))), axis=-1)

    c_1, c_2, final = classes(images)
    d_1, d_2, other = (c[broken] for c in classes(adversarial))
    expected = {
        "final_is_last_mask": np.mean(final == c_2),
        "masks_agree": np.mean(c_1 == c_2),
        "final_is_last_mask_adversarial": np.mean(other == d_2),
        "masks_agree_adversarial": np.mean(d_1 == d_2),
        "last_mask_changes": np.mean(d_2 != c_2[broken]),
    }
    assert len(set(expected.values())) > 2

    _, a_2, _ = heads(predict(jnp.asarray(images)))
    a_2[np.arange(16), labels] = -np.inf
    runners_up = jnp.asarray(a_2.argmax(1))
    along = goal(predict, "targeted_margin", (0, 1, 0))
    last_mask = along(jnp.asarray(labels), runners_up)
    own = attacks.objectives.targeted_margin(predict, labels, runners_up)
    first, second = (np.asarray(gradient_of(images, o)).reshape(16, -1) for o in (own, last_mask))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    expected["gradient_cosine"] = np.mean((first * second).sum(1) / norms)
    assert found == pytest.approx(expected, rel=1e-3)
    nothing = mask_statistics(predict, images, adversarial, labels, broken & False, placement)
    assert nothing["last_mask_changes"] is None
    assert nothing["final_is_last_mask"] == found["final_is_last_mask"]


PREDICT = network(5)
COUNT, EPSILON = 20, 0.02
IMAGES = np.asarray(examples(COUNT)[0])
LABELS = np.asarray(PREDICT(jnp.asarray(IMAGES)).logits).argmax(-1)
ORDER = np.random.default_rng(0).permutation(COUNT)


def run(order, predict, batch_size):
    """The attacks of the smallest budget, in few steps, on the examples in a given order."""
    (defence,) = declared(MODULE, predict)
    quick = [attack for attack in defence.attacks if attack.level == "quick"]
    budget = attacks.AdaptiveBudget(4, 2, 1, 8, exhaustive=True, targeted_on_all=False)
    return attacks.adaptive(
        predict, IMAGES[order], LABELS[order], indices=order, epsilon=EPSILON, budget=budget,
        defences=[dataclasses.replace(defence, attacks=quick)], batch_size=batch_size,
        progress=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return run(np.arange(COUNT), PREDICT, batch_size=COUNT)


def test_there_is_something_to_find(whole):
    assert 0 < whole.robust_accuracy < 1 and len(set(whole.broken_by)) > 3
    judged = attacks.is_adversarial(PREDICT, whole.images, IMAGES, LABELS, attacks.Linf(EPSILON))
    np.testing.assert_array_equal(judged, ~whole.robust)
    on_all = [record for record in whole.records if record.attacked == COUNT]
    assert 3 < len(on_all) < len(whole.records)
    # The others get what all attacks before them left.
    for before, record in itertools.pairwise(whole.records):
        assert record in on_all or record.attacked == round(COUNT * before.accuracy_after)
    accuracies = [record.own_accuracy for record in on_all]
    assert len(set(accuracies)) > 3 and whole.robust_accuracy <= min(accuracies)
    names = [record.name for record in whole.records]
    assert names[0] == "a6-square-gate2"  # eight queries are the cheapest here
    assert names.index("a4-joint-2-cross_entropy") < names.index("a7-trunk-warm")


def elsewhere(path):
    """Runs in a process of its own: another order, in other batches, on eight devices."""
    assert len(jax.devices()) == 8
    on_one = jax.device_put(PREDICT, jax.devices()[0])  # where somebody has put the weights
    found = run(ORDER, on_one, batch_size=8)
    names = ("robust", "broken_by", "target", "queries", "images")
    np.savez(path, **{name: getattr(found, name) for name in names})


@pytest.mark.slow
def test_batches_order_and_devices_do_not_matter(whole, tmp_path):
    path = str(tmp_path / "eight.npz")
    code = f"import tests.defences.test_reverse_attention_attacks as t; t.elsewhere({path!r})"
    run_on_devices(8, code)
    with np.load(path) as eight:
        assert_equal(dataclasses.replace(whole, **eight), whole, 1e-5, ORDER)
