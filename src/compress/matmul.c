#include "compress/matmul.h"

#include "base/alloc.h"
#include "base/amx.h"

#include <stdlib.h>

/* Below this number of rows, columns or terms the splitting costs more than it saves. */
#define LEAST ((int64_t)32)

static void choose(struct matmul *m) {
    m->name = m->device ? m->device->name : m->blas->core();
#ifdef PDVM_HAVE_AMX
    /* Every processor that has AMX has these parts of AVX-512; a virtual machine may hide them. */
    if (!pd_amx_supported(PD_AMX_BF16) || !__builtin_cpu_supports("avx512f") ||
        !__builtin_cpu_supports("avx512bw"))
        return;
    m->split = &matmul_split_amx;
    if (!m->device) m->name = "amx";
#endif
}

pdvm_status matmul_create(const struct blas *blas, int n_workers, struct matmul_device *device,
                          struct matmul *out, pdvm_error *err) {
    *out = (struct matmul){.blas = blas, .device = device};
    choose(out);
    if (!out->split) return PDVM_OK;
    pdvm_status status =
        pd_calloc(&out->scratch, (size_t)n_workers, sizeof *out->scratch, "products", err);
    if (status == PDVM_OK) out->n_workers = n_workers;
    for (int i = 0; i < n_workers && status == PDVM_OK; i++)
        status =
            pd_alloc_aligned(&out->scratch[i], (size_t)out->split->scratch_bytes, "products", err);
    if (status != PDVM_OK) matmul_free(out);
    return status;
}

void matmul_free(struct matmul *m) {
    for (int i = 0; i < m->n_workers; i++) free(m->scratch[i]);
    free(m->scratch);
    *m = (struct matmul){0};
}

static void run_blas(const struct blas *blas, const struct matmul_task *t) {
    enum blas_transpose a = t->transposed ? BLAS_TRANS : BLAS_NO_TRANS;
    enum blas_transpose b = t->transposed ? BLAS_NO_TRANS : BLAS_TRANS;
    float beta = t->add ? 1 : 0;
    if (t->upper && t->a == t->b && t->m == t->n && t->a_stride == t->b_stride)
        blas->ssyrk(BLAS_ROW_MAJOR, BLAS_UPPER, a, (int)t->n, (int)t->k, 1, t->a, (int)t->a_stride,
                    beta, t->c, (int)t->c_stride);
    else
        blas->sgemm(BLAS_ROW_MAJOR, a, b, (int)t->m, (int)t->n, (int)t->k, 1, t->a,
                    (int)t->a_stride, t->b, (int)t->b_stride, beta, t->c, (int)t->c_stride);
}

static bool splits(const struct matmul *m, const struct matmul_task *t) {
    return m->split && t->m >= LEAST && t->n >= LEAST && t->k >= LEAST;
}

struct preparation {
    const struct matmul *matmul;
    const struct matmul_task *task;
    char *parts;
};

static void prepare_columns(void *arg, int64_t begin, int64_t end, int worker) {
    const struct preparation *p = arg;
    int64_t n = p->task->n, last = end * MATMUL_COLUMNS;
    (void)worker;
    p->matmul->split->prepare(p->task, begin * MATMUL_COLUMNS, last < n ? last : n, p->parts);
}

pdvm_status matmul_prepare(const struct matmul *m, const struct matmul_task *task,
                           struct pd_threads *threads, struct matmul_ready *out, pdvm_error *err) {
    struct preparation p = {m, task, NULL};
    *out = (struct matmul_ready){0};
    if (m->device) PD_TRY(m->device->ops->load(m->device, task, &out->on_device, err));
    if (out->on_device || !splits(m, task)) return PDVM_OK;
    PD_TRY(
        pd_alloc_aligned(&p.parts, (size_t)m->split->parts_bytes(task), "a matrix in parts", err));
    pd_threads_for(threads, (task->n + MATMUL_COLUMNS - 1) / MATMUL_COLUMNS, 1, prepare_columns,
                   &p);
    out->parts = p.parts;
    return PDVM_OK;
}

void matmul_release(const struct matmul *m, struct matmul_ready *ready) {
    if (ready->on_device) m->device->ops->unload(m->device, ready->on_device);
    free(ready->parts);
    *ready = (struct matmul_ready){0};
}

void matmul_run(const struct matmul *m, const struct matmul_task *task, int worker) {
    if (task->ready && task->ready->on_device)
        m->device->ops->products(m->device, task, 1, worker);
    else if (splits(m, task))
        m->split->run(task, m->scratch[worker]);
    else
        run_blas(m->blas, task);
}

void matmul_run_all(const struct matmul *m, const struct matmul_task *tasks, int n, int worker) {
    bool on_device = true;
    for (int i = 0; i < n; i++) on_device &= tasks[i].ready && tasks[i].ready->on_device;
    if (on_device && n > 0)
        m->device->ops->products(m->device, tasks, n, worker);
    else
        for (int i = 0; i < n; i++) matmul_run(m, &tasks[i], worker);
}

pdvm_status matmul_status(const struct matmul *m, pdvm_error *err) {
    return m->device ? m->device->ops->status(m->device, err) : PDVM_OK;
}
