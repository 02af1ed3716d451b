/* prove.c - what Frama-C's EVA is asked: is there an input on which the parsers do what C does not define?
 *
 *     test/prove.sh          runs each prove_* below, on three machine models
 *
 * EVA follows all values at once. Where it says nothing, no input of the sizes here reads or writes outside of an
 * object, reads what nobody wrote, shifts or divides wrongly or overflows a signed integer, and each assertion holds.
 *
 * A buffer's end is its object's end: p[n] is an alarm. For that n must be one number at a time: `split` has EVA look
 * at each in turn. What is not split is all values together.
 *
 * The head is proved in parts. A function that has a contract below is looked at once, with all that its contract
 * allows; who calls it is looked at with the contract in its place, and has to keep what it requires. */
#define EXPORTWS_NO_MAIN
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <__fc_builtin.h>

/* memchr() as a loop: so EVA follows each place at which the byte may be, instead of all at once. */
static void *scan_byte(const void *bytes, int c, size_t n)
{
    const uint8_t *p = bytes;
    for (size_t i = 0; i < n; i++)
        if (p[i] == (uint8_t)c) return (void *)(p + i);
    return NULL;
}

#define memchr scan_byte
#include "../exportws.c"

enum {
    FRAME_MOST = 16,  /* the longest head has 14 */
    UNMASK_MOST = 40, /* five steps of eight, and each rest */
    UTF8_MOST = 24,
    SHA1_MOST = 130, /* none, one and two whole blocks, and each way to pad */
    BASE64_MOST = 24,
    KEY_MOST = 32,
    DECIMAL_MOST = 32,
    NAME_MOST = 26, /* longer than any name that is looked for */
    LIST_MOST = 14, /* Connection, Upgrade, Expect */
    VALUE_MOST = 20,
    HOST_MOST = 20,
    TARGET_MOST = 20,
    LINE_MOST = 40,  /* a request line or a field line */
    HEAD_MOST = 64,  /* a head, from its start */
    RESUME_MOST = 20, /* a head, from anywhere */
    CHUNK_MOST = 16,
    TOKEN_MOST = 16
};

static uint8_t in[256], out[256];

/* Any number in [least, most]. */
static size_t any(size_t least, size_t most)
{
    return (size_t)Frama_C_unsigned_long_interval((unsigned long)least, (unsigned long)most);
}

static uint64_t any64(uint64_t most)
{
    return Frama_C_unsigned_long_long_interval(0, most);
}

/* n bytes of any value, behind which nothing may be read. */
static uint8_t *any_bytes(size_t n)
{
    Frama_C_make_unknown((char *)in, sizeof in);
    return in + sizeof in - n;
}

/* The same, of which EVA does not remember what it has seen: paths that differ in nothing else are one. */
static uint8_t *any_text(size_t n)
{
    uint8_t *p = calloc(n, 1);
    if (!p) exit(1);
    Frama_C_make_unknown((char *)p, n);
    return p;
}

/* Room for n bytes, behind which nothing may be written. */
static uint8_t *room(size_t n)
{
    return out + sizeof out - n;
}

/* ===== Frames ===== */

void prove_frame_decode(void)
{
    struct frame f;
    size_t n = any(0, FRAME_MOST);
    int head;
    //@ split n;
    head = frame_decode(any_bytes(n), n, &f);
    //@ assert head == -1002 || head == 0 || head == 6 || head == 8 || head == 14;
    //@ assert head <= n;
}

/* A payload's length from least to most takes a head of n bytes. */
static void encode_head(uint64_t least, uint64_t most, size_t n)
{
    uint64_t size = Frama_C_unsigned_long_long_interval(least, most);
    size_t written = frame_encode(room(n), (unsigned)any(0, 15), size);
    //@ assert written == n;
}

void prove_frame_encode(void)
{
    encode_head(0, 125, 2);
    encode_head(126, 65535, 4);
    encode_head(65536, UINT64_MAX, 10);
}

void prove_frame_unmask(void)
{
    uint8_t mask[4];
    size_t n = any(0, UNMASK_MOST);
    //@ split n;
    Frama_C_make_unknown((char *)mask, sizeof mask);
    uint8_t *p = any_bytes(n);
    frame_unmask(room(n), p, n, mask, any64(UINT64_MAX));
    frame_unmask(p, p, n, mask, any64(UINT64_MAX));
    if (n > 3) frame_unmask(p - 3, p, n, mask, 0);
}

void prove_close_code(void)
{
    int valid = close_code_valid((unsigned)any(0, UINT_MAX));
    //@ assert valid == 0 || valid == 1;
}

/* ===== UTF-8 ===== */

void prove_utf8(void)
{
    struct utf8 u;
    size_t n = any(0, UTF8_MOST);
    //@ split n;
    Frama_C_make_unknown((char *)&u, sizeof u); /* whatever came before, and more than that */
    int fed = utf8_feed(&u, any_bytes(n), n);
    //@ assert fed == 0 || fed == -1;
    int valid = utf8_valid(any_bytes(n), n);
    //@ assert valid == 0 || valid == 1;
}

/* ===== SHA-1, base64, the key ===== */

void prove_sha1(void)
{
    size_t n = any(0, SHA1_MOST);
    //@ split n;
    sha1(any_bytes(n), n, room(20));
}

void prove_base64(void)
{
    size_t n = any(0, BASE64_MOST);
    //@ split n;
    base64_encode(any_bytes(n), n, (char *)room((n + 2) / 3 * 4));
}

void prove_key(void)
{
    size_t n = any(0, KEY_MOST);
    int valid;
    //@ split n;
    valid = key_valid(any_bytes(n), n);
    //@ assert valid == 0 || (valid == 1 && n == 24);
    if (valid) key_accept(any_bytes(24), (char *)room(28));
}

/* ===== HTTP head: contracts ===== */

/*@ requires \valid_read(p + (0 .. n - 1)) && valid_read_string(lower);
    assigns \result \from p[0 .. n - 1], lower[0 ..];
    ensures 0 <= \result <= 1; */
static int ascii_equal(const uint8_t *p, size_t n, const char *lower);

/*@ requires \valid_read(p + (0 .. n - 1)) && \valid(value);
    assigns \result, *value \from p[0 .. n - 1];
    ensures -1 <= \result <= 0; */
static int decimal_parse(const uint8_t *p, size_t n, uint64_t *value);

/*@ requires \valid_read(p + (0 .. n - 1));
    assigns \result \from p[0 .. n - 1];
    ensures 0 <= \result <= 255; */
static unsigned http_list_flags(const uint8_t *p, size_t n);

/*@ requires \valid_read(p + (0 .. n - 1));
    assigns \result \from p[0 .. n - 1];
    ensures 0 <= \result <= 1; */
static int host_valid(const uint8_t *p, size_t n);

/*@ requires n > 0 && \valid_read(p + (0 .. n - 1)) && \valid_read(method + (0 .. method_size - 1));
    assigns \result \from p[0 .. n - 1], method[0 .. method_size - 1];
    ensures 0 <= \result <= 1; */
static int target_valid(const uint8_t *p, size_t n, const uint8_t *method, size_t method_size);

/*@ requires \valid(h) && field < FIELDS && \valid_read(p + (0 .. value.size - 1));
    assigns \result, h->flags, h->seen, h->host, h->origin, h->key, h->authorization, h->length
        \from *h, field, value, p[0 .. value.size - 1];
    ensures \result == 0 || \result == -400 || \result == -501; */
static int head_note(struct head *h, unsigned field, struct span value, const uint8_t *p);

/*@ requires \valid(h) && n > 0 && \valid_read(p + (0 .. n - 1)) && at + n <= HEAD_MAX;
    assigns \result, h->flags, h->seen, h->host, h->origin, h->key, h->authorization, h->length
        \from *h, at, p[0 .. n - 1];
    ensures \result == 0 || \result == -400 || \result == -501; */
static int head_field_line(struct head *h, const uint8_t *p, size_t n, size_t at);

/*@ requires \valid(h) && n > 0 && \valid_read(p + (0 .. n - 1)) && at + n <= HEAD_MAX;
    assigns \result, h->method, h->target, h->minor, h->begun \from *h, at, p[0 .. n - 1];
    ensures \result == 0 || \result == -400; */
static int head_request_line(struct head *h, const uint8_t *p, size_t n, size_t at);

/* ===== HTTP head: proofs ===== */

void prove_equal(void)
{
    static const char *const names[] = {"http://", "https://", "chunked", "13", "application/octet-stream",
                                        "100-continue", "sec-websocket-version", "", "options"};
    size_t n = any(0, NAME_MOST);
    //@ split n;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        int equal = ascii_equal(any_text(n), n, names[i]);
        //@ assert equal == 0 || equal == 1;
    }
}

void prove_decimal(void)
{
    uint64_t value = 0;
    size_t n = any(0, DECIMAL_MOST);
    int bad;
    //@ split n;
    bad = decimal_parse(any_bytes(n), n, &value);
    //@ assert bad == 0 || bad == -1;
}

void prove_list(void)
{
    size_t n = any(0, LIST_MOST);
    unsigned flags;
    //@ split n;
    flags = http_list_flags(any_text(n), n);
    //@ assert flags <= 255;
}

void prove_host(void)
{
    size_t n = any(0, HOST_MOST);
    int valid;
    //@ split n;
    valid = host_valid(any_text(n), n);
    //@ assert valid == 0 || valid == 1;
}

void prove_target(void)
{
    size_t n = any(1, TARGET_MOST), method_size = any(1, 8);
    int valid;
    //@ split n;
    //@ split method_size;
    valid = target_valid(any_text(n), n, any_bytes(method_size), method_size);
    //@ assert valid == 0 || valid == 1;
}

/* A head after any lines that there may have been. */
static void any_head(struct head *h)
{
    Frama_C_make_unknown((char *)h, sizeof *h);
}

void prove_note(void)
{
    struct head h;
    struct span value;
    size_t n = any(0, VALUE_MOST);
    int status;
    any_head(&h);
    //@ split n;
    value.at = (uint16_t)any(0, HEAD_MAX - n), value.size = (uint16_t)n;
    status = head_note(&h, (unsigned)any(0, FIELDS - 1), value, any_text(n));
    //@ assert status == 0 || status == -400 || status == -501;
}

void prove_field_line(void)
{
    struct head h;
    size_t n = any(1, LINE_MOST);
    int status;
    any_head(&h);
    //@ split n;
    status = head_field_line(&h, any_text(n), n, any(0, HEAD_MAX - n));
    //@ assert status == 0 || status == -400 || status == -501;
}

void prove_request_line(void)
{
    struct head h;
    size_t n = any(1, LINE_MOST);
    int status;
    any_head(&h);
    //@ split n;
    status = head_request_line(&h, any_text(n), n, any(0, HEAD_MAX - n));
    //@ assert status == 0 || status == -400;
}

void prove_head(void)
{
    struct head h;
    size_t n = any(0, HEAD_MOST);
    int used;
    memset(&h, 0, sizeof h);
    //@ split n;
    used = head_parse(&h, any_text(n), n);
    //@ assert -501 <= used <= n;
}

/* Goes on where it stopped, wherever that was. */
void prove_head_resumes(void)
{
    struct head h;
    size_t n = any(0, RESUME_MOST), scan = any(0, RESUME_MOST), line = any(0, RESUME_MOST);
    int used;
    any_head(&h);
    //@ split n;
    //@ split scan;
    //@ split line;
    if (line > scan || scan > n) return;
    h.line = (uint16_t)line, h.scan = (uint16_t)scan;
    used = head_parse(&h, any_text(n), n);
    //@ assert -501 <= used <= n;
}

/* ===== Chunks ===== */

void prove_chunk(void)
{
    struct chunk k;
    size_t data, n = any(0, CHUNK_MOST);
    //@ split n;
    k.state = (uint8_t)any(0, CHUNK_DONE);
    k.digits = (uint8_t)any(0, 15);
    k.trailer = (uint16_t)any(0, HEAD_MAX);
    k.left = any64(UINT64_MAX);
    int used = chunk_feed(&k, any_bytes(n), n, &data);
    //@ assert -1 <= used <= n;
    //@ assert k.state <= CHUNK_DONE;
}

/* ===== Arena ===== */

/* Measures a server of any size that the options allow. */
void prove_layout(void)
{
    struct exportws w;
    w.o.capacity = any(1, 1000000), w.o.handshakes = any(1, 1000000), w.o.pushers = any(1, 100000);
    w.o.per_token = any(1, 1000000), w.o.per_address = any(0, 1000000);
    w.o.max_token_bytes = any(1, 1024), w.o.max_message_bytes = any(1, 1U << 30);
    w.o.max_push_bytes = any(1, 1U << 30);
    w.o.buffer_bytes = any(2048, SIZE_MAX);
    layout(&w, NULL);
}

static uint64_t memory[1 << 20];

/* Places one: what it writes meanwhile stays inside. */
static void layout_place(size_t capacity, size_t handshakes, size_t per_address, size_t token, size_t message)
{
    struct exportws w;
    w.o.capacity = capacity, w.o.handshakes = handshakes, w.o.pushers = 1;
    w.o.per_token = 1, w.o.per_address = per_address;
    w.o.max_token_bytes = token, w.o.max_message_bytes = message, w.o.max_push_bytes = message;
    w.o.buffer_bytes = 2048;
    size_t bytes = layout(&w, NULL);
    //@ assert bytes % 8 == 0 && bytes <= sizeof(memory);
    uint8_t *base = (uint8_t *)memory + sizeof memory - bytes;
    size_t placed = layout(&w, base);
    //@ assert placed == bytes;
    w.inputs[w.input_count].data[w.inputs[w.input_count].size - 1] = 0;
    w.ring.bytes[w.ring.size - 1] = 0;
}

void prove_layout_places(void)
{
    layout_place(1, 1, 0, 1, 1);
    layout_place(1, 1, 1, 1024, 1);
    layout_place(64, 16, 0, 64, 4096);
    layout_place(1000, 256, 5, 63, 65537);
}
