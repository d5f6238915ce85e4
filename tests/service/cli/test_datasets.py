"""``hifi datasets`` and ``hifi models``: the requests sent, and the output."""

from __future__ import annotations

import json

import pytest

from hifi.cli import main
from tests.service.stub_server import document, problem, reply


def page(*items):
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    return {"object": "list", "data": list(items), "has_more": False, **ends}


class TestPush:
    def test_uploads_and_shows_the_data_set(self, stub, dataset, tmp_path, capsys):
        stub.on("POST", "/datasets", document(dataset, status=201))
        train, test = tmp_path / "train.csv", tmp_path / "test.csv"
        train.write_text("text,label\na,0\n")
        test.write_text("text,label\nb,1\n")
        assert main(["datasets", "push", str(train), "--test", str(test), "--name", "films"]) == 0
        (asked,) = stub.asked
        assert asked.headers["authorization"] == "Bearer hifi_secret"
        assert all(part in asked.body for part in (b'"train"', b'"test"', b"a,0", b"b,1"))
        out = capsys.readouterr().out
        assert "ds_1" in out
        assert "text (string), label (int64)" in out
        assert "train 8, validation 2" in out

    def test_says_which_columns_were_left_out(self, stub, dataset, tmp_path, capsys):
        lists = "row 1 (line 1): no task reads columns of list<string>"
        alike = "these classes look alike: 'a', 'A'"
        notes = [
            {"code": "column_left_out", "message": lists, "param": "options"},
            {"code": "classes_alike", "message": alike, "param": "label"},
            {"code": "column_left_out", "message": "it is the table's index", "param": "id"},
        ]
        stub.on("POST", "/datasets", document({**dataset, "notes": notes}, status=201))
        (tmp_path / "t.csv").write_text("a\n1\n")
        assert main(["datasets", "push", str(tmp_path / "t.csv")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"left out 'options' ({lists}), 'id' (it is the table's index)" in shown
        assert f"notes label: {alike}" in shown

    def test_json_is_the_servers_document(self, stub, dataset, tmp_path, capsys):
        stub.on("POST", "/datasets", document(dataset, status=201))
        (tmp_path / "t.csv").write_text("a\n1\n")
        assert main(["datasets", "push", str(tmp_path / "t.csv"), "--json"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out) == dataset
        assert captured.err == ""

    def test_a_bad_row_is_one_line(self, stub, tmp_path, capsys):
        told = "train, row 3, column 'label': it is empty"
        stub.on("POST", "/datasets", problem(422, "dataset_invalid", told, param="train"))
        (tmp_path / "t.csv").write_text("a\n1\n")
        assert main(["datasets", "push", str(tmp_path / "t.csv")]) == 1
        err = capsys.readouterr().err
        assert err == "hifi: error: train, row 3, column 'label': it is empty\n"

    def test_a_missing_file_is_one_line(self, stub, tmp_path, capsys):
        assert main(["datasets", "push", str(tmp_path / "t.csv")]) == 1
        assert "cannot read" in capsys.readouterr().err
        assert stub.asked == []


class TestOthers:
    def test_list(self, stub, dataset, capsys):
        stub.on("GET", "/datasets", document(page(dataset)))
        assert main(["datasets", "list", "--after", "ds_9"]) == 0
        assert stub.asked[0].path == "/datasets?after=ds_9&limit=20"
        out = capsys.readouterr().out
        assert "1.23 kB" in out
        assert main(["datasets", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == page(dataset)

    def test_show(self, stub, dataset, capsys):
        stub.on("GET", "/datasets/ds_1", document(dataset))
        assert main(["datasets", "show", "ds_1"]) == 0
        assert "films" in capsys.readouterr().out

    def test_delete(self, stub, capsys):
        stub.on("DELETE", "/datasets/ds_1", reply(b"", status=204))
        assert main(["datasets", "delete", "ds_1"]) == 0
        assert capsys.readouterr().out == "deleted  ds_1\n"

    def test_one_in_use_is_one_line(self, stub, capsys):
        refusal = problem(409, "dataset_in_use", "job job_1 still needs dataset ds_1")
        stub.on("DELETE", "/datasets/ds_1", refusal)
        assert main(["datasets", "delete", "ds_1"]) == 1
        assert "still needs" in capsys.readouterr().err


class TestModels:
    BACKBONE = {  # noqa: RUF012 - read only
        "id": "all-MiniLM-L6-v2",
        "object": "backbone",
        "architecture": "BertModel",
        "num_layers": 6,
        "num_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 32,
        "hidden_size": 384,
        "parameters": 22713216,
        "fingerprint": "sha256:0",
    }

    def test_list(self, stub, capsys):
        models = {**page(self.BACKBONE), "unavailable": []}
        stub.on("GET", "/models", document(models))
        assert main(["models", "list"]) == 0
        row = capsys.readouterr().out.splitlines()[1]
        assert row.split() == ["all-MiniLM-L6-v2", "BertModel", "6", "12", "32", "22,713,216"]
        assert main(["models", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == models

    def test_an_empty_list_says_where_models_go(self, stub, capsys):
        stub.on("GET", "/models", document({**page(), "unavailable": []}))
        assert main(["models", "list"]) == 0
        assert "no backbones yet" in (said := capsys.readouterr().err)
        assert "HIFI_MODELS" in said

    def test_unusable_ones_are_listed_with_the_reason(self, stub, capsys):
        unusable = {"id": "t5", "status": "unusable", "reason": "it is an encoder-decoder"}
        stub.on("GET", "/models", document({**page(self.BACKBONE), "unavailable": [unusable]}))
        assert main(["models", "list"]) == 0
        assert capsys.readouterr().err == "t5 is unusable: it is an encoder-decoder\n"


class TestServer:
    def test_the_option_comes_before_the_environment(self, stub, dataset, monkeypatch):
        stub.on("GET", "/datasets/ds_1", document(dataset))
        monkeypatch.setenv("HIFI_URL", "http://127.0.0.1:1")
        assert main(["datasets", "show", "ds_1", "--url", stub.url]) == 0

    def test_an_empty_key_is_none(self, stub, dataset, monkeypatch):
        stub.on("GET", "/datasets/ds_1", document(dataset))
        monkeypatch.setenv("HIFI_API_KEY", "")
        assert main(["datasets", "show", "ds_1"]) == 0
        assert "authorization" not in stub.asked[0].headers

    def test_a_wrong_url_is_one_line(self, capsys):
        assert main(["datasets", "list", "--url", "nowhere"]) == 1
        assert "'nowhere' is not the URL of a server" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["datasets"], ["datasets", "steal"], ["models"]])
    def test_an_action_is_needed(self, arguments, capsys):
        assert main(arguments) == 2
        assert f"see `hifi {arguments[0]} --help`" in capsys.readouterr().err
