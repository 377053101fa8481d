/**
 * Reading a stream of weights, 32 lanes together. Two forms behind the same functions: loads of up
 * to 16 bytes a lane, for any device; or the copy engine of compute capability 9.0 filling a ring of
 * GPU_RING_PAGES pages in group memory, one per warp, that the warp keeps full by itself. The ring
 * goes on filling across barriers, since weights depend on nothing: but with at most BARRIER_PAGES
 * pages under way, for the barrier's own messages queue behind them.
 */
#ifndef PDVM_KERNELS_STREAM_H
#define PDVM_KERNELS_STREAM_H

#include "group.h"

#define RING (GPU_RING_PAGES * GPU_PAGE)
#define BARRIER_PAGES 2u
#define PREFETCH_AHEAD 4096u /* bytes, portable form */

/** A stream that is being read, with addresses of group memory at hand. */
struct Reader {
    struct Stream s;
    uint32_t ring; /* L offset of the warp's ring */
#if PDVM_BULK
    uint32_t base; /* its address */
#endif
};

FN struct Reader stream_load(const struct Ctx *c) {
    struct Reader r;
    r.s = SH(stream)[c->warp];
    r.ring = SH(at_ring) + c->warp * RING;
#if PDVM_BULK
    r.base = local_address(c, r.ring);
#endif
    return r;
}

FN void stream_store(const struct Ctx *c, const struct Stream *s) {
    lane_sync(); /* all lanes have loaded it */
    if (c->lane == 0) SH(stream)[c->warp] = *s;
    lane_sync();
}

#if PDVM_BULK

FN LOCAL uint64_t *page_full(const struct Ctx *c, uint32_t at) {
    return &SH(full)[c->warp * GPU_RING_PAGES + at / GPU_PAGE % GPU_RING_PAGES];
}

/** Asks for pages until `most` are held or under way. Lanes have read what lies before s->at. */
FN void stream_fill(const struct Ctx *c, uint32_t ring, struct Stream *s, uint32_t most) {
    uint32_t limit = s->at / GPU_PAGE * GPU_PAGE + most * GPU_PAGE;
    NO_UNROLL
    while ((int32_t)(s->asked - s->end) < 0 && (int32_t)(s->asked - limit) < 0) {
        if (c->lane == 0) {
            uint32_t bytes = min_u(s->end - s->asked, GPU_PAGE);
            ptx_mbarrier_expect(page_full(c, s->asked), bytes);
            ptx_bulk_load(&L(uint8_t, ring + s->asked % RING), c->w + s->from, bytes,
                          page_full(c, s->asked));
        }
        s->from += GPU_PAGE;
        s->asked += GPU_PAGE;
    }
}

/** Waits for the next `bytes`. */
FN void stream_need(const struct Ctx *c, struct Reader *r, uint32_t bytes) {
    NO_UNROLL
    while ((int32_t)(r->s.at + bytes - r->s.have) > 0 && r->s.have != r->s.asked) {
        ptx_mbarrier_wait(page_full(c, r->s.have), r->s.have / RING & 1);
        r->s.have += GPU_PAGE;
    }
}

/** Goes past `bytes` that all lanes have read. */
FN void stream_advance(const struct Ctx *c, struct Reader *r, uint32_t bytes) {
    r->s.at += bytes;
    if ((int32_t)(r->s.at - r->s.edge) < 0) return;
    r->s.edge = r->s.at / GPU_PAGE * GPU_PAGE + GPU_PAGE;
    lane_sync();
    stream_fill(c, r->ring, &r->s, GPU_RING_PAGES);
}

FN uint32_t stream_at(const struct Reader *r, uint32_t offset) {
    return r->base + (r->s.at + offset) % RING; /* planes wrap around, too */
}

FN u32x4 stream_x4(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return local_x4(c, stream_at(r, offset + 16 * c->lane));
}
FN u32x2 stream_x2(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return local_x2(c, stream_at(r, offset + 8 * c->lane));
}
FN uint32_t stream_x1(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return local_x1(c, stream_at(r, offset + 4 * c->lane));
}
FN uint32_t stream_u16(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return local_u16(c, stream_at(r, offset + 2 * c->lane));
}
/** A word that all lanes read. */
FN uint32_t stream_word(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return local_x1(c, stream_at(r, offset));
}

FN void stream_init(const struct Ctx *c) {
    for (uint32_t i = c->thread; i < c->n_warps * GPU_RING_PAGES; i += c->n_threads) {
        ptx_mbarrier_init(&SH(full)[i]);
    }
    ptx_mbarrier_fence();
}

/** Makes `size` bytes at `from` in W the stream that is read next; the one before was read to its end. */
FN void stream_begin(struct Stream *s, uint64_t from, uint32_t size) {
    s->from = from;
    s->at = s->asked;
    s->end = s->at + size;
    s->have = s->at;
    s->edge = s->at + GPU_PAGE;
}

/** Waits for what was asked for and not read: group memory must not be written after the end. */
FN void stream_drain(const struct Ctx *c) {
    struct Stream s = SH(stream)[c->warp];
    for (; s.have != s.asked; s.have += GPU_PAGE)
        ptx_mbarrier_wait(page_full(c, s.have), s.have / RING & 1);
}

#else

FN void stream_fill(const struct Ctx *c, uint32_t ring, struct Stream *s, uint32_t most) {
    uint32_t limit = min_u(s->end, most * GPU_PAGE);
    (void)ring;
    for (uint32_t i = c->lane * GPU_LINE; i < limit; i += GPU_LANES * GPU_LINE)
        prefetch(c->w + s->from + i);
}

FN void stream_need(const struct Ctx *c, struct Reader *r, uint32_t bytes) {
    (void)c;
    (void)r;
    (void)bytes;
}

FN void stream_advance(const struct Ctx *c, struct Reader *r, uint32_t bytes) {
    uint32_t ahead = r->s.at + PREFETCH_AHEAD + c->lane * GPU_LINE;
    if (c->lane * GPU_LINE < bytes && ahead < r->s.end) prefetch(c->w + r->s.from + ahead);
    r->s.at += bytes;
}

FN u32x4 stream_x4(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return load_x4(c->w + r->s.from + r->s.at + offset + 16 * c->lane);
}
FN u32x2 stream_x2(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return load_x2(c->w + r->s.from + r->s.at + offset + 8 * c->lane);
}
FN uint32_t stream_x1(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return load_x1(c->w + r->s.from + r->s.at + offset + 4 * c->lane);
}
FN uint32_t stream_u16(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return load_u16(c->w + r->s.from + r->s.at + offset + 2 * c->lane);
}
FN uint32_t stream_word(const struct Ctx *c, const struct Reader *r, uint32_t offset) {
    return load_x1(c->w + r->s.from + r->s.at + offset);
}

FN void stream_init(const struct Ctx *c) {
    (void)c;
}

FN void stream_begin(struct Stream *s, uint64_t from, uint32_t size) {
    s->from = from;
    s->at = 0;
    s->end = size;
}

FN void stream_drain(const struct Ctx *c) {
    (void)c;
}

#endif

/** The next product phase in the walk, as a distance from the current one; 0: none is staged. */
FN uint32_t next_product(const struct Ctx *c, uint32_t walked) {
    for (uint32_t i = 1; i + 1 < STAGED; i++) { /* the last is just being staged */
        uint32_t kind = record(c, walked + i)->kind;
        if (kind == STAGE_END) return 0;
        if (is_product(kind)) return i;
    }
    return 0;
}

/** Asks where the warp's stream of phase `number` lies, long before it is opened: async_wait. */
FN void stream_look_ahead(const struct Ctx *c, uint32_t number) {
    uint64_t table = record(c, number)->streams;
    uint64_t i = (uint64_t)c->block * c->n_warps + c->warp + c->lane;
    if (c->lane < 2)
        async_word(c, SHARED_AT(next_stream) + 8 * c->warp + 4 * c->lane, c->w + table + 4 * i);
}

/** Makes it the warp's stream and asks for its first pages; the one before was read to its end. */
FN void stream_open(const struct Ctx *c, uint32_t number) {
    lane_sync(); /* the lanes that looked ahead have waited */
    struct Stream s = SH(stream)[c->warp];
    struct Extent e = SH(next_stream)[c->warp];
    stream_begin(&s, record(c, number)->weights + 16 * (uint64_t)e.begin, 16 * (e.end - e.begin));
    s.opened = number;
    stream_fill(c, SH(at_ring) + c->warp * RING, &s, BARRIER_PAGES);
    stream_store(c, &s);
}

/** Asks for as much as the ring holds. */
FN void stream_fill_up(const struct Ctx *c) {
    struct Stream s = SH(stream)[c->warp];
    stream_fill(c, SH(at_ring) + c->warp * RING, &s, GPU_RING_PAGES);
    stream_store(c, &s);
}

#endif
