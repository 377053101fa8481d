/** Reading a model's weights only to report on them. */
#ifndef PDVM_COMPRESS_SCAN_H
#define PDVM_COMPRESS_SCAN_H

#include "base/notify.h"
#include "base/threads.h"
#include "compress/report.h"

/**
 * Reads every tensor of a source and reports its zeros, coding and bytes in `out` (errors are
 * unknown), and in `converted` what convert would make of it with its defaults: what would be lost
 * and gained. Progress stage: "reading". Both must be zeroed, and are freed by report_free also on
 * failure.
 */
pdvm_status scan_source(struct model_source *source, struct pd_threads *threads,
                        const struct pd_notify *notify, struct report *out,
                        struct report *converted, pdvm_error *err);

/**
 * Reads and checks every matrix and vector of a .pdvm file completely (mdcsr_check) and compares
 * the hash of its data. Progress stage: "checking".
 */
pdvm_status scan_check(const struct container *c, const struct pd_notify *notify, pdvm_error *err);

#endif
