#!/usr/bin/env python3
"""Writes what Hugging Face transformers computes for a model, for the tests to compare with.

    python3 tools/make_golden.py --out tests/golden models/tales tests/golden/tiny-*

One tests/golden/NAME.json per model directory, computed at float32 on the CPU from the weights as
stored, with eager attention:

    model        name of the model directory
    text, ids    the prompt and its token ids (special tokens as the tokenizer adds them)
    logits       for some positions of the prompt: whole rows for vocabularies up to 1024;
                 otherwise the values at "index" (the 32 largest and 256 others, drawn with a seed)
    row_norm     the 2-norm of the whole row: the scale of a relative comparison
    greedy       32 tokens continued by argmax, and "margin", the gap between the best and the
                 second-best logit at each step (a small gap may turn over; a large one must not)
    nll          only with --excerpt and a context that holds it: the negative log likelihood in
                 nats of each token of tests/golden/excerpt.txt after the first, and "ids"
    tokenizer    [{"text", "ids", "ids_special", "decoded"}]: without and with special tokens
                 added; special-token text inside a text is parsed as the special token in both
"""

import argparse
import json
import os

import numpy as np
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = 'Once upon a time there was a little fox. "Come with me," said the crow, "and see the river!"'
POSITIONS = 6
LENGTH = 24

STRINGS = [
    "",
    " ",
    "  ",
    " " * 17,
    "\n",
    "\n\n",
    "\n\n\n\n\n\n",
    "\r\n",
    "a\r\nb\r\n\r\nc",
    "\t",
    "\t\t\tx\t y",
    " \n \n ",
    "Once upon a time",
    " Once upon a time",
    "Once upon a time ",
    "Hello, world!",
    "one  two   three    four",
    "line one\nline two\n\nline four\n",
    "end of line   \n   next",
    "It's he'll they've I'm we'd you're can't",
    "IT'S HE'LL THEY'VE I'M WE'D YOU'RE CAN'T",
    "'s 't 're 'S 'LL '' '''",
    "\u2018curly\u2019 \u201cquotes\u201d it\u2019s \u2014 dash \u2013 dots\u2026",
    "0",
    "1 12 123 1234 12345 1234567890",
    "3.14159 -2,718 1e-10 0x1F 50%",
    "\u0663\u0664\u0665 \u00b2\u00b3 \u2167 \u00bd \u0967\u0968",
    "camelCaseWord snake_case_word kebab-case-word",
    "!!!???...,,,;;;:::",
    "(a)[b]{c}<d>",
    "x=y+z*(a/b)^2;",
    "http://example.org/a?b=c&d=e#f",
    "caf\u00e9 na\u00efve fa\u00e7ade \u00dcber \u00f1and\u00fa",
    "cafe\u0301 nai\u0308ve",  # combining marks, not NFC
    "a\u0300\u0301\u0302\u0303\u0304b",
    "\u0344 \u0958 \u2126 \u212b",  # characters that NFC would change
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u65e5\u672c\u8a9e\u3068\u30ab\u30bf\u30ab\u30ca",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "a\U0001f600b \U0001f600\U0001f600",
    "\u00a0non\u00a0breaking\u00a0 \u2003em\u2009thin\u3000ideographic",
    "zero\u200bwidth\u200cjoiner\u200d\ufeff",
    "\u2028line\u2029paragraph\u0085next",
    "control\x01\x02\x7f\x1b[0m",
    "\ufffd\uffff\U0010ffff\ue000",
    "\ud7ff\ue000",
    "\u202eright to left\u202c",
    "Z\u0351\u036b\u0343\u036aa\u0310\u0311l\u0334g\u0321o\u0322",
    "\ufb01 \ufb03 \u017f \u0130\u0131 \u1e9e",
    "<|endoftext|>",
    "<|endoftext|><|endoftext|>",
    "one<|endoftext|>two",
    "one <|endoftext|> two",
    "<|endoftext| >",
    "<|end\u043eftext|>",  # a Cyrillic letter inside
    "a" * 100,
    "ab" * 60,
    " a b c d e f g h i j k l m n o p",
    "The quick brown fox jumps over the lazy dog. " * 3,
]


def numbers(values):
    """float32 values as the shortest decimals that read back as the same float32."""
    return [float(str(np.float32(v))) for v in values]


def logit_rows(rows, vocab_size):
    """rows: {position: float32[vocab]} -> the records described at the top."""
    records = []
    for position, row in rows.items():
        record = {"position": position, "row_norm": float(np.linalg.norm(row.astype(np.float64)))}
        if vocab_size <= 1024:
            record["values"] = numbers(row)
        else:
            top = np.argsort(-row, kind="stable")[:32]
            rest = np.random.Generator(np.random.PCG64(position)).permutation(vocab_size)
            rest = [int(i) for i in rest if i not in set(top.tolist())][:256]
            record["index"] = [int(i) for i in top] + sorted(rest)
            record["values"] = numbers(row[record["index"]])
        records.append(record)
    return records


@torch.no_grad()
def greedy(model, ids, count):
    ids, tokens, margins = list(ids), [], []
    for _ in range(count):
        best = torch.topk(model(torch.tensor([ids])).logits[0, -1], 2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        ids.append(tokens[-1])
    return {"ids": tokens, "margin": numbers(margins)}


def tokenizer_rows(folder):
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    rows = []
    for text in STRINGS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        special = tokenizer.encode(text, add_special_tokens=True).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        rows.append({"text": text, "ids": ids, "ids_special": special, "decoded": decoded})
    return rows


@torch.no_grad()
def golden(folder, excerpt):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    raw = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    ids = raw.encode(PROMPT, add_special_tokens=True).ids
    if tokenizer(PROMPT).input_ids != ids:
        raise SystemExit(f"{folder}: transformers and tokenizers split the prompt differently")
    ids = ids[:LENGTH]
    logits = model(torch.tensor([ids])).logits[0].numpy()
    places = np.linspace(0, len(ids) - 1, POSITIONS).round().astype(int)
    result = {
        "model": os.path.basename(os.path.normpath(folder)),
        "made_with": {
            "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0],
            "tokenizers": tokenizers.__version__,
        },
        "text": raw.decode(ids, skip_special_tokens=True),
        "ids": ids,
        "logits": logit_rows({int(p): logits[p] for p in places}, logits.shape[1]),
        "greedy": greedy(model, ids, 32),
    }
    if excerpt:
        with open(excerpt, encoding="utf-8") as file:
            tokens = raw.encode(file.read(), add_special_tokens=True).ids
        if len(tokens) <= model.config.max_position_embeddings:
            rows = torch.log_softmax(model(torch.tensor([tokens])).logits[0, :-1].double(), -1)
            nll = -rows[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
            result["nll"] = {
                "file": os.path.basename(excerpt),
                "ids": tokens,
                "values": numbers(nll.numpy()),
                "mean": float(nll.mean()),
            }
    result["tokenizer"] = tokenizer_rows(folder)
    return result


def dump(value):
    """JSON with one record a line: small, and differences can be read."""
    lines = []
    for key, item in value.items():
        if key in ("logits", "tokenizer"):
            text = "[\n" + ",\n".join("  " + json.dumps(r) for r in item) + "\n ]"
        else:
            text = json.dumps(item)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="+", help="Hugging Face model directories")
    p.add_argument("--out", required=True, help="folder for NAME.json")
    p.add_argument("--excerpt", help="text for the nll rows (default: OUT/excerpt.txt if there)")
    args = p.parse_args()
    torch.set_num_threads(1)  # one order of additions, whatever the machine
    excerpt = args.excerpt or os.path.join(args.out, "excerpt.txt")
    for folder in filter(os.path.isdir, args.models):  # tiny-* also matches tiny-*.json
        result = golden(folder, excerpt if os.path.exists(excerpt) else None)
        path = os.path.join(args.out, result["model"] + ".json")
        with open(path, "w", encoding="utf-8") as file:
            file.write(dump(result))
        print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
