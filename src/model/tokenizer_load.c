#include "base/alloc.h"
#include "io/json.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* Ids without a piece are allowed, but their memory must stay in proportion to the file. */
static uint32_t largest_allowed_id(size_t n_pieces) {
    size_t limit = 4 * n_pieces + 65536;
    return limit < TOKENIZER_MAX_ID ? (uint32_t)limit : TOKENIZER_MAX_ID - 1;
}

static pdvm_status check_id(const char *path, const char *field, const char *name, size_t name_len,
                            const json_t *value, uint32_t largest, uint32_t *id, pdvm_error *err) {
    int quote = tokenizer_quote_len(name, name_len);
    if (!json_is_integer(value))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: %s: the id of \"%.*s\" is %s; expected a whole number", path, field,
                       quote, name, pd_json_kind(value));
    json_int_t v = json_integer_value(value);
    if (v < 0 || v > (json_int_t)largest)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: %s: the id of \"%.*s\" is %lld; expected 0 to %u",
                       path, field, quote, name, (long long)v, (unsigned)largest);
    *id = (uint32_t)v;
    return PDVM_OK;
}

pdvm_status tokenizer_set_piece(struct tokenizer *t, uint32_t id, const char *s, size_t len,
                                pdvm_error *err) {
    struct tokenizer_piece *p = &t->pieces[id];
    size_t at = t->text.n;
    // tokenizer_load_bytes adds at most as much once more.
    if (len > UINT32_MAX / 4 || at > UINT32_MAX / 2 - len)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "the pieces have more than 2 GiB of text");
    // One byte at least, so that pieces without text have a place, too.
    PD_TRY(pd_grow(&t->text.data, &t->text.capacity, at + len + 1, 1, "the vocabulary", err));
    PD_TRY(tokenizer_buffer_add(&t->text, s, len, err));
    p->content = p->bytes = (uint32_t)at;
    p->content_len = p->bytes_len = (uint32_t)len;
    return PDVM_OK;
}

static pdvm_status load_vocab(struct tokenizer *t, const char *path, const json_t *vocab,
                              uint32_t largest, pdvm_error *err) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)vocab, name, value) {
        size_t len = strlen(name);
        uint32_t id;
        PD_TRY(check_id(path, "model.vocab", name, len, value, largest, &id, err));
        if (t->pieces[id].flags != 0)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: model.vocab: id %u belongs to \"%.*s\" and to another piece", path,
                           (unsigned)id, tokenizer_quote_len(name, len), name);
        PD_TRY(tokenizer_set_piece(t, id, name, len, err));
        t->pieces[id].flags = TOKENIZER_VOCAB;
        PD_TRY(tokenizer_index_add(t, false, id, err));
    }
    return PDVM_OK;
}

int32_t tokenizer_find_vocab(const struct tokenizer *t, const char *a, size_t a_len, const char *b,
                             size_t b_len) {
    int32_t id = tokenizer_index_find(t, false, a, a_len, b, b_len);
    return id >= 0 && (t->pieces[id].flags & TOKENIZER_VOCAB) ? id : -1;
}

struct halves {
    const char *a, *b;
    size_t a_len, b_len;
};

static bool are_pieces(const struct tokenizer *t, const struct halves *h) {
    return tokenizer_find_vocab(t, h->a, h->a_len, "", 0) >= 0 &&
           tokenizer_find_vocab(t, h->b, h->b_len, "", 0) >= 0 &&
           tokenizer_find_vocab(t, h->a, h->a_len, h->b, h->b_len) >= 0;
}

/*
 * The two halves of a merge: "a b" or ["a", "b"]. Where pieces contain spaces, the first kind is
 * taken apart at the one space that leaves three pieces.
 */
static bool merge_halves(const struct tokenizer *t, const json_t *value, struct halves *out) {
    if (json_is_string(value)) {
        const char *s = json_string_value(value), *end = s + json_string_length(value);
        int n_spaces = 0, n_found = 0;
        struct halves h = {.a = s}, found = {0};
        for (const char *p = s; (p = memchr(p, ' ', (size_t)(end - p))); p++) {
            // Longer runs would take quadratic time.
            if (++n_spaces > 64) return false;
            h.a_len = (size_t)(p - s);
            h.b = p + 1;
            h.b_len = (size_t)(end - h.b);
            if (are_pieces(t, &h)) {
                found = h;
                n_found++;
            }
        }
        // The caller says which half of a plain merge is missing.
        *out = n_spaces == 1 ? h : found;
        return n_spaces == 1 || n_found == 1;
    }
    if (!json_is_array(value) || json_array_size(value) != 2) return false;
    const json_t *first = json_array_get(value, 0), *second = json_array_get(value, 1);
    if (!json_is_string(first) || !json_is_string(second)) return false;
    *out = (struct halves){json_string_value(first), json_string_value(second),
                           json_string_length(first), json_string_length(second)};
    return true;
}

static pdvm_status load_merges(struct tokenizer *t, const char *path, const json_t *merges,
                               pdvm_error *err) {
    size_t n = json_array_size(merges);
    PD_TRY(tokenizer_merges_init(&t->merges, n, err));
    uint32_t rank = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(merges, i);
        struct halves h;
        // The first line of a merges.txt; the reference skips it wherever it stands.
        if (json_is_string(value) && strncmp(json_string_value(value), "#version", 8) == 0)
            continue;
        if (!merge_halves(t, value, &h))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: model.merges[%zu] is neither \"a b\" nor [\"a\", \"b\"]", path, i);
        int32_t left = tokenizer_find_vocab(t, h.a, h.a_len, "", 0);
        int32_t right = tokenizer_find_vocab(t, h.b, h.b_len, "", 0);
        int32_t id = tokenizer_find_vocab(t, h.a, h.a_len, h.b, h.b_len);
        if (left < 0 || right < 0 || id < 0)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: model.merges[%zu]: \"%.*s\" + \"%.*s\": %s not in model.vocab",
                           path, i, tokenizer_quote_len(h.a, h.a_len), h.a,
                           tokenizer_quote_len(h.b, h.b_len), h.b,
                           left < 0    ? "the first half is"
                           : right < 0 ? "the second half is"
                                       : "the result is");
        PD_TRY(tokenizer_merges_add(&t->merges, (uint32_t)left, (uint32_t)right, rank++,
                                    (uint32_t)id, err));
    }
    return PDVM_OK;
}

static pdvm_status check_options(struct tokenizer *t, const char *path, const json_t *model,
                                 pdvm_error *err) {
    static const char *const AFFIXES[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *affix = "";
        PD_TRY(pd_json_string(path, model, AFFIXES[i], false, &affix, err));
        if (affix[0] != 0)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: model.%s is \"%.60s\"; this version only knows tokenizers "
                           "without one",
                           path, AFFIXES[i], affix);
    }
    PD_TRY(pd_json_bool(path, model, "byte_fallback", false, &t->byte_fallback, err));
    double dropout = 0;
    PD_TRY(pd_json_number(path, model, "dropout", false, &dropout, err));
    if (dropout != 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: model.dropout is %g, which makes ids random; set it to null", path,
                       dropout);
    PD_TRY(pd_json_bool(path, model, "fuse_unk", false, &t->fuse_unk, err));
    return pd_json_bool(path, model, "ignore_merges", false, &t->ignore_merges, err);
}

/* One past the largest id of the vocabulary and the added tokens. */
static pdvm_status count_ids(const char *path, const json_t *vocab, const json_t *added,
                             uint32_t largest, uint32_t *n_ids, pdvm_error *err) {
    const char *name;
    json_t *value;
    uint32_t id;
    *n_ids = 0;
    json_object_foreach((json_t *)vocab, name, value) {
        PD_TRY(check_id(path, "model.vocab", name, strlen(name), value, largest, &id, err));
        if (id >= *n_ids) *n_ids = id + 1;
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        json_t *item = json_array_get(added, i);
        const char *content;
        PD_TRY(pd_json_string(path, item, "content", true, &content, err));
        PD_TRY(check_id(path, "added_tokens", content, strlen(content), json_object_get(item, "id"),
                        largest, &id, err));
        if (id >= *n_ids) *n_ids = id + 1;
    }
    return PDVM_OK;
}

pdvm_status tokenizer_load_added_pieces(struct tokenizer *t, const char *path, const json_t *added,
                                        pdvm_error *err) {
    for (size_t i = 0; i < json_array_size(added); i++) {
        json_t *item = json_array_get(added, i);
        const char *content = json_string_value(json_object_get(item, "content"));
        size_t len = strlen(content);
        uint32_t id = (uint32_t)json_integer_value(json_object_get(item, "id"));
        bool special;
        PD_TRY(pd_json_bool(path, item, "special", true, &special, err));
        if (len == 0 || len > TOKENIZER_MAX_ADDED)
            return pd_fail(err, len == 0 ? PDVM_ERR_FORMAT : PDVM_ERR_UNSUPPORTED,
                           "%s: added_tokens[%zu] has %zu bytes; expected 1 to %d", path, i, len,
                           TOKENIZER_MAX_ADDED);
        int32_t known = tokenizer_index_find(t, false, content, len, "", 0);
        if ((known >= 0 && (uint32_t)known != id) || (known < 0 && t->pieces[id].flags != 0) ||
            (t->pieces[id].flags & TOKENIZER_ADDED))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: added_tokens[%zu]: \"%.*s\" or its id %u occurs twice", path, i,
                           tokenizer_quote_len(content, len), content, (unsigned)id);
        PD_TRY(tokenizer_set_piece(t, id, content, len, err));
        if (known < 0) PD_TRY(tokenizer_index_add(t, false, id, err));
        t->pieces[id].flags |= TOKENIZER_ADDED | (special ? TOKENIZER_SPECIAL : 0u);
    }
    return PDVM_OK;
}

pdvm_status tokenizer_load_model(struct tokenizer *t, const char *path, const json_t *root,
                                 pdvm_error *err) {
    const char *version = NULL, *type = "BPE";
    PD_TRY(pd_json_string(path, root, "version", false, &version, err));
    if (version && strcmp(version, "1.0") != 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: version is \"%.60s\"; expected \"1.0\"",
                       path, version);
    json_t *model, *vocab, *merges, *added = NULL;
    PD_TRY(pd_json_object(path, root, "model", true, &model, err));
    // Old files of BPE models have no type.
    PD_TRY(pd_json_string(path, model, "type", false, &type, err));
    if (strcmp(type, "BPE") != 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: model is of type \"%.60s\"; this version only knows BPE", path, type);
    PD_TRY(check_options(t, path, model, err));
    PD_TRY(pd_json_object(path, model, "vocab", true, &vocab, err));
    PD_TRY(pd_json_array(path, model, "merges", true, &merges, err));
    PD_TRY(pd_json_array(path, root, "added_tokens", false, &added, err));
    size_t n_pieces = json_object_size(vocab) + json_array_size(added);
    if (json_object_size(vocab) == 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: model.vocab is empty", path);
    uint32_t largest = largest_allowed_id(n_pieces);
    PD_TRY(count_ids(path, vocab, added, largest, &t->n_pieces, err));
    PD_TRY(pd_calloc(&t->pieces, t->n_pieces, sizeof *t->pieces, "the vocabulary", err));
    PD_TRY(tokenizer_index_init(&t->by_content, n_pieces, err));
    t->n_vocab = json_object_size(vocab);
    PD_TRY(load_vocab(t, path, vocab, largest, err));
    PD_TRY(load_merges(t, path, merges, err));
    // That it is in the vocabulary matters only if it can come up: tokenizer_load_bytes looks.
    const char *unk = NULL;
    PD_TRY(pd_json_string(path, model, "unk_token", false, &unk, err));
    if (unk) t->unk_id = tokenizer_find_vocab(t, unk, strlen(unk), "", 0);
    t->unk_missing = unk && t->unk_id < 0;
    return tokenizer_load_added_pieces(t, path, added, err);
}

/* Appends the pattern of an added token that is looked for after normalising. */
static pdvm_status add_normalised(struct tokenizer *t, struct tokenizer_added *a,
                                  struct tokenizer_buffer *text, pdvm_error *err) {
    const struct tokenizer_piece *p = &t->pieces[a->id];
    const char *content = t->text.data + p->content, *normal = "";
    struct tokenizer_buffer work[2] = {{0}};
    struct tokenizer_matcher *matcher;
    size_t n = 0;
    PD_TRY(tokenizer_matcher_create(p->content_len, &matcher, err));
    pdvm_status status =
        tokenizer_normalise(t, matcher, content, p->content_len, work, &normal, &n, err);
    if (status == PDVM_OK && (n == 0 || n > 4 * TOKENIZER_MAX_ADDED))
        status = pd_fail(err, PDVM_ERR_UNSUPPORTED, "\"%.*s\" has %zu bytes when normalised",
                         tokenizer_quote_len(content, p->content_len), content, n);
    size_t at = text->n;
    if (status == PDVM_OK) status = tokenizer_buffer_add(text, normal, n, err);
    a->len = (uint32_t)n;
    // Special tokens are shown by their names.
    if (status == PDVM_OK && !t->byte_level && !a->special)
        status = tokenizer_set_normalised(t, a->id, text->data + at, n, err);
    tokenizer_matcher_free(matcher);
    for (int i = 0; i < 2; i++) free(work[i].data);
    return status;
}

static pdvm_status load_added_item(struct tokenizer *t, const char *path, const json_t *item,
                                   uint32_t order, struct tokenizer_buffer *text, pdvm_error *err) {
    bool normalized;
    PD_TRY(pd_json_bool(path, item, "normalized", true, &normalized, err));
    struct tokenizer_added_set *set = &t->added[normalized ? 1 : 0];
    struct tokenizer_added *a = &set->items[set->n];
    PD_TRY(pd_json_bool(path, item, "lstrip", true, &a->lstrip, err));
    PD_TRY(pd_json_bool(path, item, "rstrip", true, &a->rstrip, err));
    PD_TRY(pd_json_bool(path, item, "single_word", true, &a->single_word, err));
    PD_TRY(pd_json_bool(path, item, "special", true, &a->special, err));
    a->id = (uint32_t)json_integer_value(json_object_get(item, "id"));
    a->order = order + (a->special ? 0 : UINT32_MAX / 2);
    const struct tokenizer_piece *p = &t->pieces[a->id];
    const char *content = t->text.data + p->content;
    if (normalized && !t->raw_patterns) {
        pdvm_status status = add_normalised(t, a, text, err);
        if (status != PDVM_OK) return pd_prefix(err, status, "%s: added_tokens", path);
    } else {
        a->len = p->content_len;
        PD_TRY(tokenizer_buffer_add(text, content, a->len, err));
    }
    set->n++;
    return PDVM_OK;
}

pdvm_status tokenizer_load_added(struct tokenizer *t, const char *path, const json_t *root,
                                 pdvm_error *err) {
    json_t *added = NULL;
    PD_TRY(pd_json_array(path, root, "added_tokens", false, &added, err));
    size_t n = json_array_size(added);
    for (int i = 0; i < 2; i++)
        PD_TRY(pd_calloc(&t->added[i].items, n, sizeof *t->added[i].items, "added tokens", err));
    struct tokenizer_buffer text = {0};
    size_t *offsets = NULL;
    pdvm_status status = pd_calloc(&offsets, n, sizeof *offsets, "added tokens", err);
    for (size_t i = 0; status == PDVM_OK && i < n; i++) {
        offsets[i] = text.n;
        status = load_added_item(t, path, json_array_get(added, i), (uint32_t)i, &text, err);
    }
    t->added_text = text.data;
    for (int i = 0; status == PDVM_OK && i < 2; i++) {
        for (uint32_t j = 0; j < t->added[i].n; j++) {
            struct tokenizer_added *a = &t->added[i].items[j];
            a->pattern = t->added_text + offsets[a->order - (a->special ? 0 : UINT32_MAX / 2)];
        }
        tokenizer_added_prepare(&t->added[i]);
    }
    free(offsets);
    return status;
}
