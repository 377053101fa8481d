#include "compress/settings.h"

#include "base/file.h"
#include "base/utf8.h"
#include "mdcsr/layout.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXAMPLE "for example \"*.down_proj.weight=values=lut4,group=32\" or \"q=sparsity=0.3\""

struct settings settings_none(void) {
    return (struct settings){SETTING_UNSET, SETTING_UNSET, SETTING_UNSET, SETTING_UNSET,
                             SETTING_UNSET};
}

/* ---- reading rules --------------------------------------------------------------------- */

static bool parse_index(const char *value, int *out) {
    enum mdcsr_index index;
    if (strcmp(value, "auto") == 0) {
        *out = SETTING_INDEX_AUTO;
        return true;
    }
    if (!mdcsr_index_parse(value, &index)) return false;
    *out = (int)index;
    return true;
}

static bool parse_group(const char *value, int *out) {
    char *end;
    long n = strtol(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end || n > 256 || !mdcsr_group_valid((uint32_t)n))
        return false;
    *out = (int)n;
    return true;
}

static bool parse_sparsity(const char *value, double *out) {
    char *end;
    if ((value[0] < '0' || value[0] > '9') && value[0] != '.') return false;
    *out = strtod(value, &end);
    return *end == 0 && *out >= 0 && *out < 1;
}

static pdvm_status parse_setting(struct settings_rule *rule, const char *name, const char *value,
                                 pdvm_error *err) {
    enum mdcsr_values values;
    enum mdcsr_codebook codebook;
    struct settings *set = &rule->set;
    const char *allowed;
    if (strcmp(name, "values") == 0) {
        allowed = "f32, bf16, f16, int8, lut8 or lut4";
        if (mdcsr_values_parse(value, &values)) {
            set->values = (int)values;
            return PDVM_OK;
        }
    } else if (strcmp(name, "codebook") == 0) {
        allowed = "linear, prime or learned";
        if (mdcsr_codebook_parse(value, &codebook)) {
            set->codebook = (int)codebook;
            return PDVM_OK;
        }
    } else if (strcmp(name, "index") == 0) {
        allowed = "auto, dense, bitmap, delta8 or delta4";
        if (parse_index(value, &set->index)) return PDVM_OK;
    } else if (strcmp(name, "group") == 0) {
        allowed = "0, 32, 64, 128 or 256";
        if (parse_group(value, &set->group)) return PDVM_OK;
    } else if (strcmp(name, "sparsity") == 0) {
        allowed = "a number from 0 to below 1";
        if (parse_sparsity(value, &set->sparsity)) return PDVM_OK;
    } else {
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "--layers %s: there is no setting \"%s\", only values, codebook, index, "
                       "group and sparsity; %s",
                       rule->text, name, EXAMPLE);
    }
    return pd_fail(err, PDVM_ERR_ARGUMENT, "--layers %s: %s is %s, not \"%s\"", rule->text, name,
                   allowed, value);
}

/* `settings` is cut into pieces. */
static pdvm_status parse_settings(struct settings_rule *rule, char *settings, pdvm_error *err) {
    while (settings) {
        char *next = strchr(settings, ',');
        if (next) *next++ = 0;
        char *value = strchr(settings, '=');
        if (!value)
            return pd_fail(err, PDVM_ERR_ARGUMENT, "--layers %s: \"%s\" is not NAME=VALUE; %s",
                           rule->text, settings, EXAMPLE);
        *value++ = 0;
        PD_TRY(parse_setting(rule, settings, value, err));
        settings = next;
    }
    return PDVM_OK;
}

pdvm_status settings_add_rule(struct settings_plan *plan, const char *text, pdvm_error *err) {
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || !equals[1])
        return pd_fail(err, PDVM_ERR_ARGUMENT, "--layers %s: give PATTERN=SETTING[,SETTING...], %s",
                       text, EXAMPLE);
    struct settings_rule *grown = realloc(plan->rules, (plan->n_rules + 1) * sizeof *plan->rules);
    if (!grown) return pd_fail_memory(err, sizeof *grown, "rules");
    plan->rules = grown;
    struct settings_rule *rule = &plan->rules[plan->n_rules];
    *rule = (struct settings_rule){.text = text, .pattern = strdup(text), .set = settings_none()};
    if (!rule->pattern) return pd_fail_memory(err, strlen(text) + 1, "a rule");
    char *settings = rule->pattern + (equals - text);
    *settings++ = 0;
    pdvm_status status = parse_settings(rule, settings, err);
    if (status == PDVM_OK)
        plan->n_rules++;
    else
        free(rule->pattern);
    return status;
}

/* More is not a file of rules. */
#define MOST_FILE ((size_t)16 << 20)

pdvm_status settings_add_file(struct settings_plan *plan, const char *path, pdvm_error *err) {
    size_t size;
    if (plan->file)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: only one file of rules can be given", path);
    PD_TRY(pd_read_file(path, MOST_FILE, &plan->file, &size, err));
    if (strlen(plan->file) != size || pd_utf8_check(plan->file, size) != size)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: is not a text file in UTF-8", path);
    char *line = plan->file;
    for (int number = 1; line; number++) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        size_t n = strlen(line);
        if (n > 0 && line[n - 1] == '\r') line[n - 1] = 0;
        if (line[0] && line[0] != '#') {
            pdvm_status status = settings_add_rule(plan, line, err);
            if (status != PDVM_OK) return pd_prefix(err, status, "%s, line %d", path, number);
        }
        line = end ? end + 1 : NULL;
    }
    return PDVM_OK;
}

void settings_free(struct settings_plan *plan) {
    free(plan->file);
    plan->file = NULL;
    for (size_t i = 0; i < plan->n_rules; i++) free(plan->rules[i].pattern);
    free(plan->rules);
    plan->rules = NULL;
    plan->n_rules = 0;
}

/* ---- applying them --------------------------------------------------------------------- */

static bool rule_matches(const struct settings_rule *rule, const struct tensor_info *t) {
    return t->is_matrix && (strcmp(rule->pattern, tensor_role_name(t->role)) == 0 ||
                            fnmatch(rule->pattern, t->name, 0) == 0);
}

static void overlay(struct settings *set, const struct settings *over) {
    if (over->values != SETTING_UNSET) set->values = over->values;
    if (over->codebook != SETTING_UNSET) set->codebook = over->codebook;
    if (over->index != SETTING_UNSET) set->index = over->index;
    if (over->group != SETTING_UNSET) set->group = over->group;
    if (over->sparsity >= 0) set->sparsity = over->sparsity;
}

void settings_for(const struct settings_plan *plan, const struct tensor_info *tensor,
                  struct settings_matrix *out) {
    struct settings set = plan->general;
    if (tensor_is_vocabulary(tensor->role)) {
        set = settings_none();
        set.values = plan->embed;
    }
    for (size_t i = 0; plan->rules && i < plan->n_rules; i++) {
        if (rule_matches(&plan->rules[i], tensor)) overlay(&set, &plan->rules[i].set);
    }
    if (set.values == SETTING_UNSET) set.values = MDCSR_INT8;
    if (set.codebook == SETTING_UNSET) set.codebook = MDCSR_LEARNED;
    if (set.index == SETTING_UNSET) set.index = SETTING_INDEX_AUTO;
    if (set.group == SETTING_UNSET) set.group = set.values == MDCSR_LUT4 ? SETTING_LUT4_GROUP : 0;
    *out = (struct settings_matrix){
        .coding = {.values = (enum mdcsr_values)set.values,
                   .codebook = (enum mdcsr_codebook)set.codebook,
                   .index_auto = set.index == SETTING_INDEX_AUTO,
                   .index =
                       set.index == SETTING_INDEX_AUTO ? MDCSR_DENSE : (enum mdcsr_index)set.index,
                   .group = (uint32_t)set.group},
        .sparsity = set.sparsity > 0 && !tensor_is_vocabulary(tensor->role) ? set.sparsity : 0,
    };
}

/* ---- checking -------------------------------------------------------------------------- */

/* What the matrices of a model that a rule (or the general settings) reaches have in common. */
struct reach {
    bool any, scales, codebook, prunable;
};

static struct reach reach_of(const struct settings_plan *plan, const struct model_config *config,
                             const struct settings_rule *rule) {
    struct reach reach = {0};
    size_t n = tensors_count(config);
    for (size_t i = 0; i < n; i++) {
        struct tensor_info t;
        struct settings_matrix m;
        tensors_at(config, i, &t);
        if (!t.is_matrix || (rule ? !rule_matches(rule, &t) : tensor_is_vocabulary(t.role)))
            continue;
        settings_for(plan, &t, &m);
        reach.any = true;
        reach.scales |= mdcsr_has_scales(m.coding.values);
        reach.codebook |= mdcsr_codebook_size(m.coding.values) > 0;
        reach.prunable |= !tensor_is_vocabulary(t.role);
    }
    return reach;
}

/* `what` is how the settings were given: "--layers X: ". */
static pdvm_status check_effect(const char *what, const struct settings *set,
                                const struct reach *reach, pdvm_error *err) {
    if (set->codebook != SETTING_UNSET && !reach->codebook)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%scodebook %s has no effect: only the values lut8 and lut4 have a codebook",
                       what, mdcsr_codebook_name((enum mdcsr_codebook)set->codebook));
    if (set->group > 0 && !reach->scales)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%sgroup %d has no effect: only the values int8, lut8 and lut4 have scales",
                       what, set->group);
    if (set->sparsity >= 0 && !reach->prunable)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%ssparsity has no effect: the embedding and the head are never pruned",
                       what);
    return PDVM_OK;
}

pdvm_status settings_check(const struct settings_plan *plan, const struct model_config *config,
                           pdvm_error *err) {
    struct reach reach = reach_of(plan, config, NULL);
    PD_TRY(check_effect("--", &plan->general, &reach, err));
    for (size_t i = 0; i < plan->n_rules; i++) {
        const struct settings_rule *rule = &plan->rules[i];
        reach = reach_of(plan, config, rule);
        if (!reach.any)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "--layers %s: no matrix matches \"%s\"; give a shell pattern for names "
                           "such as \"model.layers.0.mlp.down_proj.weight\" (layers 0 to %u), or "
                           "one of embed, q, k, v, o, gate, up, down%s",
                           rule->text, rule->pattern, config->n_layers - 1,
                           config->tie_word_embeddings ? "" : ", head");
        char what[256];
        snprintf(what, sizeof what, "--layers %.200s: ", rule->text);
        PD_TRY(check_effect(what, &rule->set, &reach, err));
    }
    return PDVM_OK;
}
