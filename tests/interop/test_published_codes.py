"""Weights of PyTorch modules that are built as published codes are: the same logits, and back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import models
from ancra_jax.interop import pytorch, reading

torch = pytest.importorskip("torch")
from ancra_jax.convert.torch_network import Network  # noqa: E402
from tests.support.torch_networks import randomise  # noqa: E402

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
TWO, DEEP = (2, 2, 2, 2), (3, 4, 6, 3)

small = partial(Network, classes=5, channels=3, stem=4, first=4)
# What modules are called in the codes, written down a second time.
resnet = partial(
    small,
    inner={"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1"},
    outer={"fc": "linear", "mean": "mu", "std": "sigma"},
)
preact = partial(resnet, sizes=TWO, block="preact", stem_norm=False, final_norm=True)
wide = partial(
    preact,
    sizes=(2, 2, 2),
    first=8,
    window=8,
    block_name="block{stage}.layer.{index}",
    inner={"shortcut_conv": "convShortcut"},
    outer={"bn": "bn1"},
)
deepmind = partial(preact, shifted=True, activation="silu", mean=MEAN, std=STD)
NORMS = {"bn1": "batchnorm_0", "bn2": "batchnorm_1", "shortcut_conv": "shortcut"}

# Name here; a module as in the code; its wrapper when it was saved.
CODES = {
    "TRADES-AWP, MART, RobustBench: ResNet-18": ("resnet18", partial(resnet, sizes=TWO), "module."),
    "RobustBench: Modas2021": ("resnet18", partial(resnet, sizes=TWO, mean=MEAN, std=STD), ""),
    "RobustBench: ResNet-34": ("resnet34", partial(resnet, sizes=DEEP), "model."),
    "MART, RobustBench: ResNet-50": (
        "resnet50",
        partial(resnet, sizes=DEEP, block="bottleneck"),
        "1.",
    ),
    "AWP, Rice2020: PreActResNet-18": (
        "preact_resnet18",
        partial(preact, mean=MEAN, std=STD),
        "module._orig_mod.",
    ),
    "PreActResNet-18 without final norm": (
        "preact_resnet18_no_final_norm",
        partial(preact, final_norm=False),
        "",
    ),
    "Wong2020, Andriushchenko2020": (
        "preact_resnet18_raw_shortcut",
        partial(preact, final_norm=False, raw_shortcut=True),
        "net.",
    ),
    "TRADES: WideResNet": ("wide_resnet16_2", wide, "module."),
    "AWP, RobustBench: WideResNet": ("wide_resnet16_2", wide, ""),
    "Gowal2020: WideResNet": (
        "dm_wide_resnet16_2",
        partial(
            deepmind,
            sizes=(2, 2, 2),
            first=8,
            window=8,
            block_name="layer.{before}.block.{index}",
            inner={**NORMS, "conv1": "conv_0", "conv2": "conv_1"},
            outer={"conv1": "init_conv", "bn": "batchnorm", "fc": "logits"},
        ),
        "module.0.",
    ),
    "Rebuffi2021: PreActResNet-18": (
        "dm_preact_resnet18",
        partial(
            deepmind,
            raw_shortcut=True,
            shortcut_size=3,
            block_name="layer_{before}.{index}",
            inner={**NORMS, "conv1": "conv_2d_1", "conv2": "conv_2d_2"},
            outer={"conv1": "conv_2d", "bn": "batchnorm", "fc": "logits"},
        ),
        "",
    ),
}
SLOW = ("RobustBench: ResNet-34", "MART, RobustBench: ResNet-50")


@pytest.mark.parametrize(
    "code", [pytest.param(code, marks=[pytest.mark.slow] * (code in SLOW)) for code in CODES]
)
def test_logits_are_those_of_pytorch_and_weights_return_bit_for_bit(tmp_path, code):
    name, make, prefix = CODES[code]
    module = randomise(make())
    tensors = module.state_dict()
    if "TRADES: W" in code:  # its network makes the first group twice and uses one
        unused = {f"sub_{key}": one for key, one in tensors.items() if key.startswith("block1")}
        tensors = {**tensors, **unused}
    tensors = {prefix + key: value for key, value in tensors.items()}
    torch.save({"net": tensors, "epoch": 3}, tmp_path / "w.pth")
    arrays = reading.load_state_dict(tmp_path / "w.pth")
    found = pytorch.identify(name, arrays)
    assert found.prefix == prefix and found.mean == module.settings.mean

    images = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    network = models.create(
        name, num_classes=found.num_classes, width=found.width, mean=found.mean, std=found.std
    )
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(network.apply)(found.variables, jnp.asarray(images)).logits
    with torch.no_grad():
        theirs = module(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()), rtol=0)

    back = pytorch.from_variables(name, found.variables, layout=found.layout, prefix=prefix)
    for key, array in back.items():
        np.testing.assert_array_equal(array, tensors[key].numpy(), err_msg=key)
    left = {key.removeprefix(prefix).split(".")[0] for key in tensors.keys() - back.keys()
            if not key.endswith("num_batches_tracked")}  # fmt: skip
    moments = {name for name, _ in module.named_buffers(recurse=False)}
    assert left == moments | ({"sub_block1"} if "TRADES: W" in code else set())
