#include "io/gguf_set.h"

#include "base/alloc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_NUMBER "split.no"
#define KEY_COUNT "split.count"
#define KEY_TENSORS "split.tensors.count"
#define MAX_FILES 65535

/* "-00001-of-00003.gguf" */
#define SUFFIX_FORMAT "-%05u-of-%05u.gguf"
#define SUFFIX_SIZE 32

static int compare_entries(const void *a, const void *b) {
    const struct gguf_entry *x = a, *y = b;
    return strcmp(x->tensor->name, y->tensor->name);
}

/* Sorts the tensors of all files by their names, of which none may occur twice. */
static pdvm_status index_tensors(struct gguf_set *set, pdvm_error *err) {
    size_t n = 0;
    for (size_t i = 0; i < set->n_files; i++) n += gguf_tensor_count(set->files[i]);
    PD_TRY(pd_calloc(&set->entries, n, sizeof *set->entries, "the table of tensors", err));
    for (size_t i = 0; i < set->n_files; i++) {
        for (size_t j = 0; j < gguf_tensor_count(set->files[i]); j++)
            set->entries[set->n_entries++] =
                (struct gguf_entry){set->files[i], gguf_tensor_at(set->files[i], j)};
    }
    if (n > 0) qsort(set->entries, n, sizeof *set->entries, compare_entries);
    for (size_t i = 1; i < n; i++) {
        const struct gguf_entry *a = &set->entries[i - 1], *b = &set->entries[i];
        if (compare_entries(a, b) == 0)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%.200s\" is in %s too",
                           gguf_path(b->file), b->tensor->name, gguf_path(a->file));
    }
    return PDVM_OK;
}

/* The path of file `number` (from 1) of the set that `path`, the first one, belongs to. */
static pdvm_status path_of(const char *path, unsigned number, unsigned count, char **out,
                           pdvm_error *err) {
    char suffix[SUFFIX_SIZE];
    snprintf(suffix, sizeof suffix, SUFFIX_FORMAT, 1u, count);
    size_t stem = strlen(path) - strlen(suffix);
    snprintf(suffix, sizeof suffix, SUFFIX_FORMAT, number, count);
    size_t size = stem + strlen(suffix) + 1;
    PD_TRY(pd_calloc(out, size, 1, "a path", err));
    memcpy(*out, path, stem);
    memcpy(*out + stem, suffix, size - stem);
    return PDVM_OK;
}

static bool has_suffix(const char *path, unsigned number, unsigned count) {
    char suffix[SUFFIX_SIZE];
    snprintf(suffix, sizeof suffix, SUFFIX_FORMAT, number, count);
    size_t n = strlen(path), m = strlen(suffix);
    return n > m && strcmp(path + n - m, suffix) == 0;
}

pdvm_status gguf_set_path(const char *path, unsigned number, char **out, pdvm_error *err) {
    static const char example[] = "-00001-of-00003.gguf";
    size_t size = strlen(path);
    *out = NULL;
    if (size < sizeof example) return PDVM_OK;
    unsigned count = (unsigned)strtoul(path + size - strlen("00003.gguf"), NULL, 10);
    if (count > MAX_FILES || number < 1 || number > count || !has_suffix(path, 1, count))
        return PDVM_OK;
    return path_of(path, number, count, out, err);
}

/* Number and count that a file tells of itself. */
static pdvm_status read_split(const struct gguf *g, int64_t *number, int64_t *count,
                              pdvm_error *err) {
    *number = 0;
    *count = 1;
    PD_TRY(gguf_get_int(g, KEY_COUNT, false, 0, MAX_FILES, count, err));
    PD_TRY(gguf_get_int(g, KEY_NUMBER, *count > 1, 0, MAX_FILES, number, err));
    if (*count > 1 && *number >= *count)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: key \"" KEY_NUMBER "\" is %" PRId64 ", but \"" KEY_COUNT
                       "\" is %" PRId64,
                       gguf_path(g), *number, *count);
    return PDVM_OK;
}

static pdvm_status open_next(struct gguf_set *set, int64_t count, pdvm_error *err) {
    char *path;
    int64_t number, other_count;
    size_t i = set->n_files;
    PD_TRY(path_of(gguf_path(set->files[0]), (unsigned)i + 1, (unsigned)count, &path, err));
    pdvm_status status = gguf_open(path, &set->files[i], err);
    free(path);
    if (status != PDVM_OK)
        return pd_prefix(err, status, "file %zu of %" PRId64 " of a split model", i + 1, count);
    set->n_files++;
    PD_TRY(read_split(set->files[i], &number, &other_count, err));
    if (number != (int64_t)i || other_count != count)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: it says to be file %" PRId64 " of %" PRId64 " (\"" KEY_NUMBER
                       "\" + 1, \"" KEY_COUNT "\"), but its name says %zu of "
                       "%" PRId64,
                       gguf_path(set->files[i]), number + 1, other_count, i + 1, count);
    return PDVM_OK;
}

/* Opens the other files of a split model. */
static pdvm_status open_others(struct gguf_set *set, int64_t number, int64_t count,
                               pdvm_error *err) {
    const char *path = gguf_path(set->files[0]);
    if (number > 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: this is file %" PRId64 " of %" PRId64
                       " of a split model; give the first, named ..." SUFFIX_FORMAT,
                       path, number + 1, count, 1u, (unsigned)count);
    if (!has_suffix(path, 1, (unsigned)count))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: the first of %" PRId64 " files (key \"" KEY_COUNT
                       "\"), but its name does not end in " SUFFIX_FORMAT
                       ", so the others cannot be found",
                       path, count, 1u, (unsigned)count);
    struct gguf **files;
    PD_TRY(pd_calloc(&files, (size_t)count, sizeof(struct gguf *), "the list of files", err));
    files[0] = set->files[0];
    free(set->files);
    set->files = files;
    while (set->n_files < (size_t)count) PD_TRY(open_next(set, count, err));
    return PDVM_OK;
}

static pdvm_status complete(struct gguf_set *set, bool in_memory, pdvm_error *err) {
    const struct gguf *first = set->files[0];
    int64_t number, count, n_tensors = -1;
    PD_TRY(read_split(first, &number, &count, err));
    if (count > 1 && in_memory)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: part of a split model", gguf_path(first));
    if (count > 1) {
        PD_TRY(gguf_get_int(first, KEY_TENSORS, true, 0, INT64_MAX, &n_tensors, err));
        PD_TRY(open_others(set, number, count, err));
    }
    PD_TRY(index_tensors(set, err));
    if (count > 1 && (uint64_t)n_tensors != set->n_entries)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: key \"" KEY_TENSORS "\" is %" PRId64 ", but the %" PRId64
                       " files have %zu tensors",
                       gguf_path(set->files[0]), n_tensors, count, set->n_entries);
    return PDVM_OK;
}

static pdvm_status open_first(const char *path, const void *data, size_t size, struct gguf_set *set,
                              pdvm_error *err) {
    memset(set, 0, sizeof *set);
    PD_TRY(pd_calloc(&set->files, 1, sizeof(struct gguf *), "the list of files", err));
    pdvm_status status = data ? gguf_open_memory(path, data, size, &set->files[0], err)
                              : gguf_open(path, &set->files[0], err);
    if (status == PDVM_OK) {
        set->n_files = 1;
        status = complete(set, data != NULL, err);
    }
    if (status != PDVM_OK) gguf_set_close(set);
    return status;
}

pdvm_status gguf_set_open(const char *path, struct gguf_set *out, pdvm_error *err) {
    return open_first(path, NULL, 0, out, err);
}

pdvm_status gguf_set_open_memory(const char *name, const void *data, size_t size,
                                 struct gguf_set *out, pdvm_error *err) {
    return open_first(name, data ? data : "", size, out, err);
}

void gguf_set_close(struct gguf_set *set) {
    for (size_t i = 0; i < set->n_files; i++) gguf_close(set->files[i]);
    free(set->files);
    free(set->entries);
    memset(set, 0, sizeof *set);
}

const struct gguf_entry *gguf_set_find(const struct gguf_set *set, const char *name) {
    const struct gguf_tensor tensor = {.name = name};
    const struct gguf_entry wanted = {.tensor = &tensor};
    return bsearch(&wanted, set->entries, set->n_entries, sizeof *set->entries, compare_entries);
}
