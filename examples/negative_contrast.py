"""Asymmetric negative contrast in a loop of one's own: ``python examples/negative_contrast.py``."""

import jax
import jax.numpy as jnp
import optax

from ancra_jax import attacks, data, losses
from ancra_jax.methods.negatives import choose_negatives

ball = attacks.Linf(0.1)
optimizer = optax.adam(3e-3)
layers = jax.random.split(jax.random.key(0))
params = [
    0.1 * jax.random.normal(layers[0], (64, 128)),
    0.1 * jax.random.normal(layers[1], (128, 10)),
]


def network(params, images):  # any function of parameters and images
    return jax.nn.relu(images.reshape(len(images), -1) @ params[0]) @ params[1]


@jax.jit
def train_step(params, state, images, labels, indices, key):
    model = jax.tree_util.Partial(network, params)
    keys = attacks.example_keys(key, indices)
    start = attacks.gaussian_start(keys, images)
    objective = attacks.objectives.cross_entropy(model, labels)
    attacked = attacks.ascend(objective, start, images, ball, step_size=0.03, num_steps=5)

    # ---- The ten lines (1 to 4): negatives, attacked toward the classes of their anchors ----
    negatives = choose_negatives("random", keys, labels)
    others = images[negatives.positions]
    toward = attacks.objectives.targeted_cross_entropy(model, labels)
    others = attacks.ascend(toward, others, others, ball, step_size=0.03, num_steps=5)

    def loss_of(params):
        natural, adversarial = network(params, images), network(params, attacked)
        loss = losses.cross_entropy(natural, labels)
        loss += 6.0 * losses.kl_divergence(natural, adversarial)
        # ---- The ten lines (5 to 10): alpha=1 freezes the natural image ----
        contrast = losses.asymmetric_similarity(
            natural, network(params, others), negatives.valid, alpha=1.0
        )
        zeta = 3.0
        loss += zeta * contrast
        return loss, contrast

    (loss, contrast), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss, contrast


split, state = data.load("digits").train, optimizer.init(params)
images, labels = jnp.asarray(split.images / 255.0, "float32"), jnp.asarray(split.labels)
for step in range(100):
    key = jax.random.key(step)
    at = jax.random.randint(key, [64], 0, len(labels))
    params, state, loss, contrast = train_step(params, state, images[at], labels[at], at, key)
    if step % 20 == 19:
        print(f"step {step + 1}: loss {loss:.3f}, similarity of the negatives {contrast:.3f}")
