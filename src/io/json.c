#include "io/json.h"

#include <inttypes.h>
#include <math.h>

/*
 * jansson limits nesting to 2048 levels, and its parser and destructor recurse: a scan before it
 * keeps the stack small. Brackets inside strings don't count; what isn't well-formed is left to
 * the parser, which stops at the first error.
 */
static bool depth_ok(const char *data, size_t size) {
    size_t depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        char c = data[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '{' || c == '[') {
            if (++depth > PD_JSON_MAX_DEPTH) return false;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return true;
}

pdvm_status pd_json_parse(const char *path, const char *data, size_t size, json_t **out,
                          pdvm_error *err) {
    *out = NULL;
    if (size == 0) return pd_fail(err, PDVM_ERR_FORMAT, "%s: empty, expected JSON", path);
    if (!depth_ok(data, size))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: JSON nested deeper than %d levels", path,
                       PD_JSON_MAX_DEPTH);
    json_error_t e;
    *out = json_loadb(data, size, JSON_REJECT_DUPLICATES, &e);
    if (*out) return PDVM_OK;
    if (json_error_code(&e) == json_error_out_of_memory)
        return pd_fail_memory(err, size, "parsing JSON");
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: line %d, column %d: %s", path, e.line, e.column,
                   e.text);
}

pdvm_status pd_json_parse_object(const char *path, const char *data, size_t size, json_t **out,
                                 pdvm_error *err) {
    PD_TRY(pd_json_parse(path, data, size, out, err));
    if (json_is_object(*out)) return PDVM_OK;
    const char *kind = pd_json_kind(*out);
    json_decref(*out);
    *out = NULL;
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: expected a JSON object, found %s", path, kind);
}

const char *pd_json_kind(const json_t *value) {
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "a whole number";
    case JSON_REAL: return "a number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "something unknown";
}

json_t *pd_json_member(const json_t *object, const char *field) {
    json_t *value = json_object_get(object, field);
    return json_is_null(value) ? NULL : value;
}

/* Looks a field up; *value is NULL if it may be and is missing. */
static pdvm_status lookup(const char *path, const json_t *object, const char *field, bool required,
                          json_t **value, pdvm_error *err) {
    *value = pd_json_member(object, field);
    if (!*value && required)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"%s\" is missing", path, field);
    return PDVM_OK;
}

static pdvm_status wrong_kind(const char *path, const char *field, const json_t *value,
                              const char *expected, pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"%s\" must be %s, not %s", path, field,
                   expected, pd_json_kind(value));
}

pdvm_status pd_json_int(const char *path, const json_t *object, const char *field, bool required,
                        int64_t min, int64_t max, int64_t *out, pdvm_error *err) {
    json_t *value;
    PD_TRY(lookup(path, object, field, required, &value, err));
    if (!value) return PDVM_OK;
    if (!json_is_integer(value)) return wrong_kind(path, field, value, "a whole number", err);
    int64_t v = json_integer_value(value);
    if (v < min || v > max)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"%s\" is %" PRId64 ", outside %" PRId64 "..%" PRId64, path,
                       field, v, min, max);
    *out = v;
    return PDVM_OK;
}

pdvm_status pd_json_number(const char *path, const json_t *object, const char *field, bool required,
                           double *out, pdvm_error *err) {
    json_t *value;
    PD_TRY(lookup(path, object, field, required, &value, err));
    if (!value) return PDVM_OK;
    if (!json_is_number(value)) return wrong_kind(path, field, value, "a number", err);
    double v = json_number_value(value);
    if (!isfinite(v))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: field \"%s\" is not finite", path, field);
    *out = v;
    return PDVM_OK;
}

pdvm_status pd_json_bool(const char *path, const json_t *object, const char *field, bool required,
                         bool *out, pdvm_error *err) {
    json_t *value;
    PD_TRY(lookup(path, object, field, required, &value, err));
    if (!value) return PDVM_OK;
    if (!json_is_boolean(value)) return wrong_kind(path, field, value, "true or false", err);
    *out = json_is_true(value);
    return PDVM_OK;
}

pdvm_status pd_json_string(const char *path, const json_t *object, const char *field, bool required,
                           const char **out, pdvm_error *err) {
    json_t *value;
    PD_TRY(lookup(path, object, field, required, &value, err));
    if (!value) return PDVM_OK;
    if (!json_is_string(value)) return wrong_kind(path, field, value, "a string", err);
    *out = json_string_value(value);
    return PDVM_OK;
}

pdvm_status pd_json_object(const char *path, const json_t *object, const char *field, bool required,
                           json_t **out, pdvm_error *err) {
    json_t *value;
    PD_TRY(lookup(path, object, field, required, &value, err));
    if (!value) return PDVM_OK;
    if (!json_is_object(value)) return wrong_kind(path, field, value, "an object", err);
    *out = value;
    return PDVM_OK;
}

pdvm_status pd_json_array(const char *path, const json_t *object, const char *field, bool required,
                          json_t **out, pdvm_error *err) {
    json_t *value;
    PD_TRY(lookup(path, object, field, required, &value, err));
    if (!value) return PDVM_OK;
    if (!json_is_array(value)) return wrong_kind(path, field, value, "an array", err);
    *out = value;
    return PDVM_OK;
}

json_t *pd_json_real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}
