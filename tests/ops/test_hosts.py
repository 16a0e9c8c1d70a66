"""How processes share their batches; tests of evaluations and training start real ones."""

from unittest import mock

import jax
import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.data import Split
from ancra_jax.ops.hosts import ALONE, Share, share_of


def test_shares_of_a_batch_follow_each_other():
    split = Split(
        np.arange(10 * 12, dtype=np.uint8).reshape(10, 2, 2, 3), np.arange(10, dtype=np.int32)
    )
    whole = data.batches_for_evaluation(split, 6, 9)
    parts = [data.batches_for_evaluation(split, 6, 9, share=Share(i, 3)) for i in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        jax.tree.map(
            lambda one, *some: np.testing.assert_array_equal(np.concatenate(some), one),
            batch,
            *shares,
        )


def test_a_process_alone_fetches_and_asks_itself():
    assert share_of(jax.devices()) == (ALONE, jax.devices())
    np.testing.assert_array_equal(ALONE.gather({"a": jax.numpy.arange(3)})["a"], [0, 1, 2])
    assert ALONE.from_first(lambda: 3) == 3 and ALONE.is_first and not Share(1, 2).is_first


@pytest.mark.parametrize(
    ("owners", "fits"), [([0, 0, 1, 1], True), ([0, 1, 1], False), ([1, 1], False)]
)
def test_devices_are_those_of_one_process_or_as_many_of_each(monkeypatch, owners, fits):
    devices = [mock.Mock(spec=jax.Device, process_index=owner) for owner in owners]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    if fits:
        assert share_of(devices) == (Share(0, 2), devices[:2])
    else:
        with pytest.raises(ValueError, match="local_devices"):
            share_of(devices)
