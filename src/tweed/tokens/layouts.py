"""How other libraries name the parts of masked and causal language models: tables from theirs to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tweed.errors import CheckpointError


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint.

    Attributes:
        network: the options of a `TextTransformer`, from the configuration.
        names: tensors outside of the layers, theirs to ours.
        layers: how theirs of layer `{i}` begin.
        inside: tensors of a layer, theirs to ours; biases go by the same names.
        shift: whether position i answers for i + 1, though the model sees both sides.
        causal: whether it is autoregressive.
    """

    network: Callable[[Mapping[str, Any]], dict[str, Any]]
    names: Mapping[str, str]
    layers: str
    inside: Mapping[str, str]
    shift: bool = False
    causal: bool = False

    def ours(self, depth: int, tied: bool, bias: bool) -> dict[str, str]:
        """Every tensor of a network, theirs to ours."""
        table = {theirs: ours for theirs, ours in self.names.items() if not (tied and ours == "output.weight")}
        for i in range(depth):
            for theirs, ours in self.inside.items():
                table[f"{self.layers.format(i=i)}{theirs}.weight"] = f"blocks.{i}.{ours}.weight"
                if bias and ours.rpartition(".")[2] in ("query", "key", "value"):
                    table[f"{self.layers.format(i=i)}{theirs}.bias"] = f"blocks.{i}.{ours}.bias"
        return table


def _wanted(config: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise CheckpointError(f"config.json: it has no {names[0]!r}")


def _refused(config: Mapping[str, Any], **plain: Any) -> None:
    # Options that would change what is computed.
    for name, usual in plain.items():
        if config.get(name, usual) not in (usual, None):
            raise CheckpointError(f"config.json: {name} is {config[name]!r}; expected {usual!r}, what tweed computes")


def _llada(config: Mapping[str, Any]) -> dict[str, Any]:
    _refused(config, activation_type="silu", layer_norm_type="rms", rope=True, alibi=False, include_bias=False)
    _refused(config, attention_layer_norm=False, scale_logits=False, input_emb_norm=False)
    width, heads = _wanted(config, "d_model"), _wanted(config, "n_heads")
    hidden = config.get("mlp_hidden_size") or int(_wanted(config, "mlp_ratio") * width)
    return {
        "vocab": config.get("embedding_size") or _wanted(config, "vocab_size"),
        "width": width,
        "depth": _wanted(config, "n_layers"),
        "heads": heads,
        "kv_heads": config.get("n_kv_heads") or heads,
        "hidden": hidden,
        "rope_base": float(config.get("rope_theta", 10000.0)),
        "context": _wanted(config, "max_sequence_length"),
        "qkv_bias": bool(config.get("include_qkv_bias", False)),
        "tied": bool(config.get("weight_tying", True)),
        "norm_eps": float(config.get("rms_norm_eps", 1e-5)),
    }


def _llama(config: Mapping[str, Any], *, bias: bool) -> dict[str, Any]:
    _refused(config, hidden_act="silu", attention_bias=False, mlp_bias=False, use_sliding_window=False)
    # Newer files keep the base with the kind of scaling.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"config.json: the rotary positions are scaled by {kind!r}; expected none")
    heads = _wanted(config, "num_attention_heads")
    return {
        "vocab": _wanted(config, "vocab_size"),
        "width": _wanted(config, "hidden_size"),
        "depth": _wanted(config, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim"),
        "hidden": _wanted(config, "intermediate_size"),
        "rope_base": float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        "context": _wanted(config, "max_position_embeddings"),
        "qkv_bias": bias,
        "tied": bool(config.get("tie_word_embeddings", False)),
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
    }


_LLAMA_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_LLAMA_INSIDE = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}

LAYOUTS: dict[str, Layout] = {
    "llada": Layout(
        network=_llada,
        names={
            "model.transformer.wte.weight": "embedding.weight",
            "model.transformer.ln_f.weight": "norm.weight",
            "model.transformer.ff_out.weight": "output.weight",
        },
        layers="model.transformer.blocks.{i}.",
        inside={
            "attn_norm": "attention_norm",
            "q_proj": "attention.query",
            "k_proj": "attention.key",
            "v_proj": "attention.value",
            "attn_out": "attention.out",
            "ff_norm": "feed_forward_norm",
            "ff_proj": "feed_forward.gate",
            "up_proj": "feed_forward.up",
            "ff_out": "feed_forward.down",
        },
    ),
    "dream": Layout(
        lambda config: _llama(config, bias=True), _LLAMA_NAMES, "model.layers.{i}.", _LLAMA_INSIDE, shift=True
    ),
    "qwen2": Layout(
        lambda config: _llama(config, bias=True), _LLAMA_NAMES, "model.layers.{i}.", _LLAMA_INSIDE, causal=True
    ),
    "llama": Layout(
        lambda config: _llama(config, bias=False), _LLAMA_NAMES, "model.layers.{i}.", _LLAMA_INSIDE, causal=True
    ),
}
"""Every kind of checkpoint that is read, by the `model_type` of its configuration in small letters."""
