"""The digits that come with scikit-learn: 1,797 grey images of 8x8 pixels, nothing to download."""

import numpy as np

from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.registry import SourceOptions, register

_TEST_EVERY = 5


@register("digits")
def load_digits(options: SourceOptions) -> Dataset:
    """Reads the digits; their intensities 0..16 become 0..255.

    Test examples are every fifth of each class, in scikit-learn's order: 1,442 to train on, 355 to
    test, the same on every machine.
    """
    del options  # The package carries the data.
    from sklearn import datasets  # Takes a second to import.

    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    number_in_class = np.zeros(len(labels), int)
    for label in range(10):
        of_class = labels == label
        number_in_class[of_class] = np.arange(of_class.sum())
    is_test = number_in_class % _TEST_EVERY == _TEST_EVERY - 1
    return Dataset(
        name="digits",
        train=Split(images[~is_test], labels[~is_test]),
        test=Split(images[is_test], labels[is_test]),
        class_names=tuple(str(digit) for digit in range(10)),
    )
