/* One model on one text. */
#include "eval/evaluation.h"
#include "base/alloc.h"
#include "base/time.h"
#include "engine/engine.h"

#include <math.h>
#include <stdlib.h>

struct running {
    const struct evaluation_task *task;
    struct divergence divergence;
    uint64_t n;       /* tokens so far: the row of the saved predictions */
    double *expected; /* [n_vocab] the other model's log probabilities; NULL: not compared */
};

/* A perplexity_fn. */
static pdvm_status take(void *user, const struct perplexity_token *t, pdvm_error *err) {
    struct running *r = user;
    const struct evaluation_task *task = r->task;
    if (task->nll) task->nll[t->position] = t->nll;
    if (task->save) PD_TRY(logits_writer_add(task->save, t->logits, err));
    if (!r->expected) return PDVM_OK;
    if (task->base)
        logits_file_row(task->base, r->n++, r->expected);
    else
        for (size_t i = 0; i < t->n_vocab; i++) r->expected[i] = (double)t->reference[i];
    pdvm_status status =
        divergence_add(&r->divergence, r->expected, t->logits, t->n_vocab, t->token, t->nll, err);
    return status == PDVM_OK
               ? status
               : pd_prefix(err, status, "token %d at position %zu", (int)t->token, t->position);
}

pdvm_status evaluation_run(const struct evaluation_task *task, struct evaluation_result *out,
                           pdvm_error *err) {
    struct running r = {.task = task};
    *out = (struct evaluation_result){.compared = task->base || task->options->reference};
    if (out->compared)
        PD_TRY(pd_calloc(&r.expected, task->session->model->config.n_vocab, sizeof *r.expected,
                         "predictions", err));
    for (size_t i = 0; task->nll && i < task->n; i++) task->nll[i] = NAN;
    double start = pd_seconds();
    pdvm_status status = perplexity_measure(task->session, task->tokens, task->n, task->options,
                                            take, &r, &out->perplexity, err);
    out->seconds = pd_seconds() - start;
    if (status == PDVM_OK && out->compared)
        status = divergence_finish(&r.divergence, &out->divergence, err);
    divergence_free(&r.divergence);
    free(r.expected);
    return status;
}
