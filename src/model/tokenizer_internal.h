/**
 * Inside of the tokenizer. A text takes this way: added tokens are cut out (tokenizer_added.c),
 * what lies between is normalised (tokenizer_normal.c, tokenizer_unicode.c) and split into words
 * (tokenizer_split.c, tokenizer_regex.c), and each word is merged into pieces (tokenizer_bpe.c).
 * Back, tokenizer_decode.c joins what the pieces stand for. tokenizer_load.c and tokenizer_steps.c
 * read a tokenizer.json, tokenizer_sentencepiece.c a tokenizer.model.
 */
#ifndef PDVM_MODEL_TOKENIZER_INTERNAL_H
#define PDVM_MODEL_TOKENIZER_INTERNAL_H

#include "model/tokenizer.h"

#include <jansson.h>

/** Ids must be below this. */
#define TOKENIZER_MAX_ID (1u << 24)
/** Most steps that a text is split by. */
#define TOKENIZER_MAX_STEPS 16
/** Longest regular expression accepted, bytes. */
#define TOKENIZER_MAX_PATTERN 2048
/** Longest added token accepted, bytes: looking for them costs this much per character at worst. */
#define TOKENIZER_MAX_ADDED 1024
/** Longest string that a normaliser puts in, bytes: how much it may lengthen a text. */
#define TOKENIZER_MAX_CONTENT 256
/** Longest text that one call takes, bytes. */
#define TOKENIZER_MAX_TEXT ((size_t)1 << 30)
/** Where a hash table gives up: only contrived keys need that many probes. */
#define TOKENIZER_MAX_PROBES 2048

/** A growing buffer of bytes; data is freed with free(). */
struct tokenizer_buffer {
    char *data;
    size_t n;
    size_t capacity;
};

/** Appends bytes. */
pdvm_status tokenizer_buffer_add(struct tokenizer_buffer *b, const char *data, size_t len,
                                 pdvm_error *err);

/** How much of `s` a message should quote: at most 60 bytes, whole characters. */
int tokenizer_quote_len(const char *s, size_t len);

/* ---- characters: tokenizer_unicode.c --------------------------------------------------------- */

/** The character that stands for a byte in a byte-level vocabulary (Radford et al. 2019). */
uint32_t tokenizer_byte_char(uint8_t byte);

/** The byte that a character stands for, or -1. */
int tokenizer_char_byte(uint32_t c);

/** White_Space, the reference's \s. */
bool tokenizer_is_space(uint32_t c);

/** A word character, \w of Unicode's UTS 18: Alphabetic, marks, digits, connectors, joiners. */
bool tokenizer_is_word(uint32_t c);

/** General category N. */
bool tokenizer_is_numeric(uint32_t c);

/** The normalisation forms of Unicode Annex 15, as bits. */
enum tokenizer_form {
    TOKENIZER_NFD = 0,
    TOKENIZER_NFC = 1,  /**< bit: composed */
    TOKENIZER_NFKD = 2, /**< bit: compatibility characters replaced */
    TOKENIZER_NFKC = 3
};

/**
 * Replaces *out by a normalisation form of valid UTF-8 text. Linear in the length, also for long
 * runs of combining marks.
 */
pdvm_status tokenizer_form(const char *text, size_t len, enum tokenizer_form form,
                           struct tokenizer_buffer *out, pdvm_error *err);

/** Whether the text is in that form for sure without looking at it closely. */
bool tokenizer_is_form_quick(const char *text, size_t len, enum tokenizer_form form);

/* ---- regular expressions: tokenizer_regex.c -------------------------------------------------- */

/** A compiled expression. */
struct tokenizer_regex;

/**
 * Compiles a pattern in Oniguruma's syntax (what the reference uses), by translating it to PCRE2's
 * where they differ. PDVM_ERR_UNSUPPORTED names `path`, `field` and what cannot be translated.
 */
pdvm_status tokenizer_regex_compile(const char *path, const char *field, const char *pattern,
                                    size_t len, struct tokenizer_regex **out, pdvm_error *err);

/** Frees it. NULL is allowed. */
void tokenizer_regex_free(struct tokenizer_regex *r);

/** What one thread needs to run expressions, with its limits. */
struct tokenizer_matcher;

/** Makes one for a text of `len` bytes, whose processor time it limits. */
pdvm_status tokenizer_matcher_create(size_t len, struct tokenizer_matcher **out, pdvm_error *err);

/** Frees it. NULL is allowed. */
void tokenizer_matcher_free(struct tokenizer_matcher *m);

/**
 * Finds the first match in s[from..n). *found tells; *begin and *end are offsets in s.
 * PDVM_ERR_UNSUPPORTED, naming the file, if the expression takes too much time or memory.
 */
pdvm_status tokenizer_regex_find(const struct tokenizer_regex *r, struct tokenizer_matcher *m,
                                 const char *s, size_t n, size_t from, bool *found, size_t *begin,
                                 size_t *end, pdvm_error *err);

/* ---- normalising: tokenizer_normal.c --------------------------------------------------------- */

/** What one normaliser does. */
enum tokenizer_normal_kind {
    TOKENIZER_NORMAL_FORM,
    TOKENIZER_NORMAL_PREPEND, /**< puts `to` before a text that is not empty */
    TOKENIZER_NORMAL_REPLACE  /**< each `from`, or each match of the regex, by `to` */
};

/** One normaliser; each works on what the one before made. */
struct tokenizer_normal {
    enum tokenizer_normal_kind kind;
    enum tokenizer_form form;
    struct tokenizer_regex *regex; /**< owned; NULL: `from` */
    char *from, *to;               /**< owned */
    size_t from_len, to_len;
};

/**
 * Normalises valid UTF-8 text. *out is `s` itself if nothing changes, or lies in one of the work
 * buffers. PDVM_ERR_UNSUPPORTED if the text becomes absurdly long.
 */
pdvm_status tokenizer_normalise(const struct tokenizer *t, struct tokenizer_matcher *m,
                                const char *s, size_t n, struct tokenizer_buffer work[2],
                                const char **out, size_t *out_n, pdvm_error *err);

/* ---- splitting into words: tokenizer_split.c ------------------------------------------------- */

/** What becomes of the matches of a step. */
enum tokenizer_behavior {
    TOKENIZER_ISOLATED,
    TOKENIZER_REMOVED,
    TOKENIZER_MERGED_WITH_PREVIOUS,
    TOKENIZER_MERGED_WITH_NEXT,
    TOKENIZER_CONTIGUOUS
};

/** What a step looks for. */
enum tokenizer_step_kind {
    TOKENIZER_STEP_REGEX,
    TOKENIZER_STEP_STRING,
    TOKENIZER_STEP_DIGIT,    /**< one numeric character */
    TOKENIZER_STEP_SPACE,    /**< nothing: puts a space before a piece that has none there */
    TOKENIZER_STEP_METASPACE /**< nothing: `string` for spaces, and before a piece without it */
};

/** Which pieces a TOKENIZER_STEP_METASPACE puts its string before. */
enum tokenizer_prepend {
    TOKENIZER_PREPEND_NEVER,
    TOKENIZER_PREPEND_FIRST,
    TOKENIZER_PREPEND_ALWAYS
};

/** One step of splitting; each works on every piece that the one before made. */
struct tokenizer_step {
    enum tokenizer_step_kind kind;
    enum tokenizer_behavior behavior;
    enum tokenizer_prepend prepend;
    bool invert;                   /**< what is between the matches counts as the match */
    struct tokenizer_regex *regex; /**< owned */
    char *string;                  /**< owned */
    size_t string_len;
};

struct tokenizer_run;

/** Splits a normalised piece by all steps from number `step` on and encodes the words. */
pdvm_status tokenizer_split(struct tokenizer_run *run, int step, const char *s, size_t n);

/* ---- added tokens: tokenizer_added.c --------------------------------------------------------- */

/** A token that is cut out of the text before anything else sees it. */
struct tokenizer_added {
    const char *pattern; /**< in the tokenizer's text: its content, normalised if it asks so */
    uint32_t len;
    uint32_t id;
    uint32_t order; /**< of two with one pattern the lower wins */
    bool lstrip;
    bool rstrip;
    bool single_word;
    bool special;
};

/** Added tokens sorted by pattern, without duplicates. */
struct tokenizer_added_set {
    struct tokenizer_added *items;
    uint32_t n;
    uint32_t first[257]; /**< items of first byte b are [first[b], first[b + 1]) */
};

/** Sorts the items and fills `first`. */
void tokenizer_added_prepare(struct tokenizer_added_set *set);

/** Called for each part of a text: a token (id >= 0) or what lies between (id -1). */
typedef pdvm_status (*tokenizer_part_fn)(struct tokenizer_run *run, int64_t id, const char *s,
                                         size_t n);

/** Cuts the added tokens of a set out of the text. */
pdvm_status tokenizer_added_split(struct tokenizer_run *run, const struct tokenizer_added_set *set,
                                  const char *s, size_t n, tokenizer_part_fn fn);

/* ---- byte-pair merging: tokenizer_bpe.c ------------------------------------------------------ */

/** One merge: the pair of ids `key` (left in the high half) becomes `id`. */
struct tokenizer_merge {
    uint64_t key; /**< TOKENIZER_NO_PAIR: an empty slot */
    uint32_t rank;
    uint32_t id;
};

#define TOKENIZER_NO_PAIR UINT64_MAX

/** Hash table of merges, open addressing. */
struct tokenizer_merges {
    struct tokenizer_merge *slots;
    size_t mask; /**< slots - 1 */
};

/** Makes room for n merges. */
pdvm_status tokenizer_merges_init(struct tokenizer_merges *m, size_t n, pdvm_error *err);

/** Adds a merge, or replaces the pair's. PDVM_ERR_FORMAT if the keys are contrived. */
pdvm_status tokenizer_merges_add(struct tokenizer_merges *m, uint32_t left, uint32_t right,
                                 uint32_t rank, uint32_t id, pdvm_error *err);

/** Memory that words are merged in; reused from word to word. */
struct tokenizer_bpe {
    struct bpe_symbol *symbols;
    size_t symbols_capacity;
    uint64_t *heap;
    size_t heap_capacity;
    struct bpe_cached *cache; /**< NULL for short texts */
};

/** Prepares for a text of `len` bytes. */
pdvm_status tokenizer_bpe_init(struct tokenizer_bpe *b, size_t len, pdvm_error *err);

/** Frees what is inside. A zeroed one is allowed. */
void tokenizer_bpe_clear(struct tokenizer_bpe *b);

/**
 * Finds out whether no merge joins a "\u2581" to a character before it. Then a text that is one
 * long word can be cut at each "\u2581" behind another character without changing an id, and short
 * words are what the cache remembers: a merge across the cut would join a left piece that ends
 * with another character to a right one that starts with "\u2581", and what is merged on one side
 * of the cut does not depend on the other side. (Also no unknown characters must be fused across
 * or left out, and no word be taken whole: "\u2581" has to be a piece, there must be an unknown
 * token or all bytes, and ignore_merges false.)
 */
bool tokenizer_bpe_can_cut(const struct tokenizer *t);

/** Appends the ids of one word (n >= 1), which is cut further if the tokenizer can_cut. */
pdvm_status tokenizer_bpe_word(struct tokenizer_run *run, const char *word, size_t n);

/* ---- the tokenizer --------------------------------------------------------------------------- */

/** The character that stands for a space in SentencePiece-like vocabularies, U+2581. */
#define TOKENIZER_METASPACE "\xe2\x96\x81"

enum {
    TOKENIZER_VOCAB = 1, /**< may come out of merging, or be a character */
    TOKENIZER_ADDED = 2,
    TOKENIZER_SPECIAL = 4,
    TOKENIZER_BYTE = 8 /**< of a SentencePiece model: only for bytes of unknown characters */
};

/** One id. Offsets are into the tokenizer's text; no flags: no piece has this id. */
struct tokenizer_piece {
    uint32_t content; /**< as the file writes it */
    uint32_t content_len;
    uint32_t bytes; /**< what it stands for in a text */
    uint32_t bytes_len;
    uint32_t flags;
};

/** Hash table from strings to ids, open addressing. */
struct tokenizer_index {
    uint32_t *ids; /**< id + 1; 0: an empty slot */
    uint32_t *hashes;
    size_t mask;
};

/** List of ids that a post-processor adds. */
struct tokenizer_ids {
    int32_t *ids;
    size_t n;
    size_t capacity;
};

/** How pieces become text, unless byte-level. */
struct tokenizer_decoder {
    struct tokenizer_normal replace[TOKENIZER_MAX_STEPS]; /**< TOKENIZER_NORMAL_REPLACE, strings */
    int n_replace;
    bool byte_fallback; /**< <0xNN> is a byte */
    char strip[5];      /**< a character of which `n_strip` are left out where a text starts */
    uint32_t n_strip;
    char drop[5]; /**< a character that is left out of the first piece of a text; empty: none */
};

struct tokenizer {
    struct tokenizer_piece *pieces;
    uint32_t n_pieces;            /**< one more than the largest id */
    size_t n_vocab;               /**< pieces of the vocabulary */
    struct tokenizer_buffer text; /**< of all pieces; fixed once loaded */
    struct tokenizer_index by_content;
    struct tokenizer_index by_bytes; /**< vocabulary only; for ignore_merges */
    bool byte_level;                 /**< symbols are bytes; otherwise they are characters */
    int32_t byte_ids[256];  /**< id of the piece of one byte, or -1; else of the piece <0xNN> */
    int32_t ascii_ids[128]; /**< ids of characters, -1 if none; unused with byte_level */
    int32_t unk_id;         /**< for bytes or characters without a piece; -1: they are left out */
    bool unk_missing;       /**< the file names an unknown token that the vocabulary has not */
    bool fuse_unk;
    bool byte_fallback; /**< characters without a piece become bytes */
    bool ignore_merges; /**< a word that is a piece is not taken apart */
    bool can_cut;       /**< see tokenizer_bpe_can_cut */
    struct tokenizer_normal normals[TOKENIZER_MAX_STEPS];
    int n_normals;
    struct tokenizer_merges merges;
    struct tokenizer_added_set added[2]; /**< searched before and after normalising */
    bool raw_patterns;                   /**< those after normalising are looked for as written */
    char *added_text;                    /**< the normalised patterns */
    struct tokenizer_step steps[TOKENIZER_MAX_STEPS];
    int n_steps;
    struct tokenizer_decoder decoder;
    struct tokenizer_ids before; /**< what PDVM_TOKENIZE_ADD_SPECIAL adds */
    struct tokenizer_ids after;
};

/** One call of tokenizer_encode. */
struct tokenizer_run {
    const struct tokenizer *t;
    struct token_list *out;
    pdvm_error *err;
    bool parse_special;
    struct tokenizer_matcher *matcher;
    struct tokenizer_bpe bpe;
    const char *text;  /**< as the caller gave it */
    const char *start; /**< the normalised beginning of the text, or NULL if this is not it */
    struct tokenizer_buffer normalised[2];
    struct tokenizer_buffer prefixed;
};

/** Appends one id. */
pdvm_status tokenizer_emit(struct tokenizer_run *run, int32_t id);

/** Makes room for n strings. */
pdvm_status tokenizer_index_init(struct tokenizer_index *index, size_t n, pdvm_error *err);

/**
 * Finds the id of the string a + b among contents (or bytes, with `by_bytes`); -1 if none.
 */
int32_t tokenizer_index_find(const struct tokenizer *t, bool by_bytes, const char *a, size_t a_len,
                             const char *b, size_t b_len);

/** Adds piece `id`, whose string must not be there yet. PDVM_ERR_FORMAT for contrived keys. */
pdvm_status tokenizer_index_add(struct tokenizer *t, bool by_bytes, uint32_t id, pdvm_error *err);

/* ---- reading the file ------------------------------------------------------------------------ */

/** Reads vocabulary, added tokens, merges and the options of the model: tokenizer_load.c. */
pdvm_status tokenizer_load_model(struct tokenizer *t, const char *path, const json_t *root,
                                 pdvm_error *err);

/** Reads the normaliser, the pre-tokeniser, the post-processor and the decoder. */
pdvm_status tokenizer_load_steps(struct tokenizer *t, const char *path, const json_t *root,
                                 pdvm_error *err);

/**
 * Finds out what the pieces stand for, which takes the vocabulary and the steps, and what
 * encoding looks up: tokenizer_decode.c.
 */
pdvm_status tokenizer_load_bytes(struct tokenizer *t, const char *path, pdvm_error *err);

/**
 * Tells that an added token stands for what its normalised form decodes to, as in the reference:
 * where a normaliser puts a space before a text, one belongs to the token.
 */
pdvm_status tokenizer_set_normalised(struct tokenizer *t, uint32_t id, const char *normal, size_t n,
                                     pdvm_error *err);

/** Makes the sets of added tokens; after tokenizer_load_steps, as it needs the normalisers. */
pdvm_status tokenizer_load_added(struct tokenizer *t, const char *path, const json_t *root,
                                 pdvm_error *err);

/** Fills piece `id`, which stands for its content until tokenizer_load_bytes. */
pdvm_status tokenizer_set_piece(struct tokenizer *t, uint32_t id, const char *s, size_t len,
                                pdvm_error *err);

/** The id of a piece of the vocabulary by its content a + b, or -1. */
int32_t tokenizer_find_vocab(const struct tokenizer *t, const char *a, size_t a_len, const char *b,
                             size_t b_len);

/**
 * Gives the added tokens of a list their pieces; t->pieces has room for their ids (checked whole
 * numbers), and contents are strings.
 */
pdvm_status tokenizer_load_added_pieces(struct tokenizer *t, const char *path, const json_t *added,
                                        pdvm_error *err);

#endif
