/**
 * The one or several GGUF files of a model. Split models are files NAME-00001-of-00003.gguf, the
 * first of which holds the metadata; each tells its number and their count by the keys split.no
 * (from 0), split.count and split.tensors.count.
 */
#ifndef PDVM_IO_GGUF_SET_H
#define PDVM_IO_GGUF_SET_H

#include "io/gguf.h"

/** A tensor and the file that it is in. */
struct gguf_entry {
    const struct gguf *file;
    const struct gguf_tensor *tensor;
};

/** Open files. */
struct gguf_set {
    struct gguf **files; /**< [n_files]; the first has the metadata */
    size_t n_files;
    struct gguf_entry *entries; /**< tensors of all files [n_entries], sorted by name */
    size_t n_entries;
};

/**
 * Opens a file and, if it is the first of a split model, the others beside it; freed with
 * gguf_set_close. PDVM_ERR_FORMAT names what is missing, does not fit or is there twice, and
 * PDVM_ERR_ARGUMENT the first file if a later one was given.
 */
pdvm_status gguf_set_open(const char *path, struct gguf_set *out, pdvm_error *err);

/** The same for one file in memory; see gguf_open_memory. */
pdvm_status gguf_set_open_memory(const char *name, const void *data, size_t size,
                                 struct gguf_set *out, pdvm_error *err);

/**
 * The path of file `number` (from 1) of the split model whose first file is named `path`, freed
 * with free(); *out is NULL if there is none: a name of another form, or a smaller model.
 */
pdvm_status gguf_set_path(const char *path, unsigned number, char **out, pdvm_error *err);

/** Closes all files. A zeroed set is allowed. */
void gguf_set_close(struct gguf_set *set);

/** The tensor of a name, or NULL. */
const struct gguf_entry *gguf_set_find(const struct gguf_set *set, const char *name);

#endif
