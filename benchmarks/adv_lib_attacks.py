"""adv-lib's attacks (github.com/jeromerony/adversarial-library) on what
``benchmarks.torch_autoattack`` attacks, from starts of its own; it has no Square."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from adv_lib import attacks

from benchmarks.measure import Workload
from benchmarks.torch_autoattack import problem, size, wide, workload
from benchmarks.torch_workloads import device_kind, device_mib, matmul, waited

__all__ = ("create", "device_kind", "device_mib", "matmul", "waited")


def create(
    row: str, settings: Mapping[str, Any], shared: Mapping[str, np.ndarray], _: bool
) -> Workload:
    """Builds the workload of a row and runs it once, on the weights that are shared."""
    model, images, labels, epsilon = problem(shared)
    steps = {"norm": math.inf, "n_iter": settings["num_steps"]}

    def run() -> tuple[torch.Tensor, None]:
        if row == "apgd":
            return attacks.apgd(model, images, labels, epsilon, loss_function="ce", **steps), None
        found = attacks.fab(model, images, labels, targeted_restarts=True, restarts=1, **steps)
        return torch.where(wide(size(found - images) <= epsilon), found, images), None

    return workload(run, model, labels)
