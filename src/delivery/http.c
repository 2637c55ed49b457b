/*
 * HTTP: takes a request, gives an exchange back.
 *
 * libcurl's multi interface, driven by socket events from a private epoll whose descriptor the worker waits on along with its latch.  The far side is
 * whatever somebody wrote into a URL, so it is treated as hostile: what it may send is bounded in lines, bytes and time; where it may be is judged
 * on every connect and every re-use (address.h), after name resolution; its redirects, cookies and compressions are ignored.
 *
 * What never happens here: blocking; a longjmp (callbacks run inside libcurl, whose state would be left half changed); an allocation whose size the far
 * side chooses; a URL's path, a header value or a body in an error text.
 *
 * Once the header section of a final answer is complete, its status decides, whatever becomes of the body: too long, cut off, or too slow.  The receiver
 * has spoken; to repeat a 2xx whose body broke would only make duplicates.
 *
 * Life of a transfer, one per easy handle:
 *
 *	IDLE -> STARTING -> RUNNING -> IDLE		the pool; fixed options are set once, an endpoint's only when another endpoint has its turn
 *						RUNNING -> WAITING -> RUNNING	it needs a name resolved that another transfer is just resolving
 *
 * WAITING exists because libcurl 7.88 starts one thread for each handle that needs a name, also when a hundred need the same one, and keeps answers for
 * DNS_CACHE_TIMEOUT only.  The resolver-start callback, which is called only for what neither the connection pool nor the cache can answer, lets
 * one transfer per origin through and aborts the others; they start again when that one has its answer, and then find it in the cache.
 */
#include "http.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../compat.h"
#include "../fault.h"

#define MAX_HEADER_LINES 100	/* of one exchange, interim answers and trailers included */
#define MAX_HEADER_BYTES (32 * 1024)
#define MAX_BODY_BYTES (64 * 1024)
#define BUFFER_BYTES 1024L
#define MAX_SHOWN 76			/* bytes of scheme and host in an error text: the rest of it has room for the cause */
#define MAX_RESOLVING 128		/* names in resolution at once: a thread each, or one for each kind of address */
#define THREADS_PER_NAME 4		/* one for each kind of address, and those of a resolution that was given up live longer than its turn */
#define ABANDONED_SECONDS 5		/* so long a resolution that was given up counts as going on: libc may take 10 s and more */
#define MAX_DESCRIPTORS 65536	/* more than anybody needs, should the limit be "none" */
#define DNS_CACHE_SECONDS 60L
#define MAX_IDLE_SECONDS 55L	/* below the minute after which many servers close */
#define MAX_CONNECTION_SECONDS 600L /* new addresses and renewed certificates take effect */
#define N_BUCKETS 256
#define N_EVENTS 64
#define SECOND INT64_C(1000000)

/* Scheme, host and port: what shares names, connections and certificates.  Lives while a transfer, idle or not, refers to it. */
typedef struct Origin
{
	struct Origin *next;		/* in its bucket */
	int			references;
	bool		resolving;		/* one transfer resolves the name, or has been chosen to */
	bool		resolved;		/* the last resolution succeeded and is likely in libcurl's cache */
	bool		https;
	uint16_t	port;
	size_t		shown;			/* so much of the name may be shown: scheme://host */
	char		name[];			/* scheme://host:port */
} Origin;

/* A resolution whose transfer could not wait for it: its thread goes on. */
typedef struct Abandoned
{
	struct Abandoned *next;
	Origin	   *origin;
	int64_t		until;
} Abandoned;

typedef struct Transfer
{
	struct Transfer *next;		/* in the pool, or among the waiting */
	struct Transfer *previous;	/* among the running */
	OutboxHttp *http;
	CURL	   *easy;

	/* what the easy handle is set to */
	char	   *url;			/* NULL: nothing yet */
	Origin	   *origin;			/* NULL: the URL is refused for `refusal` */
	const char *refusal;
	int			network;		/* OutboxNetwork, -1: nothing yet */
	long		timeout_ms;
	long		connect_timeout_ms;
	bool		own_ca;
	struct curl_slist *lines;	/* array, re-used */
	int			n_lines;

	/* this exchange */
	OutboxExchange *exchange;
	int64_t		began;
	bool		resolves;		/* holds its origin's turn */
	bool		postponed;		/* the resolver-start callback sent it to wait */
	bool		dialled;		/* at least one address was permitted */
	bool		asked;			/* connected: the request goes out */
	const char *blocked;		/* why an address was refused */
	const char *bound;			/* which bound the answer broke, or connecting */
	bool		in_section;		/* of header fields: its first line was seen, its end was not */
	int			n_header_lines;
	bool		has_field;		/* libcurl has stored a field of this answer */
	bool		inside_line;	/* on_body() has had the beginning of a header line */
	bool		headers_ended;	/* those of a final answer, or of one that switches protocols */
	size_t		header_bytes;
	size_t		body_bytes;
	int			status;			/* of a final answer with complete header section, else 0 */
	bool		has_retry_after;
	char		retry_after[64];
	char		detail[CURL_ERROR_SIZE];	/* libcurl's own words; may hold what the far side said, so never shown */
} Transfer;

/*
 * How a socket stands in epoll.  libcurl gives one up after each exchange and asks for it again with the next; those that on_open_socket() has made stay registered in between, for that saves
 * three system calls an exchange.  What libcurl opens by itself (a resolver's pair) is told by nobody when it is closed, so that is registered as libcurl says.
 */
typedef struct Watch
{
	uint8_t		ours;			/* until it is closed */
	uint8_t		wanted;			/* CURL_POLL_IN, CURL_POLL_OUT: by libcurl … */
	uint8_t		registered;		/* … and with epoll */
} Watch;

struct OutboxHttp
{
	CURLM	   *multi;			/* NULL: could not be rebuilt yet */
	int			epoll;
	int64_t		timer_at;		/* libcurl's, -1: none */
	bool		broken;			/* the multi handle reported an error */
	bool		folds_are_unsafe;	/* see guard_fold() */
	int			max_connections;
	char	   *user_agent;
	const char *ca_path;		/* libcurl's default directory of certificates, if it has no bundle */

	Transfer   *idle;
	int			n_idle;
	Transfer   *starting;		/* oldest first: for the next turn */
	Transfer  **starting_end;
	Transfer   *running;
	Transfer   *waiting;		/* oldest first */
	Transfer  **waiting_end;
	int			n_resolving;	/* turns taken, those of the abandoned included */
	int			max_resolving;
	Abandoned  *abandoned;		/* oldest first */
	Abandoned **abandoned_end;
	int			max_descriptor; /* no socket of ours has a larger number */
	Watch	   *watches;		/* by descriptor, up to that number */
	int			in_flight;		/* started, not yet handed back */
	void	   *finished;		/* exchanges, linked by `transfer` */
	void	  **finished_end;
	Origin	   *origins[N_BUCKETS];
};

static int64_t
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * SECOND + now.tv_nsec / 1000;
}

/*
 * Signals.  A thread that libcurl starts inherits the mask of the caller; PostgreSQL's handlers must not run in one.  Those of a crash are left alone: while they are blocked the kernel
 * kills without asking the handler, and nobody would know what was being handled (suspect.c).
 */
static void
block_signals(sigset_t *before)
{
	static const int of_crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
	sigset_t	signals;

	sigfillset(&signals);
	for (size_t i = 0; i < sizeof(of_crashes) / sizeof(of_crashes[0]); i++)
		sigdelset(&signals, of_crashes[i]);
	pthread_sigmask(SIG_SETMASK, &signals, before);
}

static void
restore_signals(const sigset_t *before)
{
	pthread_sigmask(SIG_SETMASK, before, NULL);
}

/*
 * Origins.
 */
static unsigned
bucket_of(const char *name)
{
	uint32_t	hash = 2166136261u; /* FNV-1a */

	for (; *name != '\0'; name++)
		hash = (hash ^ (unsigned char) *name) * 16777619u;
	return hash % N_BUCKETS;
}

static Origin *
find_origin(OutboxHttp *http, const char *scheme, const char *host, const char *port)
{
	size_t		shown = strlen(scheme) + 3 + strlen(host);
	size_t		size = shown + 1 + strlen(port) + 1;
	Origin	   *origin = calloc(1, sizeof(*origin) + size);
	Origin	  **at;

	if (origin == NULL)
		return NULL;
	snprintf(origin->name, size, "%s://%s:%s", scheme, host, port);

	for (at = &http->origins[bucket_of(origin->name)]; *at != NULL; at = &(*at)->next)
		if (strcmp((*at)->name, origin->name) == 0)
		{
			free(origin);
			(*at)->references++;
			return *at;
		}
	origin->references = 1;
	origin->https = strcmp(scheme, "https") == 0;
	origin->port = (uint16_t) atoi(port);	/* libcurl has checked it */
	origin->shown = shown;
	*at = origin;
	return origin;
}

static void
release_origin(OutboxHttp *http, Origin *origin)
{
	Origin	  **at;

	if (origin == NULL || --origin->references > 0)
		return;
	for (at = &http->origins[bucket_of(origin->name)]; *at != origin; at = &(*at)->next)
		;
	*at = origin->next;
	free(origin);
}

/* The resolver's turn: one transfer per origin, MAX_RESOLVING in all. */
static bool
take_turn(Transfer *transfer)
{
	if (transfer->resolves)
		return true;
	if (transfer->origin->resolving || transfer->http->n_resolving >= transfer->http->max_resolving)
		return false;
	transfer->resolves = true;
	transfer->origin->resolving = true;
	transfer->http->n_resolving++;
	return true;
}

static void
end_turn(Transfer *transfer)
{
	if (!transfer->resolves)
		return;
	transfer->resolves = false;
	transfer->origin->resolving = false;
	transfer->http->n_resolving--;
}

/*
 * The transfer ends, its resolver thread does not (CURLOPT_QUICK_EXIT).  Its place stays taken for a while: else threads would pile up behind a name server
 * that is silent, one for each attempt.
 */
static void
abandon_turn(Transfer *transfer)
{
	OutboxHttp *http = transfer->http;
	Abandoned  *abandoned;

	if (!transfer->resolves)
		return;
	abandoned = malloc(sizeof(*abandoned));
	if (abandoned == NULL)
		return;					/* it ends with the transfer */
	transfer->resolves = false;
	abandoned->next = NULL;
	abandoned->origin = transfer->origin;
	abandoned->origin->references++;
	abandoned->until = now_us() + ABANDONED_SECONDS * SECOND;
	*http->abandoned_end = abandoned;
	http->abandoned_end = &abandoned->next;
}

static void
end_abandoned(OutboxHttp *http, int64_t until)
{
	Abandoned  *abandoned;

	while ((abandoned = http->abandoned) != NULL && abandoned->until <= until)
	{
		http->abandoned = abandoned->next;
		if (http->abandoned == NULL)
			http->abandoned_end = &http->abandoned;
		abandoned->origin->resolving = false;
		http->n_resolving--;
		release_origin(http, abandoned->origin);
		free(abandoned);
	}
}

/*
 * Callbacks.  They run inside libcurl: no calls back into the multi handle, no waiting.
 */

/* A name is about to be resolved.  Non-zero ends the attempt, which collect() recognises by `postponed`. */
static int
on_resolver_start(void *resolver, void *reserved, void *arg)
{
	Transfer   *transfer = arg;

	(void) resolver;
	(void) reserved;
	transfer->origin->resolved = false; /* or the cache would have answered */
	transfer->postponed = !take_turn(transfer);
	return transfer->postponed;
}

static bool
port_permitted(const OutboxEndpoint *endpoint, int port)
{
	if (endpoint->network == OUTBOX_NETWORK_PRIVATE)
		return true;
	for (int i = 0; i < endpoint->n_ports; i++)
		if (endpoint->ports[i] == port)
			return true;
	return false;
}

/* May this be dialled, or a connection to it be re-used?  Notes why not. */
static bool
permitted(Transfer *transfer, const struct sockaddr *address, size_t size, int port)
{
	const OutboxEndpoint *endpoint = transfer->exchange->endpoint;
	const char *why;

	if (!outbox_address_allowed(address, size, endpoint->network, &why))
	{
		transfer->blocked = why;
		return false;
	}
	if (!port_permitted(endpoint, port))
	{
		transfer->blocked = "port not permitted";
		return false;
	}
	return true;
}

/* -1: a family that has none. */
static int
port_of(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET)
		return ntohs(((const struct sockaddr_in *) address)->sin_port);
	if (address->sa_family == AF_INET6)
		return ntohs(((const struct sockaddr_in6 *) address)->sin6_port);
	return -1;
}

/* NULL: not one of those that stay registered. */
static Watch *
watch_of(OutboxHttp *http, int fd)
{
	return fd <= http->max_descriptor && http->watches[fd].ours ? &http->watches[fd] : NULL;
}

/*
 * An address is about to be dialled.  CURL_SOCKET_BAD makes libcurl try the host's next address: of a mixed answer the permitted part is used.
 */
static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	Transfer   *transfer = arg;
	int			fd;

	(void) purpose;
	end_turn(transfer);
	transfer->origin->resolved = true;
	if (!permitted(transfer, &address->addr, address->addrlen, port_of(&address->addr)))
		return CURL_SOCKET_BAD;
	transfer->dialled = true;
	OUTBOX_FAULT_QUIET("http-before-connecting");
	fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
	if (fd > transfer->http->max_descriptor)
	{
		close(fd);
		fd = -1;
		errno = EMFILE;
	}
	if (fd < 0)
	{
		transfer->bound = errno == EMFILE || errno == ENFILE ? "too many open files here" : "no socket";
		return CURL_SOCKET_BAD;
	}
	transfer->http->watches[fd] = (Watch) {.ours = true};
	return fd;
}

/* May be long after its transfer.  What is closed leaves epoll by itself. */
static int
on_close_socket(void *arg, curl_socket_t fd)
{
	Watch	   *watch = watch_of(arg, fd);

	if (watch != NULL)
		watch->ours = false;
	return close(fd);
}

/*
 * Connected, and about to send the request; also on a re-used connection, which may have been opened for an endpoint with another policy.
 */
static int
on_request(void *arg, char *primary_ip, char *local_ip, int primary_port, int local_port)
{
	Transfer   *transfer = arg;
	struct sockaddr_in ipv4 = {.sin_family = AF_INET};
	struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6};
	bool		good;

	(void) local_ip;
	(void) local_port;
	end_turn(transfer);
	OUTBOX_FAULT_QUIET("http-before-request");
	transfer->asked = true;
	transfer->bound = NULL;		/* an address was short of something, another one was not */
	if (inet_pton(AF_INET, primary_ip, &ipv4.sin_addr) == 1)
		good = permitted(transfer, (struct sockaddr *) &ipv4, sizeof(ipv4), primary_port);
	else if (inet_pton(AF_INET6, primary_ip, &ipv6.sin6_addr) == 1)
		good = permitted(transfer, (struct sockaddr *) &ipv6, sizeof(ipv6), primary_port);
	else
	{
		transfer->blocked = "not an IP address";
		good = false;
	}
	if (!good)
		transfer->dialled = false;	/* whatever was dialled, this is a refusal */
	return good ? CURL_PREREQFUNC_OK : CURL_PREREQFUNC_ABORT;
}

/* The first Retry-After of the final answer; a second one is somebody's mistake. */
static void
note_retry_after(Transfer *transfer, const char *line, size_t size)
{
	static const char name[] = "retry-after:";
	size_t		at = sizeof(name) - 1;

	if (transfer->has_retry_after || size < at || strncasecmp(line, name, at) != 0)
		return;
	transfer->has_retry_after = true;
	while (at < size && (line[at] == ' ' || line[at] == '\t'))
		at++;
	while (size > at && strchr(" \t\r\n", line[size - 1]) != NULL)
		size--;
	if (size - at < sizeof(transfer->retry_after) && memchr(line + at, '\0', size - at) == NULL)
		memcpy(transfer->retry_after, line + at, size - at);	/* the rest is zero since reset_exchange() */
}

/* An interim answer's is not about the request. */
static void
forget_retry_after(Transfer *transfer)
{
	transfer->has_retry_after = false;
	memset(transfer->retry_after, 0, sizeof(transfer->retry_after));
}

/* RFC 9112 §4. Since 8.0 libcurl takes "2000" for 200, and "HTTP/3" on a connection of HTTP/1.1. */
static bool
is_status_line(const char *line, size_t size)
{
	return size >= 13 && memcmp(line, "HTTP/1.", 7) == 0 && isdigit((unsigned char) line[7]) && line[8] == ' ' &&
		isdigit((unsigned char) line[9]) && isdigit((unsigned char) line[10]) && isdigit((unsigned char) line[11]) && strchr(" \r\n", line[12]) != NULL;
}

/*
 * Before 8.1.1 libcurl keeps a pointer to the last field of the handle's answer before, which is freed by then, and appends to it a folded line at the beginning of an answer's fields
 * (curl #11101).  So such a libcurl is asked for header lines as part of the body: they come here before it looks at whether they are folded.  False: nothing to append to.
 */
static bool
guard_fold(Transfer *transfer, const char *line, size_t size)
{
	bool		begins = !transfer->inside_line;

	transfer->inside_line = line[size - 1] != '\n';	/* long ones come in pieces */
	if (!begins || transfer->has_field || (line[0] != ' ' && line[0] != '\t'))
		return true;
	transfer->bound = "header fields begin with a folded line";
	return false;
}

/* A header line, CR LF included; interim answers (1xx) and trailers come here too.  A short count ends the transfer. */
static size_t
on_header(char *line, size_t unit, size_t n, void *arg)
{
	Transfer   *transfer = arg;
	size_t		size = unit * n;

	OUTBOX_FAULT_QUIET("http-answer");
	transfer->header_bytes += size;
	if (++transfer->n_header_lines > MAX_HEADER_LINES || transfer->header_bytes > MAX_HEADER_BYTES)
	{
		transfer->bound = "too many or too large header fields";
		return 0;
	}
	if (transfer->status != 0)
		return size;			/* a trailer */
	if (!transfer->in_section && !is_status_line(line, size))
	{
		transfer->bound = "not a valid HTTP answer";
		return 0;
	}
	transfer->has_field |= transfer->in_section && strchr("\r\n", line[0]) == NULL;
	transfer->in_section = true;
	if ((size == 1 && line[0] == '\n') || (size == 2 && line[0] == '\r' && line[1] == '\n'))	/* lines may end in LF alone: RFC 9112 §2.2 */
	{
		long		status = 0;

		curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
		if (status >= 200)
			transfer->status = (int) status;
		else
			forget_retry_after(transfer);
		transfer->in_section = false;
		transfer->headers_ended = status >= 200 || status == 101;
		return size;
	}
	note_retry_after(transfer, line, size);
	return size;
}

static size_t
on_body(char *data, size_t unit, size_t n, void *arg)
{
	Transfer   *transfer = arg;
	OutboxExchange *exchange = transfer->exchange;
	size_t		size = unit * n;
	size_t		room = exchange->endpoint->response_kept - exchange->response_size;
	size_t		kept = size < room ? size : room;

	if (!transfer->headers_ended && transfer->http->folds_are_unsafe)
		return guard_fold(transfer, data, size) ? size : 0;
	transfer->body_bytes += size;
	if (transfer->body_bytes > MAX_BODY_BYTES)
	{
		transfer->bound = "answer longer than 64 kB";
		return 0;
	}
	if (kept > 0)
	{
		unsigned char *grown = realloc(exchange->response, exchange->response_size + kept);

		if (grown == NULL)
			return size;		/* the kept part is a courtesy */
		memcpy(grown + exchange->response_size, data, kept);
		exchange->response = grown;
		exchange->response_size += kept;
	}
	return size;
}

static bool
tell_epoll(OutboxHttp *http, int fd, int what)
{
	struct epoll_event event = {.data.fd = fd};

	if (what & CURL_POLL_IN)
		event.events |= EPOLLIN;
	if (what & CURL_POLL_OUT)
		event.events |= EPOLLOUT;
	return epoll_ctl(http->epoll, EPOLL_CTL_MOD, fd, &event) == 0 ||
		(errno == ENOENT && epoll_ctl(http->epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

/* Which descriptors to watch.  libcurl does not say whether it has told us of one before. */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	OutboxHttp *http = arg;
	Watch	   *watch = watch_of(http, fd);

	(void) easy;
	(void) socket_arg;
	if (watch != NULL)
	{
		watch->wanted = what & CURL_POLL_INOUT;
		if (watch->wanted == 0 || watch->wanted == watch->registered)
			return 0;
		watch->registered = watch->wanted;
	}
	else if (what == CURL_POLL_REMOVE)
	{
		epoll_ctl(http->epoll, EPOLL_CTL_DEL, fd, NULL);	/* fails if it is closed already: as good */
		return 0;
	}
	return tell_epoll(http, fd, what) ? 0 : -1;	/* libcurl ends its transfers, work() starts anew */
}

static int
on_timer(CURLM *multi, long timeout_ms, void *arg)
{
	OutboxHttp *http = arg;

	(void) multi;
	http->timer_at = timeout_ms < 0 ? -1 : now_us() + timeout_ms * 1000;
	return 0;
}

/*
 * Making handles.  Every option is checked: one that an odd build of libcurl refuses might be the one that keeps a rule.
 */
#define SET_OPTION(easy, option, value, failed) \
	do { \
		if ((failed) == NULL && curl_easy_setopt((easy), (option), (value)) != CURLE_OK) \
			(failed) = #option; \
	} while (0)

#define SET_MULTI_OPTION(multi, option, value, failed) \
	do { \
		if ((failed) == NULL && curl_multi_setopt((multi), (option), (value)) != CURLM_OK) \
			(failed) = #option; \
	} while (0)

/* What the callbacks need, and what bounds the exchange.  Returns the option that was refused, or NULL. */
static const char *
set_callbacks(Transfer *transfer)
{
	const char *failed = NULL;
	CURL	   *easy = transfer->easy;

	SET_OPTION(easy, CURLOPT_PRIVATE, transfer, failed);
	SET_OPTION(easy, CURLOPT_WRITEFUNCTION, on_body, failed);
	SET_OPTION(easy, CURLOPT_WRITEDATA, transfer, failed);
	SET_OPTION(easy, CURLOPT_HEADERFUNCTION, on_header, failed);
	SET_OPTION(easy, CURLOPT_HEADERDATA, transfer, failed);
	SET_OPTION(easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket, failed);
	SET_OPTION(easy, CURLOPT_OPENSOCKETDATA, transfer, failed);
	SET_OPTION(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close_socket, failed);
	SET_OPTION(easy, CURLOPT_CLOSESOCKETDATA, transfer->http, failed);
	SET_OPTION(easy, CURLOPT_PREREQFUNCTION, on_request, failed);
	SET_OPTION(easy, CURLOPT_PREREQDATA, transfer, failed);
	SET_OPTION(easy, CURLOPT_RESOLVER_START_FUNCTION, on_resolver_start, failed);
	SET_OPTION(easy, CURLOPT_RESOLVER_START_DATA, transfer, failed);
	SET_OPTION(easy, CURLOPT_ERRORBUFFER, transfer->detail, failed);
	return failed;
}

static const char *
set_fixed_options(Transfer *transfer)
{
	const char *failed = set_callbacks(transfer);
	CURL	   *easy = transfer->easy;

	/* no SIGALRM, no sigaction() at every step; SIGPIPE is the process's to ignore */
	SET_OPTION(easy, CURLOPT_NOSIGNAL, 1L, failed);
	/* HTTP/2 in 7.88 costs O(streams) for each event and has known faults */
	SET_OPTION(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1, failed);
	SET_OPTION(easy, CURLOPT_HTTP09_ALLOWED, 0L, failed);
	SET_OPTION(easy, CURLOPT_HEADER, transfer->http->folds_are_unsafe ? 1L : 0L, failed);	/* see guard_fold() */
	/* made and freed for each exchange; answers are small, and more than about a kilobyte costs malloc much */
	SET_OPTION(easy, CURLOPT_BUFFERSIZE, BUFFER_BYTES, failed);
	SET_OPTION(easy, CURLOPT_POST, 1L, failed);
	SET_OPTION(easy, CURLOPT_USERAGENT, transfer->http->user_agent, failed);
	/* a redirect would lead around the policy, and Standard Webhooks counts it as a failure */
	SET_OPTION(easy, CURLOPT_FOLLOWLOCATION, 0L, failed);
	/* "" also keeps libcurl from reading http_proxy and its kin: a proxy would dial for us, unjudged */
	SET_OPTION(easy, CURLOPT_PROXY, "", failed);
	SET_OPTION(easy, CURLOPT_NOPROXY, "*", failed);
	SET_OPTION(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED, failed);
	SET_OPTION(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L, failed);
	SET_OPTION(easy, CURLOPT_SSL_VERIFYPEER, 1L, failed);
	SET_OPTION(easy, CURLOPT_SSL_VERIFYHOST, 2L, failed);
	SET_OPTION(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2, failed);
	SET_OPTION(easy, CURLOPT_CAPATH, transfer->http->ca_path, failed);	/* see set_ca() */
	SET_OPTION(easy, CURLOPT_DNS_CACHE_TIMEOUT, DNS_CACHE_SECONDS, failed);
	SET_OPTION(easy, CURLOPT_MAXAGE_CONN, MAX_IDLE_SECONDS, failed);
	SET_OPTION(easy, CURLOPT_MAXLIFETIME_CONN, MAX_CONNECTION_SECONDS, failed);
	/* an abandoned transfer must not join its resolver thread */
	SET_OPTION(easy, CURLOPT_QUICK_EXIT, 1L, failed);
	return failed;
}

static CURLM *
create_multi(OutboxHttp *http)
{
	CURLM	   *multi = curl_multi_init();
	int			max_kept = http->max_connections < http->max_descriptor / 2 ? http->max_connections : http->max_descriptor / 2;
	const char *failed = NULL;

	if (multi == NULL)
		return NULL;
	SET_MULTI_OPTION(multi, CURLMOPT_SOCKETFUNCTION, on_socket, failed);
	SET_MULTI_OPTION(multi, CURLMOPT_SOCKETDATA, http, failed);
	SET_MULTI_OPTION(multi, CURLMOPT_TIMERFUNCTION, on_timer, failed);
	SET_MULTI_OPTION(multi, CURLMOPT_TIMERDATA, http, failed);
	SET_MULTI_OPTION(multi, CURLMOPT_PIPELINING, (long) CURLPIPE_NOTHING, failed);
	/* the default of four per handle would churn a small pool and let a large one grow */
	SET_MULTI_OPTION(multi, CURLMOPT_MAXCONNECTS, (long) max_kept, failed);
	if (failed == NULL && OutboxMultiQuickExit(multi) != CURLM_OK)
		failed = "CURLMOPT_QUICK_EXIT";
	if (failed == NULL && OutboxMultiResolverThreads(multi, http->max_resolving * THREADS_PER_NAME) != CURLM_OK)
		failed = "CURLMOPT_RESOLVE_THREADS_MAX";
	if (failed != NULL)
	{
		curl_multi_cleanup(multi);
		return NULL;
	}
	return multi;
}

/*
 * Descriptors are shared with the process around us, which may not survive without (PostgreSQL panics when it cannot open a WAL file).  So the soft limit
 * is raised as far as it may be, and of that our sockets take no more than half, resolver threads (a few each) no more than a quarter.
 */
static void
bound_descriptors(OutboxHttp *http)
{
	struct rlimit limit;
	int			n = 1024;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
	{
		rlim_t		wanted = limit.rlim_max < MAX_DESCRIPTORS ? limit.rlim_max : MAX_DESCRIPTORS;
		rlim_t		had = limit.rlim_cur;

		limit.rlim_cur = wanted;
		if (had >= wanted || setrlimit(RLIMIT_NOFILE, &limit) != 0)
			limit.rlim_cur = had;
		n = limit.rlim_cur < MAX_DESCRIPTORS ? (int) limit.rlim_cur : MAX_DESCRIPTORS;
	}
	http->max_descriptor = n / 2;
	http->max_resolving = n / 16 < MAX_RESOLVING ? n / 16 + 1 : MAX_RESOLVING;
}

OutboxHttp *
outbox_http_create(const OutboxHttpOptions *options)
{
	OutboxHttp *http;
	struct sigaction sigpipe;

	/* would write every TLS secret of ours to a file */
	unsetenv("SSLKEYLOGFILE");
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		return NULL;
	/* OpenSSL writes with write(); CURLOPT_NOSIGNAL leaves SIGPIPE to us */
	if (sigaction(SIGPIPE, NULL, &sigpipe) == 0 && sigpipe.sa_handler == SIG_DFL)
		signal(SIGPIPE, SIG_IGN);

	http = calloc(1, sizeof(*http));
	if (http == NULL)
		return NULL;
	http->timer_at = -1;
	if (curl_version_info(CURLVERSION_NOW)->cainfo == NULL)
		http->ca_path = curl_version_info(CURLVERSION_NOW)->capath;
	http->max_connections = options->max_connections;
	http->folds_are_unsafe = OutboxFoldsAreUnsafe();
	bound_descriptors(http);
	http->watches = calloc((size_t) http->max_descriptor + 1, sizeof(Watch));
	http->starting_end = &http->starting;
	http->waiting_end = &http->waiting;
	http->abandoned_end = &http->abandoned;
	http->finished_end = &http->finished;
	http->user_agent = strdup(options->user_agent);
	http->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (http->watches != NULL && http->user_agent != NULL && http->epoll >= 0)
		http->multi = create_multi(http);
	if (http->multi == NULL)
	{
		outbox_http_free(http);
		return NULL;
	}
	return http;
}

static void
free_transfer(Transfer *transfer)
{
	curl_easy_cleanup(transfer->easy);
	release_origin(transfer->http, transfer->origin);
	free(transfer->lines);
	free(transfer->url);
	free(transfer);
}

static Transfer *
create_transfer(OutboxHttp *http)
{
	Transfer   *transfer = calloc(1, sizeof(*transfer));

	if (transfer == NULL)
		return NULL;
	transfer->http = http;
	transfer->network = -1;
	transfer->easy = curl_easy_init();
	if (transfer->easy == NULL || set_fixed_options(transfer) != NULL)
	{
		free_transfer(transfer);
		return NULL;
	}
	return transfer;
}

static Transfer *
take_transfer(OutboxHttp *http)
{
	Transfer   *transfer = http->idle;

	if (transfer == NULL)
		return create_transfer(http);
	http->idle = transfer->next;
	http->n_idle--;
	return transfer;
}

static void
return_transfer(Transfer *transfer)
{
	OutboxHttp *http = transfer->http;

	transfer->exchange = NULL;
	if (http->n_idle >= http->max_connections)
	{
		free_transfer(transfer);
		return;
	}
	transfer->next = http->idle;
	http->idle = transfer;
	http->n_idle++;
}

/*
 * Setting a handle to an endpoint.
 */

/* Takes the URL apart with libcurl's own parser: two parsers that disagree are how policies are passed by.  NULL: see *refusal; if that is NULL too, there was no memory. */
static Origin *
parse_url(OutboxHttp *http, const char *url, const char **refusal)
{
	CURLU	   *parsed = curl_url();
	char	   *scheme = NULL;
	char	   *host = NULL;
	char	   *port = NULL;
	Origin	   *origin = NULL;
	CURLUcode	code = parsed == NULL ? CURLUE_OUT_OF_MEMORY : curl_url_set(parsed, CURLUPART_URL, url, CURLU_DISALLOW_USER);

	if (code == CURLUE_OK)
		code = curl_url_get(parsed, CURLUPART_SCHEME, &scheme, 0);
	if (code == CURLUE_OK)
		code = curl_url_get(parsed, CURLUPART_HOST, &host, 0);
	if (code == CURLUE_OK)
		code = curl_url_get(parsed, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT);

	if (code == CURLUE_OUT_OF_MEMORY)
		*refusal = NULL;
	else if (code == CURLUE_USER_NOT_ALLOWED)
		*refusal = "user name or password in the URL";
	else if (code != CURLUE_OK)
		*refusal = "malformed URL";
	else if (strcmp(scheme, "https") != 0 && strcmp(scheme, "http") != 0)
		*refusal = "neither an http nor an https URL";
	else
		origin = find_origin(http, scheme, host, port);
	curl_free(scheme);
	curl_free(host);
	curl_free(port);
	curl_url_cleanup(parsed);
	return origin;
}

/* False: out of memory. */
static bool
set_url(Transfer *transfer, const char *url)
{
	if (transfer->url != NULL && strcmp(transfer->url, url) == 0)
		return true;
	free(transfer->url);
	release_origin(transfer->http, transfer->origin);
	transfer->origin = NULL;
	transfer->refusal = NULL;
	transfer->url = strdup(url);
	if (transfer->url == NULL)
		return false;
	transfer->origin = parse_url(transfer->http, url, &transfer->refusal);
	if ((transfer->origin == NULL && transfer->refusal == NULL) ||
		(transfer->origin != NULL && curl_easy_setopt(transfer->easy, CURLOPT_URL, url) != CURLE_OK))
	{
		free(transfer->url);
		transfer->url = NULL;
		return false;
	}
	return true;
}

/* Milliseconds, rounded up; 0 would mean "libcurl's default". */
static long
to_ms(int64_t us)
{
	int64_t		ms = us / 1000 + (us % 1000 > 0);

	return ms < 1 ? 1 : ms > INT32_MAX ? INT32_MAX : (long) ms;
}

static const char *
set_timeouts(Transfer *transfer, int64_t timeout, int64_t connect_timeout)
{
	const char *failed = NULL;
	long		timeout_ms = to_ms(timeout);
	long		connect_timeout_ms = to_ms(connect_timeout);

	if (transfer->timeout_ms != timeout_ms)
		SET_OPTION(transfer->easy, CURLOPT_TIMEOUT_MS, timeout_ms, failed);
	if (transfer->connect_timeout_ms != connect_timeout_ms)
		SET_OPTION(transfer->easy, CURLOPT_CONNECTTIMEOUT_MS, connect_timeout_ms, failed);
	transfer->timeout_ms = timeout_ms;
	transfer->connect_timeout_ms = connect_timeout_ms;
	return failed;
}

/*
 * The certificates to trust.  libcurl would go on trusting its default directory besides a blob or a bundle; and it keeps a parsed bundle between
 * connections only if no directory is set (some 10 ms each).
 */
static const char *
set_ca(Transfer *transfer, const char *ca)
{
	const char *failed = NULL;
	struct curl_blob blob = {.data = (void *) ca, .flags = CURL_BLOB_NOCOPY};

	if (ca == NULL && !transfer->own_ca)
		return NULL;
	if (ca != NULL)
		blob.len = strlen(ca);
	SET_OPTION(transfer->easy, CURLOPT_CAINFO_BLOB, ca != NULL ? &blob : NULL, failed);
	SET_OPTION(transfer->easy, CURLOPT_CAPATH, ca != NULL ? NULL : transfer->http->ca_path, failed);
	if (failed == NULL)
		transfer->own_ca = ca != NULL;
	return failed;
}

static const char *
set_network(Transfer *transfer, OutboxNetwork network)
{
	const char *failed = NULL;

	if (transfer->network == (int) network)
		return NULL;
	SET_OPTION(transfer->easy, CURLOPT_PROTOCOLS_STR, network == OUTBOX_NETWORK_PUBLIC ? "https" : "http,https", failed);
	transfer->network = failed == NULL ? (int) network : -1;
	return failed;
}

/*
 * The header lines as libcurl wants them: a list whose nodes are ours, so that nothing is copied.  Behind the event's lines: no Expect (libcurl asks for
 * "100-continue" above 1 MB, and would wait), and no Content-Type (libcurl would call a POST a web form), which does not touch one that is among the lines.
 */
static bool
link_lines(Transfer *transfer, const OutboxRequestHeaders *headers, struct curl_slist **list)
{
	static struct curl_slist no_expect = {.data = (char *) "Expect:"};
	static struct curl_slist no_content_type = {.data = (char *) "Content-Type:", .next = &no_expect};

	if (headers->n > transfer->n_lines)
	{
		struct curl_slist *lines = realloc(transfer->lines, headers->n * sizeof(*lines));

		if (lines == NULL)
			return false;
		transfer->lines = lines;
		transfer->n_lines = headers->n;
	}
	for (int i = headers->n - 1; i >= 0; i--)
	{
		char	   *line = headers->lines[i];
		size_t		size = strlen(line);

		/* to libcurl "Name: " means "do not send Name", and "Name;" an empty one */
		if (size >= 2 && line[size - 2] == ':' && line[size - 1] == ' ')
			memcpy(line + size - 2, ";", 2);
		transfer->lines[i].data = line;
		transfer->lines[i].next = i + 1 < headers->n ? &transfer->lines[i + 1] : NULL;
	}
	if (headers->n > 0)
		transfer->lines[headers->n - 1].next = &no_content_type;
	*list = headers->n > 0 ? transfer->lines : &no_content_type;
	return true;
}

static const char *
set_request(Transfer *transfer)
{
	const OutboxExchange *exchange = transfer->exchange;
	const char *failed = NULL;
	struct curl_slist *list;

	if (!link_lines(transfer, exchange->headers, &list))
		return "CURLOPT_HTTPHEADER";
	SET_OPTION(transfer->easy, CURLOPT_HTTPHEADER, list, failed);
	/* never NULL: libcurl would read the body from stdin */
	SET_OPTION(transfer->easy, CURLOPT_POSTFIELDS, exchange->size > 0 ? exchange->body : "", failed);
	SET_OPTION(transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) exchange->size, failed);
	return failed;
}

/* Everything at once; the option that was refused, or NULL. */
static const char *
set_endpoint(Transfer *transfer)
{
	const OutboxEndpoint *endpoint = transfer->exchange->endpoint;
	const char *failed = set_network(transfer, endpoint->network);

	if (failed == NULL)
		failed = set_timeouts(transfer, endpoint->timeout, endpoint->connect_timeout);
	if (failed == NULL)
		failed = set_ca(transfer, endpoint->ca);
	if (failed == NULL)
		failed = set_request(transfer);
	return failed;
}

/*
 * Ends.
 */
static void
finish(OutboxHttp *http, OutboxExchange *exchange, OutboxOutcome outcome)
{
	exchange->outcome = outcome;
	exchange->transfer = NULL;
	*http->finished_end = exchange;
	http->finished_end = &exchange->transfer;
}

/* Ends a transfer that libcurl does not hold: with this outcome, and this text behind scheme and host. */
static void
end_transfer(Transfer *transfer, OutboxOutcome outcome, const char *text)
{
	OutboxExchange *exchange = transfer->exchange;

	end_turn(transfer);
	exchange->duration = now_us() - transfer->began;
	if (outcome != OUTBOX_DELIVERED && transfer->origin != NULL)
		snprintf(exchange->error, sizeof(exchange->error), "%.*s: %s",
				 transfer->origin->shown < MAX_SHOWN ? (int) transfer->origin->shown : MAX_SHOWN, transfer->origin->name, text);
	else if (outcome != OUTBOX_DELIVERED)
		snprintf(exchange->error, sizeof(exchange->error), "%s", text);
	/* ASCII, whatever name libcurl has accepted: it goes to databases of every encoding */
	for (char *c = exchange->error; *c != '\0'; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	finish(transfer->http, exchange, outcome);
	return_transfer(transfer);
}

static void
end_blocked(Transfer *transfer, const char *what, const char *why)
{
	char		text[80];

	snprintf(text, sizeof(text), "%s refused: %s (network = %s)", what, why,
			 transfer->exchange->endpoint->network == OUTBOX_NETWORK_PUBLIC ? "public" : "private");
	end_transfer(transfer, OUTBOX_BLOCKED, text);
}

/* A complete answer. */
static OutboxOutcome
outcome_of_status(int status)
{
	if (status == 410)
		return OUTBOX_GONE;
	switch (status / 100)
	{
		case 2:
			return OUTBOX_DELIVERED;
		case 3:
			return OUTBOX_HTTP_3XX;
		case 4:
			return OUTBOX_HTTP_4XX;
		case 5:
			return OUTBOX_HTTP_5XX;
		default:
			return OUTBOX_PROTOCOL;
	}
}

/* OpenSSL's reason code, as libcurl quotes it ("error:0A00010B:SSL routines::wrong version number"); 0: none. */
static int
openssl_reason(const Transfer *transfer)
{
	static const char mark[] = "error:";

	if (!transfer->origin->https)
		return 0;
	/* since libcurl 8.10 the word is there twice: "TLS connect error: error:0A00042E:SSL routines::..." */
	for (const char *at = strstr(transfer->detail, mark); at != NULL; at = strstr(at + strlen(mark), mark))
	{
		char	   *end;
		unsigned long code = strtoul(at + strlen(mark), &end, 16);

		if (*end == ':' && ERR_GET_LIB(code) == ERR_LIB_SSL)
			return ERR_GET_REASON(code);
	}
	return 0;
}

/* No complete answer.  Whatever is not listed may pass, so it counts as a transient fault of the connection. */
static OutboxOutcome
outcome_of_code(CURLcode code, const Transfer *transfer)
{
	if (code == OUTBOX_CURL_TOO_LARGE)
		return OUTBOX_PROTOCOL;
	switch (code)
	{
		case CURLE_OPERATION_TIMEDOUT:
			return OUTBOX_TIMEOUT;
		case CURLE_COULDNT_RESOLVE_HOST:
			return OUTBOX_DNS;
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_CRL_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
		case CURLE_SSL_INVALIDCERTSTATUS:
		case CURLE_SSL_PINNEDPUBKEYNOTMATCH:
		case CURLE_SSL_CLIENTCERT:
		case CURLE_SSL_ENGINE_INITFAILED:
		case CURLE_SSL_SHUTDOWN_FAILED:
		case CURLE_USE_SSL_FAILED:
			return OUTBOX_TLS;
		case CURLE_RECV_ERROR:
		case CURLE_SEND_ERROR:
			/* an alert that came after our side of the handshake was done */
			return openssl_reason(transfer) != 0 ? OUTBOX_TLS : OUTBOX_CONNECT;
		case CURLE_URL_MALFORMAT:
			return OUTBOX_BAD_REQUEST;
		case CURLE_OK:			/* nothing but interim answers */
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_UNSUPPORTED_PROTOCOL:	/* "HTTP/0.9", that is to say no HTTP; the scheme has been checked */
		case CURLE_WRITE_ERROR: /* our bounds */
		case CURLE_BAD_CONTENT_ENCODING:
		case CURLE_PARTIAL_FILE:
			return OUTBOX_PROTOCOL;
		case CURLE_OUT_OF_MEMORY:	/* libcurl says so too when a header line exceeds its 100 kB */
		case CURLE_BAD_FUNCTION_ARGUMENT:	/* and so when one has no name */
			return transfer->asked ? OUTBOX_PROTOCOL : OUTBOX_CONNECT;
		default:
			return OUTBOX_CONNECT;
	}
}

/* The errno classes worth a word of their own. */
static const char *
text_of_errno(long error)
{
	switch (error)
	{
		case ECONNREFUSED:
			return "connection refused";
		case ECONNRESET:
		case EPIPE:
			return "connection reset";
		case EHOSTUNREACH:
		case ENETUNREACH:
			return "unreachable";
		case ETIMEDOUT:
			return "connection timed out";
		default:
			return NULL;
	}
}

/* What broke a handshake: of OpenSSL's reasons those that an operator can do something about. */
static const char *
text_of_handshake(const Transfer *transfer)
{
	int			reason = openssl_reason(transfer);

	switch (reason)
	{
		case 0:
			return "the connection broke off in the TLS handshake";
		case SSL_R_WRONG_VERSION_NUMBER:	/* of the record: these bytes are no record */
		case SSL_R_PACKET_LENGTH_TOO_LONG:
			return "the receiver does not speak TLS on this port";
		case SSL_R_UNSUPPORTED_PROTOCOL:
		case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
			return "the receiver offers neither TLS 1.2 nor newer";
		case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
			return "the receiver broke off the handshake (no common cipher, or wants a certificate)";
		case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
			return "the receiver wants a client certificate";
		default:
			return ERR_reason_error_string(ERR_PACK(ERR_LIB_SSL, 0, reason));
	}
}

/* OpenSSL knows better what is wrong with a chain; libcurl, whether it is for this host. */
static const char *
text_of_tls(CURLcode code, const Transfer *transfer)
{
	long		error = X509_V_OK;

	if (code == CURLE_SSL_CACERT_BADFILE)
		return transfer->own_ca ? "the certificates of option \"ca\" are not usable" : "the system's CA certificates are not usable";
	if (code != CURLE_PEER_FAILED_VERIFICATION)
		return text_of_handshake(transfer);
	curl_easy_getinfo(transfer->easy, CURLINFO_SSL_VERIFYRESULT, &error);
	if (error == X509_V_OK || error == X509_V_ERR_UNSPECIFIED)
		return "the certificate is not for this host";
	return X509_verify_cert_error_string(error);
}

/* CURLINFO_OS_ERRNO is that of some earlier exchange unless this one's connection failed in a system call. */
static const char *
text_of_connection(CURLcode code, const Transfer *transfer)
{
	long		error = 0;

	if (code == CURLE_GOT_NOTHING)
		return "connection closed without an answer";
	if (code == CURLE_COULDNT_CONNECT || ((code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR) && !transfer->origin->https))
		curl_easy_getinfo(transfer->easy, CURLINFO_OS_ERRNO, &error);
	return text_of_errno(error);
}

/* For people. */
static const char *
text_of_code(CURLcode code, const Transfer *transfer, OutboxOutcome outcome)
{
	const char *text = NULL;

	if (transfer->bound != NULL)
		return transfer->bound;
	if (code == CURLE_ABORTED_BY_CALLBACK)	/* on_socket(): whatever the others refuse has its reason noted */
		text = "transfer engine failed";
	else if (outcome == OUTBOX_CONNECT)
		text = text_of_connection(code, transfer);
	else if (outcome == OUTBOX_TLS)
		text = text_of_tls(code, transfer);
	else if (outcome == OUTBOX_TIMEOUT)
		text = transfer->asked ? "no complete answer in time" : "not connected in time";
	else if (outcome == OUTBOX_PROTOCOL)
		text = "not a valid HTTP answer";
	return text != NULL ? text : curl_easy_strerror(code);
}

static void
end_with_status(Transfer *transfer)
{
	OutboxExchange *exchange = transfer->exchange;
	char		text[32];

	exchange->status = transfer->status;
	if (transfer->has_retry_after)
		exchange->retry_after = outbox_retry_after(transfer->retry_after, (int64_t) time(NULL));
	snprintf(text, sizeof(text), "HTTP status %d", transfer->status);
	end_transfer(transfer, outcome_of_status(transfer->status), text);
}

/* libcurl is through with it. */
static void
judge(Transfer *transfer, CURLcode code)
{
	OutboxOutcome outcome;

	if (code == CURLE_OPERATION_TIMEDOUT)
		abandon_turn(transfer);
	if (transfer->status != 0)
		end_with_status(transfer);
	else if (transfer->blocked != NULL && !transfer->dialled)
		end_blocked(transfer, "address", transfer->blocked);
	else
	{
		outcome = outcome_of_code(code, transfer);
		end_transfer(transfer, outcome, text_of_code(code, transfer, outcome));
	}
}

/*
 * Running and waiting.
 */
static void
link_running(Transfer *transfer)
{
	OutboxHttp *http = transfer->http;

	transfer->previous = NULL;
	transfer->next = http->running;
	if (http->running != NULL)
		http->running->previous = transfer;
	http->running = transfer;
}

static void
unlink_running(Transfer *transfer)
{
	OutboxHttp *http = transfer->http;

	if (transfer->previous != NULL)
		transfer->previous->next = transfer->next;
	else
		http->running = transfer->next;
	if (transfer->next != NULL)
		transfer->next->previous = transfer->previous;
}

/* Signals are blocked. */
static void
launch(Transfer *transfer)
{
	OutboxHttp *http = transfer->http;
	CURLMcode	code = CURLM_INTERNAL_ERROR;

	if (http->multi == NULL)
		http->multi = create_multi(http);
	if (http->multi != NULL)
		code = curl_multi_add_handle(http->multi, transfer->easy);
	if (code == CURLM_OK)
		link_running(transfer);
	else
		end_transfer(transfer, OUTBOX_CONNECT, "transfer engine failed");
}

static void
launch_starting(OutboxHttp *http)
{
	Transfer   *transfer = http->starting;

	http->starting = NULL;
	http->starting_end = &http->starting;
	while (transfer != NULL)
	{
		Transfer   *next = transfer->next;

		launch(transfer);
		transfer = next;
	}
}

static void
wait_for_name(Transfer *transfer)
{
	transfer->postponed = false;
	transfer->next = NULL;
	*transfer->http->waiting_end = transfer;
	transfer->http->waiting_end = &transfer->next;
}

/* A transfer waits no longer than it might take to connect. */
static int64_t
waits_until(const Transfer *transfer)
{
	const OutboxEndpoint *endpoint = transfer->exchange->endpoint;

	return transfer->began + (endpoint->timeout < endpoint->connect_timeout ? endpoint->timeout : endpoint->connect_timeout);
}

/* Starts it again, with what is left of its time. */
static void
relaunch(Transfer *transfer, int64_t now)
{
	const OutboxEndpoint *endpoint = transfer->exchange->endpoint;
	int64_t		gone = now - transfer->began;

	if (set_timeouts(transfer, endpoint->timeout - gone, endpoint->connect_timeout - gone) != NULL)
		end_transfer(transfer, OUTBOX_CONNECT, "transfer engine failed");
	else
		launch(transfer);
}

/* Those whose time is up end; those whose name is resolved go; of the others one per origin takes the turn to resolve it. */
static void
serve_waiting(OutboxHttp *http)
{
	Transfer   *transfer = http->waiting;
	int64_t		now = now_us();

	http->waiting = NULL;
	http->waiting_end = &http->waiting;
	while (transfer != NULL)
	{
		Transfer   *next = transfer->next;

		if (now >= waits_until(transfer))
			end_transfer(transfer, OUTBOX_TIMEOUT, "name not resolved in time");
		else if (transfer->origin->resolved || take_turn(transfer))
			relaunch(transfer, now);
		else
			wait_for_name(transfer);
		transfer = next;
	}
}

static void
reset_exchange(Transfer *transfer, OutboxExchange *exchange)
{
	transfer->exchange = exchange;
	transfer->began = now_us();
	transfer->resolves = false;
	transfer->postponed = false;
	transfer->dialled = false;
	transfer->asked = false;
	transfer->blocked = NULL;
	transfer->bound = NULL;
	transfer->in_section = false;
	transfer->n_header_lines = 0;
	transfer->has_field = false;
	transfer->inside_line = false;
	transfer->headers_ended = false;
	transfer->header_bytes = 0;
	transfer->body_bytes = 0;
	transfer->status = 0;
	forget_retry_after(transfer);
	transfer->detail[0] = '\0';
}

void
outbox_http_start(OutboxHttp *http, OutboxExchange *exchange)
{
	const OutboxEndpoint *endpoint = exchange->endpoint;
	Transfer   *transfer = take_transfer(http);

	http->in_flight++;
	exchange->retry_after = -1;
	if (transfer == NULL)
	{
		snprintf(exchange->error, sizeof(exchange->error), "out of memory");
		finish(http, exchange, OUTBOX_CONNECT);
		return;
	}
	reset_exchange(transfer, exchange);
	if (!set_url(transfer, endpoint->url))
		end_transfer(transfer, OUTBOX_CONNECT, "out of memory");
	else if (transfer->origin == NULL)
		end_transfer(transfer, OUTBOX_BAD_REQUEST, transfer->refusal);
	else if (endpoint->network == OUTBOX_NETWORK_PUBLIC && !transfer->origin->https)
		end_blocked(transfer, "scheme", "http");
	else if (!port_permitted(endpoint, transfer->origin->port))
		end_blocked(transfer, "port", "not permitted");
	else if (set_endpoint(transfer) != NULL)
		end_transfer(transfer, OUTBOX_CONNECT, "transfer engine failed");
	else
	{
		transfer->next = NULL;
		*http->starting_end = transfer;
		http->starting_end = &transfer->next;
	}
}

/* Takes from libcurl what has ended. */
static void
collect(OutboxHttp *http)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(http->multi, &left)) != NULL)
	{
		CURLcode	code = message->data.result;
		Transfer   *transfer = NULL;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &transfer);
		if (curl_multi_remove_handle(http->multi, transfer->easy) != CURLM_OK)
			http->broken = true;
		unlink_running(transfer);
		OUTBOX_FAULT_QUIET("http-after-answer");
		if (transfer->postponed && code != CURLE_OK)
			wait_for_name(transfer);
		else
			judge(transfer, code);
	}
}

/* Ends all that libcurl holds and lets go of it: "the state of all transfers is uncertain" (curl_multi_socket_action). */
static void
rebuild(OutboxHttp *http)
{
	Transfer   *transfer;

	while ((transfer = http->running) != NULL)
	{
		curl_multi_remove_handle(http->multi, transfer->easy);
		unlink_running(transfer);
		abandon_turn(transfer);
		end_transfer(transfer, OUTBOX_CONNECT, "transfer engine failed");
	}
	while ((transfer = http->idle) != NULL)
	{
		http->idle = transfer->next;
		free_transfer(transfer);
	}
	http->n_idle = 0;
	curl_multi_cleanup(http->multi);
	http->timer_at = -1;
	http->broken = false;
	http->multi = create_multi(http);	/* or launch() tries again */
}

static void
act(OutboxHttp *http, curl_socket_t fd, uint32_t events)
{
	Watch	   *watch = fd == CURL_SOCKET_TIMEOUT ? NULL : watch_of(http, fd);
	int			running;
	int			what = 0;

	if (watch != NULL && watch->wanted == 0)
	{
		/* the far side closes it, or says something unasked: libcurl sees that when it wants to use it again */
		epoll_ctl(http->epoll, EPOLL_CTL_DEL, fd, NULL);
		watch->registered = 0;
		return;
	}

	if (events & EPOLLIN)
		what |= CURL_CSELECT_IN;
	if (events & EPOLLOUT)
		what |= CURL_CSELECT_OUT;
	if (events & (EPOLLERR | EPOLLHUP))
		what |= CURL_CSELECT_ERR;
	if (curl_multi_socket_action(http->multi, fd, what, &running) != CURLM_OK)
		http->broken = true;
}

/* Those who wait for a name, and places that are free again. */
static void
see_to_names(OutboxHttp *http)
{
	if (http->abandoned != NULL)
		end_abandoned(http, now_us());
	if (http->waiting != NULL)
		serve_waiting(http);
}

/* One turn: sockets, timer, what has ended, who waits.  False: there was nothing to do. */
static bool
turn(OutboxHttp *http, int64_t deadline)
{
	struct epoll_event events[N_EVENTS];
	int			n = epoll_wait(http->epoll, events, N_EVENTS, 0);
	bool		worked = n > 0;

	/* what the deadline cuts off is reported again: level-triggered, and epoll rotates its ready list */
	for (int i = 0; i < n && !http->broken && (i == 0 || now_us() < deadline); i++)
		act(http, events[i].data.fd, events[i].events);
	if (!http->broken && http->timer_at >= 0 && http->timer_at <= now_us())
	{
		http->timer_at = -1;	/* libcurl sets the next one */
		act(http, CURL_SOCKET_TIMEOUT, 0);
		worked = true;
	}
	collect(http);
	if (http->broken)
		rebuild(http);
	see_to_names(http);
	return worked;
}

void
outbox_http_work(OutboxHttp *http, int64_t budget)
{
	int64_t		deadline = now_us() + budget;
	sigset_t	before;

	block_signals(&before);
	launch_starting(http);
	if (http->multi == NULL)
		see_to_names(http);		/* rebuild() has failed: nobody shall wait for that */
	while (http->multi != NULL && turn(http, deadline) && now_us() < deadline)
		;
	restore_signals(&before);
}

int
outbox_http_descriptor(const OutboxHttp *http)
{
	return http->epoll;
}

long
outbox_http_timeout(const OutboxHttp *http)
{
	int64_t		at = http->timer_at;
	int64_t		now;

	if (http->finished != NULL || http->starting != NULL)
		return 0;
	for (const Transfer *transfer = http->waiting; transfer != NULL; transfer = transfer->next)
		if (at < 0 || waits_until(transfer) < at)
			at = waits_until(transfer);
	if (http->waiting != NULL && http->abandoned != NULL && http->abandoned->until < at)
		at = http->abandoned->until;
	if (at < 0)
		return -1;
	now = now_us();
	return at <= now ? 0 : to_ms(at - now);
}

OutboxExchange *
outbox_http_finished(OutboxHttp *http)
{
	OutboxExchange *exchange = http->finished;

	if (exchange == NULL)
		return NULL;
	http->finished = exchange->transfer;
	if (http->finished == NULL)
		http->finished_end = &http->finished;
	exchange->transfer = NULL;
	http->in_flight--;
	return exchange;
}

/* Idle connections may have as many again, and what else the process has open has low numbers too. */
int
outbox_http_capacity(const OutboxHttp *http)
{
	return http->max_descriptor / 2 > 1 ? http->max_descriptor / 2 : 1;
}

int
outbox_http_in_flight(const OutboxHttp *http)
{
	return http->in_flight;
}

static void
free_list(Transfer *transfer)
{
	while (transfer != NULL)
	{
		Transfer   *next = transfer->next;

		free_transfer(transfer);
		transfer = next;
	}
}

/* CURLOPT_QUICK_EXIT leaves resolver threads behind; they end by themselves and touch nothing of ours. */
void
outbox_http_free(OutboxHttp *http)
{
	if (http == NULL)
		return;
	for (Transfer *transfer = http->running; transfer != NULL; transfer = transfer->next)
		curl_multi_remove_handle(http->multi, transfer->easy);
	free_list(http->starting);
	free_list(http->running);
	free_list(http->waiting);
	free_list(http->idle);
	end_abandoned(http, INT64_MAX);
	if (http->multi != NULL)
		curl_multi_cleanup(http->multi);
	if (http->epoll >= 0)
		close(http->epoll);
	free(http->watches);
	free(http->user_agent);
	free(http);
}

OutboxExchange *
outbox_exchange_create(void)
{
	return calloc(1, sizeof(OutboxExchange));
}

void
outbox_exchange_free(OutboxExchange *exchange)
{
	if (exchange == NULL)
		return;
	free(exchange->response);
	free(exchange);
}
