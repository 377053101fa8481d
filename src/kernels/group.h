/** What the threads of a group share, the walk over the phases, and barriers. */
#ifndef PDVM_KERNELS_GROUP_H
#define PDVM_KERNELS_GROUP_H

#include "dialect.h"

/** Phase records that are staged in group memory: this one and what comes. */
#define STAGED 4u
#define STAGE_END 0xffffffffu /* gpu_phase.kind behind the last */

/** The fixed part of group memory; behind it sums, x and the ring, see gpu_shared_size. */
struct Sh {
    uint64_t full[GPU_MAX_WARPS * GPU_RING_PAGES]; /* mbarriers of the rings' pages */
    struct gpu_phase phase[STAGED]; /* 16-byte aligned: codebooks are read as one word */
    struct gpu_plan plan;
    float warp_f[GPU_MAX_WARPS];
    uint32_t warp_u[GPU_MAX_WARPS];
    uint32_t histogram[256];
    uint32_t found[8];
};

#define SH(field) (L(struct Sh, 0).field)

/** The token of a step, as struct batch has it. */
struct Step {
    uint32_t index;
    uint32_t position;
    uint32_t slot;
    uint32_t n_visible;
    uint32_t n_dropped;
};

/** A place in the walk: phases [first, end) for each step, HEAD and SAMPLE only where wanted. */
struct Place {
    uint32_t step;
    uint32_t phase;
};

/** One warp's stream of a phase. */
struct Stream {
    uint64_t base;   /* W */
    uint32_t size;   /* bytes */
    uint32_t at;     /* bytes that have been read */
    uint32_t first;  /* pages that went through the ring before */
    uint32_t issued; /* pages asked for */
    uint32_t ready;  /* pages that have come */
};

/** What a launch carries along. */
struct Run {
    struct Step step;
    struct Place staging; /* the next record to stage */
    uint32_t walked;      /* phases so far: record walked % STAGED is the current one */
    uint32_t target;  /* arrivals at the grid's barrier when it is passed next, less one round */
    uint32_t sums_hi; /* L offsets */
    uint32_t x;
    uint32_t ring;
    struct Stream stream; /* of the current product phase, or the next one */
    uint32_t opened;      /* the stream belongs to the phase of this number in the walk */
    uint32_t next_begin;  /* of the next stream to open, units of 16 bytes */
    uint32_t next_end;
    float scale; /* of x in group memory */
    float amax;  /* its largest magnitude */
};

#define SUMS_LO GPU_SHARED_FIXED

FN int is_product(uint32_t kind) {
    return kind == GPU_QKV || kind == GPU_OUT || kind == GPU_GATE_UP || kind == GPU_DOWN ||
           kind == GPU_HEAD;
}

/** Whether a step runs a phase: HEAD and SAMPLE only from first_logits on. */
FN int place_runs(const struct Ctx *c, const struct gpu_launch *p, struct Place at) {
    return at.step >= p->first_logits || at.phase + 2 < SH(plan).n_phases;
}

/** The first place at or behind `at` that is run; step n_steps is the end. */
FN struct Place place_settle(const struct Ctx *c, const struct gpu_launch *p, struct Place at) {
    while (at.step < p->n_steps) {
        if (at.phase >= p->end_phase) {
            at.step++;
            at.phase = p->first_phase;
        } else if (!place_runs(c, p, at)) {
            at.phase++;
        } else {
            break;
        }
    }
    return at;
}

/** Threads of the group copy the record at run->staging to its place. Needs a sync before its use. */
FN void stage(const struct Ctx *c, const struct gpu_launch *p, struct Run *run, uint32_t number) {
    const uint32_t words = (uint32_t)sizeof(struct gpu_phase) / 4;
    uint32_t to = (uint32_t)(number % STAGED) * words;
    run->staging = place_settle(c, p, run->staging);
    LOCAL uint32_t *records = (LOCAL uint32_t *)&SH(phase);
    if (run->staging.step >= p->n_steps) {
        if (c->thread == 0) records[to] = STAGE_END;
        return;
    }
    uint64_t from =
        SH(plan).phases + (uint64_t)run->staging.phase * (uint32_t)sizeof(struct gpu_phase);
    for (uint32_t i = c->thread; i < words; i += c->n_threads)
        records[to + i] = W(uint32_t, from + 4 * i);
    run->staging.phase++;
}

/** The record `ahead` phases from here. */
FN LOCAL const struct gpu_phase *staged(const struct Ctx *c, const struct Run *run,
                                        uint32_t ahead) {
    return (LOCAL const struct gpu_phase *)&SH(phase)[(run->walked + ahead) % STAGED];
}

/**
 * Sum and largest of the group, on every thread of warp 0. The order of the additions does not
 * depend on timing. Contains a sync, behind which all writes of the group are done.
 */
FN void group_reduce(const struct Ctx *c, float *sum, uint32_t *largest) {
    float f = lane_sum(*sum);
    uint32_t u = lane_max_u(*largest);
    if (c->lane == 0) {
        SH(warp_f)[c->warp] = f;
        SH(warp_u)[c->warp] = u;
    }
    sync();
    if (c->warp == 0) {
        f = c->lane < c->n_warps ? SH(warp_f)[c->lane] : 0.0f;
        u = c->lane < c->n_warps ? SH(warp_u)[c->lane] : 0;
        *sum = lane_sum(f);
        *largest = lane_max_u(u);
    }
}

#if PDVM_GRID_SYNC
/**
 * All groups arrive before any goes on. Thread 0's writes need no sync before; those of other
 * threads do. Counts arrivals for ever (wrapping), so that it never has to be reset.
 */
FN void grid_sync(const struct Ctx *c, const struct gpu_launch *p, struct Run *run) {
    run->target += c->n_blocks;
    if (c->thread == 0) {
        GLOBAL uint32_t *count = &G(uint32_t, SH(plan).barrier);
        uint32_t polls = 0;
        grid_add_release(count);
        while ((int32_t)(grid_load_acquire(count) - run->target) < 0) {
            if (++polls != p->spin_limit || p->spin_limit == 0) continue;
            GLOBAL uint32_t *fault = &G(uint32_t, SH(plan).fault);
            fault[1] = run->walked;
            fault[2] = c->block;
            fault[3] = run->target;
            fault[0] = 1;
            give_up();
        }
    }
    sync();
}
#endif

#endif
