#include "base/alloc.h"
#include "model/gguf_metadata.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As config.c's limits, which are checked again when the text is read. */
#define MAX_WIDTH ((int64_t)1 << 24)
#define MAX_LAYERS ((int64_t)1 << 16)
#define KEY_SIZE 96

static const struct architecture {
    const char *name;       /* in general.architecture */
    const char *model_type; /* in config.json */
    const char *class_name;
} architectures[] = {
    {"llama", "llama", "LlamaForCausalLM"},
    {"qwen2", "qwen2", "Qwen2ForCausalLM"},
    {"qwen3", "qwen3", "Qwen3ForCausalLM"},
    {"phi3", "phi3", "Phi3ForCausalLM"},
};
static const struct architecture mistral = {"llama", "mistral", "MistralForCausalLM"};
#define N_ARCHITECTURES (sizeof architectures / sizeof *architectures)

/* A configuration in the making. */
struct maker {
    const struct gguf_set *set;
    const struct gguf *g; /* the file with the metadata */
    const struct architecture *arch;
    json_t *config;
    int failed; /* a jansson call, for want of memory */
    int64_t hidden, heads, head_dim, n_vocab;
    double theta;
};

void gguf_texts_clear(struct gguf_texts *t) {
    free(t->config);
    free(t->generation_config);
    free(t->tokenizer_config);
    free(t->chat_template);
    free(t->tokenizer);
    memset(t, 0, sizeof *t);
}

static void put(struct maker *m, const char *field, json_t *value) {
    m->failed |= json_object_set_new(m->config, field, value);
}

/* The key of a name within the architecture: "llama.block_count". */
static const char *key_of(const struct maker *m, const char *name, char key[KEY_SIZE]) {
    snprintf(key, KEY_SIZE, "%s.%s", m->arch->name, name);
    return key;
}

static pdvm_status get_int(const struct maker *m, const char *name, bool required, int64_t max,
                           int64_t *out, pdvm_error *err) {
    char key[KEY_SIZE];
    key_of(m, name, key);
    const struct gguf_value *v = gguf_value_find(m->g, key);
    if (v && v->is_array)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: key \"%s\" has a value for each layer, which is not supported",
                       gguf_path(m->g), key);
    return gguf_get_int(m->g, key, required, 1, max, out, err);
}

static pdvm_status get_float(const struct maker *m, const char *name, bool required, double *out,
                             pdvm_error *err) {
    char key[KEY_SIZE];
    return gguf_get_float(m->g, key_of(m, name, key), required, out, err);
}

static pdvm_status find_architecture(struct maker *m, pdvm_error *err) {
    const char *name = NULL;
    size_t len = 0;
    PD_TRY(gguf_get_string(m->g, "general.architecture", true, &name, &len, err));
    for (size_t i = 0; i < N_ARCHITECTURES; i++) {
        if (strlen(architectures[i].name) == len && memcmp(architectures[i].name, name, len) == 0)
            m->arch = &architectures[i];
    }
    if (m->arch) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: key \"general.architecture\" is \"%.*s\", which is not supported (only "
                   "llama, qwen2, qwen3 and phi3)",
                   gguf_path(m->g), (int)(len < 60 ? len : 60), name);
}

/* Keys that change the results unless they have the value that does nothing. */
static pdvm_status check_extras(const struct maker *m, pdvm_error *err) {
    static const struct {
        const char *name;
        double neutral;
    } keys[] = {
        {"expert_count", 0},
        {"attention.clamp_kqv", 0},
        {"attention.max_alibi_bias", 0},
        {"attention.scale", 0},
        {"attn_logit_softcapping", 0},
        {"final_logit_softcapping", 0},
        {"logit_scale", 1},
        {"residual_scale", 1},
        {"embedding_scale", 1},
        {"rope.scale_linear", 1},
        {"rope.scaling.attn_factor", 1},
        {"rope.scaling.yarn_ext_factor", 1},
        {"rope.scaling.yarn_attn_factor", 1},
        {"rope.scaling.yarn_log_multiplier", 0},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char key[KEY_SIZE];
        double value = keys[i].neutral;
        int64_t whole = 0;
        const struct gguf_value *v = gguf_value_find(m->g, key_of(m, keys[i].name, key));
        if (!v) continue;
        if (!v->is_array && (v->type == GGUF_VALUE_F32 || v->type == GGUF_VALUE_F64)) {
            PD_TRY(gguf_get_float(m->g, key, true, &value, err));
        } else {
            PD_TRY(gguf_get_int(m->g, key, true, INT32_MIN, UINT32_MAX, &whole, err));
            value = (double)whole;
        }
        if (value != keys[i].neutral)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: key \"%s\" is %g, which is not supported (only %g)",
                           gguf_path(m->g), key, value, keys[i].neutral);
    }
    static const struct {
        const char *name;
        bool neutral;
    } flags[] = {{"attention.causal", true}, {"use_parallel_residual", false}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        char key[KEY_SIZE];
        bool value = flags[i].neutral;
        PD_TRY(gguf_get_bool(m->g, key_of(m, flags[i].name, key), false, &value, err));
        if (value != flags[i].neutral)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: key \"%s\" is %s, which is not supported", gguf_path(m->g), key,
                           value ? "true" : "false");
    }
    return PDVM_OK;
}

static pdvm_status read_head_dim(struct maker *m, pdvm_error *err) {
    char key[KEY_SIZE];
    int64_t value = 0, rotated = 0;
    PD_TRY(get_int(m, "attention.key_length", false, MAX_WIDTH, &m->head_dim, err));
    if (m->head_dim == 0) {
        if (m->hidden % m->heads != 0)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: key \"%s\" is %" PRId64
                           ", which does not divide the embedding length, %" PRId64
                           ", and there is no key_length",
                           gguf_path(m->g), key_of(m, "attention.head_count", key), m->heads,
                           m->hidden);
        m->head_dim = m->hidden / m->heads;
    }
    value = rotated = m->head_dim;
    PD_TRY(get_int(m, "attention.value_length", false, MAX_WIDTH, &value, err));
    if (value != m->head_dim)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: key \"%s\" is %" PRId64 ", but keys have %" PRId64
                       " elements; they must have the same",
                       gguf_path(m->g), key_of(m, "attention.value_length", key), value,
                       m->head_dim);
    PD_TRY(get_int(m, "rope.dimension_count", false, MAX_WIDTH, &rotated, err));
    if (rotated != m->head_dim)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: key \"%s\" is %" PRId64 ", but heads have %" PRId64
                       " elements; a part of them cannot be rotated",
                       gguf_path(m->g), key_of(m, "rope.dimension_count", key), rotated,
                       m->head_dim);
    put(m, "head_dim", json_integer(m->head_dim));
    return PDVM_OK;
}

static pdvm_status read_sizes(struct maker *m, pdvm_error *err) {
    int64_t layers = 0, ffn = 0, kv_heads, context = 0;
    PD_TRY(get_int(m, "embedding_length", true, MAX_WIDTH, &m->hidden, err));
    PD_TRY(get_int(m, "feed_forward_length", true, MAX_WIDTH, &ffn, err));
    PD_TRY(get_int(m, "block_count", true, MAX_LAYERS, &layers, err));
    PD_TRY(get_int(m, "attention.head_count", true, MAX_WIDTH, &m->heads, err));
    kv_heads = m->heads;
    PD_TRY(get_int(m, "attention.head_count_kv", false, MAX_WIDTH, &kv_heads, err));
    PD_TRY(get_int(m, "context_length", true, MAX_WIDTH, &context, err));
    const struct gguf_entry *embed = gguf_set_find(m->set, "token_embd.weight");
    m->n_vocab = embed ? embed->tensor->n_dims > 1 ? embed->tensor->dims[1] : 1 : 0;
    PD_TRY(get_int(m, "vocab_size", !embed, MAX_WIDTH, &m->n_vocab, err));
    put(m, "hidden_size", json_integer(m->hidden));
    put(m, "intermediate_size", json_integer(ffn));
    put(m, "num_hidden_layers", json_integer(layers));
    put(m, "num_attention_heads", json_integer(m->heads));
    put(m, "num_key_value_heads", json_integer(kv_heads));
    put(m, "max_position_embeddings", json_integer(context));
    put(m, "vocab_size", json_integer(m->n_vocab));
    return read_head_dim(m, err);
}

/* ---- scaled RoPE ----------------------------------------------------------------------- */

static bool same_factor(double a, double b) {
    return fabs(a - b) <= 1e-4 * fabs(b);
}

/*
 * The factor by which Llama 3's scaling divides frequency i, for the low_freq_factor 1 and the
 * high_freq_factor 4 of all models there are (transformers, modeling_rope_utils.py).
 */
static double llama3_factor(const struct maker *m, int64_t i, double factor, double original) {
    double turns = original / (2 * 3.14159265358979323846) *
                   pow(m->theta, -2.0 * (double)i / (double)m->head_dim);
    if (turns > 4) return 1;
    if (turns < 1) return factor;
    double smooth = (turns - 1) / 3;
    return 1 / ((1 - smooth) / factor + smooth);
}

static bool is_llama3(const struct maker *m, const float *factors, double factor, double original) {
    for (int64_t i = 0; i < m->head_dim / 2; i++)
        if (!same_factor(factors[i], llama3_factor(m, i, factor, original))) return false;
    return true;
}

/* Finds the scaling that the factors were computed from. */
static pdvm_status match_factors(struct maker *m, const float *factors, pdvm_error *err) {
    double largest = 1;
    bool neutral = true;
    for (int64_t i = 0; i < m->head_dim / 2; i++) {
        if (!isfinite(factors[i]) || factors[i] <= 0)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"rope_freqs.weight\": factor %" PRId64 " is %g",
                           gguf_path(m->g), i, (double)factors[i]);
        if (factors[i] > largest) largest = factors[i];
        neutral &= factors[i] == 1;
    }
    if (neutral) return PDVM_OK;
    for (int64_t original = 16; original <= MAX_WIDTH; original *= 2) {
        if (!is_llama3(m, factors, largest, (double)original)) continue;
        put(m, "rope_scaling",
            json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", largest,
                      "low_freq_factor", 1.0, "high_freq_factor", 4.0,
                      "original_max_position_embeddings", (json_int_t)original));
        return PDVM_OK;
    }
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: tensor \"rope_freqs.weight\": its factors are not those of Llama 3's RoPE "
                   "scaling",
                   gguf_path(m->g));
}

static pdvm_status read_factors(struct maker *m, pdvm_error *err) {
    const struct gguf_entry *e = gguf_set_find(m->set, "rope_freqs.weight");
    float *factors;
    if (!e) return PDVM_OK;
    if (e->tensor->type != GGUF_F32 || e->tensor->n_dims != 1 ||
        e->tensor->dims[0] != m->head_dim / 2)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"rope_freqs.weight\" must be F32 [%" PRId64 "]",
                       gguf_path(e->file), m->head_dim / 2);
    if (json_object_get(m->config, "rope_scaling"))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: RoPE is scaled by \"rope.scaling\" keys and by the tensor "
                       "\"rope_freqs.weight\", which is not supported",
                       gguf_path(m->g));
    PD_TRY(pd_calloc(&factors, (size_t)m->head_dim / 2, sizeof *factors, "RoPE factors", err));
    gguf_dequantize(GGUF_F32, e->tensor->data, (size_t)m->head_dim / 2, factors);
    pdvm_status status = match_factors(m, factors, err);
    free(factors);
    return status;
}

static pdvm_status read_yarn(struct maker *m, json_t *scaling, pdvm_error *err) {
    static const struct {
        const char *key, *field;
    } betas[] = {{"rope.scaling.yarn_beta_fast", "beta_fast"},
                 {"rope.scaling.yarn_beta_slow", "beta_slow"}};
    int64_t original = 0;
    PD_TRY(get_int(m, "rope.scaling.original_context_length", true, MAX_WIDTH, &original, err));
    m->failed |=
        json_object_set_new(scaling, "original_max_position_embeddings", json_integer(original));
    for (size_t i = 0; i < sizeof betas / sizeof *betas; i++) {
        double beta = 0;
        PD_TRY(get_float(m, betas[i].key, false, &beta, err));
        if (beta != 0) m->failed |= json_object_set_new(scaling, betas[i].field, json_real(beta));
    }
    return PDVM_OK;
}

static pdvm_status read_rope(struct maker *m, pdvm_error *err) {
    char key[KEY_SIZE];
    const char *kind = "none";
    size_t len = 4;
    double factor = 0;
    m->theta = 10000;
    PD_TRY(get_float(m, "rope.freq_base", false, &m->theta, err));
    put(m, "rope_theta", json_real(m->theta));
    PD_TRY(gguf_get_string(m->g, key_of(m, "rope.scaling.type", key), false, &kind, &len, err));
    if (len == 4 && memcmp(kind, "none", 4) == 0) return read_factors(m, err);
    bool linear = len == 6 && memcmp(kind, "linear", 6) == 0;
    bool yarn = len == 4 && memcmp(kind, "yarn", 4) == 0;
    if (!linear && !yarn)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: key \"%s\": RoPE scaling of type \"%.*s\" is not supported (only "
                       "linear and yarn)",
                       gguf_path(m->g), key, (int)(len < 60 ? len : 60), kind);
    PD_TRY(get_float(m, "rope.scaling.factor", true, &factor, err));
    json_t *scaling =
        json_pack("{s:s, s:f}", "rope_type", linear ? "linear" : "yarn", "factor", factor);
    put(m, "rope_scaling", scaling);
    if (!scaling) return pd_fail_memory(err, 0, "a configuration");
    if (yarn) PD_TRY(read_yarn(m, scaling, err));
    return read_factors(m, err);
}

/* A sliding window makes a llama a Mistral. */
static pdvm_status read_window(struct maker *m, pdvm_error *err) {
    char key[KEY_SIZE];
    int64_t window = 0;
    PD_TRY(gguf_get_int(m->g, key_of(m, "attention.sliding_window", key), false, 0, MAX_WIDTH,
                        &window, err));
    if (window == 0) return PDVM_OK;
    if (strcmp(m->arch->name, "llama") == 0)
        m->arch = &mistral;
    else if (strcmp(m->arch->name, "phi3") != 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: key \"%s\" is not supported",
                       gguf_path(m->g), key);
    put(m, "sliding_window", json_integer(window));
    return PDVM_OK;
}

/* ---- tokens ---------------------------------------------------------------------------- */

static pdvm_status get_token(const struct gguf *g, const char *key, int64_t n_vocab, int64_t *out,
                             pdvm_error *err) {
    *out = -1;
    return gguf_get_int(g, key, false, 0, n_vocab - 1, out, err);
}

/* The ids that end a text. */
static pdvm_status end_tokens(const struct gguf *g, int64_t n_vocab, json_t *list, int *failed,
                              pdvm_error *err) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    int64_t ids[3];
    for (size_t i = 0; i < 3; i++) {
        PD_TRY(get_token(g, keys[i], n_vocab, &ids[i], err));
        bool known = ids[i] < 0;
        for (size_t j = 0; j < i; j++) known |= ids[j] == ids[i];
        if (!known) *failed |= json_array_append_new(list, json_integer(ids[i]));
    }
    return PDVM_OK;
}

static pdvm_status read_tokens(struct maker *m, pdvm_error *err) {
    int64_t bos;
    PD_TRY(get_token(m->g, "tokenizer.ggml.bos_token_id", m->n_vocab, &bos, err));
    json_t *list = json_array();
    put(m, "eos_token_id", list);
    put(m, "bos_token_id", bos < 0 ? json_null() : json_integer(bos));
    if (!list) return pd_fail_memory(err, 0, "a configuration");
    return end_tokens(m->g, m->n_vocab, list, &m->failed, err);
}

/* ---- the whole configuration ----------------------------------------------------------- */

static pdvm_status make_config(struct maker *m, pdvm_error *err) {
    char key[KEY_SIZE];
    double eps = 0;
    PD_TRY(find_architecture(m, err));
    PD_TRY(check_extras(m, err));
    PD_TRY(read_sizes(m, err));
    PD_TRY(read_rope(m, err));
    PD_TRY(
        gguf_get_float(m->g, key_of(m, "attention.layer_norm_rms_epsilon", key), true, &eps, err));
    PD_TRY(read_window(m, err));
    PD_TRY(read_tokens(m, err));
    put(m, "rms_norm_eps", json_real(eps));
    put(m, "hidden_act", json_string("silu"));
    put(m, "model_type", json_string(m->arch->model_type));
    put(m, "architectures", json_pack("[s]", m->arch->class_name));
    put(m, "tie_word_embeddings", json_boolean(!gguf_set_find(m->set, "output.weight")));
    if (strcmp(m->arch->model_type, "llama") == 0 &&
        gguf_set_find(m->set, "blk.0.attn_output.bias"))
        put(m, "attention_bias", json_true());
    return PDVM_OK;
}

static pdvm_status to_text(json_t *json, int failed, char **out, pdvm_error *err) {
    *out = failed || !json ? NULL : json_dumps(json, JSON_INDENT(2));
    return *out ? PDVM_OK : pd_fail_memory(err, 0, "a configuration");
}

pdvm_status gguf_make_config(const struct gguf_set *set, char **out, pdvm_error *err) {
    struct maker m = {.set = set, .g = set->files[0], .config = json_object()};
    *out = NULL;
    if (!m.config) return pd_fail_memory(err, 0, "a configuration");
    pdvm_status status = make_config(&m, err);
    if (status == PDVM_OK) status = to_text(m.config, m.failed, out, err);
    json_decref(m.config);
    return status;
}

/* ---- generation_config.json, tokenizer_config.json, the chat template -------------------- */

static pdvm_status make_generation(const struct gguf *g, char **out, pdvm_error *err) {
    int64_t bos;
    int failed = 0;
    json_t *list = json_array(), *root = json_pack("{s:o}", "eos_token_id", list);
    if (!root) return pd_fail_memory(err, 0, "a configuration");
    pdvm_status status = get_token(g, "tokenizer.ggml.bos_token_id", MAX_WIDTH, &bos, err);
    if (status == PDVM_OK) status = end_tokens(g, MAX_WIDTH, list, &failed, err);
    if (status == PDVM_OK && bos >= 0)
        failed |= json_object_set_new(root, "bos_token_id", json_integer(bos));
    if (status == PDVM_OK && (bos >= 0 || json_array_size(list) > 0))
        status = to_text(root, failed, out, err);
    json_decref(root);
    return status;
}

/* Adds the text of the token that a key names; a token without a text is left out. */
static pdvm_status add_token_text(const struct gguf *g, const char *key, const char *field,
                                  json_t *root, pdvm_error *err) {
    const struct gguf_value *tokens;
    int64_t id;
    size_t at = 0, len = 0;
    const char *text = NULL;
    PD_TRY(get_token(g, key, MAX_WIDTH, &id, err));
    PD_TRY(gguf_get_array(g, "tokenizer.ggml.tokens", false, GGUF_VALUE_STRING, &tokens, err));
    if (id < 0 || !tokens || (uint64_t)id >= tokens->n) return PDVM_OK;
    for (int64_t i = 0; i <= id; i++) text = gguf_next_string(tokens, &at, &len);
    json_t *string = json_stringn(text, len);
    if (string) json_object_set_new(root, field, string);
    return PDVM_OK;
}

static pdvm_status make_tokenizer_config(const struct gguf *g, struct gguf_texts *out, json_t *root,
                                         pdvm_error *err) {
    static const struct {
        const char *key, *field;
    } tokens[] = {{"tokenizer.ggml.bos_token_id", "bos_token"},
                  {"tokenizer.ggml.eos_token_id", "eos_token"},
                  {"tokenizer.ggml.unknown_token_id", "unk_token"},
                  {"tokenizer.ggml.padding_token_id", "pad_token"}};
    const char *template = NULL;
    size_t len = 0;
    int failed = 0;
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        PD_TRY(add_token_text(g, tokens[i].key, tokens[i].field, root, err));
    PD_TRY(gguf_get_string(g, "tokenizer.chat_template", false, &template, &len, err));
    if (template) {
        failed |= json_object_set_new(root, "chat_template", json_stringn(template, len));
        PD_TRY(pd_calloc(&out->chat_template, len + 1, 1, "a chat template", err));
        memcpy(out->chat_template, template, len);
    }
    return json_object_size(root) > 0 ? to_text(root, failed, &out->tokenizer_config, err)
                                      : PDVM_OK;
}

pdvm_status gguf_make_side_files(const struct gguf_set *set, struct gguf_texts *out,
                                 pdvm_error *err) {
    const struct gguf *g = set->files[0];
    PD_TRY(make_generation(g, &out->generation_config, err));
    json_t *root = json_object();
    if (!root) return pd_fail_memory(err, 0, "a configuration");
    pdvm_status status = make_tokenizer_config(g, out, root, err);
    json_decref(root);
    return status;
}
