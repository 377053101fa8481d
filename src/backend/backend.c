#include "backend/backend.h"

#include <string.h>

static const struct {
    const char *name;
    pdvm_status (*create)(const struct backend_options *, struct backend **, pdvm_error *);
} backends[] = {
    {"cpu", cpu_backend_create},
    {"cuda", cuda_backend_create},
};

/* A GPU if there is one that will do, and the CPU otherwise. */
static pdvm_status create_best(const struct backend_options *options, struct backend **out,
                               pdvm_error *err) {
    pdvm_error why;
    pdvm_status status = cuda_backend_create(options, out, &why);
    if (status == PDVM_OK) return PDVM_OK;
    /* A GPU that is there and not used is worth a word; that there is none is not. */
    pdvm_log_level level = status == PDVM_ERR_MEMORY ? PDVM_LOG_WARN : PDVM_LOG_DEBUG;
    if (options->notify) pd_log(options->notify, level, "not on a GPU: %s", why.message);
    return cpu_backend_create(options, out, err);
}

pdvm_status backend_create(const char *name, const struct backend_options *options,
                           struct backend **out, pdvm_error *err) {
    *out = NULL;
    if (!name || strcmp(name, "auto") == 0) return create_best(options, out, err);
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i].name, name) == 0) return backends[i].create(options, out, err);
    return pd_fail(err, PDVM_ERR_ARGUMENT, "unknown backend \"%s\": auto, cpu or cuda", name);
}

size_t kv_head_row_bytes(pdvm_kv_type type, uint32_t head_dim) {
    switch (type) {
    case PDVM_KV_F32: return (size_t)head_dim * 4;
    case PDVM_KV_F16: return (size_t)head_dim * 2;
    case PDVM_KV_INT8: return (size_t)head_dim + sizeof(float);
    }
    return 0;
}
