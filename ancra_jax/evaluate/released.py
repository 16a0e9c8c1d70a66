"""FGSM and C&W as the authors of ANCRA evaluate with them, where their code is not the paper.

Their FGSM starts at a random point, and their C&W takes 20 steps that follow the margins of a batch
together. Both attack the final logits alone. Their PGD is the paper's.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from ancra_jax import attacks
from ancra_jax.attacks.model import example_keys
from ancra_jax.config.schema import Config, shown
from ancra_jax.errors import UsageError
from ancra_jax.evaluate import paper
from ancra_jax.evaluate.spec import Arrays, Model, Spec, Task
from ancra_jax.ops.hosts import ALONE, Share
from ancra_jax.ops.images import Images
from ancra_jax.results.names import RELEASED
from ancra_jax.types import Batch


@dataclass(frozen=True)
class Settings(paper.Settings):
    """How one of the two attacks is made; the start is uniform in the ball and not clipped."""

    together: int = 0  # examples whose margins are summed; 0: each counts by itself


def specs(config: Config) -> list[Spec]:
    """Return their FGSM and C&W.

    Raises:
      UsageError: the evaluation is of another norm than theirs.
    """
    norm, epsilon = config.evaluation.norm, config.evaluation.epsilon
    if norm != "linf":
        raise UsageError(f"--suite=released: {shown(config, 'evaluation.norm')}: must be 'linf'")
    fgsm = Settings(norm, epsilon, "cross_entropy", epsilon, 1, random_start=True)
    cw = replace(
        fgsm,
        objective="margin",
        step_size=config.evaluation.step_size,
        num_steps=20,
        together=200,  # the batch of their script
    )
    settings = {"fgsm": fgsm, f"cw{cw.num_steps}": cw}
    return [Spec(f"{name}{RELEASED}", asdict(one), _run) for name, one in settings.items()]


def _run(task: Task) -> tuple[Arrays, dict[str, Any]]:
    together, size = task.settings["together"], task.target.batch_size
    if together:  # batches of whole groups
        devices = len(task.target.sharding.device_set) * task.target.share.count
        all_examples = math.ceil(len(task.labels) / devices) * devices
        size = min(math.lcm(together, devices), all_examples)
    return paper.attack_batches(task, attack, size)


def attack(task: Task, batch: Batch, threat_model: attacks.ThreatModel) -> Images:
    """Return the adversarial images of a batch."""
    settings = Settings(**task.settings)
    model = task.target.model
    keys = example_keys(task.key, batch.indices)
    start = batch.images + settings.epsilon * threat_model.noise(keys, batch.images)
    if settings.together:
        return follow_summed_margins(model, start, batch, threat_model, settings, task.target.share)
    return attacks.ascend(
        attacks.objectives.cross_entropy(model, batch.labels),
        start,
        batch.images,
        threat_model,
        step_size=settings.step_size,
        num_steps=settings.num_steps,
    )


def follow_summed_margins(
    model: Model,
    start: Images,
    batch: Batch,
    threat_model: attacks.ThreatModel,
    settings: Settings,
    share: Share = ALONE,
) -> Images:
    """Ascend ``-relu(sum_i (z_y - max_{k != y} z_k))``, summed over groups of examples.

    While the sum is positive, every example ascends its own margin, even if it is misclassified
    already. After that no example of the group moves.

    Args:
      model: the network in the evaluation phase.
      start: the first iterates, taken as they are.
      batch: natural images; rows that repeat the last example, to fill the batch, do not count.
      threat_model: the ball in which all iterates but the first lie.
      settings: the step, how many, and the size of a group.
      share: of the batch, of this process.
    """
    objective = attacks.objectives.margin(model, batch.labels)
    indices = share.gather(batch.indices)
    rows = np.arange(len(indices))
    counts = indices == indices[0] + rows
    groups = rows // settings.together
    x = start
    for _ in range(settings.num_steps):
        margins = np.where(counts, share.gather(objective(x)), 0.0)  # positive where misclassified
        moves = share.own(np.bincount(groups, margins)[groups] < 0)
        moved = attacks.ascend(
            objective,
            x,
            batch.images,
            threat_model,
            step_size=settings.step_size,
            num_steps=1,
        )
        x = jnp.where(moves[:, None, None, None], moved, threat_model.project(x, batch.images))
    return x
