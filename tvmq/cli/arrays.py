"""Reading and writing the arrays that go into and come out of a network."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvmq.errors import InputError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read_arrays", "write_arrays"]


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays of an ``.npz`` or ``.npy`` file, in the order of a network's inputs.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    names : sequence of str
        Names of the network's inputs.  An ``.npz`` file that holds arrays of all these names may hold others too;
        one that holds as many arrays as there are inputs is taken in the order of the file.

    Returns
    -------
    list of numpy.ndarray
        One per name, with the dtypes and shapes of the file.

    Raises
    ------
    InputError
        If the file cannot be read, or it is not clear which array belongs to which input.
    """
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {path.stem: loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an .npz or .npy file of plain arrays ({error})") from None
    if set(names) <= set(arrays):
        return [arrays[name] for name in names]
    if len(arrays) == len(names):
        return list(arrays.values())
    raise InputError(
        f"{path}: holds {', '.join(arrays) or 'no arrays'}, but the network's inputs are {', '.join(names)}; "
        "save them under these names with numpy.savez"
    )


def write_arrays(path: Path, names: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
    """Write an ``.npz`` file, completely or not at all.

    Parameters
    ----------
    path : pathlib.Path
        The file; its folder has to exist.
    names : sequence of str
        One name per array.
    arrays : sequence of numpy.ndarray
        What to write.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    import numpy as np

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # numpy.savez takes the names as keywords, and cannot write an array that is called "file"
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in zip(names, arrays, strict=True):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
