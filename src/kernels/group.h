/** What the threads of a group share, and the walk over the phases. */
#ifndef PDVM_KERNELS_GROUP_H
#define PDVM_KERNELS_GROUP_H

#include "dialect.h"

/** Phase records that are staged in group memory: this one and what comes. */
#define STAGED 4u
#define STAGE_END 0xffffffffu /* gpu_phase.kind behind the last */

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

/**
 * Where the launch is. In group memory, like all that every thread knows, because registers that are
 * held along a launch are taken from every loop in it. Thread 0 writes the next one while the others
 * may still read this one.
 */
struct Walk {
    struct Place at;
    struct Place next;    /* after `at` */
    struct Place staging; /* the next record to stage */
    uint32_t epoch;       /* of the barrier behind it: gpu_part.epoch */
    uint32_t product; /* the next product phase, as a distance from this one; 0: none is staged */
};

/** Of the vector that a product takes. */
struct Scale {
    float scale; /* of its integers */
    float amax;  /* its largest magnitude */
};

/** Where a stream lies, in units of 16 bytes. */
struct Extent {
    uint32_t begin, end;
};

/**
 * One warp's stream of a phase. Places are counted in bytes that went through the warp's ring (modulo
 * 2^32), so a page's slot and parity follow from them; without a ring, in bytes from its beginning.
 */
struct Stream {
    uint64_t from; /* W: the next page to ask for; without a ring: the beginning */
    uint32_t at;   /* read up to here */
    uint32_t end;
    uint32_t asked;  /* pages are asked for up to here, */
    uint32_t have;   /* and have come up to here */
    uint32_t edge;   /* where the page ends that is being read */
    uint32_t opened; /* it belongs to the phase of this number in the walk */
};

/** The fixed part of group memory; behind it sums, x and the ring, see gpu_shared_size. */
struct Sh {
    uint64_t full[GPU_MAX_WARPS * GPU_RING_PAGES]; /* mbarriers of the rings' pages */
    struct gpu_phase phase[STAGED];      /* 16-byte aligned: codebooks are read as one word */
    struct Stream stream[GPU_MAX_WARPS]; /* of the current product phase, or the next one */
    uint32_t rows[STAGED][2];            /* the block's first row, and its end, of staged phases */
    struct gpu_plan plan;
    struct gpu_launch launch;
    struct Walk walk[2]; /* of phase number n of the walk: [n % 2] */
    struct Step step;
    struct Scale vector; /* in group memory at at_x */
    struct Extent next_stream[GPU_MAX_WARPS];
    uint32_t at_sums_hi, at_rows, at_parts, at_x, at_ring; /* L offsets */
    float warp_f[GPU_MAX_WARPS];
    uint32_t warp_u[GPU_MAX_WARPS];
    float part_f[GPU_MAX_WARPS]; /* of the group's part of a phase, see part_put */
    uint32_t part_u[GPU_MAX_WARPS];
    uint32_t histogram[256];
    uint32_t found[8];
};

typedef char sh_has_room[sizeof(struct Sh) <= GPU_SHARED_FIXED ? 1 : -1];

#define SH(field) (L(struct Sh, 0).field)
#define SHARED_AT(field) ((uint32_t)offsetof(struct Sh, field))

#define WALK(field) (SH(walk)[walked % 2].field)

#define SUMS_LO GPU_SHARED_FIXED

/**
 * Between phases warp 0 talks to the other groups, and the threads from this one on do the rest; all
 * do everything if there is no other warp.
 */
FN uint32_t first_aside(const struct Ctx *c) {
    return c->n_warps > 1 ? GPU_LANES : 0;
}

/** Copies the launch into group memory, where all functions read it. Needs a sync. */
FN LOCAL const struct gpu_launch *share_launch(const struct Ctx *c, const struct gpu_launch *p) {
    const uint32_t *from = (const uint32_t *)p;
    LOCAL uint32_t *to = (LOCAL uint32_t *)&SH(launch);
    for (uint32_t i = c->thread; i < (uint32_t)sizeof(struct gpu_launch) / 4; i += c->n_threads)
        to[i] = from[i];
    sync();
    return &SH(launch);
}

FN int is_product(uint32_t kind) {
    return kind == GPU_QKV || kind == GPU_OUT || kind == GPU_GATE_UP || kind == GPU_DOWN ||
           kind == GPU_HEAD;
}

/** Whether a step runs a phase: HEAD and SAMPLE only from first_logits on. */
FN int place_runs(const struct Ctx *c, LOCAL const struct gpu_launch *p, struct Place at) {
    return at.step >= p->first_logits || at.phase + 2 < SH(plan).n_phases;
}

/** The first place at or behind `at` that is run; step n_steps is the end. */
FN struct Place place_settle(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                             struct Place at) {
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

#define RECORD_WORDS ((uint32_t)sizeof(struct gpu_phase) / 4)
FN LOCAL const struct gpu_phase *record(const struct Ctx *c, uint32_t number) {
    return (LOCAL const struct gpu_phase *)&SH(phase)[number % STAGED];
}

/**
 * The last warp asks for the record at `from`, which becomes number `number` of the walk, and
 * for the rows of the block in the phase of number `rows_of`, which has been staged. An async_wait
 * and a sync later they are there.
 */
FN void stage(const struct Ctx *c, LOCAL const struct gpu_launch *p, struct Place from,
              uint32_t number, uint32_t rows_of) {
    if (c->warp + 1 != c->n_warps) return;
    uint32_t to = SHARED_AT(phase) + number % STAGED * (uint32_t)sizeof(struct gpu_phase);
    uint64_t at = SH(plan).phases + (uint64_t)from.phase * (uint32_t)sizeof(struct gpu_phase);
    uint64_t rows = record(c, rows_of)->block_rows + 4 * (uint64_t)c->block;
    int product = is_product(record(c, rows_of)->kind);
    for (uint32_t i = c->lane; i < RECORD_WORDS + 2; i += GPU_LANES) {
        if (i >= RECORD_WORDS) {
            uint32_t k = i - RECORD_WORDS;
            if (product)
                async_word(c, SHARED_AT(rows) + 8 * (rows_of % STAGED) + 4 * k,
                           c->w + rows + 4 * k);
        } else if (from.step < p->n_steps) {
            async_word(c, to + 4 * i, c->w + at + 4 * i);
        } else if (i == 0) {
            SH(phase)[number % STAGED].kind = STAGE_END;
        }
    }
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

/** Point `i` of the current phase in the block's times. */
FN void take_time(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                  uint32_t i) {
    if (c->thread != 0 || !(p->flags & GPU_TIMED)) return;
    uint64_t n = (uint64_t)c->block * SH(plan).n_phases + WALK(at).phase;
    G(uint32_t, SH(plan).times + 4 * (n * GPU_TIMES_OF_PHASE + i)) = device_clock();
}

#endif
