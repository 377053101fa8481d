// The first byte chooses. Even: the rest is a tokenizer.json, a zero byte, and a text to encode
// with it. Odd: the rest is a text for fixed good tokenizers, whose tokens must give it back.

#include "base/utf8.h"
#include "model/tokenizer.h"
#include "model/tokenizer_internal.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Longer texts say nothing new and let slow patterns eat the time. */
#define MAX_TEXT 512

static void check(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "fuzz_tokenizer: %s\n", what);
    abort();
}

/* The bytes of all tokens, in a new string. */
static char *join(const struct tokenizer *t, const struct token_list *list, size_t *len) {
    struct tokenizer_buffer text = {0};
    for (size_t i = 0; i < list->n; i++) {
        size_t n;
        const char *bytes = tokenizer_bytes(t, list->ids[i], true, &n);
        check(bytes != NULL, "a token without a piece");
        check(tokenizer_buffer_add(&text, bytes, n, NULL) == PDVM_OK, "memory");
    }
    *len = text.n;
    return text.data;
}

static void run_file(const char *data, size_t size) {
    const char *end = memchr(data, 0, size);
    size_t json_size = end ? (size_t)(end - data) : size;
    struct tokenizer *t;
    pdvm_error err;
    if (tokenizer_open("fuzz.json", data, json_size, &t, &err) != PDVM_OK) {
        check(err.status != PDVM_OK && err.message[0] != 0, "a failure without a message");
        return;
    }
    const char *text = end ? end + 1 : data;
    size_t len = end ? size - json_size - 1 : size;
    if (len > MAX_TEXT) len = MAX_TEXT;
    for (unsigned flags = 0; flags < 4; flags++) {
        struct token_list list = {0};
        if (tokenizer_encode(t, text, len, flags, &list, &err) == PDVM_OK) {
            size_t n;
            free(join(t, &list, &n));
        }
        free(list.ids);
    }
    tokenizer_free(t);
}

/* A tokenizer of all bytes and a few merges, with NFC or without. */
static struct tokenizer *make_good(bool nfc) {
    struct tokenizer_buffer json = {0};
    char entry[128];
    int n = snprintf(entry, sizeof entry, "{%s\"model\":{\"type\":\"BPE\",\"vocab\":{",
                     nfc ? "\"normalizer\":{\"type\":\"NFC\"}," : "");
    check(tokenizer_buffer_add(&json, entry, (size_t)n, NULL) == PDVM_OK, "memory");
    for (int byte = 0; byte < 256; byte++) {
        char c[4];
        int length = pd_utf8_encode(tokenizer_byte_char((uint8_t)byte), c);
        n = snprintf(entry, sizeof entry, "\"%s%.*s\":%d,", byte == '"' || byte == '\\' ? "\\" : "",
                     length, c, byte);
        check(tokenizer_buffer_add(&json, entry, (size_t)n, NULL) == PDVM_OK, "memory");
    }
    static const char TAIL[] =
        "\"aa\":256,\"aaaa\":257,\"\xc4\xa0"
        "a\":258,\"th\":259,\"the\":260,\"\xc4\xa0\xc4\xa0\":261},"
        "\"merges\":[\"a a\",\"aa aa\",\"\xc4\xa0 a\",\"t h\",\"th e\",\"\xc4\xa0 \xc4\xa0\"]},"
        "\"added_tokens\":[{\"id\":262,\"content\":\"<|x|>\",\"special\":true,\"lstrip\":false,"
        "\"rstrip\":false,\"single_word\":false,\"normalized\":false}],"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
        "\"decoder\":{\"type\":\"ByteLevel\"}}";
    check(tokenizer_buffer_add(&json, TAIL, sizeof TAIL - 1, NULL) == PDVM_OK, "memory");
    struct tokenizer *t;
    pdvm_error err;
    if (tokenizer_open("good.json", json.data, json.n, &t, &err) != PDVM_OK)
        check(false, err.message);
    free(json.data);
    return t;
}

static void run_text(const struct tokenizer *t, bool nfc, const char *text, size_t len) {
    bool valid = pd_utf8_check(text, len) == len;
    for (unsigned flags = 0; flags < 4; flags++) {
        struct token_list list = {0};
        pdvm_error err;
        pdvm_status status = tokenizer_encode(t, text, len, flags, &list, &err);
        check(status == (valid ? PDVM_OK : PDVM_ERR_ARGUMENT), "validity of the text");
        if (valid) {
            size_t n;
            char *joined = join(t, &list, &n);
            // A token that is cut out keeps what is beside it from composing across.
            if (nfc && !memmem(text, len, "<|x|>", 5)) {
                struct tokenizer_buffer expected = {0};
                check(tokenizer_form(text, len, TOKENIZER_NFC, &expected, NULL) == PDVM_OK,
                      "memory");
                check(n == expected.n && (n == 0 || memcmp(joined, expected.data, n) == 0),
                      "the tokens do not give the normalised text back");
                free(expected.data);
            } else if (!nfc) {
                check(n == len && (n == 0 || memcmp(joined, text, n) == 0),
                      "the tokens do not give the text back");
            }
            free(joined);
        }
        free(list.ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct tokenizer *good[2];
    if (!good[0]) {
        for (int i = 0; i < 2; i++) good[i] = make_good(i == 1);
    }
    if (size == 0) return 0;
    if (data[0] % 2 == 0) {
        run_file((const char *)data + 1, size - 1);
    } else {
        for (int i = 0; i < 2; i++) run_text(good[i], i == 1, (const char *)data + 1, size - 1);
    }
    return 0;
}
