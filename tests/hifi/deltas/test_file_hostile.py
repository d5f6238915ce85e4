"""hifi.deltas.file reading hostile files: it trusts none."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hifi.deltas.delta import HeadDelta
from hifi.errors import DeltaFileError, DeltaFileNotFoundError
from tests.architectures import tiny_model
from tests.deltas import (
    ENCODINGS,
    join_safetensors,
    split_safetensors,
)

pytestmark = pytest.mark.matrix
QUERY = "layers.0.heads.1.query.weight"
HASH = "sha256:" + "0" * 64


Change = Callable[[dict[str, Any], dict[str, Any]], None]


def in_metadata(name: str, value: object) -> Change:
    return lambda _, metadata: metadata.update({name: value})


def in_tensor(name: str, **entry: object) -> Change:
    return lambda header, _: header[name].update(entry)


def renamed(old: str, new: str) -> Change:
    return lambda header, _: header.update({new: header.pop(old)})


class TestRefusedFiles:
    """Every malformed, truncated or foreign file raises a DeltaFileError that names it."""

    def refused(self, folder: Path, data: bytes, match: str) -> None:
        path = folder / "hostile.safetensors"
        path.write_bytes(data)
        with pytest.raises(DeltaFileError, match=match) as caught:
            HeadDelta.load(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (in_metadata("format_version", 2), "format_version=2.*version 1"),
            (in_metadata("format_version", True), "format_version=True"),
            (in_metadata("format_version", "1"), "format_version='1'"),
            (in_metadata("format_version", None), "format_version=None"),
            (in_metadata("encoding", "int4"), "encoding='int4'"),
            (in_metadata("encoding", ["float32"]), "encoding="),
            (in_metadata("encoding", "int8"), "F32.*I8.*encoding 'int8'"),
            (in_metadata("compute_dtype", "float8"), "compute_dtype='float8'"),
            (in_metadata("fingerprint", "sha256:xyz"), "fingerprint='sha256:xyz'"),
            (in_metadata("rows_fingerprint", HASH.upper()), "rows_fingerprint="),
            (in_metadata("model", ""), "model=''"),
            (in_metadata("model", 3), "model=3"),
            (in_metadata("model", "/home/me/model"), "model='/home/me/model'.*not a path"),
            (in_metadata("architecture", None), "architecture=None"),
            (in_metadata("revision", 7), "revision=7"),
            (in_metadata("task", []), "task="),
            (in_metadata("labels", "yes"), "labels='yes'"),
            (in_metadata("labels", [1.5]), "labels="),
            (in_metadata("labels", [True]), "labels="),
            (in_metadata("selection", None), "selection=None"),
            (in_metadata("selection", {"layers": 3}), "selection.layers='malformed'"),
            (in_metadata("selection", {"layers": [{"layer": 0}]}), "selection.layers="),
            (
                in_metadata("selection", {"layers": [{"layer": 0, "selected": [{}]}]}),
                "selection|heads",
            ),
            (
                in_metadata("selection", {"layers": [{"layer": 0, "selected": ["1", 1]}]}),
                "selection.layers=",
            ),
            (
                in_metadata("selection", {"layers": [{"layer": 0, "selected": [1, 2]}]}),
                r"heads='0\.1, 2\.0, 2\.1'",
            ),
            (in_metadata("training", 3), "training=3"),
            (in_metadata("created_by", None), "created_by=None"),
            (in_metadata("job", "job_1"), "job.*no such fields"),
            (lambda _, metadata: metadata.pop("task"), "task.*missing"),
            (renamed(QUERY, "layers.00.heads.1.query.weight"), "tensor name='layers.00"),
            (renamed(QUERY, "layers.-1.heads.1.query.weight"), "tensor name='layers.-1"),
            (renamed(QUERY, f"layers.{10**30}.heads.1.query.weight"), "tensor name="),
            (renamed(QUERY, "layers.0.heads.1.output.weight"), "tensor name="),
            (renamed(QUERY, "bert.weight"), "tensor name='bert.weight'"),
            (renamed(QUERY, "layers.1.heads.1.query.weight"), "query.weight='missing'"),
            (renamed(QUERY, QUERY + ".scale"), "query.weight='missing'"),
            (renamed("task_head.classifier.bias", "task_head."), "tensor name='task_head.'"),
            (renamed("task_head.classifier.bias", QUERY + ".scale"), "no such tensor"),
            (in_tensor(QUERY, shape=[32, 8]), r"query\.bias=\[8\].*shape \[32\]"),
            (in_tensor(QUERY, shape=[256]), "a matrix"),
            (in_tensor("layers.2.heads.1.key.weight", shape=[4, 64]), r"layers\.2\.heads\.1\.key"),
            (in_tensor("layers.0.heads.1.key.bias", shape=[2, 4]), r"key\.bias=\[2, 4\]"),
            (in_tensor("layers.0.heads.1.key.bias", dtype="I32"), r"key\.bias=\('I32'"),
            (in_tensor("task_head.classifier.bias", dtype="I32"), r"classifier\.bias=\('I32'"),
            (in_tensor(QUERY, shape=[2**62, 2**62]), "overflow"),
            (in_tensor(QUERY, data_offsets=[0, 4]), "not a safetensors file"),
            (in_tensor(QUERY, data_offsets=[0, 2**60]), "not a safetensors file"),
            (in_tensor(QUERY, dtype="F17"), "not a safetensors file"),
            (lambda header, _: header.pop(QUERY), "not a safetensors file"),
            (lambda header, _: header["__metadata__"].update(format="pt"), "exactly one entry"),
        ],
    )
    def test_a_changed_header(
        self, files: dict[str, bytes], tmp_path: Path, change: Change, match: str
    ):
        header, body = split_safetensors(files["float32"])
        metadata = json.loads(header["__metadata__"]["hifi"])
        change(header, metadata)
        header["__metadata__"]["hifi"] = json.dumps(metadata)
        self.refused(tmp_path, join_safetensors(header, body), match)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("", "JSON object"),
            ("[]", "JSON object"),
            ("null", "JSON object"),
            ('{"model":"a","model":"b"}', "twice: 'model'"),
            ('{"training":{"x":1,"x":1}}', "twice: 'x'"),
            ('{"training":{"x":NaN}}', "NaN is not a finite number"),
            ('{"training":{"x":-Infinity}}', "not a finite number"),
            ('{"training":{"x":1e999}}', "1e999 is not a finite number"),
            ('{"x":' + "9" * 5000 + "}", "JSON object"),
            ('{"x":' + "[" * 100_000 + "]" * 100_000 + "}", "JSON object"),
            ('{"x":"\\ud800"}', "format_version"),
            ('{"x":', "JSON object"),
        ],
    )
    def test_metadata_that_is_not_clean_json(
        self, files: dict[str, bytes], tmp_path: Path, text: str, match: str
    ):
        header, body = split_safetensors(files["float32"])
        header["__metadata__"]["hifi"] = text
        self.refused(tmp_path, join_safetensors(header, body), match)

    def test_a_text_that_is_not_unicode(self, files: dict[str, bytes], tmp_path: Path):
        header, body = split_safetensors(files["float32"])
        metadata = json.loads(header["__metadata__"]["hifi"])
        metadata["training"] = {"x": "\ud800"}
        header["__metadata__"]["hifi"] = json.dumps(metadata)
        self.refused(tmp_path, join_safetensors(header, body), "surrogates not allowed")

    def test_metadata_that_is_missing(self, files: dict[str, bytes], tmp_path: Path):
        header, body = split_safetensors(files["float32"])
        del header["__metadata__"]
        self.refused(tmp_path, join_safetensors(header, body), r"metadata=\[\]")

    def test_a_tensor_that_is_named_twice(self, files: dict[str, bytes], tmp_path: Path):
        header, body = split_safetensors(files["float32"])
        text = json.dumps(header)
        entry = json.dumps(header[QUERY])
        self.refused(tmp_path, join_safetensors(f'{{"{QUERY}": {entry}, {text[1:]}', body), "twice")

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_values_that_are_not_finite(
        self, files: dict[str, bytes], tmp_path: Path, encoding: str
    ):
        header, body = split_safetensors(files[encoding])
        changed = bytearray(body)
        name = "layers.0.heads.1.key.bias"
        start, _ = header[name]["data_offsets"]
        changed[start : start + 4] = struct.pack("<f", float("nan"))
        self.refused(
            tmp_path, join_safetensors(header, bytes(changed)), "key.bias='1 of 8 entries are NaN"
        )

    @pytest.mark.parametrize(
        ("scale", "match"),
        [
            (0.0, "scales above 0"),
            (-1.0, "scales above 0"),
            (float("inf"), "1 of 8 entries"),
            (3e38, "NaN or infinite"),
        ],
    )
    def test_scales_that_mean_nothing(
        self, files: dict[str, bytes], tmp_path: Path, scale: float, match: str
    ):
        header, body = split_safetensors(files["int8"])
        changed = bytearray(body)
        start, _ = header[QUERY + ".scale"]["data_offsets"]
        changed[start : start + 4] = struct.pack("<f", scale)
        self.refused(tmp_path, join_safetensors(header, bytes(changed)), match)

    def test_the_code_that_has_no_positive_twin(self, files: dict[str, bytes], tmp_path: Path):
        header, body = split_safetensors(files["int8"])
        changed = bytearray(body)
        changed[header[QUERY]["data_offsets"][0]] = 0x80
        self.refused(tmp_path, join_safetensors(header, bytes(changed)), "±127")

    def test_an_int8_file_without_scales(self, files: dict[str, bytes], tmp_path: Path):
        (tmp_path / "d").write_bytes(files["int8"])
        with safe_open(tmp_path / "d", framework="pt") as file:
            entries = file.metadata()
        tensors = {n: t for n, t in load_file(tmp_path / "d").items() if not n.endswith(".scale")}
        save_file(tensors, tmp_path / "e", entries)
        self.refused(tmp_path, (tmp_path / "e").read_bytes(), "scale=None")

    def test_a_file_without_heads(self, files: dict[str, bytes], tmp_path: Path):
        (tmp_path / "d").write_bytes(files["float32"])
        with safe_open(tmp_path / "d", framework="pt") as file:
            entries = file.metadata()
        save_file({"task_head.a": torch.zeros(2)}, tmp_path / "e", entries)
        self.refused(tmp_path, (tmp_path / "e").read_bytes(), "at least one head")

    def test_a_safetensors_file_of_something_else(self, tmp_path: Path):
        tiny_model("bert").save_pretrained(tmp_path)
        data = (tmp_path / "model.safetensors").read_bytes()
        self.refused(tmp_path, data, r"metadata=\['format'\].*'hifi'")

    def test_a_pickle_is_not_executed(self, tmp_path: Path):
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "executed"),)

        self.refused(tmp_path, pickle.dumps(Bomb()), "not a safetensors file")
        torch.save({"a": torch.zeros(1)}, tmp_path / "torch")
        self.refused(tmp_path, (tmp_path / "torch").read_bytes(), "not a safetensors file")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0" * 7,
            b"\0" * 8,
            b"hello, world, this is not it",
            struct.pack("<Q", 2**64 - 1) + b"{}",
            struct.pack("<Q", 90_000_000) + b"{}",
            struct.pack("<Q", 2) + b"{}",
            struct.pack("<Q", 2) + b"\xff\xff",
            struct.pack("<Q", 8) + b"[" * 8,
            join_safetensors('{"a":' + "[" * 10_000 + "]" * 10_000 + "}", b""),
        ],
    )
    def test_rubbish(self, tmp_path: Path, data: bytes):
        self.refused(tmp_path, data, "safetensors|exactly one entry")

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_a_truncated_or_prolonged_file(
        self, files: dict[str, bytes], tmp_path: Path, encoding: str
    ):
        data = files[encoding]
        for length in (*range(0, len(data), 97), len(data) - 1):
            self.refused(tmp_path, data[:length], "not a safetensors file, or truncated")
        self.refused(tmp_path, data + b"\0", "not a safetensors file, or truncated")

    def test_a_folder(self, tmp_path: Path):
        with pytest.raises(DeltaFileError, match=r"'a folder'"):
            HeadDelta.load(tmp_path)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DeltaFileError, match=r"pipe: .*'a device'"):
            HeadDelta.load(tmp_path / "pipe")

    def test_a_missing_file_is_also_a_file_not_found_error(self, tmp_path: Path):
        with pytest.raises(DeltaFileNotFoundError, match="d: no such head delta file") as caught:
            HeadDelta.load(tmp_path / "d")
        assert isinstance(caught.value, DeltaFileError)
        assert isinstance(caught.value, FileNotFoundError)

    def test_messages_carry_neither_control_codes_nor_megabytes(
        self, files: dict[str, bytes], tmp_path: Path
    ):
        header, body = split_safetensors(files["float32"])
        metadata = json.loads(header["__metadata__"]["hifi"])
        metadata["\x1b[31m" + "x" * 1_000_000] = 1
        header["__metadata__"]["hifi"] = json.dumps(metadata)
        (tmp_path / "d").write_bytes(join_safetensors(header, body))
        with pytest.raises(DeltaFileError) as caught:
            HeadDelta.load(tmp_path / "d")
        assert len(str(caught.value)) < 1000
        assert "\x1b" not in str(caught.value)


class TestFuzz:
    """Whatever the bytes, the outcome is a valid delta or a DeltaFileError."""

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_random_damage(self, files: dict[str, bytes], tmp_path: Path, encoding: str):
        generator = random.Random(f"damage {encoding}")  # noqa: S311 - damage, not a secret
        data = files[encoding]
        (length,) = struct.unpack("<Q", data[:8])
        path = tmp_path / "damaged"
        outcomes = {"refused": 0, "valid": 0}
        for round_number in range(300):
            damaged = bytearray(data)
            # Half of the damage goes to the header, which is where the structure is.
            end = 8 + length if round_number % 2 else len(data)
            for _ in range(generator.choice([1, 1, 2, 8])):
                damaged[generator.randrange(end)] = generator.randrange(256)
            if generator.random() < 0.1:
                cut = generator.randrange(len(damaged))
                del damaged[cut : cut + generator.randrange(1, 64)]
            path.write_bytes(damaged)
            try:
                loaded = HeadDelta.load(path)
            except DeltaFileError:
                outcomes["refused"] += 1
            else:
                self.check_valid(loaded, tmp_path)
                outcomes["valid"] += 1
        assert min(outcomes.values()) > 25, outcomes

    def check_valid(self, loaded: HeadDelta, folder: Path) -> None:
        """A valid delta is finite and survives a round trip through a file."""
        tensors = [*loaded.rows.values(), *loaded.task_head.values()]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        loaded.save(folder / "again", encoding=loaded.metadata.encoding)
        again = HeadDelta.load(folder / "again")
        assert again.metadata == loaded.metadata
        assert again.rows.keys() == loaded.rows.keys()
        assert all(
            torch.allclose(tensor, loaded.rows[name], rtol=1e-6, atol=loaded_step(loaded, name))
            for name, tensor in again.rows.items()
        )


def loaded_step(delta: HeadDelta, name: str) -> float:
    """A damaged int8 scale is one that our rounding would not choose."""
    return float(delta.rows[name].abs().max()) / 127 if delta.metadata.encoding == "int8" else 0.0
