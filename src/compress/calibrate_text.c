#include "compress/calibrate_text.h"

#include "base/alloc.h"
#include "base/file.h"
#include "model/tokenizer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Texts of fewer different tokens say nothing about a model. */
#define FEW_DISTINCT 8
/* From here on there is nothing to warn of. */
#define ENOUGH_DISTINCT 256

static pdvm_status tokenise(struct model_source *source, const char *path, struct token_list *out,
                            pdvm_error *err) {
    struct tokenizer *tokenizer;
    struct pd_map map = {0};
    PD_TRY(source_open_tokenizer(source, &tokenizer, err));
    if (!tokenizer)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: the model has no %s or %s, so no text can calibrate it", source->path,
                       SOURCE_TOKENIZER, SOURCE_TOKENIZER_MODEL);
    pdvm_status status = pd_map_open(path, &map, err);
    if (status == PDVM_OK) {
        status =
            tokenizer_encode(tokenizer, (const char *)map.data, map.size,
                             PDVM_TOKENIZE_ADD_SPECIAL | PDVM_TOKENIZE_PARSE_SPECIAL, out, err);
        if (status != PDVM_OK) pd_prefix(err, status, "%s", path);
    }
    pd_map_close(&map);
    tokenizer_free(tokenizer);
    return status;
}

/* Window i of n begins here: evenly spaced, the last one ending with the text. */
static size_t window_begin(int64_t i, int64_t n, size_t n_tokens, int64_t seq) {
    if (n < 2) return 0;
    uint64_t room = n_tokens - (uint64_t)seq;
    return (size_t)(room / (uint64_t)(n - 1) * (uint64_t)i +
                    room % (uint64_t)(n - 1) * (uint64_t)i / (uint64_t)(n - 1));
}

static pdvm_status cut_windows(const struct token_list *tokens, int64_t n_tokens,
                               struct calibration_text *t, const char *path, pdvm_error *err) {
    int64_t seq = t->seq;
    if (n_tokens < seq)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%" PRId64 " calibration tokens are less than one window of %" PRId64
                       "; give more with --calib-tokens, or shorter windows with --calib-seq",
                       n_tokens, seq);
    if (tokens->n < (size_t)seq)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: the text has %zu tokens, fewer than one window of %" PRId64
                       "; give a longer text, or shorter windows with --calib-seq",
                       path, tokens->n, seq);
    t->n_windows = n_tokens / seq;
    if ((size_t)t->n_windows > tokens->n / (size_t)seq)
        t->n_windows = (int64_t)(tokens->n / (size_t)seq);
    PD_TRY(pd_calloc(&t->ids, (size_t)(t->n_windows * seq), sizeof *t->ids, "tokens", err));
    for (int64_t i = 0; i < t->n_windows; i++)
        memcpy(t->ids + i * seq, tokens->ids + window_begin(i, t->n_windows, tokens->n, seq),
               (size_t)seq * sizeof *t->ids);
    return PDVM_OK;
}

/* Checks the ids, and whether they are different enough. */
static pdvm_status check_tokens(struct calibration_text *t, const struct model_config *config,
                                const char *path, const struct pd_notify *notify, pdvm_error *err) {
    int64_t n = t->n_windows * t->seq, most = 0, *counts;
    int64_t widest = config->hidden_size > config->intermediate_size ? config->hidden_size
                                                                     : config->intermediate_size;
    PD_TRY(pd_calloc(&counts, config->n_vocab, sizeof *counts, "counts of tokens", err));
    pdvm_status status = PDVM_OK;
    for (int64_t i = 0; i < n && status == PDVM_OK; i++) {
        if (t->ids[i] < 0 || (uint32_t)t->ids[i] >= config->n_vocab) {
            status = pd_fail(err, PDVM_ERR_FORMAT,
                             "%s: the tokenizer makes token %" PRId32
                             " of the text, but the model has %" PRIu32,
                             path, t->ids[i], config->n_vocab);
            break;
        }
        int64_t count = ++counts[t->ids[i]];
        t->n_distinct += count == 1;
        most = count > most ? count : most;
    }
    free(counts);
    PD_TRY(status);
    if (t->n_distinct < FEW_DISTINCT)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: the tokenizer makes only %" PRId64
                       " different tokens of the text, which "
                       "cannot calibrate a model; is it of the model's language and script?",
                       path, t->n_distinct);
    if (t->n_distinct < ENOUGH_DISTINCT && t->n_distinct < config->n_vocab / 2)
        pd_log(notify, PDVM_LOG_WARN,
               "%s: only %" PRId64
               " different tokens in the calibration text; is it of the model's "
               "language and script?",
               path, t->n_distinct);
    else if (most > n / 2)
        pd_log(notify, PDVM_LOG_WARN,
               "%s: one token makes up %.0f %% of the calibration text; is it of the model's "
               "language and script?",
               path, 100.0 * (double)most / (double)n);
    if (n < widest)
        pd_log(
            notify, PDVM_LOG_WARN,
            "%s: %" PRId64 " calibration tokens are fewer than the %" PRId64
            " inputs of the widest matrices, whose Hessians then depend on the damping; a longer "
            "text is better",
            path, n, widest);
    return PDVM_OK;
}

pdvm_status calibration_text_read(struct model_source *source,
                                  const struct calibration_options *options,
                                  const struct pd_notify *notify, struct calibration_text *out,
                                  pdvm_error *err) {
    const struct model_config *config = &source->config;
    struct token_list tokens = {0};
    int64_t most = config->max_position_embeddings;
    *out = (struct calibration_text){.seq = options->seq};
    if (out->seq == 0) out->seq = most < CALIBRATION_SEQ ? most : CALIBRATION_SEQ;
    if (out->seq < 1 || out->seq > most)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "calibration windows of %" PRId64 " tokens: the model's context is %" PRId64,
                       out->seq, most);
    pdvm_status status = tokenise(source, options->path, &tokens, err);
    if (status == PDVM_OK)
        status = cut_windows(&tokens, options->n_tokens ? options->n_tokens : CALIBRATION_TOKENS,
                             out, options->path, err);
    if (status == PDVM_OK) status = check_tokens(out, config, options->path, notify, err);
    free(tokens.ids);
    if (status != PDVM_OK) {
        free(out->ids);
        *out = (struct calibration_text){0};
    }
    return status;
}
