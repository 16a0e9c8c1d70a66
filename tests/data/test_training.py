"""Configurations of the data sets train, continue and are evaluated on archives made small."""

import chex
import jax
import numpy as np
import pytest

from ancra_jax import config as config_lib
from ancra_jax.evaluate.suites import evaluate
from ancra_jax.train.loop import train
from configs import cifar10, cifar100, tiny_imagenet
from tests.support.archives import cifar_rows, encode, random_image, tar, zip_file
from tests.support.small_runs import SMALL


def cifar10_archive(directory):
    folder = "cifar-10-batches-bin"
    files = {
        f"{folder}/data_batch_{i}.bin": cifar_rows(i, 20, (10,)).tobytes() for i in range(1, 6)
    }
    files[f"{folder}/test_batch.bin"] = cifar_rows(6, 20, (10,)).tobytes()
    files[f"{folder}/batches.meta.txt"] = b"".join(b"class%d\n" % i for i in range(10))
    tar(directory / "cifar-10-binary.tar.gz", files)
    return directory


def cifar100_archive(directory):
    labels = (("coarse", 20), ("fine", 100))
    files = {
        f"cifar-100-binary/{part}.bin": cifar_rows(seed, 100, (20, 100)).tobytes()
        for seed, part in enumerate(("train", "test"))
    } | {
        f"cifar-100-binary/{kind}_label_names.txt": b"".join(b"%d\n" % i for i in range(count))
        for kind, count in labels
    }
    tar(directory / "cifar-100-binary.tar.gz", files)
    return directory


def tiny_imagenet_archive(directory):
    wnids = [f"n{i}" for i in range(200)]
    image = encode(random_image(0, 64, 64, 3), "JPEG")
    files = {
        "wnids.txt": "\n".join(wnids).encode(),
        "words.txt": "".join(f"{wnid}\tword {wnid}\n" for wnid in wnids).encode(),
        "val/val_annotations.txt": "".join(f"{i}.JPEG\tn{i}\t0\n" for i in range(8)).encode(),
    }
    files |= {f"val/images/{i}.JPEG": image for i in range(8)}
    files |= {f"train/{wnid}/images/{wnid}_0.JPEG": image for wnid in wnids}
    zip_file(directory / "tiny-imagenet-200.zip", files)
    return directory / "tiny-imagenet-200.zip"


ARCHIVES = {
    cifar10: cifar10_archive,
    cifar100: cifar100_archive,
    tiny_imagenet: tiny_imagenet_archive,
}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("file", "method", "num_classes"),
    [
        (cifar10, "trades_ancra,strategy=hard,targeted=false", 10),
        (cifar100, "at_s2o", 100),
        (tiny_imagenet, "pgd_at", 200),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_two_steps_and_an_evaluation(file, method, num_classes, tmp_path):
    values = file.get_config(method)
    small = {name: value for name, value in SMALL.items() if not name.endswith("_examples")}
    values.update_from_flattened_dict(
        small
        | {
            "batch_size": 20,
            "data.data_dir": str(ARCHIVES[file](tmp_path)),
            "data.selection_examples": 10,
            "negative_contrast.random_epochs": 0,
            "max_steps": 1,
        }
    )
    workdir = str(tmp_path / "run")
    train(config_lib.from_mapping(values), workdir)
    values.max_steps = 2
    state = train(config_lib.from_mapping(values), workdir)
    assert int(state.step) == 2
    assert state.params["fc"]["bias"].shape == (num_classes,)
    chex.assert_tree_all_finite(jax.tree.map(np.asarray, state.params))
    (natural, *attacks) = evaluate(workdir, suite="quick", num_examples=5, checkpoint="last")
    assert natural["step"] == 2 and natural["num_examples"] == 5
    assert len(attacks) == (6 if "ancra" in method else 3)
