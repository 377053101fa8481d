#!/usr/bin/env python3
"""Trains the demo story model (models/tales) and writes it as a Hugging Face directory.

    python3 tools/train_demo.py --corpus ../shared/corpus --out models/tales     # a GPU, in earnest
    python3 tools/train_demo.py --corpus ../shared/corpus --out /tmp/toy --toy   # a CPU, two minutes

The script trains the byte-level BPE vocabulary, encodes the corpus, trains a Llama-architecture
model in plain PyTorch, keeps the checkpoint with the lowest validation loss, and writes config.json,
model.safetensors (bf16), the tokenizer files, samples.json and training.json (every setting and
loss) to --out. README.md in tools/ says how the shipped model was made.

The corpus is small (about 8 M tokens, each seen many times), so what matters is regularisation:
dropout, weight decay far above the usual 0.1, and a schedule that ends before the validation loss
turns. --teacher adds a distillation term (Hinton et al. 2015, arXiv:1503.02531) from one or more
models that this script wrote before, of any size, with the same tokenizer.
"""

import argparse
import json
import lzma
import math
import os
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

END = "<|endoftext|>"  # ends a document in the corpus; bos and eos of the model

# GPT-2's splitting pattern (Radford et al. 2019), spelled out so that tokenizer.json carries it.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


# ---------------------------------------------------------------------------------------- corpus


def read_documents(corpus, name):
    """The documents of one corpus part, as a list of strings. Reads NAME.txt or NAME.txt.xz."""
    path = os.path.join(corpus, name + ".txt")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            text = file.read()
    else:
        with lzma.open(path + ".xz", "rt", encoding="utf-8") as file:
            text = file.read()
    documents = [d.strip("\n") for d in text.split(END)]
    return [d for d in documents if d.strip()]


def train_tokenizer(documents, vocab_size):
    """A byte-level BPE tokenizer: GPT-2's pattern, all 256 bytes, END as token 0, put before every
    text by the post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT2_PATTERN), behavior="isolated"),
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
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, 0)]
    )
    return tokenizer


def encode(tokenizer, documents):
    """One uint16 array per document; each begins with END, as at inference."""
    encoded = tokenizer.encode_batch(documents, add_special_tokens=True)
    return [np.array(e.ids, dtype=np.uint16) for e in encoded]


class Epochs:
    """An endless supply of batches. Every epoch shuffles all documents of all parts, repeats each
    part as often as its weight says (a fraction picks at random), and cuts the concatenation into
    windows of context + 1 tokens from a random offset, so that no two epochs cut alike."""

    def __init__(self, parts, context, batch, device, seed):
        self.parts, self.context, self.batch, self.device = parts, context, batch, device
        self.rng = np.random.default_rng(seed)
        self.number = 0
        self.windows = None
        self.at = 0

    def _start(self):
        chosen = []
        for documents, weight in self.parts:
            whole = int(weight)
            for _ in range(whole):
                chosen += documents
            rest = weight - whole
            if rest > 0:
                chosen += [d for d in documents if self.rng.random() < rest]
        order = self.rng.permutation(len(chosen))
        stream = np.concatenate([chosen[i] for i in order])[self.rng.integers(self.context) :]
        count = (len(stream) - 1) // self.context
        windows = np.lib.stride_tricks.as_strided(
            stream, (count, self.context + 1), (self.context * 2, 2), writeable=False
        )
        windows = windows[self.rng.permutation(count)].astype(np.int32)
        self.windows = torch.from_numpy(windows).to(self.device)
        self.at = 0
        self.number += 1

    def next(self):
        if self.windows is None or self.at + self.batch > len(self.windows):
            self._start()
        rows = self.windows[self.at : self.at + self.batch].long()
        self.at += self.batch
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


# ----------------------------------------------------------------------------------------- model
# Parameter names are those of Hugging Face's LlamaForCausalLM, so that a state dict is the file.


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim, self.dropout = config["head_dim"], config["dropout"]
        hidden = config["hidden_size"]
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        eps = config["rms_norm_eps"]
        self.input_layernorm = RMSNorm(config["hidden_size"], eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config["dropout"])

    def forward(self, x, cos, sin):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Stack(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])


class Llama(nn.Module):
    """Llama with tied embeddings. forward gives logits [batch, positions, vocabulary]."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.dropout = nn.Dropout(config["dropout"])
        half = torch.arange(0, config["head_dim"], 2).float() / config["head_dim"]
        angle = torch.outer(
            torch.arange(config["max_position_embeddings"]).float(), config["rope_theta"] ** -half
        )
        angle = torch.cat([angle, angle], dim=-1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        # GPT-2's initialisation: 0.02, and smaller where a layer writes into the residual.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = math.sqrt(2 * config["num_hidden_layers"]) if residual else 1.0
                nn.init.normal_(parameter, std=0.02 / depth)

    def forward(self, tokens):
        t = tokens.shape[1]
        cos, sin = self.cos[:t], self.sin[:t]
        x = self.dropout(self.model.embed_tokens(tokens))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def rotate(x, cos, sin):
    """RoPE in Hugging Face's order: element i turns with element i + head_dim / 2."""
    a, b = x.chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-b, a], dim=-1).float() * sin).to(x.dtype)


# -------------------------------------------------------------------------------------- training


def cross_entropy(logits, targets):
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def distillation(logits, teacher_probabilities):
    """Cross entropy of the student against the teachers' mean distribution, per token."""
    return -(teacher_probabilities * F.log_softmax(logits.float(), -1)).sum(-1).mean()


def step_loss(model, tokens, targets, probabilities, share):
    logits = model(tokens)
    loss = cross_entropy(logits, targets)
    if probabilities is None:
        return loss, loss.detach()
    mixed = (1 - share) * loss + share * distillation(logits, probabilities)
    return mixed, loss.detach()


def teacher_probabilities(teachers, tokens):
    return torch.stack([F.softmax(t(tokens).float(), -1) for t in teachers]).mean(0)


@torch.no_grad()
def validate(model, documents, context, batch, device, cast, limit=None):
    """Mean negative log likelihood (nats per token) and token count over the concatenated
    documents, in windows of `context` that do not overlap."""
    stream = np.concatenate(documents).astype(np.int64)
    count = (len(stream) - 1) // context
    if limit:
        count = min(count, limit)
    model.eval()
    total, tokens = 0.0, 0
    for first in range(0, count, batch):
        rows = range(first, min(first + batch, count))
        window = np.stack([stream[r * context : (r + 1) * context + 1] for r in rows])
        window = torch.from_numpy(window).to(device)
        with cast():
            loss = cross_entropy(model(window[:, :-1]), window[:, 1:])
        total += loss.item() * len(rows) * context
        tokens += len(rows) * context
    model.train()
    return total / tokens, tokens


def train(model, args, config, parts, valid, device, teachers):
    """Trains in place; returns the best state dict (by pooled validation loss) and the log."""

    def cast():
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    epochs = Epochs(parts, args.context, args.batch, device, args.seed)
    decay = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    loss_of = torch.compile(step_loss) if args.compile else step_loss
    soft_of = torch.compile(teacher_probabilities) if args.compile else teacher_probabilities
    log, best, best_state = [], math.inf, None
    began = time.time()
    recent, since = [], (0, began)
    model.train()
    for step in range(args.steps + 1):
        if step % args.eval_every == 0 or step == args.steps:
            losses, pooled, tokens = {}, 0.0, 0
            for name, documents in valid.items():
                loss, n = validate(
                    model, documents, args.context, args.batch, device, cast, args.eval_windows
                )
                losses[name] = loss
                if name != "general":
                    pooled, tokens = pooled + loss * n, tokens + n
            pooled /= tokens
            now = time.time()
            train_loss = torch.stack(recent).mean().item() if recent else math.nan
            speed = (step - since[0]) * args.batch * args.context / max(now - since[1], 1e-9)
            left = (args.steps - step) * (now - began) / max(step, 1)
            shown = " ".join(f"{k} {v:.4f}" for k, v in losses.items())
            print(
                f"step {step}/{args.steps} epoch {epochs.number} train {train_loss:.4f} "
                f"valid {pooled:.4f} ({shown}) {speed / 1e3:.0f}k tok/s "
                f"elapsed {now - began:.0f}s eta {left:.0f}s",
                flush=True,
            )
            log.append({"step": step, "epoch": epochs.number, "train": train_loss, "valid": pooled, **losses})
            if pooled < best:
                best = pooled
                best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
            recent, since = [], (step, now)
            if step == args.steps or (args.minutes and now - began > args.minutes * 60):
                break
        progress = max(0, step - args.warmup) / max(1, args.steps - args.warmup)
        scale = min(1.0, (step + 1) / args.warmup) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * scale
        tokens, targets = epochs.next()
        with cast():
            soft = None
            if teachers:
                with torch.no_grad():
                    soft = soft_of(teachers, tokens)
            loss, plain_loss = loss_of(model, tokens, targets, soft, args.teacher_share)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(plain_loss)
    return best_state, log


@torch.no_grad()
def generate(model, tokenizer, prompt, length, temperature, top_p, seed, device):
    """Plain sampling without a cache: for looking at, not for speed."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    model.eval()
    for _ in range(length):
        window = torch.tensor([ids[-model.config["max_position_embeddings"] :]], device=device)
        logits = model(window)[0, -1].float().cpu()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            p, order = torch.softmax(logits / temperature, -1).sort(descending=True)
            p[p.cumsum(-1) - p > top_p] = 0
            token = int(order[torch.multinomial(p / p.sum(), 1, generator=generator)])
        if token == 0:
            break
        ids.append(token)
    return tokenizer.decode(ids, skip_special_tokens=True)


# ---------------------------------------------------------------------------------------- export


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def export(out, state, config, tokenizer):
    """Writes the Hugging Face directory. config.json is in the classic form (rope_theta and
    torch_dtype at the top level), which old and new versions of transformers both read."""
    os.makedirs(out, exist_ok=True)
    tensors = {k: v.to(torch.bfloat16).contiguous().cpu() for k, v in state.items()}
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    keys = [k for k in config if k != "dropout"]
    write_json(
        os.path.join(out, "config.json"),
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **{k: config[k] for k in keys},
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "rope_scaling": None,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        },
    )
    write_json(
        os.path.join(out, "generation_config.json"),
        {"bos_token_id": 0, "eos_token_id": 0, "do_sample": True, "temperature": 0.8, "top_p": 0.95},
    )
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    special = {"bos_token": END, "eos_token": END, "unk_token": END}
    write_json(os.path.join(out, "special_tokens_map.json"), special)
    write_json(
        os.path.join(out, "tokenizer_config.json"),
        {
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                "0": {
                    "content": END,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
            },
        },
    )


def load(folder, device):
    """A frozen model from a directory that export wrote."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = {**json.load(file), "dropout": 0.0}
    state = load_file(os.path.join(folder, "model.safetensors"))
    model = Llama(config).to(device).eval().requires_grad_(False)
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return model


PROMPTS = [
    "Once upon a time",
    "Once upon a time, there was a little fox who",
    "The old king had three daughters.",
    "One day, Tom and his dog went to the river.",
]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--corpus", required=True, help="folder with kids_train.txt[.xz], tinystories_train.txt, ...")
    p.add_argument("--out", required=True, help="folder to write the model to")
    p.add_argument("--toy", action="store_true", help="tiny model, few steps: shows on a CPU that it all works")
    p.add_argument("--tokenizer", help="use this tokenizer.json instead of training one")
    p.add_argument("--vocab", type=int, default=8192)
    p.add_argument("--hidden", type=int, default=512)
    p.add_argument("--inner", type=int, default=1536, help="intermediate size of the MLP")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--head-dim", type=int, default=64)
    p.add_argument("--kv-heads", type=int, default=4)
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--tinystories", type=float, default=6, help="copies of tinystories_train in an epoch")
    p.add_argument("--general", type=float, default=0, help="copies (or a share) of general_train in an epoch")
    p.add_argument("--batch", type=int, default=64, help="windows a step")
    p.add_argument("--steps", type=int, default=2500)
    p.add_argument("--minutes", type=float, help="stop early after this long")
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--weight-decay", type=float, default=0.3)
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--teacher", nargs="*", default=[], help="models that this script wrote, to learn from")
    p.add_argument("--teacher-share", type=float, default=0.7, help="weight of the distillation term")
    p.add_argument("--eval-every", type=int, default=250)
    p.add_argument("--eval-windows", type=int, help="at most so many windows per validation file")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--no-compile", dest="compile", action="store_false")
    args = p.parse_args()
    if args.toy:
        args.vocab, args.hidden, args.inner, args.layers, args.kv_heads = 2048, 256, 512, 2, 2
        args.context, args.batch, args.steps, args.warmup = 256, 8, 200, 20
        args.tinystories, args.general, args.eval_every, args.eval_windows = 1, 0, 50, 16
        args.compile = False
    return args


def main():
    args = arguments()
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    if device.type == "cpu" and not args.toy:
        print("no GPU found: this will take days; --toy is the size for a CPU", flush=True)

    # The toy leaves the large file alone: its point is to be quick.
    names = ["tinystories"] if args.toy else ["kids", "tinystories"]
    names += ["general"] if args.general else []
    began = time.time()
    documents = {n: read_documents(args.corpus, n + "_train") for n in names}
    if args.tokenizer:
        tokenizer = Tokenizer.from_file(args.tokenizer)
    else:
        # The vocabulary belongs to the stories; general_train does not take part.
        texts = [d for n in names if n != "general" for d in documents[n]]
        tokenizer = train_tokenizer(texts, args.vocab)
    encoded = {n: encode(tokenizer, documents[n]) for n in names}
    valid = {
        n: encode(tokenizer, read_documents(args.corpus, n + "_valid"))
        for n in ["kids", "tinystories", "general"]
    }
    counts = {n: int(sum(map(len, encoded[n]))) for n in names}
    print(f"{time.time() - began:.0f}s: vocabulary {tokenizer.get_vocab_size()}, tokens {counts}", flush=True)

    config = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": args.hidden,
        "intermediate_size": args.inner,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // args.head_dim,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "max_position_embeddings": args.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "dropout": args.dropout,
    }
    model = Llama(config).to(device)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e6:.2f} M parameters on {device}; {vars(args)}", flush=True)

    teachers = [load(path, device) for path in args.teacher]

    weight = {"kids": 1.0, "tinystories": args.tinystories, "general": args.general}
    parts = [(encoded[n], weight[n]) for n in names]
    state, log = train(model, args, config, parts, valid, device, teachers)

    # What is shipped is bf16, so the final losses are those of the rounded weights, at float32.
    final = Llama({**config, "dropout": 0.0}).to(device)
    final.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in state.items()})
    torch.set_float32_matmul_precision("highest")
    plain = torch.no_grad
    losses = {}
    for name, docs in valid.items():
        nll, tokens = validate(final, docs, args.context, 8, device, plain, args.eval_windows)
        losses[name + "_valid"] = {"nats_per_token": nll, "tokens": tokens}
    sample = np.random.default_rng(0)
    for name in names:
        some = [encoded[name][i] for i in sample.permutation(len(encoded[name]))[:100]]
        nll, tokens = validate(final, some, args.context, 8, device, plain, 128)
        losses[name + "_train"] = {"nats_per_token": nll, "tokens": tokens}
    for name, value in losses.items():
        print(f"final {name}: {value['nats_per_token']:.4f} nats/token over {value['tokens']} tokens")

    export(args.out, state, config, tokenizer)
    samples = []
    length = 40 if args.toy else 300
    for prompt in PROMPTS:
        for temperature in (0.0, 0.8):
            text = generate(final, tokenizer, prompt, length, temperature, 0.95, args.seed, device)
            samples.append({"prompt": prompt, "temperature": temperature, "top_p": 0.95, "text": text})
            print(f"--- temperature {temperature}\n{text}", flush=True)
    write_json(os.path.join(args.out, "samples.json"), samples)
    settings = {k: v for k, v in vars(args).items() if k not in ("corpus", "out", "tokenizer")}
    write_json(
        os.path.join(args.out, "training.json"),
        {"settings": settings, "parameters": size, "tokens": counts, "losses": losses, "log": log},
    )


if __name__ == "__main__":
    main()
