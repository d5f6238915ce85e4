"""hifi.serving.prediction: encoding as in training, and logits decoded by the record."""

from __future__ import annotations

import base64
import io
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import normalizers, processors
from transformers import AutoTokenizer

from hifi.backbones.models import load_config, load_image_processor, resolve_model
from hifi.data.splits import load_split
from hifi.deltas.delta import HeadDelta
from hifi.deltas.loading import load_bare_backbone
from hifi.errors import (
    AnswerError,
    DeltaFileError,
    ImageInputError,
    InputError,
    InvalidArgumentError,
    TaskNotSupportedError,
    TextTooLongError,
)
from hifi.serving.prediction import TaskRecord, collate
from hifi.tasks import Encoder, Sample, get_task
from hifi.tasks import image as image_module
from hifi.tasks.image import ImageEncoder
from hifi.tasks.text import TextEncoder
from tests.architectures import PAD
from tests.tiny_tasks import SPECIAL, WORDS, png, save_image_model, text_rows, tiny_tokenizer

CPU = torch.device("cpu")


def record_of(
    kind: str = "classification",
    *,
    columns: int = 1,
    labels: tuple[str, ...] | None = ("no", "yes"),
    max_length: int | None = 16,
    pad_token_id: int | None = None,
) -> TaskRecord:
    task = get_task(kind)
    named = task(
        inputs=("first", "second")[:columns],
        label="label",
        metric=task.declaration.metrics[0],
        classes=labels,
    )
    return TaskRecord(named, max_length, pad_token_id)


def reader_of(folder: Path, record: TaskRecord) -> Encoder:
    source = resolve_model(folder)
    return record.load_encoder(source, load_bare_backbone(source, device=CPU).model)


def trained(folder: Path, rows: list[dict], *, columns: tuple[str, ...], max_length: int):
    """Encode as a fine-tune does, sample by sample."""
    source = resolve_model(folder)
    encoder = TextEncoder(source, load_config(source), columns=columns, max_length=max_length)
    examples = encoder.encode(
        load_split(rows, split="train"), split="train", targets=torch.zeros(len(rows))
    )
    return [examples.batch([index]).inputs for index in range(len(rows))]


def answer_of(record: TaskRecord, logits: list[float]) -> dict:
    sample = Sample({"input_ids": torch.zeros(3, dtype=torch.int64)}, {}, 3)
    return record.task.read_answer([torch.tensor(logits)], sample)


def samples_of(read: list[Sample | InputError]) -> list[Sample]:
    assert all(isinstance(entry, Sample) for entry in read), read
    return read


def error_of(reader: Encoder, truncate: bool = True, **given: str) -> InputError:
    (error,) = reader.read([given], truncate=truncate)
    assert isinstance(error, InputError)
    return error


class TestTexts:
    @pytest.mark.parametrize("columns", [1, 2])
    @pytest.mark.parametrize("max_length", [5, 8, 9, 64])
    @pytest.mark.parametrize("folder", ["backbone", "minilm_path"])
    def test_are_encoded_as_in_training(
        self, folder: str, columns: int, max_length: int, request: pytest.FixtureRequest
    ):
        path = request.getfixturevalue(folder)
        rows = text_rows(30, pair=True)
        names = ("first", "second")[:columns]
        expected = trained(path, rows, columns=names, max_length=max_length)
        reader = reader_of(path, record_of(columns=columns, max_length=max_length))
        parts = ("text", "text_pair")[:columns]
        inputs = [
            {part: row[name] for part, name in zip(parts, names, strict=True)} for row in rows
        ]
        for truncated in (inputs, inputs[::-1], inputs[:1]):
            samples = samples_of(reader.read(truncated, truncate=True))
            for sample, given in zip(samples, truncated, strict=True):
                training = expected[inputs.index(given)]
                assert sample.inputs.keys() == training.keys()
                for name, value in sample.inputs.items():
                    assert value.equal(training[name][0]), name
                assert sample.length == training["input_ids"].shape[1] <= max_length

    def test_are_collated_as_in_training(self, backbone: Path):
        rows = text_rows(9)
        source = resolve_model(backbone)
        encoder = TextEncoder(source, load_config(source), columns=("text",), max_length=16)
        dataset = load_split(rows, split="train")
        examples = encoder.encode(dataset, split="train", targets=torch.zeros(9))
        reader = reader_of(backbone, record_of())
        samples = samples_of(reader.read([{"text": row["text"]} for row in rows], truncate=True))
        batch, training = collate(samples), examples.batch(range(9)).inputs
        assert batch.keys() == training.keys()
        for name, value in batch.items():
            assert value.equal(training[name]), name

    @pytest.mark.parametrize("columns", [1, 2])
    def test_too_long_are_refused_without_truncation(self, backbone: Path, columns: int):
        reader = reader_of(backbone, record_of(columns=columns, max_length=9))
        room = 9 - (2 if columns == 1 else 3)
        for words in range(1, 2 * room):
            first = {"text": " ".join(WORDS[: max(1, words - columns + 1)])}
            given = first if columns == 1 else {**first, "text_pair": "w3"}
            (read,) = reader.read([given], truncate=False)
            fits = max(1, words - columns + 1) + columns - 1 <= room
            assert isinstance(read, Sample if fits else TextTooLongError)
            if isinstance(read, TextTooLongError):
                assert read.param == "text"
                length = words + (2 if columns == 1 else 3)
                having = "the text has" if columns == 1 else "both texts together have"
                assert f"{having} {length} tokens; the task reads at most 9" in str(read)
                assert isinstance(reader.read([given], truncate=True)[0], Sample)

    def test_of_a_very_long_pair_take_little_memory(self, minilm_path: Path):
        """The tokenizers library would make 40,000,000 pieces of these, and end the process."""
        reader = reader_of(minilm_path, record_of(columns=2, max_length=16))
        given = {"text": "a " * 50_000, "text_pair": "b " * 50_000}
        (sample,) = samples_of(reader.read([given], truncate=True))
        assert sample.length == 16
        assert isinstance(reader.read([given], truncate=False)[0], TextTooLongError)

    def test_of_a_delta_without_a_length_are_cut_at_the_models_limit(self, backbone: Path):
        reader = reader_of(backbone, record_of(max_length=None))
        (sample,) = samples_of(reader.read([{"text": "w1 " * 500}], truncate=True))
        assert sample.length == 128

    @pytest.mark.parametrize("max_length", [None, 16])
    def test_are_read_with_a_tokenizer_that_is_loaded_once(
        self, backbone: Path, max_length: int | None, monkeypatch: pytest.MonkeyPatch
    ):
        source = resolve_model(backbone)
        model = load_bare_backbone(source, device=CPU).model
        load, loaded = AutoTokenizer.from_pretrained, []
        monkeypatch.setattr(
            AutoTokenizer,
            "from_pretrained",
            lambda path, **settings: (loaded.append(path), load(path, **settings))[1],
        )
        record_of(max_length=max_length).load_encoder(source, model)
        assert len(loaded) == 1

    def test_of_which_some_lack_an_input_are_no_batch(self, backbone: Path):
        first, second = samples_of(
            reader_of(backbone, record_of()).read([{"text": "w1"}, {"text": "w2"}], truncate=True)
        )
        fewer = replace(second, inputs={"input_ids": second.inputs["input_ids"]})
        for samples in ([first, fewer], [fewer, first]):
            with pytest.raises(InvalidArgumentError, match="input_ids"):
                collate(samples)
        assert collate([fewer, fewer]).keys() == {"input_ids"}

    def test_are_padded_with_the_recorded_token(self, backbone: Path):
        reader = reader_of(backbone, record_of(pad_token_id=7))
        samples = samples_of(reader.read([{"text": "w1"}, {"text": "w1 w2"}], truncate=True))
        assert collate(samples)["input_ids"][0, -1] == 7
        assert collate(samples)["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]

    def test_of_several_lengths_at_once_do_not_mix(self, backbone: Path):
        source = resolve_model(backbone)
        model = load_bare_backbone(source, device=CPU).model
        lengths = (4, 6, 9, 16)
        readers = [record_of(max_length=n).load_encoder(source, model) for n in lengths]
        given = [{"text": " ".join(WORDS[:n])} for n in range(1, 30)]

        def read(place: int) -> list[int]:
            samples = samples_of(readers[place % 4].read(given, truncate=True))
            return [sample.length for sample in samples]

        with ThreadPoolExecutor(8) as pool:
            for place, got in enumerate(pool.map(read, range(80))):
                assert got == [min(n + 2, lengths[place % 4]) for n in range(1, 30)]

    def test_a_reader_is_used_by_many_threads(self, minilm_path: Path):
        reader = reader_of(minilm_path, record_of(columns=2, max_length=12))
        rows = text_rows(20, pair=True)
        given = [{"text": row["first"], "text_pair": row["second"]} for row in rows]
        alone = [sample.inputs["input_ids"] for sample in reader.read(given, truncate=True)]

        def read(truncate: bool) -> list[Sample | InputError]:
            return reader.read(given, truncate=truncate)

        with ThreadPoolExecutor(8) as pool:
            for read_ in pool.map(read, [True, False] * 40):
                for entry, expected in zip(read_, alone, strict=True):
                    if isinstance(entry, Sample):
                        assert entry.inputs["input_ids"].equal(expected)


class TestBadTexts:
    @pytest.mark.parametrize(
        ("given", "param"),
        [
            ({}, "text"),
            ({"text": ""}, "text"),
            ({"text": "  \t\n\u3000"}, "text"),
            ({"image": "aaaa"}, "image"),
            ({"text_pair": "w1"}, "text"),
            ({"text": "w1", "text_pair": "w2"}, "text_pair"),
            ({"text": "w1", "image": "aaaa"}, "image"),
        ],
    )
    def test_of_one_text(self, backbone: Path, given: dict, param: str):
        assert error_of(reader_of(backbone, record_of()), **given).param == param

    @pytest.mark.parametrize(
        ("given", "param"),
        [
            ({}, "text"),
            ({"text": "w1"}, "text_pair"),
            ({"text": "w1", "text_pair": " "}, "text_pair"),
            ({"text": "", "text_pair": "w1"}, "text"),
            ({"text": "w1", "text_pair": "w1", "image": "aaaa"}, "image"),
        ],
    )
    def test_of_a_pair(self, backbone: Path, given: dict, param: str):
        assert error_of(reader_of(backbone, record_of(columns=2)), **given).param == param

    def test_name_the_given_type(self, backbone: Path):
        reader = reader_of(backbone, record_of())
        assert ", not images" in str(error_of(reader, image="aaaa"))
        assert "text is missing" in str(error_of(reader, text_pair="w1"))

    def test_disturb_no_other(self, backbone: Path):
        reader = reader_of(backbone, record_of())
        texts = ["w1", "", "w2 w3", " ", "w4"]
        read = reader.read([{"text": text} for text in texts], truncate=True)
        assert [isinstance(entry, Sample) for entry in read] == [True, False] * 2 + [True]
        assert [entry.length for entry in read if isinstance(entry, Sample)] == [3, 4, 3]
        assert reader.read([], truncate=True) == []

    def test_of_which_no_token_is_left(self, backbone: Path, tmp_path: Path):
        bare = tiny_tokenizer(pad_token=SPECIAL[0])
        bare.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
        bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
        for file in backbone.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        bare.save_pretrained(tmp_path)
        reader = reader_of(tmp_path, record_of())
        assert "no token" in str(error_of(reader, text="\u200b"))


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return save_image_model(tmp_path)

    @pytest.fixture
    def reader(self, folder: Path) -> Encoder:
        return reader_of(folder, record_of("image-classification", max_length=None))

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_are_encoded_as_in_training(self, reader: Encoder, folder: Path, mode: str):
        images = [png(shade, size=(shade + 1, 9), mode=mode) for shade in (0, 90, 200)]
        source = resolve_model(folder)
        encoder = ImageEncoder(
            load_image_processor(source), config=load_config(source), column="image"
        )
        rows = [{"image": {"bytes": image, "path": None}} for image in images]
        examples = encoder.encode(
            load_split(rows, split="train"), split="train", targets=torch.zeros(3)
        )
        given = [{"image": base64.b64encode(image).decode()} for image in images]
        samples = samples_of(reader.read(given, truncate=False))
        training = examples.batch(range(3)).inputs["pixel_values"]
        assert collate(samples)["pixel_values"].equal(training)
        assert {sample.length for sample in samples} == {encoder.sequence_length}

    @pytest.mark.parametrize(
        "image",
        [
            *("", "%", "aaa", "data:image/png;base64,aaaa", "aaaa", "ä", "a\0aa"),
            base64.b64encode(b"no image").decode(),
            base64.b64encode(png(9)[:-30]).decode(),
            base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
            "\n".join((base64.b64encode(png(9)).decode()[:40], "rest")),
        ],
    )
    def test_that_cannot_be_decoded(self, reader: Encoder, image: str):
        error = error_of(reader, image=image)
        assert isinstance(error, ImageInputError)
        assert error.param == "image"
        (sample,) = reader.read([{"image": base64.b64encode(png(9)).decode()}], truncate=True)
        assert isinstance(sample, Sample)

    def test_of_too_many_pixels_are_not_decoded(
        self, reader: Encoder, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(image_module, "decode_image", None)  # calling it would fail
        buffer = io.BytesIO()
        Image.new("1", (1 << 13, (1 << 12) + 1)).save(buffer, "PNG")
        error = error_of(reader, image=base64.b64encode(buffer.getvalue()).decode())
        assert "8192×4097 pixels" in str(error)
        assert isinstance(error, ImageInputError)

    def test_that_only_claim_to_be_huge(self, reader: Encoder):
        header = struct.pack(">II", 1 << 20, 1 << 20) + bytes([8, 0, 0, 0, 0])
        whole = png(9)
        claimed = whole[:16] + header + whole[29:]
        assert isinstance(
            error_of(reader, image=base64.b64encode(claimed).decode()), ImageInputError
        )

    @pytest.mark.parametrize(
        ("given", "param"),
        [({}, "image"), ({"text": "w1"}, "text"), ({"image": "", "text_pair": "w1"}, "text_pair")],
    )
    def test_missing_or_of_another_kind(self, reader: Encoder, given: dict, param: str):
        assert error_of(reader, **given).param == param


class TestTaskRecord:
    @pytest.fixture
    def delta(self, delta_file: Path) -> HeadDelta:
        return HeadDelta.load(delta_file)

    def changed(self, delta: HeadDelta, **task: object) -> HeadDelta:
        metadata = replace(delta.metadata, task={**(delta.metadata.task or {}), **task})
        return replace(delta, metadata=metadata)

    def test_holds_what_the_delta_records(self, delta: HeadDelta, backbone: Path):
        config = load_config(resolve_model(backbone))
        record = TaskRecord.of(self.changed(delta, pad_token_id=5, text=["a", "b"]), config)
        assert record.task.declaration.name == "classification"
        assert (record.task.inputs, record.task.classes) == (("a", "b"), ("bad", "good"))
        assert (record.max_length, record.pad_token_id) == (32, 5)
        assert config.pad_token_id == PAD  # as it was

    def test_of_an_unpredictable_task_is_refused(
        self, delta: HeadDelta, backbone: Path, tmp_path: Path
    ):
        config = load_config(resolve_model(backbone))
        free = replace(delta, metadata=replace(delta.metadata, task=None))
        for odd in (
            free,
            replace(delta, task_head={}),
            replace(delta, metadata=replace(delta.metadata, labels=None)),
            self.changed(delta, type="unheard-of"),
            self.changed(delta, type="image-classification", image="i"),
            *(self.changed(delta, text=value) for value in (None, "ab", [], ["a"] * 3, 7)),
        ):
            with pytest.raises(TaskNotSupportedError):
                TaskRecord.of(odd, config)
        with pytest.raises(DeltaFileError):
            TaskRecord.of(self.changed(delta, max_length=0), config)
        image_config = load_config(resolve_model(save_image_model(tmp_path)))
        with pytest.raises(TaskNotSupportedError, match="reads texts"):
            TaskRecord.of(replace(delta, metadata=delta.metadata), image_config)

    def test_shares_a_reader_where_the_encoding_is_the_same(self):
        assert record_of().encoding == record_of("regression", labels=None).encoding
        different = [record_of(columns=2), record_of(max_length=8), record_of(pad_token_id=3)]
        assert len({each.encoding for each in (*different, record_of())}) == 4

    @pytest.mark.parametrize("max_length", [1, 2, 129, 1 << 30])
    def test_a_length_that_cannot_be_is_refused(self, backbone: Path, max_length: int):
        with pytest.raises(InvalidArgumentError, match="max_length"):
            reader_of(backbone, record_of(max_length=max_length))

    def test_reads_classes(self):
        answer = answer_of(record_of(labels=("a", "b", "c")), [0.0, 2.0, 1.0])
        total = 1 + torch.e**2 + torch.e
        assert answer["label"] == "b"
        assert answer["score"] == pytest.approx(torch.e**2 / total)
        assert answer["scores"] == pytest.approx(
            {"a": 1 / total, "b": torch.e**2 / total, "c": torch.e / total}
        )
        assert sum(answer["scores"].values()) == pytest.approx(1.0, abs=1e-12)

    def test_reads_numbers(self):
        record = record_of("regression", labels=None)
        assert answer_of(record, [1.5]) == {"value": 1.5}

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_of_a_non_finite_value_is_an_error(self, value: float):
        for record in (record_of(), record_of("regression", labels=None)):
            with pytest.raises(AnswerError, match="not a number"):
                answer_of(record, [value, 1.0])
