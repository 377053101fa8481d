// Fuzz target: any bytes as a file of saved logits. What opens must give finite predictions.

#include "eval/logits_file.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct logits_file *f;
    pdvm_error err;
    if (logits_file_open_memory("fuzz", data, size, &f, &err) != PDVM_OK) {
        if (err.message[0] == 0) abort();
        return 0;
    }
    uint64_t n = logits_file_count(f);
    uint32_t n_vocab = logits_file_vocab(f);
    if (n > size / 2 / n_vocab) abort();
    double *x = malloc(n_vocab * sizeof *x);
    for (uint64_t i = 0; x && i < n; i++) {
        logits_file_row(f, i, x);
        for (uint32_t c = 0; c < n_vocab; c++)
            if (!isfinite(x[c]) || x[c] > 0) abort();
    }
    free(x);
    const int32_t tokens[2] = {0, 0};
    const struct perplexity_options options = {.n_ctx = 2, .stride = 1};
    struct logits_key key = logits_key_of("a", 1, tokens, 2, n_vocab, &options);
    if (logits_file_check(f, &key, &err) != PDVM_OK && err.message[0] == 0) abort();
    if (!logits_file_model(f)) abort();
    logits_file_close(f);
    return 0;
}
