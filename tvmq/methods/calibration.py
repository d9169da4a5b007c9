"""Calibration data from arrays, files, folders of images and data loaders, batch by batch.

Whatever the source, what comes out is a tuple with one contiguous array per input of the network, with the network's
shapes and element types, and without NaN or infinity.  Sources are read once, in order and as late as possible: an
array in a file is read a batch at a time, an image when its batch is due.
"""

from __future__ import annotations

import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tvmq.errors import InputError, nearest
from tvmq.methods.images import ImageReader, image_files
from tvmq.runtime.tensors import TensorSpec

__all__ = ["Calibration", "calibration_batches"]

_SOURCES = (
    "an array or a tensor, one for each input, the path of an .npz or .npy file or of a folder of images, or an "
    "iterable of batches such as a DataLoader"
)

Batch = tuple[Any, ...]


@dataclass(frozen=True)
class Calibration:
    """A source of calibration data, and how to read it.

    Parameters
    ----------
    source : object
        One of the sources of :func:`calibration_batches`.
    samples : int, optional
        Use only the first so many samples; default: all.
    mean, std : tuple of float, optional
        For a folder of images: subtracted from, and then divided into, the values of each channel, which lie in
        [0, 1].  One number per channel, or one for all.
    share : (int, int)
        Of n processes, the one of number i takes every n-th batch from the i-th on: (i, n).

    Raises
    ------
    InputError
        If ``samples`` is not a positive integer, ``mean`` or ``std`` are not finite numbers, ``std`` above zero, or
        ``share`` is not a process among so many.

    Examples
    --------
    >>> Calibration("images/", samples=512, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).samples
    512
    """

    source: Any
    samples: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        """Reject every value that no source could honour."""
        if self.samples is not None and (type(self.samples) is not int or self.samples < 1):
            raise InputError(f"calibration: samples={self.samples!r} is not supported; use a positive integer or None")
        number, processes = self.share
        if not 0 <= number < processes:
            raise InputError(f"calibration: share={self.share} is not supported; use (i, n) with 0 <= i < n")
        for field, least in (("mean", -math.inf), ("std", 0.0)):
            values = getattr(self, field)
            if values is None:
                continue
            values = tuple(values) if isinstance(values, Iterable) else (values,)
            if not values or not all(isinstance(value, int | float) and least < value < math.inf for value in values):
                kind = "positive numbers" if field == "std" else "numbers"
                raise InputError(f"calibration: {field}={values} is not supported; use {kind}, one per channel")
            object.__setattr__(self, field, values)


def calibration_batches(
    source: Any, inputs: Sequence[TensorSpec], batch_size: int = 64
) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches of calibration data, checked and in the form that the network takes.

    Parameters
    ----------
    source : object
        One of

        * a numpy array or a torch tensor on any device; of a network with several inputs a tuple or list of them in
          the order of the inputs, or a mapping by the inputs' names;
        * the path of an ``.npz`` file with an array under each input's name (of a network with one input, a single
          array may have any name), read a batch at a time, compressed or not (except arrays in Fortran order, which
          are read whole);
        * the path of an ``.npy`` file, which is memory-mapped;
        * the path of a folder of images, for a network with one float input of shape (batch, channels, height,
          width).  They are taken in the order of their names, subfolders included, resized so that the network's
          frame just fits, cropped around the center, converted to 1 (grey), 3 (RGB) or 4 (RGBA) channels, and
          scaled to [0, 1].  This needs Pillow: ``pip install 'tvmq[images]'``;
        * an iterable of batches, which is read once: each batch an array or tensor, a tuple or list with one of them
          per input (of a network with one input, the first element: labels are ignored), a mapping by name, or a
          pair of one of these and labels;
        * a :class:`Calibration` of one of these.
    inputs : sequence of TensorSpec
        What the network takes.
    batch_size : int
        Samples in a batch, of arrays, files and images.  Batches of an iterable are left as they are.  A network with
        a fixed batch gets batches of exactly that size from all sources; samples at the end that do not fill one are
        left out with a warning.

    Returns
    -------
    iterator of tuples of numpy.ndarray
        Per batch one array per input, in order.  Its memory is that of one or two batches.

    Raises
    ------
    InputError
        Before the first batch: if the source is of an unknown kind, cannot be read, or is empty, or if its names,
        shapes or element types are not the network's.  While iterating: the same of later batches, and a value that
        is NaN or infinite, with the batch and the sample that it is in, both counted from 0.

    Examples
    --------
    >>> spec = TensorSpec("x", (None, 3), "float32")
    >>> [len(x) for (x,) in calibration_batches(np.zeros((5, 3), np.float32), [spec], batch_size=2)]
    [2, 2, 1]
    """
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"calibration: batch_size={batch_size!r} is not supported; use a positive integer")
    if not inputs:
        raise InputError("calibration: the network has no inputs")
    calibration = source if isinstance(source, Calibration) else Calibration(source)
    plan = _Plan.of(inputs, batch_size)
    if calibration.samples is not None and not plan.batched:
        raise InputError("calibration: samples cannot be counted, as the network's inputs share no batch dimension")
    raw = _raw_batches(calibration, inputs, plan)
    batches = _limited(_checked_batches(raw, inputs, plan), calibration.samples)
    complete = _exact(batches, plan.size) if plan.exact and plan.size is not None else _nonempty(batches)
    number, processes = calibration.share
    return islice(complete, number, None, processes)


@dataclass(frozen=True)
class _Plan:
    """How many samples are read at a time (None: the inputs share no batch), and whether it must be so many."""

    size: int | None
    exact: bool

    @property
    def batched(self) -> bool:
        return self.size is not None

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], batch_size: int) -> _Plan:
        leading = {spec.shape[0] if spec.shape else 0 for spec in inputs}
        if len(leading) > 1 or leading == {0}:
            return cls(None, False)
        (size,) = leading
        return cls(batch_size, False) if size is None else cls(size, True)


# --- sources ---


def _raw_batches(calibration: Calibration, inputs: Sequence[TensorSpec], plan: _Plan) -> Iterable[Batch]:
    """Batches with one array or tensor per input, neither cast nor checked for NaN."""
    source = calibration.source
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            return _image_batches(path, calibration, inputs, plan)
    if calibration.mean is not None or calibration.std is not None:
        raise InputError("calibration: mean and std are for folders of images; normalise the arrays before")
    columns = _columns(source, inputs)
    if columns is not None:
        return _column_batches(columns, inputs, plan)
    if isinstance(source, bytes) or not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        raise InputError(f"calibration: cannot read a {type(source).__name__}; give {_SOURCES}")
    return (_batch_arrays(batch, inputs, f"batch {index}") for index, batch in enumerate(source))


@dataclass(frozen=True)
class _Column:
    """All samples of one input.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    read : callable
        From the number of samples in a batch to an iterator of batches, which opens what it reads from.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int], Iterator[Any]]


def _columns(source: Any, inputs: Sequence[TensorSpec]) -> list[_Column] | None:
    """The samples of each input, or None when the source is an iterable of batches."""
    if isinstance(source, str | os.PathLike):
        return _file_columns(Path(source), inputs)
    if _is_array(source):
        return [_array_column(array) for array in _batch_arrays(source, inputs, "calibration")]
    if isinstance(source, Mapping):
        return [_array_column(array) for array in _by_name(source, inputs, "calibration")]
    # A batch of several inputs is no array itself, so that a list of arrays is one array per input.
    one_per_input = isinstance(source, tuple | list) and len(source) == len(inputs) and all(map(_is_array, source))
    return [_array_column(array) for array in source] if one_per_input else None


def _column_batches(columns: Sequence[_Column], inputs: Sequence[TensorSpec], plan: _Plan) -> Iterator[Batch]:
    for spec, column in zip(inputs, columns, strict=True):
        _check_kind(spec, column.dtype, "calibration")
        _check_shape(spec, column.shape, "calibration", plan.batched)
    counts = {spec.name: column.shape[0] if column.shape else 1 for spec, column in zip(inputs, columns, strict=True)}
    if plan.batched and len(set(counts.values())) > 1:
        found = ", ".join(f"'{name}': {count}" for name, count in counts.items())
        raise InputError(f"calibration: the inputs have different numbers of samples ({found})")
    if 0 in counts.values():
        raise _empty()
    size = max(counts.values()) if plan.size is None else plan.size
    return zip(*(column.read(size) for column in columns), strict=True)


def _array_column(array: Any) -> _Column:
    shape = tuple(int(extent) for extent in array.shape)

    def read(size: int) -> Iterator[Any]:
        if not shape:
            yield array
            return
        for start in range(0, shape[0], size):
            yield array[start : start + size]

    return _Column(shape, _as_array(array[:0] if shape else array, "calibration").dtype, read)


# --- files of arrays ---


def _file_columns(path: Path, inputs: Sequence[TensorSpec]) -> list[_Column]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give an .npz or .npy file or a folder of images")
    with _readable(path):
        if zipfile.is_zipfile(path):
            return _npz_columns(path, inputs)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return [_array_column(array) for array in _batch_arrays(array, inputs, str(path))]


class _readable:
    """Turns whatever reading a damaged file raises into an InputError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, InputError):
            return
        if isinstance(error, OSError):
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        if isinstance(error, ValueError | EOFError | zipfile.BadZipFile | zlib.error | NotImplementedError):
            raise InputError(f"{self.path}: not an .npz or .npy file of plain arrays ({error})") from None


def _npz_columns(path: Path, inputs: Sequence[TensorSpec]) -> list[_Column]:
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
    if len(inputs) == len(members) == 1:
        members = {inputs[0].name: next(iter(members.values()))}
    return [_npz_column(path, member) for member in _by_name(members, inputs, str(path))]


def _npz_column(path: Path, member: str) -> _Column:
    """One array of an .npz file, which is read from front to back."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file)

    def read(size: int) -> Iterator[np.ndarray]:
        with _readable(path), zipfile.ZipFile(path) as archive, archive.open(member) as file:
            if fortran or not shape:
                yield from _array_column(np.lib.format.read_array(file, allow_pickle=False)).read(size)
                return
            _npy_header(file)
            for start in range(0, shape[0], size):
                extents = (min(size, shape[0] - start), *shape[1:])
                yield np.frombuffer(_read_exactly(file, math.prod(extents) * dtype.itemsize), dtype).reshape(extents)
            if file.read(1):  # at the end of the member, zipfile compares the checksum
                raise ValueError("it is longer than its header says")

    return _Column(shape, dtype, read)


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format is for structured arrays")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, fortran and len(shape) > 1, dtype


def _read_exactly(file: Any, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise EOFError("it is truncated")
    return content


# --- folders of images ---


def _image_batches(
    folder: Path, calibration: Calibration, inputs: Sequence[TensorSpec], plan: _Plan
) -> Iterator[Batch]:
    read = ImageReader(folder, inputs, calibration.mean, calibration.std)
    files = image_files(folder)[: calibration.samples]
    starts = range(0, len(files), plan.size or 1)
    return ((np.stack([read(file) for file in files[start : start + starts.step]]),) for start in starts)


# --- from batches of a source to arrays ---


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def _as_array(value: Any, where: str) -> np.ndarray:
    """The values of an array or of a torch tensor on any device."""
    if not _is_array(value):
        raise InputError(f"{where}: has a {type(value).__name__} where an array is expected; give {_SOURCES}")
    try:
        return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise InputError(f"{where}: cannot be turned into a numpy array ({''.join(reason)})") from None


def _batch_arrays(batch: Any, inputs: Sequence[TensorSpec], where: str) -> Batch:
    """The part of a batch that the network takes, in the order of its inputs."""
    if isinstance(batch, Mapping):
        return _by_name(batch, inputs, where)
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], tuple | list | Mapping):
        return _batch_arrays(batch[0], inputs, where)  # (inputs, labels)
    given = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    given = given[:1] if len(inputs) == 1 else given
    if len(given) != len(inputs):
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise InputError(f"{where}: has {len(given)} array(s), but the network takes {len(inputs)} ({names})")
    return given


def _by_name(given: Mapping[str, Any], inputs: Sequence[TensorSpec], where: str) -> Batch:
    names = [spec.name for spec in inputs]
    missing = [name for name in names if name not in given]
    extra = [str(name) for name in given if name not in names]
    if missing:
        held = ", ".join(f"'{name}'" for name in given) or "nothing"
        raise InputError(f"{where}: holds {held}, but no '{missing[0]}'{nearest(missing[0], extra)}")
    if extra:
        takes = ", ".join(f"'{name}'" for name in names)
        raise InputError(f"{where}: holds '{extra[0]}', which the network does not take (it takes {takes})")
    return tuple(given[name] for name in names)


# --- checks ---


def _checked_batches(raw: Iterable[Batch], inputs: Sequence[TensorSpec], plan: _Plan) -> Iterator[tuple]:
    """The batches with the network's element types, after a look at every value."""
    before = 0
    for index, batch in enumerate(raw):
        where = f"batch {index}"
        arrays = tuple(_checked(spec, given, where, plan, before) for spec, given in zip(inputs, batch, strict=True))
        if plan.batched:
            counts = {spec.name: len(array) for spec, array in zip(inputs, arrays, strict=True)}
            if len(set(counts.values())) > 1:
                found = ", ".join(f"'{name}': {count}" for name, count in counts.items())
                raise InputError(f"{where}: the inputs have different numbers of samples ({found})")
            before += len(arrays[0])
        yield arrays


def _checked(spec: TensorSpec, given: Any, where: str, plan: _Plan, before: int) -> np.ndarray:
    array = _as_array(given, where)
    _check_kind(spec, array.dtype, where)
    _check_shape(spec, array.shape, where, plan.batched)
    with np.errstate(over="ignore"):  # infinity is reported below
        cast = np.array(array, dtype=spec.dtype, order="C")  # a copy: a loader may fill one buffer again and again
    if cast.dtype.kind == "f":
        finite = np.isfinite(cast)
        if not finite.all():
            raise InputError(f"{where}{_bad_sample(cast, finite, plan, before)} of input '{spec.name}'")
    elif not np.array_equal(cast, array):
        raise InputError(f"{where}: input '{spec.name}' has values that do not fit in {spec.dtype}")
    return cast


def _bad_sample(array: np.ndarray, finite: np.ndarray, plan: _Plan, before: int) -> str:
    place = np.argwhere(~finite)[0]
    value = "NaN" if np.isnan(array[tuple(place)]) else "an infinite value"
    if not plan.batched:
        return f": {value}"
    sample = int(place[0])
    overall = f" (number {before + sample} of all)" if before else ""
    return f", sample {sample}{overall}: {value}"


def _check_kind(spec: TensorSpec, dtype: np.dtype, where: str) -> None:
    """Floats for floats, integers for integers; nothing becomes less precise by surprise."""
    kinds = {"f": "f", "i": "iu", "u": "iu", "b": "b"}.get(np.dtype(spec.dtype).kind, np.dtype(spec.dtype).kind)
    if dtype.kind in kinds:
        return
    advice = "give an array of numbers"
    if kinds == "f" and dtype.kind in "iub":
        advice = "scale and convert it as the network was trained, for images often x.astype('float32') / 255"
    elif dtype.kind in "fiub":
        advice = f"convert it with .astype('{spec.dtype}')"
    raise InputError(f"{where}: input '{spec.name}' is {dtype}, but the network takes {spec.dtype}; {advice}")


def _check_shape(spec: TensorSpec, shape: Sequence[int], where: str, batched: bool) -> None:
    wanted = spec.shape[1:] if batched else spec.shape
    given = tuple(shape[1:] if batched else shape)
    fits = (
        len(shape) == len(spec.shape)
        and len(given) == len(wanted)
        and all(extent is None or extent == size for extent, size in zip(wanted, given, strict=True))
    )
    if fits:
        return
    hint = "; add a batch dimension with x[None]" if len(shape) + 1 == len(spec.shape) and batched else ""
    raise InputError(f"{where}: input '{spec.name}' has shape {tuple(shape)}, but the network takes {spec}{hint}")


# --- sizes ---


def _limited(batches: Iterable[tuple], samples: int | None) -> Iterator[tuple]:
    if samples is None:
        yield from batches
        return
    for batch in batches:
        yield tuple(array[:samples] for array in batch)
        samples -= min(samples, len(batch[0]))
        if not samples:
            return


def _nonempty(batches: Iterable[tuple]) -> Iterator[tuple]:
    empty = True
    for batch in batches:
        if batch[0].shape[:1] == (0,):
            continue
        empty = False
        yield batch
    if empty:
        raise _empty()


def _exact(batches: Iterable[tuple], size: int) -> Iterator[tuple]:
    """Batches of exactly ``size`` samples; what is left over at the end is reported."""
    rest: tuple | None = None
    whole_batches = 0
    for batch in batches:
        joined = batch if rest is None else tuple(map(np.concatenate, zip(rest, batch, strict=True)))
        count = len(joined[0])
        for start in range(0, count - size + 1, size):
            whole_batches += 1
            yield tuple(array[start : start + size] for array in joined)
        whole = count // size * size
        rest = tuple(array[whole:] for array in joined) if whole < count else None
    left = len(rest[0]) if rest is not None else 0
    if not whole_batches and not left:
        raise _empty()
    if not whole_batches:
        raise InputError(
            f"calibration: there are {left} samples, but the network has a fixed batch of {size}; give more, or load "
            "the network with an open batch"
        )
    if left:
        total = whole_batches * size + left
        warnings.warn(
            f"calibration: the last {left} of {total} samples do not fill a batch of {size} and are left out",
            UserWarning,
            stacklevel=2,
        )


def _empty() -> InputError:
    return InputError("calibration: there are no samples; give at least one batch (a generator can be read only once)")
