"""Weights from and to PyTorch names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import models
from ancra_jax.errors import UsageError
from ancra_jax.interop import pytorch
from tests.support.reference_weights import random_variables, reference_names, seeded_state_dict

REFERENCES = [
    ("resnet18", "resnet18_ra_cifar10", 10, (32, 32, 3)),
    ("preact_resnet18", "names_preact_resnet18_ra", 200, (64, 64, 3)),
    ("wide_resnet28_2", "names_wide_resnet28_2_ra", 10, (32, 32, 3)),
]


def narrow_variables(name="resnet18", *, num_classes=5, channels=3, size=32):
    network = models.create(name, num_classes=num_classes, width=2, reverse_attention=True)
    return random_variables(network, (size, size, channels))


@pytest.mark.parametrize(("name", "stem", "num_classes", "image_shape"), REFERENCES)
def test_reference_weights_go_there_and_back_exactly(name, stem, num_classes, image_shape):
    state_dict = seeded_state_dict(reference_names(stem))
    variables = pytorch.to_variables(name, state_dict)
    back = pytorch.from_variables(name, variables)
    assert {k for k in state_dict if not k.startswith("sub_block1.")} == set(back)
    for key, value in back.items():
        np.testing.assert_array_equal(value, state_dict[key], err_msg=key)
        assert value.dtype == np.float32 and value.flags.c_contiguous and value.flags.writeable
    network = models.create(name, num_classes=num_classes)
    expected = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, expected)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("name", "channels", "size", "classes"),
    [("resnet18", 1, 16, 2), ("preact_resnet18", 4, 96, 3), ("wide_resnet16_3", 2, 32, 7)],
)
def test_other_widths_channels_classes_and_image_sizes(name, channels, size, classes):
    variables = narrow_variables(name, num_classes=classes, channels=channels, size=size)
    back = pytorch.to_variables(name, pytorch.from_variables(name, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_data_parallel_prefix_counters_and_float64_are_accepted():
    variables = narrow_variables()
    state_dict = {
        f"module.{key}": value.astype(np.float64)
        for key, value in pytorch.from_variables("resnet18", variables).items()
    }
    state_dict["module.bn1.num_batches_tracked"] = np.asarray(12)
    back = pytorch.to_variables("resnet18", state_dict)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(back))


def test_tensors_that_a_code_saves_twice_are_read_once():
    name = "preact_resnet18_raw_shortcut"
    variables = narrow_variables(name)
    state_dict = pytorch.from_variables(name, variables, prefix="module.")
    # As Andriushchenko's network has its normalisation, stem and first batch normalisation again.
    again = {"conv1": 1, "layer1.0.bn1": 2}
    for part, number in again.items():
        for key in [key for key in state_dict if key.startswith(f"module.{part}.")]:
            leaf = key.rsplit(".", 1)[1]
            state_dict[f"module.model_preact_hl1.{number}.{leaf}"] = state_dict[key]
    assert sum("hl1" in key for key in state_dict) == 5
    back = pytorch.to_variables(name, state_dict)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def without(key):
    return lambda state_dict: state_dict.pop(key)


def with_entry(key, value):
    return lambda state_dict: state_dict.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("bn1.weight"), r"1 missing \(bn1\.weight\)"),
        (without("fc.weight"), r"1 missing \(fc\.weight\); there are "),
        (without("conv1.weight"), r"1 missing \(conv1\.weight\); there are "),
        (with_entry("layer9.0.weight", np.zeros(3)), r"1 unexpected \(layer9\.0\.weight\)"),
        (with_entry("bn1.bias", np.zeros(9)), r"1 of wrong shape \(bn1\.bias \(9,\) instead of"),
        (with_entry("fc.weight", np.zeros((5, 17))), r"fc\.weight \(5, 17\) instead of \(5, 16\)"),
        (with_entry("fc.weight", np.zeros(5)), r"fc\.weight \(5,\) instead of 2 dimensions"),
        (with_entry("fc.weight", np.zeros((0, 16))), r"fc\.weight \(0, 16\) instead of"),
        (
            with_entry("conv1.weight", np.zeros((2, 0, 3, 3))),
            r"conv1\.weight \(2, 0, 3, 3\) instead",
        ),
        (with_entry("bn1.bias", [1.0, 2.0]), "are a list: a NumPy array is needed"),
        (with_entry("bn1.bias", np.zeros(2, int)), "floating point is needed"),
    ],
)
def test_wrong_state_dicts_are_refused_by_name(change, message):
    state_dict = pytorch.from_variables("resnet18", narrow_variables())
    change(state_dict)
    with pytest.raises(UsageError, match=message):
        pytorch.to_variables("resnet18", state_dict)


def test_many_wrong_names_are_counted_not_listed():
    state_dict = pytorch.from_variables("resnet18", narrow_variables())
    kept = {key: state_dict[key] for key in ("conv1.weight", "fc.weight")}
    with pytest.raises(UsageError, match=r"100 missing \((\S+, ){3}\.\.\.\)"):
        pytorch.to_variables("resnet18", kept)


def test_variables_of_another_network_or_without_statistics_are_refused():
    variables = narrow_variables()
    with pytest.raises(UsageError, match=r"weights of wide_resnet16_2: .* missing"):
        pytorch.from_variables("wide_resnet16_2", variables)
    with pytest.raises(UsageError, match=r"running_mean"):
        pytorch.from_variables("resnet18", {"params": variables["params"]})
    with pytest.raises(UsageError, match=r"weights of resnet50: .* missing"):
        pytorch.from_variables("resnet50", variables)
    with pytest.raises(UsageError, match=r"layout='keras': .* fc, linear"):
        pytorch.from_variables("resnet18", variables, layout="keras")


@pytest.fixture
def small_state_dict():
    return pytorch.from_variables("resnet18", narrow_variables())


def test_safetensors_files(tmp_path, small_state_dict):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(small_state_dict, path)
    loaded = pytorch.load_state_dict(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, small_state_dict)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        pytorch.load_state_dict(path)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        pytorch.load_state_dict(tmp_path / "missing.safetensors")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(UsageError, match=r"\.safetensors, \.npz files are allowed"):
        pytorch.load_state_dict(tmp_path / "weights.h5")
    torch = pytest.importorskip("torch")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UsageError, match=r"cut\.pt: is not a whole zip"):
        pytorch.load_state_dict(tmp_path / "cut.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(UsageError, match="'epoch' is a int, not a tensor"):
        pytorch.load_state_dict(tmp_path / "epoch.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(UsageError, match="no dict of tensors"):
        pytorch.load_state_dict(tmp_path / "list.pt")
