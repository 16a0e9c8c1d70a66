"""What the modules of networks are called in published PyTorch codes.

One table, read in both directions. Reverse attention adds no weights, so networks with and without
it share their names.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ancra_jax import models
from ancra_jax.errors import UsageError
from ancra_jax.models import resnet

Path = tuple[str, ...]
"""Of a leaf in variables, ``('params', 'layer1_0', 'conv1', 'kernel')``."""

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class Layout(NamedTuple):
    """One code's names; modules that are not in it have the same name as ours."""

    block: str  # of a residual block: ``stage`` counts from 1, ``before`` from 0, ``index`` from 0
    inner: Mapping[str, str]  # of modules in a block
    outer: Mapping[str, str] = {}  # of the others

    def name(self, path: Path) -> str:
        """Return ``'layer1.0.conv1.weight'`` for a leaf of variables."""
        *modules, leaf = path[1:]
        names, renamed = self.outer, []
        for module in modules:
            block = re.fullmatch(r"(?:layer|block)(\d+)_(\d+)", module)
            if block:
                stage, index = map(int, block.groups())
                renamed.append(self.block.format(stage=stage, before=stage - 1, index=index))
                names = self.inner
            else:
                renamed.append(names.get(module, module))
        return ".".join([*renamed, _LEAVES.get(leaf, leaf)])


def _residual(head: str, shortcut: str = "shortcut") -> Layout:
    inner = {"shortcut_conv": f"{shortcut}.0", "shortcut_bn": f"{shortcut}.1"}
    return Layout("layer{stage}.{index}", inner, {"fc": head})


def _wide(head: str) -> Layout:
    inner = {"shortcut_conv": "convShortcut"}
    return Layout("block{stage}.layer.{index}", inner, {"bn": "bn1", "fc": head})


_DEEPMIND = {"bn1": "batchnorm_0", "bn2": "batchnorm_1", "shortcut_conv": "shortcut"}

# By network, the first one is what `from_variables` takes unless it is told another.
_LAYOUTS: dict[type, dict[str, Layout]] = {
    models.ResNet18: {  # fc: ANCRA; linear: TRADES-AWP, MART, RobustBench
        "fc": _residual("fc"),
        "linear": _residual("linear"),
        "torchvision": _residual("fc", "downsample"),
    },
    models.PreActResNet18: {  # linear: ANCRA, AWP, RobustBench
        "linear": _residual("linear"),
        "fc": _residual("fc"),
    },
    models.WideResNet: {  # fc: ANCRA, TRADES, MART, AWP, RobustBench
        "fc": _wide("fc"),
        "linear": _wide("linear"),
    },
    resnet.DeepMindPreActResNet18: {
        "deepmind": Layout(
            "layer_{before}.{index}",
            {**_DEEPMIND, "conv1": "conv_2d_1", "conv2": "conv_2d_2"},
            {"conv1": "conv_2d", "bn": "batchnorm", "fc": "logits"},
        )
    },
    resnet.DeepMindWideResNet: {
        "deepmind": Layout(
            "layer.{before}.block.{index}",
            {**_DEEPMIND, "conv1": "conv_0", "conv2": "conv_1"},
            {"conv1": "init_conv", "bn": "batchnorm", "fc": "logits"},
        )
    },
}


def layouts(name: str) -> Mapping[str, Layout]:
    """Return the known layouts of a network that `ancra_jax.models.create` makes, by name.

    Raises:
      UsageError: there is no such network, or no names are known for it.
    """
    network = type(models.create(name, num_classes=2))
    known = next((kind for kind in network.__mro__ if kind in _LAYOUTS), None)
    if known is None:
        raise UsageError(f"model {name!r}: no PyTorch names are known for a {network.__name__}")
    return _LAYOUTS[known]
