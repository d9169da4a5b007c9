"""Maximum pooling of packed codes, without unpacking them, and of floats, channels last."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tvmq.kernels.conv2d import as_kernel

__all__ = ["byte_max_pool2d", "float_max_pool2d", "max_pool2d"]


def max_pool2d(
    batch: Any,
    height: int,
    width: int,
    words: int,
    word_bits: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int],
    out_size: tuple[int, int],
    planes: int = 1,
    dilation: tuple[int, int] = (1, 1),
) -> tirx.PrimFunc:
    """Function that pools packed codes.

    Parameters
    ----------
    batch : int or tirx.Var
        Number of images.
    height, width, words : int
        Shape of one plane of an image.
    word_bits : {8, 32}
        Bits of a word.
    kernel, strides, dilation : tuple of int
        (rows, columns) of the window.
    padding : tuple of int
        (top, left); taps outside the image, on any side, are ignored.
    out_size : tuple of int
        Rows and columns of the output; this is where rounding up (ceil mode) is decided.
    planes : int
        Bit planes of a code; codes compare as unsigned integers, plane 0 the lowest.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` words [N, H, W, P, Cw] and ``flip`` words [Cw] to ``store`` words [N, OH, OW, P, Cw].  Channels
        whose flip bit is set get the minimum: the maximum of the complements, complemented.

    Raises
    ------
    ValueError
        If a size is out of range, or a window lies wholly outside the image.
    """
    if word_bits not in (8, 32):
        raise ValueError(f"word_bits must be 8 or 32, got {word_bits}")
    if not 1 <= planes <= 8:
        raise ValueError(f"codes have 1 to 8 bit planes, got {planes}")
    _check_windows((height, width), kernel, strides, padding, out_size, dilation)
    dtype = f"uint{word_bits}"
    data = te.placeholder((batch, height, width, planes, words), dtype, "data")
    flip = te.placeholder((words,), dtype, "flip")
    kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")

    def taps(n: Any, y: Any, x: Any, w: Any) -> tuple:
        row, column, inside = _tap((y, x), (kh, kw), (height, width), strides, padding, dilation)
        zero = tirx.const(0, dtype)
        return tuple(
            tirx.if_then_else(inside, data[n, row, column, plane, w] ^ flip[w], zero) for plane in range(planes)
        )

    shape = (batch, *out_size, words)
    axes = [kh, kw]
    if planes == 1:
        either = te.comm_reducer(lambda a, b: a | b, lambda kind: tirx.const(0, kind), name="either")
        maxima = [te.compute(shape, lambda *index: either(taps(*index)[0], axis=axes), name="maximum")]
    else:
        larger = te.comm_reducer(_larger, lambda *kinds: tuple(tirx.const(0, kind) for kind in kinds), name="larger")
        maxima = list(te.compute(shape, lambda *index: larger(taps(*index), axis=axes), name="maximum"))

    def store(n: Any, y: Any, x: Any, plane: Any, w: Any) -> Any:
        result = maxima[-1][n, y, x, w]
        for index in reversed(range(planes - 1)):
            result = tirx.Select(plane == index, maxima[index][n, y, x, w], result)
        return result ^ flip[w]

    output = te.compute((batch, *out_size, planes, words), store, name="store")
    return as_kernel(te.create_prim_func([data, flip, output]), "max_pool2d")


def byte_max_pool2d(
    batch: Any,
    height: int,
    width: int,
    length: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int],
    out_size: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tirx.PrimFunc:
    """Function that pools codes that are bytes.

    Parameters
    ----------
    batch : int or tirx.Var
        Number of images.
    height, width, length : int
        Shape of an image; a pixel has `length` bytes.
    kernel, strides, padding, out_size, dilation
        As for :func:`max_pool2d`.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` uint8 [N, H, W, 1, length] and ``flip`` uint8 [length] to ``store`` uint8 [N, OH, OW, 1, length].
        Channels whose flip byte is 255 get the minimum, those whose byte is 0 the maximum.

    Raises
    ------
    ValueError
        If a window lies wholly outside the image.
    """
    _check_windows((height, width), kernel, strides, padding, out_size, dilation)
    data = te.placeholder((batch, height, width, 1, length), "uint8", "data")
    flip = te.placeholder((length,), "uint8", "flip")
    kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")

    def largest(n: Any, y: Any, x: Any, c: Any) -> Any:
        row, column, inside = _tap((y, x), (kh, kw), (height, width), strides, padding, dilation)
        value = tirx.if_then_else(inside, data[n, row, column, 0, c] ^ flip[c], tirx.const(0, "uint8"))
        return te.max(value, axis=[kh, kw])

    maximum = te.compute((batch, *out_size, length), largest, name="maximum")
    output = te.compute(
        (batch, *out_size, 1, length), lambda n, y, x, _plane, c: maximum[n, y, x, c] ^ flip[c], name="store"
    )
    return as_kernel(te.create_prim_func([data, flip, output]), "max_pool2d")


def float_max_pool2d(
    batch: Any,
    height: int,
    width: int,
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int],
    out_size: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tirx.PrimFunc:
    """Function that pools floats.

    Parameters
    ----------
    batch : int or tirx.Var
        Number of images.
    height, width, channels : int
        Shape of an image.
    kernel, strides, padding, out_size, dilation
        As for :func:`max_pool2d`.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` float32 [N, H, W, C] to ``store`` float32 [N, OH, OW, C].  A window starts from the lowest finite
        number and takes its taps row by row, as in TVM's own pool, so that NaN and zeros of either sign give the same.

    Raises
    ------
    ValueError
        If a window lies wholly outside the image.
    """
    _check_windows((height, width), kernel, strides, padding, out_size, dilation)
    data = te.placeholder((batch, height, width, channels), "float32", "data")
    kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")

    def largest(n: Any, y: Any, x: Any, c: Any) -> Any:
        row, column, inside = _tap((y, x), (kh, kw), (height, width), strides, padding, dilation)
        value = tirx.if_then_else(inside, data[n, row, column, c], tirx.min_value("float32"))
        return te.max(value, axis=[kh, kw])

    shape = (batch, *out_size, channels)
    maximum = te.compute(shape, largest, name="maximum")
    output = te.compute(shape, lambda *index: maximum(*index), name="store")
    return as_kernel(te.create_prim_func([data, output]), "float_max_pool2d")


def _tap(
    place: tuple[Any, Any],
    tap: tuple[Any, Any],
    size: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Any, Any, Any]:
    """Row and column of a tap of the window of an output place, and whether they are inside the image."""
    row, column = (place[axis] * strides[axis] + tap[axis] * dilation[axis] - padding[axis] for axis in range(2))
    return row, column, tirx.all(row >= 0, row < size[0], column >= 0, column < size[1])


def _check_windows(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int],
    out_size: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    for axis, extent in enumerate(size):
        reach = dilation[axis] * (kernel[axis] - 1)
        last = (out_size[axis] - 1) * strides[axis] - padding[axis]
        if padding[axis] > reach or last >= extent or out_size[axis] < 1:
            raise ValueError(f"a pooling window lies outside the image: size={extent} {kernel=} {padding=} {out_size=}")


def _larger(left: tuple, right: tuple) -> tuple:
    """The larger of two codes in every bit position of a word, decided from the highest plane down."""
    dtype = left[0].ty.dtype
    greater = tirx.const(0, dtype)
    smaller = tirx.const(0, dtype)
    for a, b in zip(reversed(left), reversed(right), strict=True):
        greater, smaller = greater | (a & ~b & ~smaller), smaller | (b & ~a & ~greater)
    return tuple((a & ~smaller) | (b & smaller) for a, b in zip(left, right, strict=True))
