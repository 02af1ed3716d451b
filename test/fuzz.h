/* fuzz.h - what the fuzz harnesses share: the entry for libFuzzer and AFL++, and the replay of the
 * corpus by a plain main
 *
 * A harness defines FUZZ_NAME ("head"), includes this, then "../exportws.c", and defines
 * fuzz_one(). It is built
 *
 *   clang -fsanitize=fuzzer,address,undefined -DFUZZ_ENGINE fuzz_head.c     by libFuzzer,
 *   afl-clang-fast -fsanitize=fuzzer -DFUZZ_ENGINE fuzz_head.c              by AFL++ (persistent
 * mode), cc fuzz_head.c                                                          for the replay.
 *
 * The replay runs the files it is given, or all of test/corpus/FUZZ_NAME-*, and prints "ok FILE"
 * for each; a finding prints "not ok FILE: where: what" and ends the program with an abort. */
#ifndef FUZZ_H
#define FUZZ_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _FILE_OFFSET_BITS /* or a 32-bit readdir() knows no place behind 2^31 in a folder */
#define _FILE_OFFSET_BITS 64
#endif
#define EXPORTWS_NO_MAIN

#include <dirent.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FUZZ_MOST = 16384, GUARDS = 3 };

/* Runs one input; ends in fuzz_fail when a property does not hold. */
static void fuzz_one(const uint8_t *p, size_t n);

static const char *fuzz_file = "input";

static void fuzz_fail(const char *file, int line, const char *what)
{
    const char *slash = strrchr(file, '/');
    fflush(stdout);
    fprintf(stderr, "not ok %s: %s:%d: %s\n", fuzz_file, slash ? slash + 1 : file, line, what);
    fflush(stderr);
    abort();
}

/* Between these two nothing is instrumented: what a harness does itself is no news to the fuzzer.
 */
#if defined FUZZ_ENGINE && defined __clang__
#define FUZZ_BLIND \
    _Pragma("clang attribute push(__attribute__((no_sanitize(\"coverage\"))), apply_to=function)")
#define FUZZ_SEEING _Pragma("clang attribute pop")
#else
#define FUZZ_BLIND
#define FUZZ_SEEING
#endif

#define HOLDS(condition) ((condition) ? (void)0 : fuzz_fail(__FILE__, __LINE__, #condition))

/* ===== Input ===== */

/* What is left of an input. */
struct bytes {
    const uint8_t *p;
    size_t n;
};

/* The next byte, 0 behind the end. */
static inline uint8_t bytes_next(struct bytes *in)
{
    if (in->n == 0) return 0;
    in->n--;
    return *in->p++;
}

/* The next n bytes, or as many as there are. */
static inline struct bytes bytes_take(struct bytes *in, size_t n)
{
    struct bytes out = {in->p, n < in->n ? n : in->n};
    in->p += out.n, in->n -= out.n;
    return out;
}

static inline int bytes_equal(struct bytes a, const void *p, size_t n)
{
    return a.n == n && (n == 0 || memcmp(a.p, p, n) == 0);
}

/* Where to cut: sizes that a seed decides. */
struct splits {
    uint32_t state;
};

/* The size of the next piece of `left` bytes: 1 to left. Half of the seeds cut small. */
static inline size_t splits_next(struct splits *s, size_t left)
{
    s->state = s->state * 1664525U + 1013904223U;
    size_t most = s->state & 1U << 30 ? 8 : left;
    size_t piece = 1 + (s->state >> 8) % (most > 0 ? most : 1);
    return piece < left ? piece : left;
}

/* A copy of p[0..n) that ends where memory may not be touched: a read past its end is a fault,
 * without any sanitizer, too. It lasts until the same slot is asked again. */
static inline uint8_t *fuzz_guard(unsigned slot, const void *p, size_t n)
{
    static uint8_t *ends[GUARDS];
    if (!ends[slot]) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (FUZZ_MOST + page - 1) / page * page;
        int zero = open("/dev/zero", O_RDONLY);
        void *memory = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
        if (zero < 0 || memory == MAP_FAILED || close(zero) != 0) abort();
        ends[slot] = (uint8_t *)memory + room;
        if (mprotect(ends[slot], page, PROT_NONE) != 0) abort();
    }
    HOLDS(n <= FUZZ_MOST);
    if (n > 0) memcpy(ends[slot] - n, p, n);
    return ends[slot] - n;
}

/* ===== Entry ===== */

#ifdef FUZZ_ENGINE

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    fuzz_one(p, n < FUZZ_MOST ? n : FUZZ_MOST);
    return 0;
}

#else

static void replay_file(const char *path)
{
    static uint8_t data[FUZZ_MOST];
    const char *slash = strrchr(path, '/');
    FILE *f = fopen(path, "rb");
    fuzz_file = slash ? slash + 1 : path;
    if (!f) {
        fprintf(stderr, "not ok %s: cannot be read\n", fuzz_file);
        exit(1);
    }
    size_t n = fread(data, 1, sizeof data, f);
    fclose(f);
    printf("# %s\n", fuzz_file); /* the last of these lines tells which one a signal ended */
    fflush(stdout);
    fuzz_one(data, n);
    printf("ok %s\n", fuzz_file);
}

/* Replays all files of this harness in a folder; returns how many there were. */
static int replay_corpus(const char *folder)
{
    struct dirent *entry;
    int files = 0;
    char path[1024];
    DIR *dir = opendir(folder);
    if (!dir) return 0;
    while ((entry = readdir(dir)) != NULL) {
        if (strncmp(entry->d_name, FUZZ_NAME "-", sizeof FUZZ_NAME) != 0) continue;
        if (snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) >= (int)sizeof path)
            continue;
        replay_file(path);
        files++;
    }
    closedir(dir);
    return files;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) replay_file(argv[i]);
    if (argc > 1 || replay_corpus("test/corpus") > 0) return 0;
    fprintf(stderr, "not ok corpus: test/corpus/" FUZZ_NAME "-* is not there\n");
    return 1;
}

#endif
#endif
