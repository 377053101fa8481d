/* Where the time of a fused token goes: from the clocks that every block reads around its phases. */
#include "backend/cuda/pass.h"

#include "base/alloc.h"

#include <stdlib.h>

/* Cycles, means over the blocks: they wait for each other, so all see about the same. */
struct cycles {
    double total;
    double barriers; /* from the last block's arrival to the first one that goes on */
};

static const uint32_t *times_of(const struct gpu_plan *plan, const uint32_t *times, uint32_t block,
                                uint32_t phase) {
    return times + ((size_t)block * plan->n_phases + phase) * GPU_TIMES_OF_PHASE;
}

/* Differences are right although the clocks wrap around. */
static double phase_cycles(const struct gpu_plan *plan, const uint32_t *times, uint32_t phase,
                           bool last, double *barrier) {
    double sum = 0, most = 0;
    uint32_t least = UINT32_MAX;
    for (uint32_t b = 0; b < plan->n_blocks; b++) {
        const uint32_t *t = times_of(plan, times, b, phase);
        uint32_t own = t[GPU_TIMES_OF_PHASE - 1] - t[0];
        if (own > most) most = own;
        if (last) continue;
        uint32_t next = times_of(plan, times, b, phase + 1)[0];
        sum += next - t[0];
        uint32_t wait = next - t[GPU_TIMES_OF_PHASE - 1];
        if (wait < least) least = wait;
    }
    if (last) return most;
    *barrier += least;
    return sum / plan->n_blocks;
}

/* Shares the launch's time out. */
static void book(const struct cuda_backend *b, const struct batch *batch, const uint32_t *times,
                 uint32_t end, double seconds) {
    const struct gpu_plan *plan = &b->image.plan;
    struct cycles c = {0};
    for (uint32_t i = 0; i < end; i++)
        c.total += phase_cycles(plan, times, i, i + 1 == end, &c.barriers);
    if (c.total <= 0) return;
    double unused = 0;
    for (uint32_t i = 0; i < end; i++)
        batch->phase_seconds[i] +=
            seconds * phase_cycles(plan, times, i, i + 1 == end, &unused) / c.total;
    if (batch->barrier_seconds && end > 1)
        *batch->barrier_seconds += seconds * c.barriers / c.total / (end - 1);
}

pdvm_status cuda_launch_timed(struct pass *p, uint32_t end) {
    struct cuda_backend *b = p->b;
    const struct gpu_plan *plan = &b->image.plan;
    size_t n = (size_t)plan->n_blocks * plan->n_phases * GPU_TIMES_OF_PHASE;
    uint32_t *times;
    float ms = 0;
    PD_TRY(cuda_need_events(b, 2, p->err));
    p->launch.flags |= GPU_TIMED;
    PD_TRY(cuda_try(b, b->cu->event_record(b->events[0], b->stream), "timing", p->err));
    PD_TRY(cuda_launch(p, false));
    PD_TRY(cuda_try(b, b->cu->event_record(b->events[1], b->stream), "timing", p->err));
    PD_TRY(cuda_try(b, b->cu->stream_synchronize(b->stream), "computing", p->err));
    PD_TRY(cuda_try(b, b->cu->event_elapsed(&ms, b->events[0], b->events[1]), "timing", p->err));
    PD_TRY(pd_calloc(&times, n, sizeof *times, "times", p->err));
    pdvm_status status = cuda_try(
        b, b->cu->copy_to_host(times, b->g + plan->times, n * sizeof *times), "timing", p->err);
    if (status == PDVM_OK) book(b, p->batch, times, end, 1e-3 * (double)ms);
    free(times);
    return status;
}
