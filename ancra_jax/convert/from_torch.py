"""Makes a work directory of a file of PyTorch's weights.

    ancra import --checkpoint=FILE.pt --arch=resnet18 --workdir=DIR

`ancra evaluate --workdir=DIR` attacks the network as one that was trained here, and
`ancra train --config.init_from=DIR` trains it further. Nothing in the file is executed. See
docs/pytorch.md.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ancra_jax import models
from ancra_jax.cli import options
from ancra_jax.config import Config, listable_path, local_path
from ancra_jax.config import from_mapping as config_from
from ancra_jax.errors import UsageError, renamed
from ancra_jax.interop import pytorch, reading
from ancra_jax.ops.files import as_path
from ancra_jax.run import build
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.objects import open_checkpoints
from ancra_jax.types import Variables


@renamed(
    {
        r"^(?=(name|mean|std)=)": "--config.model.",
        r"--config\.data\.name": "--data",
        r"--config\.model\.name": "--arch",
        r"--config\.(\w+\.)?": "--",
    }
)
def import_checkpoint(
    checkpoint: str,
    workdir: str,
    *,
    arch: str,
    data: str = "cifar10",
    data_dir: str = "",
    image_size: int = 0,
    mean: Sequence[float | str] = (),
    std: Sequence[float | str] = (),
    activation: str = "",
    reverse_attention: bool = False,
    entry: str = "",
    norm: str = "linf",
    epsilon: float = 8 / 255,
    name: str = "imported",
) -> Config:
    """Make a work directory whose one checkpoint, of step 0, is the network in a file.

    Args:
      checkpoint: the file: .pt, .pth, .pth.tar, .ckpt, .safetensors or .npz, weights by PyTorch's
        names.
      workdir: the new directory.
      arch: the network: 'resnet18', 'wide_resnet34_10' ... ; docs/pytorch.md lists all.
      data: name of the data set that it classifies.
      data_dir: where the data lie; empty for the usual place.
      image_size: in pixels, for folders of images; 0 keeps their size.
      mean: of the images' channels, '0.4914,0.4822,0.4465', where the network normalises its images
        and the file does not say so: it computes with (images - mean) / std.
      std: of the images' channels.
      activation: 'relu' or 'silu'; empty for the network's own, ReLU or, in DeepMind's, SiLU.
      reverse_attention: the network has reverse attention, as ANCRA's code trains it.
      entry: which part of the file to take, such as 'model_ema' or 'model/state_dict', where it
        holds several networks; empty for the first.
      norm: of the threat model that the network is evaluated under, 'linf', 'l2' or 'l1'.
      epsilon: of the threat model, on the [0, 1] pixel scale.
      name: what tables call it.

    Returns:
      The configuration of the work directory.

    Raises:
      UsageError: the file, its weights, a setting or the directory cannot be used.
    """
    checkpoint = local_path(checkpoint, "--checkpoint", directory=False)
    workdir = listable_path(workdir, "--workdir")
    weights = reading.read_weights(checkpoint, entry)
    found = pytorch.identify(arch, weights.arrays)
    mean, std = _normalisation(arch, found, _numbers("--mean", mean), _numbers("--std", std))
    usual = models.create(arch, num_classes=2).width
    config = config_from(
        {
            "name": name,
            "data": {"name": data, "data_dir": data_dir, "image_size": image_size},
            "model": {
                "name": arch,
                "width": 0 if found.width == usual else found.width,
                "activation": activation,
                "mean": mean,
                "std": std,
                "reverse_attention": reverse_attention,
            },
            "method": {"name": "natural"},
            "evaluation": {"norm": norm, "epsilon": epsilon},
        }
    )
    facts = _facts(config, found)
    source = {
        "file": str(pathlib.Path(checkpoint).resolve()),
        "sha256": hashlib.sha256(pathlib.Path(checkpoint).read_bytes()).hexdigest(),
        "entry": weights.entry,
        "layout": found.layout,
        "prefix": found.prefix,
    }
    _write(workdir, config, found.variables, facts, source)
    if weights.others:
        print(f"taken: {weights.entry}; --entry can be {', '.join(weights.others)} as well")
    return config


def _write(
    workdir: str,
    config: Config,
    variables: Variables,
    facts: dict[str, Any],
    source: dict[str, str],
) -> None:
    """Make the work directory, with a checkpoint of step 0 and where its weights are from."""
    if (as_path(workdir) / "config.json").exists():
        raise UsageError(f"--workdir={workdir}: holds a run already; name a new directory")
    workdir_lib.open_for_training(workdir, config)
    with workdir_lib.one_writer(workdir):
        workdir_lib.record_start(workdir, 0, imported=source)
        checkpoints = open_checkpoints(workdir)
        checkpoints.save(0, variables, extra={**facts, "imported": source})
        checkpoints.close()


def _numbers(field: str, given: Any) -> tuple[float, ...]:
    several = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
    try:
        return tuple(map(float, given if several else [None]))
    except (ValueError, TypeError) as error:
        shown = ",".join(map(str, given)) if several else repr(given)
        raise UsageError(f"{field}={shown}: must be numbers, one a channel") from error


def _normalisation(
    arch: str, found: pytorch.Imported, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the file's own normalisation, or the one that was asked for."""
    if not found.mean:
        if arch.startswith("dm_") and not mean:
            raise UsageError(
                f"--arch={arch}: these networks normalise their images, and the file does not say "
                "how: give --mean and --std (0 and 1 if it does not); docs/pytorch.md has "
                "DeepMind's"
            )
        return mean, std
    for field, asked, there in (("--mean", mean, found.mean), ("--std", std, found.std)):
        wide = asked * found.channels if len(asked) == 1 else asked
        if asked and not (len(wide) == len(there) and np.allclose(wide, there)):
            raise UsageError(f"{field}={asked}: the file says {there}")
    return found.mean, found.std


def _facts(config: Config, found: pytorch.Imported) -> dict[str, Any]:
    """Return the classes and the shape of the images, and check that they are the network's."""
    dataset = build.load_dataset(config.data)
    field, shape = f"--data={config.data.name}", dataset.image_shape
    if dataset.num_classes != found.num_classes:
        raise UsageError(
            f"{field}: has {dataset.num_classes} classes, the network {found.num_classes}"
        )
    if shape[2] != found.channels:
        raise UsageError(f"{field}: images of shape {shape}; the network's have {found.channels}")
    build.check_lengths(config, shape)
    network = build.create_network(config, found.num_classes)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    needs, there = (one["params"]["fc"]["kernel"].shape[0] for one in (shapes, found.variables))
    if needs != there:
        raise UsageError(
            f"{field}: images of shape {shape} make {needs} features; the network's classifier "
            f"takes {there}"
        )
    return {"class_names": dataset.class_names, "image_shape": shape}


def define_flags() -> None:
    """Define a flag for each parameter of `import_checkpoint`."""
    options.define(import_checkpoint)


def main(arguments: flags.FlagValues) -> None:
    """Run the command."""
    given = options.read(import_checkpoint, arguments)
    config = import_checkpoint(**given)
    workdir, model = given["workdir"], config.model
    if model.mean:
        mean, std = (",".join(map(str, one)) for one in (model.mean, model.std))
        print(f"the network normalises its images: mean {mean}, std {std}")
    else:
        print("the network does not normalise its images: the file and --mean say nothing of it")
    print(f"{workdir}: {model.name}; next: ancra evaluate --workdir={workdir}")


if __name__ == "__main__":
    from ancra_jax import cli

    cli.run(main, define_flags)
