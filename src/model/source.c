#include "model/source.h"

#include "base/text.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KNOWN                                                                                      \
    "give a Hugging Face model directory (config.json and safetensors), a GGUF file or a .pdvm file"

/* The first bytes of a file; *n is how many there are. */
static pdvm_status read_start(const char *path, uint8_t *start, size_t size, size_t *n,
                              pdvm_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return pd_fail_errno(err, path, "cannot open");
    ssize_t got = read(fd, start, size);
    pdvm_status status = got < 0 ? pd_fail_errno(err, path, "cannot read") : PDVM_OK;
    *n = got < 0 ? 0 : (size_t)got;
    close(fd);
    return status;
}

static pdvm_status open_file(const char *path, struct model_source **out, pdvm_error *err) {
    uint8_t start[9] = {0};
    size_t n = 0;
    PD_TRY(read_start(path, start, sizeof start, &n, err));
    if (n == 0) return pd_fail(err, PDVM_ERR_FORMAT, "%s: the file is empty; %s", path, KNOWN);
    if (n >= 4 && memcmp(start, "GGUF", 4) == 0) return source_open_gguf(path, out, err);
    /* PyTorch checkpoints are zip archives or, older, pickles of protocol 2 and up. */
    if ((n >= 4 && memcmp(start, "PK\3\4", 4) == 0) || (n >= 2 && start[0] == 0x80 && start[1] < 8))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: PyTorch checkpoints are not supported; save the model as safetensors "
                       "(transformers: save_pretrained), then %s",
                       path, KNOWN);
    if (n < sizeof start || start[8] != '{')
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: not a model of a known kind; %s", path,
                       KNOWN);
    pdvm_status status = source_open_pdvm(path, out, err);
    if (status != PDVM_OK && pd_ends_with(path, ".safetensors"))
        return pd_prefix(err, status, "to open a Hugging Face model, give its directory");
    return status;
}

pdvm_status source_open(const char *path, struct model_source **out, pdvm_error *err) {
    struct stat st;
    *out = NULL;
    if (stat(path, &st) != 0) {
        if (errno != ENOENT && errno != ENOTDIR) return pd_fail_errno(err, path, "cannot open");
        return pd_fail(err, PDVM_ERR_IO,
                       "%s: no such file or directory (nothing is downloaded); %s", path, KNOWN);
    }
    if (S_ISDIR(st.st_mode)) return source_open_hf(path, out, err);
    if (!S_ISREG(st.st_mode))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: neither a file nor a directory; %s", path,
                       KNOWN);
    return open_file(path, out, err);
}

void source_close(struct model_source *s) {
    if (s) s->ops->close(s);
}

bool source_is_mdcsr(const struct model_source *s) {
    return s->ops->read_mdcsr != NULL;
}

pdvm_status source_read_rows(struct model_source *s, const struct tensor_info *t, int64_t begin,
                             int64_t n, float *out, pdvm_error *err) {
    if (begin < 0 || n < 0 || begin > t->rows || n > t->rows - begin)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: tensor \"%s\": rows %" PRId64 " + %" PRId64
                       " asked for, but it has %" PRId64,
                       s->path, t->name, begin, n, t->rows);
    return s->ops->read_rows(s, t, begin, n, out, err);
}

pdvm_status source_read_mdcsr(struct model_source *s, const struct tensor_info *t,
                              struct mdcsr *out, pdvm_error *err) {
    if (!s->ops->read_mdcsr)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: a %s holds no MdCSR matrices", s->path,
                       s->kind);
    return s->ops->read_mdcsr(s, t, out, err);
}

void source_file(struct model_source *s, const char *name, const char **data, size_t *size) {
    s->ops->file(s, name, data, size);
}

void source_stored(struct model_source *s, const struct tensor_info *t, const char **coding,
                   uint64_t *bytes) {
    s->ops->stored(s, t, coding, bytes);
}

uint64_t source_bytes(struct model_source *s) {
    uint64_t total = 0;
    for (size_t i = 0; i < tensors_count(&s->config); i++) {
        struct tensor_info t;
        const char *coding;
        uint64_t bytes;
        tensors_at(&s->config, i, &t);
        source_stored(s, &t, &coding, &bytes);
        total += bytes;
    }
    return total;
}

void source_release(struct model_source *s, const struct tensor_info *t) {
    s->ops->release(s, t);
}

pdvm_status source_open_tokenizer(struct model_source *s, struct tokenizer **out, pdvm_error *err) {
    const char *data, *config;
    size_t size, config_size;
    pdvm_status status = PDVM_OK;
    *out = NULL;
    source_file(s, SOURCE_TOKENIZER, &data, &size);
    if (data) {
        status = tokenizer_open(SOURCE_TOKENIZER, data, size, out, err);
    } else {
        source_file(s, SOURCE_TOKENIZER_MODEL, &data, &size);
        source_file(s, SOURCE_TOKENIZER_CONFIG, &config, &config_size);
        if (data)
            status = tokenizer_open_sentencepiece(SOURCE_TOKENIZER_MODEL, data, size, config,
                                                  config_size, out, err);
    }
    return status == PDVM_OK ? status : pd_prefix(err, status, "%s", s->path);
}
