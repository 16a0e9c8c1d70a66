"""Signs that a robust accuracy should not be believed as it stands: warnings of the result."""

import inspect
import itertools
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ancra_jax.attacks.apgd import run_apgd, surface_start
from ancra_jax.attacks.job import Batch, Job, Numbers
from ancra_jax.attacks.model import Model, as_pytree, forward
from ancra_jax.attacks.objectives import Evaluator, in_one_program, objective_of
from ancra_jax.ops.images import Flags

_REPEATS = 5
_TRACES = 3
_DIFFERENTIATES = ("vjp", "_vjp", "jvp", "_jvp", "linearize", "value_and_grad_f")  # in JAX's api.py

Calls = Float[Array, "calls batch classes"]


def check_rank_by(rank_by: Model | None, job: Job) -> None:
    """Refuse a model to rank targets by, if there is one, that has other classes (ValueError)."""
    if rank_by is None:
        return
    shape = jax.eval_shape(forward, as_pytree(rank_by, "rank_by"), job.images[:1]).shape
    if shape[1] != job.num_classes:
        raise ValueError(f"rank_by has {shape[1]} classes, the model has {job.num_classes}")


def repeated_calls(job: Job) -> Calls:
    """Call the model several times on the first batch, with other keys if it takes one.

    The model is called outside of ``jit``, where a function with hidden randomness (NumPy's
    generator, a module's own) shows it; inside, that randomness would be frozen. That compiles
    every operation by itself: a model that is the same program whenever it is traced, without
    calling back to Python, has no such randomness, and is called once, compiled.
    """
    images = job.images[: job.placement.batch_size]
    if not job.randomized and (dtype := _same_program(job, images)) is not None:
        batch = next(job.batches(np.arange(len(images))))
        return jnp.stack([jnp.asarray(job.natural_logits(batch), dtype)] * _REPEATS)
    first = jnp.asarray(images)
    keys = jax.random.split(jax.random.key(0), _REPEATS)
    outputs = [job.model(first, key=k) if job.randomized else job.model(first) for k in keys]
    return jnp.stack([getattr(output, "logits", output) for output in outputs])


def _same_program(job: Job, images: np.ndarray) -> Any:
    """Return the logits' dtype if the model is one program whenever it is traced, else None."""

    def lowered() -> tuple[str, Any]:
        program = jax.jit(lambda model, x: getattr(y := model(x), "logits", y))
        found = program.trace(job.model, images)
        return found.lower().as_text(), found.out_info.dtype

    text, dtype = lowered()
    same = all(lowered()[0] == text for _ in range(1, _TRACES))
    return dtype if same and "callback" not in text else None


def difference_between(calls: Calls) -> float:
    """Return by how much the logits of an image, scaled to norm 1, differ most between calls."""
    logits = np.asarray(calls, np.float32)
    scaled = logits / (np.linalg.norm(logits, axis=-1, keepdims=True) + 1e-10)
    return max(
        float(np.linalg.norm(one - other, axis=-1).max())
        for one, other in itertools.combinations(scaled, 2)
    )


def differentiates(job: Job) -> bool:
    """Return whether the model calls one of JAX's transformations for derivatives."""
    found = set()
    file = inspect.unwrap(jax.vjp).__code__.co_filename

    def note(frame: types.FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if code.co_name in _DIFFERENTIATES and code.co_filename == file:
            found.add(code.co_name)

    # Of an unusual shape, so that a function which was jitted before is traced again.
    images = jnp.asarray(np.resize(job.images, (3, *job.images.shape[1:])))
    options = {"key": job.key} if job.randomized else {}
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        jax.eval_shape(lambda x: getattr(y := job.model(x, **options), "logits", y), images)
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # cProfile's
            before.enable()
    return bool(found)


def model_warnings(job: Job, version: str) -> list[str]:
    """Return warnings of what the model's own calls show; see the texts."""
    randomized, calls = job.randomized, repeated_calls(job)
    difference = difference_between(calls)
    warnings = []
    if differentiates(job):
        warnings.append(
            "the model differentiates inside its forward pass (optimisation at inference time, "
            "as in purification): its gradients may be none of what it computes; adapt the attack"
        )
    if difference > 1e-4 and not (randomized and version == "rand"):
        advice = (
            "use version='rand'"
            if randomized
            else "inside jit such randomness is frozen: let the model take a key argument and pass "
            "randomized=True, version='rand'"
        )
        warnings.append(
            f"randomised defence: logits of norm 1 differ by up to {difference:.2g} between "
            f"{len(calls)} forward passes; {advice}"
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


def check_start(
    job: Job,
    judge: str,
    purpose: str,
    batch: Batch,
    loss: str = "ce",
    targets: Numbers | None = None,
) -> tuple[Flags, Flags]:
    """Return where a loss's gradient is exactly 0, and where its value is not finite.

    Looks where APGD would start, at random and at distance epsilon, by the zeroth iteration of
    APGD's own loop, which needs no compilation besides APGD's. ``targets`` are those of all
    examples, for a targeted loss.
    """
    images, labels = batch.images, batch.labels
    ball = job.threat_model
    start = surface_start(ball, job.keys(purpose, batch), images)
    aimed = None if targets is None else job.placement.place(targets[batch.rows])
    objective = objective_of(loss, job.judging_model(judge, batch), labels, aimed)
    evaluate = Evaluator(in_one_program(objective), None)
    state = run_apgd(evaluate, start, images, labels, ball, num_steps=job.num_steps, stop_after=0)
    zero = jnp.all(state.gradients == 0, axis=(1, 2, 3))
    return zero, ~jnp.isfinite(state.best_loss)
