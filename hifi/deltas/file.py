"""The head delta file: safetensors with one metadata entry; reading trusts nothing in it."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from hifi.backbones.heads import HeadId
from hifi.canonical import parse_json_object
from hifi.deltas.encoding import INT8_LIMIT, SCALE_SUFFIX, STORED_DTYPES, decode, encode, is_weight
from hifi.deltas.metadata import DeltaMetadata
from hifi.deltas.row_names import check_shapes, heads_of_rows, shapes_of
from hifi.errors import DeltaFileError, DeltaFileNotFoundError, InvalidArgumentError
from hifi.files import write_atomically

METADATA_KEY = "hifi"
TASK_HEAD_PREFIX = "task_head."

_LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header
_MESSAGE_CHARACTERS = 400
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}


def write_delta_file(
    path: str | Path,
    *,
    rows: Mapping[str, Tensor],
    task_head: Mapping[str, Tensor],
    metadata: DeltaMetadata,
) -> None:
    """Write a delta file, atomically; equal content gives equal bytes.

    Args:
        path: the file; an existing file is replaced.
        rows: by row name; weights are W' or W'−W, as ``metadata.encoding`` requires.
        task_head: parameter name to tensor.
        metadata: describes the delta.

    Raises:
        InvalidArgumentError: no rows; heads other than the selection's; numbers that are not
            finite, or that float32, the file's widest type, would round.
        StorageError: the file cannot be written, as in ``write_atomically``.
    """
    check_shapes(shapes_of(rows))
    _check_heads(rows, metadata)
    exact = {name: _as_float32(name, tensor) for name, tensor in rows.items()}
    tensors = encode(exact, metadata.encoding)
    for name, tensor in task_head.items():
        tensors[TASK_HEAD_PREFIX + name] = _as_float32(name, tensor)
    for name, tensor in tensors.items():
        _check_numbers(name, tensor)
    # Bytes are deterministic: safetensors sorts the tensors by type and name, and there is only
    # one metadata entry.
    data = save(tensors, {METADATA_KEY: metadata.to_json().decode()})
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)


def read_delta_file(
    path: str | Path,
) -> tuple[dict[str, Tensor], dict[str, Tensor], DeltaMetadata]:
    """Read a delta file without trusting anything in it.

    Names, types and shapes are checked before any tensor is read, so refusing a file of another
    kind costs only reading its header. Nothing in the file is executed.

    Args:
        path: the file.

    Returns:
        Rows (W' or W'−W), task head and metadata; all tensors float32 and finite.

    Raises:
        DeltaFileError: the file does not exist (``DeltaFileNotFoundError``), or is malformed,
            truncated or of another kind; the message names the file and the fault.
    """
    path = Path(path)
    with _delta_file_errors(path):
        _check_regular(path)
        with safe_open(path, framework="pt"):
            pass  # this checks the header
        with path.open("rb") as file:
            header = _read_header(file)
            metadata = _parse_metadata(header.pop("__metadata__", None))
            shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
            dtypes = {name: str(entry["dtype"]) for name, entry in header.items()}
            _check_layout(shapes, dtypes, metadata=metadata)
            file.seek(0)
            # get_tensor is not used: safetensors 0.8 leaks two integers per tensor there.
            loaded = load(file.read())
        tensors = {name: loaded[name] for name in sorted(shapes)}
        for name, tensor in tensors.items():
            _check_numbers(name, tensor)
        head = [name for name in tensors if name.startswith(TASK_HEAD_PREFIX)]
        task_head = {name.removeprefix(TASK_HEAD_PREFIX): tensors.pop(name) for name in head}
        rows = decode(tensors)
        for name, tensor in rows.items():
            _check_numbers(name, tensor)  # a code times its scale may be beyond float32
    return rows, task_head, metadata


@contextmanager
def _delta_file_errors(path: Path) -> Iterator[None]:
    """Turn any error about the file into a DeltaFileError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DeltaFileNotFoundError(f"{path}: no such head delta file") from error
    except OSError as error:
        raise DeltaFileError(f"{path}: cannot be read: {_sanitized(error)}") from error
    except InvalidArgumentError as error:
        raise DeltaFileError(f"{path}: not a head delta: {_sanitized(error)}") from error
    except SafetensorError as error:
        text = f"{path}: not a safetensors file, or truncated: {_sanitized(error)}"
        raise DeltaFileError(text) from error


def _sanitized(error: Exception) -> str:
    """Return an error's text, cut and without control codes, which a hostile file may inject."""
    text = str(error)[:_MESSAGE_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in text)


def _check_regular(path: Path) -> None:
    """Raise for folders and pipes before anything opens them: opening a pipe would block."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        _refuse("path", "a folder" if stat.S_ISDIR(mode) else "a device", "a file")


def _read_header(file: BinaryIO) -> dict[str, Any]:
    """Read the header again to find repeated keys, which safetensors accepts."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    return parse_json_object(file.read(length).decode("utf-8"))


def _parse_metadata(entries: Mapping[str, str] | None) -> DeltaMetadata:
    names = sorted(entries or ())
    if entries is None or names != [METADATA_KEY]:
        _refuse("metadata", names, f"exactly one entry, {METADATA_KEY!r}")
    return DeltaMetadata.from_json(entries[METADATA_KEY])


def _check_layout(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], *, metadata: DeltaMetadata
) -> None:
    """Check every tensor's name, type and shape, and that they are consistent."""
    rows: dict[str, tuple[int, ...]] = {}
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if name.startswith(TASK_HEAD_PREFIX) and name != TASK_HEAD_PREFIX:
            wanted[name] = ("F32", shape)
        elif not name.endswith(SCALE_SUFFIX):
            rows[name] = shape
    check_shapes(rows)
    _check_heads(rows, metadata)
    stored = _DTYPE_NAMES[STORED_DTYPES[metadata.encoding]]
    for name, shape in rows.items():
        wanted[name] = (stored if is_weight(name) else "F32", shape)
        if is_weight(name) and metadata.encoding == "int8":
            wanted[name + SCALE_SUFFIX] = ("F32", shape[:1])
    for name in sorted(wanted.keys() | shapes.keys()):
        found = (dtypes[name], shapes[name]) if name in shapes else None
        if found != wanted.get(name):
            limit = f"{wanted.get(name, 'no such tensor')} in encoding {metadata.encoding!r}"
            _refuse(name, found, limit)


def _check_heads(rows: Mapping[str, object], metadata: DeltaMetadata) -> None:
    heads = heads_of_rows(rows)
    if not heads:
        _refuse("rows", "none", "at least one head")
    layers = metadata.selection.get("layers")
    if layers is None:
        return
    try:
        selected = sorted(
            HeadId(entry["layer"], head) for entry in layers for head in entry["selected"]
        )
    except (TypeError, KeyError, IndexError):
        _refuse("selection.layers", "malformed", "objects with 'layer' and 'selected'")
    if selected != list(heads):
        _refuse("heads", _listed(heads), f"the selection's, {_listed(selected)}")


def _check_numbers(name: str, tensor: Tensor) -> None:
    is_scale = name.endswith(SCALE_SUFFIX) and not name.startswith(TASK_HEAD_PREFIX)
    if tensor.dtype == torch.int8:
        if bool((tensor < -INT8_LIMIT).any()):
            _refuse(name, -INT8_LIMIT - 1, f"codes within ±{INT8_LIMIT}")
    elif not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        _refuse(name, f"{count} of {tensor.numel()} entries are NaN or infinite", "finite numbers")
    elif is_scale and bool((tensor <= 0).any()):
        _refuse(name, float(tensor.min()), "scales above 0")


def _as_float32(name: str, tensor: Tensor) -> Tensor:
    """Copy a tensor as float32; narrower types are widened, wider values must be exact in it."""
    _check_numbers(name, tensor)
    copy = tensor.detach().to("cpu", torch.float32, copy=True)
    if tensor.dtype == torch.float64 and not torch.equal(copy.double(), tensor.cpu()):
        _refuse(name, "float64", "values that are exact in float32, the file's type")
    return copy.contiguous()


def _listed(heads: Iterable[HeadId]) -> str:
    return ", ".join(f"{head.layer}.{head.head}" for head in heads)


def _refuse(what: str, value: object, limit: str) -> NoReturn:
    raise InvalidArgumentError(what, value=value, limit=limit)
