/* pdvm inspect: what is in a model. */
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/options.h"
#include "cmd/report_table.h"
#include "cmd/terminal.h"
#include "compress/scan.h"
#include "io/safetensors.h"

#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char description[] =
    "Shows what a model consists of: its architecture, how it was made, for each kind of layer the "
    "weights, zeros, bits and errors as convert prints them, and a picture of where the zeros are. "
    "Errors are relative to what the file was converted from.\n"
    "Of a .pdvm file only the header is read; --check reads and checks all of it. Of a Hugging "
    "Face directory or a GGUF file all weights are read, to count the zeros.";

static const char examples[] = "pdvm inspect tales.pdvm\n"
                               "pdvm inspect tales.pdvm --check\n"
                               "pdvm inspect tales.pdvm --json | jq .total";

struct inspection {
    const char *path;
    bool check, json, ascii, quiet;
    int n_threads;
    struct terminal_progress bar;
    struct model_source *source;
    struct container *container; /* NULL for a directory */
    json_t *made;                /* what convert left in the file; NULL: nothing */
    struct report report;
    struct report converted; /* of a source that is no .pdvm file: by convert's defaults */
    uint64_t file_bytes;     /* 0 for a directory */
};

/* ---- reading --------------------------------------------------------------------------- */

static pdvm_status read_container(struct inspection *in, const struct pd_notify *notify,
                                  pdvm_error *err) {
    struct stat st;
    PD_TRY(container_open(in->path, &in->container, err));
    if (stat(in->path, &st) == 0) in->file_bytes = (uint64_t)st.st_size;
    const struct safetensors *file = container_safetensors(in->container);
    const char *text = safetensors_metadata(file, REPORT_METADATA);
    char where[512];
    snprintf(where, sizeof where, "%.400s: metadata %s", in->path, REPORT_METADATA);
    if (text) PD_TRY(pd_json_parse_object(where, text, strlen(text), &in->made, err));
    PD_TRY(report_from_container(in->container, &in->source->config, where, in->made, &in->report,
                                 err));
    return in->check ? scan_check(in->container, notify, err) : PDVM_OK;
}

static pdvm_status read_directory(struct inspection *in, const struct pd_notify *notify,
                                  pdvm_error *err) {
    struct pd_threads *threads;
    if (in->check)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: --check is for .pdvm files; a directory's weights are always read and "
                       "checked",
                       in->path);
    PD_TRY(pd_threads_create(in->n_threads, &threads, err));
    pdvm_status status = scan_source(in->source, threads, notify, &in->report, &in->converted, err);
    pd_threads_free(threads);
    return status;
}

static pdvm_status read_model(struct inspection *in, pdvm_error *err) {
    struct pd_notify notify = {.progress = terminal_progress, .progress_user = &in->bar};
    PD_TRY(source_open(in->path, &in->source, err));
    return source_is_mdcsr(in->source) ? read_container(in, &notify, err)
                                       : read_directory(in, &notify, err);
}

/* ---- text ------------------------------------------------------------------------------ */

static void print_made(const json_t *made) {
    const char *source = json_string_value(json_object_get(made, "source"));
    const char *method = json_string_value(json_object_get(made, "method"));
    const json_t *sparsity = json_object_get(made, "sparsity");
    const json_t *layers = json_object_get(made, "layers");
    const char *scope = json_string_value(json_object_get(made, "scope"));
    fputs("made from      ", stdout);
    print_escaped(source ? source : "?", strlen(source ? source : "?"));
    fputs(", method ", stdout);
    print_escaped(method ? method : "?", strlen(method ? method : "?"));
    if (json_is_number(sparsity)) printf(", sparsity %g", json_number_value(sparsity));
    if (scope) {
        fputs(" per ", stdout);
        print_escaped(scope, strlen(scope));
    }
    putchar('\n');
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const char *rule = json_string_value(json_array_get(layers, i));
        fputs("               --layers ", stdout);
        print_escaped(rule ? rule : "?", strlen(rule ? rule : "?"));
        putchar('\n');
    }
}

static const char *scaling_name(const struct model_config *c) {
    switch (c->rope_scaling.kind) {
    case ROPE_SCALING_NONE: break;
    case ROPE_SCALING_LINEAR: return "linear";
    case ROPE_SCALING_LLAMA3: return "llama3";
    case ROPE_SCALING_YARN: return "yarn";
    }
    return NULL;
}

static uint32_t count_window_layers(const struct model_config *c) {
    uint32_t n = 0;
    for (uint32_t l = 0; l < c->n_layers; l++) n += model_config_window(c, l) > 0;
    return n;
}

static void print_attention(const struct model_config *c) {
    const char *scaling = scaling_name(c);
    printf("attention      %u heads of %u, %u for keys and values; RoPE theta %g", c->n_heads,
           c->head_dim, c->n_kv_heads, (double)c->rope_theta);
    if (scaling) printf(", %s scaling by %g", scaling, c->rope_scaling.factor);
    putchar('\n');
    const char *pad = "               ";
    if (c->qkv_bias) printf("%sbiases of q, k%s\n", pad, c->o_bias ? ", v and o" : " and v");
    if (c->qk_norm) printf("%snorms of the heads of q and k\n", pad);
    if (c->sliding_window)
        printf("%ssliding window of %u in %u of the layers\n", pad, c->sliding_window,
               count_window_layers(c));
}

static void print_facts(const struct inspection *in) {
    const struct model_config *c = &in->source->config;
    char size[32];
    printf("%s: %s", in->path, in->source->kind);
    if (in->container) {
        const char *producer =
            safetensors_metadata(container_safetensors(in->container), "pdvm.producer");
        const char *version =
            safetensors_metadata(container_safetensors(in->container), "pdvm.version");
        printf(", %s, format %s, written by ", terminal_size(size, in->file_bytes),
               version ? version : "?");
        if (!producer) producer = "?";
        print_escaped(producer, strlen(producer));
    }
    printf("\narchitecture   %s, %u layers, hidden size %u, MLP %u\n", c->architecture, c->n_layers,
           c->hidden_size, c->intermediate_size);
    print_attention(c);
    printf("vocabulary     %u tokens%s; context %u\n", c->n_vocab,
           c->tie_word_embeddings ? ", the head shares the embedding" : "",
           c->max_position_embeddings);
    printf("fingerprint    %016" PRIx64 "\n", in->source->fingerprint);
    if (in->made) print_made(in->made);
    if (in->check) puts("check          every matrix and the hash of the data are right");
}

/* What a conversion with the defaults would lose and gain. */
static void print_forecast(const struct inspection *in) {
    struct report_sum now, then;
    char size[32];
    if (in->converted.n == 0) return;
    report_sum(&in->report, REPORT_TOTAL, &now);
    report_sum(&in->converted, REPORT_TOTAL, &then);
    printf("\nconverted      by the defaults of pdvm convert (int8): %s, %.2f bits a weight, ",
           terminal_size(size, then.bytes), report_bits(then.bytes, then.n_weights));
    if (then.bytes <= now.bytes)
        printf("%.2f times smaller;", (double)now.bytes / (double)then.bytes);
    else
        printf("%.2f times larger;", (double)then.bytes / (double)now.bytes);
    printf("\n               every zero stays, the others are rounded: error %.4f\n", then.error);
}

/* Whether block characters will show; the locale decides, as for other programs. */
static bool utf8_terminal(void) {
    setlocale(LC_CTYPE, "");
    bool utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    setlocale(LC_CTYPE, "C");
    return utf8;
}

static void print_text(const struct inspection *in) {
    struct picture_style style = {.ascii = in->ascii || !utf8_terminal(),
                                  .colors = terminal_colors(stdout)};
    print_facts(in);
    putchar('\n');
    print_report_table(stdout, &in->report);
    print_forecast(in);
    putchar('\n');
    print_sparsity_picture(stdout, &in->report, in->source->config.n_layers, &style);
}

/* ---- JSON ------------------------------------------------------------------------------ */

static json_t *config_json(const struct model_config *c) {
    json_t *eos = json_array();
    for (uint32_t i = 0; i < c->n_eos; i++)
        json_array_append_new(eos, json_integer(c->eos_token_ids[i]));
    json_t *scaling = json_null();
    if (scaling_name(c))
        scaling =
            json_pack("{s:s, s:f}", "type", scaling_name(c), "factor", c->rope_scaling.factor);
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:b, s:i, s:o, s:o, s:b, s:b, "
        "s:b, s:I, s:I}",
        "architecture", c->architecture, "hidden_size", (json_int_t)c->hidden_size,
        "intermediate_size", (json_int_t)c->intermediate_size, "n_layers", (json_int_t)c->n_layers,
        "n_heads", (json_int_t)c->n_heads, "n_kv_heads", (json_int_t)c->n_kv_heads, "head_dim",
        (json_int_t)c->head_dim, "n_vocab", (json_int_t)c->n_vocab, "max_position_embeddings",
        (json_int_t)c->max_position_embeddings, "rms_norm_eps", (double)c->rms_norm_eps,
        "rope_theta", (double)c->rope_theta, "tie_word_embeddings", (int)c->tie_word_embeddings,
        "bos_token_id", (int)c->bos_token_id, "eos_token_ids", eos, "rope_scaling", scaling,
        "qkv_bias", (int)c->qkv_bias, "o_bias", (int)c->o_bias, "qk_norm", (int)c->qk_norm,
        "sliding_window", (json_int_t)c->sliding_window, "n_window_layers",
        (json_int_t)count_window_layers(c));
}

/* The caller's metadata and the format's, but for the two that are told elsewhere. */
static void add_metadata(void *user, const char *key, const char *value) {
    if (strcmp(key, "pdvm.matrices") == 0 || strcmp(key, REPORT_METADATA) == 0) return;
    json_object_set_new(user, key, json_string(value));
}

static json_t *inspection_json(const struct inspection *in) {
    char fingerprint[17];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, in->source->fingerprint);
    json_t *value = report_json(&in->report), *metadata = json_object();
    if (in->container)
        safetensors_metadata_each(container_safetensors(in->container), add_metadata, metadata);
    json_t *made = in->made ? json_deep_copy(in->made) : json_null();
    json_object_del(made, "matrices");
    json_t *facts = json_pack("{s:o, s:s, s:I, s:s, s:o, s:o, s:o, s:b}", "path",
                              json_text(in->path, strlen(in->path)), "kind", in->source->kind,
                              "file_bytes", (json_int_t)in->file_bytes, "fingerprint", fingerprint,
                              "config", config_json(&in->source->config), "metadata", metadata,
                              "made", made, "checked", (int)in->check);
    if (in->converted.n > 0) {
        json_t *converted = report_json(&in->converted);
        json_object_set_new(facts, "converted", json_incref(json_object_get(converted, "total")));
        json_decref(converted);
    }
    if (value && json_object_update_new(value, facts) == 0) return value;
    json_decref(value);
    return NULL;
}

static int inspect(struct inspection *in) {
    pdvm_error err;
    int code = CMD_OK;
    in->bar.quiet = in->quiet;
    pdvm_status status = read_model(in, &err);
    terminal_progress_end(&in->bar);
    if (status != PDVM_OK) {
        code = terminal_fail("inspect", &err);
        if (status == PDVM_ERR_ARGUMENT) code = CMD_USAGE;
    } else if (in->json) {
        code = print_json("inspect", inspection_json(in));
    } else {
        print_text(in);
    }
    report_free(&in->report);
    report_free(&in->converted);
    json_decref(in->made);
    container_close(in->container);
    source_close(in->source);
    return code;
}

int cmd_inspect(int argc, char **argv) {
    struct inspection in = {0};
    int64_t threads = 0;
    const struct operand operands[] = {
        {"MODEL", "A .pdvm file, a GGUF file or a Hugging Face directory.", &in.path, false},
        OPERAND_END};
    const struct option_spec options[] = {
        OPTION_FLAG("--check", "Check every byte of a .pdvm file: its matrices and its hash.",
                    &in.check),
        OPTION_FLAG("--json", "Print all of it as JSON, with every tensor.", &in.json),
        OPTION_FLAG("--ascii", "Draw with plain letters, as without a UTF-8 locale.", &in.ascii),
        OPTION_INT("-t, --threads", "N", "Threads; 0 is one per physical core. [0]", &threads, 0,
                   1024),
        OPTION_FLAG("-q, --quiet", "Show no progress.", &in.quiet),
        OPTION_END,
    };
    const struct options_page page = {.command = "inspect",
                                      .usage = "MODEL [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = options,
                                      .examples = examples};
    int code = options_parse(&page, argc, argv);
    if (code != OPTIONS_GO_ON) return code;
    if (!in.path) return options_error(&page, "no model: pdvm inspect MODEL");
    in.n_threads = (int)threads;
    return inspect(&in);
}
