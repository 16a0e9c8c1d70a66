"""Writes a trained network for PyTorch: its weights, and a module that gives the same logits.

    ancra export --workdir=DIR --format=torch

Beside them are what the leaderboard RobustBench asks of a model (`model_info.json`, filled in as
far as the work directory knows), and a page on what is left to do. See docs/pytorch.md.
"""

import importlib.util
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from absl import flags

import ancra_jax
from ancra_jax.cli import options
from ancra_jax.config import local_path
from ancra_jax.convert.comparison import Comparison, check_images, compare
from ancra_jax.errors import UsageError
from ancra_jax.interop import pytorch, safetensors
from ancra_jax.interop.names import layouts
from ancra_jax.leaderboard import entry
from ancra_jax.models import resnet
from ancra_jax.ops.files import as_path, check_writable, write_atomically
from ancra_jax.results import evaluation_name, load_evaluation
from ancra_jax.results.names import AUTOATTACK, NATURAL
from ancra_jax.run.trained import TrainedModel, load, locate

MODULE = "network.py"
_BLOCKS: dict[type, str] = {
    resnet.BasicBlock: "basic",
    resnet.BottleneckBlock: "bottleneck",
    resnet.PreActBlock: "preact",
}
_PAGE = """# {name} in PyTorch

```python
import network  # {module}

model = network.load("{weights}")
logits = model(images)  # images in [0, 1], [batch, {channels}, {height}, {width}]
```

| | |
|---|---|
| Network | {architecture}; parts are called as in the layout `{layout}` |
| Classes | {classes} |
| Threat model | {norm}, epsilon {eps} on the [0, 1] pixel scale |
| Natural accuracy, % | {clean_acc} |
| Accuracy under AutoAttack (standard), % | {autoattack_acc} |
| Test images these are over | {examples} |
| Made by | ancra-jax {version}, checkpoint `{checkpoint}`, step {step} |

## Before a submission to RobustBench

1. Its leaderboards are of `cifar10`, `cifar100` and `imagenet`, Linf with 8/255 (ImageNet: 4/255)
   and L2 with 0.5. Accuracies are over all 10,000 test images (ImageNet: 5,000): `ancra evaluate
   --suite=autoattack` computes both, and an export after it fills them in.
2. Networks need gradients that are not zero in general, must be deterministic, and may hold no
   optimisation loop. Reverse attention chooses a mask by an argmax: report what `ancra evaluate
   --suite=adaptive` finds as well.
3. Fill in what is null in `model_info.json`: link, name and authors of the paper, its venue, and as
   `reported` the robust accuracy that it states. `additional_data` is true for any data but the
   data set's own training images, pretraining included. `threat_model` is not one of RobustBench's
   entries (there a folder's name says it): take it out.
4. Rename the file by author, year and the title's first word, `Author2026Word.json`; it goes to
   `model_info/<data set>/<threat model>/`. `{module}` becomes a class in `robustbench/model_zoo/`,
   and an entry among its models says where `{weights}` can be downloaded. Models are under the MIT
   licence unless you ask for another one.
"""


class Exported(NamedTuple):
    """What was written, and how it compares."""

    directory: str
    comparison: Comparison | None  # with what PyTorch computes, if it was asked for


def export(
    workdir: str | os.PathLike[str],
    *,
    format: str = "safetensors",
    output: str = "",
    layout: str = "",
    checkpoint: str = "best",
    weights: str = "raw",
    check: int = 0,
    data_dir: str = "",
) -> Exported:
    """Write weights, module, model_info.json and README.md to a directory.

    Args:
      workdir: of the run, a file of TrainedModel.save, or the name of a network of the package.
      format: of the weights, 'torch' (weights.pt) or 'safetensors'.
      output: the new directory; empty for export/CHECKPOINT in the work directory.
      layout: whose names the weights get, such as 'fc' or 'linear'; empty for the usual ones;
        docs/pytorch.md lists them.
      checkpoint: 'best' on the selection split, or 'last'.
      weights: 'raw' (the optimiser's), or an average that the run keeps, 'ema' or 'swa'.
      check: compare the logits of both networks on so many test images, and, where the package
        autoattack is installed, the accuracies that its AutoAttack and ours leave.
      data_dir: where the run's data set lies for the check, if not where it lay in training.

    Raises:
      UsageError: the network cannot be loaded or has no counterpart, a setting is not allowed, or
        the directory is not empty; PyTorch is not installed, for 'torch' or for a check.
    """
    if format not in _FORMATS:
        raise UsageError(f"--format={format}: allowed are {', '.join(_FORMATS)}")
    if check < 0:
        raise UsageError(f"--check={check}: must be 0 or more")
    if data_dir and not check:
        raise UsageError(f"--data_dir={data_dir}: is for --check; leave it out")
    if importlib.util.find_spec("torch") is None and (check or format == "torch"):
        asked = f"--check={check}" if check else f"--format={format}"
        raise UsageError(f'{asked}: PyTorch is not installed: pip install "ancra-jax[torch]"')
    kept = evaluation_name(checkpoint, weights)
    path, directory = _paths(workdir, output, kept)
    model = load(path, checkpoint=checkpoint, weights=weights, fields=("--workdir", "--weights"))
    name = model.architecture.name
    layout = layout or next(iter(layouts(name)))
    settings = settings_of(model, layout)
    arrays = pytorch.from_variables(name, model.variables, layout=layout)
    for moment in ("mean", "std"):
        if settings[moment]:
            arrays[moment] = np.array(settings[moment], np.float32).reshape(1, -1, 1, 1)
    info, examples = model_info(model, path if as_path(path).is_dir() else "", kept)
    test = check_images(model, check, data_dir) if check else None
    check_writable(directory, f"--output={directory}")
    ending, write = _FORMATS[format]
    file = f"weights{ending}"
    write(directory / file, arrays)
    write_atomically(directory / MODULE, _module(settings, file))
    write_atomically(directory / "model_info.json", json.dumps(info, indent=2) + "\n")
    write_atomically(directory / "README.md", _page(model, info, layout, file, examples))
    return Exported(str(directory), None if test is None else compare(model, directory, test))


def _paths(workdir: str | os.PathLike[str], output: str, kept: str) -> tuple[str, pathlib.Path]:
    """Return where the network is, and the directory to write to, which is new or empty."""
    path = locate(workdir, "--workdir")
    if not output and os.path.isfile(path):
        raise UsageError(f"--output is missing: --workdir={path} is a file")
    directory = pathlib.Path(local_path(output or f"{path}/export/{kept}", "--output"))
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"--output={directory}: is there already; name a new directory")
    return path, directory


def settings_of(model: TrainedModel, layout: str) -> dict[str, Any]:
    """Return the `torch_network.Settings` of a network; parts are called as in a layout.

    Raises:
      UsageError: the network is none of the residual ones, or there is no such layout.
    """
    name, network = model.architecture.name, model.network
    known = layouts(name)
    kind = type(network)
    if kind.trunk is not resnet.ResidualNetwork.trunk or kind.block not in _BLOCKS:
        raise UsageError(f"model {name!r}: {kind.__name__} has no counterpart in PyTorch")
    if layout not in known:
        raise UsageError(f"--layout={layout}: those of {name!r} are {', '.join(known)}")
    if network.attention == "soft" or network.last_block:
        option = network.last_block or f"{network.attention} attention"
        raise UsageError(f"model {name!r} with {option}: has no counterpart in PyTorch")
    first, sizes = network.stages()
    features = first * 2 ** (len(sizes) - 1) * (4 if kind.block is resnet.BottleneckBlock else 1)
    return {
        "classes": len(model.classes),
        "channels": model.image_shape[2],
        "stem": network.width,
        "first": first,
        "sizes": tuple(sizes),
        "cells": model.variables["params"]["fc"]["kernel"].shape[0] // features,
        "window": network.pool_window,
        "block": _BLOCKS[kind.block],
        **kind.block_options,
        "shifted": kind.conv_options.get("shifted", False),
        "stem_norm": network.stem_norm,
        "final_norm": network.final_norm,
        "activation": network.activation,
        "reverse_attention": network.reverse_attention,
        "mean": network.mean,
        "std": network.std,
        "block_name": known[layout].block,
        "inner": dict(known[layout].inner),
        "outer": dict(known[layout].outer),
    }


def model_info(model: TrainedModel, workdir: str, kept: str) -> tuple[dict[str, Any], int | None]:
    """Return RobustBench's description of a model, and over how many test images it is.

    Accuracies are those of the work directory's evaluation of the checkpoint ``kept``, if they are
    of this network and threat model; null where there are none.
    """
    about = model.info or {}
    config = about.get("config") or {}
    records: Mapping[str, Any] = load_evaluation(workdir, kept).records if workdir else {}
    records = {name: one for name, one in records.items() if _fits(one, model, about)}
    shown = [records[name] for name in (NATURAL, AUTOATTACK) if name in records]
    examples = min((record["num_examples"] for record in shown), default=None)
    started = config.get("init_from") or "imported" in (about.get("provenance") or {})
    extra = config.get("extra_data", {}).get("fraction")
    notes = []
    if limit := config.get("data", {}).get("train_examples"):
        notes.append(f"Trained on {limit} images of the data set.")
    if shown:
        name = config.get("data", {}).get("name")
        notes.append(entry.footnote_on_data(name, examples, shown[0]["data"]))
    return entry.entry(
        additional_data=None if started or extra is None else bool(extra),
        dataset=config.get("data", {}).get("name"),
        threat_model=entry.NORMS[model.norm],
        architecture=_architecture(model),
        eps=entry.fraction(model.epsilon),
        clean_acc=_percent(records, NATURAL),
        autoattack_acc=_percent(records, AUTOATTACK),
        footnote=" ".join(filter(None, notes)) or None,
    ), examples


def _fits(record: Mapping[str, Any], model: TrainedModel, about: Mapping[str, Any]) -> bool:
    """Return whether a result is of a network and its threat model, and finished."""
    settings = {"norm": model.norm, "epsilon": model.epsilon}
    return (
        record["step"] == about.get("step")
        and record.get("complete", True)
        and all(record["settings"].get(key, one) == one for key, one in settings.items())
    )


def _percent(records: Mapping[str, Any], name: str) -> str | None:
    return entry.percent(records[name]["accuracy"]) if name in records else None


def _architecture(model: TrainedModel) -> str:
    """Return the network's usual name, ``'WideResNet-34-10'``."""
    name = model.architecture.name
    kind = next((kind for kind in ("Wide", "PreAct") if kind.lower() in name), "")
    text = "-".join([f"{kind}ResNet", *re.findall(r"\d+", name)])
    usual = model.network.width == type(model.network).width
    return text if usual else f"{text} of width {model.network.width}"


def _module(settings: Mapping[str, Any], weights: str) -> str:
    """Return the module's text with the settings in it."""
    text = pathlib.Path(__file__).with_name("torch_network.py").read_text()
    line = "SETTINGS: dict[str, Any] = {}\n"
    assert line in text
    shown = "".join(f"    {json.dumps(name)}: {value!r},\n" for name, value in settings.items())
    text = text.replace(line, f"{line[:-2]}\n{shown}}}\n")
    return text.replace("weights.safetensors", weights)


def _page(
    model: TrainedModel, info: Mapping[str, Any], layout: str, weights: str, examples: int | None
) -> str:
    about = model.info or {}
    height, width, channels = model.image_shape
    unknown = "not evaluated"
    accuracies = {name: info[name] or unknown for name in ("clean_acc", "autoattack_acc")}
    return _PAGE.format(
        name=(about.get("config") or {}).get("name", model.architecture.name),
        module=MODULE,
        weights=weights,
        height=height,
        width=width,
        channels=channels,
        architecture=info["architecture"] + ", reverse attention" * model.network.reverse_attention,
        layout=layout,
        classes=", ".join(model.classes),
        norm=info["threat_model"],
        eps=info["eps"],
        **accuracies,
        examples=unknown if examples is None else examples,
        version=ancra_jax.__version__,
        checkpoint=evaluation_name(about.get("checkpoint", "best"), about.get("weights", "raw")),
        step=about.get("step", "unknown"),
    )


def _write_torch(path: pathlib.Path, arrays: pytorch.StateDict) -> None:
    import torch

    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)
    write_atomically(path, file.getvalue())


_FORMATS: dict[str, tuple[str, Callable[[pathlib.Path, pytorch.StateDict], None]]] = {
    "safetensors": (".safetensors", partial(safetensors.write, texts={"format": "pt"})),
    "torch": (".pt", _write_torch),
}


def define_flags() -> None:
    """Define a flag for each parameter of `export`."""
    options.define(export)


def main(arguments: flags.FlagValues) -> int:
    """Run the command; return 1 if the networks differ."""
    directory, comparison = export(**options.read(export, arguments))
    print(f"{directory}: {', '.join(sorted(os.listdir(directory)))}")
    if comparison is None:
        return 0
    print(comparison)
    return 0 if comparison.same else 1


if __name__ == "__main__":
    from ancra_jax import cli

    cli.run(main, define_flags)
