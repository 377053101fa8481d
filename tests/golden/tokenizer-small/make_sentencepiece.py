#!/usr/bin/env python3
"""Makes the files of SentencePiece-like tokenizers with the reference implementations.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3
    python3 make_sentencepiece.py

sp-tokenizer.json is a BPE of characters with byte fallback, trained on looking-glass.txt;
sp-cases.json holds variants of it with texts, their ids, and what the ids decode to.
sp-llama.model (as Llama's: byte fallback, a space before the text) and sp-plain.model (neither, but
user-defined symbols) are trained by SentencePiece; sp-models.json holds ids for them.
"""
import io
import json
import os
import tempfile

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from make import ADD_SPECIAL, HERE, HOSTILE, PARSE_SPECIAL, added, digits, random_texts, split, \
    steps, template

LINE = "\u2581"
TEXTS = HOSTILE + random_texts(100) + [
    LINE, LINE * 3, f"a{LINE}b", f" {LINE} {LINE}", "<s>", "a<s>", "<s>a", " <s> a", "a <s>b </s>",
    "</s><s>", "<unk>", "<0x41>", "<0x0A>\n", "wordword", "\n<s>\n", "<s> ", " a  b   c    ",
    "x" * 40 + " " * 40, "the\u00a0Queen", "\u00bd\ufb01\u2126\uff21", "<x> <x><x>y", "Q<x>ueen",
    "\u2581<x>\u2581", "\U0001f600 the \U0001f600\U0001f601Queen\U0001f602",
]


def write(name, data):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        f.write(data)


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def normalizers(*list_):
    return {"type": "Sequence", "normalizers": list(list_)}


def metaspace(scheme="always", split_=True):
    return {"type": "Metaspace", "replacement": LINE, "prepend_scheme": scheme, "split": split_}


def decoder(strip=1):
    list_ = [replace(LINE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if strip:
        list_.append({"type": "Strip", "content": " ", "start": strip, "stop": 0})
    return {"type": "Sequence", "decoders": list_}


def train(text):
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([text, "  \n" * 8, "   "], trainers.BpeTrainer(
        vocab_size=620, special_tokens=names, show_progress=False))
    base = json.loads(trained.to_str())
    # Runs of spaces, as Llama's vocabulary has them.
    vocab, merges = base["model"]["vocab"], base["model"]["merges"]
    for n in (2, 4, 3, 8):
        if LINE * n not in vocab:
            vocab[LINE * n] = len(vocab)
        for left in range(1, n):
            if LINE * left in vocab and LINE * (n - left) in vocab:
                merges.append([LINE * left, LINE * (n - left)])
    base["added_tokens"] = [added(i, names[i], special=True) for i in range(3)]
    base["normalizer"] = normalizers({"type": "Prepend", "prepend": LINE}, replace(" ", LINE))
    base["pre_tokenizer"] = None
    base["decoder"] = decoder()
    base["post_processor"] = template([("<s>", 1)], [])
    return base


def make_json(text):
    base = train(text)
    write("sp-tokenizer.json", json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n")
    vocab = base["model"]["vocab"]
    # Without some bytes and letters: unknown characters of several kinds.
    merged = {c for m in base["model"]["merges"] for c in "".join(m)}
    poor = [k for k in vocab if not k.startswith("<0xE") and (len(k) > 1 or k in merged)
            and k != "Q"]
    poor_ids = {k: i for i, k in enumerate(poor)}
    poor_merges = [m for m in base["model"]["merges"] if all(p in poor_ids for p in (
        m[0], m[1], m[0] + m[1]))]
    # A merge over the beginning of a word.
    crossing = dict(vocab)
    crossing["e" + LINE] = len(vocab)
    crossing["e" + LINE + "t"] = len(vocab) + 1
    crossing_merges = [["e", LINE], ["e" + LINE, "t"]] + base["model"]["merges"]
    normal = [added(i, n, special=True, normalized=True)
              for i, n in enumerate(["<unk>", "<s>", "</s>"])]
    n = len(vocab)
    more = base["added_tokens"] + [
        added(n, "<x>", rstrip=True), added(n + 1, "word", normalized=True),
        added(n + 2, "  ", lstrip=True), added(n + 3, f"{LINE}Q", special=True)]
    variants = [
        ("plain", {}, {}),
        ("normalised specials", {"added_tokens": normal}, {}),
        ("more added tokens", {"added_tokens": more}, {}),
        ("no prefix", {"normalizer": replace(" ", LINE), "decoder": decoder(0)}, {}),
        ("first", {"normalizer": None, "pre_tokenizer": metaspace("first", False)}, {}),
        ("first and split", {"normalizer": None, "pre_tokenizer": metaspace("first"),
                             "decoder": metaspace("first")}, {}),
        ("always", {"normalizer": None, "pre_tokenizer": metaspace("always", False),
                    "decoder": metaspace("always")}, {}),
        ("never", {"normalizer": None, "pre_tokenizer": metaspace("never"),
                   "decoder": metaspace("never")}, {}),
        ("old Metaspace", {"normalizer": None, "pre_tokenizer": {
            "type": "Metaspace", "replacement": LINE, "add_prefix_space": True}}, {}),
        ("words at spaces", {"normalizer": replace(" ", LINE), "decoder": decoder(0),
                             "pre_tokenizer": split(LINE, "MergedWithPrevious", kind="String")}, {}),
        ("digits", {"normalizer": None,
                    "pre_tokenizer": steps(digits(True), metaspace("first"))}, {}),
        ("NFKC", {"normalizer": normalizers({"type": "NFKC"}, replace(" ", LINE))}, {}),
        ("NFD", {"normalizer": normalizers({"type": "NFD"}, replace(" ", LINE))}, {}),
        ("NFKD", {"normalizer": {"type": "NFKD"}, "added_tokens": more}, {}),
        ("regex", {"normalizer": normalizers(replace(r"\s+", LINE, "Regex"),
                                             replace("(?<=e)", "-", "Regex"),
                                             replace("th", "T"))}, {}),
        ("poor", {}, {"vocab": poor_ids, "merges": poor_merges}),
        ("poor, not fused", {}, {"vocab": poor_ids, "merges": poor_merges, "fuse_unk": False}),
        ("poor, left out", {}, {"vocab": poor_ids, "merges": poor_merges, "unk_token": None}),
        ("no fallback", {}, {"byte_fallback": False}),
        ("ignore merges", {"normalizer": None, "pre_tokenizer": metaspace()},
         {"ignore_merges": True, "merges": base["model"]["merges"][:40]}),
        ("crossing", {}, {"vocab": crossing, "merges": crossing_merges}),
    ]
    out = []
    for number, (name, members, model) in enumerate(variants):
        doc = json.loads(json.dumps(base))
        doc.update(members)
        doc["model"].update(model)
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as f:
            json.dump(doc, f)
            f.flush()
            reference = Tokenizer.from_file(f.name)
        for flags in (PARSE_SPECIAL, PARSE_SPECIAL | ADD_SPECIAL, 0):
            if (flags == 0 and number > 2) or (flags & ADD_SPECIAL and number > 0):
                continue
            reference.encode_special_tokens = not flags & PARSE_SPECIAL
            ids, decoded = {}, {}
            for i, line in enumerate(TEXTS):
                if number in (0, 4) or i >= len(TEXTS) - 24 or (i + number) % 3 == 0:
                    special = bool(flags & ADD_SPECIAL)
                    ids[str(i)] = reference.encode(line, add_special_tokens=special).ids
                    # It shows special tokens that are looked for in the normalised text: left out.
                    if i % 2 == 0 and number != 1:
                        decoded[str(i)] = reference.decode(ids[str(i)], skip_special_tokens=True)
            out.append({"name": name, "members": members, "model": model, "flags": flags,
                        "ids": ids, "decoded": decoded})
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in out)
    write("sp-cases.json", '{"texts":' + json.dumps(TEXTS) + ',\n"variants":[\n' + lines + "\n]}\n")


def make_models(text):
    sets = {
        "sp-llama.model": {"byte_fallback": True, "split_digits": True},
        "sp-plain.model": {"add_dummy_prefix": False, "user_defined_symbols": ["<x>", "Queen"],
                           "character_coverage": 0.998},
    }
    out = {}
    for name, options in sets.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.split("\n")), model_writer=model, model_type="bpe",
            vocab_size=520, normalization_rule_name="identity", remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2,
            **options)
        with open(os.path.join(HERE, name), "wb") as f:
            f.write(model.getvalue())
        reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        ids = [reference.encode(line) for line in TEXTS]
        out[name] = {"n": reference.get_piece_size(), "ids": ids,
                     "decoded": [reference.decode(i) for i in ids]}
    parts = ",\n".join(json.dumps(n) + ":" + json.dumps(c, separators=(",", ":"))
                       for n, c in out.items())
    write("sp-models.json", '{"texts":' + json.dumps(TEXTS) + ",\n" + parts + "}\n")


if __name__ == "__main__":
    corpus = open(os.path.join(HERE, "looking-glass.txt"), encoding="utf-8").read()
    make_json(corpus)
    make_models(corpus)
