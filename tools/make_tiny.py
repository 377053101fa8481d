#!/usr/bin/env python3
"""Writes the tiny random checkpoints that the tests use, as Hugging Face directories.

    python3 tools/make_tiny.py --out tests/golden

Seeded and deterministic: running it again gives the same bytes (numpy and safetensors only; the
weights come from a generator of our own choosing, not from a deep-learning package). Each model
is there for a shape that a loader or an engine can get wrong; VARIANTS says which. The refuse-*
directories hold only a config.json, each of a kind that must be refused.
"""

import argparse
import json
import os
import shutil

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"

# Llama 3's splitting pattern; its differences from GPT-2's (case-insensitive contractions, one to
# three digits, newlines kept together) are what a tokenizer has to get right.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Aesop, translated by V. S. Vernon Jones (1912), and the opening of Jane Austen's "Pride and
# Prejudice" (1813): public domain.
TEXT = """A hungry Fox saw some fine bunches of Grapes hanging from a vine that was trained along a
high trellis, and did his best to reach them by jumping as high as he could into the air. But it was
all in vain, for they were just out of reach: so he gave up trying, and walked away with an air of
dignity and unconcern, remarking, "I thought those Grapes were ripe, but I see now they are quite
sour."
There was once a man who possessed a Goose that laid a golden egg every day. But, fortunate though he
was, he soon began to think he was not getting rich fast enough, and, imagining that the bird must
be made of gold inside, he decided to kill it in order to secure the whole store of precious metal at
once. But when he cut it open he found it was just like any other goose. Thus, he neither got rich
all at once, as he had hoped, nor enjoyed any longer the daily addition to his wealth.
A Crow, half-dead with thirst, came upon a Pitcher which had once been full of water; but when the
Crow put its beak into the mouth of the Pitcher he found that only very little water was left in it,
and that he could not reach far enough down to get at it. He tried, and he tried, but at last had to
give up in despair. Then a thought came to him, and he took a pebble and dropped it into the Pitcher.
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in
want of a wife. However little known the feelings or views of such a man may be on his first entering
a neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is
considered as the rightful property of some one or other of their daughters.
"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let at
last?" Mr. Bennet replied that he had not. "But it is," returned she; "for Mrs. Long has just been
here, and she told me all about it." Mr. Bennet made no answer. "Don't you want to know who has taken
it?" cried his wife impatiently. "You want to tell me, and I've no objection to hearing it."
"""

VARIANTS = {
    # Grouped queries, tied embeddings, bf16: the shape of models/tales, small.
    "tiny-gqa": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 512,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "tokenizer": "split-gpt2",
    },
    # An output head of its own, two shards with an index, f32; heads * head_dim != hidden_size,
    # another rope_theta and epsilon.
    "tiny-sharded": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "vocab_size": 512,
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-6,
        "shards": 2,
        "dtype": "float32",
        "tokenizer": "split-llama3",
    },
    # Multi-head attention; sizes that are no multiples of 64, 16 or even 8; no head_dim in
    # config.json (it follows from the others); f16.
    "tiny-odd": {
        "hidden_size": 72,
        "intermediate_size": 187,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": None,
        "vocab_size": 301,
        "tie_word_embeddings": True,
        "dtype": "float16",
        "tokenizer": "bytelevel",
    },
    # One head of keys and values for all queries; about 60 % of the projections' weights are exact
    # zeros, some rows and one whole block of columns among them, as after pruning.
    "tiny-pruned": {
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 384,
        "tie_word_embeddings": False,
        "zeros": 0.6,
        "dtype": "bfloat16",
        "tokenizer": "bytelevel",
    },
}

# The same shape for one kind of model each; the differences are in "config" and the flags.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "tokenizer": "bytelevel",
}

VARIANTS |= {
    # The original length is so short that the eight frequencies fall into all three bands: one is
    # kept, two lie on the ramp, five are divided.
    "tiny-llama3": {
        **SMALL,
        "config": {
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            }
        },
    },
    # rope_scaling by its oldest name; biases of all four projections of the attention.
    "tiny-linear": {
        **SMALL,
        "biases": "qkvo",
        "config": {"rope_scaling": {"type": "linear", "factor": 2.5}, "attention_bias": True},
    },
    # The newer form of the configuration. Dimensions 1 and 2 of 8 lie on the ramp.
    "tiny-yarn": {
        **SMALL,
        "config": {
            "rope_theta": None,
            "rope_scaling": None,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    },
    # A window in all layers, shorter than the texts of the tests.
    "tiny-mistral": {**SMALL, "architecture": "Mistral", "config": {"sliding_window": 9}},
    # Biases of q, k and v; a window in the second layer only.
    "tiny-qwen2": {
        **SMALL,
        "architecture": "Qwen2",
        "biases": "qkv",
        "config": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    },
    # Norms of the heads of q and k; heads * head_dim != hidden_size.
    "tiny-qwen3": {**SMALL, "architecture": "Qwen3", "head_dim": 24, "head_norms": True},
    # q, k and v in one matrix, gate and up in another; a window; an output head.
    "tiny-phi3": {
        **SMALL,
        "architecture": "Phi3",
        "intermediate_size": 80,
        "tie_word_embeddings": False,
        "fused": True,
        "config": {"sliding_window": 12, "pad_token_id": 0},
    },
}

REFUSED = {
    "refuse-rope-dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "refuse-rope-longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 256,
        }
    },
    "refuse-gemma": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"},
    "refuse-experts": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "refuse-mlp-bias": {"mlp_bias": True},
    "refuse-activation": {"hidden_act": "gelu"},
    "refuse-architecture": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"},
}


def make_tokenizer(kind, vocab_size):
    """A byte-level BPE tokenizer. The three kinds are the forms that occur in published
    tokenizer.json files: ByteLevel splitting by itself, a Split before it with GPT-2's pattern,
    and one with Llama 3's, which also puts the first token in by a template."""
    tokenizer = Tokenizer(models.BPE())
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    if kind == "bytelevel":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        pattern = gpt2 if kind == "split-gpt2" else LLAMA3_PATTERN
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    assert tokenizer.get_vocab_size() == vocab_size, (kind, tokenizer.get_vocab_size())
    if kind == "split-llama3":
        template = processors.TemplateProcessing(
            single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, 0)]
        )
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), template]
        )
    return tokenizer


def make_weights(variant, rng):
    """Hugging Face tensor names -> float32 arrays, scaled so that logits spread over a few units
    and every layer matters."""
    hidden, inner = variant["hidden_size"], variant["intermediate_size"]
    head_dim = variant["head_dim"] or hidden // variant["num_attention_heads"]
    q, kv = variant["num_attention_heads"] * head_dim, variant["num_key_value_heads"] * head_dim

    def matrix(rows, columns, prune=True):
        w = rng.standard_normal((rows, columns)).astype(np.float32) * (1.5 / columns**0.5)
        zeros = variant.get("zeros", 0)
        if zeros and prune:
            w[np.abs(w) < np.quantile(np.abs(w), zeros - 0.03)] = 0
            w[rng.integers(rows)] = 0
            w[:, 64:80] = 0
        return w

    def norm(size=hidden):
        return (1 + 0.3 * rng.standard_normal(size)).astype(np.float32)

    w = {"model.embed_tokens.weight": rng.standard_normal((variant["vocab_size"], hidden))}
    w["model.embed_tokens.weight"] = (w["model.embed_tokens.weight"] * 0.3).astype(np.float32)
    for i in range(variant["num_hidden_layers"]):
        p = f"model.layers.{i}."
        w[p + "input_layernorm.weight"] = norm()
        w[p + "self_attn.q_proj.weight"] = matrix(q, hidden)
        w[p + "self_attn.k_proj.weight"] = matrix(kv, hidden)
        w[p + "self_attn.v_proj.weight"] = matrix(kv, hidden)
        w[p + "self_attn.o_proj.weight"] = matrix(hidden, q)
        for name, size in zip("qkvo", (q, kv, kv, hidden)):
            if name in variant.get("biases", ""):
                bias = 0.5 * rng.standard_normal(size)
                w[f"{p}self_attn.{name}_proj.bias"] = bias.astype(np.float32)
        if variant.get("head_norms"):
            w[p + "self_attn.q_norm.weight"] = norm(head_dim)
            w[p + "self_attn.k_norm.weight"] = norm(head_dim)
        w[p + "post_attention_layernorm.weight"] = norm()
        w[p + "mlp.gate_proj.weight"] = matrix(inner, hidden)
        w[p + "mlp.up_proj.weight"] = matrix(inner, hidden)
        w[p + "mlp.down_proj.weight"] = matrix(hidden, inner)
    w["model.norm.weight"] = norm()
    if not variant["tie_word_embeddings"]:
        w["lm_head.weight"] = matrix(variant["vocab_size"], hidden, prune=False)
    return fuse(w, variant["num_hidden_layers"]) if variant.get("fused") else w


def fuse(weights, layers):
    """As Phi-3 has it: q, k and v below one another, and gate and up."""
    for i in range(layers):
        p = f"model.layers.{i}."
        for whole, parts in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", ("gate", "up"))):
            folder = whole.split(".")[0]
            rows = [weights.pop(f"{p}{folder}.{part}_proj.weight") for part in parts]
            weights[f"{p}{whole}.weight"] = np.concatenate(rows)
    return weights


def convert(array, dtype):
    """bf16 is not a numpy type: ml_dtypes registers one that safetensors writes as BF16."""
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype({"float32": np.float32, "float16": np.float16}[dtype])


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def base_config(variant):
    architecture = variant.get("architecture", "Llama")
    config = {
        "architectures": [architecture + "ForCausalLM"],
        "model_type": architecture.lower(),
        "vocab_size": variant["vocab_size"],
        "hidden_size": variant["hidden_size"],
        "intermediate_size": variant["intermediate_size"],
        "num_hidden_layers": variant["num_hidden_layers"],
        "num_attention_heads": variant["num_attention_heads"],
        "num_key_value_heads": variant["num_key_value_heads"],
        "head_dim": variant["head_dim"],
        "max_position_embeddings": 256,
        "rms_norm_eps": variant.get("rms_norm_eps", 1e-5),
        "rope_theta": variant.get("rope_theta", 10000.0),
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": variant["tie_word_embeddings"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": variant["dtype"],
    }
    if architecture != "Llama":
        del config["attention_bias"], config["mlp_bias"]
    if variant["head_dim"] is None:
        del config["head_dim"]
    config |= variant.get("config", {})
    if "rope_parameters" in config:  # in its place
        del config["rope_theta"], config["rope_scaling"]
    return config


def write_weights(out, weights, shards):
    """One model.safetensors, or shards with an index, split in the middle of the bytes."""
    if shards == 1:
        save_file(weights, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
        return
    total = sum(a.nbytes for a in weights.values())
    groups, seen = [{} for _ in range(shards)], 0
    for name, array in weights.items():
        groups[min(shards - 1, seen * shards // total)][name] = array
        seen += array.nbytes
    index = {}
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(group, os.path.join(out, file), metadata={"format": "pt"})
        index.update({name: file for name in group})
    write_json(
        os.path.join(out, "model.safetensors.index.json"),
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))},
    )


def write_variant(out, name, variant, dtype, seed):
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    variant = {**variant, "dtype": dtype or variant["dtype"]}
    rng = np.random.Generator(np.random.PCG64([seed, list(VARIANTS).index(name)]))
    weights = make_weights(variant, rng)
    weights = {k: convert(v, variant["dtype"]) for k, v in weights.items()}
    write_weights(folder, weights, variant.get("shards", 1))
    write_json(os.path.join(folder, "config.json"), base_config(variant))
    make_tokenizer(variant["tokenizer"], variant["vocab_size"]).save(
        os.path.join(folder, "tokenizer.json")
    )
    special = {"bos_token": END, "eos_token": END}
    write_json(
        os.path.join(folder, "tokenizer_config.json"),
        {
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 256,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": variant["tokenizer"] == "split-llama3",
        },
    )
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{folder}: {sum(w.size for w in weights.values())} weights, {size} bytes")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--out", required=True, help="folder to write tiny-* and refuse-* into")
    p.add_argument("--only", choices=list(VARIANTS), help="write just this one")
    p.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        help="store the weights so instead of as the variant says",
    )
    p.add_argument("--seed", type=int, default=7)
    args = p.parse_args()
    for name, variant in VARIANTS.items():
        if args.only in (None, name):
            write_variant(args.out, name, variant, args.dtype, args.seed)
    if args.only:
        return
    for name, change in REFUSED.items():
        folder = os.path.join(args.out, name)
        os.makedirs(folder, exist_ok=True)
        write_json(
            os.path.join(folder, "config.json"), {**base_config(VARIANTS["tiny-gqa"]), **change}
        )


if __name__ == "__main__":
    main()
