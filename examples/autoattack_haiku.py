"""AutoAttack on a Haiku network: ``python examples/autoattack_haiku.py``."""

import haiku as hk
import jax

from ancra_jax import attacks


@hk.without_apply_rng
@hk.transform
def network(x):
    return hk.Linear(10)(jax.nn.relu(hk.Conv2D(8, 3)(x)).mean(axis=(1, 2)))


images = jax.random.uniform(jax.random.key(0), (16, 8, 8, 3))  # yours: pixels in [0, 1]
params = network.init(jax.random.key(0), images)
model = jax.tree_util.Partial(network.apply, params)

labels = model(images).argmax(-1)  # yours: class numbers
effort = {"num_steps": 5, "num_queries": 20, "n_target_classes": 2}  # leave it out: the standard
result = attacks.autoattack(model, images, labels, epsilon=8 / 255, norm="linf", **effort)
print(result.robust_accuracy, result.warnings)
