"""hifi.tasks.text: what a batch of texts looks like to the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import normalizers, processors

from hifi.backbones.models import load_config, load_tokenizer, resolve_model
from hifi.data.splits import load_split
from hifi.errors import DataError, InvalidArgumentError, ModelError
from hifi.tasks import text
from hifi.tasks.text import TextEncoder
from tests.tiny_tasks import END, SPECIAL, save_text_model, text_rows, tiny_tokenizer

PAIRS = text_rows(7, pair=True)


def encoder(folder: Path, *, columns=("first", "second"), max_length: int = 64, **config):
    save_text_model(folder, config.pop("name", "bert"), **config)
    return load_encoder(folder, columns=columns, max_length=max_length)


def load_encoder(folder: Path, *, columns=("first", "second"), max_length: int = 64):
    source = resolve_model(folder)
    return TextEncoder(source, load_config(source), columns=columns, max_length=max_length)


def encode(made: TextEncoder, rows=PAIRS, *, targets: torch.Tensor | None = None):
    dataset = load_split(rows, split="train")
    targets = torch.arange(len(rows)) if targets is None else targets
    return made.encode(dataset, split="train", targets=targets)


class TestBatches:
    def test_are_what_the_tokenizer_itself_makes(self, tmp_path: Path):
        examples = encode(encoder(tmp_path))
        indices = [4, 0, 2]
        batch = examples.batch(indices)
        first, second = ([PAIRS[index][name] for index in indices] for name in ("first", "second"))
        tokenizer = load_tokenizer(resolve_model(tmp_path))
        expected = tokenizer(first, second, padding=True, return_tensors="pt")
        assert set(batch.inputs) == set(expected)
        for name, value in batch.inputs.items():
            assert value.equal(expected[name]), name
        assert batch.targets.tolist() == indices

    def test_of_minilm_have_token_types(self, minilm_path: Path):
        examples = encode(load_encoder(minilm_path))
        batch = examples.batch(np.array([1, 5, 3]))
        tokenizer = tf.AutoTokenizer.from_pretrained(minilm_path)
        texts = ([PAIRS[index][name] for index in (1, 5, 3)] for name in ("first", "second"))
        expected = tokenizer(*texts, padding=True, return_tensors="pt")
        assert set(batch.inputs) == {"input_ids", "token_type_ids", "attention_mask"}
        for name, value in batch.inputs.items():
            assert value.equal(expected[name]), name

    def test_are_padded_to_their_own_longest(self, tmp_path: Path):
        examples = encode(encoder(tmp_path))
        for indices in ([0], [1, 6], list(range(7))):
            inputs = examples.batch(indices).inputs
            assert inputs["input_ids"].shape == (len(indices), examples.lengths[indices].max())
            assert inputs["attention_mask"].sum(1).tolist() == examples.lengths[indices].tolist()

    def test_are_cut_to_max_length(self, tmp_path: Path):
        examples = encode(encoder(tmp_path, max_length=6))
        assert examples.lengths.max() == 6
        ends = examples.batch([int(examples.lengths.argmax())]).inputs["input_ids"][0]
        assert (ends[0], ends[-1]) == (SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]"))

    @pytest.mark.parametrize(
        ("name", "columns", "least"),
        [
            ("bert", ("first",), 3),  # [CLS] and [SEP], and a token
            ("bert", ("first", "second"), 5),  # [SEP] once more, and a token each
            ("bare", ("first",), 1),
            ("bare", ("first", "second"), 2),
        ],
    )
    def test_hold_a_token_of_every_text(
        self, name: str, columns: tuple[str, ...], least: int, tmp_path: Path
    ):
        save_text_model(tmp_path)
        if name == "bare":
            bare = tiny_tokenizer(pad_token=SPECIAL[0])
            bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
            bare.save_pretrained(tmp_path)
        rows = [{"first": "w1 " * 80, "second": "w2 " * 80}]
        examples = encode(load_encoder(tmp_path, columns=columns, max_length=least), rows)
        assert examples.lengths.tolist() == [least]
        words = {token for token in examples.tokens["input_ids"].tolist() if token >= len(SPECIAL)}
        assert len(words) == len(columns)
        for max_length in range(-1, least):
            with pytest.raises(InvalidArgumentError, match=f"at least {least}") as caught:
                load_encoder(tmp_path, columns=columns, max_length=max_length)
            assert caught.value.param == "max_length"

    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize("max_length", range(5, 16))
    def test_are_cut_as_the_tokenizers_library_cuts(
        self, minilm_path: Path, max_length: int, side: str
    ):
        made = load_encoder(minilm_path, max_length=max_length)
        made._tokenizer.truncation_side = side
        tokenizer = tf.AutoTokenizer.from_pretrained(minilm_path)
        tokenizer.truncation_side = side
        sizes = range(1, 10)
        pairs = [("w " * first, "unbelievable x " * second) for first in sizes for second in sizes]
        texts = [list(column) for column in zip(*pairs, strict=True)]
        expected = tokenizer(*texts, truncation=True, max_length=max_length)
        whole = tokenizer(*texts)["input_ids"]
        tokenized = made.tokenize(texts)
        for name, rows in tokenized.tokens.items():
            assert rows == expected[name]
        assert tokenized.lengths == [len(row) for row in whole]

    def test_of_a_tokenizer_in_python_are_cut_by_itself(self, minilm_path: Path):
        made = load_encoder(minilm_path, max_length=6)
        texts = [["a b c d e f g", "a"], ["b", "b"]]
        expected = made.tokenize(texts)

        class Slow:
            truncation_side = "right"

            def __call__(self, *texts: list[str], **settings):
                settings["max_length"] = settings["max_length"] or 512
                return tf.BatchEncoding(dict(tokenizer(*texts, **settings)))

        tokenizer, made._tokenizer = made._tokenizer, Slow()
        assert made.tokenize(texts).tokens == expected.tokens
        assert made.tokenize(texts).lengths == expected.lengths == [11, 5]

    def test_of_long_pairs_take_little_memory(self, minilm_path: Path):
        made = load_encoder(minilm_path, max_length=16)
        rows = [{"first": "a " * 30_000, "second": "b " * 30_000}]
        assert encode(made, rows).lengths.tolist() == [16]

    @pytest.mark.parametrize("characters", [1, 50, 10**6])
    def test_do_not_depend_on_the_portions_in_which_they_are_tokenised(
        self, characters: int, minilm_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        made, sizes = load_encoder(minilm_path, max_length=9), []
        monkeypatch.setattr(text, "_PORTION_CHARACTERS", characters)
        whole = made.tokenize([[row[name] for row in PAIRS] for name in ("first", "second")])
        tokenize = made.tokenize

        def note(texts):
            sizes.append(len(texts[0]))
            return tokenize(texts)

        monkeypatch.setattr(made, "tokenize", note)
        examples = encode(made)
        assert sum(sizes) == len(PAIRS)
        assert (len(sizes) == len(PAIRS)) == (characters == 1)
        assert (len(sizes) == 1) == (characters == 10**6)
        assert examples.lengths.tolist() == list(map(len, whole.tokens["input_ids"]))
        for name, rows in whole.tokens.items():
            assert examples.tokens[name].tolist() == [token for row in rows for token in row]

    def test_a_fault_in_a_later_portion_has_its_row(
        self, minilm_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        made = load_encoder(minilm_path)
        monkeypatch.setattr(text, "_PORTION_CHARACTERS", 1)
        monkeypatch.setattr(made, "_vocabulary", 5000)
        rows = [{"first": "a", "second": "b"}, {"first": "c", "second": "archaeology"}]
        with pytest.raises(DataError, match="embeddings for 5000 tokens") as caught:
            encode(made, rows)
        assert (caught.value.row, caught.value.column) == (2, "second")

    def test_may_have_one_text(self, tmp_path: Path):
        made = encoder(tmp_path, columns=("text",))
        assert made.metadata["text"] == ["text"]
        assert len(encode(made, text_rows(3))) == 3


class TestPadToken:
    def test_is_the_one_of_the_model(self, tmp_path: Path):
        made = encoder(tmp_path)
        assert made.metadata == {
            "text": ["first", "second"],
            "max_length": 64,
            "pad_token": "[PAD]",
            "pad_token_id": 0,
            "padding_side": "right",
        }

    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    @pytest.mark.parametrize("pad_token_id", [None, -1, 99])
    def test_is_the_end_of_text_where_there_is_none(self, name: str, pad_token_id, tmp_path: Path):
        save_text_model(tmp_path, name)
        source = resolve_model(tmp_path)
        config = load_config(source)
        config.pad_token_id = pad_token_id
        made = TextEncoder(source, config, columns=("first",), max_length=64)
        assert config.pad_token_id == made.metadata["pad_token_id"] == SPECIAL.index(END)
        assert made.metadata["pad_token"] == END
        inputs = encode(made).batch(range(7)).inputs
        assert inputs["input_ids"][inputs["attention_mask"] == 0].unique().tolist() == [2]

    def test_of_a_real_language_model(self, test_data: Path):
        made = load_encoder(test_data / "models" / "stories260K-llama")
        assert made.metadata["pad_token_id"] == 0
        batch = encode(made).batch([0, 1])
        assert set(batch.inputs) == {"input_ids", "attention_mask"}

    def test_without_any_the_model_is_refused(self, tmp_path: Path):
        save_text_model(tmp_path, "gpt2")
        tiny_tokenizer().save_pretrained(tmp_path)
        source = resolve_model(tmp_path)
        config = load_config(source)
        config.pad_token_id = None
        with pytest.raises(ModelError, match="neither a pad token nor an end-of-text token"):
            TextEncoder(source, config, columns=("first",), max_length=64)


class TestBadTexts:
    @pytest.mark.parametrize("text", ["", "  ", None])
    @pytest.mark.parametrize("column", ["first", "second"])
    def test_an_empty_one_of_a_pair(self, column: str, text: str | None, tmp_path: Path):
        rows = [*PAIRS[:3], {**PAIRS[3], column: text}]
        with pytest.raises(DataError) as caught:
            encode(encoder(tmp_path), rows)
        assert (caught.value.row, caught.value.column) == (4, column)

    def test_one_that_has_no_token(self, tmp_path: Path):
        save_text_model(tmp_path)
        bare = tiny_tokenizer(pad_token=SPECIAL[0])
        bare.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
        bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
        bare.save_pretrained(tmp_path)
        rows = [{"text": "w1"}, {"text": "\u200b"}]
        with pytest.raises(DataError, match="no token") as caught:
            encode(load_encoder(tmp_path, columns=("text",)), rows)
        assert caught.value.row == 2


class TestDigest:
    def test_is_of_tokens_and_targets(self, tmp_path: Path):
        made = encoder(tmp_path)
        digest = encode(made).digest()
        assert encode(made).digest() == digest
        assert encode(made, targets=torch.ones(7)).digest() != digest
        assert encode(made, [*PAIRS[1:], PAIRS[0]]).digest() != digest
        assert encode(load_encoder(tmp_path, columns=("second", "first"))).digest() != digest
