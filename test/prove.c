/* prove.c - what Frama-C's EVA is asked: is there an input on which the parsers do what C does not define?
 *
 *     test/prove.sh          runs each prove_* below, on three machine models
 *
 * EVA follows all values at once. Where it says nothing, no input of the sizes here reads or writes outside of an
 * object, reads what nobody wrote, shifts or divides wrongly or overflows a signed integer, and each assertion holds.
 *
 * A buffer's end is its object's end: input of n bytes is the last n of an array, so that p[n] is an alarm. For that n
 * must be one number at a time: `split` has EVA look at each in turn. What is not split is all values together. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"

#include <__fc_builtin.h>

enum {
    FRAME_MOST = 16,  /* the longest head has 14 */
    UNMASK_MOST = 40, /* five steps of eight, and each rest */
    UTF8_MOST = 24,
    SHA1_MOST = 130, /* none, one and two whole blocks, and each way to pad */
    BASE64_MOST = 24,
    KEY_MOST = 32,
    DECIMAL_MOST = 32,
    LINE_MOST = 48, /* a request line or a field line */
    HEAD_MOST = 32, /* a head, from its start */
    CHUNK_MOST = 24,
    TARGET_MOST = 24
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
    //@ assert head <= (int)n;
    if (head <= 0) return;
    //@ assert f.fin <= 1 && f.opcode <= 10 && f.size <= 0x7fffffffffffffff;
    //@ assert f.opcode <= 2 || f.opcode >= 8;
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

/* ===== HTTP head ===== */

void prove_decimal(void)
{
    uint64_t value = 0;
    size_t n = any(0, DECIMAL_MOST);
    int bad;
    //@ split n;
    bad = decimal_parse(any_bytes(n), n, &value);
    //@ assert bad == 0 || bad == -1;
}

/* A head after any lines that there may have been. */
static struct head any_head(void)
{
    struct head h;
    Frama_C_make_unknown((char *)&h, sizeof h);
    return h;
}

void prove_head_request_line(void)
{
    struct head h = any_head();
    size_t n = any(1, LINE_MOST);
    int status;
    //@ split n;
    status = head_request_line(&h, any_bytes(n), n, any(0, HEAD_MAX));
    //@ assert status == 0 || status == -400;
}

void prove_head_field_line(void)
{
    struct head h = any_head();
    size_t n = any(1, LINE_MOST);
    int status;
    //@ split n;
    status = head_field_line(&h, any_bytes(n), n, any(0, HEAD_MAX));
    //@ assert status == 0 || status == -400 || status == -501;
}

void prove_head_parse(void)
{
    struct head h;
    size_t n = any(0, HEAD_MOST);
    //@ split n;
    memset(&h, 0, sizeof h);
    int used = head_parse(&h, any_bytes(n), n);
    //@ assert used >= -501 && used <= (int)n;
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
    //@ assert used >= -1 && used <= (int)n;
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
    w.o.buffer_bytes = any(2048, SIZE_MAX / 2);
    size_t bytes = layout(&w, NULL);
    (void)bytes;
}
