"""The published AutoAttack (github.com/fra31/auto-attack), on what ``benchmarks.torch_autoattack``
attacks. Its rows draw their own starts, and ``fab_t`` has one target, as everywhere."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from autoattack import AutoAttack

from benchmarks.measure import Workload
from benchmarks.torch_autoattack import DEVICE, problem, workload
from benchmarks.torch_workloads import device_kind, device_mib, matmul, waited

__all__ = ("create", "device_kind", "device_mib", "matmul", "waited")

ATTACKS = {"apgd": ["apgd-ce"], "fab_t": ["fab-t"], "square": ["square"]}


def create(
    row: str, settings: Mapping[str, Any], shared: Mapping[str, np.ndarray], _: bool
) -> Workload:
    """Builds the workload of a row and runs it once, on the weights that are shared."""
    model, images, labels, epsilon = problem(shared)
    how = {"version": "standard"}
    if row in ATTACKS:
        how = {"version": "custom", "attacks_to_run": ATTACKS[row]}
    evaluation = AutoAttack(model, eps=epsilon, seed=0, verbose=False, device=DEVICE, **how)
    for attack in (evaluation.apgd, evaluation.apgd_targeted, evaluation.fab):
        attack.n_iter = settings["num_steps"]
    evaluation.square.n_queries = settings["num_queries"]
    evaluation.apgd.n_restarts = 1
    if row == "fab_t":
        evaluation.fab.n_target_classes = 1

    def run() -> tuple[torch.Tensor, None]:
        return evaluation.run_standard_evaluation(images, labels, bs=len(images)), None

    return workload(run, model, labels)
