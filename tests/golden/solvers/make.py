#!/usr/bin/env python3
"""Plain references of the layer-wise solvers, in double precision, and their results.

Writes expected.safetensors beside itself; tests/test_solver_golden.c makes the same layers and
compares. Nothing here is shared with the solvers: inverses, eigenvectors and loops as in the papers.
Needs NumPy.
"""

import json
import math
import pathlib
import struct

import numpy as np

MASK = (1 << 64) - 1


class Random:
    """SplitMix64, as src/base/random.h."""

    def __init__(self, seed):
        self.state = seed

    def unit(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
        return (z >> 11) * 2.0**-53


def layer(rows, cols, tokens, seed, dead=None):
    """Weights (float32) and Hessian of correlated inputs of very different size."""
    random = Random(seed)
    w = np.array([random.unit() - 0.5 for _ in range(rows * cols)], dtype=np.float32)
    scale = [0.2 + 3 * random.unit() * random.unit() for _ in range(cols)]
    x = np.zeros((tokens, cols))
    for t in range(tokens):
        last = 0.0
        for c in range(cols):
            last = 0.7 * last + random.unit() - 0.5
            x[t, c] = last * scale[c]
    if dead is not None:
        x[:, dead] = 0
    return w.reshape(rows, cols).astype(np.float64), 2 / tokens * x.T @ x


def damped(h, share):
    """Dead columns get the mean of the others on their diagonal, then all of it is damped."""
    h = h.copy()
    diagonal = np.diag(h).copy()
    dead = diagonal == 0
    mean = diagonal[~dead].mean()
    h[dead, dead] = mean
    return h + share * mean * np.eye(len(h)), dead


def target(sparsity, n):
    return math.floor(sparsity * n + 0.5)


def smallest(score, k):
    """Mask of the k smallest, ties by position."""
    mask = np.zeros(score.size, dtype=bool)
    mask[np.argsort(score.ravel(), kind="stable")[:k]] = True
    return mask.reshape(score.shape)


def sparsegpt(w, h, sparsity, scope="block", block=128, share=0.01, act_order=False):
    w = w.copy()
    rows, cols = w.shape
    hd, dead = damped(h, share)
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(cols)
    w = w[:, order]
    w[:, dead[order]] = 0
    inverse = np.linalg.inv(hd[np.ix_(order, order)])
    u = np.linalg.cholesky(inverse).T
    for begin in range(0, cols, block):
        end = min(begin + block, cols)
        score = (w[:, begin:end] / np.diag(u)[begin:end]) ** 2
        mask = np.zeros_like(score, dtype=bool)
        if scope == "row":
            k = target(sparsity, end) - target(sparsity, begin)
            for r in range(rows):
                mask[r] = smallest(score[r], k)
        else:
            k = target(sparsity, rows * end) - target(sparsity, rows * begin)
            mask = smallest(score, k)
        for c in range(begin, end):
            error = np.where(mask[:, c - begin], w[:, c], 0) / u[c, c]
            w[:, c:] -= np.outer(error, u[c, c:])
            w[mask[:, c - begin], c] = 0
    result = np.zeros_like(w)
    result[:, order] = w
    return result


def scaled(w, h, share):
    hd, dead = damped(h, share)
    s = np.sqrt(np.diag(hd))
    a = hd / np.outer(s, s)
    b = w * s
    b[:, dead] = 0
    return a, b, s


def keep_largest(b, sparsity, scope):
    if scope == "row":
        k = target(sparsity, b.shape[1])
        mask = np.array([smallest(np.abs(row), k) for row in b])
    else:
        mask = smallest(np.abs(b), target(sparsity, b.size))
    return np.where(mask, 0, b), ~mask


def conjugate_gradients(a, y, x, keep, steps):
    r = (y - x @ a) * keep
    p = r.copy()
    norm = (r * r).sum(axis=1)
    limit = 1e-16 * ((y * keep) ** 2).sum(axis=1)
    for _ in range(steps):
        active = norm > limit
        if not active.any():
            break
        q = p @ a
        curvature = (p * q).sum(axis=1)
        alpha = np.where(active, norm / np.where(active, curvature, 1), 0)[:, None]
        x = x + alpha * p
        r = r - alpha * (q * keep)
        after = np.where(active, (r * r).sum(axis=1), norm)
        beta = np.where(active, after / np.where(active, norm, 1), 0)[:, None]
        p = np.where(active[:, None], r + beta * p, p)
        norm = after
    return x


def alps(w, h, sparsity, scope="matrix", share=0.01, iterations=30, cg=10):
    a, b0, s = scaled(w, h, share)
    y = b0 @ a
    values, vectors = np.linalg.eigh(a)
    first, keep = keep_largest(b0, sparsity, scope)
    d, v = first.copy(), np.zeros_like(b0)
    last, rho, moving = keep, 0.1, False
    kept = b0.size - target(sparsity, b0.size)
    for i in range(1, iterations + 1):
        inverse = (vectors / (values + rho)) @ vectors.T
        b = (y - v + rho * d) @ inverse
        d, keep = keep_largest(b + v / rho, sparsity, scope)
        v = v + rho * (b - d)
        if i % 3 == 0:
            changed = int((keep != last).sum())
            last = keep
            if changed > 0.1 * kept:
                rho, moving = rho * 1.3, True
            elif changed > 0.005 * kept:
                rho, moving = rho * 1.2, True
            elif moving:
                if changed == 0:
                    break
                rho *= 1.1
            else:
                rho /= 5
                if changed > 0:
                    d, keep = keep_largest(b0, sparsity, scope)
                    v, last = np.zeros_like(b0), keep
    return conjugate_gradients(a, y, d, keep, cg) / s


def refine(mask, w, h, share=0.01):
    """The least squares weights on a support, row by row, by a direct solver."""
    hd, dead = damped(h, share)
    w = np.where(dead, 0, w)
    result = np.zeros_like(w)
    for r in range(len(w)):
        at = np.flatnonzero(mask[r] & ~dead)
        result[r, at] = np.linalg.solve(hd[np.ix_(at, at)], hd[at] @ w[r])
    return result


def main():
    out = {}
    w, h = layer(24, 40, 160, 1)
    out["sparsegpt.small"] = sparsegpt(w, h, 0.5)
    out["admm.small"] = alps(w, h, 0.6)
    out["refine.small"] = refine(sparsegpt(w, h, 0.5) != 0, w, h)
    w, h = layer(33, 67, 300, 2, dead=5)
    out["sparsegpt.odd"] = sparsegpt(w, h, 0.7, block=16)
    out["sparsegpt.odd.row"] = sparsegpt(w, h, 0.6, scope="row", block=16)
    out["sparsegpt.odd.order"] = sparsegpt(w, h, 0.5, block=32, act_order=True)
    out["admm.odd"] = alps(w, h, 0.7)
    out["admm.odd.row"] = alps(w, h, 0.5, scope="row")
    out["refine.odd"] = refine(sparsegpt(w, h, 0.7, block=16) != 0, w, h)
    w, h = layer(19, 290, 200, 3)  # fewer tokens than columns, several blocks and tiles
    out["sparsegpt.wide"] = sparsegpt(w, h, 0.6)
    out["admm.wide"] = alps(w, h, 0.6)

    header, data = {}, b""
    for name, value in out.items():
        raw = np.ascontiguousarray(value, dtype="<f4").tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = pathlib.Path(__file__).parent / "expected.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    print(f"{path}: {len(data)} bytes of results")


if __name__ == "__main__":
    main()
