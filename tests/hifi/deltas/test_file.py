"""hifi.deltas.file, writing and reading: equal work gives equal bytes."""

from __future__ import annotations

import gc
import json
import struct
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hifi import __version__
from hifi.backbones.heads import HeadId
from hifi.deltas.delta import HeadDelta
from hifi.errors import InvalidArgumentError, StorageError
from tests.architectures import tiny_model
from tests.deltas import (
    ENCODINGS,
    HEADS,
    SELECTION,
    equal_bits,
    hand_made_delta,
    join_safetensors,
    split_safetensors,
)

QUERY = "layers.0.heads.1.query.weight"


class TestSave:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_writes_the_contracts_tensors(self, delta: HeadDelta, tmp_path: Path, encoding: str):
        delta.save(tmp_path / "d", encoding=encoding)
        tensors = load_file(tmp_path / "d")
        stored = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
        expected = {}
        for head in ("layers.0.heads.1", "layers.2.heads.0", "layers.2.heads.1"):
            for projection in ("query", "key", "value"):
                expected[f"{head}.{projection}.weight"] = (stored[encoding], (8, 32))
                expected[f"{head}.{projection}.bias"] = (torch.float32, (8,))
                if encoding == "int8":
                    expected[f"{head}.{projection}.weight.scale"] = (torch.float32, (8,))
        expected["task_head.classifier.weight"] = (torch.float32, (2, 32))
        expected["task_head.classifier.bias"] = (torch.float32, (2,))
        assert {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} == expected

    def test_writes_the_contracts_metadata_and_nothing_else(self, delta: HeadDelta, tmp_path: Path):
        delta.save(tmp_path / "d", encoding="int8")
        with safe_open(tmp_path / "d", framework="pt") as file:
            entries = file.metadata()
        assert list(entries) == ["hifi"]
        metadata = json.loads(entries["hifi"])
        assert metadata == {
            "architecture": "bert",
            "compute_dtype": "float32",
            "created_by": f"hifi/{__version__}",
            "encoding": "int8",
            "fingerprint": delta.metadata.fingerprint,
            "format_version": 1,
            "labels": ["no", "yes"],
            "model": "owner/tiny",
            "revision": "0123abcd",
            "rows_fingerprint": delta.metadata.rows_fingerprint,
            "selection": SELECTION,
            "task": {"type": "classification", "max_length": 128, "text": ["sentence"]},
            "training": {"epochs": 3, "learning_rate": 3e-4},
        }
        canonical = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        assert entries["hifi"] == canonical

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_equal_content_gives_equal_bytes_in_whatever_order_it_comes(
        self, delta: HeadDelta, files: dict[str, bytes], tmp_path: Path, encoding: str
    ):
        shuffled = replace(
            delta,
            rows=dict(reversed(delta.rows.items())),
            base=dict(sorted(delta.base.items(), key=lambda item: item[0][::-1])),
            task_head=dict(reversed(delta.task_head.items())),
            metadata=replace(
                delta.metadata,
                training=dict(reversed(delta.metadata.training.items())),
                task={**dict(reversed(delta.metadata.task.items())), "text": ("sentence",)},
            ),
        )
        shuffled.save(tmp_path / "d", encoding=encoding)
        assert (tmp_path / "d").read_bytes() == files[encoding]

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_saving_what_was_loaded_gives_the_same_bytes(
        self, files: dict[str, bytes], tmp_path: Path, encoding: str
    ):
        (tmp_path / "d").write_bytes(files[encoding])
        HeadDelta.load(tmp_path / "d").save(tmp_path / "again", encoding=encoding)
        assert (tmp_path / "again").read_bytes() == files[encoding]

    def test_the_encodings_take_a_half_and_a_quarter_of_the_room(self, tmp_path: Path):
        model = tiny_model("bert", hidden_size=256, num_hidden_layers=1, intermediate_size=8)
        wide = hand_made_delta(model, heads=[HeadId(0, 0)], task_head=False)
        sizes = []
        for encoding in ENCODINGS:
            wide.save(tmp_path / encoding, encoding=encoding)
            sizes.append((tmp_path / encoding).stat().st_size)
        assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.02)
        assert sizes[2] / sizes[0] == pytest.approx(0.25, abs=0.02)

    def test_tensors_that_share_memory_are_no_obstacle(self, delta: HeadDelta, tmp_path: Path):
        shared = torch.randn(8, 32)
        rows = {**delta.rows, QUERY: shared, QUERY.replace("query", "key"): shared}
        replace(delta, rows=rows).save(tmp_path / "d")
        assert torch.equal(HeadDelta.load(tmp_path / "d").rows[QUERY], shared)

    def test_columns_of_a_larger_matrix_are_no_obstacle(self, delta: HeadDelta, tmp_path: Path):
        column_major = torch.randn(32, 8).T
        replace(delta, rows={**delta.rows, QUERY: column_major}).save(tmp_path / "d")
        assert torch.equal(HeadDelta.load(tmp_path / "d").rows[QUERY], column_major)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_rows_in_another_dtype_are_stored_without_loss(
        self, delta: HeadDelta, tmp_path: Path, dtype: torch.dtype
    ):
        rows = {name: tensor.bfloat16().to(dtype) for name, tensor in delta.rows.items()}
        replace(delta, rows=rows).save(tmp_path / "d")
        loaded = HeadDelta.load(tmp_path / "d").rows
        assert equal_bits({n: t.to(dtype) for n, t in loaded.items()}, rows)


class TestRefusedSave:
    def refused(
        self, delta: HeadDelta, folder: Path, match: str, *, encoding: str = "float32"
    ) -> None:
        with pytest.raises(InvalidArgumentError, match=match):
            delta.save(folder / "d", encoding=encoding)
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("encoding", ENCODINGS)
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_rows_that_are_not_finite(
        self, delta: HeadDelta, tmp_path: Path, encoding: str, value: float
    ):
        broken = delta.rows[QUERY].clone()
        broken[0, :3] = value
        bad = replace(delta, rows={**delta.rows, QUERY: broken})
        self.refused(bad, tmp_path, r"query\.weight='3 of 256 entries", encoding=encoding)

    def test_a_task_head_that_is_not_finite(self, delta: HeadDelta, tmp_path: Path):
        bad = replace(delta, task_head={"classifier.bias": torch.tensor([0.0, float("nan")])})
        self.refused(bad, tmp_path, "classifier.bias='1 of 2 entries")

    def test_differences_beyond_the_encodings_range(self, delta: HeadDelta, tmp_path: Path):
        greatest = torch.finfo(torch.float32).max
        bad = replace(
            delta,
            rows={**delta.rows, QUERY: torch.full((8, 32), greatest)},
            base={**delta.base, QUERY: torch.full((8, 32), -greatest)},
        )
        self.refused(bad, tmp_path, "256 of 256 entries", encoding="bfloat16")
        self.refused(bad, tmp_path, "256 of 256 entries", encoding="int8")

    def test_float64_values_that_would_be_rounded(self, delta: HeadDelta, tmp_path: Path):
        rows = {name: tensor.double() + 1e-12 for name, tensor in delta.rows.items()}
        self.refused(replace(delta, rows=rows), tmp_path, "'float64' is not allowed")

    def test_no_heads(self, delta: HeadDelta, tmp_path: Path):
        empty = replace(delta, rows={}, base={}, metadata=replace(delta.metadata, selection={}))
        self.refused(empty, tmp_path, "at least one head")

    def test_heads_other_than_the_selections(self, delta: HeadDelta, tmp_path: Path):
        selection = {"layers": [{"layer": 0, "selected": [1, 3]}]}
        bad = replace(delta, metadata=replace(delta.metadata, selection=selection))
        self.refused(bad, tmp_path, r"heads='0\.1, 2\.0, 2\.1' .*0\.1, 0\.3")

    def test_an_unknown_encoding(self, delta: HeadDelta, tmp_path: Path):
        self.refused(delta, tmp_path, "encoding='int4'.*float32", encoding="int4")

    @pytest.mark.parametrize(("encoding", "other"), [*permutations(ENCODINGS, 2)])
    def test_another_encoding_without_the_backbones_rows(
        self, files: dict[str, bytes], tmp_path: Path, encoding: str, other: str
    ):
        path = tmp_path / "source"
        path.write_bytes(files[encoding])
        loaded = HeadDelta.load(path)
        path.unlink()
        self.refused(loaded, tmp_path, "with_base", encoding=other)

    def test_a_folder_that_does_not_exist(self, delta: HeadDelta, tmp_path: Path):
        with pytest.raises(StorageError, match="No such file or directory"):
            delta.save(tmp_path / "missing" / "d")


class TestLoad:
    def test_float32_gives_the_rows_bit_for_bit(self, delta: HeadDelta, tmp_path: Path):
        delta.save(tmp_path / "d")
        loaded = HeadDelta.load(str(tmp_path / "d"))
        assert loaded.values == "rows"
        assert equal_bits(loaded.rows, delta.rows)
        assert equal_bits(loaded.task_head, delta.task_head)
        assert loaded.metadata == delta.metadata
        assert loaded.heads == HEADS

    @pytest.mark.parametrize(("encoding", "tolerance"), [("bfloat16", 2**-8), ("int8", 0.5 / 127)])
    def test_encoded_differences_are_as_near_as_the_encoding_allows(
        self, delta: HeadDelta, tmp_path: Path, encoding: str, tolerance: float
    ):
        delta.save(tmp_path / "d", encoding=encoding)
        loaded = HeadDelta.load(tmp_path / "d")
        assert loaded.values == "differences"
        for name, tensor in loaded.rows.items():
            if name.endswith(".bias"):
                assert torch.equal(tensor, delta.rows[name])  # not a difference, and exact
                continue
            exact = delta.rows[name] - delta.base[name]
            per_row = exact.abs().amax(dim=1, keepdim=True)
            scale = exact.abs() if encoding == "bfloat16" else per_row
            assert ((tensor - exact).abs() <= tolerance * 1.0001 * scale).all()
        assert equal_bits(loaded.task_head, delta.task_head)

    def test_survives_the_file_being_written_over(self, delta: HeadDelta, tmp_path: Path):
        delta.save(tmp_path / "d")
        loaded = HeadDelta.load(tmp_path / "d")
        (tmp_path / "d").write_bytes(b"\xff" * (tmp_path / "d").stat().st_size)
        assert equal_bits(loaded.rows, delta.rows)

    def test_leaves_nothing_in_memory(self, delta: HeadDelta, tmp_path: Path):
        delta.save(tmp_path / "d")
        HeadDelta.load(tmp_path / "d")  # what is made once
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(50):
            HeadDelta.load(tmp_path / "d")
        gc.collect()
        assert sys.getallocatedblocks() - before < 50 * len(delta.rows) / 2

    def test_reads_a_file_that_another_library_wrote(
        self, delta: HeadDelta, files: dict[str, bytes], tmp_path: Path
    ):
        header, body = split_safetensors(files["float32"])
        text = json.dumps(json.loads(header["__metadata__"]["hifi"]), indent=1)
        header["__metadata__"]["hifi"] = text
        shuffled = dict(reversed(header.items()))
        (tmp_path / "d").write_bytes(join_safetensors(shuffled, body))
        assert equal_bits(HeadDelta.load(tmp_path / "d").rows, delta.rows)

    def test_reads_tensors_that_do_not_lie_at_multiples_of_their_size(
        self, delta: HeadDelta, files: dict[str, bytes], tmp_path: Path
    ):
        header, body = split_safetensors(files["float32"])
        text = json.dumps(header).encode()
        text += b" " * (1 - len(text) % 8)
        (tmp_path / "askew").write_bytes(struct.pack("<Q", len(text)) + text + body)
        assert equal_bits(HeadDelta.load(tmp_path / "askew").rows, delta.rows)
