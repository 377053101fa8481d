// config.json and generation_config.json: which models are understood and which are refused, and
// the tensors that follow from a configuration.

#include "support/support.h"

#include "model/config.h"
#include "model/rope.h"
#include "model/tensors.h"

#include <math.h>
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

#define LLAMA3(low, high, length)                                                                  \
    ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":" low          \
    ",\"high_freq_factor\":" high ",\"original_max_position_embeddings\":" length "}"
#define YARN(more)                                                                                 \
    ",\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4.0,"                                 \
    "\"original_max_position_embeddings\":512," more "}"

/* The good configuration of another architecture; `more` as for parse_more. */
static struct fields fields_of(const char *type, const char *more) {
    struct fields f = good;
    f.architectures = "";
    f.type = type;
    f.more = more;
    return f;
}

#define MISTRAL "\"model_type\":\"mistral\","
#define QWEN2 "\"model_type\":\"qwen2\","
#define QWEN3 "\"model_type\":\"qwen3\","
#define PHI3 "\"model_type\":\"phi3\","
#define KV2 ",\"num_key_value_heads\":2"

static struct model_config parse_of(const char *type, const char *more) {
    struct model_config config;
    pdvm_error err = {0};
    struct fields f = fields_of(type, more);
    assert_ok(parse_fields(&f, &config, &err), &err);
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

static void reads_llama3_scaling_of_the_published_model(void **state) {
    (void)state;
    struct model_config c = parse_seed("llama31");
    assert_int_equal(c.rope_scaling.kind, ROPE_SCALING_LLAMA3);
    assert_true(c.rope_scaling.factor == 8);
    assert_true(c.rope_scaling.low_freq_factor == 1);
    assert_true(c.rope_scaling.high_freq_factor == 4);
    assert_int_equal(c.rope_scaling.original_max_position_embeddings, 8192);
    assert_true(c.rope_theta == 500000.0f);
}

static void reads_scaling_in_both_forms_and_by_both_names(void **state) {
    (void)state;
    static const char *const forms[] = {
        ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}",
        ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2.0}",
        ",\"rope_scaling\":{\"rope_type\":\"linear\",\"type\":\"linear\",\"factor\":2.0}",
        ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":10000.0}",
        ",\"rope_scaling\":{},\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2}",
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct model_config c = parse_good(forms[i]);
        assert_int_equal(c.rope_scaling.kind, ROPE_SCALING_LINEAR);
        assert_true(c.rope_scaling.factor == 2);
        assert_true(c.rope_theta == 10000.0f);
    }
}

static void yarn_fills_in_what_transformers_does(void **state) {
    (void)state;
    struct rope_scaling s = parse_good(YARN("\"beta_fast\":null")).rope_scaling;
    assert_int_equal(s.kind, ROPE_SCALING_YARN);
    assert_int_equal(s.original_max_position_embeddings, 512);
    assert_true(s.beta_fast == 32 && s.beta_slow == 1 && s.truncate);
    assert_float_equal(s.attention_factor, 0.1 * log(4) + 1, 1e-9);
    s = parse_good(YARN("\"attention_factor\":0.5,\"truncate\":false,\"beta_slow\":2"))
            .rope_scaling;
    assert_true(s.attention_factor == 0.5 && !s.truncate && s.beta_slow == 2);
    /* One of the two mscales is not enough to matter. */
    s = parse_good(YARN("\"mscale\":0.707")).rope_scaling;
    assert_float_equal(s.attention_factor, 0.1 * log(4) + 1, 1e-9);
    s = parse_good(YARN("\"mscale\":2,\"mscale_all_dim\":0.5")).rope_scaling;
    assert_float_equal(s.attention_factor, (0.2 * log(4) + 1) / (0.05 * log(4) + 1), 1e-9);
    /* The factor follows from the lengths, and the length beside the object comes first. */
    s = parse_good(",\"max_position_embeddings\":4096,\"original_max_position_embeddings\":1024,"
                   "\"rope_scaling\":{\"type\":\"yarn\",\"original_max_position_embeddings\":9}")
            .rope_scaling;
    assert_int_equal(s.original_max_position_embeddings, 1024);
    assert_true(s.factor == 4);
}

/* Values of transformers 5.23 (ROPE_INIT_FUNCTIONS) for head_dim 16 and rope_theta 10000. */
static void frequencies_are_those_of_transformers(void **state) {
    (void)state;
    static const struct {
        const char *more;
        float factor;
        float expected[8];
    } cases[] = {
        {"",
         1.0f,
         {1.0f, 0.316227764f, 0.100000001f, 0.0316227786f, 0.00999999978f, 0.00316227786f,
          0.00100000005f, 0.000316227786f}},
        {",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}",
         1.0f,
         {0.400000006f, 0.1264911f, 0.0399999991f, 0.0126491114f, 0.00399999972f, 0.00126491114f,
          0.000400000019f, 0.000126491112f}},
        {LLAMA3("1.0", "4.0", "64"),
         1.0f,
         {1.0f, 0.244384587f, 0.0130422562f, 0.00395284733f, 0.00124999997f, 0.000395284733f,
          0.000125000006f, 3.95284733e-05f}},
        {YARN("\"beta_slow\":1"),
         1.13862944f,
         {1.0f, 0.25693506f, 0.0625f, 0.0138349654f, 0.00249999994f, 0.000790569466f,
          0.000250000012f, 7.90569466e-05f}},
        {YARN("\"beta_fast\":16,\"beta_slow\":2,\"truncate\":false"),
         1.13862944f,
         {1.0f, 0.316227764f, 0.0756644011f, 0.0107961092f, 0.00249999994f, 0.000790569466f,
          0.000250000012f, 7.90569466e-05f}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float inv_freq[8];
        struct model_config c = parse_good(cases[i].more);
        rope_frequencies(&c, inv_freq);
        assert_float_equal(rope_attention_factor(&c), cases[i].factor, 1e-6);
        for (int j = 0; j < 8; j++)
            if (!(fabsf(inv_freq[j] / cases[i].expected[j] - 1) < 1e-6f))
                fail_msg("case %zu: frequency %d is %.9g, not %.9g", i, j, (double)inv_freq[j],
                         (double)cases[i].expected[j]);
    }
}

static void architectures_have_their_own_defaults(void **state) {
    (void)state;
    struct model_config c = parse_of(MISTRAL, KV2);
    assert_string_equal(c.architecture, "mistral");
    assert_int_equal(c.max_position_embeddings, 131072);
    assert_int_equal(c.sliding_window, 4096);
    assert_int_equal(model_config_window(&c, 1), 4096);
    assert_int_equal(c.bos_token_id, 1);
    struct fields f = fields_of(MISTRAL, "");
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "\"num_key_value_heads\" is 8");
    assert_int_equal(parse_of(MISTRAL, ",\"num_key_value_heads\":null").n_kv_heads, 4);

    c = parse_of(QWEN2, KV2);
    assert_string_equal(c.architecture, "qwen2");
    assert_true(c.qkv_bias && !c.o_bias && !c.qk_norm);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.bos_token_id, -1);
    assert_int_equal(c.n_eos, 0);

    c = parse_of(QWEN3, KV2);
    assert_string_equal(c.architecture, "qwen3");
    assert_true(c.qk_norm && !c.qkv_bias && !c.o_bias);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(parse_of(QWEN3, KV2 ",\"head_dim\":24").head_dim, 24);

    c = parse_of(PHI3, "");
    assert_string_equal(c.architecture, "phi3");
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.max_position_embeddings, 4096);
    assert_true(c.rms_norm_eps == 1e-5f);
    f = fields_of(PHI3, YARN("\"beta_slow\":1"));
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "\"yarn\"");
}

static void attention_bias_means_all_four_where_it_is_read(void **state) {
    (void)state;
    struct model_config c = parse_good(",\"attention_bias\":true");
    assert_true(c.qkv_bias && c.o_bias && !c.qk_norm);
    c = parse_of(QWEN3, KV2 ",\"attention_bias\":true");
    assert_true(c.qkv_bias && c.o_bias && c.qk_norm);
    c = parse_of(QWEN2, KV2 ",\"attention_bias\":true");
    assert_true(c.qkv_bias && !c.o_bias);
    c = parse_of(QWEN2, KV2 ",\"attention_bias\":false");
    assert_true(c.qkv_bias && !c.o_bias);
    struct fields f = fields_of(MISTRAL, KV2 ",\"attention_bias\":true");
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "\"attention_bias\"");
}

static void windows_follow_each_architectures_fields(void **state) {
    (void)state;
    assert_int_equal(parse_of(MISTRAL, KV2 ",\"sliding_window\":null").sliding_window, 0);
    struct model_config c = parse_of(MISTRAL, KV2 ",\"sliding_window\":7");
    assert_int_equal(model_config_window(&c, 0), 7);
    assert_int_equal(model_config_window(&c, 1), 7);
    c = parse_of(PHI3, ",\"sliding_window\":2047");
    assert_int_equal(model_config_window(&c, 1), 2047);
    /* Llama has no such field, Qwen2 wants two. */
    assert_int_equal(parse_good(",\"sliding_window\":7").sliding_window, 0);
    assert_int_equal(parse_of(QWEN2, KV2 ",\"sliding_window\":7").sliding_window, 0);
    c = parse_of(QWEN2, KV2 ",\"use_sliding_window\":true");
    assert_int_equal(c.sliding_window, 0); /* from layer 28 on */
    c = parse_of(QWEN2, KV2 ",\"use_sliding_window\":true,\"max_window_layers\":1,"
                            "\"sliding_window\":7");
    assert_int_equal(model_config_window(&c, 0), 0);
    assert_int_equal(model_config_window(&c, 1), 7);
    c = parse_of(QWEN3, KV2 ",\"use_sliding_window\":true,\"sliding_window\":7,"
                            "\"layer_types\":[\"sliding_attention\",\"full_attention\"]");
    assert_int_equal(model_config_window(&c, 0), 7);
    assert_int_equal(model_config_window(&c, 1), 0);
    assert_int_equal(model_config_window(&c, 70000), 0);
    struct fields f =
        fields_of(QWEN3, KV2 ",\"layer_types\":[\"sliding_attention\",\"full_attention\"]");
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "\"layer_types\"");
    f = fields_of(MISTRAL, KV2 ",\"layer_types\":[\"sliding_attention\",\"full_attention\"]");
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "layer 1");
    f = fields_of(MISTRAL, KV2 ",\"sliding_window\":0");
    assert_fields_refused(&f, PDVM_ERR_FORMAT, "\"sliding_window\"");
    f = fields_of(MISTRAL, KV2);
    f.layers = "\"num_hidden_layers\":1025,";
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "layer 1024");
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
        {",\"mlp_bias\":true", "\"mlp_bias\""},
        {",\"hidden_act\":\"gelu\"", "gelu"},
        {",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}", "\"gptq\""},
        {",\"quantization_config\":{}", "\"quantization_config\""},
        {",\"compression_config\":{\"quant_method\":\"sparse\"}", "\"sparse\""},
        {",\"num_local_experts\":8", "\"num_local_experts\" is 8"},
        {",\"num_experts\":2", "\"num_experts\""},
        {",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}", "\"dynamic\""},
        {",\"rope_scaling\":{\"rope_type\":\"longrope\"}", "\"longrope\""},
        {",\"rope_scaling\":{\"rope_type\":\"default\",\"type\":\"mrope\"}", "\"mrope\""},
        {",\"rope_parameters\":{\"rope_type\":\"su\",\"rope_theta\":1e4}", "\"su\""},
        {",\"layer_types\":[\"full_attention\",\"sliding_attention\"]", "layer 1"},
        {",\"layer_types\":[\"full_attention\",\"chunked_attention\"]", "chunked_attention"},
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
    f.architectures = "\"architectures\":[\"GemmaForCausalLM\"],";
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "GemmaForCausalLM");
    /* Known ones that contradict each other. */
    f.architectures = "\"architectures\":[\"MistralForCausalLM\"],";
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "MistralForCausalLM");
    f.architectures = "\"architectures\":[\"LlamaForCausalLM\",\"MistralForCausalLM\"],";
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
    f.type = "\"model_type\":\"olmo2\",";
    assert_fields_refused(&f, PDVM_ERR_UNSUPPORTED, "olmo2");
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
        {",\"rope_scaling\":{\"type\":\"linear\"}", "\"factor\""},
        {",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}", "\"factor\""},
        {",\"rope_scaling\":{\"type\":\"linear\",\"factor\":1e9}", "\"factor\""},
        {",\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"2\"}", "\"factor\""},
        {",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}", "\"low_freq_factor\""},
        {LLAMA3("4.0", "4.0", "8192"), "\"high_freq_factor\""},
        {LLAMA3("0", "4.0", "8192"), "\"low_freq_factor\""},
        {LLAMA3("1.0", "4.0", "0"), "\"original_max_position_embeddings\""},
        {LLAMA3("1.0", "4.0", "8192.5"), "\"original_max_position_embeddings\""},
        {YARN("\"beta_fast\":-1"), "\"beta_fast\""},
        {YARN("\"beta_slow\":1e9"), "\"beta_slow\""},
        {YARN("\"attention_factor\":0"), "\"attention_factor\""},
        {YARN("\"mscale\":-1"), "\"mscale\""},
        {YARN("\"truncate\":1"), "\"truncate\""},
        {YARN("\"rope_theta\":1"), "\"rope_theta\""},
        {",\"rope_scaling\":{\"type\":\"default\"},\"rope_parameters\":{\"rope_theta\":5}",
         "contradict"},
        {",\"layer_types\":[\"full_attention\"]", "\"layer_types\" has 1"},
        {",\"layer_types\":[1,2]", "\"layer_types\""},
        {",\"sliding_window\":-1", "\"sliding_window\""},
        {",\"num_experts\":\"8\"", "\"num_experts\""},
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

static void biases_and_head_norms_are_vectors_in_the_order_of_a_token(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t cols;
    } expected[] = {
        {"model.layers.1.input_layernorm.weight", 64},
        {"model.layers.1.self_attn.q_proj.weight", 64},
        {"model.layers.1.self_attn.k_proj.weight", 64},
        {"model.layers.1.self_attn.v_proj.weight", 64},
        {"model.layers.1.self_attn.q_proj.bias", 96},
        {"model.layers.1.self_attn.k_proj.bias", 48},
        {"model.layers.1.self_attn.v_proj.bias", 48},
        {"model.layers.1.self_attn.q_norm.weight", 24},
        {"model.layers.1.self_attn.k_norm.weight", 24},
        {"model.layers.1.self_attn.o_proj.weight", 96},
        {"model.layers.1.self_attn.o_proj.bias", 64},
        {"model.layers.1.post_attention_layernorm.weight", 64},
    };
    struct model_config c = parse_of(QWEN3, KV2 ",\"head_dim\":24,\"attention_bias\":true");
    assert_int_equal(tensors_count(&c), 1 + 2 * 15 + 2);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        struct tensor_info info;
        tensors_at(&c, 1 + 15 + i, &info);
        assert_string_equal(info.name, expected[i].name);
        assert_int_equal(info.cols, expected[i].cols);
        assert_int_equal(info.is_matrix, strstr(info.name, "proj.weight") != NULL);
        if (!info.is_matrix) assert_int_equal(info.rows, 1);
    }
}

static void phi3_has_fused_matrices(void **state) {
    (void)state;
    struct tensor_info whole;
    int64_t row;
    struct model_config c = parse_of(PHI3, KV2), llama = parse_good(KV2);
    assert_true(tensors_fused(&c, TENSOR_V, 1, &whole, &row));
    assert_string_equal(whole.name, "model.layers.1.self_attn.qkv_proj.weight");
    assert_int_equal(whole.rows, 64 + 32 + 32);
    assert_int_equal(whole.cols, 64);
    assert_int_equal(row, 64 + 32);
    assert_true(tensors_fused(&c, TENSOR_UP, 0, &whole, &row));
    assert_string_equal(whole.name, "model.layers.0.mlp.gate_up_proj.weight");
    assert_int_equal(whole.rows, 256);
    assert_int_equal(row, 128);
    assert_false(tensors_fused(&c, TENSOR_O, 0, &whole, &row));
    assert_false(tensors_fused(&c, TENSOR_DOWN, 0, &whole, &row));
    assert_false(tensors_fused(&llama, TENSOR_Q, 0, &whole, &row));
}

static void tied_models_have_no_head(void **state) {
    (void)state;
    struct model_config c = parse_good(",\"tie_word_embeddings\":true");
    assert_int_equal(tensors_count(&c), 1 + 2 * 9 + 1);
    assert_int_equal(tensors_index(&c, TENSOR_HEAD, 0), tensors_index(&c, TENSOR_EMBED, 0));
}

static void index_and_describe_agree_with_at(void **state) {
    (void)state;
    const struct model_config configs[] = {parse_good(""), parse_good(",\"attention_bias\":true"),
                                           parse_of(QWEN2, KV2), parse_of(QWEN3, KV2)};
    for (size_t k = 0; k < sizeof configs / sizeof *configs; k++) {
        const struct model_config *c = &configs[k];
        for (size_t i = 0; i < tensors_count(c); i++) {
            struct tensor_info at, described;
            tensors_at(c, i, &at);
            assert_true(tensors_has(c, at.role));
            assert_int_equal(tensors_index(c, at.role, at.layer), i);
            tensors_describe(c, at.role, at.layer, &described);
            assert_string_equal(at.name, described.name);
            assert_int_equal(at.rows, described.rows);
            assert_int_equal(at.cols, described.cols);
            assert_int_equal(at.layer, described.layer);
        }
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
        cmocka_unit_test(reads_llama3_scaling_of_the_published_model),
        cmocka_unit_test(reads_scaling_in_both_forms_and_by_both_names),
        cmocka_unit_test(yarn_fills_in_what_transformers_does),
        cmocka_unit_test(frequencies_are_those_of_transformers),
        cmocka_unit_test(architectures_have_their_own_defaults),
        cmocka_unit_test(attention_bias_means_all_four_where_it_is_read),
        cmocka_unit_test(windows_follow_each_architectures_fields),
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
        cmocka_unit_test(biases_and_head_norms_are_vectors_in_the_order_of_a_token),
        cmocka_unit_test(phi3_has_fused_matrices),
        cmocka_unit_test(tied_models_have_no_head),
        cmocka_unit_test(index_and_describe_agree_with_at),
        cmocka_unit_test(every_role_has_a_short_name_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
