"""What a long evaluation works on: the model, the examples and the devices, batch by batch."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ancra_jax.attacks.gradients import WithKeys
from ancra_jax.attacks.model import Model, as_pytree, example_keys
from ancra_jax.attacks.placement import Placement, default_batch_size
from ancra_jax.attacks.success import judge
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.attacks.types import CLEAN, AttackResult
from ancra_jax.attacks.validation import (
    check_images,
    check_labels,
    check_logits,
    check_positive_int,
    forward,
)
from ancra_jax.ops.images import Images, Labels, Values

_PROBED = 8  # so many, whatever the size of batches

Arrays = dict[str, np.ndarray]
Known = Mapping[str, Arrays]
HostImages = Float[np.ndarray, "examples height width channels"]
Numbers = Int[np.ndarray, "_"]
Run = Callable[..., AttackResult]
"""``run(model, images, labels, threat_model, *, key, indices, active, targets)``; ``targets`` only
where there are any."""


class Batch(NamedTuple):
    """Some examples on the devices, padded to the shape that all batches have."""

    examples: Numbers  # without padding; on the host
    rows: Numbers  # the example in every row, where padding repeats the first; on the host
    images: Images
    labels: Labels
    indices: Labels  # in the data set
    active: Bool[Array, "batch"]  # which rows are not padding


@dataclass(frozen=True)
class Job:
    """What is attacked, and where it is computed."""

    model: Model  # on all devices
    images: HostImages  # natural, in [0, 1]
    labels: Numbers
    indices: Numbers  # in the data set
    threat_model: ThreatModel
    key: Key[Array, ""]  # source of all randomness
    placement: Placement  # shape of batches, and the devices
    randomized: bool  # whether the model takes a key
    num_steps: int  # gradient steps of APGD
    probe: Float[np.ndarray, "probed classes"]  # logits of the first few natural images

    @classmethod
    def create(
        cls,
        model: Model,
        images: Any,
        labels: Any,
        indices: Any,
        threat_model: ThreatModel,
        key: Key[Array, ""] | None,
        devices: Sequence[jax.Device] | None,
        batch_size: int | None,
        randomized: bool,
        num_steps: int,
    ) -> "Job":
        """Check the arguments that long evaluations share, and put the model on the devices.

        Takes arguments as the user gave them, and defaults for those that are None.

        Raises:
          ValueError: bad images, labels or numbers, or logits that are not finite.
          TypeError: the model needs a key.
        """
        check_images(images)
        check_labels(labels, len(images))
        if len(images) == 0:
            raise ValueError("images is empty: there is nothing to attack")
        numbers = np.arange(len(images)) if indices is None else np.asarray(indices)
        check_labels(numbers, len(images), name="indices")
        check_positive_int(num_steps, "num_steps")
        batch_size = default_batch_size() if batch_size is None else batch_size
        check_positive_int(batch_size, "batch_size")
        devices = jax.devices() if devices is None else devices
        placement = Placement.over(devices, batch_size, len(images))
        job = cls(
            model=placement.replicate(as_pytree(model)),
            images=np.asarray(images, np.float32),
            labels=np.asarray(labels, np.int32),
            indices=numbers.astype(np.int32),
            threat_model=threat_model,
            key=jax.random.key(0) if key is None else key,
            placement=placement,
            randomized=randomized,
            num_steps=num_steps,
            probe=np.zeros((0, 0), np.float32),
        )
        first = np.arange(min(_PROBED, len(images)))
        try:
            logits = [job.natural_logits(batch) for batch in job.batches(first)]
        except TypeError as error:
            if not randomized and "'key'" in str(error):
                error.add_note("a model that takes a key needs randomized=True, version='rand'")
            raise
        return replace(job, probe=np.concatenate(logits))

    @property
    def num_classes(self) -> int:
        """The number of the model's classes."""
        return self.probe.shape[1]

    def fingerprint(self, **settings: Any) -> str:
        """Return a digest of all that decides the result but the model; ``settings`` included."""
        settings |= {
            "epsilon": float(self.threat_model.epsilon),
            "norm": type(self.threat_model).__name__.lower(),
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "randomized": self.randomized,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for array in (self.images, self.labels, self.indices):
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def purpose_key(self, purpose: str, number: int = 0) -> Key[Array, ""]:
        """Return the key of an attack's pass, whatever else is in the list of attacks."""
        key = jax.random.fold_in(self.key, zlib.crc32(purpose.encode()))
        return jax.random.fold_in(key, number)

    def keys(self, purpose: str, batch: Batch, number: int = 0) -> Key[Array, "batch"]:
        """Return a key for every row of a batch; see ``purpose_key``."""
        return example_keys(self.purpose_key(purpose, number), batch.indices)

    def batches(self, examples: Numbers) -> Iterator[Batch]:
        """Cut examples, given by their numbers, into batches and put these on the devices."""
        for rows, active in self.placement.batches(examples):
            arrays = (self.images[rows], self.labels[rows], self.indices[rows], active)
            yield Batch(rows[active], rows, *self.placement.place(arrays))

    def over_batches(
        self, compute: Callable[[Batch], Mapping[str, Any]], examples: Numbers | None = None
    ) -> Arrays:
        """Compute arrays batch by batch, over all examples or with zeros for those not chosen."""
        arrays: Arrays = {}
        for batch in self.batches(np.arange(len(self.images)) if examples is None else examples):
            for name, computed in compute(batch).items():
                values = np.asarray(computed)[: len(batch.examples)]
                shape = (len(self.images), *values.shape[1:])
                arrays.setdefault(name, np.zeros(shape, values.dtype))[batch.examples] = values
        return arrays

    def attack(
        self, run: Run, name: str, batch: Batch, number: int = 0, targets: Numbers | None = None
    ) -> tuple[AttackResult, Bool[Array, "batch"], Values]:
        """Run one pass of an attack on a batch, and judge its images by a fresh forward pass.

        The attack's name and the pass's number decide its randomness; ``targets`` are the class
        numbers of all examples, for a targeted attack.

        Returns:
          What the attack says; which of its images are adversarial; the perturbations' norms.
        """
        images, labels = batch.images, batch.labels
        aimed = {} if targets is None else {"targets": self.placement.place(targets[batch.rows])}
        key = self.purpose_key(name, number)
        common = {"key": key, "indices": batch.indices, "active": batch.active}
        found = run(self.model, images, labels, self.threat_model, **common, **aimed)
        model = self.judging_model(name, batch, number)
        return found, *judge(model, found.images, images, labels, self.threat_model)

    def judging_model(self, purpose: str, batch: Batch, number: int = 0) -> Model:
        """Return the model for a fresh forward pass, with its own randomness if it has any."""
        if not self.randomized:
            return self.model
        return WithKeys(self.model, self.keys(f"judge {purpose}", batch, number))

    def natural_logits(self, batch: Batch) -> Float[np.ndarray, "examples classes"]:
        """Return the logits of a batch's natural images, without padding, on the host.

        Raises:
          ValueError: they are not finite, or labels are beyond the model's classes.
        """
        count = len(batch.examples)
        logits = np.asarray(forward(self.judging_model(CLEAN, batch), batch.images))[:count]
        check_logits(logits, count)
        check_labels(self.labels[batch.examples], count, logits.shape[1])
        return logits
