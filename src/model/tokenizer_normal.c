#include "base/utf8.h"
#include "model/tokenizer_internal.h"

#include <string.h>

static pdvm_status replace_string(const struct tokenizer_normal *what, const char *s, size_t n,
                                  struct tokenizer_buffer *out, pdvm_error *err) {
    const char *end = s + n, *match;
    while ((match = memmem(s, (size_t)(end - s), what->from, what->from_len))) {
        PD_TRY(tokenizer_buffer_add(out, s, (size_t)(match - s), err));
        PD_TRY(tokenizer_buffer_add(out, what->to, what->to_len, err));
        s = match + what->from_len;
    }
    return tokenizer_buffer_add(out, s, (size_t)(end - s), err);
}

static pdvm_status replace_regex(const struct tokenizer_normal *what, struct tokenizer_matcher *m,
                                 const char *s, size_t n, struct tokenizer_buffer *out,
                                 pdvm_error *err) {
    size_t previous = 0, from = 0;
    bool any = false;
    while (from <= n) {
        bool found;
        size_t begin, end;
        PD_TRY(tokenizer_regex_find(what->regex, m, s, n, from, &found, &begin, &end, err));
        if (!found) break;
        if (begin == end && any && end == previous) {
            // As in splitting: an empty match right behind a match does not count.
            uint32_t c;
            int length = from < n ? pd_utf8_decode(s + from, n - from, &c) : 1;
            from += length > 0 ? (size_t)length : 1;
            continue;
        }
        PD_TRY(tokenizer_buffer_add(out, s + previous, begin - previous, err));
        PD_TRY(tokenizer_buffer_add(out, what->to, what->to_len, err));
        any = true;
        previous = from = end;
    }
    return tokenizer_buffer_add(out, s + previous, n - previous, err);
}

static pdvm_status apply(const struct tokenizer_normal *what, struct tokenizer_matcher *m,
                         const char *s, size_t n, struct tokenizer_buffer *out, pdvm_error *err) {
    out->n = 0;
    switch (what->kind) {
    case TOKENIZER_NORMAL_FORM: return tokenizer_form(s, n, what->form, out, err);
    case TOKENIZER_NORMAL_PREPEND:
        PD_TRY(tokenizer_buffer_add(out, what->to, what->to_len, err));
        return tokenizer_buffer_add(out, s, n, err);
    case TOKENIZER_NORMAL_REPLACE: break;
    }
    return what->regex ? replace_regex(what, m, s, n, out, err)
                       : replace_string(what, s, n, out, err);
}

pdvm_status tokenizer_normalise(const struct tokenizer *t, struct tokenizer_matcher *m,
                                const char *s, size_t n, struct tokenizer_buffer work[2],
                                const char **out, size_t *out_n, pdvm_error *err) {
    // The longest that is real is U+FDFA in NFKC: eleven times its length.
    const size_t limit = 32 * n + ((size_t)64 << 10);
    int side = 0;
    for (int i = 0; i < t->n_normals && n > 0; i++) {
        const struct tokenizer_normal *what = &t->normals[i];
        if (what->kind == TOKENIZER_NORMAL_FORM && tokenizer_is_form_quick(s, n, what->form))
            continue;
        PD_TRY(apply(what, m, s, n, &work[side], err));
        s = work[side].data;
        n = work[side].n;
        side = !side;
        if (n > limit)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "the tokenizer's normalizer makes a text more than 32 times longer");
    }
    *out = s;
    *out_n = n;
    return PDVM_OK;
}
