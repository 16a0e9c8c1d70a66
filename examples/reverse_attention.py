"""Reverse attention on a network of one's own: ``python examples/reverse_attention.py``."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ancra_jax import attacks, data, defences, losses
from ancra_jax.models.layers import BatchNorm, Conv
from ancra_jax.models.network import Network, Trunk


class Net(Network):  # any stem and two or more blocks; the base class weights the last two
    total_stride: ClassVar[int] = 1
    pool_window: ClassVar[int] = 8

    def trunk(self, images, *, train):
        stem = nn.relu(BatchNorm()(Conv(self.width)(images), train=train))
        convs, norms = [Conv(self.width) for _ in range(2)], [BatchNorm() for _ in range(2)]
        first = lambda x: nn.relu(norms[0](convs[0](x), train=train))  # noqa: E731
        second = lambda x: nn.relu(x + norms[1](convs[1](x), train=train))  # noqa: E731
        return Trunk(stem, [first, second])


network = Net(num_classes=10, width=16, reverse_attention=True)
digits = data.load("digits")
images, labels = (
    jnp.asarray(digits.train.images / 255.0, "float32"),
    jnp.asarray(digits.train.labels),
)
variables = network.init(jax.random.key(0), images[:1])
optimizer = optax.adam(1e-2)
state = optimizer.init(variables["params"])


@jax.jit
def train_step(variables, state, images, labels):
    def loss_of(params):  # in training the labels choose the masks
        full = {**variables, "params": params}
        outputs, updated = network.apply(full, images, labels, train=True, mutable=["batch_stats"])
        term = lambda logits: losses.cross_entropy(logits, labels)  # noqa: E731
        return losses.combined(term, outputs, aux_weight=2.0), updated

    (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
    updates, state = optimizer.update(gradients, state)
    return {"params": optax.apply_updates(variables["params"], updates), **updated}, state, loss


for step in range(60):
    at = jax.random.randint(jax.random.key(step), [64], 0, len(labels))
    variables, state, loss = train_step(variables, state, images[at], labels[at])

# Its argmax hides the gradient: besides PGD run the attacks that were made for it.
model = jax.tree_util.Partial(network.apply, variables)
test = digits.test.images[:32] / 255.0, digits.test.labels[:32]
found = attacks.pgd(model, *test, attacks.Linf(0.03), key=0, step_size=0.01, num_steps=10)
own, effort = defences.declared(network, model), attacks.AdaptiveBudget(5, 1, 1, 20, False)
result = attacks.adaptive(model, *test, epsilon=0.03, defences=own, budget=effort)
print(f"robust to PGD {1 - found.success.mean():.2f}, to all {result.robust_accuracy:.2f}")
