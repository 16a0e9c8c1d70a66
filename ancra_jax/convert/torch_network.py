"""A residual network as a PyTorch module, for images in [0, 1] of [batch, channels, height, width].

    import network

    model = network.load("weights.safetensors")  # in the evaluation phase
    logits = model(images)
    logits, heads = model.outputs(images)  # with the auxiliary logits of reverse attention

Needs PyTorch, and for .safetensors files that package. The normalisation of the images is
a part of the network, so attacks and their epsilon stay on the [0, 1] pixel scale.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SETTINGS: dict[str, Any] = {}


class Settings(NamedTuple):
    """What a network consists of, and what its parts are called."""

    classes: int
    channels: int  # of the images
    stem: int  # channels after the first convolution
    first: int  # features of the first stage; each other stage has twice those of the one before
    sizes: tuple[int, ...]  # number of blocks of each stage
    cells: int = 1  # to which the last feature map is pooled
    window: int = 4  # of the pooling
    block: str = "basic"  # 'basic', 'bottleneck' or 'preact'
    raw_shortcut: bool = False  # of 'preact': shortcuts see the block's input, not its activation
    shortcut_size: int = 1  # side of the kernels of shortcuts
    shifted: bool = False  # strides leave out the first row and column of padding (TensorFlow's)
    stem_norm: bool = True  # normalisation and activation after the first convolution
    final_norm: bool = False  # the same after the last block
    activation: str = "relu"  # or 'silu'
    reverse_attention: bool = False
    mean: tuple[float, ...] = ()  # if any, the network sees (images - mean) / std
    std: tuple[float, ...] = ()
    # Of a block, by its stage from 1, the same from 0, and its place in the stage from 0.
    block_name: str = "layer{stage}.{index}"
    inner: Mapping[str, str] = {}  # other names of parts of blocks
    outer: Mapping[str, str] = {}  # and of the others


class Conv(nn.Conv2d):
    """A convolution without bias, padded by half of its kernel."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, shifted: bool):
        half = size // 2
        before = max(half - stride + 1, 0) if shifted else half
        padding = half if before == half else 0
        super().__init__(inputs, outputs, size, stride, padding, bias=False)
        self.sides = () if before == half else (before, half, before, half)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution."""
        return super().forward(F.pad(x, self.sides) if self.sides else x)


class Part(nn.Module):
    """A module whose parts may have other names, 'shortcut.0' for 'shortcut_conv'."""

    def __init__(self, names: Mapping[str, str]):
        super().__init__()
        self.names = dict(names)

    def put(self, name: str, module: nn.Module) -> None:
        """Add a part; groups on the way to it are made."""
        *groups, last = self.names.get(name, name).split(".")
        place: nn.Module = self
        for group in groups:
            if not hasattr(place, group):
                place.add_module(group, nn.Module())
            place = getattr(place, group)
        place.add_module(last, module)

    def get(self, name: str) -> Any:
        """Return a part."""
        return self.get_submodule(self.names.get(name, name))

    def apply_to(self, x: Tensor, *names: str) -> Tensor:
        """Apply parts one after the other."""
        for name in names:
            x = self.get(name)(x)
        return x


class Block(Part):
    """Convolutions with their normalisations, and a shortcut."""

    def __init__(self, settings: Settings, inputs: int, features: int, stride: int):
        super().__init__(settings.inner)
        self.settings, self.activation = settings, getattr(F, settings.activation)
        # Channels, side of the kernel and stride of each convolution.
        plan = [(features, 3, stride), (features, 3, 1)]
        if settings.block == "bottleneck":
            plan = [(features, 1, 1), (features, 3, stride), (4 * features, 1, 1)]
        self.count, channels = len(plan), inputs
        for number, (outputs, size, step) in enumerate(plan, start=1):
            self.put(f"conv{number}", Conv(channels, outputs, size, step, settings.shifted))
            normalised = channels if settings.block == "preact" else outputs
            self.put(f"bn{number}", nn.BatchNorm2d(normalised))
            channels = outputs
        self.outputs = channels
        self.has_shortcut = stride != 1 or inputs != channels
        if self.has_shortcut:
            size = settings.shortcut_size
            self.put("shortcut_conv", Conv(inputs, channels, size, stride, settings.shifted))
            if settings.block != "preact":
                self.put("shortcut_bn", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        if self.settings.block == "preact":
            activated = self.activation(self.get("bn1")(x))
            if self.has_shortcut:
                x = self.get("shortcut_conv")(x if self.settings.raw_shortcut else activated)
            y = self.activation(self.apply_to(activated, "conv1", "bn2"))
            return x + self.get("conv2")(y)
        y = x
        for number in range(1, self.count):
            y = self.activation(self.apply_to(y, f"conv{number}", f"bn{number}"))
        y = self.apply_to(y, f"conv{self.count}", f"bn{self.count}")
        if self.has_shortcut:
            x = self.apply_to(x, "shortcut_conv", "shortcut_bn")
        return self.activation(y + x)


class Network(Part):
    """The network; other settings than those of this file may be given by name."""

    def __init__(self, **others: Any):
        settings = Settings(**{**SETTINGS, **others})
        super().__init__(settings.outer)
        self.settings, self.activation = settings, getattr(F, settings.activation)
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            if values:
                one = torch.tensor(values).view(1, -1, 1, 1)
                self.register_buffer(self.names.get(name, name), one)
        self.put("conv1", Conv(settings.channels, settings.stem, 3, 1, settings.shifted))
        if settings.stem_norm:
            self.put("bn1", nn.BatchNorm2d(settings.stem))
        channels, self.blocks = settings.stem, []
        for stage, size in enumerate(settings.sizes):
            for index in range(size):
                name = settings.block_name.format(stage=stage + 1, before=stage, index=index)
                stride = 2 if stage and not index else 1
                block = Block(settings, channels, settings.first * 2**stage, stride)
                self.put(name, block)
                self.blocks.append(name)
                channels = block.outputs
        if settings.final_norm:
            self.put("bn", nn.BatchNorm2d(channels))
        self.put("fc", nn.Linear(channels * settings.cells, settings.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.outputs(images)[0]

    def outputs(
        self, images: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits, and the auxiliary logits of the last two blocks.

        There are auxiliary logits with reverse attention only. Each of these blocks' outputs o is
        multiplied by a row of the final layer's weights: that of the class that o's own logits
        predict, or in training that of the labels, which are given for that.
        """
        settings, heads = self.settings, []
        if settings.mean:
            mean, std = (getattr(self, self.names.get(name, name)) for name in ("mean", "std"))
            images = (images - mean) / std
        x = self.get("conv1")(images)
        if settings.stem_norm:
            x = self.activation(self.get("bn1")(x))
        for name in self.blocks[:-2]:
            x = self.get(name)(x)
        for name in self.blocks[-2:]:
            x = self.get(name)(x)
            if settings.reverse_attention:
                x = self._final_activation(x)
                heads.append(self._classify(x))
                x = self._weighted(x, heads[-1].argmax(1) if labels is None else labels)
        if not settings.reverse_attention:
            x = self._final_activation(x)
        return self._classify(x), tuple(heads)

    def _final_activation(self, x: Tensor) -> Tensor:
        return self.activation(self.get("bn")(x)) if self.settings.final_norm else x

    def _pool(self, x: Tensor) -> Tensor:
        window = self.settings.window
        return F.avg_pool2d(x, (min(window, x.shape[2]), min(window, x.shape[3])))

    def _classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.get("fc")(self._pool(x).flatten(1))
        return logits

    def _weighted(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return the map times the classes' rows, whose cells are repeated to the map's size."""
        cells = self._pool(x)
        mask = self.get("fc").weight[classes].view_as(cells)
        for axis in (2, 3):
            size = x.shape[axis]
            nearest = torch.arange(size, device=x.device) * cells.shape[axis] // size
            mask = mask.index_select(axis, nearest)
        return x * mask


def load(path: str, **others: Any) -> Network:
    """Return the network with the weights in a file, in the evaluation phase."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    network = Network(**others)
    network.load_state_dict(weights)
    return network.eval()
