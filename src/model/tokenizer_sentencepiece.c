#include "base/alloc.h"
#include "base/utf8.h"
#include "io/json.h"
#include "model/sentencepiece.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* Longest piece that is taken apart, bytes: each takes time and memory by its length. */
#define MAX_MERGED 256

struct builder {
    struct tokenizer *t;
    const char *path;
    const struct sentencepiece_model *m;
    const json_t *config; /* tokenizer_config.json, or NULL */
    json_t *added;        /* the list that a tokenizer.json would have */
    pdvm_error *err;
};

/* ---- merges ---------------------------------------------------------------------------------- */

struct scored {
    float score;
    uint32_t id;
};

static int compare_scored(const void *a, const void *b) {
    const struct scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* Adds the merges that make a piece: every cut into two pieces. NULL `count`: really. */
static pdvm_status add_cuts(struct builder *b, uint32_t id, uint32_t rank, size_t *count) {
    const struct sentencepiece *p = &b->m->pieces[id];
    uint32_t c;
    size_t at = 0;
    while (at < p->len) {
        size_t begin = at;
        int length = pd_utf8_decode(p->text + at, p->len - at, &c);
        at += length > 0 ? (size_t)length : 1;
        if (begin == 0 && at == p->len) return PDVM_OK;
        // SentencePiece merges characters that are no pieces too; then this would need their ids.
        if (count && tokenizer_index_find(b->t, false, p->text + begin, at - begin, "", 0) < 0)
            return pd_fail(b->err, PDVM_ERR_UNSUPPORTED,
                           "%s: pieces[%u] \"%.*s\": its character at byte %zu is no piece",
                           b->path, (unsigned)id, tokenizer_quote_len(p->text, p->len), p->text,
                           begin);
        if (at == p->len) break;
        int32_t left = tokenizer_find_vocab(b->t, p->text, at, "", 0);
        int32_t right = tokenizer_find_vocab(b->t, p->text + at, p->len - at, "", 0);
        if (left < 0 || right < 0) continue;
        if (count) {
            ++*count;
        } else {
            PD_TRY(tokenizer_merges_add(&b->t->merges, (uint32_t)left, (uint32_t)right, rank, id,
                                        b->err));
        }
    }
    return PDVM_OK;
}

/*
 * SentencePiece joins the neighbours whose joined piece has the best score, the leftmost among
 * equals; so pieces of one score share a rank.
 */
static pdvm_status add_merges(struct builder *b, const struct scored *order, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) PD_TRY(add_cuts(b, order[i].id, 0, &count));
    PD_TRY(tokenizer_merges_init(&b->t->merges, count, b->err));
    uint32_t rank = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && order[i].score != order[i - 1].score) rank++;
        PD_TRY(add_cuts(b, order[i].id, rank, NULL));
    }
    return PDVM_OK;
}

static pdvm_status load_merges(struct builder *b) {
    struct scored *order;
    size_t n = 0;
    PD_TRY(pd_calloc(&order, b->m->n_pieces, sizeof *order, "the tokenizer's merges", b->err));
    for (uint32_t id = 0; id < b->m->n_pieces; id++) {
        const struct sentencepiece *p = &b->m->pieces[id];
        if (p->type == SENTENCEPIECE_NORMAL) order[n++] = (struct scored){p->score, id};
    }
    qsort(order, n, sizeof *order, compare_scored);
    pdvm_status status = add_merges(b, order, n);
    free(order);
    return status;
}

/* ---- pieces and added tokens ----------------------------------------------------------------- */

static pdvm_status load_pieces(struct builder *b) {
    static const uint32_t FLAGS[] = {
        [SENTENCEPIECE_NORMAL] = TOKENIZER_VOCAB, [SENTENCEPIECE_BYTE] = TOKENIZER_BYTE};
    for (uint32_t id = 0; id < b->m->n_pieces; id++) {
        const struct sentencepiece *p = &b->m->pieces[id];
        // The others are added tokens.
        if (p->type != SENTENCEPIECE_NORMAL && p->type != SENTENCEPIECE_BYTE) continue;
        if (p->len > MAX_MERGED)
            return pd_fail(b->err, PDVM_ERR_UNSUPPORTED,
                           "%s: pieces[%u].piece has %u bytes; the limit is %d", b->path,
                           (unsigned)id, (unsigned)p->len, MAX_MERGED);
        if (tokenizer_index_find(b->t, false, p->text, p->len, "", 0) >= 0)
            return pd_fail(b->err, PDVM_ERR_FORMAT, "%s: pieces[%u] \"%.*s\" occurs twice", b->path,
                           (unsigned)id, tokenizer_quote_len(p->text, p->len), p->text);
        PD_TRY(tokenizer_set_piece(b->t, id, p->text, p->len, b->err));
        b->t->pieces[id].flags = FLAGS[p->type];
        b->t->n_vocab += p->type == SENTENCEPIECE_NORMAL;
        PD_TRY(tokenizer_index_add(b->t, false, id, b->err));
    }
    return PDVM_OK;
}

static pdvm_status append(struct builder *b, json_t *item) {
    if (!item || json_array_append_new(b->added, item) != 0)
        return pd_fail_memory(b->err, sizeof *item, "added tokens");
    return PDVM_OK;
}

/* One entry of "added_tokens_decoder": its key is the id. */
static pdvm_status add_configured(struct builder *b, const char *key, const json_t *value,
                                  uint32_t largest) {
    static const char *const FLAGS[] = {"special", "lstrip", "rstrip", "single_word"};
    bool flags[4] = {false};
    const char *content;
    char *end;
    unsigned long id = strtoul(key, &end, 10);
    if (key[0] < '0' || key[0] > '9' || *end != 0 || id > largest)
        return pd_fail(b->err, PDVM_ERR_FORMAT,
                       "tokenizer_config.json: added_tokens_decoder: \"%.40s\" is not an id up to "
                       "%u",
                       key, (unsigned)largest);
    if (!json_is_object(value))
        return pd_fail(b->err, PDVM_ERR_FORMAT,
                       "tokenizer_config.json: added_tokens_decoder.%lu is %s; expected an object",
                       id, pd_json_kind(value));
    PD_TRY(pd_json_string("tokenizer_config.json", value, "content", true, &content, b->err));
    for (int i = 0; i < 4; i++)
        PD_TRY(pd_json_bool("tokenizer_config.json", value, FLAGS[i], false, &flags[i], b->err));
    if (id >= b->t->n_pieces) b->t->n_pieces = (uint32_t)id + 1;
    // Whatever it says about normalising, these are looked for in the text as it is.
    return append(b, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id,
                               "content", content, "special", flags[0], "lstrip", flags[1],
                               "rstrip", flags[2], "single_word", flags[3], "normalized", 0));
}

/* Lists what is cut out of a text. User-defined symbols are looked for in the normalised text. */
static pdvm_status list_added(struct builder *b, uint8_t *configured) {
    uint32_t n = b->m->n_pieces, largest = 4 * n + 65536;
    if (largest >= TOKENIZER_MAX_ID) largest = TOKENIZER_MAX_ID - 1;
    json_t *decoder = NULL, *value;
    const char *key;
    PD_TRY(pd_json_object("tokenizer_config.json", b->config, "added_tokens_decoder", false,
                          &decoder, b->err));
    json_object_foreach(decoder, key, value) {
        PD_TRY(add_configured(b, key, value, largest));
        unsigned long id = strtoul(key, NULL, 10);
        if (id < n) configured[id] = 1;
    }
    for (uint32_t id = 0; id < n; id++) {
        const struct sentencepiece *p = &b->m->pieces[id];
        if (p->type == SENTENCEPIECE_NORMAL || p->type == SENTENCEPIECE_BYTE || configured[id])
            continue;
        if (memchr(p->text, 0, p->len))
            return pd_fail(b->err, PDVM_ERR_UNSUPPORTED, "%s: pieces[%u].piece has a zero byte",
                           b->path, (unsigned)id);
        bool special = p->type != SENTENCEPIECE_USER_DEFINED;
        PD_TRY(append(b, json_pack("{s:I, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id,
                                   "content", json_stringn(p->text, p->len), "special",
                                   (int)special, "lstrip", 0, "rstrip", 0, "single_word", 0,
                                   "normalized", (int)!special)));
    }
    return PDVM_OK;
}

/* ---- the rest -------------------------------------------------------------------------------- */

/* What the reference's own conversion of such a model to a tokenizer.json has. */
static pdvm_status load_steps(struct builder *b) {
    bool legacy = true;
    PD_TRY(pd_json_bool("tokenizer_config.json", b->config, "legacy", false, &legacy, b->err));
    json_t *root = json_pack(
        "{s:{s:s, s:[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}, {s:s, s:s, s:i, s:i}]}}", "decoder", "type",
        "Sequence", "decoders", "type", "Replace", "pattern", "String", TOKENIZER_METASPACE,
        "content", " ", "type", "ByteFallback", "type", "Fuse", "type", "Strip", "content", " ",
        "start", b->m->add_dummy_prefix ? 1 : 0, "stop", 0);
    bool first = !legacy && b->m->add_dummy_prefix;
    json_t *replace = json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", " ",
                                "content", TOKENIZER_METASPACE);
    json_t *normalizers = json_array();
    bool built = root && replace && normalizers;
    if (built && legacy && b->m->add_dummy_prefix)
        built = json_array_append_new(normalizers, json_pack("{s:s, s:s}", "type", "Prepend",
                                                             "prepend", TOKENIZER_METASPACE)) == 0;
    if (built && first)
        built = json_object_set_new(root, "pre_tokenizer",
                                    json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace",
                                              "replacement", TOKENIZER_METASPACE, "prepend_scheme",
                                              "first", "split", 0)) == 0;
    if (built && !first) built = json_array_append(normalizers, replace) == 0;
    if (built)
        built = json_object_set_new(
                    root, "normalizer",
                    json_pack("{s:s, s:O}", "type", "Sequence", "normalizers", normalizers)) == 0;
    pdvm_status status = built ? tokenizer_load_steps(b->t, b->path, root, b->err)
                               : pd_fail_memory(b->err, 4096, "a tokenizer");
    json_decref(replace);
    json_decref(normalizers);
    json_decref(root);
    return status;
}

/* The id of "bos_token" or "eos_token": as configured, or as the model says; -1: none. */
static pdvm_status special_id(const struct builder *b, const char *field, int64_t id,
                              int32_t *out) {
    const json_t *value = b->config ? json_object_get(b->config, field) : NULL;
    if (json_is_object(value)) value = json_object_get(value, "content");
    const char *content = json_string_value(value);
    *out = -1;
    if (content) {
        *out = tokenizer_find(b->t, content, strlen(content));
        if (*out >= 0) return PDVM_OK;
        return pd_fail(b->err, PDVM_ERR_FORMAT,
                       "tokenizer_config.json: %s \"%.60s\" is not a piece of %s", field, content,
                       b->path);
    }
    if (id >= 0 && id < b->m->n_pieces && b->m->pieces[id].type == SENTENCEPIECE_CONTROL)
        *out = (int32_t)id;
    return PDVM_OK;
}

static pdvm_status load_ends(struct builder *b) {
    static const char *const ADD[] = {"add_bos_token", "add_eos_token"};
    static const char *const NAME[] = {"bos_token", "eos_token"};
    const int64_t ids[] = {b->m->bos_id, b->m->eos_id};
    struct tokenizer_ids *lists[] = {&b->t->before, &b->t->after};
    for (int i = 0; i < 2; i++) {
        bool add = i == 0;
        int32_t id;
        PD_TRY(pd_json_bool("tokenizer_config.json", b->config, ADD[i], false, &add, b->err));
        if (!add) continue;
        PD_TRY(special_id(b, NAME[i], ids[i], &id));
        if (id < 0) continue;
        PD_TRY(pd_calloc(&lists[i]->ids, 1, sizeof *lists[i]->ids, "special tokens", b->err));
        lists[i]->ids[0] = id;
        lists[i]->n = lists[i]->capacity = 1;
    }
    return PDVM_OK;
}

static pdvm_status build(struct builder *b) {
    struct tokenizer *t = b->t;
    uint8_t *configured;
    t->n_pieces = b->m->n_pieces;
    PD_TRY(pd_calloc(&configured, t->n_pieces, 1, "added tokens", b->err));
    pdvm_status status = list_added(b, configured);
    free(configured);
    if (status != PDVM_OK) return status;
    PD_TRY(pd_calloc(&t->pieces, t->n_pieces, sizeof *t->pieces, "the vocabulary", b->err));
    PD_TRY(
        tokenizer_index_init(&t->by_content, b->m->n_pieces + json_array_size(b->added), b->err));
    t->unk_id = (int32_t)b->m->unk_id;
    t->fuse_unk = true;
    t->byte_fallback = b->m->byte_fallback;
    PD_TRY(load_pieces(b));
    PD_TRY(tokenizer_load_added_pieces(t, b->path, b->added, b->err));
    PD_TRY(load_merges(b));
    PD_TRY(load_steps(b));
    PD_TRY(tokenizer_load_bytes(t, b->path, b->err));
    PD_TRY(load_ends(b));
    json_t *root = json_pack("{s:O}", "added_tokens", b->added);
    if (!root) return pd_fail_memory(b->err, sizeof *root, "added tokens");
    t->raw_patterns = true;
    status = tokenizer_load_added(t, b->path, root, b->err);
    json_decref(root);
    return status;
}

pdvm_status tokenizer_open_sentencepiece(const char *path, const char *data, size_t size,
                                         const char *config, size_t config_size,
                                         struct tokenizer **out, pdvm_error *err) {
    struct sentencepiece_model model;
    json_t *root = NULL;
    *out = NULL;
    PD_TRY(sentencepiece_read(path, data, size, &model, err));
    struct builder b = {.path = path, .m = &model, .err = err};
    pdvm_status status = PDVM_OK;
    if (config)
        status = pd_json_parse_object("tokenizer_config.json", config, config_size, &root, err);
    if (status == PDVM_OK && !(b.added = json_array()))
        status = pd_fail_memory(err, sizeof *b.added, "added tokens");
    if (status == PDVM_OK) status = pd_calloc(&b.t, 1, sizeof *b.t, "a tokenizer", err);
    b.config = root;
    if (status == PDVM_OK) status = build(&b);
    json_decref(b.added);
    json_decref(root);
    sentencepiece_free(&model);
    if (status != PDVM_OK) {
        tokenizer_free(b.t);
        return status;
    }
    *out = b.t;
    return PDVM_OK;
}
