"""AutoAttack on an Equinox module: ``python examples/autoattack_equinox.py``."""

import equinox as eqx
import jax

from ancra_jax import attacks


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=first)
        self.head = eqx.nn.Linear(8, 10, key=second)

    def __call__(self, x):  # one image, channels first
        return self.head(jax.nn.relu(self.conv(x)).mean(axis=(1, 2)))


def batched(net, images):
    return jax.vmap(net)(images.transpose(0, 3, 1, 2))


# Leaves that are no arrays (activation functions, flags) are constants of the compiled program.
model = jax.tree_util.Partial(batched, eqx.nn.inference_mode(Net(jax.random.key(0))))

images = jax.random.uniform(jax.random.key(0), (16, 8, 8, 3))  # yours: pixels in [0, 1]
labels = model(images).argmax(-1)  # yours: class numbers
effort = {"num_steps": 5, "num_queries": 20, "n_target_classes": 2}  # leave it out: the standard
result = attacks.autoattack(model, images, labels, epsilon=8 / 255, norm="linf", **effort)
print(result.robust_accuracy, result.warnings)
