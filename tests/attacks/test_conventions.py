"""What holds of every attack alike: one calling convention, and the errors of wrong calls."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ancra_jax import attacks
from tests.support import attacked

ATTACKS = {
    "fgsm": partial(attacks.fgsm),
    "pgd": partial(attacks.pgd, step_size=0.2, num_steps=3),
    "apgd": partial(attacks.apgd, num_steps=4, num_restarts=2),
    "fab": partial(attacks.fab, num_steps=3, num_restarts=2),
    "fmn": partial(attacks.fmn, num_steps=5),
    "square": partial(attacks.square, num_queries=330),
}
KEY = jax.random.key(0)
BALL = attacks.Linf(0.12)
every_attack = pytest.mark.parametrize("name", ATTACKS)
L_2, L_1 = attacks.L2(0.8), attacks.L1(4.0)
KINDS = [
    ("fgsm", BALL), ("pgd", L_2), ("apgd", L_2), ("apgd", L_1), ("fab", L_2), ("fmn", L_1),
    ("square", BALL), ("square", L_2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ball"), KINDS)
def test_results_belong_to_the_example(name, ball):
    """Order, padding, the rest of the batch, the kind of loop and ``jit``: nothing matters."""
    model, images, labels = attacked.problem(batch=72)
    attack = partial(ATTACKS[name], model, threat_model=ball, key=KEY)
    whole = attack(images, labels, loop="compiled")
    assert np.mean(whole.success) > 0.5  # so that Square's loop on the host leaves examples out
    rows = np.random.default_rng(0).permutation(72)
    active = (np.arange(72) < 20) & (np.arange(72) != 3)
    some = attack(images[rows], labels[rows], indices=rows, active=active, loop="host")
    others = {
        "host": attack(images, labels, loop="host"),
        "jit": jax.jit(attack)(images, labels),
        "some": jax.tree.map(lambda x: x[active], some),
    }
    for how, found in others.items():
        chosen = rows[active] if how == "some" else np.arange(72)
        for field, expected in whole._asdict().items():
            message = f"{how} {field}"
            actual, expected = getattr(found, field), np.asarray(expected)[chosen]
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=message)
    assert not some.success[3] and some.queries[3] == 0 and some.best_loss[3] == -np.inf
    np.testing.assert_array_equal(some.images[3], images[rows[3]])


@pytest.mark.parametrize(
    ("name", "ball", "shape"),
    [(name, BALL, (1, 1, 1)) for name in ("fab", "square")]
    + [(*kind, (3, 20, 2)) for kind in [*KINDS, ("fab", L_1), ("square", L_1)]],
)
def test_success_is_what_a_fresh_forward_pass_says(name, ball, shape):
    model, images, labels = attacked.problem(shape=shape, classes=2, batch=4)
    labels[0] = 1 - labels[0]
    found = ATTACKS[name](model, images, labels, ball, key=KEY)
    judged = np.asarray(attacks.is_adversarial(model, found.images, images, labels, ball))
    np.testing.assert_array_equal(found.success, judged)
    np.testing.assert_array_equal(found.images[~judged], images[~judged])
    assert np.all(found.queries >= 1)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "square"])
def test_the_loss_is_a_name_or_an_objective_and_the_model_judges(name):
    model, images, labels = attacked.problem()
    attack = partial(ATTACKS[name], model, images, labels, BALL, key=KEY)
    named = attack(loss="margin")
    own = attack(loss=attacks.objectives.margin(model, labels))
    surrogate, *_ = attacked.problem(seed=1)
    other = attack(loss=attacks.objectives.margin(surrogate, labels))
    for a, b in zip(named, own, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert not np.allclose(named.best_loss, other.best_loss)
    judged = attacks.is_adversarial(model, other.images, images, labels, BALL)
    np.testing.assert_array_equal(other.success, judged)


@pytest.mark.parametrize("name", ["apgd", "fab"])
def test_restarts_only_help(name):
    problem = *attacked.problem(batch=32), attacks.L2(0.1)
    attack = partial(ATTACKS[name], *problem, key=KEY, num_steps=5)
    one, three = (attack(num_restarts=number) for number in (1, 3))
    assert not np.any(one.success & ~three.success)
    assert np.all(three.best_loss >= one.best_loss) and np.any(three.best_loss > one.best_loss)
    assert np.all(three.queries > one.queries)


@every_attack
@pytest.mark.parametrize("closure", [False, True])
def test_no_gradient_flows_through_an_attack(name, closure):
    model, images, labels = attacked.problem()

    def loss(weights, held):
        under_attack = partial(model.func, weights) if closure else Partial(model.func, weights)
        found = ATTACKS[name](under_attack, images, labels, L_2, key=KEY)
        adversarial = jax.lax.stop_gradient(found.images) if held else found.images
        ascended = attacks.objectives.cross_entropy(Partial(model.func, weights), labels)
        return jnp.sum(ascended(adversarial))

    expected, found = (jax.grad(loss)(*model.args, held) for held in (True, False))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_squares_loop_on_the_host_is_compiled_inside_jit():
    attack = partial(ATTACKS["square"], *attacked.problem(), BALL, key=KEY, num_queries=20)
    found = jax.jit(lambda: attack(loop="host"))()
    np.testing.assert_array_equal(found.images, attack(loop="compiled").images)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square"])
@pytest.mark.parametrize("kind", ["named", "objective"])
def test_too_few_classes_for_a_loss_are_refused(name, kind):
    for classes, loss in [(2, "dlr"), (2, "targeted_dlr"), (3, "targeted_dlr")]:
        model, images, labels = attacked.problem(classes=classes)
        given = [labels, (labels + 1) % classes][: 1 + loss.startswith("targeted")]
        change = {"loss": loss, "targets": given[1]} if given[1:] else {"loss": loss}
        if kind == "objective":
            change = {"loss": getattr(attacks.objectives, loss)(model, *given)}
        with pytest.raises(ValueError, match=f"loss: .* {classes}"):
            ATTACKS[name](model, images, labels, BALL, key=KEY, **change)


@pytest.mark.parametrize("name", ["apgd", "square"])
def test_keys_of_another_kind_serve_as_well(name):
    """Their vectorised draws depend on the batch, which those of an attack never do."""
    model, images, labels = attacked.problem()
    key = jax.random.key(3, impl="rbg")
    attack = partial(ATTACKS[name], model, threat_model=attacks.Linf(0.05))
    whole = attack(images, labels, key=key)
    some = attack(images[3:5], labels[3:5], key=key, indices=[3, 4])
    np.testing.assert_allclose(some.best_loss, whole.best_loss[3:5], atol=1e-6)
    old_style = attack(images, labels, key=np.asarray(jax.random.key_data(key)))
    np.testing.assert_array_equal(old_style.best_loss, whole.best_loss)
    assert not np.array_equal(attack(images, labels, key=KEY).best_loss, whole.best_loss)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(
            attack(images, labels, key=0).best_loss, attack(images, labels, key=KEY).best_loss
        )


@every_attack
@pytest.mark.parametrize("loop", ["host", "compiled"])
def test_one_compilation_serves_every_checkpoint_target_and_epsilon(name, loop):
    traces = []

    def model(weights, images):
        traces.append(1)
        return attacked.tanh_network(weights, images)

    counts = []
    for seed in range(3):
        options = {"key": jax.random.key(seed), "loop": loop}
        if name not in ("fgsm", "fab", "fmn"):
            options["loss"] = "targeted_dlr"
        if name == "square":
            options |= {"num_queries": 10 + 150 * seed, "p_init": 0.8 - 0.1 * seed}
        elif name == "pgd":
            options |= {"step_size": 0.01 * (1 + seed)}
        elif loop == "host" and name != "fgsm":
            options |= {"num_steps": 2 + seed}
        network, images, labels = attacked.problem(seed=seed)
        if name != "fgsm":
            options["targets"] = (labels + 1 + seed % 2) % 4
        ball = attacks.Linf(0.01 * (1 + seed))
        ATTACKS[name](Partial(model, *network.args), images, labels, ball, **options)
        counts.append(len(traces))
    assert counts[0] > 0 and counts == counts[:1] * 3


@every_attack
def test_a_model_that_returns_nan_is_never_fooled(name):
    images = np.full((2, 3, 3, 1), 0.5, np.float32)

    def broken(x):
        logits = jnp.where(jnp.any(x != 0.5), jnp.nan, 1.0) * jnp.array([[1.0, 0.0]])
        return logits + 0 * x.reshape(len(x), -1)[:, :2]

    found = ATTACKS[name](broken, images, np.array([0, 0]), attacks.Linf(0.1), key=KEY)
    assert not np.any(found.success)
    np.testing.assert_array_equal(found.images, images)


def test_a_result_is_shown_without_its_pixels():
    model, images, labels = attacked.problem()
    found = attacks.fgsm(model, images, labels, BALL)
    text = repr(found)
    assert f"{int(found.success.sum())} of 8" in text and "float32[8, 6, 6, 2]" in text
    assert len(text.splitlines()) < 5
    assert "float32[8, 6, 6, 2]" in repr(jax.eval_shape(lambda: found))


MODEL, IMAGES, LABELS = attacked.problem(batch=3)


def test_calls_in_the_old_form_are_told_the_new_one():
    objective = attacks.objectives.cross_entropy(MODEL, LABELS)
    for old, words in (
        (lambda: attacks.apgd(logits_fn=MODEL, images=IMAGES), ["logits_fn", "model"]),
        (lambda: attacks.autoattack(logits_fn=MODEL), ["logits_fn", "model"]),
        (lambda: attacks.adaptive(logits_fn=MODEL), ["logits_fn", "model"]),
        (lambda: attacks.diagnose(logits_fn=MODEL), ["logits_fn", "model"]),
        (lambda: attacks.square(MODEL, IMAGES, objective=objective), ["objective", "loss"]),
        (lambda: attacks.pgd(objective, IMAGES, BALL, step_size=0.1, num_steps=2), ["ascend"]),
        (lambda: attacks.fgsm(objective, IMAGES, BALL), ["fgsm(model, images, labels"]),
    ):
        with pytest.raises(TypeError) as error:
            old()
        assert all(word in str(error.value) for word in words), error.value


def test_old_names_are_told_the_new_ones():
    for name in ("cross_entropy", "margin", "dlr", "kl_divergence", "targeted_dlr"):
        with pytest.raises(AttributeError, match=rf"attacks\.objectives\.{name}"):
            getattr(attacks, name)
        assert callable(getattr(attacks.objectives, name))
    with pytest.raises(ImportError, match=r"attacks\.objectives\.margin"):
        from ancra_jax.attacks import margin  # noqa: F401
    with pytest.raises(AttributeError, match=r"ancra_jax\.defences\.register"):
        _ = attacks.register_defence
    assert not hasattr(attacks, "nothing_of_that_name")
    assert all(hasattr(attacks, name) for name in attacks.__all__)
