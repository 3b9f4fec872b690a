/*
 * closedloop: a closed-loop load generator that puts exactly the same load on kvorum (Thrift) and on etcd (gRPC).
 *
 * Each connection sends one request, waits for the whole reply, checks it, and sends the next. One thread and one epoll
 * serve all connections, so that the generator is never the bottleneck. Keys are "key-" and twelve digits, drawn at
 * random below --space; with --preload each key is written exactly once, then the program ends.
 *
 * Every value starts with its own key, so a get proves that it was answered with a value that belongs to the key it
 * asked for. A reply that is not exactly what the protocol promises for a success ends the run with exit status 3 and
 * says what was wrong.
 *
 *     closedloop --protocol thrift|grpc --work put|put-once|get|get-local --endpoints IP:PORT[,IP:PORT...]
 *                [--connections N] [--seconds S] [--warmup S] [--space N] [--value-bytes N] [--seed N] [--preload]
 *                [--rate N] [--window S] [--random-values] [--connections-per-id N]
 *
 * Behind its key a value is always the same letter, or with --random-values bytes that no storage engine can compress.
 *
 * put-once is put with an identity, client_id and request_id, so that kvorum remembers its outcome. Each connection has a
 * client id of its own, or --connections-per-id of them share one and number their writes together, as the calls of one
 * kvorum_client do (at most 16 here: the contract allows 64, but then one that is overtaken 128 times would be refused,
 * and nothing here waits for it). etcd has no such thing: there it is put.
 *
 * With --rate the requests are due at even distances, so many per second over all connections. One that must wait for a
 * free connection is sent as soon as there is one, and its latency counts from when it was due: a slow server cannot hide
 * behind requests that were never sent.
 *
 * Prints one line of JSON: requests, rate_per_s, and the latencies p50_ms, p90_ms, p99_ms, p999_ms, max_ms. With --window
 * there is such a line for each full window as well, while the load goes on; the last line is the whole run's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    KEY_DIGITS = 12,
    KEY_BYTES = 4 + KEY_DIGITS,
    CLIENT_ID_BYTES = 16,
    OPEN_MAX = 16,                  /* most writes of one client id that are undecided at once */
    VALUE_BYTES_MAX = 16384,
    REQUEST_BYTES_MAX = VALUE_BYTES_MAX + 1024,
    REPLY_BYTES_MAX = 2 * VALUE_BYTES_MAX + 4096,
    ENDPOINTS_MAX = 16,
    EVENTS_MAX = 256,
    SILENCE_S = 30,         /* nothing answered for so long: the server is stuck */
};

enum protocol { THRIFT, GRPC };
enum work { PUT, GET, GET_LOCAL, PUT_ONCE };

static struct {
    enum protocol protocol;
    enum work work;
    int connections, connections_per_id;
    double seconds, warmup, rate, window;
    uint64_t space, seed;
    size_t value_bytes;
    bool preload, once, random_values;
    struct sockaddr_in endpoints[ENDPOINTS_MAX];
    int endpoint_count;
} options = { .connections = 1, .connections_per_id = 1, .seconds = 5, .warmup = 1, .space = 100000, .seed = 1,
            .value_bytes = 256 };

static void fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("closedloop: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(status);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t next_random(void) { /* splitmix64 */
    uint64_t z = options.seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* ---- Histogram: 64 linear steps per power of two of nanoseconds, so a bucket is at most 1.6 % wide. ---- */

enum { STEP_BITS = 6, STEPS = 1 << STEP_BITS, BUCKETS = (64 - STEP_BITS + 1) * STEPS };
struct tally { uint64_t histogram[BUCKETS], samples, longest_ns; };
static struct tally whole, window;

static void record(struct tally *t, uint64_t ns) {
    int shift = ns < STEPS ? 0 : 63 - __builtin_clzll(ns) - STEP_BITS;
    t->histogram[shift * STEPS + (int)(ns >> shift)]++;
    t->samples++;
    if (ns > t->longest_ns)
        t->longest_ns = ns;
}

static double percentile_ms(const struct tally *t, double fraction) {
    uint64_t rank = (uint64_t)((double)t->samples * fraction), seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += t->histogram[i];
        if (seen > rank) {
            int shift = i < 2 * STEPS ? 0 : i / STEPS - 1;
            uint64_t low = (uint64_t)(i - shift * STEPS) << shift;
            return ((double)low + (double)((uint64_t)1 << shift) / 2) / 1e6;
        }
    }
    return (double)t->longest_ns / 1e6;
}

static void print_figures(const struct tally *t, double seconds) {
    printf("{\"connections\": %d, \"seconds\": %.3f, \"requests\": %llu, \"rate_per_s\": %.1f, \"p50_ms\": %.4f, "
           "\"p90_ms\": %.4f, \"p99_ms\": %.4f, \"p999_ms\": %.4f, \"max_ms\": %.4f}\n",
           options.connections, seconds, (unsigned long long)t->samples, (double)t->samples / seconds,
           percentile_ms(t, .5), percentile_ms(t, .9), percentile_ms(t, .99), percentile_ms(t, .999),
           (double)t->longest_ns / 1e6);
    fflush(stdout);
}

/* ---- Bytes. ---- */

struct buffer { unsigned char *bytes; size_t length; };

static void add(struct buffer *b, const void *bytes, size_t length) {
    memcpy(b->bytes + b->length, bytes, length);
    b->length += length;
}
static void add_byte(struct buffer *b, int byte) { b->bytes[b->length++] = (unsigned char)byte; }
static void add_big_endian(struct buffer *b, uint64_t value, int bytes) {
    for (int i = bytes - 1; i >= 0; i--)
        add_byte(b, (int)(value >> (8 * i)) & 0xff);
}
static uint32_t read_u32(const unsigned char *b) {
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* ---- The request: built once; before each send its key, its value's key and its sequence are patched in. ---- */

static unsigned char request_bytes[REQUEST_BYTES_MAX];
static struct buffer request = { request_bytes, 0 };
static size_t key_at, value_at, sequence_at, second_sequence_at, client_at, request_id_at;

static void add_thrift_binary(struct buffer *b, int field, const void *bytes, size_t length) {
    add_byte(b, 11);
    add_big_endian(b, (uint64_t)field, 2);
    add_big_endian(b, length, 4);
    add(b, bytes, length);
}

static void build_thrift_request(const unsigned char *key, const unsigned char *value) {
    const char *method = options.work == PUT ? "setKey" : "get";
    const char *consistency = options.work == GET ? "read_index" : "local";
    add_big_endian(&request, 0x80010001u, 4);           /* strict binary, CALL */
    add_big_endian(&request, strlen(method), 4);
    add(&request, method, strlen(method));
    sequence_at = request.length;
    add_big_endian(&request, 0, 4);
    add_byte(&request, 12);                             /* argument 1: the request struct */
    add_big_endian(&request, 1, 2);
    key_at = request.length + 7;
    add_thrift_binary(&request, 1, key, KEY_BYTES);
    if (options.work == PUT) {
        value_at = request.length + 7;
        add_thrift_binary(&request, 2, value, options.value_bytes);
        if (options.once) {
            unsigned char client[CLIENT_ID_BYTES];
            if (getrandom(client, sizeof client, 0) != sizeof client)
                fail(1, "no random client id: %s", strerror(errno));
            client_at = request.length + 7;
            add_thrift_binary(&request, 22, client, sizeof client);
            add_byte(&request, 10);                     /* i64 request_id */
            add_big_endian(&request, 23, 2);
            request_id_at = request.length;
            add_big_endian(&request, 0, 8);
        }
    } else {
        add_thrift_binary(&request, 21, consistency, strlen(consistency));
    }
    add_byte(&request, 0);
    add_byte(&request, 0);
}

static void add_varint(struct buffer *b, uint64_t value) {
    for (; value >= 128; value >>= 7)
        add_byte(b, (int)(value & 127) | 128);
    add_byte(b, (int)value);
}

static void add_frame_head(struct buffer *b, size_t length, int type, int flags, uint32_t stream) {
    add_big_endian(b, length, 3);
    add_byte(b, type);
    add_byte(b, flags);
    add_big_endian(b, stream, 4);
}

/* HPACK, literal and never indexed, so that every request of a connection is the same bytes (RFC 7541, 6.2.2). */
static void add_text(struct buffer *b, const char *text) {
    add_byte(b, (int)strlen(text));
    add(b, text, strlen(text));
}

static void build_grpc_request(const unsigned char *key, const unsigned char *value) {
    unsigned char head_bytes[256], body_bytes[REQUEST_BYTES_MAX];
    struct buffer head = { head_bytes, 0 }, body = { body_bytes, 0 };

    add_byte(&head, 0x83);                              /* :method POST */
    add_byte(&head, 0x86);                              /* :scheme http */
    add_byte(&head, 0x04);                              /* :path */
    add_text(&head, options.work == PUT ? "/etcdserverpb.KV/Put" : "/etcdserverpb.KV/Range");
    add_byte(&head, 0x01);                              /* :authority */
    add_text(&head, "127.0.0.1");
    add_byte(&head, 0x0f), add_byte(&head, 0x10);       /* content-type */
    add_text(&head, "application/grpc");
    add_byte(&head, 0x00);
    add_text(&head, "te");
    add_text(&head, "trailers");

    add_byte(&body, 1 << 3 | 2);                        /* PutRequest.key, RangeRequest.key */
    add_varint(&body, KEY_BYTES);
    size_t key_in_body = body.length, value_in_body = 0;
    add(&body, key, KEY_BYTES);
    if (options.work == PUT) {
        add_byte(&body, 2 << 3 | 2);                    /* PutRequest.value */
        add_varint(&body, options.value_bytes);
        value_in_body = body.length;
        add(&body, value, options.value_bytes);
    } else if (options.work == GET_LOCAL) {
        add_byte(&body, 7 << 3);                        /* RangeRequest.serializable */
        add_byte(&body, 1);
    }

    add_frame_head(&request, head.length, 1, 4, 0);     /* HEADERS, END_HEADERS */
    sequence_at = request.length - 4;
    add(&request, head.bytes, head.length);
    add_frame_head(&request, 5 + body.length, 0, 1, 0); /* DATA, END_STREAM */
    second_sequence_at = request.length - 4;
    add_byte(&request, 0);                              /* gRPC: not compressed, length */
    add_big_endian(&request, body.length, 4);
    key_at = request.length + key_in_body;
    value_at = value_in_body ? request.length + value_in_body : 0;
    add(&request, body.bytes, body.length);
}

static void build_request(void) {
    unsigned char key[KEY_BYTES], value[VALUE_BYTES_MAX];
    memcpy(key, "key-000000000000", KEY_BYTES);
    memset(value, 'v', sizeof value);
    memcpy(value, key, KEY_BYTES);
    if (options.protocol == THRIFT)
        build_thrift_request(key, value);
    else
        build_grpc_request(key, value);
}

/* ---- One connection. ---- */

struct connection {
    int fd;
    uint32_t number;
    bool waiting;                   /* a request is out */
    uint64_t sent_at;
    uint32_t sequence;              /* Thrift sequence id, HTTP/2 stream id */
    unsigned char key[KEY_BYTES];
    bool answered, stream_ended;    /* HTTP/2: the message was seen and checked; the stream is over */
    uint32_t unacknowledged;        /* HTTP/2: bytes of DATA not yet given back by WINDOW_UPDATE */
    size_t got;
    unsigned char reply[REPLY_BYTES_MAX];
};

static void write_all(int fd, const unsigned char *bytes, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = write(fd, bytes + done, length - done);
        if (n >= 0) {
            done += (size_t)n;
        } else if (errno == EAGAIN) {
            struct pollfd room = { .fd = fd, .events = POLLOUT };
            if (poll(&room, 1, SILENCE_S * 1000) == 0)
                fail(1, "the server reads nothing for %d s", SILENCE_S);
        } else if (errno != EINTR) {
            fail(1, "connection lost while sending: %s", strerror(errno));
        }
    }
}

/* ---- Replies. Each reader: 1 whole and good, 0 more bytes wanted; anything else ends the program. ---- */

static void bad_reply(const struct connection *c, const char *what) {
    fail(3, "bad reply for %.*s: %s", KEY_BYTES, (const char *)c->key, what);
}

static void check_value(const struct connection *c, const unsigned char *value, size_t length) {
    if (length != options.value_bytes)
        bad_reply(c, "the value has another length than was written");
    if (memcmp(value, c->key, length < KEY_BYTES ? length : KEY_BYTES) != 0)
        bad_reply(c, "the value belongs to another key");
}

struct thrift_reader { const unsigned char *b; size_t at, have; bool incomplete, malformed; };

static const unsigned char *take(struct thrift_reader *r, size_t bytes) {
    if (r->incomplete || r->malformed)
        return NULL;
    if (bytes > REPLY_BYTES_MAX)
        r->malformed = true;
    else if (r->have - r->at < bytes)
        r->incomplete = true;
    else
        return r->at += bytes, r->b + r->at - bytes;
    return NULL;
}

/* Put and get replies are flat structs of bools, integers and strings. */
static int read_thrift_reply(struct connection *c) {
    struct thrift_reader r = { .b = c->reply, .have = c->got };
    const unsigned char *head = take(&r, 8), *name = head ? take(&r, read_u32(head + 4)) : NULL;
    const unsigned char *sequence = take(&r, 4), *result = take(&r, 1);
    if (head && read_u32(head) != 0x80010002u)
        bad_reply(c, "not a strict binary REPLY");
    if (!name || !sequence || !result)
        return r.malformed ? (bad_reply(c, "method name too long"), 0) : 0;
    if (read_u32(sequence) != c->sequence)
        bad_reply(c, "the sequence id of another request");
    if (*result != 12 || !take(&r, 2))
        return r.incomplete ? 0 : (bad_reply(c, "no result struct"), 0);

    const unsigned char *value = NULL, *error = NULL, *field;
    size_t value_length = 0, error_length = 0;
    bool success = false;
    while ((field = take(&r, 1)) && *field) {
        const unsigned char *id = take(&r, 2), *payload = NULL;
        size_t length = *field == 2 || *field == 3 ? 1 : *field == 6 ? 2 : *field == 8 ? 4 : *field == 10 ? 8 : 0;
        if (*field == 11) {
            const unsigned char *size = take(&r, 4);
            length = size ? read_u32(size) : 0;
        } else if (!length) {
            bad_reply(c, "a field of an unexpected type");
        }
        payload = take(&r, length);
        if (!id || !payload)
            break;
        int number = id[0] << 8 | id[1];
        if (*field == 2 && number == (options.work == PUT ? 1 : 2))
            success = *payload == 1;
        else if (*field == 11 && number == 1)
            value = payload, value_length = length;
        else if (*field == 11 && (number == 2 || number == 3))
            error = payload, error_length = length;
    }
    if (!take(&r, 1))                                   /* the stop byte of the result */
        return r.malformed ? (bad_reply(c, "a field longer than any value"), 0) : 0;
    if (error)
        fail(3, "error reply for %.*s: %.*s", KEY_BYTES, (const char *)c->key, (int)error_length, (const char *)error);
    if (!success)
        bad_reply(c, options.work == PUT ? "success is not true" : "the key was not found");
    if (options.work != PUT)
        check_value(c, value, value_length);
    if (r.at != c->got)
        bad_reply(c, "bytes behind the reply");
    c->got = 0;
    return 1;
}

static uint64_t take_varint(const struct connection *c, const unsigned char **at, const unsigned char *end) {
    uint64_t value = 0;
    for (int shift = 0; *at < end && shift < 64; shift += 7) {
        unsigned char byte = *(*at)++;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return value;
    }
    bad_reply(c, "cut protobuf number");
    return 0;
}

/* The bytes of a length-delimited field, or NULL; `number` 0 only walks. */
static const unsigned char *find_field(const struct connection *c, const unsigned char *at, size_t length, int number,
                                       size_t *found) {
    for (const unsigned char *end = at + length; at < end;) {
        uint64_t tag = take_varint(c, &at, end), value = take_varint(c, &at, end);
        if ((tag & 7) == 0)
            continue;
        if ((tag & 7) != 2 || value > (uint64_t)(end - at))
            bad_reply(c, "a protobuf field of an unexpected type");
        if ((int)(tag >> 3) == number)
            return *found = (size_t)value, at;
        at += value;
    }
    return NULL;
}

static void check_grpc_message(struct connection *c, const unsigned char *data, size_t length) {
    size_t size, value_length = 0;
    if (length < 5 || data[0] != 0 || read_u32(data + 1) != length - 5)
        bad_reply(c, "not one whole gRPC message");
    if (!find_field(c, data + 5, length - 5, 1, &size))
        bad_reply(c, "no response header");
    if (options.work != PUT) {
        const unsigned char *pair = find_field(c, data + 5, length - 5, 2, &size);
        const unsigned char *value = pair ? find_field(c, pair, size, 5, &value_length) : NULL;
        if (!value)
            bad_reply(c, "the key was not found");
        check_value(c, value, value_length);
    }
    c->answered = true;
}

static void answer_frame(struct connection *c, int type, int flags, const void *payload, size_t length) {
    unsigned char bytes[64];
    struct buffer b = { bytes, 0 };
    add_frame_head(&b, length, type, flags, 0);
    add(&b, payload, length);
    write_all(c->fd, b.bytes, b.length);
}

static void take_frame(struct connection *c, int type, int flags, const unsigned char *payload, size_t length) {
    switch (type) {
    case 0: /* DATA */
        if (length && c->answered)
            bad_reply(c, "more than one DATA frame");
        if (length)
            check_grpc_message(c, payload, length);
        c->unacknowledged += (uint32_t)length;
        if (c->unacknowledged > 1u << 24) {
            uint32_t increment = htonl(c->unacknowledged);
            answer_frame(c, 8, 0, &increment, 4);
            c->unacknowledged = 0;
        }
        c->stream_ended |= flags & 1;
        break;
    case 1: /* HEADERS */
        c->stream_ended |= flags & 1;
        break;
    case 3: /* RST_STREAM: gRPC servers may send one with NO_ERROR behind the end */
        if (length != 4 || read_u32(payload) != 0)
            bad_reply(c, "the stream was reset");
        break;
    case 4: /* SETTINGS */
        if (!(flags & 1))
            answer_frame(c, 4, 1, "", 0);
        break;
    case 6: /* PING */
        if (!(flags & 1) && length == 8)
            answer_frame(c, 6, 1, payload, 8);
        break;
    case 7:
        bad_reply(c, "GOAWAY");
    }
}

static int read_grpc_reply(struct connection *c) {
    size_t at = 0;
    while (c->got - at >= 9) {
        const unsigned char *f = c->reply + at;
        size_t length = (size_t)f[0] << 16 | (size_t)f[1] << 8 | f[2];
        if (9 + length > REPLY_BYTES_MAX)
            bad_reply(c, "a frame larger than any reply");
        if (c->got - at < 9 + length)
            break;
        take_frame(c, f[3], f[4], f + 9, length);
        at += 9 + length;
    }
    memmove(c->reply, c->reply + at, c->got - at);
    c->got -= at;
    if (!c->stream_ended || !c->waiting)
        return 0;
    if (!c->answered)
        bad_reply(c, "an error status and no message");
    c->stream_ended = c->answered = false;
    return 1;
}

/* ---- The loop. ---- */

static void open_connection(struct connection *c, int number, int poller) {
    int one = 1;
    const struct sockaddr_in *to = &options.endpoints[number % options.endpoint_count];
    c->number = (uint32_t)number;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail(1, "socket: %s", strerror(errno));
    if (connect(c->fd, (const struct sockaddr *)to, sizeof *to) != 0)
        fail(1, "connect to port %d: %s", ntohs(to->sin_port), strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    if (options.protocol == GRPC) {
        unsigned char bytes[64];
        struct buffer b = { bytes, 0 };
        add(&b, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
        add_frame_head(&b, 6, 4, 0, 0);                 /* SETTINGS: INITIAL_WINDOW_SIZE, the largest there is */
        add_big_endian(&b, 4, 2);
        add_big_endian(&b, 0x7fffffff, 4);
        add_frame_head(&b, 4, 8, 0, 0);                 /* WINDOW_UPDATE of the connection, to just below that */
        add_big_endian(&b, 0x7fff0000 - 1, 4);
        write_all(c->fd, b.bytes, b.length);
        c->sequence = (uint32_t)-1;                     /* the first stream is 1 */
    }
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) != 0)
        fail(1, "epoll_ctl: %s", strerror(errno));
}

static uint64_t preloaded;
static uint32_t *writes_of;         /* put-once: writes begun, by client */

/* False when there is nothing left to send. `due`: since when it should have been sent; 0 for now. */
static bool send_request(struct connection *c, uint64_t due) {
    if (options.preload && preloaded == options.space)
        return false;
    uint64_t number = options.preload ? preloaded++ : next_random() % options.space;
    memcpy(c->key, "key-", 4);
    for (int i = KEY_BYTES - 1; i >= 4; i--, number /= 10)
        c->key[i] = (unsigned char)('0' + number % 10);
    memcpy(request.bytes + key_at, c->key, KEY_BYTES);
    if (value_at)
        memcpy(request.bytes + value_at, c->key, KEY_BYTES);
    for (size_t at = KEY_BYTES; options.random_values && value_at && at < options.value_bytes; at += 8) {
        uint64_t bits = next_random();
        size_t left = options.value_bytes - at;
        memcpy(request.bytes + value_at + at, &bits, left < 8 ? left : 8);
    }
    c->sequence += options.protocol == GRPC ? 2 : 1;
    for (int i = 0; i < 4; i++) {
        unsigned char byte = (unsigned char)(c->sequence >> (24 - 8 * i));
        request.bytes[sequence_at + (size_t)i] = byte;
        if (second_sequence_at)
            request.bytes[second_sequence_at + (size_t)i] = byte;
    }
    if (options.once) {             /* the end of the client id says which client, of the request id which of its writes */
        uint32_t client = c->number / (uint32_t)options.connections_per_id, write = writes_of[client]++;
        for (int i = 0; i < 4; i++) {
            request.bytes[client_at + CLIENT_ID_BYTES - 4 + (size_t)i] = (unsigned char)(client >> (24 - 8 * i));
            request.bytes[request_id_at + 4 + (size_t)i] = (unsigned char)(write >> (24 - 8 * i));
        }
    }
    c->waiting = true;
    c->sent_at = due ? due : now_ns();
    write_all(c->fd, request.bytes, request.length);
    return true;
}

/* True when the reply is here, whole and good. */
static bool receive(struct connection *c) {
    ssize_t n = read(c->fd, c->reply + c->got, REPLY_BYTES_MAX - c->got);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n <= 0)
        fail(1, "the server closed a connection: %s", n ? strerror(errno) : "end of stream");
    c->got += (size_t)n;
    if (options.protocol == GRPC)
        return read_grpc_reply(c) == 1;
    if (!c->waiting)
        bad_reply(c, "bytes that nobody asked for");
    return read_thrift_reply(c) == 1;
}

/* ---- Requests that are due at even distances, and the connections that are free for them. ---- */

static struct {
    int timer;
    uint64_t start, count;
    struct connection **free;       /* a ring: who is free for longest is first */
    int first, free_count;
} pace;

static void set_free(struct connection *c) {
    pace.free[(pace.first + pace.free_count++) % options.connections] = c;
}

/* Sends what is due by now, and wakes the loop when the next is; returns how many requests went out. */
static int send_due(uint64_t end) {
    int sent = 0;
    uint64_t due = 0;
    for (;; sent++, pace.count++) {
        due = pace.start + (uint64_t)((double)pace.count * 1e9 / options.rate);
        if (!pace.free_count || due >= end || due > now_ns())
            break;
        struct connection *c = pace.free[pace.first];
        pace.first = (pace.first + 1) % options.connections;
        pace.free_count--;
        send_request(c, due);
    }
    if (pace.free_count) {
        uint64_t wake = due < end ? due : end;
        struct itimerspec at = { .it_value = { (time_t)(wake / 1000000000u), (long)(wake % 1000000000u) } };
        timerfd_settime(pace.timer, TFD_TIMER_ABSTIME, &at, NULL);
    }
    return sent;
}

static void open_timer(int poller) {
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };
    pace.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    pace.free = calloc((size_t)options.connections, sizeof *pace.free);
    if (pace.timer < 0 || !pace.free || epoll_ctl(poller, EPOLL_CTL_ADD, pace.timer, &event) != 0)
        fail(1, "no memory or no timer");
}

static void hear_timer(void) {
    uint64_t times;
    if (read(pace.timer, &times, sizeof times) < 0 && errno != EAGAIN)
        fail(1, "timer: %s", strerror(errno));
}

static void close_windows(uint64_t now, uint64_t begin, uint64_t end) {
    static uint64_t closed;
    uint64_t length = (uint64_t)(options.window * 1e9);
    for (uint64_t until; length && (until = begin + (closed + 1) * length) <= now && until <= end; closed++) {
        print_figures(&window, options.window);
        memset(&window, 0, sizeof window);
    }
}

/* The next request of a connection that is free; true if one went out. */
static bool go_on(struct connection *c) {
    if (!options.rate)
        return send_request(c, 0);
    set_free(c);
    return false;
}

static uint64_t drive(struct connection *connections, int poller, uint64_t begin, uint64_t end) {
    struct epoll_event events[EVENTS_MAX];
    uint64_t last_reply = now_ns(), finished = end, now = last_reply;
    int out = 0;
    pace.start = now;
    for (int i = 0; i < options.connections; i++)
        out += go_on(&connections[i]);
    /* After the end no request is sent any more, but each that is out is still checked. */
    while (out || (options.rate && now < end)) {
        if (!out)
            last_reply = now;
        if (options.rate)
            out += send_due(end);
        int ready = epoll_wait(poller, events, EVENTS_MAX, 1000);
        now = now_ns();
        close_windows(now, begin, end);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c)
                hear_timer();
            if (!c || !receive(c))
                continue;
            uint64_t at = last_reply = now_ns();
            c->waiting = false;
            out--;
            if (at >= begin && at < end) {
                record(&whole, at - c->sent_at);
                record(&window, at - c->sent_at);
            }
            if (at < end && go_on(c))
                out++;
            else if (options.preload)
                finished = at;
        }
        if (out && now_ns() - last_reply > (uint64_t)SILENCE_S * 1000000000u)
            fail(1, "%d requests were not answered within %d s", out, SILENCE_S);
    }
    close_windows(now_ns(), begin, end);
    return finished;
}

/* ---- Options. ---- */

static void parse_endpoints(char *list) {
    char *rest;
    for (char *text = strtok_r(list, ",", &rest); text; text = strtok_r(NULL, ",", &rest)) {
        char address[64];
        int port;
        struct sockaddr_in *to = &options.endpoints[options.endpoint_count];
        if (options.endpoint_count++ == ENDPOINTS_MAX)
            fail(2, "at most %d endpoints", ENDPOINTS_MAX);
        to->sin_family = AF_INET;
        if (sscanf(text, "%63[^:]:%d", address, &port) != 2 || inet_pton(AF_INET, address, &to->sin_addr) != 1)
            fail(2, "endpoint %s: an IPv4 address and a port are wanted, such as 127.0.0.1:9090", text);
        to->sin_port = htons((uint16_t)port);
    }
}

static int choose(const char *option, const char *text, const char *const *names) {
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    fail(2, "--%s %s: not known", option, text);
    return -1;
}

static void parse_options(int count, char **arguments) {
    static const char *const protocols[] = { "thrift", "grpc", NULL };
    static const char *const works[] = { "put", "get", "get-local", "put-once", NULL };
    static const struct option known[] = {
        { "protocol", 1, NULL, 'p' }, { "work", 1, NULL, 'w' },        { "endpoints", 1, NULL, 'e' },
        { "connections", 1, NULL, 'c' }, { "seconds", 1, NULL, 's' },  { "warmup", 1, NULL, 'u' },
        { "space", 1, NULL, 'k' },    { "value-bytes", 1, NULL, 'v' }, { "seed", 1, NULL, 'r' },
        { "preload", 0, NULL, 'l' },  { "rate", 1, NULL, 'a' },        { "window", 1, NULL, 'i' },
        { "random-values", 0, NULL, 'd' }, { "connections-per-id", 1, NULL, 'o' }, { NULL, 0, NULL, 0 },
    };
    int option;
    while ((option = getopt_long(count, arguments, "", known, NULL)) != -1) {
        switch (option) {
        case 'p': options.protocol = (enum protocol)choose("protocol", optarg, protocols); break;
        case 'w': options.work = (enum work)choose("work", optarg, works); break;
        case 'e': parse_endpoints(optarg); break;
        case 'c': options.connections = atoi(optarg); break;
        case 's': options.seconds = atof(optarg); break;
        case 'u': options.warmup = atof(optarg); break;
        case 'k': options.space = strtoull(optarg, NULL, 10); break;
        case 'v': options.value_bytes = strtoull(optarg, NULL, 10); break;
        case 'r': options.seed = strtoull(optarg, NULL, 10); break;
        case 'l': options.preload = true; break;
        case 'a': options.rate = atof(optarg); break;
        case 'i': options.window = atof(optarg); break;
        case 'd': options.random_values = true; break;
        case 'o': options.connections_per_id = atoi(optarg); break;
        default: exit(2);
        }
    }
    if (options.work == PUT_ONCE) {
        options.once = options.protocol == THRIFT;
        options.work = PUT;
    }
    if (!options.endpoint_count)
        fail(2, "--endpoints is missing");
    if (options.connections < 1 || options.space < 1 || options.seconds <= 0)
        fail(2, "--connections, --space and --seconds must be positive");
    if (options.value_bytes < KEY_BYTES || options.value_bytes > VALUE_BYTES_MAX)
        fail(2, "--value-bytes must be from %d to %d", KEY_BYTES, VALUE_BYTES_MAX);
    if (options.connections_per_id < 1 || options.connections_per_id > OPEN_MAX)
        fail(2, "--connections-per-id must be from 1 to %d", OPEN_MAX);
    if (options.preload && options.work != PUT)
        fail(2, "--preload goes with --work put");
    if (options.rate < 0 || options.window < 0)
        fail(2, "--rate and --window must not be negative");
    if (options.preload && (options.rate || options.window))
        fail(2, "--preload goes neither with --rate nor with --window");
}

int main(int count, char **arguments) {
    parse_options(count, arguments);
    build_request();
    int poller = epoll_create1(EPOLL_CLOEXEC);
    writes_of = calloc((size_t)options.connections, sizeof *writes_of);
    struct connection *connections = calloc((size_t)options.connections, sizeof *connections);
    if (poller < 0 || !connections)
        fail(1, "no memory or no epoll");
    open_timer(poller);
    for (int i = 0; i < options.connections; i++)
        open_connection(&connections[i], i, poller);

    uint64_t start = now_ns();
    uint64_t begin = options.preload ? start : start + (uint64_t)(options.warmup * 1e9);
    uint64_t end = options.preload ? UINT64_MAX : begin + (uint64_t)(options.seconds * 1e9);
    uint64_t finished = drive(connections, poller, begin, end);
    double seconds = (double)(finished - begin) / 1e9;
    print_figures(&whole, seconds);
    return whole.samples ? 0 : 1;
}
