"""What is measured, in PyTorch: the same training step and the same PGD, written for PyTorch.

Eager and channels-last; under ``torch.autocast`` for bfloat16, and through ``torch.compile`` where
that is asked for. The attacks of one step run as one batch, as in the library.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import torch_autoattack
from benchmarks.measure import Workload, timed
from benchmarks.torch_network import ResNet18, load

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
START_SIGMA = 0.001


class Draws(NamedTuple):
    """A batch and the random choices of a step; images are NCHW in [0, 1].

    Attributes:
      images: augmented natural images.
      labels: class numbers.
      starts: of the attack, by name.
      negatives: position of every image's negative, or None.
    """

    images: torch.Tensor
    labels: torch.Tensor
    starts: dict[str, torch.Tensor]
    negatives: torch.Tensor | None


def create(
    row: str, config: Mapping[str, Any], shared: Mapping[str, np.ndarray], compiled: bool
) -> Workload:
    """Builds the workload of a row and runs it once, on the weights and draws that are shared."""
    fast = row != "autoattack"  # as JAX by default; ``attacks.autoattack`` computes in float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    if row in torch_autoattack.ROWS:
        return torch_autoattack.create(row, config, shared, compiled)
    torch.backends.cudnn.benchmark = True
    network = load(shared, DEVICE, config["model"]["reverse_attention"])
    step = Step(network, config, compiled)
    draws = _draws_of(shared)
    work = step.evaluation_attack if row == "pgd40" else step.train
    first, loss = timed(lambda: waited(work(draws)))
    if row == "pgd40":
        run = lambda: work(draws)  # noqa: E731
    else:
        examples = Examples(config["batch_size"])
        run = lambda: work(examples.draw(config))  # noqa: E731
    again, _ = timed(lambda: waited(run()))
    return Workload(run, config["batch_size"], max(first - again, 0.0), float(loss))


class Step:
    """A network, its optimiser, and what is done with them."""

    def __init__(self, network: ResNet18, config: Mapping[str, Any], compiled: bool):
        self.network, self.config = network, config
        self.forward = torch.compile(network) if compiled else network
        optimizer = config["optimizer"]
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=optimizer["learning_rate"],
            momentum=optimizer["momentum"],
            weight_decay=optimizer["weight_decay"],
        )

    def heads(self, images, labels=None):
        """Logits of all heads, float32."""
        bfloat16 = self.config["model"]["dtype"] == "bfloat16"
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
            outputs = self.forward(images, labels)
        return [logits.float() for logits in outputs]

    def combined(self, term, *heads):
        """``term(final) + aux_weight mean_k term(head k)``."""
        final, *auxiliary = [term(*logits) for logits in zip(*heads, strict=True)]
        if not auxiliary:
            return final
        return final + self.config["method"]["aux_weight"] * sum(auxiliary) / len(auxiliary)

    def train(self, draws: Draws):
        """One step; the loss."""
        attacked = self.attacked(draws)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(draws, attacked)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self, draws: Draws, attacked: Mapping[str, torch.Tensor]):
        """Natural training, PGD-AT, or TRADES with or without the negative contrast."""
        labels, method = draws.labels, self.config["method"]
        cross_entropy = lambda logits: F.cross_entropy(logits, labels)  # noqa: E731
        if method["name"] == "natural":
            return self.combined(cross_entropy, self.heads(draws.images, labels))
        if method["name"] == "pgd_at":
            return self.combined(cross_entropy, self.heads(attacked["adversarial"], labels))
        natural = self.heads(draws.images, labels)
        adversarial = self.heads(attacked["adversarial"], labels)
        loss = self.combined(cross_entropy, natural)
        loss = loss + method["beta"] * self.combined(divergence, natural, adversarial)
        contrast = self.config["negative_contrast"]
        if contrast["zeta"]:
            negative = self.heads(attacked["negative"], labels[draws.negatives])
            term = lambda p, q: similarity(p, q, contrast["alpha"])  # noqa: E731
            loss = loss + contrast["zeta"] * self.combined(term, natural, negative)
        return loss

    def attacked(self, draws: Draws) -> dict[str, torch.Tensor]:
        """The images that training attacks, all as one batch."""
        names = list(draws.starts)
        if not names:
            return {}
        sources = {"adversarial": draws.images}
        if draws.negatives is not None:
            sources["negative"] = draws.images[draws.negatives]
        images = torch.cat([sources[name] for name in names])
        labels = draws.labels.repeat(len(names))
        sign = torch.cat(
            [torch.full_like(draws.labels, 1 if name == "adversarial" else -1) for name in names]
        )
        start = torch.cat([draws.starts[name] for name in names])
        self.network.eval()
        if self.config["attack"]["objective"] == "kl":
            with torch.no_grad():
                reference = self.heads(images)
            each = lambda p, q: F.kl_div(  # noqa: E731
                q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="none"
            ).sum(1)
            objective = lambda heads: self.combined(each, reference, heads)  # noqa: E731
        else:
            each = lambda q: F.cross_entropy(q, labels, reduction="none")  # noqa: E731
            objective = lambda heads: self.combined(each, heads)  # noqa: E731
        result = self.ascend(
            lambda x: (sign * objective(self.heads(x))).sum(), images, start, self.config["attack"]
        )
        return dict(zip(names, result.chunk(len(names)), strict=True))

    def evaluation_attack(self, draws: Draws):
        """PGD on the final logits; the mean cross-entropy afterwards."""
        self.network.eval()
        objective = lambda x: F.cross_entropy(  # noqa: E731
            self.heads(x)[0], draws.labels, reduction="sum"
        )
        settings = self.config["evaluation"]
        attacked = self.ascend(objective, draws.images, draws.starts["adversarial"], settings)
        with torch.no_grad():
            return objective(attacked) / len(attacked)

    def ascend(self, objective, images, x, settings):
        """PGD in the Linf ball."""
        low = (images - settings["epsilon"]).clamp(min=0)
        high = (images + settings["epsilon"]).clamp(max=1)
        for _ in range(settings["num_steps"]):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(x), x)
            x = torch.clamp(x.detach() + settings["step_size"] * gradient.sign(), low, high)
        return x


class Examples:
    """Random images on the device, and the random choices of every step."""

    def __init__(self, batch_size: int, steps: int = 8):
        self.batch_size = batch_size
        number = batch_size * steps
        self.images = torch.randint(256, (number, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
        self.labels = torch.randint(10, (number,), device=DEVICE)

    def draw(self, config: Mapping[str, Any]) -> Draws:
        """Takes a batch, crops and flips it, and draws starts and negatives."""
        chosen = torch.randint(len(self.labels), (self.batch_size,), device=DEVICE)
        images, labels = self._augmented(self.images[chosen]), self.labels[chosen]
        starts, negatives = {}, None
        if config["method"]["name"] != "natural":
            starts["adversarial"] = self._start(images, config["attack"])
        if config["negative_contrast"]["zeta"]:
            same = labels[:, None] == labels[None]
            weights = torch.where(same, 0.0, 1 / same.sum(1).float())
            negatives = torch.multinomial(weights, 1)[:, 0]
            starts["negative"] = self._start(images[negatives], config["attack"])
        return Draws(images, labels, starts, negatives)

    def _augmented(self, images):
        batch, side, padding = len(images), images.shape[-1], 4
        padded = F.pad(images, (padding,) * 4)
        offsets = torch.randint(2 * padding + 1, (2, batch, 1), device=DEVICE)
        rows, columns = offsets + torch.arange(side, device=DEVICE)
        flipped = torch.rand(batch, 1, device=DEVICE) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
        each = torch.arange(batch, device=DEVICE)[:, None, None]
        cropped = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]]
        return cropped.permute(0, 3, 1, 2).float() / 255

    def _start(self, images, settings):
        if settings["start"] == "gaussian":
            return images + START_SIGMA * torch.randn_like(images)
        noise = settings["epsilon"] * (2 * torch.rand_like(images) - 1)
        return (images + noise).clamp(0, 1)


def divergence(natural, adversarial):
    """``KL(p(x) || p(x_adv))``, mean over the batch."""
    return F.kl_div(
        adversarial.log_softmax(1), natural.log_softmax(1), log_target=True, reduction="batchmean"
    )


def similarity(natural, negative, alpha):
    """The asymmetric negative contrast (paper eq. 3-4)."""
    p, q = natural.softmax(1), negative.softmax(1)
    classes = p.argmax(1)
    matches = classes == q.argmax(1)
    p, q = p.gather(1, classes[:, None])[:, 0], q.gather(1, classes[:, None])[:, 0]
    value = alpha * (p.detach() * q).sqrt() + (1 - alpha) * (p * q.detach()).sqrt()
    return (value * matches).mean()


def matmul(size: int, dtype: str) -> Callable[[], None]:
    """Computes a square matrix product and waits for it."""
    matrix = torch.ones((size, size), dtype=getattr(torch, dtype), device=DEVICE)
    return lambda: waited(matrix @ matrix)


def waited(result: Any) -> Any:
    """The result of a run once it is there."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


def device_mib() -> float | None:
    """Peak memory of a GPU; None on CPU, where the process's own counts."""
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else None


def device_kind() -> str:
    """The device's name."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"


def _draws_of(shared):
    def images(name):
        nchw = torch.from_numpy(shared[name].transpose(0, 3, 1, 2).copy())
        return nchw.to(DEVICE, memory_format=torch.channels_last)

    starts = {
        name.removeprefix("start_"): images(name) for name in shared if name.startswith("start_")
    }
    numbers = {
        name: torch.tensor(shared[name], dtype=torch.long, device=DEVICE)
        for name in ("labels", "negatives")
        if name in shared
    }
    return Draws(images("images"), numbers["labels"], starts, numbers.get("negatives"))
