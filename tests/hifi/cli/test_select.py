"""``hifi select``: scores that are a document, a heat map, and a file for ``hifi tune``."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from hifi.backbones import devices
from hifi.cli import main
from hifi.deltas.delta import HeadDelta
from hifi.selection.head_selection import HeadSelection
from hifi.tasks import probe
from hifi.training import finetuning, preparation
from hifi.training.finetuning import finetune
from tests.architectures import LAYERS, QUERY_HEADS


def select(backbone, data, *more):
    return main(["select", "--model", str(backbone), "--train", str(data / "train.jsonl"), *more])


class TestSelect:
    def test_json_is_the_apis_heads_document(self, backbone, data, capsys):
        assert select(backbone, data, "--k", "2", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["model"] == "tiny-bert"
        assert document["fingerprint"].startswith("sha256:")
        expected = {"k": 2, "xi": 0.9, "d": 0.85, "n_samples": 48, "strategy": "layer-wise"}
        expected |= {"teleport": "information", "num_layers": LAYERS, "num_heads": QUERY_HEADS}
        assert {name: document[name] for name in expected} == expected
        assert document["head_dim"] == 8
        # Two heads per layer of three 8×32 projections with biases; a classifier of 2×32 with bias.
        trained = LAYERS * 2 * 3 * (8 * 32 + 8) + 2 * 32 + 2
        assert document["trainable_parameters"] == trained
        assert 0 < document["fraction"] < 1
        for layer in document["layers"]:
            assert len(layer["information_richness"]) == QUERY_HEADS
            assert len(layer["correlation"]) == QUERY_HEADS
            assert sum(layer["importance"]) == pytest.approx(1)
            assert layer["iterations"] >= 1
            best = sorted(range(QUERY_HEADS), key=lambda head: -layer["importance"][head])[:2]
            assert layer["selected"] == sorted(best)

    def test_without_json_shows_a_heat_map(self, backbone, data, capsys):
        assert select(backbone, data, "--k", "1") == 0
        captured = capsys.readouterr()
        rows = captured.out.splitlines()[:LAYERS]
        assert [row[:7] for row in rows] == ["layer 2", "layer 1", "layer 0"]
        assert all(row.count("[") == 1 for row in rows)
        assert "selected  3 of 12 heads" in captured.out
        assert "scoring heads 48/48" in captured.err

    def test_out_is_what_json_prints(self, backbone, data, tmp_path, capsys):
        out = tmp_path / "selection.json"
        assert select(backbone, data, "--out", str(out), "--json") == 0
        document = json.loads(out.read_text(encoding="utf-8"))
        assert document == json.loads(capsys.readouterr().out)
        assert HeadSelection.from_dict(document).k == 3

    @pytest.mark.parametrize("more", [[], ["--preset", "paper"]])
    def test_without_options_selects_the_heads_of_tune(
        self, more, backbone, data, tmp_path, capsys
    ):
        assert select(backbone, data, *more, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        out = tmp_path / "delta.safetensors"
        arguments = ["tune", "--model", str(backbone), "--train", str(data / "train.jsonl")]
        assert main([*arguments, *more, "--out", str(out)]) == 0
        tuned = HeadDelta.load(out).metadata.selection
        assert tuned == {name: document[name] for name in tuned}
        assert (tuned["k"], tuned["strategy"]) == (3, "layer-wise")

    def test_a_preset_reaches_the_task_head_of_a_gradient(self, backbone, data, capsys):
        documents = []
        for start in (["--preset", "paper"], ["--head-start", "random"], []):
            assert select(backbone, data, "--score", "gradient", *start, "--json") == 0
            documents.append(json.loads(capsys.readouterr().out))
        assert documents[0] == documents[1] != documents[2]

    @pytest.mark.parametrize("score", ["gradient", "gradient-ratio"])
    def test_a_gradient_is_computed_whatever_the_precision(self, score, backbone, data, capsys):
        assert select(backbone, data, "--score", score, "--precision", "bfloat16", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["score"] == score
        assert all(max(layer["values"]) > 0 for layer in document["layers"])

    def test_scores_with_reproducible_kernels_on_a_gpu(self, backbone, data, monkeypatch):
        seen = []
        prepare, select_prepared = preparation.prepare, finetuning.select_prepared

        def prepare_here(source, *, device, **arguments):
            assert device.type == "cuda"
            return prepare(source, device=torch.device("cpu"), **arguments)

        def look(*arguments, **named):
            seen.append(torch.are_deterministic_algorithms_enabled())
            return select_prepared(*arguments, **named)

        monkeypatch.setattr(devices, "resolve_device", torch.device)
        monkeypatch.setattr(preparation, "prepare", prepare_here)
        monkeypatch.setattr(finetuning, "select_prepared", look)
        assert select(backbone, data, "--device", "cuda") == 0
        assert seen == [True]
        assert not torch.are_deterministic_algorithms_enabled()

    def test_greek_and_short_spellings(self, backbone, data, capsys):
        arguments = ["--ξ", "0.5", "-d", "0.5", "--n-samples", "10", "--json"]
        assert select(backbone, data, *arguments) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["xi"], document["d"], document["n_samples"]) == (0.5, 0.5, 10)

    def test_mid_top_leaves_the_lower_half(self, backbone, data, capsys):
        assert select(backbone, data, "--strategy", "mid-top", "--json") == 0
        layers = json.loads(capsys.readouterr().out)["layers"]
        assert [len(layer["selected"]) for layer in layers] == [0, 0, 3]

    @pytest.mark.parametrize(
        "score", ["information", "gradient", "gradient-ratio", "output-norm", "random"]
    )
    def test_another_score_with_a_budget(self, score, backbone, data, tmp_path, capsys):
        out = tmp_path / "selection.json"
        arguments = ["--score", score, "--strategy", "budget", "--budget", "5"]
        arguments += ["--precision", "float32"]
        assert select(backbone, data, *arguments, "--out", str(out), "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["score"], document["budget"], document["k"]) == (score, 5, None)
        values = [value for layer in document["layers"] for value in layer["values"]]
        best = sorted(values, reverse=True)[:5]
        chosen = [
            layer["values"][head] for layer in document["layers"] for head in layer["selected"]
        ]
        assert sorted(chosen, reverse=True) == best
        assert HeadSelection.from_dict(json.loads(out.read_text(encoding="utf-8"))).score == score

    def test_a_gradient_is_that_of_the_task_head_with_which_tune_starts(
        self, backbone, data, capsys
    ):
        scored = {}
        for start in ("auto", "random"):
            arguments = ["--score", "gradient", "--precision", "float32", "--head-start", start]
            assert select(backbone, data, *arguments, "--json") == 0
            layers = json.loads(capsys.readouterr().out)["layers"]
            scored[start] = [layer["values"] for layer in layers]
            tuned = finetune(
                model=backbone,
                train=data / "train.jsonl",
                text="text",
                label="label",
                score="gradient",
                precision="float32",
                head_start=start,
                epochs=1,
            )
            assert [layer["values"] for layer in tuned.selection.to_dict()["layers"]] == (
                scored[start]
            )
        assert scored["auto"] != scored["random"]

    def test_shows_the_probe_and_its_warnings(self, backbone, data, capsys, monkeypatch):
        monkeypatch.setattr(probe, "_MOST_ITERATIONS", 1)
        arguments = ["--score", "gradient", "--precision", "float32"]
        assert select(backbone, data, *arguments) == 0
        shown = capsys.readouterr().err
        assert "linear probe" in shown
        assert "warning: no linear probe could be fitted: no fit converges" in shown

    def test_another_score_is_drawn_above_the_papers(self, backbone, data, capsys):
        assert select(backbone, data, "--score", "output-norm", "--k", "1") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "score output-norm, its shares of the layer"
        assert lines[LAYERS + 3] == "importance in the paper (PageRank), its shares of the layer"

    def test_xi_without_influence_is_warned_of(self, backbone, data, capsys):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert select(backbone, data, "--teleport", "uniform", "--xi", "0.8", "--json") == 0
        assert "hifi: warning: xi=0.8 has no influence" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "refusal",
        [
            (["--k", "5"], "k=5 is not allowed: an integer from 1 to the 4 heads of a layer"),
            (["--xi", "1.5"], "xi=1.5 is not allowed"),
            (["--strategy", "budget"], "strategy='budget' needs the number of heads"),
            (["--strategy", "budget", "--budget", "0"], "budget=0 is not allowed"),
            (["--strategy", "budget", "--budget", "13"], "1 to the 12 heads of the model"),
            (["--strategy", "budget", "--budget", "3", "--k", "3"], "k=3 is given too"),
            (["--budget", "3"], "budget=3 is not allowed: only with strategy='budget'"),
            (["-d", "1"], "damping=1.0 is not allowed"),
            (["--n-samples", "49"], "49 is not allowed"),
            (["--device", "tpu9"], "device='tpu9'"),
            (["--label", "kind"], "column 'kind'"),
            (["--max-length", "999"], "max_length=999"),
            (["--hub-config", "mrpc"], "hub_config='mrpc'"),
        ],
    )
    def test_bad_values_are_one_line_and_write_nothing(
        self, refusal, backbone, data, tmp_path, capsys
    ):
        arguments, expected = refusal
        out = tmp_path / "selection.json"
        assert select(backbone, data, "--out", str(out), *arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        (error,) = (line for line in captured.err.splitlines() if line.startswith("hifi: "))
        assert expected in error
        assert not out.exists()
