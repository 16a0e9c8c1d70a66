"""Parts of a split: held-out examples and smaller runs."""

import dataclasses

import numpy as np
from jaxtyping import Int, Int32

from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.errors import UsageError

_SUBSET_SEED = 0


def hold_out(split: Split, num_examples: int, seed: int) -> tuple[Split, Split]:
    """Set examples of the training split aside, for the selection of a checkpoint.

    Every class keeps its share of the whole split, to within one example; the seed decides which
    examples are set aside.

    Returns:
      The examples to train on and those set aside: disjoint, each in the split's order.

    Raises:
      UsageError: ``num_examples`` is negative or leaves nothing to train on.
    """
    if not 0 <= num_examples < len(split):
        raise UsageError(
            f"the number of held-out examples must be 0 to {len(split) - 1} (the training split "
            f"has {len(split)}); got {num_examples}"
        )
    chosen = stratified_indices(split.labels, num_examples, seed)
    rest = np.setdiff1d(np.arange(len(split)), chosen)
    return split.take(rest), split.take(chosen)


def subset(
    dataset: Dataset, train_examples: int | None = None, test_examples: int | None = None
) -> Dataset:
    """Return a smaller data set, for short runs; of a split whose number is None all is kept.

    Training examples are chosen at random with a fixed seed, every class with its share; of the
    test split the first ones are kept.

    Raises:
      UsageError: a count is below 1 or above what there is.
    """
    train, test = dataset.train, dataset.test
    if train_examples is not None:
        _check_count("train_examples", train_examples, len(train))
        train = train.take(stratified_indices(train.labels, train_examples, _SUBSET_SEED))
    if test_examples is not None:
        _check_count("test_examples", test_examples, len(test))
        test = Split(test.images[:test_examples], test.labels[:test_examples])
    if train is dataset.train and test is dataset.test:
        return dataset
    return dataclasses.replace(dataset, train=train, test=test, fingerprint="")


def stratified_indices(
    labels: Int32[np.ndarray, "examples"], num_examples: int, seed: int
) -> Int[np.ndarray, "chosen"]:
    """Return ascending positions of ``num_examples`` examples, every class with its share.

    Shares are rounded by the largest remainder, so a class's count differs from its exact share by
    less than one.
    """
    counts = np.bincount(labels)
    shares = counts * num_examples / len(labels)
    quotas = np.floor(shares).astype(int)
    by_remainder = np.argsort(quotas - shares, kind="stable")
    quotas[by_remainder[: num_examples - quotas.sum()]] += 1
    # A stable sort of uniform numbers: unlike Generator.permutation's, their stream is the same in
    # every release of NumPy.
    order = np.argsort(np.random.default_rng(seed).random(len(labels)), kind="stable")
    chosen = [order[labels[order] == label][:quota] for label, quota in enumerate(quotas)]
    return np.sort(np.concatenate(chosen))


def _check_count(field: str, count: int, available: int) -> None:
    if not 1 <= count <= available:
        raise UsageError(f"{field} must be 1 to {available} (what the data set has); got {count}")
