"""Measures loading a data set, and making training batches of it on the device.

    python benchmarks/data_pipeline.py --name=cifar10 --data_dir=DIR

Loads once into an empty cache (decoding) and once from it, then times batches under jit: as they
are, cropped and flipped, and the share of the host.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

from ancra_jax import data


def main() -> None:
    """Measures what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="cifar10", choices=data.names())
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--image_size", type=int, default=None)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as cache_dir:

        def load() -> data.Dataset:
            return data.load(
                args.name,
                data_dir=args.data_dir,
                image_size=args.image_size,
                cache_dir=cache_dir,
            )

        timed("load, decoding", load)
        dataset = timed("load, from the cache", load)
        print(
            f"{args.name}: {len(dataset.train)} + {len(dataset.test)} images of "
            f"{dataset.image_shape}, fingerprint {dataset.fingerprint}"
        )
        split = timed("copy to the device", lambda: data.put_on_device(dataset.train))
        permutation = data.epoch_permutation(jax.random.key(0), len(dataset.train))
        for name, augmentation in (
            ("plain batch", data.Augmentation()),
            ("cropped and flipped batch", data.Augmentation(4, True)),
        ):
            time_batches(name, split, permutation, augmentation, args.batch_size, args.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory, mapped files included: {peak:.0f} MiB")


def time_batches(
    name: str,
    split: data.DeviceSplit,
    permutation: jax.Array,
    augmentation: data.Augmentation,
    batch_size: int,
    steps: int,
) -> None:
    """Prints the time of a batch, and of dispatching it."""

    @jax.jit
    def take(split, permutation, step):
        key = jax.random.fold_in(jax.random.key(0), step)
        position = step * batch_size % (len(permutation) - batch_size + 1)
        return data.training_batch(split, permutation, position, batch_size, key, augmentation)

    jax.block_until_ready(take(split, permutation, 0))
    dispatch = 0.0
    start = time.perf_counter()
    for step in range(steps):
        before = time.perf_counter()
        batch = take(split, permutation, step)
        dispatch += time.perf_counter() - before
        jax.block_until_ready(batch)
    total = time.perf_counter() - start
    print(
        f"{name} of {batch_size}: {1e3 * total / steps:.2f} ms, "
        f"of which dispatch {1e3 * dispatch / steps:.2f} ms"
    )


def timed(what: str, function: Callable[[], Any]) -> Any:
    """Calls the function and prints its wall and processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(function())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what}: {wall:.2f} s (processor time {cpu:.2f} s)")
    return result


if __name__ == "__main__":
    main()
