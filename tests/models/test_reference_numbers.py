"""ResNet-18 with reverse attention against numbers of the reference implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ancra_jax import models
from ancra_jax.interop import pytorch
from tests.support.reference_weights import GOLDEN, reference_names, seeded_state_dict


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "resnet18_ra_cifar10.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def variables():
    state_dict = seeded_state_dict(reference_names("resnet18_ra_cifar10"))
    return pytorch.to_variables("resnet18", state_dict)


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


NETWORK = models.create("resnet18", num_classes=10, reverse_attention=True)


@jax.jit
def train_forward(variables, images, labels):
    outputs, updated = NETWORK.apply(variables, images, labels, train=True, mutable=["batch_stats"])
    return outputs, {**variables, **updated}


def assert_equal(actual, expected):
    largest = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * largest)


def test_training_phase_outputs_and_running_statistics(golden, variables):
    outputs, after = train_forward(variables, golden["x"], golden["y"])
    assert_equal(outputs.logits, golden["train_logits"])
    assert_equal(outputs.aux_logits, golden["train_aux"])
    # The recorded statistics are those after this one forward pass, the first of the loss's three.
    state_dict = pytorch.from_variables("resnet18", after)
    recorded = [key for key in golden if key.startswith("after.")]
    assert len(recorded) == 4
    for key in recorded:
        assert_equal(state_dict[key.removeprefix("after.")], golden[key])


def test_testing_phase_outputs_and_input_gradient(golden, variables):
    labels = jnp.asarray(golden["y"])

    def loss(images):
        outputs = NETWORK.apply(variables, images)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        final = cross_entropy(outputs.logits, labels).mean()
        return final + 2 * cross_entropy(outputs.aux_logits, labels[None]).mean(), outputs

    (value, outputs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(golden["x"])
    assert_equal(outputs.logits, golden["eval_logits"])
    assert_equal(outputs.aux_logits, golden["eval_aux"])
    assert_equal(value, golden["eval_ce_loss"])
    assert_equal(gradient, golden["eval_ce_grad_x"])


def test_labels_do_not_leak_into_the_testing_phase(golden, variables):
    apply = jax.jit(NETWORK.apply)
    wrong_labels = (golden["y"] + 1) % 10
    with_labels = apply(variables, golden["x"], wrong_labels)
    without = apply(variables, golden["x"])
    np.testing.assert_array_equal(with_labels.logits, without.logits)
    trained, _ = train_forward(variables, golden["x"], wrong_labels)
    assert np.abs(trained.logits - golden["train_logits"]).max() > 0.1
