// The first byte is the length of a text; then that text, to be encoded with the rest, which is a
// SentencePiece model.

#include "base/utf8.h"
#include "model/tokenizer.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char CONFIG[] =
    "{\"add_eos_token\":true,\"added_tokens_decoder\":{\"70\":{\"content\":"
    "\"<|x|>\",\"special\":true,\"rstrip\":true}}}";

static void check(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "fuzz_sentencepiece: %s\n", what);
    abort();
}

static void run_text(const struct tokenizer *t, const char *text, size_t len) {
    bool valid = pd_utf8_check(text, len) == len;
    for (unsigned flags = 0; flags < 4; flags++) {
        struct token_list list = {0};
        pdvm_error err;
        pdvm_status status = tokenizer_encode(t, text, len, flags, &list, &err);
        check(status == (valid ? PDVM_OK : PDVM_ERR_ARGUMENT), "validity of the text");
        for (size_t i = 0; i < list.n; i++) {
            size_t n;
            check(tokenizer_bytes(t, list.ids[i], true, &n) != NULL, "a token without a piece");
        }
        char *decoded;
        size_t n;
        check(tokenizer_decode(t, list.ids, list.n, flags, &decoded, &n, &err) == PDVM_OK,
              "a text that cannot be decoded");
        free(decoded);
        free(list.ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0 || data[0] > size - 1) return 0;
    const char *text = (const char *)data + 1;
    size_t len = data[0];
    for (int i = 0; i < 2; i++) {
        struct tokenizer *t = NULL;
        pdvm_error err;
        pdvm_status status =
            tokenizer_open_sentencepiece("fuzz.model", text + len, size - 1 - len,
                                         i ? CONFIG : NULL, i ? sizeof CONFIG - 1 : 0, &t, &err);
        if (status == PDVM_OK) {
            run_text(t, text, len);
            tokenizer_free(t);
        } else {
            check(t == NULL && err.message[0] != 0, "a failure without a message");
        }
    }
    return 0;
}
