/** The caller's callbacks, passed down as one value: log lines and progress. */
#ifndef PDVM_BASE_NOTIFY_H
#define PDVM_BASE_NOTIFY_H

#include "base/error.h"

/** Callbacks; all may be NULL. Copied by value. */
struct pd_notify {
    pdvm_progress_fn progress;
    void *progress_user;
    pdvm_log_fn log;
    void *log_user;
};

/** Logs a line through the callback; nothing if `n` or its callback is NULL. */
void pd_log(const struct pd_notify *n, pdvm_log_level level, const char *fmt, ...) PD_PRINTF(3, 4);

/** Reports progress; PDVM_ERR_CANCELLED if the callback says stop. `n` may be NULL. */
pdvm_status pd_progress(const struct pd_notify *n, const char *stage, double fraction,
                        pdvm_error *err);

#endif
