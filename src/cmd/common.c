/* What several commands share. */
#include "cmd/common.h"
#include "base/alloc.h"
#include "base/utf8.h"
#include "cmd/cmd.h"
#include "cmd/terminal.h"
#include "compress/settings.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* Larger texts are a mistake: their tokens would not fit the context by far. */
#define MAX_TEXT ((size_t)1 << 30)

const char *const output_formats[] = {"text", "json", NULL};

const char *const table_formats[] = {"md", "csv", "json", NULL};

const char *const embed_names[] = {"f32", "bf16", "f16", "int8", NULL};

const char *const group_names[] = {"0", "32", "64", "128", "256", NULL};

int group_of(int choice) {
    static const int groups[] = {0, 32, 64, 128, 256};
    return choice < 0 ? SETTING_UNSET : groups[choice];
}

pdvm_status find_method(const char *flag, const char *name, const struct prune_method **out,
                        pdvm_error *err) {
    char names[256] = "";
    *out = prune_method_find(name);
    if (*out) return PDVM_OK;
    for (size_t i = 0, n = 0; prune_method_at(i) && n < sizeof names; i++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", i ? ", " : "",
                              prune_method_at(i)->name);
    return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: '%s' is none of %s", flag, name, names);
}

const char *const kv_type_names[] = {"f32", "f16", "int8", "q8_0", NULL};

const char *const activation_names[] = {"16", "8", NULL};

uint32_t activations_of(int choice) {
    return choice == 0 ? 16 : 8;
}

pdvm_kv_type kv_type_of(int choice) {
    /* q8_0 is what llama.cpp's users call 8-bit integers. */
    return choice >= PDVM_KV_INT8 ? PDVM_KV_INT8 : (pdvm_kv_type)choice;
}

static pdvm_status read_stream(FILE *f, const char *name, char **data, size_t *size,
                               pdvm_error *err) {
    size_t capacity = 0;
    for (;;) {
        PD_TRY(pd_grow(data, &capacity, *size + 4096, 1, name, err));
        size_t n = fread(*data + *size, 1, capacity - *size - 1, f);
        *size += n;
        (*data)[*size] = '\0';
        if (*size > MAX_TEXT)
            return pd_fail(err, PDVM_ERR_RANGE, "%s: more than %zu bytes of text", name, MAX_TEXT);
        if (terminal_interrupted())
            return pd_fail(err, PDVM_ERR_CANCELLED, "%s: interrupted while reading", name);
        if (n == 0 && ferror(f)) return pd_fail_errno(err, name, "cannot read");
        if (n == 0) return PDVM_OK;
    }
}

pdvm_status read_text(const char *path, char **data, size_t *size, pdvm_error *err) {
    bool from_stdin = strcmp(path, "-") == 0;
    *data = NULL;
    *size = 0;
    FILE *f = from_stdin ? stdin : fopen(path, "rb");
    if (!f) return pd_fail_errno(err, path, "cannot open");
    pdvm_status status = read_stream(f, from_stdin ? "standard input" : path, data, size, err);
    if (!from_stdin) fclose(f);
    if (status != PDVM_OK) {
        free(*data);
        *data = NULL;
    }
    return status;
}

pdvm_status check_utf8(const char *what, const char *text, size_t size, pdvm_error *err) {
    size_t valid = pd_utf8_check(text, size);
    if (valid == size) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_ARGUMENT,
                   "%s is not valid UTF-8: byte 0x%02x at offset %zu; convert it first, for "
                   "instance with iconv",
                   what, (unsigned)(unsigned char)text[valid], valid);
}

pdvm_status read_utf8(const char *path, char **data, size_t *size, pdvm_error *err) {
    PD_TRY(read_text(path, data, size, err));
    pdvm_status status = check_utf8(path, *data, *size, err);
    if (status == PDVM_OK) return PDVM_OK;
    free(*data);
    *data = NULL;
    return status;
}

uint64_t peak_memory(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
    return (uint64_t)usage.ru_maxrss;
#else
    return (uint64_t)usage.ru_maxrss * 1024;
#endif
}

int print_json(const char *command, json_t *value) {
    int code = CMD_OK;
    if (!value) {
        terminal_error(command, "out of memory while making JSON");
        return CMD_FAILED;
    }
    errno = 0;
    if (json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(10)) != 0 ||
        putchar('\n') == EOF || fflush(stdout) != 0) {
        terminal_error(command, "cannot write JSON to standard output%s%s", errno ? ": " : "",
                       errno ? strerror(errno) : "");
        code = CMD_FAILED;
    }
    json_decref(value);
    return code;
}

json_t *json_text(const char *text, size_t size) {
    static const char replacement[] = "\xef\xbf\xbd";
    size_t capacity = 0, n = 0;
    char *clean = NULL;
    /* Each bad byte may become three. */
    if (size > SIZE_MAX / 3 - 1 || pd_grow(&clean, &capacity, 3 * size + 1, 1, "text", NULL))
        return NULL;
    for (size_t i = 0; i < size;) {
        size_t valid = pd_utf8_check(text + i, size - i);
        memcpy(clean + n, text + i, valid);
        n += valid;
        i += valid;
        if (i < size) {
            memcpy(clean + n, replacement, 3);
            n += 3;
            i++;
        }
    }
    json_t *value = json_stringn(clean, n);
    free(clean);
    return value;
}

void print_escaped(const char *text, size_t size) {
    for (size_t i = 0; i < size;) {
        unsigned char c = (unsigned char)text[i];
        size_t length = 1;
        while (i + length < size && ((unsigned char)text[i + length] & 0xc0) == 0x80) length++;
        if (c == '\n') {
            fputs("\\n", stdout);
        } else if (c == '\t') {
            fputs("\\t", stdout);
        } else if (c == '\\') {
            fputs("\\\\", stdout);
        } else if (c >= 0xc2 && pd_utf8_check(text + i, length) == length &&
                   !(c == 0xc2 && (unsigned char)text[i + 1] < 0xa0)) {
            fwrite(text + i, 1, length, stdout);
        } else if (c < 0x20 || c >= 0x7f) {
            printf("\\x%02x", c);
            length = 1;
        } else {
            putchar(c);
            length = 1;
        }
        i += length;
    }
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

size_t unescape(char *text) {
    char *out = text;
    for (const char *in = text; *in; in++) {
        if (*in != '\\' || in[1] == '\0') {
            *out++ = *in;
            continue;
        }
        in++;
        int high = *in == 'x' ? hex_digit(in[1]) : -1;
        int low = high >= 0 ? hex_digit(in[2]) : -1;
        if (low >= 0) {
            *out++ = (char)(high * 16 + low);
            in += 2;
            continue;
        }
        switch (*in) {
        case 'n': *out++ = '\n'; break;
        case 'r': *out++ = '\r'; break;
        case 't': *out++ = '\t'; break;
        case '\\':
        case '"':
        case '\'': *out++ = *in; break;
        default: *out++ = '\\'; *out++ = *in;
        }
    }
    *out = '\0';
    return (size_t)(out - text);
}
