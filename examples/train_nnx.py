"""Adversarial training of an NNX module of one's own: ``python examples/train_nnx.py``."""

import jax
import optax
from flax import nnx

from ancra_jax import attacks, data, losses


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(1024, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1))


# ---- Adversarial training in a loop of one's own ----
ball = attacks.Linf(0.1)
model = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, images, labels, keys):
    model.eval()  # an attack must not move batch statistics
    objective = attacks.objectives.cross_entropy(model, labels)
    start = ball.random_start(keys, images)
    attacked = attacks.ascend(objective, start, images, ball, step_size=0.03, num_steps=5)
    model.train()
    loss_of = lambda model: losses.cross_entropy(model(attacked), labels)  # noqa: E731
    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


digits = data.load("digits")
train = data.put_on_device(digits.train)
for step in range(100):
    key = jax.random.key(step)
    indices = jax.random.randint(key, [64], 0, len(digits.train))
    batch = data.to_float(train.images[indices]), train.labels[indices]
    loss = train_step(model, optimizer, *batch, attacks.example_keys(key, indices))

# ---- What it is worth ----
model.eval()
images, labels = digits.test.images[:64] / 255.0, digits.test.labels[:64]
result = attacks.autoattack(
    model, images, labels, epsilon=ball.epsilon, num_steps=20, num_queries=50
)
print(f"loss {loss:.2f}, natural {result.clean_accuracy:.2f}, robust {result.robust_accuracy:.2f}")
