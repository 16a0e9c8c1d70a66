import inspect
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ancra_jax import attacks
from ancra_jax.attacks.autoattack.ensemble import Budget, plan
from ancra_jax.attacks.placement import Placement
from ancra_jax.attacks.types import AttackResult
from tests.support import ENVIRONMENT, cnn_a

KEY = jax.random.key(5)
SHAPE = (11, 6, 4, 2)


def mlp(weights, images):
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ weights[0] + 0.1)
    return hidden @ weights[1]


def mlp_model(classes=5, seed=0, shape=SHAPE):
    first, second = jax.random.split(jax.random.key(seed))
    inputs = int(np.prod(shape[1:]))
    weights = [
        jax.random.normal(first, (inputs, 16)) / np.sqrt(inputs),
        jax.random.normal(second, (16, classes)),
    ]
    return jax.tree_util.Partial(mlp, weights)


def examples(model=None, shape=SHAPE, wrong=2, seed=0):
    """Images with the model's own predictions as labels, but for the first ``wrong``."""
    images = np.asarray(jax.random.uniform(jax.random.key(seed), shape))
    logits = np.asarray((model or mlp_model())(jnp.asarray(images)))
    labels = logits.argmax(axis=1)
    labels[:wrong] = (labels[:wrong] + 1) % logits.shape[1]
    return images, labels


quick = partial(
    attacks.autoattack, norm="linf", epsilon=0.03, num_steps=8, num_queries=40, progress=None
)
apgd_only = partial(quick, version="custom", attacks_to_run=["apgd-ce", "apgd-t"])


def assert_same(first, second, atol=0.0):
    np.testing.assert_array_equal(first.robust, second.robust)
    np.testing.assert_array_equal(first.broken_by, second.broken_by)
    np.testing.assert_array_equal(first.target, second.target)
    np.testing.assert_allclose(first.images, second.images, atol=atol)


def assert_sound(result, model, images, labels, threat_model):
    broken = ~result.robust & (result.broken_by != "clean")
    judged = attacks.is_adversarial(model, result.images, images, labels, threat_model)
    assert np.asarray(judged)[broken].all()
    np.testing.assert_array_equal(result.images[~broken], images[~broken])
    np.testing.assert_allclose(
        result.norms,
        np.where(broken, threat_model.norm(jnp.asarray(result.images - images)), 0),
        atol=1e-6,
    )
    assert (result.queries[result.robust] > 1).all()


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.03), ("l2", 0.15)])
def test_standard(norm, epsilon):
    model = mlp_model()
    images, labels = examples()
    result = quick(model, images, labels, norm=norm, epsilon=epsilon, batch_size=8)
    assert list(result.accuracies) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    left = list(result.accuracies.values())
    assert left == sorted(left, reverse=True)
    assert result.clean_accuracy == 9 / 11
    assert result.robust_accuracy == left[-1] == result.robust.mean()
    assert 0 < result.robust_accuracy < result.clean_accuracy
    assert (result.broken_by[:2] == "clean").all()
    assert set(result.broken_by[result.robust]) == {""}
    assert result.warnings == []
    assert_sound(result, model, images, labels, attacks.threat_model(norm, epsilon))


def test_versions():
    standard, _ = plan("standard", None, 10, Budget(num_steps=7, num_queries=11))
    assert [attack.name for attack in standard] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [attack.num_restarts for attack in standard] == [1] * 4
    assert standard[0].options["num_steps"] == standard[2].options["num_steps"] == 7
    assert standard[3].options["num_queries"] == 11
    plus, _ = plan("plus", None, 10, Budget())
    assert [attack.name for attack in plus] == [
        "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t",
    ]  # fmt: skip
    assert [plus[0].num_restarts, plus[1].num_restarts] == [5, 5]
    assert plus[2].options["num_restarts"] == 5
    assert [attack.targeted for attack in plus] == [False] * 4 + [True] * 2
    random, _ = plan("rand", None, 10, Budget(randomized=True))
    assert [attack.options["gradient_draws"] for attack in random] == [20, 20]


def test_restarts_have_randomness_of_their_own():
    seen = []

    def spy(logits_fn, images, labels, threat_model, *, key, indices, active):
        seen.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        nothing = jnp.zeros(len(images))
        return AttackResult(images, nothing > 0, nothing, nothing.astype(int))

    images, labels = examples()
    chosen = [attacks.Attack("first", spy, num_restarts=3), attacks.Attack("second", spy)]
    quick(mlp_model(), images, labels, version="custom", attacks_to_run=chosen)
    assert len(seen) == len(set(seen)) == 4


def test_flags_depend_on_neither_batch_size_nor_order():
    model = mlp_model()
    images, labels = examples()
    whole = apgd_only(model, images, labels, batch_size=64)
    assert 0 < whole.robust_accuracy < whole.clean_accuracy
    for batch_size in (3, 4):
        assert_same(whole, apgd_only(model, images, labels, batch_size=batch_size), 1e-6)
    order = np.random.default_rng(0).permutation(len(images))
    permuted = apgd_only(model, images[order], labels[order], indices=order, batch_size=4)
    np.testing.assert_array_equal(permuted.robust, whole.robust[order])
    np.testing.assert_array_equal(permuted.target, whole.target[order])
    np.testing.assert_allclose(permuted.images, whole.images[order], atol=1e-6)


def test_an_attack_is_independent_of_those_before_it():
    model = mlp_model()
    images, labels = examples()
    custom = partial(quick, model, images, labels, version="custom", epsilon=0.1)
    alone = custom(attacks_to_run=["square"])
    other = custom(attacks_to_run=["square", "apgd-ce"])
    by_square = alone.broken_by == "square"
    assert by_square.any()
    np.testing.assert_array_equal(other.broken_by == "square", by_square)
    np.testing.assert_array_equal(other.images[by_square], alone.images[by_square])


@pytest.mark.slow
def test_flags_do_not_depend_on_the_number_of_devices(tmp_path):
    script = """
import sys
import jax, numpy as np
import tests.attacks.test_autoattack as t
assert len(jax.devices()) == 8
images, labels = t.examples()
result = t.quick(t.mlp_model(), images, labels, batch_size=5)
np.savez(sys.argv[1], robust=result.robust, broken_by=result.broken_by, images=result.images)
"""
    environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "eight.npz")],
        env=environment,
        check=True,
        timeout=300,
    )
    images, labels = examples()
    one = quick(mlp_model(), images, labels)
    with np.load(tmp_path / "eight.npz") as eight:
        np.testing.assert_array_equal(eight["robust"], one.robust)
        np.testing.assert_array_equal(eight["broken_by"], one.broken_by)
        np.testing.assert_allclose(eight["images"], one.images, atol=1e-5)


def test_batches_are_padded_to_one_shape():
    placement = Placement.over(jax.devices()[:1], 4, 11)
    rows, active = zip(*placement.batches(np.array([3, 5, 6, 8, 9, 10])), strict=True)
    assert [r.tolist() for r in rows] == [[3, 5, 6, 8], [9, 10, 9, 9]]
    assert [a.tolist() for a in active] == [[True] * 4, [True, True, False, False]]


@given(st.integers(1, 300), st.integers(1, 90))
def test_no_batches_of_one_size_pad_less(examples, largest):
    placement = Placement.over(jax.devices()[:1], largest, examples)
    assert placement.batch_size <= largest
    batches = -(-examples // largest)
    assert len(list(placement.batches(np.arange(examples)))) == batches
    assert 0 <= placement.batch_size * batches - examples < batches


def test_one_compilation_for_targets_batches_and_checkpoints():
    traces = 0

    def counted(weights, images):
        nonlocal traces
        traces += 1
        return mlp(weights, images)

    def evaluate(seed, epsilon):
        model = jax.tree_util.Partial(counted, mlp_model(seed=seed).args[0])
        images, labels = examples(mlp_model(seed=seed))
        eager = 5  # the check for randomised models
        nonlocal traces
        traces -= eager
        return quick(model, images, labels, batch_size=4, epsilon=epsilon)

    evaluate(0, 0.02)
    first = traces
    evaluate(1, 0.03)
    assert traces == first


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_an_interrupted_evaluation_continues(tmp_path, stop_after):
    model = mlp_model()
    images, labels = examples()
    evaluate = partial(apgd_only, model, images, labels, batch_size=4, key=KEY)
    whole = evaluate(state_path=tmp_path / "whole")
    batches = 0

    def stop(progress):
        nonlocal batches
        batches += 1
        if batches == stop_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluate(state_path=tmp_path / "parts", progress=stop)
    done_again = []
    resumed = evaluate(state_path=tmp_path / "parts", progress=done_again.append)
    assert_same(resumed, whole)
    np.testing.assert_array_equal(resumed.queries, whole.queries)
    assert resumed.accuracies == whole.accuracies
    assert_same(whole, evaluate())
    for name in ("state.npz", "images.npy"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    total = []
    evaluate(progress=total.append)
    assert len(done_again) == len(total) - stop_after
    # A finished evaluation is read, not repeated.
    finished = []
    assert_same(evaluate(state_path=tmp_path / "whole", progress=finished.append), whole)
    assert finished == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.04}, "other images, labels or settings"),
        ({"key": jax.random.key(1)}, "other images, labels or settings"),
        ({"labels": np.zeros(len(examples()[1]), int)}, "other images, labels or settings"),
        ({"model": mlp_model(seed=1)}, "another model"),
    ],
)
def test_a_state_of_another_evaluation_is_refused(tmp_path, change, message):
    images, labels = examples()
    arguments = {
        "model": mlp_model(), "images": images, "labels": labels, "num_steps": 1,
        "attacks_to_run": ["apgd-ce"], "state_path": tmp_path,
    }  # fmt: skip
    apgd_only(**arguments)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        apgd_only(**arguments | change)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damaged", ["state.npz", "images.npy"])
def test_a_damaged_state_is_refused(tmp_path, damaged):
    images, labels = examples()
    evaluate = partial(apgd_only, mlp_model(), images, labels, num_steps=1, state_path=tmp_path)
    evaluate()
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match=f"{damaged} is not a readable state"):
        evaluate()


def test_an_unwritable_state_path(tmp_path):
    (tmp_path / "file").write_text("")
    images, labels = examples()
    with pytest.raises(ValueError, match="cannot be written"):
        apgd_only(mlp_model(), images, labels, state_path=tmp_path / "file" / "state")


def lying(logits_fn, images, labels, threat_model, *, key, indices, active):
    """Claims success with images that are unchanged, outside the ball, outside [0, 1], NaN."""
    rows = jnp.arange(len(images))[:, None, None, None] % 4
    far = jnp.clip(1 - images, 0, 1)
    claimed = jnp.select([rows == 0, rows == 1, rows == 2], [images, far, images - 3.0], jnp.nan)
    return AttackResult(
        claimed, jnp.ones(len(images), bool), jnp.ones(len(images)), jnp.ones(len(images), int)
    )


def test_claims_are_not_believed():
    images, labels = examples()
    liar = attacks.Attack("liar", lying)
    result = quick(mlp_model(), images, labels, version="custom", attacks_to_run=[liar])
    assert result.robust_accuracy == result.clean_accuracy


def blind(weights, images):
    return mlp(weights, jax.lax.stop_gradient(images))


def masked(weights, images):
    """Points the gradient away from the decision boundary."""
    return mlp(weights, 2 * jax.lax.stop_gradient(images) - images)


def half_precision(weights, images):
    return mlp(weights, images).astype(jnp.bfloat16)


def nan_near(weights, images):
    """NaN wherever a pixel is not a multiple of 1/8."""
    coarse = jnp.all(images * 8 == jnp.round(images * 8), axis=(1, 2, 3))
    return jnp.where(coarse[:, None], mlp(weights, images), jnp.nan)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (blind, "zero input gradient on 11 of 11"),
        (lambda w, x: 1e4 * mlp(w, x), "zero input gradient"),
        (lambda w, x: jax.nn.softmax(mlp(w, x)), "look like probabilities"),
        (half_precision, "logits are bfloat16"),
        (nan_near, "NaN or infinite logits near"),
        (
            lambda w, x: mlp(w, x) + 0.01 * np.random.default_rng().standard_normal(5),
            "randomised defence: 5 forward passes differ",
        ),
    ],
)
def test_warnings(model, message):
    images, labels = examples()
    images = np.round(images * 8) / 8
    defended = jax.tree_util.Partial(model, mlp_model().args[0])
    result = apgd_only(defended, images, labels, num_steps=2, epsilon=0.01)
    assert any(message in warning for warning in result.warnings), result.warnings


def test_square_exposes_masked_gradients():
    images, labels = examples()
    defended = jax.tree_util.Partial(masked, mlp_model().args[0])
    custom = partial(quick, version="custom", attacks_to_run=["apgd-ce", "square"])
    result = custom(defended, images, labels, epsilon=0.1, num_queries=200)
    assert any("Square" in warning for warning in result.warnings)


def noisy(weights, images, key):
    return mlp(weights, images + 0.02 * jax.random.normal(key, images.shape))


def test_randomised_model():
    images, labels = examples(wrong=0)
    defended = jax.tree_util.Partial(noisy, mlp_model().args[0])
    evaluate = partial(
        quick, defended, images, labels, randomized=True, num_steps=4, gradient_draws=3
    )
    result = evaluate(version="rand")
    assert list(result.accuracies) == ["clean", "apgd-ce", "apgd-dlr"]
    assert result.warnings == []
    assert result.robust_accuracy < 1
    listed = evaluate(version="custom", attacks_to_run=["apgd-ce"])
    assert any("use version='rand'" in warning for warning in listed.warnings)
    with pytest.raises(ValueError, match="fab-t does not attack randomised models"):
        evaluate(version="standard")
    with pytest.raises(TypeError) as raised:
        quick(defended, images, labels)
    assert any("needs randomized=True" in note for note in raised.value.__notes__)
    plain = quick(mlp_model(), images, labels, version="rand", num_steps=2)
    assert any("deterministic" in warning for warning in plain.warnings)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    model = mlp_model(classes)
    images, labels = examples(model)
    result = quick(model, images, labels, epsilon=0.05)
    assert 0 <= result.robust_accuracy < result.clean_accuracy
    assert any(f"has {classes}; the targeted margin" in line for line in result.warnings)


def test_losses_fall_back_to_the_margin():
    for classes, expected in [(2, ["apgd-dlr", "apgd-t"]), (3, ["apgd-t"]), (4, [])]:
        chosen, notes = plan("plus", None, classes, Budget())
        assert [note.split(":")[0] for note in notes] == expected
        losses = {a.name: a.run.keywords["loss"] for a in chosen if a.name.startswith("apgd")}
        assert losses["apgd-dlr"] == ("margin" if classes == 2 else "dlr")
        assert losses["apgd-t"] == ("targeted_margin" if classes < 4 else "targeted_dlr")


@pytest.mark.parametrize(("norm", "shape"), [("l2", (5, 7, 3, 1)), ("linf", (5, 4, 9, 3))])
def test_grey_and_oblong_images(shape, norm):
    model = mlp_model(shape=shape)
    images, labels = examples(model, shape, wrong=1)
    epsilon = 0.1 if norm == "linf" else 0.5
    result = quick(model, images, labels, epsilon=epsilon, norm=norm, num_steps=5)
    assert_sound(result, model, images, labels, attacks.threat_model(norm, epsilon))
    assert result.robust_accuracy < result.clean_accuracy


def test_other_data_types_are_taken():
    images, labels = examples()
    plain = apgd_only(mlp_model(), images, labels)
    for changed in (images.astype(np.float64), jnp.asarray(images)):
        assert_same(apgd_only(mlp_model(), changed, labels.astype(np.int64)), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"norm": "l1"}, "norm='l1'"),
        ({"version": "fast"}, "version='fast'"),
        ({"attacks_to_run": ["pgd"]}, "'pgd' is unknown"),
        ({"attacks_to_run": []}, "needs attacks_to_run"),
        ({"attacks_to_run": ["square", "square"]}, "may occur once"),
        ({"version": "standard"}, "goes with version='custom'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"n_target_classes": 0}, "n_target_classes=0"),
        ({"images": np.zeros((0, 6, 4, 2), np.float32), "labels": np.zeros(0, int)}, "empty"),
        ({"images": 255 * examples()[0]}, r"pixels must be in \[0, 1\]"),
        ({"labels": np.full(11, 9)}, "labels lies in 9..9"),
        ({"labels": np.zeros(3, int)}, "labels has shape"),
        ({"indices": np.zeros(3, int)}, "indices has shape"),
        ({"model": lambda x: mlp_model()(x) * jnp.nan}, "NaN or infinite"),
        ({"model": lambda x: x}, r"logits of shape \(11, 6, 4, 2\)"),
    ],
)
def test_bad_arguments(change, message):
    images, labels = examples()
    arguments = {"model": mlp_model(), "images": images, "labels": labels} | change
    attack = inspect.unwrap(attacks.autoattack)  # shapes are unchecked
    with pytest.raises(ValueError, match=message):
        partial(attack, **apgd_only.keywords)(**arguments)


def test_progress_is_told(capsys):
    images, labels = examples()
    apgd_only(mlp_model(), images, labels, batch_size=4, progress=attacks.print_progress)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("clean 1/1: 11/11 attacked, robust accuracy 81.82%")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "apgd-ce 1/1", "apgd-t 1/4", "apgd-t 2/4", "apgd-t 3/4", "apgd-t 4/4",
    ]  # fmt: skip


def test_worst_case_over_seeds():
    images, labels = examples()
    evaluate = partial(
        quick, mlp_model(), images, labels, version="custom", attacks_to_run=["square"],
        num_queries=8, epsilon=0.1,
    )  # fmt: skip
    runs = [evaluate(key=jax.random.key(seed)) for seed in range(3)]
    worst = attacks.worst_case(runs)
    np.testing.assert_array_equal(worst.robust, np.all([run.robust for run in runs], axis=0))
    assert worst.robust_accuracy < max(run.robust_accuracy for run in runs)
    assert list(worst.accuracies) == ["clean", "run 1", "run 2", "run 3"]
    assert_sound(worst, mlp_model(), images, labels, attacks.Linf(0.1))
    with pytest.raises(ValueError, match="different examples"):
        attacks.worst_case([runs[0], apgd_only(mlp_model(), images[:4], labels[:4], num_steps=1)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_single_attacks_agree_with_the_reference(name):
    net = cnn_a.load()
    result = attacks.autoattack(
        net.logits_fn, net.images[:100], net.labels[:100], epsilon=net.epsilon,
        version="custom", attacks_to_run=[name], batch_size=20, progress=None,
    )  # fmt: skip
    _assert_within_spread(result, net, name)


@pytest.mark.slow
def test_standard_agrees_with_the_reference():
    net = cnn_a.load()
    result = attacks.autoattack(
        net.logits_fn, net.images[:100], net.labels[:100], epsilon=net.epsilon,
        batch_size=20, num_queries=300, progress=None,
    )  # fmt: skip
    _assert_within_spread(result, net, "standard")
    assert result.warnings == []


def _assert_within_spread(result, net, name):
    reference = [net.ref[f"robust_{name}_seed{seed}"][:100].sum() for seed in range(3)]
    assert min(reference) - 1 <= result.robust.sum() <= max(reference) + 1
    differing = [np.sum(net.ref[f"robust_{name}_seed{s}"][:100] != result.robust) for s in range(3)]
    assert min(differing) <= 2
