#include "base/alloc.h"
#include "model/tokenizer_internal.h"
#include "model/tokenizer_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Units of work (a match, or 64 KiB that one may have scanned) between looks at the clock. */
#define CLOCK_INTERVAL 4096

struct tokenizer_regex {
    pcre2_code *code;
    bool jit;
    char *where; /* "PATH: FIELD: pattern ..." for messages */
};

struct tokenizer_matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    double deadline; /* in processor time of the thread, so that a stopped process loses none */
    uint64_t work;
};

static double thread_seconds(void) {
    struct timespec t;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) != 0) return 0;
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Counts one match over `remaining` bytes; true once the time is up. */
static bool out_of_time(struct tokenizer_matcher *m, size_t remaining) {
    m->work += 1 + (remaining >> 16);
    if (m->work < CLOCK_INTERVAL) return false;
    m->work = 0;
    return thread_seconds() > m->deadline;
}

/* Translated patterns have callouts at what is repeated: see tokenizer_pattern.h. */
static int on_repeat(pcre2_callout_block *block, void *matcher) {
    size_t remaining = block->subject_length - block->current_position;
    return out_of_time(matcher, remaining) ? PCRE2_ERROR_MATCHLIMIT : 0;
}

pdvm_status tokenizer_matcher_create(size_t len, struct tokenizer_matcher **out, pdvm_error *err) {
    struct tokenizer_matcher *m;
    PD_TRY(pd_calloc(&m, 1, sizeof *m, "regular expressions", err));
    m->data = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    if (!m->data || !m->context) {
        tokenizer_matcher_free(m);
        return pd_fail_memory(err, sizeof *m, "regular expressions");
    }
    pcre2_set_callout(m->context, on_repeat, m);
    // Real expressions handle 5 MB and more in a second; this is a twenty-fifth of that.
    m->deadline = thread_seconds() + 2.0 + (double)len / 200e3;
    *out = m;
    return PDVM_OK;
}

void tokenizer_matcher_free(struct tokenizer_matcher *m) {
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    free(m);
}

static pdvm_status compile(struct tokenizer_regex *r, const struct tokenizer_buffer *pattern,
                           pdvm_error *err) {
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return pd_fail_memory(err, 0, "a regular expression");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context, 64);
    int code;
    PCRE2_SIZE offset;
    r->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->n,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C |
                                PCRE2_NO_UTF_CHECK,
                            &code, &offset, context);
    pcre2_compile_context_free(context);
    if (!r->code) {
        char reason[128] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s cannot be used as a regular expression: %s near byte %zu", r->where,
                       reason, (size_t)offset);
    }
    // Without compiled machine code (another processor, no executable memory) it is only slower.
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    return PDVM_OK;
}

pdvm_status tokenizer_regex_compile(const char *path, const char *field, const char *pattern,
                                    size_t len, struct tokenizer_regex **out, pdvm_error *err) {
    if (len > TOKENIZER_MAX_PATTERN)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: %s: the regular expression has %zu bytes; the limit is %d", path, field,
                       len, TOKENIZER_MAX_PATTERN);
    struct tokenizer_regex *r;
    PD_TRY(pd_calloc(&r, 1, sizeof *r, "a regular expression", err));
    size_t where_size = strlen(path) + strlen(field) + 80;
    struct tokenizer_buffer translated = {0};
    pdvm_status status = pd_calloc(&r->where, where_size, 1, "a regular expression", err);
    if (status == PDVM_OK) {
        snprintf(r->where, where_size, "%s: %s: \"%.*s%s\"", path, field,
                 tokenizer_quote_len(pattern, len), pattern,
                 (size_t)tokenizer_quote_len(pattern, len) < len ? "..." : "");
        status = tokenizer_pattern_translate(r->where, pattern, len, &translated, err);
    }
    if (status == PDVM_OK) status = compile(r, &translated, err);
    free(translated.data);
    if (status != PDVM_OK) {
        tokenizer_regex_free(r);
        return status;
    }
    *out = r;
    return PDVM_OK;
}

void tokenizer_regex_free(struct tokenizer_regex *r) {
    if (!r) return;
    pcre2_code_free(r->code);
    free(r->where);
    free(r);
}

pdvm_status tokenizer_regex_find(const struct tokenizer_regex *r, struct tokenizer_matcher *m,
                                 const char *s, size_t n, size_t from, bool *found, size_t *begin,
                                 size_t *end, pdvm_error *err) {
    *found = false;
    if (out_of_time(m, n - from))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s takes too long as a regular expression on this text", r->where);
    // A sound expression needs a few steps a byte, and memory only for what it may go back to.
    size_t limit = 4096 + 16 * (n - from);
    if (limit > UINT32_MAX) limit = UINT32_MAX;
    pcre2_set_match_limit(m->context, (uint32_t)limit);
    pcre2_set_depth_limit(m->context, (uint32_t)limit);
    pcre2_set_heap_limit(m->context, (uint32_t)(1024 + (n - from) / 4));
    const uint32_t options = PCRE2_NO_UTF_CHECK;
    int count = pcre2_match(r->code, (PCRE2_SPTR)s, n, from, options, m->data, m->context);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT)
        count = pcre2_match(r->code, (PCRE2_SPTR)s, n, from, options | PCRE2_NO_JIT, m->data,
                            m->context);
    if (count == PCRE2_ERROR_NOMATCH) return PDVM_OK;
    if (count == PCRE2_ERROR_NOMEMORY) return pd_fail_memory(err, n, r->where);
    if (count < 0) {
        char reason[128] = "";
        pcre2_get_error_message(count, (PCRE2_UCHAR *)reason, sizeof reason);
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s takes too long as a regular expression on this text: %s", r->where,
                       reason);
    }
    const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(m->data);
    *begin = offsets[0];
    *end = offsets[1];
    *found = true;
    if (*begin < from || *end < *begin || *end > n)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s matches backwards as a regular expression",
                       r->where);
    return PDVM_OK;
}
