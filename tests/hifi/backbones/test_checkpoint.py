"""hifi.backbones.checkpoint: what a checkpoint is known to have brought, and what it lacked."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from hifi.backbones.checkpoint import check_loaded, new_parameter_names
from hifi.backbones.heads import pooler_parameter_names, task_head_names
from hifi.errors import ModelError
from tests.architectures import ARCHITECTURES, NAMES, tiny_model

CLASSIFIER = {"classifier.weight", "classifier.bias"}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def save(folder: Path, name: str = "bert", **settings) -> Path:
    tiny_model(name, **settings).save_pretrained(folder)
    return folder


def load(folder: Path, **settings) -> tf.PreTrainedModel:
    return tf.BertForSequenceClassification.from_pretrained(folder, **settings)


def without(folder: Path, part: str) -> Path:
    """Remove the tensors whose names contain ``part`` from a checkpoint."""
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if part not in name}
    save_file(kept, file, {"format": "pt"})
    return folder


class TestNewParameterNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_are_the_task_head_of_a_whole_checkpoint(self, name: str, tmp_path: Path):
        model = type(tiny_model(name)).from_pretrained(save(tmp_path, name))
        assert new_parameter_names(model) == task_head_names(model)

    @pytest.mark.parametrize("name", NAMES)
    def test_have_every_pooler_of_a_model_from_a_configuration(self, name: str):
        model = tiny_model(name)
        wanted = {*task_head_names(model), *pooler_parameter_names(model)}
        assert set(new_parameter_names(model)) == wanted

    def test_have_a_pooler_that_the_checkpoint_lacks(self, tmp_path: Path):
        model = load(without(save(tmp_path), "pooler"))
        assert set(new_parameter_names(model)) == CLASSIFIER | POOLER

    def test_have_a_pooler_of_which_the_checkpoint_lacks_a_part(self, tmp_path: Path):
        model = load(without(save(tmp_path), "pooler.dense.bias"))
        assert set(new_parameter_names(model)) == CLASSIFIER | POOLER

    def test_have_the_pooler_of_a_bare_vision_model(self, tmp_path: Path):
        save(tmp_path, "vit")  # a classifier of images has no pooler
        model = tf.ViTModel.from_pretrained(tmp_path)
        assert new_parameter_names(model) == pooler_parameter_names(model) != ()
        model.save_pretrained(tmp_path)
        assert new_parameter_names(tf.ViTModel.from_pretrained(tmp_path)) == ()

    def test_have_an_output_embedding_that_the_checkpoint_lacks(self, tmp_path: Path):
        settings = ARCHITECTURES["llama"].config(**ARCHITECTURES["llama"].arguments)
        tf.LlamaForCausalLM(settings).save_pretrained(tmp_path)
        assert new_parameter_names(tf.LlamaForCausalLM.from_pretrained(tmp_path)) == ()
        tf.LlamaModel(settings).save_pretrained(tmp_path)
        model = tf.LlamaForCausalLM.from_pretrained(tmp_path)
        assert new_parameter_names(model) == ("lm_head.weight",)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_do_not_depend_on_the_dtype(self, dtype: torch.dtype, tmp_path: Path):
        save(tmp_path, dtype=torch.float16)
        assert set(new_parameter_names(load(tmp_path, dtype=dtype))) == CLASSIFIER

    def test_of_a_copy_are_found_in_the_files(self, tmp_path: Path):
        model = copy.deepcopy(load(save(tmp_path)))
        assert set(new_parameter_names(model)) == CLASSIFIER

    def test_have_a_pooler_that_was_trained_since(self, tmp_path: Path):
        model = load(save(tmp_path))
        with torch.no_grad():
            model.bert.pooler.dense.bias[3] += 1
        assert set(new_parameter_names(model)) == CLASSIFIER | POOLER

    def test_of_a_checkpoint_in_several_files(self, tmp_path: Path):
        tiny_model("bert").save_pretrained(tmp_path, max_shard_size="20KB")
        assert not (tmp_path / "model.safetensors").exists()
        assert set(new_parameter_names(load(tmp_path))) == CLASSIFIER

    @pytest.mark.parametrize("has_pooler", [True, False])
    def test_without_files_rely_on_what_was_read(self, has_pooler: bool, tmp_path: Path):
        folder = save(tmp_path / "model")
        model = load(folder if has_pooler else without(folder, "pooler"))
        folder.rename(tmp_path / "elsewhere")
        wanted = CLASSIFIER if has_pooler else CLASSIFIER | POOLER
        assert set(new_parameter_names(model)) == wanted
        assert set(new_parameter_names(copy.deepcopy(model))) == CLASSIFIER | POOLER

    def test_with_broken_files_have_the_pooler(self, tmp_path: Path):
        model = load(save(tmp_path))
        (tmp_path / "model.safetensors").write_bytes(b"broken")
        assert set(new_parameter_names(model)) == CLASSIFIER | POOLER

    @pytest.mark.parametrize("is_there", [True, False])
    def test_of_a_hub_id_are_found_in_the_cache(
        self, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        model = copy.deepcopy(load(save(tmp_path)))
        model.config.name_or_path = "owner/model"
        file = str(tmp_path / "model.safetensors") if is_there else None
        monkeypatch.setattr(
            "huggingface_hub.try_to_load_from_cache",
            lambda _, name: file if name == "model.safetensors" else None,
        )
        assert set(new_parameter_names(model)) == (CLASSIFIER if is_there else CLASSIFIER | POOLER)


class TestCheckLoaded:
    @pytest.mark.parametrize("name", NAMES)
    def test_passes_a_backbone_with_a_new_task_head(self, name: str, tmp_path: Path):
        tiny_model(name).base_model.save_pretrained(tmp_path)
        check_loaded(type(tiny_model(name)).from_pretrained(tmp_path))

    def test_passes_a_model_of_which_nothing_is_known(self, tmp_path: Path):
        check_loaded(tiny_model("bert"))
        check_loaded(copy.deepcopy(load(without(save(tmp_path), "layer.1."))))

    @pytest.mark.parametrize("part", ["layer.1.", "word_embeddings", "LayerNorm.bias"])
    def test_refuses_a_backbone_of_which_weights_are_random(self, part: str, tmp_path: Path):
        model = load(without(save(tmp_path / "partial"), part))
        with pytest.raises(ModelError, match=rf"^partial lacked \d+ weights .*{part}.*save_pretr"):
            check_loaded(model)
