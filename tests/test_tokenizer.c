#include "support/support.h"
#include "support/tokenizer_checks.h"

#include "model/tokenizer.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *load_json(const char *path) {
    json_error_t e;
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &e);
    if (!root) fail_msg("%s: %s", path, e.text);
    return root;
}

static pdvm_status open_json(const json_t *root, struct tokenizer **t, pdvm_error *err) {
    char *text = json_dumps(root, JSON_COMPACT);
    assert_non_null(text);
    pdvm_status status = tokenizer_open("t.json", text, strlen(text), t, err);
    free(text);
    return status;
}

static struct tokenizer *open_small(void) {
    json_t *root = tokenizer_load_golden("tokenizer.json");
    struct tokenizer *t;
    pdvm_error err;
    assert_ok(open_json(root, &t, &err), &err);
    json_decref(root);
    return t;
}

static struct tokenizer *open_text(const char *json) {
    struct tokenizer *t;
    pdvm_error err;
    assert_ok(tokenizer_open("t.json", json, strlen(json), &t, &err), &err);
    return t;
}

static void check_variant(struct tokenizer *t, const json_t *variant, const json_t *texts) {
    const char *name = json_string_value(json_object_get(variant, "name")), *number;
    unsigned flags = (unsigned)json_integer_value(json_object_get(variant, "flags"));
    json_t *all = json_object_get(variant, "ids"), *ids;
    assert_true(json_object_size(all) > 30);
    json_object_foreach(all, number, ids) {
        tokenizer_check_ids(t, name, json_array_get(texts, strtoul(number, NULL, 10)), flags, ids);
    }
}

static void ids_equal_the_reference_in_all_variants(void **state) {
    (void)state;
    tokenizer_each_variant("tokenizer.json", "cases.json", check_variant);
}

/* expected.jsonl: one {"text", "ids"} a line. Texts that contain `leave_out` are not looked at. */
static void check_lines(const struct tokenizer *t, const char *name, const char *leave_out) {
    char *path = support_shared_path(name);
    size_t size;
    char *data = support_read_file(path, &size);
    size_t n = 0;
    for (char *line = strtok(data, "\n"); line; line = strtok(NULL, "\n"), n++) {
        json_t *c = json_loads(line, JSON_ALLOW_NUL, NULL);
        assert_non_null(c);
        if (!leave_out || !strstr(json_string_value(json_object_get(c, "text")), leave_out))
            tokenizer_check_ids(t, name, json_object_get(c, "text"), PDVM_TOKENIZE_PARSE_SPECIAL,
                                json_object_get(c, "ids"));
        json_decref(c);
    }
    assert_true(n > 100);
    free(data);
    free(path);
}

/* Texts of .inp are divided by a line, their ids are lines of .out. */
static void check_divided(const struct tokenizer *t, const char *inp_name, const char *out_name) {
    static const char DIVIDER[] = "\n__ggml_vocab_test__\n";
    char *inp_path = support_shared_path(inp_name), *out_path = support_shared_path(out_name);
    char *inp = support_read_file(inp_path, NULL), *out = support_read_file(out_path, NULL);
    char *text = inp, *line = out;
    size_t n = 0;
    while (text) {
        char *end = strstr(text, DIVIDER);
        if (!end && *text == 0) break;
        if (end) *end = 0;
        char *newline = strchr(line, '\n');
        if (newline) *newline = 0;
        json_t *ids = json_array();
        for (char *p = line; *p;) {
            char *after;
            long id = strtol(p, &after, 10);
            if (after == p) break;
            json_array_append_new(ids, json_integer(id));
            p = after;
        }
        json_t *string = json_string(text);
        tokenizer_check_ids(t, inp_name, string, 0, ids);
        json_decref(string);
        json_decref(ids);
        n++;
        text = end ? end + sizeof DIVIDER - 1 : NULL;
        line = newline ? newline + 1 : line + strlen(line);
    }
    assert_true(n > 30);
    free(inp);
    free(out);
    free(inp_path);
    free(out_path);
}

static void ids_equal_the_reference_for_gpt2(void **state) {
    (void)state;
    char *vocab_path = support_shared_path("tokenizers/gpt2/vocab.json");
    char *merges_path = support_shared_path("tokenizers/gpt2/merges.txt");
    json_t *vocab = load_json(vocab_path), *merges = json_array();
    char *text = support_read_file(merges_path, NULL);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        json_array_append_new(merges, json_string(line));
    json_t *root =
        json_pack("{s:s, s:{s:s, s:b}, s:{s:s}, s:{s:s, s:o, s:o}}", "version", "1.0",
                  "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "decoder", "type",
                  "ByteLevel", "model", "type", "BPE", "vocab", vocab, "merges", merges);
    assert_non_null(root);
    struct tokenizer *t;
    pdvm_error err;
    assert_ok(open_json(root, &t, &err), &err);
    assert_int_equal(tokenizer_size(t), 50257);
    check_lines(t, "tokenizers/gpt2/expected.jsonl", NULL);
    check_divided(t, "tokenizers/gpt2/ggml-vocab-gpt-2.gguf.inp",
                  "tokenizers/gpt2/ggml-vocab-gpt-2.gguf.out");
    tokenizer_free(t);
    json_decref(root);
    free(text);
    free(vocab_path);
    free(merges_path);
}

static void ids_equal_the_reference_for_qwen2(void **state) {
    (void)state;
    char *path = support_shared_path("tokenizers/qwen2/tokenizer.json");
    size_t size;
    char *data = support_read_file(path, &size);
    struct tokenizer *t;
    pdvm_error err;
    assert_ok(tokenizer_open(path, data, size, &t, &err), &err);
    check_lines(t, "tokenizers/qwen2/expected.jsonl", NULL);
    check_divided(t, "tokenizers/qwen2/ggml-vocab-qwen2.gguf.inp",
                  "tokenizers/qwen2/ggml-vocab-qwen2.gguf.out");
    size_t len;
    assert_memory_equal(tokenizer_bytes(t, 1879, false, &len), " world", 6);
    assert_int_equal(len, 6);
    assert_true(tokenizer_is_special(t, tokenizer_find(t, "<|im_end|>", 10)));
    tokenizer_free(t);
    free(data);
    free(path);
}

static void ids_equal_the_reference_for_llama2(void **state) {
    (void)state;
    static const char INP[] = "tokenizers/llama2/ggml-vocab-llama-spm.gguf.inp";
    static const char OUT[] = "tokenizers/llama2/ggml-vocab-llama-spm.gguf.out";
    static const char LINES[] = "tokenizers/llama2/expected.jsonl";
    char *path = support_shared_path("tokenizers/llama2/tokenizer.json");
    size_t size;
    char *data = support_read_file(path, &size);
    struct tokenizer *t;
    pdvm_error err;
    assert_ok(tokenizer_open(path, data, size, &t, &err), &err);
    // This copy of the file has lost the difference of no-break spaces and spaces.
    check_lines(t, LINES, "\xc2\xa0");
    check_divided(t, INP, OUT);
    tokenizer_free(t);
    free(data);
    free(path);

    path = support_shared_path("tokenizers/llama2/tokenizer.model");
    data = support_read_file(path, &size);
    assert_ok(tokenizer_open_sentencepiece(path, data, size, NULL, 0, &t, &err), &err);
    assert_int_equal(tokenizer_size(t), 32000);
    check_lines(t, LINES, NULL);
    check_divided(t, INP, OUT);
    tokenizer_free(t);
    free(data);
    free(path);
}

static void token_bytes_join_to_the_text(void **state) {
    (void)state;
    static const char TEXT[] = "It's caf\xc3\xa9 \xf0\x9f\x98\x80, \xe4\xbb\x8a\n\tword <|end|>!";
    struct tokenizer *t = open_small();
    struct token_list list = {0};
    pdvm_error err;
    assert_ok(tokenizer_encode(t, TEXT, sizeof TEXT - 1, PDVM_TOKENIZE_PARSE_SPECIAL, &list, &err),
              &err);
    char joined[256];
    size_t n = 0;
    for (size_t i = 0; i < list.n; i++) {
        size_t len;
        const char *bytes = tokenizer_bytes(t, list.ids[i], true, &len);
        assert_non_null(bytes);
        memcpy(joined + n, bytes, len);
        n += len;
    }
    assert_int_equal(n, sizeof TEXT - 1);
    assert_memory_equal(joined, TEXT, n);
    free(list.ids);
    tokenizer_free(t);
}

static void special_tokens_have_no_text_unless_asked_for(void **state) {
    (void)state;
    struct tokenizer *t = open_small();
    size_t len;
    assert_non_null(tokenizer_bytes(t, 500, false, &len));
    assert_int_equal(len, 0);
    assert_memory_equal(tokenizer_bytes(t, 500, true, &len), "<|end|>", 7);
    assert_int_equal(len, 7);
    assert_memory_equal(tokenizer_bytes(t, 501, false, &len), "word", 4);
    assert_int_equal(len, 4);
    assert_null(tokenizer_bytes(t, 503, true, &len));
    assert_null(tokenizer_bytes(t, -1, true, &len));
    assert_int_equal(tokenizer_size(t), 503);
    assert_int_equal(tokenizer_find(t, "<|start|>", 9), 502);
    assert_int_equal(tokenizer_find(t, "<|starts|>", 10), -1);
    assert_true(tokenizer_is_special(t, 502));
    assert_false(tokenizer_is_special(t, 501));
    assert_false(tokenizer_is_special(t, 100000));
    tokenizer_free(t);
}

static void invalid_utf8_is_refused_at_its_offset_and_leaves_the_list_alone(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t len;
        const char *offset;
    } CASES[] = {{"abc\xff", 4, "byte 3"},           {"\xc3", 1, "byte 0"},
                 {"12345678\xc0\x80", 10, "byte 8"}, {"a\xed\xa0\x80", 4, "byte 1"},
                 {"a\xf4\x90\x80\x80", 5, "byte 1"}, {"\xe4\xbb\x8a\xe4\xbb", 5, "byte 3"},
                 {"123456789\x80", 10, "byte 9"}};
    struct tokenizer *t = open_small();
    pdvm_error err;
    struct token_list list = {0};
    assert_ok(tokenizer_encode(t, "a", 1, 0, &list, &err), &err);
    assert_int_equal(list.n, 1);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        assert_error(tokenizer_encode(t, CASES[i].text, CASES[i].len, 0, &list, &err),
                     PDVM_ERR_ARGUMENT, &err, CASES[i].offset);
        assert_int_equal(list.n, 1);
    }
    assert_error(tokenizer_encode(t, "a", 1, 4, &list, &err), PDVM_ERR_ARGUMENT, &err, "flags");
    free(list.ids);
    tokenizer_free(t);
}

static int n_timed;

static void time_variant(struct tokenizer *t, const json_t *variant, const json_t *texts) {
    static const char *const NAMES[] = {"plain", "Llama 3", "GPT-4o", "added tokens 3"};
    const char *name = json_string_value(json_object_get(variant, "name"));
    bool wanted = false;
    (void)texts;
    for (size_t j = 0; j < 4; j++) wanted |= strcmp(name, NAMES[j]) == 0;
    if (!wanted || json_integer_value(json_object_get(variant, "flags")) == 0) return;
    tokenizer_check_speed(t, "a", "");
    tokenizer_check_speed(t, " ", "");
    tokenizer_check_speed(t, " ", "x");
    tokenizer_check_speed(t, "\n", "x");
    tokenizer_check_speed(t, " \n", "x");
    tokenizer_check_speed(t, "'", "s");
    tokenizer_check_speed(t, "abcdefghij klm ", "");
    tokenizer_check_speed(t, "1", "");
    tokenizer_check_speed(t, "word  \n", "");
    tokenizer_check_speed(t, "\xcd\x84\xcc\x96\xcc\x81\xcc\xa7", "");
    tokenizer_check_speed(t, "\xe1\x84\x80\xe1\x85\xa1", "");
    n_timed++;
}

static void long_runs_and_words_take_linear_time(void **state) {
    (void)state;
    n_timed = 0;
    tokenizer_each_variant("tokenizer.json", "cases.json", time_variant);
    assert_int_equal(n_timed, 4);
}

static void combining_marks_of_any_number_are_sorted_in_linear_time(void **state) {
    (void)state;
    json_t *root = tokenizer_load_golden("tokenizer.json");
    json_object_set_new(root, "normalizer", json_pack("{s:s}", "type", "NFC"));
    struct tokenizer *t;
    pdvm_error err;
    assert_ok(open_json(root, &t, &err), &err);
    json_decref(root);
    // Class 230 before class 220: insertion would move each of the second past all of the first.
    size_t half = 200000;
    char *text = malloc(4 * half);
    assert_non_null(text);
    for (size_t i = 0; i < half; i++) {
        memcpy(text + 2 * i, "\xcc\x81", 2);
        memcpy(text + 2 * half + 2 * i, "\xcc\x96", 2);
    }
    struct token_list list = {0}, sorted = {0};
    double start = tokenizer_seconds();
    assert_ok(tokenizer_encode(t, text, 4 * half, 0, &list, &err), &err);
    assert_true(tokenizer_seconds() - start < GENEROUS_SECONDS);
    for (size_t i = 0; i < half; i++) {
        memcpy(text + 2 * i, "\xcc\x96", 2);
        memcpy(text + 2 * half + 2 * i, "\xcc\x81", 2);
    }
    assert_ok(tokenizer_encode(t, text, 4 * half, 0, &sorted, &err), &err);
    assert_int_equal(list.n, sorted.n);
    assert_memory_equal(list.ids, sorted.ids, list.n * sizeof *list.ids);
    free(list.ids);
    free(sorted.ids);
    free(text);
    tokenizer_free(t);
}

#define DECODER "\"decoder\":{\"type\":\"ByteLevel\"}"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define MODEL                                                                                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define ADDED(id, content)                                                                         \
    "{\"id\":" id ",\"content\":\"" content "\",\"special\":true,\"lstrip\":false,"                \
    "\"rstrip\":false,\"single_word\":false,\"normalized\":false}"
#define SPLIT(pattern)                                                                                \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern \
    "\"},\"behavior\":\"Isolated\",\"invert\":false}," BYTE_LEVEL "]}"

static void the_cheapest_merge_comes_first_whatever_the_length(void **state) {
    (void)state;
    // "aaa...": pairs from the left, then pairs of pairs; an odd one stays at the end.
    struct tokenizer *t = open_text(
        "{\"pre_tokenizer\":" BYTE_LEVEL "," DECODER ",\"model\":{\"type\":\"BPE\",\"vocab\":"
        "{\"a\":0,\"aa\":1,\"aaaa\":2},\"merges\":[[\"a\",\"a\"],[\"aa\",\"aa\"]]}}");
    char text[300];
    memset(text, 'a', sizeof text);
    for (size_t n = 1; n <= sizeof text; n++) {
        struct token_list list = {0};
        pdvm_error err;
        assert_ok(tokenizer_encode(t, text, n, 0, &list, &err), &err);
        size_t fours = n / 4, k = 0;
        for (; k < fours; k++) assert_int_equal(list.ids[k], 2);
        if (n % 4 >= 2) assert_int_equal(list.ids[k++], 1);
        if (n % 2 == 1) assert_int_equal(list.ids[k++], 0);
        assert_int_equal(list.n, k);
        free(list.ids);
    }
    tokenizer_free(t);
}

static void an_added_token_stands_for_its_content_as_written(void **state) {
    (void)state;
    struct tokenizer *t = open_text("{\"pre_tokenizer\":" BYTE_LEVEL "," DECODER "," MODEL
                                    ",\"added_tokens\":[" ADDED("3", "\xc4\xa0x") "]}");
    size_t len;
    assert_memory_equal(tokenizer_bytes(t, 3, true, &len), "\xc4\xa0x", 3);
    assert_int_equal(len, 3);
    tokenizer_free(t);
}

static void what_is_not_known_is_named(void **state) {
    (void)state;
    static const struct {
        const char *json;
        pdvm_status status;
        const char *names;
    } CASES[] = {
        {"", PDVM_ERR_FORMAT, "t.json"},
        {"[]", PDVM_ERR_FORMAT, "t.json"},
        {"{}", PDVM_ERR_FORMAT, "model"},
        {"{\"version\":\"2.0\"," MODEL "}", PDVM_ERR_UNSUPPORTED, "version"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", PDVM_ERR_UNSUPPORTED, "Unigram"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", PDVM_ERR_FORMAT, "empty"},
        {"{\"model\":{\"type\":\"BPE\",\"merges\":[]}}", PDVM_ERR_FORMAT, "vocab"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}", PDVM_ERR_FORMAT, "merges"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", PDVM_ERR_FORMAT,
         "\"a\" is -1"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":16777216},\"merges\":[]}}", PDVM_ERR_FORMAT,
         "16777216"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":9000000},\"merges\":[]}}", PDVM_ERR_FORMAT,
         "9000000"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1.5},\"merges\":[]}}", PDVM_ERR_FORMAT,
         "whole number"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}",
         PDVM_ERR_FORMAT, "another piece"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}",
         PDVM_ERR_FORMAT, "t.json"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", PDVM_ERR_FORMAT,
         "second half"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", PDVM_ERR_FORMAT,
         "result"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", PDVM_ERR_FORMAT,
         "merges[0]"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", PDVM_ERR_FORMAT,
         "merges[0]"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}}",
         PDVM_ERR_FORMAT, "merges[0]"},
        {"{\"model\":{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}}",
         PDVM_ERR_UNSUPPORTED, "dropout"},
        {"{\"pre_tokenizer\":" BYTE_LEVEL "," DECODER
         ",\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"a\":0},\"merges\":[]}}",
         PDVM_ERR_UNSUPPORTED, "byte_fallback"},
        {"{\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0},"
         "\"merges\":[]}}",
         PDVM_ERR_UNSUPPORTED, "end_of_word_suffix"},
        {"{\"pre_tokenizer\":" BYTE_LEVEL "," DECODER
         ",\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"vocab\":{\"a\":0},\"merges\":[]}}",
         PDVM_ERR_FORMAT, "unk_token"},
        {"{\"added_tokens\":[1]," MODEL "}", PDVM_ERR_FORMAT, "content"},
        {"{\"added_tokens\":[" ADDED("2", "x") "]," MODEL "}", PDVM_ERR_FORMAT, "added_tokens[0]"},
        {"{\"added_tokens\":[" ADDED("3", "x") "," ADDED("3", "y") "]," MODEL "}", PDVM_ERR_FORMAT,
         "added_tokens[1]"},
        {"{\"added_tokens\":[" ADDED("3", "x") "," ADDED("4", "x") "]," MODEL "}", PDVM_ERR_FORMAT,
         "added_tokens[1]"},
        {"{\"added_tokens\":[" ADDED("3", "") "]," MODEL "}", PDVM_ERR_FORMAT, "added_tokens[0]"},
        {"{" MODEL "," DECODER "}", PDVM_ERR_UNSUPPORTED, "pre_tokenizer"},
        {"{" MODEL ",\"pre_tokenizer\":" BYTE_LEVEL "}", PDVM_ERR_UNSUPPORTED, "decoder"},
        {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"WhitespaceSplit\"}}", PDVM_ERR_UNSUPPORTED,
         "WhitespaceSplit"},
        {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", PDVM_ERR_FORMAT, "replacement"},
        {"{" MODEL ",\"pre_tokenizer\":{\"type\":7}}", PDVM_ERR_FORMAT, "pre_tokenizer"},
        {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL
         "," BYTE_LEVEL "]}}",
         PDVM_ERR_UNSUPPORTED, "pretokenizers[1]"},
        {"{" MODEL ",\"normalizer\":{\"type\":\"Lowercase\"},\"pre_tokenizer\":" BYTE_LEVEL "}",
         PDVM_ERR_UNSUPPORTED, "normalizer is of type \"Lowercase\""},
        {"{" MODEL ",\"decoder\":{\"type\":\"WordPiece\"},\"pre_tokenizer\":" BYTE_LEVEL "}",
         PDVM_ERR_UNSUPPORTED, "WordPiece"},
        {"{" MODEL "," DECODER ",\"pre_tokenizer\":" BYTE_LEVEL
         ",\"post_processor\":{\"type\":\"BertProcessing\"}}",
         PDVM_ERR_UNSUPPORTED, "BertProcessing"},
        {"{" MODEL "," DECODER ",\"pre_tokenizer\":" BYTE_LEVEL
         ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
         "{\"id\":\"x\"}}],\"special_tokens\":{\"x\":{\"ids\":[77]}}}}",
         PDVM_ERR_FORMAT, "\"x\""},
        {"{" MODEL "," DECODER ",\"pre_tokenizer\":" BYTE_LEVEL
         ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}}",
         PDVM_ERR_UNSUPPORTED, "leaves out the text"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        struct tokenizer *t;
        pdvm_error err;
        pdvm_status status =
            tokenizer_open("t.json", CASES[i].json, strlen(CASES[i].json), &t, &err);
        if (status != CASES[i].status) fail_msg("%s: %s", CASES[i].json, err.message);
        assert_error(status, CASES[i].status, &err, CASES[i].names);
        assert_error(status, CASES[i].status, &err, "t.json");
        assert_null(t);
    }
}

static void regexes_that_mean_something_else_in_pcre2_are_refused(void **state) {
    (void)state;
    static const char *const PATTERNS[] = {"(a)\\\\1",
                                           "(?<n>a)",
                                           "(?R)",
                                           "(*ACCEPT)a",
                                           "a(?i)b",
                                           "[[:alpha:]]",
                                           "[a[b]]",
                                           "[a&&b]",
                                           "\\\\bA",
                                           "\\\\G",
                                           "\\\\K",
                                           "\\\\X",
                                           "\\\\R",
                                           "\\\\C",
                                           "a**",
                                           "*a",
                                           "a{2}?",
                                           "a{",
                                           "(a",
                                           "a)",
                                           "[a",
                                           "[]",
                                           "\\\\",
                                           "(?#c)",
                                           "(?C1)",
                                           "\\\\p{}",
                                           "\\\\pL",
                                           "\\\\p{Nope}",
                                           "\\\\xe9",
                                           "\\\\u12",
                                           "(?x:a)",
                                           "\\\\Qa",
                                           "\\\\p{Qq}",
                                           "(?<=a*)b",
                                           "[\\\\s-x]",
                                           "((a{999}){999}){999}",
                                           "\\\\x{110000}",
                                           "\\\\x{d800}",
                                           "\\\\1",
                                           "\\\\07",
                                           "[!-\\\\d]"};
    for (size_t i = 0; i < sizeof PATTERNS / sizeof *PATTERNS; i++) {
        char json[1024];
        snprintf(json, sizeof json, "{" MODEL "," DECODER ",\"pre_tokenizer\":" SPLIT("%s") "}",
                 PATTERNS[i]);
        struct tokenizer *t = NULL;
        pdvm_error err;
        pdvm_status status = tokenizer_open("t.json", json, strlen(json), &t, &err);
        if (status != PDVM_ERR_UNSUPPORTED) fail_msg("%s: status %d", PATTERNS[i], (int)status);
        assert_error(status, PDVM_ERR_UNSUPPORTED, &err, "t.json: pre_tokenizer.pretokenizers[0]");
    }
}

static void overlong_patterns_are_refused(void **state) {
    (void)state;
    char json[4096], pattern[2100];
    memset(pattern, 'a', sizeof pattern);
    pattern[sizeof pattern - 1] = 0;
    snprintf(json, sizeof json, "{" MODEL "," DECODER ",\"pre_tokenizer\":" SPLIT("%s") "}",
             pattern);
    struct tokenizer *t;
    pdvm_error err;
    assert_error(tokenizer_open("t.json", json, strlen(json), &t, &err), PDVM_ERR_UNSUPPORTED, &err,
                 "limit");
}

static void runaway_patterns_end_in_an_error(void **state) {
    (void)state;
    // Explosive, quadratic within one match, quadratic over all matches.
    static const struct {
        const char *pattern;
        size_t len;
    } CASES[] = {{"(?:a+)+b", 40},         {"(?:a|aa)+b", 60},       {"(?:a*a*)*b", 5000},
                 {"a*a*a*a*b", 5000},      {"(?:a?){30}a{30}b", 60}, {"a*a*+b", 100000},
                 {"(?:(?=a*)a)+b", 50000}, {"(?>a*)b|x", 400000}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char json[1024];
        snprintf(json, sizeof json, "{" MODEL "," DECODER ",\"pre_tokenizer\":" SPLIT("%s") "}",
                 CASES[i].pattern);
        struct tokenizer *t = open_text(json);
        // The letter that the patterns want is there, but never where they want it.
        size_t n = CASES[i].len;
        char *text = malloc(n + 2);
        assert_non_null(text);
        memset(text, 'a', n);
        memcpy(text + n, "!b", 2);
        struct token_list list = {0};
        pdvm_error err;
        double start = tokenizer_seconds();
        pdvm_status status = tokenizer_encode(t, text, n + 2, 0, &list, &err);
        double seconds = tokenizer_seconds() - start;
        assert_error(status, PDVM_ERR_UNSUPPORTED, &err, CASES[i].pattern);
        assert_error(status, PDVM_ERR_UNSUPPORTED, &err, "t.json");
        assert_int_equal(list.n, 0);
        if (seconds > GENEROUS_SECONDS) fail_msg("%s took %.1f s", CASES[i].pattern, seconds);
        free(list.ids);
        free(text);
        tokenizer_free(t);
    }
}

struct thread_case {
    const struct tokenizer *t;
    const char *text;
    size_t len;
    const struct token_list *expected;
    bool same;
};

static void *encode_often(void *arg) {
    struct thread_case *c = arg;
    c->same = true;
    for (int i = 0; i < 20; i++) {
        struct token_list list = {0};
        pdvm_status status = tokenizer_encode(c->t, c->text, c->len, 0, &list, NULL);
        c->same = c->same && status == PDVM_OK && list.n == c->expected->n &&
                  memcmp(list.ids, c->expected->ids, list.n * sizeof *list.ids) == 0;
        free(list.ids);
    }
    return NULL;
}

static void threads_may_share_a_tokenizer(void **state) {
    (void)state;
    struct tokenizer *t = open_small();
    char *path = support_source_path("tests/golden/tokenizer-small/looking-glass.txt");
    size_t size;
    char *text = support_read_file(path, &size);
    struct token_list expected = {0};
    pdvm_error err;
    assert_ok(tokenizer_encode(t, text, size, 0, &expected, &err), &err);
    pthread_t threads[4];
    struct thread_case cases[4];
    for (int i = 0; i < 4; i++) {
        cases[i] = (struct thread_case){t, text, size, &expected, false};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, &cases[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_true(cases[i].same);
    }
    free(expected.ids);
    free(text);
    free(path);
    tokenizer_free(t);
}

static void damaged_files_never_do_harm(void **state) {
    (void)state;
    char *path = support_source_path("tests/golden/tokenizer-small/tokenizer.json");
    size_t size;
    char *data = support_read_file(path, &size);
    for (size_t i = 0; i < size; i += 7) {
        struct tokenizer *t = NULL;
        pdvm_error err;
        assert_int_not_equal(tokenizer_open("t.json", data, i, &t, &err), PDVM_OK);
        char old = data[i];
        data[i] = (char)(old ^ (1 << i % 8));
        if (tokenizer_open("t.json", data, size, &t, &err) == PDVM_OK) tokenizer_free(t);
        data[i] = old;
    }
    free(data);
    free(path);
}

// ctest: labels=threads
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_equal_the_reference_in_all_variants),
        cmocka_unit_test(ids_equal_the_reference_for_gpt2),
        cmocka_unit_test(ids_equal_the_reference_for_qwen2),
        cmocka_unit_test(ids_equal_the_reference_for_llama2),
        cmocka_unit_test(token_bytes_join_to_the_text),
        cmocka_unit_test(special_tokens_have_no_text_unless_asked_for),
        cmocka_unit_test(invalid_utf8_is_refused_at_its_offset_and_leaves_the_list_alone),
        cmocka_unit_test(long_runs_and_words_take_linear_time),
        cmocka_unit_test(combining_marks_of_any_number_are_sorted_in_linear_time),
        cmocka_unit_test(the_cheapest_merge_comes_first_whatever_the_length),
        cmocka_unit_test(an_added_token_stands_for_its_content_as_written),
        cmocka_unit_test(what_is_not_known_is_named),
        cmocka_unit_test(regexes_that_mean_something_else_in_pcre2_are_refused),
        cmocka_unit_test(overlong_patterns_are_refused),
        cmocka_unit_test(runaway_patterns_end_in_an_error),
        cmocka_unit_test(threads_may_share_a_tokenizer),
        cmocka_unit_test(damaged_files_never_do_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
