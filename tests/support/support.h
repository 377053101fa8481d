/** What several tests need: temporary directories, files, paths, and checks of errors. */
#ifndef PDVM_TESTS_SUPPORT_H
#define PDVM_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "pdvm.h"

/** 1 under ThreadSanitizer, where everything takes ten times as long and more. */
#if defined(__SANITIZE_THREAD__)
#define SUPPORT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SUPPORT_TSAN 1
#endif
#endif
#ifndef SUPPORT_TSAN
#define SUPPORT_TSAN 0
#endif

/** Fails the test with a printf-like message, and does not return, as analysers must know. */
_Noreturn void support_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/**
 * Makes an empty directory below TMPDIR (or /tmp) and returns its path; support_tmpdir_remove
 * removes it and frees the string. Fails the test if that is impossible.
 */
char *support_tmpdir(void);

/** Removes a directory of support_tmpdir with all that is in it, and frees `dir`. NULL allowed. */
void support_tmpdir_remove(char *dir);

/** Set-up and tear-down of cmocka for tests that have such a directory as their state. */
int support_make_dir(void **state);
int support_remove_dir(void **state);

/** "dir/name" in a new string, freed with free(). */
char *support_path(const char *dir, const char *name);

/** Path of a file of the source tree, as in "tests/golden/x.json"; freed with free(). */
char *support_source_path(const char *name);

/** Path of "tests/golden/name"; freed with free(). */
char *support_golden_path(const char *name);

/**
 * Path of something in the directory of shared test data (environment variable PDVM_SHARED, or
 * "shared" beside the source tree); freed with free(). Skips the test if it is not there.
 */
char *support_shared_path(const char *name);

/** Writes a file, fails the test if it cannot; returns its path, freed with free(). */
char *support_write_file(const char *dir, const char *name, const void *data, size_t size);

/** The same for a zero-terminated text. */
char *support_write_text(const char *dir, const char *name, const char *text);

/** Writes about `size` bytes of words from a small list, always the same, to words.txt in dir. */
char *support_write_words(const char *dir, size_t size);

/** Reads a whole file, with a zero byte after its end; freed with free(). `size` may be NULL. */
char *support_read_file(const char *path, size_t *size);

/** Fails unless both files have the same bytes. */
void support_same_file(const char *a, const char *b);

/** Whether something of that path exists. */
int support_exists(const char *path);

/** Number of entries of a directory, "." and ".." left out. */
size_t support_count_entries(const char *dir);

/** Fails the test, quoting the error's message, unless `status` is PDVM_OK. */
#define assert_ok(status, err) support_assert_ok((status), (err), __FILE__, __LINE__)
void support_assert_ok(pdvm_status status, const pdvm_error *err, const char *file, int line);

/**
 * Fails the test unless `status` is `expected`, the error says so too, and its message contains
 * `text` (a file's or field's name).
 */
#define assert_error(status, expected, err, text)                                                  \
    support_assert_error((status), (expected), (err), (text), __FILE__, __LINE__)
void support_assert_error(pdvm_status status, pdvm_status expected, const pdvm_error *err,
                          const char *text, const char *file, int line);

#endif
