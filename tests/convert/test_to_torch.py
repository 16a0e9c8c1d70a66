"""Networks written for PyTorch: the same weights and logits, and what is written beside them."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest

import ancra_jax
from ancra_jax import models
from ancra_jax.config.schema import ModelConfig
from ancra_jax.convert import comparison, to_torch
from ancra_jax.convert.from_torch import import_checkpoint
from ancra_jax.errors import UsageError
from ancra_jax.interop import pytorch, reading
from ancra_jax.interop.names import layouts
from ancra_jax.run.trained import TrainedModel, create_network
from tests.support.fake_runs import make_run, write_result
from tests.support.processes import run_command
from tests.support.reference_weights import random_variables
from tests.support.trained import random_model

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
NAMES = [name.format(depth=16, factor=2) for name in models.available() if "resnet" in name]
ALL = [(name, layout) for name in NAMES for layout in layouts(name)]
QUICK = {("resnet18", "fc"), ("wide_resnet16_2", "fc"), ("dm_preact_resnet18", "deepmind")}


def make(name, *, shape=(32, 32, 3), width=2, seed=0, info=None, **options):
    settings = {"reverse_attention": True, "mean": MEAN, "std": STD, **options}
    architecture = ModelConfig(name=name, width=width, **settings)
    classes = tuple("abcde") if shape[2] == 3 else tuple("0123456789")
    network = create_network(architecture, len(classes))
    variables = random_variables(network, shape, seed)
    return TrainedModel(variables, architecture, network, classes, shape, "linf", 8 / 255, info)


def written(tmp_path, model, **options):
    """The directory of an export of a model."""
    model.save(tmp_path / "model.safetensors")
    output = tmp_path / "out"
    found = to_torch.export(tmp_path / "model.safetensors", output=str(output), **options)
    assert found == (str(output), None)
    return output


def module_in(directory):
    path = directory / "network.py"
    spec = importlib.util.spec_from_file_location(f"exported_{directory.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "layout"), ALL)
def test_weights_return_bit_for_bit(tmp_path, name, layout):
    model = make(name)
    directory = written(tmp_path, model, layout=layout)
    found = pytorch.identify(name, reading.load_state_dict(directory / "weights.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, found.variables, model.variables)
    assert (found.width, found.num_classes, found.mean, found.std) == (2, 5, MEAN, STD)
    same = layouts(name)[found.layout], layouts(name)[layout]
    key = ("params", "fc", "kernel")
    assert same[0].name(key) == same[1].name(key)
    if HAS_TORCH:  # all names and shapes are those of the module
        module_in(directory).load(str(directory / "weights.safetensors"))


@needs_torch
@pytest.mark.parametrize(
    ("name", "layout"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (one not in QUICK)) for one in ALL],
)
def test_logits_are_ours(tmp_path, name, layout):
    import torch

    shape = (64, 64, 3) if (name, layout) in QUICK else (32, 32, 3)  # these leave several cells
    model = make(name, shape=shape)
    for format, file in (("torch", "weights.pt"), ("safetensors", "weights.safetensors")):
        (tmp_path / format).mkdir()
        directory = written(tmp_path / format, model, layout=layout, format=format)
        network = module_in(directory).load(str(directory / file))
    images = np.random.default_rng(0).random((3, *shape), np.float32)
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(model.network.apply)(model.variables, images)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        logits, heads = network.outputs(pixels)
        np.testing.assert_array_equal(network(pixels).numpy(), logits.numpy())
    theirs = np.stack([one.numpy() for one in (logits, *heads)])
    expected = np.concatenate([ours.logits[None], ours.aux_logits])
    assert len(theirs) == 3 and np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(theirs, expected, atol=1e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "soft"}, "soft attention"),
        ({"last_block": "dropped", "reverse_attention": False}, "dropped"),
        ({"last_block": "class_branches", "reverse_attention": False}, "class_branches"),
    ],
)
def test_variants_without_a_counterpart_are_refused(tmp_path, options, message):
    model = make("resnet18", shape=(8, 8, 1), mean=(), std=(), **options)
    with pytest.raises(UsageError, match=rf"'resnet18' with {message}: has no counterpart"):
        written(tmp_path, model)


@needs_torch
def test_labels_choose_the_masks_where_they_are_given(tmp_path):
    import torch

    model = make("resnet18")
    directory = written(tmp_path, model)
    network = module_in(directory).load(str(directory / "weights.safetensors"))
    images = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, heads = network.outputs(images)
        chosen = [network.outputs(images, torch.full((3,), one))[1][1] for one in range(5)]
    for row, one in enumerate(heads[0].argmax(1)):
        np.testing.assert_array_equal(
            chosen[one][row].numpy().round(5), heads[1][row].numpy().round(5)
        )


def test_an_export_is_imported_and_exported_again(tmp_path):
    model = make("resnet18", shape=(8, 8, 1), mean=(0.25,), std=(0.5,))
    directory = written(tmp_path, model, layout="linear")
    file, workdir = str(directory / "weights.safetensors"), str(tmp_path / "run")
    config = import_checkpoint(
        file, workdir, arch="resnet18", data="digits", reverse_attention=True
    )
    assert (config.model.mean, config.model.std) == ((0.25,), (0.5,))
    loaded = ancra_jax.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, model.variables)
    again = to_torch.export(workdir, layout="linear").directory
    assert again == f"{workdir}/export/best"
    one, other = (
        reading.load_state_dict(f"{path}/weights.safetensors") for path in (directory, again)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    with pytest.raises(UsageError, match=r"--output=.*is there already"):
        to_torch.export(workdir)
    info = json.loads((tmp_path / "run/export/best/model_info.json").read_text())
    assert info["additional_data"] is None and info["dataset"] == "digits"
    if not HAS_TORCH:
        return
    # The same command as a user's, with a check on the data of the run.
    finished = run_command(
        to_torch, f"--workdir={workdir}", "--format=torch", f"--output={tmp_path}/b", "--check=9"
    )
    assert not finished.status, finished
    assert "weights.pt" in finished.output and "natural accuracy" in finished.output


def test_what_robustbench_asks_is_filled_in_from_the_evaluation(tmp_path):
    config = {
        "name": "trades",
        "data": {"name": "cifar10", "train_examples": 500},
        "extra_data": {"fraction": 0.5},
    }
    model = make("wide_resnet16_2", width=16, info={"config": config, "step": 20})
    workdir = make_run(tmp_path / "run", {"natural": [1, 1, 1, 0]})
    settings = {"norm": "linf", "epsilon": 8 / 255}
    write_result(workdir, "autoattack", [1, 0, 0, 0], settings=settings)
    write_result(workdir, "natural", [1, 1, 1, 0], settings={})
    info, examples = to_torch.model_info(model, workdir, "best")
    expected = {
        "dataset": "cifar10",
        "threat_model": "Linf",
        "architecture": "WideResNet-16-2",
        "eps": "8/255",
        "clean_acc": "75.00",
        "autoattack_acc": "25.00",
        "additional_data": True,
        "authors": None,
        "footnote": "Trained on 500 images of the data set. Accuracies on 4 test images of digits.",
    }
    assert examples == 4 and {key: info[key] for key in expected} == expected
    for changes in ({"step": 40}, {"complete": False}, {"settings": settings | {"epsilon": 0.1}}):
        write_result(workdir, "autoattack", [1, 0, 0, 0], **{"settings": settings, **changes})
        info, _ = to_torch.model_info(model, workdir, "best")
        assert info["autoattack_acc"] is None
    assert to_torch.model_info(model, "", "best")[0]["clean_acc"] is None


def test_unusable_settings_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    file, plain = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    make("resnet18").save(file)
    random_model().save(plain)
    monkeypatch.setitem(sys.modules, "torch", None)
    for path, options, message in [
        (file, {"format": "onnx"}, "--format=onnx"),
        (file, {"layout": "linaer"}, "--layout=linaer.* fc, linear"),
        (file, {"check": -1}, "--check=-1"),
        (file, {"data_dir": "/data"}, "--data_dir=/data"),
        (file, {"check": 1}, "--check=1.*PyTorch"),
        (file, {"format": "torch"}, "--format=torch.*PyTorch"),
        (file, {"output": ""}, "--output"),
        (file, {"output": str(tmp_path)}, "--output"),
        (plain, {}, "tiny"),
        (tmp_path / "none", {}, "none"),
    ]:
        with pytest.raises(UsageError, match=message):
            to_torch.export(path, **{"output": str(tmp_path / "out"), **options})
    assert not (tmp_path / "out").exists()


@needs_torch
def test_other_logits_are_told(tmp_path):
    model = make("resnet18", shape=(8, 8, 1), mean=(), std=())
    directory = written(tmp_path, model)
    with pytest.raises(UsageError, match="--check=8"):
        comparison.check_images(model, 8, "")
    other = make("resnet18", shape=(8, 8, 1), mean=(), std=(), seed=1, info={"config": DIGITS})
    found = comparison.compare(other, directory, comparison.check_images(other, 8, ""))
    assert not found.same and "more than" in str(found)


DIGITS = {"name": "natural", "data": {"name": "digits"}, "method": {"name": "natural"}}
