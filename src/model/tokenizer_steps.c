#include "base/alloc.h"
#include "base/utf8.h"
#include "io/json.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* Deepest nesting of sequences in sequences. */
#define MAX_DEPTH 8

/* Radford et al. 2019; what ByteLevel splits by. */
static const char GPT2_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct loader {
    struct tokenizer *t;
    const char *path;
    bool has_template;
    bool byte_level; /* the ByteLevel pre-tokeniser was seen: the last one */
    bool metaspace;  /* the Metaspace pre-tokeniser */
    bool fused;      /* the Fuse decoder */
    int n_decoders;  /* sequences not counted */
    pdvm_error *err;
};

static pdvm_status unsupported(const struct loader *l, const char *field, const char *type,
                               const char *known) {
    return pd_fail(l->err, PDVM_ERR_UNSUPPORTED,
                   "%s: %s is of type \"%.60s\"; this version knows %s", l->path, field, type,
                   known);
}

/* The type of a component, which must be an object. */
static pdvm_status component_type(const struct loader *l, const char *field, const json_t *c,
                                  const char **type) {
    if (!json_is_object(c))
        return pd_fail(l->err, PDVM_ERR_FORMAT, "%s: %s is %s; expected an object", l->path, field,
                       pd_json_kind(c));
    pdvm_status status = pd_json_string(l->path, c, "type", true, type, l->err);
    return status == PDVM_OK ? status : pd_prefix(l->err, status, "%s", field);
}

/* Hands each member of a sequence to `fn`. */
static pdvm_status each(struct loader *l, const char *field, const json_t *sequence,
                        const char *list_name, int depth,
                        pdvm_status (*fn)(struct loader *, const char *, const json_t *, int)) {
    json_t *list;
    if (depth >= MAX_DEPTH)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s is nested too deeply", l->path, field);
    PD_TRY(pd_json_array(l->path, sequence, list_name, true, &list, l->err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        char name[128];
        snprintf(name, sizeof name, "%s.%s[%zu]", field, list_name, i);
        PD_TRY(fn(l, name, json_array_get(list, i), depth + 1));
    }
    return PDVM_OK;
}

/* A string of a component, copied; it may be empty if `least` is 0. */
static pdvm_status copy_string(const struct loader *l, const char *field, const char *name,
                               const json_t *value, size_t least, char **out, size_t *len) {
    if (!json_is_string(value))
        return pd_fail(l->err, PDVM_ERR_FORMAT, "%s: %s.%s is %s; expected a string", l->path,
                       field, name, pd_json_kind(value));
    *len = json_string_length(value);
    if (*len < least || *len > TOKENIZER_MAX_CONTENT)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s.%s has %zu bytes; expected %zu to %d",
                       l->path, field, name, *len, least, TOKENIZER_MAX_CONTENT);
    PD_TRY(pd_calloc(out, *len + 1, 1, "a tokenizer's string", l->err));
    memcpy(*out, json_string_value(value), *len);
    return PDVM_OK;
}

/* A character of a component, into out[5]. */
static pdvm_status copy_char(const struct loader *l, const char *field, const json_t *c,
                             const char *name, char *out) {
    const json_t *value = json_object_get(c, name);
    const char *s = json_string_value(value);
    size_t len = s ? json_string_length(value) : 0;
    uint32_t code;
    if (len == 0 || pd_utf8_decode(s, len, &code) != (int)len)
        return pd_fail(l->err, PDVM_ERR_FORMAT, "%s: %s.%s is not one character", l->path, field,
                       name);
    memcpy(out, s, len);
    out[len] = 0;
    return PDVM_OK;
}

/* The value of a {"Regex": ...} or {"String": ...}; *regex tells which. */
static pdvm_status load_pattern(const struct loader *l, const char *field, const json_t *c,
                                const json_t **value, bool *regex) {
    json_t *pattern;
    PD_TRY(pd_json_object(l->path, c, "pattern", true, &pattern, l->err));
    *value = json_object_get(pattern, "Regex");
    *regex = *value != NULL;
    if (!*regex) *value = json_object_get(pattern, "String");
    if (json_object_size(pattern) != 1 || !json_is_string(*value))
        return pd_fail(l->err, PDVM_ERR_FORMAT,
                       "%s: %s.pattern is not {\"Regex\": \"...\"} or {\"String\": \"...\"}",
                       l->path, field);
    if (json_string_length(*value) == 0)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s.pattern is empty", l->path, field);
    return PDVM_OK;
}

static pdvm_status load_replace(const struct loader *l, const char *field, const json_t *c,
                                struct tokenizer_normal *out) {
    const json_t *pattern;
    bool regex;
    out->kind = TOKENIZER_NORMAL_REPLACE;
    PD_TRY(load_pattern(l, field, c, &pattern, &regex));
    PD_TRY(
        copy_string(l, field, "content", json_object_get(c, "content"), 0, &out->to, &out->to_len));
    if (regex)
        return tokenizer_regex_compile(l->path, field, json_string_value(pattern),
                                       json_string_length(pattern), &out->regex, l->err);
    return copy_string(l, field, "pattern", pattern, 1, &out->from, &out->from_len);
}

static pdvm_status load_normalizer(struct loader *l, const char *field, const json_t *c,
                                   int depth) {
    static const struct {
        const char *name;
        enum tokenizer_form form;
    } FORMS[] = {{"NFC", TOKENIZER_NFC},
                 {"NFD", TOKENIZER_NFD},
                 {"NFKC", TOKENIZER_NFKC},
                 {"NFKD", TOKENIZER_NFKD}};
    const char *type;
    PD_TRY(component_type(l, field, c, &type));
    if (strcmp(type, "Sequence") == 0)
        return each(l, field, c, "normalizers", depth, load_normalizer);
    if (l->t->n_normals == TOKENIZER_MAX_STEPS)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s: more than %d normalizers", l->path,
                       field, TOKENIZER_MAX_STEPS);
    struct tokenizer_normal *normal = &l->t->normals[l->t->n_normals++];
    if (strcmp(type, "Replace") == 0) return load_replace(l, field, c, normal);
    if (strcmp(type, "Prepend") == 0) {
        normal->kind = TOKENIZER_NORMAL_PREPEND;
        return copy_string(l, field, "prepend", json_object_get(c, "prepend"), 1, &normal->to,
                           &normal->to_len);
    }
    normal->kind = TOKENIZER_NORMAL_FORM;
    for (size_t i = 0; i < sizeof FORMS / sizeof *FORMS; i++) {
        if (strcmp(type, FORMS[i].name) == 0) {
            normal->form = FORMS[i].form;
            return PDVM_OK;
        }
    }
    return unsupported(l, field, type, "Prepend, Replace, NFC, NFD, NFKC, NFKD and Sequence");
}

static pdvm_status add_step(struct loader *l, const char *field, const struct tokenizer_step *step,
                            struct tokenizer_step **out) {
    if (l->t->n_steps == TOKENIZER_MAX_STEPS)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s: more than %d steps", l->path, field,
                       TOKENIZER_MAX_STEPS);
    *out = &l->t->steps[l->t->n_steps++];
    **out = *step;
    return PDVM_OK;
}

static pdvm_status load_behavior(const struct loader *l, const char *field, const json_t *c,
                                 enum tokenizer_behavior *behavior) {
    static const char *const NAMES[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name;
    PD_TRY(pd_json_string(l->path, c, "behavior", true, &name, l->err));
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, NAMES[i]) == 0) {
            *behavior = (enum tokenizer_behavior)i;
            return PDVM_OK;
        }
    }
    return pd_fail(l->err, PDVM_ERR_FORMAT, "%s: %s.behavior is \"%.60s\", which is unknown",
                   l->path, field, name);
}

static pdvm_status load_split(struct loader *l, const char *field, const json_t *c) {
    struct tokenizer_step step = {.kind = TOKENIZER_STEP_REGEX}, *added = NULL;
    const json_t *pattern;
    bool regex;
    PD_TRY(load_pattern(l, field, c, &pattern, &regex));
    PD_TRY(load_behavior(l, field, c, &step.behavior));
    PD_TRY(pd_json_bool(l->path, c, "invert", false, &step.invert, l->err));
    PD_TRY(add_step(l, field, &step, &added));
    if (regex)
        return tokenizer_regex_compile(l->path, field, json_string_value(pattern),
                                       json_string_length(pattern), &added->regex, l->err);
    added->kind = TOKENIZER_STEP_STRING;
    return copy_string(l, field, "pattern", pattern, 1, &added->string, &added->string_len);
}

static pdvm_status load_digits(struct loader *l, const char *field, const json_t *c) {
    struct tokenizer_step step = {.kind = TOKENIZER_STEP_DIGIT}, *added = NULL;
    bool individual = false;
    PD_TRY(pd_json_bool(l->path, c, "individual_digits", true, &individual, l->err));
    step.behavior = individual ? TOKENIZER_ISOLATED : TOKENIZER_CONTIGUOUS;
    return add_step(l, field, &step, &added);
}

static pdvm_status load_byte_level(struct loader *l, const char *field, const json_t *c) {
    struct tokenizer_step *added = NULL;
    bool add_prefix_space = true, use_regex = true;
    PD_TRY(pd_json_bool(l->path, c, "add_prefix_space", true, &add_prefix_space, l->err));
    PD_TRY(pd_json_bool(l->path, c, "use_regex", false, &use_regex, l->err));
    l->byte_level = true;
    if (add_prefix_space) {
        struct tokenizer_step step = {.kind = TOKENIZER_STEP_SPACE};
        PD_TRY(add_step(l, field, &step, &added));
    }
    if (!use_regex) return PDVM_OK;
    struct tokenizer_step step = {.kind = TOKENIZER_STEP_REGEX, .behavior = TOKENIZER_ISOLATED};
    PD_TRY(add_step(l, field, &step, &added));
    return tokenizer_regex_compile(l->path, field, GPT2_PATTERN, sizeof GPT2_PATTERN - 1,
                                   &added->regex, l->err);
}

/* What the pre-tokeniser and the decoder Metaspace have in common. */
static pdvm_status load_metaspace(const struct loader *l, const char *field, const json_t *c,
                                  char replacement[5], enum tokenizer_prepend *prepend) {
    static const char *const NAMES[] = {"never", "first", "always"};
    const char *scheme = NULL;
    bool add_prefix_space = true;
    PD_TRY(copy_char(l, field, c, "replacement", replacement));
    PD_TRY(pd_json_string(l->path, c, "prepend_scheme", false, &scheme, l->err));
    PD_TRY(pd_json_bool(l->path, c, "add_prefix_space", false, &add_prefix_space, l->err));
    if (!scheme) scheme = add_prefix_space ? "always" : "never";
    for (int i = 0; i < 3; i++) {
        if (strcmp(scheme, NAMES[i]) != 0) continue;
        *prepend = (enum tokenizer_prepend)i;
        if (add_prefix_space || i == 0) return PDVM_OK;
    }
    return pd_fail(l->err, PDVM_ERR_FORMAT,
                   "%s: %s.prepend_scheme is \"%.60s\"; expected \"never\", \"first\" or "
                   "\"always\", and \"never\" if add_prefix_space is false",
                   l->path, field, scheme);
}

static pdvm_status load_metaspace_step(struct loader *l, const char *field, const json_t *c) {
    struct tokenizer_step step = {.kind = TOKENIZER_STEP_METASPACE}, *added = NULL;
    char replacement[5];
    bool split = true;
    PD_TRY(load_metaspace(l, field, c, replacement, &step.prepend));
    PD_TRY(pd_json_bool(l->path, c, "split", false, &split, l->err));
    if (l->metaspace)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s is a second Metaspace", l->path,
                       field);
    l->metaspace = true;
    PD_TRY(add_step(l, field, &step, &added));
    added->string_len = strlen(replacement);
    PD_TRY(pd_calloc(&added->string, sizeof replacement, 1, "a pattern", l->err));
    memcpy(added->string, replacement, added->string_len);
    if (!split) return PDVM_OK;
    step = (struct tokenizer_step){.kind = TOKENIZER_STEP_STRING,
                                   .behavior = TOKENIZER_MERGED_WITH_NEXT};
    PD_TRY(add_step(l, field, &step, &added));
    added->string_len = strlen(replacement);
    PD_TRY(pd_calloc(&added->string, sizeof replacement, 1, "a pattern", l->err));
    memcpy(added->string, replacement, added->string_len);
    return PDVM_OK;
}

static pdvm_status load_pre_tokenizer(struct loader *l, const char *field, const json_t *c,
                                      int depth) {
    const char *type;
    PD_TRY(component_type(l, field, c, &type));
    if (strcmp(type, "Sequence") == 0)
        return each(l, field, c, "pretokenizers", depth, load_pre_tokenizer);
    // What follows would have to work on the characters that stand for bytes.
    if (l->byte_level)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED,
                       "%s: %s (%.60s) comes after ByteLevel; this version wants that last",
                       l->path, field, type);
    if (strcmp(type, "Split") == 0) return load_split(l, field, c);
    if (strcmp(type, "Digits") == 0) return load_digits(l, field, c);
    if (strcmp(type, "Metaspace") == 0) return load_metaspace_step(l, field, c);
    if (strcmp(type, "ByteLevel") == 0 && l->metaspace)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s (ByteLevel) comes after Metaspace",
                       l->path, field);
    if (strcmp(type, "ByteLevel") == 0) return load_byte_level(l, field, c);
    return unsupported(l, field, type, "ByteLevel, Metaspace, Split, Digits and Sequence");
}

/* Most tokens that a template may add on one side; it can name one list of ids many times. */
#define MAX_TEMPLATE 256

static pdvm_status add_id(struct loader *l, struct tokenizer_ids *list, int32_t id) {
    if (list->n == MAX_TEMPLATE)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED,
                       "%s: post_processor adds more than %d tokens on one side", l->path,
                       MAX_TEMPLATE);
    PD_TRY(pd_grow(&list->ids, &list->capacity, list->n + 1, sizeof *list->ids, "special tokens",
                   l->err));
    list->ids[list->n++] = id;
    return PDVM_OK;
}

/* The ids of one special token of a template, appended to `ids`. */
static pdvm_status template_token(struct loader *l, const char *field, const json_t *c,
                                  const json_t *token, struct tokenizer_ids *ids) {
    const char *name;
    json_t *specials, *special, *list;
    PD_TRY(pd_json_string(l->path, token, "id", true, &name, l->err));
    PD_TRY(pd_json_object(l->path, c, "special_tokens", true, &specials, l->err));
    PD_TRY(pd_json_object(l->path, specials, name, true, &special, l->err));
    PD_TRY(pd_json_array(l->path, special, "ids", true, &list, l->err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= (json_int_t)l->t->n_pieces || l->t->pieces[id].flags == 0)
            return pd_fail(l->err, PDVM_ERR_FORMAT,
                           "%s: %s.special_tokens: an id of \"%.60s\" is not in the vocabulary",
                           l->path, field, name);
        PD_TRY(add_id(l, ids, (int32_t)id));
    }
    return PDVM_OK;
}

static pdvm_status template_items(struct loader *l, const char *field, const json_t *c,
                                  const json_t *items, struct tokenizer_ids parts[2]) {
    int side = 0;
    for (size_t i = 0; i < json_array_size(items); i++) {
        const json_t *item = json_array_get(items, i);
        const json_t *token = json_object_get(item, "SpecialToken");
        const json_t *sequence = json_object_get(item, "Sequence");
        if (token) {
            PD_TRY(template_token(l, field, c, token, &parts[side]));
        } else {
            const char *id = json_string_value(json_object_get(sequence, "id"));
            if (!id || strcmp(id, "A") != 0 || side == 1)
                return pd_fail(l->err, PDVM_ERR_UNSUPPORTED,
                               "%s: %s.single[%zu] is neither a SpecialToken nor the one "
                               "Sequence \"A\"",
                               l->path, field, i);
            side = 1;
        }
    }
    if (side == 0)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s.single leaves out the text", l->path,
                       field);
    return PDVM_OK;
}

static pdvm_status load_template(struct loader *l, const char *field, const json_t *c) {
    json_t *items;
    if (l->has_template)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s is a second TemplateProcessing",
                       l->path, field);
    PD_TRY(pd_json_array(l->path, c, "single", true, &items, l->err));
    struct tokenizer_ids parts[2] = {{0}};
    pdvm_status status = template_items(l, field, c, items, parts);
    if (status != PDVM_OK) {
        free(parts[0].ids);
        free(parts[1].ids);
        return status;
    }
    l->has_template = true;
    l->t->before = parts[0];
    l->t->after = parts[1];
    return PDVM_OK;
}

static pdvm_status load_post_processor(struct loader *l, const char *field, const json_t *c,
                                       int depth) {
    const char *type;
    PD_TRY(component_type(l, field, c, &type));
    if (strcmp(type, "Sequence") == 0)
        return each(l, field, c, "processors", depth, load_post_processor);
    // It only moves offsets.
    if (strcmp(type, "ByteLevel") == 0) return PDVM_OK;
    if (strcmp(type, "TemplateProcessing") == 0) return load_template(l, field, c);
    return unsupported(l, field, type, "ByteLevel, TemplateProcessing and Sequence");
}

/* Adds a replacement for what pieces stand for. */
static pdvm_status add_decoded(struct loader *l, const char *field,
                               struct tokenizer_normal **normal) {
    struct tokenizer_decoder *d = &l->t->decoder;
    // In any other order it would see more than one piece, or less.
    if (l->fused || d->byte_fallback)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s comes after ByteFallback or Fuse",
                       l->path, field);
    if (d->n_replace == TOKENIZER_MAX_STEPS)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s: more than %d replacements", l->path,
                       field, TOKENIZER_MAX_STEPS);
    *normal = &d->replace[d->n_replace++];
    return PDVM_OK;
}

static pdvm_status load_decoder_replace(struct loader *l, const char *field, const json_t *c) {
    struct tokenizer_normal *normal = NULL;
    PD_TRY(add_decoded(l, field, &normal));
    PD_TRY(load_replace(l, field, c, normal));
    if (normal->regex || normal->to_len > normal->from_len)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED,
                       "%s: %s replaces %s; this version knows strings by shorter ones", l->path,
                       field, normal->regex ? "a regular expression" : "a string by a longer one");
    return PDVM_OK;
}

static pdvm_status load_decoder_metaspace(struct loader *l, const char *field, const json_t *c) {
    struct tokenizer_normal *normal = NULL;
    enum tokenizer_prepend prepend;
    char replacement[5];
    PD_TRY(load_metaspace(l, field, c, replacement, &prepend));
    if (l->t->decoder.n_replace > 0)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED, "%s: %s (Metaspace) comes after others",
                       l->path, field);
    PD_TRY(add_decoded(l, field, &normal));
    normal->kind = TOKENIZER_NORMAL_REPLACE;
    normal->from_len = strlen(replacement);
    normal->to_len = 1;
    PD_TRY(pd_calloc(&normal->from, sizeof replacement, 1, "a decoder", l->err));
    PD_TRY(pd_calloc(&normal->to, 2, 1, "a decoder", l->err));
    memcpy(normal->from, replacement, normal->from_len);
    normal->to[0] = ' ';
    if (prepend != TOKENIZER_PREPEND_NEVER)
        memcpy(l->t->decoder.drop, replacement, sizeof replacement);
    return PDVM_OK;
}

static pdvm_status load_strip(struct loader *l, const char *field, const json_t *c) {
    struct tokenizer_decoder *d = &l->t->decoder;
    int64_t start = 0, stop = 0;
    PD_TRY(pd_json_int(l->path, c, "start", true, 0, 1024, &start, l->err));
    PD_TRY(pd_json_int(l->path, c, "stop", true, 0, 1024, &stop, l->err));
    if (!l->fused || stop > 0 || d->n_strip > 0 || d->drop[0] != 0)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED,
                       "%s: %s is a Strip that is not one of the start of a text, after Fuse",
                       l->path, field);
    d->n_strip = (uint32_t)start;
    return copy_char(l, field, c, "content", d->strip);
}

static pdvm_status load_decoder(struct loader *l, const char *field, const json_t *c, int depth) {
    const char *type;
    PD_TRY(component_type(l, field, c, &type));
    if (strcmp(type, "Sequence") == 0) return each(l, field, c, "decoders", depth, load_decoder);
    if (strcmp(type, "ByteLevel") == 0 ? !l->byte_level : l->byte_level)
        return pd_fail(l->err, PDVM_ERR_UNSUPPORTED,
                       "%s: %s is of type \"%.60s\", which does not go with the pre_tokenizer",
                       l->path, field, type);
    l->n_decoders++;
    if (strcmp(type, "ByteLevel") == 0 && l->n_decoders == 1) return PDVM_OK;
    if (strcmp(type, "Replace") == 0) return load_decoder_replace(l, field, c);
    if (strcmp(type, "Metaspace") == 0) return load_decoder_metaspace(l, field, c);
    if (strcmp(type, "Strip") == 0) return load_strip(l, field, c);
    if (strcmp(type, "ByteFallback") == 0) {
        l->t->decoder.byte_fallback = true;
        return PDVM_OK;
    }
    if (strcmp(type, "Fuse") == 0) {
        l->fused = true;
        return PDVM_OK;
    }
    return unsupported(l, field, type,
                       "one ByteLevel, Replace, Metaspace, ByteFallback, Fuse, Strip and Sequence");
}

pdvm_status tokenizer_load_steps(struct tokenizer *t, const char *path, const json_t *root,
                                 pdvm_error *err) {
    static const struct {
        const char *field;
        pdvm_status (*fn)(struct loader *, const char *, const json_t *, int);
    } PARTS[] = {{"normalizer", load_normalizer},
                 {"pre_tokenizer", load_pre_tokenizer},
                 {"post_processor", load_post_processor},
                 {"decoder", load_decoder}};
    struct loader l = {.t = t, .path = path, .err = err};
    for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++) {
        const json_t *c = pd_json_member(root, PARTS[i].field);
        if (c) PD_TRY(PARTS[i].fn(&l, PARTS[i].field, c, 0));
    }
    t->byte_level = l.byte_level;
    if (l.n_decoders == 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: there is no decoder; this version wants one, such as ByteLevel", path);
    if (l.byte_level && t->byte_fallback)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: model.byte_fallback is true, but pre_tokenizer is ByteLevel", path);
    return PDVM_OK;
}
