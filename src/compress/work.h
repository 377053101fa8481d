/**
 * The finished layers of a calibrated conversion, kept beside the output so that an interrupted run
 * can go on: OUTPUT.work/layer-0000.pdvm and so on, each a .pdvm file of that layer's matrices. The
 * final file is put together from them.
 */
#ifndef PDVM_COMPRESS_WORK_H
#define PDVM_COMPRESS_WORK_H

#include "base/notify.h"
#include "compress/report.h"

/** A directory of finished layers. Zero-initialise, free with work_free. */
struct work {
    char *dir;
    char key[17];      /**< hash of everything that the layers depend on, in hexadecimal */
    uint32_t n_layers; /**< of the model */
    uint32_t n_done;   /**< layers that are there, from 0 on */
    json_t *shared;    /**< what the first layer's file says of the whole run; NULL: nothing */
    uint32_t open;     /**< number of the layer that `layer` holds */
    struct container *layer; /**< the layer read last; NULL: none */
    json_t *metadata;        /**< its metadata */
};

/**
 * Opens or makes the directory for `output`. With `resume` its layers are counted; layers of
 * another key are PDVM_ERR_ARGUMENT. Without it, layers of an earlier run are removed.
 */
pdvm_status work_open(const char *output, uint64_t key, uint32_t n_layers, bool resume,
                      const struct pd_notify *notify, struct work *out, pdvm_error *err);

/** Removes the layers and the directory (nothing else in it), when they are not needed any more. */
void work_remove(struct work *w);

/** Frees the handle; the directory stays, unless it is empty. */
void work_free(struct work *w);

/** A layer being written. */
struct work_writer {
    struct container_writer *file;
    json_t *matrices;
};

/** Starts the file of a layer. */
pdvm_status work_begin_layer(const struct work *w, uint32_t layer, struct work_writer *out,
                             pdvm_error *err);

/** Appends a matrix and what is to be reported of it. */
pdvm_status work_write_matrix(struct work_writer *out, const struct mdcsr *m,
                              const struct report_tensor *t, pdvm_error *err);

/** Ends the file, which then counts as done. `shared` (borrowed, may be NULL) goes with it. */
pdvm_status work_end_layer(struct work *w, struct work_writer *out, json_t *shared,
                           pdvm_error *err);

/** Drops an unfinished layer; a zeroed writer is allowed. */
void work_abort_layer(struct work_writer *out);

/**
 * Reads a matrix of a finished layer (freed with mdcsr_free before the next layer is read) and what
 * is to be reported of it; t->tensor is set.
 */
pdvm_status work_read_matrix(struct work *w, struct report_tensor *t, struct mdcsr *m,
                             pdvm_error *err);

#endif
