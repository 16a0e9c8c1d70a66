import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ancra_jax.attacks import L1, L2, Linf
from ancra_jax.attacks.model import example_keys
from ancra_jax.attacks.square import Search, pattern, square, windows
from ancra_jax.attacks.square import proposal as eager_proposal
from ancra_jax.attacks.square import starting_point as eager_starting_point
from tests.support import cnn_a
from tests.support.attacked import problem

KEY = jax.random.key(0)
proposal, starting_point = jax.jit(eager_proposal), jax.jit(eager_starting_point)
BALLS = [Linf(8 / 255), L2(0.5)]


def search_around(images, ball):
    """A search for its windows alone, without anything to evaluate."""
    keys = example_keys(KEY, jnp.arange(len(images)))
    labels = jnp.zeros(len(images), jnp.int32)
    return Search(None, keys, images, labels, ball, windows(ball, *images.shape[1:3], 0.8))


@pytest.mark.parametrize("ball", BALLS)
def test_queries_are_spent_until_an_image_is_misclassified(ball):
    net = cnn_a.load()
    x, y = net.images[:16], net.labels[:16]
    result = square(net.model, x, y, ball, key=KEY, num_queries=100)
    success = np.asarray(result.success)
    assert 0 < success.sum() < len(x)
    wrong = net.ref["logits"][:16].argmax(-1) != y
    np.testing.assert_array_equal(result.queries[wrong], 1)
    np.testing.assert_array_equal(result.queries[~success], 102)
    assert np.all(np.asarray(result.best_loss)[~success] <= 0)


@pytest.mark.parametrize("ball", [Linf(0.02), L2(0.2)])
def test_more_queries_continue_the_same_search(ball):
    model, images, labels = problem()
    attack = partial(square, model, images, labels, ball, key=KEY)
    few, more, many = (attack(num_queries=n).best_loss for n in (1, 20, 200))
    assert np.all(few <= more) and np.all(more <= many) and np.any(more < many)


@pytest.mark.parametrize("ball", BALLS)
def test_start_and_proposals_stay_in_the_ball_and_change_windows_alone(ball):
    images = jnp.asarray(np.random.default_rng(0).random((5, 32, 32, 3)), jnp.float32)
    search = search_around(images, ball)
    start = starting_point(search, search.keys)
    keys = example_keys(jax.random.key(1), jnp.arange(5))
    after = proposal(search, keys, start, jnp.asarray(5000))
    for candidate in (start, after):
        assert np.all((candidate >= 0) & (candidate <= 1))
        assert np.all(ball.norm(candidate - images) <= ball.epsilon + 1e-6)
    if isinstance(ball, Linf):  # every pixel outside of one 3x3 window is left as it was
        assert np.all(np.sum(np.any(after != start, -1), (1, 2)) <= 9)
        assert np.any(after != start)
        stripes = images + ball.epsilon * jnp.sign(start - images)
        np.testing.assert_allclose(start, np.clip(stripes, 0, 1), atol=1e-6)
        clipped = (images <= 0.05) | (images >= 0.95)
        signs = np.ma.masked_array(np.sign(start - images), clipped)
        np.testing.assert_array_equal(signs.min(axis=1), signs.max(axis=1))


def test_l2_proposals_keep_the_energy_of_the_other_pixels():
    """Far from the borders the norm stays epsilon, and only two windows change their content."""
    ball = L2(0.5)
    images = jnp.full((64, 16, 16, 3), 0.5)
    search = search_around(images, ball)
    start = starting_point(search, search.keys)
    keys = example_keys(jax.random.key(1), jnp.arange(64))
    after = proposal(search, keys, start, jnp.asarray(4500))
    np.testing.assert_allclose(ball.norm(start - images), 0.5, rtol=1e-5)
    np.testing.assert_allclose(ball.norm(after - images), 0.5, rtol=1e-5)
    changed = np.any(np.abs(after - start) > 1e-4, -1)
    assert np.all(np.sum(changed, (1, 2)) <= 18) and np.all(np.any(changed, (1, 2)))
    # The second window is empty afterwards, all of it where it does not overlap the first.
    emptied = np.sum(np.all(np.abs(after - images) < 1e-6, -1) & changed, (1, 2))
    assert np.median(emptied) == 9


def test_window_sizes():
    """The schedule of the reference implementation at 32x32."""
    steps = [0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001]
    phases = [sum(step > h for h in (10, 50, 200, 500, 1000, 2000, 4000)) for step in steps]
    linf = windows(BALLS[0], 32, 32, 0.8)
    assert [int(linf.heights[p]) for p in phases] == [29, 29, 20, 20, 14, 10, 7, 5, 4, 3]
    l2 = windows(BALLS[1], 32, 32, 0.8)
    assert [int(l2.heights[p]) for p in phases] == [29, 29, 21, 21, 15, 11, 7, 5, 5, 3]
    assert l2.tile.shape == (6, 6)
    wide = windows(BALLS[0], 4, 100, 0.8)
    assert (int(wide.heights[0]), int(wide.widths[0])) == (4, 18)


@pytest.mark.parametrize("side", [1, 2, 3, 6, 11])
@pytest.mark.parametrize(("norm", "order", "decay"), [("l2", 2, 2), ("l1", 1, 4)])
def test_pattern_is_a_sum_of_nested_rectangles(side, norm, order, decay):
    def scaled(x):
        return x / np.linalg.norm(x.ravel(), order)

    def half(rows, columns):
        total = np.zeros((rows, columns))
        top, left = rows // 2, columns // 2
        for k in range(max(top, left) + 1):
            rectangle = total[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1]
            rectangle += 1 / (k + 1) ** decay
        return scaled(total)

    upper = half(side // 2, side) if side > 1 else np.zeros((0, 1))
    expected = scaled(np.concatenate([upper, -half(side - side // 2, side)]))
    np.testing.assert_allclose(pattern(side, norm), expected, atol=1e-12)


def test_l1_windows_get_the_norm_of_theirs_once_for_every_channel():
    """In images as small as the window, both windows are all of it; the projection follows."""
    ball, images = L1(0.4), jnp.full((8, 3, 3, 3), 0.5)
    search = search_around(images, ball)
    start = starting_point(search, search.keys)
    after = proposal(search, example_keys(jax.random.key(1), jnp.arange(8)), start, jnp.int32(5000))
    old = np.moveaxis(np.asarray(start - images), -1, 1)  # example, channel, row, column
    energy = np.abs(old).sum((2, 3), keepdims=True)
    candidates = []
    for eta in (pattern(3, "l1"), pattern(3, "l1").T):
        for signs in np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T:
            new = signs[:, None, None] * eta + old / energy
            new *= 3 * energy / np.abs(new).sum((2, 3), keepdims=True)
            candidates.append(0.5 + np.moveaxis(new, 1, -1).astype(np.float32))
    moved = ball.project(jnp.concatenate(candidates), jnp.tile(images, (16, 1, 1, 1)))
    errors = np.abs(np.asarray(moved).reshape(16, *images.shape) - after).max((2, 3, 4))
    assert errors.min(0).max() < 1e-5 < np.median(errors)


def test_what_fools_the_model_is_kept_even_if_nothing_is_to_ascend():
    flat = Partial(lambda x: jnp.zeros(len(x)))
    blind = square(*problem(), Linf(0.1), key=KEY, num_queries=100, loss=flat)
    assert np.any(blind.success) and np.all(blind.best_loss == 0)


def test_forward_passes_only_and_none_when_all_are_done():
    calls = []

    @jax.custom_jvp
    def opaque(x):
        jax.debug.callback(lambda: calls.append(1))
        return x.reshape(len(x), -1)[:, :2]

    @opaque.defjvp
    def _(primals, tangents):
        raise AssertionError("Square differentiated the model")

    images = np.zeros((4, 2, 2, 1), np.float32)
    images[:, 0, 0] = 0.5
    for loop in ("host", "compiled"):
        calls.clear()
        labels = np.array([1, 1, 1, 0])  # the first three are misclassified already
        active = np.array([True, True, True, False])
        square(opaque, images, labels, Linf(0.1), key=KEY, active=active, loop=loop)
        jax.effects_barrier()
        assert len(calls) == 3, loop  # one of them looks at the natural images before


@pytest.mark.parametrize(
    ("num_queries", "attacked", "groups"),
    [(30, 3, [16]), (500, 3, [4]), (500, 27, [16, 8, 4]), (30, 27, [16, 16])],
)
def test_finished_examples_are_left_out(num_queries, attacked, groups):
    """Some of forty are attacked, in groups that are smaller only where many queries follow."""
    rows = []

    def never_fooled(x):
        jax.debug.callback(lambda: rows.append(len(x)))
        return jnp.array([[1.0, 0.0]] * len(x))

    images, active = np.full((40, 3, 3, 1), 0.5, np.float32), np.arange(40) * 7 % 40 < attacked
    found = square(
        never_fooled, images, np.zeros(40, int), Linf(0.1), key=KEY, active=active,
        num_queries=num_queries, loop="host",
    )  # fmt: skip
    jax.effects_barrier()
    assert rows[:3] == [40] * 3
    assert sorted(rows[3:]) == sorted(groups * num_queries)
    np.testing.assert_array_equal(found.queries, np.where(active, num_queries + 2, 0))


@pytest.mark.parametrize("loop", ["host", "compiled"])
@pytest.mark.parametrize("ball", BALLS)
def test_as_many_proposals_as_queries_on_the_schedule_of_the_reference(ball, loop, monkeypatch):
    """N proposals after the start, numbered from 0 on the schedule of window sizes."""
    steps, calls = [], []

    def watched(search, keys, images, step):
        jax.debug.callback(lambda i: steps.append(int(i)), step, ordered=True)
        return eager_proposal(search, keys, images, step)

    def never_fooled(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.array([[1.0, 0.0]] * len(x))

    monkeypatch.setattr(sys.modules[square.__module__], "proposal", watched)
    problem = never_fooled, np.full((2, 8, 8, 1), 0.5, np.float32), np.array([0, 0]), ball
    result = square(*problem, key=KEY, num_queries=113, loop=loop)
    jax.effects_barrier()
    assert steps == list(range(113))
    assert len(calls) == 116 and result.queries.tolist() == [115, 115]


@pytest.mark.optimized
@pytest.mark.slow
def test_robust_examples_agree_with_the_reference():
    """The published code; an example may differ, as the random windows do."""
    net = cnn_a.load()
    rows = np.flatnonzero(net.ref["logits"].argmax(-1)[:24] == net.labels[:24])
    problem = net.model, net.images[rows], net.labels[rows], Linf(cnn_a.EPSILON)
    found = square(*problem, key=KEY)
    assert np.max(found.queries) == 5002
    recorded = [net.ref[f"robust_square_seed{seed}"][rows].sum() for seed in range(3)]
    assert min(recorded) - 1 <= np.sum(~found.success) <= max(recorded) + 1
