"""AutoAttack's attacks, in JAX: what ``benchmarks.torch_autoattack`` does in PyTorch.

Under Linf on images of CIFAR-10, with a device for each core as in ``ancra_jax.evaluate``.
Networks: ``cnn_a``, the small adversarially trained one of ``tests/golden``, under 8/255 on images
that it classifies correctly; ``resnet18`` of a width, with random weights, its predictions as
labels, and an epsilon at which the nearest boundary, taken as flat, is within reach of half the
images. Rows:
``apgd`` (cross-entropy), ``fab_t`` (towards the class ranked second), ``square``, and
``autoattack``, the ensemble ``standard`` with all nine targets.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax import attacks, models
from ancra_jax.attacks.job import Placement
from ancra_jax.attacks.model import forward
from ancra_jax.attacks.objectives import value_and_input_gradient
from ancra_jax.attacks.threat_models import at_distance
from ancra_jax.cli.backend import use_a_device_per_core
from ancra_jax.interop import pytorch
from benchmarks.measure import Workload, timed

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "cnn_a.npz"
NETWORKS = ("cnn_a", "resnet18")
CONVOLUTIONS = (("c1", 1), ("c2", 2), ("c3", 2))


def create(row: str, settings: Mapping[str, Any]) -> Workload:
    """Builds the workload of a row and runs it once.

    Args:
      row: ``'apgd'``, ``'fab_t'``, ``'square'`` or ``'autoattack'``.
      settings: ``model`` with ``name`` of ``NETWORKS`` and ``width``; ``num_images`` (at most 69),
        ``num_steps`` and ``num_queries``.
    """
    use_a_device_per_core()
    devices = jax.devices() if jax.default_backend() == "cpu" else jax.devices()[:1]
    examples = max(settings["num_images"] // len(devices), 1) * len(devices)
    make = {"cnn_a": _cnn_a, "resnet18": _resnet18}[settings["model"]["name"]]
    model, shared = make(examples, settings["model"]["width"])
    noise = np.random.default_rng(0).uniform(-1, 1, shared["images"].shape)
    shared["noise"] = noise.astype(np.float32)
    ball = attacks.Linf(float(shared["epsilon"]))
    if row == "autoattack":
        attack = partial(_standard, model, shared, ball, settings, devices)
    else:
        placement = Placement.over(devices, examples, examples)
        placed = placement.place({name: shared[name] for name in ("images", "labels", "noise")})
        attack = partial(_ATTACKS[row], placement.replicate(model), placed, ball, settings)
    first, found = timed(lambda: jax.block_until_ready(attack()))
    again, _ = timed(lambda: jax.block_until_ready(attack()))
    robust = found.robust if row == "autoattack" else ~np.asarray(found.success)
    return Workload(
        run=attack,
        images=examples,
        compile_seconds=first - again,
        loss=float(np.median(found.best_loss)) if row in ("apgd", "fab_t") else None,
        robust_accuracy=float(robust.mean()),
        robust=robust.tolist(),
        shared=shared,
    )


def _cnn_a(examples, _):
    with np.load(GOLDEN) as file:
        golden = dict(file)
    shared = {name: value for name, value in golden.items() if name.startswith("w.")}
    model = jax.tree_util.Partial(logits, jax.tree.map(jnp.asarray, weights_of(shared)))
    labels = golden["labels"].astype(np.int32)
    chosen = np.flatnonzero(golden["logits"][: len(labels)].argmax(1) == labels)[:examples]
    images = golden["images"][chosen].astype(np.float32) / np.float32(255)
    return model, shared | {"images": images, "labels": labels[chosen], "epsilon": 8 / 255}


def _resnet18(examples, width):
    images = jnp.asarray(_cnn_a(examples, width)[1]["images"])
    network = models.create("resnet18", num_classes=10, width=width)
    variables = jax.jit(network.init)(jax.random.key(0), images[:1])

    @jax.jit
    def with_statistics(variables):
        apply = partial(network.apply, train=True, mutable="batch_stats")
        return variables | apply(variables, images[:16], jnp.zeros(len(images[:16]), int))[1]

    for _ in range(20):
        variables = with_statistics(variables)
    model = models.BoundNetwork(network, variables)
    labels = np.asarray(forward(model, images).argmax(axis=-1), np.int32)
    objective = attacks.objectives.margin(model, labels)
    margins, gradients = jax.jit(value_and_input_gradient)(objective, images)
    distances = -margins / jnp.abs(gradients).sum(axis=(1, 2, 3))
    weights = pytorch.from_variables("resnet18", variables).items()
    shared = {f"weight/{name}": value for name, value in weights}
    return model, shared | {
        "images": np.asarray(images), "labels": labels, "epsilon": np.median(distances)
    }  # fmt: skip


def logits(weights, x):
    """The network, as anyone would write it, of what `weights_of` returns."""
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


def weights_of(golden):
    """Kernel and bias of each layer, from PyTorch's layout to JAX's."""
    layers = {name: golden[f"w.{name}.weight"] for name in ("c1", "c2", "c3", "fc")}
    return {
        name: (kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T,
               golden[f"w.{name}.bias"])
        for name, kernel in layers.items()
    }  # fmt: skip


def _apgd(model, shared, ball, settings):
    start = at_distance(ball, shared["images"], shared["noise"], ball.epsilon)
    return attacks.apgd(
        model, shared["images"], shared["labels"], ball, start=start,
        num_steps=settings["num_steps"],
    )  # fmt: skip


def _fab_t(model, shared, ball, settings):
    logits = forward(model, shared["images"])
    others = jnp.where(jax.nn.one_hot(shared["labels"], 10) > 0, -jnp.inf, logits)
    return attacks.fab(
        model, shared["images"], shared["labels"], ball, targets=jnp.argmax(others, axis=-1),
        key=jax.random.key(0), num_steps=settings["num_steps"],
    )  # fmt: skip


def _square(model, shared, ball, settings):
    return attacks.square(
        model, shared["images"], shared["labels"], ball, key=jax.random.key(0),
        num_queries=settings["num_queries"],
    )  # fmt: skip


def _standard(model, shared, ball, settings, devices):
    return attacks.autoattack(
        model, shared["images"], shared["labels"], ball, num_steps=settings["num_steps"],
        num_queries=settings["num_queries"], devices=devices, checks=False, progress=None,
    )  # fmt: skip


_ATTACKS = {"apgd": _apgd, "fab_t": _fab_t, "square": _square}
ROWS = (*_ATTACKS, "autoattack")
