"""Measures loading a data set: once into an empty cache (decoding), once from it, to the device.

    python benchmarks/data_pipeline.py --name=cifar10 --data_dir=DIR

``python -m benchmarks --rows=data_pipeline`` measures the batches of the training step.
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
        timed("copy to the device", lambda: data.put_on_device(dataset.train))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory, mapped files included: {peak:.0f} MiB")


def timed(what: str, function: Callable[[], Any]) -> Any:
    """Calls the function and prints its wall and processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(function())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what}: {wall:.2f} s (processor time {cpu:.2f} s)")
    return result


if __name__ == "__main__":
    main()
