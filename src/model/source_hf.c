#include "base/alloc.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/compressed_tensors.h"
#include "model/source.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define WEIGHTS "model.safetensors"
#define WEIGHTS_INDEX "model.safetensors.index.json"
#define MAX_INDEX ((size_t)64 << 20)

/* The side files and how long they may be; the configuration is the first. */
static const struct {
    const char *name;
    size_t max;
} side_files[] = {
    {SOURCE_CONFIG, (size_t)16 << 20},           {SOURCE_TOKENIZER, (size_t)256 << 20},
    {SOURCE_TOKENIZER_MODEL, (size_t)64 << 20},  {SOURCE_TOKENIZER_CONFIG, (size_t)16 << 20},
    {SOURCE_GENERATION_CONFIG, (size_t)1 << 20}, {SOURCE_CHAT_TEMPLATE, (size_t)16 << 20},
};
#define N_SIDE_FILES (sizeof side_files / sizeof *side_files)

struct found_tensor {
    const struct safetensors *shard;
    const struct safetensors_tensor *tensor; /* of a compressed one: the values it keeps */
    int64_t first_row;                       /* of a matrix that is part of a fused one */
    struct compressed_tensor *compressed;    /* NULL: plain floats; owned */
};

struct source_hf {
    struct model_source base;
    char *files[N_SIDE_FILES]; /* NULL: absent */
    size_t file_sizes[N_SIDE_FILES];
    struct safetensors **shards;
    size_t n_shards;
    size_t shards_capacity;
    struct found_tensor *tensors; /* in the order of tensors_at */
};

static void hf_file(struct model_source *s, const char *name, const char **data, size_t *size) {
    const struct source_hf *hf = (const struct source_hf *)s;
    *data = NULL;
    *size = 0;
    for (size_t i = 0; i < N_SIDE_FILES; i++) {
        if (strcmp(name, side_files[i].name) == 0) {
            *data = hf->files[i];
            *size = hf->file_sizes[i];
        }
    }
}

static pdvm_status hf_read_rows(struct model_source *s, const struct tensor_info *t, int64_t begin,
                                int64_t n, float *out, pdvm_error *err) {
    const struct source_hf *hf = (const struct source_hf *)s;
    const struct found_tensor *found = &hf->tensors[tensors_index(&s->config, t->role, t->layer)];
    if (found->compressed)
        return compressed_tensor_read_rows(found->compressed, found->first_row + begin, n, out,
                                           err);
    return safetensors_to_float(found->shard, found->tensor, (found->first_row + begin) * t->cols,
                                n * t->cols, out, err);
}

/* The bytes of a plain tensor, or of its rows in a fused one. */
static const uint8_t *bytes_of(const struct found_tensor *found, const struct tensor_info *t,
                               size_t *size) {
    size_t row = (size_t)t->cols * safetensors_dtype_size(found->tensor->dtype);
    *size = (size_t)t->rows * row;
    return found->tensor->data + (size_t)found->first_row * row;
}

static void hf_stored(struct model_source *s, const struct tensor_info *t, const char **coding,
                      uint64_t *bytes) {
    const struct source_hf *hf = (const struct source_hf *)s;
    const struct found_tensor *found = &hf->tensors[tensors_index(&s->config, t->role, t->layer)];
    const struct compressed_tensor *c = found->compressed;
    size_t size;
    if (c) {
        *coding = c->coding;
        *bytes = compressed_tensor_bytes(c);
        if (t->rows != c->rows) *bytes = *bytes / (uint64_t)c->rows * (uint64_t)t->rows;
        return;
    }
    bytes_of(found, t, &size);
    *coding = safetensors_dtype_name(found->tensor->dtype);
    *bytes = size;
}

static void hf_release(struct model_source *s, const struct tensor_info *t) {
    const struct source_hf *hf = (const struct source_hf *)s;
    const struct found_tensor *found = &hf->tensors[tensors_index(&s->config, t->role, t->layer)];
    size_t size;
    if (found->compressed) {
        compressed_tensor_release(found->compressed);
        return;
    }
    const uint8_t *data = bytes_of(found, t, &size);
    pd_map_release(data, size);
}

static void hf_close(struct model_source *s) {
    struct source_hf *hf = (struct source_hf *)s;
    for (size_t i = 0; i < hf->n_shards; i++) safetensors_close(hf->shards[i]);
    for (size_t i = 0; i < N_SIDE_FILES; i++) free(hf->files[i]);
    free(hf->shards);
    for (size_t i = 0; hf->tensors && i < tensors_count(&s->config); i++)
        free(hf->tensors[i].compressed);
    free(hf->tensors);
    free(s->path);
    free(hf);
}

static const struct model_source_ops hf_ops = {
    .read_rows = hf_read_rows,
    .file = hf_file,
    .stored = hf_stored,
    .release = hf_release,
    .close = hf_close,
};

/* Whether dir/name exists; everything but "no" is left to the opening of the file. */
static pdvm_status exists(const char *dir, const char *name, bool *out, pdvm_error *err) {
    char *path;
    struct stat st;
    PD_TRY(pd_path_join(dir, name, &path, err));
    *out = stat(path, &st) == 0 || errno != ENOENT;
    free(path);
    return PDVM_OK;
}

static pdvm_status read_side_file(struct source_hf *hf, size_t i, pdvm_error *err) {
    bool there;
    char *path;
    PD_TRY(exists(hf->base.path, side_files[i].name, &there, err));
    if (!there) return PDVM_OK;
    // The one before, tokenizer.json, makes it superfluous.
    if (strcmp(side_files[i].name, SOURCE_TOKENIZER_MODEL) == 0 && hf->files[i - 1]) return PDVM_OK;
    PD_TRY(pd_path_join(hf->base.path, side_files[i].name, &path, err));
    pdvm_status status =
        pd_read_file(path, side_files[i].max, &hf->files[i], &hf->file_sizes[i], err);
    free(path);
    return status;
}

static pdvm_status read_config(struct source_hf *hf, pdvm_error *err) {
    const char *dir = hf->base.path;
    const char *text;
    size_t size;
    char *path;
    hf_file(&hf->base, SOURCE_CONFIG, &text, &size);
    PD_TRY(pd_path_join(dir, SOURCE_CONFIG, &path, err));
    pdvm_status status = model_config_parse(path, text, size, &hf->base.config, err);
    free(path);
    if (status != PDVM_OK) return status;

    hf_file(&hf->base, SOURCE_GENERATION_CONFIG, &text, &size);
    if (!text) return PDVM_OK;
    PD_TRY(pd_path_join(dir, SOURCE_GENERATION_CONFIG, &path, err));
    status = model_config_parse_generation(path, text, size, &hf->base.config, err);
    free(path);
    return status;
}

static pdvm_status open_shard(struct source_hf *hf, const char *name, pdvm_error *err) {
    char *path;
    PD_TRY(pd_grow(&hf->shards, &hf->shards_capacity, hf->n_shards + 1,
                   sizeof(struct safetensors *), "the list of shards", err));
    PD_TRY(pd_path_join(hf->base.path, name, &path, err));
    pdvm_status status = safetensors_open(path, &hf->shards[hf->n_shards], err);
    free(path);
    if (status == PDVM_OK) hf->n_shards++;
    return status;
}

/* An index from somebody else must not reach files outside the model's directory. */
static bool plain_file_name(const char *name) {
    return name[0] != 0 && name[0] != '.' && !strchr(name, '/') &&
           pd_ends_with(name, ".safetensors");
}

/* Opens every shard that the index names, and finds each tensor of `map` where it says. */
static pdvm_status open_indexed(struct source_hf *hf, const char *path, json_t *map, json_t *opened,
                                pdvm_error *err) {
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name || !plain_file_name(name))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: field \"weight_map\": \"%.200s\" must name a .safetensors file in "
                           "the same directory, not %.200s",
                           path, tensor, name ? name : pd_json_kind(value));
        const json_t *shard = json_object_get(opened, name);
        if (!shard) {
            pdvm_status status = open_shard(hf, name, err);
            if (status != PDVM_OK) return pd_prefix(err, status, "%s", WEIGHTS_INDEX);
            if (json_object_set_new(opened, name, json_integer((json_int_t)hf->n_shards - 1)) != 0)
                return pd_fail_memory(err, strlen(name), "the list of shards");
            shard = json_object_get(opened, name);
        }
        const struct safetensors *st = hf->shards[json_integer_value(shard)];
        if (!safetensors_find(st, tensor))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: field \"weight_map\": tensor \"%.200s\" is not in %s", path, tensor,
                           safetensors_path(st));
    }
    return PDVM_OK;
}

static pdvm_status open_index(struct source_hf *hf, pdvm_error *err) {
    char *path, *text = NULL;
    size_t size;
    json_t *root = NULL, *map = NULL;
    PD_TRY(pd_path_join(hf->base.path, WEIGHTS_INDEX, &path, err));
    pdvm_status status = pd_read_file(path, MAX_INDEX, &text, &size, err);
    if (status == PDVM_OK) status = pd_json_parse_object(path, text, size, &root, err);
    if (status == PDVM_OK) status = pd_json_object(path, root, "weight_map", true, &map, err);
    if (status == PDVM_OK) {
        json_t *opened = json_object();
        status = opened ? open_indexed(hf, path, map, opened, err)
                        : pd_fail_memory(err, sizeof *opened, "the list of shards");
        json_decref(opened);
    }
    json_decref(root);
    free(text);
    free(path);
    return status;
}

/* What a directory holds, to choose its weights and to say why there are none. */
struct listing {
    size_t n_safetensors;
    char *safetensors; /* the name of one */
    bool has_bin, has_gguf, has_pdvm;
};

static pdvm_status list_directory(const char *path, struct listing *out, pdvm_error *err) {
    memset(out, 0, sizeof *out);
    DIR *dir = opendir(path);
    if (!dir) return pd_fail_errno(err, path, "cannot open the directory");
    pdvm_status status = PDVM_OK;
    for (struct dirent *e = readdir(dir); e && status == PDVM_OK; e = readdir(dir)) {
        const char *name = e->d_name;
        if (name[0] == '.') continue;
        out->has_bin |=
            pd_ends_with(name, ".bin") || pd_ends_with(name, ".pth") || pd_ends_with(name, ".pt");
        out->has_gguf |= pd_ends_with(name, ".gguf");
        out->has_pdvm |= pd_ends_with(name, ".pdvm");
        if (!pd_ends_with(name, ".safetensors")) continue;
        out->n_safetensors++;
        if (!out->safetensors) {
            out->safetensors = strdup(name);
            if (!out->safetensors) status = pd_fail_memory(err, strlen(name) + 1, "a file name");
        }
    }
    closedir(dir);
    return status;
}

static pdvm_status no_config(const char *path, const struct listing *l, pdvm_error *err) {
    const char *hint = "give a Hugging Face model directory (config.json and safetensors) or a "
                       ".pdvm file";
    if (l->has_pdvm)
        hint = "but there are .pdvm files: give the name of one";
    else if (l->has_gguf)
        hint = "but there are GGUF files: give the name of one";
    return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: no %s in this directory; %s", path,
                   SOURCE_CONFIG, hint);
}

static pdvm_status open_only_shard(struct source_hf *hf, const struct listing *l, pdvm_error *err) {
    const char *path = hf->base.path;
    if (l->n_safetensors == 1) return open_shard(hf, l->safetensors, err);
    if (l->n_safetensors > 1)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: %zu .safetensors files, but neither %s nor %s to say which belong "
                       "together",
                       path, l->n_safetensors, WEIGHTS, WEIGHTS_INDEX);
    if (l->has_bin)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: the weights are a PyTorch checkpoint, which is not supported; save the "
                       "model as safetensors (transformers: save_pretrained)",
                       path);
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: no weights: neither %s nor %s is there", path,
                   WEIGHTS, WEIGHTS_INDEX);
}

static pdvm_status open_weights(struct source_hf *hf, const struct listing *l, pdvm_error *err) {
    bool single, index;
    PD_TRY(exists(hf->base.path, WEIGHTS, &single, err));
    if (single) return open_shard(hf, WEIGHTS, err);
    PD_TRY(exists(hf->base.path, WEIGHTS_INDEX, &index, err));
    if (index) return open_index(hf, err);
    return open_only_shard(hf, l, err);
}

static pdvm_status check_shape(const struct found_tensor *found, const struct tensor_info *info,
                               pdvm_error *err) {
    const struct safetensors_tensor *t = found->tensor;
    bool ok = info->is_matrix
                  ? t->n_dims == 2 && t->dims[0] == info->rows && t->dims[1] == info->cols
                  : t->n_dims == 1 && t->dims[0] == info->cols;
    if (ok) return PDVM_OK;
    char shape[SAFETENSORS_MAX_DIMS * 22 + 1] = "";
    char expected[64];
    for (int i = 0, n = 0; i < t->n_dims; i++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%" PRId64, i ? ", " : "", t->dims[i]);
    if (info->is_matrix)
        snprintf(expected, sizeof expected, "%" PRId64 ", %" PRId64, info->rows, info->cols);
    else
        snprintf(expected, sizeof expected, "%" PRId64, info->cols);
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: tensor \"%s\" has shape [%s], but " SOURCE_CONFIG " asks for [%s]",
                   safetensors_path(found->shard), info->name, shape, expected);
}

static bool has_tensor(const struct source_hf *hf, const char *name) {
    for (size_t i = 0; i < hf->n_shards; i++)
        if (safetensors_find(hf->shards[i], name)) return true;
    return compressed_tensors_has(hf->shards, hf->n_shards, name);
}

static pdvm_status find_tensor(const struct source_hf *hf, const struct tensor_info *part,
                               struct found_tensor *out, pdvm_error *err) {
    struct tensor_info whole, *info = &whole;
    int64_t first_row = 0;
    bool fused = tensors_fused(&hf->base.config, part->role, part->layer, &whole, &first_row);
    /* A checkpoint that has been taken apart has the parts; which to believe if it has both? */
    if (fused && has_tensor(hf, part->name)) {
        if (has_tensor(hf, whole.name))
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\" is in \"%s\" too",
                           hf->base.path, part->name, whole.name);
        fused = false;
    }
    if (!fused) {
        whole = *part;
        first_row = 0;
    }
    PD_TRY(compressed_tensor_open(hf->shards, hf->n_shards, info, &out->compressed, err));
    if (out->compressed) {
        out->shard = out->compressed->values.file;
        out->tensor = out->compressed->values.tensor;
        out->first_row = first_row;
        return PDVM_OK;
    }
    for (size_t i = 0; i < hf->n_shards; i++) {
        const struct safetensors_tensor *t = safetensors_find(hf->shards[i], info->name);
        if (!t) continue;
        if (out->tensor)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\" is in %s too",
                           safetensors_path(hf->shards[i]), info->name,
                           safetensors_path(out->shard));
        *out = (struct found_tensor){hf->shards[i], t, first_row, NULL};
    }
    if (!out->tensor)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%s\" is missing%s", hf->base.path,
                       info->name,
                       info->role == TENSOR_HEAD
                           ? " (and \"tie_word_embeddings\" is not true in " SOURCE_CONFIG ")"
                           : "");
    enum safetensors_dtype dtype = out->tensor->dtype;
    if (dtype != SAFETENSORS_F32 && dtype != SAFETENSORS_F16 && dtype != SAFETENSORS_BF16 &&
        dtype != SAFETENSORS_F64)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" has dtype %s; weights must be F32, F16, BF16 or F64",
                       safetensors_path(out->shard), info->name, safetensors_dtype_name(dtype));
    return check_shape(out, info, err);
}

static pdvm_status find_tensors(struct source_hf *hf, pdvm_error *err) {
    const struct model_config *config = &hf->base.config;
    size_t n = tensors_count(config);
    struct tensor_info info;
    /* The last layer first: an absurd number of layers must not cost an absurd table. */
    struct found_tensor last = {NULL, NULL, 0, NULL};
    tensors_describe(config, TENSOR_DOWN, config->n_layers - 1, &info);
    PD_TRY(find_tensor(hf, &info, &last, err));
    free(last.compressed);
    PD_TRY(pd_calloc(&hf->tensors, n, sizeof *hf->tensors, "the table of tensors", err));
    for (size_t i = 0; i < n; i++) {
        tensors_at(config, i, &info);
        PD_TRY(find_tensor(hf, &info, &hf->tensors[i], err));
    }
    return PDVM_OK;
}

/* The layer's number in "model.layers.3.anything"; false for other names. */
static bool layer_of(const char *name, uint32_t *layer) {
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return false;
    const char *p = name + sizeof prefix - 1, *digits = p;
    *layer = 0;
    for (; *p >= '0' && *p <= '9' && p - digits < 9; p++)
        *layer = *layer * 10 + (uint32_t)(*p - '0');
    return p > digits && *p == '.';
}

static bool names_tensor(const char *name, const char *tensor) {
    return strcmp(name, tensor) == 0 || compressed_tensors_is_part(name, tensor);
}

/*
 * Tensors that the configuration doesn't ask for are left alone, unless they belong to a layer:
 * then the results would be wrong without them.
 */
static pdvm_status check_unused(const struct source_hf *hf, const struct safetensors *st,
                                const char *name, pdvm_error *err) {
    if (pd_ends_with(name, ".rotary_emb.inv_freq")) return PDVM_OK;
    if (compressed_tensors_is_cache_scale(name)) return PDVM_OK;
    const struct model_config *config = &hf->base.config;
    struct tensor_info info;
    int64_t row;
    uint32_t layer = 0;
    bool in_layer = layer_of(name, &layer);
    if (in_layer && layer >= config->n_layers)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%.200s\" is of layer %u, but " SOURCE_CONFIG
                       " asks for %u layers (num_hidden_layers)",
                       safetensors_path(st), name, layer, config->n_layers);
    for (int role = TENSOR_INPUT_NORM; in_layer && role <= TENSOR_DOWN; role++) {
        if (!tensors_has(config, (enum tensor_role)role)) continue;
        tensors_describe(config, (enum tensor_role)role, layer, &info);
        if (names_tensor(name, info.name)) return PDVM_OK;
        if (tensors_fused(config, (enum tensor_role)role, layer, &info, &row) &&
            names_tensor(name, info.name))
            return PDVM_OK;
    }
    if (pd_ends_with(name, ".bias"))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%.200s\": a bias that " SOURCE_CONFIG
                       " does not ask for is not supported",
                       safetensors_path(st), name);
    if (!in_layer) return PDVM_OK;
    return pd_fail(
        err, PDVM_ERR_UNSUPPORTED,
        "%s: tensor \"%.200s\" is part of a layer, but not of a %s layer as " SOURCE_CONFIG
        " describes it",
        safetensors_path(st), name, config->architecture);
}

/*
 * Headers say names, shapes and sizes, not values. A few bytes of each tensor tell two trainings
 * of one shape apart without reading gigabytes.
 */
static uint64_t fingerprint(const struct source_hf *hf) {
    uint64_t hash = pd_hash(PD_HASH_INIT, hf->files[0], hf->file_sizes[0]);
    for (size_t i = 0; i < hf->n_shards; i++) {
        uint64_t header = safetensors_header_hash(hf->shards[i]);
        hash = pd_hash(hash, &header, sizeof header);
    }
    size_t n = tensors_count(&hf->base.config);
    for (size_t i = 0; i < n; i++) {
        const struct safetensors_tensor *t = hf->tensors[i].tensor;
        size_t sample = t->size < 64 ? t->size : 64;
        hash = pd_hash(hash, &t->size, sizeof t->size);
        hash = pd_hash(hash, t->data, sample);
        hash = pd_hash(hash, t->data + (t->size - sample) / 2, sample);
        hash = pd_hash(hash, t->data + t->size - sample, sample);
    }
    return hash;
}

static pdvm_status open_all(struct source_hf *hf, const struct listing *l, pdvm_error *err) {
    for (size_t i = 0; i < N_SIDE_FILES; i++) PD_TRY(read_side_file(hf, i, err));
    if (!hf->files[0]) return no_config(hf->base.path, l, err);
    PD_TRY(read_config(hf, err));
    PD_TRY(open_weights(hf, l, err));
    for (size_t i = 0; i < hf->n_shards; i++) {
        const struct safetensors *st = hf->shards[i];
        for (size_t j = 0; j < safetensors_count(st); j++)
            PD_TRY(check_unused(hf, st, safetensors_at(st, j)->name, err));
    }
    PD_TRY(find_tensors(hf, err));
    hf->base.fingerprint = fingerprint(hf);
    return PDVM_OK;
}

pdvm_status source_open_hf(const char *path, struct model_source **out, pdvm_error *err) {
    struct source_hf *hf;
    struct listing listing;
    *out = NULL;
    PD_TRY(pd_calloc(&hf, 1, sizeof *hf, "a model source", err));
    hf->base.ops = &hf_ops;
    hf->base.kind = "Hugging Face directory";
    hf->base.path = strdup(path);
    if (!hf->base.path) {
        free(hf);
        return pd_fail_memory(err, strlen(path) + 1, "a path");
    }
    pdvm_status status = list_directory(path, &listing, err);
    if (status == PDVM_OK) status = open_all(hf, &listing, err);
    free(listing.safetensors);
    if (status == PDVM_OK)
        *out = &hf->base;
    else
        hf_close(&hf->base);
    return status;
}
