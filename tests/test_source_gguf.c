// GGUF files as model sources: the same logits as the directories they were made from, what is
// found in them, what is refused, and what becomes of them in a .pdvm file.

#include "base/random.h"
#include "compress/convert.h"
#include "engine/engine.h"
#include "io/gguf_types.h"
#include "model/source.h"
#include "support/gguf_writer.h"
#include "support/hf_model.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct model_source *open_good(const char *path) {
    struct model_source *s;
    pdvm_error err = {0};
    assert_ok(source_open(path, &s, &err), &err);
    return s;
}

static void assert_open_fails(const char *path, pdvm_status expected, const char *text) {
    struct model_source *s = (struct model_source *)(uintptr_t)path;
    pdvm_error err = {0};
    pdvm_status status = source_open(path, &s, &err);
    assert_error(status, expected, &err, text);
    assert_error(status, expected, &err, path);
    assert_null(s);
}

static float *read_all(struct model_source *s, const struct tensor_info *t) {
    pdvm_error err = {0};
    float *x = calloc((size_t)(t->rows * t->cols), sizeof *x);
    if (!x) support_fail("out of memory");
    // In pieces that no head is a multiple of.
    for (int64_t begin = 0; begin < t->rows; begin += 5) {
        int64_t n = t->rows - begin < 5 ? t->rows - begin : 5;
        assert_ok(source_read_rows(s, t, begin, n, x + begin * t->cols, &err), &err);
    }
    return x;
}

// Every tensor of two sources, bit for bit.
static void assert_same_weights(struct model_source *a, struct model_source *b) {
    size_t n = tensors_count(&a->config);
    assert_int_equal(tensors_count(&b->config), n);
    for (size_t i = 0; i < n; i++) {
        struct tensor_info t;
        tensors_at(&a->config, i, &t);
        float *x = read_all(a, &t), *y = read_all(b, &t);
        if (memcmp(x, y, (size_t)(t.rows * t.cols) * sizeof *x) != 0)
            fail_msg("%s and %s: other values of %s", a->path, b->path, t.name);
        free(x);
        free(y);
    }
}

static pdvm_model *open_model(const char *path) {
    pdvm_model *m;
    pdvm_error err = {0};
    pdvm_model_options options = pdvm_model_options_default();
    options.values = "f32";
    assert_ok(pdvm_model_open(path, &options, &m, &err), &err);
    return m;
}

struct logits {
    float *values;
    size_t n;
};

static struct logits compute(const pdvm_model *m) {
    static const int32_t ids[] = {5, 9, 60, 7, 7, 200, 31, 3, 112, 45, 6};
    pdvm_session *s;
    pdvm_error err = {0};
    struct logits l;
    pdvm_session_options options = pdvm_session_options_default();
    options.type_k = options.type_v = PDVM_KV_F32;
    assert_ok(pdvm_session_create((pdvm_model *)(uintptr_t)m, &options, &s, &err), &err);
    assert_ok(pdvm_session_sync(s, ids, sizeof ids / sizeof *ids, &err), &err);
    const float *values = pdvm_session_logits(s, &l.n);
    l.values = malloc(l.n * sizeof *values);
    if (!l.values) support_fail("out of memory");
    memcpy(l.values, values, l.n * sizeof *values);
    pdvm_session_free(s);
    return l;
}

static void assert_same_logits(const char *a, const char *b) {
    pdvm_model *one = open_model(a), *other = open_model(b);
    struct logits x = compute(one), y = compute(other);
    assert_int_equal(x.n, y.n);
    if (memcmp(x.values, y.values, x.n * sizeof *x.values) != 0)
        fail_msg("%s and %s give other logits", a, b);
    free(x.values);
    free(y.values);
    pdvm_model_close(one);
    pdvm_model_close(other);
}

static const struct {
    const char *name, *pre;
} golden[] = {
    {"tests/golden/tiny-gqa", "gpt-2"},    {"tests/golden/tiny-odd", "gpt-2"},
    {"tests/golden/tiny-pruned", "gpt-2"}, {"tests/golden/tiny-sharded", "llama-bpe"},
    {"tests/golden/tiny-llama3", "gpt-2"}, {"tests/golden/tiny-linear", "gpt-2"},
    {"tests/golden/tiny-yarn", "gpt-2"},   {"tests/golden/tiny-mistral", "gpt-2"},
    {"tests/golden/tiny-qwen3", "gpt-2"},  {"tests/golden/tiny-phi3", "gpt-2"},
};
#define N_GOLDEN (sizeof golden / sizeof *golden)

static void logits_equal_the_directory_bit_for_bit(void **state) {
    for (size_t i = 0; i < N_GOLDEN; i++) {
        char *from = support_source_path(golden[i].name);
        struct gguf_options options = {.pre = golden[i].pre};
        char *path = gguf_from_hf(from, *state, "m", &options);
        struct model_source *a = open_good(from), *b = open_good(path);
        assert_string_equal(b->kind, "GGUF file");
        assert_string_equal(b->path, path);
        assert_false(source_is_mdcsr(b));
        assert_same_weights(a, b);
        // The whole configuration: nothing in it may be lost on the way.
        struct model_config c = b->config;
        assert_int_equal(c.n_eos, a->config.n_eos);
        assert_memory_equal(&c, &a->config, sizeof c);
        source_close(a);
        source_close(b);
        assert_same_logits(from, path);
        free(path);
        free(from);
    }
}

// GGUF has no key for Qwen2's windows, which begin at a certain layer: without them.
static void logits_of_qwen2_equal_the_directory(void **state) {
    static const char *const files[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        char name[64];
        size_t size;
        snprintf(name, sizeof name, "tests/golden/tiny-qwen2/%s", files[i]);
        char *path = support_source_path(name), *data = support_read_file(path, &size);
        char *window = i == 0 ? strstr(data, "\"use_sliding_window\": true") : NULL;
        if (window) memcpy(window, "\"use_sliding_window\":false", 26);
        free(support_write_file(*state, files[i], data, size));
        free(data);
        free(path);
    }
    char *path = gguf_from_hf(*state, *state, "m", &(struct gguf_options){0});
    struct model_source *a = open_good(*state), *b = open_good(path);
    assert_string_equal(b->config.architecture, "qwen2");
    assert_true(b->config.qkv_bias);
    assert_memory_equal(&b->config, &a->config, sizeof a->config);
    assert_same_weights(a, b);
    source_close(a);
    source_close(b);
    assert_same_logits(*state, path);
    free(path);
}

static void tokens_equal_those_of_the_directory(void **state) {
    static const char *const texts[] = {
        "Once upon a time, there was a l\xc3\xadttle fox.",
        "It's 12345 o'clock!\n\n  Don't   \xf0\x9f\x98\x80 panic\t",
        "<|endoftext|>Hello<|endoftext|>",
    };
    for (size_t i = 0; i < N_GOLDEN; i++) {
        char *from = support_source_path(golden[i].name);
        struct gguf_options options = {.pre = golden[i].pre};
        char *path = gguf_from_hf(from, *state, "m", &options);
        pdvm_model *one = open_model(from), *other = open_model(path);
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
            int32_t a[256], b[256];
            size_t n, m;
            pdvm_error err = {0};
            unsigned flags = PDVM_TOKENIZE_PARSE_SPECIAL;
            assert_ok(pdvm_tokenize(one, texts[k], strlen(texts[k]), flags, a, 256, &n, &err),
                      &err);
            assert_ok(pdvm_tokenize(other, texts[k], strlen(texts[k]), flags, b, 256, &m, &err),
                      &err);
            assert_int_equal(n, m);
            assert_true(n >= 3);
            assert_memory_equal(a, b, n * sizeof *a);
        }
        pdvm_model_close(one);
        pdvm_model_close(other);
        free(path);
        free(from);
    }
}

static void split_models_read_as_one(void **state) {
    char *from = support_source_path("tests/golden/tiny-sharded");
    char *path = gguf_from_hf(from, *state, "m", &(struct gguf_options){.n_files = 3});
    assert_non_null(strstr(path, "/m-00001-of-00003.gguf"));
    struct model_source *a = open_good(from), *b = open_good(path);
    assert_same_weights(a, b);
    source_close(a);
    source_close(b);
    free(path);
    path = support_path(*state, "m-00002-of-00003.gguf");
    assert_open_fails(path, PDVM_ERR_ARGUMENT, "give the first");
    free(path);
    free(from);
}

static void half_floats_are_read(void **state) {
    static const uint32_t types[] = {GGUF_F16, GGUF_BF16, GGUF_F64};
    static const char *const names[] = {"F16", "BF16", "F64"};
    hf_model_write(*state, &(struct hf_model){0});
    for (int i = 0; i < 3; i++) {
        char *path = gguf_from_hf(*state, *state, "m", &(struct gguf_options){.type = types[i]});
        struct model_source *a = open_good(*state), *b = open_good(path);
        struct tensor_info t;
        const char *coding;
        uint64_t bytes;
        assert_same_weights(a, b);
        tensors_describe(&b->config, TENSOR_UP, 1, &t);
        source_stored(b, &t, &coding, &bytes);
        assert_string_equal(coding, names[i]);
        assert_int_equal(bytes, 24 * 16 * (i == 2 ? 8 : 2));
        source_release(b, &t);
        source_close(a);
        source_close(b);
        free(path);
    }
}

static void tied_heads_are_recognised(void **state) {
    hf_model_write(*state, &(struct hf_model){.tied = true});
    char *path = gguf_from_hf(*state, *state, "m", &(struct gguf_options){0});
    struct model_source *a = open_good(*state), *b = open_good(path);
    assert_true(b->config.tie_word_embeddings);
    assert_same_weights(a, b);
    source_close(a);
    source_close(b);
    free(path);
}

static void rows_outside_a_tensor_are_refused(void **state) {
    hf_model_write(*state, &(struct hf_model){0});
    char *path = gguf_from_hf(*state, *state, "m", &(struct gguf_options){0});
    struct model_source *s = open_good(path);
    struct tensor_info t;
    float out[64];
    pdvm_error err = {0};
    tensors_describe(&s->config, TENSOR_Q, 1, &t);
    assert_error(source_read_rows(s, &t, 15, 2, out, &err), PDVM_ERR_ARGUMENT, &err, t.name);
    assert_error(source_read_rows(s, &t, -1, 1, out, &err), PDVM_ERR_ARGUMENT, &err, t.name);
    assert_error(source_read_rows(s, &t, 1, INT64_MAX, out, &err), PDVM_ERR_ARGUMENT, &err, t.name);
    assert_ok(source_read_rows(s, &t, 16, 0, out, &err), &err);
    source_close(s);
    free(path);
}

// The file that the command-line tests use. PDVM_UPDATE_GOLDEN=1 writes it anew.
static void committed_file_is_what_the_writer_makes(void **state) {
    static const char name[] = "tests/golden/tiny-gqa-q8_0.gguf";
    char *from = support_source_path("tests/golden/tiny-gqa"),
         *committed = support_source_path(name);
    struct gguf_options options = {.type = GGUF_Q8_0, .pre = "gpt-2"};
    char *path = gguf_from_hf(from, *state, "m", &options);
    size_t n, n_expected;
    char *data = support_read_file(path, &n);
    if (getenv("PDVM_UPDATE_GOLDEN")) {
        char *dir = support_source_path("tests/golden");
        free(support_write_file(dir, strrchr(name, '/') + 1, data, n));
        free(dir);
    }
    char *expected = support_read_file(committed, &n_expected);
    assert_int_equal(n, n_expected);
    assert_memory_equal(data, expected, n);
    free(expected);
    free(data);
    free(path);
    free(committed);
    free(from);
}

// ---- a model made of keys and tensors -----------------------------------------------------

// A llama of one layer; `skip` is a key to leave out.
static void write_keys(struct gguf_writer *w, const char *arch, uint32_t width, const char *skip) {
    const struct {
        const char *name;
        uint32_t value;
    } numbers[] = {{"block_count", 1},          {"context_length", 64},
                   {"embedding_length", width}, {"feed_forward_length", width},
                   {"attention.head_count", 2}, {"attention.head_count_kv", 1}};
    char key[96];
    if (!skip || strcmp(skip, "general.architecture") != 0)
        gguf_write_string(w, "general.architecture", arch);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, numbers[i].name);
        if (!skip || strcmp(skip, numbers[i].name) != 0) gguf_write_u32(w, key, numbers[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    if (!skip || strcmp(skip, "attention.layer_norm_rms_epsilon") != 0)
        gguf_write_f32(w, key, 1e-5f);
}

// A third of the values are zeros.
static void write_random(struct gguf_writer *w, const char *name, uint32_t type, uint64_t rows,
                         uint64_t cols, uint64_t seed) {
    size_t n = (size_t)(rows ? rows : 1) * (size_t)cols;
    float *x = malloc(n * sizeof *x);
    if (!x) support_fail("out of memory");
    for (size_t i = 0; i < n; i++)
        x[i] = pd_random(&seed) % 3 == 0 ? 0 : (float)(2 * pd_random_unit(&seed) - 1);
    gguf_write_floats(w, name, type, rows, cols, x);
    free(x);
}

static void write_tensors(struct gguf_writer *w, uint32_t type, uint64_t width) {
    write_random(w, "token_embd.weight", type, 40, width, 1);
    write_random(w, "blk.0.attn_norm.weight", type, 0, width, 2);
    write_random(w, "blk.0.attn_q.weight", type, width, width, 3);
    write_random(w, "blk.0.attn_k.weight", type, width / 2, width, 4);
    write_random(w, "blk.0.attn_v.weight", type, width / 2, width, 5);
    write_random(w, "blk.0.attn_output.weight", type, width, width, 6);
    write_random(w, "blk.0.ffn_norm.weight", type, 0, width, 7);
    write_random(w, "blk.0.ffn_gate.weight", type, width, width, 8);
    write_random(w, "blk.0.ffn_up.weight", type, width, width, 9);
    write_random(w, "blk.0.ffn_down.weight", type, width, width, 10);
    write_random(w, "output_norm.weight", type, 0, width, 11);
}

static uint64_t count_zeros(const float *x, const struct tensor_info *t) {
    uint64_t n = 0;
    for (int64_t i = 0; i < t->rows * t->cols; i++) n += x[i] == 0;
    return n;
}

static void zeros_of_quantised_blocks_survive(void **state) {
    static const uint32_t types[] = {GGUF_Q8_0, GGUF_Q4_0, GGUF_Q6_K};
    for (int i = 0; i < 3; i++) {
        struct gguf_writer w = {0};
        pdvm_error err = {0};
        write_keys(&w, "llama", 256, NULL);
        write_tensors(&w, types[i], 256);
        char *path = gguf_writer_save(&w, *state, "m.gguf");
        char *out = support_path(*state, "m.pdvm");
        struct convert_options options = convert_options_default();
        struct convert_result result = {0};
        assert_ok(convert_model(path, out, &options, &result, &err), &err);
        convert_result_free(&result);
        struct model_source *a = open_good(path), *b = open_good(out);
        assert_string_equal(b->kind, "pdvm file");
        for (size_t k = 0; k < tensors_count(&a->config); k++) {
            struct tensor_info t;
            struct mdcsr m;
            tensors_at(&a->config, k, &t);
            if (!t.is_matrix) continue;
            float *x = read_all(a, &t);
            uint64_t zeros = count_zeros(x, &t), n = (uint64_t)(t.rows * t.cols);
            assert_true(zeros > n / 4);
            assert_ok(source_read_mdcsr(b, &t, &m, &err), &err);
            assert_int_equal((uint64_t)m.n_entries, n - zeros);
            mdcsr_free(&m);
            free(x);
        }
        source_close(a);
        source_close(b);
        free(out);
        free(path);
    }
}

static void converted_files_run_like_the_source(void **state) {
    char *from = support_source_path("tests/golden/tiny-gqa");
    char *path = gguf_from_hf(from, *state, "m", &(struct gguf_options){.pre = "gpt-2"});
    char *out = support_path(*state, "m.pdvm");
    struct convert_options options = convert_options_default();
    struct convert_result result = {0};
    pdvm_error err = {0};
    options.plan.general.values = MDCSR_F32;
    options.plan.embed = MDCSR_F32;
    assert_ok(convert_model(path, out, &options, &result, &err), &err);
    assert_true(result.has_tokenizer);
    convert_result_free(&result);
    assert_same_logits(from, out);
    free(out);
    free(path);
    free(from);
}

// ---- what is refused ----------------------------------------------------------------------

static void missing_and_wrong_keys_are_named(void **state) {
    static const char *const keys[] = {"general.architecture",
                                       "block_count",
                                       "context_length",
                                       "embedding_length",
                                       "feed_forward_length",
                                       "attention.head_count",
                                       "attention.layer_norm_rms_epsilon"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct gguf_writer w = {0};
        write_keys(&w, "llama", 32, keys[i]);
        write_tensors(&w, GGUF_F32, 32);
        char *path = gguf_writer_save(&w, *state, "m.gguf");
        assert_open_fails(path, PDVM_ERR_FORMAT, keys[i]);
        free(path);
    }
    struct gguf_writer w = {0};
    write_keys(&w, "gemma2", 32, NULL);
    char *path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_UNSUPPORTED, "\"gemma2\"");
    free(path);
    write_keys(&w, "llama", 32, "block_count");
    gguf_write_string(&w, "llama.block_count", "1");
    path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_FORMAT, "\"llama.block_count\" is of type string");
    free(path);
    write_keys(&w, "llama", 32, "attention.head_count_kv");
    gguf_write_i32s(&w, "llama.attention.head_count_kv", (const int32_t[]){1}, 1);
    path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_UNSUPPORTED, "a value for each layer");
    free(path);
}

static void write_number(struct gguf_writer *w, const char *key, double value) {
    if (value == (double)(uint32_t)value && value >= 2)
        gguf_write_u32(w, key, (uint32_t)value);
    else
        gguf_write_f32(w, key, (float)value);
}

static void keys_that_change_the_results_are_refused(void **state) {
    static const struct {
        const char *key;
        double value;
        pdvm_status status;
    } cases[] = {
        {"llama.expert_count", 8, PDVM_ERR_UNSUPPORTED},
        {"llama.rope.dimension_count", 8, PDVM_ERR_UNSUPPORTED},
        {"llama.attention.value_length", 8, PDVM_ERR_UNSUPPORTED},
        {"llama.attention.clamp_kqv", 0.5, PDVM_ERR_UNSUPPORTED},
        {"llama.logit_scale", 0.5, PDVM_ERR_UNSUPPORTED},
        {"llama.rope.scale_linear", 0.5, PDVM_ERR_UNSUPPORTED},
        {"llama.vocab_size", 41, PDVM_ERR_FORMAT},
        {"tokenizer.ggml.bos_token_id", 40, PDVM_ERR_FORMAT},
        {"tokenizer.ggml.eos_token_id", 4000, PDVM_ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gguf_writer w = {0};
        write_keys(&w, "llama", 32, NULL);
        write_number(&w, cases[i].key, cases[i].value);
        write_tensors(&w, GGUF_F32, 32);
        char *path = gguf_writer_save(&w, *state, "m.gguf");
        bool shape = strcmp(cases[i].key, "llama.vocab_size") == 0;
        assert_open_fails(path, cases[i].status, shape ? "token_embd.weight" : cases[i].key);
        free(path);
    }
    struct gguf_writer w = {0};
    write_keys(&w, "llama", 32, NULL);
    gguf_write_u32(&w, "llama.vocab_size", 40);
    gguf_write_string(&w, "llama.rope.scaling.type", "longrope");
    char *path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_UNSUPPORTED, "longrope");
    free(path);
}

static void tensors_are_missing_too_many_or_of_another_shape(void **state) {
    static const char *const needed[] = {"token_embd.weight", "output_norm.weight",
                                         "blk.0.attn_q.weight", "blk.1.ffn_down.weight"};
    static const char *const extra[] = {"blk.0.attn_sinks.weight", "output.bias",
                                        "blk.0.ffn_up.bias", "rope_factors_long.weight"};
    static const char *const ignored[] = {"blk.0.attn_rot_embd.weight", "blk.0.rope_freqs.weight"};
    float x[64] = {0};
    hf_model_write(*state, &(struct hf_model){0});
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        char *path = gguf_from_hf(*state, *state, "m", &(struct gguf_options){.skip = needed[i]});
        assert_open_fails(path, PDVM_ERR_FORMAT, needed[i]);
        free(path);
    }
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        struct gguf_writer w = {0};
        write_keys(&w, "llama", 32, NULL);
        write_tensors(&w, GGUF_F32, 32);
        gguf_write_floats(&w, extra[i], GGUF_F32, 0, 32, x);
        char *path = gguf_writer_save(&w, *state, "m.gguf");
        assert_open_fails(path, PDVM_ERR_UNSUPPORTED, extra[i]);
        free(path);
    }
    struct gguf_writer w = {0};
    write_keys(&w, "llama", 32, NULL);
    write_tensors(&w, GGUF_F32, 32);
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        gguf_write_floats(&w, ignored[i], GGUF_F32, 0, 32, x);
    char *path = gguf_writer_save(&w, *state, "m.gguf");
    source_close(open_good(path));
    free(path);

    write_keys(&w, "llama", 32, NULL);
    write_tensors(&w, GGUF_F32, 32);
    gguf_write_floats(&w, "blk.1.attn_q.weight", GGUF_F32, 0, 32, x);
    path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_FORMAT, "is of layer 1, but the metadata asks for 1 layers");
    free(path);

    write_keys(&w, "llama", 32, NULL);
    gguf_write_tensor(&w, "token_embd.weight", 17, 2, (uint64_t[]){256, 1}, x, 74);
    gguf_write_tensor(&w, "blk.0.ffn_down.weight", 17, 2, (uint64_t[]){256, 1}, x, 74);
    path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_UNSUPPORTED, "IQ2_XS");
    free(path);

    write_keys(&w, "llama", 32, NULL);
    gguf_write_u32(&w, "llama.vocab_size", 40);
    write_random(&w, "blk.0.ffn_down.weight", GGUF_F32, 31, 32, 1);
    path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_FORMAT, "dimensions [32, 31]");
    assert_open_fails(path, PDVM_ERR_FORMAT, "[32, 32]");
    free(path);
}

static void absurd_number_of_layers_is_a_missing_tensor(void **state) {
    struct gguf_writer w = {0};
    write_keys(&w, "llama", 32, "block_count");
    gguf_write_u32(&w, "llama.block_count", 65536);
    write_tensors(&w, GGUF_F32, 32);
    char *path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_FORMAT, "blk.65535.ffn_down.weight");
    free(path);
}

static void rope_factors_of_another_kind_are_refused(void **state) {
    static const float factors[8] = {1, 1, 1.5f, 2, 4, 8, 9, 8}, ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    struct gguf_writer w = {0};
    write_keys(&w, "llama", 32, NULL);
    write_tensors(&w, GGUF_F32, 32);
    gguf_write_floats(&w, "rope_freqs.weight", GGUF_F32, 0, 8, factors);
    char *path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_UNSUPPORTED, "rope_freqs.weight");
    free(path);
    write_keys(&w, "llama", 32, NULL);
    write_tensors(&w, GGUF_F32, 32);
    gguf_write_floats(&w, "rope_freqs.weight", GGUF_F32, 0, 7, factors);
    path = gguf_writer_save(&w, *state, "m.gguf");
    assert_open_fails(path, PDVM_ERR_FORMAT, "must be F32 [8]");
    free(path);
    write_keys(&w, "llama", 32, NULL);
    write_tensors(&w, GGUF_F32, 32);
    gguf_write_floats(&w, "rope_freqs.weight", GGUF_F32, 0, 8, ones);
    path = gguf_writer_save(&w, *state, "m.gguf");
    struct model_source *s = open_good(path);
    assert_int_equal(s->config.rope_scaling.kind, ROPE_SCALING_NONE);
    source_close(s);
    free(path);
}

// ---- texts --------------------------------------------------------------------------------

static void assert_file(struct model_source *s, const char *name, const char *text) {
    const char *data;
    size_t size;
    source_file(s, name, &data, &size);
    if (!data) fail_msg("there is no %s", name);
    assert_int_equal(size, strlen(data));
    if (!strstr(data, text)) fail_msg("%s does not say %s: %s", name, text, data);
}

static void side_files_are_made_from_the_keys(void **state) {
    static const char *const tokens[] = {"<s>", "</s>", "<|eot|>", "a", "b", "ab", "\"\\\n"};
    static const int32_t types[] = {3, 3, 3, 1, 1, 1, 4};
    struct gguf_writer w = {0};
    const char *data;
    size_t size;
    write_keys(&w, "llama", 32, NULL);
    write_tensors(&w, GGUF_F32, 32);
    gguf_write_string(&w, "tokenizer.ggml.model", "gpt2");
    gguf_write_string(&w, "tokenizer.ggml.pre", "llama-bpe");
    gguf_write_strings(&w, "tokenizer.ggml.tokens", tokens, 7);
    gguf_write_i32s(&w, "tokenizer.ggml.token_type", types, 7);
    gguf_write_strings(&w, "tokenizer.ggml.merges", (const char *const[]){"a b"}, 1);
    gguf_write_u32(&w, "tokenizer.ggml.bos_token_id", 0);
    gguf_write_u32(&w, "tokenizer.ggml.eos_token_id", 1);
    gguf_write_u32(&w, "tokenizer.ggml.eot_token_id", 2);
    gguf_write_bool(&w, "tokenizer.ggml.add_eos_token", true);
    gguf_write_string(&w, "tokenizer.chat_template", "{{ \"x\" }}\n");
    char *path = gguf_writer_save(&w, *state, "m.gguf");
    struct model_source *s = open_good(path);
    assert_int_equal(s->config.bos_token_id, 0);
    assert_int_equal(s->config.n_eos, 2);
    assert_int_equal(s->config.eos_token_ids[1], 2);
    assert_file(s, SOURCE_CONFIG, "\"LlamaForCausalLM\"");
    assert_file(s, SOURCE_GENERATION_CONFIG, "\"bos_token_id\": 0");
    assert_file(s, SOURCE_TOKENIZER_CONFIG, "\"eos_token\": \"</s>\"");
    assert_file(s, SOURCE_TOKENIZER_CONFIG, "\"chat_template\": \"{{ \\\"x\\\" }}\\n\"");
    source_file(s, "chat_template.jinja", &data, &size);
    assert_string_equal(data, "{{ \"x\" }}\n");
    source_file(s, "other", &data, &size);
    assert_null(data);
    source_close(s);

    pdvm_model *m = open_model(path);
    static const int32_t expected[] = {0, 5, 6, 3, 1};
    int32_t ids[16];
    size_t n;
    pdvm_error err = {0};
    assert_ok(pdvm_tokenize(m, "ab\"\\\na", 6, PDVM_TOKENIZE_ADD_SPECIAL, ids, 16, &n, &err), &err);
    assert_int_equal(n, 5);
    assert_memory_equal(ids, expected, sizeof expected);
    pdvm_model_close(m);
    free(path);
}

static void bad_tokenizers_are_named(void **state) {
    static const struct {
        const char *model, *pre;
        int n_types, n_merges;
        const char *token;
        pdvm_status status;
        const char *text;
    } cases[] = {
        {"gpt2", "chameleon", 2, 1, "b", PDVM_ERR_UNSUPPORTED, "\"chameleon\"; known are:"},
        {"gpt2", "no-such llama-bpe", 2, 1, "b", PDVM_ERR_UNSUPPORTED, "smollm"},
        {"gpt2", "", 2, 1, "b", PDVM_ERR_UNSUPPORTED, "tokenizer.ggml.pre"},
        {"rwkv", "gpt-2", 2, 1, "b", PDVM_ERR_UNSUPPORTED, "\"rwkv\"; known are"},
        {"gpt2", "gpt-2", 1, 1, "b", PDVM_ERR_FORMAT, "tokenizer.ggml.token_type"},
        {"gpt2", "gpt-2", 2, 0, "b", PDVM_ERR_FORMAT, "tokenizer.ggml.merges"},
        {"gpt2", "gpt-2", 2, 1, "\xff", PDVM_ERR_FORMAT, "tokenizer.ggml.tokens\": element 1"},
    };
    static const int32_t types[] = {1, 1};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gguf_writer w = {0};
        const char *const tokens[] = {"a", cases[i].token};
        write_keys(&w, "llama", 32, NULL);
        write_tensors(&w, GGUF_F32, 32);
        gguf_write_string(&w, "tokenizer.ggml.model", cases[i].model);
        gguf_write_string(&w, "tokenizer.ggml.pre", cases[i].pre);
        gguf_write_strings(&w, "tokenizer.ggml.tokens", tokens, 2);
        gguf_write_i32s(&w, "tokenizer.ggml.token_type", types, (size_t)cases[i].n_types);
        if (cases[i].n_merges > 0) gguf_write_strings(&w, "tokenizer.ggml.merges", NULL, 0);
        char *path = gguf_writer_save(&w, *state, "m.gguf");
        assert_open_fails(path, cases[i].status, cases[i].text);
        free(path);
    }
    // No tokenizer is no error.
    struct gguf_writer w = {0};
    const char *data;
    size_t size;
    write_keys(&w, "llama", 32, NULL);
    write_tensors(&w, GGUF_F32, 32);
    char *path = gguf_writer_save(&w, *state, "m.gguf");
    struct model_source *s = open_good(path);
    source_file(s, SOURCE_TOKENIZER, &data, &size);
    assert_null(data);
    assert_int_equal(s->config.n_eos, 0);
    source_close(s);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(logits_equal_the_directory_bit_for_bit, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(logits_of_qwen2_equal_the_directory, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(rope_factors_of_another_kind_are_refused, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(tokens_equal_those_of_the_directory, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(split_models_read_as_one, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(half_floats_are_read, support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(tied_heads_are_recognised, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(rows_outside_a_tensor_are_refused, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(zeros_of_quantised_blocks_survive, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(converted_files_run_like_the_source, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(committed_file_is_what_the_writer_makes, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(missing_and_wrong_keys_are_named, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(keys_that_change_the_results_are_refused, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(tensors_are_missing_too_many_or_of_another_shape,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(absurd_number_of_layers_is_a_missing_tensor,
                                        support_make_dir, support_remove_dir),
        cmocka_unit_test_setup_teardown(side_files_are_made_from_the_keys, support_make_dir,
                                        support_remove_dir),
        cmocka_unit_test_setup_teardown(bad_tokenizers_are_named, support_make_dir,
                                        support_remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
