"""The digits that come with scikit-learn: 1,797 grey images of 8x8 pixels, nothing to download."""

import numpy as np

from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.registry import SourceOptions, register

_TEST_EVERY = 5


@register("digits", inspect=lambda options, problems: (1442, 355))
def load_digits(options: SourceOptions) -> Dataset:
    """Load the digits; their intensities 0..16 become 0..255.

    Every fifth of each class, in scikit-learn's order, is a test example: 1,442 to train on, 355 to
    test, the same on every machine.
    """
    del options  # The package carries the data.
    from sklearn import datasets  # Takes a second to import.

    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return Dataset(
        name="digits",
        train=Split(images[~is_test], labels[~is_test]),
        test=Split(images[is_test], labels[is_test]),
        class_names=tuple(str(digit) for digit in range(10)),
    )
