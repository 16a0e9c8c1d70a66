"""Which batch a training step gets."""

import dataclasses

import jax
from jaxtyping import Array, Int, Int32, Key

from ancra_jax.data.augment import Augmentation
from ancra_jax.data.extra import ExtraDraws
from ancra_jax.data.pipeline import DeviceSplit, training_batch
from ancra_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Batches by step: all randomness derives from the run's key, the step and data-set indices.

    Attributes:
      batch_size: examples per step, over all devices, the extra ones included.
      steps_per_epoch: steps per pass over the training split's own examples.
      augmentation: of the natural images.
      key: of the run's steps.
      sharding: how to spread a batch over devices.
      extra: what part of the batch is extra data; None for nothing.
    """

    batch_size: int
    steps_per_epoch: int
    augmentation: Augmentation
    key: Key[Array, ""]
    sharding: jax.sharding.Sharding | None = None
    extra: ExtraDraws | None = None

    def keys(self, step: Int[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
        """Two keys of a step: of its augmentation, and of what is then done with the batch."""
        data_key, method_key = jax.random.split(jax.random.fold_in(self.key, step))
        return data_key, method_key

    def batch(
        self, split: DeviceSplit, permutation: Int32[Array, "examples"], step: Int[Array, ""]
    ) -> Batch:
        """The batch of a step (from 0), to be called under jit.

        Args:
          split: the training split on the devices, then the extra examples.
          permutation: of the training split's own examples, in the step's epoch.
          step: number of updates made before it.
        """
        own = self.batch_size - (self.extra.count if self.extra else 0)
        return training_batch(
            split,
            permutation,
            step % self.steps_per_epoch * own,
            own,
            self.keys(step)[0],
            self.augmentation,
            self.sharding,
            self.extra.indices(step) if self.extra else None,
        )
