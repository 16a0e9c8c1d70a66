"""What all attacks check alike, and what calls in the form of version 0.1 are told."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.attacks import validation
from ancra_jax.attacks.loop import iterate

IMAGES = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
LABELS = jnp.array([0, 1, 2])
BALL = attacks.Linf(0.1)
KEY = jax.random.key(1)
ATTACKS = {
    "fgsm": attacks.fgsm,
    "pgd": partial(attacks.pgd, step_size=0.02, num_steps=2),
    "apgd": partial(attacks.apgd, num_steps=2),
    "fab": partial(attacks.fab, num_steps=2),
    "square": partial(attacks.square, num_queries=5),
}


def model(images):
    return images.reshape(len(images), -1)[:, :5]


def unchecked(function):
    """The function without the run-time check of its annotations."""
    if isinstance(function, partial):
        return partial(inspect.unwrap(function.func), **function.keywords)
    return inspect.unwrap(function)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_one_calling_convention(attack):
    indices, active = np.array([4, 0, 9]), np.array([True, False, True])
    found = attack(model, IMAGES, LABELS, BALL, key=KEY, indices=indices, active=active)
    judged = attacks.is_adversarial(model, found.images, IMAGES, LABELS, BALL)
    np.testing.assert_array_equal(found.success, judged & active)
    untouched = ~np.asarray(found.success)
    np.testing.assert_array_equal(found.images[untouched], IMAGES[untouched])
    assert found.queries[1] == 0 and found.best_loss[1] == -np.inf
    assert np.all(found.queries[active] >= 1) and np.all(np.isfinite(found.best_loss[active]))
    jitted = jax.jit(partial(attack, model, threat_model=BALL))(
        IMAGES, LABELS, key=KEY, indices=indices, active=active
    )
    for a, b in zip(found, jitted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


BAD = [
    ({"images": IMAGES[0]}, ["images", "(4, 4, 1)"]),
    ({"images": IMAGES + 1}, ["images", "[1."]),
    ({"images": IMAGES.at[0, 0, 0, 0].set(jnp.nan)}, ["images", "NaN"]),
    ({"images": jnp.ones(IMAGES.shape, jnp.uint8)}, ["images", "uint8", "255"]),
    ({"labels": LABELS[:2]}, ["labels", "(2,)", "[3]"]),
    ({"labels": LABELS - 1}, ["labels", "-1..1"]),
    ({"labels": LABELS.astype(float)}, ["labels", "float32"]),
    ({"indices": LABELS[:1]}, ["indices", "(1,)"]),
    ({"active": LABELS}, ["active", "int32"]),
    ({"active": np.ones(2, bool)}, ["active", "(2,)"]),
    ({"threat_model": 0.1}, ["threat_model=0.1", "Linf", "L2"]),
    ({"loop": "fast"}, ["loop='fast'", "'host'", "'compiled'"]),
    ({"targets": LABELS[:1]}, ["targets", "(1,)"]),
]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize(("change", "words"), BAD)
def test_bad_arguments_are_named(attack, change, words):
    arguments = {"images": IMAGES, "labels": LABELS, "threat_model": BALL, "key": KEY} | change
    with pytest.raises((ValueError, TypeError)) as error:
        unchecked(attack)(model, **arguments)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        *[
            (name, change, words)
            for name in ("fgsm", "pgd", "apgd", "square")
            for change, words in (
                ({"loss": "cw"}, ["loss='cw'", "dlr", "targeted_ce"]),
                ({"loss": "targeted_dlr"}, ["loss='targeted_dlr'", "targets"]),
                ({"loss": "ce", "targets": LABELS}, ["loss='ce'", "targets"]),
            )
        ],
        ("pgd", {"num_steps": 0}, ["num_steps=0"]),
        ("pgd", {"step_size": 0.0}, ["step_size=0"]),
        ("pgd", {"step_size": float("nan")}, ["step_size=nan"]),
        ("pgd", {"start": IMAGES[:1]}, ["start", "(1, 4, 4, 1)"]),
        ("apgd", {"num_steps": 0}, ["num_steps=0"]),
        ("apgd", {"num_restarts": -1}, ["num_restarts=-1"]),
        ("apgd", {"key": None}, ["key=None"]),
        ("apgd", {"start": IMAGES[:1]}, ["start", "(1, 4, 4, 1)"]),
        ("fab", {"num_steps": 0}, ["num_steps=0"]),
        ("fab", {"key": None, "num_restarts": 2}, ["key=None"]),
        ("square", {"key": None}, ["key=None"]),
        ("square", {"num_queries": 0}, ["num_queries=0"]),
        ("square", {"p_init": 0.0}, ["p_init=0.0"]),
    ],
)
def test_bad_settings_are_named(name, change, words):
    with pytest.raises(ValueError) as error:
        unchecked(ATTACKS[name])(model, IMAGES, LABELS, BALL, **({"key": KEY} | change))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("name", ["fgsm", "pgd", "fab"])
def test_without_a_key_nothing_is_random(name):
    first, second = (ATTACKS[name](model, IMAGES, LABELS, BALL) for _ in range(2))
    np.testing.assert_array_equal(first.best_loss, second.best_loss)


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (jnp.ones((2, 4)), ["(2, 4)", "3 images"]),
        (jnp.ones((3, 1)), ["(3, 1)", "2 classes"]),
        (jnp.full((3, 4), jnp.nan), ["3 of 3"]),
    ],
)
def test_bad_logits_are_named(logits, words):
    with pytest.raises(ValueError) as error:
        validation.check_logits(logits, 3)
    assert all(word in str(error.value) for word in words)


def test_class_numbers_beyond_the_model_are_named():
    with pytest.raises(ValueError, match=r"labels.*1\.\.4.*3"):
        validation.check_labels(jnp.array([1, 4]), 2, num_classes=4)


def test_loops_have_names():
    with pytest.raises(ValueError, match="loop='fast'"):
        unchecked(iterate)(lambda i, s: s, 0, num_steps=1, loop="fast")


def test_calls_in_the_old_form_are_told_the_new_one():
    objective = attacks.objectives.cross_entropy(model, LABELS)
    for old, words in (
        (lambda: attacks.apgd(logits_fn=model, images=IMAGES), ["logits_fn", "model"]),
        (lambda: attacks.autoattack(logits_fn=model), ["logits_fn", "model"]),
        (lambda: attacks.adaptive(logits_fn=model), ["logits_fn", "model"]),
        (lambda: attacks.diagnose(logits_fn=model), ["logits_fn", "model"]),
        (lambda: attacks.square(model, IMAGES, objective=objective), ["objective", "loss"]),
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


def test_everything_public_is_there():
    assert all(hasattr(attacks, name) for name in attacks.__all__)
