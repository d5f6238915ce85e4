"""``hifi tune``: the delta of ``finetune``, one line per refusal, and Ctrl-C."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import replace

import pytest

from hifi.backbones.heads import HeadId
from hifi.cli import main
from hifi.deltas.delta import HeadDelta
from hifi.selection.head_selection import HeadSelection
from hifi.training.finetuning import finetune
from tests.architectures import LAYERS
from tests.root import ROOT
from tests.tiny_tasks import save_text_model, text_rows, write_jsonl
from tests.waiting import patience


def command(backbone, data, out, *more):
    return [
        *("tune", "--model", str(backbone), "--out", str(out)),
        *("--train", str(data / "train.jsonl"), "--validation", str(data / "validation.jsonl")),
        *("--text", "text", "--label", "label", "--batch-size", "8", *more),
    ]


class TestTune:
    def test_heads_of_another_score_are_recorded_and_shown_by_inspect(
        self, backbone, data, tmp_path, capsys
    ):
        out = tmp_path / "delta.safetensors"
        arguments = ["--score", "gradient", "--strategy", "budget", "--budget", "4"]
        arguments += ["--precision", "float32", "--epochs", "1", "--max-length", "16"]
        assert main(command(backbone, data, out, *arguments)) == 0
        drawn = capsys.readouterr().out.splitlines()
        assert drawn[0] == "score gradient, its shares of the model"
        recorded = HeadDelta.load(out).metadata.selection
        assert (recorded["score"], recorded["budget"], recorded["k"]) == ("gradient", 4, None)
        assert main(["inspect", str(out)]) == 0
        shown = capsys.readouterr().out
        assert "score gradient" in shown
        assert "budget 4" in shown
        lines = shown.splitlines()
        assert lines[lines.index(drawn[0]) :] == drawn[: drawn.index("", 6)]

    def test_writes_the_delta_that_finetune_returns(self, backbone, data, tmp_path, capsys):
        out = tmp_path / "delta.safetensors"
        arguments = ["--metric", "f1", "--k", "2", "--xi", "0.8", "--damping", "0.7"]
        arguments += ["--n-samples", "40", "--strategy", "mid-top", "--epochs", "2"]
        arguments += ["--learning-rate", "0.01", "--warmup-ratio", "0.2", "--weight-decay", "0.1"]
        arguments += ["--seed", "7", "--max-length", "16", "--precision", "float32"]
        arguments += ["--early-stopping-patience", "9", "--task", "classification"]
        arguments += ["--head-start", "random"]
        assert main(command(backbone, data, out, *arguments)) == 0
        result = finetune(
            model=backbone,
            train=data / "train.jsonl",
            validation=data / "validation.jsonl",
            task="classification",
            text="text",
            label="label",
            metric="f1",
            k=2,
            xi=0.8,
            damping=0.7,
            n_samples=40,
            strategy="mid-top",
            epochs=2,
            learning_rate=0.01,
            warmup_ratio=0.2,
            weight_decay=0.1,
            seed=7,
            max_length=16,
            batch_size=8,
            precision="float32",
            early_stopping_patience=9,
            head_start="random",
        )
        result.delta.save(tmp_path / "python.safetensors")
        assert out.read_bytes() == (tmp_path / "python.safetensors").read_bytes()
        captured = capsys.readouterr()
        assert f"f1 {result.metrics['f1']:.4f}" in captured.out
        assert captured.out.startswith("layer 2 ")
        assert captured.out.count("[") == 2
        assert "training 12/12" in captured.err
        assert "2 epochs at 0.01, in " in captured.out

    def test_json_is_one_document_and_the_heat_map_goes_to_stderr(
        self, backbone, data, tmp_path, capsys
    ):
        out = tmp_path / "delta.safetensors"
        arguments = ("--epochs", "1", "--learning-rate", "3e-4", "--head-start", "random", "--json")
        assert main(command(backbone, data, out, *arguments)) == 0
        captured = capsys.readouterr()
        document = json.loads(captured.out)
        assert "layer 2 " in captured.err
        content = out.read_bytes()
        delta = HeadDelta.load(out)
        trained = sum(part.numel() for part in (*delta.rows.values(), *delta.task_head.values()))
        assert document["selection"]["trainable_parameters"] == trained
        assert 0 < document["selection"]["fraction"] < 1
        assert document["artifact"] == {
            "path": str(out),
            "encoding": "float32",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        heads = [{"layer": head.layer, "head": head.head} for head in HeadDelta.load(out).heads]
        assert document["selection"]["heads"] == heads
        assert document["result"]["best_step"] == 6
        names = {"accuracy", "f1", "matthews", "loss"}
        assert set(document["result"]["metrics"]) == names
        yardsticks = document["result"]["yardsticks"]
        assert {name: set(known) for name, known in yardsticks.items()} == {
            "majority": names,
            "probe": names,
        }

    def test_a_json_list_gives_the_delta_of_json_lines(self, backbone, data, tmp_path):
        lines = (data / "train.jsonl").read_text().splitlines()
        path, whole = tmp_path / "train.json", tmp_path / "json.safetensors"
        path.write_text(json.dumps([json.loads(line) for line in lines], indent=2))
        out = tmp_path / "lines.safetensors"
        assert main(command(backbone, data, out, "--epochs", "1")) == 0
        assert main(command(backbone, data, whole, "--epochs", "1", "--train", str(path))) == 0
        assert whole.read_bytes() == out.read_bytes()

    def test_a_preset_reaches_the_run(self, backbone, data, tmp_path):
        out = tmp_path / "delta.safetensors"
        arguments = ["--preset", "paper", "--epochs", "1", "--max-length", "16"]
        assert main(command(backbone, data, out, *arguments)) == 0
        metadata = HeadDelta.load(out).metadata
        assert (metadata.selection["k"], metadata.selection["strategy"]) == (3, "layer-wise")
        given = {"epochs": 1, "learning_rate": 2e-4, "head_start": "random"}
        assert {name: metadata.training[name] for name in given} == given

    def test_a_test_split_and_each_class_are_shown(self, backbone, data, tmp_path, capsys):
        out, test = tmp_path / "delta.safetensors", tmp_path / "test.jsonl"
        write_jsonl(test, text_rows(10, seed=8))
        more = ["--epochs", "1", "--class-weights", '{"1": 2}', "--test", str(test)]
        assert main(command(backbone, data, out, *more, "--json")) == 0
        result = json.loads(capsys.readouterr().out)["result"]
        assert set(result["test"]) == {"accuracy", "f1", "matthews", "loss"}
        assert (result["report"]["split"], len(result["report"]["per_class"])) == ("test", 2)
        assert sum(map(sum, result["report"]["confusion"])) == 10
        assert HeadDelta.load(out).metadata.training["class_weights"] == {"1": 2.0}
        assert main(command(backbone, data, out, *more)) == 0
        told = capsys.readouterr()
        assert f"\ntest      accuracy {result['test']['accuracy']:.4f}  f1" in told.out
        assert (
            "\n\ntest split, 10 rows, 2 classes; the columns after rows: predicted as" in told.out
        )
        assert "\ntest  accuracy" in told.err
        assert "12 validation rows, 10 test rows; " in told.err

    def test_a_test_loss_that_is_not_finite_is_null_in_json(self, backbone, tmp_path, capsys):
        rows = [{"text": f"w{number}", "label": number / 8} for number in range(8)]
        for name in ("train", "validation"):
            write_jsonl(tmp_path / f"{name}.jsonl", rows)
        test = write_jsonl(tmp_path / "test.jsonl", [{"text": "w1", "label": 1e25}, rows[0]])
        more = ["--epochs", "1", "--task", "regression", "--test", str(test), "--json"]
        assert main(command(backbone, tmp_path, tmp_path / "delta.safetensors", *more)) == 0
        told = capsys.readouterr().out
        assert "Infinity" not in told
        assert json.loads(told)["result"]["test"]["loss"] is None

    def test_the_classes_of_validation_are_shown_without_a_test_split(
        self, backbone, data, tmp_path, capsys
    ):
        out = tmp_path / "delta.safetensors"
        assert main(command(backbone, data, out, "--epochs", "1")) == 0
        told = capsys.readouterr().out
        assert "\nvalidation split, 12 rows, 2 classes" in told
        assert "\ntest " not in told

    def test_the_tiny_task_is_learnt(self, backbone, data, tmp_path, capsys):
        out = tmp_path / "delta.safetensors"
        arguments = ["--epochs", "8", "--learning-rate", "0.02", "--precision", "float32"]
        assert main(command(backbone, data, out, *arguments, "--json")) == 0
        metrics = json.loads(capsys.readouterr().out)["result"]["metrics"]
        assert metrics["accuracy"] > 0.9

    @pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
    def test_encodings(self, encoding, backbone, data, tmp_path):
        out = tmp_path / "delta.safetensors"
        arguments = ["--epochs", "1", "--encoding", encoding]
        assert main(command(backbone, data, out, *arguments)) == 0
        assert HeadDelta.load(out).metadata.encoding == encoding

    def test_the_inferred_task_is_shown_in_a_line(self, backbone, data, tmp_path, capsys):
        more = ["--epochs", "1", "--precision", "bfloat16"]
        assert main(command(backbone, data, tmp_path / "delta.safetensors", *more)) == 0
        told = "classification of text by label (2 classes: 0, 1); 48 rows, 12 validation rows; "
        assert f"\n{told}bfloat16 on cpu\n" in capsys.readouterr().err

    def test_constant_predictions_are_warned_of(self, backbone, data, tmp_path, capsys):
        for rate, count in (("1e-12", 1), ("0.02", 0)):
            more = ["--epochs", "6", "--learning-rate", rate, "--precision", "float32"]
            more += ["--head-start", "random"]
            assert main(command(backbone, data, tmp_path / "delta.safetensors", *more)) == 0
            told = capsys.readouterr()
            assert told.err.count("for every validation row: it has not learnt") == count
            assert told.err.count("is below the linear probe's") == count
            assert "\nprobe     accuracy" in told.out
            assert "the task head starts from random weights; accuracy to compare" in told.err

    def test_other_things_in_the_folder_of_the_checkpoints_stay(self, backbone, data, tmp_path):
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        more = ["--epochs", "1", "--checkpoint-dir", str(folder)]
        assert main(command(backbone, data, tmp_path / "delta.safetensors", *more)) == 0
        assert [path.name for path in folder.iterdir()] == ["notes.txt"]

    def test_without_validation_the_last_step_is_kept(self, backbone, data, tmp_path, capsys):
        out = tmp_path / "delta.safetensors"
        arguments = ["tune", "--model", str(backbone), "--train", str(data / "train.jsonl")]
        assert main([*arguments, "--epochs", "1", "--out", str(out)]) == 0
        assert "no validation split  (step 2)" in capsys.readouterr().out

    def test_a_given_selection_is_tuned(self, backbone, data, tmp_path):
        selection, out = tmp_path / "selection.json", tmp_path / "delta.safetensors"
        arguments = ["select", "--model", str(backbone), "--train", str(data / "train.jsonl")]
        arguments += ["--k", "1", "--batch-size", "8", "--seed", "3", "--out", str(selection)]
        assert main(arguments) == 0
        more = ["--epochs", "1", "--seed", "3"]
        assert main(command(backbone, data, out, "--selection", str(selection), *more)) == 0
        recorded = HeadSelection.from_dict(json.loads(selection.read_text(encoding="utf-8")))
        delta = HeadDelta.load(out)
        assert delta.metadata.fingerprint == recorded.fingerprint
        assert delta.metadata.selection == replace(recorded, fingerprint=None).to_dict()

    def test_a_selection_without_a_fingerprint_is_taken(self, backbone, data, tmp_path):
        selection, out = tmp_path / "selection.json", tmp_path / "delta.safetensors"
        made = HeadSelection.from_heads([HeadId(1, 2)], num_layers=LAYERS)
        selection.write_text(json.dumps(made.to_dict()), encoding="utf-8")
        more = ["--epochs", "1", "--selection", str(selection)]
        assert main(command(backbone, data, out, *more)) == 0
        assert HeadDelta.load(out).heads == (HeadId(1, 2),)

    def test_validation_none_keeps_the_last_step(self, backbone, data, tmp_path, capsys):
        out = tmp_path / "delta.safetensors"
        arguments = command(backbone, data, out, "--validation", "none", "--epochs", "1")
        assert main(arguments) == 0
        assert "no validation split  (step 6)" in capsys.readouterr().out

    def test_a_hub_data_set_is_loaded_by_name(self, backbone, tmp_path, capsys):
        arguments = ["tune", "--model", str(backbone), "--hub", "nobody/nothing"]
        arguments += ["--hub-config", "mrpc", "--out", str(tmp_path / "delta.safetensors")]
        assert main(arguments) == 1
        assert "'nobody/nothing' (config 'mrpc', split 'train')" in capsys.readouterr().err


class TestRefusals:
    @pytest.mark.parametrize(
        "refusal",
        [
            (["--k", "9"], "k=9 is not allowed"),
            (["--epochs", "0"], "epochs=0 is not allowed: an integer of at least 1"),
            (["--learning-rate", "fast"], "learning_rate='fast' is not allowed: a number above 0"),
            (["--metric", "pearson"], "metric='pearson'"),
            (["--task", "regression", "--label", "text"], "label='text'"),
            (["--selection", "no-such.json"], "selection='no-such.json'"),
            (["--validation", "no-such.csv"], "the file 'no-such.csv' does not exist"),
            (["--test", "no-such.csv"], "test: the file 'no-such.csv' does not exist"),
            (["--class-weights", "even"], "class_weights='even' is not allowed: 'balanced', or"),
            (["--class-weights", '{"7": 2}'], "class_weights={'7': 2.0} is not allowed: no class"),
            (
                ["--validation", "none", "--early-stopping-patience", "2"],
                "patience=2 is not allowed: only with a validation split",
            ),
        ],
    )
    def test_are_one_line_and_leave_no_file(self, refusal, backbone, data, tmp_path, capsys):
        arguments, expected = refusal
        out = tmp_path / "delta.safetensors"
        assert main(command(backbone, data, out, *arguments)) == 1
        (error,) = (e for e in capsys.readouterr().err.splitlines() if e.startswith("hifi: "))
        assert expected in error
        assert list(tmp_path.iterdir()) == []

    def test_heads_that_were_scored_on_another_backbone(self, backbone, data, tmp_path, capsys):
        selection, out = tmp_path / "selection.json", tmp_path / "delta.safetensors"
        arguments = ["select", "--model", str(backbone), "--train", str(data / "train.jsonl")]
        assert main([*arguments, "--out", str(selection)]) == 0
        other = save_text_model(tmp_path / "other", seed=1, max_position_embeddings=128)
        assert main(command(other, data, out, "--selection", str(selection))) == 1
        err = capsys.readouterr().err
        assert "the selection is for a backbone whose fingerprint is sha256:" in err
        assert "that of other is sha256:" in err
        assert not out.exists()

    @pytest.mark.parametrize(
        "refusal",
        [
            ("[" * 100_000, "a file that `hifi select --out` wrote"),
            ("[]", "selection="),
            (json.dumps({"num_layers": 3, "layers": []}), "selection.num_layers=3"),
        ],
    )
    def test_a_file_that_is_no_selection_is_named_as_the_option(
        self, refusal, backbone, data, tmp_path, capsys
    ):
        content, expected = refusal
        selection, out = tmp_path / "selection.json", tmp_path / "delta.safetensors"
        selection.write_text(content, encoding="utf-8")
        assert main(command(backbone, data, out, "--selection", str(selection))) == 1
        err = capsys.readouterr().err
        assert expected in err
        assert err.endswith("(change --selection)\n")

    def test_a_device_in_the_place_of_the_file_is_refused_before_training(
        self, backbone, data, capsys
    ):
        assert main(command(backbone, data, "/dev/null")) == 1
        err = capsys.readouterr().err
        assert (
            err
            == "hifi: error: cannot write /dev/null: it is not a regular file; name another one\n"
        )

    def test_a_folder_in_the_place_of_the_file(self, backbone, data, tmp_path, capsys):
        assert main(command(backbone, data, tmp_path)) == 1
        assert "it is a folder" in capsys.readouterr().err

    def test_a_folder_that_is_closed(self, backbone, data, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
        assert main(command(backbone, data, tmp_path / "delta.safetensors")) == 1
        assert "not writable" in capsys.readouterr().err


class Terminal(io.StringIO):
    """An output stream that presses Ctrl-C at the first line with this beginning."""

    def __init__(self, beginning: str = "training") -> None:
        super().__init__()
        self.beginning = beginning
        self.is_pressed = False

    def write(self, text: str) -> int:
        """Write; press Ctrl-C once at a line with the beginning."""
        if text.startswith(self.beginning) and not self.is_pressed:
            self.is_pressed = True
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


class TestInterrupt:
    @pytest.mark.process
    def test_ctrl_c_in_training_exits_with_130_and_leaves_no_file(self, backbone, data, tmp_path):
        out = tmp_path / "delta.safetensors"
        child = subprocess.Popen(
            [sys.executable, "-m", "hifi.cli", *command(backbone, data, out, "--epochs", "99999")],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            lines = iter(child.stderr.readline, "")
            told = next(line for line in lines if line.startswith("training"))
            child.send_signal(signal.SIGINT)
            told += child.stderr.read()
            assert child.wait(timeout=patience(60)) == 130
        finally:
            child.kill()
            child.stderr.close()
            child.wait()
        assert "stopping at the next step" in told
        assert "was not written" in told.splitlines()[-1]
        assert "Traceback" not in told
        assert list(tmp_path.iterdir()) == []

    def test_ctrl_c_before_the_first_checkpoint_does_not_promise_to_resume(
        self, backbone, data, tmp_path
    ):
        out, folder = tmp_path / "delta.safetensors", tmp_path / "checkpoints"
        with redirect_stderr(Terminal("loading")) as told:
            assert main(command(backbone, data, out, "--checkpoint-dir", str(folder))) == 130
        assert told.getvalue().splitlines()[-1] == (
            "hifi: error: interrupted before the first checkpoint; run the same command again to "
            "start again"
        )

    def test_an_interrupted_run_with_checkpoints_resumes_to_the_same_file(
        self, backbone, data, tmp_path, capsys
    ):
        out, folder = tmp_path / "delta.safetensors", tmp_path / "checkpoints"
        arguments = command(backbone, data, out, "--epochs", "4")
        resumable = [*arguments, "--checkpoint-dir", str(folder)]
        with redirect_stderr(Terminal()) as told:
            assert main(resumable) == 130
        assert "saved; run the same command again to resume" in told.getvalue().splitlines()[-1]
        assert not out.exists()
        assert main(resumable) == 0
        captured = capsys.readouterr()
        assert "layer 2 " in captured.out
        assert "\nresuming from the checkpoint of step " in captured.err
        assert not folder.exists()
        resumed = out.read_bytes()
        out.unlink()
        assert main(arguments) == 0
        assert out.read_bytes() == resumed
