"""ResNet-18 with reverse attention as an ordinary PyTorch module; names are the interop's."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the sum."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x):
        """Applies the block."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The network of ``ancra_jax.models.ResNet18``, for 32x32 images."""

    def __init__(self, width: int, num_classes: int, reverse_attention: bool):
        super().__init__()
        self.reverse_attention = reverse_attention
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage in range(4):
            features = width * 2**stage
            stride = 1 if stage == 0 else 2
            blocks = [BasicBlock(channels, features, stride), BasicBlock(features, features, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = features
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images, labels=None):
        """Logits of all heads, the final ones first; ``labels`` choose masks in training."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        heads = []
        for block in self.layer4:
            x = block(x)
            if self.reverse_attention:
                logits = self._classify(x)
                heads.append(logits)
                classes = labels if self.training else logits.argmax(1)
                x = x * self.fc.weight[classes][:, :, None, None]
        return [self._classify(x), *heads]

    def _classify(self, x):
        return self.fc(F.avg_pool2d(x, 4).flatten(1).float())


def load(
    shared: Mapping[str, np.ndarray], device: str, reverse_attention: bool = False
) -> ResNet18:
    """The network with the weights that are shared, channels-last."""
    weights = {
        name.removeprefix("weight/"): torch.from_numpy(np.array(value))
        for name, value in shared.items()
        if name.startswith("weight/")
    }
    network = ResNet18(len(weights["conv1.weight"]), 10, reverse_attention)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return network.to(device, memory_format=torch.channels_last)
