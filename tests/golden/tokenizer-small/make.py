#!/usr/bin/env python3
"""Makes tokenizer.json and cases.json with the reference implementation.

    pip install tokenizers==0.23.3
    python3 make.py

tokenizer.json is a byte-level BPE of 500 pieces trained on looking-glass.txt (Lewis Carroll,
Through the Looking-Glass, 1871; public domain). cases.json holds variants of it (members that
replace those of the file) with texts and the ids that the reference gives. The files of
SentencePiece-like tokenizers come from make_sentencepiece.py.
"""
import json
import os
import random
import tempfile

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
PARSE_SPECIAL, ADD_SPECIAL = 2, 1

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(prefix=False, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True,
            "use_regex": regex}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def digits(individual):
    return {"type": "Digits", "individual_digits": individual}


def steps(*list_):
    return {"type": "Sequence", "pretokenizers": list(list_)}


def added(id_, content, special=False, normalized=False, **flags):
    token = {"id": id_, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": normalized, "special": special}
    token.update(flags)
    return token


def template(before, after):
    tokens = {name: {"id": name, "ids": [id_], "tokens": [name]} for name, id_ in before + after}
    special = [[{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in side]
               for side in (before, after)]
    return {"type": "TemplateProcessing",
            "single": special[0] + [{"Sequence": {"id": "A", "type_id": 0}}] + special[1],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": tokens}


HOSTILE = [
    "", " ", "  ", "\n", "\r\n", "\t\n ", " \n \n", "a", "A b  c   d    e",
    "Hello, world! It's 2024; they'll say 'tis O'Brien'S.", "I'VE you'Re we'D he'LL 'sS 'ſ 's'S",
    "don't DON'T won\u2019t", "\u0301", "\u0301\u0301 a\u0301", "e\u0301le\u0301phant caf\u00e9",
    "A\u030a\u00c5\u212b", "\u1100\u1161\u11a8 \u1112\u1161\u11ab\uae00", "q\u0307\u0323 q\u0323\u0307",
    "\u0344\u0958\ufb1d\u2126", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466!",
    "\U0001f44d\U0001f3fd \u2764\ufe0f \U0001f1e9\U0001f1ea",
    "\u0634\u0643\u0631\u0627 \u05e9\u05dc\u05d5\u05dd \u200f\u202eabc",
    "\U00010400\U0001d49c \U0002070e", "\ufeffstart \ufeff", "no\u00a0break\u202fspace\u3000wide",
    "\u0085\u180e\u200b\u2028\u2029 x", "\u0000\u0001\u001f\u007f\u0080\u009f",
    "12345 3.14159 1,000,000 \u00bd \u00b2 \u2167 \u0663\u0664 \u4e09 1st 2\u20e3",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002",
    "\u3053\u3093\u306b\u3061\u306f\u30ab\u30bf\u30ab\u30ca", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "x_y snake_case \u203fz", "http://a.b/c?d=e&f#g",
    "   leading and trailing   ", "tabs\t\tand\n\n\nnewlines\r\n\r\nmixed \n",
    "camelCaseHTTPServer XMLHttp", "((((((((", "--------------------------------", "...!!!???",
    "the Queen said; the Red Queen!", "<|end|>", "a<|end|>b", " <|end|> ", "<|end|><|end|>",
    "<|en<|end|>d|>", "word words sword word", "\nword\n", "tool tool  tool", "caf\u00e9 cafe\u0301",
    "\u00dfSS \u0130\u0131 \u01c5", "\ufb01n \u00aa\u00ba", "\U000e0001\U0010fffd",
    "a" * 70, "ab" * 60, " " * 50, "\n" * 33, "Q" * 33 + "ueen", "0" * 41, "\u00e9" * 40,
    "e\u0301" * 20,
]


def random_texts(n):
    rng = random.Random(7)
    alphabet = list("abeinorstuvw THEQ'\u017f\t\n\r.,!019_-") + [
        "\u00bd", "\u00b2", "\u2167", "\u00a0", "\ufeff", "\u200d", "\u0301", "\u0316", "\u0327",
        "\u1100", "\u1161", "\u00e9", "\u00c5", "\u4e00", "\U0001f600", "\u180e", "\u2028",
        "\u3000", "'s", "'LL", "<|end|>", "word", "  ", "\r\n", " the", "Queen"]
    return ["".join(rng.choice(alphabet) * rng.choice([1, 1, 1, 2, 4])
                    for _ in range(rng.randrange(1, 25))) for _ in range(n)]


def main():
    text = open(os.path.join(HERE, "looking-glass.txt"), encoding="utf-8").read()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    base = json.loads(trained.to_str())
    base["added_tokens"] = [added(500, "<|end|>", special=True), added(501, "word"),
                            added(502, "<|start|>", special=True)]
    with open(os.path.join(HERE, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(base, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")

    legacy = [" ".join(m) for m in base["model"]["merges"]]
    # Without the pieces of some bytes, that nothing is merged from.
    merged = {c for m in base["model"]["merges"] for c in "".join(m)}
    poor = [k for k in base["model"]["vocab"] if len(k) > 1 or k in merged]
    fewer = {"added_tokens": [added(len(poor), "<|end|>", special=True)]}
    poor = {k: i for i, k in enumerate(poor)}
    nfc = {"normalizer": {"type": "NFC"}}
    variants = [
        ("plain", {}, {}),
        ("prefix space", {"pre_tokenizer": byte_level(prefix=True)}, {}),
        ("no regex", {"pre_tokenizer": byte_level(regex=False)}, {}),
        ("merges as strings", {}, {"merges": ["#version: 0.2"] + legacy}),
        ("ignore merges", {}, {"ignore_merges": True, "merges": base["model"]["merges"][:60]}),
        ("NFC", nfc, {}),
        ("Llama 3", {"pre_tokenizer": steps(split(LLAMA3), byte_level(regex=False))}, {}),
        ("GPT-4o", {"pre_tokenizer": steps(split(GPT4O), byte_level(regex=False)), **nfc}, {}),
        ("digits", {"pre_tokenizer": steps(digits(True), byte_level())}, {}),
        ("digit groups", {"pre_tokenizer": steps(digits(False), byte_level(prefix=True))}, {}),
        ("string split", {"pre_tokenizer": steps(split("e", kind="String"), byte_level())}, {}),
        ("words", {"pre_tokenizer": steps(split(r"\w+|[^\w\s]+", "Removed", True),
                                          byte_level(regex=False))}, {}),
        ("empty matches", {"pre_tokenizer": steps(split("x*", "Contiguous"),
                                                  byte_level(regex=False))}, {}),
        ("lines", {"pre_tokenizer": steps(split(r"^|\h{2}+|(?<=e)$", "MergedWithNext"),
                                          byte_level(regex=False))}, {}),
        ("unknown", fewer, {"vocab": poor, "unk_token": "e", "fuse_unk": False}),
        ("fused unknown", fewer, {"vocab": poor, "unk_token": "e", "fuse_unk": True}),
        ("left out", fewer, {"vocab": poor}),
    ]
    for behavior in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            variants.append((f"{behavior} {'inverted' if invert else ''}",
                             {"pre_tokenizer": steps(split(r"\s|e|\d", behavior, invert),
                                                     byte_level(regex=False))}, {}))
    for i, flags in enumerate(({"lstrip": True}, {"rstrip": True}, {"single_word": True},
                               {"lstrip": True, "rstrip": True}, {"normalized": True})):
        tokens = [added(500, "<|end|>", special=True, **flags), added(501, "word", **flags),
                  added(502, "<|start|>", special=True), added(503, "  ", **flags),
                  added(504, "cafe\u0301", **flags), added(505, "words"), added(506, "\n", **flags)]
        variants.append((f"added tokens {i}", {"added_tokens": tokens, **nfc}, {}))
    end, start = [("<|end|>", 500)], [("<|start|>", 502)]
    variants.append(("template", {"post_processor": template(start, end)}, {}))
    variants.append(("templates", {"post_processor": {
        "type": "Sequence", "processors": [byte_level(), template(start, [])]}}, {}))

    out = []
    texts = HOSTILE + random_texts(100)
    for number, (name, members, model) in enumerate(variants):
        doc = json.loads(json.dumps(base))
        doc.update(members)
        doc["model"].update(model)
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as f:
            json.dump(doc, f)
            f.flush()
            reference = Tokenizer.from_file(f.name)
        for flags in (0, PARSE_SPECIAL, PARSE_SPECIAL | ADD_SPECIAL):
            if flags == 0 and "added_tokens" not in members and number > 0:
                continue
            if flags & ADD_SPECIAL and "post_processor" not in members:
                continue
            reference.encode_special_tokens = not flags & PARSE_SPECIAL
            ids = {}
            for i, text in enumerate(texts):
                if number in (0, 6, 7) or (i + number) % 4 == 0:
                    special = bool(flags & ADD_SPECIAL)
                    ids[str(i)] = reference.encode(text, add_special_tokens=special).ids
            out.append({"name": name.strip(), "members": members, "model": model, "flags": flags,
                        "ids": ids})
    with open(os.path.join(HERE, "cases.json"), "w", encoding="utf-8") as f:
        lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in out)
        f.write('{"texts":' + json.dumps(texts) + ',\n"variants":[\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
