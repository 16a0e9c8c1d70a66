"""AutoAttack's attacks as plain PyTorch loops under Linf.

The same attacks as in ``benchmarks.autoattack``. As in the reference, Square's window and signs are
shared by the batch, and examples that are fooled leave it.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import torch_network
from benchmarks.measure import Workload, timed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_TARGETS = 9
ROWS = ("apgd", "fab_t", "square", "autoattack")
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

Model = Callable[[torch.Tensor], torch.Tensor]


def create(
    row: str, settings: Mapping[str, Any], shared: Mapping[str, np.ndarray], compiled: bool
) -> Workload:
    """Builds the workload of a row and runs it once, on the weights and draws that are shared."""
    network, images, labels, epsilon = problem(shared)
    model = torch.compile(network) if compiled else network
    noise = placed(shared["noise"])
    steps, queries = settings["num_steps"], settings["num_queries"]
    start = (images + epsilon * noise / (wide(size(noise)) + 1e-12)).clamp(0, 1)

    def attack():
        """Images, and what is to be compared: the objective or minus the norm."""
        if row == "apgd":
            return apgd(model, images, labels, cross_entropy(labels), start, epsilon, steps)
        if row == "fab_t":
            target = ranked_classes(model, images, labels)[:, 0]
            found, norm = fab_t(model, images, labels, target, steps)
            return torch.where(wide(norm <= epsilon), found, images), -norm
        if row == "square":
            return square(model, images, labels, epsilon, queries), None
        return standard(model, images, labels, epsilon, steps, queries), None

    def run():
        result = attack()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    return workload(run, model, labels)


def problem(shared: Mapping[str, np.ndarray]) -> tuple[Model, torch.Tensor, torch.Tensor, float]:
    """The network with the weights that are shared, images, labels and epsilon."""
    if "w.c1.weight" in shared:
        weights = {k: torch.tensor(v, device=DEVICE) for k, v in shared.items() if k[:2] == "w."}
        model = partial(logits, weights)
    else:
        network = torch_network.load(shared, DEVICE).eval().requires_grad_(False)
        model = lambda x: network(x)[0]  # noqa: E731
    labels = torch.tensor(shared["labels"], device=DEVICE).long()
    return model, placed(shared["images"]), labels, float(shared["epsilon"])


def placed(images: np.ndarray) -> torch.Tensor:
    """Images in PyTorch's layout, on its device."""
    return torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=DEVICE)


def workload(
    run: Callable[[], tuple[torch.Tensor, torch.Tensor | None]],
    model: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
) -> Workload:
    """Times an attack twice; it returns images, and what is to be compared, if anything is."""
    first, (found, values) = timed(run)
    again, _ = timed(run)
    robust = (predict(model, found) == labels).cpu().numpy()
    return Workload(
        run=run,
        images=len(labels),
        compile_seconds=max(first - again, 0.0),
        loss=None if values is None else float(np.median(values.cpu())),
        robust_accuracy=float(robust.mean()),
        robust=robust.tolist(),
    )


def logits(weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network."""
    for name, stride in (("c1", 1), ("c2", 2), ("c3", 2)):
        kernel, bias = weights[f"w.{name}.weight"], weights[f"w.{name}.bias"]
        x = F.relu(F.conv2d(x, kernel, bias, stride=stride, padding=1))
    return F.linear(x.mean((2, 3)), weights["w.fc.weight"], weights["w.fc.bias"])


def standard(
    model: Model, natural, labels, epsilon: float, steps: int, queries: int
) -> torch.Tensor:
    """APGD-CE, APGD-T, FAB-T and Square, each on what those before it left."""
    adversarial = natural.clone()
    targets = ranked_classes(model, natural, labels)[:, :NUM_TARGETS]

    def on_the_rest(attack):
        rows = (predict(model, adversarial) == labels).nonzero()[:, 0]
        if len(rows):
            adversarial[rows] = attack(natural[rows], labels[rows], targets[rows])

    def gradient_attack(x, y, objective):
        noise = 2 * torch.rand_like(x) - 1
        start = (x + epsilon * noise / (wide(size(noise)) + 1e-12)).clamp(0, 1)
        return apgd(model, x, y, objective, start, epsilon, steps)[0]

    def boundary_attack(x, y, target):
        found, norm = fab_t(model, x, y, target, steps)
        return torch.where(wide(norm <= epsilon), found, x)

    on_the_rest(lambda x, y, _: gradient_attack(x, y, cross_entropy(y)))
    for k in range(NUM_TARGETS):
        on_the_rest(lambda x, y, t: gradient_attack(x, y, targeted_dlr(y, t[:, k])))  # noqa: B023
    for k in range(NUM_TARGETS):
        on_the_rest(lambda x, y, t: boundary_attack(x, y, t[:, k]))  # noqa: B023
    on_the_rest(lambda x, y, _: square(model, x, y, epsilon, queries))
    return adversarial


def apgd(model: Model, natural, labels, objective, start, epsilon: float, steps: int):
    """Auto-PGD; the last misclassified iterates, and the largest objective."""

    def evaluate(x):
        x = x.detach().requires_grad_()
        z = model(x)
        values = objective(z)
        (gradients,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), gradients, z.detach().argmax(1) != labels

    window, shrink, shortest = (max(int(f * steps), 1) for f in (0.22, 0.03, 0.06))
    x, previous = start, start
    values, gradients, fooled = evaluate(x)
    adversarial = torch.where(wide(fooled), x, natural)
    best_x, best_gradients, best = x, gradients, values
    checked, halved = best, torch.ones_like(fooled)
    last, rises = torch.zeros_like(values), torch.zeros_like(values)
    step_size = torch.full_like(values, 2 * epsilon)
    end = window
    for i in range(steps):
        a = 1.0 if i == 0 else 0.75
        stepped = project(x + wide(step_size) * gradients.sign(), natural, epsilon)
        moved = project(x + a * (stepped - x) + (1 - a) * (x - previous), natural, epsilon)
        previous, x = x, moved
        values, gradients, wrong = evaluate(x)
        adversarial = torch.where(wide(wrong), x, adversarial)
        better = values > best
        best_x = torch.where(wide(better), x, best_x)
        best_gradients = torch.where(wide(better), gradients, best_gradients)
        best = torch.where(better, values, best)
        rises = rises + (values > last)
        last = values
        if i + 1 == end:
            halve = (rises <= 0.75 * window) | (~halved & (checked >= best))
            step_size = torch.where(halve, step_size / 2, step_size)
            x = torch.where(wide(halve), best_x, x)
            gradients = torch.where(wide(halve), best_gradients, gradients)
            checked, halved, rises = best, halve, torch.zeros_like(rises)
            window = max(window - shrink, shortest)
            end += window
    return adversarial, best


def fab_t(model: Model, natural, labels, target, steps: int):
    """Targeted FAB; the closest misclassified images, and their norms."""
    rows = torch.arange(len(labels), device=DEVICE)
    point, best = natural, natural
    best_norm = torch.full((len(labels),), torch.inf, device=DEVICE)
    for _ in range(steps):
        x = point.detach().requires_grad_()
        z = model(x)
        values = z[rows, target] - z[rows, labels]
        (normals,) = torch.autograd.grad(values.sum(), x)
        values = values.detach()
        at_natural = values + (normals * (natural - point)).flatten(1).sum(1)
        moves = to_hyperplane(
            torch.cat([point, natural]),
            torch.cat([normals, normals]),
            torch.cat([values, at_natural]),
        )
        move, natural_move = moves.chunk(2)
        distance, natural_distance = size(move).clamp(min=1e-8), size(natural_move).clamp(min=1e-8)
        alpha = wide((distance / (distance + natural_distance)).clamp(max=0.1))
        point = (1 - alpha) * (point + 1.05 * move) + alpha * (natural + 1.05 * natural_move)
        point = point.clamp(0, 1)
        fooled, norm = predict(model, point) != labels, size(point - natural)
        closer = fooled & (norm < best_norm)
        best = torch.where(wide(closer), point, best)
        best_norm = torch.where(closer, norm, best_norm)
        point = torch.where(wide(fooled), natural + 0.9 * (point - natural), point)
    return best, best_norm


def to_hyperplane(points, normals, values):
    """Smallest move, in the largest coordinate, to ``values + <normals, d> = 0`` inside [0, 1].

    Coordinates move alike until they reach the box: sorted by how far they can move, the sum that
    is still missing is known at each of these lengths.
    """
    flat, weights = points.flatten(1), normals.flatten(1)
    toward = -values.sign()[:, None] * weights.sign()
    weights = weights.abs()
    room = torch.where(toward > 0, 1 - flat, flat)
    room, order = torch.where(weights > 0, room, 0).sort(dim=1)
    sorted_weights = weights.gather(1, order)
    fixed = (sorted_weights * room).cumsum(1)
    free = (sorted_weights.sum(1, keepdim=True) - sorted_weights.cumsum(1)).clamp(min=0)
    target = values.abs()[:, None]
    reached = fixed + room * free
    first = torch.searchsorted(reached, target).clamp(max=room.shape[1] - 1)
    before = (first - 1).clamp(min=0)
    none = first == 0
    fixed_before = torch.where(none, 0, fixed.gather(1, before))
    free_before = torch.where(none, sorted_weights.sum(1, keepdim=True), free.gather(1, before))
    length = (target - fixed_before) / free_before.clamp(min=1e-30)
    length = torch.minimum(length, room.gather(1, first))
    room = torch.where(toward > 0, 1 - flat, flat)
    return (toward * torch.minimum(length, room)).reshape(points.shape)


@torch.no_grad()
def square(model: Model, natural, labels, epsilon: float, queries: int) -> torch.Tensor:
    """The Square attack."""
    batch, channels, height, width = natural.shape
    best = (natural + epsilon * signs(batch, channels, 1, width)).clamp(0, 1)
    margins = margin(model(best), labels)
    for i in range(queries):
        rows = (margins > 0).nonzero()[:, 0]
        if len(rows) == 0:
            break
        fraction = 0.8 / 2 ** sum(i > halving for halving in HALVINGS)
        side = max(round(math.sqrt(fraction * height * width)), 1)
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        tried = best[rows]
        tried[:, :, top : top + side, left : left + side] += 2 * epsilon * signs(channels, 1, 1)
        tried = project(tried, natural[rows], epsilon)
        tried_margins = margin(model(tried), labels[rows])
        better = (tried_margins < margins[rows]) | (tried_margins <= 0)
        best[rows] = torch.where(wide(better), tried, best[rows])
        margins[rows] = torch.where(better, tried_margins, margins[rows])
    return best


def cross_entropy(labels):
    """``z -> CE``, one value per example."""
    return lambda z: F.cross_entropy(z, labels, reduction="none")


def targeted_dlr(labels, target):
    """``z -> -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``."""
    rows = torch.arange(len(labels), device=DEVICE)

    def objective(z):
        ranked = z.sort(dim=1, descending=True).values
        scale = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12
        return (z[rows, target] - z[rows, labels]) / scale

    return objective


def margin(z, labels):
    """``z_y - max_{k != y} z_k``."""
    own = z.gather(1, labels[:, None])[:, 0]
    return own - z.scatter(1, labels[:, None], -torch.inf).max(1).values


@torch.no_grad()
def ranked_classes(model: Model, images, labels):
    """Wrong classes, the likeliest first."""
    others = model(images).scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True)[:, :-1]


@torch.no_grad()
def predict(model: Model, images):
    """Class numbers."""
    return model(images).argmax(1)


def project(x, natural, epsilon: float):
    """Into the ball, then into [0, 1]."""
    return torch.minimum(torch.maximum(x, natural - epsilon), natural + epsilon).clamp(0, 1)


def signs(*shape: int):
    """+1 or -1."""
    return 2.0 * torch.randint(2, shape, device=DEVICE) - 1


def size(x):
    """Largest absolute value of every image."""
    return x.abs().flatten(1).amax(1)


def wide(x):
    """Lets one number per example broadcast over its image."""
    return x[:, None, None, None]
