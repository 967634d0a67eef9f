"""The architectures that tests build, as what sets each apart from the common settings.

Hidden size, heads, layers and vocabulary are common to all: see `tests.support.architectures`,
which makes the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A family of models: `settings` over the common ones; `vision` has its own beside a text's."""

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] | None = None
    outer: Mapping[str, Any] = field(default_factory=dict)  # beside both, of a model with vision
    without: tuple[str, ...] = ()  # common settings that the configuration refuses


def _of(model_type: str, without: tuple[str, ...] = (), **settings: Any) -> Architecture:
    return Architecture(model_type, settings, without=without)


def _seeing(
    kind: str, vision: Mapping[str, Any], outer: Mapping[str, Any] | None = None, **text: Any
) -> Architecture:
    return Architecture(kind, text, vision, outer or {})


_NO_CONTEXT = ("max_position_embeddings",)
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 16,
}
_WINDOWED = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "head_dim": 16,
}

_LLAMA4 = {
    **_LOCAL,
    "intermediate_size_mlp": 128,
    "moe_layers": [1],
    "head_dim": 16,
    "no_rope_layers": [1, 0],
    "attention_chunk_size": 16,
}
_QWEN_VL = {
    "outer": {"image_token_id": 299, "video_token_id": 298},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
_QWEN_TOWER = {"depth": 3, "num_heads": 2, "out_hidden_size": 64}
_TWO_TOWERS = {
    "siglip": {"model_type": "siglip_vision_model"},
    "clip": {"model_type": "clip_vision_model"},
}

ARCHITECTURES: dict[str, Architecture] = {
    # One after another, every layer alike or all of them attention.
    "llama": _of("llama"),
    "mistral": _of("mistral", sliding_window=16),
    "ministral": _of("ministral", **_WINDOWED),
    "qwen2": _of("qwen2"),
    "qwen3": _of("qwen3", head_dim=16),
    "gemma": _of("gemma", head_dim=16),
    "gemma2": _of("gemma2", **_WINDOWED, query_pre_attn_scalar=16),
    "gemma3-text": _of("gemma3_text", **_WINDOWED, query_pre_attn_scalar=16),
    "vaultgemma": _of("vaultgemma", **_WINDOWED, query_pre_attn_scalar=16),
    "phi": _of("phi", num_key_value_heads=4),
    "phi3": _of("phi3"),
    "opt": _of("opt", ffn_dim=128, word_embed_proj_dim=64),
    "opt-post-norm": _of("opt", ffn_dim=128, word_embed_proj_dim=32, do_layer_norm_before=False),
    "gpt2": _of("gpt2", n_inner=128),
    "gpt-bigcode": _of("gpt_bigcode", n_inner=128),
    "gpt-neo": _of("gpt_neo", attention_types=[[["global", "local"], 1]], window_size=16),
    "gptj": _of("gptj", rotary_dim=8, n_inner=128),
    "gpt-neox": _of("gpt_neox"),
    "codegen": _of("codegen", rotary_dim=8, n_inner=128),
    "bloom": _of("bloom"),
    "mpt": _of("mpt", d_model=64, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=512),
    "falcon": _of("falcon", new_decoder_architecture=True, num_kv_heads=2),
    "falcon-7b": _of("falcon", multi_query=True, parallel_attn=True),
    "stablelm": _of("stablelm"),
    "starcoder2": _of("starcoder2"),
    "cohere": _of("cohere", logit_scale=0.0625),
    "cohere2": _of("cohere2", **_WINDOWED, logit_scale=0.0625),
    "olmo": _of("olmo"),
    "olmo2": _of("olmo2"),
    "olmo3": _of("olmo3", **_WINDOWED),
    "glm": _of("glm", head_dim=16),
    "glm4": _of("glm4", head_dim=16),
    "granite": _of("granite", logits_scaling=4.0, residual_multiplier=0.5),
    "nemotron": _of("nemotron"),
    "persimmon": _of("persimmon"),
    "smollm3": _of("smollm3"),
    "exaone4": _of("exaone4", **_WINDOWED),
    "ernie4_5": _of("ernie4_5", head_dim=16),
    "seed-oss": _of("seed_oss", head_dim=16),
    "hunyuan": _of("hunyuan_v1_dense", head_dim=16),
    "helium": _of("helium", head_dim=16),
    "apertus": _of("apertus"),
    "arcee": _of("arcee"),
    "biogpt": _of("biogpt"),
    "xglm": _of("xglm", ffn_dim=128),
    "bitnet": _of("bitnet"),
    "diffllama": _of("diffllama"),
    "nanochat": _of("nanochat"),
    "modernbert-decoder": _of("modernbert-decoder", **_WINDOWED, local_attention=16),
    # Mixtures of experts.
    "mixtral": _of("mixtral", **_LOCAL),
    "qwen2-moe": _of("qwen2_moe", **_EXPERTS, shared_expert_intermediate_size=64),
    "qwen3-moe": _of("qwen3_moe", **_EXPERTS, head_dim=16),
    "olmoe": _of("olmoe", num_experts=4, num_experts_per_tok=2),
    "phimoe": _of("phimoe", **_LOCAL),
    "granitemoe": _of("granitemoe", **_LOCAL),
    "granitemoe-shared": _of("granitemoeshared", **_LOCAL, shared_intermediate_size=64),
    "jetmoe": _of("jetmoe", **_LOCAL, num_key_value_heads=2, kv_channels=16),
    "deepseek-v2": _of("deepseek_v2", **_ROUTED, **_LATENT),
    "deepseek-v3": _of("deepseek_v3", **_ROUTED, **_LATENT),
    "gpt-oss": _of("gpt_oss", **_LOCAL, **_WINDOWED),
    "llama4-text": _of("llama4_text", **_LLAMA4),
    "ernie4_5-moe": _of(
        "ernie4_5_moe",
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=64,
        moe_layer_start_index=1,
    ),
    "dbrx": _of(
        "dbrx",
        without=("hidden_size", "num_attention_heads", "num_hidden_layers"),
        d_model=64,
        n_heads=4,
        n_layers=2,
        max_seq_len=512,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={
            "ffn_hidden_size": 64,
            "hidden_size": 64,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    ),
    "glm4-moe": _of("glm4_moe", **_ROUTED, head_dim=16),
    "minimax": _of(
        "minimax",
        **_LOCAL,
        layer_types=["linear_attention", "full_attention"],
        head_dim=16,
        block_size=16,
    ),
    # State spaces, linear attention, and mixtures of them with attention.
    "qwen3-next": _of("qwen3_next", **_DELTA, **_EXPERTS, shared_expert_intermediate_size=64),
    "qwen3_5-text": _of("qwen3_5_text", **_DELTA),
    "olmo-hybrid": _of("olmo_hybrid", **_DELTA),
    "mamba": _of("mamba", _NO_CONTEXT, state_size=8),
    "mamba2": _of(
        "mamba2", _NO_CONTEXT, num_heads=8, head_dim=16, state_size=16, n_groups=1, chunk_size=16
    ),
    "falcon-mamba": _of("falcon_mamba", _NO_CONTEXT, state_size=8),
    "falcon-h1": _of("falcon_h1", **_MAMBA2, mamba_d_ssm=128, head_dim=16, lm_head_multiplier=0.25),
    "jamba": _of(
        "jamba",
        num_experts=4,
        num_experts_per_tok=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        use_mamba_kernels=False,
    ),
    "bamba": _of("bamba", **_MAMBA2, attn_layer_indices=[1]),
    "granitemoe-hybrid": _of(
        "granitemoehybrid",
        **_LOCAL,
        **_MAMBA2,
        shared_intermediate_size=64,
        layer_types=["mamba", "attention"],
        logits_scaling=4.0,
    ),
    "zamba": _of(
        "zamba",
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        n_mamba_heads=2,
        attention_hidden_size=128,
        attention_head_dim=32,
        use_mamba_kernels=False,
        num_key_value_heads=4,
        mamba_d_state=8,
    ),
    "zamba2": _of(
        "zamba2",
        num_hidden_layers=4,
        num_key_value_heads=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        mamba_d_state=16,
        n_mamba_heads=8,
        mamba_ngroups=1,
        num_mem_blocks=1,
        chunk_size=16,
        attention_head_dim=32,
        attention_hidden_size=128,
        adapter_rank=8,
        use_mem_rope=True,
    ),
    "recurrent-gemma": _of(
        "recurrent_gemma",
        block_types=["recurrent", "attention"],
        lru_width=64,
        attention_window_size=16,
        head_dim=16,
    ),
    "rwkv": _of("rwkv", attention_hidden_size=64, context_length=512),
    "nemotron-h": _of(
        "nemotron_h",
        num_hidden_layers=4,
        layers_block_type=["mamba", "moe", "attention", "moe"],
        mamba_num_heads=8,
        mamba_head_dim=16,
        ssm_state_size=16,
        n_groups=1,
        chunk_size=16,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        moe_shared_expert_intermediate_size=64,
    ),
    "lfm2": _of("lfm2", layer_types=["conv", "full_attention"], block_multiple_of=16),
    "lfm2-moe": _of(
        "lfm2_moe",
        **_EXPERTS,
        layer_types=["conv", "full_attention"],
        num_dense_layers=1,
    ),
    "xlstm": _of("xlstm", num_heads=4, qk_dim_factor=1.0),
    # With a vision tower: the language model's blocks are meant.
    "gemma3": _seeing(
        "gemma3",
        _TWO_TOWERS["siglip"],
        {"mm_tokens_per_image": 4, "image_token_id": 299, "boi_token_id": 298, "eoi_token_id": 297},
        **_WINDOWED,
        query_pre_attn_scalar=16,
    ),
    "gemma3n-text": _of(
        "gemma3n_text",
        **_WINDOWED,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=300,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    "gemma4": _seeing(
        "gemma4",
        {},
        {},
        **_WINDOWED,
        vocab_size_per_layer_input=300,
        hidden_size_per_layer_input=16,
    ),
    "llava": _seeing("llava", _TWO_TOWERS["clip"], {"image_token_index": 299}, model_type="llama"),
    "mistral3": _seeing(
        "mistral3", {"model_type": "pixtral"}, {"image_token_index": 299}, model_type="mistral"
    ),
    "paligemma": _seeing(
        "paligemma",
        {**_TWO_TOWERS["siglip"], "projection_dim": 64},
        {"image_token_id": 299, "projection_dim": 64},
        model_type="gemma",
        head_dim=16,
    ),
    "qwen2-vl": _seeing(
        "qwen2_vl", {"depth": 3, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}, **_QWEN_VL
    ),
    "qwen2_5-vl": _seeing("qwen2_5_vl", _QWEN_TOWER, **_QWEN_VL),
    "qwen3-vl": _seeing(
        "qwen3_vl", {**_QWEN_TOWER, "deepstack_visual_indexes": [0]}, head_dim=16, **_QWEN_VL
    ),
    "qwen3_5": _seeing("qwen3_5", _QWEN_TOWER, **_DELTA),
    "llama4": _seeing("llama4", {"vision_output_dim": 64}, **_LLAMA4),
    "mllama": _seeing(
        "mllama",
        {
            "vision_output_dim": 64,
            "attention_heads": 2,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0],
        },
        {"image_token_index": 299},
        cross_attention_layers=[1],
        num_hidden_layers=3,
    ),
    "idefics3": _seeing("idefics3", {}, {"image_token_id": 299}, model_type="llama"),
    "internvl": _seeing(
        "internvl",
        {"image_size": [32, 32], "patch_size": [16, 16]},
        {"image_token_id": 299},
        model_type="qwen2",
    ),
    # What does not continue a text from left to right.
    "bert": _of("bert"),
    "roberta": _of("roberta"),
    "electra": _of("electra"),
    "t5": _of("t5", d_model=64, d_ff=128, d_kv=16, num_layers=2, num_heads=4),
    "bart": _of(
        "bart",
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
    ),
    "clip": _of("clip"),
}
