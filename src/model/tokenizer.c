#include "model/tokenizer.h"

#include "base/alloc.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "io/json.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

pdvm_status tokenizer_buffer_add(struct tokenizer_buffer *b, const char *data, size_t len,
                                 pdvm_error *err) {
    PD_TRY(pd_grow(&b->data, &b->capacity, b->n + len, 1, "a text", err));
    if (len > 0) memcpy(b->data + b->n, data, len);
    b->n += len;
    return PDVM_OK;
}

int tokenizer_quote_len(const char *s, size_t len) {
    if (len <= 60) return (int)len;
    size_t end = 60;
    while (end > 0 && ((uint8_t)s[end] & 0xc0) == 0x80) end--;
    return (int)end;
}

static uint32_t hash_parts(const char *a, size_t a_len, const char *b, size_t b_len) {
    uint64_t h = pd_hash(pd_hash(PD_HASH_INIT, a, a_len), b, b_len);
    return (uint32_t)(h ^ h >> 32);
}

pdvm_status tokenizer_index_init(struct tokenizer_index *index, size_t n, pdvm_error *err) {
    size_t slots = 8;
    while (slots < 2 * n) slots *= 2;
    PD_TRY(pd_calloc(&index->ids, slots, sizeof *index->ids, "the vocabulary", err));
    PD_TRY(pd_calloc(&index->hashes, slots, sizeof *index->hashes, "the vocabulary", err));
    index->mask = slots - 1;
    return PDVM_OK;
}

static const char *piece_string(const struct tokenizer *t, bool by_bytes, uint32_t id,
                                size_t *len) {
    const struct tokenizer_piece *p = &t->pieces[id];
    *len = by_bytes ? p->bytes_len : p->content_len;
    return t->text.data + (by_bytes ? p->bytes : p->content);
}

int32_t tokenizer_index_find(const struct tokenizer *t, bool by_bytes, const char *a, size_t a_len,
                             const char *b, size_t b_len) {
    const struct tokenizer_index *index = by_bytes ? &t->by_bytes : &t->by_content;
    uint32_t hash = hash_parts(a, a_len, b, b_len);
    for (size_t i = hash & index->mask; index->ids[i] != 0; i = (i + 1) & index->mask) {
        if (index->hashes[i] != hash) continue;
        size_t len;
        const char *s = piece_string(t, by_bytes, index->ids[i] - 1, &len);
        if (len == a_len + b_len && memcmp(s, a, a_len) == 0 && memcmp(s + a_len, b, b_len) == 0)
            return (int32_t)(index->ids[i] - 1);
    }
    return -1;
}

pdvm_status tokenizer_index_add(struct tokenizer *t, bool by_bytes, uint32_t id, pdvm_error *err) {
    struct tokenizer_index *index = by_bytes ? &t->by_bytes : &t->by_content;
    size_t len;
    const char *s = piece_string(t, by_bytes, id, &len);
    uint32_t hash = hash_parts(s, len, "", 0);
    size_t i = hash & index->mask;
    for (int probes = 0; probes < TOKENIZER_MAX_PROBES; probes++, i = (i + 1) & index->mask) {
        if (index->ids[i] != 0) continue;
        index->ids[i] = id + 1;
        index->hashes[i] = hash;
        return PDVM_OK;
    }
    return pd_fail(err, PDVM_ERR_FORMAT, "the pieces collide in a hash table");
}

pdvm_status tokenizer_open(const char *path, const char *json, size_t size, struct tokenizer **out,
                           pdvm_error *err) {
    *out = NULL;
    json_t *root;
    PD_TRY(pd_json_parse_object(path, json, size, &root, err));
    struct tokenizer *t = NULL;
    pdvm_status status = pd_calloc(&t, 1, sizeof *t, "a tokenizer", err);
    if (status == PDVM_OK) {
        t->unk_id = -1;
        status = tokenizer_load_model(t, path, root, err);
        if (status == PDVM_OK) status = tokenizer_load_steps(t, path, root, err);
        if (status == PDVM_OK) status = tokenizer_load_bytes(t, path, err);
        if (status == PDVM_OK) status = tokenizer_load_added(t, path, root, err);
    }
    json_decref(root);
    if (status != PDVM_OK) {
        tokenizer_free(t);
        return status;
    }
    *out = t;
    return PDVM_OK;
}

static void free_normals(struct tokenizer_normal *normals, int n) {
    for (int i = 0; i < n; i++) {
        tokenizer_regex_free(normals[i].regex);
        free(normals[i].from);
        free(normals[i].to);
    }
}

void tokenizer_free(struct tokenizer *t) {
    if (!t) return;
    free_normals(t->normals, t->n_normals);
    free_normals(t->decoder.replace, t->decoder.n_replace);
    for (int i = 0; i < t->n_steps; i++) {
        tokenizer_regex_free(t->steps[i].regex);
        free(t->steps[i].string);
    }
    for (int i = 0; i < 2; i++) free(t->added[i].items);
    free(t->pieces);
    free(t->text.data);
    free(t->by_content.ids);
    free(t->by_content.hashes);
    free(t->by_bytes.ids);
    free(t->by_bytes.hashes);
    free(t->merges.slots);
    free(t->added_text);
    free(t->before.ids);
    free(t->after.ids);
    free(t);
}

uint32_t tokenizer_size(const struct tokenizer *t) {
    return t->n_pieces;
}

const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, bool with_special, size_t *len) {
    *len = 0;
    if (id < 0 || (uint32_t)id >= t->n_pieces || t->pieces[id].flags == 0) return NULL;
    const struct tokenizer_piece *p = &t->pieces[id];
    if (!(p->flags & TOKENIZER_SPECIAL) || with_special) *len = p->bytes_len;
    return t->text.data + p->bytes;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *content, size_t len) {
    return tokenizer_index_find(t, false, content, len, "", 0);
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id) {
    return id >= 0 && (uint32_t)id < t->n_pieces && (t->pieces[id].flags & TOKENIZER_SPECIAL) != 0;
}

pdvm_status tokenizer_emit(struct tokenizer_run *run, int32_t id) {
    struct token_list *out = run->out;
    if (out->n == out->capacity)
        PD_TRY(
            pd_grow(&out->ids, &out->capacity, out->n + 1, sizeof *out->ids, "tokens", run->err));
    out->ids[out->n++] = id;
    return PDVM_OK;
}

static pdvm_status on_normalised_part(struct tokenizer_run *run, int64_t id, const char *s,
                                      size_t n) {
    return id >= 0 ? tokenizer_emit(run, (int32_t)id) : tokenizer_split(run, 0, s, n);
}

static pdvm_status on_part(struct tokenizer_run *run, int64_t id, const char *s, size_t n) {
    if (id >= 0) return tokenizer_emit(run, (int32_t)id);
    bool first = s == run->text;
    PD_TRY(tokenizer_normalise(run->t, run->matcher, s, n, run->normalised, &s, &n, run->err));
    run->start = first ? s : NULL;
    return tokenizer_added_split(run, &run->t->added[1], s, n, on_normalised_part);
}

static pdvm_status encode(struct tokenizer_run *run, const char *text, size_t len, unsigned flags) {
    const struct tokenizer *t = run->t;
    PD_TRY(tokenizer_bpe_init(&run->bpe, len, run->err));
    PD_TRY(tokenizer_matcher_create(len, &run->matcher, run->err));
    bool add_special = (flags & PDVM_TOKENIZE_ADD_SPECIAL) != 0;
    for (size_t i = 0; add_special && i < t->before.n; i++)
        PD_TRY(tokenizer_emit(run, t->before.ids[i]));
    PD_TRY(tokenizer_added_split(run, &t->added[0], text, len, on_part));
    for (size_t i = 0; add_special && i < t->after.n; i++)
        PD_TRY(tokenizer_emit(run, t->after.ids[i]));
    return PDVM_OK;
}

pdvm_status tokenizer_encode(const struct tokenizer *t, const char *text, size_t len,
                             unsigned flags, struct token_list *out, pdvm_error *err) {
    const unsigned known = PDVM_TOKENIZE_ADD_SPECIAL | PDVM_TOKENIZE_PARSE_SPECIAL;
    if (flags & ~known)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "unknown flags 0x%x for tokenizing", flags & ~known);
    if (len > TOKENIZER_MAX_TEXT)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a text of %zu bytes is too long to be tokenized at once", len);
    size_t bad = pd_utf8_check(text, len);
    if (bad < len)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "the text is not valid UTF-8 at byte %zu (0x%02x)",
                       bad, (unsigned)(uint8_t)text[bad]);
    struct tokenizer_run run = {.t = t,
                                .out = out,
                                .err = err,
                                .text = text,
                                .parse_special = flags & PDVM_TOKENIZE_PARSE_SPECIAL};
    size_t old_n = out->n;
    pdvm_status status = encode(&run, text, len, flags);
    if (status != PDVM_OK) out->n = old_n;
    tokenizer_matcher_free(run.matcher);
    tokenizer_bpe_clear(&run.bpe);
    for (int i = 0; i < 2; i++) free(run.normalised[i].data);
    free(run.prefixed.data);
    return status;
}
