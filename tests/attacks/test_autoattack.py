"""What AutoAttack promises: sound successes, and flags that only images, key, settings decide."""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ancra_jax import attacks
from ancra_jax.attacks.autoattack.ensemble import Budget, plan
from ancra_jax.attacks.job import Placement
from ancra_jax.attacks.validation import AttackResult
from tests.support import attacked, cnn_a
from tests.support.processes import run_on_devices
from tests.support.small_mlp import WEIGHTS, examples, mlp, mlp_model

quick = partial(
    attacks.autoattack, norm="linf", epsilon=0.03, num_steps=8, num_queries=40, progress=None
)
custom = partial(quick, version="custom")
PER_EXAMPLE = ("robust", "broken_by", "target")
apgd_only = partial(custom, attacks_to_run=["apgd-ce", "apgd-t"])


def assert_same(first, second, atol=0.0, order=slice(None), names=PER_EXAMPLE):
    """The first result is the second one with its examples in this order."""
    for name in names:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name)[order], name)
    np.testing.assert_allclose(first.images, second.images[order], atol=atol)


def assert_sound(result, model, images, labels, threat_model):
    broken = ~result.robust & (result.broken_by != "clean")
    judged = attacks.is_adversarial(model, result.images, images, labels, threat_model)
    assert np.asarray(judged)[broken].all()
    np.testing.assert_array_equal(result.images[~broken], images[~broken])
    sizes = threat_model.norm(jnp.asarray(result.images - images))
    np.testing.assert_allclose(result.norms, np.where(broken, sizes, 0), atol=1e-6)
    assert (result.queries[result.robust] > 1).all()


@pytest.fixture(scope="module")
def standard():
    return quick(mlp_model(), *examples(), batch_size=8)


def test_standard(standard):
    images, labels = examples()
    left = list(standard.accuracies.values())
    assert list(standard.accuracies) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert left == sorted(left, reverse=True)
    assert standard.clean_accuracy == 9 / 11
    assert standard.robust_accuracy == left[-1] == standard.robust.mean()
    assert 0 < standard.robust_accuracy < standard.clean_accuracy
    assert (standard.broken_by[:2] == "clean").all()
    assert set(standard.broken_by[standard.robust]) == {""}
    assert standard.warnings == []
    assert_sound(standard, mlp_model(), images, labels, attacks.Linf(0.03))
    summary = repr(standard)
    assert all(f"{left:.2%}  {name}" in summary for name, left in standard.accuracies.items())
    assert len(summary.splitlines()) == 6 and "array" not in summary  # no pixels


def test_versions():
    standard = plan("standard", None, 10, Budget(num_steps=7, num_queries=11))
    assert [(a.name, a.num_restarts, a.options.get("num_steps")) for a in standard] == [
        ("apgd-ce", 1, 7), ("apgd-t", 1, 7), ("fab-t", 1, 7), ("square", 1, None),
    ]  # fmt: skip
    assert standard[3].options == {"num_queries": 11}
    plus = plan("plus", None, 10, Budget())
    assert [(a.name, a.targeted, a.num_restarts, a.options.get("num_restarts")) for a in plus] == [
        ("apgd-ce", False, 5, None), ("apgd-dlr", False, 5, None), ("fab", False, 1, 5),
        ("square", False, 1, None), ("apgd-t", True, 1, None), ("fab-t", True, 1, None),
    ]  # fmt: skip
    random = plan("rand", None, 10, Budget(randomized=True))
    assert [attack.options["gradient_draws"] for attack in random] == [20, 20]
    sparse = plan("standard", None, 10, Budget(), "l1")
    assert [(attack.num_restarts, attack.num_passes(9)) for attack in sparse] == [
        (5, 5), (1, 5), (1, 9), (1, 1),
    ]  # fmt: skip
    listed = ["apgd-ce:num_steps=3:num_restarts=2", "fab-t:num_restarts=4:n_target_classes=2"]
    own = plan("custom", listed, 10, Budget())
    assert [attack.name for attack in own] == listed
    assert [attack.num_passes(9) for attack in own] == [2, 2]
    assert own[0].options["num_steps"] == 3 and own[1].options["num_restarts"] == 4
    assert [attack.name for attack in plan("plus", None, 10, Budget(), only="fab")] == ["fab"]
    for classes, replaced in [(2, ["apgd-dlr", "apgd-t"]), (3, ["apgd-t"]), (4, [])]:
        chosen = plan("plus", None, classes, Budget())
        assert [attack.name for attack in chosen if attack.note] == replaced


def useless(images):
    """What an attack returns that claims no success with these images."""
    nothing = jnp.zeros(len(images))
    return AttackResult(images, nothing > 0, nothing, nothing.astype(int))


def test_restarts_have_randomness_of_their_own():
    seen = []

    def spy(model, images, labels, threat_model, *, key, **_):
        seen.append(tuple(jax.random.key_data(key).tolist()))
        return useless(images)

    chosen = [attacks.Attack("first", spy, num_restarts=3), attacks.Attack("second", spy)]
    custom(mlp_model(), *examples(), attacks_to_run=chosen)
    assert len(seen) == len(set(seen)) == 4


def test_flags_depend_on_neither_batch_size_nor_order_nor_types():
    model = mlp_model()
    images, labels = examples()
    whole = apgd_only(model, images, labels, batch_size=64)
    assert 0 < whole.robust_accuracy < whole.clean_accuracy
    wide = images.astype(np.float64), labels.astype(np.int64)
    assert_same(whole, apgd_only(model, *wide, batch_size=3), 1e-6)
    order = np.random.default_rng(0).permutation(len(images))
    on_device = jnp.asarray(images[order])
    permuted = apgd_only(model, on_device, labels[order], indices=order, batch_size=4)
    assert_same(permuted, whole, 1e-6, order)


@pytest.mark.slow
def test_flags_do_not_depend_on_the_number_of_devices(standard, tmp_path):
    path = str(tmp_path / "eight.npz")
    run_on_devices(
        8,
        "import jax, numpy as np\n"
        "import tests.attacks.test_autoattack as t\n"
        "assert len(jax.devices()) == 8\n"
        "result = t.quick(t.mlp_model(), *t.examples(), batch_size=5)\n"
        "names = (*t.PER_EXAMPLE, 'images')\n"
        f"np.savez({path!r}, **{{name: getattr(result, name) for name in names}})",
    )
    with np.load(path) as eight:
        assert_same(dataclasses.replace(standard, **eight), standard, 1e-5)


@given(st.integers(1, 300), st.integers(1, 90))
def test_batches_of_one_size_are_padded_as_little_as_can_be(examples, largest):
    placement = Placement.over(jax.devices()[:1], largest, examples)
    rows, active = map(np.stack, zip(*placement.batches(np.arange(examples) + 7), strict=True))
    assert placement.batch_size == rows.shape[1] <= largest
    assert len(rows) == -(-examples // largest)
    assert 0 <= rows.size - examples < len(rows)
    np.testing.assert_array_equal(rows[active], np.arange(examples) + 7)
    np.testing.assert_array_equal(rows[~active], np.repeat(rows[:, 0], (~active).sum(axis=1)))


@given(st.integers(1, 300), st.integers(1, 90), st.integers(0, 300))
def test_the_last_batches_in_a_long_attack_have_less_padding(examples, largest, left):
    placement = Placement.over(jax.devices()[:1], largest, examples)
    size, left = placement.batch_size, np.arange(min(left, examples))
    batches = list(placement.batches(left, passes=3000))
    sizes = {size} | {part for part in (-(-size // 2), -(-size // 4)) if part >= 8}
    assert {len(rows) for rows, _ in batches} <= sizes
    found = np.concatenate([rows[active] for rows, active in batches] or [left])
    np.testing.assert_array_equal(found, left)
    assert all(active.all() for _, active in batches[:-1])
    padding = sum((~active).sum() for _, active in batches)
    assert padding <= -left.size % size
    if not any(one % min(sizes) for one in sizes):
        assert padding == -left.size % min(sizes)
    # An evaluation that goes on has the batches that it would have had.
    rest = left[len(batches[0][0]) :] if batches else left
    for first, then in zip(batches[1:], placement.batches(rest, passes=3000), strict=True):
        np.testing.assert_array_equal(first[0], then[0])


def test_one_compilation_for_targets_batches_and_checkpoints():
    traces = 0

    def counted(weights, images):
        nonlocal traces
        traces += 1
        return mlp(weights, images)

    def evaluate(seed, epsilon):
        nonlocal traces
        model = mlp_model(seed=seed)
        traces -= 4  # the checks of the model's own calls
        counting = jax.tree_util.Partial(counted, *model.args)
        return quick(counting, *examples(model), batch_size=4, epsilon=epsilon)

    evaluate(0, 0.02)
    first = traces
    evaluate(1, 0.03)
    assert traces == first


def lying(model, images, labels, threat_model, *, active, **_):
    """Claims success with images that are unchanged, outside the ball, outside [0, 1], NaN."""
    rows = jnp.arange(len(images))[:, None, None, None] % 4
    far = jnp.clip(1 - images, 0, 1)
    claimed = jnp.select([rows == 0, rows == 1, rows == 2], [images, far, images - 3.0], jnp.nan)
    return useless(claimed)._replace(success=active)


def test_claims_are_not_believed():
    result = custom(mlp_model(), *examples(), attacks_to_run=[attacks.Attack("liar", lying)])
    assert result.robust_accuracy == result.clean_accuracy


def away(weights, images):
    """Its gradient points away from the decision boundary."""
    return mlp(weights, 2 * jax.lax.stop_gradient(images) - images)


def nan_near(weights, images):
    """NaN wherever a pixel is not a multiple of 1/8."""
    coarse = jnp.all(images * 8 == jnp.round(images * 8), axis=(1, 2, 3))
    return jnp.where(coarse[:, None], mlp(weights, images), jnp.nan)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda w, x: mlp(w, jax.lax.stop_gradient(x)), "zero input gradient on 11 of 11"),
        (lambda w, x: 1e4 * mlp(w, x), "zero input gradient"),
        (lambda w, x: jax.nn.softmax(mlp(w, x)), "probabilities"),
        (lambda w, x: mlp(w, x).astype(jnp.bfloat16), "bfloat16"),
        (
            jax.jit(lambda w, x: mlp(w, x - jax.grad(lambda z: mlp(w, z).sum())(x))),
            "differentiates",
        ),
        (nan_near, "NaN"),
        (away, "Square"),
        (lambda w, x: mlp(w, x) + 0.01 * np.random.default_rng().standard_normal(5), "random"),
    ],
)
def test_warnings(model, words):
    images, labels = examples()
    defended = jax.tree_util.Partial(model, WEIGHTS)
    evaluate = partial(custom, attacks_to_run=["apgd-ce", "square"], num_steps=2, epsilon=0.1)
    result = evaluate(defended, np.round(images * 8) / 8, labels, num_queries=200)
    assert any(words in warning for warning in result.warnings), result.warnings


def test_gradients_of_the_dlr_loss_are_looked_at_as_well():
    """Of two positive logits DLR keeps no gradient in the ratio of the two largest to the third."""
    model = jax.tree_util.Partial(lambda w, x: jax.nn.relu(mlp(w, x)), WEIGHTS)
    evaluate = partial(custom, model, *examples(), num_steps=2)
    along = evaluate(attacks_to_run=["apgd-dlr"])
    assert any("DLR" in warning for warning in along.warnings)
    assert not any("DLR" in warning for warning in evaluate(attacks_to_run=["apgd-ce"]).warnings)


def noisy(weights, images, key):
    return mlp(weights, images + 0.02 * jax.random.normal(key, images.shape))


def test_randomised_model():
    images, labels = examples(wrong=0)
    defended = jax.tree_util.Partial(noisy, WEIGHTS)
    evaluate = partial(quick, images=images, labels=labels, num_steps=2, gradient_draws=3)
    keyed = partial(evaluate, defended, randomized=True)
    result = keyed(version="rand")
    assert list(result.accuracies) == ["clean", "apgd-ce", "apgd-dlr"]
    assert result.warnings == []
    assert result.robust_accuracy < 1
    listed = keyed(version="custom", attacks_to_run=["apgd-ce"])
    assert any("version='rand'" in warning for warning in listed.warnings)
    with pytest.raises(ValueError, match=r"fab-t .* version='rand'"):
        keyed(version="standard")
    with pytest.raises(TypeError) as raised:
        evaluate(defended)
    assert any("randomized=True" in note for note in raised.value.__notes__)
    plain = evaluate(mlp_model(), version="rand")
    assert any("deterministic" in warning for warning in plain.warnings)


def test_a_randomised_model_is_judged_itself_whatever_is_ascended():
    images, labels = examples(wrong=0)
    weights = (WEIGHTS, mlp_model(seed=1).args[0])
    model, other = (jax.tree_util.Partial(noisy, one) for one in weights)
    common = {"key": 0, "num_steps": 2, "randomized": True, "gradient_draws": 2}
    attack = partial(attacks.apgd, model, images, labels, attacks.Linf(1e-5), **common)
    own = attack(loss="margin")
    along = attack(loss=attacks.objectives.margin(other, labels))
    np.testing.assert_array_equal(along.success, own.success)
    assert own.success.mean() < 0.2 < np.mean(along.best_loss > 0)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    model = mlp_model(classes)
    result = quick(model, *examples(model), norm="l2", epsilon=0.3)
    assert_sound(result, model, *examples(model), attacks.L2(0.3))
    assert 0 <= result.robust_accuracy < result.clean_accuracy
    assert any(line.startswith("apgd-t") for line in result.warnings)
    assert f"warning: {result.warnings[0]}" in repr(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"norm": "l0"}, "norm='l0'"),
        ({"version": "fast"}, "version='fast'"),
        ({"attacks_to_run": ["pgd"]}, "attacks_to_run: 'pgd'"),
        ({"attacks_to_run": []}, "attacks_to_run"),
        ({"attacks_to_run": ["square:num_steps=3"]}, ":num_queries=NUMBER"),
        ({"attacks_to_run": ["fab-t:num_steps=many"]}, "fab-t:num_steps=many"),
        ({"only": "square"}, "only='square': allowed are 'apgd-ce', 'apgd-t'"),
        ({"attacks_to_run": ["square", "square"]}, r"attacks_to_run=\['square', 'square'\]"),
        ({"version": "standard"}, "attacks_to_run .* version='standard'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"n_target_classes": 0}, "n_target_classes=0"),
        ({"gradient_draws": 0}, "gradient_draws=0"),
        ({"images": np.zeros((0, 6, 4, 2), np.float32), "labels": np.zeros(0, int)}, "images"),
        ({"images": 255 * examples()[0]}, r"images lies in .* \[0, 1\]"),
        ({"labels": np.full(11, 9)}, "labels lies in 9..9"),
        ({"indices": np.zeros(3, int)}, r"indices has shape \(3,\)"),
        ({"model": lambda x: mlp_model()(x) * jnp.nan}, "NaN"),
        ({"model": lambda x: x}, r"shape \(11, 6, 4, 2\)"),
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
    assert "11/11" in lines[0] and "81.82%" in lines[0]
    assert [line.split(":")[0] for line in lines] == [
        "clean 1/1", "apgd-ce 1/1", "apgd-t 1/4", "apgd-t 2/4", "apgd-t 3/4", "apgd-t 4/4",
    ]  # fmt: skip


def test_worst_case_over_seeds():
    images, labels = examples()
    evaluate = partial(custom, mlp_model(), attacks_to_run=["square"], num_queries=8, epsilon=0.1)
    runs = [evaluate(images, labels, key=jax.random.key(seed)) for seed in range(3)]
    worst = attacks.worst_case(runs)
    np.testing.assert_array_equal(worst.robust, np.all([run.robust for run in runs], axis=0))
    assert worst.robust_accuracy < max(run.robust_accuracy for run in runs)
    assert list(worst.accuracies) == ["clean", "run 1", "run 2", "run 3"]
    assert_sound(worst, mlp_model(), images, labels, attacks.Linf(0.1))
    with pytest.raises(ValueError, match="results"):
        attacks.worst_case([runs[0], evaluate(images[:4], labels[:4])])


def test_the_worst_case_of_other_lists():
    images, labels = examples()
    evaluate = partial(custom, mlp_model(), images, labels, num_steps=4)
    runs = [
        evaluate(attacks_to_run=["square"], num_queries=1, epsilon=1e-6),
        evaluate(attacks_to_run=["apgd-ce:num_steps=7"], epsilon=0.1, search_precision="high"),
    ]
    worst = attacks.worst_case([*runs, runs[1]])
    assert set(runs[1].broken_by) == set(worst.broken_by) >= {"apgd-ce:num_steps=7"}
    assert worst.records == (*runs[0].records, *runs[1].records, *runs[1].records)
    assert worst.denied == runs[0].denied + 2 * runs[1].denied
    assert worst.seconds["apgd-ce:num_steps=7"] == 2 * runs[1].seconds["apgd-ce:num_steps=7"]
    assert worst.search_precision == "highest, high"


@pytest.mark.parametrize("square", ["square", "square:num_queries=300"])
def test_what_square_gains_gives_a_warning(square):
    masked = jax.tree_util.Partial(lambda w, x: mlp(w, jax.lax.stop_gradient(x)), WEIGHTS)
    evaluate = partial(
        custom, masked, *examples(), num_steps=2, num_queries=300, epsilon=0.2, checks=False
    )
    gained = evaluate(attacks_to_run=["apgd-ce:num_steps=1", square])
    assert gained.robust_accuracy < gained.accuracies["apgd-ce:num_steps=1"]
    assert any("Square" in warning for warning in gained.warnings)
    assert not evaluate(attacks_to_run=[square, "apgd-ce"]).warnings


def test_a_number_of_targets_is_the_attacks_own():
    model = attacked.linear_model((4, 4, 2), classes=14)
    images = np.random.default_rng(0).random((3, 4, 4, 2)).astype(np.float32)
    rounds = {}
    evaluate = partial(
        custom, model, images, np.asarray(model(images).argmax(-1)), epsilon=1e-6, num_steps=1,
        progress=lambda event: rounds.update({event.attack: event.rounds}), checks=False,
    )  # fmt: skip
    evaluate(attacks_to_run=["apgd-t:n_target_classes=12", "fab-t"], n_target_classes=3)
    evaluate(attacks_to_run=["fab-t:n_target_classes=40"])
    assert rounds == {
        "clean": 1, "apgd-t:n_target_classes=12": 12, "fab-t": 3, "fab-t:n_target_classes=40": 13,
    }  # fmt: skip
    sparse = plan("standard", None, 10, Budget(n_target_classes=2), "l1")
    assert [attack.num_passes(2) for attack in sparse] == [5, 2, 2, 1]


@pytest.mark.optimized
@pytest.mark.slow
def test_agrees_with_the_reference():
    net = cnn_a.load()
    standard = attacks.autoattack(
        net.model, net.images[:24], net.labels[:24],
        epsilon=net.epsilon, batch_size=8, num_queries=300, progress=None,
    )  # fmt: skip
    assert standard.warnings == []
    apgd_ce = ~np.isin(standard.broken_by, ["clean", "apgd-ce"])
    for name, robust in (("standard", standard.robust), ("apgd-ce", apgd_ce)):
        reference = [net.ref[f"robust_{name}_seed{seed}"][:24] for seed in range(3)]
        counts = [flags.sum() for flags in reference]
        assert min(counts) - 1 <= robust.sum() <= max(counts) + 1, name
        assert min(np.sum(flags != robust) for flags in reference) <= 2, name
