/**
 * Where a model's weights come from, behind one interface: a Hugging Face directory or a GGUF file
 * (float matrices) or a .pdvm file (MdCSR matrices). More sources come through the same door.
 */
#ifndef PDVM_MODEL_SOURCE_H
#define PDVM_MODEL_SOURCE_H

#include "mdcsr/mdcsr.h"
#include "model/config.h"
#include "model/tensors.h"

/** Names of the files that travel with a model, without directory; see source_file. */
#define SOURCE_CONFIG "config.json"
#define SOURCE_TOKENIZER "tokenizer.json"
/** A SentencePiece model, which stands in where there is no tokenizer.json. */
#define SOURCE_TOKENIZER_MODEL "tokenizer.model"
#define SOURCE_TOKENIZER_CONFIG "tokenizer_config.json"
#define SOURCE_GENERATION_CONFIG "generation_config.json"
#define SOURCE_CHAT_TEMPLATE "chat_template.jinja"

struct model_source;
struct tokenizer;

/** What a source does; `self` is the implementation's state. */
struct model_source_ops {
    /** Float32 values of rows [begin, begin + n) of a tensor (vectors are one row), which it has. */
    pdvm_status (*read_rows)(struct model_source *s, const struct tensor_info *t, int64_t begin,
                             int64_t n, float *out, pdvm_error *err);
    /** The stored MdCSR matrix (borrowing from the source); NULL ops member: has none. */
    pdvm_status (*read_mdcsr)(struct model_source *s, const struct tensor_info *t,
                              struct mdcsr *out, pdvm_error *err);
    /** Contents of a side file, or *data NULL if the source has none of that name. Borrowed. */
    void (*file)(struct model_source *s, const char *name, const char **data, size_t *size);
    /** How a tensor's values are stored ("BF16", "int8"; borrowed), and its bytes in the source. */
    void (*stored)(struct model_source *s, const struct tensor_info *t, const char **coding,
                   uint64_t *bytes);
    /** Drops what reading a tensor brought into memory. No one may be reading it just then. */
    void (*release)(struct model_source *s, const struct tensor_info *t);
    void (*close)(struct model_source *s);
};

/** An open source. Implementations embed this as their first member. */
struct model_source {
    const struct model_source_ops *ops;
    const char *kind; /**< "Hugging Face directory", "GGUF file", "pdvm file" */
    char *path;       /**< as given; owned */
    struct model_config config;
    uint64_t fingerprint; /**< of names, shapes, codings, sizes and samples of the weights */
};

/**
 * Opens a path of any known kind: a directory with config.json, a GGUF or a .pdvm file (by its
 * contents, not its name). Every tensor of the configuration must be there with the right shape; what is
 * missing or extra is named. PDVM_ERR_UNSUPPORTED for anything else, listing what is known.
 */
pdvm_status source_open(const char *path, struct model_source **out, pdvm_error *err);

/** Closes it. NULL is allowed. */
void source_close(struct model_source *s);

/** True if the source holds MdCSR matrices (and read_mdcsr may be called). */
bool source_is_mdcsr(const struct model_source *s);

/**
 * See model_source_ops.read_rows / read_mdcsr / file / stored / release. Rows that a tensor does not
 * have are PDVM_ERR_ARGUMENT.
 */
pdvm_status source_read_rows(struct model_source *s, const struct tensor_info *t, int64_t begin,
                             int64_t n, float *out, pdvm_error *err);
pdvm_status source_read_mdcsr(struct model_source *s, const struct tensor_info *t,
                              struct mdcsr *out, pdvm_error *err);
void source_file(struct model_source *s, const char *name, const char **data, size_t *size);
void source_stored(struct model_source *s, const struct tensor_info *t, const char **coding,
                   uint64_t *bytes);
void source_release(struct model_source *s, const struct tensor_info *t);

/** Bytes of all tensors as the source stores them. */
uint64_t source_bytes(struct model_source *s);

/**
 * Opens the source's tokenizer: SOURCE_TOKENIZER or, without it, SOURCE_TOKENIZER_MODEL. *out is
 * NULL if it has neither. Freed with tokenizer_free; errors name the source and the file.
 */
pdvm_status source_open_tokenizer(struct model_source *s, struct tokenizer **out, pdvm_error *err);

/** Implementations, called by source_open. */
pdvm_status source_open_hf(const char *path, struct model_source **out, pdvm_error *err);
pdvm_status source_open_gguf(const char *path, struct model_source **out, pdvm_error *err);
pdvm_status source_open_pdvm(const char *path, struct model_source **out, pdvm_error *err);

#endif
