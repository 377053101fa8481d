#include "base/alloc.h"
#include "base/utf8.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_PARTS 32

/* Printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 and up. */
static bool is_printable(uint32_t c) {
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

uint32_t tokenizer_byte_char(uint8_t byte) {
    if (is_printable(byte)) return byte;
    if (byte <= 0x20) return 0x100 + byte;
    if (byte <= 0xa0) return 0x121 + (uint32_t)(byte - 0x7f);
    return 0x143;
}

int tokenizer_char_byte(uint32_t c) {
    if (c <= 0xff) return is_printable(c) ? (int)c : -1;
    if (c <= 0x120) return (int)(c - 0x100);
    if (c <= 0x142) return (int)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}

bool tokenizer_is_space(uint32_t c) {
    if (c <= 0x20) return c == 0x20 || (c >= 0x09 && c <= 0x0d);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool tokenizer_is_word(uint32_t c) {
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default:
        // The rest of Alphabetic are circled, squared and parenthesised letters.
        return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) ||
               (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
               (c >= 0x1f170 && c <= 0x1f189);
    }
}

bool tokenizer_is_numeric(uint32_t c) {
    if (c < 0x80) return c >= '0' && c <= '9';
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
           category == UTF8PROC_CATEGORY_NO;
}

bool tokenizer_is_form_quick(const char *text, size_t len, enum tokenizer_form form) {
    // No character below U+0300 (bytes CC 80) is composed further; ASCII never changes.
    const uint8_t limit = form == TOKENIZER_NFC ? 0xcc : 0x80;
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)text[i] >= limit) return false;
    return true;
}

struct mark {
    int32_t c;
    int32_t class;
};

/* Stable merge sort by class; `from` is overwritten, the result is in `to`. */
static void sort_marks(struct mark *to, struct mark *from, size_t n) {
    if (n < 2) return;
    size_t half = n / 2;
    sort_marks(from, to, half);
    sort_marks(from + half, to + half, n - half);
    size_t a = 0, b = half;
    for (size_t i = 0; i < n; i++) {
        bool take_a = b >= n || (a < half && from[a].class <= from[b].class);
        to[i] = take_a ? from[a++] : from[b++];
    }
}

/*
 * Canonical ordering. utf8proc_decompose does it too, but by insertion, which is quadratic in a
 * run of marks of any length.
 */
static pdvm_status order_marks(int32_t *c, size_t n, pdvm_error *err) {
    struct mark *marks = NULL;
    size_t capacity = 0;
    pdvm_status status = PDVM_OK;
    size_t i = 0;
    while (status == PDVM_OK && i < n) {
        size_t end = i;
        bool sorted = true;
        int last = 0;
        for (; end < n; end++) {
            int class = c[end] < 0x300 ? 0 : utf8proc_get_property(c[end])->combining_class;
            if (class == 0) break;
            sorted = sorted && class >= last;
            last = class;
        }
        size_t run = end - i;
        if (!sorted) {
            status = pd_grow(&marks, &capacity, 2 * run, sizeof *marks, "normalising", err);
            if (status == PDVM_OK) {
                for (size_t j = 0; j < run; j++) {
                    marks[j].c = c[i + j];
                    marks[j].class = utf8proc_get_property(c[i + j])->combining_class;
                    marks[run + j] = marks[j];
                }
                sort_marks(marks, marks + run, run);
                for (size_t j = 0; j < run; j++) c[i + j] = marks[j].c;
            }
        }
        i = end + 1;
    }
    free(marks);
    return status;
}

static pdvm_status decompose(const char *text, size_t len, enum tokenizer_form form,
                             int32_t **chars, size_t *n, size_t *capacity, pdvm_error *err) {
    const utf8proc_option_t options =
        UTF8PROC_DECOMPOSE | UTF8PROC_STABLE | (form & TOKENIZER_NFKD ? UTF8PROC_COMPAT : 0);
    // No character decomposes into more than 18 (U+FDFA).
    int32_t parts[MAX_PARTS];
    int boundary = 0;
    for (size_t i = 0; i < len;) {
        uint32_t c;
        int length = pd_utf8_decode(text + i, len - i, &c);
        if (length <= 0) return pd_fail(err, PDVM_ERR_ARGUMENT, "invalid UTF-8 at byte %zu", i);
        i += (size_t)length;
        utf8proc_ssize_t k =
            utf8proc_decompose_char((utf8proc_int32_t)c, parts, MAX_PARTS, options, &boundary);
        if (k < 0 || k > MAX_PARTS) {
            parts[0] = (int32_t)c;
            k = 1;
        }
        PD_TRY(pd_grow(chars, capacity, *n + (size_t)k, sizeof **chars, "normalising", err));
        memcpy(*chars + *n, parts, (size_t)k * sizeof *parts);
        *n += (size_t)k;
    }
    return PDVM_OK;
}

pdvm_status tokenizer_form(const char *text, size_t len, enum tokenizer_form form,
                           struct tokenizer_buffer *out, pdvm_error *err) {
    out->n = 0;
    if (tokenizer_is_form_quick(text, len, form)) return tokenizer_buffer_add(out, text, len, err);
    int32_t *chars = NULL;
    size_t n = 0, capacity = 0;
    pdvm_status status = decompose(text, len, form, &chars, &n, &capacity, err);
    if (status == PDVM_OK) status = order_marks(chars, n, err);
    if (status == PDVM_OK && chars && (form & TOKENIZER_NFC)) {
        utf8proc_ssize_t composed = utf8proc_normalize_utf32(chars, (utf8proc_ssize_t)n,
                                                             UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        n = composed < 0 ? 0 : (size_t)composed;
    }
    if (status == PDVM_OK && chars)
        status = pd_grow(&out->data, &out->capacity, 4 * n, 1, "normalising", err);
    if (status == PDVM_OK && chars)
        for (size_t i = 0; i < n; i++)
            out->n += (size_t)pd_utf8_encode((uint32_t)chars[i], out->data + out->n);
    free(chars);
    return status;
}
