#include "base/notify.h"

#include <stdarg.h>
#include <stdio.h>

void pd_log(const struct pd_notify *n, pdvm_log_level level, const char *fmt, ...) {
    if (!n || !n->log) return;
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    pd_defuse(line);
    n->log(n->log_user, level, line);
}

pdvm_status pd_progress(const struct pd_notify *n, const char *stage, double fraction,
                        pdvm_error *err) {
    if (!n || !n->progress || n->progress(n->progress_user, stage, fraction)) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_CANCELLED, "%s: cancelled", stage);
}
