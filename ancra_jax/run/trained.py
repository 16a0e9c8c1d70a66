"""A trained network as one object: images to logits, with its classes, defences and files."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from ancra_jax import defences, models
from ancra_jax.attacks import Defence, ThreatModel, threat_model
from ancra_jax.config import directory_path, local_path
from ancra_jax.config.fields import build
from ancra_jax.config.paths import as_list, path_text
from ancra_jax.config.schema import ModelConfig
from ancra_jax.errors import Problems, UsageError
from ancra_jax.interop import safetensors
from ancra_jax.models.layers import gradient_rule
from ancra_jax.ops.extras import explained
from ancra_jax.ops.files import PathLike, parse_json, write_atomically
from ancra_jax.ops.images import Images
from ancra_jax.ops.pytree import Foldable, check_finite, pytree_dataclass
from ancra_jax.registry import did_you_mean
from ancra_jax.types import Logits, Outputs, Variables
from ancra_jax.urls import is_url

SCHEMA, ENDING = 1, ".safetensors"  # of the files of `TrainedModel.save`
_TEXT = "ancra_jax"  # the name of what a file's header says of the network, in JSON
PRETRAINED = Path(__file__).parents[1] / "pretrained"  # files that the package has in it
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # by jax.export's names
_MOST = 64  # images that `TrainedModel.predict` gives the network at a time


class Predictions(NamedTuple):
    """What a network sees in images."""

    names: list[str]  # the most probable class of each
    probabilities: Float[np.ndarray, "images classes"]


@pytree_dataclass(
    static=("architecture", "network", "classes", "image_shape", "norm", "epsilon"),
    left_out=("info",),
)
class TrainedModel(Foldable):
    """A network in the evaluation phase, called with images in [0, 1] to get their logits.

    A pytree of its variables: it may be an argument of ``jit`` and of every attack, and other
    weights of the same network do not compile again.

    Attributes:
      variables: parameters and batch statistics, float32.
      architecture: what the network was made from.
      network: a module with ``apply``.
      classes: their names, in the order of the logits.
      image_shape: height, width and channels of the images.
      norm: of the threat model that it is evaluated under, ``'linf'``, ``'l2'`` or
        ``'l1'``.
      epsilon: of the same, on the [0, 1] pixel scale.
      info: where it comes from, a dictionary that JSON can hold; None in what a transformation of
        JAX returns.
    """

    variables: Variables
    architecture: ModelConfig
    network: Any
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    norm: str
    epsilon: float
    info: Any = None

    def __call__(self, images: Any) -> Logits:
        """Return the logits of images of the network's shape, pixels in [0, 1].

        Raises:
          UsageError: images of another shape, or no floating-point numbers.
        """
        try:
            batch = jnp.asarray(images)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"images: must be an array: {error}") from error
        return _logits(self, batch)

    def __repr__(self) -> str:
        """Say what it is, without its weights."""
        return (
            f"TrainedModel({self.architecture.name!r}, {len(self.classes)} classes, images "
            f"{list(self.image_shape)}, {self.norm} {self.epsilon:g})"
        )

    @property
    def outputs(self) -> models.BoundNetwork:
        """The network as a callable pytree whose result has the auxiliary heads' logits too."""
        return models.BoundNetwork(self.network, self.variables)

    def folded(self) -> "TrainedModel":
        """Return it with its batch normalisation computed, as attacks search; see `models`."""
        return replace(self, variables=models.folded(self.network, self.variables))

    @property
    def threat_model(self) -> ThreatModel:
        """The perturbations that it is to withstand."""
        return threat_model(self.norm, self.epsilon)

    @property
    def defences(self) -> list[Defence]:
        """What the network declares to ``attacks.adaptive``, such as its reverse attention."""
        return defences.declared(self.network, self.outputs)

    def predict(self, images: Any) -> Predictions:
        """Return the class names that images get, and the probabilities of all classes.

        Images are paths, PIL images, or arrays [height, width, channels], uint8 or floats in
        [0, 1], of any size; one, or several in a list or an array [batch, height, width, channels].
        They are resized as those of a folder are for training.

        Raises:
          UsageError: an image cannot be read or is none.
        """
        from ancra_jax.data.inputs import as_batch  # it needs Pillow, which a network does not

        batch = as_batch(images, self.image_shape)
        # Few sizes, so that few programs are compiled.
        size = min(_MOST, 1 << (len(batch) - 1).bit_length())
        padded = np.concatenate([batch, np.zeros((-len(batch) % size, *self.image_shape), "f4")])
        parts = [
            np.asarray(_probabilities(self, padded[start : start + size]))
            for start in range(0, len(padded), size)
        ]
        probabilities = np.concatenate(parts)[: len(batch)]
        names = [self.classes[i] for i in probabilities.argmax(axis=1)]
        return Predictions(names, probabilities)

    def save(self, path: PathLike) -> None:
        """Write the weights, and all that `load` needs beside them, to a ``.safetensors`` file.

        Raises:
          UsageError: the file cannot be written, or has another ending; or `load` could not read
            it, as of a `folded` network, or of an ``info`` that JSON cannot hold.
        """
        path = _file_to_write(path)
        if not path.endswith(ENDING):
            raise UsageError(f"path={path}: must end in {ENDING}")
        about = {
            "schema": SCHEMA,
            "network": {key: value for key, value in asdict(self.architecture).items()
                        if key != "dtype"},
            "classes": self.classes,
            "image_shape": self.image_shape,
            "norm": self.norm,
            "epsilon": self.epsilon,
            "info": _without_paths(self.info),
        }  # fmt: skip
        try:
            text = json.dumps(about)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"{path}: cannot be saved: JSON cannot hold info: {error}") from error
        leaves = flatten_dict(jax.device_get(self.variables), sep="/")
        _understood(text, leaves, f"{path}: cannot be saved")
        safetensors.write(path, leaves, {_TEXT: text})

    def export(
        self,
        path: PathLike | None = None,
        *,
        platforms: str | Sequence[str] = ("cpu", "cuda", "tpu"),
    ) -> jax.export.Exported:
        """Make a program of the network and its weights that needs only JAX, and write it.

        Args:
          path: of the file, which ``jax.export.deserialize`` reads; none if None.
          platforms: on which it is to run, one or several of ``'cpu'``, ``'cuda'``, ``'rocm'`` and
            ``'tpu'``.

        Returns:
          The program: float32 images [batch, height, width, channels] of any batch size to logits.

        Raises:
          UsageError: the file cannot be written, or there is no such platform.
        """
        platforms = tuple(as_list(platforms, "platforms"))
        if not platforms or not set(platforms) <= set(_PLATFORMS):
            raise UsageError(f"{platforms=}: must be one or several of {', '.join(_PLATFORMS)}")
        path = path if path is None else _file_to_write(path)
        batch, *_ = jax.export.symbolic_shape("batch")
        images = jax.ShapeDtypeStruct((batch, *self.image_shape), jnp.float32)
        with gradient_rule("stock"):  # the other ones are made for the CPU
            exported = jax.export.export(jax.jit(self._final), platforms=platforms)(images)
        if path is not None:
            try:
                write_atomically(path, bytes(exported.serialize()))
            except OSError as error:
                raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
        return exported

    def _final(self, images: Array) -> Logits:
        is_float = jnp.issubdtype(images.dtype, jnp.floating)
        if images.shape[1:] != self.image_shape or not is_float:
            raise UsageError(
                f"images of dtype {images.dtype} and shape {tuple(images.shape)}: must be floats "
                f"in [0, 1] of [batch, {', '.join(map(str, self.image_shape))}]; predict takes "
                "others"
            )
        outputs: Outputs = self.outputs(images)
        return outputs.logits


def _file_to_write(path: PathLike) -> str:
    text = local_path(path, "path", directory=False)
    if Path(text).is_dir() or not Path(text).parent.is_dir():
        raise UsageError(f"path={text}: must be a file in a directory that there is")
    return text


def _without_paths(value: Any) -> Any:
    """Return JSON content without paths of this machine: saved files are given to others."""
    if isinstance(value, dict):
        return {
            name: "" if name == "data_dir" else _without_paths(one) for name, one in value.items()
        }
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value


# Inlined: attacks look for convolutions in what they trace.
@partial(jax.jit, inline=True)
def _logits(model: TrainedModel, images: Array) -> Logits:
    return model._final(images)


@jax.jit
def _probabilities(model: TrainedModel, images: Images) -> Float[Array, "batch classes"]:
    return jax.nn.softmax(model._final(images))


def load(
    path: PathLike,
    *,
    checkpoint: str = "best",
    weights: str = "raw",
    fields: tuple[str, str] = ("path", "weights"),
) -> TrainedModel:
    """Load a trained network.

    Args:
      path: the work directory of a run of ``ancra_jax.train``, a file of `TrainedModel.save`, or
        the name of a network that the package has in it, such as ``'cifar10-trades-w8'``
        (`pretrained` has all names).
      checkpoint: of a run: ``'best'`` on the selection split, or ``'last'``.
      weights: of a run: ``'raw'`` (the optimiser's), or an average that it keeps, ``'ema'``,
        ``'swa'``.
      fields: what errors call the path and the choice of weights.

    Raises:
      UsageError: there is nothing at the path, or what is there is damaged or no network; the
        network is one of a plug-in that was not imported.
    """
    text = locate(path, fields[0])
    if checkpoint not in ("best", "last"):
        raise UsageError(f"checkpoint={checkpoint!r}: allowed are 'best', 'last'")
    if is_file(text):
        return load_file(text, checkpoint=checkpoint, weights=weights, field=fields[0])
    with explained():  # of the packages that it needs and a file does not
        from ancra_jax.run import sharding
        from ancra_jax.run.weights import load_run

    mesh = sharding.create_mesh(jax.local_devices()[:1])
    model = load_run(text, mesh, checkpoint=checkpoint, weights=weights, fields=fields)
    # Not tied to this device, so that jit takes them along to where the images are.
    variables = jax.tree.map(jnp.asarray, jax.device_get(model.variables))
    return replace(model, variables=variables)


def is_file(path: str) -> bool:
    """Return whether what `locate` returned is a file, not a work directory."""
    return not is_url(path) and Path(path).is_file()


def load_file(
    path: str, *, checkpoint: str = "best", weights: str = "raw", field: str = "path"
) -> TrainedModel:
    """Load a file of `TrainedModel.save`, which errors call ``field``; see `load`."""
    field = f"{field}={path}"
    if (checkpoint, weights) != ("best", "raw"):
        raise UsageError(
            f"{field}: is a file of one network; {checkpoint=} and {weights=} are choices among "
            "those of a work directory"
        )
    if model := read_saved(path, field):
        return model
    raise UsageError(f"{field}: its header has no {_TEXT!r}, so it is no file of TrainedModel.save")


def pretrained() -> list[str]:
    """Return the names of the networks of the package; a model card is beside their files."""
    return sorted(path.stem for path in PRETRAINED.glob(f"*{ENDING}"))


def locate(path: PathLike, field: str) -> str:
    """Return where a network is: a work directory or a file, which may be one of the package's.

    Raises:
      UsageError: there is none.
    """
    if is_url(path_text(path, field, remote=True)):
        return directory_path(path, field)
    text = local_path(path, field, directory=False)
    if Path(text).exists():
        return text
    names = pretrained()
    if text in names:
        return str(PRETRAINED / f"{text}{ENDING}")
    raise UsageError(
        f"{field}={text}: there is no such directory or file; {did_you_mean(text, names)}the "
        f"package has the networks {', '.join(names)}"
    )


def read_saved(path: str, field: str) -> TrainedModel | None:
    """Read a file of `TrainedModel.save`; errors call it ``field``.

    Returns:
      None of a safetensors file of another kind.
    """
    arrays, texts = safetensors.read(path, field)
    return _understood(texts[_TEXT], arrays, field) if _TEXT in texts else None


def _understood(text: Any, arrays: Mapping[str, np.ndarray], field: str) -> TrainedModel:
    """Return the network of a file with such arrays and such a text in its header.

    Raises:
      UsageError: they are damaged, or not of one network.
    """
    try:
        about = parse_json(text)
        if about["schema"] != SCHEMA:
            raise ValueError(f"schema {about['schema']} is of another version, {SCHEMA} is known")
        classes = tuple(map(str, about["classes"]))
        height, width, channels = map(int, about["image_shape"])
        ball = about["norm"], float(about["epsilon"])
        threat_model(*ball)
        network_settings, info = about["network"], about.get("info")
        inner = info.get("config") if isinstance(info, dict) else None
        for name, value in (("info", info), ("info.config", inner)):
            if not isinstance(value, dict | None):
                raise ValueError(f"{name} is a {type(value).__name__}: must be an object, or null")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{field}: its header cannot be read: {error!r}") from error
    problems = Problems()
    architecture = build(ModelConfig, network_settings, f"{field}: network", problems)
    problems.raise_all()
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    try:
        network = create_network(architecture, len(classes))
        shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UsageError(f"{field}: no such network can be made: {error}") from error
    check_shapes(arrays, shapes, field)
    check_finite(arrays, field)
    variables = unflatten_dict(jax.tree.map(jnp.asarray, arrays), sep="/")
    shape = height, width, channels
    return TrainedModel(variables, architecture, network, classes, shape, *ball, info)


def create_network(architecture: ModelConfig, num_classes: int, dtype: str = "float32") -> Any:
    """Create a network that computes in ``dtype``, as `ancra_jax.models.create`."""
    return models.create(
        architecture.name,
        num_classes=num_classes,
        width=architecture.width or None,
        reverse_attention=architecture.reverse_attention,
        dtype=jnp.dtype(dtype),
        activation=architecture.activation or None,
        mean=architecture.mean,
        std=architecture.std,
        batch_norm_momentum=architecture.batch_norm_momentum or None,
        batch_norm_parts=architecture.batch_norm_parts or 1,
        attention=architecture.attention,
        temperature=architecture.temperature,
        last_block=architecture.last_block,
    )


def check_shapes(arrays: Mapping[str, Any], variables: Any, field: str) -> None:
    """Refuse arrays that are not the variables of a network, by name and shape.

    Args:
      arrays: by name, ``params/fc/bias``.
      variables: of the network, such as ``jax.eval_shape`` of its ``init``; nested dictionaries.
      field: what the error begins with.

    Raises:
      UsageError: with the first of those that are missing, too many or of another shape.
    """
    found = {name: array.shape for name, array in arrays.items()}
    needed = {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}
    wrong = [
        f"{name} has shape {found.get(name, 'none')}, needed is {needed.get(name, 'none')}"
        for name in sorted(found | needed)
        if found.get(name) != needed.get(name)
    ]
    if wrong:
        more = f"; ... ({len(wrong)} arrays)" if wrong[2:] else ""
        raise UsageError(f"{field}: is of another network: {'; '.join(wrong[:2])}{more}")
