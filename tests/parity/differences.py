"""PEFT's tests that the engine fails on purpose: (pattern of the test's name, why). Counted apart by `tests.parity.peft_suite`.

Each reason names the test of ours that shows by arithmetic what is right, or what stands in its place.
"""

from __future__ import annotations

_RIGHT = "tests/parity/test_who_is_right.py"
_COPIES = ("Copies of a module, learned biases and rows of words are deltas that add like others; PEFT refuses a second one. "
           f"{_RIGHT}::test_copies_of_a_module_add_as_deltas_do")
_SEEDS = ("Every adapter has projections of its own, so another seed needs no refusal. "
          f"{_RIGHT}::test_projections_of_other_seeds_stand_beside_one_another")
_PROMPTS = f"A prompt can be taken away; PEFT's model has no `unload` then. {_RIGHT}::test_a_prompt_can_be_taken_away"
_UNHEARD = ("A prefix for a model without a cache would be heard by nobody: PEFT's changes nothing there, here it is refused. "
            f"{_RIGHT}::test_a_prefix_that_nobody_would_hear_is_refused")
_INJECTED = ("Methods that share tensors between layers can be injected as well; PEFT refuses them. "
             "tests/engine/compat/cases/test_direct.py::test_what_layers_share_is_injected_too")
_PRIVATE = ("It looks at private parts of PEFT's layers that are not needed here, as W0 is kept and what does not learn is a buffer. "
            "tests/engine/test_laws.py shows what they are for: that merging is running and unmerging bit-exact")
_KEPT = ("DoRA's gains are always kept while nothing learns and forgotten when anything changes, so there is no cache that could be switched. "
         "tests/engine/compat/cases/test_helpers.py::test_dora_needs_no_switch")
_CAST = ("Inputs keep their number format, with and without the context, where PEFT fails without it. "
         "tests/engine/model/test_helpers.py::test_inputs_keep_their_number_format")

DIFFERENCES: list[tuple[str, str]] = [
    ("*::test_multiple_active_adapters_with_same_*_raises*", _COPIES),
    ("*::test_multiple_active_adapters_with_overlapping_modules_to_save_raises*", _COPIES),
    ("*::test_adding_multiple_adapters_with_bias_raises*", _COPIES),
    ("*::TestMixedAdapterTypes::test_modules_to_save", _COPIES),
    ("*::test_multiple_adapters_overlapping_token_indices_merging*", _COPIES),
    ("*::test_multiple_adapters_different_prng_raises", _SEEDS),
    ("*::test_multiple_adapters_same_prng_weights", _SEEDS),
    ("*::test_frod_projection_buffers_share_memory_with_layers", _SEEDS),
    *((f"*::test_unload_adapter*[[]{kind}-*", _PROMPTS) for kind in (
        "CPTConfig", "CartridgeConfig", "PrefixTuningConfig", "PromptEncoderConfig", "PromptTuningConfig")),
    ("*::test_passing_input_embeds_works[[]PrefixTuningConfig-*/tiny-random-Deberta*", _UNHEARD),
    ("*::test_merge_with_lora_bias_when_base_layer_has_no_bias_warns_and_raises*",
     f"A learned bias is merged into a layer that has none; PEFT refuses it. {_RIGHT}::test_a_bias_is_merged_into_a_layer_that_has_none"),
    ("*::test_inject_adapter_in_model_rejects_shared_state_tuners*", _INJECTED),
    ("*::TestMixedAdapterTypes::test_get_nb_trainable_parameters", _PRIVATE),
    ("*::TestDeftMerge::*", _PRIVATE),
    ("*::test_frod_sparse_activation_matches_dense_and_gradients", _PRIVATE),
    ("*::TestAdamssAsa::test_importance_*", _PRIVATE),
    ("*::TestAdamssAsa::test_reset_clears_scores", _PRIVATE),
    ("*::TestAdamssAsa::test_masking_reduces_active_params", _PRIVATE),
    ("*::TestAdamssAsa::test_no_masking_outside_warmup", _PRIVATE),
    ("*::test_shira_warns_about_hooks*", _PRIVATE),
    ("*::test_transient_attribute_access_non_existing_adapter", _PRIVATE),
    ("*::TestDoraCaching::*", _KEPT),
    ("*::TestDisableInputDtypeCasting::*", _CAST),
    ("*::TestLoraGAPreprocessing::test_init_without_lora_ga_config_raises",
     "What is missing in a config is said when the config is made, not when it is used. tests/engine/methods/test_lora.py"),
    ("*::TestLoraGAIntegration::test_quantized_model_rejection",
     "A layer is quantized if it is one of a package's quantized classes; the test's is an ordinary one with an attribute of that name. "
     "tests/engine/model/test_kbit.py::test_a_start_from_gradients_says_that_packed_weights_have_none"),
    ("*::test_frod_autocast_keeps_frozen_u_in_base_dtype",
     "What is made from the base is kept in float32, so that running equals merging. tests/engine/methods/test_frod.py"),
    ("*::test_resume_training_model_with_topk_weights",
     "A frozen VB-LoRA of few weights runs in training mode too; it is its training that is refused. tests/engine/methods/test_vblora.py"),
    ("*::test_boft_conv2d_groups_greater_than_one_raises",
     "BOFT turns the columns of each group of a convolution. tests/engine/test_laws.py, boft on conv2d-grouped"),
    ("*EncoderDecoder*::test_generate_pos_args*",
     f"`generate` takes positional arguments wherever the model's own does; PEFT refuses them. {_RIGHT}::test_generate_takes_what_the_model_takes"),
    ("*::test_cartridge_prefill_4d_mask_uses_cache_position",
     "It puts a function of its own in the place of one within PEFT that makes masks of four dimensions: a prompt's are of two here. "
     f"{_RIGHT}::test_a_prompt_generates_with_a_cache_of_fixed_size"),
]
