"""benchmarks.paper.rivals.channel: what is written is read, and nothing else."""

from __future__ import annotations

import io

import pytest
import torch

from benchmarks.paper.rivals.channel import Message, ask, parts, read, write


def written(*messages: Message) -> io.BytesIO:
    stream = io.BytesIO()
    for each in messages:
        write(stream, each)
    stream.seek(0)
    return stream


class TestRead:
    def test_messages_come_back_one_after_another(self):
        tensors = {"a": torch.arange(6).view(2, 3).T, "é\n": torch.tensor(0.5), "b": torch.empty(0)}
        stream = written(Message({"text": "line\nend"}, tensors), Message())
        first, second = read(stream), read(stream)
        assert first.content == {"text": "line\nend"}
        assert first.tensors.keys() == tensors.keys()
        for name, value in tensors.items():
            assert first.tensors[name].dtype == value.dtype
            assert torch.equal(first.tensors[name], value)
        assert (second.content, second.tensors) == ({}, {})

    def test_a_parameter_is_sent_by_its_value(self):
        (value,) = read(written(Message(tensors={"p": torch.nn.Parameter(torch.ones(2))}))).tensors
        assert value == "p"

    def test_the_end_is_no_message(self):
        with pytest.raises(EOFError):
            read(io.BytesIO())

    @pytest.mark.parametrize(
        "content",
        [
            b"Some weights were not initialised\n",
            b"[1, 2]\n",
            b"3\n",
            b'{"no": "bytes"}\n',
            b'{"bytes": "many"}\n',
            b'{"bytes": 4}\n1234',
        ],
    )
    def test_anything_else_is_quoted(self, content: bytes):
        with pytest.raises(ValueError, match="no message: b'"):
            read(io.BytesIO(content))

    def test_a_cut_message_is_none(self):
        whole = written(Message(tensors={"a": torch.ones(4)})).getvalue()
        with pytest.raises(ValueError, match="no message"):
            read(io.BytesIO(whole[:-1]))


class TestParts:
    def test_are_found_by_their_name(self):
        inputs, trained = {"ids": torch.ones(1)}, {"a.b/c": torch.zeros(2), "ids": torch.ones(3)}
        message = read(written(Message(tensors=parts(inputs=inputs, trained=trained))))
        assert message.part("inputs").keys() == inputs.keys()
        assert torch.equal(message.part("trained")["ids"], trained["ids"])
        assert message.part("trained").keys() == trained.keys()
        assert message.part("in") == {}


def test_a_request_keeps_its_content():
    tensors = {"a": torch.ones(1)}
    message = ask("train", Message({"seed": 3}, tensors))
    assert dict(message.content) == {"seed": 3, "request": "train"}
    assert message.tensors == tensors
