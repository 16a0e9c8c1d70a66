"""ImageNet's validation images from their folder, preprocessed as RobustBench does."""

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ancra_jax.config import local_path
from ancra_jax.data import Split, check_count
from ancra_jax.data.decode import decode_images
from ancra_jax.data.sources.folder import images_below, in_turns
from ancra_jax.errors import UsageError
from ancra_jax.leaderboard.entry import TEST_IMAGES
from ancra_jax.ops.archives import read_file
from ancra_jax.ops.files import PathLike

_LIST = "imagenet_test_image_ids.txt"  # RobustBench's images, a file of its folder robustbench/data
_WORDNET = re.compile(r"n\d{8}")


class Preprocessing(NamedTuple):
    """What becomes of an image of any size."""

    shorter: int | None  # pixels of the shorter side after resampling; None: as it is
    filter: Image.Resampling
    crop: int  # pixels a side of the centred square that is left


PREPROCESSINGS = {
    "Res256Crop224": Preprocessing(256, Image.Resampling.BILINEAR, 224),
    "BicubicRes256Crop224": Preprocessing(256, Image.Resampling.BICUBIC, 224),
    "Crop288": Preprocessing(None, Image.Resampling.BILINEAR, 288),
}
"""By RobustBench's names."""


def preprocess(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Resample and cut an image, to the pixel as torchvision's ``Resize`` and ``CenterCrop``.

    What a crop has beyond the image is black.
    """
    if how.shorter is not None:
        scale = how.shorter, min(image.size)
        width, height = (side * scale[0] // scale[1] for side in image.size)
        image = image.resize((width, height), how.filter)
    left, top = (
        round((side - how.crop) / 2) if side >= how.crop else -((how.crop - side) // 2)
        for side in image.size
    )
    return image.crop((left, top, left + how.crop, top + how.crop))


def load_validation(
    data_dir: PathLike | None, n_examples: int | None, preprocessing: str
) -> tuple[Split, int, str]:
    """Return validation images, the number of classes, and a note where they are not RobustBench's.

    ``data_dir``, or ``val`` in it, has a folder for each class, called by its WordNet id; labels
    are the positions of these names in their order. Where `imagenet_test_image_ids.txt` lies beside
    them its images are taken, in its order; else the first of every class, then the second.

    Raises:
      UsageError: there are no such folders, an image is missing or cannot be read, or there are
        fewer than ``n_examples``.
    """
    if preprocessing not in PREPROCESSINGS:
        allowed = ", ".join(PREPROCESSINGS)
        raise UsageError(f"preprocessing={preprocessing!r}: allowed are {allowed}")
    field = f"data_dir={data_dir}"
    given = Path(local_path(data_dir or "", "data_dir"))
    for root in (given, given / "val"):
        classes = sorted(path.name for path in root.glob("n*") if _WORDNET.fullmatch(path.name))
        if classes:
            break
    else:
        raise UsageError(
            f"{field}: has no folders of ImageNet's validation images, one a class called by its "
            "WordNet id, such as n01440764"
        )
    lists = [path for path in (root / _LIST, given / _LIST) if path.is_file()]
    if lists:
        examples, note = _listed(lists[0], root, classes), ""
    else:
        examples = in_turns([images_below(root / name) for name in classes])
        note = f"Images of all classes in turns, not those of RobustBench's {_LIST}."
    check_count("n_examples", n_examples, len(examples))
    examples = examples[: n_examples or TEST_IMAGES["imagenet"]]
    if not examples:
        raise UsageError(f"{field}: has folders of classes, but no images in them")
    paths = [path for path, _ in examples]
    images, _ = decode_images(
        len(paths),
        read=lambda i: read_file(paths[i]),
        describe=lambda i: str(paths[i]),
        resize=partial(preprocess, how=PREPROCESSINGS[preprocessing]),
    )
    labels = np.array([label for _, label in examples], np.int32)
    return Split(images, labels), len(classes), note


def _listed(path: Path, root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return the images of a list, a line ``<WordNet id>/<file>`` each, with their labels."""
    label = {name: number for number, name in enumerate(classes)}
    examples = []
    for line in read_file(path).decode(errors="replace").split():
        name, _, file = line.partition("/")
        if name not in label or not file or "/" in file or not (root / line).is_file():
            raise UsageError(f"{path}: its image {line!r} is not in {root}")
        examples.append((root / line, label[name]))
    return examples
