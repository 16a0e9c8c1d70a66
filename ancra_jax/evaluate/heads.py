"""What each head of a network with reverse attention contributes to training, and what it repeats.

The heads are ``a_1`` and ``a_2``, the auxiliary logits of the last two blocks, and ``f``, the final
logits. In the training phase the masks are those of the labels: all that comes after the first mask
may only repeat the label.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ancra_jax import losses, methods
from ancra_jax.attacks.model import Model, example_keys, fold_each
from ancra_jax.attacks.objectives import cross_entropy_term
from ancra_jax.config.schema import Config
from ancra_jax.data import batches_for_evaluation
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.spec import Target
from ancra_jax.methods.random_masks import mask_classes
from ancra_jax.ops.images import Images, Labels
from ancra_jax.results.statistics import wilson_interval
from ancra_jax.types import Batch, Logits, Outputs, Scalar

_WRONG, _NOISE = 1, 2  # folded into the keys of the examples
_LATE = 10**6  # an epoch in which the method does all that it ever does

Heads = Float[Array, "heads batch classes"]


def measure_heads(config: Config, target: Target, count: int, seed: int = 0) -> dict[str, Any]:
    """Measure every head on examples of the test split, with the attacks of the run's own training.

    Args:
      config: of the training.
      target: the network and the examples; the training phase normalises each batch by itself, and
        as in training a last batch that is not full is left out.
      count: how many of the first examples to look at.
      seed: of the attacks' starts, the negatives, the wrong masks and the noise.

    Returns:
      ``num_examples``, ``batch_size`` and ``heads``: for each its ``title`` and, as ``value``,
      ``low`` and ``high`` (95 %): the cross-entropy ``natural`` and ``adversarial`` and the ``kl``
      between both in the training phase, None where the method has no attack; the shares
      ``negatives_matched`` (predicted as their anchor is; None without negatives), and
      ``follows_on_images`` and ``follows_on_noise`` (predicts the class whose mask is forced upon
      both blocks, never the label, in the evaluation phase).

    Raises:
      UsageError: the network has no reverse attention, or there are too few examples.
    """
    if not config.model.reverse_attention:
        raise UsageError(
            f"{config.name}: its network has no reverse attention, so there are no heads to compare"
        )
    together = config.model.batch_norm_parts or 1
    if count < max(2, together):  # an interval takes two examples, a batch all its parts
        raise UsageError(
            f"--num_examples={count}: must be at least {max(2, together)} to look at heads"
        )
    size = min(target.batch_size, count) // together * together or together
    method = methods.create(config)
    key = jax.random.key(seed)
    parts: dict[str, list[np.ndarray]] = {}
    state = None
    for number, (batch, _) in enumerate(
        batches_for_evaluation(target.split, size, count // size * size)
    ):
        step_key = jax.random.fold_in(key, number)
        if state is None:
            classes = jax.eval_shape(target.model, batch.images).logits.shape[-1]
            state = method.init_state(jnp.asarray(target.split.labels), classes)
        found = _training_phase(method, target.model, batch, step_key, state)
        found |= _forced(target.model, batch, example_keys(key, batch.indices))
        for name, values in found.items():
            parts.setdefault(name, []).append(np.asarray(values))
    arrays = {name: np.concatenate(one, axis=1) for name, one in parts.items()}
    heads = len(arrays["follows_on_images"])
    titles = [*(f"a_{number}" for number in range(1, heads)), "f"]
    names = ["natural", "adversarial", "kl", "negatives_matched"]
    names += ["follows_on_images", "follows_on_noise"]
    return {
        "num_examples": count // size * size,
        "batch_size": size,
        "seed": seed,
        "heads": [
            {"title": title} | {name: _number(arrays.get(name), at) for name in names}
            for at, title in enumerate(titles)
        ],
    }


def _number(values: np.ndarray | None, head: int) -> dict[str, float] | None:
    """Return a mean over the examples with its interval: Wilson's of a share, else a bootstrap's.

    The example's weight in a share is known, so that a share of 0 or 1 has an interval too.
    """
    if values is None:
        return None
    row = values[head]
    if row.dtype == bool:
        low, high = wilson_interval(int(row.sum()), len(row))
    else:
        from scipy.stats import bootstrap  # as in results/statistics.py

        rng = np.random.default_rng(0)
        found = bootstrap(
            (row,), np.mean, n_resamples=1000, batch=100, method="percentile", rng=rng
        )
        low, high = found.confidence_interval
    return {"value": float(row.mean()), "low": float(low), "high": float(high)}


def _heads(outputs: Outputs) -> Heads:
    return jnp.concatenate([outputs.aux_logits, outputs.logits[None]])


@partial(jax.jit, static_argnums=0)
def _training_phase(
    method: methods.Method, model: Model, batch: Batch, key: Array, state: Any
) -> dict[str, Array]:
    """Return [heads, batch] of the losses and of which negatives are predicted as their anchor."""

    def forward(images: Images, labels: Labels) -> Heads:
        masks = mask_classes(plan.extras, labels)
        outputs, _ = model(images, masks, train=True, mutable=["batch_stats"])
        return _heads(outputs)

    def kl(one: Float[Array, "classes"], other: Float[Array, "classes"]) -> Scalar:
        return losses.kl_divergence(one[None], other[None])

    plan = method.prepare(model, batch, key, jnp.asarray(_LATE, jnp.int32))
    attacked, _ = method.attack(model, plan.requests, state)
    natural = forward(batch.images, batch.labels)
    over_heads = jax.vmap(cross_entropy_term, (0, None))
    found = {"natural": over_heads(natural, batch.labels)}
    if "adversarial" in attacked:
        adversarial = forward(attacked["adversarial"], batch.labels)
        found["adversarial"] = over_heads(adversarial, batch.labels)
        found["kl"] = jax.vmap(jax.vmap(kl))(natural, adversarial)
    if "negatives" in plan.extras:
        images = attacked.get("negative", plan.extras.get("negative_images"))
        if images is None:  # they are those of the batch
            images = attacked["adversarial"][plan.extras["negatives"].positions]
        negative = forward(images, plan.extras["negative_labels"])
        same = jax.vmap(losses.matching)(natural, negative)
        found["negatives_matched"] = same & plan.extras["negatives"].valid
    return found


@jax.jit
def _forced(model: Model, batch: Batch, keys: Array) -> dict[str, Bool[Array, "heads batch"]]:
    """Return where a head predicts the wrong class whose mask is forced upon every block."""
    classes = jax.eval_shape(model, batch.images).logits.shape[-1]
    shift = jax.vmap(lambda key: jax.random.randint(key, (), 1, classes))(fold_each(keys, _WRONG))
    wrong = (batch.labels + shift) % classes
    rule = jax.tree_util.Partial(_rows_of, wrong)
    noise = jax.vmap(lambda key, x: jax.random.uniform(key, x.shape))(
        fold_each(keys, _NOISE), batch.images
    )
    images = {"follows_on_images": batch.images, "follows_on_noise": noise}
    return {
        name: jnp.argmax(_heads(model(one, attention=rule)), axis=-1) == wrong
        for name, one in images.items()
    }


def _rows_of(
    classes: Labels, aux_logits: Logits, class_rows: Array, labels: Any, block: int
) -> Array:
    """Force the masks of the classes: an attention rule once the first argument is bound."""
    return class_rows[classes]
