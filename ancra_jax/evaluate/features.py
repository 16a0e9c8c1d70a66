"""How far the features of a network lie from each other: exclusion and alignment in numbers.

The paper's criteria (Figures 1 and 3): features of natural examples are to be far from those of
other classes (exclusion), and close to those of their own adversarial examples (alignment).
``results.features`` describes what is measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ancra_jax import attacks
from ancra_jax.attacks.arguments import AnyKey
from ancra_jax.attacks.model import example_keys
from ancra_jax.config.schema import Config
from ancra_jax.data import batches_for_evaluation
from ancra_jax.evaluate.spec import Arrays, Model, Spec, Target, Task
from ancra_jax.ops.images import Images
from ancra_jax.results.features import COSINE, L2, MEASURES, OTHERS
from ancra_jax.results.names import FEATURES, NATURAL
from ancra_jax.types import Outputs

BINS = 120  # of every histogram; a figure may join neighbours
RESAMPLES = 500
ADVERSARIAL, ADVERSARIAL_HEADS = "adversarial", "adversarial_heads"
_ROWS = 256  # examples whose pairs are in memory at a time
_TINY = 1e-12

Features = Float[np.ndarray, "examples features"]
Labels = Int[np.ndarray, "examples"]


def settings_of(config: Config) -> dict[str, Any]:
    """Return the attack of the paper's figures, PGD-10, under the run's threat model."""
    found = config.evaluation
    settings = {"norm": found.norm, "epsilon": found.epsilon, "step_size": found.step_size}
    settings |= {"num_steps": 10, "start": "gaussian"}
    if config.model.reverse_attention:
        settings["aux_weight"] = config.method.aux_weight  # of the attack on all heads
    return settings


def features_spec(config: Config, classes: Sequence[str]) -> Spec:
    """Return the measurement as a part of an evaluation; interrupted, it starts again."""

    def run(task: Task) -> tuple[Arrays, dict[str, Any]]:
        found = extract(task.target, len(task.labels), task.settings, task.key, task.bar.update)
        arrays: Arrays = {}
        for name, natural in found.features[NATURAL].items():
            adversarial = {one: found.features[one][name] for one in found.attacks}
            measured = distances(natural, adversarial, task.labels, len(classes))
            arrays |= {f"{name}.{key}": value for key, value in measured.items()}
        right = {one: found.predictions[one] == task.labels for one in (NATURAL, *found.attacks)}
        return arrays, {
            "classes": list(classes),
            "counts": np.bincount(task.labels, minlength=len(classes)).tolist(),
            "measured": list(found.features[NATURAL]),
            "attacks": found.attacks,
            "accuracy_under": {name: float(one.mean()) for name, one in right.items()},
        }

    return Spec(FEATURES, settings_of(config), run, searches=False)


class Extracted(NamedTuple):
    """What a network makes of natural examples and of their adversarial ones."""

    labels: Labels
    features: dict[str, dict[str, Features]]  # by ``'natural'`` or attack, then ``'z'``, ...
    predictions: dict[str, Labels]  # by ``'natural'`` or attack

    @property
    def attacks(self) -> list[str]:
        """The names of the attacks."""
        return [name for name in self.features if name != NATURAL]


def extract(
    target: Target,
    count: int,
    settings: Mapping[str, Any],
    key: AnyKey,
    show: Callable[[int], object] = lambda done: None,
) -> Extracted:
    """Return the features of the first examples, natural and adversarial, in the evaluation phase.

    Args:
      target: the network, and the examples.
      count: how many.
      settings: of the attack; see `settings_of`.
      key: of the attack's starts, the same for every attack.
      show: is told how many are done.
    """
    threat_model = attacks.threat_model(settings["norm"], settings["epsilon"])
    weights = {ADVERSARIAL: 0.0}
    if "aux_weight" in settings:
        weights[ADVERSARIAL_HEADS] = settings["aux_weight"]
    batches = []
    share, size = target.share, target.batch_size
    for batch, _ in batches_for_evaluation(target.split, size, count, target.sharding, share):
        images = {NATURAL: batch.images}
        start = attacks.gaussian_start(example_keys(key, batch.indices), batch.images)
        for name, weight in weights.items():
            images[name] = attacks.ascend(
                attacks.objectives.cross_entropy(target.model, batch.labels, aux_weight=weight),
                start,
                batch.images,
                threat_model,
                step_size=settings["step_size"],
                num_steps=settings["num_steps"],
            )
        batches.append(
            share.gather({name: _look(target.model, one) for name, one in images.items()})
        )
        show(min(count, len(batches) * size))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches)
    features = {name: one[0] for name, one in joined.items()}
    predictions = {name: one[1] for name, one in joined.items()}
    return Extracted(target.split.labels[:count], features, predictions)


@jax.jit
def _look(
    model: Model, images: Images
) -> tuple[dict[str, Float[Array, "batch features"]], Int[Array, "batch"]]:
    """Return features by name, and predictions."""
    if not jax.eval_shape(model, images).aux_logits.shape[0]:
        outputs: Outputs = model(images)
        return {"z": outputs.features}, jnp.argmax(outputs.logits, axis=-1)
    # Networks of other people's may not tell what is before the mask.
    outputs, state = cast(Any, model)(images, mutable=["intermediates"])
    features = {"z_masked": outputs.features}
    if pooled := state.get("intermediates", {}).get("pooled"):
        features = {"z": pooled[-1], **features}
    return features, jnp.argmax(outputs.logits, axis=-1)


def distances(
    natural: Features,
    adversarial: Mapping[str, Features],
    labels: Labels,
    num_classes: int,
    *,
    rows: int = _ROWS,
) -> dict[str, np.ndarray]:
    """Measure one kind of features; see ``results.features`` for the arrays that are returned.

    All pairs of examples of different classes are looked at, those of ``rows`` examples at a time.

    Args:
      natural: of the natural examples.
      adversarial: of their adversarial examples, in the same order, by attack.
      labels: true classes.
      num_classes: how many there are.
      rows: what bounds the memory; no number depends on it but by rounding.
    """
    of_class = np.eye(num_classes)[labels]  # [examples, classes]
    weights = _resampled(labels)  # [examples, draws], the first draw being the examples themselves
    totals = of_class.T @ weights
    found = {"norm": _ratio(of_class.T @ np.linalg.norm(natural, axis=1), of_class.sum(axis=0))}
    for measure in MEASURES:
        own = {name: _own(natural, one, measure) for name, one in adversarial.items()}
        for name, values in own.items():
            edges = _edges(values.min(), values.max())
            by_class = [np.histogram(values[labels == c], edges)[0] for c in range(num_classes)]
            sums = of_class.T @ (weights * values[:, None])
            found |= {
                f"{measure}.{name}.edges": edges,
                f"{measure}.{name}.counts": np.stack(by_class),
                f"{measure}.{name}.mean": _numbers(sums, totals),
            }
        stacked = np.stack(list(own.values()))
        edges, counts, sums = _others(natural, labels, stacked, weights, num_classes, rows, measure)
        denominators = totals * (totals.sum(axis=0) - totals)
        found |= {f"{measure}.{OTHERS}.edges": edges, f"{measure}.{OTHERS}.counts": counts}
        found[f"{measure}.{OTHERS}.mean"] = _numbers(sums[0], denominators)
        for name, nearer in zip(own, sums[1:], strict=True):
            found[f"{measure}.{name}.overlap"] = _numbers(nearer, denominators)
    return found


def _resampled(labels: Labels) -> Float[np.ndarray, "examples draws"]:
    """Return how often each example is in draws with replacement, made within every class."""
    rng = np.random.default_rng(0)
    weights = np.ones((len(labels), 1 + RESAMPLES), np.float32)
    for c in np.unique(labels):
        size = int((labels == c).sum())
        weights[labels == c, 1:] = rng.multinomial(size, np.full(size, 1 / size), RESAMPLES).T
    return weights


def _ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return a quotient; NaN where there is nothing to divide by."""
    return np.divide(one, other, out=np.full(np.shape(one), np.nan), where=other > 0)


def _numbers(
    sums: Float[np.ndarray, "classes draws"], totals: Float[np.ndarray, "classes draws"]
) -> Float[np.ndarray, "rows 3"]:
    """Return value, low and high of every class and of all together."""
    sums, totals = (np.concatenate([one, one.sum(axis=0)[None]]) for one in (sums, totals))
    values = _ratio(sums, totals)
    low, high = np.quantile(values[:, 1:], (0.025, 0.975), axis=1)
    return np.stack([values[:, 0], low, high], axis=1)


def _own(natural: Features, adversarial: Features, measure: str) -> Float[np.ndarray, "examples"]:
    """Return how near each example is to its own adversarial one."""
    if measure == L2:
        return np.linalg.norm(natural.astype(np.float64) - adversarial, axis=1)
    one, other = (_prepared(x.astype(np.float64), COSINE) for x in (natural, adversarial))
    return np.clip((one * other).sum(axis=1), -1, 1)


def _prepared(features: np.ndarray, measure: str) -> np.ndarray:
    """Return features of which `_pairwise` computes the measure.

    Distances are those between features less their mean, which leaves more digits.
    """
    if measure == L2:
        return features - features.mean(axis=0)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _TINY)


def _edges(low: float, high: float) -> Float[np.ndarray, "edges"]:
    margin = 1e-6 * max(abs(low), abs(high), 1e-6)
    return np.linspace(low - margin, high + margin, BINS + 1)


def _blocks(
    features: Features, labels: Labels, measure: str, rows: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, Float[np.ndarray, "rows others"]]]:
    """Yield some of a class's examples at a time, and how near each is to those of other classes.

    Yields:
      The class, the numbers of the examples, those of all examples of other classes, the measure.
    """
    for c in np.unique(labels).tolist():
        mine, others = np.flatnonzero(labels == c), np.flatnonzero(labels != c)
        for start in range(0, len(mine), rows):
            some = mine[start : start + rows]
            yield c, some, others, _pairwise(features[some], features[others], measure)


def _others(
    natural: Features,
    labels: Labels,
    own: Float[np.ndarray, "attacks examples"],
    weights: Float[np.ndarray, "examples draws"],
    num_classes: int,
    rows: int,
    measure: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure all pairs of examples of different classes.

    ``own`` is how near each example is to its adversarial ones. Returned are edges, counts
    [classes, bins] and sums [1 + attacks, classes, draws] over pairs by the class of the first: of
    the measure itself, and of how many pairs are nearer than the first one's adversarial example.
    """
    blocks = partial(_blocks, _prepared(natural, measure), labels, measure, rows)
    ends = [(values.min(), values.max()) for *_, values in blocks() if values.size]
    # A single class has no pairs.
    edges = _edges(float(np.min(ends or 0)), float(np.max(ends or 1)))
    counts = np.zeros((num_classes, BINS), np.int64)
    sums = np.zeros((1 + len(own), num_classes, weights.shape[1]))
    for c, some, others, values in blocks():
        counts[c] += np.histogram(values, BINS, (edges[0], edges[-1]))[0]
        quantities = [values]
        for threshold in own[:, some, None].astype(np.float32):  # an equal one counts half
            nearer = values > threshold if measure == COSINE else values < threshold
            quantities.append(nearer + np.float32(0.5) * (values == threshold))
        for number, quantity in enumerate(quantities):
            by_row = (quantity @ weights[others]) * weights[some]
            sums[number, c] += by_row.sum(axis=0, dtype=np.float64)
    return edges, counts, sums


def _pairwise(
    rows: Float[np.ndarray, "rows features"],
    columns: Float[np.ndarray, "others features"],
    measure: str,
) -> Float[np.ndarray, "rows others"]:
    dot = rows @ columns.T
    if measure == COSINE:
        return np.clip(dot, -1.0, 1.0)
    squares = np.sum(rows**2, axis=1)[:, None] + np.sum(columns**2, axis=1)
    return np.sqrt(np.maximum(squares - 2 * dot, 0.0))
