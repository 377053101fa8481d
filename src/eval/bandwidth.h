/**
 * How fast the processors can read memory: the bar for decoding, which reads every weight once per
 * token. Loads are as wide as the processor has them; threads walk pieces of the buffer as
 * 1, 2, 4 and 8 streams in turn, with software prefetch, and the fastest way counts.
 */
#ifndef PDVM_EVAL_BANDWIDTH_H
#define PDVM_EVAL_BANDWIDTH_H

#include "base/threads.h"

#include <stddef.h>

struct bandwidth;

/** A buffer size far beyond a last-level cache of `cache` bytes that leaves memory for others. */
size_t bandwidth_buffer_size(uint64_t cache);

/** Allocates and fills a buffer of `size` bytes (rounded up a little), with huge pages if possible. */
pdvm_status bandwidth_create(size_t size, struct pd_threads *threads, struct bandwidth **out,
                             pdvm_error *err);

/** Frees it. NULL is allowed. */
void bandwidth_free(struct bandwidth *b);

/** Size of the buffer in bytes. */
size_t bandwidth_size(const struct bandwidth *b);

/**
 * Reads half of the buffer in each way, the halves in turn, with all workers of the team, and returns
 * the bytes per second of the fastest.
 */
double bandwidth_measure(struct bandwidth *b, struct pd_threads *threads);

#endif
