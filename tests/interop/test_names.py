"""Names of published codes, whatever prefix they have and whatever stands beside them."""

import functools

import jax
import numpy as np
import pytest

from ancra_jax import models
from ancra_jax.errors import UsageError
from ancra_jax.interop import names, pytorch
from tests.support.reference_weights import random_variables

PUBLISHED = {
    ("resnet18", "fc"): (102, "fc.weight layer4.1.bn2.running_var layer2.0.shortcut.0.weight"),
    ("resnet18", "linear"): (102, "linear.bias bn1.weight layer2.0.shortcut.1.running_mean"),
    ("resnet34", "linear"): (182, "layer3.5.conv2.weight layer4.2.bn1.bias"),
    ("resnet50", "linear"): (267, "layer1.0.shortcut.0.weight layer3.5.conv3.weight"),
    ("resnet50", "torchvision"): (
        267,
        "layer1.0.downsample.1.bias layer4.0.bn3.running_var fc.bias",
    ),
    ("preact_resnet18", "linear"): (90, "bn.running_mean linear.weight layer2.0.shortcut.0.weight"),
    ("preact_resnet18_raw_shortcut", "linear"): (86, "layer1.0.bn1.running_var linear.bias"),
    ("preact_resnet34_no_final_norm", "linear"): (166, "layer3.5.bn2.weight"),
    ("wide_resnet34_10", "fc"): (
        160,
        "conv1.weight block1.layer.0.convShortcut.weight block3.layer.4.bn2.bias bn1.running_mean",
    ),
    ("dm_wide_resnet28_10", "deepmind"): (
        130,
        "init_conv.weight layer.0.block.0.batchnorm_0.running_mean layer.2.block.3.conv_1.weight "
        "layer.1.block.0.shortcut.weight batchnorm.weight logits.bias",
    ),
    ("dm_preact_resnet18", "deepmind"): (
        90,
        "conv_2d.weight layer_0.0.batchnorm_1.weight layer_3.1.conv_2d_2.weight "
        "layer_1.0.shortcut.weight logits.weight",
    ),
}
PREFIXES = ("", "module.", "_orig_mod.", "model.", "net.1.", "module._orig_mod.model.1.")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


@functools.cache
def narrow(name):
    network = models.create(name, num_classes=5, width=2)
    return random_variables(network, (32, 32, 3))


@pytest.mark.parametrize(("name", "layout"), PUBLISHED)
def test_names_of_published_codes_go_there_and_back(name, layout):
    variables = narrow(name)
    count, samples = PUBLISHED[name, layout]
    for prefix in PREFIXES if layout == "fc" else PREFIXES[-1:]:
        state_dict = pytorch.from_variables(name, variables, layout=layout, prefix=prefix)
        assert len(state_dict) == count
        assert {prefix + sample for sample in samples.split()} <= state_dict.keys()
        found = pytorch.identify(name, state_dict)
        assert (found.layout, found.prefix) == (layout, prefix)
        assert (found.num_classes, found.width, found.channels) == (5, 2, 3)
        jax.tree.map(np.testing.assert_array_equal, found.variables, variables)


@pytest.mark.parametrize(
    ("prefix", "mean", "std"),
    [
        ("", "mu", "sigma"),
        ("", "mean", "std"),
        ("1.", "0.mean", "0.std"),
        ("model.", "normalize.mean", "normalize.std"),
        ("module.model.", "module.normalizer.new_mean", "module.normalizer.new_std"),
    ],
)
def test_the_normalisation_of_a_model_is_found(prefix, mean, std):
    state_dict = pytorch.from_variables("resnet18", narrow("resnet18"), prefix=prefix)
    moments = {mean: np.float32(MEAN), std: np.float32(STD)}
    shape = (1, 3, 1, 1)
    found = pytorch.identify(
        "resnet18", state_dict | {k: moments[k].reshape(shape) for k in moments}
    )
    np.testing.assert_array_equal(np.float32(found.mean), moments[mean])
    np.testing.assert_array_equal(np.float32(found.std), moments[std])
    one = {mean: np.float32([0.5]), std: np.float32([0.25])}
    assert pytorch.identify("resnet18", state_dict | one).std == (0.25,) * 3
    with pytest.raises(UsageError, match=r"mean.*identify"):
        pytorch.to_variables("resnet18", state_dict | one)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mean": np.zeros(3)}, r"of mean and std there is only mean"),
        ({"mean": np.zeros(2), "std": np.ones(3)}, r"mean of the images must be one number, or 3"),
        ({"mean": np.zeros(3), "0.mean": np.ones(3), "std": np.ones(3)}, r"same everywhere"),
        ({"branch2.conv1.weight": np.zeros((2, 3, 3, 3))}, r"1 unexpected \(branch2\.conv1\.w"),
    ],
)
def test_what_is_no_part_of_the_network_is_refused(more, message):
    state_dict = pytorch.from_variables("resnet18", narrow("resnet18"))
    with pytest.raises(UsageError, match=message):
        pytorch.identify("resnet18", state_dict | more)


def test_a_refusal_names_what_is_missing_and_shows_what_is_there():
    state_dict = pytorch.from_variables("wide_resnet16_2", narrow("wide_resnet16_2"))
    with pytest.raises(UsageError) as error:
        pytorch.identify("resnet18", state_dict)
    for part in ("missing (", "layer1.0.bn1", "unexpected (", "block1.layer.0"):
        assert part in str(error.value)


def test_every_network_has_names():
    for name in models.available():
        if not name.startswith(("mlp", "tiny", "plain", "dense")):  # those of other tests
            example = name.format(depth=16, factor=1, hidden=8)
            assert names.layouts(example), name
