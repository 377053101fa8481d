/* Passes: tokens and activations up, launches in the chosen mode, logits back. */
#include "backend/cuda/pass.h"

#include "base/alloc.h"

#include <string.h>

/* A barrier between blocks that takes this many polls, some ten seconds, will not come any more:
 * an error is better than a GPU that hangs. */
#define SPIN_LIMIT 400000000u

pdvm_status cuda_launch(struct pass *p, bool single) {
    struct cuda_backend *b = p->b;
    cu_address k = p->batch->kv ? p->batch->kv->memory : 0;
    void *arguments[] = {&b->w, &b->g, &k, &p->launch};
    unsigned threads = b->n_threads;
    cu_result result = single ? b->cu->launch(b->phase, b->n_blocks, 1, 1, threads, 1, 1,
                                              b->shared_bytes, b->stream, arguments, NULL)
                              : b->cu->launch_cooperative(b->token, b->n_blocks, 1, 1, threads, 1,
                                                          1, b->shared_bytes, b->stream, arguments);
    if (p->batch->n_dispatches && !p->capturing) ++*p->batch->n_dispatches;
    PD_TRY(cuda_try(b, result, "launching a kernel", p->err));
    if (!p->batch->sync) return PDVM_OK;
    return cuda_try(b, b->cu->stream_synchronize(b->stream), "waiting for a kernel", p->err);
}

/* Phases [begin, end), each on its own where one launch cannot do more. */
static pdvm_status run_range(struct pass *p, uint32_t begin, uint32_t end) {
    if (!p->b->cooperative && end - begin > 1) {
        for (; begin < end; begin++) PD_TRY(run_range(p, begin, begin + 1));
        return PDVM_OK;
    }
    p->launch.first_phase = begin;
    p->launch.end_phase = end;
    return cuda_launch(p, end - begin == 1);
}

static pdvm_status run_part(struct pass *p, uint32_t phase, uint32_t part, uint32_t flags) {
    struct gpu_launch saved = p->launch;
    p->launch.part = part;
    p->launch.flags |= flags;
    pdvm_status status = run_range(p, phase, phase + 1);
    p->launch = saved;
    return status;
}

/* Norm, QKV, RoPE, attention, out, MLP: what of these six lies in [i, end). */
static pdvm_status run_unfused_layer(struct pass *p, uint32_t i, uint32_t end) {
    PD_TRY(run_part(p, i, GPU_NORM, 0));
    PD_TRY(run_part(p, i, 0, GPU_PREPARED));
    if (i + 1 >= end) return PDVM_OK;
    PD_TRY(run_part(p, i + 1, GPU_ROPE, 0));
    PD_TRY(run_part(p, i + 1, 0, GPU_PREPARED));
    if (i + 2 >= end) return PDVM_OK;
    PD_TRY(run_range(p, i + 2, i + 3));
    if (i + 3 >= end) return PDVM_OK;
    return run_range(p, i + 3, i + 5 < end ? i + 5 : end);
}

/* Phases [begin, end) of one token, in pieces. */
static pdvm_status run_pieces(struct pass *p, uint32_t begin, uint32_t end, pdvm_mode mode) {
    for (uint32_t i = begin; i < end;) {
        bool layer = p->b->image.phases[i].kind == GPU_QKV;
        uint32_t next = i + 1;
        if (layer && mode != PDVM_MODE_PHASE) next = i + 5 < end ? i + 5 : end;
        if (layer && mode == PDVM_MODE_UNFUSED)
            PD_TRY(run_unfused_layer(p, i, next));
        else
            PD_TRY(run_range(p, i, next));
        i = next;
    }
    return PDVM_OK;
}

pdvm_status cuda_need_events(struct cuda_backend *b, size_t n, pdvm_error *err) {
    if (b->n_events >= n) return PDVM_OK;
    if (!b->events)
        PD_TRY(pd_calloc(&b->events, b->image.plan.n_phases + 1, sizeof *b->events, "timers", err));
    for (; b->n_events < n; b->n_events++)
        PD_TRY(cuda_try(b, b->cu->event_create(&b->events[b->n_events], 0), "making a timer", err));
    return PDVM_OK;
}

/* One token phase by phase with the device's clock between: what timing phases costs. */
static pdvm_status run_timed(struct pass *p, uint32_t begin, uint32_t end) {
    struct cuda_backend *b = p->b;
    double *seconds = p->batch->phase_seconds;
    PD_TRY(cuda_need_events(b, b->image.plan.n_phases + 1, p->err));
    PD_TRY(cuda_try(b, b->cu->event_record(b->events[begin], b->stream), "timing", p->err));
    for (uint32_t i = begin; i < end; i++) {
        PD_TRY(run_range(p, i, i + 1));
        PD_TRY(cuda_try(b, b->cu->event_record(b->events[i + 1], b->stream), "timing", p->err));
    }
    PD_TRY(cuda_try(b, b->cu->stream_synchronize(b->stream), "timing", p->err));
    for (uint32_t i = begin; i < end; i++) {
        float ms = 0;
        PD_TRY(cuda_try(b, b->cu->event_elapsed(&ms, b->events[i], b->events[i + 1]), "timing",
                        p->err));
        seconds[i] += 1e-3 * (double)ms;
    }
    return PDVM_OK;
}

pdvm_status cuda_copy_up(struct cuda_backend *b, uint64_t offset, const void *data, size_t size,
                         pdvm_error *err) {
    memcpy(b->host, data, size);
    return cuda_try(b, b->cu->copy_to_device_async(b->g + offset, b->host, size, b->stream),
                    "uploading", err);
}

/* Copies what a pass computed to out once everything is done. */
static pdvm_status copy_back(struct cuda_backend *b, uint64_t offset, void *out, size_t size,
                             pdvm_error *err) {
    uint8_t *host = b->host + b->staging_size;
    if (size)
        PD_TRY(cuda_try(b, b->cu->copy_to_host_async(host, b->g + offset, size, b->stream),
                        "reading results", err));
    PD_TRY(cuda_try(b, b->cu->stream_synchronize(b->stream), "computing", err));
    if (size) memcpy(out, host, size);
    return PDVM_OK;
}

static pdvm_status run_activation(struct pass *p, uint32_t begin, uint32_t end) {
    struct cuda_backend *b = p->b;
    const struct batch *batch = p->batch;
    size_t size = b->plan->hidden_size * sizeof(float);
    if (batch->n_tokens != 1)
        return pd_fail(p->err, PDVM_ERR_ARGUMENT, "activations of one token at a time");
    PD_TRY(cuda_copy_up(b, b->image.plan.x_in, batch->x, size, p->err));
    p->launch.flags |= GPU_X_IN;
    p->launch.x_phase = begin;
    PD_TRY(run_range(p, 0, 1));
    p->launch.flags &= ~GPU_X_IN;
    if (batch->mode == PDVM_MODE_TOKEN)
        PD_TRY(run_range(p, begin, end));
    else
        PD_TRY(run_pieces(p, begin, end, batch->mode));
    return copy_back(b, b->image.plan.x, batch->x, size, p->err);
}

/* The phases [0, end) of one token as a graph that can be launched for any step of a session. */
static pdvm_status capture(struct pass *p, uint32_t end, cu_graph_exec *out) {
    struct cuda_backend *b = p->b;
    cu_graph graph = NULL;
    PD_TRY(cuda_try(b, b->cu->stream_begin_capture(b->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                    "recording a graph", p->err));
    p->capturing = true;
    pdvm_status status = run_pieces(p, 0, end, PDVM_MODE_PHASE);
    p->capturing = false;
    cu_result ended = b->cu->stream_end_capture(b->stream, &graph);
    if (status == PDVM_OK) status = cuda_try(b, ended, "recording a graph", p->err);
    if (status == PDVM_OK)
        status = cuda_try(b, b->cu->graph_instantiate(out, graph, 0), "making a graph", p->err);
    if (graph) b->cu->graph_destroy(graph);
    return status;
}

/* The graph of a step with or without the head; made anew for another cache. */
static pdvm_status graph_for(struct pass *p, uint32_t end, cu_graph_exec *out) {
    struct cuda_backend *b = p->b;
    struct cuda_graph *g = &b->graphs[end == b->plan->n_phases];
    cu_address memory = p->batch->kv->memory;
    bool same = g->executable && g->end == end && g->kv_memory == memory &&
                memcmp(&g->kv, &p->launch.kv, sizeof g->kv) == 0 && g->n_sink == p->launch.n_sink;
    if (!same) {
        if (g->executable) b->cu->graph_exec_destroy(g->executable);
        *g = (struct cuda_graph){
            .end = end, .kv_memory = memory, .kv = p->launch.kv, .n_sink = p->launch.n_sink};
        PD_TRY(capture(p, end, &g->executable));
    }
    *out = g->executable;
    return PDVM_OK;
}

static pdvm_status run_graph(struct pass *p, uint32_t end) {
    struct cuda_backend *b = p->b;
    cu_graph_exec graph;
    p->launch.flags |= GPU_STEP_STORED;
    pdvm_status status = graph_for(p, end, &graph);
    p->launch.flags &= ~GPU_STEP_STORED;
    PD_TRY(status);
    if (p->batch->n_dispatches) ++*p->batch->n_dispatches;
    return cuda_try(b, b->cu->graph_launch(graph, b->stream), "launching a graph", p->err);
}

/* Uploads step t's token and place: from memory of its own, since nobody waits before the next one. */
static pdvm_status stage_step(struct pass *p, uint32_t t, bool place) {
    struct cuda_backend *b = p->b;
    const struct gpu_launch *l = &p->launch;
    const struct gpu_step step = {l->position, l->slot, l->n_visible, l->n_dropped};
    struct cuda_step *host = &((struct cuda_step *)(void *)b->host)[t];
    host->token = p->batch->tokens[t];
    host->step = step;
    PD_TRY(cuda_try(b,
                    b->cu->copy_to_device_async(b->g + b->image.plan.tokens, &host->token,
                                                sizeof host->token, b->stream),
                    "uploading", p->err));
    if (!place) return PDVM_OK;
    return cuda_try(b,
                    b->cu->copy_to_device_async(b->g + b->image.plan.step, &host->step,
                                                sizeof host->step, b->stream),
                    "uploading", p->err);
}

/* One step after the other, for modes that launch less than a whole token. */
static pdvm_status run_steps(struct pass *p, uint32_t end) {
    const struct batch *batch = p->batch;
    const uint32_t n_phases = (uint32_t)p->b->plan->n_phases;
    bool timed = batch->phase_seconds != NULL;
    bool graph = !timed && !batch->sync &&
                 (batch->graph || (batch->mode == PDVM_MODE_TOKEN && !p->b->cooperative));
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        uint32_t left = batch->n_tokens - t;
        bool head = end == n_phases && left <= batch->n_logits;
        p->launch.n_steps = p->launch.n_given = 1;
        p->launch.first_logits = 0;
        p->launch.n_logit_rows = 1;
        p->launch.position = batch->position + t;
        p->launch.slot = batch->slot + t;
        p->launch.n_visible = batch->n_visible + t;
        PD_TRY(stage_step(p, t, graph));
        uint32_t last = head || end < n_phases ? end : n_phases - 1;
        if (timed)
            PD_TRY(run_timed(p, 0, last));
        else if (graph)
            PD_TRY(run_graph(p, last));
        else
            PD_TRY(run_pieces(p, 0, last, batch->mode));
        size_t row = p->b->plan->n_vocab;
        if (head)
            PD_TRY(copy_back(p->b, p->b->image.plan.logits,
                             batch->logits + (batch->n_logits - left) * row, row * sizeof(float),
                             p->err));
    }
    return copy_back(p->b, 0, NULL, 0, p->err);
}

/* All steps in one launch. */
static pdvm_status run_token(struct pass *p, uint32_t end) {
    struct cuda_backend *b = p->b;
    const struct batch *batch = p->batch;
    PD_TRY(cuda_copy_up(b, b->image.plan.tokens, batch->tokens,
                        batch->n_tokens * sizeof *batch->tokens, p->err));
    p->launch.first_phase = 0;
    p->launch.end_phase = end;
    p->launch.n_steps = p->launch.n_given = batch->n_tokens;
    p->launch.first_logits = batch->n_tokens - batch->n_logits;
    p->launch.n_logit_rows = batch->n_logits ? batch->n_logits : 1;
    PD_TRY(batch->phase_seconds ? cuda_launch_timed(p, end) : cuda_launch(p, false));
    return copy_back(b, b->image.plan.logits, batch->logits,
                     (size_t)batch->n_logits * b->plan->n_vocab * sizeof(float), p->err);
}

struct gpu_launch cuda_launch_of(const struct cuda_backend *b, const struct batch *batch) {
    return (struct gpu_launch){.plan = b->image.plan_offset,
                               .kv = batch->kv->layout,
                               .n_steps = 1,
                               .n_given = 1,
                               .n_logit_rows = 1,
                               .position = batch->position,
                               .slot = batch->slot,
                               .n_visible = batch->n_visible,
                               .n_sink = batch->n_sink,
                               .n_dropped = batch->n_dropped,
                               .n_ctx = UINT32_MAX,
                               .spin_limit = SPIN_LIMIT,
                               .top_p = 1,
                               .top_k = 1};
}

pdvm_status cuda_run(struct backend *base, const struct batch *batch, pdvm_error *err) {
    struct cuda_backend *b = (struct cuda_backend *)base;
    struct pass p = {.b = b, .batch = batch, .launch = cuda_launch_of(b, batch), .err = err};
    /* Logits go to the host, so nobody needs candidates: that phase, behind the plan's, is left out. */
    uint32_t end = (uint32_t)batch->end_phase;
    PD_TRY(cuda_enter(b, err));
    if (batch->x) return run_activation(&p, (uint32_t)batch->first_phase, end);
    /* The times of several steps would be those of the last one. */
    bool timed = batch->phase_seconds && (batch->n_tokens > 1 || batch->n_logits == 0);
    if (batch->mode == PDVM_MODE_TOKEN && b->cooperative && !timed && !batch->graph)
        return run_token(&p, end);
    return run_steps(&p, end);
}
