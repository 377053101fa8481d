#include "base/alloc.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"
#include "io/gguf_set.h"
#include "model/gguf_metadata.h"
#include "model/source.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYER_PREFIX "model.layers."
#define BLOCK_PREFIX "blk."

/* What a tensor of a model is called in GGUF files. */
static const struct tensor_name {
    const char *name; /* Hugging Face's; inside the layers without "model.layers.N." */
    const char *gguf; /* the same without "blk.N." */
} names[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
    {"input_layernorm.weight", "attn_norm.weight"},
    {"self_attn.qkv_proj.weight", "attn_qkv.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},
    {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.bias", "attn_v.bias"},
    {"self_attn.o_proj.bias", "attn_output.bias"},
    {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"mlp.gate_up_proj.weight", "ffn_up.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
};

/* Where a tensor's rows are: some models keep several in one. */
struct place {
    const struct gguf_tensor *tensor;
    int64_t first_row;
    bool permuted; /* rows (of a vector: elements) are in the order of interleaved rotation */
};

struct source_gguf {
    struct model_source base;
    struct gguf_set set;
    struct gguf_texts texts;
    bool permutes;        /* q and k are permuted, as in files of architecture "llama" */
    struct place *places; /* in the order of tensors_at */
    bool *used;           /* [set.n_entries] */
};

/* ---- names ------------------------------------------------------------------------------- */

/* The part of a Hugging Face name behind "model.layers.N."; the whole name of others. */
static const char *base_of(const char *name) {
    if (!pd_starts_with(name, LAYER_PREFIX)) return name;
    const char *dot = strchr(name + strlen(LAYER_PREFIX), '.');
    return dot ? dot + 1 : name;
}

/* The GGUF name of a tensor. */
static void gguf_name(const struct tensor_info *info, const char *base, char *out, size_t size) {
    if (pd_starts_with(info->name, LAYER_PREFIX))
        snprintf(out, size, BLOCK_PREFIX "%u.%s", info->layer, base);
    else
        snprintf(out, size, "%s", base);
}

/* The layer's number in "blk.3.anything"; false for other names. */
static bool block_of(const char *name, uint32_t *block) {
    if (!pd_starts_with(name, BLOCK_PREFIX)) return false;
    const char *p = name + strlen(BLOCK_PREFIX), *digits = p;
    *block = 0;
    for (; *p >= '0' && *p <= '9' && p - digits < 9; p++)
        *block = *block * 10 + (uint32_t)(*p - '0');
    return p > digits && *p == '.';
}

/* ---- reading ----------------------------------------------------------------------------- */

static const struct place *place_of(const struct model_source *s, const struct tensor_info *t) {
    const struct source_gguf *g = (const struct source_gguf *)s;
    return &g->places[tensors_index(&s->config, t->role, t->layer)];
}

static size_t row_bytes(const struct gguf_tensor *t) {
    const struct gguf_type_info *type = gguf_type_info(t->type);
    return (size_t)(t->dims[0] / type->block) * type->bytes;
}

/*
 * GGUF files of architecture "llama" have the rows of every head of q and k reordered: rows j and
 * j + head_dim / 2, which RoPE rotates together, become 2 j and 2 j + 1.
 */
static int64_t permuted_row(int64_t row, int64_t head_dim) {
    int64_t in_head = row % head_dim, half = head_dim / 2;
    return row - in_head + 2 * (in_head % half) + in_head / half;
}

static pdvm_status gguf_read_rows(struct model_source *s, const struct tensor_info *t,
                                  int64_t begin, int64_t n, float *out, pdvm_error *err) {
    (void)err;
    const struct place *place = place_of(s, t);
    const struct gguf_tensor *tensor = place->tensor;
    const struct gguf_type_info *type = gguf_type_info(tensor->type);
    size_t size = row_bytes(tensor), blocks = (size_t)(tensor->dims[0] / type->block);
    const uint8_t *data = tensor->data + (size_t)place->first_row * size;
    int64_t head_dim = s->config.head_dim;
    if (place->permuted && !t->is_matrix && n > 0) {
        for (int64_t i = 0; i < t->cols; i++)
            gguf_dequantize(tensor->type, data + (size_t)permuted_row(i, head_dim) * type->bytes, 1,
                            out + i);
        return PDVM_OK;
    }
    for (int64_t r = begin; r < begin + n; r++) {
        int64_t from = place->permuted ? permuted_row(r, head_dim) : r;
        gguf_dequantize(tensor->type, data + (size_t)from * size, blocks,
                        out + (r - begin) * t->cols);
    }
    return PDVM_OK;
}

static void gguf_file(struct model_source *s, const char *name, const char **data, size_t *size) {
    const struct gguf_texts *texts = &((const struct source_gguf *)s)->texts;
    *data = strcmp(name, SOURCE_CONFIG) == 0              ? texts->config
            : strcmp(name, SOURCE_TOKENIZER) == 0         ? texts->tokenizer
            : strcmp(name, SOURCE_TOKENIZER_CONFIG) == 0  ? texts->tokenizer_config
            : strcmp(name, SOURCE_GENERATION_CONFIG) == 0 ? texts->generation_config
            : strcmp(name, SOURCE_CHAT_TEMPLATE) == 0     ? texts->chat_template
                                                          : NULL;
    *size = *data ? strlen(*data) : 0;
}

/* The bytes of a tensor's rows. */
static const uint8_t *bytes_of(const struct model_source *s, const struct tensor_info *t,
                               size_t *size) {
    const struct place *place = place_of(s, t);
    size_t row = row_bytes(place->tensor);
    *size = (size_t)t->rows * row;
    return place->tensor->data + (size_t)place->first_row * row;
}

static void gguf_stored(struct model_source *s, const struct tensor_info *t, const char **coding,
                        uint64_t *bytes) {
    size_t size;
    bytes_of(s, t, &size);
    *coding = gguf_type_info(place_of(s, t)->tensor->type)->name;
    *bytes = size;
}

static void gguf_release(struct model_source *s, const struct tensor_info *t) {
    size_t size;
    const uint8_t *data = bytes_of(s, t, &size);
    pd_map_release(data, size);
}

static void source_gguf_close(struct model_source *s) {
    struct source_gguf *g = (struct source_gguf *)s;
    gguf_set_close(&g->set);
    gguf_texts_clear(&g->texts);
    free(g->places);
    free(g->used);
    free(s->path);
    free(g);
}

static const struct model_source_ops gguf_ops = {
    .read_rows = gguf_read_rows,
    .file = gguf_file,
    .stored = gguf_stored,
    .release = gguf_release,
    .close = source_gguf_close,
};

/* ---- finding the tensors --------------------------------------------------------------------- */

static pdvm_status check_shape(const struct gguf_entry *e, const struct tensor_info *info,
                               pdvm_error *err) {
    const struct gguf_tensor *t = e->tensor;
    bool ok = t->dims[0] == info->cols && (t->n_dims < 2 ? 1 : t->dims[1]) == info->rows;
    for (int i = 2; i < t->n_dims; i++) ok &= t->dims[i] == 1;
    if (ok) return PDVM_OK;
    char shape[GGUF_MAX_DIMS * 22 + 1] = "";
    for (int i = 0, n = 0; i < t->n_dims; i++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%" PRId64, i ? ", " : "", t->dims[i]);
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: tensor \"%s\" has dimensions [%s], but the metadata asks for [%" PRId64
                   ", %" PRId64 "]",
                   gguf_path(e->file), t->name, shape, info->cols, info->rows);
}

static pdvm_status find_tensor(struct source_gguf *g, const struct tensor_info *part,
                               struct place *out, pdvm_error *err) {
    struct tensor_info whole;
    char name[160];
    bool fused = tensors_fused(&g->base.config, part->role, part->layer, &whole, &out->first_row);
    const struct tensor_info *info = fused ? &whole : part;
    const char *plain = base_of(info->name), *base = plain;
    if (!fused) out->first_row = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i].name, plain) == 0) base = names[i].gguf;
    gguf_name(info, base, name, sizeof name);
    const struct gguf_entry *e = gguf_set_find(&g->set, name);
    if (!e)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\" is missing", g->base.path, name);
    const struct gguf_type_info *type = gguf_type_info(e->tensor->type);
    if (!type->readable)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" is of type %s, which is not supported (only F32, F16, "
                       "BF16, F64, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K)",
                       gguf_path(e->file), name, type->name);
    PD_TRY(check_shape(e, info, err));
    out->tensor = e->tensor;
    out->permuted = g->permutes && (pd_starts_with(plain, "self_attn.q_proj.") ||
                                    pd_starts_with(plain, "self_attn.k_proj."));
    if (out->permuted && !info->is_matrix && type->block != 1)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" is a vector of type %s, which is not supported",
                       gguf_path(e->file), name, type->name);
    g->used[e - g->set.entries] = true;
    return PDVM_OK;
}

static pdvm_status find_tensors(struct source_gguf *g, pdvm_error *err) {
    const struct model_config *config = &g->base.config;
    size_t n = tensors_count(config);
    struct tensor_info info;
    struct place last;
    PD_TRY(pd_calloc(&g->used, g->set.n_entries, sizeof *g->used, "the table of tensors", err));
    /* The last layer first: an absurd number of layers must not cost an absurd table. */
    tensors_describe(config, TENSOR_DOWN, config->n_layers - 1, &info);
    PD_TRY(find_tensor(g, &info, &last, err));
    PD_TRY(pd_calloc(&g->places, n, sizeof *g->places, "the table of tensors", err));
    for (size_t i = 0; i < n; i++) {
        tensors_at(config, i, &info);
        PD_TRY(find_tensor(g, &info, &g->places[i], err));
    }
    return PDVM_OK;
}

/* A tensor that nobody reads would make every result wrong without a word. */
static pdvm_status check_unused(const struct source_gguf *g, pdvm_error *err) {
    for (size_t i = 0; i < g->set.n_entries; i++) {
        const char *name = g->set.entries[i].tensor->name;
        uint32_t block;
        bool in_block = block_of(name, &block);
        if (g->used[i]) continue;
        if (in_block && block >= g->base.config.n_layers)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"%.200s\" is of layer %u, but the metadata asks for %u "
                           "layers (block_count)",
                           gguf_path(g->set.entries[i].file), name, block, g->base.config.n_layers);
        /* The frequencies are in the configuration, or follow from it. */
        if (strcmp(name, "rope_freqs.weight") == 0 ||
            (in_block && (pd_ends_with(name, ".attn_rot_embd.weight") ||
                          pd_ends_with(name, ".rope_freqs.weight"))))
            continue;
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%.200s\" is not part of a model of type %s as this version "
                       "knows it",
                       gguf_path(g->set.entries[i].file), name, g->base.config.architecture);
    }
    return PDVM_OK;
}

/* As of a Hugging Face directory: the headers, and a few bytes of each tensor. */
static uint64_t fingerprint(const struct source_gguf *g) {
    uint64_t hash = PD_HASH_INIT;
    for (size_t i = 0; i < g->set.n_files; i++) {
        uint64_t header = gguf_header_hash(g->set.files[i]);
        hash = pd_hash(hash, &header, sizeof header);
    }
    for (size_t i = 0; i < g->set.n_entries; i++) {
        const struct gguf_tensor *t = g->set.entries[i].tensor;
        size_t sample = t->size < 64 ? t->size : 64;
        hash = pd_hash(hash, t->data, sample);
        hash = pd_hash(hash, t->data + (t->size - sample) / 2, sample);
        hash = pd_hash(hash, t->data + t->size - sample, sample);
    }
    return hash;
}

static pdvm_status read_config(struct source_gguf *g, pdvm_error *err) {
    struct gguf_texts *texts = &g->texts;
    struct model_config *config = &g->base.config;
    const char *arch = NULL;
    size_t len = 0;
    PD_TRY(gguf_make_config(&g->set, &texts->config, err));
    PD_TRY(gguf_make_side_files(&g->set, texts, err));
    pdvm_status status = model_config_parse("metadata as " SOURCE_CONFIG, texts->config,
                                            strlen(texts->config), config, err);
    if (status == PDVM_OK && texts->generation_config)
        status = model_config_parse_generation("metadata as " SOURCE_GENERATION_CONFIG,
                                               texts->generation_config,
                                               strlen(texts->generation_config), config, err);
    if (status != PDVM_OK) return pd_prefix(err, status, "%s", g->base.path);
    PD_TRY(gguf_get_string(g->set.files[0], "general.architecture", true, &arch, &len, err));
    g->permutes = len == 5 && memcmp(arch, "llama", 5) == 0;
    return PDVM_OK;
}

static pdvm_status open_all(struct source_gguf *g, pdvm_error *err) {
    PD_TRY(gguf_set_open(g->base.path, &g->set, err));
    PD_TRY(read_config(g, err));
    PD_TRY(find_tensors(g, err));
    PD_TRY(check_unused(g, err));
    PD_TRY(gguf_make_tokenizer(&g->set, &g->texts.tokenizer, err));
    g->base.fingerprint = fingerprint(g);
    return PDVM_OK;
}

pdvm_status source_open_gguf(const char *path, struct model_source **out, pdvm_error *err) {
    struct source_gguf *g;
    *out = NULL;
    PD_TRY(pd_calloc(&g, 1, sizeof *g, "a model source", err));
    g->base.ops = &gguf_ops;
    g->base.kind = "GGUF file";
    g->base.path = strdup(path);
    pdvm_status status =
        g->base.path ? open_all(g, err) : pd_fail_memory(err, strlen(path) + 1, "a path");
    if (status == PDVM_OK)
        *out = &g->base;
    else
        source_gguf_close(&g->base);
    return status;
}
