#include "plan/baseline.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/tempdir.h"

#include <stdlib.h>
#include <string.h>

static pdvm_status open_model(const struct baseline *b, const char *path, const char *values,
                              pdvm_model **out, pdvm_error *err) {
    pdvm_model_options options = model_options_with(&b->options.notify);
    options.n_threads = b->options.n_threads;
    options.kernels = b->options.kernels;
    options.values = values;
    return pdvm_model_open(path, &options, out, err);
}

pdvm_status baseline_open_model(const struct baseline *b, const char *path, pdvm_model **out,
                                pdvm_error *err) {
    return open_model(b, path, NULL, out, err);
}

/* Keeps n_windows windows of the tokens, evenly spread over the second half. */
static void spread_windows(struct baseline *b) {
    size_t n = b->options.n_windows, width = b->windows.n_ctx;
    size_t first = b->tokens.n / 2;
    /* The second half where it is long enough, or else all of the text. */
    if (b->tokens.n - first < n * width) first = 0;
    size_t room = b->tokens.n - first;
    if (room < n * width) return;
    for (size_t i = 0; i < n; i++) {
        size_t begin = first + (n > 1 ? i * (room - width) / (n - 1) : room - width);
        memmove(b->tokens.ids + i * width, b->tokens.ids + begin, width * sizeof *b->tokens.ids);
    }
    b->tokens.n = n * width;
}

static pdvm_status cut_text(struct baseline *b, const char *name, const char *text, size_t size,
                            pdvm_error *err) {
    const struct baseline_options *o = &b->options;
    const struct tokenizer *tokenizer = b->model->tokenizer;
    PD_TRY(model_need_tokenizer(b->model, err));
    PD_TRY(tokenizer_encode(tokenizer, text, size, PDVM_TOKENIZE_ADD_SPECIAL, &b->tokens, err));
    b->text_hash = pd_hash(PD_HASH_INIT, text, size);
    if (o->max_tokens > 0 && b->tokens.n > o->max_tokens) b->tokens.n = o->max_tokens;
    struct perplexity_options *w = &b->windows;
    w->protocol = o->protocol;
    w->n_ctx = o->n_ctx;
    w->stride = o->stride;
    perplexity_complete(w, b->model, b->tokens.ids, b->tokens.n);
    if (o->n_windows > 0) spread_windows(b);
    pdvm_status status = perplexity_check(b->tokens.n, w, err);
    return status == PDVM_OK ? status : pd_prefix(err, status, "%s", name);
}

static pdvm_status evaluate(const struct baseline *b, pdvm_model *model,
                            const struct pd_notify *notify, const struct logits_file *base,
                            struct logits_writer *save, struct evaluation_result *out,
                            pdvm_error *err) {
    pdvm_session *session;
    pdvm_session_options options = pdvm_session_options_default();
    struct perplexity_options windows = b->windows;
    if (notify) windows.notify = *notify;
    options.n_ctx = windows.n_ctx;
    PD_TRY(pdvm_session_create(model, &options, &session, err));
    const struct evaluation_task task = {.session = session,
                                         .tokens = b->tokens.ids,
                                         .n = b->tokens.n,
                                         .options = &windows,
                                         .base = base,
                                         .save = save};
    pdvm_status status = evaluation_run(&task, out, err);
    pdvm_session_free(session);
    return status;
}

static pdvm_status predict(const struct baseline *b, pdvm_model *model, const char *path,
                           const struct pd_notify *notify, struct perplexity_result *perplexity,
                           pdvm_error *err) {
    struct evaluation_result result;
    struct logits_writer *w;
    struct logits_key key =
        logits_key_of(NULL, 0, b->tokens.ids, b->tokens.n, model->config.n_vocab, &b->windows);
    PD_TRY(logits_writer_open(path, &key, "", &w, err));
    pdvm_status status = evaluate(b, model, notify, NULL, w, &result, err);
    *perplexity = result.perplexity;
    if (status == PDVM_OK) return logits_writer_commit(w, err);
    logits_writer_abort(w);
    return status;
}

pdvm_status baseline_predict(const struct baseline *b, pdvm_model *model, const char *name,
                             const struct pd_notify *notify, struct logits_file **out,
                             struct perplexity_result *perplexity, pdvm_error *err) {
    char *path;
    *out = NULL;
    PD_TRY(pd_path_join(b->dir, name, &path, err));
    pdvm_status status = predict(b, model, path, notify, perplexity, err);
    if (status == PDVM_OK) status = logits_file_open(path, out, err);
    free(path);
    return status;
}

pdvm_status baseline_open(struct baseline *b, const char *source, const char *name,
                          const char *text, size_t size, const struct baseline_options *options,
                          pdvm_error *err) {
    *b = (struct baseline){.options = *options, .path = strdup(source)};
    if (!b->path) return pd_fail_memory(err, strlen(source) + 1, "a path");
    PD_TRY(open_model(b, source, "source", &b->model, err));
    PD_TRY(cut_text(b, name, text, size, err));
    PD_TRY(pd_tempdir_create(&b->dir, err));
    return baseline_predict(b, b->model, "logits", &options->notify, &b->logits, &b->perplexity,
                            err);
}

void baseline_drop_model(struct baseline *b) {
    pdvm_model_close(b->model);
    b->model = NULL;
}

pdvm_status baseline_compare(const struct baseline *b, pdvm_model *model,
                             const struct logits_file *predictions, const struct pd_notify *notify,
                             struct evaluation_result *out, pdvm_error *err) {
    if (model->config.n_vocab != logits_file_vocab(predictions))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: another vocabulary than %s",
                       model->source->path, b->path);
    return evaluate(b, model, notify, predictions, NULL, out, err);
}

pdvm_status baseline_measure(const struct baseline *b, pdvm_model *model,
                             const struct pd_notify *notify, struct evaluation_result *out,
                             pdvm_error *err) {
    return baseline_compare(b, model, b->logits, notify, out, err);
}

pdvm_status baseline_speed(const struct baseline *b, pdvm_model *model, size_t n,
                           struct speed_result *out, pdvm_error *err) {
    return speed_measure(model, b->tokens.ids, n < b->tokens.n ? n : b->tokens.n, out, err);
}

void baseline_close(struct baseline *b) {
    logits_file_close(b->logits);
    pdvm_model_close(b->model);
    free(b->tokens.ids);
    free(b->path);
    pd_tempdir_remove(b->dir);
    *b = (struct baseline){0};
}
