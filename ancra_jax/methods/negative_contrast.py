"""The asymmetric negative contrast (ANC) as a wrapper around any adversarial method."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from ancra_jax import losses
from ancra_jax.attacks import example_keys
from ancra_jax.config.schema import Config, shown
from ancra_jax.errors import UsageError
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, BatchStats, Examples, Forward, Method, Terms
from ancra_jax.methods.negatives import RANDOM, Negatives, choose_negatives, strategies
from ancra_jax.ops.images import Flags
from ancra_jax.types import Batch, Outputs, Scalar


def negative_contrast(method: Method, config: Config, attack: AttackSettings) -> Method:
    """Add ``zeta Sim_alpha(x, x_neg)`` over all heads to a method's loss (paper eq. 3-5).

    The natural outputs are those of the method's own training-phase forward; a method without one
    (PGD-AT) gets one, after its own. The negatives' forward is the last, with their own labels.
    Targeted negatives are attacked toward their anchors' classes first, by descending the
    cross-entropy (eq. 5) in the manner of the method's own attack. With ``from_batch`` the
    negatives are the method's own adversarial images of other classes, whose outputs are there.
    ``true_labels`` takes `losses.true_class_similarity` in the place of Sim. Off while
    ``config.negative_contrast.zeta`` is 0.

    Raises:
      UsageError: there is no such strategy, nothing to contrast with, or ``from_batch`` for a batch
        that is taken in parts.
    """
    contrast = config.negative_contrast
    if contrast.zeta == 0:
        return method
    strategy = contrast.strategy
    _check(config)
    descent = replace(attack, objective="cross_entropy")

    def choose(model: core.Model, batch: Batch, key: core.StepKey, epoch: core.Epoch) -> Negatives:
        keys = example_keys(jax.random.fold_in(key, core.NEGATIVE_CHOICE), batch.indices)
        random = partial(choose_negatives, RANDOM, keys, batch.labels)

        def chosen() -> Negatives:
            return choose_negatives(strategy, keys, batch.labels, model(batch.images).logits)

        if strategy == RANDOM:
            return random()
        return jax.lax.cond(epoch < contrast.random_epochs, random, chosen)

    def prepare(model: core.Model, batch: Batch, key: core.StepKey, epoch: core.Epoch) -> core.Plan:
        plan = method.prepare(model, batch, key, epoch)
        chosen = choose(model, batch, key, epoch)
        labels = batch.labels[chosen.positions]
        extras = plan.extras | {"negatives": chosen, "negative_labels": labels}
        if contrast.from_batch:
            return core.Plan(plan.requests, extras)
        images = extras["negative_images"] = batch.images_at(chosen.positions)
        if not contrast.targeted:
            return core.Plan(plan.requests, extras)
        keys = example_keys(jax.random.fold_in(key, core.NEGATIVE_ATTACK), batch.indices)
        request = core.AttackRequest(descent, images, batch.labels, True, keys)
        return core.Plan(plan.requests | {"negative": request}, extras)

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        terms = method.loss(forward, batch_stats, examples)
        terms, natural = core.with_natural(terms, forward, examples.batch)
        negative, batch_stats = outputs_of_negatives(forward, terms, examples)
        _, valid, fallback = examples.extras["negatives"]
        term: Callable[..., Scalar] = losses.asymmetric_similarity
        if contrast.true_labels:
            term = partial(losses.true_class_similarity, labels=examples.batch.labels)
        term = partial(term, valid=valid, alpha=contrast.alpha)
        pair = natural, negative
        similarity, of_similarity = core.over_heads(
            "loss_negative_contrast", term, *pair, aux_weight=config.method.aux_weight
        )
        matched = losses.by_head(lambda p, q: _share(losses.matching(p, q) & valid), *pair)
        metrics = terms.metrics | of_similarity
        metrics |= core.named_by_head("negatives_matched", matched)
        metrics |= {
            "negatives_missing": _share(~valid),
            "negatives_fallback": _share(fallback),
        }
        value = terms.loss + contrast.zeta * similarity
        return terms._replace(loss=value, batch_stats=batch_stats, metrics=metrics)

    return method._replace(prepare=prepare, loss=loss)


def _check(config: Config) -> None:
    contrast = config.negative_contrast
    core.check_adversarial(config, shown(config, "negative_contrast.zeta"))
    strategies.get(contrast.strategy, "--config.negative_contrast.strategy")
    if contrast.from_batch and config.optimizer.accumulation_steps > 1:
        # The outputs of a part do not have the rows of the whole batch, which negatives are.
        raise UsageError(
            f"{shown(config, 'negative_contrast.from_batch')}: needs the outputs for the whole "
            f"batch at once, so not {shown(config, 'optimizer.accumulation_steps')}"
        )
    if contrast.strategy != RANDOM:
        core.check_before_end(config, "negative_contrast.random_epochs", contrast.random_epochs)


def outputs_of_negatives(
    forward: Forward, terms: Terms, examples: Examples
) -> tuple[Outputs, BatchStats]:
    """Return the outputs for the negatives: of a forward, or among those of the batch's attack."""
    extras = examples.extras
    images = examples.attacked.get("negative", extras.get("negative_images"))
    if images is not None:
        return forward(terms.batch_stats, images, extras["negative_labels"])
    if terms.adversarial is None:
        raise UsageError(
            "--config.negative_contrast.from_batch=True: needs a method whose loss says what the "
            "outputs for adversarial images were (Terms.adversarial)"
        )
    return core.rows_of(terms.adversarial, extras["negatives"].positions), terms.batch_stats


def _share(flags: Flags) -> Scalar:
    return jnp.mean(flags, dtype=jnp.float32)
