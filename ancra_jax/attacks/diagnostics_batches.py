"""What all measurements of the diagnostics share: batches over chosen examples."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int

from ancra_jax.attacks.autoattack_run import Job

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
