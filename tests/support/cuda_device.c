#include "support/cuda_device.h"

#include "backend/backend.h"
#include "support/support.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static standin_counters_fn get_counters;

void cuda_device_standin(void) {
    const char *library = getenv("PDVM_STANDIN"), *kernels = getenv("PDVM_STANDIN_KERNELS");
    if (!library || !kernels) {
        fprintf(stderr, "skipped: PDVM_STANDIN and PDVM_STANDIN_KERNELS are not set\n");
        exit(77);
    }
    setenv("PDVM_LIBCUDA", library, 1);
    setenv("PDVM_CUDA_KERNELS", kernels, 1);
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    void *symbol = handle ? dlsym(handle, STANDIN_COUNTERS) : NULL;
    if (!symbol) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    memcpy(&get_counters, &symbol, sizeof symbol);
}

struct standin_counters cuda_device_counters(void) {
    struct standin_counters c;
    get_counters(&c);
    return c;
}

void cuda_device_set(const char *name, const char *value) {
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

bool cuda_device_present(void) {
    struct pd_threads *threads;
    struct backend *b;
    pdvm_error err;
    if (pd_threads_create(1, &threads, &err) != PDVM_OK) return false;
    const struct backend_options options = {.threads = threads};
    pdvm_status status = backend_create("cuda", &options, &b, &err);
    if (status == PDVM_OK) {
        fprintf(stderr, "%s\n", b->ops->describe(b));
        b->ops->destroy(b);
    } else {
        fprintf(stderr, "skipped: %s\n", err.message);
    }
    pd_threads_free(threads);
    return status == PDVM_OK;
}
