"""Networks as PyTorch modules whose parts are called as in published codes; for comparisons.

Widths are arguments, so that comparisons are quick. Import it after ``pytest.importorskip``.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Unit(nn.Module):
    """A residual block of any of the codes; modules are called as ``names`` says."""

    def __init__(self, names, inputs, features, stride, *, activation, pre=True, raw=False,
                 same=False, size=1, shortcut_norm=False, bottleneck=False):  # fmt: skip
        super().__init__()
        self.names, self.pre, self.raw, self.same = names, pre, raw, same
        self.activation = activation
        out = 4 * features if bottleneck else features
        plan = [(features, 3, stride), (features, 3, 1)]
        if bottleneck:
            plan = [(features, 1, 1), (features, 3, stride), (out, 1, 1)]
        channels = inputs
        for i, (width, kernel, step) in enumerate(plan):
            self.add_module(names["norm"].format(i), nn.BatchNorm2d(channels if pre else width))
            self.add_module(names["conv"].format(i), self._conv(channels, width, kernel, step))
            channels = width
        self.count = len(plan)
        self.shortcut_name = None
        if stride != 1 or inputs != out:
            layers = [self._conv(inputs, out, size, stride)]
            if shortcut_norm:
                layers.append(nn.BatchNorm2d(out))
            self.shortcut_name = names["shortcut"]
            whole = layers[0] if names["plain_shortcut"] else nn.Sequential(*layers)
            self.add_module(self.shortcut_name, whole)

    def _conv(self, inputs, outputs, kernel, stride):
        padding = 0 if self.same and kernel > 1 else kernel // 2
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        if padding or kernel == 1:
            return conv
        conv.register_forward_pre_hook(
            lambda _, args: F.pad(args[0], (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
        )
        return conv

    def forward(self, x):
        parts = self._modules
        y, first = x, None
        for i in range(self.count):
            norm, conv = (parts[self.names[kind].format(i)] for kind in ("norm", "conv"))
            if self.pre:
                y = self.activation(norm(y))
                first = y if first is None else first
                y = conv(y)
            else:
                y = norm(conv(y))
                y = self.activation(y) if i + 1 < self.count else y
        if self.shortcut_name:
            x = parts[self.shortcut_name](x if self.raw or not self.pre else first)
        return x + y if self.pre else self.activation(x + y)


class Group(nn.Module):
    """A stage whose blocks are in a part of it, as in WideResNets."""

    def __init__(self, name, blocks):
        super().__init__()
        self.add_module(name, nn.Sequential(*blocks))
        self.name = name

    def forward(self, x):
        return self._modules[self.name](x)


NAMES = {
    "linear": {"norm": "bn{}", "conv": "conv{}", "shortcut": "shortcut", "plain_shortcut": False},
    "wide": {"norm": "bn{}", "conv": "conv{}", "shortcut": "convShortcut", "plain_shortcut": True},
    "dm_wide": {
        "norm": "batchnorm_{}",
        "conv": "conv_{}",
        "shortcut": "shortcut",
        "plain_shortcut": True,
    },
    "dm_preact": {
        "norm": "batchnorm_{}",
        "conv": "conv_2d_{}",
        "shortcut": "shortcut",
        "plain_shortcut": True,
    },
}


class FromOne(dict):
    """Names that count from 1 where a number is filled in."""

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if not isinstance(value, str) or "{}" not in value:
            return value
        return _Counted(value)


class _Counted(str):
    def format(self, i):
        return str.format(self, i + 1)


class Network(nn.Module):
    """A stem, stages, a final normalisation and a classifier, called as in a code."""

    def __init__(self, code, sizes, width, *, stages=None, classes=5, final=True, stem_norm=False,
                 moments=None, window=4, twice=False, **options):  # fmt: skip
        super().__init__()
        names = NAMES[code]
        if code in ("linear", "wide"):
            names = FromOne(names)
        if code == "dm_preact":  # convolutions count from 1, normalisations from 0
            names = {**names, "conv": _Counted(names["conv"])}
        stem, norm, head = {
            "linear": ("conv1", "bn" if not stem_norm else "bn1", "linear"),
            "wide": ("conv1", "bn1", "fc"),
            "dm_wide": ("init_conv", "batchnorm", "logits"),
            "dm_preact": ("conv_2d", "batchnorm", "logits"),
        }[code]
        self.activation, self.window, self.moments = options["activation"], window, moments
        if moments:
            for name, values in moments.items():
                self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.stem, self.norm, self.head, self.stem_norm = stem, norm, head, stem_norm
        self.add_module(stem, nn.Conv2d(3, width, 3, padding=1, bias=False))
        channels, first = width, stages or width
        expansion = 4 if options.get("bottleneck") else 1
        groups = []
        for stage, size in enumerate(sizes):
            features, blocks = first * 2**stage, []
            for i in range(size):
                stride = 2 if stage and not i else 1
                blocks.append(Unit(names, channels, features, stride, **options))
                channels = features * expansion
            groups.append(blocks)
        if code == "dm_wide":
            self.layer = nn.Sequential(*(Group("block", blocks) for blocks in groups))
            self.order = ["layer"]
        else:
            form = {"linear": "layer{}", "wide": "block{}", "dm_preact": "layer_{}"}[code]
            self.order = [form.format(i + (code != "dm_preact")) for i in range(len(groups))]
            for name, blocks in zip(self.order, groups, strict=True):
                made = Group("layer", blocks) if code == "wide" else nn.Sequential(*blocks)
                self.add_module(name, made)
        if twice:  # TRADES' WideResNet makes its first group twice and uses one
            unused = [Unit(names, width, first, 1, **options)]
            self.sub_block1 = Group("layer", unused)
        self.final = final
        if stem_norm:
            self.add_module(norm, nn.BatchNorm2d(width))
        elif final:
            self.add_module(norm, nn.BatchNorm2d(channels))
        self.add_module(head, nn.Linear(channels, classes))

    def forward(self, x):
        parts = self._modules
        if self.moments:
            mean, std = (getattr(self, name) for name in self.moments)
            x = (x - mean) / std
        x = parts[self.stem](x)
        if self.stem_norm:
            x = self.activation(parts[self.norm](x))
        for name in self.order:
            x = parts[name](x)
        if self.final and not self.stem_norm:
            x = self.activation(parts[self.norm](x))
        return parts[self.head](F.avg_pool2d(x, self.window).flatten(1))


def randomise(network, seed=0):
    """Give all weights and running statistics values that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or name.rpartition(".")[2] in (
            "mean",
            "std",
            "mu",
            "sigma",
        ):
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(drawn * (2 / value[0].numel()) ** 0.5)
        else:
            value.copy_(1 + 0.1 * drawn.abs() if name.endswith(("var", "weight")) else 0.1 * drawn)
    return network.eval()
