"""``hifi merge``: a plain transformers model for any delta, or no output at all."""

from __future__ import annotations

import json
import stat
from dataclasses import replace

import pytest
import torch
from pyarrow import parquet
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from hifi.backbones.heads import HeadId
from hifi.cli import main
from hifi.deltas.delta import HeadDelta
from hifi.selection.head_selection import HeadSelection
from hifi.tuning.tuner import HeadTuner
from tests.architectures import tiny_model
from tests.tiny_tasks import save_text_model


def merge(backbone, delta_file, out, *more):
    return main(
        ["merge", "--delta", str(delta_file), "--model", str(backbone), "--out", str(out), *more]
    )


@pytest.fixture
def expected(backbone, delta_file):
    """Merge in Python: the backbone with a task head of the right shape, and the delta."""
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
    HeadDelta.load(delta_file).merge(model)
    return model.state_dict()


class TestMerge:
    def test_plain_transformers_loads_the_merged_model(
        self, backbone, delta_file, expected, tmp_path
    ):
        out = tmp_path / "merged"
        assert merge(backbone, delta_file, out) == 0
        model = AutoModelForSequenceClassification.from_pretrained(out)
        assert model.config.id2label == {0: "bad", 1: "good"}
        assert model.config.label2id == {"bad": 0, "good": 1}
        merged = model.state_dict()
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())

    def test_the_tokenizer_is_saved_with_the_tuned_length(self, backbone, delta_file, tmp_path):
        out = tmp_path / "merged"
        assert merge(backbone, delta_file, out) == 0
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert tokenizer("w0 w3")["input_ids"] == [1, 4, 7, 2]
        assert len(tokenizer("w0 " * 99, truncation=True)["input_ids"]) == 32

    def test_dtype_can_be_chosen(self, backbone, delta_file, expected, tmp_path):
        out = tmp_path / "merged"
        assert merge(backbone, delta_file, out, "--dtype", "bfloat16") == 0
        merged = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
        assert all(
            torch.equal(merged[name], tensor.bfloat16()) for name, tensor in expected.items()
        )

    def test_json(self, backbone, delta_file, tmp_path, capsys):
        out = tmp_path / "merged"
        assert merge(backbone, delta_file, out, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["path"] == str(out)
        assert document["dtype"] == "float32"
        assert document["heads"] == 2
        assert (document["task"], document["num_labels"]) == ("classification", 2)
        assert document["labels"] == ["bad", "good"]
        assert document["bytes"] == sum(path.stat().st_size for path in out.iterdir())

    def test_every_file_has_the_same_permissions(self, backbone, delta_file, tmp_path):
        out = tmp_path / "merged"
        assert merge(backbone, delta_file, out) == 0
        assert len({stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}) == 1

    def test_a_delta_tuned_in_memory_at_another_dtype_knows_its_backbone(self, backbone, tmp_path):
        model = AutoModelForSequenceClassification.from_pretrained(
            backbone, num_labels=2, dtype=torch.bfloat16
        )
        tuner = HeadTuner(model, HeadSelection.from_heads([HeadId(0, 0)], num_layers=3))
        path = tmp_path / "bf16.safetensors"
        tuner.delta(task={"type": "classification"}).save(path)
        assert merge(backbone, path, tmp_path / "merged") == 0
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        assert merged.config.num_labels == 2  # which the delta records without names

    @pytest.mark.parametrize(
        ("kind", "words"),
        [("classification", "2 without names"), ("regression", "none, a number")],
    )
    def test_labels_without_names_are_counted(self, kind, words, backbone, tmp_path, capsys):
        count = 2 if kind == "classification" else 1
        model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=count)
        tuner = HeadTuner(model, HeadSelection.from_heads([HeadId(0, 0)], num_layers=3))
        path = tmp_path / "own.safetensors"
        tuner.delta(task={"type": kind}).save(path)
        assert merge(backbone, path, tmp_path / "merged") == 0
        shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        assert ["labels", words] in shown

    def test_an_image_model_is_saved_with_its_image_processor(self, test_data, tmp_path):
        backbone = test_data / "models" / "vit-cifar10-4L4H64"
        data, delta_file = test_data / "data/mnist/validation.parquet", tmp_path / "v.safetensors"
        rows = parquet.read_table(data).slice(0, 40)
        parquet.write_table(rows, tmp_path / "few.parquet")
        command = ["tune", "--model", str(backbone), "--train", str(tmp_path / "few.parquet")]
        command += ["--image", "image", "--label", "label", "--k", "1", "--epochs", "1"]
        assert main([*command, "--out", str(delta_file)]) == 0
        out = tmp_path / "merged"
        assert merge(backbone, delta_file, out) == 0
        model = AutoModelForImageClassification.from_pretrained(out)
        assert model.config.num_labels == len(set(rows["label"].to_pylist()))
        assert AutoImageProcessor.from_pretrained(out, backend="pil")


class TestDecoders:
    """They read the last token before the padding, so they must know the pad token."""

    TEXTS = ("w0 w1 w2 w3 w4 w5", "w6 w7")

    @pytest.fixture(params=["gpt2", "llama"])
    def decoder(self, request, tmp_path):
        """Return the folder of a decoder without a pad token, in the model and the tokenizer."""
        return save_text_model(tmp_path / request.param, request.param, pad_token_id=None)

    def check_batches(self, out):
        model = AutoModelForSequenceClassification.from_pretrained(out).eval()
        tokenizer = AutoTokenizer.from_pretrained(out)
        batch = tokenizer(list(self.TEXTS), padding=True, return_tensors="pt")
        assert not batch["attention_mask"].all()
        with torch.no_grad():
            together = model(**batch).logits
            alone = [model(**tokenizer(text, return_tensors="pt")).logits for text in self.TEXTS]
        torch.testing.assert_close(together, torch.cat(alone))

    def test_tuned_here(self, decoder, data, tmp_path):
        delta_file, out = tmp_path / "delta.safetensors", tmp_path / "merged"
        command = ["tune", "--model", str(decoder), "--train", str(data / "train.jsonl")]
        command += ["--k", "1", "--epochs", "1", "--max-length", "32", "--precision", "float32"]
        assert main([*command, "--out", str(delta_file)]) == 0
        assert merge(decoder, delta_file, out) == 0
        assert AutoTokenizer.from_pretrained(out).padding_side == "right"
        self.check_batches(out)

    def test_tuned_by_a_custom_loop(self, decoder, tmp_path):
        model = AutoModelForSequenceClassification.from_pretrained(decoder, num_labels=2)
        tuner = HeadTuner(model, HeadSelection.from_heads([HeadId(0, 0)], num_layers=3))
        delta_file, out = tmp_path / "delta.safetensors", tmp_path / "merged"
        tuner.delta(task={"type": "classification"}, labels=[0, 1]).save(delta_file)
        assert merge(decoder, delta_file, out) == 0
        self.check_batches(out)


class TestRefusals:
    def test_another_backbone(self, delta_file, tmp_path, capsys):
        other = tmp_path / "other"
        tiny_model("bert", seed=1, max_position_embeddings=128).base_model.save_pretrained(other)
        assert merge(other, delta_file, tmp_path / "merged") == 1
        assert "fingerprint" in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()

    def test_a_backbone_of_another_architecture(self, delta_file, tmp_path, capsys):
        other = save_text_model(tmp_path / "other", "gpt2")
        assert merge(other, delta_file, tmp_path / "merged") == 1
        error = capsys.readouterr().err
        assert "tuned on 'tiny-bert' (revision not recorded), whose architecture is 'bert'" in error
        assert "that of 'other' is 'gpt2'" in error
        assert not (tmp_path / "merged").exists()

    def test_a_folder_with_something_in_it(self, backbone, delta_file, tmp_path, capsys):
        out = tmp_path / "merged"
        out.mkdir()
        (out / "note.txt").write_text("mine")
        assert merge(backbone, delta_file, out) == 1
        assert "is not empty" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == ["note.txt"]

    def test_a_file_in_the_way(self, backbone, delta_file, tmp_path, capsys):
        out = tmp_path / "merged"
        out.write_text("mine")
        assert merge(backbone, delta_file, out) == 1
        assert "a file of that name exists" in capsys.readouterr().err

    def test_a_missing_parent(self, backbone, delta_file, tmp_path, capsys):
        assert merge(backbone, delta_file, tmp_path / "no" / "merged") == 1
        assert "mkdir -p" in capsys.readouterr().err

    def test_a_delta_without_a_task(self, backbone, delta_file, tmp_path, capsys):
        delta = HeadDelta.load(delta_file)
        path = tmp_path / "free.safetensors"
        replace(delta, metadata=replace(delta.metadata, task=None)).save(path)
        assert merge(backbone, path, tmp_path / "merged") == 1
        assert "delta.merge(model)" in capsys.readouterr().err

    def test_a_foreign_record(self, backbone, delta_file, tmp_path, capsys):
        delta = HeadDelta.load(delta_file)
        path = tmp_path / "foreign.safetensors"
        task = {**delta.metadata.task, "pad_token_id": 10**6}
        replace(delta, metadata=replace(delta.metadata, task=task)).save(path)
        assert merge(backbone, path, tmp_path / "merged") == 1
        assert "task records pad_token_id=1000000: one of the backbone's" in capsys.readouterr().err

    def test_a_backbone_without_a_tokenizer(self, backbone, delta_file, tmp_path, capsys):
        bare = tmp_path / "bare"
        bare.mkdir()
        for name in ("config.json", "model.safetensors"):
            (bare / name).write_bytes((backbone / name).read_bytes())
        assert merge(bare, delta_file, tmp_path / "merged") == 1
        assert "has no tokenizer" in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()

    def test_a_failure_while_writing_leaves_nothing(
        self, backbone, delta_file, tmp_path, monkeypatch, capsys
    ):
        def no_space(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", no_space)
        assert merge(backbone, delta_file, tmp_path / "merged") == 1
        assert "No space left on device" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
