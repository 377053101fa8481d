#include "support/gguf_writer.h"

#include "base/half.h"
#include "io/gguf_types.h"
#include "io/json.h"
#include "model/source.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- bytes ------------------------------------------------------------------------------

static void add(struct gguf_bytes *b, const void *data, size_t n) {
    if (b->capacity < b->n + n) {
        b->capacity = 2 * (b->n + n) + 64;
        b->data = realloc(b->data, b->capacity);
        if (!b->data) support_fail("out of memory");
    }
    if (n > 0) memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void add_u32(struct gguf_bytes *b, uint32_t v) {
    uint8_t bytes[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
    add(b, bytes, sizeof bytes);
}

static void add_u64(struct gguf_bytes *b, uint64_t v) {
    add_u32(b, (uint32_t)v);
    add_u32(b, (uint32_t)(v >> 32));
}

static void add_string(struct gguf_bytes *b, const char *s) {
    add_u64(b, strlen(s));
    add(b, s, strlen(s));
}

static void pad(struct gguf_bytes *b, size_t alignment) {
    while (b->n % alignment != 0) add(b, "", 1);
}

// ---- entries ------------------------------------------------------------------------------

static struct gguf_bytes *new_key(struct gguf_writer *w, const char *key, uint32_t type) {
    w->n_keys++;
    add_string(&w->keys, key);
    add_u32(&w->keys, type);
    return &w->keys;
}

static struct gguf_bytes *array(struct gguf_writer *w, const char *key, uint32_t type, size_t n) {
    struct gguf_bytes *b = new_key(w, key, 9);
    add_u32(b, type);
    add_u64(b, n);
    return b;
}

void gguf_write_raw(struct gguf_writer *w, const char *key, const void *bytes, size_t size) {
    w->n_keys++;
    add_string(&w->keys, key);
    add(&w->keys, bytes, size);
}

void gguf_write_u16(struct gguf_writer *w, const char *key, uint16_t value) {
    add(new_key(w, key, 2), (uint8_t[]){(uint8_t)value, (uint8_t)(value >> 8)}, 2);
}

void gguf_write_u32(struct gguf_writer *w, const char *key, uint32_t value) {
    add_u32(new_key(w, key, 4), value);
}

void gguf_write_i32(struct gguf_writer *w, const char *key, int32_t value) {
    add_u32(new_key(w, key, 5), (uint32_t)value);
}

void gguf_write_f32(struct gguf_writer *w, const char *key, float value) {
    add_u32(new_key(w, key, 6), pd_float_bits(value));
}

void gguf_write_bool(struct gguf_writer *w, const char *key, bool value) {
    add(new_key(w, key, 7), (uint8_t[]){value}, 1);
}

void gguf_write_string(struct gguf_writer *w, const char *key, const char *value) {
    add_string(new_key(w, key, 8), value);
}

void gguf_write_strings(struct gguf_writer *w, const char *key, const char *const *values,
                        size_t n) {
    struct gguf_bytes *b = array(w, key, 8, n);
    for (size_t i = 0; i < n; i++) add_string(b, values[i]);
}

void gguf_write_i32s(struct gguf_writer *w, const char *key, const int32_t *values, size_t n) {
    struct gguf_bytes *b = array(w, key, 5, n);
    for (size_t i = 0; i < n; i++) add_u32(b, (uint32_t)values[i]);
}

void gguf_write_f32s(struct gguf_writer *w, const char *key, const float *values, size_t n) {
    struct gguf_bytes *b = array(w, key, 6, n);
    for (size_t i = 0; i < n; i++) add_u32(b, pd_float_bits(values[i]));
}

void gguf_write_entry(struct gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                      const uint64_t *dims, uint64_t offset) {
    w->n_tensors++;
    add_string(&w->tensors, name);
    add_u32(&w->tensors, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) add_u64(&w->tensors, dims[i]);
    add_u32(&w->tensors, type);
    add_u64(&w->tensors, offset);
}

static size_t alignment_of(const struct gguf_writer *w) {
    return w->alignment ? w->alignment : 32;
}

void gguf_write_tensor(struct gguf_writer *w, const char *name, uint32_t type, int n_dims,
                       const uint64_t *dims, const void *data, size_t size) {
    pad(&w->data, alignment_of(w));
    gguf_write_entry(w, name, type, (uint32_t)n_dims, dims, w->data.n);
    add(&w->data, data, size);
}

uint8_t *gguf_writer_finish(struct gguf_writer *w, size_t *size) {
    struct gguf_bytes file = {0};
    size_t alignment = alignment_of(w);
    if (w->alignment) gguf_write_u32(w, "general.alignment", w->alignment);
    add(&file, "GGUF", 4);
    add_u32(&file, w->version ? w->version : 3);
    add_u64(&file, w->n_tensors);
    add_u64(&file, w->n_keys);
    add(&file, w->keys.data, w->keys.n);
    add(&file, w->tensors.data, w->tensors.n);
    pad(&file, alignment);
    add(&file, w->data.data, w->data.n);
    pad(&file, alignment);
    free(w->keys.data);
    free(w->tensors.data);
    free(w->data.data);
    *w = (struct gguf_writer){0};
    *size = file.n;
    return file.data;
}

char *gguf_writer_save(struct gguf_writer *w, const char *dir, const char *name) {
    size_t size;
    uint8_t *file = gguf_writer_finish(w, &size);
    char *path = support_write_file(dir, name, file, size);
    free(file);
    return path;
}

// ---- values -------------------------------------------------------------------------------

static float largest(const float *x, int n) {
    float max = 0;
    for (int i = 0; i < n; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    return max;
}

static void put_half(uint8_t *out, float f) {
    uint16_t h = pd_float_to_f16(f);
    out[0] = (uint8_t)h;
    out[1] = (uint8_t)(h >> 8);
}

static int nearest(float x, float scale) {
    return scale > 0 ? (int)lrintf(x / scale) : 0;
}

static void encode_q8_0(const float *x, uint8_t *out) {
    float d = largest(x, 32) / 127;
    put_half(out, d);
    for (int i = 0; i < 32; i++) out[2 + i] = (uint8_t)nearest(x[i], d);
}

static void encode_q4_0(const float *x, uint8_t *out) {
    float d = largest(x, 32) / 7;
    put_half(out, d);
    for (int i = 0; i < 16; i++)
        out[2 + i] = (uint8_t)((nearest(x[i], d) + 8) | (nearest(x[i + 16], d) + 8) << 4);
}

// All sixteen scales are 1.
static void encode_q6_k(const float *x, uint8_t *out) {
    float d = largest(x, 256) / 31;
    memset(out, 0, 192);
    memset(out + 192, 1, 16);
    put_half(out + 208, d);
    for (int i = 0; i < 256; i++) {
        int q = nearest(x[i], d) + 32, half = i / 128, quarter = i / 32 % 4, lane = i % 32;
        out[half * 64 + quarter % 2 * 32 + lane] |= (uint8_t)((q & 15) << (quarter / 2 * 4));
        out[128 + half * 32 + lane] |= (uint8_t)(q >> 4 << (quarter * 2));
    }
}

size_t gguf_encode(uint32_t type, const float *x, size_t n, uint8_t *out) {
    uint16_t half;
    double d;
    switch (type) {
    case GGUF_F32: memcpy(out, x, n * sizeof *x); return n * sizeof *x;
    case GGUF_F16:
        for (size_t i = 0; i < n; i++) put_half(out + 2 * i, x[i]);
        return 2 * n;
    case GGUF_BF16:
        for (size_t i = 0; i < n; i++) {
            half = pd_float_to_bf16(x[i]);
            memcpy(out + 2 * i, &half, sizeof half);
        }
        return 2 * n;
    case GGUF_F64:
        for (size_t i = 0; i < n; i++) {
            d = x[i];
            memcpy(out + 8 * i, &d, sizeof d);
        }
        return 8 * n;
    case GGUF_Q8_0:
        for (size_t i = 0; i < n / 32; i++) encode_q8_0(x + 32 * i, out + 34 * i);
        return n / 32 * 34;
    case GGUF_Q4_0:
        for (size_t i = 0; i < n / 32; i++) encode_q4_0(x + 32 * i, out + 18 * i);
        return n / 32 * 18;
    case GGUF_Q6_K:
        for (size_t i = 0; i < n / 256; i++) encode_q6_k(x + 256 * i, out + 210 * i);
        return n / 256 * 210;
    default: support_fail("type %u cannot be encoded", type);
    }
}

void gguf_write_floats(struct gguf_writer *w, const char *name, uint32_t type, uint64_t rows,
                       uint64_t cols, const float *x) {
    size_t n = (size_t)(rows ? rows : 1) * (size_t)cols;
    uint8_t *data = malloc(8 * n);
    if (!data) support_fail("out of memory");
    type = rows ? type : GGUF_F32;
    size_t size = gguf_encode(type, x, n, data);
    gguf_write_tensor(w, name, type, rows ? 2 : 1, (uint64_t[]){cols, rows}, data, size);
    free(data);
}

// ---- models -------------------------------------------------------------------------------

static const char *const names[][2] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
    {"input_layernorm.weight", "attn_norm.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"self_attn.q_proj.", "attn_q."},
    {"self_attn.k_proj.", "attn_k."},
    {"self_attn.v_proj.", "attn_v."},
    {"self_attn.o_proj.", "attn_output."},
    {"self_attn.q_norm.", "attn_q_norm."},
    {"self_attn.k_norm.", "attn_k_norm."},
    {"mlp.gate_proj.", "ffn_gate."},
    {"mlp.up_proj.", "ffn_up."},
    {"mlp.down_proj.", "ffn_down."},
};

static void gguf_name(const char *name, char *out, size_t size) {
    char block[32] = "";
    static const char layers[] = "model.layers.";
    if (strncmp(name, layers, sizeof layers - 1) == 0) {
        char *end;
        unsigned long layer = strtoul(name + sizeof layers - 1, &end, 10);
        snprintf(block, sizeof block, "blk.%lu.", layer);
        name = end + 1;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t len = strlen(names[i][0]);
        if (strncmp(name, names[i][0], len) == 0) {
            snprintf(out, size, "%s%s%s", block, names[i][1], name + len);
            return;
        }
    }
    support_fail("no GGUF name for %s", name);
}

// w.reshape(n_head, 2, n / n_head / 2, cols).swapaxes(1, 2), as convert_hf_to_gguf.py has it.
static void permute(float *w, uint32_t n_head, size_t n, size_t cols) {
    float *copy = malloc(n * cols * sizeof *w);
    if (!copy) support_fail("out of memory");
    memcpy(copy, w, n * cols * sizeof *w);
    size_t half = n / n_head / 2, to = 0;
    for (size_t head = 0; head < n_head; head++)
        for (size_t j = 0; j < half; j++)
            for (size_t part = 0; part < 2; part++)
                memcpy(w + to++ * cols, copy + ((head * 2 + part) * half + j) * cols,
                       cols * sizeof *w);
    free(copy);
}

static const char *architecture_of(const struct model_config *c) {
    return strcmp(c->architecture, "mistral") == 0 ? "llama" : c->architecture;
}

// Phi-3's q, k and v, and its gate and up, are one tensor; the first part writes all.
static bool write_fused(struct gguf_writer *w, struct model_source *s, const struct tensor_info *t,
                        uint32_t type) {
    static const enum tensor_role parts[2][3] = {{TENSOR_Q, TENSOR_K, TENSOR_V},
                                                 {TENSOR_GATE, TENSOR_UP, TENSOR_N_ROLES}};
    const bool mlp = t->role == TENSOR_GATE || t->role == TENSOR_UP;
    const bool qkv = t->role == TENSOR_Q || t->role == TENSOR_K || t->role == TENSOR_V;
    if (strcmp(s->config.architecture, "phi3") != 0 || (!mlp && !qkv)) return false;
    if (t->role != TENSOR_GATE && t->role != TENSOR_Q) return true;
    char name[64];
    float *x = NULL;
    int64_t rows = 0;
    pdvm_error err = {0};
    for (int i = 0; i < 3 && parts[mlp][i] != TENSOR_N_ROLES; i++) {
        struct tensor_info part;
        tensors_describe(&s->config, parts[mlp][i], t->layer, &part);
        x = realloc(x, (size_t)((rows + part.rows) * t->cols) * sizeof *x);
        if (!x) support_fail("out of memory");
        assert_ok(source_read_rows(s, &part, 0, part.rows, x + rows * t->cols, &err), &err);
        rows += part.rows;
    }
    snprintf(name, sizeof name, "blk.%u.%s", t->layer, mlp ? "ffn_up.weight" : "attn_qkv.weight");
    gguf_write_floats(w, name, type, (uint64_t)rows, (uint64_t)t->cols, x);
    free(x);
    return true;
}

static void write_tensor(struct gguf_writer *w, struct model_source *s, const struct tensor_info *t,
                         const struct gguf_options *o) {
    if (write_fused(w, s, t, o->type)) return;
    char name[160];
    pdvm_error err = {0};
    const struct model_config *c = &s->config;
    gguf_name(t->name, name, sizeof name);
    if (o->skip && strcmp(name, o->skip) == 0) return;
    float *x = malloc((size_t)(t->rows * t->cols) * sizeof *x);
    if (!x) support_fail("out of memory");
    assert_ok(source_read_rows(s, t, 0, t->rows, x, &err), &err);
    bool llama = strcmp(architecture_of(c), "llama") == 0;
    size_t n = (size_t)(t->is_matrix ? t->rows : t->cols),
           cols = t->is_matrix ? (size_t)t->cols : 1;
    if (llama && strstr(name, ".attn_q.")) permute(x, c->n_heads, n, cols);
    if (llama && strstr(name, ".attn_k.")) permute(x, c->n_kv_heads, n, cols);
    gguf_write_floats(w, name, o->type, t->is_matrix ? (uint64_t)t->rows : 0, (uint64_t)t->cols, x);
    free(x);
}

// The factors that convert_hf_to_gguf.py computes for Llama 3's scaling.
static void write_factors(struct gguf_writer *w, const struct model_config *c) {
    const struct rope_scaling *r = &c->rope_scaling;
    double original = r->original_max_position_embeddings;
    float factors[512];
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        double frequency = pow(c->rope_theta, -2.0 * i / c->head_dim);
        double wavelength = 2 * acos(-1) / frequency;
        double smooth = (original / wavelength - r->low_freq_factor) /
                        (r->high_freq_factor - r->low_freq_factor);
        double factor = 1 / ((1 - smooth) / r->factor + smooth);
        if (wavelength < original / r->high_freq_factor) factor = 1;
        if (wavelength > original / r->low_freq_factor) factor = r->factor;
        factors[i] = (float)factor;
    }
    gguf_write_floats(w, "rope_freqs.weight", GGUF_F32, 0, c->head_dim / 2, factors);
}

static void write_rope(struct gguf_writer *w, const struct model_config *c, const char *arch) {
    const struct rope_scaling *r = &c->rope_scaling;
    char name[96];
    if (r->kind == ROPE_SCALING_LLAMA3) write_factors(w, c);
    if (r->kind != ROPE_SCALING_LINEAR && r->kind != ROPE_SCALING_YARN) return;
    snprintf(name, sizeof name, "%s.rope.scaling.type", arch);
    gguf_write_string(w, name, r->kind == ROPE_SCALING_YARN ? "yarn" : "linear");
    snprintf(name, sizeof name, "%s.rope.scaling.factor", arch);
    gguf_write_f32(w, name, (float)r->factor);
    snprintf(name, sizeof name, "%s.rope.scaling.original_context_length", arch);
    if (r->kind == ROPE_SCALING_YARN) gguf_write_u32(w, name, r->original_max_position_embeddings);
}

static void write_config(struct gguf_writer *w, const struct model_config *c, const char *arch) {
    char name[96];
    const struct {
        const char *name;
        uint32_t value;
    } numbers[] = {
        {"block_count", c->n_layers},          {"context_length", c->max_position_embeddings},
        {"embedding_length", c->hidden_size},  {"feed_forward_length", c->intermediate_size},
        {"attention.head_count", c->n_heads},  {"attention.head_count_kv", c->n_kv_heads},
        {"attention.key_length", c->head_dim}, {"attention.value_length", c->head_dim},
        {"rope.dimension_count", c->head_dim}, {"vocab_size", c->n_vocab},
    };
    gguf_write_string(w, "general.architecture", arch);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(name, sizeof name, "%s.%s", arch, numbers[i].name);
        gguf_write_u32(w, name, numbers[i].value);
    }
    snprintf(name, sizeof name, "%s.rope.freq_base", arch);
    gguf_write_f32(w, name, c->rope_theta);
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_write_f32(w, name, c->rms_norm_eps);
    write_rope(w, c, arch);
    snprintf(name, sizeof name, "%s.attention.sliding_window", arch);
    if (c->sliding_window > 0 && strncmp(arch, "qwen", 4) != 0)
        gguf_write_u32(w, name, c->sliding_window);
    if (c->bos_token_id >= 0)
        gguf_write_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)c->bos_token_id);
    if (c->n_eos > 0)
        gguf_write_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)c->eos_token_ids[0]);
}

static void write_tokens(struct gguf_writer *w, const json_t *root, size_t n) {
    const char **tokens = calloc(n, sizeof *tokens), *name;
    int32_t *types = calloc(n, sizeof *types);
    json_t *value, *vocab = json_object_get(json_object_get(root, "model"), "vocab");
    if (!tokens || !types) support_fail("out of memory");
    for (size_t i = 0; i < n; i++) {
        tokens[i] = "[PAD]";
        types[i] = 5;
    }
    json_object_foreach(vocab, name, value) {
        tokens[json_integer_value(value)] = name;
        types[json_integer_value(value)] = 1;
    }
    const json_t *added = json_object_get(root, "added_tokens");
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i);
        size_t id = (size_t)json_integer_value(json_object_get(token, "id"));
        tokens[id] = json_string_value(json_object_get(token, "content"));
        types[id] = json_is_true(json_object_get(token, "special")) ? 3 : 4;
    }
    gguf_write_strings(w, "tokenizer.ggml.tokens", tokens, n);
    gguf_write_i32s(w, "tokenizer.ggml.token_type", types, n);
    free(tokens);
    free(types);
}

static void write_tokenizer(struct gguf_writer *w, struct model_source *s, const char *pre) {
    const char *text;
    size_t size;
    json_t *root;
    pdvm_error err = {0};
    source_file(s, SOURCE_TOKENIZER, &text, &size);
    assert_ok(pd_json_parse_object("tokenizer.json", text, size, &root, &err), &err);
    gguf_write_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_write_string(w, "tokenizer.ggml.pre", pre);
    write_tokens(w, root, s->config.n_vocab);
    const json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    struct gguf_bytes *b = array(w, "tokenizer.ggml.merges", 8, json_array_size(merges));
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *pair = json_array_get(merges, i);
        char merge[512];
        snprintf(merge, sizeof merge, "%s %s", json_string_value(json_array_get(pair, 0)),
                 json_string_value(json_array_get(pair, 1)));
        add_string(b, json_is_string(pair) ? json_string_value(pair) : merge);
    }
    gguf_write_bool(w, "tokenizer.ggml.add_bos_token", false);
    json_decref(root);
}

static char *write_file(struct model_source *s, const char *dir, const char *name,
                        const struct gguf_options *o, unsigned number) {
    struct gguf_writer w = {0};
    char file[160];
    unsigned count = o->n_files > 1 ? o->n_files : 1;
    if (number == 0) {
        write_config(&w, &s->config, architecture_of(&s->config));
        if (o->pre) write_tokenizer(&w, s, o->pre);
    }
    size_t n = tensors_count(&s->config);
    for (size_t i = number; i < n; i += count) {
        struct tensor_info t;
        tensors_at(&s->config, i, &t);
        write_tensor(&w, s, &t, o);
    }
    snprintf(file, sizeof file, "%s.gguf", name);
    if (count > 1) {
        snprintf(file, sizeof file, "%s-%05u-of-%05u.gguf", name, number + 1, count);
        gguf_write_u16(&w, "split.no", (uint16_t)number);
        gguf_write_u16(&w, "split.count", (uint16_t)count);
        gguf_write_i32(&w, "split.tensors.count", (int32_t)n - (o->skip ? 1 : 0));
    }
    return gguf_writer_save(&w, dir, file);
}

char *gguf_from_hf(const char *from, const char *dir, const char *name,
                   const struct gguf_options *options) {
    struct model_source *s;
    pdvm_error err = {0};
    assert_ok(source_open(from, &s, &err), &err);
    char *first = write_file(s, dir, name, options, 0);
    for (unsigned i = 1; i < options->n_files; i++) free(write_file(s, dir, name, options, i));
    source_close(s);
    return first;
}
