"""Signs that a robust accuracy should not be believed as it stands: warnings of the result."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ancra_jax.attacks.apgd import run_apgd, surface_start
from ancra_jax.attacks.job import Batch, HostImages, Job
from ancra_jax.attacks.model import Model, as_pytree, forward
from ancra_jax.attacks.objectives import Evaluator, cross_entropy
from ancra_jax.ops.images import Flags

_REPEATS = 5
_IMAGES_REPEATED = 8

Calls = Float[Array, "calls few classes"]


def check_rank_by(rank_by: Model | None, job: Job) -> None:
    """Refuse a model to rank targets by, if there is one, that has other classes (ValueError)."""
    if rank_by is None:
        return
    shape = jax.eval_shape(forward, as_pytree(rank_by, "rank_by"), job.images[:1]).shape
    if shape[1] != job.num_classes:
        raise ValueError(f"rank_by has {shape[1]} classes, the model has {job.num_classes}")


def repeated_calls(model: Model, images: HostImages, randomized: bool) -> Calls:
    """Call the model several times on the first few images, with other keys if it takes one.

    The model is called outside of ``jit``, where a function with hidden randomness (NumPy's
    generator, a module's own) shows it; inside, that randomness would be frozen.
    """
    few = jnp.asarray(images[:_IMAGES_REPEATED])
    keys = jax.random.split(jax.random.key(0), _REPEATS)
    outputs = [model(few, key=k) if randomized else model(few) for k in keys]
    return jnp.stack([getattr(output, "logits", output) for output in outputs])


def difference_between(calls: Calls) -> float:
    """Return by how much a logit differs most between calls; see ``repeated_calls``."""
    return float(np.max(np.ptp(np.asarray(calls, np.float32), axis=0)))


def model_warnings(model: Model, images: HostImages, randomized: bool, version: str) -> list[str]:
    """Return warnings of randomness, of probabilities instead of logits, and of coarse logits."""
    calls = repeated_calls(model, images, randomized)
    difference = difference_between(calls)
    warnings = []
    if difference > 1e-4 and not (randomized and version == "rand"):
        advice = (
            "use version='rand'"
            if randomized
            else "inside jit such randomness is frozen: let the model take a key argument and pass "
            "randomized=True, version='rand'"
        )
        warnings.append(
            f"randomised defence: {len(calls)} forward passes differ by up to {difference:.2g}; "
            + advice
        )
    if difference <= 1e-4 and randomized:
        warnings.append("randomized=True, but the model's outputs do not depend on its key")
    if version == "rand" and not randomized:
        warnings.append(
            "version='rand' without randomized=True: the model is deterministic, and every "
            "averaged gradient is a single one; use version='standard'"
        )
    outputs = np.asarray(calls, np.float32)
    sums = outputs.sum(axis=-1)
    if outputs.min() >= 0 and outputs.max() <= 1 and np.allclose(sums, 1, atol=1e-3):
        warnings.append(
            "the outputs look like probabilities: a softmax before the loss weakens the attacks; "
            "pass logits"
        )
    if calls.dtype not in (jnp.float32, jnp.float64):
        warnings.append(
            f"the logits are {calls.dtype}: their rounding can hide gradients and change "
            "predictions; evaluate the model in float32"
        )
    return warnings


def check_start(job: Job, judge: str, purpose: str, batch: Batch) -> tuple[Flags, Flags]:
    """Return where the cross-entropy's gradient is exactly 0, and where its value is not finite.

    Looks where APGD would start, at random and at distance epsilon, by the zeroth iteration of
    APGD's own loop, which needs no compilation besides APGD's.
    """
    images, labels = batch.images, batch.labels
    ball = job.threat_model
    start = surface_start(ball, job.keys(purpose, batch), images)
    evaluate = Evaluator(cross_entropy(job.judging_model(judge, batch), labels), None)
    state = run_apgd(evaluate, start, images, labels, ball, num_steps=job.num_steps, stop_after=0)
    zero = jnp.all(state.gradients == 0, axis=(1, 2, 3))
    return zero, ~jnp.isfinite(state.best_loss)
