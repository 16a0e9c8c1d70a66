"""The numbers that are computed from results, against formulas and independent implementations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ancra_jax.results import statistics
from ancra_jax.results.names import FINAL, WITH_HEADS


def flags(*values):
    return np.array(values, bool)


@pytest.mark.parametrize(("correct", "examples"), [(0, 7), (7, 7), (1, 3), (5012, 10000)])
def test_wilson_interval(correct, examples):
    z, share = 1.959963984540054, correct / examples
    centre = (share + z**2 / (2 * examples)) / (1 + z**2 / examples)
    half = np.sqrt(share * (1 - share) / examples + z**2 / (4 * examples**2))
    half *= z / (1 + z**2 / examples)
    np.testing.assert_allclose(
        statistics.wilson_interval(correct, examples), (centre - half, centre + half), atol=1e-12
    )


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.booleans(), min_size=1), min_size=1))
def test_survivors_are_right_in_every_result_of_the_examples_that_all_saw(results):
    found = statistics.survivors({name: flags(*one) for name, one in results.items()})
    assert found.tolist() == [all(one) for one in zip(*results.values(), strict=False)]


def test_the_worst_case():
    correct = {"natural": flags(1, 1, 0, 1), "fgsm": flags(1, 0, 1), "cw40": flags(1, 1, 1)}
    worst = statistics.worst_case(correct)
    assert (worst.num_correct, worst.num_examples, worst.accuracy) == (1, 3, 1 / 3)
    assert worst.attacks == ("fgsm", "cw40")
    assert worst.interval == statistics.wilson_interval(1, 3)
    for missing in ({"natural": correct["natural"]}, {"fgsm": correct["fgsm"]}, {}):
        assert statistics.worst_case(missing) is None


PAPER = {"natural": 0.9, "pgd40": 0.5, "fgsm": 0.7, "cw40": 0.4, "autoattack": 0.2}
HEADS = {"pgd40_with_p": 0.3, "fgsm_with_p": 0.1, "cw40_with_p": 0.2}


def test_the_mean_is_the_papers():
    assert statistics.paper_mean(PAPER, FINAL) == pytest.approx((0.5 + 0.7 + 0.4 + 0.2) / 4)
    assert statistics.paper_mean(PAPER, WITH_HEADS) is None
    both = PAPER | HEADS
    assert statistics.paper_mean(both, FINAL) == statistics.paper_mean(PAPER, FINAL)
    assert statistics.paper_mean(both, WITH_HEADS) == pytest.approx((0.3 + 0.1 + 0.2 + 0.2) / 4)
    more = PAPER | {"autoattack_plus": 0.0, "adaptive": 0.0, "square": 0.0, "pgd7": 0.0}
    more |= {"fgsm_released": 0.0, "cw200_released": 0.0}
    assert statistics.paper_mean(more, FINAL) == statistics.paper_mean(PAPER, FINAL)
    assert statistics.paper_mean(PAPER | {"pgd100": 0.1}, FINAL) == pytest.approx(0.35)
    for missing in ("pgd40", "fgsm", "cw40", "autoattack"):
        left = {name: one for name, one in PAPER.items() if name != missing}
        assert statistics.paper_mean(left, FINAL) is None
        assert statistics.paper_mean(left | {"autoattack_plus": 0.1}, FINAL) is None


def test_fooled_are_attacks_that_leave_more_than_natural_on_the_same_examples():
    natural = flags(1, 1, 1, 0, 0, 0)
    correct = {"natural": natural, "fgsm": flags(1, 1, 1), "pgd40": flags(1, 1, 1, 1, 0, 0)}
    assert statistics.fooled(correct) == {"pgd40": pytest.approx((4 / 6, 0.5))}
    assert statistics.fooled({"fgsm": natural}) == {}


def test_the_spread_is_the_sample_standard_deviation():
    values = [0.1, 0.25, 0.7]
    found = statistics.spread(values)
    assert (found.mean, found.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert statistics.spread([0.5]) == statistics.Spread(0.5, 0.0)


def test_a_difference_is_paired():
    one, other = flags(1, 1, 1, 0), flags(0, 1, 0, 0)
    found = statistics.difference([(one, other), (other, other)])
    assert (found.mean, found.num_seeds) == (0.25, 2)
    assert found.low <= found.mean <= found.high
    apart = (flags(*[1] * 50), flags(*[0] * 50))
    assert statistics.difference([apart] * 3).sign == 1
    assert statistics.difference([apart] * 2).sign == 0  # another training may turn it around
    assert statistics.difference([(other, one)] * 3).sign == 0  # four examples say little


def test_bootstrap_interval_of_one_seed_is_that_of_the_examples():
    differences = np.repeat([1, 0, -1], [300, 500, 200])[None]
    low, high = statistics.bootstrap_interval(differences)
    half = 1.96 * differences.std() / np.sqrt(1000)
    np.testing.assert_allclose([low, high], [0.1 - half, 0.1 + half], atol=0.005)


def test_bootstrap_interval_counts_the_variation_of_seeds_and_of_examples():
    rng = np.random.default_rng(1)
    by_seed, by_example = rng.normal(size=(40, 1)), rng.normal(size=(1, 400))
    differences = np.rint(1000 * (by_seed + by_example)).astype(int)
    low, high = statistics.bootstrap_interval(differences)
    deviation = 1000 * np.sqrt(by_seed.var() / 40 + by_example.var() / 400)
    np.testing.assert_allclose((high - low) / (2 * 1.96), deviation, rtol=0.1)
    np.testing.assert_allclose(statistics.bootstrap_interval(np.ones((3, 50), int)), (1, 1))
