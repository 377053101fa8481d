#define PD_ERROR_IMPLEMENTATION
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *pdvm_version(void) {
    return PDVM_VERSION;
}

const char *pdvm_status_name(pdvm_status status) {
    switch (status) {
    case PDVM_OK: return "ok";
    case PDVM_ERR_ARGUMENT: return "invalid argument";
    case PDVM_ERR_MEMORY: return "out of memory";
    case PDVM_ERR_IO: return "input/output error";
    case PDVM_ERR_FORMAT: return "format error";
    case PDVM_ERR_UNSUPPORTED: return "unsupported";
    case PDVM_ERR_RANGE: return "out of range";
    case PDVM_ERR_CANCELLED: return "cancelled";
    }
    return "unknown status";
}

void pd_defuse(char *s) {
    for (unsigned char *p = (unsigned char *)s; *p; p++) {
        if (*p < 0x20 || *p == 0x7f) *p = '?';
        /* U+0080 to U+009F are control characters, too: some terminals take U+009B for ESC [. */
        if (*p == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f) p[0] = p[1] = '?';
    }
}

pdvm_status pd_fail(pdvm_error *err, pdvm_status status, const char *fmt, ...) {
    if (!err) return status;
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    pd_defuse(err->message);
    err->status = status;
    return status;
}

pdvm_status pd_fail_errno(pdvm_error *err, const char *path, const char *what) {
    int e = errno;
    return pd_fail(err, e == ENOMEM ? PDVM_ERR_MEMORY : PDVM_ERR_IO, "%s: %s: %s", path, what,
                   strerror(e));
}

pdvm_status pd_fail_memory(pdvm_error *err, size_t size, const char *what) {
    return pd_fail(err, PDVM_ERR_MEMORY, "out of memory: %zu bytes for %s", size, what);
}

pdvm_status pd_prefix(pdvm_error *err, pdvm_status status, const char *fmt, ...) {
    if (!err) return status;
    char old[sizeof err->message];
    memcpy(old, err->message, sizeof old);
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof err->message)
        snprintf(err->message + n, sizeof err->message - (size_t)n, ": %s", old);
    pd_defuse(err->message);
    return status;
}
