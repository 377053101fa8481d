#include "support/tokenizer_checks.h"

#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

char *tokenizer_read_golden(const char *name, size_t *size) {
    char *dir = support_golden_path("tokenizer-small"), *path = support_path(dir, name);
    char *data = support_read_file(path, size);
    free(path);
    free(dir);
    return data;
}

json_t *tokenizer_load_golden(const char *name) {
    size_t size;
    char *data = tokenizer_read_golden(name, &size);
    json_t *root = json_loadb(data, size, JSON_ALLOW_NUL, NULL);
    assert_non_null(root);
    free(data);
    return root;
}

struct tokenizer *tokenizer_open_made(const json_t *root, const char *name) {
    char *text = json_dumps(root, JSON_COMPACT);
    assert_non_null(text);
    struct tokenizer *t;
    pdvm_error err;
    if (tokenizer_open("t.json", text, strlen(text), &t, &err) != PDVM_OK)
        fail_msg("%s: %s", name, err.message);
    free(text);
    return t;
}

void tokenizer_each_variant(const char *base_name, const char *cases_name,
                            void (*fn)(struct tokenizer *t, const json_t *variant,
                                       const json_t *texts)) {
    json_t *base = tokenizer_load_golden(base_name), *golden = tokenizer_load_golden(cases_name);
    const json_t *variants = json_object_get(golden, "variants");
    assert_true(json_array_size(variants) > 20);
    for (size_t i = 0; i < json_array_size(variants); i++) {
        const json_t *v = json_array_get(variants, i);
        json_t *root = json_deep_copy(base);
        json_object_update(root, json_object_get(v, "members"));
        json_object_update(json_object_get(root, "model"), json_object_get(v, "model"));
        struct tokenizer *t =
            tokenizer_open_made(root, json_string_value(json_object_get(v, "name")));
        fn(t, v, json_object_get(golden, "texts"));
        tokenizer_free(t);
        json_decref(root);
    }
    json_decref(golden);
    json_decref(base);
}

void tokenizer_check_ids(const struct tokenizer *t, const char *name, const json_t *text,
                         unsigned flags, const json_t *ids) {
    struct token_list list = {0};
    pdvm_error err;
    assert_ok(
        tokenizer_encode(t, json_string_value(text), json_string_length(text), flags, &list, &err),
        &err);
    bool same = list.n == json_array_size(ids);
    for (size_t i = 0; same && i < list.n; i++)
        same = list.ids[i] == json_integer_value(json_array_get(ids, i));
    if (!same) {
        char *quoted = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        char *expected = json_dumps(ids, 0);
        fprintf(stderr, "%s: %s\n  expected %s\n  got", name, quoted, expected);
        for (size_t i = 0; i < list.n; i++) fprintf(stderr, " %d", (int)list.ids[i]);
        fputc('\n', stderr);
        free(quoted);
        free(expected);
        fail();
    }
    free(list.ids);
}

double tokenizer_seconds(void) {
    return (double)clock() / CLOCKS_PER_SEC;
}

void tokenizer_check_speed(const struct tokenizer *t, const char *unit, const char *tail) {
    size_t unit_len = strlen(unit), n = 1000000 / unit_len * unit_len, tail_len = strlen(tail);
    char *text = malloc(n + tail_len);
    assert_non_null(text);
    for (size_t i = 0; i < n; i += unit_len) memcpy(text + i, unit, unit_len);
    memcpy(text + n, tail, tail_len);
    struct token_list list = {0};
    pdvm_error err;
    double start = tokenizer_seconds();
    assert_ok(tokenizer_encode(t, text, n + tail_len, PDVM_TOKENIZE_PARSE_SPECIAL, &list, &err),
              &err);
    double seconds = tokenizer_seconds() - start;
    if (seconds > GENEROUS_SECONDS) fail_msg("1 MB of \"%s\" took %.1f s", unit, seconds);
    assert_true(list.n > 0);
    free(list.ids);
    free(text);
}
