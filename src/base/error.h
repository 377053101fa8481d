/** Errors as values: filling the caller's pdvm_error. */
#ifndef PDVM_BASE_ERROR_H
#define PDVM_BASE_ERROR_H

#include "pdvm.h"

#if defined(__GNUC__)
#define PD_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define PD_PRINTF(fmt, args)
#endif

/** Returns from the calling function if `expr` is not PDVM_OK. */
#define PD_TRY(expr)                                                                               \
    do {                                                                                           \
        pdvm_status pd_try_status = (expr);                                                        \
        if (pd_try_status != PDVM_OK) return pd_try_status;                                        \
    } while (0)

/**
 * Turns control characters into '?'. Messages quote names from files: a terminal escape in one
 * must not reach the user.
 */
void pd_defuse(char *s);

/** Fills `err` (may be NULL) and returns `status`. Control characters in the text become '?'. */
pdvm_status pd_fail(pdvm_error *err, pdvm_status status, const char *fmt, ...) PD_PRINTF(3, 4);

/** PDVM_ERR_IO (or _MEMORY for ENOMEM): "PATH: what: strerror(errno)". */
pdvm_status pd_fail_errno(pdvm_error *err, const char *path, const char *what);

/** PDVM_ERR_MEMORY: "out of memory: N bytes for WHAT". */
pdvm_status pd_fail_memory(pdvm_error *err, size_t size, const char *what);

/** Puts "prefix: " before a message already in `err`; returns its status. `err` may be NULL. */
pdvm_status pd_prefix(pdvm_error *err, pdvm_status status, const char *fmt, ...) PD_PRINTF(3, 4);

/* The analyser sees one file at a time: tell it that a failure is never PDVM_OK. */
#if defined(__clang_analyzer__) && !defined(PD_ERROR_IMPLEMENTATION)
#define pd_fail(err, status, ...) ((void)pd_fail(err, status, __VA_ARGS__), (status))
#define pd_fail_errno(err, path, what) ((void)pd_fail_errno(err, path, what), PDVM_ERR_IO)
#define pd_fail_memory(err, size, what) ((void)pd_fail_memory(err, size, what), PDVM_ERR_MEMORY)
#endif

#endif
