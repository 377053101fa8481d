#include "support/support.h"
#include "support/tokenizer_checks.h"

#include "model/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *open_model(const char *name, const char *config) {
    size_t size;
    char *data = tokenizer_read_golden(name, &size);
    struct tokenizer *t;
    pdvm_error err;
    assert_ok(tokenizer_open_sentencepiece(name, data, size, config, config ? strlen(config) : 0,
                                           &t, &err),
              &err);
    free(data);
    return t;
}

static void check_decoded(const struct tokenizer *t, const char *name, const json_t *ids,
                          const json_t *expected) {
    int32_t list[512];
    size_t n = json_array_size(ids), len;
    assert_true(n <= 512);
    for (size_t i = 0; i < n; i++) list[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    char *text;
    pdvm_error err;
    assert_ok(tokenizer_decode(t, list, n, TOKENIZER_DECODE_START, &text, &len, &err), &err);
    if (len != json_string_length(expected) || memcmp(text, json_string_value(expected), len) != 0)
        fail_msg("%s: decoded to \"%s\", expected \"%s\"", name, text, json_string_value(expected));
    free(text);
}

static void check_variant(struct tokenizer *t, const json_t *variant, const json_t *texts) {
    const char *name = json_string_value(json_object_get(variant, "name")), *number;
    unsigned flags = (unsigned)json_integer_value(json_object_get(variant, "flags"));
    json_t *all = json_object_get(variant, "ids"), *ids;
    assert_true(json_object_size(all) > 30);
    json_object_foreach(all, number, ids) {
        tokenizer_check_ids(t, name, json_array_get(texts, strtoul(number, NULL, 10)), flags, ids);
        const json_t *decoded = json_object_get(json_object_get(variant, "decoded"), number);
        if (decoded) check_decoded(t, name, ids, decoded);
    }
}

static void ids_and_texts_equal_the_reference_in_all_variants(void **state) {
    (void)state;
    tokenizer_each_variant("sp-tokenizer.json", "sp-cases.json", check_variant);
}

/* Whether a text says nothing of what SentencePiece leaves to its callers: control pieces. */
static bool is_plain(const char *text) {
    return !strstr(text, "<s>") && !strstr(text, "</s>") && !strstr(text, "<unk>");
}

static void ids_and_texts_of_model_files_equal_sentencepiece(void **state) {
    (void)state;
    static const char *const NAMES[] = {"sp-llama.model", "sp-plain.model"};
    json_t *golden = tokenizer_load_golden("sp-models.json");
    const json_t *texts = json_object_get(golden, "texts");
    for (size_t i = 0; i < 2; i++) {
        struct tokenizer *t = open_model(NAMES[i], NULL);
        const json_t *c = json_object_get(golden, NAMES[i]);
        assert_int_equal(tokenizer_size(t), json_integer_value(json_object_get(c, "n")));
        for (size_t j = 0; j < json_array_size(texts); j++) {
            const json_t *text = json_array_get(texts, j);
            const json_t *ids = json_array_get(json_object_get(c, "ids"), j);
            tokenizer_check_ids(t, NAMES[i], text, 0, ids);
            if (is_plain(json_string_value(text)))
                tokenizer_check_ids(t, NAMES[i], text, PDVM_TOKENIZE_PARSE_SPECIAL, ids);
            const json_t *decoded = json_array_get(json_object_get(c, "decoded"), j);
            // It writes unknown characters as " U+2047 "; here they are a special token.
            if (!strstr(json_string_value(decoded), "\xe2\x81\x87"))
                check_decoded(t, NAMES[i], ids, decoded);
        }
        tokenizer_free(t);
    }
    json_decref(golden);
}

/* The ids of a text, as a string. */
static const char *ids_of(const struct tokenizer *t, const char *text, unsigned flags) {
    static char out[256];
    struct token_list list = {0};
    pdvm_error err;
    assert_ok(tokenizer_encode(t, text, strlen(text), flags, &list, &err), &err);
    out[0] = 0;
    for (size_t i = 0; i < list.n; i++)
        snprintf(out + strlen(out), sizeof out - strlen(out), i ? " %d" : "%d", (int)list.ids[i]);
    free(list.ids);
    return out;
}

static void the_configuration_decides_what_is_added_to_a_model_file(void **state) {
    (void)state;
    const unsigned flags = PDVM_TOKENIZE_ADD_SPECIAL | PDVM_TOKENIZE_PARSE_SPECIAL;
    static const struct {
        const char *config, *ids;
    } CASES[] = {
        {NULL, "1"},
        {"{}", "1"},
        {"{\"add_bos_token\":false}", ""},
        {"{\"add_eos_token\":true}", "1 2"},
        {"{\"add_eos_token\":true,\"eos_token\":{\"content\":\"<s>\"},\"bos_token\":\"</s>\"}",
         "2 1"},
        {"{\"add_bos_token\":null,\"bos_token\":null}", "1"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        struct tokenizer *t = open_model("sp-llama.model", CASES[i].config);
        assert_string_equal(ids_of(t, "", flags), CASES[i].ids);
        tokenizer_free(t);
    }
    struct tokenizer *t =
        open_model("sp-llama.model", "{\"added_tokens_decoder\":{\"600\":{\"content\":\"<|user|>\","
                                     "\"special\":true,\"rstrip\":true},\"1\":{\"content\":\"<s>\","
                                     "\"special\":true}},\"add_bos_token\":false}");
    assert_int_equal(tokenizer_size(t), 601);
    assert_string_equal(ids_of(t, "<|user|>\n<s><|user|>", flags), "600 1 600");
    assert_true(tokenizer_is_special(t, 600));
    tokenizer_free(t);
}

static void a_configuration_that_is_not_legacy_puts_a_space_before_the_text_only(void **state) {
    (void)state;
    struct tokenizer *old = open_model("sp-llama.model", NULL);
    struct tokenizer *new = open_model("sp-llama.model", "{\"legacy\":false}");
    const unsigned flags = PDVM_TOKENIZE_PARSE_SPECIAL;
    char first[256], bare[256], both[600];
    snprintf(first, sizeof first, "%s", ids_of(old, "the", 0));
    assert_string_equal(ids_of(new, "the", 0), first);
    // Behind a special token the old one writes the same again, the new one does without the space.
    snprintf(both, sizeof both, "%s 1 %s", first, first);
    assert_string_equal(ids_of(old, "the<s>the", flags), both);
    size_t len;
    struct token_list list = {0};
    pdvm_error err;
    assert_ok(tokenizer_encode(new, "the<s>the", 9, flags, &list, &err), &err);
    char *text;
    assert_ok(tokenizer_decode(new, list.ids, list.n, TOKENIZER_DECODE_START, &text, &len, &err),
              &err);
    assert_string_equal(text, "thethe");
    free(text);
    free(list.ids);
    snprintf(bare, sizeof bare, "%s", ids_of(new, "<s>the", flags));
    assert_string_not_equal(bare + 2, first);
    tokenizer_free(old);
    tokenizer_free(new);
}

static void only_the_start_of_a_text_loses_its_space(void **state) {
    (void)state;
    struct tokenizer *t = open_model("sp-llama.model", NULL);
    struct token_list list = {0};
    pdvm_error err;
    size_t len;
    char *text;
    assert_ok(tokenizer_encode(t, "the Queen", 9, PDVM_TOKENIZE_ADD_SPECIAL, &list, &err), &err);
    assert_true(tokenizer_begins_text(t, list.ids[0]));
    assert_ok(tokenizer_decode(t, list.ids, list.n, TOKENIZER_DECODE_START, &text, &len, &err),
              &err);
    assert_string_equal(text, "the Queen");
    free(text);
    assert_ok(tokenizer_decode(t, list.ids, list.n, 0, &text, &len, &err), &err);
    assert_string_equal(text, " the Queen");
    free(text);
    // With the name of the token that begins the text there is no space at the start.
    assert_ok(tokenizer_decode(t, list.ids, list.n,
                               TOKENIZER_DECODE_START | TOKENIZER_DECODE_SPECIAL, &text, &len,
                               &err),
              &err);
    assert_string_equal(text, "<s> the Queen");
    free(text);
    free(list.ids);
    tokenizer_free(t);
}

static void time_units(const struct tokenizer *t) {
    static const char *const UNITS[] = {"a",   " ",    "\n",          "th",           "the Queen ",
                                        " a",  "a  ",  "\xc3\xa9",    "\xe4\xbb\x8a", "\xcc\x81",
                                        "<s>", "<x> ", "\xe2\x96\x81"};
    for (size_t j = 0; j < sizeof UNITS / sizeof *UNITS; j++)
        tokenizer_check_speed(t, UNITS[j], "x");
}

static int n_timed;

static void time_variant(struct tokenizer *t, const json_t *variant, const json_t *texts) {
    static const char *const NAMES[] = {"plain", "crossing", "first and split", "NFKC",
                                        "more added tokens"};
    const char *name = json_string_value(json_object_get(variant, "name"));
    bool wanted = false;
    (void)texts;
    for (size_t j = 0; j < sizeof NAMES / sizeof *NAMES; j++) wanted |= strcmp(name, NAMES[j]) == 0;
    if (!wanted || json_integer_value(json_object_get(variant, "flags")) != 2) return;
    time_units(t);
    n_timed++;
}

static void megabytes_without_words_take_no_quadratic_time(void **state) {
    (void)state;
    n_timed = 0;
    tokenizer_each_variant("sp-tokenizer.json", "sp-cases.json", time_variant);
    assert_int_equal(n_timed, 5);
    struct tokenizer *t = open_model("sp-llama.model", NULL);
    time_units(t);
    tokenizer_free(t);
}

#define VOCAB "\"vocab\":{\"<unk>\":0,\"\xe2\x96\x81\":1,\"a\":2},\"merges\":[]"
#define FILE_WITH(model, members) "{\"model\":{\"type\":\"BPE\"," VOCAB model "}," members "}"
#define SEQUENCE(list) "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" list "]}"
#define FUSE "{\"type\":\"Fuse\"}"

static void what_is_not_known_is_named(void **state) {
    (void)state;
    static const struct {
        const char *json;
        pdvm_status status;
        const char *names;
    } CASES[] = {
        {FILE_WITH("", SEQUENCE(FUSE)), PDVM_OK, NULL},
        {FILE_WITH("", "\"pre_tokenizer\":null"), PDVM_ERR_UNSUPPORTED, "decoder"},
        {FILE_WITH("", "\"decoder\":{\"type\":\"ByteLevel\"}"), PDVM_ERR_UNSUPPORTED, "ByteLevel"},
        {FILE_WITH(",\"unk_token\":\"?\"", SEQUENCE(FUSE)), PDVM_ERR_FORMAT, "unk_token"},
        {FILE_WITH("", SEQUENCE(FUSE) ",\"normalizer\":{\"type\":\"Precompiled\"}"),
         PDVM_ERR_UNSUPPORTED, "Precompiled"},
        {FILE_WITH("", SEQUENCE(FUSE) ",\"normalizer\":{\"type\":\"Prepend\"}"), PDVM_ERR_FORMAT,
         "normalizer.prepend"},
        {FILE_WITH("", SEQUENCE(FUSE) ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":"
                                      "{\"String\":\"\"},\"content\":\"x\"}"),
         PDVM_ERR_UNSUPPORTED, "pattern is empty"},
        {FILE_WITH("", SEQUENCE(FUSE) ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":"
                                      "{\"String\":\"a\"}}"),
         PDVM_ERR_FORMAT, "normalizer.content"},
        {FILE_WITH("", SEQUENCE(FUSE) ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":"
                                      "\"__\"}"),
         PDVM_ERR_FORMAT, "one character"},
        {FILE_WITH("", SEQUENCE(FUSE) ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":"
                                      "\"_\",\"prepend_scheme\":\"last\"}"),
         PDVM_ERR_FORMAT, "\"last\""},
        {FILE_WITH("", SEQUENCE(FUSE) ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":"
                                      "\"_\",\"prepend_scheme\":\"first\","
                                      "\"add_prefix_space\":false}"),
         PDVM_ERR_FORMAT, "add_prefix_space"},
        {FILE_WITH("", SEQUENCE("{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}")),
         PDVM_ERR_UNSUPPORTED, "decoders[0]"},
        {FILE_WITH("",
                   SEQUENCE(FUSE ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}")),
         PDVM_ERR_UNSUPPORTED, "decoders[1]"},
        {FILE_WITH("", SEQUENCE("{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},"
                                "\"content\":\"bb\"}")),
         PDVM_ERR_UNSUPPORTED, "longer"},
        {FILE_WITH("", SEQUENCE(FUSE ",{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},"
                                     "\"content\":\"b\"}")),
         PDVM_ERR_UNSUPPORTED, "after"},
        {FILE_WITH("", SEQUENCE("{\"type\":\"CTC\"}")), PDVM_ERR_UNSUPPORTED, "CTC"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        struct tokenizer *t = NULL;
        pdvm_error err;
        pdvm_status status =
            tokenizer_open("t.json", CASES[i].json, strlen(CASES[i].json), &t, &err);
        if (CASES[i].status == PDVM_OK) {
            assert_ok(status, &err);
            tokenizer_free(t);
        } else {
            assert_error(status, CASES[i].status, &err, CASES[i].names);
            assert_error(status, CASES[i].status, &err, "t.json");
        }
    }
}

static void a_normaliser_that_explodes_is_stopped(void **state) {
    (void)state;
    // Each step makes the text sixteen times longer.
    char json[4096] =
        "{\"model\":{\"type\":\"BPE\"," VOCAB
        "}," SEQUENCE(FUSE) ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[";
    for (int i = 0; i < 12; i++)
        snprintf(json + strlen(json), sizeof json - strlen(json),
                 "%s{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":"
                 "\"aaaaaaaaaaaaaaaa\"}",
                 i ? "," : "");
    snprintf(json + strlen(json), sizeof json - strlen(json), "]}}");
    struct tokenizer *t;
    struct token_list list = {0};
    pdvm_error err;
    assert_ok(tokenizer_open("t.json", json, strlen(json), &t, &err), &err);
    assert_error(tokenizer_encode(t, "a", 1, 0, &list, &err), PDVM_ERR_UNSUPPORTED, &err, "longer");
    assert_int_equal(list.n, 0);
    free(list.ids);
    tokenizer_free(t);
}

/* ---- model files ----------------------------------------------------------------------------- */

struct proto {
    char data[4096];
    size_t n;
};

static void put(struct proto *p, const void *data, size_t n) {
    assert_true(p->n + n <= sizeof p->data);
    memcpy(p->data + p->n, data, n);
    p->n += n;
}

static void put_field(struct proto *p, int number, const void *data, size_t n) {
    assert_true(number < 16 && n < 128);
    char head[2] = {(char)(number << 3 | 2), (char)n};
    put(p, head, 2);
    put(p, data, n);
}

static void put_piece(struct proto *p, const char *text, float score, int type) {
    struct proto piece = {.n = 0};
    put_field(&piece, 1, text, strlen(text));
    put(&piece, "\x15", 1);
    put(&piece, &score, 4);
    char kind[2] = {0x18, (char)type};
    put(&piece, kind, 2);
    put_field(p, 1, piece.data, piece.n);
}

/* Pieces <unk> <s> </s>, then specifications: BPE, identity, nothing removed. */
static struct proto start_model(void) {
    struct proto p = {.n = 0};
    put_piece(&p, "<unk>", 0, 2);
    put_piece(&p, "<s>", 0, 3);
    put_piece(&p, "</s>", 0, 3);
    put_field(&p, 2, "\x18\x02", 2);
    put_field(&p, 3, "\x0a\x08identity\x20\x00", 12);
    return p;
}

static pdvm_status open_proto(const struct proto *p, struct tokenizer **t, pdvm_error *err) {
    return tokenizer_open_sentencepiece("m.model", p->data, p->n, NULL, 0, t, err);
}

static void pieces_of_one_score_merge_from_the_left(void **state) {
    (void)state;
    struct proto p = start_model();
    put_piece(&p, "\xe2\x96\x81", -9, 1);
    put_piece(&p, "a", -9, 1);
    put_piece(&p, "b", -9, 1);
    put_piece(&p, "ab", -1, 1);
    put_piece(&p, "ba", -1, 1);
    struct tokenizer *t;
    pdvm_error err;
    assert_ok(open_proto(&p, &t, &err), &err);
    assert_string_equal(ids_of(t, "aba", 0), "3 6 4");
    assert_string_equal(ids_of(t, "bab", 0), "3 7 5");
    tokenizer_free(t);
    put_piece(&p,
              "\xe2\x96\x81"
              "b",
              -0.5f, 1);
    assert_ok(open_proto(&p, &t, &err), &err);
    assert_string_equal(ids_of(t, "bab", 0), "8 6");
    assert_string_equal(ids_of(t, "b?!b", 0), "8 0 5");
    tokenizer_free(t);
}

static void model_files_with_a_fault_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *text;
        float score;
        int type;
        pdvm_status status;
        const char *names;
    } PIECES[] = {
        {"", 0, 1, PDVM_ERR_FORMAT, "pieces[3].piece"},
        {"\xff", 0, 1, PDVM_ERR_FORMAT, "UTF-8"},
        {"a", 0.0f / 0.0f, 1, PDVM_ERR_FORMAT, "pieces[3].score"},
        {"a", 1.0f / 0.0f, 1, PDVM_ERR_FORMAT, "pieces[3].score"},
        {"a", 0, 5, PDVM_ERR_UNSUPPORTED, "UNUSED"},
        {"a", 0, 7, PDVM_ERR_FORMAT, "pieces[3].type"},
        {"a", 0, 2, PDVM_ERR_FORMAT, "UNKNOWN"},
        {"<s>", 0, 3, PDVM_ERR_FORMAT, "occurs twice"},
        {"<s>", 0, 1, PDVM_ERR_FORMAT, "occurs twice"},
        {"<0x00>", 0, 6, PDVM_ERR_FORMAT, "byte_fallback"},
        {"ab", 0, 1, PDVM_ERR_UNSUPPORTED, "no piece"},
    };
    struct tokenizer *t;
    pdvm_error err;
    for (size_t i = 0; i < sizeof PIECES / sizeof *PIECES; i++) {
        struct proto p = start_model();
        put_piece(&p, PIECES[i].text, PIECES[i].score, PIECES[i].type);
        assert_error(open_proto(&p, &t, &err), PIECES[i].status, &err, PIECES[i].names);
        assert_error(err.status, PIECES[i].status, &err, "m.model");
    }
    static const struct {
        int number;
        const char *data;
        size_t n;
        pdvm_status status;
        const char *names;
    } SPECS[] = {
        {2, "\x18\x01", 2, PDVM_ERR_UNSUPPORTED, "unigram"},
        {2, "", 0, PDVM_ERR_UNSUPPORTED, "unigram"},
        {2, "\x18\x03", 2, PDVM_ERR_UNSUPPORTED, "word"},
        {2, "\x18\x02\x98\x02\x01", 5, PDVM_ERR_FORMAT, "<0x00>"},
        {2, "\x18\x02\xc0\x01\x01", 5, PDVM_ERR_UNSUPPORTED, "suffix"},
        {2, "\x1a\x00", 2, PDVM_ERR_FORMAT, "model_type"},
        {3, "\x0a\x04nfkc\x20\x00", 8, PDVM_ERR_UNSUPPORTED, "nfkc"},
        {3, "\x12\x01x\x20\x00", 5, PDVM_ERR_UNSUPPORTED, "charsmap"},
        {3, "", 0, PDVM_ERR_UNSUPPORTED, "remove_extra_whitespaces"},
        {3, "\x20\x00\x28\x00", 4, PDVM_ERR_UNSUPPORTED, "escape_whitespaces"},
        {5, "\x12\x01x", 3, PDVM_ERR_UNSUPPORTED, "denormalizer_spec"},
    };
    for (size_t i = 0; i < sizeof SPECS / sizeof *SPECS; i++) {
        struct proto p = {.n = 0};
        put_piece(&p, "<unk>", 0, 2);
        if (SPECS[i].number != 2) put_field(&p, 2, "\x18\x02", 2);
        if (SPECS[i].number != 3) put_field(&p, 3, "\x20\x00", 2);
        put_field(&p, SPECS[i].number, SPECS[i].data, SPECS[i].n);
        assert_error(open_proto(&p, &t, &err), SPECS[i].status, &err, SPECS[i].names);
    }
    static const char *const NOT_MODELS[] = {"",         "{}",   "IQ== 0\n", "\x0a",
                                             "\x0a\x7f", "\x80", "\x07x"};
    for (size_t i = 0; i < sizeof NOT_MODELS / sizeof *NOT_MODELS; i++)
        assert_error(tokenizer_open_sentencepiece("m.model", NOT_MODELS[i], strlen(NOT_MODELS[i]),
                                                  NULL, 0, &t, &err),
                     PDVM_ERR_FORMAT, &err, "m.model");
}

static void damaged_model_files_never_do_harm(void **state) {
    (void)state;
    size_t size;
    char *data = tokenizer_read_golden("sp-llama.model", &size);
    for (size_t i = 0; i < size; i += 7) {
        struct tokenizer *t = NULL;
        pdvm_error err;
        if (tokenizer_open_sentencepiece("m", data, i, NULL, 0, &t, &err) == PDVM_OK)
            tokenizer_free(t);
        char old = data[i];
        data[i] = (char)(old ^ (1 << i % 8));
        if (tokenizer_open_sentencepiece("m", data, size, NULL, 0, &t, &err) == PDVM_OK)
            tokenizer_free(t);
        data[i] = old;
    }
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_and_texts_equal_the_reference_in_all_variants),
        cmocka_unit_test(ids_and_texts_of_model_files_equal_sentencepiece),
        cmocka_unit_test(the_configuration_decides_what_is_added_to_a_model_file),
        cmocka_unit_test(a_configuration_that_is_not_legacy_puts_a_space_before_the_text_only),
        cmocka_unit_test(only_the_start_of_a_text_loses_its_space),
        cmocka_unit_test(megabytes_without_words_take_no_quadratic_time),
        cmocka_unit_test(what_is_not_known_is_named),
        cmocka_unit_test(a_normaliser_that_explodes_is_stopped),
        cmocka_unit_test(pieces_of_one_score_merge_from_the_left),
        cmocka_unit_test(model_files_with_a_fault_are_refused_by_name),
        cmocka_unit_test(damaged_model_files_never_do_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
