/* Saved predictions: coding, writing, reading. */
#include "eval/logits_file.h"
#include "base/alloc.h"
#include "base/hash.h"
#include "io/safetensors.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSION_KEY "pdvm.logits"
#define VERSION "1"
#define MODEL_KEY "pdvm.logits.model"
#define TOP_CODE 65535

struct logits_key logits_key_of(const char *text, size_t size, const int32_t *tokens, size_t n,
                                uint32_t n_vocab, const struct perplexity_options *options) {
    struct logits_key key = {
        .options = *options, .text = PD_HASH_INIT, .n_tokens = n, .n_vocab = n_vocab};
    if (text) key.text = pd_hash(key.text, text, size);
    key.tokens = PD_HASH_INIT;
    for (size_t i = 0; i < n; i++) {
        uint32_t id = (uint32_t)tokens[i];
        uint8_t bytes[4];
        for (int b = 0; b < 4; b++) bytes[b] = (uint8_t)(id >> 8 * b);
        key.tokens = pd_hash(key.tokens, bytes, sizeof bytes);
    }
    return key;
}

/* What binds a file: the metadata's names and values, in the order in which they are compared. */
#define N_FIELDS 7
struct field {
    const char *name;
    const char *what; /* for messages */
    char value[32];
};

static void describe(const struct logits_key *key, struct field fields[N_FIELDS]) {
    static const char *const names[N_FIELDS][2] = {
        {"pdvm.logits.protocol", "the protocol"},
        {"pdvm.logits.n_ctx", "the window"},
        {"pdvm.logits.stride", "the stride"},
        {"pdvm.logits.text", "the text"},
        {"pdvm.logits.n_tokens", "the number of tokens"},
        {"pdvm.logits.tokens", "the tokenizer"},
        {"pdvm.logits.bos", "the token that begins a window"},
    };
    const struct perplexity_options *o = &key->options;
    bool sliding = o->protocol == PERPLEXITY_SLIDING;
    bool begins = o->protocol == PERPLEXITY_LLAMA_CPP;
    for (int i = 0; i < N_FIELDS; i++)
        fields[i] = (struct field){.name = names[i][0], .what = names[i][1]};
    snprintf(fields[0].value, sizeof fields[0].value, "%s", perplexity_protocol_name(o->protocol));
    snprintf(fields[1].value, sizeof fields[1].value, "%" PRIu32, o->n_ctx);
    snprintf(fields[2].value, sizeof fields[2].value, "%" PRIu32, sliding ? o->stride : o->n_ctx);
    snprintf(fields[3].value, sizeof fields[3].value, "%016" PRIx64, key->text);
    snprintf(fields[4].value, sizeof fields[4].value, "%zu", key->n_tokens);
    snprintf(fields[5].value, sizeof fields[5].value, "%016" PRIx64, key->tokens);
    snprintf(fields[6].value, sizeof fields[6].value, "%" PRId32, begins ? o->bos : -1);
}

/* ---- writing --------------------------------------------------------------------------- */

struct logits_writer {
    struct safetensors_writer *file;
    uint16_t *codes; /* [n_vocab] of one token */
    float *steps;    /* [n] */
    size_t n_vocab;
    uint64_t n, done;
};

static pdvm_status begin(struct logits_writer *w, const struct logits_key *key, const char *path,
                         const char *model, pdvm_error *err) {
    struct field fields[N_FIELDS];
    size_t size;
    /* Names and values are short; a model's name may need six bytes for each of its own. */
    PD_TRY(safetensors_writer_open(path, 1024 + 6 * strlen(model), &w->file, err));
    PD_TRY(safetensors_writer_metadata(w->file, VERSION_KEY, VERSION, err));
    PD_TRY(safetensors_writer_metadata(w->file, MODEL_KEY, model, err));
    describe(key, fields);
    for (int i = 0; i < N_FIELDS; i++)
        PD_TRY(safetensors_writer_metadata(w->file, fields[i].name, fields[i].value, err));
    PD_TRY(pd_calloc(&w->codes, w->n_vocab, sizeof *w->codes, "a row of codes", err));
    PD_TRY(pd_calloc(&w->steps, w->n, sizeof *w->steps, "steps of codes", err));
    const int64_t dims[2] = {(int64_t)w->n, (int64_t)w->n_vocab};
    return safetensors_writer_begin(w->file, "codes", SAFETENSORS_U16, dims, 2, &size, err);
}

pdvm_status logits_writer_open(const char *path, const struct logits_key *key, const char *model,
                               struct logits_writer **out, pdvm_error *err) {
    struct logits_writer *w;
    *out = NULL;
    PD_TRY(perplexity_check(key->n_tokens, &key->options, err));
    PD_TRY(pd_calloc(&w, 1, sizeof *w, "a writer of logits", err));
    w->n = perplexity_extent(key->n_tokens, &key->options).n_scored;
    w->n_vocab = key->n_vocab;
    pdvm_status status = begin(w, key, path, model, err);
    if (status == PDVM_OK)
        *out = w;
    else
        logits_writer_abort(w);
    return status;
}

pdvm_status logits_writer_add(struct logits_writer *w, const float *logits, pdvm_error *err) {
    float low = logits[0], top = logits[0];
    if (w->done == w->n)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "more than %" PRIu64 " tokens of logits", w->n);
    for (size_t i = 0; i < w->n_vocab; i++) {
        if (!isfinite(logits[i]))
            return pd_fail(err, PDVM_ERR_RANGE, "the logit of candidate %zu is not finite", i);
        if (logits[i] < low) low = logits[i];
        if (logits[i] > top) top = logits[i];
    }
    float step = (float)(((double)top - (double)low) / TOP_CODE);
    if (!isfinite(step)) return pd_fail(err, PDVM_ERR_RANGE, "the logits' range is not finite");
    double inverse = step > 0 ? 1 / (double)step : 0;
    for (size_t i = 0; i < w->n_vocab; i++) {
        double below = ((double)top - (double)logits[i]) * inverse + 0.5;
        w->codes[i] = (uint16_t)(TOP_CODE - (below < TOP_CODE ? (int)below : TOP_CODE));
    }
    w->steps[w->done++] = step;
    /* Files are little-endian, as are the machines that this is built for. */
    return safetensors_writer_append(w->file, w->codes, w->n_vocab * sizeof *w->codes, err);
}

pdvm_status logits_writer_commit(struct logits_writer *w, pdvm_error *err) {
    const int64_t n = (int64_t)w->n;
    pdvm_status status = PDVM_OK;
    if (w->done < w->n)
        status = pd_fail(err, PDVM_ERR_ARGUMENT, "%" PRIu64 " of %" PRIu64 " tokens of logits",
                         w->done, w->n);
    if (status == PDVM_OK)
        status = safetensors_writer_tensor(w->file, "steps", SAFETENSORS_F32, &n, 1, w->steps,
                                           w->n * sizeof *w->steps, err);
    if (status == PDVM_OK) {
        struct safetensors_writer *file = w->file;
        w->file = NULL;
        status = safetensors_writer_commit(file, err);
    }
    logits_writer_abort(w);
    return status;
}

void logits_writer_abort(struct logits_writer *w) {
    if (!w) return;
    safetensors_writer_abort(w->file);
    free(w->codes);
    free(w->steps);
    free(w);
}

/* ---- reading --------------------------------------------------------------------------- */

struct logits_file {
    struct safetensors *st;
    const struct safetensors_tensor *codes, *steps;
};

static float step_at(const struct logits_file *f, uint64_t i) {
    float step;
    memcpy(&step, f->steps->data + i * sizeof step, sizeof step);
    return step;
}

static pdvm_status check(struct logits_file *f, pdvm_error *err) {
    const char *path = safetensors_path(f->st), *version = safetensors_metadata(f->st, VERSION_KEY);
    if (!version)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: not a file of saved logits; make one with pdvm eval --save-logits",
                       path);
    if (strcmp(version, VERSION) != 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: saved logits of version %.40s, this program reads version %s", path,
                       version, VERSION);
    f->codes = safetensors_find(f->st, "codes");
    f->steps = safetensors_find(f->st, "steps");
    if (!f->codes || !f->steps || safetensors_count(f->st) != 2)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: must have the tensors codes and steps", path);
    if (f->codes->dtype != SAFETENSORS_U16 || f->codes->n_dims != 2 || f->codes->dims[0] < 1 ||
        f->codes->dims[1] < 1 || f->codes->dims[1] > UINT32_MAX)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: codes must be U16 [tokens, candidates]", path);
    if (f->steps->dtype != SAFETENSORS_F32 || f->steps->n_dims != 1 ||
        f->steps->dims[0] != f->codes->dims[0])
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: steps must be F32 [%" PRId64 "]", path,
                       f->codes->dims[0]);
    for (uint64_t i = 0; i < (uint64_t)f->steps->dims[0]; i++) {
        float step = step_at(f, i);
        if (!(step >= 0) || !isfinite(step * TOP_CODE))
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: step %" PRIu64 " is not a positive number",
                           path, i);
    }
    return PDVM_OK;
}

static pdvm_status open_checked(struct safetensors *st, struct logits_file **out, pdvm_error *err) {
    struct logits_file *f;
    pdvm_status status = pd_calloc(&f, 1, sizeof *f, "a file of logits", err);
    if (status != PDVM_OK) {
        safetensors_close(st);
        return status;
    }
    f->st = st;
    status = check(f, err);
    if (status == PDVM_OK)
        *out = f;
    else
        logits_file_close(f);
    return status;
}

pdvm_status logits_file_open(const char *path, struct logits_file **out, pdvm_error *err) {
    struct safetensors *st;
    *out = NULL;
    PD_TRY(safetensors_open(path, &st, err));
    return open_checked(st, out, err);
}

pdvm_status logits_file_open_memory(const char *name, const void *data, size_t size,
                                    struct logits_file **out, pdvm_error *err) {
    struct safetensors *st;
    *out = NULL;
    PD_TRY(safetensors_open_memory(name, data, size, &st, err));
    return open_checked(st, out, err);
}

void logits_file_close(struct logits_file *f) {
    if (!f) return;
    safetensors_close(f->st);
    free(f);
}

uint64_t logits_file_count(const struct logits_file *f) {
    return (uint64_t)f->codes->dims[0];
}

uint32_t logits_file_vocab(const struct logits_file *f) {
    return (uint32_t)f->codes->dims[1];
}

const char *logits_file_model(const struct logits_file *f) {
    const char *model = safetensors_metadata(f->st, MODEL_KEY);
    return model ? model : "";
}

pdvm_status logits_file_check(const struct logits_file *f, const struct logits_key *key,
                              pdvm_error *err) {
    const char *path = safetensors_path(f->st);
    struct field fields[N_FIELDS];
    if (logits_file_vocab(f) != key->n_vocab)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: was saved by a model with %u tokens in its vocabulary, this one has %u",
                       path, logits_file_vocab(f), key->n_vocab);
    describe(key, fields);
    for (int i = 0; i < N_FIELDS; i++) {
        const char *saved = safetensors_metadata(f->st, fields[i].name);
        if (saved && strcmp(saved, fields[i].value) == 0) continue;
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: was saved with other settings: %s is %s now, and was %.40s then", path,
                       fields[i].what, fields[i].value, saved ? saved : "not noted");
    }
    uint64_t n = perplexity_extent(key->n_tokens, &key->options).n_scored;
    if (logits_file_count(f) != n)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: holds %" PRIu64 " tokens, the windows score %" PRIu64, path,
                       logits_file_count(f), n);
    return PDVM_OK;
}

void logits_file_row(const struct logits_file *f, uint64_t i, double *x) {
    uint64_t n = logits_file_vocab(f);
    const uint8_t *codes = f->codes->data + i * n * sizeof(uint16_t);
    double step = (double)step_at(f, i);
    for (uint64_t c = 0; c < n; c++) {
        uint16_t code;
        memcpy(&code, codes + c * sizeof code, sizeof code);
        x[c] = -(double)(TOP_CODE - code) * step;
    }
}
