"""hifi.deltas.metadata: plain JSON, canonical, and nothing of the machine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi import __version__
from hifi.canonical import canonical_json
from hifi.deltas.metadata import DeltaMetadata, portable_model_name
from hifi.errors import HifiError, InvalidArgumentError

HASH = "sha256:" + "0" * 64
REQUIRED: dict[str, Any] = {
    "model": "m",
    "revision": None,
    "fingerprint": HASH,
    "rows_fingerprint": HASH,
    "architecture": "bert",
    "compute_dtype": "float32",
}
FIELDS = {
    **REQUIRED,
    "task": None,
    "labels": None,
    "selection": {},
    "training": {},
    "created_by": "hifi/0",
    "encoding": "float32",
    "format_version": 1,
}


class TestDeltaMetadata:
    def metadata(self, **fields: Any) -> DeltaMetadata:
        return DeltaMetadata(**{**REQUIRED, **fields})

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "torch.float32"])
    def test_refuses_a_dtype_in_which_nothing_is_tuned(self, dtype: str):
        with pytest.raises(InvalidArgumentError, match=f"compute_dtype='{dtype}'"):
            self.metadata(compute_dtype=dtype)

    def test_records_the_version_that_wrote_it(self):
        assert self.metadata().created_by == f"hifi/{__version__}"

    def test_copies_its_arguments(self):
        training = {"schedule": [1, 2]}
        metadata = self.metadata(training=training)
        training["schedule"].append(3)
        assert metadata.training == {"schedule": [1, 2]}

    @pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}, b"x", "\ud800"])
    def test_refuses_values_that_json_cannot_hold(self, value: object):
        with pytest.raises(InvalidArgumentError, match="metadata"):
            self.metadata(training={"x": value})

    @pytest.mark.parametrize(
        ("given_name", "kept"),
        [
            ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
            ("owner/name", "owner/name"),
            ("/models/owner/name", "name"),
            ("/models/owner/name/", "name"),
            ("./name", "name"),
            ("../models/name", "name"),
            ("~/name", "name"),
            ("models/owner/name", "name"),
            ("name/", "name"),
            ("C:\\models\\name", "name"),
            ("C:/models/name", "name"),
            ("\\\\host\\share\\name", "name"),
        ],
    )
    def test_keeps_no_path(self, given_name: str, kept: str):
        assert portable_model_name(given_name) == kept
        assert portable_model_name(kept) == kept
        assert self.metadata(model=given_name).model == kept

    def test_canonical_json_hand_written(self):
        value = {"b": (1, 2.5, None), "a": {"ξ": 3e-4, "A": True}}
        assert canonical_json(value) == '{"a":{"A":true,"ξ":0.0003},"b":[1,2.5,null]}'.encode()

    def test_canonical_json_refuses_nesting_without_end(self):
        endless: list[object] = []
        endless.append(endless)
        with pytest.raises(HifiError, match="list"):
            canonical_json(endless)


class TestFromJson:
    @given(
        text=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
        field=st.sampled_from([f.name for f in DeltaMetadata.__dataclass_fields__.values()]),
    )
    def test_any_json_in_any_field(self, text: object, field: str):
        try:
            metadata = DeltaMetadata.from_json(json.dumps({**FIELDS, field: text}))
        except InvalidArgumentError:
            return
        assert DeltaMetadata.from_json(metadata.to_json().decode()) == metadata
