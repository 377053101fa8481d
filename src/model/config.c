#include "model/config.h"

#include "io/json.h"
#include "model/compressed_tensors.h"
#include "model/rope.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
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

/* What transformers' configuration classes say about fields that config.json leaves out. */
struct architecture {
    const char *type; /* model_type, and our name for it */
    const char *class_name;
    int64_t max_position_embeddings;
    int64_t n_kv_heads; /* 0: as many as heads */
    int64_t head_dim;   /* 0: hidden_size / num_attention_heads */
    double rms_norm_eps;
    int64_t sliding_window; /* 0: none */
    int64_t bos, eos;       /* -1: none */
    bool qkv_bias;          /* whatever config.json says */
    bool attention_bias;    /* has the field, for q, k, v and o */
    bool qk_norm;
    bool window_fields; /* use_sliding_window, max_window_layers and layer_types decide */
    bool windowed;      /* otherwise: sliding_window holds for all layers */
};

static const struct architecture architectures[] = {
    {.type = "llama",
     .class_name = "LlamaForCausalLM",
     .max_position_embeddings = 2048,
     .rms_norm_eps = 1e-6,
     .bos = 1,
     .eos = 2,
     .attention_bias = true},
    {.type = "mistral",
     .class_name = "MistralForCausalLM",
     .max_position_embeddings = 131072,
     .n_kv_heads = 8,
     .rms_norm_eps = 1e-6,
     .sliding_window = 4096,
     .bos = 1,
     .eos = 2,
     .windowed = true},
    {.type = "qwen2",
     .class_name = "Qwen2ForCausalLM",
     .max_position_embeddings = 32768,
     .n_kv_heads = 32,
     .rms_norm_eps = 1e-6,
     .sliding_window = 4096,
     .bos = -1,
     .eos = -1,
     .qkv_bias = true,
     .window_fields = true},
    {.type = "qwen3",
     .class_name = "Qwen3ForCausalLM",
     .max_position_embeddings = 32768,
     .n_kv_heads = 32,
     .head_dim = 128,
     .rms_norm_eps = 1e-6,
     .sliding_window = 4096,
     .bos = -1,
     .eos = -1,
     .attention_bias = true,
     .qk_norm = true,
     .window_fields = true},
    {.type = "phi3",
     .class_name = "Phi3ForCausalLM",
     .max_position_embeddings = 4096,
     .rms_norm_eps = 1e-5,
     .bos = 1,
     .eos = 32000,
     .windowed = true},
};
#define N_ARCHITECTURES (sizeof architectures / sizeof *architectures)
#define CLASSES                                                                                    \
    "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM"
#define TYPES "llama, mistral, qwen2, qwen3, phi3"

static const struct architecture *find_architecture(const char *class_name, const char *type) {
    for (size_t i = 0; i < N_ARCHITECTURES; i++) {
        const struct architecture *a = &architectures[i];
        if (strcmp(class_name ? class_name : type, class_name ? a->class_name : a->type) == 0)
            return a;
    }
    return NULL;
}

static pdvm_status read_architecture(const char *path, const json_t *root,
                                     const struct architecture **out, pdvm_error *err) {
    json_t *list = NULL;
    const char *type = NULL;
    PD_TRY(pd_json_array(path, root, "architectures", false, &list, err));
    PD_TRY(pd_json_string(path, root, "model_type", false, &type, err));
    if (!list && !type)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: fields \"architectures\" and \"model_type\" are both missing", path);
    *out = NULL;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"architectures\" must hold strings",
                           path);
        const struct architecture *found = find_architecture(name, NULL);
        if (!found) return unsupported(path, "architectures", name, CLASSES, err);
        if (*out && found != *out)
            return unsupported(path, "architectures", name, (*out)->class_name, err);
        *out = found;
    }
    if (list && !*out)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"architectures\" is empty", path);
    if (!type) return PDVM_OK;
    const struct architecture *found = find_architecture(NULL, type);
    if (!found) return unsupported(path, "model_type", type, TYPES, err);
    if (*out && found != *out)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: field \"model_type\" is %s, but \"architectures\" is %s", path, type,
                       (*out)->class_name);
    *out = found;
    return PDVM_OK;
}

/* Fields that change the results in ways that the engine does not know. */
static pdvm_status check_extras(const char *path, const json_t *root, pdvm_error *err) {
    bool on = false;
    PD_TRY(pd_json_bool(path, root, "mlp_bias", false, &on, err));
    if (on) return unsupported(path, "mlp_bias", "true", "false", err);
    static const char *const experts[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    for (size_t i = 0; i < sizeof experts / sizeof *experts; i++) {
        int64_t n = 0;
        PD_TRY(pd_json_int(path, root, experts[i], false, 0, INT32_MAX, &n, err));
        if (n > 0)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: field \"%s\" is %" PRId64 ": mixtures of experts are not supported",
                           path, experts[i], n);
    }
    const char *activation = "silu";
    PD_TRY(pd_json_string(path, root, "hidden_act", false, &activation, err));
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
        return unsupported(path, "hidden_act", activation, "silu", err);

    static const char *const codings[] = {"quantization_config", "compression_config"};
    for (size_t i = 0; i < sizeof codings / sizeof *codings; i++) {
        json_t *coding = NULL;
        const char *method = "unknown";
        /* The older field belongs to compressed-tensors alone and need not say so. */
        if (i == 1) method = COMPRESSED_TENSORS;
        PD_TRY(pd_json_object(path, root, codings[i], false, &coding, err));
        if (!coding) continue;
        PD_TRY(pd_json_string(path, coding, "quant_method", false, &method, err));
        if (strcmp(method, COMPRESSED_TENSORS) == 0) {
            PD_TRY(compressed_tensors_check_config(path, codings[i], coding, err));
            continue;
        }
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: field \"%s\": weights quantised by \"%.100s\" are not supported "
                       "(only " COMPRESSED_TENSORS "); use the model's original float weights",
                       path, codings[i], method);
    }
    double rotary = 1;
    PD_TRY(pd_json_number(path, root, "partial_rotary_factor", false, &rotary, err));
    if (rotary != 1) return unsupported(path, "partial_rotary_factor", "not 1", "1", err);
    return PDVM_OK;
}

static pdvm_status read_biases(const char *path, const json_t *root, const struct architecture *a,
                               struct model_config *out, pdvm_error *err) {
    bool on = false;
    PD_TRY(pd_json_bool(path, root, "attention_bias", false, &on, err));
    /* Qwen2 has its biases whatever the field says; transformers does not read it there. */
    if (on && !a->attention_bias && !a->qkv_bias)
        return unsupported(path, "attention_bias", "true", "false", err);
    out->qkv_bias = a->qkv_bias || (on && a->attention_bias);
    out->o_bias = on && a->attention_bias;
    out->qk_norm = a->qk_norm;
    return PDVM_OK;
}

/* ---- sliding windows ------------------------------------------------------------------- */

static pdvm_status set_window(const char *path, struct model_config *out, uint32_t layer, bool on,
                              pdvm_error *err) {
    if (!on) return PDVM_OK;
    if (layer >= MODEL_MAX_WINDOW_LAYERS)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: field \"sliding_window\": layer %u has a window, but only the first %d "
                       "can have one",
                       path, layer, MODEL_MAX_WINDOW_LAYERS);
    out->window_layers[layer / 64] |= (uint64_t)1 << layer % 64;
    return PDVM_OK;
}

/* One name per layer. Where nothing in transformers reads it, it must not say anything else. */
static pdvm_status read_layer_types(const char *path, const json_t *list,
                                    const struct architecture *a, int64_t first,
                                    struct model_config *out, pdvm_error *err) {
    if (list && json_array_size(list) != out->n_layers)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"layer_types\" has %zu elements for %u layers", path,
                       json_array_size(list), out->n_layers);
    for (uint32_t l = 0; l < out->n_layers; l++) {
        bool window = out->sliding_window > 0 && l >= first;
        const char *type = json_string_value(json_array_get(list, l));
        if (list && !type)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"layer_types\" must hold strings",
                           path);
        if (type && strcmp(type, "full_attention") != 0 && strcmp(type, "sliding_attention") != 0)
            return unsupported(path, "layer_types", type, "full_attention, sliding_attention", err);
        if (type) {
            bool sliding = strcmp(type, "sliding_attention") == 0;
            if (a->window_fields && sliding && out->sliding_window == 0)
                return pd_fail(err, PDVM_ERR_FORMAT,
                               "%s: field \"layer_types\": layer %u is %s, but there is no "
                               "\"sliding_window\"",
                               path, l, type);
            if (!a->window_fields && sliding != window)
                return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                               "%s: field \"layer_types\": layer %u is %s, which is not supported "
                               "for %s",
                               path, l, type, a->type);
            window = sliding;
        }
        PD_TRY(set_window(path, out, l, window, err));
    }
    return PDVM_OK;
}

static pdvm_status read_windows(const char *path, const json_t *root, const struct architecture *a,
                                struct model_config *out, pdvm_error *err) {
    bool use = a->windowed;
    int64_t window = json_object_get(root, "sliding_window") ? 0 : a->sliding_window;
    int64_t first = a->window_fields ? 28 : 0;
    json_t *types = NULL;
    PD_TRY(pd_json_int(path, root, "sliding_window", false, 1, INT32_MAX, &window, err));
    PD_TRY(pd_json_array(path, root, "layer_types", false, &types, err));
    if (a->window_fields) {
        PD_TRY(pd_json_bool(path, root, "use_sliding_window", false, &use, err));
        PD_TRY(pd_json_int(path, root, "max_window_layers", false, 0, INT32_MAX, &first, err));
    }
    out->sliding_window = use ? (uint32_t)window : 0;
    PD_TRY(read_layer_types(path, types, a, first, out, err));
    /* One form of "none". */
    bool any = false;
    for (size_t i = 0; i < MODEL_MAX_WINDOW_LAYERS / 64; i++) any |= out->window_layers[i] != 0;
    if (!any) out->sliding_window = 0;
    return PDVM_OK;
}

/* ---- numbers --------------------------------------------------------------------------- */

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

static pdvm_status read_size(const char *path, const json_t *root, const char *field, bool required,
                             int64_t max, uint32_t *out, pdvm_error *err) {
    int64_t value = *out;
    PD_TRY(pd_json_int(path, root, field, required, 1, max, &value, err));
    *out = (uint32_t)value;
    return PDVM_OK;
}

static pdvm_status read_sizes(const char *path, const json_t *root, const struct architecture *a,
                              struct model_config *out, pdvm_error *err) {
    PD_TRY(read_size(path, root, "hidden_size", true, MAX_WIDTH, &out->hidden_size, err));
    PD_TRY(
        read_size(path, root, "intermediate_size", true, MAX_WIDTH, &out->intermediate_size, err));
    PD_TRY(read_size(path, root, "num_hidden_layers", true, MAX_LAYERS, &out->n_layers, err));
    PD_TRY(read_size(path, root, "num_attention_heads", true, MAX_WIDTH, &out->n_heads, err));
    PD_TRY(read_size(path, root, "vocab_size", true, MAX_WIDTH, &out->n_vocab, err));
    out->max_position_embeddings = (uint32_t)a->max_position_embeddings;
    PD_TRY(read_size(path, root, "max_position_embeddings", false, MAX_WIDTH,
                     &out->max_position_embeddings, err));
    /* null is as many as heads, whatever the default for an absent field. */
    out->n_kv_heads = out->n_heads;
    if (a->n_kv_heads && !json_object_get(root, "num_key_value_heads"))
        out->n_kv_heads = (uint32_t)a->n_kv_heads;
    PD_TRY(read_size(path, root, "num_key_value_heads", false, MAX_WIDTH, &out->n_kv_heads, err));
    if (out->n_heads % out->n_kv_heads != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"num_key_value_heads\" is %u, which does not divide "
                       "\"num_attention_heads\", %u",
                       path, out->n_kv_heads, out->n_heads);
    if (!pd_json_member(root, "head_dim") && !a->head_dim && out->hidden_size % out->n_heads != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"num_attention_heads\" is %u, which does not divide "
                       "\"hidden_size\", %u, and there is no \"head_dim\"",
                       path, out->n_heads, out->hidden_size);
    out->head_dim = a->head_dim ? (uint32_t)a->head_dim : out->hidden_size / out->n_heads;
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
    const struct architecture *a = NULL;
    PD_TRY(read_architecture(path, root, &a, err));
    snprintf(out->architecture, sizeof out->architecture, "%s", a->type);
    PD_TRY(check_extras(path, root, err));
    PD_TRY(read_sizes(path, root, a, out, err));
    PD_TRY(read_biases(path, root, a, out, err));
    PD_TRY(read_windows(path, root, a, out, err));
    PD_TRY(rope_parse(path, root, out, err));
    double eps = a->rms_norm_eps;
    PD_TRY(read_float(path, root, "rms_norm_eps", &eps, err));
    out->rms_norm_eps = (float)eps;
    PD_TRY(pd_json_bool(path, root, "tie_word_embeddings", false, &out->tie_word_embeddings, err));
    /* Absent ids are transformers' defaults where the vocabulary has them. */
    PD_TRY(read_bos(path, root, a->bos < (int64_t)out->n_vocab ? a->bos : -1, out, err));
    if (json_object_get(root, "eos_token_id")) return read_eos(path, root, out, err);
    return a->eos >= 0 && a->eos < (int64_t)out->n_vocab ? add_eos(path, a->eos, out, err)
                                                         : PDVM_OK;
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
