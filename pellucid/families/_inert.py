"""Keys of config.json that change nothing in the forward pass of any family, each with its reason.

A key that is inert for one family only is listed in that family's own file. Dropouts and router losses act in training; they
are inert here and read again there.
"""
from pellucid.weights.packed import KEYS

_NAMES = "says what the file is, not what the model computes"
_TRAINING = "acts in training only"
_GENERATION = "generation reads it, the forward pass does not"
_OUTPUT = "chooses what a transformers call returns"
_HEAD = "belongs to a classification or summary head"
_HOW = "chooses how transformers computes, not what"
_QUANT = "bookkeeping of how the file was made"


def _all(names: str, why: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), why)


INERT: dict[str, str] = {
    **_all("architectures model_type transformers_version _name_or_path auto_map custom_pipelines custom_pipeline "
           "model_max_length tokenizer_class name_or_path language languages license bos_token eos_token pad_token unk_token sep_token", _NAMES),
    **dict.fromkeys(("dtype", "torch_dtype", *KEYS), "read by the loader"),
    **_all("bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id eod_token_id decoder_start_token_id forced_bos_token_id "
           "forced_eos_token_id suppress_tokens begin_suppress_tokens task_specific_params max_length min_length do_sample "
           "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
           "num_beams num_beam_groups diversity_penalty early_stopping num_return_sequences bad_words_ids prefix "
           "exponential_decay_length_penalty remove_invalid_values", _GENERATION),
    **_all("initializer_range init_std initializer_factor attention_dropout attn_pdrop embd_pdrop resid_pdrop embd_dropout hidden_dropout "
           "attention_dropout_prob attention_probs_dropout_prob dropout layerdrop embedding_dropout residual_dropout hidden_dropout_prob "
           "activation_dropout classifier_dropout emb_pdrop router_aux_loss_coef output_router_logits router_jitter_noise gradient_checkpointing "
           "use_cache_during_training embed_dropout attn_dropout resid_dropout", _TRAINING),
    **_all("return_dict output_hidden_states output_attentions output_scores return_dict_in_generate use_return_dict use_cache "
           "tie_encoder_decoder is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size "
           "chunk_size_feed_forward use_bfloat16", _OUTPUT),
    **_all("id2label label2id num_labels _num_labels problem_type finetuning_task summary_type summary_use_proj summary_activation "
           "summary_proj_to_labels summary_first_dropout pruned_heads", _HEAD),
    **_all("_attn_implementation _attn_implementation_autoset _attn_implementation_internal attn_implementation _experts_implementation "
           "_experts_implementation_internal torchscript tf_legacy_loss cache_implementation use_flash_attn use_flash_attention "
           "transformers.js_config flash_attention _flash_attn_2_enabled use_cache_quantization fp16 bf16 fp32", _HOW),
    **_all("pretraining_tp unsloth_version unsloth_fixed", _QUANT),
}
