"""Weights of PyTorch modules that are built as published codes are: the same logits, and back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import models
from ancra_jax.interop import pytorch, reading

torch = pytest.importorskip("torch")
from tests.support.torch_networks import Network, randomise  # noqa: E402

F = torch.nn.functional
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]
TWO, DEEP = [2, 2, 2, 2], [3, 4, 6, 3]

resnet = partial(
    Network, "linear", width=4, pre=False, stem_norm=True, shortcut_norm=True, activation=F.relu
)
preact = partial(Network, "linear", TWO, width=4, activation=F.relu)
wide = partial(Network, "wide", [2, 2, 2], width=4, stages=8, window=8, activation=F.relu)
deepmind = {"same": True, "activation": F.silu, "moments": {"mean": MEAN, "std": STD}}

# Name here; a module as in the code; its wrapper when it was saved.
CODES = {
    "TRADES-AWP, MART, RobustBench: ResNet-18": ("resnet18", partial(resnet, TWO), "module."),
    "RobustBench: Modas2021": (
        "resnet18",
        partial(resnet, TWO, moments={"mu": MEAN, "sigma": STD}),
        "",
    ),
    "RobustBench: ResNet-34": ("resnet34", partial(resnet, DEEP), "model."),
    "MART, RobustBench: ResNet-50": ("resnet50", partial(resnet, DEEP, bottleneck=True), "1."),
    "AWP, Rice2020: PreActResNet-18": (
        "preact_resnet18",
        partial(preact, moments={"mu": MEAN, "sigma": STD}),
        "module._orig_mod.",
    ),
    "PreActResNet-18 without final norm": (
        "preact_resnet18_no_final_norm",
        partial(preact, final=False),
        "",
    ),
    "Wong2020, Andriushchenko2020": (
        "preact_resnet18_raw_shortcut",
        partial(preact, final=False, raw=True),
        "net.",
    ),
    "TRADES: WideResNet": ("wide_resnet16_2", partial(wide, twice=True), "module."),
    "AWP, RobustBench: WideResNet": ("wide_resnet16_2", wide, ""),
    "Gowal2020: WideResNet": (
        "dm_wide_resnet16_2",
        partial(Network, "dm_wide", [2, 2, 2], 4, stages=8, window=8, **deepmind),
        "module.0.",
    ),
    "Rebuffi2021: PreActResNet-18": (
        "dm_preact_resnet18",
        partial(Network, "dm_preact", TWO, 4, raw=True, size=3, **deepmind),
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
    tensors = {prefix + key: value for key, value in module.state_dict().items()}
    torch.save({"net": tensors, "epoch": 3}, tmp_path / "w.pth")
    arrays = reading.load_state_dict(tmp_path / "w.pth")
    found = pytorch.identify(name, arrays)
    assert found.prefix == prefix and bool(found.mean) == bool(module.moments)

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
    assert left == set(module.moments or ()) | ({"sub_block1"} if "TRADES: W" in code else set())
