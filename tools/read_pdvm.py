#!/usr/bin/env python3
"""Reads a .pdvm file with nothing but numpy, as docs/format.md describes it.

    read_pdvm.py FILE                         lists the matrices
    read_pdvm.py FILE --compare OTHER         compares the decoded values, bit for bit, with the
                                              tensors of a safetensors file (pdvm unpack)

It shows how to read the format and cross-checks the C implementation; it does not check its input.
"""

import argparse
import json
import sys

import numpy as np

# [reader]
DTYPES = {"U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_safetensors(path):
    data = np.memmap(path, dtype="u1", mode="r")
    size = int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8 : 8 + size]))
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, t in header.items():
        begin, end = (8 + size + offset for offset in t["data_offsets"])
        tensors[name] = np.frombuffer(bytes(data[begin:end]), DTYPES[t["dtype"]]).reshape(t["shape"])
        if t["dtype"] == "BF16":  # the upper half of a float32
            tensors[name] = (tensors[name].astype("<u4") << 16).view("<f4")
    return metadata, tensors


def nibbles(array):
    return np.stack([array & 15, array >> 4], axis=-1).reshape(-1)


def gaps_to_columns(gaps, skip):
    ends = np.cumsum(gaps.astype(np.int64) + (gaps != skip))  # every entry takes a position itself
    return ends[gaps != skip] - 1


def columns(tensors, name, m, row):
    if m["index"] == "dense":
        return np.arange(m["shape"][1])
    index = tensors[name + ".index"]
    if m["index"] == "bitmap":
        return np.flatnonzero(np.unpackbits(index[row], bitorder="little")[: m["shape"][1]])
    gaps = index[slice(*tensors[name + ".index_offsets"][row : row + 2])]
    return gaps_to_columns(gaps, 255) if m["index"] == "delta8" else gaps_to_columns(nibbles(gaps), 15)


def decode(tensors, name, m):
    rows, cols = m["shape"]
    matrix = np.zeros((rows, cols), np.float32)
    values = tensors[name + ".values"].reshape(-1)
    if m["values"] in ("lut8", "lut4"):
        codes = nibbles(values) if m["values"] == "lut4" else values
        values = tensors[name + ".codebook"].astype(np.float32)[codes]
    for r in range(rows):
        where = columns(tensors, name, m, r)
        first = r * cols if m["index"] == "dense" else tensors[name + ".row_offsets"][r]
        matrix[r, where] = values[first : first + len(where)]
        if name + ".scales" in tensors:
            scales = tensors[name + ".scales"].reshape(rows, -1)[r]
            matrix[r, where] *= scales[where // (m["group"] or cols)]
    return matrix


def read_pdvm(path):
    metadata, tensors = read_safetensors(path)
    assert metadata["format"] == "pdvm" and metadata["pdvm.version"] == "1"
    matrices = json.loads(metadata["pdvm.matrices"])
    return matrices, {name: decode(tensors, name, m) for name, m in matrices.items()}
# [/reader]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--compare", metavar="OTHER", help="safetensors file with the same matrices")
    args = parser.parse_args()
    described, matrices = read_pdvm(args.file)
    expected = read_safetensors(args.compare)[1] if args.compare else {}
    wrong = 0
    for name, matrix in matrices.items():
        m = described[name]
        line = f"{name} {list(matrix.shape)} {m['index']} {m['values']} group {m['group']}"
        line += f" zeros {np.count_nonzero(matrix == 0)}"
        if args.compare:
            same = name in expected and np.array_equal(
                np.asarray(expected[name], np.float32).view("u4"), matrix.view("u4")
            )
            wrong += not same
            line += " same" if same else " DIFFERENT"
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
