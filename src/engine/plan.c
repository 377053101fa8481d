/* Building the plan: embed, five phases per layer, head. */
#include "base/alloc.h"
#include "engine/engine.h"

#include <math.h>
#include <stdlib.h>

/* Matrices are kept in the order q, k, v, o, gate, up, down per layer, then the head. */
static struct backend_matrix *layer_matrix(const struct pdvm_model *m, uint32_t layer, int i) {
    return m->matrices[7 * (size_t)layer + (size_t)i];
}

pdvm_status plan_build(struct pdvm_model *m, pdvm_error *err) {
    const struct model_config *c = &m->config;
    struct plan *plan = &m->plan;
    PD_TRY(pd_calloc(&m->inv_freq, c->head_dim / 2, sizeof *m->inv_freq, "RoPE", err));
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        m->inv_freq[i] = 1.0f / powf(c->rope_theta, (float)(2 * i) / (float)c->head_dim);
    *plan = (struct plan){
        .hidden_size = c->hidden_size,
        .intermediate_size = c->intermediate_size,
        .n_layers = c->n_layers,
        .n_heads = c->n_heads,
        .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim,
        .n_vocab = c->n_vocab,
        .rms_norm_eps = c->rms_norm_eps,
        .inv_freq = m->inv_freq,
        .n_phases = plan_phase(c->n_layers) + 1,
        .max_batch = ENGINE_MAX_BATCH,
    };
    PD_TRY(pd_calloc(&plan->phases, plan->n_phases, sizeof *plan->phases, "the plan", err));
    struct phase *p = plan->phases;
    *p++ = (struct phase){.kind = PHASE_EMBED, .w = {m->lookup}};
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const float *norm = m->norms + 2 * (size_t)l * c->hidden_size;
        *p++ = (struct phase){
            .kind = PHASE_QKV,
            .layer = l,
            .norm = norm,
            .w = {layer_matrix(m, l, 0), layer_matrix(m, l, 1), layer_matrix(m, l, 2)}};
        *p++ = (struct phase){.kind = PHASE_ATTN, .layer = l};
        *p++ = (struct phase){.kind = PHASE_OUT, .layer = l, .w = {layer_matrix(m, l, 3)}};
        *p++ = (struct phase){.kind = PHASE_GATE_UP,
                              .layer = l,
                              .norm = norm + c->hidden_size,
                              .w = {layer_matrix(m, l, 4), layer_matrix(m, l, 5)}};
        *p++ = (struct phase){.kind = PHASE_DOWN, .layer = l, .w = {layer_matrix(m, l, 6)}};
    }
    *p = (struct phase){.kind = PHASE_HEAD,
                        .norm = m->norms + 2 * (size_t)c->n_layers * c->hidden_size,
                        .w = {m->matrices[m->n_matrices - 1]}};
    return m->backend->ops->prepare(m->backend, plan, err);
}

void plan_free(struct plan *plan) {
    free(plan->phases);
    plan->phases = NULL;
}
