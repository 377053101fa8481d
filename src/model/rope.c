#include "model/rope.h"

#include <math.h>
#include <string.h>

#define MAX_POSITIONS ((int64_t)1 << 30)

/* ---- config.json ----------------------------------------------------------------------- */

/* The fields of one of the two objects, and where they were found. */
struct rope_fields {
    const char *path;
    const char *object; /* "rope_scaling" or "rope_parameters" */
    const json_t *json;
};

static const struct {
    const char *name;
    enum rope_scaling_kind kind;
} kinds[] = {
    {"default", ROPE_SCALING_NONE},
    {"linear", ROPE_SCALING_LINEAR},
    {"llama3", ROPE_SCALING_LLAMA3},
    {"yarn", ROPE_SCALING_YARN},
};

/* A number in [min, max]; *value is the default and stays if the field is absent or null. */
static pdvm_status read_number(const struct rope_fields *f, const char *field, bool required,
                               double min, double max, double *value, pdvm_error *err) {
    pdvm_status status = pd_json_number(f->path, f->json, field, required, value, err);
    if (status != PDVM_OK) return pd_prefix(err, status, "%s", f->object);
    if (*value >= min && *value <= max) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: %s: field \"%s\" is %g, not in [%g, %g]", f->path,
                   f->object, field, *value, min, max);
}

static pdvm_status read_kind(const struct rope_fields *f, const struct model_config *config,
                             enum rope_scaling_kind *out, pdvm_error *err) {
    /* rope_type is the newer name; files that give both, differently, mean something else. */
    static const char *const fields[] = {"type", "rope_type"};
    const char *name = NULL;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const char *given = NULL;
        pdvm_status status = pd_json_string(f->path, f->json, fields[i], false, &given, err);
        if (status != PDVM_OK) return pd_prefix(err, status, "%s", f->object);
        if (name && given && strcmp(name, given) != 0)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: field \"%s\": RoPE scaling of type \"%.100s\" and of rope_type "
                           "\"%.100s\" at once is not supported",
                           f->path, f->object, name, given);
        if (given) name = given;
    }
    *out = ROPE_SCALING_NONE;
    if (!name) return PDVM_OK;
    bool phi3 = strcmp(config->architecture, "phi3") == 0;
    for (size_t i = 0; i < (phi3 ? 1 : sizeof kinds / sizeof *kinds); i++) {
        if (strcmp(kinds[i].name, name) != 0) continue;
        *out = kinds[i].kind;
        return PDVM_OK;
    }
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: field \"%s\": RoPE scaling of type \"%.100s\" is not supported (only %s)",
                   f->path, f->object, name, phi3 ? "default" : "linear, llama3 and yarn");
}

/* transformers: a value beside the object comes first, the model's own length last. */
static pdvm_status read_original_length(const struct rope_fields *f, const json_t *root,
                                        struct model_config *config, pdvm_error *err) {
    const char *field = "original_max_position_embeddings";
    int64_t n = config->max_position_embeddings;
    pdvm_status status = pd_json_int(f->path, f->json, field, false, 1, MAX_POSITIONS, &n, err);
    if (status != PDVM_OK) return pd_prefix(err, status, "%s", f->object);
    PD_TRY(pd_json_int(f->path, root, field, false, 1, MAX_POSITIONS, &n, err));
    config->rope_scaling.original_max_position_embeddings = (uint32_t)n;
    return PDVM_OK;
}

static pdvm_status read_llama3(const struct rope_fields *f, struct rope_scaling *s,
                               pdvm_error *err) {
    PD_TRY(read_number(f, "low_freq_factor", true, 1e-6, 1e6, &s->low_freq_factor, err));
    PD_TRY(read_number(f, "high_freq_factor", true, 1e-6, 1e6, &s->high_freq_factor, err));
    if (s->high_freq_factor > s->low_freq_factor) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: %s: field \"high_freq_factor\" is %g, not above \"low_freq_factor\", %g",
                   f->path, f->object, s->high_freq_factor, s->low_freq_factor);
}

static double mscale_of(double factor, double mscale) {
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static pdvm_status read_yarn(const struct rope_fields *f, struct rope_scaling *s, pdvm_error *err) {
    s->truncate = true;
    pdvm_status status = pd_json_bool(f->path, f->json, "truncate", false, &s->truncate, err);
    if (status != PDVM_OK) return pd_prefix(err, status, "%s", f->object);
    PD_TRY(read_number(f, "beta_fast", false, 0, 1e6, &s->beta_fast, err));
    PD_TRY(read_number(f, "beta_slow", false, 0, 1e6, &s->beta_slow, err));
    /* transformers takes 0 for "not given". */
    if (s->beta_fast < 1e-6) s->beta_fast = 32;
    if (s->beta_slow < 1e-6) s->beta_slow = 1;
    double mscale = 0, mscale_all_dim = 0;
    PD_TRY(read_number(f, "mscale", false, 0, 1e6, &mscale, err));
    PD_TRY(read_number(f, "mscale_all_dim", false, 0, 1e6, &mscale_all_dim, err));
    s->attention_factor = mscale_of(s->factor, 1);
    if (mscale > 0 && mscale_all_dim > 0)
        s->attention_factor = mscale_of(s->factor, mscale) / mscale_of(s->factor, mscale_all_dim);
    return read_number(f, "attention_factor", false, 1e-6, 1e6, &s->attention_factor, err);
}

static pdvm_status read_scaling(const struct rope_fields *f, const json_t *root,
                                struct model_config *config, pdvm_error *err) {
    struct rope_scaling *s = &config->rope_scaling;
    PD_TRY(read_kind(f, config, &s->kind, err));
    if (s->kind == ROPE_SCALING_NONE) return PDVM_OK;
    if (s->kind != ROPE_SCALING_LINEAR) PD_TRY(read_original_length(f, root, config, err));
    bool required = s->kind != ROPE_SCALING_YARN;
    s->factor = 1;
    if (!required)
        s->factor = (double)config->max_position_embeddings / s->original_max_position_embeddings;
    PD_TRY(read_number(f, "factor", required, 1e-6, 1e6, &s->factor, err));
    if (s->kind == ROPE_SCALING_LLAMA3) return read_llama3(f, s, err);
    if (s->kind == ROPE_SCALING_LINEAR) return PDVM_OK;
    if (!(config->rope_theta > 1))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"rope_theta\" is %g; yarn needs it above 1", f->path,
                       (double)config->rope_theta);
    return read_yarn(f, s, err);
}

/* Layers with frequencies of their own have objects by their names. */
static pdvm_status check_nesting(const struct rope_fields *f, pdvm_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)f->json, key, value) {
        if (json_is_object(value))
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: field \"%s\": RoPE of its own for \"%.100s\" is not supported",
                           f->path, f->object, key);
    }
    double rotary = 1;
    PD_TRY(pd_json_number(f->path, f->json, "partial_rotary_factor", false, &rotary, err));
    if (rotary == 1) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: %s: field \"partial_rotary_factor\" is %g, which is not supported (only 1)",
                   f->path, f->object, rotary);
}

static pdvm_status read_theta(const char *path, const json_t *object, double *theta,
                              pdvm_error *err) {
    PD_TRY(pd_json_number(path, object, "rope_theta", false, theta, err));
    float f = (float)*theta;
    if (f > 0 && isfinite(f)) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"rope_theta\" is %g, not a positive float",
                   path, *theta);
}

pdvm_status rope_parse(const char *path, const json_t *root, struct model_config *config,
                       pdvm_error *err) {
    json_t *scaling = NULL, *parameters = NULL;
    double theta = 10000;
    PD_TRY(read_theta(path, root, &theta, err));
    config->rope_theta = (float)theta;
    PD_TRY(pd_json_object(path, root, "rope_scaling", false, &scaling, err));
    PD_TRY(pd_json_object(path, root, "rope_parameters", false, &parameters, err));
    bool both = json_object_size(scaling) > 0 && json_object_size(parameters) > 0;
    if (both && !json_equal(scaling, parameters))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: fields \"rope_scaling\" and \"rope_parameters\" contradict each other",
                       path);
    struct rope_fields f = {path, "rope_scaling", scaling};
    if (json_object_size(scaling) == 0)
        f = (struct rope_fields){path, "rope_parameters", parameters};
    if (!f.json) return PDVM_OK;
    double outer = theta;
    pdvm_status status = read_theta(path, f.json, &theta, err);
    if (status != PDVM_OK) return pd_prefix(err, status, "%s", f.object);
    if (theta != outer && pd_json_member(root, "rope_theta"))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"rope_theta\" is %g, but %g in \"%s\"",
                       path, outer, theta, f.object);
    config->rope_theta = (float)theta;
    PD_TRY(check_nesting(&f, err));
    return read_scaling(&f, root, config, err);
}

/* ---- frequencies ----------------------------------------------------------------------- */

static void scale_llama3(const struct rope_scaling *s, uint32_t n, float *inv_freq) {
    const float length = (float)s->original_max_position_embeddings;
    const float low = (float)(s->original_max_position_embeddings / s->low_freq_factor);
    const float high = (float)(s->original_max_position_embeddings / s->high_freq_factor);
    const float factor = (float)s->factor, low_factor = (float)s->low_freq_factor;
    const float width = (float)(s->high_freq_factor - s->low_freq_factor);
    for (uint32_t i = 0; i < n; i++) {
        float f = inv_freq[i];
        float wavelength = (float)(2 * M_PI) / f;
        if (wavelength < high) continue;
        if (wavelength > low) {
            inv_freq[i] = f / factor;
            continue;
        }
        float smooth = (length / wavelength - low_factor) / width;
        inv_freq[i] = (1 - smooth) * f / factor + smooth * f;
    }
}

/* The dimension (a real number) that turns `rotations` times over the original context. */
static double yarn_dimension(const struct model_config *c, double rotations) {
    double length = c->rope_scaling.original_max_position_embeddings;
    return c->head_dim * log(length / (rotations * 2 * M_PI)) / (2 * log(c->rope_theta));
}

static void scale_yarn(const struct model_config *c, float *inv_freq) {
    const struct rope_scaling *s = &c->rope_scaling;
    double low = yarn_dimension(c, s->beta_fast), high = yarn_dimension(c, s->beta_slow);
    if (s->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, c->head_dim - 1);
    if (fabs(high - low) < 1e-6) high = low + 0.001; /* a ramp of no width is a step */
    const float factor = (float)s->factor;
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1 - fminf(fmaxf(ramp, 0), 1);
        float position = powf(c->rope_theta, (float)(2 * i) / (float)c->head_dim);
        inv_freq[i] = 1 / (factor * position) * (1 - keep) + 1 / position * keep;
    }
}

void rope_frequencies(const struct model_config *config, float *inv_freq) {
    uint32_t n = config->head_dim / 2;
    for (uint32_t i = 0; i < n; i++)
        inv_freq[i] = 1.0f / powf(config->rope_theta, (float)(2 * i) / (float)config->head_dim);
    switch (config->rope_scaling.kind) {
    case ROPE_SCALING_NONE: break;
    case ROPE_SCALING_LINEAR:
        for (uint32_t i = 0; i < n; i++) inv_freq[i] /= (float)config->rope_scaling.factor;
        break;
    case ROPE_SCALING_LLAMA3: scale_llama3(&config->rope_scaling, n, inv_freq); break;
    case ROPE_SCALING_YARN: scale_yarn(config, inv_freq); break;
    }
}

float rope_attention_factor(const struct model_config *config) {
    const struct rope_scaling *s = &config->rope_scaling;
    return s->kind == ROPE_SCALING_YARN ? (float)s->attention_factor : 1;
}
