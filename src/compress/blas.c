#include "compress/blas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const char *const library_names[] = {
    /* Fedora's build with threads: they are not used, but its plain one may lack the locks that
     * calls from several threads need. */
    "libopenblasp.so.0",
    "libopenblas.so.0", /* Debian, and the name of OpenBLAS's own builds */
    "libopenblas.so",
    "libopenblas.dylib",
    "/opt/homebrew/opt/openblas/lib/libopenblas.dylib",
    "/usr/local/opt/openblas/lib/libopenblas.dylib",
};

static struct {
    pthread_once_t once;
    struct blas table;
    pdvm_status status;
    pdvm_error error;
} loaded = {.once = PTHREAD_ONCE_INIT};

/* Copies a symbol's address to *function: ISO C has no cast from void * to a function. */
static const char *find(void *library, const char *name, void *function) {
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol ? NULL : name;
}

static void *open_library(void) {
    const char *name = getenv("PDVM_OPENBLAS");
    void *library = NULL;
    if (name && *name) return dlopen(name, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; !library && i < sizeof library_names / sizeof *library_names; i++)
        library = dlopen(library_names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

/*
 * On processors that are younger than it, OpenBLAS takes kernels for the oldest one that it knows,
 * several times slower ones: the name of the best ones that this processor can run, NULL if it has chosen others.
 */
static const char *better_core(void *library) {
    const char *(*core)(void) = NULL;
    if (find(library, "openblas_get_corename", &core) || strcmp(core(), "Prescott") != 0)
        return NULL;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return "SkylakeX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
    return NULL;
}

static void *load_library(void) {
    static const char threads[] = "OPENBLAS_NUM_THREADS", core[] = "OPENBLAS_CORETYPE";
    /* OpenBLAS reads these while it is loaded. Threads that nobody uses need not be started. */
    bool set = !getenv(threads) && setenv(threads, "1", 1) == 0;
    void *library = open_library();
    const char *better = library && !getenv(core) ? better_core(library) : NULL;
    if (better && setenv(core, better, 1) == 0) {
        dlclose(library);
        library = open_library();
        unsetenv(core);
    }
    if (set) unsetenv(threads);
    return library;
}

static void load(void) {
    struct blas *b = &loaded.table;
    void *library = load_library();
    if (!library) {
        loaded.status = pd_fail(
            &loaded.error, PDVM_ERR_UNSUPPORTED,
            "OpenBLAS, which calibration needs, cannot be loaded: install it (Debian, Ubuntu: apt "
            "install libopenblas0; Fedora: dnf install openblas-threads; macOS: brew install "
            "openblas)");
        return;
    }
    void (*set_threads)(int) = NULL;
    const struct {
        const char *name;
        void *function;
    } symbols[] = {
        {"openblas_set_num_threads", &set_threads},
        {"openblas_get_config", &b->config},
        {"openblas_get_corename", &b->core},
        {"cblas_sgemm", &b->sgemm},
        {"cblas_dgemm", &b->dgemm},
        {"cblas_ssyrk", &b->ssyrk},
        {"cblas_dsyrk", &b->dsyrk},
        {"cblas_strsm", &b->strsm},
        {"cblas_dtrsm", &b->dtrsm},
        {"dpotrf_", &b->dpotrf},
        {"dpotri_", &b->dpotri},
        {"dtrtri_", &b->dtrtri},
        {"dsyevd_", &b->dsyevd},
    };
    const char *missing = NULL;
    for (size_t i = 0; !missing && i < sizeof symbols / sizeof *symbols; i++)
        missing = find(library, symbols[i].name, symbols[i].function);
    if (missing) {
        loaded.status = pd_fail(&loaded.error, PDVM_ERR_UNSUPPORTED,
                                "the OpenBLAS of this system has no %s: it must be built with "
                                "CBLAS and LAPACK",
                                missing);
    } else if (strstr(b->config(), "USE64BITINT")) {
        loaded.status = pd_fail(&loaded.error, PDVM_ERR_UNSUPPORTED,
                                "the OpenBLAS of this system is built with 64-bit integers; the "
                                "one with 32-bit integers is needed");
    } else {
        set_threads(1);
    }
}

pdvm_status blas_open(const struct blas **out, pdvm_error *err) {
    *out = NULL;
    pthread_once(&loaded.once, load);
    if (loaded.status == PDVM_OK) *out = &loaded.table;
    if (loaded.status != PDVM_OK && err) *err = loaded.error;
    return loaded.status;
}
