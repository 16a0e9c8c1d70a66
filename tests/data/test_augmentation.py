"""CropShift, random erasing and IDBH's transformations against their definitions and Pillow."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from ancra_jax.data import POLICIES, augmentation
from ancra_jax.errors import UsageError
from ancra_jax.run import build
from tests.support.small_runs import small_config

DRAWS = 6000


def drawn(function, image, *arguments):
    """What a function of a key makes of an image, for many keys."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    made = jax.jit(jax.vmap(lambda key: function(key, jnp.asarray(image), *arguments)))
    return np.asarray(made(keys))


def test_crop_shift_draws_as_its_authors_code():
    """Every outcome has the probability that the order of the code's draws gives it."""
    largest, image = 2, np.arange(1, 21, dtype=np.uint8).reshape(4, 5, 1)
    expected = collections.Counter()
    for strength in range(largest + 1):
        for columns in range(strength + 1):
            rows = strength - columns
            places = itertools.product(range(rows + 1), range(columns + 1), repeat=2)
            for top, left, down, right in places:
                kept = image[top : top + 4 - rows, left : left + 5 - columns]
                made = np.pad(kept, ((down, rows - down), (right, columns - right), (0, 0)))
                share = 1 / (largest + 1) / (strength + 1) / ((rows + 1) * (columns + 1)) ** 2
                expected[made.tobytes()] += share
    found = collections.Counter(one.tobytes() for one in drawn(augmentation.crop_shift, image, 2))
    assert set(found) <= set(expected) and len(expected) > 20
    counts = [found[one] for one in expected]
    chi = stats.chisquare(counts, np.array(list(expected.values())) * DRAWS)
    assert chi.pvalue > 1e-3


def test_erasing_draws_as_torchvision():
    """Sides are those of the first of ten tries that fits, the corner is uniform."""
    rng, expected = np.random.default_rng(1), collections.Counter()
    for _ in range(DRAWS):
        for _ in range(10):
            area, ratio = 56 * rng.uniform(0.02, 0.9), math.exp(rng.uniform(*np.log([0.3, 3.3])))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < 7 and width < 8:
                expected[height, width] += rng.uniform() < 0.5
                break
    found, corners = collections.Counter(), collections.Counter()
    image = np.full((7, 8, 1), 9, np.uint8)
    for one in drawn(augmentation.erase, image, 0.5, (0.02, 0.9)):
        rows, columns, _ = np.nonzero(one == 0)
        if len(rows):
            sides = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert len(rows) == sides[0] * sides[1]
            found[sides] += 1
            corners[sides, rows[0], columns[0]] += 1
    pairs = [(found[sides], expected[sides]) for sides in found | expected]
    common = [pair for pair in pairs if min(pair) >= 10]
    assert sum(map(sum, common)) > 0.97 * sum(map(sum, pairs))
    assert stats.chi2_contingency(np.array(common).T).pvalue > 1e-3
    sides = max(found, key=found.get)
    places = (8 - sides[0]) * (9 - sides[1])
    counts = [n for (those, *_), n in corners.items() if those == sides]
    assert len(counts) == places and stats.chisquare(counts).pvalue > 1e-3


def sheared(image, angle, axis):
    tan = math.tan(angle)
    matrix = (1, tan, -tan * image.height / 2, 0, 1, 0)
    if axis == "y":
        matrix = (1, 0, 0, tan, 1, -tan * image.width / 2)
    return image.transform(image.size, Image.AFFINE, matrix, Image.NEAREST)


PILLOW = {
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": lambda image, angle: image.rotate(angle, Image.NEAREST),
    "shear_x": lambda image, angle: sheared(image, angle, "x"),
    "shear_y": lambda image, angle: sheared(image, angle, "y"),
}


@pytest.mark.parametrize("name", PILLOW)
def test_transformations_are_pillows(name):
    rng = np.random.default_rng(2)
    strengths = {"rotate": (-25.0, 7.0), "shear_x": (0.3, -0.1), "shear_y": (0.3, -0.1)}
    function = jax.jit(lambda image, strength: augmentation.transform(name, image, strength))
    for strength in strengths.get(name, (0.29, 1.73)):
        smooth = np.linspace(40, 190, 20)[:, None, None] + rng.normal(0, 20, (20, 24, 3))
        image = smooth.clip(0, 255).astype(np.uint8)
        expected = np.asarray(PILLOW[name](Image.fromarray(image), strength)).astype(int)
        found = np.asarray(function(image, strength)).astype(int)
        # Other arithmetic: a value at the border of two whole numbers, a place between two pixels.
        same = found == expected
        assert same.mean() > 0.985
        if name not in strengths:
            assert np.abs(found - expected).max() <= 1
        assert np.abs(found - image).mean() > 1


@pytest.mark.parametrize("palette", augmentation.PALETTES)
def test_a_palette_is_drawn_by_its_probabilities(palette, monkeypatch):
    """Transformations are told apart by what a stand-in makes of them."""
    kinds = augmentation.PALETTES[palette]
    names = ["shear_x", "shear_y", *(name for name in kinds if name != "shear")]

    def told(name, image, strength):
        number = jnp.full(1, names.index(name), jnp.uint8)
        bits = jax.lax.bitcast_convert_type(jnp.float32(strength), jnp.uint8)
        return jnp.concatenate([number, bits]).reshape(image.shape)

    monkeypatch.setattr(augmentation, "transform", told)
    image = np.zeros((1, 5, 1), np.uint8)
    made = drawn(augmentation.transform_one_way, image, palette).reshape(DRAWS, 5)
    numbers, strengths = made[:, 0], made[:, 1:].copy().view(np.float32)[:, 0]
    counts = {name: int((numbers == i).sum()) for i, name in enumerate(names)}
    shares = {name: kinds.get(name, kinds["shear"])[0] for name in names}
    expected = [share / (2 if "shear" in name else 1) for name, share in shares.items()]
    observed = [counts[name] for name in names]
    assert stats.chisquare(observed, np.array(expected) * DRAWS).pvalue > 1e-3
    for name in ("saturation", "shear_x", "rotate"):
        _, low, high = kinds.get(name, kinds["shear"])
        found = strengths[numbers == names.index(name)]
        if name != "saturation":
            assert stats.binomtest(int((found > 0).sum()), len(found)).pvalue > 1e-3
        if name == "rotate":
            assert set(np.abs(found)) == set(range(low, high))
        else:
            scale = stats.uniform(low, high - low)
            assert stats.kstest(np.abs(found), scale.cdf).pvalue > 1e-3


def test_policies_are_the_authors_and_images_may_be_too_small_for_them():
    data = small_config("natural", data__augmentation="idbh_weak", data__horizontal_flip=True).data
    with pytest.raises(UsageError, match=r"data\.augmentation='idbh_weak': .*10 pixels.* 8x8"):
        build.augmentation(data, (8, 8))
    found = build.augmentation(data, (32, 32))
    assert (found.largest_shift, found.palette, found.erasing) == (10, "color", 0.5)
    assert found.horizontal_flip and not found.crop_padding
    assert POLICIES["idbh_strong"].erasing == 1.0
    padded = small_config("natural", data__crop_padding=8).data
    with pytest.raises(UsageError, match=r"^--config\.data\.crop_padding=8: .*less"):
        build.augmentation(padded, (9, 8))
    assert build.augmentation(padded, (9, 9)).crop_padding == 8
    plain = small_config("natural", data__random_erasing=0.25, data__crop_padding=1).data
    assert build.augmentation(plain, (8, 8)) == augmentation.Augmentation(1, False, erasing=0.25)


def test_an_image_is_augmented_alike_in_any_batch():
    images = np.random.default_rng(3).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    augment = jax.jit(augmentation.augment, static_argnums=3)
    arguments = jax.random.key(4), POLICIES["idbh_svhn"]
    whole = augment(images, jnp.arange(8), *arguments)
    assert whole.dtype == jnp.uint8 and not np.array_equal(whole, images)
    part = augment(images[[5, 2]], jnp.asarray([5, 2]), *arguments)
    np.testing.assert_array_equal(part, whole[jnp.asarray([5, 2])])
