from __future__ import annotations

import subprocess
import sys
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tvmq.errors import InputError
from tvmq.methods.calibration import Calibration, calibration_batches
from tvmq.runtime.tensors import TensorSpec

OPEN = (TensorSpec("x", (None, 3), "float32"),)
FIXED = (TensorSpec("x", (4, 3), "float32"),)
TWO = (TensorSpec("x", (None, 3), "float32"), TensorSpec("ids", (None,), "int32"))
PICTURES = (TensorSpec("image", (None, 3, 8, 12), "float32"),)

X = np.arange(30, dtype=np.float32).reshape(10, 3)
IDS = np.arange(10, dtype=np.int32)


def joined(batches) -> list[np.ndarray]:
    """All samples of each input, after a look at what every batch must be."""
    batches = list(batches)
    for batch in batches:
        assert isinstance(batch, tuple)
        assert all(isinstance(array, np.ndarray) and array.flags.c_contiguous for array in batch)
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def sizes(batches) -> list[int]:
    return [len(batch[0]) for batch in batches]


def refused(source, inputs=OPEN, *, at_once=True, batch_size=4) -> str:
    """The message of the error, which must come before any batch is asked for if ``at_once``."""
    if at_once:
        with pytest.raises(InputError) as error:
            calibration_batches(source, inputs, batch_size)
    else:
        batches = calibration_batches(source, inputs, batch_size)
        with pytest.raises(InputError) as error:
            list(batches)
    return str(error.value)


# --- arrays in memory ---


@pytest.mark.parametrize("source", [X, (X,), [X], {"x": X}], ids=["array", "tuple", "list", "dict"])
def test_array_in_batches(source):
    batches = list(calibration_batches(source, OPEN, 4))
    assert sizes(batches) == [4, 4, 2]
    np.testing.assert_array_equal(joined(batches)[0], X, strict=True)


@pytest.mark.parametrize("source", [(X, IDS), [X, IDS], {"ids": IDS, "x": X}], ids=["tuple", "list", "dict"])
def test_arrays_of_two_inputs(source):
    batches = list(calibration_batches(source, TWO, 4))
    assert sizes(batches) == [4, 4, 2]
    for got, expected in zip(joined(batches), (X, IDS), strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)


def test_arrays_are_brought_to_the_type_of_the_network():
    for dtype in ("float16", "float64", ">f4"):
        (got,) = joined(calibration_batches(X.astype(dtype), OPEN))
        np.testing.assert_array_equal(got, X, strict=True)
    (_, ids) = joined(calibration_batches((X, IDS.astype("int64")), TWO))
    np.testing.assert_array_equal(ids, IDS, strict=True)
    (got,) = joined(calibration_batches(np.asfortranarray(X), OPEN, 3))
    np.testing.assert_array_equal(got, X, strict=True)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(X, requires_grad=True)
    np.testing.assert_array_equal(joined(calibration_batches(tensor, OPEN, 4))[0], X, strict=True)
    np.testing.assert_array_equal(joined(calibration_batches([tensor, torch.tensor(IDS)], TWO, 4))[1], IDS, strict=True)
    assert "numpy array" in refused(tensor.to(torch.bfloat16))


def test_tensor_on_a_device_is_moved_a_batch_at_a_time():
    moved = []

    class Tensor:
        """As much of a tensor on a device as is needed."""

        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, "torch.float32"

        def __getitem__(self, index):
            return Tensor(self.array[index])

        def __array__(self, *_):
            raise TypeError("can't convert a device tensor to numpy")

        def detach(self):
            return self

        def cpu(self):
            moved.append(len(self.array))
            return self

        def numpy(self):
            return self.array

    np.testing.assert_array_equal(joined(calibration_batches(Tensor(X), OPEN, 4))[0], X)
    assert moved == [0, 4, 4, 2]


def test_needs_no_torch():
    code = "import sys, tvmq.methods.calibration; print('torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- batches ---


def one_shot(batches):
    yield from batches


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, np.zeros(len(x), int)),
        lambda x: [x, ["label"] * len(x)],
        lambda x: {"x": x},
        lambda x: ({"x": x}, np.zeros(len(x))),
        lambda x: ((x,), np.zeros(len(x))),
    ],
    ids=["array", "labelled tuple", "labelled list", "dict", "labelled dict", "labelled tuple of inputs"],
)
def test_iterables_keep_their_batches(wrap):
    parts = [X[:5], X[5:6], X[6:]]
    batches = list(calibration_batches(one_shot(map(wrap, parts)), OPEN, 2))
    assert sizes(batches) == [5, 1, 4]
    np.testing.assert_array_equal(joined(batches)[0], X, strict=True)


@pytest.mark.parametrize("wrap", [lambda *b: b, lambda *b: list(b), lambda *b: (b, b[1])])
def test_batches_of_two_inputs(wrap):
    source = one_shot(wrap(X[i : i + 5], IDS[i : i + 5]) for i in (0, 5))
    for got, expected in zip(joined(calibration_batches(source, TWO)), (X, IDS), strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)


def test_a_list_of_batches_is_no_list_of_inputs():
    assert sizes(calibration_batches([X[:3], X[3:]], OPEN, 2)) == [3, 7]


def test_data_loader():
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(IDS))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    assert sizes(calibration_batches(loader, OPEN)) == [4, 4, 2]
    with pytest.warns(UserWarning, match="the last 2 of 10 samples"):
        np.testing.assert_array_equal(joined(calibration_batches(loader, FIXED))[0], X[:8], strict=True)


def test_iterables_are_read_as_late_as_possible():
    asked = []

    def source():
        for index in range(3):
            asked.append(index)
            yield X

    batches = calibration_batches(source(), OPEN)
    assert asked == []
    next(batches)
    assert asked == [0]


# --- a fixed batch ---


@pytest.mark.parametrize("source", [X, [X[:1], X[1:7], X[7:]], [X[i : i + 1] for i in range(10)]])
def test_fixed_batch(source):
    with pytest.warns(UserWarning, match="the last 2 of 10 samples do not fill a batch of 4"):
        batches = list(calibration_batches(source, FIXED, 64))
    assert sizes(batches) == [4, 4]
    np.testing.assert_array_equal(joined(batches)[0], X[:8], strict=True)


def test_fixed_batch_that_fits_gives_no_warning(recwarn):
    assert sizes(calibration_batches(X[:8], FIXED)) == [4, 4]
    assert not recwarn


def test_fixed_batch_of_two_inputs():
    inputs = (TensorSpec("x", (2, 3), "float32"), TensorSpec("ids", (2,), "int32"))
    source = one_shot((X[i : i + 5], IDS[i : i + 5]) for i in (0, 5))
    batches = list(calibration_batches(source, inputs))
    assert sizes(batches) == [2] * 5
    for got, expected in zip(joined(batches), (X, IDS), strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)


def test_too_few_samples_for_the_fixed_batch():
    assert "3 samples, but the network has a fixed batch of 4" in refused(X[:3], FIXED, at_once=False)


def test_inputs_without_a_common_batch_come_as_they_are():
    inputs = (TensorSpec("x", (7, 2), "float32"), TensorSpec("h", (1, 2), "float32"), TensorSpec("s", (), "float32"))
    arrays = (np.ones((7, 2), "float32"), np.ones((1, 2), "float32"), np.float32(2) * np.ones((), "float32"))
    (batch,) = calibration_batches(arrays, inputs)
    assert [array.shape for array in batch] == [(7, 2), (1, 2), ()]
    assert len(list(calibration_batches(one_shot([arrays, arrays]), inputs))) == 2
    assert "share no batch" in refused(Calibration(arrays, samples=3), inputs)


# --- the first samples only ---


@pytest.mark.parametrize("source", [X, [X[:4], X[4:8], X[8:]]])
@pytest.mark.parametrize(("samples", "expected"), [(3, [3]), (4, [4]), (6, [4, 2]), (99, [4, 4, 2])])
def test_samples(source, samples, expected):
    batches = list(calibration_batches(Calibration(source, samples), OPEN, 4))
    assert sizes(batches) == expected
    np.testing.assert_array_equal(joined(batches)[0], X[:samples], strict=True)


def test_no_batch_is_asked_for_in_vain():
    def source():
        yield X
        raise AssertionError("asked for a second batch")

    assert sizes(calibration_batches(Calibration(source(), 10), OPEN)) == [10]


@pytest.mark.parametrize(
    "options", [{"samples": 0}, {"samples": True}, {"mean": ("a",)}, {"std": (0.0,)}, {"std": ()}, {"mean": np.nan}]
)
def test_calibration_options_are_checked(options):
    with pytest.raises(InputError, match="not supported"):
        Calibration(X, **options)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_batch_size_is_checked(batch_size):
    assert "batch_size" in refused(X, batch_size=batch_size)


# --- files ---


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    path = tmp_path / "c.npz"
    save(path, ids=IDS, x=X.astype("float64"))
    for source in (path, str(path)):
        batches = list(calibration_batches(source, TWO, 4))
        assert sizes(batches) == [4, 4, 2]
        for got, expected in zip(joined(batches), (X, IDS), strict=True):
            np.testing.assert_array_equal(got, expected, strict=True)


def test_npz_with_a_single_array_of_any_name(tmp_path):
    np.savez(tmp_path / "c.npz", X)
    np.testing.assert_array_equal(joined(calibration_batches(tmp_path / "c.npz", OPEN, 4))[0], X, strict=True)


def test_npz_in_fortran_order(tmp_path):
    np.savez(tmp_path / "c.npz", x=np.asfortranarray(X))
    np.testing.assert_array_equal(joined(calibration_batches(tmp_path / "c.npz", OPEN, 4))[0], X, strict=True)


def test_npy(tmp_path):
    np.save(tmp_path / "c.npy", X)
    np.testing.assert_array_equal(joined(calibration_batches(tmp_path / "c.npy", OPEN, 4))[0], X, strict=True)


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy"])
def test_files_are_never_all_in_memory(tmp_path, kind):
    array = np.zeros((4096, 1024), np.float32)  # 16 MiB
    path = tmp_path / ("c.npy" if kind == "npy" else "c.npz")
    {"npz": np.savez, "compressed": np.savez_compressed, "npy": np.save}[kind](path, array)
    inputs = (TensorSpec("x", (None, 1024), "float32"),)
    tracemalloc.start()
    try:
        assert sum(sizes(calibration_batches(path, inputs, 64))) == 4096
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**21


def test_files_that_cannot_be_read(tmp_path):
    assert f"{tmp_path}/none.npz: no such file" in refused(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    assert "text.npz: not an .npz or .npy file" in refused(tmp_path / "text.npz")
    (tmp_path / "empty.npy").write_bytes(b"")
    assert "empty.npy: not an .npz or .npy file" in refused(tmp_path / "empty.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    assert "objects.npy: not an .npz or .npy file" in refused(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    assert "Python objects" in refused(tmp_path / "objects.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("x.txt", "hello")
    assert "other.npz: not an .npz or .npy file" in refused(tmp_path / "other.npz")


def test_truncated_and_damaged_files(tmp_path):
    np.save(tmp_path / "whole.npy", X)
    (tmp_path / "part.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-8])
    assert "part.npy: not an .npz or .npy file" in refused(tmp_path / "part.npy")
    np.savez_compressed(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((10_000, 3)))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    (tmp_path / "part.npz").write_bytes(content[:-60])
    assert "part.npz: " in refused(tmp_path / "part.npz")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", x=np.zeros((10_000, 3)))
        content = bytearray((tmp_path / "x.npz").read_bytes())
        place = content.rindex(b"PK\x01\x02") + 16  # the checksum in the table of contents
        content[place] ^= 1
        (tmp_path / "damaged.npz").write_bytes(content)
        message = refused(tmp_path / "damaged.npz", at_once=False, batch_size=2500)
        assert "damaged.npz: not an .npz or .npy file" in message and "CRC" in message


def test_names_in_files(tmp_path):
    np.savez(tmp_path / "c.npz", x=X, id=IDS)
    message = refused(tmp_path / "c.npz", TWO)
    assert "c.npz: holds 'x', 'id', but no 'ids'; did you mean 'id'?" in message
    np.savez(tmp_path / "c.npz", x=X, ids=IDS, labels=IDS)
    assert "c.npz: holds 'labels', which the network does not take (it takes 'x', 'ids')" in refused(
        tmp_path / "c.npz", TWO
    )
    np.savez(tmp_path / "c.npz")
    assert "holds nothing, but no 'x'" in refused(tmp_path / "c.npz")
    np.save(tmp_path / "c.npy", X)
    assert "1 array(s), but the network takes 2" in refused(tmp_path / "c.npy", TWO)


# --- images ---


@pytest.fixture
def picture(tmp_path):
    """Write a picture of given pixels."""
    image = pytest.importorskip("PIL.Image")

    def write(name, pixels, mode=None):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = image.fromarray(np.asarray(pixels))
        (made if mode is None else made.convert(mode)).save(path)
        return path

    return write


def uniform(red, green, blue, height=8, width=12):
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (height, width, 3))


def test_images_in_order(picture, tmp_path):
    for index in (2, 0, 1):
        picture(f"{index}.png", uniform(index, 100, 255))
    picture("sub/9.JPG", uniform(9, 9, 9))
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    (tmp_path / "pictures" / ".hidden.png").write_text("no image")
    batches = list(calibration_batches(tmp_path / "pictures", PICTURES, 3))
    assert sizes(batches) == [3, 1]
    (got,) = joined(batches)
    assert (got.shape, got.dtype) == ((4, 3, 8, 12), np.float32)
    np.testing.assert_array_equal(got[:3, 0, 0, 0], np.array([0, 1, 2], np.float32) / np.float32(255))
    np.testing.assert_array_equal(got[0, :, 3, 5], np.array([0, 100, 255], np.float32) / np.float32(255))


def test_images_as_an_exact_frame_are_taken_pixel_by_pixel(picture, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    picture("a.png", pixels)
    (got,) = joined(calibration_batches(tmp_path / "pictures", PICTURES))
    np.testing.assert_array_equal(got[0], pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(("height", "width"), [(32, 24), (16, 48), (2, 3), (1, 100), (100, 1), (9, 13)])
def test_images_are_resized_to_the_frame_and_cropped_around_the_center(picture, tmp_path, height, width):
    rows, columns = (
        np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j] if min(height, width) > 1 else np.zeros((2, 1, 1))
    )
    pixels = np.stack([128 + 100 * rows, 128 + 100 * columns, 0 * rows], -1).astype(np.uint8)
    picture("a.png", np.broadcast_to(pixels, (height, width, 3)))
    (got,) = joined(calibration_batches(tmp_path / "pictures", PICTURES))
    assert got.shape == (1, 3, 8, 12)
    if min(height, width) < 8:
        return
    red, green = got[0, 0], got[0, 1]
    assert red.mean() == pytest.approx(128 / 255, abs=0.02) and green.mean() == pytest.approx(128 / 255, abs=0.02)
    scale = max(8 / height, 12 / width)  # what is cropped is the part that the scaled picture has too much
    assert red[-1, 0] - red[0, 0] == pytest.approx(200 / 255 * 8 / (height * scale), abs=0.15)
    assert green[0, -1] - green[0, 0] == pytest.approx(200 / 255 * 12 / (width * scale), abs=0.15)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_images_of_other_modes_become_rgb(picture, tmp_path, mode):
    picture("a.tiff" if mode == "CMYK" else "a.png", uniform(255, 255, 255), mode)
    (got,) = joined(calibration_batches(tmp_path / "pictures", PICTURES))
    np.testing.assert_array_equal(got, np.ones((1, 3, 8, 12), np.float32))


def test_grey_images(picture, tmp_path):
    picture("a.png", uniform(51, 51, 51))
    inputs = (TensorSpec("image", (1, 1, 4, 4), "float32"),)
    (got,) = joined(calibration_batches(tmp_path / "pictures", inputs))
    np.testing.assert_array_equal(got, np.full((1, 1, 4, 4), np.float32(51) / np.float32(255)))


def test_images_are_normalised(picture, tmp_path):
    picture("a.png", uniform(0, 51, 255))
    source = Calibration(tmp_path / "pictures", mean=(0.5, 0.2, 0.0), std=(0.5, 0.1, 2.0))
    (got,) = joined(calibration_batches(source, PICTURES))
    np.testing.assert_allclose(got[0, :, 0, 0], [-1, 0, 0.5], atol=1e-6)
    assert got.dtype == np.float32
    (got,) = joined(calibration_batches(Calibration(tmp_path / "pictures", mean=0.5, std=0.5), PICTURES))
    np.testing.assert_allclose(got[0, :, 0, 0], [-1, -0.6, 1], atol=1e-6)
    assert "2 values of mean for 3 channels" in refused(Calibration(tmp_path / "pictures", mean=(1, 2)), PICTURES)
    assert "normalise the arrays" in refused(Calibration(X, mean=(1,)))


def test_images_are_read_when_their_batch_is_due(picture, tmp_path):
    for index in range(4):
        picture(f"{index}.png", uniform(index, 0, 0))
    broken = tmp_path / "pictures" / "3.png"
    broken.write_bytes(broken.read_bytes()[:50])
    batches = calibration_batches(tmp_path / "pictures", PICTURES, 2)
    assert len(next(batches)[0]) == 2
    with pytest.raises(InputError, match=r"3\.png: cannot be read as an image"):
        next(batches)
    assert sizes(calibration_batches(Calibration(tmp_path / "pictures", samples=3), PICTURES, 2)) == [2, 1]


def test_images_that_do_not_fit(picture, tmp_path):
    (tmp_path / "pictures").mkdir()
    assert "holds no images (.bmp, .gif" in refused(tmp_path / "pictures", PICTURES)
    path = picture("a.png", np.zeros((8, 12), np.uint16))
    assert "a.png: has more than 8 bits" in refused(tmp_path / "pictures", PICTURES, at_once=False)
    path.write_text("no image")
    assert "a.png: cannot be read as an image" in refused(tmp_path / "pictures", PICTURES, at_once=False)
    path.unlink()
    two = (*PICTURES, TensorSpec("y", (None,), "float32"))
    bytes_ = (TensorSpec("image", (None, 3, 8, 12), "uint8"),)
    many = (TensorSpec("image", (None, 7, 8, 12), "float32"),)
    for inputs in (OPEN, two, bytes_, many):
        assert "images are for networks with one float input" in refused(tmp_path / "pictures", inputs)


def test_images_without_pillow(picture, tmp_path, monkeypatch):
    picture("a.png", uniform(0, 0, 0))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install 'tvmq[images]'" in refused(tmp_path / "pictures", PICTURES)


# --- what does not fit ---


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (X[:, :2], "input 'x' has shape (10, 2), but the network takes x: float32[batch, 3]"),
        (X[0], "input 'x' has shape (3,), but the network takes x: float32[batch, 3]; add a batch dimension"),
        (X[None], "input 'x' has shape (1, 10, 3), but"),
        (np.float32(1) * np.ones(()), "input 'x' has shape ()"),
        (X.astype(int), "input 'x' is int64, but the network takes float32; scale and convert"),
        (X.astype("uint8"), "/ 255"),
        (X.astype(complex), "input 'x' is complex128"),
        (X > 0, "input 'x' is bool"),
        (X.astype(str), "input 'x' is <U32"),
    ],
)
def test_shapes_and_types(array, message):
    assert message in refused(array)
    assert message in refused(one_shot([array]), at_once=False)


def test_the_batch_that_does_not_fit_is_named():
    message = refused(one_shot([X, X, X[:, :1]]), at_once=False)
    assert message.startswith("batch 2: input 'x' has shape (10, 1)")
    assert refused(one_shot([X, "text"]), at_once=False).startswith("batch 1: has a str where an array")


def test_integers_that_do_not_fit():
    assert "input 'ids' is float32, but the network takes int32" in refused((X, IDS.astype("float32")), TWO)
    message = refused((X, np.full(10, 2**40)), TWO, at_once=False)
    assert message == "batch 0: input 'ids' has values that do not fit in int32"


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "an infinite value"), (-np.inf, "an infinite")])
def test_values_that_are_not_finite(value, word):
    bad = X.copy()
    bad[6, 1] = value
    message = refused(bad, at_once=False)
    assert message.startswith(f"batch 1, sample 2 (number 6 of all): {word}") and "input 'x'" in message
    assert refused(one_shot([X, bad]), at_once=False).startswith("batch 1, sample 6 (number 16 of all)")


def test_doubles_beyond_single_precision(recwarn):
    assert "batch 0, sample 0: an infinite value" in refused(np.full((2, 3), 1e300), at_once=False)
    assert not recwarn


@pytest.mark.parametrize("source", [X[:0], [], {"x": X[:0]}])
def test_nothing_at_all(source):
    assert "there are no samples" in refused(source, at_once=not isinstance(source, list))


@pytest.mark.parametrize("inputs", [OPEN, FIXED])
def test_a_generator_that_is_used_up(inputs):
    source = one_shot([X])
    with pytest.warns(UserWarning) if inputs is FIXED else pytest.MonkeyPatch.context():
        list(calibration_batches(source, inputs))
    assert "a generator can be read only once" in refused(source, inputs, at_once=False)
    assert "no samples" in refused(one_shot([X[:0], X[:0]]), inputs, at_once=False)


def test_empty_batches_are_passed_over():
    assert sizes(calibration_batches(one_shot([X[:0], X, X[:0]]), OPEN)) == [10]


@pytest.mark.parametrize("source", [None, 3, b"bytes", object()])
def test_sources_of_no_kind(source):
    message = refused(source)
    assert f"cannot read a {type(source).__name__}" in message and "DataLoader" in message


def test_names_and_numbers_of_inputs():
    assert "holds 'X', but no 'x'" in refused({"X": X})
    assert "holds 'labels', which the network does not take" in refused({"x": X, "labels": IDS})
    assert "batch 0: holds 'y', but no 'x'" in refused(one_shot([{"y": X}]), at_once=False)
    assert "has 1 array(s), but the network takes 2 ('x', 'ids')" in refused(X, TWO)
    assert "batch 0: has 3 array(s)" in refused(one_shot([(X, IDS, IDS)]), TWO, at_once=False)
    assert "different numbers of samples ('x': 10, 'ids': 4)" in refused((X, IDS[:4]), TWO)
    assert "batch 1: the inputs have different numbers" in refused(
        one_shot([(X, IDS), (X, IDS[:4])]), TWO, at_once=False
    )


def test_batches_do_not_overlap_in_memory_that_the_source_reuses():
    """A loader may fill one buffer again and again."""
    buffer = np.empty((3, 3), np.float32)

    def source():
        for value in range(4):
            buffer[:] = value
            yield buffer

    for inputs in (OPEN, FIXED):
        (got,) = joined(list(calibration_batches(source(), inputs)))
        np.testing.assert_array_equal(got[:, 0], np.repeat(np.arange(4, dtype=np.float32), 3))


def test_order_of_batches(tmp_path):
    np.save(tmp_path / "c.npy", X)
    firsts = [batch[0][0, 0] for batch in calibration_batches(Path(tmp_path / "c.npy"), OPEN, 2)]
    assert all(before < after for before, after in pairwise(firsts))


def test_processes_share_batches():
    data = np.arange(14, dtype=np.float32).reshape(7, 2)
    spec = [TensorSpec("x", (None, 2), "float32")]
    shares = [
        [x for (x,) in calibration_batches(Calibration(data, share=(number, 3)), spec, batch_size=2)]
        for number in range(3)
    ]
    assert [len(share) for share in shares] == [2, 1, 1]
    every = np.concatenate([*shares[0], *shares[1], *shares[2]])
    np.testing.assert_array_equal(np.sort(every, axis=0), data)
    with pytest.raises(InputError, match=r"share=\(3, 3\) is not supported"):
        Calibration(data, share=(3, 3))
