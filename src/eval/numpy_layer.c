#include "eval/numpy_layer.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Arguments: hidden, intermediate, heads, KV heads, width of a head, sparsity. Prints seconds. */
static const char script[] =
    "import sys, time\n"
    "try:\n"
    "    import numpy as np\n"
    "except ImportError:\n"
    "    sys.exit(3)\n"
    "hidden, inter, heads, kv, dim = map(int, sys.argv[1:6])\n"
    "density, past = 1 - float(sys.argv[6]), 96\n"
    "rng = np.random.default_rng(1)\n"
    "f32 = np.float32\n"
    "def matrix(rows, cols):\n"
    "    mask = rng.random((rows, cols), dtype=f32) < density\n"
    "    mask[:, 0] = True  # no empty rows\n"
    "    starts = np.concatenate(([0], np.cumsum(mask.sum(1))[:-1]))\n"
    "    columns = np.nonzero(mask)[1].astype(np.int32)\n"
    "    values = rng.integers(-127, 128, len(columns), dtype=np.int8)\n"
    "    return values, columns, starts, f32(1 / (70 * (cols * density) ** 0.5))\n"
    "def product(m, x):\n"
    "    values, columns, starts, scale = m\n"
    "    return np.add.reduceat(values * x[columns], starts) * scale\n"
    "def norm(x):\n"
    "    return x / np.sqrt(np.mean(x * x) + f32(1e-5))\n"
    "def rotate(x):\n"
    "    half = dim // 2\n"
    "    angle = past * 10000.0 ** (-np.arange(half) / half)\n"
    "    c, s = np.cos(angle).astype(f32), np.sin(angle).astype(f32)\n"
    "    a, b = x[:, :half], x[:, half:]\n"
    "    return np.concatenate((a * c - b * s, a * s + b * c), 1)\n"
    "q, k, v = (matrix(n * dim, hidden) for n in (heads, kv, kv))\n"
    "o, gate, up, down = (matrix(*s) for s in ((hidden, heads * dim), (inter, hidden),\n"
    "                                          (inter, hidden), (hidden, inter)))\n"
    "keys, vals = (rng.standard_normal((kv, past + 1, dim), dtype=f32) for _ in range(2))\n"
    "def layer(x):\n"
    "    n = norm(x)\n"
    "    query = rotate(product(q, n).reshape(heads, dim))\n"
    "    keys[:, past] = rotate(product(k, n).reshape(kv, dim))\n"
    "    vals[:, past] = product(v, n).reshape(kv, dim)\n"
    "    scores = np.einsum('kgd,kpd->kgp', query.reshape(kv, -1, dim), keys) / f32(dim ** 0.5)\n"
    "    p = np.exp(scores - scores.max(-1, keepdims=True))\n"
    "    p /= p.sum(-1, keepdims=True)\n"
    "    x = x + product(o, np.einsum('kgp,kpd->kgd', p, vals).reshape(-1))\n"
    "    n = norm(x)\n"
    "    g = product(gate, n)\n"
    "    return x + product(down, g / (1 + np.exp(-g)) * product(up, n))\n"
    "x, best = rng.standard_normal(hidden, dtype=f32), 1e9\n"
    "for _ in range(4):\n"
    "    start = time.perf_counter()\n"
    "    y = layer(x)\n"
    "    best = min(best, time.perf_counter() - start)\n"
    "assert np.isfinite(y).all()\n"
    "print(best)\n";

#define MISSING 3 /* what the script exits with */

static pdvm_status read_all(int fd, char *text, size_t size) {
    size_t n = 0;
    while (n + 1 < size) {
        ssize_t got = read(fd, text + n, size - 1 - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        n += (size_t)got;
    }
    text[n] = '\0';
    return n ? PDVM_OK : PDVM_ERR_IO;
}

pdvm_status numpy_layer_seconds(const pdvm_model_info *shape, double sparsity, double *seconds,
                                pdvm_error *err) {
    char numbers[6][24], text[64] = "", *end;
    char *const arguments[] = {(char *)(uintptr_t) "python3",
                               (char *)(uintptr_t) "-c",
                               (char *)(uintptr_t)script,
                               numbers[0],
                               numbers[1],
                               numbers[2],
                               numbers[3],
                               numbers[4],
                               numbers[5],
                               NULL};
    const uint32_t sizes[5] = {shape->hidden_size, shape->intermediate_size, shape->n_heads,
                               shape->n_kv_heads, shape->head_dim};
    posix_spawn_file_actions_t actions;
    int fds[2], state = 0;
    pid_t child;
    for (int i = 0; i < 5; i++) snprintf(numbers[i], sizeof numbers[i], "%u", sizes[i]);
    snprintf(numbers[5], sizeof numbers[5], "%.6f", sparsity);
    if (pipe(fds) != 0) return pd_fail(err, PDVM_ERR_IO, "no pipe to python3: %s", strerror(errno));
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, fds[0]);
    int failed = posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    pdvm_status status = failed ? PDVM_ERR_IO : read_all(fds[0], text, sizeof text);
    close(fds[0]);
    if (!failed && waitpid(child, &state, 0) != child) status = PDVM_ERR_IO;
    if (failed ||
        (WIFEXITED(state) && (WEXITSTATUS(state) == MISSING || WEXITSTATUS(state) == 127)))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "there is no python3 with NumPy");
    *seconds = strtod(text, &end);
    if (status != PDVM_OK || state != 0 || end == text || !(*seconds > 0))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "python3 could not run the layer");
    return PDVM_OK;
}
