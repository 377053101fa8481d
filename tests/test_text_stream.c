#include "support/support.h"

#include "base/random.h"
#include "engine/text_stream.h"

#include <string.h>

#define FFFD "\xef\xbf\xbd"

/* What came out, and whether every piece was whole characters. */
struct sink {
    char text[4096];
    size_t n;
    int calls;
    int cancel_at; /* call to refuse; 0: none */
};

static bool collect(void *user, const char *text, size_t len) {
    struct sink *s = user;
    assert_true(len > 0 && s->n + len < sizeof s->text);
    assert_true(((unsigned char)text[0] & 0xc0) != 0x80);
    // The last character must be whole: find its first byte and compare lengths.
    size_t i = len;
    do i--;
    while (i > 0 && ((unsigned char)text[i] & 0xc0) == 0x80);
    unsigned char lead = (unsigned char)text[i];
    size_t whole = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    assert_int_equal(len - i, whole);
    memcpy(s->text + s->n, text, len);
    s->n += len;
    s->text[s->n] = 0;
    return ++s->calls != s->cancel_at;
}

static struct text_stream *make(const char *const *stop, size_t n_stop, struct sink *sink) {
    struct text_stream *t;
    pdvm_error err;
    memset(sink, 0, sizeof *sink);
    assert_ok(text_stream_create(stop, n_stop, collect, sink, &t, &err), &err);
    return t;
}

static void feed(struct text_stream *t, const char *bytes, size_t n) {
    pdvm_error err;
    assert_ok(text_stream_feed(t, bytes, n, &err), &err);
}

/* Feeds the text in the pieces that the bits of `cuts` say and checks what comes out. */
static void check_cuts(const char *const *stop, size_t n_stop, const char *text, size_t n,
                       uint64_t cuts, const char *expected, bool stopped) {
    struct sink sink;
    struct text_stream *t = make(stop, n_stop, &sink);
    size_t begin = 0;
    for (size_t i = 1; i <= n; i++) {
        if (i < n && !(cuts >> (i - 1) & 1)) continue;
        feed(t, text + begin, i - begin);
        begin = i;
    }
    pdvm_error err;
    assert_ok(text_stream_finish(t, &err), &err);
    assert_string_equal(sink.text, expected);
    assert_int_equal(text_stream_stopped(t), stopped);
    text_stream_free(t);
}

/* All ways to cut a short text, many to cut a long one. */
static void check(const char *const *stop, size_t n_stop, const char *text, size_t n,
                  const char *expected, bool stopped) {
    if (n <= 13) {
        for (uint64_t cuts = 0; cuts < 1u << (n > 0 ? n - 1 : 0); cuts++)
            check_cuts(stop, n_stop, text, n, cuts, expected, stopped);
        return;
    }
    uint64_t random = 1;
    check_cuts(stop, n_stop, text, n, 0, expected, stopped);
    check_cuts(stop, n_stop, text, n, UINT64_MAX, expected, stopped);
    for (int i = 0; i < 500; i++)
        check_cuts(stop, n_stop, text, n, pd_random(&random), expected, stopped);
}

static void characters_split_over_tokens_come_out_whole(void **state) {
    (void)state;
    check(NULL, 0, "", 0, "", false);
    check(NULL, 0, "a\xc3\xa9\xe4\xbb\x8a\xf0\x9f\x98\x80z", 11,
          "a\xc3\xa9\xe4\xbb\x8a\xf0\x9f\x98\x80z", false);
    // A whole character is not held back for the next one.
    struct sink sink;
    struct text_stream *t = make(NULL, 0, &sink);
    feed(t, "a\xf0\x9f", 3);
    assert_string_equal(sink.text, "a");
    feed(t, "\x98", 1);
    assert_string_equal(sink.text, "a");
    feed(t, "\x80", 1);
    assert_string_equal(sink.text, "a\xf0\x9f\x98\x80");
    text_stream_free(t);
}

static void ill_formed_bytes_become_one_replacement_per_maximal_subpart(void **state) {
    (void)state;
    check(NULL, 0,
          "a\xff"
          "b",
          3, "a" FFFD "b", false);
    check(NULL, 0, "\xc3", 1, FFFD, false);
    check(NULL, 0, "\xf0\x9f\x98", 3, FFFD, false);
    check(NULL, 0,
          "\xf0\x9f\x98"
          "a",
          4, FFFD "a", false);
    check(NULL, 0, "\xf0\x9f\xc3\xa9", 4, FFFD "\xc3\xa9", false);
    check(NULL, 0, "\x80\x80", 2, FFFD FFFD, false);
    check(NULL, 0, "\xc0\xaf", 2, FFFD FFFD, false);
    check(NULL, 0, "\xed\xa0\x80", 3, FFFD FFFD FFFD, false);
    check(NULL, 0, "\xf4\x90\x80\x80", 4, FFFD FFFD FFFD FFFD, false);
    // The example of the Unicode Standard, table 3-8.
    check(NULL, 0,
          "a\xf1\x80\x80\xe1\x80\xc2"
          "b\x80"
          "c\x80\xbf"
          "d",
          13, "a" FFFD FFFD FFFD "b" FFFD "c" FFFD FFFD "d", false);
}

static void a_zero_byte_is_text(void **state) {
    (void)state;
    struct sink sink;
    struct text_stream *t = make((const char *const[]){"ab"}, 1, &sink);
    feed(t, "x\0a\0b", 5);
    pdvm_error err;
    assert_ok(text_stream_finish(t, &err), &err);
    assert_int_equal(sink.n, 5);
    assert_memory_equal(sink.text, "x\0a\0b", 5);
    text_stream_free(t);
}

static void stop_strings_end_the_text_however_it_is_cut(void **state) {
    (void)state;
    const char *const end[] = {"END"}, *const repeated[] = {"aab"},
                      *const nested[] = {"abcd", "bc"};
    const char *const wide[] = {"\xe4\xbb\x8a\xf0\x9f\x98\x80"}, *const same[] = {"b", "ab", "aab"};
    const char *const newlines[] = {"\n\n"}, *const longer[] = {"ab", "abc"};
    check(end, 1, "one END two", 11, "one ", true);
    check(end, 1, "END", 3, "", true);
    check(end, 1, "EENDx", 5, "E", true);
    check(end, 1, "ENENEND", 7, "ENEN", true);
    check(end, 1, "the EN", 6, "the EN", false);
    check(repeated, 1, "aaaab!", 6, "aa", true);
    check(repeated, 1, "aaaaa", 5, "aaaaa", false);
    check(nested, 2, "xabcdx", 6, "xa", true);
    check(nested, 2, "xabxc", 5, "xabxc", false);
    check(same, 3, "aaab", 4, "a", true);
    check(longer, 2, "xabc", 4, "x", true);
    check(newlines, 1, "a\nb\n\nc", 6, "a\nb", true);
    check(wide, 1, "a\xe4\xbb\x8a\xe4\xbb\x8a\xf0\x9f\x98\x80z", 12, "a\xe4\xbb\x8a", true);
    check(wide, 1,
          "\xe4\xbb\x8a\xf0\x9f\x98"
          "a",
          7, "\xe4\xbb\x8a" FFFD "a", false);
    check(end, 1,
          "\xff"
          "EN\xff"
          "END\xff",
          8, FFFD "EN" FFFD, true);
    check(end, 1, "a long text without any of it, until the EN and the END of it.", 62,
          "a long text without any of it, until the EN and the ", true);
}

static void only_a_possible_beginning_of_a_stop_string_is_held_back(void **state) {
    (void)state;
    struct sink sink;
    struct text_stream *t = make((const char *const[]){"<end>", "e!"}, 2, &sink);
    feed(t, "abc", 3);
    assert_string_equal(sink.text, "abc");
    feed(t, "d<e", 3);
    assert_string_equal(sink.text, "abcd");
    feed(t, "x", 1);
    assert_string_equal(sink.text, "abcd<ex");
    feed(t, "<en", 3);
    feed(t, "d", 1);
    assert_string_equal(sink.text, "abcd<ex");
    assert_false(text_stream_stopped(t));
    feed(t, ">more", 5);
    assert_true(text_stream_stopped(t));
    feed(t, "even more", 9);
    pdvm_error err;
    assert_ok(text_stream_finish(t, &err), &err);
    assert_string_equal(sink.text, "abcd<ex");
    text_stream_free(t);
}

static void random_texts_agree_with_a_plain_search(void **state) {
    (void)state;
    const char *const stops[] = {"abab", "bb", "aabaa"};
    uint64_t random = 11;
    for (int round = 0; round < 3000; round++) {
        char text[41], expected[41];
        size_t n = (size_t)(pd_random(&random) % 40), cut = n;
        for (size_t i = 0; i < n; i++) text[i] = "aab"[pd_random(&random) % 3];
        text[n] = 0;
        bool found = false;
        for (size_t end = 1; end <= n && !found; end++) {
            for (size_t i = 0; i < 3; i++) {
                size_t len = strlen(stops[i]);
                if (len > end || memcmp(text + end - len, stops[i], len) != 0) continue;
                if (!found || end - len < cut) cut = end - len;
                found = true;
            }
        }
        memcpy(expected, text, cut);
        expected[cut] = 0;
        check_cuts(stops, 3, text, n, pd_random(&random), expected, found);
    }
}

static void empty_and_invalid_stop_strings_are_refused(void **state) {
    (void)state;
    const char *const stops[][2] = {{"a", ""}, {"a", "\xff"}, {"a", "x\xc3"}};
    for (size_t i = 0; i < 3; i++) {
        struct text_stream *t;
        pdvm_error err;
        assert_error(text_stream_create(stops[i], 2, NULL, NULL, &t, &err), PDVM_ERR_ARGUMENT, &err,
                     "stop string 1");
        assert_null(t);
    }
    struct text_stream *t;
    pdvm_error err;
    assert_error(text_stream_create(NULL, 1, NULL, NULL, &t, &err), PDVM_ERR_ARGUMENT, &err,
                 "NULL");
}

static void nothing_is_emitted_after_the_callback_refused(void **state) {
    (void)state;
    struct sink sink;
    struct text_stream *t = make(NULL, 0, &sink);
    sink.cancel_at = 2;
    feed(t, "a", 1);
    assert_false(text_stream_cancelled(t));
    feed(t, "b", 1);
    assert_true(text_stream_cancelled(t));
    feed(t, "c\xc3", 2);
    pdvm_error err;
    assert_ok(text_stream_finish(t, &err), &err);
    assert_string_equal(sink.text, "ab");
    text_stream_free(t);
}

static void a_stream_without_a_receiver_still_finds_stops(void **state) {
    (void)state;
    struct text_stream *t;
    pdvm_error err;
    assert_ok(text_stream_create((const char *const[]){"xy"}, 1, NULL, NULL, &t, &err), &err);
    feed(t, "abcx", 4);
    feed(t, "yz", 2);
    assert_true(text_stream_stopped(t));
    text_stream_free(t);
    text_stream_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_split_over_tokens_come_out_whole),
        cmocka_unit_test(ill_formed_bytes_become_one_replacement_per_maximal_subpart),
        cmocka_unit_test(a_zero_byte_is_text),
        cmocka_unit_test(stop_strings_end_the_text_however_it_is_cut),
        cmocka_unit_test(only_a_possible_beginning_of_a_stop_string_is_held_back),
        cmocka_unit_test(random_texts_agree_with_a_plain_search),
        cmocka_unit_test(empty_and_invalid_stop_strings_are_refused),
        cmocka_unit_test(nothing_is_emitted_after_the_callback_refused),
        cmocka_unit_test(a_stream_without_a_receiver_still_finds_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
