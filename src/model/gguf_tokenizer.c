/*
 * tokenizer.json from GGUF's tokenizer keys. Where the ids of llama.cpp and of the Hugging Face
 * tokenizer that the keys were made from would differ, it is the latter that is made again.
 */
#include "base/alloc.h"
#include "base/utf8.h"
#include "model/gguf_metadata.h"
#include "model/tokenizer_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_MODEL "tokenizer.ggml.model"
#define KEY_PRE "tokenizer.ggml.pre"
#define KEY_TOKENS "tokenizer.ggml.tokens"
#define KEY_TYPES "tokenizer.ggml.token_type"
#define KEY_SCORES "tokenizer.ggml.scores"
#define KEY_MERGES "tokenizer.ggml.merges"
#define KEY_BOS "tokenizer.ggml.bos_token_id"
#define KEY_EOS "tokenizer.ggml.eos_token_id"
#define KEY_UNK "tokenizer.ggml.unknown_token_id"

/* Pieces longer than this are only found whole, not merged from others. */
#define MAX_MERGED_PIECE 512

enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
};

struct token {
    const char *text;
    size_t len;
    int32_t type;
    float score;
};

/* A text in the making; the first failure stays in `status`. */
struct writer {
    const struct gguf *g;
    struct tokenizer_buffer out;
    pdvm_status status;
    pdvm_error *err;
    struct token *tokens;
    size_t n_tokens;
    const char *separator; /* before the next element of the list being written */
};

/* ---- JSON ------------------------------------------------------------------------------ */

static void raw(struct writer *w, const char *text) {
    if (w->status == PDVM_OK) w->status = tokenizer_buffer_add(&w->out, text, strlen(text), w->err);
}

static void quoted(struct writer *w, const char *s, size_t len) {
    raw(w, "\"");
    size_t begin = 0;
    for (size_t i = 0; i <= len && w->status == PDVM_OK; i++) {
        uint8_t c = i < len ? (uint8_t)s[i] : '"';
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        w->status = tokenizer_buffer_add(&w->out, s + begin, i - begin, w->err);
        begin = i + 1;
        if (i == len) break;
        char escape[8];
        snprintf(escape, sizeof escape, "\\u%04x", c);
        raw(w, escape);
    }
    raw(w, "\"");
}

static void string(struct writer *w, const char *s) {
    quoted(w, s, strlen(s));
}

static void number(struct writer *w, size_t n) {
    char text[24];
    snprintf(text, sizeof text, "%zu", n);
    raw(w, text);
}

static void begin_list(struct writer *w, const char *text) {
    raw(w, text);
    w->separator = "";
}

static void next(struct writer *w) {
    raw(w, w->separator);
    w->separator = ",\n";
}

/* ---- ways of splitting ------------------------------------------------------------------- */

/* Contractions, as in the patterns of GPT-2 and its successors. */
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define WORDS_AND(digits)                                                                          \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                           \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(contractions, digits)                                                                \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" contractions "|[^\\r\\n\\p{L}\\p{N}]?" UPPER      \
    "+" LOWER "*" contractions "|" digits                                                          \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct splitting {
    const char *names;      /* values of tokenizer.ggml.pre, each between spaces */
    const char *regexes[4]; /* one after the other */
    bool ignore_merges;
    bool nfc;
    bool add_bos; /* where tokenizer.ggml.add_bos_token is absent */
} splittings[] = {
    {.names = " gpt-2 phi-2 mpt olmo jais trillion ", .regexes = {GPT2}},
    {.names = " llama-bpe llama3 llama-v3 falcon3 pixtral lfm2 ",
     .regexes = {WORDS_AND("\\p{N}{1,3}")},
     .ignore_merges = true,
     .add_bos = true},
    {.names = " dbrx smaug-bpe ", .regexes = {WORDS_AND("\\p{N}{1,3}")}},
    {.names = " qwen2 deepseek-r1-qwen stablelm2 megrez ",
     .regexes = {WORDS_AND("\\p{N}")},
     .nfc = true},
    {.names = " smollm starcoder refact command-r codeshell ", .regexes = {"\\p{N}", GPT2}},
    {.names = " tekken ", .regexes = {CASED("", "\\p{N}")}, .ignore_merges = true, .add_bos = true},
    {.names = " gpt-4o llama4 ",
     .regexes = {CASED("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "\\p{N}{1,3}")}},
    {.names = " falcon ", .regexes = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {.names = " default ",
     .regexes = {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};
#define N_SPLITTINGS (sizeof splittings / sizeof *splittings)

static pdvm_status find_splitting(const struct gguf *g, const struct splitting **out,
                                  pdvm_error *err) {
    const char *pre = "default";
    size_t len = strlen(pre);
    char wanted[64], known[512] = "";
    PD_TRY(gguf_get_string(g, KEY_PRE, false, &pre, &len, err));
    int n = snprintf(wanted, sizeof wanted, " %.*s ", (int)(len < 60 ? len : 60), pre);
    bool plain = len < 60 && !memchr(pre, ' ', len) && n > 2;
    for (size_t i = 0; i < N_SPLITTINGS; i++) {
        *out = &splittings[i];
        if (plain && strstr(splittings[i].names, wanted)) return PDVM_OK;
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s", splittings[i].names + (used > 0 ? 1 : 0));
    }
    return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: key \"" KEY_PRE "\" is \"%.*s\"; known are:%s",
                   gguf_path(g), (int)(len < 60 ? len : 60), pre, known);
}

/* ---- tokens ------------------------------------------------------------------------------ */

static pdvm_status read_tokens(struct writer *w, bool need_scores, pdvm_error *err) {
    const struct gguf *g = w->g;
    const struct gguf_value *tokens, *types, *scores;
    PD_TRY(gguf_get_array(g, KEY_TOKENS, true, GGUF_VALUE_STRING, &tokens, err));
    PD_TRY(gguf_get_array(g, KEY_TYPES, need_scores, GGUF_VALUE_I32, &types, err));
    PD_TRY(gguf_get_array(g, KEY_SCORES, need_scores, GGUF_VALUE_F32, &scores, err));
    if (tokens->n == 0 || tokens->n >= TOKENIZER_MAX_ID)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: key \"" KEY_TOKENS "\" has %" PRIu64 " elements",
                       gguf_path(g), tokens->n);
    if (types && types->n != tokens->n)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: key \"" KEY_TYPES "\" has %" PRIu64 " elements, but \"" KEY_TOKENS
                       "\" %" PRIu64,
                       gguf_path(g), types->n, tokens->n);
    if (scores && scores->n != tokens->n)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: key \"" KEY_SCORES "\" has %" PRIu64 " elements, but \"" KEY_TOKENS
                       "\" %" PRIu64,
                       gguf_path(g), scores->n, tokens->n);
    PD_TRY(pd_calloc(&w->tokens, (size_t)tokens->n, sizeof *w->tokens, "the vocabulary", err));
    w->n_tokens = (size_t)tokens->n;
    size_t at = 0;
    for (size_t i = 0; i < w->n_tokens; i++) {
        struct token *t = &w->tokens[i];
        t->text = gguf_next_string(tokens, &at, &t->len);
        t->type = types ? gguf_i32_at(types, i) : TOKEN_NORMAL;
        t->score = scores ? gguf_f32_at(scores, i) : 0;
        if (memchr(t->text, 0, t->len) || pd_utf8_check(t->text, t->len) != t->len)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: key \"" KEY_TOKENS "\": element %zu is not "
                           "UTF-8 text",
                           gguf_path(g), i);
        if (t->score != t->score)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: key \"" KEY_SCORES "\": element %zu is not "
                           "a number",
                           gguf_path(g), i);
    }
    return PDVM_OK;
}

/* Tokens that are cut out of a text as they are, and so need no place in the vocabulary. */
static bool is_added(const struct token *t) {
    return t->len > 0 &&
           (t->type == TOKEN_UNKNOWN || t->type == TOKEN_CONTROL || t->type == TOKEN_USER_DEFINED);
}

static bool is_piece(const struct token *t) {
    return t->len > 0 && (t->type == TOKEN_NORMAL || t->type == TOKEN_BYTE);
}

static bool is_text(const struct token *t, const char *text) {
    return t->len == strlen(text) && memcmp(t->text, text, t->len) == 0;
}

/* Special tokens of Phi-3 take the white space behind them; GGUF has no key for that. */
static bool strips_right(const struct writer *w, const struct token *t) {
    const char *arch = "";
    size_t len = 0;
    if (t->type != TOKEN_CONTROL ||
        gguf_get_string(w->g, "general.architecture", false, &arch, &len, NULL) != PDVM_OK)
        return false;
    return len == 4 && memcmp(arch, "phi3", 4) == 0 && !is_text(t, "<s>") &&
           !is_text(t, "<|endoftext|>");
}

static void write_added(struct writer *w, bool sentencepiece) {
    begin_list(w, "\"added_tokens\": [");
    for (size_t i = 0; i < w->n_tokens && w->status == PDVM_OK; i++) {
        const struct token *t = &w->tokens[i];
        if (!is_added(t)) continue;
        next(w);
        raw(w, "{\"id\": ");
        number(w, i);
        raw(w, ", \"content\": ");
        quoted(w, t->text, t->len);
        raw(w, ", \"single_word\": false, \"lstrip\": false, \"rstrip\": ");
        raw(w, sentencepiece && strips_right(w, t) ? "true" : "false");
        raw(w, ", \"normalized\": false, \"special\": ");
        raw(w, t->type == TOKEN_USER_DEFINED ? "false}" : "true}");
    }
    raw(w, "],\n");
}

/* In SentencePiece models added tokens are pieces too; in the others they are not. */
static void write_vocab(struct writer *w, bool with_added) {
    begin_list(w, "\"vocab\": {");
    for (size_t i = 0; i < w->n_tokens && w->status == PDVM_OK; i++) {
        const struct token *t = &w->tokens[i];
        if (!is_piece(t) && !(with_added && is_added(t))) continue;
        next(w);
        quoted(w, t->text, t->len);
        raw(w, ": ");
        number(w, i);
    }
    raw(w, "},\n");
}

/* ---- tokens before and after the text ------------------------------------------------------ */

static pdvm_status read_special(const struct writer *w, const char *flag, const char *key, bool add,
                                int64_t *id, pdvm_error *err) {
    *id = -1;
    PD_TRY(gguf_get_bool(w->g, flag, false, &add, err));
    if (!add) return PDVM_OK;
    return gguf_get_int(w->g, key, false, 0, (int64_t)w->n_tokens - 1, id, err);
}

static void write_special(struct writer *w, const char *name, bool first) {
    if (!first) raw(w, ", ");
    raw(w, "{\"SpecialToken\": {\"id\": ");
    string(w, name);
    raw(w, ", \"type_id\": 0}}");
}

static void write_special_id(struct writer *w, const char *name, int64_t id, bool first) {
    if (!first) raw(w, ", ");
    string(w, name);
    raw(w, ": {\"id\": ");
    string(w, name);
    raw(w, ", \"ids\": [");
    number(w, (size_t)id);
    raw(w, "], \"tokens\": [");
    quoted(w, w->tokens[id].text, w->tokens[id].len);
    raw(w, "]}");
}

static pdvm_status write_template(struct writer *w, bool add_bos, pdvm_error *err) {
    int64_t bos, eos;
    PD_TRY(read_special(w, "tokenizer.ggml.add_bos_token", KEY_BOS, add_bos, &bos, err));
    PD_TRY(read_special(w, "tokenizer.ggml.add_eos_token", KEY_EOS, false, &eos, err));
    raw(w, "\"post_processor\": ");
    if (bos < 0 && eos < 0) {
        raw(w, "null,\n");
        return PDVM_OK;
    }
    raw(w, "{\"type\": \"TemplateProcessing\", \"single\": [");
    if (bos >= 0) write_special(w, "bos", true);
    raw(w, bos >= 0 ? ", " : "");
    raw(w, "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}");
    if (eos >= 0) write_special(w, "eos", false);
    raw(w, "], \"pair\": [], \"special_tokens\": {");
    if (bos >= 0) write_special_id(w, "bos", bos, true);
    if (eos >= 0) write_special_id(w, "eos", eos, bos < 0);
    raw(w, "}},\n");
    return PDVM_OK;
}

/* ---- byte-level BPE -------------------------------------------------------------------------- */

static pdvm_status write_merges(struct writer *w, pdvm_error *err) {
    const struct gguf_value *merges;
    size_t at = 0, len;
    PD_TRY(gguf_get_array(w->g, KEY_MERGES, true, GGUF_VALUE_STRING, &merges, err));
    begin_list(w, "\"merges\": [");
    for (uint64_t i = 0; i < merges->n && w->status == PDVM_OK; i++) {
        const char *s = gguf_next_string(merges, &at, &len);
        if (memchr(s, 0, len) || pd_utf8_check(s, len) != len)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: key \"" KEY_MERGES "\": element %" PRIu64 " is not UTF-8 text",
                           gguf_path(w->g), i);
        next(w);
        quoted(w, s, len);
    }
    raw(w, "]\n");
    return PDVM_OK;
}

static pdvm_status write_bpe(struct writer *w, pdvm_error *err) {
    const struct splitting *splitting = NULL;
    bool prefix = false;
    PD_TRY(find_splitting(w->g, &splitting, err));
    PD_TRY(gguf_get_bool(w->g, "tokenizer.ggml.add_space_prefix", false, &prefix, err));
    PD_TRY(read_tokens(w, false, err));
    raw(w, "{\"version\": \"1.0\",\n");
    write_added(w, false);
    raw(w, splitting->nfc ? "\"normalizer\": {\"type\": \"NFC\"},\n" : "\"normalizer\": null,\n");
    raw(w, "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n");
    for (size_t i = 0; i < 4 && splitting->regexes[i]; i++) {
        raw(w, "{\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        string(w, splitting->regexes[i]);
        raw(w, "}, \"behavior\": \"Isolated\", \"invert\": false},\n");
    }
    raw(w, "{\"type\": \"ByteLevel\", \"add_prefix_space\": ");
    raw(w, prefix ? "true" : "false");
    raw(w, ", \"trim_offsets\": true, \"use_regex\": false}]},\n");
    PD_TRY(write_template(w, splitting->add_bos, err));
    raw(w, "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": "
           "true, \"use_regex\": true},\n\"model\": {\"type\": \"BPE\", \"dropout\": null, "
           "\"unk_token\": null, \"fuse_unk\": false, \"byte_fallback\": false, "
           "\"ignore_merges\": ");
    raw(w, splitting->ignore_merges ? "true,\n" : "false,\n");
    write_vocab(w, false);
    PD_TRY(write_merges(w, err));
    raw(w, "}}\n");
    return w->status;
}

/* ---- SentencePiece BPE ----------------------------------------------------------------------- */

/* A way to put a piece together. */
struct merge {
    float score;          /* of the piece */
    uint32_t left, right; /* ids of the halves */
};

struct merge_list {
    struct merge *items;
    size_t n;
    size_t capacity;
};

/* By their texts. */
static int compare_pieces(const void *a, const void *b) {
    const struct token *x = *(const struct token *const *)a, *y = *(const struct token *const *)b;
    int order = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    if (order != 0) return order;
    return x->len < y->len ? -1 : x->len > y->len;
}

static const struct token *find_piece(const struct token **sorted, size_t n, const char *s,
                                      size_t len) {
    const struct token wanted = {.text = s, .len = len}, *p = &wanted;
    const struct token *const *found =
        bsearch(&p, sorted, n, sizeof(struct token *), compare_pieces);
    return found ? *found : NULL;
}

static pdvm_status add_merges(const struct writer *w, const struct token **sorted, size_t n,
                              size_t id, struct merge_list *list, pdvm_error *err) {
    const struct token *t = &w->tokens[id];
    for (size_t i = 1; i < t->len; i++) {
        if ((t->text[i] & 0xc0) == 0x80) continue;
        const struct token *left = find_piece(sorted, n, t->text, i);
        const struct token *right = left ? find_piece(sorted, n, t->text + i, t->len - i) : NULL;
        if (!right) continue;
        PD_TRY(pd_grow(&list->items, &list->capacity, list->n + 1, sizeof *list->items,
                       "the merges", err));
        list->items[list->n++] =
            (struct merge){t->score, (uint32_t)(left - w->tokens), (uint32_t)(right - w->tokens)};
    }
    return PDVM_OK;
}

/* The best first, then in the order of the halves' ids, as tokenizer.json files have them. */
static int compare_merges(const void *a, const void *b) {
    const struct merge *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return x->right < y->right ? -1 : x->right > y->right;
}

static void write_sorted_merges(struct writer *w, const struct merge_list *list) {
    if (list->n > 0) qsort(list->items, list->n, sizeof *list->items, compare_merges);
    begin_list(w, "\"merges\": [");
    for (size_t i = 0; i < list->n && w->status == PDVM_OK; i++) {
        const struct token *left = &w->tokens[list->items[i].left];
        const struct token *right = &w->tokens[list->items[i].right];
        next(w);
        raw(w, "[");
        quoted(w, left->text, left->len);
        raw(w, ", ");
        quoted(w, right->text, right->len);
        raw(w, "]");
    }
    raw(w, "]\n");
}

static pdvm_status write_scored_merges(struct writer *w, pdvm_error *err) {
    const struct token **sorted;
    struct merge_list list = {0};
    size_t n = 0;
    PD_TRY(pd_calloc(&sorted, w->n_tokens, sizeof(struct token *), "the vocabulary", err));
    for (size_t i = 0; i < w->n_tokens; i++)
        if (is_piece(&w->tokens[i]) || is_added(&w->tokens[i])) sorted[n++] = &w->tokens[i];
    if (n > 0) qsort(sorted, n, sizeof(struct token *), compare_pieces);
    pdvm_status status = PDVM_OK;
    for (size_t i = 0; i < w->n_tokens && status == PDVM_OK; i++) {
        const struct token *t = &w->tokens[i];
        bool merged = t->type == TOKEN_NORMAL || t->type == TOKEN_USER_DEFINED;
        if (merged && t->len <= MAX_MERGED_PIECE) status = add_merges(w, sorted, n, i, &list, err);
    }
    if (status == PDVM_OK) write_sorted_merges(w, &list);
    free(list.items);
    free(sorted);
    return status;
}

static pdvm_status write_sentencepiece(struct writer *w, pdvm_error *err) {
    int64_t unk = 0;
    bool prefix = true;
    PD_TRY(gguf_get_bool(w->g, "tokenizer.ggml.add_space_prefix", false, &prefix, err));
    PD_TRY(read_tokens(w, true, err));
    PD_TRY(gguf_get_int(w->g, KEY_UNK, false, 0, (int64_t)w->n_tokens - 1, &unk, err));
    raw(w, "{\"version\": \"1.0\",\n");
    write_added(w, true);
    raw(w, "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [");
    if (prefix) raw(w, "{\"type\": \"Prepend\", \"prepend\": \"\xe2\x96\x81\"}, ");
    raw(w, "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": "
           "\"\xe2\x96\x81\"}]},\n\"pre_tokenizer\": null,\n");
    PD_TRY(write_template(w, true, err));
    raw(w, "\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", "
           "\"pattern\": {\"String\": \"\xe2\x96\x81\"}, \"content\": \" \"}, {\"type\": "
           "\"ByteFallback\"}, {\"type\": \"Fuse\"}");
    if (prefix) raw(w, ", {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}");
    raw(w, "]},\n\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": ");
    quoted(w, w->tokens[unk].text, w->tokens[unk].len);
    raw(w, ", \"fuse_unk\": true, \"byte_fallback\": true, \"ignore_merges\": false,\n");
    write_vocab(w, true);
    PD_TRY(write_scored_merges(w, err));
    raw(w, "}}\n");
    return w->status;
}

/* ---- all kinds --------------------------------------------------------------------------------- */

static bool is(const char *s, size_t len, const char *name) {
    return len == strlen(name) && memcmp(s, name, len) == 0;
}

pdvm_status gguf_make_tokenizer(const struct gguf_set *set, char **out, pdvm_error *err) {
    struct writer w = {.g = set->files[0], .err = err, .status = PDVM_OK, .separator = ""};
    const char *model = NULL;
    size_t len = 0;
    *out = NULL;
    PD_TRY(gguf_get_string(w.g, KEY_MODEL, false, &model, &len, err));
    if (!model || is(model, len, "none") || is(model, len, "no_vocab")) return PDVM_OK;
    pdvm_status status;
    if (is(model, len, "gpt2"))
        status = write_bpe(&w, err);
    else if (is(model, len, "llama"))
        status = write_sentencepiece(&w, err);
    else
        status = pd_fail(err, PDVM_ERR_UNSUPPORTED,
                         "%s: key \"" KEY_MODEL "\" is \"%.*s\"; known are gpt2 and llama",
                         gguf_path(w.g), (int)(len < 60 ? len : 60), model);
    if (status == PDVM_OK) status = tokenizer_buffer_add(&w.out, "", 1, err);
    free(w.tokens);
    if (status == PDVM_OK)
        *out = w.out.data;
    else
        free(w.out.data);
    return status;
}
