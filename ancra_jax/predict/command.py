"""Classify images: ``ancra predict --workdir=DIR --images=FOLDER --output=FILE.csv``.

Prints the two most probable classes of every image, and writes the probabilities of all classes
where there is an ``--output``. The exit status is 1 if some of the images cannot be read.
"""

import csv
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ancra_jax.cli import options
from ancra_jax.cli.progress import Bar
from ancra_jax.config import WEIGHTS, local_path
from ancra_jax.data.inputs import as_image
from ancra_jax.data.sources.folder import images_below
from ancra_jax.errors import UsageError, printable
from ancra_jax.ops.files import write_atomically
from ancra_jax.run.trained import TrainedModel, load

_AT_ONCE = 64  # images that are in memory
_HEADERS = ("image", "class", "probability", "second", "probability")


class Prediction(NamedTuple):
    """What a network sees in one image."""

    path: str
    error: str = ""  # why the image cannot be used; then there are no probabilities
    probabilities: Float[np.ndarray, "classes"] | None = None


def predict(model: TrainedModel, paths: list[Path]) -> Iterator[Prediction]:
    """Yield what a network sees in images, in their order; damaged ones do not stop the others."""

    def read(path: Path) -> Float[np.ndarray, "height width channels"] | str:
        try:
            return as_image(path, model.image_shape)
        except (UsageError, OSError) as error:
            return printable(str(error))

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _AT_ONCE):
            chunk = paths[start : start + _AT_ONCE]
            images = list(pool.map(read, chunk))
            whole = [image for image in images if not isinstance(image, str)]
            probabilities = iter(model.predict(whole).probabilities if whole else ())
            for path, image in zip(chunk, images, strict=True):
                if isinstance(image, str):
                    yield Prediction(str(path), image)
                else:
                    yield Prediction(str(path), probabilities=next(probabilities))


def find_images(images: str) -> list[Path]:
    """Return the images in a folder and below it, hidden ones left out, or the file that it is.

    Raises:
      UsageError: there are none.
    """
    path = Path(local_path(images, "--images", directory=False))
    if path.is_dir():
        if found := images_below(path):
            return found
        raise UsageError(f"--images={images}: there are no images in this folder")
    if not path.is_file():
        raise UsageError(f"--images={images}: there is no such folder or file")
    return [path]


def show(found: list[Prediction], classes: tuple[str, ...]) -> None:
    """Print the two most probable classes of every image: on a terminal a table, else lines."""
    console = Console(highlight=False)
    rows = []
    for one in found:
        assert one.probabilities is not None
        row = [printable(one.path)]
        for i in np.argsort(-one.probabilities, kind="stable")[:2]:
            row += [printable(classes[i]), f"{one.probabilities[i]:.2%}"]
        rows.append(row)
    if console.is_terminal:
        table = Table(*_HEADERS)
        for column in table.columns[2::2]:
            column.justify = "right"
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        return
    widths = [max(map(len, cells)) for cells in zip(_HEADERS, *rows, strict=True)]
    for row in [list(_HEADERS), *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def csv_text(found: list[Prediction], classes: tuple[str, ...]) -> str:
    """Return a line an image: its path, its class, and the probability of every class."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "class", *(f"p({name})" for name in classes)])
    for one in found:
        assert one.probabilities is not None
        name = classes[one.probabilities.argmax()]
        writer.writerow([one.path, name, *(f"{p:.6f}" for p in one.probabilities)])
    return file.getvalue()


def classify(
    workdir: str,
    images: str,
    *,
    output: str = "",
    checkpoint: str = "best",
    weights: str = "raw",
) -> int:
    """Print what a network sees in images, and write it to a file; return 1 if one is damaged.

    Args:
      workdir: directory of a run of ancra_jax.train, a file of TrainedModel.save, or the name of
        one of the package's networks, such as cifar10-trades-w8.
      images: folder of images, with all below it that is not hidden, or one image. They are resized
        as in training.
      output: file that the probabilities are written to, FILE.csv.
      checkpoint: of the directory: 'best' on the selection split, or 'last'.
      weights: of the directory: 'raw' (the optimiser's), or an average that the run keeps.

    Raises:
      UsageError: the network cannot be loaded, or there are no images.
      OSError: the file cannot be written.
    """
    if output:
        file = Path(local_path(output, "--output", directory=False))
        if file.suffix.lower() != ".csv" or file.is_dir() or not file.parent.is_dir():
            raise UsageError(f"--output={output}: must be FILE.csv, in a directory that there is")
    paths = find_images(images)
    fields = ("--workdir", "--weights")
    model = load(workdir, checkpoint=checkpoint, weights=weights, fields=fields)
    found = []
    with Bar("predict", len(paths)) as bar:
        for number, one in enumerate(predict(model, paths), start=1):
            found.append(one)
            bar.update(number)
    damaged = [one for one in found if one.error]
    for one in damaged:
        print(f"error: {one.error}", file=sys.stderr)
    if found := [one for one in found if not one.error]:
        show(found, model.classes)
    if output:
        text = csv_text(found, model.classes).encode(errors="backslashreplace")
        write_atomically(file, text)
        print(f"written to {file}")
    return 1 if damaged else 0


def define_flags() -> None:
    """Define a flag for each parameter of `classify`."""
    options.define(classify, {"checkpoint": ("best", "last"), "weights": WEIGHTS})


def main(arguments: flags.FlagValues) -> int:
    """Run the command."""
    return classify(**options.read(classify, arguments))
