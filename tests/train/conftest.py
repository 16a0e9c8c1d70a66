"""Runs that several tests look at, or begin with."""

import numpy as np
import pytest

from ancra_jax.train.loop import train
from tests.support.small_runs import arrays, small_config


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
    """The directory of an uninterrupted run of natural training, and its final state."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, arrays(train(small_config(), str(workdir)))


@pytest.fixture(scope="package")
def extra_data(tmp_path_factory):
    """Settings that mix images from a file into every batch."""
    path = tmp_path_factory.mktemp("extra") / "extra.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    np.savez(path, image=images, label=rng.integers(0, 10, 50))
    return {"extra_data__path": str(path), "extra_data__fraction": 0.25}
