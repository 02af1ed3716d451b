/*
 * echo.c - a WebSocket echo server: what a client sends comes back, of the same kind.
 *
 *     cc -DEXPORTWS_NO_MAIN -o echo test/echo.c exportws.c
 *     ./echo --listen 127.0.0.1:9001 --max-message 16m
 *
 * The tests start it where they need to see what the server made of a client's frames; it is also
 * an example of a program that answers. Its ready line is that of exportws.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "../exportws.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static exportws *server; /* for the signal handler, and for the callbacks */

static void server_stop(int number)
{
    (void)number;
    exportws_stop(server);
}

/*
 * EXPORTWS_FULL: this client does not read what it asked for, or others have filled the buffer.
 * An echo with a gap in it is none, and to keep the message elsewhere would only move the bound,
 * so the client is told to come again: what it got until then is whole and in order.
 */
static void message_echo(void *user, exportws_id session, const char *token, const void *data,
                         size_t size, int kind)
{
    (void)user, (void)token;
    if (exportws_reply(server, session, data, size, kind) == EXPORTWS_FULL)
        exportws_close(server, session, 1013, "no room for the echo: read, and come again");
}

static void line_print(void *user, int level, const char *line)
{
    (void)user, (void)level;
    fprintf(stderr, "%s\n", line);
}

/* BYTES with a suffix k or m; 0 is none. */
static size_t bytes_parse(const char *text)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    unsigned shift = *end == 'k' ? 10 : *end == 'm' ? 20 : 0;
    if (end == text || (shift > 0 ? end[1] : *end) != '\0' || n > (1UL << 30) >> shift)
        return 0;
    return (size_t)n << shift;
}

/* --name=VALUE or --name VALUE: the value, and *argument on its last word; else NULL. */
static const char *option_value(char ***argument, const char *name)
{
    const char *word = **argument;
    size_t n = strlen(name);
    if (strncmp(word, name, n) != 0)
        return NULL;
    if (word[n] == '=')
        return word + n + 1;
    return word[n] == '\0' && (*argument)[1] != NULL ? *++*argument : NULL;
}

/* 0, or -1: an argument is no option, or its value no value. */
static int options_parse(exportws_options *o, char **argument)
{
    const char *value;
    while (*++argument != NULL) {
        const char *word = *argument;
        if ((value = option_value(&argument, "--listen")) != NULL)
            o->listen = value;
        else if ((value = option_value(&argument, "--push")) != NULL)
            o->push = strcmp(value, "none") == 0 ? NULL : value;
        else if ((value = option_value(&argument, "--capacity")) != NULL)
            o->capacity = bytes_parse(value);
        else if ((value = option_value(&argument, "--max-message")) != NULL)
            o->max_message_bytes = bytes_parse(value);
        if (value == NULL || o->max_message_bytes == 0 || o->capacity == 0) {
            fprintf(stderr, "echo: %s: wanted --listen ADDR, --push ADDR, --capacity N or "
                    "--max-message BYTES\n", word);
            return -1;
        }
    }
    return 0;
}

/* Every message is answered by one of its size: the buffer has room for three such at least. */
static void options_fit(exportws_options *o)
{
    o->max_push_bytes = o->max_message_bytes;
    o->buffer_bytes = 4 * o->max_message_bytes + ((size_t)4 << 20);
    o->on_message = message_echo;
    o->on_log = line_print;
}

static void ready_print(const exportws_options *o)
{
    char clients[160], push[160] = "none";
    exportws_address(server, EXPORTWS_CLIENTS, clients, sizeof clients);
    if (o->push != NULL)
        exportws_address(server, EXPORTWS_PUSH, push, sizeof push);
    printf("exportws " EXPORTWS_VERSION " ready: clients %s, push %s, capacity %lu, memory %lu "
           "bytes\n", clients, push, (unsigned long)o->capacity,
           (unsigned long)exportws_memory(o));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    exportws_options o;
    struct sigaction stop;
    char why[256] = "out of memory";
    void *memory;
    (void)argc;
    exportws_defaults(&o);
    o.listen = "127.0.0.1:9001";
    o.capacity = 64, o.handshakes = 64; /* few, since each may be in the midst of a long message */
    o.max_message_bytes = 1 << 20;
    if (options_parse(&o, argv) < 0)
        return 2;
    options_fit(&o);
    memory = malloc(exportws_memory(&o));
    if (memory != NULL)
        server = exportws_start(&o, memory, exportws_memory(&o), why, sizeof why);
    if (server == NULL) {
        fprintf(stderr, "echo: %s\n", why);
        return 1;
    }
    memset(&stop, 0, sizeof stop);
    stop.sa_handler = server_stop;
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    ready_print(&o);
    while (exportws_step(server, -1) >= 0) {}
    exportws_end(server);
    free(memory);
    return 0;
}
