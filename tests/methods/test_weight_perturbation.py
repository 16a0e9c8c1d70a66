import chex
import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax.methods import Examples
from ancra_jax.ops.files import read_arrays
from ancra_jax.types import Batch, Outputs
from tests.support import cnn_a
from tests.support.method_parts import method_of
from tests.support.reference_weights import GOLDEN

START = jnp.zeros((), jnp.int32)


def awp(gamma=0.1, warmup_epochs=0):
    options = {"awp__gamma": gamma, "awp__warmup_epochs": warmup_epochs}
    return method_of("pgd_at", epochs=3, method__aux_weight=0.0, **options)


def loss_on(method, images, labels):
    """The method's loss as a function of the network's weights."""
    examples = Examples(
        Batch(images, labels, jnp.arange(len(labels))), {"adversarial": images}, {}, {}, START
    )

    def loss(weights):
        def forward(batch_stats, images, labels):
            del labels
            logits = cnn_a.logits(weights, images)
            return Outputs(logits, jnp.zeros((0, *logits.shape)), logits), batch_stats

        terms = method.loss(forward, {}, examples)
        return terms.loss, terms

    return loss


def test_at_awp_agrees_with_the_reference():
    golden = read_arrays(GOLDEN / "awp.npz")
    weights = cnn_a.load().model.args[0]
    method = awp(gamma=0.01)
    loss = loss_on(method, jnp.asarray(golden["x"]), jnp.asarray(golden["y"], jnp.int32))
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(loss(weights)[0], golden["clean_loss"], rtol=1e-4)
        (value, _), gradients = jax.jit(lambda w: method.gradient(loss, w, START))(weights)
    np.testing.assert_allclose(value, golden["perturbed_loss"], rtol=1e-4)
    for name, (kernel, bias) in gradients.items():
        axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        for ours, kind in ((kernel.transpose(axes), "weight"), (bias, "bias")):
            expected = golden[f"grad.{name}.{kind}"]
            difference = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
            assert difference < 1e-4, (name, kind, difference)


# A loss linear in each of its parameters: its gradient tells where it was taken.
PARAMS = {
    "conv": {"kernel": jnp.asarray([[3.0, 4.0]]), "bias": jnp.asarray([1.0, 2.0])},
    "norm": {"scale": jnp.asarray([0.5, 2.0]), "bias": jnp.asarray([0.1, 0.2])},
}


def quadratic(params):
    return sum(0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), params


def test_kernels_move_by_gamma_times_their_norm_and_nothing_else_moves():
    method = awp()
    (_, there), gradients = method.gradient(quadratic, PARAMS, START)
    # The gradient of the quadratic is the point itself: the kernel moves along itself.
    np.testing.assert_allclose(there["conv"]["kernel"], 1.1 * PARAMS["conv"]["kernel"], rtol=1e-6)
    chex.assert_trees_all_close(gradients, there)
    unmoved = lambda params: (params["conv"]["bias"], params["norm"])  # noqa: E731
    chex.assert_trees_all_equal(unmoved(there), unmoved(PARAMS))


def test_it_warms_up():
    method = awp(warmup_epochs=2)
    for epoch, moves in ((0, False), (1, False), (2, True)):
        (_, there), _ = method.gradient(quadratic, PARAMS, jnp.asarray(epoch))
        assert np.any(there["conv"]["kernel"] != PARAMS["conv"]["kernel"]) == moves


def test_a_kernel_without_gradient_stays():
    constant = lambda params: (jnp.sum(params["conv"]["bias"]), params)  # noqa: E731
    (_, there), _ = awp().gradient(constant, PARAMS, START)
    chex.assert_trees_all_equal(there, PARAMS)
