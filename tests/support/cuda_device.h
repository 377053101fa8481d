/** A CUDA device for tests: this machine's, or the stand-in that emulates one. */
#ifndef PDVM_TESTS_CUDA_DEVICE_H
#define PDVM_TESTS_CUDA_DEVICE_H

#include "standin/standin.h"

#include <stdbool.h>

/**
 * Has the process find the stand-in instead of a driver. Before the first model is opened. Skips the
 * test program (exit status 77) if it is not run by ctest, which says where the stand-in is.
 */
void cuda_device_standin(void);

/** What the stand-in has counted; only after cuda_device_standin. */
struct standin_counters cuda_device_counters(void);

/** Sets one of the stand-in's environment variables; NULL: its default. */
void cuda_device_set(const char *name, const char *value);

/** Whether a CUDA device can be opened; prints its name, or why not. */
bool cuda_device_present(void);

#endif
