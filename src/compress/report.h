/**
 * What became of a model's weights, tensor by tensor, and sums by kind of layer: the facts behind
 * the tables that convert and inspect print.
 */
#ifndef PDVM_COMPRESS_REPORT_H
#define PDVM_COMPRESS_REPORT_H

#include "io/json.h"
#include "mdcsr/container.h"
#include "model/source.h"

/** One tensor. Errors are sums of squares, NAN where nobody knows them. */
struct report_tensor {
    struct tensor_info tensor;
    char coding[48];         /**< "bitmap int8", "dense lut4 learned/64", "BF16" */
    int64_t n_zeros;         /**< exact zeros */
    int64_t source_zeros;    /**< of them, those that the source had; -1: unknown */
    double sum_squares;      /**< of the source's values */
    double pruning_squares;  /**< of what pruning took away */
    double rounding_squares; /**< of the difference that solving and coding the rest made */
    /** ||(W - W') X|| / ||W X|| over the inputs X of the calibration text; NAN without one. */
    double output_error;
    uint64_t bytes; /**< as stored, all parts */
};

/** All tensors of a model, in its order. Zero-initialise before use. */
struct report {
    struct report_tensor *tensors;
    size_t n;
    size_t capacity;
    bool pruned; /**< a pruning method ran: source and result may differ in zeros */
};

/** The lines of a table. */
enum report_line {
    REPORT_EMBED,
    REPORT_Q,
    REPORT_K,
    REPORT_V,
    REPORT_O,
    REPORT_GATE,
    REPORT_UP,
    REPORT_DOWN,
    REPORT_HEAD,
    REPORT_NORMS, /**< the vectors */
    REPORT_TOTAL,
    REPORT_N_LINES
};

/** Sums over the tensors of one line; n_tensors is 0 for a line that the model does not have. */
struct report_sum {
    size_t n_tensors;
    int64_t n_weights;
    int64_t n_zeros;
    int64_t source_zeros; /**< -1: unknown */
    uint64_t bytes;
    /** Relative root mean square errors ||W - W'|| / ||W||, both relative to the source; NAN:
     * unknown. error^2 = pruning^2 + rounding^2. */
    double error, pruning_error, rounding_error;
    /** Root mean square of the matrices' output errors, weighted by their size; NAN: unknown. */
    double output_error;
    char coding[160]; /**< the codings in use, "bitmap int8, dense int8" */
};

/** Short name of a line: "embed", "q", ..., "norms", "total". */
const char *report_line_name(enum report_line line);

/** The line that a role's tensors stand in. */
enum report_line report_line_of(enum tensor_role role);

/** Appends a tensor (copied). */
pdvm_status report_add(struct report *r, const struct report_tensor *t, pdvm_error *err);

/** Frees the tensors and zeroes the report. */
void report_free(struct report *r);

/** Sums of one line. */
void report_sum(const struct report *r, enum report_line line, struct report_sum *out);

/** Bits stored per weight; 0 for no weights. */
double report_bits(uint64_t bytes, int64_t n_weights);

/** Sets t's coding, "bitmap int8" or "dense lut4 learned/64". */
void report_set_coding(struct report_tensor *t, enum mdcsr_index index, enum mdcsr_values values,
                       enum mdcsr_codebook codebook, uint32_t group);

/** Sets what t's encoded matrix says of itself: coding, zeros and bytes. */
void report_set_encoded(struct report_tensor *t, const struct mdcsr *m,
                        const struct mdcsr_report *encoded);

/**
 * The report as JSON: "total", "roles" (an object by line) and "tensors" (an array). New
 * reference, NULL if memory runs out. Unknown numbers are null.
 */
json_t *report_json(const struct report *r);

/** The metadata key under which convert leaves what only it can know, and the reader finds it. */
#define REPORT_METADATA "pdvm.convert"

/**
 * Puts into `object` what the container itself does not hold of each tensor (norm, zeros of the
 * source, errors of pruning and of rounding), as "matrices". False if memory runs out.
 */
bool report_to_metadata(const struct report *r, json_t *object);

/**
 * Fills a report (zeroed) from an open file whose tensors fit `config`. `metadata` is the parsed
 * REPORT_METADATA object, or NULL: then errors can't be summed. PDVM_ERR_FORMAT for malformed
 * metadata.
 */
pdvm_status report_from_container(const struct container *c, const struct model_config *config,
                                  const char *path, const json_t *metadata, struct report *out,
                                  pdvm_error *err);

#endif
