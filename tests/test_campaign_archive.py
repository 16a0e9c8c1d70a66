"""What a campaign carries: exact where it is said to be, and work directories when unpacked."""

import chex
import jax
import numpy as np
import pytest
from small_runs import small_config

from ancra_jax import campaign_archive, compact
from ancra_jax.campaign_archive import checkpoint_files, small_files, write_workdir
from ancra_jax.errors import UsageError
from ancra_jax.train import train


def tree():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 5)).astype(np.float32)
    return {
        "step": np.array(7, np.int32),
        "params": {"conv": {"kernel": kernel, "bias": kernel[0, 0, 0]}},
        "opt_state": [{}, {"trace": kernel * 0.1}, None],
        "batch_stats": {"mean": kernel[1, 1, 1], "empty": np.zeros((0, 3), np.float32)},
        "labels": rng.integers(0, 9, 4),
    }


def test_packing_is_exact():
    packed = compact.decode(compact.encode(tree(), rounded=False))
    assert jax.tree.structure(packed) == jax.tree.structure(tree())
    for one, other in zip(jax.tree.leaves(packed), jax.tree.leaves(tree()), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_rounding_is_of_parameters_and_momentum_alone():
    packed, original = compact.decode(compact.encode(tree(), rounded=True)), tree()
    for key in ("step", "batch_stats", "labels"):
        chex.assert_trees_all_equal(packed[key], original[key])
    for key, error in (("params", 2**-8), ("opt_state", 2**-3)):
        leaves = [jax.tree.leaves(state[key]) for state in (packed, original)]
        for one, other in zip(*leaves, strict=True):
            assert one.dtype == np.float32 and (one != other).any()
            np.testing.assert_allclose(one, other, rtol=error)
    again = compact.decode(compact.encode(packed, rounded=True))
    chex.assert_trees_all_equal(again, packed)  # what is rounded stays


def test_noise_shrinks_to_its_mantissa():
    kernel = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    sizes = [len(compact.encode({"params": kernel}, rounded=rounded)) for rounded in (False, True)]
    assert sizes[0] < 0.88 * kernel.nbytes and sizes[1] < 0.37 * kernel.nbytes


def test_damage_is_noticed():
    data = bytearray(compact.encode(tree(), rounded=False))
    data[len(data) // 3] ^= 1
    with pytest.raises(UsageError, match="damaged"):
        compact.decode(bytes(data))


def test_a_run_carried_elsewhere_has_the_same_state(tmp_path):
    # Self-adaptive training remembers a label for each example, in the train state.
    config = small_config("sat", max_steps=2)
    state = train(config, str(tmp_path / "here"))
    files = small_files(tmp_path / "here") | checkpoint_files(tmp_path / "here", 2, rounded=False)
    write_workdir(tmp_path / "there", files)
    carried = train(config, str(tmp_path / "there"))  # has nothing left to do
    chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, one) for one in (carried, state)))


def test_unfinished_attacks_can_be_left_out(tmp_path):
    names = ("config.json", "evaluation/best/fgsm.json", "evaluation/best/pgd40.0a1.partial.npz")
    write_workdir(tmp_path, {name: b"1" for name in (*names, "tensorboard/events")})
    assert set(small_files(tmp_path)) == set(names)
    assert set(small_files(tmp_path, partial=False)) == set(names[:2])


def test_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign_archive, "PIECE_BYTES", 1000)
    files = {"a/b": np.random.default_rng(0).bytes(2500), "c": b""}
    paths = []
    for number, piece in enumerate(campaign_archive.to_pieces(files)):
        assert len(piece) <= 1000
        paths.append(tmp_path / f"{number:02}")
        paths[-1].write_bytes(piece)
    assert campaign_archive.from_pieces(paths) == files
    for damaged in (paths[:-1], paths[1:], [*paths, tmp_path / "nothing"]):
        with pytest.raises(UsageError, match="incomplete or damaged"):
            campaign_archive.from_pieces(damaged)
