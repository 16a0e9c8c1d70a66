"""Masks of random classes in training, a control for reverse attention's masks of the labels."""

from typing import Any

import jax
import jax.numpy as jnp

from ancra_jax.attacks import example_keys
from ancra_jax.config.schema import Config, shown
from ancra_jax.errors import UsageError
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, BatchStats, Examples, Forward, Method, Terms
from ancra_jax.ops.images import Images, Labels
from ancra_jax.types import Batch, Outputs

_SHIFT, _CLASSES = "mask_shift", "mask_classes"  # in ``Plan.extras``


def random_masks(method: Method, config: Config, attack: AttackSettings) -> Method:
    """Let a class drawn for each example choose its masks in training, and not its label.

    The class is uniform over all classes, of a negative too, and the same in all forwards of a
    step. The loss keeps the labels. In the evaluation phase, so for the attacks, nothing changes.
    Off while ``config.method.random_masks`` is False.

    Raises:
      UsageError: there are no masks that labels choose.
    """
    if not config.method.random_masks:
        return method
    for setting, chooses in (
        ("model.reverse_attention", config.model.reverse_attention),
        ("model.attention", config.model.attention != "soft"),
    ):
        if not chooses:
            raise UsageError(
                f"{shown(config, 'method.random_masks')}: needs masks that labels choose, not "
                f"{shown(config, setting)}"
            )

    def prepare(model: core.Model, batch: Batch, key: core.StepKey, epoch: core.Epoch) -> core.Plan:
        plan = method.prepare(model, batch, key, epoch)
        classes = jax.eval_shape(model, batch.images).logits.shape[-1]
        keys = example_keys(jax.random.fold_in(key, core.MASKS), batch.indices)
        shift = jax.vmap(lambda key: jax.random.randint(key, (), 0, classes))(keys)
        return plan._replace(extras=plan.extras | {_SHIFT: shift, _CLASSES: jnp.asarray(classes)})

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        def masked(
            batch_stats: BatchStats, images: Images, labels: Labels
        ) -> tuple[Outputs, BatchStats]:
            return forward(batch_stats, images, mask_classes(examples.extras, labels))

        return method.loss(masked, batch_stats, examples)

    return method._replace(prepare=prepare, loss=loss)


def mask_classes(extras: dict[str, Any], labels: Labels) -> Labels:
    """Return the classes whose rows are the masks of a step: the labels unless they are drawn."""
    if _SHIFT not in extras:
        return labels
    return (labels + extras[_SHIFT]) % extras[_CLASSES]
