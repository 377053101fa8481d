// Hugging Face directories as model sources: what is found in them, and what is refused.

#include "support/hf_model.h"
#include "support/support.h"

#include "model/encoding.h"
#include "model/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct model_source *open_good(const char *dir) {
    struct model_source *s;
    pdvm_error err = {0};
    assert_ok(source_open(dir, &s, &err), &err);
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

/* Writes the model into dir and expects opening it to fail. */
static void assert_model_fails(const char *dir, const struct hf_model *model, pdvm_status expected,
                               const char *text) {
    hf_model_write(dir, model);
    assert_open_fails(dir, expected, text);
}

/* Every tensor, whole and in pieces, against what was written. */
static void assert_values(struct model_source *s, float offset) {
    for (size_t i = 0; i < tensors_count(&s->config); i++) {
        struct tensor_info t;
        pdvm_error err = {0};
        tensors_at(&s->config, i, &t);
        float *out = calloc((size_t)(t.rows * t.cols), sizeof *out);
        if (!out) support_fail("out of memory");
        for (int64_t begin = 0; begin < t.rows; begin += 5) {
            int64_t n = t.rows - begin < 5 ? t.rows - begin : 5;
            assert_ok(source_read_rows(s, &t, begin, n, out + begin * t.cols, &err), &err);
        }
        for (int64_t k = 0; k < t.rows * t.cols; k++)
            assert_true(out[k] == hf_model_value(t.name, k) + offset);
        free(out);
    }
}

static void reads_weights_of_every_float_dtype(void **state) {
    static const enum safetensors_dtype dtypes[] = {SAFETENSORS_F32, SAFETENSORS_F16,
                                                    SAFETENSORS_BF16, SAFETENSORS_F64};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        hf_model_write(*state, &(struct hf_model){.dtype = dtypes[i]});
        struct model_source *s = open_good(*state);
        assert_int_equal(s->config.n_layers, 2);
        assert_string_equal(s->path, *state);
        assert_string_equal(s->kind, "Hugging Face directory");
        assert_false(source_is_mdcsr(s));
        assert_values(s, 0);
        source_close(s);
    }
    source_close(NULL);
}

static void reads_shards_through_their_index(void **state) {
    hf_model_write(*state, &(struct hf_model){.n_shards = 3});
    assert_int_equal(support_count_entries(*state), 5);
    struct model_source *s = open_good(*state);
    assert_values(s, 0);
    source_close(s);
}

static void reads_one_safetensors_file_of_any_name(void **state) {
    hf_model_write(*state, &(struct hf_model){0});
    char *from = support_path(*state, "model.safetensors");
    char *to = support_path(*state, "weights.safetensors");
    assert_int_equal(rename(from, to), 0);
    struct model_source *s = open_good(*state);
    assert_values(s, 0);
    source_close(s);
    free(from);
    free(to);
}

static void tied_head_reads_as_the_embedding(void **state) {
    hf_model_write(*state, &(struct hf_model){.tied = true});
    struct model_source *s = open_good(*state);
    struct tensor_info head;
    float out[16];
    pdvm_error err = {0};
    assert_true(s->config.tie_word_embeddings);
    tensors_describe(&s->config, TENSOR_HEAD, 0, &head);
    assert_ok(source_read_rows(s, &head, 3, 1, out, &err), &err);
    for (int i = 0; i < 16; i++)
        assert_true(out[i] == hf_model_value("model.embed_tokens.weight", 3 * 16 + i));
    source_close(s);
}

static void tied_model_ignores_a_stored_head(void **state) {
    hf_model_write(*state, &(struct hf_model){.tied = true, .extra = "lm_head.weight"});
    struct model_source *s = open_good(*state);
    assert_int_equal(tensors_count(&s->config), 20);
    assert_values(s, 0);
    source_close(s);
}

static void untied_model_needs_its_head(void **state) {
    assert_model_fails(*state, &(struct hf_model){.skip = "lm_head.weight"}, PDVM_ERR_FORMAT,
                       "tie_word_embeddings");
    assert_open_fails(*state, PDVM_ERR_FORMAT, "\"lm_head.weight\" is missing");
}

static void rows_outside_a_tensor_are_refused(void **state) {
    hf_model_write(*state, &(struct hf_model){0});
    struct model_source *s = open_good(*state);
    struct tensor_info t;
    struct mdcsr matrix;
    float out[64];
    pdvm_error err = {0};
    tensors_describe(&s->config, TENSOR_Q, 1, &t);
    assert_error(source_read_rows(s, &t, 15, 2, out, &err), PDVM_ERR_ARGUMENT, &err, t.name);
    assert_error(source_read_rows(s, &t, -1, 1, out, &err), PDVM_ERR_ARGUMENT, &err, t.name);
    assert_error(source_read_rows(s, &t, 17, 0, out, &err), PDVM_ERR_ARGUMENT, &err, t.name);
    assert_error(source_read_rows(s, &t, 1, INT64_MAX, out, &err), PDVM_ERR_ARGUMENT, &err, t.name);
    assert_ok(source_read_rows(s, &t, 16, 0, out, &err), &err);
    assert_error(source_read_mdcsr(s, &t, &matrix, &err), PDVM_ERR_ARGUMENT, &err, "MdCSR");
    source_close(s);
}

static void side_files_are_there_or_absent(void **state) {
    const char *data;
    size_t size;
    hf_model_write(*state, &(struct hf_model){0});
    struct model_source *s = open_good(*state);
    source_file(s, SOURCE_TOKENIZER, &data, &size);
    assert_null(data);
    assert_int_equal(size, 0);
    source_file(s, SOURCE_CONFIG, &data, &size);
    assert_non_null(data);
    assert_int_equal(size, strlen(data));
    source_file(s, "other.json", &data, &size);
    assert_null(data);
    assert_int_equal(s->config.n_eos, 1);
    source_close(s);

    free(support_write_text(*state, "tokenizer.json", "{\"model\": {}}"));
    free(support_write_text(*state, "tokenizer_config.json", "{}"));
    free(support_write_text(*state, "generation_config.json", "{\"eos_token_id\": [2, 7]}"));
    s = open_good(*state);
    source_file(s, SOURCE_TOKENIZER, &data, &size);
    assert_string_equal(data, "{\"model\": {}}");
    assert_int_equal(size, 13);
    source_file(s, SOURCE_TOKENIZER_CONFIG, &data, &size);
    assert_string_equal(data, "{}");
    assert_int_equal(s->config.n_eos, 2);
    assert_int_equal(s->config.eos_token_ids[1], 7);
    source_close(s);
}

static void bad_side_files_are_named(void **state) {
    hf_model_write(*state, &(struct hf_model){0});
    char *path = support_write_text(*state, "generation_config.json", "{\"eos_token_id\": 32}");
    assert_open_fails(*state, PDVM_ERR_FORMAT, "generation_config.json");
    assert_int_equal(unlink(path), 0);
    free(path);
    path = support_path(*state, "tokenizer.json");
    assert_int_equal(mkdir(path, 0755), 0);
    assert_open_fails(*state, PDVM_ERR_IO, "tokenizer.json");
    free(path);
}

static void oversized_side_file_is_refused_unread(void **state) {
    hf_model_write(*state, &(struct hf_model){0});
    char *path = support_write_text(*state, "tokenizer.json", "{}");
    assert_int_equal(truncate(path, ((off_t)256 << 20) + 1), 0);
    assert_open_fails(*state, PDVM_ERR_FORMAT, "tokenizer.json");
    free(path);
}

static void missing_tensors_are_named(void **state) {
    static const char *const names[] = {
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_model_fails(*state, &(struct hf_model){.skip = names[i]}, PDVM_ERR_FORMAT, names[i]);
}

static void wrong_shapes_are_named_with_both_shapes(void **state) {
    const char *name = "model.layers.1.self_attn.k_proj.weight";
    assert_model_fails(*state, &(struct hf_model){.misshape = name}, PDVM_ERR_FORMAT, name);
    assert_open_fails(*state, PDVM_ERR_FORMAT, "[9, 16]");
    assert_open_fails(*state, PDVM_ERR_FORMAT, "[8, 16]");
    name = "model.norm.weight";
    assert_model_fails(*state, &(struct hf_model){.misshape = name}, PDVM_ERR_FORMAT, "[17]");
    assert_open_fails(*state, PDVM_ERR_FORMAT, "[16]");
    name = "model.layers.0.mlp.up_proj.weight";
    assert_model_fails(*state, &(struct hf_model){.flatten = name}, PDVM_ERR_FORMAT, "[384]");
    assert_open_fails(*state, PDVM_ERR_FORMAT, "[24, 16]");
}

static void integer_weights_are_refused(void **state) {
    assert_model_fails(*state, &(struct hf_model){.dtype = SAFETENSORS_I8}, PDVM_ERR_UNSUPPORTED,
                       "I8");
}

static void biases_not_asked_for_are_refused_and_other_extras_judged(void **state) {
    static const char *const refused[] = {
        "model.layers.0.self_attn.q_proj.bias",
        "lm_head.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.1.mlp.experts.weight",
    };
    static const char *const ignored[] = {
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.99999999999999999999.x",
        "model.layers.-1.x",
        "score.weight",
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_model_fails(*state, &(struct hf_model){.extra = refused[i]}, PDVM_ERR_UNSUPPORTED,
                           refused[i]);
    // More layers than the configuration asks for.
    assert_model_fails(*state,
                       &(struct hf_model){.extra = "model.layers.2.self_attn.q_proj.weight"},
                       PDVM_ERR_FORMAT, "is of layer 2, but config.json asks for 2 layers");
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        hf_model_write(*state, &(struct hf_model){.extra = ignored[i]});
        struct model_source *s = open_good(*state);
        assert_values(s, 0);
        source_close(s);
    }
}

static void fused_matrices_may_have_been_taken_apart(void **state) {
    const char *config =
        "{\"model_type\": \"phi3\", \"hidden_size\": 16, \"intermediate_size\": 24,"
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"vocab_size\": 32}";
    struct hf_model model = {.config = config};
    hf_model_write(*state, &model);
    struct model_source *s = open_good(*state);
    assert_values(s, 0);
    source_close(s);
    model.extra = "model.layers.1.self_attn.qkv_proj.weight";
    assert_model_fails(*state, &model, PDVM_ERR_FORMAT, "qkv_proj.weight\" too");
    model.extra = NULL;
    model.skip = "model.layers.1.mlp.up_proj.weight";
    assert_model_fails(*state, &model, PDVM_ERR_FORMAT, "model.layers.1.mlp.gate_up_proj.weight");
    model.skip = NULL;
    model.config = NULL; /* a plain Llama has no such matrix */
    model.extra = "model.layers.1.mlp.gate_up_proj.weight";
    assert_model_fails(*state, &model, PDVM_ERR_UNSUPPORTED, model.extra);
}

static void bad_config_is_named(void **state) {
    assert_model_fails(*state, &(struct hf_model){.config = "{\"model_type\": \"bert\"}"},
                       PDVM_ERR_UNSUPPORTED, "bert");
    assert_open_fails(*state, PDVM_ERR_UNSUPPORTED, "config.json");
    assert_model_fails(*state, &(struct hf_model){.config = ""}, PDVM_ERR_FORMAT, "config.json");
}

static void absurd_number_of_layers_is_a_missing_tensor(void **state) {
    const char *config =
        "{\"model_type\": \"llama\", \"hidden_size\": 16, \"intermediate_size\": 24,"
        "\"num_hidden_layers\": 65536, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"vocab_size\": 32}";
    assert_model_fails(*state, &(struct hf_model){.config = config}, PDVM_ERR_FORMAT,
                       "model.layers.65535.");
}

static void cut_or_broken_weights_are_named(void **state) {
    hf_model_write(*state, &(struct hf_model){.n_shards = 2});
    char *path = support_path(*state, "model-00002-of-00002.safetensors");
    size_t size;
    char *data = support_read_file(path, &size);
    assert_int_equal(truncate(path, (off_t)size - 1), 0);
    assert_open_fails(*state, PDVM_ERR_FORMAT, "model-00002-of-00002.safetensors");
    assert_int_equal(unlink(path), 0);
    assert_open_fails(*state, PDVM_ERR_IO, "model-00002-of-00002.safetensors");
    free(data);
    free(path);
}

static void hostile_indices_are_refused(void **state) {
    static const struct {
        const char *text, *message;
        pdvm_status status;
    } cases[] = {
        {"", "index.json", PDVM_ERR_FORMAT},
        {"[]", "object", PDVM_ERR_FORMAT},
        {"{}", "\"weight_map\" is missing", PDVM_ERR_FORMAT},
        {"{\"weight_map\": []}", "\"weight_map\"", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": 1}}", "\"a\"", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": \"\"}}", "same directory", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": \"..\"}}", "same directory", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": \"../m.safetensors\"}}", "same directory", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": \"/m.safetensors\"}}", "same directory", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": \"x/m.safetensors\"}}", "same directory", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": \"config.json\"}}", "same directory", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": \"m.safetensors\"}}", "m.safetensors", PDVM_ERR_IO},
        {"{\"weight_map\": {}}", "is missing", PDVM_ERR_FORMAT},
        {"{\"weight_map\": {\"a\": \"model-00001-of-00001.safetensors\"}}", "tensor \"a\"",
         PDVM_ERR_FORMAT},
    };
    hf_model_write(*state, &(struct hf_model){.n_shards = 1});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        free(support_write_text(*state, "model.safetensors.index.json", cases[i].text));
        assert_open_fails(*state, cases[i].status, cases[i].message);
    }
}

static void a_tensor_in_two_shards_is_refused(void **state) {
    hf_model_write(*state, &(struct hf_model){.n_shards = 2});
    char *from = support_path(*state, "model-00001-of-00002.safetensors");
    size_t size;
    char *data = support_read_file(from, &size);
    free(support_write_file(*state, "model-00003-of-00002.safetensors", data, size));
    free(data);
    free(from);
    free(support_write_text(
        *state, "model.safetensors.index.json",
        "{\"weight_map\": {"
        "\"model.embed_tokens.weight\": \"model-00001-of-00002.safetensors\","
        "\"model.layers.0.self_attn.q_proj.weight\": \"model-00003-of-00002.safetensors\"}}"));
    assert_open_fails(*state, PDVM_ERR_FORMAT, "model-00003-of-00002.safetensors");
}

static void several_files_need_an_index(void **state) {
    hf_model_write(*state, &(struct hf_model){.n_shards = 2});
    char *path = support_path(*state, "model.safetensors.index.json");
    assert_int_equal(unlink(path), 0);
    assert_open_fails(*state, PDVM_ERR_FORMAT, "model.safetensors.index.json");
    free(path);
}

static void directories_without_a_model_get_a_hint(void **state) {
    assert_open_fails(*state, PDVM_ERR_UNSUPPORTED, "config.json");
    char *path = support_write_text(*state, "m.gguf", "GGUF");
    assert_open_fails(*state, PDVM_ERR_UNSUPPORTED, "GGUF files: give the name of one");
    free(path);
    path = support_write_text(*state, "m.pdvm", "x");
    assert_open_fails(*state, PDVM_ERR_UNSUPPORTED, "give the name of one");
    free(path);

    hf_model_write(*state, &(struct hf_model){0});
    path = support_path(*state, "model.safetensors");
    assert_int_equal(unlink(path), 0);
    free(path);
    assert_open_fails(*state, PDVM_ERR_FORMAT, "no weights");
    free(support_write_text(*state, "pytorch_model.bin", "PK\3\4"));
    assert_open_fails(*state, PDVM_ERR_UNSUPPORTED, "PyTorch");
}

static void files_that_are_no_model_get_a_hint(void **state) {
    static const struct {
        const char *name;
        const char *bytes;
        size_t size;
        pdvm_status status;
        const char *message;
    } cases[] = {
        {"empty.pdvm", "", 0, PDVM_ERR_FORMAT, "empty"},
        {"m.gguf", "GGUF\3\0\0\0\0\0\0\0", 12, PDVM_ERR_FORMAT, "number of tensors"},
        {"other-name", "GGUF\1\0\0\0\0\0\0\0", 12, PDVM_ERR_UNSUPPORTED, "GGUF version 1"},
        {"m.bin", "PK\3\4\0\0\0\0\0\0", 10, PDVM_ERR_UNSUPPORTED, "PyTorch"},
        {"old.pt", "\x80\2\x8a\n", 4, PDVM_ERR_UNSUPPORTED, "PyTorch"},
        {"short", "\2\0\0\0", 4, PDVM_ERR_UNSUPPORTED, "known kind"},
        {"config.json", "{\"model_type\": \"llama\"}", 23, PDVM_ERR_UNSUPPORTED, "known kind"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = support_write_file(*state, cases[i].name, cases[i].bytes, cases[i].size);
        assert_open_fails(path, cases[i].status, cases[i].message);
        free(path);
    }
    char *path = support_path(*state, "absent");
    assert_open_fails(path, PDVM_ERR_IO, "no such file");
    free(path);
    assert_open_fails("/dev/null", PDVM_ERR_UNSUPPORTED, "neither a file nor a directory");
}

static void one_shard_of_a_model_asks_for_its_directory(void **state) {
    hf_model_write(*state, &(struct hf_model){0});
    char *path = support_path(*state, "model.safetensors");
    struct model_source *s;
    pdvm_error err = {0};
    assert_int_not_equal(source_open(path, &s, &err), PDVM_OK);
    assert_non_null(strstr(err.message, "give its directory"));
    assert_null(s);
    free(path);
}

/* ---- checkpoints that transformers has written ----------------------------------------- */

static void opens_checkpoints_of_transformers(void **state) {
    (void)state;
    static const struct {
        const char *name;
        bool tied;
    } models[] = {{"tiny-gqa", true},      {"tiny-odd", true},     {"tiny-pruned", false},
                  {"tiny-sharded", false}, {"tiny-llama3", true},  {"tiny-linear", true},
                  {"tiny-yarn", true},     {"tiny-mistral", true}, {"tiny-qwen2", true},
                  {"tiny-qwen3", true},    {"tiny-phi3", false}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char *golden = support_source_path("tests/golden");
        char *path = support_path(golden, models[i].name);
        struct model_source *s = open_good(path);
        const char *tokenizer;
        size_t size;
        source_file(s, SOURCE_TOKENIZER, &tokenizer, &size);
        assert_non_null(tokenizer);
        assert_int_equal(s->config.tie_word_embeddings, models[i].tied);
        source_close(s);
        free(path);
        free(golden);
    }
}

static void refuses_configurations_that_change_the_results(void **state) {
    (void)state;
    static const struct {
        const char *name, *message;
    } models[] = {
        {"refuse-activation", "hidden_act"},     {"refuse-architecture", "MixtralForCausalLM"},
        {"refuse-gemma", "Gemma2ForCausalLM"},   {"refuse-experts", "num_local_experts"},
        {"refuse-mlp-bias", "mlp_bias"},         {"refuse-rope-dynamic", "\"dynamic\""},
        {"refuse-rope-longrope", "\"longrope\""}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char *golden = support_source_path("tests/golden");
        char *path = support_path(golden, models[i].name);
        assert_open_fails(path, PDVM_ERR_UNSUPPORTED, models[i].message);
        free(path);
        free(golden);
    }
}

static uint64_t fingerprint_of(const char *dir, const struct hf_model *model) {
    hf_model_write(dir, model);
    struct model_source *s = open_good(dir);
    uint64_t fingerprint = s->fingerprint;
    source_close(s);
    return fingerprint;
}

static void fingerprint_tells_models_apart(void **state) {
    uint64_t plain = fingerprint_of(*state, &(struct hf_model){0});
    assert_true(fingerprint_of(*state, &(struct hf_model){0}) == plain);
    assert_true(fingerprint_of(*state, &(struct hf_model){.offset = 0.25f}) != plain);
    assert_true(fingerprint_of(*state, &(struct hf_model){.dtype = SAFETENSORS_BF16}) != plain);
    const char *config =
        "{\"model_type\": \"llama\", \"hidden_size\": 16, \"intermediate_size\": 24,"
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"vocab_size\": 32, \"rope_theta\": 5000}";
    assert_true(fingerprint_of(*state, &(struct hf_model){.config = config}) != plain);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, support_make_dir, support_remove_dir)

// Layers by the values' coding, embedding and head in int8 unless they are floats, a tied head too.
static void the_size_in_memory_follows_from_the_coding(void **state) {
    static const struct {
        enum mdcsr_values values;
        uint64_t layers_half_bytes, vocabulary; /* of a weight */
    } cases[] = {{MDCSR_F32, 8, 4},
                 {MDCSR_F16, 4, 2},
                 {MDCSR_INT8, 2, 1},
                 {MDCSR_LUT8, 2, 1},
                 {MDCSR_LUT4, 1, 1}};
    for (int tied = 0; tied < 2; tied++) {
        struct model_source *s;
        pdvm_error err;
        uint64_t layers = 0;
        hf_model_write(*state, &(struct hf_model){.tied = tied});
        assert_ok(source_open(*state, &s, &err), &err);
        for (uint32_t l = 0; l < s->config.n_layers; l++) {
            for (int i = 0; i < TENSOR_N_LAYER_MATRICES; i++) {
                struct tensor_info t;
                tensors_describe(&s->config, tensor_layer_matrices[i], l, &t);
                layers += (uint64_t)(t.rows * t.cols);
            }
        }
        uint64_t vocabulary = 2 * (uint64_t)s->config.n_vocab * s->config.hidden_size;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            assert_int_equal(encoding_bytes(s, cases[i].values),
                             layers * cases[i].layers_half_bytes / 2 +
                                 vocabulary * cases[i].vocabulary);
        source_close(s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(reads_weights_of_every_float_dtype),
        TEST(reads_shards_through_their_index),
        TEST(reads_one_safetensors_file_of_any_name),
        TEST(tied_head_reads_as_the_embedding),
        TEST(tied_model_ignores_a_stored_head),
        TEST(untied_model_needs_its_head),
        TEST(rows_outside_a_tensor_are_refused),
        TEST(side_files_are_there_or_absent),
        TEST(bad_side_files_are_named),
        TEST(oversized_side_file_is_refused_unread),
        TEST(missing_tensors_are_named),
        TEST(wrong_shapes_are_named_with_both_shapes),
        TEST(integer_weights_are_refused),
        TEST(biases_not_asked_for_are_refused_and_other_extras_judged),
        TEST(fused_matrices_may_have_been_taken_apart),
        TEST(bad_config_is_named),
        TEST(absurd_number_of_layers_is_a_missing_tensor),
        TEST(cut_or_broken_weights_are_named),
        TEST(hostile_indices_are_refused),
        TEST(a_tensor_in_two_shards_is_refused),
        TEST(several_files_need_an_index),
        TEST(directories_without_a_model_get_a_hint),
        TEST(files_that_are_no_model_get_a_hint),
        TEST(one_shard_of_a_model_asks_for_its_directory),
        cmocka_unit_test(opens_checkpoints_of_transformers),
        cmocka_unit_test(refuses_configurations_that_change_the_results),
        TEST(fingerprint_tells_models_apart),
        TEST(the_size_in_memory_follows_from_the_coding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
