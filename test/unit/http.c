/*
 * http: what becomes of a request, whatever the far side does.
 *
 * The far side is a server in this process: a thread per connection, which answers by the number in the path.  Names are resolved by a
 * getaddrinfo() of our own, which libcurl's threads find before libc's; it can hang, and it counts.  So does connect(): that nothing was dialled is seen there.
 */
#define _GNU_SOURCE				/* RTLD_NEXT */
#include "delivery/http.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <netdb.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tap.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#define ignore_leaks(yes) ((yes) ? __lsan_disable() : __lsan_enable())
#else
#define ignore_leaks(yes) ((void) 0)
#endif

#define SECOND INT64_C(1000000)
#define MANY 40

/*
 * Names.
 */
static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t names_changed = PTHREAD_COND_INITIALIZER;
static bool names_held;			/* slow.test waits while this is true */
static atomic_int resolutions;
static atomic_bool signals_were_open;

static int
add_address(int family, const char *service, const char *address, struct addrinfo ***end)
{
	struct addrinfo *info = calloc(1, sizeof(*info) + sizeof(struct sockaddr_in6));
	struct sockaddr_in *ipv4 = (struct sockaddr_in *) (info + 1);
	struct sockaddr_in6 *ipv6 = (struct sockaddr_in6 *) (info + 1);

	info->ai_socktype = SOCK_STREAM;
	info->ai_addr = (struct sockaddr *) (info + 1);
	if (inet_pton(AF_INET, address, &ipv4->sin_addr) == 1)
	{
		info->ai_family = ipv4->sin_family = AF_INET;
		info->ai_addrlen = sizeof(*ipv4);
		ipv4->sin_port = htons((uint16_t) atoi(service));
	}
	else if (inet_pton(AF_INET6, address, &ipv6->sin6_addr) == 1)
	{
		info->ai_family = ipv6->sin6_family = AF_INET6;
		info->ai_addrlen = sizeof(*ipv6);
		ipv6->sin6_port = htons((uint16_t) atoi(service));
	}
	else
		abort();
	if (family != AF_UNSPEC && family != info->ai_family)
	{
		free(info);
		return EAI_NONAME;
	}
	**end = info;
	*end = &info->ai_next;
	return 0;
}

/* Names with addresses of their own; PUBLIC and PUBLIC_2 lead to this process, see connect(). All others are loopback, unless they are unknown. */
#define PUBLIC "192.0.0.9"
#define PUBLIC_2 "192.0.0.10"

typedef struct Name
{
	const char *name;
	const char *addresses[4];
} Name;

static const Name names[] = {
	{"public.test", {PUBLIC}},
	{"mixed.test", {"127.0.0.1", "10.0.0.1", PUBLIC}},
	{"mixed-6.test", {"::1", "64:ff9b::7f00:1", PUBLIC, "169.254.169.254"}},
	{"loopback-6.test", {"::1"}},
	{"mapped.test", {"::ffff:127.0.0.1"}},
	{"compatible.test", {"::127.0.0.1"}},
	{"nat64.test", {"64:ff9b::a9fe:a9fe"}},
	{"6to4.test", {"2002:7f00:1::1"}},
	{"teredo.test", {"2001:0:c000:9::80ff:fffe"}},
	{"isatap.test", {"2606:4700::200:5efe:127.0.0.1"}},
	{"internal.test", {"10.0.0.1", "192.168.1.1", "172.16.0.1", "fd00::1"}},
	{"metadata.test", {"169.254.169.254", "fd00:ec2::254", "100.100.100.200"}},
};

static atomic_bool rebound;		/* what rebinding.test is now */

int
getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
	struct addrinfo **end = result;
	int			family = hints != NULL ? hints->ai_family : AF_UNSPEC;
	int			found = EAI_NONAME;
	sigset_t	mask;

	if (family != AF_INET6)		/* since 8.20 libcurl asks for each family, in a thread of its own */
		resolutions++;
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	if (!sigismember(&mask, SIGTERM) || !sigismember(&mask, SIGALRM) || !sigismember(&mask, SIGUSR1))
		signals_were_open = true;

	pthread_mutex_lock(&names_lock);
	while (names_held && strncmp(name, "slow", 4) == 0)
		pthread_cond_wait(&names_changed, &names_lock);
	pthread_mutex_unlock(&names_lock);

	if (strstr(name, "unknown") != NULL)
		return EAI_NONAME;
	if (strcmp(name, "rebinding.test") == 0)
		return add_address(family, service, rebound ? "127.0.0.1" : PUBLIC, &end);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(name, names[i].name) == 0)
		{
			for (int j = 0; j < 4 && names[i].addresses[j] != NULL; j++)
				if (add_address(family, service, names[i].addresses[j], &end) == 0)
					found = 0;
			return found;
		}
	return add_address(family, service, "127.0.0.1", &end);
}

void
freeaddrinfo(struct addrinfo *info)
{
	while (info != NULL)
	{
		struct addrinfo *next = info->ai_next;

		free(info);
		info = next;
	}
}

/*
 * What is dialled: libcurl's connect() is this one.  It counts, before any packet leaves; PUBLIC is led to `public_port` of this process, and nothing but
 * loopback goes anywhere.  Who asks for the peer is told whom he dialled.
 */
static atomic_int dials;
static char last_dialled[INET6_ADDRSTRLEN];
static uint16_t public_port;
static struct sockaddr_in led[1024];	/* by descriptor: what was dialled, if it was led elsewhere */

int
connect(int fd, const struct sockaddr *address, socklen_t size)
{
	struct sockaddr_in ipv4 = {0};

	dials++;
	memset(&led[fd], 0, sizeof(led[fd]));
	if (address->sa_family == AF_INET)
		memcpy(&ipv4, address, sizeof(ipv4));
	if (address->sa_family == AF_INET6)
		inet_ntop(AF_INET6, &((const struct sockaddr_in6 *) address)->sin6_addr, last_dialled, sizeof(last_dialled));
	else
		inet_ntop(AF_INET, &ipv4.sin_addr, last_dialled, sizeof(last_dialled));
	if (strcmp(last_dialled, PUBLIC) == 0)
	{
		led[fd] = ipv4;
		ipv4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		ipv4.sin_port = htons(public_port);
		address = (struct sockaddr *) &ipv4;
	}
	else if (ntohl(ipv4.sin_addr.s_addr) >> 24 != 127)
	{
		errno = ENETUNREACH;
		return -1;
	}
	return (int) syscall(SYS_connect, fd, address, size);
}

int
getpeername(int fd, struct sockaddr *address, socklen_t *size)
{
	if (led[fd].sin_family == 0)
		return (int) syscall(SYS_getpeername, fd, address, size);
	memcpy(address, &led[fd], *size < sizeof(led[fd]) ? *size : sizeof(led[fd]));
	*size = sizeof(led[fd]);
	return 0;
}

/* libcurl's, unless there is no memory for them. */
static bool no_multi;
static bool no_url;

CURLM *
curl_multi_init(void)
{
	CURLM	   *(*real) (void) = (CURLM *(*) (void)) dlsym(RTLD_NEXT, "curl_multi_init");

	return no_multi ? NULL : real();
}

CURLUcode
curl_url_set(CURLU *url, CURLUPart what, const char *part, unsigned int flags)
{
	CURLUcode	(*real) (CURLU *, CURLUPart, const char *, unsigned int) = (CURLUcode (*) (CURLU *, CURLUPart, const char *, unsigned int)) dlsym(RTLD_NEXT, "curl_url_set");

	return no_url ? CURLUE_OUT_OF_MEMORY : real(url, what, part, flags);
}

static void
hold_names(bool held)
{
	pthread_mutex_lock(&names_lock);
	names_held = held;
	pthread_cond_broadcast(&names_changed);
	pthread_mutex_unlock(&names_lock);
}

/*
 * The far side.
 */
typedef enum Then
{
	KEEP,						/* wait for the next request */
	CLOSE,
	RESET,
	HANG,						/* say no more until the client goes */
	ANSWER_ALL_DAY,				/* the last 16 bytes of the answer again and again */
	FLOOD,						/* the same, and nothing in it breaks a bound but that of time */
	DRIP						/* a byte every 20 ms */
} Then;

typedef struct Case
{
	const char *what;
	const char *answer;
	size_t		size;
	Then		then;
	OutboxOutcome outcome;
	int			status;
	const char *response;		/* NULL: do not look */
	size_t		response_size;
	int64_t		retry_after;	/* seconds, -1: none */
} Case;

#define TEXT(literal) (literal), sizeof(literal) - 1
#define NOTHING NULL, 0
#define OK_HEADERS "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
#define BLANKS_64 "                                                                "
#define BLANKS_256 BLANKS_64 BLANKS_64 BLANKS_64 BLANKS_64
#define BLANKS_1024 BLANKS_256 BLANKS_256 BLANKS_256 BLANKS_256
#define PAD "xxxxxxxxxxxxxxxx"
#define PAD_256 PAD PAD PAD PAD PAD PAD PAD PAD PAD PAD PAD PAD PAD PAD PAD PAD
#define FIELDS_16 "A: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\n"
#define FIELDS_64 FIELDS_16 FIELDS_16 FIELDS_16 FIELDS_16

static const Case cases[] = {
	{"200 with a body", TEXT(OK_HEADERS "Content-Length: 5\r\n\r\nhello"), KEEP, OUTBOX_DELIVERED, 200, TEXT("hello"), -1},
	{"NUL and broken UTF-8 in the body", TEXT(OK_HEADERS "Content-Length: 7\r\n\r\nhe\0lo\xc3\xff"), KEEP, OUTBOX_DELIVERED, 200, TEXT("he\0lo\xc3\xff"), -1},
	{"NUL in a header field", TEXT(OK_HEADERS "X: a\0b\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"204", TEXT("HTTP/1.1 204 No Content\r\n\r\n"), KEEP, OUTBOX_DELIVERED, 204, TEXT(""), -1},
	{"204, and closed", TEXT("HTTP/1.1 204 No Content\r\n\r\n"), CLOSE, OUTBOX_DELIVERED, 204, NOTHING, -1},
	{"202 in chunks", TEXT("HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), KEEP, OUTBOX_DELIVERED, 202, TEXT("hello"), -1},
	{"200 until close", TEXT(OK_HEADERS "\r\nhello"), CLOSE, OUTBOX_DELIVERED, 200, TEXT("hello"), -1},
	{"HTTP/1.0", TEXT("HTTP/1.0 200 OK\r\n\r\nhello"), CLOSE, OUTBOX_DELIVERED, 200, TEXT("hello"), -1},
	{"100 before 200", TEXT("HTTP/1.1 100 Continue\r\n\r\n" OK_HEADERS "Content-Length: 0\r\n\r\n"), KEEP, OUTBOX_DELIVERED, 200, TEXT(""), -1},
	{"302 is not followed", TEXT("HTTP/1.1 302 Found\r\nLocation: /0\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_3XX, 302, TEXT(""), -1},
	{"404", TEXT("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"), KEEP, OUTBOX_HTTP_4XX, 404, TEXT("no"), -1},
	{"401 is not answered", TEXT("HTTP/1.1 401 Who\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_4XX, 401, TEXT(""), -1},
	{"410", TEXT("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_GONE, 410, TEXT(""), -1},
	{"500", TEXT("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 500, TEXT(""), -1},
	{"a status of no class", TEXT("HTTP/1.1 700 What\r\nContent-Length: 0\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 700, NOTHING, -1},
	{"Retry-After in seconds", TEXT("HTTP/1.1 503 Later\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 503, TEXT(""), 120},
	{"Retry-After as a date gone by", TEXT("HTTP/1.1 503 Later\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 503, TEXT(""), -1},
	{"Retry-After twice: the first counts", TEXT("HTTP/1.1 429 Slow\r\nretry-after:  7 \r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_4XX, 429, TEXT(""), 7},
	{"Retry-After that is garbage", TEXT("HTTP/1.1 503 Later\r\nRetry-After: " PAD_256 "\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 503, TEXT(""), -1},
	{"Retry-After in a trailer is none", TEXT("HTTP/1.1 503 Later\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nRetry-After: 9\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 503, TEXT(""), -1},

	{"closed without an answer", TEXT(""), CLOSE, OUTBOX_CONNECT, 0, NOTHING, -1},
	{"reset without an answer", TEXT(""), RESET, OUTBOX_CONNECT, 0, NOTHING, -1},
	{"reset within the header section", TEXT("HTTP/1.1 200 OK\r\nContent-"), RESET, OUTBOX_CONNECT, 0, NOTHING, -1},
	{"200, reset within the body: delivered", TEXT(OK_HEADERS "Content-Length: 500\r\n\r\nhello"), RESET, OUTBOX_DELIVERED, 200, NOTHING, -1},
	{"200, body shorter than said: delivered", TEXT(OK_HEADERS "Content-Length: 500\r\n\r\nhello"), CLOSE, OUTBOX_DELIVERED, 200, TEXT("hello"), -1},
	{"500, body shorter than said", TEXT("HTTP/1.1 500 Oh\r\nContent-Length: 500\r\n\r\nhello"), CLOSE, OUTBOX_HTTP_5XX, 500, TEXT("hello"), -1},
	{"200, broken chunks: delivered", TEXT("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\nhello"), CLOSE, OUTBOX_DELIVERED, 200, NOTHING, -1},

	{"silence", TEXT(""), HANG, OUTBOX_TIMEOUT, 0, NOTHING, -1},
	{"silence within the header section", TEXT("HTTP/1.1 200 OK\r\n"), HANG, OUTBOX_TIMEOUT, 0, NOTHING, -1},
	{"200, silence within the body: delivered", TEXT(OK_HEADERS "Content-Length: 500\r\n\r\nhello"), HANG, OUTBOX_DELIVERED, 200, TEXT("hello"), -1},
	{"headers byte by byte", TEXT("HTTP/1.1 200 OK\r\nX: " PAD_256 "\r\n\r\n"), DRIP, OUTBOX_TIMEOUT, 0, NOTHING, -1},

	{"200, endless body: cut, delivered", TEXT(OK_HEADERS "\r\n" PAD), ANSWER_ALL_DAY, OUTBOX_DELIVERED, 200, NOTHING, -1},
	{"500, endless body: cut", TEXT("HTTP/1.1 500 Oh\r\n\r\n" PAD), ANSWER_ALL_DAY, OUTBOX_HTTP_5XX, 500, NOTHING, -1},
	{"endless header fields", TEXT("HTTP/1.1 200 OK\r\nX-Some: 123456\r\n"), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"one endless header field", TEXT("HTTP/1.1 200 OK\r\nX: " PAD), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"a flood of 100 Continue", TEXT("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 100\r\n\r\n"), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"not HTTP at all", TEXT("SSH-2.0-OpenSSH_9.2\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"HTTP/0.9", TEXT("<html>hello</html>"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"header lines without colon", TEXT("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"interim answers before 200", TEXT("HTTP/1.1 102 Processing\r\nX: y\r\n\r\nHTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n" OK_HEADERS "Content-Length: 2\r\n\r\nok"), KEEP, OUTBOX_DELIVERED, 200, TEXT("ok"), -1},
	{"Retry-After of an interim answer is none", TEXT("HTTP/1.1 103 Hints\r\nRetry-After: 9\r\n\r\nHTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 503, TEXT(""), -1},
	{"a flood of 103 with fields", TEXT("HTTP/1.1 103 Hints\r\nLink: <" PAD_256 PAD_256 ">\r\n\r\nHTTP/1.1 103\r\n\r\n"), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"101, then silence", TEXT("HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"), HANG, OUTBOX_TIMEOUT, 0, NOTHING, -1},
	{"101, then a flood", TEXT("HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" PAD), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"lines that end in LF alone", TEXT("HTTP/1.1 200 OK\nContent-Length: 2\n\nok"), KEEP, OUTBOX_DELIVERED, 200, TEXT("ok"), -1},
	{"lines that end in LF alone, and a failure", TEXT("HTTP/1.1 503 Later\nRetry-After: 7\nContent-Length: 0\n\n"), KEEP, OUTBOX_HTTP_5XX, 503, TEXT(""), 7},
	{"a folded field", TEXT("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\tc\r\nContent-Length: 2\r\n\r\nok"), KEEP, OUTBOX_DELIVERED, 200, TEXT("ok"), -1},
	{"a folded field of an interim answer, and one behind it", TEXT("HTTP/1.1 103 Hints\r\nX: a\r\n b\r\n\r\nHTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok"), KEEP, OUTBOX_DELIVERED, 200, TEXT("ok"), -1},
	{"a first field of 20 kB of blanks", TEXT("HTTP/1.1 200 OK\r\nX: a" BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024
										  BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 BLANKS_1024 "b\r\nContent-Length: 2\r\n\r\nok"), KEEP, OUTBOX_DELIVERED, 200, TEXT("ok"), -1},
	{"a field that folds for ever", TEXT("HTTP/1.1 200 OK\r\nX: a\r\n 123456789abcd\r\n"), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"a hundred fields too many", TEXT("HTTP/1.1 200 OK\r\n" FIELDS_64 FIELDS_64 "Content-Length: 0\r\n\r\n"), HANG, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"a status line that does not end", TEXT("HTTP/1.1 200 " PAD), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"bytes without a line end", TEXT(PAD), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"NULs without end", TEXT("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"empty lines without end", TEXT("\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n"), ANSWER_ALL_DAY, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"a status of four digits", TEXT("HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"a status of two digits", TEXT("HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"a negative status", TEXT("HTTP/1.1 -200 OK\r\nContent-Length: 0\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"no status", TEXT("HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"HTTP/3", TEXT("HTTP/3 200\r\nContent-Length: 0\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"an HTTP/2 SETTINGS frame", TEXT("\0\0\0\x4\0\0\0\0\0"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"a radio station", TEXT("ICY 200 OK\r\n\r\n"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"gzip is kept as it came", TEXT(OK_HEADERS "Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03"), KEEP, OUTBOX_DELIVERED, 200, TEXT("\x1f\x8b\x08\0\0\0\0\0\0\x03"), -1},
	{"an unknown transfer coding", TEXT("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), CLOSE, 0, 0, NOTHING, -1},
	{"Content-Length beside chunks", TEXT("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), CLOSE, OUTBOX_DELIVERED, 200, NOTHING, -1},
	{"a negative Content-Length", TEXT("HTTP/1.1 500 Oh\r\nContent-Length: -5\r\n\r\nhello"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"a Content-Length beyond 64 bits", TEXT("HTTP/1.1 500 Oh\r\nContent-Length: 99999999999999999999999\r\n\r\nhello"), CLOSE, OUTBOX_HTTP_5XX, 500, NOTHING, -1},
	{"a Content-Length that is none", TEXT("HTTP/1.1 500 Oh\r\nContent-Length: many\r\n\r\nhello"), CLOSE, OUTBOX_PROTOCOL, 0, NOTHING, -1},
	{"Content-Length: terabytes, then silence", TEXT("HTTP/1.1 500 Oh\r\nContent-Length: 9999999999999\r\n\r\nhello"), HANG, OUTBOX_HTTP_5XX, 500, TEXT("hello"), -1},
	{"a chunk of 2^64 - 1 bytes", TEXT("HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello"), CLOSE, OUTBOX_HTTP_5XX, 500, NOTHING, -1},
	{"a chunk of -1 bytes", TEXT("HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello"), CLOSE, OUTBOX_HTTP_5XX, 500, NOTHING, -1},
	{"a chunk size without end", TEXT("HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n" "0000000000000000"), ANSWER_ALL_DAY, OUTBOX_HTTP_5XX, 500, NOTHING, -1},
	{"a chunk extension without end", TEXT("HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n" "1;xxxxxxxxxxxxxx"), FLOOD, OUTBOX_HTTP_5XX, 500, NOTHING, -1},
	{"chunks without end", TEXT("HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n" "b\r\nhello world\r\n"), ANSWER_ALL_DAY, OUTBOX_HTTP_5XX, 500, NOTHING, -1},
	{"trailers without end", TEXT("HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" "X: 4567890abcd\r\n"), ANSWER_ALL_DAY, OUTBOX_HTTP_5XX, 500, TEXT(""), -1},
	{"a body to a 204", TEXT("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello"), CLOSE, OUTBOX_DELIVERED, 204, TEXT(""), -1},
	{"bytes behind the body", TEXT(OK_HEADERS "Content-Length: 2\r\n\r\nokHTTP/1.1 500 Oh\r\n\r\n"), KEEP, OUTBOX_DELIVERED, 200, TEXT("ok"), -1},
	{"proxy authentication is not answered", TEXT("HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_4XX, 407, TEXT(""), -1},
	{"417 is not answered", TEXT("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_4XX, 417, TEXT(""), -1},
	{"302 to a file", TEXT("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_3XX, 302, TEXT(""), -1},
	{"307 to a metadata service", TEXT("HTTP/1.1 307 There\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_3XX, 307, TEXT(""), -1},
	{"a Refresh and a Location of garbage", TEXT("HTTP/1.1 308 There\r\nRefresh: 0\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_3XX, 308, TEXT(""), -1},
	{"cookies, HSTS and alternatives", TEXT(OK_HEADERS "Set-Cookie: a=b\r\nStrict-Transport-Security: max-age=99\r\nAlt-Svc: h2=\":1\"\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_DELIVERED, 200, TEXT(""), -1},
	{"broken UTF-8 in reason and fields", TEXT("HTTP/1.1 500 \xff\xc3\x28\r\nX-\xff: \xc3\x28\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 500, TEXT(""), -1},
	{"Retry-After of ten years", TEXT("HTTP/1.1 503 Later\r\nRetry-After: 315360000\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 503, TEXT(""), 315360000},
	{"Retry-After: -1", TEXT("HTTP/1.1 503 Later\r\nRetry-After: -1\r\nContent-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 503, TEXT(""), -1},
	{"a failure, and a success that nobody asked for", TEXT("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n" OK_HEADERS "Content-Length: 0\r\n\r\n"), KEEP, OUTBOX_HTTP_5XX, 500, TEXT(""), -1},
	{"a folded line before any field", TEXT("HTTP/1.1 200 OK\r\n X: folded\r\n\tmore\r\nContent-Length: 0\r\n\r\n"), CLOSE, 0, 0, NOTHING, -1},
	{"the same behind an interim answer", TEXT("HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\n\tX: folded\r\nContent-Length: 0\r\n\r\n"), CLOSE, 0, 0, NOTHING, -1},
	{"101 is no answer", TEXT("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), CLOSE, OUTBOX_CONNECT, 0, NOTHING, -1},
};

#define N_CASES ((int) (sizeof(cases) / sizeof(cases[0])))

typedef struct Server
{
	int			listener;
	uint16_t	port;
	SSL_CTX    *tls;			/* NULL: plain */
	const char *greeting;		/* says this, whatever it is asked */
	size_t		greeting_size;
} Server;

typedef struct Connection
{
	const Server *server;
	int			fd;
	SSL		   *tls;
	char		request[65536];
	size_t		size;
} Connection;

static Server plain_server;
static Server tls_server;
static atomic_int connections;
static atomic_int requests;
static atomic_int hanging;
static pthread_mutex_t last_lock = PTHREAD_MUTEX_INITIALIZER;
static char last_request[65536];

static ssize_t
receive(Connection *c, char *data, size_t size)
{
	return c->tls ? SSL_read(c->tls, data, (int) size) : recv(c->fd, data, size, 0);
}

static bool
transmit(Connection *c, const char *data, size_t size)
{
	if (size == 0)
		return true;
	if (c->tls)
		return SSL_write(c->tls, data, (int) size) > 0;
	return send(c->fd, data, size, MSG_NOSIGNAL) == (ssize_t) size;
}

/* Header section and body of one request, left NUL-terminated. */
static bool
read_request(Connection *c)
{
	c->size = 0;
	for (;;)
	{
		char	   *end;
		const char *length;
		ssize_t		n = receive(c, c->request + c->size, sizeof(c->request) - 1 - c->size);

		if (n <= 0)
			return false;
		c->size += (size_t) n;
		c->request[c->size] = '\0';
		end = strstr(c->request, "\r\n\r\n");
		if (end == NULL)
			continue;
		length = strstr(c->request, "Content-Length: ");
		if (length == NULL || c->size >= (size_t) (end + 4 - c->request) + strtoul(length + 16, NULL, 10))
			return true;
	}
}

static void
wait_for_close(Connection *c)
{
	char		byte;

	hanging++;
	while (receive(c, &byte, 1) > 0)
		;
	hanging--;
}

/* Returns whether the connection lives on. */
static bool
answer(Connection *c, const Case *script)
{
	size_t		size = script->size;

	if (script->then == DRIP)
	{
		for (size_t i = 0; i < size && transmit(c, script->answer + i, 1); i++)
			nanosleep(&(struct timespec) {.tv_nsec = 20000000}, NULL);
		return false;
	}
	if (!transmit(c, script->answer, size))
		return false;
	switch (script->then)
	{
		case KEEP:
			return true;
		case RESET:
			setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger) {.l_onoff = 1}, sizeof(struct linger));
			return false;
		case HANG:
			wait_for_close(c);
			return false;
		case ANSWER_ALL_DAY:
		case FLOOD:
			while (transmit(c, script->answer + size - 16, 16))
				;
			return false;
		default:
			return false;
	}
}

static void *
serve_connection(void *arg)
{
	Connection *c = arg;
	bool		alive = true;

	if (c->server->greeting != NULL)
	{
		transmit(c, c->server->greeting, c->server->greeting_size);
		wait_for_close(c);
		alive = false;
	}
	if (c->server->tls != NULL)
	{
		c->tls = SSL_new(c->server->tls);
		SSL_set_fd(c->tls, c->fd);
		alive = SSL_accept(c->tls) == 1;
		for (char byte; !alive && recv(c->fd, &byte, 1, 0) > 0;)
			;					/* or a reset would overtake the alert */
	}
	while (alive && read_request(c))
	{
		const char *path = strchr(c->request, '/');

		requests++;
		pthread_mutex_lock(&last_lock);
		memcpy(last_request, c->request, c->size + 1);
		pthread_mutex_unlock(&last_lock);
		alive = answer(c, &cases[path == NULL ? 0 : atoi(path + 1) % N_CASES]);
	}
	SSL_free(c->tls);
	close(c->fd);
	free(c);
	return NULL;
}

static void *
serve(void *arg)
{
	Server	   *server = arg;

	for (;;)
	{
		Connection *c = calloc(1, sizeof(*c));
		pthread_t	thread;

		c->server = server;
		c->fd = accept(server->listener, NULL, NULL);
		connections++;
		pthread_create(&thread, NULL, serve_connection, c);
		pthread_detach(thread);
	}
	return NULL;
}

/* A listener on a free loopback port. */
static int
listen_on_loopback(uint16_t *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t	size = sizeof(address);
	int			fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *) &address, size) != 0 || listen(fd, 256) != 0 ||
		getsockname(fd, (struct sockaddr *) &address, &size) != 0)
	{
		perror("listener");
		exit(1);
	}
	*port = ntohs(address.sin_port);
	return fd;
}

static void
start_server(Server *server, SSL_CTX *tls)
{
	pthread_t	thread;

	server->tls = tls;
	server->listener = listen_on_loopback(&server->port);
	pthread_create(&thread, NULL, serve, server);
	pthread_detach(thread);
}

/* A server's certificate, self-signed, and what the server insists on. */
typedef struct Certificate
{
	const char *host;
	int			begins;			/* seconds from now */
	int			ends;
	int			newest;			/* protocol version, 0: any */
	bool		demands;		/* a certificate of the client */
} Certificate;

/* *pem: what a client must trust. */
static SSL_CTX *
create_tls(const Certificate *spec, char **pem)
{
	EVP_PKEY   *key = EVP_EC_gen("P-256");
	X509	   *certificate = X509_new();
	char		name[128];
	X509_EXTENSION *extension;
	SSL_CTX    *context = SSL_CTX_new(TLS_server_method());
	BIO		   *out = BIO_new(BIO_s_mem());
	char	   *data;
	long		size;

	snprintf(name, sizeof(name), "DNS:%s", spec->host);
	extension = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, name);
	X509_set_version(certificate, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
	X509_gmtime_adj(X509_getm_notBefore(certificate), spec->begins);
	X509_gmtime_adj(X509_getm_notAfter(certificate), spec->ends);
	X509_set_pubkey(certificate, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC, (const unsigned char *) "test", -1, -1, 0);
	X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
	X509_add_ext(certificate, extension, -1);
	X509_sign(certificate, key, EVP_sha256());
	PEM_write_bio_X509(out, certificate);
	size = BIO_get_mem_data(out, &data);
	*pem = strndup(data, (size_t) size);
	SSL_CTX_use_certificate(context, certificate);
	SSL_CTX_use_PrivateKey(context, key);
	if (spec->newest != 0)
	{
		SSL_CTX_set_security_level(context, 0);
		SSL_CTX_set_min_proto_version(context, spec->newest);
		SSL_CTX_set_max_proto_version(context, spec->newest);
	}
	if (spec->demands)
		SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	X509_EXTENSION_free(extension);
	X509_free(certificate);
	EVP_PKEY_free(key);
	BIO_free(out);
	return context;
}

/*
 * The near side.
 */
static int64_t
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * SECOND + now.tv_nsec / 1000;
}

static OutboxHttp *
create_http(void)
{
	OutboxHttp *http = outbox_http_create(&(OutboxHttpOptions) {.max_connections = 64, .user_agent = "outbox/test"});

	if (http == NULL)
	{
		ok(false, "outbox_http_create");
		exit(1);
	}
	return http;
}

static char url_text[256];

static const char *
url(const char *scheme, const char *host, int port, int script)
{
	snprintf(url_text, sizeof(url_text), "%s://%s:%d/%d?token=secret", scheme, host, port, script);
	return url_text;
}

static OutboxEndpoint
endpoint_of(const char *target, OutboxNetwork network)
{
	return (OutboxEndpoint) {
		.url = target, .network = network, .timeout = 10 * SECOND, .connect_timeout = 5 * SECOND, .response_kept = 1024
	};
}

static int
script_named(const char *what)
{
	for (int i = 0; i < N_CASES; i++)
		if (strcmp(cases[i].what, what) == 0)
			return i;
	abort();
}

static char *line_texts[] = {(char[]) {"webhook-id: 42"}, (char[]) {"Content-Type: application/json"}, (char[]) {"X-Empty: "}};
static OutboxRequestHeaders lines = {.n = 3, .lines = line_texts};

#define BODY "{\"test\": 2432232314}"

static OutboxExchange *
start(OutboxHttp *http, const OutboxEndpoint *endpoint)
{
	OutboxExchange *exchange = outbox_exchange_create();

	exchange->endpoint = endpoint;
	exchange->headers = &lines;
	exchange->body = BODY;
	exchange->size = strlen(BODY);
	outbox_http_start(http, exchange);
	return exchange;
}

/* Waits as the worker does: for the descriptor, or the timer.  NULL: nothing ended within the deadline. */
static OutboxExchange *
await(OutboxHttp *http, int64_t deadline)
{
	for (;;)
	{
		OutboxExchange *exchange = outbox_http_finished(http);
		struct pollfd fd = {.fd = outbox_http_descriptor(http), .events = POLLIN};
		long		timeout = outbox_http_timeout(http);

		if (exchange != NULL || now_us() >= deadline)
			return exchange;
		poll(&fd, 1, timeout < 0 || timeout > 100 ? 100 : (int) timeout);
		outbox_http_work(http, 5000);
	}
}

static OutboxExchange *
exchange_with(OutboxHttp *http, const OutboxEndpoint *endpoint)
{
	OutboxExchange *started = start(http, endpoint);
	OutboxExchange *ended = await(http, now_us() + 30 * SECOND);

	if (ended != started)
	{
		ok(false, "the exchange ends");
		exit(1);
	}
	return ended;
}

/* Lets the machine turn without expecting an end, until the condition holds. */
static bool
work_until(OutboxHttp *http, const atomic_int *counter, int value)
{
	for (int64_t deadline = now_us() + 20 * SECOND; *counter != value && now_us() < deadline;)
	{
		struct pollfd fd = {.fd = outbox_http_descriptor(http), .events = POLLIN};

		poll(&fd, 1, 5);
		outbox_http_work(http, 5000);
	}
	return *counter == value;
}

static bool
mentions(const OutboxExchange *exchange, const char *text)
{
	return strstr(exchange->error, text) != NULL;
}

/*
 * Tests.
 */
static void
test_script(OutboxHttp *http, int i)
{
	const Case *c = &cases[i];
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, i), OUTBOX_NETWORK_PRIVATE);
	OutboxExchange *x;
	bool		good;

	if (c->then == HANG || c->then == DRIP || c->then == FLOOD)
		endpoint.timeout = SECOND / 5;
	x = exchange_with(http, &endpoint);
	good = x->outcome == c->outcome && x->status == c->status && x->retry_after == (c->retry_after < 0 ? -1 : c->retry_after * SECOND) &&
		(c->response == NULL || (x->response_size == c->response_size && memcmp(x->response ? (char *) x->response : "", c->response, c->response_size) == 0)) &&
		x->response_size <= endpoint.response_kept && x->duration > 0 && x->duration < 5 * SECOND;
	ok(good, "%s: %s %d %s", c->what, outbox_outcome_name(x->outcome), x->status, x->error);
	if (mentions(x, "secret") || (x->outcome != OUTBOX_DELIVERED) != (x->error[0] != '\0'))
		ok(false, "%s: error text", c->what);
	outbox_exchange_free(x);
}

static void
test_request(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, 0), OUTBOX_NETWORK_PRIVATE);
	OutboxRequestHeaders none = {0};
	OutboxExchange *x;
	int			before = connections;

	for (int i = 0; i < 20; i++)
		outbox_exchange_free(exchange_with(http, &endpoint));
	ok(connections - before <= 1, "twenty requests in a row share a connection");
	ok(strncmp(last_request, "POST /0?token=secret HTTP/1.1\r\n", 31) == 0, "POST, path and query as given");
	ok(strstr(last_request, "\r\nwebhook-id: 42\r\n") && strstr(last_request, "\r\nX-Empty:\r\n") &&
	   strstr(last_request, "\r\nContent-Type: application/json\r\n"), "the event's lines, an empty one too");
	ok(strstr(last_request, "\r\nUser-Agent: outbox/test\r\n") && !strstr(last_request, "Expect:") && !strstr(last_request, "Accept-Encoding"),
	   "our User-Agent, no Expect, no Accept-Encoding");
	ok(strcmp(strstr(last_request, "\r\n\r\n") + 4, BODY) == 0, "the body, byte for byte");

	x = outbox_exchange_create();
	x->endpoint = &endpoint;
	x->headers = &none;
	outbox_http_start(http, x);
	x = await(http, now_us() + 10 * SECOND);
	ok(x != NULL && x->outcome == OUTBOX_DELIVERED && strstr(last_request, "\r\nContent-Length: 0\r\n") && !strstr(last_request, "Content-Type"),
	   "no lines, no body: Content-Length 0, and no Content-Type invented");
	outbox_exchange_free(x);
}

static void
test_response_kept(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, 0), OUTBOX_NETWORK_PRIVATE);
	OutboxExchange *x;

	endpoint.response_kept = 3;
	x = exchange_with(http, &endpoint);
	ok(x->response_size == 3 && memcmp(x->response, "hel", 3) == 0, "no more than response_kept bytes are kept");
	outbox_exchange_free(x);
	endpoint.response_kept = 0;
	x = exchange_with(http, &endpoint);
	ok(x->response_size == 0 && x->response == NULL && x->outcome == OUTBOX_DELIVERED, "none, if none are wanted");
	outbox_exchange_free(x);
}

static void
test_refused(OutboxHttp *http)
{
	uint16_t	port;
	int			fd = listen_on_loopback(&port);
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", port, 0), OUTBOX_NETWORK_PRIVATE);
	OutboxExchange *x;

	close(fd);					/* nobody listens there now */
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_CONNECT && mentions(x, "connection refused") && mentions(x, "http://127.0.0.1:") && !mentions(x, "token"),
	   "refused: %s", x->error);
	outbox_exchange_free(x);
}

typedef struct Refusal
{
	const char *format;			/* one %d: the port */
	OutboxOutcome outcome;
	const char *text;
} Refusal;

static const Refusal refusals[] = {
	/* loopback, in every spelling */
	{"https://127.0.0.1:%d/", OUTBOX_BLOCKED, "loopback (network = public)"},
	{"https://127.0.0.1.:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://127.255.255.254:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://localhost:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://LOCALHOST:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://localhost.:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://foo.localhost:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://loc%%61lhost:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://2130706433:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://2130706433.:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://0x7f000001:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://0X7F000001:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://0x7f.1:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://0x7f.0x0.0x0.0x1:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://0177.0.0.1:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://0177.1:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://017700000001:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://00000177.0.0.01:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://127.1:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://127.0.1:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://127.65530:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://%%31%%32%%37.0.0.1:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://127.0.0%%2e1:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://\uff11\uff12\uff17.0.0.1:%d/", OUTBOX_BLOCKED, "https://?????????.0.0.1: address refused: loopback"},
	{"https://127\u30020\u30020\u30021:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[::1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[0:0:0:0:0:0:0:1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[0000:0000:0000:0000:0000:0000:0000:0001]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[::1%%25lo]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[::1%%lo]:%d/", OUTBOX_BLOCKED, "loopback"},
	/* an IPv4 address in an IPv6 one */
	{"https://[::ffff:127.0.0.1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[::ffff:7f00:1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[0:0:0:0:0:FFFF:127.0.0.1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[::127.0.0.1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[::7f00:1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[::ffff:0:127.0.0.1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[64:ff9b::127.0.0.1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[64:ff9b::a9fe:a9fe]:%d/", OUTBOX_BLOCKED, "link-local"},
	{"https://[64:ff9b:1::7f00:1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[2002:7f00:1::1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[2002:c000:9::1]:%d/", OUTBOX_BLOCKED, "6to4"},
	{"https://[2001:0:7f00:1::ffff:ffff]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[2001:0:c000:9::80ff:fffe]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[2606:4700::5efe:127.0.0.1]:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://[2606:4700::200:5efe:a00:1]:%d/", OUTBOX_BLOCKED, "private"},
	{"https://[fe80::5efe:127.0.0.1]:%d/", OUTBOX_BLOCKED, "loopback"},
	/* other places that are not the public network */
	{"https://0:%d/", OUTBOX_BLOCKED, "unspecified"},
	{"https://0.0.0.0:%d/", OUTBOX_BLOCKED, "unspecified"},
	{"https://0x0:%d/", OUTBOX_BLOCKED, "unspecified"},
	{"https://[::]:%d/", OUTBOX_BLOCKED, "unspecified"},
	{"https://10.0.0.1:%d/", OUTBOX_BLOCKED, "private"},
	{"https://10.1:%d/", OUTBOX_BLOCKED, "private"},
	{"https://012.1:%d/", OUTBOX_BLOCKED, "private"},
	{"https://172.16.0.1:%d/", OUTBOX_BLOCKED, "private"},
	{"https://3232235777:%d/", OUTBOX_BLOCKED, "private"},
	{"https://192.168.257:%d/", OUTBOX_BLOCKED, "private"},
	{"https://100.100.100.200:%d/", OUTBOX_BLOCKED, "shared (CGNAT)"},
	{"https://169.254.169.254:%d/", OUTBOX_BLOCKED, "link-local"},
	{"https://2852039166:%d/", OUTBOX_BLOCKED, "link-local"},
	{"https://0xa9fea9fe:%d/", OUTBOX_BLOCKED, "link-local"},
	{"https://0251.0376.0251.0376:%d/", OUTBOX_BLOCKED, "link-local"},
	{"https://192.0.0.8:%d/", OUTBOX_BLOCKED, "protocol assignment"},
	{"https://198.18.0.1:%d/", OUTBOX_BLOCKED, "benchmarking"},
	{"https://203.0.113.1:%d/", OUTBOX_BLOCKED, "documentation"},
	{"https://224.0.0.1:%d/", OUTBOX_BLOCKED, "multicast"},
	{"https://255.255.255.255:%d/", OUTBOX_BLOCKED, "broadcast"},
	{"https://[fd00:ec2::254]:%d/", OUTBOX_BLOCKED, "unique local"},
	{"https://[fe80::1%%25eth0]:%d/", OUTBOX_BLOCKED, "link-local"},
	{"https://[fec0::1]:%d/", OUTBOX_BLOCKED, "site-local"},
	{"https://[ff02::1]:%d/", OUTBOX_BLOCKED, "multicast"},
	{"https://[3fff::1]:%d/", OUTBOX_BLOCKED, "documentation"},
	/* names that lead there */
	{"https://elsewhere.test:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://loopback-6.test:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://mapped.test:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://compatible.test:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://nat64.test:%d/", OUTBOX_BLOCKED, "link-local"},
	{"https://6to4.test:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://teredo.test:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://isatap.test:%d/", OUTBOX_BLOCKED, "loopback"},
	{"https://internal.test:%d/", OUTBOX_BLOCKED, "address refused"},
	{"https://metadata.test:%d/", OUTBOX_BLOCKED, "address refused"},
	/* schemes and ports */
	{"http://127.0.0.1:%d/", OUTBOX_BLOCKED, "scheme refused"},
	{"http://public.test:%d/", OUTBOX_BLOCKED, "scheme refused"},
	{"https://public.test:1/%d", OUTBOX_BLOCKED, "port refused"},
	{"https://public.test/%d", OUTBOX_BLOCKED, "port refused"},
	/* user names, and URLs that two parsers may read in two ways */
	{"https://user@127.0.0.1:%d/", OUTBOX_BAD_REQUEST, "user name or password"},
	{"https://user:secret@127.0.0.1:%d/", OUTBOX_BAD_REQUEST, "user name or password"},
	{"https://public.test:443@127.0.0.1:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://public.test%%2f@127.0.0.1:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://@127.0.0.1:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://127.0.0.1:%d#@public.test/", OUTBOX_BLOCKED, "loopback"},
	{"https://127.0.0.1:%d?@public.test/", OUTBOX_BLOCKED, "loopback"},
	{"https://127.0.0.1:%d\\@public.test/", OUTBOX_BAD_REQUEST, ""},
	{"https://public.test\\@127.0.0.1:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://127.0.0.1\\.public.test:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://public.test:443:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://%%ff%%0a127.0.0.1:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://127.0.0.1%%00.public.test:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https:/127.0.0.1:%d/", OUTBOX_BLOCKED, ""},
	{"https:///127.0.0.1:%d/", OUTBOX_BLOCKED, ""},
	{"https:////127.0.0.1:%d/", OUTBOX_BAD_REQUEST, ""},
	{" https://127.0.0.1:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://127.0.0.1 :%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://127.0.0.1\t:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://[::ffff:0x7f.1]:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://[127.0.0.1]:%d/", OUTBOX_BAD_REQUEST, ""},
	{"https://127.0.0.1:%d\r\nX: y/", OUTBOX_BAD_REQUEST, ""},
	{"https://:%d/", OUTBOX_BAD_REQUEST, ""},
	{"file:///etc/passwd?%d", OUTBOX_BAD_REQUEST, ""},
	{"gopher://127.0.0.1:%d/", OUTBOX_BAD_REQUEST, "neither"},
	{"ftp://127.0.0.1:%d/", OUTBOX_BAD_REQUEST, "neither"},
	{"127.0.0.1:%d", OUTBOX_BAD_REQUEST, ""},
	{"%d", OUTBOX_BAD_REQUEST, ""},
};

/* Whatever the spelling, nothing is dialled. */
static void
test_public_policy(OutboxHttp *http)
{
	int			before = connections;

	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
	{
		char		target[128];
		OutboxEndpoint endpoint = endpoint_of(target, OUTBOX_NETWORK_PUBLIC);
		int			dialled = dials;
		OutboxExchange *x;

		snprintf(target, sizeof(target), refusals[i].format, plain_server.port);
		endpoint.ports = &plain_server.port;
		endpoint.n_ports = 1;
		x = exchange_with(http, &endpoint);
		ok(x->outcome == refusals[i].outcome && mentions(x, refusals[i].text) && !mentions(x, "secret") && x->status == 0 && dials == dialled,
		   "%.*s: %s", (int) strcspn(target, "\r"), target, x->error);
		outbox_exchange_free(x);
	}
	ok(connections == before, "and nothing arrived at the listener");
}

/* What public may reach, it reaches; of an answer that mixes, that part and no other; and a name is judged by what it is now. */
static void
test_public_names(const char *pem)
{
	static const struct
	{
		const char *url;
		bool		rebound;
		OutboxOutcome outcome;
		int			dials;
	}			steps[] = {
		{"https://public.test/0", false, OUTBOX_DELIVERED, 1},
		{"https://mixed.test/0", false, OUTBOX_DELIVERED, 1},
		{"https://mixed-6.test/0", false, OUTBOX_DELIVERED, 1},
		{"https://rebinding.test/0", false, OUTBOX_DELIVERED, 1},
		{"https://rebinding.test/0", true, OUTBOX_BLOCKED, 0},
		{"https://rebinding.test/0", false, OUTBOX_DELIVERED, 1},
	};
	static const uint16_t https = 443;

	public_port = tls_server.port;
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
	{
		OutboxHttp *http = create_http();	/* knows no names yet */
		OutboxEndpoint endpoint = endpoint_of(steps[i].url, OUTBOX_NETWORK_PUBLIC);
		int			before = dials;
		OutboxExchange *x;

		endpoint.ports = &https;
		endpoint.n_ports = 1;
		endpoint.ca = pem;
		rebound = steps[i].rebound;
		x = exchange_with(http, &endpoint);
		ok(x->outcome == steps[i].outcome && dials - before == steps[i].dials && (steps[i].dials == 0 || strcmp(last_dialled, PUBLIC) == 0),
		   "%s%s: %s after %d dialled %s", steps[i].url, rebound ? ", rebound" : "", outbox_outcome_name(x->outcome), dials - before, x->error);
		outbox_exchange_free(x);
		outbox_http_free(http);
	}
}

static void
test_tls(OutboxHttp *http, const char *pem)
{
	OutboxEndpoint endpoint = endpoint_of(url("https", "localhost", tls_server.port, 0), OUTBOX_NETWORK_PRIVATE);
	char		target[128];
	OutboxExchange *x = exchange_with(http, &endpoint);
	int			before;

	ok(x->outcome == OUTBOX_TLS, "an unknown certificate: %s", x->error);
	outbox_exchange_free(x);

	endpoint.ca = pem;
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_DELIVERED, "trusted by the endpoint's own bundle %s", x->error);
	outbox_exchange_free(x);
	before = requests;

	/* the connection just opened is in the pool, and must not serve another policy */
	endpoint.network = OUTBOX_NETWORK_PUBLIC;
	endpoint.ports = &tls_server.port;
	endpoint.n_ports = 1;
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_BLOCKED && mentions(x, "loopback") && requests == before, "a private connection is not re-used for public: %s", x->error);
	outbox_exchange_free(x);

	/* nor for an endpoint that trusts somebody else */
	endpoint.network = OUTBOX_NETWORK_PRIVATE;
	endpoint.ca = NULL;
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_TLS && requests == before, "a bundle is an endpoint's own: %s", x->error);
	outbox_exchange_free(x);

	endpoint.ca = "no PEM at all";
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_TLS, "a bundle that is none: %s", x->error);
	outbox_exchange_free(x);

	snprintf(target, sizeof(target), "https://127.0.0.1:%d/0", tls_server.port);
	endpoint = endpoint_of(target, OUTBOX_NETWORK_PRIVATE);
	endpoint.ca = pem;
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_TLS, "a certificate for another host: %s", x->error);
	outbox_exchange_free(x);

	snprintf(target, sizeof(target), "https://127.0.0.1:%d/0", plain_server.port);
	endpoint.connect_timeout = SECOND / 5;
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_TIMEOUT, "a handshake that hangs: %s", x->error);
	outbox_exchange_free(x);
}

/* Whom not to trust, and how an operator can tell one from another. */
static void
test_distrust(OutboxHttp *http)
{
	static const struct
	{
		const char *what;
		Certificate certificate;
		const char *text;
	}			cases[] = {
		{"expired", {"localhost", -7200, -3600, 0, false}, "certificate has expired"},
		{"not yet valid", {"localhost", 3600, 7200, 0, false}, "certificate is not yet valid"},
		{"of another host", {"elsewhere.test", -3600, 3600, 0, false}, "the certificate is not for this host"},
		{"TLS 1.1", {"localhost", -3600, 3600, TLS1_1_VERSION, false}, "neither TLS 1.2 nor newer"},
		{"TLS 1.0", {"localhost", -3600, 3600, TLS1_VERSION, false}, "neither TLS 1.2 nor newer"},
		{"wants a client certificate, TLS 1.2", {"localhost", -3600, 3600, TLS1_2_VERSION, true}, "the receiver broke off the handshake"},
		{"wants a client certificate, TLS 1.3", {"localhost", -3600, 3600, TLS1_3_VERSION, true}, "the receiver wants a client certificate"},
		{"TLS 1.2", {"localhost", -3600, 3600, TLS1_2_VERSION, false}, NULL},
		{"TLS 1.3", {"localhost", -3600, 3600, TLS1_3_VERSION, false}, NULL},
	};
	static const struct
	{
		const char *what;
		const char *bytes;
		size_t		size;
		const char *text;
	}			strangers[] = {
		{"plain HTTP", TEXT("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), "does not speak TLS"},
		{"an SSH server", TEXT("SSH-2.0-OpenSSH_9.2\r\n"), "does not speak TLS"},
		{"a protocol version alert", TEXT("\x15\x03\x03\x00\x02\x02\x46"), "neither TLS 1.2 nor newer"},
		{"a handshake failure alert", TEXT("\x15\x03\x03\x00\x02\x02\x28"), "the receiver broke off the handshake"},
		{"an internal error alert", TEXT("\x15\x03\x03\x00\x02\x02\x50"), "tlsv1 alert internal error"},
		{"a ServerHello of TLS 1.1", TEXT("\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02" "0123456789abcdef0123456789abcdef" "\x00\x00\x2f\x00"), "neither TLS 1.2 nor newer"},
		{"garbage in a record", TEXT("\x16\x03\x03\x00\x08" "garbage!"), ""},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		Server	   *server = calloc(1, sizeof(*server));	/* its thread stays */
		char	   *pem;
		OutboxEndpoint endpoint;
		OutboxExchange *x;

		start_server(server, create_tls(&cases[i].certificate, &pem));
		endpoint = endpoint_of(url("https", "localhost", server->port, 0), OUTBOX_NETWORK_PRIVATE);
		endpoint.ca = pem;
		x = exchange_with(http, &endpoint);
		if (cases[i].text == NULL)
			ok(x->outcome == OUTBOX_DELIVERED, "%s: fine %s", cases[i].what, x->error);
		else
			ok(x->outcome == OUTBOX_TLS && mentions(x, cases[i].text), "%s: %s %s", cases[i].what, outbox_outcome_name(x->outcome), x->error);
		outbox_exchange_free(x);
		free(pem);
	}
	for (size_t i = 0; i < sizeof(strangers) / sizeof(strangers[0]); i++)
	{
		Server	   *server = calloc(1, sizeof(*server));
		OutboxEndpoint endpoint;
		OutboxExchange *x;

		server->greeting = strangers[i].bytes;
		server->greeting_size = strangers[i].size;
		start_server(server, NULL);
		endpoint = endpoint_of(url("https", "localhost", server->port, 0), OUTBOX_NETWORK_PRIVATE);
		x = exchange_with(http, &endpoint);
		ok(x->outcome == OUTBOX_TLS && mentions(x, strangers[i].text), "%s: %s %s", strangers[i].what, outbox_outcome_name(x->outcome), x->error);
		outbox_exchange_free(x);
	}
}

static void
test_environment(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, 1), OUTBOX_NETWORK_PRIVATE);
	OutboxExchange *x;

	setenv("http_proxy", "http://127.0.0.1:1", 1);
	setenv("https_proxy", "http://127.0.0.1:1", 1);
	setenv("ALL_PROXY", "http://127.0.0.1:1", 1);
	unsetenv("no_proxy");
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_DELIVERED && strstr(last_request, "POST /1?") == last_request, "proxy variables are ignored %s", x->error);
	outbox_exchange_free(x);
}

/* MANY requests at once to a name that nobody knows yet: one thread resolves it. */
static void
test_one_resolution(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "slow.test", plain_server.port, 1), OUTBOX_NETWORK_PRIVATE);
	int			before = resolutions;
	int			delivered = 0;

	hold_names(true);
	for (int i = 0; i < MANY; i++)
		start(http, &endpoint);
	ok(work_until(http, &resolutions, before + 1), "a resolution begins");
	for (int i = 0; i < 20; i++)
		outbox_http_work(http, 1000);
	hold_names(false);
	for (int i = 0; i < MANY; i++)
	{
		OutboxExchange *x = await(http, now_us() + 20 * SECOND);

		delivered += x != NULL && x->outcome == OUTBOX_DELIVERED;
		outbox_exchange_free(x);
	}
	ok(delivered == MANY && outbox_http_in_flight(http) == 0, "all %d are delivered", MANY);
	ok(resolutions == before + 1, "one resolution for all of them");
	ok(!signals_were_open, "signals are blocked in resolver threads");
}

static void
test_unknown_name(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "unknown.test", plain_server.port, 1), OUTBOX_NETWORK_PRIVATE);
	int			failed = 0;

	ignore_leaks(true);			/* libcurl 8.14.1 loses some of the names that are not found */
	for (int i = 0; i < MANY; i++)
		start(http, &endpoint);
	for (int i = 0; i < MANY; i++)
	{
		OutboxExchange *x = await(http, now_us() + 20 * SECOND);

		failed += x != NULL && x->outcome == OUTBOX_DNS;
		if (i == 0 && x != NULL)
			ok(!mentions(x, "token"), "unknown name: %s", x->error);
		outbox_exchange_free(x);
	}
	ok(failed == MANY, "an unknown name fails all %d that wait for it", MANY);
	ignore_leaks(false);
}

/* One name hangs; another is served meanwhile; those that wait for the first time out. */
static void
test_hanging_name(OutboxHttp *http)
{
	OutboxEndpoint hanging_one = endpoint_of("http://slow-too.test:1/", OUTBOX_NETWORK_PRIVATE);
	OutboxEndpoint other = endpoint_of(url("http", "127.0.0.1", plain_server.port, 1), OUTBOX_NETWORK_PRIVATE);
	int			before = resolutions;
	int			timed_out = 0;
	OutboxExchange *x;

	hold_names(true);
	hanging_one.connect_timeout = SECOND / 3;
	for (int i = 0; i < MANY; i++)
		start(http, &hanging_one);
	start(http, &other);
	x = await(http, now_us() + 20 * SECOND);
	ok(x != NULL && x->endpoint == &other && x->outcome == OUTBOX_DELIVERED, "a hanging name holds up nobody else");
	outbox_exchange_free(x);
	for (int i = 0; i < MANY; i++)
	{
		x = await(http, now_us() + 20 * SECOND);
		timed_out += x != NULL && x->outcome == OUTBOX_TIMEOUT && x->duration < 5 * SECOND;
		outbox_exchange_free(x);
	}
	ok(timed_out == MANY, "all that wait for it time out");
	ok(resolutions - before <= 2, "and did not start a thread each");
	hold_names(false);
}

/* Free with requests in every state, a hanging resolver among them. */
static void
test_free(void)
{
	OutboxHttp *http = create_http();
	char		silent[128];
	OutboxEndpoint slow = endpoint_of("http://slow-again.test:1/", OUTBOX_NETWORK_PRIVATE);
	OutboxEndpoint silent_one = endpoint_of(silent, OUTBOX_NETWORK_PRIVATE);
	OutboxEndpoint done = endpoint_of("nonsense", OUTBOX_NETWORK_PRIVATE);
	OutboxExchange *all[3 * MANY];
	int			before = resolutions;
	int64_t		began;

	snprintf(silent, sizeof(silent), "http://127.0.0.1:%d/%d", plain_server.port, script_named("silence"));
	hold_names(true);
	for (int i = 0; i < MANY; i++)
	{
		all[3 * i] = start(http, &slow);
		all[3 * i + 1] = start(http, &silent_one);
		all[3 * i + 2] = start(http, &done);
	}
	ok(outbox_http_in_flight(http) == 3 * MANY, "%d in flight", 3 * MANY);
	ok(work_until(http, &hanging, MANY) && work_until(http, &resolutions, before + 1), "all hang");
	began = now_us();
	outbox_http_free(http);
	ok(now_us() - began < SECOND / 20, "free returns at once");
	for (int i = 0; i < 3 * MANY; i++)
		outbox_exchange_free(all[i]);
	hold_names(false);
	outbox_http_free(NULL);
}

/* The server closes an idle connection; the next request finds out, and goes over a new one. */
static void
test_connection_gone(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, 3), OUTBOX_NETWORK_PRIVATE);
	int			delivered = 0;

	for (int i = 0; i < 10; i++)
	{
		OutboxExchange *x = exchange_with(http, &endpoint);

		delivered += x->outcome == OUTBOX_DELIVERED;
		outbox_exchange_free(x);
	}
	ok(delivered == 10, "connections that the server closes are replaced");
}

/* A connection that is closed while nobody uses it wakes us once, not for ever. */
static void
test_idle(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, script_named("204, and closed")), OUTBOX_NETWORK_PRIVATE);
	struct pollfd fd = {.fd = outbox_http_descriptor(http), .events = POLLIN};
	int			quiet = 0;

	for (int i = 0; i < 20; i++)
	{
		outbox_exchange_free(exchange_with(http, &endpoint));
		for (int64_t deadline = now_us() + SECOND; now_us() < deadline && poll(&fd, 1, 10) == 1;)
			outbox_http_work(http, 5000);
		quiet += poll(&fd, 1, 0) == 0;
	}
	ok(quiet == 20, "connections that nobody uses keep nobody awake");
}

/* What lies in a connection before a request is sent is not its answer. */
static void
test_unasked(OutboxHttp *http)
{
	int			script = script_named("a failure, and a success that nobody asked for");
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, script), OUTBOX_NETWORK_PRIVATE);
	int			before = requests;
	int			failed = 0;

	for (int i = 0; i < 20; i++)
	{
		OutboxExchange *x = exchange_with(http, &endpoint);

		failed += x->outcome == OUTBOX_HTTP_5XX;
		outbox_exchange_free(x);
	}
	ok(failed == 20 && requests - before == 20, "an answer that came before its request is not taken for one");
}

/* curl #11101: libcurl before 8.1.1 appends such a line to a field of the answer that the handle had before, which is freed.  Without our guard this crashes, at the latest with SANITIZE=1. */
static void
test_folded(OutboxHttp *http, const char *name)
{
	int			ended = 0;

	for (int i = 0; i < 20; i++)
	{
		OutboxEndpoint good = endpoint_of(url("http", "127.0.0.1", plain_server.port, 0), OUTBOX_NETWORK_PRIVATE);
		OutboxExchange *x = exchange_with(http, &good);
		OutboxEndpoint bad;

		outbox_exchange_free(x);
		bad = endpoint_of(url("http", "127.0.0.1", plain_server.port, script_named(name)), OUTBOX_NETWORK_PRIVATE);
		x = exchange_with(http, &bad);
		ended += x->outcome == OUTBOX_DELIVERED || x->outcome == OUTBOX_PROTOCOL;	/* as the version of libcurl likes */
		outbox_exchange_free(x);
	}
	ok(ended == 20, "%s", name);
}

/* Nobody asked for it, so nobody may answer so (RFC 9112 §6.1). Older libcurls look at the header section only. */
static void
test_unknown_coding(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, script_named("an unknown transfer coding")), OUTBOX_NETWORK_PRIVATE);
	OutboxExchange *x = exchange_with(http, &endpoint);

	ok((x->outcome == OUTBOX_DELIVERED && x->status == 200) || (x->outcome == OUTBOX_PROTOCOL && x->status == 0),
	   "an unknown transfer coding: %s %d %s", outbox_outcome_name(x->outcome), x->status, x->error);
	outbox_exchange_free(x);
}

/* A receiver that takes the connection and never reads. */
static void
test_deaf(OutboxHttp *http)
{
	uint16_t	port;
	int			fd = listen_on_loopback(&port);
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", port, 0), OUTBOX_NETWORK_PRIVATE);
	OutboxExchange *x = outbox_exchange_create();
	void	   *body = calloc(16, 1024 * 1024);

	endpoint.timeout = SECOND / 5;
	x->endpoint = &endpoint;
	x->headers = &lines;
	x->body = body;
	x->size = 16 * 1024 * 1024;
	outbox_http_start(http, x);
	ok(await(http, now_us() + 20 * SECOND) == x && x->outcome == OUTBOX_TIMEOUT, "a receiver that never reads: %s", x->error);
	outbox_exchange_free(x);
	free(body);
	close(fd);
}

/* A resolution that was given up goes on in its thread: it keeps its place, or threads would pile up behind a name server that is silent. */
static void
test_abandoned_names(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "slow-for-long.test", plain_server.port, 1), OUTBOX_NETWORK_PRIVATE);
	int			before = resolutions;
	int			timed_out = 0;
	OutboxExchange *x;

	hold_names(true);
	endpoint.connect_timeout = SECOND / 10;
	for (int i = 0; i < 20; i++)
	{
		x = exchange_with(http, &endpoint);
		timed_out += x->outcome == OUTBOX_TIMEOUT;
		outbox_exchange_free(x);
	}
	ok(timed_out == 20, "all time out");
	ok(resolutions - before == 1, "twenty attempts, one after the other, started %d threads", resolutions - before);
	hold_names(false);
	endpoint.connect_timeout = 9 * SECOND;
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_DELIVERED && resolutions - before == 2, "later the name is asked for again %s", x->error);
	outbox_exchange_free(x);
}

/* Descriptors: whatever is asked of it, http leaves some to the process it lives in.  Lowers the limit for good. */
static void
test_descriptors(void)
{
	struct rlimit limit = {.rlim_cur = 200, .rlim_max = 200};
	OutboxHttp *http;
	uint16_t	port;
	int			listener = listen_on_loopback(&port);
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", port, 0), OUTBOX_NETWORK_PRIVATE);
	int			spare[64];
	int			n_spare = 0;
	int			refused = 0;
	int			hung = 0;

	setrlimit(RLIMIT_NOFILE, &limit);
	http = create_http();
	endpoint.timeout = SECOND;
	for (int i = 0; i < 300; i++)
		start(http, &endpoint);
	for (int i = 0; i < 50; i++)
		outbox_http_work(http, 5000);
	while (n_spare < 64 && (spare[n_spare] = open("/dev/null", O_RDONLY)) >= 0)
		n_spare++;
	ok(n_spare == 64, "%d descriptors are left", n_spare);
	while (n_spare > 0)
		close(spare[--n_spare]);
	for (int i = 0; i < 300; i++)
	{
		OutboxExchange *x = await(http, now_us() + 20 * SECOND);

		refused += x != NULL && x->outcome == OUTBOX_CONNECT && mentions(x, "too many open files here");
		hung += x != NULL && x->outcome == OUTBOX_TIMEOUT;
		outbox_exchange_free(x);
	}
	ok(refused >= 200 && hung > 0 && refused + hung == 300 && outbox_http_in_flight(http) == 0, "%d of 300 found no descriptor, %d one", refused, hung);
	outbox_http_free(http);
	close(listener);
}

/* The machinery fails under everybody: all end, and when it is whole again, so are we. */
static void
test_engine_failure(OutboxHttp *http)
{
	/* silence, or an answer might come before libcurl wants to wait for it */
	OutboxEndpoint endpoint = endpoint_of(url("http", "127.0.0.1", plain_server.port, script_named("silence")), OUTBOX_NETWORK_PRIVATE);
	int			fd = outbox_http_descriptor(http);
	int			kept = dup(fd);
	int			null = open("/dev/null", O_RDONLY);
	int			failed = 0;
	OutboxExchange *x;

	dup2(null, fd);				/* no epoll any more: libcurl's socket callback reports an error */
	close(null);
	for (int i = 0; i < MANY; i++)
		start(http, &endpoint);
	for (int i = 0; i < MANY; i++)
	{
		x = await(http, now_us() + 20 * SECOND);
		failed += x != NULL && x->outcome == OUTBOX_CONNECT;
		if (i == 0 && x != NULL)
			ok(mentions(x, "transfer engine failed"), "the engine fails: %s", x->error);
		outbox_exchange_free(x);
	}
	ok(failed == MANY && outbox_http_in_flight(http) == 0, "everything in flight ends");
	dup2(kept, fd);
	close(kept);
	endpoint.url = url("http", "127.0.0.1", plain_server.port, 0);
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_DELIVERED, "and the next request is delivered %s", x->error);
	outbox_exchange_free(x);
}

/* It cannot be made anew either: who waits for a name waits no longer for that. */
static void
test_no_engine(OutboxHttp *http)
{
	OutboxEndpoint silent = endpoint_of(url("http", "127.0.0.1", plain_server.port, script_named("silence")), OUTBOX_NETWORK_PRIVATE);
	OutboxEndpoint slow = endpoint_of("http://slow-engine.test:1/", OUTBOX_NETWORK_PRIVATE);
	int			fd = outbox_http_descriptor(http);
	int			kept = dup(fd);
	int			null = open("/dev/null", O_RDONLY);
	int			before = resolutions;
	int			failed = 0;
	OutboxExchange *x;

	slow.connect_timeout = SECOND;
	hold_names(true);
	start(http, &slow);
	start(http, &slow);
	ok(work_until(http, &resolutions, before + 1), "one resolves, one waits");
	no_multi = true;
	dup2(null, fd);
	close(null);
	start(http, &silent);		/* over the connection that there is */
	start(http, &silent);		/* wants a new one */
	for (int i = 0; i < 4; i++)
	{
		x = await(http, now_us() + 20 * SECOND);
		failed += x != NULL && x->outcome == (i < 3 ? OUTBOX_CONNECT : OUTBOX_TIMEOUT);
		outbox_exchange_free(x);
	}
	ok(failed == 4 && outbox_http_in_flight(http) == 0, "without an engine all end too, one that waits for a name in time");
	no_multi = false;
	dup2(kept, fd);
	close(kept);
	hold_names(false);
	silent.url = url("http", "127.0.0.1", plain_server.port, 0);
	x = exchange_with(http, &silent);
	ok(x->outcome == OUTBOX_DELIVERED, "and with a new one the next request is delivered %s", x->error);
	outbox_exchange_free(x);
}

/* Nobody's fault, and passes: not what a malformed URL is. */
static void
test_no_memory(OutboxHttp *http)
{
	OutboxEndpoint endpoint = endpoint_of(url("http", "new-name.test", plain_server.port, 0), OUTBOX_NETWORK_PRIVATE);
	OutboxExchange *x;

	no_url = true;
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_CONNECT && mentions(x, "out of memory"), "no memory for the URL: %s", x->error);
	outbox_exchange_free(x);
	no_url = false;
	x = exchange_with(http, &endpoint);
	ok(x->outcome == OUTBOX_DELIVERED, "and then there is %s", x->error);
	outbox_exchange_free(x);
}

int
main(void)
{
	char	   *pem;
	OutboxHttp *http;

	setvbuf(stdout, NULL, _IOLBF, 0);
	setlocale(LC_ALL, "C.UTF-8");	/* with it libcurl understands international names */
	start_server(&tls_server, create_tls(&(Certificate) {.host = "localhost,DNS:public.test,DNS:mixed.test,DNS:mixed-6.test,DNS:rebinding.test", .begins = -3600, .ends = 3600}, &pem));
	start_server(&plain_server, NULL);
	http = create_http();

	ok(outbox_http_timeout(http) == -1 && outbox_http_finished(http) == NULL && outbox_http_in_flight(http) == 0, "idle");
	test_request(http);
	for (int i = 0; i < N_CASES; i++)
		if (cases[i].outcome != 0 || cases[i].status != 0)
			test_script(http, i);
	test_folded(http, "a folded line before any field");
	test_folded(http, "the same behind an interim answer");
	test_unknown_coding(http);
	test_response_kept(http);
	test_refused(http);
	test_connection_gone(http);
	test_idle(http);
	test_unasked(http);
	test_deaf(http);
	test_public_policy(http);
	test_public_names(pem);
	test_tls(http, pem);
	test_distrust(http);
	test_environment(http);
	test_one_resolution(http);
	test_unknown_name(http);
	test_hanging_name(http);
	test_abandoned_names(http);
	test_engine_failure(http);
	test_no_engine(http);
	test_no_memory(http);
	outbox_http_free(http);
	test_free();
	test_descriptors();
	free(pem);
	return done_testing();
}
