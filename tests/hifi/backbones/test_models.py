"""hifi.backbones.models: finding models, refusing unsafe ones, seeding the task head."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers as tf
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from hifi.backbones.heads import task_head_names
from hifi.backbones.models import (
    LoadedModel,
    ModelSource,
    load_config,
    load_for_task,
    load_image_processor,
    load_tokenizer,
    max_positions,
    quiet_transformers,
    resolve_model,
)
from hifi.errors import InvalidArgumentError, ModelError, UnsupportedArchitectureError
from tests.architectures import ARCHITECTURES, NAMES, tiny_model
from tests.tiny_tasks import save_image_model, save_text_model

WEIGHTS = "model.safetensors"


def load(folder: Path, *, seed: int = 0, num_labels: int = 3, image: bool = False) -> LoadedModel:
    source = resolve_model(folder)
    config = load_config(source)
    config.num_labels = num_labels
    kind = tf.AutoModelForImageClassification if image else tf.AutoModelForSequenceClassification
    return load_for_task(source, config=config, auto_class=kind, attention="eager", seed=seed)


def parameters(model: tf.PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


def save(name: str, folder: Path, *, bare: bool = False, **config) -> tf.PreTrainedModel:
    model = tiny_model(name, num_labels=3, **config)
    (model.base_model if bare else model).save_pretrained(folder)
    return model


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


class TestOtherLibrariesMessages:
    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("first:\n  (1) second\n", "first: (1) second"),
            ("x" * 400, "x" * 299 + "…"),
            ("", "ValueError"),
        ],
    )
    def test_are_shortened_to_one_line(self, text, told, monkeypatch, tmp_path):
        folder = save_text_model(tmp_path / "model")

        def fail(*_, **__):
            raise ValueError(text)

        monkeypatch.setattr(tf.AutoTokenizer, "from_pretrained", fail)
        with pytest.raises(ModelError) as caught:
            load_tokenizer(resolve_model(folder))
        assert str(caught.value) == f"the tokenizer of model cannot be loaded: {told}"


class TestResolveModel:
    def test_a_folder_goes_by_its_own_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        folder = tmp_path / "my-model"
        folder.mkdir()
        assert resolve_model(folder) == ModelSource("my-model", folder)
        monkeypatch.chdir(folder)
        assert resolve_model(".").name == "my-model"

    def test_a_snapshot_of_the_hub_goes_by_its_id_and_commit(self, tmp_path: Path):
        commit = "0123456789abcdef0123456789abcdef01234567"
        for cached, name in (("owner--model", "owner/model"), ("gpt2", "gpt2")):
            folder = tmp_path / f"models--{cached}" / "snapshots" / commit
            folder.mkdir(parents=True)
            assert resolve_model(folder) == ModelSource(name, folder, commit)

    def test_the_folder_of_the_packaged_model_goes_by_its_name(self, minilm_path: Path):
        assert resolve_model(minilm_path) == ModelSource("all-MiniLM-L6-v2", minilm_path)

    def test_a_folder_wins_over_any_other_name(self, tmp_path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "all-MiniLM-L6-v2").mkdir()
        assert resolve_model("all-MiniLM-L6-v2").path == Path("all-MiniLM-L6-v2")

    def test_a_folder_has_no_revision(self, tmp_path: Path):
        with pytest.raises(ModelError, match="no revision 'main'"):
            resolve_model(tmp_path, revision="main")

    @pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
    def test_the_packaged_model_goes_by_one_name(self, name: str, minilm_path: Path):
        assert resolve_model(name) == ModelSource("all-MiniLM-L6-v2", minilm_path)

    def test_without_the_package_the_hub_has_it(self, monkeypatch, hub: list[dict]):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        source = resolve_model("all-MiniLM-L6-v2")
        assert source.name == hub[0]["repo_id"] == "sentence-transformers/all-MiniLM-L6-v2"

    def test_a_hub_id_is_pinned_to_a_commit(self, hub: list[dict]):
        source = resolve_model("owner/model", revision="v1")
        assert (source.name, source.revision) == ("owner/model", "c0ffee")
        assert hub[0]["revision"] == "v1"

    def test_neither_pickles_nor_code_are_downloaded(self, hub: list[dict]):
        resolve_model("owner/model")
        names = ["model.safetensors", "config.json", "pytorch_model.bin", "modeling.py", "tf.h5"]
        names += ["onnx/model.safetensors", "vocab.txt", "spiece.model", "a.msgpack", "b.pkl"]
        kept = huggingface_hub.utils.filter_repo_objects(
            names,
            allow_patterns=hub[0]["allow_patterns"],
            ignore_patterns=hub[0]["ignore_patterns"],
        )
        wanted = {"model.safetensors", "config.json", "vocab.txt", "spiece.model"}
        assert set(kept) == wanted

    def test_an_unavailable_name_says_what_to_do(self):
        with pytest.raises(ModelError, match=r"'owner/model'.*check the name and the network"):
            resolve_model("owner/model")

    @pytest.mark.parametrize("name", ["no such folder/x", "/nowhere/at/all", "a/b/c", ""])
    def test_an_impossible_name_is_refused(self, name: str):
        with pytest.raises(ModelError, match="folder"):
            resolve_model(name or "--")

    def test_a_network_that_fails_half_way_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch):
        (root,) = (base for base in HfHubHTTPError.__bases__ if base.__name__ == "HTTPError")
        assert not issubclass(root, OSError | ValueError)  # or this test shows nothing

        def snapshot_download(*_, **__) -> str:
            raise root("connection reset by peer")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(ModelError, match=r"connection reset by peer\): check the name and the"):
            resolve_model("owner/model")

    @pytest.mark.parametrize(
        "name", ["~stranger/model", "~\0", "a\0b", "x" * 5000], ids=["~stranger", "~0", "0", "long"]
    )
    def test_a_name_too_long_for_a_file_system_is_no_folder(self, name: str):
        with pytest.raises(ModelError, match="neither a folder nor a valid name"):
            resolve_model(name)

    def test_a_tilde_of_an_unknown_user_is_part_of_the_name(
        self, tmp_path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "~stranger").mkdir()
        assert resolve_model("~stranger").name == "~stranger"

    @pytest.mark.parametrize("name", [None, 5, b"model", ["model"]])
    def test_a_value_that_is_no_name_is_refused(self, name):
        with pytest.raises(InvalidArgumentError, match="a folder, 'all-MiniLM-L6-v2' or a hub id"):
            resolve_model(name)

    def test_an_invalid_revision_is_refused(self):
        with pytest.raises(ModelError, match="'owner/model'"):
            resolve_model("owner/model", revision=5)  # type: ignore[arg-type]

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
        asked: list[dict] = []

        def snapshot_download(repo_id: str, **arguments) -> str:
            asked.append({"repo_id": repo_id, **arguments})
            return str(tmp_path / "snapshots" / "c0ffee")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked


class TestTaskHead:
    @pytest.mark.parametrize("bare", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_comes_from_the_seed_alone_and_the_backbone_from_the_file(
        self, name: str, bare: bool, tmp_path: Path
    ):
        stored = parameters(save(name, tmp_path, bare=bare))
        image = ARCHITECTURES[name].image
        loaded = [load(tmp_path, seed=seed, image=image) for seed in (0, 0, 1)]
        first, same, other = (parameters(entry.model) for entry in loaded)
        head = task_head_names(loaded[0].model)
        assert head
        for key, value in first.items():
            assert value.equal(same[key])
            assert value.equal(stored[key]) != (key in head), key
        assert any(not first[key].equal(other[key]) for key in head)
        matrices = [key for key in head if first[key].dim() > 1]
        assert all(not first[key].equal(other[key]) for key in matrices)

    @pytest.mark.parametrize("name", NAMES)
    def test_has_the_size_of_the_task_whatever_the_file_has(self, name: str, tmp_path: Path):
        save(name, tmp_path)
        image = ARCHITECTURES[name].image
        model = load(tmp_path, num_labels=5, image=image).model
        last = parameters(model)[task_head_names(model)[-1]]
        assert last.shape[0] == 5

    def test_is_float32_and_the_backbone_as_stored(self, tmp_path: Path):
        save("bert", tmp_path, dtype=torch.bfloat16)
        model = load(tmp_path).model
        head = task_head_names(model)
        dtypes = {key in head: value.dtype for key, value in parameters(model).items()}
        assert dtypes == {True: torch.float32, False: torch.bfloat16}

    @pytest.mark.parametrize("bare", [False, True])
    @pytest.mark.parametrize("num_labels", [3, 5])
    def test_leaves_the_random_state_of_the_caller_alone(
        self, bare: bool, num_labels: int, tmp_path: Path
    ):
        save("bert", tmp_path, bare=bare)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        load(tmp_path, seed=1, num_labels=num_labels)
        assert torch.rand(3).equal(expected)

    def test_seeds_no_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        save("bert", tmp_path)
        seeds: list[int] = []  # without a GPU torch keeps a seed for one that may come
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
        load(tmp_path, seed=1)
        assert not seeds

    def test_does_not_depend_on_the_random_state_of_the_caller(self, tmp_path: Path):
        save("bert", tmp_path, bare=True)
        heads = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            heads.append(parameters(load(tmp_path).model)["classifier.weight"])
        assert heads[0].equal(heads[1])

    def test_a_missing_pooler_becomes_part_of_it(self, tmp_path: Path):
        stored = parameters(save("bert", tmp_path))
        edit_weights(tmp_path, lambda weights: weights.pop("bert.pooler.dense.weight"))
        first, same, other = (load(tmp_path, seed=seed) for seed in (0, 0, 1))
        assert first.task_head_modules == ("bert.pooler",)
        values = [parameters(loaded.model) for loaded in (first, same, other)]
        for key in ("bert.pooler.dense.weight", "classifier.weight"):
            assert values[0][key].equal(values[1][key])
            assert not values[0][key].equal(values[2][key])
        assert not values[0]["bert.pooler.dense.bias"].equal(stored["bert.pooler.dense.bias"])

    def test_a_pooler_that_is_there_is_kept(self, tmp_path: Path):
        stored = parameters(save("bert", tmp_path))
        loaded = load(tmp_path)
        assert loaded.task_head_modules == ()
        key = "bert.pooler.dense.weight"
        assert parameters(loaded.model)[key].equal(stored[key])


class TestRefusals:
    def test_pickled_weights(self, tmp_path: Path):
        model = save("bert", tmp_path)
        (tmp_path / WEIGHTS).unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"pickled weights.*save_pretrained"):
            load(tmp_path)

    def test_no_weights(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"no model\.safetensors"):
            load(tmp_path)

    def test_no_configuration(self, tmp_path: Path):
        save("bert", tmp_path)
        (tmp_path / "config.json").unlink()
        with pytest.raises(ModelError, match=r"no readable config\.json"):
            load(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "nonsense"}'])
    def test_a_configuration_that_says_nothing(self, content: str, tmp_path: Path):
        save("bert", tmp_path)
        (tmp_path / "config.json").write_text(content)
        with pytest.raises((ModelError, UnsupportedArchitectureError)):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("entry", "shown"),
        [
            ({"num_hidden_layers": "many"}, "num_hidden_layers.*expected int, got str"),
            ({"hidden_size": None}, "hidden_size.*expected int, got NoneType"),
            ({"num_attention_heads": 0}, "zero"),
            ({"dtype": "floaty"}, "floaty"),
            ({"pad_token_id": 1_000_000}, "[Pp]adding"),
            ({"id2label": 5}, "int"),
            ({"vocab_size": -1}, "-1"),
            ({"hidden_act": "nope"}, "nope"),
        ],
    )
    def test_a_configuration_of_which_no_model_can_be_built(
        self, entry: dict, shown: str, tmp_path: Path
    ):
        save("bert", tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | entry))
        with pytest.raises(ModelError, match=f"{tmp_path.name} .*{shown}"):
            load(tmp_path)

    def test_an_unsupported_architecture_before_any_weight_is_read(self, tmp_path: Path):
        tf.T5Config(d_model=8).save_pretrained(tmp_path)
        (tmp_path / WEIGHTS).write_bytes(b"never opened")
        with pytest.raises(UnsupportedArchitectureError, match=r"'t5'.*bert.*modernbert"):
            load(tmp_path)

    def test_code_that_comes_with_a_model(self, tmp_path: Path):
        save("bert", tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "mine.py").write_text("raise SystemExit('executed')")
        with pytest.raises(ModelError):
            load(tmp_path)

    def test_weights_that_are_missing_from_the_backbone(self, tmp_path: Path):
        save("bert", tmp_path)
        key = "bert.encoder.layer.1.attention.self.query.weight"
        edit_weights(tmp_path, lambda weights: weights.pop(key))
        with pytest.raises(ModelError, match=f"lacks 1 weights.*{key}"):
            load(tmp_path)

    def test_weights_of_another_shape_in_the_backbone(self, tmp_path: Path):
        save("bert", tmp_path)
        key = "bert.encoder.layer.1.attention.self.query.weight"
        edit_weights(tmp_path, lambda weights: weights.update({key: torch.zeros(3, 3)}))
        with pytest.raises(ModelError, match=f"whose shape differs.*{key}"):
            load(tmp_path)

    def test_a_truncated_file(self, tmp_path: Path):
        save("bert", tmp_path)
        data = (tmp_path / WEIGHTS).read_bytes()
        (tmp_path / WEIGHTS).write_bytes(data[: len(data) // 2])
        with pytest.raises(ModelError, match="cannot be loaded"):
            load(tmp_path)

    def test_a_file_of_something_else(self, tmp_path: Path):
        save("bert", tmp_path)
        (tmp_path / WEIGHTS).write_bytes(b"nonsense" * 100)
        with pytest.raises(ModelError, match="cannot be loaded"):
            load(tmp_path)

    def test_a_model_without_a_tokenizer(self, tmp_path: Path):
        save("bert", tmp_path)
        with pytest.raises(ModelError, match="no tokenizer"):
            load_tokenizer(resolve_model(tmp_path))

    def test_a_model_with_a_broken_tokenizer(self, tmp_path: Path):
        save_text_model(tmp_path)
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
        with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded"):
            load_tokenizer(resolve_model(tmp_path))

    def test_a_tokenizer_that_is_a_sentencepiece_model_alone(self, tmp_path: Path):
        save("deberta-v3", tmp_path)
        (tmp_path / "spm.model").write_bytes(b"\x0a\x0e")
        with pytest.raises(ModelError, match=r"write tokenizer\.json once with transformers'"):
            load_tokenizer(resolve_model(tmp_path))

    def test_a_model_without_an_image_processor(self, tmp_path: Path):
        save("vit", tmp_path)
        with pytest.raises(ModelError, match=r"the image processor of .* cannot be loaded"):
            load_image_processor(resolve_model(tmp_path))


class TestRealModels:
    def test_minilm(self, minilm_path: Path):
        loaded = load(minilm_path)
        assert loaded.task_head_modules == ()
        stored = load_file(minilm_path / WEIGHTS)
        key = "encoder.layer.5.attention.self.value.weight"
        assert parameters(loaded.model)[f"bert.{key}"].equal(stored[key])

    def test_a_language_model_becomes_a_classifier(self, test_data: Path):
        loaded = load(test_data / "models" / "stories260K-llama")
        assert task_head_names(loaded.model) == ("score.weight",)

    @pytest.mark.parametrize("name", ["vit-cifar10-4L4H64", "vit-cifar10-6L4H128"])
    def test_the_classes_of_a_checkpoint_do_not_leak_through(self, name: str, test_data: Path):
        folder = test_data / "models" / name
        stored = load_file(folder / WEIGHTS)
        model = load(folder, num_labels=10, image=True).model
        weight = parameters(model)["classifier.weight"]
        assert weight.shape == stored["classifier.weight"].shape
        assert not weight.equal(stored["classifier.weight"])


class TestQuiet:
    def test_loading_is_silent_and_restores_transformers_logging(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ):
        save_text_model(tmp_path)
        before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
        logging.enable_progress_bar()
        capfd.readouterr()
        load(tmp_path, num_labels=7)
        load_tokenizer(resolve_model(tmp_path))
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == before[0]
        assert logging.is_progress_bar_enabled()
        logging.disable_progress_bar()


class TestQuietTransformers:
    def test_restores_the_previous_state(self):
        def state():
            return logging.get_verbosity(), logging.is_progress_bar_enabled()

        before = state()
        logging.enable_progress_bar()
        try:
            with quiet_transformers():
                assert state() == (logging.ERROR, False)
            assert state() == (before[0], True)
            with pytest.raises(RuntimeError), quiet_transformers():
                raise RuntimeError
            assert state() == (before[0], True)
        finally:
            if not before[1]:
                logging.disable_progress_bar()


class TestAttention:
    @pytest.mark.parametrize(
        ("name", "wanted", "used"),
        [
            ("bert", "sdpa", "sdpa"),
            ("bert", "eager", "eager"),
            ("deberta-v3", "sdpa", "eager"),
            ("mpnet", "sdpa", "eager"),
        ],
    )
    def test_is_the_one_that_the_architecture_has(
        self, name: str, wanted: str, used: str, tmp_path: Path
    ):
        save(name, tmp_path)
        source = resolve_model(tmp_path)
        kind = tf.AutoModelForSequenceClassification
        loaded = load_for_task(
            source, config=load_config(source), auto_class=kind, attention=wanted, seed=0
        )
        assert loaded.model.config._attn_implementation == used


class TestMaxPositions:
    @pytest.mark.parametrize(
        ("name", "limit"), [("bert", 64), ("roberta", 63), ("mpnet", 62), ("distilbert", 512)]
    )
    def test_is_what_the_position_table_holds(self, name: str, limit: int):
        model = tiny_model(name)
        assert max_positions(model) == limit
        with torch.no_grad():
            model(input_ids=torch.full((1, limit), 5))
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, limit + 1), 5))

    def test_relative_positions_have_the_limit_of_their_configuration(self):
        assert max_positions(tiny_model("deberta-v3")) == 64

    def test_images_have_no_limit(self):
        assert max_positions(tiny_model("vit")) is None


class TestImages:
    def test_the_processor_uses_pil(self, tmp_path: Path):
        save_image_model(tmp_path)
        assert type(load_image_processor(resolve_model(tmp_path))).__name__.endswith("Pil")
