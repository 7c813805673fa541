"""Slow tests that `pytest` leaves out, marked `exhaustive`: they combine, or do in full size, what the others show.

`pytest -m exhaustive` runs these alone.
"""

# With windows, norms of queries and keys, sinks, routed and shared networks, and latent attention. Logits are compared
# with transformers' for every family, all the same.
_FAMILIES = ("gemma3", "qwen3", "gpt-oss", "deepseek-v3")

# Tests that are left out with all their parameters.
WHOLE = (
    "bench/test_decode.py::test_with_torch_its_figures_stand_beside_the_rest",
    "bench/test_guests.py::test_figures_come_from_what_was_written",
    "bench/test_serving.py::test_the_server_is_compared_with_the_engine",
    "bench/test_speculation.py::test_both_loops_write_the_same_and_every_figure_is_there",
    "checkpoints/gguf/test_real_models.py::test_run_trains_a_gate_end_to_end",
    "decoding/test_correction.py::test_latent_caches_and_chunks_are_retracted_too",
    "demo/test_pair.py::test_equal_seeds_make_equal_pairs_that_load_as_a_team",
    "plan/test_plan.py::test_activations_are_sharded_by_texts_and_parameters_gathered_within_their_layer",
    "plan/test_plan.py::test_an_expert_stored_in_few_bits_is_planned_so",
    "plan/test_plan.py::test_memory_beside_weights_grows_with_the_tokens_not_with_their_square",
    "storage/test_bucket.py::test_two_processes_share_a_bucket_and_resume_after_a_kill",
)
# Of each test, the parameters that are always run: their ids, or every n-th one.
KEPT: dict[str, tuple[str, ...] | int] = {
    "checkpoints/gguf/test_real_models.py::test_logits_equal_transformers": ("SmolLM2-135M-Instruct.Q4_1.gguf",),
    "checkpoints/quantized/test_scores.py::test_deepseek_in_blocks": ("shape0-deepseek-v3", "shape1-deepseek-v2"),
    "checkpoints/quantized/test_scores.py::test_eight_devices_give_the_same": 2,
    "checkpoints/quantized/test_scores.py::test_networks_of_a_mixture_stay_quantised": 4,
    "checkpoints/quantized/test_scores.py::test_scores_are_those_of_the_dequantised_weights": 4,
    "checkpoints/quantized/test_scores.py::test_the_cache_and_layers_in_a_list_give_the_same": 4,
    "checkpoints/test_load_memory.py::test_peak_memory_is_little_more_than_the_model": ("1 2 4",),
    "decoding/test_batches.py::test_neither_batch_nor_batched_calls_change_an_answer": (
        "1-None",
        "8-None",
        "8-ExpertBatching(calls=3, steps=2)",
    ),
    "decoding/test_compiled.py::test_the_loop_copies_no_cache": ("cpu-1-True", "tpu-1-False", "tpu-8-True"),
    "decoding/test_correction.py::test_trials_equal_the_oracle": ("backtrack", "lookahead-unsure"),
    "decoding/test_engine.py::test_two_experts_equal_the_oracle": ("defer", "proxy"),
    "decoding/test_evidence.py::test_evidence_equals_that_of_whole_passes": ("False-2", "True-1"),
    "decoding/test_fixed_batch.py::test_answers_are_those_of_a_growing_batch_and_later_ones_compile_nothing": (
        "defer-2",
    ),
    "decoding/test_gate_inputs.py::test_answers_are_those_of_the_oracle": ("1-defer-True", "2-compose-False"),
    "decoding/test_speculation.py::test_speculation_equals_the_plain_loop": ("defer-1", "backtrack-1", "compose-2"),
    "decoding/test_units.py::test_a_guest_at_token_units_gives_the_resident_answers": ("random",),
    "decoding/test_units.py::test_answers_are_those_of_the_oracle": ("defer", "sampled"),
    "decoding/test_units_fuzz.py::test_random_answers_are_those_of_the_oracle": ("gemma-byte-level",),
    "models/test_attention.py::test_a_cache_read_by_blocks_equals_one_read_as_a_whole": 2,
    "models/test_changes.py::test_changing_a_field_changes_the_output": 4,
    "models/test_decoder.py::test_gradients_do_not_depend_on_what_is_kept_for_them": 2,
    "models/test_families.py::test_a_family_is_right": _FAMILIES,
    "models/test_feed_forward.py::test_gradients_equal_those_of_every_network_on_every_token": 4,
    "models/test_feed_forward.py::test_sharded_equals_unsharded": 4,
    "models/test_grouped.py::test_the_form_for_gpu_equals_the_other": 4,
    "models/test_grouped.py::test_the_form_for_tpu_equals_the_other": 4,
    "models/test_lora.py::test_merged_equals_unmerged": ("mixture", "latent attention, two runs"),
    "models/test_quantized.py::test_a_large_kernel_is_never_widened_whole": 3,
    "models/test_quantized.py::test_eight_devices_give_the_same": 5,
    "models/test_quantized.py::test_product_is_that_of_the_values": 5,
    "models/test_transposed.py::test_products_are_those_of_the_plain_kernel": 5,
    "plan/test_plan.py::test_every_program_compiles_and_fits": ("plain",),
    "plan/test_plan.py::test_llama_2_7b_with_70b_fits": ("v5p:2x2x2-mesh1-score expert-1",),
    "plan/test_plan.py::test_no_device_gathers_the_vocabulary": 2,
    "pipeline/test_run.py::test_experts_that_score_online_train_what_their_scores_train": ("(2, 1, 2)",),
    "pipeline/test_units.py::test_experts_views_of_prompts_reach_the_file_of_answers": ("stories260k",),
    "scoring/test_passes.py::test_families_score_packed_texts_as_texts_alone": ("gemma2", "deepseek-v3"),
    "serving/test_malformed.py::test_malformed_requests_are_refused_and_the_server_goes_on": ("2000",),
    "test_team.py::test_a_team_of_every_family_is_a_plain_model_to_transformers": _FAMILIES,
    "test_team.py::test_a_team_of_every_family_is_stored_and_read_back": _FAMILIES,
    "test_team.py::test_expert_types_apart_from_the_base": ("bfloat16", "int4"),
    "training/test_trainer.py::test_a_mesh_trains_as_one_device_does": 5,
    "training/test_trainer.py::test_experts_that_score_in_the_step_give_what_their_scores_give": 3,
    "training/test_trainer.py::test_parts_of_a_batch_make_the_step_of_the_whole": ("marginal", "weak"),
}


def left_out(parameters: dict[str, list[str]]) -> set[tuple[str, str]]:
    """Return the tests (file below tests/ and function) and ids that are left out, of all; "" without parameters."""
    found = {(test, name) for test in WHOLE for name in parameters.get(test, ())}
    for test, ids in parameters.items():
        kept = KEPT.get(test, 1)
        kept_ids = ids[::kept] if isinstance(kept, int) else kept
        unknown = set(kept_ids) - set(ids)
        found |= {(test, name) for name in ids if name not in kept_ids and not unknown}
    return found
