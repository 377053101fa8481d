#include "backend/cuda/driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct {
    pthread_once_t once;
    struct cuda_driver driver;
    pdvm_status status;
    pdvm_error error;
} state = {.once = PTHREAD_ONCE_INIT};

static pdvm_status find_entry_points(void *library, const char *name, pdvm_error *err) {
    /* ISO C has no conversion from an object pointer to a function pointer; POSIX promises that
     * the representations agree. */
    void *symbol;
#define CU_FIND(member, text, arguments)                                                           \
    symbol = dlsym(library, text);                                                                 \
    if (!symbol)                                                                                   \
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,                                                  \
                       "%s has no %s: the NVIDIA driver is too old, CUDA 11.4 (driver 470) or "    \
                       "newer is needed",                                                          \
                       name, text);                                                                \
    memcpy(&state.driver.member, &symbol, sizeof symbol);
    CU_ENTRY_POINTS(CU_FIND)
#undef CU_FIND
    return PDVM_OK;
}

static pdvm_status load(pdvm_error *err) {
    const char *name = getenv("PDVM_LIBCUDA");
    if (!name || !*name) name = "libcuda.so.1";
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) return pd_fail(err, PDVM_ERR_UNSUPPORTED, "no NVIDIA driver: %s", dlerror());
    PD_TRY(find_entry_points(library, name, err));
    PD_TRY(cuda_check(&state.driver, state.driver.init(0), "starting the driver", err));
    int n = 0;
    PD_TRY(cuda_check(&state.driver, state.driver.device_count(&n), "counting devices", err));
    if (n == 0) return pd_fail(err, PDVM_ERR_UNSUPPORTED, "the NVIDIA driver sees no GPU");
    return PDVM_OK;
}

static void load_once(void) {
    state.status = load(&state.error);
}

pdvm_status cuda_driver_load(const struct cuda_driver **out, pdvm_error *err) {
    *out = NULL;
    pthread_once(&state.once, load_once);
    if (state.status != PDVM_OK) {
        if (err) *err = state.error;
        return state.status;
    }
    *out = &state.driver;
    return PDVM_OK;
}

pdvm_status cuda_check(const struct cuda_driver *cu, cu_result result, const char *what,
                       pdvm_error *err) {
    if (result == CU_SUCCESS) return PDVM_OK;
    const char *text = NULL;
    if (cu->error_string(result, &text) != CU_SUCCESS || !text) text = "unknown error";
    pdvm_status status = result == CU_ERROR_OUT_OF_MEMORY ? PDVM_ERR_MEMORY : PDVM_ERR_UNSUPPORTED;
    return pd_fail(err, status, "CUDA: %s: %s (error %d)", what, text, result);
}

pdvm_status cuda_memory(const struct cuda_driver *cu, const char *device, uint64_t size,
                        const char *what, const char *advice, cu_address *out, pdvm_error *err) {
    size_t available = 0, total = 0;
    cu_result result = cu->memory_alloc(out, (size_t)size);
    if (result == CU_SUCCESS) return PDVM_OK;
    *out = 0;
    if (result != CU_ERROR_OUT_OF_MEMORY) return cuda_check(cu, result, what, err);
    cu->memory_info(&available, &total);
    return pd_fail(
        err, PDVM_ERR_MEMORY, "%s needs %.2f GB on %s, which has %.2f of %.2f GB free: %s", what,
        (double)size * 1e-9, device, (double)available * 1e-9, (double)total * 1e-9, advice);
}
