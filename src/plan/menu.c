/* The menu: each item applied to all matrices, converted and measured. */
#include "base/alloc.h"
#include "base/file.h"
#include "base/machine.h"
#include "base/sort.h"
#include "eval/bandwidth.h"
#include "plan/planning.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static pdvm_status convert_item(struct planning *p, struct plan_item *item, const char *path,
                                const struct pd_notify *notify, pdvm_error *err) {
    struct convert_options o = p->options->convert;
    struct convert_result result = {0};
    o.plan.general.values = (int)item->values;
    if (o.method->has_sparsity) o.plan.general.sparsity = item->sparsity;
    o.notify = *notify;
    pdvm_status status = convert_model(p->baseline.path, path, &o, &result, err);
    item->file_bytes = result.file_bytes;
    for (size_t i = 0; i < result.report.n; i++) {
        const struct report_tensor *t = &result.report.tensors[i];
        if (t->tensor.is_matrix && !tensor_is_vocabulary(t->tensor.role))
            item->layer_bytes += t->bytes;
    }
    convert_result_free(&result);
    return status;
}

static pdvm_status measure_item(struct planning *p, struct plan_item *item, const char *path,
                                const struct pd_notify *notify, pdvm_error *err) {
    pdvm_model *model;
    struct evaluation_result e;
    PD_TRY(baseline_open_model(&p->baseline, path, &model, err));
    item->token_bytes = model->info.token_bytes;
    pdvm_status status = baseline_measure(&p->baseline, model, notify, &e, err);
    if (status == PDVM_OK)
        status = baseline_speed(&p->baseline, model, p->options->speed_tokens, &item->speed, err);
    pdvm_model_close(model);
    PD_TRY(status);
    item->kl = e.divergence.kl.value;
    item->perplexity = e.perplexity.perplexity;
    item->perplexity_ratio = e.divergence.perplexity_ratio.value;
    item->same_top = e.divergence.same_top.value;
    p->result->n_evaluations++;
    return PDVM_OK;
}

static pdvm_status do_item(struct planning *p, size_t i, pdvm_error *err) {
    struct plan_item *item = &p->result->items[i];
    char name[32], *path;
    struct pd_notify notify =
        planning_notify(p, "menu %zu of %zu: %g %% zeros, %s", i + 1, p->result->n_items,
                        100 * item->sparsity, mdcsr_values_name(item->values));
    snprintf(name, sizeof name, "item-%zu.pdvm", i);
    PD_TRY(pd_path_join(p->baseline.dir, name, &path, err));
    pdvm_status status = convert_item(p, item, path, &notify, err);
    if (status == PDVM_OK) status = measure_item(p, item, path, &notify, err);
    if (status == PDVM_OK) status = source_open(path, &p->sources[i], err);
    free(path);
    return status;
}

/* What the machine can read at most; without it the shares in the table are left out. */
static pdvm_status measure_bandwidth(struct planning *p, pdvm_error *err) {
    struct pd_machine machine;
    struct bandwidth *b;
    struct pd_threads *threads;
    pd_machine_get(&machine);
    PD_TRY(pd_threads_create(p->options->baseline.n_threads, &threads, err));
    pdvm_status status = bandwidth_create(bandwidth_buffer_size(machine.cache), threads, &b, err);
    if (status == PDVM_OK) {
        for (int i = 0; i < 3; i++)
            p->result->bandwidth = fmax(p->result->bandwidth, bandwidth_measure(b, threads));
        bandwidth_free(b);
    }
    pd_threads_free(threads);
    return status;
}

pdvm_status menu_measure(struct planning *p, pdvm_error *err) {
    PD_TRY(pd_calloc(&p->sources, p->result->n_items, sizeof(struct model_source *),
                     "the menu's models", err));
    PD_TRY(measure_bandwidth(p, err));
    for (size_t i = 0; i < p->result->n_items; i++) PD_TRY(do_item(p, i, err));
    return PDVM_OK;
}

/* ---- groups ---------------------------------------------------------------------------- */

static enum phase_kind phase_of(enum tensor_role role) {
    switch (role) {
    case TENSOR_O: return PHASE_OUT;
    case TENSOR_GATE:
    case TENSOR_UP: return PHASE_GATE_UP;
    case TENSOR_DOWN: return PHASE_DOWN;
    default: return PHASE_QKV;
    }
}

static uint64_t bytes_of(const struct planning *p, size_t item, enum tensor_role role,
                         uint32_t layer) {
    struct tensor_info t;
    const char *coding;
    uint64_t bytes;
    struct model_source *source = p->sources[item];
    tensors_describe(&source->config, role, layer, &t);
    source_stored(source, &t, &coding, &bytes);
    return bytes;
}

/* Bytes and seconds of every group with an item; a phase's time is shared out by bytes. */
static void cost_item(struct planning *p, size_t item) {
    struct plan_result *r = p->result;
    const struct speed_result *speed = &r->items[item].speed;
    double by_phase[SPEED_N_PHASES] = {0};
    for (size_t g = 0; g < r->n_groups; g++) {
        struct plan_group *group = &r->groups[g];
        for (uint32_t l = 0; l < group->n_layers; l++)
            group->bytes[item] += (double)bytes_of(p, item, group->role, group->first_layer + l);
        by_phase[phase_of(group->role)] += group->bytes[item];
    }
    for (size_t g = 0; g < r->n_groups; g++) {
        struct plan_group *group = &r->groups[g];
        enum phase_kind kind = phase_of(group->role);
        group->seconds[item] = speed->phases[kind] * group->bytes[item] / by_phase[kind];
    }
}

static pdvm_status create_group(struct planning *p, struct plan_group *group, pdvm_error *err) {
    size_t n = p->result->n_items;
    const struct model_config *config = &p->sources[0]->config;
    for (uint32_t l = 0; l < group->n_layers; l++) {
        struct tensor_info t;
        tensors_describe(config, group->role, group->first_layer + l, &t);
        group->n_weights += t.rows * t.cols;
    }
    PD_TRY(pd_calloc(&group->loss, n, sizeof *group->loss, "losses", err));
    PD_TRY(pd_calloc(&group->bytes, n, sizeof *group->bytes, "sizes", err));
    PD_TRY(pd_calloc(&group->seconds, n, sizeof *group->seconds, "times", err));
    return pd_calloc(&group->measured, n, sizeof *group->measured, "losses", err);
}

/* What all items have in common: the rest of the file, and the median of the rest of the time. */
static pdvm_status fix_costs(struct plan_result *r, pdvm_error *err) {
    double *rest;
    r->fixed_bytes = (double)(r->items[0].file_bytes - r->items[0].layer_bytes);
    PD_TRY(pd_calloc(&rest, r->n_items, sizeof *rest, "times", err));
    for (size_t i = 0; i < r->n_items; i++) {
        const struct speed_result *s = &r->items[i].speed;
        rest[i] = s->token - s->phases[PHASE_QKV] - s->phases[PHASE_OUT] -
                  s->phases[PHASE_GATE_UP] - s->phases[PHASE_DOWN];
    }
    qsort(rest, r->n_items, sizeof *rest, pd_compare_doubles);
    r->fixed_seconds = rest[r->n_items / 2];
    free(rest);
    return PDVM_OK;
}

pdvm_status groups_create(struct planning *p, pdvm_error *err) {
    struct plan_result *r = p->result;
    uint32_t n_layers = p->sources[0]->config.n_layers, step = p->options->layers_per_group;
    size_t blocks = (n_layers + step - 1) / step;
    PD_TRY(
        pd_calloc(&r->groups, blocks * TENSOR_N_LAYER_MATRICES, sizeof *r->groups, "groups", err));
    for (uint32_t first = 0; first < n_layers; first += step) {
        for (size_t i = 0; i < TENSOR_N_LAYER_MATRICES; i++) {
            struct plan_group *group = &r->groups[r->n_groups++];
            uint32_t n = n_layers - first < step ? n_layers - first : step;
            *group = (struct plan_group){
                .role = tensor_layer_matrices[i], .first_layer = first, .n_layers = n};
            PD_TRY(create_group(p, group, err));
        }
    }
    for (size_t i = 0; i < r->n_items; i++) cost_item(p, i);
    return fix_costs(r, err);
}
