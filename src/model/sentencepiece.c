#include "model/sentencepiece.h"

#include "base/alloc.h"
#include "base/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The wire types that are in use. */
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

/* Most pieces accepted, as for other tokenizers. */
#define MAX_PIECES (1u << 24)

/* One field of a message. */
struct field {
    uint32_t number;
    int type;
    uint64_t value;   /* of VARINT, FIXED32 and FIXED64 */
    const char *data; /* of BYTES */
    size_t size;
};

/* The rest of a message. */
struct message {
    const char *p, *end;
};

struct reader {
    const char *path;
    const char *begin; /* of the file */
    struct sentencepiece_model *m;
    size_t capacity;
    int64_t model_type;
    pdvm_error *err;
};

static pdvm_status damaged(const struct reader *r, const char *p, const char *what) {
    return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: not a SentencePiece model: %s at byte %zu",
                   r->path, what, (size_t)(p - r->begin));
}

static pdvm_status read_varint(const struct reader *r, struct message *m, uint64_t *out) {
    const char *start = m->p;
    *out = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (m->p == m->end) return damaged(r, start, "a number that has no end");
        uint8_t byte = (uint8_t)*m->p++;
        if (shift == 63 && byte > 1) break;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return PDVM_OK;
    }
    return damaged(r, start, "a number of more than 64 bits");
}

static pdvm_status read_fixed(const struct reader *r, struct message *m, int size, uint64_t *out) {
    if (m->end - m->p < size) return damaged(r, m->p, "a field past the end");
    *out = 0;
    for (int i = 0; i < size; i++) *out |= (uint64_t)(uint8_t)*m->p++ << 8 * i;
    return PDVM_OK;
}

static pdvm_status read_field(const struct reader *r, struct message *m, struct field *f) {
    const char *start = m->p;
    uint64_t key;
    *f = (struct field){0};
    PD_TRY(read_varint(r, m, &key));
    f->type = (int)(key & 7);
    if (key >> 3 == 0 || key >> 3 > 0x1fffffff) return damaged(r, start, "a field without number");
    f->number = (uint32_t)(key >> 3);
    switch (f->type) {
    case VARINT: return read_varint(r, m, &f->value);
    case FIXED64: return read_fixed(r, m, 8, &f->value);
    case FIXED32: return read_fixed(r, m, 4, &f->value);
    case BYTES:
        PD_TRY(read_varint(r, m, &f->value));
        if (f->value > (uint64_t)(m->end - m->p)) return damaged(r, start, "a field past the end");
        f->data = m->p;
        f->size = (size_t)f->value;
        m->p += f->size;
        return PDVM_OK;
    default: return damaged(r, start, "a field of an unknown kind");
    }
}

/* Fails unless a field whose meaning is known has the wire type that goes with it. */
static pdvm_status expect(const struct reader *r, const struct field *f, int type,
                          const char *name) {
    if (f->type == type) return PDVM_OK;
    return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: %s has wire type %d; expected %d", r->path, name,
                   f->type, type);
}

static pdvm_status read_bool(const struct reader *r, const struct field *f, const char *name,
                             bool *out) {
    PD_TRY(expect(r, f, VARINT, name));
    *out = f->value != 0;
    return PDVM_OK;
}

static pdvm_status check_piece(const struct reader *r, uint32_t id, const struct sentencepiece *p,
                               uint64_t type) {
    if (p->len == 0)
        return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: pieces[%u].piece is empty", r->path,
                       (unsigned)id);
    if (pd_utf8_check(p->text, p->len) < p->len)
        return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: pieces[%u].piece is not valid UTF-8", r->path,
                       (unsigned)id);
    if (!isfinite(p->score))
        return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: pieces[%u].score is not a number", r->path,
                       (unsigned)id);
    if (type == 5)
        return pd_fail(r->err, PDVM_ERR_UNSUPPORTED,
                       "%s: pieces[%u].type is UNUSED, which this version does not know", r->path,
                       (unsigned)id);
    if (type < 1 || type > 6)
        return pd_fail(r->err, PDVM_ERR_FORMAT,
                       "%s: pieces[%u].type is %" PRIu64 "; expected 1 to 6", r->path, (unsigned)id,
                       type);
    return PDVM_OK;
}

static pdvm_status read_piece(struct reader *r, struct message m) {
    struct sentencepiece_model *out = r->m;
    struct sentencepiece p = {0};
    uint64_t type = SENTENCEPIECE_NORMAL;
    while (m.p < m.end) {
        struct field f;
        PD_TRY(read_field(r, &m, &f));
        if (f.number == 1) {
            PD_TRY(expect(r, &f, BYTES, "pieces.piece"));
            if (f.size > UINT32_MAX) return damaged(r, f.data, "a piece that is too long");
            p.text = f.data;
            p.len = (uint32_t)f.size;
        } else if (f.number == 2) {
            PD_TRY(expect(r, &f, FIXED32, "pieces.score"));
            uint32_t bits = (uint32_t)f.value;
            memcpy(&p.score, &bits, sizeof p.score);
        } else if (f.number == 3) {
            PD_TRY(expect(r, &f, VARINT, "pieces.type"));
            type = f.value;
        }
    }
    PD_TRY(check_piece(r, out->n_pieces, &p, type));
    p.type = (enum sentencepiece_type)type;
    if (out->n_pieces == MAX_PIECES)
        return pd_fail(r->err, PDVM_ERR_UNSUPPORTED, "%s: more than %u pieces", r->path,
                       MAX_PIECES);
    PD_TRY(pd_grow(&out->pieces, &r->capacity, (size_t)out->n_pieces + 1, sizeof p,
                   "the vocabulary", r->err));
    out->pieces[out->n_pieces++] = p;
    return PDVM_OK;
}

static pdvm_status read_trainer(struct reader *r, struct message m) {
    struct sentencepiece_model *out = r->m;
    bool suffix = false;
    while (m.p < m.end) {
        struct field f;
        PD_TRY(read_field(r, &m, &f));
        switch (f.number) {
        case 3:
            PD_TRY(expect(r, &f, VARINT, "trainer_spec.model_type"));
            r->model_type = f.value <= INT64_MAX ? (int64_t)f.value : -1;
            break;
        case 24:
            PD_TRY(read_bool(r, &f, "trainer_spec.treat_whitespace_as_suffix", &suffix));
            break;
        case 35: PD_TRY(read_bool(r, &f, "trainer_spec.byte_fallback", &out->byte_fallback)); break;
        case 41:
        case 42:
            PD_TRY(expect(r, &f, VARINT, "trainer_spec.bos_id or eos_id"));
            // Negative numbers are written in two's complement.
            *(f.number == 41 ? &out->bos_id : &out->eos_id) =
                f.value <= INT32_MAX ? (int64_t)f.value : -1;
            break;
        default: break;
        }
    }
    if (suffix)
        return pd_fail(r->err, PDVM_ERR_UNSUPPORTED,
                       "%s: trainer_spec.treat_whitespace_as_suffix is true, which this version "
                       "does not know",
                       r->path);
    return PDVM_OK;
}

static pdvm_status check_rules(const struct reader *r, const char *spec, const struct field *f) {
    static const char IDENTITY[] = "identity";
    char name[64];
    if (f->number == 1) {
        snprintf(name, sizeof name, "%s.name", spec);
        PD_TRY(expect(r, f, BYTES, name));
        if (f->size == 0 || (f->size == 8 && memcmp(f->data, IDENTITY, 8) == 0)) return PDVM_OK;
        size_t quoted = f->size < 40 ? f->size : 40;
        return pd_fail(r->err, PDVM_ERR_UNSUPPORTED,
                       "%s: %s is \"%.*s\"; this version only knows \"identity\"", r->path, name,
                       pd_utf8_check(f->data, quoted) == quoted ? (int)quoted : 0, f->data);
    }
    snprintf(name, sizeof name, "%s.precompiled_charsmap", spec);
    PD_TRY(expect(r, f, BYTES, name));
    if (f->size == 0) return PDVM_OK;
    return pd_fail(r->err, PDVM_ERR_UNSUPPORTED,
                   "%s: %s has %zu bytes of normalisation rules, which this version does not know",
                   r->path, name, f->size);
}

static pdvm_status read_normalizer(struct reader *r, struct message m) {
    bool remove_extra = true, escape = true;
    r->m->add_dummy_prefix = true;
    while (m.p < m.end) {
        struct field f;
        PD_TRY(read_field(r, &m, &f));
        switch (f.number) {
        case 1:
        case 2: PD_TRY(check_rules(r, "normalizer_spec", &f)); break;
        case 3:
            PD_TRY(read_bool(r, &f, "normalizer_spec.add_dummy_prefix", &r->m->add_dummy_prefix));
            break;
        case 4:
            PD_TRY(read_bool(r, &f, "normalizer_spec.remove_extra_whitespaces", &remove_extra));
            break;
        case 5: PD_TRY(read_bool(r, &f, "normalizer_spec.escape_whitespaces", &escape)); break;
        default: break;
        }
    }
    if (remove_extra || !escape)
        return pd_fail(r->err, PDVM_ERR_UNSUPPORTED,
                       "%s: normalizer_spec.%s is %s, which this version does not know", r->path,
                       remove_extra ? "remove_extra_whitespaces" : "escape_whitespaces",
                       remove_extra ? "true" : "false");
    return PDVM_OK;
}

static pdvm_status read_denormalizer(const struct reader *r, struct message m) {
    while (m.p < m.end) {
        struct field f;
        PD_TRY(read_field(r, &m, &f));
        if (f.number == 2) PD_TRY(check_rules(r, "denormalizer_spec", &f));
    }
    return PDVM_OK;
}

static pdvm_status read_model(struct reader *r, struct message m) {
    static const char *const NAMES[] = {"0", "pieces",           "trainer_spec", "normalizer_spec",
                                        "4", "denormalizer_spec"};
    bool seen[6] = {false};
    while (m.p < m.end) {
        struct field f;
        PD_TRY(read_field(r, &m, &f));
        if (f.number > 5 || f.number == 4) continue;
        PD_TRY(expect(r, &f, BYTES, NAMES[f.number]));
        struct message inner = {f.data, f.data + f.size};
        if (f.number > 1 && seen[f.number])
            return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: %s occurs twice", r->path,
                           NAMES[f.number]);
        seen[f.number] = true;
        switch (f.number) {
        case 1: PD_TRY(read_piece(r, inner)); break;
        case 2: PD_TRY(read_trainer(r, inner)); break;
        case 3: PD_TRY(read_normalizer(r, inner)); break;
        default: PD_TRY(read_denormalizer(r, inner)); break;
        }
    }
    for (int i = 1; i <= 3; i++)
        if (!seen[i])
            return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: not a SentencePiece model: it has no %s",
                           r->path, NAMES[i]);
    return PDVM_OK;
}

static pdvm_status check_byte(const struct reader *r, uint32_t id) {
    struct sentencepiece_model *m = r->m;
    const struct sentencepiece *p = &m->pieces[id];
    char name[8];
    if (!m->byte_fallback)
        return pd_fail(r->err, PDVM_ERR_FORMAT,
                       "%s: pieces[%u].type is BYTE, but trainer_spec.byte_fallback is false",
                       r->path, (unsigned)id);
    for (int byte = 0; byte < 256; byte++) {
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        if (p->len != 6 || memcmp(p->text, name, 6) != 0) continue;
        if (m->byte_ids[byte] >= 0)
            return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: the byte piece %s occurs twice", r->path,
                           name);
        m->byte_ids[byte] = (int32_t)id;
        return PDVM_OK;
    }
    return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: pieces[%u].type is BYTE, but it is not <0xNN>",
                   r->path, (unsigned)id);
}

static pdvm_status check_model(const struct reader *r) {
    static const char *const TYPES[] = {"0", "unigram", "BPE", "word", "char"};
    struct sentencepiece_model *m = r->m;
    if (r->model_type != 2)
        return pd_fail(r->err, PDVM_ERR_UNSUPPORTED,
                       "%s: trainer_spec.model_type is %" PRId64 " (%s); this version only knows "
                       "BPE (2)",
                       r->path, r->model_type,
                       r->model_type > 0 && r->model_type < 5 ? TYPES[r->model_type] : "unknown");
    int64_t unknown = -1;
    for (uint32_t id = 0; id < m->n_pieces; id++) {
        if (m->pieces[id].type == SENTENCEPIECE_BYTE) PD_TRY(check_byte(r, id));
        if (m->pieces[id].type != SENTENCEPIECE_UNKNOWN) continue;
        if (unknown >= 0)
            return pd_fail(r->err, PDVM_ERR_FORMAT,
                           "%s: pieces %" PRId64 " and %u are both of type UNKNOWN", r->path,
                           unknown, (unsigned)id);
        unknown = id;
    }
    if (unknown < 0)
        return pd_fail(r->err, PDVM_ERR_FORMAT, "%s: no piece is of type UNKNOWN", r->path);
    m->unk_id = (uint32_t)unknown;
    for (int byte = 0; m->byte_fallback && byte < 256; byte++)
        if (m->byte_ids[byte] < 0)
            return pd_fail(r->err, PDVM_ERR_FORMAT,
                           "%s: trainer_spec.byte_fallback is true, but there is no piece <0x%02X>",
                           r->path, (unsigned)byte);
    return PDVM_OK;
}

pdvm_status sentencepiece_read(const char *path, const char *data, size_t size,
                               struct sentencepiece_model *out, pdvm_error *err) {
    *out = (struct sentencepiece_model){.bos_id = 1, .eos_id = 2};
    for (int i = 0; i < 256; i++) out->byte_ids[i] = -1;
    struct reader r = {.path = path, .begin = data, .m = out, .model_type = 1, .err = err};
    pdvm_status status = read_model(&r, (struct message){data, data + size});
    if (status == PDVM_OK) status = check_model(&r);
    if (status != PDVM_OK) {
        sentencepiece_free(out);
        *out = (struct sentencepiece_model){0};
    }
    return status;
}

void sentencepiece_free(struct sentencepiece_model *m) {
    free(m->pieces);
    m->pieces = NULL;
}
