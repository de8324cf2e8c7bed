"""Data from files, folders of images and code."""

from __future__ import annotations

import sys
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from normkit.errors import DataError, FileError, ModelError, OptionError  # noqa: E402
from normkit.models.batches import batches_of  # noqa: E402
from normkit.models.opening import open_data  # noqa: E402
from opening_files import Touch, assert_explained  # noqa: E402

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((10, 3, 4, 4))
Y = np.arange(10) % 4


def inputs_of(data):
    return torch.cat([batch.args[0] for batch in batches_of(data)])


def refused(what, *words, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        open_data(what, **options)
    assert_explained(caught.value, *words)


# --- arrays


@pytest.mark.parametrize("ending", [".npy", ".npz", ""])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_arrays(ending, dtype, tmp_path):
    path = tmp_path / f"data{ending}"
    array = X.astype(dtype)
    with path.open("wb") as file:
        np.savez(file, array) if ending == ".npz" else np.save(file, array)
    before = path.read_bytes()
    data = open_data(path, batch_size=4)
    assert [len(batch) for batch in data] == [4, 4, 2]
    assert len(data) == 3
    for _ in range(2):  # it can be gone through again
        assert torch.equal(inputs_of(data), torch.from_numpy(array.astype(np.float32)))
    for batch in data:
        batch.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "names",
    [("x", "y"), ("inputs", "labels"), ("images", "targets"), ("arr_0", "arr_1"), ("x", "label")],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_with_labels(names, compressed, tmp_path):
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **dict(zip(names, (X, Y), strict=True)))
    batches = list(batches_of(open_data(str(path), batch_size=4)))
    assert torch.equal(torch.cat([b.labels for b in batches]), torch.from_numpy(Y))
    assert torch.equal(inputs_of(open_data(path)), torch.from_numpy(X.astype(np.float32)))


def test_bytes_become_numbers_from_0_to_1_and_tokens_stay(tmp_path):
    pixels = RANDOM.integers(0, 256, (5, 3, 2, 2), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    expected = torch.from_numpy(pixels).double() / 255
    torch.testing.assert_close(inputs_of(open_data(tmp_path / "pixels.npy")).double(), expected)
    tokens = RANDOM.integers(0, 60_000, (5, 7), dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    found = inputs_of(open_data(tmp_path / "tokens.npy"))
    assert found.dtype == torch.int64
    assert found.tolist() == tokens.tolist()


def test_mean_and_std(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]
    found = inputs_of(open_data(tmp_path / "x.npy", mean=mean, std=std, batch_size=3))
    expected = (X - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    found = inputs_of(open_data(tmp_path / "x.npy", std=2))
    np.testing.assert_allclose(found.numpy(), X / 2, rtol=1e-6)


def test_options_that_do_not_fit(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "tokens.npy", Y)
    refused(tmp_path / "x.npy", "2 numbers for 3 channels", kind=OptionError, mean=[1, 2])
    refused(tmp_path / "x.npy", "above 0", kind=OptionError, std=[1, 0, 1])
    refused(tmp_path / "x.npy", "samples", kind=OptionError, batch_size=0)
    refused(tmp_path / "x.npy", "size", kind=OptionError, size=3)
    refused(tmp_path / "tokens.npy", "floating-point", kind=OptionError, mean=1)
    refused("math:floor", "mean", kind=OptionError, mean=1)
    refused([torch.ones(2)], "std", kind=OptionError, std=1)


def test_a_large_array_is_mapped(tmp_path):
    path = tmp_path / "large.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (1 << 18, 1 << 14))  # 16 GiB, sparse
    array[0, 0] = 3
    del array
    data = open_data(path, batch_size=2)
    assert len(data) == 1 << 17
    assert next(iter(data))[0, 0] == 3


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_pickled_objects_are_refused(ending, tmp_path):
    marker, path = tmp_path / "it_ran", tmp_path / f"objects{ending}"
    array = np.array([Touch(marker), None], dtype=object)
    (np.save if ending == ".npy" else np.savez)(path, array, allow_pickle=True)
    refused(path, "pickled", "none was run", "numpy.stack", kind=FileError)
    assert not marker.exists()
    loaded = np.load(path, allow_pickle=True)
    if ending == ".npz":
        with loaded:
            _ = loaded["arr_0"]
    assert marker.exists()  # it was alive


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.float32(3), "shape ()"),
        (np.zeros((0, 3)), "shape (0, 3)"),
        (np.zeros((4, 0)), "shape (4, 0)"),
        (np.array(["a"]), "real numbers"),
        (np.ones(3, complex), "real numbers"),
        (np.full((4, 3), np.nan), "no finite number"),
        (np.full((4, 3), -np.inf), "no finite number"),
    ],
)
def test_arrays_that_are_no_data(array, word, tmp_path):
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", "a.npy", word)
    np.savez(tmp_path / "a.npz", x=array)
    refused(tmp_path / "a.npz", "a.npz", word)


def test_some_nan_is_for_the_audit(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[np.nan, 1.0]]))
    assert inputs_of(open_data(tmp_path / "a.npy")).isnan().sum() == 1


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X, "y": Y[:3]}, ("10 inputs and 3 labels",)),
        ({"a": X, "b": Y}, ("a, b", "x (inputs, images) and y")),
        ({"x": X, "y": Y, "z": Y}, ("x, y, z",)),
        ({"x": X, "y": Y, "labels": Y}, ("labels, x, y",)),
        ({}, ("no array",)),
    ],
)
def test_arrays_that_do_not_say_what_they_are(arrays, words, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    if not arrays:
        with zipfile.ZipFile(tmp_path / "a.npz", "w"):
            pass
        refused(tmp_path / "a.npz", "a.npz", kind=FileError)
    else:
        refused(tmp_path / "a.npz", *words)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_arrays_cut_short(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    (np.save if ending == ".npy" else np.savez)(path, X)
    whole = path.read_bytes()
    for kept in (3, 9, 70, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        refused(path, "damaged", path.name, f"{kept:,} bytes", kind=FileError)


def test_a_header_that_promises_too_much(tmp_path):
    def header(shape):
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"

    content = header((1 << 40, 1 << 20)) + bytes(64)
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path / "a.npy", "damaged", kind=FileError)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    refused(tmp_path / "a.npz", "damaged", "x should have shape", kind=FileError)


def test_files_that_are_no_data(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "a PyTorch checkpoint", "numpy.savez", kind=FileError)
    refused(tmp_path / "x.npz", "No such file", kind=FileError)
    (tmp_path / "x.npz").touch()
    refused(tmp_path / "x.npz", "empty", kind=FileError)
    refused("no_file_nor_code", "package.module:function", kind=FileError)


def test_objects_are_given_back():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 2)))
    assert open_data(loader) is loader


# --- code


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        "import torch\n"
        "def batches():\n"
        "    for i in range(3): yield torch.full((2, 4), float(i)), torch.tensor([i, i])\n"
        "def empty(): return iter(())\n"
        "def loader(): return torch.utils.data.DataLoader(torch.arange(6.).reshape(3, 2))\n"
        "made = [torch.ones(2, 4)]\n"
        "once = batches()\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield
    sys.modules.pop("my_data", None)


def test_data_as_code(code):
    data = open_data("my_data:batches")
    for _ in range(2):
        batches = list(batches_of(data))
        assert [b.args[0][0, 0].item() for b in batches] == [0, 1, 2]
        assert [b.labels.tolist() for b in batches] == [[0, 0], [1, 1], [2, 2]]
    assert len(list(batches_of(open_data("my_data:loader")))) == 3
    assert len(list(batches_of(open_data("my_data:made")))) == 1
    with pytest.raises(DataError, match="no batch"):
        list(batches_of(open_data("my_data:empty")))


def test_code_that_gives_no_data(code):
    refused("my_data:once", "only once", "Name the function")
    refused("my_data:number", "int", "DataLoader")
    refused("my_data:nothing", "no such name", kind=ModelError)


# --- images


@pytest.fixture
def image():
    """Writes an image, and says what its pixels are as float64 (C, H, W) from 0 to 1."""
    library = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

    def write(path, mode="RGB", height=6, width=5):
        path.parent.mkdir(parents=True, exist_ok=True)
        channels = {"L": 0, "I;16": 0, "RGB": 3, "RGBA": 4}[mode]
        deep = mode == "I;16"
        shape = (height, width, channels) if channels else (height, width)
        top, kind = (65536, np.uint16) if deep else (256, np.uint8)
        pixels = RANDOM.integers(0, top, shape).astype(kind)
        if mode == "RGBA":
            pixels[..., 3] = 255
        library.fromarray(pixels).save(path)
        seen = pixels.reshape(height, width, -1)[..., :3]
        return np.moveaxis(seen, -1, 0) / (top - 1)

    return write


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_images_of_a_folder(mode, image, tmp_path):
    expected = [image(tmp_path / name, mode) for name in ("c.png", "a.png", "b.PNG")]
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    data = open_data(tmp_path, batch_size=2)
    assert [len(b) for b in data] == [2, 1]
    found = inputs_of(data)
    assert found.dtype == torch.float32
    order = [expected[1], expected[2], expected[0]]
    np.testing.assert_allclose(found.double().numpy(), np.stack(order), rtol=0, atol=1e-7)
    assert torch.equal(inputs_of(data), found)


def test_sub_folders_are_classes(image, tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/1.png", "ant/1.png"):
        image(tmp_path / name)
    (tmp_path / "empty").mkdir()
    data = open_data(str(tmp_path), batch_size=3)
    assert data.classes == ("ant", "cat", "dog")
    assert [b.labels.tolist() for b in batches_of(data)] == [[0, 1, 1], [2]]


def test_images_standardized(image, tmp_path):
    expected = image(tmp_path / "a.png")
    found = inputs_of(open_data(tmp_path, mean=(0.5, 0.4, 0.3), std=0.2)).double().numpy()
    shifted = (expected - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))) / 0.2
    np.testing.assert_allclose(found[0], shifted, atol=1e-5)


def test_sizes_that_differ(image, tmp_path):
    image(tmp_path / "a.png", height=6, width=5)
    image(tmp_path / "b.png", height=12, width=7)
    data = open_data(tmp_path, batch_size=1)  # the first can be read
    with pytest.raises(DataError) as caught:
        list(data)
    assert_explained(caught.value, "b.png", "(3, 12, 7)", "(3, 6, 5)", "Resize", "size=224")
    found = inputs_of(open_data(tmp_path, size=4))
    assert tuple(found.shape) == (2, 3, 4, 4)
    refused(tmp_path, "pixels", kind=OptionError, size=0)


def test_size_keeps_the_middle(tmp_path):
    library = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255
    library.fromarray(pixels).save(tmp_path / "a.png")
    assert (inputs_of(open_data(tmp_path, size=4)) == 1).all()


def test_a_grey_image_among_colours_and_the_other_way_round(image, tmp_path):
    image(tmp_path / "colour" / "a.png")
    grey = image(tmp_path / "colour" / "b.png", "L")
    found = inputs_of(open_data(tmp_path / "colour"))
    np.testing.assert_allclose(found[1].numpy(), np.broadcast_to(grey, (3, 6, 5)), atol=1e-7)
    image(tmp_path / "grey" / "a.png", "L")
    image(tmp_path / "grey" / "b.png")
    refused(tmp_path / "grey", "differ in shape", "b.png")


def test_folders_without_images_or_with_too_many_sorts(image, tmp_path):
    refused(tmp_path, "no image", ".png", ".npz")
    image(tmp_path / "cat" / "a.png")
    image(tmp_path / "b.png")
    refused(tmp_path, "Some images have a class", "cat")


def test_images_that_are_not_whole(image, tmp_path):
    image(tmp_path / "a.png", height=60, width=60)
    whole = (tmp_path / "a.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image"):
        (tmp_path / "a.png").write_bytes(content)
        refused(tmp_path, "a.png", "Pillow says", kind=FileError)


def test_without_pillow(image, tmp_path, monkeypatch):
    image(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"normkit\[images\]"):
        open_data(tmp_path)
