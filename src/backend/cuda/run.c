/* Passes: tokens and activations up, launches in the chosen mode, logits back. */
#include "backend/cuda/cuda.h"

#include "base/alloc.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

/* A barrier between blocks that takes this many polls, some ten seconds, will not come any more:
 * an error is better than a GPU that hangs. */
#define SPIN_LIMIT 400000000u

struct pass {
    struct cuda_backend *b;
    const struct batch *batch;
    struct gpu_launch launch;
    size_t n_marks;       /* events recorded, when phases are timed */
    size_t mark_phase[4]; /* unused slots stay 0 */
    pdvm_error *err;
};

static pdvm_status launch(struct pass *p, bool single) {
    struct cuda_backend *b = p->b;
    cu_address k = p->batch->kv ? p->batch->kv->memory : 0;
    void *arguments[] = {&b->w, &b->g, &k, &p->launch};
    unsigned threads = b->n_threads;
    cu_result result = single ? b->cu->launch(b->phase, b->n_blocks, 1, 1, threads, 1, 1,
                                              b->shared_bytes, b->stream, arguments, NULL)
                              : b->cu->launch_cooperative(b->token, b->n_blocks, 1, 1, threads, 1,
                                                          1, b->shared_bytes, b->stream, arguments);
    if (p->batch->n_dispatches) ++*p->batch->n_dispatches;
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
    return launch(p, end - begin == 1);
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

static pdvm_status need_events(struct cuda_backend *b, size_t n, pdvm_error *err) {
    if (b->n_events >= n) return PDVM_OK;
    if (!b->events) PD_TRY(pd_calloc(&b->events, n, sizeof *b->events, "timers", err));
    for (; b->n_events < n; b->n_events++)
        PD_TRY(cuda_try(b, b->cu->event_create(&b->events[b->n_events], 0), "making a timer", err));
    return PDVM_OK;
}

/* One token phase by phase with the device's clock between: what timing phases costs. */
static pdvm_status run_timed(struct pass *p, uint32_t begin, uint32_t end) {
    struct cuda_backend *b = p->b;
    double *seconds = p->batch->phase_seconds;
    PD_TRY(need_events(b, b->image.plan.n_phases + 1, p->err));
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
        /* The candidates' phase is the device's own: it goes with the head. */
        seconds[i < b->plan->n_phases ? i : b->plan->n_phases - 1] += 1e-3 * (double)ms;
    }
    return PDVM_OK;
}

static pdvm_status copy_up(struct cuda_backend *b, uint64_t offset, const void *data, size_t size,
                           pdvm_error *err) {
    memcpy(b->host, data, size);
    return cuda_try(b, b->cu->copy_to_device_async(b->g + offset, b->host, size, b->stream),
                    "uploading", err);
}

/* Copies what a pass computed to out once everything is done. */
static pdvm_status copy_back(struct cuda_backend *b, uint64_t offset, void *out, size_t size,
                             pdvm_error *err) {
    uint8_t *host = b->host + b->max_steps * sizeof(int32_t);
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
    PD_TRY(copy_up(b, b->image.plan.x_in, batch->x, size, p->err));
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

/* One step after the other, for modes that launch less than a whole token. */
static pdvm_status run_steps(struct pass *p, uint32_t end) {
    const struct batch *batch = p->batch;
    const uint32_t n_phases = p->b->image.plan.n_phases;
    uint64_t tokens = p->b->image.plan.tokens, logits = p->b->image.plan.logits;
    (void)logits;
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        uint32_t left = batch->n_tokens - t;
        bool head = end == n_phases && left <= batch->n_logits;
        PD_TRY(copy_up(p->b, tokens, batch->tokens + t, sizeof *batch->tokens, p->err));
        p->launch.n_steps = p->launch.n_given = 1;
        p->launch.first_logits = 0;
        p->launch.n_logit_rows = 1;
        p->launch.position = batch->position + t;
        p->launch.slot = batch->slot + t;
        p->launch.n_visible = batch->n_visible + t;
        uint32_t last = head || end < n_phases ? end : n_phases - 2;
        if (batch->phase_seconds)
            PD_TRY(run_timed(p, 0, last));
        else
            PD_TRY(run_pieces(p, 0, last, batch->mode));
        size_t row = p->b->plan->n_vocab;
        if (head)
            PD_TRY(copy_back(p->b, p->b->image.plan.logits,
                             batch->logits + (batch->n_logits - left) * row, row * sizeof(float),
                             p->err));
        else
            PD_TRY(copy_back(p->b, 0, NULL, 0, p->err)); /* the token's place is used again */
    }
    return PDVM_OK;
}

/* All steps in one launch. */
static pdvm_status run_token(struct pass *p, uint32_t end) {
    struct cuda_backend *b = p->b;
    const struct batch *batch = p->batch;
    PD_TRY(copy_up(b, b->image.plan.tokens, batch->tokens, batch->n_tokens * sizeof *batch->tokens,
                   p->err));
    p->launch.first_phase = 0;
    p->launch.end_phase = end;
    p->launch.n_steps = p->launch.n_given = batch->n_tokens;
    p->launch.first_logits = batch->n_tokens - batch->n_logits;
    p->launch.n_logit_rows = batch->n_logits ? batch->n_logits : 1;
    PD_TRY(launch(p, false));
    return copy_back(b, b->image.plan.logits, batch->logits,
                     (size_t)batch->n_logits * b->plan->n_vocab * sizeof(float), p->err);
}

static struct gpu_launch launch_of(const struct cuda_backend *b, const struct batch *batch) {
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
    struct pass p = {.b = b, .batch = batch, .launch = launch_of(b, batch), .err = err};
    uint32_t end = (uint32_t)batch->end_phase;
    if (end == b->plan->n_phases) end = b->image.plan.n_phases; /* the candidates, too */
    PD_TRY(cuda_enter(b, err));
    if (batch->x) return run_activation(&p, (uint32_t)batch->first_phase, end);
    if (batch->mode == PDVM_MODE_TOKEN && b->cooperative && !batch->phase_seconds)
        return run_token(&p, end);
    return run_steps(&p, end);
}

bool cuda_can_generate(const struct backend *base, pdvm_mode mode) {
    return mode == PDVM_MODE_TOKEN && ((const struct cuda_backend *)base)->cooperative;
}

/* Where generated tokens, the last logits and the head of the result come back to. */
static pdvm_status copy_generated(struct cuda_backend *b, const struct batch *batch,
                                  int32_t *chosen, uint32_t *n, pdvm_error *err) {
    const struct gpu_plan *plan = &b->image.plan;
    const size_t head = offsetof(struct gpu_result, candidate);
    size_t row = batch->n_logits ? plan->n_vocab * sizeof(float) : 0;
    uint8_t *logits = b->host + b->max_steps * sizeof(int32_t);
    uint8_t *result = b->host + b->host_size - sizeof(struct gpu_result);
    struct gpu_result r;
    PD_TRY(cuda_try(b,
                    b->cu->copy_to_host_async(b->host, b->g + plan->tokens + sizeof(int32_t),
                                              batch->n_tokens * sizeof(int32_t), b->stream),
                    "reading tokens", err));
    PD_TRY(cuda_try(b, b->cu->copy_to_host_async(result, b->g + plan->result, head, b->stream),
                    "reading results", err));
    if (row)
        PD_TRY(cuda_try(b, b->cu->copy_to_host_async(logits, b->g + plan->logits, row, b->stream),
                        "reading logits", err));
    PD_TRY(cuda_try(b, b->cu->stream_synchronize(b->stream), "computing", err));
    memcpy(&r, result, head);
    if (isnan(r.mass))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "a logit is not a number: the weights may be bad");
    *n = r.n_steps < batch->n_tokens ? r.n_steps : batch->n_tokens;
    memcpy(chosen, b->host, *n * sizeof *chosen);
    if (row) memcpy(batch->logits, logits, row);
    return PDVM_OK;
}

pdvm_status cuda_generate(struct backend *base, const struct batch *batch,
                          const struct backend_sampling *sampling, int32_t *chosen, uint32_t *n,
                          pdvm_error *err) {
    struct cuda_backend *b = (struct cuda_backend *)base;
    struct pass p = {.b = b, .batch = batch, .launch = launch_of(b, batch), .err = err};
    p.launch.flags = GPU_SAMPLING;
    p.launch.end_phase = b->image.plan.n_phases;
    p.launch.n_steps = batch->n_tokens;
    p.launch.temperature = sampling->temperature;
    p.launch.top_k = sampling->top_k;
    p.launch.top_p = sampling->top_p;
    p.launch.min_p = sampling->min_p;
    p.launch.seed = sampling->random;
    p.launch.n_stop = sampling->n_stops;
    if (batch->n_tokens > b->max_steps || sampling->n_stops > GPU_MAX_STOPS ||
        sampling->top_k > GPU_BLOCK_TOP)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "more than a launch can generate");
    PD_TRY(cuda_enter(b, err));
    if (sampling->n_stops) {
        /* The upload's source must stay as it is until it is done. */
        uint8_t *stops = b->host + b->host_size - sizeof(struct gpu_result);
        size_t size = sampling->n_stops * sizeof *sampling->stops;
        memcpy(stops, sampling->stops, size);
        PD_TRY(cuda_try(
            b, b->cu->copy_to_device_async(b->g + b->image.plan.stops, stops, size, b->stream),
            "uploading", err));
    }
    PD_TRY(copy_up(b, b->image.plan.tokens, batch->tokens, sizeof *batch->tokens, err));
    PD_TRY(launch(&p, false));
    return copy_generated(b, batch, chosen, n, err);
}
