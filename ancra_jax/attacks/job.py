"""A job: the model, the examples and the devices of a long evaluation, batch by batch."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ancra_jax.attacks.gradients import WithKeys
from ancra_jax.attacks.model import LogitsFn, example_keys
from ancra_jax.attacks.placement import Placement
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.attacks.types import CLEAN
from ancra_jax.attacks.validation import check_logits, forward

_PROBED = 8


@dataclass(frozen=True)
class Job:
    """What is attacked, and where it is computed.

    Attributes:
      model: the model, on all devices.
      images: clean images, on the host.
      labels: class numbers.
      indices: data-set indices.
      threat_model: which images an attacker may use.
      key: source of all randomness.
      placement: batch shape and devices.
      randomized: whether the model takes a key.
      num_steps: gradient steps of APGD.
      rank_by: the model whose clean logits rank the targets.
      check_gradients: whether to look for zero gradients.
    """

    model: LogitsFn
    images: Float[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, "examples"]
    indices: Int[np.ndarray, "examples"]
    threat_model: ThreatModel
    key: Key[Array, ""]
    placement: Placement
    randomized: bool
    num_steps: int
    rank_by: LogitsFn | None = None
    check_gradients: bool = True

    def purpose_key(self, purpose: str, number: int = 0) -> Key[Array, ""]:
        """The key of an attack's pass, whatever else is in the list of attacks."""
        return jax.random.fold_in(
            jax.random.fold_in(self.key, zlib.crc32(purpose.encode())), number
        )

    def batch(self, rows: np.ndarray) -> tuple[Array, Array, Array]:
        """Images, labels and indices of a batch, on the devices."""
        return self.placement.place((self.images[rows], self.labels[rows], self.indices[rows]))

    def judged_model(self, purpose: str, number: int, indices: Int[Array, "batch"]) -> LogitsFn:
        """The model for a fresh forward pass, with randomness of its own if it has any."""
        if not self.randomized:
            return self.model
        key = self.purpose_key(f"judge {purpose}", number)
        return WithKeys(self.model, example_keys(key, indices))

    def probe(self) -> np.ndarray:
        """Clean logits of the first few images, as many whatever the size of batches.

        Raises:
          ValueError: logits of a wrong shape or not finite.
        """
        first = np.arange(min(_PROBED, len(self.images)))
        parts = []
        for rows, active in self.placement.batches(first):
            indices = self.placement.place(self.indices[rows])
            model = self.judged_model(CLEAN, 0, indices)
            try:
                logits = np.asarray(forward(model, self.placement.place(self.images[rows])))
            except TypeError as error:
                if not self.randomized and "'key'" in str(error):
                    error.add_note("a model that takes a key needs randomized=True, version='rand'")
                raise
            check_logits(logits, len(rows))
            parts.append(logits[active])
        return np.concatenate(parts)


Arrays = Mapping[str, np.ndarray]
Known = Mapping[str, Arrays]


def over_batches(
    job: Job,
    examples: Int[np.ndarray, "chosen"],
    compute: Callable[..., Arrays],
    *,
    flags: tuple[str, ...] = ("broken",),
    with_rows: bool = False,
) -> dict[str, np.ndarray]:
    """Fills arrays over all examples; the rows of those not among ``examples`` stay 0.

    Args:
      job: what is attacked.
      examples: numbers of the examples.
      compute: ``compute(images, labels, indices, active)`` to arrays over the batch.
      flags: names of the arrays that come back where there are no examples.
      with_rows: ``compute`` gets the batch's example numbers too, as ``rows``.
    """
    arrays: dict[str, np.ndarray] = {}
    if len(examples) == 0:
        return {name: np.zeros(len(job.images), bool) for name in flags}
    for rows, active in job.placement.batches(examples):
        x, y, indices = job.batch(rows)
        more = {"rows": rows} if with_rows else {}
        found = compute(x, y, indices, job.placement.place(active), **more)
        for name, values in found.items():
            values = np.asarray(values)
            shape = (len(job.images), *values.shape[1:])
            arrays.setdefault(name, np.zeros(shape, values.dtype))[rows[active]] = values[active]
    return arrays


def left_by(known: Known, after: tuple[str, ...]) -> Int[np.ndarray, "chosen"]:
    """The examples that are correct when clean and that the attacks named did not break."""
    left = known["clean"]["correct"].copy()
    for name in after:
        left &= ~known[name]["broken"]
    return np.flatnonzero(left)
