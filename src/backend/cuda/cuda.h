/** The CUDA backend's insides. */
#ifndef PDVM_BACKEND_CUDA_CUDA_H
#define PDVM_BACKEND_CUDA_CUDA_H

#include "backend/backend.h"
#include "backend/cuda/driver.h"
#include "backend/cuda/image.h"

/** A matrix in its canonical form: packed with the others of its phase, in cuda_prepare. */
struct backend_matrix {
    const struct mdcsr *m;
    size_t bytes; /* of the phase in device memory; with the first of its matrices */
};

struct backend_kv {
    struct kv_shape shape;
    struct gpu_kv layout;
    cu_address memory;
    uint64_t size;
};

/** A recorded pass of one token, phase by phase. */
struct cuda_graph {
    cu_graph_exec executable; /* NULL: none yet */
    uint32_t end;
    cu_address kv_memory;
    struct gpu_kv kv;
    uint32_t n_sink;
};

struct cuda_backend {
    struct backend base;
    const struct cuda_driver *cu;
    struct pd_threads *threads;
    const struct plan *plan;
    cu_device device;
    cu_context context;
    cu_module module;
    cu_function token; /* any range of phases and steps, cooperative */
    cu_function phase; /* one phase */
    cu_stream stream;
    cu_event *events; /* [image.plan.n_phases + 1], made when phases are timed */
    size_t n_events;
    struct gpu_image image;
    cu_address w, g;
    uint32_t n_blocks;
    uint32_t n_threads; /* of a block */
    uint32_t shared_bytes;
    uint32_t max_steps;
    int max_shared; /* of a block */
    bool ring;      /* kernels have rings of pages in group memory (compute capability 9.0 on) */
    bool cooperative;
    bool retained;
    struct cuda_graph graphs[2]; /* without and with the head */
    uint8_t *host;               /* pinned: what goes up, staging_size bytes, and comes back */
    size_t host_size, staging_size;
    const struct pd_notify *notify;
    char name[128];
    char description[256];
};

/** Makes the device's context that of the calling thread. */
pdvm_status cuda_enter(struct cuda_backend *b, pdvm_error *err);

/** cuda_check with the backend's driver. */
pdvm_status cuda_try(const struct cuda_backend *b, cu_result result, const char *what,
                     pdvm_error *err);

/** Device memory; PDVM_ERR_MEMORY says what was asked for, what is there and what would help. */
pdvm_status cuda_alloc(struct cuda_backend *b, uint64_t size, const char *what, cu_address *out,
                       pdvm_error *err);

/** backend_ops: passes and the cache. */
pdvm_status cuda_run(struct backend *base, const struct batch *batch, pdvm_error *err);
bool cuda_can_generate(const struct backend *base, pdvm_mode mode);
pdvm_status cuda_generate(struct backend *base, const struct batch *batch,
                          const struct backend_sampling *sampling, int32_t *chosen, uint32_t *n,
                          pdvm_error *err);
pdvm_status cuda_read_bandwidth(struct backend *base, double *out, pdvm_error *err);
pdvm_status cuda_kv_create(struct backend *base, const struct kv_shape *shape,
                           struct backend_kv **out, pdvm_error *err);
void cuda_kv_free(struct backend *base, struct backend_kv *kv);
pdvm_status cuda_kv_reserve(struct backend *base, struct backend_kv *kv, uint32_t n_slots,
                            pdvm_error *err);
pdvm_status cuda_kv_read(struct backend *base, const struct backend_kv *kv, uint32_t layer,
                         bool value, uint32_t n_slots, uint8_t *data, pdvm_error *err);
pdvm_status cuda_kv_write(struct backend *base, struct backend_kv *kv, uint32_t layer, bool value,
                          uint32_t n_slots, const uint8_t *data, pdvm_error *err);
size_t cuda_kv_bytes(const struct backend_kv *kv);

/** The kernels as nvcc made them, for cuModuleLoadData; NULL if this build has none. */
const void *cuda_kernels_image(void);

#endif
