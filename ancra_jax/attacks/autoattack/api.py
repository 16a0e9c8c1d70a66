"""AutoAttack: an ensemble of attacks whose worst case is the robust accuracy.

References:
  Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
  parameter-free attacks, ICML 2020.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Key

from ancra_jax.attacks.autoattack.checks import check_model, warnings_of
from ancra_jax.attacks.autoattack.driver import run
from ancra_jax.attacks.autoattack.ensemble import Attack, Budget, describe, plan
from ancra_jax.attacks.autoattack.result import AutoAttackResult, record
from ancra_jax.attacks.autoattack.state import Store, new_state
from ancra_jax.attacks.job import Job
from ancra_jax.attacks.model import AnyImages, AnyLabels, LogitsFn, as_pytree
from ancra_jax.attacks.placement import Placement, default_batch_size
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.saved_state import fingerprint
from ancra_jax.attacks.threat_models import threat_model
from ancra_jax.attacks.types import CLEAN, Progress, print_progress
from ancra_jax.attacks.validation import check_images, check_labels, check_positive_int


@explains_old_calls
def autoattack(
    model: LogitsFn,
    images: AnyImages,
    labels: AnyLabels,
    *,
    epsilon: float | int,
    norm: str = "linf",
    version: str = "standard",
    attacks_to_run: Sequence[str | Attack] | None = None,
    key: Key[Array, ""] | None = None,
    indices: AnyLabels | None = None,
    batch_size: int | None = None,
    n_target_classes: int = 9,
    num_steps: int = 100,
    num_queries: int = 5000,
    randomized: bool = False,
    gradient_draws: int = 20,
    devices: Sequence[jax.Device] | None = None,
    state_path: str | os.PathLike | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
    matmul_precision: str = "highest",
    exhaustive: bool = False,
    rank_by: LogitsFn | None = None,
    max_seconds: float | int | None = None,
    checks: bool = True,
) -> AutoAttackResult:
    """Evaluates the robust accuracy of a model.

    Every attack starts from the clean images of the examples that are still robust. An example is
    broken only if a fresh forward pass misclassifies the attack's image, and this image is finite,
    in [0, 1] and in the ball (tolerance 1e-6). Each kind of attack is compiled once: targets,
    epsilon, weights and the choice of examples are arguments, and all batches have one shape.

    Args:
      model: from images [batch, height, width, channels] to logits [batch, classes] (or to an
        object with ``logits``): a callable pytree, which can change its weights without compiling
        again, or a plain function.
      images: clean images, pixels in [0, 1]; they stay on the host, one batch is on the devices.
      labels: class numbers.
      epsilon: radius of the threat model, on the [0, 1] pixel scale.
      norm: ``'linf'`` or ``'l2'``.
      version: ``'standard'``, ``'plus'``, ``'rand'`` (for randomised models), or ``'custom'``.
      attacks_to_run: for ``'custom'``, in order: names among apgd-ce, apgd-dlr, apgd-t, fab, fab-t,
        square, or ``Attack`` objects of your own.
      key: source of all randomness; ``jax.random.key(0)`` by default.
      indices: data-set indices of the images. An example's randomness comes from its index and the
        key alone, so flags depend neither on batches, nor on order, nor on devices.
      batch_size: of the largest batch. As few batches as that allows are made, of one size, a
        multiple of the number of devices. 64 on CPU, else 256.
      n_target_classes: targets of apgd-t and fab-t: the classes ranked 2, 3, ... by the clean
        logits; at most all wrong classes.
      num_steps: gradient steps of APGD and FAB.
      num_queries: queries of Square.
      randomized: the model is called as ``model(images, key=key)``.
      gradient_draws: gradients averaged in a step on a randomised model.
      devices: batches are sharded over them; all devices by default.
      state_path: directory for the state, which is saved after every batch: the same call with the
        same directory continues where the last one was interrupted, with identical results.
      progress: called after every batch.
      matmul_precision: of matrix products and convolutions, see ``jax.default_matmul_precision``.
      exhaustive: give every attack all examples that are classified correctly when clean, not just
        those that are still robust: slower, but every attack's own accuracy is known. The robust
        accuracy is the same.
      rank_by: a model whose clean logits rank the targets, instead of ``model``.
      max_seconds: stop before the first batch that begins after so many seconds, the clean images
        excepted; the result then says ``complete=False``, its robust accuracy is what is left so
        far, and with ``state_path`` the next call goes on from there.
      checks: look for randomness, probabilities, coarse logits and zero gradients.

    Returns:
      Flags, images, norms and warnings per example; see ``AutoAttackResult``.

    Raises:
      ValueError: bad images, labels or settings, a model whose clean logits are not finite, or a
        saved state of another evaluation.
    """
    check_images(images)
    check_labels(labels, len(images))
    for name, value in (
        ("n_target_classes", n_target_classes),
        ("num_steps", num_steps),
        ("num_queries", num_queries),
        ("gradient_draws", gradient_draws),
    ):
        check_positive_int(value, name)
    batch_size = default_batch_size() if batch_size is None else batch_size
    check_positive_int(batch_size, "batch_size")
    if len(images) == 0:
        raise ValueError("images is empty: there is nothing to attack")
    numbers = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_labels(numbers, len(images), name="indices")
    ball = threat_model(norm, epsilon)
    budget = Budget(num_steps, num_queries, gradient_draws, randomized)
    key = jax.random.key(0) if key is None else key
    devices = jax.devices() if devices is None else devices
    placement = Placement.over(devices, batch_size, len(images))

    with jax.default_matmul_precision(matmul_precision):
        job = Job(
            model=placement.replicate(as_pytree(model)),
            images=np.asarray(images, np.float32),
            labels=np.asarray(labels, np.int32),
            indices=numbers.astype(np.int32),
            threat_model=ball,
            key=key,
            placement=placement,
            randomized=randomized,
            num_steps=num_steps,
            rank_by=None if rank_by is None else placement.replicate(as_pytree(rank_by)),
            check_gradients=checks,
        )
        probe = job.probe()
        num_classes = probe.shape[1]
        attacks, notes = plan(version, attacks_to_run, num_classes, budget)
        if exhaustive:
            attacks = [replace(attack, exhaustive=True) for attack in attacks]
        num_targets = min(n_target_classes, num_classes - 1)
        settings = {
            "epsilon": float(epsilon),
            "norm": norm.lower(),
            "attacks": [describe(attack) for attack in attacks],
            "num_targets": num_targets,
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "randomized": randomized,
            "ranked_by_another": rank_by is not None,
        }
        digest = fingerprint(job.images, job.labels, job.indices, settings)
        warnings = list(notes)
        if checks:
            warnings += check_model(model, job.images, randomized, version)
        store = Store(None if state_path is None else Path(state_path), job.images)
        names = [attack.name for attack in attacks]
        on_all = [attack.exhaustive for attack in attacks]
        fresh = new_state(digest, probe, len(images), num_targets, names, on_all)
        state = store.resume(fresh)
        run(job, attacks, state, store, progress, max_seconds)

    finished = state.attack
    if finished < len(attacks):
        warnings.append(
            f"stopped after {max_seconds:g} s in {names[finished]} (attack {finished + 1} of "
            f"{len(attacks)}): the robust accuracy is what was left by then"
        )
    return AutoAttackResult(
        images=store.in_memory(),
        robust=state.robust,
        broken_by=state.broken_by,
        target=state.target,
        norms=state.norms,
        queries=state.queries,
        accuracies=dict(
            zip([CLEAN, *names][: finished + 1], state.accuracies.tolist(), strict=False)
        ),
        warnings=warnings + warnings_of(state, names),
        records=tuple(record(state, number, attacks[number]) for number in range(finished)),
        complete=finished == len(attacks),
    )
