#include "model/config.h"

#include "io/json.h"

#include <math.h>
#include <string.h>

/* Far above every published model, and products of two of them stay far inside 64 bits. */
#define MAX_WIDTH ((int64_t)1 << 24)
#define MAX_LAYERS ((int64_t)1 << 16)

static pdvm_status unsupported(const char *path, const char *field, const char *value,
                               const char *only, pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: field \"%s\" is %.100s, which is not supported (only %s)", path, field,
                   value, only);
}

static pdvm_status check_architecture(const char *path, const json_t *root,
                                      struct model_config *out, pdvm_error *err) {
    json_t *list = NULL;
    const char *type = NULL;
    PD_TRY(pd_json_array(path, root, "architectures", false, &list, err));
    PD_TRY(pd_json_string(path, root, "model_type", false, &type, err));
    if (!list && !type)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: fields \"architectures\" and \"model_type\" are both missing", path);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"architectures\" must hold strings",
                           path);
        if (strcmp(name, "LlamaForCausalLM") != 0)
            return unsupported(path, "architectures", name, "LlamaForCausalLM", err);
    }
    if (list && json_array_size(list) == 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"architectures\" is empty", path);
    if (type && strcmp(type, "llama") != 0)
        return unsupported(path, "model_type", type, "llama", err);
    strcpy(out->architecture, "llama");
    return PDVM_OK;
}

/* Fields that change the results in ways that the engine does not know. */
static pdvm_status check_extras(const char *path, const json_t *root, pdvm_error *err) {
    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    for (size_t i = 0; i < sizeof biases / sizeof *biases; i++) {
        bool on = false;
        PD_TRY(pd_json_bool(path, root, biases[i], false, &on, err));
        if (on) return unsupported(path, biases[i], "true", "false", err);
    }
    const char *activation = "silu";
    PD_TRY(pd_json_string(path, root, "hidden_act", false, &activation, err));
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
        return unsupported(path, "hidden_act", activation, "silu", err);

    static const char *const codings[] = {"quantization_config", "compression_config"};
    for (size_t i = 0; i < sizeof codings / sizeof *codings; i++) {
        json_t *coding = NULL;
        const char *method = "unknown";
        PD_TRY(pd_json_object(path, root, codings[i], false, &coding, err));
        if (!coding) continue;
        PD_TRY(pd_json_string(path, coding, "quant_method", false, &method, err));
        return pd_fail(
            err, PDVM_ERR_UNSUPPORTED,
            "%s: field \"%s\": weights quantised by \"%.100s\" are not supported; use the "
            "model's original float weights",
            path, codings[i], method);
    }
    double rotary = 1;
    PD_TRY(pd_json_number(path, root, "partial_rotary_factor", false, &rotary, err));
    if (rotary != 1) return unsupported(path, "partial_rotary_factor", "not 1", "1", err);
    return PDVM_OK;
}

/* A positive number that is one in float too. */
static pdvm_status read_float(const char *path, const json_t *object, const char *field,
                              double *value, pdvm_error *err) {
    PD_TRY(pd_json_number(path, object, field, false, value, err));
    float f = (float)*value;
    if (!(f > 0) || !isfinite(f))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"%s\" is %g, not a positive float", path,
                       field, *value);
    return PDVM_OK;
}

/*
 * rope_scaling (older) and rope_parameters (newer transformers) name the kind of RoPE by rope_type
 * or, before that, type.
 */
static pdvm_status check_rope_kind(const char *path, const char *field, json_t *rope,
                                   pdvm_error *err) {
    static const char *const names[] = {"rope_type", "type"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *kind = "default";
        pdvm_status status = pd_json_string(path, rope, names[i], false, &kind, err);
        if (status != PDVM_OK) return pd_prefix(err, status, "%s", field);
        if (strcmp(kind, "default") != 0)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: field \"%s\": RoPE scaling of type \"%.100s\" is not supported",
                           path, field, kind);
    }
    const char *key;
    json_t *value;
    json_object_foreach(rope, key, value) {
        if (json_is_object(value))
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: field \"%s\": RoPE of its own for \"%.100s\" is not supported",
                           path, field, key);
    }
    double rotary = 1;
    PD_TRY(pd_json_number(path, rope, "partial_rotary_factor", false, &rotary, err));
    if (rotary != 1) return unsupported(path, "partial_rotary_factor", "not 1", "1", err);
    return PDVM_OK;
}

static pdvm_status read_rope(const char *path, const json_t *root, struct model_config *out,
                             pdvm_error *err) {
    json_t *scaling = NULL, *parameters = NULL;
    double theta = 10000;
    PD_TRY(pd_json_object(path, root, "rope_scaling", false, &scaling, err));
    if (scaling) PD_TRY(check_rope_kind(path, "rope_scaling", scaling, err));
    PD_TRY(read_float(path, root, "rope_theta", &theta, err));
    PD_TRY(pd_json_object(path, root, "rope_parameters", false, &parameters, err));
    if (parameters) {
        double outer = theta;
        PD_TRY(check_rope_kind(path, "rope_parameters", parameters, err));
        pdvm_status status = read_float(path, parameters, "rope_theta", &theta, err);
        if (status != PDVM_OK) return pd_prefix(err, status, "rope_parameters");
        if (theta != outer && pd_json_member(root, "rope_theta"))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: field \"rope_theta\" is %g, but %g in \"rope_parameters\"", path,
                           outer, theta);
    }
    out->rope_theta = (float)theta;
    return PDVM_OK;
}

static pdvm_status read_size(const char *path, const json_t *root, const char *field, bool required,
                             int64_t max, uint32_t *out, pdvm_error *err) {
    int64_t value = *out;
    PD_TRY(pd_json_int(path, root, field, required, 1, max, &value, err));
    *out = (uint32_t)value;
    return PDVM_OK;
}

static pdvm_status read_sizes(const char *path, const json_t *root, struct model_config *out,
                              pdvm_error *err) {
    PD_TRY(read_size(path, root, "hidden_size", true, MAX_WIDTH, &out->hidden_size, err));
    PD_TRY(
        read_size(path, root, "intermediate_size", true, MAX_WIDTH, &out->intermediate_size, err));
    PD_TRY(read_size(path, root, "num_hidden_layers", true, MAX_LAYERS, &out->n_layers, err));
    PD_TRY(read_size(path, root, "num_attention_heads", true, MAX_WIDTH, &out->n_heads, err));
    PD_TRY(read_size(path, root, "vocab_size", true, MAX_WIDTH, &out->n_vocab, err));
    out->max_position_embeddings = 2048;
    PD_TRY(read_size(path, root, "max_position_embeddings", false, MAX_WIDTH,
                     &out->max_position_embeddings, err));
    out->n_kv_heads = out->n_heads;
    PD_TRY(read_size(path, root, "num_key_value_heads", false, MAX_WIDTH, &out->n_kv_heads, err));
    if (out->n_heads % out->n_kv_heads != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"num_key_value_heads\" is %u, which does not divide "
                       "\"num_attention_heads\", %u",
                       path, out->n_kv_heads, out->n_heads);
    if (!pd_json_member(root, "head_dim") && out->hidden_size % out->n_heads != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"num_attention_heads\" is %u, which does not divide "
                       "\"hidden_size\", %u, and there is no \"head_dim\"",
                       path, out->n_heads, out->hidden_size);
    out->head_dim = out->hidden_size / out->n_heads;
    PD_TRY(read_size(path, root, "head_dim", false, MAX_WIDTH, &out->head_dim, err));
    if (out->head_dim % 2 != 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"head_dim\" is %u; RoPE needs it even",
                       path, out->head_dim);
    if ((int64_t)out->n_heads * out->head_dim > MAX_WIDTH)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"head_dim\": %u times \"num_attention_heads\", %u, is absurd",
                       path, out->head_dim, out->n_heads);
    return PDVM_OK;
}

/* A token id: the field's value, `fallback` if the field is absent, -1 if it is null. */
static pdvm_status read_bos(const char *path, const json_t *root, int64_t fallback,
                            struct model_config *out, pdvm_error *err) {
    int64_t id = json_object_get(root, "bos_token_id") ? -1 : fallback;
    PD_TRY(pd_json_int(path, root, "bos_token_id", false, 0, (int64_t)out->n_vocab - 1, &id, err));
    out->bos_token_id = (int32_t)id;
    return PDVM_OK;
}

static pdvm_status add_eos(const char *path, int64_t id, struct model_config *out,
                           pdvm_error *err) {
    for (uint32_t i = 0; i < out->n_eos; i++)
        if (out->eos_token_ids[i] == id) return PDVM_OK;
    if (out->n_eos == MODEL_MAX_EOS)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: field \"eos_token_id\": more than %d ids are not supported", path,
                       MODEL_MAX_EOS);
    out->eos_token_ids[out->n_eos++] = (int32_t)id;
    return PDVM_OK;
}

/* One id, a list of ids, or null. */
static pdvm_status read_eos(const char *path, const json_t *root, struct model_config *out,
                            pdvm_error *err) {
    json_t *value = pd_json_member(root, "eos_token_id");
    int64_t id = 0, last = (int64_t)out->n_vocab - 1;
    if (!json_is_array(value)) {
        PD_TRY(pd_json_int(path, root, "eos_token_id", false, 0, last, &id, err));
        return value ? add_eos(path, id, out, err) : PDVM_OK;
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *element = json_array_get(value, i);
        id = json_integer_value(element);
        if (!json_is_integer(element) || id < 0 || id > last)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: field \"eos_token_id\": element %zu is not a token id below "
                           "\"vocab_size\", %u",
                           path, i, out->n_vocab);
        PD_TRY(add_eos(path, id, out, err));
    }
    return PDVM_OK;
}

static pdvm_status read_config(const char *path, const json_t *root, struct model_config *out,
                               pdvm_error *err) {
    PD_TRY(check_architecture(path, root, out, err));
    PD_TRY(check_extras(path, root, err));
    PD_TRY(read_sizes(path, root, out, err));
    PD_TRY(read_rope(path, root, out, err));
    double eps = 1e-6;
    PD_TRY(read_float(path, root, "rms_norm_eps", &eps, err));
    out->rms_norm_eps = (float)eps;
    PD_TRY(pd_json_bool(path, root, "tie_word_embeddings", false, &out->tie_word_embeddings, err));
    /* Absent ids are transformers' defaults, 1 and 2, where the vocabulary has them. */
    PD_TRY(read_bos(path, root, out->n_vocab > 1 ? 1 : -1, out, err));
    if (!json_object_get(root, "eos_token_id") && out->n_vocab > 2)
        return add_eos(path, 2, out, err);
    return read_eos(path, root, out, err);
}

pdvm_status model_config_parse(const char *path, const char *json, size_t size,
                               struct model_config *out, pdvm_error *err) {
    json_t *root;
    memset(out, 0, sizeof *out);
    PD_TRY(pd_json_parse_object(path, json, size, &root, err));
    pdvm_status status = read_config(path, root, out, err);
    json_decref(root);
    return status;
}

pdvm_status model_config_parse_generation(const char *path, const char *json, size_t size,
                                          struct model_config *config, pdvm_error *err) {
    json_t *root;
    struct model_config merged = *config;
    PD_TRY(pd_json_parse_object(path, json, size, &root, err));
    pdvm_status status = read_eos(path, root, &merged, err);
    if (status == PDVM_OK && pd_json_member(root, "bos_token_id"))
        status = read_bos(path, root, -1, &merged, err);
    json_decref(root);
    if (status == PDVM_OK) *config = merged;
    return status;
}
