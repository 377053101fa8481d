// config.json and generation_config.json: which models are understood and which are refused, and
// the tensors that follow from a configuration.

#include "support/support.h"

#include "model/config.h"
#include "model/tensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The required fields, each of which a test may replace. */
struct fields {
    const char *architectures, *type, *hidden, *intermediate, *layers, *heads, *vocab, *more;
};

static const struct fields good = {
    "\"architectures\":[\"LlamaForCausalLM\"],",
    "\"model_type\":\"llama\",",
    "\"hidden_size\":64,",
    "\"intermediate_size\":128,",
    "\"num_hidden_layers\":2,",
    "\"num_attention_heads\":4,",
    "\"vocab_size\":256",
    "",
};

static pdvm_status parse_fields(const struct fields *f, struct model_config *out, pdvm_error *err) {
    char json[4096];
    int n = snprintf(json, sizeof json, "{%s%s%s%s%s%s%s%s}", f->architectures, f->type, f->hidden,
                     f->intermediate, f->layers, f->heads, f->vocab, f->more);
    assert_in_range(n, 1, sizeof json - 1);
    return model_config_parse("dir/config.json", json, (size_t)n, out, err);
}

/* Parses the good configuration with more fields, given with a comma in front. */
static pdvm_status parse_more(const char *more, struct model_config *out, pdvm_error *err) {
    struct fields f = good;
    f.more = more;
    return parse_fields(&f, out, err);
}

static void assert_more_refused(const char *more, pdvm_status expected, const char *text) {
    struct model_config config;
    pdvm_error err = {0};
    pdvm_status status = parse_more(more, &config, &err);
    assert_error(status, expected, &err, text);
    assert_error(status, expected, &err, "dir/config.json");
}

static void assert_fields_refused(const struct fields *f, pdvm_status expected, const char *text) {
    struct model_config config;
    pdvm_error err = {0};
    assert_error(parse_fields(f, &config, &err), expected, &err, text);
}

static struct model_config parse_good(const char *more) {
    struct model_config config;
    pdvm_error err = {0};
    assert_ok(parse_more(more, &config, &err), &err);
    return config;
}

static struct model_config parse_seed(const char *name) {
    char relative[256];
    size_t size;
    struct model_config config;
    pdvm_error err = {0};
    snprintf(relative, sizeof relative, "tests/fuzz/corpus/config/%s", name);
    char *path = support_source_path(relative);
    char *text = support_read_file(path, &size);
    assert_ok(model_config_parse(path, text, size, &config, &err), &err);
    free(text);
    free(path);
    return config;
}

/* ---- what is understood ---------------------------------------------------------------- */

static void reads_a_published_configuration(void **state) {
    (void)state;
    struct model_config c = parse_seed("tinyllama");
    assert_string_equal(c.architecture, "llama");
    assert_int_equal(c.hidden_size, 2048);
    assert_int_equal(c.intermediate_size, 5632);
    assert_int_equal(c.n_layers, 22);
    assert_int_equal(c.n_heads, 32);
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 64);
    assert_int_equal(c.n_vocab, 32000);
    assert_int_equal(c.max_position_embeddings, 2048);
    assert_true(c.rms_norm_eps == 1e-5f);
    assert_true(c.rope_theta == 10000.0f);
    assert_false(c.tie_word_embeddings);
    assert_int_equal(c.bos_token_id, 1);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos_token_ids[0], 2);
}

static void absent_fields_are_transformers_defaults(void **state) {
    (void)state;
    struct model_config c = parse_good("");
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.max_position_embeddings, 2048);
    assert_true(c.rms_norm_eps == 1e-6f);
    assert_true(c.rope_theta == 10000.0f);
    assert_false(c.tie_word_embeddings);
    assert_int_equal(c.bos_token_id, 1);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos_token_ids[0], 2);
}

static void null_fields_are_defaults_and_null_tokens_are_none(void **state) {
    (void)state;
    struct model_config c = parse_seed("nulls");
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_true(c.rope_theta == 10000.0f);
    assert_int_equal(c.bos_token_id, -1);
    assert_int_equal(c.n_eos, 0);
}

static void default_tokens_stay_inside_a_tiny_vocabulary(void **state) {
    (void)state;
    struct model_config c;
    pdvm_error err = {0};
    struct fields f = good;
    f.vocab = "\"vocab_size\":1";
    assert_ok(parse_fields(&f, &c, &err), &err);
    assert_int_equal(c.bos_token_id, -1);
    assert_int_equal(c.n_eos, 0);
}

static void one_of_architectures_and_model_type_is_enough(void **state) {
    (void)state;
    struct model_config c;
    pdvm_error err = {0};
    struct fields f = good;
    f.architectures = "";
    assert_ok(parse_fields(&f, &c, &err), &err);
    assert_string_equal(c.architecture, "llama");
    f = good;
    f.type = "";
    assert_ok(parse_fields(&f, &c, &err), &err);
    f.architectures = "";
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "architectures");
}

static void reads_rope_theta_in_both_places(void **state) {
    (void)state;
    assert_true(parse_good(",\"rope_theta\":500000").rope_theta == 500000.0f);
    assert_true(parse_good(",\"rope_theta\":1e6").rope_theta == 1e6f);
    struct model_config c = parse_seed("rope_parameters");
    assert_true(c.rope_theta == 500000.0f);
    assert_int_equal(c.head_dim, 32);
    assert_true(c.tie_word_embeddings);
    c = parse_good(",\"rope_parameters\":{\"rope_type\":\"default\"},\"rope_theta\":5000");
    assert_true(c.rope_theta == 5000.0f);
    c = parse_good(",\"rope_parameters\":{\"rope_theta\":5000},\"rope_theta\":5000.0");
    assert_true(c.rope_theta == 5000.0f);
    assert_more_refused(",\"rope_parameters\":{\"rope_theta\":5000},\"rope_theta\":6000",
                        PDVM_ERR_FORMAT, "rope_theta");
}

static void takes_rope_scaling_that_scales_nothing(void **state) {
    (void)state;
    parse_good(",\"rope_scaling\":null");
    parse_good(",\"rope_scaling\":{\"type\":\"default\"}");
    parse_good(",\"rope_scaling\":{\"rope_type\":\"default\",\"rope_theta\":1}");
    parse_good(",\"rope_parameters\":null");
}

static void reads_one_end_token_or_a_list(void **state) {
    (void)state;
    struct model_config c = parse_good(",\"eos_token_id\":7");
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos_token_ids[0], 7);
    c = parse_good(",\"eos_token_id\":[9,7,9,0,255]");
    assert_int_equal(c.n_eos, 4);
    assert_int_equal(c.eos_token_ids[0], 9);
    assert_int_equal(c.eos_token_ids[1], 7);
    assert_int_equal(c.eos_token_ids[3], 255);
    assert_int_equal(parse_good(",\"eos_token_id\":[]").n_eos, 0);
    assert_int_equal(parse_good(",\"bos_token_id\":0").bos_token_id, 0);
}

static void false_and_silu_and_training_fields_are_fine(void **state) {
    (void)state;
    parse_good(",\"attention_bias\":false,\"mlp_bias\":false,\"hidden_act\":\"silu\"");
    parse_good(",\"hidden_act\":\"swish\",\"attention_dropout\":0.1,\"pretraining_tp\":2");
    parse_good(",\"quantization_config\":null,\"partial_rotary_factor\":1.0");
}

/* ---- what is refused ------------------------------------------------------------------- */

static void names_what_is_not_supported(void **state) {
    (void)state;
    static const struct {
        const char *more, *text;
    } cases[] = {
        {",\"attention_bias\":true", "\"attention_bias\""},
        {",\"mlp_bias\":true", "\"mlp_bias\""},
        {",\"hidden_act\":\"gelu\"", "gelu"},
        {",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}", "\"gptq\""},
        {",\"quantization_config\":{}", "\"quantization_config\""},
        {",\"compression_config\":{\"quant_method\":\"sparse\"}", "\"sparse\""},
        {",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", "\"linear\""},
        {",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}", "\"llama3\""},
        {",\"rope_scaling\":{\"rope_type\":\"default\",\"type\":\"yarn\"}", "\"yarn\""},
        {",\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":1e4}", "\"yarn\""},
        {",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e4}}", "\"full_attention\""},
        {",\"rope_parameters\":{\"partial_rotary_factor\":0.5}", "\"partial_rotary_factor\""},
        {",\"partial_rotary_factor\":0.25", "\"partial_rotary_factor\""},
        {",\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]", "more than 16"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_more_refused(cases[i].more, PDVM_ERR_UNSUPPORTED, cases[i].text);
}

static void names_other_architectures(void **state) {
    (void)state;
    struct fields f = good;
    f.architectures = "\"architectures\":[\"MistralForCausalLM\"],";
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "MistralForCausalLM");
    f.architectures = "\"architectures\":[\"LlamaForCausalLM\",\"LlamaForSequence\"],";
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "LlamaForSequence");
    f.architectures = "\"architectures\":[],";
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "architectures");
    f.architectures = "\"architectures\":[1],";
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "architectures");
    f.architectures = "\"architectures\":\"LlamaForCausalLM\",";
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "architectures");
    f = good;
    f.type = "\"model_type\":\"qwen2\",";
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "qwen2");
    f.type = "\"model_type\":3,";
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "model_type");
}

static void every_size_is_required_and_bounded(void **state) {
    (void)state;
    static const struct {
        const char *name;
        size_t offset;
    } sizes[] = {
        {"hidden_size", offsetof(struct fields, hidden)},
        {"intermediate_size", offsetof(struct fields, intermediate)},
        {"num_hidden_layers", offsetof(struct fields, layers)},
        {"num_attention_heads", offsetof(struct fields, heads)},
        {"vocab_size", offsetof(struct fields, vocab)},
    };
    static const char *const values[] = {
        "0", "-1", "16777217", "9223372036854775807", "64.0", "\"64\"", "[64]", "true", "null"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t j = 0; j < sizeof values / sizeof *values; j++) {
            char text[96];
            struct fields f = good;
            bool last = strcmp(sizes[i].name, "vocab_size") == 0;
            snprintf(text, sizeof text, "\"%s\":%s%s", sizes[i].name, values[j], last ? "" : ",");
            const char *p = text;
            memcpy((char *)&f + sizes[i].offset, &p, sizeof p);
            assert_fields_refused(&f, PDVM_ERR_FORMAT, sizes[i].name);
        }
    }
}

static void names_optional_fields_with_absurd_values(void **state) {
    (void)state;
    static const struct {
        const char *more, *text;
    } cases[] = {
        {",\"num_key_value_heads\":3", "\"num_key_value_heads\""},
        {",\"num_key_value_heads\":8", "\"num_key_value_heads\""},
        {",\"num_key_value_heads\":0", "\"num_key_value_heads\""},
        {",\"head_dim\":15", "\"head_dim\""},
        {",\"head_dim\":0", "\"head_dim\""},
        {",\"head_dim\":-2", "\"head_dim\""},
        {",\"head_dim\":8388608", "\"head_dim\""},
        {",\"max_position_embeddings\":0", "\"max_position_embeddings\""},
        {",\"max_position_embeddings\":1e3", "\"max_position_embeddings\""},
        {",\"rms_norm_eps\":0", "\"rms_norm_eps\""},
        {",\"rms_norm_eps\":-1e-5", "\"rms_norm_eps\""},
        {",\"rms_norm_eps\":1e-300", "\"rms_norm_eps\""},
        {",\"rms_norm_eps\":1e300", "\"rms_norm_eps\""},
        {",\"rms_norm_eps\":\"1e-5\"", "\"rms_norm_eps\""},
        {",\"rope_theta\":0", "\"rope_theta\""},
        {",\"rope_theta\":-1", "\"rope_theta\""},
        {",\"rope_theta\":1e39", "\"rope_theta\""},
        {",\"rope_theta\":[]", "\"rope_theta\""},
        {",\"rope_theta\":1e999", "line 1"},
        {",\"rope_theta\":NaN", "line 1"},
        {",\"rope_scaling\":1", "\"rope_scaling\""},
        {",\"rope_scaling\":{\"type\":1}", "rope_scaling"},
        {",\"rope_parameters\":[]", "\"rope_parameters\""},
        {",\"rope_parameters\":{\"rope_theta\":0}", "rope_parameters"},
        {",\"tie_word_embeddings\":1", "\"tie_word_embeddings\""},
        {",\"attention_bias\":\"no\"", "\"attention_bias\""},
        {",\"hidden_act\":1", "\"hidden_act\""},
        {",\"quantization_config\":4", "\"quantization_config\""},
        {",\"bos_token_id\":256", "\"bos_token_id\""},
        {",\"bos_token_id\":-1", "\"bos_token_id\""},
        {",\"eos_token_id\":256", "\"eos_token_id\""},
        {",\"eos_token_id\":-1", "\"eos_token_id\""},
        {",\"eos_token_id\":\"2\"", "\"eos_token_id\""},
        {",\"eos_token_id\":[2,256]", "element 1"},
        {",\"eos_token_id\":[null]", "element 0"},
        {",\"eos_token_id\":[4294967298]", "element 0"},
        {",\"vocab_size\":256", "uplicate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_more_refused(cases[i].more, PDVM_ERR_FORMAT, cases[i].text);
    struct fields f = good;
    f.heads = "\"num_attention_heads\":6,";
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "\"num_attention_heads\"");
}

static void refuses_text_that_is_no_object(void **state) {
    (void)state;
    static const char *const texts[] = {"",
                                        " ",
                                        "[]",
                                        "1",
                                        "\"a\"",
                                        "{",
                                        "{}}",
                                        "\xef\xbb\xbf{}",
                                        "{\"a\":\"\xff\"}",
                                        "{\"a\" 1}",
                                        "{\"a\":1,}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct model_config c;
        pdvm_error err = {0};
        assert_error(model_config_parse("c.json", texts[i], strlen(texts[i]), &c, &err),
                     PDVM_ERR_FORMAT, &err, "c.json");
        assert_error(model_config_parse_generation("c.json", texts[i], strlen(texts[i]), &c, &err),
                     PDVM_ERR_FORMAT, &err, "c.json");
    }
}

/* ---- generation_config.json ------------------------------------------------------------ */

static void generation_config_adds_end_tokens(void **state) {
    (void)state;
    struct model_config c = parse_good(",\"eos_token_id\":5");
    pdvm_error err = {0};
    const char *text = "{\"bos_token_id\":3,\"eos_token_id\":[6,5,7],\"temperature\":0.6}";
    assert_ok(model_config_parse_generation("g.json", text, strlen(text), &c, &err), &err);
    assert_int_equal(c.n_eos, 3);
    assert_int_equal(c.eos_token_ids[0], 5);
    assert_int_equal(c.eos_token_ids[1], 6);
    assert_int_equal(c.eos_token_ids[2], 7);
    assert_int_equal(c.bos_token_id, 3);

    text = "{\"eos_token_id\":8}";
    assert_ok(model_config_parse_generation("g.json", text, strlen(text), &c, &err), &err);
    assert_int_equal(c.n_eos, 4);
    assert_int_equal(c.bos_token_id, 3);
    text = "{\"bos_token_id\":null,\"eos_token_id\":null}";
    assert_ok(model_config_parse_generation("g.json", text, strlen(text), &c, &err), &err);
    assert_int_equal(c.n_eos, 4);
    assert_int_equal(c.bos_token_id, 3);
}

static void bad_generation_config_changes_nothing(void **state) {
    (void)state;
    static const char *const texts[] = {"{\"eos_token_id\":[6,999]}",
                                        "{\"eos_token_id\":6,\"bos_token_id\":\"a\"}",
                                        "{\"eos_token_id\":6,\"bos_token_id\":256}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct model_config c = parse_good(",\"eos_token_id\":5"), before = c;
        pdvm_error err = {0};
        assert_error(model_config_parse_generation("g.json", texts[i], strlen(texts[i]), &c, &err),
                     PDVM_ERR_FORMAT, &err, "g.json");
        assert_memory_equal(&c, &before, sizeof c);
    }
}

/* ---- tensors --------------------------------------------------------------------------- */

static void tensors_have_llamas_names_and_shapes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t rows, cols;
    } expected[] = {
        {"model.embed_tokens.weight", 256, 64},
        {"model.layers.0.input_layernorm.weight", 1, 64},
        {"model.layers.0.self_attn.q_proj.weight", 128, 64},
        {"model.layers.0.self_attn.k_proj.weight", 64, 64},
        {"model.layers.0.self_attn.v_proj.weight", 64, 64},
        {"model.layers.0.self_attn.o_proj.weight", 64, 128},
        {"model.layers.0.post_attention_layernorm.weight", 1, 64},
        {"model.layers.0.mlp.gate_proj.weight", 128, 64},
        {"model.layers.0.mlp.up_proj.weight", 128, 64},
        {"model.layers.0.mlp.down_proj.weight", 64, 128},
        {"model.layers.1.input_layernorm.weight", 1, 64},
    };
    struct model_config c = parse_good(",\"num_key_value_heads\":2,\"head_dim\":32");
    struct tensor_info info;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        tensors_at(&c, i, &info);
        assert_string_equal(info.name, expected[i].name);
        assert_int_equal(info.rows, expected[i].rows);
        assert_int_equal(info.cols, expected[i].cols);
        assert_int_equal(info.is_matrix, expected[i].rows > 1);
    }
    assert_int_equal(tensors_count(&c), 1 + 2 * 9 + 2);
    tensors_at(&c, 19, &info);
    assert_string_equal(info.name, "model.norm.weight");
    tensors_at(&c, 20, &info);
    assert_string_equal(info.name, "lm_head.weight");
    assert_int_equal(info.rows, 256);
    assert_int_equal(info.cols, 64);
}

static void tied_models_have_no_head(void **state) {
    (void)state;
    struct model_config c = parse_good(",\"tie_word_embeddings\":true");
    assert_int_equal(tensors_count(&c), 1 + 2 * 9 + 1);
    assert_int_equal(tensors_index(&c, TENSOR_HEAD, 0), tensors_index(&c, TENSOR_EMBED, 0));
}

static void index_and_describe_agree_with_at(void **state) {
    (void)state;
    struct model_config c = parse_good("");
    for (size_t i = 0; i < tensors_count(&c); i++) {
        struct tensor_info at, described;
        tensors_at(&c, i, &at);
        assert_int_equal(tensors_index(&c, at.role, at.layer), i);
        tensors_describe(&c, at.role, at.layer, &described);
        assert_string_equal(at.name, described.name);
        assert_int_equal(at.rows, described.rows);
        assert_int_equal(at.cols, described.cols);
        assert_int_equal(at.layer, described.layer);
    }
}

static void every_role_has_a_short_name_of_its_own(void **state) {
    (void)state;
    assert_string_equal(tensor_role_name(TENSOR_Q), "q");
    assert_string_equal(tensor_role_name(TENSOR_DOWN), "down");
    for (int i = 0; i < TENSOR_N_ROLES; i++)
        for (int j = 0; j < i; j++)
            assert_string_not_equal(tensor_role_name((enum tensor_role)i),
                                    tensor_role_name((enum tensor_role)j));
    assert_null(tensor_role_name(TENSOR_N_ROLES));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_published_configuration),
        cmocka_unit_test(absent_fields_are_transformers_defaults),
        cmocka_unit_test(null_fields_are_defaults_and_null_tokens_are_none),
        cmocka_unit_test(default_tokens_stay_inside_a_tiny_vocabulary),
        cmocka_unit_test(one_of_architectures_and_model_type_is_enough),
        cmocka_unit_test(reads_rope_theta_in_both_places),
        cmocka_unit_test(takes_rope_scaling_that_scales_nothing),
        cmocka_unit_test(reads_one_end_token_or_a_list),
        cmocka_unit_test(false_and_silu_and_training_fields_are_fine),
        cmocka_unit_test(names_what_is_not_supported),
        cmocka_unit_test(names_other_architectures),
        cmocka_unit_test(every_size_is_required_and_bounded),
        cmocka_unit_test(names_optional_fields_with_absurd_values),
        cmocka_unit_test(refuses_text_that_is_no_object),
        cmocka_unit_test(generation_config_adds_end_tokens),
        cmocka_unit_test(bad_generation_config_changes_nothing),
        cmocka_unit_test(tensors_have_llamas_names_and_shapes),
        cmocka_unit_test(tied_models_have_no_head),
        cmocka_unit_test(index_and_describe_agree_with_at),
        cmocka_unit_test(every_role_has_a_short_name_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
