"""AutoAttack on a Flax Linen module: ``python examples/autoattack_linen.py``."""

import flax.linen as nn
import jax

from ancra_jax import attacks


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(nn.relu(x).mean(axis=(1, 2)))


images = jax.random.uniform(jax.random.key(0), (16, 8, 8, 3))  # yours: pixels in [0, 1]
module = Net()
variables = module.init(jax.random.key(0), images, train=False)
# Arrays in a Partial are traced; anything else, such as `train`, is a constant of the program.
model = jax.tree_util.Partial(module.apply, variables, train=False)

labels = model(images).argmax(-1)  # yours: class numbers
effort = {"num_steps": 5, "num_queries": 20, "n_target_classes": 2}  # leave it out: the standard
result = attacks.autoattack(model, images, labels, epsilon=8 / 255, norm="linf", **effort)
print(result.robust_accuracy, result.warnings)
