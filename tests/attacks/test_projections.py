"""The projections against independent solvers in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from ancra_jax.attacks.fab import distance_to_hyperplane, project_onto_hyperplane
from ancra_jax.attacks.threat_models import L1, L2, Linf, ThreatModel, project_l1
from ancra_jax.ops.bisection import kth_largest

LINF, L_2, L_1 = Linf(1.0), L2(1.0), L1(1.0)
project = jax.jit(project_onto_hyperplane)
BATCH, DIMENSION = 6, 12  # one shape, one compilation, for all examples


def linf_distance(point, normal, value):
    """min t such that |d_i| <= t, 0 <= x + d <= 1, value + <w, d> = 0; None if infeasible."""
    n = len(point)
    eye, column = np.eye(n), -np.ones((n, 1))
    solution = linprog(
        np.r_[np.zeros(n), 1.0],
        A_ub=np.block([[eye, column], [-eye, column]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[normal, 0.0][None],
        b_eq=[-value],
        bounds=[(-x, 1 - x) for x in point] + [(0, None)],
        method="highs",
    )
    return solution.fun if solution.status == 0 else None


def l1_distance(point, normal, value):
    """min sum |d_i| such that 0 <= x + d <= 1, value + <w, d> = 0; None if infeasible."""
    both = np.r_[normal, -normal]  # d is the difference of its positive and its negative part
    limits = [(0, 1 - x) for x in point] + [(0, x) for x in point]
    solution = linprog(np.ones(len(both)), A_eq=both[None], b_eq=[-value], bounds=limits)
    return solution.fun if solution.status == 0 else None


def l2_move(point, normal, value):
    """The Euclidean projection by its optimality condition x + d = clip(x - s w, 0, 1)."""

    def residual(s):
        return value + normal @ (np.clip(point - s * normal, 0, 1) - point)

    bound = 2 / np.min(np.abs(normal[normal != 0])) if np.any(normal) else 0.0
    if residual(bound) * residual(-bound) > 0 or bound == 0.0:
        return None
    s = brentq(residual, -bound, bound, xtol=1e-15, rtol=1e-14, maxiter=500)
    return np.clip(point - s * normal, 0, 1) - point


def problem(seed):
    """Points on and between the borders, normals with zeros and ties, reachable and not."""
    rng = np.random.default_rng(seed)
    points = rng.random((BATCH, DIMENSION))
    points = np.where(rng.random(points.shape) < 0.3, rng.integers(0, 3, points.shape) / 2, points)
    normals = rng.standard_normal(points.shape) * 10.0 ** rng.integers(-3, 3, (BATCH, 1))
    kind = rng.integers(0, 4, (BATCH, 1))
    normals = np.where(kind == 1, np.sign(normals) * 0.5, normals)  # ties
    normals = np.where((kind == 2) & (rng.random(points.shape) < 0.5), 0.0, normals)
    reach = np.abs(normals).sum(-1)
    values = rng.uniform(-1.0, 1.0, BATCH) * reach * rng.choice([0.0, 0.1, 0.5, 2.0], BATCH)
    return tuple(a.astype(np.float32) for a in (points, normals, values))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_moves_are_feasible_and_shortest(seed):
    arrays = problem(seed)
    moves = {norm: np.asarray(project(*arrays, norm), np.float64) for norm in (LINF, L_2, L_1)}
    for i, (x, w, c) in enumerate(zip(*(a.astype(np.float64) for a in arrays), strict=True)):
        scale = max(np.abs(w).sum(), 1e-30)
        best = linf_distance(x, w / scale, c / scale)
        euclidean = l2_move(x, w / scale, c / scale)
        for norm, move in moves.items():
            d = move[i]
            assert np.all((x + d >= -1e-6) & (x + d <= 1 + 1e-6))
            assert np.all(d[w == 0] == 0)
            if best is None:  # the corner where <w, x> is extreme, on the side that reduces |c|
                corner = np.where(w * c < 0, 1 - x, np.where(w * c > 0, -x, 0.0))
                np.testing.assert_allclose(d, corner, atol=1e-6)
            else:
                assert abs(c + w @ d) < 1e-5 * scale, norm
        if best is not None:
            assert np.abs(moves[LINF][i]).max() == pytest.approx(best, abs=1e-5)
            shortest = l1_distance(x, w / scale, c / scale)
            assert np.abs(moves[L_1][i]).sum() == pytest.approx(shortest, abs=1e-4)
        if best is not None and euclidean is not None:
            np.testing.assert_allclose(moves[L_2][i], euclidean, atol=1e-4)


@pytest.mark.parametrize("norm", [LINF, L_2, L_1])
def test_only_the_free_coordinates_move(norm):
    """Not those at their border, and none where the normal or the value is zero."""
    points = np.array([[0.0, 0.9, 0.5, 0.25], [0.5] * 4, [0.5] * 4], np.float32)
    normals = np.array([[1.0, 1.0, -1.0, 0.0], [0.0] * 4, [1.0] * 4], np.float32)
    moves = project(points, normals, np.array([1.3, 0.7, 0.0], np.float32), norm)
    # The first is at its border already, the third may move by 0.5 only, the second does the rest.
    assert np.abs(moves[0]).sum() == pytest.approx(1.3)
    if norm is not L_1:  # under L1 they may share the way in any proportion
        np.testing.assert_allclose(moves[0], [0.0, -0.8, 0.5, 0.0], atol=1e-6)
    np.testing.assert_array_equal(moves[1:], np.zeros((2, 4)))


@pytest.mark.parametrize(("norm", "order"), [(LINF, np.inf), (L_2, 2), (L_1, 1)])
def test_away_from_the_borders_the_distance_is_the_closed_form(norm, order):
    rng = np.random.default_rng(0)
    points = np.full((4, 3072), 0.5, np.float32)
    normals = rng.standard_normal(points.shape).astype(np.float32)
    values = rng.uniform(-1, 1, 4).astype(np.float32)
    moves = project(points, normals, values, norm)
    expected = jax.jit(distance_to_hyperplane)(normals, values, norm)
    np.testing.assert_allclose(np.linalg.norm(moves, order, axis=-1), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", [LINF, L_2, L_1])
def test_breakpoints_over_many_magnitudes(norm):
    """Newton's worst kind of input: every power of two is a breakpoint of its own."""
    powers = 2.0 ** -np.arange(20.0)
    points, normals = powers[None].astype(np.float32), (1 / powers)[None].astype(np.float32)
    for target in (0.5, 10.0, 19.5, 19.99999):
        moves = np.asarray(project(points, normals, np.array([target], np.float32), norm))
        assert target + normals[0].astype(float) @ moves[0] == pytest.approx(0, abs=1e-4)
        assert np.all(-moves <= points)


def test_other_threat_models_are_refused():
    class Other(ThreatModel):
        epsilon = 1.0

    with pytest.raises(ValueError, match="Linf, L2 and L1"):
        project_onto_hyperplane(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones(1), Other())


def l1_solution(point, center, radii):
    """The projection onto the L1 ball and the box by its optimality condition, in double."""
    room, (radius,) = np.where(point > center, 1 - center, center), radii

    def move(shrinkage):
        return np.clip(np.abs(point - center) - shrinkage, 0, room)

    shrinkage = 0.0
    if move(shrinkage).sum() > radius:
        longest = np.abs(point - center).max()
        shrinkage = brentq(lambda s: move(s).sum() - radius, 0, longest, xtol=1e-15)
    return center + np.sign(point - center) * move(shrinkage)


@pytest.mark.parametrize(
    ("count", "steps", "radii"), [(1000, (-2, 1), (-3, 1.2)), (300, (1, 4), (-2, 3.5))]
)
def test_the_l1_ball_and_the_box_together(count, steps, radii):
    """Centers on the borders and in corners; points near and far, and so far that float32 counts.

    Ranges are powers of ten. Float32 rounds a point's difference to its center: beyond ten times
    the range of pixels no result is finer than that.
    """
    rng = np.random.default_rng(0)
    centers = np.clip(rng.uniform(-0.3, 1.3, (count, 24)), 0, 1)
    centers[: count // 5] = rng.integers(0, 2, (count // 5, 24))
    points = centers + rng.standard_normal(centers.shape) * 10 ** rng.uniform(*steps, (count, 1))
    points = np.where(rng.random(points.shape) < 0.2, centers, points)
    sizes = 10 ** rng.uniform(*radii, (count, 1))
    arrays = [a.astype(np.float32) for a in (points, centers, sizes)]
    found = jax.jit(project_l1)(*arrays)
    doubles = [a.astype(np.float64) for a in arrays]
    expected = np.array([l1_solution(*case) for case in zip(*doubles, strict=True)])
    rounded = np.spacing(np.abs(arrays[0]).max(axis=1, keepdims=True)) if steps[1] > 1 else 0
    assert np.all(np.abs(found - expected) <= 1e-6 + 1e-7 * np.abs(expected) + rounded)


def test_l1_images_stay_inside_the_ball_however_many_pixels_they_have():
    rng = np.random.default_rng(0)
    natural = rng.random((2, 100, 100, 3)).astype(np.float32)
    far = natural + rng.standard_normal(natural.shape).astype(np.float32)
    moved = np.asarray(L1(30.0).project(jnp.asarray(far), jnp.asarray(natural)))
    assert moved.min() >= 0 and moved.max() <= 1
    norms = np.abs(moved.astype(np.float64) - natural).sum((1, 2, 3))
    np.testing.assert_allclose(norms, 30.0, rtol=2e-6)
    assert np.all(norms <= 30.0)


def test_kth_largest():
    values = np.random.default_rng(0).integers(0, 9, (5, 40)).astype(np.float32) / 7
    k = np.array([[1], [2], [20], [39], [40]], np.int32)
    expected = np.take_along_axis(-np.sort(-values), k - 1, axis=1)
    np.testing.assert_array_equal(kth_largest(jnp.asarray(values), jnp.asarray(k)), expected)
