"""Benchmarks: what they find is exact on a model that looks at one pixel, and nothing is lost."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ancra_jax
from ancra_jax import attacks, data
from ancra_jax.attacks.saved_state import StateError
from ancra_jax.errors import UsageError
from ancra_jax.leaderboard.imagenet import PREPROCESSINGS, load_validation, preprocess
from ancra_jax.ops.pytree import pytree_dataclass
from tests.support import archives

QUICK = {"progress": None, "checks": False}
ONE = QUICK | {"version": "custom", "attacks_to_run": ["apgd-ce:num_steps=5"]}


@pytree_dataclass(static=("classes",))
class OnePixel:
    """Class 0 where the first pixel is red to more than ``threshold``, else class 1."""

    threshold: float
    classes: int = 10

    def __call__(self, images):
        red = images[:, 0, 0, 0]
        logits = [red - self.threshold, jnp.zeros_like(red)] + [red - 9] * (self.classes - 2)
        return jnp.stack(logits, axis=1)


class Defended(OnePixel):
    defences = (attacks.Defence("a mask", []),)


jax.tree_util.register_dataclass(Defended, ["threshold"], ["classes"])


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """CIFAR-10 in one file, the red of its test images, and their labels; some are wrong."""
    path = tmp_path_factory.mktemp("data") / "cifar10.npz"
    np.savez(path, **archives.JPEG)
    test = data.load("cifar10", data_dir=path, cache_dir=path.parent / "cache").test
    red = test.images[:, 0, 0, 0] / 255
    labels = (red <= 0.5).astype(np.uint8)
    labels[:3] = 2
    np.savez(path, **archives.JPEG | {"test_labels": labels})
    return path, red, labels


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("ANCRA_JAX_CACHE", str(tmp_path / "cache"))


TORCH = type("Net", (), {"__module__": "torch.nn", "__call__": lambda self, x: x})()


def run(clean, *args, model=None, **options):
    model = model or OnePixel(jnp.float32(0.5))
    return ancra_jax.benchmark(model, *args, **{"data_dir": clean[0]} | options)


def test_accuracies_and_the_entry_are_exact(clean, tmp_path):
    _, red, labels = clean
    right = (red <= 0.5) == labels
    epsilon = float(np.median(np.abs(red - 0.5)[right]))  # half of them can be moved across
    file = tmp_path / "entry.json"
    found = run(clean, epsilon=0.99, output=file, info={"name": "One pixel"}, **QUICK)
    assert found.clean_accuracy == right.mean() == 0.7 and found.robust_accuracy == 0
    assert [record.broken for record in found.records] == [7, 0, 0, 0]
    entry = json.loads(file.read_text())
    assert entry == found.info and "CIFAR-10 (JPEG)" in entry["footnote"]
    expected = {
        "name": "One pixel",
        "authors": None,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "threat_model": "Linf",
        "clean_acc": "70.00",
        "autoattack_acc": "0.00",
    }
    assert expected.items() <= entry.items()
    # Other attacks than the standard ones are no AutoAttack.
    model = Defended(jnp.float32(0.5))
    other = run(clean, "cifar10", "l2", epsilon, 9, model=model, state_path=tmp_path / "s", **ONE)
    assert other.robust_accuracy == (right & (np.abs(red - 0.5) > epsilon))[:9].mean() > 0
    assert other.info["autoattack_acc"] is None and other.info["threat_model"] == "L2"
    assert other.info["unreliable"] and any("a mask" in line for line in other.warnings)
    again = run(clean, "cifar10", "l2", epsilon, 9, model=model, state_path=tmp_path / "s", **ONE)
    assert again.info == other.info and not any(again.attack.seconds.values())


def test_a_result_is_not_overwritten(clean, tmp_path):
    file = tmp_path / "entry.json"
    file.write_text("{}")
    with pytest.raises(UsageError, match=r"output=.*entry\.json"):
        run(clean, output=file)
    assert file.read_text() == "{}"
    run(clean, epsilon=0.99, output=file, overwrite=True, **ONE)
    assert json.loads(file.read_text())["eps"] == "0.99"


def test_epsilons_are_the_usual_ones(clean):
    found = [run(clean, threat_model=norm, n_examples=1, **ONE) for norm in ("linf", "L2", "l1")]
    assert [one.info["eps"] for one in found] == ["8/255", "0.5", "12"]


@pytest.mark.parametrize("packed", [True, False])
def test_corruptions_are_averaged_over_all_kinds_and_severities(clean, tmp_path, packed):
    arrays = archives.corrupted_arrays(12)
    files = archives.corrupted_files(arrays)
    if packed:
        archives.tar(tmp_path / "c/CIFAR-10-C.tar", files, "w")
    else:
        archives.write_files(tmp_path / "c", files)
    seen = []

    def interrupted(progress):
        seen.append(progress)
        if len(seen) == 20:
            raise KeyboardInterrupt

    where = {"corruptions_dir": tmp_path / "c", "state_path": tmp_path / "state"}
    settings = ("cifar10", "corruptions", None, 8)
    with pytest.raises(KeyboardInterrupt):
        run(clean, *settings, **where, progress=interrupted)
    found = run(clean, *settings, **where, progress=seen.append)
    assert len(seen) == 75 and seen[-1].robust_accuracy == pytest.approx(found.robust_accuracy)
    expected = {}
    for name in list(arrays)[:-1]:
        wrong = arrays[name][:, 0, 0, 0] / 255 <= 0.5
        expected[name] = (wrong == arrays["labels"]).reshape(5, 12)[:, :8].mean(axis=1).tolist()
    assert found.corruptions == expected and len(expected) == 15
    mean = np.mean(list(expected.values()))
    assert found.robust_accuracy == pytest.approx(mean)
    assert found.info["corruptions_acc"] == f"{100 * mean:.2f}" and found.info["eps"] is None
    assert "autoattack_acc" not in found.info and found.clean_accuracy == 5 / 8
    with pytest.raises(StateError, match="another model"):
        run(clean, *settings, model=OnePixel(jnp.float32(0.2)), **where, progress=None)


def test_archives_that_are_missing_or_incomplete_are_named(clean, tmp_path):
    def corruptions(message):
        with pytest.raises(UsageError, match=message):
            run(clean, threat_model="corruptions", corruptions_dir=tmp_path, progress=None)

    corruptions(r"put CIFAR-10-C\.tar there, from https")
    files = archives.corrupted_files(archives.corrupted_arrays(9))
    fog = files.pop("CIFAR-10-C/fog.npy")
    archives.tar(tmp_path / "CIFAR-10-C.tar", files, "w")
    corruptions(r"CIFAR-10-C\.tar has no fog\.npy")
    path = tmp_path / "CIFAR-10-C.tar"
    archives.tar(path, files | {"CIFAR-10-C/fog.npy": fog}, "w")
    corruptions("n_examples=10: must be 1 to 9")
    archives.tar(path, {"fog.npy": fog[:3000]} | files, "w")
    corruptions(r"fog\.npy: is damaged.*but there are")
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
    corruptions(r"CIFAR-10-C\.tar is damaged")
    archives.write_files(tmp_path, files | {"CIFAR-10-C/fog.npy": fog[:1000]})
    corruptions(r"fog\.npy: is damaged")


@pytest.fixture
def imagenet(tmp_path):
    """Three classes of two images each, as they are unpacked."""
    names = [f"n0{number}000000" for number in (2, 1, 3)]
    for number, name in enumerate(names):
        for i, shape in enumerate([(257, 300, 3), (240, 500)]):
            pixels = archives.random_image(10 * number + i, *shape)
            files = {f"{name}/ILSVRC2012_val_{number}{i}.JPEG": archives.encode(pixels)}
            archives.write_files(tmp_path / "imagenet", files)
    return tmp_path / "imagenet"


def test_images_are_resampled_and_cut_as_torchvision_does():
    image = Image.fromarray(archives.random_image(0, 300, 257, 3))
    for name, method in (("Res256Crop224", "BILINEAR"), ("BicubicRes256Crop224", "BICUBIC")):
        resized = np.asarray(image.resize((256, 298), Image.Resampling[method]))
        found = np.asarray(preprocess(image, PREPROCESSINGS[name]))
        np.testing.assert_array_equal(found, resized[37 : 37 + 224, 16 : 16 + 224])
    # 31 pixels are missing: 15 on the left; 12 are too many.
    padded = np.pad(np.asarray(image)[6 : 6 + 288], ((0, 0), (15, 16), (0, 0)))
    found = np.asarray(preprocess(image, PREPROCESSINGS["Crop288"]))
    np.testing.assert_array_equal(found, padded)


def test_imagenet_has_its_labels_by_the_order_of_its_folders(imagenet):
    split, classes, note = load_validation(imagenet, None, "Res256Crop224")
    assert split.images.shape == (6, 224, 224, 3) and classes == 3 and "in turns" in note
    np.testing.assert_array_equal(split.labels, [0, 1, 2, 0, 1, 2])
    image = Image.open(imagenet / "n01000000/ILSVRC2012_val_10.JPEG")
    first = np.asarray(preprocess(image, PREPROCESSINGS["Res256Crop224"]))
    np.testing.assert_array_equal(split.images[0], first)
    # RobustBench's list, beside the folder `val`, decides which and in which order.
    listed = ("n03000000/ILSVRC2012_val_20.JPEG", "n01000000/ILSVRC2012_val_11.JPEG")
    (imagenet.parent / "imagenet_test_image_ids.txt").write_text("\n".join(listed))
    imagenet.rename(imagenet.parent / "val")
    split, _, note = load_validation(imagenet.parent, None, "Res256Crop224")
    assert not note and split.labels.tolist() == [2, 0]
    model = OnePixel(jnp.float32(0.5), 3)
    found = run((imagenet.parent,), "imagenet", n_examples=1, model=model, **ONE)
    assert found.info["eps"] == "4/255" and found.data == "ImageNet"
    (imagenet.parent / "imagenet_test_image_ids.txt").write_text("n03000000/../../secret")
    with pytest.raises(UsageError, match="secret"):
        load_validation(imagenet.parent, None, "Res256Crop224")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digits"}, "dataset='digits': allowed are cifar10, cifar100, imagenet"),
        ({"threat_model": "l3"}, "allowed are 'linf'"),
        ({"threat_model": "corruptions", "epsilon": 0.5}, "epsilon=0.5"),
        ({"threat_model": "corruptions", "dataset": "imagenet"}, "dataset='imagenet'"),
        ({"dataset": "imagenet", "threat_model": "l2"}, "epsilon is missing"),
        ({"dataset": "imagenet", "preprocessing": "Res1"}, "preprocessing='Res1'.*Crop288"),
        ({"dataset": "imagenet", "data_dir": "."}, "has no folders.*n01440764"),
        ({"model": TORCH, "data_dir": "nowhere"}, "PyTorch"),
        ({"n_examples": 11}, "=11: must be 1 to 10"),
        ({"n_examples": 0}, "=0: must be 1 to 10"),
        ({"info": {"autor": "me"}}, "info has autor: allowed are link, name, authors"),
        ({"model": OnePixel(jnp.float32(0.5), 5)}, "has 5 classes, CIFAR-10 .* has 10"),
        ({"model": lambda x: x.reshape(-1, 784)}, "model: .*CIFAR-10.*32, 32, 3"),
    ],
)
def test_mistakes_are_told_in_one_line(clean, options, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        run(clean, **options)
    assert "\n" not in str(error.value)
