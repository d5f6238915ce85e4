"""hifi.cli.output: one line per error, one document per command, and no work for nothing."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from hifi.cli import output
from hifi.errors import StorageError


class TestFail:
    def test_is_one_line_and_returns_the_code(self, capsys):
        assert output.fail("cannot write x:\n\n  no space", code=7) == 7
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "hifi: error: cannot write x: no space\n")

    def test_control_characters_are_replaced(self, capsys):
        assert output.fail("no file 'a\x1b[31mb'") == output.EXIT_ERROR
        assert capsys.readouterr().err == "hifi: error: no file 'a?[31mb'\n"


class TestPrintJson:
    def test_is_one_ascii_document(self, capsys):
        output.print_json({"name": "ξ", "share": 0.1})
        out = capsys.readouterr().out
        assert json.loads(out) == {"name": "ξ", "share": 0.1}
        assert "ξ" in out
        assert out.endswith("}\n")

    def test_what_unicode_lacks_is_escaped(self, capsys):
        output.print_json({"path": "\udcff"})
        assert json.loads(capsys.readouterr().out) == {"path": "\udcff"}


class TestSizes:
    def test_a_file_is_described_by_size_and_hash(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(b"abc")
        assert output.describe_file(path) == {
            "bytes": 3,
            "sha256": hashlib.sha256(b"abc").hexdigest(),
        }

    def test_a_folder_counts_its_files_at_any_depth(self, tmp_path):
        (tmp_path / "inner").mkdir()
        (tmp_path / "a").write_bytes(b"12")
        (tmp_path / "inner" / "b").write_bytes(b"345")
        assert output.size_of_folder(tmp_path) == 5


class TestOpenToOthers:
    def test_weights_get_the_permissions_of_the_configuration(self, tmp_path):
        for name, mode in (("config.json", 0o644), ("model.safetensors", 0o600)):
            (tmp_path / name).touch()
            (tmp_path / name).chmod(mode)
        output.open_to_others(tmp_path)
        assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o644


class TestCheckNewFile:
    def test_a_new_name_and_an_old_file_are_free(self, tmp_path):
        path = tmp_path / "delta.safetensors"
        output.check_new_file(path)
        path.touch()
        output.check_new_file(path)
        (tmp_path / "link").symlink_to(path)
        output.check_new_file(tmp_path / "link")

    def test_a_device_is_refused(self):
        with pytest.raises(StorageError, match="cannot write /dev/null: it is not a regular file"):
            output.check_new_file(Path("/dev/null"))

    def test_a_pipe_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StorageError, match="not a regular file"):
            output.check_new_file(tmp_path / "pipe")

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(StorageError, match="it is a folder; name a file in it"):
            output.check_new_file(tmp_path)

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(StorageError, match=rf"mkdir -p {tmp_path / 'no'}"):
            output.check_new_file(tmp_path / "no" / "x")

    def test_a_closed_folder_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
        with pytest.raises(StorageError, match=f"{tmp_path} is not writable for this user"):
            output.check_new_file(tmp_path / "x")


class TestCheckNewDirectory:
    def test_a_new_name_and_an_empty_folder_are_free(self, tmp_path):
        output.check_new_directory(tmp_path / "new")
        (tmp_path / "empty").mkdir()
        output.check_new_directory(tmp_path / "empty")

    def test_a_filled_folder_is_refused(self, tmp_path):
        (tmp_path / "note.txt").touch()
        with pytest.raises(StorageError, match="the folder is not empty"):
            output.check_new_directory(tmp_path)

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="a file of that name exists"):
            output.check_new_directory(tmp_path / "file")


class TestWords:
    @pytest.mark.parametrize(
        ("size", "text"),
        [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.00 kB"),
            (2_695_464, "2.70 MB"),
            (91_580_000, "91.58 MB"),
            (3 * 10**9, "3.00 GB"),
        ],
    )
    def test_bytes(self, size, text):
        assert output.format_bytes(size) == text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")]
    )
    def test_seconds(self, seconds, text):
        assert output.format_seconds(seconds) == text

    def test_metrics(self):
        assert output.format_metrics({"loss": 0.5, "matthews": 0.3, "f1": 0.81222}) == (
            "f1 0.8122  matthews 0.3000  loss 0.5000"
        )

    def test_control_characters_are_replaced(self):
        assert output.printable("a\x1b[31mb\nc ξ") == "a?[31mb?c ξ"

    def test_a_metric_that_is_no_number(self):
        assert output.format_metrics({"f1": None}) == "f1 no number"

    @pytest.mark.parametrize(
        ("zone", "moment"),
        [
            ("UTC0", "2026-07-02 23:04:05 UTC"),
            ("CET-1CEST,M3.5.0,M10.5.0/3", "2026-07-03 01:04:05 CEST"),
            ("EST5EDT,M3.2.0,M11.1.0", "2026-07-02 19:04:05 EDT"),
            ("<+0545>-5:45", "2026-07-03 04:49:05 +0545"),
        ],
    )
    def test_a_moment_is_local_with_its_zone_and_without_fractions(self, zone, moment, local_zone):
        local_zone(zone)
        assert output.format_moment("2026-07-02T23:04:05.678901Z") == moment
        assert output.format_moment(None) == ""


class TestReport:
    def test_is_one_document_or_the_facts_that_are_known(self, capsys):
        document = {"name": "a\x1bb", "size": 3}

        def describe(document):
            return {"name": document["name"], "labels": "", "bytes": str(document["size"])}

        assert output.report(document, describe, as_json=True) == 0
        assert json.loads(capsys.readouterr().out) == document
        assert output.report(document, describe, as_json=False) == 0
        assert capsys.readouterr().out == "name   a?b\nbytes  3\n"


class TestTable:
    def test_is_a_row_per_line_however_wide(self, capsys):
        output.print_table(("id", "name"), [("1", "x" * 200), ("22", "")])
        assert capsys.readouterr().out.splitlines() == ["id  name", "1   " + "x" * 200, "22"]
