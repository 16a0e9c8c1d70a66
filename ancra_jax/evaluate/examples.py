"""The few adversarial images that are kept of each attack, for people to look at.

Of the examples that weaker attacks left, ``<attack>.examples.npz`` has the first ones that the
attack broke and the first ones that it left: ``indices`` in the test split, ``labels``,
``natural`` images (uint8) and ``adversarial`` ones (float32, as attacked), ``broken_by``, the
``logits`` on both, the names of the ``classes`` and the checkpoint's ``step``.
"""

import contextlib
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from ancra_jax.attacks.job import HostImages
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.spec import Arrays, Model, Task
from ancra_jax.ops.files import write_arrays
from ancra_jax.ops.images import Images
from ancra_jax.results.examples import examples_path
from ancra_jax.results.load import load_results, same_target
from ancra_jax.results.names import STRENGTH_ORDER, attack_order

_BROKEN, _WITHSTOOD = 3, 2  # examples, at most
_BYTES = 40_000  # of the adversarial images of either kind, unless one alone takes more


class Keeper:
    """Chooses what is kept of an attack, batch by batch; the batch size changes no choice."""

    def __init__(self, task: Task, kept: Arrays):
        """Begin, or go on with the ``arrays`` of an interrupted attack."""
        # The examples that the attack may still break.
        self.standing = task.target.share.from_first(partial(_standing, task))
        self._task = task
        shape = task.target.split.images.shape[1:]
        fitting = max(1, _BYTES // (4 * int(np.prod(shape))))
        self._broken, withstood = min(_BROKEN, fitting), min(_WITHSTOOD, fitting)
        count = self._broken + withstood
        empty = {"kept": np.full(count, -1), "kept_images": np.zeros((count, *shape), np.float32)}
        self.arrays = {name: kept.get(name, array) for name, array in empty.items()}

    def offer(
        self, first: int, correct: Bool[np.ndarray, "batch"], fetch: Callable[[], HostImages]
    ) -> None:
        """Offer the next examples: the index of the first, and what the attack did to them.

        ``fetch`` returns their adversarial images, where any are wanted.
        """
        indices, standing = self.arrays["kept"], self.standing[first : first + len(correct)]
        slots = np.arange(len(indices))
        for mine, wanted in (
            (slots < self._broken, standing & ~correct),
            (slots >= self._broken, standing & correct),
        ):
            free = slots[mine & (indices < 0)]
            chosen = np.flatnonzero(wanted)[: len(free)]
            if len(chosen):
                free = free[: len(chosen)]
                indices[free] = first + chosen
                self.arrays["kept_images"][free] = fetch()[chosen]

    def write(self, broken_by: Shaped[np.ndarray, "examples"]) -> None:
        """Write what was kept; ``broken_by`` names the attack, '' of an example that withstood."""
        task, indices = self._task, self.arrays["kept"]
        if not task.target.share.is_first:
            return
        natural, images = task.target.split.images[indices], self.arrays["kept_images"]
        pairs = np.concatenate([np.divide(natural, np.float32(255), dtype=np.float32), images])
        logits = np.asarray(_logits(task.target.model, pairs)).reshape(2, len(indices), -1)
        content = {
            "indices": indices,
            "labels": task.labels[indices],
            "broken_by": broken_by[indices],
            "natural": natural,
            "adversarial": images,
            "logits": logits.swapaxes(0, 1),
        }
        content = {name: array[indices >= 0] for name, array in content.items()}
        content |= {
            "classes": np.array(task.target.classes),
            "step": np.array(task.identity["step"]),
        }
        write_arrays(examples_path(task.partial.parent, task.identity["attack"]), content)


def _standing(task: Task) -> Bool[np.ndarray, "examples"]:
    """Return which examples the natural image and the results of weaker attacks leave correct."""
    left = np.ones(len(task.labels), bool)
    results = {}
    with contextlib.suppress(UsageError):  # a damaged one, which --force may be about to replace
        results = load_results(task.partial.parent)
    here = attack_order(task.identity["attack"], STRENGTH_ORDER)
    for name, (record, arrays) in results.items():
        correct = arrays["correct"][: len(left)]
        if attack_order(name, STRENGTH_ORDER) < here and same_target(record, task.identity):
            left[: len(correct)] &= correct
    return left


@jax.jit
def _logits(model: Model, images: Images) -> Float[Array, "batch classes"]:
    return model(images).logits
