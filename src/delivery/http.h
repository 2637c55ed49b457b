/*
 * HTTP: takes a request, gives an exchange back; never blocks, never raises.
 *
 * The only room that includes curl/curl.h.  libcurl's multi interface on a private epoll, HTTP/1.1 with keep-alive.  Knows no table, no setting, no
 * PostgreSQL.  All memory is malloc'd and bounded.  Signals are blocked around calls that may start a resolver thread, so that the process's handlers never run in one.
 */
#ifndef OUTBOX_HTTP_H
#define OUTBOX_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "address.h"
#include "message.h"
#include "verdict.h"

typedef struct OutboxHttp OutboxHttp;

typedef struct OutboxHttpOptions
{
	int			max_connections;	/* the size of the keep-alive pool */
	const char *user_agent;
} OutboxHttpOptions;

/* What a subscription's requests have in common; owned by the caller, outlives its requests. */
typedef struct OutboxEndpoint
{
	const char *url;
	OutboxNetwork network;
	const uint16_t *ports;		/* permitted under PUBLIC */
	int			n_ports;
	int64_t		timeout;		/* whole exchange, microseconds */
	int64_t		connect_timeout;
	size_t		response_kept;	/* bytes of the answer's body to keep */
	const char *ca;				/* PEM bundle to verify against instead of the system's; NULL: the system's */
} OutboxEndpoint;

/* One request and, later, how it went. */
typedef struct OutboxExchange
{
	/* set by the caller */
	const OutboxEndpoint *endpoint;
	OutboxRequestHeaders *headers;	/* freed by the caller after the end; a line without value is edited in place */
	const void *body;			/* stays valid until the end */
	size_t		size;
	void	   *owner;			/* the caller's */

	/* set at the end */
	OutboxOutcome outcome;
	int			status;			/* of a final answer whose header section was complete, and then it decides, whatever became of the body; 0: none */
	int64_t		duration;		/* microseconds */
	int64_t		retry_after;	/* microseconds, -1: none */
	char		error[160];		/* for people: class and cause; never URL path, body or header values */
	unsigned char *response;	/* the first bytes of the answer's body (malloc'd, freed by outbox_exchange_free) */
	size_t		response_size;

	void	   *transfer;		/* private to http.c */
} OutboxExchange;

/* NULL when out of memory or descriptors.  Call once per process, after fork.  Ignores SIGPIPE if nobody has decided about it. */
extern OutboxHttp *outbox_http_create(const OutboxHttpOptions *options);
extern void outbox_http_free(OutboxHttp *http); /* abandons what is in flight, at once */

extern OutboxExchange *outbox_exchange_create(void);	/* zeroed; NULL when out of memory */
extern void outbox_exchange_free(OutboxExchange *exchange);

/* A descriptor that polls readable when there is work, and the milliseconds until there is anyway (-1: no timer). */
extern int	outbox_http_descriptor(const OutboxHttp *http);
extern long outbox_http_timeout(const OutboxHttp *http);

/*
 * Starts a request.  Always ends in outbox_http_finished, also when it cannot be started.  May reject URL, scheme and port by policy at once (outcome
 * OUTBOX_BLOCKED or OUTBOX_BAD_REQUEST); addresses are judged after resolution, on connect and on reuse.  Our own troubles (memory, descriptors, libcurl) may pass:
 * they end as OUTBOX_CONNECT, never as OUTBOX_INTERNAL, which would be final.
 */
extern void outbox_http_start(OutboxHttp *http, OutboxExchange *exchange);

/* Does what can be done without waiting, for at most about `budget` microseconds. */
extern void outbox_http_work(OutboxHttp *http, int64_t budget);

/* The next finished exchange, or NULL. */
extern OutboxExchange *outbox_http_finished(OutboxHttp *http);

/* So many requests find a descriptor: more would fail for want of one, whosever they are. */
extern int	outbox_http_capacity(const OutboxHttp *http);

extern int	outbox_http_in_flight(const OutboxHttp *http);

#endif							/* OUTBOX_HTTP_H */
