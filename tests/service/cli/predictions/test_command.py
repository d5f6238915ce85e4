"""``hifi jobs predict``: the requests sent, the output, and the exit codes."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hifi.cli import main
from hifi.data.formats import ENDINGS_IN_WORDS
from service.cli.predictions import requests
from tests.service.stub_server import document, problem

if TYPE_CHECKING:
    from tests.service.stub_server import StubServer

PREDICT = ["jobs", "predict"]
PATH = "/jobs/job_1/predict"
SHORT = {"label": "short", "score": 0.75, "scores": {"long": 0.25, "short": 0.75}}


class Answering:
    """Answers every row, and records them.

    Args:
        stub: the server.
        paths: that it answers.
    """

    def __init__(self, stub: StubServer, *paths: str) -> None:
        self.bodies: list[Any] = []
        for path in paths:
            stub.on("POST", path, self._answer)

    def _answer(self, handler: Any, asked: Any) -> None:
        self.bodies.append(asked.json)
        data = [self._say(index, item) for index, item in enumerate(asked.json["inputs"])]
        document({"object": "list", "data": data})(handler, asked)

    def _say(self, index: int, item: Any) -> Any:
        if "jobs" in item:
            each = [self._say_one(index, {**item, "job": job}) for job in item["jobs"]]
            return {"index": index, "answers": each}
        return self._say_one(index, item)

    def _say_one(self, index: int, item: Any) -> Any:
        named = {"index": index, "job": item.get("job", "job_1")}
        place = f"inputs.{index}" + (".input" if "job" in item else "")
        given = item.get("input", item)
        if given.get("text") == "wrong":
            error = {"code": "text_too_long", "message": "too long", "param": f"{place}.text"}
            return {**named, "error": error}
        if given.get("text") == "late":
            error = {"code": "deadline_exceeded", "message": "too late", "param": None}
            return {**named, "error": error}
        if given.get("text") == "Ada":
            entity = {"start": 0, "end": 3, "label": "person", "score": 0.9, "text": "Ada"}
            return {**named, "entities": [entity] * 2, "tags": None}
        if given.get("text") == "long":
            return {**named, **SHORT, "label": "x" * 100}
        return {**named, "value": 1.5} if given.get("text") == "number" else {**named, **SHORT}


@pytest.fixture
def answering(stub, job) -> Answering:
    return answering_for(stub, job)


def answering_for(stub, job) -> Answering:
    """Let a server answer predictions of this job."""
    stub.on("GET", "/jobs", document({"object": "list", "data": [], "has_more": False}))
    stub.on("GET", "/jobs/job_1", document(job))
    return Answering(stub, PATH, "/predict")


@pytest.fixture
def file(tmp_path):
    """Return a function that writes rows to a file and returns its name."""

    def write(*rows: object) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


class TestRows:
    def test_are_the_texts_behind_the_job(self, answering, capsys):
        assert main([*PREDICT, "job_1", "a text", "another"]) == 0
        assert answering.bodies == [
            {"inputs": [{"text": "a text"}, {"text": "another"}], "truncate": True}
        ]
        assert capsys.readouterr().out.splitlines() == [
            "row  label  score   input",
            "1    short  0.7500  a text",
            "2    short  0.7500  another",
        ]

    def test_are_pairs_of_texts(self, answering, capsys):
        pairs = ["--pair", "a first", "a second", "--pair", "x" * 40, "y"]
        assert main([*PREDICT, "job_1", *pairs]) == 0
        assert answering.bodies[0]["inputs"] == [
            {"text": "a first", "text_pair": "a second"},
            {"text": "x" * 40, "text_pair": "y"},
        ]
        out = capsys.readouterr().out
        assert "a first | a second" in out
        assert f"{'x' * 29}… | y" in out

    @pytest.mark.parametrize(
        ("given", "texts"),
        [
            ([], [{}]),
            (["She", "He"], [{"text": "She"}, {"text": "He"}]),
            (["--pair", "It rained.", "She"], [{"text": "It rained.", "text_pair": "She"}]),
        ],
    )
    def test_have_choices(self, answering, given, texts):
        assert main([*PREDICT, "job_1", *given, "--choices", "left", "ran"]) == 0
        choices = {"choices": ["left", "ran"]}
        assert answering.bodies[0]["inputs"] == [{**each, **choices} for each in texts]

    def test_of_a_file_have_their_own_choices(self, answering, file, capsys):
        rows = file({"text": "She"})
        assert main([*PREDICT, "job_1", "--file", rows, "--choices", "left", "ran"]) == 1
        assert "--choices belongs to texts or --pair" in capsys.readouterr().err
        assert not answering.bodies

    def test_have_long_answers_in_short(self, stub, job, capsys):
        answering_for(stub, job)
        assert main([*PREDICT, "job_1", "long"]) == 0
        assert f"{'x' * 59}…  0.7500  long" in capsys.readouterr().out

    def test_are_questions_with_their_contexts(self, stub, job, capsys):
        task = {"type": "question-answering", "question": "q", "context": "c", "answers": "a"}
        answering = answering_for(stub, {**job, "spec": {**job["spec"], "task": task}})
        assert main([*PREDICT, "job_1", "--pair", "Who left?", "Ada left."]) == 0
        assert answering.bodies[0]["inputs"] == [{"question": "Who left?", "context": "Ada left."}]
        assert "Who left? | Ada left." in capsys.readouterr().out

    def test_are_images(self, answering, tmp_path, capsys):
        images = [tmp_path / "one.png", tmp_path / "two.png"]
        for number, image in enumerate(images):
            image.write_bytes(bytes([number, 255]))
        options = [word for image in images for word in ("--image", str(image))]
        assert main([*PREDICT, "job_1", *options]) == 0
        assert [base64.b64decode(given["image"]) for given in answering.bodies[0]["inputs"]] == [
            b"\x00\xff",
            b"\x01\xff",
        ]
        assert str(images[1]) in capsys.readouterr().out

    def test_are_the_lines_of_a_file(self, answering, file, capsys):
        rows = [{"text": "größe\n" * 40}, {"text": "a", "label": "b"}, {"image": "aGk="}]
        assert main([*PREDICT, "job_1", "--file", file(*rows)]) == 0
        assert answering.bodies[0]["inputs"] == [rows[0], {"text": "a"}, rows[2]]
        lines = capsys.readouterr().out.splitlines()[1:]
        assert lines[0].endswith("größe größe…")
        assert lines[1].endswith("a")
        assert lines[2].endswith("image")

    @pytest.mark.parametrize(
        "words",
        [
            ["--json", "job_1", "a", "b"],
            ["job_1", "--json", "a", "b"],
            ["job_1", "a", "--json", "b"],
            ["job_1", "a", "b", "--json"],
            ["job_1", "a", "--no-truncate", "--json", "b"],
            ["job_1", "--timeout", "3", "a", "--json", "b"],
            ["job_1", "--json", "--", "a", "b"],
            ["job_1", "a", "--json", "--", "b"],
            ["job_1", "--json", "a", "--url", "{url}", "b"],
        ],
    )
    def test_stand_before_and_behind_options(self, answering, stub, words):
        assert main([*PREDICT, *(word.format(url=stub.url) for word in words)]) == 0
        (body,) = answering.bodies
        assert body["inputs"] == [{"text": "a"}, {"text": "b"}]

    @pytest.mark.parametrize("word", ["-", "-5", "-.5", "- a point", "-a point\nof mine"])
    def test_may_begin_with_a_dash_before_and_behind_options(self, answering, word):
        for words in ([word, "--json"], ["--json", word]):
            assert main([*PREDICT, "job_1", *words]) == 0
        assert [body["inputs"] for body in answering.bodies] == [[{"text": word}]] * 2

    def test_may_come_from_stdin_with_blank_lines_between(self, answering, monkeypatch):
        content = b'{"text": "a"}\n\n  \n{"text": "b"}'
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert main([*PREDICT, "job_1", "--file", "-"]) == 0
        assert answering.bodies[0]["inputs"] == [{"text": "a"}, {"text": "b"}]

    def test_of_a_file_may_name_their_jobs(self, answering, stub, file, capsys):
        rows = [{"job": f"job_{number}", "input": {"text": f"t{number}"}} for number in (1, 2)]
        assert main([*PREDICT, "--file", file(*rows)]) == 0
        assert stub.paths() == ["POST /predict"]
        assert answering.bodies[0]["inputs"] == rows
        assert capsys.readouterr().out.splitlines() == [
            "row  job    label  score   input",
            "1    job_1  short  0.7500  t1",
            "2    job_2  short  0.7500  t2",
        ]

    def test_of_a_file_may_name_several_jobs_each(self, answering, file, capsys):
        rows = [{"jobs": ["job_1", "job_2"], "input": {"text": text}} for text in ("t1", "wrong")]
        assert main([*PREDICT, "--file", file(*rows)]) == 1
        assert answering.bodies[0]["inputs"] == rows
        captured = capsys.readouterr()
        assert captured.out.splitlines() == [
            "row  job    label  score   input",
            "1    job_1  short  0.7500  t1",
            "1    job_2  short  0.7500  t1",
        ]
        assert captured.err == "hifi: error: row 2: too long (text_too_long)\n"
        assert main([*PREDICT, "--json", "--file", file(*rows)]) == 1
        wrong = json.loads(capsys.readouterr().out)["data"][1]
        assert [each["error"]["param"] for each in wrong["answers"]] == ["inputs.1.input.text"] * 2

    def test_of_a_json_file_may_name_their_jobs(self, answering, tmp_path):
        path = tmp_path / "rows.json"
        rows = [{"job": f"job_{number}", "input": {"text": f"t{number}"}} for number in (1, 2)]
        path.write_text(json.dumps(rows, indent=2))
        assert main([*PREDICT, "--file", str(path)]) == 0
        assert answering.bodies[0]["inputs"] == rows

    def test_are_the_entries_of_a_json_list(self, answering, tmp_path, capsys):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps([{"text": "größe"}, {"text": "a", "label": "b"}], indent=2))
        assert main([*PREDICT, "job_1", "--file", str(path)]) == 0
        assert answering.bodies[0]["inputs"] == [{"text": "größe"}, {"text": "a"}]
        assert len(capsys.readouterr().out.splitlines()) == 3

    def test_of_label_studio_have_their_text_in_the_data(self, answering, file):
        tasks = [{"id": 1, "data": {"text": "a"}, "annotations": []}, {"data": {"note": "b"}}]
        assert main([*PREDICT, "job_1", "--file", file(*tasks)]) == 0
        assert answering.bodies[0]["inputs"] == [{"text": "a"}, {"text": "b"}]

    def test_with_entities_show_them(self, answering, capsys):
        assert main([*PREDICT, "job_1", "Ada", "a text"]) == 0
        assert answering.bodies
        assert capsys.readouterr().out.splitlines() == [
            "row  label  score   entities                   input",
            "1                   Ada (person) Ada (person)  Ada",
            "2    short  0.7500                             a text",
        ]

    def test_with_numbers_have_a_column_for_these(self, answering, capsys):
        assert main([*PREDICT, "job_1", "number"]) == 0
        assert answering.bodies
        assert capsys.readouterr().out.splitlines() == [
            "row  value   input",
            "1    1.5000  number",
        ]
        main([*PREDICT, "job_1", "number", "a text"])
        assert capsys.readouterr().out.splitlines() == [
            "row  label  score   value   input",
            "1                   1.5000  number",
            "2    short  0.7500          a text",
        ]

    def test_cannot_steer_the_terminal(self, answering, capsys):
        assert main([*PREDICT, "job_1", "a\x1b[31mb\r\nc"]) == 0
        assert answering.bodies
        assert "\x1b" not in capsys.readouterr().out

    def test_options_are_passed_on(self, answering):
        assert main([*PREDICT, "job_1", "a", "--no-truncate", "--timeout", "7"]) == 0
        assert answering.bodies == [
            {"inputs": [{"text": "a"}], "truncate": False, "timeout_seconds": 7.0}
        ]


class TestManyRows:
    def test_go_in_several_requests_and_count_through(self, answering, file, capsys):
        texts = [f"text {number}" for number in range(600)]
        texts[300] = "wrong"
        code = main([*PREDICT, "job_1", "--json", "--file", file(*({"text": t} for t in texts))])
        assert code == 1
        assert [len(body["inputs"]) for body in answering.bodies] == [256, 256, 88]
        assert [row["text"] for body in answering.bodies for row in body["inputs"]] == texts
        captured = capsys.readouterr()
        printed = json.loads(captured.out)
        assert printed["object"] == "list"
        assert [item["index"] for item in printed["data"]] == list(range(600))
        assert printed["data"][299] == {"index": 299, "job": "job_1", **SHORT}
        assert printed["data"][300]["error"]["param"] == "inputs.300.text"
        assert captured.err == "hifi: error: row 301: too long (text_too_long)\n"

    def test_for_many_jobs_go_in_more(self, answering, file, monkeypatch):
        monkeypatch.setattr(requests, "_MOST_ANSWERS", 4)
        jobs = [["job_1"], ["job_1", "job_2"], ["job_1", "job_2"], [f"job_{n}" for n in range(9)]]
        rows = [{"jobs": names, "input": {"text": "t"}} for names in jobs]
        assert main([*PREDICT, "--file", file(*rows)]) == 0
        assert [len(body["inputs"]) for body in answering.bodies] == [2, 1, 1]

    def test_that_are_large_go_in_more(self, answering, file, monkeypatch):
        monkeypatch.setattr(requests, "_MOST_BYTES", 1000)
        lengths = [400, 400, 400, 5000, 10, 10, 900]
        rows = [{"text": "x" * length} for length in lengths]
        assert main([*PREDICT, "job_1", "--file", file(*rows)]) == 0
        sent = [[len(row["text"]) for row in body["inputs"]] for body in answering.bodies]
        assert sent == [[400, 400], [400], [5000], [10, 10, 900]]

    def test_of_many_words_go_in_more(self, answering, file, monkeypatch):
        """The server limits a request's values, and each word is one."""
        monkeypatch.setattr(requests, "_MOST_VALUES", 100)
        words = [30, 30, 30, 300, 40]
        rows = [{"job": "job_1", "input": {"tokens": ["a"] * count}} for count in words]
        assert main([*PREDICT, "--file", file(*rows)]) == 0
        sent = [
            [len(row["input"]["tokens"]) for row in each["inputs"]] for each in answering.bodies
        ]
        assert sent == [[30, 30, 30], [300], [40]]


class TestLateRows:
    def test_are_requested_again_without_the_others(self, stub, job, file):
        stub.on("GET", "/jobs/job_1", document(job))
        asked: list[list[str]] = []

        def answer(handler: Any, request: Any) -> None:
            texts = [row["text"] for row in request.json["inputs"]]
            asked.append(texts)
            late = {"code": "deadline_exceeded", "message": "too late", "param": None}
            data = [
                {"index": index, "job": "job_1", **(SHORT if index < 2 else {"error": late})}
                for index in range(len(texts))
            ]
            document({"object": "list", "data": data})(handler, request)

        stub.on("POST", PATH, answer)
        rows = [{"text": name} for name in "abcde"]
        assert main([*PREDICT, "job_1", "--file", file(*rows)]) == 0
        assert asked == [["a", "b", "c", "d", "e"], ["c", "d", "e"], ["e"]]

    def test_are_reported_as_late_if_the_server_is_gone(self, stub, job, file, capsys):
        stub.on("GET", "/jobs/job_1", document(job))
        late = {"code": "deadline_exceeded", "message": "too late", "param": None}
        rows = [{"index": 0, "job": "job_1", **SHORT}, {"index": 1, "job": "job_1", "error": late}]
        refused = problem(503, "inference_unavailable", "it has gone", **{"Retry-After": "0"})
        answers = iter([document({"object": "list", "data": rows})])

        def answer(handler: Any, request: Any) -> None:
            next(answers, refused)(handler, request)

        stub.on("POST", PATH, answer)
        assert main([*PREDICT, "job_1", "--file", file({"text": "a"}, {"text": "b"})]) == 1
        captured = capsys.readouterr()
        assert captured.out.splitlines()[1:] == ["1    short  0.7500  a"]
        assert captured.err == "hifi: error: row 2: too late (deadline_exceeded)\n"

    def test_are_not_requested_forever(self, stub):
        asked: list[int] = []

        def answer(handler: Any, request: Any) -> None:
            asked.append(len(request.json["inputs"]))
            late = {"error": {"code": "deadline_exceeded", "message": "m", "param": None}}
            data = [
                {"index": index, "job": "job_1", **(late if index else SHORT)}
                for index in range(asked[-1])
            ]
            document({"object": "list", "data": data})(handler, request)

        stub.on("POST", PATH, answer)
        assert main([*PREDICT, "job_1", *["a"] * 20]) == 1
        assert asked == [20, 19, 18, 17, 16]

    def test_are_given_up_if_none_comes_in_time(self, answering, capsys):
        assert main([*PREDICT, "job_1", "late", "a", "late"]) == 1
        assert [len(body["inputs"]) for body in answering.bodies] == [3, 2]
        assert capsys.readouterr().err.splitlines() == [
            "hifi: error: row 1, row 3: too late (deadline_exceeded)",
        ]


class TestErrors:
    def test_of_rows_are_reported_one_by_one(self, answering, capsys):
        assert main([*PREDICT, "job_1", "a text", "wrong", "late"]) == 1
        assert answering.bodies
        captured = capsys.readouterr()
        assert captured.out.splitlines()[1:] == ["1    short  0.7500  a text"]
        assert captured.err.splitlines() == [
            "hifi: error: row 2: too long (text_too_long)",
            "hifi: error: row 3: too late (deadline_exceeded)",
        ]

    def test_without_a_success_no_table_is_shown(self, answering, capsys):
        assert main([*PREDICT, "job_1", *["wrong"] * 30]) == 1
        assert answering.bodies
        captured = capsys.readouterr()
        assert captured.out == ""
        told = "row 1, row 2, row 3 and 27 more: too long (text_too_long)"
        assert captured.err == f"hifi: error: {told}\n"

    def test_of_the_whole_request_are_one_line(self, stub, capsys):
        stub.on("POST", PATH, problem(404, "not_found", "there is no job 'job_1'"))
        assert main([*PREDICT, "job_1", "a"]) == 1
        assert capsys.readouterr() == ("", "hifi: error: there is no job 'job_1'\n")

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ([], "nothing to predict: pass"),
            (["job_1"], "nothing to predict: pass"),
            (["--pair", "a", "b"], "no job: pass its id first"),
            (["a text"], "nothing to predict: pass"),
            (["a text", "another"], "no job has the id or the name 'a text'; pass the job first"),
            (["job_1", "--file", "{mixed}"], "row 2 names its own job"),
            (["job_1", "--file", "{shared}"], "row 1 names its own job"),
            (["--file", "{unmixed}"], "row 1 does not name its job"),
            (["--file", "{table}"], "only .jsonl and .json rows name their jobs"),
            (["job_1", "a", "--pair", "a", "b"], "pass TEXT or --pair"),
            (["job_1", "--image", "{missing}", "--file", "-"], "pass --image or --file"),
            (["job_1", "--image", "{missing}"], "cannot read"),
            (["job_1", "--file", "{missing}"], "cannot read"),
            (["job_1", "--file", "{folder}"], "cannot read"),
            (["job_1", "--file", "{empty}"], "has no rows"),
            (["job_1", "--file", "{broken}"], "line 3 is not JSON"),
            (["job_1", "--file", "{nan}"], "line 1 is not JSON"),
            (["job_1", "--file", "{infinite}"], "row 1 cannot be sent"),
            (["job_1", "--file", "{latin}"], "line 1 is not JSON"),
            (["job_1", "--file", "{number}"], "line 2 is not a JSON object"),
            (["job_1", "--file", "{spaced}"], "row 2 (line 3) has no column 'text'"),
            (["job_1", "--file", "{other}"], f"does not end with {ENDINGS_IN_WORDS}"),
            (["job_1", "--out", "x.jsonl", "a"], "--out needs --file"),
        ],
    )
    def test_invalid_rows_are_one_line_and_send_no_request(
        self, answering, arguments, told, tmp_path, capsys
    ):
        contents = {
            "empty": b"\n\n",
            "broken": b'{"text": "a"}\n\n{"text": \n',
            "nan": b'{"text": NaN}\n',
            "infinite": b'{"text": 1e999}\n',
            "latin": b'{"text": "\xff"}\n',
            "mixed": b'{"text": "a"}\n{"job": "job_2", "input": {"text": "a"}}\n',
            "shared": b'{"jobs": ["job_2"], "input": {"text": "a"}}\n',
            "unmixed": b'{"text": "a"}\n{"input": {"text": "a"}}\n5\n',
            "number": b'{"text": "a"}\n5\n',
            "spaced": b'{"text": "a"}\n\n{"label": 1, "title": "b"}\n',
            "table": b"text\na\n",
            "other": b"a",
        }
        names = {name: str(tmp_path / f"{name}.jsonl") for name in ("missing", *contents)}
        names["table"], names["other"] = str(tmp_path / "t.csv"), str(tmp_path / "t.xlsx")
        for name, content in contents.items():
            Path(names[name]).write_bytes(content)
        command = [word.format(folder=str(tmp_path), **names) for word in arguments]
        assert main([*PREDICT, *command]) == 1
        err = capsys.readouterr().err
        assert err.startswith("hifi: error: ")
        assert told in err
        assert err.count("\n") == 1
        assert answering.bodies == []

    def test_half_a_surrogate_pair_is_the_servers_to_refuse(self, answering, file):
        """One such text is that item's error, and all others have answers."""
        rows = [{"text": "a"}, {"text": "\ud800"}, {"text": "größe"}]
        assert main([*PREDICT, "job_1", "--file", file(*rows)]) == 0
        assert answering.bodies[0]["inputs"] == rows

    def test_an_unknown_option_names_the_actions_help(self, stub, capsys):
        assert main([*PREDICT, "job_1", "a", "--labels", "b"]) == 2
        told = "unrecognized arguments: --labels; see `hifi jobs predict --help`"
        assert capsys.readouterr().err == f"hifi: error: {told}\n"
        assert stub.asked == []

    @pytest.mark.parametrize("seconds", ["soon", "nan", "inf"])
    def test_a_time_is_a_number(self, seconds, capsys):
        assert main([*PREDICT, "job_1", "a", "--timeout", seconds]) == 2
        err = capsys.readouterr().err
        assert "--timeout" in err
        assert "not a number of seconds" in err


class TestHelp:
    def test_says_how_rows_are_given(self, capsys):
        assert main([*PREDICT, "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: hifi jobs predict")
        for option in ("--pair TEXT TEXT", "--image", "--file", "--no-truncate", "--url"):
            assert option in out
