#include "base/alloc.h"
#include "base/utf8.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- what pieces stand for ------------------------------------------------------------------- */

/* The bytes of a byte-level string; false if some character stands for no byte. */
static bool byte_level_decode(const char *s, size_t len, char *bytes, size_t *n) {
    *n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t c;
        int length = pd_utf8_decode(s + i, len - i, &c);
        int byte = length > 0 ? tokenizer_char_byte(c) : -1;
        if (byte < 0) return false;
        bytes[(*n)++] = (char)byte;
        i += (size_t)length;
    }
    return true;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of "<0xNN>", or -1. */
static int fallback_byte(const char *s, size_t len) {
    if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int high = hex_digit(s[3]), low = hex_digit(s[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* In place: what is put in is never longer than what it replaces. */
static size_t replace_in_place(const struct tokenizer_normal *what, char *s, size_t n) {
    size_t from = 0, to = 0;
    while (from < n) {
        if (n - from >= what->from_len && memcmp(s + from, what->from, what->from_len) == 0) {
            memcpy(s + to, what->to, what->to_len);
            from += what->from_len;
            to += what->to_len;
        } else {
            s[to++] = s[from++];
        }
    }
    return to;
}

/* Writes what characters of pieces stand for to `bytes`, which has room for them. */
static size_t decode_characters(const struct tokenizer *t, const char *s, size_t n, char *bytes) {
    if (n > 0) memcpy(bytes, s, n);
    for (int i = 0; i < t->decoder.n_replace; i++)
        n = replace_in_place(&t->decoder.replace[i], bytes, n);
    int byte = t->decoder.byte_fallback ? fallback_byte(bytes, n) : -1;
    if (byte < 0) return n;
    bytes[0] = (char)byte;
    return 1;
}

/* Writes what a piece stands for to `bytes`, which has room for its content. */
static size_t decode_piece(const struct tokenizer *t, uint32_t id, char *bytes) {
    const struct tokenizer_piece *p = &t->pieces[id];
    const char *content = t->text.data + p->content;
    size_t n;
    if (!t->byte_level) return decode_characters(t, content, p->content_len, bytes);
    // An added token stands for its content as it is, even where that looks byte-level.
    if (!(p->flags & TOKENIZER_ADDED) && byte_level_decode(content, p->content_len, bytes, &n))
        return n;
    memcpy(bytes, content, p->content_len);
    return p->content_len;
}

pdvm_status tokenizer_set_normalised(struct tokenizer *t, uint32_t id, const char *normal, size_t n,
                                     pdvm_error *err) {
    size_t at = t->text.n;
    if (at > UINT32_MAX - n - 1)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "the pieces have more than 4 GiB of text");
    PD_TRY(pd_grow(&t->text.data, &t->text.capacity, at + n + 1, 1, "the vocabulary", err));
    t->pieces[id].bytes = (uint32_t)at;
    t->pieces[id].bytes_len = (uint32_t)decode_characters(t, normal, n, t->text.data + at);
    t->text.n += t->pieces[id].bytes_len;
    return PDVM_OK;
}

static pdvm_status load_piece(struct tokenizer *t, uint32_t id, pdvm_error *err) {
    struct tokenizer_piece *p = &t->pieces[id];
    size_t at = t->text.n, len = p->content_len;
    PD_TRY(pd_grow(&t->text.data, &t->text.capacity, at + len + 1, 1, "the vocabulary", err));
    size_t n = decode_piece(t, id, t->text.data + at);
    if (n != len || memcmp(t->text.data + at, t->text.data + p->content, n) != 0) {
        p->bytes = (uint32_t)at;
        p->bytes_len = (uint32_t)n;
        t->text.n += n;
    }
    return PDVM_OK;
}

/* ---- what encoding looks up ------------------------------------------------------------------ */

static pdvm_status load_byte_level(struct tokenizer *t, pdvm_error *err) {
    if (t->ignore_merges) PD_TRY(tokenizer_index_init(&t->by_bytes, t->n_vocab, err));
    for (uint32_t id = 0; id < t->n_pieces; id++) {
        const struct tokenizer_piece *p = &t->pieces[id];
        if (!(p->flags & TOKENIZER_VOCAB)) continue;
        uint32_t c;
        const char *content = t->text.data + p->content;
        int length = p->content_len > 0 ? pd_utf8_decode(content, p->content_len, &c) : 0;
        int byte = length > 0 ? tokenizer_char_byte(c) : -1;
        if (byte >= 0 && (size_t)length == p->content_len) t->byte_ids[byte] = (int32_t)id;
        if (t->ignore_merges && !(p->flags & TOKENIZER_ADDED))
            PD_TRY(tokenizer_index_add(t, true, id, err));
    }
    return PDVM_OK;
}

static void load_characters(struct tokenizer *t) {
    for (int c = 0; c < 128; c++) {
        char s = (char)c;
        t->ascii_ids[c] = tokenizer_find_vocab(t, &s, 1, "", 0);
    }
    for (int byte = 0; t->byte_fallback && byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        int32_t id = tokenizer_index_find(t, false, name, 6, "", 0);
        if (id >= 0 && (t->pieces[id].flags & (TOKENIZER_VOCAB | TOKENIZER_BYTE)))
            t->byte_ids[byte] = id;
    }
    t->can_cut = tokenizer_bpe_can_cut(t);
}

pdvm_status tokenizer_load_bytes(struct tokenizer *t, const char *path, pdvm_error *err) {
    for (uint32_t id = 0; id < t->n_pieces; id++)
        if (t->pieces[id].flags != 0) PD_TRY(load_piece(t, id, err));
    for (int i = 0; i < 256; i++) t->byte_ids[i] = -1;
    if (t->byte_level) {
        PD_TRY(load_byte_level(t, err));
    } else {
        load_characters(t);
    }
    // It only matters if some byte of UTF-8 has no piece of its own.
    bool needed = false;
    for (int byte = 0; byte < 0xf5; byte++)
        needed |= t->byte_ids[byte] < 0 && byte != 0xc0 && byte != 0xc1;
    if (t->unk_missing && needed)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: model.unk_token is not in model.vocab", path);
    return PDVM_OK;
}

/* ---- from tokens to text --------------------------------------------------------------------- */

/* Length of the character that s starts with, if it is `c` (empty: none); else 0. */
static size_t match_char(const char *s, size_t n, const char *c) {
    size_t len = strlen(c);
    return len > 0 && n >= len && memcmp(s, c, len) == 0 ? len : 0;
}

static pdvm_status add_first(const struct tokenizer *t, const struct tokenizer_piece *p,
                             struct tokenizer_buffer *out, pdvm_error *err) {
    const char *s = t->text.data + p->content, *end = s + p->content_len;
    const char *drop = t->decoder.drop;
    while (s < end) {
        size_t len = match_char(s, (size_t)(end - s), drop);
        if (len == 0) PD_TRY(tokenizer_buffer_add(out, s, 1, err));
        s += len > 0 ? len : 1;
    }
    return PDVM_OK;
}

static pdvm_status decode(const struct tokenizer *t, const int32_t *ids, size_t n, unsigned flags,
                          struct tokenizer_buffer *out, pdvm_error *err) {
    bool first = (flags & TOKENIZER_DECODE_START) != 0;
    uint32_t to_strip = first ? t->decoder.n_strip : 0;
    for (size_t i = 0; i < n; i++) {
        bool with_special = (flags & TOKENIZER_DECODE_SPECIAL) != 0;
        size_t len;
        const char *bytes = tokenizer_bytes(t, ids[i], with_special, &len);
        if (!bytes || (!with_special && tokenizer_is_special(t, ids[i]))) continue;
        if (first && t->decoder.drop[0] != 0) {
            PD_TRY(add_first(t, &t->pieces[ids[i]], out, err));
            first = false;
            continue;
        }
        first = false;
        size_t skip;
        for (; to_strip > 0 && (skip = match_char(bytes, len, t->decoder.strip)) > 0; to_strip--) {
            bytes += skip;
            len -= skip;
        }
        if (len > 0) to_strip = 0;
        PD_TRY(tokenizer_buffer_add(out, bytes, len, err));
    }
    return tokenizer_buffer_add(out, "", 1, err);
}

pdvm_status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n,
                             unsigned flags, char **text, size_t *len, pdvm_error *err) {
    struct tokenizer_buffer out = {0};
    *text = NULL;
    *len = 0;
    pdvm_status status = decode(t, ids, n, flags, &out, err);
    if (status != PDVM_OK) {
        free(out.data);
        return status;
    }
    *text = out.data;
    *len = out.n - 1;
    return PDVM_OK;
}

bool tokenizer_begins_text(const struct tokenizer *t, int32_t id) {
    return t->before.n > 0 && t->before.ids[0] == id;
}
