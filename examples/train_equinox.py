"""Adversarial training of an Equinox module of one's own: ``python examples/train_equinox.py``."""

import equinox as eqx
import jax
import optax

from ancra_jax import attacks, data, losses


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 16, 3, padding=1, key=first)
        self.head = eqx.nn.Linear(1024, 10, key=second)

    def __call__(self, images):  # a batch, channels last
        one = lambda x: self.head(jax.nn.relu(self.conv(x)).ravel())  # noqa: E731
        return jax.vmap(one)(images.transpose(0, 3, 1, 2))


# ---- Adversarial training in a loop of one's own ----
ball = attacks.Linf(0.1)
model = Net(jax.random.key(0))
optimizer = optax.adam(3e-3)
state = optimizer.init(eqx.filter(model, eqx.is_array))


@eqx.filter_jit
def train_step(model, state, images, labels, keys):
    objective = attacks.objectives.cross_entropy(model, labels)
    start = ball.random_start(keys, images)
    attacked = attacks.ascend(objective, start, images, ball, step_size=0.03, num_steps=5)
    loss_of = lambda model: losses.cross_entropy(model(attacked), labels)  # noqa: E731
    loss, gradients = eqx.filter_value_and_grad(loss_of)(model)
    updates, state = optimizer.update(gradients, state)
    return eqx.apply_updates(model, updates), state, loss


digits = data.load("digits")
train = data.put_on_device(digits.train)
for step in range(100):
    key = jax.random.key(step)
    indices = jax.random.randint(key, [64], 0, len(digits.train))
    batch = data.to_float(train.images[indices]), train.labels[indices]
    model, state, loss = train_step(model, state, *batch, attacks.example_keys(key, indices))

# ---- What it is worth ----
images, labels = digits.test.images[:64] / 255.0, digits.test.labels[:64]
result = attacks.autoattack(
    model, images, labels, epsilon=ball.epsilon, num_steps=20, num_queries=50
)
print(f"loss {loss:.2f}, natural {result.clean_accuracy:.2f}, robust {result.robust_accuracy:.2f}")
