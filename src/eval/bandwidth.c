#include "eval/bandwidth.h"

#include "base/alloc.h"
#include "base/checked.h"
#include "base/machine.h"
#include "base/random.h"
#include "base/time.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MIB ((size_t)1 << 20)
#define HUGE_PAGE (2 * MIB)
#define PAGE ((size_t)4096)
/* Bytes ahead of the loads: the distance that the decoding kernels do best with. */
#define PREFETCH 8192
#define LINE 64
#define MOST_STREAMS 8
/* Bytes that are handed out one by one, so that a worker that is disturbed does not hold up the
 * others; less in small buffers. */
#define MOST_PIECE (32 * MIB)
#define LEAST_PIECE (MIB / 4)

struct bandwidth {
    uint8_t *memory, *data; /* data: aligned to huge pages */
    size_t size, piece;
    unsigned half;             /* the one that comes next */
    int streams;               /* of the measurement that runs */
    atomic_uint_least64_t sum; /* of all that was read, so that no load is left out */
};

typedef uint64_t line_of_words __attribute__((vector_size(LINE), may_alias));

/*
 * The sum of the 64-bit words of data[0, n); n is a multiple of streams * 4 lines. The vector type
 * has the width of a cache line; the compiler splits it into the widest loads of its target.
 */
__attribute__((always_inline)) static inline uint64_t sum_streams(const uint8_t *data, size_t n,
                                                                  int streams) {
    size_t part = n / (size_t)streams;
    line_of_words a = {0}, b = {0};
    for (size_t i = 0; i < part; i += 4 * LINE) {
        for (int s = 0; s < streams; s++) {
            const uint8_t *p = data + (size_t)s * part + i;
            const line_of_words *w = (const line_of_words *)(const void *)p;
            for (int l = 0; l < 4; l++) __builtin_prefetch(p + PREFETCH + l * LINE);
            a += w[0];
            b += w[1];
            a += w[2];
            b += w[3];
        }
    }
    a += b;
    uint64_t sum = 0;
    for (size_t i = 0; i < LINE / sizeof sum; i++) sum += a[i];
    return sum;
}

__attribute__((always_inline)) static inline uint64_t sum_any(const uint8_t *data, size_t n,
                                                              int streams) {
    switch (streams) {
    case 1: return sum_streams(data, n, 1);
    case 2: return sum_streams(data, n, 2);
    case 4: return sum_streams(data, n, 4);
    default: return sum_streams(data, n, MOST_STREAMS);
    }
}

static uint64_t sum_plain(const uint8_t *data, size_t n, int streams) {
    return sum_any(data, n, streams);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t sum_avx2(const uint8_t *data, size_t n,
                                                         int streams) {
    return sum_any(data, n, streams);
}

__attribute__((target("avx512f"))) static uint64_t sum_avx512(const uint8_t *data, size_t n,
                                                              int streams) {
    return sum_any(data, n, streams);
}
#endif

static uint64_t sum_widest(const uint8_t *data, size_t n, int streams) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return sum_avx512(data, n, streams);
    if (__builtin_cpu_supports("avx2")) return sum_avx2(data, n, streams);
#endif
    return sum_plain(data, n, streams);
}

size_t bandwidth_buffer_size(uint64_t cache) {
    uint64_t size = 4 * cache, available = pd_memory_available();
    if (size < 256 * MIB) size = 256 * MIB;
    if (size > 1024 * MIB) size = 1024 * MIB;
    if (available > 0 && size > available / 4) size = available / 4;
    return (size_t)(size < MIB ? MIB : size);
}

static void fill_range(void *arg, int64_t begin, int64_t end, int worker) {
    struct bandwidth *b = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        uint8_t *page = b->data + (size_t)i * PAGE;
        uint64_t state = (uint64_t)i, word = pd_random(&state);
        memset(page, (int)(word >> 56) | 1, PAGE);
        memcpy(page, &word, sizeof word); /* pages that differ: nothing may be merged */
    }
}

pdvm_status bandwidth_create(size_t size, struct pd_threads *threads, struct bandwidth **out,
                             pdvm_error *err) {
    struct bandwidth *b;
    *out = NULL;
    if (size > SIZE_MAX / 4) return pd_fail_memory(err, size, "the bandwidth test");
    PD_TRY(pd_calloc(&b, 1, sizeof *b, "the bandwidth test", err));
    b->piece = MOST_PIECE;
    while (b->piece > LEAST_PIECE && size < 8 * b->piece) b->piece /= 2;
    b->size = pd_round_up(size ? size : 1, 2 * b->piece);
    pdvm_status status =
        pd_alloc_aligned(&b->memory, b->size + HUGE_PAGE + PREFETCH, "the bandwidth test", err);
    if (status != PDVM_OK) {
        free(b);
        return status;
    }
    b->data = b->memory + (-(uintptr_t)b->memory & (HUGE_PAGE - 1));
#ifdef MADV_HUGEPAGE
    (void)madvise(b->data, b->size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* only a wish */
#endif
    pd_threads_for(threads, (int64_t)(b->size / PAGE), 4096, fill_range, b);
    *out = b;
    return PDVM_OK;
}

void bandwidth_free(struct bandwidth *b) {
    if (!b) return;
    free(b->memory);
    free(b);
}

size_t bandwidth_size(const struct bandwidth *b) {
    return b->size;
}

static void read_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    struct bandwidth *b = arg;
    const uint8_t *data = b->data + b->half * (b->size / 2);
    uint64_t sum = 0;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        sum += sum_widest(data + (size_t)i * b->piece, b->piece, b->streams);
    atomic_fetch_add_explicit(&b->sum, sum, memory_order_relaxed);
}

double bandwidth_measure(struct bandwidth *b, struct pd_threads *threads) {
    double best = 0;
    int64_t n = (int64_t)(b->size / 2 / b->piece);
    for (b->streams = 1; b->streams <= MOST_STREAMS; b->streams *= 2) {
        double start = pd_seconds();
        pd_threads_for(threads, n, 1, read_pieces, b);
        double seconds = pd_seconds() - start;
        double bytes = (double)n * (double)b->piece;
        if (seconds > 0 && bytes / seconds > best) best = bytes / seconds;
        b->half ^= 1; /* what the caches may still hold is not what comes next */
    }
    return best;
}
