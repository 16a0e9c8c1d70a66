"""The paper's Figures 1 and 3, a map of features, and what each head contributes.

``ancra paper figure1`` and ``figure3`` draw how far features of natural examples lie from those of
other classes, and from their own adversarial examples; ``heads`` draws the losses of all heads of
networks with reverse attention, and how often they follow a forced wrong mask.
"""

import argparse
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from ancra_jax import evaluate
from ancra_jax.config import Config, directory_path
from ancra_jax.config.paths import as_list
from ancra_jax.config.schema import DataConfig
from ancra_jax.data import Dataset, check_count
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.features import ADVERSARIAL, extract, settings_of
from ancra_jax.evaluate.heads import measure_heads
from ancra_jax.evaluate.spec import Target
from ancra_jax.ops.extras import explained
from ancra_jax.ops.files import as_path, check_writable, write_arrays, write_atomically
from ancra_jax.paper.claims import MAPS
from ancra_jax.report.features import draw_features, draw_heads, draw_map, files_of
from ancra_jax.results.features import StoredFeatures, class_number, load_features
from ancra_jax.results.load import labels_of
from ancra_jax.results.names import NATURAL
from ancra_jax.results.tables import Column, Table, TextColumn, build
from ancra_jax.results.tables.features import NOTES, features_table
from ancra_jax.results.tables.table import with_interval
from ancra_jax.run import build as components
from ancra_jax.run import sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.weights import load_run

SCHEMA = 1
MAP_EXAMPLES = 500
_MAP_MODULES = {"tsne": "sklearn.manifold", "umap": "umap"}
_HEADS_NOTES = (
    "CE and KL: of the training phase (masks of the labels, each batch normalised by itself), with "
    "the attacks of the run's training; heads a_1 and a_2 are the auxiliary logits of the last two "
    "blocks, f the final ones. Brackets: 95 % intervals.",
    "Negatives matched, in %: the negative is predicted as its anchor is, so that the asymmetric "
    "negative contrast acts on it.",
    "Follows, in %: predicts the class, never the label, whose mask is forced upon both blocks. "
    "a_1 is computed before any mask.",
)


@dataclass(frozen=True, repr=False)
class Drawn:
    """A figure with its numbers, which a notebook shows as a table.

    Attributes:
      table: the numbers.
      notes: how to read them; Markdown.
      figures: by the stem of their files.
      content: what the JSON file has.
      arrays: what the array file has.
    """

    table: Table
    notes: Sequence[str]
    figures: dict[str, Figure]
    content: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"## {self.table.title}\n\n{self.table.markdown()}\n\n{notes}"

    def _repr_markdown_(self) -> str:
        return repr(self)

    def write(self, directory: str, name: str) -> list[str]:
        """Write figures, numbers and table into a directory; return the names of the files.

        Raises:
          UsageError: it cannot be written to.
        """
        check_writable(directory, f"--output={directory}")
        content = {"schema": SCHEMA, "figure": name, **self.content, **workdir_lib.provenance()}
        files: dict[str, bytes | str] = {
            f"{stem}.{ending}": data
            for stem, figure in self.figures.items()
            for ending, data in files_of(figure).items()
        }
        files |= {f"{name}.md": f"{self}\n", f"{name}.json": json.dumps(content, indent=2) + "\n"}
        for file, data in files.items():
            write_atomically(as_path(directory) / file, data)
        if self.arrays:
            write_arrays(as_path(directory) / f"{name}.npz", self.arrays)
        return [*files, *([f"{name}.npz"] if self.arrays else [])]


def features(
    workdirs: Sequence[str],
    *,
    class_name: str = "0",
    checkpoint: str = "best",
    num_examples: int = 0,
    data_dir: str = "",
    projection: str = "",
    force: bool = False,
    name: str = "figure1",
) -> Drawn:
    """Draw histograms of the features of runs, as the paper's Figures 1 and 3.

    Runs that were not measured yet are measured by ``ancra_jax.evaluate`` (suite ``features``), and
    their work directories keep the results.

    Args:
      workdirs: of runs on one data set.
      class_name: of the natural examples: its number, its name, or ``'all'``.
      checkpoint: ``'best'`` or ``'last'``.
      num_examples: the first so many of the test split; 0 for all.
      data_dir: where the data lie now, if not where they were in training.
      projection: ``'tsne'`` or ``'umap'`` draws a map of the features too; '' does not.
      force: measure again what is there already.
      name: the stem of the files.

    Raises:
      UsageError: a directory, the class or another argument cannot be used.
    """
    workdirs = as_list(workdirs, "--workdirs")
    configs = _configs(workdirs)
    if projection and projection not in MAPS:
        raise UsageError(f"--map={projection}: allowed are {', '.join(MAPS)}")
    first = load_features(as_path(workdirs[0]) / "evaluation" / checkpoint)
    classes = first.classes if first else ()
    check(components.data_in(configs[0].data, data_dir), class_name, projection, classes)
    labels = _labels(configs)
    shared: dict[str, Any] = {
        "checkpoint": checkpoint,
        "num_examples": num_examples,
        "data_dir": data_dir,
    }
    found: list[StoredFeatures] = []
    for workdir in workdirs:
        evaluate.run(workdir, suite="features", force=force, **shared)
        stored = load_features(as_path(workdir) / "evaluation" / checkpoint)
        assert stored is not None
        found.append(stored)
    models = list(zip(labels, found, strict=True))
    number = found[0].class_number(class_name, "--class")
    figures = {name: draw_features(models, number)}
    arrays = {f"{label}/{key}": array for label, one in models for key, array in one.arrays.items()}
    if projection:
        maps = {}
        for label, workdir, config in zip(labels, workdirs, configs, strict=True):
            maps[label] = _map(workdir, config, projection, **shared)
        figures[f"{name}_map"] = draw_map(maps, found[0].classes)
        for label, one in maps.items():
            arrays |= {f"{label}/map.{key}": array for key, array in one.items()}
    content = {
        "class": class_name,
        "map": projection,
        "models": [
            {"label": label, "workdir": workdir, **one.record}
            for (label, one), workdir in zip(models, workdirs, strict=True)
        ],
    }
    return Drawn(features_table(models, number), NOTES, figures, content, arrays)


def check(data: DataConfig, class_name: str, projection: str, classes: Sequence[str] = ()) -> None:
    """Check before anything is trained or measured that a data set has a class, and a map its code.

    Args:
      data: which data set.
      class_name: as in `features`.
      projection: as in `features`.
      classes: names of the classes, where they are known already.

    Raises:
      UsageError: there is no such class, or a package is missing.
    """
    if projection:
        with explained():
            importlib.import_module(_MAP_MODULES[projection])
    if class_name not in ("0", "all"):  # which all data sets have
        class_number(class_name, classes or components.load_dataset(data).class_names, "--class")


def heads(
    workdirs: Sequence[str],
    *,
    checkpoint: str = "best",
    num_examples: int = 0,
    data_dir: str = "",
    seed: int = 0,
    name: str = "heads",
) -> Drawn:
    """Draw what each head of networks with reverse attention contributes; see ``evaluate.heads``.

    The arguments and errors are those of `features`.
    """
    workdirs = as_list(workdirs, "--workdirs")
    configs = _configs(workdirs)
    models = []
    for label, workdir, config in zip(_labels(configs), workdirs, configs, strict=True):
        target, count, about = _load(workdir, config, checkpoint, num_examples, data_dir)
        models.append((label, measure_heads(config, target, count, seed) | about))
    lines = [(label, found, head) for label, found in models for head in found["heads"]]
    content = {"models": [{"label": label, **found} for label, found in models]}
    table = build("Heads", _HEADS_COLUMNS, lines)
    return Drawn(table, _HEADS_NOTES, {name: draw_heads(models)}, content)


def _configs(workdirs: Sequence[str]) -> list[Config]:
    """Return the configurations of runs that can be drawn together."""
    if not workdirs:
        raise UsageError("--workdirs: must name directories, DIR[,DIR...]")
    configs = [
        workdir_lib.read_config(directory_path(one, "--workdirs"), "--workdirs") for one in workdirs
    ]
    data = list(dict.fromkeys(config.data.name for config in configs))
    if len(data) > 1:
        raise UsageError(
            f"--workdirs: the runs are on {' and '.join(data)}: must be of one data set"
        )
    return configs


def _labels(configs: Sequence[Config]) -> list[str]:
    """Return names for a legend; runs of one name have their seeds, or else numbers."""
    labels = labels_of(configs)
    if len(set(labels)) < len(labels):
        pairs = zip(labels, configs, strict=True)
        labels = [f"{label}, seed {config.seed}" for label, config in pairs]
    if len(set(labels)) < len(labels):
        labels = [f"{number}: {label}" for number, label in enumerate(labels, start=1)]
    return labels


def _load(
    workdir: str, config: Config, checkpoint: str, num_examples: int, data_dir: str
) -> tuple[Target, int, dict[str, Any]]:
    """Return a run's network and examples, how many of them to use, and where they come from."""
    dataset: Dataset = components.load_dataset(components.data_in(config.data, data_dir))
    count = num_examples or len(dataset.test)
    check_count("--num_examples", count, len(dataset.test))
    mesh = sharding.create_mesh(jax.devices()[:1])  # a batch is normalised whole
    model = load_run(workdir, mesh, dataset=dataset, checkpoint=checkpoint)
    size = min(config.batch_size, count)
    target = Target(model.outputs, dataset.test, size, sharding.batch_sharded(mesh))
    about = {
        "workdir": workdir,
        "checkpoint": checkpoint,
        "step": model.info["step"],
        "data": dataset.title,
        "data_fingerprint": dataset.fingerprint,
    }
    return target, count, about


def _map(
    workdir: str, config: Config, projection: str, *, num_examples: int, **options: Any
) -> dict[str, np.ndarray]:
    """Return natural and adversarial features in two dimensions, by what the final logits see."""
    target, count, _ = _load(workdir, config, num_examples=num_examples, **options)
    count = min(count, MAP_EXAMPLES)
    found = extract(target, count, settings_of(config), jax.random.key(0))
    both = np.concatenate([
        list(found.features[name].values())[-1] for name in (NATURAL, ADVERSARIAL)
    ])  # fmt: skip
    points = project(projection, both)
    return {"natural": points[:count], "adversarial": points[count:], "labels": found.labels}


def project(projection: str, points: np.ndarray) -> np.ndarray:
    """Map points to two dimensions with t-SNE or UMAP; the same points always to the same place."""
    neighbours = max(2, min(30, math.isqrt(len(points))))
    with explained():
        mapping = importlib.import_module(_MAP_MODULES[projection])
        from threadpoolctl import threadpool_limits
    if projection == "umap":
        return mapping.UMAP(n_neighbors=neighbours, random_state=0).fit_transform(points)

    # With so few points one thread is faster: several spend their time waiting for each other.
    with threadpool_limits(1):
        return mapping.TSNE(perplexity=neighbours, init="pca", random_state=0).fit_transform(points)


def _share(key: str, header: str, scale: int, form: str) -> Column:
    def cell(line: tuple[str, Mapping[str, Any], Mapping[str, Any]]) -> str | None:
        one = line[2][key]
        return one and with_interval(one["value"], one["low"], one["high"], form, scale)

    return Column(header, cell)


_HEADS_COLUMNS = (
    TextColumn("Model", lambda line: line[0], "always"),
    TextColumn("Head", lambda line: line[2]["title"]),
    Column("Examples", lambda line: line[1]["num_examples"]),
    _share("natural", "CE, natural", 1, ".2g"),
    _share("adversarial", "CE, adversarial", 1, ".2g"),
    _share("kl", "KL", 1, ".2g"),
    _share("negatives_matched", "Negatives matched", 100, ".1f"),
    _share("follows_on_images", "Follows, images", 100, ".1f"),
    _share("follows_on_noise", "Follows, noise", 100, ".1f"),
)


def run(options: argparse.Namespace, workdirs: Sequence[str]) -> None:
    """Draw the figure of a command line, write its files and print its table."""
    shared: dict[str, Any] = {
        "checkpoint": options.checkpoint,
        "num_examples": options.num_examples,
        "data_dir": options.data_dir,
        "name": options.table,
    }
    if options.table == "heads":
        drawn = heads(workdirs, **shared)
    else:
        drawn = features(
            workdirs,
            class_name=options.class_name,
            projection=options.map,
            force=options.force,
            **shared,
        )
    files = drawn.write(str(options.report), options.table)
    print(f"\n{drawn}\n\nwritten to {options.report}: {', '.join(files)}")
