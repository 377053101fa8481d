#include "base/utf8.h"
#include "model/tokenizer_internal.h"

#include <string.h>

/*
 * Joins a step's stream of matches and gaps into pieces and hands them on. A piece that may still
 * grow is held back.
 */
struct joiner {
    struct tokenizer_run *run;
    int step;
    const char *s;
    bool holding;
    bool was_match; /* of the last range */
    size_t begin, end;
};

static pdvm_status hand_on(const struct joiner *j, size_t begin, size_t end) {
    return end > begin ? tokenizer_split(j->run, j->step + 1, j->s + begin, end - begin) : PDVM_OK;
}

static pdvm_status flush(struct joiner *j) {
    if (!j->holding) return PDVM_OK;
    j->holding = false;
    return hand_on(j, j->begin, j->end);
}

static pdvm_status hold(struct joiner *j, size_t begin, size_t end) {
    PD_TRY(flush(j));
    j->holding = true;
    j->begin = begin;
    j->end = end;
    return PDVM_OK;
}

static pdvm_status join(struct joiner *j, size_t begin, size_t end, bool is_match) {
    const struct tokenizer_step *step = &j->run->t->steps[j->step];
    if (step->invert) is_match = !is_match;
    bool was_match = j->was_match;
    j->was_match = is_match;
    switch (step->behavior) {
    case TOKENIZER_ISOLATED: return hand_on(j, begin, end);
    case TOKENIZER_REMOVED: return is_match ? PDVM_OK : hand_on(j, begin, end);
    case TOKENIZER_CONTIGUOUS:
        if (!j->holding || is_match != was_match) return hold(j, begin, end);
        break;
    case TOKENIZER_MERGED_WITH_PREVIOUS:
        if (!j->holding || !is_match || was_match) return hold(j, begin, end);
        break;
    case TOKENIZER_MERGED_WITH_NEXT:
        // Only a match is held: a gap ends the piece that it is joined to.
        if (is_match || !j->holding) {
            PD_TRY(hold(j, begin, end));
            return is_match ? PDVM_OK : flush(j);
        }
        j->end = end;
        return flush(j);
    }
    j->end = end;
    return PDVM_OK;
}

static pdvm_status split_regex(struct joiner *j, const struct tokenizer_step *step, size_t n) {
    struct tokenizer_run *run = j->run;
    size_t previous = 0; /* end of the last match, where the next gap begins */
    size_t from = 0;
    bool any = false;
    while (from <= n) {
        bool found;
        size_t begin, end;
        PD_TRY(tokenizer_regex_find(step->regex, run->matcher, j->s, n, from, &found, &begin, &end,
                                    run->err));
        if (!found) break;
        if (begin == end && any && end == previous) {
            // An empty match right behind a match does not count.
            uint32_t c;
            int length = from < n ? pd_utf8_decode(j->s + from, n - from, &c) : 1;
            from += length > 0 ? (size_t)length : 1;
            continue;
        }
        if (previous != begin) PD_TRY(join(j, previous, begin, false));
        PD_TRY(join(j, begin, end, true));
        any = true;
        previous = from = end;
    }
    return previous < n ? join(j, previous, n, false) : PDVM_OK;
}

static pdvm_status split_string(struct joiner *j, const struct tokenizer_step *step, size_t n) {
    size_t previous = 0;
    const char *match;
    while ((match = memmem(j->s + previous, n - previous, step->string, step->string_len))) {
        size_t begin = (size_t)(match - j->s);
        if (previous < begin) PD_TRY(join(j, previous, begin, false));
        previous = begin + step->string_len;
        PD_TRY(join(j, begin, previous, true));
    }
    return previous < n ? join(j, previous, n, false) : PDVM_OK;
}

static pdvm_status split_digits(struct joiner *j, size_t n) {
    size_t previous = 0;
    for (size_t i = 0; i < n;) {
        uint32_t c;
        int length = pd_utf8_decode(j->s + i, n - i, &c);
        size_t end = i + (length > 0 ? (size_t)length : 1);
        if (tokenizer_is_numeric(c)) {
            if (previous < i) PD_TRY(join(j, previous, i, false));
            PD_TRY(join(j, i, end, true));
            previous = end;
        }
        i = end;
    }
    return previous < n ? join(j, previous, n, false) : PDVM_OK;
}

/* Comes at most once among the steps, so that one buffer is enough. */
static pdvm_status put_space(struct tokenizer_run *run, int step, const char *s, size_t n) {
    if (s[0] == ' ') return tokenizer_split(run, step + 1, s, n);
    run->prefixed.n = 0;
    PD_TRY(tokenizer_buffer_add(&run->prefixed, " ", 1, run->err));
    PD_TRY(tokenizer_buffer_add(&run->prefixed, s, n, run->err));
    return tokenizer_split(run, step + 1, run->prefixed.data, run->prefixed.n);
}

/* Comes at most once too, and not together with put_space. */
static pdvm_status put_metaspace(struct tokenizer_run *run, int step, const char *s, size_t n) {
    const struct tokenizer_step *what = &run->t->steps[step];
    struct tokenizer_buffer *out = &run->prefixed;
    const char *end = s + n, *space;
    bool prepend = what->prepend == TOKENIZER_PREPEND_ALWAYS ||
                   (what->prepend == TOKENIZER_PREPEND_FIRST && s == run->start);
    bool there =
        s[0] == ' ' || (n >= what->string_len && memcmp(s, what->string, what->string_len) == 0);
    out->n = 0;
    if (prepend && !there)
        PD_TRY(tokenizer_buffer_add(out, what->string, what->string_len, run->err));
    for (; (space = memchr(s, ' ', (size_t)(end - s))); s = space + 1) {
        PD_TRY(tokenizer_buffer_add(out, s, (size_t)(space - s), run->err));
        PD_TRY(tokenizer_buffer_add(out, what->string, what->string_len, run->err));
    }
    PD_TRY(tokenizer_buffer_add(out, s, (size_t)(end - s), run->err));
    return tokenizer_split(run, step + 1, out->data, out->n);
}

pdvm_status tokenizer_split(struct tokenizer_run *run, int step, const char *s, size_t n) {
    if (n == 0) return PDVM_OK;
    if (step == run->t->n_steps) return tokenizer_bpe_word(run, s, n);
    const struct tokenizer_step *what = &run->t->steps[step];
    struct joiner j = {.run = run, .step = step, .s = s};
    switch (what->kind) {
    case TOKENIZER_STEP_SPACE: return put_space(run, step, s, n);
    case TOKENIZER_STEP_METASPACE: return put_metaspace(run, step, s, n);
    case TOKENIZER_STEP_REGEX: PD_TRY(split_regex(&j, what, n)); break;
    case TOKENIZER_STEP_STRING: PD_TRY(split_string(&j, what, n)); break;
    case TOKENIZER_STEP_DIGIT: PD_TRY(split_digits(&j, n)); break;
    }
    return flush(&j);
}
