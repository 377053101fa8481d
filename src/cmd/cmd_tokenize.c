/* pdvm tokenize: the tokens of a text, or the text of tokens. */
#include "base/alloc.h"
#include "base/utf8.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/shared_options.h"
#include "cmd/terminal.h"
#include "model/source.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char description[] =
    "Shows how a model's tokenizer cuts a text into tokens: one line a token, its number and its "
    "piece of the text, with control characters and halves of UTF-8 characters as \\n, \\t and "
    "\\xNN. Only the tokenizer is read, so this is quick for large models too.\n"
    "The text is tokenised as 'pdvm run' does it with a prompt: with the token that begins a text, "
    "if the model has one, and with names of special tokens such as <|endoftext|> taken for the "
    "tokens. Without -p and -f the text is read from standard input.\n"
    "--decode goes the other way.";

static const char examples[] =
    "pdvm tokenize models/tales -p \"Once upon a time\"\n"
    "pdvm tokenize models/tales -f story.txt --count\n"
    "pdvm tokenize models/tales -p \"Hello\" --ids | pdvm tokenize models/tales --decode -\n";

struct settings {
    const char *model, *prompt, *file, *decode;
    bool ids, pieces, count, json, no_bos, no_special, show_special;
    int format;
};

/* The tokenizer of a model, without its weights. */
struct vocabulary {
    struct model_source *source;
    struct tokenizer *tokenizer;
};

static void close_vocabulary(struct vocabulary *v) {
    tokenizer_free(v->tokenizer);
    source_close(v->source);
}

static pdvm_status open_vocabulary(const char *path, struct vocabulary *v, pdvm_error *err) {
    *v = (struct vocabulary){0};
    PD_TRY(source_open(path, &v->source, err));
    PD_TRY(source_open_tokenizer(v->source, &v->tokenizer, err));
    if (!v->tokenizer)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: the model has no %s or %s", path,
                       SOURCE_TOKENIZER, SOURCE_TOKENIZER_MODEL);
    return PDVM_OK;
}

/* ---- text to tokens -------------------------------------------------------------------- */

/* One token in JSON: its text, or its bytes if those are no whole characters. */
static json_t *token_to_json(const struct tokenizer *t, int32_t id) {
    size_t size = 0;
    const char *bytes = tokenizer_bytes(t, id, true, &size);
    json_t *token = json_pack("{s:i}", "id", (int)id);
    if (!token || !bytes) return token;
    if (pd_utf8_check(bytes, size) == size) {
        json_object_set_new(token, "text", json_stringn(bytes, size));
        return token;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < size; i++)
        json_array_append_new(list, json_integer((unsigned char)bytes[i]));
    json_object_set_new(token, "bytes", list);
    return token;
}

static int print_tokens_json(const struct tokenizer *t, const struct token_list *tokens) {
    json_t *list = json_array();
    for (size_t i = 0; i < tokens->n; i++)
        if (json_array_append_new(list, token_to_json(t, tokens->ids[i])) != 0) {
            json_decref(list);
            list = NULL;
            break;
        }
    json_t *value =
        list ? json_pack("{s:I, s:o}", "n_tokens", (json_int_t)tokens->n, "tokens", list) : NULL;
    return print_json("tokenize", value);
}

static int print_tokens(const struct settings *o, const struct tokenizer *t,
                        const struct token_list *tokens) {
    if (o->count && o->format == OUTPUT_TEXT) {
        printf("%zu\n", tokens->n);
        return CMD_OK;
    }
    if (o->format == OUTPUT_JSON) return print_tokens_json(t, tokens);
    for (size_t i = 0; i < tokens->n; i++) {
        size_t size = 0;
        const char *bytes = tokenizer_bytes(t, tokens->ids[i], true, &size);
        if (o->ids) {
            printf("%s%d", i ? " " : "", (int)tokens->ids[i]);
            continue;
        }
        if (!o->pieces) printf("%7d  ", (int)tokens->ids[i]);
        if (bytes) print_escaped(bytes, size);
        putchar('\n');
    }
    if (o->ids) putchar('\n');
    return CMD_OK;
}

static pdvm_status read_input(const struct settings *o, char **text, size_t *size,
                              pdvm_error *err) {
    if (!o->prompt) return read_text(o->file ? o->file : "-", text, size, err);
    *size = strlen(o->prompt);
    PD_TRY(pd_calloc(text, *size + 1, 1, "the text", err));
    memcpy(*text, o->prompt, *size);
    return PDVM_OK;
}

static int encode(const struct settings *o, const struct tokenizer *t) {
    struct token_list tokens = {0};
    pdvm_error err;
    char *text = NULL;
    size_t size;
    unsigned flags = (o->no_bos ? 0u : PDVM_TOKENIZE_ADD_SPECIAL) |
                     (o->no_special ? 0u : PDVM_TOKENIZE_PARSE_SPECIAL);
    pdvm_status status = read_input(o, &text, &size, &err);
    if (status == PDVM_OK) status = check_utf8("the text", text, size, &err);
    if (status == PDVM_OK) status = tokenizer_encode(t, text, size, flags, &tokens, &err);
    int code = status == PDVM_OK ? print_tokens(o, t, &tokens) : terminal_fail("tokenize", &err);
    free(tokens.ids);
    free(text);
    return code;
}

/* ---- tokens to text -------------------------------------------------------------------- */

/* Reads numbers parted by spaces, commas or brackets. */
static pdvm_status parse_ids(const char *text, struct token_list *out, pdvm_error *err) {
    static const char separators[] = " ,\t\r\n[]";
    for (text += strspn(text, separators); *text; text += strspn(text, separators)) {
        size_t length = strcspn(text, separators);
        char number[24];
        int64_t id = -1;
        if (length < sizeof number) {
            memcpy(number, text, length);
            number[length] = '\0';
        }
        if (length >= sizeof number || !options_int(number, &id) || id < 0 || id > INT32_MAX)
            return pd_fail(err, PDVM_ERR_ARGUMENT, "--decode: '%.*s' is not a token number",
                           length < 40 ? (int)length : 40, text);
        PD_TRY(
            pd_grow(&out->ids, &out->capacity, out->n + 1, sizeof *out->ids, "token numbers", err));
        out->ids[out->n++] = (int32_t)id;
        text += length;
    }
    return PDVM_OK;
}

/* The text of all tokens, which are taken for a whole text. */
static pdvm_status decode_ids(const struct settings *o, const struct vocabulary *v,
                              const struct token_list *ids, char **text, size_t *size,
                              pdvm_error *err) {
    uint32_t n_vocab = v->source->config.n_vocab;
    for (size_t i = 0; i < ids->n; i++) {
        if ((uint32_t)ids->ids[i] >= n_vocab)
            return pd_fail(err, PDVM_ERR_RANGE, "token %d is outside the vocabulary of %u",
                           ids->ids[i], n_vocab);
    }
    unsigned flags = TOKENIZER_DECODE_START | (o->show_special ? TOKENIZER_DECODE_SPECIAL : 0u);
    return tokenizer_decode(v->tokenizer, ids->ids, ids->n, flags, text, size, err);
}

static int decode(const struct settings *o, const struct vocabulary *v) {
    struct token_list ids = {0};
    pdvm_error err;
    char *numbers = NULL, *text = NULL;
    size_t size = 0;
    pdvm_status status = PDVM_OK;
    if (strcmp(o->decode, "-") == 0) status = read_text("-", &numbers, &size, &err);
    if (status == PDVM_OK) status = parse_ids(numbers ? numbers : o->decode, &ids, &err);
    size = 0;
    if (status == PDVM_OK) status = decode_ids(o, v, &ids, &text, &size, &err);
    int code = CMD_OK;
    if (status != PDVM_OK)
        code = terminal_fail("tokenize", &err);
    else if (o->format == OUTPUT_JSON)
        code = print_json("tokenize", json_pack("{s:I, s:o}", "n_tokens", (json_int_t)ids.n, "text",
                                                json_text(text, size)));
    else if (fwrite(text, 1, size, stdout) == size && isatty(STDOUT_FILENO))
        putchar('\n');
    free(ids.ids);
    free(numbers);
    free(text);
    return code;
}

/* ---------------------------------------------------------------------------------------- */

static int check_settings(const struct settings *o, const struct options_page *page) {
    if (o->prompt && o->file)
        return options_error(page, "-p and -f both give a text: leave one out");
    if (o->decode && (o->prompt || o->file))
        return options_error(page, "--decode takes token numbers: leave out -p and -f");
    if (o->decode && (o->ids || o->pieces || o->count))
        return options_error(page, "--decode prints the text: leave out --ids, --pieces, --count");
    if (o->ids + o->pieces + o->count > 1)
        return options_error(page, "--ids, --pieces and --count: choose one");
    if (o->show_special && !o->decode) return options_error(page, "--special belongs to --decode");
    return OPTIONS_GO_ON;
}

int cmd_tokenize(int argc, char **argv) {
    struct settings o = {0};
    const struct operand operands[] = {
        {"MODEL", "A .pdvm file, a GGUF file or a Hugging Face directory.", &o.model, false},
        OPERAND_END};
    const struct option_spec options[] = {
        OPTION_STRING("-m, --model", "MODEL", "The model, if it is not the first argument.",
                      &o.model),
        OPTION_STRING("-p, --prompt", "TEXT", "The text.", &o.prompt),
        OPTION_STRING("-f, --file", "FILE", "Read the text from a file; - is standard input.",
                      &o.file),
        OPTION_FLAG("--ids", "Print only the numbers, on one line.", &o.ids),
        OPTION_FLAG("--pieces", "Print only the pieces, one a line.", &o.pieces),
        OPTION_FLAG("--count, --show-count", "Print only how many tokens there are.", &o.count),
        OPTION_CHOICE("-o, --output", "text|json", "How to print. [text]", &o.format,
                      output_formats),
        SHARED_OPTION_JSON(&o.json),
        OPTION_FLAG("--no-bos", "Leave out what the model adds around a text.", &o.no_bos),
        OPTION_FLAG("--no-parse-special", "Take names of special tokens for ordinary text.",
                    &o.no_special),
        OPTION_STRING("--decode", "IDS",
                      "Print the text of these tokens, numbers parted by spaces or commas; - reads "
                      "them from standard input.",
                      &o.decode),
        OPTION_FLAG("--special", "With --decode: print the names of special tokens too.",
                    &o.show_special),
        OPTION_END,
    };
    const struct options_page page = {.command = "tokenize",
                                      .usage = "MODEL [-p TEXT | -f FILE] [OPTIONS]\n"
                                               "MODEL --decode IDS [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = options,
                                      .examples = examples,
                                      .operand_hint = "a text is given with -p, in quotes"};
    int code = options_parse(&page, argc, argv);
    if (code != OPTIONS_GO_ON) return code;
    if (!o.model) return options_error(&page, "no model: pdvm tokenize MODEL -p TEXT");
    if ((code = check_settings(&o, &page)) != OPTIONS_GO_ON) return code;
    if (o.json) o.format = OUTPUT_JSON;

    struct vocabulary v;
    pdvm_error err;
    if (open_vocabulary(o.model, &v, &err) != PDVM_OK)
        code = terminal_fail("tokenize", &err);
    else
        code = o.decode ? decode(&o, &v) : encode(&o, v.tokenizer);
    close_vocabulary(&v);
    return code;
}
