"""Which weights of a quantised checkpoint stay so: of experts unless another type is asked for, of frozen bases."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx

from colm_jax.checkpoints.describe import describe
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.checkpoints.layout import by_path
from colm_jax.checkpoints.team import load_base, load_expert, make_gate, save_team
from colm_jax.models.quantized import PackedKernel
from colm_jax.pipeline.score import score_model
from colm_jax.text.tokenizer import load_tokenizer
from tests.checkpoints.quantized.checkpoints import quantized
from tests.checkpoints.quantized.test_scores import NATS, kept, worst
from tests.tiny import write_tokenizer


def models(name, directory, **changes):
    """Both models, with a tokenizer."""
    found = quantized(name, directory, **changes)
    for model in found:
        write_tokenizer(model)
    return found


def test_an_expert_stays_quantised_unless_another_type_is_asked_for(tmp_path, mesh):
    packed, _ = models("awq", tmp_path)
    tokenizer = load_tokenizer(packed)
    as_stored = load_expert(packed, tokenizer, "float32", None, mesh)
    assert len(kept(as_stored)) == 28
    for kind in ("float32", "bfloat16", "float16"):
        other = load_expert(packed, tokenizer, "float32", kind, mesh)
        assert not kept(other)
        assert all(leaf.dtype == kind for leaf in jax.tree.leaves(nnx.state(other)))
    for kind, bits in (("int8", jnp.int8), ("int4", jnp.int4)):
        kernel = load_expert(packed, tokenizer, "float32", kind, mesh).layers[0].attention.query.kernel.get_value()
        assert isinstance(kernel, qwix.QArray) and kernel.qvalue.dtype == bits


def test_a_base_stays_quantised_and_a_team_holds_its_dequantised_weights(tmp_path, mesh):
    packed, plain = models("gptq act-order", tmp_path)
    base = load_base(packed, "float32", mesh)
    assert len(kept(base.decoder)) == 7
    assert not kept(load_base(packed, "float32", mesh, packed=False).decoder)
    gate = make_gate(np.zeros((48, 1), np.float32))
    save_team(tmp_path / "team", base.decoder, gate, packed, "float32", {"experts": []})
    written = load_base(tmp_path / "team", "float32", mesh).decoder
    assert not kept(written)
    assert worst(written, load_model(plain, "float32", mesh)[0]) < NATS


def test_inspection_shows_what_a_checkpoint_takes_as_it_is_stored(tmp_path, mesh):
    packed, plain = models("awq", tmp_path)
    facts = describe(packed, mesh.abstract_mesh)
    state = nnx.state(load_model(packed, "bfloat16", mesh, packed=True)[0])
    assert facts["quantised"] == {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)), "dequantised": []}
    assert facts["stored_as"] == {"int4": 28, "float32": 39}
    assert facts["quantised"]["bytes"] < facts["bytes"]["bfloat16"]
    assert describe(plain, mesh.abstract_mesh)["quantised"] is None


def test_inspection_names_what_cannot_be_kept(tmp_path, mesh):
    packed, _ = models("deepseek", tmp_path)
    facts = describe(packed, mesh.abstract_mesh)
    assert facts["quantised"]["dequantised"] == ["layers.attention.out.kernel"]  # blocks of 32 inputs, heads of 12
    assert "layers.attention.out.kernel" in by_path(nnx.state(load_model(packed, "float32", mesh)[0]))


def test_a_quantised_model_is_scored_as_it_is(tmp_path, mesh, monkeypatch):
    packed, plain = models("awq", tmp_path)
    data, seen = tmp_path / "data.jsonl", []
    data.write_text("\n".join(json.dumps({"text": text}) for text in ("some words", "other words of a text")))
    monkeypatch.setattr(
        "colm_jax.pipeline.score.load_expert",
        lambda *arguments, **rest: seen.append(load_expert(*arguments, **rest)) or seen[-1],
    )
    found = [score_model(model, data, tmp_path / f"out-{model.name}", mesh=mesh) for model in (packed, plain)]
    assert isinstance(seen[0].layers.attention.query.kernel.get_value(), PackedKernel)
    assert abs(found[0]["nats_per_token"] - found[1]["nats_per_token"]) < NATS
