"""Backbones that are stored in float16 or bfloat16: tuned, merged, served and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from hifi import HeadBank, HeadDelta, finetune
from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.models import resolve_model
from hifi.cli import main
from hifi.deltas.loading import load_backbone, load_bare_backbone, write_merged_model
from hifi.errors import BackboneMismatchError, TunerError
from hifi.tuning.tuner import HeadTuner
from tests.architectures import ARCHITECTURES, NAMES, tiny_batch
from tests.deltas import ENCODINGS, bits_of, equal_bits, rows_of
from tests.tiny_tasks import image_rows, save_image_model, save_text_model, text_rows, write_jsonl
from tests.tiny_tuning import selection, train

HALVES = (torch.float16, torch.bfloat16)
SHORT = {"k": 1, "epochs": 1, "batch_size": 4, "n_samples": 4, "max_length": 16}
# Of the largest logit, or of 1; stored or computed so. A processor that multiplies bfloat16
# natively serves float16 in it.
CLOSE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
_stored = pytest.mark.parametrize("dtype", HALVES, ids=str)


@dataclass(frozen=True)
class Backbone:
    """A checkpoint in a half precision."""

    name: str
    folder: Path
    dtype: torch.dtype

    def load(self, **settings: Any) -> tf.PreTrainedModel:
        """Load a classifier as transformers does by default: in the stored dtype."""
        is_image = ARCHITECTURES[self.name].image
        auto = (
            tf.AutoModelForImageClassification
            if is_image
            else tf.AutoModelForSequenceClassification
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = auto.from_pretrained(self.folder, num_labels=2, **settings).eval()
        assert settings or model.dtype == self.dtype
        return model

    def tune(self, **settings: Any) -> HeadDelta:
        rows = image_rows(8) if ARCHITECTURES[self.name].image else text_rows(8)
        return finetune(model=self.folder, train=rows, **{**SHORT, **settings}).delta


def save(folder: Path, name: str, dtype: torch.dtype) -> Backbone:
    save_model = save_image_model if ARCHITECTURES[name].image else save_text_model
    return Backbone(name, save_model(folder / name, name, dtype=dtype), dtype)


@pytest.fixture
def bert(tmp_path: Path) -> Backbone:
    return save(tmp_path, "bert", torch.float16)


@_stored
@pytest.mark.parametrize("name", NAMES)
def test_everything_works_on(name: str, dtype: torch.dtype, tmp_path: Path):
    backbone = save(tmp_path, name, dtype)
    delta = backbone.tune()
    for encoding in ENCODINGS:
        delta.save(tmp_path / encoding, encoding=encoding)
        model = backbone.load()
        before, loaded = bits_of(model), HeadDelta.load(tmp_path / encoding)
        loaded.check_backbone(model)
        displaced = loaded.merge(model)
        assert not equal_bits(bits_of(model), before)
        displaced.merge(model)
        assert equal_bits(bits_of(model), before)
    delta = HeadDelta.load(tmp_path / "float32")
    own = load_backbone(delta, model=str(backbone.folder), revision=None)
    write_merged_model(tmp_path / "merged", delta=delta, backbone=own)
    merged = Backbone(name, tmp_path / "merged", dtype).load()
    rounded = {row: tensor.to(dtype) for row, tensor in delta.rows.items()}
    assert equal_bits(rows_of(merged, heads=delta.heads), rounded)
    with torch.no_grad():
        expected = merged.float()(**tiny_batch(name)).logits
    served = load_bare_backbone(resolve_model(backbone.folder), device=torch.device("cpu"))
    assert served.fingerprint == delta.metadata.fingerprint
    own = tf.AutoModel.from_pretrained(backbone.folder).eval()  # in the stored dtype
    for bare in (served.model, own):
        bank = HeadBank(bare)
        bank.add("task", delta)
        answers = bank.forward(tiny_batch(name, dtype=bare.dtype), ["task"] * 4)
        largest = max(1.0, float(expected.abs().max()))
        close = largest * max(CLOSE[dtype], CLOSE.get(bare.dtype, 0.0))
        torch.testing.assert_close(torch.stack(answers).float(), expected, atol=close, rtol=0)
    delta.to_lora(tmp_path / "adapter", backbone.load())


@_stored
class TestOwnLoop:
    """A model that was loaded in float32 knows its fingerprint in float32 only."""

    def tune(self, folder: Path, dtype: torch.dtype) -> tuple[Backbone, HeadDelta]:
        backbone = save(folder, "bert", dtype)
        model = backbone.load(dtype=torch.float32)
        tuner = HeadTuner(model, selection())
        train(model, tuner.parameters(), name="bert")
        return backbone, tuner.delta(task={"type": "classification"}, labels=["no", "yes"])

    @pytest.mark.parametrize("loaded_in", ["stored", torch.float32])
    def test_merges_however_the_backbone_is_loaded(
        self, loaded_in: Any, dtype: torch.dtype, tmp_path: Path
    ):
        backbone, delta = self.tune(tmp_path, dtype)
        model = backbone.load(**({} if loaded_in == "stored" else {"dtype": loaded_in}))
        before = bits_of(model)
        delta.check_backbone(model)
        delta.merge(model).merge(model)
        assert equal_bits(bits_of(model), before)

    def test_its_file_merges_on_the_command_line(self, dtype: torch.dtype, tmp_path: Path):
        backbone, delta = self.tune(tmp_path, dtype)
        delta.save(tmp_path / "delta")
        command = ["merge", "--delta", str(tmp_path / "delta"), "--model", str(backbone.folder)]
        assert main([*command, "--out", str(tmp_path / "merged")]) == 0
        Backbone("bert", tmp_path / "merged", dtype).load()

    def test_the_rows_of_the_stored_dtype_are_exact(self, dtype: torch.dtype, tmp_path: Path):
        backbone, delta = self.tune(tmp_path, dtype)
        delta.save(tmp_path / "delta")
        delta.save(tmp_path / "first", encoding="int8")
        again = HeadDelta.load(tmp_path / "delta").with_base(backbone.load())
        again.save(tmp_path / "second", encoding="int8")
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


class TestFloat16:
    def test_a_tuner_says_how_to_load_it(self, bert: Backbone):
        with pytest.raises(TunerError, match=r"load it with dtype=torch\.float32"):
            HeadTuner(bert.load(), selection())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_the_same_backbone_in_a_wider_dtype(self, dtype: torch.dtype, bert: Backbone):
        delta = bert.tune()
        assert delta.metadata.fingerprint == backbone_fingerprint(bert.load())
        delta.check_backbone(bert.load(dtype=dtype))

    def test_is_not_the_backbone_that_was_rounded_to_it(self, bert: Backbone, tmp_path: Path):
        delta = bert.tune()
        whole = save(tmp_path / "whole", "bert", torch.float32)  # the same weights, unrounded
        with pytest.raises(BackboneMismatchError, match="in the dtype in which it was stored"):
            delta.check_backbone(whole.load())
        rounded = whole.tune()
        with pytest.raises(BackboneMismatchError, match="fingerprint"):
            rounded.check_backbone(bert.load())

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_is_tuned_in_both_precisions(self, precision: str, bert: Backbone, tmp_path: Path):
        delta = bert.tune(precision=precision)
        assert delta.metadata.compute_dtype == precision
        delta.save(tmp_path / "delta", encoding="bfloat16")
        on_half, on_float32 = bert.load(), bert.load(dtype=torch.float32)
        for model in (on_half, on_float32):
            HeadDelta.load(tmp_path / "delta").merge(model)
        half = rows_of(on_half, heads=delta.heads)
        assert equal_bits(
            half, {n: t.half() for n, t in rows_of(on_float32, heads=delta.heads).items()}
        )

    def test_displaced_rows_survive_a_file(self, bert: Backbone, tmp_path: Path):
        model = bert.load()
        before = bits_of(model)
        bert.tune().merge(model).save(tmp_path / "displaced")
        HeadDelta.load(tmp_path / "displaced").merge(model)
        assert equal_bits(bits_of(model), before)

    def test_on_the_command_line(self, bert: Backbone, tmp_path: Path, capsys):
        data = write_jsonl(tmp_path / "train.jsonl", text_rows(8))
        file, merged, adapter = (str(tmp_path / name) for name in ("delta", "merged", "adapter"))
        command = ["tune", "--model", str(bert.folder), "--train", str(data), "--out", file]
        assert main([*command, "--k", "1", "--epochs", "1", "--max-length", "16"]) == 0
        of_delta = ["--delta", file, "--model", str(bert.folder)]
        assert main(["merge", *of_delta, "--out", merged, "--json"]) == 0
        assert '"dtype": "float16"' in capsys.readouterr().out
        Backbone("bert", Path(merged), torch.float16).load()
        assert main(["merge", *of_delta, "--out", f"{merged}-wide", "--dtype", "float32"]) == 0
        assert main(["export-lora", *of_delta, "--out", adapter]) == 0

    def test_a_bank_refuses_values_beyond_it(self, bert: Backbone):
        delta = bert.tune()
        name = next(name for name in delta.task_head if name.endswith("weight"))
        delta.task_head[name][0, 0] = 1e6
        bank = HeadBank(tf.AutoModel.from_pretrained(bert.folder).eval())
        with pytest.raises(BackboneMismatchError, match="1e\\+06, but the model is float16"):
            bank.add("task", delta)
