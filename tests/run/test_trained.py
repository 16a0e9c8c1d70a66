"""A trained network as one object: what it computes, and its files."""

import io
import json
import os
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ancra_jax
from ancra_jax import attacks, data
from ancra_jax.errors import UsageError
from ancra_jax.interop import safetensors
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.run.objects import open_checkpoints
from ancra_jax.run.trained import create_network
from ancra_jax.train.loop import train
from tests.support import ROOT
from tests.support.archives import encode, random_image, write_files
from tests.support.processes import run_python
from tests.support.reference_weights import random_variables
from tests.support.small_runs import small_config
from tests.support.trained import random_model

PAGE = (ROOT / "docs/using.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
IMAGES = np.random.default_rng(0).random((5, 8, 8, 3), np.float32)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of a few steps, and its last state."""
    path = str(tmp_path_factory.mktemp("trained") / "run")
    where = {"data__data_dir": os.path.dirname(path)}  # digits are not read from anywhere
    return path, train(small_config("trades_ra", max_steps=2, ema__decay=0.5, **where), path)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m.safetensors"
    model.save(path)
    return path


def test_a_run_gives_its_network(run):
    workdir, state = run
    for weights in ("raw", "ema"):
        model = ancra_jax.load(workdir, weights=weights)
        assert model.classes == tuple("0123456789")
        assert (model.image_shape, model.norm, model.epsilon) == ((8, 8, 1), "linf", 0.1)
        assert model.info["step"] == 2 and model.info["config"]["name"] == "trades_ra"
        assert model.info["config"]["data"]["data_dir"] == os.path.dirname(workdir)
        images = jnp.asarray(IMAGES[..., :1])
        expected = model.network.apply(state.variables_of(weights), images)
        np.testing.assert_allclose(model(images), expected.logits, rtol=1e-5, atol=1e-5)
        outputs = model.outputs(images)
        np.testing.assert_allclose(outputs.aux_logits, expected.aux_logits, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_that_names_no_classes_has_those_of_its_data(run, monkeypatch):
    facts = Checkpoints.facts
    kept = ("checksums", "epoch")
    monkeypatch.setattr(
        Checkpoints, "facts", lambda self, step: {key: facts(self, step)[key] for key in kept}
    )
    model = ancra_jax.load(run[0])
    assert (len(model.classes), model.image_shape) == (10, (8, 8, 1))


def test_what_is_no_network_is_refused(run, file, tmp_path):
    for path, options, message in [
        (tmp_path, {}, "holds no run"),
        (tmp_path / "none", {}, "none: there is no"),
        (run[0], {"weights": "swa"}, "weights=swa"),
        (run[0], {"checkpoint": "first"}, "'first'"),
        (file, {"checkpoint": "last"}, "checkpoint='last'"),
        (__file__, {}, "not a readable safetensors file"),
    ]:
        with pytest.raises(UsageError, match=message):
            ancra_jax.load(path, **options)


def test_a_pytree_of_its_weights(model):
    traces = []

    @jax.jit
    def logits(model, images):
        traces.append(1)
        return model(images)

    other = random_model(seed=1)
    np.testing.assert_allclose(logits(model, IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits(other, IMAGES), other(IMAGES), rtol=1e-5, atol=1e-6)
    assert len(traces) == 1
    mean = jax.tree.map(lambda a, b: (a + b) / 2, model, other)
    assert mean.classes == model.classes and mean.info is None
    assert not np.allclose(mean(IMAGES), model(IMAGES))
    gradient = jax.grad(lambda model: model(IMAGES).sum())(model)
    assert np.any(gradient.variables["params"]["fc"]["bias"])
    assert "0." not in repr(replace(model, epsilon=1.0))  # no weights


def test_attacks_take_it(model):
    labels = np.asarray(model(IMAGES)).argmax(1)
    options = {"num_steps": 2, "version": "custom", "attacks_to_run": ["apgd-ce"], "progress": None}
    options["checks"] = False
    ball = attacks.Linf(model.epsilon)
    result = attacks.autoattack(model, IMAGES, labels, ball, key=0, **options)
    same = attacks.autoattack(model.outputs, IMAGES, labels, epsilon=0.1, key=0, **options)
    np.testing.assert_array_equal(result.images, same.images)


def test_a_network_without_a_defence_declares_none():
    assert random_model(reverse_attention=False).defences == []


def test_both_ways_to_say_the_threat_model_exclude_each_other(model):
    for function in (attacks.autoattack, attacks.adaptive, attacks.diagnose):
        with pytest.raises(TypeError, match=r"epsilon=0\.2"):
            function(model, IMAGES, np.zeros(5, int), attacks.Linf(0.1), epsilon=0.2)
        with pytest.raises(TypeError, match="epsilon"):
            function(model, IMAGES, np.zeros(5, int))


def test_images_of_any_kind_are_the_same(model, tmp_path):
    pixels = random_image(0, 8, 8, 3)
    (tmp_path / "a.png").write_bytes(encode(pixels))
    floats = np.float32(pixels) / np.float32(255)
    expected = np.asarray(jax.nn.softmax(model(floats[None])))
    kinds = [str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(pixels), pixels, floats]
    kinds += [jnp.asarray(floats), floats.astype(np.float64)]
    for images in [*kinds, kinds, pixels[None], floats[None]]:
        names, probabilities = model.predict(images)
        assert probabilities.shape == (len(names), 3)
        np.testing.assert_allclose(probabilities, expected.repeat(len(names), 0), atol=1e-6)
        assert set(names) == {model.classes[expected.argmax()]}


def test_many_images(model):
    images = np.random.default_rng(1).random((131, 8, 8, 3), np.float32)
    _, probabilities = model.predict(images)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(model(images)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_other_sizes_become_what_they_are_in_training(tmp_path, channels):
    shapes = [(30, 20), (8, 8), (9, 50), (7, 5)]
    shapes = shapes if channels == 1 else [(*shape, 3) for shape in shapes]
    pixels = [random_image(seed, *shape) for seed, shape in enumerate(shapes)]
    names = ["train/a/0.png", "train/b/0.png", "train/a/1.png", "test/a/0.png"]
    write_files(tmp_path, {name: encode(image) for name, image in zip(names, pixels, strict=True)})
    dataset = data.load("folder", data_dir=tmp_path, image_size=8, cache_dir=tmp_path / "cache")
    model = random_model(shape=(8, 8, channels))
    expected = model.predict(dataset.train.images)[1]
    files = [tmp_path / name for name in names[:3]]
    np.testing.assert_array_equal(model.predict(files)[1], expected)
    np.testing.assert_array_equal(model.predict(pixels[:3])[1], expected)
    floats = [np.float32(image) / 255 for image in pixels[:3]]
    np.testing.assert_allclose(model.predict(floats)[1], expected, atol=1e-6)


def test_grey_and_colour_become_what_the_network_takes():
    grey, colour = random_image(0, 8, 8), random_image(1, 8, 8, 3)
    model = random_model()
    both = model.predict([grey, np.stack([grey] * 3, -1), Image.fromarray(grey)])[1]
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(both[0], both[2])
    with_alpha = np.concatenate([colour, random_image(2, 8, 8, 1)], -1)
    np.testing.assert_array_equal(model.predict(with_alpha)[1], model.predict(colour)[1])
    model = random_model(shape=(8, 8, 1))
    luminance = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(model.predict(colour)[1], model.predict(luminance)[1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are none"),
        (IMAGES * 255, "image 0 .* to 25"),
        (IMAGES * np.nan, "image 0 .* nan"),
        ((IMAGES * 255).astype(int), "int64"),
        ([IMAGES[0], IMAGES], r"image 1 .*\(5, 8, 8, 3\)"),
        (IMAGES[0].transpose(2, 0, 1), r"\(3, 8, 8\)"),
        ("nowhere.png", "nowhere.png"),
        (str(ROOT), "folder"),
        (__file__, "test_trained.py"),
        ([None], "image 0"),
        (Image.fromarray(np.zeros((8, 8), np.uint16)), "8 bits"),
        (Image.new("RGB", (0, 0)), "image 0 has 0x0 pixels"),
        (Image.new("La", (8, 8)), "image 0 is not an image"),
        (Image.open(io.BytesIO(encode(random_image(0, 99, 99, 3))[:999])), "image 0 is not an"),
    ],
)
def test_what_is_no_image_is_refused(model, images, message):
    with pytest.raises(UsageError, match=message):
        model.predict(images)


def test_images_of_another_shape_are_refused_by_the_function(model):
    for images in (IMAGES[:, :4], IMAGES[0], IMAGES[..., :1], (IMAGES * 255).astype(np.uint8)):
        with pytest.raises(UsageError, match="images of"):
            model(images)


def test_a_saved_network_is_the_same(model, file):
    loaded = ancra_jax.load(file)
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    assert loaded.info == model.info
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))


def test_a_file_says_all_that_a_network_is_made_from(model, tmp_path):
    made_from = replace(
        model.architecture, width=3, activation="silu", mean=(0.5, 0.4, 0.3), std=(0.25,) * 3
    )
    network = create_network(made_from, 3)
    variables = random_variables(network, (8, 8, 3))
    model = replace(model, variables=variables, architecture=made_from, network=network)
    model.save(tmp_path / "m.safetensors")
    loaded = ancra_jax.load(tmp_path / "m.safetensors")
    assert loaded.architecture == made_from and loaded.network == network
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))


def test_the_package_safetensors_reads_a_saved_network(model, file):
    package = pytest.importorskip("safetensors")
    with package.safe_open(file, "numpy") as opened:
        about = json.loads(opened.metadata()["ancra_jax"])
        assert about["classes"] == list(model.classes)
        kernel = opened.get_tensor("params/fc/kernel")
    np.testing.assert_array_equal(kernel, model.variables["params"]["fc"]["kernel"])


def test_every_key_of_a_file_is_on_the_page(model, file):
    about = json.loads(safetensors.read(file, "file")[1]["ancra_jax"])
    table = PAGE.split("| Key |")[1].split("\n\n")[0]
    keys = [key for line in table.splitlines() for key in re.findall("`(.*?)`", line.split("|")[1])]
    assert sorted(keys) == sorted(about)


def changed(**changes):
    return lambda about: about | changes


NETWORK = {"name": "tiny", "width": 4, "reverse_attention": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(schema=2), "schema 2"),
        (changed(classes=["a", "b"]), "fc/"),
        (changed(classes=3), "header"),
        (changed(image_shape=[8, 8]), "header"),
        (changed(image_shape=[8, 8, 1]), "Conv_0/kernel"),
        (changed(image_shape=[0, 0, 3]), "file"),
        (changed(norm="l7"), "l7"),
        (changed(epsilon=8), "epsilon"),
        (changed(network=NETWORK | {"name": "resnet19"}), "did you mean"),
        (changed(network=NETWORK | {"width": 10**9}), "shape"),
        (changed(network=NETWORK | {"depth": 3}), "depth"),
        (changed(network=[]), "network"),
        (changed(info="made by me"), "info is a str"),
        (changed(info=[1]), "info is a list"),
        (changed(info={"config": "x"}), r"info\.config is a str"),
        (lambda about: {}, "header"),
        (lambda about: [], "header"),
    ],
)
def test_damaged_headers_are_refused(file, tmp_path, change, message):
    arrays, texts = safetensors.read(file, "file")
    about = change(json.loads(texts["ancra_jax"]))
    path = tmp_path / "file.safetensors"
    safetensors.write(path, arrays, {"ancra_jax": json.dumps(about)})
    with pytest.raises(UsageError, match=message):
        ancra_jax.load(path)
    safetensors.write(path, arrays, {})
    with pytest.raises(UsageError, match="no file of TrainedModel"):
        ancra_jax.load(path)


def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    path = tmp_path / "m.safetensors"
    model.save(path)
    arrays, texts = safetensors.read(path, "file")
    safetensors.write(path, {name: one * np.inf for name, one in arrays.items()}, texts)
    with pytest.raises(UsageError, match=r"m\.safetensors: .* has NaN or infinite values"):
        ancra_jax.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"info": "made by me"}, "info is a str"),
        ({"info": {"config": [1]}}, r"info\.config is a list"),
        ({"info": {"a": np.float32(1)}}, "info: .*float32"),
        ({"classes": ("cat", "dog")}, "fc/"),
        ({"epsilon": 8.0}, "epsilon"),
        ({"variables": jax.tree.map(lambda x: x * jnp.nan, random_model().variables)}, "has NaN"),
    ],
)
def test_a_network_that_could_not_be_loaded_is_not_saved(model, tmp_path, changes, message):
    with pytest.raises(UsageError, match=rf"m\.safetensors: cannot be saved: .*{message}"):
        replace(model, **changes).save(tmp_path / "m.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_folded_network_is_not_saved(tmp_path):
    folded = ancra_jax.load("cifar10-trades-w8").folded()
    with pytest.raises(UsageError, match=r"cannot be saved: .*batch_stats/.* has shape none"):
        folded.save(tmp_path / "m.safetensors")


def test_a_file_does_not_say_where_things_lie_on_this_machine(model, tmp_path):
    config = {"data": {"name": "folder", "data_dir": "/home/me/cats"}, "init_from": "/home/me/old"}
    told = {"config": config, "provenance": {"imported": {"file": "/home/me/w.pt"}}, "step": 3}
    replace(model, info=told).save(tmp_path / "m.safetensors")
    assert b"/home" not in (tmp_path / "m.safetensors").read_bytes()
    info = ancra_jax.load(tmp_path / "m.safetensors").info
    assert info["config"] == {"data": {"name": "folder", "data_dir": ""}, "init_from": "old"}
    assert info["provenance"] == {"imported": {"file": "w.pt"}} and info["step"] == 3


def test_where_a_file_cannot_be(model, tmp_path):
    for path in (tmp_path, tmp_path / "no/m.safetensors", tmp_path / "m.npz"):
        with pytest.raises(UsageError, match=re.escape(str(path))):
            model.save(path)
    for path in (tmp_path, tmp_path / "no/m"):
        with pytest.raises(UsageError, match=re.escape(str(path))):
            model.export(path)
    assert not any(tmp_path.iterdir())


WITHOUT = """
import sys
import jax
import numpy as np
sys.modules |= dict.fromkeys(("ancra_jax", "flax", "optax", "orbax", "jaxtyping"))
images = np.load("images.npy")
{lines}
assert network.platforms == ("cpu", "cuda", "tpu")
np.savez("logits.npz", logits=logits, one=network.call(images[:1]), seven=network.call(images[:7]))
try:
    import ancra_jax
    raise SystemExit("ancra_jax was imported")
except ImportError:
    pass
"""


def test_an_exported_network_needs_jax_alone(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.export("robust.stablehlo")
    images = np.random.default_rng(2).random((9, 8, 8, 3), np.float32)
    np.save("images.npy", images)
    run_python(WITHOUT.format(lines=BLOCKS[-1]), PYTHONPATH="")
    with np.load("logits.npz") as arrays:
        for name, count in {"logits": 9, "one": 1, "seven": 7}.items():
            np.testing.assert_allclose(arrays[name], model(images[:count]), rtol=1e-5, atol=1e-5)


def test_class_branches_are_exported_for_one_platform_and_any_number_of_images():
    model = random_model(reverse_attention=False, last_block="class_branches")
    exported = model.export(platforms="cpu")
    assert exported.platforms == ("cpu",) and model(IMAGES[:0]).shape == (0, 3)
    np.testing.assert_allclose(exported.call(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    for platforms in ("gpu", ("cpu", "metal"), ()):
        with pytest.raises(UsageError, match=r"^platforms=\(.*: .*cuda"):
            model.export(platforms=platforms)


def test_an_old_run_whose_data_moved_says_where_to_write_their_place(tmp_path):
    config = small_config(data__name="folder", data__data_dir="/moved")
    workdir_lib.open_for_training(str(tmp_path), config)
    checkpoints = open_checkpoints(str(tmp_path))
    checkpoints.save(1, {"params": {"kernel": jnp.ones(2)}}, extra={})
    checkpoints.close()
    with pytest.raises(UsageError, match=r"^path=.*/moved.*config\.json") as raised:
        ancra_jax.load(tmp_path, checkpoint="last")
    assert "--config" not in str(raised.value)
