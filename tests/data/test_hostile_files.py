"""Files of strangers: each is refused in one line, and without much memory."""

import unicodedata

import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.data.decode import decode_images
from ancra_jax.errors import UsageError
from ancra_jax.interop import pytorch
from tests.support import hostile
from tests.support.archives import encode, random_image, write_files
from tests.support.processes import run_python


@pytest.mark.parametrize("name", hostile.CASES)
def test_every_hostile_file_is_refused_in_one_line(tmp_path, name):
    case, said = hostile.CASES[name]
    with pytest.raises(UsageError, match=said) as error:
        case(tmp_path)
    assert str(tmp_path) in str(error.value) or "json" in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


@pytest.mark.slow  # a process of its own, since a peak is of a process
def test_none_of_them_takes_much_memory(tmp_path):
    code = r"""
import contextlib, pathlib, re, sys
from ancra_jax.errors import UsageError
from tests.support.hostile import CASES

for number, (case, _) in enumerate(CASES.values()):
    folder = pathlib.Path(sys.argv[1], str(number))
    folder.mkdir()
    with contextlib.suppress(UsageError), contextlib.redirect_stdout(None):
        case(folder)
status = pathlib.Path("/proc/self/status").read_text()
print(number + 1, re.search(r"VmHWM:\s+(\d+) kB", status)[1])
"""
    cache = str(tmp_path / "cache")
    count, peak = map(int, run_python(code, str(tmp_path), ANCRA_JAX_CACHE=cache).split())
    assert count >= 100 and peak < 1 << 20


HIDDEN = (".ipynb_checkpoints/0.png", ".0.png", "a/.b/c/0.png", ".git/x/y.png", "._0.png")
SEEN = ("a/0.png", "a.b/0.png", "a/b./0.PNG", "0..png")


def test_hidden_images_are_none(tmp_path):
    good = encode(random_image(0, 6, 5, 3))
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        write_files(tmp_path / place, dict.fromkeys((*HIDDEN, *SEEN), good))
    write_files(tmp_path, {"train/.hidden/0.png": good})
    dataset = data.load("folder", data_dir=tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.train) == len(dataset.test) == 2 * len(SEEN)


@pytest.mark.parametrize("places", [("train", "train"), ("train", "test")])
def test_names_that_look_the_same_are_told_apart(tmp_path, places):
    good = encode(random_image(0, 6, 5, 3))
    for place, form in zip(places, ("NFC", "NFD"), strict=True):
        name = unicodedata.normalize(form, "caf\xe9")
        write_files(tmp_path, {f"{place}/{name}/0.png": good, f"{place}/b/0.png": good})
    (tmp_path / "test").mkdir(exist_ok=True)
    with pytest.raises(UsageError, match="normalisation") as error:
        data.load("folder", data_dir=tmp_path)
    assert r"caf\xe9" in str(error.value) and r"cafe\u0301" in str(error.value)


def test_names_that_are_no_text_are_escaped(tmp_path):
    with pytest.raises(UsageError) as error:
        data.load("folder", data_dir=str(tmp_path / "\x1b[31m\udc80\u202e\x07"))
    assert str(error.value).isprintable() and r"\udc80\u202e\x07" in str(error.value)


@pytest.mark.filterwarnings("default:torch.quantize_per_tensor")
def test_tensors_that_are_not_dense_floats_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": torch.ones(3, device="meta"),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "larger": torch.ones(1).expand(1 << 40),
        "numpy": np.float64(1),
    }
    for name, tensor in tensors.items():
        torch.save({"w": torch.ones(2), name: tensor}, tmp_path / "w.pt")
        with pytest.raises(UsageError) as error:
            pytorch.load_state_dict(tmp_path / "w.pt")
        assert name in str(error.value) and str(error.value).isprintable()


def test_no_images_are_refused_in_words():
    with pytest.raises(UsageError, match="there are none"):
        decode_images(0, read=lambda i: b"", describe=str)


def test_dense_tensors_of_every_type_are_read(tmp_path):
    for dtype, one in (("F16", "<f2"), ("F64", "<f8"), ("I64", "<i8"), ("U8", "u1")):
        array = np.arange(6, dtype=one).reshape(2, 3)
        head = hostile.tensor(dtype, (2, 3), (0, array.nbytes))
        read = hostile.safetensors(head, array.tobytes())
        np.testing.assert_array_equal(read(tmp_path)["evil"], array)
