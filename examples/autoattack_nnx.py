"""AutoAttack on a Flax NNX module: ``python examples/autoattack_nnx.py``."""

import jax
from flax import nnx

from ancra_jax import attacks


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))


model = Net(nnx.Rngs(0))
model.eval()  # batch statistics frozen, dropout off

images = jax.random.uniform(jax.random.key(0), (16, 8, 8, 3))  # yours: pixels in [0, 1]
labels = model(images).argmax(-1)  # yours: class numbers
effort = {"num_steps": 5, "num_queries": 20, "n_target_classes": 2}  # leave it out: the standard
result = attacks.autoattack(model, images, labels, epsilon=8 / 255, norm="linf", **effort)
print(result.robust_accuracy, result.warnings)
