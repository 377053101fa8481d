// Fuzz target: any bytes as a GGUF file. What opens must hold together: every key and tensor inside
// the file, found by its name, its rows readable. Then its metadata is made into the texts of a
// Hugging Face model; what comes out must be accepted or refused by their parsers.

#include "io/gguf_set.h"
#include "model/config.h"
#include "model/gguf_metadata.h"
#include "model/tokenizer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// A tokenizer that opens may be slow to open again and again.
#define MOST_TOKENIZER_BYTES 20000

static void touch_values(const struct gguf *g, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < gguf_value_count(g); i++) {
        const struct gguf_value *v = gguf_value_at(g, i);
        if (gguf_value_find(g, v->key) != v || !gguf_value_kind(v)) abort();
        if (v->data < data || v->size > size || v->data > data + size - v->size) abort();
        if (v->type != GGUF_VALUE_STRING) continue;
        size_t at = 0, len, sum = 0;
        for (uint64_t k = 0; k < v->n; k++) {
            const char *s = gguf_next_string(v, &at, &len);
            for (size_t c = 0; c < len; c++) sum += (unsigned char)s[c];
        }
        if (at != v->size || sum > 255 * size) abort();
    }
}

static void touch_tensors(const struct gguf_set *set, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < set->n_entries; i++) {
        const struct gguf_tensor *t = set->entries[i].tensor;
        float out[GGUF_MAX_BLOCK];
        if (gguf_set_find(set, t->name) != &set->entries[i]) abort();
        if (t->data < data || t->size > size || t->data > data + size - t->size) abort();
        const struct gguf_type_info *type = gguf_type_info(t->type);
        size_t blocks = t->size / type->bytes;
        if (t->size % type->bytes != 0 || blocks == 0) abort();
        if (gguf_dequantize(t->type, t->data, 1, out) != type->readable) abort();
        gguf_dequantize(t->type, t->data + (blocks - 1) * type->bytes, 1, out);
    }
}

static void make_texts(const struct gguf_set *set) {
    struct gguf_texts texts = {0};
    struct model_config config;
    struct tokenizer *tokenizer;
    pdvm_error err = {0};
    if (gguf_make_config(set, &texts.config, &err) == PDVM_OK) {
        if (model_config_parse("config", texts.config, strlen(texts.config), &config, &err) !=
                PDVM_OK &&
            err.message[0] == 0)
            abort();
    } else if (err.message[0] == 0) {
        abort();
    }
    gguf_make_side_files(set, &texts, &err);
    if (gguf_make_tokenizer(set, &texts.tokenizer, &err) == PDVM_OK && texts.tokenizer &&
        strlen(texts.tokenizer) < MOST_TOKENIZER_BYTES) {
        if (tokenizer_open("tokenizer", texts.tokenizer, strlen(texts.tokenizer), &tokenizer,
                           &err) == PDVM_OK)
            tokenizer_free(tokenizer);
    }
    gguf_texts_clear(&texts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gguf_set set;
    pdvm_error err = {0};
    if (gguf_set_open_memory("fuzz", data, size, &set, &err) != PDVM_OK) {
        if (err.message[0] == 0) abort();
        return 0;
    }
    touch_values(set.files[0], data, size);
    touch_tensors(&set, data, size);
    make_texts(&set);
    gguf_set_close(&set);
    return 0;
}
