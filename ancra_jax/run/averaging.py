"""Averages of the weights along the training: exponential (EMA) and of epochs' ends (SWA).

The optimiser never sees them. They are a part of the train state, and evaluated beside its own
("raw") weights.

References:
  Gowal et al., Uncovering the Limits of Adversarial Training against Norm-Bounded Adversarial
  Examples, 2020, and Rebuffi et al., Data Augmentation Can Improve Robustness, NeurIPS 2021, for
  EMA. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018,
  and Chen et al., Robust Overfitting May Be Mitigated by Properly Learned Smoothening, ICLR 2021,
  for SWA.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Int32, PyTree

from ancra_jax.data import BatchPlan, DeviceSplit
from ancra_jax.types import ApplyFn, Variables

Averages = dict[str, PyTree]
"""``{'ema': params, 'swa': {'params': ..., 'batch_stats': ..., 'count': ...}}``, as far as kept."""


@dataclass(frozen=True)
class Averaging:
    """Which averages a run keeps."""

    ema_decay: float = 0.0  # share of the old average at a step; 0: no such average
    swa_start_epoch: int = 0  # from 1, the first whose last weights count; 0: no such average

    @property
    def weights(self) -> tuple[str, ...]:
        """Return names of the weights that a run ends with: ``'raw'``, then the averages."""
        averages = {"ema": self.ema_decay > 0, "swa": self.swa_start_epoch > 0}
        return ("raw", *(name for name, kept in averages.items() if kept))

    def weights_after(self, epochs: int) -> tuple[str, ...]:
        """Return names of the weights that exist after so many whole epochs."""
        begun = epochs >= self.swa_start_epoch
        return tuple(name for name in self.weights if name != "swa" or begun)

    def init(self, params: PyTree, batch_stats: PyTree) -> Averages:
        """Return the averages before the first step."""
        averages: Averages = {}
        copied = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731  a step donates its state
        if self.ema_decay > 0:
            averages["ema"] = copied(params)
        if self.swa_start_epoch > 0:
            averages["swa"] = {
                "params": jax.tree.map(jnp.zeros_like, params),
                "batch_stats": copied(batch_stats),
                "count": jnp.zeros((), jnp.int32),
            }
        return averages

    def advance(
        self, averages: Averages, params: PyTree, step: Int[Array, ""], steps_per_epoch: int
    ) -> Averages:
        """Return the averages after the update that made ``params``, which ``step`` counts.

        EMA: ``ema <- d ema + (1 - d) params``, ``d = min(ema_decay, (1 + step) / (10 + step))``, so
        that it soon forgets where training began.

        SWA: at the end of every epoch from ``swa_start_epoch`` on, the mean of the weights at those
        ends. Its batch statistics are not up to date before `make_refresh_statistics` is called.
        """
        new = dict(averages)
        if "ema" in averages:
            decay = jnp.minimum(self.ema_decay, (1 + step) / (10 + step))
            new["ema"] = optax.incremental_update(params, averages["ema"], 1 - decay)
        if "swa" in averages:
            swa = averages["swa"]
            ends = (step % steps_per_epoch == 0) & (step // steps_per_epoch >= self.swa_start_epoch)
            count = swa["count"] + ends.astype(jnp.int32)
            share = jnp.where(ends, 1 / jnp.maximum(count, 1), 0.0)
            mean = jax.tree.map(
                lambda mean, new: mean + share * (new - mean), swa["params"], params
            )
            new["swa"] = swa | {"params": mean, "count": count}
        return new


def variables_of(
    weights: str, params: PyTree, batch_stats: PyTree, averages: Averages
) -> Variables:
    """Return the weights of a name, with the batch statistics that go with them.

    With EMA these are those of the raw weights, as in the published adversarial training with EMA:
    running statistics are a moving average already, and follow the weights as these settle.
    """
    if weights == "swa":
        swa = averages["swa"]
        return {"params": swa["params"], "batch_stats": swa["batch_stats"]}
    return {"params": averages["ema"] if weights == "ema" else params, "batch_stats": batch_stats}


def make_refresh_statistics(apply: ApplyFn, plan: BatchPlan) -> Callable[..., Averages]:
    """Return the jitted ``(averages, data, permutation, step) -> averages`` that updates SWA's.

    The natural batches of the epoch that ends with ``step`` go through the averaged weights in the
    training phase once more; the running statistics become the mean of the batches'. Running
    statistics move as ``r <- k r + (1 - k) b`` with a batch's own ``b``; a network's ``k`` is found
    from two forwards, so that no layer has to be told to average instead.
    """

    @jax.jit
    def refresh(
        averages: Averages,
        data: DeviceSplit,
        permutation: Int32[Array, "examples"],
        step: Int[Array, ""],
    ) -> Averages:
        swa = averages["swa"]
        first = step - plan.steps_per_epoch

        def moved(start: PyTree, step: Int[Array, ""]) -> PyTree:
            """Return running statistics after a batch, from those before."""
            batch = plan.batch(data, permutation, step)
            variables = {"params": swa["params"], "batch_stats": start}
            _, updated = apply(
                variables, batch.images, batch.labels, train=True, mutable=["batch_stats"]
            )
            return updated.get("batch_stats", start)

        zeros = jax.tree.map(jnp.zeros_like, swa["batch_stats"])
        from_zero = moved(zeros, first)
        # Probes as large as what they are added to, or their difference would be rounded away.
        probes = jax.tree.map(lambda r: 1 + jnp.abs(r), from_zero)
        kept = jax.tree.map(
            lambda r, r0, probe: (r - r0) / probe, moved(probes, first), from_zero, probes
        )
        total = jax.lax.fori_loop(
            0,
            plan.steps_per_epoch,
            lambda i, total: jax.tree.map(jnp.add, total, moved(zeros, first + i)),
            zeros,
        )
        batch_stats = jax.tree.map(lambda t, k: t / plan.steps_per_epoch / (1 - k), total, kept)
        return averages | {"swa": swa | {"batch_stats": batch_stats}}

    return refresh


NATURAL_ACCURACY, ROBUST_ACCURACY = "natural_accuracy", "robust_accuracy"


def metric_name(weights: str, name: str) -> str:
    """Return what an accuracy of these weights is called; those of 'raw' have no prefix."""
    return name if weights == "raw" else f"{weights}_{name}"
