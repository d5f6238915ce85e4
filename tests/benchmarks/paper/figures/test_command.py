"""python -m benchmarks.paper.figures: files, redrawing, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.paper.figures.command import FIGURES, main, parse
from tests.benchmarks.paper.tables.test_stored import run
from tests.benchmarks.paper.tiny import line

PNG = b"\x89PNG"


@pytest.fixture
def sound(long_bert: Path, many_rows: Path, tmp_path: Path) -> list[str]:
    """Return a command line for a tiny task."""
    given = ("--data", many_rows, "--backbone", long_bert, "--task", "cola")
    return [*map(str, given), "--out", str(tmp_path / "figures")]


class TestFiles:
    def test_a_figure_and_its_numbers_are_written_and_drawn_again(
        self, sound: list[str], tmp_path: Path, capsys
    ):
        out = tmp_path / "figures"
        assert main(["singular-values", *sound]) == 0
        numbers = json.loads((out / "singular-values.json").read_text())
        assert (numbers["figure"], numbers["backbone"]) == ("singular-values", "tiny-bert")
        assert "torch" in numbers["versions"]
        picture = (out / "singular-values.png").read_bytes()
        assert picture.startswith(PNG)
        assert "share reaches 0.9" in capsys.readouterr().out
        (out / "singular-values.png").unlink()
        assert main(["singular-values", "--redraw", "--out", str(out)]) == 0
        assert (out / "singular-values.png").read_bytes() == picture

    def test_figures_of_results_need_no_data(
        self, long_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.delenv("HIFI_TEST_DATA", raising=False)
        path = tmp_path / "r.jsonl"
        each = run((0.5, 0.4, 0.3), (4000, 2000, 1000), "lora-qv", seed=0)
        path.write_text(f"{json.dumps(each)}\n")
        where = ["--backbone", str(long_bert), "--out", str(tmp_path)]
        assert main(["bytes", "--results", str(path), *where]) == 0
        numbers = json.loads((tmp_path / "bytes.json").read_text())
        assert [each["points"][0]["bytes"] for each in numbers["lines"]] == [1000, 2000, 4000]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["heads"], "InvalidArgumentError: figures='heads' is not allowed: one of richness,"),
            (["richness", "--task", "qqp"], "InvalidArgumentError: task='qqp' is not allowed"),
            (["richness", "--task", "sst2"], r"DataError: .*sst2/train.jsonl does not exist"),
            (["contours", "--grid", "2"], "InvalidArgumentError: grid=2 is not allowed"),
            (["contours", "--shots", "5"], "InvalidArgumentError: shots='5' is not allowed"),
            (["bytes"], "DataError: --results has to name a file of results"),
            (["bytes", "--results", "/no.jsonl"], "DataError: /no.jsonl does not exist"),
            (["sweeps", "--results", "/no.jsonl"], "DataError: /no.jsonl does not exist"),
            (["sweeps", "--redraw"], r"DataError: .*sweeps.json cannot be read"),
            (["richness", "--out", "/nowhere/f"], "StorageError: --out /nowhere/f is no folder"),
            (["richness", "--backbone", "/nowhere"], "'/nowhere' is neither a folder nor"),
        ],
    )
    def test_are_one_typed_line(self, sound: list[str], capsys, arguments: list[str], message: str):
        figure, *changes = arguments
        assert main([figure, *sound, *changes]) == 2
        captured = capsys.readouterr()
        (only,) = captured.err.splitlines()
        assert re.search(message, only)

    def test_the_data_must_be_named(
        self, sound: list[str], capsys, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.delenv("HIFI_TEST_DATA", raising=False)
        assert main(["richness", *sound[2:]]) == 2
        assert "--data or $HIFI_TEST_DATA has to name the folder" in capsys.readouterr().err

    @pytest.mark.parametrize("content", ["{", "[]", '{"figure": "bytes"}'])
    def test_other_numbers_are_not_drawn(
        self, sound: list[str], tmp_path: Path, capsys, content: str
    ):
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "sweeps.json").write_text(content)
        assert main(["sweeps", *sound, "--redraw"]) == 2
        assert "draw without --redraw" in capsys.readouterr().err

    def test_runs_of_another_kind_are_refused(self, sound: list[str], tmp_path: Path, capsys):
        path = tmp_path / "r.jsonl"
        path.write_text(f"{json.dumps(line(0.5, method='full'))}\n")
        assert main(["bytes", *sound, "--results", str(path)]) == 2
        assert "has no runs of the methods stored on tiny-bert" in capsys.readouterr().err


def test_the_help_names_every_figure_and_option(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    for name, figure in FIGURES.items():
        assert f"{name} " in text
        assert figure.words in text


def test_numbers_that_are_not_whole_are_one_line(sound: list[str], capsys, tmp_path: Path):
    out = tmp_path / "by-hand"
    out.mkdir()
    (out / "sweeps.json").write_text('{"figure": "sweeps", "backbone": "x"}', encoding="utf-8")
    assert main(["sweeps", *sound, "--redraw", "--out", str(out)]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert re.search(r"DataError: the numbers of sweeps are not whole \(KeyError", only)
