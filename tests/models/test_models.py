"""Networks by name: shapes, dtypes, sizes of images, and refusals."""

from contextlib import nullcontext

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import models
from ancra_jax.errors import UsageError
from ancra_jax.models.layers import BatchNorm
from ancra_jax.models.network import check_images, check_labels
from ancra_jax.types import Outputs
from tests.support.reference_weights import random_variables

NAMES = ["resnet18", "preact_resnet18", "wide_resnet16_2"]
OTHERS = [
    "resnet34",
    "resnet50",
    "preact_resnet34_no_final_norm",
    "preact_resnet18_raw_shortcut",
    "dm_preact_resnet34",
    "dm_wide_resnet16_1",
]


def shapes(network, images, labels=None, **options):
    """Shapes and dtypes of variables and outputs, without computing anything."""

    def run(key):
        variables = network.init(key, images)
        return variables, network.apply(variables, images, labels, **options)

    return jax.eval_shape(run, jax.random.key(0))


@pytest.mark.parametrize("name", NAMES + OTHERS)
@pytest.mark.parametrize(("reverse_attention", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_outputs_and_parameters_are_float32(name, reverse_attention, dtype):
    options = {"reverse_attention": reverse_attention, "dtype": dtype}
    network = models.create(name, num_classes=7, width=2, **options)
    variables, outputs = shapes(network, jnp.zeros((3, 16, 24, 2)))
    heads = 2 if reverse_attention else 0
    assert isinstance(outputs, Outputs)
    assert outputs.logits.shape == (3, 7)
    assert outputs.aux_logits.shape == (heads, 3, 7)
    assert outputs.features.shape == (3, variables["params"]["fc"]["kernel"].shape[0])
    assert {leaf.dtype.name for leaf in jax.tree.leaves((variables, outputs))} == {"float32"}
    assert set(variables) == {"params", "batch_stats"}


@pytest.mark.parametrize(
    ("name", "image_shape", "num_features"),
    [
        ("resnet18", (8, 8, 1), 512),
        ("resnet18", (64, 64, 3), 2048),
        ("preact_resnet18", (64, 32, 3), 1024),
        ("wide_resnet16_4", (32, 32, 3), 256),
        ("wide_resnet16_4", (8, 8, 1), 256),
        ("wide_resnet10_1", (64, 64, 1), 256),
    ],
)
def test_number_of_features_at_the_papers_width(name, image_shape, num_features):
    _, outputs = shapes(models.create(name, num_classes=3), jnp.zeros((2, *image_shape)))
    assert outputs.features.shape == (2, num_features)


def test_bfloat16_is_close_to_float32_and_differentiable():
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    gradients, logits = {}, {}
    for dtype in ("float32", "bfloat16"):
        network = models.create("wide_resnet10_1", num_classes=3, width=4, dtype=dtype)
        variables = random_variables(network, (8, 8, 3))

        def loss(images, network=network, variables=variables):
            outputs, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
            return outputs.logits[:, 0].sum(), outputs.logits

        gradients[dtype], logits[dtype] = jax.jit(jax.grad(loss, has_aux=True))(images)
    assert gradients["bfloat16"].dtype == jnp.float32
    for actual, exact in ((v["bfloat16"], v["float32"]) for v in (gradients, logits)):
        relative = np.linalg.norm(actual - exact) / np.linalg.norm(exact)
        assert 0 < relative < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_follows_the_papers_code(name):
    network = models.create(name, num_classes=50, width=16)
    key = jax.random.key(0, impl="rbg")  # compiles sooner than threefry
    params = jax.jit(network.init)(key, jnp.zeros((1, 32, 32, 3)))["params"]
    wide = name.startswith("wide")
    kernel = params["block3_0" if wide else "layer3_0"]["conv2"]["kernel"]
    height, width, fan_in, out = kernel.shape
    if wide:
        expected = np.sqrt(2 / (height * width * out))
    else:
        expected = 1 / np.sqrt(3 * height * width * fan_in)
    np.testing.assert_allclose(np.std(kernel), expected, rtol=0.02)
    # A normal distribution has tails, the uniform one ends at sqrt(3) standard deviations.
    assert (np.abs(kernel).max() > 3 * expected) == wide
    bound = params["fc"]["kernel"].shape[0] ** -0.5
    assert np.abs(params["fc"]["kernel"]).max() <= bound
    assert np.abs(params["fc"]["bias"]).max() <= (0 if wide else bound)
    assert (np.abs(params["fc"]["bias"]).max() > 0.8 * bound) == (not wide)


def test_training_with_attention_needs_labels():
    images = jnp.zeros((4, 8, 8, 1))
    for attention in (True, False):
        network = models.create("resnet18", num_classes=3, width=2, reverse_attention=attention)
        with pytest.raises(UsageError, match="labels=None") if attention else nullcontext():
            shapes(network, images, train=True, mutable=["batch_stats"])
    with pytest.raises(UsageError, match=r"labels of shape \(3,\)"):
        check_labels(jnp.zeros(3, int), images)


@pytest.mark.parametrize(
    ("network", "shape", "dtype", "message"),
    [
        (models.ResNet18, (1, 7, 32, 3), "float32", r"7x32 pixels: ResNet18 .* at least 8"),
        (models.WideResNet, (1, 3, 3, 3), "float32", r"3x3 pixels: WideResNet .* 4"),
        (models.ResNet18, (1, 8, 8, 3), "uint8", "images of dtype uint8: floating-point"),
        (models.ResNet18, (8, 8, 3), "float32", r"images\.shape=\(8, 8, 3\): .*\(batch, height"),
    ],
)
def test_unusable_images_are_refused(network, shape, dtype, message):
    with pytest.raises(UsageError, match=message):
        check_images(jnp.zeros(shape, dtype), network)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet-18",
            {},
            r"'resnet-18': .*; did you mean 'resnet18'\? allowed are ",
        ),
        ("wideresnet28_10", {}, r"did you mean 'wide_resnet28_10'\?"),
        (
            "zebra",
            {},
            r"'zebra': .*; allowed are [^?]*wide_resnet\{depth\}_\{factor\}",
        ),
        ("wide_resnet27_2", {}, r"depth 27: .*6n \+ 4"),
        ("wide_resnet4_2", {}, r"depth 4: .*6n \+ 4"),
        ("wide_resnet28_0", {}, r"widening factor 0"),
        ("wide_resnet10_2", {"reverse_attention": True}, r"depth 10 .*depth 16"),
        ("wide_resnet10_2", {"last_block": "class_branches"}, r"depth 10 .*depth 16"),
        ("resnet18", {"last_block": "drop"}, r"last_block='drop': did you mean 'dropped'\?"),
        ("resnet18", {"last_block": "dropped", "reverse_attention": True}, "last_block.*=False"),
        ("resnet18", {"attention": "soft"}, "attention='soft': needs reverse_attention=True"),
        ("resnet18", {"temperature": 2.0}, r"temperature=2\.0: .*'soft'"),
        ("resnet18", {"temperature": 0.0}, r"temperature=0\.0: .*greater than 0"),
        ("resnet18", {"num_classes": 1}, r"num_classes=1: .* 2 or more"),
        ("resnet18", {"num_classes": True}, r"num_classes=True"),
        ("resnet18", {"width": 0}, r"width=0: .* 1 or more"),
        ("resnet18", {"dtype": "float16"}, r"dtype='float16': .*float32 or bfloat16"),
        ("resnet18", {"dtype": "half"}, r"dtype='half'"),
        ("resnet18", {"dtype": "fast"}, r"dtype='fast'"),
    ],
)
def test_unusable_arguments_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        models.create(name, **{"num_classes": 10, **options})


class Mlp(nn.Module):
    num_classes: int
    hidden: int

    @nn.compact
    def __call__(self, images, labels=None, *, train=False):
        z = nn.relu(nn.Dense(self.hidden)(images.reshape(len(images), -1)))
        logits = nn.Dense(self.num_classes)(z)
        return Outputs(logits, jnp.zeros((0, *logits.shape)), z)


@models.register("mlp{hidden}", examples=["mlp32"])
def mlp(*, num_classes, width, reverse_attention, dtype, hidden):
    return Mlp(num_classes, hidden)


def test_a_model_of_ones_own_can_be_registered():
    assert "mlp{hidden}" in models.available()
    _, outputs = shapes(models.create("mlp32", num_classes=3), jnp.zeros((2, 4, 4, 1)))
    assert outputs.features.shape == (2, 32)
    for taken in ("mlp{hidden}", "mlp64", "resnet18"):
        with pytest.raises(UsageError, match=f"'{taken}'"):
            models.register(taken)


def test_networks_take_an_activation_and_a_normalisation():
    variables = random_variables(models.create("resnet18", num_classes=10, width=2), (8, 8, 1))
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    outputs = [
        models.create("resnet18", num_classes=10, width=2, **options).apply(variables, images)
        for options in ({}, {"activation": "relu"}, {"activation": "silu"})
    ]
    assert jnp.array_equal(outputs[0].logits, outputs[1].logits)
    assert not jnp.array_equal(outputs[0].logits, outputs[2].logits)
    for options, message in (
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"mean": (0.5,)}, "mean="),
        ({"mean": (0.5,), "std": (0,)}, "std="),
        ({"mean": (0.5,), "std": (float("nan"),)}, "std="),
    ):
        with pytest.raises(UsageError, match=message):
            models.create("resnet18", num_classes=10, **options)
    two = models.create("resnet18", num_classes=10, width=2, mean=(0.5, 0.5), std=(1.0, 1.0))
    with pytest.raises(UsageError, match="has 2 numbers for images of 1 channels"):
        two.apply(variables, images)
    with pytest.raises(UsageError, match=r"activation='silu': 'mlp32' has no such option"):
        models.create("mlp32", num_classes=3, activation="silu")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet10_1"])
def test_momentum_and_parts_of_every_batch_normalisation_are_options(name):
    found = {}

    def look(method, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            norm = context.module
            found["/".join(norm.path)] = norm.momentum, norm.parts
        return method(*args, **kwargs)

    network = models.create(
        name, num_classes=3, width=2, batch_norm_momentum=0.99, batch_norm_parts=2
    )
    with nn.intercept_methods(look):
        variables, _ = shapes(network, jnp.zeros((2, 16, 16, 3)))
    layers = jax.tree.leaves(variables["batch_stats"])
    assert set(found.values()) == {(0.99, 2)} and 2 * len(found) == len(layers)
