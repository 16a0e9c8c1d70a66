"""AutoAttack's attacks, in JAX: what ``benchmarks.torch_autoattack`` does in PyTorch.

On the small adversarially trained network of ``tests/golden``, under Linf 8/255, on images of
CIFAR-10 that it classifies correctly. Rows: ``apgd`` (cross-entropy), ``fab_t`` (towards the class
ranked second), ``square``, and ``autoattack``, the ensemble ``standard`` with all nine targets.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax import attacks
from ancra_jax.attacks.threat_models import at_distance
from ancra_jax.cli.backend import use_a_device_per_core
from benchmarks.measure import Workload, timed

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "cnn_a.npz"
EPSILON = 8 / 255
CONVOLUTIONS = (("c1", 1), ("c2", 2), ("c3", 2))


def create(row: str, settings: Mapping[str, Any]) -> Workload:
    """Builds the workload of a row and runs it once.

    Args:
      row: ``'apgd'``, ``'fab_t'``, ``'square'`` or ``'autoattack'``.
      settings: ``num_images`` (at most 69), ``num_steps`` and ``num_queries``.
    """
    if row == "autoattack":
        use_a_device_per_core()  # as ancra_jax.evaluate does
    with np.load(GOLDEN) as file:
        golden = dict(file)
    weights = {name: value for name, value in golden.items() if name.startswith("w.")}
    labels = golden["labels"].astype(np.int32)
    right = np.flatnonzero(golden["logits"][: len(labels)].argmax(1) == labels)
    chosen = right[: settings["num_images"]]
    images = golden["images"][chosen].astype(np.float32) / np.float32(255)
    noise = np.random.default_rng(0).uniform(-1, 1, images.shape).astype(np.float32)
    shared = weights | {"images": images, "labels": labels[chosen], "noise": noise}

    model = jax.tree_util.Partial(logits, jax.tree.map(jnp.asarray, _converted(weights)))
    attack = partial(_ATTACKS[row], model, shared, settings)
    first, found = timed(lambda: jax.block_until_ready(attack()))
    again, _ = timed(lambda: jax.block_until_ready(attack()))
    robust = found.robust if row == "autoattack" else ~np.asarray(found.success)
    return Workload(
        run=attack,
        images=len(images),
        compile_seconds=first - again,
        loss=float(np.median(found.best_loss)) if row in ("apgd", "fab_t") else None,
        robust_accuracy=float(robust.mean()),
        robust=robust.tolist(),
        shared=shared,
    )


def logits(weights, x):
    """The network, as anyone would write it."""
    for name, stride in CONVOLUTIONS:
        kernel, bias = weights[name]
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + bias)
    kernel, bias = weights["fc"]
    return x.mean(axis=(1, 2)) @ kernel + bias


def _converted(weights):
    """From PyTorch's layout to JAX's."""
    layers = {name: weights[f"w.{name}.weight"] for name in ("c1", "c2", "c3", "fc")}
    return {
        name: (kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T,
               weights[f"w.{name}.bias"])
        for name, kernel in layers.items()
    }  # fmt: skip


def _apgd(model, shared, settings):
    ball = attacks.Linf(EPSILON)
    images, noise = jnp.asarray(shared["images"]), jnp.asarray(shared["noise"])
    start = at_distance(ball, images, noise, EPSILON)
    return attacks.apgd(
        model, images, shared["labels"], ball, start=start, num_steps=settings["num_steps"]
    )


def _fab_t(model, shared, settings):
    images, labels = jnp.asarray(shared["images"]), jnp.asarray(shared["labels"])
    others = jnp.where(jax.nn.one_hot(labels, 10) > 0, -jnp.inf, model(images))
    return attacks.fab(
        model,
        images,
        labels,
        attacks.Linf(EPSILON),
        targets=jnp.argmax(others, axis=-1),
        key=jax.random.key(0),
        num_steps=settings["num_steps"],
    )


def _square(model, shared, settings):
    return attacks.square(
        model,
        shared["images"],
        shared["labels"],
        attacks.Linf(EPSILON),
        key=jax.random.key(0),
        num_queries=settings["num_queries"],
    )


def _standard(model, shared, settings):
    return attacks.autoattack(
        model,
        shared["images"],
        shared["labels"],
        epsilon=EPSILON,
        num_steps=settings["num_steps"],
        num_queries=settings["num_queries"],
        checks=False,
        progress=None,
    )


_ATTACKS = {"apgd": _apgd, "fab_t": _fab_t, "square": _square, "autoattack": _standard}
ROWS = tuple(_ATTACKS)
