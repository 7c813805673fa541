"""Slow tests that `pytest` leaves out, marked `exhaustive`: they combine, or do in full size, what the others show.

`pytest -m exhaustive` runs these alone.
"""

# With RoPE in bands, windows, norms of queries and keys, factors by length, sinks, routed and shared networks, and
# latent attention. Logits are compared with transformers' for every family, all the same.
_FAMILIES = ("llama-3", "gemma3", "qwen3", "phi3", "gpt-oss", "llama4", "deepseek-v3")

# Tests without parameters.
WHOLE = ("plan/test_plan.py::test_activations_are_sharded_by_texts_and_parameters_gathered_within_their_layer",)
# Of each test, the parameters that are always run: their ids, or every n-th one.
KEPT: dict[str, tuple[str, ...] | int] = {
    "checkpoints/quantized/test_scores.py::test_deepseek_in_blocks": ("shape0-deepseek-v3", "shape1-deepseek-v2"),
    "checkpoints/quantized/test_scores.py::test_eight_devices_give_the_same": 2,
    "checkpoints/quantized/test_scores.py::test_networks_of_a_mixture_stay_quantised": 2,
    "checkpoints/quantized/test_scores.py::test_scores_are_those_of_the_dequantised_weights": 2,
    "checkpoints/quantized/test_scores.py::test_the_cache_and_layers_in_a_list_give_the_same": 2,
    "checkpoints/test_load_memory.py::test_peak_memory_is_little_more_than_the_model": ("1 2 4",),
    "decoding/test_engine.py::test_two_experts_equal_the_oracle": ("defer", "proxy"),
    "decoding/test_speculation.py::test_speculation_equals_the_plain_loop": (
        "defer-1",
        "expert-1",
        "backtrack-1",
        "lookahead-1",
        "compose-2",
        "confidence-2",
    ),
    "decoding/test_units.py::test_a_guest_at_token_units_gives_the_resident_answers": ("defer", "random"),
    "decoding/test_units.py::test_answers_are_those_of_the_oracle": ("defer", "sampled", "random"),
    "models/test_attention.py::test_a_cache_read_by_blocks_equals_one_read_as_a_whole": 2,
    "models/test_changes.py::test_changing_a_field_changes_the_output": 2,
    "models/test_decoder.py::test_gradients_do_not_depend_on_what_is_kept_for_them": 2,
    "models/test_families.py::test_a_family_is_right": _FAMILIES,
    "models/test_feed_forward.py::test_gradients_equal_those_of_every_network_on_every_token": 2,
    "models/test_feed_forward.py::test_sharded_equals_unsharded": 2,
    "models/test_grouped.py::test_the_form_for_gpu_equals_the_other": 2,
    "models/test_grouped.py::test_the_form_for_tpu_equals_the_other": 2,
    "models/test_quantized.py::test_a_large_kernel_is_never_widened_whole": 3,
    "models/test_quantized.py::test_eight_devices_give_the_same": 5,
    "models/test_quantized.py::test_product_is_that_of_the_values": 5,
    "models/test_transposed.py::test_products_are_those_of_the_plain_kernel": 5,
    "plan/test_plan.py::test_every_program_compiles_and_fits": ("plain", "online-int8"),
    "plan/test_plan.py::test_llama_2_7b_with_70b_fits": ("v5p:2x2x2-mesh1-score expert-1",),
    "plan/test_plan.py::test_memory_beside_weights_grows_with_the_tokens_not_with_their_square": ("train",),
    "test_team.py::test_a_team_of_every_family_is_a_plain_model_to_transformers": _FAMILIES,
    "test_team.py::test_a_team_of_every_family_is_stored_and_read_back": _FAMILIES,
    "test_team.py::test_expert_types_apart_from_the_base": ("bfloat16", "int4"),
    "training/test_trainer.py::test_a_mesh_trains_as_one_device_does": 5,
    "training/test_trainer.py::test_experts_that_score_in_the_step_give_what_their_scores_give": 3,
    "training/test_trainer.py::test_parts_of_a_batch_make_the_step_of_the_whole": ("marginal", "weak"),
}


def left_out(parameters: dict[str, list[str]]) -> set[tuple[str, str]]:
    """Return the tests (file below tests/ and function) and ids that are left out, of all; "" without parameters."""
    found = {(test, "") for test in WHOLE}
    for test, ids in parameters.items():
        kept = KEPT.get(test, 1)
        kept_ids = ids[::kept] if isinstance(kept, int) else kept
        unknown = set(kept_ids) - set(ids)
        found |= {(test, name) for name in ids if name not in kept_ids and not unknown}
    return found
