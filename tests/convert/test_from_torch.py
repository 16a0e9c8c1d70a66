"""Work directories of PyTorch's weights, and training that starts from given weights."""

import inspect
import json

import jax
import numpy as np
import pytest

import ancra_jax
from ancra_jax import evaluate, models
from ancra_jax.convert import from_torch
from ancra_jax.convert.from_torch import import_checkpoint
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.suites import SUITES
from ancra_jax.interop import pytorch
from ancra_jax.ops.files import read_arrays
from ancra_jax.results.load import load_results
from ancra_jax.run import build, initial, sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.weights import find_weights
from ancra_jax.train.loop import train
from tests.support.processes import run_command
from tests.support.reference_weights import random_variables
from tests.support.small_runs import small_config

SHAPE = (8, 8, 1)
MOMENTS = {"0.mean": np.full((1, 1, 1, 1), 0.25, "f4"), "0.std": np.full((1, 1, 1, 1), 0.5, "f4")}


def variables(seed=0, **options):
    network = models.create("resnet18", num_classes=10, width=2)
    return random_variables(network, options.get("shape", SHAPE), seed)


def write(path, **options):
    """A file as of a Sequential of a normalisation and a ResNet-18 of MART's code."""
    arrays = pytorch.from_variables(
        "resnet18", variables(**options), layout="linear", prefix="module.1."
    )
    moments = {f"module.{key}": value for key, value in MOMENTS.items()}
    np.savez(path, **arrays, **moments)
    return str(path)


def imported(tmp_path, **options):
    file = write(tmp_path / "w.npz")
    settings = {"arch": "resnet18", "data": "digits", "epsilon": 0.1, **options}
    return file, import_checkpoint(file, str(tmp_path / "run"), **settings)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    file = write(tmp_path / "w.npz")
    arrays = read_arrays(file)
    arrays["module.1.linear.bias"][3] = np.nan
    np.savez(file, **arrays)
    with pytest.raises(UsageError, match=r"w\.npz: module\.1\.linear\.bias has NaN"):
        import_checkpoint(file, str(tmp_path / "run"), arch="resnet18", data="digits")


def test_a_work_directory_says_where_its_weights_are_from(tmp_path):
    _, config = imported(tmp_path, name="MART")
    assert workdir_lib.read_config(str(tmp_path / "run")) == config
    assert (config.name, config.model.width, config.evaluation.epsilon) == ("MART", 2, 0.1)
    assert (config.model.mean, config.model.std) == ((0.25,), (0.5,))
    (start,) = workdir_lib.read_starts(str(tmp_path / "run"))
    source = start["imported"]
    assert (source["layout"], source["prefix"]) == ("linear", "module.1.")
    assert len(source["sha256"]) == 64 and source["file"].endswith("w.npz")


def test_best_and_last_are_the_weights_of_the_file(tmp_path):
    _, config = imported(tmp_path)
    network = build.create_network(config, 10)
    for checkpoint in ("best", "last"):
        found = find_weights(str(tmp_path / "run"), checkpoint=checkpoint)
        loaded = found.load(network, SHAPE, sharding.create_mesh())
        jax.tree.map(np.testing.assert_array_equal, loaded, variables())
        assert found.step == 0 and found.facts["image_shape"] == list(SHAPE)
    images = jax.random.uniform(jax.random.key(0), (4, *SHAPE))
    plain = models.create("resnet18", num_classes=10, width=2)
    expected = plain.apply(variables(), (images - 0.25) / 0.5)
    np.testing.assert_array_equal(network.apply(variables(), images).logits, expected.logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet34"}, r"weights of resnet34: .* missing"),
        ({"arch": "resnet81"}, r"^--arch='resnet81'"),
        ({"std": "0.5"}, r"^--std='0\.5': must be numbers"),
        ({"mean": (0.4,)}, r"--mean=\(0\.4,\): the file says \(0\.25,\)"),
        ({"std": (0.5, 0.5)}, r"--std"),
        ({"data": "digitz"}, r"^--data='digitz'"),
        ({"data": "folder", "data_dir": ""}, r"^--data_dir=''"),
        ({"image_size": 32}, r"^--image_size=32"),
        ({"entry": "model"}, r"no entries"),
        ({"norm": "l3"}, r"^--norm='l3'"),
        ({"activation": "tanh"}, r"^--activation='tanh'"),
    ],
)
def test_unusable_settings_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        imported(tmp_path, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mean", "shown"), [(0.5, "0.5"), ((None,), "None"), (None, "None")])
def test_what_is_no_list_of_numbers_is_refused(tmp_path, mean, shown):
    as_users_have_it = inspect.unwrap(import_checkpoint)  # without the tests' check of types
    with pytest.raises(UsageError, match=rf"^--mean={shown}: must be numbers"):
        as_users_have_it(write(tmp_path / "w.npz"), str(tmp_path / "r"), arch="resnet18", mean=mean)


def test_networks_for_other_data_are_refused(tmp_path):
    for shape, message in (
        ((8, 8, 3), "the network's have 3"),
        ((64, 64, 1), r"make 16 features; .* takes 64"),
    ):
        np.savez(
            tmp_path / "w.npz",
            **pytorch.from_variables("resnet18", variables(shape=shape)),
        )
        with pytest.raises(UsageError, match=message):
            import_checkpoint(
                str(tmp_path / "w.npz"), str(tmp_path / "run"), arch="resnet18", data="digits"
            )
    np.savez(tmp_path / "w.npz", **pytorch.from_variables("resnet18", variables()))
    files = str(tmp_path / "w.npz"), str(tmp_path / "run")
    for moments, message in (
        ({"mean": ["0.5"]}, r"^--mean=\(0\.5,\), --std=\(\): must be as many"),
        ({"mean": [0.5] * 2, "std": [0.5] * 2}, r"^--mean=\(0\.5, 0\.5\): has 2 numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            import_checkpoint(*files, arch="resnet18", data="digits", **moments)
    imported(tmp_path)
    with pytest.raises(UsageError, match="holds a run already"):
        imported(tmp_path)


def test_the_command(tmp_path):
    file = write(tmp_path / "w.npz")
    given = [f"--checkpoint={file}", "--arch=resnet18", "--data=digits"]
    wrong = {
        "": "--workdir is missing",
        f"--workdir={tmp_path}/run --mean=a,b --std=1": "--mean=a,b: must be numbers",
        f"--workdir={tmp_path}/run --mean=0.3 --std=0.5": "--mean=(0.3,): the file says (0.25,)",
        f"--workdir={tmp_path}/run --checkpoint={tmp_path}/v.npz": "v.npz: no such file",
        f"--workdir={tmp_path}/run --epsilon=8/0": "--epsilon=8/0",
    }
    for arguments, message in wrong.items():
        finished = run_command(from_torch, *given, *arguments.split())
        assert finished.status == 2 and message in finished.error, finished
    finished = run_command(from_torch, *given, f"--workdir={tmp_path}/run", "--mean=0.25")
    assert not finished.status and f"ancra evaluate --workdir={tmp_path}/run" in finished.output
    assert "mean 0.25, std 0.5" in finished.output
    np.savez(tmp_path / "plain.npz", **pytorch.from_variables("resnet18", variables()))
    given[0] = f"--checkpoint={tmp_path}/plain.npz"
    finished = run_command(from_torch, *given, f"--workdir={tmp_path}/plain")
    assert "does not normalise" in finished.output
    help_text = run_command(from_torch, "--help").output
    assert "--checkpoint" in help_text and "'model_ema'" in help_text


def starting_from(path, **options):
    settings = {"model__name": "resnet18", "model__width": 2, "max_steps": 1}
    settings |= {"model__mean": (0.25,), "model__std": (0.5,), **options}
    return small_config(init_from=str(path), **settings)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_initial_weights_are_those_of_a_file_or_a_directory(tmp_path, kind):
    file, _ = imported(tmp_path)
    config = starting_from(file if kind == "file" else tmp_path / "run")
    network = build.create_network(config, 10)
    mesh = sharding.create_mesh()
    loaded, origin = initial.load(config, network, SHAPE, mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables())
    assert origin["path"] == config.init_from
    other = starting_from(config.init_from, model__mean=(0.5,))
    with pytest.raises(UsageError, match=r"--config\.model\.mean=\(0\.5,\): must be \(0\.25,\)"):
        initial.load(other, network, SHAPE, mesh)
    with pytest.raises(UsageError, match=r"init_from=.* has shape|checkpoint .* has shape"):
        initial.load(config, build.create_network(config, 7), SHAPE, mesh)
    if kind == "file":
        shallow = starting_from(file, model__last_block="dropped")
        message = r"init_from=.*w\.npz: .*layer4_1/\S+ has shape .*none.* \(10 arrays\)"
        with pytest.raises(UsageError, match=message):
            initial.load(shallow, build.create_network(shallow, 10), SHAPE, mesh)
    with pytest.raises(UsageError, match=r"init_from=memory://.*on this machine"):
        build.check_initial(starting_from("memory://bucket/w.npz"))
    with pytest.raises(UsageError, match=r"init_from=.*no such"):
        build.check_initial(starting_from(tmp_path / "nothing"))


def test_initial_weights_are_those_of_a_saved_network(tmp_path):
    file = str(tmp_path / "net.safetensors")
    imported(tmp_path)
    ancra_jax.load(tmp_path / "run").save(file)
    config = starting_from(file)
    mesh = sharding.create_mesh()
    loaded, origin = initial.load(config, build.create_network(config, 10), SHAPE, mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables())
    assert origin["path"] == file
    with pytest.raises(UsageError, match=r"--config\.model\.mean=\(0\.5,\): must be \(0\.25,\)"):
        build.check_initial(starting_from(file, model__mean=(0.5,)))
    with pytest.raises(UsageError, match=r"init_from=.*net.safetensors: .* has shape"):
        initial.load(config, build.create_network(config, 7), SHAPE, mesh)


def test_initial_weights_are_those_of_a_network_of_the_package():
    normalised = ancra_jax.load("cifar10-trades-w8").architecture
    settings = {"model__width": 8, "model__mean": normalised.mean, "model__std": normalised.std}
    config = starting_from("cifar10-trades-w8", **settings)
    network, mesh = build.create_network(config, 10), sharding.create_mesh()
    loaded, _ = initial.load(config, network, (32, 32, 3), mesh)
    there = ancra_jax.load("cifar10-trades-w8").variables
    jax.tree.map(np.testing.assert_array_equal, loaded, there)
    with pytest.raises(UsageError, match=r"init_from=cifar10-trades: .*cifar10-trades-w8"):
        build.check_initial(starting_from("cifar10-trades"))


@pytest.mark.slow
def test_imported_weights_are_evaluated_and_trained_further(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "quick", ("natural",))
    imported(tmp_path)
    evaluate.run(str(tmp_path / "run"), suite="quick", num_examples=8)
    records = load_results(tmp_path / "run" / "evaluation" / "best")
    assert records["natural"][0]["step"] == 0

    slow = starting_from(tmp_path / "run", optimizer__learning_rate=1e-20, ema__decay=0.5)
    state = train(slow, str(tmp_path / "further"))
    for ours, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(variables()["params"]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    start = json.loads((tmp_path / "further/starts.jsonl").read_text().splitlines()[0])
    assert start["init_from"]["step"] == 0
