// A saved session from a stranger: whatever its bytes, loading ends in an error or in a session
// that goes on decoding.

#include "engine/engine.h"
#include "io/safetensors.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static pdvm_model *model;

static void open_model(void) {
    pdvm_error err;
    pdvm_model_options options = pdvm_model_options_default();
    options.n_threads = 1;
    // Fuzzers are run in the root of the source tree or with SOURCE_DIR set, as ctest does.
    const char *root = getenv("SOURCE_DIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/golden/tiny-gqa", root ? root : ".");
    if (pdvm_model_open(path, &options, &model, &err) != PDVM_OK) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct safetensors *st;
    pdvm_session *session;
    pdvm_session_options options = pdvm_session_options_default();
    options.n_ctx = 64;
    options.rolling = size % 2;
    if (!model) open_model();
    if (safetensors_open_memory("fuzz.session", data, size, &st, NULL) != PDVM_OK) return 0;
    if (pdvm_session_create(model, &options, &session, NULL) == PDVM_OK) {
        if (session_load_from(session, st, NULL) == PDVM_OK) pdvm_session_step(session, 1, NULL);
        pdvm_session_free(session);
    }
    safetensors_close(st);
    return 0;
}
