// Which coding and sparsity each matrix gets: general settings, rules, and what makes no sense.

#include "support/support.h"

#include "compress/settings.h"

#include <stdlib.h>
#include <string.h>

static struct model_config config(bool tied) {
    return (struct model_config){.architecture = "llama",
                                 .hidden_size = 64,
                                 .intermediate_size = 96,
                                 .n_layers = 12,
                                 .n_heads = 4,
                                 .n_kv_heads = 2,
                                 .head_dim = 16,
                                 .n_vocab = 100,
                                 .tie_word_embeddings = tied};
}

static struct settings_plan no_plan(void) {
    return (struct settings_plan){.general = settings_none(), .embed = SETTING_UNSET};
}

static void add(struct settings_plan *plan, const char *text) {
    pdvm_error err = {0};
    assert_ok(settings_add_rule(plan, text, &err), &err);
}

static struct settings_matrix settings_of(const struct settings_plan *plan, enum tensor_role role,
                                          uint32_t layer) {
    struct model_config c = config(false);
    struct tensor_info t;
    struct settings_matrix m;
    tensors_describe(&c, role, layer, &t);
    settings_for(plan, &t, &m);
    return m;
}

static void assert_plan_fails(struct settings_plan *plan, const char *text) {
    struct model_config c = config(true);
    pdvm_error err = {0};
    assert_error(settings_check(plan, &c, &err), PDVM_ERR_ARGUMENT, &err, text);
    settings_free(plan);
}

static void defaults_are_int8_per_row_with_the_smallest_index(void **state) {
    struct settings_plan plan = no_plan();
    (void)state;
    for (int role = TENSOR_EMBED; role < TENSOR_N_ROLES; role++) {
        struct settings_matrix m = settings_of(&plan, (enum tensor_role)role, 0);
        assert_int_equal(m.coding.values, MDCSR_INT8);
        assert_int_equal(m.coding.group, 0);
        assert_true(m.coding.index_auto);
        assert_true(m.sparsity == 0);
    }
}

static void lut4_gets_learned_codebooks_in_groups(void **state) {
    struct settings_plan plan = no_plan();
    (void)state;
    plan.general.values = MDCSR_LUT4;
    struct settings_matrix m = settings_of(&plan, TENSOR_Q, 1);
    assert_int_equal(m.coding.codebook, MDCSR_LEARNED);
    assert_int_equal(m.coding.group, SETTING_LUT4_GROUP);
    plan.general.values = MDCSR_LUT8;
    assert_int_equal(settings_of(&plan, TENSOR_Q, 1).coding.group, 0);
    plan.general.values = MDCSR_LUT4;
    plan.general.group = 0;
    plan.general.codebook = MDCSR_PRIME;
    m = settings_of(&plan, TENSOR_Q, 1);
    assert_int_equal(m.coding.codebook, MDCSR_PRIME);
    assert_int_equal(m.coding.group, 0);
}

static void embedding_and_head_follow_their_own_setting(void **state) {
    struct settings_plan plan = no_plan();
    (void)state;
    plan.general = (struct settings){MDCSR_LUT4, MDCSR_PRIME, MDCSR_DELTA8, 128, 0.9};
    plan.embed = MDCSR_F16;
    static const enum tensor_role roles[] = {TENSOR_EMBED, TENSOR_HEAD};
    for (int i = 0; i < 2; i++) {
        struct settings_matrix m = settings_of(&plan, roles[i], 0);
        assert_int_equal(m.coding.values, MDCSR_F16);
        assert_int_equal(m.coding.group, 0);
        assert_true(m.coding.index_auto);
        assert_true(m.sparsity == 0);
    }
    struct settings_matrix m = settings_of(&plan, TENSOR_UP, 0);
    assert_int_equal(m.coding.index, MDCSR_DELTA8);
    assert_false(m.coding.index_auto);
    assert_true(m.sparsity == 0.9);
}

static void the_last_matching_rule_wins_setting_by_setting(void **state) {
    struct settings_plan plan = no_plan();
    struct model_config c = config(false);
    pdvm_error err = {0};
    (void)state;
    plan.general.sparsity = 0.5;
    add(&plan, "model.layers.*=values=lut8,codebook=linear,sparsity=0.25");
    add(&plan, "down=values=lut4,group=32");
    add(&plan, "*.[12].mlp.*=index=bitmap,sparsity=0");
    add(&plan, "model.layers.1.mlp.down_proj.weight=group=128");
    assert_ok(settings_check(&plan, &c, &err), &err);

    struct settings_matrix m = settings_of(&plan, TENSOR_Q, 1);
    assert_int_equal(m.coding.values, MDCSR_LUT8);
    assert_int_equal(m.coding.codebook, MDCSR_LINEAR);
    assert_true(m.sparsity == 0.25);
    m = settings_of(&plan, TENSOR_DOWN, 1);
    assert_int_equal(m.coding.values, MDCSR_LUT4);
    assert_int_equal(m.coding.codebook, MDCSR_LINEAR);
    assert_int_equal(m.coding.group, 128);
    assert_int_equal(m.coding.index, MDCSR_BITMAP);
    assert_false(m.coding.index_auto);
    assert_true(m.sparsity == 0);
    m = settings_of(&plan, TENSOR_DOWN, 11);
    assert_int_equal(m.coding.group, 32);
    assert_true(m.coding.index_auto);
    assert_true(m.sparsity == 0.25);
    settings_free(&plan);
}

static void a_rule_can_choose_the_smallest_index_again(void **state) {
    struct settings_plan plan = no_plan();
    (void)state;
    plan.general.index = MDCSR_DENSE;
    add(&plan, "v=index=auto");
    assert_false(settings_of(&plan, TENSOR_Q, 0).coding.index_auto);
    assert_true(settings_of(&plan, TENSOR_V, 0).coding.index_auto);
    settings_free(&plan);
}

static void malformed_rules_are_explained(void **state) {
    static const struct {
        const char *rule, *text;
    } bad[] = {
        {"down", "PATTERN=SETTING"},
        {"=values=int8", "PATTERN=SETTING"},
        {"down=", "PATTERN=SETTING"},
        {"down=lut4", "\"lut4\" is not NAME=VALUE"},
        {"down=values=lut4,", "\"\" is not NAME=VALUE"},
        {"down=values=lut5", "values is f32, bf16, f16, int8, lut8 or lut4, not \"lut5\""},
        {"down=codebook=primes", "codebook is linear, prime or learned"},
        {"down=index=csr", "index is auto, dense, bitmap, delta8 or delta4"},
        {"down=group=48", "group is 0, 32, 64, 128 or 256"},
        {"down=group=99999999999999999999", "group is 0, 32"},
        {"down=group=-32", "group is 0, 32"},
        {"down=sparsity=1", "sparsity is a number from 0 to below 1"},
        {"down=sparsity=nan", "sparsity is a number"},
        {"down=sparsity=", "sparsity is a number"},
        {"down=sparsity=0.5x", "sparsity is a number"},
        {"down=vals=int8", "there is no setting \"vals\""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct settings_plan plan = no_plan();
        pdvm_error err = {0};
        assert_error(settings_add_rule(&plan, bad[i].rule, &err), PDVM_ERR_ARGUMENT, &err,
                     bad[i].text);
        assert_non_null(strstr(err.message, bad[i].rule));
        assert_int_equal(plan.n_rules, 0);
        settings_free(&plan);
    }
}

static void rules_come_from_a_file_line_by_line(void **state) {
    (void)state;
    pdvm_error err;
    char *dir = support_tmpdir();
    char *path = support_write_text(dir, "rules",
                                    "# a comment\n\nq=sparsity=0.5,values=lut4\r\n"
                                    "model.layers.1.*=sparsity=0.25");
    struct settings_plan plan = {.general = settings_none(), .embed = SETTING_UNSET};
    assert_ok(settings_add_file(&plan, path, &err), &err);
    assert_int_equal(plan.n_rules, 2);
    assert_string_equal(plan.rules[0].pattern, "q");
    assert_true(plan.rules[0].set.sparsity == 0.5);
    assert_int_equal(plan.rules[0].set.values, MDCSR_LUT4);
    assert_true(plan.rules[1].set.sparsity == 0.25);
    assert_error(settings_add_file(&plan, path, &err), PDVM_ERR_ARGUMENT, &err, "only one file");
    settings_free(&plan);
    free(path);

    static const struct {
        const char *text, *message;
        size_t size;
    } bad[] = {{"q=sparsity=0.5\nq=colour=red\n", "rules, line 2: ", 0},
               {"q=sparsity=0.5\xff", "not a text file", 0},
               {"q=sparsity=0.5\0", "not a text file", 15}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        path = support_write_file(dir, "rules", bad[i].text,
                                  bad[i].size ? bad[i].size : strlen(bad[i].text));
        assert_error(settings_add_file(&plan, path, &err), PDVM_ERR_ARGUMENT, &err, bad[i].message);
        settings_free(&plan);
        free(path);
    }
    assert_error(settings_add_file(&plan, "no/such/file", &err), PDVM_ERR_IO, &err, "no/such/file");
    settings_free(&plan);
    support_tmpdir_remove(dir);
}

static void a_pattern_that_matches_nothing_names_the_candidates(void **state) {
    static const char *const bad[] = {"dwon=values=int8", "model.layers.12.*=values=int8",
                                      "*norm*=values=int8", "model.norm.weight=values=int8",
                                      "head=values=int8"}; /* the head is tied */
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct settings_plan plan = no_plan();
        add(&plan, bad[i]);
        assert_plan_fails(&plan, "model.layers.0.mlp.down_proj.weight");
    }
}

static void what_has_no_effect_is_refused(void **state) {
    struct settings_plan plan = no_plan();
    (void)state;
    plan.general.codebook = MDCSR_PRIME;
    assert_plan_fails(&plan, "--codebook prime has no effect");
    plan = no_plan();
    plan.general.values = MDCSR_BF16;
    plan.general.group = 64;
    assert_plan_fails(&plan, "--group 64 has no effect");
    plan = no_plan();
    add(&plan, "q=codebook=linear");
    assert_plan_fails(&plan, "--layers q=codebook=linear: codebook linear has no effect");
    plan = no_plan();
    add(&plan, "embed=sparsity=0.5");
    assert_plan_fails(&plan, "never pruned");
}

static void a_general_codebook_may_serve_one_rule_only(void **state) {
    struct settings_plan plan = no_plan();
    struct model_config c = config(true);
    pdvm_error err = {0};
    (void)state;
    plan.general.codebook = MDCSR_PRIME;
    add(&plan, "gate=values=lut4");
    assert_ok(settings_check(&plan, &c, &err), &err);
    assert_int_equal(settings_of(&plan, TENSOR_GATE, 0).coding.codebook, MDCSR_PRIME);
    settings_free(&plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_int8_per_row_with_the_smallest_index),
        cmocka_unit_test(lut4_gets_learned_codebooks_in_groups),
        cmocka_unit_test(embedding_and_head_follow_their_own_setting),
        cmocka_unit_test(the_last_matching_rule_wins_setting_by_setting),
        cmocka_unit_test(a_rule_can_choose_the_smallest_index_again),
        cmocka_unit_test(malformed_rules_are_explained),
        cmocka_unit_test(rules_come_from_a_file_line_by_line),
        cmocka_unit_test(a_pattern_that_matches_nothing_names_the_candidates),
        cmocka_unit_test(what_has_no_effect_is_refused),
        cmocka_unit_test(a_general_codebook_may_serve_one_rule_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
