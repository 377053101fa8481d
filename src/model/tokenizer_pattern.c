#include "model/tokenizer_pattern.h"

#include <ctype.h>
#include <string.h>

#define MAX_GROUPS 64

#define CALLOUT "(?C1)"

/* Oniguruma's \s is White_Space; PCRE2's has U+180E besides. Both as the inside of a class. */
static const char SPACE[] = "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}"
                            "\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
static const char NOT_SPACE[] = "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}"
                                "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}"
                                "\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";
/* PCRE2's \w knows neither marks nor other connectors than the underscore. */
static const char WORD[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
/* Outside of classes Oniguruma counts superscript digits and fractions of Latin-1 in. */
static const char LONE_WORD[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe";
static const char HEX[] = "0-9A-Fa-f";

struct translator {
    const char *where;
    const char *p; /* the pattern */
    size_t n;
    size_t i; /* read so far */
    struct tokenizer_buffer *out;
    size_t group[MAX_GROUPS];      /* where in `out` the open groups begin */
    size_t group_body[MAX_GROUPS]; /* and their first alternative */
    bool look[MAX_GROUPS];         /* look-around */
    int depth;
    size_t atom;      /* where in `out` the last atom begins */
    size_t atom_body; /* its group's body, or 0 if it is no repeatable group */
    bool has_atom;
    pdvm_error *err;
};

static pdvm_status reject(const struct translator *t, size_t at, const char *what) {
    return pd_fail(t->err, PDVM_ERR_UNSUPPORTED,
                   "%s: %s (\"%.*s\" at byte %zu) is not supported in a regular expression",
                   t->where, what, tokenizer_quote_len(t->p + at, t->n - at), t->p + at, at);
}

static pdvm_status put(struct translator *t, const char *s, size_t len) {
    return tokenizer_buffer_add(t->out, s, len, t->err);
}

static pdvm_status put_text(struct translator *t, const char *s) {
    return put(t, s, strlen(s));
}

static pdvm_status insert(struct translator *t, size_t at, const char *s) {
    size_t len = strlen(s), tail = t->out->n - at;
    PD_TRY(put(t, s, len));
    memmove(t->out->data + at + len, t->out->data + at, tail);
    memcpy(t->out->data + at, s, len);
    return PDVM_OK;
}

static bool starts(const struct translator *t, const char *s) {
    size_t len = strlen(s);
    return t->n - t->i >= len && memcmp(t->p + t->i, s, len) == 0;
}

static bool is_category(const char *name, size_t len) {
    static const char SUB[][8] = {"Ccfnos", "Llmotu", "Mcen", "Ndlo", "Pcdefios", "Sckmo", "Zlps"};
    for (size_t i = 0; i < sizeof SUB / sizeof *SUB; i++)
        if (SUB[i][0] == name[0])
            return len == 1 || (len == 2 && strchr(SUB[i] + 1, name[1]) != NULL);
    return false;
}

/* \p{...} and \P{...}; t->i is behind the letter. */
static pdvm_status property(struct translator *t, bool negated) {
    static const char *const LONG[][2] = {{"Letter", "L"},
                                          {"Mark", "M"},
                                          {"Number", "N"},
                                          {"Punctuation", "P"},
                                          {"Symbol", "S"},
                                          {"Separator", "Z"},
                                          {"Other", "C"},
                                          {"Alphabetic", "Alphabetic"},
                                          {"Uppercase", "Uppercase"},
                                          {"Lowercase", "Lowercase"},
                                          {"Emoji", "Emoji"},
                                          {"Any", "Any"}};
    size_t at = t->i >= 2 ? t->i - 2 : 0;
    if (t->i >= t->n || t->p[t->i] != '{') return reject(t, at, "a property without braces");
    size_t begin = t->i + 1;
    if (begin < t->n && t->p[begin] == '^') {
        negated = !negated;
        begin++;
    }
    const char *close = memchr(t->p + begin, '}', t->n - begin);
    size_t len = close ? (size_t)(close - (t->p + begin)) : 0;
    if (len == 0 || len > 40) return reject(t, at, "this property");
    const char *name = t->p + begin;
    t->i = begin + len + 1;
    PD_TRY(put_text(t, negated ? "\\P{" : "\\p{"));
    for (size_t i = 0; i < sizeof LONG / sizeof *LONG; i++) {
        if (strlen(LONG[i][0]) == len && memcmp(LONG[i][0], name, len) == 0) {
            PD_TRY(put_text(t, LONG[i][1]));
            return put_text(t, "}");
        }
    }
    for (size_t i = 0; i < len; i++)
        if (!isalpha((unsigned char)name[i]) && name[i] != '_')
            return reject(t, at, "this property");
    // Two letters or fewer are a category or an error. Longer names are scripts, and mean the
    // script itself here, where PCRE2 would take the script extensions.
    if (!is_category(name, len)) {
        if (len <= 2) return reject(t, at, "this property");
        PD_TRY(put_text(t, "sc:"));
    }
    PD_TRY(put(t, name, len));
    return put_text(t, "}");
}

/* \xHH, \x{H...}, \uHHHH: t->i is behind the letter. */
static pdvm_status code_point(struct translator *t, char kind) {
    size_t at = t->i - 2;
    size_t begin = t->i, digits = 0;
    bool braces = kind == 'x' && begin < t->n && t->p[begin] == '{';
    if (braces) begin++;
    size_t most = braces ? 6 : kind == 'x' ? 2 : 4;
    while (digits < most && begin + digits < t->n && isxdigit((unsigned char)t->p[begin + digits]))
        digits++;
    t->i = begin + digits;
    if (digits == 0 || (kind == 'u' && digits != 4) ||
        (braces && (t->i >= t->n || t->p[t->i] != '}')))
        return reject(t, at, "this escape");
    if (braces) t->i++;
    // Two digits are a byte in Oniguruma: a character only below 80.
    if (kind == 'x' && !braces && digits == 2 && (uint8_t)t->p[begin] > '7')
        return reject(t, at, "a byte of a character");
    PD_TRY(put_text(t, "\\x{"));
    PD_TRY(put(t, t->p + begin, digits));
    return put_text(t, "}");
}

/* A class escape: its members, put into brackets unless they are in some already. */
static pdvm_status members(struct translator *t, const char *list, bool negated, bool in_class) {
    if (in_class) return put_text(t, list);
    PD_TRY(put_text(t, negated ? "[^" : "["));
    PD_TRY(put_text(t, list));
    return put_text(t, "]");
}

/* What follows a backslash at t->i. */
static pdvm_status escape(struct translator *t, bool in_class) {
    size_t at = t->i;
    if (t->i + 1 >= t->n) return reject(t, at, "a backslash at the end");
    char c = t->p[t->i + 1];
    t->i += 2;
    switch (c) {
    case 's': return members(t, SPACE, false, in_class);
    case 'S': return in_class ? put_text(t, NOT_SPACE) : members(t, SPACE, true, false);
    case 'w': return members(t, in_class ? WORD : LONE_WORD, false, in_class);
    case 'W':
        return in_class ? reject(t, at, "this escape in a class")
                        : members(t, LONE_WORD, true, false);
    case 'h': return members(t, HEX, false, in_class);
    case 'H':
        return in_class ? reject(t, at, "this escape in a class") : members(t, HEX, true, false);
    case 'v': return put_text(t, "\\x0b");
    case 'd':
    case 'D':
    case 't':
    case 'n':
    case 'r':
    case 'f':
    case 'a':
    case 'e': return put(t, t->p + at, 2);
    case 'A':
    case 'z':
        if (in_class) return reject(t, at, "this escape in a class");
        return put(t, t->p + at, 2);
    case 'p':
    case 'P': return property(t, c == 'P');
    case 'x':
    case 'u': return code_point(t, c);
    default:
        if ((uint8_t)c >= 0x80 || !(ispunct((unsigned char)c) || c == ' '))
            return reject(t, at, "this escape");
        return put(t, t->p + at, 2);
    }
}

static pdvm_status bracket_class(struct translator *t) {
    size_t at = t->i++;
    PD_TRY(put_text(t, "["));
    if (t->i < t->n && t->p[t->i] == '^') {
        t->i++;
        PD_TRY(put_text(t, "^"));
    }
    bool empty = true;
    while (t->i < t->n) {
        char c = t->p[t->i];
        if (c == ']') {
            if (empty) return reject(t, at, "an empty class");
            t->i++;
            return put_text(t, "]");
        }
        if (c == '[') return reject(t, t->i, "a class in a class");
        if (starts(t, "&&")) return reject(t, t->i, "an intersection of classes");
        if (c == '\\') {
            bool set = t->i + 1 < t->n && strchr("sSwWhHdDpP", t->p[t->i + 1]);
            bool upper_end = !empty && t->out->data[t->out->n - 1] == '-';
            PD_TRY(escape(t, true));
            bool lower_end = starts(t, "-") && !starts(t, "-]");
            if (set && (upper_end || lower_end)) return reject(t, at, "a range that ends in a set");
        } else {
            PD_TRY(put(t, &c, 1));
            t->i++;
        }
        empty = false;
    }
    return reject(t, at, "a class without its end");
}

static pdvm_status open_group(struct translator *t) {
    static const struct {
        const char *text;
        const char *pcre2;
        bool look;
    } KINDS[] = {{"(?:", "(?:", false},   {"(?=", "(?=", true},      {"(?!", "(?!", true},
                 {"(?<=", "(?<=", true},  {"(?<!", "(?<!", true},    {"(?>", "(?>", false},
                 {"(?i:", "(?i:", false}, {"(?-i:", "(?-i:", false}, {"(?m:", "(?s:", false}};
    size_t at = t->i;
    // In the middle of a pattern the two libraries disagree on how far this reaches.
    if (at == 0 && starts(t, "(?i)")) {
        t->i += 4;
        return put_text(t, "(?i)");
    }
    if (t->depth == MAX_GROUPS) return reject(t, at, "such deep nesting");
    t->group[t->depth] = t->out->n;
    t->look[t->depth] = false;
    if (!starts(t, "(?") && !starts(t, "(*")) {
        t->i++;
        // Nothing refers to a group by its number.
        PD_TRY(put_text(t, "(?:"));
    } else {
        size_t k = 0, n_kinds = sizeof KINDS / sizeof *KINDS;
        while (k < n_kinds && !starts(t, KINDS[k].text)) k++;
        if (k == n_kinds) return reject(t, at, "this kind of group");
        t->i += strlen(KINDS[k].text);
        t->look[t->depth] = KINDS[k].look;
        PD_TRY(put_text(t, KINDS[k].pcre2));
    }
    t->group_body[t->depth++] = t->out->n;
    t->has_atom = false;
    return PDVM_OK;
}

static pdvm_status close_group(struct translator *t) {
    if (t->depth == 0) return reject(t, t->i, "a closing parenthesis without an opening one");
    t->depth--;
    t->i++;
    t->atom = t->group[t->depth];
    t->atom_body = t->look[t->depth] ? 0 : t->group_body[t->depth];
    t->has_atom = true;
    return put_text(t, ")");
}

/* Whether {n}, {n,}, {n,m} or {,m} is at t->i; sets its length and whether it is only {n}. */
static bool interval(const struct translator *t, size_t *len, bool *fixed, bool *no_lower) {
    size_t i = t->i + 1, digits = 0, commas = 0;
    *no_lower = i < t->n && t->p[i] == ',';
    for (; i < t->n && t->p[i] != '}'; i++) {
        if (t->p[i] == ',') {
            commas++;
        } else if (isdigit((unsigned char)t->p[i])) {
            digits++;
        } else {
            return false;
        }
    }
    *len = i + 1 - t->i;
    *fixed = commas == 0;
    return i < t->n && digits > 0 && commas <= 1;
}

static pdvm_status quantifier(struct translator *t) {
    size_t at = t->i;
    char c = t->p[t->i];
    if (!t->has_atom) return reject(t, at, "a repetition of nothing");
    if (c != '?' && t->atom_body == 0) {
        PD_TRY(insert(t, t->atom, CALLOUT));
        // What follows repeats the atom, not the callout.
        t->atom += sizeof CALLOUT - 1;
    } else if (c != '?') {
        PD_TRY(insert(t, t->atom_body, CALLOUT "(?:"));
        // The inner group keeps the callout out of the first alternative alone.
        t->out->n--;
        PD_TRY(put_text(t, "))"));
    }
    if (c != '{') {
        t->i++;
        PD_TRY(put(t, &c, 1));
        if (t->i < t->n && (t->p[t->i] == '?' || t->p[t->i] == '+'))
            PD_TRY(put(t, t->p + t->i++, 1));
    } else {
        size_t len;
        bool fixed, no_lower;
        // Oniguruma takes any other brace literally, and so must whoever writes one.
        if (!interval(t, &len, &fixed, &no_lower)) return reject(t, at, "a lone brace");
        PD_TRY(put_text(t, no_lower ? "{0" : "{"));
        PD_TRY(put(t, t->p + t->i + 1, len - 1));
        t->i += len;
        if (t->i < t->n && t->p[t->i] == '+') {
            // Not possessive there, but a repetition of the repetition.
            t->i++;
            PD_TRY(insert(t, t->atom, "(?:" CALLOUT));
            PD_TRY(put_text(t, ")+"));
        } else if (t->i < t->n && t->p[t->i] == '?') {
            if (fixed) return reject(t, at, "{n}?");
            PD_TRY(put(t, t->p + t->i++, 1));
        }
    }
    t->has_atom = false;
    if (t->i < t->n && strchr("*+?{", t->p[t->i])) return reject(t, at, "a repeated repetition");
    return PDVM_OK;
}

/* One character, or an escape, or a class. */
static pdvm_status single(struct translator *t) {
    t->atom = t->out->n;
    t->atom_body = 0;
    t->has_atom = true;
    char c = t->p[t->i];
    if (c == '\\') return escape(t, false);
    if (c == '[') return bracket_class(t);
    if (c == '}' || c == ']') return reject(t, t->i, "a lone bracket");
    size_t len = 1;
    while (t->i + len < t->n && ((uint8_t)t->p[t->i + len] & 0xc0) == 0x80) len++;
    PD_TRY(put(t, t->p + t->i, len));
    t->i += len;
    return PDVM_OK;
}

pdvm_status tokenizer_pattern_translate(const char *where, const char *pattern, size_t len,
                                        struct tokenizer_buffer *out, pdvm_error *err) {
    struct translator t = {.where = where, .p = pattern, .n = len, .out = out, .err = err};
    if (len == 0) return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: the pattern is empty", where);
    while (t.i < t.n) {
        char c = t.p[t.i];
        if (c == '(') {
            PD_TRY(open_group(&t));
        } else if (c == ')') {
            PD_TRY(close_group(&t));
        } else if (c == '*' || c == '+' || c == '?' || c == '{') {
            PD_TRY(quantifier(&t));
        } else if (c == '|' || c == '^' || c == '$') {
            t.i++;
            t.has_atom = false;
            PD_TRY(put(&t, &c, 1));
        } else {
            PD_TRY(single(&t));
        }
    }
    if (t.depth > 0) return reject(&t, t.n, "a group without its end");
    return PDVM_OK;
}
