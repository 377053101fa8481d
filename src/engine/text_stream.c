#include "engine/text_stream.h"

#include "base/alloc.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

/* A stop string with its failure function (Knuth, Morris, Pratt 1977). */
struct stop_string {
    char *text;
    size_t len;
    size_t *fallback; /* fallback[i]: length of the longest border of the first i bytes, i >= 1 */
    size_t matched;   /* bytes of it that the text so far ends with */
};

struct text_stream {
    struct stop_string *stops;
    size_t n_stops;
    pdvm_text_fn on_text;
    void *user;
    char partial[4]; /* beginning of a character */
    size_t n_partial;
    char *held; /* text that is not emitted yet */
    size_t n_held;
    size_t held_capacity;
    bool stopped;
    bool cancelled;
};

static pdvm_status stop_init(struct stop_string *s, const char *text, size_t number,
                             pdvm_error *err) {
    size_t len = text ? strlen(text) : 0;
    if (len == 0) return pd_fail(err, PDVM_ERR_ARGUMENT, "stop string %zu is empty", number);
    size_t bad = pd_utf8_check(text, len);
    if (bad < len)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "stop string %zu is not valid UTF-8 at byte %zu",
                       number, bad);
    PD_TRY(pd_calloc(&s->text, len + 1, 1, "a stop string", err));
    PD_TRY(pd_calloc(&s->fallback, len + 1, sizeof *s->fallback, "a stop string", err));
    memcpy(s->text, text, len);
    s->len = len;
    for (size_t i = 1, k = 0; i < len; i++) {
        while (k > 0 && text[i] != text[k]) k = s->fallback[k];
        if (text[i] == text[k]) k++;
        s->fallback[i + 1] = k;
    }
    return PDVM_OK;
}

pdvm_status text_stream_create(const char *const *stop, size_t n_stop, pdvm_text_fn on_text,
                               void *user, struct text_stream **out, pdvm_error *err) {
    *out = NULL;
    if (n_stop > 0 && !stop) return pd_fail(err, PDVM_ERR_ARGUMENT, "the stop strings are NULL");
    struct text_stream *t;
    PD_TRY(pd_calloc(&t, 1, sizeof *t, "a text stream", err));
    t->on_text = on_text;
    t->user = user;
    pdvm_status status = pd_calloc(&t->stops, n_stop, sizeof *t->stops, "stop strings", err);
    for (size_t i = 0; status == PDVM_OK && i < n_stop; i++) {
        t->n_stops++;
        status = stop_init(&t->stops[i], stop[i], i, err);
    }
    if (status != PDVM_OK) {
        text_stream_free(t);
        return status;
    }
    *out = t;
    return PDVM_OK;
}

void text_stream_free(struct text_stream *t) {
    if (!t) return;
    for (size_t i = 0; i < t->n_stops; i++) {
        free(t->stops[i].text);
        free(t->stops[i].fallback);
    }
    free(t->stops);
    free(t->held);
    free(t);
}

bool text_stream_stopped(const struct text_stream *t) {
    return t->stopped;
}

bool text_stream_cancelled(const struct text_stream *t) {
    return t->cancelled;
}

/* Gives the first n bytes of the held text away. */
static void emit(struct text_stream *t, size_t n) {
    if (n == 0) return;
    if (t->on_text && !t->on_text(t->user, t->held, n)) t->cancelled = true;
    memmove(t->held, t->held + n, t->n_held - n);
    t->n_held -= n;
}

/* Moves every stop string on by one byte; the length of the longest that it completes, or 0. */
static size_t advance(struct text_stream *t, char byte) {
    size_t complete = 0;
    for (size_t i = 0; i < t->n_stops; i++) {
        struct stop_string *s = &t->stops[i];
        while (s->matched > 0 && s->text[s->matched] != byte) s->matched = s->fallback[s->matched];
        if (s->text[s->matched] == byte) s->matched++;
        if (s->matched == s->len && s->len > complete) complete = s->len;
    }
    return complete;
}

/* Takes one whole character. */
static pdvm_status take(struct text_stream *t, const char *c, size_t len, pdvm_error *err) {
    PD_TRY(pd_grow(&t->held, &t->held_capacity, t->n_held + len, 1, "generated text", err));
    for (size_t i = 0; i < len; i++) {
        t->held[t->n_held++] = c[i];
        size_t complete = advance(t, c[i]);
        if (complete > 0) {
            t->stopped = true;
            t->n_held -= complete;
            return PDVM_OK;
        }
    }
    return PDVM_OK;
}

/* Emits all but what a stop string may begin with. */
static void emit_decided(struct text_stream *t) {
    size_t undecided = 0;
    for (size_t i = 0; !t->stopped && i < t->n_stops; i++)
        if (t->stops[i].matched > undecided) undecided = t->stops[i].matched;
    emit(t, t->n_held - undecided);
}

/*
 * Takes the characters of s[0..n) and sets *used to how far they are whole; with `last`, an
 * unfinished one is ill-formed.
 */
static pdvm_status take_all(struct text_stream *t, const char *s, size_t n, bool last, size_t *used,
                            pdvm_error *err) {
    size_t i = 0;
    while (i < n && !t->stopped) {
        uint32_t c;
        int length = pd_utf8_decode(s + i, n - i, &c);
        if (length == 0 && !last) break;
        if (length > 0) {
            PD_TRY(take(t, s + i, (size_t)length, err));
            i += (size_t)length;
        } else {
            PD_TRY(take(t, "\xef\xbf\xbd", 3, err));
            i += length < 0 ? (size_t)-length : n - i;
        }
    }
    *used = i;
    return PDVM_OK;
}

pdvm_status text_stream_feed(struct text_stream *t, const char *bytes, size_t n, pdvm_error *err) {
    size_t i = 0;
    // Fill up the partial character byte by byte until it is decided.
    while (t->n_partial > 0 && i < n && !t->stopped && !t->cancelled) {
        t->partial[t->n_partial++] = bytes[i++];
        size_t used;
        PD_TRY(take_all(t, t->partial, t->n_partial, false, &used, err));
        memmove(t->partial, t->partial + used, t->n_partial - used);
        t->n_partial -= used;
    }
    if (t->stopped || t->cancelled) {
        if (t->stopped) emit_decided(t);
        return PDVM_OK;
    }
    if (i < n) {
        size_t used;
        PD_TRY(take_all(t, bytes + i, n - i, false, &used, err));
        if (!t->stopped) {
            t->n_partial = n - i - used;
            memcpy(t->partial, bytes + i + used, t->n_partial);
        }
    }
    emit_decided(t);
    return PDVM_OK;
}

pdvm_status text_stream_finish(struct text_stream *t, pdvm_error *err) {
    if (t->stopped || t->cancelled) return PDVM_OK;
    size_t used;
    PD_TRY(take_all(t, t->partial, t->n_partial, true, &used, err));
    t->n_partial = 0;
    emit(t, t->n_held);
    return PDVM_OK;
}
