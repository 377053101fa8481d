/* The device's read bandwidth, measured by a kernel that does nothing else. */
#include "backend/cuda/cuda.h"

#include "base/alloc.h"
#include "base/random.h"

#include <stdlib.h>
#include <string.h>

#define PATTERN ((size_t)1 << 20)
#define CACHES 32u /* the buffer is so many times the cache of the second level */
#define LEAST (16 * PATTERN)
#define MOST (2048 * PATTERN)
#define BLOCKS_AT_ONCE 4u /* of a multiprocessor: enough loads under way to keep memory busy */
#define REPETITIONS 3

struct reading {
    struct cuda_backend *b;
    cu_function function;
    cu_event begin, end;
    cu_address data, sums;
    size_t size;
    uint32_t n_blocks;
};

static size_t buffer_size(const struct cuda_backend *b) {
    int cache = 0;
    size_t available = 0, total = 0, size = LEAST;
    (void)b->cu->device_attribute(&cache, CU_ATTRIBUTE_L2_CACHE_SIZE, b->device);
    (void)b->cu->memory_info(&available, &total);
    if (cache > 0 && (size_t)cache * CACHES > size) size = (size_t)cache * CACHES;
    if (size > MOST) size = MOST;
    if (size > available / 2) size = available / 2;
    return size / PATTERN * PATTERN;
}

/* Random bytes, copied on the device until the buffer is full. */
static pdvm_status fill(const struct reading *r, pdvm_error *err) {
    const struct cuda_backend *b = r->b;
    uint64_t *pattern, seed = 1;
    PD_TRY(pd_calloc(&pattern, PATTERN / sizeof *pattern, sizeof *pattern, "a pattern", err));
    for (size_t i = 0; i < PATTERN / sizeof *pattern; i++) pattern[i] = pd_random(&seed);
    pdvm_status status =
        cuda_try(b, b->cu->copy_to_device(r->data, pattern, PATTERN), "uploading", err);
    free(pattern);
    for (size_t done = PATTERN; status == PDVM_OK && done < r->size;) {
        size_t more = r->size - done < done ? r->size - done : done;
        status = cuda_try(b, b->cu->copy_on_device_async(r->data + done, r->data, more, b->stream),
                          "copying", err);
        done += more;
    }
    return status;
}

static pdvm_status open_reading(struct reading *r, pdvm_error *err) {
    struct cuda_backend *b = r->b;
    r->size = buffer_size(b);
    r->n_blocks = BLOCKS_AT_ONCE * b->n_blocks;
    if (r->size == 0)
        return pd_fail(err, PDVM_ERR_MEMORY, "%s has no memory left to measure with", b->name);
    PD_TRY(cuda_try(b, b->cu->module_function(&r->function, b->module, "pdvm_read"),
                    "finding a kernel", err));
    PD_TRY(cuda_try(b, b->cu->event_create(&r->begin, 0), "making a timer", err));
    PD_TRY(cuda_try(b, b->cu->event_create(&r->end, 0), "making a timer", err));
    PD_TRY(cuda_alloc(b, r->size, "measuring the bandwidth", &r->data, err));
    PD_TRY(cuda_alloc(b, (uint64_t)r->n_blocks * b->n_threads * sizeof(uint32_t),
                      "measuring the bandwidth", &r->sums, err));
    return fill(r, err);
}

static void close_reading(struct reading *r) {
    const struct cuda_driver *cu = r->b->cu;
    if (r->data) cu->memory_free(r->data);
    if (r->sums) cu->memory_free(r->sums);
    if (r->begin) cu->event_destroy(r->begin);
    if (r->end) cu->event_destroy(r->end);
}

static pdvm_status read_once(struct reading *r, double *rate, pdvm_error *err) {
    struct cuda_backend *b = r->b;
    cu_address none = 0;
    struct gpu_launch launch = {.read_bytes = r->size};
    void *arguments[] = {&r->data, &r->sums, &none, &launch};
    float ms = 0;
    PD_TRY(cuda_try(b, b->cu->event_record(r->begin, b->stream), "timing", err));
    PD_TRY(cuda_try(b,
                    b->cu->launch(r->function, r->n_blocks, 1, 1, b->n_threads, 1, 1, 0, b->stream,
                                  arguments, NULL),
                    "launching a kernel", err));
    PD_TRY(cuda_try(b, b->cu->event_record(r->end, b->stream), "timing", err));
    PD_TRY(cuda_try(b, b->cu->stream_synchronize(b->stream), "reading memory", err));
    PD_TRY(cuda_try(b, b->cu->event_elapsed(&ms, r->begin, r->end), "timing", err));
    *rate = ms > 0 ? (double)r->size / (1e-3 * (double)ms) : 0;
    return PDVM_OK;
}

pdvm_status cuda_read_bandwidth(struct backend *base, double *out, pdvm_error *err) {
    struct reading r = {.b = (struct cuda_backend *)base};
    *out = 0;
    PD_TRY(cuda_enter(r.b, err));
    pdvm_status status = open_reading(&r, err);
    for (int i = 0; i <= REPETITIONS && status == PDVM_OK; i++) {
        double rate = 0;
        status = read_once(&r, &rate, err);
        if (i > 0 && rate > *out) *out = rate; /* the first one warms up */
    }
    close_reading(&r);
    return status;
}
