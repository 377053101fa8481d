/* Building the plan: embed, five phases per layer, head. */
#include "base/alloc.h"
#include "engine/engine.h"
#include "model/rope.h"

#include <stdlib.h>

/* Matrices are kept in the order q, k, v, o, gate, up, down per layer, then the head. */
static struct backend_matrix *layer_matrix(const struct pdvm_model *m, uint32_t layer, int i) {
    return m->matrices[7 * (size_t)layer + (size_t)i];
}

/* A norm or a bias; NULL if models of this kind have none. */
static const float *vector(const struct pdvm_model *m, enum tensor_role role, uint32_t layer) {
    if (!tensors_has(&m->config, role)) return NULL;
    return m->vectors[tensors_index(&m->config, role, layer)];
}

pdvm_status plan_build(struct pdvm_model *m, pdvm_error *err) {
    const struct model_config *c = &m->config;
    struct plan *plan = &m->plan;
    PD_TRY(pd_calloc(&m->inv_freq, c->head_dim / 2, sizeof *m->inv_freq, "RoPE", err));
    rope_frequencies(c, m->inv_freq);
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
        .rope_factor = rope_attention_factor(c),
        .n_phases = plan_phase(c->n_layers) + 1,
        .max_batch = ENGINE_MAX_BATCH,
    };
    PD_TRY(pd_calloc(&plan->phases, plan->n_phases, sizeof *plan->phases, "the plan", err));
    struct phase *p = plan->phases;
    *p++ = (struct phase){.kind = PHASE_EMBED, .w = {m->lookup}};
    for (uint32_t l = 0; l < c->n_layers; l++) {
        *p++ = (struct phase){
            .kind = PHASE_QKV,
            .layer = l,
            .norm = vector(m, TENSOR_INPUT_NORM, l),
            .w = {layer_matrix(m, l, 0), layer_matrix(m, l, 1), layer_matrix(m, l, 2)},
            .bias = {vector(m, TENSOR_Q_BIAS, l), vector(m, TENSOR_K_BIAS, l),
                     vector(m, TENSOR_V_BIAS, l)}};
        *p++ =
            (struct phase){.kind = PHASE_ATTN,
                           .layer = l,
                           .head_norm = {vector(m, TENSOR_Q_NORM, l), vector(m, TENSOR_K_NORM, l)},
                           .window = model_config_window(c, l)};
        *p++ = (struct phase){.kind = PHASE_OUT,
                              .layer = l,
                              .w = {layer_matrix(m, l, 3)},
                              .bias = {vector(m, TENSOR_O_BIAS, l)}};
        *p++ = (struct phase){.kind = PHASE_GATE_UP,
                              .layer = l,
                              .norm = vector(m, TENSOR_POST_NORM, l),
                              .w = {layer_matrix(m, l, 4), layer_matrix(m, l, 5)}};
        *p++ = (struct phase){.kind = PHASE_DOWN, .layer = l, .w = {layer_matrix(m, l, 6)}};
    }
    *p = (struct phase){.kind = PHASE_HEAD,
                        .norm = vector(m, TENSOR_FINAL_NORM, 0),
                        .w = {m->matrices[m->n_matrices - 1]}};
    return m->backend->ops->prepare(m->backend, plan, err);
}

pdvm_status model_exchange_matrix(pdvm_model *m, enum tensor_role role, uint32_t layer,
                                  struct backend_matrix **matrix, pdvm_error *err) {
    /* As plan_build has them: place in a layer, phase behind the layer's first, place in it. */
    static const struct {
        enum tensor_role role;
        uint8_t place, phase, w;
    } places[] = {{TENSOR_Q, 0, 0, 0},   {TENSOR_K, 1, 0, 1},    {TENSOR_V, 2, 0, 2},
                  {TENSOR_O, 3, 2, 0},   {TENSOR_GATE, 4, 3, 0}, {TENSOR_UP, 5, 3, 1},
                  {TENSOR_DOWN, 6, 4, 0}};
    const struct backend_ops *ops = m->backend->ops;
    if (!ops->phase_changed)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: matrices cannot be exchanged",
                       m->info.backend);
    for (size_t i = 0; i < sizeof places / sizeof *places && layer < m->config.n_layers; i++) {
        if (places[i].role != role) continue;
        size_t phase = plan_phase(layer) + places[i].phase;
        struct backend_matrix *old = m->plan.phases[phase].w[places[i].w];
        m->plan.phases[phase].w[places[i].w] = *matrix;
        m->matrices[7 * (size_t)layer + places[i].place] = *matrix;
        *matrix = old;
        ops->phase_changed(m->backend, phase);
        return PDVM_OK;
    }
    return pd_fail(err, PDVM_ERR_ARGUMENT, "no matrix of the layers: role %d, layer %u", (int)role,
                   layer);
}

void plan_free(struct plan *plan) {
    free(plan->phases);
    plan->phases = NULL;
}
