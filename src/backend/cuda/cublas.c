#include "backend/cuda/cublas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const char *const library_names[] = {
    "libcublas.so.13",
    "libcublas.so.12",
    "libcublas.so.11",
    /* Where the toolkit installs itself without telling the dynamic linker. */
    "/usr/local/cuda/lib64/libcublas.so.13",
    "/usr/local/cuda/lib64/libcublas.so.12",
    "/usr/local/cuda/lib64/libcublas.so.11",
};

static struct {
    pthread_once_t once;
    struct cublas table;
    pdvm_status status;
    pdvm_error error;
} state = {.once = PTHREAD_ONCE_INIT};

static pdvm_status find_entry_points(void *library, const char *name, pdvm_error *err) {
    /* As in driver.c: POSIX promises what ISO C does not. */
    void *symbol;
#define CUBLAS_FIND(member, text, arguments)                                                       \
    symbol = dlsym(library, text);                                                                 \
    if (!symbol)                                                                                   \
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,                                                  \
                       "%s has no %s: cuBLAS of CUDA 11.2 or newer is needed", name, text);        \
    memcpy(&state.table.member, &symbol, sizeof symbol);
    CUBLAS_ENTRY_POINTS(CUBLAS_FIND)
#undef CUBLAS_FIND
    return PDVM_OK;
}

static pdvm_status load(pdvm_error *err) {
    const char *name = getenv("PDVM_LIBCUBLAS");
    if (name && *name) {
        void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (library) return find_entry_points(library, name, err);
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "no cuBLAS: %s", dlerror());
    }
    for (size_t i = 0; i < sizeof library_names / sizeof *library_names; i++) {
        void *library = dlopen(library_names[i], RTLD_NOW | RTLD_LOCAL);
        if (library) return find_entry_points(library, library_names[i], err);
    }
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "cuBLAS cannot be loaded: install it (libcublas of NVIDIA's CUDA toolkit), or "
                   "name its file in PDVM_LIBCUBLAS");
}

static void load_once(void) {
    state.status = load(&state.error);
}

pdvm_status cublas_load(const struct cublas **out, pdvm_error *err) {
    *out = NULL;
    pthread_once(&state.once, load_once);
    if (state.status == PDVM_OK) *out = &state.table;
    if (state.status != PDVM_OK && err) *err = state.error;
    return state.status;
}

/* cublasGetStatusString is younger than what else is needed. */
static const char *status_text(cublas_result result) {
    switch (result) {
    case 1: return "the library was not initialised";
    case CUBLAS_ALLOC_FAILED: return "out of memory";
    case 7: return "invalid value";
    case 8: return "the library does not know this device";
    case 11: return "no access to memory";
    case 13: return "the device failed";
    case 14: return "internal error";
    case 15: return "not supported";
    default: return "unknown error";
    }
}

pdvm_status cublas_check(cublas_result result, const char *what, pdvm_error *err) {
    if (result == CUBLAS_SUCCESS) return PDVM_OK;
    return pd_fail(err, result == CUBLAS_ALLOC_FAILED ? PDVM_ERR_MEMORY : PDVM_ERR_UNSUPPORTED,
                   "cuBLAS: %s: %s (status %d)", what, status_text(result), result);
}
