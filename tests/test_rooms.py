"""Every source file of these rooms has a test file of its name in the same room, or the test named here."""

import ast
from pathlib import Path

import pytest

import lrlora
import peft_study

SOURCE, STUDY = (Path(package.__path__[0]) for package in (lrlora, peft_study))
TESTS = Path(__file__).parent
ROOMS = (
    "ops", "tuner", "ranks", "data", "saved", "evaluation", "generation", "export", "report", "statistics", "cli",
    "integrations",
)  # fmt: skip
ELSEWHERE = {
    "cli/evaluate.py": "export/test_compare.py::test_all_models_of_a_run_are_scored_as_the_run_was",
    "cli/export.py": "export/test_lora.py::test_the_commands_print_and_write",
    "cli/generation.py": "cli/test_generate.py::test_what_cannot_be_generated_is_refused_by_name",
    "cli/merge.py": "export/test_merge.py::test_the_command_prints_every_layer_and_warns",
    "cli/report.py": "report/test_page.py::test_a_study_is_read_from_its_results",
    "cli/mt_bench.py": "evaluation/test_judge.py::test_answers_are_judged_by_a_real_server",
    "cli/verbs.py": "test_layering.py::test_the_door_is_opened_only_when_a_study_is_asked_for",
    "data/commonsense_hub.py": "data/test_commonsense.py::test_rows_as_the_hub_keeps_them",
    "data/onnx_dinov2.py": "data/test_embedded.py::test_the_image_model_has_learned_something",
    "data/facts.py": "peft_study/test_facts.py::test_the_first_pairs_of_a_file_without_repeated_questions",
    "data/preferences.py": "training/test_preferences.py::test_every_format_gives_the_answers_behind_one_request",
    "data/source.py": "data/test_load.py::test_a_folder_of_several_tasks",
    "data/tasks.py": "data/test_load.py::test_a_macro_f1_is_the_mean_over_the_classes_that_occur",
    "evaluation/predictions.py": "training/test_images.py::test_a_run_on_class_folders_and_every_verb_after_it",
    "evaluation/generation.py": "evaluation/test_commonsense.py::test_the_first_answer_word_counts",
    "evaluation/likelihood.py": "evaluation/test_commonsense.py::test_likelihoods_are_those_computed_by_hand",
    "evaluation/measure.py": "export/test_compare.py::test_a_decoder_is_scored_on_commonsense_tasks",
    "evaluation/questions.py": "evaluation/test_commonsense.py::test_likelihoods_are_those_computed_by_hand",
    "ops/eager.py": "ops/test_linear.py::test_output_and_every_gradient_are_as_exact_as_the_definition",
    "ops/passes.py": "ops/test_linear.py::test_output_and_every_gradient_are_as_exact_as_the_definition",
    "ops/triton_kernels.py": "ops/test_triton.py::test_the_kernels_compute_what_the_plain_passes_compute",
    "peft_study/answers.py": "peft_study/test_summary.py::test_the_summary_pairs_arms_over_seeds",
    "peft_study/memory.py": "peft_study/test_run.py::test_every_row_keeps_the_contract_and_every_arm_the_budget",
    "peft_study/page.py": "report/test_page.py::test_a_study_is_read_from_its_results",
    "peft_study/result.py": "peft_study/test_store.py::test_every_committed_row_is_written_again_byte_for_byte",
    "peft_study/rows.py": "peft_study/test_held_out.py::test_rows_are_scored_the_same_in_whatever_batches_they_come",
    "peft_study/task_kind.py": "peft_study/test_kinds.py::test_every_task_has_a_kind_that_says_what_must_be_installed",
    "peft_study/yaml_fields.py": "peft_study/test_read.py::test_what_does_not_fit_is_refused_by_name_and_line",
    "export/base.py": "export/test_merge.py::test_a_hub_name_is_found_in_the_hub_s_cache",
    "export/lora/factor.py": "export/test_choose.py::test_factors_are_the_best_of_their_rank",
    "export/lora/names.py": "export/test_choose.py::test_every_key_of_a_pattern_matches_its_own_module_alone",
    "export/lora/pattern.py": "export/test_lora.py::test_the_rank_pattern_makes_the_lora_that_an_export_would_be",
    "export/lora/write.py": "export/test_lora.py::test_the_printed_error_is_that_of_the_adapter_that_peft_loads",
    "export/tolerance/curve.py": "export/test_smallest.py::test_a_killed_search_goes_on_where_it_was",
    "export/tolerance/cuts.py": (
        "export/test_smallest.py::test_the_smallest_export_is_within_the_tolerance_and_scores_what_is_printed"
    ),
    "export/tolerance/picture.py": (
        "export/test_smallest.py::test_the_smallest_export_is_within_the_tolerance_and_scores_what_is_printed"
    ),
    "export/tolerance/rows.py": (
        "export/test_smallest.py::test_other_rows_can_choose_and_the_same_rows_are_called_optimistic"
    ),
    "export/merging/in_memory.py": (
        "export/test_merge.py::test_names_that_cannot_be_matched_are_merged_in_memory_and_said"
    ),
    "export/merging/match.py": "export/test_merge.py::test_the_head_of_another_task_is_left_out_and_said",
    "export/merging/rounding.py": "export/test_merge.py::test_the_rounding_loss_is_that_of_the_written_weights",
    "export/skeleton.py": "export/test_merge.py::test_the_weights_are_those_of_merge_and_unload",
    "ranks/seeds.py": "report/test_findings.py::test_the_command_prints_means_with_intervals_and_writes_csv",
    "report/curves.py": "report/test_page.py::test_in_a_browser",
    "report/figures.py": "report/test_page.py::test_in_a_browser",
    "report/gates.py": "report/test_page.py::test_gates_are_shown_where_there_are_any",
    "saved/adapter.py": "export/test_places.py::test_what_is_no_adapter_is_one_line",
    "saved/card_code.py": "saved/test_card.py::test_the_code_of_a_card_gives_the_logits_of_its_folder",
    "saved/card_origin.py": "saved/test_card.py::test_what_a_card_says_of_a_base",
    "saved/card_text.py": "saved/test_card.py::test_no_path_of_this_machine_is_in_a_card",
    "saved/checkpoints.py": "training/test_run.py::test_a_checkpoint_cut_short_is_left_behind",
    "saved/kept_card.py": "saved/test_card.py::test_a_readme_of_somebody_else_is_kept",
    "saved/load.py": "export/test_places.py::test_tensors_that_find_no_place_are_refused",
    "saved/local.py": "training/test_model.py::test_an_adapter_is_no_base",
    "saved/lock.py": "training/test_stop.py::test_two_at_once_one_is_refused",
    "saved/names.py": "test_layering.py::test_the_files_of_runs_and_adapters_are_named_in_one_place",
    "saved/part.py": "generation/test_answers.py::test_a_killed_file_goes_on_and_is_the_same",
    "saved/owned.py": "training/test_folder.py::test_what_no_run_wrote_is_named_and_nothing_is_deleted",
    "saved/processor.py": "training/test_images.py::test_an_image_size_changes_resize_and_crop_and_positions",
    "saved/precision.py": (
        "training/test_bases.py::test_what_is_trained_whole_is_float32_and_biases_in_bfloat16_are_refused"
    ),
    "saved/results.py": "report/test_findings.py::test_planted_spectra_give_their_ranks",
    "saved/settings.py": "training/test_again.py::test_the_same_command_on_other_rows_is_refused_like_other_settings",
    "saved/tokens.py": "training/test_model.py::test_zero_is_a_token_to_pad_with",
    "saved/updates.py": "report/test_findings.py::test_a_saved_adapter_is_measured_without_its_base_as_with_it",
    "tuner/checks.py": "tuner/test_config.py::test_a_field_outside_its_range_is_named",
    "tuner/lora_fields.py": "tuner/test_config.py::test_from_lora_keeps_what_a_lora_config_says",
    "tuner/mixed.py": "tuner/test_types.py::test_it_is_the_layer_with_another_weight",
    "tuner/optimize.py": "tuner/test_theta.py::test_c_moves_alike_with_groups_of_its_own_and_without",
    "tuner/peft_optimizers.py": "tuner/test_theta.py::test_peft_s_helper_for_lora_plus_gives_b_its_rate",
    "tuner/snapshot.py": "tuner/test_layer.py::test_merged_equals_unmerged_and_unmerge_is_exact",
}
"""A source file without a test file of its name, and a test that fails when what it does breaks."""


def sources() -> list[str]:
    found = [file for room in ROOMS for file in sorted((SOURCE / room).rglob("*.py"))] + sorted(STUDY.glob("*.py"))
    return [
        file.relative_to(SOURCE.parent).as_posix().removeprefix("lrlora/")
        for file in found
        if file.name != "__init__.py"
    ]


def has_its_own(source: str) -> bool:
    room, name = source.split("/")[0], source.split("/")[-1]
    return (TESTS / room / f"test_{name}").exists()


@pytest.mark.parametrize("source", sources())
def test_it_has_a_test_file_of_its_name_or_a_test_elsewhere(source):
    assert has_its_own(source) != (source in ELSEWHERE), "needs exactly one: a file of its name, or a line in ELSEWHERE"


def test_the_tests_that_are_named_are_there():
    assert set(ELSEWHERE) <= set(sources())
    for source, named in ELSEWHERE.items():
        file, name = named.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (source, named)
