"""Data of the lab: files as they are published, made here; and folders of images."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import tarfile
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import datasets as sklearn_datasets
from sklearn import model_selection

from normkit.errors import DataError, FileError
from normkit.lab.data import archives, folders, load, loading
from normkit.lab.data.archives import Archive, read_cifar, read_idx
from normkit.lab.events import write_events
from normkit.lab.results import Record


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def cifar(rows: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, values in rows.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = values.nbytes
            archive.addfile(member, io.BytesIO(values.tobytes()))
    return file.getvalue()


def rows(number: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, 256, (number, 3073), dtype=np.uint8)
    found[:, 0] = np.arange(number) % 10
    return found


BATCHES = {f"data_batch_{i}.bin": rows(20, i) for i in range(1, 6)}
WHOLE = {**BATCHES, "test_batch.bin": rows(20, 9)}


@pytest.fixture(autouse=True)
def _nothing_kept():
    """The process keeps the last data set; no test begins with that of another one."""
    loading.forget()
    yield
    loading.forget()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder of data sets, and a network that is not there."""
    monkeypatch.setenv("NORMKIT_DATA", str(tmp_path / "sets"))

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(archives.urllib.request, "urlopen", no_network)
    (tmp_path / "sets").mkdir()
    return tmp_path / "sets"


def place(folder, archive, content):
    """The archive with this content's digest, and its file in the folder."""
    (folder / archive.name).write_bytes(content)
    return Archive(archive.address, hashlib.md5(content).hexdigest())


@pytest.fixture
def small_mnist(kept, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = []
    for number in (60, 20):
        arrays += [
            rng.integers(0, 256, (number, 28, 28), dtype=np.uint8),
            (np.arange(number) % 10).astype(np.uint8),
        ]
    found = [
        place(kept, archive, gzip.compress(idx(array)))
        for archive, array in zip(archives.MNIST, arrays, strict=True)
    ]
    monkeypatch.setattr(archives, "MNIST", tuple(found))
    return arrays


def test_digits_are_split_by_the_seed_and_scaled_by_the_training_images():
    one, same, other = load("digits", 0), load("digits", 0), load("digits", 1)
    assert one.train_images.shape == (1297, 1, 8, 8)
    assert len(one.test_labels) == 500
    assert torch.equal(one.train_images, same.train_images)
    assert not torch.equal(one.train_labels, other.train_labels)
    torch.testing.assert_close(one.train_images.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(one.train_images.std(), torch.tensor(1.0))
    assert abs(float(one.test_images.mean())) > 1e-5  # not scaled by itself


def test_mnist_is_read_as_published(small_mnist):
    data = load("mnist", 0)
    assert data.train_images.shape == (60, 1, 28, 28)
    assert data.test_images.shape == (20, 1, 28, 28)
    assert data.classes == 10
    images = torch.tensor(small_mnist[0], dtype=torch.float32)
    expected = (images - images.mean()) / images.std()
    torch.testing.assert_close(data.train_images[:, 0], expected)
    assert data.train_labels.tolist() == small_mnist[1].tolist()


def test_cifar_is_read_as_published(kept, monkeypatch):
    whole = place(kept, archives.CIFAR10, cifar(WHOLE))
    monkeypatch.setattr(archives, "CIFAR10", whole)
    data = load("cifar10", 0)
    assert data.train_images.shape == (100, 3, 32, 32)
    assert data.train_labels.tolist()[:20] == list(range(10)) * 2
    train, test = read_cifar(cifar(WHOLE))
    red = BATCHES["data_batch_1.bin"][3, 1:1025].reshape(32, 32)
    np.testing.assert_array_equal(train.images[3, 0], red)
    assert len(test.labels) == 20


def test_what_is_too_much_is_left_out(small_mnist, monkeypatch):
    monkeypatch.setattr("normkit.lab.data.loading.MOST_TRAIN", 30)
    assert len(load("mnist", 0).train_labels) == 30
    assert not torch.equal(load("mnist", 0).train_labels, load("mnist", 1).train_labels)


def test_without_a_network_one_line_says_what_to_do(kept):
    with pytest.raises(FileError, match=r"cannot be had.*--data digits") as caught:
        load("mnist", 0)
    assert "\n" not in str(caught.value)
    assert not list(kept.iterdir())


def test_what_is_fetched_is_kept_if_it_is_whole(kept, monkeypatch):
    content = cifar(WHOLE)
    monkeypatch.setattr(archives.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(content))
    with pytest.raises(FileError, match=r"damaged.*MD5"):
        archives.cifar10()
    assert not list(kept.iterdir())
    right = Archive(archives.CIFAR10.address, hashlib.md5(content).hexdigest())
    monkeypatch.setattr(archives, "CIFAR10", right)
    archives.cifar10()
    assert (kept / right.name).read_bytes() == content


def test_a_connection_that_is_cut_is_said_in_one_line(kept, monkeypatch):
    answer = Mock()
    answer.__enter__ = lambda _: answer
    answer.__exit__ = lambda *_: None
    answer.read.side_effect = http.client.IncompleteRead(b"half", 4)
    monkeypatch.setattr(archives.urllib.request, "urlopen", lambda *_, **__: answer)
    with pytest.raises(FileError, match=r"cannot be had.*4 bytes read, 4 more") as caught:
        load("mnist", 0)
    assert "\n" not in str(caught.value)
    assert not list(kept.iterdir())


def test_data_that_cannot_be_kept_are_used_all_the_same(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NORMKIT_DATA", str(tmp_path / "file"))
    content = cifar(WHOLE)
    monkeypatch.setattr(archives.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(content))
    right = Archive(archives.CIFAR10.address, hashlib.md5(content).hexdigest())
    monkeypatch.setattr(archives, "CIFAR10", right)
    assert len(load("cifar10", 0).train_labels) == 100
    said = capsys.readouterr().err.splitlines()[-1]
    assert right.name in said
    assert "NORMKIT_DATA" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begins with"),
        (b"\x00\x00\x0d\x03" + bytes(40), "begins with 00000d03"),
        (idx(np.zeros((3, 4, 4), np.uint8))[:-1], "holds 47 bytes"),
        (idx(np.zeros((3, 4, 4), np.uint8))[:9], "cut off"),
    ],
)
def test_a_damaged_idx_file_is_refused(content, said):
    with pytest.raises(ValueError, match=said):
        read_idx(content)


def test_a_damaged_cifar_archive_is_refused():
    with pytest.raises(ValueError, match=r"lacks test_batch\.bin"):
        read_cifar(cifar(BATCHES))
    odd = {**WHOLE, "test_batch.bin": np.zeros(3072, np.uint8)}
    with pytest.raises(ValueError, match="no multiple of 3073"):
        read_cifar(cifar(odd))


def test_a_truncated_archive_is_named(kept, monkeypatch):
    cut = place(kept, archives.CIFAR10, cifar(WHOLE)[:2000])
    monkeypatch.setattr(archives, "CIFAR10", cut)
    with pytest.raises(FileError, match="damaged") as caught:
        load("cifar10", 0)
    assert str(kept / cut.name) in str(caught.value)


# --- what a process keeps -------------------------------------------------------------------------


def test_published_data_are_read_once(small_mnist, monkeypatch):
    reader = Mock(wraps=archives.mnist)
    monkeypatch.setattr(archives, "mnist", reader)
    first = load("mnist", 0)
    images = first.train_images.clone()
    first.train_images.zero_()  # a caller's own
    first.test_labels.zero_()
    again = load("mnist", 0)
    assert torch.equal(again.train_images, images)
    assert again.test_labels.tolist() == small_mnist[3].tolist()
    load("mnist", 1)
    assert reader.call_count == 1


def test_digits_are_the_same_bit_for_bit_however_often_they_are_asked_for():
    """Figures in reports rest on these very numbers."""
    for seed in (0, 1, 0):
        found = sklearn_datasets.load_digits()
        images, tests, labels, answers = model_selection.train_test_split(
            found.images[:, None].astype(np.float32), found.target,
            test_size=500, stratify=found.target, random_state=seed,
        )  # fmt: skip
        mean, deviation = torch.tensor(images).mean(), torch.tensor(images).std()
        data = load("digits", seed)
        assert torch.equal(data.train_images, (torch.tensor(images) - mean) / deviation)
        assert torch.equal(data.test_images, (torch.tensor(tests) - mean) / deviation)
        assert data.train_labels.tolist() == labels.tolist()
        assert data.test_labels.tolist() == answers.tolist()
        for one in (data.train_images, data.train_labels, data.test_images, data.test_labels):
            one.zero_()  # a caller's own


# --- folders --------------------------------------------------------------------------------------


def paint(folder, classes, each=8, size=(6, 5)):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_a_folder_of_classes(tmp_path):
    paint(tmp_path / "pets", ["cat", "dog", "fish"])
    data = load(str(tmp_path / "pets"), 0)
    assert (data.name, data.classes) == ("pets", 3)
    assert (data.channels, data.size, data.features) == (3, (6, 5), 90)
    assert len(data.train_labels) + len(data.test_labels) == 24
    assert set(data.test_labels.tolist()) == {0, 1, 2}


def bare(folder):
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "0.png")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "no such data"),
        (lambda f: f.mkdir(), "holds no image"),
        (bare, "images of no class"),
        (lambda f: paint(f, ["one"]), "images of one class"),
        (lambda f: (paint(f, ["a"]), paint(f, ["b"], each=2)), "at least 4 images"),
        (lambda f: (paint(f, ["a"]), paint(f, ["b"], size=(7, 7))), "differ in shape"),
        (
            lambda f: (paint(f, ["a", "b"]), (f / "b" / "0.png").write_bytes(b"\x89PNG cut")),
            "cannot be read",
        ),
    ],
)
def test_a_folder_that_cannot_serve(tmp_path, make, said):
    folder = tmp_path / "set"
    make(folder)
    with pytest.raises((DataError, FileError), match=said) as caught:
        load(str(folder), 0)
    assert "size=" not in str(caught.value)


def test_a_folder_is_decoded_once_until_it_changes(tmp_path, monkeypatch):
    paint(tmp_path / "pets", ["cat", "dog"])
    reader = Mock(wraps=folders.open_images)
    monkeypatch.setattr(folders, "open_images", reader)
    first, other = load(str(tmp_path / "pets"), 0), load(str(tmp_path / "pets"), 1)
    assert reader.call_count == 1
    assert not torch.equal(first.train_images, other.train_images)
    Image.new("RGB", (5, 6), "red").save(tmp_path / "pets" / "dog" / "more.png")
    assert len(load(str(tmp_path / "pets"), 0).train_labels) > len(first.train_labels)
    Image.new("RGB", (5, 6), "blue").save(tmp_path / "pets" / "dog" / "more.png")
    load(str(tmp_path / "pets"), 0)
    assert reader.call_count == 3


@pytest.mark.parametrize("seed", range(6))
def test_a_rare_class_stays_in_a_large_folder(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(loading, "MOST_TRAIN", 20)
    monkeypatch.setattr(loading, "MOST_TEST", 10)
    paint(tmp_path / "set", ["many"], each=100)
    paint(tmp_path / "set", ["few"], each=4)
    data = load(str(tmp_path / "set"), seed)
    labels = torch.cat([data.train_labels, data.test_labels])
    few = int((labels == 0).sum())  # by name, it is the first
    assert few == 4
    assert 30 <= len(labels) <= 30 + 2 * 4


def test_images_that_are_left_out_are_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "MOST_TRAIN", 20)
    monkeypatch.setattr(loading, "MOST_TEST", 10)
    paint(tmp_path / "set", ["a", "b"], each=50)
    opened = Mock(wraps=Image.open)
    monkeypatch.setattr(Image, "open", opened)
    load(str(tmp_path / "set"), 0)
    assert opened.call_count <= 31  # the first one says how large all are


def test_images_without_a_difference_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "grey" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (7, 7), (77, 77, 77)).save(tmp_path / "grey" / name / f"{number}.png")
    with pytest.raises(DataError, match=r"all alike.*0\.302"):
        load(str(tmp_path / "grey"), 0)


# --- their events ---------------------------------------------------------------------------------


def test_data_of_one_name_have_events_of_their_own(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    known = ("digits", "/first/pets", "/second/pets", "/third/digits")
    for data in known:
        write_events(tmp_path, Record("faster", 0, data, True, {"share": 0.1}))
    places = {path.parent.name for path in tmp_path.rglob("events.out*")}
    assert len(places) == len(known)
    assert "digits-quick-seed0" in places
    assert sum(place.startswith("pets-") for place in places) == 2
