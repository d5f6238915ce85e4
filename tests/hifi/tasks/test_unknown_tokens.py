"""Tokenizers that make token types or tokens for which the model has no embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from hifi import HeadBank, finetune
from hifi.backbones.models import load_config, resolve_model
from hifi.cli import main
from hifi.deltas.loading import load_backbone, load_bare_backbone, write_merged_model
from hifi.errors import DataError, InputError, InvalidArgumentError
from hifi.serving.prediction import TaskRecord, collate
from hifi.tasks import Sample
from hifi.tasks.text import TextEncoder
from tests.architectures import ARCHITECTURES, NAMES, VOCABULARY
from tests.tiny_tasks import END, UNKNOWN, save_text_model, text_rows, tiny_tokenizer, write_jsonl

TEXT_NAMES = [name for name in NAMES if not ARCHITECTURES[name].image]
WITH_TYPES = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
ADDED = "<user>"
PAIRS = text_rows(8, pair=True)
SHORT = {"k": 1, "epochs": 1, "batch_size": 4, "n_samples": 4, "max_length": 16}
CPU = torch.device("cpu")
NO_EMBEDDING = rf"the token '{ADDED}' has the number {VOCABULARY}, but tiny has embeddings for 99"


def save(folder: Path, name: str = "bert", **config: Any) -> Path:
    """Save a text model whose tokenizer makes token types and has one token more than it."""
    save_text_model(folder, name, **config)
    special = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "eos_token": END}
    tokenizer = tiny_tokenizer(**special, **WITH_TYPES)
    tokenizer.add_tokens([ADDED])
    assert len(tokenizer) == VOCABULARY + 1
    tokenizer.save_pretrained(folder)
    return folder


def encoder_of(folder: Path, *, columns: int = 1, max_length: int = 16) -> TextEncoder:
    source = resolve_model(folder)
    names = ("first", "second")[:columns]
    return TextEncoder(source, load_config(source), columns=names, max_length=max_length)


def one_type(folder: Path, name: str = "bert") -> Path:
    """Save a model that has one token type, if its architecture has any."""
    has_types = hasattr(ARCHITECTURES[name].config(), "type_vocab_size")
    return save(folder, name, **({"type_vocab_size": 1} if has_types else {}))


class TestOneTokenType:
    @pytest.mark.parametrize("name", TEXT_NAMES)
    def test_pairs_are_tuned_merged_and_served(self, name: str, tmp_path: Path):
        folder = one_type(tmp_path / "tiny", name)
        result = finetune(model=folder, train=PAIRS, validation=PAIRS, **SHORT)
        delta = result.delta
        backbone = load_backbone(delta, model=str(folder), revision=None)
        write_merged_model(tmp_path / "merged", delta=delta, backbone=backbone)
        bare = load_bare_backbone(resolve_model(folder), device=CPU).model
        encoder = TaskRecord.of(delta, bare.config).load_encoder(resolve_model(folder), bare)
        given = [{"text": row["first"], "text_pair": row["second"]} for row in PAIRS]
        samples = [each for each in encoder.read(given, truncate=True) if isinstance(each, Sample)]
        assert len(samples) == len(PAIRS)
        bank = HeadBank(bare)
        bank.add("task", delta)
        answers = torch.stack(bank.forward(collate(samples), ["task"] * len(PAIRS)))
        tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "merged")
        model = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        firsts, seconds = ([row[part] for row in PAIRS] for part in ("first", "second"))
        batch = tokenizer(
            firsts, seconds, padding=True, truncation=True, max_length=16, return_tensors="pt"
        )
        assert "token_type_ids" not in batch
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, answers, atol=1e-4, rtol=1e-4)

    def test_two_types_are_kept(self, tmp_path: Path):
        folder = save(tmp_path / "tiny")
        types = encoder_of(folder, columns=2).tokenize([["w1"], ["w2 w3"]]).tokens["token_type_ids"]
        assert types == [[0, 0, 0, 1, 1, 1]]
        delta = finetune(model=folder, train=PAIRS, **SHORT).delta
        backbone = load_backbone(delta, model=str(folder), revision=None)
        assert "token_type_ids" in backbone.load_processor().model_input_names

    def test_single_texts_and_pairs_share_a_batch(self, tmp_path: Path):
        folder = one_type(tmp_path / "tiny")
        single = finetune(model=folder, train=text_rows(8), **SHORT).delta
        pair = finetune(model=folder, train=PAIRS, **SHORT).delta
        bank = HeadBank(load_bare_backbone(resolve_model(folder), device=CPU).model)
        bank.add("single", single)
        bank.add("pair", pair)
        (one,) = encoder_of(folder).read([{"text": "w1 w2 w3"}], truncate=True)
        given = {"text": "w1", "text_pair": "w2 w3 w4"}
        (two,) = encoder_of(folder, columns=2).read([given], truncate=True)
        mixed = bank.forward(collate([one, two, one]), ["single", "pair", None])
        torch.testing.assert_close(mixed[0], bank.forward(collate([one]), ["single"])[0])
        torch.testing.assert_close(mixed[1], bank.forward(collate([two]), ["pair"])[0])

    def test_pairs_are_cut_to_the_length(self, tmp_path: Path):
        encoder = encoder_of(one_type(tmp_path / "tiny"), columns=2, max_length=8)
        given = {"text": "w1 " * 20, "text_pair": "w2 " * 20}
        (sample,) = encoder.read([given], truncate=True)
        assert (sample.length, sorted(sample.inputs)) == (8, ["attention_mask", "input_ids"])

    def test_an_empty_second_text_is_still_refused(self, tmp_path: Path):
        encoder = encoder_of(one_type(tmp_path / "tiny"), columns=2)
        (error,) = encoder.read([{"text": "w1", "text_pair": " "}], truncate=True)
        assert isinstance(error, InputError)
        assert (str(error), error.param) == ("text_pair is empty", "text_pair")

    def test_heads_are_selected_on_the_command_line(self, tmp_path: Path):
        folder, data = (
            one_type(tmp_path / "tiny"),
            write_jsonl(tmp_path / "pairs.jsonl", PAIRS),
        )
        command = ["select", "--model", str(folder), "--train", str(data), "--max-length", "16"]
        assert main([*command, "--text", "first", "second", "--label", "label"]) == 0

    def test_a_bank_names_a_token_type_without_an_embedding(self, tmp_path: Path):
        bank = HeadBank(load_bare_backbone(resolve_model(one_type(tmp_path)), device=CPU).model)
        batch = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
        batch["token_type_ids"] = torch.tensor([[0, 0, 0], [0, 0, 1]])
        with pytest.raises(InvalidArgumentError, match=r"token_type_ids=1 .* sample 1 .* 0 to 0"):
            bank.forward(batch, [None, None])


class TestTokenWithoutEmbedding:
    @pytest.mark.parametrize("name", TEXT_NAMES)
    def test_of_a_row_is_refused_before_training(self, name: str, tmp_path: Path):
        rows = [*text_rows(5), {"text": f"w1 {ADDED} w2", "label": 0}, *text_rows(2)]
        with pytest.raises(DataError, match=rf"train, row 6, column 'text': {NO_EMBEDDING}"):
            finetune(model=save(tmp_path / "tiny", name), train=rows, **SHORT)

    def test_of_validation(self, tmp_path: Path):
        validation = [{"text": "w1", "label": 0}, {"text": ADDED, "label": 1}]
        with pytest.raises(DataError, match=rf"validation, row 2, column 'text': {NO_EMBEDDING}"):
            finetune(
                model=save(tmp_path / "tiny"),
                train=text_rows(8),
                validation=validation,
                **SHORT,
            )

    def test_of_a_second_text(self, tmp_path: Path):
        rows = [*PAIRS[:3], {**PAIRS[3], "second": f"{ADDED} w3"}, *PAIRS[4:]]
        with pytest.raises(DataError, match=rf"train, row 4, column 'second': {NO_EMBEDDING}"):
            finetune(model=save(tmp_path / "tiny"), train=rows, **SHORT)

    def test_that_truncation_removes_does_not_matter(self, tmp_path: Path):
        rows = [{**row, "text": "w1 " * 20 + ADDED} for row in text_rows(8)]
        finetune(model=save(tmp_path / "tiny"), train=rows, **SHORT)

    def test_on_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        rows = [*text_rows(5), {"text": ADDED, "label": 1}]
        data, folder = write_jsonl(tmp_path / "train.jsonl", rows), save(tmp_path / "tiny")
        command = ["tune", "--model", str(folder), "--train", str(data), "--max-length", "16"]
        assert main([*command, "--out", str(tmp_path / "delta")]) == 1
        error = capsys.readouterr().err
        assert "hifi: error: train, row 6 (line 6), column 'text': the token '<user>'" in error
        assert "resize_token_embeddings" in error

    def test_that_frames_every_text_is_named(self, tmp_path: Path):
        folder = save(tmp_path / "tiny", vocab_size=2)  # the model lacks [SEP]
        with pytest.raises(DataError, match=r"train, row 1, .* '\[SEP\]' has the number 2"):
            finetune(model=folder, train=[{"text": "[PAD]", "label": n} for n in (0, 1)], **SHORT)

    def test_of_a_prediction_is_that_inputs_error(self, tmp_path: Path):
        encoder = encoder_of(save(tmp_path / "tiny"), columns=2)
        given = [
            {"text": "w1", "text_pair": "w2"},
            {"text": "w1", "text_pair": f"w2 {ADDED}"},
            {"text": ADDED, "text_pair": "w2"},
            {"text": "w1", "text_pair": "w3"},
        ]
        read = encoder.read(given, truncate=True)
        assert [type(each) for each in read] == [Sample, InputError, InputError, Sample]
        assert [each.param for each in read[1:3]] == ["text_pair", "text"]
        assert NO_EMBEDDING in str(read[1])

    @pytest.mark.parametrize("token", [VOCABULARY, -1])
    def test_of_a_banks_batch_is_named(self, token: int, tmp_path: Path):
        bank = HeadBank(load_bare_backbone(resolve_model(save(tmp_path)), device=CPU).model)
        batch = {"input_ids": torch.tensor([[1, 2], [token, 2]])}
        match = rf"input_ids={token} .* sample 1 of the batch: 0 to {VOCABULARY - 1}"
        with pytest.raises(InvalidArgumentError, match=match):
            bank.forward(batch, [None, None])
        bank.forward({"input_ids": torch.tensor([[1, 2]])}, [None])
