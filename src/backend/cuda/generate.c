/* Many tokens in a launch: the device chooses them itself. */
#include "backend/cuda/pass.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

bool cuda_can_generate(const struct backend *base, pdvm_mode mode) {
    return mode == PDVM_MODE_TOKEN && ((const struct cuda_backend *)base)->cooperative;
}

/* Where generated tokens, the last logits and the head of the result come back to. */
static pdvm_status copy_generated(struct cuda_backend *b, const struct batch *batch,
                                  int32_t *chosen, uint32_t *n, pdvm_error *err) {
    const struct gpu_plan *plan = &b->image.plan;
    const size_t head = offsetof(struct gpu_result, candidate) + sizeof(struct gpu_candidate);
    size_t row = batch->n_logits ? plan->n_vocab * sizeof(float) : 0;
    uint8_t *logits = b->host + b->staging_size;
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
    if (isnan(r.mass) || isnan(r.candidate[0].logit))
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
    struct pass p = {.b = b, .batch = batch, .launch = cuda_launch_of(b, batch), .err = err};
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
    PD_TRY(cuda_copy_up(b, b->image.plan.tokens, batch->tokens, sizeof *batch->tokens, err));
    PD_TRY(cuda_launch(&p, false));
    return copy_generated(b, batch, chosen, n, err);
}
