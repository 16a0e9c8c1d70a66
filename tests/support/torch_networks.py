"""Weights of PyTorch modules that are as if they were trained. Needs PyTorch."""

import torch


def randomise(network):
    """Give all weights and running statistics values that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or name in ("mean", "std", "mu", "sigma"):
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(drawn * (2 / value[0].numel()) ** 0.5)
        else:
            value.copy_(1 + 0.1 * drawn.abs() if name.endswith(("var", "weight")) else 0.1 * drawn)
    return network.eval()
