"""Histograms, means, overlaps and their intervals against direct NumPy."""

import numpy as np
import pytest

import ancra_jax.evaluate.features as lib

CLASSES = 4  # of which the last has no example
LABELS = np.array([0, 1, 2, 0, 1, 2, 2, 0, 0, 1, 2, 0, 1], np.int32)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(3)
    natural = rng.random((len(LABELS), 5)).astype("f4") + LABELS[:, None] / 4
    return natural, natural + 0.2 * rng.standard_normal(natural.shape).astype("f4")


def direct(one, other, measure):
    if measure == "l2":
        return np.linalg.norm(one - other)
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("rows", [4, 64])
@pytest.mark.parametrize("measure", ["cosine", "l2"])
def test_all_pairs_are_those_of_numpy(features, measure, rows):
    natural, adversarial = (one.astype(float) for one in features)
    attacked = {"adversarial": features[1]}
    found = lib.distances(features[0], attacked, LABELS, CLASSES, rows=rows)
    size = len(LABELS)
    values = np.array([[direct(a, b, measure) for b in natural] for a in natural])
    own = np.array([direct(a, b, measure) for a, b in zip(natural, adversarial, strict=True)])
    pairs = LABELS[:, None] != LABELS[None]
    for kind, (numbers, of) in {
        "others": (values[pairs], np.broadcast_to(LABELS[:, None], (size, size))[pairs]),
        "adversarial": (own, LABELS),
    }.items():
        edges = found[f"{measure}.{kind}.edges"]
        expected = [np.histogram(numbers[of == c], edges)[0] for c in range(CLASSES)]
        inner = numbers[:, None] - edges[1:-1]
        assert np.abs(inner).min() > 1e-6  # rounding moves none across an edge
        np.testing.assert_array_equal(found[f"{measure}.{kind}.counts"], expected)
        means = [numbers[of == c].mean() for c in range(CLASSES - 1)] + [np.nan, numbers.mean()]
        np.testing.assert_allclose(found[f"{measure}.{kind}.mean"][:, 0], means, rtol=1e-5)
    nearer = (values > own[:, None]) if measure == "cosine" else (values < own[:, None])
    overlap = found[f"{measure}.adversarial.overlap"]
    assert 0 < overlap[-1, 0] < 1
    assert overlap[-1, 0] == pytest.approx(nearer[pairs].mean(), rel=1e-5)
    assert overlap[1, 0] == pytest.approx(nearer[pairs & (LABELS == 1)[:, None]].mean(), rel=1e-5)


def test_intervals_resample_examples_with_all_their_pairs(features):
    natural, adversarial = features
    found = lib.distances(natural, {"adversarial": adversarial}, LABELS, CLASSES)
    values = np.linalg.norm(natural[:, None] - natural[None], axis=-1)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        drawn = np.concatenate(
            [rng.choice(np.flatnonzero(c == LABELS), (c == LABELS).sum()) for c in range(3)]
        )
        pairs = LABELS[drawn][:, None] != LABELS[drawn][None]
        means.append(values[drawn][:, drawn][pairs].mean())
    low, high = np.quantile(means, (0.025, 0.975))
    value, *interval = found["l2.others.mean"][-1]
    assert low < value < high
    np.testing.assert_allclose(interval, (low, high), atol=0.25 * (high - low))


def test_equal_features_have_no_distance_and_half_an_overlap():
    same = np.ones((len(LABELS), 3), np.float32)
    found = lib.distances(same, {"adversarial": same}, LABELS, CLASSES)
    np.testing.assert_allclose(found["l2.others.mean"][-1], 0, atol=1e-6)
    np.testing.assert_allclose(found["l2.adversarial.overlap"][-1], 0.5)
    np.testing.assert_allclose(found["norm"][:3], np.sqrt(3), rtol=1e-6)
    assert np.isnan(found["norm"][3])
