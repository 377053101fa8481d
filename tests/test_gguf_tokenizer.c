// Tokenizers from GGUF keys: the reference's ids on real vocabularies, and the ways of splitting.

#include "io/json.h"
#include "model/gguf_metadata.h"
#include "model/tokenizer.h"
#include "support/gguf_writer.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *open_set(struct gguf_set *set) {
    struct tokenizer *t;
    pdvm_error err = {0};
    char *json;
    assert_ok(gguf_make_tokenizer(set, &json, &err), &err);
    assert_non_null(json);
    pdvm_status status = tokenizer_open("tokenizer.json", json, strlen(json), &t, &err);
    free(json);
    gguf_set_close(set);
    assert_ok(status, &err);
    return t;
}

static void check(const struct tokenizer *t, const char *text, size_t len, const int32_t *expected,
                  size_t n) {
    struct token_list list = {0};
    pdvm_error err = {0};
    assert_ok(tokenizer_encode(t, text, len, 0, &list, &err), &err);
    if (list.n != n || (n > 0 && memcmp(list.ids, expected, n * sizeof *expected) != 0))
        fail_msg("other ids for \"%.*s\"", (int)len, text);
    free(list.ids);
}

// The cases of a .inp file, separated by a line, and the ids of the .out file, a line each.
static size_t check_cases(const struct tokenizer *t, const char *folder, const char *name) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char file[128];
    size_t n_cases = 0;
    snprintf(file, sizeof file, "tokenizers/%s/%s.inp", folder, name);
    char *path = support_shared_path(file), *input = support_read_file(path, NULL);
    free(path);
    snprintf(file, sizeof file, "tokenizers/%s/%s.out", folder, name);
    path = support_shared_path(file);
    char *output = support_read_file(path, NULL), *line = output;
    free(path);
    for (char *text = input; text; n_cases++) {
        int32_t ids[1024];
        size_t n = 0;
        char *end = strstr(text, separator), *stop = strchr(line, '\n');
        size_t len = end ? (size_t)(end - text) : strlen(text);
        if (!stop) stop = line + strlen(line);
        while (line < stop) {
            char *rest;
            long id = strtol(line, &rest, 10);
            if (rest == line || rest > stop) break;
            ids[n++] = (int32_t)id;
            line = rest;
        }
        line = *stop ? stop + 1 : stop;
        check(t, text, len, ids, n);
        text = end ? end + strlen(separator) : NULL;
    }
    free(input);
    free(output);
    return n_cases;
}

static size_t check_lines(const struct tokenizer *t, const char *folder) {
    char file[128];
    size_t n_cases = 0;
    snprintf(file, sizeof file, "tokenizers/%s/expected.jsonl", folder);
    char *path = support_shared_path(file), *lines = support_read_file(path, NULL);
    for (char *line = lines, *end; (end = strchr(line, '\n')); line = end + 1, n_cases++) {
        json_t *root = json_loadb(line, (size_t)(end - line), JSON_ALLOW_NUL, NULL);
        int32_t ids[8192];
        assert_non_null(root);
        const json_t *text = json_object_get(root, "text"), *list = json_object_get(root, "ids");
        size_t n = json_array_size(list);
        assert_true(n <= 8192);
        for (size_t i = 0; i < n; i++)
            ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
        check(t, json_string_value(text), json_string_length(text), ids, n);
        json_decref(root);
    }
    free(path);
    free(lines);
    return n_cases;
}

static void check_vocabulary(const char *folder, const char *name) {
    char file[128];
    struct gguf_set set;
    pdvm_error err = {0};
    snprintf(file, sizeof file, "tokenizers/%s/%s", folder, name);
    char *path = support_shared_path(file);
    assert_ok(gguf_set_open(path, &set, &err), &err);
    free(path);
    struct tokenizer *t = open_set(&set);
    assert_true(check_cases(t, folder, name) > 40);
    assert_true(check_lines(t, folder) > 200);
    tokenizer_free(t);
}

static void ids_equal_the_reference_with_gpt2(void **state) {
    (void)state;
    check_vocabulary("gpt2", "ggml-vocab-gpt-2.gguf");
}

static void ids_equal_the_reference_with_llama2(void **state) {
    (void)state;
    check_vocabulary("llama2", "ggml-vocab-llama-spm.gguf");
}

// ---- small vocabularies ---------------------------------------------------------------------

static const char *const tokens[] = {"1",        "2",        "3",        "4",
                                     "12",       "123",      "1234",     "e",
                                     "\xcc\x81", "\xc3\x83", "\xc2\xa9", "\xc3\x83\xc2\xa9",
                                     "<s>"};
static const int32_t types[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3};
static const char *const merges[] = {"1 2", "12 3", "123 4", "\xc3\x83 \xc2\xa9"};

static struct tokenizer *open_small(const char *pre) {
    struct gguf_writer w = {0};
    struct gguf_set set;
    pdvm_error err = {0};
    size_t size;
    gguf_write_string(&w, "tokenizer.ggml.model", "gpt2");
    if (pre) gguf_write_string(&w, "tokenizer.ggml.pre", pre);
    gguf_write_strings(&w, "tokenizer.ggml.tokens", tokens, 13);
    gguf_write_i32s(&w, "tokenizer.ggml.token_type", types, 13);
    gguf_write_strings(&w, "tokenizer.ggml.merges", merges, 4);
    gguf_write_u32(&w, "tokenizer.ggml.bos_token_id", 12);
    uint8_t *data = gguf_writer_finish(&w, &size);
    assert_ok(gguf_set_open_memory("m.gguf", data, size, &set, &err), &err);
    struct tokenizer *t = open_set(&set);
    free(data);
    return t;
}

static void numbers_are_split_as_the_pre_tokenizer_asks(void **state) {
    static const struct {
        const char *pre;
        int32_t ids[4];
        size_t n;
    } cases[] = {
        {"gpt-2", {6}, 1},           {"llama-bpe", {5, 3}, 2},       {"qwen2", {0, 1, 2, 3}, 4},
        {"smollm", {0, 1, 2, 3}, 4}, {"tekken", {0, 1, 2, 3}, 4},    {"gpt-4o", {5, 3}, 2},
        {"falcon", {5, 3}, 2},       {"default", {5, 3}, 2},         {"dbrx", {5, 3}, 2},
        {NULL, {5, 3}, 2},           {"starcoder", {0, 1, 2, 3}, 4}, {"falcon3", {5, 3}, 2},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokenizer *t = open_small(cases[i].pre);
        check(t, "1234", 4, cases[i].ids, cases[i].n);
        tokenizer_free(t);
    }
}

static void qwen2_composes_characters(void **state) {
    (void)state;
    struct tokenizer *t = open_small("qwen2");
    check(t, "e\xcc\x81", 3, (const int32_t[]){11}, 1);
    tokenizer_free(t);
}

static void bos_is_added_where_the_key_or_the_kind_asks(void **state) {
    (void)state;
    static const char *const pres[] = {"llama-bpe", "gpt-2"};
    for (int i = 0; i < 2; i++) {
        struct tokenizer *t = open_small(pres[i]);
        struct token_list list = {0};
        pdvm_error err = {0};
        assert_ok(tokenizer_encode(t, "1", 1, PDVM_TOKENIZE_ADD_SPECIAL, &list, &err), &err);
        assert_int_equal(list.n, i == 0 ? 2 : 1);
        assert_int_equal(list.ids[0], i == 0 ? 12 : 0);
        free(list.ids);
        tokenizer_free(t);
    }
}

// What SentencePiece models become: merges from scores, the best first.
static void scores_become_merges(void **state) {
    static const char *const pieces[] = {"<unk>", "<s>", "</s>", "<0x41>", "a",
                                         "b",     "ab",  "ba",   "aba"};
    static const int32_t kinds[] = {2, 3, 3, 6, 1, 1, 1, 1, 1};
    static const float scores[] = {0, 0, 0, 0, -9, -8, -3, -2, -5};
    static const char *const expected[] = {"b", "a", "a", "b", "a", "ba", "ab", "a"};
    struct gguf_writer w = {0};
    struct gguf_set set;
    pdvm_error err = {0};
    size_t size;
    char *json;
    json_t *root;
    (void)state;
    gguf_write_string(&w, "tokenizer.ggml.model", "llama");
    gguf_write_strings(&w, "tokenizer.ggml.tokens", pieces, 9);
    gguf_write_i32s(&w, "tokenizer.ggml.token_type", kinds, 9);
    gguf_write_f32s(&w, "tokenizer.ggml.scores", scores, 9);
    gguf_write_u32(&w, "tokenizer.ggml.bos_token_id", 1);
    gguf_write_u32(&w, "tokenizer.ggml.unknown_token_id", 0);
    uint8_t *data = gguf_writer_finish(&w, &size);
    assert_ok(gguf_set_open_memory("m.gguf", data, size, &set, &err), &err);
    assert_ok(gguf_make_tokenizer(&set, &json, &err), &err);
    assert_ok(pd_json_parse_object("tokenizer.json", json, strlen(json), &root, &err), &err);
    const json_t *model = json_object_get(root, "model");
    const json_t *list = json_object_get(model, "merges");
    assert_int_equal(json_array_size(list), 4);
    for (size_t i = 0; i < 8; i++)
        assert_string_equal(json_string_value(json_array_get(json_array_get(list, i / 2), i % 2)),
                            expected[i]);
    assert_true(json_is_true(json_object_get(model, "byte_fallback")));
    assert_string_equal(json_string_value(json_object_get(model, "unk_token")), "<unk>");
    assert_int_equal(json_object_size(json_object_get(model, "vocab")), 9);
    assert_int_equal(json_array_size(json_object_get(root, "added_tokens")), 3);
    assert_non_null(strstr(json, "TemplateProcessing"));
    json_decref(root);
    free(json);
    gguf_set_close(&set);
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_equal_the_reference_with_gpt2),
        cmocka_unit_test(ids_equal_the_reference_with_llama2),
        cmocka_unit_test(numbers_are_split_as_the_pre_tokenizer_asks),
        cmocka_unit_test(qwen2_composes_characters),
        cmocka_unit_test(bos_is_added_where_the_key_or_the_kind_asks),
        cmocka_unit_test(scores_become_merges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
