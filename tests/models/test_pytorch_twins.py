"""All architectures against functional PyTorch twins written from the paper's description."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ancra_jax import models
from ancra_jax.interop import pytorch
from tests.support.reference_weights import random_variables

torch = pytest.importorskip("torch")
F = torch.nn.functional

NUM_CLASSES = 7
BATCH = 5


class Twin:
    """A forward pass over a dict of tensors by name; training updates the statistics in place."""

    def __init__(self, weights, *, attention, labels):
        self.weights = weights
        self.attention = attention
        self.labels = labels  # None in the testing phase
        self.aux_logits = []

    def conv(self, name, x, stride=1):
        kernel = self.weights[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(self, name, x):
        mean, var, scale, bias = (
            self.weights[f"{name}.{key}"]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, bias, training=self.labels is not None)

    def attend(self, name, x, window):
        """o' = o * Omega_j, with p = Linear(pool(o)) and j the label or argmax p."""
        kernel, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        cells = F.avg_pool2d(x, window)
        logits = F.linear(cells.flatten(1), kernel, bias)
        self.aux_logits.append(logits)
        j = logits.argmax(1) if self.labels is None else self.labels
        return x * F.interpolate(kernel[j].view_as(cells), size=x.shape[2:], mode="nearest")

    def classify(self, x, blocks, final, classifier, window):
        for block in blocks[:-2]:
            x = block(x)
        for block in blocks[-2:]:
            x = block(x)
            if self.attention:
                x = self.attend(classifier, final(x), window)
        if not self.attention:
            x = final(x)
        features = F.avg_pool2d(x, window).flatten(1)
        kernel, bias = self.weights[f"{classifier}.weight"], self.weights[f"{classifier}.bias"]
        return F.linear(features, kernel, bias), features

    def basic_block(self, name, x, stride):
        y = F.relu(self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride)))
        y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", y))
        if f"{name}.shortcut.0.weight" in self.weights:
            x = self.norm(f"{name}.shortcut.1", self.conv(f"{name}.shortcut.0", x, stride))
        return F.relu(x + y)

    def preact_block(self, name, shortcut, x, stride):
        activated = F.relu(self.norm(f"{name}.bn1", x))
        y = self.conv(f"{name}.conv1", activated, stride)
        y = self.conv(f"{name}.conv2", F.relu(self.norm(f"{name}.bn2", y)))
        if f"{name}.{shortcut}.weight" in self.weights:
            x = self.conv(f"{name}.{shortcut}", activated, stride)
        return x + y

    def resnet18(self, x):
        x = F.relu(self.norm("bn1", self.conv("conv1", x)))
        blocks = [partial(self.basic_block, name, stride=stride) for name, stride in RESNET_BLOCKS]
        return self.classify(x, blocks, lambda x: x, "fc", 4)

    def preact_resnet18(self, x):
        blocks = [
            partial(self.preact_block, name, "shortcut.0", stride=stride)
            for name, stride in RESNET_BLOCKS
        ]
        final = lambda x: F.relu(self.norm("bn", x))  # noqa: E731
        return self.classify(self.conv("conv1", x), blocks, final, "linear", 4)

    def wide_resnet22_2(self, x):
        blocks = [
            partial(self.preact_block, name, "convShortcut", stride=stride)
            for name, stride in names_and_strides("block{}.layer.{}", groups=3, size=3)
        ]
        final = lambda x: F.relu(self.norm("bn1", x))  # noqa: E731
        return self.classify(self.conv("conv1", x), blocks, final, "fc", 8)


def names_and_strides(name, groups, size):
    pairs = itertools.product(range(1, groups + 1), range(size))
    return [(name.format(group, i), 2 if group > 1 and i == 0 else 1) for group, i in pairs]


RESNET_BLOCKS = names_and_strides("layer{}.{}", groups=4, size=2)


def torch_side(name, state_dict, images, labels, *, attention, train):
    """Outputs, gradients by name and to the images, and running statistics, in float64."""
    weights = {
        key: torch.tensor(value, dtype=torch.float64, requires_grad="running" not in key)
        for key, value in state_dict.items()
    }
    pixels = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2), dtype=torch.float64)
    pixels.requires_grad_()
    targets = torch.tensor(np.asarray(labels), dtype=torch.long)
    twin = Twin(weights, attention=attention, labels=targets if train else None)
    logits, features = getattr(twin, name)(pixels)
    loss = F.cross_entropy(logits, targets)
    if attention:
        loss = loss + 2 * sum(F.cross_entropy(aux, targets) for aux in twin.aux_logits) / 2
    loss.backward()
    gradients = {key: value.grad.numpy() for key, value in weights.items() if value.requires_grad}
    gradients["images"] = pixels.grad.numpy().transpose(0, 2, 3, 1)
    outputs = [logits, features, *twin.aux_logits]
    statistics = {key: value.numpy() for key, value in weights.items() if "running" in key}
    return [value.detach().numpy() for value in outputs], gradients, statistics


def jax_side(network, name, variables, images, labels, *, train):
    """The same of our network, in float32."""
    apply = partial(network.apply, mutable=["batch_stats"])

    @jax.jit
    def run(variables, images):
        def loss(params, images):
            moved = variables | {"params": params}
            outputs, updated = apply(moved, images, labels, train=train)
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            total = cross_entropy(outputs.logits, labels).mean()
            if len(outputs.aux_logits):
                total += 2 * cross_entropy(outputs.aux_logits, labels[None]).mean()
            return total, (outputs, updated["batch_stats"])

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], images)

    (params, pixels), (outputs, batch_stats) = run(variables, images)
    by_name = pytorch.from_variables(name, {"params": params, "batch_stats": batch_stats})
    statistics = {key: by_name.pop(key) for key in list(by_name) if "running" in key}
    flat_outputs = [outputs.logits, outputs.features, *outputs.aux_logits]
    return flat_outputs, {**by_name, "images": pixels}, statistics


def assert_close(actual, expected, what, tolerance):
    error = np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected)
    assert error <= tolerance, (what, error)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["testing_phase", "training_phase"])
@pytest.mark.parametrize("attention", [False, True], ids=["plain", "attention"])
@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("resnet18", (32, 32, 3)),
        # Two cells per channel, in one direction: a wrong order of the flattening would show.
        ("preact_resnet18", (64, 32, 2)),
        ("wide_resnet22_2", (32, 32, 1)),
    ],
)
def test_outputs_gradients_and_statistics_equal_pytorchs(name, image_shape, attention, train):
    network = models.create(name, num_classes=NUM_CLASSES, width=4, reverse_attention=attention)
    variables = random_variables(network, image_shape, seed=1)
    images = jax.random.uniform(jax.random.key(1), (BATCH, *image_shape))
    labels = jnp.asarray([0, 6, 3, 3, 1])
    with jax.default_matmul_precision("highest"):
        ours = jax_side(network, name, variables, images, labels, train=train)
    state_dict = pytorch.from_variables(name, variables)
    theirs = torch_side(name, state_dict, images, labels, attention=attention, train=train)
    assert len(ours[0]) == len(theirs[0]) == (4 if attention else 2)
    for i, (actual, expected) in enumerate(zip(ours[0], theirs[0], strict=True)):
        assert_close(actual, expected, f"output {i}", 1e-5)
    # A sum that float32 rounds to the other side of a ReLU moves gradients by up to 4e-3; without
    # such an accident they agree to 1e-5.
    for actual, expected, tolerance in zip(ours[1:], theirs[1:], (5e-3, 1e-5), strict=True):
        assert actual.keys() == expected.keys()
        for key in actual:
            assert_close(actual[key], expected[key], key, tolerance)
    moved = [key for key, value in ours[2].items() if np.any(value != state_dict[key])]
    assert len(moved) == (len(ours[2]) if train else 0)
