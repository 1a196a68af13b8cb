"""Checkpoints of LLaDA, Dream, Qwen2 and LLaMA layouts, written to disk: the same logits as transformers computes."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tweed as tw
from tweed.errors import CheckpointError, InputError
from tweed.tokens.layouts import LAYOUTS
from tweed.tokens.pretrained import chat, is_pretrained, load_pretrained

VOCAB = 40


def tensors(kind, *, width=16, heads=4, kv=2, depth=2, hidden=24, seed=0, tied=False):
    layout = LAYOUTS[kind]
    bias = kind in ("dream", "qwen2")
    config = {
        "name": "text-transformer",
        "vocab": VOCAB,
        "width": width,
        "depth": depth,
        "heads": heads,
        "kv_heads": kv,
    }
    net = tw.nets.build({**config, "hidden": hidden, "qkv_bias": bias, "tied": tied}, seed + 1)
    table = layout.ours(depth, tied, bias)
    state = net.state_dict()
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(state[ours].shape, generator=draws) * 0.2 for name, ours in table.items()}


def llada_config(**changes):
    config = {
        "model_type": "llada", "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 24,
        "vocab_size": VOCAB, "embedding_size": VOCAB, "max_sequence_length": 64, "rope_theta": 500.0, "rms_norm_eps": 1e-5,
        "weight_tying": False, "mask_token_id": 39, "eos_token_id": 1, "activation_type": "silu", "layer_norm_type": "rms",
        "rope": True, "include_bias": False, "include_qkv_bias": False,
    }  # fmt: skip
    return {**config, **changes}


def llama_config(kind, **changes):
    config = {
        "model_type": kind, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 24, "vocab_size": VOCAB, "max_position_embeddings": 64, "rope_theta": 500.0,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    return {**config, **({"mask_token_id": 38} if kind == "Dream" else {}), **changes}


def write(folder, config, held, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(held, folder / "model.safetensors")
        return folder
    names, table = sorted(held), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: held[name] for name in names[i::shards]}
        save_file(part, folder / file)
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


def tokens():
    return torch.randint(0, 38, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("shards", [1, 3])
def test_causal_models_answer_as_in_transformers(tmp_path, kind, shards):
    transformers = pytest.importorskip("transformers")
    held = tensors(kind)
    folder = write(tmp_path, llama_config(kind), held, shards)
    names = {"qwen2": ("Qwen2Config", "Qwen2ForCausalLM"), "llama": ("LlamaConfig", "LlamaForCausalLM")}[kind]
    options = {name: value for name, value in llama_config(kind).items() if name != "model_type"}
    peer = getattr(transformers, names[1])(getattr(transformers, names[0])(**options)).eval()
    missing, unexpected = peer.load_state_dict(held, strict=False)
    assert not missing
    assert not unexpected
    loaded = load_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(tokens()), peer(tokens()).logits, rtol=1e-4, atol=1e-5)
    assert is_pretrained(folder)


@pytest.mark.parametrize("kind", ["llada", "Dream"])
def test_masked_models_are_the_causal_ones_with_both_sides_seen(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    theirs = kind.lower()
    held = tensors(theirs)
    config = llada_config() if kind == "llada" else llama_config(kind)
    loaded = load_pretrained(write(tmp_path, config, held))
    ours = LAYOUTS[theirs].ours(2, False, theirs == "dream")
    # The same weights under LLaMA's or Qwen2's names, and a mask that hides nothing.
    peer_kind = "qwen2" if kind == "Dream" else "llama"
    back = {name: theirs_name for theirs_name, name in LAYOUTS[peer_kind].ours(2, False, theirs == "dream").items()}
    options = {name: value for name, value in llama_config(peer_kind).items() if name != "model_type"}
    options["rms_norm_eps"] = 1e-5 if kind == "llada" else 1e-6
    names = {"qwen2": ("Qwen2Config", "Qwen2ForCausalLM"), "llama": ("LlamaConfig", "LlamaForCausalLM")}[peer_kind]
    config_made = getattr(transformers, names[0])(**options, attn_implementation="eager")
    peer = getattr(transformers, names[1])(config_made).eval()
    peer.load_state_dict({back[ours[name]]: value for name, value in held.items()})
    with torch.no_grad():
        truth = peer(tokens(), attention_mask=torch.zeros(2, 1, 9, 9)).logits
        torch.testing.assert_close(loaded.network(tokens()), truth, rtol=1e-4, atol=1e-5)
        answer = loaded.read(tokens())
    assert loaded.process.mask == (39 if kind == "llada" else 38)
    assert loaded.shift is (kind == "Dream")
    if kind == "Dream":
        torch.testing.assert_close(answer[:, 1:], truth[:, :-1], rtol=1e-4, atol=1e-5)


def test_tied_weights_and_types(tmp_path):
    held = tensors("llama", tied=True)
    folder = write(tmp_path, llama_config("llama", tie_word_embeddings=True), held)
    loaded = load_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.network.output is None
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.network.embedding.weight, held["model.embed_tokens.weight"].bfloat16())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_loaded_model_decodes(tmp_path):
    loaded = load_pretrained(write(tmp_path, llada_config(), tensors("llada")))
    start = torch.cat((tokens(), torch.full((2, 8), 39)), 1)
    x = tw.sample(loaded, start, solver=tw.tokens.Blockwise(4, caching=tw.tokens.DualCache()), steps=8)
    assert not (x == 39).any()
    assert torch.equal(x[:, :9], tokens())


def test_mistakes_are_named(tmp_path):
    held = tensors("llada")
    fewer = {name: value for name, value in held.items() if "ln_f" not in name}
    more = {**held, "model.transformer.extra.weight": torch.zeros(2)}
    other = {**held, "model.transformer.ln_f.weight": torch.zeros(3)}
    cases = [
        (llada_config(), fewer, "'model.transformer.ln_f.weight' is missing"),
        (llada_config(), more, "'model.transformer.extra.weight' has no place"),
        (llada_config(), other, r"has the shape \(3,\); expected \(16,\)"),
        (llada_config(mask_token_id=None), held, "it has no mask_token_id"),
        (llada_config(alibi=True), held, "alibi is True"),
        (llada_config(model_type="gpt2"), held, "its model_type is 'gpt2'"),
        (llada_config(n_heads=None), held, "it has no 'n_heads'"),
        (llama_config("llama", rope_scaling={"rope_type": "yarn"}), tensors("llama"), "scaled by 'yarn'"),
    ]
    for number, (config, weights, words) in enumerate(cases):
        with pytest.raises(CheckpointError, match=words):
            load_pretrained(write(tmp_path / str(number), config, weights))
    bare = tmp_path / "bare"
    write(bare, llada_config(), held)
    (bare / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="it holds no weights"):
        load_pretrained(bare)
    (bare / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="never opened"):
        load_pretrained(bare)
    (bare / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="it is damaged"):
        load_pretrained(bare)
    with pytest.raises(CheckpointError, match="not found"):
        load_pretrained(str(tmp_path / "nowhere"))
    assert not is_pretrained(tmp_path)


def test_conversations_are_put_into_the_model_s_template(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    made.save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match="has no template"):
        chat(tmp_path / "plain", [{"role": "user", "content": "red"}])
    made.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    made.save_pretrained(tmp_path / "chat")
    assert chat(tmp_path / "chat", [{"role": "user", "content": "red"}]) == "<user>red<assistant>"
    with pytest.raises(CheckpointError, match="cannot be read"):
        chat(tmp_path / "none", [])
