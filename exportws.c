/* exportws - tells browsers how their export is going
 *
 * A browser opens ws://host/app/ws/export-task/{token}; a back end pushes text to that token, or
 * to everybody, by HTTP POST or by a function call. One file, C99 and POSIX.1-2008, nothing else:
 *
 *     cc -o exportws exportws.c
 *
 * The way of a byte. poll() says that a socket is readable (Loop); recv() puts the bytes into the
 * one scratch buffer, or into the input buffer that the connection holds while a unit of it is
 * incomplete (Input). A client's first unit is an HTTP head (HTTP head): the handshake's rules
 * (Client door) refuse it or make it a session (Sessions). From then on its units are frames
 * (Frames) that become messages, pongs and closes (Conversation). A pusher's units are HTTP
 * requests (Push door); their bodies are messages for sessions.
 *
 * The way back. A frame is built once in the stage and goes straight to the socket of each
 * session (Push). Only what a kernel did not take is kept, once, in the buffer (Messages):
 * sessions that still have to send it have a cursor on it and count as references. A message for
 * an absent token is kept the same way until somebody comes or it expires.
 *
 * Who may do what. A lower layer reports (a count, "more", an error), an upper layer acts. Only
 * the session layer changes a session's state; only the loop closes a descriptor: others put a
 * connection on the list of the dead, and the turn ends with burying them. Callbacks run where no
 * shared buffer is in use: the stage is filled and sent without one in between.
 *
 * The map of the memory: one block from the caller, measured and placed by layout(), never grown.
 *
 *     struct exportws    the server: options, counters, list heads, free lists
 *     polls, owners      the poll set and whose entry each is: what every turn looks at
 *     conns              one slot type, three pools: sessions [0, capacity), handshakes, pushers
 *     tokens, buckets    a record for each token that has a session or a message; their hash
 *     names              the token bytes of each session slot
 *     pushes             what a pusher's request has come to
 *     addresses          sessions per peer address (only with per_address)
 *     blocks, links      --buffer: message blocks and how they chain
 *     inputs, scratch    buffers for what is read: a handful for incomplete units, one for all else
 *     stage, answers     buffers for what is written
 *     ring               what other threads have posted
 *
 * Sections: System, Bytes, SHA-1 and SHA-256, Base64, SipHash, UTF-8, HTTP head, Chunks, Targets,
 * Frames, Server, Log, Options, Arena, Timers, Poll set, Messages, Tokens, Keeping, Output,
 * Addresses, Sessions, Push, Input, Conversation, Responses, Client door, Metrics, Push door, Pages,
 * Loop, Doors, API, Program.
 *
 * RFC 6455 (WebSocket), RFC 9110 and 9112 (HTTP), RFC 3629 (UTF-8), RFC 4648 (base64), FIPS 180-4
 * (SHA), RFC 2104 (HMAC). ISC licence: at the end. */

/* ===== System ===== */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _FILE_OFFSET_BITS /* or glibc on 32 bits can't tell the time past 2038, nor lstat() all */
#define _FILE_OFFSET_BITS 64
#define _TIME_BITS 64
#endif
#define _DARWIN_C_SOURCE /* or a Mac hides SO_NOSIGPIPE, below */

#include "exportws.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Where send() can't be told to keep SIGPIPE to itself, the socket is (SO_NOSIGPIPE, in
 * socket_prepare). */
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

enum {
    HEAD_MAX = 8192,        /* a request head; more is 431 */
    BLOCK_BYTES = 256,      /* of the buffer, with the default token size */
    DISCARD_TRIES = 8,
    REPLAY_TRIES = 16,      /* messages looked at for one that only replays keep */
    WAIT_RETRY_MS = 100,    /* who waits for an input buffer is looked at again, */
    WAIT_LATELY_MS = 1000,  /* which in a busy server may take so long */
    INPUT_REST = 160,       /* of a frame: its head, or a control frame that is incomplete */
    PUSHERS_SPARE = 2,      /* slots in which one pusher too many is told so */
    KEEP_ALIVE_MS = 60000,  /* an idle connection at the push door */
    POLL_FEW = 16,          /* so many entries are all polled every turn */
    SWEEP_PIECE = 256,      /* entries polled at a time of those that are cold */
    SWEEP_SHARE = 40,       /* of the time one part in so many may go into sweeps */
    SWEEP_FASTEST_US = 4000, /* the time between two pieces is at least this */
    SWEEP_SLOWEST_US = 6000, /* and at most this, whatever they cost */
    SWEEP_LAZY_MS = 5,       /* but poll() waits so long where turns make for sweeps anyway */
    SWEEP_TURNS = 128,       /* after so many turns it is time, whatever the clock says */
    SWEPT_MOST = 8192,       /* what a sweep costs is the average over about so many entries */
    DENSE_US = 200,          /* turns are dense whose poll() found something as fast as this: */
    DENSE_TURNS = 64,        /* after so many of them only the live are polled, */
    LOOK_TURNS = 16,         /* but in one of so many */
    COOL_MS = 100,          /* a session that has not spoken so long goes cold */
    ACCEPT_RETRY_MS = 1000, /* out of descriptors: when to look again if none of ours was freed */
    STRANGER_MS = 10,       /* so long a pusher has time to show the secret in any case */
    TURN_SENDS = 16384,     /* after so many to sessions what else pushers ask for waits a turn */
    LINE_MAX_BYTES = 400,   /* a log line */
    RESPONSE_MAX = 512      /* a response without its page */
};

#define NONE UINT32_MAX

/* Whether there is anything in the section Pages. */
#ifdef EXPORTWS_NO_PAGES
enum { PAGES = 0 };
#else
enum { PAGES = 1 };
#endif

/* ===== Bytes ===== */

/* Bytes [at, at + size) of a buffer that may move. */
struct span {
    uint16_t at, size;
};

static uint32_t load_be32(const uint8_t p[4])
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint64_t load_le64(const uint8_t p[8])
{
    return (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24 |
           (uint64_t)p[4] << 32 | (uint64_t)p[5] << 40 | (uint64_t)p[6] << 48 | (uint64_t)p[7] << 56;
}

static void store_be(uint8_t *p, size_t n, uint64_t value)
{
    while (n > 0) {
        p[--n] = (uint8_t)(value & 0xff);
        value >>= 8;
    }
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static uint8_t ascii_lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c;
}

static int ascii_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

/* Whether p[0..n) is text[0..n), in any case. */
static int ascii_same(const uint8_t *p, const char *text, size_t n)
{
    size_t i = memcmp(p, text, n) == 0 ? n : 0; /* most write it as it is written here */
    while (i < n && ascii_lower(p[i]) == ascii_lower((uint8_t)text[i])) i++;
    return i == n;
}

/* Whether p[0..n) is a text, in any case. */
static int ascii_equal(const uint8_t *p, size_t n, const char *text)
{
    return n == strlen(text) && ascii_same(p, text, n);
}

/* How many of p[0..n) stand before the first that is below `least`, DEL or, without `high`, above
 * 127. Eight at a time as long as all of them are good. */
static size_t ascii_run(const uint8_t *p, size_t n, uint8_t least, int high)
{
    const uint64_t ones = 0x0101010101010101;
    size_t i = 0;
    for (; n - i >= sizeof ones; i += sizeof ones) {
        uint64_t eight;
        memcpy(&eight, p + i, sizeof eight);
        uint64_t low = (eight - least * ones) & ~eight, del = eight ^ 0x7f * ones;
        if ((low | ((del - ones) & ~del) | (high ? 0 : eight)) & 0x80 * ones) break;
    }
    while (i < n && p[i] >= least && p[i] != 0x7f && (high || p[i] < 128)) i++;
    return i;
}

/* How many of p[0..n) are in a set before the first that is not. A set has a bit for each character
 * below 128. */
static size_t ascii_span(const uint32_t set[4], const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] >= 128 || !(set[p[i] >> 5] >> (p[i] & 31) & 1)) return i;
    return n;
}

static int hex_value(uint8_t c)
{
    if (ascii_digit(c)) return c - '0';
    c = ascii_lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads all of p[0..n) as a decimal; 0, or -1 when it is none. A value too large becomes
 * UINT64_MAX. */
static int decimal_parse(const uint8_t *p, size_t n, uint64_t *value)
{
    uint64_t v = 0;
    if (n == 0) return -1;
    for (size_t i = 0; i < n; i++) {
        if (!ascii_digit(p[i])) return -1;
        uint64_t digit = (uint64_t)(p[i] - '0');
        v = v > (UINT64_MAX - digit) / 10 ? UINT64_MAX : v * 10 + digit;
    }
    *value = v;
    return 0;
}

/* Text under construction: n counts what was asked for, only what fits before size is written. */
struct text {
    char *p;
    size_t n, size;
};

/* memmove(), as for other bytes that are few: of memcpy() a compiler that is asked for small code
 * makes an instruction that takes long to start. */
static void text_bytes(struct text *t, const void *p, size_t n)
{
    size_t room = t->n < t->size ? t->size - t->n : 0;
    size_t fits = n < room ? n : room;
    if (fits > 0) memmove(t->p + t->n, p, fits);
    t->n += n;
}

static void text_add(struct text *t, const char *s)
{
    text_bytes(t, s, strlen(s));
}

static void text_decimal(struct text *t, uint64_t value)
{
    char digits[20];
    size_t at = sizeof digits;
    do {
        uint32_t nine = (uint32_t)(value % 1000000000);
        value /= 1000000000;
        const size_t end = value > 0 ? at - 9 : at - 1;
        while (at > end || nine > 0) {
            uint32_t tenth = (uint32_t)((uint64_t)nine * 0xcccccccd >> 35); /* a division is slow */
            digits[--at] = (char)('0' + (nine - tenth * 10));
            nine = tenth;
        }
    } while (value > 0);
    text_bytes(t, digits + at, sizeof digits - at);
}

/* Two digits, for dates. */
static void text_two(struct text *t, int value)
{
    const char digits[2] = {(char)('0' + value / 10 % 10), (char)('0' + value % 10)};
    text_bytes(t, digits, 2);
}

/* Bytes from outside, so that no reader of the line can take them for anything else: printable
 * ASCII as it is but for space, quotes, '=' and backslash; all else as \xHH. */
static void text_escaped(struct text *t, const uint8_t *p, size_t n)
{
    static const char hex[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        const char code[4] = {'\\', 'x', hex[p[i] >> 4], hex[p[i] & 15]};
        int plain = p[i] > ' ' && p[i] < 0x7f && p[i] != '"' && p[i] != '=' && p[i] != '\\';
        text_bytes(t, plain ? (const void *)(p + i) : (const void *)code, plain ? 1 : 4);
    }
}

/* Ends the text with a NUL, cutting it to fit. */
static void text_end(struct text *t)
{
    if (t->size > 0) t->p[t->n < t->size ? t->n : t->size - 1] = '\0';
}

/* ===== SHA-1 and SHA-256 (FIPS 180-4) ===== */

/* What tells one from the other: the state at the start, and what a block, the first 16 words of
 * w, does to it. */
struct sha {
    void (*block)(uint32_t state[8], uint32_t w[80]);
    uint32_t start[8];
};

static uint32_t rotate_left(uint32_t x, unsigned by)
{
    return x << by | x >> (32 - by);
}

static void sha1_block(uint32_t state[8], uint32_t w[80])
{
    static const uint32_t constant[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (unsigned i = 16; i < 80; i++)
        w[i] = rotate_left(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (unsigned i = 0; i < 80; i++) {
        uint32_t f = i < 20 ? (b & c) | (~b & d)
                   : i < 40 || i >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
        uint32_t next = rotate_left(a, 5) + f + e + constant[i / 20] + w[i];
        e = d, d = c, c = rotate_left(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* x rotated right by a, and by b, and the two joined. */
static uint32_t sha256_mix(uint32_t x, unsigned a, unsigned b)
{
    return rotate_left(x, 32 - a) ^ rotate_left(x, 32 - b);
}

static void sha256_block(uint32_t state[8], uint32_t w[80])
{
    static const uint32_t constant[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t v[8];
    memcpy(v, state, sizeof v);
    for (unsigned i = 0; i < 64; i++) {
        if (i >= 16)
            w[i] = (sha256_mix(w[i - 2], 17, 19) ^ w[i - 2] >> 10) + w[i - 7] +
                   (sha256_mix(w[i - 15], 7, 18) ^ w[i - 15] >> 3) + w[i - 16];
        uint32_t t = v[7] + (sha256_mix(v[4], 6, 11) ^ rotate_left(v[4], 7)) +
                     (v[6] ^ (v[4] & (v[5] ^ v[6]))) + constant[i] + w[i];
        uint32_t u = (sha256_mix(v[0], 2, 13) ^ rotate_left(v[0], 10)) +
                     ((v[0] & v[1]) | (v[2] & (v[0] | v[1])));
        memmove(v + 1, v, sizeof v - sizeof *v);
        v[4] += t;
        v[0] = t + u;
    }
    for (unsigned i = 0; i < 8; i++) state[i] += v[i];
}

static const struct sha sha1 = {
    sha1_block, {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}};
static const struct sha sha256 = {sha256_block,
                                  {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
                                   0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};

/* The digest of before[0..64) (NULL: of nothing) and p[0..n), which may be where it goes. Of SHA-1
 * it is the first 20 bytes. */
static void sha_digest(const struct sha *kind, const uint8_t *before, const uint8_t *p, size_t n,
                       uint8_t digest[32])
{
    const uint64_t bits = ((uint64_t)n + (before ? 64 : 0)) * 8;
    uint32_t state[8], w[80];
    uint8_t mark = 0x80; /* stands behind the text */
    memcpy(state, kind->start, sizeof state);
    for (size_t here = 64; here >= 56;) { /* the length needs the last 8 bytes */
        uint8_t block[64] = {0};
        here = before ? sizeof block : smaller(n, sizeof block);
        memcpy(block, before ? before : p, here);
        if (!before) p += here, n -= here;
        before = NULL;
        if (here < sizeof block) block[here] = mark, mark = 0;
        if (here < 56) store_be(block + 56, 8, bits);
        for (size_t i = 0; i < 16; i++) w[i] = load_be32(block + 4 * i);
        kind->block(state, w);
    }
    for (size_t i = 0; i < 8; i++) store_be(digest + 4 * i, 4, state[i]);
}

/* HMAC-SHA-256 of p[0..n) (RFC 2104). */
static void hmac_sha256(const uint8_t *key, size_t key_size, const uint8_t *p, size_t n,
                        uint8_t mac[32])
{
    uint8_t block[64] = {0};
    if (key_size > sizeof block) sha_digest(&sha256, NULL, key, key_size, block);
    else memcpy(block, key, key_size);
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < sizeof block; i++) block[i] ^= pass == 0 ? 0x36 : 0x36 ^ 0x5c;
        sha_digest(&sha256, block, p, n, mac);
        p = mac, n = 32;
    }
}

/* ===== Base64 (RFC 4648, section 4) ===== */

static const char base64_alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Writes p[0..n) as 4 * ceil(n / 3) characters. */
static void base64_encode(const uint8_t *p, size_t n, char *out)
{
    for (; n > 0; out += 4) {
        uint32_t three = (uint32_t)p[0] << 16 | (n > 1 ? (uint32_t)p[1] << 8 : 0) |
                         (n > 2 ? p[2] : 0U);
        out[0] = base64_alphabet[three >> 18];
        out[1] = base64_alphabet[three >> 12 & 63];
        out[2] = (char)(n > 1 ? base64_alphabet[three >> 6 & 63] : '=');
        out[3] = (char)(n > 2 ? base64_alphabet[three & 63] : '=');
        if (n <= 3) return;
        p += 3, n -= 3;
    }
}

/* Whether p[0..n) is a Sec-WebSocket-Key: the base64 of 16 bytes (RFC 6455, 4.1). The last letter's
 * spare bits may be what they like, as in that section's own example. */
static int key_valid(const uint8_t *p, size_t n)
{
    static const uint32_t alphabet[4] = {0, 0x03ff8800, 0x07fffffe, 0x07fffffe};
    return n == 24 && ascii_span(alphabet, p, n) == 22 && p[22] == '=' && p[23] == '=';
}

/* Sec-WebSocket-Accept for a key (RFC 6455, 4.2.2). */
static void key_accept(const uint8_t key[24], char accept[28])
{
    uint8_t joined[60], digest[32];
    memcpy(joined, key, 24);
    memcpy(joined + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    sha_digest(&sha1, NULL, joined, sizeof joined, digest);
    base64_encode(digest, 20, accept);
}

/* ===== SipHash-2-4: a keyed hash, so that chosen tokens can't pile up in one bucket ===== */

static uint64_t rotate64(uint64_t x, unsigned by)
{
    return x << by | x >> (64 - by);
}

static void sip_rounds(uint64_t v[4], unsigned n)
{
    uint64_t a = v[0], b = v[1], c = v[2], d = v[3];
    for (; n > 0; n--) {
        a += b, b = rotate64(b, 13) ^ a, a = rotate64(a, 32);
        c += d, d = rotate64(d, 16) ^ c;
        a += d, d = rotate64(d, 21) ^ a;
        c += b, b = rotate64(b, 17) ^ c, c = rotate64(c, 32);
    }
    v[0] = a, v[1] = b, v[2] = c, v[3] = d;
}

static uint64_t siphash(const uint8_t key[16], const uint8_t *p, size_t n)
{
    const uint64_t k0 = load_le64(key), k1 = load_le64(key + 8);
    uint64_t v[4] = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261,
                     k1 ^ 0x7465646279746573};
    uint8_t last[8] = {0};
    size_t whole = n / 8 * 8;
    for (size_t at = 0; at <= whole; at += 8) {
        if (at == whole) {
            if (n > whole) memmove(last, p + whole, n - whole);
            last[7] = (uint8_t)(n & 0xff);
        }
        uint64_t m = load_le64(at == whole ? last : p + at);
        v[3] ^= m;
        sip_rounds(v, 2);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    sip_rounds(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* ===== UTF-8 (RFC 3629) ===== */

/* Between two bytes: how many continuation bytes are still needed, and the range of the next. All
 * zero: at a character's start. */
struct utf8 {
    uint8_t need, low, high;
};

/* The first byte of a character of more than one: what may follow. 0, or -1. */
static int utf8_lead(struct utf8 *u, uint8_t c)
{
    if (c < 0xc2 || c > 0xf4) return -1;
    u->need = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    u->low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    u->high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    return 0;
}

/* Checks the next n bytes of a text: 0 as far as they go, -1 at the first byte that no text has
 * there. */
static int utf8_feed(struct utf8 *u, const uint8_t *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t words[4];
        if (u->need == 0 && n - i >= sizeof words) {
            memcpy(words, p + i, sizeof words);
            if (((words[0] | words[1] | words[2] | words[3]) & 0x8080808080808080) == 0) {
                i += sizeof words;
                continue;
            }
        }
        if (u->need == 0 && n - i >= sizeof *words) {
            memcpy(words, p + i, sizeof *words);
            if ((words[0] & 0x8080808080808080) == 0) {
                i += sizeof *words;
                continue;
            }
        }
        uint8_t c = p[i++];
        if (u->need > 0) {
            if (c < u->low || c > u->high) return -1;
            u->need--, u->low = 0x80, u->high = 0xbf;
        } else if (c >= 0x80 && utf8_lead(u, c) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Whether p[0..n) is a whole text. */
static int utf8_valid(const uint8_t *p, size_t n)
{
    struct utf8 u = {0, 0, 0};
    return utf8_feed(&u, p, n) == 0 && u.need == 0;
}

/* ===== HTTP head (RFC 9112, sections 2 to 7) ===== */

enum head_flag {
    HEAD_CLOSE = 1,       /* Connection: close */
    HEAD_UPGRADE = 2,     /* Connection: upgrade */
    HEAD_WEBSOCKET = 4,   /* Upgrade: websocket */
    HEAD_CHUNKED = 8,     /* Transfer-Encoding: chunked */
    HEAD_CONTINUE = 16,   /* Expect: 100-continue */
    HEAD_BINARY = 32,     /* Content-Type: application/octet-stream */
    HEAD_VERSION_13 = 64, /* Sec-WebSocket-Version: 13 */
    HEAD_IDS = 128        /* Sec-WebSocket-Protocol: exportws.v1 */
};

enum head_field {
    FIELD_HOST, FIELD_ORIGIN, FIELD_KEY, FIELD_VERSION, FIELD_LENGTH, FIELD_AUTHORIZATION,
    FIELD_TYPE, FIELD_CONNECTION, FIELD_UPGRADE, FIELD_ENCODING, FIELD_EXPECT, FIELD_PROTOCOL,
    FIELD_FORWARDED, FIELDS
};

enum verb { VERB_OTHER, VERB_GET, VERB_HEAD, VERB_POST, VERB_DELETE, VERBS };

/* A request head as far as it has been read; all zero at its start. Spans count from the head's
 * first byte. */
struct head {
    uint16_t line, scan;  /* the line being read starts, and has been looked at up to */
    uint8_t begun;        /* the request line has been read */
    uint8_t minor;        /* HTTP/1.minor */
    uint8_t verb;         /* the method, if it is one of ours */
    uint16_t flags, seen; /* head_flag; 1 << head_field for each that was there */
    struct span method, target, fields, host, origin, key, authorization, forwarded;
    uint64_t length; /* Content-Length */
};

/* Sets of characters. */
static const uint32_t
    http_tchars[4] = {0, 0x03ff6cfa, 0xc7fffffe, 0x57ffffff}, /* a token's (RFC 9110, 5.6.2) */
    http_hosts[4] = {0, 0x2fff7fd2, 0x87fffffe, 0x47fffffe}; /* a host's but % (RFC 3986, 3.2.2) */

static int http_tchar(uint8_t c)
{
    return ascii_span(http_tchars, &c, 1) > 0;
}

/* What a field's value may have. */
static int http_text(uint8_t c)
{
    return (c >= ' ' && c != 0x7f) || c == '\t';
}

static int http_blank(uint8_t c)
{
    return c == ' ' || c == '\t';
}

/* Takes the blanks off both ends of *p[0..*n). */
static void http_trim(const uint8_t **p, size_t *n)
{
    while (*n > 0 && http_blank((*p)[*n - 1])) --*n;
    while (*n > 0 && http_blank(**p)) ++*p, --*n;
}

/* Takes the next member off a comma-separated list (RFC 9110, 5.6.1): 1 and the member, or 0 at its
 * end. */
static int http_list_next(const uint8_t **list, size_t *left, const uint8_t **member, size_t *size)
{
    const uint8_t *comma;
    if (*left == 0) return 0;
    comma = memchr(*list, ',', *left);
    *member = *list;
    *size = comma ? (size_t)(comma - *list) : *left;
    *list += *size + (comma != NULL);
    *left -= *size + (comma != NULL);
    http_trim(member, size);
    return 1;
}

/* The flags of all members of a list that are named here. */
static unsigned http_list_flags(const uint8_t *p, size_t n)
{
    static const struct {
        const char *name;
        uint8_t flag;
    } rows[] = {{"close", HEAD_CLOSE},
                {"upgrade", HEAD_UPGRADE},
                {"websocket", HEAD_WEBSOCKET},
                {"100-continue", HEAD_CONTINUE}};
    const uint8_t *member;
    size_t size;
    unsigned flags = 0;
    while (http_list_next(&p, &n, &member, &size))
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            if (ascii_equal(member, size, rows[i].name)) flags |= rows[i].flag;
    return flags;
}

/* HEAD_IDS when a list of subprotocols has ours: their names' case counts (RFC 6455, 11.3.4). */
static unsigned http_list_ids(const uint8_t *p, size_t n)
{
    const uint8_t *member;
    size_t size;
    unsigned flags = 0;
    while (http_list_next(&p, &n, &member, &size))
        if (size == 11 && memcmp(member, "exportws.v1", 11) == 0) flags = HEAD_IDS;
    return flags;
}

/* The host of HOST[:PORT] or [V6][:PORT]: its length. */
static size_t host_size(const uint8_t *p, size_t n)
{
    const uint8_t *end = n > 0 && *p == '[' ? memchr(p, ']', n) : memchr(p, ':', n);
    if (!end) return n;
    return (size_t)(end - p) + (*end == ']');
}

/* Whether p[0..n) is HOST[:PORT] or [V6][:PORT] (RFC 3986, 3.2.2); the host may be empty. */
static int host_valid(const uint8_t *p, size_t n)
{
    size_t size = host_size(p, n), i = n > 0 && *p == '[';
    if (i > 0 && (size < 3 || p[--size] != ']')) return 0;
    while ((i += ascii_span(http_hosts, p + i, size - i)) < size) {
        if (p[i] != '%' || size - i < 3 || hex_value(p[i + 1]) < 0 || hex_value(p[i + 2]) < 0) return 0;
        i += 3;
    }
    i += n > 0 && *p == '[';
    if (i < n && p[i++] != ':') return 0;
    while (i < n && ascii_digit(p[i])) i++;
    return i == n;
}

/* Takes note of one header field that matters here. 0, or -status. */
static int head_note(struct head *h, unsigned field, struct span value, const uint8_t *p)
{
    const unsigned lists = 1U << FIELD_CONNECTION | 1U << FIELD_UPGRADE | 1U << FIELD_EXPECT |
                           1U << FIELD_PROTOCOL | 1U << FIELD_FORWARDED;
    const uint8_t *media;
    size_t n = value.size;
    unsigned flags = 0;
    if ((h->seen & 1U << field) && !(lists & 1U << field)) return -400;
    h->seen = (uint16_t)(h->seen | 1U << field);
    switch (field) {
    case FIELD_HOST: h->host = value; return host_valid(p, n) ? 0 : -400;
    case FIELD_ORIGIN: h->origin = value; return 0;
    case FIELD_KEY: h->key = value; return 0;
    case FIELD_AUTHORIZATION: h->authorization = value; return 0;
    case FIELD_FORWARDED: h->forwarded = value; return 0; /* of several lines the last */
    case FIELD_LENGTH: return decimal_parse(p, n, &h->length) < 0 ? -400 : 0;
    case FIELD_ENCODING:
        if (!ascii_equal(p, n, "chunked")) return -501;
        flags = HEAD_CHUNKED;
        break;
    case FIELD_VERSION: flags = ascii_equal(p, n, "13") ? HEAD_VERSION_13 : 0; break;
    case FIELD_TYPE:
        media = memchr(p, ';', n);
        if (media) n = (size_t)(media - p);
        http_trim(&p, &n);
        flags = ascii_equal(p, n, "application/octet-stream") ? HEAD_BINARY : 0;
        break;
    case FIELD_PROTOCOL: flags = http_list_ids(p, n); break;
    case FIELD_UPGRADE: flags = http_list_flags(p, n) & HEAD_WEBSOCKET; break;
    case FIELD_EXPECT: flags = http_list_flags(p, n) & HEAD_CONTINUE; break;
    default: flags = http_list_flags(p, n) & (HEAD_CLOSE | HEAD_UPGRADE); break;
    }
    h->flags = (uint16_t)(h->flags | flags);
    return 0;
}

/* A field line p[0..n), which starts `at` bytes into the head. 0, or -status. */
static int head_field_line(struct head *h, const uint8_t *p, size_t n, size_t at)
{
    static const struct {
        uint8_t size;
        char name[23];
    } names[FIELDS] = {[FIELD_HOST] = {4, "Host"},
                       [FIELD_ORIGIN] = {6, "Origin"},
                       [FIELD_KEY] = {17, "Sec-WebSocket-Key"},
                       [FIELD_VERSION] = {21, "Sec-WebSocket-Version"},
                       [FIELD_LENGTH] = {14, "Content-Length"},
                       [FIELD_AUTHORIZATION] = {13, "Authorization"},
                       [FIELD_TYPE] = {12, "Content-Type"},
                       [FIELD_CONNECTION] = {10, "Connection"},
                       [FIELD_UPGRADE] = {7, "Upgrade"},
                       [FIELD_ENCODING] = {17, "Transfer-Encoding"},
                       [FIELD_EXPECT] = {6, "Expect"},
                       [FIELD_PROTOCOL] = {22, "Sec-WebSocket-Protocol"},
                       [FIELD_FORWARDED] = {15, "X-Forwarded-For"}};
    const uint8_t *value = memchr(p, ':', n);
    size_t name = value ? (size_t)(value - p) : 0, size = n - name - 1;
    unsigned field = 0;
    while (field < FIELDS &&
           !(names[field].size == name && ascii_same(p, names[field].name, name)))
        field++;
    if (field == FIELDS) return name > 0 && ascii_span(http_tchars, p, name) == name ? 0 : -400;
    value++;
    http_trim(&value, &size);
    struct span span = {(uint16_t)(at + (size_t)(value - p)), (uint16_t)size};
    return head_note(h, field, span, value);
}

/* The authority of an absolute-form target: 1 and where it stands, or 0 for a target of another
 * form. */
static int target_authority(const uint8_t *p, size_t n, size_t *at, size_t *size)
{
    size_t end;
    *at = 0;
    if (*p == '/') return 0;
    *at = n > 7 && ascii_same(p, "http://", 7) ? 7 : n > 8 && ascii_same(p, "https://", 8) ? 8 : 0;
    if (*at == 0) return 0;
    end = *at;
    while (end < n && p[end] != '/' && p[end] != '?') end++;
    *size = end - *at;
    return 1;
}

/* Whether a target has a form that its method may have (RFC 9112, 3.2). */
static int target_valid(const uint8_t *p, size_t n, const uint8_t *method, size_t method_size)
{
    size_t at, size;
    if (memchr(p, '#', n)) return 0;
    if (*p == '/') return 1;
    if (target_authority(p, n, &at, &size))
        return host_size(p + at, size) > 0 && host_valid(p + at, size);
    return (n == 1 && *p == '*' && ascii_equal(method, method_size, "options")) ||
           ascii_equal(method, method_size, "connect");
}

/* Which method stands in p[0..n), with the blank behind it. */
static uint8_t method_verb(const uint8_t *p, size_t n)
{
    static const char names[VERBS][8] = {"", "GET ", "HEAD ", "POST ", "DELETE "};
    uint8_t verb = VERBS - 1;
    while (verb > 0 && !(n < 8 && memcmp(p, names[verb], n) == 0)) verb--;
    return verb;
}

/* The request line p[0..n), which starts `at` bytes into the head. 0, or -status. */
static int head_request_line(struct head *h, const uint8_t *p, size_t n, size_t at)
{
    size_t method = ascii_span(http_tchars, p, n), end = method + 1;
    if (method == 0 || method == n || p[method] != ' ') return -400;
    end += ascii_run(p + end, n - end, '!', 0);
    if (end == method + 1 || n - end != 9 || memcmp(p + end, " HTTP/1.", 8) != 0 ||
        !ascii_digit(p[n - 1]))
        return -400;
    if (!target_valid(p + method + 1, end - method - 1, p, method)) return -400;
    h->method = (struct span){(uint16_t)at, (uint16_t)method};
    h->verb = method_verb(p, method + 1);
    h->target = (struct span){(uint16_t)(at + method + 1), (uint16_t)(end - method - 1)};
    h->minor = p[n - 1] > '0';
    h->begun = 1;
    return 0;
}

/* Looks at the head's bytes up to the end of the next line. Returns where that line ends (its LF
 * excluded), 0: more is needed, or -400 at a byte that no line may have. */
static int head_scan(struct head *h, const uint8_t *p, size_t n)
{
    size_t at = h->scan + ascii_run(p + h->scan, n - h->scan, ' ', 1);
    while (at < n && p[at] == '\t') at += 1 + ascii_run(p + at + 1, n - at - 1, ' ', 1);
    h->scan = (uint16_t)at; /* a CR is looked at again, with what follows it */
    if (at < n && p[at] != '\r') return -400;
    if (n - at < 2) return 0;
    return p[at + 1] == '\n' ? (int)at + 1 : -400;
}

/* What all heads must have. A target that names a host counts instead of the Host field (RFC 9112,
 * 3.2.2). 0, or -status. */
static int head_check(struct head *h, const uint8_t *p)
{
    const unsigned both = 1U << FIELD_LENGTH | 1U << FIELD_ENCODING;
    size_t at, size;
    if (h->minor > 0 && !(h->seen & 1U << FIELD_HOST)) return -400;
    if (target_authority(p + h->target.at, h->target.size, &at, &size))
        h->host = (struct span){(uint16_t)(h->target.at + at), (uint16_t)size};
    if (h->minor == 0 && (h->flags & HEAD_CHUNKED)) return -400; /* its framing can't be trusted */
    return (h->seen & both) == both ? -400 : 0;
}

/* Reads a request head from p[0..n), going on where it stopped: the same bytes must stand before
 * the new ones. Returns the head's length, 0: more is needed, or -status to refuse it with: 400,
 * 431, 501. */
static int head_parse(struct head *h, const uint8_t *p, size_t n)
{
    const size_t limit = n < HEAD_MAX ? n : HEAD_MAX;
    int end, status;
    while ((end = head_scan(h, p, limit)) > 0) {
        const uint8_t *line = p + h->line;
        size_t size = (size_t)end - 1 - h->line, at = h->line;
        h->line = h->scan = (uint16_t)(end + 1);
        if (size == 0 && !h->begun)
            continue; /* an empty line before the request is forgiven (RFC 9112, 2.2) */
        if (size == 0) {
            status = head_check(h, p);
            return status < 0 ? status : end + 1;
        }
        if (h->begun) {
            status = head_field_line(h, line, size, at);
        } else {
            status = head_request_line(h, line, size, at);
            h->fields.at = h->line;
        }
        if (status < 0) return status;
    }
    return end < 0 ? end : n >= HEAD_MAX ? -431 : 0;
}

/* ===== Chunks (RFC 9112, section 7.1) ===== */

enum chunk_state {
    CHUNK_SIZE, CHUNK_BLANK, CHUNK_EXTENSION, CHUNK_SIZE_LF, CHUNK_DATA, CHUNK_CR, CHUNK_LF,
    CHUNK_TRAILER,
    CHUNK_TRAILER_NAME, CHUNK_TRAILER_VALUE, CHUNK_TRAILER_LF, CHUNK_LAST_LF, CHUNK_DONE
};

/* A chunked body between two bytes; all zero at its start. */
struct chunk {
    uint8_t state, digits;
    uint16_t
        trailer;   /* bytes of extensions and trailers, which are read past but not without end */
    uint64_t left; /* of the chunk's data */
};

/* Behind a chunk's size. */
static int chunk_blank_byte(uint8_t c)
{
    if (c == '\r') return CHUNK_SIZE_LF;
    return c == ';' ? CHUNK_EXTENSION : http_blank(c) ? CHUNK_BLANK : -1;
}

static int chunk_size_byte(struct chunk *k, uint8_t c)
{
    int digit = hex_value(c);
    if (digit >= 0 && k->digits < 15) {
        k->left = k->left << 4 | (unsigned)digit;
        k->digits++;
        return CHUNK_SIZE;
    }
    if (k->digits == 0 || digit >= 0) return -1;
    return chunk_blank_byte(c);
}

/* The state after a byte that is not data, or -1 when no chunked body has it there. */
static int chunk_step(struct chunk *k, uint8_t c)
{
    switch (k->state) {
    case CHUNK_SIZE: return chunk_size_byte(k, c);
    case CHUNK_BLANK: return chunk_blank_byte(c);
    case CHUNK_EXTENSION:
        return c == '\r' ? CHUNK_SIZE_LF : http_text(c) ? CHUNK_EXTENSION : -1;
    case CHUNK_SIZE_LF: return c != '\n' ? -1 : k->left > 0 ? CHUNK_DATA : CHUNK_TRAILER;
    case CHUNK_CR: return c == '\r' ? CHUNK_LF : -1;
    case CHUNK_LF: k->digits = 0; return c == '\n' ? CHUNK_SIZE : -1;
    case CHUNK_TRAILER: return c == '\r' ? CHUNK_LAST_LF : http_tchar(c) ? CHUNK_TRAILER_NAME : -1;
    case CHUNK_TRAILER_NAME: return c == ':' ? CHUNK_TRAILER_VALUE : http_tchar(c) ? k->state : -1;
    case CHUNK_TRAILER_VALUE:
        return c == '\r' ? CHUNK_TRAILER_LF : http_text(c) ? CHUNK_TRAILER_VALUE : -1;
    case CHUNK_TRAILER_LF: return c == '\n' ? CHUNK_TRAILER : -1;
    default: return c == '\n' ? CHUNK_DONE : -1; /* CHUNK_LAST_LF */
    }
}

/* Reads on in p[0..n). Returns how many bytes it used, -1 when they are no chunked body. *data is
 * how many of the last bytes used are the body's: it stops behind every piece of data, and when it
 * is done. */
static int chunk_feed(struct chunk *k, const uint8_t *p, size_t n, size_t *data)
{
    size_t i = 0;
    *data = 0;
    while (i < n && k->state != CHUNK_DONE) {
        if (k->state == CHUNK_DATA) {
            *data = n - i < k->left ? n - i : (size_t)k->left;
            k->left -= *data;
            if (k->left == 0) k->state = CHUNK_CR;
            return (int)(i + *data);
        }
        int extra = k->state == CHUNK_BLANK || k->state == CHUNK_EXTENSION ||
                    k->state == CHUNK_TRAILER_NAME || k->state == CHUNK_TRAILER_VALUE;
        int next = extra && ++k->trailer > HEAD_MAX ? -1 : chunk_step(k, p[i++]);
        if (next < 0) return -1;
        k->state = (uint8_t)next;
    }
    return (int)i;
}

/* How much of a chunk's data is still to come, as far as its size is known. */
static uint64_t chunk_rest(const struct chunk *k)
{
    return k->state == CHUNK_DATA ? k->left : 0;
}

/* ===== Targets (RFC 9112, section 3.2; RFC 3986) ===== */

/* Percent-decodes p[0..n) into out[0..size). Returns the length, -400 for bad encoding, NUL or '/'
 * in it, -414 when it does not fit. */
static int token_decode(const uint8_t *p, size_t n, uint8_t *out, size_t size)
{
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t c = p[i];
        if (c == '%') {
            int high = n - i > 2 ? hex_value(p[i + 1]) : -1,
                low = n - i > 2 ? hex_value(p[i + 2]) : -1;
            if (high < 0 || low < 0) return -400;
            c = (uint8_t)(high << 4 | low);
            i += 2;
        }
        if (c == '\0' || c == '/') return -400;
        if (used < size) out[used] = c;
        used++;
    }
    return used > size ? -414 : (int)used;
}

/* Whether an Origin (SCHEME://HOST[:PORT]) names the host of a Host header, whatever the ports. */
static int origin_is_host(const uint8_t *origin, size_t origin_n, const uint8_t *host,
                          size_t host_n)
{
    size_t at = 0, size;
    while (at + 3 <= origin_n && memcmp(origin + at, "://", 3) != 0) at++;
    if (at + 3 > origin_n) return 0;
    origin += at + 3;
    size = host_size(origin, origin_n - at - 3);
    if (size == 0 || size != host_size(host, host_n)) return 0;
    return ascii_same(origin, (const char *)host, size);
}

/* Whether two secrets are the same, in a time that depends on the given one's length only. */
static int secret_equal(const uint8_t *given, size_t n, const char *secret)
{
    size_t size = strlen(secret), at = 0;
    unsigned differ = n != size;
    for (size_t i = 0; i < n; i++) {
        differ |= (unsigned)(given[i] ^ (uint8_t)secret[at]);
        if (at < size) at++;
    }
    return differ == 0;
}

/* Whether a signature is the base64url, without padding, of the HMAC-SHA-256 of a text with one of
 * the first two lines of `secrets`. An empty line is no secret. */
static int signature_valid(const char *signature, const char *text, const char *secrets)
{
    int valid = 0;
    for (unsigned line = 0; line < 2; line++) {
        uint8_t mac[32];
        char want[44];
        secrets += strspn(secrets, "\r\n");
        size_t n = strcspn(secrets, "\r\n");
        hmac_sha256((const uint8_t *)secrets, n, (const uint8_t *)text, strlen(text), mac);
        base64_encode(mac, sizeof mac, want);
        for (unsigned i = 0; i < 43; i++)
            want[i] = (char)(want[i] == '+' ? '-' : want[i] == '/' ? '_' : want[i]);
        want[43] = '\0';
        valid |= n > 0 && secret_equal((const uint8_t *)signature, strlen(signature), want);
        secrets += n;
    }
    return valid;
}

/* ===== Frames (RFC 6455, section 5) ===== */

enum opcode {
    OP_CONTINUATION = 0,
    OP_TEXT = 1,
    OP_BINARY = 2,
    OP_CLOSE = 8,
    OP_PING = 9,
    OP_PONG = 10
};
enum {
    FRAME_HEAD_MAX = 14,
    CONTROL_MAX = 125,
    MESSAGE_HEAD_MAX = FRAME_HEAD_MAX + 21 /* with an id and a newline */
};

struct frame {
    uint8_t fin, opcode, mask[4];
    uint64_t size; /* of the payload */
};

/* Reads a client's frame head from p[0..n): its length, 0: more is needed, or -1002. */
static int frame_decode(const uint8_t *p, size_t n, struct frame *f)
{
    if (n < 1) return 0;
    f->fin = p[0] >> 7;
    f->opcode = p[0] & 15;
    int control = f->opcode >= OP_CLOSE;
    if ((p[0] & 0x70) || (f->opcode > OP_BINARY && !control) || f->opcode > OP_PONG ||
        (control && !f->fin))
        return -1002;
    if (n < 2) return 0;
    size_t size = p[1] & 127U, extended = size == 126 ? 2 : size == 127 ? 8 : 0;
    if (!(p[1] & 0x80) || (control && size > CONTROL_MAX)) return -1002;
    if (n < 2 + extended + 4) return 0;
    f->size = extended > 0 ? 0 : size;
    for (size_t i = 0; i < extended; i++) f->size = f->size << 8 | p[2 + i];
    if (f->size >> 63 || (extended == 2 && f->size < 126) || (extended == 8 && f->size < 65536))
        return -1002;
    memcpy(f->mask, p + 2 + extended, 4);
    return (int)(2 + extended + 4);
}

/* The length of an unmasked frame head for a payload of `size` bytes. */
static size_t frame_head_size(uint64_t size)
{
    return size < 126 ? 2 : size < 65536 ? 4 : 10;
}

/* Writes the head of an unmasked, final frame to out[0..frame_head_size(size)). Returns that
 * length. */
static size_t frame_encode(uint8_t *out, unsigned opcode, uint64_t size)
{
    size_t n = frame_head_size(size);
    out[0] = (uint8_t)(0x80 | opcode);
    out[1] = n == 2 ? (uint8_t)size : n == 4 ? 126 : 127;
    store_be(out + 2, n - 2, size);
    return n;
}

/* Unmasks src[0..n) into dst, which may be the same or stand before src; phase is how many bytes of
 * the payload came before. 16 bytes a step: each is read before what it overlaps is written. */
static void frame_unmask(uint8_t *dst, const uint8_t *src, size_t n, const uint8_t mask[4],
                         uint64_t phase)
{
    uint8_t turned[8];
    uint64_t key, word, next;
    size_t i = 0;
    for (unsigned k = 0; k < 8; k++) turned[k] = mask[(phase + k) & 3];
    memcpy(&key, turned, sizeof key);
    for (; n - i >= 2 * sizeof word; i += 2 * sizeof word) {
        memcpy(&word, src + i, sizeof word);
        memcpy(&next, src + i + sizeof word, sizeof word);
        word ^= key, next ^= key;
        memcpy(dst + i, &word, sizeof word);
        memcpy(dst + i + sizeof word, &next, sizeof word);
    }
    if (n - i >= sizeof word) {
        memcpy(&word, src + i, sizeof word);
        word ^= key;
        memcpy(dst + i, &word, sizeof word);
        i += sizeof word;
    }
    for (; i < n; i++) dst[i] = src[i] ^ turned[i & 7];
}

/* Whether an endpoint may send this close code (RFC 6455, 7.4; the registry's 1012 to 1014). */
static int close_code_valid(unsigned code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

/* ===== Server ===== */

enum conn_state {
    CONN_FREE,
    CONN_HEAD,    /* a client whose request head is incomplete */
    CONN_OPEN,    /* a session */
    CONN_CLOSING, /* was a session: flushes, then waits for the peer's close frame */
    CONN_PAGE,    /* a client that is sent a page; then it lingers */
    CONN_LINGER,  /* flushes its last bytes, shuts down, then waits for the peer's end */
    CONN_PUSH,    /* a pusher */
    CONN_DEAD     /* to be buried at the end of the turn */
};

enum conn_flag {
    CONN_WAITING = 1, /* not read: it needs an input buffer and none is free */
    CONN_ABRUPT = 2,  /* after the frame it is in only its own last bytes are sent */
    CONN_STARVED = 4, /* its last frame was cut off: the buffer had no room for it */
    CONN_SPOKE = 8,   /* lately, and not just to show life: it is kept hot */
    CONN_EXTRA = 16,  /* a pusher too many, which is being told so */
    CONN_TOLD = 32,   /* on_open was: then on_close is, too */
    CONN_LAST = 64,   /* its close frame is sent, or waits */
    CONN_KNOWN = 128  /* a pusher that has shown the secret */
};

/* The lists of connections by deadline: each has one duration, so that joining at the tail keeps
 * the order. */
enum timer {
    TIMER_NONE,
    TIMER_HEAD,  /* handshake_timeout: a request must be complete; a session waits for an input */
    TIMER_PING,  /* ping: quiet so long */
    TIMER_PONG,  /* pong: a ping is out */
    TIMER_WRITE, /* write_timeout: output is waiting and does not move */
    TIMER_CLOSE, /* close_timeout */
    TIMER_IDLE,  /* a pusher between two requests */
    TIMER_DEAD,  /* no deadline: buried this turn */
    TIMERS
};

/* Both ends of a list. */
struct chain {
    uint32_t first, last;
};

/* A slot of the table. */
struct conn {
    int32_t fd;
    uint32_t generation; /* counts the sessions this slot has had */
    uint8_t state, timer, flags, reason;
    uint16_t code, name_size; /* code: of the close, or which page */
    uint32_t queued; /* messages waiting for it, */
    uint32_t sent;   /* bytes of the first of them, or of a page, that the kernel has taken, */
    uint32_t replay; /* and how many of them are from before it came: they don't count as slow */
    uint32_t own,
        all; /* the next waiting of its token and of those for all; what follows those waits, too */
    struct chain out;                /* waiting for it alone */
    uint32_t token, next, prev;      /* its token's record; a ring of its sessions, oldest first;
                                        prev: of a pusher and of who is closing, since when */
    uint32_t at;                     /* in the poll set */
    uint32_t timer_next, timer_prev; /* timer_next: the free list, too */
    uint8_t input;                   /* 1 + the input buffer it holds, or 0 */
    uint8_t ids;                     /* exportws.v1: each message comes with its id */
    uint16_t port;
    uint64_t due_ms;
    uint8_t address[16]; /* IPv4 is mapped; all zero: a Unix socket */
};

/* The first block of a message starts with this; its token's name and its payload follow. */
struct message {
    uint64_t id, due_ms;
    uint32_t size;               /* of the payload */
    uint32_t refs;               /* sessions that still have to get it */
    uint32_t next, prev;         /* of the same token, or for all; of one connection (next only) */
    uint32_t age_next, age_prev; /* held or history, by expiry */
    uint32_t token, last;        /* record or NONE; the last block */
    uint16_t name_size;
    uint8_t kind; /* opcode, or 0 for bytes as they go on the wire */
    uint8_t flags;
};

enum message_flag {
    MESSAGE_LINKED = 1, /* in the chain of its token or of all */
    MESSAGE_GOT = 2,    /* a kernel has taken all of it for a session, or it is for all */
    MESSAGE_AGING = 4,  /* on a list by expiry: of what nobody has got, or of history */
    MESSAGE_OVERDUE = 8, /* expired while sessions still wait for it */
    MESSAGE_DRAFT = 16,  /* still coming: it may use the reserve */
    MESSAGE_END = 32,    /* its token's last */
    MESSAGE_KICKED = 64  /* deleted: only who waits for it already gets it */
};

/* What is known of a token. Its name stands with the first of its sessions or messages; when it has
 * none it is remembered by its hash alone, until its record is needed for another. */
struct token {
    uint64_t hash;
    uint64_t lost;                    /* the newest id of what was thrown away */
    uint32_t next;                    /* of the bucket */
    uint32_t first_session, sessions; /* first_session: NONE, or REMEMBERED */
    struct chain messages;            /* oldest and newest; spare: its neighbours on that list */
    uint32_t history; /* how many of them are kept though somebody has got them; spare: the list */
};

#define REMEMBERED (NONE - 1)

/* Bytes of a unit that is not complete. Of a session, data[0..have) is the message so far and
 * data[raw..used) what is not decoded yet. */
struct input {
    uint8_t *data;
    size_t size, used, raw, have;
    uint64_t since_ms, left, phase; /* held since; payload of the frame: to come, come */
    uint32_t owner;
    uint8_t mask[4], opcode, fin, in_frame;
    uint8_t kind; /* of the message being put together, or 0 */
    struct utf8 utf8;
    struct head head;
};

enum push_phase { PUSH_HEAD, PUSH_BODY, PUSH_CHUNKS };
enum push_target { TO_TOKEN, TO_ALL, TO_NOBODY };

/* A request at the push door whose body is coming. */
struct push {
    uint64_t left; /* of a body with a length */
    struct chunk chunk;
    struct utf8 utf8;
    uint32_t draft, size; /* the message so far, or NONE */
    int status;           /* of the refusal to answer with when the body is over, or 0 */
    uint8_t phase, target, kind, end, close, verb;
};

struct address {
    uint8_t bytes[16];
    uint32_t sessions, next;
};

struct metrics {
    uint64_t opened, closed[EXPORTWS_REASONS], pushed, delivered, held, expired, received,
        heartbeats, pings;
    uint64_t bytes_sent, bytes_received, posts_refused, refused[16];
    uint64_t buffer_used; /* of a copy: at its moment */
};

/* Where the ring of exportws_post starts and ends, behind its lock. */
struct ring {
    pthread_mutex_t lock;
    uint8_t *bytes;
    size_t size, first, used;
    int closed;
};

struct door {
    int fd;
    uint32_t at;
    const char *path; /* of a Unix socket, to be removed at the end, or NULL */
};

/* What most of the code asks for stands first: to reach the first 128 bytes takes shorter
 * instructions. */
struct exportws {
    struct conn *conns;
    struct token *tokens;
    uint8_t *blocks;
    size_t block_bytes;
    struct pollfd *polls;
    struct metrics *m;
    uint8_t *stage;
    uint64_t now_ms, next_id;
    size_t answers_used;
    uint32_t capacity, conns_end,
        pushers_at; /* sessions [0, capacity), handshakes, pushers [pushers_at, conns_end) */
    uint32_t poll_count, live, hot; /* the poll set, its parts */
    uint32_t held, block_count, reserve;
    uint32_t left_first; /* sessions that have left and whose on_close is to come */
    uint8_t stopping, stopped, in_turn, in_log, accept_paused, inputs_freed, posts_left;
    uint8_t free_inputs;

    exportws_options o;
    uint64_t first_id, forgotten; /* ids: the first; the newest lost of tokens not remembered */
    uint64_t drain_due_ms, accept_due_ms, wait_due_ms, memory_bytes;
    uint64_t now_us, sweep_due_us, busy_us, calm_us, cool_due_ms; /* calm_us: between events */
    uint64_t sweep_us;       /* what the last pieces cost, */
    uint32_t swept;          /* of so many entries */
    uint32_t sweep_at;       /* where the sweep goes on */
    uint32_t sessions, online, handshakes, pushers, history;
    uint32_t free_session, free_handshake, free_pusher, free_block, free_address;
    uint32_t seats, slots_used; /* session slots in use, closing ones too; ever used: [0, this) */
    uint32_t blocks_free, blocks_private;
    uint32_t token_count, bucket_mask, address_mask, input_count;
    uint32_t expired;               /* messages that nobody came for, to be told of */
    uint32_t left_last;
    uint32_t waiting;               /* connections that wait for an input buffer */
    uint32_t replays;               /* sessions that are still being sent what they have missed */
    struct chain timers[TIMERS], ages[2]; /* messages by expiry: not got, history */
    struct chain spare[2]; /* records without session and message, by age: 0: nothing is known that
                              `forgotten` does not say, 1: the others */
    unsigned durations_ms[TIMERS];
    size_t input_bytes, stage_size, answers_size, name_bytes;
    int wake[2];
    struct door doors[2];
    uint16_t streak;         /* dense turns in a row */
    uint8_t lively, unswept; /* something hot was ready in the last turn; turns since a sweep */
    uint8_t knocked, crowded; /* 1 << door: somebody waits there; did in the turn before */
    uint8_t key[16];
    uint8_t pushes_left;     /* a pusher's input has more for the next turn */
    uint32_t sends;          /* to sessions in this turn, that pushers and posts asked for */
    struct ring ring;

    uint32_t *owners;
    struct token *all; /* the record of what is for all, behind the tokens */
    uint32_t *buckets;
    char *names;
    struct push *pushes;
    struct address *addresses;
    uint32_t *address_buckets;
    uint32_t *links;
    struct input *inputs, *scratch;
    uint8_t *answers;
};

static char *conn_name(const struct exportws *w, const struct conn *c)
{
    return w->names + (size_t)(c - w->conns) * w->name_bytes;
}

static exportws_id conn_id(const struct exportws *w, const struct conn *c)
{
    return (uint64_t)c->generation << 32 | (uint64_t)(c - w->conns);
}

static int conn_is_pusher(const struct exportws *w, const struct conn *c)
{
    return c >= w->conns + w->pushers_at;
}

static struct push *push_of(const struct exportws *w, const struct conn *c)
{
    return &w->pushes[(uint32_t)(c - w->conns) - w->pushers_at];
}

/* Whether a pusher is between two requests. */
static int push_rests(const struct exportws *w, const struct conn *c)
{
    return c->input == 0 && !(c->flags & CONN_WAITING) && push_of(w, c)->phase == PUSH_HEAD;
}

static int conn_is_session(const struct exportws *w, const struct conn *c)
{
    return c < w->conns + w->capacity;
}

/* ===== Log (logfmt) ===== */

struct line {
    struct text text;
    int level;
    char bytes[LINE_MAX_BYTES];
};

static void log_time(struct text *t)
{
    time_t now = time(NULL);
    struct tm tm;
    if (!gmtime_r(&now, &tm)) memset(&tm, 0, sizeof tm);
    text_decimal(t, (uint64_t)tm.tm_year + 1900);
    const int parts[5] = {tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec};
    for (unsigned i = 0; i < 5; i++) text_bytes(t, &"--T::"[i], 1), text_two(t, parts[i]);
    text_add(t, "Z");
}

/* Begins a line; 0 when nobody wants it. */
static int log_begin(struct exportws *w, struct line *l, int level, const char *event)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    if (!w->o.on_log || level > w->o.log_level || w->in_log) return 0;
    l->level = level;
    l->text = (struct text){l->bytes, 0, sizeof l->bytes};
    text_add(&l->text, "time="), log_time(&l->text);
    text_add(&l->text, " level="), text_add(&l->text, names[level]);
    text_add(&l->text, " event="), text_add(&l->text, event);
    return 1;
}

static void log_key(struct line *l, const char *key)
{
    text_add(&l->text, " "), text_add(&l->text, key), text_add(&l->text, "=");
}

static void log_word(struct line *l, const char *key, const char *word)
{
    log_key(l, key), text_add(&l->text, word);
}

/* Words of our own, in quotes. */
static void log_words(struct line *l, const char *key, const char *words)
{
    log_word(l, key, "\""), text_add(&l->text, words), text_add(&l->text, "\"");
}

static void log_number(struct line *l, const char *key, uint64_t value)
{
    log_key(l, key);
    text_decimal(&l->text, value);
}

/* Bytes from outside, escaped and cut. */
static void log_outside(struct line *l, const char *key, const void *p, size_t n, size_t most)
{
    log_key(l, key);
    text_escaped(&l->text, p, n < most ? n : most);
    if (n > most) text_add(&l->text, "\xe2\x80\xa6");
}

/* A token is a capability: four bytes of it, whole only at debug. */
static void log_token(const struct exportws *w, struct line *l, const void *p, size_t n)
{
    if (w->o.log_level >= EXPORTWS_LOG_DEBUG) {
        log_outside(l, "token", p, n, n);
        return;
    }
    log_outside(l, "token", p, n < 4 ? n : 4, 4);
    text_add(&l->text, "\xe2\x80\xa6");
}

static void text_address(struct text *t, const uint8_t address[16], unsigned port)
{
    static const uint8_t unix_socket[16] = {0},
                         mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    char name[INET6_ADDRSTRLEN] = "?";
    int v4 = memcmp(address, mapped, sizeof mapped) == 0;
    if (port == 0 && memcmp(address, unix_socket, 16) == 0) {
        text_add(t, "unix");
        return;
    }
    inet_ntop(v4 ? AF_INET : AF_INET6, address + (v4 ? 12 : 0), name, sizeof name);
    text_add(t, v4 ? "" : "["), text_add(t, name), text_add(t, v4 ? "" : "]");
    if (port > 0) text_add(t, ":"), text_decimal(t, port); /* a proxy may not have told it */
}

static void log_peer(struct line *l, const struct conn *c)
{
    log_key(l, "peer");
    text_address(&l->text, c->address, c->port);
}

/* Begins a line about a session. */
static int log_session(struct exportws *w, struct line *l, const char *event, const struct conn *c)
{
    if (!log_begin(w, l, EXPORTWS_LOG_INFO, event)) return 0;
    log_token(w, l, conn_name(w, c), c->name_size);
    log_peer(l, c);
    return 1;
}

static void log_counts(const struct exportws *w, struct line *l)
{
    log_number(l, "online", w->online);
    log_number(l, "sessions", w->sessions);
}

static void log_end(struct exportws *w, struct line *l)
{
    text_end(&l->text);
    w->in_log = 1;
    w->o.on_log(w->o.user, l->level, l->bytes);
    w->in_log = 0;
}

/* ===== Options ===== */

enum option_kind {
    OPTION_TEXT,
    OPTION_COUNT,
    OPTION_BYTES,
    OPTION_SECONDS,
    OPTION_FLAG,
    OPTION_FILE,
    OPTION_LIST,
    OPTION_ACTION
};

/* One row makes the range check, the parser, the default and the --help line. */
struct option {
    const char *name;
    uint8_t kind;
    size_t at; /* in exportws_options */
    uint64_t least, most;
    const char *unit, *help;
};

#define AT(member) offsetof(exportws_options, member)

/* The library has nobody to tell. */
#ifdef EXPORTWS_NO_MAIN
#define HELP(text) NULL
#else
#define HELP(text) text
#endif

static const struct option options[] = {
    {"listen", OPTION_TEXT, AT(listen), 0, 0,
     "ADDR", HELP("client door: HOST:PORT [V6]:PORT :PORT unix:PATH; port 0 picks one")},
    {"push", OPTION_TEXT, AT(push), 0, 0, "ADDR", HELP("push door, same forms; none closes it")},
    {"push-secret-file", OPTION_FILE, AT(push_secret), 0, 0,
     "F", HELP("secret for the push door (first line of F)")},
    {"path", OPTION_TEXT, AT(path), 0, 0, "P", HELP("what stands before the token")},
    {"capacity", OPTION_COUNT, AT(capacity), 1, 1000000, "N", HELP("sessions at once")},
    {"handshakes", OPTION_COUNT, AT(handshakes), 1, 1000000,
     "N", HELP("client connections whose head is incomplete")},
    {"pushers", OPTION_COUNT, AT(pushers), 1, 100000,
     "N", HELP("connections at the push door at once")},
    {"per-token", OPTION_COUNT, AT(per_token), 1, 1000000, "N", HELP("sessions of one token")},
    {"per-address", OPTION_COUNT, AT(per_address), 0, 1000000,
     "N", HELP("sessions from one peer address; 0: no bound")},
    {"max-token", OPTION_BYTES, AT(max_token_bytes), 1, 1024, "BYTES", HELP("longest token")},
    {"max-message", OPTION_BYTES, AT(max_message_bytes), 1, 1U << 30,
     "BYTES", HELP("longest message from a client")},
    {"max-push", OPTION_BYTES, AT(max_push_bytes), 1, 1U << 30,
     "BYTES", HELP("longest message from a pusher")},
    {"queue", OPTION_COUNT, AT(queue), 1, 1000000, "N", HELP("messages waiting for one session")},
    {"buffer", OPTION_BYTES, AT(buffer_bytes), 1024, 1ULL << 36,
     "BYTES", HELP("all waiting and held messages together")},
    {"hold", OPTION_SECONDS, AT(hold_ms), 0, 86400000,
     "SECONDS", HELP("a message for an absent token is kept; 0: not")},
    {"history", OPTION_COUNT, AT(history), 0, 1000000,
     "N", HELP("delivered messages kept per token for reconnecting clients")},
    {"ping", OPTION_SECONDS, AT(ping_ms), 1, 86400000, "SECONDS", HELP("quiet time before a ping")},
    {"pong", OPTION_SECONDS, AT(pong_ms), 1, 86400000,
     "SECONDS", HELP("then: time to show life, else reclaimed")},
    {"handshake-timeout", OPTION_SECONDS, AT(handshake_timeout_ms), 1, 86400000,
     "SECONDS", HELP("a request must be complete")},
    {"close-timeout", OPTION_SECONDS, AT(close_timeout_ms), 1, 86400000,
     "SECONDS", HELP("the peer must answer a close")},
    {"write-timeout", OPTION_SECONDS, AT(write_timeout_ms), 1, 86400000,
     "SECONDS", HELP("a session may take nothing so long")},
    {"drain", OPTION_SECONDS, AT(drain_ms), 0, 86400000,
     "SECONDS", HELP("SIGTERM waits for sessions to finish closing")},
    {"origin", OPTION_LIST, AT(origins), 0, 0,
     "O", HELP("allowed Origin, repeatable; * for any; default: same host")},
    {"client-secret-file", OPTION_FILE, AT(client_secret), 0, 0,
     "F", HELP("tokens must be signed with one of its first two lines")},
    {"trusted-proxy", OPTION_LIST, AT(trusted_proxies), 0, 0,
     "ADDR", HELP("peer whose X-Forwarded-For counts: IP, IP/BITS, unix:; repeatable (none)")},
    {"heartbeat", OPTION_TEXT, AT(heartbeat), 0, 0,
     "TEXT", HELP("a client's text that is swallowed")},
    {"heartbeat-reply", OPTION_FLAG, AT(heartbeat_reply), 0, 0, "", HELP("send it back")},
    {"demo", OPTION_FLAG, AT(demo), 0, 0, "", HELP("serve the demo page at /")},
    {"log", OPTION_ACTION, AT(log_level), 0, 0, "LEVEL", HELP("error, warn, info or debug")},
    {"memory", OPTION_ACTION, 0, 0, 0,
     "", HELP("print the bytes that these options need, and exit")},
    {"check", OPTION_ACTION, 0, 0, 0,
     "", HELP("try what these options open and need, and exit: 0 or 1")},
    {"help", OPTION_ACTION, 0, 0, 0, "", HELP("print this, and exit")},
    {"version", OPTION_ACTION, 0, 0, 0, "", HELP("print the version, and exit")},
};

enum { OPTIONS = sizeof options / sizeof *options };

/* The number an option has. */
static uint64_t option_number(const exportws_options *o, const struct option *row)
{
    const char *member = (const char *)o + row->at;
    unsigned ms;
    size_t size;
    memcpy(&ms, member, sizeof ms);
    memcpy(&size, member, sizeof size);
    return row->kind == OPTION_SECONDS ? ms : size;
}

/* Reads an IP address, IPv6 in brackets or not; IPv4 is mapped. Returns its family, or -1. */
static int ip_parse(const uint8_t *p, size_t n, uint8_t ip[16])
{
    char text[INET6_ADDRSTRLEN];
    const size_t bracket = n >= 2 && p[0] == '[' && p[n - 1] == ']';
    n -= 2 * bracket;
    if (n >= sizeof text) return -1;
    memcpy(text, p + bracket, n);
    text[n] = '\0';
    memset(ip, 0, 10), memset(ip + 10, 0xff, 2);
    if (bracket == 0 && inet_pton(AF_INET, text, ip + 12) == 1) return AF_INET;
    return inet_pton(AF_INET6, text, ip) == 1 ? AF_INET6 : -1;
}

/* Reads HOST:PORT, [V6]:PORT or :PORT. Returns the size of *to, or 0 when it is none. */
static socklen_t address_parse(const char *text, struct sockaddr_storage *to)
{
    const char *colon = strrchr(text, ':');
    struct sockaddr_in v4 = {0};
    struct sockaddr_in6 v6 = {0};
    uint8_t ip[16] = {0};
    uint64_t port;
    if (!colon || decimal_parse((const uint8_t *)colon + 1, strlen(colon + 1), &port) < 0 ||
        port > 65535)
        return 0;
    size_t n = (size_t)(colon - text);
    if (n == 9 && memcmp(text, "localhost", n) == 0) text = "127.0.0.1"; /* just as long */
    int family = n > 0 ? ip_parse((const uint8_t *)text, n, ip) : AF_INET6;
    if (family == AF_INET) {
        v4.sin_family = AF_INET;
        v4.sin_port = htons((uint16_t)port);
        memcpy(&v4.sin_addr, ip + 12, 4);
        memcpy(to, &v4, sizeof v4);
        return sizeof v4;
    }
    if (family < 0 || (n > 0 && *text != '[')) return 0;
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons((uint16_t)port);
    memcpy(&v6.sin6_addr, ip, 16);
    memcpy(to, &v6, sizeof v6);
    return sizeof v6;
}

/* Reads IP, IP/BITS, or unix: for all who come by a Unix socket. Whether it is one of these; then
 * the first `bits` of an address must be those of ip. */
static int proxy_parse(const char *text, uint8_t ip[16], uint64_t *bits)
{
    const size_t n = strcspn(text, "/");
    memset(ip, 0, 16);
    *bits = 128;
    if (strcmp(text, "unix:") == 0) return 1;
    int family = ip_parse((const uint8_t *)text, n, ip);
    uint64_t most = family == AF_INET ? 32 : 128, count = most;
    if (text[n] && decimal_parse((const uint8_t *)text + n + 1, strlen(text + n + 1), &count) < 0)
        return 0;
    *bits = 128 - most + count;
    return family >= 0 && count <= most;
}

/* Whether a door can be opened there: NULL keeps it shut. */
static int address_valid(const char *text)
{
    struct sockaddr_storage to;
    struct sockaddr_un name;
    uint64_t fd;
    if (!text) return 1;
    if (strncmp(text, "fd:", 3) == 0)
        return !decimal_parse((const uint8_t *)text + 3, strlen(text + 3), &fd) && fd <= INT16_MAX;
    if (strncmp(text, "unix:", 5) != 0) return address_parse(text, &to) > 0;
    return text[5] != '\0' && strlen(text + 5) < sizeof name.sun_path;
}

/* The name of the option that is out of range, or NULL. */
static const char *options_wrong(const exportws_options *o)
{
    size_t n = o->path ? strlen(o->path) : 0;
    uint8_t ip[16];
    uint64_t bits;
    for (unsigned i = 0; i < OPTIONS; i++) {
        const struct option *row = &options[i];
        if (row->kind != OPTION_COUNT && row->kind != OPTION_BYTES && row->kind != OPTION_SECONDS)
            continue;
        uint64_t value = option_number(o, row);
        if (value < row->least || value > row->most) return row->name;
    }
    if (!address_valid(o->listen)) return "listen";
    if (!address_valid(o->push)) return "push";
    if (n < 1 || n > 1024 || o->path[0] != '/' || o->path[n - 1] != '/') return "path";
    for (size_t i = 0; i < n; i++)
        if (o->path[i] <= ' ' || o->path[i] > '~' || strchr("?#%", o->path[i])) return "path";
    if (!o->heartbeat || strlen(o->heartbeat) > CONTROL_MAX ||
        !utf8_valid((const uint8_t *)o->heartbeat, strlen(o->heartbeat)))
        return "heartbeat";
    if (o->push_secret && !*o->push_secret) return "push-secret";
    for (size_t i = 0; i < o->origin_count; i++)
        if (!o->origins || !o->origins[i]) return "origin";
    if (o->client_secret && strcspn(o->client_secret, "\r\n") == 0) return "client-secret";
    for (size_t i = 0; i < o->trusted_proxy_count; i++)
        if (!o->trusted_proxies || !o->trusted_proxies[i] ||
            !proxy_parse(o->trusted_proxies[i], ip, &bits))
            return "trusted-proxy";
    if (o->demo && !PAGES) return "demo";
    if (o->log_level < EXPORTWS_LOG_ERROR || o->log_level > EXPORTWS_LOG_DEBUG) return "log";
    return NULL;
}

/* ===== Arena ===== */

struct arena {
    uint8_t *base; /* NULL: only measure */
    size_t used;   /* SIZE_MAX: more than a size_t can say */
};

/* Takes count pieces of size bytes, aligned for anything in here. */
static void *arena_take(struct arena *a, size_t count, size_t size)
{
    const size_t align = sizeof(uint64_t), most = SIZE_MAX / 2;
    size_t at = a->used;
    if (at > most || count > (most - at) / size) {
        a->used = SIZE_MAX;
        return NULL;
    }
    a->used += (count * size + align - 1) / align * align;
    return a->base ? a->base + at : NULL;
}

static uint32_t power_of_two(size_t least)
{
    uint32_t n = 1;
    while (n < least && n < 1U << 30) n *= 2;
    return n;
}

/* The input buffers: w->inputs and the scratch behind them, each with its bytes. In a small server
 * they are too small for a head: then one that is incomplete stays in the kernel. */
static void layout_inputs(struct exportws *w, struct arena *a)
{
    const exportws_options *o = &w->o;
    size_t clients = o->capacity + o->handshakes;
    size_t most = larger(o->max_push_bytes, o->max_message_bytes);
    size_t scratch = larger(smaller(most, 65536) + 1024, HEAD_MAX);
    w->input_count = (uint32_t)smaller(larger(clients / 16, 1), 32);
    w->input_bytes = larger(smaller(clients * 64, HEAD_MAX), o->max_message_bytes + INPUT_REST);
    struct input *inputs = arena_take(a, w->input_count + 1, sizeof *inputs);
    for (uint32_t i = 0; i <= w->input_count; i++) {
        size_t bytes = i < w->input_count ? w->input_bytes : scratch;
        uint8_t *data = arena_take(a, bytes, 1);
        if (inputs) {
            inputs[i].data = data;
            inputs[i].size = bytes;
        }
    }
    w->inputs = inputs;
    w->scratch = inputs ? inputs + w->input_count : NULL;
}

/* Measures (base NULL) and places all that a server needs: w->o is set, the rest of *w is filled
 * in. Returns the bytes; SIZE_MAX or nearly so: too many to say. */
static size_t layout(struct exportws *w, uint8_t *base)
{
    const exportws_options *o = &w->o;
    struct arena a = {base, 0};
    size_t per_block, pieces, longest;
    w->capacity = (uint32_t)o->capacity;
    w->pushers_at = w->capacity + (uint32_t)o->handshakes;
    w->conns_end = w->pushers_at + (uint32_t)o->pushers + PUSHERS_SPARE;
    w->name_bytes = o->max_token_bytes + 1;
    w->block_bytes = larger(BLOCK_BYTES,
                            (sizeof(struct message) + o->max_token_bytes + 127) / 64 * 64);
    per_block = w->block_bytes + sizeof *w->links + sizeof *w->tokens + sizeof *w->buckets;
    longest = sizeof(struct message) + o->max_token_bytes + o->max_push_bytes;
    w->reserve = (uint32_t)(longest / w->block_bytes + 1);
    w->block_count = (uint32_t)smaller(larger(o->buffer_bytes / per_block, 4), 1U << 30);
    w->token_count = w->capacity + w->block_count + 1;
    w->block_count += w->reserve;
    w->bucket_mask = power_of_two(w->token_count / 2) - 1;
    w->address_mask = o->per_address > 0 ? power_of_two(o->capacity) - 1 : 0;
    w->stage_size = larger(o->max_push_bytes, CONTROL_MAX) + MESSAGE_HEAD_MAX;
    w->answers_size = smaller(larger(o->max_push_bytes / 2, 256), 8192);
    pieces = o->per_address > 0 ? o->capacity : 0;
    arena_take(&a, 1, sizeof *w);
    w->m = arena_take(&a, 1, sizeof *w->m);
    w->polls = arena_take(&a, (size_t)w->conns_end + 3, sizeof *w->polls);
    w->owners = arena_take(&a, (size_t)w->conns_end + 3, sizeof *w->owners);
    w->conns = arena_take(&a, w->conns_end, sizeof *w->conns);
    w->tokens = arena_take(&a, (size_t)w->token_count + 1, sizeof *w->tokens);
    w->all = w->tokens ? w->tokens + w->token_count : NULL;
    w->buckets = arena_take(&a, (size_t)w->bucket_mask + 1, sizeof *w->buckets);
    w->names = arena_take(&a, o->capacity, w->name_bytes);
    w->pushes = arena_take(&a, o->pushers + PUSHERS_SPARE, sizeof *w->pushes);
    w->addresses = arena_take(&a, pieces, sizeof *w->addresses);
    w->address_buckets = arena_take(&a, pieces > 0 ? (size_t)w->address_mask + 1 : 0,
                                    sizeof *w->address_buckets);
    w->blocks = arena_take(&a, w->block_count, w->block_bytes);
    w->links = arena_take(&a, w->block_count, sizeof *w->links);
    layout_inputs(w, &a);
    w->stage = arena_take(&a, w->stage_size, 1);
    w->answers = arena_take(&a, w->answers_size, 1);
    w->ring.size = o->max_push_bytes + o->max_token_bytes + 16;
    w->ring.bytes = arena_take(&a, w->ring.size, 1);
    return a.used;
}

/* ===== Timers: lists of connections in order of deadline ===== */

static void timer_clear(struct exportws *w, struct conn *c)
{
    struct chain *list = &w->timers[c->timer];
    if (c->timer == TIMER_NONE) return;
    *(c->timer_prev == NONE ? &list->first : &w->conns[c->timer_prev].timer_next) = c->timer_next;
    *(c->timer_next == NONE ? &list->last : &w->conns[c->timer_next].timer_prev) = c->timer_prev;
    c->timer = TIMER_NONE;
}

/* Moves a connection to the tail of a list: its deadline starts now. */
static void timer_set(struct exportws *w, struct conn *c, unsigned timer)
{
    struct chain *list = &w->timers[timer];
    uint32_t index = (uint32_t)(c - w->conns);
    timer_clear(w, c);
    c->timer = (uint8_t)timer;
    c->due_ms = w->now_ms + w->durations_ms[timer];
    c->timer_prev = list->last;
    c->timer_next = NONE;
    *(list->last == NONE ? &list->first : &w->conns[list->last].timer_next) = index;
    list->last = index;
}

/* The first of a list whose time has come, or NULL. */
static struct conn *timer_due(struct exportws *w, unsigned timer)
{
    uint32_t first = w->timers[timer].first;
    return first != NONE && w->conns[first].due_ms <= w->now_ms ? &w->conns[first] : NULL;
}

/* ===== Poll set =====
 *
 * poll() costs as much as its set is long, so that it is not always given all. The set is slices of
 * one array: [0, hot) is polled in most turns - doors, handshakes, pushers, sessions that have
 * output waiting or spoke lately - and the rest is cold, swept in small pieces, as often as a share
 * of one core allows. What shows that somebody is alive, and no more, leaves him cold: a heartbeat
 * is nothing to hurry for, and in the order of their coming the kernel's own records of sockets are
 * found in half the time. When nothing happens for a while the whole set is polled, and the server
 * sleeps.
 *
 * Of the hot, [0, live) were ready lately. Where turns follow each other closely they alone are
 * polled, but for one turn in a few: doors, the wake-up pipe and idle pushers cost as much each as
 * the one that is busy. When that one falls silent the others have waited SWEEP_LAZY_MS at most. */

enum { OWNER_DOOR = 0x40000000, OWNER_WAKE = 0x40000002 };

/* Puts an entry into a place, and tells its owner. */
static void poll_put(struct exportws *w, uint32_t at, struct pollfd entry, uint32_t owner)
{
    w->polls[at] = entry;
    w->owners[at] = owner;
    if (owner < w->conns_end) w->conns[owner].at = at;
    else if (owner != OWNER_WAKE) w->doors[owner - OWNER_DOOR].at = at;
}

static void poll_swap(struct exportws *w, uint32_t a, uint32_t b)
{
    struct pollfd entry = w->polls[a];
    uint32_t owner = w->owners[a];
    poll_put(w, a, w->polls[b], w->owners[b]);
    poll_put(w, b, entry, owner);
}

/* Makes an entry hot, and live. Entries before it that were cold keep their order, but for the
 * first. */
static void poll_heat(struct exportws *w, uint32_t at)
{
    if (at >= w->hot) poll_swap(w, at, w->hot), at = w->hot++;
    if (at >= w->live) poll_swap(w, at, w->live++);
}

/* Makes a hot entry one that is not live; returns where it stands. */
static uint32_t poll_rest(struct exportws *w, uint32_t at)
{
    if (at >= w->live) return at;
    poll_swap(w, at, --w->live);
    return w->live;
}

static void poll_cool(struct exportws *w, uint32_t at)
{
    poll_swap(w, poll_rest(w, at), --w->hot);
}

/* Adds an entry that waits to read. */
static void poll_add(struct exportws *w, int fd, uint32_t owner)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
    poll_put(w, w->poll_count, entry, owner);
    poll_heat(w, w->poll_count++);
}

/* Takes a connection's entry out. */
static void poll_remove(struct exportws *w, uint32_t at)
{
    if (at < w->hot) {
        poll_cool(w, at);
        at = w->hot;
    }
    poll_swap(w, at, --w->poll_count);
}

/* Sets what a connection waits for: to be read unless it may not be, to be written while something
 * waits. Who does not take a page, or a pusher that does not take its answers, is not read. */
static void poll_want(struct exportws *w, struct conn *c)
{
    int page = PAGES && c->state == CONN_PAGE, output = page || c->queued > 0;
    int blocked = page || (c->flags & CONN_WAITING) || (output && conn_is_pusher(w, c));
    w->polls[c->at].events = (short)((blocked ? 0 : POLLIN) | (output ? POLLOUT : 0));
    if (c->state != CONN_OPEN || c->queued > 0) poll_heat(w, c->at);
}

/* Puts a connection on the list of the dead: the end of the turn closes it. */
static void conn_doom(struct exportws *w, struct conn *c)
{
    if (c->state == CONN_DEAD) return;
    c->state = CONN_DEAD;
    timer_set(w, c, TIMER_DEAD);
}

/* ===== Messages ===== */

/* The way through the buffer: the first block holds the message's head and the token's name, too.
 */
static void *block_at(const struct exportws *w, uint32_t block)
{
    return w->blocks + (size_t)block * w->block_bytes;
}

static struct message *message_at(const struct exportws *w, uint32_t index)
{
    return block_at(w, index);
}

static const uint8_t *message_name(const struct message *m)
{
    return (const uint8_t *)(m + 1);
}

/* The blocks of a message. */
static uint32_t blocks_of(const struct exportws *w, size_t name_size, size_t size)
{
    return (uint32_t)((sizeof(struct message) + name_size + size + w->block_bytes - 1) /
                      w->block_bytes);
}

static void message_free(struct exportws *w, uint32_t index)
{
    struct message *m = message_at(w, index);
    uint32_t block = index, last = m->last, n = 1;
    for (; block != last; block = w->links[block]) n++;
    w->links[last] = w->free_block;
    w->free_block = index;
    w->blocks_free += n;
    if (m->kind == 0) w->blocks_private -= n;
}

/* Copies the payload from byte `from` on to out[0..size). Returns how much there was. */
static size_t message_copy(const struct exportws *w, uint32_t index, size_t from, uint8_t *out,
                           size_t size)
{
    const struct message *m = message_at(w, index);
    size_t n = smaller(m->size - from, size), at = sizeof *m + m->name_size + from, done = 0;
    for (; at >= w->block_bytes && done < n; at -= w->block_bytes) index = w->links[index];
    while (done < n) {
        size_t piece = smaller(w->block_bytes - at, n - done);
        memcpy(out + done, (const uint8_t *)block_at(w, index) + at, piece);
        done += piece, at = 0;
        if (done < n) index = w->links[index];
    }
    return n;
}

/* Whose a message is: its token's record, or that of all. */
static struct token *message_owner(struct exportws *w, const struct message *m)
{
    return m->token == NONE ? w->all : &w->tokens[m->token];
}

/* Takes a message off the list by expiry that it is on. */
static void message_age_off(struct exportws *w, struct message *m)
{
    struct chain *list = &w->ages[(m->flags & MESSAGE_GOT) != 0];
    if (!(m->flags & MESSAGE_AGING)) return;
    m->flags &= (uint8_t)~MESSAGE_AGING;
    *(m->age_prev == NONE ? &list->first : &message_at(w, m->age_prev)->age_next) = m->age_next;
    *(m->age_next == NONE ? &list->last : &message_at(w, m->age_next)->age_prev) = m->age_prev;
    if (m->flags & MESSAGE_GOT) message_owner(w, m)->history--, w->history--;
}

/* Puts a message at the end of the list by expiry that is its: its time begins now. */
static void message_age(struct exportws *w, uint32_t index)
{
    struct message *m = message_at(w, index);
    struct chain *list = &w->ages[(m->flags & MESSAGE_GOT) != 0];
    if (w->o.hold_ms == 0 || ((m->flags & MESSAGE_GOT) && w->o.history == 0)) return;
    m->flags |= MESSAGE_AGING;
    m->due_ms = w->now_ms + w->o.hold_ms;
    m->age_prev = list->last;
    m->age_next = NONE;
    *(list->last == NONE ? &list->first : &message_at(w, list->last)->age_next) = index;
    list->last = index;
    if (m->flags & MESSAGE_GOT) message_owner(w, m)->history++, w->history++;
}

/* Puts a message at the end of its token's chain (record NONE: of all). */
static void message_link(struct exportws *w, uint32_t index, uint32_t record)
{
    struct message *m = message_at(w, index);
    m->token = record;
    struct chain *chain = &message_owner(w, m)->messages;
    m->prev = chain->last;
    *(chain->last == NONE ? &chain->first : &message_at(w, chain->last)->next) = index;
    chain->last = index;
    m->flags |= MESSAGE_LINKED;
    if (record == NONE) m->flags |= MESSAGE_GOT;
    message_age(w, index);
}

/* A session's kernel has taken all of it: from now on it is history. */
static void message_got(struct exportws *w, uint32_t index)
{
    struct message *m = message_at(w, index);
    if (m->flags & MESSAGE_GOT) return;
    message_age_off(w, m);
    m->flags = (uint8_t)((m->flags | MESSAGE_GOT) & ~MESSAGE_OVERDUE);
    message_age(w, index);
}

/* Takes a message out of its chain. */
static void message_unlink(struct exportws *w, uint32_t index)
{
    struct message *m = message_at(w, index);
    struct chain *chain = &message_owner(w, m)->messages;
    *(m->prev == NONE ? &chain->first : &message_at(w, m->prev)->next) = m->next;
    *(m->next == NONE ? &chain->last : &message_at(w, m->next)->prev) = m->prev;
    message_age_off(w, m);
}

/* ===== Tokens ===== */

static int token_is(const struct exportws *w, const struct token *t, const uint8_t *name, size_t n)
{
    if (t->first_session == REMEMBERED) return 1; /* 64 bits with a secret key: no other has them */
    if (t->first_session != NONE) {
        const struct conn *c = &w->conns[t->first_session];
        return c->name_size == n && memcmp(conn_name(w, c), name, n) == 0;
    }
    const struct message *m = message_at(w, t->messages.first);
    return m->name_size == n && memcmp(message_name(m), name, n) == 0;
}

static uint32_t *token_bucket(const struct exportws *w, uint64_t hash)
{
    return &w->buckets[hash & w->bucket_mask];
}

/* The record of a token, or NONE; *hash is its name's. */
static uint32_t token_look(const struct exportws *w, const uint8_t *name, size_t n, uint64_t *hash)
{
    *hash = siphash(w->key, name, n);
    uint32_t record = *token_bucket(w, *hash);
    while (record != NONE &&
           !(w->tokens[record].hash == *hash && token_is(w, &w->tokens[record], name, n)))
        record = w->tokens[record].next;
    return record;
}

static uint32_t token_find(const struct exportws *w, const uint8_t *name, size_t n)
{
    uint64_t hash;
    return token_look(w, name, n, &hash);
}

/* Takes a record off the list of spare ones that it is on. */
static void token_recall(struct exportws *w, struct token *t)
{
    struct chain *list = &w->spare[t->history];
    uint32_t prev = t->messages.first, next = t->messages.last;
    *(prev == NONE ? &list->first : &w->tokens[prev].messages.last) = next;
    *(next == NONE ? &list->last : &w->tokens[next].messages.first) = prev;
    t->messages.first = t->messages.last = t->first_session = NONE;
    t->history = 0;
}

/* A record of which neither a session nor a message is left is spare. */
static void token_release(struct exportws *w, uint32_t record)
{
    struct token *t = &w->tokens[record];
    if (t->sessions > 0 || t->messages.first != NONE) return;
    struct chain *list = &w->spare[t->lost > w->forgotten];
    t->history = t->lost > w->forgotten;
    t->first_session = REMEMBERED;
    t->messages = (struct chain){list->last, NONE};
    *(list->last == NONE ? &list->first : &w->tokens[list->last].messages.last) = record;
    list->last = record;
}

/* A spare record is needed for another token: what was thrown away of its own is from now on what
 * may have been of any that there is no record of. */
static void token_forget(struct exportws *w, uint32_t record)
{
    struct token *t = &w->tokens[record];
    uint32_t *link = token_bucket(w, t->hash);
    while (*link != record) link = &w->tokens[*link].next;
    *link = t->next;
    if (t->lost > w->forgotten) w->forgotten = t->lost;
}

/* The record of a token, made when there is none: there are more than sessions and kept messages
 * (the reserve is for what is not kept yet), so that one is spare. The caller gives it a session or
 * a message at once, or releases it. */
static uint32_t token_make(struct exportws *w, const uint8_t *name, size_t n)
{
    uint64_t hash;
    uint32_t record = token_look(w, name, n, &hash), *bucket = token_bucket(w, hash);
    if (record != NONE) {
        if (w->tokens[record].first_session == REMEMBERED) token_recall(w, &w->tokens[record]);
        return record;
    }
    record = w->spare[w->spare[0].first == NONE].first;
    struct token *t = &w->tokens[record];
    if (t->first_session == REMEMBERED) token_forget(w, record); /* else it was never used */
    token_recall(w, t);
    t->hash = hash, t->lost = w->forgotten, t->next = *bucket;
    *bucket = record;
    return record;
}

/* Whether a message is held: nobody has got it, and nobody is getting it. */
static int message_held(const struct message *m)
{
    return m->refs == 0 && !(m->flags & MESSAGE_GOT);
}

/* How many messages are held for a token. */
static uint32_t token_held(const struct exportws *w, const struct token *t)
{
    uint32_t held = 0, i = t->first_session == REMEMBERED ? NONE : t->messages.first;
    for (; i != NONE; i = message_at(w, i)->next) held += (unsigned)message_held(message_at(w, i));
    return held;
}

/* ===== Keeping: what waits, what is held, history ===== */

/* Takes a message that nobody waits for out of its chain for good; one that nobody ever got is told
 * of, and freed, at the turn's end. Its token's record may go with it. */
static void message_discard(struct exportws *w, uint32_t index)
{
    struct message *m = message_at(w, index);
    struct token *owner = message_owner(w, m);
    uint32_t record = m->token;
    if (owner->lost < m->id) owner->lost = m->id;
    message_unlink(w, index);
    if ((m->flags & MESSAGE_OVERDUE) && !(m->flags & MESSAGE_GOT)) {
        w->m->expired++;
        m->next = w->expired;
        w->expired = index;
    } else {
        message_free(w, index);
    }
    if (record != NONE) token_release(w, record);
}

/* Keeps only the newest of an owner's history, and what of it somebody is reading. It stands before
 * what nobody has got: sessions get a chain's messages in order. */
static void history_trim(struct exportws *w, const struct token *owner)
{
    uint32_t left = owner->history, next, i = owner->messages.first;
    for (; left > w->o.history; i = next) {
        const struct message *m = message_at(w, i);
        next = m->next;
        left -= (m->flags & MESSAGE_AGING) != 0;
        if (m->refs == 0) message_discard(w, i);
    }
}

/* Fewer wait for a message, or it was got: when nobody waits any more it is kept while its time is
 * not over, as held when nobody has got it, else as history. */
static void message_settle(struct exportws *w, uint32_t index)
{
    const struct message *m = message_at(w, index);
    if (m->refs == 0 && !(m->flags & MESSAGE_AGING)) message_discard(w, index);
    else if (message_held(m)) w->held++;
    else history_trim(w, message_owner(w, m));
}

static void message_unref(struct exportws *w, uint32_t index)
{
    message_at(w, index)->refs--;
    message_settle(w, index);
}

/* Takes away what has been held, or history, too long. */
static int messages_expire(struct exportws *w)
{
    int events = 0;
    for (unsigned list = 0; list < 2; list++)
        while (w->ages[list].first != NONE &&
               message_at(w, w->ages[list].first)->due_ms <= w->now_ms) {
            uint32_t index = w->ages[list].first;
            struct message *m = message_at(w, index);
            message_age_off(w, m);
            m->flags |= MESSAGE_OVERDUE;
            events++;
            if (m->refs > 0) continue;
            if (list == 0) w->held--;
            message_discard(w, index);
        }
    return events;
}

/* Throws the oldest of all history away that nobody is reading: 1, or 0 when there is none. */
static int history_evict(struct exportws *w)
{
    uint32_t index = w->ages[1].first;
    while (index != NONE && message_at(w, index)->refs > 0) index = message_at(w, index)->age_next;
    if (index == NONE) return 0;
    message_discard(w, index);
    return 1;
}

/* Makes room of more than `left` blocks, if history that gives way is enough for it. 0, or -1. */
static int blocks_room(struct exportws *w, uint32_t left)
{
    while (w->blocks_free <= left)
        if (!history_evict(w)) return -1;
    return 0;
}

/* Takes a free block, or NONE. The reserve is for drafts: a body on its way to sessions that are
 * there must not fail for what is held for others. */
static uint32_t block_take(struct exportws *w, unsigned kind, int draft)
{
    if (blocks_room(w, draft ? 0 : w->reserve) < 0) return NONE;
    uint32_t block = w->free_block;
    w->free_block = w->links[block];
    w->blocks_free--;
    if (kind == 0) w->blocks_private++;
    return block;
}

/* A new, empty message that is nowhere yet: its index, or NONE when there is no room. */
static uint32_t message_new(struct exportws *w, unsigned kind, int draft, const uint8_t *name,
                            size_t name_size)
{
    uint32_t index = block_take(w, kind, draft);
    if (index == NONE) return NONE;
    struct message *m = message_at(w, index);
    memset(m, 0, sizeof *m);
    m->kind = (uint8_t)kind;
    m->flags = draft ? MESSAGE_DRAFT : 0;
    m->last = index;
    m->next = m->prev = m->age_next = m->age_prev = m->token = NONE;
    m->name_size = (uint16_t)name_size;
    if (name_size > 0) memmove(m + 1, name, name_size);
    return index;
}

/* Appends to the payload. 0, or -1 when there is no room: then the message is as far as it came. */
static int message_append(struct exportws *w, uint32_t index, const uint8_t *p, size_t n)
{
    struct message *m = message_at(w, index);
    while (n > 0) {
        size_t at = (sizeof *m + m->name_size + m->size) % w->block_bytes;
        size_t piece = smaller(w->block_bytes - at, n);
        if (at == 0) {
            uint32_t block = block_take(w, m->kind, m->flags & MESSAGE_DRAFT);
            if (block == NONE) return -1;
            w->links[m->last] = block;
            m->last = block;
        }
        memmove((uint8_t *)block_at(w, m->last) + at, p, piece);
        m->size += (uint32_t)piece;
        p += piece, n -= piece;
    }
    return 0;
}

/* ===== Output ===== */

/* Whether a connection whose send() or recv() failed so is as good as before. */
static int error_passes(int error)
{
    static const int passing[] = {EAGAIN, EWOULDBLOCK, EINTR, ENOBUFS, ENOMEM};
    for (unsigned i = 0; i < sizeof passing / sizeof *passing; i++)
        if (error == passing[i]) return 1;
    return 0;
}

/* Hands bytes to the kernel: how many it took, or -1 when the connection is no more. */
static ptrdiff_t conn_write(struct exportws *w, const struct conn *c, const uint8_t *p, size_t n)
{
    ssize_t sent = send(c->fd, p, n, MSG_NOSIGNAL);
    if (sent >= 0) {
        w->m->bytes_sent += (uint64_t)sent;
        return sent;
    }
    return error_passes(errno) ? 0 : -1;
}

/* Lets a kept message wait for one connection, behind all else that waits and before what has the
 * next id. What its token was sent after its close frame is not among that: so what follows the
 * close frame takes its place. */
static void conn_queue_private(struct exportws *w, struct conn *c, uint32_t index)
{
    struct message *m = message_at(w, index);
    uint32_t last = c->out.last;
    if (c->queued == 0) m->id = 0; /* before all that is to come */
    else m->id = c->flags & CONN_LAST ? message_at(w, last)->id : w->next_id;
    *(last == NONE ? &c->out.first : &message_at(w, last)->next) = index;
    c->out.last = index;
    c->queued++;
}

/* Sends bytes to one connection; what the kernel does not take of them waits in the buffer, of
 * which `share` blocks may go to such. 0; -1: the connection is no more; -2: there is no room (with
 * CONN_STARVED in the midst of a frame). */
static int conn_send(struct exportws *w, struct conn *c, const uint8_t *p, size_t n, uint32_t share)
{
    ptrdiff_t sent = 0;
    if (c->flags & CONN_STARVED) return -2;
    if (c->queued == 0) {
        sent = conn_write(w, c, p, n);
        if (sent < 0) return -1;
        if (sent == (ptrdiff_t)n) return 0;
    }
    uint32_t index = w->blocks_private < share ? message_new(w, 0, 0, NULL, 0) : NONE;
    if (index == NONE || message_append(w, index, p, n) < 0) {
        if (index != NONE) message_free(w, index);
        if (sent > 0) c->flags |= CONN_STARVED;
        return -2;
    }
    if (c->queued == 0) c->sent = (uint32_t)sent;
    conn_queue_private(w, c, index);
    return 0;
}

/* The blocks that pongs, closes and answers may take of the buffer: peers can make us send those.
 */
static uint32_t control_share(const struct exportws *w)
{
    return (w->block_count - w->reserve) / 4;
}

/* The message a connection, for which something waits, has to send next: the oldest of three
 * queues. */
static uint32_t conn_next(const struct exportws *w, const struct conn *c)
{
    uint32_t next = c->out.first;
    if (c->own != NONE && (next == NONE || message_at(w, c->own)->id < message_at(w, next)->id))
        next = c->own;
    if (c->all != NONE && (next == NONE || message_at(w, c->all)->id < message_at(w, next)->id))
        next = c->all;
    return next;
}

/* Steps over the message that conn_next gave. */
static void conn_advance(struct exportws *w, struct conn *c, uint32_t index)
{
    struct message *m = message_at(w, index);
    uint32_t next = m->next;
    c->queued--;
    c->sent = 0;
    if (c->replay > 0 && --c->replay == 0) w->replays--;
    if (index == c->out.first) {
        c->out.first = next;
        if (next == NONE) c->out.last = NONE;
        message_free(w, index);
    } else {
        int late = next != NONE && (c->flags & CONN_LAST) && c->out.last != NONE &&
                   message_at(w, next)->id >= message_at(w, c->out.last)->id;
        *(index == c->own ? &c->own : &c->all) = late ? NONE : next;
        message_unref(w, index);
    }
    if (c->queued == 0 || (c->flags & CONN_ABRUPT)) c->own = c->all = NONE;
}

/* Forgets what waits for a connection but a frame that is partly sent. */
static void conn_drop_queue(struct exportws *w, struct conn *c)
{
    uint32_t current = c->sent > 0 ? conn_next(w, c) : NONE, own = c->own, all = c->all,
             sent = c->sent;
    int private = current != NONE && current == c->out.first;
    if (current != NONE) {
        if (private) c->out.first = message_at(w, current)->next;
        else *(current == own ? &c->own : &c->all) = message_at(w, current)->next;
        if (c->out.first == NONE) c->out.last = NONE;
        if (c->flags & CONN_ABRUPT) c->own = c->all = NONE; /* nothing of theirs is its any more */
        c->queued--;
    }
    while (c->queued > 0) conn_advance(w, c, conn_next(w, c));
    if (c->replay > 0) c->replay = 0, w->replays--;
    c->own = c->all = NONE;
    if (current == NONE) return;
    c->queued = 1;
    c->sent = sent;
    if (private) c->out.first = c->out.last = current, message_at(w, current)->next = NONE;
    else if (current == own) c->own = current;
    else c->all = all;
}

/* What stands before a message's payload on its way to a connection: the frame's head and, with
 * exportws.v1, the id and a newline. Returns its length. */
static size_t message_head(const struct conn *c, unsigned kind, uint64_t id, size_t size,
                           uint8_t out[MESSAGE_HEAD_MAX])
{
    char line[MESSAGE_HEAD_MAX - FRAME_HEAD_MAX];
    struct text t = {line, 0, sizeof line};
    if (c->ids) text_decimal(&t, id), text_add(&t, "\n");
    size_t head = frame_encode(out, kind, t.n + size);
    memmove(out + head, line, t.n);
    return head + t.n;
}

/* Fills the stage with what is left of a message on its way to a connection; returns its size. */
static size_t stage_rest(struct exportws *w, const struct conn *c, uint32_t index, size_t *total)
{
    const struct message *m = message_at(w, index);
    uint8_t head[MESSAGE_HEAD_MAX];
    size_t head_size = m->kind == 0 ? 0 : message_head(c, m->kind, m->id, m->size, head);
    size_t n = c->sent < head_size ? head_size - c->sent : 0;
    if (n > 0) memcpy(w->stage, head + c->sent, n);
    *total = head_size + m->size;
    return n + message_copy(w, index, c->sent + n - head_size, w->stage + n,
                            smaller(w->stage_size - n, 1U << 18));
}

/* Sends what waits for a connection until the kernel takes no more or it has had its turn. Returns
 * bytes sent, or -1 when the connection is no more. Uses the stage. */
static ptrdiff_t conn_flush(struct exportws *w, struct conn *c)
{
    ptrdiff_t progress = 0;
    for (unsigned turn = 0; turn < 64 && c->queued > 0; turn++) {
        uint32_t index = conn_next(w, c);
        size_t total, n = stage_rest(w, c, index, &total);
        ptrdiff_t sent = conn_write(w, c, w->stage, n);
        if (sent < 0) return -1;
        progress += sent;
        c->sent += (uint32_t)sent;
        if (c->sent == total) {
            struct message *m = message_at(w, index);
            if (m->kind != 0) message_got(w, index);
            conn_advance(w, c, index);
        }
        if ((size_t)sent < n) break;
    }
    return progress;
}

/* Brings a connection's timer and poll entry in line after something was sent, queued or flushed.
 */
static void conn_output_done(struct exportws *w, struct conn *c, int progress)
{
    int waits = c->queued > 0 && !(c->flags & CONN_ABRUPT);
    poll_want(w, c);
    switch (c->state) {
    case CONN_OPEN:
    case CONN_PUSH:
        /* That a ping waits to be sent does not make its answer less due. */
        if (waits && (progress || (c->timer != TIMER_WRITE && c->timer != TIMER_PONG)))
            timer_set(w, c, TIMER_WRITE);
        if (!waits && c->timer == TIMER_WRITE)
            timer_set(w, c, c->state == CONN_OPEN ? TIMER_PING
                          : push_rests(w, c)      ? TIMER_IDLE
                                                  : TIMER_HEAD);
        return;
    default: /* CONN_CLOSING, CONN_LINGER: that comes here once with nothing left to send */
        if (c->timer != TIMER_CLOSE) { /* once it runs nothing stops it */
            int patient = c->state == CONN_CLOSING || conn_is_pusher(w, c);
            if (!waits || !patient) timer_set(w, c, TIMER_CLOSE);
            else if (progress || c->timer != TIMER_WRITE) timer_set(w, c, TIMER_WRITE);
        }
        if (c->state == CONN_LINGER && c->queued == 0 && shutdown(c->fd, SHUT_WR) < 0)
            conn_doom(w, c);
        return;
    }
}

/* ===== Addresses: sessions from one peer (only with per_address) ===== */

static uint32_t *address_link(const struct exportws *w, const uint8_t bytes[16])
{
    uint32_t *link = &w->address_buckets[siphash(w->key, bytes, 16) & w->address_mask];
    while (*link != NONE && memcmp(w->addresses[*link].bytes, bytes, 16) != 0)
        link = &w->addresses[*link].next;
    return link;
}

/* Whether one more session from here is within the bound. */
static int address_admits(const struct exportws *w, const uint8_t bytes[16])
{
    if (w->o.per_address == 0) return 1;
    uint32_t index = *address_link(w, bytes);
    return index == NONE || w->addresses[index].sessions < w->o.per_address;
}

static void address_join(struct exportws *w, const struct conn *c)
{
    if (w->o.per_address == 0) return;
    uint32_t *link = address_link(w, c->address);
    if (*link == NONE) {
        uint32_t index = w->free_address;
        struct address *a = &w->addresses[index];
        w->free_address = a->next;
        memcpy(a->bytes, c->address, 16);
        a->sessions = 0;
        a->next = NONE;
        *link = index;
    }
    w->addresses[*link].sessions++;
}

static void address_leave(struct exportws *w, const struct conn *c)
{
    if (w->o.per_address == 0) return;
    uint32_t *link = address_link(w, c->address), index = *link;
    if (--w->addresses[index].sessions > 0) return;
    *link = w->addresses[index].next;
    w->addresses[index].next = w->free_address;
    w->free_address = index;
}

/* ===== Sessions ===== */

static void session_ring_join(struct exportws *w, struct conn *c, uint32_t record)
{
    struct token *t = &w->tokens[record];
    uint32_t index = (uint32_t)(c - w->conns);
    c->token = record;
    if (t->sessions++ == 0) {
        t->first_session = c->next = c->prev = index;
        w->online++;
        return;
    }
    struct conn *first = &w->conns[t->first_session];
    c->next = t->first_session;
    c->prev = first->prev;
    w->conns[first->prev].next = index;
    first->prev = index;
}

static void session_ring_leave(struct exportws *w, struct conn *c)
{
    struct token *t = &w->tokens[c->token];
    w->conns[c->prev].next = c->next;
    w->conns[c->next].prev = c->prev;
    if (t->first_session == (uint32_t)(c - w->conns)) t->first_session = c->next;
    if (--t->sessions > 0) return;
    t->first_session = NONE;
    w->online--;
}

/* Where a client that reconnects left off: every message after `last` is new to it. */
struct resume {
    uint64_t last;
    int asked;
};

/* Whether something that a session would have got after `last` was thrown away. An id that was never
 * given out says nothing: then nothing is known, and *last becomes 0. */
static int session_gap(const struct exportws *w, const struct conn *c, uint64_t *last)
{
    const uint64_t lost = w->tokens[c->token].lost, all = w->all->lost;
    if (*last >= w->next_id) {
        *last = 0;
        return 1;
    }
    uint64_t from = *last > 0 ? *last : w->first_id - 1; /* 0: all that this server has */
    return lost > from || all > from;
}

/* Lets a new session wait for a chain's messages from one on. Returns MESSAGE_END when its token's
 * last is among them. */
static unsigned session_claim_from(struct exportws *w, struct conn *c, uint32_t index)
{
    unsigned ends = 0;
    for (; index != NONE; index = message_at(w, index)->next) {
        struct message *m = message_at(w, index);
        if (message_held(m)) w->held--;
        m->refs++;
        ends |= m->flags & MESSAGE_END;
        c->queued++;
        w->m->delivered++;
    }
    return ends;
}

/* The first message of a chain that came after an id, or that nobody has got: what is behind that
 * one nobody has got either. Before it stands what was deleted. */
static uint32_t chain_after(const struct exportws *w, const struct chain *chain, uint64_t id)
{
    uint32_t index = chain->first;
    while (index != NONE && (message_at(w, index)->flags & MESSAGE_GOT) &&
           ((message_at(w, index)->flags & MESSAGE_KICKED) || message_at(w, index)->id <= id))
        index = message_at(w, index)->next;
    return index;
}

/* Lets a new session wait for what it has missed: with a place to resume from all that came after
 * it, else what nobody of its token has got. Returns whether that was its token's last. */
static int session_claim(struct exportws *w, struct conn *c, const struct resume *from)
{
    const struct chain *own = &w->tokens[c->token].messages;
    unsigned ends = 0;
    c->own = chain_after(w, own, from->asked ? from->last : UINT64_MAX);
    if (from->asked) {
        if (own->last != NONE) ends = message_at(w, own->last)->flags & MESSAGE_END;
        c->all = chain_after(w, &w->all->messages, from->last);
        session_claim_from(w, c, c->all);
    }
    ends |= session_claim_from(w, c, c->own);
    return ends != 0;
}

/* The session is one no more: it leaves its token and the counts at once, its slot when the loop
 * has closed it. What waits for it is not touched. */
static void session_leave(struct exportws *w, struct conn *c, int reason, unsigned code)
{
    uint32_t index = (uint32_t)(c - w->conns), record = c->token;
    session_ring_leave(w, c);
    c->prev = (uint32_t)w->now_ms; /* of one that is closing: since when */
    token_release(w, record);
    c->state = CONN_CLOSING;
    c->reason = (uint8_t)reason;
    c->code = (uint16_t)code;
    w->sessions--;
    w->m->closed[reason]++;
    c->next = NONE;
    *(w->left_last == NONE ? &w->left_first : &w->conns[w->left_last].next) = index;
    w->left_last = index;
}

/* The session's socket is no use any more. */
static void session_lost(struct exportws *w, struct conn *c, int reason)
{
    if (c->state == CONN_OPEN) session_leave(w, c, reason, 1006);
    conn_drop_queue(w, c);
    conn_doom(w, c);
}

/* Sends a control frame. 0, or -1 as conn_send. */
static int session_control(struct exportws *w, struct conn *c, unsigned opcode, const uint8_t *p,
                           size_t n)
{
    uint8_t frame[2 + CONTROL_MAX];
    size_t head = frame_encode(frame, opcode, n);
    if (n > 0) memcpy(frame + head, p, n);
    return conn_send(w, c, frame, head + n, control_share(w));
}

/* A session that has left gets no close frame. What still waited for it is lost then, and it was too
 * slow to take that. */
static void session_cut(struct exportws *w, struct conn *c)
{
    c->code = 1006;
    if (c->queued > 0 && !(c->flags & CONN_ABRUPT)) {
        w->m->closed[c->reason]--;
        w->m->closed[EXPORTWS_BY_SLOW]++;
        c->reason = EXPORTWS_BY_SLOW;
    }
    session_lost(w, c, c->reason);
}

/* Sends a close frame behind what waits; the connection goes on to `state`. */
static void session_send_close(struct exportws *w, struct conn *c, unsigned state, unsigned code,
                               const char *why)
{
    uint8_t payload[CONTROL_MAX];
    size_t n = code == 1005 ? 0 : 2 + smaller(strlen(why), CONTROL_MAX - 2);
    store_be(payload, 2, code);
    if (n > 2) memcpy(payload + 2, why, n - 2);
    if (session_control(w, c, OP_CLOSE, payload, n) < 0) {
        session_cut(w, c);
        return;
    }
    c->flags |= CONN_LAST;
    c->state = (uint8_t)state;
    conn_output_done(w, c, 0);
}

/* Ends a session in good order: what waits for it is sent first, then the close frame. */
static void session_end(struct exportws *w, struct conn *c, int reason, unsigned code,
                        const char *why)
{
    session_leave(w, c, reason, code);
    session_send_close(w, c, CONN_CLOSING, code, why);
}

/* Ends a session now: nothing that waits for it is sent but the rest of the frame it is in. A peer
 * that broke the protocol, or is in the midst of a message, won't be understood any more: it is not
 * asked for its close frame. */
static void session_fail(struct exportws *w, struct conn *c, int reason, unsigned code,
                         const char *why)
{
    int deaf = reason == EXPORTWS_BY_PROTOCOL || c->input > 0;
    session_leave(w, c, reason, code);
    conn_drop_queue(w, c);
    c->flags |= CONN_ABRUPT;
    session_send_close(w, c, deaf ? CONN_LINGER : CONN_CLOSING, code, why);
}

/* Makes a session of a client whose handshake is accepted: it takes a slot (there must be one) and
 * the connection. */
static struct conn *session_open(struct exportws *w, struct conn *from, const uint8_t *name,
                                 size_t n)
{
    uint32_t record = token_find(w, name, n), index = w->free_session;
    struct conn *c = &w->conns[index];
    uint32_t generation = c->generation + 1;
    while (record != NONE && w->tokens[record].sessions >= w->o.per_token) {
        session_end(w, &w->conns[w->tokens[record].first_session], EXPORTWS_BY_REPLACED, 4001,
                    "replaced");
        record = token_find(w, name, n);
    }
    w->free_session = c->timer_next;
    w->slots_used = (uint32_t)larger(w->slots_used, index + 1);
    timer_clear(w, from);
    *c = *from;
    c->generation = generation;
    c->state = CONN_OPEN;
    w->owners[c->at] = index;
    if (c->input > 0) w->inputs[c->input - 1].owner = index;
    from->state = CONN_FREE;
    from->timer_next = w->free_handshake;
    w->free_handshake = (uint32_t)(from - w->conns);
    w->handshakes--;
    c->name_size = (uint16_t)n;
    memcpy(conn_name(w, c), name, n);
    conn_name(w, c)[n] = '\0';
    session_ring_join(w, c, token_make(w, name, n));
    address_join(w, c);
    w->sessions++;
    w->seats++;
    w->m->opened++;
    timer_set(w, c, TIMER_PING);
    return c;
}

static const char *const close_reasons[EXPORTWS_REASONS] = {
    "peer", "error", "timeout", "slow", "protocol", "replaced", "ended", "shutdown"};

/* Tells of messages that nobody came for, and frees them. */
static void messages_announce(struct exportws *w)
{
    while (w->expired != NONE) {
        uint32_t index = w->expired;
        const struct message *m = message_at(w, index);
        struct line l;
        w->expired = m->next;
        int told = log_begin(w, &l, EXPORTWS_LOG_INFO, "expire");
        if (told) {
            log_token(w, &l, message_name(m), m->name_size);
            log_number(&l, "id", m->id), log_number(&l, "size", m->size);
        }
        message_free(w, index);
        if (told) log_end(w, &l);
    }
}

/* Tells of sessions that have left; what on_close does may make more leave. */
static void sessions_announce(struct exportws *w)
{
    while (w->left_first != NONE) {
        struct conn *c = &w->conns[w->left_first];
        struct line l;
        w->left_first = c->next;
        if (w->left_first == NONE) w->left_last = NONE;
        if (log_session(w, &l, "close", c)) {
            log_word(&l, "reason", close_reasons[c->reason]);
            log_number(&l, "code", c->code);
            log_counts(w, &l);
            log_end(w, &l);
        }
        if (w->o.on_close && (c->flags & CONN_TOLD))
            w->o.on_close(w->o.user, conn_id(w, c), conn_name(w, c), c->reason, c->code);
    }
}

/* The open session of an id, or NULL. */
static struct conn *session_find(const struct exportws *w, exportws_id id)
{
    uint32_t index = (uint32_t)(id & 0xffffffff);
    struct conn *c = &w->conns[index < w->capacity ? index : 0];
    return index < w->capacity && c->state == CONN_OPEN && c->generation == id >> 32 ? c : NULL;
}

/* ===== Push: one message on its way to many ===== */

struct pushed {
    const uint8_t *data; /* may stand in the stage */
    size_t size;
    unsigned kind;
    const uint8_t *name; /* of its token; NULL: to all */
    size_t name_size;
    uint32_t index; /* where it is kept, or NONE */
    uint32_t record; /* 1 + that of its token, or 0: not looked up */
    uint8_t end;    /* the token's last: its sessions end */
    uint8_t linked, got;
    uint64_t id;
    const uint8_t *frame; /* in the stage: as the last session got it, */
    size_t frame_size;
    uint8_t framed; /* 1, with an id 2; 0: not yet */
};

/* The record that the message is kept with. That of a token which has lost its last session meanwhile
 * is asked for again. */
static uint32_t pushed_record(struct exportws *w, struct pushed *p)
{
    if (!p->name) return NONE;
    if (p->record == 0 || w->tokens[p->record - 1].first_session == REMEMBERED)
        p->record = 1 + token_make(w, p->name, p->name_size);
    return p->record - 1;
}

/* Whether so many blocks would be free beside the reserve if all history gave way. */
static int history_suffices(const struct exportws *w, uint32_t blocks)
{
    uint32_t room = w->blocks_free;
    for (uint32_t i = w->ages[1].first; i != NONE; i = message_at(w, i)->age_next)
        room += blocks_of(w, message_at(w, i)->name_size, message_at(w, i)->size);
    return room >= blocks + w->reserve;
}

/* Whether a session, but none of the token of `to` (NULL: of any), is still being sent what it has
 * missed, and a message is to come. */
static int replay_reads(const struct exportws *w, const struct conn *c, const struct message *m,
                        const struct conn *to)
{
    const uint32_t at = m->token == NONE ? c->all : c->own;
    if (c->state != CONN_OPEN || c->replay == 0 || at == NONE || (to && c->token == to->token))
        return 0;
    return message_at(w, at)->token == m->token && message_at(w, at)->id <= m->id;
}

/* History gives way to new messages also where somebody is reading it, when no other is left: the
 * oldest that nobody waits for but sessions which are being sent what they have missed. These have
 * to go, and may come again. Not those of the token of `to`: they are being gone through. 1, or 0
 * when there is no such message. */
static int replay_give_way(struct exportws *w, const struct conn *to)
{
    uint32_t index = w->ages[1].first, readers = 0;
    for (unsigned tries = 0; index != NONE && tries < REPLAY_TRIES; tries++) {
        const struct message *m = message_at(w, index);
        readers = 0;
        for (uint32_t i = 0; i < w->slots_used; i++)
            readers += (unsigned)replay_reads(w, &w->conns[i], m, to);
        if (readers == m->refs) break;
        readers = 0, index = m->age_next;
    }
    for (uint32_t i = 0, left = readers; left > 0; i++) {
        struct conn *c = &w->conns[i];
        if (!replay_reads(w, c, message_at(w, index), to)) continue;
        left--;
        if (c->sent > 0 && conn_next(w, c) == index) { /* the rest of it is not waited for */
            c->sent = 0;
            session_lost(w, c, EXPORTWS_BY_SLOW);
        } else {
            session_fail(w, c, EXPORTWS_BY_SLOW, 1013, "too slow: history gave way");
        }
    }
    return readers > 0;
}

/* Keeps the message, if there is room beside what others are reading; with MESSAGE_GOT as one that
 * somebody has got. 0, or -1. */
static int pushed_store(struct exportws *w, struct pushed *p, unsigned flags)
{
    if (p->index == NONE) {
        uint32_t index = message_new(w, p->kind, 0, p->name, p->name_size);
        if (index == NONE) return -1;
        if (message_append(w, index, p->data, p->size) < 0) {
            message_free(w, index);
            return -1;
        }
        p->index = index;
    }
    if (p->linked) return 0;
    if (blocks_room(w, w->reserve - 1) < 0) return -1; /* a draft that the reserve is needed for */
    message_at(w, p->index)->flags = (uint8_t)((p->end ? MESSAGE_END : 0) | flags);
    message_at(w, p->index)->id = p->id;
    message_link(w, p->index, pushed_record(w, p));
    p->linked = 1;
    return 0;
}

/* Keeps the message for those who can't take it now: for `to`, or (NULL) for who is to come. 0, or
 * -1 when there is no room. */
static int pushed_keep(struct exportws *w, struct pushed *p, const struct conn *to)
{
    const uint32_t blocks = p->index == NONE ? blocks_of(w, p->name_size, p->size) : 0;
    if (pushed_store(w, p, 0) == 0) return 0;
    if (w->replays == 0 || !history_suffices(w, blocks)) return -1;
    while (replay_give_way(w, to))
        if (pushed_store(w, p, 0) == 0) return 0;
    return -1;
}

/* Builds the frame for a session, right before the payload in the stage, unless it stands there. */
static void pushed_frame(const struct conn *c, struct pushed *p)
{
    uint8_t head[MESSAGE_HEAD_MAX];
    if (p->framed == 1 + c->ids) return;
    size_t n = message_head(c, p->kind, p->id, p->size, head);
    p->framed = (uint8_t)(1 + c->ids);
    p->frame_size = n + p->size;
    p->frame = memmove((uint8_t *)p->data - n, head, n);
}

/* Hands the message, whose payload is in the stage, to one session: straight to the kernel, or to its
 * queue. Returns 1, or 0 when the session had to go. */
static int session_give(struct exportws *w, struct conn *c, struct pushed *p)
{
    ptrdiff_t sent = 0;
    if (c->queued == 0) {
        pushed_frame(c, p);
        sent = conn_write(w, c, p->frame, p->frame_size);
        if (sent == (ptrdiff_t)p->frame_size) {
            p->got = 1;
            return 1;
        }
        if (sent < 0) {
            session_lost(w, c, EXPORTWS_BY_ERROR);
            return 0;
        }
    }
    int full = c->queued - c->replay >= w->o.queue;
    if (full || pushed_keep(w, p, c) < 0) {
        if (sent > 0) session_lost(w, c, EXPORTWS_BY_SLOW);
        else
            session_fail(w, c, EXPORTWS_BY_SLOW, 1013,
                         full ? "too slow: queue full" : "too slow: buffer full");
        return 0;
    }
    uint32_t *cursor = p->name ? &c->own : &c->all;
    if (*cursor == NONE) *cursor = p->index;
    if (c->queued++ == 0) c->sent = (uint32_t)sent;
    message_at(w, p->index)->refs++;
    conn_output_done(w, c, sent > 0);
    return 1;
}

/* To every session of its token. */
static int pushed_to_token(struct exportws *w, struct pushed *p)
{
    uint32_t record = token_find(w, p->name, p->name_size);
    int reached = 0;
    if (record == NONE) return 0;
    p->record = 1 + record;
    uint32_t index = w->tokens[record].first_session;
    for (uint32_t left = w->tokens[record].sessions; left > 0; left--) {
        struct conn *c = &w->conns[index];
        index = c->next;
        reached += session_give(w, c, p);
    }
    return reached;
}

/* To every session, in the order of their slots: it is about that of their coming, in which the
 * kernel's records of their sockets are found fastest. */
static int pushed_to_all(struct exportws *w, struct pushed *p)
{
    int reached = 0;
    for (uint32_t i = 0; i < w->slots_used; i++)
        if (w->conns[i].state == CONN_OPEN) reached += session_give(w, &w->conns[i], p);
    return reached;
}

/* What becomes of the message after its sessions had their turn: held, history, or nothing. Returns
 * whether it is held. */
static int pushed_settle(struct exportws *w, struct pushed *p, int reached)
{
    int history = w->o.hold_ms > 0 && w->o.history > 0 && (reached > 0 || !p->name);
    int hold = w->o.hold_ms > 0 && reached == 0 && p->name;
    int held = hold && pushed_keep(w, p, NULL) == 0;
    if (history) pushed_store(w, p, p->got ? MESSAGE_GOT : 0);
    if (p->linked) {
        if (p->got) message_got(w, p->index);
        message_settle(w, p->index);
        return held;
    }
    if (!p->name) {
        w->all->lost = p->id;
    } else if (reached > 0) {
        uint32_t record = pushed_record(w, p);
        w->tokens[record].lost = p->id;
        token_release(w, record);
    }
    if (p->index != NONE) message_free(w, p->index);
    return 0;
}

/* Begins the line that tells of the message; 0 when nobody wants it. */
static int pushed_line(struct exportws *w, struct line *l, const struct pushed *p, int reached)
{
    if (!log_begin(w, l, EXPORTWS_LOG_INFO, p->name && reached == 0 ? "hold" : "push")) return 0;
    if (p->name) log_token(w, l, p->name, p->name_size);
    log_number(l, "id", p->id), log_number(l, "size", p->size);
    if (!p->name || reached > 0) log_number(l, "delivered", (uint64_t)reached);
    return 1;
}

/* Ends all sessions of a token. */
static void token_end(struct exportws *w, uint32_t record)
{
    uint32_t index = w->tokens[record].first_session;
    for (uint32_t left = w->tokens[record].sessions; left > 0; left--) {
        struct conn *c = &w->conns[index];
        index = c->next;
        session_end(w, c, EXPORTWS_BY_ENDED, 1000, "ended");
    }
}

/* Copies the payload to the stage and hands it out. Whoever is reached, held or refused: p->index is
 * settled. Returns the number of sessions reached, 0 for held (or a broadcast that reached nobody),
 * EXPORTWS_ABSENT or EXPORTWS_FULL. */
static int pushed_deliver(struct exportws *w, struct pushed *p)
{
    uint8_t *payload = w->stage + MESSAGE_HEAD_MAX;
    p->id = w->next_id++;
    if (p->size > 0) memmove(payload, p->data, p->size);
    p->data = payload;
    struct line l;
    int reached = p->name ? pushed_to_token(w, p) : pushed_to_all(w, p);
    w->sends += p->name ? (uint32_t)reached + 1 : w->sessions;
    int told = pushed_line(w, &l, p, reached); /* a draft's name goes with it, at the next line */
    int held = pushed_settle(w, p, reached);
    if (p->end && reached > 0) token_end(w, p->record - 1);
    if (p->name && reached == 0 && !held) return w->o.hold_ms > 0 ? EXPORTWS_FULL : EXPORTWS_ABSENT;
    w->m->pushed++;
    w->m->delivered += (uint64_t)reached;
    w->m->held += (unsigned)held;
    if (told) log_end(w, &l);
    return reached;
}

/* Ends all sessions of a token and drops what is held for it, and its history. Returns the sessions
 * ended, or EXPORTWS_ABSENT when there was neither a session nor something held. */
static int token_kick(struct exportws *w, uint32_t record)
{
    struct token *t = &w->tokens[record];
    uint32_t next, sessions = t->sessions, held = token_held(w, t);
    uint32_t i = t->first_session == REMEMBERED ? NONE : t->messages.first;
    for (; i != NONE; i = next) {
        struct message *m = message_at(w, i);
        next = m->next;
        if (message_held(m)) w->held--;
        message_age_off(w, m);
        m->flags = MESSAGE_LINKED | MESSAGE_GOT | MESSAGE_KICKED;
        if (t->lost < m->id) t->lost = m->id;
        if (m->refs == 0) message_discard(w, i);
    }
    if (sessions > 0) token_end(w, record);
    return sessions > 0 || held > 0 ? (int)sessions : EXPORTWS_ABSENT;
}

/* ===== Input ===== */

/* Empties an input for a new owner. */
static void input_reset(struct input *in, uint32_t owner, uint64_t now_ms)
{
    uint8_t *data = in->data;
    size_t size = in->size;
    memset(in, 0, sizeof *in);
    in->data = data;
    in->size = size;
    in->owner = owner;
    in->since_ms = now_ms;
}

/* The input that a connection holds, or the scratch. */
static struct input *input_of(const struct exportws *w, const struct conn *c)
{
    return c->input > 0 ? &w->inputs[c->input - 1] : w->scratch;
}

/* An input for a connection, which holds none; there must be a free one. */
static struct input *input_take(struct exportws *w, struct conn *c)
{
    uint32_t i = 0;
    while (w->inputs[i].owner != NONE) i++;
    w->free_inputs--;
    c->input = (uint8_t)(i + 1);
    input_reset(&w->inputs[i], (uint32_t)(c - w->conns), w->now_ms);
    return &w->inputs[i];
}

static void input_release(struct exportws *w, struct conn *c)
{
    if (c->input == 0) return;
    w->inputs[c->input - 1].owner = NONE;
    w->free_inputs++;
    w->inputs_freed = 1;
    c->input = 0;
}

/* Moves what is not decoded yet to behind the message so far. */
static void input_compact(struct input *in)
{
    size_t rest = in->used - in->raw;
    if (rest > 0) memmove(in->data + in->have, in->data + in->raw, rest);
    in->raw = in->have;
    in->used = in->have + rest;
}

/* Keeps the scratch's incomplete unit in an input of the connection's own. */
static void input_keep(struct exportws *w, struct conn *c)
{
    struct input *from = w->scratch, *to = input_take(w, c);
    uint8_t *data = to->data;
    size_t size = to->size;
    uint32_t owner = to->owner;
    uint64_t since_ms = to->since_ms;
    *to = *from;
    to->data = data, to->size = size, to->owner = owner, to->since_ms = since_ms;
    memcpy(data, from->data, from->used);
}

/* Reads once, at most so many bytes. Returns bytes read; 0: nothing there; -1: the end; -2: an
 * error. */
static ptrdiff_t input_receive(struct exportws *w, const struct conn *c, struct input *in,
                               size_t most, int flags)
{
    ssize_t n = recv(c->fd, in->data + in->used, smaller(most, in->size - in->used), flags);
    if (n > 0) in->used += (size_t)n;
    if (n > 0 && !(flags & MSG_PEEK)) w->m->bytes_received += (uint64_t)n;
    if (n >= 0) return n > 0 ? n : -1;
    return error_passes(errno) ? 0 : -2;
}

/* Takes n bytes that were peeked at, and so are there, from the kernel. 0, or -1 when it fails on and
 * on: then they would be served twice. */
static int input_discard(const struct conn *c, struct input *in, size_t n)
{
    for (unsigned tries = 0; n > 0 && tries < DISCARD_TRIES;) {
        ssize_t taken = recv(c->fd, in->data, n, 0);
        if (taken > 0) n -= (size_t)taken;
        else tries++;
    }
    return n > 0 ? -1 : 0;
}

/* ===== Conversation ===== */

/* Sees to what conn_send came to: a session that can't take an answer has to go. */
static void session_sent(struct exportws *w, struct conn *c, int result)
{
    if (result == -1) session_lost(w, c, EXPORTWS_BY_ERROR);
    else if (result < 0 || c->queued - c->replay > w->o.queue)
        session_fail(w, c, EXPORTWS_BY_SLOW, 1013, "too slow: queue full");
    else conn_output_done(w, c, 0);
}

/* A whole message of a client. */
static void session_message(struct exportws *w, struct conn *c, const uint8_t *p, size_t n,
                            unsigned kind)
{
    struct line l;
    if (c->state != CONN_OPEN) return;
    if (kind == OP_TEXT && n == strlen(w->o.heartbeat) && memcmp(p, w->o.heartbeat, n) == 0) {
        w->m->heartbeats++;
        if (!w->o.heartbeat_reply) return;
        uint8_t head[FRAME_HEAD_MAX];
        size_t head_size = frame_encode(head, OP_TEXT, n);
        memcpy(w->stage, head, head_size);
        memcpy(w->stage + head_size, p, n);
        session_sent(w, c, conn_send(w, c, w->stage, head_size + n, control_share(w)));
        return;
    }
    c->flags |= CONN_SPOKE;
    w->m->received++;
    if (w->o.on_message) {
        w->o.on_message(w->o.user, conn_id(w, c), conn_name(w, c), p, n, (int)kind);
    } else if (log_session(w, &l, "message", c)) {
        log_number(&l, "size", n);
        if (kind == OP_TEXT) log_outside(&l, "text", p, n, 48);
        log_end(w, &l);
    }
}

static void session_peer_close(struct exportws *w, struct conn *c, const uint8_t *p, size_t n,
                               int more)
{
    unsigned code = n >= 2 ? (unsigned)p[0] << 8 | p[1] : 1005;
    if (c->state != CONN_OPEN) {
        conn_doom(w, c);
        return;
    }
    if (n == 1 || (n >= 2 && !close_code_valid(code))) {
        session_fail(w, c, EXPORTWS_BY_PROTOCOL, 1002, "bad close frame");
        return;
    }
    if (n > 2 && !utf8_valid(p + 2, n - 2)) {
        session_fail(w, c, EXPORTWS_BY_PROTOCOL, 1007, "close reason is not UTF-8");
        return;
    }
    session_leave(w, c, EXPORTWS_BY_PEER, code);
    conn_drop_queue(w, c);
    c->flags |= CONN_ABRUPT;
    session_send_close(w, c, CONN_CLOSING, code, "");
    if (c->state == CONN_DEAD) return;
    if (!more && c->queued == 0) {
        conn_doom(w, c);
        return;
    }
    c->state = CONN_LINGER;
    conn_output_done(w, c, 0);
}

/* A whole control frame, unmasked; more: bytes follow it. */
static void session_control_frame(struct exportws *w, struct conn *c, unsigned opcode,
                                  const uint8_t *p, size_t n, int more)
{
    if (opcode == OP_CLOSE) session_peer_close(w, c, p, n, more);
    if (opcode != OP_PING) return; /* one that closes is owed pongs until its close frame */
    c->flags |= CONN_SPOKE;
    int result = session_control(w, c, OP_PONG, p, n);
    if (c->state == CONN_OPEN) session_sent(w, c, result);
    else if (result < 0 || c->queued > w->o.queue) conn_doom(w, c);
    else conn_output_done(w, c, 0);
}

/* Reads on in the payload of a data frame. 1: that was the frame; 0: more is needed; -code. */
static int session_payload(struct exportws *w, struct conn *c, struct input *in)
{
    size_t n = smaller((size_t)in->left, in->used - in->raw);
    uint8_t *to = in->data + in->have;
    frame_unmask(to, in->data + in->raw, n, in->mask, in->phase);
    in->raw += n, in->have += n, in->left -= n, in->phase += n;
    if (in->kind == OP_TEXT && utf8_feed(&in->utf8, to, n) < 0) return -1007;
    if (in->left > 0) return 0;
    in->in_frame = 0;
    if (!in->fin) return 1;
    if (in->utf8.need > 0) return -1007;
    unsigned kind = in->kind;
    n = in->have;
    in->have = 0, in->kind = 0;
    session_message(w, c, in->data, n, kind);
    return 1;
}

/* Takes the next unit off the input. 1: go on; 0: more is needed; -code. With peek it takes only
 * what leaves nothing to remember. */
static int session_step(struct exportws *w, struct conn *c, struct input *in, int peek)
{
    struct frame f;
    uint8_t *p = in->data + in->raw;
    size_t n = in->used - in->raw;
    if (in->in_frame) return session_payload(w, c, in);
    int head = frame_decode(p, n, &f);
    if (head <= 0) return head;
    p += head, n -= (size_t)head;
    if (f.opcode >= OP_CLOSE) {
        if (n < f.size) return 0;
        in->raw += (size_t)head + (size_t)f.size;
        frame_unmask(p, p, (size_t)f.size, f.mask, 0);
        session_control_frame(w, c, f.opcode, p, (size_t)f.size, n > f.size);
        return 1;
    }
    if ((f.opcode == OP_CONTINUATION) != (in->kind != 0)) return -1002;
    if (f.size > w->o.max_message_bytes - in->have) return -1009;
    if (peek && (!f.fin || n < f.size)) return 0;
    if (in->kind == 0) {
        in->kind = f.opcode;
        in->utf8 = (struct utf8){0, 0, 0};
    }
    in->raw += (size_t)head;
    in->in_frame = 1, in->fin = f.fin, in->left = f.size, in->phase = 0;
    memcpy(in->mask, f.mask, 4);
    return session_payload(w, c, in);
}

static const char *close_why(int code)
{
    return code == 1007 ? "not UTF-8" : code == 1009 ? "message too big" : "protocol error";
}

/* Serves all whole units in the input. */
static void session_feed(struct exportws *w, struct conn *c, struct input *in, int peek)
{
    int step = 1;
    while (step > 0 && (c->state == CONN_OPEN || c->state == CONN_CLOSING)) {
        step = session_step(w, c, in, peek);
        /* What it is kept for is new; but where others wait it is kept from them. */
        if (step > 0 && in->kind == 0 && w->now_ms > w->wait_due_ms + WAIT_LATELY_MS)
            in->since_ms = w->now_ms;
        if (step >= 0) continue;
        if (c->state == CONN_OPEN)
            session_fail(w, c, EXPORTWS_BY_PROTOCOL, (unsigned)-step, close_why(-step));
        else conn_doom(w, c);
    }
}

/* ===== Responses ===== */

/* The statuses of both doors; the row's number is its place in metrics.refused. */
static const struct status {
    uint16_t code;
    const char *line, *fields; /* with the code; more header lines, each with what ends the one before */
} statuses[] = {
    {200, "200 OK", ""},
    {202, "202 Accepted", ""},
    {400, "400 Bad Request", ""},
    {401, "401 Unauthorized", "\r\nWWW-Authenticate: Bearer"},
    {403, "403 Forbidden", ""},
    {404, "404 Not Found", ""},
    {405, "405 Method Not Allowed", ""},
    {408, "408 Request Timeout", ""},
    {411, "411 Length Required", ""},
    {413, "413 Content Too Large", ""},
    {414, "414 URI Too Long", ""},
    {426, "426 Upgrade Required",
     "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"},
    {429, "429 Too Many Requests", "\r\nRetry-After: 1"},
    {431, "431 Request Header Fields Too Large", ""},
    {501, "501 Not Implemented", ""},
    {503, "503 Service Unavailable", "\r\nRetry-After: 1"},
};

enum { STATUSES = sizeof statuses / sizeof *statuses };

enum { STATUS_OTHER = 1 }; /* the row that counts those that are not in the table */

static unsigned status_row(int code)
{
    for (unsigned row = 0; row < STATUSES; row++)
        if (statuses[row].code == code) return row;
    return STATUS_OTHER;
}

struct response {
    int status;
    const char *type, *fields; /* media type; header lines instead of the status's own, or NULL */
    const char *body;
    size_t size;
    int close, head_only;
};

/* Writes a response's head and body. A status that is not in the table (on_upgrade may give one)
 * has no phrase, and no fields: nor has STATUS_OTHER. */
static void response_write(struct text *t, const struct response *r)
{
    unsigned row = status_row(r->status);
    int known = statuses[row].code == r->status;
    text_add(t, "HTTP/1.1 ");
    if (known) text_add(t, statuses[row].line);
    else text_decimal(t, (uint64_t)r->status), text_add(t, " Refused");
    text_add(t, "\r\nContent-Type: "), text_add(t, r->type);
    text_add(t, "\r\nContent-Length: "), text_decimal(t, r->size);
    text_add(t, r->fields ? r->fields : statuses[row].fields);
    text_add(t, r->close ? "\r\nConnection: close\r\n\r\n" : "\r\n\r\n");
    if (!r->head_only) text_bytes(t, r->body, r->size);
}

static void refuse_note(struct exportws *w, const struct conn *c, int status, const char *why)
{
    struct line l;
    w->m->refused[status_row(status)]++;
    if (!log_begin(w, &l, EXPORTWS_LOG_INFO, "refuse")) return;
    log_number(&l, "status", (uint64_t)status);
    log_peer(&l, c);
    log_words(&l, "why", why);
    log_end(w, &l);
}

/* ===== Client door ===== */

struct exportws_request {
    const uint8_t *head, *end; /* the request's bytes */
    const struct head *parsed;
    const char *token, *query;
    struct resume resume;
};

/* The value of a parameter of a query (NAME=VALUE&NAME...), n bytes long, or NULL. */
static const char *query_find(const char *query, const char *name, size_t *n)
{
    const size_t size = strlen(name);
    for (;;) {
        *n = strcspn(query, "&");
        if (strncmp(query, name, size) == 0 && (*n == size || query[size] == '=')) {
            *n -= size + (*n > size);
            return query + size + (query[size] == '=');
        }
        query += *n;
        if (*query++ == '\0') return NULL;
    }
}

/* Answers a client and lets it go: it may read the answer before its connection is closed. */
static void client_answer(struct exportws *w, struct conn *c, const struct response *r)
{
    char bytes[RESPONSE_MAX];
    struct text t = {bytes, 0, sizeof bytes};
    response_write(&t, r);
    if (conn_send(w, c, (const uint8_t *)bytes, smaller(t.n, sizeof bytes), control_share(w)) < 0) {
        conn_doom(w, c);
        return;
    }
    c->state = CONN_LINGER;
    conn_output_done(w, c, 0);
}

static void client_refuse(struct exportws *w, struct conn *c, int status, const char *why,
                          int head_only)
{
    char body[128];
    struct text t = {body, 0, sizeof body};
    text_add(&t, why), text_add(&t, "\n");
    struct response r = {
        status,   "text/plain; charset=utf-8", status == 405 ? "\r\nAllow: GET" : NULL,
        body,     smaller(t.n, sizeof body),   1,
        head_only};
    refuse_note(w, c, status, why);
    client_answer(w, c, &r);
}

/* Whether a peer is a proxy whose word counts on where a request comes from. */
static int proxy_trusted(const struct exportws *w, const uint8_t address[16])
{
    for (size_t i = 0; i < w->o.trusted_proxy_count; i++) {
        uint8_t ip[16];
        uint64_t bits, bit = 0;
        proxy_parse(w->o.trusted_proxies[i], ip, &bits);
        while (bit < bits && !((ip[bit / 8] ^ address[bit / 8]) & 128 >> bit % 8)) bit++;
        if (bit == bits) return 1;
    }
    return 0;
}

/* Takes the last entry of a trusted proxy's X-Forwarded-For - IP, IPv4:PORT, [IPv6] or [IPv6]:PORT
 * - for the peer's address. What is none of these leaves it the proxy's own. */
static void client_forwarded(struct conn *c, const uint8_t *p, size_t n)
{
    const uint8_t *entry = p;
    uint8_t ip[16];
    size_t size = 0;
    uint64_t port = 0;
    while (http_list_next(&p, &n, &entry, &size)) {}
    size_t host = host_size(entry, size);
    if (ip_parse(entry, size, ip) < 0 &&
        (host == size || entry[host] != ':' || ip_parse(entry, host, ip) < 0 ||
         decimal_parse(entry + host + 1, size - host - 1, &port) < 0 || port > 65535))
        return;
    memcpy(c->address, ip, sizeof ip);
    c->port = (uint16_t)port;
}

/* Why a request is not let in; status 0: it is. */
struct refusal {
    int status;
    const char *why;
};

/* Whether the request's Origin may connect. A request without one is not a browser's. */
static int origin_admits(const struct exportws *w, const struct head *h, const uint8_t *p)
{
    const uint8_t *origin = p + h->origin.at;
    if (!(h->seen & 1U << FIELD_ORIGIN)) return 1;
    for (size_t i = 0; i < w->o.origin_count; i++)
        if (strcmp(w->o.origins[i], "*") == 0 ||
            ascii_equal(origin, h->origin.size, w->o.origins[i]))
            return 1;
    if (w->o.origin_count > 0) return 0;
    return origin_is_host(origin, h->origin.size, p + h->host.at, h->host.size);
}

/* The handshake's rules, in the order in which they are told. */
static struct refusal handshake_check(const struct exportws *w, const struct head *h,
                                      const uint8_t *p)
{
    const unsigned upgrade = HEAD_UPGRADE | HEAD_WEBSOCKET;
    if ((h->flags & HEAD_CHUNKED) || h->length > 0)
        return (struct refusal){400, "an upgrade has no body"};
    if ((h->flags & upgrade) != upgrade)
        return (struct refusal){426, "this is a WebSocket: ask for an upgrade"};
    if (!(h->flags & HEAD_VERSION_13))
        return (struct refusal){426, "Sec-WebSocket-Version must be 13"};
    if (!key_valid(p + h->key.at, h->key.size))
        return (struct refusal){400, "Sec-WebSocket-Key must be the base64 of 16 bytes"};
    if (!origin_admits(w, h, p)) return (struct refusal){403, "this Origin is not allowed"};
    return (struct refusal){0, ""};
}

/* All slots are taken: who has been closing longest, and longer than a session may take nothing,
 * gives way though its peer still takes some. The others have a deadline. */
static void closing_give_way(struct exportws *w)
{
    uint32_t now_ms = (uint32_t)w->now_ms, longest_ms = w->o.write_timeout_ms;
    struct conn *last = NULL;
    for (uint32_t i = w->timers[TIMER_WRITE].first; i != NONE; i = w->conns[i].timer_next) {
        struct conn *c = &w->conns[i];
        if (c->state != CONN_CLOSING || now_ms - c->prev <= longest_ms) continue;
        longest_ms = now_ms - c->prev, last = c;
    }
    if (last) conn_doom(w, last);
}

/* Whether there is a place for one more session. */
static struct refusal room_check(struct exportws *w, const struct conn *c)
{
    if (w->stopping) return (struct refusal){503, "shutting down: come again"};
    if (!address_admits(w, c->address))
        return (struct refusal){429, "too many sessions from your address"};
    if (w->free_session == NONE) {
        closing_give_way(w);
        return (struct refusal){503, "all session slots are taken: come again"};
    }
    return (struct refusal){0, ""};
}

/* Splits the target in place: *path its path, *query what follows '?', both NUL-terminated. */
static void target_split(uint8_t *p, const struct head *h, char **path, char **query)
{
    uint8_t *target = p + h->target.at;
    size_t at, size = 0;
    target_authority(target, h->target.size, &at, &size);
    target[h->target.size] = '\0';
    *path = (char *)target + at + size;
    *query = strchr(*path, '?');
    if (*query) *(*query)++ = '\0';
    else *query = *path + strlen(*path);
}

/* Decodes the token behind `path` in place. Its length, or -404 (none), -400, -414 (longer than
 * `most`). */
static int path_token(const struct exportws *w, char *path, char **token, size_t most)
{
    size_t prefix = strlen(w->o.path);
    if (strncmp(path, w->o.path, prefix) != 0 || path[prefix] == '\0' || strchr(path + prefix, '/'))
        return -404;
    *token = path + prefix;
    int n = token_decode((const uint8_t *)*token, strlen(*token), (uint8_t *)*token, most);
    if (n > 0) (*token)[n] = '\0';
    return n;
}

static const char *token_why(int status)
{
    return status == 404 ? "nothing here: the path is wrong or has no token"
         : status == 414 ? "the token is too long"
                         : "the token is badly encoded";
}

/* Where a client with exportws.v1 wants to go on: ?last=ID. Others have no ids. 0, or -1 when it is
 * no id. */
static int client_resume(struct exportws_request *r)
{
    size_t n;
    const char *last = query_find(r->query, "last", &n);
    r->resume = (struct resume){0, 0};
    if (!last || !(r->parsed->flags & HEAD_IDS)) return 0;
    r->resume.asked = 1;
    return decimal_parse((const uint8_t *)last, n, &r->resume.last);
}

/* What is wrong with a token that must be NAME.EXPIRES.SIGNATURE, and not yet expired; status 0:
 * nothing, and it is cut to NAME. */
static struct refusal token_unsign(const struct exportws *w, char *token)
{
    char *signature = strrchr(token, '.'), *expires = NULL;
    uint64_t until;
    if (signature) {
        *signature++ = '\0';
        expires = strrchr(token, '.');
    }
    if (!expires || decimal_parse((uint8_t *)expires + 1, strlen(expires + 1), &until) < 0)
        return (struct refusal){403, "the token is not signed: NAME.EXPIRES.SIGNATURE is needed"};
    size_t n = (size_t)(expires - token);
    if (n == 0 || n > w->o.max_token_bytes)
        return (struct refusal){n > 0 ? 414 : 404, token_why(n > 0 ? 414 : 404)};
    if (!signature_valid(signature, token, w->o.client_secret))
        return (struct refusal){403, "the token's signature is wrong"};
    if (until <= (uint64_t)time(NULL))
        return (struct refusal){403, "the token has expired: ask for a new one"};
    *expires = '\0';
    return (struct refusal){0, ""};
}

/* Lets an accepted client in: it is in the table before its 101 is written. */
static struct conn *client_admit(struct exportws *w, struct conn *from, struct exportws_request *r)
{
    static const char head[] =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: ";
    static const char protocol[] = "\r\nSec-WebSocket-Protocol: exportws.v1", gap[] = "\x81\3gap";
    char bytes[sizeof head + 32 + sizeof protocol + sizeof gap], accept[28];
    struct text t = {bytes, 0, sizeof bytes};
    struct line l;
    key_accept(r->head + r->parsed->key.at, accept);
    text_add(&t, head), text_bytes(&t, accept, sizeof accept);
    struct conn *c = session_open(w, from, (const uint8_t *)r->token, strlen(r->token));
    c->ids = (r->parsed->flags & HEAD_IDS) != 0;
    if (c->ids) text_add(&t, protocol);
    text_add(&t, "\r\n\r\n");
    if (r->resume.asked && session_gap(w, c, &r->resume.last)) text_add(&t, gap);
    int ends = session_claim(w, c, &r->resume); /* at once: its 101 may need room */
    uint32_t missed = c->queued;
    c->queued = 0; /* the 101 goes before that */
    int result = conn_send(w, c, (const uint8_t *)bytes, t.n, control_share(w));
    c->replay = c->queued += missed;
    w->replays += c->replay > 0;
    if (result < 0 || (c->queued > 0 && conn_flush(w, c) < 0))
        session_lost(w, c, EXPORTWS_BY_ERROR);
    else conn_output_done(w, c, 1);
    if (log_session(w, &l, "open", c)) {
        log_counts(w, &l);
        log_end(w, &l);
    }
    if (c->state != CONN_OPEN) return c;
    c->flags |= CONN_TOLD;
    if (w->o.on_open) w->o.on_open(w->o.user, conn_id(w, c), conn_name(w, c));
    if (ends && c->state == CONN_OPEN) session_end(w, c, EXPORTWS_BY_ENDED, 1000, "ended");
    return c;
}

/* An upgrade to {path}{token}: every rule, then the embedder's. Returns the connection that goes
 * on. */
static struct conn *client_upgrade(struct exportws *w, struct conn *c, struct exportws_request *r,
                                   char *path)
{
    struct refusal no = {0, ""};
    char *token = NULL;
    int n = path_token(w, path, &token, w->o.client_secret ? SIZE_MAX : w->o.max_token_bytes);
    if (n < 0) no = (struct refusal){-n, token_why(-n)};
    if (no.status == 0) no = handshake_check(w, r->parsed, r->head);
    if (no.status == 0 && w->o.client_secret) no = token_unsign(w, token);
    if (no.status == 0 && client_resume(r) < 0)
        no = (struct refusal){400, "last must be a message's id"};
    if (no.status == 0) no = room_check(w, c);
    r->token = token;
    if (no.status == 0 && w->o.on_upgrade) {
        int status = w->o.on_upgrade(w->o.user, r);
        if (status != 0)
            no = (struct refusal){status >= 400 && status < 600 ? status : 403, "refused"};
        else no = room_check(w, c);
    }
    if (no.status == 0) return client_admit(w, c, r);
    client_refuse(w, c, no.status, no.why, 0);
    return c;
}

enum { PAGE_CLIENT, PAGE_DEMO };

/* A client gets a page: the loop sends it, as soon as its socket takes something. */
static void client_page(struct exportws *w, struct conn *c, unsigned page)
{
    c->state = CONN_PAGE;
    c->code = (uint16_t)page;
    timer_set(w, c, TIMER_CLOSE);
    poll_want(w, c);
}

/* A whole request head of n bytes at p. Returns the connection that goes on. */
static struct conn *client_request(struct exportws *w, struct conn *c, const struct head *h,
                                   uint8_t *p, size_t n)
{
    static const struct response ok = {200, "text/plain; charset=utf-8", NULL, "ok\n", 3, 1, 0};
    struct exportws_request r = {p, p + n, h, NULL, NULL, {0, 0}};
    char *path, *query;
    int head_only = h->verb == VERB_HEAD;
    if (proxy_trusted(w, c->address)) client_forwarded(c, p + h->forwarded.at, h->forwarded.size);
    if (h->minor == 0) {
        client_refuse(w, c, 400, "HTTP/1.1 is needed", head_only);
        return c;
    }
    if (h->verb != VERB_GET) {
        client_refuse(w, c, 405, "only GET is known here", head_only);
        return c;
    }
    target_split(p, h, &path, &query);
    r.query = query;
    int script = strcmp(path, "/exportws.js") == 0;
    if (PAGES && (script || (w->o.demo && strcmp(path, "/") == 0)))
        client_page(w, c, script ? PAGE_CLIENT : PAGE_DEMO);
    else if (strcmp(path, "/healthz") == 0) client_answer(w, c, &ok);
    else return client_upgrade(w, c, &r, path);
    return c;
}

static const char *head_why(int status)
{
    return status == 431 ? "the request head is larger than 8 KiB"
         : status == 501 ? "this Transfer-Encoding is not known"
                         : "this is not a proper HTTP/1.1 request";
}

/* Reads a client's head on. Returns the connection that goes on. */
static struct conn *client_feed(struct exportws *w, struct conn *c, struct input *in, int peek)
{
    int n = head_parse(&in->head, in->data, in->used);
    if (n == 0) return c;
    if (n < 0) {
        client_refuse(w, c, -n, head_why(-n), 0);
        return c;
    }
    in->raw = (size_t)n;
    c = client_request(w, c, &in->head, in->data, (size_t)n);
    session_feed(w, c, in, peek);
    return c;
}

/* ===== Metrics (Prometheus text exposition 0.0.4) ===== */

enum { METRIC_REFUSED = 1, METRIC_CLOSED, METRIC_BUFFER };

static const struct metric {
    const char *name, *help;
    uint8_t counter, special, bytes; /* bytes: of the member */
    size_t at; /* a counter's in struct metrics, a gauge's in struct exportws */
} metrics[] = {
#define SIZE_OF(member) sizeof((struct exportws *)0)->member
#define GAUGE(name, member, help) \
    {name, help, 0, 0, SIZE_OF(member), offsetof(struct exportws, member)}
#define COUNTER(name, member, help) {name, help, 1, 0, 8, offsetof(struct metrics, member)}
    GAUGE("sessions", sessions, "Open sessions."),
    GAUGE("tokens", online, "Tokens with an open session."),
    GAUGE("handshakes", handshakes, "Clients that are no session."),
    GAUGE("pushers", pushers, "Connections at the push door."),
    GAUGE("capacity", capacity, "Sessions at most."),
    GAUGE("memory_bytes", memory_bytes, "Memory of the server."),
    {"buffer_used_bytes", "Buffer in use.", 0, METRIC_BUFFER, 0, 0},
    GAUGE("held_messages", held, "Messages held for absent tokens."),
    GAUGE("history_messages", history, "Messages kept as history."),
    COUNTER("sessions_opened_total", opened, "Sessions opened."),
    {"sessions_closed_total", "Sessions closed, by reason.", 1, METRIC_CLOSED, 0, 0},
    {"refused_total", "Requests refused, by status.", 1, METRIC_REFUSED, 0, 0},
    COUNTER("messages_pushed_total", pushed, "Messages accepted."),
    COUNTER("messages_delivered_total", delivered, "Messages handed to sessions."),
    COUNTER("messages_held_total", held, "Messages held for absent tokens."),
    COUNTER("messages_expired_total", expired, "Messages that nobody came for."),
    COUNTER("messages_received_total", received, "Client messages other than heartbeats."),
    COUNTER("heartbeats_total", heartbeats, "Heartbeats of clients."),
    COUNTER("pings_total", pings, "Pings sent."),
    COUNTER("bytes_sent_total", bytes_sent, "Bytes sent."),
    COUNTER("bytes_received_total", bytes_received, "Bytes received."),
    COUNTER("posts_refused_total", posts_refused, "Posts neither delivered nor held."),
#undef GAUGE
#undef COUNTER
#undef SIZE_OF
};

enum { METRICS = sizeof metrics / sizeof *metrics };

static void metric_sample(struct text *t, const char *name, const char *label, const char *value,
                          uint64_t n)
{
    text_add(t, "exportws_"), text_add(t, name);
    if (label)
        text_add(t, "{"), text_add(t, label), text_add(t, "=\""), text_add(t, value),
            text_add(t, "\"}");
    text_add(t, " "), text_decimal(t, n), text_add(t, "\n");
}

static uint64_t metric_value(const struct exportws *w, const struct metrics *m,
                             const struct metric *row)
{
    const uint8_t *member = (row->counter ? (const uint8_t *)m : (const uint8_t *)w) + row->at;
    uint32_t narrow;
    uint64_t wide;
    if (row->special == METRIC_BUFFER) return m->buffer_used;
    if (row->bytes == sizeof narrow) {
        memcpy(&narrow, member, sizeof narrow);
        return narrow;
    }
    memcpy(&wide, member, sizeof wide);
    return wide;
}

static unsigned metric_samples(const struct metric *row)
{
    return row->special == METRIC_CLOSED  ? EXPORTWS_REASONS
         : row->special == METRIC_REFUSED ? STATUSES - 1
                                          : 1;
}

/* The i-th sample of a metric; what is said of them all stands before the first. */
static void metric_write(const struct exportws *w, const struct metrics *m, struct text *t,
                         const struct metric *row, unsigned i)
{
    char code[8];
    struct text digits = {code, 0, sizeof code};
    if (i == 0) {
        text_add(t, "# HELP exportws_"), text_add(t, row->name), text_add(t, " "),
            text_add(t, row->help);
        text_add(t, "\n# TYPE exportws_"), text_add(t, row->name),
            text_add(t, row->counter ? " counter\n" : " gauge\n");
    }
    if (row->special == METRIC_CLOSED) {
        metric_sample(t, row->name, "reason", close_reasons[i], m->closed[i]);
    } else if (row->special == METRIC_REFUSED) {
        text_decimal(&digits, statuses[i + 1].code), text_end(&digits);
        metric_sample(t, row->name, "status", i + 1 == STATUS_OTHER ? "other" : code,
                      m->refused[i + 1]);
    } else {
        metric_sample(t, row->name, NULL, NULL, metric_value(w, m, row));
    }
}

/* ===== Push door ===== */

/* Answers of one batch of requests are gathered and go out together. */
static void answers_flush(struct exportws *w, struct conn *c)
{
    size_t n = w->answers_used;
    w->answers_used = 0;
    if (n == 0 || c->state == CONN_DEAD) return;
    int result = conn_send(w, c, w->answers, n, control_share(w));
    if (result < 0) conn_doom(w, c);
    if (result == -2) refuse_note(w, c, 503, "it does not read its answers");
}

static void answers_add(struct exportws *w, struct conn *c, const char *p, size_t n)
{
    while (n > 0) {
        size_t piece = smaller(n, w->answers_size - w->answers_used);
        memcpy(w->answers + w->answers_used, p, piece);
        w->answers_used += piece;
        p += piece, n -= piece;
        if (w->answers_used == w->answers_size) answers_flush(w, c);
    }
}

/* Forgets what has come of a body. */
static void push_drop_draft(struct exportws *w, struct push *q)
{
    if (q->draft != NONE) message_free(w, q->draft);
    q->draft = NONE;
}

/* Ready for the next request. */
static void push_reset(struct exportws *w, struct push *q)
{
    push_drop_draft(w, q);
    memset(q, 0, sizeof *q);
    q->draft = NONE;
}

/* A request has its answer: then comes the next one, or the end. */
static void push_answered(struct exportws *w, struct conn *c)
{
    struct push *q = push_of(w, c);
    int close = q->close;
    push_reset(w, q);
    if (close && c->state != CONN_DEAD) c->state = CONN_LINGER;
}

/* Answers a request with a JSON body. */
static void push_answer(struct exportws *w, struct conn *c, int status, const char *fields,
                        const struct text *json)
{
    struct push *q = push_of(w, c);
    struct response r = {status,      "application/json",           fields,
                         json->p,     smaller(json->n, json->size), q->close,
                         q->verb == VERB_HEAD};
    if (w->answers_size - w->answers_used < RESPONSE_MAX) answers_flush(w, c);
    struct text t = {(char *)w->answers + w->answers_used, 0, RESPONSE_MAX};
    response_write(&t, &r);
    w->answers_used += t.n;
    push_answered(w, c);
}

/* Refuses a request, with the id of the message that it was (0: it was none). */
static void push_refuse_message(struct exportws *w, struct conn *c, int status, const char *fields,
                                const char *why, uint64_t id)
{
    char body[160];
    struct text json = {body, 0, sizeof body};
    refuse_note(w, c, status, why);
    text_add(&json, "{\"error\":\""), text_add(&json, why), text_add(&json, "\"");
    if (id > 0) text_add(&json, ",\"id\":"), text_decimal(&json, id);
    text_add(&json, "}\n");
    push_answer(w, c, status, fields, &json);
}

/* Refuses a request. Every answer to a POST has an id, also where no message was read to its end. */
static void push_refuse(struct exportws *w, struct conn *c, int status, const char *fields,
                        const char *why)
{
    int post = push_of(w, c)->verb == VERB_POST;
    push_refuse_message(w, c, status, fields, why, post ? w->next_id++ : 0);
}

struct json_row {
    const char *key; /* and what stands before it and behind */
    uint64_t value;
};

/* Answers with an object of numbers. */
static void push_answer_numbers(struct exportws *w, struct conn *c, int status,
                                const struct json_row *rows, size_t n)
{
    char body[192];
    struct text json = {body, 0, sizeof body};
    for (size_t i = 0; i < n; i++) text_add(&json, rows[i].key), text_decimal(&json, rows[i].value);
    text_add(&json, "}\n");
    push_answer(w, c, status, NULL, &json);
}

/* The whole message is here: delivers it and answers. A draft is the same bytes, kept in the buffer
 * already. */
static void push_finish(struct exportws *w, struct conn *c, const uint8_t *name, size_t name_size,
                        const uint8_t *data)
{
    struct push *q = push_of(w, c);
    struct pushed p = {.data = data, .size = q->size, .kind = q->kind, .index = q->draft};
    p.name = q->target == TO_ALL ? NULL : name, p.name_size = name_size, p.end = q->end;
    q->draft = NONE;
    int reached = pushed_deliver(w, &p);
    const int held = reached == 0 && p.name;
    const struct json_row rows[] = {{"{\"delivered\":", (uint64_t)reached},
                                    {held ? ",\"held\":true,\"id\":" : ",\"id\":", p.id}};
    if (reached == EXPORTWS_ABSENT)
        push_refuse_message(w, c, 404, NULL, "nobody there, and holding is off", p.id);
    else if (reached < 0)
        push_refuse_message(w, c, 503, NULL, "nobody there, and no room to hold it", p.id);
    else push_answer_numbers(w, c, held ? 202 : 200, rows, 2);
}

/* The body is over. */
static void push_body_over(struct exportws *w, struct conn *c)
{
    struct push *q = push_of(w, c);
    if (q->status == 0 && q->kind == OP_TEXT && q->utf8.need > 0) q->status = 400;
    if (q->status == 400) {
        push_refuse(w, c, 400, NULL, "the text is not UTF-8");
    } else if (q->status != 0) {
        push_refuse(w, c, 503, NULL, "no room for the message: come again");
    } else {
        const struct message *m = message_at(w, q->draft);
        message_copy(w, q->draft, 0, w->stage + MESSAGE_HEAD_MAX, q->size);
        push_finish(w, c, message_name(m), m->name_size, w->stage + MESSAGE_HEAD_MAX);
    }
}

/* More of a body. What is wrong with it is told when it is over, so that the connection goes on; a
 * draft that comes to nothing takes no room meanwhile. */
static void push_body_bytes(struct exportws *w, struct push *q, const uint8_t *p, size_t n)
{
    q->size += (uint32_t)n;
    if (q->status != 0 || n == 0) return;
    if (q->kind == OP_TEXT && utf8_feed(&q->utf8, p, n) < 0) q->status = 400;
    else if (message_append(w, q->draft, p, n) < 0) q->status = 503;
    if (q->status != 0) push_drop_draft(w, q);
}

/* A message is going to come in more than one piece: a draft for it. */
static void push_start_draft(struct exportws *w, struct push *q, const uint8_t *name,
                             size_t name_size)
{
    q->draft = message_new(w, q->kind, 1, name, name_size);
    if (q->draft == NONE) q->status = 503;
}

/* A POST's head of n bytes, its token (none: all) decoded: how its body comes. */
static void push_post(struct exportws *w, struct conn *c, struct input *in, const struct head *h,
                      const uint8_t *name, size_t name_size)
{
    struct push *q = push_of(w, c);
    const size_t here = in->used - in->raw;
    const uint8_t *body = in->data + in->raw;
    int chunked = (h->flags & HEAD_CHUNKED) != 0;
    q->close = (h->flags & HEAD_CLOSE) || h->minor == 0;
    q->kind = h->flags & HEAD_BINARY ? OP_BINARY : OP_TEXT;
    q->target = name ? TO_TOKEN : TO_ALL;
    if (!chunked && (!(h->seen & 1U << FIELD_LENGTH) || h->length > w->o.max_push_bytes)) {
        q->close = 1;
        if (h->seen & 1U << FIELD_LENGTH)
            push_refuse(w, c, 413, NULL, "the message is longer than --max-push");
        else push_refuse(w, c, 411, NULL, "a message needs Content-Length, or chunked coding");
        return;
    }
    if ((h->flags & HEAD_CONTINUE) && h->minor > 0)
        answers_add(w, c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    q->left = h->length;
    if (!chunked && here >= h->length) {
        q->size = (uint32_t)h->length;
        in->raw += q->size;
        if (q->kind == OP_TEXT && !utf8_valid(body, q->size))
            push_refuse(w, c, 400, NULL, "the text is not UTF-8");
        else push_finish(w, c, name, name_size, body);
        return;
    }
    q->phase = chunked ? PUSH_CHUNKS : PUSH_BODY;
    push_start_draft(w, q, name, name_size);
}

/* GET and DELETE of a token. */
static void push_token(struct exportws *w, struct conn *c, const uint8_t *name, size_t n,
                       int remove)
{
    uint32_t record = token_find(w, name, n);
    const struct token none = {.first_session = REMEMBERED};
    const struct token *t = record == NONE ? &none : &w->tokens[record];
    const struct json_row rows[] = {{"{\"sessions\":", t->sessions},
                                    {",\"held\":", token_held(w, t)}},
                          closed = {"{\"closed\":", t->sessions};
    if (remove && record != NONE) token_kick(w, record);
    if (rows[0].value + rows[1].value == 0)
        push_refuse(w, c, 404, NULL, "nobody there, and nothing held");
    else if (remove) push_answer_numbers(w, c, 200, &closed, 1);
    else push_answer_numbers(w, c, 200, rows, 2);
}

/* All metrics, of one moment: measured first, then written. */
static void push_metrics(struct exportws *w, struct conn *c)
{
    struct metrics now = *w->m;
    char bytes[384]; /* more than any metric's text */
    struct text t = {NULL, 0, 0};
    struct push *q = push_of(w, c);
    struct response r = {200, "text/plain; version=0.0.4; charset=utf-8", NULL, "", 0, q->close, 1};
    now.buffer_used = (uint64_t)(w->block_count - w->blocks_free) * w->block_bytes;
    for (unsigned i = 0; i < METRICS; i++)
        for (unsigned k = 0; k < metric_samples(&metrics[i]); k++)
            metric_write(w, &now, &t, &metrics[i], k);
    r.size = t.n;
    t = (struct text){bytes, 0, sizeof bytes};
    response_write(&t, &r);
    for (unsigned i = 0; i < METRICS; i++)
        for (unsigned k = 0; k < metric_samples(&metrics[i]); k++) {
            answers_add(w, c, bytes, t.n);
            t.n = 0;
            metric_write(w, &now, &t, &metrics[i], k);
        }
    answers_add(w, c, bytes, t.n);
    push_answered(w, c);
}

static void push_online(struct exportws *w, struct conn *c)
{
    const struct json_row rows[] = {{"{\"online\":", w->online},
                                    {",\"sessions\":", w->sessions},
                                    {",\"capacity\":", w->capacity},
                                    {",\"held\":", w->held}};
    push_answer_numbers(w, c, 200, rows, 4);
}

static void push_healthz(struct exportws *w, struct conn *c)
{
    char body[32];
    struct text json = {body, 0, sizeof body};
    text_add(&json, w->stopping ? "{\"status\":\"draining\"}\n" : "{\"status\":\"ok\"}\n");
    push_answer(w, c, w->stopping ? 503 : 200, NULL, &json);
}

/* Whether a request may use the push door. */
static int push_allowed(const struct exportws *w, const struct head *h, const uint8_t *p)
{
    const uint8_t *given = p + h->authorization.at;
    size_t n = h->authorization.size;
    if (!w->o.push_secret) return 1;
    if (n < 7 || !ascii_equal(given, 7, "bearer ")) return 0;
    given += 7, n -= 7;
    http_trim(&given, &n);
    return secret_equal(given, n, w->o.push_secret);
}

/* Whether a query says that a message is its token's last: ?end, or what it is put to, 1 or 0. -1:
 * to something else. */
static int query_end(const char *query)
{
    size_t n;
    const char *value = query_find(query, "end", &n);
    if (!value || n == 0) return value != NULL;
    return n == 1 && (*value == '0' || *value == '1') ? *value - '0' : -1;
}

/* A request to {path}, with a token or without. */
static void push_path(struct exportws *w, struct conn *c, struct input *in, const struct head *h,
                      char *path, const char *query)
{
    const size_t most = strlen(w->o.path) - 1, size = strlen(path); /* without the last slash */
    int all = size <= most + 1 && size >= most && memcmp(path, w->o.path, size) == 0;
    char *token = NULL;
    int n = all ? 0 : path_token(w, path, &token, w->o.max_token_bytes);
    const uint8_t *name = (const uint8_t *)token;
    const int end = *query ? query_end(query) : 0;
    push_of(w, c)->end = end > 0;
    if (n < 0) push_refuse(w, c, -n, NULL, token_why(-n));
    else if (all && h->verb != VERB_POST)
        push_refuse(w, c, 405, "\r\nAllow: POST", "a broadcast is a POST");
    else if (h->verb == VERB_OTHER || h->verb == VERB_HEAD)
        push_refuse(w, c, 405, "\r\nAllow: GET, POST, DELETE",
                    "a token knows GET, POST and DELETE");
    else if (all && end != 0) push_refuse(w, c, 400, NULL, "?end is for one token");
    else if (h->verb != VERB_POST) push_token(w, c, name, (size_t)n, h->verb == VERB_DELETE);
    else if (end < 0) push_refuse(w, c, 400, NULL, "end is 1 or 0");
    else if (w->stopping) push_refuse(w, c, 503, NULL, "shutting down: come again");
    else push_post(w, c, in, h, name, (size_t)n);
}

/* A whole request head at p; in->raw stands behind it. A refused request's body is not waited for:
 * the connection closes. */
static void push_request(struct exportws *w, struct conn *c, struct input *in, const struct head *h,
                         uint8_t *p)
{
    static const struct {
        const char *path;
        void (*answer)(struct exportws *, struct conn *);
    } known[] = {{"/healthz", push_healthz}, {"/online", push_online}, {"/metrics", push_metrics}};
    struct push *q = push_of(w, c);
    char *path, *query;
    unsigned page = 0;
    const uint8_t body = (h->flags & HEAD_CHUNKED) || h->length > 0;
    q->close = (h->flags & HEAD_CLOSE) || h->minor == 0 || body; /* push_post knows better */
    target_split(p, h, &path, &query);
    while (page < 3 && strcmp(path, known[page].path) != 0) page++;
    if (page != 0 && !push_allowed(w, h, p)) {
        push_refuse(w, c, 401, NULL, "Authorization: Bearer SECRET is needed");
        return;
    }
    if (page != 0) c->flags |= CONN_KNOWN;
    if (page == 3) {
        push_path(w, c, in, h, path, query);
    } else if (h->verb != VERB_GET) {
        push_refuse(w, c, 405, "\r\nAllow: GET", "only GET is known here");
    } else {
        known[page].answer(w, c);
    }
}

/* Takes the next piece off the input. 1: go on; 0: more is needed. */
static int push_step(struct exportws *w, struct conn *c, struct input *in)
{
    struct push *q = push_of(w, c);
    uint8_t *p = in->data + in->raw;
    size_t n = in->used - in->raw, data;
    if (q->phase == PUSH_BODY) {
        n = smaller(n, (size_t)q->left);
        push_body_bytes(w, q, p, n);
        in->raw += n, q->left -= n;
        if (q->left > 0) return 0;
        push_body_over(w, c);
        return 1;
    }
    if (q->phase == PUSH_CHUNKS) {
        int used = chunk_feed(&q->chunk, p, n, &data);
        uint64_t size = q->size + data + chunk_rest(&q->chunk);
        if (used < 0 || size > w->o.max_push_bytes) {
            q->close = 1;
            if (used < 0) push_refuse(w, c, 400, NULL, "the chunked body is broken");
            else push_refuse(w, c, 413, NULL, "the message is longer than --max-push");
            return 0;
        }
        in->raw += (size_t)used;
        push_body_bytes(w, q, p + used - data, data);
        if (q->chunk.state == CHUNK_DONE) push_body_over(w, c);
        return used > 0;
    }
    int head = head_parse(&in->head, p, n);
    q->verb = in->head.verb; /* as far as it was read */
    if (head == 0) return 0;
    if (head > 0) {
        in->raw += (size_t)head;
        push_request(w, c, in, &in->head, p);
    } else {
        q->close = 1;
        push_refuse(w, c, -head, NULL, head_why(-head));
    }
    memset(&in->head, 0, sizeof in->head); /* the next request's */
    return head > 0;
}

/* Serves all whole requests in the input, or, when the turn has seen enough sends, one; what they
 * came to goes out in one piece. */
static void push_feed(struct exportws *w, struct conn *c, struct input *in)
{
    int steps = 0;
    while (c->state == CONN_PUSH &&
           (steps == 0 || w->sends < TURN_SENDS || push_of(w, c)->phase != PUSH_HEAD) &&
           push_step(w, c, in) > 0)
        steps++;
    if (steps > 0 && w->sends >= TURN_SENDS) w->pushes_left = 1;
    answers_flush(w, c);
    if (c->state == CONN_DEAD) return;
    if (c->state == CONN_PUSH) {
        int rest = in->used > in->raw, moved = steps > 0 || push_of(w, c)->phase != PUSH_HEAD;
        if (rest ? moved || c->timer != TIMER_HEAD : push_of(w, c)->phase != PUSH_HEAD)
            timer_set(w, c, TIMER_HEAD);
        else if (!rest) timer_set(w, c, TIMER_IDLE);
    }
    conn_output_done(w, c, 1);
}

/* ===== Pages: the browser client, and the demo page that uses it ===== */

#ifndef EXPORTWS_NO_PAGES

/* Each in pieces: a compiler need not take a string of more than 4095 characters. No ?? in them: it
 * may begin a trigraph. */
static const char *const page_client[] = {
    "// exportws: opens a WebSocket, keeps it open, and hands over each message once.\n"
    "//   const client = new ExportWS('/app/ws/export-task/TOKEN', {onmessage, onstate});\n"
    "//   onmessage(data, id)     a string; an ArrayBuffer when it was pushed as binary\n"
    "//   onstate(state, detail)  'connecting'\n"
    "//                           'open'     detail 'gap': something may be missing, and is gone\n"
    "//                           'waiting'  detail: milliseconds until the next try\n"
    "//                           'closed'   detail: the close code; there is no next try\n"
    "//   client.close()\n"
    "globalThis.ExportWS = class ExportWS {\n"
    "  constructor(url, {onmessage, onstate, heartbeat = 'HEART-BEAT'} = {}) {\n"
    "    Object.assign(this, {onmessage, onstate, heartbeat, tries: 0});\n"
    "    this.url = new URL(url, globalThis.location?.href);\n"
    "    this.last = this.url.searchParams.get('last');\n"
    "    this.url.protocol = this.url.protocol.replace('http', 'ws');\n"
    "    this.url.hash = '';\n"
    "    this.wake = () => this.state === 'waiting' && this.connect();\n"
    "    globalThis.addEventListener?.('online', this.wake);\n"
    "    globalThis.addEventListener?.('visibilitychange', this.wake);\n"
    "    this.connect();\n"
    "  }\n"
    "\n"
    "  close() {\n"
    "    if (this.state === 'closed') return;\n"
    "    this.ws.onopen = this.ws.onmessage = this.ws.onclose = null;\n"
    "    this.ws.close(1000);\n"
    "    this.ended(1000);\n"
    "  }\n"
    "\n"
    "  // The rest is its own business.\n"
    "  connect() {\n"
    "    clearTimeout(this.timer);\n"
    "    if (this.last) this.url.searchParams.set('last', this.last);\n"
    "    const ws = this.ws = new WebSocket(this.url, 'exportws.v1');\n"
    "    let opened = Infinity;\n"
    "    ws.binaryType = 'arraybuffer';\n"
    "    ws.onopen = () => {\n"
    "      opened = Date.now();\n"
    "      this.heard = this.answers = false;\n"
    "      this.last ||= '0'; // from now on nothing may be missed\n"
    "      this.timer = setInterval(() => this.beat(), 20000);\n"
    "      this.enter('open');\n"
    "    };\n"
    "    ws.onmessage = event => this.receive(event.data, ws.protocol !== '');\n"
    "    ws.onclose = event => {\n"
    "      if (Date.now() - opened > 10000) this.tries = 0;\n"
    "      this.ended(event.code);\n"
    "    };\n"
    "    this.enter('connecting');\n"
    "  }\n"
    "\n"
    "  // A server that sends heartbeats back is dead when it does so no more.\n"
    "  beat() {\n"
    "    if (this.answers && !this.heard) return this.ws.close();\n"
    "    this.heard = false;\n"
    "    this.ws.send(this.heartbeat);\n"
    "  }\n"
    "\n"
    "  // In exportws.v1 a message is: id, newline, message. The server's own have no newline.\n"
    "  receive(data, v1) {\n"
    "    this.heard = true;\n"
    "    if (data === this.heartbeat) this.answers = true;\n"
    "    else if (!v1) this.onmessage?.(data);\n"
    "    else if (data === 'gap') this.enter('open', 'gap');\n"
    "    else {\n"
    "      const head = data.slice(0, 24), decoder = new TextDecoder('latin1');\n"
    "      [this.last] = (typeof head === 'string' ? head : decoder.decode(head)).split('\\n');\n"
    "      this.onmessage?.(data.slice(this.last.length + 1), this.last);\n"
    "    }\n"
    "  }\n"
    "\n"
    "  // 1000: it is over; 4001: a newer page has taken its place. Else it comes back, after a\n"
    "  // pause that doubles and is random, so that not all come at once.\n"
    "  ended(code) {\n"
    "    clearTimeout(this.timer);\n"
    "    if (code === 1000 || code === 4001) {\n"
    "      globalThis.removeEventListener?.('online', this.wake);\n"
    "      globalThis.removeEventListener?.('visibilitychange', this.wake);\n"
    "      return this.enter('closed', code);\n"
    "    }\n"
    "    const ms = Math.min(20000, 500 * 2 ** this.tries++) * (0.5 + Math.random());\n"
    "    this.timer = setTimeout(() => this.connect(), ms);\n"
    "    this.enter('waiting', ms);\n"
    "  }\n"
    "\n"
    "  enter(state, detail) {\n"
    "    this.state = state;\n"
    "    this.onstate?.(state, detail);\n"
    "  }\n"
    "};\n",
    NULL,
};

static const char *const page_demo[] = {
    "<meta charset='utf-8'>\n"
    "<meta name='viewport' content='width=device-width'>\n"
    "<title>exportws</title>\n"
    "<link rel='icon' href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'\n"
    "  viewBox='0 0 8 8'><path fill='%23999' d='M0 3h8v2H0z'/>\n"
    "  <path fill='%230a9' d='M0 3h5v2H0z'/></svg>\">\n"
    "<style>\n"
    ":root { color-scheme: light dark; --page: #f3f5f7; --card: #fff; --ink: #17202a;\n"
    "  --soft: #56616d; --line: #d5dbe1; --edge: #7d8894; --go: #0a6b50; --on-go: #fff;\n"
    "  --wait: #8a5200; --stop: #b3261e }\n"
    "@media (prefers-color-scheme: dark) {\n"
    "  :root { --page: #10151b; --card: #19212a; --ink: #e8ecf0; --soft: #a3aeba;\n"
    "    --line: #303b47; --edge: #73808d; --go: #45c795; --on-go: #06150f;\n"
    "    --wait: #f0b04f; --stop: #ff8a80 }\n"
    "}\n"
    "* { box-sizing: border-box; margin: 0 }\n"
    "body { background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;\n"
    "  max-width: 46rem; margin: auto; padding: 1.5rem 1rem 4rem }\n"
    "header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1rem }\n"
    "h1 { font-size: 1.5rem; letter-spacing: -.02em; flex: 1 }\n"
    "h2, label { display: block; font-size: .875rem; font-weight: 600 }\n"
    "section, form { background: var(--card); border: 1px solid var(--line);\n"
    "  border-radius: .75rem; padding: 1rem; margin-top: 1rem }\n"
    "section div, form div { display: flex; flex-wrap: wrap; align-items: start; gap: .5rem;\n"
    "  margin-top: .5rem }\n"
    "input, button { font: inherit; height: 2.75rem; border-radius: .5rem; padding: 0 1rem }\n"
    "input { flex: 1; min-width: 0; color: inherit; background: var(--page);\n"
    "  border: 1px solid var(--edge) }\n"
    "button { border: 1px solid var(--go); font-weight: 600; background: var(--go);\n"
    "  color: var(--on-go); cursor: pointer }\n"
    "#copy { background: none; color: var(--go); min-width: 6rem }\n"
    ":focus-visible { outline: 3px solid var(--go); outline-offset: 2px }\n"
    "code, time { font: .8125rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere }\n"
    "#curl { flex: 1 16rem; background: var(--page); border-radius: .5rem; padding: .75rem }\n"
    "#state::before { content: ''; display: inline-block; width: .625rem; height: .625rem;\n"
    "  border-radius: 50%; margin-right: .5rem; background: currentColor }\n"
    ".open { color: var(--go) }\n"
    ".waiting, .connecting { color: var(--wait) }\n"
    ".closed { color: var(--stop) }\n"
    "main > p, #none, #wait, time, li code { color: var(--soft) }\n"
    "#none { margin-top: .5rem }\n"
    "ol { flex: 1; min-width: 0; list-style: none; padding: 0 }\n"
    "li { display: grid; grid-template-columns: 1fr auto 3.5rem; align-items: center;\n"
    "  padding: .75rem 0; border-top: 1px solid var(--line) }\n"
    "li:last-child { padding-bottom: 0 }\n"
    "li code { grid-column: 2 / -1 }\n"
    "li p { grid-column: 1 / -1; overflow-wrap: anywhere; white-space: pre-wrap }\n"
    "li b { text-align: right; font-size: .875rem; white-space: nowrap }\n"
    "progress { grid-column: 1 / 3; width: 100%; height: .625rem; border: 0;\n"
    "  border-radius: 1rem; overflow: hidden; appearance: none; background: var(--line) }\n"
    "::-webkit-progress-bar { background: var(--line) }\n"
    "::-webkit-progress-value { background: var(--go); border-radius: 1rem }\n"
    "::-moz-progress-bar { background: var(--go); border-radius: 1rem }\n"
    "</style>\n",

    "<header>\n"
    "  <h1>exportws</h1>\n"
    "  <p><span id='state' role='status'></span> <span id='wait' role='timer'></span></p>\n"
    "</header>\n"
    "<main>\n"
    "  <p>A page waits with a token, and shows what your back end pushes to it.</p>\n"
    "  <form id='form'>\n"
    "    <label for='token'>Token</label>\n"
    "    <div><input id='token' required pattern='[^\\/]+' title='anything without a slash'\n"
    "      autocomplete='off' autocapitalize='off' spellcheck='false'>\n"
    "      <button>Connect</button></div>\n"
    "  </form>\n"
    "  <section aria-labelledby='push'>\n"
    "    <h2 id='push'>Push to it from a terminal</h2>\n"
    "    <div><code id='curl'></code> <button id='copy'>Copy</button></div>\n"
    "  </section>\n"
    "  <section aria-labelledby='list'>\n"
    "    <h2 id='list'>Messages</h2>\n"
    "    <p id='none'>None yet. They appear here, the newest on top.</p>\n"
    "    <div role='log' aria-labelledby='list'><ol id='messages'></ol></div>\n"
    "  </section>\n"
    "</main>\n"
    "<script src='/exportws.js'></script>\n"
    "<script>\n",

    "const {path, push, secret, signed} = document.documentElement.dataset;\n"
    "const $ = id => document.getElementById(id);\n"
    "let client, token, countdown;\n"
    "\n"
    "function make(name, text, more) {\n"
    "  return Object.assign(document.createElement(name), {textContent: text}, more);\n"
    "}\n"
    "\n"
    "function show(...parts) {\n"
    "  const item = make('li', ''), now = new Date();\n"
    "  item.append(make('time', now.toLocaleTimeString(), {dateTime: now.toISOString()}));\n"
    "  item.append(...parts);\n"
    "  $('messages').prepend(item);\n"
    "  $('none').hidden = true;\n"
    "  if ($('messages').children.length > 500) $('messages').lastChild.remove();\n"
    "}\n"
    "\n"
    "// JSON with a progress, 0 to 1, becomes a bar; its text, if it has one, stands below.\n"
    "function progressOf(data) {\n"
    "  try {\n"
    "    const {progress, text = data} = JSON.parse(data);\n"
    "    if (typeof progress === 'number' && progress >= 0 && progress <= 1)\n"
    "      return {progress, text};\n"
    "  } catch {}\n"
    "}\n"
    "\n"
    "function onmessage(data, id) {\n"
    "  if (typeof data !== 'string') data = data.byteLength + ' bytes of binary data';\n"
    "  const found = progressOf(data), meta = make('code', id ? 'id ' + id : '');\n"
    "  if (!found) return show(meta, make('p', data));\n"
    "  const percent = Math.round(found.progress * 100) + ' %';\n"
    "  const bar = make('progress', percent, {value: found.progress, ariaLabel: 'Progress'});\n"
    "  document.title = percent + ' - exportws';\n"
    "  show(meta, bar, make('b', percent), make('p', found.text));\n"
    "}\n"
    "\n"
    "function onstate(state, detail) {\n"
    "  const due = Date.now() + detail, tick = () => {\n"
    "    const seconds = Math.max(0, Math.ceil((due - Date.now()) / 1000));\n"
    "    $('wait').textContent = state === 'waiting' ? '(retry in ' + seconds + ' s)' : '';\n"
    "  };\n"
    "  clearInterval(countdown);\n"
    "  countdown = setInterval(tick, 250);\n"
    "  tick();\n"
    "  $('state').className = state;\n"
    "  $('state').textContent = {\n"
    "    connecting: 'Connecting',\n"
    "    open: 'Connected',\n"
    "    waiting: 'Offline',\n"
    "    closed: detail === 4001 ? 'Replaced by a newer page' : 'Ended by the server'\n"
    "  }[state];\n"
    "  if (detail === 'gap')\n"
    "    show(make('p', 'Something may be missing here: it is no longer kept.'));\n"
    "}\n"
    "\n"
    "function quote(text) {\n"
    "  const plain = /^[\\w@%+:,./-]*$/.test(text);\n"
    "  return plain ? text : \"'\" + text.split(\"'\").join(\"'\\\\''\") + \"'\";\n"
    "}\n"
    "\n"
    "function curlLine() {\n"
    "  if (!push) return 'The push door of this server is shut.';\n"
    "  const example = JSON.stringify({progress: 0.37, text: '3,700 of 10,000 rows'});\n"
    "  const words = ['curl -d', quote(example)];\n"
    "  const unix = push.startsWith('unix'), all = /^(0\\.0\\.0\\.0|\\[::\\])/;\n"
    "  const host = unix ? 'localhost' : push.replace(all, location.hostname);\n"
    "  const name = signed ? token.replace(/\\.[^.]*\\.[^.]*$/, '') : token;\n"
    "  if (secret) words.push('-H \"Authorization: Bearer $SECRET\"');\n"
    "  if (unix) words.push('--unix-socket', quote(push.slice(5) || 'PATH'));\n"
    "  words.push(quote('http://' + host + path + encodeURIComponent(name)));\n"
    "  return words.join(' ');\n"
    "}\n"
    "\n"
    "function start() {\n"
    "  const before = token;\n"
    "  token = location.hash.slice(1) || 'demo';\n"
    "  try { token = decodeURIComponent(token); } catch {}\n"
    "  if (before !== token) $('messages').textContent = '', $('none').hidden = false;\n"
    "  $('token').value = token;\n"
    "  $('curl').textContent = curlLine();\n"
    "  client?.close();\n"
    "  client = new ExportWS(path + encodeURIComponent(token), {onmessage, onstate});\n"
    "}\n"
    "\n"
    "$('form').onsubmit = event => {\n"
    "  const hash = '#' + encodeURIComponent($('token').value);\n"
    "  event.preventDefault();\n"
    "  if (location.hash === hash) start();\n"
    "  else location.hash = hash;\n"
    "};\n"
    "\n"
    "$('copy').onclick = async () => {\n"
    "  getSelection().selectAllChildren($('curl'));\n"
    "  try { await navigator.clipboard.writeText($('curl').textContent); } catch { return; }\n"
    "  $('copy').textContent = 'Copied';\n"
    "  setTimeout(() => { $('copy').textContent = 'Copy'; }, 2000);\n"
    "};\n"
    "\n"
    "onhashchange = start;\n"
    "start();\n"
    "</script>\n",
    NULL,
};

#define PAGE_FIELDS "\r\nCache-Control: no-cache\r\nX-Content-Type-Options: nosniff"

/* The hashes are those of the demo page's style and script. */
static const struct page {
    const char *type, *fields;
    const char *const *pieces;
} pages[] = {
    {"text/javascript; charset=utf-8", PAGE_FIELDS, page_client},
    {"text/html; charset=utf-8",
     PAGE_FIELDS
     "\r\nContent-Security-Policy: default-src 'none'; connect-src 'self'; img-src data:; "
     "style-src 'sha256-oFf1TVuPR3bIWEBaNBLuZ2DQG5LYVqyVKmH0YgAPJIg='; "
     "script-src 'self' 'sha256-bLavzL1fC8zx+LmqDWkWzl5HMkNUqJHeEyY9OAc+6V0='; "
     "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
     page_demo},
};

/* Text of which the first `skip` bytes are left out: they are sent already. */
struct rest {
    struct text text;
    size_t skip;
};

static void rest_bytes(struct rest *t, const char *p, size_t n)
{
    size_t skipped = smaller(n, t->skip);
    t->skip -= skipped;
    text_bytes(&t->text, p + skipped, n - skipped);
}

static void rest_add(struct rest *t, const char *s)
{
    rest_bytes(t, s, strlen(s));
}

/* An attribute's value, as it stands between double quotes. */
static void rest_attribute(struct rest *t, const char *s)
{
    for (; *s; s++) {
        if (*s == '"') rest_add(t, "&#34;");
        else if (*s == '&') rest_add(t, "&#38;");
        else rest_bytes(t, s, 1);
    }
}

/* Where and how to push: what the demo page can't know by itself. */
static void page_add_place(const struct exportws *w, struct rest *t)
{
    char push[128] = "";
    exportws_address(w, EXPORTWS_PUSH, push, sizeof push);
    rest_add(t, "<!doctype html>\n<html lang='en' data-path=\""), rest_attribute(t, w->o.path);
    rest_add(t, "\" data-push=\""), rest_attribute(t, push);
    rest_add(t, "\""), rest_add(t, w->o.push_secret ? " data-secret=\"1\"" : "");
    rest_add(t, w->o.client_secret ? " data-signed=\"1\">\n" : ">\n");
}

static void page_add(const struct exportws *w, const struct page *page, struct rest *t)
{
    if (page->pieces == page_demo) page_add_place(w, t);
    for (unsigned i = 0; page->pieces[i]; i++) rest_add(t, page->pieces[i]);
}

/* Fills the stage with what of a page is not sent yet, or a part of it. Returns the bytes. */
static size_t page_stage(struct exportws *w, const struct conn *c)
{
    const struct page *page = &pages[c->code];
    char bytes[RESPONSE_MAX];
    struct text head = {bytes, 0, sizeof bytes};
    struct rest t = {{NULL, 0, 0}, 0};
    page_add(w, page, &t);
    struct response r = {200, page->type, page->fields, "", t.text.n, 1, 1};
    response_write(&head, &r);
    t = (struct rest){{(char *)w->stage, 0, w->stage_size}, c->sent};
    rest_bytes(&t, bytes, smaller(head.n, sizeof bytes));
    page_add(w, page, &t);
    return smaller(t.text.n, w->stage_size);
}

/* Sends on with a page until the kernel takes no more; then, as after any answer, the connection
 * lingers. Uses the stage. */
static void page_send(struct exportws *w, struct conn *c)
{
    size_t n;
    while ((n = page_stage(w, c)) > 0) {
        ptrdiff_t sent = conn_write(w, c, w->stage, n);
        if (sent < 0) conn_doom(w, c);
        if (sent <= 0) return;
        c->sent += (uint32_t)sent;
        timer_set(w, c, TIMER_CLOSE);
    }
    c->state = CONN_LINGER;
    conn_output_done(w, c, 0);
}

#else

static void page_send(struct exportws *w, struct conn *c) /* nobody gets so far */
{
    (void)w, (void)c;
}

#endif

/* ===== Loop: the one place that accepts and closes ===== */

static uint64_t clock_us(clockid_t clock)
{
    struct timespec now = {0, 0};
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Reads the time; a clock that fails or goes back stands still. */
static void loop_time(struct exportws *w)
{
    uint64_t now_us = clock_us(CLOCK_MONOTONIC);
    if (now_us > w->now_us) w->now_us = now_us;
    w->now_ms = w->now_us / 1000;
}

/* Closes a connection and gives its slot back. */
static void conn_bury(struct exportws *w, struct conn *c)
{
    uint32_t index = (uint32_t)(c - w->conns);
    uint32_t *list = conn_is_session(w, c) ? &w->free_session
                   : conn_is_pusher(w, c)  ? &w->free_pusher
                                           : &w->free_handshake;
    if (conn_is_session(w, c)) w->seats--, address_leave(w, c);
    else if (!conn_is_pusher(w, c)) w->handshakes--;
    else if (!(c->flags & CONN_EXTRA)) w->pushers--;
    if (conn_is_pusher(w, c)) push_reset(w, push_of(w, c));
    if (c->flags & CONN_WAITING) w->waiting--;
    c->sent = 0;
    conn_drop_queue(w, c);
    timer_clear(w, c);
    input_release(w, c);
    poll_remove(w, c->at);
    close(c->fd);
    c->fd = -1;
    c->flags = 0;
    c->state = CONN_FREE;
    c->timer_next = *list;
    *list = index;
    w->accept_due_ms = 0;
}

/* The connection's end was read (-1), or its socket failed (-2). */
static void conn_ended(struct exportws *w, struct conn *c, ptrdiff_t how)
{
    if (conn_is_session(w, c))
        session_lost(w, c, how == -1 ? EXPORTWS_BY_PEER : EXPORTWS_BY_ERROR);
    else conn_doom(w, c);
}

/* Stops reading a connection until an input buffer is free. */
static void conn_wait(struct exportws *w, struct conn *c)
{
    c->flags |= CONN_WAITING;
    if (w->waiting++ == 0) w->wait_due_ms = w->now_ms + WAIT_RETRY_MS;
    poll_want(w, c);
}

/* After the units in an input were served: what is left of it is kept, or the input given back.
 * What was only peeked at is taken from the kernel as far as it was served. */
static void conn_input_done(struct exportws *w, struct conn *c, struct input *in, int peek)
{
    size_t rest = in->used - in->raw;
    if (c->state == CONN_DEAD || c->state == CONN_LINGER || c->state == CONN_PAGE) {
        /* Left unread, it would turn close() into a reset. */
        if (peek) recv(c->fd, in->data, in->used, 0);
        input_release(w, c);
        return;
    }
    if (peek) {
        size_t served = in->raw;
        in->used = in->raw = 0;
        if (input_discard(c, in, served) < 0) conn_ended(w, c, -2);
        else if (rest > 0) conn_wait(w, c);
        if (w->pushes_left) w->inputs_freed = 1; /* it waits for the next turn, not for an input */
        w->m->bytes_received += served;
        return;
    }
    input_compact(in);
    if (in->used == 0 && !in->in_frame && in->kind == 0) input_release(w, c);
    else if (c->input == 0) input_keep(w, c);
}

/* A session has shown life: bytes that are new. What is only peeked at, again and again, is not. */
static void session_alive(struct exportws *w, struct conn *c)
{
    if (c->state == CONN_OPEN && c->timer != TIMER_WRITE) timer_set(w, c, TIMER_PING);
}

/* How much to read of a pusher that holds no input: behind the body that is coming, which is served in
 * any case, no more than an input holds, for a turn may have to keep that for the next. */
static size_t push_most(const struct exportws *w, const struct conn *c)
{
    const struct push *q = push_of(w, c);
    return w->input_bytes + (size_t)(q->left + chunk_rest(&q->chunk));
}

/* Reads a connection once and serves what is whole. */
static void conn_read(struct exportws *w, struct conn *c)
{
    if (c->state == CONN_LINGER) input_release(w, c);
    struct input *in = input_of(w, c);
    int heads = c->state == CONN_HEAD || c->state == CONN_PUSH, linger = c->state == CONN_LINGER;
    int none = w->free_inputs == 0 || (heads && w->input_bytes < HEAD_MAX);
    int peek = c->input == 0 && none && !linger;
    if (c->input == 0) input_reset(in, NONE, w->now_ms);
    size_t most = c->state == CONN_PUSH && c->input == 0 && !peek ? push_most(w, c) : in->size;
    ptrdiff_t n = input_receive(w, c, in, most, peek ? MSG_PEEK : 0);
    if (n == -1 && c->input > 0 && c->state == CONN_PUSH && w->pushes_left) return; /* not yet */
    if (n < 0) conn_ended(w, c, n);
    if (n <= 0 || c->state == CONN_LINGER) return;
    if (!peek) session_alive(w, c);
    if (c->state == CONN_HEAD) c = client_feed(w, c, in, peek);
    else if (c->state == CONN_PUSH) push_feed(w, c, in);
    else session_feed(w, c, in, peek);
    if (peek && in->raw > 0) session_alive(w, c);
    conn_input_done(w, c, in, peek);
    if (c->input > 0 || c->state != CONN_OPEN) c->flags |= CONN_SPOKE; /* more comes soon */
    if (c->flags & CONN_SPOKE) poll_heat(w, c->at);
}

/* Serves one connection that poll() found ready. */
static void conn_event(struct exportws *w, struct conn *c, int revents)
{
    if (c->state == CONN_DEAD) return;
    if (PAGES && (revents & POLLOUT) && c->state == CONN_PAGE) page_send(w, c);
    if ((revents & POLLOUT) && c->queued > 0) {
        ptrdiff_t progress = conn_flush(w, c);
        if (progress < 0) {
            conn_ended(w, c, -2);
            return;
        }
        conn_output_done(w, c, progress > 0);
    }
    if (!(revents & ~POLLOUT) || c->state == CONN_DEAD) return;
    if (w->polls[c->at].events & POLLIN) conn_read(w, c);
    else conn_ended(w, c, -2);
}

static void door_wait(struct exportws *w, int events)
{
    for (unsigned i = 0; i < 2; i++)
        if (w->doors[i].fd >= 0) w->polls[w->doors[i].at].events = (short)events;
    w->accept_paused = events == 0;
}

/* Makes a descriptor one that never blocks and that no program inherits. 0, or -1 with errno. */
static int fd_prepare(int fd)
{
    return fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -1 : 0;
}

/* Sets up a socket that accept() gave. 0, or -1. */
static int socket_prepare(int fd)
{
#ifdef SO_NOSIGPIPE
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    return fd_prepare(fd);
}

static void conn_set_address(struct conn *c, const struct sockaddr *from)
{
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    memset(c->address, 0, sizeof c->address);
    c->port = 0;
    if (from->sa_family == AF_INET) {
        memcpy(&v4, from, sizeof v4);
        memset(c->address + 10, 0xff, 2);
        memcpy(c->address + 12, &v4.sin_addr, 4);
        c->port = ntohs(v4.sin_port);
    } else if (from->sa_family == AF_INET6) {
        memcpy(&v6, from, sizeof v6);
        memcpy(c->address, &v6.sin6_addr, 16);
        c->port = ntohs(v6.sin6_port);
    }
}

/* The client that has kept a handshake's slot longest gives way: of those that have their answer,
 * else of those whose request is incomplete. Not all can be dead already: fewer are accepted in a
 * turn than there are slots. */
static void handshake_give_way(struct exportws *w)
{
    static const uint8_t lists[] = {TIMER_CLOSE, TIMER_HEAD, TIMER_CLOSE};
    uint32_t index = NONE;
    for (unsigned look = 0; index == NONE; look++) {
        index = w->timers[lists[look % 3]].first;
        for (; index != NONE; index = w->conns[index].timer_next) {
            const struct conn *c = &w->conns[index];
            int answered = c->state == CONN_LINGER && c->queued == 0;
            if (index >= w->capacity && index < w->pushers_at && (look > 0 || answered)) break;
        }
    }
    if (w->conns[index].state == CONN_HEAD)
        client_refuse(w, &w->conns[index], 408,
                      "others needed the place of your incomplete request", 0);
    conn_bury(w, &w->conns[index]);
}

/* Puts a new connection into a slot. */
static struct conn *conn_start(struct exportws *w, int fd, uint32_t *list,
                               const struct sockaddr *from)
{
    uint32_t index = *list;
    struct conn *c = &w->conns[index];
    *list = c->timer_next;
    memset(c, 0, sizeof *c);
    c->fd = fd;
    c->own = c->all = c->out.first = c->out.last = c->token = NONE;
    poll_add(w, fd, index);
    conn_set_address(c, from);
    timer_set(w, c, TIMER_HEAD);
    return c;
}

static void client_accept(struct exportws *w, int fd, const struct sockaddr *from)
{
    if (w->free_handshake == NONE) handshake_give_way(w);
    struct conn *c = conn_start(w, fd, &w->free_handshake, from);
    w->handshakes++;
    c->state = CONN_HEAD;
    conn_read(w, c); /* its head is often there already */
}

/* Refuses a pusher whose request has not come, or not all of it, and lets it go; it may read why. */
static void pusher_dismiss(struct exportws *w, struct conn *c, int status, const char *why)
{
    struct push *q = push_of(w, c);
    push_drop_draft(w, q);
    q->close = 1;
    push_refuse(w, c, status, NULL, why);
    answers_flush(w, c);
    if (c->state != CONN_DEAD) conn_output_done(w, c, 0);
}

/* There is not even a slot for one pusher more: it is told so at once, as far as it listens. */
static void pusher_turn_away(struct exportws *w, int fd, const struct sockaddr *from,
                             const char *why)
{
    static const struct response busy = {
        503, "application/json", NULL, "{\"error\":\"too many connections: wait\"}\n", 39, 1, 0};
    char bytes[RESPONSE_MAX];
    struct text t = {bytes, 0, sizeof bytes};
    struct conn none;
    conn_set_address(&none, from);
    refuse_note(w, &none, 503, why);
    response_write(&t, &busy);
    send(fd, bytes, t.n, MSG_NOSIGNAL);
    close(fd);
}

/* Of the pushers that have been there for a moment and have not shown the secret the one that came
 * first, or NULL. */
static struct conn *pusher_stranger(const struct exportws *w)
{
    struct conn *first = NULL;
    uint32_t oldest = STRANGER_MS;
    for (struct conn *c = &w->conns[w->pushers_at]; c < &w->conns[w->conns_end]; c++) {
        uint32_t age = (uint32_t)w->now_ms - c->prev;
        if (c->state != CONN_PUSH && c->state != CONN_LINGER) continue;
        if ((c->flags & (CONN_KNOWN | CONN_EXTRA)) || age < oldest) continue;
        first = c, oldest = age;
    }
    return first;
}

/* Such a one gives way, unless it shows the secret now: who may not push keeps nobody out. */
static void pusher_give_way(struct exportws *w)
{
    struct conn *c;
    while ((c = pusher_stranger(w)) != NULL) {
        if (w->polls[c->at].events & POLLIN) conn_read(w, c);
        if (c->flags & CONN_KNOWN) continue;
        if (c->state == CONN_PUSH)
            pusher_dismiss(w, c, 408, "others needed your place: the secret was not shown");
        conn_bury(w, c);
        return;
    }
}

/* One pusher too many is told so; a few spare slots let it read that in peace. */
static void pusher_accept(struct exportws *w, int fd, const struct sockaddr *from)
{
    const char *const why = "too many connections at the push door: come again";
    if (w->pushers == w->o.pushers && w->o.push_secret) pusher_give_way(w);
    if (w->free_pusher == NONE) {
        pusher_turn_away(w, fd, from, why);
        return;
    }
    struct conn *c = conn_start(w, fd, &w->free_pusher, from);
    push_reset(w, push_of(w, c));
    c->state = CONN_PUSH;
    c->prev = (uint32_t)w->now_ms;
    if (w->pushers < w->o.pushers) {
        w->pushers++;
        conn_read(w, c);
        return;
    }
    c->flags |= CONN_EXTRA;
    pusher_dismiss(w, c, 503, why);
}

/* Out of descriptors: both doors are left alone until one of ours is freed, or for a second. */
static void door_pause(struct exportws *w, const char *why)
{
    struct line l;
    door_wait(w, 0);
    w->accept_due_ms = w->now_ms + ACCEPT_RETRY_MS;
    if (!log_begin(w, &l, EXPORTWS_LOG_WARN, "refuse")) return;
    log_words(&l, "why", why);
    log_end(w, &l);
}

/* Takes who waits at a door: one, and all when it was knocked at in the turn before, too; to look
 * for a second costs as much as to take the first. */
static void door_accept(struct exportws *w, unsigned which, int crowd)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } from;
    const size_t most = which == EXPORTWS_CLIENTS ? w->o.handshakes / 2 + 1 : w->o.pushers / 2 + 1;
    for (size_t i = 0; i < (crowd ? most : 1) && !w->accept_paused; i++) {
        socklen_t size = sizeof from;
        from.any.sa_family = AF_UNIX;
        int fd = accept(w->doors[which].fd, &from.any, &size);
        if (fd < 0) {
            int error = errno;
            if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM)
                door_pause(w, strerror(error));
            if (error != ECONNABORTED && error != EINTR) return;
        } else if (socket_prepare(fd) < 0) {
            close(fd);
        } else if (which == EXPORTWS_CLIENTS) {
            client_accept(w, fd, &from.any);
        } else {
            pusher_accept(w, fd, &from.any);
        }
    }
}

/* Begins to drain. */
static void loop_drain(struct exportws *w)
{
    struct line l;
    if (w->stopping) return;
    w->stopping = 1;
    pthread_mutex_lock(&w->ring.lock);
    w->ring.closed = 1;
    pthread_mutex_unlock(&w->ring.lock);
    w->drain_due_ms = w->now_ms + w->o.drain_ms;
    if (log_begin(w, &l, EXPORTWS_LOG_INFO, "drain")) {
        log_counts(w, &l);
        log_end(w, &l);
    }
    for (uint32_t i = 0; i < w->slots_used; i++)
        if (w->conns[i].state == CONN_OPEN)
            session_end(w, &w->conns[i], EXPORTWS_BY_SHUTDOWN, 1001, "server shutting down");
}

/* ----- the ring of exportws_post ----- */

/* What stands before a post's token and bytes in the ring. */
struct posted {
    uint32_t size;
    uint16_t name_size; /* 0: to all */
    uint8_t kind;
};

enum { POSTS_A_TURN = 256, KIND_MASK = EXPORTWS_TEXT | EXPORTWS_BINARY };

static void ring_put(struct ring *r, const void *p, size_t n)
{
    size_t at = (r->first + r->used) % r->size, piece = smaller(n, r->size - at);
    if (n == 0) return;
    memcpy(r->bytes + at, p, piece);
    memcpy(r->bytes, (const uint8_t *)p + piece, n - piece);
    r->used += n;
}

static void ring_get(struct ring *r, void *p, size_t n)
{
    size_t piece = smaller(n, r->size - r->first);
    memcpy(p, r->bytes + r->first, piece);
    memcpy((uint8_t *)p + piece, r->bytes, n - piece);
    r->first = (r->first + n) % r->size;
    r->used -= n;
}

/* Takes the oldest post: its bytes to where a frame's payload stands in the stage, its token to the
 * scratch. 0: there is none. */
static int ring_take(struct exportws *w, struct posted *post)
{
    struct ring *r = &w->ring;
    pthread_mutex_lock(&r->lock);
    int any = r->used > 0;
    if (any) {
        ring_get(r, post, sizeof *post);
        ring_get(r, w->scratch->data, post->name_size);
        ring_get(r, w->stage + MESSAGE_HEAD_MAX, post->size);
    }
    pthread_mutex_unlock(&r->lock);
    return any;
}

/* Sends what other threads have posted; what is more than a turn's share comes in the next. */
static void loop_posts(struct exportws *w)
{
    struct posted post;
    struct line l;
    unsigned n = 0;
    if (!w->posts_left) return;
    while (n < POSTS_A_TURN && w->sends < TURN_SENDS && ring_take(w, &post)) {
        const uint8_t *name = post.name_size > 0 ? w->scratch->data : NULL;
        struct pushed p = {.data = w->stage + MESSAGE_HEAD_MAX, .size = post.size, .index = NONE};
        p.kind = post.kind & KIND_MASK, p.end = (post.kind & EXPORTWS_END) != 0;
        p.name = name, p.name_size = post.name_size;
        int result = w->stopping ? EXPORTWS_GONE : pushed_deliver(w, &p);
        n++;
        if (result >= 0) continue;
        w->m->posts_refused++;
        if (!log_begin(w, &l, EXPORTWS_LOG_WARN, "refuse")) continue;
        if (name) log_token(w, &l, name, post.name_size);
        log_words(&l, "why", exportws_strerror(result));
        log_end(w, &l);
    }
    w->posts_left = n == POSTS_A_TURN || w->sends >= TURN_SENDS;
}

/* What came through the wake-up pipe: a 's' asks to stop, everything else is about posts. */
static void loop_woken(struct exportws *w)
{
    char bytes[64];
    ssize_t n;
    w->posts_left = 1;
    while ((n = read(w->wake[0], bytes, sizeof bytes)) > 0)
        if (memchr(bytes, 's', (size_t)n)) loop_drain(w);
}

/* ----- time ----- */

static void session_ping(struct exportws *w, struct conn *c)
{
    w->m->pings++;
    timer_set(w, c, TIMER_PONG);
    session_sent(w, c, session_control(w, c, OP_PING, NULL, 0));
}

/* A request was not complete in time. */
static void request_timeout(struct exportws *w, struct conn *c)
{
    if (conn_is_pusher(w, c)) pusher_dismiss(w, c, 408, "the request was not complete in time");
    else client_refuse(w, c, 408, "the request was not complete in time", 0);
    input_release(w, c);
}

/* A ping was not answered, as far as we know. It may have been: when turns take long the sweep
 * comes late to one that is cold, and one that waits for an input buffer is not listened to. That
 * one has as long again as others may keep those buffers from it. */
static void session_silent(struct exportws *w, struct conn *c)
{
    if (!(c->flags & CONN_WAITING)) conn_read(w, c);
    if (c->timer == TIMER_PONG && (c->flags & CONN_WAITING)) timer_set(w, c, TIMER_HEAD);
    else if (c->timer == TIMER_PONG || c->timer == TIMER_HEAD)
        session_fail(w, c, EXPORTWS_BY_TIMEOUT, 1008, "heartbeat missed");
}

/* A connection's deadline has passed. */
static void conn_timeout(struct exportws *w, struct conn *c)
{
    switch (c->timer) {
    case TIMER_HEAD: (conn_is_session(w, c) ? session_silent : request_timeout)(w, c); return;
    case TIMER_PING: session_ping(w, c); return;
    case TIMER_PONG: session_silent(w, c); return;
    case TIMER_WRITE:
        if (c->state == CONN_OPEN)
            session_fail(w, c, EXPORTWS_BY_SLOW, 1013, "too slow: nothing taken");
        else conn_doom(w, c);
        return;
    default: conn_doom(w, c); return;
    }
}

/* A session that has kept an input buffer for handshake_timeout, while others wait for one, loses
 * it. A request's own deadline sees to that for handshakes and pushers. */
static void inputs_give_way(struct exportws *w)
{
    for (uint32_t i = 0; i < w->input_count; i++) {
        struct input *in = &w->inputs[i];
        if (in->owner >= w->capacity) continue;
        if (w->now_ms - in->since_ms < w->o.handshake_timeout_ms) continue;
        struct conn *c = &w->conns[in->owner];
        if (c->state == CONN_OPEN)
            session_fail(w, c, EXPORTWS_BY_TIMEOUT, 1008, "message not complete in time");
        else conn_doom(w, c);
        input_release(w, c);
    }
}

/* Those that wait for an input buffer are looked at again: one was freed, or what they have in the
 * kernel may be whole by now and need none. */
static void inputs_wake(struct exportws *w)
{
    w->inputs_freed = 0;
    for (uint32_t at = 0; at < w->poll_count && w->waiting > 0; at++) {
        if (w->owners[at] >= w->conns_end) continue;
        struct conn *c = &w->conns[w->owners[at]];
        if (!(c->flags & CONN_WAITING)) continue;
        c->flags &= (uint8_t)~CONN_WAITING;
        w->waiting--;
        poll_want(w, c);
    }
}

/* Does what is due. Returns the number of events. */
static int loop_timers(struct exportws *w)
{
    int events = messages_expire(w);
    for (unsigned timer = TIMER_HEAD; timer < TIMER_DEAD; timer++) {
        struct conn *c;
        while ((c = timer_due(w, timer)) != NULL) {
            conn_timeout(w, c);
            events++;
        }
    }
    if (w->waiting > 0) inputs_give_way(w);
    if (w->waiting > 0 && (w->inputs_freed || w->wait_due_ms <= w->now_ms)) inputs_wake(w);
    if (w->accept_paused && w->accept_due_ms <= w->now_ms) door_wait(w, POLLIN);
    return events;
}

/* Whether turns have followed each other closely for a while. */
static int loop_dense(const struct exportws *w)
{
    return w->streak > DENSE_TURNS;
}

/* How long the loop may sleep from the time that was read last, at most timeout_ms (negative: no
 * bound). */
static int loop_timeout(struct exportws *w, int timeout_ms)
{
    uint64_t due = UINT64_MAX, wait;
    if (w->left_first != NONE || w->posts_left || w->pushes_left ||
        w->timers[TIMER_DEAD].first != NONE)
        return 0;
    for (unsigned timer = TIMER_HEAD; timer < TIMER_DEAD; timer++)
        if (w->timers[timer].first != NONE && w->conns[w->timers[timer].first].due_ms < due)
            due = w->conns[w->timers[timer].first].due_ms;
    for (unsigned list = 0; list < 2; list++)
        if (w->ages[list].first != NONE && message_at(w, w->ages[list].first)->due_ms < due)
            due = message_at(w, w->ages[list].first)->due_ms;
    if (w->accept_paused && w->accept_due_ms < due) due = w->accept_due_ms;
    if (w->stopping && w->drain_due_ms < due) due = w->drain_due_ms;
    if (w->waiting > 0 && w->wait_due_ms < due) due = w->wait_due_ms;
    if (due == UINT64_MAX) return timeout_ms;
    wait = due > w->now_ms ? due - w->now_ms : 0; /* a day at most, as the options are bounded */
    return timeout_ms < 0 || wait < (uint64_t)timeout_ms ? (int)wait : timeout_ms;
}

/* Tells of those who left, closes the dead, and tells of the messages that nobody got; what hears
 * of these may make more leave. */
static void loop_bury(struct exportws *w)
{
    do {
        sessions_announce(w);
        while (w->timers[TIMER_DEAD].first != NONE)
            conn_bury(w, &w->conns[w->timers[TIMER_DEAD].first]);
        messages_announce(w);
    } while (w->left_first != NONE);
}

/* Whether draining is over; then the server stops. */
static void loop_drained(struct exportws *w)
{
    struct line l;
    if (!w->stopping || w->posts_left || (w->seats > 0 && w->now_ms < w->drain_due_ms)) return;
    w->stopped = 1;
    if (!log_begin(w, &l, w->held > 0 ? EXPORTWS_LOG_WARN : EXPORTWS_LOG_INFO, "stop")) return;
    log_counts(w, &l), log_number(&l, "held", w->held);
    log_end(w, &l);
}

/* Serves the entries [from, to) of the poll set, of which poll() found `ready` to be so. None
 * leaves before the turn's end; one that changes places with another that goes hot may be passed
 * over, and is found again by the next poll(). Returns the number served. */
static int loop_serve(struct exportws *w, uint32_t from, uint32_t to, int ready)
{
    int events = 0;
    for (uint32_t at = from; at < to && events < ready; at++) {
        int revents = w->polls[at].revents;
        uint32_t owner = w->owners[at];
        if (revents == 0) continue;
        w->polls[at].revents = 0;
        events++;
        if (owner < w->conns_end) {
            conn_event(w, &w->conns[owner], revents);
            continue;
        }
        poll_heat(w, at);
        if (owner == OWNER_WAKE) loop_woken(w);
        else w->knocked |= 1U << (owner - OWNER_DOOR);
    }
    return events;
}

/* Sweeps the next piece of the cold set. What it cost sets when the next is due. */
static int loop_sweep(struct exportws *w)
{
    uint32_t from = w->sweep_at > w->hot && w->sweep_at < w->poll_count ? w->sweep_at : w->hot;
    uint64_t start_us = clock_us(CLOCK_MONOTONIC);
    uint32_t late = w->sweep_due_us + SWEEP_SLOWEST_US / 2 < start_us;
    uint32_t to = (uint32_t)smaller(from + ((uint32_t)SWEEP_PIECE << late), w->poll_count);
    int ready = poll(w->polls + from, to - from, 0);
    uint64_t end_us = clock_us(CLOCK_MONOTONIC);
    uint64_t gap_us = (end_us - start_us) * SWEEP_SHARE;
    w->sweep_us += end_us - start_us; /* of one short piece that says nothing */
    w->swept += to - from;
    if (w->swept > SWEPT_MOST) w->sweep_us /= 2, w->swept /= 2;
    w->sweep_at = to;
    w->sweep_due_us = end_us + (gap_us < SWEEP_FASTEST_US ? SWEEP_FASTEST_US
                              : gap_us > SWEEP_SLOWEST_US ? SWEEP_SLOWEST_US
                                                          : gap_us);
    w->unswept = 0;
    return loop_serve(w, from, to, ready);
}

/* Who has not spoken since the last time is live no more, and sessions go cold unless there are few
 * of them all. */
static void loop_cool(struct exportws *w)
{
    const int few = w->poll_count <= POLL_FEW;
    w->cool_due_ms = w->now_ms + COOL_MS;
    if (few) w->hot = w->poll_count;
    for (uint32_t at = w->hot; at-- > 0;) {
        uint32_t owner = w->owners[at];
        if (owner >= w->conns_end) {
            poll_rest(w, at);
            continue;
        }
        struct conn *c = &w->conns[owner];
        if (c->flags & CONN_SPOKE) c->flags &= (uint8_t)~CONN_SPOKE;
        else if (c->state == CONN_OPEN && c->queued == 0 && !few) poll_cool(w, at);
        else poll_rest(w, at);
    }
}

/* Whether so little happens that to wait for the whole set costs less than sweeps: nothing for as
 * long as two of them may take, now or before the last event. */
static int loop_quiet(const struct exportws *w)
{
    uint64_t cold = w->poll_count - w->hot, silence_us = w->now_us - w->busy_us;
    if (silence_us < w->calm_us) silence_us = w->calm_us;
    return silence_us >= 2 * cold * w->sweep_us * SWEEP_SHARE / w->swept;
}

/* Goes on with what is left of pushers' requests, as far as the turn goes. Returns how many pushers
 * were served. */
static int loop_pushes(struct exportws *w)
{
    int served = 0;
    if (!w->pushes_left) return 0;
    w->pushes_left = 0;
    for (uint32_t i = 0; i < w->input_count; i++) {
        struct input *in = &w->inputs[i];
        struct conn *c = in->owner == NONE ? NULL : &w->conns[in->owner];
        if (!c || c->state != CONN_PUSH) continue;
        push_feed(w, c, in);
        conn_input_done(w, c, in, 0);
        served++;
    }
    return served;
}

/* The rest of a turn in which `events` were served. Returns how many there were in all. */
static int loop_finish(struct exportws *w, int events)
{
    w->sends = 0; /* as many again as what poll() found had */
    loop_posts(w);
    events += loop_pushes(w); /* last: each pusher is served one request in any case */
    w->sends = 0;
    events += loop_timers(w);
    loop_bury(w);
    for (unsigned i = 0; w->knocked >> i > 0; i++) {
        if (!(w->knocked & 1U << i)) continue;
        door_accept(w, i, w->crowded >> i & 1);
        loop_bury(w);
    }
    w->crowded = w->knocked;
    w->knocked = 0;
    if (w->cool_due_ms <= w->now_ms) loop_cool(w);
    if (events > 0) w->calm_us = w->now_us - w->busy_us, w->busy_us = w->now_us;
    loop_drained(w);
    w->in_turn = 0;
    return events;
}

/* One turn: polls what is to be polled, and serves it. Where something hot is served all the time,
 * sweeps come when turns find them due: to wait for a moment only sets the machine's timer every
 * time, which can cost more than all else of a turn. */
static int loop_turn(struct exportws *w, int timeout_ms)
{
    const uint64_t before_us = w->now_us;
    int few = loop_dense(w) && w->streak % LOOK_TURNS > 0;
    uint32_t count = few ? w->live : loop_quiet(w) ? w->poll_count : w->hot;
    uint64_t due_us = w->sweep_due_us > w->now_us ? w->sweep_due_us - w->now_us : 0;
    int sweep_ms = w->lively ? SWEEP_LAZY_MS : (int)((due_us + 999) / 1000);
    if ((count < w->poll_count || loop_dense(w)) && (unsigned)sweep_ms < (unsigned)timeout_ms)
        timeout_ms = sweep_ms; /* which may be negative: no bound */
    int ready = poll(w->polls, count, timeout_ms);
    w->in_turn = 1;
    w->lively = ready > 0;
    loop_time(w);
    w->streak = ready > 0 && w->now_us - before_us < DENSE_US ? (uint16_t)(w->streak + 1) : 0;
    int events = loop_serve(w, 0, count, ready);
    int due = ready == 0 || w->sweep_due_us <= w->now_us || ++w->unswept == SWEEP_TURNS;
    if (count <= w->hot && w->hot < w->poll_count && due) events += loop_sweep(w);
    return loop_finish(w, events);
}

/* ===== Doors ===== */

static int fail(struct text *why, const char *what, const char *name, const char *how)
{
    why->n = 0;
    text_add(why, what), text_add(why, name), text_add(why, how ? ": " : ""),
        text_add(why, how ? how : "");
    text_end(why);
    return -1;
}

/* Removes a Unix socket that nobody listens at any more. Where so many wait that one more would
 * have to, somebody does. */
static void unix_clear(const struct sockaddr_un *to)
{
    struct stat st;
    if (lstat(to->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) return;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) == 0 &&
        connect(fd, (const struct sockaddr *)to, sizeof *to) < 0 && errno == ECONNREFUSED)
        unlink(to->sun_path);
    close(fd);
}

static void door_close(struct door *d)
{
    if (d->fd < 0) return;
    close(d->fd);
    if (d->path) unlink(d->path);
    d->path = NULL;
    d->fd = -1;
}

/* Opens one address; path is a Unix socket's, or NULL. 0, or -1 with errno and nothing left. */
static int door_listen(struct door *d, const struct sockaddr *to, socklen_t size, int all,
                       const char *path)
{
    const int on = 1, only = !all;
    d->fd = socket(to->sa_family, SOCK_STREAM, 0);
    if (d->fd < 0) return -1;
    if (!path) setsockopt(d->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (to->sa_family == AF_INET6)
        setsockopt(d->fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
    if (fd_prepare(d->fd) == 0 && bind(d->fd, to, size) == 0) {
        d->path = path;
        if (listen(d->fd, SOMAXCONN) == 0) return 0;
    }
    int error = errno;
    door_close(d);
    errno = error;
    return -1;
}

/* Opens a Unix socket. When it fails d->fd is -1, and errno says why. */
static void door_open_unix(struct door *d, const char *path)
{
    struct sockaddr_un to = {0};
    size_t n = strlen(path);
    to.sun_family = AF_UNIX;
    memcpy(to.sun_path, path, n + 1);
    unix_clear(&to);
    door_listen(d, (const struct sockaddr *)&to, sizeof to, 0, path);
}

/* Takes over a listening socket that the caller has opened. Fails like that, too. */
static void door_open_fd(struct door *d, const char *number)
{
    uint64_t fd = 0;
    int listens = 0;
    socklen_t size = sizeof listens;
    decimal_parse((const uint8_t *)number, strlen(number), &fd);
    if (getsockopt((int)fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0) return;
    errno = EINVAL;
    if (listens && fd_prepare((int)fd) == 0) d->fd = (int)fd;
}

/* Opens the door at `address` (NULL: it stays shut). 0, or -1 with the reason in *why. */
static int door_open(struct exportws *w, unsigned which, const char *address, struct text *why)
{
    struct door *d = &w->doors[which];
    const int on = 1;
    union {
        struct sockaddr any;
        struct sockaddr_in6 v6;
        struct sockaddr_storage storage;
    } to;
    if (!address) return 0;
    memset(&to, 0, sizeof to);
    if (strncmp(address, "unix:", 5) == 0) {
        door_open_unix(d, address + 5);
    } else if (strncmp(address, "fd:", 3) == 0) {
        door_open_fd(d, address + 3);
    } else {
        socklen_t size = address_parse(address, &to.storage);
        int all = address[0] == ':';
        if (door_listen(d, &to.any, size, all, NULL) < 0 && all &&
            (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL)) {
            struct sockaddr_in v4 = {0}; /* no IPv6 here */
            v4.sin_family = AF_INET;
            v4.sin_port = to.v6.sin6_port;
            door_listen(d, (const struct sockaddr *)&v4, sizeof v4, 0, NULL);
        }
    }
    if (d->fd < 0) return fail(why, "cannot listen on ", address, strerror(errno));
    /* Accepted sockets have it from here; a Unix socket has none, and needs none. */
    setsockopt(d->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    poll_add(w, d->fd, OWNER_DOOR + which);
    return 0;
}

/* ===== API ===== */

const char *exportws_strerror(int error)
{
    static const char *const words[] = {"no error",       "nobody there", "no room",     "too big",
                                        "text not UTF-8", "it has ended", "bad argument"};
    return error <= 0 && error >= EXPORTWS_BAD ? words[-error] : "unknown error";
}

const char *exportws_request_token(const exportws_request *r)
{
    return r ? r->token : "";
}

const char *exportws_request_query(const exportws_request *r)
{
    return r ? r->query : "";
}

size_t exportws_request_header(const exportws_request *r, const char *name, char *value,
                               size_t size)
{
    struct text t = {value, 0, value ? size : 0};
    const uint8_t *line = r && name ? r->head + r->parsed->fields.at : NULL;
    while (line && line < r->end) {
        const uint8_t *end = memchr(line, '\n', (size_t)(r->end - line));
        const uint8_t *p = memchr(line, ':', (size_t)(end - line));
        if (p && ascii_equal(line, (size_t)(p - line), name)) {
            size_t n = (size_t)(end - p) - 2; /* without colon and CR */
            p++;
            http_trim(&p, &n);
            text_bytes(&t, p, n);
            break;
        }
        line = end + 1;
    }
    text_end(&t);
    return t.n;
}

void exportws_defaults(exportws_options *o)
{
    if (!o) return;
    memset(o, 0, sizeof *o);
    o->listen = o->push = o->push_secret = o->client_secret = NULL;
    o->path = "/app/ws/export-task/";
    o->heartbeat = "HEART-BEAT";
    o->capacity = 1024, o->per_token = 8, o->per_address = 0;
    o->handshakes = 256, o->pushers = 64;
    o->queue = 32, o->history = 16;
    o->max_token_bytes = 64, o->max_message_bytes = 4096, o->max_push_bytes = 65536,
    o->buffer_bytes = 4194304;
    o->hold_ms = 30000, o->ping_ms = 25000, o->pong_ms = 10000;
    o->handshake_timeout_ms = 10000, o->close_timeout_ms = 2000, o->write_timeout_ms = 20000,
    o->drain_ms = 5000;
    o->log_level = EXPORTWS_LOG_INFO;
}

/* Measures a server with these options. Returns the name of what is out of range, or NULL. */
static const char *options_measure(const exportws_options *o, size_t *bytes)
{
    static const char *const together[] = {NULL, "buffer and all else together"};
    struct exportws measured;
    const char *wrong = o ? options_wrong(o) : "options";
    if (wrong) return wrong;
    measured.o = *o;
    *bytes = layout(&measured, NULL);
    return together[*bytes > SIZE_MAX / 2]; /* only where a size_t has 32 bits */
}

size_t exportws_memory(const exportws_options *o)
{
    size_t bytes;
    return options_measure(o, &bytes) ? 0 : bytes;
}

/* Links all free slots, blocks and records. */
static void free_lists(struct exportws *w)
{
    const uint32_t ends[3] = {w->capacity, w->pushers_at, w->conns_end};
    uint32_t *const firsts[3] = {&w->free_session, &w->free_handshake, &w->free_pusher};
    for (unsigned pool = 0; pool < 3; pool++) {
        uint32_t first = pool > 0 ? ends[pool - 1] : 0;
        *firsts[pool] = first;
        for (uint32_t i = first; i < ends[pool]; i++) {
            memset(&w->conns[i], 0, sizeof w->conns[i]);
            w->conns[i].timer_next = i + 1 < ends[pool] ? i + 1 : NONE;
        }
    }
    for (uint32_t i = 0; i < w->block_count; i++)
        w->links[i] = i + 1 < w->block_count ? i + 1 : NONE;
    for (uint32_t i = 0; i < w->token_count; i++)
        w->tokens[i] = (struct token){.first_session = NONE,
                                      .messages = {i > 0 ? i - 1 : NONE,
                                                   i + 1 < w->token_count ? i + 1 : NONE}};
    w->spare[0] = (struct chain){0, w->token_count - 1};
    w->spare[1] = (struct chain){NONE, NONE};
    for (uint32_t i = 0; i <= w->bucket_mask; i++) w->buckets[i] = NONE;
    for (uint32_t i = 0; i < w->input_count; i++) w->inputs[i].owner = NONE;
    for (uint32_t i = 0; i < w->conns_end - w->pushers_at; i++) w->pushes[i].draft = NONE;
    w->free_block = w->free_address = 0;
    w->blocks_free = w->block_count;
    w->free_inputs = (uint8_t)w->input_count; /* there are 32 at most */
    if (w->o.per_address == 0) return;
    for (uint32_t i = 0; i < w->capacity; i++)
        w->addresses[i].next = i + 1 < w->capacity ? i + 1 : NONE;
    for (uint32_t i = 0; i <= w->address_mask; i++) w->address_buckets[i] = NONE;
}

/* Sets all of a placed server but its doors. */
static void server_init(struct exportws *w)
{
    memset(w->m, 0, sizeof *w->m);
    w->sweep_us = w->swept = SWEEP_PIECE;
    w->expired = w->left_first = w->left_last = NONE;
    w->ages[0] = w->ages[1] = (struct chain){NONE, NONE};
    for (unsigned i = 0; i < TIMERS; i++) w->timers[i] = (struct chain){NONE, NONE};
    w->durations_ms[TIMER_HEAD] = w->o.handshake_timeout_ms;
    w->durations_ms[TIMER_PING] = w->o.ping_ms;
    w->durations_ms[TIMER_PONG] = w->o.pong_ms;
    w->durations_ms[TIMER_WRITE] = w->o.write_timeout_ms;
    w->durations_ms[TIMER_CLOSE] = w->o.close_timeout_ms;
    w->durations_ms[TIMER_IDLE] = KEEP_ALIVE_MS;
    w->doors[0].fd = w->doors[1].fd = w->wake[0] = w->wake[1] = -1;
    free_lists(w);
    loop_time(w);
    w->first_id = w->next_id = clock_us(CLOCK_REALTIME) + 1; /* 0 is no id */
    w->forgotten = w->first_id - 1;
    *w->all = (struct token){0, w->forgotten, NONE, NONE, 0, {NONE, NONE}, 0};
}

/* The hash key: nobody outside can guess which tokens share a bucket. 0, or -1. */
static int random_key(uint8_t key[16])
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, key, 16);
    int error = n < 0 ? errno : EIO;
    close(fd);
    errno = error;
    return n == 16 ? 0 : -1;
}

/* The pipe that wakes the loop. 0, or -1 with errno. */
static int wake_open(struct exportws *w)
{
    if (pipe(w->wake) < 0) return -1;
    for (unsigned i = 0; i < 2; i++)
        if (fd_prepare(w->wake[i]) < 0) return -1;
    poll_add(w, w->wake[0], OWNER_WAKE);
    return 0;
}

static void log_start(struct exportws *w)
{
    struct line l;
    if (!log_begin(w, &l, EXPORTWS_LOG_INFO, "start")) return;
    log_word(&l, "version", EXPORTWS_VERSION);
    log_number(&l, "capacity", w->o.capacity), log_number(&l, "memory", w->memory_bytes);
    log_end(w, &l);
}

exportws *exportws_start(const exportws_options *o, void *memory, size_t bytes, char *why,
                         size_t why_size)
{
    struct text reason = {why, 0, why ? why_size : 0};
    size_t need;
    const char *wrong = options_measure(o, &need);
    struct exportws *w = memory;
    if (wrong) {
        fail(&reason, "out of range: ", wrong, NULL);
        return NULL;
    }
    if (!memory || bytes < need || (uintptr_t)memory % sizeof(uint64_t) != 0) {
        fail(&reason, "memory is ",
             !memory        ? "NULL"
             : bytes < need ? "too small"
                            : "not aligned for uint64_t",
             NULL);
        return NULL;
    }
    memset(w, 0, sizeof *w);
    w->o = *o;
    layout(w, memory);
    w->memory_bytes = need;
    server_init(w);
    pthread_mutex_init(&w->ring.lock, NULL);
    if (random_key(w->key) < 0) {
        fail(&reason, "cannot read /dev/urandom: ", strerror(errno), NULL);
    } else if (wake_open(w) < 0) {
        fail(&reason, "cannot start: ", strerror(errno), NULL);
    } else if (door_open(w, EXPORTWS_CLIENTS, o->listen, &reason) == 0 &&
               door_open(w, EXPORTWS_PUSH, o->push, &reason) == 0) {
        log_start(w);
        return w;
    }
    exportws_end(w);
    return NULL;
}

int exportws_pollfds(exportws *w, struct pollfd *fds, size_t max, int *timeout_ms)
{
    if (!w || !fds || !timeout_ms) return EXPORTWS_BAD;
    if (w->stopped) return EXPORTWS_GONE;
    if (max < w->poll_count) return EXPORTWS_TOO_BIG;
    memcpy(fds, w->polls, w->poll_count * sizeof *fds);
    loop_time(w);
    *timeout_ms = loop_timeout(w, *timeout_ms);
    return (int)w->poll_count;
}

int exportws_dispatch(exportws *w, const struct pollfd *fds, size_t count)
{
    int ready = 0;
    if (!w || !fds || w->in_turn || w->in_log) return EXPORTWS_BAD;
    if (w->stopped) return EXPORTWS_GONE;
    for (uint32_t at = 0; at < w->poll_count; at++) w->polls[at].revents = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = i; /* where it stood, unless something was sent in between */
        if (fds[i].revents == 0) continue;
        if (at >= w->poll_count || w->polls[at].fd != fds[i].fd)
            for (at = 0; at < w->poll_count && w->polls[at].fd != fds[i].fd;) at++;
        if (at == w->poll_count) return EXPORTWS_BAD;
        w->polls[at].revents = fds[i].revents;
        ready++;
    }
    w->in_turn = 1;
    loop_time(w);
    return loop_finish(w, loop_serve(w, 0, w->poll_count, ready));
}

int exportws_step(exportws *w, int timeout_ms)
{
    if (!w || w->in_turn || w->in_log) return EXPORTWS_BAD;
    if (w->stopped) return EXPORTWS_GONE;
    if (!loop_dense(w)) loop_time(w); /* else it was read just now, and the sleep is short */
    return loop_turn(w, loop_timeout(w, timeout_ms));
}

/* Says one byte to the loop: 's' to stop, anything else to wake up. */
static void wake_say(const struct exportws *w, const char *byte)
{
    if (!w) return;
    int error = errno; /* a signal handler leaves it as it was */
    while (write(w->wake[1], byte, 1) < 0 && errno == EINTR) {} /* a full pipe wakes the loop, too */
    errno = error;
}

void exportws_stop(exportws *w)
{
    wake_say(w, "s");
}

void exportws_end(exportws *w)
{
    if (!w || w->in_turn || w->in_log) return;
    for (uint32_t at = w->poll_count; at > 0; at--)
        if (w->owners[at - 1] < w->conns_end) close(w->polls[at - 1].fd);
    door_close(&w->doors[0]), door_close(&w->doors[1]);
    for (unsigned i = 0; i < 2; i++)
        if (w->wake[i] >= 0) close(w->wake[i]);
    pthread_mutex_destroy(&w->ring.lock);
    w->in_turn = w->stopped = 1; /* a second call finds nothing to do */
}

/* Checks what is common to all that send. 0, or an error. */
static int message_check(const exportws *w, const void *data, size_t size, int kind)
{
    if (!w || (!data && size > 0) || (kind != EXPORTWS_TEXT && kind != EXPORTWS_BINARY))
        return EXPORTWS_BAD;
    if (size > w->o.max_push_bytes) return EXPORTWS_TOO_BIG;
    return kind == EXPORTWS_TEXT && !utf8_valid(data, size) ? EXPORTWS_NOT_UTF8 : 0;
}

/* 0, or why this is no token. */
static int token_check(const exportws *w, const char *token)
{
    if (!w || !token || !*token || strchr(token, '/')) return EXPORTWS_BAD;
    return strlen(token) > w->o.max_token_bytes ? EXPORTWS_TOO_BIG : 0;
}

/* Time passes between turns, too. 0; EXPORTWS_GONE when it is too late to send anything. */
static int api_enter(exportws *w)
{
    if (!w->in_turn) loop_time(w);
    return w->stopping ? EXPORTWS_GONE : 0;
}

int exportws_send(exportws *w, const char *token, const void *data, size_t size, int kind)
{
    int error = token_check(w, token);
    if (error == 0) error = message_check(w, data, size, kind & ~EXPORTWS_END);
    if (error == 0) error = api_enter(w);
    if (error != 0) return error;
    struct pushed p = {.data = data, .size = size, .index = NONE};
    p.kind = (unsigned)kind & KIND_MASK, p.end = (kind & EXPORTWS_END) != 0;
    p.name = (const uint8_t *)token, p.name_size = strlen(token);
    return pushed_deliver(w, &p);
}

int exportws_broadcast(exportws *w, const void *data, size_t size, int kind)
{
    int error = message_check(w, data, size, kind);
    if (error == 0) error = api_enter(w);
    if (error != 0) return error;
    struct pushed p = {.data = data, .size = size, .kind = (unsigned)kind, .index = NONE};
    return pushed_deliver(w, &p);
}

int exportws_reply(exportws *w, exportws_id session, const void *data, size_t size, int kind)
{
    int error = message_check(w, data, size, kind);
    if (error != 0) return error;
    struct conn *c = session_find(w, session);
    if (!c) return EXPORTWS_GONE;
    if (c->queued - c->replay >= w->o.queue) return EXPORTWS_FULL;
    api_enter(w);
    struct pushed p = {.data = w->stage + MESSAGE_HEAD_MAX, .size = size, .kind = (unsigned)kind};
    p.id = w->next_id++;
    if (size > 0) memmove(w->stage + MESSAGE_HEAD_MAX, data, size);
    pushed_frame(c, &p);
    int result = conn_send(w, c, p.frame, p.frame_size, w->block_count + 1);
    if (result == -2 && !(c->flags & CONN_STARVED)) return EXPORTWS_FULL;
    session_sent(w, c, result);
    return c->state == CONN_OPEN ? 1 : EXPORTWS_GONE;
}

int exportws_close(exportws *w, exportws_id session, int code, const char *reason)
{
    size_t n = reason ? strlen(reason) : 0;
    if (!w || code < 0 || !close_code_valid((unsigned)code)) return EXPORTWS_BAD;
    if (n > CONTROL_MAX - 2) return EXPORTWS_TOO_BIG;
    if (n > 0 && !utf8_valid((const uint8_t *)reason, n)) return EXPORTWS_NOT_UTF8;
    struct conn *c = session_find(w, session);
    if (!c) return EXPORTWS_GONE;
    api_enter(w);
    session_end(w, c, EXPORTWS_BY_ENDED, (unsigned)code, reason ? reason : "");
    return 0;
}

int exportws_kick(exportws *w, const char *token)
{
    int error = token_check(w, token);
    if (error != 0) return error;
    api_enter(w);
    uint32_t record = token_find(w, (const uint8_t *)token, strlen(token));
    return record == NONE ? EXPORTWS_ABSENT : token_kick(w, record);
}

uint64_t exportws_last_id(const exportws *w)
{
    return w ? w->next_id - 1 : 0;
}

int exportws_online(const exportws *w)
{
    return w ? (int)w->online : EXPORTWS_BAD;
}

int exportws_sessions(const exportws *w)
{
    return w ? (int)w->sessions : EXPORTWS_BAD;
}

int exportws_address(const exportws *w, int door, char *text, size_t size)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } at;
    struct conn c;
    socklen_t n = sizeof at;
    struct text t = {text, 0, text ? size : 0};
    if (!w || (door != EXPORTWS_CLIENTS && door != EXPORTWS_PUSH)) return EXPORTWS_BAD;
    if (w->doors[door].fd < 0) return EXPORTWS_ABSENT;
    memset(&at, 0, sizeof at);
    if (getsockname(w->doors[door].fd, &at.any, &n) < 0) return EXPORTWS_ABSENT;
    conn_set_address(&c, &at.any);
    text_address(&t, c.address, c.port);
    if (w->doors[door].path) text_add(&t, ":"), text_add(&t, w->doors[door].path);
    text_end(&t);
    return (int)t.n;
}

int exportws_post(exportws *w, const char *token, const void *data, size_t size, int kind)
{
    int error = token ? token_check(w, token) : 0;
    size_t n = token ? strlen(token) : 0;
    if (error == 0) error = message_check(w, data, size, token ? kind & ~EXPORTWS_END : kind);
    if (error != 0) return error;
    struct posted post;
    struct ring *r = &w->ring;
    memset(&post, 0, sizeof post);
    post.size = (uint32_t)size, post.name_size = (uint16_t)n, post.kind = (uint8_t)kind;
    pthread_mutex_lock(&r->lock);
    int first = r->used == 0;
    if (r->closed || r->size - r->used < sizeof post + n + size) {
        error = r->closed ? EXPORTWS_GONE : EXPORTWS_FULL;
    } else {
        ring_put(r, &post, sizeof post);
        ring_put(r, token, n);
        ring_put(r, data, size);
    }
    pthread_mutex_unlock(&r->lock);
    if (error == 0 && first) wake_say(w, "p");
    return error;
}

/* ===== Program ===== */

#ifndef EXPORTWS_NO_MAIN

#include <signal.h>
#include <stdlib.h>

enum { LIST_MAX = 64, SECRET_MAX = 1024, DESCRIPTORS_BESIDE = 16 };

/* A secret and the file it stands in, which SIGHUP has read again. */
struct secret {
    const struct option *row;
    const char *file;
    char text[SECRET_MAX];
};

/* What the options are read into. */
struct program {
    exportws_options o;
    const char *given[OPTIONS];     /* as typed */
    const char *lists[2][LIST_MAX]; /* origins, trusted proxies */
    struct secret secrets[2];       /* of the push door, of the clients */
    char sockets[2][24];
    const char *only; /* "memory" or "check": no more than that is wanted; or NULL */
};

/* For the signal handlers: the one file-scope state there is. */
static exportws *running;
static volatile sig_atomic_t signalled, hung_up;

static void program_signal(int number)
{
    (void)number;
    if (signalled++) _exit(0);
    exportws_stop(running);
}

static void program_hang_up(int number)
{
    (void)number;
    hung_up = 1;
    wake_say(running, "h");
}

/* Writes all of a text; what a closed stdout or stderr does not take is nobody's. */
static void program_write(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, p, n);
        if (done <= 0) return;
        p += done, n -= (size_t)done;
    }
}

static void program_say(int fd, const struct text *t)
{
    program_write(fd, t->p, smaller(t->n, t->size));
}

static void program_log(void *user, int level, const char *line)
{
    char bytes[LINE_MAX_BYTES + 1];
    struct text t = {bytes, 0, sizeof bytes};
    (void)user, (void)level;
    text_add(&t, line), text_add(&t, "\n");
    program_say(STDERR_FILENO, &t);
}

/* One line on stderr: what is wrong with which option. */
static int program_bad(const char *name, const char *value, const char *how)
{
    char bytes[512];
    struct text t = {bytes, 0, sizeof bytes - 1};
    text_add(&t, "exportws: ");
    if (name) {
        text_add(&t, "--"), text_escaped(&t, (const uint8_t *)name, smaller(strlen(name), 64));
        text_add(&t, ": ");
    }
    if (value)
        text_add(&t, "'"), text_escaped(&t, (const uint8_t *)value, smaller(strlen(value), 64)),
            text_add(&t, "' ");
    text_add(&t, how);
    t.n = smaller(t.n, t.size);
    t.size++;
    text_add(&t, "\n");
    program_say(STDERR_FILENO, &t);
    return 2;
}

/* SECONDS with up to three decimals, as milliseconds. 0, or -1. */
static int seconds_parse(const char *value, uint64_t *ms)
{
    const char *point = strchr(value, '.');
    size_t whole = point ? (size_t)(point - value) : strlen(value),
           places = point ? strlen(point + 1) : 0;
    uint64_t fraction = 0;
    if (decimal_parse((const uint8_t *)value, whole, ms) < 0 || *ms > UINT32_MAX) return -1;
    if (point && (places > 3 || decimal_parse((const uint8_t *)point + 1, places, &fraction) < 0))
        return -1;
    for (; places < 3; places++) fraction *= 10;
    *ms = *ms * 1000 + fraction;
    return 0;
}

/* BYTES with a suffix k, m or g. 0, or -1. */
static int bytes_parse(const char *value, uint64_t *bytes)
{
    size_t n = strlen(value);
    uint8_t last = n > 0 ? ascii_lower((uint8_t)value[n - 1]) : '0';
    unsigned shift = last == 'k' ? 10 : last == 'm' ? 20 : last == 'g' ? 30 : 0;
    if (decimal_parse((const uint8_t *)value, shift > 0 ? n - 1 : n, bytes) < 0) return -1;
    *bytes = *bytes > UINT64_MAX >> shift ? UINT64_MAX : *bytes << shift;
    return 0;
}

static int program_number(struct program *p, const struct option *row, const char *value)
{
    char *member = (char *)&p->o + row->at;
    char how[96];
    struct text t = {how, 0, sizeof how};
    uint64_t number = 0;
    int bad = row->kind == OPTION_SECONDS ? seconds_parse(value, &number)
            : row->kind == OPTION_BYTES
                ? bytes_parse(value, &number)
                : decimal_parse((const uint8_t *)value, strlen(value), &number);
    if (bad < 0)
        return program_bad(row->name, value,
                           row->kind == OPTION_SECONDS ? "is no number of seconds"
                           : row->kind == OPTION_BYTES ? "is no number of bytes"
                                                       : "is no whole number");
    if (number < row->least || number > row->most || number > SIZE_MAX) {
        uint64_t unit = row->kind == OPTION_SECONDS ? 1000 : 1;
        text_add(&t, "is out of range: "), text_add(&t, row->least > 0 && unit > 1 ? "0.00" : "");
        text_decimal(&t, row->least), text_add(&t, " to "), text_decimal(&t, row->most / unit),
            text_end(&t);
        return program_bad(row->name, value, how);
    }
    unsigned ms = (unsigned)number;
    size_t size = (size_t)number;
    if (row->kind == OPTION_SECONDS) memcpy(member, &ms, sizeof ms);
    else memcpy(member, &size, sizeof size);
    return 0;
}

/* Reads what counts of a secret's file: the first line, or the first two. NULL, or what is wrong
 * with it; then the secret is what it was. */
static const char *secret_read(struct secret *s, int flags)
{
    char text[SECRET_MAX];
    size_t n = 0;
    ssize_t piece;
    int fd = open(s->file, O_RDONLY | O_CLOEXEC | flags);
    if (fd < 0) return strerror(errno);
    while ((piece = read(fd, text + n, sizeof text - 1 - n)) > 0) n += (size_t)piece;
    int error = errno;
    close(fd);
    if (piece < 0) return strerror(error);
    text[n] = '\0';
    size_t end = strcspn(text, "\r\n");
    if (end > 0 && s->row->at == AT(client_secret)) {
        end += strspn(text + end, "\r\n");
        end += strcspn(text + end, "\r\n");
    }
    if (strlen(text) < n) return "holds a NUL byte: a secret is a line of text";
    if (end == 0) return "has an empty first line";
    if (end == sizeof text - 1) return "has too long a first line";
    text[end] = '\0';
    memcpy(s->text, text, sizeof text);
    return NULL;
}

static int program_file(struct program *p, const struct option *row, const char *value)
{
    struct secret *s = &p->secrets[row->at == AT(client_secret)];
    const char *text = s->text;
    s->row = row, s->file = value;
    const char *why = secret_read(s, 0);
    if (why) return program_bad(row->name, value, why);
    memcpy((char *)&p->o + row->at, &text, sizeof text);
    return 0;
}

/* After SIGHUP: reads the secrets again. One whose file can't be used stays as it is. */
static void program_reload(struct program *p)
{
    hung_up = 0;
    for (unsigned i = 0; i < 2; i++) {
        struct secret *s = &p->secrets[i];
        struct line l;
        if (!s->file) continue;
        const char *why = secret_read(s, O_NONBLOCK); /* it may be a FIFO by now */
        int level = why ? EXPORTWS_LOG_WARN : EXPORTWS_LOG_INFO;
        if (!log_begin(running, &l, level, "reload")) continue;
        log_word(&l, "option", s->row->name), log_word(&l, "secret", why ? "kept" : "read");
        if (why) log_words(&l, "why", why);
        log_end(running, &l);
    }
}

/* Every option on a line, with its default. */
static void program_help(const struct program *p)
{
    char bytes[160];
    struct text t = {bytes, 0, sizeof bytes};
    text_add(&t,
             "usage: exportws [options]   --name VALUE or --name=VALUE; sizes take k, m, g\n\n");
    program_say(STDOUT_FILENO, &t);
    for (unsigned i = 0; i < OPTIONS; i++) {
        const struct option *row = &options[i];
        const char *word = NULL;
        t = (struct text){bytes, 0, sizeof bytes};
        text_add(&t, "  --"), text_add(&t, row->name), text_add(&t, " "), text_add(&t, row->unit);
        while (t.n < 31) text_add(&t, " ");
        text_add(&t, row->help);
        if (row->kind == OPTION_TEXT) memcpy(&word, (const char *)&p->o + row->at, sizeof word);
        if (row->kind == OPTION_FILE) word = "none";
        if (row->at == AT(log_level)) word = "info";
        if (row->kind == OPTION_FLAG) word = "off";
        if (row->kind == OPTION_COUNT || row->kind == OPTION_BYTES || row->kind == OPTION_SECONDS) {
            uint64_t number = option_number(&p->o, row);
            text_add(&t, " ("),
                text_decimal(&t, row->kind == OPTION_SECONDS ? number / 1000 : number),
                text_add(&t, ")");
        } else if (word) {
            text_add(&t, " ("), text_add(&t, word), text_add(&t, ")");
        }
        text_add(&t, "\n");
        program_say(STDOUT_FILENO, &t);
    }
}

static int program_log_level(struct program *p, const struct option *row, const char *value)
{
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(value, levels[i]) != 0) continue;
        p->o.log_level = i;
        return 0;
    }
    return program_bad(row->name, value, "is none of error, warn, info, debug");
}

static int program_list(struct program *p, const struct option *row, const char *value)
{
    const int proxy = row->at == AT(trusted_proxies);
    size_t *count = proxy ? &p->o.trusted_proxy_count : &p->o.origin_count;
    const char *host = strstr(value, "://");
    uint8_t ip[16];
    uint64_t bits;
    if (*count == LIST_MAX) return program_bad(row->name, value, "is one too many");
    if (proxy && !proxy_parse(value, ip, &bits))
        return program_bad(row->name, value, "is no IP address, IP/BITS or unix:");
    if (!proxy && strcmp(value, "*") != 0 && (!host || host[3] == '\0' || strchr(host + 3, '/')))
        return program_bad(row->name, value, "is no Origin: SCHEME://HOST[:PORT], or *");
    p->lists[proxy][(*count)++] = value;
    p->o.origins = p->lists[0], p->o.trusted_proxies = p->lists[1];
    return 0;
}

static int program_text(struct program *p, const struct option *row, const char *value)
{
    if (row->at == AT(push) && strcmp(value, "none") == 0) value = NULL;
    memcpy((char *)&p->o + row->at, &value, sizeof value);
    return 0;
}

/* Takes one option. 0: go on; -1: done, exit 0; else the exit status. */
static int program_option(struct program *p, const struct option *row, const char *value)
{
    const int on = 1;
    switch (row->kind) {
    case OPTION_COUNT:
    case OPTION_BYTES:
    case OPTION_SECONDS: return program_number(p, row, value);
    case OPTION_TEXT: return program_text(p, row, value);
    case OPTION_FILE: return program_file(p, row, value);
    case OPTION_LIST: return program_list(p, row, value);
    case OPTION_FLAG: memcpy((char *)&p->o + row->at, &on, sizeof on); return 0;
    default: break;
    }
    if (*row->unit) return program_log_level(p, row, value);
    if (strcmp(row->name, "memory") == 0 || strcmp(row->name, "check") == 0) {
        p->only = row->name;
        return 0;
    }
    if (strcmp(row->name, "help") == 0) program_help(p);
    else
        program_write(STDOUT_FILENO, "exportws " EXPORTWS_VERSION "\n",
                      sizeof "exportws " EXPORTWS_VERSION);
    return -1;
}

/* Reads the command line. As program_option. */
static int program_options(struct program *p, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i] + 2, *value = NULL;
        const struct option *row = options;
        if (strncmp(argv[i], "--", 2) != 0)
            return program_bad(NULL, argv[i], "is no option: see exportws --help");
        size_t n = strcspn(name, "=");
        while (row < options + OPTIONS &&
               !(strlen(row->name) == n && memcmp(row->name, name, n) == 0))
            row++;
        if (row == options + OPTIONS)
            return program_bad(name, NULL, "is no option: see exportws --help");
        int wants = *row->unit != '\0';
        if (name[n] == '=') value = name + n + 1;
        else if (wants && i + 1 < argc) value = argv[++i];
        if (!wants && value)
            return program_bad(row->name, value, "is not wanted: it takes no value");
        if (wants && !value) return program_bad(row->name, NULL, "needs a value");
        int status = program_option(p, row, value ? value : "");
        if (status != 0) return status;
        p->given[row - options] = value;
    }
    return 0;
}

static uint64_t descriptors_needed(const exportws_options *o)
{
    return (uint64_t)o->capacity + o->handshakes + o->pushers + PUSHERS_SPARE + DESCRIPTORS_BESIDE;
}

/* Raises the soft descriptor limit to what these options need, and warns when the hard one forbids
 * it. */
static void program_descriptors(const exportws_options *o)
{
    const uint64_t need = descriptors_needed(o);
    char bytes[256];
    struct text t = {bytes, 0, sizeof bytes};
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur >= need) return;
    limit.rlim_cur = limit.rlim_max >= need ? (rlim_t)need : limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    getrlimit(RLIMIT_NOFILE, &limit); /* what it came to */
    if (limit.rlim_cur >= need || o->log_level < EXPORTWS_LOG_WARN) return;
    text_add(&t, "time="), log_time(&t), text_add(&t, " level=warn event=start descriptors="),
        text_decimal(&t, limit.rlim_cur);
    text_add(&t, " needed="), text_decimal(&t, need),
        text_add(&t, " why=raise_the_hard_limit_(ulimit_-n)\n");
    program_say(STDERR_FILENO, &t);
}

static void program_ready(const exportws *w, const exportws_options *o, size_t bytes)
{
    char line[512], address[128] = "?";
    struct text t = {line, 0, sizeof line};
    text_add(&t, "exportws " EXPORTWS_VERSION " ready: clients ");
    exportws_address(w, EXPORTWS_CLIENTS, address, sizeof address), text_add(&t, address);
    text_add(&t, ", push ");
    if (!o->push) memcpy(address, "none", 5);
    else exportws_address(w, EXPORTWS_PUSH, address, sizeof address);
    text_add(&t, address), text_add(&t, ", capacity "), text_decimal(&t, o->capacity);
    text_add(&t, ", memory "), text_decimal(&t, bytes), text_add(&t, " bytes\n");
    program_say(STDOUT_FILENO, &t);
}

/* A line of the log: what to do with a door, unless it is shut or a Unix socket. */
static void program_hint(const exportws *w, int door, const char *what, const char *path,
                         const char *token)
{
    char line[512], address[128] = "?";
    struct text t = {line, 0, sizeof line - 2};
    if (exportws_address(w, door, address, sizeof address) < 0 || address[0] == 'u') return;
    text_add(&t, "time="), log_time(&t), text_add(&t, " level=info event=start "),
        text_add(&t, what), text_add(&t, "http://"), text_add(&t, address);
    text_escaped(&t, (const uint8_t *)path, strlen(path));
    text_add(&t, token);
    t.n = smaller(t.n, t.size), t.size += 2;
    text_add(&t, *what == 'p' ? "\n" : "\"\n");
    program_say(STDERR_FILENO, &t);
}

/* With the demo page: where it is, and how to push to it. */
static void program_demo(const exportws *w, const exportws_options *o)
{
    if (!o->demo || o->log_level < EXPORTWS_LOG_INFO) return;
    program_hint(w, EXPORTWS_CLIENTS, "page=", "/", "#demo");
    program_hint(w, EXPORTWS_PUSH, "try=\"curl -d '37 %' ", o->path, "demo");
}

/* A write that a signal interrupts goes on; poll() does not. */
static void program_signal_action(int number, void (*action)(int))
{
    struct sigaction act;
    memset(&act, 0, sizeof act);
    sigemptyset(&act.sa_mask);
    act.sa_flags = SA_RESTART;
    act.sa_handler = action;
    sigaction(number, &act, NULL);
}

static int program_fail(const char *why)
{
    char bytes[320];
    struct text t = {bytes, 0, sizeof bytes};
    text_add(&t, "exportws: "), text_add(&t, why), text_add(&t, "\n");
    program_say(STDERR_FILENO, &t);
    return 1;
}

/* The listening sockets that a service manager has opened: LISTEN_FDS of them from descriptor 3 on,
 * named clients and push in LISTEN_FDNAMES, or in this order. 0, or the exit status. */
static int program_sockets(struct program *p)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    const char *names = getenv("LISTEN_FDNAMES");
    uint64_t process, count;
    if (!pid || decimal_parse((const uint8_t *)pid, strlen(pid), &process) < 0) return 0;
    if (process != (uint64_t)getpid() || !fds) return 0;
    if (decimal_parse((const uint8_t *)fds, strlen(fds), &count) < 0) return 0;
    for (unsigned i = 0; i < count; i++) {
        size_t n = names ? strcspn(names, ":") : 0;
        int clients = names ? n == 7 && memcmp(names, "clients", 7) == 0 : i == 0;
        int push = names ? n == 4 && memcmp(names, "push", 4) == 0 : i == 1;
        struct text t = {p->sockets[push], 0, sizeof p->sockets[push]};
        if (!clients && !push)
            return program_fail("LISTEN_FDNAMES: a socket that is neither clients nor push");
        text_add(&t, "fd:"), text_decimal(&t, 3 + i), text_end(&t);
        *(push ? &p->o.push : &p->o.listen) = p->sockets[push];
        if (names) names += n + (names[n] == ':');
    }
    return 0;
}

/* Tells the service manager at NOTIFY_SOCKET, if there is one. */
static void program_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {0};
    size_t n = path ? strlen(path) : 0;
    if (n < 2 || n >= sizeof to.sun_path || (path[0] != '/' && path[0] != '@')) return;
    to.sun_family = AF_UNIX;
    memcpy(to.sun_path, path, n);
    if (path[0] == '@') to.sun_path[0] = '\0'; /* Linux's abstract names */
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0); /* none: then nothing is sent, or closed */
    sendto(fd, state, strlen(state), MSG_NOSIGNAL, (const struct sockaddr *)&to,
           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
    close(fd);
}

/* Whoever reaches a push door without a secret may push to everybody. */
static void program_open_door(exportws *w)
{
    char address[128] = "";
    struct line l;
    if (w->o.push_secret || exportws_address(w, EXPORTWS_PUSH, address, sizeof address) < 0) return;
    if (strncmp(address, "127.", 4) == 0 || strncmp(address, "[::1]", 5) == 0 || *address == 'u' ||
        !log_begin(w, &l, EXPORTWS_LOG_WARN, "start"))
        return;
    log_word(&l, "push", address);
    log_words(&l, "why", "other machines may reach it: set --push-secret-file");
    log_end(w, &l);
}

static int program_run(struct program *p, size_t bytes)
{
    char why[256];
    void *memory = malloc(bytes);
    if (!memory) return program_fail("out of memory");
    program_descriptors(&p->o);
    program_signal_action(SIGPIPE, SIG_IGN);
    running = exportws_start(&p->o, memory, bytes, why, sizeof why);
    if (!running) {
        free(memory);
        return program_fail(why);
    }
    program_signal_action(SIGTERM, program_signal);
    program_signal_action(SIGINT, program_signal);
    program_signal_action(SIGHUP, program_hang_up);
    program_ready(running, &p->o, bytes);
    program_demo(running, &p->o);
    program_open_door(running);
    program_notify("READY=1");
    int told = 0;
    do {
        if (hung_up) program_reload(p);
        if (signalled && !told++) program_notify("STOPPING=1");
    } while (exportws_step(running, -1) >= 0);
    exportws *stopped = running;
    running = NULL; /* SIGHUP may still come */
    exportws_end(stopped);
    free(memory);
    return 0;
}

/* ----- --check ----- */

/* One line of --check. */
static int check_say(int good, const char *what, const char *value, const char *why)
{
    char bytes[512];
    struct text t = {bytes, 0, sizeof bytes};
    text_add(&t, good ? "ok    " : "FAIL  "), text_add(&t, what);
    while (t.n < 19) text_add(&t, " ");
    text_add(&t, value);
    if (!good) text_add(&t, ": "), text_add(&t, why);
    text_add(&t, "\n");
    program_say(STDOUT_FILENO, &t);
    return good;
}

/* Whether a server starts with these options; it ends at once. */
static int check_start(const exportws_options *o, void *memory, size_t bytes, char why[256])
{
    exportws *w = exportws_start(o, memory, bytes, why, 256);
    exportws_end(w);
    return w != NULL;
}

/* The doors are opened together; when that fails, each alone shows which it is. */
static int check_doors(const exportws_options *o, void *memory, size_t bytes)
{
    char together[256], why[256];
    int all = check_start(o, memory, bytes, together), good = 1;
    for (unsigned i = 0; i < 2; i++) {
        exportws_options one = *o;
        *(i == EXPORTWS_PUSH ? &one.listen : &one.push) = NULL;
        const char *address = i == EXPORTWS_PUSH ? one.push : one.listen;
        if (!address) continue;
        int opens = all || check_start(&one, memory, bytes, why);
        good &= check_say(opens, i == EXPORTWS_PUSH ? "push" : "clients", address, why);
    }
    if (good && !all) check_say(0, "both", "at once", together);
    return good && all;
}

static int check_descriptors(const exportws_options *o)
{
    const uint64_t need = descriptors_needed(o);
    char bytes[128];
    struct text t = {bytes, 0, sizeof bytes};
    struct rlimit limit = {0, 0};
    getrlimit(RLIMIT_NOFILE, &limit);
    text_decimal(&t, need), text_add(&t, " needed, soft limit ");
    text_decimal(&t, limit.rlim_cur), text_add(&t, ", hard limit ");
    text_decimal(&t, limit.rlim_max), text_end(&t);
    return check_say(limit.rlim_max >= need, "descriptors", bytes, "raise the hard limit");
}

/* Tries what these options open and need, and says how it went. The exit status. */
static int program_check(struct program *p, size_t bytes)
{
    void *memory = malloc(bytes);
    char size[32];
    struct text t = {size, 0, sizeof size};
    text_decimal(&t, bytes), text_add(&t, " bytes"), text_end(&t);
    p->o.on_log = NULL;
    int good = check_say(memory != NULL, "memory", size, "out of memory");
    if (good) good = check_doors(&p->o, memory, bytes);
    good &= check_descriptors(&p->o);
    free(memory);
    return !good;
}

/* What was given for an option, or NULL. */
static const char *program_value(const struct program *p, const char *name)
{
    const char *value = NULL;
    for (unsigned i = 0; i < OPTIONS; i++)
        if (strcmp(options[i].name, name) == 0) value = p->given[i];
    return value;
}

int main(int argc, char **argv)
{
    static struct program program;
    exportws_defaults(&program.o);
    program.o.listen = "127.0.0.1:8080", program.o.push = "127.0.0.1:8081";
    program.o.on_log = program_log;
    int status = program_options(&program, argc, argv);
    if (status == 0) status = program_sockets(&program);
    if (status != 0) return status < 0 ? 0 : status;
    size_t bytes;
    const char *wrong = options_measure(&program.o, &bytes);
    if (wrong) return program_bad(wrong, program_value(&program, wrong), "is not a proper value");
    if (!program.only) return program_run(&program, bytes);
    if (*program.only == 'c') return program_check(&program, bytes);
    char line[32];
    struct text t = {line, 0, sizeof line};
    text_decimal(&t, bytes), text_add(&t, "\n");
    program_say(STDOUT_FILENO, &t);
    return 0;
}

#endif

/* ISC licence
 *
 * Copyright 2026 the exportws authors
 *
 * Permission to use, copy, modify, and/or distribute this software for any purpose with or without
 * fee is hereby granted, provided that the above copyright notice and this permission notice appear
 * in all copies.
 *
 * THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS
 * SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE
 * AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
 * WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT,
 * NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE
 * OF THIS SOFTWARE. */
