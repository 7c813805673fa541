"""The text model within a multimodal checkpoint: the same logits, weights and errors as on its own."""

import copy
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from colm_jax.checkpoints.families import from_huggingface, to_huggingface
from colm_jax.checkpoints.huggingface import load_model, match_tensors, read_config, save_tensors, to_tensors
from colm_jax.errors import UserError
from tests.models.families import CONFIGS, tokens, weights, write_family
from tests.tiny import run

WRAPPERS = {"gemma3": "gemma3", "mistral3": "mistral", "mistral3-ministral3": "ministral3", "llama4": "llama4"}
NAMINGS = {  # of the text model's tensors: before transformers 4.52, and since; each with that of the head
    "old": ("language_model.model.", "language_model.lm_head."),
    "new": ("model.language_model.", "lm_head."),
}
TOWER = {
    "old": ("vision_tower.encoder.layers.0.weight", "vision_model.embedding", "multi_modal_projector.linear_1.weight"),
    "new": (
        "model.vision_tower.patch_conv.weight",
        "model.vision_model.norm",
        "model.multi_modal_projector.norm.weight",
    ),
}


def wrapped(case, naming="old"):
    """config.json and tensors of a multimodal checkpoint around the family's tiny model."""
    text = copy.deepcopy(CONFIGS[WRAPPERS[case]])
    config = {"model_type": case.split("-")[0], "text_config": text, "vision_config": {"hidden_size": 8}}
    config["tie_word_embeddings"] = text.pop("tie_word_embeddings")
    body, head = NAMINGS[naming]
    tensors = {
        name.replace("lm_head.", head) if name.startswith("lm_head.") else body + name.removeprefix("model."): value
        for name, value in weights(CONFIGS[WRAPPERS[case]]).items()
    }
    return config, tensors | {name: np.full((2, 3), np.nan, np.float32) for name in TOWER[naming]}


def write(directory, config, tensors):
    directory.mkdir()
    save_tensors(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("case", WRAPPERS)
def test_it_is_the_text_model(case, naming, tmp_path, mesh):
    directory = write(tmp_path / "whole", *wrapped(case, naming))
    alone = write_family(tmp_path / "alone", WRAPPERS[case])
    assert read_config(directory) == read_config(alone)
    found, expected = (to_tensors(load_model(path, "float32", mesh)[0]) for path in (directory, alone))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("case", WRAPPERS)
def test_it_is_written_as_a_text_model(case, tmp_path, mesh):
    directory = write(tmp_path / "whole", *wrapped(case))
    decoder = load_model(directory, "float32", mesh)[0]
    written = write(tmp_path / "text", to_huggingface(decoder.config, "float32", 1, 2), to_tensors(decoder))
    fields = json.loads((written / "config.json").read_text())
    assert "text_config" not in fields
    assert fields["model_type"] == CONFIGS[WRAPPERS[case]]["model_type"]
    assert all(name.startswith(("model.", "lm_head.")) for name in load_file(written / "model.safetensors"))
    assert read_config(written) == decoder.config
    match_tensors(written)


# Of the outer model, of the text model (None: left out), and what holds; the text model's default is the last resort.
TIED = [
    ("gemma3", None, None, True),
    ("gemma3", None, False, False),
    ("gemma3", True, False, True),
    ("mistral3", None, None, False),
    ("mistral3", None, True, True),
    ("mistral3", False, True, False),
    ("mistral3", True, None, True),
    ("llama4", None, None, False),
    ("llama4", True, False, True),
]


@pytest.mark.parametrize(("case", "outer", "inner", "tied"), TIED)
def test_the_outer_model_decides_whether_the_head_is_tied(case, outer, inner, tied):
    config, _ = wrapped(case)
    del config["tie_word_embeddings"]
    if outer is not None:
        config["tie_word_embeddings"] = outer
    if inner is not None:
        config["text_config"]["tie_word_embeddings"] = inner
    assert from_huggingface(config, "config.json").tied is tied


def test_sizes_left_out_are_the_references():
    config = {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "model_type": "gemma3_text"}}
    found = from_huggingface(config, "config.json")
    assert (found.width, found.vocab_size, found.heads, found.head_dim, found.depth) == (2560, 262208, 8, 256, 26)


WRONG = {
    "another family": ({"text_config": {"model_type": "llama"}}, "the text model of 'gemma3' has model_type 'llama'"),
    "no text model": ({"text_config": None}, "'text_config' of the multimodal 'gemma3' is missing or no object"),
    "text model as text": ({"text_config": "gemma3_text"}, "is missing or no object"),
    "own code": ({"auto_map": {"AutoModelForCausalLM": "modeling.Gemma3"}}, "its own code, which is never run"),
    "not causal": ({"is_causal": False}, "only causal attention"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configs_say_why(case):
    change, reason = WRONG[case]
    with pytest.raises(UserError, match=r"^config\.json") as caught:
        from_huggingface({**wrapped("gemma3")[0], **change}, "config.json")
    assert reason in str(caught.value)


def test_a_field_of_the_text_model_that_could_matter_is_an_error():
    config, _ = wrapped("mistral3")
    config["text_config"]["sliding_window"] = "wide"
    with pytest.raises(UserError, match=r"^config\.json \(text_config\): field 'sliding_window' has a wrong type"):
        from_huggingface(config, "config.json")


def test_a_missing_text_tensor_is_named(tmp_path):
    config, tensors = wrapped("gemma3")
    del tensors["language_model.model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"tensor 'model\.layers\.2\.mlp\.up_proj\.weight' is missing \(1 of"):
        match_tensors(write(tmp_path / "m", config, tensors))


@pytest.mark.parametrize(
    "name",
    ["audio_tower.norm.weight", "model.vision.norm", "language_model.model.layers.4.mlp.up_proj.weight"],
)
def test_an_unknown_tensor_outside_the_towers_is_an_error(name, tmp_path):
    config, tensors = wrapped("gemma3")
    directory = write(tmp_path / "m", config, {**tensors, name: np.ones((2, 3), np.float32)})
    with pytest.raises(UserError, match="unknown tensor"):
        match_tensors(directory)


def test_both_namings_of_one_tensor_are_an_error(tmp_path):
    config, tensors = wrapped("gemma3")
    twice = {**tensors, "model.language_model.norm.weight": tensors["language_model.model.norm.weight"]}
    with pytest.raises(UserError, match=r"'model\.norm\.weight' is also in"):
        match_tensors(write(tmp_path / "m", config, twice))


def test_in_a_text_model_a_towers_tensor_is_unknown(tmp_path):
    tensors = {**weights(CONFIGS["mistral"]), "vision_tower.norm": np.ones(3, np.float32)}
    with pytest.raises(UserError, match=r"unknown tensor 'vision_tower\.norm'"):
        match_tensors(write(tmp_path / "m", CONFIGS["mistral"], tensors))


_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION |= {"image_size": 28, "patch_size": 14}
_LLAMA4_VISION = {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}


def live(case, text):
    """A random model of transformers, small as its vision tower is."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="needs PyTorch")
    tied = text.pop("tie_word_embeddings")
    ids = {"image_token_index": 60, "tie_word_embeddings": tied}
    match case.split("-")[0]:
        case "gemma3":
            config = transformers.Gemma3Config(text_config=text, vision_config=_VISION, mm_tokens_per_image=4, **ids)
            return transformers.Gemma3ForConditionalGeneration(config)
        case "mistral3":
            vision = {**_VISION, "model_type": "pixtral"}
            config = transformers.Mistral3Config(text_config=text, vision_config=vision, **ids)
            return transformers.Mistral3ForConditionalGeneration(config)
    config = transformers.Llama4Config(
        text_config={**text, "pad_token_id": 0}, vision_config={**_VISION, **_LLAMA4_VISION}, **ids
    )
    return transformers.Llama4ForConditionalGeneration(config)


@pytest.mark.parametrize("case", WRAPPERS)
def test_logits_equal_those_of_a_live_model(case, tmp_path, mesh):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    torch.manual_seed(0)
    model = live(case, copy.deepcopy(CONFIGS[WRAPPERS[case]])).eval()
    centre = 0 if case == "gemma3" else 1  # of a norm's stored scale
    with torch.no_grad():
        for parameter in model.parameters():  # none at its start: norms differ, positions show
            drawn = torch.randn(parameter.shape)
            parameter.copy_(centre + 0.3 * drawn if parameter.ndim < 2 else 1.4 * drawn * parameter.shape[-1] ** -0.5)
        ids = torch.tensor(tokens() % 57)[None]  # no special tokens of images
        text = model.language_model if case == "llama4" else model  # of Llama 4 the outer pass needs an image
        expected = text(input_ids=ids).logits[0].numpy()
    assert expected.std() > 0.5
    model.save_pretrained(tmp_path / "old")
    stored = load_file(tmp_path / "old" / "model.safetensors")
    body, head = (NAMINGS["new"][i] for i in (0, 1))
    renamed = {
        name.replace("language_model.model.", body).replace("language_model.lm_head.", head): value
        for name, value in stored.items()
    }
    assert renamed.keys() != stored.keys()
    fields = json.loads((tmp_path / "old" / "config.json").read_text())
    for directory in (tmp_path / "old", write(tmp_path / "new", fields, renamed)):
        logits = run(load_model(directory, "float32", mesh)[0], ids.numpy())[1]
        np.testing.assert_allclose(np.asarray(logits[0]), expected, rtol=0, atol=1e-4)
