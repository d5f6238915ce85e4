"""hifi.tasks.words.encoder: every word of a text is a target once, and is answered once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf

from hifi.backbones.models import load_config, resolve_model
from hifi.data.splits import load_split
from hifi.errors import DataError, InputError, ModelError
from hifi.tasks import Task, TaskSpec, make_task, text
from hifi.tasks.windows import NO_TARGET
from hifi.tasks.words.encoder import WindowedText, WordEncoder
from tests.architectures import tiny_model
from tests.tiny_tokenizers import KINDS, WORDS, TokenizerModels, wordpiece

if TYPE_CHECKING:
    from hifi.tasks.text import EncodedTexts

Row = dict[str, Any]
EACH = pytest.mark.parametrize("kind", KINDS)
LENGTHS = pytest.mark.parametrize("max_length", [5, 8, 300])
TAGGED = [{"tokens": ["ada", "in", "london"], "tags": ["B-person", "O", "B-place"]}] * 2
SPANNED = [{"text": "ada in london", "spans": [{"start": 7, "end": 13, "label": "place"}]}] * 2


def encoder_of(folder: Path, task: Task, *, max_length: int) -> WordEncoder:
    source = resolve_model(folder)
    encoder = task.load_encoder(source, load_config(source), max_length=max_length)
    assert isinstance(encoder, WordEncoder)
    return encoder


def encode(folder: Path, rows: Sequence[Row], *, max_length: int) -> tuple[Task, EncodedTexts]:
    dataset = load_split(list(rows), split="train")
    task = make_task(TaskSpec(type="token-classification"), dataset)
    encoder = encoder_of(folder, task, max_length=max_length)
    targets = task.targets(dataset, split="train")
    return task, encoder.encode(dataset, split="train", targets=targets)


def answered(encoded: EncodedTexts, row: int) -> list[tuple[int, int]]:
    """Return the tokens of a row with a label, and the labels, in the order of the windows."""
    pairs = []
    for number in range(len(encoded)):
        batch = encoded.batch([number])
        ids, (labels, rows) = batch.inputs["input_ids"][0], batch.targets[0].T
        assert len(set(rows.tolist())) == 1
        if rows[0] == row:
            is_word = labels[: len(ids)] != NO_TARGET
            assert (labels[len(ids) :] == NO_TARGET).all()
            pairs += zip(ids[is_word].tolist(), labels[: len(ids)][is_word].tolist(), strict=True)
    return pairs


def first_tokens(kind: str, whole: str, starts: Sequence[int]) -> list[int]:
    """Return the first token of each word that begins at one of these characters."""
    encoded = KINDS[kind]()(whole, return_offsets_mapping=True, add_special_tokens=False)
    pairs = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
    return [
        next(token for token, (a, b) in pairs if b > start and whole[a:b].strip())
        for start in starts
    ]


def tagged_rows(count: int) -> list[Row]:
    """Draw words with tags; each tag is one of a type that is allowed there."""
    draw = random.Random(1)  # noqa: S311 - a draw, not a secret
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(1, 25))
        tags = ["O"]
        for _ in words:
            begun = [f"I-{tags[-1][2:]}"] if tags[-1] != "O" else []
            tags.append(draw.choice(["O", "B-person", "B-place", *begun]))
        rows.append({"tokens": words, "tags": tags[1:]})
    rows[0]["tags"] = ["B-person", *["O"] * (len(rows[0]["tokens"]) - 1)]
    return rows


class TestEncode:
    @EACH
    @LENGTHS
    def test_labels_the_first_token_of_each_word_with_its_tag(
        self, kind: str, max_length: int, models: TokenizerModels
    ):
        rows = tagged_rows(12)
        task, encoded = encode(models.folder_of(kind), rows, max_length=max_length)
        assert encoded.lengths.max() <= max_length
        assert (len(encoded) > len(rows)) == (max_length < 300)
        for number, row in enumerate(rows):
            whole = " ".join(row["tokens"])
            starts = [
                len(" ".join(row["tokens"][:place])) + bool(place)
                for place in range(len(row["tokens"]))
            ]
            labels = [list(task.classes or ()).index(tag) for tag in row["tags"]]
            expected = zip(first_tokens(kind, whole, starts), labels, strict=True)
            assert answered(encoded, number) == list(expected)

    @EACH
    @LENGTHS
    def test_labels_the_words_that_a_span_touches(
        self, kind: str, max_length: int, models: TokenizerModels
    ):
        whole = "ada Lovelace, in London. дом in d1"
        spans = [(0, 12, "person"), (19, 21, "place"), (25, 28, "place")]
        named = [{"start": a, "end": b, "label": name} for a, b, name in spans]
        rows = [{"text": whole, "spans": named}, {"text": "in", "spans": []}]
        task, encoded = encode(models.folder_of(kind), rows, max_length=max_length)
        assert task.classes == ("O", "B-person", "I-person", "B-place", "I-place")
        starts, labels = [0, 4, 12, 14, 17, 23, 25, 29, 32], [1, 2, 0, 0, 3, 0, 3, 0, 0]
        expected = zip(first_tokens(kind, whole, starts), labels, strict=True)
        assert answered(encoded, 0) == list(expected)
        assert [label for _, label in answered(encoded, 1)] == [0]

    def test_every_window_has_the_special_tokens(self, models: TokenizerModels):
        _, encoded = encode(models.folder_of("wordpiece"), tagged_rows(6), max_length=8)
        for number in range(len(encoded)):
            ids = encoded.batch([number]).inputs["input_ids"][0].tolist()
            assert (ids[0], ids[-1]) == (2, 3)
            assert not {2, 3} & set(ids[1:-1])

    def test_does_not_depend_on_the_portions_in_which_it_tokenises(
        self, models: TokenizerModels, monkeypatch: pytest.MonkeyPatch
    ):
        rows, folder = tagged_rows(12), models.folder_of("wordpiece")
        _, whole = encode(folder, rows, max_length=8)
        monkeypatch.setattr(text, "_PORTION_CHARACTERS", 30)
        assert encode(folder, rows, max_length=8)[1].digest() == whole.digest()

    def test_long_texts_are_tokenised_a_few_at_a_time(
        self, models: TokenizerModels, monkeypatch: pytest.MonkeyPatch
    ):
        """A thousand texts of the most characters would take gigabytes until they are arrays."""
        monkeypatch.setattr(text, "_PORTION_CHARACTERS", 1000)
        sizes, plain = [], WordEncoder._cut

        def counting(self: WordEncoder, texts: Sequence[str], given: Any) -> Any:
            sizes.append(sum(map(len, texts)))
            return plain(self, texts, given)

        monkeypatch.setattr(WordEncoder, "_cut", counting)
        rows = [*TAGGED, *({"tokens": ["in"] * 200, "tags": ["O"] * 200},) * 9]
        encode(models.folder_of("wordpiece"), rows, max_length=64)
        assert sum(sizes) > 5000
        assert max(sizes) < 2000

    def test_a_word_of_which_nothing_is_read_has_no_target(self, models: TokenizerModels):
        rows = [{"tokens": ["ada", "\u200b", "in"], "tags": ["B-person", "I-person", "O"]}]
        _, encoded = encode(models.folder_of("wordpiece"), rows, max_length=8)
        assert [label for _, label in answered(encoded, 0)] == [1, 0]

    @pytest.mark.parametrize(
        ("rows", "column"),
        [
            ([*TAGGED, {"tokens": ["\u200b"], "tags": ["O"]}], "tokens"),
            ([*SPANNED, {"text": "\u200b", "spans": []}], "text"),
        ],
    )
    def test_a_row_of_which_nothing_is_read_is_refused(
        self, rows: list[Row], column: str, models: TokenizerModels
    ):
        with pytest.raises(DataError, match="produces no token for this text") as caught:
            encode(models.folder_of("wordpiece"), rows, max_length=8)
        assert (caught.value.row, caught.value.column) == (3, column)

    def test_a_token_without_an_embedding_is_refused(self, tmp_path: Path):
        folder = save_with_one_token_more(tmp_path)
        rows = [*TAGGED, {"tokens": ["in", "<user>"], "tags": ["O", "O"]}]
        with pytest.raises(DataError, match="the token '<user>' has the number") as caught:
            encode(folder, rows, max_length=8)
        assert (caught.value.row, caught.value.column) == (3, "tokens")


def save_with_one_token_more(folder: Path) -> Path:
    """Save a model that has no embedding for the last token of its tokenizer."""
    tokenizer = wordpiece()
    tiny_model("bert", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.add_tokens(["<user>"])
    tokenizer.save_pretrained(folder)
    return folder


def reader_of(folder: Path, *, max_length: int, rows: Sequence[Row] = TAGGED) -> Reader:
    task = make_task(TaskSpec(type="token-classification"), load_split(list(rows), split="train"))
    return Reader(task, encoder_of(folder, task, max_length=max_length))


class Reader:
    """An encoder, and a model that answers each token by the token alone."""

    def __init__(self, task: Task, encoder: WordEncoder) -> None:
        self.task, self.encoder = task, encoder
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(2000, task.num_labels, generator=generator, dtype=torch.float64)

    def read(self, *inputs: Row) -> list[WindowedText | InputError]:
        found = self.encoder.read(inputs, truncate=True)
        assert all(isinstance(each, WindowedText | InputError) for each in found)
        return found  # type: ignore[return-value]

    def answer(self, given: Row) -> dict[str, Any]:
        (encoded,) = self.read(given)
        assert isinstance(encoded, WindowedText)
        samples = encoded.samples
        assert max(each.length for each in samples) <= self.encoder.sequence_length
        logits = [self.table[each.inputs["input_ids"]] for each in samples]
        return self.task.read_answer(logits, encoded)

    def makes(self, piece: str, label: str) -> None:
        """Let the model give a token this label."""
        token = self.encoder._tokenizer.convert_tokens_to_ids(piece)
        self.table[token] = -9.0
        self.table[token, (self.task.classes or ()).index(label)] = 9.0


class TestRead:
    @EACH
    @pytest.mark.parametrize("field", ["text", "tokens"])
    def test_a_long_text_is_answered_as_in_one_window(
        self, kind: str, field: str, models: TokenizerModels
    ):
        draw = random.Random(3)  # noqa: S311 - a draw, not a secret
        words = draw.choices(WORDS, k=60)
        given = {field: words if field == "tokens" else " ".join(words)}
        folder = models.folder_of(kind)
        whole = reader_of(folder, max_length=512).answer(given)
        assert len(whole["entities"]) > 10
        for max_length in (3, 5, 12, 40):
            assert reader_of(folder, max_length=max_length).answer(given) == whole

    def test_an_entity_over_the_border_of_windows_is_one(self, models: TokenizerModels):
        """Wherever the border is."""
        reader = reader_of(models.folder_of("wordpiece"), max_length=8)
        for piece, label in (("in", "O"), ("ada", "B-person"), ("love", "I-person")):
            reader.makes(piece, label)
        for before in range(12):
            words = ["in"] * before + ["ada"] + ["love"] * 9 + ["in"] * 3
            answer = reader.answer({"tokens": words})
            (entity,) = answer["entities"]
            assert entity["text"] == "ada" + " love" * 9
            assert entity["start"] == 3 * before
            tags = ["O"] * before + ["B-person"] + ["I-person"] * 9 + ["O"] * 3
            assert answer["tags"] == tags

    def test_characters_are_those_of_the_text_as_given(self, models: TokenizerModels):
        reader = reader_of(models.folder_of("wordpiece"), max_length=8)
        reader.table[:, 0] = 9.0  # outside
        reader.makes("love", "B-person")
        whole = "\U0001f600\n\u00e9\u00e9 e\u0301  LOVE\u0301LACE's 世界"
        (entity,) = reader.answer({"text": whole})["entities"]
        assert whole[entity["start"] : entity["end"]] == entity["text"] == "LOVE\u0301LACE"

    @EACH
    def test_a_word_of_more_tokens_than_a_window_is_one(self, kind: str, models: TokenizerModels):
        reader = reader_of(models.folder_of(kind), max_length=6)
        for word in ("a" * 50, "\u00e9" * 50):
            (given,) = reader.read({"text": f"in {word} in"})
            assert isinstance(given, WindowedText)
            assert given.units.ends.tolist() == [2, 53, 56]
            assert sum(map(len, given.places)) == 3

    def test_a_word_of_which_nothing_is_read_is_outside(self, models: TokenizerModels):
        reader = reader_of(models.folder_of("wordpiece"), max_length=8)
        reader.makes("ada", "B-person")
        answer = reader.answer({"tokens": ["ada", "\u200b", "ada"]})
        assert answer["tags"] == ["B-person", "O", "B-person"]

    @pytest.mark.parametrize(
        ("given", "message", "param"),
        [
            ({"text": " "}, "text is empty", "text"),
            ({"tokens": []}, "tokens is empty", "tokens"),
            ({"tokens": ["in", " "]}, "the word is empty", "tokens.1"),
            ({"text": "in", "tokens": ["in"]}, "give text or tokens", "text"),
            ({"image": b""}, "give text or tokens", "text"),
            ({"text": "in", "text_pair": "in"}, "one text, not text_pair", "text_pair"),
            ({"text": "\u200b"}, "no token for this text", "text"),
            ({"tokens": ["\u200b"]}, "no token for this text", "tokens"),
        ],
    )
    def test_an_error_is_of_its_input_alone(
        self, given: Row, message: str, param: str, models: TokenizerModels
    ):
        reader = reader_of(models.folder_of("wordpiece"), max_length=8)
        first, error, last = reader.read({"text": "in"}, given, {"tokens": ["in"]})
        assert isinstance(error, InputError)
        assert message in str(error)
        assert error.param == param
        assert isinstance(first, WindowedText)
        assert isinstance(last, WindowedText)

    @pytest.mark.parametrize("given", [{"text": "in <user>"}, {"tokens": ["in", "<user>"]}])
    def test_a_token_without_an_embedding_is_an_error(self, given: Row, tmp_path: Path):
        (error,) = reader_of(save_with_one_token_more(tmp_path), max_length=8).read(given)
        assert isinstance(error, InputError)
        assert "the token '<user>' has the number" in str(error)
        assert error.param == next(iter(given))


class TestTokenizer:
    def test_one_written_in_python_is_refused(self, tmp_path: Path):
        vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
        vocabulary.write_text('{"[PAD]": 0, "<unk>": 1, "a</w>": 2}')
        merges.write_text("#version: 0.2\n\n")
        tokenizer = tf.CTRLTokenizer(str(vocabulary), str(merges), pad_token="[PAD]")  # noqa: S106 - no password
        tokenizer.save_pretrained(tmp_path)
        tiny_model("bert", vocab_size=1200).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="does not tell the characters of its tokens"):
            encode(tmp_path, TAGGED, max_length=8)

    def test_records_the_column_under_its_field(self, models: TokenizerModels):
        folder = models.folder_of("wordpiece")
        for rows, field in ((TAGGED, "tokens"), (SPANNED, "text")):
            metadata = reader_of(folder, max_length=8, rows=rows).encoder.metadata
            assert metadata[field] == field
            assert len({"tokens", "text"} & set(metadata)) == 1
