/* What test/prove.sh has Frama-C's EVA look at: for each subject a function prove_SUBJECT that
 * calls the functions of exportws.c with every input up to a size.
 *
 * EVA does not run the code on some values but follows all of them at a time, and complains of
 * any step for which it can't rule out that it is undefined: an access outside an object or of
 * bytes that were never set, signed overflow, a shift too far, a division by 0, a call of a library
 * function that breaks what that asks for. So the content of a buffer is "any bytes", and numbers
 * are "any of that range". It knows few relations between two unknown numbers, though. So a length
 * is a number that a loop counts, and every buffer is an object of just that size: one byte too far
 * in either direction is a complaint. */
#include <__fc_machdep.h>

/* Of this machine's size_t Frama-C's libc says another name than Frama-C itself. */
#ifdef __FC_MACHDEP_PPC_32
#undef __SIZE_T
#define __SIZE_T unsigned long
#endif

#include <__fc_builtin.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* C lets memcpy() take nothing from the end of an object, Frama-C's libc does not. */
static void *copy(void *to, const void *from, size_t n)
{
    //@ assert \object_pointer((char *)to) && \object_pointer((char *)from);
    return n > 0 ? memcpy(to, from, n) : to;
}

/* What memchr() does (C11, 7.24.5.1): of its own EVA does not know how what it returns and n go
 * together. */
static void *find(const void *s, int c, size_t n)
{
    const uint8_t *p = s;
    //@ assert \object_pointer((char *)s);
    for (size_t i = 0; i < n; i++)
        if (p[i] == (uint8_t)c) return (void *)(p + i);
    return NULL;
}

#define memcpy copy
#define memchr find
#include "../exportws.c"

/* An object of n bytes, any bytes. It is a weak one, as EVA calls it: what a test has shown of a
 * byte is not kept in mind, or each way through a loop would be a state of its own. */
static uint8_t *any_bytes(size_t n)
{
    //@ eva_allocate fresh_weak;
    uint8_t *p = calloc(n, 1);
    Frama_C_make_unknown((char *)p, n);
    return p;
}

static uint64_t any_number(uint64_t least, uint64_t most)
{
    return Frama_C_unsigned_long_long_interval(least, most);
}

static uint8_t any_byte(void)
{
    return (uint8_t)any_number(0, 255);
}

/* ===== Frames ===== */

enum { FRAME_SIZE = 32, UNMASK_SIZE = 64, UNMASK_GAP = 9 };

static void decode(size_t n)
{
    struct frame f;
    uint8_t *p = any_bytes(n);
    int used = frame_decode(p, n, &f);
    //@ assert used == -1002 || 0 <= used <= n;
    if (used > 0) close_code_valid(f.fin + f.opcode + f.mask[0] + f.mask[3] + (f.size > 0));
    free(p);
}

static void encode(size_t head, uint64_t size)
{
    uint8_t *out = malloc(head);
    size_t n = frame_encode(out, (unsigned)any_number(0, UINT_MAX), size);
    //@ assert n == head;
    free(out);
}

static void unmask(size_t n, size_t gap)
{
    uint8_t *p = any_bytes(gap + n), *mask = any_bytes(4);
    frame_unmask(p, p + gap, n, mask, any_number(0, UINT64_MAX));
    free(p), free(mask);
}

void prove_frame(void)
{
    //@ loop unroll 1000;
    for (size_t n = 0; n <= FRAME_SIZE; n++) decode(n);
    encode(2, any_number(0, 125));
    encode(4, any_number(126, 65535));
    encode(10, any_number(65536, UINT64_MAX));
    //@ loop unroll 1000;
    for (size_t n = 0; n <= UNMASK_SIZE; n++)
        //@ loop unroll 1000;
        for (size_t gap = 0; gap <= UNMASK_GAP; gap++) unmask(n, gap);
    close_code_valid((unsigned)any_number(0, UINT_MAX));
}

/* ===== UTF-8 ===== */

enum { UTF8_SIZE = 256 };

/* From any state, so that how a text is cut does not matter. */
void prove_utf8(void)
{
    //@ loop unroll 1000;
    for (size_t n = 0; n <= UTF8_SIZE; n++) {
        struct utf8 u = {any_byte(), any_byte(), any_byte()};
        uint8_t *p = any_bytes(n);
        utf8_feed(&u, p, n);
        utf8_valid(p, n);
        free(p);
        }
}

/* ===== Digests, base64 ===== */

enum { DIGEST_SIZE = 66, KEY_SIZE = 66, TEXT_SIZE = 4, BASE64_SIZE = 64 };

static void digest(const struct sha *kind, size_t n)
{
    uint8_t *p = any_bytes(n), *before = any_bytes(64), *out = malloc(32);
    sha_digest(kind, NULL, p, n, out);
    sha_digest(kind, before, p, n, out);
    free(p), free(before), free(out);
}

static void digest_in_place(const struct sha *kind)
{
    uint8_t *p = any_bytes(32);
    sha_digest(kind, NULL, p, 32, p);
    free(p);
}

static void mac(size_t key_size, size_t n)
{
    uint8_t *key = any_bytes(key_size), *p = any_bytes(n), *out = malloc(32);
    hmac_sha256(key, key_size, p, n, out);
    free(key), free(p), free(out);
}

static void base64(size_t n)
{
    uint8_t *p = any_bytes(n);
    char *out = malloc((n + 2) / 3 * 4);
    base64_encode(p, n, out);
    free(p), free(out);
}

void prove_digest(void)
{
    uint8_t *key = any_bytes(24);
    char *accept = malloc(28);
    //@ loop unroll 1000;
    for (size_t n = 0; n <= DIGEST_SIZE; n++) digest(&sha1, n), digest(&sha256, n);
    digest_in_place(&sha1), digest_in_place(&sha256);
    //@ loop unroll 1000;
    for (size_t n = 0; n <= TEXT_SIZE; n++) mac(n, 8), mac(8, n), mac(KEY_SIZE - n, 8);
    //@ loop unroll 1000;
    for (size_t n = 0; n <= BASE64_SIZE; n++) base64(n);
    key_accept(key, accept);
}

/* ===== Chunks ===== */

enum { CHUNK_BYTES = 300 };

/* From any state but one that is out of range, so that how a body is cut does not matter. */
void prove_chunk(void)
{
    //@ loop unroll 1000;
    for (size_t n = 0; n <= CHUNK_BYTES; n++) {
        struct chunk k = {(uint8_t)any_number(0, CHUNK_DONE), any_byte(),
                          (uint16_t)any_number(0, UINT16_MAX), any_number(0, UINT64_MAX)};
        size_t data;
        uint8_t *p = any_bytes(n);
        chunk_feed(&k, p, n, &data);
        //@ assert data <= n;
        //@ assert k.state <= CHUNK_DONE;
        free(p);
        }
}

/* ===== layout() ===== */

/* Whether it is a size that layout() goes by; its range, as far as a size_t goes. */
static int option_sizes(const struct option *row, size_t *least, size_t *most)
{
    *least = (size_t)row->least;
    *most = row->most < SIZE_MAX ? (size_t)row->most : SIZE_MAX;
    return row->kind == OPTION_COUNT || row->kind == OPTION_BYTES;
}

/* With any options that are in range it measures without a fault, and places in a block that is
 * larger than all that it can measure. */
static void layout_of_any(void)
{
    const size_t most = SIZE_MAX / 2 < 1ULL << 44 ? SIZE_MAX / 2 : (size_t)(1ULL << 44);
    struct exportws *w = malloc(sizeof *w);
    uint8_t *block = malloc(most + 65536);
    size_t least, largest;
    exportws_defaults(&w->o);
    //@ loop unroll 1000;
    for (unsigned i = 0; i < OPTIONS; i++)
        if (option_sizes(&options[i], &least, &largest))
            *(size_t *)((char *)&w->o + options[i].at) = (size_t)any_number(least, largest);
    layout(w, NULL);
    layout(w, block);
    free(w), free(block);
}

/* With these options, what is measured is enough: the last byte of each piece can be written. */
static void layout_of(const exportws_options *o)
{
    struct exportws *w = malloc(sizeof *w);
    w->o = *o;
    size_t need = layout(w, NULL);
    if (need <= SIZE_MAX / 2) {
        uint8_t *block = malloc(need);
        size_t again = layout(w, block);
        //@ assert again == need;
        ((char *)(w->m + 1))[-1] = 1;
        w->polls[w->conns_end + 2].fd = 1;
        w->owners[w->conns_end + 2] = 1;
        w->conns[w->conns_end - 1].address[15] = 1;
        w->all->history = 1;
        w->buckets[w->bucket_mask] = 1;
        w->names[o->capacity * w->name_bytes - 1] = 1;
        w->pushes[o->pushers + PUSHERS_SPARE - 1].verb = 1;
        if (o->per_address > 0) {
            w->addresses[o->capacity - 1].next = 1;
            w->address_buckets[w->address_mask] = 1;
        }
        w->blocks[w->block_count * w->block_bytes - 1] = 1;
        w->links[w->block_count - 1] = 1;
        w->inputs[0].data[w->input_bytes - 1] = 1;
        w->scratch->data[w->scratch->size - 1] = 1;
        w->stage[w->stage_size - 1] = 1;
        w->answers[w->answers_size - 1] = 1;
        w->ring.bytes[w->ring.size - 1] = 1;
        free(block);
    }
    free(w);
}

static void take(void)
{
    struct arena a = {NULL, (size_t)any_number(0, SIZE_MAX)};
    arena_take(&a, (size_t)any_number(0, SIZE_MAX), (size_t)any_number(1, SIZE_MAX));
    power_of_two((size_t)any_number(0, SIZE_MAX));
}

/* Each option at its least and at its most, the others as they are by default; all at their least
 * and all at their most. */
void prove_layout(void)
{
    exportws_options o, least, most;
    take();
    layout_of_any();
    exportws_defaults(&o);
    layout_of(&o);
    least = most = o;
    //@ loop unroll 1000;
    for (unsigned i = 0; i < OPTIONS; i++) {
        size_t low, high;
        if (!option_sizes(&options[i], &low, &high)) continue;
        exportws_options changed = o;
        size_t *size = (size_t *)((char *)&changed + options[i].at);
        *size = low;
        layout_of(&changed);
        *size = high;
        layout_of(&changed);
        *(size_t *)((char *)&least + options[i].at) = low;
        *(size_t *)((char *)&most + options[i].at) = high;
    }
    layout_of(&least);
    layout_of(&most);
}

/* ===== HTTP head ===== */

/* Piece by piece: each function is called with every size of what it is handed, and those that it
 * calls and that have a contract here (-eva-use-spec) are taken at their word. The contract is held
 * against them where they are the subject themselves. */

/*@ requires \initialized(p + (0 .. n - 1)) && (n == 0 || \valid_read(p + (0 .. n - 1)));
    assigns \result \from indirect: n, indirect: p[0 .. n - 1];
    ensures 0 <= \result <= 255; */
static unsigned http_list_flags(const uint8_t *p, size_t n);

/*@ requires \initialized(p + (0 .. n - 1)) && (n == 0 || \valid_read(p + (0 .. n - 1)));
    assigns \result \from indirect: n, indirect: p[0 .. n - 1];
    ensures 0 <= \result <= 255; */
static unsigned http_list_ids(const uint8_t *p, size_t n);

/*@ requires \initialized(p + (0 .. n - 1)) && (n == 0 || \valid_read(p + (0 .. n - 1)));
    assigns \result \from indirect: n, indirect: p[0 .. n - 1];
    ensures 0 <= \result <= 1; */
static int host_valid(const uint8_t *p, size_t n);

/*@ requires n > 0 && \valid_read(p + (0 .. n - 1)) && \initialized(p + (0 .. n - 1));
    requires method_size > 0 && \valid_read(method + (0 .. method_size - 1));
    assigns \result \from indirect: n, indirect: p[0 .. n - 1];
    ensures 0 <= \result <= 1; */
static int target_valid(const uint8_t *p, size_t n, const uint8_t *method, size_t method_size);

/* What stands in the head at value.at is what p points to: all objects here are a whole head. */
/*@ requires \valid(h) && field < FIELDS;
    requires value.size == 0 || \valid_read(p + (0 .. value.size - 1));
    requires \initialized(p + (0 .. value.size - 1));
    requires value.at == \offset((char *)p);
    assigns \result, h->flags, h->seen, h->host, h->origin, h->key, h->authorization, h->forwarded,
        h->length \from indirect: value, indirect: p[0 .. value.size - 1];
    ensures -501 <= \result <= 0; */
static int head_note(struct head *h, unsigned field, struct span value, const uint8_t *p);

/*@ requires \valid(h) && n > 0 && \valid_read(p + (0 .. n - 1)) && \initialized(p + (0 .. n - 1));
    requires at == \offset((char *)p);
    assigns \result, h->flags, h->seen, h->host, h->origin, h->key, h->authorization, h->forwarded,
        h->length \from indirect: at, indirect: p[0 .. n - 1];
    ensures -501 <= \result <= 0; */
static int head_field_line(struct head *h, const uint8_t *p, size_t n, size_t at);

/*@ requires \valid(h) && n > 0 && \valid_read(p + (0 .. n - 1)) && \initialized(p + (0 .. n - 1));
    requires at == \offset((char *)p);
    assigns \result, h->method, h->verb, h->target, h->minor, h->begun
        \from indirect: at, indirect: p[0 .. n - 1];
    ensures -400 <= \result <= 0;
    ensures h->begun <= 1; */
static int head_request_line(struct head *h, const uint8_t *p, size_t n, size_t at);

/* The target that it looks at is what head_request_line() has set with h->begun: in the head. */
/*@ requires \valid(h) && h->begun == 1;
    assigns \result, h->host \from indirect: *h, indirect: p[0 ..];
    ensures -400 <= \result <= 0; */
static int head_check(struct head *h, const uint8_t *p);

enum { RUN_SIZE = 48, LIST_SIZE = 17, HOST_SIZE = 19, TARGET_SIZE = 22, TOKEN_SIZE = 32,
       NOTE_SIZE = 24, FIELD_SIZE = 24, REQUEST_SIZE = 32, HEAD_SIZE = 10, LONG_SIZE = 5 };

/* Runs, numbers, keys. */
static void run(size_t n)
{
    uint8_t *p = any_bytes(n);
    uint64_t value;
    ascii_run(p, n, ' ', 1), ascii_run(p, n, '!', 0);
    ascii_span(http_tchars, p, n);
    decimal_parse(p, n, &value);
    key_valid(p, n);
    free(p);
}

void prove_run(void)
{
    //@ loop unroll 1000;
    for (size_t n = 0; n <= RUN_SIZE; n++) run(n);
}

/* Lists: their members one by one, and whole. */
static void list_next(size_t n)
{
    uint8_t *p = any_bytes(n);
    const uint8_t *list = p, *member;
    size_t left = n, size;
    if (http_list_next(&list, &left, &member, &size)) {
        //@ assert \offset((char *)list) + left == n;
        //@ assert \offset((char *)member) + size <= n;
    }
    free(p);
}

static void list(size_t n)
{
    uint8_t *p = any_bytes(n);
    http_list_flags(p, n), http_list_ids(p, n);
    free(p);
}

void prove_list(void)
{
    //@ loop unroll 1000;
    for (size_t n = 0; n <= LIST_SIZE; n++) list_next(n), list(n);
}

static void host(size_t n)
{
    uint8_t *p = any_bytes(n);
    host_valid(p, n);
    free(p);
}

void prove_host(void)
{
    //@ loop unroll 1000;
    for (size_t n = 0; n <= HOST_SIZE; n++) host(n);
}

/* Targets, and what is taken from them: the authority of one that stands anywhere, a token. */
static void target(size_t n)
{
    uint8_t *p = any_bytes(n), *method = any_bytes(7);
    target_valid(p, n, method, 7);
    free(p), free(method);
}

static void check(size_t at, size_t n)
{
    struct head h = {0};
    uint8_t *p = any_bytes(at + n);
    h.begun = 1;
    h.minor = any_byte() & 1;
    h.seen = (uint16_t)any_number(0, UINT16_MAX);
    h.flags = (uint16_t)any_number(0, UINT16_MAX);
    h.target = (struct span){(uint16_t)at, (uint16_t)n};
    head_check(&h, p);
    free(p);
}

static void token(size_t n, size_t size)
{
    uint8_t *p = any_bytes(n), *out = malloc(size);
    token_decode(p, n, out, size);
    free(p), free(out);
}

void prove_target(void)
{
    //@ loop unroll 1000;
    for (size_t n = 1; n <= TARGET_SIZE; n++) target(n), check(0, n), check(4, n);
    //@ loop unroll 1000;
    for (size_t n = 0; n <= TOKEN_SIZE; n++) token(n, n), token(n, 4);
}

/* The request line. */
static void request(size_t n)
{
    struct head h = {0};
    uint8_t *p = any_bytes(n);
    if (head_request_line(&h, p, n, 0) == 0) {
        //@ assert h.begun == 1;
        //@ assert h.method.at + h.method.size <= n;
        //@ assert 0 < h.target.size && h.target.at + h.target.size <= n;
    }
    free(p);
}

void prove_request(void)
{
    //@ loop unroll 1000;
    for (size_t n = 1; n <= REQUEST_SIZE; n++) request(n);
}

/* A field's value; a field line. */
static void note(unsigned field, size_t n)
{
    struct head h = {0};
    uint8_t *p = any_bytes(n);
    h.seen = (uint16_t)any_number(0, UINT16_MAX);
    head_note(&h, field, (struct span){0, (uint16_t)n}, p);
    free(p);
}

void prove_note(void)
{
    //@ loop unroll 1000;
    for (unsigned field = 0; field < FIELDS; field++)
        //@ loop unroll 1000;
        for (size_t n = 0; n <= NOTE_SIZE; n++) note(field, n);
}

static void field_line(size_t n)
{
    struct head h = {0};
    uint8_t *p = any_bytes(n);
    head_field_line(&h, p, n, 0);
    free(p);
}

void prove_field(void)
{
    //@ loop unroll 1000;
    for (size_t n = 1; n <= FIELD_SIZE; n++) field_line(n);
}

/* The head, from every place where it may have stopped. */
static void head(size_t n, size_t line, size_t scan)
{
    struct head h = {0};
    uint8_t *p = any_bytes(n);
    h.begun = any_byte() & 1;
    h.line = (uint16_t)line;
    h.scan = (uint16_t)scan;
    int used = head_parse(&h, p, n);
    //@ assert -501 <= used <= n;
    //@ assert h.line <= n && h.scan <= n;
    free(p);
}

/* At its start, and where it comes to be too long. */
void prove_head(void)
{
    //@ loop unroll 1000;
    for (size_t n = 0; n <= HEAD_SIZE; n++)
        //@ loop unroll 1000;
        for (size_t scan = 0; scan <= n; scan++)
            //@ loop unroll 1000;
            for (size_t line = 0; line <= scan; line++) head(n, line, scan);
    //@ loop unroll 1000;
    for (size_t n = HEAD_MAX - 1; n <= HEAD_MAX + 1; n++)
        //@ loop unroll 1000;
        for (size_t scan = HEAD_MAX - LONG_SIZE; scan < HEAD_MAX; scan++)
            head(n, HEAD_MAX - LONG_SIZE, scan);
}
